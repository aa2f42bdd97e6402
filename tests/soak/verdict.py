"""Whether a curve is flat: what a soak measured, and what it may not do."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Final

MIB: Final = 1 << 20


@dataclass(frozen=True)
class Measure:
    """A kind of figure, and by how much it may have risen at the end.

    Attributes:
        share: of its median.
        grain: what is no rise at all, however small the median: how finely it can be told, or its rhythm.
        scale: what of the figure makes one `unit`.
    """

    name: str
    unit: str
    share: float
    grain: float
    scale: float = 1

    def shown(self, value: float) -> str:
        """The value as people read it."""
        digits = 1 if self.scale > 1 else 0
        return f"{value / self.scale:,.{digits}f} {self.unit}"


MEMORY: Final = Measure("memory", "MiB", share=0.05, grain=3 * MIB, scale=MIB)
FILES: Final = Measure("file descriptors", "open", share=0.0, grain=3)
CONNECTIONS: Final = Measure("connections", "open", share=0.0, grain=2)
LIVE: Final = Measure("live rows", "rows", share=0.15, grain=100)
# They come and go with each run of autovacuum, a minute and more apart.
DEAD: Final = Measure("dead rows", "rows", share=0.25, grain=500)
SIZE: Final = Measure("size", "MiB", share=0.10, grain=0.25 * MIB, scale=MIB)
MEASURES: Final = (MEMORY, FILES, CONNECTIONS, LIVE, DEAD, SIZE)
# The rest is the warm-up: caches fill, and the catalog comes to its steady size.
JUDGED: Final = 2 / 3


@dataclass(frozen=True)
class Finding:
    """What became of one curve in the part of it that is judged."""

    measure: Measure
    of: str
    least: float
    median: float
    most: float
    rise: float

    @property
    def allowed(self) -> float:
        """By how much it may have risen."""
        return max(self.measure.share * self.median, self.measure.grain)

    @property
    def is_flat(self) -> bool:
        """Falling is not what a soak looks for."""
        return self.rise <= self.allowed

    def __str__(self) -> str:
        shown = self.measure.shown
        verdict = "" if self.is_flat else "not flat: "
        return (
            f"{verdict}{self.measure.name} of {self.of} rose by {shown(self.rise)} where {shown(self.allowed)} are "
            f"allowed (from {shown(self.least)} to {shown(self.most)}, median {shown(self.median)})"
        )


def judge(measure: Measure, of: str, times: Sequence[float], values: Sequence[float]) -> Finding:
    """Look at the last two thirds of a curve: its rise is that of a Theil-Sen line, which no outlier moves."""
    start = times[-1] - JUDGED * (times[-1] - times[0])
    points = [(time, value) for time, value in zip(times, values, strict=True) if time >= start]
    judged = [value for _, value in points]
    slope = median((after - before) / (late - early) for (early, before), (late, after) in combinations(points, 2))
    rise = slope * (points[-1][0] - points[0][0])
    return Finding(measure, of, min(judged), median(judged), max(judged), rise)
