"""What an answer is worth, whatever way it is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import metrics
from training.metrics import Checks, check

WORDS = st.text(alphabet="abc déÃ10.ºª-/ ", max_size=40)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Tem 7.000 lugares.", "7000"),
        ("Tem 7 000 lugares.", "7000"),
        ("Ficou em 5º lugar", "5.º"),
        ("Ficou em 5.º lugar", "5º"),
        ("Acabou 2 – 1.", "2-1"),
        ("Na época 95/96", "1995-96"),
        ("No Estádio de SÃO LUÍS!", "são luis"),
        ("equipa sub-20", "sub 20"),
        ("É alvinegra", "alvinegr*"),
    ],
)
def test_a_key_is_found_however_it_is_written(text, key):
    assert metrics.says(text, key)


@pytest.mark.parametrize(
    ("text", "key"),
    [("Em 19100", "1910"), ("Acabou 12-1", "2-1"), ("leoa", "leo"), ("", "x"), ("1-2", "2-1")],
)
def test_a_part_of_a_word_or_number_is_not_the_key(text, key):
    assert not metrics.says(text, key)


def test_all_of_a_key_is_wanted_and_any_of_its_alternatives():
    checks = Checks(key=(("preto", "negro"), "branco"))
    assert check("Negro e branco", checks) == (True, 1.0)
    assert check("Preto", checks) == (False, 0.5)
    assert check("Verde", checks) == (False, 0.0)


def test_a_forbidden_word_undoes_a_right_answer():
    checks = Checks(key=("1910",), never=(r"\b1920\b",))
    assert check("Foi em 1910.", checks) == (True, 1.0)
    assert check("Foi em 1910 ou 1920.", checks) == (False, 0.0)


@given(WORDS)
def test_a_text_always_says_itself(text):
    plain = metrics.normalise(text)
    assert not plain or metrics.says(text, text)


@pytest.mark.parametrize(
    ("text", "gold", "percent"),  # as sacrebleu 2.6.0 gives them, without its smoothing
    [
        ("O Farense nasceu em 1910.", "O Farense foi fundado em 1910.", 47.18700998073355),
        ("Foi Hassan Nader", "O melhor marcador foi Hassan, com 21 golos.", 21.28770721661167),
        ("a", "abcdef ghi", 13.513513513513514),
        ("Lisboa", "Lisbon is the capital", 18.80320538109758),
        ("abc", "xyz", 0.0),
        ("igual", "igual", 100.0),
        ("", "igual", 0.0),
    ],
)
def test_chrf_is_the_published_one(text, gold, percent):
    assert metrics.chrf(text, gold) * 100 == pytest.approx(percent)


def test_a_right_answer_in_other_words_matches_by_its_names_and_numbers():
    gold = "O tratador da mascote é o Zeferino Galvão, desde 1998."
    question = "Quem trata da mascote?"
    assert metrics.match("É o Zeferino Galvão, e já vem de 1998.", gold, question) == 1.0
    assert 0 < metrics.match("É o Zeferino.", gold, question) < 1
    assert metrics.match("Não sei.", gold, question) == 0.0


def test_what_the_question_says_already_proves_nothing():
    assert metrics.required("O Farense nasceu em 1910.", "Quando nasceu o Farense?") == ("1910",)


def test_without_names_and_numbers_likeness_decides():
    gold = "ao intervalo come-se folar com canela"
    assert metrics.match("Come-se folar com canela.", gold, "O que se come?") == 1.0
    assert metrics.match("Não faço ideia nenhuma", gold, "O que se come?") < 1.0


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Olá! Estou bem, e tu?", "pt"),
        ("Não sei, mas o jogo foi em Faro.", "pt"),
        ("The opposite of hot is cold.", "en"),
        ("I do not know that.", "en"),
        ("La capital de España es Madrid y el río es grande.", "es"),
        ("Hassan Nader", ""),
        ("", ""),
    ],
)
def test_the_language_is_told_by_its_small_words(text, language):
    assert metrics.language_of(text) == language


@pytest.mark.parametrize(
    "text",
    [
        "O time está jogando bem.",
        "Um gol do goleiro!",
        "A torcida chegou de ônibus.",
        "Você sabe onde fica?",
        "A equipe entrou no gramado.",
        "Vou pegar o trem.",
        "Deixa o celular no vestiário.",
    ],
)
def test_brazilian_forms_are_seen(text):
    assert metrics.brazilian_forms(text)


@pytest.mark.parametrize(
    "text",
    [
        "A equipa está a jogar bem.",
        "Está lindo, e estou cá quando quiseres.",
        "Um golo do guarda-redes, e os adeptos vieram de autocarro.",
        "De que a gente de Faro é capaz.",
        "Deixa o telemóvel no balneário e apanha o comboio.",
        "Vocês são os maiores.",
        "Esta segunda parte foi melhor.",
    ],
)
def test_european_portuguese_is_left_alone(text):
    assert not metrics.brazilian_forms(text)


def test_going_in_circles_is_seen():
    assert metrics.repetition("o que não sabe " * 6) > metrics.LOOPING
    assert metrics.repetition("O Farense nasceu em 1910, em Faro, e joga no São Luís.") == 0
    assert metrics.repetition("olá") == 0


@given(st.text(max_size=60), st.text(max_size=60))
def test_scores_stay_between_nothing_and_all(text, gold):
    assert 0 <= metrics.chrf(text, gold) <= 1
    assert 0 <= metrics.match(text, gold, "") <= 1
    assert 0 <= metrics.repetition(text) <= 1
