"""Store: reserve a row, write the object, publish both, or leave everything to the reaper with its row."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import blob, operation, reference
from bdr.catalog.blob import PENDING, Reservation
from bdr.catalog.database import translated
from bdr.catalog.operation import Record
from bdr.catalog.publication import Publication
from bdr.catalog.reference import Location
from bdr.catalog.turns import ahead
from bdr.errors import BinaryStorageError, CatalogUnavailable, OperationError, OutcomeUnknown, TransactionConflict
from bdr.manager.engine import Engine
from bdr.manager.operations import RunningOperation, status_of, text_of
from bdr.manager.publishing import Publishing
from bdr.manager.reserving import Reserving
from bdr.progress import OperationStatus
from bdr.storage.protocol import BinaryDataStorage, StoredObject

logger = logging.getLogger(__name__)

Describe = Callable[[StoredObject], dict[str, Any]]


@dataclass
class Upload:
    """One upload under way.

    Attributes:
        grace: how long its row outlives it when it fails: as long as what it wrote may still land.
        renewed_at: when its deadline was last pushed on, on this process's monotonic clock.
        locked: the caller's transaction holds the row locked; no reaper takes it, and nobody else can change it.
        lost: a reaper claimed its row; nothing of it will be published.
    """

    reservation: Reservation
    file_key: str
    grace: timedelta
    renewed_at: float
    locked: bool = False
    lost: bool = False


class Ending(Enum):
    """What a failed upload turned out to be."""

    PUBLISHED = "published"
    OWNED = "owned"
    UNDECIDED = "undecided"


class Uploads:
    """The uploads of this instance."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lease = engine.settings.upload.lease
        self._grace = engine.settings.reaper.write_grace
        self._under_way: dict[uuid.UUID, Upload] = {}
        self.reserving = Reserving(engine)
        self.publishing = Publishing(engine.database, engine.settings.database.pool_size // 2)

    async def run(
        self,
        file_key: str,
        write: Callable[[BinaryDataStorage, str, Upload], Awaitable[StoredObject]],
        describe: Describe,
        running: RunningOperation,
        connection: AsyncConnection | None,
    ) -> dict[str, Any]:
        """Reserve, `write`, publish; gives back the row of the reference.

        A write is never tried again: a first one that timed out may still land on the path.
        """
        upload = await self._reserve(file_key)
        # fail point: store.reserved
        blob_id = upload.reservation.blob_id
        self._under_way[blob_id] = upload
        row: dict[str, Any] = {}
        try:
            if connection is not None:
                await _lock(upload, connection)
            storage = self._engine.storage(upload.reservation.storage_name)
            upload.grace = self._grace
            stored = await write(storage, upload.reservation.object_path, upload)
            # fail point: store.written
            row = describe(stored) | {"file_key": file_key, "blob_id": blob_id}
            await self._publish(upload, row, stored, running, connection)
            # fail point: store.published
        except BaseException as error:
            if not await self._is_published(upload, error, running):
                raise
        finally:
            del self._under_way[blob_id]
        return row

    async def renew(self) -> None:
        """Push on the deadlines of uploads that have used up half of theirs; those that were claimed must stop.

        Reservations that nobody used are given back by then.

        Renewal and claim need the row's lock. A renewal that is first makes the reaper skip the row; one that waited
        finds it `deleting`, and the upload learns of it at its next chunk or, at the latest, when it would publish.
        """
        await self._renew_aging()
        await self.reserving.give_back_old()

    async def _renew_aging(self) -> None:
        due = time.monotonic() - self._lease.total_seconds() / 2
        # A row that a caller's transaction holds locked needs no renewal, and would only make us wait.
        aging = {
            blob_id: upload
            for blob_id, upload in self._under_way.items()
            if upload.renewed_at < due and not upload.locked
        }
        if not aging:
            return
        started = time.monotonic()
        renewed = await self._engine.database.write(lambda own: blob.renew(own, list(aging), self._lease))
        for blob_id, upload in aging.items():
            upload.renewed_at = started
            upload.lost = blob_id not in renewed

    async def _reserve(self, file_key: str) -> Upload:
        await self._engine.require_verified(self._engine.default_storage)
        reserved = await self.reserving.reserve()
        # As long as nothing is written, nothing can land late.
        renewed_at = time.monotonic() - reserved.age
        return Upload(reserved.reservation, file_key, grace=timedelta(0), renewed_at=renewed_at)

    async def _publish(
        self,
        upload: Upload,
        row: dict[str, Any],
        stored: StoredObject,
        running: RunningOperation,
        connection: AsyncConnection | None,
    ) -> None:
        record = running.record(OperationStatus.SUCCEEDED)
        if connection is None:
            mark = self._engine.locations.mark()
            published = await self.publishing.publish(Publication(row, stored.size, stored.checksum, record))
            if published:
                self._engine.locations.put(upload.file_key, _location(upload.reservation, stored), mark)
        else:
            with translated():
                published = await _publish_in(connection, row, stored, record)
        if not published:
            raise OperationError(
                f"The upload took longer than its deadline ({self._lease}) and a reaper has claimed it; store the file "
                "again, or configure a longer upload lease."
            )

    async def _is_published(self, upload: Upload, error: BaseException, running: RunningOperation) -> bool:
        """Whether an upload that ended with `error` is there all the same, and its caller still waits for the key.

        Raises what `error` turns into once the catalog has told that nothing was committed.
        """
        failure = _when_unpublished(error)
        record = running.record(status_of(failure), text_of(failure))
        ending = await self._settle(upload, error, record)
        # Decided, it was written down in the transaction that decided it.
        running.recorded = ending is Ending.UNDECIDED
        if ending is Ending.OWNED and failure is not error:
            raise failure from error
        cancelled = isinstance(error, OutcomeUnknown) and error.cancelled
        return ending is Ending.PUBLISHED and not cancelled

    async def _settle(self, upload: Upload, error: BaseException, record: Record) -> Ending:
        """After a failure: see to it that a row owns whatever was written, and learn whether it was published.

        Shielded: a caller that is cancelled, perhaps twice, does not keep this from being done.
        """
        task = asyncio.create_task(self._end(upload, record))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # A caller who was told nothing yet of a publish that may have happened must not hear that it did not.
            if not isinstance(error, OutcomeUnknown):
                raise
        except BinaryStorageError as failure:
            logger.warning("Upload of %s is left to its deadline: %s", upload.file_key, failure)
        return Ending.UNDECIDED

    async def _end(self, upload: Upload, record: Record) -> Ending:
        async def work(own: AsyncConnection) -> Ending:
            ending = await self._abandon(own, upload, record.error or "")
            # fail point: store.abandoned
            if ending is Ending.OWNED:
                await operation.write_ended(own, [record])
            return ending

        with ahead():
            return await self._engine.database.transaction(work)

    async def _abandon(self, own: AsyncConnection, upload: Upload, why: str) -> Ending:
        """Give the row to the reaper, unless it was published.

        A commit whose answer was lost may still be under way at the server: the update waits for its row lock, and
        when it gets it, the outcome is decided. A row that the caller's transaction holds locked stays as it is: it
        turns live if the caller commits what was published after all, or its deadline passes.
        """
        reservation = upload.reservation
        held = upload.locked and await blob.state_of(own, reservation.blob_id) == PENDING
        if held or await blob.abandon(own, reservation.blob_id, upload.grace, why):
            return Ending.OWNED
        if await reference.exists_with(own, upload.file_key, reservation.blob_id):
            return Ending.PUBLISHED
        if await blob.state_of(own, reservation.blob_id) is None:
            # A reaper was done with the row before our write was: what we wrote needs an owner again.
            await blob.readopt(own, reservation, upload.grace, why)
        return Ending.OWNED


def _location(place: Reservation, stored: StoredObject) -> Location:
    return Location(place.blob_id, place.storage_name, place.object_path, stored.size, stored.checksum, ref_count=1)


async def _lock(upload: Upload, connection: AsyncConnection) -> None:
    """Lock the row for the caller's transaction, until that ends."""
    upload.locked = True
    with translated():
        upload.locked = await blob.lock_pending(connection, upload.reservation.blob_id)
    if not upload.locked:
        raise TransactionConflict(
            "The transaction's snapshot is older than this upload, so it could never publish it: at REPEATABLE READ "
            "and SERIALIZABLE let store_data be the transaction's first statement, or store before it."
        )


async def _publish_in(connection: AsyncConnection, row: dict[str, Any], stored: StoredObject, record: Record) -> bool:
    """Publish in a caller's transaction; False when a reaper has claimed the row."""
    if not await blob.publish(connection, row["blob_id"], stored.size, stored.checksum):
        return False
    # fail point: store.live
    await reference.create(connection, row)
    # fail point: store.referenced
    await operation.write_ended(connection, [record])
    # fail point: store.recorded
    return True


def _when_unpublished(error: BaseException) -> BaseException:
    """What `error` turns into once the catalog has told that nothing was committed."""
    if not isinstance(error, OutcomeUnknown):
        return error
    if error.cancelled:
        return asyncio.CancelledError()
    return CatalogUnavailable("The connection to the database was lost while publishing; nothing was stored.")


async def guarded(chunks: AsyncIterator[bytes], upload: Upload, running: RunningOperation) -> AsyncIterator[bytes]:
    """The chunks as they come, counted; ends with an error once a reaper has claimed the row."""
    async for chunk in chunks:
        if upload.lost:
            raise OperationError(
                "The upload's deadline passed while this engine could not renew it, and a reaper has claimed it; "
                "store the file again."
            )
        # fail point: store.streaming
        yield chunk
        running.advance(len(chunk))
