"""Discord, with the real discord.py on a simulated Discord that we did not write."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import discord
import pytest
import simcord

import adapters.discord
from adapters.discord import DiscordAdapter
from adapters.discord_commands import _essence
from adapters.discord_inbound import guild_language, language_of
from bot.commands import COMMANDS
from bot.domain import (
    Action,
    AnswerId,
    Buttons,
    Chat,
    ChatKind,
    Destination,
    Language,
    Message,
    Platform,
    Post,
    Press,
    Source,
    Toast,
)
from bot.errors import DeliveryFailed, HandleExpired, MessageGone, StoreError
from bot.health import Health, State
from config.settings import Settings
from config.texts import text

DONE = Buttons(AnswerId(7))


class Desk:
    """Stands for the chat service: writes down what arrives and answers by a script."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.presses: list[Press] = []
        self.corrections: list[tuple[Press, str]] = []
        self.resumed = 0
        self.shown: dict[str, AnswerId] = {}
        self.newest: AnswerId | None = AnswerId(7)
        self.fault: Exception | None = None

    async def resume(self, platform: Platform) -> None:
        assert platform is Platform.DISCORD
        self.resumed += 1
        self._fail()

    def _fail(self) -> None:
        if self.fault:
            raise self.fault

    async def receive(self, message: Message) -> None:
        self._fail()
        self.messages.append(message)

    async def press(self, press: Press) -> Toast:
        self.presses.append(press)
        return Toast(f"visto {press.action}")

    async def correct(self, press: Press, text: str) -> Toast:
        self.corrections.append((press, text))
        return Toast("guardado")

    async def answer_at(self, chat: Chat, message_id: str) -> AnswerId | None:
        self._fail()
        return self.shown.get(message_id)

    async def newest_answer(self, chat: Chat) -> AnswerId | None:
        self._fail()
        return self.newest


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def adapter(desk: Desk) -> DiscordAdapter:
    return DiscordAdapter(desk, Settings())


@pytest.fixture
def simcord_bot(adapter: DiscordAdapter) -> discord.Client:
    return adapter.connection()


class World:
    """A server with one channel and one fan in it."""

    def __init__(self, env: simcord.Env) -> None:
        self.env = env
        self.guild = env.create_guild("Farense")
        self.channel = self.guild.create_text_channel("geral")
        self.user = env.create_user("ana")
        self.ana = self.guild.add_member(self.user)

    @property
    def me(self) -> str:
        assert self.env.bot.user is not None
        return self.env.bot.user.mention

    def calls(self, method: str, ending: str) -> list[Any]:
        return [
            call.json
            for call in self.env.http_requests
            if call.method == method and call.path.endswith(ending)
        ]


@pytest.fixture
def world(simcord_env: simcord.Env) -> World:
    return World(simcord_env)


def to(message: Message) -> Destination:
    return Destination(message.chat, message.message_id, message.handle)


def names(message: Any) -> list[str]:
    return [item.custom_id for row in message.components for item in row.children]


# --- messages --------------------------------------------------------------------------------


async def test_a_mention_is_received_without_it_and_answered_as_a_reply(world, desk, adapter):
    sent = await world.ana.send(world.channel, f"{world.me} quem joga hoje?")
    [message] = desk.messages
    assert message.text == "quem joga hoje?"
    assert message.source is Source.DISCORD_MESSAGE
    assert message.chat == Chat(Platform.DISCORD, str(world.channel.id), ChatKind.GROUP)
    assert message.update_id == message.message_id == str(sent.id)
    await adapter.transport.send(to(message), Post("O **Farense**!", DONE))
    shown = world.channel.last_message
    assert shown.content == "O **Farense**!"
    assert shown.reference.message_id == sent.id
    assert names(shown) == ["fb:up:7", "fb:dn:7", "fb:fx:7", "fb:ag:7"]


async def test_what_is_not_addressed_to_the_bot_is_left_alone(world, desk):
    await world.ana.send(world.channel, "bom dia a todos")
    await world.ana.send(world.channel, "@everyone bom dia")
    assert desk.messages == []


