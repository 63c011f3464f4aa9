"""The text catalogue: complete in both languages, used, and European Portuguese."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from bot import errors
from bot.commands import COMMANDS, Argument, find
from config.texts import LANGUAGES, catalogue, number, placeholders, text

ROOT = Path(__file__).resolve().parent.parent
CODE = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("bot", "adapters", "engine", "training", "farense_bot")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".html", ".js"}
)
# Forms that a reader in Faro takes for Brazilian.
BRAZILIAN = re.compile(
    r"\b(você|vocês|equipe|torcida|torcedor(es)?|goleiro|time|celular|tela|usuário|arquivo|ônibus|"
    r"gramado|legal|baixar|cadastr\w+|deletar|a gente|estou \w+ndo|está \w+ndo)\b",
    re.IGNORECASE,
)


def test_every_text_exists_in_both_languages_with_the_same_placeholders():
    for key, entry in catalogue().items():
        assert set(entry) == set(LANGUAGES), key
        assert placeholders(entry["pt"]) == placeholders(entry["en"]), key
        assert all(sentence.strip() == sentence.strip("\n") for sentence in entry.values()), key


def test_portuguese_texts_are_european():
    for key, entry in catalogue().items():
        found = BRAZILIAN.search(entry["pt"])
        assert not found, f"{key}: {found and found.group()}"


def _named_in_code() -> set[str]:
    prefixes = {key.split(".")[0] for key in catalogue()}
    return {
        key
        for key in re.findall(r"[\"'`]([a-z_]+(?:\.[a-z_]+)+)[\"'`]", CODE)
        if key.split(".")[0] in prefixes
    }


def test_every_text_that_the_code_names_exists():
    missing = _named_in_code() - catalogue().keys()
    assert not {key for key in missing if importlib.util.find_spec(key) is None}


def test_every_error_has_its_sentence():
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.FarenseError):
            assert error.key in catalogue(), error


def test_every_command_has_its_texts():
    for command in COMMANDS:
        assert f"command.{command.name}.summary" in catalogue()
        if command.second:
            assert f"command.{command.name}.second" in catalogue()
        if command.argument is not Argument.NONE:
            assert f"command.{command.name}.argument" in catalogue()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_commands_are_found_by_name_and_alias_and_fit_both_platforms(command):
    for name in (command.name, *command.aliases):
        assert find(name.upper()) is command
        assert re.fullmatch(r"[a-z0-9_]{1,32}", name)


def test_plurals():
    assert text("refusal.pending", "pt", n=1).startswith("Ainda tenho 1 mensagem tua por")
    assert text("refusal.pending", "pt", n=2).startswith("Ainda tenho 2 mensagens tuas por")


@pytest.mark.parametrize(
    ("value", "form", "written"),
    [(1.9, ".2f", "1,90"), (0.125, ".1%", "12,5%"), (12, ".0f", "12"), (0.5, "g", "0,5")],
)
def test_numbers_have_the_decimal_mark_of_the_language(value, form, written):
    assert number(value, form) == number(value, form, "de") == written
    assert number(value, form, "en") == written.replace(",", ".")


def test_sentences_write_numbers_as_their_language_does():
    assert text("night.loss", "pt", loss=1.904).endswith("1,90")
    assert text("night.loss", "en", loss=1.904).endswith("1.90")


def test_an_unknown_language_reads_portuguese():
    assert text("reply.stopped", "de") == text("reply.stopped", "pt")
