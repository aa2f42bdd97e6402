"""Engines whose clocks are a day off: every time in the catalog is the database's, and nobody notices."""

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE
from datetime import datetime, timedelta
from typing import Any

import bdr
from tests.fixtures.engines import AT_ONCE, Connect
from tests.guarantees import violations
from tests.lifecycle.support import rows
from tests.storage.helpers import PROJECT

HOURS = (-24, 0, 24)
DAY = 86_400
# Every moment that anything wrote, wherever it stands; `expires_at` is to come.
MOMENTS = """
    SELECT c.table_name, c.column_name FROM information_schema.columns c
    JOIN information_schema.tables t USING (table_schema, table_name)
    WHERE c.table_schema = 'bdr' AND t.table_type = 'BASE TABLE' AND c.data_type = 'timestamp with time zone'
"""
# Times to come, each the database's clock and a setting.
AHEAD = {
    "next_attempt_at": timedelta(minutes=15),
    "lease_expires_at": timedelta(hours=1),
    "expires_at": timedelta(days=7),
}


async def shifted(hours: int, url: str, root: str) -> dict[str, Any]:
    """What an engine in a process with that clock saw."""
    command = (sys.executable, "-m", "tests.load.shifted", str(hours), url, root)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, cwd=PROJECT)
    output, _ = await process.communicate()
    assert process.returncode == 0
    seen: dict[str, Any] = json.loads(output)
    return seen


async def clock(binary: bdr.BinaryDataLifecycleManager) -> datetime:
    [(now,)] = await rows(binary, "SELECT clock_timestamp()")
    assert isinstance(now, datetime)
    return now


async def test_clocks_that_are_a_day_off_change_nothing(
    connect: Connect, database_url: str, fs_config: bdr.BinaryStorageConfig
) -> None:
    watcher = await connect()
    began = await clock(watcher)
    told = await asyncio.gather(*(shifted(hours, database_url, fs_config.root) for hours in HOURS))
    ended = await clock(watcher)

    off = [round((one["now"] - time.time()) / 3600) for one in told]
    assert off == list(HOURS), "the clocks were right"
    assert [(one["reaped"], one["trouble"]) for one in told] == [(0, None)] * len(HOURS)
    limit = (ended - began).total_seconds()
    for one in told:
        assert all(0 <= seconds <= limit for seconds in one["elapsed"]), one["elapsed"]
        assert all(0 <= seconds < DAY / 2 for seconds in one["remaining"]), one["remaining"]
        assert len(one["elapsed"]) > 20

    # The oldest row is that of the catalog, which was copied from one that was made before.
    [(made,)] = await rows(watcher, "SELECT created_at FROM bdr.catalog")
    assert began - timedelta(hours=12) < made <= began
    columns = await rows(watcher, MOMENTS)
    assert len(columns) > 15
    found = 0
    for table, column in columns:
        ahead = AHEAD.get(column, timedelta(0))
        for (moment,) in await rows(watcher, f"SELECT {column} FROM bdr.{table} WHERE {column} IS NOT NULL"):
            found += 1
            assert made <= moment <= ended + ahead, (table, column, moment)
    assert found > 50
    [(latest,)] = await rows(watcher, "SELECT max(expires_at - created_at) FROM bdr.binary_data_reference")
    assert latest == timedelta(days=7)
    lives = await rows(
        watcher, "SELECT heartbeat_at > started_at, missed_at FROM bdr.engine_instance WHERE name ~ 'h$'"
    )
    assert lives == [(True, None)] * len(HOURS)
    assert await violations(watcher.engine.database, watcher.engine.storages) == []


async def test_a_reaper_whose_clock_is_a_day_behind_reaps_what_is_due_and_one_ahead_nothing_else(
    connect: Connect, database_url: str, fs_config: bdr.BinaryStorageConfig
) -> None:
    keeper = await connect()
    kept = (await keeper.store_data(b"kept")).file_key
    due = await connect(lifecycle=bdr.LifecycleCleanupConfig(max_retention=AT_ONCE))
    gone = (await due.store_data(b"gone")).file_key
    behind = await shifted(-24, database_url, fs_config.root)
    assert behind["reaped"] == 1
    assert not await keeper.data_exists(gone)
    ahead = await shifted(24, database_url, fs_config.root)
    assert ahead["reaped"] == 0
    assert await keeper.data_exists(kept)
