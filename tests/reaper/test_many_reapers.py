"""Several reapers at once, with engines that go on reading and counting: each reference goes once or is kept."""

import asyncio
import random
from collections import Counter
from contextlib import suppress

import pytest

from bdr import BinaryDataLifecycleManager, ReaperConfig
from bdr.errors import FileNotFound
from bdr.reaper import ReapReport
from tests.fixtures.engines import Connect
from tests.guarantees import objects_in, violations
from tests.lifecycle.support import change, rows
from tests.reaper.support import expired, keys_left, records, store_many

FILES = 240
# Every third file is shared: its second reference is made in SQL, as nothing else makes one yet.
SHARE = """
    INSERT INTO bdr.binary_data_reference
        (file_key, blob_id, mime_kind, file_size, ref_count, created_at, last_access_at, zero_ref_retention)
    SELECT reverse(left(file_key, 26)), blob_id, mime_kind, file_size, 0, created_at, last_access_at, zero_ref_retention
    FROM bdr.binary_data_reference WHERE file_key = ANY(:keys)
"""


async def reap_until_nothing_is_left(binary: BinaryDataLifecycleManager) -> list[ReapReport]:
    reports = [await binary.reap()]
    while not reports[-1].is_empty:
        reports.append(await binary.reap())
    return reports


async def use(binary: BinaryDataLifecycleManager, keys: list[str], done: asyncio.Event) -> Counter[str]:
    """Read and register at random until told to stop; gives back how often each key was registered, 0 if only read."""
    used: Counter[str] = Counter()
    chance = random.Random(1)
    while not done.is_set():
        key = chance.choice(keys)
        # A reaper may be first. Nothing else may go wrong.
        with suppress(FileNotFound):
            if chance.random() < 0.5:
                await binary.get_data(key)
                used[key] += 0
            else:
                await binary.register_reference(key)
                used[key] += 1
    return used


@pytest.mark.parametrize("reapers", [2, 4])
async def test_each_expired_reference_goes_exactly_once(connect: Connect, reapers: int) -> None:
    settings = ReaperConfig(batch_size=13, concurrency=8)
    engines = [await connect(reaper=settings) for _ in range(reapers)]
    user = await connect()
    keys = await expired(user, FILES)
    held = await store_many(user, 20)
    await change(user, SHARE, keys=keys[::3])
    before = await keys_left(user)
    done = asyncio.Event()
    using = [asyncio.create_task(use(user, keys[:40] + held, done)) for _ in range(3)]
    passes = await asyncio.gather(*(reap_until_nothing_is_left(engine) for engine in engines))
    done.set()
    used: Counter[str] = Counter()
    for task in using:
        used.update(await task)
    left = await keys_left(user)
    reaped = [key for key, *_ in await records(user, "reap")]
    assert Counter(reaped) == Counter(before - left)
    assert {*held, *+used} <= left <= {*held, *used}
    reports = [report for one in passes for report in one]
    assert sum(report.references for report in reports) == len(reaped)
    assert sum(report.failed + report.quarantined for report in reports) == 0
    assert await rows(user, "SELECT count(*) FROM bdr.blob WHERE state <> 'live'") == [(0,)]
    blobs = (await rows(user, "SELECT count(*) FROM bdr.blob"))[0][0]
    assert sum(report.blobs for report in reports) == FILES + len(held) - blobs
    assert sum(report.blobs > 0 for report in reports) > 1
    counts = dict(await rows(user, "SELECT file_key, ref_count FROM bdr.binary_data_reference"))
    assert counts == {key: used[key] + (key in held) for key in left}
    assert await violations(user.engine.database, user.engine.storages) == []
    assert len(await objects_in(user.engine.storage("main"))) == blobs
