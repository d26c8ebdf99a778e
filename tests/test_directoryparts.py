"""The directory's part of the composition root: listeners that wait and try again, views, checks, and refusals."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from unittest.mock import patch

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, Logger, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from identree import directoryparts
from identree.app.bridge import Bridge
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.refresh import Refresh
from identree.app.statefiles import BadStateFile
from identree.app.trail import Trail
from identree.core.hosts import HostRegistry
from identree.directoryparts import (
    LISTEN_AGAIN_SECONDS,
    DirectoryParts,
    LdapListeners,
    Surroundings,
    Trust,
    _numbers,
    _views,
    build_directory,
    build_trust,
    layout_of,
)
from identree.ldap.server import LdapFactory
from identree.settings.load import load, no_files
from identree.settings.values import Settings
from tests.fakes import memory_store

BASE = "dc=example,dc=com"


class BusyReactor(MemoryReactorClock):
    """:ivar busy: ports that somebody else has."""

    def __init__(self) -> None:
        super().__init__()
        self.busy: set[int] = set()

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        if port in self.busy:
            raise CannotListenError(interface, port, OSError(98, "Address already in use"))
        return super().listenTCP(port, factory, backlog, interface)

    @property
    def ports(self) -> list[int]:
        """Where it listens."""
        return [port for port, *_ in self.tcpServers]


class Factory:
    """:ivar closing: fires when the last connection has gone; None: nobody has asked for that."""

    noisy = False

    def __init__(self) -> None:
        self.closing: Deferred[None] | None = None

    def doStart(self) -> None: ...

    def doStop(self) -> None: ...

    def close(self) -> Deferred[None]:
        self.closing = Deferred()
        return self.closing


class ListenerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = BusyReactor()
        self.factory = Factory()
        self.ready: Deferred[None] = Deferred()
        self.events: list[LogEvent] = []
        keep = cast(ILogObserver, self.events.append)
        globalLogPublisher.addObserver(keep)
        self.addCleanup(globalLogPublisher.removeObserver, keep)

    def listeners(self, *ports: int, ready: Callable[[], Awaitable[None]] | None = None) -> LdapListeners:
        wanted = [(f"127.0.0.1:{port}", None) for port in ports]
        return LdapListeners(cast(LdapFactory, self.factory), wanted, 50, ready or (lambda: self.ready), self.reactor)

    def said(self, text: str) -> int:
        return sum(text in (formatEvent(event) or "") for event in self.events)

    def test_waits(self) -> None:
        """Nobody is let in before there is something to serve."""
        listeners = self.listeners(389)
        self.assertFalse(listeners.listening)
        listeners.startService()
        self.assertEqual(self.reactor.ports, [])
        self.assertFalse(listeners.listening)
        self.ready.callback(None)
        self.assertEqual(self.reactor.ports, [389])
        self.assertTrue(listeners.listening)

    def test_busy(self) -> None:
        """A taken port is said with its setting, once, is tried every half minute, and opens when it is free."""
        self.reactor.busy.add(389)
        listeners = self.listeners(389)
        listeners.startService()
        self.ready.callback(None)
        self.assertFalse(listeners.listening)
        for _ in range(3):
            self.reactor.advance(LISTEN_AGAIN_SECONDS)
        self.assertFalse(listeners.listening)
        self.assertEqual(self.said("cannot listen on 127.0.0.1:389"), 1)
        self.assertEqual(self.said("or set IDENTREE_LDAP_LISTEN_ADDR"), 1)
        self.reactor.busy.clear()
        self.assertFalse(listeners.listening)
        self.reactor.advance(LISTEN_AGAIN_SECONDS)
        self.assertEqual(self.reactor.ports, [389])
        self.assertTrue(listeners.listening)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_one_of_two(self) -> None:
        """The other one is open meanwhile, and is not opened again."""
        self.reactor.busy.add(389)
        listeners = self.listeners(389, 1389)
        listeners.startService()
        self.ready.callback(None)
        self.assertEqual(self.reactor.ports, [1389])
        self.assertFalse(listeners.listening)
        self.reactor.busy.clear()
        self.reactor.advance(LISTEN_AGAIN_SECONDS)
        self.assertEqual(self.reactor.ports, [1389, 389])
        self.assertTrue(listeners.listening)

    def test_two_busy(self) -> None:
        """Each is said once, however often they are tried."""
        self.reactor.busy |= {389, 1389}
        listeners = self.listeners(389, 1389)
        listeners.startService()
        self.ready.callback(None)
        for _ in range(3):
            self.reactor.advance(LISTEN_AGAIN_SECONDS)
        self.assertEqual(self.said("cannot listen on 127.0.0.1:389"), 1)
        self.assertEqual(self.said("cannot listen on 127.0.0.1:1389"), 1)

    def test_none_wanted(self) -> None:
        """Without listeners there is none to miss."""
        listeners = self.listeners()
        listeners.startService()
        self.ready.callback(None)
        self.assertTrue(listeners.listening)

    def test_stop(self) -> None:
        """Ports close first, and the end is when the last connection has gone."""
        listeners = self.listeners(389)
        listeners.startService()
        self.ready.callback(None)
        stopped = listeners.stopService()
        self.assertFalse(listeners.listening)
        self.assertNoResult(stopped)
        assert self.factory.closing is not None
        self.factory.closing.callback(None)
        self.successResultOf(stopped)

    def test_stop_while_waiting(self) -> None:
        """For something to serve, or for a port: nothing opens afterwards, and nothing is left to be called."""
        for busy in (set(), {389}):
            self.setUp()
            self.reactor.busy = busy
            listeners = self.listeners(389)
            listeners.startService()
            if busy:
                self.ready.callback(None)
            stopped = listeners.stopService()
            assert self.factory.closing is not None
            self.factory.closing.callback(None)
            self.successResultOf(stopped)
            self.reactor.busy.clear()
            self.reactor.advance(2 * LISTEN_AGAIN_SECONDS)
            self.assertEqual(self.reactor.ports, [])
            self.assertEqual(self.reactor.getDelayedCalls(), [])
            self.assertEqual(self.flushLoggedErrors(), [])

    def test_mistake_of_ours(self) -> None:
        """Is logged; health shows that the ports are closed."""

        async def broken() -> None:
            raise RuntimeError("a mistake")

        listeners = self.listeners(389, ready=broken)
        listeners.startService()
        self.assertFalse(listeners.listening)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class Case(SynchronousTestCase):
    """A directory of files, and what the server gives to its parts."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        self.reactor = BusyReactor()
        self.registry = HostRegistry.empty()
        self.store = memory_store(self.reactor)

    def settings(self, **more: str) -> Settings:
        environ = {
            "IDENTREE_EXTERNAL_URL": "https://identree.example.com",
            "IDENTREE_SHARED_SECRET": "parts-shared-0123456789abcdef012",
            "IDENTREE_SESSION_SECRET": "parts-session-0123456789abcdef01",
            "IDENTREE_OIDC_ISSUER_URL": "https://id.example.com",
            "IDENTREE_OIDC_CLIENT_ID": "identree",
            "IDENTREE_OIDC_CLIENT_SECRET": "a-client-secret",
            "IDENTREE_SUDO_RULES_FILE": str(self.path / "sudorules.json"),
            "IDENTREE_LDAP_UID_MAP_FILE": str(self.path / "uidmap.json"),
            "IDENTREE_LDAP_ENABLED": "true",
            "IDENTREE_LDAP_BASE_DN": BASE,
        }
        return load({**environ, **more}, read=no_files)

    def around(self, **more: str) -> Surroundings:
        return Surroundings(
            settings=self.settings(**more),
            reactor=self.reactor,
            store=self.store,
            registry=lambda: self.registry,
            metrics=Metrics(CollectorRegistry(), "1"),
            journal=Journal(Logger(namespace="identree", observer=cast(ILogObserver, lambda event: None))),
            now=lambda: datetime(2026, 5, 6, tzinfo=UTC),
            monotonic=self.reactor.seconds,
            in_thread=lambda function: succeed(function()),
            trail=Trail(store=self.store, now=lambda: datetime(2026, 5, 6, tzinfo=UTC), monotonic=self.reactor.seconds),
        )

    def built(self, **more: str) -> DirectoryParts:
        around = self.around(**more)
        trust = build_trust(around)
        self.assertIsInstance(trust, Trust)
        return build_directory(around, trust)


