"""`connection=`: the verbs inside transactions of callers, at each isolation level, committed and rolled back.

Each is exact, or says that it lost (TransactionConflict, above READ COMMITTED only); it is never wrong. The callers
have looked at the catalog before, so that their snapshots, where they keep one, may be older than what they meet.
"""

from itertools import product

import pytest

from tests.interleaving import callers
from tests.interleaving.callers import Verb, store_within, within
from tests.interleaving.families import AGED, IDLE, LEASED, Cases, Family, Report, check
from tests.interleaving.holders import hold, lapse
from tests.interleaving.operations import register, remove
from tests.interleaving.reaping import claim, claim_stranded, sweep
from tests.interleaving.serial import then
from tests.interleaving.stage import LEVELS, Level, Stage
from tests.interleaving.state import State


def cases(level: Level, *verbs: Verb) -> Cases:
    """Each verb in a transaction that commits, against who may change the row; and in one that is rolled back."""
    others = (register("a"), claim(), remove("a"))
    committed = [(within(level, verb), other) for verb, other in product(verbs, others)]
    against_itself = [(within(level, verb), within(level, verb)) for verb in verbs]
    rolled_back = [(within(level, verb, commits=False), claim()) for verb in verbs]
    return [*committed, *against_itself, *rolled_back]


@pytest.mark.parametrize("level", LEVELS)
async def test_counting_in_a_transaction_is_exact_or_says_that_it_lost(
    stage: Stage, level: Level, record_property: Report
) -> None:
    verbs = (callers.register("a"), callers.release("a"))
    await check(stage, Family("counting", AGED, cases(level, *verbs), 100), record_property)


@pytest.mark.parametrize("level", LEVELS)
async def test_holding_in_a_transaction_is_exact_or_says_that_it_lost(
    stage: Stage, level: Level, record_property: Report
) -> None:
    verb = callers.hold("a", "h")
    met = [(within(level, verb), other) for other in (lapse(), hold("a", "h"))]
    await check(stage, Family("holding", LEASED, [*cases(level, verb), *met], 80), record_property)


@pytest.mark.parametrize("level", LEVELS)
async def test_deleting_in_a_transaction_is_exact_or_says_that_it_lost(
    stage: Stage, level: Level, record_property: Report
) -> None:
    verbs = (callers.cleanup("a"), callers.delete("a"))
    await check(stage, Family("deleting", IDLE, cases(level, *verbs), 200), record_property)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("looks_first", [False, True])
async def test_storing_in_a_transaction_publishes_with_its_commit_or_leaves_the_row_to_the_reaper(
    stage: Stage, level: Level, looks_first: bool, record_property: Report
) -> None:
    reaper = then(claim_stranded(), sweep())
    stores = [store_within(level, commits=commits, looks_first=looks_first) for commits in (True, False)]
    late = State(hasty=True, apart=False)
    await check(stage, Family("storing", late, [(one, reaper) for one in stores], 100), record_property)
