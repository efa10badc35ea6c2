"""A stand-in for InfluxDB 2.x and 3 in tests: gives recorded forms of answers and keeps the requests.

The forms were written from InfluxData's documentation and the servers' published sources; they never came from a
running 2.x or 3. What they cannot show is whether a server behaves so: they hold pm to what is documented.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    headers: Mapping[str, str]

    @property
    def question(self) -> str:
        """The InfluxQL of a `/query`, from the address or from the form."""
        return self.query.get("q") or dict(parse_qsl(self.body.decode())).get("q", "")

    @property
    def lines(self) -> list[str]:
        """The line protocol of a write."""
        body = gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body
        return body.decode().split("\n")


@dataclass(frozen=True)
class Told:
    """An answer to give."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class StandIn:
    url: str
    asked: list[Asked] = field(default_factory=list)

    def of(self, path: str) -> list[Asked]:
        return [request for request in self.asked if request.path == path]


@contextmanager
def stand_in(answer: Callable[[Asked], Told]) -> Iterator[StandIn]:
    """A server on a free loopback port that answers as `answer` says."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = 65536  # an answer leaves in one piece

        def _serve(self) -> None:
            address = urlsplit(self.path)
            length = int(self.headers.get("Content-Length", 0))
            request = Asked(
                self.command,
                address.path,
                dict(parse_qsl(address.query)),
                self.rfile.read(length),
                {name.lower(): value for name, value in self.headers.items()},
            )
            running.asked.append(request)
            told = answer(request)
            self.send_response_only(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            if told.status != 204:
                self.send_header("Content-Length", str(len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = StandIn(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
