"""What was taught and who allowed it, in the database."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from bot.database import fetch_one, run, to_ms, to_time
from bot.dialogue import put_chat, put_fan
from bot.domain import AnswerId, Chat, ChatKind, Fan, Platform, QuestionId, Role, Source, Turn
from bot.learning import (
    CONSENT_VERSION,
    Consent,
    Flood,
    Lesson,
    LessonKind,
    LessonState,
    RatedAnswer,
    Standing,
)
from bot.night_store import NightStore
from bot.rules import Grant, teachable
from bot.text import with_quote

TEACHABLE = frozenset(source for source in Source if teachable(source))
_CONSENTING = """
(SELECT given FROM consents WHERE consents.fan_key = {}.fan_key
 ORDER BY id DESC LIMIT 1) = 1
"""  # the newest row counts
_LESSONS = f"""
SELECT lessons.*, answers.question_id AS asked FROM lessons
LEFT JOIN answers ON answers.id = lessons.answer_id
WHERE lessons.state IN ('pending', 'approved') AND {_CONSENTING.format("lessons")}
ORDER BY lessons.id
"""  # noqa: S608 # made of our own text only
_RATED = f"""
SELECT votes.*, questions.id AS asked, questions.text AS question, questions.quoted,
  questions.source AS asked_in, questions.fan_key AS asker,
  answers.text AS answer, answers.revision
FROM votes
JOIN answers ON answers.id = votes.answer_id
JOIN questions ON questions.id = answers.question_id
WHERE votes.trains = 1 AND answers.state = 'done' AND answers.text <> ''
  AND {_CONSENTING.format("votes")} AND {_CONSENTING.format("questions")}
ORDER BY votes.answer_id, votes.fan_key
"""  # noqa: S608 # made of our own text only
_STANDINGS = """
WITH sides AS (SELECT answer_id, sum(value) AS total FROM votes GROUP BY answer_id)
SELECT key, first_seen,
  (SELECT count(*) FROM lessons WHERE fan_key = key AND state = 'approved') AS approved,
  (SELECT count(*) FROM lessons WHERE fan_key = key AND state IN ('rejected', 'quarantined'))
    AS rejected,
  (SELECT count(*) FROM votes JOIN sides USING (answer_id)
   WHERE fan_key = key AND value * (total - value) > 0) AS agreed,
  (SELECT count(*) FROM votes JOIN sides USING (answer_id)
   WHERE fan_key = key AND value * (total - value) < 0) AS disagreed,
  released
FROM fans
"""
_FLOOD = f"""
SELECT *, count(*) OVER () AS flooded FROM lessons
WHERE state = 'quarantined' AND fan_key = (
  SELECT fan_key FROM lessons
  WHERE state = 'quarantined' AND {_CONSENTING.format("lessons")} ORDER BY id LIMIT 1)
