"""cleanup_data and delete_data: who may be deleted, and what is left when a storage is not there."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bdr import (
    BinaryDataLifecycleManager,
    BinaryStorageConfig,
    FileNotFound,
    LifecycleCleanupConfig,
    OutcomeUnknown,
    Pinned,
)
from tests.fixtures.engines import Connect
from tests.guarantees import objects_in
from tests.lifecycle.support import (
    blob_states,
    change,
    count_of,
    make_due,
    reference_row,
    rows,
    unmounted,
    until_quiet,
    until_waiting,
)

Binary = BinaryDataLifecycleManager
PIN = "UPDATE bdr.binary_data_reference SET pinned = true"


async def test_cleanup_deletes_at_zero_whatever_the_retention(connect: Connect) -> None:
    binary = await connect(lifecycle=LifecycleCleanupConfig(zero_ref_retention=None, max_retention=None))
    key = (await binary.store_data(b"x")).file_key
    await binary.release_reference(key)
    assert await binary.cleanup_data(key) is True
    assert (await count_of(binary, key), await blob_states(binary)) == (None, [])
    assert await objects_in(binary.engine.storage("main")) == set()
    with pytest.raises(FileNotFound):
        await binary.get_data(key)


@pytest.mark.parametrize("pinned", [False, True])
async def test_cleanup_leaves_what_is_referenced_as_it_was(binary: Binary, pinned: bool) -> None:
    key = (await binary.store_data(b"x")).file_key
    await change(binary, f"UPDATE bdr.binary_data_reference SET pinned = {pinned}")
    before = await reference_row(binary, key)
    assert await binary.cleanup_data(key) is False
    assert await reference_row(binary, key) == before
    assert await binary.get_data(key) == b"x"


async def test_cleanup_leaves_what_is_pinned_as_it_was(binary: Binary) -> None:
    key = (await binary.store_data(b"x")).file_key
    await binary.release_reference(key)
    await change(binary, PIN)
    before = await reference_row(binary, key)
    assert await binary.cleanup_data(key) is False
    assert await reference_row(binary, key) == before


@pytest.mark.parametrize("count", [0, 1, 7])
async def test_delete_deletes_whatever_the_count(binary: Binary, count: int) -> None:
    key = (await binary.store_data(b"x")).file_key
    await change(binary, "UPDATE bdr.binary_data_reference SET ref_count = :n", n=count)
    await binary.delete_data(key)
    assert (await count_of(binary, key), await blob_states(binary)) == (None, [])
    assert await objects_in(binary.engine.storage("main")) == set()


async def test_what_is_pinned_is_only_deleted_by_force(binary: Binary) -> None:
    key = (await binary.store_data(b"x")).file_key
    await change(binary, PIN)
    before = await reference_row(binary, key)
    with pytest.raises(Pinned, match="force=True"):
        await binary.delete_data(key)
    assert await reference_row(binary, key) == before
    await binary.delete_data(key, force=True)
    assert await count_of(binary, key) is None
    assert await rows(binary, "SELECT detail FROM bdr.operation WHERE operation_type = 'delete'") == [
        ({"forced": True},)
    ]


async def test_a_delete_is_done_for_its_caller_though_the_storage_is_not_mounted(
    binary: Binary, fs_config: BinaryStorageConfig
) -> None:
    key = (await binary.store_data(b"x")).file_key
    with unmounted(fs_config):
        await binary.delete_data(key)
        assert await blob_states(binary) == ["deleting"]
        with pytest.raises(FileNotFound):
            await binary.get_data(key)
    await make_due(binary)
    assert (await binary.reap()).blobs == 1
    assert await objects_in(binary.engine.storage("main")) == set()


@pytest.mark.parametrize("verb", ["release", "cleanup", "delete"])
async def test_a_caller_cancelled_while_it_deletes_is_told_that_it_may_have_happened(
    connect: Connect, caller: AsyncEngine, verb: str
) -> None:
    binary = await connect(lifecycle=LifecycleCleanupConfig.model_validate({"zero_ref_retention": 0}))
    key = (await binary.store_data(b"x")).file_key
    if verb == "cleanup":
        await change(binary, "UPDATE bdr.binary_data_reference SET ref_count = 0")
    verbs: dict[str, Callable[[str], Awaitable[object]]] = {
        "release": binary.release_reference,
        "cleanup": binary.cleanup_data,
        "delete": binary.delete_data,
    }
    async with caller.begin() as own:
        await own.execute(text("SELECT FROM bdr.blob FOR UPDATE"))
        task = asyncio.ensure_future(verbs[verb](key))
        await until_waiting(binary)
        task.cancel()
        with pytest.raises(OutcomeUnknown) as caught:
            await task
    assert (caught.value.keys, caught.value.cancelled) == ((key,), True)
    await until_quiet(binary)
    assert (await count_of(binary, key), await blob_states(binary)) == (None, ["deleting"])
    await make_due(binary)
    await binary.reap()
    assert await objects_in(binary.engine.storage("main")) == set()
