"""Many objects deleted at once, and what became of each.

What a folder no longer holds is made durable once for the whole batch: a delete that a power cut could undo must not
be told, for the object's row goes next, and one sync an object costs more than its delete.
"""

import asyncio
import errno
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from functools import partial
from pathlib import Path

from bdr.errors import BinaryStorageError, StorageUnavailable
from bdr.settings.values import format_duration
from bdr.storage.calls import Calls
from bdr.storage.durable import DirectorySync
from bdr.threads import in_daemon_thread

# For each so many objects, or folders, a thread: on a local disk 32 objects took no longer with 8 threads than with 32,
# and half the processor time, of which most is the interpreter's handing round.
_WORTH_A_THREAD = 4

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


def _charged_once(outcomes: Outcomes) -> Outcomes:
    """Without all but one of those that found the storage unavailable: it was so for them together."""
    away = [path for path, error in outcomes.items() if isinstance(error, StorageUnavailable)]
    for path in away[1:]:
        del outcomes[path]
    return outcomes


def _threads_for(what: Sized, concurrency: int) -> int:
    return min(concurrency, math.ceil(len(what) / _WORTH_A_THREAD))


class FileDeletes:
    """Deletes of files by threads, which cost a third of what they do through OpenDAL.

    For how long nothing may happen before the mount is taken for silent is `calls.patience`: what the threads hang in
    is unavailable then, and nothing more is asked of the mount.

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
        """Delete, then sync each folder once; `delete` is asked for what the operating system refuses.

        Left out are also paths that are gone, but not durably: they are deleted once more, and found gone.
        """
        # In the order of their folders, each of which lets one thread at a time change it.
        in_order = sorted(paths)
        self._queue = iter(in_order)
        if not await self._has_turn():
            return {}
        try:
            self._calls.check()
            async with self._calls.slots:
                outcomes = await self._by_threads(in_order, concurrency)
        finally:
            self._calls.batches.release()
        if self._is_late() or any(isinstance(error, StorageUnavailable) for error in outcomes.values()):
            return outcomes
        return outcomes | await deleted_each(delete, self._refused, concurrency=concurrency, until=self._until)

    async def _has_turn(self) -> bool:
        """Wait until the storage has threads for one more batch; False when the time for this one is over before."""
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                return await self._calls.batches.acquire()
        except TimeoutError:
            return False

    async def _by_threads(self, paths: Sequence[str], concurrency: int) -> Outcomes:
        silence = await self._in_threads(_threads_for(paths, concurrency))
        if silence is None:
            return _charged_once(await self._settled(concurrency))
        # A copy: threads that come back after all change it.
        return {path: self._error("delete", path, silence) for path in list(self._busy.values())}

    async def _settled(self, concurrency: int) -> Outcomes:
        # A Path for each folder only: one costs more than all else that is done for an object here. In the order of the
        # deletes: if some folders are not synced in time, the object that is charged is one of the first of them.
        names = {path: path.rpartition("/")[0] for path in self._deleted}
        folders = {name: self._root / name for name in dict.fromkeys(names.values())}
        synced = await self._folders.removed_from(folders.values(), threads=_threads_for(folders, concurrency))
        outcomes: Outcomes = {}
        for path, name in names.items():
            if folders[name] in synced:
                error = synced[folders[name]]
                outcomes[path] = None if error is None else self._error("sync the folder of", path, error)
        return outcomes

    def _error(self, action: str, path: str, error: OSError) -> BinaryStorageError:
        return self._calls.translated.error(action, path, error)

    def _is_late(self) -> bool:
        return time.monotonic() > self._until

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
            if self._stopped or self._is_late():
                return

    def _unlink(self, path: str) -> None:
        try:
            os.unlink(f"{self._root}/{path}")  # noqa: PTH108 - a Path costs more than the call
        except FileNotFoundError:
            # The share may have been away just then.
            with self._folders.mounted_root() as root, suppress(FileNotFoundError):
                os.unlink(path, dir_fd=root)
