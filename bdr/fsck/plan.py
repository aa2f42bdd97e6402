"""The plan: a file of JSON lines, written as a check goes on, that a repair then works through.

It begins with a header. The findings of a part come before the line that says that the part is done; only that line is
waited for until it is on the disk. So whatever ends the process, the file is good up to its last such line, and what
comes after it belongs to a part that is begun again.
"""

import fcntl
import logging
import os
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import Field, TypeAdapter, ValidationError

from bdr.errors import InvalidArgument, IoError
from bdr.fsck.findings import Examined, Finding, FindingKind, FsckReport, Line, Place, Unknown
from bdr.storage.durable import sync_folder

logger = logging.getLogger(__name__)


class Header(Line):
    """What the plan is about."""

    line: Literal["header"] = "header"
    format: Literal[1] = 1
    catalog_id: uuid.UUID
    begun_at: datetime
    checksum: bool
    places: dict[str, Place]


class Done(Line):
    """A part was examined; `unknown` says what of it could not be told all the same."""

    line: Literal["done"] = "done"
    storage: str
    part: str
    examined: Examined
    unknown: str | None = None


class Finished(Line):
    """The check came to its end."""

    line: Literal["finished"] = "finished"
    finished_at: datetime


AnyLine = Header | Done | Finding | Unknown | Finished
_LINE: TypeAdapter[AnyLine] = TypeAdapter(Annotated[AnyLine, Field(discriminator="line")])


class PlanWriter:
    """A plan being written; nobody else writes it meanwhile.

    Attributes:
        done: parts that need no second look, by storage and name.
        bytes_done: of the blobs in them.
    """

    def __init__(self, path: Path, file: BinaryIO, header: Header) -> None:
        self.header = header
        self.done: set[tuple[str, str]] = set()
        self.bytes_done = 0
        self._path = path
        self._file = file
        self._end = 0

    def note(self, line: Header | Done | Unknown | Finished, end: int) -> None:
        """The line stands in the file, which is good up to `end`."""
        self._end = end
        if isinstance(line, Done):
            self.done.add((line.storage, line.part))
            self.bytes_done += line.examined.bytes if line.storage in self.header.places else 0

    def add(self, finding: Finding) -> None:
        """A finding of the part that is under way."""
        with _told(self._path, "written"):
            self._file.write(_written(finding))

    def commit(self, line: Header | Done | Unknown | Finished) -> None:
        """Make the line durable, and the findings before it."""
        with _told(self._path, "written"):
            self._file.write(_written(line))
            self._file.flush()
            os.fsync(self._file.fileno())
            self.note(line, self._file.tell())

    def rollback(self) -> None:
        """Forget the findings of the part that is under way."""
        with _told(self._path, "written"):
            self._file.seek(self._end)
            self._file.truncate()

    def close(self) -> None:
        """Let others have the file."""
        self._file.close()


def new_plan(path: Path, header: Header) -> PlanWriter:
    """Begin a plan; InvalidArgument when the file is there already or cannot be made."""
    with _told(path, "written"):
        try:
            file = path.open("xb")
        except FileExistsError:
            raise InvalidArgument(f"There is a file {path} already; resume that plan, or give another name.") from None
        except FileNotFoundError:
            raise InvalidArgument(f"The plan {path} cannot be written: there is no folder {path.parent}.") from None
        _lock(path, file)
        plan = PlanWriter(path, file, header)
        plan.commit(header)
        sync_folder(path.absolute().parent)
    return plan


def reopened_plan(path: Path) -> PlanWriter:
    """Go on with a plan: what comes after the last line that was made durable is cut off."""
    with _told(path, "read"):
        file = path.open("r+b")
        _lock(path, file)
        plan: PlanWriter | None = None
        end = 0
        for raw in file:
            line = _parsed(raw)
            if plan is None and isinstance(line, Header):
                plan = PlanWriter(path, file, line)
            if line is None or plan is None:
                break
            end += len(raw)
            if not isinstance(line, Finding):
                plan.note(line, end)
        if plan is None:
            file.close()
            raise InvalidArgument(f"{path} is no plan of fsck: it does not begin with a header.")
        plan.rollback()
    return plan


def read_plan(path: Path) -> Iterator[AnyLine]:
    """The lines of a plan, without the half one that a process may have left at the end.

    InvalidArgument when a line before the end is none of a plan's.
    """
    with _told(path, "read"), path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = _parsed(raw)
            if line is None and not raw.endswith(b"\n"):
                return
            if line is None or (number == 1) != isinstance(line, Header):
                raise InvalidArgument(f"{path} is no plan of fsck, or was changed: its line {number} is not right.")
            yield line


def summary(path: Path) -> FsckReport:
    """What a plan says, finished or not; memory does not depend on its length."""
    lines = read_plan(path)
    header = next(lines, None)
    if not isinstance(header, Header):
        raise InvalidArgument(f"{path} is no plan of fsck: it is empty.")
    report = FsckReport.model_validate(header.model_dump(exclude={"line", "format"}))
    unknown: dict[tuple[str, str], str] = {}
    pending: Counter[FindingKind] = Counter()
    size = 0
    for line in lines:
        match line:
            case Finding():
                pending[line.kind] += 1
                size += line.size or 0
            case Done():
                report.add(line.storage, line.examined, pending, size)
                pending, size = Counter(), 0
                unknown.pop((line.storage, line.part), None)
                if line.unknown is not None:
                    unknown[line.storage, line.part] = line.unknown
            case Unknown():
                unknown |= {(line.storage, part): line.reason for part in line.parts}
        report.finished = isinstance(line, Finished)
    report.unknown = _grouped(unknown)
    return report


def _grouped(unknown: dict[tuple[str, str], str]) -> list[Unknown]:
    parts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (storage, part), reason in sorted(unknown.items()):
        parts[storage, reason].append(part)
    return [Unknown(storage=storage, parts=names, reason=reason) for (storage, reason), names in parts.items()]


def _written(line: AnyLine) -> bytes:
    return line.model_dump_json(exclude_none=True).encode() + b"\n"


def _parsed(raw: bytes) -> AnyLine | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        return _LINE.validate_json(raw)
    except ValidationError:
        return None


def _lock(path: Path, file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InvalidArgument(f"The plan {path} is being written by a check that is under way.") from None


@contextmanager
def _told(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except InvalidArgument:
        raise
    except FileNotFoundError:
        raise InvalidArgument(f"There is no plan {path}.") from None
    except OSError as error:
        raise IoError(f"The plan {path} cannot be {done}: {error.strerror}") from error
