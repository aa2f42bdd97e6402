"""Progress as other engines see it, and records through outages of the database."""

import asyncio
import time
import uuid
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import bdr
from bdr import BinaryDataLifecycleManager, BinaryDataMetadata, OperationProgress
from bdr.manager import operations
from bdr.manager.operations import Operations
from tests.fixtures.engines import Connect
from tests.fixtures.proxy import TcpProxy
from tests.guarantees import violations
from tests.lifecycle.conftest import ConnectThrough, caller
from tests.lifecycle.support import HeldSource, change, rows, until_waiting
from tests.manager.support import NEVER, records, statements_of
from tests.storage.helpers import until

__all__ = ["caller"]

ID = uuid.UUID("0193a6b2-7c00-7000-8000-000000000002")
AT_ONCE = bdr.OperationsConfig(progress_interval=timedelta(0))
RARELY = bdr.OperationsConfig(progress_interval=timedelta(hours=1))
PARTS = (b"x" * 10_000, b"y" * 30_000)


def begun(binary: BinaryDataLifecycleManager, source: HeldSource, size: int | None) -> asyncio.Task[Any]:
    metadata = BinaryDataMetadata(file_size=size, namespace="n")
    return asyncio.create_task(binary.store_stream(source.chunks(), metadata, operation_id=ID))


@pytest.mark.parametrize("size", [40_000, None])
async def test_another_engine_sees_a_long_operation_while_it_runs_and_when_it_ends(
    connect: Connect, size: int | None
) -> None:
    binary, other = await connect(operations=AT_ONCE), await connect()
    source = HeldSource(*PARTS)
    storing = begun(binary, source, size)

    async def seen() -> OperationProgress | None:
        return await other.get_operation_progress(ID)

    async def halfway() -> bool:
        found = await seen()
        return found is not None and found.processed_bytes == 10_000

    await source.begun.wait()
    await until(halfway)
    found = await seen()
    assert found is not None
    assert (found.operation_type, found.status, found.total_bytes, found.error) == ("store", "running", size, None)
    assert found.completion_percentage == (25.0 if size else None)
    assert (found.estimated_remaining_time is not None) == (size is not None)
    assert found.elapsed > timedelta(0)
    assert (await other.get_stats()).running_operations == 1
    source.go_on.set()
    reference = await storing
    ended = await seen()
    assert ended is not None
    assert (ended.status, ended.processed_bytes, ended.is_completed) == ("succeeded", 40_000, True)
    assert ended.started_at == found.started_at
    assert await rows(other, "SELECT file_key, namespace FROM bdr.operation") == [(reference.file_key, "n")]


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_another_engine_sees_how_a_long_operation_went_wrong(connect: Connect, how: str) -> None:
    binary, other = await connect(operations=AT_ONCE), await connect()
    source = HeldSource(*PARTS)
    storing = begun(binary, source, 15_000 if how == "failed" else None)
    await source.begun.wait()
    await binary.operations.flush()
    if how == "cancelled":
        storing.cancel()
    source.go_on.set()
    await asyncio.wait([storing])
    found = await other.get_operation_progress(ID)
    assert found is not None
    assert (found.status, found.processed_bytes) == (how, 10_000)
    assert str(found.error).startswith("file_size says 15000 bytes" if how == "failed" else "CancelledError")


async def test_progress_is_written_at_most_once_an_interval(connect: Connect) -> None:
    binary = await connect(operations=bdr.OperationsConfig(progress_interval=timedelta(milliseconds=200)), access=NEVER)
    source = HeldSource(*PARTS)
    storing = begun(binary, source, None)
    await source.begun.wait()
    written = statements_of(binary, "INSERT INTO bdr.operation ")
    beginning = asyncio.get_running_loop().time()
    while not written or asyncio.get_running_loop().time() - beginning < 1:
        await binary.operations.flush()
    took = asyncio.get_running_loop().time() - beginning
    assert 1 <= len(written) <= took / 0.2 + 1
    source.go_on.set()
    await storing


