"""The one seam between OpenDAL's errors and those of bdr.

OpenDAL's exceptions share no base class and carry nothing but a text, and its open files raise OSError with that same
text; so the text is what is read: its first word is the kind, and the cause stands further down.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opendal import exceptions

from bdr.errors import (
    BinaryStorageError,
    ConfigError,
    Corrupt,
    FileNotFound,
    IoError,
    OpenDalError,
    OperationError,
    PermissionDenied,
    StorageFull,
    StorageUnavailable,
)

FAILURES: tuple[type[Exception], ...] = (
    OSError,
    *(found for found in vars(exceptions).values() if isinstance(found, type) and issubclass(found, Exception)),
)

_HEAD = re.compile(r"(?P<kind>[A-Za-z]+) \((?P<flag>[a-z]+)\) at (?P<where>[^\n]*)")
_SOURCE = re.compile(r"\n\nSource:\s*([^\n]+)")
_ERRNO = re.compile(r"\(os error (\d+)\)")
_STATUS = re.compile(r"Parts \{ status: (\d{3})")
_USERINFO = re.compile(r"://[^\s/]*@")
_LONGEST = 400

_BY_KIND: dict[str, type[BinaryStorageError]] = {
    "NotFound": FileNotFound,
    "PermissionDenied": PermissionDenied,
    "ConfigInvalid": ConfigError,
    "Unsupported": ConfigError,
    "RateLimited": StorageUnavailable,
    "RangeNotSatisfied": Corrupt,
    "ConditionNotMatch": OperationError,
    "AlreadyExists": OperationError,
    "Conflict": OperationError,
}
_BY_ERRNO: dict[int, type[BinaryStorageError]] = {
    errno.ENOENT: FileNotFound,
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP), ConfigError),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), PermissionDenied),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), StorageFull),
    **dict.fromkeys((errno.ESTALE, errno.ENODEV, errno.ENOTCONN, errno.EHOSTDOWN), StorageUnavailable),
    **dict.fromkeys((errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT), StorageUnavailable),
    **dict.fromkeys((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN), StorageUnavailable),
}
_BY_STATUS: dict[int, type[BinaryStorageError]] = {301: ConfigError, 401: PermissionDenied, 507: StorageFull}
_BY_TEXT: tuple[tuple[re.Pattern[str], type[BinaryStorageError]], ...] = (
    (re.compile(r"timeout reached"), StorageUnavailable),
    (re.compile(r"reader got too little data"), Corrupt),
    (re.compile(r'"NOAUTH"|"WRONGPASS"|"NOPERM"|authentication failed|load signing credential'), PermissionDenied),
    (re.compile(r'"OOM"|QuotaExceeded|StorageFull|InsufficientStorage'), StorageFull),
    (re.compile(r'"WRONGTYPE"'), OpenDalError),
)

_ADVICE: dict[type[BinaryStorageError], str] = {
    PermissionDenied: "check the credentials, and what this process may do there",
    ConfigError: "check the storage's settings",
    StorageUnavailable: "check that it runs, is mounted and can be reached",
    StorageFull: "make room there, or raise its limit",
    OperationError: "an object is there already, and a path is written only once",
    Corrupt: "the object is shorter than what was stored",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What an error's text says.

    Attributes:
        kind: OpenDAL's word, such as `NotFound`; empty when the error is the operating system's own.
        temporary: whether OpenDAL thinks that another try may help; on a local file system it often errs.
        errno: of the operating system, or None.
        status: of HTTP, or None.
        summary: one line for people, without passwords and backtraces.
        text: all of it, but for the backtrace.
    """

    kind: str
    temporary: bool
    errno: int | None
    status: int | None
    summary: str
    text: str


def read_failure(error: Exception) -> Failure:
    """Take an exception of OpenDAL, or an OSError, apart."""
    text = str(error).partition("\n\nBacktrace:")[0]
    head = _HEAD.match(text)
    code = error.errno if isinstance(error, OSError) and error.errno else _number(_ERRNO, text)
    return Failure(
        kind=head["kind"] if head else "",
        temporary=bool(head) and "(temporary)" in text,
        errno=code,
        status=_number(_STATUS, text),
        summary=_summary(head, text),
        text=text,
    )


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return int(found[1]) if found else None


def _summary(head: re.Match[str] | None, text: str) -> str:
    if head is None:
        return text[:_LONGEST]
    source = _SOURCE.search(text)
    said = f"{head['kind']}: {head['where']}" + (f": {source[1]}" if source else "")
    return _USERINFO.sub("://", said)[:_LONGEST]


def error_class(failure: Failure, *, local: bool) -> type[BinaryStorageError]:
    """The class for a failure; `local` is for a file system, where only the operating system's number is believed."""
    by_number = _BY_ERRNO.get(failure.errno or 0) or _BY_STATUS.get(failure.status or 0)
    found = _BY_KIND.get(failure.kind) or by_number or _by_text(failure.text)
    if found is not None:
        return found
    if local:
        return IoError
    return StorageUnavailable if failure.temporary else OpenDalError


def _by_text(text: str) -> type[BinaryStorageError] | None:
    return next((found for pattern, found in _BY_TEXT if pattern.search(text)), None)


@dataclass(frozen=True, slots=True)
class Translator:
    """Turns what OpenDAL and the operating system raise into the errors of bdr, for one storage.

    Attributes:
        name: the storage's name.
        location: where it lies, without secrets.
        local: whether it is a file system.
    """

    name: str
    location: str
    local: bool

    @contextmanager
    def __call__(self, action: str, path: str = "") -> Iterator[None]:
        """For the block: `action` is a verb such as `read`."""
        try:
            yield
        except FAILURES as error:
            # Not chained: the original's text goes on with a backtrace without names, and may hold a URL's password.
            raise self.error(action, path, error) from None

    def error(self, action: str, path: str, error: Exception) -> BinaryStorageError:
        """The error of bdr for `error`, which `action` on `path` raised."""
        failure = read_failure(error)
        found = error_class(failure, local=self.local)
        advice = f" ({_ADVICE[found]})" if found in _ADVICE else ""
        return found(f"could not {action} {path or 'it'} in {self}: {failure.summary}{advice}")

    def __str__(self) -> str:
        return f"storage {self.name!r} at {self.location}"
