"""What a catalog and its storage hold, as far as the rules speak of it: laid out before, compared after."""

from collections import Counter
from dataclasses import dataclass, field

from bdr.catalog.blob import DELETING, LIVE, PENDING


@dataclass
class Ref:
    """A reference.

    Attributes:
        at_once: its life after the last release is nothing; otherwise it is an hour.
        idle: the last access is longer ago than that hour.
        aged: its longest life is over.
        keep: what is held then is kept until it is released.
        holders: those of its count that are by name, and whether the term of each is over.
        bound: that term is the life of the engine, rather than a lease.
    """

    blob: str
    count: int = 0
    at_once: bool = False
    idle: bool = False
    aged: bool = False
    keep: bool = False
    pinned: bool = False
    holders: dict[str, bool] = field(default_factory=dict)
    bound: bool = field(default=False, compare=False)

    @property
    def is_expired(self) -> bool:
        held = self.count > 0
        unheld_too_long = not held and (self.at_once or self.idle)
        return not self.pinned and (unheld_too_long or (self.aged and not (held and self.keep)))


@dataclass
class BlobRow:
    """A blob's row.

    Attributes:
        due: its deadline has passed, so a reaper may claim it.
        claim: tells one claim from the next; for the rules only, no row shows it.
    """

    state: str
    due: bool = False
    claim: int = field(default=0, compare=False)


@dataclass
class State:
    """Everything, by names of the test's own; what an upload makes is called `new`.

    Attributes:
        objects: the blobs whose object lies in the storage.
        records: how many operation records there are, by type and status; `pruned` those in the totals.
        ended: the references whose end a record tells of.
        instances: what is known of each engine: `alive`, `silent` for too long, `just noted` to be, `noted` long ago,
            or `dead`.
        hasty: leases and graces are over at once, as when a process stands still for long enough.
        apart: single statements commit in a step of their own; otherwise at once, which makes for fewer orders.
        grouping: counts first try what is free, as if others came at the same moment, and so do publications; otherwise
            they wait for the lock at once, as who is alone does, which makes for far fewer orders.
        lost: the storage was in the memory of an engine that is no more, so there are no objects.
        known: whether the storage has its row.
    """

    references: dict[str, Ref] = field(default_factory=dict)
    blobs: dict[str, BlobRow] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)
    records: Counter[str] = field(default_factory=Counter)
    pruned: Counter[str] = field(default_factory=Counter)
    ended: set[str] = field(default_factory=set, compare=False)
    instances: dict[str, str] = field(default_factory=dict)
    hasty: bool = field(default=False, compare=False)
    apart: bool = field(default=True, compare=False)
    grouping: bool = field(default=False, compare=False)
    lost: bool = field(default=False, compare=False)
    known: bool = True

    def refers_to(self, blob: str) -> bool:
        return any(reference.blob == blob for reference in self.references.values())

    def violations(self) -> list[str]:
        """Where a guarantee does not hold, a sentence each: true of every state in which nothing is under way."""
        wrong = []
        for name, reference in self.references.items():
            row = self.blobs.get(reference.blob)
            if row is None or row.state != LIVE:
                wrong.append(f"G1: {name} refers to a blob that is {'gone' if row is None else row.state}")
            if reference.blob not in self.objects and not self.lost:
                wrong.append(f"G1: the object of {name} is not there")
            if reference.count < len(reference.holders):
                wrong.append(f"G3: {name} has the count {reference.count} and {len(reference.holders)} holders")
        wrong += [f"G2: the object of {blob} has no row" for blob in sorted(self.objects - self.blobs.keys())]
        for blob, row in self.blobs.items():
            if row.state == LIVE and not self.refers_to(blob):
                wrong.append(f"blob {blob} is live for ever: nothing refers to it")
        return wrong


def stored(**references: Ref) -> State:
    """A state in which these references are there, with their blobs and objects, and nothing else."""
    blobs = {reference.blob: BlobRow(LIVE) for reference in references.values()}
    return State(references=dict(references), blobs=blobs, objects=set(blobs))


def left_over(state: str = DELETING, *, with_object: bool = True) -> State:
    """A state with one blob `x` that is due to be claimed: an upload past its deadline, or an object to delete."""
    assert state in (PENDING, DELETING)
    return State(blobs={"x": BlobRow(state, due=True)}, objects={"x"} if with_object else set())
