"""Telegram's menu of commands: one for everybody, one with more in it for each admin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog
from telegram import BotCommand, BotCommandScope, BotCommandScopeChat, error
from telegram.constants import BotCommandLimit
from telegram.ext import ExtBot

from bot.commands import COMMANDS
from bot.domain import Language, Platform
from config.texts import text

log = structlog.get_logger(__name__)


async def register(bot: ExtBot[Any], admins: Iterable[str]) -> None:
    """Tell Telegram our commands, where it does not know them yet.

    A menu is worth no silence: one that Telegram refuses is left out. An admin who never wrote
    to the bot has no chat to show one in.
    """
    try:
        await _set(bot, None)
    except (error.BadRequest, error.RetryAfter) as problem:
        log.warning("telegram menu not set", error=type(problem).__name__)
    for admin in admins:
        platform, _, chat = admin.partition(":")
        if platform == Platform.TELEGRAM and chat.isdecimal():
            try:
                await _set(bot, BotCommandScopeChat(int(chat)))
            except error.TelegramError as problem:
                log.info("telegram menu of an admin not set", error=type(problem).__name__)


async def _set(bot: ExtBot[Any], scope: BotCommandScope | None) -> None:
    for code, language in ((None, Language.PT), ("en", Language.EN)):
        wanted = _menu(language, admin=scope is not None)
        if await bot.get_my_commands(scope, code) != wanted:
            await bot.set_my_commands(wanted, scope, code)


def _menu(language: Language, *, admin: bool) -> tuple[BotCommand, ...]:
    """The commands as the menu shows them."""
    return tuple(
        BotCommand(
            command.named(language),
            text(f"command.{command.name}.summary", language)[: BotCommandLimit.MAX_DESCRIPTION],
        )
        for command in COMMANDS
        if admin or not command.admin
    )
