"""
An HTTP/1.1 server of the test in threads of its own, with faults that are switched while it runs; the receivers of
audit records are made from it.
"""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

MOST_BODY_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """
    One request.

    :ivar headers: names in lower case. :ivar body: unpacked. :ivar packed: whether it came compressed.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    packed: bool


@dataclass(frozen=True, slots=True)
class Told:
    """What is answered."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})


class HttpReceiver:
    """
    To be given :meth:`take`. Faults, one at a time, each until :meth:`heal`:

    - ``busy``: 503, nothing is taken.
    - ``throttled``: 429 with ``Retry-After`` of ``retry_after``, nothing is taken.
    - ``slow``: takes and answers after ``seconds``.
    - ``silent``: reads the request and never answers, nothing is taken; the connection stays open.
    - ``cut``: takes, begins to answer, and closes in the middle.
    - ``trickle``: takes, and answers with one byte per second.
    - ``reset``: reads a little and resets the connection.
    - ``status``: answers ``status`` with ``body``, nothing is taken.

    :ivar asked: how many requests came.
    :ivar compressed: how many of them with a compressed body.
    :ivar connections: how many connections were made.
    """

    scheme = "http"

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._context: ssl.SSLContext | None = None
        self.lock = threading.Lock()
        self._fault: tuple[str, dict[str, Any]] = ("", {})
        self._over = threading.Event()
        self.asked = self.compressed = self.connections = 0

    # -- for subclasses -----------------------------------------------------------------------------------------------
    def take(self, asked: Asked) -> Told:
        """What is answered; every receiver has its own. Called with the lock held."""
        raise NotImplementedError

    def busy(self) -> Told:
        return Told(503, b'{"message":"busy"}')

    def throttled(self, retry_after: str) -> Told:
        return Told(429, b"too many requests\n", {"Retry-After": retry_after, "Content-Type": "text/plain"})

    # -- running ------------------------------------------------------------------------------------------------------
    @property
    def port(self) -> int:
        return self._port

    @property
    def origin(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self._port}"

    def secure(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """
        Speak TLS on connections that come from now on.

        :param client_ca: demand client certificates of this CA.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(client_ca)
        self._context, self.scheme = context, "https"
        self.hang_up()

    def start(self) -> None:
        """Listen; after :meth:`stop`, on the same port again and with all that was taken."""
        self._over.clear()
        self._server = _Server(("127.0.0.1", self._port), self)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Also ends the connections that are open."""
        server, self._server = self._server, None
        if server is None:
            return
        self._over.set()
        server.shutdown()
        server.server_close()
        server.hang_up()
        assert self._thread is not None
        self._thread.join(10)

    def hang_up(self) -> None:
        """End the connections that are open."""
        if self._server is not None:
            self._server.hang_up()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- faults -------------------------------------------------------------------------------------------------------
    def fail(self, fault: str, **options: Any) -> None:
        """
        :param fault: one of the above.
        :param options: ``seconds`` (slow), ``retry_after`` (throttled), ``status``, ``body`` and ``headers`` (status).
        """
        assert fault in ("busy", "throttled", "slow", "silent", "cut", "trickle", "reset", "status"), fault
        self._fault = (fault, options)

    def heal(self) -> None:
        self._fault = ("", {})

    def waits(self, seconds: float, fault: str) -> None:
        """Until so long has passed, the fault is over or the server."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._fault[0] == fault and not self._over.is_set():
            self._over.wait(0.02)

    def _answer(self, asked: Asked, handler: _Handler) -> None:
        fault, options = self._fault
        with self.lock:
            self.asked += 1
            self.compressed += asked.packed
        if fault == "busy":
            handler.tell(self.busy())
        elif fault == "throttled":
            handler.tell(self.throttled(str(options.get("retry_after", 1))))
        elif fault == "status":
            handler.tell(Told(options["status"], options.get("body", b""), options.get("headers", {})))
        elif fault == "silent":
            self.waits(60, fault)
            handler.drop()
        else:
            if fault == "slow":
                self.waits(options["seconds"], fault)
            with self.lock:
                told = self.take(asked)
            if fault == "cut":
                handler.tell(told, half=True)
                handler.drop()
            elif fault == "trickle":
                handler.tell(told, pause=lambda: self.waits(1, fault))
            else:
                handler.tell(told)

    def _resets(self) -> bool:
        return self._fault[0] == "reset"


class Inbox(HttpReceiver):
    """
    Of messages to a ``webhook`` channel.

    :ivar messages: in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[dict[str, object]] = []

    def take(self, asked: Asked) -> Told:
        self.messages.append(json.loads(asked.body))
        return Told(200)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], receiver: HttpReceiver) -> None:
        self.receiver = receiver
        self.open: set[socket.socket] = set()
        self.guard = threading.Lock()
        super().__init__(address, _Handler)

    def hang_up(self) -> None:
        with self.guard:
            found = list(self.open)
        for connection in found:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that end in the middle are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True

    def setup(self) -> None:
        receiver = self.server.receiver
        self.raw: socket.socket = self.request
        self.raw.settimeout(60)
        with self.server.guard:
            self.server.open.add(self.raw)
        with receiver.lock:
            receiver.connections += 1
        if receiver._context is not None:
            plain = self.request
            self.request = receiver._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            with self.server.guard:
                self.server.open.discard(plain)
                self.server.open.add(self.request)
            self.raw = self.request
            try:
                self.request.do_handshake()
            except OSError:
                self._forget()
                raise
        super().setup()

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self._forget()

    def _forget(self) -> None:
        with self.server.guard:
            self.server.open.discard(self.raw)
        self.raw.close()

    def log_message(self, format: str, *args: Any) -> None:
        """The test's output is for the test."""

    def do_GET(self) -> None:
        self._asked()

    def do_POST(self) -> None:
        self._asked()

    def _asked(self) -> None:
        receiver = self.server.receiver
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MOST_BODY_BYTES:
            self.tell(Told(411 if not length.isdigit() else 413))
            self.close_connection = True
            return
        if receiver._resets():
            self.rfile.read(min(10, int(length)))
            self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            # closing with linger 0 sends a reset; the TLS layer must not say farewell first
            socket.socket.close(self.raw)
            return
        body = self.rfile.read(int(length))
        coding = self.headers.get("Content-Encoding", "identity").lower()
        if coding == "gzip":
            try:
                body = gzip.decompress(body)
            except (OSError, EOFError, zlib.error):
                self.tell(Told(400, b"gzip: invalid header\n", {"Content-Type": "text/plain"}))
                return
        elif coding != "identity":
            self.tell(Told(415, b"Content-Encoding not supported\n", {"Content-Type": "text/plain"}))
            return
        parts = urlsplit(self.path)
        receiver._answer(
            Asked(
                method=self.command,
                path=parts.path,
                query={name: values[-1] for name, values in parse_qs(parts.query).items()},
                headers={name.lower(): value for name, value in self.headers.items()},
                body=body,
                packed=coding == "gzip",
            ),
            self,
        )

    def tell(self, told: Told, *, half: bool = False, pause: Callable[[], None] | None = None) -> None:
        headers = {"Content-Length": str(len(told.body)), **told.headers}
        if told.status == 204:
            del headers["Content-Length"]
        if half:
            # promised, and never sent
            headers["Content-Length"] = str(len(told.body) + 100)
            told = Told(200 if told.status == 204 else told.status, told.body)
        self.send_response(told.status)
        for name, value in headers.items():
            self.send_header(name, value)
        if pause is None:
            self.end_headers()
            self.wfile.write(told.body)
            return
        head = b"".join(self._headers_buffer) + b"\r\n"  # type: ignore[attr-defined]
        self._headers_buffer: list[bytes] = []
        for byte in head + told.body:
            self.wfile.write(bytes([byte]))
            pause()

    def drop(self) -> None:
        self.close_connection = True
