"""The demo itself: what happens in which order, and what must be true after each step."""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

import bdr
from bdr.embedded import EmbeddedPostgres
from scripts.demo_run import Trouble, proof, shortened
from scripts.demo_run.arguments import Arguments, Original
from scripts.demo_run.children import PATIENCE, Child, Message
from scripts.demo_run.proof import Place
from scripts.demo_run.screen import Meter, Screen, counted, human

ROLES = {"engine 1": "store", "engine 2": "read", "engine 3": "release", "reaper 1": "reap", "reaper 2": "reap"}
RETENTION = "1 s"
POLL_SECONDS = 0.05
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Stored:
    """What engine 1 stored: the reference as JSON, and the SHA-256 of the original."""

    reference: dict[str, Any]
    sha256: str


def main(arguments: Arguments) -> int:
    """Run the demo; gives back the exit code."""
    forget_configuration()
    stopped_by: list[int] = []
    try:
        asyncio.run(_stoppable(run(arguments, Screen()), stopped_by))
    except asyncio.CancelledError:
        print("demo: interrupted; what was started is stopped, and its folder is removed.", file=sys.stderr)
        return 128 + stopped_by[0]
    except Trouble as trouble:
        print(f"demo: this is not as it must be:\n{trouble}", file=sys.stderr)
        return 1
    except (bdr.BinaryStorageError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def forget_configuration() -> None:
    """Take from the environment what would make bdr, or the driver, use something of the user's."""
    for name in [name for name in os.environ if name.startswith(("BDR_", "PG")) or name == "DATABASE_URL"]:
        del os.environ[name]


async def run(arguments: Arguments, screen: Screen) -> None:
    """All of it, in a folder that is gone afterwards."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bdr-demo-") as name:
        folder = Path(name)
        for line in shortened(arguments.left_out):
            screen.say(f"Left out: {line}")
        prepare(folder)
        originals = arguments.files or make_originals(folder, arguments.stream_size)
        what = "yours" if arguments.files else "a document of each kind, and a stream"
        size = sum(original.size for original in originals)
        screen.say(f"{counted(len(originals), 'file')}, {human(size)}: {what}.", "bold")
        async with started(folder, screen) as demo:
            stored = await demo.store(originals)
            await demo.read(stored)
            await demo.release(stored)
            await demo.reap(stored)
            await demo.leave(stored)
    left_out = len(arguments.left_out) + len(originals) - len(stored)
    summarise(stored, left_out, time.monotonic() - began, screen)


def summarise(stored: Sequence[Stored], left_out: int, seconds: float, screen: Screen) -> None:
    """Say what was done and what it shows."""
    done = f"{counted(len(stored), 'file')}, {human(size_of(stored))}, {seconds:.1f} s in all"
    screen.say(f"All is well: {done}{f', {left_out:,} left out' * (left_out > 0)}.", "bold green")
    screen.say(
        "Each file came back with the SHA-256 of its original, each count was right in every step, each file was "
        "deleted once, and no reference, blob or object is left."
    )


def size_of(stored: Sequence[Stored]) -> int:
    """Bytes, in all."""
    return sum(one.reference["file_size"] for one in stored)


def make_originals(folder: Path, stream_size: int) -> list[Original]:
    """A document of each kind, and a stream of this size, if any."""
    from scripts.documents import make_documents

    paths = make_documents(folder / "documents")
    originals = [Original(path.name, path.stat().st_size, path) for path in paths]
    return originals + [Original("stream.bin", stream_size)] * (stream_size > 0)


def prepare(folder: Path) -> None:
    """Make the storage's folder, and the settings that all processes share."""
    (folder / "objects").mkdir(mode=0o700)
    if os.geteuid() == 0:
        # Root's PostgreSQL runs as another user, who must get through.
        folder.chmod(0o711)
    lifecycle = {"zero_ref_retention": RETENTION, "cleanup_interval": "250 ms"}
    settings = _toml({"data_dir": str(folder)}) + "[lifecycle]\n" + _toml(lifecycle)
    (folder / "bdr.toml").write_text(settings, encoding="utf-8")


@asynccontextmanager
async def started(folder: Path, screen: Screen) -> AsyncIterator["Demo"]:
    """The database and the processes, all in the folder; they end when this does, however that comes about."""
    async with AsyncExitStack() as stack:
        screen.say(f"PostgreSQL starts in {folder}, which is removed at the end.", "bold")
        url = await stack.enter_async_context(EmbeddedPostgres(folder / "postgres"))
        catalog = await asyncpg.connect(url)
        stack.callback(catalog.terminate)
        screen.say("Three engines and two reapers start, each a process of its own, on one catalog.", "bold")
        children: dict[str, Child] = {}
        with screen.meter(len(ROLES), noun="process") as meter:
            for name, role in ROLES.items():
                children[name] = await Child.start(role, name, folder)
                stack.push_async_callback(children[name].kill)
            for child in children.values():
                await child.answer()
                meter.advance()
        pids = ", ".join(f"{child.pid} ({name})" for name, child in children.items())
        screen.say(f"  Process ids: {pids}.")
        yield Demo(screen, Place(catalog, folder / "objects"), children)


@dataclass
class Demo:
    """The steps, each checked before the next one begins."""

    screen: Screen
    place: Place
    children: dict[str, Child]

    async def store(self, originals: Sequence[Original]) -> list[Stored]:
        """Engine 1 stores the files; what can no longer be read is left out."""
        self.screen.say("Engine 1 stores the files.", "bold")
        requests = [_request(original) for original in originals]
        with self.screen.meter(len(originals), sum(original.size for original in originals)) as meter:
            answers = await self.children["engine 1"].work(requests, _shown_on(meter))
        for line in shortened([answer["left_out"] for answer in answers if "left_out" in answer]):
            self.screen.say(f"  Left out: {line}")
        stored = [Stored(answer["reference"], answer["sha256"]) for answer in answers if "reference" in answer]
        if not stored:
            raise Trouble("None of the files could be read any more.")
        await self._check_held(stored, count=1)
        return stored

    async def read(self, stored: Sequence[Stored]) -> None:
        """Engine 2 gets nothing but the references; the bytes that it reads must be the originals'."""
        self.screen.say("Engine 2 gets only the references, registers each and reads it back.", "bold")
        with self.screen.meter(len(stored), size_of(stored)) as meter:
            answers = await self.children["engine 2"].work([one.reference for one in stored], _shown_on(meter))
        self._require(wrong_answers(stored, answers, counts=[2]), "each SHA-256 is that of the original.")
        await self._check_held(stored, count=2)

    async def release(self, stored: Sequence[Stored]) -> None:
        """Engine 3 releases what the two others hold."""
        self.screen.say("Engine 3 releases each twice: for engine 1, which stored it, and for engine 2.", "bold")
        with self.screen.meter(len(stored)) as meter:
            answers = await self.children["engine 3"].work([one.reference for one in stored], _shown_on(meter))
        wrong = wrong_answers(stored, answers, counts=[1, 0])
        wrong += await proof.wrong_when_released(self.place, files=len(stored))
        self._require(wrong, "every count went from 2 to 1 to 0.")

    async def reap(self, stored: Sequence[Stored]) -> None:
        """The reapers, at work all the time, delete the files; this waits for it while there is progress."""
        self.screen.say(f"The reapers delete what nobody has referred to for {RETENTION}.", "bold")
        left, deadline = len(stored), time.monotonic() + PATIENCE
        with self.screen.meter(len(stored)) as meter:
            while left:
                now_left = await proof.left(self.place)
                if now_left < left:
                    meter.advance(left - now_left)
                    left, deadline = now_left, time.monotonic() + PATIENCE
                elif time.monotonic() > deadline:
                    raise Trouble(f"{counted(left, 'file')} should be deleted, and none was for {PATIENCE:.0f} s.")
                await asyncio.sleep(POLL_SECONDS)
        shares = (await proof.reaped_by(self.place)).items()
        self.screen.say("  " + ", ".join(f"{name} took {files:,}" for name, files in shares) + ".")

    async def leave(self, stored: Sequence[Stored]) -> None:
        """All processes end in good order; nothing may be left of the files."""
        await asyncio.gather(*(child.finish() for child in self.children.values()))
        pids = [child.pid for child in self.children.values()]
        wrong = await proof.wrong_at_the_end(self.place, files=len(stored), pids=pids)
        self._require(wrong, "no reference, no blob, no object but the storage's marker; each file was reaped once.")

    async def _check_held(self, stored: Sequence[Stored], count: int) -> None:
        files = len(stored)
        wrong = await proof.wrong_while_held(self.place, files=files, size=size_of(stored), count=count)
        self._require(wrong, f"{files:,} references with count {count}, as many live blobs and objects of their sizes.")

    def _require(self, wrong: Sequence[str], shown: str) -> None:
        if wrong:
            raise Trouble("\n".join(wrong))
        self.screen.say(f"  Checked: {shown}", "green")


def wrong_answers(stored: Sequence[Stored], answers: Sequence[Message], counts: list[int]) -> list[str]:
    """What an engine says of the files, where that is not the original's SHA-256 or not these counts."""
    expected = {one.reference["file_key"]: one for one in stored}
    wrong = []
    for answer in answers:
        original = expected.pop(answer["file_key"])
        name = original.reference["file_name"]
        if answer["counts"] != counts:
            wrong.append(f"The counts of {name} were {answer['counts']}, not {counts}.")
        if answer.get("sha256", original.sha256) != original.sha256:
            wrong.append(f"{name} came back with SHA-256 {answer['sha256']}; the original has {original.sha256}.")
    return shortened(wrong)


def _request(original: Original) -> Message:
    where = {"stream": original.size} if original.path is None else {"path": str(original.path)}
    return {"name": original.name} | where


def _shown_on(meter: Meter) -> Any:
    def show(message: Message) -> None:
        if "bytes" in message:
            meter.advance(0, size=message["bytes"])
        else:
            meter.advance()

    return show


def _toml(values: dict[str, str]) -> str:
    # A string of JSON is one of TOML too.
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())


async def _stoppable(work: Coroutine[Any, Any, None], stopped_by: list[int]) -> None:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - this is a coroutine

    def stop(number: int) -> None:
        # Only the first one: a second must not interrupt the cleaning up.
        if not stopped_by:
            stopped_by.append(number)
            task.cancel()

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
    await work
