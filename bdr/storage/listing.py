"""What lies below a folder of a storage, streamed: whole, or an error."""

import os
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path

from opendal import AsyncOperator

from bdr.storage.calls import Calls
from bdr.storage.patience import in_time
from bdr.storage.protocol import ListedObject
from bdr.threads import in_daemon_thread

_BATCH = 1000


async def listed(operator: AsyncOperator, calls: Calls, folder: str, *, recursive: bool) -> AsyncIterator[ListedObject]:
    """Through OpenDAL, which asks the service for a page at a time."""
    where = f"{folder}/" if folder else ""
    calls.check()
    with calls.translated("list", where):
        entries = aiter(await operator.list(where, recursive=recursive))
    while True:
        async with calls.slots:
            with calls.translated("list", where):
                entry = await anext(entries, None)
        if entry is None:
            return
        if not entry.metadata.mode.is_dir():
            yield ListedObject(entry.path, entry.metadata.content_length)
        elif not recursive and entry.path not in {"/", where}:
            yield ListedObject(entry.path, None)


async def listed_folder(root: Path, calls: Calls, folder: str, *, recursive: bool) -> AsyncIterator[ListedObject]:
    """On a file system, where OpenDAL takes about 100 µs for each file, and this 3 µs."""
    found = _walk(root, folder, recursive=recursive)
    while True:
        async with calls.slots:
            with calls.translated("list", folder):
                calls.check()
                batch = await in_time(calls.patience, in_daemon_thread(lambda: list(islice(found, _BATCH))))
        for one in batch:
            yield one
        if len(batch) < _BATCH:
            return


def _walk(root: Path, folder: str, *, recursive: bool) -> Iterator[ListedObject]:
    # Links are shown, not followed: what they lead to is not below the root. The folder itself may be one.
    waiting = [folder]
    while waiting:
        inside = waiting.pop()
        for entry in _entries(root / inside, required=not inside):
            path = f"{inside}/{entry.name}" if inside else entry.name
            if not entry.is_dir(follow_symlinks=False):
                yield from _file(path, entry)
            elif recursive:
                waiting.append(path)
            else:
                yield ListedObject(f"{_shown(path)}/", None)


def _entries(folder: Path, *, required: bool) -> Iterator[os.DirEntry[str]]:
    try:
        found = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        if required:
            raise
        return
    with found:
        yield from found


def _file(path: str, entry: os.DirEntry[str]) -> Iterator[ListedObject]:
    try:
        size = entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        # Deleted since the folder was read.
        return
    yield ListedObject(_shown(path), size)


def _shown(path: str) -> str:
    # A name that is no UTF-8 is none of bdr's; it must only be told apart from those.
    return os.fsencode(path).decode(errors="backslashreplace")
