"""Stop texts and half characters: what is shown never depends on how the text was cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.stops import StopFilter, Writer

LETTERS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def shown(chunks, stops):
    """All that a filter lets through, and whether it stopped."""
    stop_filter = StopFilter(stops)
    parts = []
    for chunk in chunks:
        text, stopped = stop_filter.push(chunk)
        parts.append(text)
        if stopped:
            return parts, True
    return [*parts, stop_filter.flush()], False


def cut(text, places):
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("good morning", (), "good morning"),
        ("good\nUser: hi", ("\nUser:",), "good"),
        ("a < b", ("<end>",), "a < b"),
        ("xabcx", ("b", "abc"), "xa"),  # complete first
        ("xabx", ("b", "ab"), "x"),  # complete at once: the longer
        ("aaab", ("aab",), "a"),
        ("text", ("",), "text"),
    ],
)
def test_the_answer_ends_before_the_first_stop_text(text, stops, expected):
    assert "".join(shown(list(text), stops)[0]) == expected


def test_what_may_become_a_stop_text_is_held_back():
    stop_filter = StopFilter(["###"])
    assert stop_filter.push("one #") == ("one ", False)
    assert stop_filter.push("#") == ("", False)
    assert stop_filter.push("two") == ("##two", False)


@given(LETTERS, STOPS, st.lists(st.integers(0, 100), max_size=8))
def test_chunks_make_no_difference(text, stops, places):
    whole, stopped = shown([text], stops)
    parts, also = shown(cut(text, places), stops)
    assert ("".join(parts), also) == ("".join(whole), stopped)


@given(LETTERS, STOPS, st.lists(st.integers(0, 100), max_size=8))
def test_no_stop_text_is_ever_shown_and_nothing_before_it_is_lost(text, stops, places):
    parts, stopped = shown(cut(text, places), stops)
    answer = "".join(parts)
    assert not any(stop in answer for stop in stops)
    assert text.startswith(answer)
    assert stopped or answer == text


class Bytes:
    """A detokenizer whose tokens are bytes, as streaming detokenizers behave."""

    def __init__(self):
        self.bytes = b""
        self.offset = 0
        self.final = False

    def add_token(self, token):
        self.bytes += bytes([token])

    def finalize(self):
        self.final = True

    @property
    def last_segment(self):
        text = self.bytes.decode("utf-8", "replace")
        text = text if self.final else text.rstrip("\ufffd")
        segment, self.offset = text[self.offset :], len(text)
        return segment


@given(st.text(max_size=20), st.integers(0, 80))
def test_never_half_a_character(text, length):
    tokens = text.replace("\ufffd", "").encode()[:length]
    writer = Writer(Bytes(), [])
    parts = [writer.add(token)[0] for token in tokens]
    parts.append(writer.finish())
    assert "".join(parts) == tokens.decode("utf-8", "ignore")


def test_a_stop_text_may_come_with_the_very_last_piece():
    class Late(Bytes):
        @property
        def last_segment(self):
            return super().last_segment if self.final else ""

    writer = Writer(Late(), ["!"])
    for token in b"Golo!!":
        assert writer.add(token) == ("", False)
    assert writer.finish() == "Golo"
