"""Operations: their ids, their progress in this process, and what is written down when they end."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

import bdr
from bdr import BinaryDataLifecycleManager, BinaryDataMetadata, OperationProgress
from bdr.manager.reader import PIECE
from tests.fixtures.engines import Connect
from tests.lifecycle.conftest import caller
from tests.lifecycle.support import HeldSource, chunks, rows
from tests.manager.support import NEVER, object_file, records

__all__ = ["caller"]

ID = uuid.UUID("0193a6b2-7c00-7000-8000-000000000001")
Call = Callable[[BinaryDataLifecycleManager, Path, str, Any], Awaitable[object]]


async def read_open(binary: BinaryDataLifecycleManager, key: str, operation_id: Any) -> bytes:
    async with binary.open(key, operation_id=operation_id) as reader:
        return await reader.read()


CALLS: dict[str, Call] = {
    "store_data": lambda binary, _path, _key, one: binary.store_data(b"hello", operation_id=one),
    "store_file": lambda binary, path, _key, one: binary.store_file(path, operation_id=one),
    "store_stream": lambda binary, _path, _key, one: binary.store_stream(chunks(b"hello"), operation_id=one),
    "get_data": lambda binary, _path, key, one: binary.get_data(key, operation_id=one),
    "get_range": lambda binary, _path, key, one: binary.get_range(key, 0, 5, operation_id=one),
    "open": lambda binary, _path, key, one: read_open(binary, key, one),
}


@pytest.fixture
async def key(binary: BinaryDataLifecycleManager) -> str:
    return (await binary.store_data(b"hello")).file_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "hello.txt"
    path.write_bytes(b"hello")
    return path


async def test_progress_is_asked_for_by_the_caller_s_own_id(
    binary: BinaryDataLifecycleManager, path: Path, key: str
) -> None:
    for call in CALLS.values():
        one = uuid.uuid4()
        other = uuid.uuid4()
        await call(binary, path, key, one)
        await call(binary, path, key, f"{{{other}}}".upper())
        found = [await binary.get_operation_progress(asked) for asked in (one, str(one), one.hex, other)]
        recorded = [progress for progress in found if progress is not None]
        # A second get_data is answered by the cache.
        assert len(recorded) == (3 if call is CALLS["get_data"] else 4)
        assert {progress.operation_id for progress in recorded} <= {one, other}
        for progress in recorded:
            assert (progress.status, progress.processed_bytes) == ("succeeded", 5)
            assert progress.completion_percentage == (None if progress.total_bytes is None else 100.0)
            assert progress.estimated_remaining_time is None


async def test_an_id_that_was_used_is_refused_and_the_operation_does_not_begin(
    binary: BinaryDataLifecycleManager, connect: Connect, path: Path, key: str
) -> None:
    await binary.store_data(b"first", operation_id=ID)
    other = await connect()
    for call in CALLS.values():
        for engine in (binary, other):
            with pytest.raises(bdr.InvalidArgument, match=f"There is an operation {ID} already; give each one an id"):
                await call(engine, path, key, str(ID))
    assert await rows(binary, "SELECT count(*) FROM bdr.blob") == [(2,)]
    assert await records(binary, "retrieve") == await records(other, "retrieve") == []


async def test_an_id_that_is_none_is_refused(binary: BinaryDataLifecycleManager, path: Path, key: str) -> None:
    for bad in ("", "seven", "0193a6b2-7c00-7000-8000-00000000000", "\x00", 7, b"x"):
        for call in CALLS.values():
            with pytest.raises(bdr.InvalidArgument, match="is no operation id; give a UUID"):
                await call(binary, path, key, bad)
    with pytest.raises(bdr.InvalidArgument, match="is no operation id"):
        await binary.get_operation_progress("seven")


async def test_of_two_that_come_at_once_with_one_id_one_is_refused(binary: BinaryDataLifecycleManager) -> None:
    calls = [binary.store_data(b"hello", operation_id=ID) for _ in range(5)]
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(type(one).__name__ for one in ended) == ["BinaryDataReference"] + ["InvalidArgument"] * 4
    assert await records(binary, "store") == [("succeeded", 5, None)]


async def test_an_id_is_taken_while_its_operation_runs(binary: BinaryDataLifecycleManager) -> None:
    source = HeldSource()
    storing = asyncio.create_task(binary.store_stream(source.chunks(), operation_id=ID))
    await source.begun.wait()
    with pytest.raises(bdr.InvalidArgument, match="already"):
        await binary.store_data(b"hello", operation_id=ID)
    running = await binary.get_operation_progress(ID)
    assert running is not None
    assert running.status == "running"
    source.go_on.set()
    await storing


async def test_a_refused_id_is_not_used_up(binary: BinaryDataLifecycleManager) -> None:
    with pytest.raises(bdr.FileNotFound):
        await binary.get_data("0" * 26, operation_id=ID)
    with pytest.raises(bdr.InvalidArgument):
        await binary.store_data("text", operation_id=ID)  # type: ignore[arg-type]  # what a user may well do
    assert await binary.get_operation_progress(ID) is None
    await binary.store_data(b"hello", operation_id=ID)


async def test_progress_is_live_from_before_the_first_byte(binary: BinaryDataLifecycleManager) -> None:
    go_on = [asyncio.Event() for _ in range(3)]

    async def source() -> AsyncIterator[bytes]:
        for step, event in enumerate(go_on):
            await event.wait()
            yield bytes([step]) * PIECE

    told: list[OperationProgress] = []
    metadata = BinaryDataMetadata(file_size=3 * PIECE)
    storing = asyncio.create_task(binary.store_stream(source(), metadata, operation_id=ID, on_progress=told.append))
    for step, event in enumerate(go_on):
        now = await until_processed(binary, step * PIECE)
        assert (now.status, now.total_bytes, now.operation_type) == ("running", 3 * PIECE, "store")
        assert now.completion_percentage == pytest.approx(step * 100 / 3)
        assert (now.estimated_remaining_time is None) == (step == 0)
        assert now.elapsed > timedelta(0)
        event.set()
    await storing
    assert (told[-1].status, told[-1].processed_bytes) == ("succeeded", 3 * PIECE)


async def until_processed(binary: BinaryDataLifecycleManager, size: int) -> OperationProgress:
    async with asyncio.timeout(20):
        while True:
            found = await binary.operations.progress(ID) if ID in binary.operations._running else None
            if found is not None and found.processed_bytes >= size:
                return found
            await asyncio.sleep(0)


async def test_an_unknown_total_stays_unknown(binary: BinaryDataLifecycleManager) -> None:
    told: list[OperationProgress] = []
    await binary.store_stream(chunks(b"x" * 10_000), operation_id=ID, on_progress=told.append)
    assert [(one.total_bytes, one.completion_percentage, one.estimated_remaining_time) for one in told] == [
        (None, None, None)
    ] * len(told)
    found = await binary.get_operation_progress(ID)
    assert found is not None
    assert (found.total_bytes, found.processed_bytes) == (None, 10_000)


async def test_a_watcher_that_raises_does_not_fail_what_it_watches(
    binary: BinaryDataLifecycleManager, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def watch(_: OperationProgress) -> None:
        raise RuntimeError("the screen is gone")

    keys = [
        (await binary.store_data(b"hello", on_progress=watch)).file_key,
        (await binary.store_file(path, on_progress=watch)).file_key,
        (await binary.store_stream(chunks(b"hello"), on_progress=watch)).file_key,
    ]
    for key in keys:
        assert await binary.get_data(key, on_progress=watch) == b"hello"
        assert await binary.get_range(key, 0, 5, on_progress=watch) == b"hello"
        async with binary.open(key, on_progress=watch) as reader:
            assert await reader.read() == b"hello"
    assert caplog.text.count("RuntimeError: the screen is gone") == 12


@pytest.mark.parametrize("read", [True, False])
async def test_a_watcher_is_told_at_most_ten_times_a_second_and_at_the_end(
    binary: BinaryDataLifecycleManager, read: bool
) -> None:
    data = bytes(8) * (10 * PIECE // 8)
    told: list[OperationProgress] = []
    if read:
        key = (await binary.store_data(data)).file_key
        assert await binary.get_data(key, on_progress=told.append) == data
    else:
        await binary.store_stream(chunks(*[data[:PIECE]] * 10), on_progress=told.append)
    assert [one.is_completed for one in told].count(True) == 1
    assert (told[-1].status, told[-1].processed_bytes) == ("succeeded", len(data))
    assert all(later.elapsed - one.elapsed >= timedelta(seconds=0.099) for one, later in pairwise(told[:-1]))
    assert all(later.processed_bytes >= one.processed_bytes for one, later in pairwise(told))


async def test_a_watcher_of_a_read_from_the_cache_is_told_of_its_end(
    binary: BinaryDataLifecycleManager, key: str
) -> None:
    told: list[OperationProgress] = []
    for _ in range(2):
        await binary.get_data(key, on_progress=told.append)
    assert [(one.status, one.processed_bytes) for one in told] == [("succeeded", 5)] * 2


async def test_only_retrieves_that_reached_a_storage_are_recorded(connect: Connect) -> None:
    binary = await connect(access=NEVER)
    key = (await binary.store_data(b"x" * 100)).file_key
    await binary.get_data(key)
    await binary.get_data(key)
    await binary.get_range(key, 10, 20)
    await binary.get_range(key, 10, 0)
    async with binary.open(key):
        pass
    async with binary.open(key) as reader:
        await reader.read(1)
    assert await records(binary, "retrieve") == [("succeeded", size, None) for size in (100, 20, 100)]
    assert await rows(binary, "SELECT DISTINCT file_key, total_bytes FROM bdr.operation ORDER BY 2") == [
        (key, 20), (key, 100),
    ]  # fmt: skip


async def test_failed_and_cancelled_operations_leave_records_with_their_reason(
    binary: BinaryDataLifecycleManager, key: str
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise ValueError("a \x00 and half a \ud800 character")

    with pytest.raises(ValueError, match="half a"):
        await binary.store_stream(broken())
    with pytest.raises(ZeroDivisionError):
        await binary.store_stream(raising_at_once())
    source = HeldSource()
    storing = asyncio.create_task(binary.store_stream(source.chunks()))
    await source.begun.wait()
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing
    stores = sorted((status, str(error)) for status, _, error in await records(binary, "store"))
    assert stores == [
        ("cancelled", "CancelledError"),
        ("failed", "ValueError: a \ufffd and half a ? character"),
        ("failed", "ZeroDivisionError: integer division or modulo by zero"),
        ("succeeded", "None"),
    ]

    file = await object_file(binary, key)
    file.write_bytes(b"HELLO")
    with pytest.raises(bdr.Corrupt):
        await binary.get_data(key)
    ((status, size, error),) = await records(binary, "retrieve")
    assert (status, size) == ("failed", 5)
    assert str(error).startswith(f"The object of '{key}' holds other bytes")
    file.write_bytes(b"hello")


async def raising_at_once() -> AsyncIterator[bytes]:
    for _ in range(1 // 0):
        yield b""


async def test_a_store_in_a_caller_s_transaction_is_recorded_with_it_and_live_before(
    binary: BinaryDataLifecycleManager, caller: AsyncEngine
) -> None:
    async with caller.connect() as connection, connection.begin() as transaction:
        await binary.store_data(b"hello", connection=connection, operation_id=ID)
        assert await records(binary, "store") == []
        await transaction.rollback()
    assert await records(binary, "store") == []
    async with caller.begin() as connection:
        source = HeldSource()
        storing = asyncio.create_task(binary.store_stream(source.chunks(), connection=connection, operation_id=ID))
        await source.begun.wait()
        assert (await until_processed(binary, 0)).status == "running"
        source.go_on.set()
        await storing
    assert await records(binary, "store") == [("succeeded", 20_000, None)]
