"""What must hold after every fault: nothing lost, nothing orphaned, and all of it as before for those who come next."""

from typing import Any

import bdr
from tests.guarantees import objects_in, violations
from tests.lifecycle.support import make_due, rows
from tests.reaper.support import path_of

Binary = bdr.BinaryDataLifecycleManager
KEPT = bytes(range(256)) * 64
STUCK = "SELECT state, attempts, last_error, next_attempt_at > now() FROM bdr.stuck_blob ORDER BY blob_id"


async def stuck(binary: Binary) -> list[tuple[Any, ...]]:
    """What auditors see of deletes and uploads that went wrong."""
    return await rows(binary, STUCK)


async def require_nothing_lost(binary: Binary, kept: dict[str, bytes]) -> None:
    """Exactly these references are there, each with its bytes, and every object has an owner."""
    found = {key for (key,) in await rows(binary, "SELECT file_key FROM bdr.binary_data_reference")}
    assert found == kept.keys()
    for key, data in kept.items():
        assert await binary.get_data(key) == data
    assert await violations(binary.engine.database, binary.engine.storages) == []


async def require_well(binary: Binary, kept: dict[str, bytes]) -> None:
    """The storage is well again: what was left over goes, the rest is as it was, and files come and go."""
    await require_nothing_lost(binary, kept)
    await make_due(binary)
    report = await binary.reap()
    assert (report.failed, report.quarantined, report.unreachable) == (0, 0, {})
    assert await stuck(binary) == []
    new = (await binary.store_data(b"after")).file_key
    await require_nothing_lost(binary, kept | {new: b"after"})
    await binary.delete_data(new)
    assert await objects_in(binary.engine.storage("main")) == {await path_of(binary, key) for key in kept}
