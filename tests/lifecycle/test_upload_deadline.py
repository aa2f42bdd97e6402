"""An upload against the reapers: whoever has the row first, nothing half done is published or left without an owner."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bdr import (
    BinaryDataLifecycleManager,
    BinaryDataReference,
    CatalogUnavailable,
    DatabaseConfig,
    OperationError,
    ReaperConfig,
    UploadConfig,
)
from bdr.catalog import blob
from bdr.catalog.blob import ClaimedBlob
from tests.fixtures.engines import AT_ONCE, Connect
from tests.guarantees import objects_in, violations
from tests.lifecycle.gate import closed_gate
from tests.lifecycle.support import HeldSource, blob_states, make_due, rows, until_waiting
from tests.storage.helpers import until

Binary = BinaryDataLifecycleManager
LEASE = timedelta(minutes=5)


@pytest.fixture
async def reaping(connect: Connect) -> Binary:
    """Another engine, whose reaper does not wait for late writes."""
    return await connect(reaper=ReaperConfig(write_grace=AT_ONCE))


async def begun(binary: Binary, source: HeldSource) -> "asyncio.Task[BinaryDataReference]":
    task = asyncio.create_task(binary.store_stream(source.chunks()))
    await source.begun.wait()
    return task


async def claim_stranded(reaping: Binary) -> None:
    """The first half of a pass, by hand: uploads past their deadline are given over to deletion."""
    stranded = await reaping.engine.database.write(lambda own: blob.claim_stranded(own, "main", AT_ONCE, 10))
    assert stranded == 1


async def claim_due(reaping: Binary) -> ClaimedBlob:
    """The second half, up to the claim."""
    (claimed,) = await reaping.engine.database.write(lambda own: blob.claim_due(own, "main", LEASE, 10))
    return claimed


async def fails_as_claimed(source: HeldSource, task: "asyncio.Task[BinaryDataReference]") -> None:
    source.go_on.set()
    with pytest.raises(OperationError, match="reaper has claimed it"):
        await task


async def assert_owned_then_reaped(binary: Binary, reaping: Binary) -> None:
    """One object, nothing published, a row that owns it; a later pass removes both."""
    assert await rows(binary, "SELECT file_key FROM bdr.binary_data_reference") == []
    assert await rows(binary, "SELECT status FROM bdr.operation WHERE operation_type = 'store'") == [("failed",)]
    assert len(await objects_in(binary.engine.storage("main"))) == 1
    assert await violations(binary.engine.database, binary.engine.storages) == []
    assert await blob_states(binary) == ["deleting"]
    # As long as what was written may still land.
    assert await rows(binary, "SELECT next_attempt_at > now() + interval '14 minutes' FROM bdr.blob") == [(True,)]
    await make_due(binary)
    assert (await reaping.reap()).blobs == 1
    assert (await blob_states(binary), await objects_in(binary.engine.storage("main"))) == ([], set())


@pytest.mark.both_majors
async def test_an_upload_whose_row_was_claimed_is_not_published(binary: Binary, reaping: Binary) -> None:
    source = HeldSource()
    task = await begun(binary, source)
    await make_due(binary)
    await claim_stranded(reaping)
    await fails_as_claimed(source, task)
    await assert_owned_then_reaped(binary, reaping)


@pytest.mark.both_majors
async def test_an_upload_whose_row_is_gone_gets_an_owner_again(binary: Binary, reaping: Binary) -> None:
    source = HeldSource()
    task = await begun(binary, source)
    await make_due(binary)
    assert (await reaping.reap()).blobs == 1
    assert await blob_states(binary) == []
    await fails_as_claimed(source, task)
    await assert_owned_then_reaped(binary, reaping)


@pytest.mark.both_majors
async def test_a_reaper_that_deleted_too_early_does_not_end_the_row(binary: Binary, reaping: Binary) -> None:
    source = HeldSource()
    task = await begun(binary, source)
    await make_due(binary)
    await claim_stranded(reaping)
    claimed = await claim_due(reaping)
    await reaping.engine.storage("main").delete(claimed.object_path)
    # Only now something is written; the reaper does not know of it.
    await fails_as_claimed(source, task)
    assert await reaping.engine.database.write(lambda own: blob.finish(own, [claimed])) == set()
    await assert_owned_then_reaped(binary, reaping)


async def test_a_reaper_that_comes_back_late_does_not_end_a_row_that_was_inserted_again(
    binary: Binary, reaping: Binary
) -> None:
    source = HeldSource()
    task = await begun(binary, source)
    await make_due(binary)
    await claim_stranded(reaping)
    late = await claim_due(reaping)
    # Its lease passes, another reaper is done with the row.
    await make_due(binary)
    assert (await reaping.reap()).blobs == 1
    await fails_as_claimed(source, task)
    assert await reaping.engine.database.write(lambda own: blob.finish(own, [late])) == set()
    await assert_owned_then_reaped(binary, reaping)


@pytest.mark.both_majors
async def test_an_upload_that_publishes_first_keeps_its_row(binary: Binary, reaping: Binary, database_url: str) -> None:
    source = HeldSource()
    task = await begun(binary, source)
    await make_due(binary)
    async with closed_gate(database_url) as gate:
        source.go_on.set()
        await gate.reached()
        # Its row is locked by the publish: nobody waits for it, nobody takes it.
        assert (await reaping.reap()).is_empty
        await gate.open()
        key = (await task).file_key
    assert (await reaping.reap()).is_empty
    assert await binary.get_data(key) == b"".join(source.parts)


async def test_an_upload_that_waits_for_a_claim_sees_it(binary: Binary, reaping: Binary, caller: AsyncEngine) -> None:
    source = HeldSource()
    task = await begun(binary, source)
    async with caller.connect() as own:
        await own.execute(text("UPDATE bdr.blob SET state = 'deleting'"))
        source.go_on.set()
        await until_waiting(binary)
        await own.commit()
    with pytest.raises(OperationError, match="reaper has claimed it"):
        await task
    await assert_owned_then_reaped(binary, reaping)


# Renewal


async def test_an_upload_under_way_renews_its_deadline(connect: Connect, reaping: Binary) -> None:
    binary = await connect(upload=UploadConfig(lease=timedelta(seconds=20), reserve_ahead=0))
    source = HeldSource()
    task = await begun(binary, source)
    ((first,),) = await rows(binary, "SELECT next_attempt_at FROM bdr.blob")
    # As if half of the lease had passed.
    (upload,) = binary.uploads._under_way.values()
    upload.renewed_at -= 11
    await binary.uploads.renew()
    ((second,),) = await rows(binary, "SELECT next_attempt_at FROM bdr.blob")
    assert second > first
    assert (await reaping.reap()).is_empty
    source.go_on.set()
    assert await binary.get_data((await task).file_key) == b"".join(source.parts)


async def test_an_upload_that_was_claimed_learns_of_it_at_its_next_chunk(connect: Connect, reaping: Binary) -> None:
    binary = await connect(upload=UploadConfig(lease=timedelta(seconds=20), reserve_ahead=0))
    source = HeldSource(b"x" * 10_000, b"y" * 10_000, b"z" * 10_000)
    task = await begun(binary, source)
    await make_due(binary)
    await claim_stranded(reaping)
    (upload,) = binary.uploads._under_way.values()
    upload.renewed_at -= 11

    async def is_lost() -> bool:
        return upload.lost

    await until(is_lost)
    source.go_on.set()
    with pytest.raises(OperationError, match="could not renew it"):
        await task
    # It had not written anything yet, but nobody can know that of every storage.
    assert await objects_in(binary.engine.storage("main")) == set()
    assert await blob_states(binary) == ["deleting"]


async def test_renewals_and_claims_at_once_agree_on_who_has_the_row(connect: Connect, reaping: Binary) -> None:
    binary = await connect(upload=UploadConfig(lease=timedelta(seconds=20), reserve_ahead=0))
    for _ in range(10):
        source = HeldSource()
        task = await begun(binary, source)
        await make_due(binary)
        (upload,) = binary.uploads._under_way.values()
        upload.renewed_at -= 11
        report, _ = await asyncio.gather(reaping.reap(), binary.uploads.renew())
        source.go_on.set()
        (end,) = await asyncio.gather(task, return_exceptions=True)
        if report.stranded:
            assert isinstance(end, OperationError)
        else:
            assert isinstance(end, BinaryDataReference)
    assert await violations(binary.engine.database, binary.engine.storages) == []


# In a caller's transaction, which holds the row instead of a deadline


async def test_an_upload_in_a_callers_transaction_is_not_renewed_and_needs_not_be(
    connect: Connect, reaping: Binary, caller: AsyncEngine
) -> None:
    binary = await connect(database=DatabaseConfig(lock_timeout=timedelta(milliseconds=50)))
    source = HeldSource()
    async with caller.connect() as own:
        task = asyncio.create_task(binary.store_stream(source.chunks(), connection=own))
        await source.begun.wait()
        (upload,) = binary.uploads._under_way.values()
        upload.renewed_at -= 1000
        # It would have to wait for the caller.
        await binary.uploads.renew()
        assert not upload.lost
        source.go_on.set()
        key = (await task).file_key
        await own.commit()
    assert await reaping.get_data(key) == b"".join(source.parts)


async def test_an_upload_whose_caller_lost_its_connection_gets_an_owner_again(
    binary: Binary, reaping: Binary, caller: AsyncEngine
) -> None:
    source = HeldSource()
    async with caller.connect() as own:
        pid = (await own.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        task = asyncio.create_task(binary.store_stream(source.chunks(), connection=own))
        await source.begun.wait()
        await rows(binary, "SELECT pg_terminate_backend(:pid, 10000)", pid=pid)
        await make_due(binary)
        assert (await reaping.reap()).blobs == 1
        source.go_on.set()
        with pytest.raises(CatalogUnavailable):
            await task
        await own.invalidate()
    await assert_owned_then_reaped(binary, reaping)


async def test_an_upload_that_fails_in_a_callers_transaction_leaves_it_usable_and_is_owned(
    binary: Binary, reaping: Binary, caller: AsyncEngine
) -> None:
    key = (await binary.store_data(b"x")).file_key
    async with caller.begin() as own:
        with pytest.raises(ZeroDivisionError):
            await binary.store_stream(raising(ZeroDivisionError()), connection=own)
        assert await binary.register_reference(key, connection=own) == 2
    assert await blob_states(binary) == ["live", "pending"]
    await make_due(binary)
    assert (await reaping.reap()).stranded == 1
    assert await blob_states(binary) == ["live"]


async def raising(error: Exception) -> AsyncIterator[bytes]:
    yield b"x" * 100_000
    raise error


# What is written down of a failure


@pytest.mark.parametrize("said", ["a NUL \0 in it", "half a character \ud800", "long " * 100_000])
async def test_an_error_that_postgresql_cannot_hold_is_written_down_as_far_as_it_can(binary: Binary, said: str) -> None:
    with pytest.raises(ValueError, match=r"NUL|half|long"):
        await binary.store_stream(raising(ValueError(said)))
    assert await blob_states(binary) == ["deleting"]
    found = await rows(binary, "SELECT status, error FROM bdr.operation UNION SELECT state, last_error FROM bdr.blob")
    assert sorted(status for status, _ in found) == ["deleting", "failed"]
    assert all(said[:5] in error for _, error in found)
