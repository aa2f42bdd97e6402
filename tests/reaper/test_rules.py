"""When a reference expires: each rule, its boundary, and whose clock it is."""

import sys
import time
from datetime import datetime, timedelta, tzinfo

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from bdr import BinaryDataLifecycleManager, LifecycleCleanupConfig
from bdr.catalog import expiry
from bdr.errors import FileNotFound
from tests.fixtures.engines import AT_ONCE, Connect
from tests.guarantees import objects_in
from tests.lifecycle.support import change, rows
from tests.reaper.support import HOUR, age, expired, keys_left, records
from tests.storage.helpers import until

WEEK = timedelta(days=7)
IS_OVER = "SELECT clock_timestamp() > expires_at FROM bdr.binary_data_reference WHERE file_key = :key"
Setting = timedelta | None


@pytest.mark.parametrize(
    ("zero", "longest", "held", "rule"),
    [
        (HOUR, None, False, "zero_ref_retention"),
        (HOUR, WEEK, False, "zero_ref_retention"),
        (None, HOUR, False, "max_retention"),
        (None, HOUR, True, "max_retention"),
        (HOUR, HOUR, True, "max_retention"),
        (HOUR, None, True, None),
        (None, None, False, None),
        (None, WEEK, False, None),
    ],
)
async def test_a_reference_goes_by_its_own_rule_two_hours_later(
    connect: Connect, zero: Setting, longest: Setting, held: bool, rule: str | None
) -> None:
    binary = await connect(lifecycle=LifecycleCleanupConfig(zero_ref_retention=zero, max_retention=longest))
    key = (await binary.store_data(b"data")).file_key
    if not held:
        await binary.release_reference(key)
    assert (await binary.reap()).references == 0
    await age(binary, key)
    report = await binary.reap()
    gone = rule is not None
    assert (report.references, report.blobs, report.bytes) == ((1, 1, 4) if gone else (0, 0, 0))
    assert await keys_left(binary) == (set() if gone else {key})
    assert await objects_in(binary.engine.storage("main")) == set() or not gone
    assert list(await records(binary, "reap")) == ([(key, "succeeded", None, {"rule": rule})] if gone else [])


async def test_what_is_pinned_never_expires_until_it_is_pinned_no_more(binary: BinaryDataLifecycleManager) -> None:
    (key,) = await expired(binary)
    await change(binary, "UPDATE bdr.binary_data_reference SET pinned = true")
    assert (await binary.reap()).is_empty
    assert await binary.data_exists(key)
    await change(binary, "UPDATE bdr.binary_data_reference SET pinned = false")
    assert (await binary.reap()).references == 1


async def test_a_retention_of_zero_leaves_nothing_for_the_reaper(connect: Connect) -> None:
    binary = await connect(lifecycle=LifecycleCleanupConfig(zero_ref_retention=AT_ONCE))
    key = (await binary.store_data(b"data")).file_key
    assert await binary.release_reference(key) == 0
    assert await objects_in(binary.engine.storage("main")) == set()
    assert await rows(binary, "SELECT count(*) FROM bdr.blob") == [(0,)]
    assert (await binary.reap()).is_empty


@pytest.mark.parametrize("rule", ["zero_ref_retention", "max_retention"])
async def test_it_expires_at_the_moment_itself_and_not_one_microsecond_before(
    binary: BinaryDataLifecycleManager, rule: str
) -> None:
    key = (await binary.store_data(b"data")).file_key
    await binary.release_reference(key)
    column = "last_access_at" if rule == "zero_ref_retention" else "created_at"
    move = f"UPDATE bdr.binary_data_reference SET {column} = now() - {rule} + interval '%s us'"
    claimed: list[int] = []

    async def work(own: AsyncConnection) -> None:
        # `now()` stands still in a transaction, so that the claim comes at the very moment.
        for early in (1, 0):
            await own.exec_driver_sql(move % early)
            claimed.append(len((await expiry.claim_expired(own, "main", 10)).references))

    await binary.engine.database.transaction(work)
    assert claimed == [0, 1]
    assert (await binary.reap()).blobs == 1


async def test_what_has_expired_is_served_until_a_reaper_comes(binary: BinaryDataLifecycleManager) -> None:
    (key,) = await expired(binary)
    assert await rows(binary, IS_OVER, key=key) == [(True,)]
    assert await binary.data_exists(key)
    assert (await binary.get_details(key)).ref_count == 0
    assert await binary.get_data(key) == b"file 0"
    assert await binary.get_range(key, 0, 4) == b"file"
    async with binary.open(key) as reader:
        assert await reader.read() == b"file 0"


async def test_a_registration_before_the_reaper_saves_it_and_a_later_one_finds_nothing(
    binary: BinaryDataLifecycleManager,
) -> None:
    saved, lost = await expired(binary, 2)
    assert await binary.register_reference(saved) == 1
    assert (await binary.reap()).references == 1
    assert await binary.get_data(saved) == b"file 0"
    for call in (binary.register_reference, binary.release_reference, binary.get_data, binary.get_metadata):
        with pytest.raises(FileNotFound):
            await call(lost)


async def test_a_read_before_the_reaper_saves_what_nobody_holds(binary: BinaryDataLifecycleManager) -> None:
    (key,) = await expired(binary)
    await binary.get_data(key)

    async def is_noted() -> bool:
        return await rows(binary, IS_OVER, key=key) == [(False,)]

    await until(is_noted)
    assert (await binary.reap()).is_empty


async def test_a_registration_does_not_save_from_max_retention(connect: Connect) -> None:
    binary = await connect(lifecycle=LifecycleCleanupConfig(max_retention=HOUR))
    key = (await binary.store_data(b"data")).file_key
    await age(binary, key)
    assert await binary.register_reference(key) == 2
    assert (await binary.reap()).references == 1


class WrongClock(datetime):
    """The time of day as a process sees it that was told another `time.time`."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "WrongClock":
        return cls.fromtimestamp(time.time(), tz)


@pytest.mark.parametrize("off", [WEEK, -WEEK])
async def test_the_clock_of_a_process_decides_nothing(
    binary: BinaryDataLifecycleManager, monkeypatch: pytest.MonkeyPatch, off: timedelta
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + off.total_seconds())
    for name, module in list(sys.modules.items()):
        if name.startswith("bdr") and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", WrongClock)
    assert abs(time.time() - right()) > HOUR.total_seconds()
    held = (await binary.store_data(b"held")).file_key
    fresh = (await binary.store_data(b"fresh")).file_key
    assert await binary.release_reference(fresh) == 0
    assert (await binary.reap()).is_empty
    await expired(binary)
    assert (await binary.reap()).references == 1
    assert await keys_left(binary) == {held, fresh}


async def test_engines_with_other_retentions_reap_by_what_was_stamped(connect: Connect) -> None:
    keeping = await connect(lifecycle=LifecycleCleanupConfig(zero_ref_retention=None, max_retention=None))
    hasty = await connect(lifecycle=LifecycleCleanupConfig(zero_ref_retention=AT_ONCE, max_retention=AT_ONCE))
    kept = (await keeping.store_data(b"kept")).file_key
    gone = (await hasty.store_data(b"gone")).file_key
    await keeping.release_reference(kept)
    await age(keeping, kept, gone)
    assert (await hasty.reap()).references == 1
    assert await keys_left(keeping) == {kept}
