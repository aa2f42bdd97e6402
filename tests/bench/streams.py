"""One large stream, stored and read again, each in a process of its own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import bdr
from tests.bench.bare import BareFiles
from tests.bench.ground import MIB, Catalog, Ground
from tests.bench.measure import alternating, best
from tests.bench.verdict import Comparison, at_least, at_most
from tests.bench.workers import Answer, Go, Orders, rate_of, together, watched

AGAINST: Final = "bare OpenDAL at its best chunking, SHA-256 beside it"
# What is streamed comes in chunks of this size, made beforehand.
_CHUNK: Final = MIB
# Pieces in MiB, and how many OpenDAL has under way at once: the best of these is the floor.
_CHUNKINGS: Final = ((1, 1), (4, 1), (8, 1), (8, 4))
_TRIED: Final = 256 * MIB

Measure = Callable[[], Awaitable[Answer]]


async def chunks(size: int) -> AsyncIterator[bytes]:
    """So many bytes."""
    chunk = bytes(range(256)) * (_CHUNK // 256)
    for _ in range(size // _CHUNK):
        yield chunk


async def store(go: Go, catalog: Catalog, size: int) -> Answer:
    """Store through bdr, in MiB; what was stored is deleted again when it has been measured."""
    async with catalog.connect() as binary:
        await go()
        with watched(size / MIB) as answer:
            reference = await binary.store_stream(chunks(size), bdr.BinaryDataMetadata(file_name="large.bin"))
        await binary.delete_data(reference.file_key)
    return answer


async def get(go: Go, catalog: Catalog, key: str) -> Answer:
    """Read through bdr, which compares the SHA-256 with the one that was stored, in MiB."""
    async with catalog.connect() as binary, binary.open(key) as reader:
        await go()
        with watched(reader.reference.file_size / MIB) as answer:
            async for _ in reader:
                pass
    return answer


async def bare_store(go: Go, folder: Path, size: int, chunking: tuple[int, int]) -> Answer:
    """Write through OpenDAL alone, in MiB."""
    files = BareFiles(folder)
    piece = bytes(range(256)) * (chunking[0] * MIB // 256)
    await go()
    with watched(size / MIB) as answer:
        path = await files.store_stream(piece, size // len(piece), concurrent=chunking[1])
    await files.operator.delete(path)
    await asyncio.sleep(_LAST_TICK)
    return answer


async def bare_get(go: Go, folder: Path, path: str, size: int, chunking: tuple[int, int]) -> Answer:
    """Read through OpenDAL alone, in MiB."""
    files = BareFiles(folder)
    await go()
    with watched(size / MIB) as answer:
        await files.get_stream(path, size=size, piece=chunking[0] * MIB, concurrent=chunking[1])
    await asyncio.sleep(_LAST_TICK)
    return answer


# An interpreter that ends just after OpenDAL's last answer may abort.
_LAST_TICK: Final = 0.05


async def stream(ground: Ground) -> list[Comparison]:
    """How fast, and with how much memory."""
    size = ground.sizes.stream
    async with ground.catalog() as catalog:
        stored = await _compare(
            ground,
            Orders(store, (catalog, size)),
            lambda chunking, much: Orders(bare_store, (ground.new_folder("bare"), much, chunking)),
        )
        async with catalog.connect() as binary:
            reference = await binary.store_stream(chunks(size), bdr.BinaryDataMetadata(file_name="large.bin"))
            path = (await binary.get_details(reference.file_key)).object_path
        got = await _compare(
            ground,
            Orders(get, (catalog, reference.file_key)),
            lambda chunking, much: Orders(bare_get, (catalog.folder, path, much, chunking)),
        )
    return [*_as_comparisons(f"store {size // MIB:,} MiB", *stored), *_as_comparisons(f"get {size // MIB:,} MiB", *got)]


async def _compare(
    ground: Ground, ours: Orders, floor: Callable[[tuple[int, int], int], Orders]
) -> tuple[list[Answer], list[Answer], str]:
    tried = min(_TRIED, ground.sizes.stream)

    async def rate(chunking: tuple[int, int]) -> float:
        return rate_of(await together([floor(chunking, tried)]))

    chunking = await best(_CHUNKINGS, rate)

    def one(orders: Orders) -> Measure:
        async def run() -> Answer:
            (answer,) = await together([orders])
            return answer

        return run

    sides = {"bdr": one(ours), "floor": one(floor(chunking, ground.sizes.stream))}
    answers = await alternating(min(ground.sizes.rounds, _MOST_ROUNDS), sides)
    return answers["bdr"], answers["floor"], f"{chunking[0]} MiB, {chunking[1]} at once"


_MOST_ROUNDS: Final = 5


def _as_comparisons(work: str, ours: list[Answer], floor: list[Answer], chunking: str) -> list[Comparison]:
    rates, floors = ([rate_of([one]) for one in answers] for answers in (ours, floor))
    memory = [one.memory / MIB for one in ours]
    theirs = max(one.memory for one in floor) / MIB
    return [
        Comparison("stream", work, AGAINST, "MiB/s", at_least(0.9), rates, floors, note=f"chunking: {chunking}"),
        Comparison(
            "stream",
            f"{work}, peak memory above idle",
            "-",
            "MiB",
            at_most(64),
            memory,
            note=f"floor: {theirs:.0f} MiB",
        ),
    ]
