"""Store and delete many: a result for each, nothing taken ahead, and nothing left when the items fail."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bdr import (
    BatchResult,
    BinaryDataLifecycleManager,
    BinaryDataMetadata,
    FileNotFound,
    Gone,
    InvalidArgument,
    OutcomeUnknown,
    Pinned,
    StorageUnavailable,
)
from bdr.keys import new_file_key
from bdr.manager import batch
from bdr.manager.batch_stores import StoreItem
from bdr.manager.upload import Uploads
from tests.fixtures.engines import Connect
from tests.guarantees import objects_in
from tests.lifecycle.conftest import caller
from tests.lifecycle.gate import closed_gate
from tests.lifecycle.support import blob_states, count_of, keys_of, unmounted, until_idle, until_waiting
from tests.lifecycle.test_shared_blob import share
from tests.manager.support import records, statements_of
from tests.storage.helpers import until

__all__ = ["caller"]

Binary = BinaryDataLifecycleManager


def told(results: BatchResult[Any]) -> list[object]:
    """The value, or the class of the error, of each."""
    return [one.value if one.error is None else type(one.error) for one in results]


def files(number: int) -> Iterator[StoreItem]:
    for one in range(number):
        yield f"file {one}".encode(), BinaryDataMetadata(file_name=f"{one}.txt")


async def stored(binary: Binary, number: int) -> list[str]:
    return [one.file_key for one in (await binary.store_many(files(number))).results()]


# Store


@pytest.mark.both_majors
async def test_each_item_is_stored_as_by_the_verb_for_one(binary: Binary) -> None:
    results = await binary.store_many([*files(3), (b"", None)])
    references = results.results()
    assert [one.key for one in results] == [one.file_key for one in references]
    assert [(one.file_name, one.mime_kind, one.file_size) for one in references[:3]] == [
        (f"{n}.txt", "text/plain", 6) for n in range(3)
    ]
    assert [await binary.get_data(one.file_key) for one in references] == [b"file 0", b"file 1", b"file 2", b""]
    assert [await count_of(binary, one.file_key) for one in references] == [1] * 4
    assert await records(binary, "store") == [("succeeded", size, None) for size in (6, 6, 6, 0)]


async def test_items_may_be_made_asynchronously(binary: Binary) -> None:
    async def made() -> AsyncIterator[StoreItem]:
        for item in files(5):
            await asyncio.sleep(0)
            yield item

    references = (await binary.store_many(made(), concurrency=2)).results()
    assert [one.file_name for one in references] == [f"{n}.txt" for n in range(5)]
    assert await binary.store_many([]) == ()


async def test_what_cannot_be_stored_fails_by_itself(binary: Binary) -> None:
    items: Any = [
        (b"x", None),
        b"no pair",
        (b"xy", BinaryDataMetadata(file_size=1)),
        ("text", None),
        (b"y", {"file_name": "a"}),
        (b"z", None, None),
        (b"last", None),
    ]
    results = await binary.store_many(items)
    assert [type(one.error) for one in results] == [type(None), *[InvalidArgument] * 5, type(None)]
    assert [one.key is None for one in results] == [False, *[True] * 5, False]
    assert await keys_of(binary) == {one.key for one in results if one.error is None}


async def test_a_storage_that_is_away_fails_each(binary: Binary) -> None:
    config = binary.engine.settings.storages["main"]
    await binary.store_data(b"x")
    binary.engine._verified.clear()
    with unmounted(config):
        assert told(await binary.store_many(files(3))) == [StorageUnavailable] * 3
    assert len((await binary.store_many(files(3))).results()) == 3


@pytest.mark.parametrize("items", [b"bytes", "text", 5, None])
async def test_what_is_no_collection_of_items_is_refused(binary: Binary, items: Any) -> None:
    with pytest.raises(InvalidArgument, match="pairs of bytes and metadata as a list"):
        await binary.store_many(items)


async def test_at_least_one_is_stored_at_once(binary: Binary) -> None:
    with pytest.raises(InvalidArgument, match="at least 1"):
        await binary.store_many([], concurrency=0)


class Held:
    """Uploads that wait to be let go on, counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.under_way = 0
        self.most = 0
        self.go_on = asyncio.Event()
        run = Uploads.run

        async def held(uploads: Uploads, *arguments: Any) -> Any:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            try:
                await self.go_on.wait()
                return await run(uploads, *arguments)
            finally:
                self.under_way -= 1

        monkeypatch.setattr(Uploads, "run", held)

    async def reached(self, number: int) -> None:
        async def enough() -> bool:
            return self.under_way >= number

        await until(enough)


