"""SIGTERM while much is under way: what was acknowledged stays, what was not leaves nothing, and the process ends."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from collections import Counter

import pytest

import bdr
from tests.fixtures.engines import Connect
from tests.guarantees import objects_in, violations
from tests.lifecycle.support import make_due, reference_row, rows
from tests.manager.support import fetch
from tests.storage.helpers import PROJECT, until

ENOUGH = 60


@pytest.mark.parametrize("how", ["leave", "cancel"])
async def test_an_application_that_is_terminated_loses_nothing_and_leaves_nothing(
    connect: Connect, database_url: str, fs_config: bdr.BinaryStorageConfig, how: str
) -> None:
    command = (sys.executable, "-m", "tests.load.application", how, database_url, fs_config.root)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, cwd=PROJECT)
    assert process.stdout is not None
    lines = [await process.stdout.readline() for _ in range(ENOUGH)]

    async def uploading() -> bool:
        return await fetch(database_url, "SELECT count(*) > 2 FROM bdr.blob WHERE state = 'pending'") == [(True,)]

    await until(uploading)
    process.send_signal(signal.SIGTERM)
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    # Whoever leaves in the middle of an upload is told what becomes of it.
    assert [
        one for one in errors.decode().splitlines() if "is left to its deadline: The connections to" not in one
    ] == []
    lines += output.splitlines()
    assert lines[-1].split() == [b"ended", how.encode()]

    told: dict[str, Counter[str]] = {"stored": Counter(), "registered": Counter()}
    for line in lines[:-1]:
        verb, key = line.decode().split()
        told[verb][key] += 1
    engine = await connect(reaper=bdr.ReaperConfig.model_validate({"write_grace": 0}))
    for key in told["stored"]:
        row = await reference_row(engine, key)
        assert row is not None, key
        # A registration whose caller was cancelled may have been counted.
        assert 1 + told["registered"][key] <= row.ref_count <= 2
    assert await violations(engine.engine.database, engine.engine.storages) == []
    gone = "SELECT count(*) FROM bdr.engine_instance WHERE stopped_at IS NOT NULL"
    assert await rows(engine, gone) == [(1,)]
    assert await rows(engine, "SELECT count(*) FROM bdr.operation WHERE status = 'running'") == [(0,)]

    # What was given up goes without a person.
    for _ in range(2):
        await make_due(engine)
        assert (await engine.reap()).trouble is None
    [storage] = engine.engine.storages.values()
    left = await rows(engine, "SELECT object_path, state FROM bdr.blob")
    assert {state for _, state in left} == {"live"}
    assert await objects_in(storage) == {path for path, _ in left}
