"""Where the parts are wired together: store, engine, service and platforms."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog
from filelock import FileLock, Timeout

from bot.errors import ConfigError, StoreError
from bot.health import Adapter, Health, State
from bot.ports import Engine
from bot.service import ChatService
from bot.store import Store
from config.settings import Settings
from config.texts import catalogue, text
from engine.plan import detect, prepare
from farense_bot.housekeeping import keep_house
from farense_bot.supervisor import Supervisor
from training.nights import NightShift
from training.planned import recipe_of
from training.serving import is_learning

log = structlog.get_logger(__name__)

GREETING_WAIT = 5.0  # seconds that the platforms get before we say how they are
CLOSING_WAIT = 1.5  # seconds that they get to leave, and then to close; a stop takes 10 at most


@contextmanager
def state_folder(settings: Settings) -> Iterator[None]:
    """Make the state folder ours alone for as long as the block runs."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(settings.home / "farense.lock", timeout=0):
            yield
    except Timeout as error:
        raise ConfigError("error.already_running", home=settings.home) from error
    except OSError as error:
        raise StoreError(
            "error.home", home=settings.home, reason=error.strerror or error
        ) from error


def ensure_model(settings: Settings, say: Callable[[str], None]) -> tuple[str, Path]:
    """Bring the chosen model onto this machine; returns its name and folder."""
    prepare(detect())  # converting the embedded model uses MLX
    from engine import models

    def progress(name: str) -> None:
        say(text("start.model", settings.conversation.language, name=name))

    source = models.resolve(settings.engine.model, settings.models)
    return source.name, models.install(source, settings.models, progress)


def check_platforms(settings: Settings) -> None:
    """Whether anything is switched on at all. Raises ConfigError."""
    if not (settings.web.enabled or settings.telegram.token or settings.discord.token):
        raise ConfigError("error.no_platform")


def build_engine(settings: Settings, say: Callable[[str], None]) -> Engine:
    """The MLX engine for the chosen model, by this machine's compute plan."""
    name, folder = ensure_model(settings, say)
    from engine.mlx_engine import MLXEngine

    return MLXEngine(settings.engine, folder, prepare(detect()), name=name)


@asynccontextmanager
async def chat_service(
    settings: Settings, engine: Engine, adapters: Callable[[ChatService], list[Adapter]]
) -> AsyncIterator[tuple[ChatService, list[Adapter]]]:
    """Open the store, start the engine and the service, in the order in which they depend."""
    async with Store.open(settings.database) as store, engine:
        service = ChatService(engine, store, settings)
        built = adapters(service)
        for adapter in built:
            service.attach(adapter.transport)
        async with service, learning(settings, store, engine, service):
            chores = asyncio.create_task(keep_house(store, settings.home))
            try:
                yield service, built
            finally:
                chores.cancel()
                await asyncio.wait([chores])


@asynccontextmanager
async def learning(
    settings: Settings, store: Store, engine: Engine, service: ChatService
) -> AsyncIterator[NightShift | None]:
    """Serve what was learnt and learn at night, with an engine that can."""
    if not is_learning(engine):
        yield None
        return
    shift = NightShift(
        store=store,
        settings=settings,
        engine=engine,
        announcer=service,
        recipe=await asyncio.to_thread(recipe_of, settings, engine.base.folder),
    )
    async with shift:
        service.use(shift)
        yield shift


def platforms(
    service: ChatService, settings: Settings, health: Callable[[], Mapping[str, Health]]
) -> list[Adapter]:
    """The adapters that are configured."""
    chosen: list[Adapter] = []
    if settings.web.enabled:
        from adapters.web import WebAdapter

        chosen.append(WebAdapter(service, settings, health))
    if settings.telegram.token:
        from adapters.telegram import TelegramAdapter

        chosen.append(TelegramAdapter(service, settings))
    if settings.discord.token:
        from adapters.discord import DiscordAdapter

        chosen.append(DiscordAdapter(service, settings))
    return chosen


async def serve(settings: Settings, engine: Engine, say: Callable[[str], None]) -> None:
    """Run every configured platform until a signal asks us to stop.

    Raises EngineDead when the process must be started again.
    """
    supervisor = Supervisor(engine, settings.conversation.language)

    def built(service: ChatService) -> list[Adapter]:
        return platforms(service, settings, supervisor.health)

    async with chat_service(settings, engine, built) as (service, adapters):
        running = asyncio.create_task(supervisor.run(adapters))
        try:
            with _signals() as stop:
                ends = [running, asyncio.create_task(stop.wait())]
                greeting = asyncio.create_task(_greet(settings, supervisor, adapters, say))
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for task in (greeting, ends[1]):
                    task.cancel()
            log.info("stopping")
        finally:
            await service.close()  # while the platforms can still say so to the fans
            running.cancel()
            await asyncio.wait([running], timeout=CLOSING_WAIT)
            closing = [asyncio.create_task(adapter.close()) for adapter in adapters]
            await asyncio.wait(closing, timeout=CLOSING_WAIT)
        if running.done() and not running.cancelled():
            running.result()


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM or Ctrl-C sets."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for name in signals:
        loop.add_signal_handler(name, stop.set)
    try:
        yield stop
    finally:
        for name in signals:
            loop.remove_signal_handler(name)


async def _greet(
    settings: Settings,
    supervisor: Supervisor,
    adapters: list[Adapter],
    say: Callable[[str], None],
) -> None:
    """Say in plain words what is up, once every platform has had a moment to start."""
    deadline = asyncio.get_running_loop().time() + GREETING_WAIT
    while asyncio.get_running_loop().time() < deadline:
        if all(adapter.health.state is not State.STARTING for adapter in adapters):
            break
        await asyncio.sleep(0.05)
    language = settings.conversation.language
    for name, health in supervisor.health().items():
        key = f"start.{name}.{health.state}"
        if key in catalogue():
            say(text(key, language, detail=health.detail))
