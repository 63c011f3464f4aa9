"""The nights of training, in the database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from datetime import datetime

from bot.database import fetch_one, insert, to_ms, to_time
from bot.dialogue import Dialogue
from bot.errors import Refusal
from bot.learning import Night, NightState


class NightStore(Dialogue):
    """The part of the store that holds the nights."""

    async def begin_night(
        self, day: str, started_by: str, report_to: str | None, now: datetime
    ) -> Night:
        """Begin a night. Raises Refusal when one runs, or this day's scheduled one was there."""

        def work(db: sqlite3.Connection) -> sqlite3.Row:
            running = fetch_one(db, "SELECT * FROM nights WHERE state = 'running'")
            if running is not None:
                began = to_time(running["started_at"])
                by = running["started_by"]
                raise Refusal("refusal.night_running", by=by, at=f"{began.astimezone():%H:%M}")
            done = fetch_one(
                db, "SELECT id FROM nights WHERE day = ? AND started_by = 'schedule'", day
            )
            if done is not None and started_by == "schedule":
                raise Refusal("refusal.night_done", day=day)
            night_id = insert(
                db,
                "INSERT INTO nights (day, started_by, report_to, state, started_at)"
                " VALUES (?, ?, ?, 'running', ?)",
                *(day, started_by, report_to, to_ms(now)),
            )
            row = fetch_one(db, "SELECT * FROM nights WHERE id = ?", night_id)
            assert row is not None, "it has just been inserted"
            return row

        return _to_night(await self._write(work))

    async def set_stage(self, night_id: int, stage: str, revision: str | None = None) -> None:
        """Note how far a night is."""
        await self._change(
            "UPDATE nights SET stage = ?, revision = coalesce(?, revision) WHERE id = ?",
            *(stage, revision, night_id),
        )

    async def end_night(
        self,
        night_id: int,
        state: NightState,
        reason: str,
        details: Mapping[str, object],
        now: datetime,
    ) -> None:
        """Keep how a night ended."""
        await self._change(
            "UPDATE nights SET state = ?, reason = ?, details = ?, ended_at = ? WHERE id = ?",
            *(state, reason, json.dumps(dict(details), ensure_ascii=False, default=str)),
            *(to_ms(now), night_id),
        )

    async def running_night(self) -> Night | None:
        """The night that runs, or ran when the bot died."""
        rows = await self._read("SELECT * FROM nights WHERE state = 'running'")
        return _to_night(rows[0]) if rows else None

    async def nights(self, limit: int = 10) -> list[Night]:
        """The newest nights, newest first."""
        rows = await self._read("SELECT * FROM nights ORDER BY id DESC LIMIT ?", limit)
        return [_to_night(row) for row in rows]

    async def scheduled_night(self, day: str) -> Night | None:
        """The scheduled night of a day."""
        rows = await self._read(
            "SELECT * FROM nights WHERE day = ? AND started_by = 'schedule'", day
        )
        return _to_night(rows[0]) if rows else None


def _to_night(row: sqlite3.Row) -> Night:
    same = ("id", "day", "started_by", "report_to", "stage", "reason", "revision")
    return Night(
        **{name: row[name] for name in same},
        state=NightState(row["state"]),
        details=json.loads(row["details"]),
        started_at=to_time(row["started_at"]),
        ended_at=to_time(row["ended_at"]) if row["ended_at"] else None,
    )
