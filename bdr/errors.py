"""The errors of bdr: one tree, each also the builtin a caller would already catch.

Driver and OpenDAL errors become these at one seam each: `bdr.catalog.database` and `bdr.storage.translate`.
"""

import asyncio
from collections.abc import Sequence


class BinaryStorageError(Exception):
    """Base of every error that bdr raises on purpose."""


class ConfigError(BinaryStorageError, ValueError):
    """A setting, a URL or a storage's configuration is wrong; nothing was started."""


class CatalogNotMigrated(ConfigError):
    """The catalog's schema is absent or older than this version of bdr needs: run `bdr db upgrade`."""


class CatalogAhead(ConfigError):
    """The catalog's schema was made by a newer bdr than this one."""


class StorageMismatch(ConfigError):
    """A storage is not the place that the catalog knows by this name."""


class InvalidArgument(BinaryStorageError, ValueError):
    """An argument can never be right: a malformed key, a negative range, a size that lies."""


class OperationError(BinaryStorageError, RuntimeError):
    """An operation could not be done; nothing was changed."""


class NotReferenced(OperationError):
    """A release of a reference whose count is zero already; the count stays zero."""


class Pinned(OperationError):
    """The reference is pinned; deleting it needs `force=True`."""


class InstanceClosed(OperationError):
    """The engine instance was closed, or declared dead by the others, and serves no more."""


class Busy(OperationError, TimeoutError):
    """A connection or a row's lock was not to be had within the configured time; nothing was changed."""


class TooMuch(OperationError):
    """A plan is for more than a repair may change unasked; nothing was changed."""


class TransactionConflict(OperationError):
    """The caller's transaction lost against another one; roll it back and try it again."""


class FileNotFound(BinaryStorageError, FileNotFoundError):
    """There is no reference under this key."""


class Gone(FileNotFound):
    """The reference was there; it was deleted or has expired. The sentence says when, by which rule and by whom.

    That is known as long as the operation's record is kept.
    """


class StillStoring(FileNotFound):
    """The file is being stored just now; its reference is not there yet."""


class Lost(FileNotFound):
    """The catalog holds the reference, but its object is not in the storage."""


class PermissionDenied(BinaryStorageError, PermissionError):
    """The storage or the database refused access."""


class IoError(BinaryStorageError, OSError):
    """Reading or writing failed."""


class Corrupt(IoError):
    """The bytes in the storage are not those that were stored; they are not returned."""


class StorageUnavailable(IoError, ConnectionError):
    """A storage cannot be reached, is not mounted, or did not answer in time."""


class StorageFull(IoError):
    """A storage has no space left."""


class CatalogUnavailable(IoError, ConnectionError):
    """The database cannot be reached."""


class OpenDalError(BinaryStorageError, RuntimeError):
    """OpenDAL failed in a way that none of the other errors describes."""


_KEYS_SHOWN = 3


class OutcomeUnknown(BinaryStorageError):
    """The answer to a commit was lost: what was asked happened wholly or not at all.

    Attributes:
        keys: the file keys it was about, as far as they are known. Ask for their state before doing anything again.
        cancelled: whether nobody waited for the answer, because the caller was cancelled meanwhile.
    """

    def __init__(self, keys: Sequence[str], what: str = "The operation", about: str | None = None) -> None:
        self.keys = tuple(keys)
        hidden = len(self.keys) - _KEYS_SHOWN
        shown = ", ".join(self.keys[:_KEYS_SHOWN]) + (f" and {hidden} more" if hidden > 0 else "")
        super().__init__(
            f"{what} on {about or shown or 'no key'} was sent to the database and its answer lost: it happened wholly "
            "or not at all. Look at the reference before repeating it."
        )

    @property
    def cancelled(self) -> bool:
        return isinstance(self.__cause__, asyncio.CancelledError)


def own_error(error: BinaryStorageError, keys: Sequence[str], what: str) -> BinaryStorageError:
    """The error of one caller, of one that is that of others too: two must not raise one object."""
    if isinstance(error, OutcomeUnknown):
        own: BinaryStorageError = OutcomeUnknown(keys, what)
        own.__cause__ = error.__cause__
    else:
        own = type(error)(str(error))
        own.__cause__ = error
    return own
