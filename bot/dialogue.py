"""What was asked and answered: conversations, questions and answers in the database."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

from bot.database import Database, Value, fetch_one, insert, run, to_ms, to_time
from bot.domain import (
    AnswerId,
    AnswerState,
    Chat,
    Fan,
    Finish,
    Message,
    QuestionId,
    Role,
    Source,
    Turn,
    Usage,
)
from bot.errors import StoreError
from bot.records import Answer, Exchange, Question
from bot.text import with_quote

_DEEPEST = 500  # exchanges that a history goes back at most; no context holds more

_ANSWER = """
SELECT answers.*, questions.conversation_id, questions.fan_key, conversations.chat_key
FROM answers
JOIN questions ON questions.id = answers.question_id
JOIN conversations ON conversations.id = questions.conversation_id
"""
_LAST_ANSWER = f"""{_ANSWER}
WHERE conversation_id = (SELECT max(id) FROM conversations WHERE chat_key = ?)
ORDER BY answers.id DESC LIMIT 1
"""  # noqa: S608 # made of our own text only
_LAST_ANSWER_TO = f"""{_ANSWER}
WHERE chat_key = ? AND questions.fan_key = ? ORDER BY answers.id DESC LIMIT 1
"""  # made of our own text only
_HISTORY = """
WITH RECURSIVE chain (depth, answer_id) AS (
  SELECT 1, parent_id FROM questions WHERE id = ?
  UNION ALL
  SELECT depth + 1, questions.parent_id FROM chain
  JOIN answers ON answers.id = chain.answer_id
  JOIN questions ON questions.id = answers.question_id
  WHERE depth < ?
)
SELECT questions.text AS question, quoted, answers.text AS answer,
  fan_key, questions.source FROM chain
JOIN answers ON answers.id = chain.answer_id
JOIN questions ON questions.id = answers.question_id
WHERE answers.text <> '' ORDER BY depth DESC
"""
_EXCHANGES = """
SELECT answers.*, questions.id AS asked, questions.text AS question,
  questions.fan_key, conversation_id, chat_key, coalesce(votes.value, 0) AS vote
FROM conversations
JOIN questions ON questions.conversation_id = conversations.id
LEFT JOIN answers ON answers.question_id = questions.id
  AND answers.attempt = (SELECT max(attempt) FROM answers WHERE question_id = questions.id)
