"""`compare` in the terminal: LoRA and QLoRA measured here, with a bar, and gone on with later."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from config.settings import Settings
from config.texts import text
from engine import models, weights
from farense_bot.app import ensure_model, state_folder
from farense_bot.bars import bars
from training.compare import contest, report, sides
from training.compare.bases import prepare_bases
from training.compare.contest import Contest, Runner
from training.compare.data import QUICK, QUICK_HELD_OUT, Data, club, fitting, own
from training.job import Event
from training.job import Progress as Step
from training.planned import profile_for

REPETITIONS, QUICK_REPETITIONS = 3, 1
FOLDER = "comparisons"
INTERRUPTED = 130


class _Bars:
    """How many processes are done, and how far the present one is."""

    def __init__(self, progress: Progress, repetitions: int, language: str) -> None:
        self._progress = progress
        self._repetitions = repetitions
        self._language = language
        self._all = progress.add_task("⚖️", total=None)
        self._one = progress.add_task("", total=None)

    def begin(self, step: sides.Step, number: int, total: int) -> None:
        """Name the process."""
        said = text(
            "compare.step",
            self._language,
            side=text(f"compare.side.{step.run.method}_{step.run.mode}", self._language),
            what=text(f"compare.task.{step.task}", self._language),
            repetition=step.repetition,
            repetitions=1 if step.task == "evaluate" else self._repetitions,
        )
        self._progress.update(self._all, description=said, completed=number, total=total)
        self._progress.reset(self._one, total=None)

    def hear(self, event: Event) -> None:
        """Move the second bar."""
        if isinstance(event, Step):
            said = text(f"compare.stage.{event.stage}", self._language)
            self._progress.update(
                self._one, description=said, completed=event.step, total=event.steps
            )


def compare_now(
    settings: Settings,
    *,
    quick: bool,
    dequantise: bool,
    original: bool,
    data: Path | None,
    out: Path | None,
    repetitions: int | None,
    console: Console,
    rows: int | None = None,
) -> int:
    """Compare both methods on this machine and write the report; 0, or 130 when interrupted.

    `original` takes the settings of the document that the comparison began from; `data` is a
    folder with a dataset, and `rows` are texts to train on at most.
    """
    language = settings.conversation.language
    with state_folder(settings):
        texts = own(data) if data else club()
        made = _contest(
            settings,
            console,
            quick=quick,
            dequantise=dequantise,
            original=original,
            texts=texts,
            rows=rows,
            repetitions=repetitions or (QUICK_REPETITIONS if quick else REPETITIONS),
        )
        place, begun = _place(settings, made, out)
        contest.check_disk(made, place)
        said = text(f"compare.{'resumed' if begun else 'begun'}", language, path=place)
        console.print(said, markup=False, soft_wrap=True)
        try:
            with bars(console) as progress:
                found = Runner(made, place, _Bars(progress, made.repetitions, language)).run()
        except KeyboardInterrupt:
            console.print(text("compare.stopped", language))
            return INTERRUPTED
        written = report.write(place, found)
        contest.finish(place, found)
        console.print(report.table(found, language), soft_wrap=False)
        console.print(text("compare.done", language, path=written), markup=False, soft_wrap=True)
    return 0


def _contest(
    settings: Settings,
    console: Console,
    *,
    quick: bool,
    dequantise: bool,
    original: bool,
    texts: Data,
    rows: int | None,
    repetitions: int,
) -> Contest:
    language = settings.conversation.language
    profile = profile_for(settings)
    name, folder = ensure_model(settings, console.print)
    console.print(text("compare.bases", language))
    embedded = models.resolve(settings.engine.model, settings.models).kind is models.Kind.EMBEDDED
    bases = prepare_bases(name, folder, settings.models, dequantise=dequantise or embedded)
    size = weights.parameters(folder)
    recommended = sides.of_original() if original else sides.of_profile(profile, size)
    entries = sides.entries(recommended, quick=quick)
    lengths = [entry.setting.recipe.max_length for entry in entries]
    persona, context = settings.conversation.persona, settings.engine.context
    shared = fitting(texts, folder, persona=persona, context=context, lengths=lengths)
    if longer := len(texts.train) - len(shared.train):
        said = text("compare.longer", language, n=longer, length=min(lengths))
        console.print(said, soft_wrap=True)
    return Contest(
        model=name,
        profile=profile.name,
        bases=bases,
        sides=entries,
        data=_part(shared, rows, quick=quick),
        persona=persona,
        context=context,
        quick=quick,
        repetitions=repetitions,
    )


def _part(texts: Data, rows: int | None, *, quick: bool) -> Data:
    """What is trained on; a quick comparison takes a few of it."""
    most = min(rows or len(texts.train), QUICK if quick else len(texts.train))
    return texts.part(most, QUICK_HELD_OUT if quick else len(texts.held_out))


def _place(settings: Settings, made: Contest, out: Path | None) -> tuple[Path, bool]:
    if out:
        return contest.place_at(out.expanduser().absolute(), made)
    return contest.place_in(settings.home / FOLDER, made, datetime.now(UTC).astimezone())
