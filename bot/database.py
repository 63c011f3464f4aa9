"""The database file: how it is opened, written, copied, and what its errors mean."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self, TypeVar

import aiosqlite

from bot.errors import StoreError
from bot.schema import APPLICATION_ID, MIGRATIONS

T = TypeVar("T")
Value = str | int | float | None

PATIENCE = 5.0  # seconds to wait for another process's lock
_BIGGEST = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

_SQLITE_KEYS = {
    sqlite3.SQLITE_BUSY: "error.store_locked",
    sqlite3.SQLITE_LOCKED: "error.store_locked",
    sqlite3.SQLITE_READONLY: "error.store_readonly",
    sqlite3.SQLITE_PERM: "error.store_readonly",
    sqlite3.SQLITE_NOTADB: "error.store_not_database",
    sqlite3.SQLITE_CORRUPT: "error.store_corrupt",
    sqlite3.SQLITE_FULL: "error.store_full",
    sqlite3.SQLITE_CANTOPEN: "error.store_unreachable",
    sqlite3.SQLITE_IOERR: "error.store_unreachable",
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: "error.store_missing",
}
_OS_KEYS = {
    errno.EACCES: "error.store_readonly",
    errno.EPERM: "error.store_readonly",
    errno.EROFS: "error.store_readonly",
    errno.ENOSPC: "error.store_full",
    errno.EDQUOT: "error.store_full",
}


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970 for an aware moment."""
    return (moment - _EPOCH) // _MILLISECOND


def to_time(milliseconds: int) -> datetime:
    """The moment in UTC."""
    return _EPOCH + milliseconds * _MILLISECOND


def _clean(value: Value) -> Value:
    """Make a value bindable: half a surrogate pair is replaced, an absurd id matches none."""
    if isinstance(value, int) and not -_BIGGEST <= value <= _BIGGEST:
        return None  # from a forged button
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def run(db: sqlite3.Connection, sql: str, *values: Value) -> sqlite3.Cursor:
    """Execute one statement with any text."""
    return db.execute(sql, [_clean(value) for value in values])


def fetch_one(db: sqlite3.Connection, sql: str, *values: Value) -> sqlite3.Row | None:
    """The first row, or None."""
    row: sqlite3.Row | None = run(db, sql, *values).fetchone()
    return row


def insert(db: sqlite3.Connection, sql: str, *values: Value) -> int:
    """Insert a row and return its id."""
    row_id = run(db, sql, *values).lastrowid
    assert row_id is not None
    return row_id


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        key = _OS_KEYS.get(error.errno or 0, "error.store_unreachable")
        raise StoreError(key, path=path, detail=error) from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR
        # Some are known by the whole code, the others by its low byte, the primary code.
        key = _SQLITE_KEYS.get(code) or _SQLITE_KEYS.get(code & 0xFF) or StoreError.key
        raise StoreError(key, path=path, detail=error) from error


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing. IMMEDIATE, since a read that turns into a write cannot wait for its turn."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:  # SQLite has already rolled back after a full disk
            db.execute("ROLLBACK")


def connect(path: Path, patience: float = PATIENCE) -> sqlite3.Connection:
    """Open or create the database and bring it to the newest schema; raises StoreError."""
    with explained(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Created by us so that it is never readable to others; SQLite gives -wal the same mode.
        # Only then: closing a file drops the locks of all other connections to it in the process.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(path, timeout=patience, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            _recognise(db, path)
            _configure(db, patience)
            _migrate(db, path)
            with suppress(PermissionError):  # not the owner, but may write
                path.chmod(0o600)
        except BaseException:
            db.close()
            raise
        return db


def _recognise(db: sqlite3.Connection, path: Path) -> int:
    """The schema version, read without touching a file that is not ours or is too new."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    owner = db.execute("PRAGMA application_id").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables and owner != APPLICATION_ID:
        raise StoreError("error.store_not_database", path=path, detail="another program's tables")
    if version > len(MIGRATIONS):
        raise StoreError("error.store_newer", path=path, detail=f"{version} > {len(MIGRATIONS)}")
    return version


def _configure(db: sqlite3.Connection, patience: float) -> None:
    """Settle how this connection writes."""
    deadline = time.monotonic() + patience
    while True:  # two that create the file at once: SQLite itself does not wait here
        try:
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    # FULL on every commit: a power cut must not lose an accepted message, a vote, or the note
    # that a piece was sent. macOS flushes the drive's own cache only when asked by fullfsync.
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA fullfsync = ON")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA secure_delete = ON")  # what is forgotten does not stay in free pages


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    """Apply what is missing; also finds out now whether we may write at all."""
    with transaction(db):
        version = _recognise(db, path)
        for script in MIGRATIONS[version:]:
            for statement in script.split("\n\n"):
                db.execute(statement)
        # Written each time: BEGIN IMMEDIATE alone raises nothing when the file is read-only.
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _backup(path: Path, target: Path) -> None:
    """Copy a database that is in use; `target` is the old copy or the whole new one, never half."""
    with explained(target):
        if target.exists() and target.samefile(path):
            raise StoreError("error.store_backup_onto_itself", path=target)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}.{time.monotonic_ns()}")
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            # A connection of its own: the copy is one snapshot, and writers go on meanwhile.
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(draft)) as copy:
                source.backup(copy)
            _sync(draft)
            draft.replace(target)
            _sync(target.parent)
        finally:
            draft.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make a file or the names in a folder outlive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Connection(aiosqlite.Connection):
    """aiosqlite's connection and thread, running a whole function there in one go."""

    async def __aenter__(self) -> Self:
        try:
            await super().__aenter__()
        except BaseException:
            # Its thread must not outlive the loop: the goodbye it sends would end in a traceback.
            await asyncio.to_thread(self._thread.join)
            raise
        return self

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        result: T = await self._execute(lambda: work(self._conn))  # type: ignore[no-untyped-call] # untyped in the library
        return result


class Database:
    """One connection in one thread.

    Each piece of work runs there in one go, so a transaction is whole whatever happens to the task
    that asked for it, no reader sees half of one, and there is one writer without a lock.
    """

    def __init__(self, db: _Connection, path: Path) -> None:
        self._db = db
        self._path = path

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, patience: float = PATIENCE) -> AsyncIterator[Self]:
        """Open or create the file; `patience` is how long to wait for another process's lock."""
        async with _Connection(lambda: connect(path, patience), 1) as db:
            yield cls(db, path)

    async def _read(self, sql: str, *values: Value) -> list[sqlite3.Row]:
        def work(db: sqlite3.Connection) -> list[sqlite3.Row]:
            with explained(self._path):
                return run(db, sql, *values).fetchall()

        return await self._db.run(work)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do work in one durable transaction."""

        def whole(db: sqlite3.Connection) -> T:
            with explained(self._path), transaction(db):
                return work(db)

        return await self._db.run(whole)

    async def _change(self, sql: str, *values: Value) -> int:
        """Run one statement; returns how many rows it changed."""
        return await self._write(lambda db: run(db, sql, *values).rowcount)

    async def backup(self, target: Path) -> None:
        """Write a copy of everything while the bot goes on; `target` is never half a copy."""
        await asyncio.to_thread(_backup, self._path, target)
