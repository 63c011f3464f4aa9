"""A comparison from its first process to its result, gone on with where it was interrupted.

Each process has a folder in which its figures are written last: what has them is not done again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import psutil
import structlog

from bot.errors import ConfigError
from bot.prompts import Persona
from engine.models import usable_memory
from engine.plan import detect
from engine.weights import read_config
from training import evaluation, files, memory, suites
from training.compare import machine, measure
from training.compare.bases import Prepared
from training.compare.data import HELD_OUT, TRAIN, Data
from training.compare.energy import Meter
from training.compare.measure import Found, Heard
from training.compare.sides import Entry, Run, Step, runs, steps
from training.compare.values import FILE, Agreement, Comparison, Method, Mode, Side
from training.examples import to_lines
from training.job import JOB, Ended, EvaluateJob, Event, Job, Progress, ServeJob, TrainJob
from training.pause import forecast
from training.process import last_words, run_job
from training.run import CHECKPOINTS, DATASET, RESULT

log = structlog.get_logger(__name__)

IDENTITY, FOUND = "contest.json", "found.json"
NO_LIMIT = 1e7  # seconds: each trains to its end
QUESTIONS, QUICK_QUESTIONS = 24, 8
PROBES, ROUNDS, QUICK_ROUNDS = 8, 3, 2
QUICK_CASES = 3  # of each suite
COPIES = 8  # of an adapter's weights in two checkpoints: optimizer and best ones too
SPARE = 256 * 2**20  # bytes of disk for everything else
GIB = 2**30

Child = Callable[[Path, Callable[[Event], None]], Ended]
Reason = tuple[str, dict[str, str | float]]  # why a side is left out: a text and its values


class Watcher(Protocol):
    """Whoever shows how far it is."""

    def begin(self, step: Step, number: int, total: int) -> None:
        """A process begins, or was done before."""

    def hear(self, event: Event) -> None:
        """What a process says."""


@dataclass(frozen=True)
class Contest:
    """All that decides what is measured."""

    model: str
    profile: str
    bases: Mapping[Method, Prepared]
    sides: tuple[Entry, ...]
    data: Data
    persona: str
    context: int
    quick: bool
    repetitions: int

    @cached_property
    def id(self) -> str:
        """Equal only where the figures may stand beside each other.

        How often each is measured is not in it: an interrupted one may end with fewer.
        """
        parts = {
            "bases": {method: base.fingerprint for method, base in self.bases.items()},
            "sides": {side.name: side.setting.recipe.model_dump() for side in self.sides},
            "data": self.data.digest,
            "persona": Persona.load(self.persona).version,
            "rest": [self.profile, self.context, self.quick],
            "machine": machine.facts(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def place_in(root: Path, contest: Contest, now: datetime) -> tuple[Path, bool]:
    """Where a comparison is made among others, and whether it was begun before."""
    for folder in sorted(root.glob(f"*-{contest.id}")):
        if not (folder / FILE).is_file():
            return folder, True
    return root / f"{now:%Y%m%d-%H%M%S}-{contest.id}", False


def place_at(folder: Path, contest: Contest) -> tuple[Path, bool]:
    """The same in a folder that somebody chose. Raises ConfigError where another thing is there."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder, False
    try:
        begun = json.loads((folder / IDENTITY).read_bytes()) == contest.id
    except (OSError, ValueError):
        begun = False
    if not begun or (folder / FILE).is_file():
        raise ConfigError("error.compare_folder", path=folder)
    return folder, True


def finish(folder: Path, comparison: Comparison) -> None:
    """Write the result: from now on the comparison is whole, and the next one another."""
    files.write(folder / FILE, comparison.model_dump_json(indent=1).encode())


