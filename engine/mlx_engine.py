"""The engine for one local MLX model: the port's side, on the event loop.

The desk queues, the runner computes in its own thread, and this class stands between them: what
the runner posts reaches the desk through the loop, and a watch looks whether it still posts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Self

from bot.domain import EngineStatus, Event, Request, Turn
from bot.errors import EngineDead, EnginePaused, GenerationFailed
from config.settings import EngineSettings
from engine import models, prompting
from engine.desk import Desk, Job, Report
from engine.models import LoadedModel
from engine.plan import ComputePlan, prepare
from engine.runner import MIB, Build, Facts, Runner

WATCH_SECONDS = 1.0
STOP_SECONDS = 5.0  # a wedged thread is left behind: it dies with the process
Load = Callable[[Path, ComputePlan, str | None], LoadedModel]


class MLXEngine:
    """A model in memory that many fans share. `async with` loads it and lets it go."""

    def __init__(
        self,
        settings: EngineSettings,
        path: Path,
        plan: ComputePlan,
        *,
        name: str | None = None,
        load: Load = models.load,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._path = path
        self._plan = plan
        self._name = name or path.name
        self._load = load
        self._clock = clock
        self._facts: Facts | None = None
        self._desk = Desk(settings, clock, self._start, self._abort)
        self._runner = Runner(self._load_model, settings, self._post, clock)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Load the model. Raises ModelError."""
        self._loop = asyncio.get_running_loop()
        self._runner.begin()
        try:
            facts = await asyncio.wrap_future(self._runner.loaded)
        except BaseException:  # also when whoever waits gives up while it loads
            self._runner.stop()
            raise
        self._facts = facts
        self._desk.context = min(self._settings.context, facts.context)
        if facts.bytes_per_token:
            budget = self._settings.cache_mb * MIB // facts.bytes_per_token
            self._desk.room = max(budget, self._desk.context)
        self._desk.open = True
        self._watch = asyncio.create_task(self._keep_watch())
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End what runs as cancelled and let the thread free everything."""
        for task in (self._watch, self._waking):
            if task is not None:
                task.cancel()
        self._desk.close()
        self._runner.stop()
        await asyncio.to_thread(self._runner.join, STOP_SECONDS)

    @property
    def status(self) -> EngineStatus:
        """A snapshot; cheap, never waits."""
        return EngineStatus(
            ready=self._desk.open,
            model=self._facts.name if self._facts else self._name,
            revision=self._runner.revision,
            plan=self._plan.description,
            context=self._desk.context,
            running=self._desk.running,
            waiting=self._desk.waiting,
            tokens_per_second=self._desk.tokens_per_second,
            cache_bytes=self._runner.cache_bytes,
            paused=self._desk.held,
            back_in=self._desk.back_in,
        )

    @property
    def base(self) -> Facts:
        """The model as it came, for revisions to be put on. Raises EngineDead before it is here."""
        if self._facts is None:
            raise EngineDead
        return self._facts

    def encode(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Render the chat template and tokenize; role tokens in a turn's text stay inert."""
        if self._facts is None:
            raise EngineDead
        return prompting.encode(self._facts.tokenizer, turns)

    async def generate(self, request: Request) -> AsyncGenerator[Event]:
        """Queue a request and stream it; see `bot.ports.Engine`."""
        known = self._facts.vocabulary if self._facts else 0
        tokens = request.tokens
        if self._desk.open and tokens and not 0 <= min(tokens) <= max(tokens) < known:
            raise GenerationFailed
        stream = self._desk.serve(request)
        try:
            async for event in stream:
                yield event
        finally:
            await stream.aclose()

    async def swap(self, revision: str, digest: str, build: Build) -> None:
        """Serve new requests with the model that `build` makes of the base.

        `build` runs in the engine's thread. Answers that run finish on the model they began with;
        what it raises is raised here, and nothing changes then. Raises EnginePaused.
        """
        if not self._desk.open:
            raise EngineDead
        if self._desk.held:
            raise EnginePaused
        await asyncio.wrap_future(self._runner.swap(revision, digest, build))

    async def pause(self, expected: float | None = None) -> None:
        """Answer who is here, then give the memory back; who comes meanwhile waits for `resume`.

        `expected` are the seconds that it should take. Raises EngineDead. Cancelled, or failing,
        it undoes what it has done.
        """
        if self._waking is not None:
            await asyncio.shield(self._waking)
        try:
            await self._desk.hold(expected)
            await asyncio.wrap_future(self._runner.pause())
        except BaseException:
            self._begin_waking()
            raise

    async def resume(self) -> None:
        """Load everything again as it was and go on; harmless when nothing is paused.

        Goes on by itself when whoever waits is cancelled. Raises what loading raises: the engine is
        dead then.
        """
        if waking := self._begin_waking():
            await asyncio.shield(waking)

    def _begin_waking(self) -> asyncio.Task[None] | None:
        if self._desk.open and self._desk.held and self._waking is None:
            self._waking = asyncio.create_task(self._wake())
        return self._waking

    async def _wake(self) -> None:
        try:
            await asyncio.wrap_future(self._runner.resume())
        except Exception:
            self._desk.close(EngineDead())
            raise
        finally:
            self._waking = None
        self._desk.release()

    def check(self) -> None:
        """One look of the watch: late requests, and whether the thread still makes steps."""
        since = self._runner.busy_since
        wedged = since is not None and self._clock() - since > self._settings.step_timeout
        if wedged or not self._runner.alive:
            self._desk.close(EngineDead())
        else:
            self._desk.check()

    async def _keep_watch(self) -> None:
        while self._desk.open:
            await asyncio.sleep(WATCH_SECONDS)
            self.check()

    def _load_model(self) -> LoadedModel:
        self._plan = prepare(self._plan)
        return self._load(self._path, self._plan, self._name)

    def _start(self, job: Job) -> None:
        self._runner.start(job.request, job.max_tokens)

    def _abort(self, request_id: str) -> None:
        self._runner.abort(request_id)

    def _post(self, reports: Sequence[Report]) -> None:
        """Called in the runner's thread."""
        if reports and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._desk.deliver, reports)
