"""The engine's pause: its memory lent to training, and fans who are answered afterwards."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import threading
from contextlib import aclosing

import psutil
import pytest
from rich.console import Console

from bot.domain import Done, Finish, Platform, Queued, Request, Role, Sampling, Turn
from bot.errors import EngineDead, EnginePaused, ModelError
from config.settings import EngineSettings
from config.texts import text
from engine import plan
from engine.mlx_engine import MLXEngine
from engine.plan import Backend
from farense_bot.bars import bars
from farense_bot.learning import _Bar
from tests import test_engine, test_night, test_service
from tests.fakes import a_message
from tests.test_engine import WORDS, ask, fields, make, request, text_of
from tests.tiny import tiny_model
from training import memory, run
from training.examples import Example, Kind, write_lines
from training.examples import ask as asked
from training.job import Ended, Estimate, EvaluateJob, TrainJob
from training.pause import forecast
from training.recipe import Recipe, named_recipe

GIB = 2**30
MISTRAL = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32768,
}  # fmt: skip
MISTRAL_BYTES = 4_077_000_000  # int4 in groups of 64
SMOLLM = {
    "num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
}  # fmt: skip
SMOLLM_BYTES = 538_060_032  # float32


@pytest.fixture
def clock():
    return test_engine.Clock()


@pytest.fixture
async def engine(clock):
    async with make(clock, concurrency=1) as running:
        yield running


async def until(condition):
    """Let others go on until something holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def of_fan(fan, name):
    how = Sampling(temperature=0, max_tokens=4)
    return Request(name, fan, f"talk-{name}", (1, 2, len(name)), 0, how)


# The engine


async def test_a_pause_waits_for_those_who_were_here_before(engine):
    whole = text_of(await ask(engine, request("alone", max_tokens=60)))
    async with aclosing(engine.generate(request("running", max_tokens=60))) as stream:
        await anext(stream)
        waiting = asyncio.create_task(ask(engine, request("waiting")))
        await until(lambda: engine.status.waiting)
        pause = asyncio.create_task(engine.pause())
        await until(lambda: engine.status.paused)
        late = engine.generate(request("late"))
        assert await anext(late) == Queued(2, held=True)
        rest = [event async for event in stream]
        assert rest[-1].finish is Finish.LENGTH
        assert text_of(await waiting) == whole[:8]
        await pause
    assert (engine.status.running, engine.status.waiting) == (0, 1)
    await engine.resume()
    assert text_of([event async for event in late]) == whole[:8]
    assert not engine.status.paused


async def test_who_waited_is_answered_in_turn_and_as_before_the_pause(engine):
    names = [("a", "a1"), ("a", "a22"), ("a", "a333"), ("b", "b1"), ("c", "c22")]
    before = {name: text_of(await ask(engine, of_fan(fan, name))) for fan, name in names}
    await engine.pause()
    order, found = [], {}

    async def wait(fan, name):
        found[name] = text_of(await ask(engine, of_fan(fan, name)))
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for fan, name in names:
            group.create_task(wait(fan, name))
        await until(lambda: engine.status.waiting == len(names))
        await engine.resume()
    assert order == ["a1", "b1", "c22", "a22", "a333"]
    assert found == before


async def test_the_revision_in_service_comes_back(engine):
    base = text_of(await ask(engine, request()))
    await engine.swap("r1", "d" * 64, lambda _base: tiny_model(WORDS, seed=2))
    *_, done = events = await ask(engine, request())
    assert text_of(events) != base
    for _ in range(2):
        await engine.pause()
        await engine.resume()
    *_, again = after = await ask(engine, request())
    assert text_of(after) == text_of(events)
    assert again.usage.revision == done.usage.revision == "r1"
    assert [view.digest for view in engine._runner._views] == ["d" * 64]
    await engine.swap("r2", "e" * 64, lambda loaded: loaded.model)
    assert text_of(await ask(engine, request())) == base


async def test_the_memory_is_given_back(clock):
    import mlx.core as mx

    def large(*args):
        model = tiny_model(WORDS, seed=1, width=512, inner=2048)
        return test_engine.LoadedModel(**{**fields(test_engine.load(*args)), "model": model})

    idle = mx.get_active_memory()
    async with make(clock, large) as engine:
        await engine.swap("r1", "d" * 64, lambda loaded: loaded.model)
        await ask(engine, request(tokens=(7,) * 200))
        full = mx.get_active_memory() - idle
        await engine.pause()
        assert mx.get_active_memory() - idle < 0.02 * full
        assert mx.get_cache_memory() == engine.status.cache_bytes == 0
        await engine.resume()
        assert mx.get_active_memory() - idle > 0.5 * full


