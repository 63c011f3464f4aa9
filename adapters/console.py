"""The terminal: a chat with streamed answers, and one answer on standard output for scripts."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, contextmanager, suppress
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from bot.commands import parse
from bot.domain import (
    CARET,
    Action,
    AnswerId,
    Chat,
    Choice,
    Delta,
    Destination,
    Done,
    Fan,
    Finish,
    Language,
    Message,
    Platform,
    Post,
    Press,
    Request,
    Sampling,
    Source,
    Tap,
)
from bot.errors import Refusal
from bot.health import Health, State
from bot.ports import Engine, Pace
from bot.prompts import Persona, build
from bot.service import ChatService
from bot.text import clean
from config.settings import Settings
from config.texts import text

ME = "local"  # whoever sits at this terminal
BROKEN_PIPE = 128 + signal.SIGPIPE
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model must not steer the terminal


def _harmless(words: str) -> str:
    return _CONTROL.sub("", words)


class Screen:
    """Where answers are shown: rendered on a terminal, letter by letter anywhere else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = ""
        self._live: Live | None = None

    def hint(self, words: str) -> None:
        """Show a remark of the console's own; pipes never see it."""
        if self._console.is_terminal:
            self._console.print(words, style="dim", markup=False)

    def grow(self, words: str) -> None:
        """Show an answer that is still being written."""
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(self._tail(words), refresh=True)
        else:
            self._write(words)

    def finish(self, words: str) -> None:
        """Show the whole answer and begin a new line."""
        if self._console.is_terminal:
            self.close()
            self._console.print(Markdown(words))
            self._console.print()
        else:
            self._write(words)
            self._console.file.write("\n")
            self._console.file.flush()
        self._shown = ""

    def close(self) -> None:
        """Give the cursor back."""
        if self._live:
            self._live.stop()
            self._live = None

    def _tail(self, words: str) -> Text:
        """As much of the end as the terminal has lines for."""
        lines = Text(words).wrap(self._console, self._console.width)
        return Text("\n").join(lines[-max(1, self._console.height - 3) :])

    def _write(self, words: str) -> None:
        new = words.removeprefix(self._shown)
        if self._shown and new == words:
            new = f"\n{words}"  # another text altogether: the place in the queue is no answer
        self._console.file.write(new)
        self._console.file.flush()
        self._shown = words


