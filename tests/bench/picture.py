"""The curves of a benchmark as a picture."""

from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench.ground import Curves

# Their floors take a connection again as soon as they have put one back, which is fastest for all together. A few
# callers do nearly all of the work then and the others wait for the whole round: how long a call takes says nothing.
_UNFAIR: Final = {"register: floor", "hot: floor"}


def draw(curves: Curves, title: str, path: Path) -> None:
    """Throughput over callers, cost over the size of the catalog, and how long calls take."""
    figure = Figure(figsize=(15, 9), layout="constrained")
    figure.suptitle(title, fontsize="small")
    axes = figure.subplots(2, 3)
    for work, place in zip(("register", "store", "get"), axes[0], strict=True):
        _draw_callers(place, work, curves)
    _draw_catalogs(axes[1][0], curves)
    _draw_latencies(axes[1][1], curves, alone=True)
    _draw_latencies(axes[1][2], curves, alone=False)
    figure.savefig(path, dpi=80)


def _draw_callers(axes: Axes, work: str, curves: Curves) -> None:
    for name, points in curves.callers.items():
        of, _, side = name.partition(": ")
        if of == work:
            axes.plot(*zip(*points, strict=True), label=side, marker="o")
    axes.set(title=f"{work}: calls per second", xlabel="callers")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    _finish(axes)


def _draw_catalogs(axes: Axes, curves: Curves) -> None:
    for work, points in curves.catalogs.items():
        axes.plot(*zip(*points, strict=True), label=work, marker="o")
    axes.set(title="cost of one, against the smallest catalog", xlabel="references")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    _finish(axes)


def _draw_latencies(axes: Axes, curves: Curves, *, alone: bool) -> None:
    for name, percentiles in curves.latencies.items():
        row, _, side = name.partition(": ")
        if ("alone" in row or "cached" in row) is alone and name not in _UNFAIR:
            line, values = ("-" if side == "bdr" else ":"), list(percentiles.values())
            axes.plot(list(percentiles), values, line, label=name)
    axes.set(title=f"milliseconds of a call, {'one caller' if alone else '64 callers'}", xlabel="percentile")
    axes.set_yscale("log")
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(visible=True, color="0.9")
    if axes.lines:
        axes.legend(fontsize="x-small")
