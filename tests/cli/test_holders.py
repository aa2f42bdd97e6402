import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import bdr
from tests.cli.holding import operations_held, until_held
from tests.cli.programs import PDF, Inside
from tests.fixtures.engines import AT_ONCE, Connect
from tests.storage.helpers import files_below

ABSENT = "06h0s31vc5p61f5aip4nf6too4.txt"
# A name that a holder may have, and that must not get to a terminal as it is.
EVIL = "\x1b]0;title\x07"


async def test_a_holder_counts_once_is_listed_with_its_terms_and_lets_go_by_name(inside: Inside, key: str) -> None:
    assert (await inside("register", key, "--holder", "run-1", "--lease", "12h")).text == "2\n"
    assert (await inside("register", key, "--holder", "run-1", "--lease", "1h")).text == "2\n"
    assert (await inside("register", key, "--holder", EVIL, "--json")).json == {"file_key": key, "ref_count": 3}
    leased, lasting = (await inside("holders", key)).cells
    assert [leased[0], leased[1], leased[4]] == ["run-1", "-", key]
    assert leased[3] > leased[2] > "2026-"
    assert (lasting[0], lasting[3]) == (r"\x1b]0;title\x07", "-")
    (first, _) = (await inside("holders", key, "--json")).json
    assert first.keys() == {"file_key", "holder", "instance_id", "acquired_at", "lease_expires_at"}
    assert (first["holder"], first["instance_id"]) == ("run-1", None)
    assert (await inside("release", key, "--holder", "run-1")).text == "2\n"
    once_more = await inside("release", key, "--holder", "run-1")
    assert (once_more.code, once_more.errors) == (
        1,
        f"bdr: 'run-1' does not hold the reference {key!r}; there is nothing to release.\n",
    )
    assert [cells[0] for cells in (await inside("holders", key)).cells] == [r"\x1b]0;title\x07"]


async def test_all_that_a_holder_holds_is_listed_and_released_without_naming_it(inside: Inside, pdf: Path) -> None:
    keys = [cells[0] for cells in (await inside("put", *["report.pdf"] * 3)).cells]
    for key in keys[:2]:
        await inside("register", key, "--holder", "run-1")
    held = (await inside("holders", "--holder", "run-1")).cells
    assert [cells[4] for cells in held] == keys[:2]
    assert len((await inside("holders", "--holder", "run-1", "--limit", "1", "--json")).json) == 1
    assert (await inside("release", "--holder", "run-1")).text == "2\n"
    assert (await inside("release", "--holder", "run-1", "--json")).json == {"holder": "run-1", "released": 0}
    assert (await inside("holders", "--holder", "run-1")).output == b""
    assert {cells[2] for cells in (await inside("ls")).cells} == {"1"}


async def test_a_holder_that_is_bound_to_an_engine_is_listed_with_it(
    inside: Inside, key: str, connect: Connect
) -> None:
    engine = await connect()
    await engine.register_reference(key, holder="node", bound=True)
    ((_, instance, *_),) = (await inside("holders", key)).cells
    assert instance == str(engine.engine.instance_id)


async def test_pinned_files_stay_until_they_are_unpinned_and_a_key_that_is_not_there_stops_no_other(
    inside: Inside, pdf: Path
) -> None:
    retention = {"BDR_LIFECYCLE__MAX_RETENTION": "0s"}
    first, second = (cells[0] for cells in (await inside("put", "report.pdf", "report.pdf", **retention)).cells)
    pinned = await inside("pin", first, ABSENT, second)
    assert (pinned.code, pinned.text) == (3, f"pinned {first}\npinned {second}\n")
    assert pinned.errors.startswith(f"bdr: There is no reference '{ABSENT}'")
    await inside("reap")
    unpinned = await inside("unpin", second, ABSENT, "--json")
    done, failed = unpinned.json
    assert (unpinned.code, done) == (3, {"file_key": second, "pinned": False})
    assert failed.keys() == {"file_key", "error", "type"}
    await inside("reap")
    assert [cells[0] for cells in (await inside("ls")).cells] == [first]


