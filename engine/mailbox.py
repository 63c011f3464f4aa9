"""Between an engine and one consumer: the newest state instead of a queue."""

from __future__ import annotations

import asyncio

from bot.domain import Delta, Done, Event, Queued
from bot.errors import EngineError


class Mailbox:
    """What a consumer has not read yet. A slow one finds the deltas joined; nothing piles up."""

    def __init__(self) -> None:
        self._place: Queued | None = None
        self._text: list[str] = []
        self._end: Done | EngineError | None = None
        self._news = asyncio.Event()

    def place(self, place: Queued) -> None:
        """Replace the place in the queue."""
        self._place = place
        self._news.set()

    def write(self, text: str) -> None:
        """Add to the answer."""
        self._place = None
        self._text.append(text)
        self._news.set()

    def end(self, end: Done | EngineError) -> None:
        """Close; what was written before is still read."""
        self._place = None
        self._end = end
        self._news.set()

    async def read(self) -> Event:
        """Wait for the next event. Raises what the request failed with."""
        await self._news.wait()
        if self._place is not None:
            event: Event = self._place
            self._place = None
        elif self._text:
            event = Delta("".join(self._text))
            self._text.clear()
        elif isinstance(self._end, Done):
            return self._end
        else:
            assert self._end is not None, "set only together with one of the three"
            raise self._end
        if not self._text and self._end is None:
            self._news.clear()
        return event
