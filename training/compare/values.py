"""What a comparison of LoRA and QLoRA found: values, and the name of their file."""

from __future__ import annotations

import statistics
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field

from training.job import Value
from training.recipe import Recipe

FILE = Path("report").with_suffix(".json").name
Method = Literal["lora", "qlora"]
Mode = Literal["recommended", "same"]  # each with its own settings, or both with identical ones
Source = Literal["measured", "derived", "claimed"]


class Key(StrEnum):
    """What is measured of a side. Bytes, seconds, tokens a second, nats a token, joules."""

    BASE_BYTES = "disk.base"
    ADAPTER_BYTES = "disk.adapter"
    TRAIN_LOAD = "train.load"
    TRAIN_WARMUP = "train.warmup"  # what the first steps took beyond as many usual ones
    TRAIN_EPOCH = "train.epoch"
    TRAIN_RATE = "train.rate"
    TRAIN_PEAK_MLX = "train.peak.mlx"
    TRAIN_PEAK_PROCESS = "train.peak.process"
    TRAIN_ENERGY = "train.energy"
    SERVE_LOAD = "serve.load"
    SERVE_WARMUP = "serve.warmup"  # what the first answer took beyond a usual one
    SERVE_FIRST_TOKEN = "serve.first_token"  # noqa: S105 (no password)
    SERVE_RATE_1 = "serve.rate.1"
    SERVE_RATE_8 = "serve.rate.8"
    SERVE_PEAK_MLX = "serve.peak.mlx"
    SERVE_PEAK_PROCESS = "serve.peak.process"
    SERVE_ENERGY = "serve.energy"
    LOSS_BEFORE = "loss.before"  # on the held-out texts, the base alone
    LOSS_AFTER = "loss.after"


class Figure(Value):
    """One value for each repetition, in the unit of its key."""

    values: tuple[float, ...] = Field(min_length=1)
    source: Source = "measured"

    @property
    def median(self) -> float:
        """The one in the middle."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest."""
        return min(self.values), max(self.values)


class Base(Value):
    """The model under a side's adapter."""

    name: str
    parameters: int
    bits: float  # of a weight on disk, scales and biases included
    memory: str  # what it computes in here: float32, bfloat16, int4
    made: Literal["given", "dequantised", "quantised"]  # how it came to be on this machine


class Answer(Value):
    """A greedy answer."""

    question: str
    text: str


class Side(Value):
    """One method with one set of settings."""

    method: Method
    mode: Mode
    settings: str  # the name of the recipe: ours of a profile, or one of the original document
    recipe: Recipe
    base: Base
    left_out: str | None = None  # key of the text that says why nothing was measured
    left_out_values: dict[str, str | float] = Field(default_factory=dict)
    steps: int = 0
    tokens: int = 0  # read in training
    figures: dict[Key, Figure] = Field(default_factory=dict)
    suites: dict[str, tuple[int, int]] = Field(default_factory=dict)  # passed, asked
    answers: tuple[Answer, ...] = ()

    @property
    def name(self) -> str:
        """Names it among the four."""
        return f"{self.method}-{self.mode}"

    def median(self, key: Key) -> float | None:
        """The median of a figure, None where it was not measured."""
        found = self.figures.get(key)
        return None if found is None else found.median


class Agreement(Value):
    """How alike the answers of both methods are, in one mode."""

    mode: Mode
    asked: int
    same: int  # word for word
    chrf: float  # of one's answers to the other's, 0 to 100, mean


class Comparison(Value):
    """All of it."""

    version: Literal[1] = 1
    created_at: datetime
    model: str
    profile: str
    quick: bool
    seed: int
    repetitions: int
    machine: dict[str, str]  # as shown: processor, memory, system, compute plan, versions
    rows: int
    held_out: int
    dataset: str  # its digest
    sides: tuple[Side, ...]
    agreements: tuple[Agreement, ...] = ()

    def side(self, method: Method, mode: Mode = "recommended") -> Side:
        """One of the four. Raises StopIteration where it is not there."""
        return next(one for one in self.sides if (one.method, one.mode) == (method, mode))
