"""The life of instances: memory that goes with its process, and what a reaper does for those that are no more."""

import asyncio
import uuid
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

import bdr
from bdr import (
    BinaryDataLifecycleManager,
    BinaryStorageConfig,
    InstanceConfig,
    LifecycleCleanupConfig,
    OperationsConfig,
    ReaperConfig,
)
from bdr.catalog import instance
from bdr.errors import InstanceClosed, StorageUnavailable
from bdr.keys import encode, new_id
from tests.fixtures.engines import AT_ONCE, Connect
from tests.lifecycle.support import change, make_due, rows
from tests.reaper.support import EAGER, keys_left, records, store_many
from tests.storage.helpers import until

IN_MEMORY = BinaryStorageConfig(storage_type="memory")
# Gives no sign of life of its own accord while a test runs.
QUIET = InstanceConfig(heartbeat_interval=timedelta(hours=1), timeout=timedelta(hours=2))
LIVELY = InstanceConfig(heartbeat_interval=timedelta(milliseconds=20), timeout=timedelta(hours=1))
ALIVE = "SELECT stopped_at IS NULL, missed_at IS NULL FROM bdr.engine_instance WHERE instance_id = :id"
SILENT = "UPDATE bdr.engine_instance SET heartbeat_at = now() - interval '2 hours' WHERE instance_id = :id"
LONG_MISSED = """
    UPDATE bdr.engine_instance SET missed_at = now() - interval '2 hours', heartbeat_at = now() - interval '4 hours'
    WHERE instance_id = :id
"""
START = """
    INSERT INTO bdr.operation (operation_id, operation_type, instance_id, status, started_at, updated_at)
    VALUES (:id, 'store', :instance, 'running', now(), now())
"""
STATUS = "SELECT status, error, finished_at IS NOT NULL FROM bdr.operation WHERE operation_id = :id"


async def silence(binary: BinaryDataLifecycleManager, whom: BinaryDataLifecycleManager) -> None:
    """Let an instance be silent for longer than anybody waits, noticed by a reaper all the while."""
    await change(binary, LONG_MISSED, id=whom.engine.instance_id)


async def is_alive(binary: BinaryDataLifecycleManager, whom: BinaryDataLifecycleManager) -> tuple[object, ...]:
    """Whether it has not stopped, and is not missed."""
    return (await rows(binary, ALIVE, id=whom.engine.instance_id))[0]


async def start_operation(binary: BinaryDataLifecycleManager, whom: BinaryDataLifecycleManager) -> uuid.UUID:
    """An operation that an instance has under way, as the others see it."""
    operation_id = new_id()
    await change(binary, START, id=operation_id, instance=whom.engine.instance_id)
    return operation_id


async def test_the_name_of_a_memory_storage_carries_its_instance_and_others_are_told(connect: Connect) -> None:
    one = await connect(storage=IN_MEMORY)
    other = await connect()
    key = (await one.store_data(b"data")).file_key
    name = f"main@{encode(one.engine.instance_id)}"
    assert await rows(other, "SELECT storage_name FROM bdr.blob") == [(name,)]
    assert await one.get_data(key) == b"data"
    assert await other.register_reference(key) == 2
    for call in (other.get_data(key), other.data_exists(key), other.get_range(key, 0, 1)):
        with pytest.raises(StorageUnavailable, match=f"memory of another engine instance \\(storage '{name}'\\)"):
            await call


async def test_what_another_engine_deletes_from_a_memory_goes_when_its_owner_reaps(connect: Connect) -> None:
    owner = await connect(storage=IN_MEMORY, lifecycle=LifecycleCleanupConfig(zero_ref_retention=AT_ONCE), reaper=EAGER)
    other = await connect(reaper=EAGER)
    key = (await owner.store_data(b"data")).file_key
    assert await other.release_reference(key) == 0
    assert await keys_left(owner) == set()
    await make_due(owner)
    assert (await other.reap()).is_empty
    assert await rows(owner, "SELECT state, attempts FROM bdr.blob") == [("deleting", 0)]
    assert (await owner.reap()).blobs == 1


async def test_a_memory_is_forgotten_when_its_engine_closes(connect: Connect, database_url: str) -> None:
    other = await connect()
    async with bdr.connect(database_url, storage=IN_MEMORY, reaper=ReaperConfig(batch_size=2)) as one:
        keys = await store_many(one, 5)
    assert await rows(other, "SELECT count(*) FROM bdr.storage WHERE storage_type = 'memory'") == [(0,)]
    assert await rows(other, "SELECT count(*) FROM bdr.blob") == [(0,)]
    assert {key for key, *_ in await records(other, "reap")} == set(keys)


async def test_the_memory_of_the_dead_goes_in_batches_and_what_is_locked_goes_later(
    connect: Connect, caller: AsyncEngine
) -> None:
    dead = await connect(storage=IN_MEMORY, instance=QUIET)
    reaper = await connect(reaper=ReaperConfig(batch_size=2))
    locked, *others = await store_many(dead, 5)
    await silence(reaper, dead)
    async with caller.begin() as own:
        await reaper.register_reference(locked, connection=own)
        report = await reaper.reap()
        assert (report.instances, report.references) == (1, 4)
    assert await keys_left(reaper) == {locked}
    report = await reaper.reap()
    assert (report.instances, report.references) == (0, 1)
    assert await rows(reaper, "SELECT count(*) FROM bdr.blob") == [(0,)]
    assert await rows(reaper, "SELECT count(*) FROM bdr.storage WHERE storage_type = 'memory'") == [(0,)]
    gone = {key: detail["rule"] for key, _, _, detail in await records(reaper, "reap")}
    assert gone == dict.fromkeys([locked, *others], "memory_gone")
    assert (await reaper.reap()).is_empty