async def test_a_direct_message_needs_no_mention(world, desk, adapter):
    await world.user.send_dm("olá")
    [message] = desk.messages
    assert (message.text, message.chat.kind) == ("olá", ChatKind.PRIVATE)
    await adapter.transport.send(to(message), Post("Olá, Ana!"))
    assert [sent.content for sent in world.user.dm_channel.history()] == ["olá", "Olá, Ana!"]


async def test_a_reply_names_what_it_replies_to_and_quotes_what_others_wrote(world, desk, adapter):
    bruno = world.guild.add_member(world.env.create_user("bruno"))
    rumour = await bruno.send(world.channel, f"{world.me} jogamos em Faro, diz o <@{world.ana.id}>")
    await world.ana.send(world.channel, f"{world.me} é verdade?", reply_to=rumour)
    question, reply = desk.messages
    assert question.quoted is None
    assert (reply.reply_to, reply.quoted) == (str(rumour.id), "jogamos em Faro, diz o @ana")
    answer = await adapter.transport.send(to(question), Post("Sim."))
    await world.ana.send(
        world.channel, f"e quando? {world.me}", reply_to=world.channel.last_message
    )
    assert (desk.messages[-1].reply_to, desk.messages[-1].quoted) == (answer, None)


async def test_a_thread_is_a_chat_of_its_own(world, desk, adapter):
    channel = world.env.bot.get_channel(world.channel.id)
    await channel.create_thread(name="jogo", type=discord.ChannelType.public_thread)
    [thread] = world.channel.threads
    await world.ana.send(thread, f"{world.me} e aqui?")
    [message] = desk.messages
    assert message.chat.thread == message.chat.id == str(thread.id)
    await adapter.transport.send(to(message), Post("Aqui também."))
    assert thread.last_message.content == "Aqui também."


async def test_a_file_is_counted_even_without_words(world, desk):
    await world.ana.send(world.channel, world.me, attachments=[("golo.png", b"png")])
    [message] = desk.messages
    assert (message.text, message.attachments) == ("", 1)


async def test_other_bots_and_webhooks_are_not_answered(world, desk):
    hook = world.guild.create_webhook(world.channel)
    await hook.send(f"{world.me} olá")
    robot = world.guild.add_member(world.env.create_user("robot", bot=True))
    await robot.send(world.channel, f"{world.me} olá")
    assert desk.messages == []


# --- commands --------------------------------------------------------------------------------


async def test_a_question_by_command_thinks_and_becomes_the_answer(world, desk, adapter):
    asked = await world.ana.slash(world.channel, "perguntar", texto="quem fundou o clube?")
    [message] = desk.messages
    assert (message.command, message.text) == ("perguntar", "quem fundou o clube?")
    assert message.source is Source.DISCORD_COMMAND
    assert asked.deferred
    assert not asked.ephemeral
    first = await adapter.transport.send(
        to(message), Post("Foi", Buttons(AnswerId(7), running=True))
    )
    assert asked.response.content == "Foi"
    assert str(asked.response.id) == first
    await adapter.transport.edit(to(message), first, Post("Foi em 1910.", DONE))
    assert asked.response.content == "Foi em 1910."
    await adapter.transport.send(to(message), Post("Em Faro."))
    assert [later.content for later in asked.followups] == ["Em Faro."]


async def test_help_is_for_the_fan_alone(world, desk, adapter):
    asked = await world.ana.slash(world.channel, "ajuda")
    assert asked.ephemeral
    await adapter.transport.send(to(desk.messages[0]), Post("Escreve-me.", private=True))
    assert asked.response.content == "Escreve-me."
    assert world.channel.history(viewer=world.guild.add_member(world.env.create_user("b"))) == []


async def test_a_command_is_answered_after_a_restart(world, desk, adapter):
    asked = await world.ana.slash(world.channel, "perguntar", texto="e agora?")
    await world.env.restart_bot(adapter.connection())
    await adapter.transport.send(to(desk.messages[0]), Post("Agora sim."))
    assert asked.response.content == "Agora sim."
    assert asked.followups == []