async def test_explain_says_who_keeps_a_file_and_until_when(inside: Inside, key: str) -> None:
    await inside("register", key, "--holder", "run-1", "--lease", "12h")
    alive = await inside("explain", key)
    assert (alive.code, alive.cells[:2]) == (0, [["file_key", key], ["state", "alive"]])
    reasons = "\n".join(cells[1] for cells in alive.cells[2:])
    assert "'run-1' holds it since " in reasons
    assert re.search(r"It may be reaped from 2\d{3}-.* on, if nothing changes until then", reasons)
    await inside("pin", key)
    explained = (await inside("explain", key, "--json")).json
    assert "It is pinned: it never expires until it is unpinned." in explained["reasons"]
    assert explained == explained | {"file_key": key, "state": "alive"}
    assert explained["holders"][0]["holder"] == "run-1"
    assert explained["details"]["pinned"] is True


async def test_explain_says_how_what_is_not_there_went_and_ends_with_3(
    inside: Inside, key: str, connect: Connect
) -> None:
    async def reason(about: str, state: str, code: int) -> str:
        told = await inside("explain", about)
        assert (told.code, told.errors, told.cells[1]) == (code, "", ["state", state])
        return told.cells[2][1]

    assert (await reason(ABSENT, "unknown", 3)).startswith("There is no reference")
    await inside("rm", key, "--force")
    assert re.search(r" was deleted, on .* UTC by engine instance ", await reason(key, "gone", 3))
    engine = await connect(lifecycle=bdr.LifecycleCleanupConfig(max_retention=AT_ONCE))
    expired = (await engine.store_data(b"x")).file_key
    await inside("reap")
    assert " expired: its max_retention was over, on " in await reason(expired, "gone", 3)


async def test_explain_knows_an_upload_that_is_under_way(inside: Inside, connect: Connect) -> None:
    begun, rest = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        begun.set()
        await rest.wait()

    engine = await connect(operations=bdr.OperationsConfig(progress_interval=AT_ONCE))
    storing = asyncio.create_task(engine.store_stream(chunks()))
    await begun.wait()
    await engine.operations.flush()
    ((_, _, _, _, _, _, key, _),) = (await inside("ops", "--running")).cells
    told = await inside("explain", key)
    assert (told.code, told.cells[1]) == (3, ["state", "storing"])
    assert " is being stored by engine instance " in told.cells[2][1]
    rest.set()
    await storing


async def test_explain_tells_of_an_object_that_is_lost_with_1(
    inside: Inside, key: str, fs_config: bdr.BinaryStorageConfig
) -> None:
    (stored,) = (path for path in files_below(Path(fs_config.root)) if not path.name.startswith("."))
    stored.unlink()
    lost = await inside("explain", key)
    assert (lost.code, lost.cells[1]) == (1, ["state", "lost"])
    assert lost.cells[2][1].startswith("Its object is missing at ")
    stored.write_bytes(PDF)


async def test_a_pin_whose_end_is_unknown_is_told_of_and_no_other_follows_when_interrupted(
    inside: Inside, pdf: Path, database_url: str
) -> None:
    keys = [cells[0] for cells in (await inside("put", pdf, pdf)).cells]
    async with operations_held(database_url, "UPDATE OF pinned ON bdr.binary_data_reference") as connection:
        pinning = asyncio.create_task(inside("pin", *keys))
        await until_held(connection)
        pinning.cancel()
    pinned = await pinning
    assert (pinned.code, pinned.output) == (1, b"")
    assert pinned.errors.splitlines()[-1] == f"bdr: `bdr stat {keys[0]}` shows what became of it."
    assert {cells[2] for cells in (await inside("ls")).cells} >= {"1"}
