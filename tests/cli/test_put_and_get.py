import asyncio
import hashlib
import json
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

import bdr
from tests.cli.programs import BDR, PDF, Command, Inside
from tests.storage.helpers import files_below

MiB = 1024 * 1024
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1], shell=True, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
"""
REFERENCE = ["file_key", "mime_kind", "file_size", "file_name", "file_kind", "file_extension", "directory"]


async def test_files_come_back_as_they_were_put(command: Command, pdf: Path) -> None:
    big = command.folder / "folder" / "big.bin"
    big.parent.mkdir()
    big.write_bytes(os.urandom(9 * MiB + 1))
    put = await command("put", pdf.name, "folder/big.bin")
    assert (put.code, put.errors) == (0, "")
    assert [(cells[1], cells[2]) for cells in put.cells] == [("24 B", "report.pdf"), ("9.0 MiB", "folder/big.bin")]
    first, second = (cells[0] for cells in put.cells)
    streamed = await command("get", second)
    assert (streamed.code, streamed.errors) == (0, "")
    assert streamed.output == big.read_bytes()
    written = await command("get", first, "-o", "copy.pdf")
    assert (written.code, written.output, written.errors) == (0, b"", "")
    assert (command.folder / "copy.pdf").read_bytes() == PDF


async def test_put_as_json_lists_references_and_what_failed_in_the_order_of_the_paths(
    inside: Inside, pdf: Path
) -> None:
    put = await inside("put", "--json", "no such file", pdf.name, ".")
    assert put.code == 1
    missing, stored, folder = put.json
    assert list(stored) == REFERENCE
    assert stored == stored | {
        "mime_kind": "application/pdf",
        "file_size": 24,
        "file_name": "report.pdf",
        "file_kind": "pdf",
        "file_extension": "pdf",
        "directory": None,
    }
    assert missing.keys() == folder.keys() == {"path", "error", "type"}
    assert (missing["path"], missing["type"], folder["path"]) == ("no such file", "IoError", ".")
    assert put.errors.splitlines() == [f"bdr: {missing['error']}", f"bdr: {folder['error']}"]
    assert "No such file or directory" in missing["error"]


async def test_standard_input_is_put_under_the_name_and_labels_that_are_given(command: Command, inside: Inside) -> None:
    data = os.urandom(3 * MiB + 5)
    options = ("--name", "tar/a.tar", "--mime", "Application/X-Tar", "--namespace", "tenant-1")
    put = await command("put", "-", *options, "--label", "workflow=w=1", "--label", "node=", stdin=data)
    assert (put.code, put.errors) == (0, "")
    key = put.cells[0][0]
    known = (await inside("stat", key, "--json")).json
    assert known["reference"] == known["reference"] | {
        "file_name": "tar/a.tar",
        "mime_kind": "application/x-tar",
        "directory": "tar",
    }
    assert (known["namespace"], known["labels"]) == ("tenant-1", {"workflow": "w=1", "node": ""})
    assert known["checksum"] == hashlib.sha256(data).hexdigest()
    assert (await inside("get", key)).output == data


async def test_a_file_whose_name_is_no_unicode_is_put_with_what_can_be_shown_of_it(
    command: Command, inside: Inside
) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (command.folder / name).write_bytes(b"coffee")
    put = await inside("put", name, "--json")
    assert (put.code, put.json[0]["file_name"]) == (0, "caf�.txt")


async def test_a_file_whose_name_looks_like_an_option_is_put_behind_two_dashes(
    command: Command, inside: Inside
) -> None:
    (command.folder / "-x").write_bytes(b"x")
    put = await inside("put", "--", "-x")
    assert (put.code, put.cells[0][2]) == (0, "-x")


async def test_nothing_stands_under_the_name_of_a_file_until_it_is_complete(
    command: Command, inside: Inside, key: str, fs_config: bdr.BinaryStorageConfig
) -> None:
    before = set(command.folder.iterdir())
    (stored,) = (path for path in files_below(Path(fs_config.root)) if not path.name.startswith("."))
    whole = stored.read_bytes()
    stored.write_bytes(whole[::-1])
    corrupt = await inside("get", key, "-o", "copy.pdf")
    assert corrupt.code == 1
    assert "other bytes than were stored" in corrupt.errors
    missing = await inside("get", key.replace(key[:3], "000"), "-o", "copy.pdf")
    assert missing.code == 3
    assert set(command.folder.iterdir()) == before
    stored.write_bytes(whole)


async def test_get_leaves_a_file_that_is_there_alone_unless_it_is_forced(
    command: Command, inside: Inside, key: str, pdf: Path
) -> None:
    taken = command.folder / "taken"
    taken.write_bytes(b"mine")
    link = command.folder / "link"
    link.symlink_to(taken)
    for target in ("taken", "link"):
        refused = await inside("get", key, "-o", target)
        assert (refused.code, refused.errors) == (1, f"bdr: {target} is there already; --force replaces it.\n")
    assert taken.read_bytes() == b"mine"
    forced = await inside("get", key, "-o", "link", "--force")
    assert (forced.code, taken.read_bytes()) == (0, PDF)
    assert link.is_symlink()
    folder = await inside("get", key, "-o", ".")
    assert (folder.code, folder.errors) == (1, "bdr: . is a folder; name the file to write.\n")
    device = await inside("get", key, "-o", "/dev/null")
    assert (device.code, device.errors) == (0, "")
    assert (command.folder / "/dev/null").is_char_device()


@pytest.mark.parametrize("target", ["nowhere/copy", "/proc/copy"])
async def test_get_says_why_a_file_cannot_be_written(inside: Inside, key: str, target: str) -> None:
    refused = await inside("get", key, "-o", target)
    assert refused.code == 1
    assert refused.errors.startswith(f"bdr: {target} cannot be written: ")


async def test_put_and_get_hold_a_small_part_of_a_file_in_memory(command: Command) -> None:
    zeros = command.folder / "zeros"
    zeros.touch()
    os.truncate(zeros, 256 * MiB)
    put, put_peak = await _measured(command, f"{BDR} put - --json < zeros")
    key = json.loads(put)[0]["file_key"]
    _, get_peak = await _measured(command, f"{BDR} get {key} > copy")
    assert (command.folder / "copy").stat().st_size == 256 * MiB
    assert max(put_peak, get_peak) < 220 * MiB


async def _measured(command: Command, line: str) -> tuple[bytes, int]:
    """The output of a shell's command line, and the largest memory that a program of it had."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MEASURE, line), cwd=command.folder, env=command.environment, stdout=PIPE, stderr=PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors
    return output, int(errors.splitlines()[-1]) * 1024
