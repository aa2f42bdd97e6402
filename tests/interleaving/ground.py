"""The rows and objects that an order of steps begins on, and those that it leaves."""

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import asyncpg

from bdr.keys import new_file_key, new_id, object_path
from bdr.storage import OpenDalStorage
from tests.guarantees import objects_in
from tests.interleaving.state import BlobRow, Ref, State

DATA: Final = b"what lies in every object here"
_TABLES: Final = ("binary_data_reference", "blob", "operation", "operation_total", "engine_instance")
_CLEAR: Final = [
    *(f"DELETE FROM bdr.{table}" for table in _TABLES),
    """
    INSERT INTO bdr.storage (name, storage_type, root, fingerprint) VALUES ('main', 'memory', 'memory', 'main')
    ON CONFLICT DO NOTHING
    """,
]
_LAY_BLOB: Final = """
    INSERT INTO bdr.blob (blob_id, storage_name, object_path, state, size, checksum, instance_id, next_attempt_at)
    VALUES ('{id}', 'main', '{path}', '{state}', {size}, '\\x{digest}', '{id}',
            CASE WHEN '{state}' IN ('pending', 'deleting') THEN now() + interval '1 hour' * {direction} END)
"""
_LAY_REFERENCE: Final = """
    INSERT INTO bdr.binary_data_reference
        (file_key, blob_id, mime_kind, file_size, ref_count, holder_count, pinned, created_at, last_access_at,
         zero_ref_retention, max_retention, held_at_max_retention)
    VALUES ('{key}', '{blob}', 'text/plain', {size}, {count}, {holders}, {pinned},
            now() - interval '1 day' * {days}, now() - interval '1 hour' * {hours}, interval '1 hour' * {life},
            '7 days', '{held}')
"""
_LAY_HOLDER: Final = """
    INSERT INTO bdr.reference_holder (file_key, holder, lease_expires_at, instance_id)
    VALUES ('{key}', '{holder}', CASE WHEN {over} AND NOT {bound} THEN now() - interval '1 hour' END,
            CASE WHEN {bound} THEN '{owner}'::uuid END)
"""
_LAY_RECORD: Final = """
    INSERT INTO bdr.operation (operation_id, operation_type, instance_id, status, started_at, updated_at, finished_at)
    VALUES ('{id}', '{type}', '{owner}', '{status}', now() - interval '1 hour', now(),
            CASE WHEN '{status}' <> 'running' THEN now() END)
"""
_LAY_INSTANCE: Final = """
    INSERT INTO bdr.engine_instance (instance_id, name, host, pid, version, heartbeat_at, missed_at, stopped_at)
    VALUES ('{id}', '{name}', 'host', 1, '1', now() - interval '1 day',
            CASE WHEN '{seen}' = 'noted' THEN now() - interval '1 hour' END, CASE WHEN '{seen}' = 'dead' THEN now() END)
"""
_OBSERVE: Final = """
    SELECT
        (SELECT json_agg(json_build_array(file_key, blob_id, ref_count, zero_ref_retention = interval '0',
                                          last_access_at < now() - interval '30 minutes',
                                          created_at + max_retention <= now(), held_at_max_retention = 'keep', pinned,
                                          coalesce(holders, '{}')))
         FROM bdr.binary_data_reference LEFT JOIN (
            SELECT file_key, json_object_agg(
                holder, coalesce(lease_expires_at <= now(), false) OR stopped_at IS NOT NULL) AS holders
            FROM bdr.reference_holder LEFT JOIN bdr.engine_instance USING (instance_id) GROUP BY file_key
         ) h USING (file_key)) AS refs,
        (SELECT json_agg(json_build_array(blob_id, state, coalesce(next_attempt_at <= now(), false)))
         FROM bdr.blob) AS blobs,
        (SELECT json_object_agg(kind, n) FROM (
            SELECT operation_type || ' ' || status AS kind, count(*) AS n FROM bdr.operation GROUP BY 1) r) AS records,
        (SELECT json_object_agg(kind, n) FROM (
            SELECT operation_type || ' ' || status AS kind, sum(operations) AS n FROM bdr.operation_total GROUP BY 1) t
        ) AS totals,
        (SELECT json_object_agg(name, CASE WHEN stopped_at IS NOT NULL THEN 'dead'
                                           WHEN missed_at < now() - interval '30 minutes' THEN 'noted'
                                           WHEN missed_at IS NOT NULL THEN 'just noted'
                                           WHEN heartbeat_at < now() - interval '30 minutes' THEN 'silent'
                                           ELSE 'alive' END)
         FROM bdr.engine_instance) AS instances,
        (SELECT to_json(count(*) = 1) FROM bdr.storage) AS known
"""


