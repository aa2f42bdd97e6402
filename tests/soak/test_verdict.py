"""Curves that are made up: what rises is found whatever its shape, and what is flat is left in peace."""

import math
import random
from collections.abc import Callable

import pytest

from tests.soak.load import Done
from tests.soak.run import Report, Schedule
from tests.soak.sampling import Curves
from tests.soak.verdict import CONNECTIONS, DEAD, FILES, LIVE, MEMORY, MIB, SIZE, Measure, judge

MINUTES = 30
TIMES = [5.0 * number for number in range(12 * MINUTES)]
NOISE = random.Random(7)


def sawtooth(time: float) -> float:
    """Dead rows until autovacuum comes, about every minute."""
    return 60 * (time % 63)


FLAT: dict[str, tuple[Measure, Callable[[float], float]]] = {
    "constant": (MEMORY, lambda _: 80 * MIB),
    "nothing at all": (DEAD, lambda _: 0),
    "noisy": (LIVE, lambda _: NOISE.gauss(4_000, 300)),
    "a warm-up that ends": (MEMORY, lambda time: 80 * MIB * (1 - math.exp(-time / 100))),
    "a sawtooth": (DEAD, sawtooth),
    "falling": (SIZE, lambda time: (90 - time / 60) * MIB),
    "one outlier": (CONNECTIONS, lambda time: 90 if time == TIMES[-1] else 12),
    "one more open file": (FILES, lambda time: 20 + (time > 1_000)),
}
RISING: dict[str, tuple[Measure, Callable[[float], float]]] = {
    "a leak in each call": (MEMORY, lambda time: 80 * MIB + time / 60 * 0.5 * MIB),
    "a leak under noise": (MEMORY, lambda time: 80 * MIB + time / 60 * 0.5 * MIB + NOISE.gauss(0, 3 * MIB)),
    "a file each five minutes": (FILES, lambda time: 20 + time // 300),
    "a connection each five minutes": (CONNECTIONS, lambda time: 5 + time // 300),
    "rows that nobody removes": (LIVE, lambda time: 1_000 + time),
    "a sawtooth that climbs": (DEAD, lambda time: sawtooth(time) + time),
    "bloat": (SIZE, lambda time: 4 * MIB * (1 + time / TIMES[-1] / 5)),
}


@pytest.mark.parametrize("curve", FLAT)
def test_a_curve_that_ends_where_it_was_is_flat(curve: str) -> None:
    measure, value = FLAT[curve]
    finding = judge(measure, "made", TIMES, [value(time) for time in TIMES])
    assert finding.is_flat, finding


@pytest.mark.parametrize("curve", RISING)
def test_a_curve_that_rises_is_not_flat(curve: str) -> None:
    measure, value = RISING[curve]
    finding = judge(measure, "made", TIMES, [value(time) for time in TIMES])
    assert not finding.is_flat, finding
    assert str(finding).startswith(f"not flat: {measure.name} of made rose by ")


def report(*, rising: bool = False, failures: int = 0, violations: tuple[str, ...] = ()) -> Report:
    """Of a soak with one curve."""
    curves = Curves(TIMES, {(FILES, "engine 1"): [time if rising else 20 for time in TIMES]})
    done = Done(failures=failures, sentences=["Busy: no connection"] * failures)
    return Report(Schedule(60), curves, curves.findings(), done, list(violations))


def test_all_that_is_wrong_is_told_a_sentence_each() -> None:
    assert report().wrong == []
    wrong = report(rising=True, failures=1, violations=("object x has no row",)).wrong
    assert [one.partition(" rose ")[0] for one in wrong] == [
        "not flat: file descriptors of engine 1",
        "1 calls failed: Busy: no connection",
        "object x has no row",
    ]
