"""The proxy of the fixtures: what it promises to the tests that rely on it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fixtures.proxy import MakeProxy


class Echo:
    """A server that remembers what it was sent and sends it back."""

    def __init__(self) -> None:
        self.received = b""
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(1024):
            self.received += chunk
            writer.write(chunk)
        writer.close()
        self.ended.set()


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def port(echo: Echo) -> AsyncIterator[int]:
    async with await asyncio.start_server(echo.serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_bytes_pass_both_ways_and_are_counted(port: int, proxy: MakeProxy) -> None:
    through = await proxy("127.0.0.1", port)
    reader, writer = await asyncio.open_connection(through.host, through.port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    assert (through.accepted, through.forwarded) == (1, 5)
    writer.close()


async def test_a_unix_socket_can_be_behind_it(echo: Echo, proxy: MakeProxy, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with await asyncio.start_unix_server(echo.serve, path):
        through = await proxy(path)
        reader, writer = await asyncio.open_connection(through.host, through.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        await echo.ended.wait()


async def test_a_cut_after_a_request_loses_its_answer_but_not_the_request(
    echo: Echo, port: int, proxy: MakeProxy
) -> None:
    through = await proxy("127.0.0.1", port)

    def cut_after_commit(data: bytes) -> None:
        if b"COMMIT" in data:
            through.cut()

    through.on_client_data(cut_after_commit)
    for _ in range(50):
        echo.received = b""
        echo.ended.clear()
        reader, writer = await asyncio.open_connection(through.host, through.port)
        writer.write(b"BEGIN")
        assert await reader.readexactly(5) == b"BEGIN"
        writer.write(b"COMMIT")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        await asyncio.wait_for(echo.ended.wait(), 10)
        assert echo.received == b"BEGINCOMMIT"
        writer.close()


async def test_a_pause_holds_everything_back(port: int, proxy: MakeProxy) -> None:
    through = await proxy("127.0.0.1", port)
    through.pause()
    reader, writer = await asyncio.open_connection(through.host, through.port)
    writer.write(b"hello")
    answer = asyncio.create_task(reader.readexactly(5))
    done, _ = await asyncio.wait({answer}, timeout=0.1)
    assert not done
    through.resume()
    assert await answer == b"hello"
    writer.close()


async def test_a_delay_makes_it_slow(port: int, proxy: MakeProxy) -> None:
    through = await proxy("127.0.0.1", port)
    through.delay(0.1)
    reader, writer = await asyncio.open_connection(through.host, through.port)
    started = asyncio.get_running_loop().time()
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    assert asyncio.get_running_loop().time() - started >= 0.2
    writer.close()


async def test_it_goes_down_and_comes_back_at_the_same_port(port: int, proxy: MakeProxy) -> None:
    through = await proxy("127.0.0.1", port)
    first = through.port
    reader, writer = await asyncio.open_connection(through.host, first)
    writer.write(b"hello")
    await reader.readexactly(5)
    through.stop()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(through.host, first)
    await through.start()
    _, again = await asyncio.open_connection(through.host, first)
    again.close()
    writer.close()


async def test_a_mistake_in_a_callback_is_not_swallowed(port: int, proxy: MakeProxy) -> None:
    through = await proxy("127.0.0.1", port)
    through.on_client_data(lambda data: data.index(b"not there"))
    reader, writer = await asyncio.open_connection(through.host, through.port)
    writer.write(b"hello")
    await reader.read()
    writer.close()
    with pytest.raises(ValueError, match="subsection not found"):
        await through.close()
    through._failures.clear()
