"""Engine instances: who is alive, on the database's clock, and what is left of those that are not."""

import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Index,
    Interval,
    Select,
    Text,
    Uuid,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal_column,
    null,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from bdr.catalog.base import HOT_FILLFACTOR, Base, Moment
from bdr.catalog.blob import Blob
from bdr.catalog.operation import Operation
from bdr.catalog.reference import DELETE, DeletedReference, Reference
from bdr.catalog.storage import Storage
from bdr.progress import OperationStatus


class EngineInstance(Base):
    """One process that uses, or used, the catalog."""

    __tablename__ = "engine_instance"
    __table_args__ = (
        Index("ix_engine_instance_alive", "heartbeat_at", postgresql_where=text("stopped_at IS NULL")),
        Index("ix_engine_instance_stopped_at", "stopped_at", postgresql_where=text("stopped_at IS NOT NULL")),
        {"comment": "One row for each engine process that uses the catalog, or did."} | HOT_FILLFACTOR,
    )

    instance_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, comment="Made when the engine starts.")
    name: Mapped[str] = mapped_column(Text, comment="The configured name; the host's name when none is.")
    host: Mapped[str] = mapped_column(Text, comment="Host name.")
    pid: Mapped[int] = mapped_column(BigInteger, comment="Process id on that host.")
    version: Mapped[str] = mapped_column(Text, comment="Version of bdr.")
    started_at: Mapped[Moment] = mapped_column(server_default=func.now(), comment="When it started.")
    heartbeat_at: Mapped[Moment] = mapped_column(server_default=func.now(), comment="Its last sign of life.")
    missed_at: Mapped[Moment | None] = mapped_column(
        comment="When a reaper first found its sign of life overdue; null again with the next one."
    )
    stopped_at: Mapped[Moment | None] = mapped_column(
        comment="When it closed, or was declared dead; null while it lives."
    )


HEARTBEAT = (
    update(EngineInstance)
    .where(EngineInstance.instance_id == bindparam("id"), EngineInstance.stopped_at.is_(None))
    .values(heartbeat_at=func.clock_timestamp(), missed_at=null())
)
_SILENCE = bindparam("silence", type_=Interval())
_SILENT = (
    select(EngineInstance.instance_id)
    .where(
        EngineInstance.stopped_at.is_(None),
        EngineInstance.heartbeat_at <= func.now() - _SILENCE,
    )
    .order_by(EngineInstance.instance_id)
    .with_for_update(skip_locked=True)
    .cte("silent")
)
DECLARE_DEAD = (
    update(EngineInstance)
    .where(EngineInstance.instance_id == _SILENT.c.instance_id)
    .values(
        missed_at=func.coalesce(EngineInstance.missed_at, func.now()),
        stopped_at=case((EngineInstance.missed_at <= func.now() - _SILENCE, func.now())),
    )
    .returning(EngineInstance.stopped_at)
)

_LOST = (
    select(Operation.operation_id)
    .join_from(Operation, EngineInstance, Operation.instance_id == EngineInstance.instance_id)
    .where(Operation.status == literal_column("'running'"), EngineInstance.stopped_at.is_not(None))
    .order_by(Operation.operation_id)
    .with_for_update(skip_locked=True, of=Operation)
    .cte("lost")
)
FAIL_LOST = (
    update(Operation)
    .where(Operation.operation_id == _LOST.c.operation_id)
    .values(
        status=OperationStatus.FAILED,
        error="its engine stopped without finishing it",
        updated_at=func.clock_timestamp(),
        finished_at=func.clock_timestamp(),
    )
)

# Nothing that is still to be cleaned up after it may depend on the row: it says that the instance has stopped.
CLAIM_OLD = (
    select(EngineInstance.instance_id)
    .where(
        EngineInstance.stopped_at < func.now() - bindparam("age", type_=Interval()),
        ~exists().where(Storage.instance_id == EngineInstance.instance_id).correlate(EngineInstance),
        ~exists()
        .where(Operation.instance_id == EngineInstance.instance_id, Operation.status == literal_column("'running'"))
        .correlate(EngineInstance),
    )
    .order_by(EngineInstance.stopped_at)
    .limit(bindparam("batch"))
    .with_for_update(skip_locked=True, of=EngineInstance)
)
PRUNE = delete(EngineInstance).where(EngineInstance.instance_id == func.any(bindparam("instance_ids")))

