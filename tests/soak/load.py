"""What one process of the soak does: an engine that leads files through their whole life, or a reaper."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import bdr
from bdr import BinaryDataLifecycleManager

T = TypeVar("T")

KIB = 1024
# Everything that bounds a size is small, so that it is full, and the catalog steady, long before the warm-up ends.
SETTINGS: dict[str, Any] = {
    "lifecycle": bdr.LifecycleCleanupConfig.model_validate(
        {"zero_ref_retention": 3, "max_retention": 30, "cleanup_interval": 1}
    ),
    "operations": bdr.OperationsConfig.model_validate({"retention": 60}),
    "access": bdr.AccessConfig.model_validate({"touch_interval": 2}),
    "cache": bdr.CacheConfig(capacity=4096 * KIB, max_entry=256 * KIB),
    "database": bdr.DatabaseConfig(pool_size=4),
}
# One that is to lapse, and one that never does while its holder works, however slow the machine.
SHORT_LEASE, LONG_LEASE = timedelta(seconds=3), timedelta(minutes=5)
SMALL = 32 * KIB
CHUNK, CHUNKS = 64 * KIB, 16
AT_ONCE = 8
# Of so many failed calls the sentence is kept.
_TOLD = 5


@dataclass(frozen=True)
class Orders:
    """Where to work, and how fast: lives begun in a second; a reaper begins none."""

    name: str
    url: str
    storage: bdr.BinaryStorageConfig
    pace: float | None


@dataclass
class Done:
    """How often each call was done, and what failed."""

    calls: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    sentences: list[str] = field(default_factory=list)

    def add(self, other: "Done") -> None:
        """Count what another process did, too."""
        self.calls += other.calls
        self.failures += other.failures
        self.sentences += other.sentences

    def fail(self, error: Exception) -> None:
        """Note a call that did not do what it should."""
        self.failures += 1
        if len(self.sentences) < _TOLD:
            self.sentences.append(": ".join((*getattr(error, "__notes__", ()), type(error).__name__, str(error))))


class Lives:
    """Files that are stored, used and ended in every way there is, by one engine."""

    def __init__(self, binary: BinaryDataLifecycleManager, name: str) -> None:
        self.done = Done()
        self._binary = binary
        self._name = name
        self._chance = random.Random(name)
        self._begun = 0
        self._data = self._chance.randbytes(SMALL)
        self._endings: tuple[Callable[[str, str], Awaitable[Any]], ...] = (
            self._release,
            self._delete,
            self._clean_up,
            self._let_lapse,
            self._let_all_go,
            self._hold,
        )

    async def one(self) -> None:
        """One life, from the store to whatever ends it; a reaper does the rest."""
        self._begun += 1
        holder = f"{self._name}/{self._begun}"
        try:
            key = await self._store()
            await self._use(key, holder)
            await self._visit(holder)
            await self._chance.choice(self._endings)(key, holder)
        except bdr.BinaryStorageError as error:
            self.done.fail(error)

    async def _call(self, verb: str, call: Awaitable[T]) -> T:
        try:
            result = await call
        except bdr.BinaryStorageError as error:
            error.add_note(verb)
            raise
        self.done.calls[verb] += 1
        return result

    async def _store(self) -> str:
        metadata = bdr.BinaryDataMetadata(file_name=f"{self._begun}.bin", labels={"execution": self._name})
        if self._begun % 10:
            data = self._data[: self._chance.randrange(SMALL)]
            return (await self._call("store", self._binary.store_data(data, metadata))).file_key
        return (await self._call("store a stream", self._binary.store_stream(self._chunks(), metadata))).file_key

    async def _chunks(self) -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            yield self._data + self._data

    async def _use(self, key: str, holder: str) -> None:
        binary = self._binary
        await self._call("register", binary.register_reference(key))
        for _ in range(2):
            # The second time renews the lease.
            await self._call("hold", binary.register_reference(key, holder=holder, lease=LONG_LEASE))
        await self._call("get", binary.get_data(key))
        async with binary.open(key) as reader:
            await self._call("read a stream", _read(reader))
        await self._call("let go", binary.release_reference(key, holder=holder))
        await self._call("release", binary.release_reference(key))

    async def _visit(self, holder: str) -> None:
        """Use a file that may be another engine's, and may go at any moment."""
        binary = self._binary
        found = await self._call("list", binary.list_references(limit=20))
        key = self._chance.choice(found).reference.file_key
        with suppress(bdr.FileNotFound):
            await self._call("hold another's", binary.register_reference(key, holder=holder, bound=True))
            await self._call("get another's", binary.get_data(key))
            await self._call("let another's go", binary.release_reference(key, holder=holder))
        await self._call("explain", binary.explain(key))

    async def _release(self, key: str, _: str) -> None:
        await self._call("release", self._binary.release_reference(key))

    async def _delete(self, key: str, _: str) -> None:
        await self._call("delete", self._binary.delete_data(key))

    async def _clean_up(self, key: str, _: str) -> None:
        await self._release(key, _)
        await self._call("clean up", self._binary.cleanup_data(key))

    async def _let_lapse(self, key: str, holder: str) -> None:
        await self._call("hold", self._binary.register_reference(key, holder=holder, lease=SHORT_LEASE))
        await self._release(key, holder)

    async def _let_all_go(self, key: str, holder: str) -> None:
        await self._call("hold", self._binary.register_reference(key, holder=holder))
        await self._release(key, holder)
        await self._call("let all go", self._binary.release_holder(holder))

    async def _hold(self, key: str, _: str) -> None:
        """Never let go of it: it is deleted when its longest retention is over."""
        await self._call("describe", self._binary.get_details(key))


async def _read(reader: bdr.BinaryDataReader) -> None:
    async for _ in reader:
        pass


async def _begin_lives(lives: Lives, pace: float, stopping: asyncio.Event) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with slots:
            await lives.one()

    async with asyncio.TaskGroup() as group:
        while not stopping.is_set():
            # Where the machine does not keep the pace, fewer begin: none ever wait in a queue.
            if not slots.locked():
                group.create_task(one())
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), 1 / pace)


async def _work(orders: Orders) -> Done:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    instance = bdr.InstanceConfig(name=orders.name)
    async with bdr.connect(orders.url, orders.storage, instance=instance, **SETTINGS) as binary:
        lives = Lives(binary, orders.name)
        if orders.pace is None:
            await binary.start_cleanup_task()
            await stopping.wait()
        else:
            await _begin_lives(lives, orders.pace, stopping)
    return lives.done


def main(orders: Orders, pipe: Connection) -> None:
    """The whole life of a process; it tells what it did when SIGTERM ended it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe.send(asyncio.run(_work(orders)))
