"""Binds: who is let in, as whom, and what is said about it."""

import json
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from identree.app.binds import BindCode, Binds, Bound, Outcome, Peer
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.trail import FROM_ONE_ADDRESS, Trail
from identree.core.hosts import HostRegistry
from identree.core.limits import FailureThrottle
from identree.core.tokens import host_bind_password
from tests.app.world import START
from tests.fakes import memory_store

SECRET = b"test-shared-secret-1234567890abcdef"
BASE = "dc=example,dc=com"
SERVICE = "cn=readonly,dc=example,dc=com"
WEB1 = f"uid=web1.example.com,ou=identree-hosts,{BASE}"


def registry(*hosts: str) -> HostRegistry:
    return HostRegistry.parse(
        json.dumps({host: {"secret": host.ljust(40, "x"), "users": []} for host in hosts}).encode()
    )


class World:
    """Binds with everything around them under the test's control."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.registry = HostRegistry.empty()
        self.provisioning = True
        self.anonymous = False
        self.lines: list[dict[str, Any]] = []
        self.metrics = Metrics(CollectorRegistry(), "1")

    def binds(self, **changes: Any) -> Binds:
        arguments: dict[str, Any] = {
            "base_dn": BASE,
            "service_dn": SERVICE,
            "service_password": "the right one",
            "ldap_secret": SECRET,
            "registry": lambda: self.registry,
            "provisioning": lambda: self.provisioning,
            "anonymous": lambda: self.anonymous,
            "by_address": FailureThrottle(),
            "by_dn": FailureThrottle(),
            "monotonic": lambda: self.now,
            "journal": Journal(Logger(namespace="identree", observer=self.lines.append)),
            "metrics": self.metrics,
        }
        return Binds(**{**arguments, **changes})

    @property
    def messages(self) -> list[str]:
        return [line["message"] for line in self.lines]

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0

    @property
    def failures(self) -> float:
        return self.value("identree_ldap_bind_failures_total")


def peer(address: str = "192.0.2.1", certificate: str = "") -> Peer:
    return Peer(address=address, connection=7, certificate=certificate)


class BindTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.binds = self.world.binds()

    def simple(self, dn: str, password: str, **of_peer: str) -> Outcome:
        return self.binds.simple(dn, password.encode(), peer(**of_peer))


class AnonymousTests(BindTestCase):
    def test_password_without_name(self) -> None:
        """A password without a DN is no bind, whatever is allowed, and no failed credential."""
        for self.world.anonymous in (False, True):
            self.assertEqual(self.simple("", "x"), Outcome(code=BindCode.UNWILLING_TO_PERFORM))
        self.assertEqual(self.world.failures, 0)

    def test_refused(self) -> None:
        """Not allowed: refused and logged, but not counted as a failed credential."""
        self.assertEqual(self.simple("", ""), Outcome(code=BindCode.INSUFFICIENT_ACCESS_RIGHTS))
        self.assertEqual((self.world.failures, self.world.messages), (0, ["LDAP_BIND_REJECTED anonymous"]))

    def test_allowed(self) -> None:
        """Allowed: success, and nobody is bound. The setting is read at each bind."""
        self.world.anonymous = True
        self.assertEqual(self.simple("", ""), Outcome(code=BindCode.SUCCESS))
        self.assertEqual(self.world.messages, ["LDAP_BIND_OK anonymous"])


class ServiceAccountTests(BindTestCase):
    def test_right(self) -> None:
        """The configured DN with its password, and the log says so."""
        self.assertEqual(self.simple(SERVICE, "the right one").bound, Bound(dn=SERVICE))
        self.assertEqual(self.world.lines[0]["message"], "LDAP_BIND_OK service account")
        self.assertEqual(self.world.lines[0]["attributes"], {"dn": SERVICE, "conn": 7})

    def test_spellings(self) -> None:
        """The same DN in other letters and with spaces is the same account; the bound DN is what was sent."""
        for spelling in ("CN=ReadOnly,DC=example,DC=com", "cn = readonly , dc=example, dc=com"):
            self.assertEqual(self.simple(spelling, "the right one").bound, Bound(dn=spelling))

    def test_not_a_dn(self) -> None:
        """What an operator wrote that is no DN still works as a text."""
        self.binds = self.world.binds(service_dn="readonly")
        self.assertEqual(self.simple("ReadOnly", "the right one").code, BindCode.SUCCESS)

    def test_wrong(self) -> None:
        """A wrong and an empty password are invalid credentials, counted and logged without the password."""
        for password in ("wrong", ""):
            self.assertEqual(self.simple(SERVICE, password), Outcome(code=BindCode.INVALID_CREDENTIALS))
        self.assertEqual(self.world.failures, 2)
        self.assertEqual(self.world.messages, ["LDAP_BIND_REJECTED service account"] * 2)
        self.assertNotIn("wrong'", repr(self.world.lines))

    def test_none_configured(self) -> None:
        """Without a service account, its empty DN and password open nothing."""
        self.binds = self.world.binds(service_dn="", service_password="")
        self.assertEqual(self.simple(SERVICE, "").code, BindCode.INVALID_CREDENTIALS)
        self.assertEqual(self.simple("", "").code, BindCode.INSUFFICIENT_ACCESS_RIGHTS)

    def test_over_a_certificate(self) -> None:
        """It works with a host's client certificate too."""
        self.assertEqual(self.simple(SERVICE, "the right one", certificate="web1").bound, Bound(dn=SERVICE))


