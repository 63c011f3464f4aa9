"""How long a swap keeps a new request waiting.

16 answers are written. At the moment when one of their steps has been shown, a new request is sent:
once by itself, and once right behind a swap to another revision. Two waits of it are measured, both
from the sending:

* until the engine's thread comes to it. A swap is carried out between two steps, and keeps waiting
  whoever came after it for as long as it takes: the target is held against this, once as the time
  the swap takes in the thread and once as the difference of the two requests, in which the rest of
  the running step lies as well.
* until its first token. Here belongs what follows from the swap: nothing that the old weights have
  read is of use to the new ones, so that the first request reads the persona anew, and two models
  take turns for as long as the 16 are written.

The thread's clock is read by an order of its own, a swap whose `build` only looks and then raises,
which changes nothing. The revision is one as a night leaves it, verified and read beforehand, as
`training.serving` does it. That the 16 go on to their end on the old revision, and that the new
request is answered by the new one, is checked each time.
"""

from __future__ import annotations

import asyncio
import copy
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bench.report import Figure, Target, figure
from bench.streams import Options, Ours, Stream, our_engine, questions
from bot.domain import Delta, Done, Finish, Request
from config.settings import EngineSettings
from engine.lora import CONFIG, WEIGHTS, attach, read_adapter, weights_of, with_adapter
from engine.models import LoadedModel
from training.files import to_json, write
from training.recipe import Recipe
from training.revisions import Revision, Revisions
from training.run import adapter_config

RUNNING = 16
GROUP = f"A swap while {RUNNING} answers are written"
LENGTH = 112  # tokens of each: enough for both requests to come and be answered meanwhile
CALM = 4  # pieces of each, at least, before the first request comes
SHORT = 4  # tokens of a new request's answer
NOISE = 1e-3  # size of a made revision's weights

T = TypeVar("T")


class Looked(Exception):
    """Ends a look into the engine's thread: nothing is swapped."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a new request waited for, in seconds, and by whom it was answered."""

    taken_up: float
    first: float
    revision: str


@dataclass(frozen=True, slots=True)
class Round:
    """A new request by itself, one behind a swap, what the swap took, and who came to the end."""

    usual: Wait
    swapped: Wait
    swap: float
    ended: int


async def swap(options: Options) -> list[Figure]:
    """Rounds of 16 answers each, every one with a swap in the middle."""
    settings = EngineSettings(concurrency=RUNNING + 2, cache_mb=2048)
    with tempfile.TemporaryDirectory() as folder:
        async with our_engine(options.model, settings) as ours:
            await ours.ask(next(iter(questions(1))), SHORT)  # the persona is read
            made = await _revisions(ours, Path(folder))
            count = 3 if options.quick else 10
            rounds = [await _round(ours, made[number % 2]) for number in range(count)]
    return report(rounds)


def report(rounds: list[Round]) -> list[Figure]:
    """The rounds as figures with the target that was set."""
    target = Target("≤", 50)
    pairs = [(one.swapped, one.usual) for one in rounds]
    held = [1000 * one.swap for one in rounds]
    later = [1000 * (new.taken_up - usual.taken_up) for new, usual in pairs]
    text = [1000 * (new.first - usual.first) for new, usual in pairs]
    taken = "a new request, until it is taken up"
    first = "a new request, first token"
    anew = "the persona is read anew with the new weights"
    return [
        figure(GROUP, "the swap in the engine's thread", "ms", held, target=target),
        figure(GROUP, "the same, the longest", "ms", [max(held)], target=target),
        figure(GROUP, f"{taken}, no swap", "ms", [1000 * usual.taken_up for _, usual in pairs]),
        figure(GROUP, f"{taken}, at a swap", "ms", [1000 * new.taken_up for new, _ in pairs]),
        figure(GROUP, f"{taken}, difference", "ms", later, target=target),
        figure(GROUP, f"{first}, no swap", "s", [usual.first for _, usual in pairs]),
        figure(GROUP, f"{first}, at a swap", "s", [new.first for new, _ in pairs], note=anew),
        figure(GROUP, f"{first}, difference", "ms", text),
        figure(
            GROUP,
            f"answers of the {RUNNING} that came to their end on the old revision",
            "",
            [one.ended for one in rounds],
            target=Target("≥", RUNNING),
        ),
    ]


