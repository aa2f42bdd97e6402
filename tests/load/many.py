"""Ten thousand calls at once in a process of their own: `python -m tests.load.many URL FOLDER PATIENCE`.

How they ended and what memory they took goes to standard output as JSON.
"""

import asyncio
import json
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

import bdr

CALLS = 10_000
DATA = b"x" * 1_000


async def _work(url: str, root: str, patience: float) -> dict[str, Any]:
    database = bdr.DatabaseConfig.model_validate({"pool_timeout": patience})
    storage = bdr.BinaryStorageConfig(storage_type="fs", root=root)
    # Nothing is read from memory that should come from the database and the storage.
    async with bdr.connect(url, storage, database=database, cache=bdr.CacheConfig(capacity=0, locations=0)) as binary:
        shared = (await binary.store_data(DATA)).file_key
        await asyncio.gather(*(binary.store_data(DATA) for _ in range(20)))
        idle = psutil.Process().memory_info().rss
        ended = await asyncio.gather(*(_call(binary, shared, number) for number in range(CALLS)))
        peak = _peak()
        count = (await binary.get_details(shared)).ref_count
    return {"idle": idle, "peak": peak, "count": count, "ended": Counter(ended)}


def _peak() -> int:
    """The most memory that this process held, in bytes."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts what the process that started this one held under `ru_maxrss` too.
    [line] = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


async def _call(binary: bdr.BinaryDataLifecycleManager, shared: str, number: int) -> str:
    verb = ("get", "register", "get", "register", "get", "get", "register", "get", "store", "get")[number % 10]
    if verb == "get":
        calling: Any = binary.get_data(shared)
    elif verb == "register":
        calling = binary.register_reference(shared)
    else:
        calling = binary.store_data(DATA)
    try:
        await calling
    except bdr.BinaryStorageError as error:
        return f"{verb}: {type(error).__name__}"
    return verb


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_work(sys.argv[1], sys.argv[2], float(sys.argv[3])))))  # noqa: T201 - read by the test