class HostNameTests(BindTestCase):
    def test_vectors(self) -> None:
        """The host DNs of the specification."""
        found = self.binds.hostname_of("uid=web1.example.com,OU=IDENTREE-HOSTS,DC=EXAMPLE,DC=COM")
        self.assertEqual(found, "web1.example.com")
        for other in (
            f"cn=web1.example.com,ou=identree-hosts,{BASE}",
            f"uid=,ou=identree-hosts,{BASE}",
            "uid=x",
            f"uid=web1.example.com,ou=hosts,{BASE}",
            f"ou=identree-hosts,{BASE}",
            "",
        ):
            self.assertEqual(self.binds.hostname_of(other), "", other)

    def test_literal(self) -> None:
        """Between prefix and suffix the name is literal: case, commas and backslashes stay."""
        for name in ("WEB1.example.com", "a,b", r"a\2cb"):
            self.assertEqual(self.binds.hostname_of(f"uid={name},ou=identree-hosts,{BASE}"), name)

    def test_spaces(self) -> None:
        """The same DN with spaces names the same host."""
        self.assertEqual(self.binds.hostname_of("uid = Web1 , ou=identree-hosts, dc=example , dc=com"), "Web1")

    def test_two_names(self) -> None:
        """A DN with two values in its RDN names no host."""
        self.assertEqual(self.binds.hostname_of("uid=web1 + cn=x, ou=identree-hosts, dc=example, dc=com"), "")

    def test_made(self) -> None:
        """The DN of a host is understood again."""
        self.assertEqual(self.binds.hostname_of(self.binds.host_dn("web1.example.com")), "web1.example.com")


class HostPasswordTests(BindTestCase):
    VECTORS = (
        ("web1.example.com", "a11a6a184a7e0cb59a36887321a1d880e65ba7883fd2bbd57d2137ceefcd3dcf"),
        ("WEB1.example.com", "fa69124df8be9a688bbdf0167b2dc5d133eca7840947cbb2a568d9448b897888"),
        ("host-01", "68775d8d04c4b20a838ab6906ec806c5d462fa42ab7196271d78ae0665ace9b1"),
    )

    def test_vectors(self) -> None:
        """The passwords of the specification open their own hosts, with an empty registry any host."""
        for hostname, password in self.VECTORS:
            dn = f"uid={hostname},ou=identree-hosts,{BASE}"
            self.assertEqual(self.simple(dn, password).bound, Bound(dn=dn, hostname=hostname.lower()))
        self.assertEqual(self.world.messages, ["LDAP_BIND_OK provisioned host"] * 3)

    def test_other_host(self) -> None:
        """A host's password does not open another one, nor the same name in other letters."""
        self.assertEqual(self.simple(WEB1, self.VECTORS[1][1]).code, BindCode.INVALID_CREDENTIALS)
        self.assertEqual(self.world.failures, 1)

    def test_registry(self) -> None:
        """While there is a registry only its hosts bind, however they spell their name."""
        self.world.registry = registry("host-01", "web1.example.com")
        for hostname, password in self.VECTORS:
            dn = f"uid={hostname},ou=identree-hosts,{BASE}"
            self.assertEqual(self.simple(dn, password).code, BindCode.SUCCESS)
        self.world.registry = registry("db1")
        self.assertEqual(self.simple(WEB1, self.VECTORS[0][1]).code, BindCode.INVALID_CREDENTIALS)
        self.assertEqual(self.world.lines[-1]["attributes"]["reason"], "not registered")

    def test_closed_registry(self) -> None:
        """A registry whose last host was removed lets nobody in."""
        self.world.registry = HostRegistry.of((), closed=True)
        self.assertEqual(self.simple(WEB1, self.VECTORS[0][1]).code, BindCode.INVALID_CREDENTIALS)

    def test_provisioning_off(self) -> None:
        """Without provisioning no host binds as itself."""
        self.world.provisioning = False
        self.assertEqual(self.simple(WEB1, self.VECTORS[0][1]).code, BindCode.INVALID_CREDENTIALS)
        self.assertEqual(self.world.messages, ["LDAP_BIND_REJECTED unknown DN"])

    def test_no_secret(self) -> None:
        """Without a secret the password that anybody could compute opens nothing."""
        self.binds = self.world.binds(ldap_secret=b"")
        password = host_bind_password(b"", "web1.example.com")
        self.assertEqual(self.simple(WEB1, password).code, BindCode.INVALID_CREDENTIALS)

    def test_unknown(self) -> None:
        """Any other DN, and what is none, is invalid credentials and counted."""
        for dn in (f"uid=alice,ou=people,{BASE}", "nonsense", "cn=\\zz", "uid=" + "x" * 60_000):
            self.assertEqual(self.simple(dn, "x").code, BindCode.INVALID_CREDENTIALS)
        self.assertEqual(self.world.failures, 4)
        self.assertLess(max(len(repr(line["attributes"])) for line in self.world.lines), 600)


