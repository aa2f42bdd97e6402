"""`bdr get`: a stored file, streamed to standard output or into a file that is there only when it is complete."""

import codecs
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bdr.cli.options import Common, Given, Key
from bdr.cli.progress import transfer
from bdr.errors import BinaryStorageError, IoError, OperationError
from bdr.threads import in_daemon_thread

STDOUT = "-"
# What steers a terminal: every control character but tab and the ends of lines.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

Write = Callable[[bytes], object]


async def get(
    key: Key,
    /,
    *,
    output: Annotated[str | None, Parameter(name=("--output", "-o"))] = None,
    force: bool = False,
    common: Given,
) -> None:
    """Write a stored file to standard output or into a file.

    The bytes are compared with the checksum that was recorded. A file gets its
    name when it is complete, and one that is there already is left alone.

    For example:
        bdr get 06abcdefghijklmnopqrstuvwx.pdf -o report.pdf
        bdr get 06abcdefghijklmnopqrstuvwx.tar | tar x

    Args:
        output: The file to write, or - for standard output even where that is a terminal.
        force: Replace a file that is there.
    """
    to_stdout = output is None or output == STDOUT
    destination = _stdout(text_only=output is None) if to_stdout else _file(str(output), force=force)
    await _copy(key, destination, common, visible=not (to_stdout and sys.stdout.isatty()))


async def _copy(key: str, destination: AbstractContextManager[Write], common: Common, *, visible: bool) -> None:
    from bdr.connect import connect

    with destination as write:
        async with connect(settings=common.settings_to_connect()) as binary:
            with transfer(key, visible=visible) as on_progress:
                async with binary.open(key, on_progress=on_progress) as reader:
                    async for piece in reader:
                        await in_daemon_thread(partial(write, piece))


@contextmanager
def _stdout(*, text_only: bool) -> Iterator[Write]:
    write = partial(_write_all, sys.stdout.fileno())
    yield _TextOnly(write) if text_only and sys.stdout.isatty() else write


def _write_all(descriptor: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise IoError(f"Standard output cannot be written: {error.strerror}.") from error


class _TextOnly:
    """Passes on what a terminal can show and refuses everything else."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def __call__(self, data: bytes) -> None:
        if not self._is_text(data):
            raise OperationError(
                "This is no plain text, and could garble a terminal: write it into a file with -o FILE, or all the "
                "same with -o -."
            )
        self._write(data)

    def _is_text(self, data: bytes) -> bool:
        try:
            return _CONTROL.search(self._decoder.decode(data)) is None
        except UnicodeDecodeError:
            return False


@contextmanager
def _file(name: str, *, force: bool) -> Iterator[Write]:
    # A link is followed: what it leads to is written, as by a shell.
    target = Path(os.path.realpath(name))
    with _told_of(name):
        if target.is_dir():
            raise OperationError(f"{name} is a folder; name the file to write.")
        if target.exists() and not target.is_file():
            # A device or a named pipe: there is nothing to protect, and nothing that could be replaced.
            with target.open("wb") as file:
                yield file.write
            return
        if target.exists() and not force:
            raise FileExistsError
        yield from _moved_when_complete(target, force=force)


def _moved_when_complete(target: Path, *, force: bool) -> Iterator[Write]:
    part = target.with_name(f".bdr-{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            yield file.write
        if not force:
            # A rename alone would replace a file that has come up meanwhile.
            target.touch(exist_ok=False)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    try:
        yield
    except BinaryStorageError:
        raise
    except FileExistsError as error:
        raise OperationError(f"{name} is there already; --force replaces it.") from error
    except OSError as error:
        raise IoError(f"{name} cannot be written: {error.strerror or error}.") from error
