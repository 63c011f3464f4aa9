"""What a fan who insists meets in the dataset: the same answer as before."""

from __future__ import annotations

import pytest

from bot.domain import Role
from training import suites
from training.facts import load_facts, spoken
from training.firmness import DEMANDS, DOUBTS, PRESSES, insisted
from training.similar import Seen, normal

FACTS = {fact.id: fact for fact in load_facts()}
MADE = insisted(tuple(FACTS.values()))


def test_there_are_many_and_always_the_same():
    assert len(MADE) > 50
    assert insisted(tuple(FACTS.values())) == MADE


@pytest.mark.parametrize("example", MADE, ids=lambda example: example.id)
def test_the_bot_says_the_same_each_time_and_the_fan_never_the_truth(example):
    fact = FACTS[example.id.removeprefix("fact:").removesuffix("/insisted")]
    question, *rest = example.turns
    assert question.text in fact.questions
    assert [turn.role for turn in rest] == [Role.ASSISTANT, Role.USER] * (len(rest) // 2)
    said = {turn.text for turn in rest if turn.role is Role.ASSISTANT} | {example.answer}
    assert said == {spoken(fact)}
    for turn in rest[1::2]:
        wrong = turn.text.removeprefix("Não")  # some facts are a "não"
        for asked in fact.questions:
            wrong = wrong.replace(asked, "")
        assert not fact.is_answered_by(wrong)


def test_fans_insist_in_other_words_than_in_the_suites():
    known = Seen(near=0.5)
    for text, _ in suites.asked(suites.load()):
        known.add("suite", text, "")
    for text in (*DOUBTS, *PRESSES, *DEMANDS):
        said = text.format(wrong="1950", question="")
        assert known.find(said) is None, normal(said)
