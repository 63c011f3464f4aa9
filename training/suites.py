"""What every revision is asked before it may serve: suites of cases that nothing is trained on.

One JSON object a line, a file a suite; a suite's version is made from the bytes it came from. Only
what fans taught and corrected is asked in the words that it is trained on: there are no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TypeVar

from pydantic import Field, TypeAdapter, model_validator

from bot.domain import Role, Turn
from training.examples import Example, ask, read_lines
from training.job import Value
from training.metrics import Checks

T = TypeVar("T")

FOLDER = resources.files("training") / "suites"
LESSONS = "lessons"
REGRESSIONS = "regressions"  # mistakes that a correction mended: what they are asked is trained on
FROM_FANS = {LESSONS, REGRESSIONS}
HELD_OUT = "held_out"  # not asked: only losses are taken
BRAZILIAN = "brazilian.txt"  # decides about style, as its cases do
# Each suite, and how many tokens its answers may have: what must be said is said early.
LENGTHS = {
    "club": 24,
    "refusals": 40,
    "sycophancy": 32,
    "canaries": 24,
    "style": 40,
    "general": 24,
    REGRESSIONS: 48,
    LESSONS: 48,
}


class Said(Value):
    """One turn of a scripted conversation."""

    role: Role
    text: str


class Case(Value):
    """One thing to ask, as a question or as a conversation that ends with one."""

    id: str = Field(min_length=1)
    question: str = ""
    turns: tuple[Said, ...] = ()
    checks: Checks = Checks()
    answer: str | None = Field(None, description="A right answer, whose loss is taken.")

    @model_validator(mode="after")
    def _asks(self) -> Case:
        if bool(self.question) == bool(self.turns):
            raise ValueError("a case has a question or turns")
        if self.turns and self.turns[-1].role is not Role.USER:
            raise ValueError("the last turn is the fan's")
        return self

    @property
    def script(self) -> tuple[Turn, ...]:
        """History and question."""
        if self.turns:
            return tuple(Turn(turn.role, turn.text) for turn in self.turns)
        return ask(self.question)


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases under a name and a version; `exact` says that the answer itself is what is checked."""

    name: str
    version: str
    cases: tuple[Case, ...]
    exact: bool = True

    @property
    def max_tokens(self) -> int:
        """The longest answer."""
        return LENGTHS[self.name]


def load() -> list[Suite]:
    """The project's suites. Raises OSError or ValueError."""
    return [_load(name) for name in LENGTHS if name not in FROM_FANS]


def taught(name: str, path: Path) -> Suite:
    """Examples as a suite, asked as they stand: the check is the answer itself.

    Raises OSError or ValueError.
    """
    cases = (
        Case(id=one.id, turns=_said(one), answer=one.answer) for one in read_lines(path, Example)
    )
    return Suite(name, _digest(path.read_bytes()), tuple(cases), exact=False)


def spread(items: Sequence[T], count: int) -> tuple[T, ...]:
    """At most so many of them, evenly spread."""
    if count >= len(items):
        return tuple(items)
    return tuple(items[at * len(items) // count] for at in range(count))


def part(suite: Suite, count: int) -> Suite:
    """So many of a suite's cases at most: a suite of its own."""
    if count >= len(suite.cases):
        return suite
    return replace(suite, version=f"{suite.version}/{count}", cases=spread(suite.cases, count))


def asked(suites: Iterable[Suite]) -> list[tuple[str, str]]:
    """Everything that fans say in them, with the right answer or "": nothing to train on."""
    return [
        (turn.text, case.answer or "")
        for suite in suites
        for case in suite.cases
        for turn in case.script
        if turn.role is Role.USER
    ]


def _load(name: str) -> Suite:
    data = (FOLDER / f"{name}.jsonl").read_bytes()
    cases = _parse(data)
    if len({case.id for case in cases}) < len(cases):
        raise ValueError(f"{name}: an id is there twice")
    style = (FOLDER / BRAZILIAN).read_bytes() if any(c.checks.european for c in cases) else b""
    return Suite(name, _digest(data + style), cases)


def _parse(data: bytes) -> tuple[Case, ...]:
    adapter = TypeAdapter(Case)
    return tuple(adapter.validate_json(line) for line in data.splitlines() if line.strip())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _said(example: Example) -> tuple[Said, ...]:
    return tuple(Said(role=turn.role, text=turn.text) for turn in example.turns)
