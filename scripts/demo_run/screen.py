"""What the demo shows: a line for each thing it does, and bars on a terminal."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from scripts.demo_run import printable

# Without a terminal there is no bar, and a line as seldom as this.
SECONDS_PER_LINE = 10.0
KIB = 1024


class Screen:
    """Standard output: lines, and one bar at a time."""

    def __init__(self) -> None:
        # Names of files may hold what the terminal's encoding cannot.
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # it is the real one
        self._console = Console(highlight=False, markup=False)
        self._has_bars = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    def say(self, text: str, style: str = "") -> None:
        """A line."""
        self._console.print(Text(printable(text), style), soft_wrap=not self._has_bars)
        # A pipe is read as it goes on, too.
        sys.stdout.flush()

    @contextmanager
    def meter(self, total: int, size: int | None = None, *, noun: str = "file") -> Iterator["Meter"]:
        """Show how far a step is, by bytes when there is a size, else by number; at the end a line says what it was."""
        columns = (TextColumn(" "), BarColumn(bar_width=20), _Figures(Column(no_wrap=True)))
        bars = Progress(*columns, console=self._console, transient=True, disable=not self._has_bars)
        with bars:
            meter = Meter(self, bars, total, size, noun)
            yield meter
        self.say(f"  {meter.summary()}")


class Meter:
    """How far one step is; made by `Screen.meter`."""

    def __init__(self, screen: Screen, bars: Progress, total: int, size: int | None, noun: str) -> None:
        self._screen = screen
        self._bars = bars
        self._began = self._said = time.monotonic()
        self._id = bars.add_task("", total=total if size is None else size, done=0, all=total, noun=noun, size=size)

    @property
    def _task(self) -> Task:
        return self._bars.tasks[0]

    def advance(self, number: int = 1, *, size: int = 0) -> None:
        """So many more are done, or bytes."""
        fields = self._task.fields
        step = number if fields["size"] is None else size
        self._bars.update(self._id, advance=step, done=fields["done"] + number)
        if self._bars.disable and time.monotonic() - self._said >= SECONDS_PER_LINE:
            self._said = time.monotonic()
            self._screen.say(f"  {_figures(self._task)}")

    def summary(self) -> str:
        """What it came to."""
        seconds = max(time.monotonic() - self._began, 0.001)
        done = counted(self._task.fields["done"], self._task.fields["noun"])
        if self._task.fields["size"] is None:
            return f"{done} in {seconds:.1f} s."
        return f"{done}, {human(self._task.completed)} in {seconds:.1f} s ({human(self._task.completed / seconds)}/s)."


class _Figures(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_figures(task))


def _figures(task: Task) -> str:
    fields = task.fields
    figures = f"{fields['done']:,}/{counted(fields['all'], fields['noun'])}"
    if fields["size"] is not None:
        figures += f"  {human(task.completed)}/{human(fields['size'])}  {human(task.speed or 0)}/s"
    remaining = task.time_remaining
    return figures if remaining is None else f"{figures}  {timedelta(seconds=int(remaining))} left"


def counted(number: int, noun: str) -> str:
    """So many of something."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"


def human(size: float) -> str:
    """Bytes as people read them."""
    if size < KIB:
        return f"{size:.0f} bytes"
    for unit in ("KiB", "MiB", "GiB"):
        size /= KIB
        if size < KIB:
            return f"{size:.1f} {unit}"
    return f"{size / KIB:,.1f} TiB"
