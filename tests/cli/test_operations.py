import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import bdr
from tests.cli.programs import Inside
from tests.fixtures.engines import Connect


async def test_ops_lists_what_was_done_and_stats_adds_it_up(inside: Inside, key: str) -> None:
    await inside("get", key, "-o", "copy")
    await inside("rm", key, "--force")
    listed = (await inside("ops")).cells
    assert [cells[1:4] for cells in listed] == [[what, "succeeded", "100%"] for what in ("delete", "retrieve", "store")]
    assert {cells[6] for cells in listed} == {key}
    (newest,) = (await inside("ops", "--limit", "1", "--json")).json
    assert newest == newest | {
        "operation_type": "delete",
        "status": "succeeded",
        "file_key": key,
        "namespace": "default",
        "total_bytes": 24,
        "completion_percentage": 100.0,
        "remaining_seconds": None,
        "error": None,
    }
    assert newest["finished_at"] >= newest["started_at"]
    added_up = (await inside("stats")).fields
    assert (added_up["total operations"], added_up["total bytes processed"]) == ("3", "72 (72 B)")
    assert (await inside("stats", "--json")).json["successful_operations"] == 3


async def test_what_another_engine_is_doing_is_shown_with_its_progress(inside: Inside, connect: Connect) -> None:
    half, rest = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield bytes(1_000_000)
        half.set()
        await rest.wait()
        yield bytes(1_000_000)

    engine = await connect(operations=bdr.OperationsConfig(progress_interval=timedelta(0)))
    storing = asyncio.create_task(engine.store_stream(chunks(), bdr.BinaryDataMetadata(file_size=2_000_000)))
    await half.wait()
    await engine.operations.flush()
    (running,) = (await inside("ops", "--running", "--json")).json
    assert (running["status"], running["completion_percentage"]) == ("running", 50.0)
    assert running["remaining_seconds"] > 0
    (cells,) = (await inside("ops", "--running")).cells
    assert (cells[2], cells[3]) == ("running", "50%")
    assert "-" not in (cells[4], cells[5])
    rest.set()
    await storing
    assert (await inside("ops", "--running")).output == b""
