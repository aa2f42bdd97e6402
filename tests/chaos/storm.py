"""Engines under load while processes are killed, PostgreSQL stopped and connections cut; then every count is checked.

The ledger of what was acknowledged lives here, outside of all that is harmed.
"""

import asyncio
import multiprocessing
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import bdr
from bdr import BinaryDataLifecycleManager
from tests.chaos import worker
from tests.chaos.watch import RECOVERING, recover
from tests.chaos.worker import Orders
from tests.fixtures.postgres import HOST, PostgresServer
from tests.fixtures.proxy import TcpProxy
from tests.guarantees import violations

ENGINES = 3
REAPERS = 2
SHARED = 6
# Between two blows.
_SHORTEST, _LONGEST = 0.3, 2.0
_PATIENCE = 30.0


@dataclass
class Ledger:
    """What was tried and what became of it, by key; what has no ending may have happened or not."""

    acknowledged: Counter[tuple[str, str]] = field(default_factory=Counter)
    unknown: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _open: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)

    def note(self, who: int, told: tuple[str, str, str, int]) -> None:
        """One message of worker `who`."""
        ending, verb, key, step = told
        if ending == "try":
            self._open[who, step] = (verb, key)
            return
        self._open.pop((who, step), None)
        if ending == "done":
            self.acknowledged[verb, key] += 1
        elif ending == "unknown":
            self.unknown[verb, key] += 1
        elif ending == "wrong":
            self.wrong.append(f"{verb} of {key} gave other bytes")

    def close(self) -> None:
        """Whoever tried last was killed: what it tried is unknown."""
        self.unknown.update(self._open.values())
        self._open.clear()

    def bounds(self, key: str) -> tuple[int, int]:
        """The lowest and the highest count of a shared reference."""
        held = 1 + self.acknowledged["register", key] - self.acknowledged["release", key]
        return held - self.unknown["release", key], held + self.unknown["register", key]

    def kept(self) -> list[str]:
        """What was stored and never told to go."""
        ended = self.acknowledged + self.unknown
        return [key for verb, key in self.acknowledged if verb == "store" and not ended["end", key]]

    def ended(self) -> list[str]:
        """What was stored and is acknowledged to have gone."""
        return [key for verb, key in self.acknowledged if verb == "end"]


@dataclass
class Report:
    """What the storm came to."""

    seconds: float
    seed: int
    blows: Counter[str]
    acknowledged: int
    unknown: int
    violations: list[str]

    def __str__(self) -> str:
        blows = ", ".join(f"{count} x {name}" for name, count in sorted(self.blows.items()))
        return (
            f"seed {self.seed}, {self.seconds:.0f} s: {self.acknowledged} operations acknowledged, {self.unknown} of "
            f"unknown outcome; {blows}; {len(self.violations)} violations"
        )


class Storm:
    """Workers behind a proxy, and the blows that they get."""

    def __init__(self, server: PostgresServer, proxy: TcpProxy, url: str, storage: dict[str, Any], seed: int) -> None:
        self.ledger = Ledger()
        self.blows: Counter[str] = Counter()
        self._server = server
        self._proxy = proxy
        self._url = url
        self._storage = storage
        self._chance = random.Random(seed)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([worker.__name__])
        self._workers: dict[int, multiprocessing.process.BaseProcess] = {}
        self._listening: list[asyncio.Task[None]] = []
        self._shared: tuple[str, ...] = ()

    async def rage(self, seconds: float) -> None:
        """Let the workers work and harm them for so long; then let them end."""
        self._shared = await self._prepare()
        try:
            for number in range(ENGINES + REAPERS):
                self._start(number)
            await self._harm(seconds)
            for process in self._workers.values():
                process.terminate()
            for process in self._workers.values():
                await asyncio.to_thread(process.join, _PATIENCE)
        finally:
            for process in self._workers.values():
                process.kill()
        await asyncio.gather(*self._listening)
        self.ledger.close()

    async def _harm(self, seconds: float) -> None:
        blows: list[Callable[[], Awaitable[None]]] = [self._kill, self._kill, self._cut, self._cut, self._crash]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(self._chance.uniform(_SHORTEST, _LONGEST))
            await self._chance.choice(blows)()

    async def _prepare(self) -> tuple[str, ...]:
        async with bdr.connect(self._url, bdr.BinaryStorageConfig(**self._storage)) as binary:
            return tuple([(await binary.store_data(b"shared")).file_key for _ in range(SHARED)])

    def _start(self, number: int) -> None:
        ours, theirs = self._context.Pipe(duplex=False)
        url = self._url.replace(f":{self._server.port}/", f":{self._proxy.port}/")
        orders = Orders(url, self._storage, self._shared, self._chance.getrandbits(32), reaps=number >= ENGINES)
        process = self._context.Process(target=worker.main, args=(orders, theirs))
        process.start()
        theirs.close()
        self._workers[number] = process
        who = len(self._listening)
        self._listening.append(asyncio.create_task(asyncio.to_thread(self._listen, who, ours)))

    def _listen(self, who: int, pipe: Connection) -> None:
        try:
            while True:
                self.ledger.note(who, pipe.recv())
        except EOFError:
            return

    async def _kill(self) -> None:
        number = self._chance.choice(list(self._workers))
        process = self._workers[number]
        process.kill()
        await asyncio.to_thread(process.join, _PATIENCE)
        assert process.exitcode in (-signal.SIGKILL, 0), f"a worker ended by itself, with {process.exitcode}"
        self.blows["reaper killed" if number >= ENGINES else "engine killed"] += 1
        self._start(number)

    async def _cut(self) -> None:
        self._proxy.cut()
        self.blows["all connections cut"] += 1

    async def _crash(self) -> None:
        await asyncio.to_thread(self._server.restart, "immediate")
        self.blows["PostgreSQL stopped at once"] += 1


async def judged(storm: Storm, binary: BinaryDataLifecycleManager) -> list[str]:
    """What is wrong after the storm, once the reapers have had their time."""
    await recover(binary)
    ledger = storm.ledger
    wrong = [*ledger.wrong, *await violations(binary.engine.database, binary.engine.storages)]
    for key in storm._shared:
        least, most = ledger.bounds(key)
        count = (await binary.get_details(key)).ref_count
        if not least <= count <= most:
            wrong.append(f"the count of {key} is {count}, not {least} to {most}")
    wrong += [f"{key} was stored and is not there" for key in ledger.kept() if await _read(binary, key) != b"kept"]
    wrong += [f"{key} was deleted and is there" for key in ledger.ended() if await binary.data_exists(key)]
    return wrong


async def _read(binary: BinaryDataLifecycleManager, key: str) -> bytes | None:
    try:
        return await binary.get_data(key)
    except bdr.FileNotFound:
        return None


async def weather(server: PostgresServer, url: str, storage: dict[str, Any], seconds: float, seed: int) -> Report:
    """A storm from its beginning to the judgement; `server` is restarted in it, and is there at the end."""
    proxy = TcpProxy(HOST, server.port)
    await proxy.start()
    try:
        storm = Storm(server, proxy, url, storage, seed)
        await storm.rage(seconds)
    finally:
        await proxy.close()
    settings = RECOVERING | {"database": bdr.DatabaseConfig(statement_timeout=timedelta(minutes=1))}
    async with bdr.connect(url, bdr.BinaryStorageConfig(**storage), **settings) as binary:
        wrong = await judged(storm, binary)
    ledger = storm.ledger
    return Report(seconds, seed, storm.blows, ledger.acknowledged.total(), ledger.unknown.total(), wrong)
