"""Register and release many: as the verbs for one, called for each in turn, and each key has its own result."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import bdr
from bdr import (
    BatchResult,
    BinaryDataLifecycleManager,
    BinaryStorageConfig,
    BinaryStorageError,
    Busy,
    CatalogUnavailable,
    DatabaseConfig,
    FileNotFound,
    Gone,
    InstanceClosed,
    InvalidArgument,
    LifecycleCleanupConfig,
    NotReferenced,
    OperationError,
    OutcomeUnknown,
    TransactionConflict,
)
from bdr.keys import new_file_key
from bdr.manager import batch
from tests.fixtures.engines import AT_ONCE, Connect
from tests.fixtures.postgres import PostgresServer
from tests.guarantees import objects_in, violations
from tests.lifecycle.conftest import ConnectThrough
from tests.lifecycle.gate import closed_gate
from tests.lifecycle.support import blob_states, change, count_of, rows, until_quiet, until_waiting
from tests.lifecycle.test_callers_transaction import LEVELS, transaction
from tests.manager.support import statements_of
from tests.reaper.support import store_many
from tests.storage.helpers import until

Binary = BinaryDataLifecycleManager
LOCK = text("SELECT FROM bdr.binary_data_reference WHERE file_key = ANY(:keys) FOR UPDATE")
COUNTS = "SELECT file_key, ref_count FROM bdr.binary_data_reference"


def told(results: BatchResult[Any]) -> list[object]:
    """The value, or the class of the error, of each."""
    return [one.value if one.error is None else type(one.error) for one in results]


async def one_by_one(verb: Callable[[str], Awaitable[object]], keys: Sequence[str]) -> list[object]:
    """What the verb for one tells, called for each in turn."""
    answers: list[object] = []
    for key in keys:
        try:
            answers.append(await verb(key))
        except BinaryStorageError as error:
            answers.append(type(error))
    return answers


# One after the other


@pytest.mark.both_majors
async def test_each_key_has_the_result_of_its_place(binary: Binary) -> None:
    first, second, deleted = await store_many(binary, 3)
    await binary.delete_data(deleted)
    keys = [second, first, deleted, second, "no\0key", second, new_file_key()]
    results = await binary.register_many(keys)
    assert told(results) == [2, 2, Gone, 3, FileNotFound, 4, FileNotFound]
    assert [one.key for one in results] == keys
    keys = [first, first, first, second, deleted]
    results = await binary.release_many(keys)
    assert told(results) == [1, 0, NotReferenced, 3, Gone]
    assert (await count_of(binary, first), await count_of(binary, second)) == (0, 3)


async def test_errors_are_each_ones_own_and_those_of_the_verb_for_one(binary: Binary) -> None:
    (key,) = await store_many(binary, 1)
    await binary.register_reference(key, holder="node")
    missing = new_file_key()
    results = await binary.release_many([key, key, key, missing, missing])
    errors = [one.error for one in results if one.error is not None]
    assert len(set(map(id, errors))) == 4
    for error, again in zip(errors, (key, key, missing, missing), strict=True):
        with pytest.raises(type(error)) as alone:
            await binary.release_reference(again)
        assert str(alone.value) == str(error)


async def test_values_come_all_or_as_a_group_of_errors(binary: Binary) -> None:
    keys = await store_many(binary, 2)
    results = await binary.register_many(keys)
    assert results.results() == [2, 2]
    assert results.failed == []
    results = await binary.register_many([keys[0], new_file_key(), "x"])
    assert results[0].result() == 3
    with pytest.raises(FileNotFound):
        results[1].result()
    with pytest.raises(ExceptionGroup, match="2 of 3 failed") as group:
        results.results()
    assert group.value.exceptions == tuple(one.error for one in results.failed)


async def test_a_holder_counts_once_however_often_it_comes(binary: Binary) -> None:
    first, second = await store_many(binary, 2)
    lease = timedelta(hours=1)
    assert told(await binary.register_many([first, second, first], holder="node", lease=lease)) == [2, 2, 2]
    assert told(await binary.register_many([first, second], holder="node", bound=True)) == [2, 2]
    holdings = await binary.get_held("node")
    assert [(one.instance_id, one.lease_expires_at) for one in holdings] == [(binary.engine.instance_id, None)] * 2
    assert told(await binary.release_many([first, first, second, "x"], holder="node")) == [
        1,
        NotReferenced,
        1,
        FileNotFound,
    ]
    assert await binary.get_held("node") == []


VERBS: tuple[Callable[..., Awaitable[BatchResult[Any]]], ...] = (
    lambda binary, keys: binary.register_many(keys),
    lambda binary, keys: binary.release_many(keys),
    lambda binary, keys: binary.delete_many(keys),
)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("keys", ["06abc", b"06abc", 5, None])
async def test_what_is_no_collection_of_keys_is_refused(binary: Binary, verb: Any, keys: object) -> None:
    with pytest.raises(InvalidArgument, match="file keys as a list"):
        await verb(binary, keys)


async def test_what_no_use_can_be_is_refused_before_anything_is_counted(binary: Binary) -> None:
    (key,) = await store_many(binary, 1)
    for wrong in ({"lease": AT_ONCE}, {"bound": True}, {"holder": ""}, {"holder": "a", "lease": AT_ONCE}):
        with pytest.raises(InvalidArgument):
            await binary.register_many([key], **wrong)
    with pytest.raises(InvalidArgument):
        await binary.release_many([key], holder="a\0")
    assert await count_of(binary, key) == 1


async def test_a_key_that_is_no_text_and_nothing_at_all(binary: Binary) -> None:
    (key,) = await store_many(binary, 1)
    keys: Any = [5, key, None]
    assert told(await binary.register_many(keys)) == [InvalidArgument, 2, InvalidArgument]
    assert await binary.register_many([]) == ()
    assert told(await binary.release_many(["", "x"])) == [FileNotFound] * 2


async def test_an_engine_that_is_closed_refuses_the_whole(connect: Connect) -> None:
    binary = await connect()
    binary.engine.close("over")
    for verb in VERBS:
        with pytest.raises(InstanceClosed):
            await verb(binary, [])


# Against a model


class Ground:
    """A catalog with an engine that outlives the examples; `None` among the counts is a file that was deleted."""

    def __init__(self, postgres: PostgresServer, template: str, folder: Path) -> None:
        self.runner = asyncio.Runner()
        self.name = self.runner.run(postgres.create_database(template))
        storage = BinaryStorageConfig(storage_type="fs", root=str(folder / self.name))
        self._connecting = bdr.connect(postgres.url(self.name), storage)
        self.binary = self.runner.run(self._connecting.__aenter__())

    async def made(self, files: Sequence[tuple[int | None, int, bool]]) -> list[str]:
        keys = await store_many(self.binary, len(files))
        for key, (count, holders, ends) in zip(keys, files, strict=True):
            retention = "interval '0'" if ends else "interval '1h'"
            update = f"UPDATE bdr.binary_data_reference SET ref_count = :n, zero_ref_retention = {retention}"
            await change(self.binary, f"{update} WHERE file_key = :key", n=count or 0, key=key)
            for number in range(holders):
                await self.binary.register_reference(key, holder=f"holder-{number}")
            if count is None:
                await self.binary.delete_data(key)
        return keys

    async def state(self, keys: Sequence[str]) -> list[int | None]:
        counts = dict(await rows(self.binary, COUNTS))
        return [counts.get(key) for key in keys]

    async def close(self) -> None:
        assert await violations(self.binary.engine.database, self.binary.engine.storages) == []
        await self._connecting.__aexit__(None, None, None)


@pytest.fixture
def ground(postgres: PostgresServer, template_database: str, tmp_path: Path) -> Iterator[Ground]:
    made = Ground(postgres, template_database, tmp_path)
    yield made
    made.runner.run(made.close())
    made.runner.close()


COUNT = st.none() | st.integers(0, 3)
FILES = st.lists(st.tuples(COUNT, st.integers(0, 2), st.booleans()), min_size=3, max_size=3)
# Also of what was never there, and of what cannot be a key.
ORDER = st.lists(st.integers(0, 4), max_size=9)
HOLDER = st.sampled_from([None, "holder-0", "holder-1"])


def test_a_batch_is_what_one_after_the_other_would_have_been(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that a batch also goes beyond one chunk.
    monkeypatch.setattr(batch, "CHUNK", 5)

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @example([(2, 0, True), (1, 1, True), (0, 0, True)], [0, 0, 0, 1, 1, 2, 0], None, "release")
    @example([(1, 2, True), (None, 0, True), (0, 1, True)], [0, 0, 2, 2, 1, 0], "holder-0", "release")
    @example([(1, 0, False), (0, 1, False), (0, 0, True)], [1, 0, 1, 2, 2, 3, 4], "holder-0", "register")
    @given(FILES, ORDER, HOLDER, st.sampled_from(["register", "release", "delete"]))
    def check(files: list[tuple[int | None, int, bool]], order: list[int], holder: str | None, verb: str) -> None:
        ground.runner.run(compare(files, order, holder, verb))

    async def compare(
        files: list[tuple[int | None, int, bool]], order: list[int], holder: str | None, verb: str
    ) -> None:
        binary = ground.binary
        together, apart = [[*await ground.made(files), "0" * 26, "no key"] for _ in range(2)]
        one: dict[str, Callable[[str], Awaitable[object]]] = {
            "register": lambda key: binary.register_reference(key, holder=holder),
            "release": lambda key: binary.release_reference(key, holder=holder),
            "delete": binary.delete_data,
        }
        many: dict[str, Callable[[list[str]], Awaitable[BatchResult[Any]]]] = {
            "register": lambda keys: binary.register_many(keys, holder=holder),
            "release": lambda keys: binary.release_many(keys, holder=holder),
            "delete": binary.delete_many,
        }
        expected = await one_by_one(one[verb], [apart[place] for place in order])
        assert told(await many[verb]([together[place] for place in order])) == expected
        assert await ground.state(together) == await ground.state(apart)

    check()


# How much is asked of the database


async def test_ten_thousand_keys_are_a_handful_of_statements(binary: Binary) -> None:
    keys = await store_many(binary, 100)
    await binary.register_reference(keys[0])
    # Besides what the engine does in the background.
    sent = statements_of(binary, "file_key")
    results = await binary.register_many(key for _ in range(100) for key in keys)
    assert results.results()[-1] == 101
    assert len(sent) <= 10
    sent.clear()
    assert (await binary.release_many(keys * 100, holder="nobody")).failed[0].error
    assert len(sent) <= 10
    sent.clear()
    missing = [new_file_key() for _ in range(1000)]
    assert told(await binary.register_many(missing)) == [FileNotFound] * 1000
    # Those that nobody has locked, those that somebody may have, and why there are none.
    assert len(sent) <= 3 + 2


async def test_what_ends_with_its_last_release_is_cleaned_up_in_one_go(connect: Connect) -> None:
    binary = await connect(lifecycle=LifecycleCleanupConfig(zero_ref_retention=AT_ONCE))
    keys = await store_many(binary, 50)
    await binary.register_many(keys[:10])
    sent = statements_of(binary, "bdr.")
    assert told(await binary.release_many([*keys, keys[-1]])) == [1] * 10 + [0] * 40 + [Gone]
    assert len(sent) <= 12
    assert await blob_states(binary) == ["live"] * 10
    assert len(await objects_in(binary.engine.storage("main"))) == 10
    ended = await rows(binary, "SELECT operation_type, count(*) FROM bdr.operation GROUP BY 1 ORDER BY 1")
    assert ended == [("cleanup", 40), ("store", 50)]


async def test_no_more_keys_are_taken_ahead_than_a_chunk_has(binary: Binary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "CHUNK", 3)
    (key,) = await store_many(binary, 1)

    def endless() -> Iterator[str]:
        for taken in range(1, 8):
            yield key
            counted.append(taken)
        raise ZeroDivisionError

    counted: list[int] = []
    with pytest.raises(ZeroDivisionError):
        await binary.register_many(endless())
    # Two chunks of three were counted; the third was not complete when its source failed.
    assert await count_of(binary, key) == 7


# In the caller's transaction


@pytest.mark.both_majors
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["connection", "session"])
async def test_all_is_part_of_the_callers_transaction_and_no_failure_of_one_spoils_it(
    connect: Connect, caller: AsyncEngine, kind: str, level: str
) -> None:
    binary = await connect(lifecycle=LifecycleCleanupConfig(zero_ref_retention=AT_ONCE))
    for end in ("commit", "rollback"):
        first, second, third = await store_many(binary, 3)
        await binary.register_reference(third, holder="node")
        before = dict(await rows(binary, COUNTS))
        async with transaction(caller, kind, level) as own:
            up = await binary.register_many([second, "x", second, first, new_file_key()], connection=own)
            assert told(up) == [2, FileNotFound, 3, 2, FileNotFound]
            down = await binary.release_many([first, first, first, third, third], connection=own)
            assert told(down) == [1, 0, NotReferenced, 1, NotReferenced]
            assert told(await binary.release_many([third, third], holder="node", connection=own)) == [0, NotReferenced]
            assert told(await binary.register_many([third, third], holder="node", connection=own)) == [1, 1]
            assert dict(await rows(binary, COUNTS)) == before
            await getattr(own, end)()
        after = dict(await rows(binary, COUNTS))
        expected = {first: 0, second: 3, third: 1} if end == "commit" else {}
        assert after == before | expected
    assert await blob_states(binary) == ["live"] * 6


async def test_an_error_of_the_keys_themselves_is_raised_as_it_is(binary: Binary, caller: AsyncEngine) -> None:
    (key,) = await store_many(binary, 1)

    def failing() -> Iterator[str]:
        yield key
        raise OSError("the source")

    async with caller.begin() as own:
        verbs: list[Any] = [binary.register_many, binary.release_many, binary.delete_many]
        for verb in verbs:
            for connection in (None, own):
                with pytest.raises(OSError, match="the source") as caught:
                    await verb(failing(), connection=connection)
                assert type(caught.value) is OSError
    assert await count_of(binary, key) == 1


@pytest.mark.parametrize("level", LEVELS[1:])
async def test_a_snapshot_older_than_a_change_is_a_conflict_of_the_whole(
    binary: Binary, caller: AsyncEngine, level: str
) -> None:
    keys = await store_many(binary, 3)
    for verb in VERBS:
        async with transaction(caller, "connection", level) as own:
            await own.execute(text("SELECT"))
            await binary.register_reference(keys[1])
            with pytest.raises(TransactionConflict):
                await (binary.delete_many if verb is VERBS[2] else binary.release_many)(keys, connection=own)
            await own.rollback()


# Locked rows


@pytest.mark.parametrize("holder", [None, "node"])
async def test_what_somebody_keeps_locked_is_busy_by_itself(
    connect: Connect, caller: AsyncEngine, holder: str | None
) -> None:
    binary = await connect(database=DatabaseConfig(lock_timeout=timedelta(milliseconds=300)))
    keys = await store_many(binary, 6)
    gone = new_file_key()
    async with caller.begin() as own, caller.begin() as other:
        await own.execute(LOCK, {"keys": keys[2:3]})
        await other.execute(LOCK, {"keys": keys[4:5]})
        asked = [keys[4], gone, *keys, keys[0]]
        task = asyncio.create_task(binary.register_many(asked, holder=holder))
        await until_waiting(binary)
        # The others are counted, and free, before anybody waits.
        assert await binary.register_reference(keys[0]) == (4 if holder is None else 3)
        # The first that it waits for gets free; the other does not.
        await own.commit()
        results = await task
    again = 3 if holder is None else 2
    assert told(results)[:2] == [Busy, FileNotFound]
    assert told(results)[2:] == [2, 2, 2, 2, Busy, 2, again]
    assert await count_of(binary, keys[4]) == 1


async def test_what_was_locked_for_a_while_is_counted_after_it(binary: Binary, caller: AsyncEngine) -> None:
    keys = await store_many(binary, 4)
    async with caller.begin() as own:
        await own.execute(LOCK, {"keys": keys[1:3]})
        task = asyncio.create_task(binary.release_many(keys * 2))
        await until_waiting(binary)
        assert [await count_of(binary, key) for key in keys] == [0, 1, 1, 0]
        raised = text("UPDATE bdr.binary_data_reference SET ref_count = 5 WHERE file_key = :key")
        await own.execute(raised, {"key": keys[2]})
    assert told(await task) == [0, 0, 4, 0, NotReferenced, NotReferenced, 3, NotReferenced]


async def test_one_that_the_server_refuses_does_not_fail_the_others(binary: Binary) -> None:
    keys = await store_many(binary, 5)
    await change(
        binary, "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'"
    )
    await change(
        binary,
        "CREATE TRIGGER refuse BEFORE UPDATE ON bdr.binary_data_reference FOR EACH ROW "
        f"WHEN (OLD.file_key = '{keys[3]}') EXECUTE FUNCTION refuse()",
    )
    expected = [2, 2, 2, OperationError, 2, 3, OperationError]
    assert told(await binary.register_many([*keys, keys[0], keys[3]])) == expected
    assert [await count_of(binary, key) for key in keys] == [3, 2, 2, 1, 2]


async def test_batches_that_overlap_in_opposite_order_never_deadlock(binary: Binary, connect: Connect) -> None:
    other = await connect()
    keys = await store_many(binary, 40)
    many: list[BatchResult[int]] = []

    async def rounds(engine: Binary, order: list[str], holder: str | None) -> None:
        for _ in range(10):
            many.append(await engine.register_many(order, holder=holder))
            many.append(await engine.release_many(order, holder=holder))

    await asyncio.gather(
        *(
            rounds(engine, keys[shift:][::step] + keys[:shift][::step], holder)
            for engine, step in ((binary, 1), (other, -1))
            for shift, holder in ((0, None), (13, None), (27, f"node {step}"))
        )
    )
    assert [one for batched in many for one in batched.failed] == []
    assert [await count_of(binary, key) for key in keys] == [1] * 40


# Lost answers and cancelled callers


@pytest.mark.parametrize("happens", [True, False])
@pytest.mark.parametrize("verb", ["register", "release by name", "delete"])
async def test_a_lost_answer_is_told_of_each_of_its_chunk_and_of_no_other(
    binary: Binary,
    connect_through: ConnectThrough,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    happens: bool,
) -> None:
    monkeypatch.setattr(batch, "CHUNK", 3)
    far, proxy = await connect_through()
    keys = await store_many(binary, 5)
    await binary.register_many(keys, holder="node")
    calls: dict[str, tuple[Awaitable[BatchResult[Any]], object, int | None]] = {
        "register": (far.register_many([*keys[:3], "x", *keys[3:]]), 3, 3),
        "release by name": (far.release_many([*keys[:3], "x", *keys[3:]], holder="node"), 1, 1),
        "delete": (far.delete_many([*keys[:3], "x", *keys[3:]]), None, None),
    }
    call, value, after = calls.pop(verb)
    for unused, _, _ in calls.values():
        unused.close()  # type: ignore[attr-defined]
    async with closed_gate(database_url) as gate:
        task = asyncio.ensure_future(call)
        await gate.reached()
        if happens:
            proxy.cut()
        else:
            await gate.end_sessions()
        await gate.open()
        results = await task
        await until_quiet(binary)
    assert told(results) == [OutcomeUnknown] * 3 + [FileNotFound, value, value]
    unknown = [one.error for one in results[:3]]
    assert [error.keys for error in unknown if isinstance(error, OutcomeUnknown)] == [(key,) for key in keys[:3]]
    assert len(set(map(id, unknown))) == 3
    assert [await count_of(binary, key) for key in keys] == [after if happens else 2] * 3 + [after] * 2
    if verb == "delete":
        await change(binary, "UPDATE bdr.blob SET next_attempt_at = now() WHERE next_attempt_at IS NOT NULL")
        await binary.reap()


async def test_a_catalog_that_cannot_be_reached_is_told_of_each(connect_through: ConnectThrough) -> None:
    far, proxy = await connect_through()
    (key,) = await store_many(far, 1)
    proxy.stop()

    async def noticed() -> bool:
        return told(await far.register_many([key])) == [CatalogUnavailable]

    # Of a statement on a connection that was lost before nobody knows what became.
    await until(noticed)
    for verb in VERBS:
        results = await verb(far, [key, key, "x"])
        assert told(results) == [CatalogUnavailable, CatalogUnavailable, FileNotFound]
    await proxy.start()
    assert await far.register_reference(key) == 2


@pytest.mark.parametrize("verb", VERBS)
async def test_who_is_cancelled_hears_of_all_that_was_or_may_have_been_changed(
    binary: Binary, caller: AsyncEngine, monkeypatch: pytest.MonkeyPatch, verb: Any
) -> None:
    monkeypatch.setattr(batch, "CHUNK", 2)
    keys = await store_many(binary, 6)
    async with caller.begin() as own:
        await own.execute(LOCK, {"keys": keys[2:3]})
        task = asyncio.create_task(verb(binary, keys))
        # The first chunk is done, and of the second what nobody has locked.
        await until_waiting(binary)
        task.cancel()
        with pytest.raises(OutcomeUnknown) as caught:
            await task
    assert caught.value.cancelled
    assert set(caught.value.keys) == set(keys[:4])
    await until_quiet(binary)
    changed = [await count_of(binary, key) != 1 for key in keys]
    assert changed == [True] * 4 + [False] * 2


async def test_who_is_cancelled_before_anything_was_sent_is_cancelled(connect: Connect) -> None:
    narrow = await connect(database=DatabaseConfig(pool_size=1))
    (key,) = await store_many(narrow, 1)
    async with narrow.engine.database.reading():
        task = asyncio.create_task(narrow.register_many([key]))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await count_of(narrow, key) == 1
