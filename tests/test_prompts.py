"""Prompts: the persona always stays, the oldest turns go first, the cut stays put."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.domain import Role, Turn
from bot.errors import ConfigError, PromptTooLong
from bot.prompts import CUT, Persona, build
from bot.text import with_quote

PERSONA = Persona("p" * 10, "v1")


def encode(turns):
    """A token a character, so that budgets are easy to see."""
    return tuple(ord(char) for turn in turns for char in turn.text)


def history(*sizes):
    return [
        Turn(role, letter * size)
        for size in sizes
        for role, letter in ((Role.USER, "u"), (Role.ASSISTANT, "a"))
    ]


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 50), st.integers(60, 600))
def test_a_prompt_fits_and_keeps_persona_question_and_the_newest_turns(sizes, asked, budget):
    turns = history(*sizes)
    prompt = build(encode, PERSONA, turns, "q" * asked, budget)
    assert len(prompt.tokens) <= budget
    assert prompt.tokens == encode(
        [PERSONA.turn, *turns[prompt.dropped :], Turn(Role.USER, "q" * asked)]
    )
    assert prompt.dropped % 2 == 0


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(60, 600))
def test_no_more_is_dropped_than_the_steps_ask_for(sizes, budget):
    turns = history(*sizes)
    prompt = build(encode, PERSONA, turns, "q", budget)
    step = 2 * CUT
    less = (prompt.dropped - 1) // step * step
    if prompt.dropped and less >= 0:
        assert len(encode([PERSONA.turn, *turns[less:], Turn(Role.USER, "q")])) > budget


def test_the_cut_stays_put_for_some_turns_so_that_the_cache_can_be_reused():
    sizes = [10] * 8
    cuts = [build(encode, PERSONA, history(*sizes[:n]), "q" * 9, 120).dropped for n in range(9)]
    assert cuts == [0, 0, 0, 0, 0, 0, 8, 8, 8]


def test_a_single_message_over_the_budget_is_refused_and_never_cut():
    with pytest.raises(PromptTooLong):
        build(encode, PERSONA, history(5), "q" * 100, 100)


def test_a_quoted_message_stands_above_the_question_as_a_quote():
    assert with_quote("Concordas?", "Somos\nos maiores") == "> Somos\n> os maiores\n\nConcordas?"
    assert with_quote("Olá", None) == "Olá"


def test_the_persona_comes_with_a_version_of_its_bytes():
    persona = Persona.load("farense")
    assert "Farense" in persona.text
    assert persona == Persona.load("farense")
    with pytest.raises(ConfigError):
        Persona.load("nobody")
