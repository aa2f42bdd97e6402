"""register and release: what they give back, what they refuse, and what they see when they had to wait."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bdr import BinaryDataLifecycleManager, FileNotFound, NotReferenced
from bdr.catalog import count
from bdr.catalog.count import Counted
from bdr.keys import new_file_key
from tests.fixtures.engines import Connect
from tests.lifecycle.support import change, count_of, reference_row, until_waiting

Binary = BinaryDataLifecycleManager
Verb = Callable[[Binary, str], Awaitable[object]]

VERBS: dict[str, Verb] = {
    "register": lambda binary, key: binary.register_reference(key),
    "release": lambda binary, key: binary.release_reference(key),
    "cleanup": lambda binary, key: binary.cleanup_data(key),
    "delete": lambda binary, key: binary.delete_data(key),
}
ROUNDS = 30
NO_KEYS = {
    "unknown": new_file_key("pdf"),
    "empty": "",
    "a path": "../../etc/passwd",
    "NUL": "06h0s0al69qi39819rr8of62\0c",
    "a line break": f"{new_file_key()}\n",
    "10,000 characters": "a" * 10_000,
    "half a character": "\ud800",
    "SQL": "' OR true --",
}


async def test_each_verb_gives_back_the_new_count(binary: Binary) -> None:
    key = (await binary.store_data(b"x")).file_key
    counts = [await binary.register_reference(key), await binary.register_reference(key)]
    counts += [await binary.release_reference(key) for _ in range(3)]
    counts.append(await binary.register_reference(key))
    assert counts == [2, 3, 2, 1, 0, 1]
    assert await count_of(binary, key) == 1


@pytest.mark.parametrize("verb", ["register", "release"])
async def test_the_access_time_becomes_now_but_never_goes_back(binary: Binary, verb: str) -> None:
    key = (await binary.store_data(b"x")).file_key
    moments = {}
    for shift in ("-1 day", "+1 day"):
        await change(
            binary, f"UPDATE bdr.binary_data_reference SET ref_count = 9, last_access_at = now() + interval '{shift}'"
        )
        before = await reference_row(binary, key)
        await VERBS[verb](binary, key)
        after = await reference_row(binary, key)
        assert before is not None
        assert after is not None
        moments[shift] = after.last_access_at - before.last_access_at
    assert moments["-1 day"].days == 1
    assert not moments["+1 day"]


async def test_a_release_too_many_is_an_error_and_changes_nothing(binary: Binary) -> None:
    key = (await binary.store_data(b"x")).file_key
    assert await binary.release_reference(key) == 0
    before = await reference_row(binary, key)
    for _ in range(2):
        with pytest.raises(NotReferenced, match="nothing to release"):
            await binary.release_reference(key)
    assert await reference_row(binary, key) == before


@pytest.mark.parametrize("key", NO_KEYS.values(), ids=NO_KEYS)
async def test_a_key_that_no_reference_has_is_not_found(binary: Binary, caller: AsyncEngine, key: str) -> None:
    kept = (await binary.store_data(b"x")).file_key
    for verb in VERBS.values():
        with pytest.raises(FileNotFound, match="There is no reference") as caught:
            await verb(binary, key)
        assert len(str(caught.value)) < 300
    async with caller.begin() as own:
        for joined in (binary.register_reference, binary.release_reference, binary.cleanup_data, binary.delete_data):
            with pytest.raises(FileNotFound):
                await joined(key, connection=own)
        assert await binary.register_reference(kept, connection=own) == 2
    assert await count_of(binary, kept) == 2


@pytest.mark.parametrize("verb", VERBS)
async def test_a_deleted_key_is_not_found(binary: Binary, verb: str) -> None:
    key = (await binary.store_data(b"x")).file_key
    await binary.delete_data(key)
    with pytest.raises(FileNotFound):
        await VERBS[verb](binary, key)


# Who waits for a lock, and what it then sees


async def _at_zero(binary: Binary) -> str:
    key = (await binary.store_data(b"x")).file_key
    await binary.release_reference(key)
    return key


@pytest.mark.both_majors
@pytest.mark.parametrize(
    ("first", "held", "ends", "expected"),
    [
        ("ref_count = 1", False, "commit", 0),
        ("ref_count = 1", False, "rollback", NotReferenced),
        ("ref_count = 0", True, "commit", NotReferenced),
        ("ref_count = 0", True, "rollback", 0),
    ],
    ids=["a registration", "a registration taken back", "the last release", "the last release taken back"],
)
async def test_a_release_that_waits_counts_from_what_the_first_one_leaves(
    binary: Binary, caller: AsyncEngine, first: str, held: bool, ends: str, expected: int | type[Exception]
) -> None:
    key = (await binary.store_data(b"x")).file_key if held else await _at_zero(binary)
    async with caller.connect() as own:
        await own.execute(text(f"UPDATE bdr.binary_data_reference SET {first}"))
        waiting = asyncio.create_task(binary.release_reference(key))
        await until_waiting(binary)
        await getattr(own, ends)()
    if isinstance(expected, int):
        assert await waiting == expected
    else:
        with pytest.raises(expected):
            await waiting
    assert await count_of(binary, key) == 0


@pytest.mark.both_majors
@pytest.mark.parametrize("verb", VERBS)
async def test_who_waits_for_a_delete_finds_nothing(binary: Binary, caller: AsyncEngine, verb: str) -> None:
    key = await _at_zero(binary)
    async with caller.connect() as own:
        await own.execute(text("DELETE FROM bdr.binary_data_reference"))
        await own.execute(text("UPDATE bdr.blob SET state = 'deleting', next_attempt_at = now()"))
        waiting = asyncio.ensure_future(VERBS[verb](binary, key))
        await until_waiting(binary)
        await own.commit()
    with pytest.raises(FileNotFound):
        await waiting


async def test_a_registration_takes_a_reference_out_of_a_cleanups_hands(binary: Binary, caller: AsyncEngine) -> None:
    key = await _at_zero(binary)
    async with caller.connect() as own:
        assert await binary.register_reference(key, connection=own) == 1
        cleaning = asyncio.create_task(binary.cleanup_data(key))
        await until_waiting(binary)
        await own.commit()
    assert await cleaning is False
    assert await binary.get_data(key) == b"x"


# Batches


async def _stored(binary: Binary, number: int) -> list[str]:
    return [(await binary.store_data(b"x")).file_key for _ in range(number)]


async def test_a_key_that_comes_twice_in_a_batch_is_counted_twice(binary: Binary) -> None:
    first, second = await _stored(binary, 2)
    unknown = new_file_key()
    database = binary.engine.database
    found = await database.write(lambda own: count.register(own, [second, first, unknown, second, second]))
    assert {key: (one.before, one.after) for key, one in found.items()} == {
        first: (1, 2),
        second: (1, 4),
        unknown: (None, None),
    }
    found = await database.write(lambda own: count.release(own, [second, first, second, unknown]))
    assert {key: (one.before, one.after) for key, one in found.items()} == {
        first: (2, 1),
        second: (4, 2),
        unknown: (None, None),
    }


async def test_a_batch_that_releases_a_key_too_often_takes_what_there_is(binary: Binary) -> None:
    first, second = await _stored(binary, 2)
    found = await binary.engine.database.write(lambda own: count.release(own, [first, second, first]))
    assert [(found[key].before, found[key].after) for key in (first, second)] == [(1, 0), (1, 0)]
    found = await binary.engine.database.write(lambda own: count.release(own, [first, first]))
    assert found[first] == Counted(before=0, after=None, zero_ref_retention=None)
    assert (await count_of(binary, first), await count_of(binary, second)) == (0, 0)


async def test_a_batch_of_nothing_changes_nothing(binary: Binary) -> None:
    for verb in (count.register, count.release):
        assert await binary.engine.database.write(partial(verb, keys=[])) == {}
    assert await binary.engine.database.write(partial(count.touch, keys=[])) == []


async def test_batches_in_any_order_never_deadlock(binary: Binary, connect: Connect) -> None:
    other = await connect()
    keys = await _stored(binary, 12)

    async def rounds(engine: Binary, take: Callable[..., Awaitable[object]], order: list[str]) -> None:
        for _ in range(ROUNDS):
            await engine.engine.database.transaction(partial(take, keys=order))

    backwards = keys[::-1]
    await asyncio.gather(
        rounds(binary, count.register, keys),
        rounds(other, count.register, backwards),
        rounds(binary, count.touch, backwards),
        rounds(other, count.touch, keys),
        rounds(binary, count.register, keys[6:] + keys[:6]),
        rounds(other, count.register, backwards[3:] + backwards[:3]),
    )
    assert [await count_of(binary, key) for key in keys] == [1 + 4 * ROUNDS] * 12
    await asyncio.gather(
        rounds(binary, count.release, keys),
        rounds(other, count.release, backwards),
        rounds(binary, count.register, backwards),
        rounds(other, count.release, keys[6:] + keys[:6]),
    )
    assert [await count_of(binary, key) for key in keys] == [1 + 2 * ROUNDS] * 12
