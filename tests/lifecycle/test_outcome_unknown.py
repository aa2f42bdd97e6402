"""A commit whose answer is lost: nothing is repeated, the error carries the key, and a store finds out by itself."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from bdr import (
    BinaryDataLifecycleManager,
    BinaryDataReference,
    CatalogUnavailable,
    DatabaseConfig,
    OutcomeUnknown,
)
from tests.fixtures.engines import Connect
from tests.guarantees import objects_in, violations
from tests.lifecycle.conftest import ConnectThrough
from tests.lifecycle.gate import closed_gate
from tests.lifecycle.support import (
    HeldSource,
    blob_states,
    count_of,
    cut_after,
    make_due,
    rows,
    until_idle,
    until_quiet,
    until_waiting,
)

Binary = BinaryDataLifecycleManager
Verb = Callable[[Binary, str], Awaitable[object]]

# On a reference with the count 2: the verb, how its error calls it, and the count when it has happened.
VERBS: dict[str, tuple[Verb, str, int | None]] = {
    "register": (lambda binary, key: binary.register_reference(key), "Registering", 3),
    "release": (lambda binary, key: binary.release_reference(key), "Releasing", 1),
    "delete": (lambda binary, key: binary.delete_data(key), "Delete", None),
}


@pytest.mark.both_majors
@pytest.mark.parametrize("happens", [True, False])
@pytest.mark.parametrize("verb", VERBS)
async def test_a_lost_answer_is_told_with_the_key_whether_it_happened_or_not(
    binary: Binary, connect_through: ConnectThrough, database_url: str, verb: str, happens: bool
) -> None:
    far, proxy = await connect_through()
    key = (await binary.store_data(b"x")).file_key
    assert await far.register_reference(key) == 2
    call, what, after = VERBS[verb]
    async with closed_gate(database_url) as gate:
        task = asyncio.ensure_future(call(far, key))
        await gate.reached()
        if happens:
            proxy.cut()
        else:
            await gate.end_sessions()
        with pytest.raises(OutcomeUnknown, match=what) as caught:
            await task
        await gate.open()
        await until_quiet(binary)
    assert (caught.value.keys, caught.value.cancelled) == ((key,), False)
    assert await count_of(binary, key) == (after if happens else 2)
    await make_due(binary)
    await binary.reap()
    assert await blob_states(binary) == ([] if happens and after is None else ["live"])


async def test_a_connection_lost_before_the_commit_means_that_nothing_was_deleted(
    binary: Binary, connect_through: ConnectThrough
) -> None:
    far, proxy = await connect_through()
    key = (await binary.store_data(b"x")).file_key
    cut_after(proxy, b"DELETE FROM bdr.binary_data_reference")
    with pytest.raises(CatalogUnavailable):
        await far.delete_data(key)
    await until_quiet(binary)
    assert await binary.get_data(key) == b"x"


# A store asks the catalog what became of it


async def _store_up_to_its_commit(far: Binary) -> tuple[HeldSource, "asyncio.Task[BinaryDataReference]"]:
    source = HeldSource()
    task = asyncio.create_task(far.store_stream(source.chunks()))
    await source.begun.wait()
    source.go_on.set()
    return source, task


async def assert_owned(binary: Binary, *states: str) -> None:
    assert await violations(binary.engine.database, binary.engine.storages) == []
    assert await blob_states(binary) == list(states)
    assert len(await objects_in(binary.engine.storage("main"))) == len(states)


@pytest.mark.both_majors
async def test_a_store_whose_answer_was_lost_succeeds_when_it_was_published(
    binary: Binary, connect_through: ConnectThrough, database_url: str
) -> None:
    far, proxy = await connect_through()
    async with closed_gate(database_url) as gate:
        source, task = await _store_up_to_its_commit(far)
        await gate.reached()
        proxy.cut()
        # The commit is still under way: who asks now waits for it.
        await until_waiting(binary, 2)
        await gate.open()
        key = (await task).file_key
    assert await far.get_data(key) == b"".join(source.parts)
    assert await count_of(binary, key) == 1
    assert await rows(binary, "SELECT status FROM bdr.operation WHERE operation_type = 'store'") == [("succeeded",)]
    await assert_owned(binary, "live")


@pytest.mark.both_majors
async def test_a_store_whose_answer_was_lost_fails_when_it_was_not_published(
    binary: Binary, connect_through: ConnectThrough, database_url: str
) -> None:
    far, _ = await connect_through()
    async with closed_gate(database_url) as gate:
        _, task = await _store_up_to_its_commit(far)
        await gate.reached()
        await gate.end_sessions()
        with pytest.raises(CatalogUnavailable, match="nothing was stored"):
            await task
    assert await rows(binary, "SELECT file_key FROM bdr.binary_data_reference") == []
    assert await rows(binary, "SELECT status, error ~ 'nothing was stored' FROM bdr.operation") == [("failed", True)]
    await assert_owned(binary, "deleting")
    await make_due(binary)
    await binary.reap()
    await assert_owned(binary)


@pytest.mark.parametrize("happens", [True, False])
async def test_a_store_that_cannot_ask_says_that_it_does_not_know(
    binary: Binary, connect_through: ConnectThrough, database_url: str, happens: bool
) -> None:
    far, proxy = await connect_through()
    async with closed_gate(database_url) as gate:
        _, task = await _store_up_to_its_commit(far)
        await gate.reached()
        proxy.stop()
        if not happens:
            await gate.end_sessions()
        with pytest.raises(OutcomeUnknown, match="Storing") as caught:
            await task
        await gate.open()
        await until_quiet(binary)
    await proxy.start()
    (key,) = caught.value.keys
    assert await count_of(binary, key) == (1 if happens else None)
    await assert_owned(binary, "live" if happens else "pending")
    await far.operations.flush()
    assert await rows(binary, "SELECT status FROM bdr.operation") == [("succeeded" if happens else "failed",)]
    await make_due(binary)
    await binary.reap()
    assert await blob_states(binary) == (["live"] if happens else ["deleting"])


async def test_a_store_in_a_task_that_was_cancelled_before_still_finds_out(
    binary: Binary, connect_through: ConnectThrough
) -> None:
    far, proxy = await connect_through()
    begun = asyncio.Event()

    async def store_at_the_end() -> BinaryDataReference:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            cut_after(proxy, b"COMMIT;")
            stored.append(await far.store_data(b"x"))
        raise AssertionError

    stored: list[BinaryDataReference] = []
    task = asyncio.create_task(store_at_the_end())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await binary.get_data(stored[0].file_key) == b"x"


async def test_a_connection_lost_before_anything_is_written_is_no_unknown_outcome(
    binary: Binary, connect_through: ConnectThrough
) -> None:
    far, proxy = await connect_through()
    cut_after(proxy, b"INSERT INTO bdr.blob")
    with pytest.raises(CatalogUnavailable, match="nothing was stored"):
        await far.store_data(b"x")
    await until_quiet(binary)
    assert await objects_in(binary.engine.storage("main")) == set()
    assert await far.get_data((await far.store_data(b"x")).file_key) == b"x"


# Cancelled callers


@pytest.mark.parametrize("cancelled", [1, 2], ids=["once", "twice"])
async def test_a_cancelled_store_that_was_published_is_told_as_unknown(
    binary: Binary, database_url: str, cancelled: int
) -> None:
    async with closed_gate(database_url) as gate:
        source, task = await _store_up_to_its_commit(binary)
        await gate.reached()
        for _ in range(cancelled):
            task.cancel()
            await until_waiting(binary, 2)
        if cancelled == 1:
            await gate.open()
        with pytest.raises(OutcomeUnknown, match="Storing") as caught:
            await task
        await gate.open()
        await until_quiet(binary)
    assert caught.value.cancelled
    assert await binary.get_data(caught.value.keys[0]) == b"".join(source.parts)
    await assert_owned(binary, "live")


async def test_a_cancelled_store_that_was_not_published_is_cancelled(binary: Binary, database_url: str) -> None:
    async with closed_gate(database_url) as gate:
        _, task = await _store_up_to_its_commit(binary)
        await gate.reached()
        task.cancel()
        await until_waiting(binary, 2)
        await gate.end_sessions()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await rows(binary, "SELECT status FROM bdr.operation") == [("cancelled",)]
    await assert_owned(binary, "deleting")


async def test_a_store_cancelled_twice_gives_its_row_away_as_soon_as_there_is_a_connection(
    connect: Connect, binary: Binary, database_url: str
) -> None:
    narrow = await connect(database=DatabaseConfig(pool_size=1))
    async with closed_gate(database_url) as gate:
        _, task = await _store_up_to_its_commit(narrow)
        await gate.reached()
        for _ in range(2):
            task.cancel()
            # Until it waits again: the first time for its outcome, for which there is no connection.
            for _ in range(5):
                await asyncio.sleep(0)
        with pytest.raises(OutcomeUnknown):
            await task
        await gate.end_sessions()
        await until_idle(narrow)
    assert await rows(binary, "SELECT status FROM bdr.operation") == [("cancelled",)]
    await assert_owned(binary, "deleting")


async def test_a_timeout_while_storing_is_told_as_unknown_when_it_may_have_happened(
    binary: Binary, database_url: str
) -> None:
    async with closed_gate(database_url) as gate:

        async def impatient() -> None:
            async with asyncio.timeout(None) as patience:
                timeouts.append(patience)
                await binary.store_data(b"x")

        timeouts: list[asyncio.Timeout] = []
        task = asyncio.create_task(impatient())
        await gate.reached()
        timeouts[0].reschedule(asyncio.get_running_loop().time())
        await until_waiting(binary, 2)
        await gate.open()
        with pytest.raises(OutcomeUnknown):
            await task
    await assert_owned(binary, "live")


async def test_a_lost_answer_to_a_release_of_all_names_the_holder_and_no_key(
    binary: Binary, connect_through: ConnectThrough, database_url: str
) -> None:
    far, proxy = await connect_through()
    key = (await binary.store_data(b"x")).file_key
    await binary.register_reference(key, holder="a\nb")
    async with closed_gate(database_url) as gate:
        task = asyncio.ensure_future(far.release_holder("a\nb"))
        await gate.reached()
        proxy.cut()
        with pytest.raises(OutcomeUnknown, match=r"Releasing on all that 'a\\nb' holds was sent") as caught:
            await task
        assert caught.value.keys == ()
    await until_quiet(binary)
    assert await count_of(binary, key) == 1


async def test_a_cancelled_release_of_all_is_told_as_unknown(binary: Binary, database_url: str) -> None:
    key = (await binary.store_data(b"x")).file_key
    await binary.register_reference(key, holder="node")
    async with closed_gate(database_url) as gate:
        task = asyncio.ensure_future(binary.release_holder("node"))
        await gate.reached()
        task.cancel()
        with pytest.raises(OutcomeUnknown, match="'node'"):
            await task
    await until_idle(binary)
    assert await count_of(binary, key) == 1
