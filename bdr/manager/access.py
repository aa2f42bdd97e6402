"""Access times, gathered in memory and written together: a read costs no write of its own."""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from bdr.catalog import count
from bdr.catalog.database import Database

# More keys than this within one interval are not worth the memory; a lost touch only ages a reference.
_LIMIT = 100_000


class AccessTimes:
    """Which references were read and still have to be touched.

    A reference that is held expires by its age alone, so it is touched at most once every `interval`: an update of a
    hot row under somebody's long transaction costs time that grows with the square of their number.

    Who goes by a remembered place does not know whether the reference is still held: it may have been released, and
    then every read counts. What was touched lately is written only if the catalog finds it unheld.
    """

    def __init__(self, database: Database, interval: timedelta) -> None:
        self._database = database
        self._interval = interval.total_seconds()
        self._waiting: set[str] = set()
        self._recalled: set[str] = set()
        # When each key was last touched, the longest ago first.
        self._touched: OrderedDict[str, float] = OrderedDict()
        self._open: Counter[str] = Counter()
        self._flushing = asyncio.Lock()

    def note(self, file_key: str, *, held: bool | None) -> None:
        """Remember that the reference was read just now; `held` is None when that is not known."""
        if held is None:
            self.note_recalled(file_key)
        elif not (held and self._is_recent(file_key)) and len(self._waiting) < _LIMIT:
            self._waiting.add(file_key)

    def note_recalled(self, file_key: str) -> None:
        """Remember that it was read just now, by who does not know whether it is held."""
        if len(self._recalled) < _LIMIT:
            self._recalled.add(file_key)

    @contextmanager
    def reading(self, file_key: str, *, held: bool) -> Iterator[None]:
        """While inside, the reference counts as read every `interval`, however slow its reader, and once at the end."""
        self._open[file_key] += 1
        try:
            yield
        finally:
            self.note(file_key, held=held)
            self._open[file_key] -= 1
            if not self._open[file_key]:
                del self._open[file_key]

    async def flush(self) -> None:
        """Write what is waiting, in one statement; what others had locked waits for the next time."""
        async with self._flushing:
            self._waiting.update(key for key in self._open if not self._is_recent(key))
            recalled, self._recalled = self._recalled, set()
            recent = {key for key in recalled if self._is_recent(key)} - self._waiting
            self._waiting |= recalled - recent
            if self._waiting or recent:
                await self._write(recent)

    async def _write(self, recent: set[str]) -> None:
        keys, self._waiting = self._waiting, set()
        # Before they are written: what is read meanwhile need not be written again.
        self._remember(keys)
        try:
            skipped = set(await self._database.write(lambda connection: count.touch(connection, keys, recent)))
        except BaseException:
            self._try_again(keys)
            self._recalled |= recent
            raise
        self._try_again(skipped - recent)
        self._recalled |= skipped & recent

    def _is_recent(self, file_key: str) -> bool:
        touched = self._touched.get(file_key)
        return touched is not None and time.monotonic() - touched < self._interval

    def _remember(self, keys: set[str]) -> None:
        for key in keys:
            self._touched[key] = time.monotonic()
            self._touched.move_to_end(key)
        while self._touched and (len(self._touched) > _LIMIT or not self._is_recent(next(iter(self._touched)))):
            self._touched.popitem(last=False)

    def _try_again(self, keys: set[str]) -> None:
        self._waiting |= keys
        for key in keys:
            self._touched.pop(key, None)
