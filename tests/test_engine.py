"""The engine's thread and what stands around it, on a tiny model with random weights."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from bot.domain import Delta, Done, Finish, Request, Sampling
from bot.errors import EngineDead, GenerationFailed, ModelError
from config.settings import EngineSettings
from engine import plan
from engine.mlx_engine import MLXEngine
from engine.models import LoadedModel
from engine.pacer import LEAST, PATIENCE, Pacer
from tests.tiny import tiny_model

WORDS = 300
CONTEXT = 512
END = WORDS - 1
GREEDY = Sampling(temperature=0, max_tokens=8)


class Tokenizer:
    """Every token is a letter; the last one ends an answer."""

    def __init__(self):
        self.eos_token_ids = {END}

    @property
    def detokenizer(self):
        return Letters()


class Letters:
    def __init__(self):
        self.last_segment = ""

    def add_token(self, token):
        self.last_segment = chr(0x4E00 + token)

    def finalize(self):
        self.last_segment = ""


def load(path, compute_plan, name):
    return LoadedModel(
        name="tiny",
        folder=path,
        model=tiny_model(WORDS, seed=1),
        tokenizer=Tokenizer(),
        config={},
        fingerprint="f" * 64,
        context=CONTEXT,
        vocabulary=WORDS,
    )


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make(clock, load=load, **settings):
    return MLXEngine(
        EngineSettings(**settings), Path("tiny"), plan.detect(), load=load, clock=clock
    )


@pytest.fixture
async def engine(clock):
    async with make(clock) as running:
        with blockbuster_ctx():
            yield running


def request(name="r1", tokens=(1, 2, 3), **how):
    sampling = {"temperature": 0, "max_tokens": 8, **how}
    return Request(name, f"fan-{name}", f"talk-{name}", tokens, 0, Sampling(**sampling))


async def ask(engine, wanted):
    return [event async for event in engine.generate(wanted)]


def text_of(events):
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_an_answer_ends_at_its_length(engine):
    *_, done = events = await ask(engine, request())
    assert done.finish is Finish.LENGTH
    assert done.usage.completion_tokens == len(text_of(events)) == 8
    assert engine.status.model == "tiny"
    assert engine.status.cache_bytes > 0


async def test_the_context_is_the_smaller_of_the_settings_and_the_model(engine):
    assert engine.status.context == CONTEXT
    *_, done = await ask(engine, request(tokens=(1,) * (CONTEXT - 3), max_tokens=100))
    assert done.finish is Finish.LENGTH
    assert done.usage.completion_tokens == 3


async def test_everything_of_mlx_happens_in_one_thread(clock):
    threads = set()

    class Watched(Tokenizer):
        @property
        def detokenizer(self):
            threads.add(threading.current_thread().name)
            return super().detokenizer

    def watched(*args):
        threads.add(threading.current_thread().name)
        loaded = load(*args)
        return LoadedModel(**{**fields(loaded), "tokenizer": Watched()})

    async with make(clock, watched) as engine:
        await ask(engine, request())
    assert threads == {"engine"}
    assert not any(thread.name == "engine" for thread in threading.enumerate())


def fields(loaded):
    return {name: getattr(loaded, name) for name in LoadedModel.__dataclass_fields__}


async def test_a_model_that_cannot_be_loaded_is_told_at_the_start(clock):
    def broken(*_):
        raise ModelError("error.model_missing")

    engine = make(clock, broken)
    with pytest.raises(ModelError):
        await engine.__aenter__()
    assert not engine.status.ready
    with pytest.raises(EngineDead):
        await ask(engine, request())
    await engine.__aexit__()


async def test_a_wedged_step_is_noticed_and_told_to_everybody(clock):
    engine = make(clock, concurrency=1, step_timeout=60)
    entered, go = threading.Event(), threading.Event()
    async with engine:
        stream = engine.generate(request(max_tokens=100))
        await anext(stream)
        view = engine._runner._views[-1]
        step = view.step

        def wedge(chunk):
            entered.set()
            go.wait()
            return step(chunk)

        view.step = wedge
        waiting = asyncio.create_task(ask(engine, request("r2")))
        await asyncio.to_thread(entered.wait)
        clock.now += 59
        engine.check()
        assert engine.status.ready
        clock.now += 2
        engine.check()
        assert not engine.status.ready
        with pytest.raises(EngineDead):
            await waiting
        with pytest.raises(EngineDead):
            async for _ in stream:
                pass
        with pytest.raises(EngineDead):
            await ask(engine, request("r3"))
        go.set()


async def test_one_fault_costs_the_running_answers_and_many_the_engine(engine):
    from engine.runner import FAULTS_LIMIT

    view = engine._runner._views[-1]
    step = view.step

    def fault(_chunk):
        raise RuntimeError("out of memory")

    for attempt in range(FAULTS_LIMIT):
        view.step = fault
        with pytest.raises((GenerationFailed, EngineDead)):
            await ask(engine, request(f"bad{attempt}"))
        view.step = step
        if attempt == 0:
            assert len(text_of(await ask(engine, request("good")))) == 8


async def test_faults_in_a_row_end_the_engine(engine):
    view = engine._runner._views[-1]

    def fault(_chunk):
        raise RuntimeError("out of memory")

    view.step = fault
    for attempt in range(3):
        with pytest.raises((GenerationFailed, EngineDead)):
            await ask(engine, request(f"bad{attempt}"))
    await asyncio.to_thread(engine._runner.join, 30)
    engine.check()
    assert not engine.status.ready
    with pytest.raises(EngineDead):
        await ask(engine, request("late"))


class Picky:
    """A model that trips over prompts of one kind."""

    def __init__(self, model):
        self._model = model

    def __call__(self, tokens, cache):
        if tokens.size > 1 and 13 in tokens.flatten().tolist():
            raise ValueError("bad shape")
        return self._model(tokens, cache=cache)

    def __getattr__(self, name):
        if name == "model":
            raise AttributeError(name)  # not to be taken apart
        return getattr(self._model, name)


async def test_a_fault_while_reading_fails_that_request_alone(engine):
    from engine.rows import Network

    view = engine._runner._views[-1]
    view._network = Network(Picky(view.model))
    good, bad = await asyncio.gather(
        ask(engine, request("good")),
        ask(engine, request("bad", tokens=(13, 13, 13))),
        return_exceptions=True,
    )
    assert len(text_of(good)) == 8
    assert isinstance(bad, GenerationFailed)


async def test_an_unknown_token_fails_at_the_door(engine):
    with pytest.raises(GenerationFailed):
        await ask(engine, request(tokens=(1, WORDS)))
    with pytest.raises(GenerationFailed):
        await ask(engine, request(tokens=(-1,)))


async def test_a_reader_that_sleeps_does_not_hold_the_engine(engine):
    async with aclosing(engine.generate(request("slow", max_tokens=30))) as slow:
        await anext(slow)
        while engine.status.running:
            await ask(engine, request("other", max_tokens=40))
        rest = [event async for event in slow]
    assert len(rest) == 2
    assert isinstance(rest[-1], Done)


async def test_the_wired_memory_limit_is_never_touched(engine, monkeypatch):
    import mlx.core as mx

    touched = []
    monkeypatch.setattr(mx, "set_wired_limit", touched.append)
    await asyncio.gather(*(ask(engine, request(f"r{i}")) for i in range(3)))
    assert touched == []


async def test_rows_of_different_length_are_computed_as_each_alone(engine):
    prompts = [tuple(range(5, 5 + length)) for length in (1, 2, 40, 290)]
    alone = [text_of(await ask(engine, request(f"a{i}", p))) for i, p in enumerate(prompts)]
    together = await asyncio.gather(
        *(ask(engine, request(f"b{i}", p)) for i, p in enumerate(prompts))
    )
    assert [text_of(events) for events in together] == alone


async def test_models_that_cannot_share_a_step_take_turns(engine):
    view = engine._runner._views[-1]
    assert view._batched
    together = await asyncio.gather(*(ask(engine, request(f"a{i}", (i, 9))) for i in range(1, 4)))
    view._batched = False
    in_turn = await asyncio.gather(*(ask(engine, request(f"b{i}", (i, 9))) for i in range(1, 4)))
    assert list(map(text_of, together)) == list(map(text_of, in_turn))


async def test_computing_ahead_changes_no_answer(engine):
    """As on a GPU, where the next step is computed while the last one's tokens are passed on."""

    async def talk(name):
        lengths = {"a": 9, "b": 1, "c": 30, "d": 17}
        wanted = [
            request(f"{name}{who}", (9, ord(who) % 7), max_tokens=length, repetition_penalty=1.2)
            for who, length in lengths.items()
        ]
        first = await asyncio.gather(*(ask(engine, one) for one in wanted))
        more = Request("more", "fan", wanted[0].conversation, (9, ord("a") % 7, 5, 6), 0, GREEDY)
        async with aclosing(engine.generate(request(f"{name}x", max_tokens=100))) as left_early:
            await anext(left_early)
            return [*map(text_of, first), text_of(await ask(engine, more))]

    view = engine._runner._views[-1]
    assert not view.ahead
    behind = await talk("behind")
    view.ahead = True
    assert await talk("ahead") == behind


