"""The decision matrix: scores from 0 to 5, by rules, of what was measured. Nothing but functions.

In each thing compared the better side gets 5 and the other as much less as it is worse: half as
fast, 2.5. Where the spreads overlap, or the difference is smaller than what is worth a word, both
get 5. A criterion's score is the mean of its parts; one part missing, and neither side has a score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from engine.models import METAL_SHARE
from training.compare.values import Comparison, Figure, Key, Method, Mode, Side, Source

BEST = 5.0
SAME = 0.05  # of a difference that counts as none
SAME_LOSS = 0.01  # the same of perplexity
CLOSE = 1.0  # of all points: sums nearer than that are a tie
GB = 10**9
MACS = (8, 16)  # GB of the smaller Macs
FLOAT = 4  # bytes
HALF_BITS = 16
HUGE = 500.0  # nats

Better = Literal["less", "more"]
Form = Literal["loss", "share", "rate", "bytes", "seconds", "joules", "yes"]


class Criterion(StrEnum):
    """What the matrix weighs, all alike."""

    PRECISION = "precision"
    SPEED = "speed"
    MEMORY = "memory"
    SIZE = "size"
    EASE = "ease"
    COST = "cost"


class Advice(StrEnum):
    """How it ends. `only` where the other side could not be measured."""

    LORA = "lora"
    QLORA = "qlora"
    ONLY_LORA = "only_lora"
    ONLY_QLORA = "only_qlora"
    TIE = "tie"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Reading:
    """A value with the least and the greatest that it was."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, figure: Figure) -> Reading:
        """From the repetitions of a figure."""
        return cls(figure.spread[0], figure.median, figure.spread[1])

    @classmethod
    def exact(cls, value: float) -> Reading:
        """Of what does not vary."""
        return cls(value, value, value)

    def __add__(self, other: Reading) -> Reading:
        return Reading(self.low + other.low, self.median + other.median, self.high + other.high)

    def map(self, rising: Callable[[float], float]) -> Reading:
        """The reading of what rises with this."""
        return Reading(rising(self.low), rising(self.median), rising(self.high))


Read = Callable[[Side], Reading | None]


@dataclass(frozen=True, slots=True)
class Part:
    """One thing in which both sides are compared."""

    name: str
    form: Form
    better: Better
    lora: Reading
    qlora: Reading
    source: Source = "measured"

    @property
    def scores(self) -> tuple[float, float]:
        """LoRA's and QLoRA's, unrounded."""
        if self.form == "yes":
            return BEST * self.lora.median, BEST * self.qlora.median
        if self.tied:
            return BEST, BEST
        one, other = self._weighed()
        least, most = sorted((one.median, other.median))
        lower = BEST * max(0.0, least) / most
        return (BEST, lower) if self.winner == "lora" else (lower, BEST)

    @property
    def tied(self) -> bool:
        """Whether no difference can be told."""
        if self.form == "yes":
            return self.lora == self.qlora
        one, other = self._weighed()
        same = SAME_LOSS if self.form == "loss" else SAME
        near = abs(one.median - other.median) <= same * max(abs(one.median), abs(other.median))
        return near or (one.low <= other.high and other.low <= one.high)

    @property
    def winner(self) -> Method | None:
        """The better side, if one is."""
        if self.tied:
            return None
        return (
            "lora" if (self.lora.median < self.qlora.median) is (self.better == "less") else "qlora"
        )

    def _weighed(self) -> tuple[Reading, Reading]:
        """A loss is a logarithm: what is compared is how many words it wavers between."""
        if self.form != "loss":
            return self.lora, self.qlora
        floor = min(self.lora.low, self.qlora.low)  # else large losses overflow

        def weigh(loss: float) -> float:
            return math.exp(min(loss - floor, HUGE))

        return self.lora.map(weigh), self.qlora.map(weigh)


