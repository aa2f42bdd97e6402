"""The whole life of objects on each kind of storage: stored, expired, stranded, landed late, and gone."""

import asyncio
from datetime import timedelta

import pytest

from bdr.catalog import blob
from bdr.catalog.blob import Reservation
from bdr.keys import new_id, object_path
from tests.fixtures.engines import Connect
from tests.fixtures.storages import MakeStorageConfig
from tests.guarantees import objects_in, violations
from tests.lifecycle.support import blob_states, make_due
from tests.reaper.support import EAGER, age, expired, keys_left

BIG = 9 * 1024 * 1024


@pytest.mark.parametrize("kind", ["fs", "s3", "redis"])
async def test_two_reapers_leave_exactly_what_is_held(
    connect: Connect, make_storage_config: MakeStorageConfig, kind: str
) -> None:
    config = make_storage_config(kind)
    one, other = await connect(storage=config, reaper=EAGER), await connect(storage=config, reaper=EAGER)
    storage = one.engine.storage("main")
    held = (await one.store_data(b"held")).file_key
    big = (await one.store_data(bytes(BIG))).file_key
    await one.release_reference(big)
    await age(one, big)
    await expired(other, 20)
    # An upload whose process is gone, and one whose write lands only after it was given up.
    stranded, late = (
        Reservation(new, "main", object_path(new), one.engine.instance_id) for new in (new_id(), new_id())
    )
    await one.engine.database.write(lambda own: blob.reserve(own, [stranded, late], timedelta(0)))
    await one.engine.database.write(lambda own: blob.abandon(own, late.blob_id, timedelta(0), "cancelled"))
    for reservation in (stranded, late):
        await storage.store(reservation.object_path, b"never published")
    assert len(await objects_in(storage)) == 24
    assert await violations(one.engine.database, one.engine.storages) == []
    reports = [*await asyncio.gather(one.reap(), other.reap())]
    # What one had locked while the other looked is there for the next pass.
    reports.append(await one.reap())
    assert sum(report.references for report in reports) == 21
    assert sum(report.blobs for report in reports) == 23
    assert sum(report.bytes for report in reports) == BIG + 10 * len("file 0") + 10 * len("file 10")
    assert sum(report.stranded for report in reports) == 1
    assert await keys_left(one) == {held}
    assert await blob_states(one) == ["live"]
    assert len(await objects_in(storage)) == 1
    assert await other.get_data(held) == b"held"
    await make_due(one)
    assert (await other.reap()).is_empty