class ConsoleAdapter:
    """`farense-bot chat`: one fan, one terminal; Ctrl-C stops an answer, Ctrl-D leaves."""

    platform = Platform.CONSOLE
    pace = Pace(private=0.05, group=0.05, typing=0)

    def __init__(
        self,
        service: ChatService,
        settings: Settings,
        read: Callable[[str], str] = input,
        console: Console | None = None,
    ) -> None:
        self._service = service
        self._language = Language(settings.conversation.language)
        self._read = read
        self._console = console or Console(highlight=False)
        self._screen = Screen(self._console)
        self._fan = Fan(Platform.CONSOLE, ME, language=self._language)
        self._chat = Chat(Platform.CONSOLE, ME)
        self._open = 0  # messages without an answer
        self._answered = asyncio.Event()
        self._running: AnswerId | None = None
        self._asked: str | None = None
        self._card = ""  # the newest notice with choices, and these
        self._choices: tuple[Choice, ...] = ()
        self._state = State.STARTING

    @property
    def transport(self) -> ConsoleAdapter:
        """The way to show things: the adapter itself."""
        return self

    @property
    def health(self) -> Health:
        """How it is doing right now."""
        return Health(self._state)

    async def run(self) -> None:
        """Read lines and show answers until the end of the input."""
        self._state = State.UP
        with suppress(ImportError):
            import readline  # noqa: F401 (arrow keys and history in `input`; not in every Python)
        self._screen.hint(text("console.hello", self._language))
        try:
            with self._interruptible():
                await self._service.resume(Platform.CONSOLE)
                while (line := await self._line()) is not None:
                    if line.strip():
                        await self._say(line)
        finally:
            self._screen.close()
            self._state = State.DOWN

    async def close(self) -> None:
        """Nothing is left open."""

    async def _line(self) -> str | None:
        """One line of the fan's; None at the end. Waits in a thread that dies with the process."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str | None] = loop.create_future()

        def settle(line: str | None) -> None:
            if not future.done():
                future.set_result(line)

        def read() -> None:
            try:
                line = self._read("> " if self._console.is_terminal else "")
            except (EOFError, UnicodeDecodeError):
                line = None
            loop.call_soon_threadsafe(settle, line)

        threading.Thread(target=read, daemon=True).start()
        return await future

    async def _say(self, line: str) -> None:
        command, rest = parse(line)
        asked, self._asked = self._asked, None
        choices, self._choices = self._choices, ()
        number = line.strip()
        if number in {str(place) for place, _ in enumerate(choices, 1)}:
            await self._tap(choices[int(number) - 1])
            return
        await self._receive(command.name if command else None, rest, asked)
        await self._answered.wait()

    async def _tap(self, choice: Choice) -> None:
        """Choose what a number under a notice stands for."""
        update, card = str(uuid.uuid4()), self._card
        tap = Tap(choice.data, self._fan, self._chat, Source.CONSOLE, update, card)
        outcome = await self._service.tap(tap)
        if outcome.toast:
            self._screen.finish(_harmless(outcome.toast))
        if outcome.post:
            await self.edit(Destination(self._chat), card, outcome.post)

    async def _receive(self, command: str | None, words: str, reply_to: str | None = None) -> None:
        self._open += 1
        self._answered.clear()
        await self._service.receive(
            Message(
                update_id=str(uuid.uuid4()),
                chat=self._chat,
                fan=self._fan,
                text=words,
                source=Source.CONSOLE,
                received_at=datetime.now(UTC),
                reply_to=reply_to,
                command=command,
            )
        )

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C stops the answer, not the program."""
        loop = asyncio.get_running_loop()
        stops: set[asyncio.Task[None]] = set()

        def interrupt() -> None:
            task = loop.create_task(self._stop())
            stops.add(task)
            task.add_done_callback(stops.discard)

        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    async def _stop(self) -> None:
        if not self._open:
            self._screen.hint(text("console.leave", self._language))
        elif self._running is None:  # it still waits for its turn
            await self._receive("parar", "")
        else:
            update = str(uuid.uuid4())
            await self._service.press(
                Press(Action.STOP, self._running, self._fan, self._chat, Source.CONSOLE, update)
            )

    # --- the transport ---------------------------------------------------------------------

    def split(self, words: str) -> list[str]:
        """A terminal takes any text."""
        return [words]

    async def send(self, _to: Destination, post: Post) -> str:
        """Show a new message."""
        message_id = uuid.uuid4().hex
        if post.ask:
            self._asked = message_id  # the next line is the reply to it
        self._show(post)
        self._offer(message_id, post)
        return message_id

    async def edit(self, _to: Destination, message_id: str, post: Post) -> None:
        """Show the newer text."""
        self._show(post)
        self._offer(message_id, post)

    async def typing(self, _to: Destination) -> None:
        """Nothing: the cursor blinks."""

    def _offer(self, message_id: str, post: Post) -> None:
        """Keep the choices of the newest notice that has some, or of none when it lost them."""
        if post.choices or message_id == self._card:
            self._card, self._choices = message_id, post.choices

    def _show(self, post: Post) -> None:
        words = _harmless(post.text.removesuffix(CARET)).strip()
        if post.choices:
            labels = (f"[{place}] {each.label}" for place, each in enumerate(post.choices, 1))
            words += _harmless("\n\n" + "  ".join(labels))
        if post.buttons and post.buttons.running:
            self._running = post.buttons.answer_id
            self._screen.grow(words)
        else:
            self._running = None
            self._screen.finish(words)
            self._open = max(0, self._open - 1)
            if not self._open:
                self._answered.set()


async def ask(engine: Engine, settings: Settings, question: str) -> int:
    """Answer one question on standard output, with nothing else there; returns the exit code."""
    language = settings.conversation.language
    words = clean(question)
    if not words:
        raise Refusal
    try:
        async with AsyncExitStack() as stack:
            waiting = stack.enter_context(ExitStack())
            stderr = Console(stderr=True, highlight=False)
            waiting.enter_context(stderr.status(text("console.thinking", language)))
            await stack.enter_async_context(engine)
            request = await asyncio.to_thread(_request, engine, settings, words)
            events = await stack.enter_async_context(aclosing(engine.generate(request)))
            begun = False
            async for event in events:
                match event:
                    case Delta(piece):
                        waiting.close()
                        piece = piece if begun else piece.lstrip()
                        begun = begun or bool(piece)
                        sys.stdout.write(_harmless(piece))
                        sys.stdout.flush()
                    case Done(Finish.LENGTH, _):
                        stderr.print(f"\n{text('answer.long', language)}", markup=False)
            if not begun:
                raise Refusal("error.no_words")
            sys.stdout.write("\n")
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read us has enough; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(BROKEN_PIPE)
    return 0


def _request(engine: Engine, settings: Settings, question: str) -> Request:
    """A question without a history, by the same persona and settings as in a chat."""
    options = settings.engine
    context = min(options.context, engine.status.context)
    reserve = min(options.max_tokens, context // 4)
    persona = Persona.load(settings.conversation.persona)
    prompt = build(engine.encode, persona, [], question, context - reserve)
    sampling = Sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        max_tokens=options.max_tokens,
    )
    fan = Fan(Platform.CONSOLE, "ask").key
    return Request("ask", fan, "ask", prompt.tokens, sampling=sampling)