class LayoutTests(Case):
    def test_of_settings(self) -> None:
        layout = layout_of(self.settings(IDENTREE_LDAP_SCHEMA="rfc2307bis", IDENTREE_LDAP_NESTED_GROUPS="true"))
        self.assertEqual((layout.base_dn, layout.schema, layout.nested_groups), (BASE, "rfc2307bis", True))

    def test_bad_base(self) -> None:
        """A base DN that is none stops the start, with an example of a right one."""
        for wrong in ("example.com", "dc=example,,dc=com"):
            problem = self.assertRaises(ValueError, layout_of, self.settings(IDENTREE_LDAP_BASE_DN=wrong))
            self.assertIn(f"IDENTREE_LDAP_BASE_DN: {wrong!r} is no distinguished name", str(problem))
            self.assertIn("IDENTREE_LDAP_BASE_DN=dc=example,dc=com", str(problem))


HOSTS = {
    "web1": {"secret": "w" * 40, "users": ["alice", "bob"]},
    "db1": {"secret": "d" * 40, "users": ["*"]},
    "new1": {"secret": "n" * 40, "users": []},
}


class ViewTests(Case):
    def people(self, hostname: str) -> frozenset[str] | None:
        view = _views(self.around())(hostname)
        assert view is not None
        self.assertEqual(view.hostname, hostname)
        return view.people

    def test_listed(self) -> None:
        """A host sees whom the registry lists for it; everybody where it says so, and nobody where it lists nobody."""
        self.registry = HostRegistry.parse(json.dumps(HOSTS).encode())
        self.assertEqual(self.people("web1"), {"alice", "bob"})
        self.assertIsNone(self.people("db1"))
        self.assertEqual(self.people("new1"), frozenset())

    def test_without_registry(self) -> None:
        """Without a registry every host is for everybody; its rules are its own all the same."""
        self.assertIsNone(self.people("web1"))


