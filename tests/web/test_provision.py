"""Provisioning as it stands on the wire (spec/http-api section 7.5), and client certificates over HTTPS."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree.core.errors import StorageUnavailable
from identree.ldap.tls import ClientAuth, ServerTLS, TLSFiles, peer_name
from identree.web.hosts import HostRoutes
from identree.web.provision import PROVISION_PATH, ProvisionRoutes
from identree.web.reading import Addresses, Credentials
from identree.web.root import build_root
from identree.web.site import Site
from tests.app.provisioning import Workshop, inline
from tests.app.world import SECRET
from tests.ldap.certificates import Meeting, TestCA, key_pem, pem
from tests.web.front import Connection, Front, Response, encoded

PATH = PROVISION_PATH.decode()
GLOBAL = {"X-Shared-Secret": SECRET, "X-Hostname": "web1"}


class ProvisionTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.make()

    def make(self, **terms: object) -> None:
        self.shop = Workshop(add_cleanup=self.addCleanup, **terms)  # type: ignore[arg-type]
        self.world = self.shop.world
        self.certificate = ""
        self.tls: ServerTLS | None = None
        front = Front(self.world)
        self.addCleanup(front.close)
        addresses = Addresses(lambda: ())
        credentials = Credentials(
            lambda transport: self.certificate or peer_name(transport),
            lambda name: not self.world.registry.enabled or self.world.registry.entry(name) is not None,
            lambda transport: self.tls.spoiled(transport) if self.tls is not None else "",
        )
        root = build_root(
            hosts=HostRoutes(
                challenges=self.world.challenges,
                hosts=self.shop.hosts,
                addresses=addresses,
                clock=self.world.clock,
                credentials=credentials,
            ),
            streams=front.streams,
            routes=[
                ProvisionRoutes(
                    provisioning=self.shop.provisioning,
                    credentials=credentials,
                    addresses=addresses,
                    metrics=self.world.metrics,
                )
            ],
        )
        self.site = Site(
            root, reactor=self.world.clock, external_url="https://identree.example", token=self.world.token
        )

    def ask(self, headers: Mapping[str, str], method: str = "GET", path: str = PATH, body: bytes = b"") -> Response:
        connection = Connection(self.site)
        self.addCleanup(connection.hang_up)
        connection.send(encoded(method, path, headers, body))
        response = connection.response()
        assert response is not None, connection.raw
        return response

    def refused(self, headers: Mapping[str, str], code: int, text: str) -> None:
        before = self.world.sample("identree_provision_refused_total", status=str(code))
        response = self.ask(headers)
        self.assertEqual((response.code, response.text), (code, text + "\n"))
        self.assertEqual(response.header("Content-Type"), "text/plain; charset=utf-8")
        self.assertEqual(self.world.sample("identree_provision_refused_total", status=str(code)), before + 1)


class AnswerTests(ProvisionTestCase):
    def test_with_mtls(self) -> None:
        """All keys in order; nothing may keep the answer."""
        response = self.ask(GLOBAL)
        self.assertEqual(response.code, 200, response.text)
        keys = [
            "ldap_url",
            "base_dn",
            "bind_dn",
            "bind_password",
            "client_cert",
            "client_key",
            "ca_cert",
            "cert_serial",
        ]
        self.assertEqual(list(response.json), keys)
        self.assertEqual(response.header("Cache-Control"), "no-store")
        self.assertEqual(response.header("Content-Type"), "application/json")
        self.assertEqual(response.json["cert_serial"], "a1")
        self.assertTrue(response.json["client_key"].startswith("-----BEGIN EC PRIVATE KEY-----\n"))
        leaf = x509.load_pem_x509_certificate(response.json["client_cert"].encode())
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(response.json["ca_cert"].encode()))

    def test_without_mtls(self) -> None:
        """Without mTLS only what is always there."""
        self.make(mtls=False)
        self.assertEqual(list(self.ask(GLOBAL).json), ["ldap_url", "base_dn", "bind_dn", "bind_password"])

    def test_ca(self) -> None:
        """The CA of the directory's certificate comes along when it is configured."""
        self.make(mtls=False, ca_cert="-----BEGIN CERTIFICATE-----\n")
        self.assertEqual(self.ask(GLOBAL).json["tls_ca_cert"], "-----BEGIN CERTIFICATE-----\n")

    def test_spaces(self) -> None:
        """Spaces around the name are not part of it."""
        answer = self.ask({**GLOBAL, "X-Hostname": "  web1\t"})
        self.assertEqual(answer.json["bind_dn"], "uid=web1,ou=identree-hosts,dc=example,dc=com")

    def test_size(self) -> None:
        """Agents read 64 KiB, also when everything is as large as it may be."""
        from identree.app.authority import GIVEN_PEM_BYTES

        self.make(ca_cert="x" * GIVEN_PEM_BYTES)
        room = 65536 - GIVEN_PEM_BYTES  # the CA of certificates may be as large
        self.assertLess(len(self.ask({**GLOBAL, "X-Hostname": "a" * 253}).body), room)


