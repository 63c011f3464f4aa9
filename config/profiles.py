"""Profiles: what each kind of machine runs and how it learns, read from `profiles.toml`.

A profile gives defaults: whatever an administrator has set wins.
"""

from __future__ import annotations

import functools
import tomllib
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from config.settings import EngineSettings, LearningSettings, Section, Settings

AUTO = "auto"
SHORT_OF = 0.9  # of a profile's memory: systems keep some for themselves and do not count it
GIB = 2**30

Method = Literal["lora", "qlora"]
Count = Annotated[int, Field(ge=1)]


class Numbers(BaseModel):
    """The numbers of a recipe; `training.recipe` makes one of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rank: Count
    scale: float = Field(gt=0)
    targets: Literal["linear", "q,v", "q,k,v"]
    layers: int = Field(ge=-1)
    epochs: Count
    learning_rate: float = Field(gt=0)
    warmup: int = Field(ge=0)
    batch: Count
    accumulation: Count
    votes_batch: Count
    votes_accumulation: Count
    length: int = Field(ge=16)
    checkpoint: bool


class Profile(BaseModel):
    """One kind of machine."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    backend: Literal["metal", "cuda", "cpu"]
    memory: Count = Field(description="GiB that the hardware has.")
    bandwidth: float = Field(gt=0, description="GB/s between memory and processor.")
    model: str
    qlora: str = Field(description="Name of the recipe on an int4 base.")
    lora: str = Field(description="The same on a 16-bit base.")
    pause: Literal["auto", "always", "never"]
    cache_mb: int = Field(ge=0)
    concurrency: Count

    @field_validator("qlora", "lora")
    @classmethod
    def _is_there(cls, name: str, info: ValidationInfo) -> str:
        if name not in (info.context or {}):
            raise ValueError(f"no recipe {name}")
        return name

    @property
    def total(self) -> int:
        """The hardware's memory in bytes."""
        return self.memory * GIB


@functools.cache
def recipes() -> dict[str, Numbers]:
    """All recipes by name."""
    found = _file()["recipes"]
    return {name: Numbers.model_validate(values) for name, values in found.items()}


@functools.cache
def profiles() -> dict[str, Profile]:
    """All profiles by name."""
    return {
        name: Profile.model_validate({"name": name, **values}, context=recipes())
        for name, values in _file()["profiles"].items()
    }


def detected(backend: str, total: int) -> Profile:
    """The profile for a backend and so many bytes of memory.

    The largest that asks for no more than there is; the smallest of its backend below that.
    """
    alike = sorted(
        (one for one in profiles().values() if one.backend == backend), key=lambda one: one.memory
    )
    fitting = [one for one in alike if one.total * SHORT_OF <= total]
    return (fitting or alike[:1])[-1]


def chosen(setting: str, backend: str, total: int) -> Profile:
    """The profile that the setting names, or the machine's own. Raises KeyError."""
    return detected(backend, total) if setting == AUTO else profiles()[setting]


def with_profile(settings: Settings, profile: Profile) -> Settings:
    """The settings with a profile's values where nobody has set any.

    They stay unset in `model_fields_set`, so that another profile may take their place. The model
    is a profile's business on Metal only: elsewhere the embedded one is what comes of itself.
    """
    engine: dict[str, Any] = {
        "cache_mb": profile.cache_mb,
        "concurrency": profile.concurrency,
        "model": profile.model if profile.backend == "metal" else None,
    }
    learning = {"pause": profile.pause}
    return settings.model_copy(
        update={
            "engine": EngineSettings.model_construct(**_filled(settings.engine, engine)),
            "learning": LearningSettings.model_construct(**_filled(settings.learning, learning)),
        }
    )


def _filled(section: Section, values: dict[str, Any]) -> dict[str, Any]:
    """A section's values with those in the place of what nobody has set."""
    given = section.model_fields_set
    free = {name: value for name, value in values.items() if name not in given}
    return {"_fields_set": set(given)} | dict(section) | free


def _file() -> dict[str, dict[str, dict[str, Any]]]:
    return tomllib.loads((files("config") / "profiles.toml").read_text(encoding="utf-8"))
