"""A reaper or an upload that ends between two steps: the next one finishes, and what comes late does no harm."""

import asyncio
import signal
import uuid
from datetime import timedelta

import pytest

import bdr
from bdr import BinaryDataLifecycleManager
from bdr.catalog import blob, expiry
from bdr.catalog.blob import ClaimedBlob, FailedDelete, Reservation
from bdr.errors import OperationError
from bdr.keys import new_id, object_path
from tests.fixtures.engines import AT_ONCE, Connect
from tests.guarantees import objects_in, violations
from tests.lifecycle.support import HeldSource, blob_states, make_due, rows
from tests.reaper.support import EAGER, HOUR, blobs, expired, keys_left
from tests.storage.helpers import as_argument, run_python

REAPS_AND_DIES = """
import signal
import bdr, bdr.reaper.reap
from bdr.catalog import blob

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

delete_many = OpenDalStorage.delete_many

async def delete_or_die(storage, paths, **options):
    await delete_many(storage, paths[:3], **options)
    die()

async def main(url, config, step):
    if step == "claimed":
        bdr.reaper.reap.sweep_objects = die
    elif step == "some objects deleted":
        OpenDalStorage.delete_many = delete_or_die
    else:
        blob.finish = die
    storage = BinaryStorageConfig(**json.loads(config))
    async with bdr.connect(database_url=url, storage=storage, reaper=bdr.ReaperConfig(concurrency=1)) as binary:
        await binary.reap()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def binary(connect: Connect) -> BinaryDataLifecycleManager:
    return await connect(reaper=EAGER)


async def claim_due(binary: BinaryDataLifecycleManager) -> list[ClaimedBlob]:
    return await binary.engine.database.write(lambda own: blob.claim_due(own, "main", HOUR, 100))


async def finish(binary: BinaryDataLifecycleManager, claimed: list[ClaimedBlob]) -> set[uuid.UUID]:
    return await binary.engine.database.write(lambda own: blob.finish(own, claimed))


async def nothing_is_left(binary: BinaryDataLifecycleManager) -> bool:
    gone = await blob_states(binary) == [] and await keys_left(binary) == set()
    return gone and await objects_in(binary.engine.storage("main")) == set()


@pytest.mark.parametrize(("step", "left"), [("claimed", 6), ("some objects deleted", 3), ("all objects deleted", 0)])
async def test_a_reaper_that_is_killed_leaves_its_work_to_the_next_one_after_its_lease(
    binary: BinaryDataLifecycleManager, database_url: str, fs_config: bdr.BinaryStorageConfig, step: str, left: int
) -> None:
    await expired(binary, 6)
    code, _, errors = await run_python(REAPS_AND_DIES, database_url, as_argument(fs_config), step)
    assert (code, errors) == (-signal.SIGKILL, "")
    assert await keys_left(binary) == set()
    assert len(await objects_in(binary.engine.storage("main"))) == {"claimed": 6, "some objects deleted": 3}.get(
        step, 0
    )
    assert await violations(binary.engine.database, binary.engine.storages) == []
    assert (await binary.reap()).is_empty
    await make_due(binary)
    assert (await binary.reap()).blobs == 6
    assert await nothing_is_left(binary)


async def test_a_claim_of_references_needs_no_lease_to_be_taken_up(binary: BinaryDataLifecycleManager) -> None:
    await expired(binary, 2)
    await binary.engine.database.transaction(lambda own: expiry.claim_expired(own, "main", 100))
    report = await binary.reap()
    assert (report.references, report.blobs) == (0, 2)
    assert await nothing_is_left(binary)


async def test_a_reaper_whose_lease_has_run_out_changes_nothing(binary: BinaryDataLifecycleManager) -> None:
    await expired(binary)
    await binary.engine.database.transaction(lambda own: expiry.claim_expired(own, "main", 100))
    late = await claim_due(binary)
    await make_due(binary)
    current = await claim_due(binary)
    before = await blobs(binary)
    failed = [FailedDelete(late[0], "too late")]
    database = binary.engine.database
    assert await finish(binary, late) == set()
    limits = {"backoff": HOUR, "backoff_max": HOUR, "max_attempts": 1}
    assert await database.write(lambda own: blob.postpone(own, failed, **limits)) == 0  # type: ignore[arg-type]  # a dict of keywords
    await database.write(lambda own: blob.hand_back(own, failed, AT_ONCE))
    assert await blobs(binary) == before == [("deleting", 2, None, True)]
    assert await finish(binary, current) == {current[0].blob_id}


async def reserved(binary: BinaryDataLifecycleManager, *, written: bool) -> Reservation:
    """An upload whose process is gone, before or after it wrote its object."""
    blob_id = new_id()
    reservation = Reservation(blob_id, "main", object_path(blob_id), binary.engine.instance_id)
    await binary.engine.database.write(lambda own: blob.reserve(own, [reservation], HOUR))
    if written:
        await binary.engine.storage("main").store(reservation.object_path, b"never published")
    return reservation


@pytest.mark.parametrize("written", [True, False])
async def test_an_upload_past_its_deadline_goes_after_the_grace_with_whatever_it_wrote(
    connect: Connect, written: bool
) -> None:
    binary = await connect()
    await reserved(binary, written=written)
    assert (await binary.reap()).is_empty
    await make_due(binary)
    report = await binary.reap()
    assert (report.stranded, report.blobs) == (1, 0)
    grace = "SELECT next_attempt_at - now() > interval '10 minutes' FROM bdr.blob"
    assert await rows(binary, grace) == [(True,)]
    assert await blobs(binary) == [("deleting", 0, "the upload did not finish by its deadline", True)]
    assert (await binary.reap()).is_empty
    assert len(await objects_in(binary.engine.storage("main"))) == written
    await make_due(binary)
    report = await binary.reap()
    assert (report.stranded, report.blobs, report.bytes) == (0, 1, 0)
    assert await nothing_is_left(binary)


async def test_all_uploads_past_their_deadline_are_found_in_one_pass(connect: Connect) -> None:
    binary = await connect(reaper=EAGER.model_copy(update={"batch_size": 2}))
    for _ in range(5):
        await reserved(binary, written=False)
    await make_due(binary)
    report = await binary.reap()
    assert (report.stranded, report.blobs) == (5, 5)


async def test_a_write_that_lands_after_it_was_given_up_is_removed_with_its_row(
    binary: BinaryDataLifecycleManager,
) -> None:
    reservation = await reserved(binary, written=False)
    await binary.engine.database.write(lambda own: blob.abandon(own, reservation.blob_id, HOUR, "cancelled"))
    assert (await binary.reap()).is_empty
    await binary.engine.storage("main").store(reservation.object_path, b"late")
    assert await violations(binary.engine.database, binary.engine.storages) == []
    await make_due(binary)
    assert (await binary.reap()).blobs == 1
    assert await nothing_is_left(binary)


@pytest.mark.parametrize("reaper_first", [True, False])
async def test_an_object_that_lands_while_its_row_is_being_finished_keeps_an_owner(
    binary: BinaryDataLifecycleManager, reaper_first: bool
) -> None:
    """The upload took so long that a reaper has claimed its row, and found no object yet to delete.

    Reaper first: it finishes, the upload finds no row and inserts it again. Upload first: it gives the row another
    deadline, and the reaper's finish is one of a claim that is no more.
    """
    source = HeldSource()
    storing = asyncio.create_task(binary.store_stream(source.chunks()))
    await source.begun.wait()
    await make_due(binary)
    await binary.engine.database.write(lambda own: blob.claim_stranded(own, "main", AT_ONCE, 100))
    claimed = await claim_due(binary)
    # The source's first part lies in the upload's own hands until there is more: nothing is in the storage yet.
    await binary.engine.storage("main").delete(claimed[0].object_path)
    if reaper_first:
        assert len(await finish(binary, claimed)) == 1
    source.go_on.set()
    with pytest.raises(OperationError, match="deadline"):
        await storing
    if not reaper_first:
        assert await finish(binary, claimed) == set()
    assert await blob_states(binary) == ["deleting"]
    assert await violations(binary.engine.database, binary.engine.storages) == []
    await make_due(binary)
    assert (await binary.reap()).blobs == 1
    assert await nothing_is_left(binary)


async def test_a_row_that_was_inserted_again_is_safe_from_the_claim_before(binary: BinaryDataLifecycleManager) -> None:
    reservation = await reserved(binary, written=False)
    database = binary.engine.database
    await database.write(lambda own: blob.abandon(own, reservation.blob_id, AT_ONCE, "cancelled"))
    late = await claim_due(binary)
    assert len(await finish(binary, await second_claim(binary))) == 1
    await binary.engine.storage("main").store(reservation.object_path, b"late")
    await database.write(lambda own: blob.readopt(own, reservation, timedelta(0), "late"))
    assert await finish(binary, late) == set()
    assert (await binary.reap()).blobs == 1
    assert await nothing_is_left(binary)


async def second_claim(binary: BinaryDataLifecycleManager) -> list[ClaimedBlob]:
    await make_due(binary)
    return await claim_due(binary)
