"""What goes to standard output: tables for a terminal, tab-separated lines for a pipe, JSON for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from bdr.cli.text import shown
from bdr.errors import IoError

_WIDEST = 100_000


def emit(text: str, end: str = "\n") -> None:
    """Write a line, now."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise IoError(f"Standard output cannot be written: {error.strerror}.") from error


def emit_json(value: Any) -> None:
    """Write a value as JSON in plain ASCII: no character of it means anything to a terminal."""
    emit(json.dumps(value, indent=2))


def emit_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on a terminal; elsewhere a line for each row, its cells separated by tabs, and no heading."""
    if sys.stdout.isatty():
        _draw(columns, rows)
        return
    for row in rows:
        emit("\t".join(map(shown, row)))


def emit_fields(fields: Iterable[tuple[str, str]]) -> None:
    """A name and a value a line, aligned on a terminal and separated by a tab elsewhere."""
    fields = list(fields)
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        emit(f"{name.ljust(width)}  {shown(value)}" if sys.stdout.isatty() else f"{name}\t{shown(value)}")


class JsonList:
    """A JSON list that is written item by item, and closed however the block ends."""

    def __init__(self) -> None:
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def add(self, item: Any) -> None:
        """Write one more item."""
        lead = ",\n" if self._count else "[\n"
        self._count += 1
        emit(lead + json.dumps(item, indent=2), end="")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or not issubclass(kind, BrokenPipeError):
            emit("\n]" if self._count else "[]")


def _draw(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    # A line that is too long is the terminal's to break: cells that are folded each for itself cannot be read.
    console = Console(markup=False, highlight=False, emoji=False, width=_WIDEST)
    with console.capture() as drawn:
        console.print(table)
    for line in drawn.get().splitlines():
        emit(line.rstrip())
