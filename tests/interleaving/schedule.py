"""Sessions whose steps are let through one at a time, in every order that there is.

In the manner of PostgreSQL's isolation tester: a *session* is real code on connections of its own; a *step* is one
statement of it, its COMMIT or ROLLBACK, or one call of a storage. Each step waits at a gate until it is let through. A
step that has to wait for another session's lock is noticed in `pg_locks`; the others go on, and it is collected when
the lock is free. The tester skips permutations in which a session would have to step while it waits; here they are
never made, because an order is found by asking, after each step, who could go next: every answer is tried.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import asyncpg
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext

from tests.interleaving.choices import Choices

Work = Callable[[], Awaitable[object]]

# For one order of steps, however busy the machine is.
PATIENCE: Final = timedelta(seconds=60)
# One consistent look at all locks: when every running session waits at that instant, none can go on by itself. Only
# the locks that sessions take on each other's rows: one on a table is a vacuum's, and is soon over.
_WAITING: Final = "SELECT pid FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple', 'advisory')"
_TABLE: Final = re.compile(r"bdr\.(\w+)")
_session: ContextVar["Session | None"] = ContextVar("session", default=None)


class Session:
    """Work that stops before each of its steps until it is told to go on."""

    def __init__(self, name: str, work: Work, changed: asyncio.Event) -> None:
        self.name = name
        self.label = ""
        self.pid: int | None = None
        self.passes: str | None = None
        self._used: set[asyncpg.Connection] = set()
        self._gate: asyncio.Future[None] | None = None
        self._unstoppable = False
        self._changed = changed
        self.task = asyncio.create_task(self._run(work))
        self.task.add_done_callback(lambda _: changed.set())

    @property
    def is_paused(self) -> bool:
        return self._gate is not None

    @property
    def is_running(self) -> bool:
        """Under way: it does something, or waits for a lock."""
        return self._gate is None and not self.task.done()

    @property
    def may_hold_locks(self) -> bool:
        return self.is_running or any(one.is_in_transaction() for one in self._used)

    async def arrive(self, label: str, connection: asyncpg.Connection | None = None) -> None:
        """Wait at the gate; the step will run on `connection`, if it is SQL."""
        passes, self.passes = self.passes == label, None
        if self._unstoppable or passes:
            return
        assert self._gate is None, f"{self.name} has two tasks that want to do {self.label} and {label} at once"
        self.label, self.pid = label, None
        if connection is not None:
            self.pid = connection.get_server_pid()
            self._used.add(connection)
        self._gate = asyncio.get_running_loop().create_future()
        self._changed.set()
        await self._gate

    def let_through(self) -> None:
        assert self._gate is not None
        gate, self._gate = self._gate, None
        gate.set_result(None)

    def let_run(self) -> None:
        """Go on to the end without a stop."""
        self._unstoppable = True
        if self._gate is not None and not self._gate.done():
            self.let_through()

    async def _run(self, work: Work) -> object:
        _session.set(self)
        return await work()


@dataclass
class Played:
    """One order of steps, and what came of it.

    Attributes:
        steps: what was let through, in order: the session and what it did.
        waited: which of the steps had to wait for a lock.
        results: of each session what its work gave back, or the exception that it ended with.
        before: for each session those that had ended when its first step was let through.
        deadlocked: all sessions that had not ended waited for each other.
    """

    steps: list[tuple[str, str]] = field(default_factory=list)
    waited: set[int] = field(default_factory=set)
    results: dict[str, object] = field(default_factory=dict)
    before: dict[str, frozenset[str]] = field(default_factory=dict)
    deadlocked: bool = False


async def arrive(label: str) -> None:
    """A step that is not SQL, such as a call of a storage; outside of a session nothing is waited for."""
    if (session := _session.get()) is not None:
        await session.arrive(label)


def pass_once(label: str) -> None:
    """Let this session's next step, if it is of that label, be no step: nobody else could tell when it is done."""
    if (session := _session.get()) is not None:
        session.passes = label


