"""The store when things break: kill -9, locks, wrong files, a full disk, many at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from blockbuster import BlockingError, blockbuster_ctx
from hypothesis import given, settings
from hypothesis import strategies as st

from bot import schema
from bot.database import connect
from bot.domain import AnswerId, AnswerState, Chat, Fan, Message, Platform, Source
from bot.errors import StoreError
from bot.store import Store
from config.texts import text

ROOT = Path(__file__).parent.parent
NOW = datetime(2026, 11, 24, 3, 30, tzinfo=UTC)
CHAT = Chat(Platform.TELEGRAM, "1")
ANA = Fan(Platform.TELEGRAM, "1")

WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from bot.domain import AnswerState, Chat, Fan, Message, Platform, Source
from bot.store import Store

NOW = datetime(2026, 11, 24, 3, 30, tzinfo=UTC)
path, name, most = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
chat, fan = Chat(Platform.TELEGRAM, "1"), Fan(Platform.TELEGRAM, "1")

def say(*words):
    print(*words, flush=True)

async def main():
    async with Store.open(path) as store:
        conversation = await store.new_conversation(chat, NOW)
        for n in range(most):
            message = Message(f"{name}-{n}", chat, fan, "Olá", Source.TELEGRAM_PRIVATE, NOW)
            assert await store.accept(message)
            say("accepted", message.update_id)
            question = await store.add_question(conversation, None, message, "Olá")
            answer = await store.start_answer(question, message, persona="p", model="m", now=NOW)
            await store.finish_answer(answer, text="Viva", state=AnswerState.DONE, usage=None)
            say("answered", answer)
            await store.vote(answer, fan, 1, source=Source.WEB, via="button", now=NOW)
            say("voted", answer)
            await store.record(answer, 0, chat, f"shown-{answer}")
            say("shown", answer)

asyncio.run(main())
"""

HOLDER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
db.execute("COMMIT")
"""

# Root may write everywhere: it becomes somebody else once all that it needs is imported.
NOBODY = """
import asyncio, concurrent.futures.thread, os, sys
from pathlib import Path
from bot.errors import StoreError
from bot.store import Store

async def main():
    async with Store.open(Path(sys.argv[1])):
        return "opened"

if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    print(asyncio.run(main()))
except StoreError as error:
    print(error.key)
