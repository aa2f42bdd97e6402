"""Engines under load while processes are killed, PostgreSQL stopped and connections cut; then every count is checked.

The ledger of what was acknowledged lives here, outside of all that is harmed.
"""

import asyncio
import multiprocessing
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

import bdr
from bdr import BinaryDataLifecycleManager
from bdr.fsck import check
from tests.chaos import worker
from tests.chaos.watch import RECOVERING, recover
from tests.chaos.worker import Orders, Told
from tests.fixtures.postgres import HOST, PostgresServer
from tests.fixtures.proxy import TcpProxy
from tests.guarantees import violations

ENGINES = 3
REAPERS = 2
SHARED = 6
# Between two blows.
_SHORTEST, _LONGEST = 0.3, 2.0
# For what takes no time at all on a machine that is not overloaded.
PATIENCE = 120.0


@dataclass
class Ledger:
    """What was tried and what became of it, by key; what has no ending may have happened or not."""

    acknowledged: Counter[tuple[str, str]] = field(default_factory=Counter)
    unknown: Counter[tuple[str, str]] = field(default_factory=Counter)
    contents: dict[str, bytes] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    _open: dict[tuple[int, int], Told] = field(default_factory=dict)

    def note(self, who: int, told: Told) -> None:
        """One message of worker `who`."""
        if told.ending == "try":
            self._open[who, told.step] = told
            return
        self._open.pop((who, told.step), None)
        if told.ending == "wrong":
            self.wrong.append(f"{told.verb} of {' '.join(told.keys)}: {told.data.decode()}")
        elif told.ending != "not done":
            self._count(self.acknowledged if told.ending == "done" else self.unknown, told)

    def close(self) -> None:
        """Whoever tried last was killed: what it tried is unknown."""
        for told in self._open.values():
            self._count(self.unknown, told)
        self._open.clear()

    def _count(self, counter: Counter[tuple[str, str]], told: Told) -> None:
        # Only a store that was cut short has no key: nobody can ever ask for it.
        for key in told.keys or ("",):
            counter[told.verb, key] += 1
            if told.verb == "store":
                self.contents[key] = told.data

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

    def __init__(
        self, server: PostgresServer, proxy: TcpProxy, url: str, storage: dict[str, Any], seed: int, errors: Path
    ) -> None:
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
        self._heard: list[asyncio.Future[None]] = []
        self._errors = errors
        self.shared: tuple[str, ...] = ()

    async def rage(self, seconds: float) -> None:
        """Let the workers work and harm them for so long; then let them end."""
        self.shared = await self._prepare()
        try:
            for number in range(ENGINES + REAPERS):
                self._start(number)
            await self._harm(seconds)
            for process in self._workers.values():
                process.terminate()
            for number in self._workers:
                # One that has only just begun does not know the signal yet.
                await self._ended(number, 0, -signal.SIGTERM)
        finally:
            for process in self._workers.values():
                process.kill()
        await asyncio.gather(*self._heard)
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
        who = len(self._heard)
        errors = self._errors / f"{number}"
        url = self._url.replace(f":{self._server.port}/", f":{self._proxy.port}/")
        orders = Orders(url, self._storage, self.shared, self._chance.getrandbits(63), errors, reaps=number >= ENGINES)
        process = self._context.Process(target=worker.main, args=(orders, theirs))
        process.start()
        theirs.close()
        self._workers[number] = process
        self._heard.append(self._listen(who, ours))

    def _listen(self, who: int, pipe: Connection) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def hear() -> None:
            # A message is smaller than what a pipe takes at once, so there is all of it or nothing.
            try:
                self.ledger.note(who, pipe.recv())
            except EOFError:
                loop.remove_reader(pipe.fileno())
                pipe.close()
                ended.set_result(None)

        loop.add_reader(pipe.fileno(), hear)
        return ended

    async def _kill(self) -> None:
        number = self._chance.choice(list(self._workers))
        self._workers[number].kill()
        await self._ended(number, -signal.SIGKILL)
        self.blows["reaper killed" if number >= ENGINES else "engine killed"] += 1
        self._start(number)

    async def _ended(self, number: int, *expected: int) -> None:
        process = self._workers[number]
        await asyncio.to_thread(process.join, PATIENCE)
        if process.exitcode not in expected:
            said = (self._errors / f"{number}").read_text()
            raise AssertionError(f"worker {number} ended with {process.exitcode}, not {expected}: {said}")

    async def _cut(self) -> None:
        self._proxy.cut()
        self.blows["all connections cut"] += 1

    async def _crash(self) -> None:
        await asyncio.to_thread(self._server.restart, "immediate")
        self.blows["PostgreSQL stopped at once"] += 1


async def judged(storm: Storm, binary: BinaryDataLifecycleManager, plan: Path) -> list[str]:
    """What is wrong after the storm, once the leases are over and the reapers have had their time."""
    await binary.engine.database.write(_end_leases)
    await recover(binary)
    ledger = storm.ledger
    wrong = [*ledger.wrong, *await violations(binary.engine.database, binary.engine.storages)]
    found = (await check(binary, plan)).findings
    wrong += [f"fsck found {found}"] if found else []
    for key in storm.shared:
        least, most = ledger.bounds(key)
        count = (await binary.get_details(key)).ref_count
        if not least <= count <= most:
            wrong.append(f"the count of {key} is {count}, not {least} to {most}")
        lasting = [one.holder for one in await binary.get_holders(key) if one.instance_id or one.lease_expires_at]
        wrong += [f"{holder} still holds {key}" for holder in lasting]
    wrong += [f"{key} is not there as stored" for key in ledger.kept() if not await _is_kept(binary, ledger, key)]
    wrong += [f"{key} was deleted and is there" for key in ledger.ended() if await binary.data_exists(key)]
    return wrong


async def _end_leases(connection: AsyncConnection) -> None:
    await connection.execute(
        text("UPDATE bdr.reference_holder SET lease_expires_at = now() WHERE lease_expires_at > now()")
    )


async def _is_kept(binary: BinaryDataLifecycleManager, ledger: Ledger, key: str) -> bool:
    try:
        return await binary.get_data(key) == ledger.contents[key]
    except (bdr.FileNotFound, bdr.Corrupt):
        return False


async def weather(server: PostgresServer, url: str, storage: dict[str, Any], seconds: float, seed: int) -> Report:
    """A storm from its beginning to the judgement; `server` is restarted in it, and is there at the end."""
    with tempfile.TemporaryDirectory(prefix="bdr-storm-") as folder:
        return await _weather(server, url, storage, seconds, seed, Path(folder))


async def _weather(
    server: PostgresServer, url: str, storage: dict[str, Any], seconds: float, seed: int, folder: Path
) -> Report:
    proxy = TcpProxy(HOST, server.port)
    await proxy.start()
    try:
        storm = Storm(server, proxy, url, storage, seed, folder)
        await storm.rage(seconds)
    finally:
        await proxy.close()
    settings = RECOVERING | {"database": bdr.DatabaseConfig(statement_timeout=timedelta(minutes=1))}
    async with bdr.connect(url, bdr.BinaryStorageConfig(**storage), **settings) as binary:
        wrong = await judged(storm, binary, folder / "plan")
    ledger = storm.ledger
    return Report(seconds, seed, storm.blows, ledger.acknowledged.total(), ledger.unknown.total(), wrong)
