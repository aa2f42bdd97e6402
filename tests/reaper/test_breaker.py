"""The reaper stops before it empties a catalog: too much at once, or a clock that moved unlike time."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

import bdr
from bdr import BinaryDataLifecycleManager
from bdr.storage.paths import MARKER_PATH
from tests.fixtures.engines import AT_ONCE, Connect

FEW = {"max_references": 4, "max_share": 0.5}


async def sql(binary: BinaryDataLifecycleManager, statement: str) -> None:
    await binary.engine.database.write(lambda own: own.execute(text(statement)))


async def stored(binary: BinaryDataLifecycleManager, number: int) -> list[str]:
    return [(await binary.store_data(bytes([n]))).file_key for n in range(number)]


@pytest.mark.parametrize(
    ("expired", "kept", "stops"),
    [(4, 0, False), (5, 5, False), (6, 5, True), (9, 0, True)],
    ids=["as many as allowed", "just half", "more than half", "all"],
)
async def test_a_pass_that_would_delete_too_much_deletes_nothing_until_it_is_confirmed(
    connect: Connect, expired: int, kept: int, stops: bool
) -> None:
    binary = await connect(
        lifecycle=bdr.LifecycleCleanupConfig(max_retention=AT_ONCE), reaper=bdr.ReaperConfig.model_validate(FEW)
    )
    keeping = await connect()
    await stored(keeping, kept)
    await stored(binary, expired)
    report = await binary.reap()
    assert report.references == (0 if stops else expired)
    assert bool(report.stopped) is stops
    if report.stopped:
        assert f"{expired} of the {expired + kept} references" in report.stopped
        assert "bdr reap --confirm" in report.stopped
        assert (await binary.reap()).references == 0
        assert (await binary.reap(confirmed=True)).references == expired
    assert (await binary.reap()).stopped is None


async def test_what_has_expired_in_a_storage_that_is_away_does_not_stop_the_others(
    connect: Connect, tmp_path: Path
) -> None:
    places = {name: bdr.BinaryStorageConfig(storage_type="fs", root=str(tmp_path / name)) for name in ("main", "away")}
    life = bdr.LifecycleCleanupConfig(max_retention=AT_ONCE)
    limits = bdr.ReaperConfig.model_validate(FEW)
    binary = await connect(storages=places, lifecycle=life, reaper=limits)
    filling = await connect(storages=places, default_storage="away", lifecycle=life)
    await stored(filling, 9)
    await stored(binary, 3)
    (tmp_path / "away" / MARKER_PATH).unlink()
    report = await binary.reap()
    assert report.stopped is None
    assert (report.references, list(report.unreachable)) == (3, ["away"])


@pytest.mark.parametrize("days", [7, -7])
async def test_a_clock_that_jumped_stops_every_pass_until_it_is_confirmed(connect: Connect, days: int) -> None:
    binary = await connect()
    (key,) = await stored(binary, 1)
    assert (await binary.reap()).stopped is None
    # As if the database's clock had gone on by so much more than time did.
    await sql(binary, f"UPDATE bdr.reaper_clock SET seen_at = seen_at - interval '{days} days'")
    await sql(binary, "UPDATE bdr.binary_data_reference SET max_retention = '0'")
    for _ in range(2):
        report = await binary.reap()
        assert report.stopped
        assert "clock has moved" in report.stopped
        assert await binary.data_exists(key)
    assert (await binary.reap(confirmed=True)).references == 1
    assert (await binary.reap()).stopped is None


async def test_a_clock_that_is_put_right_again_needs_no_confirmation(connect: Connect) -> None:
    binary = await connect()
    await binary.reap()
    await sql(binary, "UPDATE bdr.reaper_clock SET seen_at = seen_at - interval '7 days'")
    assert (await binary.reap()).stopped
    await sql(binary, "UPDATE bdr.reaper_clock SET seen_at = seen_at + interval '7 days'")
    assert (await binary.reap()).stopped is None


async def test_a_machine_that_was_up_for_a_week_between_two_passes_is_no_jump(connect: Connect) -> None:
    binary = await connect()
    await binary.reap()
    await sql(
        binary, "UPDATE bdr.reaper_clock SET seen_at = seen_at - interval '7 days', uptime = uptime - interval '7 days'"
    )
    assert (await binary.reap()).stopped is None


async def test_a_stopped_pass_is_recorded_as_failed_with_its_reason(connect: Connect) -> None:
    binary = await connect(
        lifecycle=bdr.LifecycleCleanupConfig(max_retention=AT_ONCE),
        reaper=bdr.ReaperConfig(max_references=0, max_share=0.1, clock_tolerance=timedelta(days=1)),
    )
    await stored(binary, 1)
    await binary.reap()
    async with binary.engine.database.reading() as connection:
        query = text("SELECT status, detail->>'stopped' FROM bdr.operation WHERE operation_type = 'reap_pass'")
        ((status, reason),) = (await connection.execute(query)).all()
    assert status == "failed"
    assert "would be deleted" in reason
