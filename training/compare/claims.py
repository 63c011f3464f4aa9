"""The original document's claims, each beside what was measured here or worked out."""

from __future__ import annotations

import functools
import math
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from typing import Literal

from pydantic import TypeAdapter

from training.compare.matrix import find
from training.compare.values import Comparison, Figure, Key, Method, Mode, Side, Source
from training.job import Value

Form = Literal["bytes", "rate", "loss", "points"]
Span = tuple[float, ...]  # one number, or a least and a greatest


class Verdict(StrEnum):
    """What became of a claim."""

    HOLDS = "holds"
    FAILS = "fails"
    UNMEASURED = "unmeasured"


class Claim(Value):
    """One of `claims.toml`, which says what the fields mean."""

    id: str
    rule: Literal["ratio", "value", "ceiling", "said"]
    title: dict[str, str]
    why: dict[str, str]
    form: Form | None = None
    lora: Span = ()  # as claimed
    qlora: Span = ()
    judged: Method | None = None
    keys: tuple[Key, ...] = ()
    ratio: float | None = None  # of QLoRA to LoRA
    better: Literal["less", "more"] = "less"
    mode: Mode | None = None
    factors: Span = ()
    over: Span = ()
    found: Span = ()
    tolerance: float = 0.0

    @property
    def claimed(self) -> Span:
        """What is judged: a ratio, or what was said of one method."""
        if self.rule == "ratio":
            return () if self.ratio is None else (self.ratio,)
        return self.lora if self.judged == "lora" else self.qlora

    @property
    def worked_out(self) -> Span:
        """What arithmetic gives in the place of the claim."""
        return (math.prod(self.factors) / math.prod(self.over),) if self.factors else self.found


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim and ours. `ratio` is ours of QLoRA to LoRA, or ours to the claim's."""

    claim: Claim
    verdict: Verdict
    source: Source
    ratio: float | None = None
    lora: float | None = None
    qlora: float | None = None
    ours: Span = ()
    mode: Mode | None = None


@functools.cache
def claims() -> tuple[Claim, ...]:
    """All of them, in the document's order."""
    source = (files("training") / "data" / "claims.toml").read_text("utf-8")
    return TypeAdapter(tuple[Claim, ...]).validate_python(tomllib.loads(source)["claim"])


def judge(comparison: Comparison) -> tuple[Judged, ...]:
    """Every claim, judged."""
    return tuple(_judged(claim, comparison) for claim in claims())


def _judged(claim: Claim, comparison: Comparison) -> Judged:
    if claim.rule == "ratio":
        return _measured(claim, comparison)
    if claim.rule == "said":
        return Judged(claim, Verdict.FAILS, "claimed")
    ours, claimed = claim.worked_out, claim.claimed
    if claim.rule == "ceiling":
        holds = max(claimed) <= max(ours) * (1 + claim.tolerance)
    else:
        least, most = min(claimed) * (1 - claim.tolerance), max(claimed) * (1 + claim.tolerance)
        holds = least <= _middle(ours) <= most
    verdict = Verdict.HOLDS if holds else Verdict.FAILS
    return Judged(claim, verdict, "derived", _middle(ours) / _middle(claimed), ours=ours)


def _measured(claim: Claim, comparison: Comparison) -> Judged:
    """By the settings that the claim is about, else by the others."""
    assert claim.ratio is not None
    modes: tuple[Mode, ...] = ("same", "recommended")
    for mode in sorted(modes, key=lambda one: one != claim.mode):
        lora, qlora = (
            _greatest(find(comparison, method, mode), claim.keys) for method in ("lora", "qlora")
        )
        if lora and qlora and lora.median:
            ratio = qlora.median / lora.median
            beyond = ratio - claim.ratio if claim.better == "less" else claim.ratio - ratio
            verdict = Verdict.HOLDS if beyond <= claim.tolerance else Verdict.FAILS
            sources = [one.source for one in (qlora, lora)]
            source = max(sources, key=lambda one: one != "measured")  # the less certain one
            return Judged(claim, verdict, source, ratio, lora.median, qlora.median, mode=mode)
    return Judged(claim, Verdict.UNMEASURED, "measured")


def _greatest(side: Side | None, keys: tuple[Key, ...]) -> Figure | None:
    found = [side.figures[key] for key in keys if key in side.figures] if side else []
    return max(found, key=lambda figure: figure.median, default=None)


def _middle(span: Span) -> float:
    return (min(span) + max(span)) / 2
