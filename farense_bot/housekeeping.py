"""What keeps the database in order: a backup a day, and old update ids forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from bot.errors import StoreError
from bot.store import Store

log = structlog.get_logger(__name__)

LOOK = 3600.0  # seconds between two looks at what is due
KEPT = 7  # backups
SEEN = timedelta(days=30)  # platforms deliver an update again for a day at most


async def keep_house(
    store: Store,
    home: Path,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Do what is due, look again in an hour, and so on until cancelled."""
    while True:
        try:
            await tidy(store, home / "backups", now())
        except (StoreError, OSError) as error:
            log.warning("housekeeping failed", error=str(error))
        await asyncio.sleep(LOOK)


async def tidy(store: Store, folder: Path, now: datetime) -> None:
    """Make today's backup unless it is there, drop the oldest ones, forget old update ids."""
    today = folder / f"farense-{now:%Y-%m-%d}.db"
    if not await asyncio.to_thread(today.exists):
        await asyncio.to_thread(folder.mkdir, mode=0o700, exist_ok=True)
        await store.backup(today)
        await store.forget_seen(now - SEEN)
        await asyncio.to_thread(_drop_old, folder)


def _drop_old(folder: Path) -> None:
    for old in sorted(folder.glob("farense-*.db"))[:-KEPT]:
        old.unlink()
