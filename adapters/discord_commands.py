"""Slash commands made from the table of commands, registered only when something changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

import discord
import structlog
from discord import app_commands
from discord.http import Route

from bot.commands import COMMANDS, Argument, Command
from config.texts import text

log = structlog.get_logger(__name__)

Take = Callable[[discord.Interaction[Any], Command, tuple[str, ...]], Awaitable[None]]
_ENGLISH = {discord.Locale.american_english, discord.Locale.british_english}
_SEEN = ("name", "description", "type", "required", "default_member_permissions")
_TRANSLATED = ("name_localizations", "description_localizations")


class EnglishNames(app_commands.Translator):
    """Gives each text its English form; what Discord shows by itself is Portuguese."""

    async def translate(
        self,
        string: app_commands.locale_str,
        locale: discord.Locale,
        context: app_commands.TranslationContextTypes,  # noqa: ARG002 (discord.py's signature)
    ) -> str | None:
        """The English text that came along, for English locales."""
        return string.extras["en"] if locale in _ENGLISH else None


def slash_commands(take: Take) -> list[app_commands.Command[Any, ..., None]]:
    """One slash command for each of ours; all of them call `take`."""
    return [_slash(command, take) for command in COMMANDS]


def _slash(command: Command, take: Take) -> app_commands.Command[Any, ..., None]:
    async def plain(interaction: discord.Interaction) -> None:
        await take(interaction, command, ())

    async def optional(interaction: discord.Interaction, texto: str | None = None) -> None:
        await take(interaction, command, (texto or "",))

    async def required(interaction: discord.Interaction, texto: str) -> None:
        await take(interaction, command, (texto,))

    async def pair(
        interaction: discord.Interaction, texto: str | None = None, segundo: str | None = None
    ) -> None:
        await take(interaction, command, (texto or "", segundo or ""))

    shapes: dict[Argument, Callable[..., Coroutine[Any, Any, None]]] = {
        Argument.NONE: plain,
        Argument.OPTIONAL: optional,
        Argument.REQUIRED: required,
    }
    key = f"command.{command.name}"
    made: app_commands.Command[Any, ..., None] = app_commands.Command(
        name=app_commands.locale_str(command.name, en=command.named("en")),
        description=_both(f"{key}.summary"),
        callback=pair if command.second else shapes[command.argument],
    )
    if command.second:  # labels of one word: they name the options
        app_commands.rename(texto=_both(f"{key}.argument"), segundo=_both(f"{key}.second"))(made)
        app_commands.describe(segundo=_both(f"{key}.second"))(made)
    elif command.argument is not Argument.NONE:
        app_commands.rename(texto=app_commands.locale_str("texto", en="text"))(made)
    if command.argument is not Argument.NONE:
        app_commands.describe(texto=_both(f"{key}.argument"))(made)
    if command.choices:
        words = [app_commands.Choice(name=word, value=word) for word in command.choices]
        app_commands.choices(texto=words)(made)
    if command.admin:
        made.default_permissions = discord.Permissions(manage_guild=True)
    return made


def _both(key: str) -> app_commands.locale_str:
    return app_commands.locale_str(text(key, "pt"), en=text(key, "en"))


async def register(client: discord.Client, tree: app_commands.CommandTree[Any]) -> None:
    """Register the commands unless Discord already has them as they are."""
    try:
        if await _registered(client) != await _wanted(tree):
            await tree.sync()
            log.info("commands registered", platform="discord")
    except (discord.HTTPException, discord.RateLimited) as error:
        # Those of the last time still work, and mentions do in any case.
        log.warning("commands not registered", platform="discord", reason=str(error))


async def _wanted(tree: app_commands.CommandTree[Any]) -> list[object]:
    translator = tree.translator
    assert translator is not None
    commands = [
        await command.get_translated_payload(tree, translator)
        for command in tree.get_commands()
        if isinstance(command, app_commands.Command)
    ]
    return _essence(commands)


async def _registered(client: discord.Client) -> list[object] | None:
    """What Discord has, with all translations: the library's own call leaves those out."""
    route = Route(
        "GET", "/applications/{application_id}/commands", application_id=client.application_id
    )
    try:
        return _essence(await client.http.request(route, params={"with_localizations": "true"}))
    except discord.NotFound:
        return None


def _essence(commands: Iterable[dict[str, Any]]) -> list[object]:
    """What matters of a list of commands or options, in a form that compares."""
    return [
        (
            [str(command.get(name) or "") for name in _SEEN],
            [command.get(name) or {} for name in _TRANSLATED],
            [(choice["name"], choice["value"]) for choice in command.get("choices") or []],
            _essence(command.get("options") or []),
        )
        for command in sorted(commands, key=lambda command: str(command["name"]))
    ]
