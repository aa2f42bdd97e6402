"""What was measured beside its floor, and whether that is as good as it has to be."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import Any, Final


class Bound(Enum):
    """On which side of its goal a figure has to lie."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True)
class Goal:
    """What is aimed at: so many times the floor, or, where there is no floor, so many units."""

    bound: Bound
    value: float

    def is_met(self, figure: float) -> bool:
        """Whether a figure is good enough."""
        return figure >= self.value if self.bound is Bound.AT_LEAST else figure <= self.value


def at_least(value: float) -> Goal:
    """More is better."""
    return Goal(Bound.AT_LEAST, value)


def at_most(value: float) -> Goal:
    """Less is better."""
    return Goal(Bound.AT_MOST, value)


@dataclass(frozen=True)
class Comparison:
    """One line of the table.

    Attributes:
        unit: of `ours` and `floor`.
        ours: a figure for each round.
        floor: the figure of what it is compared with, for each round; empty when the goal is in units.
        note: what else is to be known.
    """

    row: str
    work: str
    against: str
    unit: str
    goal: Goal
    ours: Sequence[float]
    floor: Sequence[float] = ()
    note: str = ""

    @property
    def figures(self) -> list[float]:
        """What is held against the goal, for each round."""
        if not self.floor:
            return list(self.ours)
        return [mine / its for mine, its in zip(self.ours, self.floor, strict=True)]

    @property
    def figure(self) -> float:
        """The median of the rounds."""
        return median(self.figures)

    @property
    def is_met(self) -> bool:
        """By the median of the rounds."""
        return self.goal.is_met(self.figure)

    def __str__(self) -> str:
        met = "met" if self.is_met else "missed"
        against = f" {self.against}" if self.floor else ""
        return f"{met}: {self.row}, {self.work}: {self._held(self.figure)}{against}; the goal is {self._goal}"

    def cells(self) -> list[str]:
        """One line of the table, as it is shown."""
        least, most = min(self.figures), max(self.figures)
        return [
            f"{self.row}: {self.work}",
            self.against,
            shown(median(self.ours), self.unit),
            shown(median(self.floor), self.unit) if self.floor else "-",
            f"{self._held(self.figure)} ({shown(least)} to {shown(most)})",
            self._goal,
            "met" if self.is_met else "**missed**",
        ]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "row": self.row,
            "work": self.work,
            "against": self.against,
            "unit": self.unit,
            "ours": list(self.ours),
            "floor": list(self.floor),
            "figure": self.figure,
            "figures": self.figures,
            "goal": f"{self.goal.bound.value} {self.goal.value}",
            "met": self.is_met,
            "note": self.note,
        }

    @property
    def _goal(self) -> str:
        return f"{self.goal.bound.value} {self._held(self.goal.value)}"

    def _held(self, figure: float) -> str:
        return shown(figure, "x" if self.floor else self.unit)


HEADER: Final = ("work", "against", "bdr", "floor", "median (spread)", "goal", "")
_LARGE: Final = 100


def shown(value: float, unit: str = "") -> str:
    """A figure as people read it: three digits that count, or all that stand before the point."""
    digits = f"{value:,.0f}" if value == 0 or abs(value) >= _LARGE else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


def table(comparisons: Sequence[Comparison]) -> str:
    """The table in Markdown, aligned for those who read it in a terminal."""
    lines = [list(HEADER), *(one.cells() for one in comparisons)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    rows = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])


def missed(comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence for each goal that was not met."""
    return [str(one) for one in comparisons if not one.is_met]
