"""The demo's arguments, and the files that they mean."""

import argparse
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from scripts.demo_run import printable

MIB = 1 << 20
LONGEST_NAME = 1024
# PostgreSQL's own files, and some air.
ROOM = 300 * MIB

_DESCRIPTION = """\
Stores files in a catalog of its own, shares them between engine processes by reference, releases them, lets two
reapers delete them, and proves with SQL and a listing of the storage that every count was right and nothing is left.
PostgreSQL comes from a wheel; everything lies in a temporary folder (TMPDIR says where) that is removed at the end.
Your files are only read; below a folder, links to other folders are not followed, and what cannot be read is left out.
No configuration of bdr's is used, neither BDR_* variables nor a bdr.toml."""
_EPILOG = "Exit code: 0 all is well, 1 something was not as it must be, 2 wrong arguments, 130 or 143 interrupted."


@dataclass(frozen=True)
class Original:
    """A file to store, or a stream of that many bytes when it has no path."""

    name: str
    size: int
    path: Path | None = None


@dataclass
class Arguments:
    """What to store; with no files given, the demo makes some.

    Attributes:
        left_out: what lies below a given folder and cannot be read, a line each.
        stream_size: of the stream that goes with the demo's own files, in bytes.
    """

    files: list[Original] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    stream_size: int = 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"demo: {printable(message)} (--help tells more)", file=sys.stderr)
        sys.exit(2)


def parse_arguments(words: Sequence[str]) -> Arguments:
    """The files that the words mean; a wrong word ends the program with exit code 2 and one line that says why."""
    parser = _Parser(
        prog="demo",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="a file of yours, or a folder of them")
    parser.add_argument(
        "--stream-mib",
        type=int,
        metavar="N",
        help="without FILE: the size of the stream that is stored beside a document of each kind (default: 256)",
    )
    words_read = parser.parse_args(words)
    stream_mib = 256 if words_read.stream_mib is None else words_read.stream_mib
    if words_read.files and words_read.stream_mib is not None:
        parser.error("--stream-mib goes with the demo's own files, not with yours")
    if stream_mib < 0:
        parser.error(f"--stream-mib is {stream_mib}; it must not be negative")
    arguments = Arguments(stream_size=0 if words_read.files else stream_mib * MIB)
    try:
        for word in words_read.files:
            arguments.files += _originals(word, arguments.left_out)
        _require_room(sum(file.size for file in arguments.files) + arguments.stream_size)
    except OSError as error:
        parser.error(_reason(error))
    if words_read.files and not arguments.files:
        parser.error(f"there is no file that can be read in {', '.join(words_read.files)}")
    return arguments


def _originals(word: str, left_out: list[str]) -> Iterator[Original]:
    # For pathlib an empty word is the folder one stands in; most likely it is a variable that was never set.
    if not word or not Path(word).is_dir():
        yield _original(word, Path(word).name)
        return
    # Resolved, because the name of `.` would be empty.
    home = Path(word).resolve()
    for folder, folders, names in os.walk(home, onerror=lambda error: left_out.append(_reason(error))):
        folders.sort()
        for name in sorted(names):
            found = Path(folder, name)
            try:
                yield _original(str(found), str(found.relative_to(home.parent)))
            except OSError as error:
                left_out.append(_reason(error))


def _original(place: str, name: str) -> Original:
    status = os.stat(place)  # noqa: PTH116 - an empty place is one that does not exist here
    if not stat.S_ISREG(status.st_mode):
        raise OSError(None, "this is no regular file", place)
    if not os.access(place, os.R_OK):
        raise PermissionError(None, "this file may not be read", place)
    return Original(printable(name)[-LONGEST_NAME:], status.st_size, Path(place))


def _require_room(size: int) -> None:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size + ROOM > free:
        raise OSError(
            None,
            f"{size // MIB:,} MiB of files and {ROOM // MIB} MiB of database do not fit, {free // MIB:,} MiB are free; "
            "set TMPDIR to another folder",
            folder,
        )


def _reason(error: OSError) -> str:
    return printable(f"{error.filename or 'an empty name'}: {error.strerror}")
