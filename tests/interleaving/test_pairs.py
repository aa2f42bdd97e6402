"""Every two operations, in every order of their steps; what must come of it stands with each as its rule."""

from dataclasses import replace
from itertools import product

import pytest

from bdr.catalog.blob import PENDING
from tests.interleaving.families import (
    AGED,
    HALF_HELD,
    IDLE,
    LEASED,
    RUNNING,
    SHARED,
    STOPPED,
    TWO,
    Family,
    Report,
    check,
    each_two,
)
from tests.interleaving.holders import hold, lapse, release_all, release_by
from tests.interleaving.operations import (
    add,
    cleanup,
    count_many,
    delete,
    delete_many,
    get,
    pin,
    register,
    release,
    remove,
    store,
    store_that_fails,
    touch,
)
from tests.interleaving.reaping import claim, claim_stranded, fail, forget, hand_back, reap, renew, reserve, sweep
from tests.interleaving.records import declare_dead, end, fail_lost, heartbeat, prune, stop, totals
from tests.interleaving.serial import then
from tests.interleaving.stage import Stage
from tests.interleaving.state import Ref, State, left_over, stored

ON_A = (register("a"), release("a"), get("a"), touch("a"), delete("a"), cleanup("a"), claim())
COUNTING = (register("a"), release("a"), touch("a"))
HOLDERS = (register("a"), release("a"), delete("a"), claim(), add("b", "x"))

ENDING = stored(a=Ref("x", count=1, at_once=True))
FAMILIES = (
    Family("idle", IDLE, each_two(*ON_A), 700),
    Family(
        "counted in groups",
        replace(IDLE, grouping=True),
        [*each_two(*COUNTING), *product([register("a"), release("a")], [remove("a"), claim()])],
        450,
    ),
    Family(
        "ending in groups",
        replace(ENDING, apart=False, grouping=True),
        [(release("a"), register("a"))],
        300,
    ),
    Family("another reference", IDLE, [*product([add("b", "x")], ON_A), (add("b", "x"), add("c", "x"))], 90),
    Family("ending", ENDING, list(product([release("a")], HOLDERS)), 300),
    Family("too old", AGED, list(product([claim()], ON_A)), 100),
    Family(
        "too old but held",
        replace(AGED, references={"a": Ref("x", count=1, aged=True, keep=True)}),
        list(product([claim(), delete("a")], COUNTING)),
        80,
    ),
    Family(
        "pinned",
        stored(a=Ref("x", aged=True, pinned=True)),
        list(product([claim(), delete("a"), pin("a", pinned=False)], [register("a"), pin("a", pinned=False), claim()])),
        30,
    ),
    Family("to be pinned", IDLE, list(product([pin("a")], [register("a"), delete("a"), claim()])), 30),
    Family(
        "leased",
        LEASED,
        [
            *each_two(hold("a", "h"), release_by("a", "h"), release_all("h"), lapse()),
            *product([hold("a", "h"), lapse()], [register("a"), release("a"), claim(), remove("a")]),
        ],
        200,
    ),
    Family(
        "bound to an engine that is dead",
        STOPPED,
        [
            *product([lapse()], [hold("a", "h"), release_by("a", "h"), release_all("h"), lapse()]),
            *product([lapse()], [register("a"), release("a"), remove("a")]),
        ],
        40,
    ),
    Family(
        "shared",
        SHARED,
        [
            (delete("a"), delete("b")),
            (cleanup("a"), delete("b")),
            (delete_many("b", "a"), delete_many("a", "b")),
            *product([claim()], [delete("a"), add("c", "x"), register("b"), delete_many("a", "b")]),
            (claim(), claim()),
        ],
        260,
    ),
    Family(
        "half held",
        HALF_HELD,
        [
            (release("b"), claim()),
            (release("b"), remove("a")),
            (remove("b"), claim()),
            (cleanup("a"), register("b")),
        ],
        100,
    ),
    Family(
        "batches",
        TWO,
        [
            (count_many(1, "b", "a"), other)
            for other in (count_many(1, "a", "b"), count_many(-1, "a", "b"), delete_many("a", "b"), claim())
        ]
        + [(count_many(-1, "b", "a"), delete_many("a", "b"))],
        50,
    ),
    Family("left over", left_over(), each_two(sweep(), fail(), hand_back()), 100),
    Family(
        "left over, leases run out",
        replace(left_over(), hasty=True),
        each_two(sweep(), fail(last=True), hand_back()),
        200,
    ),
    Family("stranded", left_over(PENDING), each_two(renew(), claim_stranded(), sweep()), 30),
    Family(
        "uploads",
        State(hasty=True, apart=False),
        [
            *product([store(), store_that_fails()], [claim_stranded(), sweep(), then(claim_stranded(), sweep())]),
        ],
        150,
    ),
    Family(
        "uploads in groups",
        State(hasty=True, apart=False, grouping=True),
        list(product([store(), store_that_fails()], [claim_stranded(), then(claim_stranded(), sweep())])),
        150,
    ),
    Family("reaped and read", IDLE, [(get("a"), then(claim(), sweep()))], 50),
    Family("a whole pass", replace(IDLE, apart=False), list(product([reap()], [register("a"), add("b", "x")])), 100),
    Family(
        "forgotten",
        replace(IDLE, objects=set(), lost=True),
        list(product([forget()], [register("a"), add("b", "x"), reserve()])),
        100,
    ),
    Family(
        "records of an engine that is silent",
        State(records=RUNNING, instances={"engine": "noted"}),
        each_two(prune(), totals(), end(), heartbeat(), declare_dead(), fail_lost(), stop()),
        100,
    ),
    Family(
        "records of an engine that is dead",
        State(records=RUNNING, instances={"engine": "dead"}),
        each_two(totals(), end(), heartbeat(), declare_dead(), fail_lost()),
        60,
    ),
)


# Thousands of orders; a busy machine takes its time.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
async def test_two_operations_come_to_what_one_after_the_other_would(
    stage: Stage, family: Family, record_property: Report
) -> None:
    await check(stage, family, record_property)
