"""Runs a job in a child process: watches it, holds it while fans chat, never leaves it behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import structlog

from training.job import Ended, Event, parse_event

log = structlog.get_logger(__name__)

LOOK = 0.02  # seconds between two looks at whether fans chat
QUIET = 0.5  # seconds of silence after which the child goes on
LAST_WORDS = 10.0  # seconds that a child gets to end when it is asked to
LONGEST_LINE = 2**20
LONGEST_WORDS = 4000  # characters of a log that are worth keeping
PID, LOG = "pid.txt", "log.txt"
WORK = (sys.executable, "-m", "farense_bot", "work")


async def run_job(
    folder: Path,
    on_event: Callable[[Event], None],
    hold: Callable[[], bool],
    command: Sequence[str] = WORK,
) -> Ended:
    """Do the job in a folder; cancelling ends the child, whose checkpoints stay.

    `hold` is asked all the time: while it says so the child stands still.
    """
    end_stale(folder)
    with (folder / LOG).open("ab") as errors:
        child = await asyncio.create_subprocess_exec(
            *(*command, str(folder)),
            stdin=asyncio.subprocess.PIPE,  # its end tells the child that we are gone
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            limit=LONGEST_LINE,
            process_group=0,  # a group whose parent dies while it stands still is sent SIGHUP
        )
    _note(folder, child.pid)
    holding = asyncio.create_task(_hold(child, hold))
    ended = Ended(ok=False, reason="fault")
    try:
        assert child.stdout is not None, "it is a pipe"
        async for line in child.stdout:
            try:
                event = parse_event(line)
            except ValueError:
                log.warning("child said something else", line=line[:200])
                continue
            if isinstance(event, Ended):
                ended = event
            else:
                on_event(event)
        code = await child.wait()
    finally:
        holding.cancel()
        await _end(child)
    if ended.ok and code != 0:
        return Ended(ok=False, reason="fault", detail=f"exit code {code}")
    if ended.reason == "fault" and not ended.detail and code == -signal.SIGKILL:
        return Ended(ok=False, reason="memory", detail="killed by the system")
    return ended


def last_words(folder: Path) -> str:
    """The end of what the child wrote to its log, for ours: its folder does not stay."""
    try:
        return (folder / LOG).read_text("utf-8", "replace")[-LONGEST_WORDS:]
    except OSError:
        return ""


async def _hold(child: asyncio.subprocess.Process, hold: Callable[[], bool]) -> None:
    """Stop the child while `hold` says so, and let it go on after a moment of quiet."""
    loop = asyncio.get_running_loop()
    held, quiet_since = False, loop.time()
    while child.returncode is None:
        if hold():
            quiet_since = loop.time()
            if not held:
                _signal(child, signal.SIGSTOP)
                held = True
        elif held and loop.time() - quiet_since > QUIET:
            _signal(child, signal.SIGCONT)
            held = False
        await asyncio.sleep(LOOK)


async def _end(child: asyncio.subprocess.Process) -> None:
    """Ask the child to end, then make it; waits for it in either case."""
    if child.returncode is None:
        _signal(child, signal.SIGCONT)
        _signal(child, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await child.wait()
    if child.returncode is None:
        _signal(child, signal.SIGKILL)
        await child.wait()


def _signal(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(number)


def _note(folder: Path, pid: int) -> None:
    with contextlib.suppress(psutil.Error):
        born = psutil.Process(pid).create_time()
        (folder / PID).write_text(f"{pid} {born!r}")


def end_stale(folder: Path) -> None:
    """End the child of an earlier run that is still there, be it held or at work."""
    try:
        pid, born = (folder / PID).read_text().split()
        process = psutil.Process(int(pid))
        if process.create_time() == float(born) and process.pid != os.getpid():
            process.kill()
            process.wait(LAST_WORDS)
    except (OSError, ValueError, psutil.Error):
        return
