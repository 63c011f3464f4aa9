"""Keeps each platform running, and one that is down or misconfigured from stopping the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from bot.domain import Platform
from bot.errors import ConfigError, EngineDead
from bot.health import Adapter, Health, State
from bot.ports import Engine
from config.texts import text

log = structlog.get_logger(__name__)

FIRST_WAIT, LONGEST_WAIT = 1.0, 300.0  # seconds between two starts of a platform that fails
WATCH = 2.0  # seconds between two looks at the engine


class Supervisor:
    """Runs adapters until cancelled, or until nothing is left that could work."""

    def __init__(self, engine: Engine, language: str) -> None:
        self._engine = engine
        self._language = language
        self._adapters: Sequence[Adapter] = ()
        self._broken: dict[Platform, ConfigError] = {}

    def health(self) -> Mapping[str, Health]:
        """The engine and every platform, configured or not."""
        status = self._engine.status
        states = {platform.value: Health(State.OFF) for platform in Platform}
        del states[Platform.CONSOLE.value]
        for adapter in self._adapters:
            fault = self._broken.get(adapter.platform)
            states[adapter.platform.value] = (
                Health(State.BROKEN, self._sentence(fault)) if fault else adapter.health
            )
        engine = Health(State.UP if status.ready else State.DOWN, status.detail)
        return {"engine": engine, **states}

    async def run(self, adapters: Sequence[Adapter]) -> None:
        """Serve until every platform ended by itself, as a terminal's does.

        Raises EngineDead, or ConfigError when every platform is misconfigured.
        """
        self._adapters = adapters
        try:
            async with asyncio.TaskGroup() as group:
                kept = [
                    group.create_task(self._keep(adapter), name=adapter.platform.value)
                    for adapter in adapters
                ]
                watch = group.create_task(self._watch_engine(), name="engine watch")
                await asyncio.wait(kept)
                watch.cancel()
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from faults

    async def _keep(self, adapter: Adapter) -> None:
        wait = FIRST_WAIT
        while True:
            started = asyncio.get_running_loop().time()
            try:
                await adapter.run()
            except ConfigError as error:
                self._note_broken(adapter, error)
                wait = LONGEST_WAIT
            except Exception:
                log.exception("platform failed, starting it again", platform=adapter.platform.value)
            else:
                return
            if asyncio.get_running_loop().time() - started > LONGEST_WAIT:
                wait = FIRST_WAIT
            await asyncio.sleep(wait)
            self._broken.pop(adapter.platform, None)
            wait = min(2 * wait, LONGEST_WAIT)

    def _note_broken(self, adapter: Adapter, error: ConfigError) -> None:
        self._broken[adapter.platform] = error
        log.error(self._sentence(error), platform=adapter.platform.value)
        if len(self._broken) == len(self._adapters):
            raise error

    async def _watch_engine(self) -> None:
        # Looked at, not waited for: a wedged thread would set no event.
        while self._engine.status.ready:  # noqa: ASYNC110
            await asyncio.sleep(WATCH)
        raise EngineDead

    def _sentence(self, error: ConfigError) -> str:
        return text(error.key, self._language, **error.values)
