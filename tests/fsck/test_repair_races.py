"""A repair that is killed, repeated, or run beside engines, reapers and other repairs."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import bdr
from bdr.fsck import FindingKind, Result, repair
from tests.fixtures.engines import Connect
from tests.fixtures.storages import MakeStorageConfig
from tests.fsck.support import Damage, checked, repaired
from tests.fsck.test_races import Load
from tests.guarantees import objects_in, violations
from tests.lifecycle.support import blob_states, rows, until_waiting
from tests.reaper.support import EAGER, keys_left, records, store_many
from tests.storage.helpers import PROJECT, as_argument

REPAIRED, SKIPPED, FAILED = Result.REPAIRED, Result.SKIPPED, Result.FAILED
# Says when it comes to the moment, and waits there for its end.
UP_TO = """
import asyncio, json, sys
from pathlib import Path
import bdr
from bdr.fsck import repair
from tests.fsck.support import Watched

async def reached():
    print("reached", flush=True)
    await asyncio.Event().wait()

class Dying(Watched):
    async def move(self, path, target):
        if sys.argv[4] == "before the move":
            await reached()
        await self._storage.move(path, target)
        await reached()

async def main():
    url, config, plan, _ = sys.argv[1:]
    async with bdr.connect(database_url=url, storage=bdr.BinaryStorageConfig(**json.loads(config))) as binary:
        binary.engine.storages["main"] = Dying(binary.engine.storages["main"])
        await repair(binary, Path(plan))
asyncio.run(main())
"""


async def killed(*arguments: str) -> None:
    """Run a repair in a process of its own, and kill it when it has come to its moment."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", UP_TO, *arguments, stdout=PIPE, env=environment
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"reached\n"
    process.kill()
    assert await process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["fs", "s3"])
@pytest.mark.parametrize("moment", ["before the move", "after the move"])
async def test_an_orphan_has_an_owner_again_whenever_the_repair_was_killed(
    connect: Connect, make_storage_config: MakeStorageConfig, database_url: str, plan: Path, kind: str, moment: str
) -> None:
    config = make_storage_config(kind)
    binary = await connect(storage=config)
    damage = Damage(binary)
    await store_many(binary, 2)
    orphan = await damage.strand()
    await checked(binary, plan)
    await killed(database_url, as_argument(config), str(plan), moment)
    moved = moment == "after the move"
    assert await damage.storage.exists(orphan) is not moved
    unowned = [] if moved else [f"object {orphan} in main has no row"]
    assert await violations(binary.engine.database, binary.engine.storages) == unowned

    # By the same plan, and by one that was made since, it is the same row and the same place.
    if not moved:
        await checked(binary, plan)
    assert await repaired(binary, plan) == [(f"orphan {orphan}", SKIPPED if moved else REPAIRED)]
    assert await blob_states(binary) == ["live", "live", "quarantined"]
    assert await violations(binary.engine.database, binary.engine.storages) == []
    ((path,),) = await rows(binary, "SELECT object_path FROM bdr.blob WHERE state = 'quarantined'")
    assert await damage.storage.retrieve(path) == b"nobody's"


async def test_repairs_that_run_at_once_agree(
    connect: Connect, make_storage_config: MakeStorageConfig, plan: Path
) -> None:
    config = make_storage_config("s3")
    engines = [await connect(storage=config) for _ in range(3)]
    binary, damage = engines[0], Damage(engines[0])
    keys = await store_many(binary, 12)
    for key in keys[:4]:
        await damage.lose(key)
    for key in keys[4:8]:
        await damage.replace(key, b"")
    for _ in range(4):
        await damage.strand()
    await checked(binary, plan)
    reports = await asyncio.gather(*(repair(engine, plan) for engine in engines))
    assert sum(report.references for report in reports) == 8
    assert sum(report.count(FAILED) for report in reports) == 0
    assert await keys_left(binary) == {*keys[8:]}
    assert await blob_states(binary) == ["deleting"] * 4 + ["live"] * 4 + ["quarantined"] * 8
    assert len([path for path in await objects_in(damage.storage) if path.startswith(".bdr-quarantine/")]) == 4
    await binary.reap()
    assert await violations(binary.engine.database, binary.engine.storages) == []
    assert (await checked(binary, plan))[0].is_clean


