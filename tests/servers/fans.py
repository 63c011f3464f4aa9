"""Fans at the loopback servers: what they write and tap, and what the bot answers to just that."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import count, cycle
from typing import Any

from config.texts import text
from tests.servers.discord.proxy import Loopback as DiscordServer
from tests.servers.telegram.proxy import BOT, chat_json
from tests.servers.telegram.proxy import Loopback as TelegramServer

PATIENCE = 60  # seconds from what a fan does to the whole answer, however many ask


class OnTelegram:
    """Fans in private chats with the bot. Whoever asks is new: nothing was said there before."""

    def __init__(self, server: TelegramServer) -> None:
        self._server = server
        self._newcomers = count(1000)

    async def ask(self, question: str) -> str:
        _, answer = await self.say(next(self._newcomers), question, "up:")
        return str(answer["text"])

    async def teach(self, fan: int, wording: str, answer: str) -> None:
        """By the guided reply, and with a yes to the card that comes of it."""
        form, _ = await self.say(fan, "/ensinar")
        lesson, reply = f"{wording}\n{answer}", _message(form, fan)
        card, shown = await self.say(fan, lesson, "c:ly:", reply_to_message=reply)
        await self.tap(fan, card, shown)

    async def say(self, fan: int, words: str, button: str = "", **more: Any) -> tuple[int, Any]:
        """Write, and wait for the message that comes of it: its id, and what is shown."""
        known = set(self._server.shown)

        def new() -> list[tuple[int, Any]]:
            return [
                (key[1], shown)
                for key, shown in self._server.shown.items()
                if key[0] == str(fan) and key not in known and first(shown).startswith(button)
            ]

        await self._server.say(words, fan=fan, **more)
        await self._server.until(lambda: bool(new()), PATIENCE)
        return new()[0]

    async def tap(self, fan: int, card: int, shown: Any) -> Any:
        """Tap the first button of a card, and wait for what becomes of it."""
        await self._server.tap(first(shown), _message(card, fan), fan=fan)
        key = str(fan), card
        await self._server.until(lambda: self._server.shown[key] != shown, PATIENCE)
        return self._server.shown[key]

    def messages(self, fan: int) -> list[str]:
        return [shown["text"] for key, shown in self._server.shown.items() if key[0] == str(fan)]

    def edits(self, fan: int, begin: str) -> Counter[str]:
        """How often each message was edited to a text that begins so."""
        return Counter(
            call.data["message_id"]
            for call in self._server.of("editMessageText")
            if call.data["chat_id"] == str(fan) and call.data["text"].startswith(begin)
        )

    def answers(self) -> list[int]:
        """The answers that are shown whole, by their ids, as often as they are."""
        names = [first(shown) for shown in self._server.shown.values()]
        return [int(name[3:]) for name in names if name.startswith("up:")]


class OnDiscord:
    """Fans in a server's channel, who use commands and forms."""

    def __init__(self, server: DiscordServer, fans: list[str]) -> None:
        self._server = server
        self.fans = fans
        self._askers = cycle(fans)
        self._one_by_one = asyncio.Lock()

    async def ask(self, question: str) -> str:
        answer = await self.command(next(self._askers), "perguntar", question, wanted=_is_whole)
        return str(answer["content"])

    async def teach(self, fan: str, wording: str, answer: str) -> None:
        """By the form that the command opens."""
        await self.command(fan, "ensinar", wanted=lambda body: body.get("type") == 9)
        typed = {"correction": wording, "second": answer}
        fields = [{"customId": name, "value": value} for name, value in typed.items()]
        form = {"customId": "give:ensinar", "fields": fields}
        kept = await self._act(fan, "simulateModalSubmit", _says_something, **form)
        assert kept["content"] == text("lesson.kept", "en")

    async def command(
        self, fan: str, name: str, *words: str, wanted: Callable[[Any], bool] | None = None
    ) -> Any:
        """Give a slash command, and wait for what comes of it."""
        options = [{"name": "texto", "type": 3, "value": word} for word in words]
        given = {"name": name, "options": options}
        return await self._act(fan, "simulateSlashCommand", wanted or _says_something, **given)

    async def answers(self) -> list[int]:
        """The answers that are shown whole, by their ids, as often as they are."""
        shown = [_button(message) for message in await self._server.shown()]
        return [int(name[6:]) for name in shown if name.startswith("fb:up:")]

    async def _act(self, fan: str, call: str, wanted: Callable[[Any], bool], **args: Any) -> Any:
        """Let a fan do something, and wait for what the bot sends because of just that."""
        async with self._one_by_one:
            token = (await self._server.act(call, userId=fan, **args))["token"]

        def sent() -> list[Any]:
            bodies = [one.body for one in self._server.calls if token in one.path]
            return [body for body in bodies if body and wanted(body)]

        async with asyncio.timeout(PATIENCE), self._server.changed:
            await self._server.changed.wait_for(sent)
        return sent()[-1]


def first(shown: Any) -> str:
    """What the first button under a message on Telegram says; nothing where there is none."""
    rows = shown.get("reply_markup", {}).get("inline_keyboard") or [[{"callback_data": ""}]]
    return str(rows[0][0]["callback_data"])


def _message(number: int, fan: int) -> dict[str, Any]:
    return {"message_id": number, "date": 1, "chat": chat_json(fan, None), "from": BOT, "text": ""}


def _button(body: Any) -> str:
    rows = body.get("components") or [{"components": [{"custom_id": ""}]}]
    return str(rows[0]["components"][0]["custom_id"])


def _is_whole(body: Any) -> bool:
    return _button(body).startswith("fb:up:")


def _says_something(body: Any) -> bool:
    return bool(body.get("content"))
