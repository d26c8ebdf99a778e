"""The web adapter on the application of ``tests.app.world``, and a browser without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest

from identree.app.development import Development
from identree.app.health import Check, Health
from identree.core import tokens
from identree.core.addresses import Network, parse_networks
from identree.web import hosts as host_routes
from identree.web import login as login_routes
from identree.web.actions import ActionRoutes
from identree.web.events import EventStreams
from identree.web.hosts import HostRoutes
from identree.web.login import DevelopmentRoutes, LoginRoutes
from identree.web.operations import OperationsRoutes
from identree.web.reading import Addresses
from identree.web.replies import html
from identree.web.root import build_root
from identree.web.sessions import BrowserSessions
from identree.web.site import Site
from tests.app.world import SECRET, World

PEER = "192.0.2.7"


class FakeCards:
    """Says only the key."""

    def card(self, request: IRequest, status: int, key: str, *, retry: str | None = None, detail: str = "") -> bytes:
        return html(request, status, f"CARD({key}) retry={retry}".encode())

    def sentence(self, request: IRequest, key: str) -> str:
        return f"The sentence of {key}."


@dataclass
class Response:
    code: int
    headers: dict[str, list[str]]
    body: bytes

    def header(self, name: str) -> str | None:
        values = self.headers.get(name.lower())
        return values[0] if values else None

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def cookie(self, name: str) -> str | None:
        """The whole ``Set-Cookie`` of this name."""
        found = [line for line in self.headers.get("set-cookie", ()) if line.startswith(name + "=")]
        assert len(found) <= 1, found
        return found[0] if found else None


class Connection:
    """One TCP connection to the site."""

    def __init__(self, site: Site, peer: str = PEER) -> None:
        self.gone = False
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", peer, 40000))
        self.protocol = site.buildProtocol(self.transport.getPeer())
        self.protocol.makeConnection(self.transport)
        self._read = 0

    def send(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    @property
    def raw(self) -> bytes:
        return self.transport.value()

    @property
    def closed(self) -> bool:
        return self.transport.disconnecting or self.transport.disconnected

    def hang_up(self) -> None:
        if not self.gone:
            self.gone = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def response(self, *, head: bool = False) -> Response | None:
        """The next whole response, None when it has not come yet."""
        raw = self.raw[self._read :]
        start, separator, rest = raw.partition(b"\r\n\r\n")
        if not separator:
            return None
        status, *lines = start.decode("latin-1").split("\r\n")
        headers: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            headers.setdefault(name.lower(), []).append(value)
        code = int(status.split(" ")[1])
        if head or code in (204, 304):
            body, used = b"", 0
        elif "content-length" in headers:
            used = int(headers["content-length"][0])
            if len(rest) < used:
                return None
            body = rest[:used]
        elif headers.get("transfer-encoding") == ["chunked"]:
            whole = self._chunks(rest)
            if whole is None:
                return None
            body, used = whole
        else:
            body, used = rest, len(rest)
        self._read += len(start) + 4 + used
        return Response(code, headers, body)

    @staticmethod
    def _chunks(rest: bytes) -> tuple[bytes, int] | None:
        body, position = b"", 0
        while True:
            line, separator, _ = rest[position:].partition(b"\r\n")
            if not separator:
                return None
            size = int(line, 16)
            position += len(line) + 2
            body += rest[position : position + size]
            position += size + 2
            if size == 0:
                return body, position


def encoded(method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    """A request as it goes on the wire."""
    lines = {"Host": "identree.example", **(headers or {})}
    if body or method == "POST":
        lines.setdefault("Content-Length", str(len(body)))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


class Front:
    """
    A running web adapter.

    :ivar cookies: what the browser has.
    """

    def __init__(self, world: World | None = None) -> None:
        self.world = World() if world is None else world
        world = self.world
        self.trusted: tuple[Network, ...] = ()
        self.cookies: dict[str, str] = {}
        self._connections: list[Connection] = []
        self.probe: Any = self._well
        self.metrics_token = ""
        addresses = Addresses(lambda: self.trusted)
        cards = FakeCards()
        self.sessions = BrowserSessions(world.people, lambda: world.rules)
        self.streams = EventStreams(
            sessions=self.sessions, clock=world.clock, epoch="0123abcd", limit=8, limit_per_user=3
        )
        world.store.subscribe(self.streams.heard)
        self.health = Health(
            [
                Check(name="disk", probe=self._well, failure="not_writable", critical=True, fresh_seconds=10),
                Check(name="database", probe=lambda: self.probe(), failure="error", critical=True, fresh_seconds=0),
            ],
            world.clock,
            world.clock.seconds,
        )
        self.operations = OperationsRoutes(
            clock=world.clock,
            health=self.health,
            metrics=world.metrics,
            store=world.store,
            waiters=lambda: (len(world.waiters), world.waiters.limit),
            streams=lambda: (len(self.streams), self.streams.limit),
            metrics_token="",
            now=world.now,
            monotonic=world.clock.seconds,
        )
        people: dict[str, Any] = {"people": world.people, "sessions": self.sessions, "addresses": addresses}
        root = build_root(
            hosts=HostRoutes(challenges=world.challenges, hosts=world.hosts, addresses=addresses, clock=world.clock),
            streams=self.streams,
            routes=[
                ActionRoutes(decisions=world.decisions, cards=cards, rules=lambda: world.rules, **people),
                LoginRoutes(cards=cards, rules=lambda: world.rules, **people),
                DevelopmentRoutes(
                    development=Development(
                        store=world.store, keys=world.keys, rules=lambda: world.rules, now=world.now
                    ),
                    rules=lambda: world.rules,
                    **people,
                ),
                self.operations,
            ],
        )
        self.site = Site(
            root,
            reactor=world.clock,
            external_url=world.rules.external_url,
            token=world.token,
            body_limits={
                host_routes.CHALLENGE_PATH: host_routes.CHALLENGE_BODY_BYTES,
                b"/signout": login_routes.SIGN_OUT_BODY_BYTES,
            },
            max_connections=50,
        )

    @staticmethod
    async def _well() -> str:
        return "ok"

    def trust(self, *networks: str) -> None:
        self.trusted = parse_networks(networks)

    # -- talking ------------------------------------------------------------------------------------------------------
    def connect(self, peer: str = PEER) -> Connection:
        connection = Connection(self.site, peer)
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        """Everybody hangs up."""
        for connection in self._connections:
            connection.hang_up()

    def start(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"", peer: str = PEER
    ) -> Connection:
        """A request whose answer may take its time."""
        connection = self.connect(peer)
        sent = dict(headers or {})
        if self.cookies:
            sent.setdefault("Cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        connection.send(encoded(method, path, sent, body))
        return connection

    def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"", peer: str = PEER
    ) -> Response:
        """A request and its answer; refusals of creations take 5 ms of the clock."""
        connection = self.start(method, path, headers, body, peer)
        response = connection.response(head=method == "HEAD")
        if response is None:
            self.world.clock.advance(host_routes.REFUSAL_SECONDS)
            response = connection.response(head=method == "HEAD")
        assert response is not None, connection.raw
        connection.hang_up()
        return response

    # -- as a host ----------------------------------------------------------------------------------------------------
    def create(self, value: Any = None, secret: str = SECRET, peer: str = PEER, **headers: str) -> Response:
        value = {"username": "alice", "hostname": "web1"} if value is None else value
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        sent = {"Content-Type": "application/json", "X-Shared-Secret": secret}
        sent.update({name.replace("_", "-"): text for name, text in headers.items()})
        return self.ask("POST", "/api/challenge", {name: text for name, text in sent.items() if text}, body, peer)

    def poll(self, id: str, query: str = "?hostname=web1", secret: str = SECRET, peer: str = PEER) -> Response:
        return self.ask("GET", f"/api/challenge/{id}{query}", {"X-Shared-Secret": secret}, peer=peer)

    # -- as a person --------------------------------------------------------------------------------------------------
    def sign_in(self, username: str = "alice", role: str = "user") -> None:
        response = self.ask("GET", f"/dev/login?user={username}&role={role}")
        cookie = response.cookie("pam_session")
        assert cookie is not None
        self.cookies["pam_session"] = cookie.partition(";")[0].partition("=")[2]

    def csrf(self, username: str = "alice") -> dict[str, str]:
        ts = int(self.world.now().timestamp())
        return {"csrf_token": tokens.csrf_token(self.world.keys, username, ts), "csrf_ts": str(ts)}

    def post(self, path: str, as_script: bool = False, username: str = "alice", **fields: str | None) -> Response:
        """A form with valid form authentication; fields given as None are left out."""
        form = {"username": username, **self.csrf(username), **fields}
        body = urlencode({name: text for name, text in form.items() if text is not None}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        if as_script:
            headers["Accept"] = "application/json"
        return self.ask("POST", path, headers, body)