def check_disk(contest: Contest, place: Path) -> None:
    """Whether all adapters will have room. Raises ConfigError."""
    sizes = [
        memory.adapter_bytes(
            memory.Model.of(read_config(contest.bases[run.method].folder)), run.recipe
        )
        for run in set(runs(contest.sides).values())
    ]
    needed = contest.repetitions * sum(sizes) + COPIES * max(sizes) + SPARE
    there = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ConfigError(
            "error.compare_disk", needed=round(needed / GIB, 1), free=round(free / GIB, 1)
        )


def in_child(folder: Path, on_event: Callable[[Event], None]) -> Ended:
    """Do the job in a folder in a process of its own."""
    return asyncio.run(run_job(folder, on_event, lambda: False))


class _Ear:
    """Hears a process, and if so wished asks for its energy from when it has loaded."""

    def __init__(self, watch: Watcher, *, metered: bool) -> None:
        self.heard: list[Heard] = []
        self._watch = watch
        self._metered = metered
        self._meter: Meter | None = None

    def __call__(self, event: Event) -> None:
        self.heard.append((time.monotonic(), event))
        loaded = isinstance(event, Progress) and event.stage == "load" and event.step == 1
        if loaded and self._metered:
            self._meter = Meter()
        self._watch.hear(event)

    def end(self) -> float | None:
        """The joules that it took."""
        return self._meter.end() if self._meter else None


