"""One message about a night, edited as it goes on, and a new one for its result."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol, Self

from bot.domain import Destination, Post
from bot.errors import FarenseError
from config.texts import text

PACE = 5.0  # seconds between two edits


class Announcer(Protocol):
    """Who shows what no message asked for: `bot.service.ChatService` does."""

    async def announce(self, to: Destination, post: Post, /) -> str | None:
        """Show a new message; the id of it, None where it is not known."""
        ...

    async def revise(self, to: Destination, message_id: str, post: Post, /) -> bool:
        """Change it."""
        ...


class Telling:
    """`async with` keeps the message up to date; without a destination nothing is said."""

    def __init__(self, announcer: Announcer, to: Destination | None, language: str) -> None:
        self._announcer = announcer
        self._to = to
        self._language = language
        self._said = self._shown = ""
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._to is not None:
            self._said = text("night.progress.begin", self._language)
            self._task = asyncio.create_task(self._keep(self._to))
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def update(self, said: str) -> None:
        """Say this soon; only the newest counts."""
        self._said = said
        self._news.set()

    async def end(self, said: str) -> None:
        """Say how it ended, in a message of its own."""
        if self._to is not None:
            with suppress(FarenseError):
                await self._announcer.announce(self._to, Post(said))

    async def _keep(self, to: Destination) -> None:
        message_id = await self._announcer.announce(to, Post(self._said))
        self._shown = self._said
        while message_id is not None:
            await self._news.wait()
            self._news.clear()
            if self._said != self._shown:
                self._shown = self._said
                with suppress(FarenseError, KeyError):
                    await self._announcer.revise(to, message_id, Post(self._shown))
                await asyncio.sleep(PACE)
