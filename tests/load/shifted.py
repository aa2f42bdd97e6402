"""An engine whose clock is wrong from before bdr is imported: `python -m tests.load.shifted HOURS URL FOLDER`.

What it saw of its own work goes to standard output as JSON.
"""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import time_machine
import uuid_utils.compat

_HOURS = float(sys.argv[1])
_SEEN = 20


def _shift() -> None:
    time_machine.travel(datetime.now(UTC) + timedelta(hours=_HOURS), tick=True).start()
    right = uuid_utils.compat.uuid7

    def wrong() -> Any:
        # Compiled, it asks the system's clock by itself.
        return right(nanoseconds=time.time_ns())

    vars(uuid_utils.compat)["uuid7"] = wrong


async def _work(url: str, root: str) -> dict[str, Any]:
    import bdr

    beats = bdr.InstanceConfig.model_validate({"name": f"{_HOURS:+g} h", "heartbeat_interval": 0.05, "timeout": 60})
    access = bdr.AccessConfig.model_validate({"flush_interval": 0.05, "touch_interval": 0})
    storage = bdr.BinaryStorageConfig(storage_type="fs", root=root)
    progress: list[bdr.OperationProgress] = []
    async with bdr.connect(url, storage, instance=beats, access=access) as binary:
        stored = await binary.store_data(b"x" * 100_000, on_progress=progress.append)
        key = stored.file_key
        await binary.register_reference(key, holder="node", lease=timedelta(hours=1))
        await binary.get_data(key)
        released = await binary.store_data(b"released")
        await binary.release_reference(released.file_key)
        report = await binary.reap()
        explained = await binary.explain(key)
        progress += await _watched(binary)
    return {
        "keys": [key, released.file_key],
        "now": time.time(),
        "elapsed": [one.elapsed.total_seconds() for one in progress],
        "remaining": [
            one.estimated_remaining_time.total_seconds() for one in progress if one.estimated_remaining_time is not None
        ],
        "reaped": report.references + report.instances + report.holders + report.stranded,
        "trouble": report.trouble,
        "alive": explained.model_dump(mode="json"),
    }


async def _watched(binary: Any) -> list[Any]:
    """What another process would be told of a store that is under way, and this one of its own."""
    seen: list[Any] = []
    operation_id = "0193a6b2-7c00-7000-8000-000000000001".replace("1", str(int(_HOURS > 0) + 2 * int(_HOURS < 0)))

    async def chunks() -> Any:
        for _ in range(_SEEN):
            yield b"x" * 1_000
            seen.append(await binary.get_operation_progress(operation_id))

    import bdr

    metadata = bdr.BinaryDataMetadata(file_size=_SEEN * 1_000)
    await binary.store_stream(chunks(), metadata, operation_id=operation_id)
    return seen


if __name__ == "__main__":
    _shift()
    print(json.dumps(asyncio.run(_work(sys.argv[2], sys.argv[3])), default=str))  # noqa: T201 - read by the test
