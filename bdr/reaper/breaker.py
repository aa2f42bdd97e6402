"""What a pass asks before it deletes anything: is there too much of it, and is the time right."""

import time
import uuid
from datetime import timedelta
from functools import cache
from pathlib import Path

from bdr.catalog import clock, expiry
from bdr.errors import BinaryStorageError
from bdr.manager.engine import Engine

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CONFIRM = "If that is right, run `bdr reap --confirm` once; until then nothing is deleted."


async def reason_to_stop(engine: Engine) -> str | None:
    """Why a person should look before this pass deletes anything; None when all looks as it should.

    Compares the clocks first, and remembers them only while they agree: a clock that jumped stays a reason until it is
    put right or confirmed.
    """
    return await _clock_jumped(engine) or await _too_many(engine)


async def confirm(engine: Engine) -> None:
    """Take the database's clock as it is, for the reapers of every machine."""
    await engine.database.write(clock.forget)


async def _clock_jumped(engine: Engine) -> str | None:
    boot_id, uptime = _boot_id(), _uptime()
    async with engine.database.reading() as connection:
        drift = await clock.drift(connection, boot_id, uptime)
    if drift is not None and abs(drift) > engine.settings.reaper.clock_tolerance:
        way = "ahead" if drift > timedelta(0) else "back"
        return f"The database's clock has moved {way} by {abs(drift)} beyond the time that has passed. {_CONFIRM}"
    await engine.database.transaction(lambda own: clock.see(own, boot_id, uptime))
    return None


async def _too_many(engine: Engine) -> str | None:
    limits = engine.settings.reaper
    async with engine.database.reading() as connection:
        _, total = await expiry.share_expired(connection, limits.max_references, limits.max_share)
        if total is None:
            return None
        # Only now all is read: what lies in a storage that is away is not deleted by this pass, and must not stop it.
        counts = await expiry.expired_by_storage(connection)
    here = [counts.get(name, (0, 0)) for name in engine.storages if await answers(engine, name)]
    expired, total = sum(gone for gone, _ in here), sum(all_of_it for _, all_of_it in here)
    if expired <= limits.max_references or expired <= limits.max_share * total:
        return None
    return f"{expired:,} of the {total:,} references of the storages here would be deleted. {_CONFIRM}"


async def answers(engine: Engine, name: str) -> bool:
    """Whether a storage is there, and the right one."""
    try:
        await engine.verify(name)
    except BinaryStorageError:
        return False
    return True


@cache
def _boot_id() -> str:
    # Where the system has none, this process knows no other clock but its own.
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else str(uuid.uuid4())


def _uptime() -> timedelta:
    # The monotonic clock of Linux stands still while the machine sleeps; the database's does not.
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return timedelta(seconds=time.monotonic() if boottime is None else time.clock_gettime(boottime))
