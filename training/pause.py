"""Whether a child fits into memory beside the engine, and the engine's pause where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import structlog

from bot.errors import FarenseError
from bot.prompts import Persona
from config.settings import Settings
from engine.plan import detect
from training import evaluation, memory
from training.examples import Example, Preference, read_lines
from training.job import Estimate, Job, TrainJob
from training.revisions import Revisions
from training.run import DATASET, RESULT
from training.serving import LearningEngine

log = structlog.get_logger(__name__)

MIB, GIB = 2**20, 2**30
CHARACTERS = 2  # in a token: Portuguese has 2.3 in a vocabulary made for English, more elsewhere


@asynccontextmanager
async def room_for(
    job: Job, folder: Path, *, engine: LearningEngine, settings: Settings, revisions: Revisions
) -> AsyncIterator[None]:
    """Have the memory that a job in a folder needs: the engine is paused where both do not fit.

    Whatever becomes of the block, the engine is back afterwards. Raises what loading it raises.
    """
    caches = settings.engine.cache_mb * MIB - engine.status.cache_bytes
    if not await asyncio.to_thread(_needs_pause, job, folder, settings.learning.pause, caches):
        yield
        return
    expected = await asyncio.to_thread(_took, job, engine.base.fingerprint, revisions)
    try:
        await engine.pause(expected)
        yield
    finally:
        await engine.resume()


def _needs_pause(job: Job, folder: Path, choice: memory.Choice, caches: int) -> bool:
    if isinstance(job, TrainJob) and (folder / RESULT).is_dir():
        return False  # done before a crash
    try:
        estimated = forecast(job, folder)
    except (FarenseError, OSError, ValueError, LookupError) as fault:
        log.warning("memory not foretold", job=job.task, fault=repr(fault))
        return choice == "always"  # the child will say what is wrong
    now, backend = psutil.virtual_memory(), detect().backend
    room = memory.beside(
        total=now.total,
        available=now.available,
        backend=backend,
        engine=estimated.parts["weights"],
        caches=max(0, caches),
    )
    pause = memory.must_pause(choice, estimated, room)
    figures = {"needed": round(estimated.total / GIB, 2), "room": round(room / GIB, 2)}
    log.info("memory", job=job.task, pause=pause, **figures)
    return pause


def forecast(job: Job, folder: Path) -> Estimate:
    """What a job will need, from its files alone; on the safe side. Raises ModelError and more."""
    plan = detect()
    if not isinstance(job, TrainJob):
        return memory.forecast_evaluation(job.folder, plan)
    dataset = folder / DATASET
    texts: list[Example | Preference] = [
        *read_lines(dataset / "train.jsonl", Example),
        *read_lines(dataset / "held_out.jsonl", Example),
        *read_lines(dataset / "preferences.jsonl", Preference),
    ]
    own = max((_characters(one) for one in texts), default=0) // CHARACTERS
    shared = len(Persona.load(job.persona).text) // CHARACTERS
    longest = min(job.recipe.max_length, shared + own)
    return memory.forecast(job.folder, plan, job.recipe, shared=shared, longest=longest)


def _characters(one: Example | Preference) -> int:
    return len(one.answer) + sum(len(turn.text) for turn in one.turns)


def _took(job: Job, fingerprint: str, revisions: Revisions) -> float | None:
    """Seconds that the same took the last time on this base, where it left a revision."""
    for revision in revisions.all():
        if revision.metadata["base"]["fingerprint"] != fingerprint:
            continue
        try:
            if isinstance(job, TrainJob):
                return float(revision.metadata["training"]["seconds"])
            return evaluation.read(revision.folder).seconds
        except (OSError, ValueError, LookupError):
            continue
    return None
