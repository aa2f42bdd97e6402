"""Many objects deleted at once, and what became of each.

What a folder no longer holds is made durable once for the whole batch: a delete that a power cut could undo must not
be told, for the object's row goes next, and one sync an object costs more than its delete.
"""

import asyncio
import errno
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from bdr.errors import BinaryStorageError, StorageUnavailable
from bdr.settings.values import format_duration
from bdr.storage.calls import Calls
from bdr.storage.durable import DirectorySync
from bdr.threads import in_daemon_thread

# By path: None where it is gone, else why it may not be. A path that was not begun is left out.
Outcomes = dict[str, BinaryStorageError | None]


async def deleted_each(
    delete: Callable[[str], Awaitable[None]], paths: Iterable[str], *, concurrency: int, until: float
) -> Outcomes:
    """Delete one by one, `concurrency` at once, and begin none after `until` (monotonic seconds).

    None is begun either once the storage was unavailable: the others might take as long, or press a storage that asks
    to be spared.
    """
    outcomes: Outcomes = {}
    queue = iter(paths)

    async def worker() -> None:
        for path in queue:
            outcomes[path] = await _outcome(delete, path)
            if isinstance(outcomes[path], StorageUnavailable) or time.monotonic() > until:
                # For the other workers too.
                list(queue)

    async with asyncio.TaskGroup() as workers:
        for _ in range(concurrency):
            workers.create_task(worker())
    return outcomes


async def _outcome(delete: Callable[[str], Awaitable[None]], path: str) -> BinaryStorageError | None:
    try:
        await delete(path)
    except BinaryStorageError as error:
        return error
    # fail point: sweep.object-deleted
    return None


class FileDeletes:
    """Deletes of files by threads, which cost a third of what they do through OpenDAL.

    For how long nothing may happen before the mount is taken for silent is `calls.patience`: what the threads hang in
    is unavailable then, and the rest is not begun.

    Args:
        until: when no more deletes are begun, in monotonic seconds.
    """

    def __init__(self, root: Path, folders: DirectorySync, calls: Calls, *, until: float) -> None:
        self._root = root
        self._folders = folders
        self._calls = calls
        self._until = until
        self._queue: Iterator[str] = iter(())
        self._stopped = False
        self._deleted: list[str] = []
        self._refused: list[str] = []
        self._busy: dict[int, str] = {}

    async def run(
        self, paths: Iterable[str], delete: Callable[[str], Awaitable[None]], *, concurrency: int
    ) -> Outcomes:
        """Delete, then sync each folder once; `delete` is asked for what the operating system refuses."""
        # In the order of their folders, each of which lets one thread at a time change it.
        self._queue = iter(sorted(paths))
        self._calls.check()
        async with self._calls.slots:
            silence = await self._in_threads(concurrency)
            outcomes: Outcomes = dict.fromkeys(self._deleted)
            if silence is not None:
                outcomes |= {path: self._error("delete", path, silence) for path in self._busy.values()}
            outcomes |= await self._unsettled(concurrency)
        return outcomes | await deleted_each(delete, self._refused, concurrency=concurrency, until=self._until)

    async def _unsettled(self, concurrency: int) -> Outcomes:
        parents = {path: (self._root / path).parent for path in self._deleted}
        failures = await self._folders.removed_from(set(parents.values()), threads=concurrency)
        return {
            path: self._error("sync the folder of", path, failures[folder])
            for path, folder in parents.items()
            if folder in failures
        }

    def _error(self, action: str, path: str, error: OSError) -> BinaryStorageError:
        return self._calls.translated.error(action, path, error)

    async def _in_threads(self, threads: int) -> OSError | None:
        running = asyncio.gather(*(in_daemon_thread(partial(self._delete, number)) for number in range(threads)))
        try:
            return await self._silence(running)
        finally:
            self._stopped = True

    async def _silence(self, running: asyncio.Future[list[None]]) -> OSError | None:
        """Wait for the threads as long as they get on; gives back the error of those that do not."""
        before = -1
        while not running.done():
            now = len(self._deleted) + len(self._refused)
            if now == before:
                return OSError(errno.ETIMEDOUT, f"no answer within {format_duration(self._calls.patience)}")
            before = now
            await asyncio.wait({running}, timeout=self._calls.patience.total_seconds())
        running.result()
        return None

    def _delete(self, number: int) -> None:
        # A step of a list's iterator is not interrupted by another thread, nor is an append.
        for path in self._queue:
            self._busy[number] = path
            try:
                self._unlink(path)
            except OSError:
                self._refused.append(path)
            else:
                self._deleted.append(path)
                # fail point: sweep.file-deleted
            del self._busy[number]
            if self._stopped or time.monotonic() > self._until:
                return

    def _unlink(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self._root}/{path}")  # noqa: PTH108 - a Path costs more than the call