async def test_what_ends_within_the_interval_is_never_shown_as_running(connect: Connect) -> None:
    binary = await connect(operations=RARELY, access=NEVER)
    source = HeldSource(*PARTS)
    storing = begun(binary, source, None)
    await source.begun.wait()
    await binary.operations.flush()
    assert await rows(binary, "SELECT * FROM bdr.operation") == []
    source.go_on.set()
    await storing
    assert await records(binary, "store") == [("succeeded", 40_000, None)]


async def test_all_long_operations_are_written_in_one_statement(connect: Connect) -> None:
    binary = await connect(operations=AT_ONCE, access=NEVER)
    sources = [HeldSource(*PARTS) for _ in range(5)]
    storing = [asyncio.create_task(binary.store_stream(source.chunks())) for source in sources]
    await asyncio.gather(*(source.begun.wait() for source in sources))
    written = statements_of(binary, "INSERT INTO bdr.operation ")
    await binary.operations.flush()
    assert len(written) == 1
    assert await rows(binary, "SELECT status, processed_bytes FROM bdr.operation") == [("running", 10_000)] * 5
    for source in sources:
        source.go_on.set()
    await asyncio.gather(*storing)


async def test_the_running_rows_of_an_engine_that_was_killed_are_failed_by_a_reaper(connect: Connect) -> None:
    binary = await connect(operations=AT_ONCE, access=NEVER)
    other = await connect()
    source = HeldSource(*PARTS)
    storing = begun(binary, source, None)
    await source.begun.wait()
    await binary.operations.flush()
    # All that the others ever see of a death.
    await change(
        other,
        "UPDATE bdr.engine_instance SET stopped_at = now() WHERE instance_id = :dead",
        dead=binary.engine.instance_id,
    )
    await other.reap()
    found = await other.get_operation_progress(ID)
    assert found is not None
    assert (found.status, found.error) == ("failed", "its engine stopped without finishing it")
    source.go_on.set()
    await storing
    # What the engine believes of itself no longer counts.
    await binary.operations.flush()
    assert (await other.get_operation_progress(ID)) == found


async def test_an_engine_that_was_declared_dead_serves_no_more(connect: Connect) -> None:
    instance = bdr.InstanceConfig(heartbeat_interval=timedelta(milliseconds=50), timeout=timedelta(minutes=1))
    binary, other = await connect(instance=instance), await connect()
    await change(
        other,
        "UPDATE bdr.engine_instance SET stopped_at = now() WHERE instance_id = :dead",
        dead=binary.engine.instance_id,
    )

    async def closed() -> bool:
        return binary.engine._closed is not None

    await until(closed)
    with pytest.raises(bdr.InstanceClosed, match="was declared dead"):
        await binary.data_exists("0" * 26)


@pytest.fixture
async def cut_off(connect_through: ConnectThrough) -> tuple[BinaryDataLifecycleManager, TcpProxy]:
    """An engine whose way to the database can be closed, and that gives up soon when it is."""
    short = timedelta(seconds=2)
    database = bdr.DatabaseConfig(pool_size=2, connect_timeout=short, statement_timeout=short, pool_timeout=short)
    return await connect_through(database=database)


async def test_records_and_access_times_survive_an_outage_of_the_database(
    cut_off: tuple[BinaryDataLifecycleManager, TcpProxy], connect: Connect
) -> None:
    binary, proxy = cut_off
    other = await connect()
    keys = [(await other.store_data(bytes([number]) * 10)).file_key for number in range(5)]
    await change(other, "UPDATE bdr.binary_data_reference SET last_access_at = '2020-01-01'")
    async with binary.open(keys[0]) as reader:
        proxy.stop()
        assert await reader.read() == b"\x00" * 10
        with pytest.raises(bdr.CatalogUnavailable):
            await binary.get_data(keys[1])
    for step in (binary.operations.flush, binary.access.flush):
        with pytest.raises(bdr.CatalogUnavailable):
            await step()
    await proxy.start()
    for key in keys[1:]:
        await binary.get_data(key)
    await binary.operations.flush()
    await binary.access.flush()
    assert await records(other, "retrieve") == [("succeeded", 10, None)] * 5
    assert await rows(
        other, "SELECT count(*) FROM bdr.binary_data_reference WHERE last_access_at > now() - interval '5 minutes'"
    ) == [(5,)]