@pytest.mark.model
async def test_the_real_model_leaves_its_memory_to_others_and_says_the_same_afterwards(
    embedded_model,
):
    import mlx.core as mx

    process = psutil.Process()
    async with MLXEngine(EngineSettings(), embedded_model, plan.detect()) as engine:
        question = Turn(Role.USER, "What is the capital of Portugal?")
        wanted = Request("r", "fan", "talk", engine.encode([question]), 0, test_engine.GREEDY)
        before = text_of(await ask(engine, wanted))
        held, full = mx.get_active_memory(), process.memory_info().rss
        await engine.pause()
        assert process.memory_info().rss < full - 0.8 * held
        await engine.resume()
        assert text_of(await ask(engine, wanted)) == before != ""


async def test_who_waits_keeps_the_whole_time_for_after_the_pause(clock):
    async with make(clock, concurrency=1, request_timeout=300) as engine:
        await engine.pause(expected=600)
        assert engine.status.back_in == 600
        waiting = asyncio.create_task(ask(engine, request()))
        await until(lambda: engine.status.waiting)
        clock.now += 599
        engine.check()
        assert engine.status.back_in == 1
        clock.now += 3000
        engine.check()
        assert engine.status.back_in is None
        await engine.resume()
        engine.check()
        assert len(text_of(await waiting)) == 8


async def test_who_runs_too_long_does_not_hold_up_the_pause(clock):
    async with make(clock, request_timeout=300, step_timeout=10_000) as engine:
        stream = engine.generate(request(max_tokens=400))
        await anext(stream)
        go, step = threading.Event(), engine._runner._views[-1].step
        engine._runner._views[-1].step = lambda chunk: go.wait(60) and step(chunk)
        pause = asyncio.create_task(engine.pause())
        await until(lambda: engine.status.paused)
        clock.now += 301
        engine.check()
        go.set()
        await pause
        await engine.resume()
        assert len(text_of(await ask(engine, request("next")))) == 8


async def test_cancelled_while_it_waits_a_pause_never_was(engine):
    async with aclosing(engine.generate(request("running", max_tokens=200))) as stream:
        await anext(stream)
        pause = asyncio.create_task(engine.pause())
        await until(lambda: engine.status.paused)
        late = asyncio.create_task(ask(engine, request("late")))
        pause.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pause
        await until(lambda: not engine.status.paused)
        rest = [event async for event in stream]
    assert rest[-1].finish is Finish.LENGTH
    assert len(text_of(await late)) == 8


async def test_coming_back_goes_on_when_whoever_waits_for_it_is_cancelled(engine):
    await engine.pause()
    late = asyncio.create_task(ask(engine, request()))
    resume = asyncio.create_task(engine.resume())
    await asyncio.sleep(0)
    resume.cancel()
    with pytest.raises(asyncio.CancelledError):
        await resume
    assert len(text_of(await late)) == 8
    await engine.pause()  # and again, also right behind a return
    await engine.resume()
    await engine.resume()
    assert len(text_of(await ask(engine, request()))) == 8


async def test_who_leaves_during_the_pause_is_gone(engine):
    await engine.pause()
    stream = engine.generate(request())
    assert await anext(stream) == Queued(1, held=True)
    await stream.aclose()
    assert engine.status.waiting == 0
    await engine.resume()
    assert len(text_of(await ask(engine, request()))) == 8


async def test_closing_a_paused_engine_ends_those_who_wait(clock):
    async with make(clock) as engine:
        await engine.pause()
        waiting = asyncio.create_task(ask(engine, request()))
        await until(lambda: engine.status.waiting)
    *_, done = await waiting
    assert isinstance(done, Done)
    assert done.finish is Finish.CANCELLED
    assert not any(thread.name == "engine" for thread in threading.enumerate())
    await engine.resume()  # harmless
    with pytest.raises(EngineDead):
        await engine.pause()


async def test_a_paused_engine_takes_no_other_revision_and_says_so(engine):
    await engine.pause()
    with pytest.raises(EnginePaused):
        await engine.swap("r1", "d" * 64, lambda loaded: loaded.model)
    await engine.resume()
    *_, done = await ask(engine, request())
    assert done.usage.revision == "base:ffffffffffff"


def damaged(*_):
    raise ModelError("error.model_truncated", file="model.safetensors")


def another(*args):
    return test_engine.LoadedModel(**{**fields(test_engine.load(*args)), "fingerprint": "0" * 64})


