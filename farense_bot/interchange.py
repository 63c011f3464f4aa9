"""Revisions to other programs and back, from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from config.settings import Settings
from config.texts import text
from engine import weights
from engine.plan import detect, prepare
from farense_bot.app import ensure_model
from training.exchange.exporting import Format, export
from training.exchange.importing import bring_in
from training.revisions import Revisions


@dataclass(slots=True)
class _Base:
    """The model of the settings, looked at without loading it."""

    name: str
    folder: Path
    fingerprint: str

    @classmethod
    def of(cls, settings: Settings, console: Console) -> _Base:
        name, folder = ensure_model(settings, console.print)
        config, files = weights.read_config(folder), weights.check(folder)
        return cls(name, folder, weights.fingerprint(config, files))


def export_revision(
    settings: Settings,
    name: str,
    form: Format,
    target: Path | None,
    *,
    console: Console,
    out: Console,
) -> None:
    """Write a revision for another program; prints the folder."""
    found = Revisions(settings.revisions)
    found.get(name)  # before a model is brought here for nothing
    base = _Base.of(settings, console) if form.needs_base else None
    revision = found.verify(name, base.fingerprint if base else None)
    prepare(detect())
    folder = target or Path(f"{revision.id}-{form}")
    out.print(str(export(revision, form, folder, base.folder if base else None)))


def import_revision(settings: Settings, folder: Path, console: Console, out: Console) -> None:
    """Make a PEFT folder a revision for the model of the settings; prints its name."""
    base = _Base.of(settings, console)
    revision = bring_in(Revisions(settings.revisions), folder, base, datetime.now(UTC))
    console.print(text("revisions.imported", settings.conversation.language, name=revision.id))
    out.print(revision.id)
