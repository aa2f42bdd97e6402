"""One part of a storage: a folder of objects, or what lies beside the folders, compared with the blobs that own it.

Engines and reapers go on meanwhile. What is relied on is the order in which everybody does things, so that no finding
needs an age to wait for:

- A row is there from before the first byte of its object until after its last, and no path is used twice. An object
  was listed; after that there is no row for its path; after that the object still answers; and there is still no row.
  An upload would have had its row before it could be listed. A delete would have taken the object before the row. Only
  an upload whose row was taken away while it wrote may insert it again, at any moment, hence the second look; it may
  do so even after that, and a repair looks again.
- A blob turns `deleting` in a commit that comes before its object is deleted, and never turns `live` again. A stat
  finds no object, or another size; after that the row is still live. So it was live at the stat, and the object should
  have been there, whole.
- Live blobs are read before the listing begins. Each was complete then, and what is there at the end was there all the
  time: a blob that the listing leaves out, and whose object answers afterwards, proves that the listing is not whole.
  (Its time of creation would prove nothing: an upload may have begun long before it wrote.)
- A share that is unmounted for a moment is empty. That an object is not there is believed only while the marker is, by
  every stat; and the marker is read before and after every part.
"""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping

from bdr.catalog import inventory
from bdr.catalog.inventory import Owner
from bdr.fsck.findings import REST, SHARDS, Examined, Finding, FindingKind
from bdr.fsck.plan import Done, PlanWriter
from bdr.fsck.probe import Probe, is_plain
from bdr.manager.engine import Engine
from bdr.storage.paths import MARKER_PATH
from bdr.storage.protocol import ListedObject