def pause_at_statements(engine: Engine) -> None:
    """Let every statement, COMMIT and ROLLBACK on the engine's connections wait at its session's gate."""

    def before_execute(
        connection: Connection, _: DBAPICursor, statement: str, __: Any, ___: ExecutionContext | None, ____: bool
    ) -> None:
        _stop(connection, _shown(statement))

    event.listen(engine, "before_cursor_execute", before_execute)
    event.listen(engine, "commit", lambda connection: _end(connection, "COMMIT"))
    event.listen(engine, "rollback", lambda connection: _end(connection, "ROLLBACK"))


def _end(connection: Connection, label: str) -> None:
    # In autocommit mode, or before the first statement, the server is not asked anything.
    if connection.connection.dbapi_connection is not None and _in_transaction(connection):
        _stop(connection, label)


def _in_transaction(connection: Connection) -> bool:
    raw: Any = connection.connection.driver_connection
    return bool(raw.is_in_transaction())


def _stop(connection: Connection, label: str) -> None:
    if (session := _session.get()) is None:
        return
    adapted: Any = connection.connection.dbapi_connection
    adapted.run_async(lambda raw: session.arrive(label, raw))


def _shown(statement: str) -> str:
    verbs = [verb for verb in ("INSERT", "UPDATE", "DELETE") if re.search(rf"\b{verb} (INTO|FROM|bdr\.)", statement)]
    locks = " FOR UPDATE" if not verbs and "FOR UPDATE" in statement else ""
    table = _TABLE.search(statement)
    return f"{'+'.join(verbs) or statement.split(maxsplit=1)[0]} {table[1] if table else ''}{locks}".strip()


class Schedule:
    """Plays sessions; `monitor` is a connection of its own to ask who waits."""

    def __init__(self, monitor: asyncpg.Connection) -> None:
        self._monitor = monitor

    async def play(self, works: Mapping[str, Work], choices: Choices) -> Played:
        """Run all sessions to their end, one step at a time; `choices` says whose step is next."""
        async with asyncio.timeout(PATIENCE.total_seconds()):
            changed = asyncio.Event()
            sessions: list[Session] = []
            try:
                for name, work in works.items():
                    sessions.append(Session(name, work, changed))
                    await self._settle(sessions, changed)
                return await self._play(sessions, changed, choices)
            finally:
                for session in sessions:
                    session.let_run()

    async def _play(self, sessions: list[Session], changed: asyncio.Event, choices: Choices) -> Played:
        played = Played()
        while unfinished := [one for one in sessions if not one.task.done()]:
            ready = [one for one in unfinished if one.is_paused]
            if ready:
                await self._step(choices.pick(ready), sessions, changed, played)
            else:
                # Nobody can go on: the server finds the circle and ends one of them.
                played.deadlocked = True
                changed.clear()
                await changed.wait()
                await self._settle(sessions, changed)
        for one in sessions:
            played.results[one.name] = one.task.exception() or one.task.result()
        return played

    async def _step(self, session: Session, sessions: list[Session], changed: asyncio.Event, played: Played) -> None:
        ended = frozenset(one.name for one in sessions if one.task.done())
        played.before.setdefault(session.name, ended)
        played.steps.append((session.name, session.label))
        session.let_through()
        await self._settle(sessions, changed)
        if session.is_running:
            played.waited.add(len(played.steps) - 1)

    async def _settle(self, sessions: list[Session], changed: asyncio.Event) -> None:
        """Return once nobody can go on by himself: all are at a gate, at their end, or wait for a lock."""
        while running := [one for one in sessions if one.is_running]:
            if any(one.may_hold_locks for one in sessions if one is not running[0]):
                waiting = {row["pid"] for row in await self._monitor.fetch(_WAITING)}
                if all(one.pid in waiting for one in running):
                    return
            else:
                # There is no lock that it could have to wait for.
                changed.clear()
                await changed.wait()