@dataclass(frozen=True, slots=True)
class Score:
    """A criterion's, rounded as it is shown. None for both where a part is missing."""

    criterion: Criterion
    lora: float | None
    qlora: float | None
    parts: tuple[Part, ...]
    missing: tuple[str, ...] = ()

    @property
    def tied(self) -> bool:
        """Whether both have as much."""
        return self.lora is not None and self.lora == self.qlora


@dataclass(frozen=True, slots=True)
class Matrix:
    """All criteria, their sums and where they lead."""

    mode: Mode
    scores: tuple[Score, ...]
    left_out: tuple[Method, ...] = ()

    @property
    def scored(self) -> int:
        """How many criteria have scores."""
        return sum(score.lora is not None for score in self.scores)

    @property
    def sums(self) -> tuple[float, float]:
        """Of the scores as they are shown."""
        return (
            round(sum(score.lora or 0.0 for score in self.scores), 1),
            round(sum(score.qlora or 0.0 for score in self.scores), 1),
        )

    @property
    def advice(self) -> Advice:
        """What to use on this machine. Nothing is advised whose quality nobody measured."""
        if self.left_out:
            only = {"qlora": Advice.ONLY_LORA, "lora": Advice.ONLY_QLORA}
            return only[self.left_out[0]] if len(self.left_out) == 1 else Advice.NONE
        precision = next(one for one in self.scores if one.criterion is Criterion.PRECISION)
        if precision.lora is None:
            return Advice.NONE
        lora, qlora = self.sums
        if abs(lora - qlora) < CLOSE:
            return Advice.TIE
        return Advice.LORA if lora > qlora else Advice.QLORA

    def speaks_for(self, method: Method) -> tuple[Part, ...]:
        """Everything in which a method is the better one."""
        return tuple(part for score in self.scores for part in score.parts if part.winner == method)


def find(comparison: Comparison, method: Method, mode: Mode) -> Side | None:
    """A side that was measured, None where it was left out or is not there."""
    try:
        side = comparison.side(method, mode)
    except StopIteration:
        return None
    return None if side.left_out or not side.figures else side


def matrix(comparison: Comparison) -> Matrix:
    """Of the recommended settings, or of the identical ones where only these were run."""
    modes: tuple[Mode, ...] = ("recommended", "same")
    mode = next(
        (one for one in modes if any(side.mode == one for side in comparison.sides)), modes[0]
    )
    lora, qlora = (find(comparison, method, mode) for method in ("lora", "qlora"))
    scores = tuple(
        _score(criterion, parts, lora, qlora) for criterion, parts in _rules(lora, qlora)
    )
    gone: dict[Method, Side | None] = {"lora": lora, "qlora": qlora}
    return Matrix(mode, scores, tuple(method for method, side in gone.items() if side is None))


def need(side: Side, stage: Literal["train", "serve"]) -> Reading | None:
    """Memory that a side takes: the greater of MLX's counter and the process's own.

    Neither sees everything: the process's misses Metal's buffers, MLX's the interpreter.
    """
    keys = (Key(f"{stage}.peak.mlx"), Key(f"{stage}.peak.process"))
    found = [Reading.of(side.figures[key]) for key in keys if key in side.figures]
    return max(found, key=lambda one: one.median, default=None)


def on_mac(side: Side, stage: Literal["train", "serve"]) -> Reading | None:
    """The same on a Mac, where the base stays as it is on disk: derived if it did not here."""
    reading, base = need(side, stage), side.figures.get(Key.BASE_BYTES)
    if reading is None or base is None or side.base.memory != "float32":
        return reading
    spared = max(0.0, side.base.parameters * FLOAT - base.median)
    return reading.map(lambda taken: max(base.median, taken - spared))


def shares(lora: Side, qlora: Side) -> tuple[Reading, Reading] | None:
    """The part of the questions that each got right, give or take a standard error."""
    common = lora.suites.keys() & qlora.suites.keys()
    if not common:
        return None
    one, other = (_share(side.suites[name] for name in common) for side in (lora, qlora))
    return (one, other) if one and other else None


