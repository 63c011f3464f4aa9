"""One chat's calls, one at a time: who is next, and when.

Finals and notices come before previews, oldest first. The platform's pace is kept between any two
calls, and a wait that it asks for stops this chat and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog

from bot.domain import Chat, ChatKind, Destination
from bot.errors import DeliveryError, DeliveryUnknown, HandleExpired, RetryAfter
from bot.ports import Transport

_LONGEST_WAIT = 60.0  # between two tries, in seconds

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long we try. `tries` is for calls that fail; waits that the platform asks for are free.

    Waits between tries grow to a minute: 500 of them outlast a night without a network.

    `call` cuts a hanging call, `drain` is how long an exit waits for finals, both in seconds.
    """

    tries: int = 500
    call: float = 30.0
    drain: float = 1.5


class Arbiter:
    """One chat: decides which call is made next, and when."""

    def __init__(self, transport: Transport, chat: Chat, limits: Limits, spawn: Spawn) -> None:
        self.transport, self.chat, self.limits = transport, chat, limits
        self.closing = False
        self._spawn = spawn
        pace = transport.pace
        self._pace = pace.private if chat.kind is ChatKind.PRIVATE else pace.group
        self._loop = asyncio.get_running_loop()
        self._urgent: list[Job] = []  # finals and notices, the oldest first
        self._streams: list[Job] = []  # those that may show previews, the least recent first
        self._free_at = self._paused_until = 0.0
        self._wake = asyncio.Event()
        self._typing: asyncio.Task[None] | None = None

    def now(self) -> float:
        """Seconds of the loop's clock."""
        return self._loop.time()

    def wake(self) -> None:
        """Look again for something to do."""
        self._wake.set()

    def hasten_end(self) -> None:
        """Show finals and notices only, and end with the last of them."""
        self.closing = True
        self.wake()

    def begin(self, stream: Job) -> None:
        """Take in a new answer and show the typing sign for it."""
        self._streams.append(stream)
        if self._typing:
            self._typing.cancel()
        self._typing = self._spawn(self._type())

    def hurry(self, job: Job) -> None:
        """Take in what must be shown."""
        self._urgent.append(job)
        self.wake()

    def remove(self, job: Job) -> None:
        """Forget what has ended."""
        self._urgent = [other for other in self._urgent if other is not job]
        self._streams = [other for other in self._streams if other is not job]
        self.wake()

    def close(self) -> None:
        """Give up what is left; the typing sign ends."""
        if self._typing:
            self._typing.cancel()
        for job in [*self._urgent, *self._streams]:
            job.settle(delivered=False)

    def pause(self, seconds: float) -> None:
        """Make no call for so long, as the platform asks."""
        self._paused_until = max(self._paused_until, self.now() + seconds)

    async def call(self, call: Awaitable[_T]) -> _T:
        """Make one call to the platform; it fails with a DeliveryError and nothing else."""
        try:
            async with asyncio.timeout(self.limits.call):
                return await call
        except DeliveryError:
            raise
        except TimeoutError as error:
            raise DeliveryUnknown from error
        except Exception as error:
            # The message may be there although the adapter broke: never repeat it blindly.
            _log.error("delivery.defect", chat=self.chat.key, error=type(error).__name__)
            raise DeliveryUnknown from error
        finally:
            self._free_at = self.now() + self._pace

    async def run(self) -> None:
        """Make the calls of this chat until there is nothing left and the pace is kept."""
        while True:
            self._wake.clear()
            ready_at = max(self._free_at, self._paused_until)
            jobs = [*self._urgent, *([] if self.closing else self._previews())]
            due: float | None = ready_at
            if jobs:
                due = max(ready_at, min(job.not_before for job in jobs))
            elif self.closing or (not self._streams and ready_at <= self.now()):
                return
            elif self._streams:
                due = None
            if due is None or due > self.now():
                await self._wait(due)
            else:
                await self._next(jobs).step()

    def _previews(self) -> list[Job]:
        return [stream for stream in self._streams if stream.has_preview]

    def _next(self, jobs: list[Job]) -> Job:
        job = next(job for job in jobs if job.not_before <= self.now())
        if job in self._streams:
            self._streams.remove(job)
            self._streams.append(job)
        return job

    async def _wait(self, until: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._wake.wait()

    async def _type(self) -> None:
        """Repeat the typing sign while an answer has no text yet; its errors do not matter."""
        pace = self.transport.pace.typing
        while pace and (waiting := [job for job in self._streams if job.shows_nothing]):
            rest = max(pace, self._paused_until - self.now())
            if rest == pace:
                try:
                    async with asyncio.timeout(pace):
                        await self.transport.typing(waiting[0].to)
                except RetryAfter as error:
                    rest = max(pace, error.seconds)
                except Exception as error:  # noqa: BLE001 (a sign only; the text will tell)
                    _log.debug("delivery.typing", chat=self.chat.key, error=type(error).__name__)
            await asyncio.sleep(rest)


class Job(ABC):
    """Something to be shown in one chat, call by call."""

    urgent = True  # whether it must be shown, not only may be

    def __init__(self, arbiter: Arbiter, to: Destination) -> None:
        self.to = to
        self.not_before = 0.0
        self._arbiter, self._transport = arbiter, arbiter.transport
        self._tries = 0
        self._result: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def step(self) -> None:
        """Make the next call, and note what its outcome asks for."""
        try:
            await self._advance()
        except RetryAfter as error:
            self._arbiter.pause(error.seconds)
        except HandleExpired as error:
            if self.to.handle is None:
                self._failed(error)
            self.to = replace(self.to, handle=None)
        except DeliveryError as error:
            self._failed(error)
        except Exception as error:  # noqa: BLE001 (a defect must not end the other chats)
            _log.error("delivery.defect", chat=self._arbiter.chat.key, error=type(error).__name__)
            self._failed(error)
        else:
            self._tries = 0

    @property
    def has_preview(self) -> bool:
        """Whether there is a text to show before the final one."""
        return False

    @property
    def shows_nothing(self) -> bool:
        """Whether a fan still waits for the first text."""
        return False

    def settle(self, *, delivered: bool) -> None:
        """End this job, with its outcome."""
        if not self._result.done():
            self._result.set_result(delivered)
        self._arbiter.remove(self)

    @abstractmethod
    async def _advance(self) -> None:
        """Make the next call."""

    @property
    def _repeatable(self) -> bool:
        """Whether the same send may be made twice without showing it twice."""
        return self._transport.pace.idempotent_sends and self.to.handle is None

    def _failed(self, error: Exception) -> None:
        self._tries += 1
        self.not_before = self._arbiter.now() + min(2.0 ** (self._tries - 1), _LONGEST_WAIT)
        if self.urgent and self._tries >= self._arbiter.limits.tries:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        chat, name = self._arbiter.chat.key, type(error).__name__
        _log.warning("delivery.gave_up", chat=chat, error=name, tries=self._tries)
        self.settle(delivered=False)
