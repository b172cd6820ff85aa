"""A local HTTP server that misbehaves as a script tells it, for tests of downloads."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

#: how one request is treated: a name in `_Handler.do_GET`, or a name and its argument
Deed = str | tuple[str, Any]


@dataclass
class Log:
    """What the server saw."""

    urls: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)
    at_once: int = 0
    most_at_once: int = 0


@dataclass(frozen=True)
class BadServer:
    """A running server: its base URL and its log."""

    url: str
    log: Log


@contextmanager
def bad_server(answer: Callable[[str], Any], script: Sequence[Deed] = ()) -> Iterator[BadServer]:
    """Serve `answer(path with query)` as JSON; the first requests are treated as `script` says, the others well.

    Deeds: "ok", ("status", 500), ("retry_after", seconds or date), "cut" (half a body), "cut_unsaid" (the same, no
    length stated), "malformed", "html", "hang_up", ("slow", seconds before the answer), ("drip", seconds between
    bytes), ("body", any JSON).
    """
    log, deeds, lock = Log(), list(script), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with lock:
                deed = deeds.pop(0) if deeds else "ok"
                log.urls.append(unquote(self.path))
                log.times.append(time.monotonic())
                log.agents.append(self.headers.get("User-Agent", ""))
                log.connections.add(self.client_address)
                log.at_once += 1
                log.most_at_once = max(log.most_at_once, log.at_once)
            try:
                self._misbehave(*(deed if isinstance(deed, tuple) else (deed, None)))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with lock:
                    log.at_once -= 1

        def _misbehave(self, deed: str, argument: Any) -> None:
            body = json.dumps(answer(unquote(self.path))).encode()
            if deed == "status":
                self._send(b"what went wrong, in words", status=argument)
            elif deed == "retry_after":
                self._send(b"{}", status=429, headers={"Retry-After": str(argument)})
            elif deed == "cut":
                self._send(body[: len(body) // 2], length=len(body))
                self.close_connection = True
            elif deed == "cut_unsaid":  # no length is stated: only the JSON tells
                self.send_response(200)
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            elif deed == "malformed":
                self._send(body[:-1] + b",,,")
            elif deed == "html":
                self._send(b"<html><body>We are back soon</body></html>")
            elif deed == "hang_up":
                self.close_connection = True
            elif deed == "slow":
                time.sleep(argument)
                self._send(body)
            elif deed == "drip":
                self._send(b"", length=len(body))
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(argument)
            elif deed == "body":
                self._send(json.dumps(argument).encode())
            else:
                self._send(body)

        def _send(
            self, body: bytes, status: int = 200, length: int | None = None, headers: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body) if length is None else length))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield BadServer(f"http://127.0.0.1:{server.server_address[1]}", log)
    finally:
        server.shutdown()
        server.server_close()


def unused_port() -> int:
    """A port of this machine at which nobody listens."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
