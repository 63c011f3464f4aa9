"""Judging one answer: does it say what it must, in which language, how well, and without loops.

Everything works on normalised words: lower case, no accents, no punctuation, and numbers written
in one way, so that "7.000", "7 000" and "5.º" are found however a model writes them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files

from pydantic import Field

from bot.domain import Language
from training.job import Value
from training.similar import words

LOOP = 3  # words of a run that counts as repeated
LOOPING = 0.5  # share of such runs from which an answer goes in circles
SIMILAR = 0.5  # chrF from which a text without names or numbers says the same
CHRF_ORDER = 6
CHRF_BETA = 2.0

# Words that tell the languages apart which the model mixes up: none is a word of two of them.
STOP_WORDS = {
    "pt": "não uma do da dos das em ao aos são foi é mais também com você pelo pela seu sua os eu "
    "um tem isso à já nos ou muito sou obrigado olá teu tua até ser ter o mim vou estou isto aqui "
    "onde quem meu minha nosso nossa",
    "en": "the of and to is are was were in that it for with you your this have has be i can not "
    "they we my there from its an will",
    "es": "el la los las del y con una es pero muy su lo por más fue son está usted hay sus yo qué "
    "también hola gracias en un",
}

Key = tuple[str | tuple[str, ...], ...]


class Checks(Value):
    """What an answer must and must not be. A key is words, or alternatives; `*` ends a beginning.

    `any` and `never` are patterns over normalised text.
    """

    key: Key = ()
    any: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    language: Language | None = None
    european: bool = Field(False, description="No Brazilian forms.")


def normalise(text: str) -> str:
    """Words in lower case without accents, numbers and scores in one form."""
    return " ".join(words(re.sub(r"(?<=\d) ?[-\u2010-\u2015] ?(?=\d)", "-", text)))


def says(text: str, wanted: str) -> bool:
    """Whether a text has these words one after the other; `*` at the end of them: a beginning."""
    found = f" {normalise(wanted.removesuffix('*'))}"
    return (found if wanted.endswith("*") else f"{found} ") in f" {normalise(text)} "


def share_of_keys(text: str, key: Key) -> float:
    """How much of a key is there, 1 when nothing is asked."""
    found = [
        any(says(text, wanted) for wanted in ((group,) if isinstance(group, str) else group))
        for group in key
    ]
    return sum(found) / len(found) if found else 1.0


def check(text: str, checks: Checks) -> tuple[bool, float]:
    """Whether an answer holds, and how far: the share of its key, 0 when it breaks a rule."""
    plain = normalise(text)
    broken = (
        any(re.search(pattern, plain) for pattern in checks.never)
        or (checks.any and not any(re.search(pattern, plain) for pattern in checks.any))
        or (checks.language and (not plain or language_of(text) not in {"", checks.language}))
        or (checks.european and brazilian_forms(text))
    )
    score = 0.0 if broken else share_of_keys(text, checks.key)
    return score == 1.0, score


def required(gold: str, question: str) -> Key:
    """The names and numbers of a right answer that its question does not give away."""
    asked = set(normalise(question).split())
    spoken = re.findall(r"[\w/º.ª-]*\w[ºª]?", gold)
    names = [
        word
        for at, word in enumerate(spoken)
        if any(c.isdigit() for c in word) or (at and word[0].isupper() and len(word) > 1)
    ]
    return tuple(dict.fromkeys(name for name in names if normalise(name) not in asked))


def match(text: str, gold: str, question: str) -> float:
    """How much of a right answer a text says: names and numbers, without such chrF; 1 is all."""
    if normalise(text) == normalise(gold):
        return 1.0
    if key := required(gold, question):
        return share_of_keys(text, key)
    return min(1.0, chrf(text, gold) / SIMILAR)


def chrf(text: str, gold: str) -> float:
    """Character n-gram F-score (Popović 2015), orders 1 to 6, recall counting twice; 0 to 1."""
    ours, theirs = ("".join(side.split()) for side in (text, gold))
    precision, recall, orders = 0.0, 0.0, 0
    for n in range(1, CHRF_ORDER + 1):
        left, right = _grams(ours, n), _grams(theirs, n)
        if left and right:
            same = (left & right).total()
            precision += same / left.total()
            recall += same / right.total()
            orders += 1
    if not orders or not precision + recall:
        return 0.0
    precision, recall, weight = precision / orders, recall / orders, CHRF_BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall)


def _grams(text: Sequence[str], n: int) -> Counter[Sequence[str]]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def repetition(text: str) -> float:
    """The share of an answer's runs of words that were there before."""
    runs = _grams(tuple(normalise(text).split()), LOOP)
    return 1 - len(runs) / runs.total() if runs else 0.0


@cache
def _stop_words() -> dict[str, frozenset[str]]:
    sets = {name: frozenset(known.split()) for name, known in STOP_WORDS.items()}
    return {
        name: known - frozenset().union(*(other for own, other in sets.items() if own != name))
        for name, known in sets.items()
    }


def language_of(text: str) -> str:
    """`pt`, `en` or `es` by the words that only one of them has; "" when none speaks for one."""
    spoken = re.findall(r"\w+", text.casefold())
    marks = Counter({"pt": len(re.findall(r"[ãõç]", text)), "es": len(re.findall(r"[ñ¿¡]", text))})
    for name, known in _stop_words().items():
        marks[name] += sum(word in known for word in spoken)
    (best, most), (_, second), *_ = marks.most_common()
    return best if most > second else ""


@cache
def _brazilian() -> tuple[re.Pattern[str], ...]:
    lines = (files("training") / "suites" / "brazilian.txt").read_text("utf-8").splitlines()
    return tuple(re.compile(line) for line in lines if line and not line.startswith("#"))


def brazilian_forms(text: str) -> list[str]:
    """What in a text a reader in Faro takes for Brazilian."""
    plain = normalise(text)
    return [found[0] for pattern in _brazilian() if (found := pattern.search(plain))]


def mean(values: Iterable[float]) -> float:
    """The mean, 0 of nothing."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0
