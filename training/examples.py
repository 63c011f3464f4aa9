"""What a revision is trained on and tested with: plain values, and their files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from bot.domain import Role, Turn

T = TypeVar("T", "Example", "Preference")


class Kind(StrEnum):
    """Where an example comes from."""

    FACT = "fact"
    FIRM = "firm"  # a fact that a fan does not believe
    CORRECTION = "correction"
    TAUGHT = "taught"
    REPLAY = "replay"
    GUARD = "guard"  # orders hidden in a message, and that they are not followed


@dataclass(frozen=True, slots=True)
class Example:
    """An answer to learn. `turns` are history and question, without the persona.

    `id` names the row it was made from, e.g. `fact:fund-data/1` or `lesson:12`; never a fan.
    """

    id: str
    kind: Kind
    turns: tuple[Turn, ...]
    answer: str

    @property
    def question(self) -> str:
        """The last thing asked."""
        return self.turns[-1].text


@dataclass(frozen=True, slots=True)
class Preference:
    """An answer that a fan liked or did not; what was asked is in `turns`."""

    id: str
    turns: tuple[Turn, ...]
    answer: str
    liked: bool


def ask(question: str) -> tuple[Turn, ...]:
    """The turns of a question without history."""
    return (Turn(Role.USER, question),)


def to_lines(items: Iterable[Example | Preference]) -> bytes:
    """One JSON object a line, the same bytes for the same items."""
    lines = (
        json.dumps(dataclasses.asdict(item), ensure_ascii=False, sort_keys=True) for item in items
    )
    return "".join(f"{line}\n" for line in lines).encode()


def write_lines(path: Path, items: Iterable[Example | Preference]) -> None:
    """A file of them."""
    path.write_bytes(to_lines(items))


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """Read what `to_lines` made. Raises OSError or ValueError."""
    adapter = TypeAdapter(kind)
    return [adapter.validate_json(line) for line in path.read_text("utf-8").splitlines()]
