"""Every hot statement finds its rows by an index: what it reads does not grow with the tables.

Each is run as the code sends it, on a filled catalog, once with a plan for its parameters and once with a plan for any.
A batch is small beside the tables here, as the real ones are beside real tables; a large part of a table is read from
end to end, rightly, since that is cheaper.
"""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from typing import Any, Final

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.sql.expression import SelectBase, UpdateBase

from bdr.catalog import blob, clock, count, expiry, holder, instance, operation, publication, reference, storage
from bdr.catalog.blob import ClaimedBlob, FailedDelete, Reservation
from bdr.catalog.count import Change
from bdr.catalog.operation import Record
from bdr.catalog.prepared import Prepared
from bdr.catalog.publication import Publication
from bdr.catalog.reference import DeletedReference, Reference
from tests.catalog import filled
from tests.catalog.plans import MODES, Plan, Sent, plan_of, sent_by
from tests.fixtures.postgres import PostgresServer

pytestmark = pytest.mark.both_majors

BATCH: Final = 20
LEASE: Final = timedelta(minutes=5)
GROWING: Final = {
    "binary_data_reference",
    "reference_holder",
    "blob",
    "operation",
    "operation_total",
    "engine_instance",
}
# For each item of a batch: what a statement may read, and the pages it may touch. Half the pages are those of indexes:
# a row that cannot stay where it is (no HOT update) is written to each of its table's.
ROWS: Final = 10
PAGES: Final = 50
# Besides: the pages that a search for free space looks at.
MORE_PAGES: Final = 150

# Never sent as they are: others are made from them.
PARTS: Final = {
    "_DETAILS",
    "_TO_LOCK",
    "_RECORD",
    "_KNOWN",
    "_NEWEST_TO_GO",
    "_SEEN",
    "_HOLDINGS",
    "_OF_EACH",
}
# Prepared for the driver besides; guarded as what they are made from.
ALSO_PREPARED: Final = {"_RESERVE", "_COUNT", "_RESOLVE"}
# Statistics are the sum of all records: TOTALS reads the whole of `operation` and `operation_total`, each time. Records
# are pruned by age, which is what bounds it.
READS_ALL: Final = {"TOTALS"}

# How many rows these yield depends on the parameters, and a plan for any expects many: it reads whole tables. That is
# as it should be while the server does not take it, because it expects it to cost more than planning for each.
PLANNED_EACH_TIME: Final = {
    "page_of_a_small_namespace",
    "PRUNE_OLD",
    "PRUNE_BUT_NEWEST",
    "DECLARE_DEAD",
    "_FORGOTTEN",
    "_LEFT",
}
RUNNING: Final = filled.OPERATIONS // 301

REFERENCE_KEY: Final = "pk_binary_data_reference"
REFERENCE_BLOB: Final = "ix_binary_data_reference_blob_id"
REFERENCE_EXPIRY: Final = "ix_binary_data_reference_expires_at"
REFERENCE_NAMESPACE: Final = "ix_binary_data_reference_namespace_file_key"
BLOB_KEY: Final = "pk_blob"
BLOB_STATE: Final = "uq_blob_state_blob_id"
BLOB_PATH: Final = "uq_blob_storage_name_object_path"
UNSETTLED: Final = "ix_blob_storage_name_state_next_attempt_at"
# In a large catalog the index that has the state as well is as cheap: it finds the one blob, or the few that are
# quarantined in any storage.
PUBLISHED: Final = f"{BLOB_KEY}|{BLOB_STATE}" if filled.LARGE else BLOB_KEY
BY_STATE: Final = f"{UNSETTLED}|{BLOB_STATE}" if filled.LARGE else UNSETTLED
OPERATION_KEY: Final = "pk_operation"
OPERATION_START: Final = "ix_operation_started_at"
OPERATION_RUNNING: Final = "ix_operation_running"
OPERATION_END: Final = "ix_operation_end_of_file_key"
HOLDER_KEY: Final = "pk_reference_holder"
HOLDER_NAME: Final = "ix_reference_holder_holder_file_key"
HOLDER_LEASE: Final = "ix_reference_holder_lease_expires_at"
HOLDER_INSTANCE: Final = "ix_reference_holder_instance_id"
CLOCK_KEY: Final = "pk_reaper_clock"
INSTANCE_KEY: Final = "pk_engine_instance"
INSTANCE_ALIVE: Final = "ix_engine_instance_alive"
INSTANCE_STOPPED: Final = "ix_engine_instance_stopped_at"


