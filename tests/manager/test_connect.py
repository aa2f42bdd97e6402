"""connect(): every argument, what it says when it cannot, and what it leaves behind: nothing."""

import asyncio
import os
import shutil
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import bdr
from bdr import BinaryDataLifecycleManager, BinaryStorageConfig
from bdr.catalog import migrate
from tests.fixtures.engines import Connect
from tests.fixtures.postgres import HOST, PostgresServer, free_port
from tests.lifecycle.support import change, rows
from tests.manager.support import fetch, require_nothing_left

STOPPED = "SELECT stopped_at IS NOT NULL FROM bdr.engine_instance ORDER BY started_at"
MEMORY = BinaryStorageConfig(storage_type="memory")


ARGUMENTS: dict[str, Any] = {
    "lifecycle": bdr.LifecycleCleanupConfig(max_retention=timedelta(days=3)),
    "default_storage": "second",
    "namespace": "tenant-9",
    "migrate_on_start": True,
    "reaper": bdr.ReaperConfig(batch_size=7),
    "upload": bdr.UploadConfig(lease=timedelta(minutes=3)),
    "cache": bdr.CacheConfig(capacity=1_000_000, max_entry=1_000),
    "database": bdr.DatabaseConfig(pool_size=3),
    "instance": bdr.InstanceConfig(name="the seventh"),
    "operations": bdr.OperationsConfig(retention=None),
    "access": bdr.AccessConfig(touch_interval=timedelta(seconds=5)),
}


async def test_every_argument_reaches_the_engine(database_url: str, tmp_path: Path) -> None:
    places = {name: BinaryStorageConfig(storage_type="fs", root=str(tmp_path / name)) for name in ("first", "second")}
    given = ARGUMENTS | {"storages": places, "data_dir": tmp_path / "data"}
    for name, field in bdr.Settings.model_fields.items():
        if name not in given and name != "database_url":
            assert field.annotation is not None
            given[name] = field.annotation()
    async with bdr.connect(database_url, **given) as binary:
        settings = binary.engine.settings
        for name, value in given.items():
            assert getattr(settings, name) == value, name
        key = (await binary.store_data(b"hello")).file_key
        details = await binary.get_details(key)
        assert (details.storage_name, details.namespace) == ("second", "tenant-9")
        assert details.expires_at is not None
        assert details.expires_at - details.created_at <= timedelta(days=3)
        assert await rows(binary, "SELECT name, pid FROM bdr.engine_instance") == [("the seventh", os.getpid())]
    await require_nothing_left(database_url)


async def test_positions_and_names_and_settings_say_the_same(database_url: str, fs_config: BinaryStorageConfig) -> None:
    lifecycle = bdr.LifecycleCleanupConfig(zero_ref_retention=timedelta(seconds=9))
    settings = bdr.load_settings(database_url=database_url, storage=fs_config, lifecycle=lifecycle)
    ways = (
        bdr.connect(database_url, fs_config, lifecycle),
        bdr.connect(database_url=database_url, storage=fs_config, lifecycle=lifecycle, storages=None),
        bdr.connect(settings=settings),
    )
    for way in ways:
        async with way as binary:
            assert binary.engine.settings.lifecycle == lifecycle
            assert list(binary.engine.storages) == ["main"]
            assert binary.engine.settings.database_url == settings.database_url


@pytest.mark.parametrize("second", [{"database_url": "postgresql://x"}, {"storage": MEMORY}, {"namespace": "n"}])
async def test_settings_and_single_settings_together_are_refused(database_url: str, second: dict[str, Any]) -> None:
    settings = bdr.load_settings(database_url=database_url, storage=MEMORY)
    with pytest.raises(bdr.ConfigError, match=f"settings= and also {next(iter(second))}"):
        await bdr.connect(settings=settings, **second).__aenter__()


async def test_an_argument_that_is_no_setting_is_named(database_url: str) -> None:
    with pytest.raises(bdr.ConfigError, match="storge"):
        await bdr.connect(database_url, storge=MEMORY).__aenter__()


