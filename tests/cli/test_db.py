import pytest
from sqlalchemy import text

from bdr.catalog import migrate
from bdr.catalog.database import Database
from tests.cli.programs import Command, Inside

(HEAD,) = migrate.heads()


async def test_a_database_is_migrated_looked_at_and_taken_back(inside: Inside, empty_database_url: str) -> None:
    database = ("--database-url", empty_database_url)
    unmigrated = await inside("put", "x", *database)
    assert (unmigrated.code, unmigrated.errors) == (
        1,
        f"bdr: {empty_database_url} has no catalog yet; run `bdr db upgrade`.\n",
    )
    assert (await inside("db", "current", *database)).text == "none: there is no catalog; `bdr db upgrade` makes it\n"
    behind = await inside("db", "check", "--json", *database)
    assert (behind.code, behind.json["ok"]) == (1, False)
    assert behind.errors.endswith("run `bdr db upgrade`.\n")
    first = (await inside("db", "history")).cells[-1][0]
    partly = await inside("db", "upgrade", "--to", first, *database)
    assert partly.text == f"{first}; this version needs {HEAD}: `bdr db upgrade`\n"
    upgraded = await inside("db", "upgrade", "--json", *database)
    assert (upgraded.code, upgraded.json) == (0, {"revision": HEAD, "head": HEAD, "is_head": True})
    assert (await inside("db", "check", *database)).code == 0
    assert (await inside("db", "current", *database)).text == f"{HEAD} (head)\n"
    taken_back = await inside("db", "downgrade", "base", "--yes", *database)
    assert (taken_back.code, taken_back.text[:5]) == (0, "none:")


async def test_tables_that_were_changed_by_hand_fail_the_check(inside: Inside, database: Database) -> None:
    await database.write(lambda own: own.execute(text("ALTER TABLE bdr.blob ADD COLUMN stray int")))
    drifted = await inside("db", "check")
    assert (drifted.code, drifted.output) == (1, b"")
    assert "The tables are not as the migrations made them" in drifted.errors
    assert "stray" in drifted.errors


async def test_statements_are_printed_without_a_server(inside: Inside) -> None:
    up = await inside("db", "upgrade", "--sql", BDR_DATABASE_URL="postgresql://nobody@127.0.0.1:1/x")
    assert (up.code, up.errors) == (0, "")
    assert "CREATE TABLE bdr.binary_data_reference" in up.text
    down = await inside("db", "downgrade", f"{HEAD}:base", "--sql")
    assert "DROP TABLE bdr.binary_data_reference" in down.text


async def test_the_history_is_listed_from_the_newest_on(inside: Inside) -> None:
    listed = (await inside("db", "history")).cells
    assert [cells[0] for cells in listed] == [one.revision for one in migrate.history()]
    assert listed[-1][1:] == ["-", "The catalog"]
    assert (await inside("db", "history", "--json")).json[0]["revision"] == HEAD


@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 1), (b"\n", 1), (b"yes\n", 0)])
async def test_going_back_is_asked_about_on_a_terminal(
    command: Command, empty_database_url: str, answer: bytes, code: int
) -> None:
    await migrate.upgrade(empty_database_url)
    ended, terminal = await command.on_terminal(
        *("db", "downgrade", "base", "--database-url", empty_database_url),
        typed=answer,
        streams=("stdin", "stderr"),
    )
    assert "Go back to base? What only later revisions hold is lost. [y/N]" in terminal
    assert ended.code == code
    assert ("Nothing was changed." in terminal) == (code == 1)
    assert (await migrate.current(empty_database_url) is None) == (code == 0)
