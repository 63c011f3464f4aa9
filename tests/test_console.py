"""The terminal: what is shown, what pipes get, and how an answer is stopped."""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import pty
import queue
import signal
import sys
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.console import Console

from adapters.console import BROKEN_PIPE, ConsoleAdapter, ask
from bot.domain import (
    Asked,
    Chat,
    Choice,
    Destination,
    Fan,
    Outcome,
    Platform,
    Post,
    Source,
    Tap,
    Wanted,
)
from bot.errors import EngineError, GenerationFailed, PromptTooLong, Refusal
from bot.health import State
from bot.service import ChatService
from bot.store import Store
from config.settings import Settings
from config.texts import text
from engine.echo import EchoEngine


class Paper(io.StringIO):
    """What was written; tells when there is more."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = asyncio.Event()

    def write(self, words: str, /) -> int:
        self.changed.set()
        return super().write(words)


class Terminal:
    """Lines typed by the test, and what was written."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        self.typed: queue.Queue[str | None] = queue.Queue()
        self.prompts: list[str] = []
        self.file = Paper()
        self.console = Console(
            file=self.file, force_terminal=is_terminal, width=60, height=20, highlight=False
        )

    def read(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = self.typed.get(timeout=20)
        if line is None:
            raise EOFError
        return line

    def type(self, *lines: str | None) -> None:
        for line in lines:
            self.typed.put(line)

    @property
    def text(self) -> str:
        return self.file.getvalue()

    async def shows(self, words: str) -> None:
        async with asyncio.timeout(20):
            while words not in self.text:
                self.file.changed.clear()
                await self.file.changed.wait()


@asynccontextmanager
async def chatting(
    home: Path, terminal: Terminal, engine: EchoEngine | None = None
) -> AsyncIterator[tuple[ConsoleAdapter, ChatService]]:
    settings = Settings(home=home)
    async with Store.open(settings.database) as store, engine or EchoEngine() as running:
        service = ChatService(running, store, settings)
        adapter = ConsoleAdapter(service, settings, terminal.read, terminal.console)
        service.attach(adapter.transport)
        async with service:
            yield adapter, service


def steps_until(stop: asyncio.Event, after: int) -> Callable[[], object]:
    """Some steps at once, the others when `stop` is set."""
    left = iter(range(after))

    async def step() -> None:
        if next(left, None) is None:
            await stop.wait()
        await asyncio.sleep(0)

    return step


async def test_a_conversation_in_a_pipe_is_plain_text(tmp_path):
    terminal = Terminal()
    terminal.type("Viva o **Farense**!", "", "   ", "/nada", "/novo", None)
    async with chatting(tmp_path, terminal) as (adapter, service):
        await adapter.run()
        assert adapter.health.state is State.DOWN
        exchanges = await service.transcript(
            Chat(Platform.CONSOLE, "local"), Fan(Platform.CONSOLE, "local")
        )
    assert terminal.text == f"Viva o **Farense**!\n/nada\n{text('reply.new')}\n"
    assert set(terminal.prompts) == {""}
    assert exchanges == []


async def test_an_answer_is_printed_as_it_grows(tmp_path):
    terminal, rest = Terminal(), asyncio.Event()
    terminal.type("Viva o Farense, leões!", None)
    async with chatting(tmp_path, terminal, EchoEngine(step=steps_until(rest, 3))) as (adapter, _):
        running = asyncio.create_task(adapter.run())
        await terminal.shows("Viva o Fa")
        assert terminal.text == "Viva o Fa"
        rest.set()
        await running
    assert terminal.text == "Viva o Farense, leões!\n"


async def test_a_terminal_gets_the_final_rendered(tmp_path):
    terminal = Terminal(is_terminal=True)
    terminal.type("# Golos\n\n- **um**\n- dois", None)
    async with chatting(tmp_path, terminal) as (adapter, _):
        await adapter.run()
    assert text("console.hello")[:20] in terminal.text
    assert "\x1b[1mum" in terminal.text
    assert "**um**" not in terminal.text.split("Golos")[-1]
    assert terminal.prompts[0] == "> "


async def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(tmp_path):
    terminal, rest = Terminal(), asyncio.Event()
    terminal.type("Viva o Farense, leões!")
    async with chatting(tmp_path, terminal, EchoEngine(step=steps_until(rest, 3))) as (adapter, _):
        running = asyncio.create_task(adapter.run())
        await terminal.shows("Viva o Fa")
        os.kill(os.getpid(), signal.SIGINT)
        await terminal.shows("Viva o Fa\n")
        rest.set()
        terminal.type("Ainda?", None)
        await running
    assert terminal.text == "Viva o Fa\nAinda?\n"


async def test_ctrl_c_at_the_prompt_says_how_to_leave(tmp_path):
    terminal = Terminal(is_terminal=True)
    async with chatting(tmp_path, terminal) as (adapter, _):
        running = asyncio.create_task(adapter.run())
        await terminal.shows("Ctrl-D")
        os.kill(os.getpid(), signal.SIGINT)
        await terminal.shows(text("console.leave"))
        terminal.type(None)
        await running


async def test_ctrl_c_before_the_first_word_gives_up_the_question(tmp_path):
    terminal, begun, rest = Terminal(), asyncio.Event(), asyncio.Event()
    terminal.type("Viva!")

    async def step() -> None:
        begun.set()
        await rest.wait()

    async with chatting(tmp_path, terminal, EchoEngine(step=step)) as (adapter, _):
        running = asyncio.create_task(adapter.run())
        await begun.wait()
        os.kill(os.getpid(), signal.SIGINT)
        await terminal.shows(text("answer.stopped"))
        rest.set()
        terminal.type(None)
        await running
    assert "Viva" not in terminal.text


async def test_a_correction_is_asked_for_and_the_next_line_is_it(tmp_path):
    terminal = Terminal()
    terminal.type("Quem és?", "/corrigir", "Sou um leão.", "/corrigir Um leão!", None)
    async with chatting(tmp_path, terminal) as (adapter, _):
        await adapter.run()
    assert terminal.text.count(text("toast.corrected")) == 2
    assert text("reply.ask_correction") in terminal.text
    assert "\nSou um leão.\n" not in terminal.text  # it was no question


CARD = Post("Em 1910?", choices=(Choice("Aprovar", "ok:7"), Choice("Editar", "?ed:7")))
HERE = Destination(Chat(Platform.CONSOLE, "local"))


@pytest.mark.parametrize("is_terminal", [False, True])
async def test_a_number_right_after_a_card_chooses(tmp_path, monkeypatch, *, is_terminal):
    terminal, taps = Terminal(is_terminal=is_terminal), []
    outcomes = [
        Outcome("Tens a certeza?", Post("Mesmo?", choices=(Choice("Sim", "sure:7"),))),
        Outcome("", Post("Aprovado.")),
    ]

    async def tap(given: Tap) -> Outcome:
        taps.append(given)
        return outcomes[len(taps) - 1]

    async with chatting(tmp_path, terminal) as (adapter, service):
        monkeypatch.setattr(service, "tap", tap, raising=False)
        card = await adapter.send(HERE, CARD)
        terminal.type(" 1 ", "1", "1", None)  # the last one is a question: the card is done
        await adapter.run()
    assert [(each.data, each.message_id, each.source) for each in taps] == [
        ("ok:7", card, Source.CONSOLE), ("sure:7", card, Source.CONSOLE),
    ]  # fmt: skip
    said = [line.strip() for line in terminal.text.splitlines() if line.strip()]
    if not is_terminal:
        assert said == [
            "Em 1910?", "[1] Aprovar  [2] Editar", "Tens a certeza?", "Mesmo?", "[1] Sim",
            "Aprovado.", "1",
        ]  # fmt: skip
    else:
        assert "[1] Aprovar  [2] Editar" in said


@pytest.mark.parametrize("line", ["0", "3", "-1", "1.", "² ", "sim"])
async def test_anything_but_a_number_of_the_card_is_a_question(tmp_path, monkeypatch, line):
    terminal, taps = Terminal(), []
    async with chatting(tmp_path, terminal) as (adapter, service):
        monkeypatch.setattr(service, "tap", taps.append, raising=False)
        await adapter.send(HERE, CARD)
        terminal.type(line, "1", None)  # and afterwards the card no longer waits
        await adapter.run()
    assert terminal.text.splitlines()[-2:] == [line.strip(), "1"]
    assert taps == []


async def test_a_choice_that_asks_for_a_text_takes_the_next_line(tmp_path, monkeypatch):
    terminal, heard = Terminal(), []
    async with chatting(tmp_path, terminal) as (adapter, service):

        async def tap(given: Tap) -> Outcome:
            await adapter.send(HERE, Post("Como deve ficar?", ask=Asked(Wanted.LESSON)))
            return Outcome("")

        async def receive(message) -> None:
            heard.append((message.text, message.reply_to is not None))
            adapter._show(Post("Obrigado."))

        monkeypatch.setattr(service, "tap", tap, raising=False)
        monkeypatch.setattr(service, "receive", receive)
        await adapter.send(HERE, CARD)
        terminal.type("2", "Em 1910, em Faro.", "E agora?", None)
        await adapter.run()
    assert heard == [("Em 1910, em Faro.", True), ("E agora?", False)]


async def test_an_answer_cannot_steer_the_terminal(tmp_path):
    async with chatting(tmp_path, Terminal(), EchoEngine()) as (adapter, _):
        adapter._show(Post("\x1b]0;owned\x07\x1b[2Jolá\r", choices=(Choice("\x1b[2Jsim", "x"),)))
    assert adapter._console.file.getvalue() == "]0;owned[2Jolá\n\n[1] [2Jsim\n"


# --- one answer on standard output -----------------------------------------------------------


async def test_ask_writes_the_answer_and_nothing_else(tmp_path, capsys):
    assert await ask(EchoEngine(), Settings(home=tmp_path), "  Viva o Farense!\n") == 0
    assert capsys.readouterr() == ("Viva o Farense!\n", "")
    assert list(tmp_path.iterdir()) == []  # it leaves nothing behind


@pytest.mark.parametrize("question", ["", " \n", "\u200b", "\0"])
async def test_ask_without_a_question_is_refused(tmp_path, capsys, question):
    with pytest.raises(Refusal):
        await ask(EchoEngine(), Settings(home=tmp_path), question)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "question"), [(GenerationFailed, "falha"), (PromptTooLong, "g" * 50_000)]
)
async def test_ask_passes_errors_on_and_keeps_stdout_clean(tmp_path, capsys, error, question):
    def fault(_request: object, _step: int) -> EngineError | None:
        return GenerationFailed()

    with pytest.raises(error):
        await ask(EchoEngine(fault=fault), Settings(home=tmp_path), question)
    assert capsys.readouterr().out == ""


