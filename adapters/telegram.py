"""The Telegram bot: long polling, and the care that no update is lost and no token shown.

Telegram forgets an update once a later offset is asked for. The library's own updater asks
before the update is handled, so the polling here is ours: the offset moves only when everything
that an answer of Telegram held is safely stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import defaultdict
from collections.abc import Sequence

import structlog
from telegram import (
    CallbackQuery,
    MaybeInaccessibleMessage,
    MessageReactionUpdated,
    Update,
    error,
)
from telegram.constants import CallbackQueryLimit, UpdateType
from telegram.ext import ExtBot
from telegram.request import HTTPXRequest

from adapters.telegram_inbound import Albums, Translator, chat_of, with_answer
from adapters.telegram_limits import Limiter
from adapters.telegram_menu import register
from adapters.telegram_render import parse_choice, parse_data
from adapters.telegram_transport import TelegramTransport, seconds
from bot.domain import Destination, Language, Outcome, Platform, Post
from bot.errors import ConfigError, DeliveryError, FarenseError, StoreError, explain
from bot.health import Health, State
from bot.service import ChatService
from config.settings import Settings
from config.texts import text

log = structlog.get_logger(__name__)

POLL = 25  # seconds that Telegram holds a question for updates open
STALL = 20.0  # seconds beyond that after which the connection counts as dead
CALL = 10.0  # seconds for any other call
PRESS = 3.0  # seconds that the polling waits for what a button does
WAITS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)  # seconds between tries while Telegram is away
CONFLICT_WAIT = 30.0  # seconds between tries while another bot uses the token
ALLOWED = (UpdateType.MESSAGE, UpdateType.CALLBACK_QUERY, UpdateType.MESSAGE_REACTION)

_TOKEN = re.compile(r"\d+:[\w-]+", re.ASCII)


class TelegramAdapter:
    """Telegram, as the supervisor runs it."""

    platform = Platform.TELEGRAM

    def __init__(self, service: ChatService, settings: Settings) -> None:
        token = settings.telegram.token
        self._token = token.get_secret_value().strip() if token else ""
        self._service = service
        self._language = Language(settings.conversation.language)
        self._admins = settings.admins
        self._requests = (_request(2), _request(64))  # polling, everything else
        self._bot = _bot(self._token, settings.telegram.base_url, *self._requests)
        self.transport = TelegramTransport(
            self._bot, self._language, drafts=settings.telegram.drafts
        )
        self._health = Health(State.STARTING if self._token else State.OFF)
        self._offset: int | None = None
        self._taken: set[int] = set()  # updates that are safe, though not yet confirmed
        self._translator: Translator | None = None
        self._albums = Albums()
        self._presses: set[asyncio.Task[None]] = set()

    @property
    def health(self) -> Health:
        """How it is doing right now."""
        return self._health

    async def run(self) -> None:
        """Serve until cancelled; a token that Telegram does not take is a ConfigError."""
        if not _TOKEN.fullmatch(self._token):
            raise self._wrong_token()
        self._translator = None
        self._set(State.STARTING)
        try:
            await self._serve()
        except error.InvalidToken:
            raise self._wrong_token() from None  # the library's message holds the token
        finally:
            for task in self._presses:
                task.cancel()

    async def _serve(self) -> None:
        """Connect and poll; what Telegram or the store cannot do now is tried again."""
        tries = 0
        while True:
            try:
                if self._translator is None:
                    await self._connect()
                await self._poll()
            except error.InvalidToken:
                raise
            except error.Conflict:
                self._set(State.BROKEN, "telegram.conflict")
                wait = CONFLICT_WAIT
            except (error.TelegramError, StoreError, TimeoutError) as problem:
                wait = self._wait(problem, tries)
                tries += 1
            else:
                tries = 0
                continue
            await asyncio.sleep(wait)

    async def close(self) -> None:
        """Close the connections, when the last answer has been delivered."""
        await self._bot.shutdown()
        for request in self._requests:  # the library leaves them open when it never connected
            await request.shutdown()

    # --- connecting ------------------------------------------------------------------------

    async def _connect(self) -> None:
        await self._bot.initialize()
        await self._bot.delete_webhook(drop_pending_updates=False)
        await register(self._bot, self._admins)
        self._translator = Translator(self._bot.bot, self._language)
        log.info("telegram connected", bot=self._bot.username)

    def _wait(self, problem: Exception, tries: int) -> float:
        """Say that Telegram is away, and how long to leave it alone."""
        key = "telegram.store" if isinstance(problem, StoreError) else "telegram.unreachable"
        self._set(State.DOWN, key, error=type(problem).__name__)
        if isinstance(problem, error.RetryAfter):
            return seconds(problem)
        return WAITS[min(tries, len(WAITS) - 1)]

    def _set(self, state: State, key: str = "", **values: object) -> None:
        if state is not self._health.state:
            log.log(
                logging.INFO if state is State.UP else logging.WARNING,
                "telegram health",
                state=state.value,
                **values,
            )
        self._health = Health(state, text(key, self._language, **values) if key else "")

    def _wrong_token(self) -> ConfigError:
        self._set(State.BROKEN, "telegram.token_wrong")
        return ConfigError("telegram.token_wrong")

    # --- receiving -------------------------------------------------------------------------

    async def _poll(self) -> None:
        """Ask for updates once, and confirm them by the next offset when they are safe.

        While Telegram is not known to be there, only a quick look: what is open is answered then.
        """
        is_up = self._health.state is State.UP
        async with asyncio.timeout(POLL + STALL):
            updates = await self._bot.get_updates(
                offset=self._offset, timeout=POLL if is_up else 0, allowed_updates=ALLOWED
            )
        if not is_up:
            await self._service.resume(Platform.TELEGRAM)
        self._set(State.UP)
        chats: defaultdict[int | None, list[Update]] = defaultdict(list)
        for update in updates:
            if update.update_id not in self._taken:
                chat = update.effective_chat
                chats[chat.id if chat else None].append(update)
        ends = await asyncio.gather(
            *(self._take(ordered) for ordered in chats.values()), return_exceptions=True
        )
        for problem in ends:
            if problem is not None:
                raise problem
        if updates:
            self._offset = updates[-1].update_id + 1
            self._taken.clear()

    async def _take(self, updates: Sequence[Update]) -> None:
        """Take one chat's updates in their order."""
        for update in updates:
            try:
                await self._dispatch(update, updates)
            except StoreError:
                raise  # not safe yet: Telegram must give it to us again
            except Exception:
                # Asking for it again would fail again, and hold up everybody behind it.
                log.exception("update dropped", update_id=update.update_id)
            self._taken.add(update.update_id)

    async def _dispatch(self, update: Update, batch: Sequence[Update]) -> None:
        assert self._translator is not None
        if update.callback_query:
            await self._press(update, update.callback_query)
        elif update.message_reaction:
            await self._vote(update, update.message_reaction)
        elif message := self._albums.message(self._translator, update, batch):
            await self._service.receive(message)
            self._albums.remember(update, message)

    async def _press(self, update: Update, query: CallbackQuery) -> None:
        """Do what a button says; what takes long goes on beside the polling."""
        task = asyncio.create_task(self._answer(update, query))
        self._presses.add(task)
        task.add_done_callback(self._presses.discard)
        await asyncio.wait({task}, timeout=PRESS)

    async def _answer(self, update: Update, query: CallbackQuery) -> None:
        """Show what came of a tap as a toast, and in the message under it."""
        assert self._translator is not None
        language = self._translator.fan(query.from_user).language
        try:
            outcome = await self._outcome(update, query, language)
        except FarenseError as problem:
            outcome = Outcome(explain(problem, language))
        except Exception:
            log.exception("button broke", update_id=update.update_id)
            outcome = Outcome(text("error.unexpected", language))
        with contextlib.suppress(error.TelegramError):  # too late for a toast is no harm
            await self._bot.answer_callback_query(
                query.id, outcome.toast[: CallbackQueryLimit.ANSWER_CALLBACK_QUERY_TEXT_LENGTH]
            )
        if outcome.post and query.message:
            await self._edit(query.message, outcome.post)

    async def _outcome(self, update: Update, query: CallbackQuery, language: Language) -> Outcome:
        assert self._translator is not None
        if query.message and (meant := parse_data(query.data)):
            press = self._translator.press(update, query, meant)
            return Outcome((await self._service.press(press)).text)
        if query.message and (data := parse_choice(query.data)):
            return await self._service.tap(self._translator.tap(update, query, data))
        return Outcome(text("telegram.old_button", language))

    async def _edit(self, message: MaybeInaccessibleMessage, post: Post) -> None:
        """Let a card become what a tap made of it; tapped again, it is tried again."""
        try:
            await self.transport.edit(
                Destination(chat_of(message.chat)), str(message.message_id), post
            )
        except DeliveryError as problem:
            log.info("card not edited", platform="telegram", error=type(problem).__name__)

    async def _vote(self, update: Update, seen: MessageReactionUpdated) -> None:
        """Count a thumb on one of our answers."""
        assert self._translator is not None
        press = self._translator.vote(update, seen)
        if press is None:
            return
        message_id = self.transport.known_as(str(seen.message_id))
        answer_id = await self._service.answer_at(chat_of(seen.chat), message_id)
        if answer_id is not None:
            await self._service.press(with_answer(press, answer_id))


class _Client(ExtBot[None]):
    """The library's client, without the token in its name: that would be in tracebacks."""

    def __repr__(self) -> str:
        return "telegram"


def _bot(token: str, base_url: str, polling: HTTPXRequest, calls: HTTPXRequest) -> _Client:
    """The library's client. Its loggers are silenced: they write addresses, with the token."""
    for name in ("httpx", "httpcore", "telegram"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    base = base_url.rstrip("/")
    return _Client(
        token or "0:off",
        base_url=f"{base}/bot",
        base_file_url=f"{base}/file/bot",
        request=calls,
        get_updates_request=polling,
        rate_limiter=Limiter(),
    )


def _request(connections: int) -> HTTPXRequest:
    return HTTPXRequest(
        connection_pool_size=connections,
        connect_timeout=CALL,
        read_timeout=CALL,
        write_timeout=CALL,
        pool_timeout=CALL,
    )
