"""What many callers delete at once goes in groups, and ends for each as if it had been alone."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bdr import (
    BinaryDataLifecycleManager,
    BinaryStorageConfig,
    Busy,
    DatabaseConfig,
    FileNotFound,
    LifecycleCleanupConfig,
    OperationError,
    Pinned,
    ReaperConfig,
)
from bdr.errors import OutcomeUnknown
from bdr.manager import clock
from bdr.manager import sweeping as sweeping_module
from bdr.manager.deletion import Terms
from tests.fixtures.engines import Connect
from tests.fixtures.storages import MakeStorageConfig
from tests.guarantees import objects_in, violations
from tests.lifecycle.conftest import ConnectThrough
from tests.lifecycle.gate import CommitGate, closed_gate
from tests.lifecycle.support import (
    HeldDelete,
    blob_states,
    change,
    keys_of,
    make_due,
    rows,
    set_count,
    unmounted,
    until_quiet,
    until_waiting,
)
from tests.lifecycle.test_shared_blob import share
from tests.manager.support import statements_of
from tests.storage.helpers import until

Binary = BinaryDataLifecycleManager
Task = asyncio.Task[None]

FINISH = "DELETE FROM bdr.blob"
REMOVE = "DELETE FROM bdr.binary_data_reference"
RECORDS = "SELECT file_key FROM bdr.operation WHERE operation_type = 'delete' AND status = 'succeeded' ORDER BY 1"
LOCK = "SELECT FROM bdr.binary_data_reference WHERE file_key = ANY(:keys) ORDER BY file_key FOR UPDATE"
REFUSE = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'",
    "CREATE TRIGGER refuse BEFORE DELETE ON bdr.binary_data_reference "  # noqa: ISC004
    "FOR EACH ROW WHEN (OLD.file_size = 7) EXECUTE FUNCTION refuse()",
)
DELETE = Terms("delete", whatever_the_count=True)
CLEANUP = Terms("cleanup", whatever_the_count=False)


async def stored(binary: Binary, number: int) -> list[str]:
    return [(await binary.store_data(b"%d" % one)).file_key for one in range(number)]


def deleting(binary: Binary, *keys: str) -> list[Task]:
    return [asyncio.create_task(binary.delete_data(key)) for key in keys]


def gate_at_finish(database_url: str) -> AbstractAsyncContextManager[CommitGate]:
    """Sweeps have deleted their objects, and stop before their rows are gone."""
    return closed_gate(database_url, "DELETE", "blob")


async def until_waiting_for_a_sweep(binary: Binary, number: int) -> None:
    """Wait until so many objects wait for the sweep that is under way."""

    async def all_wait() -> bool:
        return len(binary.deleting.sweeping._groups["main"]._gathered) == number

    await until(all_wait)


def gate_at_delete(database_url: str) -> AbstractAsyncContextManager[CommitGate]:
    """References are deleted, and that is not committed yet."""
    return closed_gate(database_url, "DELETE")


async def in_the_way(binary: Binary, gate: CommitGate) -> list[Task]:
    """One delete that is alone and one that is a group, both at the gate: what comes now is gathered."""
    tasks: list[Task] = []
    for number in (1, 2):
        tasks += deleting(binary, *await stored(binary, 1))
        await gate.reached(number)
    return tasks


async def until_gathered(binary: Binary, number: int, terms: Terms = DELETE) -> None:
    """Wait until so many deletes wait for the group that is under way."""

    async def all_wait() -> bool:
        return len(binary.deleting._removing[terms]._groups._gathered) == number

    await until(all_wait)


def told(ended: Iterable[bool | BaseException | None]) -> list[object]:
    return [type(one) if isinstance(one, BaseException) else one for one in ended]


# The transaction


async def test_deletes_at_once_share_a_transaction_and_a_sweep(binary: Binary, database_url: str) -> None:
    keys = await stored(binary, 60)
    async with gate_at_delete(database_url) as gate:
        before = await in_the_way(binary, gate)
        tasks = deleting(binary, *keys)
        await until_gathered(binary, 60)
        sent, finished = statements_of(binary, REMOVE), statements_of(binary, FINISH)
        await gate.open()
        assert await asyncio.gather(*tasks) == [None] * 60
    await asyncio.gather(*before)
    assert len(sent) == 1
    # Theirs, and at most one for each of those before.
    assert 1 <= len(finished) <= 3
    assert set(keys) < {key for (key,) in await rows(binary, RECORDS)}
    assert len(await rows(binary, RECORDS)) == 62
    assert (await keys_of(binary), await blob_states(binary)) == (set(), [])
    assert await objects_in(binary.engine.storage("main")) == set()


async def test_one_that_comes_alone_waits_for_the_lock_in_its_first_transaction(
    binary: Binary, caller: AsyncEngine
) -> None:
    keys = await stored(binary, 1)
    sent = statements_of(binary, "bdr.binary_data_reference")
    async with caller.begin() as own:
        await own.execute(text(LOCK), {"keys": keys})
        tasks = deleting(binary, *keys)
        await until_waiting(binary)
    await asyncio.gather(*tasks)
    assert not any("SKIP LOCKED" in one for one in sent)


async def test_each_of_a_group_has_a_verdict_of_its_own(binary: Binary, database_url: str) -> None:
    there, missing, pinned, twice = await stored(binary, 4)
    await binary.delete_data(missing)
    await binary.pin(pinned)
    async with gate_at_delete(database_url) as gate:
        before = await in_the_way(binary, gate)
        tasks = deleting(binary, there, missing, pinned, twice, twice, missing)
        await until_gathered(binary, 6)
        await gate.open()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*before)
    gone = type(ended[1])
    assert told(ended) == [None, gone, Pinned, None, gone, gone]
    assert issubclass(gone, FileNotFound)
    assert repr(pinned) in str(ended[2])
    assert [repr(key) in str(ended[at]) for at, key in ((1, missing), (4, twice), (5, missing))] == [True] * 3
    assert await keys_of(binary) == {pinned}
    assert await violations(binary.engine.database, binary.engine.storages) == []


async def test_each_cleanup_of_a_group_has_a_verdict_of_its_own(binary: Binary, database_url: str) -> None:
    keys = await stored(binary, 6)
    for key, count in zip(keys, (0, 0, 0, 1, 0, 0), strict=True):
        await set_count(binary, key, count)
    await binary.pin(keys[4])
    await binary.delete_data(keys[5])
    async with gate_at_delete(database_url) as gate:
        tasks = []
        for number in (1, 2):
            tasks.append(asyncio.create_task(binary.cleanup_data(keys[number - 1])))
            await gate.reached(number)
        tasks += [asyncio.create_task(binary.cleanup_data(key)) for key in keys[2:]]
        await until_gathered(binary, 4, CLEANUP)
        await gate.open()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert told(ended[:5]) == [True, True, True, False, False]
    assert isinstance(ended[5], FileNotFound)
    assert await keys_of(binary) == set(keys[3:5])


async def test_of_a_group_that_shares_a_blob_one_takes_it_along(binary: Binary, database_url: str) -> None:
    (first,) = await stored(binary, 1)
    keys = [first, await binary.engine.database.write(lambda own: share(own, first))]
    async with gate_at_delete(database_url) as gate:
        tasks = await in_the_way(binary, gate)
        tasks += deleting(binary, *keys)
        await until_gathered(binary, 2)
        await gate.open()
        await asyncio.gather(*tasks)
    assert await blob_states(binary) == []
    assert await objects_in(binary.engine.storage("main")) == set()


async def test_releases_at_once_that_end_files_share_what_follows(connect: Connect) -> None:
    binary = await connect(lifecycle=LifecycleCleanupConfig(zero_ref_retention=timedelta(0)))
    keys = await stored(binary, 60)
    sent = statements_of(binary, REMOVE)
    assert await asyncio.gather(*map(binary.release_reference, keys)) == [0] * 60
    assert len(sent) < 20
    assert (await keys_of(binary), await blob_states(binary)) == (set(), [])


async def test_one_that_somebody_has_locked_delays_only_itself(
    connect: Connect, caller: AsyncEngine, database_url: str
) -> None:
    # Nobody else is helped by giving up.
    binary = await connect(database=DatabaseConfig(lock_timeout=timedelta(minutes=10)))
    keys = await stored(binary, 3)
    async with gate_at_delete(database_url) as gate:
        before = await in_the_way(binary, gate)
        tasks = deleting(binary, *keys, keys[1])
        await until_gathered(binary, 4)
        async with caller.begin() as own:
            await own.execute(text(LOCK), {"keys": [keys[1]]})
            await gate.open()
            async with asyncio.timeout(20):
                await asyncio.gather(*before, tasks[0], tasks[2])
            await until_waiting(binary)
            # Nor is whoever comes while it waits.
            await binary.delete_data(*await stored(binary, 1))
            third = deleting(binary, keys[1])
            await asyncio.sleep(0)
            assert await keys_of(binary) == {keys[1]}
    ended = await asyncio.gather(tasks[1], tasks[3], *third, return_exceptions=True)
    assert ended[0] is None
    assert all(isinstance(one, FileNotFound) for one in ended[1:])


async def test_many_that_are_locked_leave_connections_for_the_others(connect: Connect, caller: AsyncEngine) -> None:
    limits = DatabaseConfig(pool_size=2, pool_timeout=timedelta(seconds=1), lock_timeout=timedelta(seconds=30))
    binary = await connect(database=limits)
    watcher = await connect()
    *keys, free = await stored(binary, 4)
    async with caller.begin() as own:
        await own.execute(text(LOCK), {"keys": keys})
        tasks = deleting(binary, *keys)
        await until_waiting(watcher)
        await binary.delete_data(free)
        # One waits for the lock; the others, whose turn to do so has not come, have changed nothing.
        ended = await asyncio.gather(*tasks[1:], return_exceptions=True)
        assert told(ended) == [Busy] * 2
        assert len(set(map(id, ended))) == 2
    await tasks[0]
    assert await keys_of(binary) == set(keys[1:])


async def test_one_that_is_cancelled_while_it_waits_to_be_sent_again_is_not_deleted(
    connect: Connect, caller: AsyncEngine
) -> None:
    # One of its connections waits for locks.
    binary = await connect(database=DatabaseConfig(pool_size=2))
    keys = await stored(binary, 2)
    async with caller.begin() as own:
        await own.execute(text(LOCK), {"keys": keys})
        first, second = deleting(binary, *keys)

        async def group_is_over() -> bool:
            removing = binary.deleting._removing.get(DELETE)
            return removing is not None and keys[1] in removing._lanes._waiting

        await until(group_is_over)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
    await first
    await binary.deleting.close()
    assert await keys_of(binary) == {keys[1]}


async def test_one_that_the_server_refuses_does_not_fail_the_others(binary: Binary, database_url: str) -> None:
    for statement in REFUSE:
        await change(binary, statement)
    keys = [(await binary.store_data(one)).file_key for one in (b"one", b"refused", b"three", b"refused")]
    async with gate_at_delete(database_url) as gate:
        before = await in_the_way(binary, gate)
        tasks = deleting(binary, *keys)
        await until_gathered(binary, 4)
        await gate.open()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*before)
    assert told(ended) == [None, OperationError, None, OperationError]
    assert ended[1] is not ended[3]
    assert await keys_of(binary) == {keys[1], keys[3]}
    assert await blob_states(binary) == ["live", "live"]


async def test_a_caller_that_is_cancelled_takes_the_group_away_from_nobody(binary: Binary, database_url: str) -> None:
    keys = await stored(binary, 4)
    async with gate_at_delete(database_url) as gate:
        before = await in_the_way(binary, gate)
        unsent, sent, alone, last = deleting(binary, *keys)
        await until_gathered(binary, 4)
        unsent.cancel()
        before[0].cancel()
        await gate.let_through()
        await gate.reached()
        sent.cancel()
        ended = await asyncio.gather(unsent, before[0], sent, return_exceptions=True)
        await gate.open()
        await asyncio.gather(before[1], alone, last)
    # What was not sent did not happen, and nobody is told that it may have.
    assert told(ended) == [asyncio.CancelledError, OutcomeUnknown, OutcomeUnknown]
    unknown = [one for one in ended if isinstance(one, OutcomeUnknown)]
    assert all(one.cancelled for one in unknown)
    assert unknown[1].keys == (keys[1],)
    assert await keys_of(binary) == {keys[0]}
    # Whose callers were gone when the references were, the reaper sweeps.
    assert await blob_states(binary) == ["deleting", "deleting", "live"]
    await make_due(binary)
    assert (await binary.reap()).blobs == 2


async def test_what_all_have_taken_back_is_not_sent(binary: Binary, database_url: str) -> None:
    keys = await stored(binary, 3)
    async with gate_at_delete(database_url) as gate:
        before = await in_the_way(binary, gate)
        tasks = deleting(binary, *keys)
        await until_gathered(binary, 3)
        sent = statements_of(binary, "SKIP LOCKED")
        for task in tasks:
            task.cancel()
        await gate.open()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*before)
        await binary.deleting.close()
    assert told(ended) == [asyncio.CancelledError] * 3
    assert sent == []
    assert await keys_of(binary) == set(keys)


@pytest.mark.parametrize("happens", [True, False])
async def test_a_lost_answer_is_told_to_each_with_its_own_key(
    binary: Binary, connect_through: ConnectThrough, database_url: str, happens: bool
) -> None:
    far, proxy = await connect_through()
    keys = await stored(far, 3)
    async with gate_at_delete(database_url) as gate:
        before = await in_the_way(far, gate)
        tasks = deleting(far, *keys)
        await until_gathered(far, 3)
        await gate.let_through()
        await gate.reached()
        await asyncio.gather(*before)
        if happens:
            proxy.cut()
        else:
            await gate.end_sessions()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await gate.open()
    await until_quiet(binary)
    assert told(ended) == [OutcomeUnknown] * 3
    assert [one.keys for one in ended if isinstance(one, OutcomeUnknown)] == [(key,) for key in keys]
    assert not any(one.cancelled for one in ended if isinstance(one, OutcomeUnknown))
    assert await keys_of(binary) == (set() if happens else set(keys))
    await make_due(binary)
    await binary.reap()
    assert await blob_states(far) == ([] if happens else ["live"] * 3)


async def test_a_close_waits_for_what_was_asked_for_before(binary: Binary, database_url: str) -> None:
    keys = await stored(binary, 2)
    async with gate_at_delete(database_url) as gate:
        tasks = await in_the_way(binary, gate)
        tasks += deleting(binary, *keys)
        await until_gathered(binary, 2)
        closing = asyncio.create_task(binary.deleting.close())
        await asyncio.sleep(0)
        assert not closing.done()
        await gate.open()
        await closing
    # Their objects too.
    assert (await keys_of(binary), await blob_states(binary)) == (set(), [])
    assert await asyncio.gather(*tasks) == [None] * 4


# The sweep


async def test_deletes_at_once_share_a_sweep(binary: Binary, database_url: str) -> None:
    first, *others = await stored(binary, 11)
    async with gate_at_finish(database_url) as gate:
        tasks = deleting(binary, first)
        await gate.reached()
        tasks += deleting(binary, *others)
        await until_waiting_for_a_sweep(binary, 10)
        sent = statements_of(binary, FINISH)
        await gate.open()
        await asyncio.gather(*tasks)
    assert len(sent) == 1
    assert await blob_states(binary) == []
    assert await objects_in(binary.engine.storage("main")) == set()


async def test_a_group_waits_for_the_sweep_before_it_and_goes_with_those_whom_that_sets_free(
    binary: Binary, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping_module, "_MOMENT", 60)
    first, second, *others = await stored(binary, 6)
    sent = statements_of(binary, REMOVE)

    async def again(key: str) -> None:
        await binary.delete_data(key)
        await binary.delete_data(others.pop())

    async with gate_at_finish(database_url) as gate:
        tasks = [asyncio.create_task(again(key)) for key in (first, second)]
        await gate.reached()
        assert len(sent) == 1
        tasks += deleting(binary, others.pop(), others.pop())
        await until_gathered(binary, 2)
        await gate.open()
        await asyncio.gather(*tasks)
    assert len(sent) == 2
    assert await blob_states(binary) == []


async def test_a_group_waits_no_longer_than_a_moment_for_a_sweep(
    binary: Binary, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping_module, "_MOMENT", 0.01)
    keys = await stored(binary, 4)
    async with gate_at_finish(database_url) as gate:
        tasks = deleting(binary, *keys[:2])
        await gate.reached()
        tasks += deleting(binary, *keys[2:])
        await until_waiting_for_a_sweep(binary, 2)
        assert await keys_of(binary) == set()
        await gate.open()
        await asyncio.gather(*tasks)


@dataclass
class Hanging:
    """An engine with a second storage whose deletes are held, and keys of files there."""

    binary: Binary
    there: list[str]
    held: HeldDelete


@pytest.fixture
async def hanging(
    connect: Connect,
    fs_config: BinaryStorageConfig,
    make_storage_config: MakeStorageConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Hanging]:
    storages = {"main": fs_config, "other": make_storage_config("fs")}
    binary = await connect(storages=storages, default_storage="main")
    there = await stored(await connect(storages=storages, default_storage="other"), 3)
    held = HeldDelete(monkeypatch, binary.engine.storage("other"))
    yield Hanging(binary, there, held)
    held.go_on.set()


async def test_a_group_waits_for_a_storage_that_hangs_only_once(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary, there = hanging.binary, hanging.there
    here = await stored(binary, 3)
    monkeypatch.setattr(sweeping_module, "_MOMENT", 0.01)
    tasks = deleting(binary, *there[:2])
    await hanging.held.begun.wait()

    async def has_waited() -> bool:
        return not binary.deleting._removing[DELETE]._groups.is_sending

    await until(has_waited)
    monkeypatch.setattr(sweeping_module, "_MOMENT", 60)
    async with asyncio.timeout(20):
        late, first = deleting(binary, there[2], here[0])
        await first
        await asyncio.gather(*deleting(binary, *here[1:]))
    tasks.append(late)
    assert not any(task.done() for task in tasks)
    hanging.held.go_on.set()
    await asyncio.gather(*tasks)
    assert await blob_states(binary) == []


async def test_a_group_that_leaves_nothing_to_sweep_waits_for_no_sweep(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = hanging.binary
    here, pinned = await stored(binary, 2), await stored(binary, 2)
    for key in pinned:
        await binary.pin(key)
    monkeypatch.setattr(sweeping_module, "_MOMENT", 60)
    (alone,) = deleting(binary, hanging.there[0])
    await hanging.held.begun.wait()
    async with asyncio.timeout(20):
        ended = await asyncio.gather(*deleting(binary, *pinned), return_exceptions=True)
        assert told(ended) == [Pinned, Pinned]
        await asyncio.gather(*deleting(binary, *here))
    assert not alone.done()
    hanging.held.go_on.set()
    await alone


async def test_who_is_cancelled_at_the_commit_of_a_first_group_ends_no_other(
    binary: Binary, database_url: str, caller: AsyncEngine
) -> None:
    gone, locked = await stored(binary, 2)
    async with gate_at_delete(database_url) as gate, caller.connect() as own:
        await own.execute(text(LOCK), {"keys": [locked]})
        first, second = deleting(binary, gone, locked)
        await gate.reached()
        first.cancel()
        assert told(await asyncio.gather(first, return_exceptions=True)) == [OutcomeUnknown]
        await gate.open()
        await until_waiting(binary)
        await own.rollback()
        await second
    # What nobody swept is left to the reaper.
    await make_due(binary)
    assert (await binary.reap()).blobs == 1


async def test_those_who_delete_in_the_same_turn_are_one_group_from_the_beginning(binary: Binary) -> None:
    keys = await stored(binary, 10)
    sent, finished = statements_of(binary, REMOVE), statements_of(binary, FINISH)
    await asyncio.gather(*deleting(binary, *keys))
    assert (len(sent), len(finished)) == (1, 1)
    assert await blob_states(binary) == []


async def test_a_caller_that_is_cancelled_takes_the_sweep_away_from_nobody(binary: Binary, database_url: str) -> None:
    keys = await stored(binary, 4)
    async with gate_at_finish(database_url) as gate:
        first = deleting(binary, keys[0])
        await gate.reached()
        tasks = deleting(binary, *keys[1:])
        await until_waiting_for_a_sweep(binary, 3)
        early, late, last = tasks
        early.cancel()
        await gate.let_through()
        await gate.reached()
        late.cancel()
        ended = await asyncio.gather(early, late, return_exceptions=True)
        assert await blob_states(binary) == ["deleting"] * 3
        assert not last.done()
        await gate.open()
        await asyncio.gather(*first, last)
    # Its references were gone before either was cancelled.
    assert [(type(one), getattr(one, "keys", None)) for one in ended] == [
        (OutcomeUnknown, (keys[1],)),
        (OutcomeUnknown, (keys[2],)),
    ]
    # What was cancelled before its sweep began is left to the reaper.
    assert await blob_states(binary) == ["deleting"]
    await make_due(binary)
    assert (await binary.reap()).blobs == 1


async def test_what_has_waited_for_half_of_its_lease_is_left_to_the_reaper(
    connect: Connect, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    lease = timedelta(seconds=2)
    binary = await connect(reaper=ReaperConfig(lease=lease))
    keys = await stored(binary, 3)
    async with gate_at_finish(database_url) as gate:
        tasks = deleting(binary, keys[0])
        await gate.reached()
        tasks += deleting(binary, keys[1])
        await until_waiting_for_a_sweep(binary, 1)
        begun = clock.seconds()

        async def half_is_over() -> bool:
            return clock.seconds() - begun > lease.total_seconds() / 2

        await until(half_is_over)
        tasks += deleting(binary, keys[2])
        await until_waiting_for_a_sweep(binary, 2)
        await gate.open()
        await asyncio.gather(*tasks)
    assert "its turn came too late" in caplog.text
    assert await blob_states(binary) == ["deleting"]
    await make_due(binary)
    assert (await binary.reap()).blobs == 1
    assert await violations(binary.engine.database, binary.engine.storages) == []


async def test_a_sweep_that_fails_is_left_to_the_reaper_and_fails_no_caller(
    binary: Binary, database_url: str, fs_config: BinaryStorageConfig
) -> None:
    keys = await stored(binary, 4)
    async with gate_at_finish(database_url) as gate:
        tasks = deleting(binary, keys[0])
        await gate.reached()
        tasks += deleting(binary, *keys[1:])
        await until_waiting_for_a_sweep(binary, 3)
        with unmounted(fs_config):
            await gate.open()
            await asyncio.gather(*tasks)
    assert await blob_states(binary) == ["deleting"] * 3
    await make_due(binary)
    assert (await binary.reap()).blobs == 3


async def test_a_close_waits_for_the_sweeps(binary: Binary, database_url: str) -> None:
    keys = await stored(binary, 3)
    async with gate_at_finish(database_url) as gate:
        tasks = deleting(binary, keys[0])
        await gate.reached()
        tasks += deleting(binary, *keys[1:])
        await until_waiting_for_a_sweep(binary, 2)
        closing = asyncio.create_task(binary.deleting.sweeping.close())
        await asyncio.sleep(0)
        assert not closing.done()
        await gate.open()
        await closing
        assert await blob_states(binary) == []
    await asyncio.gather(*tasks)
