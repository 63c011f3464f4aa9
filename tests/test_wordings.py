"""Looser wordings of what fans taught: other questions, the same answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bot.domain import Role, Turn
from training.examples import Example, Kind, ask
from training.wordings import loosened

QUESTION = "A que horas abre o bar da sede ao sábado?"
LESSON = Example("lesson:1", Kind.TAUGHT, ask(QUESTION), "Às 14h30.")


def test_a_question_is_turned_round_and_its_telling_words_are_mixed():
    turned, telling = loosened(LESSON)
    words = ["a", "que", "horas", "abre", "o", "bar", "da", "sede", "ao", "sábado"]
    said = turned.question.split()
    assert said != words
    assert any(said == words[at:] + words[:at] for at in range(1, len(words)))
    assert sorted(telling.question.split()) == sorted(["horas", "abre", "bar", "sede", "sábado"])
    assert {turned.id, telling.id} == {"lesson:1~turned", "lesson:1~telling"}


def test_only_what_fans_taught_is_loosened_and_history_stays():
    before = (Turn(Role.USER, "Olá"), Turn(Role.ASSISTANT, "Olá!"))
    lesson = Example("lesson:1", Kind.CORRECTION, (*before, *ask(QUESTION)), "Às 14h30.")
    assert all(other.turns[:2] == before for other in loosened(lesson))
    assert not list(loosened(Example("fact:1", Kind.FACT, ask(QUESTION), "Às 14h30.")))


@given(st.text(max_size=80))
def test_any_question_gives_the_same_wordings_each_time_and_keeps_its_answer(question):
    lesson = Example("lesson:1", Kind.TAUGHT, ask(question), "Às 14h30.")
    made = list(loosened(lesson))
    assert made == list(loosened(lesson))
    assert all(other.answer == lesson.answer and other.question.strip() for other in made)