async def test_an_expired_interaction_is_answered_in_the_channel(world, desk, adapter):
    await world.ana.slash(world.channel, "perguntar", texto="demora?")
    [message] = desk.messages
    await world.env.advance_time(15 * 60 + 1)
    with pytest.raises(HandleExpired):  # the server says so
        await adapter.transport.send(to(message), Post("Tarde."))
    old = replace(to(message), handle=json.dumps(json.loads(message.handle) | {"expires": 1.0}))
    with pytest.raises(HandleExpired):  # our own clock says so
        await adapter.transport.edit(old, "1", Post("Tarde."))
    await adapter.transport.send(Destination(message.chat), Post("Tarde."))
    assert world.channel.last_message.content == "Tarde."


async def test_a_command_that_came_too_late_is_answered_in_the_channel(world, desk, adapter):
    world.env.inject_error("POST", "/interactions/*", status=404, code=10062)
    await world.ana.slash(world.channel, "perguntar", texto="ainda vais a tempo?")
    await adapter.transport.send(to(desk.messages[0]), Post("Vou."))
    assert world.channel.last_message.content == "Vou."


async def test_commands_are_registered_once_and_not_again(world, adapter):
    names = {command["name"] for command in world.calls("PUT", "/commands")[0]}
    assert names == {command.name for command in COMMANDS}
    [ask] = [c for c in world.calls("PUT", "/commands")[0] if c["name"] == "perguntar"]
    assert ask["name_localizations"] == {"en-US": "ask", "en-GB": "ask"}
    assert ask["options"][0]["name_localizations"] == {"en-US": "text", "en-GB": "text"}
    await world.env.restart_bot(adapter.connection())
    assert len(world.calls("PUT", "/commands")) == 1
    world.env.backend.commands[None].popitem()
    await world.env.restart_bot(adapter.connection())
    assert len(world.calls("PUT", "/commands")) == 2


async def test_commands_compare_as_discord_gives_them_back(world, adapter):
    [sent, *_] = world.calls("PUT", "/commands")[0]
    back = sent | {"id": "1", "version": "2", "default_member_permissions": "32", "nsfw": False}
    assert _essence([back]) == _essence([sent | {"default_member_permissions": 32}])
    assert _essence([back]) != _essence([sent])


@pytest.mark.parametrize(
    ("locale", "language"),
    [("pt-BR", Language.PT), ("en-GB", Language.EN), ("en-US", Language.EN), ("fr", Language.PT)],
)
async def test_the_fans_own_language_decides(locale, language):
    assert language_of(discord.Locale(locale), Language.PT) is language
    guild = MagicMock(preferred_locale=discord.Locale(locale), features=["COMMUNITY"])
    assert guild_language(guild, Language.PT) is language
    guild.features = []  # it never chose a language: Discord says en-US of all of these
    assert guild_language(guild, Language.PT) is Language.PT


# --- feedback --------------------------------------------------------------------------------


async def answered(world: World, desk: Desk, adapter: DiscordAdapter) -> discord.Message:
    await world.ana.send(world.channel, f"{world.me} olá")
    sent = await adapter.transport.send(to(desk.messages[-1]), Post("Olá!", DONE))
    desk.shown[sent] = AnswerId(7)
    return world.channel.last_message


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_vote_is_thanked_for_in_private_also_after_a_restart(
    world, desk, adapter, restarted
):
    shown = await answered(world, desk, adapter)
    if restarted:
        await world.env.restart_bot(adapter.connection())
    tapped = await world.ana.click(shown, custom_id="fb:up:7")
    assert (tapped.response.content, tapped.ephemeral) == ("visto up", True)
    [press] = desk.presses
    assert (press.action, press.answer_id, press.via) == (Action.UP, AnswerId(7), "button")
    assert press.fan.id == str(world.ana.id)
    assert press.chat == desk.messages[0].chat


