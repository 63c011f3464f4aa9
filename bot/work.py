"""What the bot is busy with: one piece of work for each message, which its fan may stop."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from bot.domain import AnswerId, AnswerState, Destination, Message
from bot.errors import EngineBusy, Refusal

FLOOD = 12  # messages of one fan in hand from which on more are dropped without a word


@dataclass(slots=True, eq=False)
class Work:
    """A message being answered: waiting for its turn, or being written as `answer_id`."""

    message: Message
    answer_id: AnswerId | None = None
    reason: AnswerState | None = None  # why it was stopped
    in_queue: bool = False  # whether it waits for the model or uses it
    _scope: asyncio.Timeout | None = field(default=None, repr=False)

    @property
    def to(self) -> Destination:
        """Where its answer goes; in a group it points at the fan's message."""
        chat = self.message.chat
        return Destination(
            chat, self.message.message_id if chat.is_shared else None, self.message.handle
        )

    def stop(self, reason: AnswerState) -> None:
        """End the stoppable part of this work now."""
        self.reason = self.reason or reason
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def stoppable(self) -> AsyncIterator[None]:
        """Run a block that `stop` ends early and quietly; look at `reason` afterwards."""
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(now if self.reason else None) as self._scope:
                yield
        except TimeoutError:
            if self.reason is None:
                raise
        finally:
            self._scope = None


class Workload:
    """All work in hand: bounded, in order within a conversation, and easy to find for a stop."""

    def __init__(self, most: int, most_per_fan: int) -> None:
        self._most = most
        self._most_per_fan = most_per_fan
        self._works: dict[str, Work] = {}
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def __contains__(self, message: Message) -> bool:
        return message.key in self._works

    def __len__(self) -> int:
        return len(self._works)

    @contextmanager
    def take(self, message: Message) -> Iterator[Work]:
        """Count a message in for as long as the block runs."""
        work = self._works[message.key] = Work(message)
        try:
            yield work
        finally:
            del self._works[message.key]

    def enqueue(self, work: Work) -> None:
        """Let a work wait for the model, unless too much came before it, of this fan or of all.

        What only waits to be delivered does not count: a platform that is down fills no queue.
        """
        earlier = [other for other in self.before(work) if other.in_queue]
        mine = sum(other.message.fan.key == work.message.fan.key for other in earlier)
        if mine >= self._most_per_fan:
            raise Refusal("refusal.pending", n=mine)
        if len(earlier) >= self._most:
            raise EngineBusy(retry_after=30)
        work.in_queue = True

    def floods(self, work: Work) -> bool:
        """Whether a fan has so much in hand here that even refusing more would fill the chat."""
        fan = work.message.fan.key
        return sum(other.message.fan.key == fan for other in self.before(work)) >= FLOOD

    def before(self, work: Work) -> Iterator[Work]:
        """The works that came before this one."""
        return itertools.takewhile(lambda other: other is not work, self._works.values())

    @asynccontextmanager
    async def turn(self, work: Work, conversation: str) -> AsyncIterator[bool]:
        """Wait for a work's turn, first come first served; False when it was stopped before."""
        lock = self._turns.get(conversation)
        if lock is None:
            lock = self._turns[conversation] = asyncio.Lock()
        acquired = False
        async with work.stoppable():
            acquired = bool(await lock.acquire())
        try:
            yield acquired and work.reason is None
        finally:
            if acquired:
                lock.release()

    def stop(
        self, which: Callable[[Work], bool], reason: AnswerState, before: Work | None = None
    ) -> int:
        """Stop the works that `which` picks, all or those before one; returns how many."""
        works = self._works.values() if before is None else self.before(before)
        chosen = [work for work in works if which(work)]
        for work in chosen:
            work.stop(reason)
        return len(chosen)
