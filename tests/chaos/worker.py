"""An engine under load, told to go on until it is killed: it tells every step before and after it is taken."""

import asyncio
import logging
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import bdr
from bdr import BinaryDataLifecycleManager

# Outages are part of the game, so nobody waits long for what is away.
SETTINGS: dict[str, Any] = {
    "database": bdr.DatabaseConfig.model_validate({"pool_size": 4, "connect_timeout": 5, "pool_timeout": 10}),
    "lifecycle": bdr.LifecycleCleanupConfig.model_validate({"zero_ref_retention": 0, "cleanup_interval": 1}),
    "reaper": bdr.ReaperConfig.model_validate(
        {"lease": 5, "write_grace": 1, "max_references": 10**9, "backoff_initial": 1}
    ),
    "upload": bdr.UploadConfig.model_validate({"lease": 20}),
    "instance": bdr.InstanceConfig.model_validate({"heartbeat_interval": 1, "timeout": 5}),
}
CALLERS = 4
_AWAY = 0.1


@dataclass(frozen=True)
class Orders:
    """Where to work, on which shared references, and by which throw of the dice.

    Attributes:
        errors: the file that takes what the worker says before it ends by a mistake.
    """

    url: str
    storage: Mapping[str, Any]
    shared: tuple[str, ...]
    seed: int
    errors: Path
    reaps: bool = False


@dataclass(frozen=True)
class Told:
    """What a worker tells: that it tries something, or what became of that.

    Attributes:
        ending: "try", and later for the same step "done", "not done" or "unknown"; "wrong" is a mistake of bdr's.
        keys: what it is about; a store learns its key at its end.
        data: what is stored, or what went wrong.
    """

    ending: str
    verb: str
    keys: tuple[str, ...]
    step: int
    data: bytes = b""


class _Mistakes(logging.Handler):
    """Exceptions that bdr caught and could only log: it expects none."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(logging.ERROR)
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self._pipe.send(Told("wrong", "log", (), 0, self.format(record).encode()))


@dataclass
class Worker:
    """What the callers of one engine have in common."""

    orders: Orders
    pipe: Connection
    kept: dict[str, bytes] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(self.orders.seed)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Connect again and again, as an engine's supervisor would, and work until SIGTERM."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stopping.set)
        storage = bdr.BinaryStorageConfig(**self.orders.storage)
        while not self._stopping.is_set():
            with suppress(bdr.BinaryStorageError):
                async with bdr.connect(self.orders.url, storage, **SETTINGS) as binary:
                    if self.orders.reaps:
                        await binary.start_cleanup_task()
                        await self._stopping.wait()
                    else:
                        await asyncio.gather(*(self._call(binary) for _ in range(CALLERS)))
            await self._pause()

    async def _call(self, binary: BinaryDataLifecycleManager) -> None:
        verbs: Sequence[Callable[[BinaryDataLifecycleManager], Awaitable[None]]] = (
            self._hold,
            self._hold,
            self._hold_for_a_while,
            self._hold_several,
            self._keep,
            self._look,
            self._come_and_go,
        )
        while not self._stopping.is_set():
            try:
                await self._chance.choice(verbs)(binary)
            except bdr.InstanceClosed:
                return
            except bdr.BinaryStorageError:
                await self._pause()

    async def _pause(self) -> None:
        # What failed is not tried again at once: an outage would be a busy loop.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), _AWAY)

    async def _hold(self, binary: BinaryDataLifecycleManager) -> None:
        key = self._chance.choice(self.orders.shared)
        holder = self._name() if self._chance.random() < 0.5 else None
        await self._tell("register", (key,), binary.register_reference(key, holder=holder))
        await self._compare(binary, key, b"shared")
        if await binary.cleanup_data(key):
            self._wrong("cleanup", key, b"it was cleaned up while it was held")
        await self._tell("release", (key,), binary.release_reference(key, holder=holder))

    async def _hold_for_a_while(self, binary: BinaryDataLifecycleManager) -> None:
        """Held by a lease, by this instance, or both: at the end of the storm neither holds any more."""
        key = self._chance.choice(self.orders.shared)
        lease = timedelta(seconds=self._chance.uniform(0.2, 3.0)) if self._chance.random() < 0.7 else None
        call = binary.register_reference(key, holder=self._name(), lease=lease, bound=lease is None)
        await self._tell("register for a while", (key,), call)
        await self._compare(binary, key, b"shared")

    async def _hold_several(self, binary: BinaryDataLifecycleManager) -> None:
        holder = self._name()
        keys = tuple(self._chance.sample(self.orders.shared, 3))
        for key in keys:
            await self._tell("register", (key,), binary.register_reference(key, holder=holder))
        released = await self._tell("release", keys, binary.release_holder(holder))
        if released != len(keys):
            self._wrong("release_holder", keys[0], b"%d were released, not %d" % (released, len(keys)))

    async def _keep(self, binary: BinaryDataLifecycleManager) -> None:
        key, data = await self._store(binary)
        self.kept[key] = data

    async def _look(self, binary: BinaryDataLifecycleManager) -> None:
        if self.kept:
            key = self._chance.choice(list(self.kept))
            await self._compare(binary, key, self.kept[key])

    async def _come_and_go(self, binary: BinaryDataLifecycleManager) -> None:
        key, _ = await self._store(binary)
        go = self._chance.choice((binary.release_reference, binary.delete_data))
        await self._tell("end", (key,), go(key))

    async def _store(self, binary: BinaryDataLifecycleManager) -> tuple[str, bytes]:
        data = self._name().encode()
        reference = await self._tell("store", (), binary.store_data(data), data)
        return reference.file_key, data

    async def _compare(self, binary: BinaryDataLifecycleManager, key: str, data: bytes) -> None:
        try:
            found = await binary.get_data(key)
        except (bdr.FileNotFound, bdr.Corrupt) as error:
            self._wrong("get", key, str(error).encode())
        else:
            if found != data:
                self._wrong("get", key, b"it gave other bytes")

    def _name(self) -> str:
        # Unlike every other of any worker: a seed is given to one worker only.
        self.steps += 1
        return f"{self.orders.seed}-{self.steps}"

    def _wrong(self, verb: str, key: str, why: bytes) -> None:
        self.pipe.send(Told("wrong", verb, (key,), 0, why))

    async def _tell(self, verb: str, keys: tuple[str, ...], call: Awaitable[Any], data: bytes = b"") -> Any:
        self.steps += 1
        step = self.steps
        self.pipe.send(Told("try", verb, keys, step, data))
        try:
            result = await call
        except bdr.OutcomeUnknown as error:
            self.pipe.send(Told("unknown", verb, keys or error.keys, step, data))
            raise
        except bdr.BinaryStorageError:
            self.pipe.send(Told("not done", verb, keys, step))
            raise
        self.pipe.send(Told("done", verb, keys or (result.file_key,), step, data))
        return result


def main(orders: Orders, pipe: Connection) -> None:
    """The whole life of a worker."""
    errors = os.open(orders.errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(errors, 2)
    os.close(errors)
    # What an outage makes bdr warn of is no news here.
    logger = logging.getLogger("bdr")
    logger.propagate = False
    logger.addHandler(_Mistakes(pipe))
    asyncio.run(Worker(orders, pipe).run())
