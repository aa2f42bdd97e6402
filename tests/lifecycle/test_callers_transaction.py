"""`connection=`: each verb is part of the caller's transaction, and nothing but rows of references changes in it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bdr import (
    BinaryDataLifecycleManager,
    BinaryDataReference,
    FileNotFound,
    InvalidArgument,
    LifecycleCleanupConfig,
    NotReferenced,
    Pinned,
    ReaperConfig,
    UploadConfig,
)
from bdr.manager.manager import CallersConnection
from tests.fixtures.engines import AT_ONCE, Connect
from tests.guarantees import objects_in
from tests.lifecycle.support import blob_states, change, chunks, count_of, reference_row, rows, set_count

Binary = BinaryDataLifecycleManager
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
ENDS = ("commit", "rollback")
COUNT_AND_DUE = text(
    "SELECT ref_count, expires_at <= clock_timestamp() FROM bdr.binary_data_reference WHERE file_key = :key"
)
BLOBS = "SELECT * FROM bdr.blob ORDER BY blob_id"


@dataclass(frozen=True)
class Verb:
    """How a verb is called on a reference with the count `start`; its answer; then count, and whether it is due."""

    call: Callable[[Binary, str, CallersConnection], Awaitable[object]]
    start: int
    answer: object
    then: tuple[int, bool]


VERBS = (
    Verb(lambda binary, key, own: binary.register_reference(key, connection=own), 1, 2, (2, False)),
    Verb(lambda binary, key, own: binary.register_reference(key, connection=own), 0, 1, (1, False)),
    Verb(lambda binary, key, own: binary.release_reference(key, connection=own), 2, 1, (1, False)),
    Verb(lambda binary, key, own: binary.release_reference(key, connection=own), 1, 0, (0, True)),
    Verb(lambda binary, key, own: binary.cleanup_data(key, connection=own), 0, True, (0, True)),
    Verb(lambda binary, key, own: binary.cleanup_data(key, connection=own), 1, False, (1, False)),
    Verb(lambda binary, key, own: binary.delete_data(key, connection=own), 5, None, (0, True)),
)
Store = Callable[[Binary, Path, CallersConnection], Awaitable[BinaryDataReference]]
STORES: tuple[Store, ...] = (
    lambda binary, path, own: binary.store_data(path.read_bytes(), connection=own),
    lambda binary, path, own: binary.store_file(path, connection=own),
    lambda binary, path, own: binary.store_stream(chunks(path.read_bytes()), connection=own),
)
ALL: dict[str, Callable[[Binary, str, CallersConnection], Awaitable[object]]] = {
    "register": VERBS[0].call,
    "release": VERBS[2].call,
    "cleanup": VERBS[4].call,
    "delete": VERBS[6].call,
    "store": lambda binary, _, own: binary.store_data(b"y", connection=own),
}


@asynccontextmanager
async def transaction(caller: AsyncEngine, kind: str, level: str) -> AsyncIterator[CallersConnection]:
    engine = caller.execution_options(isolation_level=level)
    async with AsyncSession(engine) if kind == "session" else engine.connect() as own:
        yield own


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["connection", "session"])
async def test_each_verb_is_part_of_the_callers_transaction(
    connect: Connect, caller: AsyncEngine, kind: str, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    binary = await connect(lifecycle=LifecycleCleanupConfig(zero_ref_retention=AT_ONCE))
    for verb, end in ((verb, end) for verb in VERBS for end in ENDS):
        key = (await binary.store_data(b"x")).file_key
        await set_count(binary, key, verb.start)
        before = await reference_row(binary, key)
        blobs, objects = await rows(binary, BLOBS), await objects_in(binary.engine.storage("main"))
        async with transaction(caller, kind, level) as own:
            assert await verb.call(binary, key, own) == verb.answer
            assert (await own.execute(COUNT_AND_DUE, {"key": key})).one() == verb.then
            assert await reference_row(binary, key) == before
            assert await rows(binary, BLOBS) == blobs
            await getattr(own, end)()
        assert await rows(binary, BLOBS) == blobs
        assert await objects_in(binary.engine.storage("main")) == objects
        if end == "rollback":
            assert await reference_row(binary, key) == before
        else:
            assert await rows(binary, COUNT_AND_DUE.text, key=key) == [verb.then]
    # Nothing was tried beside the transaction, and given up.
    assert caplog.messages == []


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["connection", "session"])
async def test_a_store_is_published_by_the_callers_commit(
    binary: Binary, caller: AsyncEngine, kind: str, level: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 20_000)
    for store, end in ((store, end) for store in STORES for end in ENDS):
        async with transaction(caller, kind, level) as own:
            key = (await store(binary, path, own)).file_key
            blob = f"SELECT state FROM bdr.blob JOIN bdr.binary_data_reference USING (blob_id) WHERE file_key = '{key}'"
            assert (await own.execute(text(blob))).all() == [("live",)]
            assert await rows(binary, blob) == []
            with pytest.raises(FileNotFound):
                await binary.get_data(key)
            await getattr(own, end)()
        if end == "commit":
            assert await binary.get_data(key) == path.read_bytes()
            assert await count_of(binary, key) == 1
        else:
            assert await count_of(binary, key) is None
    assert await blob_states(binary) == ["live"] * 3 + ["pending"] * 3
    stores = "SELECT status FROM bdr.operation WHERE operation_type = 'store'"
    assert await rows(binary, stores) == [("succeeded",)] * 3


async def test_what_was_stored_in_a_transaction_rolled_back_is_owned_until_a_reaper_removes_it(
    connect: Connect, caller: AsyncEngine
) -> None:
    binary = await connect(
        upload=UploadConfig(lease=timedelta(milliseconds=1), reserve_ahead=0), reaper=ReaperConfig(write_grace=AT_ONCE)
    )
    async with caller.connect() as own:
        await binary.store_data(b"x", connection=own)
        # While the transaction holds the row no reaper takes it.
        assert await rows(binary, "SELECT next_attempt_at < now() FROM bdr.blob") == [(True,)]
        assert (await binary.reap()).is_empty
        assert await blob_states(binary) == ["pending"]
        await own.rollback()
    assert len(await objects_in(binary.engine.storage("main"))) == 1
    report = await binary.reap()
    assert (report.stranded, report.blobs) == (1, 1)
    assert (await blob_states(binary), await objects_in(binary.engine.storage("main"))) == ([], set())


async def test_a_transaction_longer_than_the_uploads_lease_still_publishes(
    connect: Connect, caller: AsyncEngine
) -> None:
    binary = await connect(
        upload=UploadConfig(lease=timedelta(milliseconds=1), reserve_ahead=0), reaper=ReaperConfig(write_grace=AT_ONCE)
    )
    async with caller.connect() as own:
        key = (await binary.store_data(b"x", connection=own)).file_key
        await binary.reap()
        await own.commit()
    assert (await binary.reap()).is_empty
    assert await binary.get_data(key) == b"x"


async def test_a_life_begins_when_it_was_stored_not_when_the_transaction_began(
    binary: Binary, caller: AsyncEngine
) -> None:
    async with caller.begin() as own:
        await own.execute(text("SELECT"))
        await binary.store_data(b"x", connection=own)
        since = text("SELECT created_at > now(), last_access_at >= created_at FROM bdr.binary_data_reference")
        assert (await own.execute(since)).one() == (True, True)


async def test_a_count_in_a_long_transaction_is_an_access_of_its_own_moment(
    binary: Binary, caller: AsyncEngine
) -> None:
    key = (await binary.store_data(b"x")).file_key
    async with caller.begin() as own:
        await own.execute(text("SELECT"))
        for verb in (binary.register_reference, binary.release_reference):
            await verb(key, connection=own)
            since = text("SELECT last_access_at > now() FROM bdr.binary_data_reference")
            assert (await own.execute(since)).scalar_one()


async def test_what_is_refused_leaves_the_transaction_usable(binary: Binary, caller: AsyncEngine) -> None:
    key = (await binary.store_data(b"x")).file_key
    pinned = (await binary.store_data(b"y")).file_key
    await change(binary, "UPDATE bdr.binary_data_reference SET pinned = true WHERE file_key = :key", key=pinned)
    unknown = f"{key[:-1]}{'0' if key[-1] != '0' else '1'}"
    async with caller.begin() as own:
        assert await binary.release_reference(key, connection=own) == 0
        with pytest.raises(NotReferenced):
            await binary.release_reference(key, connection=own)
        for verb in (binary.release_reference, binary.register_reference, binary.cleanup_data, binary.delete_data):
            with pytest.raises(FileNotFound):
                await verb(unknown, connection=own)
        with pytest.raises(Pinned):
            await binary.delete_data(pinned, connection=own)
        assert await binary.cleanup_data(pinned, connection=own) is False
        assert await binary.register_reference(key, connection=own) == 1
    assert (await count_of(binary, key), await count_of(binary, pinned)) == (1, 1)


async def test_a_cleanup_in_a_transaction_is_undone_by_a_later_registration(
    binary: Binary, caller: AsyncEngine
) -> None:
    key = (await binary.store_data(b"x")).file_key
    await binary.release_reference(key)
    async with caller.begin() as own:
        assert await binary.cleanup_data(key, connection=own) is True
    assert await binary.register_reference(key) == 1
    assert (await binary.reap()).references == 0
    assert await binary.release_reference(key) == 0
    assert await count_of(binary, key) is None


@pytest.mark.parametrize("held", ["delete", "keep"])
@pytest.mark.parametrize("force", [False, True])
async def test_a_delete_in_a_transaction_is_not_undone_by_a_later_registration(
    connect: Connect, caller: AsyncEngine, force: bool, held: str
) -> None:
    binary = await connect(lifecycle=LifecycleCleanupConfig.model_validate({"held_at_max_retention": held}))
    key = (await binary.store_data(b"x")).file_key
    if force:
        await change(binary, "UPDATE bdr.binary_data_reference SET pinned = true")
    async with caller.begin() as own:
        await binary.delete_data(key, force=force, connection=own)
    assert await binary.register_reference(key) == 1
    assert (await binary.reap()).references == 1
    assert (await blob_states(binary), await objects_in(binary.engine.storage("main"))) == ([], set())


async def test_a_delete_in_a_transaction_is_recorded_there_and_when_the_reaper_has_done_it(
    binary: Binary, caller: AsyncEngine
) -> None:
    async with caller.begin() as own:
        key = (await binary.store_data(b"x", connection=own)).file_key
        await binary.delete_data(key, connection=own)
    recorded = f"SELECT operation_type, detail->>'rule' FROM bdr.operation WHERE file_key = '{key}' ORDER BY 1"
    assert await rows(binary, recorded) == [("delete", None), ("store", None)]
    assert (await binary.reap()).references == 1
    assert await rows(binary, recorded) == [("delete", None), ("reap", "deleted"), ("store", None)]


@pytest.mark.parametrize("verb", ALL)
async def test_a_connection_in_autocommit_mode_is_refused(binary: Binary, caller: AsyncEngine, verb: str) -> None:
    key = (await binary.store_data(b"x")).file_key
    before = await reference_row(binary, key), await rows(binary, BLOBS)
    async with transaction(caller, "connection", "AUTOCOMMIT") as own:
        with pytest.raises(InvalidArgument, match="autocommit"):
            await ALL[verb](binary, key, own)
    assert (await reference_row(binary, key), await rows(binary, BLOBS)) == before