LEFT JOIN votes ON votes.answer_id = answers.id AND votes.fan_key = ?
WHERE conversations.chat_key = ? AND conversations.closed_at IS NULL
ORDER BY questions.id DESC LIMIT ?
"""


def put_fan(db: sqlite3.Connection, fan: Fan, now: datetime) -> None:
    """Note that a fan was here."""
    run(
        db,
        "INSERT INTO fans (key, platform, language, first_seen, last_seen)"
        " VALUES (?1, ?2, ?3, ?4, ?4) ON CONFLICT DO UPDATE SET"
        " language = excluded.language, last_seen = max(last_seen, excluded.last_seen)",
        *(fan.key, fan.platform, fan.language, to_ms(now)),
    )


def put_chat(db: sqlite3.Connection, chat: Chat) -> None:
    """Make a chat known, or note that it became a group."""
    run(
        db,
        "INSERT INTO chats (key, platform, id, thread, kind) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET kind = excluded.kind WHERE kind <> excluded.kind",
        *(chat.key, chat.platform, chat.id, chat.thread, chat.kind),
    )


def _new_conversation(db: sqlite3.Connection, chat: Chat, now: datetime) -> int:
    put_chat(db, chat)
    run(
        db,
        "UPDATE conversations SET closed_at = ? WHERE chat_key = ? AND closed_at IS NULL",
        *(to_ms(now), chat.key),
    )
    return insert(
        db,
        "INSERT INTO conversations (chat_key, started_at, used_at) VALUES (?1, ?2, ?2)",
        *(chat.key, to_ms(now)),
    )


def _to_answer(row: sqlite3.Row) -> Answer:
    same = ("id", "question_id", "conversation_id", "chat_key", "fan_key", "text", "attempt")
    usage = [field.name for field in dataclasses.fields(Usage)]
    return Answer(
        **{name: row[name] for name in (*same, "persona", "model", "crashes", "error")},
        state=AnswerState(row["state"]),
        finish=Finish(row["finish"]) if row["finish"] else None,
        revision=row["revision"] or "",
        created_at=to_time(row["created_at"]),
        usage=None if row["total"] is None else Usage(**{name: row[name] for name in usage}),
    )


def _to_turns(rows: Iterable[sqlite3.Row]) -> list[Turn]:
    return [
        Turn(role, said)
        for row in rows
        for role, said in (
            (Role.USER, with_quote(row["question"], row["quoted"])),
            (Role.ASSISTANT, row["answer"]),
        )
    ]


class Dialogue(Database):
    """The part of the store that holds conversations."""

    # Conversations and questions

    async def running_conversation(self, chat: Chat, now: datetime, idle: timedelta) -> int:
        """The chat's active conversation, or a new one if there is none or it idled too long."""

        def work(db: sqlite3.Connection) -> int:
            row = fetch_one(
                db,
                "SELECT id, used_at FROM conversations WHERE chat_key = ? AND closed_at IS NULL",
                chat.key,
            )
            if row is not None and now - to_time(row["used_at"]) <= idle:
                return int(row["id"])
            return _new_conversation(db, chat, now)

        return await self._write(work)

    async def new_conversation(self, chat: Chat, now: datetime) -> int:
        """Close the chat's active conversation and begin another."""
        return await self._write(lambda db: _new_conversation(db, chat, now))

    async def leaf(self, conversation_id: int) -> AnswerId | None:
        """The newest answer to the newest answered question: what the next question follows."""
        rows = await self._read(
            "SELECT answers.id FROM answers JOIN questions ON questions.id = question_id"
            " WHERE conversation_id = ? ORDER BY question_id DESC, attempt DESC LIMIT 1",
            conversation_id,
        )
        return AnswerId(rows[0]["id"]) if rows else None

    async def add_question(
        self, conversation_id: int, parent: AnswerId | None, message: Message, text: str
    ) -> QuestionId:
        """Keep a question; the same update again gives the same id."""
        platform, now = message.chat.platform, to_ms(message.received_at)

        def work(db: sqlite3.Connection) -> QuestionId:
            row = fetch_one(
                db,
                "SELECT id FROM questions WHERE platform = ? AND update_id = ?",
                *(platform, message.update_id),
            )
            if row is not None:
                return QuestionId(row["id"])
            put_fan(db, message.fan, message.received_at)
            run(
                db,
                "UPDATE conversations SET used_at = max(used_at, ?) WHERE id = ?",
                *(now, conversation_id),
            )
            row_id = insert(
                db,
                "INSERT INTO questions (conversation_id, parent_id, fan_key, platform, update_id,"
                " message_id, source, text, quoted, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                *(conversation_id, parent, message.fan.key, platform, message.update_id),
                *(message.message_id, message.source, text, message.quoted, now),
            )
            return QuestionId(row_id)

        return await self._write(work)

    async def question_of(self, message: Message) -> QuestionId | None:
        """The question that a message was kept as before a restart."""
        rows = await self._read(
            "SELECT id FROM questions WHERE platform = ? AND update_id = ?",
            *(message.chat.platform, message.update_id),
        )
        return QuestionId(rows[0]["id"]) if rows else None

    async def question(self, question_id: QuestionId) -> Question:
        """A question that is known to exist."""
        rows = await self._read(
            "SELECT questions.*, conversations.chat_key FROM questions"
            " JOIN conversations ON conversations.id = conversation_id WHERE questions.id = ?",
            question_id,
        )
        if not rows:
            detail = f"question {question_id}"
            raise StoreError("error.store_missing", path=self._path, detail=detail)
        row = rows[0]
        return Question(
            **{name: row[name] for name in ("id", "conversation_id", "chat_key", "fan_key")},
            parent=row["parent_id"],
            text=row["text"],
            quoted=row["quoted"],
            source=Source(row["source"]),
            message_id=row["message_id"],
            created_at=to_time(row["created_at"]),
        )

    async def history(self, question_id: QuestionId) -> list[Turn]:
        """The turns before a question, oldest first; those that were never answered left out."""
        return _to_turns(await self._before(question_id))

    async def history_of(
        self, question_id: QuestionId, fan_key: str, sources: Collection[str]
    ) -> list[Turn] | None:
        """The same, None when somebody else spoke in it or in another place than these."""
        rows = await self._before(question_id)
        if any(row["fan_key"] != fan_key or row["source"] not in sources for row in rows):
            return None
        return _to_turns(rows)

    async def _before(self, question_id: QuestionId) -> list[sqlite3.Row]:
        return await self._read(_HISTORY, question_id, _DEEPEST)

    # Answers

    async def start_answer(
        self, question_id: QuestionId, message: Message, *, persona: str, model: str, now: datetime
    ) -> AnswerId:
        """The answer that a message asks for: a new attempt, or after a crash the same one again.

        One that was done or stopped is left as it is; any other begins anew.
        """
        update = (message.chat.platform, message.update_id)

        def work(db: sqlite3.Connection) -> AnswerId:
            run(db, "INSERT INTO personas (version) VALUES (?) ON CONFLICT DO NOTHING", persona)
            row = fetch_one(
                db, "SELECT id FROM answers WHERE platform = ? AND update_id = ?", *update
            )
            if row is not None:
                run(
                    db,
                    "UPDATE answers SET crashes = crashes + (state = 'running'), state = 'running',"
                    " text = '', error = NULL, persona = ?, model = ?"
                    " WHERE id = ? AND state NOT IN ('done', 'stopped')",
                    *(persona, model, row["id"]),
                )
                return AnswerId(row["id"])
            row_id = insert(
                db,
                "INSERT INTO answers (question_id, platform, update_id, attempt, state, persona,"
                " model, created_at) SELECT ?1, ?2, ?3, 1 + coalesce(max(attempt), 0), 'running',"
                " ?4, ?5, ?6 FROM answers WHERE question_id = ?1",
                *(question_id, *update, persona, model, to_ms(now)),
            )
            return AnswerId(row_id)

        return await self._write(work)

    async def save_prompt(self, answer_id: AnswerId, prompt: dict[str, object]) -> None:
        """Note what the model was given."""
        await self._change_answer(answer_id, "prompt = ?", json.dumps(prompt, ensure_ascii=False))

    async def finish_answer(
        self,
        answer_id: AnswerId,
        *,
        text: str,
        state: AnswerState,
        usage: Usage | None,
        finish: Finish | None = None,
        error: str | None = None,
    ) -> None:
        """Keep how an answer ended and what it cost."""
        cost = dataclasses.asdict(usage) if usage else {}
        columns = ("text", "state", "finish", "error", *cost)
        await self._change_answer(
            answer_id,
            ", ".join(f"{column} = ?" for column in columns),
            *(text, state, finish, error, *cost.values()),
        )

    async def answer(self, answer_id: AnswerId) -> Answer | None:
        """One answer; None if there is none of that id."""
        rows = await self._read(_ANSWER + "WHERE answers.id = ?", answer_id)
        return _to_answer(rows[0]) if rows else None

    async def last_answer(self, chat: Chat, fan_key: str | None = None) -> Answer | None:
        """The newest answer in a chat's newest conversation, or of all in it that a fan asked."""
        rows = await (
            self._read(_LAST_ANSWER, chat.key)
            if fan_key is None
            else self._read(_LAST_ANSWER_TO, chat.key, fan_key)
        )
        return _to_answer(rows[0]) if rows else None

    async def exchanges(self, chat: Chat, fan_key: str, limit: int) -> list[Exchange]:
        """The last exchanges of the active conversation, oldest first, as a fan sees them."""
        rows = await self._read(_EXCHANGES, fan_key, chat.key, limit)
        return [
            Exchange(
                QuestionId(row["asked"]),
                row["question"],
                None if row["id"] is None else _to_answer(row),
                row["vote"],
            )
            for row in reversed(rows)
        ]

    async def _change_answer(self, answer_id: AnswerId, assignments: str, *values: Value) -> None:
        changed = await self._change(
            f"UPDATE answers SET {assignments} WHERE id = ?",  # noqa: S608 # our own column names
            *(*values, answer_id),
        )
        if not changed:
            raise StoreError("error.store_missing", path=self._path, detail=f"answer {answer_id}")
