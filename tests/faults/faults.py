"""What servers and networks do to a request: each fault, by its name in the tables."""

import re
from collections import Counter
from dataclasses import replace

from tests.figures import FAULTS
from tests.fixtures.http_proxy import Answer, Exchange, Fault

_STRUCK: Counter[str] = Counter()

_LAST_OBJECT = re.compile(rb"(.*)<Contents>.*?</Contents>", re.DOTALL)


def struck() -> None:
    """Count a fault that has met an operation."""
    _STRUCK[FAULTS] += 1


def all_struck() -> int:
    """How many there were in this process."""
    return _STRUCK[FAULTS]


def counted(fault: Fault) -> Fault:
    """The fault, counted each time that it meets a request."""

    async def strike(exchange: Exchange) -> None:
        struck()
        await fault(exchange)

    return strike


def _error(status: int, code: str) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
    return Answer(status, (("Content-Type", "application/xml"),), body.encode())


def told(status: int, code: str = "InternalError", *, after: bool = False) -> Fault:
    """An error: the server never saw the request, or (`after`) has done what it asks."""

    async def fault(exchange: Exchange) -> None:
        if after:
            await exchange.passed_on()
        await exchange.answer(_error(status, code))

    return fault


def cut(*, after: bool = False) -> Fault:
    """The connection is lost on the request's way, or on the answer's."""

    async def fault(exchange: Exchange) -> None:
        if after:
            await exchange.passed_on()
        exchange.cut()

    return fault


def hung(*, after: bool = False) -> Fault:
    """No answer for as long as the fault lasts, and none then; the server may have done what was asked."""

    async def fault(exchange: Exchange) -> None:
        if after:
            await exchange.passed_on()
        await exchange.healed()
        exchange.cut()

    return fault


async def late(exchange: Exchange) -> None:
    """The request reaches the server only when the fault is over, long after its client has given up."""
    await exchange.healed()
    await exchange.answer(await exchange.passed_on())


async def broken_off(exchange: Exchange) -> None:
    """Half of the body comes, then the connection is lost."""
    answer = await exchange.passed_on()
    await exchange.answer(replace(answer, body=answer.body[: len(answer.body) // 2], length=len(answer.body)))


async def shortened(exchange: Exchange) -> None:
    """Half of the body comes, and its length is said to be that."""
    answer = await exchange.passed_on()
    await exchange.answer(replace(answer, body=answer.body[: len(answer.body) // 2]))


async def flipped(exchange: Exchange) -> None:
    """One bit of the body is another one."""
    answer = await exchange.passed_on()
    middle = len(answer.body) // 2
    flip = bytes([answer.body[middle] ^ 1])
    await exchange.answer(replace(answer, body=answer.body[:middle] + flip + answer.body[middle + 1 :]))


async def welcomed(exchange: Exchange) -> None:
    """A page of something that stands in between, with a status that says that all is well."""
    await exchange.answer(Answer(200, (("Content-Type", "text/html"),), b"<html><body>Please log in</body></html>"))


async def ended_early(exchange: Exchange) -> None:
    """A listing leaves out its last object, and says that it is whole."""
    answer = await exchange.passed_on()
    await exchange.answer(replace(answer, body=_LAST_OBJECT.sub(rb"\1", answer.body, count=1)))


async def forgotten(exchange: Exchange) -> None:
    """Success is told of a write or delete that is not done."""
    await exchange.answer(Answer(204 if exchange.request.method == "DELETE" else 200, (("ETag", '"0"'),)))


async def kept_wrongly(exchange: Exchange) -> None:
    """A write's first bit is another one in the storage."""
    body = exchange.request.body
    await exchange.answer(await exchange.passed_on(replace(exchange.request, body=bytes([body[0] ^ 1]) + body[1:])))


async def error_in_success(exchange: Exchange) -> None:
    """What S3 does when the parts of an upload cannot be joined: an error, with the status of a success."""
    await exchange.answer(replace(_error(500, "InternalError"), status=200))


FAULTS_BY_NAME: dict[str, Fault] = {
    "500 before": told(500),
    "500 after": told(500, after=True),
    "503 slow down": told(503, "SlowDown"),
    "403": told(403, "AccessDenied"),
    "404": told(404, "NoSuchKey"),
    "507": told(507, "InsufficientStorage"),
    "cut before": cut(),
    "cut after": cut(after=True),
    "hung before": hung(),
    "hung after": hung(after=True),
    "late": late,
    "broken off": broken_off,
    "shortened": shortened,
    "flipped": flipped,
    "welcomed": welcomed,
    "ended early": ended_early,
    "forgotten": forgotten,
    "kept wrongly": kept_wrongly,
    "error in success": error_in_success,
}
