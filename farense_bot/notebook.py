"""A workshop for the notebook: a state folder of its own, and a night in steps that can be seen.

Everything is done by the parts that the bot itself is made of; here they are only put in a row, and
their results shown as a notebook likes to: tables of rich, Markdown, a curve that grows.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bot.domain import Chat, Destination, Fan, Platform, Post, Source
from bot.learning import LessonKind, LessonState
from bot.prompts import Persona
from bot.rules import Grant
from bot.store import Store
from config.settings import load_settings
from config.texts import number, text
from engine import lora, models, quantize, weights
from engine.plan import detect, prepare
from farense_bot.app import state_folder
from farense_bot.offline import Base, run_night
from farense_bot.planning import print_plan
from training import curve, report
from training.examples import Example, ask
from training.exchange import exporting
from training.gather import gather
from training.job import Event, Progress
from training.planned import fitted
from training.revisions import BASE, Revisions

ADMIN = Fan(Platform.CONSOLE, "notebook")
PACE = 1.0  # seconds between two drawings of the curve
ANSWER = 48  # tokens
MB = 1_000_000


class Markdown:
    """A text that a notebook shows formatted."""

    def __init__(self, source: str) -> None:
        self.source = source

    def _repr_markdown_(self) -> str:
        return self.source

    def __str__(self) -> str:
        return self.source


class Workshop:
    """A model, a folder for what is learnt, and whoever opens the notebook as the admin."""

    def __init__(
        self, model: str = "embedded", folder: Path | str = "oficina", language: str = "pt"
    ) -> None:
        given = load_settings(
            Path(folder),
            engine={"model": model},
            admins=(ADMIN.key,),
            learning={"enabled": False},
            conversation={"language": language},
        )
        self.settings = fitted(given)
        with state_folder(self.settings):
            self._base = Base(self.settings, print)
        self._language = language

    def model(self) -> Table:
        """The base on disk, beside what it would be in 16 and 32 bits."""
        size = weights.parameters(self._base.folder)
        disk = sum(file.size for file in weights.check(self._base.folder))
        table = self._table("what", "bits", "size")
        bits = quantize.bits_per_weight(self._base.folder)
        for key, each, held in (
            ("float32", 32.0, size * 4),
            ("bfloat16", 16.0, size * 2),
            ("here", bits, disk),
        ):
            said = text(f"notebook.{key}", self._language, name=self._base.name)
            table.add_row(said, self._number(each, ".1f"), f"{self._number(held / MB, '.0f')} MB")
        return table

    def plan(self) -> None:
        """What fits into this machine's memory, and what pauses."""
        print_plan(self.settings, None, Console())

    async def teach(self, *lessons: tuple[str, str]) -> Table:
        """Teach answers to questions, and approve them, as a fan and an admin do in a chat."""
        chat, now = Chat(Platform.CONSOLE, ADMIN.id), datetime.now(UTC)
        source, grant = Source.CONSOLE, Grant()
        table = self._table("question", "answer")
        async with Store.open(self.settings.database) as store:
            await store.set_consent(ADMIN, given=True, source=source, grant=grant, now=now)
            for question, answer in lessons:
                lesson = await store.add_lesson(
                    LessonKind.TAUGHT,
                    ADMIN,
                    chat,
                    source=source,
                    question=question,
                    answer=answer,
                    answer_id=None,
                    state=LessonState.WAITING,
                    now=now,
                )
                await store.confirm_lesson(lesson.id, wanted=True)
                await store.decide_lesson(lesson.id, LessonState.APPROVED, ADMIN.key, now)
                table.add_row(question, answer)
        return table

    async def dataset(self) -> Table:
        """What the night will learn from, by kind, with one example of each."""
        async with Store.open(self.settings.database) as store:
            made = await gather(store, self.settings, datetime.now(UTC))
        table = self._table("kind", "count", "question", "answer")
        kinds: dict[str, list[Example]] = {}
        for example in made.train:
            kinds.setdefault(example.kind, []).append(example)
        for kind, examples in kinds.items():
            first = examples[0]
            said = text(f"notebook.kind.{kind}", self._language)
            table.add_row(said, str(len(examples)), first.turns[-1].text, first.answer)
        return table

    async def night(self) -> Markdown:
        """Train, put it to the test, and take it into service if it is better; shows the curve."""
        with state_folder(self.settings):
            _, told = await run_night(self.settings, self._base, _Nobody(), _Live(self._language))
        return Markdown(told)

    def report(self) -> Markdown:
        """What the test found, with its numbers."""
        newest = self._revisions.all()[0]
        return Markdown((newest.folder / report.FILE).read_text("utf-8"))

    def answers(self, *questions: str) -> Table:
        """What the base says and what the newest revision says, greedily."""
        newest = self._revisions.all()[0]
        table = self._table("question", "before", "after")
        for row in zip(questions, *self._spoken(newest.folder, questions), strict=True):
            table.add_row(*row)
        return table

    def serving(self) -> str:
        """Which revision the bot would serve."""
        name = self._revisions.current
        name = text("revision.base", self._language) if name == BASE else name
        return text("revisions.now", self._language, name=name)

    def export(self, form: str) -> str:
        """Write the newest revision for another program, beside the workshop; returns where."""
        newest = self._revisions.all()[0]
        target = self.settings.home / f"{newest.id}-{form}"
        prepare(detect())
        return str(exporting.export(newest, exporting.Format(form), target, self._base.folder))

    def _spoken(self, folder: Path, questions: Sequence[str]) -> Iterator[list[str]]:
        """Answers of the base, then of a revision on it; all is let go again afterwards."""
        compute = prepare(detect())
        import mlx.core as mx

        from training.asking import Interviewer, Question

        persona = Persona.load(self.settings.conversation.persona)
        loaded = models.load(self._base.folder, compute)
        served = lora.with_adapter(loaded, *lora.read_adapter(folder))
        asked = [Question(one, ask(one), ANSWER) for one in questions]
        for digest, model in (("before", loaded.model), ("after", served)):
            context = self.settings.engine.context
            interviewer = Interviewer(loaded, model, persona, context, digest)
            said = {name: spoken.text for name, spoken in interviewer.ask(asked)}
            yield [said[one] for one in questions]
        del loaded, served, model, interviewer
        gc.collect()
        mx.clear_cache()

    @property
    def _revisions(self) -> Revisions:
        return Revisions(self.settings.revisions)

    def _table(self, *columns: str) -> Table:
        return Table(*(text(f"notebook.column.{name}", self._language) for name in columns))

    def _number(self, value: float, form: str) -> str:
        return number(value, form, self._language)


