import asyncio
import signal
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest
from sqlalchemy import text

from bdr.catalog.database import Database
from bdr.cli import references
from tests.cli.holding import operations_held, until_held
from tests.cli.programs import BDR, Command, Inside
from tests.fixtures.storages import free_ports
from tests.storage.helpers import files_below, until

MiB = 1024 * 1024


async def in_shell(command: Command, script: str) -> tuple[str, str]:
    """Output and errors of a script of bash, in which `bdr` is the command."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f'bdr() {{ {BDR} "$@"; }}; {script}'),
        cwd=command.folder,
        env=command.environment,
        stdout=PIPE,
        stderr=PIPE,
    )
    output, errors = await process.communicate()
    return output.decode(), errors.decode()


async def test_a_reader_that_has_gone_ends_a_command_quietly_as_a_signal_would(command: Command, key: str) -> None:
    # `true` reads nothing and is gone before the command has started.
    words = ("config show", f"get {key}", "put --json report.pdf", "--help")
    script = "; ".join(f"bdr {one} | true; echo ${{PIPESTATUS[0]}}" for one in words)
    assert await in_shell(command, script) == ("141\n" * len(words), "")


async def test_output_that_cannot_be_written_is_told_of(command: Command, key: str) -> None:
    words = ("ls", f"get {key}", "put report.pdf report.pdf")
    output, errors = await in_shell(command, "; ".join(f"bdr {one} > /dev/full; echo $?" for one in words))
    assert output == "1\n" * len(words)
    assert errors == "bdr: Standard output cannot be written: No space left on device.\n" * len(words)


async def states(database: Database) -> list[str]:
    async with database.reading() as connection:
        return list((await connection.execute(text("SELECT state FROM bdr.blob"))).scalars())


async def uploading(command: Command) -> Process:
    """A command in the middle of an upload, whose standard input goes on."""
    process = await command.start("put", "-")
    assert process.stdin is not None
    # More than the 8 MiB that are gathered before anything is written.
    process.stdin.write(bytes(20 * MiB))
    root = Path(command.environment["BDR_STORAGE__ROOT"])

    async def is_written() -> bool:
        # Not only that its row is there: the process may not have heard of that yet.
        return any(not path.name.startswith(".") for path in files_below(root))

    await until(is_written, 60)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_an_interrupted_upload_ends_at_once_and_gives_up_what_it_wrote(
    command: Command, database: Database, number: signal.Signals, code: int
) -> None:
    process = await uploading(command)
    process.send_signal(number)
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
    assert (await process.wait(), output, errors) == (code, b"", b"")
    assert await states(database) == ["deleting"]


async def test_an_upload_whose_end_is_unknown_is_told_of_and_no_other_follows_when_interrupted(
    inside: Inside, pdf: Path, database_url: str
) -> None:
    async with operations_held(database_url) as connection:
        putting = asyncio.create_task(inside("put", pdf, pdf))
        await until_held(connection)
        putting.cancel()
    put = await putting
    assert (put.code, put.output) == (1, b"")
    ((key, *_),) = (await inside("ls")).cells
    assert put.errors.splitlines()[-1] == f"bdr: `bdr stat {key}` shows what became of it."


async def test_a_reader_that_is_stuck_does_not_keep_a_command_from_ending(command: Command, inside: Inside) -> None:
    (command.folder / "big.bin").write_bytes(bytes(8 * MiB))
    key = (await inside("put", "big.bin")).cells[0][0]
    process = await command.start("get", key)
    assert process.stdout is not None
    await process.stdout.readexactly(1)

    async def has_ended() -> bool:
        return process.returncode is not None

    # The rest does not fit into the pipe.
    process.send_signal(signal.SIGTERM)
    await until(has_ended, 60)
    assert (await process.communicate())[1] == b""
    assert process.returncode == 143


async def test_a_database_that_is_down_is_a_sentence_without_its_password(command: Command) -> None:
    down = f"postgresql://user:hidden@127.0.0.1:{free_ports(1)[0]}/db"
    for words in (["ls"], ["put", "x", "--json"], ["db", "upgrade"]):
        ended = await command(*words, BDR_DATABASE_URL=down)
        assert (ended.code, ended.output) == (1, b"")
        assert ended.errors.startswith("bdr: postgresql://user:***@127.0.0.1:")
        assert "cannot be reached" in ended.errors
        assert len(ended.errors.splitlines()) == 1


async def test_an_error_that_is_a_bug_is_not_made_up_into_a_sentence(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(references, "emit_table")
    with pytest.raises(NameError):
        await inside("ls")