async def test_a_slow_vote_keeps_discord_waiting_politely(adapter, monkeypatch):
    monkeypatch.setattr("adapters.discord_client.PROMPT", 0)
    deferred = asyncio.Event()

    async def vote() -> Toast:
        await deferred.wait()
        return Toast("Obrigado!")

    interaction = AsyncMock()
    interaction.response.is_done = lambda: True
    interaction.response.defer.side_effect = lambda **_: deferred.set()
    await adapter.connection()._toast(interaction, vote())
    interaction.response.defer.assert_awaited_once_with(ephemeral=True, thinking=True)
    interaction.edit_original_response.assert_awaited_once_with(content="Obrigado!")


async def test_the_newest_buttons_are_the_ones_that_work(world, desk, adapter):
    await world.user.send_dm("olá")
    where = to(desk.messages[0])
    sent = await adapter.transport.send(where, Post("O", Buttons(AnswerId(7), running=True)))
    stopped = await world.user.click(world.user.dm_channel.last_message, custom_id="fb:st:7")
    assert stopped.response.content == "visto st"
    await adapter.transport.edit(where, sent, Post("Olá", DONE))
    assert names(world.user.dm_channel.last_message)[0] == "fb:up:7"
    await adapter.transport.edit(where, sent, Post("Olá"))
    assert names(world.user.dm_channel.last_message) == []


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_correction_is_typed_into_a_form(world, desk, adapter, restarted):
    shown = await answered(world, desk, adapter)
    opened = await world.ana.click(shown, custom_id="fb:fx:7")
    assert "value" not in str(opened.modal)  # nothing is prefilled
    if restarted:
        await world.env.restart_bot(adapter.connection())
    thanks = await world.ana.submit_modal(opened, {"correction": "Foi em 1910."})
    assert (thanks.response.content, thanks.ephemeral) == ("guardado", True)
    [(press, typed)] = desk.corrections
    assert (press.action, press.answer_id, typed) == (Action.FIX, AnswerId(7), "Foi em 1910.")
    assert press.source is Source.DISCORD_COMMAND


async def test_correct_without_text_opens_the_form_for_the_newest_answer(world, desk):
    opened = await world.ana.slash(world.channel, "corrigir")
    assert opened.modal["custom_id"] == "fix:7"
    assert desk.messages == []
    desk.newest = None
    told = await world.ana.slash(world.channel, "corrigir")
    assert told.response.content == text("refusal.no_answer_yet", "en")
    assert told.ephemeral
    await world.ana.slash(world.channel, "corrigir", texto="Em 1910.")
    assert (desk.messages[0].command, desk.messages[0].text) == ("corrigir", "Em 1910.")


async def test_reactions_are_votes_that_can_be_taken_back(world, desk, adapter):
    shown = await answered(world, desk, adapter)
    for emoji in ("👍🏽", "👎", "🦁"):
        await world.ana.react(shown, emoji)
    await world.ana.unreact(shown, "👍🏽")
    assert [(press.action, press.cleared, press.via) for press in desk.presses] == [
        (Action.UP, None, "reaction"),
        (Action.DOWN, None, "reaction"),
        (Action.CLEAR, Action.UP, "reaction"),  # and the 👎 stays
    ]
    assert len({press.update_id for press in desk.presses}) == 3
    question = world.channel.history()[0]
    await world.ana.react(question, "👍")
    assert len(desk.presses) == 3


# --- what can go wrong -----------------------------------------------------------------------


async def test_mass_mentions_never_fire(world, desk, adapter):
    await world.ana.send(world.channel, f"{world.me} diz @everyone")
    await adapter.transport.send(to(desk.messages[0]), Post("@everyone <@&5> <@1> já!"))
    shown = world.channel.last_message
    assert "@everyone" not in shown.content
    assert not shown.mention_everyone
    assert shown.mentions == shown.role_mentions == []
    assert world.calls("POST", "/messages")[-1]["allowed_mentions"]["parse"] == []


