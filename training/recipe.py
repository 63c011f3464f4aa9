"""How a revision is made: every number that decides the weights, and nothing else.

With base, dataset and recipe given, the weights are given too. A recipe is stored with what came
of it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bot.errors import ConfigError
from config.profiles import Method, Numbers, Profile, recipes

LINEAR = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
TARGETS = {
    "linear": LINEAR,
    "q,v": (LINEAR[0], LINEAR[2]),
    "q,k,v": LINEAR[:3],
}

VOTES_RATE = 1e-5  # the learning rate of the stage that learns votes
SMALL = 1_000_000_000  # parameters, below which a model learns with all its layers in no time


class Phase(BaseModel):
    """One stage of training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(ge=0)
    learning_rate: float = Field(gt=0)
    warmup: int = Field(5, ge=0, description="Optimizer steps until the full learning rate.")
    batch: int = Field(4, ge=1, description="Examples in one pass.")
    accumulation: int = Field(1, ge=1, description="Passes for one optimizer step.")


class Recipe(BaseModel):
    """Everything about a run but base and dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["lora", "dora"] = "lora"
    rank: int = Field(16, ge=1)
    scale: float = Field(2.0, gt=0, description="alpha / rank, or alpha / sqrt(rank) for rsLoRA.")
    rslora: bool = False
    layers: int = Field(-1, description="The last n blocks; -1 is all.")
    targets: tuple[str, ...] = LINEAR
    sft: Phase = Phase(epochs=5, learning_rate=2e-3, batch=8)
    kto: Phase = Phase(epochs=1, learning_rate=VOTES_RATE)
    rehearsal: float | None = Field(
        0.7, ge=0, description="Facts and talk in an epoch for each wording taught; null: all."
    )
    beta: float = Field(0.1, gt=0, description="KTO: how far the policy may leave the reference.")
    gold: float = Field(0.1, ge=0, description="KTO: weight of the SFT loss on gold answers.")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0, description="Largest norm of a gradient.")
    max_length: int = Field(512, ge=16, description="Tokens of a training text.")
    patience: int = Field(3, ge=1, description="Looks at the held-out loss without a gain.")
    look_every: int = Field(20, ge=1, description="Optimizer steps between two such looks.")
    save_every: int = Field(20, ge=1, description="Optimizer steps between two checkpoints.")
    checkpoint_gradients: bool = Field(False, description="Less memory, more time.")
    seed: int = 7


def recipe_for(profile: Profile, method: Method, size: int) -> Recipe:
    """A profile's recipe for a method and a base of so many parameters."""
    return named_recipe(recipe_name(profile, method, size))


def recipe_name(profile: Profile, method: Method, size: int) -> str:
    """The name of that recipe."""
    if size < SMALL:
        return "small"
    return profile.qlora if method == "qlora" else profile.lora


def named_recipe(name: str) -> Recipe:
    """A recipe of config/profiles.toml, ours or the original document's. Raises ConfigError."""
    known = recipes()
    if name not in known:
        raise ConfigError("error.recipe", name=name, known=", ".join(known))
    return _made(known[name])


def _made(numbers: Numbers) -> Recipe:
    return Recipe(
        rank=numbers.rank,
        scale=numbers.scale,
        layers=numbers.layers,
        targets=TARGETS[numbers.targets],
        sft=Phase(
            epochs=numbers.epochs,
            learning_rate=numbers.learning_rate,
            warmup=numbers.warmup,
            batch=numbers.batch,
            accumulation=numbers.accumulation,
        ),
        kto=Phase(
            epochs=1,
            learning_rate=VOTES_RATE,
            batch=numbers.votes_batch,
            accumulation=numbers.votes_accumulation,
        ),
        max_length=numbers.length,
        checkpoint_gradients=numbers.checkpoint,
    )
