"""BinaryDataManager: store, read, delete and look at files; counts and retention stand in `bdr.lifecycle`."""

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from bdr.catalog import reference
from bdr.catalog.database import as_connection, translated
from bdr.errors import FileNotFound, InvalidArgument
from bdr.keys import is_file_key, new_file_key
from bdr.manager.access import AccessTimes
from bdr.manager.batch_deletes import delete_many, delete_many_in
from bdr.manager.batch_stores import StoreItems, store_many
from bdr.manager.cache import ByteCache
from bdr.manager.deleting import Deleting
from bdr.manager.deletion import Deletion, Terms, expire_references, pinned
from bdr.manager.description import (
    BinaryDataDetails,
    as_details,
    as_metadata,
    as_reference,
    describe,
    reference_row,
    type_of,
)
from bdr.manager.engine import Engine
from bdr.manager.operations import OnProgress, Operations, RunningOperation
from bdr.manager.reader import BinaryDataReader
from bdr.manager.retrieval import Retrievals, absent, locate, whole_row
from bdr.manager.sources import Source, of_bytes, of_file, of_stream, with_head
from bdr.manager.upload import Upload, Uploads, guarded
from bdr.progress import BasicStats, OperationProgress
from bdr.reference import BinaryDataMetadata, BinaryDataReference
from bdr.results import BatchResult
from bdr.storage.protocol import BinaryDataStorage, StoredObject

CallersConnection = AsyncConnection | AsyncSession


