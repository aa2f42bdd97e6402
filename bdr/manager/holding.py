"""How a file is held and let go, as callers say it; and what it means that one holds nothing."""

import re
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import count
from bdr.catalog.count import Counted
from bdr.catalog.holder import MAX_HOLDER_LENGTH, acquire, let_go
from bdr.errors import InvalidArgument, NotReferenced
from bdr.settings.values import LONGEST

_FORBIDDEN = re.compile(r"[\x00\ud800-\udfff]")


class Take(Protocol):
    """How the catalog counts many at once."""

    def __call__(
        self, connection: AsyncConnection, keys: Sequence[str], *, skip_locked: bool = False
    ) -> Awaitable[Mapping[str, Counted]]: ...


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a file more, or one less.

    Attributes:
        by: 1 or -1.
        holder: by whose name; None is without.
    """

    by: int
    take: Take
    holder: str | None = None

    @property
    def what(self) -> str:
        """What an error calls it."""
        return "Registering" if self.by > 0 else "Releasing"


_ANONYMOUS_MORE: Final = Use(1, count.register)
_ANONYMOUS_LESS: Final = Use(-1, count.release)


def registering(holder: str | None, lease: timedelta | None, bound_to: UUID | None) -> Use:
    """One use more; InvalidArgument when what is said of it cannot be."""
    if holder is not None:
        take = partial(acquire, holder=checked_holder(holder), lease=checked_lease(lease), instance_id=bound_to)
        return Use(1, take, holder)
    if lease is not None or bound_to is not None:
        raise InvalidArgument("A lease, and being bound to an instance, belong to a holder: give `holder` too.")
    return _ANONYMOUS_MORE


def releasing(holder: str | None) -> Use:
    """One use less."""
    if holder is not None:
        return Use(-1, partial(let_go, holder=checked_holder(holder)), holder)
    return _ANONYMOUS_LESS


def checked_holder(holder: str) -> str:
    """The name itself; InvalidArgument when PostgreSQL cannot hold it."""
    if not 1 <= len(holder) <= MAX_HOLDER_LENGTH or _FORBIDDEN.search(holder):
        shown = ascii(holder if len(holder) <= MAX_HOLDER_LENGTH else f"{holder[:MAX_HOLDER_LENGTH]}...")
        raise InvalidArgument(
            f"{shown} cannot name a holder: 1 to {MAX_HOLDER_LENGTH} characters of any kind but NUL, such as "
            "'execution-42/node-3'."
        )
    return holder


def checked_lease(lease: timedelta | None) -> timedelta | None:
    """The lease itself; InvalidArgument when it is over before it begins, or longer than 1000 years."""
    if lease is not None and not timedelta(0) < lease <= LONGEST:
        raise InvalidArgument(f"A lease of {lease} is out of range: it is longer than 0, and at most 1000 years.")
    return lease


def not_held(key: str, holder: str | None, counted: Counted) -> NotReferenced:
    """The error for a release of what is not held that way."""
    if holder is not None:
        return NotReferenced(f"{holder!r} does not hold the reference {key!r}; there is nothing to release.")
    if counted.before:
        return NotReferenced(
            f"The {counted.before} uses of the reference {key!r} that are left are by name; release them by `holder`."
        )
    return NotReferenced(f"The reference {key!r} is not held any more; there is nothing to release.")
