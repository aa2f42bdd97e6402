"""Folders made durable: OpenDAL syncs a file, but not the folder that holds its name."""

import asyncio
import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

from bdr.storage.patience import in_time
from bdr.threads import in_daemon_thread

Fsync = Callable[[int], None]
Failures = dict[Path, OSError]


def prepare_root(root: Path, *, fsync: Fsync = os.fsync) -> None:
    """Create `root` where it is missing and make its name, and those of the folders created above it, durable."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent, fsync)
    if not missing:
        # It may be the remains of a process that died before the sync; a parent that may not be read is not ours.
        with suppress(PermissionError):
            sync_folder(root.parent, fsync)


def sync_folder(folder: Path, fsync: Fsync = os.fsync) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync a folder and have no need to; they say so with EINVAL.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


class DirectorySync:
    """Syncs the folders between objects and the root, many callers in one round.

    Who asks while a round is running waits for the next one: the running round may have passed its folder before the
    name was there. A round that takes longer than `patience` is given up; its thread hangs in the mount.

    Attributes:
        marker: once set, this file must be there after every round. A share that was unmounted leaves an empty folder
            behind, into which writes go and in which deletes find nothing; both succeed.
    """

    def __init__(self, root: Path, *, patience: timedelta = timedelta(minutes=1), fsync: Fsync = os.fsync) -> None:
        self.marker: Path | None = None
        self._root = root
        self._patience = patience
        self._fsync = fsync
        self._due: set[Path] = set()
        self._named: set[str] = set()
        self._running: asyncio.Task[Failures] | None = None
        self._next: asyncio.Task[Failures] | None = None
        self._thread: asyncio.Task[Failures] | None = None

    async def sync(self, path: str) -> None:
        """Return when every folder from the root down to the object at `path` is durable.

        Raises:
            OSError: FileNotFoundError when a folder is not there; ENODEV when the marker is gone; ETIMEDOUT.
        """
        await self._sync(self._folders_of(path))

    async def sync_removed(self, path: str) -> None:
        """As `sync`, for who has deleted the object there: the folders above its own hold what they held before."""
        await self._sync(self._folders_of(path)[:1])

    async def _sync(self, chain: list[Path]) -> None:
        self._due.update(chain)
        if self._next is None:
            self._next = asyncio.create_task(self._round(self._running))
        # A caller that gives up must not take the round away from the others.
        failures = await asyncio.shield(self._next)
        for folder in chain:
            if folder in failures:
                raise failures[folder]

    def sync_here(self, path: str) -> None:
        """As `sync`, in the calling thread: for who has just written the object there.

        The folders above the object's own hold what they held before, so they are synced only for its first object.
        """
        folder = path.rpartition("/")[0]
        for one in [self._root / folder] if folder in self._named else self._folders_of(path):
            sync_folder(one, self._fsync)
        self._check_marker()
        self._named.add(folder)

    def forget(self, path: str) -> None:
        """The folder of an object is about to be made: nothing is known of it any more."""
        self._named.discard(path.rpartition("/")[0])

    async def removed_from(self, folders: Collection[Path], *, threads: int) -> dict[Path, OSError | None]:
        """Make durable what these folders no longer hold, each synced once; gives back, by folder, None or why not.

        Not in rounds: it is much at once, and the disk writes for many threads together. What is being synced when
        `patience` is over has ETIMEDOUT; what was not begun by then is left out.
        """
        outcomes: dict[Path, OSError | None] = {}
        queue = iter(folders)

        def work() -> None:
            for folder in queue:
                error = self._sync_all([folder]).get(folder)
                # A folder that is not there holds nothing either.
                outcomes[folder] = None if isinstance(error, FileNotFoundError) else error

        try:
            await in_time(self._patience, asyncio.gather(*(in_daemon_thread(work) for _ in range(threads))))
        except TimeoutError as error:
            # One that comes back later finds nothing left to do.
            left = set(queue)
            return {folder: outcomes.get(folder, error) for folder in folders if folder not in left}
        return outcomes

    @contextmanager
    def mounted_root(self) -> Iterator[int]:
        """A descriptor of the root, in which the marker is: what is not found below it is not there.

        By its path nothing could be said of a share that was away just then and is there again; a descriptor stays in
        the mount that it was opened in. OSError: ENODEV when the marker is gone.
        """
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._check_marker(descriptor)
            yield descriptor
        finally:
            os.close(descriptor)

    def _folders_of(self, path: str) -> list[Path]:
        depth = path.count("/") + 1
        return list((self._root / path).parents[:depth])

    async def _round(self, previous: asyncio.Task[Failures] | None) -> Failures:
        if previous is not None:
            await asyncio.wait({previous})
        self._running, self._next = self._next, None
        due, self._due = self._due, set()
        return await in_time(self._patience, self._in_thread(partial(self._sync_all, due)))

    async def _in_thread(self, work: Callable[[], Failures]) -> Failures:
        # One that hangs since an earlier round is waited for first: a mount that is silent holds one thread, not many.
        if self._thread is not None:
            await asyncio.wait({self._thread})
        self._thread = asyncio.create_task(in_daemon_thread(work))
        return await asyncio.shield(self._thread)

    def _sync_all(self, folders: Iterable[Path]) -> Failures:
        failures: Failures = {}
        for folder in folders:
            try:
                sync_folder(folder, self._fsync)
            except OSError as error:
                failures[folder] = error
        try:
            self._check_marker()
        except OSError as error:
            return dict.fromkeys(folders, error)
        return failures

    def _check_marker(self, root: int | None = None) -> None:
        if self.marker is None:
            return
        try:
            # A path that is absolute is looked up as it is; below `root` there is only the name.
            os.stat(self.marker if root is None else self.marker.name, dir_fd=root)
        except (FileNotFoundError, NotADirectoryError):
            raise OSError(errno.ENODEV, f"{self.marker} has disappeared", str(self._root)) from None
