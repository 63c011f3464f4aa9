"""The memory plan: what answering and learning take on a machine, and what to lower.

Without MLX. A model that is here is looked at, another one is known by its numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bot.errors import ConfigError
from config.profiles import AUTO, Method, Profile, chosen, profiles, with_profile
from config.settings import Settings
from engine import models, weights
from engine.plan import Backend, detect
from training import derived, memory
from training.job import Estimate
from training.recipe import Phase, Recipe, named_recipe, recipe_name

MIB = 2**20
LEAST_LENGTH, LEAST_LAYERS, LEAST_CACHE = 128, 4, 128

Enough = Callable[[Recipe], bool]


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to fit into."""

    profile: Profile
    total: int
    room: int  # that a model may take
    here: bool  # it is this one
    measured: bool  # the room is what is free now, not a share of the whole
    dequantise: bool


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as far as memory goes."""

    name: str
    here: bool  # its files were looked at
    method: Method
    parameters: int
    config: Mapping[str, Any]
    disk: int
    weights: int  # as loaded
    half: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What answering and learning take, in bytes, and what there is."""

    subject: Subject
    machine: Machine
    caches: int
    recipe_name: str
    recipe: Recipe
    pause: memory.Choice

    @property
    def adapter(self) -> int:
        """The adapter in service, and the next one while they change places."""
        return 2 * memory.adapter_bytes(memory.Model.of(self.subject.config), self.recipe)

    @property
    def serving(self) -> int:
        """All that answering may take."""
        return self.subject.weights + self.caches + self.adapter

    @property
    def training(self) -> Estimate:
        """A run of the recipe."""
        return self.trained(self.recipe)

    @property
    def testing(self) -> Estimate:
        """The test of what was learnt."""
        return memory.estimate_evaluation(self.subject.weights)

    @property
    def learning(self) -> int:
        """The larger of both, with the tenth to spare."""
        return self.needed(self.recipe)

    @property
    def peak(self) -> int:
        """The most that it will take at any time."""
        return max(self.serving, self.learning) if self.pauses else self.serving + self.learning

    def needed(self, recipe: Recipe) -> int:
        """The same by another recipe."""
        return round(max(self.trained(recipe).total, self.testing.total) * memory.SPARE)

    def trained(self, recipe: Recipe) -> Estimate:
        """A run of another recipe."""
        subject = self.subject
        greatest = memory.greatest_pass(recipe)
        return memory.estimate(subject.config, recipe, greatest, subject.weights, half=subject.half)

    @property
    def serves(self) -> bool:
        """Whether it can answer at all."""
        return self.serving <= self.machine.room

    @property
    def learns(self) -> bool:
        """Whether it can learn with nothing beside it."""
        return self.learning <= self.machine.room

    @property
    def beside(self) -> bool:
        """Whether it can do both at once."""
        return self.serving + self.learning <= self.machine.room

    @property
    def pauses(self) -> bool:
        """Whether nobody is answered while it learns."""
        return self.pause == "always" or (self.pause == "auto" and not self.beside)

    @property
    def fits(self) -> bool:
        """Whether all that it will do has its place."""
        return self.serves and (self.learns if self.pauses else self.beside)


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something to lower, tried: what is needed then, and whether that is enough."""

    key: str  # of the text that says it
    values: Mapping[str, str | int]
    needed: int
    enough: bool


def named_profile(name: str) -> Profile:
    """A profile by name, this machine's for `auto`. Raises ConfigError."""
    if name != AUTO and name not in profiles():
        raise ConfigError("error.profile", name=name, known=", ".join(profiles()))
    return chosen(name, detect().backend, psutil.virtual_memory().total)


def profile_for(settings: Settings, name: str | None = None) -> Profile:
    """The profile of that name, else the settings'. Raises ConfigError."""
    return named_profile(name or settings.profile)


def fitted(settings: Settings) -> Settings:
    """The settings with the defaults of the profile that they ask for, or of this machine."""
    return with_profile(settings, profile_for(settings))


def recipe_of(settings: Settings, folder: Path) -> Recipe:
    """How a model in a folder learns on the settings' machine. Raises ConfigError or ModelError."""
    method: Method = "qlora" if "quantization" in weights.read_config(folder) else "lora"
    return named_recipe(recipe_name(profile_for(settings), method, weights.parameters(folder)))


def machine_of(profile: Profile) -> Machine:
    """This machine where it is of the profile's kind, else the one that the profile describes."""
    plan, now = detect(), psutil.virtual_memory()
    if profile.name != chosen(AUTO, plan.backend, now.total).name:
        space, dequantise = derived.room(profile), profile.backend == "cpu"
        return Machine(
            profile, profile.total, space, here=False, measured=False, dequantise=dequantise
        )
    return Machine(
        profile,
        now.total,
        models.usable_memory(now.available, now.total, plan.backend),
        here=True,
        measured=plan.backend is not Backend.METAL,
        dequantise=plan.dequantise,
    )


def make_plan(settings: Settings, machine: Machine) -> Plan:
    """The plan of a machine for the settings' model. Raises ConfigError or ModelError."""
    return _planned(settings, machine, _subject(settings, dequantise=machine.dequantise))


def _planned(settings: Settings, machine: Machine, subject: Subject) -> Plan:
    name = recipe_name(machine.profile, subject.method, subject.parameters)
    return Plan(
        subject=subject,
        machine=machine,
        caches=settings.engine.cache_mb * MIB,
        recipe_name=name,
        recipe=named_recipe(name),
        pause=settings.learning.pause,
    )


