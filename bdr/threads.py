"""Reading and writing that may never return, without keeping the process from ending."""

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from bdr.errors import IoError

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds for which a thread that has nothing to do waits for more; to start one costs more than most of what it does.
_SPARE_FOR = 10.0

_Tell = Callable[[], None]
_Jobs = SimpleQueue[Callable[[], _Tell]]
# Where those that wait get what they are given, one thread each. None of them is there after a fork.
_spare: list[_Jobs] = []
os.register_at_fork(after_in_child=_spare.clear)


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """What `work` gives, done in a thread that does nothing else meanwhile.

    `asyncio.to_thread` would not do: the event loop waits for its threads, and a read from a terminal or a write into
    a pipe that nobody empties never ends. `work` must not use Python's own buffers of the standard streams, whose locks
    an interpreter that exits wants to have.

    Raises:
        IoError: the operating system has no thread to give.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> _Tell:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed to who waits, whatever it is
            return partial(_call, loop, done, done.set_exception, error)
        return partial(_call, loop, done, done.set_result, result)

    _hand_over(run)
    return await done


def _hand_over(run: Callable[[], _Tell]) -> None:
    try:
        jobs = _spare.pop()
    except IndexError:
        jobs = SimpleQueue()
        try:
            threading.Thread(target=_serve, args=(jobs,), daemon=True).start()
        except RuntimeError as error:
            raise _no_thread(error) from error
    jobs.put(run)


def _serve(jobs: _Jobs) -> None:
    """Do what comes, until nothing has come for a while.

    A thread that gives up waiting meets who has just chosen it; each takes `jobs` from the list in one step, and one of
    them is first. If that is the thread, it ends, and the other finds another thread. If it is the other, the thread
    finds that it is not on the list any more, and waits for what is about to come.
    """
    while True:
        try:
            run = jobs.get(timeout=_SPARE_FOR)
        except Empty:
            try:
                _spare.remove(jobs)
            except ValueError:
                continue
            return
        tell = run()
        del run
        # Before it tells: who hears of it may have more at once.
        _spare.append(jobs)
        try:
            tell()
        except Exception:
            # Who waits for this is never told. The thread is on the list, so it must live for those who come next.
            with suppress(Exception):
                log.exception("What a thread has done could not be told to who waits for it.")
        del tell


def _no_thread(error: RuntimeError) -> IoError:
    return IoError(f"no thread could be started: {error} (raise the limit of processes, or lower `concurrency`)")


def _call(
    loop: asyncio.AbstractEventLoop, done: asyncio.Future[T], settle: Callable[..., None], outcome: object
) -> None:
    def once() -> None:
        # Who waited may have been cancelled.
        if not done.done():
            settle(outcome)

    # The loop may be closed by now.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(once)


class DaemonThreads:
    """Up to `limit` threads of one event loop, for much that is short: they are kept, and tell of many results at once.

    What is given is begun in that order; what nobody waits for any more by then is not begun at all.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._threads = 0
        self._under_way = 0
        self._jobs: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._told = False

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` gives, done in one of the threads. IoError: the operating system has no thread to give."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._under_way += 1
        try:
            self._grow()
        except IoError:
            self._under_way -= 1
            raise
        self._jobs.put((done, work))
        return await done

    def close(self) -> None:
        """End the threads, each after what it is about."""
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0

    def _grow(self) -> None:
        if self._threads >= min(self._limit, self._under_way):
            return
        try:
            threading.Thread(target=self._work, daemon=True).start()
        except RuntimeError as error:
            if self._threads == 0:
                raise _no_thread(error) from error
        else:
            self._threads += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, work = job
            result, error = None, None
            if not future.done():
                try:
                    result = work()
                except BaseException as raised:  # noqa: BLE001 - handed to who waits, whatever it is
                    error = raised
            # What it was about need not stay in memory until there is more to do.
            del job, work
            self._tell(future, result, error)
            del future, result, error

    def _tell(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        # Between a thread and the loop: the thread appends, then reads `_told`; the loop clears `_told`, then takes
        # what is there. If the thread still reads True, it had appended before the loop began to take. If it reads
        # False, it calls the loop itself, once too often at worst.
        self._done.append((future, result, error))
        if not self._told:
            self._told = True
            try:
                future.get_loop().call_soon_threadsafe(self._deliver)
            except RuntimeError:
                # The loop is closed, and nobody waits.
                self._told = False

    def _deliver(self) -> None:
        self._told = False
        while self._done:
            future, result, error = self._done.popleft()
            self._under_way -= 1
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
