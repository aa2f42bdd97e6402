import asyncio
import signal
from pathlib import Path
from typing import Final

import asyncpg
import pytest

import bdr
from bdr.storage.paths import MARKER_PATH
from tests.cli.holding import operations_held, until_held
from tests.cli.programs import Command, Inside
from tests.fixtures.engines import AT_ONCE, Connect
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.storages import free_ports
from tests.storage.helpers import until

# `auto_cleanup` is about engines; a reaper that is started by its name reaps.
OFTEN: Final = {
    "BDR_LIFECYCLE__CLEANUP_INTERVAL": "100ms",
    "BDR_LIFECYCLE__AUTO_CLEANUP": "false",
    "BDR_REAPER__BACKOFF_INITIAL": "100ms",
    "BDR_REAPER__BACKOFF_MAX": "200ms",
    "BDR_REAPER__DRAIN_TIMEOUT": "2min",
    "BDR_DATABASE__LOCK_TIMEOUT": "2min",
    "BDR_DATABASE__STATEMENT_TIMEOUT": "2min",
}
EXPIRED: Final = bdr.LifecycleCleanupConfig(max_retention=AT_ONCE)
STARTED: Final = "Reaping what has expired in main (fs:"


async def references(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM bdr.binary_data_reference"))
    finally:
        await connection.close()


async def until_reaped(url: str) -> None:
    async def is_empty() -> bool:
        return await references(url) == 0

    await until(is_empty, 60)


async def test_one_pass_tells_what_it_did(inside: Inside, connect: Connect) -> None:
    engine = await connect(lifecycle=EXPIRED)
    for number in range(3):
        await engine.store_data(b"x" * number)
    reaped = await inside("reap")
    assert reaped.code == 0
    assert reaped.fields == reaped.fields | {"references": "3", "blobs": "3", "bytes": "3 (3 B)", "failed": "0"}
    assert (await inside("reap", "--json")).json["references"] == 0


async def test_a_pass_that_could_not_reach_a_storage_ends_with_1(
    inside: Inside, connect: Connect, fs_config: bdr.BinaryStorageConfig
) -> None:
    await (await connect(lifecycle=EXPIRED)).store_data(b"x")
    marker = Path(fs_config.root) / MARKER_PATH
    text = marker.read_text()
    marker.unlink()
    reaped = await inside("reap", "--json")
    assert (reaped.code, reaped.json["references"], list(reaped.json["unreachable"])) == (1, 0, ["main"])
    assert reaped.errors.count("had trouble: storage 'main' was left out: ") == 1
    quiet = await inside("reap", "--log-level", "error")
    assert quiet.errors.startswith("bdr: The pass had trouble: storage 'main' was left out: ")
    marker.write_text(text)


async def test_a_pass_that_would_delete_very_much_waits_until_that_is_confirmed(
    inside: Inside, connect: Connect
) -> None:
    engine = await connect(lifecycle=EXPIRED)
    for _ in range(3):
        await engine.store_data(b"x")
    limits = {"BDR_REAPER__MAX_REFERENCES": "1", "BDR_REAPER__MAX_SHARE": "0.5"}
    stopped = await inside("reap", "--json", **limits)
    assert (stopped.code, stopped.json["references"]) == (1, 0)
    assert "run `bdr reap --confirm` once" in stopped.errors
    confirmed = await inside("reap", "--confirm", **limits)
    assert (confirmed.code, confirmed.fields["references"]) == (0, "3")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_reaper_that_is_told_to_stop_ends_its_batch_and_begins_no_other(
    command: Command, connect: Connect, database_url: str, number: signal.Signals
) -> None:
    engine = await connect(lifecycle=EXPIRED)
    for _ in range(3):
        await engine.store_data(b"x")
    # Of more objects at once there would be two batches under way.
    one_by_one = {"BDR_REAPER__BATCH_SIZE": "1", "BDR_REAPER__CONCURRENCY": "1"}
    async with command.running("reaper", **one_by_one, **OFTEN) as reaper:
        async with operations_held(database_url) as connection:
            announced = await reaper.logged(STARTED)
            assert " every 100ms, " in announced
            await until_held(connection)
            reaper.process.send_signal(number)
            await reaper.logged(f"{number.name}: stopping after the batch that is under way")
            assert await references(database_url) == 3
        assert await reaper.ended() == 0
    assert await references(database_url) == 2
    assert reaper.log.splitlines()[-1].endswith("INFO bdr.cli.daemon: Stopped.")


async def test_a_second_signal_ends_a_reaper_at_once(command: Command, connect: Connect, database_url: str) -> None:
    await (await connect(lifecycle=EXPIRED)).store_data(b"x")
    async with command.running("reaper", **OFTEN) as reaper, operations_held(database_url) as connection:
        await until_held(connection)
        reaper.process.send_signal(signal.SIGTERM)
        await reaper.logged("SIGTERM: stopping")
        reaper.process.send_signal(signal.SIGTERM)
        assert await reaper.ended() == -signal.SIGTERM
    assert await references(database_url) == 1


async def test_a_reaper_waits_for_the_database_and_goes_on_when_it_is_back(
    command: Command, private_postgres: PostgresServer, tmp_path: Path
) -> None:
    url = private_postgres.url(await private_postgres.migrated_template())
    storage = bdr.BinaryStorageConfig(storage_type="fs", root=str(tmp_path / "private"))

    async def store_what_has_expired() -> None:
        async with bdr.connect(url, storage, EXPIRED) as engine:
            await engine.store_data(b"x")

    private_postgres.stop()
    here = {"BDR_DATABASE_URL": url, "BDR_STORAGE__ROOT": storage.root}
    async with command.running("reaper", **here, **OFTEN) as reaper:
        await reaper.logged("Trying again in about 1s: ")
        private_postgres.start()
        await reaper.logged(STARTED)
        await store_what_has_expired()
        await until_reaped(url)
        private_postgres.stop("immediate")
        await reaper.logged("A reap failed and is tried again")
        private_postgres.start()
        await store_what_has_expired()
        await until_reaped(url)
        reaper.process.send_signal(signal.SIGTERM)
        assert await reaper.ended() == 0


async def test_a_reaper_that_was_declared_dead_joins_anew(
    command: Command, connect: Connect, database_url: str
) -> None:
    beats = {"BDR_INSTANCE__HEARTBEAT_INTERVAL": "50ms", "BDR_ACCESS__FLUSH_INTERVAL": "50ms"}
    async with command.running("reaper", **beats, **OFTEN) as reaper:
        first = (await reaper.logged(STARTED)).split()[-1]
        connection = await asyncpg.connect(database_url)
        await connection.execute("UPDATE bdr.engine_instance SET stopped_at = now()")
        await connection.close()
        assert (await reaper.logged(STARTED)).split()[-1] != first
        await (await connect(lifecycle=EXPIRED)).store_data(b"x")
        await until_reaped(database_url)
        reaper.process.send_signal(signal.SIGTERM)
        assert await reaper.ended() == 0


async def test_a_reaper_that_still_waits_stops_when_told_to(command: Command) -> None:
    down = f"postgresql://user:hidden@127.0.0.1:{free_ports(1)[0]}/db"
    async with command.running("reaper", BDR_DATABASE_URL=down) as reaper:
        await reaper.logged("Trying again in about ")
        reaper.process.send_signal(signal.SIGINT)
        assert await reaper.ended() == 0
    assert "hidden" not in reaper.log


async def test_a_reaper_does_not_wait_for_what_needs_a_person(command: Command, empty_database_url: str) -> None:
    unmigrated, malformed, misspelt = await asyncio.gather(
        command("reaper", BDR_DATABASE_URL=empty_database_url),
        command("reaper", BDR_DATABASE_URL="http://user:hidden@h/x"),
        command("reaper", BDR_REAPER__LEESE="1h"),
    )
    assert unmigrated.errors == f"bdr: {empty_database_url} has no catalog yet; run `bdr db upgrade`.\n"
    assert malformed.errors.startswith("bdr: The database URL http://user:***@h/x should begin with one of ")
    assert misspelt.errors.startswith("bdr: BDR_REAPER__LEESE: there is no setting")
    assert [one.code for one in (unmigrated, malformed, misspelt)] == [1, 1, 1]
