"""The database's part of stores, in groups: places are reserved together, and uploads published together."""

from datetime import timedelta

from bdr.catalog.blob import Reservation
from bdr.catalog.database import Database
from bdr.catalog.publication import Publication, publish_many, reserve_many
from bdr.catalog.turns import ahead
from bdr.errors import BinaryStorageError, CatalogUnavailable, OutcomeUnknown
from bdr.manager.grouping import Ask, Groups, concerns_all, fail_all, mark_sent


class Publishing:
    """Reservations and publications of one engine; `lease` is how long a reserved place is its upload's."""

    def __init__(self, database: Database, lease: timedelta) -> None:
        self._database = database
        self._lease = lease
        self._reservations: Groups[Reservation, None] = Groups(self._reserve)
        self._publications: Groups[Publication, bool] = Groups(self._publish)

    async def reserve(self, reservation: Reservation) -> None:
        """Insert a `pending` row; CatalogUnavailable when it is not known whether it is there."""
        # Without a key: whoever is cancelled here has stored nothing.
        ask: Ask[Reservation, None] = Ask(reservation, None, "Reserving")
        self._reservations.add(ask)
        await ask.answered()

    async def publish(self, publication: Publication) -> bool:
        """Turn an upload into a reference; False when a reaper has claimed it before. Errors: OutcomeUnknown."""
        ask: Ask[Publication, bool] = Ask(publication, publication.row["file_key"], "Storing")
        self._publications.add(ask)
        return await ask.answered()

    async def close(self) -> None:
        """Wait until everything that was asked has its answer."""
        await self._reservations.close()
        await self._publications.close()

    async def _reserve(self, asks: list[Ask[Reservation, None]]) -> None:
        try:
            await reserve_many(self._database, [ask.item for ask in asks], self._lease)
        except OutcomeUnknown as error:
            # If a row is there it stands for nothing, and goes when its deadline has passed.
            lost = CatalogUnavailable(
                "The connection to the database was lost before anything was written; nothing was stored."
            )
            lost.__cause__ = error
            fail_all(asks, lost)
        except BinaryStorageError as error:
            fail_all(asks, error)
        else:
            for ask in asks:
                ask.give(None)

    async def _publish(self, asks: list[Ask[Publication, bool]]) -> None:
        mark_sent(asks)
        try:
            with ahead():
                published = await publish_many(self._database, [ask.item for ask in asks])
        except BinaryStorageError as error:
            if len(asks) == 1 or concerns_all(error):
                fail_all(asks, error)
            else:
                # One of them is at fault, and the others shall not suffer for it.
                mark_sent(asks, sent=False)
                for ask in asks:
                    await self._publish_alone(ask)
        else:
            for ask in asks:
                ask.give(ask.item.row["blob_id"] in published)

    async def _publish_alone(self, ask: Ask[Publication, bool]) -> None:
        if not ask.is_over:
            await self._publish([ask])
