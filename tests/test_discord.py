"""Discord, with the real discord.py on a simulated Discord that we did not write."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

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
    Choice,
    Destination,
    Language,
    Message,
    Outcome,
    Platform,
    Post,
    Press,
    Source,
    Tap,
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
        self.taps: list[tuple[Tap, str | None]] = []
        self.outcome = Outcome("feito")
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

    async def tap(self, tap: Tap) -> Outcome:
        self.taps.append((tap, None))
        return self.outcome

    async def fill(self, tap: Tap, text: str) -> Outcome:
        self.taps.append((tap, text))
        return self.outcome

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


def told(interaction: Any) -> list[tuple[str, bool]]:
    """What was said after a tap or form, and whether to the fan alone."""
    return [(each.content, each.ephemeral) for each in interaction.followups]


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
    assert told(tapped) == [("visto up", True)]
    [press] = desk.presses
    assert (press.action, press.answer_id, press.via) == (Action.UP, AnswerId(7), "button")
    assert press.fan.id == str(world.ana.id)
    assert press.chat == desk.messages[0].chat


async def test_discord_hears_of_a_tap_before_the_service_does(world, desk, adapter, monkeypatch):
    """It waits for 3 seconds only, and takes nothing else for the tap before that."""
    shown = await answered(world, desk, adapter)

    async def press(given: Press) -> Toast:
        acknowledged = [call["type"] for call in world.calls("POST", "/callback")]
        card = replace(CARD, private=True)
        await adapter.transport.send(Destination(given.chat, handle=given.handle), card)
        return Toast(f"visto {acknowledged}")

    monkeypatch.setattr(desk, "press", press)
    tapped = await world.ana.click(shown, custom_id="fb:up:7")
    assert told(tapped) == [("Em 1910?", True), ("visto [6]", True)]


async def test_the_newest_buttons_are_the_ones_that_work(world, desk, adapter):
    await world.user.send_dm("olá")
    where = to(desk.messages[0])
    sent = await adapter.transport.send(where, Post("O", Buttons(AnswerId(7), running=True)))
    stopped = await world.user.click(world.user.dm_channel.last_message, custom_id="fb:st:7")
    assert told(stopped)[0][0] == "visto st"
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
    assert told(thanks) == [("guardado", True)]
    [(press, typed)] = desk.corrections
    assert (press.action, press.answer_id, typed) == (Action.FIX, AnswerId(7), "Foi em 1910.")
    assert press.source is Source.DISCORD_COMMAND


async def test_correct_without_text_opens_the_form_for_the_newest_answer(world, desk):
    opened = await world.ana.slash(world.channel, "corrigir")
    assert opened.modal["custom_id"] == "fix:7"
    assert desk.messages == []
    thanks = await world.ana.submit_modal(opened, {"correction": "Em 1910."})
    assert (thanks.response.content, thanks.ephemeral) == ("guardado", True)
    desk.newest = None
    refused = await world.ana.slash(world.channel, "corrigir")
    assert refused.response.content == text("refusal.no_answer_yet", "en")
    assert refused.ephemeral
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


# --- cards with choices ------------------------------------------------------------------------

CARD = Post("Em 1910?", choices=(Choice("Aprovar", "ok:7"), Choice("Editar", "?ed:7")))


async def card(world: World, desk: Desk, adapter: DiscordAdapter, *, alone: bool) -> Any:
    """A card under a command's answer, for the fan alone or for all."""
    command = "ajuda" if alone else "perguntar"
    asked = await world.ana.slash(world.channel, command, **({} if alone else {"texto": "?"}))
    await adapter.transport.send(to(desk.messages[-1]), replace(CARD, private=alone))
    return asked


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("alone", [False, True])
async def test_a_card_becomes_what_a_tap_makes_of_it(world, desk, adapter, *, alone, restarted):
    asked = await card(world, desk, adapter, alone=alone)
    shown = asked.response.message
    assert names(shown) == ["c:ok:7", "c:?ed:7"]
    assert [item.label for item in shown.components[0].children] == ["Aprovar", "Editar"]
    if restarted:
        await world.env.restart_bot(adapter.connection())
    desk.outcome = Outcome("tens a certeza?", Post("Mesmo?", choices=(Choice("Sim", "sure:7"),)))
    tapped = await world.ana.click(shown, custom_id="c:ok:7")
    assert told(tapped) == [("tens a certeza?", True)]
    assert (asked.response.content, names(asked.response.message)) == ("Mesmo?", ["c:sure:7"])
    desk.outcome = Outcome("", Post("Aprovado ✅"))
    tapped = await world.ana.click(asked.response.message, custom_id="c:sure:7")
    assert tapped.followups == []
    assert (asked.response.content, names(asked.response.message)) == ("Aprovado ✅", [])
    tap = desk.taps[0][0]
    assert (tap.data, tap.message_id, tap.source) == ("ok:7", str(shown.id), Source.DISCORD_COMMAND)
    assert (tap.fan.id, tap.chat) == (str(world.ana.id), desk.messages[0].chat)
    assert [tap.data for tap, _ in desk.taps] == ["ok:7", "sure:7"]


