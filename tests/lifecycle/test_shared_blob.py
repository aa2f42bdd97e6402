"""Several references to one blob: its bytes stay until the last of them is gone, and none comes too late."""

import asyncio
from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bdr import BinaryDataLifecycleManager, FileNotFound
from bdr.keys import new_file_key
from tests.fixtures.engines import Connect
from tests.guarantees import objects_in, violations
from tests.lifecycle.support import blob_states, change, count_of, rows, until_waiting

Binary = BinaryDataLifecycleManager
SHARE = text("""
    INSERT INTO bdr.binary_data_reference (file_key, blob_id, mime_kind, file_size, ref_count)
    SELECT :key, blob_id, mime_kind, file_size, 1 FROM bdr.binary_data_reference WHERE file_key = :first
""")
EXPIRE = "UPDATE bdr.binary_data_reference SET ref_count = 0, zero_ref_retention = interval '0'"


async def share(connection: AsyncConnection, first: str) -> str:
    """Another reference to the same blob."""
    key = new_file_key()
    await connection.execute(SHARE, {"key": key, "first": first})
    return key


@pytest.fixture
async def keys(binary: Binary) -> list[str]:
    """Two references to one blob."""
    first = (await binary.store_data(b"shared")).file_key
    return [first, await binary.engine.database.write(lambda own: share(own, first))]


async def assert_nothing_left(binary: Binary) -> None:
    assert await rows(binary, "SELECT file_key FROM bdr.binary_data_reference") == []
    assert await blob_states(binary) == []
    assert await objects_in(binary.engine.storage("main")) == set()


@pytest.mark.parametrize("first", [0, 1])
async def test_deleting_one_keeps_the_blob_and_deleting_both_removes_it(
    binary: Binary, keys: list[str], first: int
) -> None:
    await binary.delete_data(keys[first])
    with pytest.raises(FileNotFound):
        await binary.get_data(keys[first])
    assert await binary.get_data(keys[1 - first]) == b"shared"
    assert await blob_states(binary) == ["live"]
    await binary.delete_data(keys[1 - first])
    await assert_nothing_left(binary)


async def test_counts_of_references_to_one_blob_are_their_own(binary: Binary, keys: list[str]) -> None:
    assert await binary.register_reference(keys[0]) == 2
    assert await binary.release_reference(keys[1]) == 0
    assert await binary.cleanup_data(keys[1]) is True
    assert await count_of(binary, keys[0]) == 2
    assert await binary.get_data(keys[0]) == b"shared"


@pytest.mark.both_majors
async def test_of_two_deletes_at_once_the_second_removes_the_blob(
    binary: Binary, connect: Connect, caller: AsyncEngine, keys: list[str]
) -> None:
    other = await connect()
    async with caller.connect() as own:
        # Neither may delete before both have begun.
        await own.execute(text("SELECT FROM bdr.blob FOR UPDATE"))
        deletes = [
            asyncio.create_task(engine.delete_data(key)) for engine, key in zip((binary, other), keys, strict=True)
        ]
        await until_waiting(binary, 2)
        await own.rollback()
    await asyncio.gather(*deletes)
    await assert_nothing_left(binary)


@pytest.mark.both_majors
async def test_of_a_delete_and_a_reaper_at_once_one_removes_the_blob(
    binary: Binary, connect: Connect, caller: AsyncEngine, keys: list[str]
) -> None:
    other = await connect()
    await change(binary, f"{EXPIRE} WHERE file_key = :key", key=keys[1])
    async with caller.connect() as own:
        await own.execute(text("SELECT FROM bdr.blob FOR UPDATE"))
        deleting = asyncio.create_task(binary.delete_data(keys[0]))
        await until_waiting(binary)
        # The reaper waits for nobody: it leaves the reference for the next pass.
        assert (await other.reap()).references == 0
        await own.rollback()
    await deleting
    assert await blob_states(binary) == ["live"]
    assert (await other.reap()).references == 1
    await assert_nothing_left(binary)


async def test_deletes_and_reapers_at_once_never_strand_a_blob(binary: Binary, connect: Connect) -> None:
    other = await connect()
    for _ in range(15):
        first = (await binary.store_data(b"shared")).file_key
        shared = [await binary.engine.database.write(partial(share, first=first)) for _ in range(3)]
        await change(binary, f"{EXPIRE} WHERE file_key = any(:keys)", keys=shared[:2])
        await asyncio.gather(
            binary.delete_data(first), other.delete_data(shared[2]), binary.reap(), other.reap(), return_exceptions=True
        )
        assert await violations(binary.engine.database, binary.engine.storages) == []
    while (await other.reap()).references:
        continue
    await assert_nothing_left(binary)


@pytest.mark.both_majors
async def test_a_new_reference_to_a_blob_that_is_being_deleted_is_refused(
    binary: Binary, caller: AsyncEngine, keys: list[str]
) -> None:
    async with caller.connect() as deleting, caller.connect() as sharing:
        await deleting.execute(text("DELETE FROM bdr.binary_data_reference"))
        await deleting.execute(text("UPDATE bdr.blob SET state = 'deleting', next_attempt_at = now()"))
        # It still sees the references, and waits for the blob.
        late = asyncio.create_task(share(sharing, keys[0]))
        await until_waiting(binary)
        await deleting.commit()
        with pytest.raises(DBAPIError, match="fk_binary_data_reference_blob"):
            await late
    assert (await binary.reap()).blobs == 1
    await assert_nothing_left(binary)


@pytest.mark.both_majors
async def test_a_delete_that_waits_for_a_new_reference_keeps_the_blob(
    binary: Binary, caller: AsyncEngine, keys: list[str]
) -> None:
    async with caller.connect() as sharing:
        third = await share(sharing, keys[0])
        deletes = [asyncio.create_task(binary.delete_data(key)) for key in keys]
        await until_waiting(binary, 2)
        await sharing.commit()
    await asyncio.gather(*deletes)
    assert await binary.get_data(third) == b"shared"
    assert await blob_states(binary) == ["live"]


async def test_a_reaper_leaves_a_blob_to_which_a_reference_is_being_added(
    binary: Binary, caller: AsyncEngine, keys: list[str]
) -> None:
    await change(binary, EXPIRE)
    async with caller.connect() as sharing:
        third = await share(sharing, keys[0])
        assert (await binary.reap()).is_empty
        await sharing.commit()
    assert (await binary.reap()).references == 2
    assert await binary.get_data(third) == b"shared"


async def test_a_reference_to_a_blob_that_is_only_being_uploaded_is_refused(
    binary: Binary, caller: AsyncEngine, keys: list[str]
) -> None:
    pending = """
        INSERT INTO bdr.blob (blob_id, storage_name, object_path, state, instance_id, next_attempt_at)
        SELECT gen_random_uuid(), storage_name, 'nothing/there', 'pending', instance_id, now() FROM bdr.blob
        RETURNING blob_id
    """
    async with caller.connect() as own:
        blob_id = (await own.execute(text(pending))).scalar_one()
        with pytest.raises(DBAPIError, match="fk_binary_data_reference_blob"):
            await own.execute(text("UPDATE bdr.binary_data_reference SET blob_id = :id"), {"id": blob_id})