@dataclass(frozen=True, slots=True)
class Guard:
    """Some work, and for each statement it sends the indexes that must be used: `a|b` is either.

    Attributes:
        sends: by the name of the statement's constant, and its key if that is a mapping; what has none goes by the
            guard's own name.
        items: how many it is about.
    """

    name: str
    work: Callable[[AsyncConnection], Awaitable[object]]
    sends: dict[str, set[str]]
    items: int = BATCH


def keys(first: int) -> list[str]:
    # Not next to each other. Every fifth is not held: that is those whose `first` is.
    return [filled.file_key(first + 35 * step) for step in range(BATCH)]


def reservation() -> Reservation:
    made = uuid.uuid4()
    return Reservation(made, "main", str(made), filled.instance(1))


def claimed() -> list[ClaimedBlob]:
    numbers = range(filled.FIRST_DELETING, filled.FIRST_DELETING + 2 * BATCH, 2)
    return [ClaimedBlob(filled.blob(number), "main", "path", filled.CLAIMED_UNTIL, 1) for number in numbers]


def failed() -> list[FailedDelete]:
    return [FailedDelete(one, "permission denied") for one in claimed()]


async def publish_many(connection: AsyncConnection, *, skip_locked: bool) -> None:
    pending = range(filled.LIVE + 1, filled.LIVE + 2 * BATCH, 2)
    absent = dict.fromkeys(Reference.__table__.c.keys())
    rows = [absent | new_reference() | {"file_key": f"new{one}", "blob_id": filled.blob(one)} for one in pending]
    many = [Publication(row, 1, bytes(32), record("succeeded")) for row in rows]
    values = publication.parameters(many)
    await past_sqlalchemy(connection, publication.PUBLISH[skip_locked], values)


async def past_sqlalchemy(connection: AsyncConnection, prepared: Prepared, values: dict[str, Any]) -> None:
    await connection.exec_driver_sql(prepared.sql, tuple(prepared.arguments(values)))


async def count_free(connection: AsyncConnection) -> None:
    changes = {key: Change(1, -1) for key in keys(5001)}
    await past_sqlalchemy(connection, count.COUNT_FREE, count.parameters(changes))


async def count_one(connection: AsyncConnection) -> None:
    await past_sqlalchemy(connection, count.COUNT_ONE, {"key": keys(5001)[0], "net": 1, "low": -1})


async def present(connection: AsyncConnection) -> None:
    await past_sqlalchemy(connection, count.PRESENT, {"keys": keys(5001)})


def record(status: str) -> Record:
    return Record(uuid.uuid4(), "store", filled.instance(1), status, file_key=filled.file_key(1), detail={"a": 1})


def new_reference() -> dict[str, Any]:
    row = {"file_key": "new", "blob_id": filled.blob(5), "namespace": "default", "mime_kind": "a/b", "file_size": 1000}
    return row | {"labels": {}, "zero_ref_retention": LEASE, "max_retention": None, "held_at_max_retention": "keep"}


async def remove(connection: AsyncConnection) -> None:
    locked = await reference.lock(connection, keys(5001))
    await reference.remove(connection, list(locked.values()), LEASE)


