"""`farense-bot doctor`: what was found on this machine, and one line of advice for each problem."""

from __future__ import annotations

import asyncio
import platform
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from bot.errors import FarenseError
from bot.store import Store
from config.settings import Settings
from config.texts import text
from engine import models
from engine.plan import Backend, ComputePlan, detect, prepare

GIB = 2**30
DISK_NEEDED = 2 * GIB

Finding = tuple[str, str, str | None]  # what, how it is, what to do about it


def examine(settings: Settings, console: Console) -> int:
    """Print all findings; the exit code is 1 when there is something to do."""

    def say(key: str, **values: object) -> str:
        return text(key, settings.conversation.language, **values)

    findings = list(_findings(settings, say))
    table = Table.grid(padding=(0, 2))
    for what, how, advice in findings:
        table.add_row("[red]✗[/]" if advice else "[green]✓[/]", what, how)
    console.print(table)
    problems = [advice for _, _, advice in findings if advice]
    console.print()
    for advice in problems:
        console.print(f"→ {advice}", markup=False)
    if not problems:
        console.print(say("doctor.fine"))
    return 1 if problems else 0


def _findings(settings: Settings, say: Callable[..., str]) -> Iterator[Finding]:
    yield say("doctor.platform"), f"{platform.platform()}, Python {platform.python_version()}", None
    plan = prepare(detect())
    yield say("doctor.plan"), plan.description, say("doctor.fix_blas") if _is_slow(plan) else None
    memory = psutil.virtual_memory()
    free, total = (value / GIB for value in (memory.available, memory.total))
    yield say("doctor.memory"), say("doctor.memory_is", free=free, total=total), None
    yield _model(settings, say, plan)
    yield _home(settings, say)
    yield _database(settings, say)
    yield _web(settings, say)
    for name, token in (("Telegram", settings.telegram.token), ("Discord", settings.discord.token)):
        yield name, say("doctor.token_present" if token else "doctor.token_absent"), None
    yield say("doctor.admins"), ", ".join(settings.admins) or say("doctor.admins_none"), None
    for file in (Path(".env"), settings.home / ".env"):
        if file.is_file() and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield str(file), stat.filemode(file.stat().st_mode), say("doctor.fix_mode", path=file)


def _is_slow(plan: ComputePlan) -> bool:
    return plan.backend is Backend.CPU and not plan.dequantise


def _model(settings: Settings, say: Callable[..., str], plan: ComputePlan) -> Finding:
    try:
        source = models.resolve(settings.engine.model, settings.models)
        if source.folder is None:
            absent = say("doctor.model_absent", name=source.name)
            return say("doctor.model"), absent, say("doctor.fix_model")
        models.inspect(source.folder, plan)
    except FarenseError as error:
        return say("doctor.model"), str(settings.engine.model), say(error.key, **error.values)
    return (
        say("doctor.model"),
        say("doctor.model_here", name=source.name, path=source.folder),
        None,
    )


def _home(settings: Settings, say: Callable[..., str]) -> Finding:
    existing = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    advice = say("doctor.fix_disk", free=free / GIB) if free < DISK_NEEDED else None
    return say("doctor.home"), str(settings.home), advice


def _database(settings: Settings, say: Callable[..., str]) -> Finding:
    path = settings.database
    if not path.exists():
        return say("doctor.database"), say("doctor.database_absent", path=path), None

    async def counts() -> dict[str, int]:
        async with Store.open(path) as store:
            return await store.counts()

    try:
        numbers = asyncio.run(counts())
    except FarenseError as error:
        return say("doctor.database"), str(path), say(error.key, **error.values)
    return say("doctor.database"), say("doctor.database_is", path=path, **numbers), None


def _web(settings: Settings, say: Callable[..., str]) -> Finding:
    web = settings.web
    if not web.enabled:
        return "Web", say("doctor.web_off"), None
    where = say("doctor.web_is", host=web.host, port=web.port)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((web.host, web.port))
        except OSError:
            return "Web", where, say("doctor.fix_port", port=web.port)
    return "Web", where, None