class RefusalTests(ProvisionTestCase):
    def test_method(self) -> None:
        """Only GET."""
        for method in ("POST", "PUT", "DELETE", "HEAD"):
            connection = Connection(self.site)
            self.addCleanup(connection.hang_up)
            connection.send(encoded(method, PATH, GLOBAL))
            response = connection.response(head=method == "HEAD")
            assert response is not None
            self.assertEqual(response.code, 405, method)

    def test_order(self) -> None:
        """Each check of the contract with its status and text."""
        self.refused({}, 401, "unauthorized")
        self.refused({"X-Shared-Secret": SECRET}, 400, "X-Hostname header required")
        self.refused({**GLOBAL, "X-Hostname": "a,b"}, 400, "invalid hostname")
        self.shop.register("web2")
        self.refused(GLOBAL, 403, "hostname not registered")
        self.refused({"X-Shared-Secret": "wrong", "X-Hostname": "web2"}, 401, "unauthorized")

    def test_disabled(self) -> None:
        """Switched off, the endpoint does not exist."""
        self.make(enabled=False)
        self.refused(GLOBAL, 404, "not found")
        self.refused({}, 404, "not found")

    def test_scheme(self) -> None:
        """A 401 names its scheme."""
        self.assertEqual(self.ask({}).header("WWW-Authenticate"), "Identree")

    def test_other_host(self) -> None:
        """A host's secret fetches no other host's identity."""
        self.shop.register("web1", "web2")
        self.refused({"X-Shared-Secret": "e" * 64, "X-Hostname": "web1"}, 403, "hostname mismatch")

    def test_throttled(self) -> None:
        """After ten failures the address waits, and is told how long."""
        for _ in range(10):
            self.ask({"X-Shared-Secret": "wrong"})
        self.refused({"X-Shared-Secret": "wrong"}, 429, "too many failed attempts \u2014 try again later")
        self.assertEqual(self.ask({"X-Shared-Secret": "wrong"}).header("Retry-After"), "60")

    def test_misconfigured(self) -> None:
        """What is missing stands in the log, not in the answer."""
        self.make(base_dn="")
        self.refused(GLOBAL, 500, "server misconfigured")

    def test_no_certificate(self) -> None:
        """So does what is wrong with the CA."""
        self.world.clock.advance(3651 * 86400)
        self.refused(GLOBAL, 500, "failed to issue client certificate")

    def test_strict(self) -> None:
        """A host with a valid certificate is told what it can show."""
        self.make(strict=True)
        self.assertEqual(self.ask(GLOBAL).code, 200)
        response = self.ask(GLOBAL)
        self.assertEqual(
            (response.code, response.text.partition(":")[0]), (403, "the host's certificate is still valid")
        )

    def test_database_away(self) -> None:
        """Nothing was done, and trying again may help."""

        async def unavailable(*_: object, **__: object) -> bool:
            raise StorageUnavailable("locked")

        self.world.store.record_certificate = unavailable  # type: ignore[method-assign]
        response = self.ask(GLOBAL)
        self.assertEqual((response.code, response.header("Retry-After")), (503, "2"))
        self.assertEqual(self.world.sample("identree_provision_refused_total", status="503"), 1)


