"""Progress on a terminal's standard error; nothing at all elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bdr.cli.text import length, shown, size
from bdr.progress import OperationProgress

OnProgress = Callable[[OperationProgress], None]
_LONGEST_TITLE = 40


@contextmanager
def transfer(title: str, *, visible: bool = True) -> Iterator[OnProgress | None]:
    """A bar for one transfer while inside; gives what the manager takes as `on_progress`."""
    if not (visible and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
    )
    # Standard output is not its business: what is printed there would come out on standard error.
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(_short(title), total=None, numbers="")

        def update(now: OperationProgress) -> None:
            bar.update(task, completed=now.processed_bytes, total=now.total_bytes, numbers=numbers(now))

        yield update


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """A spinner while inside, for what has no measure but the time it takes."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        bar.add_task(_short(title), total=None)
        yield


def numbers(now: OperationProgress) -> str:
    """How far it is in figures, such as `50% 5.0 MiB of 10.0 MiB, 2.5 MiB/s, 2.0 s left`."""
    percentage = now.completion_percentage
    done = size(now.processed_bytes)
    if now.total_bytes is not None and percentage is not None:
        done = f"{percentage:.0f}% {done} of {size(now.total_bytes)}"
    parts = [done]
    if now.bytes_per_second is not None:
        parts.append(f"{size(now.bytes_per_second)}/s")
    if now.estimated_remaining_time is not None:
        parts.append(f"{length(now.estimated_remaining_time)} left")
    return ", ".join(parts)


def _short(title: str) -> str:
    # The end of a path tells more than its beginning.
    title = shown(title)
    return title if len(title) <= _LONGEST_TITLE else "…" + title[1 - _LONGEST_TITLE :]