_FORGOTTEN: Select[*tuple[Any, ...]] = (
    select(
        Reference.file_key,
        Reference.blob_id,
        Reference.namespace,
        Reference.file_size,
        literal_column("'memory_gone'").label("rule"),
    )
    .join_from(Reference, Blob, Reference.blob_id == Blob.blob_id)
    .where(Blob.storage_name == bindparam("storage"))
    .order_by(Reference.file_key)
    .limit(bindparam("batch"))
    .with_for_update(skip_locked=True, of=[Reference, Blob])
)
_UNREFERENCED = ~exists().where(Reference.blob_id == Blob.blob_id).correlate(Blob)
_LEFT = (
    select(Blob.blob_id)
    .where(Blob.storage_name == bindparam("storage"), _UNREFERENCED)
    .order_by(Blob.blob_id)
    .limit(bindparam("batch"))
    .with_for_update(skip_locked=True)
)
_DELETE_BLOBS = delete(Blob).where(Blob.blob_id == func.any(bindparam("blob_ids")), _UNREFERENCED)
_LOCK_STORAGE = select(Storage.name).where(Storage.name == bindparam("storage")).with_for_update(skip_locked=True)
_DELETE_STORAGE = delete(Storage).where(
    Storage.name == bindparam("storage"), ~exists().where(Blob.storage_name == Storage.name).correlate(Storage)
)


async def start(connection: AsyncConnection, row: dict[str, Any]) -> None:
    """Insert the row of a new instance."""
    await connection.execute(insert(EngineInstance), row)


async def heartbeat(connection: AsyncConnection, instance_id: uuid.UUID) -> bool:
    """Renew the instance; False when it was declared dead, which nothing undoes.

    Heartbeat and declaration need the row's lock. A heartbeat that is first makes the reaper skip the row; one that
    waited finds `stopped_at` set and no row to update.
    """
    return (await connection.execute(HEARTBEAT, {"id": instance_id})).rowcount == 1


async def stop(connection: AsyncConnection, instance_id: uuid.UUID) -> None:
    """Write down that the instance closed."""
    stopped = update(EngineInstance).where(EngineInstance.instance_id == instance_id)
    await connection.execute(stopped.where(EngineInstance.stopped_at.is_(None)).values(stopped_at=func.now()))


async def declare_dead(connection: AsyncConnection, silence: timedelta) -> int:
    """Stop instances that gave no sign of life for `silence`, twice over; gives back how many.

    The first time an instance is only noted. After an outage of the database all are silent, and whoever comes first
    would bury the others; so each has `silence` to be heard of, from when somebody noticed on.
    """
    found = await connection.execute(DECLARE_DEAD, {"silence": silence})
    return sum(1 for row in found if row.stopped_at is not None)


async def fail_lost(connection: AsyncConnection) -> int:
    """Fail the running operations of instances that are no more; gives back how many.

    It asks who has stopped, not who was just declared dead: a reaper that dies in between, a row that somebody holds
    locked, and what an instance wrote that did not yet know of its own death are all found the next time.
    """
    return (await connection.execute(FAIL_LOST)).rowcount


async def prune_old(connection: AsyncConnection, age: timedelta, batch: int) -> int:
    """Delete at most `batch` rows of instances that stopped longer than `age` ago; gives back how many.

    Their names go with them: what they stored carries an id that nobody can look up any more.
    """
    old = list((await connection.execute(CLAIM_OLD, {"age": age, "batch": batch})).scalars())
    return (await connection.execute(PRUNE, {"instance_ids": old})).rowcount if old else 0


async def memory_of_the_stopped(connection: AsyncConnection) -> list[str]:
    """Memory storages of instances that are no more: their bytes went with the process."""
    gone = (
        select(Storage.name)
        .join_from(Storage, EngineInstance, Storage.instance_id == EngineInstance.instance_id)
        .where(EngineInstance.stopped_at.is_not(None))
        .order_by(Storage.name)
    )
    return list((await connection.execute(gone)).scalars())


async def forget_memory(
    connection: AsyncConnection, storage_name: str, batch: int
) -> tuple[list[DeletedReference], int]:
    """Delete a batch of what was in a memory storage, and the storage itself with the last of it.

    Gives back the references, and how many blobs went; nothing of either: there was nothing left that nobody has
    locked. Whoever has a lock first is not waited for, as in `expiry.claim_expired`; a register that waited for us
    finds no row. Should its instance still live, a reserve that waited finds no storage.
    """
    parameters = {"storage": storage_name, "batch": batch}
    references = [DeletedReference(*row) for row in await connection.execute(_FORGOTTEN, parameters)]
    if references:
        await connection.execute(DELETE, {"keys": [one.file_key for one in references]})
    left = list((await connection.execute(_LEFT, parameters)).scalars())
    blobs = (await connection.execute(_DELETE_BLOBS, {"blob_ids": left})).rowcount
    if (await connection.execute(_LOCK_STORAGE, {"storage": storage_name})).first() is not None:
        await connection.execute(_DELETE_STORAGE, {"storage": storage_name})
    return references, blobs
