"""Callers' transactions against others: old snapshots, savepoints, and callers who never come back."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bdr import (
    BinaryDataLifecycleManager,
    Busy,
    CatalogUnavailable,
    DatabaseConfig,
    FileNotFound,
    OperationError,
    ReaperConfig,
    TransactionConflict,
)
from tests.fixtures.engines import AT_ONCE, Connect
from tests.guarantees import objects_in
from tests.lifecycle.support import blob_states, count_of, make_due, rows, set_count, until_waiting
from tests.lifecycle.test_callers_transaction import ALL, VERBS, transaction

Binary = BinaryDataLifecycleManager
STRICT = ("REPEATABLE READ", "SERIALIZABLE")
COUNTED = {name: ALL[name] for name in ("register", "release", "cleanup", "delete")}


@pytest.fixture
async def reaping(connect: Connect) -> Binary:
    """Another engine, whose reaper does not wait for late writes."""
    return await connect(reaper=ReaperConfig(write_grace=AT_ONCE))


@pytest.mark.both_majors
@pytest.mark.parametrize("level", STRICT)
async def test_a_snapshot_older_than_a_change_is_a_conflict_not_a_wrong_count(
    binary: Binary, caller: AsyncEngine, level: str
) -> None:
    for number, verb in enumerate(COUNTED.values(), start=1):
        key = (await binary.store_data(b"x")).file_key
        async with transaction(caller, "connection", level) as own:
            await own.execute(text("SELECT"))
            assert await binary.register_reference(key) == 2
            with pytest.raises(TransactionConflict, match="try it again"):
                await verb(binary, key, own)
            await own.rollback()
        assert await count_of(binary, key) == 2, number


@pytest.mark.both_majors
@pytest.mark.parametrize("level", STRICT)
async def test_a_snapshot_older_than_a_delete_is_a_conflict(binary: Binary, caller: AsyncEngine, level: str) -> None:
    for verb in COUNTED.values():
        key = (await binary.store_data(b"x")).file_key
        async with transaction(caller, "connection", level) as own:
            await own.execute(text("SELECT"))
            await binary.delete_data(key)
            with pytest.raises(TransactionConflict):
                await verb(binary, key, own)
            await own.rollback()


@pytest.mark.both_majors
@pytest.mark.parametrize("level", STRICT)
async def test_a_snapshot_that_waited_for_a_change_is_a_conflict(
    binary: Binary, caller: AsyncEngine, level: str
) -> None:
    key = (await binary.store_data(b"x")).file_key
    async with transaction(caller, "connection", "READ COMMITTED") as first:
        assert await binary.register_reference(key, connection=first) == 2
        async with transaction(caller, "connection", level) as second:
            waiting = asyncio.create_task(binary.release_reference(key, connection=second))
            await until_waiting(binary)
            await first.commit()
            with pytest.raises(TransactionConflict):
                await waiting
            await second.rollback()
    assert await count_of(binary, key) == 2


@pytest.mark.both_majors
@pytest.mark.parametrize("level", STRICT)
async def test_a_snapshot_older_than_the_store_itself_is_a_conflict_before_anything_is_written(
    binary: Binary, caller: AsyncEngine, level: str
) -> None:
    async with transaction(caller, "connection", level) as own:
        await own.execute(text("SELECT"))
        with pytest.raises(TransactionConflict, match="first statement"):
            await binary.store_data(b"x", connection=own)
        assert (await own.execute(text("SELECT 1"))).scalar_one() == 1
        await own.rollback()
    assert await objects_in(binary.engine.storage("main")) == set()
    assert await blob_states(binary) == ["deleting"]
    assert await rows(binary, "SELECT status FROM bdr.operation") == [("failed",)]
    # Nothing was written, so nothing can land late.
    assert (await binary.reap()).blobs == 1
    assert await blob_states(binary) == []


async def test_at_read_committed_a_transaction_stores_as_often_as_it_likes(binary: Binary, caller: AsyncEngine) -> None:
    async with caller.begin() as own:
        await own.execute(text("SELECT"))
        keys = [(await binary.store_data(bytes([n]), connection=own)).file_key for n in range(3)]
        assert await binary.register_reference(keys[0], connection=own) == 2
        await binary.delete_data(keys[1], connection=own)
    assert [await count_of(binary, key) for key in keys] == [2, 0, 1]


# Savepoints


async def test_a_savepoint_takes_back_what_was_counted_since(binary: Binary, caller: AsyncEngine) -> None:
    key = (await binary.store_data(b"x")).file_key
    async with caller.begin() as own:
        assert await binary.register_reference(key, connection=own) == 2
        savepoint = await own.begin_nested()
        assert await binary.register_reference(key, connection=own) == 3
        await binary.delete_data(key, connection=own)
        await savepoint.rollback()
        assert await binary.release_reference(key, connection=own) == 1
        async with own.begin_nested():
            assert await binary.register_reference(key, connection=own) == 2
    assert await count_of(binary, key) == 2
    assert await rows(binary, "SELECT expires_at > now() FROM bdr.binary_data_reference") == [(True,)]


async def test_a_savepoint_takes_back_a_store_and_a_reaper_removes_it(
    binary: Binary, reaping: Binary, caller: AsyncEngine
) -> None:
    async with caller.begin() as own:
        kept = (await binary.store_data(b"kept", connection=own)).file_key
        savepoint = await own.begin_nested()
        taken_back = (await binary.store_data(b"taken back", connection=own)).file_key
        await savepoint.rollback()
        # Nothing holds that row any more, though the transaction goes on.
        await make_due(binary, but_locked=True)
        assert (await reaping.reap()).blobs == 1
    assert await binary.get_data(kept) == b"kept"
    assert await count_of(binary, taken_back) is None
    assert await blob_states(binary) == ["live"]


# Callers who are in the way, or gone


async def test_a_transaction_that_holds_a_reference_makes_others_wait_not_count_wrongly(
    binary: Binary, connect: Connect, caller: AsyncEngine
) -> None:
    hurried = await connect(database=DatabaseConfig(lock_timeout=timedelta(milliseconds=50)))
    key = (await binary.store_data(b"x")).file_key
    async with caller.begin() as own:
        assert await binary.register_reference(key, connection=own) == 2
        for call in (
            hurried.register_reference(key),
            hurried.release_reference(key),
            hurried.cleanup_data(key),
            hurried.delete_data(key),
        ):
            with pytest.raises(Busy, match="lock"):
                await call
        # Readers and reapers never wait.
        assert await hurried.get_data(key) == b"x"
        assert not (await hurried.reap()).references
    assert await count_of(binary, key) == 2


async def test_a_caller_who_goes_away_without_a_commit_has_changed_nothing(
    binary: Binary, reaping: Binary, caller: AsyncEngine
) -> None:
    keys = [(await binary.store_data(b"x")).file_key for _ in VERBS]
    for key, verb in zip(keys, VERBS, strict=True):
        await set_count(binary, key, verb.start)
    async with caller.connect() as own:
        stored = (await binary.store_data(b"y", connection=own)).file_key
        for key, verb in zip(keys, VERBS, strict=True):
            await verb.call(binary, key, own)
        # As if its process had died: no ROLLBACK is sent.
        await own.invalidate()
    assert await binary.release_reference(keys[0]) == 0
    assert [await count_of(binary, key) for key in keys[1:]] == [verb.start for verb in VERBS[1:]]
    assert await count_of(binary, stored) is None
    await make_due(binary)
    report = await reaping.reap()
    assert (report.references, report.stranded, report.blobs) == (0, 1, 1)
    assert await blob_states(binary) == ["live"] * len(keys)


async def test_a_transaction_that_has_failed_is_said_to_be_so(binary: Binary, caller: AsyncEngine) -> None:
    key = (await binary.store_data(b"x")).file_key
    async with caller.connect() as own:
        with pytest.raises(Exception, match="division"):
            await own.execute(text("SELECT 1 / 0"))
        for verb in ALL.values():
            with pytest.raises(OperationError, match="aborted"):
                await verb(binary, key, own)
        await own.rollback()
    assert await count_of(binary, key) == 1
    assert await objects_in(binary.engine.storage("main")) == {await _path_of(binary, key)}


async def _path_of(binary: Binary, key: str) -> str:
    return (await binary.get_details(key)).object_path


async def test_a_connection_lost_in_a_transaction_means_that_nothing_happened(
    binary: Binary, caller: AsyncEngine
) -> None:
    key = (await binary.store_data(b"x")).file_key
    for verb in COUNTED.values():
        async with caller.connect() as own:
            pid = (await own.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            await rows(binary, "SELECT pg_terminate_backend(:pid, 10000)", pid=pid)
            with pytest.raises(CatalogUnavailable):
                await verb(binary, key, own)
            await own.invalidate()
    assert await count_of(binary, key) == 1


async def test_a_reference_that_only_the_transaction_knows_is_not_found_by_others(
    binary: Binary, caller: AsyncEngine
) -> None:
    async with caller.begin() as own:
        key = (await binary.store_data(b"x", connection=own)).file_key
        with pytest.raises(FileNotFound):
            await binary.register_reference(key)
    assert await binary.register_reference(key) == 2
