"""What `storage check`, `db check` and `doctor` find, and how it is shown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self

from bdr.cli.failures import DONE, FAILED, say
from bdr.cli.output import emit_json, emit_table


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what of, how it ended, and what to know or to do."""

    subject: str
    state: State
    text: str

    @classmethod
    def ok(cls, subject: str, text: str) -> Self:
        """All is well."""
        return cls(subject, State.OK, text)

    @classmethod
    def note(cls, subject: str, text: str) -> Self:
        """Nothing is wrong, but it is worth knowing."""
        return cls(subject, State.NOTE, text)

    @classmethod
    def wrong(cls, subject: str, problem: object) -> Self:
        """Something has to be done, as the problem's sentence says."""
        return cls(subject, State.WRONG, str(problem))


def emit_findings(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Show all of them; gives back the exit code, which is 1 when any is wrong."""
    wrong = [one for one in findings if one.state is State.WRONG]
    if as_json:
        emit_json([asdict(one) for one in findings])
        for one in wrong:
            say(f"{one.subject}: {one.text}")
    else:
        emit_table(("CHECK", "RESULT", "DETAIL"), ((one.subject, one.state, one.text) for one in findings))
    return FAILED if wrong else DONE
