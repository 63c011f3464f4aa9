"""The command line: run, chat, ask, doctor, model, train, evaluate, revisions."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console

from bot.errors import ConfigError, EngineDead, FarenseError
from config.settings import SecretInToml, Settings, UnknownSetting, load_settings
from config.texts import catalogue, text
from farense_bot.logs import configure

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
models = typer.Typer(no_args_is_help=True, help="The model: install it.")
app.add_typer(models, name="model")
revisions = typer.Typer(no_args_is_help=True, help="What was learnt: look at it, choose it.")
app.add_typer(revisions, name="revisions")

Model = Annotated[
    str | None, typer.Option("--model", help="MLX model id or folder, or `embedded`.")
]
Home = Annotated[Path | None, typer.Option("--home", help="State folder (FARENSE_HOME).")]

stderr = Console(stderr=True, highlight=False, soft_wrap=True)

# A process that lived for less than this is not started again by itself: it would never end.
RESTART_AFTER = 60.0


@app.command()
def run(model: Model = None, home: Home = None) -> None:
    """Start the bot on every platform that is configured."""
    started = time.monotonic()
    try:
        with _session(home, model, log=None) as settings:
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

    with _session(home, model, log="error") as settings:
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
    with _session(home, model, log="error") as settings:
        from farense_bot.app import build_engine

        engine = build_engine(settings, stderr.print)
        code = asyncio.run(ask_once(engine, settings, question or ""))
    raise typer.Exit(code)


@app.command()
def doctor(model: Model = None, home: Home = None) -> None:
    """Look at this machine and the settings, and say what to do about each problem."""
    with _session(home, model, log="error") as settings:
        from farense_bot.doctor import examine

        raise typer.Exit(examine(settings, Console(highlight=False, soft_wrap=True)))


@models.command("install")
def install(
    name: Annotated[str | None, typer.Argument(help="Model id, folder or `embedded`.")] = None,
    home: Home = None,
) -> None:
    """Download or convert the model, so that the next start is quick."""
    with _session(home, name, log="error") as settings:
        from farense_bot.app import ensure_model

        typer.echo(ensure_model(settings, stderr.print)[1])


@app.command()
def train(model: Model = None, home: Home = None) -> None:
    """Train now, by hand, with a bar that shows how far it is."""
    with _session(home, model, log="error") as settings:
        from farense_bot.learning import train_now

        raise typer.Exit(train_now(settings, stderr))


@app.command()
def evaluate(
    suite: Annotated[str | None, typer.Option("--suite", help="Only this suite.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="This one beside the base; else the current.")
    ] = None,
    model: Model = None,
    home: Home = None,
) -> None:
    """Put a revision and the base to the gate's test, and print how they did."""
    with _session(home, model, log="error") as settings:
        from farense_bot.learning import evaluate_now

        raise typer.Exit(evaluate_now(settings, revision, suite, stderr, Console()))


@app.command(hidden=True)
def work(folder: Path) -> None:
    """Do the job in a folder: what the bot starts to train or evaluate."""
    from training.work import do

    raise typer.Exit(do(folder))


@revisions.command("list")
def revisions_list(home: Home = None) -> None:
    """The revisions that are there, the newest first."""
    with _session(home, None, log="error") as settings:
        from farense_bot.learning import list_revisions

        list_revisions(settings, Console(highlight=False))


@revisions.command("show")
def revisions_show(name: str, home: Home = None) -> None:
    """The report of one revision."""
    with _session(home, None, log="error") as settings:
        from farense_bot.learning import show_revision

        show_revision(settings, name, Console())


@revisions.command("use")
def revisions_use(name: str, home: Home = None) -> None:
    """Put a revision into service, `base` for none; a running bot follows within seconds."""
    with _session(home, None, log="error") as settings:
        from farense_bot.learning import use_revision

        use_revision(settings, name, Console(highlight=False))


@revisions.command("rollback")
def revisions_rollback(home: Home = None) -> None:
    """Put the revision before this one into service."""
    with _session(home, None, log="error") as settings:
        from farense_bot.learning import roll_back

        roll_back(settings, Console(highlight=False))


@revisions.command("verify")
def revisions_verify(
    name: Annotated[str | None, typer.Argument(help="One revision; else all.")] = None,
    home: Home = None,
) -> None:
    """Look at names, shapes, values and checksums."""
    with _session(home, None, log="error") as settings:
        from farense_bot.learning import verify_revisions

        raise typer.Exit(verify_revisions(settings, name, Console(highlight=False)))


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Farense Bot: one local model for the fans of Sporting Clube Farense."""
    if version:
        typer.echo(metadata.version("farense-bot"))
        raise typer.Exit


@contextmanager
def _session(home: Path | None, model: str | None, log: str | None) -> Iterator[Settings]:
    """Settings and logging for a command; our errors become one sentence on stderr."""
    given: dict[str, Any] = {"engine": {"model": model}} if model else {}
    if log:
        given["log"] = log
    settings: Settings | None = None
    try:
        settings = _read_settings(home, given)
        configure(settings)
        yield settings
    except EngineDead as error:
        _complain(error, settings)
        raise
    except FarenseError as error:
        _complain(error, settings)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _complain(error: FarenseError, settings: Settings | None) -> None:
    language = settings.conversation.language if settings else "pt"
    stderr.print(f"✗ {text(error.key, language, **error.values)}", style="bold red", markup=False)


def _read_settings(home: Path | None, given: dict[str, Any]) -> Settings:
    try:
        return load_settings(home, **given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = f"setting.{first['type']}"
        reason = text(known, "pt", **first.get("ctx", {})) if known in catalogue() else first["msg"]
        raise ConfigError("error.setting", where=where, reason=reason) from None
    except SettingsError as error:
        raise ConfigError("error.not_json", reason=error) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("error.file_unreadable", reason=error) from None
    except (OSError, RuntimeError) as error:
        raise ConfigError("error.config_unreachable", reason=error) from None
    except SecretInToml as error:
        raise ConfigError("error.secret_in_toml", where=error) from None
    except UnknownSetting as error:
        raise ConfigError("error.unknown_setting", where=error) from None