async def test_ask_says_on_stderr_that_an_answer_was_cut(tmp_path, capsys):
    settings = Settings(home=tmp_path, engine={"max_tokens": 2})
    assert await ask(EchoEngine(settings.engine), settings, "Viva o Farense!") == 0
    out, err = capsys.readouterr()
    assert out == "Viva o\n"
    assert text("answer.long") in " ".join(err.split())


async def test_ask_into_a_pipe_that_was_closed_ends_quietly(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert await ask(EchoEngine(), Settings(home=tmp_path), "Viva!") == BROKEN_PIPE
        monkeypatch.undo()


# --- a real terminal -------------------------------------------------------------------------

TALK = """
import asyncio, sys
from pathlib import Path
from adapters.console import ConsoleAdapter
from bot.service import ChatService
from bot.store import Store
from config.settings import Settings
from engine.echo import EchoEngine

async def main():
    settings = Settings(home=Path(sys.argv[1]))
    engine = EchoEngine(step=lambda: asyncio.sleep(0.01))
    async with Store.open(settings.database) as store, engine:
        service = ChatService(engine, store, settings)
        adapter = ConsoleAdapter(service, settings)
        service.attach(adapter)
        async with service:
            await adapter.run()

asyncio.run(main())
"""


@pytest.fixture
def terminal_pair() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


async def test_a_chat_in_a_real_terminal(tmp_path, terminal_pair):
    ours, theirs = terminal_pair
    root = Path(__file__).parent.parent
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TALK, tmp_path),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=root,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),  # Ctrl-C reaches it
    )
    seen, more = bytearray(), asyncio.Event()

    def receive() -> None:
        seen.extend(os.read(ours, 65536))
        more.set()

    async def shows(words: str) -> None:
        async with asyncio.timeout(30):
            while words.encode() not in seen:
                more.clear()
                await more.wait()
        del seen[: seen.index(words.encode()) + len(words.encode())]

    asyncio.get_running_loop().add_reader(ours, receive)
    try:
        await shows("> ")
        os.write(ours, b"Viva **Faro**\n")
        await shows("\x1b[1mFaro")
        await shows("> ")
        os.write(ours, b"golo " * 200 + b"fim\n")
        await shows("fim\r\n")  # what was typed
        await shows("golo golo golo")  # what is being answered
        os.write(ours, b"\x03")
        await shows("> ")
        os.write(ours, b"\x04")
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert b"Traceback" not in seen
