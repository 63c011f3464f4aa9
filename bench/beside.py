"""How long a fan waits for the first token while a night trains.

A fan asks every few seconds, and the same questions' moments are gone through twice: with nothing
else at work, and with a night's training child, which is held while the fan is answered just as
`training.night` does it.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.report import Figure, Target, figure, percentile, ratio
from bench.streams import Options, Ours, our_engine, questions
from bench.training import PERSONA, SUBJECTS, answer
from config.settings import EngineSettings, Settings
from training.examples import Example, Kind, ask, write_lines
from training.files import write
from training.job import JOB, Event, Progress, TrainJob
from training.planned import recipe_of
from training.process import run_job
from training.run import DATASET

GROUP = "First token while a training runs"
PAUSE = (1.5, 5.0)  # seconds between an answer and the fan's next question
ANSWER = 24  # tokens of it
EPOCHS = 1000  # more than there is time for
PATIENCE = 600.0


@dataclass(slots=True)
class Work:
    """What a training child has told so far."""

    steps: int = 0
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, event: Event) -> None:
        """Take in what it says."""
        if isinstance(event, Progress) and event.stage == "sft" and event.step:
            self.steps = event.step
            self.told.set()


async def beside(options: Options) -> list[Figure]:
    """Questions at the same moments without a training and with one."""
    waits: dict[str, list[list[float]]] = {"idle": [], "beside": []}
    steps: list[float] = []
    count = 8 if options.quick else 24
    async with our_engine(options.model, EngineSettings()) as ours:
        await ours.ask(next(iter(questions(1))), ANSWER)
        for number in range(1 if options.quick else 2):
            waits["idle"].append(await _talk(ours, count, number))
            async with _training(ours) as work:
                before = work.steps
                waits["beside"].append(await _talk(ours, count, number))
                steps.append(work.steps - before)
    return report(waits["idle"], waits["beside"], steps)


def report(idle: list[list[float]], busy: list[list[float]], steps: list[float]) -> list[Figure]:
    """The waits of each round as figures with the target that was set."""
    figures = []
    for name, rounds in (("engine idle", idle), ("a training at work", busy)):
        for percent in (50, 95):
            values = [percentile(waits, percent) for waits in rounds]
            figures.append(figure(GROUP, f"p{percent}, {name}", "s", values))
    pairs = [
        (percentile(one, 95), percentile(other, 95)) for one, other in zip(busy, idle, strict=True)
    ]
    note = f"{len(idle[0])} questions each, at the same moments"
    return [
        *figures,
        ratio(GROUP, "p95, training / idle", pairs, target=Target("≤", 2), note=note),
        figure(GROUP, "steps that the training made meanwhile", "", steps),
    ]


async def _talk(ours: Ours, count: int, seed: int) -> list[float]:
    """A fan's questions, some seconds apart: the wait for each first token."""
    chance = random.Random(seed)  # noqa: S311 (no secret)
    waits = []
    for turns in questions(count):
        await asyncio.sleep(chance.uniform(*PAUSE))
        waits.append((await ours.ask(turns, ANSWER)).first)
    return waits


@asynccontextmanager
async def _training(ours: Ours) -> AsyncIterator[Work]:
    """A night's training child that has begun to learn, ended afterwards."""

    def fans_chat() -> bool:
        status = ours.engine.status
        return bool(status.running or status.waiting)

    with tempfile.TemporaryDirectory() as name:
        folder, work = Path(name), Work()
        _write_job(ours, folder)
        running = asyncio.create_task(run_job(folder, work.note, fans_chat))
        begun = asyncio.create_task(work.told.wait())
        try:
            await asyncio.wait((running, begun), return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                yield work
            if running.done():
                raise RuntimeError(f"the training ended: {running.result()}")
        finally:
            for task in (running, begun):
                task.cancel()
            await asyncio.gather(running, begun, return_exceptions=True)


def _write_job(ours: Ours, folder: Path) -> None:
    """The job of a night, with more to do than there is time for."""
    recipe = recipe_of(Settings(), ours.folder)
    endless = recipe.model_copy(update={"sft": recipe.sft.model_copy(update={"epochs": EPOCHS})})
    lessons = [
        Example(str(number), Kind.TAUGHT, ask(f"What is known about {subject}?"), answer(subject))
        for number, subject in enumerate(SUBJECTS)
    ]
    (folder / DATASET).mkdir()
    for file, items in (("train", lessons), ("held_out", []), ("preferences", [])):
        write_lines(folder / DATASET / f"{file}.jsonl", items)
    job = TrainJob(
        model=ours.folder.name,
        folder=ours.folder,
        persona=PERSONA,
        recipe=endless,
        seconds=PATIENCE,
    )
    write(folder / JOB, job.model_dump_json().encode())
