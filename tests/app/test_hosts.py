"""Hosts with client certificates (spec/http-api section 5)."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from identree.app.hosts import Credential, Hosts
from identree.core.errors import NotListed, Unauthorized
from identree.core.hosts import HostRegistry
from identree.core.limits import FailureThrottle
from tests.app.world import GLOBAL, SECRET, World

ADDRESS = "192.0.2.7"


class CertificateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.hosts = Hosts(
            shared_secret=SECRET.encode(),
            registry=lambda: self.world.registry,
            throttle=FailureThrottle(),
            monotonic=self.world.clock.seconds,
            journal=self.world.journal,
            metrics=self.world.metrics,
            certificate_required=True,
        )

    def register(self, *users: str) -> None:
        entry = {"secret": "f" * 64, "users": list(users)}
        self.world.registry = HostRegistry.parse(json.dumps({"web1": entry}).encode())

    def challenge(self, presented: Credential) -> str:
        return self.hosts.authenticate_challenge(presented, "elsewhere", "alice", ADDRESS)

    def test_only_way(self) -> None:
        """With mTLS no secret opens a challenge, neither the global one nor the host's own."""
        self.register("*")
        for presented in (GLOBAL, Credential(secret=b"f" * 64), Credential()):
            self.assertRaises(Unauthorized, self.challenge, presented)
        self.assertEqual(self.world.log[0][1]["reason"], "mTLS: no client certificate")
        self.assertEqual(self.world.sample("identree_auth_failures_total"), 3)

    def test_name(self) -> None:
        """The certificate's name is the host's, whatever it says of itself."""
        self.assertEqual(self.challenge(Credential(certificate="web1")), "web1")

    def test_listed(self) -> None:
        """The registry lists who may use the host, also with a certificate."""
        self.register("bob")
        self.assertRaises(NotListed, self.challenge, Credential(certificate="web1"))

    def test_registered(self) -> None:
        """A certificate of a host that an enabled registry does not know is none, and that is logged."""
        self.assertIs(self.hosts.certified("web9"), True)
        self.register("*")
        self.assertEqual((self.hosts.certified("WEB1."), self.hosts.certified("web9")), (True, False))
        self.assertEqual(self.world.log, [("MTLS_REJECTED hostname not registered", {"hostname": "web9"})])
