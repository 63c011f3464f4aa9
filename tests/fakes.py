"""A transport that keeps what it is told to show, for tests of everything above the platforms."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime

from bot.domain import Chat, ChatKind, Destination, Fan, Message, Platform, Post, Source
from bot.errors import DeliveryFailed
from bot.ports import Pace
from bot.text import split


class Board:
    """Shows posts in memory: `messages` holds the newest state of each, `calls` all of them."""

    platform = Platform.WEB
    pace = Pace(private=0.0, group=0.0, typing=100.0)

    def __init__(self, platform: Platform = Platform.WEB) -> None:
        self.platform = platform
        self.messages: dict[str, Post] = {}
        self.places: dict[str, Destination] = {}
        self.calls: list[tuple[str, str, Post]] = []
        self.changed = asyncio.Condition()
        self.down = False  # whether the platform takes nothing
        self._ids = itertools.count(1)

    def split(self, text: str) -> list[str]:
        return split(text, 2000, len)

    async def send(self, to: Destination, post: Post) -> str:
        if self.down:
            raise DeliveryFailed
        message_id = f"m{next(self._ids)}"
        self.places[message_id] = to
        await self._show("send", message_id, post)
        return message_id

    async def edit(self, to: Destination, message_id: str, post: Post) -> None:
        if self.down:
            raise DeliveryFailed
        await self._show("edit", message_id, post)

    async def typing(self, to: Destination) -> None:
        pass

    async def _show(self, call: str, message_id: str, post: Post) -> None:
        self.messages[message_id] = post
        self.calls.append((call, message_id, post))
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition, what: str = "the board") -> None:
        """Wait until the condition holds of this board."""
        async with asyncio.timeout(100), self.changed:
            await self.changed.wait_for(lambda: condition(self))

    async def answers(self, count: int) -> list[Post]:
        """Wait for so many finished answers; returns them, oldest first."""
        await self.until(lambda board: len(board.finals()) >= count)
        return self.finals()

    def finals(self) -> list[Post]:
        return [p for p in self.messages.values() if p.buttons and not p.buttons.running]

    def id_of(self, post: Post) -> str:
        return next(key for key, value in self.messages.items() if value is post)


_updates = itertools.count(1)


def a_message(text: str, *, fan: str = "1", chat: Chat | None = None, **more) -> Message:
    """A message of a fan in a private chat on the web, unless said otherwise."""
    chat = chat or Chat(Platform.WEB, fan)
    source = more.pop("source", Source.WEB)
    more.setdefault("update_id", f"u{next(_updates)}")
    return Message(
        chat=chat, fan=more.pop("who", Fan(chat.platform, fan)), text=text, source=source,
        received_at=datetime.now(UTC), **more,
    )  # fmt: skip


def a_group(thread: str | None = None) -> Chat:
    return Chat(Platform.WEB, "-100", ChatKind.GROUP, thread)