async def test_a_store_that_failed_in_an_outage_is_recorded_after_it(
    cut_off: tuple[BinaryDataLifecycleManager, TcpProxy], connect: Connect
) -> None:
    binary, proxy = cut_off
    other = await connect()
    source = HeldSource(*PARTS)
    storing = begun(binary, source, None)
    await source.begun.wait()
    proxy.stop()
    source.go_on.set()
    with pytest.raises((bdr.CatalogUnavailable, bdr.OutcomeUnknown)):
        await storing
    await proxy.start()
    assert [status for status, _, _ in await records(binary, "store")] == ["failed"]
    assert await violations(other.engine.database, other.engine.storages) == []


async def test_a_record_that_had_to_wait_keeps_its_own_times(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = await connect(access=NEVER)
    key = (await binary.store_data(b"hello")).file_key
    await binary.get_data(key)
    later = time.monotonic() + 300
    monkeypatch.setattr("bdr.manager.operations.time.monotonic", lambda: later)
    await binary.operations.flush()
    monkeypatch.undo()
    ((ended, took),) = await rows(
        binary,
        """SELECT now() - finished_at BETWEEN interval '299 s' AND interval '400 s', finished_at - started_at
           FROM bdr.operation WHERE operation_type = 'retrieve'""",
    )
    assert ended
    assert timedelta(0) <= took < timedelta(seconds=60)


async def test_the_memory_for_records_that_wait_is_bounded_and_the_newest_are_kept(
    cut_off: tuple[BinaryDataLifecycleManager, TcpProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    binary, proxy = cut_off
    monkeypatch.setattr(operations, "_LIMIT", 10)
    apart = Operations(binary.engine.database, binary.engine.instance_id, timedelta(seconds=1))
    for number in range(25):
        with await apart.begin("retrieve", total_bytes=number) as running:
            running.advance(number)
    assert len(apart._waiting) == 10
    proxy.stop()
    with pytest.raises(bdr.CatalogUnavailable):
        await apart.flush()
    with await apart.begin("retrieve", total_bytes=25) as running:
        running.advance(25)
    assert len(apart._waiting) == 10
    await proxy.start()
    await apart.flush()
    assert await records(binary, "retrieve") == [("succeeded", number, None) for number in range(16, 26)]


async def test_a_record_that_is_being_written_is_found(connect: Connect, caller: AsyncEngine) -> None:
    binary = await connect(access=NEVER)
    key = (await binary.store_data(b"hello")).file_key
    await binary.get_data(key, operation_id=ID)
    async with caller.begin() as connection:
        await connection.execute(text("LOCK TABLE bdr.operation IN SHARE MODE"))
        writing = asyncio.create_task(binary.operations.flush())
        await until_waiting(binary)
        assert not binary.operations._waiting
        asking = asyncio.create_task(binary.get_operation_progress(ID))
        counting = asyncio.create_task(binary.get_stats())
        done, _ = await asyncio.wait([asking, counting], timeout=0.1)
        assert not done
    found = await asking
    assert found is not None
    assert found.status == "succeeded"
    assert (await counting).total_bytes_processed == 10
    await writing


async def test_what_one_record_cannot_hold_does_not_keep_the_others_from_being_written(
    binary: BinaryDataLifecycleManager,
) -> None:
    key = (await binary.store_data(b"hello")).file_key
    running = await binary.operations.begin("retrieve", file_key=key)
    error = ValueError("\x00 and half a \ud800 character, " + "x" * 100_000)
    running.__exit__(ValueError, error, None)
    await binary.get_data(key)
    assert [status for status, _, _ in await records(binary, "retrieve")] == ["failed", "succeeded"]
    ((length,),) = await rows(binary, "SELECT max(length(error)) FROM bdr.operation")
    assert length < 10_000
