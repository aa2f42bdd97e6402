"""What catches nothing proves nothing: protocols known to be wrong, each of which has an order of steps that shows it.

They are those that were tried and given up before bdr was written, and mistakes that are easily made.
"""

from collections.abc import Awaitable, Callable
from copy import copy

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import blob, expiry, publication, reference
from bdr.catalog.blob import PENDING, Blob
from bdr.catalog.database import translated
from bdr.catalog.reference import Reference
from tests.fixtures.postgres import PostgresServer
from tests.interleaving.explore import explore
from tests.interleaving.families import HALF_HELD, IDLE, SHARED, TWO
from tests.interleaving.operations import HOUR, add, count_many, register, remove, store
from tests.interleaving.reaping import BATCH, claim, claim_stranded, claiming, sweep
from tests.interleaving.serial import Operation, Rule, then
from tests.interleaving.stage import STORAGE, Stage, open_stage
from tests.interleaving.state import Ref, State, stored

LATE = State(hasty=True, apart=False)
Work = Callable[[Stage, AsyncConnection], Awaitable[object]]
STRANDED = "is live for ever"
REMOVE_AT_ONCE = text("""
    WITH doomed AS (SELECT file_key, blob_id FROM bdr.binary_data_reference WHERE file_key = :key FOR UPDATE),
         locked AS (SELECT b.blob_id FROM bdr.blob b JOIN doomed USING (blob_id) FOR UPDATE OF b),
         gone AS (DELETE FROM bdr.binary_data_reference r USING locked, doomed WHERE r.file_key = doomed.file_key)
    UPDATE bdr.blob SET state = 'deleting', next_attempt_at = now() + interval '1 hour' FROM locked
    WHERE blob.blob_id = locked.blob_id AND NOT EXISTS (
        SELECT FROM bdr.binary_data_reference r WHERE r.blob_id = blob.blob_id AND r.file_key <> :key)
""")
ADD_ONE = text(
    "UPDATE bdr.binary_data_reference SET ref_count = ref_count + 1 WHERE file_key = :key RETURNING ref_count"
)
COUNT = text("SELECT ref_count FROM bdr.binary_data_reference WHERE file_key = :key")
SET_COUNT = text(
    "UPDATE bdr.binary_data_reference SET ref_count = :count, last_access_at = now() WHERE file_key = :key"
)


async def shows(stage: Stage, sentence: str, start: State, *case: Operation) -> bool:
    """Whether an order of the case's steps is wrong in this way."""
    explored = await explore(stage, start, [case], until_wrong=sentence)
    return any(sentence in one for one in explored.wrong)


def in_one_transaction(name: str, work: Work, rule: Rule) -> Operation:
    async def run(stage: Stage) -> object:
        return await stage.database.transaction(lambda own: work(stage, own))

    return Operation(name, run, rule)


