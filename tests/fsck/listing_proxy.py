"""An HTTP proxy before S3 whose listings can be made to lie or to fail; everything else passes as it is."""

import http.client
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

from tests.fixtures.storages import LOOPBACK, S3Server

_LAST_OBJECT = re.compile(rb"(.*)<Contents>.*?</Contents>", re.DOTALL)
_NOT_PASSED_ON = {"connection", "content-length", "transfer-encoding"}


class ListingProxy(ThreadingHTTPServer):
    """Forwards to a server.

    Attributes:
        short: listings of these folders leave out their last object, and claim to be whole.
        failing: listings of these folders are answered with an error.
    """

    daemon_threads = True

    def __init__(self, server: S3Server) -> None:
        super().__init__((LOOPBACK, 0), _Forward)
        self.target = server
        self.short: set[str] = set()
        self.failing: set[str] = set()

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}"


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ListingProxy

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        folder = query.get("prefix", [""])[0].rstrip("/").rpartition("/")[2] if "list-type" in query else None
        status, headers, body = self._asked()
        if folder in self.server.failing:
            status, body = 500, b""
        elif folder in self.server.short:
            body = _LAST_OBJECT.sub(rb"\1", body, count=1)
        self._answer(status, headers, body)

    def do_HEAD(self) -> None:
        status, headers, _ = self._asked()
        self._answer(status, headers, None)

    def do_PUT(self) -> None:
        self._answer(*self._asked())

    do_POST = do_DELETE = do_PUT  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass

    def _asked(self) -> tuple[int, list[tuple[str, str]], bytes]:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection(self.server.target.host, self.server.target.port)
        try:
            # The signature is over the Host that the client used.
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes | None) -> None:
        self.send_response_only(status)
        length = next((value for name, value in headers if name.lower() == "content-length"), "0")
        for name, value in headers:
            if name.lower() not in _NOT_PASSED_ON:
                self.send_header(name, value)
        self.send_header("Content-Length", length if body is None else str(len(body)))
        self.end_headers()
        self.wfile.write(body or b"")


@contextmanager
def listing_proxy(server: S3Server) -> Iterator[ListingProxy]:
    """A proxy that runs while inside."""
    with ListingProxy(server) as proxy:
        thread = Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
