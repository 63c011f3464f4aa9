"""The real discord.py, its HTTP client and gateway included, against a loopback Discord."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from discord.gateway import DiscordWebSocket
from discord.http import Route

from adapters.discord import DiscordAdapter
from bot.domain import AnswerId, Buttons, Chat, Destination, Message, Platform, Post, Press
from bot.errors import ConfigError, DeliveryFailed, DeliveryUnknown, HandleExpired, RetryAfter
from bot.health import State
from config.settings import DiscordSettings, Settings
from tests.servers.discord.proxy import Loopback, cut, refuse

pytestmark = pytest.mark.node
DONE = Buttons(AnswerId(7))


@dataclass
class Desk:
    """Stands for the chat service: keeps what arrives."""

    tell: Callable[[], Awaitable[None]]
    messages: list[Message] = field(default_factory=list)
    presses: list[Press] = field(default_factory=list)
    resumed: int = 0

    async def resume(self, platform: Platform) -> None:
        self.resumed += 1
        await self.tell()

    async def receive(self, message: Message) -> None:
        self.messages.append(message)
        await self.tell()

    async def press(self, press: Press) -> str:
        self.presses.append(press)
        return "Obrigado!"

    async def answer_at(self, chat: Chat, message_id: str) -> AnswerId | None:
        return None


@pytest.fixture
async def loopback() -> AsyncIterator[Loopback]:
    async with Loopback.start() as server:
        yield server


@pytest.fixture
def desk(loopback: Loopback) -> Desk:
    return Desk(loopback.tell)


def settings(loopback: Loopback, **discord: Any) -> Settings:
    given = {
        "token": loopback.token,
        "api_url": loopback.api_url,
        "gateway_url": loopback.gateway_url,
    }
    return Settings(discord=DiscordSettings(**given | discord))


@asynccontextmanager
async def running(adapter: DiscordAdapter, loopback: Loopback) -> AsyncIterator[None]:
    task = asyncio.create_task(adapter.run())
    try:
        await loopback.until(lambda: adapter.health.state is State.UP or task.done())
        yield
    finally:
        task.cancel()
        async with asyncio.timeout(10):
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture
async def adapter(loopback: Loopback, desk: Desk) -> AsyncIterator[DiscordAdapter]:
    made = DiscordAdapter(desk, settings(loopback))
    async with running(made, loopback):
        yield made


async def asked(loopback: Loopback, desk: Desk, text: str = "olá") -> Destination:
    """A fan mentions the bot; where the answer goes."""
    count = len(desk.messages)
    await loopback.act("simulateUserMessage", content=f"<@{loopback.bot}> {text}")
    await loopback.until(lambda: len(desk.messages) > count)
    message = desk.messages[-1]
    return Destination(message.chat, message.message_id, message.handle)


async def commanded(loopback: Loopback, desk: Desk) -> Destination:
    """A fan asks by a slash command; where the answer goes."""
    count = len(desk.messages)
    option = {"name": "texto", "type": 3, "value": "e hoje?"}
    await loopback.act("simulateSlashCommand", name="perguntar", options=[option])
    await loopback.until(lambda: len(desk.messages) > count)
    message = desk.messages[-1]
    return Destination(message.chat, message.message_id, message.handle)


async def test_a_mention_is_answered_and_edited(loopback, desk, adapter):
    to = await asked(loopback, desk, "quem joga?")
    assert desk.messages[0].text == "quem joga?"
    await adapter.transport.typing(to)
    sent = await adapter.transport.send(to, Post("O Far", nonce="discord:12345678901234567890"))
    await adapter.transport.edit(to, sent, Post("O Farense!", DONE))
    [message] = await loopback.shown()
    assert message["content"] == "O Farense!"
    body = loopback.of("POST", "/messages$")[0].body
    assert body["enforce_nonce"]
    assert len(body["nonce"]) == 25
    assert body["message_reference"]["message_id"] == to.reply_to
    assert loopback.of("POST", "/typing$")


async def test_a_command_is_deferred_answered_and_edited(loopback, desk, adapter):
    to = await commanded(loopback, desk)
    [callback] = loopback.of("POST", "/callback$")
    assert callback.body["type"] == 5
    sent = await adapter.transport.send(to, Post("Às"))
    await adapter.transport.edit(to, sent, Post("Às 20h.", DONE))
    [message] = await loopback.shown()
    assert message["content"] == "Às 20h."
    assert loopback.of("PATCH", "/webhooks/.*/messages/")


async def test_a_button_works_after_the_adapter_is_started_anew(loopback, desk):
    first = DiscordAdapter(desk, settings(loopback))
    async with running(first, loopback):
        sent = await first.transport.send(await asked(loopback, desk), Post("Olá!", DONE))
    assert first.health.state is State.DOWN
    async with running(DiscordAdapter(desk, settings(loopback)), loopback):
        await loopback.act("simulateButtonClick", messageId=sent, customId="fb:up:7")
        await loopback.until(lambda: bool(loopback.of("POST", "/callback$")))
    assert [press.answer_id for press in desk.presses] == [7]
    body = loopback.of("POST", "/callback$")[0].body
    assert (body["data"]["content"], body["data"]["flags"]) == ("Obrigado!", 64)


async def test_a_long_rate_limit_is_left_to_the_caller(loopback, desk, adapter):
    to = await asked(loopback, desk)
    loopback.faults.append(("/messages$", refuse(429, retry_after=65.0, **{"global": False})))
    with pytest.raises(RetryAfter) as waits:
        await adapter.transport.send(to, Post("Olá!"))
    assert waits.value.seconds == 65
    await adapter.transport.send(to, Post("Olá!"))
    assert len(await loopback.shown()) == 1


async def test_an_interaction_shares_the_way_rate_limits_are_told(loopback, desk, adapter):
    to = await commanded(loopback, desk)
    loopback.faults.append(("/webhooks/", refuse(429, retry_after=65.0, **{"global": False})))
    with pytest.raises(RetryAfter):
        await adapter.transport.send(to, Post("Olá!"))
    loopback.faults.append(("/webhooks/", refuse(404, 10015)))
    with pytest.raises(HandleExpired):
        await adapter.transport.send(to, Post("Olá!"))
    loopback.faults.append(("/webhooks/", refuse(401, 50027)))
    with pytest.raises(HandleExpired):
        await adapter.transport.send(to, Post("Olá!"))


async def test_a_server_that_is_down_may_be_asked_again(loopback, desk, adapter):
    to = await asked(loopback, desk)
    loopback.faults.append(("/messages$", refuse(503)))
    with pytest.raises(DeliveryFailed):
        await adapter.transport.send(to, Post("Olá!"))
    assert await loopback.shown() == []


async def test_a_cut_connection_leaves_the_outcome_unknown(loopback, desk, adapter):
    to = await asked(loopback, desk)
    loopback.faults.append(("/messages$", cut))
    with pytest.raises(DeliveryUnknown):
        await adapter.transport.send(to, Post("Olá!"))


async def test_a_cancelled_wait_for_a_global_limit_blocks_nothing_else(loopback, desk, adapter):
    to = await asked(loopback, desk)
    loopback.faults.append(("/messages$", refuse(429, retry_after=25.0, **{"global": True})))
    waiting = asyncio.create_task(adapter.transport.send(to, Post("um")))
    await loopback.until(lambda: bool(loopback.of("POST", "/messages$")))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(10):
        await adapter.transport.send(to, Post("dois"))


async def test_a_lost_gateway_is_found_again(loopback, desk, adapter):
    await loopback.drop()
    await loopback.until(lambda: loopback.connections == 2)
    await loopback.until(lambda: adapter.health.state is State.UP)
    await asked(loopback, desk, "ainda aí?")
    assert desk.messages[-1].text == "ainda aí?"
    assert desk.resumed == 1


@pytest.mark.parametrize("refused_by", ["api", "gateway"])
async def test_a_wrong_token_is_said_and_never_logged(loopback, desk, refused_by, capsys, caplog):
    wrong = "segredo.muito.secreto"
    adapter = DiscordAdapter(desk, settings(loopback, token=wrong))
    if refused_by == "gateway":
        loopback.token = wrong  # the proxy lets it pass, the server does not
    before = Route.BASE, DiscordWebSocket.DEFAULT_GATEWAY
    async with asyncio.timeout(20):
        with pytest.raises(ConfigError) as error:
            await adapter.run()
    assert error.value.key == "discord.token_wrong"
    assert adapter.health.state is State.DOWN
    assert (Route.BASE, DiscordWebSocket.DEFAULT_GATEWAY) == before
    said = capsys.readouterr()
    assert wrong not in said.out + said.err + caplog.text


async def test_an_unreachable_server_is_tried_again(loopback, desk, monkeypatch):
    monkeypatch.setattr("adapters.discord.FIRST_WAIT", 0.01)
    loopback.faults.append(("/users/@me", refuse(503)))
    loopback.faults.append(("/users/@me", cut))
    async with running(DiscordAdapter(desk, settings(loopback)), loopback):
        assert len(loopback.of("GET", "/users/@me")) == 3
    assert desk.resumed == 1
