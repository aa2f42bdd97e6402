"""Three operations at once, where the third may come between what two have settled among themselves."""

import pytest

from tests.interleaving.families import IDLE, LEASED, RUNNING, SHARED, TWO, Family, Report, check
from tests.interleaving.holders import hold, lapse
from tests.interleaving.operations import add, count_many, register, release, remove, touch
from tests.interleaving.reaping import claim
from tests.interleaving.records import declare_dead, end, fail_lost, heartbeat, prune, totals
from tests.interleaving.stage import Stage
from tests.interleaving.state import State

FAMILIES = (
    Family("register, claim, remove", IDLE, [(register("a"), claim(), remove("a"))], 200),
    Family("register, release, claim", IDLE, [(register("a"), release("a"), claim())], 80),
    Family("touch, register, claim", IDLE, [(touch("a"), register("a"), claim())], 120),
    Family("remove, add, claim", SHARED, [(remove("a"), add("c", "x"), claim())], 250),
    Family("remove one, remove the other, add", SHARED, [(remove("a"), remove("b"), add("c", "x"))], 600),
    Family("hold, lapse, claim", LEASED, [(hold("a", "h"), lapse(), claim())], 100),
    Family("batches", TWO, [(count_many(1, "b", "a"), count_many(1, "a", "b"), count_many(-1, "a", "b"))], 30),
    Family(
        "records",
        State(records=RUNNING, instances={"engine": "noted"}),
        [
            (end(), declare_dead(), fail_lost()),
            (heartbeat(), declare_dead(), declare_dead()),
            (prune(), prune(), totals()),
        ],
        100,
    ),
)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
async def test_three_operations_come_to_what_some_serial_order_would(
    stage: Stage, family: Family, record_property: Report
) -> None:
    await check(stage, family, record_property)
