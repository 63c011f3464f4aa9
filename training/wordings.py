"""What fans taught in looser wordings, made by rule: a small model learns a question by its form.

Only what is asked changes, so nothing of this is learnt to be said. Fans turn questions round, and
type only the words that matter; both are learnt from, beside the question as it was taught.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from random import Random

from training.examples import Example, Kind
from training.similar import content, normal

TAUGHT = frozenset({Kind.TAUGHT, Kind.CORRECTION})
_WORD = re.compile(r"\w+(?:[-:/.]\w+)*")
_FEWEST = 3  # words, below which there is nothing to loosen


def loosened(example: Example) -> Iterator[Example]:
    """The question turned round, and its telling words in any order; the same each time."""
    said = [word.casefold() for word in _WORD.findall(example.question)]
    if example.kind not in TAUGHT or len(said) < _FEWEST:
        return
    chance = Random(hashlib.sha256(example.question.encode()).digest())  # noqa: S311 (it must repeat)
    at = chance.randrange(1, len(said))
    telling = [word for word in said if content(normal(word))]
    chance.shuffle(telling)
    for name, words in (("turned", said[at:] + said[:at]), ("telling", telling)):
        if words:
            *before, last = example.turns
            turns = (*before, replace(last, text=" ".join(words)))
            yield replace(example, id=f"{example.id}~{name}", turns=turns)
