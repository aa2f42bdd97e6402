"""A file system that is full, read-only or gone: told as it is, nothing lost, and nothing left behind afterwards."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

import bdr
from bdr.errors import PermissionDenied, StorageFull, StorageUnavailable
from bdr.fsck import FindingKind
from tests.faults.share import Share, kinds
from tests.faults.support import KEPT, Binary, require_well, stuck
from tests.fixtures.engines import Connect
from tests.fsck.support import checked
from tests.lifecycle.support import chunks, make_due
from tests.reaper.support import EAGER, expired, keys_left

MiB: Final = 1024 * 1024
Errors = dict[str, type[bdr.BinaryStorageError] | None]

# What each call comes to; None where it succeeds.
TOLD: Final[dict[str, Errors]] = {
    "full": {"store": StorageFull, "stream": StorageFull, "get": None, "range": None, "open": None, "exists": None},
    "read_only": {
        "store": PermissionDenied,
        "stream": PermissionDenied,
        "get": None,
        "range": None,
        "open": None,
        "exists": None,
    },
    "away": dict.fromkeys(("store", "stream", "get", "range", "open", "exists"), StorageUnavailable),
}


@pytest.fixture(params=kinds())
def share(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Share]:
    """A folder in trouble, by each means that this machine permits."""
    one = kinds()[request.param](tmp_path)
    yield one
    one.close()


@pytest.fixture
async def binary(share: Share, connect: Connect) -> Binary:
    place = bdr.BinaryStorageConfig(storage_type="fs", root=str(share.root))
    made = await connect(storage=place, reaper=EAGER, cache=bdr.CacheConfig(capacity=0))
    # Opens the connections that a pass needs; some troubles are those of another user, who may not.
    await asyncio.gather(*(made.reap() for _ in range(3)))
    return made


async def do(binary: Binary, what: str, key: str) -> object:
    """One call of a caller."""
    if what == "open":
        async with binary.open(key) as reader:
            return await reader.read()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "store": lambda: binary.store_data(b"new" * 100),
        "stream": lambda: binary.store_stream(chunks(b"x" * 2 * MiB, b"y" * 2 * MiB)),
        "get": lambda: binary.get_data(key),
        "range": lambda: binary.get_range(key, 0, len(KEPT)),
        "exists": lambda: binary.data_exists(key),
    }
    return await calls[what]()


@pytest.mark.parametrize("trouble", TOLD)
async def test_trouble_is_told_as_what_it_is_and_leaves_nothing_behind(
    binary: Binary, share: Share, trouble: str
) -> None:
    key = (await binary.store_data(KEPT)).file_key
    for what, error in TOLD[trouble].items():
        with getattr(share, trouble)():
            async with asyncio.timeout(60):
                if error is None:
                    assert await do(binary, what, key) in (KEPT, True)
                    continue
                with pytest.raises(error, match=r"in storage 'main' at fs:|of storage 'main' at fs:") as told:
                    await do(binary, what, key)
        assert type(told.value) is error
    await require_well(binary, {key: KEPT})


@pytest.mark.parametrize("by", ["delete", "reap"])
async def test_what_cannot_be_deleted_from_a_read_only_disk_is_tried_again(
    binary: Binary, share: Share, by: str
) -> None:
    kept = (await binary.store_data(KEPT)).file_key
    (key,) = await expired(binary)
    with share.read_only():
        if by == "reap":
            report = await binary.reap()
            assert (report.references, report.failed, report.blobs) == (1, 1, 0)
        else:
            await binary.delete_data(key)
        ((state, attempts, why, _),) = await stuck(binary)
        assert (state, attempts) == ("deleting", 1)
        assert "could not delete" in why
        assert "check the credentials" in why
    await require_well(binary, {kept: KEPT})


async def test_a_full_disk_can_be_reaped(binary: Binary, share: Share) -> None:
    kept = (await binary.store_data(KEPT)).file_key
    await expired(binary)
    with share.full():
        report = await binary.reap()
        assert (report.references, report.blobs, report.failed) == (1, 1, 0)
    await require_well(binary, {kept: KEPT})


@pytest.mark.parametrize("by", ["delete", "reap"])
async def test_no_delete_on_a_share_that_is_not_mounted_is_taken_for_done(
    binary: Binary, share: Share, by: str
) -> None:
    kept = (await binary.store_data(KEPT)).file_key
    (key,) = await expired(binary)
    with share.away():
        if by == "reap":
            for _ in range(EAGER.max_attempts + 1):
                report = await binary.reap()
                assert (report.references, report.blobs, report.failed) == (0, 0, 0)
                assert "not mounted" in report.unreachable["main"]
            assert await keys_left(binary) == {kept, key}
        else:
            await binary.delete_data(key)
            ((state, attempts, why, _),) = await stuck(binary)
            assert (state, attempts) == ("deleting", 0)
            assert "not mounted" in why
    await make_due(binary)
    assert (await binary.reap()).blobs == 1
    await require_well(binary, {kept: KEPT})


async def test_no_reference_into_a_share_that_is_not_mounted_is_declared_lost(
    binary: Binary, share: Share, plan: Path
) -> None:
    kept = (await binary.store_data(KEPT)).file_key
    with share.away():
        report, found = await checked(binary, plan, checksum=True)
        assert found == set()
        assert "not mounted" in report.unknown[0].reason
    report, found = await checked(binary, plan, checksum=True)
    assert (report.is_clean, report.count(FindingKind.MISSING)) == (True, 0)
    await require_well(binary, {kept: KEPT})
