"""Named points in bdr's own code at which a test kills the process; in normal use they are comments and nothing else.

A line `# fail point: NAME` stands at a boundary between two steps. `install()` makes the import of bdr read each such
line as a call; without it the line is what it looks like.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType

PACKAGE = Path(__file__).parents[2] / "bdr"
_POINT = re.compile(r"^(?P<indent> *)# fail point: (?P<name>[a-z][a-z._-]*)$", re.MULTILINE)

# Which point to die at, and how many times it is passed before.
armed: str | None = None
passes = 0
# The points this process has reached, in order.
reached: list[str] = []


def hit(name: str) -> None:
    """What a fail point does: note that it was reached, and die there if it is the one."""
    global passes  # noqa: PLW0603 - the process is killed by it, and has one of it
    reached.append(name)
    if name == armed:
        if passes == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        passes -= 1


def all_points() -> list[str]:
    """The names of all points in bdr's source, as often as they stand there."""
    return [found["name"] for path in sorted(PACKAGE.rglob("*.py")) for found in _POINT.finditer(path.read_text())]


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        # Never from the cache of compiled files, and never into it: there the points are comments.
        path = self.get_filename(fullname)
        source = self.get_data(path).decode()
        call = rf'\g<indent>__import__("{__name__}", fromlist=["hit"]).hit("\g<name>")'
        return compile(_POINT.sub(call, source), path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != PACKAGE.name:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path or [str(PACKAGE.parent)])
        if found is None or found.origin is None:
            return found
        return importlib.util.spec_from_file_location(
            fullname,
            found.origin,
            loader=_Loader(fullname, found.origin),
            submodule_search_locations=found.submodule_search_locations,
        )


def install() -> None:
    """To be called before bdr is imported for the first time in this process."""
    loaded = [name for name in sys.modules if name.partition(".")[0] == PACKAGE.name]
    if loaded:
        raise RuntimeError(f"{loaded[0]} was imported before its fail points were installed")
    sys.meta_path.insert(0, _Finder())


def names() -> Iterator[str]:
    """Every name once, in the order of the source."""
    yield from dict.fromkeys(all_points())