class _Nobody:
    """Reads no messages: the notebook shows how the night ends."""

    async def announce(self, _to: Destination, _post: Post) -> str | None:
        """Say nothing."""
        return None

    async def revise(self, _to: Destination, _message_id: str, _post: Post) -> bool:
        """Say nothing."""
        return False


class _Live:
    """Draws the curve again while it grows, and how far the night is under it."""

    def __init__(self, language: str) -> None:
        self._language = language
        self._history: dict[str, list[dict[str, float]]] = {"sft": [], "kto": []}
        self._drawn = 0.0
        self._picture: Any = None
        self._line: Any = None

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Progress):
            return
        if event.stage in self._history and event.loss is not None:
            point = {"step": float(event.step), "loss": event.loss}
            point |= {} if event.held_out is None else {"held_out": event.held_out}
            self._history[event.stage].append(point)
        if time.monotonic() - self._drawn > PACE or event.step == event.steps:
            self._draw(event)

    def _draw(self, event: Progress) -> None:
        from IPython.display import SVG, display

        self._drawn = time.monotonic()
        key = f"night.progress.{event.stage}"
        line = Markdown(text(key, self._language, step=event.step, steps=event.steps))
        picture = SVG(curve.drawing(self._history, self._language))
        if self._line is None:
            self._picture = display(picture, display_id=True)
            self._line = display(line, display_id=True)
        else:
            self._picture.update(picture)
            self._line.update(line)