class CertificateTests(BindTestCase):
    def test_own_name(self) -> None:
        """With its certificate a host binds by its own name; the password does not matter."""
        for password in ("", "whatever"):
            outcome = self.simple(WEB1, password, certificate="web1.example.com")
            self.assertEqual(outcome.bound, Bound(dn=WEB1, hostname="web1.example.com"))
        self.assertEqual(self.world.messages, ["LDAP_BIND_OK mTLS provisioned host"] * 2)

    def test_other_name(self) -> None:
        """Another host's name is refused, even with that one's right password."""
        outcome = self.simple(WEB1, HostPasswordTests.VECTORS[0][1], certificate="db1.example.com")
        self.assertEqual(outcome.code, BindCode.INVALID_CREDENTIALS)
        self.assertEqual((self.world.failures, self.world.messages), (1, ["LDAP_BIND_REJECTED mTLS provisioned host"]))

    def test_removed(self) -> None:
        """A valid certificate of a host that is not in the registry is worth nothing."""
        self.world.registry = registry("db1")
        self.assertEqual(self.simple(WEB1, "", certificate="web1.example.com").code, BindCode.INVALID_CREDENTIALS)
        self.assertEqual(self.binds.external(b"", peer(certificate="web1.example.com")).bound, None)

    def test_external(self) -> None:
        """SASL EXTERNAL binds as the host in the certificate."""
        for authorization in (
            b"",
            b"dn:" + WEB1.encode(),
            b"DN:" + WEB1.upper().replace("WEB1.EXAMPLE.COM", "web1.example.com").encode(),
        ):
            outcome = self.binds.external(authorization, peer(certificate="web1.example.com"))
            assert outcome.bound is not None
            self.assertEqual(outcome.bound.hostname, "web1.example.com")
        self.assertEqual(
            self.binds.external(b"", peer(certificate="web1.example.com")).bound,
            Bound(dn=WEB1, hostname="web1.example.com"),
        )

    def test_external_as_another(self) -> None:
        """Nobody acts as another: not as another host, the service account, or something that is no DN."""
        for authorization in (WEB1.replace("web1", "db1"), SERVICE, "u:web1.example.com", "dn:", "x"):
            text = authorization if authorization[:2] in ("u:", "dn", "x") else "dn:" + authorization
            outcome = self.binds.external(text.encode(), peer(certificate="web1.example.com"))
            self.assertEqual(outcome.code, BindCode.INVALID_CREDENTIALS, text)
        self.assertEqual(
            self.binds.external(b"\xff", peer(certificate="web1.example.com")).code, BindCode.INVALID_CREDENTIALS
        )

    def test_external_without(self) -> None:
        """Without a certificate there is nothing to bind as (RFC 4513 section 5.2.3), and it is not offered."""
        self.assertEqual(self.binds.external(b"", peer()).code, BindCode.INAPPROPRIATE_AUTHENTICATION)
        self.assertFalse(self.binds.external_offered(peer()))
        self.assertTrue(self.binds.external_offered(peer(certificate="web1")))

    def test_provisioning_off(self) -> None:
        """Without provisioning a certificate binds nobody, and EXTERNAL is not offered."""
        self.world.provisioning = False
        self.assertEqual(self.simple(WEB1, "", certificate="web1.example.com").bound, None)
        self.assertEqual(self.binds.external(b"", peer(certificate="web1.example.com")).bound, None)
        self.assertFalse(self.binds.external_offered(peer(certificate="web1")))

    def test_no_host_name(self) -> None:
        """A certificate of the CA for something else than a host binds nobody."""
        self.assertEqual(self.binds.external(b"", peer(certificate="Alice Smith")).code, BindCode.INVALID_CREDENTIALS)


