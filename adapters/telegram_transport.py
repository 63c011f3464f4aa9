"""How posts get onto Telegram, and what its errors mean to the core."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import httpx
from telegram import (
    ForceReply,
    InlineKeyboardMarkup,
    LinkPreviewOptions,
    Message,
    MessageEntity,
    ReplyParameters,
    User,
    error,
)
from telegram.constants import ChatAction
from telegram.ext import ExtBot

from adapters.telegram_render import keyboard, render, split
from bot.domain import ChatKind, Destination, Platform, Post
from bot.errors import (
    DeliveryFailed,
    DeliveryUnknown,
    MessageGone,
    NotModified,
    RetryAfter,
)
from bot.ports import Pace
from bot.text import utf16_length
from config.texts import text

# The library gives times as timedelta only when asked to, and warns when not.
os.environ.setdefault("PTB_TIMEDELTA", "true")

T = TypeVar("T")

NO_PREVIEW = LinkPreviewOptions(is_disabled=True)
DRAFTS_KEPT = 1000  # drafts whose message is remembered
_GONE = re.compile(
    r"not found|can't be edited|message_id_invalid|deactivated|not enough rights|no rights"
    r"|topic_closed|topic_deleted|peer_id_invalid|chat_write_forbidden|was upgraded|kicked",
    re.IGNORECASE,
)
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


class TelegramTransport:
    """The Transport of Telegram."""

    platform = Platform.TELEGRAM
    pace = Pace(private=1.0, group=3.0, typing=4.0)

    def __init__(self, bot: ExtBot[Any], language: str, *, drafts: bool) -> None:
        self._bot = bot
        self._language = language
        self._drafts = drafts
        self._kept: OrderedDict[str, str] = OrderedDict()  # a draft's id: its message's id

    def split(self, text: str) -> list[str]:
        """Cut CommonMark into pieces that each fit one message."""
        return split(text)

    async def send(self, to: Destination, post: Post) -> str:
        """Show a new message, or a draft where drafts are on and it is not final."""
        if self._drafts and to.chat.kind is ChatKind.PRIVATE and _is_preview(post):
            draft = f"draft:{secrets.randbelow(2**31 - 1) + 1}"
            await self._draft(to, draft, post)
            return draft
        return await self._message(to, post)

    async def edit(self, to: Destination, message_id: str, post: Post) -> None:
        """Replace the text and buttons of a message; a draft becomes a message when final."""
        if message_id.startswith("draft:"):
            if message_id in self._kept:
                message_id = self._kept[message_id]
            elif _is_preview(post):
                await self._draft(to, message_id, post)
                return
            else:
                self._keep(message_id, await self._message(to, post))
                return

        async def call(shown: str, entities: Sequence[MessageEntity]) -> object:
            return await self._bot.edit_message_text(
                shown,
                chat_id=int(to.chat.id),
                message_id=int(message_id),
                entities=entities,
                reply_markup=keyboard(post.buttons, post.choices),
                link_preview_options=NO_PREVIEW,
            )

        await _shown(call, *render(post.text))

    async def typing(self, to: Destination) -> None:
        """Show that the bot is at work."""
        with contextlib.suppress(error.TelegramError):
            await self._bot.send_chat_action(
                int(to.chat.id), ChatAction.TYPING, message_thread_id=_thread(to)
            )

    def known_as(self, message_id: str) -> str:
        """The id under which the core knows a message: its draft's, where it began as one."""
        return next((draft for draft, kept in self._kept.items() if kept == message_id), message_id)

    async def _message(self, to: Destination, post: Post) -> str:
        async def call(shown: str, entities: Sequence[MessageEntity]) -> Message:
            return await self._bot.send_message(
                int(to.chat.id),
                shown,
                entities=entities,
                message_thread_id=_thread(to),
                reply_parameters=_reply(to),
                reply_markup=self._markup(post),
                link_preview_options=NO_PREVIEW,
            )

        shown, entities = render(post.text)
        if post.ask and to.handle:
            shown, entities = _addressed(to.handle, shown, entities)
        return str((await _shown(call, shown, entities)).message_id)

    async def _draft(self, to: Destination, draft: str, post: Post) -> None:
        async def call(shown: str, entities: Sequence[MessageEntity]) -> bool:
            return await self._bot.send_message_draft(
                int(to.chat.id),
                int(draft.removeprefix("draft:")),
                shown,
                entities=entities,
                message_thread_id=_thread(to),
            )

        await _shown(call, *render(post.text))

    def _keep(self, draft: str, message_id: str) -> None:
        self._kept[draft] = message_id
        while len(self._kept) > DRAFTS_KEPT:
            self._kept.popitem(last=False)

    def _markup(self, post: Post) -> InlineKeyboardMarkup | ForceReply | None:
        if post.ask:
            return ForceReply(
                selective=True,
                input_field_placeholder=text("telegram.placeholder", self._language),
            )
        return keyboard(post.buttons, post.choices)


def _is_preview(post: Post) -> bool:
    return post.buttons is not None and post.buttons.running


def _thread(to: Destination) -> int | None:
    return int(to.chat.thread) if to.chat.thread else None


def _reply(to: Destination) -> ReplyParameters | None:
    if to.reply_to is None or not to.reply_to.isdecimal():
        return None
    return ReplyParameters(int(to.reply_to), allow_sending_without_reply=True)


def _addressed(
    handle: str, shown: str, entities: list[MessageEntity]
) -> tuple[str, list[MessageEntity]]:
    """Put the asked fan's name first: in a group the guided reply opens for who is mentioned."""
    fan_id, _, name = handle.partition(":")
    lead = f"{name}: "
    fan = User(int(fan_id), name, is_bot=False)
    mention = MessageEntity(MessageEntity.TEXT_MENTION, 0, utf16_length(name), user=fan)
    moved = MessageEntity.shift_entities(lead, entities)
    return lead + shown, [mention, *moved]


async def _shown(
    call: Callable[[str, Sequence[MessageEntity]], Awaitable[T]],
    shown: str,
    entities: Sequence[MessageEntity],
) -> T:
    """Make a call; without entities when Telegram does not take them, for then nothing shows."""
    with core_errors():
        try:
            return await call(shown, entities)
        except error.BadRequest as problem:
            if not entities or "entit" not in problem.message.lower():
                raise
        return await call(shown, ())


@contextlib.contextmanager
def core_errors() -> Iterator[None]:
    """Turn Telegram's errors into the core's; what was not said was not shown."""
    try:
        yield
    except error.RetryAfter as problem:
        raise RetryAfter(seconds(problem)) from problem
    except (error.Forbidden, error.ChatMigrated) as problem:
        raise MessageGone from problem
    except error.BadRequest as problem:
        if "not modified" in problem.message.lower():
            raise NotModified from problem
        raise (MessageGone if _GONE.search(problem.message) else DeliveryFailed) from problem
    except error.NetworkError as problem:
        raise (DeliveryUnknown if _may_be_there(problem) else DeliveryFailed) from problem
    except (error.InvalidToken, error.Conflict) as problem:
        raise DeliveryFailed from problem
    except error.TelegramError as problem:
        raise DeliveryUnknown from problem  # an answer that makes no sense


def seconds(problem: error.RetryAfter) -> float:
    """How long Telegram asks us to wait."""
    wait = problem.retry_after
    return wait.total_seconds() if isinstance(wait, timedelta) else float(wait)


def _may_be_there(problem: error.NetworkError) -> bool:
    """Whether the request went out and its answer was lost; a 5xx is an answer."""
    cause = problem.__cause__
    return isinstance(cause, httpx.HTTPError) and not isinstance(cause, _NOT_SENT)
