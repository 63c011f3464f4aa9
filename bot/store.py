"""The store: what was asked, answered, delivered and rated, in one SQLite file."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from datetime import datetime

from pydantic import TypeAdapter

from bot.database import run, to_ms
from bot.delivery import LedgerPiece
from bot.dialogue import put_chat, put_fan
from bot.domain import AnswerId, Asked, Chat, Fan, Message, Source, Wanted
from bot.learning_store import LearningStore
from bot.records import Answer, Exchange, Question

__all__ = ["Answer", "Exchange", "Question", "Store"]

_MESSAGE = TypeAdapter(Message)
_COUNTS = """
SELECT (SELECT count(*) FROM questions) AS questions,
  (SELECT count(*) FROM answers) AS answers,
  (SELECT count(*) FROM votes WHERE value = 1) AS votes_up,
  (SELECT count(*) FROM votes WHERE value = -1) AS votes_down,
  (SELECT count(*) FROM corrections) AS corrections,
  (SELECT count(*) FROM inbox WHERE message IS NOT NULL) AS pending,
  (SELECT count(*) FROM fans) AS fans
"""


class Store(LearningStore):
    """Everything that must outlive a restart. Any method may raise StoreError."""

    # Inbox

    async def accept(self, message: Message) -> bool:
        """Keep a message before any work on it; False if this update was here before."""
        payload = json.dumps(
            dataclasses.asdict(message), ensure_ascii=False, default=datetime.isoformat
        )
        return bool(
            await self._change(
                "INSERT INTO inbox (platform, update_id, received_at, message)"
                " VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                *(message.chat.platform, message.update_id, to_ms(message.received_at), payload),
            )
        )

    async def pending(self) -> list[Message]:
        """What was accepted and is not done, oldest first."""
        rows = await self._read("SELECT message FROM inbox WHERE message IS NOT NULL ORDER BY id")
        return [_MESSAGE.validate_json(row["message"]) for row in rows]

    async def done(self, message: Message) -> None:
        """Forget what a message said; its update id stays, so that it is not answered again."""
        await self._change(
            "UPDATE inbox SET message = NULL WHERE platform = ? AND update_id = ?",
            *(message.chat.platform, message.update_id),
        )

    async def forget_seen(self, before: datetime) -> int:
        """Drop update ids of done messages received before a moment; returns how many."""
        return await self._change(
            "DELETE FROM inbox WHERE message IS NULL AND received_at < ?", to_ms(before)
        )

    # Delivery ledger

    async def pieces(self, answer_id: AnswerId) -> list[LedgerPiece]:
        """What is known of an answer's delivery, in order."""
        rows = await self._read(
            "SELECT piece, message_id FROM deliveries WHERE answer_id = ? ORDER BY piece",
            answer_id,
        )
        return [LedgerPiece(row[0], row[1]) for row in rows]

    async def record(
        self, answer_id: AnswerId, piece: int, chat: Chat, message_id: str | None
    ) -> None:
        """Note that a piece is about to be sent (None), or as which message it is there."""

        def work(db: sqlite3.Connection) -> None:
            put_chat(db, chat)
            run(
                db,
                "INSERT INTO deliveries (answer_id, piece, chat_key, message_id)"
                " VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET chat_key = excluded.chat_key,"
                " message_id = excluded.message_id",
                *(answer_id, piece, chat.key, message_id),
            )

        await self._write(work)

    async def answer_at(self, chat: Chat, message_id: str) -> AnswerId | None:
        """The answer that a platform's message shows."""
        # By the chat's id without its thread: a reaction does not say in which topic it was made.
        rows = await self._read(
            "SELECT max(answer_id) FROM deliveries JOIN chats ON chats.key = chat_key"
            " WHERE message_id = ? AND platform = ? AND id = ?",
            *(message_id, chat.platform, chat.id),
        )
        newest: AnswerId | None = rows[0][0]
        return newest

    # Feedback

    async def vote(
        self,
        answer_id: AnswerId,
        fan: Fan,
        value: int,
        *,
        source: Source,
        via: str,
        now: datetime,
        only: int | None = None,
    ) -> bool:
        """Set a fan's vote on an answer: 1, -1, or 0 to take it back; True if it changed.

        With 0, `only` names the vote that is meant: another one stays.
        """

        def work(db: sqlite3.Connection) -> bool:
            if value == 0:
                gone = run(
                    db,
                    "DELETE FROM votes WHERE answer_id = ? AND fan_key = ?"
                    " AND value = ifnull(?, value)",
                    *(answer_id, fan.key, only),
                )
                return gone.rowcount > 0
            put_fan(db, fan, now)
            changed = run(
                db,
                "INSERT INTO votes (answer_id, fan_key, value, source, via, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value,"
                " source = excluded.source, via = excluded.via, created_at = excluded.created_at"
                " WHERE value <> excluded.value",
                *(answer_id, fan.key, value, source, via, to_ms(now)),
            )
            return changed.rowcount > 0

        return await self._write(work)

    async def votes(self, answer_id: AnswerId) -> tuple[int, int]:
        """How many fans liked an answer and how many did not."""
        rows = await self._read(
            "SELECT count(*) FILTER (WHERE value > 0), count(*) FILTER (WHERE value < 0)"
            " FROM votes WHERE answer_id = ?",
            answer_id,
        )
        return rows[0][0], rows[0][1]

    async def add_correction(
        self, answer_id: AnswerId, fan: Fan, text: str, *, source: Source, now: datetime
    ) -> int:
        """Keep what an answer should have said; the same words of the same fan count once."""

        def work(db: sqlite3.Connection) -> int:
            put_fan(db, fan, now)
            rows = run(
                db,
                "INSERT INTO corrections (answer_id, fan_key, text, source, created_at)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET text = text RETURNING id",
                *(answer_id, fan.key, text, source, to_ms(now)),
            ).fetchall()
            return int(rows[0]["id"])

        return await self._write(work)

    # Guided replies

    async def ask_for(self, chat: Chat, message_id: str, asked: Asked) -> None:
        """Note what a message of ours asks for."""

        def work(db: sqlite3.Connection) -> None:
            put_chat(db, chat)
            run(
                db,
                "INSERT INTO asks (chat_key, message_id, what, about) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET what = excluded.what, about = excluded.about",
                *(chat.key, message_id, asked.what, asked.about),
            )

        await self._write(work)

    async def asked_for(self, chat: Chat, message_id: str) -> Asked | None:
        """What a message of ours asks for."""
        rows = await self._read(
            "SELECT what, about FROM asks JOIN chats ON chats.key = chat_key"
            " WHERE message_id = ? AND platform = ? AND id = ?",
            *(message_id, chat.platform, chat.id),
        )
        return Asked(Wanted(rows[0]["what"]), rows[0]["about"]) if rows else None

    # The rest

    async def remember_fan(self, fan: Fan, now: datetime) -> None:
        """Note that a fan was here, and the language; never the name."""
        await self._write(lambda db: put_fan(db, fan, now))

    async def remember_persona(self, version: str, text: str) -> None:
        """Keep the words behind a persona's version."""
        await self._change(
            "INSERT INTO personas (version, text) VALUES (?, ?)"
            " ON CONFLICT DO UPDATE SET text = excluded.text",
            *(version, text),
        )

    async def setting(self, key: str) -> str | None:
        """A small value that the bot keeps for itself."""
        rows = await self._read("SELECT value FROM settings WHERE key = ?", key)
        return rows[0][0] if rows else None

    async def set_setting(self, key: str, value: str) -> None:
        """Keep a small value."""
        await self._change(
            "INSERT INTO settings (key, value) VALUES (?, ?)"
            " ON CONFLICT DO UPDATE SET value = excluded.value",
            *(key, value),
        )

    async def counts(self) -> dict[str, int]:
        """How much there is: questions, answers, votes_up, votes_down, corrections and so on."""
        return dict((await self._read(_COUNTS))[0])
