"""What one pass of the reaper did, for people and for the record."""

from pydantic import BaseModel


class ReapReport(BaseModel):
    """What one pass did.

    Attributes:
        references: expired references that were deleted, and those into the memory of an engine that is no more.
        blobs: objects that were deleted with their rows.
        bytes: their size.
        stranded: uploads past their deadline that were given over to deletion.
        failed: objects that could not be deleted and will be tried again.
        quarantined: objects that failed too often; a person decides.
        stopped: why nothing was deleted, and a person should look first.
        unreachable: storages in which nothing was deleted, or nothing more from some point on, and why.
        instances: engine instances that were declared dead.
        holders: named registrations that ended with their lease, or with their engine instance.
        pruned: operation records that were moved into the totals.
        duration: seconds.
    """

    references: int = 0
    blobs: int = 0
    bytes: int = 0
    stranded: int = 0
    failed: int = 0
    quarantined: int = 0
    stopped: str | None = None
    unreachable: dict[str, str] = {}
    instances: int = 0
    holders: int = 0
    pruned: int = 0
    duration: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to do."""
        return not any(self.model_dump(exclude={"duration"}).values())

    @property
    def trouble(self) -> str | None:
        """What did not work; None when all did."""
        parts = [f"nothing was deleted: {self.stopped}"] if self.stopped else []
        parts += [f"objects that could not be deleted and will be tried again: {self.failed}"] if self.failed else []
        parts += [f"objects that are quarantined now: {self.quarantined}"] if self.quarantined else []
        parts += [f"storage '{name}' was left out: {reason}" for name, reason in self.unreachable.items()]
        return "; ".join(parts) or None
