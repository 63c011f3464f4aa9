"""Against mlx_lm.server: tokens a second and the time to the first one."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from bench.report import Figure, Target, figure, percentile, ratio
from bench.servers import STOCK, TUNED, float32_folder, server
from bench.streams import Contestant, Counter, Options, Stream, our_engine, questions
from bench.whole import WholeBot
from bot.domain import Turn
from config.settings import EngineSettings
from engine.plan import detect

MANY = 8
THEIRS = "mlx_lm.server"


@dataclass(frozen=True, slots=True)
class Round:
    """One contestant answering all clients at once."""

    rate: float  # tokens a second, all clients together
    firsts: list[float]  # seconds to the first text, of each client
    cached: int  # prompt tokens that were known already, all clients together
    tokens: int


Results = dict[str, list[Round]]


async def against_stock(options: Options) -> list[Figure]:
    """Ours beside the server as it comes, with few tokens: it makes some five a second."""
    name = "Against mlx_lm.server as it comes"
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(our_engine(options.model, EngineSettings()))
        folder = ours.folder
        stock = await stack.enter_async_context(server(THEIRS, STOCK, folder))
        counter = Counter(folder)
        rounds, tokens = (1, 16) if options.quick else (3, 32)
        many = await contest([ours, stock], counter, MANY, tokens, rounds)
        one = await contest([ours, stock], counter, 1, tokens, 0 if options.quick else 2)
    return [
        *compare(name, many, THEIRS, MANY, rate=Target("≥", 12), first=Target("≤", 0.1)),
        *compare(name, one, THEIRS, 1),
    ]


async def against_tuned(options: Options) -> list[Figure]:
    """Ours, and the whole bot, beside the server with the same BLAS and weights."""
    name = "Against mlx_lm.server with our BLAS and float32 weights"
    if not detect().dequantise:
        return [Figure(name, "tokens/s", note="not here: this machine runs int4 as it is")]
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(our_engine(options.model, EngineSettings()))
        folder = ours.folder
        copy = await asyncio.to_thread(float32_folder, folder)
        tuned = await stack.enter_async_context(server(THEIRS, TUNED, copy))
        tokens = 32 if options.quick else 64
        whole = await stack.enter_async_context(WholeBot.on(ours.engine, tokens))
        counter = Counter(folder)
        rounds = 2 if options.quick else 5
        many = await contest([ours, tuned, whole], counter, MANY, tokens, rounds)
        one = await contest([ours, tuned, whole], counter, 1, tokens, rounds)
    return [
        *compare(name, many, THEIRS, MANY, rate=Target("≥", 1.15)),
        *compare(name, one, THEIRS, 1, rate=Target("≥", 1)),
    ]


async def contest(
    contestants: Sequence[Contestant], counter: Counter, clients: int, tokens: int, rounds: int
) -> Results:
    """Let all answer the same new prompts in turn, another one first in each round."""
    results: Results = defaultdict(list)
    if rounds:
        for one in contestants:  # so that the persona is known to all
            await one.ask(next(iter(questions(1))), 2)
    order = itertools.cycle(range(len(contestants)))
    for first in itertools.islice(order, rounds):
        prompts = list(questions(clients))
        lengths = set()
        for one in (*contestants[first:], *contestants[:first]):
            taken, streams = await take(one, prompts, counter, tokens)
            results[one.name].append(taken)
            lengths.add(sum(stream.prompt_tokens for stream in streams))
        if len(lengths) > 1:
            raise RuntimeError(f"the contestants were not asked the same: {lengths}")
    return results


async def take(
    contestant: Contestant, prompts: Sequence[list[Turn]], counter: Counter, tokens: int
) -> tuple[Round, list[Stream]]:
    """All clients ask at once; the clock runs until the last one is answered."""
    began = time.monotonic()
    streams = await asyncio.gather(*(contestant.ask(turns, tokens) for turns in prompts))
    took = time.monotonic() - began
    written = sum(counter.count(stream.text) for stream in streams)
    cached = sum(stream.cached_tokens for stream in streams)
    return Round(written / took, [one.first for one in streams], cached, written), streams


def compare(
    group: str,
    results: Results,
    other: str,
    clients: int,
    *,
    rate: Target | None = None,
    first: Target | None = None,
) -> list[Figure]:
    """What each did, and ours divided by the other's, round by round."""
    who = f"{clients} clients" if clients > 1 else "1 client"
    figures: list[Figure] = []
    for name, rounds in results.items():
        firsts = [one.firsts for one in rounds]
        note = f"{sum(r.tokens for r in rounds)} tokens, {sum(r.cached for r in rounds)} known"
        figures += [
            figure(group, f"{who}, {name}", "tokens/s", [one.rate for one in rounds], note=note),
            figure(
                group, f"{who}, {name}: first token, p50", "s", [percentile(f, 50) for f in firsts]
            ),
        ]
        if clients > 1:
            worst = [percentile(f, 95) for f in firsts]
            figures.append(figure(group, f"{who}, {name}: first token, p95", "s", worst))
    if results:
        pairs = list(zip(results["ours"], results[other], strict=True))
        rates = [(ours.rate, theirs.rate) for ours, theirs in pairs]
        figures.append(ratio(group, f"{who}: tokens/s, ours / theirs", rates, target=rate))
        for percent in (50, 95) if clients > 1 else (50,):
            quotients = [
                (percentile(a.firsts, percent), percentile(b.firsts, percent)) for a, b in pairs
            ]
            label = f"{who}: first token p{percent}, ours / theirs"
            figures.append(ratio(group, label, quotients, target=first))
    return figures