async def test_a_card_in_a_channel_can_be_tapped_and_edited_by_the_core(world, desk, adapter):
    await world.ana.send(world.channel, f"{world.me} olá")
    where = Destination(desk.messages[0].chat)
    sent = await adapter.transport.send(where, CARD)
    desk.outcome = Outcome("só admins")
    tapped = await world.ana.click(world.channel.last_message, custom_id="c:ok:7")
    assert told(tapped) == [("só admins", True)]
    assert names(world.channel.last_message) == ["c:ok:7", "c:?ed:7"]  # it stays as it was
    await adapter.transport.edit(where, sent, Post("A treinar…", choices=(Choice("Pára", "x"),)))
    assert (world.channel.last_message.content, names(world.channel.last_message)) == (
        "A treinar…", ["c:x"],
    )  # fmt: skip


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_choice_that_asks_for_a_text_opens_a_form(world, desk, adapter, restarted):
    asked = await card(world, desk, adapter, alone=True)
    opened = await world.ana.click(asked.response.message, custom_id="c:?ed:7")
    assert opened.modal["title"] == text("form.title", "en")
    assert "value" not in str(opened.modal)  # nothing is prefilled
    assert desk.taps == []
    if restarted:
        await world.env.restart_bot(adapter.connection())
    desk.outcome = Outcome("guardado", Post("Em 1910, em Faro."))
    done = await world.ana.submit_modal(opened, {"correction": "Em 1910, em Faro."})
    [(tap, typed)] = desk.taps
    assert (tap.data, typed, tap.source) == ("?ed:7", "Em 1910, em Faro.", Source.DISCORD_COMMAND)
    assert told(done) == [("guardado", True)]
    assert (asked.response.content, names(asked.response.message)) == ("Em 1910, em Faro.", [])


@pytest.mark.parametrize("code", [10062, 40060])
async def test_a_tap_counts_and_shows_although_discord_gave_it_up(world, desk, adapter, code):
    await world.ana.send(world.channel, f"{world.me} olá")
    await adapter.transport.send(Destination(desk.messages[0].chat), CARD)
    shown = world.channel.last_message
    world.env.inject_error("POST", "/interactions/*", status=404, code=code)
    world.env.inject_error("PATCH", "/webhooks/*", status=404, code=10015, times=None)
    world.env.inject_error("POST", "/webhooks/*", status=404, code=10015, times=None)
    desk.outcome = Outcome("feito", Post("Aprovado ✅"))
    await world.ana.click(shown, custom_id="c:ok:7")
    assert world.channel.last_message.content == "Aprovado ✅"


async def test_other_forms_and_choices_are_none_of_ours(world, desk):
    for custom_id in ("fill:ok:7", "fill:?" + "x" * 40, "give:retrain", "give:nada", "fix:x", ""):
        data = {"custom_id": custom_id, "components": []}
        await world.env.bot.on_interaction(
            MagicMock(type=discord.InteractionType.modal_submit, data=data)
        )
    assert desk.taps == desk.messages == desk.corrections == []


# --- teaching, and the words that a command takes -----------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("typed", [{}, {"pergunta": "Quem fundou o clube?"}])
async def test_teaching_asks_for_what_is_missing_by_a_form(
    world, desk, adapter, *, typed, restarted
):
    opened = await world.ana.slash(world.channel, "ensinar", **typed)
    assert desk.messages == []
    fields = [label["component"] for label in opened.modal["components"]]
    assert [field.get("value") for field in fields] == [typed.get("pergunta"), None]
    assert [label["label"] for label in opened.modal["components"]] == ["Question", "Answer"]
    if restarted:
        await world.env.restart_bot(adapter.connection())
    words = {"correction": "Quem fundou\no clube?", "second": "Um grupo\nde amigos."}
    given = await world.ana.submit_modal(opened, words)
    [message] = desk.messages
    assert message.command == "ensinar"
    assert message.text == "Quem fundou o clube?\nUm grupo\nde amigos."  # question, then answer
    assert message.source is Source.DISCORD_COMMAND
    assert given.ephemeral
    await adapter.transport.send(to(message), Post("Obrigado!", private=True))
    assert given.response.content == "Obrigado!"


async def test_teaching_in_one_line_needs_no_form(world, desk):
    typed = {"pergunta": "Quem fundou?", "resposta": "Amigos."}
    asked = await world.ana.slash(world.channel, "ensinar", **typed)
    assert asked.ephemeral
    assert [(got.command, got.text) for got in desk.messages] == [
        ("ensinar", "Quem fundou?\nAmigos.")
    ]


async def test_a_command_with_words_of_its_own_offers_them_and_works_without(world, desk):
    [sent] = [c for c in world.calls("PUT", "/commands")[0] if c["name"] == "aprender"]
    offered = sent["options"][0]["choices"]
    assert [choice["value"] for choice in offered] == ["sim", "não", "avisos"]
    await world.ana.slash(world.channel, "aprender", texto="não")
    await world.ana.slash(world.channel, "aprender")
    assert [(got.command, got.text) for got in desk.messages] == [
        ("aprender", "não"), ("aprender", ""),
    ]  # fmt: skip
    back = json.loads(json.dumps(sent))
    for choice in back["options"][0]["choices"]:
        choice["name_localizations"] = None
    assert _essence([back]) == _essence([sent])
    back["options"][0]["choices"].pop()
    assert _essence([back]) != _essence([sent])


async def test_admin_commands_are_hidden_from_others_and_all_descriptions_fit(world):
    for command in world.calls("PUT", "/commands")[0]:
        is_admin = next(c.admin for c in COMMANDS if c.name == command["name"])
        assert (command.get("default_member_permissions") is not None) is is_admin
        for each in (command, *command.get("options", [])):
            said = (each["description"], *each.get("description_localizations", {}).values())
            assert all(0 < len(words) <= 100 for words in said)


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
    sleep = asyncio.sleep  # discord.py tries a 503 again, later
    if status == 503:
        monkeypatch.setattr("discord.webhook.async_.asyncio.sleep", lambda _, *a: sleep(0, *a))
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