def _share(suites: Iterable[tuple[int, int]]) -> Reading | None:
    passed, asked = (sum(column) for column in zip(*suites, strict=True))
    if not asked:
        return None
    share, guess = passed / asked, (passed + 1) / (asked + 2)  # never certain after a few
    error = math.sqrt(guess * (1 - guess) / asked)
    return Reading(max(0.0, share - error), share, min(1.0, share + error))


Candidates = tuple[Part | str, ...]  # a part, or the name of one that is missing


def _rules(lora: Side | None, qlora: Side | None) -> list[tuple[Criterion, Candidates]]:
    """Every criterion with what it is made of."""

    def part(
        name: str, form: Form, better: Better, read: Read, source: Source = "measured"
    ) -> Part | str:
        one, other = (read(side) if side else None for side in (lora, qlora))
        return Part(name, form, better, one, other, source) if one and other else name

    def keyed(name: str, form: Form, better: Better, *keys: Key) -> Part | str:
        return part(name, form, better, lambda side: _sum(side, keys))

    both = shares(lora, qlora) if lora and qlora else None
    energy = keyed("train_energy", "joules", "less", Key.TRAIN_ENERGY)
    work = (Key.TRAIN_LOAD, Key.TRAIN_WARMUP, Key.TRAIN_EPOCH)
    return [
        (
            Criterion.PRECISION,
            (
                keyed("loss", "loss", "less", Key.LOSS_AFTER),
                Part("suites", "share", "more", *both) if both else "suites",
            ),
        ),
        (
            Criterion.SPEED,
            (
                keyed("train_rate", "rate", "more", Key.TRAIN_RATE),
                keyed("rate_one", "rate", "more", Key.SERVE_RATE_1),
                keyed("rate_many", "rate", "more", Key.SERVE_RATE_8),
            ),
        ),
        (
            Criterion.MEMORY,
            (
                part("train_memory", "bytes", "less", lambda side: need(side, "train")),
                part("serve_memory", "bytes", "less", lambda side: need(side, "serve")),
            ),
        ),
        (Criterion.SIZE, (keyed("disk", "bytes", "less", Key.BASE_BYTES, Key.ADAPTER_BYTES),)),
        (
            Criterion.EASE,
            tuple(
                part(f"ease_{name}", "yes", "more", read, "derived") for name, read in _EASE.items()
            ),
        ),
        (
            Criterion.COST,
            (
                energy
                if isinstance(energy, Part)
                else keyed("train_time", "seconds", "less", *work),
            ),
        ),
    ]


def _score(
    criterion: Criterion, candidates: Candidates, lora: Side | None, qlora: Side | None
) -> Score:
    parts = tuple(one for one in candidates if isinstance(one, Part))
    missing = tuple(one for one in candidates if isinstance(one, str))
    if missing or not (lora and qlora):
        return Score(criterion, None, None, parts, missing)
    one, other = zip(*(part.scores for part in parts), strict=True)
    return Score(criterion, _mean(one), _mean(other), parts)


def _mean(scores: tuple[float, ...]) -> float:
    return round(sum(scores) / len(scores), 1)


def _sum(side: Side, keys: tuple[Key, ...]) -> Reading | None:
    if any(key not in side.figures for key in keys):
        return None
    first, *rest = (Reading.of(side.figures[key]) for key in keys)
    return sum(rest, first)


def _fits(stage: Literal["train", "serve"], gigabytes: int) -> Read:
    def read(side: Side) -> Reading | None:
        taken = on_mac(side, stage)
        return (
            None
            if taken is None
            else Reading.exact(float(taken.median <= gigabytes * GB * METAL_SHARE))
        )

    return read


def _small_download(side: Side) -> Reading:
    """Whether the base came without a 16-bit file: as int4, or opened up from int4."""
    whole = side.base.made == "given" and side.base.bits >= HALF_BITS
    return Reading.exact(float(not whole and side.base.made != "quantised"))


_EASE: dict[str, Read] = {
    **{f"{stage}_{size}": _fits(stage, size) for size in MACS for stage in ("serve", "train")},
    "download": _small_download,
}
