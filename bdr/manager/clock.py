"""How long something has been going on in this process; what decides is the database's clock, never this one."""

import time
from typing import Final

# Goes on while the machine sleeps, as the deadlines in the catalog do. (Linux; elsewhere the other one does.)
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def seconds() -> float:
    """Seconds since some instant; only differences mean anything."""
    return time.clock_gettime(_CLOCK)
