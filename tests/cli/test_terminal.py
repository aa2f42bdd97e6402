import os
import re
from pathlib import Path

import pytest

from tests.cli.programs import PDF, Command, Inside

MiB = 1024 * 1024


async def test_a_terminal_shows_a_bar_with_rate_while_files_pass_and_a_pipe_nothing(command: Command) -> None:
    (command.folder / "big.bin").write_bytes(os.urandom(32 * MiB))
    put, terminal = await command.on_terminal("put", "big.bin", streams=("stderr",))
    assert put.code == 0
    assert "100% 32.0 MiB of 32.0 MiB, " in terminal
    assert "MiB/s" in terminal
    key = put.cells[0][0]
    get, terminal = await command.on_terminal("get", key, streams=("stderr",))
    assert len(get.output) == 32 * MiB
    assert "of 32.0 MiB, " in terminal
    _, terminal = await command.on_terminal("reap", streams=("stderr",))
    assert "Reaping" in terminal
    for quiet in (await command("put", "big.bin"), await command("get", key)):
        assert (quiet.code, quiet.errors) == (0, "")


async def test_bytes_that_are_no_text_get_to_a_terminal_only_when_asked_for(command: Command, inside: Inside) -> None:
    harmful = {"pdf": b"%PDF-1.7 \xff", "escape": b"plain \x1b]0;title\x07", "c1": "plain \x9b31m".encode()}
    for name, data in harmful.items():
        (command.folder / name).write_bytes(data)
    (command.folder / "text").write_text("Rechnung für 王小明\n\t1 €\n")
    put = await inside("put", *harmful, "text")
    *refused, text = (cells[0] for cells in put.cells)
    for key in refused:
        get, terminal = await command.on_terminal("get", key)
        assert get.code == 1
        assert terminal.startswith("bdr: This is no plain text, and could garble a terminal: ")
        assert "\x1b" not in terminal
    assert (await command.on_terminal("get", text))[1] == "Rechnung für 王小明\r\n\t1 €\r\n"
    assert (await command.on_terminal("get", refused[1], "-o", "-"))[1] == "plain \x1b]0;title\x07"


async def test_a_terminal_shows_a_table_with_headings_and_named_values(command: Command, key: str) -> None:
    _, listed = await command.on_terminal("ls", width=40)
    assert listed.startswith("\x1b[1mKEY")
    heading, row = re.sub(r"\x1b\[[0-9;]*m", "", listed).splitlines()
    assert heading.split() == ["KEY", "SIZE", "COUNT", "TYPE", "NAMESPACE", "STORED", "EXPIRES", "NAME"]
    assert row.split()[0] == key
    _, known = await command.on_terminal("stat", key)
    assert f"file_key        {key}\r\n" in known


@pytest.mark.parametrize("name", ["report.pdf"])
async def test_what_is_typed_is_put_until_its_end(command: Command, inside: Inside, name: str) -> None:
    put, _ = await command.on_terminal("put", "-", "--name", name, typed=PDF + b"\x04", streams=("stdin",))
    assert put.code == 0
    assert (await inside("get", put.cells[0][0])).output == PDF
    assert Path(put.cells[0][2]).name == name
