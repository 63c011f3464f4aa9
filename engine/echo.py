"""An engine without a model: it says back what the fan said, step by step, the same every time.

It stands behind the same port, desk and limits as the real one. Steps come from outside, so a test
decides when they happen and a load run how fast.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from bot.domain import EngineStatus, Event, Finish, Request, Role, Turn
from bot.errors import EngineDead, EngineError
from config.settings import EngineSettings
from engine.desk import Desk, Ended, Failed, Job, Piece, Report
from engine.stops import StopFilter

CHARACTERS = 3  # in one token, so that texts have about as many tokens as with a real model
WIDTH = 21  # bits of a code point plus one: zero is no letter
FIRST_MARKER = 1 << (CHARACTERS * WIDTH)  # above any text: no text can look like one
MARKERS = {role: FIRST_MARKER + number for number, role in enumerate(Role)}
END = FIRST_MARKER + len(MARKERS)
REVISION = "echo"

Fault = Callable[[Request, int], EngineError | None]


def no_fault(_request: Request, _step: int) -> None:
    """Let every step of every request succeed."""


async def next_turn_of_the_loop() -> None:
    """The default step: as fast as the loop turns, and others get their turn between."""
    await asyncio.sleep(0)


@dataclass(slots=True)
class Voice:
    """One answer on its way."""

    job: Job
    left: list[str]
    filter: StopFilter
    written: int = 0


class EchoEngine:
    """The port `bot.ports.Engine` without a model.

    `step` is awaited before each step of all running answers; `fault` may return the error that a
    request fails with at its n-th step.
    """

    def __init__(
        self,
        settings: EngineSettings | None = None,
        *,
        step: Callable[[], Awaitable[object]] = next_turn_of_the_loop,
        fault: Fault = no_fault,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings or EngineSettings()
        self._step = step
        self._fault = fault
        self._desk = Desk(self._settings, clock, self._start, self._abort)
        self._voices: dict[str, Voice] = {}
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start the steps."""
        self._desk.open = True
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End what runs as cancelled."""
        self._desk.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def status(self) -> EngineStatus:
        """A snapshot; cheap, never waits."""
        return EngineStatus(
            ready=self._desk.open,
            model="echo",
            revision=REVISION,
            plan="echo",
            context=self._desk.context,
            running=self._desk.running,
            waiting=self._desk.waiting,
            tokens_per_second=self._desk.tokens_per_second,
            cache_bytes=0,
            paused=self._desk.held,
            back_in=self._desk.back_in,
        )

    def encode(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """A marker for the role, the text in pieces, an end; markers cannot come from a text."""
        tokens = [token for turn in turns for token in _encode(turn)]
        if turns and turns[-1].role is Role.USER:
            tokens.append(MARKERS[Role.ASSISTANT])
        return tuple(tokens)

    def generate(self, request: Request) -> AsyncGenerator[Event]:
        """Queue a request and stream the fan's own words; see `bot.ports.Engine`."""
        return self._desk.serve(request)

    async def pause(self, expected: float | None = None) -> None:
        """Answer who is here; who comes meanwhile waits for `resume`."""
        await self._desk.hold(expected)

    async def resume(self) -> None:
        """Go on with those who waited."""
        self._desk.release()

    def check(self) -> None:
        """Give up late requests, as the watch of a real engine does."""
        self._desk.check()

    def die(self) -> None:
        """Behave from now on like an engine whose thread is gone."""
        self._desk.close(EngineDead())

    def _start(self, job: Job) -> None:
        words = list(pieces(last_words(job.request.tokens)))
        self._voices[job.id] = Voice(job, words, StopFilter(job.request.sampling.stop))
        self._work.set()

    def _abort(self, request_id: str) -> None:
        voice = self._voices[request_id]
        voice.left.clear()
        voice.job.max_tokens = 0

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            await self._step()
            self._desk.deliver(
                [report for voice in list(self._voices.values()) for report in self._speak(voice)]
            )
            if not self._voices:
                self._work.clear()

    def _speak(self, voice: Voice) -> Iterator[Report]:
        """One step of one answer."""
        name = voice.job.id
        if voice.job.max_tokens == 0:
            yield self._end(voice, Finish.CANCELLED)
            return
        if error := self._fault(voice.job.request, voice.written):
            del self._voices[name]
            yield Failed(name, error)
            return
        if not voice.left:
            yield Piece(name, voice.filter.flush())
            yield self._end(voice, Finish.STOP)
            return
        text, stopped = voice.filter.push(voice.left.pop(0))
        voice.written += 1
        full = voice.written >= voice.job.max_tokens and not stopped
        yield Piece(name, text + voice.filter.flush() if full else text)
        if stopped or full:
            yield self._end(voice, Finish.STOP if stopped else Finish.LENGTH)

    def _end(self, voice: Voice, finish: Finish) -> Ended:
        del self._voices[voice.job.id]
        return Ended(voice.job.id, finish, REVISION, voice.written, cached_tokens=0)


def pieces(text: str) -> Iterator[str]:
    """Cut a text as it will be streamed."""
    return (text[i : i + CHARACTERS] for i in range(0, len(text), CHARACTERS))


def last_words(tokens: Sequence[int]) -> str:
    """What the fan said last."""
    words: list[str] = []
    inside = False
    for token in tokens:
        if token >= FIRST_MARKER:
            inside = token == MARKERS[Role.USER]
            words = [] if inside else words
        elif inside:
            words.append(_decode(token))
    return "".join(words)


def _encode(turn: Turn) -> Iterator[int]:
    yield MARKERS[turn.role]
    for piece in pieces(turn.text):
        yield sum((ord(letter) + 1) << (WIDTH * place) for place, letter in enumerate(piece))
    yield END


def _decode(token: int) -> str:
    letters = (token >> (WIDTH * place) & ((1 << WIDTH) - 1) for place in range(CHARACTERS))
    return "".join(chr(letter - 1) for letter in letters if letter)
