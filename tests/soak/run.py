"""A soak from beginning to end: processes are started, watched, told to stop, and what they leave is compared."""

import asyncio
import json
import multiprocessing
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import asyncpg
import psutil

import bdr
from tests.guarantees import violations
from tests.soak import load, picture
from tests.soak.load import Done, Orders
from tests.soak.sampling import Curves
from tests.soak.verdict import Finding

ENGINES = 3
REAPERS = 2
_PATIENCE = 60.0


class Broken(Exception):
    """A process did not live as long as the soak, or longer."""


@dataclass(frozen=True)
class Schedule:
    """How long, how often everything is measured (both in seconds), and how many lives each engine begins a second."""

    seconds: float
    every: float = 5.0
    pace: float = 4.0


@dataclass
class Report:
    """What a soak came to."""

    schedule: Schedule
    curves: Curves
    findings: Sequence[Finding]
    done: Done
    violations: list[str]

    @property
    def wrong(self) -> list[str]:
        """What is not as it must be, a sentence each."""
        sentences = [str(one) for one in self.findings if not one.is_flat]
        if self.done.failures:
            sentences.append(f"{self.done.failures} calls failed: {'; '.join(self.done.sentences)}")
        return sentences + self.violations

    def __str__(self) -> str:
        calls = sum(self.done.calls.values())
        return (
            f"{self.schedule.seconds / 60:.1f} minutes, {ENGINES} engines, {REAPERS} reapers, {calls:,} calls, "
            f"{self.done.failures} failed; {sum(one.is_flat for one in self.findings)} of {len(self.findings)} curves "
            f"flat; {len(self.violations)} violations"
        )

    def write(self, folder: Path) -> None:
        """Leave the figures as `soak.json`, and the picture as `soak.png`."""
        folder.mkdir(parents=True, exist_ok=True)
        figures = {
            "summary": str(self),
            "wrong": self.wrong,
            "calls": dict(self.done.calls.most_common()),
            "autovacuum runs": self.curves.vacuums,
            "findings": [
                {
                    "measure": one.measure.name,
                    "of": one.of,
                    "least": one.least,
                    "median": one.median,
                    "most": one.most,
                    "rise": round(one.rise, 3),
                    "allowed": one.allowed,
                    "flat": one.is_flat,
                }
                for one in self.findings
            ],
            "seconds": [round(one, 1) for one in self.curves.times],
            "curves": {f"{measure.name} of {of}": values for (measure, of), values in self.curves.values.items()},
        }
        (folder / "soak.json").write_text(json.dumps(figures, indent=1) + "\n")
        picture.draw(self.curves, str(self), folder / "soak.png")


class Soak:
    """The processes of one soak."""

    def __init__(self, url: str, storage: bdr.BinaryStorageConfig, schedule: Schedule) -> None:
        self._url = url
        self._storage = storage
        self._schedule = schedule
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([load.__name__])
        self._processes: dict[str, BaseProcess] = {}
        self._pipes: list[Connection] = []

    async def run(self) -> Report:
        """All of it; afterwards no process is left."""
        curves = Curves()
        done = Done()
        with ExitStack() as stack:
            stack.callback(self._kill)
            for number in range(1, ENGINES + 1):
                self._start(f"engine {number}", self._schedule.pace)
            for number in range(1, REAPERS + 1):
                self._start(f"reaper {number}", None)
            await self._watch(curves)
            for one in await asyncio.to_thread(self._stop):
                done.add(one)
        async with bdr.connect(self._url, self._storage) as binary:
            wrong = await violations(binary.engine.database, binary.engine.storages)
        return Report(self._schedule, curves, curves.findings(), done, wrong)

    def _start(self, name: str, pace: float | None) -> None:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=load.main, args=(Orders(name, self._url, self._storage, pace), theirs), name=name
        )
        process.start()
        theirs.close()
        self._processes[name] = process
        self._pipes.append(ours)

    async def _watch(self, curves: Curves) -> None:
        pids = {name: process.pid for name, process in self._processes.items() if process.pid is not None}
        database = await asyncpg.connect(self._url)
        try:
            began = time.monotonic()
            while (passed := time.monotonic() - began) < self._schedule.seconds:
                self._require_all()
                # One that has just ended is noticed the next time.
                with suppress(psutil.NoSuchProcess):
                    await curves.sample(passed, pids, database)
                await asyncio.sleep(self._schedule.every)
            self._require_all()
        finally:
            await database.close()

    def _require_all(self) -> None:
        for name, process in self._processes.items():
            if process.exitcode is not None:
                raise Broken(f"{name} ended in the middle of the soak, with {process.exitcode}")

    def _stop(self) -> list[Done]:
        for process in self._processes.values():
            process.terminate()
        told = []
        for (name, process), pipe in zip(self._processes.items(), self._pipes, strict=True):
            if not pipe.poll(_PATIENCE):
                raise Broken(f"{name} does not end")
            told.append(pipe.recv())
            process.join(_PATIENCE)
        return told

    def _kill(self) -> None:
        for process in self._processes.values():
            process.kill()
