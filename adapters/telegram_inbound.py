"""What Telegram delivers, in our words: updates become messages and presses, or nothing."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import telegram
from telegram import CallbackQuery, MessageEntity, MessageReactionUpdated, ReactionTypeEmoji, Update
from telegram.constants import ChatType

from bot.commands import find
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

_COMMAND = re.compile(r"/(\w{1,64})(?:@(\w+))?(?:\s+|$)")
_THUMBS = {"👍": Action.UP, "👎": Action.DOWN}
_SPACES = re.compile(r"[ \t]{2,}")
ALBUMS_KEPT = 500  # albums that are remembered; the parts of one come within seconds


@dataclass(frozen=True, slots=True)
class Translator:
    """Knows who the bot is, so that it knows what is meant for it."""

    bot: telegram.User
    language: Language = Language.PT

    def message(self, update: Update) -> Message | None:
        """A message or command that is meant for the bot."""
        message = update.message
        if message is None or not _by_a_person(message):
            return None
        text = message.text or message.caption or ""
        attached = message.effective_attachment is not None
        if not text and not attached:
            return None  # somebody joined, a new title: nothing said
        shared = message.chat.type != ChatType.PRIVATE
        rest = self._without_mention(message, text) if shared else None
        command = self._command(rest if rest is not None else text, shared=shared)
        if command == _FOREIGN:
            return None
        answered = _replied(message)
        to_bot = answered is not None and self._is_bot(answered.from_user)
        if shared and rest is None and not command and not to_bot:
            return None
        name, body = command or (None, (text if rest is None else rest).strip())
        quoted = None if answered is None or to_bot else _quoted(message, answered)
        return Message(
            update_id=self.update_id(update),
            chat=chat_of(message.chat, message),
            fan=self.fan(message.from_user),
            text=body,
            source=_source(message.chat),
            received_at=message.date,
            message_id=str(message.message_id),
            reply_to=str(answered.message_id) if answered else None,
            quoted=quoted,
            command=name,
            attachments=int(attached),
        )

    def press(self, update: Update, query: CallbackQuery, meant: tuple[Action, AnswerId]) -> Press:
        """A tap on one of the buttons under an answer."""
        chat, source, handle = _place(query)
        return Press(
            action=meant[0],
            answer_id=meant[1],
            fan=self.fan(query.from_user),
            chat=chat,
            source=source,
            update_id=self.update_id(update),
            handle=handle,
        )

    def tap(self, update: Update, query: CallbackQuery, data: str) -> Tap:
        """A tap on one of the choices under a notice."""
        assert query.message is not None
        chat, source, handle = _place(query)
        return Tap(
            data=data,
            fan=self.fan(query.from_user),
            chat=chat,
            source=source,
            update_id=self.update_id(update),
            message_id=str(query.message.message_id),
            handle=handle,
        )

    def vote(self, update: Update, seen: MessageReactionUpdated) -> Press | None:
        """What a change of reactions says about an answer that is still to be found."""
        if seen.user is None or seen.user.is_bot:
            return None
        before, after = (
            {each.emoji for each in each_side if isinstance(each, ReactionTypeEmoji)}
            & _THUMBS.keys()
            for each_side in (seen.old_reaction, seen.new_reaction)
        )
        if before == after:
            return None
        newest = next(iter(after - before or after), None)
        # A thumb taken back speaks of itself only: a later vote by button stays.
        gone = _THUMBS[next(iter(before))] if not newest and len(before) == 1 else None
        return Press(
            action=_THUMBS[newest] if newest else Action.CLEAR,
            answer_id=AnswerId(0),
            fan=self.fan(seen.user),
            chat=chat_of(seen.chat),
            source=_source(seen.chat),
            update_id=self.update_id(update),
            via="reaction",
            cleared=gone,
        )

    def update_id(self, update: Update) -> str:
        """Unique over all bots that this state folder ever served."""
        return f"{self.bot.id}:{update.update_id}"

    def fan(self, user: telegram.User | None) -> Fan:
        """The person, with the language of the app."""
        assert user is not None
        spoken = (user.language_code or "").lower()[:2]
        language = Language(spoken) if spoken in set(Language) else self.language
        return Fan(Platform.TELEGRAM, str(user.id), user.full_name, language)

    def _is_bot(self, user: telegram.User | None) -> bool:
        return user is not None and user.id == self.bot.id

    def _command(self, text: str, *, shared: bool) -> tuple[str, str] | None:
        """The command and its argument; in groups only what is not another bot's."""
        match = _COMMAND.match(text.lstrip())
        if match is None:
            return None
        meant = match[2]
        if meant and meant.lower() != (self.bot.username or "").lower():
            return _FOREIGN if shared else None
        command = find(match[1])
        if command is None:
            return _FOREIGN if shared and not meant else ("ajuda", "")
        return command.name, text.lstrip()[match.end() :].strip()

    def _without_mention(self, message: telegram.Message, text: str) -> str | None:
        """The text without the bot's name in it; None when it is not mentioned."""
        units = text.encode("utf-16-le")
        spots = [
            entity
            for entity, named in {
                **message.parse_entities([MessageEntity.MENTION, MessageEntity.TEXT_MENTION]),
                **message.parse_caption_entities(
                    [MessageEntity.MENTION, MessageEntity.TEXT_MENTION]
                ),
            }.items()
            if self._is_bot(entity.user) or named.lower() == f"@{self.bot.username}".lower()
        ]
        if not spots:
            return None
        for spot in sorted(spots, key=lambda entity: -entity.offset):
            units = units[: 2 * spot.offset] + units[2 * (spot.offset + spot.length) :]
        rest = _SPACES.sub(" ", units.decode("utf-16-le")).strip()
        return rest.lstrip(",:;").lstrip().replace(" ,", ",").replace(" ?", "?")


