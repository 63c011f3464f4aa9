"""What the store gives back: questions, answers and exchanges."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from bot.domain import AnswerId, AnswerState, Finish, QuestionId, Source, Usage


@dataclass(frozen=True, slots=True)
class Question:
    """One fan's message that asks for an answer; `parent` is the answer it follows."""

    id: QuestionId
    conversation_id: int
    chat_key: str
    parent: AnswerId | None
    fan_key: str
    text: str
    quoted: str | None
    source: Source
    message_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `fan_key` is who asked. `revision` is empty and `usage` None until it ends."""

    id: AnswerId
    question_id: QuestionId
    conversation_id: int
    chat_key: str
    fan_key: str
    text: str
    state: AnswerState
    attempt: int
    persona: str
    model: str
    revision: str
    created_at: datetime
    finish: Finish | None = None
    crashes: int = 0
    error: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question with its newest answer and what the reader voted on it: 1, -1 or 0."""

    question_id: QuestionId
    question: str
    answer: Answer | None
    vote: int
