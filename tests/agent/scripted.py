"""
A server that says what the test wrote, over real sockets, and remembers what it was asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

SECRET = "0123456789abcdef0123456789abcdef"
CHALLENGE = "00112233445566778899aabbccddeeff"
CODE = "ABCDEF-123456"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value


@dataclass(frozen=True)
class Answer:
    """:ivar raw: sent instead of everything else. :ivar hold: waits for this before answering."""

    status: int = 200
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    hold: threading.Event | None = None
    close: bool = False

    def encode(self) -> bytes:
        if self.raw is not None:
            return self.raw
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **self.headers}
        head = f"HTTP/1.1 {self.status} Whatever\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        return head.encode() + b"\r\n" + body


Script = Callable[[Request], Answer]


class ScriptedServer:
    """Answers by ``script``, each connection in its thread; ``requests`` holds what came, in order."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.connections = 0
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        with contextlib.suppress(OSError):  # already stopped
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    def wait_for(self, method: str, count: int = 1) -> None:
        """Return when ``count`` requests with ``method`` have come; fail after 20 s."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self.seen(method)) >= count, 20)
        assert came, f"{method} did not come; {[f'{r.method} {r.path}' for r in self.requests]}"

    def seen(self, method: str) -> list[Request]:
        return [request for request in self.requests if request.method == method]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        try:
            stream = connection.makefile("rb")
            while (request := self._read(stream)) is not None:
                with self._changed:
                    self.requests.append(request)
                    self._changed.notify_all()
                answer = self.script(request)
                if answer.hold is not None:
                    answer.hold.wait(60)
                connection.sendall(answer.encode())
                if answer.close or answer.raw is not None:
                    return
        except OSError:
            pass
        finally:
            self._open.discard(connection)
            connection.close()

    @staticmethod
    def _read(stream) -> Request | None:  # type: ignore[no-untyped-def]
        line = stream.readline().decode().split()
        if len(line) < 2:
            return None
        headers = {}
        while (text := stream.readline().decode().strip()) != "":
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        body = stream.read(int(headers.get("content-length", "0")))
        path, _, query = line[1].partition("?")
        pairs = dict(part.partition("=")[::2] for part in query.split("&") if part)
        return Request(line[0], path, pairs, headers, body)


def token(status: str, *, user: str = "alice", secret: str = SECRET, rotate: str = "", revoke: str = "") -> str:
    """A status token in the form that deployed agents accept, made by other code than the agent's."""
    parts = [CHALLENGE, status, user] + ([rotate] if rotate else [])
    text = "".join(f"{len(part.encode())}:{part}" for part in parts)
    text += f"r{len(revoke)}:{revoke}" if revoke else ""
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def created(url: str = "", **extra: object) -> Answer:
    body: dict[str, object] = {
        "challenge_id": CHALLENGE,
        "expires_in": 120,
        "user_code": CODE,
        "verification_url": f"{url or 'https://id.example.com'}/approve/{CODE}",
    }
    return Answer(201, {**body, **extra})


def pending(**extra: object) -> Answer:
    return Answer(200, {"status": "pending", "expires_in": 100, **extra})


def approved(**extra: object) -> Answer:
    return Answer(200, {"status": "approved", "approval_token": token("approved"), **extra})


def denied(**extra: object) -> Answer:
    return Answer(200, {"status": "denied", "denial_token": token("denied"), **extra})


def in_turn(*answers: Answer) -> Script:
    """POST, GET … answered in turn, the last one again and again; DELETE always by 200."""
    left = list(answers)

    def script(request: Request) -> Answer:
        if request.method == "DELETE":
            return Answer(200, {"status": "cancelled"})
        return left.pop(0) if len(left) > 1 else left[0]

    return script
