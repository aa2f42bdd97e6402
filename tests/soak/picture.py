"""The curves of a soak as a picture."""

from pathlib import Path

from matplotlib.figure import Figure

from tests.soak.sampling import Curves
from tests.soak.verdict import JUDGED, MEASURES


def draw(curves: Curves, title: str, path: Path) -> None:
    """A part for each measure, a line for each process or table; what was not judged is grey."""
    figure = Figure(figsize=(13, 12), layout="constrained")
    figure.suptitle(title)
    minutes = [time / 60 for time in curves.times]
    for measure, axes in zip(MEASURES, figure.subplots(3, 2).flat, strict=True):
        for (of_measure, of), values in curves.values.items():
            if of_measure == measure:
                axes.plot(minutes, [value / measure.scale for value in values], label=of, linewidth=1)
        axes.axvspan(minutes[0], minutes[-1] - JUDGED * (minutes[-1] - minutes[0]), color="0.93")
        axes.set(title=measure.name, xlabel="minutes", ylabel=measure.unit)
        axes.set_ylim(bottom=0)
        if axes.lines:
            axes.legend(fontsize="x-small", loc="upper left", ncols=2)
    figure.savefig(path, dpi=80)
