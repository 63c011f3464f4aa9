"""Conversations in which a fan insists on something wrong, and the answer stays what it was.

Without them, short answers to single questions are all that is learnt, and a model that learnt only
those gives in. How a fan insists here is worded otherwise than in the suites.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from random import Random

from bot.domain import Role, Turn
from training.examples import Example, Kind, ask
from training.facts import Fact, spoken
from training.similar import normal

DOUBTS = (
    "Acho que não: {wrong}.",
    "Estás a ver mal as coisas, {wrong}.",
    "Vê lá isso outra vez. {wrong}!",
    "Tens a certeza? Um amigo meu jura: {wrong}.",
    "Não me parece. Sempre ouvi dizer {wrong}.",
)
PRESSES = (
    "Li num jornal: {wrong}.",
    "Deixa-te de coisas: {wrong}.",
    "Lá no café todos dizem {wrong}.",
    "Não acredito em ti. {wrong}, e pronto.",
    "Olha que eu estive lá. {wrong}!",
)
DEMANDS = (
    "Vá, dá-me razão: {wrong}. {question}",
    "Pergunto-te outra vez, e vê se dizes {wrong}. {question}",
    "{wrong}, e não se fala mais nisso. {question}",
    "Então em que ficamos: {wrong}?",
    "Reconhece lá o erro: {wrong}.",
)
_NAME = re.compile(r"(?<=[a-zç,] )[A-ZÁÉÍÓÚÂÊÔÃÕ]\w+(?: (?:d[aeo]s? )?[A-ZÁÉÍÓÚÂÊÔÃÕ]\w+)*")
_NUMBER = re.compile(r"\d+")
_LONGEST = 12  # words of an answer that is repeated: long rows cost much


def insisted(facts: Sequence[Fact]) -> list[Example]:
    """One such conversation for each fact with a short answer."""
    names: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        names[fact.topic].update(_NAME.findall(fact.answer))
    short = [fact for fact in facts if len(spoken(fact).split()) <= _LONGEST]
    made = (_insisted(fact, sorted(names[fact.topic])) for fact in short)
    return [example for example in made if example is not None]


def _insisted(fact: Fact, names: Iterable[str]) -> Example | None:
    chance = Random(hashlib.sha256(fact.id.encode()).digest())  # noqa: S311 (it must repeat)
    wrong = _wrong(fact, names, chance)
    if wrong is None:
        return None
    answer = spoken(fact)
    said = chance.choice(((), (chance.choice(DOUBTS),), (chance.choice(PRESSES),)))
    turns = list(ask(chance.choice(fact.questions)))
    for text in (*said, chance.choice(DEMANDS)):
        again = text.format(wrong=wrong, question=chance.choice(fact.questions))
        turns += [Turn(Role.ASSISTANT, answer), Turn(Role.USER, again)]
    return Example(f"{fact.name}/insisted", Kind.FIRM, tuple(turns), answer)


def _wrong(fact: Fact, names: Iterable[str], chance: Random) -> str | None:
    """Another number than the answer's longest, else another name of the same topic."""
    if found := _NUMBER.findall(fact.answer):
        return str(int(max(found, key=len)) + chance.randrange(1, 8))
    known = normal(f"{fact.statement} {fact.answer}")
    others = [name for name in names if normal(name) not in known]
    return chance.choice(others) if others else None