async def test_a_repair_under_load_touches_only_what_is_in_its_plan(connect: Connect, plan: Path) -> None:
    binary = await connect(
        reaper=EAGER, lifecycle=bdr.LifecycleCleanupConfig(zero_ref_retention=timedelta(0), max_retention=None)
    )
    damage = Damage(binary)
    keys = await store_many(binary, 8)
    for key in keys[:2]:
        await damage.lose(key)
    await damage.strand()
    loads = [Load(binary, seed) for seed in range(2)]
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as running:
        for load in loads:
            running.create_task(load.run(stopping))
        _, found = await checked(binary, plan)
        assert len(found) == 3
        report = await repair(binary, plan)
        stopping.set()
    assert report.count(REPAIRED) == 3
    assert {*keys[2:]} <= await keys_left(binary)
    await binary.reap()
    assert await violations(binary.engine.database, binary.engine.storages) == []
    assert (await checked(binary, plan))[0].is_clean


_COUNT = text("UPDATE bdr.binary_data_reference SET ref_count = ref_count + 1 WHERE file_key = :key")


async def test_a_reference_that_somebody_holds_locked_does_not_keep_the_others(
    connect: Connect, caller: AsyncEngine, plan: Path
) -> None:
    binary = await connect(database=bdr.DatabaseConfig(lock_timeout=timedelta(milliseconds=300)))
    keys = await store_many(binary, 2)
    for key in keys:
        await Damage(binary).lose(key)
    await checked(binary, plan)
    async with caller.connect() as connection:
        await connection.execute(_COUNT, {"key": keys[0]})
        ended = [result for _, result in await repaired(binary, plan)]
        assert sorted(ended) == [FAILED, REPAIRED]
        assert await keys_left(binary) == {keys[0]}
    assert sorted(result for _, result in await repaired(binary, plan)) == [REPAIRED, SKIPPED]
    assert await keys_left(binary) == set()


_SHARE = text(
    "INSERT INTO bdr.binary_data_reference (file_key, blob_id, mime_kind, file_size, ref_count) "
    "SELECT 'shared', blob_id, mime_kind, file_size, 1 FROM bdr.binary_data_reference WHERE file_key = :key"
)


async def test_a_reference_that_is_made_meanwhile_keeps_its_blob_for_the_next_check(
    connect: Connect, caller: AsyncEngine, plan: Path
) -> None:
    binary = await connect()
    (key,) = await store_many(binary, 1)
    lost = await Damage(binary).lose(key)
    await checked(binary, plan)
    async with caller.connect() as connection:
        await connection.execute(_SHARE, {"key": key})
        repairing = asyncio.create_task(repaired(binary, plan))
        await until_waiting(binary)
        await connection.commit()
    assert await repairing == [(f"missing {lost}", SKIPPED)]
    assert await keys_left(binary) == {"shared"}
    _, found = await checked(binary, plan)
    assert found == {(FindingKind.MISSING, lost)}
    assert await repaired(binary, plan) == [(f"missing {lost}", REPAIRED)]
    assert await keys_left(binary) == set()
    await binary.reap()
    assert await blob_states(binary) == []


async def test_a_delete_that_was_first_leaves_nothing_to_repair(
    connect: Connect, caller: AsyncEngine, plan: Path
) -> None:
    binary = await connect()
    for key in await store_many(binary, 2):
        await Damage(binary).lose(key)
    await checked(binary, plan)
    async with caller.connect() as connection:
        # What a delete holds just before it commits.
        await connection.execute(text("DELETE FROM bdr.binary_data_reference"))
        await connection.execute(text("UPDATE bdr.blob SET state = 'deleting', next_attempt_at = now()"))
        repairing = asyncio.create_task(repair(binary, plan))
        await until_waiting(binary)
        await connection.commit()
    report = await repairing
    assert (report.count(SKIPPED), report.references) == (2, 0)
    assert [key for key, *_ in await records(binary, "fsck")] == [None]
