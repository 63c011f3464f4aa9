"""Sizes, memory and ceilings of models and machines that are not here: arithmetic, no measurement.

Everything comes from the numbers of a model's config.json (`data/models.toml`) and of a profile.
Dense models of the llama family: Llama, Mistral, Qwen2.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bot.errors import ConfigError
from config.profiles import Method, Profile
from engine.models import METAL_SHARE
from training.job import Estimate
from training.memory import FLOAT, HALF, Model, adapter_bytes, estimate, fits, greatest_pass
from training.recipe import LINEAR, Recipe, named_recipe, recipe_name

BITS = 4
SCALES = 32  # bits of a group's scale and bias
STREAMS, TALK = 8, 1024  # conversations at once, and the tokens that each has read
MIB = 2**20
METHODS: tuple[Method, ...] = ("lora", "qlora")
DOCUMENT: Mapping[Method, str] = {"lora": "lora-m1-pro", "qlora": "qlora-m1-pro"}

Precision = Literal["float32", "bfloat16", "int4"]


class Known(BaseModel):
    """A model that we know the numbers of."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    original: str
    int4: str
    group: int
    embedding_bits: int = BITS
    config: dict[str, Any]

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return sum(_counted(self.config))

    def size(self, precision: Precision) -> int:
        """Bytes of all weights."""
        embedding, others, plain = _counted(self.config)
        if precision != "int4":
            return (embedding + others + plain) * (FLOAT if precision == "float32" else HALF)
        more = SCALES / self.group
        bits = embedding * (self.embedding_bits + more) + others * (BITS + more)
        return round(bits / 8) + plain * HALF


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the same of both methods."""

    key: str
    unit: Literal["bytes", "rate"]
    values: Mapping[Method, float]
    recipes: Mapping[Method, str] | None = None  # by which settings
    fits: Mapping[Method, bool] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """What can be said of a model on a machine without having either."""

    model: Known
    profile: Profile
    room: int  # bytes that a model may take
    rows: tuple[Row, ...]

    def value(self, key: str, method: Method) -> float:
        """One cell. Raises StopIteration where there is none."""
        return next(row.values[method] for row in self.rows if row.key == key)


@functools.cache
def known() -> dict[str, Known]:
    """The models by short name."""
    tree = tomllib.loads((files("training") / "data" / "models.toml").read_text(encoding="utf-8"))
    return {name: Known.model_validate({"name": name, **values}) for name, values in tree.items()}


def find(name: str) -> Known:
    """A model by short name or by either of its ids. Raises ConfigError."""
    for model in known().values():
        if name.lower() in {model.name, model.original.lower(), model.int4.lower()}:
            return model
    raise ConfigError("error.model_unplanned", name=name, known=", ".join(known()))


def method_of(name: str, model: Known) -> Method:
    """Which method a name asks for: an id of 16-bit weights is LoRA's, all others QLoRA's."""
    return "lora" if name.lower() == model.original.lower() else "qlora"


def in_memory(method: Method, backend: str) -> Precision:
    """What the base is computed in: a CPU multiplies in float32 whatever is on disk."""
    if backend == "cpu":
        return "float32"
    return "bfloat16" if method == "lora" else "int4"


def cache_bytes(config: Mapping[str, Any], *, half: bool) -> int:
    """What a token takes in the caches."""
    model = Model.of(config)
    return 2 * model.layers * model.keys * (HALF if half else FLOAT)


def training(model: Known, recipe: Recipe, method: Method, backend: str) -> Estimate:
    """The memory of a run whose texts are as long as the recipe lets them be."""
    weights = model.size(in_memory(method, backend))
    return estimate(model.config, recipe, greatest_pass(recipe), weights, half=backend != "cpu")


def ceiling(model: Known, method: Method, profile: Profile, *, streams: int = 1) -> float:
    """Tokens a second that the bandwidth allows: a step reads every weight and all caches once.

    One stream is taken to have read nothing yet. Computing may well be slower, never faster.
    """
    weights = model.size(in_memory(method, profile.backend))
    read = TALK * cache_bytes(model.config, half=profile.backend != "cpu") if streams > 1 else 0
    return streams * profile.bandwidth * 1e9 / (weights + streams * read)


def room(profile: Profile) -> int:
    """Bytes that a model may take of a machine that is not here."""
    return int(profile.total * METAL_SHARE)


def table(model: Known, profile: Profile) -> Table:
    """All of it."""
    ours = {method: recipe_name(profile, method, model.parameters) for method in METHODS}
    rows = [Row("disk", "bytes", {"lora": model.size("bfloat16"), "qlora": model.size("int4")})]
    for whose, names in (("ours", ours), ("document", DOCUMENT)):
        recipes = {method: named_recipe(name) for method, name in names.items()}
        sizes = Model.of(model.config)
        needed = {
            method: training(model, recipe, method, profile.backend)
            for method, recipe in recipes.items()
        }
        rows += [
            Row(
                f"adapter.{whose}",
                "bytes",
                {method: adapter_bytes(sizes, recipe) for method, recipe in recipes.items()},
                names,
            ),
            Row(
                f"training.{whose}",
                "bytes",
                {method: found.total for method, found in needed.items()},
                names,
                {method: fits(found, room(profile)) for method, found in needed.items()},
            ),
        ]
    rows.append(_serving(model, profile, ours))
    for key, streams in (("one", 1), ("eight", STREAMS)):
        rates = {method: ceiling(model, method, profile, streams=streams) for method in METHODS}
        rows.append(Row(f"rate.{key}", "rate", rates))
    return Table(model, profile, room(profile), tuple(rows))


def _serving(model: Known, profile: Profile, ours: Mapping[Method, str]) -> Row:
    """Answering: the base, an adapter, and all that conversations may take."""
    sizes = Model.of(model.config)
    needed = {
        method: model.size(in_memory(method, profile.backend))
        + adapter_bytes(sizes, named_recipe(name))
        + profile.cache_mb * MIB
        for method, name in ours.items()
    }
    return Row(
        "serving",
        "bytes",
        needed,
        fits={method: total <= room(profile) for method, total in needed.items()},
    )


def _counted(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Numbers in embeddings, in other matrices, and in what is never quantised."""
    model = Model.of(config)
    table = model.vocabulary * model.width
    matrices = model.layers * sum(math.prod(model.linear(name)) for name in LINEAR)
    plain = model.layers * 2 * model.width + model.width  # norms
    if config["model_type"] == "qwen2":
        plain += model.layers * (model.queries + 2 * model.keys)  # biases
    return table, matrices + (0 if config["tie_word_embeddings"] else table), plain
