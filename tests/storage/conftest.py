"""Storages, opened for a test and closed after it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from bdr.settings import BinaryStorageConfig
from bdr.storage import OpenDalStorage, open_storage
from tests.fixtures.storages import MakeStorageConfig

OpenStorage = Callable[[BinaryStorageConfig], Awaitable[OpenDalStorage]]
MakeStorage = Callable[..., Awaitable[OpenDalStorage]]


@pytest.fixture
async def opened() -> AsyncIterator[OpenStorage]:
    """A factory: `await opened(config)`."""
    async with AsyncExitStack() as stack:

        async def open_one(config: BinaryStorageConfig) -> OpenDalStorage:
            storage = await open_storage(config, name="main")
            stack.push_async_callback(storage.close)
            return storage

        yield open_one


@pytest.fixture
def make_storage(opened: OpenStorage, make_storage_config: MakeStorageConfig) -> MakeStorage:
    """A factory: `await make_storage(kind, **settings)` is an empty storage of that kind."""

    async def make(kind: str, **settings: Any) -> OpenDalStorage:
        return await opened(make_storage_config(kind, **settings))

    return make


@pytest.fixture
async def storage(make_storage: MakeStorage, storage_kind: str) -> OpenDalStorage:
    """An empty storage, of each kind in turn."""
    return await make_storage(storage_kind)
