"""Work that is measured in processes of its own: several engines at once, or what the memory of one is about."""

import asyncio
import multiprocessing
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any, Final

import psutil

Go = Callable[[], Awaitable[None]]
_SAMPLED_EVERY: Final = 0.005
# Of a process that has answered, until it has taken its engine apart.
_PATIENCE: Final = 30
# What jobs need, so that each process has it when it starts.
_IMPORTED_ONCE: Final = ("bdr.joining", "tests.bench.engines", "tests.bench.reaping", "tests.bench.streams")


@dataclass
class Answer:
    """What one process did: how much, from when to when (a clock that all processes share), its memory in bytes."""

    done: float
    began: float
    ended: float
    memory: int = 0


@dataclass(frozen=True)
class Orders:
    """What one process shall do: get ready, wait for `go`, work, answer."""

    job: Callable[..., Awaitable[Answer]]
    arguments: tuple[Any, ...]


async def together(orders: Sequence[Orders]) -> list[Answer]:
    """Have a process for each do its work, all of them at the same time; none is left afterwards."""
    return await asyncio.to_thread(_together, orders)


def rate_of(answers: Sequence[Answer]) -> float:
    """How much all of them did in a second, from the first one's beginning to the last one's end."""
    seconds = max(one.ended for one in answers) - min(one.began for one in answers)
    return sum(one.done for one in answers) / seconds


def _together(orders: Sequence[Orders]) -> list[Answer]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED_ONCE))
    pipes: list[Connection] = []
    processes: list[ForkServerProcess] = []
    try:
        for one in orders:
            ours, theirs = context.Pipe()
            process = context.Process(target=_main, args=(one, theirs))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            pipe.recv()
        for pipe in pipes:
            pipe.send(None)
        return [pipe.recv() for pipe in pipes]
    except EOFError:
        raise RuntimeError("A process that was to be measured has failed; above it says why.") from None
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(_PATIENCE)
            process.kill()


def _main(orders: Orders, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def go() -> None:
        pipe.send(None)
        await asyncio.to_thread(pipe.recv)

    async def work() -> Answer:
        return await orders.job(go, *orders.arguments)

    pipe.send(asyncio.run(work()))


@contextmanager
def timed(done: float = 0) -> Iterator[Answer]:
    """Measure the time of the block."""
    answer = Answer(done, time.monotonic(), 0)
    yield answer
    answer.ended = time.monotonic()


@contextmanager
def watched(done: float) -> Iterator[Answer]:
    """Measure the time of the block, and how far memory rises above what it was at the beginning."""
    process = psutil.Process()
    idle = process.memory_info().rss
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SAMPLED_EVERY):
            answer.memory = max(answer.memory, process.memory_info().rss - idle)

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        with timed(done) as answer:
            watcher.start()
            yield answer
    finally:
        over.set()
        watcher.join()
