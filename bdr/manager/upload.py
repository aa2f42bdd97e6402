"""Store: reserve a row, write the object, publish both, or leave everything to the reaper with its row."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import blob, operation, reference
from bdr.catalog.blob import LIVE, Reservation
from bdr.catalog.database import translated
from bdr.errors import BinaryStorageError, CatalogUnavailable, OperationError, OutcomeUnknown, TransactionConflict
from bdr.keys import encode, new_id, object_path
from bdr.manager.engine import Engine
from bdr.manager.operations import RunningOperation, status_of
from bdr.progress import OperationStatus
from bdr.storage.protocol import BinaryDataStorage, StoredObject

logger = logging.getLogger(__name__)

Describe = Callable[[StoredObject], dict[str, Any]]


@dataclass
class Upload:
    """One upload under way.

    Attributes:
        renewed_at: when its deadline was last pushed on, on this process's monotonic clock.
        lost: a reaper claimed its row; nothing of it will be published.
    """

    reservation: Reservation
    file_key: str
    connection: AsyncConnection | None
    renewed_at: float = field(default_factory=time.monotonic)
    lost: bool = False


class Ending(Enum):
    """What a failed upload turned out to be."""

    PUBLISHED = "published"
    OWNED = "owned"


class Uploads:
    """The uploads of this instance."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lease = engine.settings.upload.lease
        self._grace = engine.settings.reaper.write_grace
        self._under_way: dict[uuid.UUID, Upload] = {}

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
        upload = await self._reserve(file_key, connection)
        blob_id = upload.reservation.blob_id
        self._under_way[blob_id] = upload
        row: dict[str, Any] = {}
        try:
            storage = self._engine.storage(upload.reservation.storage_name)
            stored = await write(storage, upload.reservation.object_path, upload)
            row = describe(stored) | {"file_key": file_key, "blob_id": blob_id}
            await self._publish(upload, row, stored, running)
        except BaseException as error:
            if await self._settle(upload, error, running) is Ending.OWNED:
                if isinstance(error, OutcomeUnknown):
                    raise _known_to_have_failed() from error
                raise
        finally:
            del self._under_way[blob_id]
        return row

    async def renew(self) -> None:
        """Push on the deadlines of uploads that have used up half of theirs; those that were claimed must stop.

        Renewal and claim need the row's lock. A renewal that is first makes the reaper skip the row; one that waited
        finds it `deleting`, and the upload learns of it at its next chunk or, at the latest, when it would publish.
        """
        due = time.monotonic() - self._lease.total_seconds() / 2
        # A row that a caller's transaction holds locked needs no renewal, and would only make us wait.
        aging = {
            blob_id: upload
            for blob_id, upload in self._under_way.items()
            if upload.renewed_at < due and upload.connection is None
        }
        if not aging:
            return
        started = time.monotonic()
        renewed = await self._engine.database.write(lambda own: blob.renew(own, list(aging), self._lease))
        for blob_id, upload in aging.items():
            upload.renewed_at = started
            upload.lost = blob_id not in renewed

    async def _reserve(self, file_key: str, connection: AsyncConnection | None) -> Upload:
        name = self._engine.default_storage
        await self._engine.require_verified(name)
        blob_id = new_id()
        reservation = Reservation(blob_id, name, object_path(blob_id), self._engine.instance_id)
        await self._engine.database.write(lambda own: blob.reserve(own, [reservation], self._lease))
        if connection is not None:
            with translated():
                visible = await blob.lock_pending(connection, blob_id)
            if not visible:
                nothing = timedelta(0)
                await self._engine.database.write(lambda own: blob.abandon(own, blob_id, nothing, "never begun"))
                raise TransactionConflict(
                    "The transaction's snapshot is older than this upload, so it could never publish it: at REPEATABLE "
                    "READ and SERIALIZABLE let store_data be the transaction's first statement, or store before it."
                )
        return Upload(reservation, file_key, connection)

    async def _publish(
        self, upload: Upload, row: dict[str, Any], stored: StoredObject, running: RunningOperation
    ) -> None:
        async def work(own: AsyncConnection) -> None:
            if not await blob.publish(own, upload.reservation.blob_id, stored.size, stored.checksum):
                raise OperationError(
                    f"The upload took longer than its deadline ({self._lease}) and a reaper has claimed it; store the "
                    "file again, or configure a longer upload lease."
                )
            await reference.create(own, row)
            record = running.record(OperationStatus.SUCCEEDED)
            await operation.write_ended(own, [record])

        if upload.connection is None:
            await self._engine.database.transaction(work, keys=[upload.file_key], what="Storing")
        else:
            with translated():
                await work(upload.connection)

    async def _settle(self, upload: Upload, error: BaseException, running: RunningOperation) -> Ending:
        """After a failure: see to it that the row owns whatever was written, and learn whether it was published.

        Shielded: a caller that is cancelled, perhaps twice, does not keep this from being done.
        """
        task = asyncio.create_task(self._end(upload, error, running))
        try:
            ending = await asyncio.shield(task)
        except BinaryStorageError as failure:
            logger.warning("Upload of %s is left to its deadline: %s", upload.file_key, failure)
            if isinstance(error, OutcomeUnknown):
                raise error from failure
            return Ending.OWNED
        if ending is Ending.PUBLISHED and _is_cancelled():
            # It is there, but nobody waits for its key any more.
            raise OutcomeUnknown([upload.file_key], "Storing") from error
        return ending

    async def _end(self, upload: Upload, error: BaseException, running: RunningOperation) -> Ending:
        why = str(error) or type(error).__name__
        record = running.record(status_of(error), why)

        async def work(own: AsyncConnection) -> Ending:
            # In a caller's transaction the row is locked by the caller: it stays pending until its deadline passes,
            # or turns live if the caller commits what was published after all.
            if upload.connection is None:
                ending = await self._abandon(own, upload, why)
                if ending is Ending.PUBLISHED:
                    return ending
            await operation.write_ended(own, [record])
            return Ending.OWNED

        return await self._engine.database.transaction(work)

    async def _abandon(self, own: AsyncConnection, upload: Upload, why: str) -> Ending:
        """Give the row to the reaper, unless it was published.

        A commit whose answer was lost may still be under way at the server: the update waits for its row lock, and
        when it gets it, the outcome is decided.
        """
        blob_id = upload.reservation.blob_id
        if await blob.abandon(own, blob_id, self._grace, why):
            return Ending.OWNED
        if await reference.exists_with(own, upload.file_key, blob_id):
            return Ending.PUBLISHED
        state = await blob.state_of(own, blob_id)
        if state is None:
            # A reaper was done with the row before our write was: what we wrote needs an owner again.
            await blob.readopt(own, upload.reservation, self._grace, why)
        elif state == LIVE:
            # Published, and its reference already deleted by somebody else: the blob's end is theirs.
            logger.debug("Blob %s was published and its reference is gone already", encode(blob_id))
        return Ending.OWNED


def _known_to_have_failed() -> BaseException:
    """What a lost answer turned into, once the catalog told that nothing was committed."""
    if _is_cancelled():
        return asyncio.CancelledError()
    return CatalogUnavailable("The connection to the database was lost while publishing; nothing was stored.")


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def guarded(chunks: AsyncIterator[bytes], upload: Upload, running: RunningOperation) -> AsyncIterator[bytes]:
    """The chunks as they come, counted; ends with an error once a reaper has claimed the row."""
    async for chunk in chunks:
        if upload.lost:
            raise OperationError(
                "The upload's deadline passed while this engine could not renew it, and a reaper has claimed it; "
                "store the file again."
            )
        yield chunk
        running.advance(len(chunk))
