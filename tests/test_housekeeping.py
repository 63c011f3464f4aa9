"""A backup a day that can be opened, the newest kept, old update ids forgotten."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta

from bot.store import Store
from farense_bot.housekeeping import KEPT, SEEN, tidy
from tests.fakes import a_message

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


async def test_a_backup_holds_what_was_there_and_only_its_owner_reads_it(tmp_path):
    async with Store.open(tmp_path / "farense.db") as store:
        await store.accept(a_message("Olá!", update_id="one"))
        await tidy(store, tmp_path / "backups", NOW)
    (backup,) = (tmp_path / "backups").iterdir()
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    async with Store.open(backup) as copy:
        assert [message.text for message in await copy.pending()] == ["Olá!"]


async def test_one_a_day_and_the_newest_are_kept(tmp_path):
    async with Store.open(tmp_path / "farense.db") as store:
        for day in range(KEPT + 3):
            for hour in (0, 5):
                await tidy(store, tmp_path / "backups", NOW + timedelta(days=day, hours=hour))
    names = sorted(path.name for path in (tmp_path / "backups").iterdir())
    assert len(names) == KEPT
    assert names[-1] == f"farense-{NOW + timedelta(days=KEPT + 2):%Y-%m-%d}.db"


async def test_update_ids_are_forgotten_when_no_platform_repeats_them(tmp_path):
    async with Store.open(tmp_path / "farense.db") as store:
        message = a_message("Olá!", update_id="one")
        await store.accept(message)
        await store.done(message)
        await tidy(store, tmp_path / "backups", message.received_at + timedelta(days=1))
        assert not await store.accept(message)
        await tidy(store, tmp_path / "backups", message.received_at + SEEN + timedelta(days=2))
        assert await store.accept(message)
