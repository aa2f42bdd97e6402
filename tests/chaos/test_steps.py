"""Killed at every boundary between two steps: what was acknowledged is there, and nothing else is left."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

import bdr
from bdr.settings import BinaryStorageConfig
from tests.chaos import failpoints
from tests.chaos.victim import SCENARIOS, Task
from tests.chaos.watch import RECOVERING, Ledger, assert_whole, distinct, recover, run
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.storages import MakeStorageConfig

AT_ONCE = timedelta(0)
# How many references are there before the scenario begins.
PREPARED = {"count": 1, "let go": 2, "delete": 2, "join a transaction": 1, "reap": 6}
# A scenario that expires its own references: their retention is stamped when they are stored.
EXPIRING = {"let go": {"zero_ref_retention": AT_ONCE}, "reap": {"max_retention": AT_ONCE}}
_DUE = (
    "UPDATE bdr.reference_holder SET lease_expires_at = now()",
    "INSERT INTO bdr.blob (blob_id, storage_name, object_path, state, instance_id, next_attempt_at) "  # noqa: ISC004
    "SELECT id, 'main', 'ff/' || id, 'pending', id, now() FROM gen_random_uuid() id",
)


async def _execute(connection: AsyncConnection, statement: str) -> None:
    await connection.execute(text(statement))


def given(config: BinaryStorageConfig) -> dict[str, Any]:
    return {"storage_type": config.storage_type, "root": config.root, "config": config.config}


async def prepared(scenario: str, url: str, config: BinaryStorageConfig) -> dict[str, int]:
    """Store what the scenario needs, by an engine that is closed again; the counts of the references."""
    number = PREPARED.get(scenario, 0)
    if not number:
        return {}
    life = bdr.LifecycleCleanupConfig.model_validate(EXPIRING.get(scenario, {}))
    async with bdr.connect(url, config, life) as binary:
        keys = [(await binary.store_data(bytes([n]))).file_key for n in range(number)]
        if scenario == "reap":
            await binary.register_reference(keys[0], holder="lapsed", lease=timedelta(hours=1))
            for statement in _DUE:
                await binary.engine.database.write(partial(_execute, statement=statement))
    return dict.fromkeys(keys, 1)


async def victim_of(
    scenario: str, url: str, config: BinaryStorageConfig, point: str | None = None, passes: int = 0
) -> tuple[Ledger, dict[str, int]]:
    """Prepare and run a scenario; what was told of it, and the counts of the references that were there before."""
    before = await prepared(scenario, url, config)
    return await run(Task(scenario, point, url, given(config), passes, tuple(before), RECOVERING)), before


MakeCatalog = Callable[[str], Awaitable[tuple[str, BinaryStorageConfig]]]


@pytest.fixture
def make_catalog(
    postgres: PostgresServer, template_database: str, make_storage_config: MakeStorageConfig
) -> MakeCatalog:
    """A factory: `await make_catalog(kind)` is a new catalog and an empty storage of that kind."""

    async def make(kind: str) -> tuple[str, BinaryStorageConfig]:
        return postgres.url(await postgres.create_database(template_database)), make_storage_config(kind)

    return make


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["fs", "redis", "s3"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_process_that_is_killed_between_two_steps_leaves_nothing_wrong(
    make_catalog: MakeCatalog, scenario: str, kind: str
) -> None:
    url, config = await make_catalog(kind)
    whole, _ = await victim_of(scenario, url, config)
    assert not whole.killed
    assert whole.reached, "the scenario reaches no fail point"
    for point, passes in distinct(whole.reached):
        # Only the first to come makes the marker: these points are reached in catalogs of their own.
        if point.startswith("begin."):
            url, config = await make_catalog(kind)
        ledger, before = await victim_of(scenario, url, config, point, passes)
        assert ledger.killed, f"not killed at {point} after {passes}"
        async with bdr.connect(url, config, **RECOVERING) as binary:
            await recover(binary)
            await assert_whole(binary, ledger, {} if scenario == "reap" else before)


async def test_every_fail_point_is_reached_by_a_scenario(make_catalog: MakeCatalog) -> None:
    names = failpoints.all_points()
    assert len(names) == len(set(names)), "a name stands twice"
    reached: set[str] = set()
    for scenario in SCENARIOS:
        ledger, _ = await victim_of(scenario, *await make_catalog("fs"))
        reached |= set(ledger.reached)
    assert reached == set(names)
