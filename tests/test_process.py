"""The program as a person runs it: start, stop, crash, and what goes wrong at the start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from config.texts import text

ROOT = Path(__file__).resolve().parent.parent
HEADERS = {"X-Farense": "1"}


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FARENSE_")}
    # A test's folder may hold its own `.env`; the checkout's must not count.
    night = {"FARENSE_LEARNING__ENABLED": "false"}  # whatever the hour is
    return {**kept, **night, "FARENSE_HOME": str(home), "PYTHONPATH": str(ROOT), **more}


def run(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "farense_bot", *arguments],
        cwd=home.parent, env=environment(home, **more), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Bot:
    """A running bot, and a browser that talks to it."""

    def __init__(self, process, url: str, browser: aiohttp.ClientSession) -> None:
        self.process, self.url, self.browser = process, url, browser

    async def say(self, words: str) -> None:
        body = {"text": words, "id": uuid.uuid4().hex}
        headers = {**HEADERS, "Origin": self.url}
        async with self.browser.post(f"{self.url}/api/message", json=body, headers=headers) as got:
            assert got.status == 200, await got.text()

    async def history(self) -> str:
        async with self.browser.get(f"{self.url}/api/history", headers=HEADERS) as got:
            return await got.text()

    async def ready(self) -> None:
        """Wait until the bot says that it is ready; fail with its log when it ends instead."""
        async with asyncio.timeout(100):
            while True:
                assert self.process.returncode is None
                try:
                    async with self.browser.get(f"{self.url}/readyz") as got:
                        if got.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.2)

    async def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        async with asyncio.timeout(30):
            return await self.process.wait()


@asynccontextmanager
async def started(home: Path, port: int, jar: aiohttp.CookieJar, log: Path) -> AsyncIterator[Bot]:
    settings = {
        "FARENSE_WEB__PORT": str(port),
        "FARENSE_ENGINE__MODEL": "embedded",
        "FARENSE_ENGINE__MAX_TOKENS": "60",
        "FARENSE_ENGINE__TEMPERATURE": "0",
    }
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "farense_bot", "run"),
            cwd=home.parent, env=environment(home, **settings), stdout=output, stderr=output,
        )  # fmt: skip
    try:
        async with aiohttp.ClientSession(cookie_jar=jar) as browser:
            bot = Bot(process, f"http://127.0.0.1:{port}", browser)
            await bot.ready()
            async with browser.get(f"{bot.url}/") as page:
                assert page.status == 200
            yield bot
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def answers(home: Path) -> list[tuple[str, str, str]]:
    """Question, state and answer of everything in the database, read by somebody else."""
    db = sqlite3.connect(f"file:{home / 'farense.db'}?mode=ro", uri=True)
    try:
        return db.execute(
            "SELECT questions.text, state, answers.text FROM answers"
            " JOIN questions ON questions.id = question_id ORDER BY answers.id"
        ).fetchall()
    finally:
        db.close()


async def until(condition, what: str) -> None:
    """Look at another process's work until it is done: it can set no event of ours."""
    async with asyncio.timeout(90):
        while not condition():
            await asyncio.sleep(0.1)
    assert condition(), what


def running_text(home: Path, question: str) -> bool:
    return any(q == question and s == "running" for q, s, _ in answers(home))


def done(home: Path, question: str) -> bool:
    return any(q == question and s == "done" and a for q, s, a in answers(home))


@pytest.mark.model
async def test_a_stopped_and_a_killed_bot_answer_after_the_next_start_once(
    tmp_path, embedded_model
):
    home, log = tmp_path / "home", tmp_path / "log"
    (home / "models").mkdir(parents=True)
    (home / "models" / embedded_model.name).symlink_to(embedded_model)
    port, jar = free_port(), aiohttp.CookieJar(unsafe=True)

    async with started(home, port, jar, log) as bot:
        await bot.say("Conta-me uma história do mar.")
        await until(lambda: running_text(home, "Conta-me uma história do mar."), "running")
        began = time.monotonic()
        assert await bot.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 10  # the promise to whoever stops it
    assert [state for _, state, _ in answers(home)] in (["interrupted"], ["done"])

    async with started(home, port, jar, log) as bot:
        await until(lambda: done(home, "Conta-me uma história do mar."), "answered")
        await bot.say("E outra, da serra.")
        await until(lambda: running_text(home, "E outra, da serra."), "running")
        assert await bot.end(signal.SIGKILL) == -signal.SIGKILL

    async with started(home, port, jar, log) as bot:
        await until(lambda: done(home, "E outra, da serra."), "answered")
        shown = await bot.history()
        assert "E outra, da serra." in shown
        assert await bot.end(signal.SIGINT) == 0
    assert [state for _, state, _ in answers(home)] == ["done", "done"]
    assert "Traceback" not in log.read_text()


def test_a_second_bot_on_the_same_folder_is_told_so(tmp_path):
    from config.settings import load_settings
    from farense_bot.app import state_folder

    home = tmp_path / "home"
    with state_folder(load_settings(home)):
        result = run(home, "run")
    assert result.returncode == 1
    assert text("error.already_running", home=home) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.model
def test_a_taken_port_with_nothing_else_to_serve_is_one_sentence(tmp_path, embedded_model):
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    (home / "models" / embedded_model.name).symlink_to(embedded_model)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run(home, "run", FARENSE_WEB__PORT=str(port), FARENSE_ENGINE__MODEL="embedded")
    assert result.returncode == 1
    assert str(port) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("prepare", "key"),
    [
        (
            lambda home: (home / "farense.db").write_bytes(b"no database" * 1000),
            "error.store_not_database",
        ),
        (lambda home: (home / "farense.db").mkdir(), "error.store_unreachable"),
    ],
)
def test_a_database_that_is_none_is_one_sentence(tmp_path, prepare, key, embedded_model):
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    (home / "models" / embedded_model.name).symlink_to(embedded_model)
    prepare(home)
    result = run(home, "run", FARENSE_ENGINE__MODEL="embedded")
    assert result.returncode == 1
    assert text(key, path=home / "farense.db", detail="…").split(":")[0][:30] in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("model", "key"),
    [("./nowhere", "error.model_missing"), ("a name that is none", "error.model_name")],
)
def test_a_model_that_is_none_is_one_sentence(tmp_path, model, key):
    result = run(tmp_path / "home", "run", "--model", model)
    assert result.returncode == 1
    assert text(key, path="|", name=model).split("|")[0][:40] in result.stderr
    assert "Traceback" not in result.stderr


def test_nothing_switched_on_is_one_sentence(tmp_path):
    result = run(tmp_path / "home", "run", FARENSE_WEB__ENABLED="false")
    assert result.returncode == 1
    assert text("error.no_platform") in result.stderr


def test_doctor_says_what_it_found_and_never_a_token(tmp_path):
    result = run(
        tmp_path / "home", "doctor",
        FARENSE_TELEGRAM__TOKEN="12345:secret", FARENSE_ENGINE__MODEL="embedded",
        FARENSE_WEB__PORT=str(free_port()),
    )  # fmt: skip
    assert result.returncode == 1  # the model is not there yet: something to do
    assert text("doctor.token_present") in result.stdout
    assert text("doctor.fix_model") in result.stdout
    assert "secret" not in result.stdout + result.stderr