class CurrentTests(BindTestCase):
    def test_service(self) -> None:
        """The service account does not depend on the registry."""
        self.world.registry, self.world.provisioning = registry("db1"), False
        self.assertTrue(self.binds.current(Bound(dn=SERVICE)))

    def test_host(self) -> None:
        """A host is out when it is removed from the registry, or hosts no longer bind."""
        web1 = Bound(dn=WEB1, hostname="web1.example.com")
        self.world.registry = registry("web1.example.com")
        self.assertTrue(self.binds.current(web1))
        self.world.provisioning = False
        self.assertFalse(self.binds.current(web1))
        self.world.provisioning, self.world.registry = True, registry("db1")
        self.assertFalse(self.binds.current(web1))


class BackOffTests(BindTestCase):
    def fail(self, times: int, dn: str = SERVICE, address: str = "192.0.2.1") -> Outcome:
        outcomes = [self.simple(dn, "wrong", address=address) for _ in range(times)]
        return outcomes[-1]

    def test_address(self) -> None:
        """After ten failures an address gets 'busy', for whatever name, is not logged, and shows in a metric."""
        self.assertEqual(self.fail(10).code, BindCode.INVALID_CREDENTIALS)
        self.assertEqual(self.fail(5, WEB1), Outcome(code=BindCode.BUSY, throttled=True))
        self.assertEqual(len(self.world.messages), 10)
        self.assertEqual(self.world.value("identree_ldap_binds_throttled_total"), 5)

    def test_ends(self) -> None:
        """It ends by itself."""
        self.fail(11)
        self.world.now += 61
        self.assertEqual(self.fail(1).code, BindCode.INVALID_CREDENTIALS)

    def test_name(self) -> None:
        """A name that is tried from many addresses gets it too, however it is spelled."""
        for i in range(10):
            self.fail(1, address=f"192.0.2.{i}")
        self.assertEqual(self.fail(1, "CN=READONLY, dc=example,dc=com", "198.51.100.1").code, BindCode.BUSY)
        self.assertEqual(self.fail(1, WEB1, "198.51.100.1").code, BindCode.INVALID_CREDENTIALS)

    def test_network(self) -> None:
        """Of IPv6 the /64 network counts as one address."""
        self.fail(10, "cn=x", "2001:db8::1")
        self.assertEqual(self.fail(1, "cn=y", "2001:db8::2").code, BindCode.BUSY)

    def test_neighbours(self) -> None:
        """A host's right password is always admitted: from a blocked address, and of a blocked name."""
        self.fail(11)
        self.fail(10, WEB1, "198.51.100.1")
        for address in ("192.0.2.1", "198.51.100.1", "203.0.113.1"):
            outcome = self.simple(WEB1, HostPasswordTests.VECTORS[0][1], address=address)
            self.assertEqual(outcome.code, BindCode.SUCCESS)

    def test_guesses_end(self) -> None:
        """From a blocked address the service account's password is not even compared, until the block is over."""
        self.fail(10)
        unseen = Outcome(code=BindCode.BUSY, throttled=True)
        self.assertEqual(self.simple(SERVICE, "the right one"), unseen)
        self.assertEqual(self.simple("CN=readonly, dc=example,dc=com", "the right one"), unseen)
        self.assertEqual((self.world.failures, self.world.value("identree_ldap_binds_throttled_total")), (12, 2))
        self.world.now += 61
        self.assertEqual(self.simple(SERVICE, "the right one").code, BindCode.SUCCESS)

    def test_guesses_for_hosts_count(self) -> None:
        """An address is blocked by failures of whatever name, so that names cannot be used in turn."""
        self.fail(10, "cn=x")
        self.assertEqual(self.simple(SERVICE, "the right one").code, BindCode.BUSY)

    def test_proven_address(self) -> None:
        """Where the password was right within the hour, it goes on being compared: a NAT has many hosts behind it."""
        self.simple(SERVICE, "the right one")
        self.fail(10)
        self.assertEqual(self.fail(1), Outcome(code=BindCode.BUSY, throttled=True))
        self.assertEqual(self.simple(SERVICE, "the right one").code, BindCode.SUCCESS)
        self.world.now += 3601
        self.fail(10)
        self.assertEqual(self.simple(SERVICE, "the right one").code, BindCode.BUSY)

    def test_proven_by_the_service_only(self) -> None:
        """A host that binds as itself says nothing about the service account's password."""
        self.simple(WEB1, HostPasswordTests.VECTORS[0][1])
        self.fail(10)
        self.assertEqual(self.simple(SERVICE, "the right one").code, BindCode.BUSY)

    def test_strangers_lock_out_nobody(self) -> None:
        """The service account that was tried from everywhere is still open from an address that tried nothing."""
        for i in range(100):
            self.fail(10, address=f"198.51.100.{i}")
        self.assertEqual(self.simple(SERVICE, "the right one").code, BindCode.SUCCESS)

    def test_log_bounded(self) -> None:
        """Refused anonymous binds, which nothing throttles, do not flood the log either."""
        for _ in range(100):
            self.simple("", "")
        self.assertEqual(len(self.world.messages), 10)

    def test_memory_bounded(self) -> None:
        """A stranger's long names are counted under keys of constant length."""
        throttle = FailureThrottle()
        self.binds = self.world.binds(by_dn=throttle)
        self.fail(1, "cn=" + "x" * 60_000)
        self.assertLess(max(len(key) for key in throttle._offenders), 64)


