"""Paths and roots that a service would silently change, or follow out of its root."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from bdr.errors import ConfigError, InvalidArgument
from bdr.storage import OpenDalStorage
from tests.fixtures.storages import MakeStorageConfig
from tests.storage.conftest import OpenStorage

MiB = 1024 * 1024


async def zeros(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(MiB)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            " ",
            " lead",
            "lead ",
            "lead\n",
            "in\nside",
            "/lead",
            "a//b",
            "trail/",
            "a b",
            "a\0b",
            "ä",
            "\ud800",
            "a\\b",
        ),
        *("..", "../x", "a/../b", "a/..", ".", "./a", "a/./b", "%2e%2e/x", "a?b", "a" * 256, "a/" * 600 + "a"),
    ],
)
async def test_paths_that_a_service_would_change_are_refused(storage: OpenDalStorage, path: str) -> None:
    calls = [
        storage.store(path, b"data"),
        storage.store_stream(path, zeros(1)),
        storage.retrieve(path),
        storage.retrieve_range(path, 0, 1),
        storage.get_metadata(path),
        storage.exists(path),
        storage.delete(path),
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [InvalidArgument] * len(calls)


async def test_the_longest_paths_are_kept_as_they_are(storage: OpenDalStorage) -> None:
    for path in ("a" * 255, "A-Z_0.9/" * 100 + "end", "...", "a.b", "-"):
        await storage.store(path, path.encode())
        assert await storage.retrieve(path) == path.encode()


async def test_the_marker_is_no_object(storage: OpenDalStorage) -> None:
    with pytest.raises(InvalidArgument, match="marker"):
        await storage.delete(".bdr-storage")
    with pytest.raises(InvalidArgument, match="marker"):
        await storage.store(".bdr-storage", b"")


@pytest.mark.parametrize("root", ["../other", "a/../../b", "a/./b", "a/ b", "a\n/b"])
async def test_a_root_cannot_leave_its_bucket(
    opened: OpenStorage, make_storage_config: MakeStorageConfig, root: str
) -> None:
    with pytest.raises(ConfigError, match="root"):
        await opened(make_storage_config("s3").model_copy(update={"root": root}))
