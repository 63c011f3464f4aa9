"""The engine's answers are, token for token, those of mlx-lm run on one prompt at a time.

The model is the real embedded one. References are computed in the engine's own thread on the same
loaded weights, before it serves. A batched float32 product may differ from a single one in its
last bits, so the prompts are such that no reference token is nearly tied with another one: `MARGIN`
is asserted, thirty times the largest difference seen (7e-5), and nothing else is loosened.
"""

from __future__ import annotations

import asyncio
import copy
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from functools import partial

import pytest
import pytest_asyncio

from bot.domain import Delta, Finish, Queued, Request, Role, Sampling, Turn, Usage
from bot.errors import EngineDead, GenerationFailed, PromptTooLong
from config.settings import EngineSettings
from engine import models, plan, prompting
from engine.mlx_engine import MLXEngine

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

MARGIN = 0.002
LENGTH = 32
PERSONA = Turn(Role.SYSTEM, "You are a friendly assistant for the fans of a football club in Faro.")
QUESTIONS = (
    "What is the capital of Portugal?",
    "Name three colours.",
    "How many players does a football team have?",
    "Write one sentence about the sea.",
    "Tell me about the moon.",
    "Say hello to the fans in two short sentences.",  # emoji: cut off in the middle of one
)
LONG = "Here is a story. " + "The lion walked along the river and met a friend. " * 50 + "The end?"


@dataclass(frozen=True)
class Answer:
    """Text and tokens. Of the engine's tokens the last may be missing: nobody had to read it."""

    text: str
    tokens: tuple[int, ...]
    usage: Usage | None = None

    def __eq__(self, other):
        known = max(len(self.tokens), len(other.tokens)) - 1
        return self.text == other.text and self.tokens[:known] == other.tokens[:known]

    __hash__ = None


@dataclass
class Reference:
    """What mlx-lm says, one prompt after the other."""

    decode: object = None
    answers: dict[str, Answer] = field(default_factory=dict)
    penalised: dict[str, Answer] = field(default_factory=dict)
    second: Answer | None = None

    def cut(self, question, length):
        tokens = self.answers[question].tokens[:length]
        return Answer(self.decode(tokens), tokens)


