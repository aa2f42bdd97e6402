"""OpenDAL's threads: not usable after a fork, and not to be cut off at interpreter exit."""

import atexit
import os
import time

from bdr.errors import ConfigError

_LAST_THREADS = 0.05


class _Runtime:
    """The Rust runtime of this process, shared by all operators."""

    def __init__(self) -> None:
        self._pid: int | None = None

    def start(self) -> None:
        """To be called before an operator is built; ConfigError in a child of a process that built one before."""
        if self._pid is None:
            # An interpreter that exits just after the last operation aborts, because a thread of the runtime still
            # wants to tell Python of it; measured on 3.11 to 3.13, and gone with this wait.
            atexit.register(time.sleep, _LAST_THREADS)
            self._pid = os.getpid()
        self.check()

    def check(self) -> None:
        """ConfigError where every call would hang: in a process forked after the runtime had started."""
        if self._pid != os.getpid():
            raise ConfigError(
                "this process was forked from one that had opened a storage, and storages cannot work in it: "
                "start it with the 'spawn' or 'forkserver' method, or open storages only after the fork"
            )


RUNTIME = _Runtime()
