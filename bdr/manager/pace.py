"""How much of what waits for one hot reference goes at once.

Its batches cannot overlap: each needs the row that the one before has locked. But while the database is busy with half
of the callers, the other half can be told, if those are not all sent together. That is worth it where telling takes
longer than the database does; where the database is the slower one, it would only be asked twice as often. Where
somebody else keeps the row locked, the second half begins to wait for it when the first has given up.
"""

import asyncio
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Final

from bdr.manager import clock
from bdr.manager.grouping import WORTH

# After so many it is found out anew which of the two is slower.
_BATCHES: Final = 64


class Pace:
    """The pace of one lane."""

    def __init__(self) -> None:
        self._cut_next = False
        self._since_gathered = 0
        self._took = 0.0

    def share(self, waiting: int) -> int:
        """How many of those that wait go now. Once they were cut, each batch is what came during the other."""
        cut = self._cut_next and waiting >= 2 * WORTH
        self._cut_next = False
        return (waiting + 1) // 2 if cut else waiting

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Note how long the database takes."""
        began = clock.seconds()
        try:
            yield
        finally:
            self._took = clock.seconds() - began

    async def gather(self, answered: int, waiting: Sized) -> None:
        """Let many that have just been answered ask again, to go together, unless others are there to go meanwhile."""
        self._since_gathered += 1
        if answered < WORTH or (waiting and self._since_gathered < _BATCHES):
            return
        self._since_gathered = 0
        began = clock.seconds()
        await asyncio.sleep(0)
        telling = (clock.seconds() - began) / answered
        self._cut_next = telling * len(waiting) > self._took
