"""Who gets what to bind to the directory, and what is known of certificates."""

from __future__ import annotations

import json

from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from identree.app.authority import CannotIssue
from identree.app.hosts import Credential
from identree.app.provision import (
    Certificates,
    Misconfigured,
    NotEnabled,
    NotRegistered,
    StillCertified,
    Terms,
    bind_secret,
    directory_url,
    serves_ldaps,
)
from identree.core.errors import HostnameMismatch, Invalid, StorageUnavailable, Throttled, Unauthorized
from identree.core.hosts import HostRegistry
from identree.core.tokens import host_bind_password
from identree.settings.load import load, no_files
from identree.settings.values import Settings
from tests.app.provisioning import ADDRESS, WEB1, WEB2, Workshop
from tests.app.world import GLOBAL, SECRET, now_result

MINIMUM = {
    "IDENTREE_EXTERNAL_URL": "https://identree.example.com",
    "IDENTREE_SHARED_SECRET": SECRET,
    "IDENTREE_SESSION_SECRET": "session-secret-0123456789abcdef01",
    "IDENTREE_LDAP_BASE_DN": "dc=example,dc=com",
    "IDENTREE_OIDC_ISSUER_URL": "https://id.example.com",
    "IDENTREE_OIDC_CLIENT_ID": "identree",
    "IDENTREE_OIDC_CLIENT_SECRET": "client secret",
}


def settings(**more: str) -> Settings:
    wanted = {**MINIMUM, **{f"IDENTREE_{name}": value for name, value in more.items()}}
    return load({name: value for name, value in wanted.items() if value}, read=no_files)


class ProvisionTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.make()

    def make(self, **terms: object) -> None:
        self.shop = Workshop(add_cleanup=self.addCleanup, **terms)  # type: ignore[arg-type]
        self.world = self.shop.world

    def markers(self) -> list[str]:
        return [message for message, _ in self.world.log]


class AnswerTests(ProvisionTestCase):
    def test_everything(self) -> None:
        """Address, names, password and certificate."""
        provisioned = self.shop.provision("web1.example.com")
        self.assertEqual(provisioned.url, "ldaps://identree.example:636")
        self.assertEqual(provisioned.bind_dn, "uid=web1.example.com,ou=identree-hosts,dc=example,dc=com")
        self.assertEqual(provisioned.bind_password, host_bind_password(SECRET.encode(), "web1.example.com"))
        assert provisioned.issued is not None
        self.assertEqual(provisioned.issued.serial, "a1")
        self.assertNotIn(provisioned.bind_password, repr(provisioned))

    def test_spelling(self) -> None:
        """DN and password carry the name exactly as it was sent: the host binds with that spelling."""
        self.shop.register("web1")
        provisioned = self.shop.provision("WEB1")
        self.assertEqual(provisioned.bind_dn, "uid=WEB1,ou=identree-hosts,dc=example,dc=com")
        self.assertEqual(provisioned.bind_password, host_bind_password(SECRET.encode(), "WEB1"))

    def test_without_mtls(self) -> None:
        """Without mTLS there is no certificate."""
        self.make(mtls=False)
        self.assertIsNone(self.shop.provision().issued)
        self.assertEqual(self.world.store.events, [])

    def test_event(self) -> None:
        """A certificate stands in the audit log, with its serial in the code field."""
        self.shop.provision()
        [record] = [json.loads(one.plain) for one in self.world.store.log.records]
        columns = {key: record.get(key) for key in ("event", "username", "hostname", "code", "remote_addr")}
        wanted = {
            "event": "certificate_issued",
            "username": "web1",
            "hostname": "web1",
            "code": "a1",
            "remote_addr": ADDRESS,
        }
        self.assertEqual(columns, wanted)

    def test_recorded_first(self) -> None:
        """A certificate that cannot be recorded is not given out."""

        async def unavailable(*_: object, **__: object) -> bool:
            raise StorageUnavailable("locked")

        self.world.store.record_certificate = unavailable  # type: ignore[method-assign]
        self.assertRaises(StorageUnavailable, self.shop.provision)
        self.assertNotIn("CERT_ISSUED", self.markers())

    def test_log(self) -> None:
        """Both markers of the contract, with their attributes, and no secret among them."""
        self.shop.provision()
        self.assertEqual(
            self.world.log,
            [
                ("CERT_ISSUED", {"hostname": "web1", "serial": "a1", "expires": "2027-01-02T03:04:05+00:00"}),
                ("PROVISION", {"hostname": "web1", "remote_addr": ADDRESS}),
            ],
        )

    def test_metrics(self) -> None:
        """Counted, and the host's series appears at once."""
        self.shop.provision()
        self.assertEqual(self.world.sample("identree_mtls_certificates_issued_total"), 1)
        left = self.world.sample("identree_mtls_cert_expires_in_seconds", hostname="web1")
        self.assertEqual(left, 365 * 86400)


