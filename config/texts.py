"""The text catalogue: `text(key, language, **values)` gives one sentence of `texts.toml`."""

from __future__ import annotations

import functools
import re
import string
import tomllib
from importlib.resources import files
from typing import Any

LANGUAGES = ("pt", "en")
DECIMAL = {"pt": ",", "en": "."}


class _Catalogue(string.Formatter):
    """`str.format` in a language: `{x:.2f}` has its decimal mark, `{n:singular|plural}` picks."""

    def __init__(self, language: str) -> None:
        self._language = language

    def format_field(self, value: Any, format_spec: str) -> str:
        if "|" in format_spec:
            one, many = format_spec.split("|")
            return one if value == 1 else many
        if isinstance(value, int | float):
            return number(value, format_spec, self._language)
        return str(super().format_field(value, format_spec))


@functools.cache
def catalogue() -> dict[str, dict[str, str]]:
    """All texts: key, then language, then sentence."""
    tree = tomllib.loads((files("config") / "texts.toml").read_text(encoding="utf-8"))
    flat: dict[str, dict[str, str]] = {}

    def walk(prefix: str, node: dict[str, Any]) -> None:
        if any(language in node for language in LANGUAGES):
            flat[prefix] = node
            return
        for name, child in node.items():
            walk(f"{prefix}.{name}" if prefix else name, child)

    walk("", tree)
    return flat


def text(key: str, language: str = "pt", /, **values: object) -> str:
    """The sentence for a key in a language, Portuguese where the language is unknown."""
    entry = catalogue()[key]
    return _Catalogue(language).vformat(entry.get(language, entry["pt"]), (), values)


def number(value: float, form: str, language: str = "pt") -> str:
    """A number in a form of `format`, such as `.2f` or `.0%`, as the language writes it."""
    return format(value, form).replace(".", DECIMAL.get(language, DECIMAL["pt"]))


def placeholders(sentence: str) -> set[str]:
    """The names in braces of a sentence."""
    return set(re.findall(r"{(\w+)", sentence))