async def test_two_reapers_that_bury_the_same_engine_count_it_once(connect: Connect) -> None:
    dead = await connect(storage=IN_MEMORY, instance=QUIET)
    reapers = [await connect(reaper=ReaperConfig(batch_size=3)) for _ in range(3)]
    await store_many(dead, 20)
    await silence(dead, dead)
    reports = await asyncio.gather(*(reaper.reap() for reaper in reapers))
    # What one of them had locked while the last one looked is there for the next pass.
    reports.append(await reapers[0].reap())
    assert sum(report.instances for report in reports) == 1
    assert sum(report.references for report in reports) == len(await records(dead, "reap")) == 20
    assert await rows(dead, "SELECT count(*) FROM bdr.blob") == [(0,)]


async def test_an_engine_that_was_declared_dead_closes_itself(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    # No sign of life comes before it is buried, and then one at once.
    engine = await connect(instance=LIVELY)
    reaper = await connect()
    await change(
        reaper,
        "UPDATE bdr.engine_instance SET stopped_at = now() WHERE instance_id = :id",
        id=engine.engine.instance_id,
    )

    async def is_closed() -> bool:
        try:
            engine.engine.require_open()
        except InstanceClosed:
            return True
        return False

    await until(is_closed)
    with pytest.raises(InstanceClosed, match="was declared dead"):
        await engine.store_data(b"data")
    with pytest.raises(InstanceClosed, match="Connect again"):
        await engine.reap()
    assert "declared dead" in caplog.text


async def test_operations_of_the_dead_are_failed_and_others_are_not(connect: Connect) -> None:
    dead, living = await connect(instance=QUIET), await connect()
    lost, kept = await start_operation(living, dead), await start_operation(living, living)
    await silence(living, dead)
    assert (await living.reap()).instances == 1
    assert await rows(living, STATUS, id=lost) == [("failed", "its engine stopped without finishing it", True)]
    assert await rows(living, STATUS, id=kept) == [("running", None, False)]


async def test_operations_of_the_dead_are_failed_although_their_reaper_died_or_they_were_locked(
    connect: Connect, caller: AsyncEngine
) -> None:
    dead, reaper = await connect(instance=QUIET), await connect()
    lost = await start_operation(reaper, dead)
    await change(
        reaper, "UPDATE bdr.engine_instance SET stopped_at = now() WHERE instance_id = :id", id=dead.engine.instance_id
    )
    async with caller.begin() as own:
        await own.exec_driver_sql("SELECT FROM bdr.operation FOR UPDATE")
        await reaper.reap()
    assert (await rows(reaper, STATUS, id=lost))[0][0] == "running"
    await reaper.reap()
    assert (await rows(reaper, STATUS, id=lost))[0][0] == "failed"


async def test_silence_is_only_noted_at_first_and_a_sign_of_life_takes_it_back(connect: Connect) -> None:
    """After an outage of the database all are silent; whoever reaps first must not bury the others, nor itself."""
    reaper, silent, heard = [await connect(instance=QUIET) for _ in range(3)]
    for one in (reaper, silent, heard):
        await change(reaper, SILENT, id=one.engine.instance_id)
    for _ in range(2):
        assert (await reaper.reap()).instances == 0
    for one in (reaper, silent, heard):
        assert await is_alive(reaper, one) == (True, False)
        await change(reaper, LONG_MISSED, id=one.engine.instance_id)
    for one in (reaper, heard):
        assert await reaper.engine.database.write(partial(instance.heartbeat, instance_id=one.engine.instance_id))
        assert await is_alive(reaper, one) == (True, True)
    assert (await reaper.reap()).instances == 1
    assert await is_alive(reaper, silent) == (False, False)
    assert not await reaper.engine.database.write(partial(instance.heartbeat, instance_id=silent.engine.instance_id))


async def test_instances_go_with_their_records_unless_something_is_left_of_them(
    connect: Connect, caller: AsyncEngine
) -> None:
    binary = await connect(operations=OperationsConfig(retention=timedelta(days=30)))
    gone, working = await connect(instance=QUIET), await connect(instance=QUIET)
    everybody = "SELECT instance_id FROM bdr.engine_instance ORDER BY instance_id"
    stopped = "UPDATE bdr.engine_instance SET stopped_at = now() - CAST(:ago AS interval) WHERE instance_id <> :me"
    ids = [(one.engine.instance_id,) for one in (binary, gone, working)]
    await change(binary, stopped, ago=timedelta(days=29), me=ids[0][0])
    await binary.reap()
    assert await rows(binary, everybody) == ids
    await change(binary, stopped, ago=timedelta(days=31), me=ids[0][0])
    await start_operation(binary, working)
    async with caller.begin() as own:
        # Cannot be failed meanwhile.
        await own.exec_driver_sql("SELECT FROM bdr.operation FOR UPDATE")
        await binary.reap()
    assert await rows(binary, everybody) == [ids[0], ids[2]]
    await binary.reap()
    assert await rows(binary, everybody) == [ids[0]]


async def test_what_is_bound_to_an_instance_that_is_not_known_any_more_is_released(connect: Connect) -> None:
    binary, forgotten = await connect(), await connect(instance=QUIET)
    (key,) = await store_many(binary, 1)
    await forgotten.register_reference(key, holder="node", bound=True)
    await change(binary, "DELETE FROM bdr.engine_instance WHERE instance_id = :id", id=forgotten.engine.instance_id)
    assert (await binary.reap()).holders == 1
    assert await binary.get_holders(key) == []
