"""Commands that a few words answer: help, how the bot is, privacy, learning, and the nights."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bot.answering import pause_line
from bot.commands import COMMANDS
from bot.domain import Destination, Message, Post
from bot.errors import Refusal
from bot.ports import Engine, Nights
from bot.store import Store
from bot.teaching import Teaching
from config.settings import Settings
from config.texts import text

Handler = Callable[[Message], Awaitable[str | Post]]


class Replies:
    """Answers such commands; `handlers` has one for each, by its name in `bot.commands`."""

    def __init__(
        self, engine: Engine, store: Store, settings: Settings, teaching: Teaching
    ) -> None:
        self._engine = engine
        self._store = store
        self._settings = settings
        self._teaching = teaching
        self.nights: Nights | None = None
        self.handlers: dict[str, Handler] = {
            "ajuda": self._help,
            "estado": self._status,
            "privacidade": self._privacy,
            "ensinar": teaching.teach,
            "aprender": teaching.learn,
            "rever": self._review,
            "retrain": self._retrain,
            "rollback": self._roll_back,
            "revisoes": self._revisions,
        }

    async def _help(self, message: Message) -> str:
        fan = message.fan
        lines = [
            f"- /{command.named(fan.language)} — "
            + text(f"command.{command.name}.summary", fan.language)
            for command in COMMANDS
            if not command.admin or self._settings.is_admin(fan.key)
        ]
        return text("reply.help", fan.language, commands="\n".join(lines))

    async def _status(self, message: Message) -> str:
        engine = self._engine.status
        counts = await self._store.counts()
        language = message.fan.language
        said = text(
            "reply.status",
            language,
            model=engine.model,
            revision=engine.revision,
            running=engine.running,
            waiting=engine.waiting,
            speed=round(engine.tokens_per_second),
            answers=counts["answers"],
            up=counts["votes_up"],
            down=counts["votes_down"],
        )
        return f"{said}\n\n{pause_line(engine, language)}" if engine.paused else said

    async def _privacy(self, message: Message) -> str:
        return text("reply.privacy", message.fan.language)

    async def _review(self, message: Message) -> Post:
        return await self._teaching.review(message.fan)

    async def _retrain(self, message: Message) -> str:
        nights = self._steer()
        language, word = message.fan.language, message.text.casefold().strip()
        if word in {"estado", "status"}:
            return await nights.describe(language)
        if word in {"cancelar", "cancel"}:
            stopped = await nights.cancel()
            return text("night.cancelling" if stopped else "night.none", language)
        # Without the handle: a run outlives an interaction's token.
        await nights.start(message.fan.key, Destination(message.chat), language)
        return text("night.started", language)

    async def _roll_back(self, message: Message) -> str:
        return await self._steer().roll_back(message.fan.key, message.fan.language)

    async def _revisions(self, message: Message) -> str:
        return await self._steer().revisions(message.fan.language)

    def _steer(self) -> Nights:
        if self.nights is None:
            raise Refusal("refusal.no_nights")
        return self.nights