class Ground:
    """One catalog and one storage in memory, laid out anew for each order of steps.

    Attributes:
        start: what they were last made to hold.
        keys: the file keys behind the names of its references; likewise `blob_ids` and `instance_ids`.
        operation_ids: of its records, in order.
    """

    def __init__(self, monitor: asyncpg.Connection, storage: OpenDalStorage) -> None:
        self.start = State()
        self.keys: dict[str, str] = {}
        self.blob_ids: dict[str, uuid.UUID] = {}
        self.instance_ids: dict[str, uuid.UUID] = {}
        self.operation_ids: list[uuid.UUID] = []
        self._monitor = monitor
        self._storage = storage

    async def lay_out(self, state: State) -> None:
        """Make the catalog and the storage hold `state`, under new keys and ids."""
        self.start = state
        self.keys = {name: new_file_key() for name in state.references}
        self.blob_ids = {name: new_id() for name in (*state.blobs, *sorted(state.objects - state.blobs.keys()))}
        self.instance_ids = {name: new_id() for name in state.instances}
        self.operation_ids = [new_id() for _ in state.records.elements()]
        await self._monitor.execute(";".join([*_CLEAR, *self._rows(state)]))
        for path in await objects_in(self._storage):
            await self._storage.delete(path)
        for name in state.objects:
            await self._storage.store(object_path(self.blob_ids[name]), DATA)

    async def observe(self) -> State:
        """What they hold now; the one thing that was not laid out goes by the name `new`."""
        row = await self._monitor.fetchrow(_OBSERVE)
        references, blobs, *rest = (json.loads(column) if column else {} for column in row)
        known = {str(blob_id): name for name, blob_id in self.blob_ids.items()}
        paths = {object_path(blob_id): name for name, blob_id in self.blob_ids.items()}
        objects = await objects_in(self._storage)
        seen = State(
            {self.names([key])[0]: Ref(known.get(blob_id, "new"), *more) for key, blob_id, *more in references},
            {known.get(blob_id, "new"): BlobRow(*more) for blob_id, *more in blobs},
            {paths.get(path, "new") for path in objects},
            Counter(rest[0]),
            Counter(rest[1]),
            instances=rest[2],
            known=rest[3],
            lost=self.start.lost,
        )
        found = len(references), len(blobs), len(objects)
        assert found == (len(seen.references), len(seen.blobs), len(seen.objects)), "two things go by one name"
        return seen

    def new_key(self, name: str) -> str:
        """The file key of a reference that a session makes."""
        self.keys[name] = new_file_key()
        return self.keys[name]

    def names(self, keys: Iterable[str]) -> list[str]:
        """The test's names for file keys, sorted."""
        known = {key: name for name, key in self.keys.items()}
        return sorted(known.get(key, "new") for key in keys)

    def _rows(self, state: State) -> Iterator[str]:
        digest = hashlib.sha256(DATA).hexdigest()
        for name, row in state.blobs.items():
            blob_id = self.blob_ids[name]
            place = {"id": blob_id, "path": object_path(blob_id), "size": len(DATA), "digest": digest}
            yield _LAY_BLOB.format(**place, state=row.state, direction=-1 if row.due else 1)
        for name, instance_id in self.instance_ids.items():
            yield _LAY_INSTANCE.format(id=instance_id, name=name, seen=state.instances[name])
        owner = next(iter(self.instance_ids.values()), new_id())
        for name, key in self.keys.items():
            reference = state.references[name]
            yield self._reference(key, reference)
            for holder, over in reference.holders.items():
                yield _LAY_HOLDER.format(key=key, holder=holder, over=over, bound=reference.bound, owner=owner)
        for operation_id, kind in zip(self.operation_ids, state.records.elements(), strict=True):
            operation_type, status = kind.split()
            yield _LAY_RECORD.format(id=operation_id, type=operation_type, owner=owner, status=status)

    def _reference(self, key: str, reference: Ref) -> str:
        return _LAY_REFERENCE.format(
            key=key,
            blob=self.blob_ids[reference.blob],
            size=len(DATA),
            count=reference.count,
            holders=len(reference.holders),
            pinned=reference.pinned,
            days=8 if reference.aged else 1,
            hours=2 if reference.idle else 0,
            life=0 if reference.at_once else 1,
            held="keep" if reference.keep else "delete",
        )
