"""Which revision the engine serves: from the pointer on disk into the engine, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import structlog

from bot.domain import EngineStatus
from bot.errors import EngineError, FarenseError
from engine.lora import read_adapter, with_adapter
from engine.models import LoadedModel
from training.revisions import BASE, RevisionError, Revisions

log = structlog.get_logger(__name__)


class LearningEngine(Protocol):
    """What learning needs of an engine, beside the port that chats use."""

    @property
    def status(self) -> EngineStatus:
        """A snapshot."""
        ...

    @property
    def base(self) -> Base:
        """The model that revisions are put on."""
        ...

    def swap(
        self, revision: str, digest: str, build: Callable[[LoadedModel], Any]
    ) -> Awaitable[None]:
        """Serve new requests with what `build` makes of the base."""
        ...

    def pause(self, expected: float | None = None) -> Awaitable[None]:
        """Give the memory back once running answers are done; `expected` are seconds."""
        ...

    def resume(self) -> Awaitable[None]:
        """Be as before the pause; harmless without one."""
        ...


def is_learning(engine: object) -> TypeGuard[LearningEngine]:
    """Whether an engine can serve revisions."""
    return callable(getattr(engine, "swap", None))


class Base(Protocol):
    """The model as it came."""

    name: str
    folder: Path
    fingerprint: str


def base_label(base: Base) -> str:
    """The name under which answers of the base alone are kept."""
    return f"base:{base.fingerprint[:12]}"


class Serving:
    """Keeps the engine at the revision that the pointer names.

    The lock covers engine and pointer together: nobody may see one changed and not yet the other.
    """

    def __init__(self, engine: LearningEngine, revisions: Revisions) -> None:
        self._engine = engine
        self._revisions = revisions
        self._lock = asyncio.Lock()
        self._refused = ""  # what the pointer named and could not be served: not tried again
        self.name = BASE

    async def restore(self) -> str | None:
        """After a start: serve what the pointer names, or the nearest before it that is sound.

        Returns the name of a revision that could not be used.
        """
        broken = None
        async with self._lock:
            try:
                name = await asyncio.to_thread(lambda: self._revisions.current)
            except RevisionError:
                log.warning("pointer not readable, serving the base")
                await asyncio.to_thread(self._revisions.use, BASE)
                return self._revisions.pointer.name
            while True:
                try:
                    await self._load(name)
                except (FarenseError, OSError, ValueError) as fault:
                    if name == BASE or isinstance(fault, EngineError):
                        raise
                    log.warning("revision not usable", revision=name, error=str(fault))
                    broken = broken or name
                    name = await asyncio.to_thread(self._revisions.step_back)
                else:
                    return broken

    async def promote(self, name: str) -> None:
        """Serve another revision and point at it; a failure changes nothing."""
        async with self._lock:
            await self._load(name)
            await asyncio.to_thread(self._revisions.use, name)

    async def roll_back(self) -> str:
        """Serve the revision before this one; returns which. Raises RevisionError."""
        async with self._lock:
            before = await asyncio.to_thread(lambda: self._revisions.before)
            if before is None:
                raise RevisionError("error.revision_first")
            await self._load(before)
            return await asyncio.to_thread(self._revisions.step_back)

    async def follow(self) -> bool:
        """Serve what the pointer names by now: somebody may have moved it at a terminal."""
        async with self._lock:
            name = await asyncio.to_thread(lambda: self._revisions.current)
            if name in {self.name, self._refused} or self._engine.status.paused:
                return False
            try:
                await self._load(name)
            except FarenseError:
                self._refused = name
                raise
            self._refused = ""
            return True

    async def _load(self, name: str) -> None:
        """Put a revision into the engine once it was looked at. Raises FarenseError, OSError."""
        base = self._engine.base
        if name == self.name:
            return
        if name == BASE:
            await self._engine.swap(base_label(base), base.fingerprint, lambda loaded: loaded.model)
        else:
            revision = await asyncio.to_thread(self._revisions.verify, name, base.fingerprint)
            config, weights = await asyncio.to_thread(read_adapter, revision.folder)
            build = partial(with_adapter, config=config, weights=weights)
            try:
                await self._engine.swap(name, revision.digest, build)
            except FarenseError:
                raise
            except Exception as fault:
                detail = str(fault) or type(fault).__name__
                raise RevisionError("error.revision_damaged", name=name, detail=detail) from fault
        self.name = name
