"""Waiting: for the second turn of a conversation, and because of somebody else's long prompt."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

from bench.report import Figure, Target, figure, ratio
from bench.streams import STEMS, Options, Ours, Stream, our_engine, questions
from bot.domain import Request, Role, Turn
from config.settings import EngineSettings

SECOND = "Second turn of a conversation of 1,000 tokens"
STALL = "A prompt of 4,000 tokens while 7 answers are written"
TALK, LONG, RUNNING = 1000, 4000, 7
CALM = 24  # pieces of each stream, at least, before the long prompt arrives
CLOSING = 10  # tokens: cuts off the end of the turn, and somewhat more
ENDLESS = 640  # tokens: longer than the long prompt takes to be read


async def second_turn(options: Options) -> list[Figure]:
    """The same prompt as the second turn of its conversation, and with nothing known of it."""
    pairs: list[tuple[float, float]] = []
    notes: list[str] = []
    async with our_engine(options.model, EngineSettings()) as ours:
        for number in range(2 if options.quick else 5):
            talk = _talk(ours, number)
            key = f"talk-{number}"
            answer = await ours.read(ours.request(talk, 24, conversation=key))
            more = Turn(Role.USER, "Tell me more about that.")
            again = [*talk, Turn(Role.ASSISTANT, answer.text), more]
            warm = ours.request(again, 4, conversation=key)
            cold = ours.request(again, 4)
            taken = {}
            for request in (warm, cold) if number % 2 else (cold, warm):
                taken[request.id] = await ours.read(request)
            pairs.append((taken[warm.id].first, taken[cold.id].first))
            known, all_known = taken[warm.id].cached_tokens, taken[cold.id].cached_tokens
            notes.append(f"{known} of {len(warm.tokens)}")
            if all_known:
                raise RuntimeError("the prompt that should be unknown was known")
    return [
        figure(SECOND, "first token, second turn", "s", [warm for warm, _ in pairs]),
        figure(SECOND, "first token, nothing known", "s", [cold for _, cold in pairs]),
        ratio(
            SECOND,
            "second turn / nothing known",
            pairs,
            target=Target("≤", 0.2),
            note=f"known: {notes[-1]}",
        ),
    ]


async def long_prompt(options: Options) -> list[Figure]:
    """The longest gap in any running answer, in normal steps."""
    waits: list[tuple[float, float]] = []
    reading: list[float] = []
    settings = EngineSettings(cache_mb=2048)  # room for all eight at once
    async with our_engine(options.model, settings) as ours:
        for _ in range(1 if options.quick else 2):
            streams, arrived, long = await _disturb(ours)
            usual, longest = _waits(streams, arrived, long.times[0])
            waits.append((longest, usual))
            reading.append(long.first)
    return [
        figure(STALL, "a normal step", "s", [usual for _, usual in waits]),
        figure(STALL, "first token of the long prompt", "s", reading),
        ratio(STALL, "longest wait of any stream / a normal step", waits, target=Target("≤", 4)),
    ]


async def _disturb(ours: Ours) -> tuple[list[Stream], float, Stream]:
    """Seven answers at work, then a long prompt; ends when that one's answer has begun."""
    streams = [Stream(time.monotonic()) for _ in range(RUNNING)]
    requests = [_endless(ours, turns) for turns in questions(RUNNING)]
    late = ours.request(_long(ours, LONG), 4)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(ours.read(request, stream))
            for request, stream in zip(requests, streams, strict=True)
        ]
        while any(len(stream.times) < CALM for stream in streams):
            await asyncio.sleep(0.05)
            if any(task.done() for task in tasks):
                raise RuntimeError("an answer ended before the long prompt arrived")
        arrived = time.monotonic()
        long = await ours.read(late)
        if any(task.done() for task in tasks):
            raise RuntimeError("an answer ended before the long prompt was read")
        for task in tasks:
            task.cancel()
    return streams, arrived, long


def _endless(ours: Ours, turns: list[Turn]) -> Request:
    """An answer in the middle of a refrain, which a small greedy model never leaves."""
    request = ours.request([*turns, Turn(Role.ASSISTANT, "The lion sings again. " * 12)], ENDLESS)
    return replace(request, tokens=request.tokens[:-CLOSING])


def _waits(streams: Sequence[Stream], arrived: float, until: float) -> tuple[float, float]:
    """The usual gap before the long prompt came, and the longest one in any stream after it.

    Usual is what all seven have while nobody's prompt is read. The gap in which the long prompt's
    answer begins still counts.
    """
    calm = max(stream.times[0] for stream in streams)
    gaps = [gap for stream in streams for gap in itertools.pairwise(stream.times)]
    usual = statistics.median(end - begin for begin, end in gaps if calm < begin and end < arrived)
    return usual, max(end - begin for begin, end in gaps if arrived < end and begin < until)


def _talk(ours: Ours, number: int) -> list[Turn]:
    """The beginning of a conversation, as many exchanges as fit into 1,000 tokens."""
    turns = next(iter(questions(1)))
    for stem in itertools.cycle(STEMS):
        longer = [
            *turns,
            Turn(Role.ASSISTANT, f"That is a good question, number {number}. " * 5),
            Turn(Role.USER, stem),
        ]
        if len(ours.engine.encode(longer)) > TALK:
            return turns
        turns = longer
    raise AssertionError("a cycle never ends")


def _long(ours: Ours, tokens: int) -> list[Turn]:
    """One message that makes a prompt of this many tokens, or a few less."""
    persona, question = next(iter(questions(1)))
    words = (f"{question.text} The lion walked along the river and met a friend. " * 400).split()

    def prompt(count: int) -> Sequence[Turn]:
        return [persona, Turn(Role.USER, " ".join(words[:count]))]

    low, high = 1, len(words)
    while high - low > 1:
        middle = (low + high) // 2
        fits = len(ours.engine.encode(prompt(middle))) <= tokens
        low, high = (middle, high) if fits else (low, middle)
    return list(prompt(low))