class PartCheck:
    """Compares one part; what is wrong goes into the plan.

    Memory holds the path and size of each live blob of the part, and a batch of everything else.
    """

    def __init__(
        self,
        engine: Engine,
        probe: Probe,
        plan: PlanWriter,
        storage: str,
        part: str,
        advance: Callable[[int], None],
    ) -> None:
        self._engine = engine
        self._probe = probe
        self._plan = plan
        self.storage = storage
        self.name = part
        self._prefix = f"{part}/"
        self._batch = engine.settings.fsck.batch_size
        self._advance_run = advance
        self._examined = Examined()
        self._advanced = 0
        self._gaps: list[str] = []
        self._marked: dict[str, bool] = {}

    async def run(self) -> Done:
        """Compare; gives back the line that concludes the part. UnknowableError when the storage gives no answer."""
        gap = await self._listed() if self._probe.can_list else "it cannot list its objects"
        if gap is not None:
            # Nothing that came of the listing stays. Each blob is asked for by itself instead, which proves as much.
            self.undo()
            await self._asked()
            self._gaps.append(f"Objects that no blob owns cannot be told: {gap}.")
        return Done(storage=self.storage, part=self.name, examined=self._examined, unknown=" ".join(self._gaps) or None)

    def undo(self) -> None:
        """Take back what was found and counted."""
        self._plan.rollback()
        self._advance_run(-self._advanced)
        self._examined, self._advanced = Examined(), 0
        self._gaps.clear()

    def _advance(self, count: int) -> None:
        self._advanced += count
        self._advance_run(count)

    async def _listed(self) -> str | None:
        """Compare with a listing; gives back why that listing cannot be relied on."""
        expected: dict[str, int] = {}
        async for sizes in self._live():
            expected |= sizes
        async for batch in self._objects():
            await self._compare(batch, expected)
        left = list(expected)
        for start in range(0, len(left), self._batch):
            for path in await self._look_up(left[start : start + self._batch]):
                if path.startswith(self._prefix):
                    return f"its listing left out {path}, which is there"
        return None

    async def _asked(self) -> None:
        """Look each live blob up by itself."""
        async for sizes in self._live():
            await self._look_up(sizes)

    async def _live(self) -> AsyncIterator[dict[str, int]]:
        """Paths and sizes of live blobs in the part's range of paths; the 256 ranges together have every path."""
        if self.name == REST:
            return
        number = SHARDS.index(self.name)
        after = self._prefix if number else ""
        until = f"{SHARDS[number + 1]}/" if number + 1 < len(SHARDS) else None
        more = True
        while more:
            async with self._engine.database.reading() as connection:
                rows = await inventory.live(connection, self.storage, after, until, self._batch)
            self._examined.add(Examined(blobs=len(rows), bytes=sum(row.size for row in rows)))
            await self._unreferenced([row.path for row in rows if not row.referenced])
            yield {row.path: row.size for row in rows}
            more = len(rows) == self._batch
            after = rows[-1].path if rows else after

    async def _objects(self) -> AsyncIterator[list[ListedObject]]:
        if self.name != REST:
            async for batch in self._probe.listed(self.name):
                yield batch
            return
        async for batch in self._probe.listed("", recursive=False):
            yield [found for found in batch if found.size is not None and found.path != MARKER_PATH]
            for folder in (found.path.removesuffix("/") for found in batch if found.size is None):
                if folder in SHARDS:
                    continue
                if is_plain(folder):
                    async for inside in self._probe.listed(folder):
                        yield inside
                else:
                    yield [ListedObject(f"{folder}/", None)]

    async def _compare(self, batch: Iterable[ListedObject], expected: dict[str, int]) -> None:
        strangers: list[ListedObject] = []
        odd: list[str] = []
        right: dict[str, int] = {}
        for found in batch:
            self._examined.objects += 1
            size = expected.pop(found.path, None)
            if size is None:
                strangers.append(found)
            elif size == found.size:
                right[found.path] = size
            else:
                odd.append(found.path)
        await self._orphans(strangers)
        await self._look_up(odd)
        await self._read(right)

    async def _look_up(self, paths: Collection[str]) -> list[str]:
        """Ask for objects that were not listed, or with another size; gives back those that are there."""
        if not paths:
            return []
        sizes = await self._probe.sizes(paths)
        owners = await self._owners(paths)
        right: dict[str, int] = {}
        for path, size in sizes.items():
            owner = owners.get(path)
            if owner is not None and owner.is_live and size is not None and size == owner.size:
                right[path] = size
            elif owner is not None:
                self._advance(owner.size or 0)
        await self._report(verdicts(owners, sizes))
        await self._read(right)
        return [path for path, size in sizes.items() if size is not None]

    async def _read(self, right: dict[str, int]) -> None:
        """Compare all bytes of objects that have the right size, if that was asked for."""
        if not self._plan.header.checksum:
            self._advance(sum(right.values()))
            return
        owners = await self._owners(right)
        digests = await self._probe.digests(right, self._advance)
        odd = {path: right[path] for path, owner in owners.items() if digests[path] != owner.checksum}
        if odd:
            # Once more: what a cache or the network did to bytes on their way is no fault of the object.
            again = await self._probe.digests(odd)
            sizes = await self._probe.sizes(odd)
            await self._report(verdicts(await self._owners(odd), sizes, again))

    async def _orphans(self, strangers: list[ListedObject]) -> None:
        for found in strangers:
            if not is_plain(found.path):
                self._plan.add(self._orphan(found.path, found.size, "its name is none that bdr gives"))
        paths = [found.path for found in strangers if is_plain(found.path)]
        suspects = set(paths) - (await self._owners(paths)).keys()
        there = {path: size for path, size in (await self._probe.sizes(suspects)).items() if size is not None}
        owned = await self._owners(there)
        for path, size in there.items():
            if path not in owned and not await self._is_others(path):
                self._plan.add(self._orphan(path, size))

    async def _is_others(self, path: str) -> bool:
        folder = await self._probe.marked_above(path, self._marked)
        told = f"{folder}/ holds the marker of a storage, and what is below it was left out."
        if folder is not None and told not in self._gaps:
            self._gaps.append(told)
        return folder is not None

    async def _unreferenced(self, paths: list[str]) -> None:
        # One statement sees a blob and its references as they were at one moment, and both change in one commit; so it
        # needs no second look to be true, only to be still so.
        for owner in (await self._owners(paths)).values():
            if owner.is_live and not owner.referenced:
                self._plan.add(self._finding(FindingKind.UNREFERENCED, owner))

    async def _owners(self, paths: Collection[str]) -> dict[str, Owner]:
        if not paths:
            return {}
        async with self._engine.database.reading() as connection:
            return await inventory.owners(connection, self.storage, list(paths))

    async def _report(self, verdicts: list[tuple[FindingKind, Owner, int | None]]) -> None:
        if not verdicts:
            return
        blob_ids = [owner.blob_id for _, owner, _ in verdicts]
        async with self._engine.database.reading() as connection:
            references = await inventory.references(connection, blob_ids)
        for kind, owner, found_size in verdicts:
            count, keys = references.get(owner.blob_id, (0, []))
            found = self._finding(kind, owner)
            more = {"found_size": found_size, "references": count, "file_keys": keys}
            self._plan.add(found.model_copy(update=more))

    def _finding(self, kind: FindingKind, owner: Owner) -> Finding:
        return Finding(kind=kind, storage=self.storage, path=owner.path, blob_id=owner.blob_id, size=owner.size)

    def _orphan(self, path: str, size: int | None, why: str | None = None) -> Finding:
        return Finding(kind=FindingKind.ORPHAN, storage=self.storage, path=path, size=size, why=why)


def verdicts(
    owners: Mapping[str, Owner], sizes: Mapping[str, int | None], digests: Mapping[str, bytes | None] | None = None
) -> list[tuple[FindingKind, Owner, int | None]]:
    """What is wrong with objects that were asked for before their owners were."""
    found: list[tuple[FindingKind, Owner, int | None]] = []
    for path, size in sizes.items():
        owner = owners.get(path)
        if owner is None or not owner.is_live:
            continue
        if size is None:
            found.append((FindingKind.MISSING, owner, None))
        elif size != owner.size:
            found.append((FindingKind.TRUNCATED, owner, size))
        elif digests is not None and digests[path] != owner.checksum:
            found.append((FindingKind.CORRUPT, owner, None))
    return found
