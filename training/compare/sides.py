"""The four sides of a comparison, and the runs that they need: alike settings are run once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from config.profiles import Profile
from training.compare.values import Method, Mode
from training.recipe import Recipe, named_recipe, recipe_for, recipe_name

METHODS: tuple[Method, ...] = ("lora", "qlora")
ORIGINAL: Mapping[Method, str] = {"lora": "lora-m1-pro", "qlora": "qlora-m1-pro"}
QUICK_EPOCHS, QUICK_WARMUP = 2, 5

Task = Literal["train", "serve", "evaluate"]


@dataclass(frozen=True, slots=True)
class Setting:
    """A recipe under its name."""

    name: str
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Entry:
    """One of the four."""

    method: Method
    mode: Mode
    setting: Setting

    @property
    def name(self) -> str:
        """As `values.Side` has it."""
        return f"{self.method}-{self.mode}"


@dataclass(frozen=True, slots=True)
class Run:
    """A base and a recipe to measure, for every side that is made of them."""

    name: str  # of the first of these sides, as are method and mode
    method: Method
    mode: Mode
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Step:
    """One process of a comparison."""

    task: Task
    run: Run
    repetition: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.run.name}-{self.task}-{self.repetition}"


def of_profile(profile: Profile, size: int) -> dict[Method, Setting]:
    """What a profile recommends for a base of so many parameters."""
    return {
        method: Setting(recipe_name(profile, method, size), recipe_for(profile, method, size))
        for method in METHODS
    }


def of_original() -> dict[Method, Setting]:
    """What the document recommends that the comparison began from."""
    return {method: Setting(name, named_recipe(name)) for method, name in ORIGINAL.items()}


def entries(recommended: Mapping[Method, Setting], *, quick: bool) -> tuple[Entry, ...]:
    """The four: each with its own settings, and both with QLoRA's.

    All go through all texts equally often, in an order from the same seed: it is QLoRA's recipe
    that says so.
    """
    leader = recommended["qlora"].recipe
    levelled = {
        method: Setting(setting.name, _levelled(setting.recipe, leader, quick=quick))
        for method, setting in recommended.items()
    }
    return (
        *(Entry(method, "recommended", levelled[method]) for method in METHODS),
        *(Entry(method, "same", levelled["qlora"]) for method in METHODS),
    )


def _levelled(recipe: Recipe, leader: Recipe, *, quick: bool) -> Recipe:
    """With every text in each epoch; a quick one takes fewer of them and warms up sooner."""
    sft = {"epochs": min(leader.sft.epochs, QUICK_EPOCHS) if quick else leader.sft.epochs}
    if quick:
        sft["warmup"] = min(recipe.sft.warmup, QUICK_WARMUP)
    changed = {"sft": recipe.sft.model_copy(update=sft), "seed": leader.seed, "rehearsal": None}
    return recipe.model_copy(update=changed)


def runs(sides: Sequence[Entry]) -> dict[str, Run]:
    """The run of each side, by the side's name."""
    made: dict[tuple[Method, str], Run] = {}
    found = {}
    for side in sides:
        key = (side.method, side.setting.recipe.model_dump_json())
        run = made.setdefault(key, Run(side.name, side.method, side.mode, side.setting.recipe))
        found[side.name] = run
    return found


def steps(sides: Sequence[Entry], repetitions: int) -> Iterator[Step]:
    """All processes in their order, which turns round each time: none is always the first."""
    distinct = list(dict.fromkeys(run.name for run in runs(sides).values()))
    by_name = {run.name: run for run in runs(sides).values()}
    for repetition in range(1, repetitions + 1):
        for name in distinct if repetition % 2 else reversed(distinct):
            yield Step("train", by_name[name], repetition)
            yield Step("serve", by_name[name], repetition)
    for name in distinct:
        yield Step("evaluate", by_name[name], 1)
