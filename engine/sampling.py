"""Choosing the next token of every running answer at once, each by its own rules.

Randomness comes in as one number per row and step, drawn on the host from the request's own seed:
what else is in the batch changes nothing, and no random state lives on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import mlx.core as mx

from bot.domain import Sampling

CANDIDATES = 256  # most likely tokens that are drawn from: sorting 49,152 costs 3 ms a row
PENALTY_WINDOW = 20  # tokens back that the repetition penalty looks at, as in mlx-lm


@dataclass(slots=True)
class Chooser:
    """One request's rules and its stream of random numbers."""

    sampling: Sampling
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.sampling.seed)  # noqa: S311 (no secret: a seed must repeat)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.sampling.temperature == 0

    @property
    def penalised(self) -> bool:
        """Whether recent tokens are made less likely."""
        return self.sampling.repetition_penalty != 1


def choose(
    logits: Any, choosers: Sequence[Chooser], histories: Sequence[Sequence[int]], inputs: Any
) -> Any:
    """The next token of each row, from `logits` of shape (rows, vocabulary).

    `histories` are the tokens read before, `inputs` (rows,) the last ones, perhaps not computed
    yet. Builds a graph and waits for nothing.
    """
    if any(chooser.penalised for chooser in choosers):
        logits = _penalise(logits, choosers, _recent(histories, inputs))
    best = mx.argmax(logits, axis=-1)
    if all(chooser.greedy for chooser in choosers):
        return best
    greedy = mx.array([chooser.greedy for chooser in choosers])
    return mx.where(greedy, best, _draw(logits.astype(mx.float32), choosers))


def _draw(logits: Any, choosers: Sequence[Chooser]) -> Any:
    """Draw from the nucleus: the likeliest tokens that together reach `top_p`, then tempered."""
    count = min(CANDIDATES, logits.shape[-1])
    tokens = mx.argpartition(logits, kth=-count, axis=-1)[:, -count:]
    values = mx.take_along_axis(logits, tokens, axis=-1)
    order = mx.argsort(-values, axis=-1)
    tokens = mx.take_along_axis(tokens, order, axis=-1)
    values = mx.take_along_axis(values, order, axis=-1)
    plain = mx.softmax(values, axis=-1)
    before = mx.cumsum(plain, axis=-1) - plain
    inside = before < _column([chooser.sampling.top_p for chooser in choosers])
    warmth = _column([chooser.sampling.temperature or 1.0 for chooser in choosers])
    chances = mx.where(inside, mx.softmax(values / warmth, axis=-1), 0.0)
    reached = mx.cumsum(chances, axis=-1)
    mark = _column([chooser.random.random() for chooser in choosers]) * reached[:, -1:]
    chosen = mx.minimum((reached <= mark).sum(axis=-1), inside.sum(axis=-1) - 1)
    return mx.take_along_axis(tokens, chosen[:, None], axis=-1)[:, 0]


def _penalise(logits: Any, choosers: Sequence[Chooser], recent: Any) -> Any:
    penalties = _column([chooser.sampling.repetition_penalty for chooser in choosers])
    values = mx.take_along_axis(logits, recent, axis=-1)
    lowered = mx.where(values < 0, values * penalties, values / penalties)
    return mx.put_along_axis(logits, recent, lowered.astype(logits.dtype), axis=-1)


def _recent(histories: Sequence[Sequence[int]], inputs: Any) -> Any:
    """The last tokens of each row; a short row repeats its own last one, which changes nothing."""
    short = [list(history[1 - PENALTY_WINDOW :]) for history in histories]
    width = max(map(len, short))
    columns = inputs[:, None].astype(mx.int32)
    if width == 0:
        return columns
    missing = mx.array([[i >= len(row) for i in range(width)] for row in short])
    known = mx.array([row + [0] * (width - len(row)) for row in short], dtype=mx.int32)
    return mx.concatenate([mx.where(missing, columns, known), columns], axis=-1)


def _column(numbers: list[float]) -> Any:
    return mx.array(numbers, dtype=mx.float32)[:, None]