_FOREIGN = ("", "")


class Albums:
    """An album comes as one message a photo: the first with words stands for it, else the first."""

    def __init__(self) -> None:
        self._taken: OrderedDict[str, bool] = OrderedDict()  # by album: whether it had words

    def message(
        self, translate: Translator, update: Update, batch: Sequence[Update]
    ) -> Message | None:
        """The message of an update; None where another photo of its album stands for it."""
        message = translate.message(update)
        album = _album(update)
        if message is None or album is None:
            return message
        together = [
            photo
            for each in batch
            if _album(each) == album and (photo := translate.message(each)) is not None
        ]
        first = next((photo for photo in together if _has_words(photo)), together[0])
        had_words = self._taken.get(album)
        is_late = had_words is not None and (had_words or not _has_words(message))
        return None if is_late or message.update_id != first.update_id else message

    def remember(self, update: Update, message: Message) -> None:
        """Keep in mind that an album's message is safely stored."""
        if album := _album(update):
            self._taken[album] = _has_words(message)
            while len(self._taken) > ALBUMS_KEPT:
                self._taken.popitem(last=False)


def _album(update: Update) -> str | None:
    return update.message.media_group_id if update.message else None


def _has_words(message: Message) -> bool:
    return bool(message.text or message.command)


def chat_of(chat: telegram.Chat, message: telegram.Message | None = None) -> Chat:
    """The chat; a forum topic is one of its own."""
    kind = ChatKind.PRIVATE if chat.type == ChatType.PRIVATE else ChatKind.GROUP
    topic = message.message_thread_id if message and message.is_topic_message else None
    return Chat(Platform.TELEGRAM, str(chat.id), kind, str(topic) if topic else None)


def _place(query: CallbackQuery) -> tuple[Chat, Source, str | None]:
    """Where a button was tapped, and whom a guided reply there must name."""
    message = query.message
    assert message is not None  # only buttons under inline messages have none; we send none
    chat = chat_of(message.chat, message if isinstance(message, telegram.Message) else None)
    who = query.from_user
    return chat, _source(message.chat), f"{who.id}:{who.first_name}" if chat.is_shared else None


def with_answer(press: Press, answer_id: AnswerId) -> Press:
    """A vote by reaction, now that its answer is known."""
    return replace(press, answer_id=answer_id)


def _source(chat: telegram.Chat) -> Source:
    return Source.TELEGRAM_PRIVATE if chat.type == ChatType.PRIVATE else Source.TELEGRAM_GROUP


def _by_a_person(message: telegram.Message) -> bool:
    """Whether a fan wrote it: not a bot, a channel, an inline bot or an anonymous admin."""
    return (
        message.from_user is not None
        and not message.from_user.is_bot
        and message.via_bot is None
        and message.sender_chat is None
        and not message.is_automatic_forward
    )


def _replied(message: telegram.Message) -> telegram.Message | None:
    """The message replied to; in a topic everything replies to its beginning, which is none."""
    answered = message.reply_to_message
    if answered is None or answered.forum_topic_created is not None:
        return None
    return answered


def _quoted(message: telegram.Message, answered: telegram.Message) -> str | None:
    quote = message.quote.text if message.quote else None
    return quote or answered.text or answered.caption
