"""The real python-telegram-bot against a loopback Bot API that we did not write."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import adapters.telegram as module
from adapters.telegram import TelegramAdapter
from adapters.telegram_render import render
from bot.domain import (
    AnswerId,
    Asked,
    Buttons,
    Chat,
    ChatKind,
    Choice,
    Destination,
    Message,
    Outcome,
    Platform,
    Post,
    Press,
    Tap,
    Toast,
    Wanted,
)
from bot.errors import (
    ConfigError,
    DeliveryFailed,
    DeliveryUnknown,
    MessageGone,
    NotModified,
    RetryAfter,
    StoreError,
)
from bot.health import State
from bot.ports import Engine, Pace
from bot.service import ChatService
from bot.store import Store
from config.settings import EngineSettings, Settings, TelegramSettings
from config.texts import text
from engine.echo import EchoEngine
from tests.servers.bot import killed_at_the_end
from tests.servers.telegram.proxy import (
    BOT,
    TOKEN,
    Loopback,
    chat_json,
    cut,
    free_port,
    hang,
    refuse,
)

pytestmark = pytest.mark.node


@dataclass
class Recorder:
    """Stands for the chat service: keeps what arrives."""

    messages: list[Message] = field(default_factory=list)
    presses: list[Press] = field(default_factory=list)
    taps: list[Tap] = field(default_factory=list)
    outcome: Outcome = field(default_factory=lambda: Outcome("Feito."))
    resumed: int = 0
    resume_faults: list[Exception] = field(default_factory=list)
    on_receive: Callable[[Message], Awaitable[None]] | None = None
    toast: str = "Obrigado!"
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def resume(self, platform: Platform) -> None:
        self.resumed += 1
        if self.resume_faults:
            raise self.resume_faults.pop()

    async def receive(self, message: Message) -> None:
        if self.on_receive:
            await self.on_receive(message)
        self.messages.append(message)
        await self._tell()

    async def press(self, press: Press) -> Toast:
        self.presses.append(press)
        await self._tell()
        return Toast(self.toast)

    async def tap(self, tap: Tap) -> Outcome:
        self.taps.append(tap)
        return self.outcome

    async def answer_at(self, chat: Chat, message_id: str) -> AnswerId | None:
        return None

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def got(self, count: int = 1) -> Message:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: len(self.messages) >= count)
        return self.messages[count - 1]


PRIVATE = Destination(Chat(Platform.TELEGRAM, "1"))
GROUP = {"chat": -100}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Shorten the waits between tries, so that no test waits for them."""
    monkeypatch.setattr(module, "WAITS", (0.01,))
    monkeypatch.setattr(module, "CONFLICT_WAIT", 0.05)


@pytest.fixture
async def loopback() -> AsyncIterator[Loopback]:
    async with Loopback.start() as server:
        yield server


def settings(url: str, **telegram: Any) -> Settings:
    return Settings(telegram=TelegramSettings(base_url=url, **{"token": TOKEN, **telegram}))