FULL = {"IDENTREE_POCKETID_API_KEY": "pocketid-api-key-0123456789"}


class BuildTests(Case):
    def checks(self, parts: DirectoryParts) -> dict[str, str]:
        return {
            check.name: self.successResultOf(Deferred.fromCoroutine(cast(Any, check.probe())))
            for check in parts.checks
            if check.name != "pocketid"
        }

    def test_full(self) -> None:
        """With an API key people come from PocketID, whose absence is no more than a degradation."""
        parts = self.built(**FULL)
        self.assertIsInstance(parts.filler, Refresh)
        self.assertIsNotNone(parts.pocketid)
        self.assertEqual(
            [(check.name, check.critical) for check in parts.checks],
            [("ldap_sync", True), ("ldap_server", True), ("pocketid", False)],
        )
        self.assertEqual(self.checks(parts), {"ldap_sync": "stale", "ldap_server": "not_started"})

    def test_bridge(self) -> None:
        """Without one there are rules alone; nothing is asked, and nothing can be stale."""
        parts = self.built()
        self.assertIsInstance(parts.filler, Bridge)
        self.assertIsNone(parts.pocketid)
        self.assertEqual(self.checks(parts), {"ldap_sync": "ok", "ldap_server": "not_started"})
        # the webhook and the page's button have nothing to do
        parts.notify()
        self.assertEqual(self.reactor.tcpClients, [])

    def test_addresses(self) -> None:
        """Those of the settings; none where the plain one is closed and there is no certificate."""
        for listen, ports in (("127.0.0.1:1389", [1389]), ("", [])):
            self.setUp()
            parts = self.built(IDENTREE_LDAP_LISTEN_ADDR=listen)
            listeners = parts.listeners
            with patch.object(listeners, "_ready", lambda: succeed(None)):
                listeners.startService()
            self.assertEqual(self.reactor.ports, ports)

    def test_damaged_ids(self) -> None:
        """An id map that cannot be read stops the start: people would get new numbers."""
        path = self.path / "uidmap.json"
        path.touch(0o600)
        path.write_text("{")
        problem = self.assertRaises(BadStateFile, self.built, **FULL)
        self.assertIn("uidmap.json", str(problem))
        # in bridge mode there are no ids
        self.built()

    def test_bad_base(self) -> None:
        self.assertIn(
            "IDENTREE_LDAP_BASE_DN", str(self.assertRaises(ValueError, self.built, IDENTREE_LDAP_BASE_DN="x"))
        )

    def test_registry_changed(self) -> None:
        """Is passed on to the connections."""
        parts = self.built()
        with patch.object(parts.listeners.factory, "registry_changed") as told:
            parts.registry_changed()
        told.assert_called_once_with()


class NumberTests(Case):
    def test_pages(self) -> None:
        """All numbers are read, however many pages they are."""
        wanted = {f"id{n}": 200_000 + n for n in range(7)}
        rows = sorted(wanted.items(), key=lambda row: row[1])
        revision = self.successResultOf(Deferred.fromCoroutine(self.store.add_posix_ids("uid", rows[:3], 0, 200_003)))
        self.successResultOf(Deferred.fromCoroutine(self.store.add_posix_ids("uid", rows[3:], revision, 200_007)))
        for page in (1, 2, 7, 100):
            with patch.object(directoryparts, "PAGE", page):
                found = self.successResultOf(Deferred.fromCoroutine(_numbers(self.store, "uid")))
            self.assertEqual(found, wanted)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(_numbers(self.store, "gid"))), {})
