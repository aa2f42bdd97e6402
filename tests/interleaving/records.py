"""Operation records and engine instances: what is counted once, and who still lives."""

from datetime import timedelta
from typing import Final

from bdr.catalog import instance, operation
from bdr.catalog.operation import Record
from bdr.progress import OperationStatus
from tests.interleaving.serial import Operation, Turn
from tests.interleaving.stage import Stage

ENGINE: Final = "engine"
_MINUTE: Final = timedelta(minutes=1)


def prune() -> Operation:
    """Old records of what has ended become totals; one that another pruner has is left to it."""

    async def run(stage: Stage) -> object:
        return await stage.database.write(lambda own: operation.prune_old(own, 30 * _MINUTE, 10))

    def rule(turn: Turn) -> object:
        old = [kind for kind in turn.state.records.elements() if not kind.endswith("running") and not turn.skips()]
        turn.state.records.subtract(old)
        turn.state.pruned.update(old)
        return len(old)

    return Operation("prune", run, rule)


def totals() -> Operation:
    """Counts every operation ever, once, whatever is being pruned."""

    async def run(stage: Stage) -> object:
        async with stage.database.reading() as connection:
            return {status: n for status, (n, _) in (await operation.totals(connection)).items()}

    def rule(turn: Turn) -> object:
        counted: dict[str, int] = {}
        for kind in (turn.state.records + turn.state.pruned).elements():
            status = kind.split()[1]
            counted[status] = counted.get(status, 0) + 1
        return counted

    return Operation("totals", run, rule, waits=False)


def end(*, status: OperationStatus = OperationStatus.SUCCEEDED) -> Operation:
    """A running operation of the engine ends, unless it was failed meanwhile: then that stands."""

    async def run(stage: Stage) -> object:
        record = Record(stage.operation_ids[0], "store", stage.instance_ids[ENGINE], status)
        return await stage.database.write(lambda own: operation.write_ended(own, [record]))

    def rule(turn: Turn) -> None:
        if turn.state.records["store running"]:
            turn.state.records.subtract(["store running"])
            turn.state.records[f"store {status}"] += 1

    return Operation("end", run, rule)


def heartbeat() -> Operation:
    """The engine is heard of, or learns that it was declared dead."""

    async def run(stage: Stage) -> object:
        return await stage.database.write(lambda own: instance.heartbeat(own, stage.instance_ids[ENGINE]))

    def rule(turn: Turn) -> object:
        if turn.state.instances[ENGINE] == "dead":
            return False
        turn.state.instances[ENGINE] = "alive"
        return True

    return Operation("heartbeat", run, rule)


def stop() -> Operation:
    """The engine closes; it was dead, it stays so."""

    async def run(stage: Stage) -> object:
        return await stage.database.write(lambda own: instance.stop(own, stage.instance_ids[ENGINE]))

    def rule(turn: Turn) -> None:
        turn.state.instances[ENGINE] = "dead"

    return Operation("stop", run, rule)


def declare_dead() -> Operation:
    """Who was found silent long ago and was not heard of since is dead; whoever is silent now is noted."""

    async def run(stage: Stage) -> object:
        return await stage.database.write(lambda own: instance.declare_dead(own, _MINUTE))

    def rule(turn: Turn) -> object:
        dead = 0
        for name, seen in turn.state.instances.items():
            if seen in ("silent", "noted") and not turn.skips():
                turn.state.instances[name] = {"silent": "just noted", "noted": "dead"}[seen]
                dead += seen == "noted"
        return dead

    return Operation("declare dead", run, rule, waits=False)


def fail_lost() -> Operation:
    """The running operations of the dead have failed; one whose end is just being written is left to that."""

    async def run(stage: Stage) -> object:
        return await stage.database.write(instance.fail_lost)

    def rule(turn: Turn) -> object:
        if turn.state.instances[ENGINE] != "dead":
            return 0
        lost = [kind for kind in turn.state.records.elements() if kind.endswith("running") and not turn.skips()]
        turn.state.records.subtract(lost)
        turn.state.records["store failed"] += len(lost)
        return len(lost)

    return Operation("fail lost", run, rule, waits=False)
