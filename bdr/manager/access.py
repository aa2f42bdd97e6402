"""Access times, gathered in memory and written together: a read costs no write of its own."""

import time
from collections import Counter
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
    """

    def __init__(self, database: Database, interval: timedelta) -> None:
        self._database = database
        self._interval = interval.total_seconds()
        self._waiting: set[str] = set()
        self._touched: dict[str, float] = {}
        self._open: Counter[str] = Counter()

    def note(self, file_key: str, *, held: bool) -> None:
        """Remember that the reference was read just now."""
        if held and self._is_recent(file_key):
            return
        if len(self._waiting) < _LIMIT:
            self._waiting.add(file_key)

    @contextmanager
    def reading(self, file_key: str) -> Iterator[None]:
        """While inside, the reference counts as read every `interval`, however slowly its reader goes on."""
        self._open[file_key] += 1
        try:
            yield
        finally:
            self._open[file_key] -= 1
            self._open += Counter()

    async def flush(self) -> None:
        """Write what is waiting, in one statement; what others had locked waits for the next time."""
        self._waiting.update(key for key in self._open if not self._is_recent(key))
        if not self._waiting:
            return
        keys, self._waiting = self._waiting, set()
        try:
            skipped = await self._database.write(lambda connection: count.touch(connection, list(keys)))
        except BaseException:
            self._waiting |= keys
            raise
        self._waiting |= set(skipped)
        self._remember(keys.difference(skipped))

    def _is_recent(self, file_key: str) -> bool:
        touched = self._touched.get(file_key)
        return touched is not None and time.monotonic() - touched < self._interval

    def _remember(self, keys: set[str]) -> None:
        self._touched = {key: at for key, at in self._touched.items() if self._is_recent(key)}
        if len(self._touched) < _LIMIT:
            self._touched |= dict.fromkeys(keys, time.monotonic())
