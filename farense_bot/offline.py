"""A night without a bot that serves: for the command line and the notebook."""

from __future__ import annotations

from collections.abc import Callable

from bot.domain import EngineStatus
from bot.store import Store
from config.settings import Settings
from engine import models, weights
from engine.plan import detect
from farense_bot.app import ensure_model
from training.job import Event
from training.night import Ending
from training.nights import TERMINAL, NightShift
from training.planned import recipe_of
from training.telling import Announcer


class Base:
    """The model of the settings, without loading it: nobody is served here."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self.name, self.folder = ensure_model(settings, say)
        config, files = models.inspect(self.folder, detect())
        self.fingerprint = weights.fingerprint(config, files)


class Unserved:
    """An engine that serves nobody: what a night puts into service waits for the next start."""

    def __init__(self, base: Base) -> None:
        self.base = base

    @property
    def status(self) -> EngineStatus:
        """Nobody runs, nobody waits."""
        return EngineStatus(
            ready=True,
            model=self.base.name,
            revision="",
            plan="",
            context=0,
            running=0,
            waiting=0,
            tokens_per_second=0,
            cache_bytes=0,
        )

    async def swap(self, revision: str, digest: str, build: object) -> None:
        """Nothing is loaded here."""

    async def pause(self, expected: float | None = None) -> None:
        """Nothing has to make room."""

    async def resume(self) -> None:
        """Nothing was paused."""


async def run_night(
    settings: Settings, base: Base, announcer: Announcer, watcher: Callable[[Event], None]
) -> tuple[Ending, str]:
    """Run a night to its end; returns how it ended, and that in words."""
    async with Store.open(settings.database) as store:
        shift = NightShift(
            store=store,
            settings=settings,
            engine=Unserved(base),
            announcer=announcer,
            recipe=recipe_of(settings, base.folder),
            watcher=watcher,
        )
        ending = await shift.run_once(TERMINAL)
        return ending, shift.told(ending)
