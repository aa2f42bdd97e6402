"""`bdr db …`: the catalog's schema, its revision, and the way to another one."""

import os
import sys
from dataclasses import asdict
from functools import partial

from bdr.cli.failures import DONE, FAILED, UsageError, say
from bdr.cli.options import Given, Json, duration
from bdr.cli.output import emit, emit_json, emit_table
from bdr.cli.progress import waiting
from bdr.cli.text import NOTHING, shown
from bdr.errors import CatalogAhead, CatalogNotMigrated, OperationError
from bdr.threads import in_daemon_thread

_LONGEST_ANSWER = 1024
_DRIFTED = "The tables are not as the migrations made them; undo by hand what was changed by hand: {}"


async def upgrade(
    *, to: str = "head", sql: bool = False, wait: str = "1 min", as_json: Json = False, common: Given
) -> None:
    """Bring the schema to the newest revision, or to another one.

    For example:
        bdr db upgrade
        bdr db upgrade --sql > upgrade.sql

    Args:
        to: A revision; with --sql also FROM:TO.
        sql: Print the statements and run nothing; needs no server.
        wait: How long to wait for another migration to finish.
    """
    from bdr.catalog import migrate
    from bdr.joining import database_url

    if sql:
        emit(await migrate.upgrade(None, to, sql=True), end="")
        return
    patience = duration("--wait", wait)
    async with database_url(common.settings()) as url:
        with waiting("Migrating"):
            await migrate.upgrade(url, to, wait=patience)
            revision = await migrate.current(url)
    _emit_revision(revision, as_json=as_json)


async def current(*, as_json: Json = False, common: Given) -> None:
    """Show the revision that the schema is at."""
    from bdr.catalog import migrate
    from bdr.joining import database_url

    async with database_url(common.settings()) as url:
        revision = await migrate.current(url)
    _emit_revision(revision, as_json=as_json)


async def check(*, as_json: Json = False, common: Given) -> int:
    """See whether the schema is the one that this version needs.

    The exit code is 1 when it is not.
    """
    from bdr.catalog import migrate
    from bdr.joining import database_url

    async with database_url(common.settings()) as url:
        try:
            problems = [_DRIFTED.format(one) for one in await migrate.check(url)]
        except (CatalogNotMigrated, CatalogAhead) as error:
            problems = [str(error)]
    for problem in problems:
        say(problem)
    if as_json:
        emit_json({"ok": not problems, "problems": problems})
    elif not problems:
        emit("The catalog has the tables that this version needs.")
    return FAILED if problems else DONE


async def downgrade(
    revision: str, /, *, yes: bool = False, sql: bool = False, as_json: Json = False, common: Given
) -> None:
    """Take the schema back to an earlier revision.

    What only later revisions hold is lost.

    For example:
        bdr db downgrade -1
        bdr db downgrade base --yes

    Args:
        revision: One of `bdr db history`, or base for none: that removes every table.
        yes: Do not ask. Needed where there is no terminal to ask at.
        sql: Print the statements and run nothing; the revision is FROM:TO then.
    """
    from bdr.catalog import migrate
    from bdr.joining import database_url

    if sql:
        emit(await migrate.downgrade(None, revision, sql=True), end="")
        return
    if not (yes or await _agreed(revision)):
        raise OperationError("Nothing was changed.")
    async with database_url(common.settings()) as url:
        with waiting("Migrating"):
            await migrate.downgrade(url, revision)
            found = await migrate.current(url)
    _emit_revision(found, as_json=as_json)


async def history(*, as_json: Json = False) -> None:
    """List the revisions of the schema, the newest first."""
    from bdr.catalog import migrate

    revisions = migrate.history()
    if as_json:
        emit_json([asdict(one) for one in revisions])
    else:
        emit_table(
            ("REVISION", "AFTER", "WHAT"), [(one.revision, one.previous or NOTHING, one.summary) for one in revisions]
        )


async def _agreed(revision: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask at: --yes goes back without asking.")
    question = f"Go back to {shown(revision)}? What only later revisions hold is lost. [y/N] "
    print(question, end="", file=sys.stderr, flush=True)
    answer = await in_daemon_thread(partial(os.read, sys.stdin.fileno(), _LONGEST_ANSWER))
    return answer.strip().lower() in {b"y", b"yes"}


def _emit_revision(revision: str | None, *, as_json: bool) -> None:
    from bdr.catalog import migrate

    (head,) = migrate.heads()
    if as_json:
        emit_json({"revision": revision, "head": head, "is_head": revision == head})
    elif revision is None:
        emit("none: there is no catalog; `bdr db upgrade` makes it")
    else:
        emit(f"{revision} (head)" if revision == head else f"{revision}; this version needs {head}: `bdr db upgrade`")
