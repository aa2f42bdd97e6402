"""The seam to PostgreSQL: what is known of an outcome, what each error becomes, and what a session is set to."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any, Final

import asyncpg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine

from bdr.catalog.database import Database, as_connection, translated
from bdr.catalog.prepared import Prepared
from bdr.errors import (
    Busy,
    CatalogNotMigrated,
    CatalogUnavailable,
    ConfigError,
    InstanceClosed,
    InvalidArgument,
    OperationError,
    OutcomeUnknown,
    PermissionDenied,
    TransactionConflict,
)
from bdr.settings import DatabaseConfig
from tests.fixtures.postgres import GUARDED_ROLE, PostgresServer
from tests.fixtures.proxy import MakeProxy, TcpProxy

KEYS: Final = ("key-1", "key-2")
ADD: Final = text("UPDATE counter SET n = n + 1 RETURNING n")
ONE: Final = Prepared(text("SELECT 1"))
COUNT: Final = text("SELECT n FROM counter")
Open = Callable[..., Database]


@pytest.fixture
async def counter_url(postgres: PostgresServer) -> AsyncIterator[str]:
    """A database with one row to count on."""
    name = await postgres.create_database()
    await postgres.execute("CREATE TABLE counter (n bigint CHECK (n < 1000)); INSERT INTO counter VALUES (0)", name)
    yield postgres.url(name)
    await postgres.drop_database(name)


@pytest.fixture
async def open_database() -> AsyncIterator[Open]:
    """Opens databases that are closed when the test is over."""
    opened: list[Database] = []

    def make(url: str, **config: Any) -> Database:
        opened.append(Database(url, config=DatabaseConfig(**config), application_name="seam"))
        return opened[-1]

    yield make
    for database in opened:
        await database.close()


@pytest.fixture
async def seam(counter_url: str, open_database: Open) -> Database:
    return open_database(counter_url)


@pytest.fixture
async def cut_off(
    postgres: PostgresServer, counter_url: str, proxy: MakeProxy, open_database: Open
) -> tuple[Database, TcpProxy]:
    """A seam whose connections a test can cut, with one connection open already."""
    between = await proxy("127.0.0.1", postgres.port)
    database = open_database(counter_url.replace(f":{postgres.port}/", f":{between.port}/") + "?sslmode=disable")
    assert await read(database) == 0
    return database, between


async def add(connection: AsyncConnection) -> int:
    return int((await connection.execute(ADD)).scalar_one())


async def read(database: Database) -> int:
    async with database.reading() as connection:
        return int((await connection.execute(COUNT)).scalar_one())


async def count_at(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT n FROM counter"))
    finally:
        await connection.close()


async def until(url: str, condition: str) -> None:
    """Wait for what the server says of its sessions in this database."""
    connection = await asyncpg.connect(url)
    query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {condition}"
    try:
        async with asyncio.timeout(30):
            while not await connection.fetchval(query):  # noqa: ASYNC110 - the server sends no event
                await asyncio.sleep(0.01)
    finally:
        await connection.close()


async def until_released(url: str) -> None:
    """Wait until no session but the one that asks holds a lock on the table, so every lost one has ended."""
    await until(url, "NOT EXISTS (SELECT 1 FROM pg_locks WHERE relation = 'counter'::regclass)")


async def until_count(url: str, expected: int) -> None:
    async with asyncio.timeout(30):
        while await count_at(url) != expected:  # noqa: ASYNC110 - the server sends no event
            await asyncio.sleep(0.01)


def cut_after(proxy: TcpProxy, statement: bytes) -> None:
    def look(chunk: bytes) -> None:
        if statement in chunk:
            proxy.on_client_data(None)
            proxy.cut()

    proxy.on_client_data(look)


# What works


@pytest.mark.both_majors
async def test_reading_writing_and_transactions(seam: Database) -> None:
    assert await seam.write(add) == 1
    assert await seam.transaction(add) == 2
    assert await read(seam) == 2


async def test_an_error_of_the_work_rolls_all_of_it_back(seam: Database) -> None:
    async def add_and_fail(connection: AsyncConnection) -> None:
        await add(connection)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await seam.transaction(add_and_fail, KEYS)
    assert await read(seam) == 0
    assert await seam.transaction(add) == 1


async def test_a_swallowed_error_is_not_taken_for_a_commit(seam: Database) -> None:
    async def add_and_swallow(connection: AsyncConnection) -> None:
        await add(connection)
        try:
            await connection.execute(text("SELECT 1 / 0"))
        except DBAPIError:
            return

    with pytest.raises(OperationError, match="rolled back"):
        await seam.transaction(add_and_swallow)
    assert await read(seam) == 0
    assert await seam.transaction(add) == 1


async def test_an_error_inside_a_savepoint_may_be_caught(seam: Database) -> None:
    async def add_and_try(connection: AsyncConnection) -> int:
        counted = await add(connection)
        with pytest.raises(DBAPIError):
            async with connection.begin_nested():
                await connection.execute(text("SELECT 1 / 0"))
        return counted

    assert await seam.transaction(add_and_try) == 1
    assert await read(seam) == 1


@pytest.mark.both_majors
async def test_a_session_is_safe_whatever_the_database_says(
    postgres: PostgresServer, counter_url: str, open_database: Open
) -> None:
    name = counter_url.rpartition("/")[2]
    for setting in (
        "synchronous_commit = off",
        "default_transaction_isolation = 'serializable'",
        "timezone = 'Asia/Tokyo'",
    ):
        await postgres.execute(f"ALTER DATABASE {name} SET {setting}")
    database = open_database(counter_url, statement_timeout=timedelta(seconds=7), lock_timeout=timedelta(seconds=3))
    expected = {
        "synchronous_commit": "on",
        "transaction_isolation": "read committed",
        "TimeZone": "UTC",
        "statement_timeout": "7s",
        "lock_timeout": "3s",
        "idle_in_transaction_session_timeout": "1min",
        "application_name": "seam",
    }
    async with database.reading() as connection:
        for setting, value in expected.items():
            assert await connection.scalar(text(f"SHOW {setting}")) == value
    isolation = text("SHOW transaction_isolation")
    assert await database.transaction(lambda own: own.scalar(isolation)) == "read committed"


async def test_a_stricter_synchronous_commit_is_kept(
    postgres: PostgresServer, counter_url: str, open_database: Open
) -> None:
    await postgres.execute(f"ALTER DATABASE {counter_url.rpartition('/')[2]} SET synchronous_commit = remote_apply")
    async with open_database(counter_url).reading() as connection:
        assert await connection.scalar(text("SHOW synchronous_commit")) == "remote_apply"


async def test_reading_and_writing_hold_no_transaction_open(seam: Database) -> None:
    transaction = text("SELECT pg_current_xact_id()::text")

    async def twice(connection: AsyncConnection) -> set[Any]:
        return {await connection.scalar(transaction), await connection.scalar(transaction)}

    async with seam.reading() as connection:
        assert len(await twice(connection)) == 2
    assert len(await seam.write(twice)) == 2
    assert len(await seam.transaction(twice)) == 1


async def test_connections_that_the_server_closed_are_replaced(
    private_postgres: PostgresServer, open_database: Open
) -> None:
    database = open_database(private_postgres.url())
    async with database.reading() as connection:
        await connection.scalar(text("SELECT 1"))
    await asyncio.to_thread(private_postgres.restart)
    assert await database.write(lambda own: own.scalar(text("SELECT 1"))) == 1


# Lost connections


@pytest.mark.both_majors
async def test_a_connection_lost_after_commit_was_sent_leaves_the_outcome_unknown(
    cut_off: tuple[Database, TcpProxy], counter_url: str
) -> None:
    database, proxy = cut_off
    cut_after(proxy, b"COMMIT;")
    with pytest.raises(OutcomeUnknown, match="Registering") as caught:
        await database.transaction(add, KEYS, "Registering")
    assert caught.value.keys == KEYS
    await until_count(counter_url, 1)
    assert await database.transaction(add) == 2


@pytest.mark.both_majors
async def test_a_connection_lost_before_commit_means_that_nothing_happened(
    cut_off: tuple[Database, TcpProxy], counter_url: str
) -> None:
    database, proxy = cut_off
    cut_after(proxy, b"counter")
    with pytest.raises(CatalogUnavailable):
        await database.transaction(add, KEYS)
    await until_released(counter_url)
    assert await count_at(counter_url) == 0
    assert await database.transaction(add) == 1


async def test_a_connection_found_lost_when_commit_is_due_means_that_nothing_happened(
    cut_off: tuple[Database, TcpProxy], counter_url: str
) -> None:
    database, proxy = cut_off

    async def add_and_lose(connection: AsyncConnection) -> None:
        await add(connection)
        driver: Any = (await connection.get_raw_connection()).driver_connection
        proxy.cut()
        async with asyncio.timeout(30):
            while not driver.is_closed():  # noqa: ASYNC110 - asyncpg sends no event
                await asyncio.sleep(0.001)

    with pytest.raises(CatalogUnavailable, match="before COMMIT"):
        await database.transaction(add_and_lose, KEYS)
    assert await count_at(counter_url) == 0


@pytest.mark.both_majors
async def test_a_connection_lost_during_a_write_leaves_its_outcome_unknown(
    cut_off: tuple[Database, TcpProxy], counter_url: str
) -> None:
    database, proxy = cut_off
    await database.write(add)
    # The statement is prepared by now, so the next mention of it is its execution.
    cut_after(proxy, b"")
    with pytest.raises(OutcomeUnknown):
        await database.write(add, KEYS)
    assert await count_at(counter_url) in {1, 2}
    assert await database.write(add) in {2, 3}


async def test_a_connection_lost_while_reading_is_no_unknown_outcome(cut_off: tuple[Database, TcpProxy]) -> None:
    database, proxy = cut_off
    cut_after(proxy, b"pg_sleep")
    with pytest.raises(CatalogUnavailable):
        async with database.reading() as connection:
            await connection.execute(text("SELECT pg_sleep(30)"))


async def test_a_first_connection_lost_at_any_of_its_messages_is_unavailable(
    postgres: PostgresServer, counter_url: str, proxy: MakeProxy, open_database: Open
) -> None:
    between = await proxy("127.0.0.1", postgres.port)
    url = counter_url.replace(f":{postgres.port}/", f":{between.port}/") + "?sslmode=disable"
    for message in count(1):
        between.cut_at(message)
        try:
            await read(open_database(url))
        except CatalogUnavailable:
            continue
        break
    # The password, the settings, what SQLAlchemy asks, and what we ask.
    assert message > 5


async def test_an_answer_that_never_comes_is_given_up(
    cut_off: tuple[Database, TcpProxy], monkeypatch: pytest.MonkeyPatch, counter_url: str, open_database: Open
) -> None:
    _, proxy = cut_off
    monkeypatch.setattr("bdr.catalog.session.UNHEARD", timedelta(0))
    url = counter_url.replace(counter_url.rpartition(":")[2].partition("/")[0], str(proxy.port)) + "?sslmode=disable"
    database = open_database(url, statement_timeout=timedelta(seconds=0.5))
    await database.write(add)
    proxy.on_client_data(lambda _chunk: proxy.pause())
    with pytest.raises(OutcomeUnknown):
        await database.write(add, KEYS)
    proxy.on_client_data(None)
    proxy.resume()
    assert await database.write(add) in {2, 3}


@pytest.mark.both_majors
async def test_a_server_that_shuts_down_during_a_write_leaves_its_outcome_unknown(
    seam: Database, counter_url: str
) -> None:
    sleeping = text("SELECT pg_sleep(60)")
    for run, expected in ((seam.write, OutcomeUnknown), (seam.transaction, CatalogUnavailable)):
        task = asyncio.create_task(run(lambda own: own.execute(sleeping), KEYS))
        await until(counter_url, "wait_event = 'PgSleep'")
        async with seam.reading() as connection:
            await connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
            )
        with pytest.raises(expected):
            await task


async def test_an_end_of_the_server_that_only_its_error_tells_is_no_refusal(seam: Database) -> None:
    # The error comes first, and the connection closes a moment later: here it never does.
    ending = text("DO $$ BEGIN RAISE SQLSTATE '57P01'; END $$")
    with pytest.raises(OutcomeUnknown):
        await seam.write(lambda own: own.execute(ending), KEYS)
    with pytest.raises(CatalogUnavailable):
        await seam.transaction(lambda own: own.execute(ending), KEYS)


async def test_a_crash_of_the_server_is_survived(private_postgres: PostgresServer, open_database: Open) -> None:
    await private_postgres.execute("CREATE TABLE counter (n bigint); INSERT INTO counter VALUES (0)")
    database = open_database(private_postgres.url())
    assert await database.transaction(add) == 1
    await asyncio.to_thread(private_postgres.stop, "immediate")
    with pytest.raises(CatalogUnavailable, match="cannot be reached"):
        await database.transaction(add, KEYS)
    await asyncio.to_thread(private_postgres.start)
    assert await database.transaction(add) == 2


# Cancelled callers


async def test_a_caller_cancelled_while_waiting_for_a_connection_changes_nothing(
    counter_url: str, open_database: Open
) -> None:
    database = open_database(counter_url, pool_size=1)
    async with database.reading():
        waiting = asyncio.create_task(database.transaction(add, KEYS))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await database.close()
    assert await count_at(counter_url) == 0


@pytest.mark.parametrize("turns", range(8))
async def test_a_caller_cancelled_just_as_it_gets_a_connection_changes_nothing(
    counter_url: str, open_database: Open, turns: int
) -> None:
    database = open_database(counter_url, pool_size=1)
    loop = asyncio.get_running_loop()

    def cancel_after(left: int) -> None:
        if left:
            loop.call_soon(cancel_after, left - 1)
        else:
            waiting.cancel()

    async with database.reading() as connection:
        await connection.execute(COUNT)
        waiting = asyncio.ensure_future(database.transaction(add, KEYS))
        await asyncio.sleep(0)
        await connection.execute(COUNT)
        event.listen(database._engine.sync_engine, "checkin", lambda *_: cancel_after(turns), once=True)
    with pytest.raises((asyncio.CancelledError, OutcomeUnknown)) as caught:
        await waiting
    await database.close()
    if caught.type is asyncio.CancelledError:
        assert await count_at(counter_url) == 0


@pytest.mark.parametrize("keys", [KEYS, ()])
@pytest.mark.parametrize("verb", ["write", "transaction"])
async def test_a_caller_cancelled_under_way_leaves_at_once_and_the_work_goes_on(
    seam: Database, counter_url: str, verb: str, keys: tuple[str, ...]
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(connection: AsyncConnection) -> int:
        begun.set()
        await go_on.wait()
        return await add(connection)

    run: Callable[..., Awaitable[int]] = getattr(seam, verb)
    task = asyncio.ensure_future(run(slow, keys))
    await begun.wait()
    task.cancel()
    with pytest.raises(OutcomeUnknown if keys else asyncio.CancelledError):
        await task
    assert await count_at(counter_url) == 0
    go_on.set()
    await seam.close()
    assert await count_at(counter_url) == 1


@pytest.mark.both_majors
@pytest.mark.parametrize("verb", ["write", "transaction"])
async def test_counts_are_exact_when_callers_are_cancelled_at_random(
    counter_url: str, open_database: Open, verb: str
) -> None:
    database = open_database(counter_url, pool_size=30)
    run: Callable[..., Awaitable[int]] = getattr(database, verb)
    chance = random.Random(4711)
    await asyncio.gather(*(run(add, KEYS) for _ in range(50)))
    tasks = [asyncio.ensure_future(run(add, KEYS)) for _ in range(200)]
    loop = asyncio.get_running_loop()
    for task in tasks:
        loop.call_later(chance.uniform(0, 0.3), task.cancel)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    acknowledged = 50 + sum(isinstance(end, int) for end in ends)
    unknown = sum(isinstance(end, OutcomeUnknown) for end in ends)
    cancelled = sum(isinstance(end, asyncio.CancelledError) for end in ends)
    assert acknowledged + unknown + cancelled == 250
    await database.close()
    assert acknowledged <= await count_at(counter_url) <= acknowledged + unknown
    assert unknown + cancelled


async def test_counts_are_exact_when_connections_are_cut_at_random(
    cut_off: tuple[Database, TcpProxy], counter_url: str
) -> None:
    database, proxy = cut_off
    chance = random.Random(4711)

    def perhaps(_chunk: bytes) -> None:
        if chance.random() < 0.15:
            proxy.cut()

    proxy.on_client_data(perhaps)
    ends: list[object] = []
    for _ in range(200):
        ends += await asyncio.gather(database.transaction(add, KEYS), return_exceptions=True)
    acknowledged = sum(isinstance(end, int) for end in ends)
    unknown = sum(isinstance(end, OutcomeUnknown) for end in ends)
    nothing = sum(isinstance(end, CatalogUnavailable) for end in ends)
    assert acknowledged + unknown + nothing == 200
    assert min(acknowledged, unknown, nothing) > 0
    proxy.on_client_data(None)
    await until_released(counter_url)
    assert acknowledged <= await count_at(counter_url) <= acknowledged + unknown


# Definite errors


async def test_a_deferred_constraint_that_fails_at_commit_is_a_definite_error(
    seam: Database, counter_url: str, postgres: PostgresServer
) -> None:
    table = "CREATE TABLE one (x int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO one VALUES (1)"
    await postgres.execute(table, counter_url.rpartition("/")[2])
    with pytest.raises(OperationError, match="23505"):
        await seam.transaction(lambda own: own.execute(text("INSERT INTO one VALUES (1)")), KEYS)


@pytest.mark.both_majors
@pytest.mark.parametrize("verb", ["write", "transaction"])
@pytest.mark.parametrize(
    ("statement", "expected", "message"),
    [
        ("UPDATE counter SET n = 1000", OperationError, "23514"),
        ("SELECT 1 / 0", InvalidArgument, "22012"),
        ("SELECT * FROM bdr.blob", CatalogNotMigrated, "bdr db upgrade"),
        ("SELECT set_config('role', 'nobody_reads', false), pg_read_file('x') ", InvalidArgument, "22023"),
        ("SELECT pg_sleep(60)", Busy, "too long"),
        ("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$", TransactionConflict, "40001"),
        ("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$", TransactionConflict, "40P01"),
        ("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$", OSError, "53100"),
        ("DO $$ BEGIN RAISE SQLSTATE '42501'; END $$", PermissionDenied, "42501"),
        ("NONSENSE", OperationError, "42601"),
    ],
)
async def test_what_the_server_refuses_is_definite_and_typed(
    counter_url: str, open_database: Open, verb: str, statement: str, expected: type[Exception], message: str
) -> None:
    database = open_database(counter_url, statement_timeout=timedelta(milliseconds=200))
    run: Callable[..., Awaitable[object]] = getattr(database, verb)
    with pytest.raises(expected, match=message):
        await run(lambda own: own.execute(text(statement)), KEYS)
    assert await run(add) == 1


@pytest.mark.parametrize("verb", ["write", "transaction"])
async def test_a_value_that_cannot_be_sent_is_a_definite_error(seam: Database, verb: str) -> None:
    run: Callable[..., Awaitable[object]] = getattr(seam, verb)
    with pytest.raises(InvalidArgument):
        await run(lambda own: own.execute(text("UPDATE counter SET n = :n"), {"n": 2**70}), KEYS)
    with pytest.raises(InvalidArgument):
        await run(lambda own: own.execute(text("SELECT CAST(:t AS text)"), {"t": "\0"}), KEYS)
    assert await run(add) == 1


async def test_a_lock_that_is_not_to_be_had_in_time_is_busy(counter_url: str, open_database: Open) -> None:
    database = open_database(counter_url, lock_timeout=timedelta(milliseconds=100))
    holder = await asyncpg.connect(counter_url)
    try:
        async with holder.transaction():
            await holder.execute("UPDATE counter SET n = n")
            with pytest.raises(Busy, match="55P03"):
                await database.write(add, KEYS)
            with pytest.raises(Busy, match="55P03"):
                await database.transaction(add, KEYS)
    finally:
        await holder.close()
    assert await read(database) == 0


async def test_a_pool_without_a_free_connection_is_busy(counter_url: str, open_database: Open) -> None:
    database = open_database(counter_url, pool_size=1, pool_timeout=timedelta(milliseconds=50))
    async with database.reading():
        with pytest.raises(Busy, match="pool"):
            await database.write(add, KEYS)
    assert await read(database) == 0


async def test_each_way_not_to_connect_is_told_apart(postgres: PostgresServer, open_database: Open) -> None:
    password = f"DROP ROLE IF EXISTS {GUARDED_ROLE}; CREATE ROLE {GUARDED_ROLE} LOGIN PASSWORD 'right'"
    await postgres.execute(password)
    here = f"127.0.0.1:{postgres.port}/postgres"
    cases: list[tuple[str, type[Exception], str]] = [
        (f"postgresql://{GUARDED_ROLE}:wrong@{here}", PermissionDenied, "refused the user or password"),
        (f"postgresql://{GUARDED_ROLE}@{here}", PermissionDenied, "password"),
        (postgres.url(user="nobody_at_all"), PermissionDenied, "28000"),
        (postgres.url("nowhere"), ConfigError, "does not exist"),
        ("postgresql://postgres@127.0.0.1:1/x", CatalogUnavailable, "cannot be reached"),
        ("postgresql://postgres@nowhere.invalid/x", CatalogUnavailable, "cannot be reached"),
        ("postgresql://postgres@/x?host=/nowhere", CatalogUnavailable, "cannot be reached"),
        (postgres.url() + "?sslmode=require", CatalogUnavailable, "SSL"),
        (postgres.url() + "?options=-c%20nonsense%3D1", OperationError, "nonsense"),
        (postgres.url() + "?target_session_attrs=standby", CatalogUnavailable, "target"),
    ]
    for url, expected, message in cases:
        database = open_database(url)
        for run in (
            partial(database.write, add, KEYS),
            partial(database.transaction, add, KEYS),
            partial(database.fetch, ONE, dict),
            partial(database.look_up, ONE, {}),
        ):
            with pytest.raises(expected, match=message) as caught:
                await run()
            assert "wrong" not in str(caught.value)
    right = open_database(f"postgresql://{GUARDED_ROLE}:right@{here}")
    assert await right.write(lambda own: own.scalar(text("SELECT 1"))) == 1
    assert "right" not in right.shown


async def test_a_server_that_does_not_answer_in_time(
    proxy: MakeProxy, postgres: PostgresServer, open_database: Open
) -> None:
    between = await proxy("127.0.0.1", postgres.port)
    between.pause()
    url = f"postgresql://postgres@127.0.0.1:{between.port}/postgres"
    with pytest.raises(CatalogUnavailable, match="no answer in time"):
        await read(open_database(url, connect_timeout=timedelta(milliseconds=200)))


def test_a_wrong_url_is_refused_before_anything_connects() -> None:
    with pytest.raises(ConfigError, match="begin with"):
        Database("sqlite://", config=DatabaseConfig())


# Closing


async def test_closing_waits_for_what_is_under_way(seam: Database, counter_url: str) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(connection: AsyncConnection) -> int:
        begun.set()
        await go_on.wait()
        return await add(connection)

    working = asyncio.create_task(seam.transaction(slow))
    await begun.wait()
    closing = asyncio.create_task(seam.close())
    await asyncio.sleep(0)
    assert not closing.done()
    with pytest.raises(InstanceClosed):
        await seam.write(add)
    with pytest.raises(InstanceClosed):
        await read(seam)
    go_on.set()
    await closing
    assert await working == 1


async def test_closing_does_not_wait_for_ever(seam: Database, counter_url: str) -> None:
    working = asyncio.create_task(seam.transaction(lambda own: own.execute(text("SELECT pg_sleep(60)"))))
    await until(counter_url, "wait_event = 'PgSleep'")
    await seam.close(timedelta(milliseconds=50))
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_closing_cuts_off_a_statement_past_sqlalchemy(seam: Database, counter_url: str) -> None:
    sleep = Prepared(text("SELECT pg_sleep(60)"))
    working = asyncio.create_task(seam.fetch(sleep, dict))
    await until(counter_url, "wait_event = 'PgSleep'")
    await seam.close(timedelta(milliseconds=50))
    with pytest.raises(OutcomeUnknown):
        await working


async def test_connections_kept_past_sqlalchemy_are_there_for_it(counter_url: str, open_database: Open) -> None:
    database = open_database(counter_url, pool_size=2)
    for _ in range(2):
        await asyncio.gather(*(database.look_up(ONE, {}) for _ in range(2)))
        async with database.reading() as first, database.reading() as second:
            assert [await one.scalar(COUNT) for one in (first, second)] == [0, 0]
    async with database.reading():
        assert len(await database.look_up(ONE, {})) == 1
    mine = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    async with database.reading() as connection:
        assert await connection.scalar(mine) == 2


async def test_a_connection_whose_answer_was_lost_is_lent_to_nobody_else(seam: Database, counter_url: str) -> None:
    async def process_of() -> int:
        (row,) = await seam.look_up(Prepared(text("SELECT pg_backend_pid() AS pid")), {})
        return int(row["pid"])

    first = await process_of()
    with pytest.raises(InvalidArgument):
        await seam.look_up(Prepared(text("SELECT 1 / 0")), {})
    assert await process_of() == first
    waiting = asyncio.create_task(seam.look_up(Prepared(text("SELECT pg_sleep(600)")), {}))
    await until(counter_url, "wait_event = 'PgSleep'")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await process_of() != first


async def test_closing_twice_is_closing(seam: Database) -> None:
    await seam.close()
    await seam.close()


# A caller's own connection


async def test_a_callers_connection_is_joined_and_its_errors_are_translated(counter_url: str) -> None:
    engine = create_async_engine(counter_url.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.connect() as own, own.begin() as transaction:
        joined = await as_connection(own)
        assert joined is own
        with translated(), pytest.raises(DBAPIError):
            await joined.execute(text("SELECT 1 / 0"))
        await transaction.rollback()
    async with AsyncSession(engine) as session, session.begin():
        assert await add(await as_connection(session)) == 1
        assert (await session.execute(COUNT)).scalar_one() == 1
    async with engine.connect() as own:
        with pytest.raises(CatalogNotMigrated), translated():
            await own.execute(text("SELECT * FROM bdr.blob"))
    await engine.dispose()
    assert await count_at(counter_url) == 1


async def test_a_callers_session_whose_pool_is_used_up_is_told_so(counter_url: str) -> None:
    url = counter_url.replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    async with engine.connect(), AsyncSession(engine) as session:
        with pytest.raises(Busy, match="The caller's own pool has no connection"):
            await as_connection(session)
    await engine.dispose()


async def test_a_connection_without_a_transaction_cannot_be_joined(counter_url: str) -> None:
    url = counter_url.replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as own:
        with pytest.raises(InvalidArgument, match="autocommit"):
            await as_connection(own)
    await engine.dispose()
