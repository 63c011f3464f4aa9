"""The shared buffer of answers: every row keeps its own tokens, whoever joins and leaves."""

from __future__ import annotations

import mlx.core as mx
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache

from engine.pack import GROW, SMALL, Pack

HEADS, WIDTH = 2, 3


def a_cache(name: int, length: int) -> KVCache:
    """A cache whose token t of row `name` is told by its value."""
    cache = KVCache()
    places = mx.arange(length, dtype=mx.float32) + 1000 * name
    tokens = mx.broadcast_to(places[None, None, :, None], (1, HEADS, length, WIDTH))
    cache.update_and_fetch(tokens, -tokens)
    return cache


def step(pack: Pack, names: list[int]) -> None:
    """Write one more token of each row."""
    pack.begin_step()
    tokens = [1000 * name + length - 1 for name, length in zip(names, pack.lengths, strict=True)]
    new = mx.broadcast_to(
        mx.array(tokens, dtype=mx.float32)[:, None, None, None], (len(names), HEADS, 1, WIDTH)
    )
    keys, _ = pack.write(0, new, -new)
    if pack.mask is not None:
        visible = (pack.mask == 0).sum(axis=(1, 2, 3)).tolist()
        assert visible == pack.lengths
        assert keys.shape[2] == max(pack.lengths)


def check(pack: Pack, names: list[int]) -> None:
    for index, name in enumerate(names):
        ((keys, values),) = pack.contents(index)
        expected = [1000 * name + place for place in range(pack.lengths[index])]
        assert keys[0, 0, :, 0].tolist() == expected
        assert (-values)[0, HEADS - 1, :, WIDTH - 1].tolist() == expected


actions = st.one_of(
    st.tuples(st.just("join"), st.integers(1, 3 * GROW)),
    st.tuples(st.just("leave"), st.integers(0, 7)),
    st.tuples(st.just("steps"), st.integers(1, GROW)),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(actions, max_size=14))
def test_every_row_keeps_its_own_tokens(script):
    pack, names, fresh = Pack(), [], iter(range(1, 100))
    for action, number in script:
        if action == "join":
            names.append(next(fresh))
            pack.join([a_cache(names[-1], number)])
        elif action == "steps" and names:
            for _ in range(number):
                step(pack, names)
        elif action == "leave" and names:
            index = number % len(names)
            pack.remove(index)
            names[index] = names[-1]
            del names[-1]
        assert len(pack) == len(names)
        check(pack, names)
    assert names or pack.nbytes == 0


def test_a_row_much_longer_than_the_others_stays_out():
    pack = Pack()
    for name in range(1, 8):
        assert pack.accepts(300)
        pack.join([a_cache(name, 300)])
    assert not pack.accepts(4000)
    assert pack.accepts(500)
    assert Pack().accepts(SMALL * 10)


def test_a_step_that_was_begun_can_be_taken_back():
    pack = Pack()
    for name, length in ((1, 7), (2, 3)):
        pack.join([a_cache(name, length)])
    step(pack, [1, 2])
    lengths = list(pack.lengths)
    pack.begin_step()
    pack.rewind(lengths)
    pack.rewind(lengths)
    check(pack, [1, 2])
    step(pack, [1, 2])
    check(pack, [1, 2])


def test_layers_grow_in_different_steps():
    pack = Pack()
    pack.join([a_cache(1, 5) for _ in range(32)])
    sizes, most = None, 0
    for _ in range(4 * GROW):
        pack.begin_step()
        for layer in range(32):
            pack.write(layer, *(mx.zeros((1, HEADS, 1, WIDTH)) for _ in range(2)))
        now = [buffer.shape[2] for buffer in pack.arrays]
        grown = sum(a != b for a, b in zip(now, sizes or now, strict=True))
        sizes, most = now, max(most, grown)
    assert 0 < most <= 8
