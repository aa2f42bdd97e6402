"""What became of each item of a call that is about many."""

from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from bdr.errors import BinaryStorageError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ItemResult(Generic[T]):
    """What became of one item.

    Attributes:
        key: the file key that it was about; None for a store that has none.
        value: what the verb for one item gives back.
        error: what the verb for one item raises; None when it was done.
    """

    key: str | None
    value: T | None = None
    error: BinaryStorageError | None = None

    def result(self) -> T:
        """The value; raises the error when there is one."""
        if self.error is not None:
            raise self.error
        return cast("T", self.value)


class BatchResult(tuple[ItemResult[T], ...]):
    """A result for each item, in the order in which the items were given."""

    __slots__ = ()

    @property
    def failed(self) -> list[ItemResult[T]]:
        """Those that have an error."""
        return [one for one in self if one.error is not None]

    def results(self) -> list[T]:
        """All values; raises an ExceptionGroup of all errors when there are any, what was done stays done."""
        errors = [one.error for one in self if one.error is not None]
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {len(self)} failed", errors)
        return [one.result() for one in self]
