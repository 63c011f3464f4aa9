"""From what the processes of a comparison left to its figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from training.compare import serve
from training.compare.bases import size_of
from training.compare.values import Agreement, Answer, Figure, Key, Mode, Side
from training.evaluation import Evaluation
from training.job import Event, Progress, Value
from training.metrics import chrf, mean
from training.recipe import Recipe

FIRST = 2  # steps that are not steady yet: kernels are made, memory is taken for the first time

Heard = tuple[float, Event]  # an event, and when it came in seconds
Steps = list[tuple[float, float]]  # seconds and tokens of each


class Found(Value):
    """What one process found; `computes_in` is seen where the base is served."""

    figures: dict[Key, float] = Field(default_factory=dict)
    steps: int = 0
    tokens: int = 0
    computes_in: str | None = None
    suites: dict[str, tuple[int, int]] = Field(default_factory=dict)
    answers: tuple[Answer, ...] = ()


def trained(
    heard: Sequence[Heard], result: Mapping[str, Any], recipe: Recipe, joules: float | None
) -> Found:
    """Of a training: load, what the first steps took beyond usual ones, and the steady state.

    After an interruption only what was heard since it went on counts as time.
    """
    figures: dict[Key, float] = {
        Key.TRAIN_PEAK_MLX: result["peak_memory"]["mlx"],
        Key.TRAIN_PEAK_PROCESS: result["peak_memory"]["process"],
    }
    loads = [at for at, event in heard if isinstance(event, Progress) and event.stage == "load"]
    if len(loads) == 2:  # noqa: PLR2004 (its beginning and its end)
        figures[Key.TRAIN_LOAD] = loads[1] - loads[0]
    steps = _steps(event for _, event in heard)
    usual = steps[FIRST:]
    if usual:
        rate = sum(tokens for _, tokens in usual) / sum(seconds for seconds, _ in usual)
        figures[Key.TRAIN_RATE] = rate
        figures[Key.TRAIN_EPOCH] = result["tokens"] / recipe.sft.epochs / rate
        beyond = sum(seconds - tokens / rate for seconds, tokens in steps[:FIRST])
        figures[Key.TRAIN_WARMUP] = max(0.0, beyond)
    if joules is not None:
        figures[Key.TRAIN_ENERGY] = joules
    return Found(figures=figures, steps=result["steps"], tokens=result["tokens"])


def _steps(events: Iterable[Event]) -> Steps:
    return [
        (event.seconds, event.tokens_per_second * event.seconds)
        for event in events
        if isinstance(event, Progress) and event.seconds and event.tokens_per_second
    ]


def served(folder: Path) -> Found:
    """Of a process that served. Raises OSError or ValueError."""
    found = serve.read(folder)
    return Found(figures=found.figures, computes_in=found.memory, answers=found.answers)


def evaluated(found: Evaluation, name: str) -> Found:
    """Of the gate's suites: how many cases passed of how many."""
    suites = found.revisions[name].suites
    return Found(
        suites={
            suite: (sum(reply.passed for reply in result.replies), len(result.replies))
            for suite, result in suites.items()
            if result.replies
        }
    )


def fill(side: Side, found: Sequence[Found], base: Path, adapter: Path) -> Side:
    """A side with all that its processes found, and what lies on the disk."""
    values: dict[Key, list[float]] = {}
    for one in found:
        for key, value in one.figures.items():
            values.setdefault(key, []).append(value)
    weights = [adapter / name for name in ("adapters.safetensors", "adapter_config.json")]
    values[Key.BASE_BYTES] = [size_of(base)]
    values[Key.ADAPTER_BYTES] = [sum(path.stat().st_size for path in weights)]
    return side.model_copy(
        update={
            "figures": {key: Figure(values=tuple(values[key])) for key in Key if key in values},
            "steps": max(one.steps for one in found),
            "tokens": max(one.tokens for one in found),
            "suites": {name: count for one in found for name, count in one.suites.items()},
            "answers": next((one.answers for one in found if one.answers), ()),
        }
    )


def agreement(mode: Mode, one: Side, other: Side) -> Agreement:
    """How alike two sides' answers are; each is held against the other, for chrF asks which."""
    pairs = [
        (left.text, right.text) for left, right in zip(one.answers, other.answers, strict=True)
    ]
    return Agreement(
        mode=mode,
        asked=len(pairs),
        same=sum(left.split() == right.split() for left, right in pairs),
        chrf=100 * mean((chrf(left, right) + chrf(right, left)) / 2 for left, right in pairs),
    )
