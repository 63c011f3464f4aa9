"""What is known about the club, checked, and the everyday talk that keeps the bot itself.

Both are files of the project. A dated fact is answered with its date; one that stands on a single
source says so. So the bot learns to say how it knows, and a fan sees what may have changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from pydantic import TypeAdapter

from training.examples import Example, Kind, ask
from training.similar import content, normal, numbers, overlap, words

_MONTHS = (
    "janeiro",
    "fevereiro",
    "março",
    "abril",
    "maio",
    "junho",
    "julho",
    "agosto",
    "setembro",
    "outubro",
    "novembro",
    "dezembro",
)
_SUMMER = 7  # a season's second half ends before this month
# First words of answers that are no names and lose their capital behind an opening.
_PLAIN = frozenset(
    re.findall(
        r"\w+",
        "A Ao Aos As Com Contando De Depois Em Foi Foram Já Marcaram Na Nas No Nos O Os Para Pela "
        "Pelo Por Porque Quando Só São Um Uma",
    )
)
_HEDGED = ("Segundo", "Conta-se", "Diz-se")
_RESEMBLES = 0.5  # share of words in common from which a text may be about a fact


@dataclass(frozen=True, slots=True)
class Fact:
    """One checked statement. `key_any` are groups of words; a right answer has one of each."""

    id: str
    topic: str
    statement: str
    statement_en: str
    questions: tuple[str, ...]
    answer: str
    key: tuple[str, ...]
    key_any: tuple[tuple[str, ...], ...]
    sources: tuple[str, ...]
    confidence: Literal["verified", "single-source"]
    as_of: str | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """Its name in a dataset."""
        return f"fact:{self.id}"

    def is_answered_by(self, text: str) -> bool:
        """Whether a text has all that a right answer needs."""
        spoken = f" {normal(text)} "
        return all(any(_has(spoken, word) for word in group) for group in self.key_any)


def _has(spoken: str, word: str) -> bool:
    ends = ("",) if word.endswith("*") else (" ", "/")  # 1971 is also said by 1971/72
    return any(f" {normal(word)}{end}" in spoken for end in ends)


@dataclass(frozen=True, slots=True)
class Talk:
    """One everyday exchange."""

    id: str
    question: str
    answer: str
    kind: Kind = Kind.REPLAY


def _lines(name: str) -> str:
    text = (files("training") / "data" / name).read_text(encoding="utf-8")
    return f"[{','.join(text.splitlines())}]"


def load_facts() -> tuple[Fact, ...]:
    """The project's facts."""
    return TypeAdapter(tuple[Fact, ...]).validate_json(_lines("facts.jsonl"))


def load_replay() -> tuple[Talk, ...]:
    """The project's everyday talk."""
    return TypeAdapter(tuple[Talk, ...]).validate_json(_lines("replay.jsonl"))


def examples(fact: Fact) -> list[Example]:
    """Each wording of the question with the answer as the bot gives it."""
    answer = spoken(fact)
    return [
        Example(f"{fact.name}/{number}", Kind.FACT, ask(question), answer)
        for number, question in enumerate(fact.questions, 1)
    ]


def spoken(fact: Fact) -> str:
    """The answer with its date where it can change, and with a hedge on a single source."""
    single = fact.confidence == "single-source" and not fact.answer.startswith(_HEDGED)
    date = None if fact.as_of is None or _is_dated(fact.answer, fact.as_of) else _month(fact.as_of)
    if single and date:
        opening = f"Segundo a única fonte que tenho, de {date}"
    elif single:
        opening = "Segundo a fonte que tenho"
    elif date:
        opening = f"Segundo os dados de {date}"
    else:
        return fact.answer
    return f"{opening}, {_lower(fact.answer.removeprefix('Sim: '))}"


def _lower(answer: str) -> str:
    first = answer.split(maxsplit=1)[0]
    return answer[0].lower() + answer[1:] if first in _PLAIN else answer


def _month(as_of: str) -> str:
    year, month = as_of.split("-")[:2]
    return f"{_MONTHS[int(month) - 1]} de {year}"


def _is_dated(answer: str, as_of: str) -> bool:
    """Whether an answer names the year or the season of a date."""
    year, month = (int(part) for part in as_of.split("-")[:2])
    first = year if month >= _SUMMER else year - 1
    named = words(answer)
    return str(year) in named or f"{first}/{(first + 1) % 100:02}" in named


def may_contradict(fact: Fact, question: str, answer: str) -> bool:
    """Whether a text may be about a fact without saying what is right. In doubt, yes.

    For what nobody checked. Years that only say which season is meant must be the same: other
    seasons are other facts.
    """
    if fact.is_answered_by(answer):
        return False
    return _asks(fact, question) or _says(fact, question, answer)


def _asks(fact: Fact, question: str) -> bool:
    return any(
        numbers(question) == numbers(wording)
        and overlap(content(question), content(wording)) >= _RESEMBLES
        for wording in fact.questions
    )


def _says(fact: Fact, question: str, answer: str) -> bool:
    required = {word for group in fact.key_any for key in group for word in words(key)}
    given = _years(question) | _years(answer)
    return any(
        _years(known) - required <= given
        and overlap(_letters(answer), _letters(known)) >= _RESEMBLES
        for known in (fact.statement, fact.answer)
    )


def _years(text: str) -> set[str]:
    return {number for number in numbers(text) if len(number) >= len("1910")}


def _letters(text: str) -> frozenset[str]:
    return frozenset(word for word in content(text) if not word[0].isdigit())
