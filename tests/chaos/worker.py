"""An engine under load, told to go on until it is killed: it tells every step before and after it is taken."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
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
    """Where to work, on which shared references, and by which throw of the dice."""

    url: str
    storage: Mapping[str, Any]
    shared: tuple[str, ...]
    seed: int
    reaps: bool = False


class Worker:
    """What the callers of one engine have in common."""

    def __init__(self, orders: Orders, pipe: Connection) -> None:
        self._orders = orders
        self._pipe = pipe
        self._chance = random.Random(orders.seed)
        self._stopping = asyncio.Event()
        self._steps = 0

    async def run(self) -> None:
        """Connect again and again, as an engine's supervisor would, and work until SIGTERM."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stopping.set)
        storage = bdr.BinaryStorageConfig(**self._orders.storage)
        while not self._stopping.is_set():
            with suppress(bdr.BinaryStorageError):
                async with bdr.connect(self._orders.url, storage, **SETTINGS) as binary:
                    if self._orders.reaps:
                        await binary.start_cleanup_task()
                        await self._stopping.wait()
                    else:
                        await asyncio.gather(*(self._call(binary) for _ in range(CALLERS)))
            await self._pause()

    async def _call(self, binary: BinaryDataLifecycleManager) -> None:
        while not self._stopping.is_set():
            verb = self._chance.choice((self._hold, self._hold, self._keep, self._come_and_go))
            try:
                await verb(binary)
            except bdr.InstanceClosed:
                return
            except bdr.BinaryStorageError:
                await self._pause()

    async def _pause(self) -> None:
        # What failed is not tried again at once: an outage would be a busy loop.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), _AWAY)

    async def _hold(self, binary: BinaryDataLifecycleManager) -> None:
        key = self._chance.choice(self._orders.shared)
        holder = f"{self._orders.seed}-{self._steps}" if self._chance.random() < 0.5 else None
        await self._tell("register", key, binary.register_reference(key, holder=holder))
        if await binary.get_data(key) != b"shared":
            self._pipe.send(("wrong", "get", key, 0))
        await self._tell("release", key, binary.release_reference(key, holder=holder))

    async def _keep(self, binary: BinaryDataLifecycleManager) -> None:
        await self._store(binary)

    async def _come_and_go(self, binary: BinaryDataLifecycleManager) -> None:
        key = await self._store(binary)
        if self._chance.random() < 0.5:
            await self._tell("end", key, binary.release_reference(key))
        else:
            await self._tell("end", key, binary.delete_data(key))

    async def _store(self, binary: BinaryDataLifecycleManager) -> str:
        return str((await self._tell("store", "", binary.store_data(b"kept"))).file_key)

    async def _tell(self, verb: str, key: str, call: Awaitable[Any]) -> Any:
        self._steps += 1
        step = self._steps
        self._pipe.send(("try", verb, key, step))
        try:
            result = await call
        except bdr.OutcomeUnknown as error:
            self._pipe.send(("unknown", verb, error.keys[0], step))
            raise
        except bdr.BinaryStorageError:
            self._pipe.send(("not done", verb, key, step))
            raise
        self._pipe.send(("done", verb, result.file_key if verb == "store" else key, step))
        return result


def main(orders: Orders, pipe: Connection) -> None:
    """The whole life of a worker."""
    asyncio.run(Worker(orders, pipe).run())
