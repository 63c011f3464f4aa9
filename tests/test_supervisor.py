"""A platform that is down or misconfigured never stops the others."""

from __future__ import annotations

import asyncio

import pytest

from bot.domain import Platform
from bot.errors import ConfigError, EngineDead
from bot.health import Health, State
from engine.echo import EchoEngine
from farense_bot import supervisor
from farense_bot.supervisor import Supervisor


class Fake:
    """An adapter whose runs go as the script says: an error to raise, or an event to wait for."""

    def __init__(self, platform: Platform, *script: Exception) -> None:
        self.platform = platform
        self.transport = None
        self.health = Health(State.STARTING)
        self.script = list(script)
        self.runs = 0
        self.serving = asyncio.Event()

    async def run(self) -> None:
        self.runs += 1
        if self.script:
            raise self.script.pop(0)
        self.health = Health(State.UP)
        self.serving.set()
        await asyncio.Event().wait()

    async def close(self) -> None: ...


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_WAIT", 0.001)


@pytest.fixture
async def engine():
    async with EchoEngine() as engine:
        yield engine


async def test_one_that_breaks_is_started_again_and_the_others_go_on(engine):
    boss = Supervisor(engine, "pt")
    shaky = Fake(Platform.TELEGRAM, RuntimeError("boom"), RuntimeError("boom"))
    steady = Fake(Platform.WEB)
    task = asyncio.create_task(boss.run([shaky, steady]))
    await asyncio.gather(shaky.serving.wait(), steady.serving.wait())
    assert (shaky.runs, steady.runs) == (3, 1)
    assert boss.health()["telegram"].state is State.UP
    assert boss.health()["discord"].state is State.OFF
    task.cancel()
    await asyncio.wait([task])


async def test_a_misconfigured_one_is_named_and_the_others_go_on(engine):
    boss = Supervisor(engine, "pt")
    wrong, steady = Fake(Platform.DISCORD, ConfigError("discord.token_wrong")), Fake(Platform.WEB)
    task = asyncio.create_task(boss.run([wrong, steady]))
    await steady.serving.wait()
    assert boss.health()["discord"].state is State.BROKEN
    assert "token" in boss.health()["discord"].detail
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def test_when_all_are_misconfigured_the_program_ends_with_the_reason(engine):
    boss = Supervisor(engine, "pt")
    with pytest.raises(ConfigError, match=r"telegram\.token_wrong"):
        await boss.run([Fake(Platform.TELEGRAM, ConfigError("telegram.token_wrong"))])


async def test_a_dead_engine_ends_the_program_so_that_it_is_started_again(engine, monkeypatch):
    monkeypatch.setattr(supervisor, "WATCH", 0.001)
    boss = Supervisor(engine, "pt")
    steady = Fake(Platform.WEB)
    task = asyncio.create_task(boss.run([steady]))
    await steady.serving.wait()
    assert boss.health()["engine"].state is State.UP
    engine.die()
    with pytest.raises(EngineDead):
        await task
    assert boss.health()["engine"].state is State.DOWN
