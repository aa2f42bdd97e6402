"""Errors of the driver and the server become those of `bdr.errors` here, and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from bdr.errors import (
    BinaryStorageError,
    Busy,
    CatalogNotMigrated,
    CatalogUnavailable,
    ConfigError,
    InvalidArgument,
    IoError,
    OperationError,
    PermissionDenied,
    TransactionConflict,
)

# By SQLSTATE, else by its class (the first two characters).
_ERRORS: Final[dict[str, tuple[type[BinaryStorageError], str]]] = {
    "08": (CatalogUnavailable, "The connection to {where} was lost"),
    "22": (InvalidArgument, "{where} cannot hold a value"),
    "25006": (CatalogUnavailable, "{where} is read-only, as a standby is"),
    "25P03": (CatalogUnavailable, "{where} ended a transaction that was idle too long"),
    "28": (PermissionDenied, "{where} refused the user or password"),
    "3D000": (ConfigError, "The database does not exist at {where}; create it or correct the URL"),
    "3F000": (CatalogNotMigrated, "{where} has no catalog yet; run `bdr db upgrade`"),
    "40": (TransactionConflict, "The transaction lost against another one at {where}; roll it back and try it again"),
    "42501": (PermissionDenied, "{where} does not allow this user to do that"),
    "42P01": (CatalogNotMigrated, "{where} has no catalog yet, or an old one; run `bdr db upgrade`"),
    "53": (IoError, "{where} has run out of a resource"),
    "53300": (Busy, "{where} has no connection left"),
    "55P03": (Busy, "A lock was not to be had in time at {where}"),
    "57": (CatalogUnavailable, "{where} is shutting down or starting"),
    "57014": (Busy, "A statement took too long at {where} and was cancelled"),
    "58": (IoError, "{where} has trouble with its own files"),
}
# The server may have committed before it said these, or had no time to say more.
_ENDS_OF_SERVER: Final = ("57P01", "57P02", "57P03", "57P05", "40003")


def _sqlstate(error: BaseException) -> str | None:
    state = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
    return state if isinstance(state, str) else None


def is_lost(error: BaseException) -> bool:
    """Whether this says that the connection, or the answer, is gone."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or (_sqlstate(error) or "").startswith("08")
    if isinstance(error, asyncpg.InternalClientError):
        return True
    if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
        return _sqlstate(error) is None or (_sqlstate(error) or "").startswith("08")
    return isinstance(error, OSError) and not isinstance(error, BinaryStorageError)


def may_have_happened(error: Exception) -> bool:
    """Whether the server may have committed although this was raised while it was asked to."""
    state = _sqlstate(error)
    if state is not None and not is_lost(error):
        return state in _ENDS_OF_SERVER
    return is_lost(error) or (isinstance(error, DBAPIError) and not _is_unsent(error))


def _is_unsent(error: DBAPIError) -> bool:
    # A value that asyncpg itself cannot encode.
    return isinstance(error.driver_exception, asyncpg.DataError)


@contextmanager
def translated(where: str = "The database") -> Iterator[None]:
    """Turn errors of the driver into bdr's, for statements on a caller's own connection too."""
    try:
        yield
    except BinaryStorageError:
        raise
    except PoolTimeout as error:
        # Only of a session given as `connection=`: bdr's own pool is never asked for more than it has.
        raise Busy(f"The caller's own pool has no connection to {where} left; make it larger or wait.") from error
    except asyncpg.ClientConfigurationError as error:
        raise ConfigError(f"The database URL {where} cannot be used: {error}") from error
    except (DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise _translation(error, where) from error
    except OSError as error:
        raise CatalogUnavailable(f"{where} cannot be reached: {str(error) or 'no answer in time'}") from error


def _translation(error: Exception, where: str) -> BinaryStorageError:
    state = _sqlstate(error)
    message = str(getattr(error, "driver_exception", error)).partition("\n")[0]
    if state is None and isinstance(error, DBAPIError) and _is_unsent(error):
        return InvalidArgument(f"{where} cannot hold a value: {message}")
    if state is None:
        return CatalogUnavailable(f"The connection to {where} was lost: {message}")
    kind, sentence = _ERRORS.get(state) or _ERRORS.get(state[:2], (OperationError, "{where} refused a statement"))
    return kind(f"{sentence.format(where=where)}: {message} (SQLSTATE {state})")
