"""After a restore to an earlier point, and after a failover that lost commits, a check tells exactly what differs."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import bdr
from bdr.fsck import FindingKind, repair
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.storages import MakeStorageConfig
from tests.fsck.support import checked
from tests.guarantees import violations
from tests.reaper.support import EAGER, path_of, store_many

MISSING, ORPHAN = FindingKind.MISSING, FindingKind.ORPHAN


@pytest.fixture
async def backup(postgres: PostgresServer, database_url: str) -> AsyncIterator[str]:
    """The name for a copy of the test's catalog as it is at one moment."""
    name = f"{database_url.rpartition('/')[2]}_backup"
    yield name
    await postgres.drop_database(name)


@pytest.mark.parametrize("kind", ["fs", "s3"])
async def test_what_was_deleted_since_is_missing_and_what_was_stored_since_is_an_orphan(
    postgres: PostgresServer,
    database_url: str,
    backup: str,
    make_storage_config: MakeStorageConfig,
    plan: Path,
    kind: str,
) -> None:
    config = make_storage_config(kind)
    async with bdr.connect(database_url=database_url, storage=config, reaper=EAGER) as binary:
        kept = await store_many(binary, 4)
        deleted = await store_many(binary, 3)
        gone = {(MISSING, await path_of(binary, key)) for key in deleted}
        counted = await binary.register_reference(kept[0])
    await postgres.execute(f"CREATE DATABASE {backup} TEMPLATE {database_url.rpartition('/')[2]}")

    async with bdr.connect(database_url=database_url, storage=config, reaper=EAGER) as binary:
        for key in deleted:
            await binary.delete_data(key)
        stored = await store_many(binary, 5)
        new = {(ORPHAN, await path_of(binary, key)) for key in stored}
        # Both ways: neither in the backup nor in the storage.
        await binary.delete_data((await store_many(binary, 1))[0])
        await binary.register_reference(kept[0])
        assert (await checked(binary, plan))[0].is_clean

    async with bdr.connect(database_url=postgres.url(backup), storage=config, reaper=EAGER) as restored:
        report, found = await checked(restored, plan, checksum=True)
        assert found == gone | new
        assert report.unknown == []
        repaired = await repair(restored, plan)
        assert repaired.references == len(deleted)
        await restored.reap()
        assert (await checked(restored, plan))[0].is_clean
        assert [await restored.get_data(key) for key in kept] == [f"file {n}".encode() for n in range(4)]
        assert (await restored.get_details(kept[0])).ref_count == counted
        assert await violations(restored.engine.database, restored.engine.storages) == []

    # To the catalog as it was before, whatever was moved aside since is missing, and nobody's where it lies now.
    async with bdr.connect(database_url=database_url, storage=config) as before:
        report, found = await checked(before, plan)
        assert {one for one in found if one[0] is MISSING} == {(MISSING, path) for _, path in new}
        assert report.count(ORPHAN) == len(new)