async def test_two_storages_and_the_default_one_among_them(connect: Connect, tmp_path: Path) -> None:
    places = {"cold": BinaryStorageConfig(storage_type="fs", root=str(tmp_path / "cold")), "main": MEMORY}
    binary = await connect(storages=places)
    memory = (await binary.store_data(b"in memory")).file_key
    assert (await binary.get_details(memory)).storage_name.startswith("main@")
    other = await connect(storages=places, default_storage="cold")
    cold = (await other.store_data(b"on disk")).file_key
    assert await binary.get_data(cold) == b"on disk"
    with pytest.raises(bdr.StorageUnavailable, match="in the memory of another engine instance"):
        await other.get_data(memory)
    third = await connect()
    with pytest.raises(bdr.ConfigError, match=r"which is not configured here \(configured: main\)"):
        await third.get_data(cold)


async def test_connections_may_be_nested(database_url: str, fs_config: BinaryStorageConfig) -> None:
    async with bdr.connect(database_url, fs_config) as outer:
        async with bdr.connect(database_url, fs_config) as inner:
            key = (await inner.store_data(b"hello")).file_key
        assert await outer.get_data(key) == b"hello"
        with pytest.raises(bdr.InstanceClosed):
            await inner.get_data(key)
        assert await rows(outer, STOPPED) == [(False,), (True,)]
    await require_nothing_left(database_url)


@pytest.mark.parametrize(
    ("revision", "error", "sentence"),
    [
        (None, bdr.CatalogNotMigrated, "has no catalog yet; run `bdr db upgrade`"),
        ("ffffffffffff", bdr.CatalogAhead, "is at revision ffffffffffff, which this version of bdr does not know"),
        ("dcf7b82c6774", bdr.CatalogNotMigrated, r"is at revision dcf7b82c6774;.*Run `bdr db upgrade`"),
    ],
    ids=["not migrated", "ahead", "behind"],
)
async def test_a_catalog_of_another_version_is_refused_with_what_to_do(
    database_url: str,
    fs_config: BinaryStorageConfig,
    revision: str | None,
    error: type[Exception],
    sentence: str,
) -> None:
    change = f"UPDATE bdr.alembic_version SET version_num = '{revision}'" if revision else "DROP SCHEMA bdr CASCADE"
    await fetch(database_url, change)
    with pytest.raises(error, match=sentence):
        await bdr.connect(database_url, fs_config).__aenter__()


async def test_migrate_on_start_migrates(empty_database_url: str, fs_config: BinaryStorageConfig) -> None:
    with pytest.raises(bdr.CatalogNotMigrated):
        await bdr.connect(empty_database_url, fs_config, migrate_on_start=False).__aenter__()
    starts = [bdr.connect(empty_database_url, fs_config, migrate_on_start=True) for _ in range(2)]
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(start) for start in starts]
        key = (await one.store_data(b"hello")).file_key
        assert await other.get_data(key) == b"hello"
    assert await migrate.check(empty_database_url) == []