async def test_drawn_answers_follow_their_seed(engine):
    how = {"temperature": 1.0, "max_tokens": 20}
    first, again, other, *_ = await asyncio.gather(
        ask(engine, request("a", seed=1, **how)),
        ask(engine, request("b", seed=1, **how)),
        ask(engine, request("c", seed=2, **how)),
        ask(engine, request("d", **how)),
        ask(engine, request("e")),
    )
    assert text_of(first) == text_of(again)
    assert text_of(first) != text_of(other)


async def test_a_narrow_nucleus_is_greedy(engine):
    greedy = await ask(engine, request("a"))
    narrow = await ask(engine, request("b", temperature=2.0, top_p=1e-6))
    assert text_of(greedy) == text_of(narrow)


async def test_the_cache_budget_bounds_what_is_kept(clock):
    async with make(clock, cache_mb=0) as engine:
        for number in range(3):
            await ask(engine, request(f"r{number}"))
        *_, done = await ask(engine, request("r0", tokens=(1, 2, 3, 4)))
        assert done.usage.cached_tokens == 0
        assert engine.status.cache_bytes == 0


async def test_views_are_freed_when_their_last_answer_ends(engine):
    async with aclosing(engine.generate(request("old", max_tokens=400))) as old:
        await anext(old)
        await engine.swap("r1", "d" * 64, lambda _base: tiny_model(WORDS, seed=1))
        views = list(engine._runner._views)
        *_, done = await ask(engine, request("new"))
        assert done.usage.revision == "r1"
        rest = [event async for event in old]
        assert rest[-1].usage.revision == "base:ffffffffffff"
    await ask(engine, request("later"))
    assert len(views) == 2
    assert len(engine._runner._views) == 1


async def test_a_swap_to_something_that_is_no_model_changes_nothing(engine):
    with pytest.raises(AttributeError):
        await engine.swap("r1", "d" * 64, lambda base: None)
    *_, done = await ask(engine, request())
    assert done.usage.revision == "base:ffffffffffff"


def test_chunks_are_whole_while_nobody_waits_and_small_before_anything_is_known():
    pacer = Pacer(128)
    assert pacer.chunk(writing=False) == 128
    assert pacer.chunk(writing=True) == 32


def test_a_chunk_takes_no_longer_than_others_are_patient():
    pacer = Pacer(4096)
    for _ in range(50):
        pacer.note(0, 0.1)
        pacer.note(50, 0.1 + 50 * 0.004)
    assert pacer.chunk(writing=True) == pytest.approx(PATIENCE * 0.1 / 0.004, abs=2)


def test_a_chunk_is_never_too_small_to_be_worth_it_nor_larger_than_allowed():
    slow, fast = Pacer(128), Pacer(128)
    for _ in range(50):
        slow.note(0, 0.01)
        slow.note(16, 10.0)
        fast.note(0, 1.0)
        fast.note(16, 1.001)
    assert slow.chunk(writing=True) == LEAST
    assert fast.chunk(writing=True) == 128