GONE: Final = DeletedReference(filled.file_key(1), filled.blob(1), "default", 1000, "max_retention")
PENDING_ID: Final = filled.blob(filled.LIVE + 1)
EXPIRED: Final = {
    "CLAIM_EXPIRED": {REFERENCE_EXPIRY, BLOB_KEY},
    "DELETE": {REFERENCE_KEY},
    "ORPHAN_BLOBS": {BLOB_KEY, REFERENCE_BLOB},
}
REMOVED: Final = {
    "LOCK_REFERENCES": {REFERENCE_KEY},
    "LOCK_BLOBS": {BLOB_KEY},
    "DELETE": {REFERENCE_KEY},
    "ORPHAN_BLOBS": {BLOB_KEY, REFERENCE_BLOB},
}
LAPSED: Final = {
    "CLAIM_EXPIRED_LEASES": {HOLDER_LEASE, REFERENCE_KEY},
    "CLAIM_OF_STOPPED": {HOLDER_INSTANCE, INSTANCE_KEY, REFERENCE_KEY},
    "LAPSE": {HOLDER_KEY, REFERENCE_KEY},
}
FORGOTTEN: Final = {
    "_FORGOTTEN": {BLOB_PATH, REFERENCE_BLOB},
    "DELETE": {REFERENCE_KEY},
    "_LEFT": {BLOB_PATH, REFERENCE_BLOB},
    "_DELETE_BLOBS": {BLOB_KEY, REFERENCE_BLOB},
    "_LOCK_STORAGE": set(),
    "_DELETE_STORAGE": {BLOB_PATH},
}
GUARDS: Final = [
    Guard("reserve", lambda own: blob.reserve(own, [reservation()], LEASE), {"RESERVE": set()}, items=1),
    Guard(
        "renew",
        lambda own: blob.renew(own, [filled.blob(filled.LIVE + 1 + n) for n in range(BATCH)], LEASE),
        {"RENEW": {BLOB_KEY}},
    ),
    Guard(
        "lock_pending",
        lambda own: blob.lock_pending(own, PENDING_ID),
        {"lock_pending": {f"{BLOB_KEY}|{BLOB_STATE}"}},
        items=1,
    ),
    Guard("give_back", lambda own: blob.give_back(own, [PENDING_ID]), {"GIVE_BACK": {BLOB_KEY}}, items=1),
    Guard("publish", lambda own: blob.publish(own, PENDING_ID, 1, bytes(32)), {"PUBLISH": {PUBLISHED}}, items=1),
    Guard("abandon", lambda own: blob.abandon(own, PENDING_ID, LEASE, "why"), {"ABANDON": {BLOB_KEY}}, items=1),
    Guard("readopt", lambda own: blob.readopt(own, reservation(), LEASE, "why"), {"READOPT": set()}, items=1),
    Guard(
        "state_of",
        lambda own: blob.state_of(own, PENDING_ID),
        {"state_of": {f"{BLOB_KEY}|{BLOB_STATE}"}},
        items=1,
    ),
    Guard(
        "claim_stranded",
        lambda own: blob.claim_stranded(own, "main", LEASE, BATCH),
        {"CLAIM_STRANDED": {UNSETTLED, BLOB_KEY}},
    ),
    Guard("claim_due", lambda own: blob.claim_due(own, "main", LEASE, BATCH), {"CLAIM_DUE": {UNSETTLED, BLOB_KEY}}),
    Guard("finish", lambda own: blob.finish(own, claimed()), {"FINISH": {BLOB_KEY}}),
    Guard(
        "postpone",
        lambda own: blob.postpone(own, failed(), backoff=LEASE, backoff_max=LEASE, max_attempts=8),
        {"POSTPONE": {BLOB_KEY}},
    ),
    Guard("hand_back", lambda own: blob.hand_back(own, failed(), LEASE), {"HAND_BACK": {BLOB_KEY}}),
    Guard("register", lambda own: count.register(own, keys(5001)), {"COUNT": {REFERENCE_KEY}}),
    Guard(
        "register_free",
        lambda own: count.register(own, keys(5001), skip_locked=True),
        {"REGISTER_FREE": {REFERENCE_KEY}},
    ),
    Guard("release", lambda own: count.release(own, keys(5001)), {"RELEASE": {REFERENCE_KEY}}),
    Guard(
        "release_free", lambda own: count.release(own, keys(5001), skip_locked=True), {"RELEASE_FREE": {REFERENCE_KEY}}
    ),
    Guard("publish_many", partial(publish_many, skip_locked=False), {"PUBLISH[False]": {BLOB_KEY}}),
    Guard("publish_many_free", partial(publish_many, skip_locked=True), {"PUBLISH[True]": {BLOB_KEY}}),
    Guard("count_free", count_free, {"COUNT_FREE": {REFERENCE_KEY}}),
    Guard("count_one", count_one, {"COUNT_ONE": {REFERENCE_KEY}}, items=1),
    Guard("present", present, {"PRESENT": {REFERENCE_KEY}}),
    Guard("touch", lambda own: count.touch(own, keys(5001)), {"TOUCH": {REFERENCE_KEY}}),
    # Each its own: what another has changed and rolled back would be met in the indexes.
    Guard("acquire", lambda own: holder.acquire(own, keys(5001), "new", lease=LEASE), {"ACQUIRE": {REFERENCE_KEY}}),
    Guard(
        "renew_holder",
        lambda own: holder.acquire(own, filled.held_by(40), filled.holder(40), instance_id=filled.instance(1)),
        {"ACQUIRE": {REFERENCE_KEY}},
    ),
    Guard(
        "acquire_free",
        lambda own: holder.acquire(own, keys(5001), "newer", lease=LEASE, skip_locked=True),
        {"ACQUIRE_FREE": {REFERENCE_KEY}},
    ),
    Guard(
        "let_go_free",
        lambda own: holder.let_go(own, filled.held_by(90), filled.holder(90), skip_locked=True),
        {"LET_GO_FREE": {REFERENCE_KEY, f"{HOLDER_KEY}|{HOLDER_NAME}"}},
    ),
    Guard(
        "lock_free",
        lambda own: reference.lock(own, keys(5001), skip_locked=True),
        {"LOCK_FREE_REFERENCES": {REFERENCE_KEY}},
    ),
    Guard(
        "let_go",
        lambda own: holder.let_go(own, filled.held_by(50), filled.holder(50)),
        {"LET_GO": {REFERENCE_KEY, f"{HOLDER_KEY}|{HOLDER_NAME}"}},
    ),
    Guard(
        "let_all_go",
        lambda own: holder.let_all_go(own, filled.holder(60)),
        {"LET_ALL_GO": {REFERENCE_KEY, HOLDER_NAME}},
    ),
    Guard("lapse", lambda own: holder.lapse(own, BATCH), LAPSED, items=BATCH + filled.BINDING_ENGINES),
    Guard("forget", lambda own: holder.forget(own, filled.held_by(70)), {"FORGET": {HOLDER_KEY}}),
    Guard(
        "holders_of",
        lambda own: holder.holders_of(own, filled.held_by(80)[0], BATCH),
        {"holders_of": {HOLDER_KEY}},
        items=1,
    ),
    Guard("held_by", lambda own: holder.held_by(own, filled.holder(80), BATCH), {"held_by": {HOLDER_NAME}}),
    Guard(
        "share_expired",
        lambda own: expiry.share_expired(own, BATCH, 0.5),
        {"COUNT_EXPIRED": {REFERENCE_EXPIRY}, "COUNT_UP_TO": {REFERENCE_KEY}},
        items=filled.EXPIRED,
    ),
    Guard("drift", lambda own: clock.drift(own, "boot-5", LEASE), {"DRIFT": {CLOCK_KEY}}, items=1),
    Guard("see", lambda own: clock.see(own, "boot-5", LEASE), {"SEE": set(), "see": set()}, items=filled.CLOCKS),
    Guard("create", lambda own: reference.create(own, new_reference()), {"_CREATE": set()}, items=1),
    Guard(
        "resolve",
        lambda own: own.execute(reference.RESOLVE, {"keys": keys(5001)}),
        {"RESOLVE": {REFERENCE_KEY, BLOB_KEY}},
    ),
    Guard("details", lambda own: reference.details(own, keys(5001)), {"DETAILS": {REFERENCE_KEY, BLOB_KEY}}),
    Guard(
        "page",
        lambda own: reference.page(own, filled.file_key(30_000), BATCH),
        {"PAGE": {REFERENCE_KEY, BLOB_KEY}},
    ),
    Guard(
        "page_of_a_small_namespace",
        lambda own: reference.page(own, None, BATCH, "small"),
        {"page_of_a_small_namespace": {REFERENCE_NAMESPACE, BLOB_KEY}},
    ),
    Guard(
        "exists_with",
        lambda own: reference.exists_with(own, filled.file_key(5), filled.blob(5)),
        {"exists_with": {f"{REFERENCE_KEY}|{REFERENCE_BLOB}"}},
        items=1,
    ),
    Guard("claim_expired", lambda own: expiry.claim_expired(own, "main", BATCH), EXPIRED),
    Guard("remove", remove, REMOVED),
    Guard(
        "expire_now",
        lambda own: reference.expire_now(own, keys(5001), whatever_the_count=True),
        {"expire_now": {REFERENCE_KEY}},
    ),
    Guard(
        "write_ended", lambda own: operation.write_ended(own, [record("succeeded")]), {"WRITE_ENDED": set()}, items=1
    ),
    Guard(
        "write_deleted",
        lambda own: operation.write_deleted(own, "reap", filled.instance(1), [GONE], ["{}"]),
        {"WRITE_DELETED": set()},
        items=1,
    ),
    Guard(
        "write_running",
        lambda own: operation.write_running(own, [record("running")]),
        {"WRITE_RUNNING": set()},
        items=1,
    ),
    Guard(
        "prune_old",
        lambda own: operation.prune_old(own, timedelta(days=20), BATCH),
        {"PRUNE_OLD": {OPERATION_START, OPERATION_KEY}},
    ),
    Guard(
        "prune_but_newest",
        lambda own: operation.prune_but_newest(own, BATCH, BATCH),
        {"PRUNE_BUT_NEWEST": {OPERATION_START, OPERATION_KEY}},
    ),
    Guard("find", lambda own: operation.find(own, filled.operation(5)), {"find": {OPERATION_KEY}}, items=1),
    Guard(
        "newest_ends",
        lambda own: operation.newest_ends(own, keys(3)),
        {"NEWEST_ENDS": {OPERATION_END}},
    ),
    Guard("latest", lambda own: operation.latest(own, BATCH), {"LATEST": {OPERATION_START}}),
    Guard(
        "latest_running",
        lambda own: operation.latest(own, BATCH, running=True),
        {"LATEST_RUNNING": {OPERATION_RUNNING}},
        items=RUNNING,
    ),
    Guard("heartbeat", lambda own: instance.heartbeat(own, filled.instance(1)), {"HEARTBEAT": {INSTANCE_KEY}}, items=1),
    Guard("declare_dead", lambda own: instance.declare_dead(own, LEASE), {"DECLARE_DEAD": {INSTANCE_ALIVE}}, items=5),
    Guard(
        "fail_lost",
        instance.fail_lost,
        {"FAIL_LOST": {OPERATION_RUNNING, OPERATION_KEY}},
        items=RUNNING,
    ),
    Guard(
        "memory_of_the_stopped",
        instance.memory_of_the_stopped,
        {"memory_of_the_stopped": {INSTANCE_KEY}},
        items=filled.STORAGES,
    ),
    Guard(
        "prune_instances",
        lambda own: instance.prune_old(own, timedelta(0), BATCH),
        {"CLAIM_OLD": {INSTANCE_STOPPED, OPERATION_RUNNING}, "PRUNE": {INSTANCE_KEY}},
    ),
    Guard(
        "forget_memory",
        lambda own: instance.forget_memory(own, "memory-10", BATCH),
        FORGOTTEN,
        items=min(BATCH, filled.IN_ONE_MEMORY),
    ),
]