class RefusalTests(ProvisionTestCase):
    def test_not_enabled(self) -> None:
        """Switched off, nobody learns more, not even with a good secret."""
        self.make(enabled=False)
        self.assertRaises(NotEnabled, self.shop.provision)

    def test_stranger(self) -> None:
        """Without any credential, or with a wrong one."""
        for presented in (Credential(), Credential(secret=b"wrong")):
            self.assertRaises(Unauthorized, self.shop.provision, "web1", presented)
        self.assertEqual(self.world.log[0], ("PROVISION_REJECTED unauthorized", {"remote_addr": ADDRESS}))

    def test_throttled(self) -> None:
        """An address that fails too often waits; a good credential from there does not."""
        for _ in range(10):
            self.assertRaises(Unauthorized, self.shop.provision, "web1", Credential(secret=b"wrong"))
        self.assertRaises(Throttled, self.shop.provision, "web1", Credential(secret=b"wrong"))
        self.shop.provision()

    def test_not_in_the_counter_of_challenges(self) -> None:
        """These failures have a metric of their own."""
        self.assertRaises(Unauthorized, self.shop.provision, "web1", Credential())
        self.assertEqual(self.world.sample("identree_auth_failures_total"), 0)

    def test_hostname(self) -> None:
        """A name that is absent, or could break a DN."""
        for bad in ("", "web1,dc=x", "web 1", "web1\n", "a" * 254, ".", "wéb"):
            self.assertRaises(Invalid, self.shop.provision, bad)

    def test_not_registered(self) -> None:
        """Once there is a registry it must know the host."""
        self.shop.register("web1")
        self.assertRaises(NotRegistered, self.shop.provision, "web3")
        self.assertIn("PROVISION_REJECTED hostname not registered", self.markers())

    def test_secret_before_name(self) -> None:
        """A stranger does not learn which names are registered."""
        self.shop.register("web1")
        self.assertRaises(Unauthorized, self.shop.provision, "web3", Credential(secret=b"wrong"))

    def test_misconfigured(self) -> None:
        """Without base or address nobody can be provisioned; no certificate is wasted."""
        for terms in ({"base_dn": ""}, {"url": ""}, {"secret": b"", "mtls": False}):
            self.make(**terms)
            self.assertRaises(Misconfigured, self.shop.provision)
            self.assertEqual(self.world.store.events, [])

    def test_expired_ca(self) -> None:
        """A CA that gives no certificate gives no password either."""
        self.world.clock.advance(3651 * 86400)
        self.assertRaises(CannotIssue, self.shop.provision)


class OwnTests(ProvisionTestCase):
    """A credential speaks for its own host only; the global secret for all."""

    def setUp(self) -> None:
        super().setUp()
        self.shop.register("web1", "web2")

    def test_own_secret(self) -> None:
        """A host's own secret."""
        self.shop.provision("web1", WEB1)
        self.shop.provision("WEB1.", WEB1)

    def test_other_secret(self) -> None:
        """Another host's."""
        self.assertRaises(HostnameMismatch, self.shop.provision, "web1", WEB2)
        self.assertNotIn("certificate_issued", self.world.store.events)

    def test_own_certificate(self) -> None:
        """A host's certificate."""
        self.shop.provision("web1", Credential(certificate="web1"))

    def test_other_certificate(self) -> None:
        """Another host's certificate: no identity but its own, with or without its own secret."""
        for presented in (
            Credential(certificate="web2"),
            Credential(certificate="web2", secret=WEB2.secret),
            Credential(certificate="web2", secret=b"wrong"),
        ):
            self.assertRaises(HostnameMismatch, self.shop.provision, "web1", presented)

    def test_global(self) -> None:
        """The global secret provisions any registered host, also beside a certificate."""
        self.shop.provision("web1", GLOBAL)
        self.shop.provision("web1", Credential(certificate="web2", secret=GLOBAL.secret))

    def test_other_certificate_without_registry(self) -> None:
        """The rule holds without a registry too."""
        self.world.registry = HostRegistry.empty()
        self.assertRaises(HostnameMismatch, self.shop.provision, "web1", Credential(certificate="web2"))


