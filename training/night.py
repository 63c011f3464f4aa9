"""One night: from what fans gave to a revision in service, or to the reason why not.

Every stage leaves its result in the night's folder, so that a night whose process died goes on
where it was. Until the last stage nothing that serves is touched.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from bot.errors import FarenseError
from bot.learning import Night, NightState, Stage
from bot.store import Store
from config.settings import Settings
from training import dataset, evaluation, files, gate, papers, report
from training.examples import Example, Kind, read_lines, to_lines
from training.gather import gather
from training.job import JOB, Ended, EvaluateJob, Event, TrainJob
from training.pause import room_for
from training.process import end_stale, last_words, run_job
from training.recipe import Recipe
from training.revisions import BASE, Revision, Revisions
from training.serving import LearningEngine, Serving

log = structlog.get_logger(__name__)

MOST_CRASHES = 3  # starts, after which a night is given up: it may be what the bot dies of
DOMINATED = 0.5  # share of what fans gave that may hang on one of them
DOMINATED_FROM = 4  # items, below which a share says nothing
FOLDER = ".night-"  # and the night's id: where it works
CANDIDATE, CHAMPION, ANCHOR = "candidate", "champion", "anchor"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a night ended; `reason` names the text `night.reason.<reason>`, `details` its values."""

    state: NightState
    reason: str
    details: Mapping[str, object]
    summary: str = ""


