"""The benchmark: its verdict on made figures, and some of its rows run for real, far too shortly to mean anything."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import __main__ as command
from tests.bench.ground import MIB, QUICK, Ground
from tests.bench.streams import bare_store
from tests.bench.verdict import Comparison, Goal, at_least, at_most, missed, table
from tests.bench.workers import Orders, rate_of, together, watched
from tests.storage.helpers import until

TINY = replace(
    QUICK,
    rounds=2,
    seconds=0.05,
    references=100,
    files=10,
    expired=50,
    catalogs=(100, 200),
    reaped=10,
    callers=(1, 4),
    glance=0.05,
)


def made(goal: Goal, ours: Sequence[float], floor: Sequence[float] = ()) -> Comparison:
    """Of figures that nobody measured."""
    return Comparison("row", "work", "the floor", "/s" if floor else "MiB", goal, ours, floor)


# The goal, our figures, those of the floor, whether it is met.
FIGURES = {
    "fast enough": (at_least(2), (20, 30, 10), (10, 10, 10), True),
    "one round that is better does not help": (at_least(2), (19, 90, 10), (10, 10, 10), False),
    "quick enough": (at_most(1.4), (14, 9), (10, 10), True),
    "too slow": (at_most(1.4), (15, 14), (10, 10), False),
    "paired round by round, not by the medians": (at_least(2), (10, 40, 90), (1, 30, 40), True),
    "small enough by itself": (at_most(64), (64,), (), True),
    "too large by itself": (at_most(64), (65,), (), False),
    "nothing at all where nothing is allowed": (at_most(0), (0,), (), True),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_goal_is_held_against_the_median_of_the_rounds(name: str) -> None:
    goal, ours, floor, is_met = FIGURES[name]
    assert made(goal, ours, floor).is_met == is_met


def test_a_missed_goal_is_told_in_a_sentence_and_marked_in_the_table() -> None:
    slow, fine = made(at_least(5), (1200, 1300), (400, 400)), made(at_most(64), (12.34,))
    assert missed([slow, fine]) == ["missed: row, work: 3.12 x the floor; the goal is ≥ 5 x"]
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table([slow, fine]).splitlines()]
    assert lines[2] == ["row: work", "the floor", "1,250 /s", "400 /s", "3.12 x (3 to 3.25)", "≥ 5 x", "**missed**"]
    assert lines[3] == ["row: work", "the floor", "12.3 MiB", "-", "12.3 MiB (12.3 to 12.3)", "≤ 64 MiB", "met"]


@pytest.mark.parametrize(("rate", "code"), [(30, 0), (29, 1)])
def test_the_command_fails_when_a_goal_is_missed_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rate: float, code: int
) -> None:
    async def measure(_: Ground, names: Sequence[str], compared: list[Comparison]) -> None:
        assert names == ["hot", "get"]
        compared.append(made(at_least(3), (rate,), (10,)))

    monkeypatch.setattr(command, "measure", measure)
    assert command.main(["--quick", "--only", "hot", "--only", "get", "--into", str(tmp_path)]) == code
    assert ("missed: row, work: 2.9 x the floor; the goal is ≥ 3 x" in capsys.readouterr().out) == bool(code)
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][0]["met"] == (not code)


def test_a_run_that_is_cut_off_leaves_what_it_has_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([[made(at_least(3), (40,), (10,))], []])

    async def measure(_: Ground, _names: Sequence[str], compared: list[Comparison]) -> None:
        compared += next(figures)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", measure)
    # The second one has measured nothing yet, and leaves the figures of the first.
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            command.main(["--quick", "--into", str(tmp_path)])
        assert [row["figure"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]] == [4]


async def test_rows_are_measured_on_both_sides_in_every_round_and_drawn(tmp_path: Path) -> None:
    ground = Ground(tmp_path, TINY)
    compared: list[Comparison] = []
    await command.measure(ground, ["register", "reap", "scale", "curves"], compared)
    rows = [one.row for one in compared]
    assert rows == ["register", "reap", "scale", "scale"]
    for one in compared:
        assert len(one.ours) == len(one.floor) == TINY.rounds
        assert all(figure > 0 for figure in [*one.ours, *one.floor]), one
    command.write(ground, compared, tmp_path / "figures")
    assert (tmp_path / "figures" / "bench.png").read_bytes().startswith(b"\x89PNG")
    curves = json.loads((tmp_path / "figures" / "bench.json").read_text())["curves"]
    assert {len(points) for points in curves["callers"].values()} == {len(TINY.callers)}
    assert {len(points) for points in curves["catalogs"].values()} == {len(TINY.catalogs)}
    assert "register: floor" in curves["latencies"]


async def test_processes_tell_what_they_did(tmp_path: Path) -> None:
    answers = await together([Orders(bare_store, (tmp_path / name, 8 * MIB, (1, 1))) for name in ("one", "two")])
    assert [one.done for one in answers] == [8, 8]
    assert rate_of(answers) > 0


async def test_a_process_that_fails_ends_the_measurement(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="has failed; above it says why"):
        await together([Orders(bare_store, (tmp_path / "file", 8 * MIB, (1, 1)))])


async def test_memory_is_what_a_process_takes_beyond_what_it_had() -> None:
    with watched(1) as answer:
        block = b"x" * 64 * MIB

        async def is_seen() -> bool:
            return answer.memory > 0.9 * len(block)

        await until(is_seen)
    assert answer.memory < 2 * len(block)
