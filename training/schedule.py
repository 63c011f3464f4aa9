"""When what is done in a run: rows of a step, learning rate, and the clock. Knows no MLX."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence

from training.batches import Row, order
from training.examples import Kind
from training.recipe import Phase

FEW = 64  # rows rehearsed in an epoch, however little was taught
# How they are shared out: how the bot behaves comes round more often than each of many facts.
REHEARSED = {Kind.FACT: 0.2, Kind.FIRM: 0.125, Kind.REPLAY: 0.475, Kind.GUARD: 0.2}
HELD = 10  # times a usual step: longer ones were held, and that time is not ours


class Clock:
    """Seconds that the run took, without those in which it was held."""

    def __init__(self, now: Callable[[], float], limit: float) -> None:
        self._now = now
        self._limit = limit
        self._last = now()
        self._steps: list[float] = []

    def tick(self) -> float:
        """The time since the last tick. Call it once a step."""
        now = self._now()
        took, self._last = now - self._last, now
        if len(self._steps) > 2:  # noqa: PLR2004 (less is no habit)
            took = min(took, HELD * statistics.median(self._steps))
        self._steps.append(took)
        return took

    def over(self, spent: float) -> bool:
        """Whether the deadline has passed."""
        return spent >= self._limit


class Groups:
    """Which rows each optimizer step sees: batches of an epoch, `accumulation` at a time.

    An epoch sees all that fans taught, and with `rehearsal` so many of the other rows for each of
    it, at least `FEW`: of each kind the next ones in each epoch, so that all have their turn.
    """

    def __init__(
        self, rows: Sequence[Row], plan: Phase, seed: int, rehearsal: float | None = None
    ) -> None:
        self._rows = rows
        self._plan = plan
        self._seed = seed
        self._taught = [index for index, row in enumerate(rows) if row.kind not in REHEARSED]
        wanted = math.inf if rehearsal is None else max(FEW, rehearsal * len(self._taught))
        self._known = list(self._shares(wanted))
        count = len(self._taught) + sum(each for _, each in self._known)
        self._each = math.ceil(math.ceil(count / plan.batch) / plan.accumulation)
        self._epoch: tuple[int, list[list[int]]] = -1, []
        self.steps = plan.epochs * self._each

    def _shares(self, wanted: float) -> Iterator[tuple[list[int], int]]:
        """The rows of each kind, shuffled, and how many of them an epoch sees."""
        for kind, share in REHEARSED.items():
            indices = [index for index, row in enumerate(self._rows) if row.kind is kind]
            random.Random(f"{self._seed}:{kind}").shuffle(indices)  # noqa: S311 (it must repeat)
            yield indices, int(min(len(indices), wanted * share))

    def indices(self, step: int) -> list[list[int]]:
        """The step's batches, as indices of rows."""
        epoch, index = divmod(step, self._each)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._batches(epoch)
        first = index * self._plan.accumulation
        return self._epoch[1][first : first + self._plan.accumulation]

    def _batches(self, epoch: int) -> list[list[int]]:
        chosen = list(self._taught)
        for indices, each in self._known:
            chosen += [indices[(epoch * each + at) % len(indices)] for at in range(each)]
        lengths = [len(self._rows[index]) for index in chosen]
        batches = order(lengths, self._plan.batch, self._seed, epoch)
        return [[chosen[at] for at in some] for some in batches]

    def at(self, step: int) -> list[list[Row]]:
        """The step's batches."""
        return [[self._rows[index] for index in some] for some in self.indices(step)]


def learning_rate(step: int, steps: int, plan: Phase) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < plan.warmup:
        return plan.learning_rate * (step + 1) / (plan.warmup + 1)
    done = (step - plan.warmup) / max(1, steps - plan.warmup)
    return plan.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))
