"""Groups: what many callers of one engine ask for at once is sent together, and each gets its own answer.

A group is gathered while the one before is being committed; a caller who is alone waits for nobody. Who is cancelled,
and what each then sees: caller first, until the group has its connection, and its ask is passed over and nothing
happens; group first, it goes on without a caller, who is told that the outcome is unknown.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from bdr.errors import (
    BinaryStorageError,
    CatalogNotMigrated,
    InstanceClosed,
    IoError,
    OutcomeUnknown,
    PermissionDenied,
    own_error,
)

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# Of one group; what is beyond it goes with the next.
_LARGEST = 1000
# No use to try each of a group by itself, whichever of them was sent.
_CONCERN_ALL = (CatalogNotMigrated, InstanceClosed, IoError, OutcomeUnknown, PermissionDenied)


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
        self._answer.set_exception(own_error(error, [] if self._key is None else [self._key], self._what))

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


class Groups(Generic[Item, Answer]):
    """Sends what was gathered, one group at a time.

    Args:
        commit: answers every ask that it is given, or leaves that to others.
    """

    def __init__(self, commit: Callable[[list[Ask[Item, Answer]]], Awaitable[None]]) -> None:
        self._commit = commit
        self._gathered: list[Ask[Item, Answer]] = []
        self._sending: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[None]] = set()

    def add(self, ask: Ask[Item, Answer]) -> None:
        """Let it go with the next group."""
        self._gathered.append(ask)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())

    @property
    def is_sending(self) -> bool:
        """Whether a group is under way, or about to be."""
        return self._sending is not None

    def take_back(self, wanted: Callable[[Item], bool]) -> list[Ask[Item, Answer]]:
        """Those that were gathered and have not gone yet, if `wanted`; they go with no group any more."""
        taken = [ask for ask in self._gathered if wanted(ask.item)]
        if taken:
            self._gathered = [ask for ask in self._gathered if not wanted(ask.item)]
        return taken

    def do_beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what must not keep the groups waiting."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def close(self) -> None:
        """Wait until everything that was gathered has been sent, and what is done beside is done."""
        while self._sending is not None:
            await asyncio.wait({self._sending})
        while self._beside:
            await asyncio.wait(self._beside)

    async def _send(self) -> None:
        try:
            while self._gathered:
                group, self._gathered = self._gathered[:_LARGEST], self._gathered[_LARGEST:]
                with breaking_off(group):
                    await self._commit(group)
                # Those who have just been answered may ask again at once, and go together.
                await asyncio.sleep(0)
        except BaseException as error:
            left, self._gathered = self._gathered, []
            for ask in left:
                ask.break_off(error)
            raise
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


def take_up(asks: list[Ask[Item, Answer]]) -> list[Item]:
    """What is to be sent now, without those whose callers were cancelled; from now on a caller cannot take it back."""
    asks[:] = [ask for ask in asks if not ask.is_over]
    for ask in asks:
        ask.sent = True
    return [ask.item for ask in asks]


def put_down(asks: Sequence[Ask[Item, Answer]]) -> None:
    """It did nothing, and will be sent again: until then a caller may take it back."""
    for ask in asks:
        ask.sent = False


def concerns_all(asks: Sequence[Ask[Item, Answer]], error: BinaryStorageError) -> bool:
    """Whether it is no use to try each of them by itself; otherwise one of them is at fault.

    What was not even sent is nobody's fault; a lock that is not to be had (Busy) is when it was.
    """
    return len(asks) <= 1 or not asks[0].sent or isinstance(error, _CONCERN_ALL)


def fail_all(asks: Sequence[Ask[Item, Answer]], error: BinaryStorageError) -> None:
    """Tell each of them."""
    for ask in asks:
        ask.fail(error)