@pytest.mark.parametrize("second", [damaged, another])
async def test_a_model_that_does_not_come_back_ends_the_engine(clock, second):
    loads = iter([test_engine.load, second])

    def load(*args):
        return next(loads)(*args)

    async with make(clock, load) as engine:
        await engine.pause()
        waiting = asyncio.create_task(ask(engine, request()))
        await until(lambda: engine.status.waiting)
        with pytest.raises(ModelError):
            await engine.resume()
        assert not engine.status.ready
        with pytest.raises(EngineDead):
            await waiting
        await asyncio.to_thread(engine._runner.join, 30)
        assert not engine._runner.alive


# Whether there is room


def mistral():
    largest = memory.Pass(rows=2, shared=0, length=512, targets=1024)
    recipe = named_recipe("qlora")
    return memory.estimate(MISTRAL, recipe, largest, MISTRAL_BYTES, half=True)


def smollm():
    largest = memory.Pass(rows=8, shared=226, length=112, targets=896)
    return memory.estimate(SMOLLM, Recipe(), largest, SMOLLM_BYTES)


CACHES = EngineSettings().cache_mb * 2**20


@pytest.mark.parametrize(
    ("estimated", "total", "available", "backend", "engine", "pause"),
    [
        (mistral(), 8, 2.0, Backend.METAL, MISTRAL_BYTES, True),
        (mistral(), 16, 5.0, Backend.METAL, MISTRAL_BYTES, False),
        (mistral(), 24, 12.0, Backend.METAL, MISTRAL_BYTES, False),
        (smollm(), 24, 18.0, Backend.CPU, SMOLLM_BYTES, False),
        (smollm(), 24, 2.0, Backend.CPU, SMOLLM_BYTES, True),
    ],
    ids=["M1 8 GB", "M1 16 GB", "M2 24 GB", "embedded", "embedded, nearly full"],
)
def test_the_engine_makes_room_where_both_do_not_fit(
    estimated, total, available, backend, engine, pause
):
    room = memory.beside(
        total=total * GIB,
        available=int(available * GIB),
        backend=backend,
        engine=engine,
        caches=CACHES,
    )
    assert memory.must_pause("auto", estimated, room) is pause
    assert memory.must_pause("always", estimated, room)
    assert not memory.must_pause("never", estimated, room)


@pytest.mark.model
def test_what_a_job_needs_is_told_from_its_files(tmp_path, embedded_model):
    dataset = tmp_path / run.DATASET
    dataset.mkdir()
    learnt = [Example("1", Kind.TAUGHT, asked("Quem é a Dulce?"), "A Dulce toca o bombo.")]
    write_lines(dataset / "train.jsonl", learnt)
    for name in ("held_out", "preferences"):
        write_lines(dataset / f"{name}.jsonl", [])
    model = {"model": "embedded", "folder": embedded_model, "persona": "farense"}
    short = forecast(TrainJob(**model, recipe=Recipe(), seconds=60), tmp_path)
    longer = [Example("1", Kind.TAUGHT, asked("Quem é a Dulce?"), "A Dulce toca o bombo. " * 40)]
    write_lines(dataset / "held_out.jsonl", longer)
    assert forecast(TrainJob(**model, recipe=Recipe(), seconds=60), tmp_path).total > short.total
    test = forecast(EvaluateJob(**model, revisions={"base": None}), tmp_path)
    assert test.total > test.parts["weights"] == short.parts["weights"]