@asynccontextmanager
async def polling(adapter: TelegramAdapter) -> AsyncIterator[TelegramAdapter]:
    """Let it run; what it raises ends the test."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(adapter.run())
        yield adapter
        task.cancel()


@asynccontextmanager
async def running(adapter: TelegramAdapter) -> AsyncIterator[TelegramAdapter]:
    try:
        async with polling(adapter):
            yield adapter
    finally:
        await adapter.close()


def buttons(shown: dict[str, Any]) -> list[str]:
    return [button["callback_data"] for button in shown["reply_markup"]["inline_keyboard"][0]]


def under(message_id: int) -> dict[str, Any]:
    return {"message_id": message_id, "date": 1, "chat": chat_json(1, 1), "from": BOT, "text": "x"}


async def test_a_message_is_received_and_its_answer_grows_by_edits(loopback):
    service = Recorder()
    async with running(TelegramAdapter(service, settings(loopback.url))) as adapter:
        await loopback.say("Quando joga o Farense?")
        message = await service.got()
        to = Destination(message.chat)
        writing, done = Buttons(AnswerId(5), running=True), Buttons(AnswerId(5))
        await adapter.transport.typing(to)
        message_id = await adapter.transport.send(to, Post("No **dom", writing))
        before = buttons(loopback.shown["1", int(message_id)])
        await adapter.transport.edit(to, message_id, Post("No **domingo**.", done))
        assert adapter.health.state is State.UP
    assert (message.text, message.chat.key) == ("Quando joga o Farense?", "telegram:1")
    shown = loopback.shown["1", int(message_id)]
    assert shown["text"] == "No domingo."
    assert shown["entities"] == [{"type": "bold", "offset": 3, "length": 7}]
    assert (before, buttons(shown)) == (["st:5"], ["up:5", "dn:5", "fx:5", "ag:5"])
    assert loopback.of("sendChatAction")[0].data["action"] == "typing"
    assert "parse_mode" not in loopback.of("sendMessage")[0].data


async def test_commands_reach_the_service_and_the_menu_is_set_only_when_it_changed(loopback):
    for _ in range(2):
        service = Recorder()
        async with running(TelegramAdapter(service, settings(loopback.url))):
            await loopback.say("/new")
            assert (await service.got()).command == "novo"
    menus = [call.data for call in loopback.of("setMyCommands")]
    assert [menu.get("language_code") for menu in menus] == [None, "en"]
    assert [menu["commands"][0]["command"] for menu in menus] == ["perguntar", "ask"]
    assert service.resumed == 1


async def test_a_menu_that_is_refused_does_not_silence_the_bot(loopback):
    loopback.faults["setMyCommands"].append(refuse(400, "Bad Request: command is invalid"))
    loopback.faults["getMyCommands"].append(refuse(429, "Too Many Requests", retry_after=9000))
    service = Recorder()
    async with running(TelegramAdapter(service, settings(loopback.url))):
        await loopback.say("olá")
        await service.got()


async def test_an_admin_sees_the_admin_commands_too(loopback):
    chosen = settings(loopback.url).model_copy(
        update={"admins": ("telegram:7", "discord:8", "telegram:@nome", "telegram:9")}
    )
    for _ in range(2):
        service = Recorder()
        async with running(TelegramAdapter(service, chosen)):
            await loopback.say("olá")
            await service.got()
    menus = {
        (str(call.data.get("scope")), call.data.get("language_code")): [
            command["command"] for command in call.data["commands"]
        ]
        for call in loopback.of("setMyCommands")
    }
    assert len(loopback.of("setMyCommands")) == len(menus) == 6  # and not again
    for (scope, language), names in menus.items():
        rever = "review" if language == "en" else "rever"
        assert (rever in names) is ("chat_id" in scope)
        assert ("teach" if language == "en" else "ensinar") in names


async def test_an_admin_who_never_wrote_holds_up_nobody(loopback):
    chosen = settings(loopback.url).model_copy(update={"admins": ("telegram:7", "telegram:9")})
    service = Recorder()
    async with running(TelegramAdapter(service, settings(loopback.url))):
        await loopback.called("setMyCommands", 2)
    loopback.faults["setMyCommands"].append(refuse(400, "Bad Request: chat not found"))
    async with running(TelegramAdapter(service, chosen)):
        await loopback.say("olá")
        await service.got()
    scopes = [call.data["scope"]["chat_id"] for call in loopback.of("setMyCommands")[2:]]
    assert scopes == [9, 9]


async def test_in_a_group_the_bot_answers_who_calls_it(loopback):
    service = Recorder()
    async with running(TelegramAdapter(service, settings(loopback.url))) as adapter:
        spot = {"type": "mention", "offset": 0, "length": 8}
        await loopback.say("isto não é para o bot", **GROUP)
        await loopback.say("@LeaoBot quem és?", entities=[spot], **GROUP)
        asked = await service.got()
        to = Destination(asked.chat, reply_to=asked.message_id)
        answer_id = await adapter.transport.send(to, Post("Sou o Leão."))
        answer = {"message_id": int(answer_id), "date": 1, "chat": chat_json(0, -100), "from": BOT}
        await loopback.say("e depois?", reply_to_message=answer, **GROUP)
        again = await service.got(2)
    assert [message.text for message in service.messages] == ["quem és?", "e depois?"]
    assert again.reply_to == answer_id
    reply = loopback.of("sendMessage")[0].data["reply_parameters"]
    assert reply["message_id"] == int(asked.message_id)
    assert reply["allow_sending_without_reply"] is True


async def test_a_button_of_an_earlier_run_is_answered_at_once(loopback):
    service = Recorder(toast="O" * 300)
    async with running(TelegramAdapter(service, settings(loopback.url))):
        await loopback.tap("dn:12", under(9), fan=3)
        toast = (await loopback.called("answerCallbackQuery")).data["text"]
    assert [(press.action, press.answer_id) for press in service.presses] == [("dn", 12)]
    assert service.presses[0].fan.key == "telegram:3"
    assert toast == "O" * 200


@pytest.mark.parametrize("data", ["dn:x", "rm:1", "", "up:1;drop", "c:", "c:é", "c:" + "x" * 41])
async def test_a_forged_button_gets_a_kind_word(loopback, data):
    service = Recorder()
    async with running(TelegramAdapter(service, settings(loopback.url))):
        await loopback.tap(data, under(9))
        call = await loopback.called("answerCallbackQuery")
    assert call.data["text"] == text("telegram.old_button")
    assert not service.presses + service.taps


CARD = Post("**Quem fundou?** Em 1910.", choices=(Choice("Aprovar", "ok:7"), Choice("Não", "no:7")))


@pytest.mark.parametrize("chat", [1, -100])
async def test_a_card_is_sent_tapped_after_a_restart_and_edited(loopback, chat):
    kind = ChatKind.PRIVATE if chat > 0 else ChatKind.GROUP
    where = Destination(Chat(Platform.TELEGRAM, str(chat), kind))
    first = TelegramAdapter(Recorder(), settings(loopback.url))
    message_id = int(await first.transport.send(where, CARD))
    await first.close()
    sure = Post("Aprovar mesmo?", choices=(Choice("Sim", "sure:7"),))
    service = Recorder(outcome=Outcome("Tens a certeza?", sure))
    async with running(TelegramAdapter(service, settings(loopback.url))) as adapter:
        key = str(chat), message_id
        assert buttons(loopback.shown[key]) == ["c:ok:7", "c:no:7"]
        card = under(message_id) | {"chat": chat_json(1, chat)}
        await loopback.tap("c:ok:7", card, fan=3)
        await loopback.called("editMessageText")
        assert buttons(loopback.shown[key]) == ["c:sure:7"]
        service.outcome = Outcome("Aprovado.", Post("Aprovado ✅"))
        await loopback.tap("c:sure:7", card, fan=3)
        await loopback.called("editMessageText", 2)
        assert loopback.shown[key]["text"] == "Aprovado ✅"
        assert "reply_markup" not in loopback.shown[key]  # its buttons are gone
        await loopback.tap("c:sure:7", card, fan=3)  # a second tap on what is no longer there
        await loopback.called("answerCallbackQuery", 3)
        await adapter.transport.edit(where, str(message_id), CARD)
        assert buttons(loopback.shown[key]) == ["c:ok:7", "c:no:7"]
    assert [tap.data for tap in service.taps] == ["ok:7", "sure:7", "sure:7"]
    assert {(tap.fan.key, tap.message_id) for tap in service.taps} == {
        ("telegram:3", str(message_id))
    }
    toasts = [call.data["text"] for call in loopback.of("answerCallbackQuery")]
    assert toasts == ["Tens a certeza?", "Aprovado.", "Aprovado."]


async def test_a_choice_that_asks_for_a_text_is_answered_by_a_guided_reply(loopback):
    service = Recorder(outcome=Outcome("Escreve-me."))
    async with running(TelegramAdapter(service, settings(loopback.url))) as adapter:
        card = await adapter.transport.send(PRIVATE, CARD)
        await loopback.tap("c:?ed:7", under(int(card)))
        await loopback.called("answerCallbackQuery")
        asked = await adapter.transport.send(
            PRIVATE, Post("Como deve ficar?", ask=Asked(Wanted.LESSON))
        )
        reply = under(int(asked)) | {"from": BOT}
        await loopback.say("Em 1910, em Faro.", reply_to_message=reply)
        answer = await service.got()
    assert [tap.data for tap in service.taps] == ["?ed:7"]
    assert (answer.text, answer.reply_to) == ("Em 1910, em Faro.", asked)
    assert not loopback.of("editMessageText")


async def test_a_choice_that_breaks_gets_its_toast_and_leaves_the_card(loopback, monkeypatch):
    service = Recorder()

    async def tap(_tap: Tap) -> Outcome:
        raise RuntimeError

    monkeypatch.setattr(service, "tap", tap)
    async with running(TelegramAdapter(service, settings(loopback.url))):
        await loopback.tap("c:ok:7", under(9))
        toast = (await loopback.called("answerCallbackQuery")).data["text"]
    assert toast == text("error.unexpected")
    assert not loopback.of("editMessageText")


async def test_a_slow_or_broken_button_holds_nobody_up_and_still_gets_its_toast(
    loopback, monkeypatch
):
    monkeypatch.setattr(module, "PRESS", 0.01)
    go_on = asyncio.Event()

    async def press(_press: Press) -> Toast:
        await go_on.wait()
        raise RuntimeError

    service = Recorder()
    monkeypatch.setattr(service, "press", press)
    async with running(TelegramAdapter(service, settings(loopback.url))):
        await loopback.tap("fx:12", under(9))
        await loopback.say("e eu?")
        assert (await service.got()).text == "e eu?"
        go_on.set()
        toast = (await loopback.called("answerCallbackQuery")).data["text"]
    assert toast == text("error.unexpected")


async def test_a_correction_is_asked_for_by_a_guided_reply(loopback):
    adapter = TelegramAdapter(Recorder(), settings(loopback.url))
    chat = Chat(Platform.TELEGRAM, "-100", ChatKind.GROUP)
    await adapter.transport.send(
        Destination(chat, handle="1:Ana 😀"), Post("Diz **lá**.", ask=Asked(Wanted.LESSON))
    )
    await adapter.close()
    sent = loopback.of("sendMessage")[0].data
    assert sent["reply_markup"]["force_reply"] is True
    assert sent["reply_markup"]["selective"] is True
    assert sent["reply_markup"]["input_field_placeholder"] == text("telegram.placeholder")
    assert sent["text"] == "Ana 😀: Diz lá."
    assert [(each["type"], each["offset"], each["length"]) for each in sent["entities"]] == [
        ("text_mention", 0, 6),
        ("bold", 12, 2),
    ]


async def test_drafts_stand_for_previews_and_the_answer_is_a_message(loopback):
    adapter = TelegramAdapter(Recorder(), settings(loopback.url, drafts=True))
    writing, done = Buttons(AnswerId(5), running=True), Buttons(AnswerId(5))
    draft = await adapter.transport.send(PRIVATE, Post("No", writing))
    await adapter.transport.edit(PRIVATE, draft, Post("No dom", writing))
    await adapter.transport.edit(PRIVATE, draft, Post("No domingo.", done))
    await adapter.transport.edit(PRIVATE, draft, Post("No domingo!", done))
    await adapter.close()
    drafts = [call.data for call in loopback.of("sendMessageDraft")]
    assert [each["text"] for each in drafts] == ["No", "No dom"]
    assert len({each["draft_id"] for each in drafts}) == 1
    assert [call.data["text"] for call in loopback.of("sendMessage")] == ["No domingo."]
    ((key, shown),) = loopback.shown.items()
    assert shown["text"] == "No domingo!"
    assert adapter.transport.known_as(str(key[1])) == draft


# --- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "meaning"),
    [
        (refuse(429, "Too Many Requests", retry_after=9), RetryAfter),
        (refuse(502, "Bad Gateway"), DeliveryFailed),
        (refuse(500, "Internal Server Error"), DeliveryFailed),
        (refuse(403, "Forbidden: bot was blocked by the user"), MessageGone),
        (refuse(400, "Bad Request: chat not found"), MessageGone),
        (cut, DeliveryUnknown),
    ],
)
async def test_a_post_is_never_sent_twice_by_itself(loopback, fault, meaning):
    adapter = TelegramAdapter(Recorder(), settings(loopback.url))
    loopback.faults["sendMessage"].append(fault)
    with pytest.raises(meaning) as caught:
        await adapter.transport.send(PRIVATE, Post("olá"))
    if isinstance(caught.value, RetryAfter):
        assert caught.value.seconds == 9
    assert not loopback.shown
    await adapter.transport.send(PRIVATE, Post("olá"))
    assert len(loopback.shown) == 1
    await adapter.close()


async def test_a_late_reply_leaves_it_open_whether_the_post_is_there(loopback, monkeypatch):
    monkeypatch.setattr(module, "CALL", 0.2)
    adapter = TelegramAdapter(Recorder(), settings(loopback.url))
    loopback.faults["sendMessage"].append(hang)
    with pytest.raises(DeliveryUnknown):
        await adapter.transport.send(PRIVATE, Post("olá"))
    await adapter.close()


async def test_a_server_that_is_not_there_showed_nothing():
    adapter = TelegramAdapter(Recorder(), settings(f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(DeliveryFailed):
        await adapter.transport.send(PRIVATE, Post("olá"))
    await adapter.transport.typing(PRIVATE)
    await adapter.close()


async def test_entities_that_are_refused_are_left_out(loopback):
    adapter = TelegramAdapter(Recorder(), settings(loopback.url))
    loopback.faults["sendMessage"].append(refuse(400, "Bad Request: can't parse entities"))
    await adapter.transport.send(PRIVATE, Post("**olá**"))
    await adapter.close()
    assert loopback.of("sendMessage")[0].data["text"] == "olá"


async def test_edits_of_what_is_gone_or_the_same_say_so(loopback):
    adapter = TelegramAdapter(Recorder(), settings(loopback.url))
    message_id = await adapter.transport.send(PRIVATE, Post("olá"))
    with pytest.raises(NotModified):
        await adapter.transport.edit(PRIVATE, message_id, Post("olá"))
    loopback.shown.clear()  # the fan deleted it
    with pytest.raises(MessageGone):
        await adapter.transport.edit(PRIVATE, message_id, Post("adeus"))
    await adapter.close()


@pytest.mark.parametrize("token", ["1:another-token", "not a token", "", "1:" + "x" * 40 + "\n9"])
async def test_a_wrong_token_is_the_admins_to_mend(loopback, token):
    adapter = TelegramAdapter(Recorder(), settings(loopback.url, token=token))
    with pytest.raises(ConfigError) as caught:
        await adapter.run()
    await adapter.close()
    assert caught.value.key == "telegram.token_wrong"
    assert adapter.health.state is State.BROKEN
    assert "@BotFather" in adapter.health.detail


async def test_a_token_revoked_while_running_ends_the_run(loopback):
    service = Recorder()
    adapter = TelegramAdapter(service, settings(loopback.url))
    task = asyncio.create_task(adapter.run())
    await loopback.say("olá")
    await service.got()
    loopback.faults["getUpdates"].append(refuse(401, "Unauthorized"))
    await loopback.say("estás aí?")  # ends the long poll that is open
    with pytest.raises(ConfigError):
        await task
    await adapter.close()


async def test_two_bots_on_one_token_say_so_and_go_on_when_one_leaves(loopback):
    service = Recorder()
    async with running(TelegramAdapter(service, settings(loopback.url))) as adapter:
        await loopback.called("setMyCommands", 2)
        async with running(TelegramAdapter(Recorder(), settings(loopback.url))):
            await loopback.until(lambda: adapter.health.state is State.BROKEN)
            assert "token" in adapter.health.detail
            await adapter.transport.send(PRIVATE, Post("ainda escrevo"))
        await loopback.say("e agora?")
        assert (await service.got()).text == "e agora?"
        assert adapter.health.state is State.UP


async def test_telegram_away_at_the_start_and_later_is_waited_for(loopback):
    service = Recorder()
    loopback.faults["getMe"].extend([refuse(502, "Bad Gateway"), cut, refuse(500, "x")])
    async with running(TelegramAdapter(service, settings(loopback.url))) as adapter:
        await loopback.until(lambda: adapter.health.state is State.DOWN)
        assert adapter.health.detail
        await loopback.say("um")
        await service.got(1)
        loopback.faults["getUpdates"].extend(
            [cut, refuse(503, "x"), refuse(429, "x", retry_after=1)]
        )
        await loopback.say("dois")
        await loopback.say("três")
        await service.got(3)
        assert adapter.health.state is State.UP
    assert [message.text for message in service.messages] == ["um", "dois", "três"]
    assert service.resumed == 2  # at the start, and when it was there again


async def test_a_store_that_cannot_say_what_is_open_is_asked_again(loopback):
    service = Recorder(resume_faults=[StoreError(), StoreError()])
    async with running(TelegramAdapter(service, settings(loopback.url))) as adapter:
        await loopback.until(lambda: adapter.health.state is State.DOWN)
        await loopback.say("olá")
        await service.got()
        assert adapter.health.state is State.UP
    assert service.resumed == 3


async def test_an_album_is_received_once(loopback):
    photo = [{"file_id": "a", "file_unique_id": "b", "width": 1, "height": 1}]
    for number in range(3):
        await loopback.say("", photo=photo, media_group_id="77", message_id=number + 1)
    service = Recorder()
    async with running(TelegramAdapter(service, settings(loopback.url))):
        await loopback.until(lambda: loopback.confirmed >= 3)
        await loopback.say("e então?")
        await service.got(2)
    assert [message.attachments for message in service.messages] == [1, 0]


async def test_a_poll_that_hangs_is_cut_and_asked_again(loopback, monkeypatch):
    monkeypatch.setattr(module, "POLL", 0)
    monkeypatch.setattr(module, "STALL", 0.2)
    service = Recorder()
    loopback.faults["getUpdates"].append(hang)
    async with running(TelegramAdapter(service, settings(loopback.url))):
        await loopback.say("acorda")
        assert (await service.got()).text == "acorda"


# --- nothing is lost -----------------------------------------------------------------------------


async def test_what_was_written_while_the_mac_slept_is_answered_in_order(loopback):
    for number in range(5):
        await loopback.say(f"mensagem {number}")
    service = Recorder()
    async with running(TelegramAdapter(service, settings(loopback.url))):
        await service.got(5)
    assert [message.text for message in service.messages] == [f"mensagem {n}" for n in range(5)]
    assert len({message.update_id for message in service.messages}) == 5


async def test_an_update_is_confirmed_only_when_it_is_stored(loopback):
    begun, stored = asyncio.Event(), asyncio.Event()

    async def receive(_message: Message) -> None:
        begun.set()
        await stored.wait()

    service = Recorder(on_receive=receive)
    async with running(TelegramAdapter(service, settings(loopback.url))):
        await loopback.say("guarda-me")
        async with asyncio.timeout(20):
            await begun.wait()
        assert loopback.confirmed == 0
        stored.set()
        await loopback.until(lambda: loopback.confirmed > 0)
    assert len(service.messages) == 1


async def test_a_store_that_fails_gets_the_update_again_and_each_once(loopback):
    failing = [StoreError(), StoreError()]

    async def receive(message: Message) -> None:
        if message.fan.id == "2" and failing:
            raise failing.pop()

    service = Recorder(on_receive=receive)
    await loopback.say("de um", fan=1)
    await loopback.say("de dois", fan=2)
    async with running(TelegramAdapter(service, settings(loopback.url))):
        await service.got(2)
        await loopback.until(lambda: loopback.confirmed > 0)
    assert sorted(message.text for message in service.messages) == ["de dois", "de um"]


async def test_an_update_that_breaks_us_is_left_behind(loopback):
    async def receive(message: Message) -> None:
        if message.text == "veneno":
            raise RuntimeError

    service = Recorder(on_receive=receive)
    async with running(TelegramAdapter(service, settings(loopback.url))):
        await loopback.say("veneno")
        await loopback.say("água")
        assert (await service.got()).text == "água"


async def test_a_chat_that_waits_does_not_hold_up_the_others(loopback):
    other = asyncio.Event()

    async def receive(message: Message) -> None:
        if message.fan.id == "1":
            await other.wait()
        else:
            other.set()

    await loopback.say("um", fan=1)
    await loopback.say("dois", fan=1)
    await loopback.say("outro", fan=2)
    service = Recorder(on_receive=receive)
    async with running(TelegramAdapter(service, settings(loopback.url))):
        await service.got(3)
    assert [message.text for message in service.messages] == ["outro", "um", "dois"]


DYING = """
import asyncio, sys
from adapters.telegram import TelegramAdapter
from adapters.telegram_render import render
from config.settings import EngineSettings, Settings, TelegramSettings