def _subject(settings: Settings, *, dequantise: bool) -> Subject:
    """The model on this machine, else what is known of it."""
    name = settings.engine.model
    try:
        known = derived.find(name) if name else None
    except ConfigError:
        known = None
    method = derived.method_of(name or "", known) if known else "qlora"
    if known:
        name = known.original if method == "lora" else known.int4
    source = models.resolve(name, settings.models)
    if source.folder is None:
        return _known(known or derived.find(source.name), method, dequantise=dequantise)
    config, files = weights.read_config(source.folder), weights.check(source.folder)
    return Subject(
        name=source.name,
        here=True,
        method="qlora" if "quantization" in config else "lora",
        parameters=weights.parameters(source.folder),
        config=config,
        disk=sum(file.size for file in files),
        weights=weights.memory_needed(config, files, dequantise=dequantise),
        half=not dequantise,
    )


def _known(model: derived.Known, method: Method, *, dequantise: bool) -> Subject:
    precision: derived.Precision = "bfloat16" if method == "lora" else "int4"
    return Subject(
        name=model.original if method == "lora" else model.int4,
        here=False,
        method=method,
        parameters=model.parameters,
        config=model.config,
        disk=model.size(precision),
        weights=model.size("float32" if dequantise else precision),
        half=not dequantise,
    )


def remedies(plan: Plan, settings: Settings) -> list[Remedy]:
    """What to lower where a plan does not fit, each tried."""
    found = list(_cache(plan))
    if plan.learns and not plan.pauses and not plan.beside:
        found.append(Remedy("plan.lower.pause", {}, plan.learning, enough=True))
    if not plan.learns:
        found += _recipes(plan)
        found += _profiles(plan, settings)
    if not plan.fits:
        found += _models(plan, settings)
    return found


def _cache(plan: Plan) -> Iterator[Remedy]:
    """A smaller budget for conversations, where that alone lets it answer."""
    left = plan.machine.room - (plan.serving - plan.caches)
    if not plan.serves and left >= LEAST_CACHE * MIB:
        cache = left // (LEAST_CACHE * MIB) * LEAST_CACHE
        needed = plan.serving - plan.caches + cache * MIB
        yield Remedy("plan.lower.cache", {"cache": cache}, needed, enough=True)


def _recipes(plan: Plan) -> Iterator[Remedy]:
    """Each number of the recipe alone, then one after the other until it is enough."""

    def enough(recipe: Recipe) -> bool:
        return plan.needed(recipe) <= plan.machine.room

    depth = memory.Model.of(plan.subject.config).layers
    alone = [
        _remedy(plan, key, lower(plan.recipe, depth, enough), enough)
        for key, lower in STEPS.items()
    ]
    helping = [remedy for remedy in alone if remedy.needed < plan.learning]
    yield from helping
    if len(helping) > 1 and not any(remedy.enough for remedy in helping):
        together = plan.recipe
        for lower in STEPS.values():
            together = together if enough(together) else lower(together, depth, enough)
        yield _remedy(plan, "together", together, enough)


def _remedy(plan: Plan, key: str, recipe: Recipe, enough: Enough) -> Remedy:
    values: dict[str, str | int] = {
        "batch": recipe.sft.batch,
        "accumulation": recipe.sft.accumulation,
        "length": recipe.max_length,
        "layers": recipe.layers,
    }
    return Remedy(f"plan.lower.{key}", values, plan.needed(recipe), enough(recipe))


def _checkpoint(recipe: Recipe, _depth: int, _enough: Enough) -> Recipe:
    return recipe.model_copy(update={"checkpoint_gradients": True})


def _batch(recipe: Recipe, _depth: int, _enough: Enough) -> Recipe:
    """One text at a time; the optimizer's steps stay the same."""

    def one(phase: Phase) -> Phase:
        return phase.model_copy(
            update={"batch": 1, "accumulation": phase.batch * phase.accumulation}
        )

    return recipe.model_copy(update={"sft": one(recipe.sft), "kto": one(recipe.kto)})


def _length(recipe: Recipe, _depth: int, enough: Enough) -> Recipe:
    while recipe.max_length > LEAST_LENGTH and not enough(recipe):
        shorter = max(LEAST_LENGTH, recipe.max_length // 2)
        recipe = recipe.model_copy(update={"max_length": shorter})
    return recipe


def _layers(recipe: Recipe, depth: int, enough: Enough) -> Recipe:
    layers = depth if recipe.layers < 0 else min(recipe.layers, depth)
    while layers > LEAST_LAYERS and not enough(recipe):
        layers = max(LEAST_LAYERS, layers // 2)
        recipe = recipe.model_copy(update={"layers": layers})
    return recipe


STEPS = {"checkpoint": _checkpoint, "batch": _batch, "length": _length, "layers": _layers}


def _profiles(plan: Plan, settings: Settings) -> Iterator[Remedy]:
    """The settings of a smaller machine of the same kind, with the same model."""
    now = plan.machine.profile
    for other in sorted(profiles().values(), key=lambda one: -one.memory):
        if other.backend != now.backend or other.memory >= now.memory:
            continue
        machine = dataclasses.replace(plan.machine, profile=other)
        smaller = _planned(with_profile(settings, other), machine, plan.subject)
        if smaller.fits:
            yield Remedy("plan.lower.profile", {"name": other.name}, smaller.peak, enough=True)
            return


def _models(plan: Plan, settings: Settings) -> Iterator[Remedy]:
    """The same model in int4, else the largest that we know and that has its place."""
    own = plan.subject.name
    for model in sorted(
        derived.known().values(), key=lambda one: (one.original != own, -one.size("int4"))
    ):
        if model.size("int4") >= plan.subject.disk:
            continue
        smaller = _planned(
            settings, plan.machine, _known(model, "qlora", dequantise=plan.machine.dequantise)
        )
        if smaller.fits:
            yield Remedy("plan.lower.model", {"name": model.int4}, smaller.peak, enough=True)
            return
