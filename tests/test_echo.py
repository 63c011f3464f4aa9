"""The echo engine, and through it the desk that every engine has: queue, limits, ends."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import given
from hypothesis import strategies as st

from bot.domain import Delta, Done, Finish, Queued, Request, Role, Sampling, Turn
from bot.errors import EngineBusy, EngineDead, GenerationFailed, PromptTooLong
from config.settings import EngineSettings
from engine.echo import EchoEngine, last_words

WORDS = "Força Farense, vamos embora!"


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop():
    with blockbuster_ctx():
        yield


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Stage:
    """An engine whose steps happen when the test says so, and its consumers."""

    def __init__(self, *, fault=None, **settings):
        self.clock = Clock()
        self.steps = asyncio.Semaphore(0)
        extra = {"fault": fault} if fault else {}
        self.engine = EchoEngine(
            EngineSettings(**settings), step=self.steps.acquire, clock=self.clock, **extra
        )
        self.count = 0

    def request(self, words=WORDS, *, fan="ana", conversation=None, **sampling):
        self.count += 1
        tokens = self.engine.encode([Turn(Role.USER, words)])
        name = f"r{self.count}"
        return Request(name, fan, conversation or name, tokens, 0, Sampling(**sampling))

    def listen(self, request):
        return Listener(self.engine, request)

    def ask(self, words=WORDS, **how):
        return self.listen(self.request(words, **how))

    async def step(self, count=1):
        for _ in range(count):
            self.steps.release()
            await settle()

    async def finish(self):
        await self.step(40)


class Listener:
    """Reads a stream into a list, in a task of its own."""

    def __init__(self, engine, request):
        self.events = []
        self.request = request
        self.task = asyncio.create_task(self._read(engine))

    async def _read(self, engine):
        async for event in engine.generate(self.request):
            self.events.append(event)

    @property
    def text(self):
        return "".join(event.text for event in self.events if isinstance(event, Delta))

    @property
    def positions(self):
        return [event.position for event in self.events if isinstance(event, Queued)]

    @property
    def done(self):
        return isinstance(self.events[-1], Done) if self.events else False


async def settle():
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_it_says_back_what_the_fan_said_in_small_pieces():
    stage = Stage()
    async with stage.engine:
        heard = stage.ask()
        await stage.finish()
    assert heard.text == WORDS
    assert len(heard.events) == math.ceil(len(WORDS) / 3) + 1
    usage = heard.events[-1].usage
    assert heard.events[-1].finish is Finish.STOP
    assert usage.completion_tokens == math.ceil(len(WORDS) / 3)
    assert usage.prompt_tokens == len(heard.request.tokens)


async def test_it_runs_by_itself_when_nobody_holds_the_steps():
    async with EchoEngine() as engine:
        tokens = engine.encode([Turn(Role.SYSTEM, "Persona"), Turn(Role.USER, "Olá")])
        events = [event async for event in engine.generate(Request("a", "f", "c", tokens))]
    assert events[:-1] == [Delta("Olá")]


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_any_text_comes_back_and_the_persona_is_a_true_prefix(persona, earlier, words):
    engine = EchoEngine()
    turns = [
        Turn(Role.SYSTEM, persona),
        Turn(Role.USER, earlier),
        Turn(Role.ASSISTANT, "..."),
        Turn(Role.USER, words),
    ]
    tokens = engine.encode(turns)
    prefix = engine.encode(turns[:1])
    assert last_words(tokens) == words
    assert tokens[: len(prefix)] == prefix


async def test_a_slow_reader_finds_the_pieces_joined():
    stage = Stage()
    async with stage.engine, aclosing(stage.engine.generate(stage.request())) as stream:
        first = asyncio.ensure_future(anext(stream))
        await stage.step()
        assert await first == Delta(WORDS[:3])
        await stage.finish()
        assert await anext(stream) == Delta(WORDS[3:])
        assert isinstance(await anext(stream), Done)


async def test_a_waiting_fan_hears_each_change_of_place():
    stage = Stage(concurrency=1)
    async with stage.engine:
        asked = [stage.ask("abc", fan=fan) for fan in ("ana", "rui", "eva")]
        await settle()
        assert [heard.positions for heard in asked] == [[], [1], [2]]
        await stage.step(2)
        assert asked[0].done
        assert asked[2].positions == [2, 1]
        await stage.finish()
    assert all(heard.done and heard.text == "abc" for heard in asked)


async def test_fans_far_back_are_not_told_every_step():
    stage = Stage(concurrency=1, queue=200)
    async with stage.engine:
        asked = [stage.ask("abc", fan=f"f{i}") for i in range(120)]
        await settle()
        await stage.step(2 * 120)
    told = asked[-1].positions
    assert told[0] == 119
    assert told[-10:] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert len(told) < 45


async def test_a_fan_with_many_questions_does_not_hold_up_others():
    stage = Stage(concurrency=1, queue_per_fan=3)
    async with stage.engine:
        ends = []
        asked = [stage.ask("abc", fan=fan) for fan in ("ana", "ana", "ana", "rui")]
        for heard in asked:
            heard.task.add_done_callback(lambda _, fan=heard.request.fan: ends.append(fan))
        await settle()
        await stage.finish()
    assert ends == ["ana", "ana", "rui", "ana"]  # the first of all ran before anybody waited


async def test_the_queue_is_bounded_for_all_and_for_each_fan():
    stage = Stage(concurrency=1, queue=3, queue_per_fan=2)
    async with stage.engine:
        fans = ("ana", "ana", "ana", "ana", "rui", "eva")
        asked = [stage.ask(fan=fan) for fan in fans]
        await settle()
        refused = [heard for heard in asked if heard.task.done()]
        assert [heard.request.fan for heard in refused] == ["ana", "eva"]
        for heard in refused:
            fault = heard.task.exception()
            assert isinstance(fault, EngineBusy)
            assert fault.retry_after > 0
        assert (stage.engine.status.running, stage.engine.status.waiting) == (1, 3)


async def test_retry_after_follows_how_long_answers_take():
    async def refusal(seconds):
        stage = Stage(concurrency=1, queue=1)
        async with stage.engine:
            for _ in range(20):
                heard = stage.ask("a")
                await settle()
                stage.clock.now += seconds
                await stage.step(2)
                await heard.task
            kept = [stage.ask("a", fan="x"), stage.ask("a", fan="y")]
            refused = stage.ask("a", fan="z")
            await settle()
            assert not any(heard.task.done() for heard in kept)
            return refused.task.exception().retry_after

    assert await refusal(30) > 3 * await refusal(2)


async def test_one_conversation_has_one_answer_at_a_time():
    stage = Stage(concurrency=4)
    async with stage.engine:
        first, second = (stage.ask("abcdef", conversation="talk") for _ in range(2))
        other = stage.ask("abcdef")
        await settle()
        assert stage.engine.status.running == 2
        await stage.step(3)
        assert first.done
        assert other.done
        assert second.text == ""
        await stage.finish()
        assert second.done


async def test_answers_are_admitted_by_the_memory_they_may_need():
    stage = Stage(concurrency=4)
    stage.engine._desk.room = 30
    async with stage.engine:
        asked = [stage.ask("abc", fan=fan, max_tokens=10) for fan in ("a", "b", "c")]
        huge = stage.ask("abc", fan="d", max_tokens=100)
        await settle()
        assert stage.engine.status.running == 2
        await stage.finish()
        assert all(heard.done for heard in [*asked, huge])


async def test_a_prompt_over_the_context_is_refused_and_answers_end_at_it():
    stage = Stage(context=256)
    async with stage.engine:
        fits = stage.ask("x" * 3 * 200, max_tokens=10_000)
        too_long = stage.ask("x" * 3 * 256)
        await settle()
        assert isinstance(too_long.task.exception(), PromptTooLong)
        await stage.step(60)
    assert fits.events[-1].finish is Finish.LENGTH
    usage = fits.events[-1].usage
    assert usage.prompt_tokens + usage.completion_tokens == 256


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": math.nan},
        {"temperature": -1},
        {"temperature": math.inf},
        {"top_p": 0},
        {"top_p": 1.5},
        {"repetition_penalty": 0},
        {"max_tokens": 0},
    ],
)
async def test_senseless_numbers_fail_at_the_door(sampling):
    stage = Stage()
    async with stage.engine:
        with pytest.raises(GenerationFailed):
            await anext(stage.engine.generate(stage.request(**sampling)))
        assert stage.engine.status.running == 0


async def test_the_same_id_twice_fails_the_second_only():
    stage = Stage()
    async with stage.engine:
        heard = stage.ask()
        await settle()
        twin = stage.listen(heard.request)
        await settle()
        assert isinstance(twin.task.exception(), GenerationFailed)
        await stage.finish()
        assert heard.done
        again = stage.listen(heard.request)
        await settle()
        await stage.finish()
        assert again.done


async def test_max_tokens_and_stop_texts_end_the_answer():
    stage = Stage()
    async with stage.engine:
        short = stage.ask("abcdefghi", max_tokens=2)
        stopped = stage.ask("abcdefghi", stop=("ef",))
        held = stage.ask("abcdefghi", stop=("fgx", "i!"), max_tokens=2)
        await settle()
        await stage.finish()
    assert (short.text, short.events[-1].finish) == ("abcdef", Finish.LENGTH)
    assert (stopped.text, stopped.events[-1].finish) == ("abcd", Finish.STOP)
    assert (held.text, held.events[-1].finish) == ("abcdef", Finish.LENGTH)


@pytest.mark.parametrize("steps", [0, 2])
async def test_cancelling_frees_the_place_and_nothing_more_is_heard(steps):
    stage = Stage(concurrency=1)
    async with stage.engine:
        first, second = stage.ask("abcdefghijkl"), stage.ask(fan="rui")
        await settle()
        await stage.step(steps)
        first.task.cancel()
        await settle()
        heard = list(first.events)
        await stage.step(2)
        assert first.task.cancelled()
        assert first.events == heard
        await stage.finish()
        assert second.done
        assert stage.engine.status.running == 0


async def test_cancelling_while_waiting_moves_others_up():
    stage = Stage(concurrency=1)
    async with stage.engine:
        asked = [stage.ask(fan=fan) for fan in ("ana", "rui", "eva")]
        await settle()
        asked[1].task.cancel()
        await settle()
        assert asked[2].positions == [2, 1]
        assert stage.engine.status.waiting == 1


async def test_closing_the_iterator_cancels():
    stage = Stage()
    async with stage.engine:
        async with aclosing(stage.engine.generate(stage.request())) as stream:
            step = asyncio.ensure_future(anext(stream))
            await stage.step()
            await step
        await stage.step()
        assert stage.engine.status.running == 0


async def test_a_request_that_waits_too_long_is_told_to_come_back():
    stage = Stage(concurrency=1, request_timeout=60)
    async with stage.engine:
        running = stage.ask()
        await settle()
        stage.clock.now += 30
        waiting = stage.ask(fan="rui")
        await settle()
        stage.clock.now += 31
        stage.engine.check()
        await settle()
        assert isinstance(running.task.exception(), GenerationFailed)
        assert not waiting.task.done()
        stage.clock.now += 30
        stage.engine.check()
        await settle()
        assert isinstance(waiting.task.exception(), EngineBusy)


async def test_one_failure_leaves_others_alone():
    def fault(request, step):
        return GenerationFailed() if request.fan == "ana" and step == 2 else None

    stage = Stage(fault=fault)
    async with stage.engine:
        bad, good = stage.ask(fan="ana"), stage.ask(fan="rui")
        await settle()
        await stage.finish()
    assert bad.text == WORDS[:6]
    assert isinstance(bad.task.exception(), GenerationFailed)
    assert good.text == WORDS
    assert good.done


async def test_death_is_told_to_all_and_refuses_what_comes():
    stage = Stage(concurrency=1)
    async with stage.engine:
        asked = [stage.ask(fan=fan) for fan in ("ana", "rui")]
        await settle()
        assert stage.engine.status.ready
        stage.engine.die()
        asked.append(stage.ask(fan="eva"))
        await settle()
        assert all(isinstance(heard.task.exception(), EngineDead) for heard in asked)
        assert not stage.engine.status.ready


async def test_shutdown_ends_running_and_waiting_answers_as_cancelled():
    stage = Stage(concurrency=1)
    async with stage.engine:
        asked = [stage.ask(fan=fan) for fan in ("ana", "rui")]
        await settle()
        await stage.step()
    await settle()
    assert [heard.events[-1].finish for heard in asked] == [Finish.CANCELLED] * 2
    assert asked[0].text == WORDS[:3]


async def test_times_are_counted_from_the_arrival():
    stage = Stage(concurrency=1)
    async with stage.engine:
        stage.ask("abc")
        heard = stage.ask("abc", fan="rui")
        await settle()
        stage.clock.now += 5
        await stage.step(2)
        stage.clock.now += 2
        await stage.step()
        stage.clock.now += 1
        await stage.step()
    usage = heard.events[-1].usage
    assert (usage.queued, usage.first_token, usage.total) == (5, 7, 8)


async def test_tokens_per_second_are_those_of_the_last_ten():
    stage = Stage()
    async with stage.engine:
        stage.ask("x" * 3 * 50)
        await settle()
        await stage.step(20)
        assert stage.engine.status.tokens_per_second == 2
        stage.clock.now += 11
        assert stage.engine.status.tokens_per_second == 0


async def test_a_thousand_fans_at_once_all_get_their_answer():
    settings = EngineSettings(concurrency=16, queue=1000)
    async with EchoEngine(settings) as engine:
        tokens = engine.encode([Turn(Role.USER, WORDS)])

        async def ask(number):
            request = Request(f"r{number}", f"f{number}", f"c{number}", tokens)
            events = [event async for event in engine.generate(request)]
            return "".join(event.text for event in events if isinstance(event, Delta))

        answers = await asyncio.gather(*(ask(number) for number in range(1000)))
    assert answers == [WORDS] * 1000
