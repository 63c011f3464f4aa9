"""The Discord client: what fans do arrives here and is handed to the chat service."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import discord
import structlog
from discord import app_commands
from discord.gateway import DiscordWebSocket

from adapters.discord_commands import EnglishNames, register, slash_commands
from adapters.discord_controls import (
    LONGEST_FIELD,
    ChoiceButton,
    ChoiceForm,
    CommandForm,
    CorrectionForm,
    FeedbackButton,
    corrected,
    filled,
    given,
    joined,
)
from adapters.discord_inbound import (
    chat_of,
    command_message,
    guild_language,
    interaction_chat,
    interaction_fan,
    interaction_press,
    interaction_tap,
    is_for_us,
    message_of,
    reaction_press,
    reaction_vote,
)
from adapters.discord_transport import ORIGINAL, DiscordTransport, Handle, perhaps_too_late
from bot.commands import Command
from bot.domain import FORM, Action, AnswerId, Destination, Language, Outcome, Post, Toast
from bot.errors import FarenseError, HandleExpired, explain
from bot.health import State
from bot.service import ChatService
from config.settings import Settings
from config.texts import text

log = structlog.get_logger(__name__)

OFFICIAL_GATEWAY = DiscordWebSocket.DEFAULT_GATEWAY


class Client(discord.Client):
    """One connection to Discord, of the kind that needs no privileged intent."""

    def __init__(
        self,
        service: ChatService,
        settings: Settings,
        transport: DiscordTransport,
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
        self._transport = transport
        self.language = Language(settings.conversation.language)
        self.longest = min(settings.conversation.max_chars, LONGEST_FIELD)
        self._notice = notice
        self._overheard = overheard
        self._order: weakref.WeakValueDictionary[int, asyncio.Lock] = weakref.WeakValueDictionary()
        self.tree = app_commands.CommandTree(self)
        for command in slash_commands(self.take):
            self.tree.add_command(command)
        self.tree.error(_command_failed)
        self.add_dynamic_items(FeedbackButton, ChoiceButton)

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
        self, interaction: discord.Interaction[Any], command: Command, typed: tuple[str, ...]
    ) -> None:
        """A fan gives a slash command; what is missing is asked for by a form."""
        language = interaction_fan(interaction, self.language).language
        if command.second and not all(typed):
            first, second = typed
            form = CommandForm(command, (first, second), language, longest=self.longest)
            await _open(interaction, form)
        elif command.name == "corrigir" and not any(typed):
            await self._offer_form(interaction)
        else:
            words = joined(*typed) if command.second else "".join(typed)
            await self._give(interaction, command, words)

    async def _give(
        self, interaction: discord.Interaction[Any], command: Command, words: str
    ) -> None:
        """Hand a command to the service, which answers in place of the "thinking…"."""
        incoming = command_message(interaction, command.name, words, self.language)
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
            await _open(interaction, CorrectionForm(answer_id, language, longest=self.longest))
            return
        with perhaps_too_late():
            await interaction.response.send_message(sorry, ephemeral=True)

    async def press(
        self, interaction: discord.Interaction[Any], action: Action, answer_id: AnswerId
    ) -> None:
        """A fan taps a button."""
        press = interaction_press(interaction, action, answer_id, self.language)
        if action is Action.FIX:
            form = CorrectionForm(answer_id, press.fan.language, longest=self.longest)
            await _open(interaction, form)
        else:
            await self._settle(interaction, partial(self.service.press, press))

    async def tap(self, interaction: discord.Interaction[Any], data: str) -> None:
        """A fan taps a choice under a notice; some ask for a text first."""
        tap = interaction_tap(interaction, data, self.language)
        if data.startswith(FORM):
            await _open(interaction, ChoiceForm(data, tap.fan.language, longest=self.longest))
        else:
            await self._settle(interaction, partial(self.service.tap, tap))

    async def on_interaction(self, interaction: discord.Interaction[Any]) -> None:
        """A fan submits a form, perhaps one that was opened before we were started anew."""
        data: Any = interaction.data or {}
        if interaction.type is not discord.InteractionType.modal_submit:
            return
        if correction := corrected(data):
            press = interaction_press(interaction, Action.FIX, correction[0], self.language)
            await self._settle(interaction, partial(self.service.correct, press, correction[1]))
        elif choice := filled(data):
            tap = interaction_tap(interaction, choice[0], self.language)
            await self._settle(interaction, partial(self.service.fill, tap, choice[1]))
        elif command := given(data):
            await self._give(interaction, *command)

    async def _settle(
        self,
        interaction: discord.Interaction[Any],
        work: Callable[[], Awaitable[Toast | Outcome]],
    ) -> None:
        """Tell the fan alone what came of a tap or form; the message tapped becomes its post.

        Discord hears of us first: it gives us 3 seconds, and takes no other message before.
        """
        by_command = interaction.message is None  # the form: there is no message to update
        with perhaps_too_late():
            await interaction.response.defer(ephemeral=by_command, thinking=by_command)
        try:
            done = await work()
        except FarenseError as error:
            done = Toast(explain(error, interaction_fan(interaction, self.language).language))
        here = Destination(interaction_chat(interaction), handle=Handle.of(interaction))
        if isinstance(done, Outcome):
            said = done.toast
            if done.post and interaction.message:
                with perhaps_too_late():
                    await self._edit(here, str(interaction.message.id), done.post)
        else:
            said = done.text
        if said:
            with perhaps_too_late():
                await self._transport.send(here, Post(said, private=True))

    async def _edit(self, here: Destination, message_id: str, post: Post) -> None:
        try:
            await self._transport.edit(here, ORIGINAL, post)
        except HandleExpired:
            await self._transport.edit(Destination(here.chat), message_id, post)

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


async def _open(interaction: discord.Interaction[Any], form: discord.ui.Modal) -> None:
    """Open a form; that must be the first response."""
    with perhaps_too_late():
        await interaction.response.send_modal(form)


async def _command_failed(
    interaction: discord.Interaction[Any], error: app_commands.AppCommandError
) -> None:
    """A fault of ours, or an interaction that Discord has given up; others go on."""
    log.error("command failed", platform="discord", exc_info=error, id=interaction.id)
