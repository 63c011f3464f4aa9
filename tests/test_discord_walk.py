"""The real discord.py, its HTTP client and gateway included, against a loopback Discord."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from discord.gateway import DiscordWebSocket
from discord.http import Route

from adapters.discord import DiscordAdapter
from adapters.discord_render import render
from bot.domain import (
    AnswerId,
    Buttons,
    Chat,
    Choice,
    Destination,
    Message,
    Outcome,
    Platform,
    Post,
    Press,
    Tap,
    Toast,
)
from bot.errors import ConfigError, DeliveryFailed, DeliveryUnknown, HandleExpired, RetryAfter
from bot.health import State
from bot.ports import Engine, Pace
from bot.service import ChatService
from bot.store import Store
from config.settings import DiscordSettings, EngineSettings, Settings
from engine.echo import EchoEngine
from tests.servers.bot import killed_at_the_end
from tests.servers.discord.proxy import Loopback, cut, refuse

pytestmark = pytest.mark.node
DONE = Buttons(AnswerId(7))


@dataclass
class Desk:
    """Stands for the chat service: keeps what arrives."""

    tell: Callable[[], Awaitable[None]]
    messages: list[Message] = field(default_factory=list)
    presses: list[Press] = field(default_factory=list)
    taps: list[Tap] = field(default_factory=list)
    resumed: int = 0

    async def resume(self, platform: Platform) -> None:
        self.resumed += 1
        await self.tell()

    async def receive(self, message: Message) -> None:
        self.messages.append(message)
        await self.tell()

    async def press(self, press: Press) -> Toast:
        self.presses.append(press)
        return Toast("Obrigado!")

    async def tap(self, tap: Tap) -> Outcome:
        self.taps.append(tap)
        return Outcome("Aprovado.", Post("**Aprovado** ✅", choices=(Choice("Voltar", "un:7"),)))

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


async def state_is(adapter: DiscordAdapter, state: State) -> None:
    """Wait until the adapter reports a state."""
    async with asyncio.timeout(20):
        while adapter.health.state is not state:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(adapter: DiscordAdapter, *, close: bool = True) -> AsyncIterator[None]:
    task = asyncio.create_task(adapter.run())
    try:
        await state_is(adapter, State.UP)
        yield
    finally:
        task.cancel()
        async with asyncio.timeout(10):
            with suppress(asyncio.CancelledError):
                await task
            if close:
                await adapter.close()


@pytest.fixture
async def adapter(loopback: Loopback, desk: Desk) -> AsyncIterator[DiscordAdapter]:
    made = DiscordAdapter(desk, settings(loopback))
    async with running(made):
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
    async with running(first):
        sent = await first.transport.send(await asked(loopback, desk), Post("Olá!", DONE))
    assert first.health.state is State.DOWN
    async with running(DiscordAdapter(desk, settings(loopback))):
        await loopback.act("simulateButtonClick", messageId=sent, customId="fb:up:7")
        await loopback.until(lambda: bool(loopback.of("POST", "/webhooks/")))
    assert [press.answer_id for press in desk.presses] == [7]
    [toast] = loopback.of("POST", "/webhooks/")
    assert (toast.body["content"], toast.body["flags"] & 64) == ("Obrigado!", 64)


async def test_a_card_is_tapped_and_edited_after_the_adapter_is_started_anew(loopback, desk):
    card = Post("Em 1910?", choices=(Choice("Aprovar", "ok:7"), Choice("Editar", "?ed:7")))
    first = DiscordAdapter(desk, settings(loopback))
    async with running(first):
        where = Destination((await asked(loopback, desk)).chat)
        sent = await first.transport.send(where, card)
    async with running(DiscordAdapter(desk, settings(loopback))):
        await loopback.act("simulateButtonClick", messageId=sent, customId="c:ok:7")
        await loopback.until(lambda: bool(loopback.of("POST", "/webhooks/")))
    assert [(tap.data, tap.message_id) for tap in desk.taps] == [("ok:7", sent)]
    assert loopback.of("POST", "/callback$")[0].body["type"] == 6
    [edit] = loopback.of("PATCH", "/messages/@original$")
    assert edit.body["content"] == "**Aprovado** ✅"
    assert [item["custom_id"] for item in edit.body["components"][0]["components"]] == ["c:un:7"]
    [toast] = loopback.of("POST", "/webhooks/")
    assert (toast.body["content"], toast.body["flags"] & 64) == ("Aprovado.", 64)


async def test_a_long_rate_limit_is_left_to_the_caller(loopback, desk, adapter):
    to = await asked(loopback, desk)
    loopback.faults.append(("/messages$", refuse(429, retry_after=65.0, **{"global": False})))
    with pytest.raises(RetryAfter) as waits:
        await adapter.transport.send(to, Post("Olá!"))
    assert waits.value.seconds == 65
    await adapter.transport.send(to, Post("Olá!"))
    assert len(await loopback.shown()) == 1


async def test_an_interaction_shares_the_way_rate_limits_are_told(loopback, desk, adapter, caplog):
    to = await commanded(loopback, desk)
    for wait in (65.0, 0.0):  # the library raises one and waits the other out
        loopback.faults.append(("/webhooks/", refuse(429, retry_after=wait, **{"global": False})))
    with pytest.raises(RetryAfter):
        await adapter.transport.send(to, Post("Olá!"))
    await adapter.transport.send(to, Post("Olá!"))
    assert caplog.text.count("We are being rate limited") == 2
    assert json.loads(to.handle)["token"] not in caplog.text
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
    loopback.drop()
    await state_is(adapter, State.DOWN)
    await loopback.until(lambda: loopback.connections >= 3)
    await state_is(adapter, State.UP)
    await asked(loopback, desk, "ainda aí?")
    assert desk.messages[-1].text == "ainda aí?"
    assert desk.resumed == 2


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
    await adapter.close()
    assert before == (Route.BASE, DiscordWebSocket.DEFAULT_GATEWAY)
    said = capsys.readouterr()
    assert wrong not in said.out + said.err + caplog.text


async def test_an_unreachable_server_is_tried_again(loopback, desk, monkeypatch):
    monkeypatch.setattr("adapters.discord.FIRST_WAIT", 0.01)
    loopback.faults.append(("/users/@me", refuse(503)))
    loopback.faults.append(("/users/@me", cut))
    async with running(DiscordAdapter(desk, settings(loopback))):
        assert len(loopback.of("GET", "/users/@me")) == 3
    assert desk.resumed == 1


async def test_a_stopped_adapter_still_delivers_until_it_is_closed(loopback, desk):
    adapter = DiscordAdapter(desk, settings(loopback))
    async with running(adapter, close=False):
        to = await asked(loopback, desk)
    await adapter.transport.send(to, Post("Já volto."))
    assert [message["content"] for message in await loopback.shown()] == ["Já volto."]
    await adapter.close()
    with pytest.raises(DeliveryFailed):
        await adapter.transport.send(to, Post("Tarde."))


# --- with the real service ---------------------------------------------------------------------


@asynccontextmanager
async def bot(
    loopback: Loopback, home: Path, engine: Engine, limits: EngineSettings | None = None
) -> AsyncIterator[Store]:
    """The bot with everything real but the model."""
    given = {"home": home, "engine": limits or EngineSettings()}
    chosen = settings(loopback).model_copy(update=given)
    async with Store.open(chosen.database) as store, engine:
        service = ChatService(engine, store, chosen)
        adapter = DiscordAdapter(service, chosen)
        adapter.transport.pace = Pace(private=0, group=0, idempotent_sends=True)
        service.attach(adapter.transport)
        try:
            async with service, running(adapter, close=False):
                yield store
        finally:
            await adapter.close()


def buttons(message: dict[str, Any]) -> list[str]:
    return [
        item["custom_id"] for row in message.get("components", []) for item in row["components"]
    ]


async def finished(loopback: Loopback, count: int, patience: float = 20) -> list[dict[str, Any]]:
    """Wait until so many answers carry the buttons of a finished one."""
    async with asyncio.timeout(patience):
        while True:
            shown = await loopback.shown()
            done = [message for message in shown if len(buttons(message)) == 4]
            if len(done) >= count:
                return done
            async with loopback.changed:
                await loopback.changed.wait()


async def test_a_whole_conversation_and_its_buttons_after_a_restart(loopback, tmp_path):
    async with bot(loopback, tmp_path, EchoEngine()):
        await loopback.act("simulateUserMessage", content=f"<@{loopback.bot}> **Claro:** olá")
        [answer] = await finished(loopback, 1)
        assert answer["content"] == "**Claro:** olá"
        option = {"name": "texto", "type": 3, "value": "@everyone viva"}
        await loopback.act("simulateSlashCommand", name="perguntar", options=[option])
        _, second = await finished(loopback, 2)
        assert second["content"] == "@\u200beveryone viva"
    async with bot(loopback, tmp_path, EchoEngine()) as store:
        for action in ("up", "dn", "ag"):
            press = {"messageId": answer["id"], "customId": f"fb:{action}:1"}
            await loopback.act("simulateButtonClick", **press)
        field = {"customId": "correction", "value": "Olá, leões!"}
        await loopback.act("simulateModalSubmit", customId="fix:1", fields=[field])
        await finished(loopback, 3)
        await loopback.until(lambda: len(loopback.of("POST", "/callback$")) == 5)
        assert await store.votes(AnswerId(1)) == (0, 1)
        assert (await store.counts())["corrections"] == 1


async def test_kill_9_in_mid_answer_ends_in_one_answer_on_the_same_message(loopback, tmp_path):
    words = ("Força Farense! " * 20).strip()
    given = {
        "FARENSE_DISCORD__TOKEN": loopback.token,
        "FARENSE_DISCORD__API_URL": loopback.api_url,
        "FARENSE_DISCORD__GATEWAY_URL": loopback.gateway_url,
    }
    async with killed_at_the_end("discord", tmp_path, 0.1, **given):
        await loopback.act("simulateUserMessage", content=f"<@{loopback.bot}> {words}")
        await loopback.until(lambda: bool(loopback.of("PATCH", "/messages/")))
    [begun] = await loopback.shown()
    assert buttons(begun) == ["fb:st:1"]
    async with killed_at_the_end("discord", tmp_path, 0, **given):
        await finished(loopback, 1)
    [answer] = await loopback.shown()
    assert (answer["id"], answer["content"]) == (begun["id"], words)
    assert len(loopback.of("POST", "/messages$")) == 1


@pytest.mark.model
async def test_the_embedded_model_answers(loopback, tmp_path, embedded_model):
    from engine.mlx_engine import MLXEngine
    from engine.plan import detect, prepare

    chosen = EngineSettings(temperature=0, max_tokens=24)
    engine = MLXEngine(chosen, embedded_model, prepare(detect()))
    async with bot(loopback, tmp_path, engine, chosen) as store:
        ask = f"<@{loopback.bot}> What is the capital of Portugal?"
        await loopback.act("simulateUserMessage", content=ask)
        [shown] = await finished(loopback, 1, patience=250)
        answer = await store.answer(AnswerId(1))
    assert answer is not None
    assert answer.state == "done"
    assert shown["content"].startswith(render(answer.text).rstrip())