def statements() -> Iterator[tuple[str, Any]]:
    """What stands in a module by a name, and what is in a mapping there."""
    # Those of `inventory` are guarded in tests/fsck/test_statements.py.
    modules = (storage, blob, reference, publication, expiry, count, holder, operation, instance, clock)
    for name, value in (item for module in modules for item in vars(module).items()):
        yield name, value
        if isinstance(value, dict):
            yield from ((f"{name}[{key}]", one) for key, one in value.items())


@cache
def constants() -> dict[int | str, str]:
    """The name of each statement, by its identity; what is prepared for the driver by its SQL."""
    made: dict[int | str, str] = {one.sql: name for name, one in statements() if isinstance(one, Prepared)}
    return made | {id(one): name for name, one in statements() if isinstance(one, SelectBase | UpdateBase)}


def name_of(sent: Sent, guard: Guard) -> str:
    names = constants()
    return names.get(id(sent.statement)) or names.get(sent.sql) or guard.name


def test_every_statement_has_a_guard() -> None:
    guarded = {name for guard in GUARDS for name in guard.sends}
    assert set(constants().values()) - guarded == PARTS | ALSO_PREPARED | READS_ALL


@pytest.fixture(scope="module")
async def filled_url(postgres: PostgresServer, template_database: str) -> AsyncIterator[str]:
    """A filled catalog that the guards share; whatever they change, they roll back."""
    name = await postgres.create_database(template_database)
    connection = await asyncpg.connect(postgres.url(name))
    await filled.fill(connection)
    await connection.close()
    yield postgres.url(name)
    await postgres.drop_database(name)