async def test_a_claim_that_locks_only_references_strands_a_blob(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = expiry.CLAIM_EXPIRED.with_for_update(skip_locked=True, of=[Reference])
    monkeypatch.setattr(expiry, "CLAIM_EXPIRED", wrong)
    assert await shows(stage, STRANDED, SHARED, remove("b"), claim())


async def test_a_claim_that_locks_blobs_too_weakly_fails_on_a_reference_made_meanwhile(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = expiry.CLAIM_EXPIRED.with_for_update(skip_locked=True, key_share=True, of=[Reference, Blob])
    monkeypatch.setattr(expiry, "CLAIM_EXPIRED", wrong)
    assert await shows(stage, "'claim': <class 'bdr.errors.OperationError'>", IDLE, add("b", "x"), claim())


async def test_a_claim_at_repeatable_read_strands_a_blob(stage: Stage) -> None:
    async def run(stage: Stage) -> object:
        async with stage.callers["REPEATABLE READ"].begin() as own:
            await own.execute(text("SELECT 1"))
            with translated():
                return stage.names(
                    [one.file_key for one in (await expiry.claim_expired(own, STORAGE, BATCH)).references]
                )

    wrong = Operation("claim with an old snapshot", run, claiming)
    assert await shows(stage, STRANDED, HALF_HELD, remove("b"), wrong)


async def test_a_delete_in_one_combined_statement_strands_a_blob(stage: Stage) -> None:
    async def work(stage: Stage, own: AsyncConnection) -> int:
        return (await own.execute(REMOVE_AT_ONCE, {"key": stage.keys["b"]})).rowcount

    wrong = in_one_transaction("remove at once", work, remove("b").rule)
    assert await shows(stage, STRANDED, SHARED, remove("a"), wrong)


async def test_a_delete_that_locks_blobs_before_references_deadlocks(stage: Stage) -> None:
    async def work(stage: Stage, own: AsyncConnection) -> int:
        await own.execute(reference.LOCK_BLOBS, {"blob_ids": [stage.blob_ids["x"]]})
        locked = await reference.lock(own, [stage.keys["a"]])
        return len(await reference.remove(own, list(locked.values()), HOUR)) if locked else 0

    wrong = in_one_transaction("remove, blob first", work, remove("a").rule)
    assert await shows(stage, "deadlock", IDLE, remove("a"), wrong)


async def test_counting_keys_one_by_one_as_they_come_deadlocks(stage: Stage) -> None:
    async def work(stage: Stage, own: AsyncConnection) -> list[int]:
        return [(await own.execute(ADD_ONE, {"key": stage.keys[name]})).scalar_one() for name in ("b", "a")]

    wrong = in_one_transaction("register b, then a", work, count_many(1, "b", "a").rule)
    assert await shows(stage, "deadlock", TWO, count_many(1, "a", "b"), wrong)


async def test_a_count_that_is_read_and_written_back_is_lost(stage: Stage) -> None:
    async def work(stage: Stage, own: AsyncConnection) -> int:
        key = stage.keys["a"]
        count: int = (await own.execute(COUNT, {"key": key})).scalar_one() + 1
        await own.execute(SET_COUNT, {"key": key, "count": count})
        return count

    wrong = in_one_transaction("register by hand", work, register("a").rule)
    assert await shows(stage, "no serial order", stored(a=Ref("x", count=1)), register("a"), wrong)


async def test_a_publish_that_does_not_ask_for_the_state_revives_a_blob(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {skip_locked: copy(right) for skip_locked, right in publication.PUBLISH.items()}
    for one in wrong.values():
        one.sql = one.sql.replace("bdr.blob.state = 'pending'", "true")
    monkeypatch.setattr(publication, "PUBLISH", wrong)
    assert await shows(stage, "G1: the object of new is not there", LATE, then(claim_stranded(), sweep()), store())


async def test_an_upload_that_leaves_a_claimed_row_to_its_claimer_orphans_its_object(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob, "ABANDON", blob.ABANDON.where(Blob.state == PENDING))
    assert await shows(stage, "G2: the object of new has no row", LATE, then(claim_stranded(), sweep()), store())


async def test_a_foreign_key_on_the_id_alone_lets_an_insert_revive_a_blob(
    postgres: PostgresServer, database_url: str
) -> None:
    plain = """
        ALTER TABLE bdr.binary_data_reference DROP CONSTRAINT fk_binary_data_reference_blob,
        ADD FOREIGN KEY (blob_id) REFERENCES bdr.blob (blob_id)
    """
    await postgres.execute(plain, database_url.rpartition("/")[2])
    async with open_stage(database_url) as stage:
        assert await shows(stage, "refers to a blob that is deleting", IDLE, add("b", "x"), claim())


async def test_a_claim_that_waits_for_a_lock_is_told_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = expiry.CLAIM_EXPIRED.with_for_update(of=[Reference, Blob])
    monkeypatch.setattr(expiry, "CLAIM_EXPIRED", wrong)
    assert await shows(stage, "claim waits for a lock", IDLE, register("a"), claim())
