"""Named holders: what they hold is counted once, and let go by themselves, by the reaper, or with the reference."""

from bdr.catalog import holder as holders
from bdr.errors import NotReferenced
from tests.interleaving.operations import HOUR, Parts, absent, let_go, removal
from tests.interleaving.reaping import BATCH
from tests.interleaving.serial import Operation, Turn
from tests.interleaving.stage import Stage
from tests.interleaving.state import Ref


def hold(name: str, holder: str) -> Operation:
    """Registers by name: one more the first time, a new lease each time."""

    async def run(stage: Stage) -> object:
        return await stage.binary.register_reference(stage.keys[name], holder=holder, lease=HOUR)

    def rule(turn: Turn) -> Parts:
        if name not in turn.state.references:
            return (yield from absent(turn, name))
        return held(turn.state.references[name], holder)

    return Operation(f"hold {name} by {holder}", run, rule)


def held(ref: Ref, holder: str) -> int:
    """How many there are now that the holder is one of them."""
    if holder not in ref.holders:
        ref.count, ref.idle = ref.count + 1, False
    ref.holders[holder] = False
    return ref.count


def release_by(name: str, holder: str) -> Operation:
    """Releases what the holder holds there, once; a cleanup follows as after any release."""

    async def run(stage: Stage) -> object:
        return await stage.binary.release_reference(stage.keys[name], holder=holder)

    def rule(turn: Turn) -> Parts:
        if (ref := turn.state.references.get(name)) is None:
            return (yield from absent(turn, name))
        if ref.holders.pop(holder, None) is None:
            return NotReferenced
        return (yield from let_go(turn, name))

    return Operation(f"release {name} by {holder}", run, rule)


def release_all(holder: str) -> Operation:
    """Releases all that the holder holds, in one go; what has no life left then is cleaned up."""

    def rule(turn: Turn) -> Parts:
        mine = {name: ref for name, ref in turn.state.references.items() if holder in ref.holders}
        for ref in mine.values():
            del ref.holders[holder]
            ref.count, ref.idle = ref.count - 1, False
        ended = [name for name, ref in mine.items() if ref.count == 0 and ref.at_once]
        if ended:
            yield
            yield from removal(turn, ended, "cleanup")
        return len(mine)

    return Operation(f"release all by {holder}", lambda stage: stage.binary.release_holder(holder), rule)


def lapse() -> Operation:
    """The reaper lets go of holders whose lease is over, unless somebody has the reference, or renews it first."""

    async def run(stage: Stage) -> object:
        return await stage.database.transaction(lambda own: holders.lapse(own, BATCH))

    def rule(turn: Turn) -> object:
        lapsed = 0
        for ref in turn.state.references.values():
            over = [holder for holder, is_over in ref.holders.items() if is_over]
            if over and not turn.skips():
                for holder in over:
                    del ref.holders[holder]
                ref.count, ref.idle = ref.count - len(over), False
                lapsed += len(over)
        return lapsed

    return Operation("lapse", run, rule, waits=False)