async def _round(ours: Ours, revision: Revision) -> Round:
    """16 answers; a new request by itself, and then one behind a swap."""
    before = ours.engine.status.revision
    config, weights = await asyncio.to_thread(read_adapter, revision.folder)
    begun: list[float] = []

    def build(loaded: LoadedModel) -> Any:
        begun.append(time.monotonic())
        return with_adapter(loaded, config, weights)

    streams = [Stream(time.monotonic()) for _ in range(RUNNING)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_write(ours, _request(ours, LENGTH), stream)) for stream in streams
        ]
        while any(len(stream.times) < CALM for stream in streams):
            await _next_step(streams[0])
        await _next_step(streams[0])
        usual, _ = await _come(ours)
        await _next_step(streams[0])
        order = partial(ours.engine.swap, revision.id, revision.digest, build)
        swapped, at = await _come(ours, order)
        if any(task.done() for task in tasks):
            raise RuntimeError("an answer ended before the new request was answered")
    if (usual.revision, swapped.revision) != (before, revision.id):
        raise RuntimeError(f"answered by {usual.revision} and {swapped.revision}")
    ends = [task.result() for task in tasks]
    whole = {Finish.STOP, Finish.LENGTH}
    ended = sum(end.finish in whole and end.usage.revision == before for end in ends)
    return Round(usual, swapped, at - begun[0], ended)


async def _come(ours: Ours, order: Callable[[], Any] | None = None) -> tuple[Wait, float]:
    """A new request, perhaps right behind an order: its waits, and when it was taken up."""
    request = _request(ours, SHORT)
    stream = Stream(time.monotonic())
    async with asyncio.TaskGroup() as group:  # tasks begin in this order, and so do the orders
        if order is not None:
            group.create_task(order())
        taken = group.create_task(look(ours, lambda _: time.monotonic()))
        done = group.create_task(_write(ours, request, stream))
    at = taken.result()
    return Wait(at - stream.sent, stream.first, done.result().usage.revision), at


async def _next_step(stream: Stream) -> None:
    """Wait until a stream shows one more piece."""
    seen = len(stream.times)
    while len(stream.times) == seen:  # noqa: ASYNC110 (a snapshot only)
        await asyncio.sleep(0.001)


def _request(ours: Ours, tokens: int) -> Request:
    """A question of somebody new; the persona may be known."""
    turns = next(iter(questions(1)))
    return ours.request(turns, tokens, pinned=len(ours.engine.encode(turns[:1])))


async def _write(ours: Ours, request: Request, stream: Stream) -> Done:
    """Stream one request to its end."""
    async for event in ours.engine.generate(request):
        if isinstance(event, Delta):
            stream.add(event.text)
        elif isinstance(event, Done):
            return event
    raise RuntimeError("a stream without an end")


async def look(ours: Ours, at: Callable[[LoadedModel], T]) -> T:
    """Do something in the engine's thread between two of its steps."""
    found: list[T] = []

    def build(loaded: LoadedModel) -> None:
        found.append(at(loaded))
        raise Looked

    with suppress(Looked):
        await ours.engine.swap("", "", build)
    return found[0]


async def _revisions(ours: Ours, folder: Path) -> tuple[Revision, Revision]:
    """Two revisions of the engine's base as nights leave them."""
    store, base = Revisions(folder), ours.engine.base
    made = []
    for number in range(2):
        draft = store.draft(f"bench-{number}")
        await look(ours, partial(_make, folder=draft, seed=number))
        metadata = {
            "created_at": datetime.now(UTC).isoformat(),
            "promoted": True,
            "base": {"name": base.name, "fingerprint": base.fingerprint},
        }
        store.commit(f"bench-{number}", draft, metadata)
        made.append(store.verify(f"bench-{number}", base.fingerprint))
    return made[0], made[1]


def _make(loaded: LoadedModel, folder: Path, seed: int) -> None:
    """An adapter of the default recipe with small random weights."""
    import mlx.core as mx
    import numpy as np
    from safetensors.numpy import save_file

    model = copy.deepcopy(loaded.model)
    config = adapter_config(Recipe(), len(model.layers))
    attach(model, config)
    mx.random.seed(seed)
    weights = {
        name: np.array(NOISE * mx.random.normal(value.shape))
        for name, value in weights_of(model).items()
    }
    save_file(weights, folder / WEIGHTS)
    write(folder / CONFIG, to_json(config))
