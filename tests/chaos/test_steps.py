"""Killed at every boundary between two steps: what was acknowledged is there, and nothing else is left."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import bdr
from bdr.fsck import check, repair
from bdr.settings import BinaryStorageConfig
from tests.chaos import failpoints
from tests.chaos.victim import SCENARIOS, Task
from tests.chaos.watch import RECOVERING, Ledger, assert_whole, distinct, recover, run
from tests.figures import KILLED
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.storages import MakeStorageConfig
from tests.fsck.support import Damage
from tests.lifecycle.support import change, rows

AT_ONCE = timedelta(0)
# How many references are there before the scenario begins.
PREPARED = {"count": 1, "let go": 2, "hold": 2, "delete": 2, "many": 2, "join a transaction": 1, "reap": 6, "repair": 6}
# A scenario that expires its own references: their retention is stamped when they are stored.
EXPIRING = {
    "let go": {"zero_ref_retention": AT_ONCE},
    "hold": {"zero_ref_retention": AT_ONCE},
    "reap": {"max_retention": AT_ONCE},
}
_DUE = (
    "UPDATE bdr.reference_holder SET lease_expires_at = now() WHERE lease_expires_at IS NOT NULL",
    "INSERT INTO bdr.blob (blob_id, storage_name, object_path, state, instance_id, next_attempt_at) "  # noqa: ISC004
    "SELECT id, 'main', 'ff/' || id, 'pending', id, now() FROM gen_random_uuid() id",
)
_WRONG_SIZE = "UPDATE bdr.binary_data_reference SET file_size = 99 WHERE file_key = :key"
_REPAIRED = "SELECT count(*) FROM bdr.operation WHERE operation_type = 'fsck' AND file_key = :key"


def given(config: BinaryStorageConfig) -> dict[str, Any]:
    return {"storage_type": config.storage_type, "root": config.root, "config": config.config}


@dataclass
class Before:
    """What there was before the scenario began.

    Attributes:
        counts: of the references that must be there in the end, unless the scenario itself lets them go.
        lost: references whose bytes were lost.
        plan: what a check has found.
    """

    counts: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    plan: Path | None = None


async def prepared(scenario: str, url: str, config: BinaryStorageConfig, folder: Path) -> Before:
    """Store what the scenario needs, by an engine that is closed again."""
    number = PREPARED.get(scenario, 0)
    if not number:
        return Before()
    life = bdr.LifecycleCleanupConfig.model_validate(EXPIRING.get(scenario, {}))
    async with bdr.connect(url, config, life) as binary:
        keys = [(await binary.store_data(bytes([n]))).file_key for n in range(number)]
        if scenario == "reap":
            return await _expired(binary, keys)
        if scenario == "repair":
            return await _damaged(binary, keys, folder / f"{keys[0]}.plan")
    return Before(dict.fromkeys(keys, 1))


async def _expired(binary: bdr.BinaryDataLifecycleManager, keys: list[str]) -> Before:
    """All have expired but two, and those are held by nobody who is still there."""
    pinned = keys[:2]
    for key in pinned:
        await binary.pin(key)
    await binary.register_reference(pinned[0], holder="lapsed", lease=timedelta(hours=1))
    await binary.register_reference(pinned[1], holder="stopped", bound=True)
    for statement in _DUE:
        await change(binary, statement)
    return Before(dict.fromkeys(pinned, 1))


async def _damaged(binary: bdr.BinaryDataLifecycleManager, keys: list[str], plan: Path) -> Before:
    """One thing of each kind is wrong, and two orphans are there where the storage can list them."""
    damage = Damage(binary)
    lost, truncated, corrupt, unreferenced, miscounted, whole = keys
    await damage.lose(lost)
    await damage.replace(truncated, b"")
    await damage.replace(corrupt, b"?")
    await damage.forget(unreferenced)
    await change(binary, _WRONG_SIZE, key=miscounted)
    if binary.engine.storages["main"].can_list:
        await damage.strand()
        await damage.strand()
    report = await check(binary, plan, checksum=True)
    assert report.count() == (7 if binary.engine.storages["main"].can_list else 5)
    return Before(dict.fromkeys([miscounted, whole], 1), [lost, truncated, corrupt], plan)


async def victim_of(
    scenario: str, url: str, config: BinaryStorageConfig, folder: Path, point: str | None = None, passes: int = 0
) -> tuple[Ledger, Before]:
    """Prepare and run a scenario; what was told of it, and what was there before."""
    before = await prepared(scenario, url, config, folder)
    task = Task(scenario, point, url, given(config), passes, tuple(before.counts), before.plan, RECOVERING)
    return await run(task), before


async def assert_recovers(binary: bdr.BinaryDataLifecycleManager, ledger: Ledger, before: Before) -> None:
    """What another engine and the reapers do of themselves makes everything whole again."""
    if before.plan is not None:
        await repair(binary, before.plan)
    await recover(binary)
    await assert_whole(binary, ledger, before.counts)
    if before.plan is not None:
        assert [await rows(binary, _REPAIRED, key=key) for key in before.lost] == [[(1,)]] * len(before.lost)
        assert {(await binary.get_metadata(key)).file_size for key in before.counts} == {1}


Report = Callable[[str, object], None]
MakeCatalog = Callable[[str], Awaitable[tuple[str, BinaryStorageConfig]]]


@pytest.fixture
def make_catalog(
    postgres: PostgresServer, template_database: str, make_storage_config: MakeStorageConfig
) -> MakeCatalog:
    """A factory: `await make_catalog(kind)` is a new catalog and an empty storage of that kind."""

    async def make(kind: str) -> tuple[str, BinaryStorageConfig]:
        return postgres.url(await postgres.create_database(template_database)), make_storage_config(kind)

    return make


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["fs", "redis", "s3"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_process_that_is_killed_between_two_steps_leaves_nothing_wrong(
    make_catalog: MakeCatalog, tmp_path: Path, record_property: Report, scenario: str, kind: str
) -> None:
    url, config = await make_catalog(kind)
    whole, _ = await victim_of(scenario, url, config, tmp_path)
    assert not whole.killed
    assert whole.reached, "the scenario reaches no fail point"
    boundaries = distinct(whole.reached)
    for point, passes in boundaries:
        # Only the first to come makes the marker: these points are reached in catalogs of their own.
        if point.startswith("begin."):
            url, config = await make_catalog(kind)
        ledger, before = await victim_of(scenario, url, config, tmp_path, point, passes)
        assert ledger.killed, f"not killed at {point} after {passes}"
        async with bdr.connect(url, config, **RECOVERING) as binary:
            await assert_recovers(binary, ledger, before)
    async with bdr.connect(url, config, **RECOVERING) as binary:
        assert (await check(binary, tmp_path / "last.plan", checksum=True)).count() == 0
    record_property(KILLED, len(boundaries))


async def test_every_fail_point_is_reached_by_a_scenario(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    names = failpoints.all_points()
    assert len(names) == len(set(names)), "a name stands twice"
    reached: set[str] = set()
    # Only on S3 a move is a copy first.
    for scenario, kind in [*product(SCENARIOS, ["fs"]), ("repair", "s3")]:
        ledger, _ = await victim_of(scenario, *await make_catalog(kind), tmp_path)
        reached |= set(ledger.reached)
    assert reached == set(names)
