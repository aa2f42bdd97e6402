"""Publication in groups: the uploads of one engine that end at about the same time turn live in one commit."""

import asyncio

from bdr.catalog.database import Database
from bdr.catalog.publication import Publication, publish_many
from bdr.catalog.turns import ahead
from bdr.errors import BinaryStorageError
from bdr.manager.grouping import Ask, Groups, breaking_off, concerns_all, fail_all, put_down, take_up

_Ask = Ask[Publication, bool]


class Publishing:
    """Publications of one engine. A group waits for no lock: what is locked is published by itself, beside the next.

    At most `lanes` of the connections wait for locks, and one at least may.
    """

    def __init__(self, database: Database, lanes: int) -> None:
        self._database = database
        self._places = asyncio.Semaphore(max(1, lanes))
        self._groups = Groups(self._commit)

    async def publish(self, publication: Publication) -> bool:
        """Turn an upload into a reference; False when a reaper has claimed it before. Errors: OutcomeUnknown."""
        ask: _Ask = Ask(publication, publication.row["file_key"], "Storing")
        self._groups.add(ask)
        return await ask.answered()

    async def close(self) -> None:
        """Wait until everything that was asked has its answer."""
        await self._groups.close()

    async def _commit(self, asks: list[_Ask]) -> None:
        try:
            with ahead():
                published = await publish_many(self._database, lambda: take_up(asks), skip_locked=True)
        except BinaryStorageError as error:
            if concerns_all(asks, error):
                fail_all(asks, error)
            else:
                # One of them is at fault, and the others shall not suffer for it.
                self._publish_alone(asks)
            return
        left = []
        for ask in asks:
            if ask.item.row["blob_id"] in published:
                ask.give(True)
            else:
                left.append(ask)
        self._publish_alone(left)

    def _publish_alone(self, asks: list[_Ask]) -> None:
        put_down(asks)
        for ask in asks:
            self._groups.do_beside(self._wait_and_publish([ask]))

    async def _wait_and_publish(self, asks: list[_Ask]) -> None:
        """Publish the only one of `asks`, once nobody has it locked any more."""
        with breaking_off(asks):
            try:
                async with self._places:
                    with ahead():
                        published = await publish_many(self._database, lambda: take_up(asks))
            except BinaryStorageError as error:
                fail_all(asks, error)
            else:
                for ask in asks:
                    ask.give(ask.item.row["blob_id"] in published)