"""


def message(update: str) -> Message:
    return Message(update, CHAT, ANA, "Olá", Source.TELEGRAM_PRIVATE, NOW)


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process of ours; its stdin and stdout are pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another process holds the database's lock."""
    with child(HOLDER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate()


async def opens(path: Path, **options: float) -> None:
    async with Store.open(path, **options) as store:
        await store.pending()


async def refused(path: Path, **options: float) -> str:
    """The key of the error; the sentence behind it exists in both languages."""
    with pytest.raises(StoreError) as caught:
        await opens(path, **options)
    error = caught.value
    assert all(str(path) in text(error.key, language, **error.values) for language in ("pt", "en"))
    return error.key


def check_whole(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []


# Power, kill and cancellation


async def test_what_was_acknowledged_is_there_after_kill_9(tmp_path):
    path = tmp_path / "farense.db"
    said: list[list[str]] = []
    for turn in range(10):
        with child(WRITER, path, turn, 10_000) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(7 + 13 * turn)]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        assert process.returncode == -signal.SIGKILL
        said += [line.split() for line in lines if line.endswith("\n")]
    async with Store.open(path) as store:
        pending = {waiting.update_id for waiting in await store.pending()}
        for word, name in said:
            if word == "accepted":
                assert name in pending
                continue
            answer = await store.answer(AnswerId(int(name)))
            assert answer is not None
            assert answer.state is AnswerState.DONE
            if word == "voted":
                assert await store.votes(answer.id) == (1, 0)
            if word == "shown":
                assert await store.answer_at(CHAT, f"shown-{name}") == answer.id
    check_whole(path)


async def test_every_commit_reaches_the_disk(tmp_path):
    async with Store.open(tmp_path / "farense.db") as store:
        pragmas = ("journal_mode", "synchronous", "fullfsync", "foreign_keys", "secure_delete")
        found = [(await store._read(f"PRAGMA {name}"))[0][0] for name in pragmas]
    assert found == ["wal", 2, 1, 1, 1]  # 2: FULL


async def test_cancelled_tasks_leave_whole_transactions(tmp_path):
    async with Store.open(tmp_path / "farense.db") as store:
        tasks = [asyncio.create_task(store.running_conversation(CHAT, NOW, NOW - NOW))]
        tasks += [asyncio.create_task(store.accept(message(str(n)))) for n in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(result, asyncio.CancelledError) for result in results)
        kept = {waiting.update_id for waiting in await store.pending()}
        assert {str(n) for n in range(50) if results[n + 1] is True} <= kept
        assert await store.accept(message("after"))
    check_whole(tmp_path / "farense.db")


# Many at once


async def test_two_stores_on_one_file_take_each_update_once(tmp_path):
    path = tmp_path / "farense.db"
    async with Store.open(path) as one, Store.open(path) as two:
        taken = await asyncio.gather(
            *(store.accept(message(str(n))) for n in range(50) for store in (one, two))
        )
        assert sum(taken) == 50
        assert await one.pending() == await two.pending()
    check_whole(path)


async def test_a_second_store_does_not_drop_the_locks_of_the_first(tmp_path):
    path = tmp_path / "farense.db"
    async with Store.open(path) as store:
        await store.accept(message("1"))
        await opens(path)
        with child(WRITER, path, "other", 1) as process:  # the last to close would delete the WAL
            process.communicate()
        assert path.with_name("farense.db-wal").exists()
        assert await store.accept(message("2"))
    check_whole(path)


def test_processes_that_create_the_file_at_the_same_time_all_write(tmp_path):
    path = tmp_path / "farense.db"
    with ExitStack() as stack:
        writers = [stack.enter_context(child(WRITER, path, name, 20)) for name in "abcd"]
        for writer in writers:
            writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0, 0, 0]
    check_whole(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM votes").fetchone() == (80,)


def test_a_file_that_another_is_just_creating_is_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "farense.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr("bot.database.time.sleep", lambda _: other.execute("ROLLBACK"))
        connect(path).close()
    check_whole(path)


async def test_the_loop_is_never_blocked(tmp_path):
    with blockbuster_ctx() as detector, pytest.raises(BlockingError):
        sqlite3.connect(tmp_path / "other.db").execute("SELECT 1")  # the detector works
    path = tmp_path / "state" / "farense.db"
    with blockbuster_ctx() as detector:
        assert detector.functions
        async with Store.open(path) as store:
            asked = message("1")
            await store.accept(asked)
            conversation = await store.new_conversation(CHAT, NOW)
            question = await store.add_question(conversation, None, asked, "Olá")
            answer = await store.start_answer(question, asked, persona="p", model="m", now=NOW)
            await store.finish_answer(answer, text="Viva", state=AnswerState.DONE, usage=None)
            await store.exchanges(CHAT, ANA.key, 10)
            await store.backup(tmp_path / "copy.db")


# Locks


async def test_a_database_locked_for_long_is_said_so_and_opens_afterwards(tmp_path):
    path = tmp_path / "farense.db"
    await opens(path)
    with held(path):
        assert await refused(path, patience=0.01) == "error.store_locked"
    await opens(path)


async def test_a_write_that_found_the_lock_can_be_tried_again(tmp_path):
    path = tmp_path / "farense.db"
    async with Store.open(path, patience=0.01) as store:
        with held(path):
            with pytest.raises(StoreError) as caught:
                await store.accept(message("1"))
            assert caught.value.key == "error.store_locked"
            assert await store.pending() == []
        assert await store.accept(message("1"))


async def test_a_write_waits_for_a_short_lock_while_the_loop_goes_on(tmp_path):
    path = tmp_path / "farense.db"
    async with Store.open(path) as store:
        with held(path):
            writing = asyncio.create_task(store.accept(message("1")))
            for _ in range(1000):
                await asyncio.sleep(0)
            assert not writing.done()
        assert await writing


# Files that cannot be used


@settings(deadline=None)
@given(content=st.binary(min_size=2, max_size=2000))  # SQLite takes one byte for an empty file
def test_a_file_that_is_no_database_is_left_as_it_was(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "farense.db"
        path.write_bytes(content)
        assert asyncio.run(refused(path)) == "error.store_not_database"
        assert path.read_bytes() == content
        assert list(Path(folder).iterdir()) == [path]


async def test_another_programs_database_is_left_as_it_was(tmp_path):
    path = tmp_path / "farense.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE recipes (name)")
    before = path.read_bytes()
    assert await refused(path) == "error.store_not_database"
    assert path.read_bytes() == before


async def test_a_newer_versions_database_is_left_as_it_was(tmp_path):
    path = tmp_path / "farense.db"
    await opens(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    before = path.read_bytes()
    assert await refused(path) == "error.store_newer"
    assert path.read_bytes() == before


async def test_a_damaged_database_is_said_so(tmp_path):
    path = tmp_path / "farense.db"
    await opens(path)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    assert await refused(path) == "error.store_corrupt"


async def test_a_folder_in_the_place_of_the_file_is_said_so(tmp_path):
    assert await refused(tmp_path) == "error.store_unreachable"


@pytest.mark.parametrize(
    ("file_mode", "folder_mode", "outcome"),
    [
        (0o666, 0o777, "opened"),
        (0o444, 0o777, "error.store_readonly"),
        (0o444, 0o555, "error.store_readonly"),
    ],
)
def test_a_file_that_may_only_be_read_is_said_so(file_mode, folder_mode, outcome):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "farense.db"
        asyncio.run(opens(path))
        path.chmod(file_mode)
        path.parent.chmod(folder_mode)
        before = path.read_bytes()
        with child(NOBODY, path) as process:
            assert process.communicate()[0] == f"{outcome}\n"
        assert path.read_bytes() == before or outcome == "opened"
        path.parent.chmod(0o700)


def test_a_folder_that_may_only_be_read_is_said_so():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        with child(NOBODY, Path(folder) / "new" / "farense.db") as process:
            assert process.communicate()[0] == "error.store_readonly\n"
        Path(folder).chmod(0o700)


async def test_a_full_disk_loses_nothing_and_heals(tmp_path):
    path = tmp_path / "farense.db"
    async with Store.open(path) as store:
        assert await store.accept(message("before"))
        (pages,) = (await store._read("PRAGMA page_count"))[0]
        await store._read(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError) as caught:
            await store.accept(Message("big", CHAT, ANA, "x" * 100_000, Source.WEB, NOW))
        assert caught.value.key == "error.store_full"
        assert [waiting.update_id for waiting in await store.pending()] == ["before"]
        await store._read("PRAGMA max_page_count = 1000000")
        assert await store.accept(Message("big", CHAT, ANA, "x" * 100_000, Source.WEB, NOW))
    check_whole(path)


async def test_an_empty_file_becomes_a_database(tmp_path):
    path = tmp_path / "farense.db"
    path.touch()
    await opens(path)
    check_whole(path)


def test_a_migration_that_fails_leaves_the_old_schema(tmp_path, monkeypatch):
    path = tmp_path / "farense.db"
    connect(path).close()
    good = schema.MIGRATIONS
    monkeypatch.setattr(
        "bot.database.MIGRATIONS", (*good, "CREATE TABLE evenings (id)\n\nCREATE x")
    )
    with pytest.raises(StoreError):
        connect(path)
    monkeypatch.setattr("bot.database.MIGRATIONS", (*good, "CREATE TABLE evenings (id)"))
    with closing(connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == len(good) + 1
        assert db.execute("SELECT count(*) FROM nights").fetchone()[0] == 0


# Privacy and copies


async def test_only_the_owner_can_read(tmp_path):
    path = tmp_path / "state" / "farense.db"
    before = os.umask(0)
    try:
        async with Store.open(path) as store:
            await store.accept(message("1"))
            await store.backup(tmp_path / "copies" / "copy.db")
            files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert set(files) == {"farense.db", "farense.db-wal", "farense.db-shm"}
    assert set(files.values()) == {0o600}
    folders = (path.parent, tmp_path / "copies")
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700, 0o700]
    assert stat.S_IMODE((tmp_path / "copies" / "copy.db").stat().st_mode) == 0o600


async def test_a_backup_is_a_whole_store_taken_while_writers_go_on(tmp_path):
    copy = tmp_path / "copy.db"
    async with Store.open(tmp_path / "farense.db") as store:
        await store.accept(message("first"))
        copy.write_bytes(b"an older copy")
        await asyncio.gather(
            store.backup(copy), *(store.accept(message(str(n))) for n in range(100))
        )
    check_whole(copy)
    async with Store.open(copy) as restored:
        assert "first" in {waiting.update_id for waiting in await restored.pending()}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.db", "farense.db"]


async def test_a_backup_that_fails_leaves_the_older_one(tmp_path, monkeypatch):
    copy = tmp_path / "copy.db"
    copy.write_bytes(b"an older copy")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    async with Store.open(tmp_path / "farense.db") as store:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError) as caught:
            await store.backup(copy)
    assert caught.value.key == "error.store_full"
    assert copy.read_bytes() == b"an older copy"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.db", "farense.db"]


async def test_a_backup_onto_the_database_itself_is_refused(tmp_path):
    path = tmp_path / "farense.db"
    (tmp_path / "link.db").symlink_to(path)
    async with Store.open(path) as store:
        for target in (path, tmp_path / "link.db"):
            with pytest.raises(StoreError) as caught:
                await store.backup(target)
            assert caught.value.key == "error.store_backup_onto_itself"
        assert await store.accept(message("1"))
