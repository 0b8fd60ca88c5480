"""A server on loopback that speaks JSON: what the tests' own servers of models are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer
from threading import Thread
from typing import Any, TypeVar

Started = TypeVar("Started", bound=BaseServer)


class JsonHandler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def body(self) -> Any:
        """What was posted."""
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def reply(self, value: Any, status: int = 200) -> None:
        """Answer with JSON."""
        self.send(json.dumps(value).encode(), "application/json", status)

    def send(self, data: bytes, media: str, status: int = 200) -> None:
        """Answer with anything."""
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class JsonServer(ThreadingHTTPServer):
    """A server on a free port, with room for the requests that its handler wants to keep."""

    daemon_threads = True

    def __init__(self, handler: type[JsonHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.requests: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        """The base URL that clients of an OpenAI-compatible server want."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def running(server: Started) -> Iterator[Started]:
    """The server, in a thread until the block ends."""
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
