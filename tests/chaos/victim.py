"""What a process does until it is killed: one scenario, each step told to the one who watches before and after it.

It runs in processes of its own, forked from a server in which the fail points were installed before bdr was imported.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.chaos import failpoints

if "bdr" not in sys.modules:
    failpoints.install()

from sqlalchemy.ext.asyncio import create_async_engine

import bdr
from bdr import BinaryDataLifecycleManager
from bdr.fsck import repair

HOLDER = "execution-1/node-1"
MiB = 1 << 20


@dataclass(frozen=True)
class Task:
    """What to do and where to die.

    Attributes:
        point: the fail point to be killed at; None is to go on to the end.
        passes: how often the point is passed before.
        storage: the storage's configuration, secrets and all.
        keys: references that are there already.
        plan: of a repair.
    """

    scenario: str
    point: str | None
    url: str
    storage: Mapping[str, Any]
    passes: int = 0
    keys: tuple[str, ...] = ()
    plan: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


class Teller:
    """Tells the watcher, through a pipe that outlives this process, what is tried and what was acknowledged."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    async def __call__(self, verb: str, key: str, call: Awaitable[Any]) -> Any:
        self.tries(verb, key)
        result = await call
        self.acknowledged(verb, result.file_key if verb == "store" else key)
        return result

    def tries(self, verb: str, key: str) -> None:
        self._pipe.send(("try", verb, key))

    def acknowledged(self, verb: str, key: str) -> None:
        self._pipe.send(("ack", verb, key))


Scenario = Callable[[BinaryDataLifecycleManager, Task, Teller], Awaitable[None]]


def content(number: int) -> bytes:
    """Bytes that are told apart by their number, and are more than one piece of a stream."""
    return number.to_bytes(4) * (3 * MiB // 4)


async def _chunks(number: int) -> AsyncIterator[bytes]:
    data = content(number)
    for start in range(0, len(data), MiB):
        yield data[start : start + MiB]


async def _failing() -> AsyncIterator[bytes]:
    yield bytes(2 * MiB)
    raise ZeroDivisionError


async def _store(binary: BinaryDataLifecycleManager, _task: Task, tell: Teller) -> None:
    await tell("store", "", binary.store_data(b"small"))
    await tell("store", "", binary.store_stream(_chunks(1)))


async def _fail_to_store(binary: BinaryDataLifecycleManager, _task: Task, tell: Teller) -> None:
    with suppress(ZeroDivisionError):
        await tell("store", "", binary.store_stream(_failing()))


async def _count(binary: BinaryDataLifecycleManager, task: Task, tell: Teller) -> None:
    for key in task.keys:
        await tell("register", key, binary.register_reference(key))
        await tell("register", key, binary.register_reference(key, holder=HOLDER, lease=timedelta(hours=1)))
        await tell("release", key, binary.release_reference(key, holder=HOLDER))
        await tell("release", key, binary.release_reference(key))


async def _let_go(binary: BinaryDataLifecycleManager, task: Task, tell: Teller) -> None:
    for key in task.keys:
        await tell("release", key, binary.release_reference(key))


async def _delete(binary: BinaryDataLifecycleManager, task: Task, tell: Teller) -> None:
    first, *others = task.keys
    await tell("delete", first, binary.delete_data(first))
    for key in others:
        await tell("release", key, binary.release_reference(key))
        await tell("delete", key, binary.cleanup_data(key))


async def _many(binary: BinaryDataLifecycleManager, task: Task, tell: Teller) -> None:
    calls: dict[str, Callable[[Sequence[str]], Awaitable[bdr.BatchResult[Any]]]] = {
        "register": binary.register_many,
        "release": binary.release_many,
        "delete": binary.delete_many,
    }
    for verb, call in calls.items():
        for key in task.keys:
            tell.tries(verb, key)
        for one in await call(task.keys):
            one.result()
            tell.acknowledged(verb, str(one.key))


async def _join_a_transaction(binary: BinaryDataLifecycleManager, task: Task, tell: Teller) -> None:
    engine = create_async_engine(task.url.replace("postgresql:", "postgresql+asyncpg:"))

    async def transaction() -> bdr.BinaryDataReference:
        async with engine.begin() as connection:
            for key in task.keys:
                await binary.register_reference(key, connection=connection)
            return await binary.store_data(b"joined", connection=connection)

    for key in task.keys:
        tell.tries("register", key)
    await tell("store", "", transaction())
    for key in task.keys:
        tell.acknowledged("register", key)
    await engine.dispose()


async def _reap(binary: BinaryDataLifecycleManager, _task: Task, _tell: Teller) -> None:
    await binary.reap(confirmed=True)


async def _hold(binary: BinaryDataLifecycleManager, task: Task, tell: Teller) -> None:
    for key in task.keys:
        await tell("register", key, binary.register_reference(key, holder=HOLDER))
        await tell("release", key, binary.release_reference(key))
    for key in task.keys:
        tell.tries("release", key)
    await binary.release_holder(HOLDER)
    for key in task.keys:
        tell.acknowledged("release", key)


async def _repair(binary: BinaryDataLifecycleManager, task: Task, _tell: Teller) -> None:
    assert task.plan is not None
    await repair(binary, task.plan)


async def _begin(_binary: BinaryDataLifecycleManager, _task: Task, _tell: Teller) -> None:
    """Nothing: joining the catalog is the scenario."""


SCENARIOS: dict[str, Scenario] = {
    "begin": _begin,
    "store": _store,
    "fail to store": _fail_to_store,
    "count": _count,
    "let go": _let_go,
    "hold": _hold,
    "delete": _delete,
    "many": _many,
    "join a transaction": _join_a_transaction,
    "reap": _reap,
    "repair": _repair,
}


async def _run(task: Task, pipe: Connection) -> None:
    storage = bdr.BinaryStorageConfig(**task.storage)
    async with bdr.connect(task.url, storage, **task.settings) as binary:
        await SCENARIOS[task.scenario](binary, task, Teller(pipe))


def main(task: Task, pipe: Connection) -> None:
    """The whole life of a victim; one that is not killed tells at its end which points it has reached."""
    failpoints.armed, failpoints.passes = task.point, task.passes
    asyncio.run(_run(task, pipe))
    pipe.send(("reached", *failpoints.reached))
    pipe.close()
