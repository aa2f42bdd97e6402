"""Ranges and readers: like a binary file in every position, in bounded memory, and without a connection held."""

import asyncio
import hashlib
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bdr
from bdr import BinaryDataLifecycleManager, BinaryDataReader, BinaryDataReference
from bdr.manager.reader import PIECE
from tests.lifecycle.support import rows
from tests.manager.conftest import ConnectRedis
from tests.manager.support import NEVER, counting

DATA = bytes(i * 37 % 251 for i in range(1000))
LARGE = hashlib.shake_256(b"large").digest(3 * PIECE + 1000)


def reader_of(data: bytes, checksum: bytes | None = None) -> tuple[BinaryDataReader, list[tuple[int, int]]]:
    """A reader over bytes in memory, and what it has fetched so far."""
    fetched: list[tuple[int, int]] = []

    async def fetch(offset: int, length: int) -> bytes:
        fetched.append((offset, length))
        await asyncio.sleep(0)
        return data[offset : offset + length]

    reference = BinaryDataReference(file_key="key", mime_kind="text/plain", file_size=len(data))
    return BinaryDataReader(reference, checksum or hashlib.sha256(data).digest(), fetch), fetched


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-2, 1500), st.just(0)),
        st.tuples(st.just("read"), st.just(2**63 - 1), st.just(0)),
        st.tuples(st.just("seek"), st.integers(0, 1500), st.just(io.SEEK_SET)),
        st.tuples(st.just("seek"), st.integers(-1500, 1500), st.just(io.SEEK_CUR)),
        st.tuples(st.just("seek"), st.integers(-1500, 1500), st.just(io.SEEK_END)),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=1200), STEPS, st.integers(1, 500))
def test_it_moves_and_reads_as_a_binary_file_does(data: bytes, steps: list[tuple[str, int, int]], piece: int) -> None:
    asyncio.run(same_as_a_file(data, steps, piece))


async def same_as_a_file(data: bytes, steps: list[tuple[str, int, int]], piece: int) -> None:
    file = io.BytesIO(data)
    with pytest.MonkeyPatch.context() as patch:
        # Pieces as small as the data, so that every step crosses some.
        patch.setattr("bdr.manager.reader.PIECE", piece)
        reader, _ = reader_of(data)
        for what, number, whence in steps:
            if what == "read":
                assert await reader.read(number) == file.read(number)
            elif (file.tell(), 0, len(data))[(1, 0, 2)[whence]] + number < 0:
                with pytest.raises(bdr.InvalidArgument):
                    await reader.seek(number, whence)
            else:
                assert await reader.seek(number, whence) == file.seek(number, whence)
            assert await reader.tell() == file.tell()
        await reader.close()


async def test_it_reads_on_in_pieces_and_one_piece_ahead() -> None:
    reader, fetched = reader_of(LARGE)
    assert await reader.read(10) == LARGE[:10]
    await asyncio.sleep(0)
    assert fetched == [(0, PIECE), (PIECE, PIECE)]
    assert await reader.read() == LARGE[10:]
    assert fetched == [(0, PIECE), (PIECE, PIECE), (2 * PIECE, PIECE), (3 * PIECE, 1000)]


async def test_after_a_seek_it_fetches_nothing_that_was_not_asked_for() -> None:
    reader, fetched = reader_of(LARGE)
    await reader.seek(-500, io.SEEK_END)
    assert await reader.read(10) == LARGE[-500:-490]
    await reader.seek(5)
    assert await reader.read(10) == LARGE[5:15]
    await asyncio.sleep(0)
    assert fetched == [(3 * PIECE, 1000), (0, PIECE)]


async def test_a_read_that_failed_or_was_cancelled_can_be_tried_again() -> None:
    reader, _ = reader_of(LARGE)
    working = reader._fetch
    trouble: list[BaseException] = [bdr.StorageUnavailable("away"), asyncio.CancelledError()]

    async def fetch(offset: int, length: int) -> bytes:
        if offset == 2 * PIECE and trouble:
            raise trouble.pop(0)
        return await working(offset, length)

    reader._fetch = fetch
    assert await reader.read(5) == LARGE[:5]
    for expected in (bdr.StorageUnavailable, asyncio.CancelledError):
        with pytest.raises(expected):
            await reader.read()
        assert await reader.tell() == 5
    assert await reader.read() == LARGE[5:]
    assert reader._digested == len(LARGE)


async def test_a_cancelled_read_does_not_spoil_the_checksum() -> None:
    for steps in range(1, 20):
        reader, _ = reader_of(LARGE)
        assert await reader.read(PIECE) == LARGE[:PIECE]
        reading = asyncio.create_task(reader.read(PIECE))
        for _ in range(steps):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        start = await reader.tell()
        assert start in (PIECE, 2 * PIECE)
        assert await reader.read() == LARGE[start:]
        assert reader._digested == len(LARGE)


