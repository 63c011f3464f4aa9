"""Commands about the model and the machine: model, plan, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from farense_bot.session import Home, Model, Profile, session, stderr

models = typer.Typer(no_args_is_help=True, help="The model: install it, round it.")
To = Annotated[Path | None, typer.Option("--to", help="Where to write; else beside the models.")]


def add_to(app: typer.Typer) -> None:
    """Make these commands part of the command line."""
    app.add_typer(models, name="model")
    app.command()(plan)
    app.command()(compare)


@models.command("install")
def install(
    name: Annotated[str | None, typer.Argument(help="Model id, folder or `embedded`.")] = None,
    home: Home = None,
) -> None:
    """Download or convert the model, so that the next start is quick."""
    with session(home, name, log="error") as settings:
        from farense_bot.app import ensure_model

        typer.echo(ensure_model(settings, stderr.print)[1])


@models.command("quantize")
def quantize(
    name: Annotated[str | None, typer.Argument(help="A 16-bit model: id or folder.")] = None,
    *,
    to: To = None,
    bits: Annotated[int, typer.Option(help="Bits of a weight: 2, 3, 4, 5, 6 or 8.")] = 4,
    group_size: Annotated[int, typer.Option(help="Weights that share a scale.")] = 64,
    mixed: Annotated[
        str | None, typer.Option(help="More bits where it matters: mixed_4_6 and the like.")
    ] = None,
    home: Home = None,
) -> None:
    """Make an int4 base of a 16-bit model; says what it saves and what it costs."""
    with session(home, name, log="error") as settings:
        from engine.quantize import Scheme
        from farense_bot.quantising import quantise_now

        out = Console(highlight=False)
        quantise_now(settings, to, Scheme(bits, group_size, mixed), stderr, out)


@models.command("dequantize")
def dequantize(
    name: Annotated[str | None, typer.Argument(help="An int4 model: id, folder, embedded.")] = None,
    to: To = None,
    home: Home = None,
) -> None:
    """Write an int4 model's numbers in 16 bits, where its original cannot be had."""
    with session(home, name, log="error") as settings:
        from farense_bot.quantising import dequantise_now

        dequantise_now(settings, to, stderr, Console(highlight=False, soft_wrap=True))


def plan(model: Model = None, profile: Profile = None, home: Home = None) -> None:
    """Say what the model takes on this machine: what fits, what pauses, what to lower."""
    with session(home, model, log="error") as settings:
        from farense_bot.planning import print_plan

        raise typer.Exit(print_plan(settings, profile, Console(highlight=False)))


def compare(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="In minutes, on a part of the data.")
    ] = False,
    derive: Annotated[
        str | None, typer.Option("--plan", help="Measure nothing: derive it for this model.")
    ] = None,
    profile: Profile = None,
    original: Annotated[
        bool, typer.Option("--original", help="With the settings of the original document.")
    ] = False,
    dequantise: Annotated[
        bool, typer.Option("--dequantise", help="Make the 16-bit base from int4 if need be.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with train.jsonl and held_out.jsonl.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=16, help="Texts to train on, at most.")
    ] = None,
    repetitions: Annotated[
        int | None, typer.Option("--repetitions", min=1, help="How often each is measured.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the report.")] = None,
    model: Model = None,
    home: Home = None,
) -> None:
    """Measure LoRA and QLoRA side by side on this machine, and say which to use."""
    with session(home, model, log="error", profile=profile) as settings:
        if derive is not None:
            from farense_bot.planning import print_derived

            language = settings.conversation.language
            print_derived(derive, settings.profile, language, Console(highlight=False))
            return
        from farense_bot.comparing import compare_now

        code = compare_now(
            settings,
            quick=quick,
            dequantise=dequantise,
            original=original,
            data=data,
            out=out,
            repetitions=repetitions,
            console=stderr,
            rows=rows,
        )
        raise typer.Exit(code)
