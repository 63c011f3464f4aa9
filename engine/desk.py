"""The front desk of every engine, on the event loop: who waits, who runs, who hears what.

An engine gives it two hands, `start` and `abort`, and hands back `Piece`, `Ended` and `Failed`
for each request. The desk knows no model and no thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field

from bot.domain import Done, Event, Finish, Queued, Request, Usage
from bot.errors import EngineBusy, EngineDead, EngineError, GenerationFailed, PromptTooLong
from config.settings import EngineSettings
from engine.fair_queue import FairQueue
from engine.mailbox import Mailbox

FIRST_GUESS = 10.0  # seconds an answer takes, before one was measured
LONGEST_RETRY = 120.0
RATE_WINDOW = 10.0  # seconds that tokens per second are averaged over
FINE_POSITIONS = 10  # up to here each step forward is told, further back one in ten


@dataclass(frozen=True, slots=True)
class Piece:
    """One more token of an answer; its text may still be held back."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is over."""

    id: str
    finish: Finish
    revision: str
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """This answer cannot go on."""

    id: str
    error: EngineError


Report = Piece | Ended | Failed


@dataclass(eq=False, slots=True)
class Job:
    """One request in the house. `max_tokens` is what the context leaves of what was asked."""

    request: Request
    max_tokens: int
    arrived: float
    mailbox: Mailbox = field(default_factory=Mailbox)
    started: float | None = None
    first_token: float | None = None
    told: int = 0
    held: bool = False  # came while the desk was held
    since: float = field(init=False)  # from when on its time counts

    def __post_init__(self) -> None:
        self.since = self.arrived

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def fan(self) -> str:
        """The request's fan."""
        return self.request.fan

    @property
    def length(self) -> int:
        """Tokens that it may come to hold."""
        return len(self.request.tokens) + self.max_tokens


