"""From examples to tokens and batches: what is learnt is asked as it will be asked.

Prompts come from the very code that serves. Only the answer and the token that ends it are learnt,
each once an epoch. The order is a function of seed and epoch alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from bot.domain import Role, Turn
from bot.errors import PromptTooLong
from bot.prompts import Encode, Persona, build
from engine import prompting
from training.examples import Example, Kind, Preference

PIECE = 8  # rows are padded to multiples of it: few shapes, and as many tokens as products like
MANY = 16  # the same for the completion tokens of a batch

Ints = np.ndarray[Any, np.dtype[np.int32]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Row:
    """A text in tokens: what is asked, and what is learnt, the end token last."""

    id: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    liked: bool = True
    kind: Kind | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(slots=True)
class Rows:
    """The rows of a set, and how many examples gave none, by reason."""

    rows: list[Row]
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Writer:
    """Turns examples into rows with a model's tokenizer."""

    encode: Encode
    ends: frozenset[int]
    end: int  # where a template does not end an answer
    persona: Persona
    context: int
    max_length: int

    @classmethod
    def of(cls, tokenizer: Any, persona: Persona, context: int, max_length: int) -> Writer:
        """For an mlx-lm tokenizer."""
        encode = partial(prompting.encode, tokenizer)
        ends = frozenset(tokenizer.eos_token_ids)
        end = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else min(ends)
        return cls(encode, ends, end, persona, context, max_length)

    def rows(self, items: Iterable[Example | Preference]) -> Rows:
        """All that can be learnt from."""
        made = Rows([])
        for item in items:
            row = self.row(item)
            if isinstance(row, Row):
                made.rows.append(row)
            else:
                made.dropped[row] += 1
        return made

    def row(self, item: Example | Preference) -> Row | str:
        """One row, else why there is none: `long`, `empty`, or `template` does not continue."""
        answer = item.answer.strip()
        if not answer:
            return "empty"
        try:
            prompt, completion = self._texts(item.turns, answer, min(self.context, self.max_length))
            left = self.max_length - len(completion)
            if len(prompt) > left:
                prompt, completion = self._texts(item.turns, answer, left)
        except PromptTooLong:
            return "long"
        if not completion:
            return "template"
        if isinstance(item, Preference):
            return Row(item.id, prompt, completion, liked=item.liked)
        return Row(item.id, prompt, completion, kind=item.kind)

    def _texts(
        self, turns: Sequence[Turn], answer: str, budget: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Prompt and completion; no completion where the rendered answer does not follow on."""
        *history, question = turns
        prompt = build(self.encode, self.persona, history, question.text, budget)
        kept = [*history[prompt.dropped :], question, Turn(Role.ASSISTANT, answer)]
        whole = self.encode([self.persona.turn, *kept])
        begin = len(prompt.tokens)
        if whole[:begin] != prompt.tokens:
            return prompt.tokens, ()
        stop = next((i for i in range(begin, len(whole)) if whole[i] in self.ends), len(whole))
        return prompt.tokens, (*whole[begin:stop], whole[stop] if stop < len(whole) else self.end)


def shared_prefix(rows: Iterable[Row]) -> int:
    """How many tokens all prompts begin with, each keeping one at least to itself."""
    first: tuple[int, ...] | None = None
    for row in rows:
        prompt = row.prompt[:-1]
        first = prompt if first is None else first[: _common(first, prompt)]
    return len(first or ())


def order(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Which rows make which batch: like lengths together, batches and equals in any order.

    Every row once; only one batch may be smaller.
    """
    chance = random.Random(f"{seed}:{epoch}")  # noqa: S311 (no secret: it must repeat)
    indices = list(range(len(lengths)))
    chance.shuffle(indices)
    indices.sort(key=lambda index: _padded(lengths[index], PIECE))
    batches = [indices[at : at + size] for at in range(0, len(indices), size)]
    chance.shuffle(batches)
    return batches


def in_order(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The same for sets that are only looked at: always alike."""
    indices = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return [indices[at : at + size] for at in range(0, len(indices), size)]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as arrays. The tokens that all share come first and once, then each row's own.

    The last token of a row is only ever a target, so rows have one token less here. `where` says
    after which of the tokens each of `targets` comes; `weights` is 0 where there is only padding.
    """

    tokens: Ints  # (shared + rows * length,)
    places: Ints  # the same shape: each token's position in its text
    where: Ints  # (targets,)
    targets: Ints
    weights: Floats
    owner: Ints  # (targets,): which row
    liked: Floats  # (rows,): 1 or 0
    count: int  # tokens of all texts, as a trainer that shares nothing would read them

    @classmethod
    def of(cls, rows: Sequence[Row], shared: int) -> Batch:
        """Lay out some rows that begin with the same `shared` tokens."""
        length = _padded(max(len(row) - 1 - shared for row in rows), PIECE)
        tokens = np.zeros((len(rows), length), np.int32)
        where: list[int] = []
        for index, row in enumerate(rows):
            own = (*row.prompt, *row.completion)[shared:-1]
            tokens[index, : len(own)] = own
            first = shared + index * length + len(row.prompt) - 1 - shared
            where += range(first, first + len(row.completion))
        total = _padded(len(where), MANY)
        places = np.arange(shared, shared + length)
        return cls(
            tokens=np.concatenate([np.array(rows[0].prompt[:shared], np.int32), tokens.ravel()]),
            places=np.concatenate([np.arange(shared), *[places] * len(rows)]).astype(np.int32),
            where=_fill(where, total),
            targets=_fill([token for row in rows for token in row.completion], total),
            weights=_fill([1] * len(where), total).astype(np.float32),
            owner=_fill([i for i, row in enumerate(rows) for _ in row.completion], total),
            liked=np.array([row.liked for row in rows], np.float32),
            count=sum(len(row) for row in rows),
        )


def mismatched(rows: Sequence[Row]) -> list[Row]:
    """Each prompt with the answer to another one, for KTO's estimate of how far the policy went.

    Empty where all answers are the same.
    """
    made = []
    for index, row in enumerate(rows):
        others = (rows[(index + step) % len(rows)] for step in range(1, len(rows)))
        other = next((one for one in others if one.completion != row.completion), None)
        if other is None:
            return []
        made.append(Row(row.id, row.prompt, other.completion))
    return made


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _fill(values: Sequence[int], total: int) -> Ints:
    return np.array([*values, *[0] * (total - len(values))], np.int32)
