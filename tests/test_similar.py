"""Texts that say the same are found, and those that only look alike are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.similar import Seen, likeness, normal, same_answer

NEAR = 0.85


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Quando foi fundado o Farense?", "quando foi fundado o farense"),
        ("Quem é o António Boronha?", "Quem e o Antonio Boronha"),
        ("Havia 7 500 sócios", "Havia 7.500 sócios"),
        ("O 5.º lugar de 1994/95", "o 5º lugar de 94-95"),
        ("Perdemos 0–1", "perdemos 0-1"),
    ],
)
def test_form_does_not_matter(first, second):
    assert normal(first) == normal(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Em que lugar ficou o Farense em 1995/96?", "Em que lugar ficou o Farense em 1996/97?"),
        ("Vencemos o Benfica por 3-2 no São Luís", "Vencemos o Benfica por 2-3 no São Luís"),
        ("O Farense desceu de divisão em 1985 sim", "O Farense não desceu de divisão em 1985"),
        ("Quando foi fundado o Farense?", "Em que dia nasceu o Sporting Clube Farense?"),
    ],
)
def test_other_numbers_and_other_wordings_are_not_near(first, second):
    assert likeness(first, second) < NEAR


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Como se chama o estádio do Farense?", "O estádio do Farense como se chama?"),
        ("Como se chama o estádio do Farense?", "Como se chamma o estádio do Farense?"),
    ],
)
def test_a_slip_or_another_order_is_near(first, second):
    assert likeness(first, second) >= NEAR


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Foi fundado em 1910", "O Farense foi fundado em 1910.", True),
        ("Foi fundado em 1910", "O Farense foi fundado em 1911.", False),
        ("O marcador foi Ricardo", "O marcador foi Ricardo e Paulo Bento", False),
        ("o treinador em 2020 foi sergio vieira", "o treinador em 2020 foi jose vieira", False),
        ("Foi o Hassan", "Não foi o Hassan", False),
        ("Foi o Hassan", "foi o hassan!", True),
        ("🦁", "🐺", False),
        ("🦁", "🦁", True),
    ],
)
def test_fans_agree_only_when_they_say_the_same(first, second, same):
    assert same_answer(first, second) is same
    assert same_answer(second, first) is same


def test_a_search_finds_the_first_near_text():
    seen = Seen(NEAR)
    seen.add("a", "Quem marcou em 1990?", "Fernando Cruz")
    seen.add("b", "Quem marcou em 1991?", "Hassan")
    assert seen.find("quem marcou em 1991") == "b"
    assert seen.find("quem marcou em 1991", "hassan.") == "b"
    assert seen.find("quem marcou em 1991", "Ricardo") is None
    assert seen.find("quem marcou em 1992") is None


@given(st.text(), st.text())
def test_likeness_is_a_symmetric_share(first, second):
    assert likeness(first, second) == likeness(second, first)
    assert 0 <= likeness(first, second) <= 1
    assert likeness(first, first) == 1
    assert normal(normal(first)) == normal(first)


few = st.lists(st.sampled_from(["quem", "marcou", "marcouu", "o", "golo", "1990"]), max_size=6).map(
    " ".join
)


@given(st.lists(few, max_size=8), few, st.sampled_from([0.5, 0.7, 0.85, 1.0]))
def test_a_search_misses_nothing_that_comparing_with_each_would_find(texts, wanted, near):
    seen = Seen(near)
    for text in texts:
        seen.add(text, text, "")
    alike = [text for text in texts if likeness(text, wanted) >= near]
    assert seen.find(wanted) == (alike[0] if alike else None)