class Runner:
    """Makes one comparison."""

    def __init__(
        self, contest: Contest, folder: Path, watch: Watcher, child: Child = in_child
    ) -> None:
        self._contest = contest
        self._folder = folder
        self._watch = watch
        self._child = child
        self._runs = runs(contest.sides)
        self._found: dict[str, list[Found]] = {run.name: [] for run in self._runs.values()}
        self._left_out: dict[str, Reason] = {}

    def run(self) -> Comparison:
        """Do what is left to do."""
        files.write(self._folder / IDENTITY, files.to_json(self._contest.id))
        files.write(self._folder / HELD_OUT, to_lines(self._contest.data.held_out))
        everything = list(steps(self._contest.sides, self._contest.repetitions))
        for number, step in enumerate(everything):
            self._watch.begin(step, number, len(everything))
            if step.run.name not in self._left_out:
                self._do(step)
        return self._comparison()

    # Processes

    def _do(self, step: Step) -> None:
        """One process, unless its figures are there; one that fails leaves its side out."""
        place = self._folder / step.name
        if (place / FOUND).is_file():
            found = Found.model_validate_json((place / FOUND).read_bytes())
            self._found[step.run.name].append(found)
        elif reason := self._prepare(step, place) or self._measure(step, place):
            self._left_out[step.run.name] = reason

    def _prepare(self, step: Step, place: Path) -> Reason | None:
        """Write the job's folder, and say why a training would not fit into memory."""
        job = self._job(step)
        files.write(place / JOB, job.model_dump_json().encode())
        if not isinstance(job, TrainJob):
            return None
        shutil.rmtree(place / RESULT, ignore_errors=True)  # its figures were lost
        for name, part in self._texts().items():
            files.write(place / DATASET / name, part)
        return _no_room(job, place) if step.repetition == 1 else None

    def _measure(self, step: Step, place: Path) -> Reason | None:
        fresh = step.task == "train" and not (place / CHECKPOINTS).exists()
        ear = _Ear(self._watch, metered=fresh)
        try:
            ended = self._child(place, ear)
        finally:
            joules = ear.end()
        if not ended.ok:
            log.warning("left out", step=step.name, reason=ended.reason, said=last_words(place))
            return f"compare.left_out.{ended.reason or 'fault'}", {"detail": ended.detail}
        found = self._read(step, place, ear.heard, joules)
        files.write(place / FOUND, found.model_dump_json(indent=1).encode())
        self._found[step.run.name].append(found)
        return None

    def _read(self, step: Step, place: Path, heard: list[Heard], joules: float | None) -> Found:
        if step.task == "train":
            result = json.loads((place / RESULT / "result.json").read_bytes())
            return measure.trained(heard, result, step.run.recipe, joules)
        if step.task == "serve":
            return measure.served(place)
        return measure.evaluated(evaluation.read(place), step.run.name)

    def _job(self, step: Step) -> Job:
        contest, base = self._contest, self._contest.bases[step.run.method]
        common: dict[str, Any] = {
            "model": base.name,
            "folder": base.folder,
            "persona": contest.persona,
            "context": contest.context,
        }
        if step.task == "train":
            return TrainJob(**common, recipe=step.run.recipe, seconds=NO_LIMIT)
        adapter = self._adapter(step.run, step.repetition)
        if step.task == "evaluate":
            limit = QUICK_CASES if contest.quick else None
            return EvaluateJob(**common, revisions={step.run.name: adapter}, limit=limit)
        once = step.repetition == 1  # what does not vary
        questions = self._questions() if once else ()
        held_out = self._folder / HELD_OUT if once else None
        return ServeJob(
            **common,
            adapter=adapter,
            probes=_asked("general", PROBES),
            rounds=QUICK_ROUNDS if contest.quick else ROUNDS,
            questions=questions,
            held_out=held_out,
        )

    def _questions(self) -> tuple[str, ...]:
        return _asked(None, QUICK_QUESTIONS if self._contest.quick else QUESTIONS)

    def _adapter(self, run: Run, repetition: int) -> Path:
        return self._folder / Step("train", run, repetition).name / RESULT

    def _texts(self) -> dict[str, bytes]:
        """A training's dataset. It holds nothing out: what is timed are steps and nothing else."""
        train = to_lines(self._contest.data.train)
        return {TRAIN: train, HELD_OUT: b"", "preferences.jsonl": b""}

    # The result

    def _comparison(self) -> Comparison:
        contest = self._contest
        sides = tuple(self._side(entry) for entry in contest.sides)
        return Comparison(
            created_at=datetime.now(UTC),
            model=contest.model,
            profile=contest.profile,
            quick=contest.quick,
            seed=contest.sides[0].setting.recipe.seed,
            repetitions=contest.repetitions,
            machine=machine.facts(),
            rows=len(contest.data.train),
            held_out=len(contest.data.held_out),
            dataset=contest.data.digest,
            sides=sides,
            agreements=tuple(_agreements(sides)),
        )

    def _side(self, entry: Entry) -> Side:
        run, base = self._runs[entry.name], self._contest.bases[entry.method]
        found = self._found[run.name]
        seen = next((one.computes_in for one in found if one.computes_in), None)
        side = Side(
            method=entry.method,
            mode=entry.mode,
            settings=entry.setting.name,
            recipe=entry.setting.recipe,
            base=base.described(seen),
        )
        if run.name in self._left_out:
            key, values = self._left_out[run.name]
            return side.model_copy(update={"left_out": key, "left_out_values": values})
        return measure.fill(side, found, base.folder, self._adapter(run, 1))


def _agreements(sides: tuple[Side, ...]) -> list[Agreement]:
    modes: tuple[Mode, ...] = ("recommended", "same")
    pairs = [(mode, [side for side in sides if side.mode == mode]) for mode in modes]
    return [
        measure.agreement(mode, *both)
        for mode, both in pairs
        if len(both) == 2 and all(side.answers for side in both)  # noqa: PLR2004 (a pair)
    ]


def _asked(suite: str | None, count: int) -> tuple[str, ...]:
    """Questions of the gate's suites, of one or of all."""
    asked = [
        case.question
        for one in suites.load()
        for case in one.cases
        if case.question and suite in {None, one.name}
    ]
    return suites.spread(asked, count)


def _no_room(job: TrainJob, place: Path) -> Reason | None:
    """Why a training does not fit into what is free, with the numbers."""
    estimated, now = forecast(job, place), psutil.virtual_memory()
    free = usable_memory(now.available, now.total, detect().backend)
    if memory.fits(estimated, free):
        return None
    values = {"needed": round(estimated.total / GIB, 1), "free": round(free / GIB, 1)}
    return "compare.left_out.room", dict(values)
