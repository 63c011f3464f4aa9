"""Figures as people read them: with a unit, and as the language writes numbers."""

from __future__ import annotations

import math

from config.texts import number, text
from training.compare.values import Key

FORMS = {
    Key.BASE_BYTES: "bytes",
    Key.ADAPTER_BYTES: "bytes",
    Key.TRAIN_LOAD: "seconds",
    Key.TRAIN_WARMUP: "seconds",
    Key.TRAIN_EPOCH: "seconds",
    Key.TRAIN_RATE: "rate",
    Key.TRAIN_PEAK_MLX: "bytes",
    Key.TRAIN_PEAK_PROCESS: "bytes",
    Key.TRAIN_ENERGY: "joules",
    Key.SERVE_LOAD: "seconds",
    Key.SERVE_WARMUP: "seconds",
    Key.SERVE_FIRST_TOKEN: "seconds",
    Key.SERVE_RATE_1: "rate",
    Key.SERVE_RATE_8: "rate",
    Key.SERVE_PEAK_MLX: "bytes",
    Key.SERVE_PEAK_PROCESS: "bytes",
    Key.SERVE_ENERGY: "joules",
    Key.LOSS_BEFORE: "loss",
    Key.LOSS_AFTER: "loss",
}
SPACE = "\N{NO-BREAK SPACE}"  # between a number and its unit
UNITS = {  # from what value on, a divisor and a unit; the first that fits
    "bytes": ((1.5e8, 1e9, "GB"), (5e4, 1e6, "MB"), (0, 1e3, "kB")),
    "joules": ((1e4, 1e3, "kJ"), (0, 1, "J")),
    "seconds": ((120, 60, "min"), (0.2, 1, "s"), (0, 1e-3, "ms")),
    "rate": ((0, 1, "tok/s"),),
}
PLACES = ((100, ".0f"), (10, ".1f"), (0, ".2f"))  # from what value on, so many


def value(amount: float, form: str, language: str, like: float | None = None) -> str:
    """An amount in the unit that suits it, or `like` which it stands beside."""
    if form == "yes":
        return text(f"comparison.{'yes' if amount else 'no'}", language)
    if form in UNITS:
        scale, unit = _unit(form, amount if like is None else like)
        return f"{plain(amount / scale, language)}{SPACE}{unit}"
    return number(amount, {"share": ".0%", "points": ".1f"}.get(form, ".3f"), language)


def span(values: tuple[float, ...], form: str, language: str) -> str:
    """One round value, or from the least to the greatest."""
    if not values:
        return ""
    scale, unit = _unit(form, max(values))
    said = "–".join(number(round(one / scale, 2), ".4g", language) for one in values)
    return f"{said}{SPACE}{unit}".rstrip(SPACE)


def times(ratio: float, language: str) -> str:
    """A ratio."""
    return f"×{plain(ratio, language)}"


def plain(amount: float, language: str) -> str:
    """A number with as many places as tell something."""
    if not math.isfinite(amount):
        return "∞"
    # A value that rounds up to the next power has that one's places.
    form = next(form for least, form in PLACES if round(abs(amount), 2) >= least)
    return number(amount, form, language)


def _unit(form: str, amount: float) -> tuple[float, str]:
    sizes = UNITS.get(form, ((0, 1, ""),))
    return next((scale, unit) for least, scale, unit in sizes if abs(amount) >= least)