class TrailTests(BindTestCase):
    """What the audit log has of failed binds."""

    def setUp(self) -> None:
        super().setUp()
        self.store = memory_store()
        trail = Trail(store=self.store, now=lambda: START, monotonic=lambda: self.world.now)
        self.binds = self.world.binds(trail=trail)

    def records(self) -> list[tuple[str, str, str, str]]:
        """User, host, reason and address of all records so far, which must be of the one kind."""
        records = [json.loads(record.plain) for record in self.store.log.records]
        self.assertLessEqual({record["event"] for record in records}, {"ldap_bind_failed"})
        names = ("username", "hostname", "reason", "remote_addr")
        return [tuple(record.get(name, "") for name in names) for record in records]  # type: ignore[misc]

    def test_names(self) -> None:
        """The first value of the DN, empty for what is no DN; the host's name where it is a host's DN."""
        self.world.registry = registry("db1")
        right = HostPasswordTests.VECTORS[0][1]
        for dn, password in ((SERVICE, "x"), (f"uid=alice,{BASE}", "x"), ("nonsense", "x"), (WEB1, "x"), (WEB1, right)):
            self.simple(dn, password)
        host = ("web1.example.com", "web1.example.com")
        self.assertEqual(
            [record[:3] for record in self.records()],
            [
                ("readonly", "", "service account: wrong password"),
                ("alice", "", "unknown DN: no such account"),
                ("", "", "unknown DN: no such account"),
                (*host, "provisioned host: wrong password"),
                (*host, "provisioned host: not registered"),
            ],
        )
        self.assertEqual({record[3] for record in self.records()}, {"192.0.2.1"})

    def test_certificates(self) -> None:
        """A certificate that does not fit the name."""
        self.simple(WEB1, "", certificate="db1.example.com")
        host = ("web1.example.com", "web1.example.com")
        reason = "mTLS provisioned host: not the name in its certificate"
        self.assertEqual(self.records(), [(*host, reason, "192.0.2.1")])

    def test_anonymous(self) -> None:
        """A refused anonymous bind has no name."""
        self.simple("", "")
        self.assertEqual(self.records(), [("", "", "anonymous: not allowed", "192.0.2.1")])

    def test_right(self) -> None:
        """Who is let in leaves nothing here."""
        self.world.anonymous = True
        self.simple(SERVICE, "the right one")
        self.simple("", "")
        self.assertEqual(self.records(), [])

    def test_flood(self) -> None:
        """A flood leaves a few records, and then the number of the others, also of those that were not looked at."""
        for _ in range(500):
            self.simple(SERVICE, "wrong")
        self.assertEqual(len(self.records()), FROM_ONE_ADDRESS)
        self.world.now += 61
        self.simple(SERVICE, "wrong")
        missed = 500 - FROM_ONE_ADDRESS
        self.assertIn(f"and {missed} more of this kind", self.records()[-1][2])

    def test_long_names(self) -> None:
        """A stranger's long name makes no long record, a longer one than anybody can have is not read."""
        for length in (1000, 8000):
            self.simple("uid=" + "x" * length, "wrong")
        self.assertLess(max(len(record.plain) for record in self.store.log.records), 1000)
        self.assertEqual([record[0][:1] for record in self.records()], ["x", ""])
