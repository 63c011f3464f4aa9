"""Text in and out: safe to read, cut where a reader would cut it, and with nobody disturbed."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest
import regex
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bot.text import clean, quiet_mentions, split, utf16_length

MEGABYTE = 2**20
LENGTHS: list[Callable[[str], int]] = [len, utf16_length]
FLAG = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("  Olá \r\n\r\n\r\n\r\nFarense\t!\r", "Olá\n\nFarense\t!"),
        ("a\x00b\x07c\x1bd\x85e\u2028f", "abcd\ne\nf"),
        ("golo\ud83d!", "golo!"),
        ("\u202eoluA\u202c \u2066x\u2069\u200f", "oluA x"),
        ("F\u200ba\u2060r\ufeffe\u00adnse", "Farense"),
        ("\u200b\u200d \n\ufe0f\u3164", ""),
        ("", ""),
        ("cafe\u0301", "café"),
        ("e\u200b\u0301", "é"),
        (
            "👨\u200d👩\u200d👧 ❤\ufe0f👍🏽\u200d🦰 a\u200db",
            "👨\u200d👩\u200d👧 ❤\ufe0f👍🏽\u200d🦰 ab",
        ),
        (FLAG + "\U000e0041x", FLAG + "x"),
        ("مرحبا بالعالم שלום", "مرحبا بالعالم שלום"),
        ("a" + "\u0301\u0316" * 100, None),
    ],
)
def test_what_a_fan_typed_is_made_safe(typed, read):
    assert read is None or clean(typed) == read
    assert len(clean(typed)) <= 40


@given(
    st.text() | st.text("a \n\t\r\u200d\ufe0f👨👩🏽\u0301\u0344\u202e🏴\U000e0067\U000e007f\ud800")
)
def test_cleaned_text_is_clean(typed):
    text = clean(typed)
    assert clean(text) == text
    assert text == text.strip()
    assert "\n\n\n" not in text
    assert unicodedata.is_normalized("NFC", text)
    assert not regex.search(r"(?![\n\t])\p{Cc}|\p{Cs}|\p{Bidi_Control}|\u200B", text)
    text.encode()


@pytest.mark.parametrize(
    "unit", ["a", " ", "\n ", "\u200b", "\u0301\u0316", "👨\u200d", "\r", "\U000e0041", "🏴"]
)
def test_a_megabyte_of_anything_is_cleaned(unit):
    assert len(clean(unit * (MEGABYTE // len(unit)))) <= MEGABYTE


@pytest.mark.parametrize(
    "text", ["@everyone", "x@HERE", "<@12>", "<@!12>", "<@&12>", "`@here`", "```\n@everyone\n```"]
)
def test_mentions_never_fire_and_look_the_same(text):
    quiet = quiet_mentions(text)
    assert not regex.search(r"@(everyone|here)|<@[!&]?\d", quiet, regex.IGNORECASE)
    assert quiet.replace("\u200b", "") == text
    assert quiet_mentions(quiet) == quiet


@pytest.mark.parametrize("text", ["adepto@here.pt", "a.b+c@everyone.co.uk", "5 <@ 3", "@farense"])
def test_addresses_and_other_signs_stay(text):
    assert quiet_mentions(text) == text


def test_utf16_units_are_counted_as_telegram_does():
    assert utf16_length("aé🦁\ud800") == 5


WORDS = st.sampled_from(
    [
        "golo",
        "a",
        "Farense",
        "de",
        "Faro.",
        "E",
        "agora?",
        "🦁",
        "e\u0301",
        "👨\u200d👩\u200d👧",
        "-",
        "1.",
    ]
)
PROSE = st.lists(WORDS, min_size=1, max_size=30).map(" ".join)
CODE = st.lists(
    st.sampled_from(["    x = 1", "y", "", "# `a`", "  print('🦁')", "w" * 70]), max_size=14
)
FENCED = st.builds(
    lambda mark, info, lines: "\n".join([mark + info, *lines, mark]),
    st.sampled_from(["```", "````", "~~~"]),
    st.sampled_from(["", "python", " c++ x"]),
    CODE,
)
LISTED = st.builds(
    lambda lines: "\n".join(["- item", "", "  ```", *("  " + line for line in lines), "  ```"]),
    CODE,
)
QUOTED = st.builds(
    lambda lines: "\n".join(["> dito", "> ```js", *("> " + line for line in lines), "> ```"]), CODE
)
BLOCK = st.one_of(PROSE, FENCED, LISTED, QUOTED)
DOCUMENT = st.lists(BLOCK, min_size=1, max_size=6).map("\n\n".join)


def bare(text: str) -> str:
    """A text without white space."""
    return "".join(text.split())


def code_of(text: str) -> str:
    tokens = MarkdownIt("commonmark").parse(text)
    return bare("".join(token.content for token in tokens if token.type == "fence"))


def without_fences(text: str) -> str:
    lines = (line.lstrip("> ") for line in text.splitlines())
    return bare("".join(line for line in lines if not line.startswith(("```", "~~~"))))


@given(st.text("ab .,\n🦁é\u0301\u200d👨"), st.integers(12, 60), st.sampled_from(LENGTHS))
def test_prose_loses_nothing_and_fits(text, limit, length):
    pieces = split(text, limit, length)
    assert all(0 < length(piece) <= limit for piece in pieces)
    assert all(piece == piece.strip() for piece in pieces)
    assert bare("".join(pieces)) == bare(text)


@example("a \x1c b", 2, len)
@given(st.text(), st.integers(2, 40), st.sampled_from(LENGTHS))
def test_any_text_fits(text, limit, length):
    text = text.encode(errors="ignore").decode()
    assert all(0 < length(piece) <= limit for piece in split(text, limit, length))


@example("\u0301 \u0301" * 20, 20, len)
@given(
    st.lists(WORDS).map("".join) | st.text("a \u0301🦁", max_size=80),
    st.integers(20, 60),
    st.sampled_from(LENGTHS),
)
def test_no_character_is_cut(text, limit, length):
    text = regex.sub(r"(\p{M}{4})\p{M}+", r"\1", text.strip())
    cut = [g for piece in split(text, limit, length) for g in regex.findall(r"\X", piece)]
    assert [g for g in cut if g.strip()] == [g for g in regex.findall(r"\X", text) if g.strip()]


@settings(deadline=None)
@example("```\n> ```\n" + "a b\n" * 30 + "```", 60, len)  # no end: it is quoted
@example("```\na\n      ```\n" + "a b\n" * 30 + "```", 60, len)  # no end: it is indented
@example("```\na\n```py\n" + "a b\n" * 30 + "```", 60, len)  # no end: it says more
@example(
    "> ```\n> a\n\n" + "a b " * 30 + "\n\n```\n" + "c\n" * 60 + "```", 60, len
)  # ends with the quotation
@example("```\n" + "a" * 50 + "\n" + "`" * 30, 60, len)
@given(DOCUMENT, st.integers(60, 200), st.sampled_from(LENGTHS))
def test_code_stays_code_in_every_piece_and_nothing_is_lost(text, limit, length):
    pieces = split(text, limit, length)
    assert all(0 < length(piece) <= limit for piece in pieces)
    assert "".join(map(code_of, pieces)) == code_of(text)
    assert "".join(map(without_fences, pieces)) == without_fences(text)


@pytest.mark.parametrize("opening", ["```a` b``` ", "```" + "p" * 100 + "\n"])
def test_a_block_that_is_none_or_cannot_be_opened_anew_is_cut_like_prose(opening):
    text = opening + "a b\n" * 30
    pieces = split(text, 60, len)
    assert all(len(piece) <= 60 for piece in pieces)
    assert bare("".join(pieces)) == bare(text)


@settings(deadline=None)
@given(DOCUMENT, st.integers(60, 120), st.data())
def test_a_growing_text_keeps_its_pieces(text, limit, data):
    size = data.draw(st.integers(1, len(text)))
    start = text[:size]
    last_line = start.rpartition("\n")[2]
    assume(not regex.match(r"[> ]*(`|~|$)", last_line))  # what may become a fence, or end one
    before, after = split(start, limit, len), split(text, limit, len)
    assert after[: len(before) - 1] == before[:-1]


@example(["**c d**"] * 12)
@given(st.lists(st.sampled_from(["`a b`", "[o site](x y)", "**c d**", "``e ` f``", "g", "h."])))
def test_code_links_and_bold_text_stay_whole(parts):
    for piece in split(" ".join(parts), 60, len):
        assert not regex.sub(r"``e ` f``|`a b`|\[o site\]\(x y\)|\*\*c d\*\*|[gh. ]", "", piece)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        (" \n ", []),
        ("Um parágrafo.\n\nOutro aqui.", ["Um parágrafo.", "Outro aqui."]),
        ("Uma linha inteira\ne outra", ["Uma linha inteira", "e outra"]),
        ("Acabou o jogo. Ganhámos", ["Acabou o jogo.", "Ganhámos"]),
        ("palavra a palavra a palavra", ["palavra a palavra a", "palavra"]),
        ("o resultado foi de 3 - 1", ["o resultado foi", "de 3 - 1"]),
        ("x" * 45, ["x" * 20, "x" * 20, "x" * 5]),
        ("Vê:\n```py\na = 1\nb = 2\n```", ["Vê:", "```py\na = 1\n```", "```py\nb = 2\n```"]),
        ("```py\na = 1", ["```py\na = 1\n```"]),
        ("```\n1\n22\n333\n4\n```\nfim", ["```\n1\n22\n333\n4\n```", "fim"]),
        ("```\n1\n22\n\n4\n```\nfim fim", ["```\n1\n22\n\n4\n```", "fim fim"]),
        (
            "```\na\nbbbbbbbbb\nc\n```\n**dd ee ff**",
            ["```\na\nbbbbbbbbb\n```", "```\nc\n```", "**dd ee ff**"],
        ),
    ],
)
def test_cuts_are_where_a_reader_would_make_them(text, pieces):
    assert split(text, 20, len) == pieces


@pytest.mark.parametrize(
    "unit", ["a", "a b", "[\n", "`", "> ", "- ", "**a\n", "👨\u200d👩", "~~~\nx\n"]
)
def test_a_megabyte_of_anything_is_cut(unit):
    pieces = split(unit * (MEGABYTE // len(unit)), 4096, utf16_length)
    assert all(utf16_length(piece) <= 4096 for piece in pieces)
