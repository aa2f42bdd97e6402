"""Sources that break: streams that raise or are cancelled, files that are none, cannot be read, or change."""

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bdr
from bdr import BinaryDataLifecycleManager
from bdr.manager.sources import PIECE
from tests.guarantees import objects_in, violations
from tests.lifecycle.support import HeldSource, rows
from tests.manager.support import as_nobody, records
from tests.storage.helpers import until


class Broken(Exception):
    """What a stream raises."""


async def require_nothing_stored(binary: BinaryDataLifecycleManager) -> None:
    """No reference, no object, and whatever was begun has an owner that a reaper will remove."""
    assert await violations(binary.engine.database, binary.engine.storages) == []
    assert await rows(binary, "SELECT count(*) FROM bdr.binary_data_reference") == [(0,)]
    assert await rows(binary, "SELECT count(*) FROM bdr.blob WHERE state <> 'deleting'") == [(0,)]
    assert await objects_in(binary.engine.storage("main")) == set()


@pytest.mark.parametrize("error", [Broken("no more"), bdr.StorageUnavailable("theirs"), OSError(5, "I/O error")])
async def test_a_stream_that_raises_has_its_own_error_raised_and_stores_nothing(
    binary: BinaryDataLifecycleManager, error: Exception
) -> None:
    async def stream(size: int) -> AsyncIterator[bytes]:
        for start in range(0, size, PIECE):
            yield b"x" * min(PIECE, size - start)
        raise error

    sizes = (0, 100, 10_000, 20_000_000)
    for size in sizes:
        with pytest.raises(type(error)) as raised:
            await binary.store_stream(stream(size))
        assert raised.value is error
        await require_nothing_stored(binary)
    for size, (status, done, said) in zip(sizes, await records(binary, "store"), strict=True):
        assert (status, done) == ("failed", size if size > 8192 else 0)
        assert str(error) in str(said)


@pytest.mark.parametrize("size", [0, 10_000, 10_000_000])
async def test_a_stream_that_is_cancelled_stores_nothing(binary: BinaryDataLifecycleManager, size: int) -> None:
    source = HeldSource(b"x" * size)
    storing = asyncio.create_task(binary.store_stream(source.chunks()))
    await source.begun.wait()
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing
    await require_nothing_stored(binary)
    assert [status for status, _, _ in await records(binary, "store")] == ["cancelled"]


async def test_a_stream_that_cancels_itself_stores_nothing(binary: BinaryDataLifecycleManager) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"x" * 10_000
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await binary.store_stream(stream())
    await require_nothing_stored(binary)


def unreadable(folder: Path) -> Path:
    path = folder / "secret"
    path.write_bytes(b"secret")
    path.chmod(0)
    return path


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def listening(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "socket"))
    return folder / "socket"


PATHS: list[tuple[Any, type[Exception], str]] = [
    (lambda folder: folder, bdr.IoError, "cannot be read: Is a directory"),
    (lambda folder: folder / "none", bdr.IoError, "cannot be read: No such file or directory"),
    (lambda folder: folder / ("x" * 300), bdr.IoError, "cannot be read: File name too long"),
    (lambda _: "a\x00b", bdr.InvalidArgument, r"'a\\x00b' cannot be the path of a file"),
    (lambda _: "", bdr.IoError, "Is a directory"),
    (unreadable, bdr.PermissionDenied, "cannot be read: Permission denied"),
    (pipe, bdr.InvalidArgument, "is no regular file; read it and give what comes to store_stream"),
    (listening, bdr.IoError, "cannot be read: No such device or address"),
    (lambda _: "/dev/zero", bdr.InvalidArgument, "is no regular file"),
    (lambda _: "/proc/self/mem", bdr.IoError, "cannot be read: Input/output error"),
]


async def test_what_is_no_readable_file_is_refused_with_its_name_and_the_reason(
    binary: BinaryDataLifecycleManager, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("files")
    for make, error, sentence in PATHS:
        path = make(folder)
        with as_nobody() if make is unreadable else as_ourselves(), pytest.raises(error, match=sentence) as raised:
            await binary.store_file(path)
        assert repr(str(path))[1:10] in str(raised.value)
        assert "\x00" not in str(raised.value)
    await require_nothing_stored(binary)


@contextmanager
def as_ourselves() -> Iterator[None]:
    yield


def shrink(path: Path) -> None:
    os.truncate(path, 2 * PIECE)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def touch(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


@pytest.mark.parametrize("change", [shrink, grow, touch])
async def test_a_file_that_changes_while_it_is_read_is_not_stored(
    binary: BinaryDataLifecycleManager, tmp_path: Path, change: Any
) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 20 * PIECE)
    storing = asyncio.create_task(binary.store_file(path))
    async with asyncio.timeout(20):
        while not any(one.progress().processed_bytes for one in binary.operations._running.values()):  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert not storing.done()
    change(path)
    with pytest.raises(bdr.IoError, match=f"'{path}' was changed while it was being read; nothing was stored"):
        await storing
    await require_nothing_stored(binary)


def is_open(path: Path) -> bool:
    return any(os.path.realpath(one) == str(path) for one in Path("/proc/self/fd").iterdir())


async def test_files_are_closed_however_a_store_ends(
    binary: BinaryDataLifecycleManager, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3 * PIECE)

    async def closed() -> bool:
        return not is_open(path)

    await binary.store_file(path)
    for refused in (
        binary.store_file(path, bdr.BinaryDataMetadata(file_size=5)),
        binary.store_file(path, operation_id="no id"),
    ):
        with pytest.raises(bdr.InvalidArgument):
            await refused
        assert await closed()
    for wait in range(30):
        storing = asyncio.create_task(binary.store_file(path))
        for _ in range(wait):
            await asyncio.sleep(0)
        storing.cancel()
        await asyncio.wait([storing])
        # A thread that was just opening it gives it back when it has.
        await until(closed)
    gc.collect()
    assert not recwarn.list
