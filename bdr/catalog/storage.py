"""Storages: which place each name means, so that two engines cannot mean different places by one name."""

import uuid
from dataclasses import dataclass

from sqlalchemy import CheckConstraint, Text, Uuid, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from bdr.catalog.base import Base, Moment


class Catalog(Base):
    """The catalog itself: one row."""

    __tablename__ = "catalog"
    __table_args__ = (
        CheckConstraint("only_one", name="only_one"),
        {"comment": "The catalog's identity: one row, written by the first migration."},
    )

    catalog_id: Mapped[uuid.UUID] = mapped_column(Uuid, comment="Also written into each storage's marker object.")
    created_at: Mapped[Moment] = mapped_column(server_default=func.now(), comment="When the catalog was made.")
    only_one: Mapped[bool] = mapped_column(
        primary_key=True, server_default=text("true"), comment="Keeps the table at one row."
    )


class Storage(Base):
    """A storage that engines use by name."""

    __tablename__ = "storage"
    __table_args__ = {"comment": "One row for each storage; no secret is ever written here."}  # noqa: RUF012 - SQLAlchemy reads it as is

    name: Mapped[str] = mapped_column(Text, primary_key=True, comment="The name in the engines' configuration.")
    storage_type: Mapped[str] = mapped_column(Text, comment="OpenDAL's service: fs, s3, redis, memory, ...")
    root: Mapped[str] = mapped_column(Text, comment="Where it lies, without secrets.")
    fingerprint: Mapped[str] = mapped_column(Text, unique=True, comment="Hash of the location, without secrets.")
    created_at: Mapped[Moment] = mapped_column(server_default=func.now(), comment="When it was first used.")
    instance_id: Mapped[uuid.UUID | None] = mapped_column(
        Uuid, comment="The engine whose memory it is; null for storages that can be shared."
    )
    marked_at: Mapped[Moment | None] = mapped_column(
        comment="When its marker object was written; from then on a storage without it is not the right place."
    )


@dataclass(frozen=True, slots=True)
class KnownStorage:
    """A storage as the catalog knows it."""

    name: str
    storage_type: str
    root: str
    fingerprint: str
    instance_id: uuid.UUID | None
    marked: bool


_KNOWN = select(
    Storage.name,
    Storage.storage_type,
    Storage.root,
    Storage.fingerprint,
    Storage.instance_id,
    Storage.marked_at.is_not(None),
)


async def catalog_id(connection: AsyncConnection) -> uuid.UUID:
    """The catalog's identity."""
    return (await connection.execute(select(Catalog.catalog_id))).scalar_one()


async def known(connection: AsyncConnection) -> list[KnownStorage]:
    """All storages, by name."""
    return [KnownStorage(*row) for row in await connection.execute(_KNOWN.order_by(Storage.name))]


async def introduce(connection: AsyncConnection, storage: KnownStorage) -> list[KnownStorage]:
    """Insert the storage unless its name or place is known; gives back what the catalog knows of either.

    What has no marker yet holds nothing, and may have been a mistake: another name or place takes over from it.

    Two engines that come first with one name: the second's insert waits for the first's, then does nothing and reads
    the first's row. If it comes only later, but before the first has written its marker, it replaces that row, and
    the first finds nothing to mark.
    """
    row = {
        "name": storage.name,
        "storage_type": storage.storage_type,
        "root": storage.root,
        "fingerprint": storage.fingerprint,
        "instance_id": storage.instance_id,
    }
    same = or_(Storage.name == storage.name, Storage.fingerprint == storage.fingerprint)
    other = or_(Storage.name != storage.name, Storage.fingerprint != storage.fingerprint)
    await connection.execute(delete(Storage).where(same, other, Storage.marked_at.is_(None)))
    await connection.execute(insert(Storage).values(row).on_conflict_do_nothing())
    return [KnownStorage(*found) for found in await connection.execute(_KNOWN.where(same))]


async def mark(connection: AsyncConnection, storage: KnownStorage) -> None:
    """Write down that the storage's marker object is there; nothing when its row is not the one it introduced."""
    introduced = (Storage.name == storage.name) & (Storage.fingerprint == storage.fingerprint)
    marked = update(Storage).where(introduced, Storage.marked_at.is_(None))
    await connection.execute(marked.values(marked_at=func.now()))
