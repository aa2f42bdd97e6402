"""Groups: what many callers of one engine ask for at once is sent together, and each gets its own answer.

A group is gathered while the ones before are being committed; a caller who is alone waits for nobody. Who is cancelled,
and what each then sees: caller first, until the group has its connection, and its ask is passed over and nothing
happens; group first, it goes on without a caller, who is told that the outcome is unknown.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

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
# So many are worth a group of their own beside another.
WORTH = 16
# No use to try each of a group by itself, whichever of them was sent.
_CONCERN_ALL = (CatalogNotMigrated, InstanceClosed, IoError, OutcomeUnknown, PermissionDenied)


class Ask(Generic[Item, Answer]):
    """What one caller asks for, and where its answer goes.

    Attributes:
        key: whose answer it is: of a group under way and one beside it, only one may have it. Empty is nobody's.
        sent: the server may know of it.
    """

    __slots__ = ("_answer", "_what", "item", "key", "sent")

    def __init__(self, item: Item, key: str, what: str) -> None:
        self.item = item
        self.sent = False
        self.key = key
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
        self._answer.set_exception(own_error(error, [self.key] if self.key else [], self._what))

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
            if self.sent and self.key:
                raise OutcomeUnknown([self.key], self._what) from cancelled
            raise


class Groups(Generic[Item, Answer]):
    """Sends what was gathered.

    Args:
        commit: answers every ask that it is given, or leaves that to others.
        at_once: how many groups are under way at most. While the database is busy with one, the answers of another are
            told to its callers. What has the key of one that is under way is not sent beside it, but after it.
    """

    def __init__(self, commit: Callable[[list[Ask[Item, Answer]]], Awaitable[None]], at_once: int = 1) -> None:
        self._commit = commit
        self._at_once = at_once
        self._gathered: list[Ask[Item, Answer]] = []
        # How many of them might be sent now.
        self._free = 0
        self._under_way = 0
        self._keys: set[str] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self._beside: set[asyncio.Task[None]] = set()

    def add(self, ask: Ask[Item, Answer]) -> None:
        """Let it go with the next group."""
        self._gathered.append(ask)
        if ask.key not in self._keys:
            self._free += 1
        if not self._sending or self._is_worth_another():
            self._send_another()

    @property
    def is_sending(self) -> bool:
        """Whether a group is under way, or about to be."""
        return bool(self._sending)

    @property
    def sending(self) -> frozenset[asyncio.Task[None]]:
        """What sends the groups under way, and ends when nothing is left to send."""
        return frozenset(self._sending)

    def take_back(self, keys: Collection[str]) -> list[Ask[Item, Answer]]:
        """Those that were gathered for these keys and have not gone yet; they go with no group any more."""
        taken = [ask for ask in self._gathered if ask.key in keys]
        if taken:
            self._gathered = [ask for ask in self._gathered if ask.key not in keys]
        return taken

    def do_beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what must not keep the groups waiting."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def close(self) -> None:
        """Wait until everything that was gathered has been sent, and what is done beside is done."""
        while self._sending:
            await asyncio.wait(self._sending)
        while self._beside:
            await asyncio.wait(self._beside)

    def _is_worth_another(self) -> bool:
        return self._free >= WORTH and len(self._sending) < self._at_once

    def _send_another(self) -> None:
        task = asyncio.create_task(self._send())
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self) -> None:
        try:
            while group := self._next():
                await self._send_group(group)
                # Those who have just been answered may ask again at once, and go together.
                await asyncio.sleep(0)
        except BaseException as error:
            left, self._gathered = self._gathered, []
            for ask in left:
                ask.break_off(error)
            raise
        finally:
            # Not only when the task is done: who asks before that must not think that somebody will send it.
            self._sending.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _send_group(self, group: list[Ask[Item, Answer]]) -> None:
        # Before it is committed: who is cancelled is taken out of it.
        keys, number = _keys(group), len(group)
        self._keys |= keys
        self._under_way += number
        try:
            with breaking_off(group):
                await self._commit(group)
        finally:
            self._keys -= keys
            self._under_way -= number

    def _next(self) -> list[Ask[Item, Answer]]:
        """What goes now; beside another group only if there is enough for it, and no more than makes them equal."""
        free = [ask for ask in self._gathered if ask.key not in self._keys]
        if self._under_way and len(free) < WORTH:
            # It goes after that group.
            return []
        group = free[: self._share(free)]
        # In the order in which they came: who is passed by because of others' keys would else fall behind each time.
        taken = set(map(id, group))
        self._gathered = [ask for ask in self._gathered if id(ask) not in taken]
        keys = _keys(group)
        self._free = sum(ask.key not in keys for ask in free[len(group) :])
        if self._is_worth_another():
            self._send_another()
        return group

    def _share(self, free: Sequence[Ask[Item, Answer]]) -> int:
        if self._at_once == 1:
            return _LARGEST
        half = min((len(free) + self._under_way + 1) // 2, _LARGEST)
        if self._under_way:
            return half
        keys = _keys(free[:half])
        return half if sum(ask.key not in keys for ask in free[half:]) >= WORTH else _LARGEST


def _keys(asks: Sequence[Ask[Item, Answer]]) -> set[str]:
    return {ask.key for ask in asks if ask.key}


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
