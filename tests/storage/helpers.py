"""Programs in an interpreter of their own, for what only shows there, and waiting for what cannot be awaited."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from pathlib import Path

from bdr.settings import BinaryStorageConfig
from bdr.storage import OpenDalStorage
from tests.fixtures.storages import RedisServer

PROJECT = Path(__file__).parents[2]
PREAMBLE = """
import asyncio, json, os, sys
from bdr.settings import BinaryStorageConfig
from bdr.storage import OpenDalStorage, StorageMarker, open_storage
"""


def as_argument(config: BinaryStorageConfig) -> str:
    """A configuration as JSON with its secrets, which its own JSON leaves out."""
    return json.dumps({"storage_type": config.storage_type, "root": config.root, "config": config.config})


async def run_python(program: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `program`, after the imports it always needs."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = (sys.executable, "-c", PREAMBLE + program, *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environment)
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    """Ask again and again until `condition` holds; TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  # what is waited for happens in a server
            await asyncio.sleep(0.01)


async def redis_command(server: RedisServer, command: str) -> bytes:
    """The first line of the server's answer to an inline command."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(command.encode() + b"\r\n")
        return await reader.readline()
    finally:
        writer.close()
        await writer.wait_closed()


def files_below(root: Path) -> list[Path]:
    """All files under a folder."""
    return [path for path in root.rglob("*") if path.is_file()]


def root_of(storage: OpenDalStorage) -> Path:
    """The folder of a storage of type fs."""
    return Path(storage.location.removeprefix("fs:"))
