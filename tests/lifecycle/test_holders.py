"""Named holders: counted once; released by name, by lease and with their instance; mixed with those without one."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import bdr
from bdr import BinaryDataLifecycleManager
from tests.fixtures.engines import AT_ONCE, Connect
from tests.lifecycle.support import until_waiting

HOUR = timedelta(hours=1)
NODE = "execution-42/node-3"


async def sql(binary: BinaryDataLifecycleManager, statement: str) -> None:
    await binary.engine.database.write(lambda own: own.execute(text(statement)))


async def counts(binary: BinaryDataLifecycleManager, key: str) -> tuple[int, int, int]:
    """The count, that of holders, and the rows of holders."""
    query = text(
        "SELECT ref_count, holder_count, (SELECT count(*) FROM bdr.reference_holder h WHERE h.file_key = r.file_key) "
        "FROM bdr.binary_data_reference r WHERE file_key = :key"
    )
    async with binary.engine.database.reading() as connection:
        found = (await connection.execute(query, {"key": key})).one()
    return found[0], found[1], found[2]


@pytest.fixture
async def key(binary: BinaryDataLifecycleManager) -> str:
    """A file that its store holds once."""
    return (await binary.store_data(b"held")).file_key


async def test_a_holder_counts_once_however_often_it_registers(binary: BinaryDataLifecycleManager, key: str) -> None:
    assert [await binary.register_reference(key, holder=NODE) for _ in range(3)] == [2, 2, 2]
    assert await binary.register_reference(key, holder="another") == 3
    assert await counts(binary, key) == (3, 2, 2)
    assert [one.holder for one in await binary.get_holders(key)] == [NODE, "another"]


async def test_a_holder_is_released_once_and_another_release_changes_nothing(
    binary: BinaryDataLifecycleManager, key: str
) -> None:
    await binary.register_reference(key, holder=NODE)
    assert await binary.release_reference(key, holder=NODE) == 1
    for unknown in (NODE, "never"):
        with pytest.raises(bdr.NotReferenced, match="does not hold"):
            await binary.release_reference(key, holder=unknown)
    assert await counts(binary, key) == (1, 0, 0)


async def test_what_is_held_by_name_is_not_released_without_one(binary: BinaryDataLifecycleManager, key: str) -> None:
    await binary.register_reference(key, holder=NODE)
    assert await binary.release_reference(key) == 1
    with pytest.raises(bdr.NotReferenced, match="are by name"):
        await binary.release_reference(key)
    assert await counts(binary, key) == (1, 1, 1)


async def test_a_holder_lets_go_of_all_it_holds(binary: BinaryDataLifecycleManager) -> None:
    keys = [(await binary.store_data(bytes([n]))).file_key for n in range(5)]
    for one in keys[:3]:
        await binary.register_reference(one, holder=NODE)
    await binary.register_reference(keys[0], holder="another")
    assert await binary.release_holder(NODE) == 3
    assert await binary.release_holder(NODE) == 0
    assert [await counts(binary, one) for one in keys] == [(2, 1, 1)] + [(1, 0, 0)] * 4


async def test_letting_go_of_all_cleans_up_what_is_to_go_at_once(connect: Connect) -> None:
    binary = await connect(lifecycle=bdr.LifecycleCleanupConfig(zero_ref_retention=AT_ONCE))
    keys = [(await binary.store_data(bytes([n]))).file_key for n in range(3)]
    for one in keys:
        await binary.register_reference(one, holder=NODE)
        await binary.release_reference(one)
    assert await binary.release_holder(NODE) == 3
    assert [await binary.data_exists(one) for one in keys] == [False] * 3


async def test_a_lease_that_is_over_is_released_once_by_one_of_two_reapers(
    binary: BinaryDataLifecycleManager, connect: Connect, key: str
) -> None:
    other = await connect()
    await binary.register_reference(key, holder=NODE, lease=HOUR)
    await binary.register_reference(key, holder="for ever")
    assert (await binary.reap()).holders == 0
    await sql(binary, "UPDATE bdr.reference_holder SET lease_expires_at = now() WHERE lease_expires_at IS NOT NULL")
    reports = await asyncio.gather(binary.reap(), other.reap())
    assert sum(report.holders for report in reports) == 1
    assert await counts(binary, key) == (2, 1, 1)


async def test_registering_again_renews_the_lease(binary: BinaryDataLifecycleManager, key: str) -> None:
    await binary.register_reference(key, holder=NODE, lease=HOUR)
    await sql(binary, "UPDATE bdr.reference_holder SET lease_expires_at = now()")
    assert await binary.register_reference(key, holder=NODE, lease=HOUR) == 2
    assert (await binary.reap()).holders == 0
    assert await binary.register_reference(key, holder=NODE) == 2
    assert (await binary.get_holders(key))[0].lease_expires_at is None


@pytest.mark.parametrize("stopped", ["closed", "silent"])
async def test_what_is_bound_to_an_instance_goes_with_it(
    binary: BinaryDataLifecycleManager, database_url: str, fs_config: bdr.BinaryStorageConfig, key: str, stopped: str
) -> None:
    async with bdr.connect(database_url, fs_config) as dying:
        await dying.register_reference(key, holder=NODE, bound=True)
        await dying.register_reference(key, holder="unbound")
        assert (await binary.reap()).holders == 0
        if stopped == "silent":
            mine = binary.engine.instance_id
            await sql(
                binary,
                "UPDATE bdr.engine_instance SET heartbeat_at = '2000-01-01', missed_at = '2000-01-01' "
                f"WHERE instance_id <> '{mine}'",
            )
            assert (await binary.reap()).holders == 1
    assert (await binary.reap()).holders == (stopped == "closed")
    assert [one.holder for one in await binary.get_holders(key)] == ["unbound"]
    assert await counts(binary, key) == (2, 1, 1)


async def test_a_reference_that_goes_takes_its_holders_along(binary: BinaryDataLifecycleManager, key: str) -> None:
    await binary.register_reference(key, holder=NODE)
    await binary.delete_data(key)
    async with binary.engine.database.reading() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM bdr.reference_holder")) == 0
    with pytest.raises(bdr.Gone):
        await binary.get_holders(key)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url.replace("postgresql:", "postgresql+asyncpg:"))
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_a_holder_joins_the_callers_transaction(
    binary: BinaryDataLifecycleManager, engine: AsyncEngine, key: str, level: str
) -> None:
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level=level)
        async with connection.begin() as transaction:
            assert await binary.register_reference(key, holder=NODE, connection=connection) == 2
            assert await binary.register_reference(key, holder=NODE, connection=connection) == 2
            await transaction.rollback()
        assert await counts(binary, key) == (1, 0, 0)
        async with connection.begin():
            await binary.register_reference(key, holder=NODE, connection=connection)
            with pytest.raises(bdr.NotReferenced):
                await binary.release_reference(key, holder="never", connection=connection)
            assert await binary.release_holder(NODE, connection=connection) == 1
            await binary.register_reference(key, holder="another", connection=connection)
    assert await counts(binary, key) == (2, 1, 1)


async def test_a_delete_in_the_callers_transaction_leaves_no_holder_behind(
    binary: BinaryDataLifecycleManager, engine: AsyncEngine, key: str
) -> None:
    await binary.register_reference(key, holder=NODE)
    async with engine.begin() as connection:
        await binary.delete_data(key, connection=connection)
    assert await counts(binary, key) == (0, 0, 0)
    with pytest.raises(bdr.NotReferenced):
        await binary.release_reference(key, holder=NODE)


@pytest.mark.parametrize("holder", ["", "x" * 257, "a\0b", "\ud800"])
async def test_a_name_that_cannot_be_one_is_refused(binary: BinaryDataLifecycleManager, key: str, holder: str) -> None:
    for call in (
        binary.register_reference(key, holder=holder),
        binary.release_reference(key, holder=holder),
        binary.release_holder(holder),
    ):
        with pytest.raises(bdr.InvalidArgument, match="cannot name a holder"):
            await call


async def test_a_lease_needs_a_holder_and_a_sensible_length(binary: BinaryDataLifecycleManager, key: str) -> None:
    with pytest.raises(bdr.InvalidArgument, match="give `holder` too"):
        await binary.register_reference(key, lease=HOUR)
    for wrong in (AT_ONCE, -HOUR, timedelta(days=400_000)):
        with pytest.raises(bdr.InvalidArgument, match="out of range"):
            await binary.register_reference(key, holder=NODE, lease=wrong)
    assert await counts(binary, key) == (1, 0, 0)


async def test_counts_are_exact_when_many_mix_names_leases_and_none(
    binary: BinaryDataLifecycleManager, connect: Connect
) -> None:
    engines = [binary, await connect(), await connect()]
    keys = [(await binary.store_data(bytes([n]))).file_key for n in range(3)]
    held: dict[str, set[str]] = {one: set() for one in keys}
    unnamed = dict.fromkeys(keys, 1)
    chance = random.Random(7)

    async def caller(number: int) -> None:
        mine, one = f"caller-{number}", keys[number % 3]
        for _ in range(12):
            engine = chance.choice(engines)
            if mine in held[one]:
                await engine.release_reference(one, holder=mine)
                held[one].discard(mine)
            elif chance.random() < 0.6:
                await engine.register_reference(one, holder=mine, lease=HOUR)
                held[one].add(mine)
            else:
                await engine.register_reference(one)
                unnamed[one] += 1

    async def reaping() -> None:
        for _ in range(10):
            assert (await binary.reap()).holders == 0

    await asyncio.gather(reaping(), *(caller(number) for number in range(24)))
    for one in keys:
        assert await counts(binary, one) == (unnamed[one] + len(held[one]), len(held[one]), len(held[one]))


async def test_one_name_registered_and_released_by_many_at_once_is_held_or_not(
    binary: BinaryDataLifecycleManager, connect: Connect, key: str
) -> None:
    other = await connect()

    async def one(number: int) -> int:
        engine = (binary, other)[number % 2]
        try:
            if number % 3:
                await engine.register_reference(key, holder=NODE)
            elif number % 2:
                await engine.release_reference(key, holder=NODE)
            else:
                await engine.release_holder(NODE)
        except bdr.NotReferenced:
            return 1
        return 0

    await asyncio.gather(*(one(number) for number in range(90)))
    total, named, rows = await counts(binary, key)
    assert total == 1 + named
    assert named == rows
    assert named in {0, 1}


async def test_of_two_registrations_at_once_the_second_sets_the_terms(
    binary: BinaryDataLifecycleManager, engine: AsyncEngine, key: str
) -> None:
    async with engine.begin() as connection:
        assert await binary.register_reference(key, holder=NODE, connection=connection) == 2
        second = asyncio.create_task(binary.register_reference(key, holder=NODE, lease=HOUR, bound=True))
        await until_waiting(binary)
    assert await second == 2
    (held,) = await binary.get_holders(key)
    assert (held.lease_expires_at is not None, held.instance_id) == (True, binary.engine.instance_id)
    assert await counts(binary, key) == (2, 1, 1)


@pytest.mark.both_majors
@pytest.mark.parametrize(("verb", "after"), [("register_reference", 2), ("release_reference", 0)])
async def test_a_count_that_waited_for_a_holder_to_let_go_goes_by_what_that_left(
    binary: BinaryDataLifecycleManager, engine: AsyncEngine, key: str, verb: str, after: int
) -> None:
    await binary.register_reference(key, holder=NODE)
    async with engine.begin() as connection:
        assert await binary.release_reference(key, holder=NODE, connection=connection) == 1
        second = asyncio.create_task(getattr(binary, verb)(key))
        await until_waiting(binary)
    assert await second == after
    assert await counts(binary, key) == (after, 0, 0)
