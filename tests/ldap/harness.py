"""
A whole LDAP server in memory: real searcher, snapshot, binds and factory, a clock under the test's control, and
ldaptor as the codec of the other side.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from ldaptor.protocols import pureber, pureldap
from prometheus_client import CollectorRegistry
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import alsoProvides

from identree.app.binds import Binds
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.core.hosts import HostRegistry
from identree.core.limits import FailureThrottle
from identree.core.tokens import host_bind_password
from identree.directory.draft import Draft, Kind, Stamp
from identree.directory.snapshot import Snapshot, View, run
from identree.ldap.connection import Common, LdapConnection
from identree.ldap.paging import Cursors
from identree.ldap.rootdse import RootDSE
from identree.ldap.search import Searcher
from identree.ldap.server import LdapFactory
from identree.ldap.tally import Tally
from identree.ldap.turns import Turns

BASE = "dc=example,dc=com"
PEOPLE = f"ou=people,{BASE}"
SERVICE = f"cn=readonly,{BASE}"
PASSWORD = b"the right one"
SECRET = b"test-shared-secret-1234567890abcdef"
PAGED = b"1.2.840.113556.1.4.319"

_CONTEXT = pureldap.LDAPBERDecoderContext(fallback=pureber.BERDecoderContext())
_TOP = pureldap.LDAPBERDecoderContext_TopLevel(
    inherit=pureldap.LDAPBERDecoderContext_LDAPMessage(fallback=_CONTEXT, inherit=_CONTEXT)
)


def message(op: Any, id: int, controls: Any = None) -> bytes:
    return bytes(pureldap.LDAPMessage(op, id=id, controls=controls).toWire())


def messages(raw: bytes) -> list[Any]:
    """What ldaptor reads in answers; it must be whole messages."""
    found = []
    while raw:
        one, used = pureber.berDecodeObject(_TOP, raw)
        assert one is not None, raw
        found.append(one)
        raw = raw[used:]
    return found


def host_dn(hostname: str) -> str:
    return f"uid={hostname},ou=identree-hosts,{BASE}"


def registry(*hosts: str) -> HostRegistry:
    return HostRegistry.parse(
        json.dumps({host: {"secret": host.ljust(40, "x"), "users": ["*"]} for host in hosts}).encode()
    )


def drafts(people: int) -> list[Draft]:
    found = [
        Draft(Kind.ROOT, "root", BASE, (("objectClass", (b"top", b"dcObject", b"organization")), ("dc", (b"example",))))
    ]
    for name in ("people", "groups", "sudoers"):
        attributes = (("objectClass", (b"top", b"organizationalUnit")), ("ou", (name.encode(),)))
        found.append(Draft(Kind.CONTAINER, name, f"ou={name},{BASE}", attributes))
    for i in range(people):
        attributes = (
            ("objectClass", (b"top", b"posixAccount", b"shadowAccount", b"inetOrgPerson")),
            ("uid", (b"user%d" % i,)),
            ("cn", (b"User %d" % i,)),
            ("gecos", (b"User %d" % i,)),
            ("uidNumber", (b"%d" % (200_000 + i),)),
            ("gidNumber", (b"%d" % (300_000 + i),)),
            ("homeDirectory", (b"/home/user%d" % i,)),
            ("loginShell", (b"/bin/bash",)),
        )
        found.append(Draft(Kind.PERSON, f"person:{i}", f"uid=user{i},{PEOPLE}", attributes))
    return found


def snapshot(people: int = 3, usn: int = 1_700_000_000, previous: Snapshot | None = None) -> Snapshot:
    entries = drafts(people)
    return run(Snapshot.build(BASE, entries, {draft.key: Stamp(usn, usn, b"") for draft in entries}, previous))


class Wire(StringTransport):
    """A transport that ends when it is told to, and remembers how."""

    def __init__(self, connection: Any) -> None:
        super().__init__()
        self.connection = connection
        self.closed = self.aborted = self.gone = False
        # the peer does not read: what is written stays, and a close waits for it
        self.stuck = False
        self.writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        super().write(data)

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.keep_alive = enabled

    def loseConnection(self) -> None:
        self.closed = True
        if not self.stuck:
            self._end()

    def abortConnection(self) -> None:
        self.aborted = True
        self._end()

    def _end(self) -> None:
        if not self.gone:
            self.gone = True
            self.connection.connectionLost(Failure(ConnectionDone()))


class Client:
    """The other end of one connection."""

    def __init__(self, connection: LdapConnection | Any, tls: bool = False) -> None:
        self.connection = connection
        self.wire = Wire(connection)
        if tls:
            alsoProvides(self.wire, ISSLTransport)
        self._ids = iter(range(1, 2**31))
        connection.makeConnection(self.wire)

    def send(self, op: Any, controls: Any = None, id: int | None = None) -> int:
        id = next(self._ids) if id is None else id
        self.feed(message(op, id, controls))
        return id

    def feed(self, raw: bytes) -> None:
        if not self.wire.gone:
            self.connection.dataReceived(raw)

    def received(self) -> list[Any]:
        """Everything since the last time, decoded."""
        raw = self.wire.value()
        self.wire.clear()
        return messages(raw)

    def ask(self, op: Any, controls: Any = None) -> list[Any]:
        self.received()
        self.send(op, controls)
        return self.received()

    def bind(self, dn: str = SERVICE, password: bytes = PASSWORD, version: int = 3) -> int:
        """The result code."""
        [answer] = self.ask(pureldap.LDAPBindRequest(version, dn.encode(), password))
        return int(answer.value.resultCode)

    def bind_host(self, hostname: str) -> int:
        return self.bind(host_dn(hostname), host_bind_password(SECRET, hostname).encode())

    @property
    def over(self) -> bool:
        return self.wire.gone


@lru_cache
def parsed(filter: str) -> Any:
    """ldaptor's own reading of a filter's text."""
    with warnings.catch_warnings():
        # it uses names of pyparsing that have newer ones
        warnings.simplefilter("ignore")
        from ldaptor.ldapfilter import parseFilter

        return parseFilter(filter)


def search(
    base: str = PEOPLE,
    filter: str = "(uid=user1)",
    attributes: Sequence[str] = (),
    scope: int = 2,
    size_limit: int = 0,
) -> Any:
    return pureldap.LDAPSearchRequest(
        baseObject=base.encode(),
        scope=scope,
        derefAliases=0,
        sizeLimit=size_limit,
        timeLimit=0,
        typesOnly=0,
        filter=parsed(filter),
        attributes=[attribute.encode() for attribute in attributes],
    )


class World:
    """
    :param reactor: the clock, where it is not the test's.
    :ivar snapshot: what is served; None before there is something.
    :ivar lines: what was logged.
    """

    def __init__(self, people: int = 3, *, reactor: Any = None, **changes: Any) -> None:
        # a real reactor only where real clients connect
        self.clock = Clock() if reactor is None else reactor
        if reactor is None:
            self.clock.advance(1000)
        self.snapshot: Snapshot | None = snapshot(people)
        self.registry = HostRegistry.empty()
        self.provisioning = True
        self.anonymous = False
        self.views: dict[str, View] = {}
        self.certificate = ""
        self.lines: list[dict[str, Any]] = []
        self.metrics = Metrics(CollectorRegistry(), "1")
        journal = Journal(Logger(namespace="identree", observer=self.lines.append))
        self.binds = Binds(
            base_dn=BASE,
            service_dn=SERVICE,
            service_password=PASSWORD.decode(),
            ldap_secret=SECRET,
            registry=lambda: self.registry,
            provisioning=lambda: self.provisioning,
            anonymous=lambda: self.anonymous,
            by_address=FailureThrottle(),
            by_dn=FailureThrottle(),
            monotonic=self.clock.seconds,
            journal=journal,
            metrics=self.metrics,
        )
        self.searcher = Searcher(lambda: self.snapshot, 1 << 20, self.clock.seconds)
        self.turns = Turns(self.clock, self.clock.seconds)
        self.tally = Tally(self.metrics, self.clock, lambda: self.searcher.memo_hits)
        numbers = iter(range(1, 1 << 30))
        self.cursors = Cursors(lambda n: next(numbers).to_bytes(n, "big"))
        bounds = {"max_connections": 2000, "max_per_address": 2000}
        bounds.update({name: changes.pop(name) for name in list(changes) if name in bounds})
        arguments: dict[str, Any] = {
            "searcher": self.searcher,
            "directory": lambda: self.snapshot,
            "root_dse": RootDSE(
                base_dn=BASE,
                version="1.2.3",
                directory=lambda: self.snapshot,
                start_tls=changes.get("start_tls") is not None,
            ),
            "binds": self.binds,
            "registry": lambda: self.registry,
            "view": self.views.get,
            "start_tls": None,
            "peer_name": lambda transport: self.certificate,
            "cursors": self.cursors,
            "turns": self.turns,
            "tally": self.tally,
            "journal": journal,
            "metrics": self.metrics,
            "clock": self.clock,
            "monotonic": self.clock.seconds,
            "idle_seconds": 1200.0,
            "time_limit_seconds": 60.0,
        }
        self.common = Common(**{**arguments, **changes})
        self.factory = LdapFactory(self.common, **bounds)

    def connect(self, address: str = "192.0.2.1", tls: bool = False) -> Client:
        protocol = self.factory.buildProtocol(IPv4Address("TCP", address, 40_000))
        return Client(protocol, tls)

    def bound(self, address: str = "192.0.2.1") -> Client:
        client = self.connect(address)
        assert client.bind() == 0
        return client

    def turn(self, times: int = 1) -> None:
        """Let the reactor do what it was asked to do next."""
        for _ in range(times):
            self.clock.advance(0)

    def value(self, name: str, **labels: str) -> float:
        self.tally.flush()
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    @property
    def messages(self) -> list[str]:
        return [line["message"] for line in self.lines if "message" in line]


def names(answers: Sequence[Any]) -> list[bytes]:
    """The DNs of the entries among answers."""
    return [each.value.objectName for each in answers if isinstance(each.value, pureldap.LDAPSearchResultEntry)]


def code(answers: Sequence[Any]) -> int:
    """The result code of the last answer."""
    return int(answers[-1].value.resultCode)


def page_control(size: int, cookie: bytes = b"", critical: bool | None = None) -> tuple[bytes, bool | None, bytes]:
    value = pureber.BERSequence([pureber.BERInteger(size), pureber.BEROctetString(cookie)]).toWire()
    return PAGED, critical, value


def cookie(answers: Sequence[Any]) -> bytes:
    """Of the paged results control of the last answer."""
    [(oid, _, value)] = answers[-1].controls
    assert oid == PAGED
    decoded, _ = pureber.berDecodeObject(pureber.BERDecoderContext(), value)
    return bytes(decoded[1].value)


def pieces(raw: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(raw), size):
        yield raw[at : at + size]