class StrictTests(ProvisionTestCase):
    def setUp(self) -> None:
        self.make(strict=True)
        self.shop.register("web1", "web2")
        self.shop.provision("web1", GLOBAL)

    def test_first(self) -> None:
        """The global secret gets the first certificate of a host, however often other hosts got theirs."""
        self.shop.provision("web2", GLOBAL)

    def test_second(self) -> None:
        """But not a second one while the first is valid."""
        for hostname in ("web1", "WEB1", "web1."):
            self.assertRaises(StillCertified, self.shop.provision, hostname, GLOBAL)
        self.assertEqual(self.world.store.events.count("certificate_issued"), 1)

    def test_renewal(self) -> None:
        """The host itself renews, by its certificate or its own secret."""
        self.shop.provision("web1", Credential(certificate="web1", secret=GLOBAL.secret))
        self.shop.provision("web1", WEB1)

    def test_expired(self) -> None:
        """After the end the global secret is enough again."""
        self.world.clock.advance(365 * 86400)
        self.shop.provision("web1", GLOBAL)

    def test_reset(self) -> None:
        """An admin may let the host begin anew."""
        self.assertIs(now_result(self.shop.provisioning.forget("WEB1")), True)
        self.shop.provision("web1", GLOBAL)

    def test_race(self) -> None:
        """Who is overtaken between the look and the record gets nothing."""

        async def nothing(hostname: str) -> None:
            return None

        self.world.store.host_certificate = nothing  # type: ignore[method-assign]
        self.assertRaises(StillCertified, self.shop.provision, "web1", GLOBAL)
        self.assertEqual(self.world.store.events.count("certificate_issued"), 1)

    def test_lenient(self) -> None:
        """Without strictness the global secret gets another one, as deployed installations rely on."""
        self.make()
        self.shop.provision("web1", GLOBAL)
        self.shop.provision("web1", GLOBAL)


