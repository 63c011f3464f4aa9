"""Learning from the command line: train, evaluate, and look at revisions."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress
from rich.table import Table

from bot.domain import Destination, Post
from bot.errors import ConfigError
from config.settings import Settings
from config.texts import number, text
from farense_bot.app import state_folder
from farense_bot.bars import bars
from farense_bot.offline import Base, run_night
from training import evaluation, files, report, suites
from training.job import JOB, Estimate, EvaluateJob, Event
from training.job import Progress as Step
from training.process import run_job
from training.revisions import BASE, RevisionError, Revisions

GIB = 2**30


class _Terminal:
    """Shows a night in the terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def announce(self, _to: Destination, post: Post) -> str | None:
        """Print a message."""
        self._console.print(Markdown(post.text))
        return None

    async def revise(self, _to: Destination, _message_id: str, _post: Post) -> bool:
        """The bar shows how far it is."""
        return False


class _Bar:
    """A live bar fed by a child's events."""

    def __init__(self, progress: Progress, language: str) -> None:
        self._progress = progress
        self._language = language
        self._task = progress.add_task(text("night.progress.begin", language), total=None)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Estimate):
            said = text("night.estimate", self._language, estimate=event.total / GIB)
            self._progress.console.print(said)
        if isinstance(event, Step):
            key = f"night.progress.{event.stage}"
            said = text(key, self._language, step=event.step, steps=event.steps)
            loss = "" if event.loss is None else " " + number(event.loss, ".3f", self._language)
            self._progress.update(
                self._task, description=said + loss, completed=event.step, total=event.steps
            )


def train_now(settings: Settings, console: Console) -> int:
    """Run a night in this terminal; 0 unless it failed."""

    async def night() -> bool:
        base = Base(settings, console.print)
        with bars(console) as progress:
            bar = _Bar(progress, settings.conversation.language)
            ending, told = await run_night(settings, base, _Terminal(console), bar)
        console.print(Markdown(told))
        return ending.state != "failed"

    with state_folder(settings):
        return 0 if asyncio.run(night()) else 1


def evaluate_now(
    settings: Settings, revision: str | None, suite: str | None, console: Console, out: Console
) -> int:
    """Put a revision and the base to the test; prints the figures. 0 when it could."""
    own = [name for name in suites.LENGTHS if name not in suites.FROM_FANS]
    if suite is not None and suite not in own:
        raise ConfigError("error.suite", name=suite, known=", ".join(own))
    base, found = Base(settings, console.print), Revisions(settings.revisions)
    name = revision or found.current
    chosen = None if name == BASE else found.verify(name, base.fingerprint).folder
    language = settings.conversation.language
    with tempfile.TemporaryDirectory(dir=settings.home) as place:
        folder = Path(place)
        job = EvaluateJob(
            model=base.name,
            folder=base.folder,
            persona=settings.conversation.persona,
            revisions={BASE: None, **({name: chosen} if chosen else {})},
            known=settings.revisions / "evaluated.json",
            context=settings.engine.context,
        )
        files.write(folder / JOB, job.model_dump_json().encode())
        with bars(console) as progress:
            ended = asyncio.run(run_job(folder, _Bar(progress, language), lambda: False))
        if not ended.ok:
            console.print(
                text(f"night.reason.{ended.reason or 'fault'}", language, detail=ended.detail)
            )
            return 1
        out.print(_marks(evaluation.read(folder), suite, language))
    return 0


def _marks(found: evaluation.Evaluation, only: str | None, language: str) -> Table:
    """How many cases of each suite each revision passed."""
    table = Table("", *found.revisions)
    asked = next(iter(found.revisions.values())).suites
    for name in [name for name in asked if only in {None, name}]:
        row = []
        for revision in found.revisions.values():
            replies = revision.suites[name].replies
            row.append(f"{sum(reply.passed for reply in replies)}/{len(replies)}")
        table.add_row(text(f"gate.suite.{name}", language), *row)
    return table


def list_revisions(settings: Settings, console: Console) -> None:
    """A table of the revisions."""
    found, language = Revisions(settings.revisions), settings.conversation.language
    table = Table()
    for column in ("name", "made", "base", "loss"):
        table.add_column(text(f"revisions.column.{column}", language))
    table.add_column("")
    for revision in found.all():
        stages = revision.metadata["training"]["stages"]
        held_out = stages.get("sft", {}).get("held_out", {})
        table.add_row(
            revision.id,
            f"{revision.created_at.astimezone():%Y-%m-%d %H:%M}",
            revision.metadata["base"]["name"],
            number(held_out["best"], ".3f", language) if held_out else "",
            "●" if revision.id == found.current else ("" if revision.promoted else "✋"),
        )
    console.print(table if table.rows else text("revisions.none", language))
    name = text("revision.base", language) if found.current == BASE else found.current
    console.print(text("revisions.now", language, name=name))


def show_revision(settings: Settings, name: str, console: Console) -> None:
    """The report of one revision, or its metadata where there is none."""
    revision = Revisions(settings.revisions).get(name)
    path = revision.folder / report.FILE
    if path.is_file():
        console.print(Markdown(path.read_text("utf-8")))
    else:
        console.print_json(json.dumps(dict(revision.metadata)))


def use_revision(settings: Settings, name: str, console: Console) -> None:
    """Point at a revision after looking at it."""
    found = Revisions(settings.revisions)
    if name != BASE:
        found.verify(name)
    found.use(name)
    console.print(text("revisions.now", settings.conversation.language, name=name))


def roll_back(settings: Settings, console: Console) -> None:
    """Point at the revision before this one."""
    name = Revisions(settings.revisions).roll_back()
    console.print(text("revisions.now", settings.conversation.language, name=name))


def verify_revisions(settings: Settings, name: str | None, console: Console) -> int:
    """Look at one revision or all; 0 when all are sound."""
    found, language = Revisions(settings.revisions), settings.conversation.language
    bad = 0
    for one in [name] if name else [revision.id for revision in found.all()]:
        try:
            found.verify(one)
        except RevisionError as error:
            bad += 1
            console.print("✗ " + text(error.key, language, **error.values))
        else:
            console.print("✓ " + text("revisions.sound", language, name=one))
    return 1 if bad else 0