@pytest.fixture
async def explaining(filled_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(filled_url)
    yield connection
    await connection.close()


def require(plan: Plan, indexes: set[str], items: int) -> None:
    assert plan.scanned & GROWING == set(), plan.text
    assert all(plan.indexes & set(either.split("|")) for either in indexes), plan.text
    assert plan.rows <= ROWS * items, plan.text
    assert plan.buffers <= PAGES * items + MORE_PAGES, plan.text


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
async def test_a_statement_reads_what_it_is_about_and_no_more(
    filled_url: str, explaining: asyncpg.Connection, guard: Guard
) -> None:
    sent = await sent_by(filled_url, guard.work)
    assert {name_of(one, guard) for one in sent} == set(guard.sends)
    for one in sent:
        name = name_of(one, guard)
        custom, generic = [await plan_of(explaining, one, mode) for mode in MODES]
        require(custom, guard.sends[name], guard.items)
        # A statement that finds nothing shows nothing.
        assert custom.rows >= guard.items or not guard.sends[name], custom.text
        if name in PLANNED_EACH_TIME:
            assert generic.cost > 2 * custom.cost
        else:
            require(generic, guard.sends[name], guard.items)


async def test_a_claim_of_what_the_stopped_hold_reads_nothing_for_all_the_others(
    filled_url: str, explaining: asyncpg.Connection
) -> None:
    """Each pass asks; nearly always the many that hold something live, and the many that have stopped hold nothing."""
    sent = await sent_by(filled_url, lambda own: own.execute(holder.CLAIM_OF_STOPPED, {"batch": BATCH}))
    transaction = explaining.transaction()
    await transaction.start()
    await explaining.execute(
        "UPDATE bdr.engine_instance SET stopped_at = NULL "
        "WHERE instance_id IN (SELECT instance_id FROM bdr.reference_holder)"
    )
    bound = await explaining.fetchval("SELECT count(*) FROM bdr.reference_holder WHERE instance_id IS NOT NULL")
    for mode in MODES:
        plan = await plan_of(explaining, sent[0], mode)
        require(plan, {HOLDER_INSTANCE, INSTANCE_KEY}, filled.BINDING_ENGINES)
        assert plan.rows < 3 * filled.BINDING_ENGINES < bound / 5, plan.text
    await transaction.rollback()


UNSETTLED_BLOBS: Final = filled.PENDING + filled.DELETING + filled.QUARANTINED
# `usage` is not among them: like TOTALS it is about all rows.
AUDITS: Final = [
    ("held_longest ORDER BY file_key LIMIT 20", {REFERENCE_KEY, BLOB_KEY}, BATCH),
    ("held_longest WHERE namespace = 'small' ORDER BY file_key LIMIT 20", {REFERENCE_NAMESPACE, BLOB_KEY}, BATCH),
    ("expiring_soon ORDER BY expires_at LIMIT 20", {REFERENCE_EXPIRY, BLOB_KEY}, BATCH),
    ("reaper_backlog", {REFERENCE_EXPIRY, REFERENCE_BLOB, UNSETTLED}, filled.EXPIRED + UNSETTLED_BLOBS),
    ("stuck_blob ORDER BY created_at LIMIT 20", {UNSETTLED}, UNSETTLED_BLOBS),
    ("stuck_blob WHERE storage_name = 'main' AND state = 'quarantined'", {BY_STATE}, filled.QUARANTINED),
]


@pytest.mark.parametrize(("view", "indexes", "items"), AUDITS)
async def test_an_audit_reads_what_it_shows_and_no_more(
    explaining: asyncpg.Connection, view: str, indexes: set[str], items: int
) -> None:
    require(await plan_of(explaining, Sent(None, f"SELECT * FROM bdr.{view}", ())), indexes, items)


async def updates(connection: AsyncConnection) -> tuple[int, int]:
    """How many updates of references there have been, and how many left all indexes alone."""
    await connection.execute(text("SELECT pg_stat_force_next_flush()"))
    found = await connection.execute(
        text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'binary_data_reference'")
    )
    row = found.one()
    return row.n_tup_upd, row.n_tup_hot_upd


async def hot_share(url: str, work: Callable[[AsyncConnection], Awaitable[None]]) -> float:
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        before = await updates(connection)
        await work(connection)
        after = await updates(connection)
    await engine.dispose()
    assert after[0] - before[0] > 1000
    return (after[1] - before[1]) / (after[0] - before[0])


async def test_counting_what_is_held_writes_to_no_index(filled_url: str) -> None:
    """A held reference expires by its age, which no access changes; free space on its page is all it takes."""

    async def work(own: AsyncConnection) -> None:
        for turn in range(200):
            some = keys(20_001 + 5 * (turn % 7))
            await count.register(own, some)
            await count.touch(own, some)
            await count.release(own, some)

    assert await hot_share(filled_url, work) > 0.95


async def test_touching_what_is_not_held_moves_its_place_in_the_index_of_expiry(filled_url: str) -> None:
    unheld = [filled.file_key(30_005 + 100 * step) for step in range(BATCH)]

    async def work(own: AsyncConnection) -> None:
        for _ in range(100):
            await count.touch(own, unheld)

    assert await hot_share(filled_url, work) == 0
