"""The commands: one table that every platform registers from.

The summary of a command is the text `command.<name>.summary`, the label of its argument
`command.<name>.argument`, of a second one `command.<name>.second`. Who is an admin is checked in
code on every call, see
`bot.service.ChatService`; what a platform hides from others is only a courtesy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Argument(Enum):
    """Whether a command takes a text."""

    NONE = 0
    OPTIONAL = 1
    REQUIRED = 2


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its Portuguese name, its English aliases, and how it behaves.

    `private` commands are answered so that only the fan sees it, where the platform can. With
    `second` it takes two texts, which arrive as one, parted by a newline: platforms with forms or
    several options ask for each. `choices` are the words that the argument may be.
    """

    name: str
    aliases: tuple[str, ...]
    argument: Argument = Argument.NONE
    private: bool = True
    admin: bool = False
    second: bool = False
    choices: tuple[str, ...] = ()

    def named(self, language: str) -> str:
        """Its name for a fan of this language: in English the first alias."""
        return self.aliases[0] if language == "en" else self.name


COMMANDS = (
    Command("perguntar", ("ask",), Argument.REQUIRED, private=False),
    Command("novo", ("new",)),
    Command("parar", ("stop",)),
    Command("outra", ("again",), private=False),
    Command("corrigir", ("correct",), Argument.OPTIONAL),
    Command("ajuda", ("help", "start")),
    Command("estado", ("status",)),
    Command("privacidade", ("privacy",)),
    Command("ensinar", ("teach",), Argument.OPTIONAL, second=True),
    Command("aprender", ("learn",), Argument.OPTIONAL, choices=("sim", "não", "avisos")),
    Command("rever", ("review",), admin=True),
    Command(
        "retrain",
        ("train", "treinar"),
        Argument.OPTIONAL,
        admin=True,
        choices=("estado", "cancelar"),
    ),
    Command("rollback", ("revert", "recuar"), admin=True),
    Command("revisoes", ("revisions",), admin=True),
)

_BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}


def find(name: str) -> Command | None:
    """The command with this name or alias, in any case."""
    return _BY_NAME.get(name.lower())


def parse(text: str) -> tuple[Command | None, str]:
    """The command that a typed line begins with, and the rest: `/ask Olá` on web and console."""
    head, *rest = text.split(maxsplit=1) or [""]
    command = find(head[1:]) if head.startswith("/") else None
    return (command, "".join(rest).rstrip()) if command else (None, text)
