"""Lengths of time and sizes, in the forms people write them."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdr.settings.values import LONGEST, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("90s", timedelta(seconds=90)),
        ("1h", timedelta(hours=1)),
        ("5 min", timedelta(minutes=5)),
        ("5 Minutes", timedelta(minutes=5)),
        ("7d", timedelta(days=7)),
        ("2 weeks", timedelta(weeks=2)),
        ("1h30m", timedelta(minutes=90)),
        ("1h 30m 5s", timedelta(minutes=90, seconds=5)),
        ("250ms", timedelta(milliseconds=250)),
        ("1.5h", timedelta(minutes=90)),
        ("PT1H", timedelta(hours=1)),
        ("P1DT2H", timedelta(days=1, hours=2)),
        ("90", timedelta(seconds=90)),
        (90, timedelta(seconds=90)),
        (0.25, timedelta(milliseconds=250)),
        (timedelta(days=1), timedelta(days=1)),
        ("0", timedelta(0)),
        (LONGEST, LONGEST),
    ],
)
def test_durations_as_people_write_them(written: object, expected: timedelta) -> None:
    assert parse_duration(written) == expected


@pytest.mark.parametrize(
    "written",
    [
        "",
        "soon",
        "1 fortnight",
        "1h30",
        "1h-30m",
        "-5s",
        "P",
        "PT",
        "1:30:00",
        "٣s",
        True,
        None,
        [],
        "h",
        "1e3",
        "1x" * 99,
    ],
)
def test_what_is_no_duration_is_told_the_good_forms(written: object) -> None:
    with pytest.raises(ValueError, match=r'not a length of time: write it like "90s"') as caught:
        parse_duration(written)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "written",
    [-1, -0.001, float("nan"), float("inf"), "9" * 400, "1001 d" * 400, timedelta(-1), LONGEST + timedelta(1)],
)
def test_durations_out_of_range_are_refused(written: object) -> None:
    with pytest.raises(ValueError, match="from 0 to 1000 years"):
        parse_duration(written)


@given(st.integers(min_value=0, max_value=LONGEST // timedelta(milliseconds=1)))
def test_a_duration_is_read_back_as_it_is_shown(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("written", "expected"),
    [("100MiB", 104_857_600), ("10 MB", 10_000_000), ("1.5 kib", 1_536), ("12", 12), ("7B", 7), (0, 0), (2**40, 2**40)],
)
def test_sizes_as_people_write_them(written: object, expected: int) -> None:
    assert parse_size(written) == expected


@pytest.mark.parametrize("written", ["", "big", "-1", -1, "10 XB", True, None, 1.5, "1 MiB 2"])
def test_what_is_no_size_is_told_the_good_forms(written: object) -> None:
    with pytest.raises(ValueError, match=r'not a size: write it like "100MiB"'):
        parse_size(written)


@given(st.integers(min_value=0, max_value=2**63))
def test_a_size_is_read_back_as_it_is_shown(size: int) -> None:
    assert parse_size(format_size(size)) == size
