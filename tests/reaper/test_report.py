"""What a pass tells of itself, to its caller, in the log and in the records, also when it ends early."""

import asyncio
import logging
import time
import tracemalloc
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bdr import BinaryDataLifecycleManager, BinaryStorageConfig, OperationProgress, OperationsConfig, ReaperConfig
from bdr.catalog import blob
from bdr.catalog.blob import Reservation
from bdr.errors import BinaryStorageError, CatalogUnavailable, InvalidArgument
from bdr.keys import new_id, object_path
from bdr.reaper import ReapReport
from bdr.storage import OpenDalStorage
from bdr.storage.deleting import Outcomes
from tests.fixtures.engines import Connect
from tests.fixtures.proxy import TcpProxy
from tests.guarantees import objects_in
from tests.lifecycle.conftest import ConnectThrough
from tests.lifecycle.support import change, make_due, rows, until_waiting
from tests.reaper.support import EAGER, HOUR, blobs, expired, folder_of, keys_left, make_undeletable, path_of, records

LONG_AGO = "UPDATE bdr.operation SET started_at = now() - interval '40 days' WHERE operation_type = 'store'"
# Rows so large that a few hundred of them would be seen.
FILL = """
    WITH made AS (
        INSERT INTO bdr.blob (blob_id, storage_name, object_path, state, size, checksum, instance_id)
        SELECT gen_random_uuid(), name, 'none/' || n, 'live', 1, sha256(''), gen_random_uuid()
        FROM bdr.storage, generate_series(1, :number) n RETURNING blob_id
    )
    INSERT INTO bdr.binary_data_reference
        (file_key, blob_id, namespace, mime_kind, file_size, ref_count, last_access_at, zero_ref_retention)
    SELECT lpad((row_number() OVER ())::text, 26, '0'), blob_id, repeat('x', 100000), 'text/plain', 1, 0,
        now() - interval '2 hours', interval '1 hour'
    FROM made
"""


async def strand(binary: BinaryDataLifecycleManager) -> None:
    """An upload that will never finish."""
    blob_id = new_id()
    one = Reservation(blob_id, "main", object_path(blob_id), binary.engine.instance_id)
    await binary.engine.database.write(lambda own: blob.reserve(own, [one], timedelta(0)))