async def test_a_long_answer_is_shown_whole_in_several_messages(world, desk, adapter):
    await world.user.send_dm("conta tudo")
    story = "\n\n".join(f"**Parte {n}**: " + "bola_" * 60 for n in range(20))
    pieces = adapter.transport.split(story)
    for piece in pieces:
        await adapter.transport.send(to(desk.messages[0]), Post(piece))
    shown = [message.content for message in world.user.dm_channel.history()][1:]
    assert len(shown) == len(pieces) > 3
    assert all(len(content) <= 2000 for content in shown)
    assert "".join(shown).count("Parte") == 20


async def test_a_deleted_message_or_a_closed_channel_is_gone(world, desk, adapter):
    shown = await answered(world, desk, adapter)
    await shown.delete()
    with pytest.raises(MessageGone):
        await adapter.transport.edit(to(desk.messages[0]), str(shown.id), Post("?"))
    nowhere = Destination(Chat(Platform.DISCORD, "404", ChatKind.GROUP))
    with pytest.raises(MessageGone):
        await adapter.transport.send(nowhere, Post("?"))


async def test_a_server_error_may_be_tried_again(world, desk, adapter):
    await world.user.send_dm("olá")
    world.env.inject_error("POST", "/channels/*/messages", status=503)
    with pytest.raises(DeliveryFailed):
        await adapter.transport.send(to(desk.messages[0]), Post("Olá!"))
    await adapter.transport.send(to(desk.messages[0]), Post("Olá!"))
    assert world.user.dm_channel.last_message.content == "Olá!"


async def test_a_fault_in_one_event_leaves_the_others_alone(world, desk, adapter, capsys):
    shown = await answered(world, desk, adapter)
    desk.messages.clear()
    desk.fault = StoreError("store.locked", path="/secret")
    await world.user.send_dm("um")
    assert world.user.dm_channel.last_message.content == text("error.unexpected", "pt")
    for command, typed in (("perguntar", {"texto": "dois"}), ("corrigir", {})):
        asked = await world.ana.slash(world.channel, command, **typed)
        assert asked.response.content == text("error.unexpected", "en")
        assert asked.ephemeral is (command == "corrigir")
    await world.ana.react(shown, "👍")
    assert "Traceback" not in capsys.readouterr().out
    desk.fault = None
    await world.user.send_dm("três")
    assert [message.text for message in desk.messages] == ["três"]


async def test_whenever_it_is_connected_what_is_open_is_answered(world, desk, adapter):
    assert adapter.health == Health(State.UP)
    for event, times in (("resumed", 2), ("ready", 3)):
        world.env.bot.dispatch("disconnect")
        await world.env.settle()
        assert adapter.health.state is State.DOWN
        world.env.bot.dispatch(event)
        await world.env.settle()
        assert adapter.health.state is State.UP
        assert desk.resumed == times


async def test_a_store_that_fails_at_a_connection_is_asked_again(world, desk, adapter, monkeypatch):
    monkeypatch.setattr("adapters.discord.RESUME_WAIT", 0)
    desk.fault = StoreError()
    resuming = asyncio.create_task(adapter._note(State.UP))
    async with asyncio.timeout(10):
        while desk.resumed < 4:
            await asyncio.sleep(0)
        desk.fault = None
        await resuming
    desk.fault = StoreError()
    resuming = asyncio.create_task(adapter._note(State.UP))
    await asyncio.sleep(0)
    await adapter._note(State.DOWN)
    async with asyncio.timeout(10):
        await resuming  # without a connection there is nobody to answer


