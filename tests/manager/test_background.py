"""What goes on beside the calls: each at its own pace, through outages, and whatever becomes of the others."""

import asyncio
import logging
from datetime import datetime, timedelta

import pytest

import bdr
from tests.fixtures.engines import Connect
from tests.lifecycle.conftest import ConnectThrough
from tests.lifecycle.support import HeldSource, rows
from tests.manager.support import NEVER
from tests.storage.helpers import until

QUICK = timedelta(milliseconds=50)


async def heartbeat(binary: bdr.BinaryDataLifecycleManager) -> datetime:
    found = await rows(
        binary, "SELECT heartbeat_at FROM bdr.engine_instance WHERE instance_id = :one", one=binary.engine.instance_id
    )
    return datetime.fromisoformat(str(found[0][0]))


async def until_beaten(binary: bdr.BinaryDataLifecycleManager) -> None:
    before = await heartbeat(binary)

    async def later() -> bool:
        return await heartbeat(binary) > before

    await until(later)


async def test_signs_of_life_do_not_wait_for_what_is_written_seldom(connect: Connect) -> None:
    binary = await connect(access=NEVER, instance=bdr.InstanceConfig(heartbeat_interval=QUICK))
    for _ in range(3):
        await until_beaten(binary)


async def test_uploads_are_renewed_although_all_else_is_written_seldom(connect: Connect) -> None:
    binary = await connect(access=NEVER, upload=bdr.UploadConfig(lease=timedelta(seconds=2), reserve_ahead=0))
    source = HeldSource()
    storing = asyncio.create_task(binary.store_stream(source.chunks()))
    await source.begun.wait()
    ((first,),) = await rows(binary, "SELECT next_attempt_at FROM bdr.blob")

    async def renewed() -> bool:
        return await rows(binary, "SELECT next_attempt_at > :first FROM bdr.blob", first=first) == [(True,)]

    await until(renewed)
    source.go_on.set()
    await storing


async def test_a_mistake_in_one_step_is_logged_and_does_not_stop_the_others(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    binary = await connect(instance=bdr.InstanceConfig(heartbeat_interval=QUICK))
    key = (await binary.store_data(b"hello")).file_key
    # What no statement can take, as only a mistake of ours could put it there.
    binary.access._waiting.add(7)  # type: ignore[arg-type]  # that is the mistake
    await binary.get_data(key)

    async def logged() -> bool:
        return "A mistake in what goes on in the background" in caplog.text

    await until(logged)
    for _ in range(3):
        await until_beaten(binary)

    async def recorded() -> bool:
        return await rows(binary, "SELECT operation_type FROM bdr.operation ORDER BY 1") == [("retrieve",), ("store",)]

    await until(recorded)
    binary.access._waiting.clear()


async def test_an_outage_is_logged_when_it_begins_and_when_it_ends_not_all_the_time(
    connect_through: ConnectThrough, caplog: pytest.LogCaptureFixture
) -> None:
    short = timedelta(seconds=1)
    binary, between = await connect_through(
        instance=bdr.InstanceConfig(heartbeat_interval=QUICK),
        database=bdr.DatabaseConfig(connect_timeout=short, pool_timeout=short),
    )
    with caplog.at_level(logging.INFO, "bdr.manager.background"):
        between.stop()

        async def told() -> bool:
            return "trying again" in caplog.text

        await until(told)
        loop = asyncio.get_running_loop()
        # Long enough for many signs of life that are not heard.
        until_then = loop.time() + 20 * QUICK.total_seconds()
        while loop.time() < until_then:
            with pytest.raises(bdr.CatalogUnavailable):
                await binary.get_stats()
        await between.start()

        # Not the row: the catalog has the sign of life a moment before this engine has the answer.
        async def over() -> bool:
            return "The catalog took it after" in caplog.text

        await until(over)
    beats = [record for record in caplog.records if record.name == "bdr.manager.background"]
    assert [record.levelname for record in beats] == ["WARNING", "INFO"]
    assert "The catalog took it after" in beats[1].getMessage()
