"""The Discord client: what fans do arrives here and is handed to the chat service."""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, Self

import discord
import structlog
from discord import app_commands
from discord.gateway import DiscordWebSocket

from adapters.discord_commands import EnglishNames, register, slash_commands
from adapters.discord_inbound import (
    chat_of,
    command_message,
    guild_language,
    interaction_chat,
    interaction_fan,
    interaction_press,
    is_for_us,
    message_of,
    reaction_press,
    reaction_vote,
)
from adapters.discord_transport import EMOJI, TOKEN_LIFE, perhaps_too_late
from bot.commands import Argument, Command
from bot.domain import Action, AnswerId, Language, Toast
from bot.errors import FarenseError, explain
from bot.health import State
from bot.service import ChatService
from config.settings import Settings
from config.texts import text

log = structlog.get_logger(__name__)

OFFICIAL_GATEWAY = DiscordWebSocket.DEFAULT_GATEWAY
PROMPT = 2.0  # seconds after which we ask Discord for patience; it gives us 3
LONGEST_FIELD = 4000  # characters that Discord lets a person type into a form or command
_FORM = re.compile(r"fix:(?P<answer>\d+)")
_FIELD = "correction"


class Client(discord.Client):
    """One connection to Discord, of the kind that needs no privileged intent."""

    def __init__(
        self,
        service: ChatService,
        settings: Settings,
        notice: Callable[[State], Awaitable[None]],
        overheard: Callable[[str], None],
    ) -> None:
        super().__init__(
            intents=discord.Intents(
                guilds=True,
                guild_messages=True,
                dm_messages=True,
                guild_reactions=True,
                dm_reactions=True,
            ),
            allowed_mentions=discord.AllowedMentions.none(),
            max_messages=None,
            max_ratelimit_timeout=30.0,  # the library's least; a longer wait is ours to show
        )
        self.service = service
        self.language = Language(settings.conversation.language)
        self.longest = min(settings.conversation.max_chars, LONGEST_FIELD)
        self._notice = notice
        self._overheard = overheard
        self._order: weakref.WeakValueDictionary[int, asyncio.Lock] = weakref.WeakValueDictionary()
        self.tree = app_commands.CommandTree(self)
        for command in slash_commands(self.take):
            self.tree.add_command(command)
        self.tree.error(_command_failed)
        self.add_dynamic_items(FeedbackButton)

    async def setup_hook(self) -> None:
        """Register the commands, once logged in."""
        await self.tree.set_translator(EnglishNames())
        await register(self, self.tree)

    # --- the connection ----------------------------------------------------------------------

    async def on_connect(self) -> None:
        """Stay with a gateway of one's own, whatever address it announces for later."""
        if DiscordWebSocket.DEFAULT_GATEWAY != OFFICIAL_GATEWAY:
            self.ws.gateway = DiscordWebSocket.DEFAULT_GATEWAY

    async def on_ready(self) -> None:
        """Everything works."""
        await self._notice(State.UP)

    async def on_resumed(self) -> None:
        """The connection is back, and nothing was missed."""
        await self._notice(State.UP)

    async def on_disconnect(self) -> None:
        """The connection is lost; the library tries again by itself."""
        await self._notice(State.DOWN)

    async def on_error(self, event_method: str, /, *_: Any, **__: Any) -> None:
        """A fault of ours in one event; the others go on."""
        log.exception("event failed", platform="discord", event=event_method)  # noqa: LOG004 (called while the error is handled)

    # --- messages and commands ---------------------------------------------------------------

    async def on_message(self, message: discord.Message) -> None:
        """A fan writes to the bot, or the bot itself: another program may use its token."""
        if self.user and message.author.id == self.user.id and message.nonce is not None:
            self._overheard(str(message.nonce))
        if self.user is None or not is_for_us(message, self.user):
            return
        incoming = message_of(message, self.user, self.language)
        try:
            async with self._turn(message.channel.id):
                await self.service.receive(incoming)
        except FarenseError as error:
            log.warning("message not taken", platform="discord", error=str(error))
            with perhaps_too_late():
                await message.reply(explain(error, incoming.fan.language), mention_author=False)

    async def take(
        self, interaction: discord.Interaction[Any], command: Command, typed: str
    ) -> None:
        """A fan gives a slash command."""
        incoming = command_message(interaction, command.name, typed, self.language)
        if command.argument is Argument.OPTIONAL and not typed:
            await self._offer_form(interaction)
            return
        with perhaps_too_late():
            await interaction.response.defer(ephemeral=command.private, thinking=True)
        if not interaction.response.is_done():
            incoming = replace(incoming, handle=None)  # answered in the channel instead
        try:
            async with self._turn(interaction.channel_id or 0):
                await self.service.receive(incoming)
        except FarenseError as error:
            log.warning("command not taken", platform="discord", error=str(error))
            if incoming.handle:
                with perhaps_too_late():
                    sorry = explain(error, incoming.fan.language)
                    await interaction.edit_original_response(content=sorry)

    def _turn(self, channel: int) -> asyncio.Lock:
        """The lock that keeps what happens in a channel in order."""
        lock = self._order.get(channel)
        if lock is None:
            lock = self._order[channel] = asyncio.Lock()
        return lock

    # --- feedback ----------------------------------------------------------------------------

    async def _offer_form(self, interaction: discord.Interaction[Any]) -> None:
        """Open the form for the newest answer of the chat."""
        language = interaction_fan(interaction, self.language).language
        try:
            answer_id = await self.service.newest_answer(interaction_chat(interaction))
            sorry = text("refusal.no_answer_yet", language)
        except FarenseError as error:
            answer_id, sorry = None, explain(error, language)
        if answer_id is not None:
            await self._open_form(interaction, answer_id, language)
            return
        with perhaps_too_late():
            await interaction.response.send_message(sorry, ephemeral=True)

    async def _open_form(
        self, interaction: discord.Interaction[Any], answer_id: AnswerId, language: Language
    ) -> None:
        with perhaps_too_late():
            await interaction.response.send_modal(
                CorrectionForm(answer_id, language, longest=self.longest)
            )

    async def press(
        self, interaction: discord.Interaction[Any], action: Action, answer_id: AnswerId
    ) -> None:
        """A fan taps a button."""
        press = interaction_press(interaction, action, answer_id, self.language)
        if action is Action.FIX:
            await self._open_form(interaction, answer_id, press.fan.language)
        else:
            await self._toast(interaction, self.service.press(press))

    async def on_interaction(self, interaction: discord.Interaction[Any]) -> None:
        """A fan submits a form, perhaps one that was opened before we were started anew."""
        data: Any = interaction.data or {}
        if interaction.type is not discord.InteractionType.modal_submit:
            return
        if form := _FORM.fullmatch(data.get("custom_id", "")):
            answer_id = AnswerId(int(form["answer"]))
            press = interaction_press(interaction, Action.FIX, answer_id, self.language)
            await self._toast(interaction, self.service.correct(press, _typed(data) or ""))

    async def _toast(
        self, interaction: discord.Interaction[Any], work: Coroutine[Any, Any, Toast]
    ) -> None:
        """Tell the fan alone how it went, and in time."""
        task = asyncio.create_task(work)
        done, _ = await asyncio.wait({task}, timeout=PROMPT)
        if not done:
            with perhaps_too_late():
                await interaction.response.defer(ephemeral=True, thinking=True)
        try:
            said = (await task).text
        except FarenseError as error:
            said = explain(error, interaction_fan(interaction, self.language).language)
        with perhaps_too_late():
            if done:
                await interaction.response.send_message(said, ephemeral=True)
            elif interaction.response.is_done():
                await interaction.edit_original_response(content=said)

    async def on_raw_reaction_add(self, reaction: discord.RawReactionActionEvent) -> None:
        """A fan reacts with 👍 or 👎 to an answer."""
        await self._reaction(reaction)

    async def on_raw_reaction_remove(self, reaction: discord.RawReactionActionEvent) -> None:
        """A fan takes a reaction back."""
        await self._reaction(reaction)

    async def _reaction(self, reaction: discord.RawReactionActionEvent) -> None:
        vote = reaction_vote(reaction)
        if vote is None or self.user is None or reaction.user_id == self.user.id:
            return
        try:
            async with self._turn(reaction.channel_id):
                await self._vote(reaction, vote)
        except FarenseError as error:
            log.warning("reaction not taken", platform="discord", error=str(error))

    async def _vote(self, reaction: discord.RawReactionActionEvent, vote: Action) -> None:
        """Count a reaction, or take it back, when it is under an answer of ours."""
        shared = reaction.guild_id is not None
        channel = self.get_channel(reaction.channel_id)
        chat = chat_of(channel, channel_id=reaction.channel_id, shared=shared)
        answer_id = await self.service.answer_at(chat, str(reaction.message_id))
        if answer_id is None or (reaction.member and reaction.member.bot):
            return
        guild = self.get_guild(reaction.guild_id) if reaction.guild_id else None
        language = guild_language(guild, self.language)
        await self.service.press(reaction_press(reaction, vote, answer_id, chat, language))


class FeedbackButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"fb:(?P<action>up|dn|fx|ag|st):(?P<answer>\d+)",
):
    """A button under an answer. All that it knows is in its id, so it outlives a restart."""

    def __init__(self, action: Action, answer_id: AnswerId) -> None:
        name = f"fb:{action}:{answer_id}"
        super().__init__(discord.ui.Button(emoji=EMOJI[action], custom_id=name))
        self._action = action
        self._answer_id = answer_id

    @classmethod
    async def from_custom_id(
        cls,
        interaction: discord.Interaction[Any],  # noqa: ARG003 (discord.py's signature)
        item: discord.ui.Item[Any],  # noqa: ARG003 (the same)
        match: re.Match[str],
        /,
    ) -> Self:
        """Make the button again from its id."""
        return cls(Action(match["action"]), AnswerId(int(match["answer"])))

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        """Hand the tap on."""
        await interaction.client.press(interaction, self._action, self._answer_id)


class CorrectionForm(discord.ui.Modal):
    """Asks what an answer should have been. `Client.on_interaction` takes what is submitted."""

    def __init__(self, answer_id: AnswerId, language: Language, *, longest: int) -> None:
        super().__init__(
            title=text("discord.form_title", language),
            timeout=TOKEN_LIFE,
            custom_id=f"fix:{answer_id}",
        )
        self.add_item(
            discord.ui.Label(
                text=text("discord.form_label", language),
                description=text("discord.form_hint", language),
                component=discord.ui.TextInput(
                    style=discord.TextStyle.paragraph, custom_id=_FIELD, max_length=longest
                ),
            )
        )


def _typed(data: Any) -> str | None:
    """The text of the form's field, wherever the layout has put it."""
    if isinstance(data, list):
        return next((found for part in data if (found := _typed(part)) is not None), None)
    if not isinstance(data, dict):
        return None
    if data.get("custom_id") == _FIELD:
        return str(data.get("value", ""))
    return _typed([data.get("components"), data.get("component")])


async def _command_failed(
    interaction: discord.Interaction[Any], error: app_commands.AppCommandError
) -> None:
    """A fault of ours, or an interaction that Discord has given up; others go on."""
    log.error("command failed", platform="discord", exc_info=error, id=interaction.id)