class Skipped(Exception):
    """There is no reason to train tonight."""

    def __init__(self, reason: str, **details: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.details = details


class Stopped(Exception):
    """A child ended without a result."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.reason)
        self.ended = ended


class NightRun:
    """One run, of a night row that exists."""

    def __init__(
        self,
        night: Night,
        *,
        store: Store,
        settings: Settings,
        engine: LearningEngine,
        revisions: Revisions,
        serving: Serving,
        recipe: Recipe,
        on_event: Callable[[Event], None],
        on_flood: Callable[[str, int], Awaitable[None]],
        now: Callable[[], datetime],
        force: bool = False,
    ) -> None:
        self._night = night
        self._store = store
        self._settings = settings
        self._engine = engine
        self._revisions = revisions
        self._serving = serving
        self._recipe = recipe
        self._on_event = on_event
        self._on_flood = on_flood
        self._now = now
        self._force = force
        self.folder = revisions.folder / f"{FOLDER}{night.id}"
        self.name = f"{night.started_at:%Y%m%d-%H%M%S}-{night.id}"

    async def run(self) -> Ending:
        """Do what is left to do. Cancelling leaves everything for the next start."""
        try:
            return await self._stages()
        except asyncio.CancelledError:
            self._count_starts(-1)  # somebody wanted it: no crash
            raise
        except Skipped as skipped:
            return Ending(NightState.SKIPPED, skipped.reason, skipped.details)
        except Stopped as stopped:
            details = {"detail": stopped.ended.detail}
            return Ending(NightState.FAILED, stopped.ended.reason or "fault", details)
        except FarenseError as error:
            return Ending(NightState.FAILED, error.key, error.values)
        except OSError as error:
            log.exception("night failed", night=self._night.id)
            return Ending(NightState.FAILED, "disk", {"detail": error.strerror or error})
        except Exception as error:
            log.exception("night failed", night=self._night.id)
            return Ending(NightState.FAILED, "fault", {"detail": type(error).__name__})

    async def clean(self) -> None:
        """Remove what a night leaves on the way, once its end is kept; its child is ended first."""
        await asyncio.to_thread(self._clean)

    def _clean(self) -> None:
        for child in ("train", "evaluate"):
            end_stale(self.folder / child)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self._revisions.folder / f".draft-{self.name}", ignore_errors=True)

    async def _stages(self) -> Ending:
        if await asyncio.to_thread(self._count_starts, 1) > MOST_CRASHES:
            return Ending(NightState.FAILED, "crashes", {"n": MOST_CRASHES})
        await self._stage(Stage.DATASET)
        manifest = await self._dataset()
        await self._stage(Stage.TRAIN)
        await self._train()
        await self._stage(Stage.EVALUATE)
        found = await self._evaluate()
        verdict = gate.judge(found, candidate=CANDIDATE, champion=CHAMPION, anchor=ANCHOR)
        revision = await asyncio.to_thread(self._commit, verdict, found, manifest)
        trained = revision.metadata["training"]
        summary = report.chat_summary(verdict, self._language, training_result=trained)
        if not verdict.promoted:
            return Ending(NightState.REJECTED, "rejected", {"revision": revision.id}, summary)
        await self._stage(Stage.SWAP, revision.id)
        await self._serving.promote(revision.id)
        await asyncio.to_thread(self._revisions.prune, self._settings.learning.keep)
        return Ending(NightState.PROMOTED, "promoted", {"revision": revision.id}, summary)

    async def _stage(self, stage: Stage, revision: str | None = None) -> None:
        log.info("night", id=self._night.id, stage=stage.value)
        await self._store.set_stage(self._night.id, stage, revision)

    def _count_starts(self, change: int) -> int:
        """Count a start of this night, or take one back; returns how many there are."""
        starts = self.folder / "starts.json"
        count = json.loads(starts.read_bytes()) if starts.exists() else 0
        files.write(starts, files.to_json(count + change))
        return int(count + change)

    # Dataset

    async def _dataset(self) -> Mapping[str, Any]:
        """The night's dataset; what was there before a crash is taken as it is."""
        folder = self.folder / "train" / "dataset"
        manifest = folder / "manifest.json"
        if not await asyncio.to_thread(manifest.is_file):
            made = await gather(self._store, self._settings, self._now())
            await self._set_apart(made)
            await asyncio.to_thread(self._check_worth, made)
            await asyncio.to_thread(made.write, folder)
        found: Mapping[str, Any] = json.loads(await asyncio.to_thread(manifest.read_bytes))
        return found

    async def _set_apart(self, made: dataset.Dataset) -> None:
        """Quarantine floods in the store, and say so the first time.

        Of votes alone there is nothing to set apart: they are told in the night after they came.
        """
        nights = await self._store.nights(2)
        before = nights[1].started_at if len(nights) > 1 else None
        for flood in made.quarantine:
            new = await self._store.quarantine(flood.lessons)
            log.warning("flood", lessons=len(flood.lessons), votes=flood.votes, new=new)
            if new:
                await self._on_flood("night.flooded", new)
            elif flood.last_vote and (before is None or flood.last_vote > before):
                await self._on_flood("night.flooded_votes", flood.votes)

    def _check_worth(self, made: dataset.Dataset) -> None:
        """Whether there is enough that is new, and of more than one fan."""
        before = set(self._manifest_in_service())
        items = [*made.manifest["train"], *made.manifest["held_out"], *made.manifest["preferences"]]
        given = [name for name in items if name.startswith(("lesson:", "answer:"))]
        new = [name for name in given if name not in before]
        flooded = sum(len(flood.lessons) + flood.votes for flood in made.quarantine)
        if self._force:
            return
        if len(new) < self._settings.learning.min_new:
            raise Skipped(
                "flood" if flooded else "few",
                n=len(new),
                least=self._settings.learning.min_new,
                flooded=flooded,
            )
        share = made.manifest["largest_share"]
        if len(given) >= DOMINATED_FROM and share > DOMINATED:
            raise Skipped("dominated", share=round(100 * share))

    def _manifest_in_service(self) -> list[str]:
        current = self._revisions.current
        if current == BASE:
            return []
        return list(self._revisions.get(current).metadata.get("rows", []))

    # Children

    async def _train(self) -> None:
        base, folder = self._engine.base, self.folder / "train"
        job = TrainJob(
            model=base.name,
            folder=base.folder,
            persona=self._settings.conversation.persona,
            recipe=self._recipe,
            context=self._settings.engine.context,
            seconds=60 * self._settings.learning.max_minutes,
        )
        await self._child(folder, job)

    async def _evaluate(self) -> evaluation.Evaluation:
        base, folder = self._engine.base, self.folder / "evaluate"
        train = self.folder / "train"
        champion = self._serving.name
        taught = {"lessons": (Kind.TAUGHT, Kind.CORRECTION), "regressions": (Kind.CORRECTION,)}
        asked = await asyncio.to_thread(_asked, train / "dataset", folder, taught)
        job = EvaluateJob(
            model=base.name,
            folder=base.folder,
            persona=self._settings.conversation.persona,
            revisions={
                CANDIDATE: train / "result",
                CHAMPION: None if champion == BASE else self._revisions.folder / champion,
                ANCHOR: None,
            },
            held_out=train / "dataset" / "held_out.jsonl",
            known=self._revisions.folder / "evaluated.json",
            **asked,
            context=self._settings.engine.context,
        )
        if not await asyncio.to_thread((folder / evaluation.FILE).is_file):
            await self._child(folder, job)
        return await asyncio.to_thread(evaluation.read, folder)

    async def _child(self, folder: Path, job: TrainJob | EvaluateJob) -> None:
        await asyncio.to_thread(files.write, folder / JOB, job.model_dump_json().encode())
        async with room_for(
            job,
            folder,
            engine=self._engine,
            settings=self._settings,
            revisions=self._revisions,
        ):
            ended = await run_job(folder, self._on_event, self._fans_chat)
        if not ended.ok:
            said = await asyncio.to_thread(last_words, folder)
            log.error(
                "job failed", job=job.task, reason=ended.reason, detail=ended.detail, said=said
            )
            raise Stopped(ended)

    def _fans_chat(self) -> bool:
        status = self._engine.status
        if status.paused:
            return False  # they wait for the child to end
        return bool(status.running or status.waiting)

    # The revision

    def _commit(
        self,
        verdict: gate.Verdict,
        found: evaluation.Evaluation,
        manifest: Mapping[str, Any],
    ) -> Revision:
        """Put the revision's folder together; after a crash the one that is there is taken."""
        if any(revision.id == self.name for revision in self._revisions.all()):
            return self._revisions.get(self.name)
        draft = self._revisions.draft(self.name)
        facts = papers.Facts(
            name=self.name,
            base=self._engine.base,
            settings=self._settings,
            recipe=self._recipe,
            parent=self._serving.name,
            created_at=self._now(),
            verdict=verdict,
            found=found,
            manifest=manifest,
        )
        metadata = papers.write(draft, self.folder / "train" / "result", facts)
        return self._revisions.commit(self.name, draft, metadata)

    @property
    def _language(self) -> str:
        return self._settings.conversation.language


def sweep(revisions: Path, night_id: int) -> None:
    """Remove what other nights left: one that was cancelled may still have written something."""
    for left in revisions.glob(f"{FOLDER}*"):
        if left.name != f"{FOLDER}{night_id}":
            shutil.rmtree(left, ignore_errors=True)


def _asked(source: Path, folder: Path, taught: Mapping[str, Collection[Kind]]) -> dict[str, Path]:
    """What fans taught, by kind, as the gate asks it: files of their own."""
    known = [
        example
        for name in ("train.jsonl", "held_out.jsonl")
        for example in read_lines(source / name, Example)
    ]
    paths = {}
    for name, kinds in taught.items():
        paths[name] = folder / f"{name}.jsonl"
        files.write(paths[name], to_lines(one for one in known if one.kind in kinds))
    return paths
