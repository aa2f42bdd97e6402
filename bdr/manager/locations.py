"""Where files lie, as this engine remembers it: so that a read of one that was read before asks nothing.

An entry is believed while three things hold. It is younger than `LONGEST`: some hints are lost. The listener has been
heard lately (`bdr.catalog.listening`): otherwise all of them may be. And nobody has told that its blob lost a
reference.

Filling it is a race with those hints: who asks the catalog may be answered before a delete commits, and come here after
its hint was heard. So who asks takes a mark first, and what was dropped since is not kept. A hint that is heard before
the mark was sent after a commit that the answer has seen already.

What is out of date all the same does no harm to the bytes: a path is never used twice, so there are the right ones or
none, and then the catalog is asked.
"""

import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

from bdr.catalog.reference import Location

# Seconds. A hint is lost when who deleted dies between its commit and the hint; a file that is read all the time costs
# one query in as long.
LONGEST: Final = 30.0
# Blobs that were dropped last; who asked before those that are forgotten may not keep the answer.
_REMEMBERED: Final = 10_000


class Mark(NamedTuple):
    """When the catalog was asked: after which drop, and at which monotonic time."""

    drops: int
    time: float


class Locations:
    """Places by file key, at most `limit` of them: those that were not used for longest go first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Each with the monotonic time until when it is believed.
        self._entries: OrderedDict[str, tuple[Location, float]] = OrderedDict()
        self._keys: dict[uuid.UUID, set[str]] = {}
        self._trusted_until = 0.0
        self._drops = 0
        # The number of the drop by blob, the oldest first; older ones have lower numbers than `_floor`.
        self._dropped: OrderedDict[uuid.UUID, int] = OrderedDict()
        self._floor = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Location | None:
        """The place, if it is known and may be believed."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        location, until = entry
        now = time.monotonic()
        if now >= until or now >= self._trusted_until:
            return None
        self._entries.move_to_end(key)
        return location

    def mark(self) -> Mark | None:
        """To be taken before the catalog is asked, for `put`; None when nothing is to be kept."""
        now = time.monotonic()
        return Mark(self._drops, now) if now < self._trusted_until else None

    def put(self, key: str, location: Location, mark: Mark | None) -> None:
        """Keep what the catalog said, unless its blob may have lost a reference since the mark.

        Its age counts from the mark: what was deleted while a slow answer came is believed no longer for it.
        """
        if mark is None or mark.drops < self._floor or self._dropped.get(location.blob_id, 0) > mark.drops:
            return
        self._forget(key)
        self._entries[key] = location, mark.time + LONGEST
        self._keys.setdefault(location.blob_id, set()).add(key)
        while len(self._entries) > self._limit:
            self._forget(next(iter(self._entries)))

    def drop(self, blob_ids: Iterable[uuid.UUID]) -> None:
        """These blobs have lost a reference: ask anew for all that refers to them."""
        for blob_id in blob_ids:
            self._drops += 1
            self._dropped[blob_id] = self._drops
            self._dropped.move_to_end(blob_id)
            for key in self._keys.pop(blob_id, ()):
                del self._entries[key]
        while len(self._dropped) > _REMEMBERED:
            _, self._floor = self._dropped.popitem(last=False)

    def trust(self, until: float) -> None:
        """Until then entries may be believed: what was dropped before is known."""
        self._trusted_until = until

    def distrust(self) -> None:
        """Anything may have been dropped: forget everything, and what is being asked just now too."""
        self._trusted_until = 0.0
        self._entries.clear()
        self._keys.clear()
        self._dropped.clear()
        self._drops += 1
        self._floor = self._drops

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        blob_id = entry[0].blob_id
        keys = self._keys[blob_id]
        keys.discard(key)
        if not keys:
            del self._keys[blob_id]
