"""The words of learning: lessons that fans give, their consent, and nights of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from bot.domain import AnswerId, Source, Turn

CONSENT_VERSION = 1  # of the sentence that fans say yes to; a new one is asked anew


class LessonKind(StrEnum):
    """How a fan taught."""

    TAUGHT = "taught"
    CORRECTION = "correction"


class LessonState(StrEnum):
    """How far a lesson came."""

    WAITING = "waiting"  # for the fan's own yes
    PENDING = "pending"  # for an admin, or for others who say the same
    APPROVED = "approved"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"  # part of a flood
    WITHDRAWN = "withdrawn"  # by the fan


class NightState(StrEnum):
    """How a training run ended, or that it goes on."""

    RUNNING = "running"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    SKIPPED = "skipped"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Stage(StrEnum):
    """What a running night does: it is taken up there after a crash."""

    DATASET = "dataset"
    TRAIN = "train"
    EVALUATE = "evaluate"
    SWAP = "swap"


@dataclass(frozen=True, slots=True)
class Consent:
    """What a fan said last about learning; `given` None: asked and not answered."""

    given: bool | None
    version: int
    at: datetime

    @property
    def holds(self) -> bool:
        """Whether the bot may learn from this fan."""
        return self.given is True and self.version == CONSENT_VERSION


@dataclass(frozen=True, slots=True)
class Lesson:
    """A question with the answer that a fan gave for the bot to learn."""

    id: int
    kind: LessonKind
    fan_key: str
    chat_key: str
    source: Source
    question: str
    answer: str
    answer_id: AnswerId | None
    state: LessonState
    confirmed: bool
    decided_by: str | None
    created_at: datetime
    turns: tuple[Turn, ...] = ()  # what a corrected answer came after


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """A vote that may train: on which answer, to what, by whom."""

    answer_id: AnswerId
    fan_key: str
    value: int
    turns: tuple[Turn, ...]
    answer: str
    revision: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a fan's trustworthiness: how often admins and the majority agreed.

    `released` is when an admin last looked at a flood of this fan's and let it pass.
    """

    fan_key: str
    first_seen: datetime
    approved: int
    rejected: int
    agreed: int
    disagreed: int
    released: datetime | None = None


@dataclass(frozen=True, slots=True)
class Flood:
    """What is quarantined of one fan: how many lessons, and the first of them to look at."""

    count: int
    first: tuple[Lesson, ...]

    @property
    def id(self) -> int:
        """The lesson that it goes by in buttons: a fan's key may be long."""
        return self.first[0].id


@dataclass(frozen=True, slots=True)
class Night:
    """One training run. `details` are the values for the text of its reason, and figures."""

    id: int
    day: str
    started_by: str
    report_to: str | None
    state: NightState
    stage: str
    reason: str
    revision: str | None
    started_at: datetime
    ended_at: datetime | None
    details: Mapping[str, object] = field(default_factory=dict)
