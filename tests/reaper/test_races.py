"""A reaper against everybody else on one row: who locks first, and what each side then sees."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bdr import BinaryDataLifecycleManager, ReaperConfig, UploadConfig
from bdr.catalog import blob, expiry, reference
from bdr.errors import FileNotFound, NotReferenced, OperationError
from tests.fixtures.engines import AT_ONCE, Connect
from tests.guarantees import objects_in
from tests.lifecycle.support import HeldSource, blob_states, count_of, make_due, until_waiting
from tests.reaper.support import EAGER, expired, keys_left

Claim = Callable[[AsyncConnection], Awaitable[Any]]
SECOND = "second00000000000000000000"
ANOTHER_REFERENCE = text(f"""
    INSERT INTO bdr.binary_data_reference
        (file_key, blob_id, mime_kind, file_size, ref_count, created_at, last_access_at, zero_ref_retention)
    SELECT '{SECOND}', blob_id, mime_kind, file_size, :held, created_at, last_access_at, zero_ref_retention
    FROM bdr.binary_data_reference WHERE file_key = :key
""")


async def claim_expired(own: AsyncConnection) -> list[str]:
    return [one.file_key for one in (await expiry.claim_expired(own, "main", 100)).references]


async def claim_stranded(own: AsyncConnection) -> int:
    return await blob.claim_stranded(own, "main", AT_ONCE, 100)


@asynccontextmanager
async def held_open(caller: AsyncEngine, claim: Claim) -> AsyncIterator[tuple[AsyncConnection, Any]]:
    """What a reaper claims, in a transaction that the block ends, or else rolls back."""
    async with caller.connect() as own:
        yield own, await claim(own)


@pytest.mark.parametrize("committed", [True, False])
async def test_a_register_that_is_first_is_skipped_and_saves_the_reference_if_it_commits(
    binary: BinaryDataLifecycleManager, caller: AsyncEngine, committed: bool
) -> None:
    (key,) = await expired(binary)
    async with caller.connect() as own:
        assert await binary.register_reference(key, connection=own) == 1
        # Not waited for: the transaction is still open while the whole pass runs.
        assert (await binary.reap()).is_empty
        await (own.commit() if committed else own.rollback())
    assert (await binary.reap()).references == (0 if committed else 1)
    assert await count_of(binary, key) == (1 if committed else None)


@pytest.mark.parametrize("call", ["register_reference", "release_reference"])
@pytest.mark.parametrize("committed", [True, False])
async def test_a_count_that_comes_second_waits_and_finds_what_the_claim_left(
    binary: BinaryDataLifecycleManager, caller: AsyncEngine, call: str, committed: bool
) -> None:
    (key,) = await expired(binary)
    async with held_open(caller, claim_expired) as (own, claimed):
        assert claimed == [key]
        counting = asyncio.create_task(getattr(binary, call)(key))
        await until_waiting(binary)
        await (own.commit() if committed else own.rollback())
    if committed:
        with pytest.raises(FileNotFound):
            await counting
    elif call == "register_reference":
        assert await counting == 1
    else:
        with pytest.raises(NotReferenced):
            await counting


async def test_a_reader_waits_for_no_claim_and_its_access_time_comes_too_late(
    binary: BinaryDataLifecycleManager, caller: AsyncEngine
) -> None:
    (key,) = await expired(binary)
    async with held_open(caller, claim_expired) as (own, claimed):
        assert claimed == [key]
        assert await binary.get_data(key) == b"file 0"
        await binary.access.flush()
        await own.commit()
    assert (await binary.reap()).blobs == 1
    await binary.access.flush()
    assert await keys_left(binary) == set()


async def test_a_long_transaction_keeps_its_own_keys_and_no_others(
    binary: BinaryDataLifecycleManager, caller: AsyncEngine
) -> None:
    busy, *others = await expired(binary, 5)
    async with caller.begin() as own:
        await binary.register_reference(busy, connection=own)
        assert (await binary.reap()).references == len(others)
    assert await keys_left(binary) == {busy}


async def test_an_upload_that_publishes_first_is_skipped(connect: Connect, caller: AsyncEngine) -> None:
    # Its deadline has passed before it publishes.
    binary = await connect(upload=UploadConfig(lease=timedelta(milliseconds=1), reserve_ahead=0))
    async with caller.begin() as own:
        stored = await binary.store_data(b"data", connection=own)
        assert await blob_states(binary) == ["pending"]
        assert (await binary.reap()).is_empty
    assert await blob_states(binary) == ["live"]
    assert await binary.get_data(stored.file_key) == b"data"


@pytest.mark.parametrize("committed", [True, False])
async def test_an_upload_that_publishes_second_fails_exactly_if_the_reaper_has_it(
    connect: Connect, caller: AsyncEngine, committed: bool
) -> None:
    binary = await connect(reaper=EAGER)
    source = HeldSource()
    storing = asyncio.create_task(binary.store_stream(source.chunks()))
    await source.begun.wait()
    await make_due(binary)
    async with held_open(caller, claim_stranded) as (own, stranded):
        assert stranded == 1
        source.go_on.set()
        await until_waiting(binary)
        await (own.commit() if committed else own.rollback())
    if committed:
        with pytest.raises(OperationError, match="deadline"):
            await storing
        assert await blob_states(binary) == ["deleting"]
        assert (await binary.reap()).blobs == 1
        assert await objects_in(binary.engine.storage("main")) == set()
    else:
        assert (await storing).file_size == sum(map(len, source.parts))
        assert await blob_states(binary) == ["live"]


async def test_a_second_reference_that_is_being_inserted_keeps_its_blob(
    binary: BinaryDataLifecycleManager, caller: AsyncEngine
) -> None:
    (key,) = await expired(binary)
    async with caller.begin() as own:
        await own.execute(ANOTHER_REFERENCE, {"key": key, "held": 1})
        assert (await binary.reap()).is_empty
    report = await binary.reap()
    assert (report.references, report.blobs) == (1, 0)
    assert await blob_states(binary) == ["live"]
    assert await keys_left(binary) == {SECOND}


async def test_a_second_reference_is_refused_once_the_claim_has_the_blob(
    binary: BinaryDataLifecycleManager, caller: AsyncEngine
) -> None:
    (key,) = await expired(binary)
    async with held_open(caller, claim_expired) as (own, _), caller.connect() as other:
        inserting = asyncio.create_task(other.execute(ANOTHER_REFERENCE, {"key": key, "held": 1}))
        await until_waiting(binary)
        await own.commit()
        with pytest.raises(IntegrityError, match="fk_binary_data_reference_blob"):
            await inserting
    assert (await binary.reap()).blobs == 1


async def test_a_second_reference_lives_when_the_claim_is_rolled_back(
    binary: BinaryDataLifecycleManager, caller: AsyncEngine
) -> None:
    (key,) = await expired(binary)
    async with held_open(caller, claim_expired) as (own, _), caller.connect() as other:
        inserting = asyncio.create_task(other.execute(ANOTHER_REFERENCE, {"key": key, "held": 1}))
        await until_waiting(binary)
        await own.rollback()
        await inserting
        await other.commit()
    report = await binary.reap()
    assert (report.references, report.blobs) == (1, 0)
    assert await keys_left(binary) == {SECOND}


async def test_of_two_references_that_are_claimed_apart_the_second_takes_the_blob(
    binary: BinaryDataLifecycleManager, caller: AsyncEngine
) -> None:
    (key,) = await expired(binary)
    async with caller.begin() as own:
        await own.execute(ANOTHER_REFERENCE, {"key": key, "held": 0})

    async def claim_one(own: AsyncConnection) -> list[str]:
        return [one.file_key for one in (await expiry.claim_expired(own, "main", 1)).references]

    async with held_open(caller, claim_one) as (own, first):
        # The blob is locked with the first reference, so a reaper that comes for the second skips it.
        assert (await binary.reap()).is_empty
        await own.commit()
    assert await blob_states(binary) == ["live"]
    report = await binary.reap()
    assert (report.references, report.blobs) == (1, 1)
    assert len(first) == 1


@pytest.mark.parametrize("reaper_first", [True, False])
async def test_a_delete_of_the_other_reference_and_a_claim_leave_no_blob_behind(
    binary: BinaryDataLifecycleManager, caller: AsyncEngine, reaper_first: bool
) -> None:
    (key,) = await expired(binary)
    async with caller.begin() as own:
        await own.execute(ANOTHER_REFERENCE, {"key": key, "held": 1})

    async def remove_second(own: AsyncConnection) -> object:
        locked = await reference.lock(own, [SECOND])
        return await reference.remove(own, list(locked.values()), timedelta(minutes=5))

    if reaper_first:
        async with held_open(caller, claim_expired) as (own, claimed), caller.connect() as other:
            assert claimed == [key]
            removing = asyncio.create_task(remove_second(other))
            await until_waiting(binary)
            await own.commit()
            await removing
            await other.commit()
    else:
        async with held_open(caller, remove_second) as (own, orphaned):
            assert orphaned == []
            assert (await binary.reap()).is_empty
            await own.commit()
        assert (await binary.reap()).references == 1
    await make_due(binary)
    await binary.reap()
    assert await blob_states(binary) == []
    assert await objects_in(binary.engine.storage("main")) == set()


async def test_a_delete_that_stopped_half_way_belongs_to_nobody_else_until_its_lease_ends(
    connect: Connect, caller: AsyncEngine
) -> None:
    binary = await connect(reaper=ReaperConfig(lease=timedelta(hours=1)))
    (key,) = await expired(binary)

    async def remove(own: AsyncConnection) -> object:
        return await reference.remove(own, list((await reference.lock(own, [key])).values()), timedelta(hours=1))

    async with held_open(caller, remove) as (own, _):
        await own.commit()
    assert (await binary.reap()).is_empty
    await make_due(binary)
    assert (await binary.reap()).blobs == 1
