"""What is not there says why: never known, deleted, expired, still being stored, lost. `explain` says it at length."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

import bdr
from bdr import BinaryDataLifecycleManager
from bdr.keys import new_file_key
from bdr.manager.explanation import State
from tests.fixtures.engines import AT_ONCE, SOON, Connect
from tests.storage.helpers import until


async def test_a_key_that_never_was_is_not_called_gone(binary: BinaryDataLifecycleManager) -> None:
    for key in (new_file_key(), "../etc/passwd", "a\0b", ""):
        with pytest.raises(bdr.FileNotFound, match="There is no reference") as error:
            await binary.get_data(key)
        assert not isinstance(error.value, bdr.Gone)
        assert (await binary.explain(key)).state is State.UNKNOWN


async def test_the_end_of_one_key_is_not_told_of_another(binary: BinaryDataLifecycleManager) -> None:
    await binary.delete_data((await binary.store_data(b"x")).file_key)
    await binary.operations.flush()
    never = new_file_key()
    with pytest.raises(bdr.FileNotFound, match="There is no reference"):
        await binary.get_data(never)
    assert (await binary.explain(never)).state is State.UNKNOWN


async def test_what_was_deleted_says_when_and_by_whom(binary: BinaryDataLifecycleManager, connect: Connect) -> None:
    other = await connect()
    key = (await binary.store_data(b"x")).file_key
    await binary.delete_data(key)
    for call in (other.get_data(key), other.register_reference(key), other.delete_data(key), other.get_metadata(key)):
        with pytest.raises(bdr.Gone, match=f"was deleted, on 20.* UTC by engine instance {binary.engine.instance_id}"):
            await call
    told = await other.explain(key)
    assert told.state is State.GONE
    assert told.details is None


@pytest.mark.parametrize(
    ("life", "release", "sentence"),
    [
        ({"max_retention": AT_ONCE}, False, "its max_retention was over"),
        ({"zero_ref_retention": timedelta(milliseconds=1)}, True, "nothing had referred to it"),
    ],
)
async def test_what_has_expired_says_by_which_rule(
    connect: Connect, life: dict[str, timedelta], release: bool, sentence: str
) -> None:
    binary = await connect(lifecycle=bdr.LifecycleCleanupConfig.model_validate({"max_retention": None} | life))
    key = (await binary.store_data(b"x")).file_key
    if release:
        await binary.release_reference(key)

    async def gone() -> bool:
        await binary.reap()
        return not await binary.data_exists(key)

    await until(gone)
    with pytest.raises(bdr.Gone, match=sentence):
        await binary.get_data(key)


async def test_what_was_in_the_memory_of_an_engine_that_stopped_says_so(connect: Connect, database_url: str) -> None:
    other = await connect()
    memory = bdr.BinaryStorageConfig(storage_type="memory")
    async with bdr.connect(database_url, storages={"scratch": memory}, default_storage="scratch") as binary:
        key = (await binary.store_data(b"x")).file_key
    with pytest.raises(bdr.Gone, match="was in the memory of an engine instance that has stopped"):
        await other.get_data(key)


async def test_what_is_still_being_stored_says_so_to_every_engine(connect: Connect) -> None:
    often = bdr.OperationsConfig(progress_interval=AT_ONCE)
    storing, other = await connect(operations=often, access=bdr.AccessConfig(flush_interval=SOON)), await connect()
    begun, going_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"x" * 10_000
        begun.set()
        await going_on.wait()
        yield b"y"

    upload = asyncio.create_task(storing.store_stream(slowly()))
    await begun.wait()
    (key,) = [one.file_key for one in storing.uploads._under_way.values()]

    async def told() -> bool:
        return (await other.explain(key)).state is State.STORING

    await until(told)
    with pytest.raises(bdr.StillStoring, match="is being stored"):
        await other.get_data(key)
    going_on.set()
    assert (await upload).file_key == key
    assert await other.get_data(key) == b"x" * 10_000 + b"y"


async def test_what_is_lost_is_not_called_gone(connect: Connect) -> None:
    binary = await connect()
    key = (await binary.store_data(b"precious")).file_key
    details = await binary.get_details(key)
    await binary.engine.storage(details.storage_name).delete(details.object_path)
    with pytest.raises(bdr.Lost):
        await binary.get_data(key)
    assert (await binary.explain(key)).state is State.LOST
    await binary.delete_data(key)


async def test_what_is_alive_says_who_holds_it_and_until_when(binary: BinaryDataLifecycleManager) -> None:
    key = (await binary.store_data(b"x")).file_key
    await binary.register_reference(key, holder="node-3", lease=timedelta(hours=1))
    await binary.register_reference(key, holder="node-4", bound=True)
    told = await binary.explain(key)
    assert told.state is State.ALIVE
    assert [one.holder for one in told.holders] == ["node-3", "node-4"]
    text = "\n".join(told.reasons)
    assert "1 of its 3 references are without a name" in text
    assert "'node-3' holds it since" in text
    assert f"bound to engine instance {binary.engine.instance_id}" in text
    assert "It may be reaped from" in text


async def test_what_is_pinned_says_so_and_stays(connect: Connect) -> None:
    binary = await connect(lifecycle=bdr.LifecycleCleanupConfig(max_retention=AT_ONCE))
    key = (await binary.store_data(b"x")).file_key
    await binary.pin(key)
    assert (await binary.reap()).references == 0
    assert "It is pinned" in "\n".join((await binary.explain(key)).reasons)
    with pytest.raises(bdr.Pinned):
        await binary.delete_data(key)
    await binary.unpin(key)
    assert (await binary.reap()).references == 1
    with pytest.raises(bdr.Gone):
        await binary.pin(key)