async def test_no_item_is_taken_before_one_is_free_to_store_it(binary: Binary, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    taken = alive = most = 0

    class Data(bytes):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def items() -> Iterator[StoreItem]:
        nonlocal taken, alive, most
        for _ in range(40):
            taken += 1
            alive += 1
            most = max(most, alive)
            yield Data(b"x"), None

    task = asyncio.create_task(binary.store_many(items(), concurrency=4))
    await held.reached(4)
    for _ in range(20):
        await asyncio.sleep(0)
    assert (taken, held.most) == (4, 4)
    held.go_on.set()
    assert len((await task).results()) == 40
    assert (taken, held.most) == (40, 4)
    # Those that are stored and their data, besides the last one that was given.
    assert most <= 4 + 1


async def test_stores_of_a_batch_share_statements(binary: Binary) -> None:
    await binary.store_data(b"x")
    sent = statements_of(binary, "bdr.")
    await binary.store_many(files(320), concurrency=32)
    # Of each a reservation and a publication, alone.
    assert len(sent) < 320


async def test_items_that_fail_leave_nothing(binary: Binary) -> None:
    def items() -> Iterator[StoreItem]:
        yield from files(20)
        raise ZeroDivisionError("the source")

    kept = await binary.store_data(b"kept")
    with pytest.raises(ZeroDivisionError, match="the source"):
        await binary.store_many(items(), concurrency=3)
    assert await keys_of(binary) == {kept.file_key}
    assert len(await objects_in(binary.engine.storage("main"))) == 1


async def test_who_is_cancelled_hears_the_keys_of_what_was_or_may_have_been_stored(
    binary: Binary, database_url: str
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def items() -> AsyncIterator[StoreItem]:
        yield b"stored", None
        asked.set()
        await go_on.wait()
        yield b"under way", None
        raise AssertionError

    task = asyncio.create_task(binary.store_many(items(), concurrency=1))
    await asked.wait()
    async with closed_gate(database_url) as gate:
        go_on.set()
        await gate.reached()
        task.cancel()
        # It asks what became of it.
        await until_waiting(binary, 2)
        await gate.open()
        with pytest.raises(OutcomeUnknown, match="Storing") as caught:
            await task
    assert caught.value.cancelled
    assert len(caught.value.keys) == 2
    assert set(caught.value.keys) == await keys_of(binary)


async def test_who_is_cancelled_before_anything_was_stored_is_cancelled(
    binary: Binary, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    task = asyncio.create_task(binary.store_many(files(5)))
    await held.reached(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_idle(binary)
    assert await keys_of(binary) == set()


# Delete


@pytest.mark.both_majors
async def test_each_is_deleted_or_told_why_not(binary: Binary) -> None:
    first, second, kept, before = await stored(binary, 4)
    await binary.pin(kept)
    await binary.register_reference(second)
    await binary.delete_data(before)
    keys = [kept, first, second, first, before, new_file_key(), "x", kept]
    results = await binary.delete_many(keys)
    assert told(results) == [Pinned, None, None, Gone, Gone, FileNotFound, FileNotFound, Pinned]
    with pytest.raises(Pinned) as alone:
        await binary.delete_data(kept)
    assert str(results[0].error) == str(alone.value)
    assert results[0].error is not results[7].error
    assert await keys_of(binary) == {kept}
    assert len(await objects_in(binary.engine.storage("main"))) == 1
    assert told(await binary.delete_many([kept, kept], force=True)) == [None, Gone]
    assert await blob_states(binary) == []
    assert len(await records(binary, "delete")) == 4


async def test_deletes_are_a_few_statements_for_a_whole_chunk(binary: Binary) -> None:
    keys = await stored(binary, 200)
    sent = statements_of(binary, "bdr.")
    assert (
        told(await binary.delete_many([*keys, *(new_file_key() for _ in range(200))]))
        == [None] * 200 + [FileNotFound] * 200
    )
    assert len(sent) <= 12
    assert await objects_in(binary.engine.storage("main")) == set()


async def test_a_delete_in_the_callers_transaction_is_the_reapers_when_that_commits(
    binary: Binary, caller: AsyncEngine
) -> None:
    first, second, kept = await stored(binary, 3)
    await binary.pin(kept)
    for end in ("rollback", "commit"):
        async with caller.connect() as own:
            results = await binary.delete_many([first, kept, "x", first, second], connection=own)
            assert told(results) == [None, Pinned, FileNotFound, None, None]
            assert len(await keys_of(binary)) == 3
            await getattr(own, end)()
    assert await blob_states(binary) == ["live"] * 3
    await binary.reap()
    assert await keys_of(binary) == {kept}


async def test_one_that_is_locked_keeps_none_of_the_others(binary: Binary, caller: AsyncEngine) -> None:
    keys = await stored(binary, 4)
    lock = text("SELECT FROM bdr.binary_data_reference WHERE file_key = :key FOR UPDATE")
    async with caller.begin() as own:
        await own.execute(lock, {"key": keys[1]})
        task = asyncio.create_task(binary.delete_many(keys))

        async def only_that() -> bool:
            return await keys_of(binary) == {keys[1]}

        await until(only_that)
    assert told(await task) == [None] * 4


async def test_deletes_that_overlap_in_opposite_order_never_deadlock(binary: Binary, connect: Connect) -> None:
    other = await connect()
    keys = await stored(binary, 60)
    ended = await asyncio.gather(binary.delete_many(keys), other.delete_many(keys[::-1]), binary.delete_many(keys[30:]))
    told_of: dict[str, list[object]] = {}
    for one in (one for results in ended for one in results):
        told_of.setdefault(str(one.key), []).append(None if one.error is None else type(one.error))
    assert all(sorted(map(str, of)) == sorted(map(str, [None, *[Gone] * (len(of) - 1)])) for of in told_of.values())


async def test_a_shared_blob_goes_with_the_last_of_a_batch(binary: Binary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "CHUNK", 2)
    first, other = await stored(binary, 2)
    shared = [await binary.engine.database.write(lambda own: share(own, first)) for _ in range(2)]
    assert told(await binary.delete_many([first, other, *shared])) == [None] * 4
    assert await blob_states(binary) == []
    assert await objects_in(binary.engine.storage("main")) == set()
