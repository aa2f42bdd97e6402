"""What became of one item of a plan."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, Field

from bdr.fsck.findings import Finding, FindingKind


class Result(StrEnum):
    """How the repair of one finding ended.

    Attributes:
        REPAIRED: done.
        SKIPPED: it is not as the plan says any more, or nothing can repair it by itself; nothing was changed.
        FAILED: it could not be done now; the same plan may be repaired again.
    """

    REPAIRED = "repaired"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finding, how its repair ended, and why so."""

    finding: Finding
    result: Result
    why: str


class RepairReport(BaseModel):
    """What a repair did.

    Attributes:
        results: how many findings, by how their repair ended, and by kind.
        references: how many references were deleted, because their bytes are lost.
    """

    results: dict[Result, dict[FindingKind, int]] = Field(default_factory=dict)
    references: int = 0

    def count(self, result: Result) -> int:
        """Findings whose repair ended so."""
        return sum(self.results.get(result, {}).values())

    def add(self, outcome: Outcome) -> None:
        """Take in what became of one finding."""
        kinds = self.results.setdefault(outcome.result, {})
        kinds[outcome.finding.kind] = kinds.get(outcome.finding.kind, 0) + 1


def all_ended(findings: Collection[Finding], result: Result, why: str) -> list[Outcome]:
    """The same outcome for several findings."""
    return [Outcome(one, result, why) for one in findings]
