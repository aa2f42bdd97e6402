"""Which paths a storage takes: only those that every service keeps exactly as they are."""

import re

from bdr.errors import InvalidArgument

MARKER_PATH = ".bdr-storage"
LONGEST_PATH = 1024
_SEGMENT = r"[A-Za-z0-9._-]{1,255}"
_PATH = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")


def checked_path(path: str) -> str:
    """`path` itself, if it is an object's path; else InvalidArgument.

    Services strip blanks, merge slashes and resolve dots, each in its own way, so that two paths could be one object
    or lie outside the root; none of that can happen to what passes here.
    """
    dots = {".", ".."}.intersection(path.split("/"))
    if dots or len(path) > LONGEST_PATH or not _PATH.fullmatch(path):
        raise InvalidArgument(
            f"{path[:80]!r} is no object's path: use names of A-Z a-z 0-9 . _ - (at most 255 characters, not '.' or "
            f"'..') with one '/' between them, at most {LONGEST_PATH} characters in all"
        )
    if path == MARKER_PATH:
        raise InvalidArgument(f"{MARKER_PATH!r} is the storage's own marker, not an object's path")
    return path
