"""Nothing personal is trained on, and nothing of football is taken for personal."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import luhn
from stdnum.pt import nif

from training.personal import remove

PERSONAL = [
    ("Escreve ao ze.silva+bola@mail.example.pt hoje", "Escreve ao um e-mail hoje"),
    ("Liga 912 345 678 amanhã cedo", "Liga um número amanhã cedo"),
    ("Liga 912345678 amanhã", "Liga um número amanhã"),
    ("Bilheteira: (289) 123 456, à tarde", "Bilheteira: um número, à tarde"),
    ("Escreve a ze.silva (arroba) mail (ponto) pt hoje", "Escreve a um e-mail hoje"),
    ("Escreve a ze[at]mail.pt hoje", "Escreve a um e-mail hoje"),
    ("Liga +351 912-345-678 amanhã", "Liga um número amanhã"),
    ("Liga 00351289123456 amanhã", "Liga um número amanhã"),
    ("A bilheteira atende no 289 123 456.", "A bilheteira atende no um número."),
    ("A bilheteira atende no 21 123 45 67.", "A bilheteira atende no um número."),
    ("Bilhetes: 91 234 5678, à tarde", "Bilhetes: um número, à tarde"),
    ("In London call +44 20 7946 0958 now", "In London call um número now"),
    ("Faturas com 501 964 843 no talão", "Faturas com um número no talão"),
    ("Faturas com 501964843 no talão", "Faturas com um número no talão"),
    ("Faturas com contribuinte 123 456 788 no talão", "Faturas com um número no talão"),
    ("Paga para PT50 0002 0123 1234 5678 9015 4 hoje", "Paga para um IBAN hoje"),
    ("Paga para pt50000201231234567890154 hoje", "Paga para um IBAN hoje"),
    ("Paga para DE89 3704 0044 0532 0130 00 hoje", "Paga para um IBAN hoje"),
    ("Quotas no cartão 4111 1111 1111 1111 sff", "Quotas no cartão um número sff"),
    ("Quotas no cartão 3782-822463-10005 sff", "Quotas no cartão um número sff"),
    ("O documento 00000000 0 ZZ4 do sócio", "O documento um número do sócio"),
    ("O sócio com BI 12345678 entra", "O sócio com um número entra"),
    ("Quem disse foi o @ze_de.faro ontem", "Quem disse foi alguém ontem"),
    ("Quem disse foi <@!123456789012345678> ontem", "Quem disse foi alguém ontem"),
    ("Vejam em <#42> e digam", "Vejam em alguém e digam"),
    ("Quem disse foi Leao.Faro#1910 ontem", "Quem disse foi alguém ontem"),
    ("O meu id de Discord, 80351110224678912, serve", "O meu id de Discord, um número, serve"),
    ("Entrem em https://t.me/+AbC_123 malta", "Entrem em uma ligação malta"),
    ("Entrem em discord.gg/farense, malta", "Entrem em uma ligação, malta"),
    ("Fala com tg://user?id=123456 hoje", "Fala com uma ligação hoje"),
    ("Fotos em www.instagram.com/ze.silva/ todas", "Fotos em uma ligação todas"),
    ("O servidor é 192.168.1.20 em casa", "O servidor é um endereço em casa"),
    ("O servidor é 2001:db8::ff00:42:8329 em casa", "O servidor é um endereço em casa"),
]

FOOTBALL = [
    "Ganhámos 3-2 e depois 4–1, com 2-0 ao intervalo.",
    "Em 1994/95 o Farense foi 5.º; em 1995-96 foi 10.º.",
    "Subiu em 1983, 1990, 2013, 2018, 2020 e 2023.",
    "As épocas 1990 1991 1992 1993 1994 1995 foram boas.",
    "Golos aos 12', 45+2' e 90 minutos.",
    "Estavam 14 000 pessoas, e no outro 7.500, ou 120,000 na televisão.",
    "O estádio custou 250 000 000 euros e viram-no 912 345 678 pessoas.",
    "Jogava em 4-3-3, às vezes em 4.2.3.1 e em 4-2-3-1.",
    "O sítio é www.scfarense.pt/bilhetes, e o filme está em max.com/foo.",
    "A 28-04-2013 e a 1.4.1910, às 21:45 e às 20:30:15.",
    "O n.º 9 e a camisola #10 jogaram com o Sub-20.",
    "Resultados: 3-2 4-1 5-0 3-3 2-1 1-0 4-4 2-2 1-1",
    "O dia 29 1983 e o 21 123 jogos",
    "Ingressos a 12,50€ na porta 24, fila 3.",
]


@pytest.mark.parametrize(("text", "clean"), PERSONAL)
def test_personal_data_becomes_neutral_words(text, clean):
    assert remove(text) == clean


@pytest.mark.parametrize("text", FOOTBALL)
def test_football_stays_as_it_is(text):
    assert remove(text) == text


@pytest.mark.parametrize(
    "text",
    ["912 345 678", "O meu número é 912 345 678", "@ze", "o meu e-mail: a@b.pt!", "discord.gg/abc"],
)
def test_a_text_that_was_nothing_else_is_gone(text):
    assert not remove(text)


def test_a_nine_digit_number_that_is_no_tax_number_stays_when_it_is_spaced():
    assert not nif.is_valid("123456788")
    assert remove("Vieram 123 456 788 vezes") == "Vieram 123 456 788 vezes"


digits = st.text("0123456789", min_size=7, max_size=7)
tail = st.sampled_from(["", ".", ", obrigado", " e mais nada", ")", "\nTchau"])
head = st.sampled_from(["Contacto: ", "Foi o João (", "marcou 3-2, ", "Em 1994/95 "])


@given(head, st.sampled_from(["91", "92", "93", "96", "28", "21", "22"]), digits, tail)
def test_no_portuguese_phone_number_survives(before, network, rest, after):
    number = network + rest
    spaced = f"{number[:3]} {number[3:6]} {number[6:]}"
    for written in (number, spaced, f"+351 {spaced}", f"+351{number}", f"(+351) {spaced}"):
        left = re.sub(r"\D", "", remove(before + written + after))
        assert rest not in left


@given(head, st.from_regex(r"[1-9][0-9]{7}", fullmatch=True), tail)
def test_no_tax_number_survives(before, first, after):
    number = first + nif.calc_check_digit(first)
    for written in (number, f"{number[:3]} {number[3:6]} {number[6:]}"):
        assert written not in remove(before + written + after)


@given(head, st.text("0123456789", min_size=14, max_size=14), tail)
def test_no_credit_card_survives(before, middle, after):
    number = "4" + middle
    number += luhn.calc_check_digit(number)
    groups = [number[at : at + 4] for at in range(0, 16, 4)]
    for written in (number, " ".join(groups), "-".join(groups)):
        assert written not in remove(before + written + after)


@given(head, st.from_regex(r"[a-z][a-z0-9._]{1,10}@[a-z]{2,8}\.(pt|com)", fullmatch=True), tail)
def test_no_address_survives(before, address, after):
    assert "@" not in remove(before + address + after)


season = st.integers(1910, 2030).map(lambda year: f"{year}/{(year + 1) % 100:02}")
score = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda s: f"{s[0]}-{s[1]}")
crowd = st.integers(1000, 65000).map(lambda n: f"{n:,}".replace(",", " "))
year = st.integers(1900, 2030).map(str)
minute = st.integers(1, 120).map(lambda n: f"{n}'")


@given(
    st.lists(season | score | crowd | year | minute, max_size=12), st.sampled_from([", ", " e "])
)
def test_scores_seasons_years_minutes_and_crowds_stay(words, between):
    text = f"Foi assim: {between.join(words)}."
    assert remove(text) == text


parts = st.sampled_from(
    [text for text, _ in PERSONAL] + FOOTBALL + ["@", "+351 9", "12", "1.2.3.4", "<@1>", "::1"]
)


@given(st.lists(parts | st.text(max_size=8), max_size=5).map(" ".join))
def test_a_second_pass_changes_nothing(text):
    once = remove(text)
    assert remove(once) == once
