"""Counts: what a reference says of itself, compared with what it counts.

Here is the place for every further count. A page is one statement, and all that it compares changes in one commit; so
what it finds was wrong at one moment, and needs no second look.
"""

from collections.abc import Sequence

from bdr.catalog import inventory
from bdr.catalog.inventory import HOLDERS_DIFFER, SIZE_DIFFERS, Counts
from bdr.fsck.findings import CATALOG, COUNTS, Examined, Finding, FindingKind
from bdr.fsck.outcome import Outcome, Result, all_ended
from bdr.fsck.plan import Done, PlanWriter
from bdr.manager.engine import Engine

_CORRECTABLE = {SIZE_DIFFERS, HOLDERS_DIFFER}


async def check_counts(engine: Engine, plan: PlanWriter) -> Done:
    """Compare all references; gives back the line that concludes the part."""
    batch = engine.settings.fsck.batch_size
    examined = Examined()
    after, more = "", True
    while more:
        async with engine.database.reading() as connection:
            rows = await inventory.counts(connection, after, batch)
        for row in rows:
            if row.problem is not None:
                plan.add(_finding(row))
        examined.blobs += len(rows)
        more = len(rows) == batch
        after = rows[-1].file_key if rows else after
    return Done(storage=CATALOG, part=COUNTS, examined=examined)


async def correct_counts(engine: Engine, findings: Sequence[Finding]) -> list[Outcome]:
    """Write the right number where it is known; it is compared again under the reference's lock."""
    known = [one for one in findings if one.why in _CORRECTABLE]
    others = [one for one in findings if one.why not in _CORRECTABLE]
    outcomes = all_ended(others, Result.SKIPPED, "nothing says what is right; decide, then change or delete it by hand")
    keys = [key for one in known for key in one.file_keys]
    if keys:
        corrected = await engine.database.transaction(lambda own: inventory.correct(own, keys), what="Correcting")
        # fail point: repair.corrected
        for one in known:
            if corrected.issuperset(one.file_keys):
                outcomes.append(Outcome(one, Result.REPAIRED, "it agrees now"))
            else:
                outcomes.append(Outcome(one, Result.SKIPPED, "it agreed already, or was deleted"))
    return outcomes


def _finding(row: Counts) -> Finding:
    return Finding(
        kind=FindingKind.COUNT,
        storage=CATALOG,
        blob_id=row.blob_id,
        size=row.blob_size,
        found_size=row.file_size,
        file_keys=[row.file_key],
        why=row.problem,
    )