@pytest.mark.parametrize(
    ("url", "error", "sentence"),
    [
        ("postgresql://postgres@127.0.0.1:{free}/x", bdr.CatalogUnavailable, "cannot be reached"),
        ("postgresql://postgres@no-such-host.invalid/x", bdr.CatalogUnavailable, "cannot be reached"),
        ("postgresql://postgres@127.0.0.1:{port}/no_such_database", bdr.ConfigError, "does not exist"),
        ("postgresql://guarded:wrong@127.0.0.1:{port}/postgres", bdr.PermissionDenied, "refused the user or password"),
        ("mysql://root@localhost/x", bdr.ConfigError, "mysql"),
        ("nonsense", bdr.ConfigError, "."),
    ],
)
async def test_a_database_that_cannot_be_used_is_a_typed_error_with_a_sentence(
    postgres: PostgresServer, fs_config: BinaryStorageConfig, url: str, error: type[Exception], sentence: str
) -> None:
    await postgres.execute(
        "DO $$ BEGIN CREATE ROLE guarded LOGIN PASSWORD 'right'; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    with pytest.raises(error, match=sentence) as raised:
        await bdr.connect(url.format(free=free_port(), port=postgres.port), fs_config).__aenter__()
    assert "wrong" not in str(raised.value)


async def test_a_storage_that_cannot_be_made_leaves_nothing_of_the_engine(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    places = {
        "main": MEMORY,
        "bad": BinaryStorageConfig(storage_type="fs", root=str(tmp_path / "file" / "folder")),
    }
    with pytest.raises(bdr.BinaryStorageError, match="bad"):
        await bdr.connect(database_url, storages=places).__aenter__()
    await require_nothing_left(database_url)
    assert await fetch(database_url, "SELECT name FROM bdr.storage") == []


async def test_another_place_by_a_known_name_is_refused_with_both_places(
    connect: Connect, database_url: str, tmp_path: Path
) -> None:
    binary = await connect()
    await binary.store_data(b"hello")
    elsewhere = BinaryStorageConfig(storage_type="fs", root=str(tmp_path / "elsewhere"))
    with pytest.raises(bdr.StorageMismatch, match=f"{tmp_path}/objects.*{tmp_path}/elsewhere"):
        await bdr.connect(database_url, elsewhere).__aenter__()
    renamed = {"other": binary.engine.settings.storages["main"]}
    with pytest.raises(bdr.StorageMismatch, match="knows storage 'main'"):
        await bdr.connect(database_url, storages=renamed, default_storage="other").__aenter__()
    assert await rows(binary, STOPPED) == [(False,), (True,), (True,)]


async def test_a_place_of_another_catalog_is_refused(connect: Connect, empty_database_url: str) -> None:
    binary = await connect()
    with pytest.raises(bdr.StorageMismatch, match="is marked as storage 'main' of catalog"):
        await bdr.connect(
            empty_database_url, binary.engine.settings.storages["main"], migrate_on_start=True
        ).__aenter__()
    await require_nothing_left(empty_database_url)


async def test_a_mistaken_place_that_could_not_be_reached_does_not_keep_the_name(
    database_url: str, fs_config: BinaryStorageConfig
) -> None:
    options = {"endpoint": f"http://{HOST}:{free_port()}", "bucket": "b", "access_key": "a", "secret_key": "s"}
    with pytest.raises(bdr.StorageUnavailable):
        await bdr.connect(database_url, BinaryStorageConfig(storage_type="s3", config=options)).__aenter__()
    assert await fetch(database_url, "SELECT name, storage_type FROM bdr.storage") == [("main", "s3")]
    async with bdr.connect(database_url, fs_config) as binary:
        assert await rows(binary, "SELECT name, storage_type FROM bdr.storage") == [("main", "fs")]
        # As if it had been called otherwise when it was first tried, and could not be marked.
        await change(binary, "UPDATE bdr.storage SET name = 'typo', marked_at = NULL")
    async with bdr.connect(database_url, fs_config) as binary:
        assert await rows(binary, "SELECT name, marked_at IS NOT NULL FROM bdr.storage") == [("main", True)]
        key = (await binary.store_data(b"hello")).file_key
        assert await binary.get_data(key) == b"hello"


async def test_a_storage_that_is_away_at_the_start_is_told_and_used_when_it_is_back(
    connect: Connect, database_url: str, fs_config: BinaryStorageConfig, caplog: pytest.LogCaptureFixture
) -> None:
    key = (await (await connect()).store_data(b"hello")).file_key
    away = f"{fs_config.root}-away"
    shutil.move(fs_config.root, away)
    async with bdr.connect(database_url, fs_config) as binary:
        assert "cannot be used until it is back" in caplog.text
        with pytest.raises(bdr.StorageUnavailable):
            await binary.store_data(b"world")
        shutil.rmtree(fs_config.root)
        shutil.move(away, fs_config.root)
        assert await binary.get_data(key) == b"hello"
        assert (await binary.store_data(b"world")).file_size == 5


async def test_two_engines_that_are_first_with_one_name_agree_on_one_place(database_url: str, tmp_path: Path) -> None:
    places = [BinaryStorageConfig(storage_type="fs", root=str(tmp_path / f"place{number}")) for number in range(6)]
    starts = [bdr.connect(database_url, place) for place in places]
    ended = await asyncio.gather(*(start.__aenter__() for start in starts), return_exceptions=True)
    won = [start for start, end in zip(starts, ended, strict=True) if isinstance(end, BinaryDataLifecycleManager)]
    assert len(won) == 1
    assert {type(end) for end in ended} == {BinaryDataLifecycleManager, bdr.StorageMismatch}
    for start in won:
        await start.__aexit__(None, None, None)
    await require_nothing_left(database_url)