async def test_a_report_tells_all_and_stands_in_the_log_and_in_the_records(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    binary = await connect(reaper=EAGER.model_copy(update={"max_attempts": 2, "write_grace": HOUR}))
    *_, worse = await expired(binary, 2)
    worse_path = folder_of(binary) / await path_of(binary, worse)
    make_undeletable(worse_path)
    assert (await binary.reap()).failed == 1
    await make_due(binary)
    *_, bad = await expired(binary, 3)
    make_undeletable(folder_of(binary) / await path_of(binary, bad))
    await strand(binary)
    await change(
        binary, "UPDATE bdr.operation SET started_at = now() - interval '40 days' WHERE operation_type = 'store'"
    )
    caplog.clear()
    began = time.monotonic()
    report = await binary.reap()
    took = time.monotonic() - began
    expected = ReapReport(
        references=3, blobs=2, bytes=12, stranded=1, failed=1, quarantined=1, pruned=5, duration=report.duration
    )
    assert report == expected
    assert 0 < report.duration <= took
    _, (_, status, trouble, detail) = await records(binary, "reap_pass")
    assert (status, trouble) == (
        "failed",
        "objects that could not be deleted and will be tried again: 1; objects that are quarantined now: 1",
    )
    assert detail == report.model_dump()
    assert f"A reap had trouble: {trouble}" in caplog.text
    assert f"Reaped: {report.model_dump(exclude={'unreachable'})}" in caplog.text
    stored = "SELECT processed_bytes, finished_at - started_at FROM bdr.operation WHERE operation_type = 'reap_pass'"
    ((size, elapsed),) = (await rows(binary, stored))[-1:]
    assert size == 12
    assert abs(elapsed - timedelta(seconds=report.duration)) < timedelta(seconds=1)


async def test_each_reaped_reference_has_a_record_of_its_own(connect: Connect) -> None:
    binary = await connect(namespace="team-7")
    keys = await expired(binary, 3)
    await binary.reap()
    query = """
        SELECT file_key, namespace, instance_id, status, total_bytes, processed_bytes, detail
        FROM bdr.operation WHERE operation_type = 'reap' ORDER BY file_key
    """
    instance_id = binary.engine.instance_id
    rule = {"rule": "zero_ref_retention"}
    assert await rows(binary, query) == [(key, "team-7", instance_id, "succeeded", 6, 6, rule) for key in sorted(keys)]


async def test_a_pass_with_nothing_to_do_writes_nothing(
    binary: BinaryDataLifecycleManager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await binary.store_data(b"held")
    caplog.clear()
    report = await binary.reap()
    assert report.is_empty
    assert report.duration > 0
    assert [record.getMessage() for record in caplog.records if record.name.startswith("bdr")] == []
    assert await rows(binary, "SELECT DISTINCT operation_type FROM bdr.operation") == [("store",)]


async def test_old_records_go_into_the_totals_and_none_is_kept_for_ever(connect: Connect) -> None:
    binary = await connect(operations=OperationsConfig(retention=None))
    await binary.store_data(b"held")
    await change(binary, "UPDATE bdr.operation SET started_at = now() - interval '900 days'")
    assert (await binary.reap()).is_empty
    other = await connect()
    assert (await other.reap()).pruned == 1
    assert await rows(other, "SELECT operations FROM bdr.operation_total") == [(1,)]


def cut_after(between: TcpProxy, statement: bytes, then: str) -> None:
    """Lose the answer to a statement: `cut` only this once, or `stop` for good."""

    def look(chunk: bytes) -> None:
        if statement in chunk:
            between.on_client_data(None)
            getattr(between, then)()

    between.on_client_data(look)


@pytest.mark.parametrize(
    ("statement", "references"),
    [(b"UPDATE bdr.engine_instance", 0), (b"DELETE FROM bdr.blob ", 4)],
)
@pytest.mark.parametrize("then", ["cut", "stop"])
async def test_a_pass_that_loses_the_database_raises_one_error_and_is_written_down_if_it_can_be(
    connect: Connect,
    connect_through: ConnectThrough,
    caplog: pytest.LogCaptureFixture,
    statement: bytes,
    references: int,
    then: str,
) -> None:
    binary, between = await connect_through()
    other = await connect(reaper=EAGER)
    keys = await expired(other, 4)
    cut_after(between, statement, then)
    with pytest.raises(BinaryStorageError) as raised:
        await binary.reap()
    assert "it ended early" in caplog.text
    assert await keys_left(other) == (set(keys) if references == 0 else set())
    passes = await records(other, "reap_pass")
    if then == "cut":
        ((_, status, error, detail),) = passes
        assert (status, error, detail["references"]) == ("failed", f"it ended early: {raised.value}", references)
    else:
        assert list(passes) == []
        with pytest.raises(CatalogUnavailable):
            await binary.reap()
        await between.start()
    await make_due(other)
    assert (await binary.reap()).references == 4 - references
    assert await blobs(other) == []
    assert await objects_in(other.engine.storage("main")) == set()


async def test_a_mistake_in_one_storage_leaves_the_others_their_pass(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    places = {name: BinaryStorageConfig(storage_type="fs", root=str(tmp_path / name)) for name in ("main", "second")}
    binary = await connect(storages=places)
    second = await connect(storages=places, default_storage="second")
    await asyncio.gather(expired(binary, 3), expired(second, 3))
    delete_many = OpenDalStorage.delete_many

    async def mistaken(storage: OpenDalStorage, paths: Sequence[str], **options: Any) -> Outcomes:
        if storage is second.engine.storage("second"):
            raise ZeroDivisionError("a mistake")
        return await delete_many(storage, paths, **options)

    monkeypatch.setattr(OpenDalStorage, "delete_many", mistaken)
    report = await second.reap()
    assert (report.references, report.blobs) == (6, 3)
    assert report.unreachable.keys() == {"second"}
    assert "ZeroDivisionError: a mistake" in caplog.text
    ((_, status, error, _),) = await records(second, "reap_pass")
    assert status == "failed"
    assert "storage 'second' was left out" in error
    monkeypatch.undo()
    await make_due(second)
    assert (await second.reap()).blobs == 3


async def test_memory_does_not_grow_with_what_there_is_to_reap(connect: Connect) -> None:
    peaks: list[int] = []
    binary = await connect(reaper=ReaperConfig(batch_size=20))
    # Both are enough for as many batches at once as there may be.
    for number in (60, 600):
        await change(binary, FILL, number=number)
        tracemalloc.start()
        try:
            report = await binary.reap()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert (report.references, report.blobs) == (number, number)
    assert peaks[1] < 2 * peaks[0]


async def test_a_pass_shows_its_progress_under_the_callers_id(connect: Connect, caller: AsyncEngine) -> None:
    binary = await connect(operations=OperationsConfig(progress_interval=timedelta(milliseconds=1)))
    other = await connect()
    keys = await expired(binary, 3)
    await binary.reap()
    await expired(binary, 3)
    wanted, seen = new_id(), list[OperationProgress]()
    async with caller.begin() as locked:
        # The pass waits for this row before it begins.
        await locked.execute(text("SELECT * FROM bdr.reaper_clock FOR UPDATE"))
        task = asyncio.create_task(binary.reap(operation_id=wanted, on_progress=seen.append))
        await until_waiting(binary)
        await binary.operations.flush()
        running = await other.get_operation_progress(wanted)
        assert running is not None
        assert (running.operation_type, running.status, running.total_bytes) == ("reap_pass", "running", None)
    report = await task
    assert report.references == len(keys)
    ended = await other.get_operation_progress(wanted)
    assert ended is not None
    assert (ended.status, ended.processed_bytes) == ("succeeded", report.bytes)
    assert seen[-1].processed_bytes == report.bytes > 0


async def test_a_pass_with_nothing_to_do_is_written_down_when_it_was_asked_for_by_an_id(
    binary: BinaryDataLifecycleManager,
) -> None:
    wanted = new_id()
    assert (await binary.reap(operation_id=wanted)).is_empty
    ended = await binary.get_operation_progress(str(wanted))
    assert ended is not None
    assert ended.status == "succeeded"
    with pytest.raises(InvalidArgument, match="already"):
        await binary.reap(operation_id=wanted)


async def test_what_expired_at_one_moment_is_reaped_in_one_pass_of_many_batches(connect: Connect) -> None:
    binary = await connect(reaper=ReaperConfig(batch_size=2))
    await expired(binary, 7)
    await change(
        binary, "UPDATE bdr.binary_data_reference SET created_at = '2020-01-01', last_access_at = '2020-01-01'"
    )
    assert (await binary.reap()).references == 7


async def open_connections(binary: BinaryDataLifecycleManager, number: int) -> None:
    """So many are at hand: nobody is late because one has to be made first."""
    all_there = asyncio.Barrier(number)

    async def meet(_own: AsyncConnection) -> None:
        await all_there.wait()

    await asyncio.gather(*(binary.engine.database.transaction(meet) for _ in range(number)))


async def test_each_batch_goes_on_where_the_last_one_ended_and_reads_nothing_before_that_again(
    connect: Connect,
) -> None:
    binary = await connect(reaper=ReaperConfig(batch_size=2))
    await expired(binary, 7)
    since: list[datetime | None] = []

    def note(_connection: object, _cursor: object, statement: str, values: Sequence[object], *_: object) -> None:
        if "FOR UPDATE OF binary_data_reference, blob SKIP LOCKED" in statement:
            since.append(next((value for value in values if isinstance(value, datetime)), None))

    await open_connections(binary, 3)
    event.listen(binary.engine.database._engine.sync_engine, "before_cursor_execute", note)
    assert (await binary.reap()).references == 7
    begun = [one for one in since if one is None]
    others = [one for one in since if one is not None]
    # Three batches at once, each of which is followed by its own next one.
    assert since[: len(begun)] == begun == [None, None, None]
    assert len(set(others)) == len(others) <= 4