class Service:
    async def resume(self, platform): pass
    async def receive(self, message):
        print("got it", flush=True)
        await asyncio.Event().wait()

url, token = sys.argv[1:]
settings = Settings(telegram=TelegramSettings(base_url=url, token=token))
asyncio.run(TelegramAdapter(Service(), settings).run())
"""


async def test_kill_9_while_an_update_is_being_stored_loses_nothing(loopback):
    await loopback.say("não me percas")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DYING, loopback.url, TOKEN, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async for line in process.stdout:
        if b"got it" in line:
            break
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    service = Recorder()
    async with running(TelegramAdapter(service, settings(loopback.url))):
        assert (await service.got()).text == "não me percas"


async def test_the_token_is_in_no_log_and_no_error(loopback, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    service = Recorder()
    loopback.faults["getMe"].extend([cut, refuse(500, "x")])
    loopback.faults["getUpdates"].extend([cut, refuse(409, "Conflict")])
    async with running(TelegramAdapter(service, settings(loopback.url))) as adapter:
        await loopback.say("olá")
        await service.got()
        loopback.faults["sendMessage"].append(cut)
        with pytest.raises(DeliveryUnknown):
            await adapter.transport.send(PRIVATE, Post("olá"))
        assert TOKEN not in repr(adapter._bot)
    wrong = TelegramAdapter(service, settings(loopback.url, token="1:wrong-secret"))
    with pytest.raises(ConfigError) as caught:
        await wrong.run()
    await wrong.close()
    assert caught.value.__suppress_context__
    out, err = capsys.readouterr()
    for secret in (TOKEN.split(":")[1], "wrong-secret"):
        assert secret not in caplog.text + out + err + json.dumps(str(caught.value))


# --- with the real service --------------------------------------------------------------------


class Gate:
    """Lets the engine write the beginning of an answer, and the rest when told."""

    def __init__(self) -> None:
        self.free = 4
        self.go_on = asyncio.Event()

    async def __call__(self) -> None:
        if not self.free:
            await self.go_on.wait()
        self.free = max(0, self.free - 1)


@asynccontextmanager
async def bot(
    url: str,
    home: Path,
    engine: Engine,
    limits: EngineSettings | None = None,
    **telegram: Any,
) -> AsyncIterator[tuple[TelegramAdapter, Store]]:
    """The bot with everything real but the model."""
    given = {"home": home, "engine": limits or EngineSettings()}
    chosen = settings(url, **telegram).model_copy(update=given)
    async with Store.open(chosen.database) as store, engine:
        service = ChatService(engine, store, chosen)
        adapter = TelegramAdapter(service, chosen)
        adapter.transport.pace = Pace(private=0, group=0)
        service.attach(adapter.transport)
        try:
            async with service, polling(adapter):
                yield adapter, store
        finally:
            await adapter.close()  # the service has said its last words by now


def buttons_shown(loopback: Loopback) -> list[str]:
    """The buttons under the newest message."""
    return buttons(list(loopback.shown.values())[-1]) if loopback.shown else []


def texts(loopback: Loopback) -> list[str]:
    return [shown["text"] for shown in loopback.shown.values()]


async def test_a_whole_conversation_and_its_buttons_after_a_restart(loopback, tmp_path):
    gate = Gate()
    async with bot(loopback.url, tmp_path, EchoEngine(step=gate)) as (_, store):
        await loopback.say("**Claro:** olá")
        await loopback.until(lambda: any("Claro" in shown for shown in texts(loopback)))
        ((key, shown),) = loopback.shown.items()
        assert buttons(shown) == ["st:1"]
        loopback.faults["editMessageText"].append(refuse(429, "Too Many", retry_after=1))
        gate.go_on.set()
        await loopback.until(lambda: "Claro: olá" in texts(loopback))
        assert buttons(loopback.shown[key]) == ["up:1", "dn:1", "fx:1", "ag:1"]
    async with bot(loopback.url, tmp_path, EchoEngine(step=gate)) as (_, store):
        await loopback.tap("up:1", under(key[1]))
        toast = (await loopback.called("answerCallbackQuery")).data["text"]
        assert toast == text("toast.up")
        assert (await store.counts())["votes_up"] == 1
        await loopback.tap("fx:1", under(key[1]))
        await loopback.called("answerCallbackQuery", 2)
        (asked,) = [k for k, sent in loopback.shown.items() if "force_reply" in str(sent)]
        question = {"message_id": asked[1], "date": 1, "chat": chat_json(1, 1), "from": BOT}
        await loopback.say("olá, Leões!", reply_to_message=question)
        thanks = text("toast.corrected")
        await loopback.until(lambda: any(shown.startswith(thanks) for shown in texts(loopback)))
        await loopback.tap("ag:1", under(key[1]))
        await loopback.until(lambda: texts(loopback).count("Claro: olá") == 2)
        await loopback.say("/status")
        await loopback.until(lambda: "echo" in texts(loopback)[-1])


async def test_in_a_group_everybody_may_vote_and_correct(loopback, tmp_path):
    gate = Gate()
    gate.go_on.set()
    async with bot(loopback.url, tmp_path, EchoEngine(step=gate)) as (_, store):
        spot = {"type": "mention", "offset": 0, "length": 8}
        await loopback.say("@LeaoBot quem és tu?", entities=[spot], **GROUP)
        await loopback.until(lambda: buttons_shown(loopback) == ["up:1", "dn:1", "fx:1", "ag:1"])
        ((key, shown),) = loopback.shown.items()
        assert (shown["chat_id"], shown["text"]) == ("-100", "quem és tu?")
        await loopback.react(key[1], new="👎", fan=2, chat=-100)
        answer = under(key[1]) | {"chat": chat_json(0, -100)}
        await loopback.tap("up:1", answer, fan=3)
        await loopback.called("answerCallbackQuery")
        counts = await store.counts()
        assert (counts["votes_up"], counts["votes_down"]) == (1, 1)
        await loopback.react(key[1], old="👎", fan=2, chat=-100)
        await loopback.tap("fx:1", answer, fan=2)
        await loopback.called("answerCallbackQuery", 2)
        assert (await store.counts())["votes_down"] == 0
        asked = next(sent for sent in loopback.shown.items() if "force_reply" in str(sent))
        assert asked[1]["entities"][0]["user"]["id"] == 2
        question = answer | {"message_id": asked[0][1]}
        await loopback.say("Sou o Leão.", fan=2, reply_to_message=question, **GROUP)
        await loopback.until(lambda: text("toast.corrected") in texts(loopback))


async def test_a_stopped_answer_keeps_its_text(loopback, tmp_path):
    async with bot(loopback.url, tmp_path, EchoEngine(step=Gate())):
        await loopback.say("**Claro:** muito")
        await loopback.until(lambda: any("Claro" in shown for shown in texts(loopback)))
        ((key, _),) = loopback.shown.items()
        await loopback.tap("st:1", under(key[1]))
        await loopback.until(lambda: texts(loopback) == ["Claro: m"])
        assert buttons(loopback.shown[key]) == ["up:1", "dn:1", "fx:1", "ag:1"]


async def test_a_message_deleted_while_it_is_written_comes_again(loopback, tmp_path):
    gate = Gate()
    async with bot(loopback.url, tmp_path, EchoEngine(step=gate)):
        await loopback.say("**Claro:** olá")
        await loopback.until(lambda: any("Claro" in shown for shown in texts(loopback)))
        loopback.shown.clear()
        gate.go_on.set()
        await loopback.until(lambda: texts(loopback) == ["Claro: olá"])


async def test_an_answer_interrupted_by_a_stop_is_given_after_the_start(
    loopback, tmp_path, monkeypatch
):
    monkeypatch.setattr("bot.service.GRACE", 0.01)
    gate = Gate()
    async with bot(loopback.url, tmp_path, EchoEngine(step=gate)):
        await loopback.say("**Claro:** olá")
        await loopback.until(lambda: any("Claro" in shown for shown in texts(loopback)))
    (interrupted,) = texts(loopback)
    assert text("answer.interrupted").strip("_") in interrupted
    gate.go_on.set()
    async with bot(loopback.url, tmp_path, EchoEngine(step=gate)):
        await loopback.until(lambda: texts(loopback) == ["Claro: olá"])


async def test_drafts_end_in_one_message(loopback, tmp_path):
    gate = Gate()
    async with bot(loopback.url, tmp_path, EchoEngine(step=gate), drafts=True):
        await loopback.say("**Claro:** olá")
        await loopback.called("sendMessageDraft")
        assert not loopback.shown
        gate.go_on.set()
        await loopback.until(lambda: texts(loopback) == ["Claro: olá"])
        (shown,) = loopback.shown.values()
        assert buttons(shown) == ["up:1", "dn:1", "fx:1", "ag:1"]


async def test_kill_9_in_mid_answer_ends_in_one_answer_on_the_same_message(loopback, tmp_path):
    words = "Força Farense! " * 20
    given = {"FARENSE_TELEGRAM__TOKEN": TOKEN, "FARENSE_TELEGRAM__BASE_URL": loopback.url}
    async with killed_at_the_end("telegram", tmp_path, 0.1, **given):
        await loopback.say(words)
        await loopback.called("editMessageText")  # so the message is there, and known
    ((key, shown),) = loopback.shown.items()
    assert buttons(shown) == ["st:1"]
    async with killed_at_the_end("telegram", tmp_path, 0, **given):
        await loopback.until(lambda: buttons_shown(loopback) == ["up:1", "dn:1", "fx:1", "ag:1"])
    async with killed_at_the_end("telegram", tmp_path, 0, **given):  # nothing is left to say
        await loopback.say("e agora?")
        await loopback.until(lambda: "e agora?" in texts(loopback))
    assert next(iter(loopback.shown)) == key
    assert texts(loopback) == [words.strip(), "e agora?"]
    assert len(loopback.of("sendMessage")) == 2


@pytest.mark.model
async def test_the_embedded_model_answers(loopback, tmp_path, embedded_model):
    from engine.mlx_engine import MLXEngine
    from engine.plan import detect, prepare

    chosen = EngineSettings(temperature=0, max_tokens=24)
    engine = MLXEngine(chosen, embedded_model, prepare(detect()))
    async with bot(loopback.url, tmp_path, engine, chosen) as (_, store):
        await loopback.say("What is the capital of Portugal?")
        done = ["up:1", "dn:1", "fx:1", "ag:1"]
        await loopback.until(lambda: buttons_shown(loopback) == done, patience=250)
        answer = await store.answer(AnswerId(1))
    assert answer is not None
    assert answer.state == "done"
    (shown,) = texts(loopback)
    assert shown.startswith(render(answer.text)[0].rstrip())