class CertificateTests(ProvisionTestCase):
    def test_renewal(self) -> None:
        """A certificate alone renews itself."""
        self.certificate = "web1"
        self.assertEqual(self.ask({"X-Hostname": "web1"}).code, 200)
        self.refused({"X-Hostname": "web2"}, 403, "hostname mismatch")

    def test_removed_host(self) -> None:
        """The certificate of a host that is gone from the registry is none."""
        self.certificate = "web3"
        self.shop.register("web1")
        self.refused({"X-Hostname": "web3"}, 401, "unauthorized")

    def test_challenge(self) -> None:
        """The certificate's name is the host of a challenge, whatever the body says."""
        self.certificate = "web1"
        response = self.ask(
            {"Content-Type": "application/json"},
            "POST",
            "/api/challenge",
            b'{"username": "alice", "hostname": "another"}',
        )
        self.assertEqual(response.code, 201, response.text)
        self.assertEqual(self.ask({}, path=f"/api/challenge/{response.json['challenge_id']}").code, 200)
        self.certificate = "web2"
        self.assertEqual(self.ask({}, path=f"/api/challenge/{response.json['challenge_id']}").code, 403)


class HTTPSTests(ProvisionTestCase):
    """Through real TLS, from the first certificate to its renewal."""

    def setUp(self) -> None:
        super().setUp()
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = Path(directory.name)
        certificate, key = TestCA("web").issue("identree.example", eku=ExtendedKeyUsageOID.SERVER_AUTH)
        (path / "tls.crt").write_bytes(pem(certificate))
        (path / "tls.key").write_bytes(key_pem(key))
        authority = self.shop.authority
        assert authority is not None
        self.host_ca = TestCA()
        self.crl = path / "ca.crl"
        self.crl.write_bytes(self.host_ca.revoke())
        self.now = datetime.now(UTC)
        self.tls = ServerTLS(
            "HTTPS",
            TLSFiles(certificate=str(path / "tls.crt"), key=str(path / "tls.key"), crl=str(self.crl)),
            client_auth=ClientAuth.OPTIONAL,
            # certificates of tests are of today, those of the world's authority of its clock's day
            authorities=lambda: (*authority.certificates, self.host_ca.certificate),
            protocols=(b"http/1.1",),
            in_thread=inline,
            now=lambda: self.now,
            monotonic=self.world.clock.seconds,
        )

    def status(self, shown: object, headers: Mapping[str, str]) -> str:
        meeting = Meeting(self.tls, shown, factory=self.site, says=encoded("GET", PATH, headers))  # type: ignore[arg-type]
        answer = meeting.answer.partition(b"\r\n")[0].decode()
        meeting.server.connectionLost(None)
        return answer

    def test_no_certificate(self) -> None:
        """Browsers and new hosts show none."""
        self.assertEqual(self.status(None, GLOBAL), "HTTP/1.1 200 OK")
        self.assertEqual(self.status(None, {"X-Hostname": "web1"}), "HTTP/1.1 401 Unauthorized")

    def test_certificate(self) -> None:
        """A host that shows its certificate needs no secret; it is that host only."""
        shown = self.host_ca.issue("web1")
        self.assertEqual(self.status(shown, {"X-Hostname": "web1"}), "HTTP/1.1 200 OK")
        self.assertEqual(self.status(shown, {"X-Hostname": "web2"}), "HTTP/1.1 403 Forbidden")

    def test_kept_alive(self) -> None:
        """A certificate that is revoked or expires meanwhile is none for the next request of an open connection."""
        request = encoded("GET", PATH, {"X-Hostname": "web1"})
        shown = self.host_ca.issue("web1")
        for when, revoked in ((timedelta(), shown), (timedelta(days=2), self.host_ca.issue("web2"))):
            self.now = datetime.now(UTC)
            self.crl.write_bytes(self.host_ca.revoke())
            self.successResultOf(Deferred.fromCoroutine(self.tls.refresh()))
            meeting = Meeting(self.tls, shown, factory=self.site, says=request)
            meeting.client.send(request)
            meeting._run()
            self.crl.write_bytes(self.host_ca.revoke(revoked[0]))
            self.successResultOf(Deferred.fromCoroutine(self.tls.refresh()))
            self.now += when
            for headers in ({"X-Hostname": "web1"}, GLOBAL):
                meeting.client.send(encoded("GET", PATH, headers))
                meeting._run()
            codes = [line.split()[1] for line in meeting.answer.splitlines() if line.startswith(b"HTTP/1.1 ")]
            meeting.server.connectionLost(None)
            self.assertEqual(codes, [b"200", b"200", b"401", b"200"])

    def test_foreign_certificate(self) -> None:
        """One of another CA ends the handshake, also beside a good secret."""
        self.assertEqual(self.status(TestCA("foreign").issue("web1"), GLOBAL), "")
