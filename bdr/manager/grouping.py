"""Groups: what many callers of one engine ask for at once is sent together, and each gets its own answer.

A group is gathered while the one before is being committed; a caller who is alone waits for nobody. Who is cancelled,
and what each then sees: caller first, its ask is passed over and nothing happens; group first, it goes on without a
caller, who is told that the outcome is unknown.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from bdr.errors import BinaryStorageError, Busy, CatalogUnavailable, InstanceClosed, OutcomeUnknown

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Ask(Generic[Item, Answer]):
    """What one caller asks for, and where its answer goes.

    Attributes:
        sent: the server may know of it.
    """

    __slots__ = ("_answer", "_key", "_what", "item", "sent")

    def __init__(self, item: Item, key: str | None, what: str) -> None:
        self.item = item
        self.sent = False
        self._key = key
        self._what = what
        self._answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    @property
    def is_over(self) -> bool:
        """Whether it has its answer, or its caller was cancelled."""
        return self._answer.done()

    def give(self, answer: Answer) -> None:
        """The caller's answer, if it still waits for one."""
        if not self._answer.done():
            self._answer.set_result(answer)

    def fail(self, error: BinaryStorageError) -> None:
        """An error of the caller's own: two must not raise one object."""
        if self._answer.done():
            return
        own = self._unknown() if isinstance(error, OutcomeUnknown) else type(error)(str(error))
        own.__cause__ = error.__cause__ if isinstance(error, OutcomeUnknown) else error
        self._answer.set_exception(own)

    def break_off(self, error: BaseException) -> None:
        """End the wait for an answer that will not come: by a mistake in what should give it, or a loop that ends."""
        if self._answer.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self._answer.cancel()
        else:
            self._answer.set_exception(error)

    async def answered(self) -> Answer:
        """Wait for the answer; OutcomeUnknown when the caller is cancelled and what has a key was sent."""
        try:
            return await self._answer
        except asyncio.CancelledError as cancelled:
            if self.sent and self._key is not None:
                raise self._unknown() from cancelled
            raise

    def _unknown(self) -> OutcomeUnknown:
        return OutcomeUnknown([] if self._key is None else [self._key], self._what)


Commit = Callable[[list[Ask[Item, Answer]]], Awaitable[None]]


class Groups(Generic[Item, Answer]):
    """Sends what was gathered, one group at a time.

    Args:
        commit: answers every ask that it is given, or leaves that to others.
        largest: of one group; what is beyond it goes with the next.
    """

    def __init__(self, commit: Commit[Item, Answer], largest: int = 1000) -> None:
        self._commit = commit
        self._largest = largest
        self._gathered: list[Ask[Item, Answer]] = []
        self._sending: asyncio.Task[None] | None = None

    def add(self, ask: Ask[Item, Answer]) -> None:
        """Let it go with the next group."""
        self._gathered.append(ask)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())

    async def close(self) -> None:
        """Wait until everything that was gathered has been sent."""
        while self._sending is not None:
            await asyncio.wait({self._sending})

    async def _send(self) -> None:
        try:
            while self._gathered:
                group, self._gathered = self._gathered[: self._largest], self._gathered[self._largest :]
                if wanted := [ask for ask in group if not ask.is_over]:
                    with breaking_off(wanted):
                        await self._commit(wanted)
        finally:
            self._sending = None


@contextmanager
def breaking_off(asks: Sequence[Ask[Item, Answer]]) -> Iterator[None]:
    """Nobody waits for ever: what goes wrong inside ends all waits, and is raised to whoever asked."""
    try:
        yield
    except BaseException as error:
        for ask in asks:
            ask.break_off(error)
        if not isinstance(error, Exception):
            raise


def mark_sent(asks: Sequence[Ask[Item, Answer]], *, sent: bool = True) -> None:
    """From now on (no longer) does a cancelled caller have to hear that the outcome is unknown."""
    for ask in asks:
        ask.sent = sent


def concerns_all(error: BinaryStorageError) -> bool:
    """Whether it is no use to try each of a group by itself; otherwise one of them is at fault."""
    return isinstance(error, CatalogUnavailable | InstanceClosed | Busy | OutcomeUnknown)


def fail_all(asks: Sequence[Ask[Item, Answer]], error: BinaryStorageError) -> None:
    """Tell each of them."""
    for ask in asks:
        ask.fail(error)
