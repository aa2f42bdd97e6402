"""What every storage does, whatever it is made of."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bdr.errors import Corrupt, FileNotFound, InstanceClosed, InvalidArgument, IoError, OperationError, StorageMismatch
from bdr.settings import BinaryStorageConfig
from bdr.storage import OpenDalStorage, StorageMarker, StoredObject
from bdr.storage.files import LARGEST_PART
from tests.fixtures.storages import MakeStorageConfig
from tests.storage.conftest import MakeStorage, OpenStorage

MiB = 1024 * 1024
SIZES = [0, 1, 4096, MiB - 1, MiB, 8 * MiB, 8 * MiB + 1, 20 * MiB + 17]


def content(size: int) -> bytes:
    return (b"0123456789abcdef!" * (size // 17 + 1))[:size]


async def in_chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def described(data: bytes) -> StoredObject:
    return StoredObject(len(data), hashlib.sha256(data).digest())


@pytest.mark.parametrize("size", [0, 4096, MiB, MiB + 1])
async def test_a_file_is_the_same_to_opendal_and_to_the_operating_system(make_storage: MakeStorage, size: int) -> None:
    storage = await make_storage("fs")
    await storage.store("ab/ours", content(size))
    assert await storage._operator.read("ab/ours") == content(size)
    await storage._operator.write("ab/theirs", content(size))
    assert await storage.retrieve("ab/theirs") == content(size)


async def test_a_file_system_that_takes_and_gives_in_parts_is_asked_for_the_rest(
    make_storage: MakeStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await make_storage("fs")
    write, pread = os.write, os.pread
    offsets = set[int]()

    def given(descriptor: int, size: int, offset: int) -> bytes:
        offsets.add(offset)
        return pread(descriptor, min(size, 1000), offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:1000]))
        patched.setattr(os, "pread", given)
        stored = await storage.store("ab/object", content(4096))
        assert await storage.retrieve("ab/object") == content(4096)
        assert await storage.retrieve_range("ab/object", 5, 2500) == content(4096)[5:2505]
        with pytest.raises(Corrupt):
            await storage.retrieve_range("ab/object", 3000, 2500)
    assert {0, 1000, 5, 1005, 2005, 3000, 4000} <= offsets
    assert stored == described(content(4096))
    assert await storage._operator.read("ab/object") == content(4096)


@pytest.mark.parametrize("length", [LARGEST_PART, LARGEST_PART + 1])
async def test_a_long_part_is_the_same_whoever_reads_it(make_storage: MakeStorage, length: int) -> None:
    storage = await make_storage("fs")
    await storage.store("ab/object", content(LARGEST_PART + 17))
    assert await storage.retrieve_range("ab/object", 3, length) == content(LARGEST_PART + 17)[3 : 3 + length]
    with pytest.raises(Corrupt):
        await storage.retrieve_range("ab/object", 18, length)


async def test_what_is_no_file_keeps_nobody_waiting(make_storage: MakeStorage, tmp_path: Path) -> None:
    storage = await make_storage("fs", root=str(tmp_path))
    (tmp_path / "ab").mkdir()
    os.mkfifo(tmp_path / "ab/pipe")
    for read in (partial(storage.retrieve, "ab/pipe"), partial(storage.retrieve_range, "ab/pipe", 0, 5)):
        async with asyncio.timeout(10):
            with pytest.raises(IoError):
                await read()


@pytest.mark.parametrize("size", SIZES)
async def test_what_was_stored_is_read_back(storage: OpenDalStorage, size: int) -> None:
    data = content(size)
    assert await storage.store("ab/object", data) == described(data)
    assert await storage.retrieve("ab/object") == data
    assert (await storage.get_metadata("ab/object")).size == size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunk", [1023, MiB, 30 * MiB])
async def test_a_stream_is_stored_whatever_its_chunks(storage: OpenDalStorage, size: int, chunk: int) -> None:
    data = content(size)
    assert await storage.store_stream("ab/object", in_chunks(data, chunk)) == described(data)
    assert await storage.retrieve("ab/object") == data


async def test_a_stream_that_yields_nothing_or_only_empty_chunks_is_an_empty_object(storage: OpenDalStorage) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b""

    assert await storage.store_stream("empty", nothing()) == described(b"")
    assert await storage.exists("empty")
    assert await storage.retrieve("empty") == b""


async def test_bytearray_and_memoryview_are_stored_and_other_things_refused(storage: OpenDalStorage) -> None:
    async def mixed() -> AsyncIterator[Any]:
        yield bytearray(b"ab")
        yield memoryview(b"cd")

    assert await storage.store_stream("mixed", mixed()) == described(b"abcd")

    async def text() -> AsyncIterator[Any]:
        yield "text"

    with pytest.raises(InvalidArgument, match="not str"):
        await storage.store_stream("text", text())
    with pytest.raises(InvalidArgument, match="not int"):
        await storage.store("text", 5)  # type: ignore[arg-type]  # bytes(5) would be five zeros
    assert not await storage.exists("text")


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, 1000), (999, 1), (10, 500), (1000, 0), (0, 0)])
async def test_a_range_is_exactly_what_was_asked_for(storage: OpenDalStorage, offset: int, length: int) -> None:
    data = content(1000)
    await storage.store("object", data)
    assert await storage.retrieve_range("object", offset, length) == data[offset : offset + length]


@pytest.mark.parametrize(("offset", "length"), [(0, 1001), (999, 2), (1000, 1), (5000, 10), (1001, 0)])
async def test_a_range_past_the_end_is_corrupt(storage: OpenDalStorage, offset: int, length: int) -> None:
    await storage.store("object", content(1000))
    with pytest.raises(Corrupt):
        await storage.retrieve_range("object", offset, length)


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, -1)])
async def test_a_negative_range_is_refused(storage: OpenDalStorage, offset: int, length: int) -> None:
    with pytest.raises(InvalidArgument, match="at least 0"):
        await storage.retrieve_range("object", offset, length)


async def test_what_is_not_there_is_not_found(storage: OpenDalStorage) -> None:
    await storage.store("ab/object", b"data")
    for path in ("ab/other", "other/object", "ab"):
        with pytest.raises(FileNotFound):
            await storage.get_metadata(path)
        with pytest.raises(FileNotFound):
            await storage.retrieve_range(path, 0, 0)
        assert not await storage.exists(path)
    for path in ("ab/other", "other/object"):
        with pytest.raises(FileNotFoundError, match=path):
            await storage.retrieve(path)
        with pytest.raises(FileNotFound):
            await storage.retrieve_range(path, 0, 4)


async def test_deleting_is_idempotent(storage: OpenDalStorage) -> None:
    await storage.store("ab/object", b"data")
    await storage.store("ab/objects", b"a neighbour whose path begins the same")
    await storage.delete("ab/object")
    await storage.delete("ab/object")
    await storage.delete("never/was")
    assert not await storage.exists("ab/object")
    assert await storage.exists("ab/objects")


async def test_many_are_deleted_at_once_and_each_is_told(storage: OpenDalStorage) -> None:
    paths = [f"{number % 3}a/{number}" for number in range(20)]
    await asyncio.gather(*(storage.store(path, b"data") for path in [*paths, "0a/neighbour"]))
    asked = [*paths, "0a/never", "never/was"]
    outcomes = await storage.delete_many(asked, concurrency=4, patience=timedelta(minutes=1))
    assert outcomes == dict.fromkeys(asked)
    assert not any([await storage.exists(path) for path in paths])
    assert await storage.exists("0a/neighbour")
    assert await storage.delete_many([], concurrency=4, patience=timedelta(minutes=1)) == {}


async def test_of_many_of_which_one_is_malformed_none_is_deleted(storage: OpenDalStorage) -> None:
    await storage.store("ab/object", b"data")
    with pytest.raises(InvalidArgument):
        await storage.delete_many(["ab/object", "../object"], concurrency=4, patience=timedelta(minutes=1))
    assert await storage.exists("ab/object")


async def test_no_delete_is_begun_after_the_time_for_many_is_over(storage: OpenDalStorage) -> None:
    paths = [f"ab/{number}" for number in range(9)]
    await asyncio.gather(*(storage.store(path, b"data") for path in paths))
    outcomes = await storage.delete_many(paths, concurrency=2, patience=timedelta(0))
    assert [outcomes.get(path, "not begun") for path in paths] == [None, None, *["not begun"] * 7]
    assert [await storage.exists(path) for path in paths] == [False, False, *[True] * 7]


async def test_metadata_has_the_time_where_the_service_keeps_one(storage: OpenDalStorage) -> None:
    await storage.store("object", b"data")
    found = await storage.get_metadata("object")
    if storage.storage_type in {"fs", "s3"}:
        assert found.last_modified is not None
        assert abs(datetime.now(UTC) - found.last_modified) < timedelta(minutes=1)
    else:
        assert found.last_modified is None


@pytest.mark.parametrize("kind", ["fs", "memory", "s3"])
@pytest.mark.parametrize("size", [3, 9 * MiB])
async def test_a_path_is_written_once(make_storage: MakeStorage, kind: str, size: int) -> None:
    storage = await make_storage(kind)
    await storage.store("object", b"first")
    with pytest.raises(OperationError, match="already"):
        await storage.store("object", content(size))
    with pytest.raises(OperationError, match="already"):
        await storage.store_stream("object", in_chunks(content(size), MiB))
    assert await storage.retrieve("object") == b"first"


async def test_one_of_many_writers_of_a_path_wins(make_storage: MakeStorage) -> None:
    storage = await make_storage("fs")
    writes = [storage.store("object", bytes([number])) for number in range(8)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert sum(isinstance(result, StoredObject) for result in results) == 1


async def test_many_calls_run_at_once(storage: OpenDalStorage) -> None:
    paths = [f"{number % 7:02x}/object-{number}" for number in range(200)]
    await asyncio.gather(*(storage.store(path, path.encode()) for path in paths))
    assert await asyncio.gather(*map(storage.retrieve, paths)) == [path.encode() for path in paths]
    await asyncio.gather(*map(storage.delete, paths))
    assert not any(await asyncio.gather(*map(storage.exists, paths)))


async def test_the_first_marker_stays(storage: OpenDalStorage) -> None:
    assert await storage.read_marker() is None
    first = StorageMarker("7b1c", "main")
    assert await storage.write_marker(first) == first
    assert await storage.write_marker(StorageMarker("other", "other")) == first
    assert await storage.read_marker() == first


@pytest.mark.parametrize("kind", ["fs", "s3"])
async def test_engines_that_write_the_marker_at_once_agree(
    opened: OpenStorage, make_storage_config: MakeStorageConfig, kind: str
) -> None:
    config = make_storage_config(kind)
    engines = [await opened(config) for _ in range(8)]
    markers = [StorageMarker(f"catalog-{number}", "main") for number in range(8)]
    found = await asyncio.gather(
        *(engine.write_marker(marker) for engine, marker in zip(engines, markers, strict=True))
    )
    assert len(set(found)) == 1
    assert found[0] in markers


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"catalog_id": 1, "storage_name": "main"}', b"\xff\xfe"])
async def test_a_marker_that_is_none_is_a_mismatch(storage: OpenDalStorage, text: bytes) -> None:
    await storage._put(".bdr-storage", text)
    with pytest.raises(StorageMismatch, match=r"\.bdr-storage"):
        await storage.read_marker()
    with pytest.raises(StorageMismatch):
        await storage.write_marker(StorageMarker("7b1c", "main"))


async def test_two_configurations_of_one_place_have_one_fingerprint(
    opened: OpenStorage, make_storage_config: MakeStorageConfig, storage_kind: str
) -> None:
    config = make_storage_config(storage_kind)
    one, same, other = [await opened(each) for each in (config, config, make_storage_config(storage_kind))]
    assert (one.fingerprint == same.fingerprint) == (storage_kind != "memory")
    assert one.fingerprint != other.fingerprint
    assert one.storage_type == storage_kind


async def test_a_closed_storage_refuses_everything(storage: OpenDalStorage) -> None:
    await storage.close()
    with pytest.raises(InstanceClosed, match="'main'"):
        await storage.store("object", b"data")
    with pytest.raises(InstanceClosed):
        await storage.exists("object")
    await storage.close()


async def test_services_beyond_the_four_work_by_their_name(opened: OpenStorage, tmp_path: object) -> None:
    for config in (
        BinaryStorageConfig(storage_type="dashmap"),
        BinaryStorageConfig(storage_type="sled", config={"datadir": f"{tmp_path}/sled"}),
        BinaryStorageConfig(storage_type="redb", config={"datadir": f"{tmp_path}/redb", "table": "objects"}),
    ):
        storage = await opened(config)
        await storage.store("ab/object", b"data")
        assert await storage.retrieve_range("ab/object", 1, 2) == b"at"
        await storage.delete("ab/object")
        assert not await storage.exists("ab/object")
