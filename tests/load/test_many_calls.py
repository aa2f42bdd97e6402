"""Ten thousand calls at once on one engine: bounded memory, and each of them is done or says why not."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from typing import Any

import pytest

import bdr
from tests.fixtures.engines import Connect
from tests.guarantees import violations
from tests.lifecycle.support import blob_states, rows
from tests.load.many import CALLS
from tests.storage.helpers import PROJECT

# For one call, of which most wait: 10,000 take 313 MiB at most.
MEMORY_PER_CALL = 32 * 1024
VERBS = {"get": 6_000, "register": 3_000, "store": 1_000}

# They are done in seconds, but not on a machine that does much else.
pytestmark = pytest.mark.timeout(900)


async def many(url: str, root: str, patience: float) -> dict[str, Any]:
    """How ten thousand calls ended that wait `patience` seconds for a connection."""
    command = (sys.executable, "-m", "tests.load.many", url, root, str(patience))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, cwd=PROJECT)
    output, _ = await process.communicate()
    assert process.returncode == 0
    told: dict[str, Any] = json.loads(output)
    return told


async def test_all_are_done_in_bounded_memory_when_they_may_wait(
    connect: Connect, database_url: str, fs_config: bdr.BinaryStorageConfig
) -> None:
    told = await many(database_url, fs_config.root, 800)
    assert told["ended"] == VERBS
    assert told["count"] == 1 + VERBS["register"]
    assert told["peak"] - told["idle"] < CALLS * MEMORY_PER_CALL
    engine = await connect()
    assert await blob_states(engine) == ["live"] * (21 + VERBS["store"])
    assert await violations(engine.engine.database, engine.engine.storages) == []


async def test_those_that_wait_too_long_are_refused_and_leave_nothing_behind(
    connect: Connect, database_url: str, fs_config: bdr.BinaryStorageConfig
) -> None:
    told = await many(database_url, fs_config.root, 0.05)
    ended = told["ended"]
    assert sum(ended.values()) == CALLS
    assert ended.keys() <= {*VERBS, *(f"{verb}: Busy" for verb in VERBS)}
    assert sum(ended.get(f"{verb}: Busy", 0) for verb in VERBS) > 0
    assert told["count"] == 1 + ended.get("register", 0)
    assert told["peak"] - told["idle"] < CALLS * MEMORY_PER_CALL
    engine = await connect()
    # What was begun was ended: no refused store had a row.
    assert await blob_states(engine) == ["live"] * (21 + ended.get("store", 0))
    failed = "SELECT DISTINCT operation_type FROM bdr.operation WHERE status NOT IN ('succeeded', 'failed')"
    assert await rows(engine, failed) == []
    assert await violations(engine.engine.database, engine.engine.storages) == []
