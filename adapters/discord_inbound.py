"""What comes from Discord, in the words of the core: chats, fans, messages."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import discord

from adapters.discord_transport import Handle
from bot.domain import (
    Action,
    AnswerId,
    Chat,
    ChatKind,
    Fan,
    Language,
    Message,
    Platform,
    Press,
    Source,
    Tap,
)

_THREADS = {
    discord.ChannelType.news_thread,
    discord.ChannelType.public_thread,
    discord.ChannelType.private_thread,
}
_WRITTEN = {discord.MessageType.default, discord.MessageType.reply}
_NAMED = re.compile(r"<(?:@[!&]?(?P<user>\d+)|a?(?P<emoji>:\w+:)\d+)>")
_REACTIONS = {"👍": Action.UP, "👎": Action.DOWN}


def chat_of(channel: Any, *, channel_id: int, shared: bool) -> Chat:
    """The chat of a channel. A thread goes by its own id: Discord addresses it like a channel."""
    place = str(channel_id)
    if not shared:
        return Chat(Platform.DISCORD, place, ChatKind.PRIVATE)
    thread = place if getattr(channel, "type", None) in _THREADS else None
    return Chat(Platform.DISCORD, place, ChatKind.GROUP, thread)


def language_of(locale: discord.Locale | None, default: Language) -> Language:
    """Our language for one of Discord's; it knows Portuguese as pt-BR only."""
    name = locale.value if locale else ""
    if name.startswith("pt"):
        return Language.PT
    return Language.EN if name.startswith("en") else default


def guild_language(guild: discord.Guild | None, default: Language) -> Language:
    """The language of a server, where it has chosen one: elsewhere Discord says en-US."""
    chosen = guild.preferred_locale if guild and "COMMUNITY" in guild.features else None
    return language_of(chosen, default)


def fan_of(user: discord.abc.User, language: Language) -> Fan:
    """The person behind a Discord account."""
    return Fan(Platform.DISCORD, str(user.id), user.display_name, language)


def is_for_us(message: discord.Message, me: discord.abc.User) -> bool:
    """Whether a person wrote this to the bot: in a direct message, or by mentioning it."""
    if message.author.bot or message.webhook_id or message.type not in _WRITTEN:
        return False
    return message.guild is None or any(user.id == me.id for user in message.mentions)


def message_of(message: discord.Message, me: discord.abc.User, default: Language) -> Message:
    """A message as the core takes it, without the mention that addressed it."""
    reference = message.reference
    replied = reference if reference and message.type is discord.MessageType.reply else None
    return Message(
        update_id=str(message.id),
        chat=chat_of(
            message.channel, channel_id=message.channel.id, shared=message.guild is not None
        ),
        fan=fan_of(message.author, guild_language(message.guild, default)),
        text=_words(message, me),
        source=Source.DISCORD_MESSAGE,
        received_at=message.created_at,
        message_id=str(message.id),
        reply_to=str(replied.message_id) if replied and replied.message_id else None,
        quoted=_quoted(replied.resolved, me) if replied else None,
        attachments=len(message.attachments) + len(message.stickers),
    )


def _words(message: discord.Message, me: discord.abc.User) -> str:
    """The text with names in place of ids, and without our own."""
    names = {str(user.id): f"@{user.display_name}" for user in message.mentions}
    names[str(me.id)] = ""
    text = _NAMED.sub(
        lambda found: found["emoji"] or names.get(found["user"], found[0]), message.content
    )
    return text.strip()


def _quoted(resolved: object, me: discord.abc.User) -> str | None:
    """What somebody else wrote in the message that was replied to, where Discord shows it."""
    if isinstance(resolved, discord.Message) and resolved.author.id != me.id:
        return _words(resolved, me) or None
    return None


def interaction_chat(interaction: discord.Interaction[Any]) -> Chat:
    """Where an interaction happened."""
    return chat_of(
        interaction.channel,
        channel_id=interaction.channel_id or 0,
        shared=interaction.guild_id is not None,
    )


def interaction_fan(interaction: discord.Interaction[Any], default: Language) -> Fan:
    """Who interacted; the locale is the one that the fan's own app is set to."""
    return fan_of(interaction.user, language_of(interaction.locale, default))


def command_message(
    interaction: discord.Interaction[Any], command: str, text: str, default: Language
) -> Message:
    """A slash command as the core takes it."""
    return Message(
        update_id=str(interaction.id),
        chat=interaction_chat(interaction),
        fan=interaction_fan(interaction, default),
        text=text,
        source=Source.DISCORD_COMMAND,
        received_at=interaction.created_at,
        command=command,
        handle=Handle.of(interaction),
    )


def interaction_press(
    interaction: discord.Interaction[Any], action: Action, answer_id: AnswerId, default: Language
) -> Press:
    """A button or a submitted form as the core takes it."""
    return Press(
        action=action,
        answer_id=answer_id,
        fan=interaction_fan(interaction, default),
        chat=interaction_chat(interaction),
        source=Source.DISCORD_COMMAND,
        update_id=str(interaction.id),
        handle=Handle.of(interaction),
    )


def interaction_tap(interaction: discord.Interaction[Any], data: str, default: Language) -> Tap:
    """A tapped choice, or the form that it opened, as the core takes it."""
    return Tap(
        data=data,
        fan=interaction_fan(interaction, default),
        chat=interaction_chat(interaction),
        source=Source.DISCORD_COMMAND,
        update_id=str(interaction.id),
        message_id=str(interaction.message.id) if interaction.message else None,
        handle=Handle.of(interaction),
    )


def reaction_vote(reaction: discord.RawReactionActionEvent) -> Action | None:
    """The vote that a reaction means, in any skin colour."""
    return _REACTIONS.get((reaction.emoji.name or "")[:1])


def reaction_press(
    reaction: discord.RawReactionActionEvent,
    vote: Action,
    answer_id: AnswerId,
    chat: Chat,
    language: Language,
) -> Press:
    """A reaction as the core takes it; one that is taken back clears the vote that it was.

    Discord gives it no id: each one counts as it comes.
    """
    is_new = reaction.event_type == "REACTION_ADD"
    stamp = int(datetime.now(UTC).timestamp() * 1e6)
    return Press(
        action=vote if is_new else Action.CLEAR,
        answer_id=answer_id,
        fan=Fan(
            Platform.DISCORD,
            str(reaction.user_id),
            reaction.member.display_name if reaction.member else "",
            language,
        ),
        chat=chat,
        source=Source.DISCORD_MESSAGE,
        update_id=f"{reaction.message_id}-{reaction.user_id}-{stamp}",
        via="reaction",
        cleared=None if is_new else vote,
    )
