"""A job in a child process: its events, its end, and that it stands still while fans chat."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from training.job import Progress
from training.process import PID, end_stale, last_words, run_job

ROOT = Path(__file__).parents[1]
CHILD = """
import json, os, sys, time
from pathlib import Path

folder = Path(sys.argv[1])

def say(**event):
    print(json.dumps(event), flush=True)

def step(number):
    say(event="progress", stage="sft", step=number, steps=3)
"""


def child(tmp_path, body):
    script = tmp_path / "child.py"
    script.write_text(CHILD + body)
    return (sys.executable, str(script))


async def run(tmp_path, body, *, hold=lambda: False, on_event=None):
    folder = tmp_path / "job"
    folder.mkdir(exist_ok=True)
    seen = []
    ended = await run_job(folder, on_event or seen.append, hold, child(tmp_path, body))
    return ended, seen


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_events_come_one_by_one_and_the_end_last(tmp_path):
    ended, seen = await run(
        tmp_path, 'step(1)\nprint("noise")\nstep(2)\nsay(event="ended", ok=True)'
    )
    assert ended.ok
    assert seen == [Progress(stage="sft", step=n, steps=3) for n in (1, 2)]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('say(event="ended", ok=False, reason="nan", detail="step 3"); sys.exit(1)', "nan"),
        ("step(1)", "fault"),  # it says nothing at its end
        ('say(event="ended", ok=True); sys.exit(3)', "fault"),
        ("raise RuntimeError('x')", "fault"),
        ("os.kill(os.getpid(), 9)", "memory"),  # as the system does when there is none left
    ],
)
async def test_a_child_that_fails_gives_a_reason(tmp_path, body, reason):
    ended, _ = await run(tmp_path, body)
    assert not ended.ok
    assert ended.reason == reason


async def test_a_child_that_watches_its_parent_ends_well(tmp_path):
    body = f"sys.path.insert(0, {str(ROOT)!r})\n"
    body += "from training.work import watch_parent\nwatch_parent()\ntime.sleep(0.1)\n"
    ended, _ = await run(tmp_path, body + 'say(event="ended", ok=True)')
    assert (ended.ok, ended.detail) == (True, "")


async def test_what_it_complains_about_is_kept(tmp_path):
    await run(tmp_path, "print('ai', file=sys.stderr)")
    assert last_words(tmp_path / "job") == "ai\n"
    assert last_words(tmp_path) == ""


async def test_a_child_stands_still_while_fans_chat(tmp_path):
    chatting, steps, moved = True, [], asyncio.Event()

    def note(event):
        steps.append(event.step)
        moved.set()

    body = "n = 0\nwhile not (folder / 'stop').exists():\n    n += 1\n    step(n)\n"
    body += "    time.sleep(0.001)\nsay(event='ended', ok=True)"
    job = asyncio.create_task(run(tmp_path, body, hold=lambda: chatting, on_event=note))
    pid = None
    while pid is None or psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        await asyncio.sleep(0.01)
        path = tmp_path / "job" / PID
        pid = int(path.read_text().split()[0]) if path.exists() else None
    while moved.is_set():  # what was in the pipe already
        moved.clear()
        await asyncio.sleep(0.05)
    before = len(steps)
    for _ in range(10):
        await asyncio.sleep(0.01)
    assert len(steps) == before
    assert psutil.Process(pid).status() == psutil.STATUS_STOPPED
    chatting = False
    async with asyncio.timeout(20):
        while len(steps) <= before:
            await asyncio.sleep(0.01)
    (tmp_path / "job" / "stop").touch()
    ended, _ = await job
    assert ended.ok


@pytest.mark.parametrize("held", [False, True])
async def test_cancelling_ends_the_child_also_when_it_is_held(tmp_path, held):
    body = "(folder / 'pid').write_text(str(os.getpid()))\ntime.sleep(600)"
    job = asyncio.create_task(run(tmp_path, body, hold=lambda: held and path.exists()))
    path = tmp_path / "job" / "pid"
    async with asyncio.timeout(20):
        while not (path.exists() and path.read_text()):
            await asyncio.sleep(0.01)
        pid = int(path.read_text())
        while held and psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0.01)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
    assert gone(pid)


def test_a_child_that_an_earlier_bot_left_is_ended_first(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    # Not of asyncio, whose watcher would race for its status.
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as left:
        left.send_signal(signal.SIGSTOP)
        born = psutil.Process(left.pid).create_time()
        (folder / PID).write_text(f"{left.pid} {born!r}")
        end_stale(folder)
        assert gone(left.pid)


def test_another_program_with_the_same_number_is_left_alone(tmp_path):
    (tmp_path / PID).write_text(f"{os.getppid()} 1.0")
    end_stale(tmp_path)
    assert psutil.pid_exists(os.getppid())
    (tmp_path / PID).write_text("nonsense")
    end_stale(tmp_path)


async def test_a_child_ends_when_its_parent_was_killed_and_could_tell_it_nothing(tmp_path):
    child = (
        "import time; from training.work import watch_parent; watch_parent();"
        " print('ready', flush=True); time.sleep(600)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", parent), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    async with asyncio.timeout(60):
        lines = {await process.stdout.readline() for _ in range(2)}
        (pid,) = [int(line) for line in lines if line != b"ready\n"]
        assert not gone(pid)
        process.kill()
        await process.wait()
        while not gone(pid):
            await asyncio.sleep(0.05)
