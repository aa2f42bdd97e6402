import logging
import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdr.cli import logs
from bdr.cli.failures import exit_code, tell
from bdr.cli.output import JsonList, emit_fields, emit_json, emit_table
from bdr.cli.progress import numbers
from bdr.cli.text import length, moment, shown, size
from bdr.errors import (
    BinaryStorageError,
    CatalogUnavailable,
    ConfigError,
    FileNotFound,
    Gone,
    InvalidArgument,
    Lost,
    OutcomeUnknown,
)
from bdr.progress import OperationProgress

EVIL = "a\x1b[31m\x9b[red]b[/red]\r\n\u202e\u2028gpj.\ud800\x7f"
HARMLESS = r"a\x1b[31m\x9b[red]b[/red]\r\n\u202e\u2028gpj.\ud800\x7f"


def test_text_from_outside_is_shown_by_its_escapes_where_it_could_steer_a_terminal() -> None:
    assert shown(EVIL) == HARMLESS
    assert shown("Rechnung für 王小明 👍 é.pdf") == "Rechnung für 王小明 👍 é.pdf"


@given(st.text())
def test_what_is_shown_is_one_printable_line(text: str) -> None:
    line = shown(text)
    assert len(line.splitlines()) <= 1
    assert not any(ord(one) < 32 or 127 <= ord(one) < 160 for one in line)
    assert shown(line) == line


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (20_000_000, "19.1 MiB"), (5 * 1024**5, "5120.0 TiB")],
)
def test_sizes_are_written_in_binary_units(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (None, "-"),
        (timedelta(0), "0.0 s"),
        (timedelta(seconds=9.94), "9.9 s"),
        (timedelta(seconds=65), "1:05"),
        (timedelta(hours=26, minutes=10), "26:10:00"),
    ],
)
def test_lengths_of_time_are_written_for_people(time: timedelta | None, text: str) -> None:
    assert length(time) == text


def test_moments_are_written_in_utc() -> None:
    assert moment(None) == "-"
    east = timezone(timedelta(hours=5))
    assert moment(datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=east)) == "2026-01-01T22:04:05Z"


def progress(**values: object) -> OperationProgress:
    defaults = {"operation_id": uuid.UUID(int=1), "operation_type": "store", "started_at": datetime.now(UTC)}
    return OperationProgress(**defaults | values)  # type: ignore[arg-type]  # the values are the test's own


def test_a_bar_shows_percentage_rate_and_remaining_time_as_far_as_they_are_known() -> None:
    half = progress(total_bytes=10 * 1024**2, processed_bytes=5 * 1024**2, elapsed=timedelta(seconds=2))
    assert numbers(half) == "50% 5.0 MiB of 10.0 MiB, 2.5 MiB/s, 2.0 s left"
    unknown = progress(processed_bytes=5 * 1024**2, elapsed=timedelta(seconds=2))
    assert numbers(unknown) == "5.0 MiB, 2.5 MiB/s"
    assert numbers(progress(total_bytes=0, elapsed=timedelta(0))) == "0% 0 B of 0 B"


def test_in_a_pipe_a_table_is_lines_of_cells_between_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    emit_table(("KEY", "NAME"), [("k1", "a\tb"), ("k2", EVIL)])
    emit_fields([("name", "x\ny")])
    assert capsys.readouterr().out == f"k1\ta\\tb\nk2\t{HARMLESS}\nname\tx\\ny\n"


def test_json_is_plain_ascii_and_a_list_is_closed_whatever_happens(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"name": "é\x1b\u202e\ud800"})
    assert capsys.readouterr().out == '{\n  "name": "\\u00e9\\u001b\\u202e\\ud800"\n}\n'
    with pytest.raises(RuntimeError):
        _list()
    assert capsys.readouterr().out == "[]\n"
    with pytest.raises(RuntimeError):
        _list(1, "b")
    assert capsys.readouterr().out == '[\n1,\n"b"\n]\n'


def _list(*items: object) -> None:
    with JsonList() as written:
        for item in items:
            written.add(item)
        raise RuntimeError(EVIL[:6])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFound("x"), 3),
        (Gone("x"), 3),
        (Lost("x"), 1),
        (InvalidArgument("x"), 2),
        (ConfigError("x"), 1),
        (CatalogUnavailable("x"), 1),
    ],
)
def test_each_error_has_its_exit_code(error: BinaryStorageError, code: int) -> None:
    assert exit_code(error) == code


def test_an_error_is_told_in_lines_of_harmless_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(CatalogUnavailable(f"first\nsecond {EVIL[:5]}"), "a.pdf") == 1
    assert capsys.readouterr().err == "bdr: a.pdf: first\nbdr: second a\\x1b[31\n"


def test_an_unknown_outcome_says_what_to_look_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(OutcomeUnknown(["06h0s31vc5p61f5aip4nf6too4.txt"], "Storing")) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "bdr: `bdr stat 06h0s31vc5p61f5aip4nf6too4.txt` shows what became of it."
    )


def test_a_log_line_is_one_line_and_a_traceback_keeps_its_own(
    capsys: pytest.CaptureFixture[str], untouched_logging: None
) -> None:
    logs.configure("info")
    log = logging.getLogger("bdr.test")
    log.debug("not shown")
    with pytest.raises(RuntimeError) as caught:
        _list()
    log.info("stored %s", EVIL[:6])
    log.error("a bug", exc_info=caught.value)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(r"Z INFO bdr.test: stored a\x1b[31m")
    assert lines[1].endswith("Z ERROR bdr.test: a bug")
    assert lines[2] == "Traceback (most recent call last):"
    assert lines[-1] == r"RuntimeError: a\x1b[31m"