class BinaryDataManager:
    """Files by key, on one catalog and its storages.

    Coroutines may run concurrently. Every key that no reference has raises FileNotFound; a storage or the database that
    cannot be reached raises StorageUnavailable or CatalogUnavailable; see `bdr.errors`.
    """

    def __init__(self, engine: Engine) -> None:
        settings = engine.settings
        self.engine = engine
        self.access = AccessTimes(engine.database, settings.access.touch_interval)
        self.operations = Operations(engine.database, engine.instance_id, settings.operations.progress_interval)
        self.uploads = Uploads(engine)
        # Half of the connections at most wait for locks.
        pool = settings.database
        self.deleting = Deleting(engine, pool.pool_size // 2, pool.pool_timeout)
        self.retrievals = Retrievals(engine, ByteCache(settings.cache.capacity, settings.cache.max_entry))

    async def store_data(
        self,
        data: bytes,
        metadata: BinaryDataMetadata | None = None,
        *,
        connection: CallersConnection | None = None,
        operation_id: uuid.UUID | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> BinaryDataReference:
        """Store bytes and register them once; gives back the reference.

        Args:
            data: the bytes; none at all is a file too.
            metadata: what is known of the file; the bytes tell the rest.
            connection: a transaction of the caller's to publish in: the reference is there when it commits.
            operation_id: under which to ask for progress, from any instance.
            on_progress: called with the progress, at most ten times a second, and at the end.

        Raises:
            InvalidArgument: the metadata can never be right, or its `file_size` is not the data's.
            OutcomeUnknown: the commit's answer was lost; the error carries the key.
        """
        return await self._store(of_bytes(data, metadata), connection, operation_id, on_progress)

    async def store_file(
        self,
        path: Path | str,
        metadata: BinaryDataMetadata | None = None,
        *,
        connection: CallersConnection | None = None,
        operation_id: uuid.UUID | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> BinaryDataReference:
        """Store a file of any size in bounded memory; its name and time are taken from it. As `store_data`."""
        self.engine.require_open()
        async with of_file(Path(path), metadata) as source:
            return await self._store(source, connection, operation_id, on_progress)

    async def store_stream(
        self,
        chunks: AsyncIterable[bytes],
        metadata: BinaryDataMetadata | None = None,
        *,
        connection: CallersConnection | None = None,
        operation_id: uuid.UUID | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> BinaryDataReference:
        """Store what `chunks` yields, in bounded memory; an exception of theirs is raised again and leaves nothing.

        As `store_data`; the total for the progress is the metadata's `file_size`, unknown when it is absent.
        """
        return await self._store(of_stream(chunks, metadata), connection, operation_id, on_progress)

    async def store_many(self, items: StoreItems, *, concurrency: int = 64) -> BatchResult[BinaryDataReference]:
        """Store each item as `store_data` does; a result for each, in their order.

        Args:
            items: pairs of bytes and metadata (or None), of an iterable or an asynchronous one. None is taken from it
                before one of the `concurrency` is free to store it, so it may be endlessly long and made as it goes.
                An exception of theirs is raised again, and leaves nothing: what was stored before is deleted.
            concurrency: how many are stored, and held in memory, at once.

        Raises:
            OutcomeUnknown: the caller was cancelled, with the keys of what was stored or may have been.
        """
        self.engine.require_open()
        return await store_many(items, concurrency, store=self.store_data, discard=self.delete_many)

    async def get_data(
        self,
        key: str,
        *,
        operation_id: uuid.UUID | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> bytes:
        """The whole file, compared with the size and SHA-256 that were recorded.

        Raises:
            FileNotFound: there is no such reference; Gone when it went while it was being read.
            Lost: the reference is there, its object is not.
            Corrupt: the object holds other bytes than were stored; they are not returned.
        """
        remembered = self.engine.remembered(key)
        if remembered is not None and operation_id is None and on_progress is None:
            kept = self.retrievals.cache.kept(remembered.blob_id)
            if kept is not None:
                # Nobody was asked, and nothing is recorded.
                self.access.note_recalled(key)
                return kept
        location = remembered or await locate(self.engine, key)
        begun = await self._begin_reading(key, location.size, operation_id, on_progress)
        with begun as running:
            data = await self.retrievals.whole(key, location, running)
        self.access.note(key, held=None if remembered else location.ref_count > 0)
        return data

    async def get_range(
        self,
        key: str,
        offset: int,
        length: int,
        *,
        operation_id: uuid.UUID | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> bytes:
        """`length` bytes from `offset`; fewer when the file ends before. Only a full read is compared with the SHA-256.

        Raises:
            InvalidArgument: a negative offset or length, or an offset beyond the end.
        """
        if offset < 0 or length < 0:
            raise InvalidArgument(f"get_range: offset {offset} and length {length} must not be negative.")
        remembered = self.engine.remembered(key)
        location = remembered or await locate(self.engine, key)
        if offset > location.size:
            raise InvalidArgument(f"get_range: offset {offset} lies beyond the end of {key!r} ({location.size} bytes).")
        length = min(length, location.size - offset)
        begun = await self._begin_reading(key, length, operation_id, on_progress)
        with begun as running:
            data = await self.retrievals.part(key, location, running, offset, length)
        self.access.note(key, held=None if remembered else location.ref_count > 0)
        return data

    @asynccontextmanager
    async def open(
        self,
        key: str,
        *,
        operation_id: uuid.UUID | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> AsyncIterator[BinaryDataReader]:
        """A reader of the file: `async with binary.open(key) as reader`. It holds no connection between reads."""
        row = await whole_row(self.engine, key)
        begun = await self._begin_reading(key, row.file_size, operation_id, on_progress)
        with begun as running, self.access.reading(key, held=row.ref_count > 0):
            async with self.retrievals.reader(row, running) as reader:
                yield reader

    async def delete_data(self, key: str, *, force: bool = False, connection: CallersConnection | None = None) -> None:
        """Delete the reference whatever its count, and its bytes unless another reference shares them.

        With `connection` the reference expires at once when that commits, and the reaper deletes it.

        Raises:
            Pinned: it is pinned, and `force` is not given.
        """
        terms = Terms("delete", whatever_the_count=True, force=force)
        verdict = await self.delete(key, terms, connection=connection)
        if verdict is Deletion.PINNED:
            raise pinned(key)

    async def delete_many(
        self, keys: Iterable[str], *, force: bool = False, connection: CallersConnection | None = None
    ) -> BatchResult[None]:
        """Delete each as `delete_data` does; a result for each key, in their order.

        1,000 go in one transaction, and then their bytes. A key that comes twice is not there the second time; in a
        transaction of yours it still is. What is locked, lost or cancelled as of `register_many`.
        """
        self.engine.require_open()
        if connection is None:
            return await delete_many(self.engine, keys, force=force)
        with translated():
            joined = await as_connection(connection)
        return await delete_many_in(joined, self.engine, keys, force=force)

    async def data_exists(self, key: str) -> bool:
        """Whether there is such a reference, and its object is in the storage."""
        try:
            location = await locate(self.engine, key)
        except FileNotFound:
            return False
        return await self.engine.storage(location.storage_name).exists(location.object_path)

    async def get_metadata(self, key: str) -> BinaryDataMetadata:
        """What is known of the file: name, type, size, times, namespace and labels."""
        return as_metadata(await whole_row(self.engine, key))

    async def get_reference(self, key: str) -> BinaryDataReference:
        """The reference as nodes pass it around."""
        return as_reference(await whole_row(self.engine, key))

    async def get_details(self, key: str) -> BinaryDataDetails:
        """All that the catalog knows: counts, times, retention, place and checksum."""
        return as_details(await whole_row(self.engine, key))

    async def list_references(
        self, *, namespace: str | None = None, before: str | None = None, limit: int = 100
    ) -> list[BinaryDataDetails]:
        """At most `limit` references, the newest first; `before` is the last key of the page before."""
        self.engine.require_open()
        async with self.engine.database.reading() as connection:
            rows = await reference.page(connection, before, limit, namespace)
        return [as_details(row) for row in rows]

    async def get_operation_progress(self, operation_id: uuid.UUID | str) -> OperationProgress | None:
        """How far an operation of any instance is; None when there is, or is kept, no record of it.

        Live for this instance's own; of others at most a second old, and only for what takes longer than that.
        """
        self.engine.require_open()
        return await self.operations.progress(operation_id)

    async def get_stats(self) -> BasicStats:
        """Counts and bytes of all operations of all instances, ever."""
        self.engine.require_open()
        return await self.operations.stats()

    async def cleanup_completed_operations(self, keep_count: int) -> int:
        """Move all records but the newest `keep_count` into the totals; gives back how many."""
        self.engine.require_open()
        if keep_count < 0:
            raise InvalidArgument(f"keep_count is {keep_count}; it must not be negative.")
        return await self.operations.prune_but_newest(keep_count)

    async def delete(self, key: str, terms: Terms, *, connection: CallersConnection | None = None) -> Deletion:
        """Delete one reference if its count and pin allow it; FileNotFound when there is none."""
        self.engine.require_open()
        if not is_file_key(key):
            raise await absent(self.engine, key)
        if connection is None:
            verdict = await self.deleting.delete(key, terms)
        else:
            with translated():
                joined = await as_connection(connection)
                verdict = (await expire_references(joined, self.engine, [key], terms))[key]
        if verdict is Deletion.MISSING:
            raise await absent(self.engine, key)
        return verdict

    async def _begin_reading(
        self, key: str, size: int, operation_id: uuid.UUID | str | None, on_progress: OnProgress | None
    ) -> RunningOperation:
        return await self.operations.begin(
            "retrieve",
            operation_id=operation_id,
            file_key=key,
            total_bytes=size,
            on_progress=on_progress,
            recorded=False,
        )

    async def _store(
        self,
        source: Source,
        connection: CallersConnection | None,
        operation_id: uuid.UUID | str | None,
        on_progress: OnProgress | None,
    ) -> BinaryDataReference:
        self.engine.require_open()
        joined = None if connection is None else await as_connection(connection)
        settings = self.engine.settings
        metadata = source.metadata
        described = describe(metadata, settings.namespace)
        file_key = new_file_key(described["file_extension"])
        # In a caller's transaction the record is the caller's to commit: only the live progress is shown before.
        begun = await self.operations.begin(
            "store",
            operation_id=operation_id,
            file_key=file_key,
            namespace=described["namespace"],
            total_bytes=source.total,
            on_progress=on_progress,
            shared=joined is None,
        )
        with begun as running:
            content = await with_head(source)

            async def write(storage: BinaryDataStorage, path: str, upload: Upload) -> StoredObject:
                if content.data is None:
                    return await storage.store_stream(path, guarded(content.chunks, upload, running))
                stored = await storage.store(path, content.data)
                running.advance(stored.size)
                return stored

            def row(stored: StoredObject) -> dict[str, Any]:
                of_type = type_of(metadata, content.head, complete=content.complete)
                return reference_row(stored, described | of_type, settings)

            published = await self.uploads.run(file_key, write, row, running, joined)
            # Its record was written with it, in one transaction; what fails, even before there is one, leaves its own.
            running.recorded = False
        return as_reference(published)
