"""Our own cost, without a model: CPU for a message, and memory for many fans at once."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from pathlib import Path

import psutil

from bench.report import Figure, Target, figure, percentile
from bench.streams import STEMS, Options
from bench.whole import WholeBot
from config.settings import EngineSettings, load_settings
from engine.echo import EchoEngine

GROUP = "Our own cost, with the echo engine"
CROWD = 1000
NOTICES = 2.0  # seconds in which every waiting fan is shown the place in the queue
TALK = 3  # messages of each fan in turn
MIB = 2**20
# Two sentences, as an answer should have; the echo engine says them back in some 50 steps.
WORDS = f"{STEMS[0]} {STEMS[1]}"


async def cpu(options: Options) -> list[Figure]:
    """CPU time of this process, all threads, from one final text to the next.

    One message is in the house at a time, so what is spent between two finals is one message's
    cost: storing it, the prompt, 50 steps of the engine with a preview each, the final text, the
    log line. p95 is taken over all messages of a repetition.
    """
    percentiles: dict[int, list[float]] = {50: [], 95: []}
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(Path(folder), engine=EngineSettings())
        async with EchoEngine(settings.engine) as engine, WholeBot.of(engine, settings) as bot:
            fans = 10 if options.quick else 100
            await _costs(bot, "warm", 10)
            for number in range(2 if options.quick else 5):
                costs = await _costs(bot, f"fan{number}", fans)
                for percent, values in percentiles.items():
                    values.append(percentile(costs, percent) * 1000)
    note = f"{fans} fans, {TALK} messages each, one after the other; every step shown"
    return [
        figure(GROUP, "CPU a message, p50", "ms", percentiles[50], note=note),
        figure(GROUP, "CPU a message, p95", "ms", percentiles[95], target=Target("<", 5)),
    ]


async def crowd(options: Options) -> list[Figure]:
    """Memory beyond that of the bot at rest, while a thousand fans are in the house."""
    del options  # a smaller crowd would be another figure
    doors = asyncio.Event()
    doors.set()

    async def step() -> None:
        await doors.wait()
        await asyncio.sleep(0)

    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(Path(folder), engine=EngineSettings(queue=2 * CROWD))
        async with (
            EchoEngine(settings.engine, step=step) as engine,
            WholeBot.of(engine, settings) as bot,
        ):
            await _costs(bot, "warm", 3)
            gc.collect()
            rest = _memory()
            doors.clear()
            fans = asyncio.gather(*(bot.say(f"fan-{n}", WORDS) for n in range(CROWD)))
            while engine.status.running + engine.status.waiting < CROWD:  # noqa: ASYNC110 (a snapshot only)
                await asyncio.sleep(0.1)
            await asyncio.sleep(NOTICES)
            held = peak = _memory() - rest
            began = time.process_time()
            doors.set()
            while not fans.done():
                await asyncio.sleep(0.02)
                peak = max(peak, _memory() - rest)
            await fans
            spent = (time.process_time() - began) * 1000 / CROWD
    return [
        figure(GROUP, f"{CROWD:,} fans in flight, waiting", "MB", [held], target=Target("<", 300)),
        figure(
            GROUP,
            f"{CROWD:,} fans in flight, greatest until all are answered",
            "MB",
            [peak],
            target=Target("<", 300),
        ),
        figure(GROUP, f"{CROWD:,} fans in flight, CPU a message, mean", "ms", [spent]),
    ]


def _memory() -> float:
    """Resident memory of this process in MB."""
    return psutil.Process().memory_info().rss / MIB


async def _costs(bot: WholeBot, name: str, fans: int) -> list[float]:
    """CPU seconds of each message."""
    costs = []
    last = time.process_time()
    for fan in range(fans):
        for _ in range(TALK):
            await bot.say(f"{name}-{fan}", WORDS)
            now = time.process_time()
            costs.append(now - last)
            last = now
    return costs
