"""Engine instances: who is alive, on the database's clock, and what is left of those that are not."""

import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import BigInteger, Index, Interval, Text, Uuid, bindparam, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from bdr.catalog.base import HOT_FILLFACTOR, Base, Moment
from bdr.catalog.blob import Blob
from bdr.catalog.reference import Reference
from bdr.catalog.storage import Storage


class EngineInstance(Base):
    """One process that uses, or used, the catalog."""

    __tablename__ = "engine_instance"
    __table_args__ = (
        Index("ix_engine_instance_alive", "heartbeat_at", postgresql_where=text("stopped_at IS NULL")),
        {"comment": "One row for each engine process that uses the catalog, or did."} | HOT_FILLFACTOR,
    )

    instance_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, comment="Made when the engine starts.")
    name: Mapped[str] = mapped_column(Text, comment="The configured name; the host's name when none is.")
    host: Mapped[str] = mapped_column(Text, comment="Host name.")
    pid: Mapped[int] = mapped_column(BigInteger, comment="Process id on that host.")
    version: Mapped[str] = mapped_column(Text, comment="Version of bdr.")
    started_at: Mapped[Moment] = mapped_column(server_default=func.now(), comment="When it started.")
    heartbeat_at: Mapped[Moment] = mapped_column(server_default=func.now(), comment="Its last sign of life.")
    stopped_at: Mapped[Moment | None] = mapped_column(
        comment="When it closed, or was declared dead; null while it lives."
    )


HEARTBEAT = (
    update(EngineInstance)
    .where(EngineInstance.instance_id == bindparam("id"), EngineInstance.stopped_at.is_(None))
    .values(heartbeat_at=func.clock_timestamp())
)
_SILENT = (
    select(EngineInstance.instance_id)
    .where(
        EngineInstance.stopped_at.is_(None),
        EngineInstance.heartbeat_at <= func.now() - bindparam("silence", type_=Interval()),
    )
    .order_by(EngineInstance.instance_id)
    .with_for_update(skip_locked=True)
    .cte("silent")
)
DECLARE_DEAD = (
    update(EngineInstance)
    .where(EngineInstance.instance_id == _SILENT.c.instance_id)
    .values(stopped_at=func.now())
    .returning(EngineInstance.instance_id)
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


async def declare_dead(connection: AsyncConnection, silence: timedelta) -> list[uuid.UUID]:
    """Stop instances that gave no sign of life for as long as `silence`; gives back which."""
    return list((await connection.execute(DECLARE_DEAD, {"silence": silence})).scalars())


async def memory_of_the_stopped(connection: AsyncConnection) -> list[str]:
    """Memory storages of instances that are no more: their bytes went with the process."""
    gone = (
        select(Storage.name)
        .join_from(Storage, EngineInstance, Storage.instance_id == EngineInstance.instance_id)
        .where(EngineInstance.stopped_at.is_not(None))
        .order_by(Storage.name)
    )
    return list((await connection.execute(gone)).scalars())


async def forget_memory(connection: AsyncConnection, storage_name: str) -> int:
    """Delete a memory storage with its blobs and references; gives back how many references went.

    References first, in key order, then blobs, as everywhere; a register that waited finds no row.
    """
    here = select(Blob.blob_id).where(Blob.storage_name == storage_name)
    held = select(Reference.file_key).where(Reference.blob_id.in_(here)).order_by(Reference.file_key)
    keys = list((await connection.execute(held.with_for_update())).scalars())
    await connection.execute(here.order_by(Blob.blob_id).with_for_update())
    await connection.execute(delete(Reference).where(Reference.blob_id.in_(here)))
    await connection.execute(delete(Blob).where(Blob.storage_name == storage_name))
    await connection.execute(delete(Storage).where(Storage.name == storage_name))
    return len(keys)
