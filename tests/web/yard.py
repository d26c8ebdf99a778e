"""
Hosts, their break-glass passwords and the page about them, over the real web adapter and a store in memory: for tests,
and for people who want to look at it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from identree.app.breakglass import BreakGlass
from identree.app.escrow import EscrowBackend, EscrowFailed, Stored
from identree.app.fleet import Fleet
from identree.app.hosts import Credential, Hosts
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.core import tokens
from identree.core.challenge import HistoryEntry
from identree.core.events import BreakglassEscrowed
from identree.core.hosts import HostRegistry
from identree.core.limits import FailureThrottle
from identree.storage.interface import Agent, EscrowRecord
from identree.web.breakglass import BreakGlassRoutes, HeartbeatRoutes
from identree.web.events import EventStreams
from identree.web.fleet import HOSTS_PAGE, AdminCalls, FleetCalls, FleetDesk, FleetRoutes
from identree.web.forms import Forms
from identree.web.hosts import HostRoutes
from identree.web.pages import PageRoutes
from identree.web.reading import Addresses, Credentials
from identree.web.render import Renderer
from identree.web.root import build_root
from identree.web.sessions import BrowserSessions
from identree.web.site import Site
from identree.web.static import StaticRoutes
from tests.web.front import PEER, Connection, Response, encoded
from tests.web.house import SECRET, House, result

T = TypeVar("T")

ESCROW_SECRET = "an escrow secret of tests only, long enough"


class MemoryEscrow:
    """
    Keeps passwords in a dictionary.

    :ivar failure: raised instead. :ivar waiting: awaited first.
    :ivar cancelled: how often a wait was.
    """

    name = "local"

    def __init__(self, *, revealable: bool = True) -> None:
        self.revealable = revealable
        self.passwords: dict[str, str] = {}
        self.failure: Exception | None = None
        self.waiting: Callable[[], Deferred[None]] | None = None

    async def store(self, hostname: str, password: str) -> Stored:
        if self.waiting is not None:
            await self.waiting()
        if self.failure is not None:
            raise self.failure
        self.passwords[hostname] = password
        return Stored(item_id=f"item of {hostname}", vault_id="vault")

    async def retrieve(self, hostname: str, item_id: str, vault_id: str) -> str:
        if self.failure is not None:
            raise self.failure
        if hostname not in self.passwords:
            raise EscrowFailed("there is none")
        return self.passwords[hostname]

    async def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def keep(self) -> None:
        pass


class Yard:
    """
    :ivar certificate: the name in the client certificate of every connection, or empty.
    :ivar followed: how often the registry was read again.
    :ivar disabled: people whose accounts are.
    """

    def __init__(
        self,
        house: House | None = None,
        *,
        shared_secret: str = SECRET,
        secrets: tuple[str, ...] = (ESCROW_SECRET, SECRET),
    ) -> None:
        self.house = house = House() if house is None else house
        self.store = house.store
        self.escrow: EscrowBackend | None = MemoryEscrow()
        self.registry = HostRegistry.empty()
        self.certificate = ""
        self.followed = 0
        self.disabled: set[str] = set()
        self.rotate_after_reveal = True
        self.metrics = Metrics(CollectorRegistry(), "test")
        self.log: list[tuple[str, dict[str, object]]] = []
        journal = Journal(Logger(observer=lambda event: self.log.append((event["message"], dict(event["attributes"])))))
        clock = house.reactor
        self.hosts = Hosts(
            shared_secret=shared_secret.encode(),
            registry=lambda: self.registry,
            throttle=FailureThrottle(),
            monotonic=clock.seconds,
            journal=journal,
            metrics=self.metrics,
        )
        common: dict[str, Any] = {
            "store": house.store,
            "hosts": self.hosts,
            "registry": lambda: self.registry,
            "rules": lambda: house.rules,
            "now": house.now,
            "journal": journal,
        }
        self.break_glass = BreakGlass(
            escrow=lambda: self.escrow,
            secrets=tuple(secret.encode() for secret in secrets),
            has_shared_secret=bool(shared_secret),
            rotate_after_reveal=lambda: self.rotate_after_reveal,
            metrics=self.metrics,
            **common,
        )
        self.fleet = Fleet(
            follow=self._follow,
            keys=house.keys,
            link=lambda record: f"https://vault.example/{record.hostname}" if record.item_id else "",
            disabled=lambda name: name in self.disabled,
            in_thread=self._in_thread,
            policies=lambda: house.policies,
            **common,
        )
        self.renderer = Renderer(now=house.now, rules=lambda: house.rules, admin_pages=(HOSTS_PAGE,))
        addresses = Addresses(lambda: house.trusted_proxies)
        credentials = Credentials(certificate_name=lambda transport: self.certificate)
        sessions = BrowserSessions(house.people, lambda: house.rules)
        desk = FleetDesk(fleet=self.fleet, break_glass=self.break_glass)
        pages: dict[str, Any] = {
            "decisions": house.decisions,
            "sessions": sessions,
            "render": self.renderer,
            "rules": lambda: house.rules,
            "ends_at": house.people.session_ends_at,
        }
        root = build_root(
            hosts=HostRoutes(challenges=house.challenges, hosts=self.hosts, addresses=addresses, clock=clock),
            streams=EventStreams(sessions=sessions, clock=clock, epoch="0", limit=9, limit_per_user=9),
            routes=[
                PageRoutes(address=addresses.of, monotonic=clock.seconds, **pages),
                StaticRoutes(self.renderer.assets),
                FleetRoutes(
                    desk=desk, forms=Forms(people=house.people, sessions=sessions, addresses=addresses), **pages
                ),
                FleetCalls(desk=desk, calls=AdminCalls(people=house.people, sessions=sessions), addresses=addresses),
                BreakGlassRoutes(
                    break_glass=self.break_glass, hosts=self.hosts, addresses=addresses, credentials=credentials
                ),
                HeartbeatRoutes(
                    fleet=self.fleet,
                    hosts=self.hosts,
                    sessions=sessions,
                    addresses=addresses,
                    credentials=credentials,
                    in_thread=self._in_thread,
                    now=house.now,
                ),
            ],
        )
        numbers = iter(range(1, 1_000_000))
        self.site = Site(
            root,
            reactor=clock,
            external_url=house.rules.external_url,
            token=lambda size: f"{next(numbers):0{2 * size}x}",
            body_limits={},
            max_connections=50,
        )
        self._connections: list[Connection] = []

    @staticmethod
    def _in_thread(work: Callable[[], T]) -> Deferred[T]:
        return maybeDeferred(work)

    async def _follow(self) -> None:
        self.followed += 1

    # -- talking ------------------------------------------------------------------------------------------------------
    def start(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Connection:
        connection = Connection(self.site, PEER)
        self._connections.append(connection)
        connection.send(encoded(method, path, headers, body))
        return connection

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Response:
        connection = self.start(method, path, headers or {}, body)
        response = connection.response()
        assert response is not None, connection.raw
        return response

    def close(self) -> None:
        for connection in self._connections:
            connection.hang_up()

    def escrow_headers(
        self, hostname: str, *, secret: str = SECRET, token: str = SECRET, age: int = 0
    ) -> dict[str, str]:
        """As agents send them. :param token: the secret that the token is signed with."""
        ts = int(self.house.now().timestamp()) - age
        return {
            "Content-Type": "application/json",
            "X-Shared-Secret": secret,
            "X-Escrow-Ts": str(ts),
            "X-Escrow-Token": tokens.escrow_token(token.encode(), hostname, ts),
        }

    def send_escrow(self, hostname: str = "web1", password: str = "correct-horse", **headers: Any) -> Response:
        body = json.dumps({"hostname": hostname, "password": password}).encode()
        return self.ask("POST", "/api/breakglass/escrow", self.escrow_headers(hostname, **headers), body)

    def register(self, **secrets: str) -> None:
        """Make these the hosts of the registry; everybody may use them."""
        entries = {name: {"secret": secret, "users": ["*"]} for name, secret in secrets.items()}
        self.registry = HostRegistry.parse(json.dumps(entries).encode())

    # -- what there is ------------------------------------------------------------------------------------------------
    def beat(self, hostname: str, ago: timedelta = timedelta(0), **texts: str) -> None:
        """A host was heard of, so long ago."""
        at = self.house.now() - ago
        result(self.store.record_heartbeat(Agent(hostname=hostname, first_seen=at, last_seen=at, **texts)))

    def keep(self, hostname: str, password: str = "correct-horse", ago: timedelta = timedelta(0)) -> None:
        """A host has escrowed this, so long ago."""
        assert isinstance(self.escrow, MemoryEscrow)
        self.escrow.passwords[hostname] = password
        at = self.house.now() - ago
        result(
            self.store.record_escrow(
                EscrowRecord(hostname=hostname, escrowed_at=at, item_id="item"),
                HistoryEntry(at=at, username="", action="rotated_breakglass", hostname=hostname),
                BreakglassEscrowed(at=at, username=hostname, hostname=hostname),
            )
        )

    def events(self) -> list[dict[str, Any]]:
        """The audit records."""
        return [json.loads(record.plain) for record in self.store.log.records]

    def history(self, username: str) -> list[tuple[str, str, str, str]]:
        """Action, host, actor and reason, the newest first."""
        return [
            (entry.action, entry.hostname, entry.actor, entry.reason) for entry in result(self.store.history(username))
        ]

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    @staticmethod
    def global_secret() -> Credential:
        return Credential(secret=SECRET.encode())
