"""How much of what waits for one hot reference goes at once.

Its batches cannot overlap: each needs the row that the one before has locked. But while the database is busy with half
of the callers, the other half can be told, if those are not all sent together. That is worth it where telling takes
longer than the database does; where the database is the slower one, it would only be asked twice as often.
"""

import asyncio
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Final

from bdr.manager import clock

# So many callers are worth a batch of their own.
_WORTH: Final = 16
# So often it is found out anew which of the two is slower.
_BATCHES: Final = 64


class Pace:
    """The pace of one lane."""

    def __init__(self) -> None:
        self._in_halves = False
        self._batches = 0
        self._took = 0.0

    def share(self, waiting: int) -> int:
        """How many of those that wait go now. Once they are in halves, each batch is what came during the other."""
        halve, self._in_halves = self._in_halves and waiting >= 2 * _WORTH, False
        return (waiting + 1) // 2 if halve else waiting

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Note how long the database takes."""
        began = clock.seconds()
        yield
        self._took = clock.seconds() - began

    async def gather(self, answered: int, waiting: Sized) -> None:
        """Let many that have just been answered ask again, to go together, unless others are there to go meanwhile."""
        self._batches += 1
        if answered < _WORTH or (waiting and self._batches % _BATCHES):
            return
        began = clock.seconds()
        await asyncio.sleep(0)
        telling = (clock.seconds() - began) / answered
        self._in_halves = telling * len(waiting) > self._took
