"""Commands about what is learnt: train, evaluate, revisions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from farense_bot.session import Home, Model, session, stderr
from training.exchange.exporting import Format

revisions = typer.Typer(no_args_is_help=True, help="What was learnt: look at it, choose it.")


def add_to(app: typer.Typer) -> None:
    """Make these commands part of the command line."""
    app.command()(train)
    app.command()(evaluate)
    app.command(hidden=True)(work)
    app.add_typer(revisions, name="revisions")


def train(model: Model = None, home: Home = None) -> None:
    """Train now, by hand, with a bar that shows how far it is."""
    with session(home, model, log="error") as settings:
        from farense_bot.learning import train_now

        raise typer.Exit(train_now(settings, stderr))


def evaluate(
    suite: Annotated[str | None, typer.Option("--suite", help="Only this suite.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="This one beside the base; else the current.")
    ] = None,
    model: Model = None,
    home: Home = None,
) -> None:
    """Put a revision and the base to the gate's test, and print how they did."""
    with session(home, model, log="error") as settings:
        from farense_bot.learning import evaluate_now

        raise typer.Exit(evaluate_now(settings, revision, suite, stderr, Console()))


def work(folder: Path) -> None:
    """Do the job in a folder: what the bot starts to train or evaluate."""
    from training.work import do

    raise typer.Exit(do(folder))


@revisions.command("list")
def revisions_list(home: Home = None) -> None:
    """The revisions that are there, the newest first."""
    with session(home, None, log="error") as settings:
        from farense_bot.learning import list_revisions

        list_revisions(settings, Console(highlight=False))


@revisions.command("show")
def revisions_show(name: str, home: Home = None) -> None:
    """The report of one revision."""
    with session(home, None, log="error") as settings:
        from farense_bot.learning import show_revision

        show_revision(settings, name, Console())


@revisions.command("use")
def revisions_use(name: str, home: Home = None) -> None:
    """Put a revision into service, `base` for none; a running bot follows within seconds."""
    with session(home, None, log="error") as settings:
        from farense_bot.learning import use_revision

        use_revision(settings, name, Console(highlight=False))


@revisions.command("rollback")
def revisions_rollback(home: Home = None) -> None:
    """Put the revision before this one into service."""
    with session(home, None, log="error") as settings:
        from farense_bot.learning import roll_back

        roll_back(settings, Console(highlight=False))


@revisions.command("verify")
def revisions_verify(
    name: Annotated[str | None, typer.Argument(help="One revision; else all.")] = None,
    home: Home = None,
) -> None:
    """Look at names, shapes, values and checksums."""
    with session(home, None, log="error") as settings:
        from farense_bot.learning import verify_revisions

        raise typer.Exit(verify_revisions(settings, name, Console(highlight=False)))


@revisions.command("export")
def revisions_export(
    name: str,
    *,
    form: Annotated[Format, typer.Option("--format", help="For which program.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write; else <id>-<format> here.")
    ] = None,
    model: Model = None,
    home: Home = None,
) -> None:
    """Write a revision for another program."""
    with session(home, model, log="error") as settings:
        from farense_bot.interchange import export_revision

        printed = Console(highlight=False, soft_wrap=True)
        export_revision(settings, name, form, out, console=stderr, out=printed)


@revisions.command("import")
def revisions_import(folder: Path, model: Model = None, home: Home = None) -> None:
    """Make a PEFT adapter a revision of the model in the settings."""
    with session(home, model, log="error") as settings:
        from farense_bot.interchange import import_revision

        import_revision(settings, folder, stderr, Console(highlight=False, soft_wrap=True))