class ExpiryTests(ProvisionTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.lines: list[str] = []
        self.patch(Certificates, "_log", Logger(observer=lambda event: self.lines.append(formatEvent(event))))

    def measure(self) -> None:
        now_result(self.shop.certificates.measure())

    def health(self) -> str:
        return now_result(self.shop.certificates.health())

    def left(self, hostname: str) -> float | None:
        registry = self.world.metrics.registry
        return registry.get_sample_value("identree_mtls_cert_expires_in_seconds", {"hostname": hostname})

    def days(self, days: float) -> None:
        self.world.clock.advance(days * 86400)

    def test_gauges(self) -> None:
        """The remaining lives of the CA and of each host's certificate."""
        self.shop.provision("web1")
        self.days(5)
        self.measure()
        self.assertEqual(self.world.sample("identree_mtls_ca_expires_in_seconds"), 3645 * 86400)
        self.assertEqual(self.left("web1"), 360 * 86400)

    def test_health(self) -> None:
        """Hosts whose certificates end within 30 days, or have ended, are counted."""
        self.shop.provision("web1")
        self.days(100)
        self.shop.provision("web2")
        self.assertEqual(self.health(), "ok")
        self.days(235.1)
        self.assertEqual(self.health(), "warning: 1 hosts have certs expiring within 30 days")
        self.days(200)
        self.assertEqual(self.health(), "warning: 2 hosts have certs expiring within 30 days")

    def test_after_a_restart(self) -> None:
        """What another process has issued is known after the first measurement."""
        self.shop.provision("web1")
        self.days(340)
        self.shop.certificates._ends = {}
        self.measure()
        self.assertEqual(self.health(), "warning: 1 hosts have certs expiring within 30 days")

    def test_removed_host(self) -> None:
        """A host that is gone from the registry has no series, and is nobody's worry."""
        self.shop.provision("web1")
        self.shop.provision("web2")
        self.measure()
        self.shop.register("web1")
        self.measure()
        self.assertIsNone(self.left("web2"))
        self.days(400)
        self.assertEqual(self.health(), "warning: 1 hosts have certs expiring within 30 days")

    def test_bounded(self) -> None:
        """The number of series is bounded; the certificates that end first have one."""
        self.patch(Certificates, "_log", Logger(observer=lambda event: None))
        import identree.app.provision as module

        self.patch(module, "MEASURED_HOSTS", 2)
        for name in ("web1", "web2", "web3"):
            self.shop.provision(name)
            self.days(1)
        self.assertIsNone(self.left("web3"))
        self.measure()
        self.assertEqual([self.left(name) is not None for name in ("web1", "web2", "web3")], [True, True, False])

    def test_ca_near_its_end(self) -> None:
        """A CA that ends within 30 days is told, once a day."""
        self.measure()
        self.days(3620)
        for _ in range(3):
            self.measure()
            self.world.clock.advance(3600)
        self.assertEqual(len(self.lines), 1)
        self.assertIn("the CA expires on 2035-12-31", self.lines[0])
        self.days(1)
        self.measure()
        self.assertEqual(len(self.lines), 2)

    def test_database_away(self) -> None:
        """While the database is away, what was known stands."""
        self.shop.provision("web1")
        self.days(340)

        async def unavailable(limit: int) -> list[object]:
            raise StorageUnavailable("locked")

        self.world.store.host_certificates = unavailable  # type: ignore[method-assign, assignment]
        self.measure()
        self.assertEqual(self.health(), "warning: 1 hosts have certs expiring within 30 days")

    def test_without_mtls(self) -> None:
        """Without mTLS the gauge stays at 0."""
        self.make(mtls=False)
        self.measure()
        self.assertEqual((self.world.sample("identree_mtls_ca_expires_in_seconds"), self.health()), (0, "ok"))


TLS = {"TLS_CERT_FILE": "/tls.crt", "TLS_KEY_FILE": "/tls.key"}


class TermsTests(SynchronousTestCase):
    def test_url(self) -> None:
        """The address follows what listens."""
        mtls = {**TLS, "MTLS_CA_CERT": "/ca.crt"}
        for more, url in (
            ({}, "ldap://identree.example.com:389"),
            ({"LDAP_LISTEN_ADDR": "127.0.0.1:1389"}, "ldap://identree.example.com:1389"),
            (mtls, "ldaps://identree.example.com:636"),
            ({**mtls, "LDAP_TLS_LISTEN_ADDR": "[::1]:1636"}, "ldaps://identree.example.com:1636"),
            ({**TLS, "LDAP_TLS_CLIENT_AUTH": "optional"}, "ldaps://identree.example.com:636"),
            ({**TLS, "LDAP_TLS_CA_CERT": "/ca.crt"}, "ldaps://identree.example.com:636"),
            (TLS, "ldap://identree.example.com:389"),
            ({"MTLS_CA_CERT": "/ca.crt"}, "ldap://identree.example.com:389"),
            ({"LDAP_EXTERNAL_URL": "ldaps://ldap.example.com"}, "ldaps://ldap.example.com"),
            ({"EXTERNAL_URL": "https://[2001:db8::1]:8443/sudo"}, "ldap://[2001:db8::1]:389"),
        ):
            self.assertEqual(directory_url(settings(**more)), url, more)

    def test_ldaps(self) -> None:
        """LDAPS needs a certificate of the server, and a CA of clients unless they need none."""
        for more, wanted in (
            ({}, False),
            (TLS, False),
            ({**TLS, "MTLS_CA_KEY": "/ca.key"}, True),
            ({**TLS, "LDAP_TLS_CLIENT_AUTH": "optional"}, True),
            ({"LDAP_TLS_CA_CERT": "/ca.crt"}, False),
        ):
            self.assertIs(serves_ldaps(settings(**more)), wanted, more)

    def test_secret(self) -> None:
        """The LDAP secret, else the shared one, else the secret of sessions: never an empty password."""
        self.assertEqual(bind_secret(settings(LDAP_SECRET="an LDAP secret")), b"an LDAP secret")
        self.assertEqual(bind_secret(settings()), SECRET.encode())
        only_mtls = settings(SHARED_SECRET="", MTLS_CA_CERT="/ca.crt", **TLS)
        self.assertEqual(bind_secret(only_mtls), MINIMUM["IDENTREE_SESSION_SECRET"].encode())

    def test_of_settings(self) -> None:
        """All of it from the settings, and the secret in no representation."""
        terms = Terms.of(settings(LDAP_PROVISION_ENABLED="true", MTLS_STRICT_PROVISION="true"), "PEM")
        self.assertEqual((terms.enabled, terms.strict, terms.ca_cert), (True, True, "PEM"))
        self.assertEqual(terms.base_dn, "dc=example,dc=com")
        self.assertNotIn(SECRET, repr(terms))
