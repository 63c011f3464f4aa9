"""What a dataset is made from: plain values, filled from the store, and the limits on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from bot.domain import Role, Turn


@dataclass(frozen=True, slots=True)
class LessonRow:
    """What a fan taught or corrected. `fan` is an opaque key; `turns` came before the question."""

    id: int
    kind: Literal["taught", "correction"]
    fan: str
    question: str
    answer: str
    turns: tuple[Turn, ...]
    state: Literal["pending", "approved"]
    approved_by_admin: bool
    created_at: datetime

    @property
    def name(self) -> str:
        """Its name in a dataset."""
        return f"lesson:{self.id}"

    @property
    def is_checked(self) -> bool:
        """Whether an admin read and approved it."""
        return self.state == "approved" and self.approved_by_admin

    @property
    def asked(self) -> tuple[Turn, ...]:
        """History and question."""
        return (*self.turns, Turn(Role.USER, self.question))


@dataclass(frozen=True, slots=True)
class VoteRow:
    """A thumb on an answer; `turns` are history and question, `revision` is what wrote it."""

    answer_id: int
    fan: str
    value: Literal[1, -1]
    turns: tuple[Turn, ...]
    answer: str
    revision: str
    created_at: datetime

    @property
    def name(self) -> str:
        """The name of its answer in a dataset."""
        return f"answer:{self.answer_id}"


@dataclass(frozen=True, slots=True)
class FanRow:
    """What is known of a fan, to weigh what comes from them.

    `approved` and `rejected` count lessons that an admin decided on. After `released` an admin
    looked at what was quarantined: rows until then make no flood any more. Admins know no limits.
    """

    fan: str
    first_seen: datetime
    approved: int = 0
    rejected: int = 0
    admin: bool = False
    released: datetime | None = None


Fans = Mapping[str, FanRow]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one fan may do to a dataset, and what counts as the same text."""

    new_days: float = 7  # a younger account weighs nothing
    per_night: int = 3  # lessons of a fan that enter in 24 hours; the others wait
    share: float = 0.05  # of the set that may hang on one fan and no admin
    share_floor: int = 3  # and what it may be in a tiny set
    agree: int = 2  # trusted fans who must say the same when no admin approved it
    trusted: float = 0.7  # trust from which a fan counts among them
    flood_lessons: int = 20  # more in 24 hours quarantine the fan
    flood_votes: int = 50
    near: float = 0.85  # likeness from which two texts are the same
    leaks: float = 0.7  # likeness to a question of an evaluation that is too much
    held_out: float = 0.15  # share of things taught of which one wording is held out


class Reason(StrEnum):
    """Why a row is not in the dataset; names a text `dataset.reason.<reason>`."""

    PENDING = "pending"  # an admin, or one more trusted fan, is needed
    NEW = "new"  # the account is too young
    DISPUTED = "disputed"  # trusted fans say different things
    CONTRADICTS = "contradicts"  # it may contradict a fact: an admin must look
    WAITS = "waits"  # over the lessons of a night; a later one takes it
    SHARE = "share"  # too much of the set would hang on this fan
    FLOOD = "flood"  # the fan is quarantined
    DUPLICATE = "duplicate"
    SUPERSEDED = "superseded"  # the same question has a newer or better checked answer
    OVERRULED = "overruled"  # a fact that an admin's approval contradicts
    EVALUATION = "evaluation"  # too near to a question that tests ask
    PERSONAL = "personal"  # nothing was left without personal data
    TIE = "tie"
    WEIGHTLESS = "weightless"  # only votes that weigh nothing


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A fan whose rows are all left out, for the admin. Never written into a dataset."""

    fan: str
    lessons: tuple[int, ...]
    votes: int
    last_vote: datetime | None = None
