"""Engines whose storage lies behind a proxy."""

from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest

import bdr
from tests.faults.faults import FAULTS_BY_NAME, all_struck, counted
from tests.figures import FAULTS
from tests.fixtures.engines import Connect
from tests.fixtures.http_proxy import HttpProxy, When
from tests.fixtures.storages import MakeStorageConfig, S3Server
from tests.fsck.conftest import plan
from tests.fsck.support import at_endpoint
from tests.lifecycle.conftest import connect_through
from tests.reaper.support import EAGER

__all__ = ["connect_through", "plan"]

SHORT = timedelta(seconds=1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Note on the test's report how many faults it has injected."""
    before = all_struck()
    try:
        yield
    finally:
        item.user_properties.append((FAULTS, all_struck() - before))


@dataclass
class Bucket:
    """Two engines on one bucket behind one proxy.

    Attributes:
        hasty: waits for an answer for a second only: it meets the faults.
        binary: waits as long as it takes, and is used before the faults and after them.
    """

    proxy: HttpProxy
    hasty: bdr.BinaryDataLifecycleManager
    binary: bdr.BinaryDataLifecycleManager

    @contextmanager
    def meeting(self, fault: str, when: When, *, times: int | None = None) -> Iterator[None]:
        """Have requests meet a fault while inside, the first `times` of them or all; at least one must."""
        self.proxy.inject(counted(FAULTS_BY_NAME[fault]), when, times=times)
        try:
            yield
        finally:
            self.proxy.heal()
        assert self.proxy.struck.is_set()

    async def landed(self) -> None:
        """Return when no request is under way any more, not even one whose client has gone."""
        await self.proxy.quiet()


@pytest.fixture
async def s3_proxy(s3_server: S3Server) -> AsyncIterator[HttpProxy]:
    proxy = HttpProxy(s3_server.host, s3_server.port)
    await proxy.start()
    yield proxy
    await proxy.close()


@pytest.fixture
async def bucket(connect: Connect, make_storage_config: MakeStorageConfig, s3_proxy: HttpProxy) -> Bucket:
    place = at_endpoint(make_storage_config("s3"), s3_proxy.endpoint)
    # Without a cache: what is read is read from the storage.
    settings = {"reaper": EAGER, "cache": bdr.CacheConfig(capacity=0)}
    binary = await connect(storage=place, **settings)
    hasty = place.model_copy(update={"timeout": SHORT, "io_timeout": SHORT})
    return Bucket(s3_proxy, await connect(storage=hasty, **settings), binary)
