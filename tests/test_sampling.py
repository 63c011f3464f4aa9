"""Choosing tokens: each row by its own rules, whatever stands beside it."""

from __future__ import annotations

import math

import mlx.core as mx
import pytest

from bot.domain import Sampling
from engine.sampling import PENALTY_WINDOW, Chooser, choose

CHANCES = (0.2, 0.5, 0.3)


class Fixed:
    """A source of randomness that always says the same."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


def chooser(mark=0.0, **how):
    made = Chooser(Sampling(**{"temperature": 1.0, "top_p": 1.0, **how}))
    made.random = Fixed(mark)
    return made


def pick(choosers, logits=None, histories=None):
    rows = len(choosers)
    logits = logits if logits is not None else mx.array([[math.log(p) for p in CHANCES]] * rows)
    return choose(logits, choosers, histories or [[]] * rows, mx.array([0] * rows)).tolist()


@pytest.mark.parametrize(
    ("mark", "token"), [(0.0, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 0), (0.999999, 0)]
)
def test_tokens_are_drawn_as_likely_as_they_are(mark, token):
    assert pick([chooser(mark)]) == [token]


def test_the_nucleus_leaves_the_unlikely_out():
    marks = [chooser(0.999999, top_p=top_p) for top_p in (0.4, 0.6, 0.79, 0.81)]
    assert pick(marks) == [1, 2, 2, 0]


def test_warmth_evens_the_chances_out_and_cold_sharpens_them():
    assert pick([chooser(0.62, temperature=t) for t in (0.3, 1.0, 100.0)]) == [1, 2, 2]
    assert pick([chooser(0.7, temperature=t) for t in (0.3, 1.0, 100.0)]) == [1, 2, 0]


def test_greedy_rows_stay_greedy_beside_others():
    assert pick([chooser(0.99), chooser(0.99, temperature=0), chooser(0.6)]) == [0, 1, 2]


def test_nobody_draws_for_greedy_rows_alone():
    greedy = chooser(temperature=0)
    greedy.random = None  # would raise
    assert pick([greedy, greedy]) == [1, 1]


@pytest.mark.parametrize("length", [0, 1, 5, PENALTY_WINDOW - 1, PENALTY_WINDOW, 60])
def test_the_penalty_is_that_of_mlx_lm(length):
    from mlx_lm.sample_utils import make_repetition_penalty

    mx.random.seed(length)
    logits = mx.random.normal((2, 50)) * 3
    history = [(7 * i) % 50 for i in range(length)]
    last = int(mx.argmax(logits[0]).item())
    expected = make_repetition_penalty(2.0)(mx.array([*history, last]), mx.array(logits[:1]))
    rows = [chooser(temperature=0, repetition_penalty=2.0), chooser(temperature=0)]
    inputs = mx.array([last, last])
    chosen = choose(logits, rows, [history, history[:3]], inputs).tolist()
    assert chosen == [mx.argmax(expected).item(), mx.argmax(logits[1]).item()]


def test_half_precision_is_good_enough_to_draw_from():
    logits = mx.array([[math.log(p) for p in CHANCES]] * 2).astype(mx.float16)
    assert pick([chooser(0.0), chooser(0.9)], logits) == [1, 0]


def test_a_seed_repeats_and_no_seed_does_not():
    def numbers(seed):
        made = Chooser(Sampling(seed=seed))
        return [made.random.random() for _ in range(5)]

    assert numbers(7) == numbers(7)
    assert numbers(7) != numbers(8)
    assert numbers(None) != numbers(None)
