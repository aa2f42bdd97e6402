"""Running victims, and what must hold once others have cleaned up after them."""

import asyncio
import multiprocessing
import signal
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

import bdr
from bdr import BinaryDataLifecycleManager
from tests.chaos import victim
from tests.chaos.victim import Task
from tests.guarantees import objects_in, violations

PATIENCE = 60.0
_ROWS = "SELECT state, storage_name, object_path FROM bdr.blob"

# Recovery waits for nobody: whatever is due is made due, and deleted without a grace.
RECOVERING: dict[str, Any] = {
    "reaper": bdr.ReaperConfig(
        write_grace=timedelta(0), max_references=10**9, backoff_initial=timedelta(milliseconds=1)
    ),
    "lifecycle": bdr.LifecycleCleanupConfig(auto_cleanup=False),
}
_TIME_PASSES = (
    "UPDATE bdr.blob SET next_attempt_at = now() WHERE state IN ('pending', 'deleting')",
    "UPDATE bdr.engine_instance SET heartbeat_at = '2000-01-01', missed_at = '2000-01-01' WHERE instance_id <> :mine",
)


def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([victim.__name__])
    return context


@dataclass
class Ledger:
    """What a victim tried and what was acknowledged to it: it outlives the victim."""

    killed: bool = False
    reached: tuple[str, ...] = ()
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    acknowledged: Counter[tuple[str, str]] = field(default_factory=Counter)

    def note(self, told: tuple[str, ...]) -> None:
        """One message of the victim's."""
        if told[0] == "reached":
            self.reached = told[1:]
        else:
            counter = self.tried if told[0] == "try" else self.acknowledged
            counter[told[1], told[2]] += 1

    def stored(self) -> list[str]:
        """The keys of acknowledged stores."""
        return [key for verb, key in self.acknowledged if verb == "store"]

    def bounds(self, key: str, before: int) -> tuple[int, int]:
        """The lowest and the highest count that a reference may have, which had `before` when the victim began."""
        least = before + self.acknowledged["register", key] - self.tried["release", key]
        most = before + self.tried["register", key] - self.acknowledged["release", key]
        return least, most


async def run(task: Task) -> Ledger:
    """Run a victim to its end, or to its death."""
    context = _server()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=victim.main, args=(task, theirs))
    process.start()
    theirs.close()
    ledger = await asyncio.wait_for(asyncio.to_thread(_listen, ours), PATIENCE)
    await asyncio.to_thread(process.join, PATIENCE)
    ledger.killed = process.exitcode == -signal.SIGKILL
    assert ledger.killed or process.exitcode == 0, f"the victim ended with {process.exitcode}"
    return ledger


def _listen(pipe: Connection) -> Ledger:
    ledger = Ledger()
    try:
        while True:
            ledger.note(pipe.recv())
    except EOFError:
        return ledger


async def _execute(connection: AsyncConnection, statement: str, mine: uuid.UUID) -> None:
    await connection.execute(text(statement), {"mine": mine})


async def recover(binary: BinaryDataLifecycleManager) -> None:
    """Let time pass and reapers run, as they would, until nothing is left to do."""
    for _ in range(4):
        for statement in _TIME_PASSES:
            await binary.engine.database.write(partial(_execute, statement=statement, mine=binary.engine.instance_id))
        await binary.reap(confirmed=True)


async def assert_whole(binary: BinaryDataLifecycleManager, ledger: Ledger, before: dict[str, int]) -> None:
    """G1 to G4 hold, nothing is left under way, and what was acknowledged is there to the last count."""
    assert await violations(binary.engine.database, binary.engine.storages) == []
    async with binary.engine.database.reading() as connection:
        rows = (await connection.execute(text(_ROWS))).all()
    assert {row.state for row in rows} <= {"live", "quarantined"}
    for name, storage in binary.engine.storages.items():
        assert await objects_in(storage) == {row.object_path for row in rows if row.storage_name == name}
    for key in ledger.stored():
        assert await binary.get_data(key) in (b"small", b"joined", victim.content(1))
    for key, count in before.items():
        await _assert_counted(binary, ledger, key, count)


async def _assert_counted(binary: BinaryDataLifecycleManager, ledger: Ledger, key: str, before: int) -> None:
    least, most = ledger.bounds(key, before)
    try:
        count = (await binary.get_details(key)).ref_count
    except bdr.FileNotFound:
        # Deleted if that was tried, or because nothing may have referred to it any more.
        assert ledger.tried["delete", key] or least <= 0
        return
    assert least <= count <= most
    assert not ledger.acknowledged["delete", key]


def distinct(points: Iterable[str]) -> list[tuple[str, int]]:
    """Each time a point was reached, as its name and how often it was passed before."""
    seen: Counter[str] = Counter()
    numbered = []
    for point in points:
        numbered.append((point, seen[point]))
        seen[point] += 1
    return numbered