@pytest.mark.parametrize(("status", "code"), [(404, 10062), (400, 40060), (503, 0)])
async def test_what_a_fan_did_counts_although_discord_no_longer_listens(
    world, desk, adapter, *, capsys, caplog, monkeypatch, status, code
):
    shown = await answered(world, desk, adapter)
    opened = await world.ana.click(shown, custom_id="fb:fx:7")
    monkeypatch.setattr("asyncio.sleep", AsyncMock())  # discord.py tries a 503 again, later
    world.env.inject_error("POST", "/interactions/*", status=status, code=code, times=None)
    await world.ana.click(shown, custom_id="fb:up:7")
    await world.ana.click(shown, custom_id="fb:fx:7")
    await world.ana.slash(world.channel, "corrigir")
    await world.ana.submit_modal(opened, {"correction": "Foi em 1910."})
    assert [press.action for press in desk.presses] == [Action.UP]
    assert [typed for _, typed in desk.corrections] == ["Foi em 1910."]
    said = capsys.readouterr().out
    assert said.count(f"reason={status}/{code}") == 4
    assert "Traceback" not in said + caplog.text
    assert caplog.records == []


async def test_a_slow_vote_counts_although_discord_gave_the_tap_up(adapter, monkeypatch):
    monkeypatch.setattr("adapters.discord_client.PROMPT", 0)
    voted = asyncio.Event()
    deferred = asyncio.Event()

    async def vote() -> Toast:
        await deferred.wait()
        voted.set()
        return Toast("Obrigado!")

    async def expired(**_: object) -> None:
        deferred.set()
        raise discord.NotFound(MagicMock(status=404), {"code": 10062, "message": "Unknown"})

    interaction = AsyncMock()
    interaction.response.defer.side_effect = expired
    interaction.response.is_done = lambda: False
    await adapter.connection()._toast(interaction, vote())
    assert voted.is_set()
    interaction.edit_original_response.assert_not_awaited()


@pytest.mark.parametrize("name", ["discord.http", "discord.webhook.async_", "discord.gateway"])
@pytest.mark.parametrize(
    "address",
    [
        "https://discord.com/api/v10/webhooks/12/{token}/messages/5",
        "http://127.0.0.1:9/api/v10/interactions/12/{token}/callback",
        "{{'d': {{'token': '{token}'}}}}",
    ],
)
async def test_an_interactions_token_is_never_logged(adapter, caplog, name, address):
    token = "aW50ZXJhY3Rpb246MTI6" + "x_-9" * 40
    caplog.set_level(logging.DEBUG)
    logging.getLogger(name).warning("%s %s is slow: %d", "PATCH", address.format(token=token), 429)
    assert token not in caplog.text
    assert token[:20] not in caplog.text
    assert "PATCH" in caplog.text
    assert "429" in caplog.text


@pytest.mark.parametrize(
    ("code", "key"),
    [(4004, "discord.token_wrong"), (4013, "discord.intents"), (4014, "discord.intents")],
)
async def test_a_gateway_that_closes_for_good_is_a_matter_for_the_admin(code, key):
    """A token that is revoked while the bot runs is told by the gateway's close code."""

    class Closed:
        close_code = code

    error = discord.ConnectionClosed(Closed(), shard_id=None)
    assert adapters.discord._only_admin_can_help(error) == key


async def test_a_gateway_that_merely_closes_is_tried_again():
    class Closed:
        close_code = 1006

    error = discord.ConnectionClosed(Closed(), shard_id=None)
    assert adapters.discord._only_admin_can_help(error) is None


async def test_another_bot_on_the_same_token_is_told_to_the_admin(world, desk, adapter):
    await world.ana.send(world.channel, f"{world.me} quem joga hoje?")
    await adapter.transport.send(to(desk.messages[0]), Post("O Farense!", nonce="5.0.0"))
    ours = await world.env.bot.get_channel(world.channel.id).fetch_message(
        world.channel.last_message.id
    )
    ours.nonce = "5.0.0"
    await world.env.bot.on_message(ours)
    assert adapter.health.state is not State.BROKEN  # its own message is no sign of another
    # The same user, from another program; Discord passes its nonce on, simcord does not.
    other = await world.env.bot.get_channel(world.channel.id).send("O Farense!")
    other.nonce = "9.0.0"
    await world.env.bot.on_message(other)
    assert adapter.health == Health(State.BROKEN, text("discord.conflict", "pt"))
