"""Named holders as callers give them, checked; and what it means that one holds nothing."""

import re
from datetime import timedelta

from bdr.catalog.count import Counted
from bdr.catalog.holder import MAX_HOLDER_LENGTH
from bdr.errors import InvalidArgument, NotReferenced
from bdr.settings.values import LONGEST

_FORBIDDEN = re.compile(r"[\x00\ud800-\udfff]")


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
