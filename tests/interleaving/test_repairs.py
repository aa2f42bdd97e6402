"""A repair against everybody else, in every order of their steps: what was found wrong may have changed by then."""

from dataclasses import replace
from itertools import product

import pytest

from bdr.catalog.blob import LIVE, PENDING
from tests.interleaving.families import IDLE, LEASED, Family, Report, check
from tests.interleaving.holders import release_all
from tests.interleaving.operations import add, delete, get, register, release, remove
from tests.interleaving.reaping import claim, claim_stranded, renew, sweep
from tests.interleaving.repairs import move, publish, quarantine, readopt, retire, retire_unreferenced
from tests.interleaving.serial import then
from tests.interleaving.stage import Stage
from tests.interleaving.state import BlobRow, Ref, State, left_over, stored

LOST = replace(IDLE, objects=set(), lost=True)
HELD = replace(stored(a=Ref("x", count=1, at_once=True)), apart=False)
ON_A = (register("a"), remove("a"), claim(), add("b", "x"))

FAMILIES = (
    Family("missing", LOST, list(product([retire("x")], ON_A)), 120),
    Family("missing and swept", left_over(with_object=False), [(retire("x"), sweep())], 20),
    Family("truncated", IDLE, list(product([quarantine("x")], [*ON_A, get("a"), quarantine("x")])), 60),
    Family("truncated and held", HELD, list(product([quarantine("x")], [release("a"), delete("a")])), 10),
    Family("truncated and held by name", replace(LEASED, apart=False), [(quarantine("x"), release_all("h"))], 5),
    Family("truncated and reaped", replace(IDLE, apart=False), [(quarantine("x"), then(claim(), sweep()))], 10),
    Family(
        "unreferenced",
        State(blobs={"x": BlobRow(LIVE)}, objects={"x"}),
        [(retire_unreferenced("x"), other) for other in (add("b", "x"), retire_unreferenced("x"))],
        90,
    ),
    Family(
        "uploads",
        left_over(PENDING),
        list(product([retire("x"), quarantine("x"), move("x")], [publish("a", "x"), claim_stranded(), renew()])),
        60,
    ),
    Family("orphans", State(objects={"x"}), [(move("x"), readopt("x"))], 30),
    Family("an orphan that has an owner", left_over(), [(move("x"), sweep())], 20),
)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
async def test_a_repair_touches_only_what_is_still_wrong(stage: Stage, family: Family, record_property: Report) -> None:
    await check(stage, family, record_property)