def sequential(loaded, prompt, penalty=None):
    """The greedy answer of mlx-lm, up to and with its end."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.sample_utils import make_logits_processors

    processors = make_logits_processors(repetition_penalty=penalty) if penalty else None
    answer = []
    steps = generate_step(
        mx.array(prompt), loaded.model, max_tokens=LENGTH, logits_processors=processors
    )
    with closing(steps):
        for token, logprobs in steps:
            second, best = mx.sort(logprobs)[-2:].tolist()
            assert best - second > MARGIN, f"choose another prompt: a tie after {answer}"
            answer.append(token)
            if token in loaded.tokenizer.eos_token_ids:
                break
    return Answer(decode(loaded, answer), tuple(answer))


def decode(loaded, tokens):
    return loaded.tokenizer.decode(tokens, skip_special_tokens=True).rstrip("\ufffd")


def first_turn(encode, question):
    return encode([PERSONA, Turn(Role.USER, question)])


def second_turn(encode, answer):
    return encode(
        [
            PERSONA,
            Turn(Role.USER, QUESTIONS[0]),
            Turn(Role.ASSISTANT, answer),
            Turn(Role.USER, "And of Spain?"),
        ]
    )


def compute(loaded, reference):
    def encode(turns):
        return prompting.encode(loaded.tokenizer, turns)

    reference.decode = partial(decode, loaded)
    for question in (*QUESTIONS, LONG):
        reference.answers[question] = sequential(loaded, first_turn(encode, question))
    for question in QUESTIONS[:2]:
        prompt = first_turn(encode, question)
        reference.penalised[question] = sequential(loaded, prompt, penalty=1.3)
    text = reference.answers[QUESTIONS[0]].text
    reference.second = sequential(loaded, second_turn(encode, text))


def as_mlx_lm_made_it():
    """Take our own attention and activation out again, should another test have put them in."""
    from mlx_lm.models import activations, base, llama

    llama.scaled_dot_product_attention = base.scaled_dot_product_attention
    llama.swiglu = activations.swiglu


@pytest.fixture(scope="module")
def reference():
    return Reference()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(embedded_model, reference):
    def load(path, compute_plan, name):
        loaded = models.load(path, compute_plan, name)
        as_mlx_lm_made_it()
        compute(loaded, reference)
        return loaded

    # The smallest chunks: prompts are read in many pieces.
    settings = EngineSettings(prefill_step=16)
    async with MLXEngine(settings, embedded_model, plan.detect(), load=load) as running:
        yield running


class Asker:
    """Asks the engine, each time as another fan in another conversation unless told otherwise."""

    def __init__(self, engine):
        self.engine = engine
        self.count = 0

    def request(self, question, *, tokens=None, conversation=None, **sampling):
        self.count += 1
        name = f"{id(self)}-{self.count}"
        return Request(
            id=name,
            fan=name,
            conversation=conversation or name,
            tokens=tokens or first_turn(self.engine.encode, question),
            pinned=len(self.engine.encode([PERSONA])),
            sampling=Sampling(**{"temperature": 0, "max_tokens": LENGTH, **sampling}),
        )

    async def events(self, request):
        return [event async for event in self.engine.generate(request)]

    def known(self, request):
        """The tokens of prompt and answer that the engine remembers of a conversation."""
        talks = self.engine._runner._cache._talks
        return next(e.tokens for (_, name), e in talks.items() if name == request.conversation)

    async def hear(self, request):
        events = await self.events(request)
        tokens = self.known(request)[len(request.tokens) :]
        return Answer(text_of(events), tokens, events[-1].usage)

    async def answer(self, question, **how):
        return await self.hear(self.request(question, **how))


@pytest.fixture
def asker(engine):
    return Asker(engine)


def text_of(events):
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_one_answer_streams_in_pieces_and_ends_with_its_cost(engine, asker, reference):
    request = asker.request(QUESTIONS[0])
    *_, done = events = await asker.events(request)
    assert text_of(events) == reference.answers[QUESTIONS[0]].text
    assert len([event for event in events if isinstance(event, Delta)]) > 5
    assert done.finish in (Finish.STOP, Finish.LENGTH)
    assert done.usage.prompt_tokens == len(request.tokens)
    assert done.usage.revision == engine.status.revision
    assert "\ufffd" not in text_of(events)


async def test_answers_written_together_are_those_written_alone(asker, reference):
    answers = await asyncio.gather(*(asker.answer(question) for question in QUESTIONS))
    assert dict(zip(QUESTIONS, answers, strict=True)) == {
        question: reference.answers[question] for question in QUESTIONS
    }


async def test_joining_later_and_leaving_earlier_changes_nothing(asker, reference):
    async def after(late, question, length):
        if late:
            await first.wait()
        request = asker.request(question, max_tokens=length)
        events = []
        async for event in asker.engine.generate(request):
            events.append(event)
            if isinstance(event, Delta):
                first.set()
        return Answer(text_of(events), asker.known(request)[len(request.tokens) :])

    first = asyncio.Event()
    lengths = (LENGTH, 3, 11, 20, 7, LENGTH)
    answers = await asyncio.gather(
        *(
            after(i > 1, question, length)
            for i, (question, length) in enumerate(zip(QUESTIONS, lengths, strict=True))
        )
    )
    expected = [reference.cut(q, n) for q, n in zip(QUESTIONS, lengths, strict=True)]
    assert answers == expected


async def test_cancelling_some_leaves_the_others_as_they_are(engine, asker, reference):
    async def give_up(question, pieces):
        count = 0
        async with aclosing(engine.generate(asker.request(question))) as stream:
            async for event in stream:
                count += isinstance(event, Delta)
                if count == pieces:
                    return

    results = await asyncio.gather(
        asker.answer(QUESTIONS[0]),
        give_up(QUESTIONS[1], 1),
        asker.answer(QUESTIONS[2]),
        give_up(QUESTIONS[3], 4),
        asker.answer(QUESTIONS[4]),
    )
    assert results[::2] == [reference.answers[QUESTIONS[i]] for i in (0, 2, 4)]
    await asker.answer(QUESTIONS[1])  # by now the cancelled ones have left, too
    assert engine.status.running == 0


async def test_cancelling_the_task_frees_the_row(engine, asker):
    started = asyncio.Event()

    async def consume():
        async for event in engine.generate(asker.request(QUESTIONS[4])):
            if isinstance(event, Delta):
                started.set()

    task = asyncio.create_task(consume())
    await started.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    await asker.answer(QUESTIONS[1])
    assert engine.status.running == 0


async def test_the_persona_is_read_once(engine, asker):
    persona = len(engine.encode([PERSONA]))
    await asker.answer(QUESTIONS[1])
    heard = await asker.answer(QUESTIONS[3])
    assert heard.usage.cached_tokens == persona


async def test_a_second_turn_reads_only_what_is_new(engine, asker, reference):
    first = asker.request(QUESTIONS[0], conversation="talk")
    text = (await asker.hear(first)).text
    known = len(asker.known(first))
    second = asker.request("", tokens=second_turn(engine.encode, text), conversation="talk")
    heard = await asker.hear(second)
    assert heard == reference.second
    assert heard.usage.cached_tokens == known
    assert len(second.tokens) - known < 20


async def test_the_same_question_again_starts_from_its_last_token(asker, reference):
    first = asker.request(QUESTIONS[5], conversation="again")
    await asker.events(first)
    heard = await asker.answer(QUESTIONS[5], conversation="again")
    assert heard.usage.cached_tokens == len(first.tokens) - 1
    assert heard == reference.answers[QUESTIONS[5]]


async def test_a_long_prompt_lets_others_go_on_between_its_chunks(engine, asker, reference):
    long = asker.request(LONG)
    chunks = len(long.tokens) // engine._settings.prefill_step
    log = []

    async def watch(name, request, started=None):
        async for event in engine.generate(request):
            if isinstance(event, Delta):
                log.append((name, event.text))
                if started:
                    started.set()

    started = asyncio.Event()
    others = asyncio.create_task(watch("short", asker.request(QUESTIONS[4]), started))
    await started.wait()
    before = len(log)
    await watch("long", long)
    names = [name for name, _ in log]
    meanwhile = names.index("long") - before
    await others
    assert chunks > LENGTH  # so that a whole answer fits in while the prompt is read
    assert meanwhile > LENGTH // 2
    assert "".join(text for name, text in log if name == "long") == reference.answers[LONG].text


async def test_repetition_penalty_is_that_of_mlx_lm_also_beside_rows_without(asker, reference):
    plain, *penalised = await asyncio.gather(
        asker.answer(QUESTIONS[4]),
        *(asker.answer(question, repetition_penalty=1.3) for question in QUESTIONS[:2]),
    )
    assert plain == reference.answers[QUESTIONS[4]]
    assert penalised == [reference.penalised[question] for question in QUESTIONS[:2]]


async def test_a_seed_gives_the_same_answer_alone_and_in_a_crowd(asker):
    warm = {"temperature": 0.9, "top_p": 0.95, "max_tokens": 16}
    alone = await asker.answer(QUESTIONS[3], seed=7, **warm)
    crowd = await asyncio.gather(
        asker.answer(QUESTIONS[0]),
        asker.answer(QUESTIONS[3], seed=7, **warm),
        asker.answer(QUESTIONS[3], seed=8, **warm),
        asker.answer(QUESTIONS[3], **warm),
    )
    assert crowd[1] == alone
    assert crowd[2].text != alone.text


async def test_a_stop_text_ends_the_answer_before_it(asker, reference, engine):
    whole = text_of(await asker.events(asker.request(QUESTIONS[4])))
    stop = whole[20:26]
    events = await asker.events(asker.request(QUESTIONS[4], stop=(stop,)))
    assert text_of(events) == whole[: whole.index(stop)]
    assert events[-1].finish is Finish.STOP


async def test_a_swap_moves_new_answers_and_leaves_running_ones_where_they_are(
    engine, asker, reference
):
    before = engine.status.revision
    started = asyncio.Event()

    async def old():
        events = []
        async for event in engine.generate(asker.request(QUESTIONS[4])):
            events.append(event)
            if isinstance(event, Delta):
                started.set()
        return events[-1].usage.revision, text_of(events)

    running = asyncio.create_task(old())
    await started.wait()
    await engine.swap("twin", "hash-of-twin", lambda base: copy.deepcopy(base.model))
    assert engine.status.revision == "twin"
    both = len(engine._runner._views)
    heard = await asker.answer(QUESTIONS[0])
    assert await running == (before, reference.answers[QUESTIONS[4]].text)
    assert heard == reference.answers[QUESTIONS[0]]
    assert heard.usage.revision == "twin"
    assert heard.usage.cached_tokens == 0  # nothing of the other revision is used
    assert both == 2
    await asker.answer(QUESTIONS[1])
    assert len(engine._runner._views) == 1
    assert {digest for digest, _ in engine._runner._cache._talks} == {"hash-of-twin"}


async def test_a_swap_that_fails_changes_nothing(engine, asker, reference):
    def broken(base):
        raise ValueError("no such revision")

    before = engine.status.revision
    with pytest.raises(ValueError, match="no such revision"):
        await engine.swap("broken", "hash", broken)
    assert engine.status.revision == before
    assert await asker.answer(QUESTIONS[0]) == reference.answers[QUESTIONS[0]]


async def test_a_bad_request_fails_alone(engine, asker, reference):
    bad = asker.request("", tokens=(1, 2, 10**6))
    good, failed = await asyncio.gather(
        asker.answer(QUESTIONS[0]), asker.events(bad), return_exceptions=True
    )
    assert good == reference.answers[QUESTIONS[0]]
    assert isinstance(failed, GenerationFailed)


async def test_a_prompt_over_the_context_is_refused(engine, asker):
    with pytest.raises(PromptTooLong):
        await asker.events(asker.request("", tokens=(5,) * engine.status.context))
    fits = asker.request("", tokens=(5,) * 50)
    assert Queued not in map(type, await asker.events(fits))


async def test_a_fault_in_a_step_ends_its_answers_and_the_engine_goes_on(
    engine, asker, reference, monkeypatch
):
    started = asyncio.Event()

    async def consume():
        async for event in engine.generate(asker.request(QUESTIONS[4])):
            if isinstance(event, Delta):
                started.set()

    def broken(_chunk):
        raise RuntimeError("out of memory")

    task = asyncio.create_task(consume())
    await started.wait()
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner._views[-1], "step", broken)
        with pytest.raises(GenerationFailed):
            await task
    assert await asker.answer(QUESTIONS[0]) == reference.answers[QUESTIONS[0]]


async def test_after_its_end_the_engine_refuses(embedded_model):
    engine = MLXEngine(EngineSettings(), embedded_model, plan.detect())
    asker = Asker(engine)
    async with engine:
        request = asker.request(QUESTIONS[0])
        stream = engine.generate(request)
        await anext(stream)
    last = [event async for event in stream][-1]
    assert last.finish is Finish.CANCELLED
    assert not engine.status.ready
    with pytest.raises(EngineDead):
        await asker.events(asker.request("", tokens=request.tokens))
