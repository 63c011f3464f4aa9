"""Rounding a model's weights from the command line, with size and loss before and after."""

from __future__ import annotations

import gc
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bot.errors import ModelError
from bot.prompts import Persona
from config.settings import Settings
from config.texts import number, text
from engine import models, quantize, weights
from engine.plan import detect, prepare
from farense_bot.app import ensure_model
from training import suites
from training.examples import Example, Kind

MB = 1_000_000
ANSWERS = 32  # whose loss is taken


def quantise_now(
    settings: Settings, target: Path | None, scheme: quantize.Scheme, console: Console, out: Console
) -> None:
    """Make a rounded model of the one in the settings, and show what that costs."""
    name, source = ensure_model(settings, console.print)
    if quantize.is_quantised(source):
        raise ModelError("error.quantise_twice", path=source)
    models.inspect(source, detect())  # its loss is taken, so that it must fit
    place = target or settings.models / f"{source.name}-{scheme.name}"
    console.print(_said(settings, "quantise.writing", name=name, path=place))
    made = quantize.quantise(source, place, scheme)
    console.print(_said(settings, "quantise.asking"))
    out.print(_table(settings, source, made))


def dequantise_now(settings: Settings, target: Path | None, console: Console, out: Console) -> None:
    """Make a 16-bit model of the one in the settings."""
    name, source = ensure_model(settings, console.print)
    place = target or settings.models / f"{source.name}-16bit"
    console.print(_said(settings, "quantise.writing", name=name, path=place))
    out.print(str(quantize.dequantise(source, place)))


def loss(settings: Settings, folder: Path) -> float:
    """What a model makes of the suites' right answers, in nats a token; it is let go again."""
    compute = prepare(detect())
    import mlx.core as mx

    from training.asking import Interviewer

    loaded = models.load(folder, compute)
    persona = Persona.load(settings.conversation.persona)
    asked = Interviewer(loaded, loaded.model, persona, settings.engine.context, loaded.fingerprint)
    found = asked.losses(list(_right_answers()))
    del loaded, asked
    gc.collect()
    mx.clear_cache()
    return sum(found.values()) / len(found)


def _right_answers() -> list[Example]:
    """Some of what no model here was trained on, and has a right answer."""
    known = [
        Example(f"{suite.name}:{case.id}", Kind.FACT, case.script, case.answer)
        for suite in suites.load()
        for case in suite.cases
        if case.answer is not None
    ]
    return list(suites.spread(known, ANSWERS))


def _table(settings: Settings, source: Path, made: Path) -> Table:
    language = settings.conversation.language
    table = Table("", *(text(f"quantise.{side}", language) for side in ("before", "after")))
    folders = (source, made)
    sizes = [sum(file.size for file in weights.check(folder)) / MB for folder in folders]
    rows = {
        "size": [f"{number(size, '.0f', language)} MB" for size in sizes],
        "bits": [number(quantize.bits_per_weight(folder), ".2f", language) for folder in folders],
        "loss": [number(loss(settings, folder), ".3f", language) for folder in folders],
    }
    for key, values in rows.items():
        table.add_row(text(f"quantise.row.{key}", language), *values)
    table.add_row(text("quantise.row.folder", language), source.name, str(made))
    return table


def _said(settings: Settings, key: str, **values: object) -> str:
    return text(key, settings.conversation.language, **values)
