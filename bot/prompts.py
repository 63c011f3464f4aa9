"""Prompts: persona, history and question within the token budget. Knows no model, only `encode`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from bot.domain import Role, Turn
from bot.errors import ConfigError, PromptTooLong

Encode = Callable[[Sequence[Turn]], tuple[int, ...]]

# History is dropped in steps of so many exchanges: the cut stays put for some turns, and with it
# the prefix that the KV cache can reuse.
CUT = 4


@dataclass(frozen=True, slots=True)
class Persona:
    """Who the bot is: the system prompt and a version made from its bytes."""

    text: str
    version: str

    @classmethod
    def load(cls, name: str) -> Persona:
        """Read `config/personas/<name>.md`."""
        file = files("config") / "personas" / f"{name}.md"
        if not file.is_file():
            raise ConfigError("error.persona", name=name)
        text = file.read_text(encoding="utf-8").strip()
        return cls(text, hashlib.sha256(text.encode()).hexdigest()[:12])

    @property
    def turn(self) -> Turn:
        """The system turn."""
        return Turn(Role.SYSTEM, self.text)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready for the engine; `dropped` counts the turns of history left out."""

    tokens: tuple[int, ...]
    dropped: int


def build(
    encode: Encode, persona: Persona, history: Sequence[Turn], question: str, budget: int
) -> Prompt:
    """Fit persona, history and question into `budget` tokens, dropping the oldest turns first.

    `history` alternates user and assistant. Raises PromptTooLong when the question alone does
    not fit: it is never cut, and neither is the persona.
    """
    last = Turn(Role.USER, question)
    exchanges = len(history) // 2
    stable = range(0, exchanges, CUT)
    for first in dict.fromkeys((*stable, *range(stable[-1] if stable else 0, exchanges))):
        tokens = encode([persona.turn, *history[2 * first :], last])
        if len(tokens) <= budget:
            return Prompt(tokens, 2 * first)
    tokens = encode([persona.turn, last])
    if len(tokens) > budget:
        raise PromptTooLong(tokens=len(tokens), budget=budget)
    return Prompt(tokens, len(history))
