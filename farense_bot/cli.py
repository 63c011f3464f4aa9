"""The command line: run, chat, ask, doctor; more in `commands_model` and `commands_learn`."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from importlib import metadata
from typing import Annotated

import typer
from rich.console import Console

from bot.errors import EngineDead
from farense_bot import commands_learn, commands_model
from farense_bot.session import Home, Model, session, stderr

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
commands_model.add_to(app)
commands_learn.add_to(app)

# A process that lived for less than this is not started again by itself: it would never end.
RESTART_AFTER = 60.0


@app.command()
def run(model: Model = None, home: Home = None) -> None:
    """Start the bot on every platform that is configured."""
    started = time.monotonic()
    try:
        with session(home, model, log=None) as settings:
            from farense_bot.app import build_engine, check_platforms, serve, state_folder

            check_platforms(settings)
            with state_folder(settings):
                engine = build_engine(settings, stderr.print)
                asyncio.run(serve(settings, engine, stderr.print))
    except EngineDead:
        if time.monotonic() - started < RESTART_AFTER:
            raise typer.Exit(70) from None
        os.execv(sys.executable, [sys.executable, "-m", "farense_bot", *sys.argv[1:]])  # noqa: S606 (no shell is wanted)


@app.command()
def chat(model: Model = None, home: Home = None) -> None:
    """Talk to the bot in this terminal."""
    from adapters.console import ConsoleAdapter

    with session(home, model, log="error") as settings:
        from farense_bot.app import build_engine, chat_service, state_folder
        from farense_bot.supervisor import Supervisor

        async def talk() -> None:
            engine = build_engine(settings, stderr.print)
            async with chat_service(
                settings, engine, lambda service: [ConsoleAdapter(service, settings)]
            ) as (_, adapters):
                await Supervisor(engine, settings.conversation.language).run(adapters)

        with state_folder(settings):
            asyncio.run(talk())


@app.command()
def ask(
    question: Annotated[str | None, typer.Argument(help="The question; `-` reads it.")] = None,
    model: Model = None,
    home: Home = None,
) -> None:
    """Answer one question on standard output."""
    from adapters.console import ask as ask_once

    if question in {None, "-"}:
        question = sys.stdin.read()
    with session(home, model, log="error") as settings:
        from farense_bot.app import build_engine

        engine = build_engine(settings, stderr.print)
        code = asyncio.run(ask_once(engine, settings, question or ""))
    raise typer.Exit(code)


@app.command()
def doctor(model: Model = None, home: Home = None) -> None:
    """Look at this machine and the settings, and say what to do about each problem."""
    with session(home, model, log="error") as settings:
        from farense_bot.doctor import examine

        raise typer.Exit(examine(settings, Console(highlight=False, soft_wrap=True)))


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Farense Bot: one local model for the fans of Sporting Clube Farense."""
    if version:
        typer.echo(metadata.version("farense-bot"))
        raise typer.Exit
