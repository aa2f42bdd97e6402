"""fsck: tells what differs between the catalog and its storages, and repairs it by a plan that was looked at.

async with bdr.connect() as binary:
report = await check(binary, Path("fsck.plan"))
if not report.is_clean:
await repair(binary, Path("fsck.plan"))
"""

from bdr.fsck.check import check, resume
from bdr.fsck.findings import Examined, Finding, FindingKind, FsckReport, Place, Unknown
from bdr.fsck.outcome import Outcome, RepairReport, Result
from bdr.fsck.plan import read_plan, summary
from bdr.fsck.repair import repair

__all__ = [
    "Examined",
    "Finding",
    "FindingKind",
    "FsckReport",
    "Outcome",
    "Place",
    "RepairReport",
    "Result",
    "Unknown",
    "check",
    "read_plan",
    "repair",
    "resume",
    "summary",
]
