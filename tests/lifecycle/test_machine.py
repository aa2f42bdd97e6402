"""A state machine against a model: whatever engines do in whatever order, the catalog is what the model says."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.ext.asyncio import create_async_engine

import bdr
from bdr import BinaryDataLifecycleManager, FileNotFound, NotReferenced, Pinned
from tests.fixtures.postgres import PostgresServer
from tests.guarantees import objects_in, violations
from tests.lifecycle.support import change, make_due, rows
from tests.lifecycle.test_shared_blob import share

T = TypeVar("T")
Binary = BinaryDataLifecycleManager

# Of the two engines, one cleans up at once; what is shared by SQL is kept for ever.
RETENTIONS = (timedelta(hours=1), timedelta(0))
ENGINES = st.integers(0, 1)
PICKS = st.integers(0, 1000)
# Few, so that much happens to each.
MOST = 4
COUNT_AND_DUE = "SELECT file_key, ref_count, coalesce(expires_at <= now(), false) FROM bdr.binary_data_reference"


there_are_some = precondition(lambda self: bool(self.model))


@dataclass
class Modelled:
    """What the model knows of a reference: `idle` long since its last access, `aged` beyond its longest life."""

    data: bytes
    retention: timedelta | None
    count: int = 1
    pinned: bool = False
    idle: bool = False
    aged: bool = False

    def is_expired(self) -> bool:
        unused = self.count == 0 and (self.retention == timedelta(0) or (self.idle and self.retention is not None))
        return not self.pinned and (unused or (self.aged and self.retention is not None))


class Lifecycle(RuleBasedStateMachine):
    """Two engines on one catalog and one folder."""

    def __init__(self, postgres: PostgresServer, template: str, folder: Path) -> None:
        super().__init__()
        self.postgres = postgres
        self.runner = asyncio.Runner()
        self.model: dict[str, Modelled] = {}
        self.name = self.run(postgres.create_database(template))
        self.storage = bdr.BinaryStorageConfig(storage_type="fs", root=str(folder / self.name))
        self.stacks = [AsyncExitStack(), AsyncExitStack()]
        self.engines = [self.run(self.connect(number)) for number in (0, 1)]
        self.caller = create_async_engine(postgres.url(self.name).replace("postgresql:", "postgresql+asyncpg:"))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def connect(self, number: int) -> Binary:
        return await self.stacks[number].enter_async_context(
            bdr.connect(
                database_url=self.postgres.url(self.name),
                storage=self.storage,
                lifecycle=bdr.LifecycleCleanupConfig(zero_ref_retention=RETENTIONS[number]),
                reaper=bdr.ReaperConfig(write_grace=timedelta(0)),
            )
        )

    def pick(self, pick: int) -> tuple[str, Modelled]:
        """A reference of the model."""
        return list(self.model.items())[pick % len(self.model)]

    def set(self, key: str, values: str) -> None:
        update = f"UPDATE bdr.binary_data_reference SET {values} WHERE file_key = :key"
        self.run(change(self.engines[0], update, key=key))

    # What callers do

    @initialize()
    def begin(self) -> None:
        self.store(0, b"first")
        self.store(1, b"second")
        self.share(0)

    @rule(engine=ENGINES, verb=st.sampled_from(["register_reference", "release_reference", "cleanup_data", "get_data"]))
    def ask_for_what_is_not_there(self, engine: int, verb: str) -> None:
        with pytest.raises(FileNotFound):
            self.run(getattr(self.engines[engine], verb)("0" * 26))

    @precondition(lambda self: len(self.model) < MOST)
    @rule(engine=ENGINES, data=st.binary(max_size=100))
    def store(self, engine: int, data: bytes) -> None:
        key = self.run(self.engines[engine].store_data(data)).file_key
        self.model[key] = Modelled(data, RETENTIONS[engine])

    @rule(engine=ENGINES)
    def fail_to_store(self, engine: int) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield b"x" * 10_000
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            self.run(self.engines[engine].store_stream(broken()))

    @there_are_some
    @rule(engine=ENGINES, pick=PICKS)
    def register(self, engine: int, pick: int) -> None:
        key, known = self.pick(pick)
        known.count, known.idle = known.count + 1, False
        assert self.run(self.engines[engine].register_reference(key)) == known.count

    @there_are_some
    @rule(engine=ENGINES, pick=PICKS)
    def release(self, engine: int, pick: int) -> None:
        key, known = self.pick(pick)
        release = self.engines[engine].release_reference(key)
        if known.count == 0:
            with pytest.raises(NotReferenced):
                self.run(release)
            return
        known.count, known.idle = known.count - 1, False
        assert self.run(release) == known.count
        if known.count == 0 and known.retention == timedelta(0) and not known.pinned:
            del self.model[key]

    @there_are_some
    @rule(engine=ENGINES, pick=PICKS)
    def read(self, engine: int, pick: int) -> None:
        key, known = self.pick(pick)
        assert self.run(self.engines[engine].get_data(key)) == known.data
        self.run(self.engines[engine].access.flush())
        known.idle = known.idle and known.count > 0

    @there_are_some
    @rule(engine=ENGINES, pick=PICKS)
    def cleanup(self, engine: int, pick: int) -> None:
        key, known = self.pick(pick)
        possible = known.count == 0 and not known.pinned
        assert self.run(self.engines[engine].cleanup_data(key)) is possible
        if possible:
            del self.model[key]

    @there_are_some
    @rule(engine=ENGINES, pick=PICKS, force=st.booleans())
    def delete(self, engine: int, pick: int, force: bool) -> None:
        key, known = self.pick(pick)
        delete = self.engines[engine].delete_data(key, force=force)
        if known.pinned and not force:
            with pytest.raises(Pinned):
                self.run(delete)
            return
        self.run(delete)
        del self.model[key]

    @there_are_some
    @rule(engine=ENGINES, pick=PICKS, commits=st.booleans())
    def register_in_a_transaction(self, engine: int, pick: int, commits: bool) -> None:
        key, known = self.pick(pick)

        async def work() -> None:
            async with self.caller.connect() as own:
                await self.engines[engine].register_reference(key, connection=own)
                await (own.commit() if commits else own.rollback())

        self.run(work())
        if commits:
            known.count, known.idle = known.count + 1, False

    # What time and others do

    @precondition(lambda self: 0 < len(self.model) < MOST)
    @rule(pick=PICKS)
    def share(self, pick: int) -> None:
        first, known = self.pick(pick)
        key = self.run(self.engines[0].engine.database.write(lambda own: share(own, first)))
        self.model[key] = Modelled(known.data, None)

    @there_are_some
    @rule(pick=PICKS)
    def let_it_lie(self, pick: int) -> None:
        key, known = self.pick(pick)
        known.idle = True
        self.set(key, "last_access_at = now() - interval '2 hours'")

    @there_are_some
    @rule(pick=PICKS)
    def let_it_age(self, pick: int) -> None:
        key, known = self.pick(pick)
        known.aged = True
        self.set(key, "created_at = now() - interval '8 days'")

    @there_are_some
    @rule(pick=PICKS)
    def pin_or_unpin(self, pick: int) -> None:
        key, known = self.pick(pick)
        known.pinned = not known.pinned
        self.set(key, f"pinned = {known.pinned}")

    @rule(who=st.sampled_from([(0,), (1,), (0, 1)]))
    def reap(self, who: tuple[int, ...]) -> None:
        async def passes() -> int:
            reports = await asyncio.gather(*(self.engines[number].reap() for number in who))
            return sum(report.references for report in reports)

        expired = [key for key, known in self.model.items() if known.is_expired()]
        assert self.run(passes()) == len(expired)
        for key in expired:
            del self.model[key]

    @rule(engine=ENGINES)
    def restart(self, engine: int) -> None:
        self.run(self.stacks[engine].aclose())
        self.engines[engine] = self.run(self.connect(engine))

    # What must hold

    @invariant()
    def counts_and_ends_are_the_models(self) -> None:
        found = {key: told for key, *told in self.run(rows(self.engines[0], COUNT_AND_DUE))}
        assert found == {key: [known.count, known.is_expired()] for key, known in self.model.items()}

    def teardown(self) -> None:
        with self.runner:
            self.run(self.end())

    async def end(self) -> None:
        one = self.engines[0]
        storages = one.engine.storages
        assert await violations(one.engine.database, storages) == []
        await make_due(one)
        await one.reap()
        live = {path for (path,) in await rows(one, "SELECT object_path FROM bdr.blob")}
        assert await objects_in(storages["main"]) == live
        await self.caller.dispose()
        for stack in self.stacks:
            await stack.aclose()
        await self.postgres.drop_database(self.name)


def test_whatever_engines_do_the_catalog_is_what_the_model_says(
    postgres: PostgresServer, template_database: str, tmp_path: Path
) -> None:
    class OnThisServer(Lifecycle):
        def __init__(self) -> None:
            super().__init__(postgres, template_database, tmp_path)

    bounds = settings(max_examples=10, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(OnThisServer, settings=bounds)
