"""Our attention and activation give what mlx's own do, for every shape that a pass has."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import base
from mlx_lm.models.activations import swiglu as theirs
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from engine.attention import make_attend, swiglu

CLOSE = 2e-6


def draw(*shape, seed=0):
    return mx.random.normal(shape, key=mx.random.key(seed))


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 3),
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    tokens=st.integers(1, 9),
    before=st.integers(0, 20),
)
def test_a_piece_of_a_prompt_sees_what_was_before_it(rows, groups, shared, tokens, before):
    queries = draw(rows, groups * shared, tokens, 8, seed=1)
    keys, values = (draw(rows, groups, before + tokens, 8, seed=seed) for seed in (2, 3))
    ours = make_attend(base.scaled_dot_product_attention, cpu=True)(
        queries, keys, values, KVCache(), 0.3, "causal"
    )
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.3, mask="causal")
    assert mx.abs(ours - expected).max().item() < CLOSE


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_large_scores_do_not_overflow(scale):
    queries, keys, values = (scale * draw(1, 2, 4, 8, seed=seed) for seed in range(3))
    ours = make_attend(base.scaled_dot_product_attention, cpu=True)(
        queries, keys, values, KVCache(), 1.0, None
    )
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    assert mx.abs(ours - expected).max().item() < CLOSE * scale


def test_what_we_do_not_know_is_left_to_mlx_lm():
    seen = []
    attend = make_attend(lambda *args: seen.append(args), cpu=True)
    queries = draw(1, 2, 1, 8)
    attend(queries, queries, queries, QuantizedKVCache(), 1.0, None)
    attend(queries, queries, queries, KVCache(), 1.0, mx.zeros((1, 1)))
    attend(queries, queries, queries, KVCache(), 1.0, None, mx.zeros(2))
    assert len(seen) == 3


def test_the_activation_is_that_of_mlx_lm():
    gate = mx.concatenate([draw(1000) * 4, mx.array([-1000.0, -90.0, 0.0, 90.0, 1000.0])])
    x = draw(1005, seed=1)
    ours, expected = swiglu(gate, x), theirs(gate, x)
    assert mx.allclose(ours, expected, rtol=1e-5, atol=1e-6).item()
