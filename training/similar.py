"""When two texts are the same: exactly, nearly, or in what they say.

Numbers decide: "em 1995/96" and "em 1996/97" differ however alike the rest is. So texts with other
numbers are never near, and everything else is the overlap of character trigrams.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass

_ORDINAL = re.compile(r"(?<=\d)\.?[ºª°]")
_THOUSANDS = re.compile(r"(?<![\d/-])\d{1,3}(?:[ .\u00a0\u202f]\d{3})+(?![\d/-])")
_SEASON = re.compile(r"\b((?:19|20)?\d\d)[/-]((?:19|20)?\d\d)\b(?![/-])")
_TOKEN = re.compile(r"\d+(?:[/-]\d+)*\w*|\w+")
_SMALL = frozenset(
    re.findall(
        r"\w+",
        "a ao aos as com da das de do dos e em era foi ha in is la na nas no nos o of os "
        "ou para pela pelo por que qual quais quem quando onde como quantos quantas "
        "quanto sabes se ser sao seu sua the um uma umas uns was were what when where "
        "which who how and",
    )
)
_DENIES = frozenset(
    re.findall(
        r"\w+",
        "nao nunca nem sem jamais ninguem nenhum nenhuma not never nobody none",
    )
)
_CENTURY = 30  # 95/96 is in the 20th century, 23/24 in the 21st
_AGREES = 0.6  # a club's name more in a short answer gives 0.67, another scorer more 0.5


def _joined(found: re.Match[str]) -> str:
    return re.sub(r"\D", "", found[0])


def _season(found: re.Match[str]) -> str:
    first, second = found[1], found[2]
    if (int(first) + 1 - int(second)) % 100:
        return found[0]
    if len(first) < len("1995"):
        first = ("20" if int(first) < _CENTURY else "19") + first
    return f"{first}/{second[-2:]}"


@functools.lru_cache(maxsize=16384)
def words(text: str) -> tuple[str, ...]:
    """The words and numbers of a text without case, accents and punctuation.

    One form for `7 500` and `7.500`, `5.º` and `5º`, `95/96` and `1995-96`; `3-2` stays whole.
    """
    text = _ORDINAL.sub("o", text.replace("–", "-").replace("—", " "))
    text = "".join(
        char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char)
    )
    text = _SEASON.sub(_season, _THOUSANDS.sub(_joined, text.casefold()))
    return tuple(_TOKEN.findall(text))


def normal(text: str) -> str:
    """A text as it is compared; equal for what differs only in form."""
    return " ".join(words(text)) or text.strip()


def numbers(text: str) -> tuple[str, ...]:
    """The numbers, scores and seasons in a text, sorted."""
    return _shape(text).numbers


def content(text: str) -> frozenset[str]:
    """The words that carry meaning, and the numbers."""
    return frozenset(words(text)) - _SMALL


@dataclass(frozen=True, slots=True)
class _Shape:
    """What two texts are compared by."""

    numbers: tuple[str, ...]
    denials: frozenset[str]
    words: tuple[str, ...]
    trigrams: frozenset[str]

    def differs(self, other: _Shape) -> bool:
        return self.numbers != other.numbers or self.denials != other.denials


@functools.lru_cache(maxsize=16384)
def _shape(text: str) -> _Shape:
    found = words(text)
    padded = f"  {normal(text)} "
    return _Shape(
        tuple(sorted(word for word in found if word[0].isdigit())),
        frozenset(found) & _DENIES,
        tuple(sorted(found)),
        frozenset(padded[at : at + 3] for at in range(len(padded) - 2)),
    )


def overlap(first: frozenset[str], second: frozenset[str]) -> float:
    """The Jaccard index of two sets; 0 when both are empty."""
    both = len(first & second)
    either = len(first) + len(second) - both
    return both / either if either else 0.0


def likeness(first: str, second: str) -> float:
    """How alike two texts are, from 0 to 1; 0 when their numbers or denials differ."""
    one, other = _shape(first), _shape(second)
    if one.differs(other):
        return 0.0
    if one.words and one.words == other.words:
        return 1.0  # also in another order
    return overlap(one.trigrams, other.trigrams)


def same_answer(first: str, second: str) -> bool:
    """Whether two answers say the same, to be trusted without anybody reading them.

    Strict on purpose: one may say more than the other, but never something else.
    """
    if _shape(first).differs(_shape(second)):
        return False
    one, other = content(first), content(second)
    if not one and not other:
        return normal(first) == normal(second)
    return (one <= other or other <= one) and overlap(one, other) >= _AGREES


class Seen:
    """Questions and answers seen so far, searched for one that is nearly the same."""

    def __init__(self, near: float) -> None:
        self._near = near
        self._entries: dict[tuple[str, ...], list[tuple[str, str, str]]] = defaultdict(list)

    def add(self, name: str, question: str, answer: str) -> None:
        """Remember a text under a name."""
        self._entries[numbers(question)].append((name, question, answer))

    def find(self, question: str, answer: str | None = None) -> str | None:
        """The name of the first that asks nearly the same, with nearly that answer if given."""
        for name, asked, answered in self._entries.get(numbers(question), ()):
            if likeness(asked, question) >= self._near and (
                answer is None or likeness(answered, answer) >= self._near
            ):
                return name
        return None
