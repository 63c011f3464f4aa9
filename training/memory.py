"""How much memory a training run takes, worked out before it begins and without MLX.

Counted are the arrays that the backward pass needs again. The figures of a run are printed beside
what it really took (`result.json`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.models import usable_memory
from engine.plan import Backend, ComputePlan
from engine.weights import check, memory_needed, read_config
from training.batches import MANY, PIECE, Row
from training.job import Estimate
from training.recipe import LINEAR, Recipe

FLOAT, HALF = 4, 2
LOGITS = 3  # copies at once: themselves, their probabilities, their gradient
SPARE = 1.1  # for what nobody counted
ANSWERS = 2**30  # bytes for adapters, caches and logits of a test, whose answers come in turns

Choice = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class Pass:
    """The largest pass of a run, in tokens; `shared` ones stand before every row, but once."""

    rows: int
    shared: int
    length: int  # of a row's own tokens
    targets: int

    @property
    def tokens(self) -> int:
        """Tokens that the linear layers see."""
        return self.shared + self.rows * self.length

    @property
    def pairs(self) -> int:
        """Which token sees which, hidden ones too."""
        return self.shared**2 + self.rows * self.length * (self.shared + self.length)


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes of a model, from its config.json."""

    layers: int
    width: int
    heads: int
    queries: int
    keys: int
    inner: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Model:
        """From config.json, also of models that see pictures."""
        inner = config.get("text_config", config)
        heads = inner["num_attention_heads"]
        head = inner.get("head_dim") or inner["hidden_size"] // heads
        return cls(
            layers=inner["num_hidden_layers"],
            width=inner["hidden_size"],
            heads=heads,
            queries=heads * head,
            keys=(inner.get("num_key_value_heads") or heads) * head,
            inner=inner["intermediate_size"],
            vocabulary=inner["vocab_size"],
        )

    def linear(self, name: str) -> tuple[int, int]:
        """What goes into a linear layer and comes out of it."""
        width, queries, keys, inner = self.width, self.queries, self.keys, self.inner
        sizes = dict(
            zip(
                LINEAR,
                (
                    *((width, queries), (width, keys), (width, keys), (queries, width)),
                    *((width, inner), (width, inner), (inner, width)),
                ),
                strict=True,
            )
        )
        return sizes.get(name, (0, 0))


def estimate(
    config: Mapping[str, Any], recipe: Recipe, largest: Pass, weights: int, *, half: bool = False
) -> Estimate:
    """Bytes of a run by part. `weights` are the base's as loaded; `half` if it computes in them."""
    model = Model.of(config)
    adapter = adapter_bytes(model, recipe)
    layer = _layer(model, recipe, largest, HALF if half else FLOAT)
    trained = model.layers if recipe.layers < 0 else min(recipe.layers, model.layers)
    kept = largest.tokens * model.width * (HALF if half else FLOAT)  # a layer's input
    activations = layer + trained * kept if recipe.checkpoint_gradients else trained * layer
    parts = {
        "weights": weights,
        "adapter": adapter,
        "best": adapter,
        "optimizer": 2 * adapter,
        "gradients": adapter * (2 if recipe.sft.accumulation > 1 else 1),
        "activations": activations,
        "logits": LOGITS * largest.targets * model.vocabulary * FLOAT,
    }
    if recipe.kind == "dora" and half:  # the base in full, for its gradient
        parts["activations"] += (
            trained
            * HALF
            * sum(rows * columns for rows, columns in map(model.linear, recipe.targets))
        )
    return Estimate(total=sum(parts.values()), parts=parts)


def forecast(
    folder: Path, plan: ComputePlan, recipe: Recipe, *, shared: int = 0, longest: int | None = None
) -> Estimate:
    """The same before anything is loaded or tokenized, for rows as long as the recipe lets them be.

    `shared` are the persona's tokens, `longest` those of the longest text. Raises ModelError.
    """
    config, files = read_config(folder), check(folder)
    weights = memory_needed(config, files, dequantise=plan.dequantise)
    greatest = greatest_pass(recipe, shared, longest)
    return estimate(config, recipe, greatest, weights, half=not plan.dequantise)


def adapter_bytes(model: Model, recipe: Recipe) -> int:
    """Bytes of the trained weights, float32."""
    trained = model.layers if recipe.layers < 0 else min(recipe.layers, model.layers)
    sizes = [model.linear(name) for name in recipe.targets]
    each = sum(recipe.rank * (rows + columns) for rows, columns in sizes)
    if recipe.kind == "dora":
        each += sum(columns for _, columns in sizes)
    return trained * each * FLOAT


def greatest_pass(recipe: Recipe, shared: int = 0, longest: int | None = None) -> Pass:
    """The largest pass that a recipe allows, with answers as long as the texts."""
    rows = max(recipe.sft.batch, recipe.kto.batch)
    length = _up(max(PIECE, (longest or recipe.max_length) - shared), PIECE)
    return Pass(rows=rows, shared=shared, length=length, targets=rows * length)


def forecast_evaluation(folder: Path, plan: ComputePlan) -> Estimate:
    """What testing revisions of a base will take. Raises ModelError."""
    return estimate_evaluation(
        memory_needed(read_config(folder), check(folder), dequantise=plan.dequantise)
    )


def estimate_evaluation(weights: int) -> Estimate:
    """The same from the bytes of the base's weights as loaded."""
    return Estimate(total=weights + ANSWERS, parts={"weights": weights, "answers": ANSWERS})


def beside(*, total: int, available: int, backend: Backend, engine: int, caches: int) -> int:
    """Bytes left beside an engine of so many, whose caches may yet grow by `caches`.

    `total` is the machine's memory, `available` what of it is free now, with the engine in it.
    """
    return usable_memory(available + engine, total, backend) - engine - caches


def must_pause(choice: Choice, estimated: Estimate, room: int) -> bool:
    """Whether the engine makes room for a job; `room` is what there is beside it."""
    return choice == "always" or (choice == "auto" and not fits(estimated, room))


def fits(estimated: Estimate, available: int) -> bool:
    """Whether there is room, with a tenth to spare."""
    return estimated.total * SPARE <= available


def largest(rows: Sequence[Row], batch: int, shared: int) -> Pass:
    """The pass that takes most, of batches of like lengths."""
    longest = sorted(rows, key=len)[-batch:]
    if not longest:
        return Pass(0, 0, 0, 0)
    return Pass(
        rows=len(longest),
        shared=shared,
        length=_up(len(longest[-1]) - 1 - shared, PIECE),
        targets=_up(sum(len(row.completion) for row in longest), MANY),
    )


def _layer(model: Model, recipe: Recipe, largest: Pass, size: int) -> int:
    """Bytes that one layer keeps for its gradient."""
    numbers = 5 * model.width + 4 * model.queries + 3 * model.keys + 3 * model.inner
    sizes = [model.linear(name) for name in recipe.targets]
    numbers += recipe.rank * len(sizes)
    if recipe.kind == "dora":
        numbers += sum(columns for _, columns in sizes)
    return largest.tokens * numbers * size + largest.pairs * model.heads * FLOAT


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
