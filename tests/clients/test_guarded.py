"""Connections go only to addresses that were judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from identree.clients.guarded import Denied, Guard, GuardedEndpoint, build_guarded_client
from identree.core.addresses import parse_networks


class GuardTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.answers: list[list[str]] = []
        self.asked: list[str] = []

    async def resolve(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0)

    def guard(self, *allowed: str) -> Guard:
        return Guard(self.resolve, parse_networks(allowed))

    def connect(self, host: str, guard: Guard | None = None) -> Deferred[Any]:
        endpoint = GuardedEndpoint(self.reactor, guard or self.guard(), host, 443)
        return endpoint.connect(Factory.forProtocol(Protocol))

    def connected(self) -> list[str]:
        return [host for host, *_ in self.reactor.tcpClients]

    def test_public(self) -> None:
        """A name at public addresses is connected to at exactly the first of them."""
        self.answers = [["93.184.216.34", "8.8.8.8"]]
        self.connect("hooks.example")
        self.assertEqual((self.connected(), self.asked), (["93.184.216.34"], ["hooks.example"]))

    def test_private(self) -> None:
        """A name at special addresses only is refused, with the setting that permits it."""
        self.answers = [["10.0.0.1", "::1"]]
        refused = self.failureResultOf(self.connect("inside.example"), Denied)
        self.assertIn("IDENTREE_NOTIFY_ALLOWED_NETWORKS", str(refused.value))
        self.assertNotIn("10.0.0.1", str(refused.value))
        self.assertEqual(self.connected(), [])

    def test_mixed(self) -> None:
        """Of a name at both kinds only the public ones are tried."""
        self.answers = [["127.0.0.1", "10.0.0.1", "8.8.8.8"]]
        self.connect("mixed.example")
        self.assertEqual(self.connected(), ["8.8.8.8"])

    def test_rebinding(self) -> None:
        """What the name resolves to later does not matter: it is asked once, and every connection is judged anew."""
        self.answers = [["8.8.8.8"], ["127.0.0.1"]]
        guard = self.guard()
        self.connect("rebind.example", guard)
        self.failureResultOf(self.connect("rebind.example", guard), Denied)
        self.assertEqual(self.connected(), ["8.8.8.8"])

    def test_next_address(self) -> None:
        """When an address does not answer the next good one is tried."""
        self.answers = [["8.8.8.8", "10.0.0.1", "1.1.1.1"]]
        self.connect("hooks.example")
        factory = self.reactor.tcpClients[0][2]
        factory.clientConnectionFailed(self.reactor.connectors[0], Failure(ConnectionRefusedError()))
        self.assertEqual(self.connected(), ["8.8.8.8", "1.1.1.1"])

    def test_literals(self) -> None:
        """An address in the URL is judged without asking anybody."""
        for host in ("127.0.0.1", "[::1]", "169.254.169.254", "::ffff:10.0.0.1"):
            self.failureResultOf(self.connect(host), Denied)
        self.connect("8.8.8.8")
        self.assertEqual((self.connected(), self.asked), (["8.8.8.8"], []))

    def test_nothing(self) -> None:
        """A name without an address is refused."""
        self.answers = [[]]
        self.failureResultOf(self.connect("gone.example"), Denied)

    def test_allowed(self) -> None:
        """Networks of the setting may be reached."""
        self.connect("10.20.0.5", self.guard("10.20.0.0/16"))
        self.assertEqual(self.connected(), ["10.20.0.5"])

    def test_client(self) -> None:
        """The HTTP client goes through it, and keeps the name for the server."""
        self.answers = [["8.8.8.8"]]
        client = build_guarded_client(self.reactor, self.guard())
        client.get("http://hooks.example:8080/x", reactor=self.reactor)
        host, port, *_ = self.reactor.tcpClients[0]
        self.assertEqual((host, port), ("8.8.8.8", 8080))
        self.failureResultOf(client.get("http://127.0.0.1/x", reactor=self.reactor), Denied)