async def test_bytes_that_were_given_out_before_are_verified_again_from_the_beginning() -> None:
    reader, _ = reader_of(LARGE)
    assert await reader.read() == LARGE
    spoilt = bytearray(LARGE)
    spoilt[-1] ^= 1

    async def fetch(offset: int, length: int) -> bytes:
        return bytes(spoilt[offset : offset + length])

    reader._fetch = fetch
    await reader.seek(0)
    with pytest.raises(bdr.Corrupt):
        await reader.read()


async def test_two_reads_at_once_get_each_byte_once() -> None:
    reader, _ = reader_of(LARGE)
    parts = await asyncio.gather(*(reader.read(PIECE) for _ in range(5)))
    assert b"".join(parts) == LARGE


async def test_a_closed_reader_does_nothing_more() -> None:
    reader, _ = reader_of(DATA)
    await reader.read(10)
    await reader.close()
    await reader.close()
    for call in (reader.read(), reader.read(0), reader.seek(0), reader.tell(), anext(aiter(reader))):
        with pytest.raises(bdr.InvalidArgument, match="closed"):
            await call


@pytest.mark.parametrize(("offset", "whence", "sentence"), [(-1, 0, "before the beginning"), (0, 7, "whence is 7")])
async def test_a_seek_to_nowhere_is_refused(offset: int, whence: int, sentence: str) -> None:
    reader, _ = reader_of(DATA)
    with pytest.raises(bdr.InvalidArgument, match=sentence):
        await reader.seek(offset, whence)
    assert await reader.read() == DATA


async def test_two_readers_of_one_file_do_not_disturb_each_other(binary: BinaryDataLifecycleManager) -> None:
    reference = await binary.store_data(LARGE)
    async with binary.open(reference.file_key) as one, binary.open(reference.file_key) as other:
        assert (one.size, one.reference) == (len(LARGE), reference)
        assert await one.read(100) == LARGE[:100]
        assert await other.read() == LARGE
        await other.seek(7)
        assert await one.read() == LARGE[100:]
        assert await other.read(5) == LARGE[7:12]
    with pytest.raises(bdr.InvalidArgument, match="closed"):
        await one.read()


async def test_a_range_ends_with_the_file(binary: BinaryDataLifecycleManager) -> None:
    key = (await binary.store_data(DATA)).file_key
    ranges = [
        (0, 1000), (0, 10), (990, 10), (990, 11), (10, 2**63), (0, 2**200), (500, 0), (1000, 0), (1000, 5), (0, 0),
    ]  # fmt: skip
    for offset, length in ranges:
        assert await binary.get_range(key, offset, length) == DATA[offset : offset + length]


async def test_a_range_that_can_never_be_is_refused(binary: BinaryDataLifecycleManager) -> None:
    key = (await binary.store_data(DATA)).file_key
    negative = [(-1, 5), (0, -1), (-(2**63), -(2**63))]
    beyond = [(1001, 1), (1001, 0), (2**63, 1), (2**200, 2**200)]
    for offset, length in negative + beyond:
        sentence = "must not be negative" if (offset, length) in negative else "beyond the end"
        with pytest.raises(bdr.InvalidArgument, match=sentence):
            await binary.get_range(key, offset, length)


async def test_ranges_and_readers_of_an_empty_file_are_empty(binary: BinaryDataLifecycleManager) -> None:
    key = (await binary.store_data(b"")).file_key
    assert await binary.get_range(key, 0, 100) == b""
    async with binary.open(key) as reader:
        assert await reader.read() == b""
        assert [part async for part in reader] == []


async def test_a_slow_reader_holds_no_connection_to_the_database(connect_redis: ConnectRedis) -> None:
    binary, proxy = await connect_redis(access=NEVER, database=bdr.DatabaseConfig(pool_size=1))
    key = (await binary.store_data(LARGE)).file_key
    asked = counting(proxy, b"GETRANGE")
    async with binary.open(key) as reader:
        assert await reader.read(10) == LARGE[:10]
        proxy.pause()
        await reader.seek(3 * PIECE)
        reading = asyncio.create_task(reader.read())
        assert await rows(binary, "SELECT 1") == [(1,)]
        assert await binary.register_reference(key) == 2
        assert not reading.done()
        proxy.resume()
        assert await reading == LARGE[3 * PIECE :]
    assert asked() >= 2


async def test_what_is_no_key_is_not_found(binary: BinaryDataLifecycleManager) -> None:
    for bad in ("", "x", "../etc/passwd", "a\x00b", "é" * 26, "0" * 26 + ".tar.gz", "0" * 100_000, "0" * 26 + "\n"):
        calls = (
            binary.get_data(bad), binary.get_range(bad, 0, 1), binary.open(bad).__aenter__(), binary.delete_data(bad),
            binary.get_metadata(bad), binary.get_reference(bad), binary.get_details(bad),
            binary.register_reference(bad), binary.release_reference(bad), binary.cleanup_data(bad),
        )  # fmt: skip
        for call in calls:
            with pytest.raises(bdr.FileNotFound, match=f"There is no reference {re.escape(repr(bad)[:40])}") as raised:
                await call
            assert len(str(raised.value)) < 600
        assert not await binary.data_exists(bad)
