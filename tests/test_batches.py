"""What is learnt is the answer and its end, each token once an epoch, asked as it will be asked."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.domain import Role, Turn
from bot.prompts import Persona, build
from engine import prompting
from training.batches import PIECE, Batch, Row, Writer, in_order, mismatched, order, shared_prefix
from training.examples import Example, Kind, Preference, ask

END = 1
PERSONA = Persona("be kind", "v1")


def encode(turns):
    """A template of bytes: role, text, end; an opened answer where a fan spoke last."""
    marks = {Role.SYSTEM: 2, Role.USER: 3, Role.ASSISTANT: 4}
    tokens = []
    for turn in turns:
        tokens += [marks[turn.role], *(byte + 10 for byte in turn.text.encode()), END]
        tokens += [5] * (turn.role is Role.ASSISTANT)  # the newline after an answer
    if turns[-1].role is not Role.ASSISTANT:
        tokens.append(marks[Role.ASSISTANT])
    return tuple(tokens)


def writer(max_length=400, context=400, how=encode):
    return Writer(how, frozenset({END}), END, PERSONA, context, max_length)


def example(question="who?", answer="us", history=(), name="x"):
    return Example(name, Kind.FACT, (*history, *ask(question)), answer)


def chat(exchanges):
    return tuple(
        Turn(role, f"{role} {number}")
        for number in range(exchanges)
        for role in (Role.USER, Role.ASSISTANT)
    )


def test_a_row_is_the_serving_prompt_and_the_answer_with_its_end():
    row = writer().row(example(history=chat(2)))

    assert row.prompt == build(encode, PERSONA, chat(2), "who?", 400).tokens
    assert row.completion == (*(byte + 10 for byte in b"us"), END)


def test_an_answer_that_the_template_leaves_open_is_ended():
    def without_end(turns):
        return encode(turns)[:-2] if turns[-1].role is Role.ASSISTANT else encode(turns)

    assert writer(how=without_end).row(example()).completion[-1] == END


def test_history_goes_first_when_a_text_is_too_long():
    whole = writer().row(example(history=chat(10)))
    short = writer(max_length=len(whole) - 1).row(example(history=chat(10)))

    assert short.completion == whole.completion
    assert len(short) < len(whole)
    assert short.prompt[-20:] == whole.prompt[-20:]


def test_what_cannot_be_learnt_is_counted_by_reason():
    def changes_its_mind(turns):
        tokens = encode(turns)
        return (9, *tokens) if turns[-1].role is Role.ASSISTANT else tokens

    made = writer(max_length=40).rows(
        [example(), example("long " * 20), example(answer="long " * 20), example(answer=" \n")]
    )
    assert [row.id for row in made.rows] == ["x"]
    assert made.dropped == Counter(long=2, empty=1)
    assert writer(how=changes_its_mind).rows([example()]).dropped == Counter(template=1)


def test_a_vote_keeps_its_sense():
    votes = [Preference(str(liked), ask("who?"), "us", liked) for liked in (True, False)]
    assert [row.liked for row in writer().rows(votes).rows] == [True, False]


TOKENS = st.lists(st.integers(10, 50), min_size=1, max_size=12).map(tuple)
ROWS = st.lists(
    st.builds(
        Row,
        id=st.just(""),
        prompt=TOKENS.map(lambda own: (7, 8, *own)),
        completion=TOKENS.map(lambda own: (*own, END)),
        liked=st.booleans(),
    ),
    min_size=1,
    max_size=13,
)


@settings(deadline=None)
@given(rows=ROWS, size=st.integers(1, 5), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_every_completion_token_counts_once_an_epoch_and_nothing_else_does(rows, size, seed, epoch):
    lengths = [len(row) for row in rows]
    shared = shared_prefix(rows)
    seen = Counter()
    for indices in order(lengths, size, seed, epoch):
        batch = Batch.of([rows[index] for index in indices], shared)
        own = batch.tokens[shared:].reshape(len(indices), -1)
        assert own.shape[1] % PIECE == 0
        for where, target, weight, owner in zip(
            batch.where, batch.targets, batch.weights, batch.owner, strict=True
        ):
            if not weight:
                continue
            row = rows[indices[owner]]
            place = int(batch.places[where])
            text = (*row.prompt, *row.completion)
            assert divmod(int(where) - shared, own.shape[1]) == (owner, place - shared)
            assert batch.tokens[where] == text[place]
            assert target == text[place + 1]
            assert place + 1 >= len(row.prompt)
            seen[indices[owner], place + 1] += 1
    wanted = {
        (index, len(row.prompt) + at)
        for index, row in enumerate(rows)
        for at in range(len(row.completion))
    }
    assert set(seen) == wanted
    assert set(seen.values()) == {1}


@given(
    lengths=st.lists(st.integers(1, 90), max_size=30),
    size=st.integers(1, 6),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 5),
)
def test_the_order_is_a_function_of_seed_and_epoch(lengths, size, seed, epoch):
    batches = order(lengths, size, seed, epoch)

    assert batches == order(list(lengths), size, seed, epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert len(batches) == math.ceil(len(lengths) / size)
    assert sum(len(batch) < size for batch in batches) <= 1
    for batch in batches:  # like lengths together: no other row lies strictly between
        padded = [-(-lengths[index] // PIECE) for index in batch]
        others = [-(-lengths[i] // PIECE) for i in range(len(lengths)) if i not in batch]
        assert not [other for other in others if min(padded) < other < max(padded)]


def test_epochs_differ_and_held_out_batches_do_not():
    lengths = [20, 21, 22, 23, 40, 41, 42, 43]
    assert len({str(order(lengths, 2, 7, epoch)) for epoch in range(6)}) > 1
    assert str(order(lengths, 2, 7, 0)) != str(order(lengths, 2, 8, 0))
    assert in_order([30, 10, 20], 2) == [[1, 2], [0]]


@pytest.mark.parametrize("count", [1, 3])
def test_equal_prompts_keep_a_token_to_themselves(count):
    rows = [Row("", (7, 8, 9), (10, END)) for _ in range(count)]
    batch = Batch.of(rows, shared_prefix(rows))
    assert shared_prefix(rows) == 2
    assert batch.tokens[:2].tolist() == [7, 8]
    assert np.sum(batch.weights) == 2 * count


def test_a_mismatched_pair_has_the_answer_to_another_question():
    rows = [Row(str(i), (7, i), (answer, END)) for i, answer in enumerate((20, 20, 30))]
    pairs = mismatched(rows)

    assert [pair.prompt for pair in pairs] == [row.prompt for row in rows]
    assert [pair.completion[0] for pair in pairs] == [30, 30, 20]
    assert mismatched(rows[:2]) == []


@pytest.mark.model
def test_the_real_template_is_continued_up_to_its_end_token(embedded_model):
    from mlx_lm.utils import load_tokenizer

    tokenizer = load_tokenizer(embedded_model)
    row = Writer.of(tokenizer, Persona.load("farense"), 4096, 512).row(
        example("De que cidade é o Farense?", "É de Faro, no Algarve.\n")
    )
    prompt = [Persona.load("farense").turn, Turn(Role.USER, "De que cidade é o Farense?")]
    assert row.prompt == prompting.encode(tokenizer, prompt)
    assert row.completion[-1] in tokenizer.eos_token_ids
    assert not set(row.completion[:-1]) & set(tokenizer.eos_token_ids)
    assert tokenizer.decode(list(row.completion[:-1])) == "É de Faro, no Algarve."
