import hashlib
from pathlib import Path

from sqlalchemy import text

from bdr.catalog.database import Database
from tests.cli.programs import PDF, Command, Inside

# Markup and an emoji's name for rich, a window's title for a terminal, and a mark that turns the direction of writing.
EVIL_NAME = "[red]x[/red] :smile: \x1b]0;title\x07 \u202egpj.txt"
HARMLESS_NAME = r"[red]x[/red] :smile: \x1b]0;title\x07 \u202egpj.txt"


async def test_stat_shows_all_that_the_catalog_knows(inside: Inside, key: str) -> None:
    shown = (await inside("stat", key)).fields
    assert shown["file_key"] == key
    assert shown["file_size"] == "24 (24 B)"
    assert (shown["ref_count"], shown["pinned"], shown["labels"], shown["directory"]) == ("1", "false", "{}", "-")
    known = (await inside("stat", key, "--json")).json
    assert known["checksum"] == shown["checksum"] == hashlib.sha256(PDF).hexdigest()
    assert shown.keys() == known["reference"].keys() | known.keys() - {"reference"}


async def test_names_from_outside_steer_nothing(command: Command, inside: Inside, pdf: Path) -> None:
    put = await inside("put", pdf, "--name", EVIL_NAME)
    key, _, name = put.cells[0]
    assert name == HARMLESS_NAME
    assert (await inside("stat", key)).fields["file_name"] == HARMLESS_NAME
    assert (await inside("ls")).cells[0][-1] == HARMLESS_NAME
    listed = await inside("ls", "--json")
    assert listed.json[0]["reference"]["file_name"] == EVIL_NAME
    assert b"\x1b" not in listed.output
    _, terminal = await command.on_terminal("ls")
    assert HARMLESS_NAME in terminal
    assert "\x1b]0;" not in terminal


async def test_ls_goes_from_the_newest_on_page_by_page(inside: Inside, pdf: Path) -> None:
    keys = [cells[0] for cells in (await inside("put", *["report.pdf"] * 3)).cells]
    (other,) = (cells[0] for cells in (await inside("put", "report.pdf", "--namespace", "other")).cells)
    newest_first = [other, *reversed(keys)]
    listed = (await inside("ls")).cells
    assert [cells[0] for cells in listed] == newest_first
    assert listed[0][1:5] == ["24 B", "1", "application/pdf", "other"]
    page = (await inside("ls", "--limit", "2", "--before", other)).cells
    assert [cells[0] for cells in page] == newest_first[1:3]
    in_namespace = (await inside("ls", "--namespace", "other", "--json")).json
    assert [one["reference"]["file_key"] for one in in_namespace] == [other]
    assert (await inside("ls", "--namespace", "nobody's")).output == b""


async def test_counts_go_up_and_down_and_never_below_zero(inside: Inside, key: str) -> None:
    assert (await inside("register", key)).text == "2\n"
    assert (await inside("register", key, "--json")).json == {"file_key": key, "ref_count": 3}
    assert [(await inside("release", key)).text for _ in range(3)] == ["2\n", "1\n", "0\n"]
    once_more = await inside("release", key)
    assert (once_more.code, once_more.output) == (1, b"")
    assert once_more.errors == f"bdr: The reference {key!r} is not held any more; there is nothing to release.\n"


async def test_rm_deletes_what_nothing_holds_and_all_else_by_force(
    inside: Inside, key: str, database: Database
) -> None:
    held = await inside("rm", key)
    assert held.code == 1
    assert held.errors == (
        f"bdr: The reference {key!r} is still held (count 1): release it first, or delete it with --force.\n"
    )
    assert (await inside("rm", key, "--force")).text == f"deleted {key}\n"
    pinned = (await inside("put", "report.pdf")).cells[0][0]
    await inside("release", pinned)
    await database.write(lambda own: own.execute(text("UPDATE bdr.binary_data_reference SET pinned = true")))
    refused = await inside("rm", pinned)
    assert (refused.code, refused.errors) == (
        1,
        f"bdr: The reference {pinned!r} is pinned; --force deletes it all the same.\n",
    )
    assert (await inside("ls")).cells[0][2] == "0 pinned"
    assert (await inside("rm", pinned, "--force", "--json")).json == {"file_key": pinned, "deleted": True}
    released = (await inside("put", "report.pdf")).cells[0][0]
    await inside("release", released)
    assert (await inside("rm", released)).code == 0
    assert (await inside("ls")).output == b""


async def test_a_key_that_no_reference_has_ends_every_command_with_3(command: Command, inside: Inside) -> None:
    absent = "06h0s31vc5p61f5aip4nf6too4.txt"
    for verb in ("get", "stat", "register", "release", "rm"):
        for key in (absent, "../../etc/passwd", "x" * 200):
            ended = await inside(verb, key)
            assert (verb, ended.code, ended.output) == (verb, 3, b"")
            assert ended.errors.startswith("bdr: There is no reference '")
            assert len(ended.errors.splitlines()) == 1
    assert (await command("stat", absent)).code == 3
