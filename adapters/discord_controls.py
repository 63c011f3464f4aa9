"""Buttons and forms on Discord. All that they know is in their ids, so they outlive a restart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Self

import discord

from adapters.discord_transport import EMOJI, TOKEN_LIFE
from bot.commands import Command, find
from bot.domain import FORM, Action, AnswerId, Language
from config.texts import text

LONGEST_FIELD = 4000  # characters that Discord lets a person type into a form or command
LONGEST_TITLE = 45  # characters of a form's title and of the label of a field
_FIELD = "correction"
_SECOND = "second"
_FIX = re.compile(r"fix:(?P<answer>\d+)")
_FILL = re.compile(rf"fill:(?P<data>{re.escape(FORM)}[ -~]{{0,39}})")
_GIVE = re.compile(r"give:(?P<command>\w+)")


class FeedbackButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"fb:(?P<action>up|dn|fx|ag|st):(?P<answer>\d+)",
):
    """A button under an answer."""

    def __init__(self, action: Action, answer_id: AnswerId) -> None:
        name = f"fb:{action}:{answer_id}"
        super().__init__(discord.ui.Button(emoji=EMOJI[action], custom_id=name))
        self._action = action
        self._answer_id = answer_id

    @classmethod
    async def from_custom_id(
        cls,
        interaction: discord.Interaction[Any],  # noqa: ARG003 (discord.py's signature)
        item: discord.ui.Item[Any],  # noqa: ARG003 (the same)
        match: re.Match[str],
        /,
    ) -> Self:
        """Make the button again from its id."""
        return cls(Action(match["action"]), AnswerId(int(match["answer"])))

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        """Hand the tap on."""
        await interaction.client.press(interaction, self._action, self._answer_id)


class ChoiceButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]], template=r"c:(?P<data>[ -~]{1,40})"
):
    """A choice under a notice."""

    def __init__(self, data: str) -> None:
        super().__init__(discord.ui.Button(label=data, custom_id=f"c:{data}"))
        self._data = data

    @classmethod
    async def from_custom_id(
        cls,
        interaction: discord.Interaction[Any],  # noqa: ARG003 (discord.py's signature)
        item: discord.ui.Item[Any],  # noqa: ARG003 (the same)
        match: re.Match[str],
        /,
    ) -> Self:
        """Make the button again from its id."""
        return cls(match["data"])

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        """Hand the tap on."""
        await interaction.client.tap(interaction, self._data)


class _Form(discord.ui.Modal):
    """A form of paragraphs. `Client.on_interaction` takes what is submitted."""

    def __init__(self, custom_id: str, title: str, longest: int) -> None:
        super().__init__(title=_begun(title), timeout=TOKEN_LIFE, custom_id=custom_id)
        self._longest = longest

    def _ask(
        self, label: str, name: str = _FIELD, *, hint: str | None = None, said: str = ""
    ) -> None:
        field: discord.ui.TextInput[Any] = discord.ui.TextInput(
            style=discord.TextStyle.paragraph,
            custom_id=name,
            max_length=self._longest,
            default=said[: self._longest] or None,
        )
        self.add_item(discord.ui.Label(text=_begun(label), description=hint, component=field))


class CorrectionForm(_Form):
    """Asks what an answer should have been."""

    def __init__(self, answer_id: AnswerId, language: Language, *, longest: int) -> None:
        super().__init__(f"fix:{answer_id}", text("discord.form_title", language), longest)
        self._ask(text("discord.form_label", language), hint=text("discord.form_hint", language))


class ChoiceForm(_Form):
    """Asks for the text that a choice needs."""

    def __init__(self, data: str, language: Language, *, longest: int) -> None:
        super().__init__(f"fill:{data}", text("form.title", language), longest)
        self._ask(text("form.label", language))


class CommandForm(_Form):
    """Asks for the two texts of a command, beginning with those that the fan typed already."""

    def __init__(
        self, command: Command, said: tuple[str, str], language: Language, *, longest: int
    ) -> None:
        key = f"command.{command.name}"
        super().__init__(f"give:{command.name}", text(f"{key}.summary", language), longest)
        self._ask(text(f"{key}.argument", language), said=said[0])
        self._ask(text(f"{key}.second", language), _SECOND, said=said[1])


def corrected(data: Any) -> tuple[AnswerId, str] | None:
    """The answer that a submitted form corrects, and how; None when it is another form."""
    form = _FIX.fullmatch(data.get("custom_id", ""))
    return (AnswerId(int(form["answer"])), _typed(data, _FIELD)) if form else None


def filled(data: Any) -> tuple[str, str] | None:
    """The choice whose form was submitted, and its text; None when it is another form."""
    form = _FILL.fullmatch(data.get("custom_id", ""))
    return (form["data"], _typed(data, _FIELD)) if form else None


def given(data: Any) -> tuple[Command, str] | None:
    """The command whose form was submitted, and its texts as one; None when it is another form."""
    form = _GIVE.fullmatch(data.get("custom_id", ""))
    command = find(form["command"]) if form else None
    if command is None or not command.second:
        return None
    return command, joined(_typed(data, _FIELD), _typed(data, _SECOND))


def joined(first: str, second: str) -> str:
    """Two texts as the one of a message: the first ends with its line."""
    return f"{' '.join(first.split())}\n{second.strip()}"


def _begun(words: str) -> str:
    return words[:1].upper() + words[1:LONGEST_TITLE]


def _typed(data: Any, field: str) -> str:
    """The text of a field of a form, wherever the layout has put it."""
    return next(_found(data, field), "")


def _found(data: Any, field: str) -> Iterator[str]:
    if isinstance(data, list):
        for part in data:
            yield from _found(part, field)
    elif isinstance(data, dict):
        if data.get("custom_id") == field:
            yield str(data.get("value", ""))
        yield from _found([data.get("components"), data.get("component")], field)
