"""The cache of what was read: longest match, pinned personas, a real LRU within its budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.cache import PINNED_LIMIT, Entry, PrefixCache, common_prefix


class FakeKv:
    """Ten bytes a token."""

    def __init__(self, length, *, trims=True):
        self.length = length
        self.trims = trims

    @property
    def nbytes(self):
        return 10 * self.length

    def trim(self, length):
        if self.trims:
            self.length = length
        return self.trims or self.length == length

    def copy(self):
        return FakeKv(self.length, trims=self.trims)


def entry(*tokens, trims=True):
    return Entry(tokens, FakeKv(len(tokens), trims=trims))


def known(found):
    return (found.tokens, found.kv.length) if found else None


def test_the_longest_common_beginning_is_used_again():
    cache = PrefixCache(1000)
    cache.put("hash", "talk", entry(1, 2, 3, 4))
    assert known(cache.take("hash", "talk", (1, 2, 3, 9, 9), 0)) == ((1, 2, 3), 3)


def test_an_exact_hit_leaves_one_token_to_read():
    cache = PrefixCache(1000)
    cache.put("hash", "talk", entry(1, 2, 3))
    assert known(cache.take("hash", "talk", (1, 2, 3), 0)) == ((1, 2), 2)


def test_an_entry_is_handed_over_once():
    cache = PrefixCache(1000)
    cache.put("hash", "talk", entry(1, 2, 3))
    assert cache.take("hash", "talk", (1, 2, 3, 4), 0)
    assert cache.take("hash", "talk", (1, 2, 3, 4), 0) is None
    assert cache.nbytes == 0


def test_nothing_is_used_under_another_revision_or_conversation():
    cache = PrefixCache(1000)
    cache.put("old", "talk", entry(1, 2, 3))
    cache.pin("old", (1, 2), FakeKv(2))
    assert cache.take("new", "talk", (1, 2, 3, 4), 2) is None
    assert known(cache.take("old", "other", (1, 2, 3, 4), 2)) == ((1, 2), 2)


def test_a_persona_is_copied_and_stays():
    cache = PrefixCache(1000)
    cache.pin("hash", (1, 2), FakeKv(2))
    first = cache.take("hash", "talk", (1, 2, 3), 2)
    first.kv.trim(1)
    assert known(cache.take("hash", "other", (1, 2, 3), 2)) == ((1, 2), 2)
    assert cache.is_pinned("hash", (1, 2))


def test_a_persona_that_is_the_whole_prompt_cannot_be_used():
    cache = PrefixCache(1000)
    cache.pin("hash", (1, 2), FakeKv(2))
    assert cache.take("hash", "talk", (1, 2), 2) is None


def test_the_persona_wins_over_a_conversation_that_shares_less():
    cache = PrefixCache(1000)
    cache.pin("hash", (1, 2), FakeKv(2))
    cache.put("hash", "talk", entry(1, 7, 8))
    assert known(cache.take("hash", "talk", (1, 2, 3), 2)) == ((1, 2), 2)


def test_a_cache_that_cannot_be_shortened_is_used_only_as_it_is():
    cache = PrefixCache(1000)
    cache.put("hash", "talk", entry(1, 2, 3, trims=False))
    assert known(cache.take("hash", "talk", (1, 2, 3, 4), 0)) == ((1, 2, 3), 3)
    cache.put("hash", "talk", entry(1, 2, 3, trims=False))
    assert cache.take("hash", "talk", (1, 2, 9, 9), 0) is None


def test_least_recently_used_goes_first_and_personas_never():
    cache = PrefixCache(100)
    cache.pin("hash", (1, 2, 3), FakeKv(3))
    for name in "abc":
        cache.put("hash", name, entry(1, 2))
    cache.put("hash", "a", entry(1, 2))
    cache.put("hash", "d", entry(1, 2))
    assert cache.nbytes <= 100
    found = {name for name in "abcd" if cache.take("hash", name, (1, 2, 9), 0)}
    assert found == {"a", "c", "d"}
    assert cache.is_pinned("hash", (1, 2, 3))


def test_running_answers_take_their_memory_from_the_same_budget():
    cache = PrefixCache(100)
    for name in "abc":
        cache.put("hash", name, entry(1, 2, 3))
    cache.leave_room(50)
    assert cache.nbytes == 30
    cache.leave_room(1000)
    assert cache.nbytes == 0


def test_a_budget_of_nothing_keeps_nothing():
    cache = PrefixCache(0)
    cache.put("hash", "talk", entry(1, 2, 3))
    assert cache.take("hash", "talk", (1, 2, 3, 4), 0) is None


def test_a_retired_revision_is_forgotten_whole():
    cache = PrefixCache(1000)
    for digest in ("old", "new"):
        cache.pin(digest, (1,), FakeKv(1))
        cache.put(digest, "talk", entry(1, 2, 3))
    cache.forget("old")
    assert cache.nbytes == 40
    assert cache.take("old", "talk", (1, 2, 3, 4), 1) is None
    assert cache.take("new", "talk", (1, 2, 3, 4), 1)


def test_personas_that_changed_do_not_pile_up():
    cache = PrefixCache(10**6)
    for number in range(PINNED_LIMIT + 5):
        cache.pin("hash", (number,), FakeKv(1))
    assert cache.nbytes == 10 * PINNED_LIMIT
    assert not cache.is_pinned("hash", (0,))


TOKENS = st.lists(st.integers(0, 2), max_size=8).map(tuple)


@given(st.lists(st.tuples(st.sampled_from("abc"), TOKENS, st.integers(0, 3)), max_size=30))
def test_what_is_found_is_a_true_beginning_within_the_budget(requests):
    cache = PrefixCache(120)
    for talk, tokens, pinned in requests:
        found = cache.take("hash", talk, tokens, min(pinned, len(tokens))) if tokens else None
        if found:
            assert found.tokens == tokens[: len(found.tokens)]
            assert len(found.tokens) == found.kv.length < len(tokens)
        cache.put("hash", talk, entry(*tokens))
        assert cache.nbytes <= 120


@given(TOKENS, TOKENS)
def test_common_prefix_is_common_and_ends_at_a_difference(left, right):
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert length == min(len(left), len(right)) or left[length] != right[length]