ORDER BY id LIMIT ?
"""  # noqa: S608 # made of our own text only
_SATISFACTION = """
SELECT count(*) FILTER (WHERE value > 0) AS up, count(*) FILTER (WHERE value < 0) AS down
FROM votes JOIN answers ON answers.id = answer_id WHERE revision = ?
"""


def _to_lesson(row: sqlite3.Row) -> Lesson:
    same = ("id", "fan_key", "chat_key", "question", "answer", "answer_id", "decided_by")
    return Lesson(
        **{name: row[name] for name in same},
        kind=LessonKind(row["kind"]),
        source=Source(row["source"]),
        state=LessonState(row["state"]),
        confirmed=bool(row["confirmed"]),
        created_at=to_time(row["created_at"]),
    )


class LearningStore(NightStore):
    """The part of the store that holds lessons and consents."""

    # Consent

    async def consent(self, fan_key: str) -> Consent | None:
        """What a fan said last; None when the fan was never asked."""
        rows = await self._read(
            "SELECT * FROM consents WHERE fan_key = ? ORDER BY id DESC LIMIT 1", fan_key
        )
        if not rows:
            return None
        given = rows[0]["given"]
        asked = None if given is None else bool(given)
        return Consent(asked, rows[0]["version"], to_time(rows[0]["created_at"]))

    async def set_consent(
        self, fan: Fan, *, given: bool | None, source: Source, grant: Grant, now: datetime
    ) -> None:
        """Keep what a fan said (None: that we asked), and let it count for what is there.

        After a yes earlier votes train where the rules allow it; after a no nothing does.
        """

        def work(db: sqlite3.Connection) -> None:
            put_fan(db, fan, now)
            run(
                db,
                "INSERT INTO consents (fan_key, given, version, source, created_at)"
                " VALUES (?, ?, ?, ?, ?)",
                *(fan.key, given, CONSENT_VERSION, source, to_ms(now)),
            )
            if given is False:
                run(db, "UPDATE votes SET trains = 0 WHERE fan_key = ?", fan.key)
                run(
                    db,
                    "UPDATE lessons SET state = 'withdrawn' WHERE fan_key = ?"
                    " AND state IN ('waiting', 'pending', 'approved')",
                    fan.key,
                )
            elif given:
                _let_votes_train(db, fan.key, grant)

        await self._write(work)

    async def set_tell(self, fan_key: str, *, tell: bool) -> None:
        """Whether a fan wants to hear that a lesson was learnt."""
        await self._change("UPDATE fans SET tell = ? WHERE key = ?", int(tell), fan_key)

    async def tells(self, fan_key: str) -> bool:
        """Whether a fan wants to hear that a lesson was learnt."""
        rows = await self._read("SELECT tell FROM fans WHERE key = ?", fan_key)
        return bool(rows and rows[0]["tell"])

    async def mark_vote(self, answer_id: AnswerId, fan_key: str, grant: Grant) -> None:
        """Let a vote train, if the rules allow it for its source and the question's."""
        await self._write(lambda db: _let_votes_train(db, fan_key, grant, answer_id))

    async def chat(self, key: str) -> Chat | None:
        """A chat by its key."""
        rows = await self._read("SELECT * FROM chats WHERE key = ?", key)
        if not rows:
            return None
        row = rows[0]
        return Chat(Platform(row["platform"]), row["id"], ChatKind(row["kind"]), row["thread"])

    # Lessons

    async def add_lesson(
        self,
        kind: LessonKind,
        fan: Fan,
        chat: Chat,
        *,
        source: Source,
        question: str,
        answer: str,
        answer_id: AnswerId | None,
        state: LessonState,
        now: datetime,
    ) -> Lesson:
        """Keep what a fan teaches; the same words of the same fan are one lesson.

        Raises StoreError for a source that nothing may be learnt from: the store's own check.
        """

        def work(db: sqlite3.Connection) -> sqlite3.Row:
            put_fan(db, fan, now)
            put_chat(db, chat)
            run(
                db,
                "INSERT INTO lessons (kind, fan_key, chat_key, source, question, answer, answer_id,"
                " state, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (fan_key, question, answer) DO UPDATE SET state = excluded.state"
                " WHERE lessons.state = 'withdrawn'",
                *(kind, fan.key, chat.key, source, question, answer, answer_id, state, to_ms(now)),
            )
            row = fetch_one(
                db,
                "SELECT * FROM lessons WHERE fan_key = ? AND question = ? AND answer = ?",
                *(fan.key, question, answer),
            )
            assert row is not None, "it was there or has just been inserted"
            return row

        return _to_lesson(await self._write(work))

    async def lesson(self, lesson_id: int) -> Lesson | None:
        """One lesson."""
        rows = await self._read("SELECT * FROM lessons WHERE id = ?", lesson_id)
        return _to_lesson(rows[0]) if rows else None

    async def confirm_lesson(self, lesson_id: int, *, wanted: bool) -> bool:
        """The fan's own yes or no; False when the lesson did not wait for it."""
        return bool(
            await self._change(
                "UPDATE lessons SET state = ?, confirmed = ? WHERE id = ? AND state = 'waiting'",
                *("pending" if wanted else "withdrawn", int(wanted), lesson_id),
            )
        )

    async def decide_lesson(
        self, lesson_id: int, state: LessonState, by: str, now: datetime, answer: str | None = None
    ) -> bool:
        """An admin's word on a lesson, perhaps with better words; False when it was not open."""
        return bool(
            await self._change(
                "UPDATE lessons SET state = ?, decided_by = ?, decided_at = ?,"
                " answer = coalesce(?, answer)"
                " WHERE id = ? AND state IN ('pending', 'quarantined')",
                *(state, by, to_ms(now), answer, lesson_id),
            )
        )

    async def next_lesson(self) -> tuple[Lesson | None, int]:
        """The oldest lesson that waits for an admin, and how many do."""
        rows = await self._read(
            f"SELECT * FROM lessons WHERE state = 'pending' AND {_CONSENTING.format('lessons')}"  # noqa: S608 # our own text
            " ORDER BY id"
        )
        return (_to_lesson(rows[0]) if rows else None), len(rows)

    async def lessons(self) -> list[Lesson]:
        """What may be learnt, of fans who allow it: approved, or waiting for a second."""
        found = []
        for row in await self._read(_LESSONS):
            before = None
            if row["asked"] is not None:
                asked = QuestionId(row["asked"])
                before = await self.history_of(asked, row["fan_key"], TEACHABLE)
            found.append(replace(_to_lesson(row), turns=tuple(before or ())))
        return found

    async def quarantine(self, lesson_ids: Sequence[int]) -> int:
        """Set a flood apart, whatever was approved of it; returns how many lessons."""
        marks = ", ".join("?" * len(lesson_ids))
        return await self._change(
            "UPDATE lessons SET state = 'quarantined'"  # noqa: S608 # question marks
            f" WHERE state IN ('pending', 'approved') AND id IN ({marks})",
            *lesson_ids,
        )

    async def next_flood(self, shown: int) -> Flood | None:
        """What is quarantined of one fan, with so many lessons of it; None when nothing is."""
        rows = await self._read(_FLOOD, shown)
        return Flood(rows[0]["flooded"], tuple(map(_to_lesson, rows))) if rows else None

    async def release(self, lesson_id: int, now: datetime) -> int:
        """Let all that is quarantined of a lesson's fan be what it was before; how much it is.

        What came from this fan until now makes no flood any more.
        """

        def work(db: sqlite3.Connection) -> int:
            fan = _flooding(db, lesson_id)
            run(db, "UPDATE fans SET released = ? WHERE key = ?", to_ms(now), fan)
            return run(
                db,
                "UPDATE lessons SET state = iif(decided_by IS NULL, 'pending', 'approved')"
                " WHERE state = 'quarantined' AND fan_key = ?",
                fan,
            ).rowcount

        return await self._write(work)

    async def reject_flood(self, lesson_id: int, by: str, now: datetime) -> int:
        """Reject all that is quarantined of a lesson's fan; how much it is."""

        def work(db: sqlite3.Connection) -> int:
            return run(
                db,
                "UPDATE lessons SET state = 'rejected', decided_by = ?, decided_at = ?"
                " WHERE state = 'quarantined' AND fan_key = ?",
                *(by, to_ms(now), _flooding(db, lesson_id)),
            ).rowcount

        return await self._write(work)

    async def learnt(self, lesson_ids: Sequence[int], revision: str) -> list[Lesson]:
        """Note which revision learnt lessons first; those that no earlier one had learnt."""

        def work(db: sqlite3.Connection) -> list[sqlite3.Row]:
            new = []
            for lesson_id in lesson_ids:
                new += run(
                    db,
                    "UPDATE lessons SET learnt_in = ? WHERE id = ? AND learnt_in IS NULL"
                    " RETURNING *",
                    *(revision, lesson_id),
                ).fetchall()
            return new

        return [_to_lesson(row) for row in await self._write(work)]

    async def rated_answers(self) -> list[RatedAnswer]:
        """The votes that may train, where who voted and who asked still allow it."""
        found = []
        for row in await self._read(_RATED):
            places = {*TEACHABLE, row["asked_in"]}
            before = await self.history_of(QuestionId(row["asked"]), row["asker"], places)
            if before is None:
                continue
            asked = Turn(Role.USER, with_quote(row["question"], row["quoted"]))
            rated = RatedAnswer(
                answer_id=row["answer_id"],
                fan_key=row["fan_key"],
                value=row["value"],
                turns=(*before, asked),
                answer=row["answer"],
                revision=row["revision"] or "",
                created_at=to_time(row["created_at"]),
            )
            found.append(rated)
        return found

    async def standings(self) -> list[Standing]:
        """What is known of every fan's trustworthiness."""
        return [
            Standing(
                fan_key=row["key"],
                first_seen=to_time(row["first_seen"]),
                released=to_time(row["released"]) if row["released"] else None,
                **{name: row[name] for name in ("approved", "rejected", "agreed", "disagreed")},
            )
            for row in await self._read(_STANDINGS)
        ]

    async def satisfaction(self, revision: str) -> tuple[int, int]:
        """How many liked a revision's answers and how many did not."""
        rows = await self._read(_SATISFACTION, revision)
        return rows[0]["up"], rows[0]["down"]


def _flooding(db: sqlite3.Connection, lesson_id: int) -> str | None:
    """The fan of a lesson that is in quarantine."""
    row = fetch_one(
        db, "SELECT fan_key FROM lessons WHERE state = 'quarantined' AND id = ?", lesson_id
    )
    return row["fan_key"] if row else None


def _let_votes_train(
    db: sqlite3.Connection, fan_key: str, grant: Grant, answer_id: AnswerId | None = None
) -> None:
    """Mark a fan's votes, or one of them, as training where the rules allow it."""
    rows = run(
        db,
        "SELECT votes.answer_id, votes.source AS voted, questions.source AS asked FROM votes"
        " JOIN answers ON answers.id = votes.answer_id"
        " JOIN questions ON questions.id = answers.question_id"
        " WHERE votes.fan_key = ?1 AND votes.answer_id = ifnull(?2, votes.answer_id)",
        *(fan_key, answer_id),
    ).fetchall()
    for row in rows:
        allowed = grant.votes(Source(row["voted"]), Source(row["asked"]))
        run(
            db,
            "UPDATE votes SET trains = ?, permission = ? WHERE answer_id = ? AND fan_key = ?",
            *(int(allowed), grant.permission if allowed else "", row["answer_id"], fan_key),
        )
