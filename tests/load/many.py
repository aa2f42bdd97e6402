"""Ten thousand calls at once in a process of their own: `python -m tests.load.many URL FOLDER PATIENCE`.

How they ended and what memory they took goes to standard output as JSON.
"""

import asyncio
import json
import resource
import sys
from collections import Counter
from typing import Any

import psutil

import bdr

CALLS = 10_000
DATA = b"x" * 1_000


async def _work(url: str, root: str, patience: float) -> dict[str, Any]:
    database = bdr.DatabaseConfig.model_validate({"pool_timeout": patience})
    storage = bdr.BinaryStorageConfig(storage_type="fs", root=root)
    # Nothing is read from memory that should come from the database and the storage.
    async with bdr.connect(url, storage, database=database, cache=bdr.CacheConfig(capacity=0)) as binary:
        shared = (await binary.store_data(DATA)).file_key
        await asyncio.gather(*(binary.store_data(DATA) for _ in range(20)))
        idle = psutil.Process().memory_info().rss
        ended = await asyncio.gather(*(_call(binary, shared, number) for number in range(CALLS)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        count = (await binary.get_details(shared)).ref_count
    return {"idle": idle, "peak": peak, "count": count, "ended": Counter(ended)}


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
