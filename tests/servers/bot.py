"""The bot on one platform as a process of its own, to be killed: echo engine, slow on demand."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from adapters.discord import DiscordAdapter
from adapters.telegram import TelegramAdapter
from bot.health import Adapter, State
from bot.ports import Pace
from bot.service import ChatService
from bot.store import Store
from config.settings import Settings
from engine.echo import EchoEngine

ROOT = Path(__file__).resolve().parents[2]
READY = "ready"
ADAPTERS = {"telegram": TelegramAdapter, "discord": DiscordAdapter}


async def serve(platform: str, seconds: float) -> None:
    """Answer with so many seconds for each piece of an answer, until killed."""
    settings = Settings()

    async def step() -> None:
        await asyncio.sleep(seconds)

    async with Store.open(settings.database) as store, EchoEngine(step=step) as engine:
        service = ChatService(engine, store, settings)
        adapter = ADAPTERS[platform](service, settings)
        known = adapter.transport.pace
        adapter.transport.pace = Pace(0, 0, idempotent_sends=known.idempotent_sends)
        service.attach(adapter.transport)
        async with service, asyncio.TaskGroup() as group:
            group.create_task(say_when_up(adapter))
            await adapter.run()


async def say_when_up(adapter: Adapter) -> None:
    """Tell the test that fans may write now."""
    while adapter.health.state is not State.UP:
        await asyncio.sleep(0.01)
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()


@asynccontextmanager
async def killed_at_the_end(
    platform: str, home: Path, seconds: float, **environment: Any
) -> AsyncIterator[None]:
    """Run the bot, connected, while the block lasts, then end it as a power cut would."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FARENSE_")}
    chosen = {key: str(value) for key, value in environment.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.servers.bot", platform, str(seconds)),
        cwd=home, env=kept | chosen | {"FARENSE_HOME": str(home), "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            while (line := await process.stdout.readline()).strip() != READY.encode():
                assert line, "the bot ended before it was connected"
        yield
        assert process.returncode is None
    finally:
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], float(sys.argv[2])))
