"""Whether the database's clock runs as time does, by what machines that reap have seen of it.

After a failover to a server whose clock is a week ahead, everything would have expired at once. A machine knows how
long it has been up, on a clock that nobody sets: between two looks from one machine both clocks must have gone alike.
"""

from datetime import timedelta

from sqlalchemy import Interval, Text, bindparam, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from bdr.catalog.base import Base, Moment


class ReaperClock(Base):
    """What the database's clock said when a machine that reaps had been up for so long."""

    __tablename__ = "reaper_clock"
    __table_args__ = {"comment": "One row for each boot of a machine that reaps: the database's time, and its own."}  # noqa: RUF012 - SQLAlchemy reads it as is

    boot_id: Mapped[str] = mapped_column(Text, primary_key=True, comment="Which machine, since which start.")
    seen_at: Mapped[Moment] = mapped_column(comment="The database's time at its last pass.")
    uptime: Mapped[timedelta] = mapped_column(Interval, comment="How long it had been up then.")


_DRIFT = (func.clock_timestamp() - ReaperClock.seen_at) - (bindparam("up", type_=Interval()) - ReaperClock.uptime)
DRIFT = select(_DRIFT).where(ReaperClock.boot_id == bindparam("boot"))
_SEEN = insert(ReaperClock).values(
    boot_id=bindparam("boot"), seen_at=func.clock_timestamp(), uptime=bindparam("up", type_=Interval())
)
SEE = _SEEN.on_conflict_do_update(
    index_elements=[ReaperClock.boot_id], set_={"seen_at": _SEEN.excluded.seen_at, "uptime": _SEEN.excluded.uptime}
)
_FORGOTTEN_AFTER = timedelta(days=365)


async def drift(connection: AsyncConnection, boot_id: str, uptime: timedelta) -> timedelta | None:
    """How much further the database's clock has gone than this machine's; None for a machine that is new here."""
    found: timedelta | None = await connection.scalar(DRIFT, {"boot": boot_id, "up": uptime})
    return found


async def see(connection: AsyncConnection, boot_id: str, uptime: timedelta) -> None:
    """Remember what both clocks say now; machines that have not reaped for a year are forgotten."""
    await connection.execute(SEE, {"boot": boot_id, "up": uptime})
    old = ReaperClock.seen_at < func.clock_timestamp() - _FORGOTTEN_AFTER
    await connection.execute(delete(ReaperClock).where(old))


async def forget(connection: AsyncConnection) -> None:
    """Take the database's clock as it is now: every machine begins anew."""
    await connection.execute(delete(ReaperClock))
