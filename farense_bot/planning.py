"""`plan` and `compare --plan` in the terminal: what fits on a machine, and what can be derived."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from config.profiles import Method, with_profile
from config.settings import Settings
from config.texts import number, text
from training import derived, planned

GB, GIB = 10**9, 2**30
WIDTH = 78
LEARNT = ("adapter", "best", "optimizer", "gradients")

fitted = planned.fitted


def print_plan(settings: Settings, profile: str | None, console: Console) -> int:
    """Print the memory plan; 0 where all has its place. Raises ConfigError or ModelError."""
    chosen = planned.profile_for(settings, profile)
    settings = with_profile(settings, chosen)
    plan = planned.make_plan(settings, planned.machine_of(chosen))
    language = settings.conversation.language
    names = {"model": plan.subject.name, "profile": chosen.name}
    console.print(text("plan.title", language, **names), width=WIDTH, markup=False)
    console.print(_plan_table(plan, language), width=WIDTH)
    for line in _verdicts(plan, language):
        console.print(line, width=WIDTH, markup=False)
    lower = planned.remedies(plan, settings)
    if lower:
        console.print("\n" + text("plan.lower.title", language), width=WIDTH)
    for remedy in lower:
        mark = "✓" if remedy.enough else "✗"
        said = text(remedy.key, language, needed=remedy.needed / GIB, **remedy.values)
        console.print(f"{mark} {said}", width=WIDTH, markup=False)
    if not plan.fits and not any(remedy.enough for remedy in lower):
        console.print(text("plan.lower.nothing", language), width=WIDTH)
    return 0 if plan.fits else 1


def _plan_table(plan: planned.Plan, language: str) -> Table:
    """What is needed and what there is, with how we know."""

    def say(key: str, **values: object) -> str:
        return text(f"plan.{key}", language, **values)

    subject, machine = plan.subject, plan.machine
    table = Table(box=box.SIMPLE)
    table.add_column(say("column.what"))
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column(say("column.kind"), no_wrap=True)

    def row(key: str, size: float, kind: str = "derived", **values: object) -> None:
        table.add_row(
            say(f"row.{key}", **values), number(size / GIB, ".2f", language), say(f"kind.{kind}")
        )

    tokens = plan.caches // derived.cache_bytes(subject.config, half=subject.half)
    parts = plan.training.parts
    row("disk", subject.disk, "measured" if subject.here else "derived")
    row("weights", subject.weights)
    row("caches", plan.caches, tokens=tokens)
    row("adapter", plan.adapter)
    row("serving", plan.serving)
    table.add_section()
    row("base", parts["weights"], recipe=plan.recipe_name)
    row("learnt", sum(parts[name] for name in LEARNT))
    row("activations", parts["activations"])
    row("logits", parts["logits"])
    row("training", plan.training.total, length=plan.recipe.max_length)
    row("testing", plan.testing.total)
    table.add_section()
    row("beside", plan.serving + plan.learning)
    row("paused", max(plan.serving, plan.learning))
    table.add_section()
    row("total", machine.total, "measured" if machine.here else "claimed")
    row("room", machine.room, "measured" if machine.measured else "derived")
    return table


def _verdicts(plan: planned.Plan, language: str) -> list[str]:
    """What fits and what pauses, in sentences."""
    values = {
        "serving": plan.serving / GIB,
        "learning": plan.learning / GIB,
        "both": (plan.serving + plan.learning) / GIB,
        "room": plan.machine.room / GIB,
    }
    serves = "serves" if plan.serves else "serves_not"
    if not plan.learns:
        learns = "learns_not"
    elif plan.pauses:
        learns = "pauses_always" if plan.beside else "pauses"
    else:
        learns = "beside" if plan.beside else "beside_not"
    return [text(f"plan.says.{key}", language, **values) for key in (serves, learns)]


def print_derived(model: str, profile: str, language: str, console: Console) -> None:
    """Print what can be derived of a model on a machine. Raises ConfigError."""
    found = derived.table(derived.find(model), planned.named_profile(profile))
    names = {"model": found.model.name, "profile": found.profile.name}
    console.print(text("derived.title", language, **names), width=WIDTH, markup=False)
    console.print(_derived_table(found, language), width=WIDTH)
    notes = {
        "room": found.room / GB,
        "memory": found.profile.memory,
        "bandwidth": found.profile.bandwidth,
        "talk": derived.TALK,
    }
    console.print(text("derived.notes", language, **notes), width=WIDTH, markup=False)


def _derived_table(found: derived.Table, language: str) -> Table:
    """Both methods side by side."""

    def say(key: str, **values: object) -> str:
        return text(f"derived.{key}", language, **values)

    model = found.model
    table = Table(box=box.SIMPLE)
    table.add_column(text("plan.column.what", language))
    table.add_column(say("column.lora"), justify="right")
    table.add_column(say("column.qlora"), justify="right")
    table.add_column(text("plan.column.kind", language), no_wrap=True)
    kind = text("plan.kind.derived", language)
    count = number(model.parameters / 1e6, ".1f", language) + " M"
    table.add_row(say("row.parameters"), count, count, kind)
    full = _bytes(model.size("float32"), language)
    table.add_row(say("row.float32"), full, full, kind)
    for row in found.rows:
        cells = [_cell(row, method, language) for method in derived.METHODS]
        table.add_row(say(f"row.{row.key}"), *cells, kind)
    return table


def _cell(row: derived.Row, method: Method, language: str) -> str:
    value = row.values[method]
    said = number(value, ".1f", language) if row.unit == "rate" else _bytes(value, language)
    if row.fits is not None:
        said += " ✓" if row.fits[method] else " ✗"
    return said


def _bytes(size: float, language: str) -> str:
    return (
        number(size / GB, ".2f", language) + " GB"
        if size >= GB / 10
        else (number(size / 1e6, ".1f", language) + " MB")
    )