class Desk:
    """Admits, queues, starts, watches and ends requests."""

    def __init__(
        self,
        settings: EngineSettings,
        clock: Callable[[], float],
        start: Callable[[Job], None],
        abort: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._start = start
        self._abort = abort
        self._queue: FairQueue[Job] = FairQueue(settings.queue, settings.queue_per_fan)
        self._running: dict[str, Job] = {}
        self._ids: set[str] = set()  # of all in the house
        self._talks: set[str] = set()  # conversations that an answer is being written in
        self._leaving: set[str] = set()  # no longer wanted, not yet let go by the engine
        self._tokens: deque[float] = deque()
        self._service = FIRST_GUESS
        self._left = asyncio.Event()  # somebody left
        self._back_at: float | None = None
        self.open = False
        self.held = False
        self.context = settings.context
        self.room: int | None = None  # tokens that may be held at once, None for any number

    @property
    def running(self) -> int:
        """Answers being written."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def back_in(self) -> float | None:
        """Seconds until a held desk should go on, where that is known and not yet over."""
        left = 0.0 if self._back_at is None else self._back_at - self._clock()
        return left if self.held and left > 0 else None

    @property
    def tokens_per_second(self) -> float:
        """Over the last seconds, all answers together."""
        since = self._clock() - RATE_WINDOW
        while self._tokens and self._tokens[0] < since:
            self._tokens.popleft()
        return len(self._tokens) / RATE_WINDOW

    async def serve(self, request: Request) -> AsyncGenerator[Event]:
        """One request from the door to its last event."""
        job = self._admit(request)
        try:
            while True:
                event = await job.mailbox.read()
                yield event
                if isinstance(event, Done):
                    return
        finally:
            self._dismiss(job)

    def deliver(self, reports: Iterable[Report]) -> None:
        """Pass on what the engine did."""
        ended = False
        for report in reports:
            job = self._running.get(report.id)
            if job is None:
                continue
            if isinstance(report, Piece):
                self._write(job, report.text)
            else:
                self._end(job, report)
                ended = True
        if ended:
            self._dispatch()

    async def hold(self, expected: float | None = None) -> None:
        """Let whoever comes from now on wait; returns when all who came before have left.

        `expected` are the seconds until `release`, where they can be told. Raises EngineDead.
        """
        self.held = True
        self._back_at = None if expected is None else self._clock() + expected
        while self._running or not all(job.held for job in self._queue):
            self._left.clear()
            await self._left.wait()
        if not self.open:
            raise EngineDead

    def release(self) -> None:
        """Go on with those who waited; their time begins now."""
        self.held = False
        for job in self._queue:
            job.held, job.told, job.since = False, 0, self._clock()
        self._dispatch()

    def check(self) -> None:
        """Give up requests that have been here too long; to be called every now and then."""
        now = self._clock()
        late = now - self._settings.request_timeout
        for job in [job for job in self._queue if job.since < late and not job.held]:
            self._forget(job)
            job.mailbox.end(EngineBusy(self._retry_after()))
        for job in [job for job in self._running.values() if job.since < late]:
            self._let_go(job)
            job.mailbox.end(GenerationFailed())
        self._dispatch()

    def close(self, error: EngineError | None = None) -> None:
        """Take no more requests and end all: with the error, else as cancelled."""
        self.open = False
        for job in [*self._queue, *self._running.values()]:
            if job.id not in self._leaving:
                usage = self._usage(job, revision="", completion=0, cached=0)
                job.mailbox.end(error or Done(Finish.CANCELLED, usage))
        self._queue = FairQueue(self._settings.queue, self._settings.queue_per_fan)
        for held in (self._running, self._leaving, self._ids, self._talks):
            held.clear()
        self._left.set()

    def _admit(self, request: Request) -> Job:
        if not self.open:
            raise EngineDead
        left = self.context - len(request.tokens)
        if left < 1:
            raise PromptTooLong(tokens=len(request.tokens), limit=self.context - 1)
        most = min(left, request.sampling.max_tokens)
        job = Job(request, most, self._clock(), held=self.held)
        if not _is_sound(request) or request.id in self._ids:
            raise GenerationFailed
        if not self._queue.put(job):
            raise EngineBusy(self._retry_after())
        self._ids.add(job.id)
        self._dispatch()
        return job

    def _forget(self, job: Job) -> bool:
        """Take a waiting job out; False when it does not wait."""
        waits = self._queue.remove(job)
        if waits:
            self._ids.discard(job.id)
        return waits

    def _dismiss(self, job: Job) -> None:
        """The consumer is gone: nothing more is written for it."""
        if self._forget(job):
            self._dispatch()
        elif self._running.get(job.id) is job:
            self._let_go(job)

    def _let_go(self, job: Job) -> None:
        """Abort; the place is free once the engine says so."""
        if job.id not in self._leaving:
            self._leaving.add(job.id)
            self._abort(job.id)

    def _dispatch(self) -> None:
        while len(self._running) < self._settings.concurrency:
            job = self._queue.peek(self._may_start)
            if job is None or not self._fits(job):
                break
            self._queue.take(job)
            self._running[job.id] = job
            self._talks.add(job.request.conversation)
            job.started = self._clock()
            self._start(job)
        self._tell_positions()
        self._left.set()

    def _may_start(self, job: Job) -> bool:
        """Whether it is not held, nor another answer of its conversation being written."""
        return not job.held and job.request.conversation not in self._talks

    def _fits(self, job: Job) -> bool:
        """Whether the KV caches of all will fit; one alone always may run."""
        if self.room is None or not self._running:
            return True
        return sum(other.length for other in self._running.values()) + job.length <= self.room

    def _tell_positions(self) -> None:
        for position, job in enumerate(self._queue, start=1):
            near = position <= FINE_POSITIONS or position <= job.told * 0.9
            if job.told == 0 or (position != job.told and near):
                job.told = position
                job.mailbox.place(Queued(position, held=job.held))

    def _write(self, job: Job, text: str) -> None:
        now = self._clock()
        self._tokens.append(now)
        if job.id in self._leaving or not text:
            return
        if job.first_token is None:
            job.first_token = now
        job.mailbox.write(text)

    def _end(self, job: Job, report: Ended | Failed) -> None:
        del self._running[job.id]
        self._ids.discard(job.id)
        self._talks.discard(job.request.conversation)
        if job.id in self._leaving:
            self._leaving.remove(job.id)
        else:
            job.mailbox.end(self._outcome(job, report))

    def _outcome(self, job: Job, report: Ended | Failed) -> Done | EngineError:
        if isinstance(report, Failed):
            return report.error
        took = self._clock() - (job.started or job.arrived)
        self._service += (took - self._service) / 8
        usage = self._usage(
            job,
            revision=report.revision,
            completion=report.completion_tokens,
            cached=report.cached_tokens,
        )
        return Done(report.finish, usage)

    def _usage(self, job: Job, *, revision: str, completion: int, cached: int) -> Usage:
        now = self._clock()
        return Usage(
            revision=revision,
            prompt_tokens=len(job.request.tokens),
            cached_tokens=cached,
            completion_tokens=completion,
            queued=(job.started or now) - job.arrived,
            first_token=(job.first_token or now) - job.arrived,
            total=now - job.arrived,
        )

    def _retry_after(self) -> float:
        rounds = 1 + len(self._queue) / self._settings.concurrency
        return min(LONGEST_RETRY, rounds * self._service)


def _is_sound(request: Request) -> bool:
    """Whether the numbers make sense; NaN fails every comparison."""
    how = request.sampling
    return (
        len(request.tokens) > 0
        and 0 <= request.pinned <= len(request.tokens)
        and 0 <= how.temperature < float("inf")
        and 0 < how.top_p <= 1
        and 0 < how.repetition_penalty < float("inf")
        and how.max_tokens >= 1
    )