def test_the_terminal_shows_what_a_training_should_need():
    written = io.StringIO()
    with bars(Console(file=written)) as progress:
        _Bar(progress, "pt")(Estimate(total=3 * GIB // 2, parts={}))
    assert text("night.estimate", estimate=1.5) in written.getvalue()


# The night


class Lender(test_night.Engine):
    """Notes when it is paused and back, between what the children do."""

    def __init__(self, home, notes):
        super().__init__(home / "model")
        self.notes, self.paused, self.expected = notes, False, []
        self.waiting = 1  # a fan, from the first moment on

    @property
    def status(self):
        paused = {"paused": self.paused, "waiting": self.waiting}
        return dataclasses.replace(super().status, **paused)

    async def pause(self, expected=None):
        self.notes.append("pause")
        self.expected.append(expected)
        self.paused = True

    async def resume(self):
        if self.paused:
            self.notes.append("resume")
        self.paused = False

    async def swap(self, revision, digest, build):
        await super().swap(revision, digest, build)
        self.notes.append("swap")


class Children(test_night.Children):
    """Notes its work, and whether it would have stood still for fans."""

    def __init__(self):
        super().__init__()
        self.notes, self.held = [], []

    async def __call__(self, folder, on_event, hold, command=()):
        self.held.append(hold())
        self.notes.append("child")
        return await super().__call__(folder, on_event, hold, command)


@pytest.fixture
def lending(tmp_path, monkeypatch):
    def world(pause):
        children = Children()
        engine = Lender(tmp_path, children.notes)
        return test_night.a_world(
            tmp_path, monkeypatch, children=children, engine=engine, pause=pause
        )

    return world


ONE = ["pause", "child", "resume"]


async def test_the_engine_pauses_for_each_child_and_is_back_before_the_swap(lending):
    async with lending("always") as world:
        await world.teach()
        assert (await world.night()).state == "promoted"
        assert world.children.notes == [*ONE, *ONE, "swap"]
        assert world.children.held == [False, False]  # fans wait for it, not it for them
        assert world.engine.expected == [None, None]
        await world.teach(first=12)
        await world.night()
        assert world.engine.expected[2:] == [1.0, 1.0]  # what they took before


@pytest.mark.parametrize("pause", ["never", "auto"])
async def test_without_a_need_the_engine_serves_on(lending, pause):
    async with lending(pause) as world:
        await world.teach()
        assert (await world.night()).state == "promoted"
        assert world.children.notes == ["child", "child", "swap"]
        assert world.children.held == [True, True]


async def test_both_that_do_not_fit_take_turns(lending, monkeypatch):
    few = test_night.SimpleNamespace(total=8 * GIB, available=GIB)
    monkeypatch.setattr("training.pause.psutil.virtual_memory", lambda: few)
    monkeypatch.setattr("training.pause.forecast", lambda *_: mistral())
    async with lending("auto") as world:
        await world.teach()
        await world.night()
        assert world.children.notes == [*ONE, *ONE, "swap"]


@pytest.mark.parametrize("task", ["train", "evaluate"])
@pytest.mark.parametrize(
    "end", [Ended(ok=False, reason="memory"), OSError("no such program"), RuntimeError("broken")]
)
async def test_the_engine_is_back_whatever_becomes_of_the_child(lending, task, end):
    async with lending("always") as world:
        await world.teach()
        world.children.ends[task] = end
        assert (await world.night()).state == "failed"
        assert world.children.notes == (ONE if task == "train" else [*ONE, *ONE])


async def test_the_engine_is_back_after_a_night_that_was_cancelled(lending):
    async with lending("always") as world:
        await world.teach()
        world.children.gate.clear()
        await world.shift.start(test_night.ADMIN, test_night.HERE, "pt")
        await until(lambda: world.children.held)
        assert world.engine.paused
        assert await world.shift.cancel()
        assert (await world.ended()).state == "cancelled"
        assert world.children.notes == ONE


async def test_a_pointer_that_moves_during_a_pause_is_followed_afterwards(lending):
    async with lending("never") as world:
        await world.teach()
        await world.night()
        await world.engine.pause()
        world.shift._revisions.roll_back()
        assert not await world.shift.serving.follow()
        await world.engine.resume()
        assert await world.shift.serving.follow()


# The fans


async def test_a_fan_reads_at_once_that_it_takes_a_while_and_then_the_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("bot.answering.QUEUE_NOTICE", 3600.0)
    async with test_service.a_world(tmp_path) as world:
        engine, board = world.service._engine, world.board
        await engine.pause(600)
        await world.service.receive(a_message("Olá, Farense!"))
        line = text("queue.paused_for", minutes=10)
        await board.until(lambda board: [p.text for p in board.messages.values()] == [line])
        assert line in await world.say(command="estado", fan="2")
        await engine.resume()
        (answer,) = await board.answers(1)
        assert "Olá, Farense!" in answer.text
        assert board.id_of(answer) == "m1"  # the message that told it
        assert line not in await world.say(command="estado", fan="2")


async def test_where_nobody_knows_how_long_the_line_says_no_time(tmp_path):
    async with test_service.a_world(tmp_path) as world:
        await world.service._engine.pause()
        await world.service.receive(a_message("Olá!"))
        line = text("queue.paused")
        await world.board.until(
            lambda board: [post.text for post in board.messages.values()] == [line]
        )
        await world.service._engine.resume()
        await world.board.answers(1)


async def test_who_wrote_during_a_pause_is_answered_after_a_restart_too(tmp_path):
    async with test_service.a_world(tmp_path) as world:
        await world.service._engine.pause()
        await world.service.receive(a_message("Olá, Farense!"))
        await world.board.until(lambda board: board.messages)
    async with test_service.a_world(tmp_path) as world:
        await world.service.resume(Platform.WEB)
        (answer,) = await world.board.answers(1)
        assert "Olá, Farense!" in answer.text
