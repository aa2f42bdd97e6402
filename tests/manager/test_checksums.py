"""What is wrong with an object is said as it is: other bytes, none at all, or gone with its reference."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import bdr
from bdr import BinaryDataLifecycleManager
from bdr.manager.reader import PIECE
from tests.fixtures.engines import Connect
from tests.fixtures.proxy import TcpProxy
from tests.guarantees import violations
from tests.lifecycle.conftest import ConnectThrough
from tests.lifecycle.support import change
from tests.manager.support import NEVER, HeldAnswer, object_file, records
from tests.storage.helpers import root_of

SMALL = b"The quick brown fox."
# Three pieces, read and verified one after the other.
LARGE = bytes(range(256)) * (2 * PIECE // 256) + b"the end"


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def extend(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"!")


def alter(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def empty(file: Path) -> None:
    os.truncate(file, 0)


DAMAGE = pytest.mark.parametrize("damage", [truncate, extend, alter, empty])
SIZES = pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])


@pytest.fixture
async def binary(connect: Connect) -> BinaryDataLifecycleManager:
    """An engine whose storage is damaged on purpose: the guarantees are not checked at its end."""
    return await connect()


@DAMAGE
@SIZES
async def test_a_full_read_never_gives_other_bytes(
    binary: BinaryDataLifecycleManager, damage: Callable[[Path], None], data: bytes
) -> None:
    key = (await binary.store_data(data)).file_key
    damage(await object_file(binary, key))
    for _ in range(2):
        with pytest.raises(bdr.Corrupt, match=r"other bytes|bytes; \d+ were stored|ends before|shorter"):
            await binary.get_data(key)
    assert [status for status, _, _ in await records(binary, "retrieve")] == ["failed", "failed"]


@pytest.mark.parametrize("damage", [truncate, alter, empty])
@SIZES
async def test_a_stream_ends_with_an_error_instead_of_the_last_piece(
    binary: BinaryDataLifecycleManager, damage: Callable[[Path], None], data: bytes
) -> None:
    key = (await binary.store_data(data)).file_key
    damage(await object_file(binary, key))
    got = bytearray()

    async def read_on(reader: bdr.BinaryDataReader) -> None:
        async for part in reader:
            got.extend(part)

    async with binary.open(key) as reader:
        # The second try does not give the rest either, nor does one from the beginning.
        for _ in range(2):
            with pytest.raises(bdr.Corrupt):
                await read_on(reader)
        before = len(got)
        await reader.seek(0)
        with pytest.raises(bdr.Corrupt):
            await reader.read(1 if damage is alter else -1)
    assert data.startswith(got)
    assert before == (2 * PIECE if data is LARGE and damage is not empty else 0)


async def test_a_stream_of_an_object_that_was_extended_gives_what_was_stored(
    binary: BinaryDataLifecycleManager,
) -> None:
    key = (await binary.store_data(SMALL)).file_key
    extend(await object_file(binary, key))
    async with binary.open(key) as reader:
        assert await reader.read() == SMALL


@pytest.mark.parametrize("damage", [truncate, empty])
async def test_a_range_that_the_object_no_longer_has_is_an_error(
    binary: BinaryDataLifecycleManager, damage: Callable[[Path], None]
) -> None:
    key = (await binary.store_data(SMALL)).file_key
    damage(await object_file(binary, key))
    with pytest.raises(bdr.Corrupt):
        await binary.get_range(key, 10, 1000)
    if damage is truncate:
        assert await binary.get_range(key, 0, 5) == SMALL[:5]


READS = pytest.mark.parametrize("read", ["get_data", "open", "get_range"])


async def read_by(binary: BinaryDataLifecycleManager, read: str, key: str) -> bytes:
    if read == "get_range":
        return await binary.get_range(key, 0, len(SMALL))
    if read == "get_data":
        return await binary.get_data(key)
    async with binary.open(key) as reader:
        return await reader.read()


@READS
async def test_an_object_that_is_not_there_is_lost_and_its_reference_stays(
    binary: BinaryDataLifecycleManager, read: str
) -> None:
    key = (await binary.store_data(SMALL)).file_key
    file = await object_file(binary, key)
    file.unlink()
    with pytest.raises(bdr.Lost, match=f"'{key}'.*not in storage 'main'.*though the catalog holds") as raised:
        await read_by(binary, read, key)
    assert isinstance(raised.value, FileNotFoundError)
    assert not await binary.data_exists(key)
    assert (await binary.get_details(key)).ref_count == 1
    file.write_bytes(SMALL)
    assert await read_by(binary, read, key) == SMALL
    assert await violations(binary.engine.database, binary.engine.storages) == []


@READS
async def test_nothing_is_lost_in_a_storage_that_is_not_mounted(binary: BinaryDataLifecycleManager, read: str) -> None:
    key = (await binary.store_data(SMALL)).file_key
    storage = binary.engine.storage("main")
    assert isinstance(storage, bdr.OpenDalStorage)
    root = root_of(storage)
    shutil.move(root, root.with_name("elsewhere"))
    root.mkdir()
    with pytest.raises(bdr.StorageUnavailable, match="not mounted"):
        await read_by(binary, read, key)
    root.rmdir()
    shutil.move(root.with_name("elsewhere"), root)
    assert await read_by(binary, read, key) == SMALL


@pytest.fixture
async def reading(connect: Connect, connect_through: ConnectThrough) -> tuple[BinaryDataLifecycleManager, TcpProxy]:
    """An engine called `reader` whose answers from the catalog can be held back, with its statement prepared."""
    reader, proxy = await connect_through(
        access=NEVER, instance=bdr.InstanceConfig(name="reader"), database=bdr.DatabaseConfig(pool_size=1)
    )
    key = (await reader.store_data(b"warm")).file_key
    assert await reader.data_exists(key)
    async with reader.open(key):
        pass
    return reader, proxy


@READS
async def test_what_another_engine_deletes_between_look_and_read_is_gone(
    binary: BinaryDataLifecycleManager, reading: tuple[BinaryDataLifecycleManager, TcpProxy], read: str
) -> None:
    reader, proxy = reading
    key = (await binary.store_data(SMALL)).file_key
    held = HeldAnswer(proxy, binary, "reader")
    await held.prepare()
    task = asyncio.create_task(read_by(reader, read, key))
    await held.given()
    await binary.delete_data(key)
    proxy.resume()
    with pytest.raises(bdr.Gone, match="was deleted while it was being read"):
        await task


@READS
async def test_what_was_moved_between_look_and_read_is_read_from_its_new_place(
    binary: BinaryDataLifecycleManager, reading: tuple[BinaryDataLifecycleManager, TcpProxy], read: str
) -> None:
    reader, proxy = reading
    key = (await binary.store_data(SMALL)).file_key
    file = await object_file(binary, key)
    held = HeldAnswer(proxy, binary, "reader")
    await held.prepare()
    task = asyncio.create_task(read_by(reader, read, key))
    await held.given()
    file.rename(file.with_name("moved"))
    await change(binary, "UPDATE bdr.blob SET object_path = left(object_path, 3) || 'moved' WHERE size = 20")
    proxy.resume()
    assert await task == SMALL


async def test_what_was_moved_and_is_not_there_either_is_lost(
    binary: BinaryDataLifecycleManager, reading: tuple[BinaryDataLifecycleManager, TcpProxy]
) -> None:
    reader, proxy = reading
    key = (await binary.store_data(SMALL)).file_key
    file = await object_file(binary, key)
    held = HeldAnswer(proxy, binary, "reader")
    await held.prepare()
    task = asyncio.create_task(reader.get_data(key))
    await held.given()
    file.unlink()
    await change(binary, "UPDATE bdr.blob SET object_path = left(object_path, 3) || 'moved' WHERE size = 20")
    proxy.resume()
    with pytest.raises(bdr.Lost, match="moved"):
        await task


async def test_a_stream_whose_reference_is_deleted_on_the_way_is_gone(
    connect: Connect, binary: BinaryDataLifecycleManager
) -> None:
    key = (await binary.store_data(LARGE * 2)).file_key
    other = await connect()
    async with binary.open(key) as reader:
        assert await reader.read(100) == LARGE[:100]
        await other.delete_data(key)
        with pytest.raises(bdr.Gone):
            await reader.read()
