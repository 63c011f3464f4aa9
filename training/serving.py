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


def is_learning(engine: object) -> TypeGuard[LearningEngine]:
    """Whether an engine can serve revisions."""
    return callable(getattr(engine, "swap", None))


class Base(Protocol):
    """The model as it came."""

    name: str
    folder: Path
    fingerprint: str


class Serving:
    """Keeps the engine at the revision that the pointer names."""

    def __init__(self, engine: LearningEngine, revisions: Revisions) -> None:
        self._engine = engine
        self._revisions = revisions
        self._lock = asyncio.Lock()
        self.name = BASE

    async def restore(self) -> str | None:
        """After a start: serve what the pointer names, or the nearest before it that is sound.

        Returns the name of a revision that could not be used.
        """
        broken = None
        while (name := await asyncio.to_thread(self._pointed)) != BASE:
            try:
                await self.load(name)
            except (RevisionError, EngineError, OSError, ValueError) as fault:
                log.warning("revision not usable", revision=name, error=str(fault))
                broken = broken or name
                await asyncio.to_thread(self._step_back)
            else:
                return broken
        await self.load(BASE)
        return broken

    async def promote(self, name: str) -> None:
        """Serve another revision and point at it; a failure changes nothing."""
        await self.load(name)
        await asyncio.to_thread(self._revisions.use, name)

    async def roll_back(self) -> str:
        """Serve the revision before this one; returns which. Raises RevisionError."""
        before = await asyncio.to_thread(lambda: self._revisions.before)
        if before is None:
            raise RevisionError("error.revision_first")
        await self.load(before)
        return await asyncio.to_thread(self._revisions.roll_back)

    async def follow(self) -> bool:
        """Serve what the pointer names by now: somebody may have moved it at a terminal."""
        name = await asyncio.to_thread(self._pointed)
        if name == self.name:
            return False
        await self.load(name)
        return True

    async def load(self, name: str) -> None:
        """Put a revision into service once it was looked at. Raises FarenseError, else nothing."""
        base = self._engine.base
        async with self._lock:
            if name == self.name:
                return
            if name == BASE:
                label = f"base:{base.fingerprint[:12]}"
                await self._engine.swap(label, base.fingerprint, lambda loaded: loaded.model)
            else:
                revision = await asyncio.to_thread(self._revisions.verify, name, base.fingerprint)
                config, weights = await asyncio.to_thread(read_adapter, revision.folder)
                try:
                    await self._engine.swap(
                        name,
                        revision.digest,
                        partial(with_adapter, config=config, weights=weights),
                    )
                except FarenseError:
                    raise
                except Exception as fault:
                    detail = str(fault) or type(fault).__name__
                    raise RevisionError(
                        "error.revision_damaged", name=name, detail=detail
                    ) from fault
            self.name = name

    def _pointed(self) -> str:
        try:
            return self._revisions.current
        except RevisionError:
            log.exception("pointer not readable")
            return BASE

    def _step_back(self) -> None:
        if self._revisions.before is None:
            self._revisions.use(BASE)
        else:
            self._revisions.roll_back()
