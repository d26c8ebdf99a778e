"""The web server's listener, and what an operator reads when the start fails."""

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred, execute
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from identree.app.authority import Authority as CertificateAuthority
from identree.app.authority import CAFiles
from identree.core.errors import StorageUnavailable
from identree.ldap.tls import ServerTLS, peer_name, server_certificate
from identree.listening import endpoint, ldap_tls, remedy, web_tls
from identree.service import build
from identree.settings.load import load, no_files
from identree.settings.values import Settings
from tests.e2e.server import free_port
from tests.ldap.certificates import Meeting, TestCA, pem


class Authority:
    """A certificate authority with an intermediate, and a server certificate for 127.0.0.1 below that."""

    def __init__(self, directory: Path) -> None:
        self.root, root_key = _issue("root", None, None)
        middle, middle_key = _issue("middle", self.root, root_key)
        leaf, key = _issue("127.0.0.1", middle, middle_key)
        self.certificate = directory / "chain.pem"
        self.key = directory / "key.pem"
        self.certificate.write_bytes(leaf.public_bytes(Encoding.PEM) + middle.public_bytes(Encoding.PEM))
        self.key.write_bytes(_pem(key))
        self.other_key = directory / "other.pem"
        self.other_key.write_bytes(_pem(ec.generate_private_key(ec.SECP256R1())))
        self.rubbish = directory / "rubbish.pem"
        self.rubbish.write_text("rubbish")


class CertificateTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.files = Authority(Path(directory.name))

    def refused(self, certificate: Path, key: Path) -> str:
        return str(self.assertRaises(ValueError, server_certificate, str(certificate), str(key)))

    def test_missing(self) -> None:
        """A file that is not there is named, with its setting."""
        self.assertIn("IDENTREE_TLS_CERT_FILE: /none.pem cannot", self.refused(Path("/none.pem"), self.files.key))
        self.assertIn("IDENTREE_TLS_KEY_FILE: /none.key", self.refused(self.files.certificate, Path("/none.key")))

    def test_rubbish(self) -> None:
        """So is one that holds something else."""
        self.assertIn("no certificate in PEM", self.refused(self.files.rubbish, self.files.key))
        self.assertIn("no unencrypted private key", self.refused(self.files.certificate, self.files.rubbish))

    def test_other_key(self) -> None:
        """A key of another certificate is noticed at the start, not at the first connection."""
        self.assertIn("is not the key of", self.refused(self.files.certificate, self.files.other_key))


class ContextTests(SynchronousTestCase):
    """Which settings give TLS to which listener."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        self.files = Authority(self.path)
        self.pem = self.files.root.public_bytes(Encoding.PEM).decode()

    def settings(self, *, tls: bool = True, **more: str) -> Settings:
        environment = {
            **_environment(self.path, 1),
            **{f"IDENTREE_{name}": value for name, value in more.items()},
        }
        if tls:
            environment["IDENTREE_TLS_CERT_FILE"] = str(self.files.certificate)
            environment["IDENTREE_TLS_KEY_FILE"] = str(self.files.key)
        return load(environment, read=no_files)

    def ldap(self, *, tls: bool = True, **more: str) -> ServerTLS | None:
        settings = self.settings(tls=tls, **more)
        return ldap_tls(settings, None, refused=lambda reason: None, **self.clocks())

    def web(self, *, tls: bool = True, **more: str) -> ServerTLS | None:
        return web_tls(self.settings(tls=tls, **more), None, **self.clocks())

    def clocks(self) -> dict[str, Any]:
        return {"in_thread": execute, "now": lambda: datetime.now(UTC), "monotonic": lambda: 0.0}

    def test_web(self) -> None:
        """HTTPS needs the pair and nothing else."""
        self.assertIsNotNone(self.web())
        self.assertIsNone(self.web(tls=False))

    def test_ldap_without_ca(self) -> None:
        """LDAPS stays closed while no client could be let in."""
        self.assertIsNone(self.ldap())
        self.assertIsNotNone(self.ldap(LDAP_TLS_CLIENT_AUTH="optional"))

    def test_ldap_with_ca(self) -> None:
        """The CA of clients as a path or as text; without a certificate of our own there is no LDAPS all the same."""
        path = self.path / "ca.pem"
        path.write_text(self.pem)
        for value in (str(path), self.pem):
            self.assertIsNotNone(self.ldap(LDAP_TLS_CA_CERT=value))
            self.assertIsNone(self.ldap(tls=False, LDAP_TLS_CA_CERT=value))

    def test_who_makes_hosts(self) -> None:
        """The CA that is named makes hosts, unless there is one of our own: then it is only trusted."""
        ca = TestCA("public")
        host = ca.issue("web1")
        settings = self.settings(LDAP_TLS_CA_CERT=pem(ca.certificate).decode())
        own = CertificateAuthority(
            CAFiles(
                str(self.path / "own.crt"),
                str(self.path / "own.key"),
                now=self.now,
                random_bits=lambda bits: 1 << bits - 1,
            ),
            lifetime=timedelta(days=1),
            now=self.now,
            below=lambda n: 0,
            random_bits=lambda bits: 1 << bits - 1,
            in_thread=execute,
        )
        for authority, name in ((None, "web1"), (own, "")):
            tls = ldap_tls(settings, authority, refused=lambda reason: None, **self.clocks())
            assert tls is not None
            meeting = Meeting(tls, host)
            self.assertEqual((meeting.answer, peer_name(meeting.server)), (b"hello client", name))
        issued = self.successResultOf(Deferred.fromCoroutine(own.issue("web2")))
        shown = (
            x509.load_pem_x509_certificate(issued.certificate.encode()),
            load_pem_private_key(issued.key.encode(), None),
        )
        self.assertEqual(peer_name(Meeting(tls, shown).server), "web2")

    def now(self) -> datetime:
        return datetime.now(UTC)

    def test_unusable_ca(self) -> None:
        """What is neither a path nor PEM stops the start, LDAPS or not."""
        for tls in (True, False):
            said = str(self.assertRaises(ValueError, self.ldap, tls=tls, LDAP_TLS_CA_CERT="/none.pem"))
            self.assertIn("IDENTREE_LDAP_TLS_CA_CERT: /none.pem cannot be read", said)

    def test_endpoint(self) -> None:
        """Addresses of every form."""
        for address, wanted in (
            ("127.0.0.1:389", "tcp:389:backlog=7:interface=127.0.0.1"),
            ("[::1]:636", "tcp:636:backlog=7:interface=\\:\\:1"),
        ):
            self.assertEqual(endpoint(address, 7), wanted)
        self.assertTrue(endpoint(":389", 7).startswith("tcp:389:backlog=7:interface="))


class TLSTests(TestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        self.files = Authority(self.path)
        self.port = free_port()
        self.environment = {
            **_environment(self.path, self.port),
            "IDENTREE_TLS_CERT_FILE": str(self.files.certificate),
            "IDENTREE_TLS_KEY_FILE": str(self.files.key),
        }

    async def start(self) -> None:
        server = build(load(self.environment, read=no_files), real_reactor, give_up=lambda problem: None)
        server.startService()
        self.addCleanup(server.stopService)
        await server.started

    async def test_chain(self) -> None:
        """A client that trusts only the root gets the chain that it needs, and an answer."""
        await self.start()
        trusting = ssl.create_default_context(cadata=self.files.root.public_bytes(Encoding.PEM).decode())
        answer = await deferToThread(self._ask, trusting)
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer)

    async def test_old_versions(self) -> None:
        """TLS 1.1 is refused."""
        await self.start()
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with self.assertRaises(ssl.SSLError):
            await deferToThread(self._ask, old)

    async def test_healthcheck(self) -> None:
        """The check of the container finds it by the same settings, whatever name its certificate has."""
        await self.start()
        done = await deferToThread(
            subprocess.run,
            [sys.executable, "-m", "identree.cli", "healthcheck"],
            env={"PATH": os.environ["PATH"], **self.environment},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual((done.returncode, done.stdout[:14]), (0, '{"status":"ok"'), done)

    async def test_plain(self) -> None:
        """Who speaks plain HTTP to it gets nothing."""
        await self.start()
        self.assertEqual(await deferToThread(self._ask, None), b"")

    def _ask(self, context: ssl.SSLContext | None) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as plain:
            channel = context.wrap_socket(plain, server_hostname="127.0.0.1") if context else plain
            with channel:
                channel.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                try:
                    return channel.recv(64)
                except ConnectionResetError:
                    return b""


class MutualTLSTests(TestCase):
    """A server with a CA of its own, from the first start: a host is provisioned, and lives on its certificate."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        self.files = Authority(self.path)
        self.port = free_port()
        self.environment = {
            **_environment(self.path, self.port),
            "IDENTREE_TLS_CERT_FILE": str(self.files.certificate),
            "IDENTREE_TLS_KEY_FILE": str(self.files.key),
            "IDENTREE_MTLS_CA_CERT": str(self.path / "mtls-ca.crt"),
            "IDENTREE_MTLS_CA_KEY": str(self.path / "mtls-ca.key"),
            "IDENTREE_LDAP_PROVISION_ENABLED": "true",
            "IDENTREE_LDAP_BASE_DN": "dc=example,dc=com",
        }

    async def start(self) -> None:
        server = build(load(self.environment, read=no_files), real_reactor, give_up=lambda problem: None)
        server.startService()
        self.addCleanup(server.stopService)
        await server.started

    def ask(
        self, method: str, path: str, *, body: str = "", certificate: Path | None = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON of an answer."""
        context = ssl.create_default_context(cadata=self.files.root.public_bytes(Encoding.PEM).decode())
        if certificate is not None:
            context.load_cert_chain(certificate)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=10)
        with contextlib.closing(connection):
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body or None, sent)
            response = connection.getresponse()
            raw = response.read()
        return response.status, json.loads(raw) if raw.startswith(b"{") else {}

    async def provision(self, **more: Any) -> tuple[int, dict[str, Any]]:
        return await deferToThread(self.ask, "GET", "/api/client/provision", X_Hostname="web1", **more)

    async def challenge(self, **more: Any) -> int:
        body = '{"username": "alice", "hostname": "elsewhere"}'
        status, _ = await deferToThread(
            self.ask, "POST", "/api/challenge", body=body, Content_Type="application/json", **more
        )
        return status

    async def test_life_of_a_host(self) -> None:
        """The shared secret gets the first certificate; the certificate opens challenges and renews itself."""
        await self.start()
        secret = self.environment["IDENTREE_SHARED_SECRET"]
        self.assertEqual((await self.provision())[0], 401)
        status, answer = await self.provision(X_Shared_Secret=secret)
        self.assertEqual(status, 200)
        pair = self.path / "client.pem"
        pair.write_text(answer["client_cert"] + answer["client_key"])
        self.assertEqual(await self.challenge(X_Shared_Secret=secret), 401)
        self.assertEqual(await self.challenge(certificate=pair), 201)
        status, renewed = await self.provision(certificate=pair)
        self.assertEqual(status, 200)
        self.assertNotEqual(renewed["cert_serial"], answer["cert_serial"])
        self.assertEqual(renewed["ca_cert"], (self.path / "mtls-ca.crt").read_text())
        _, health = await deferToThread(self.ask, "GET", "/healthz")
        self.assertEqual(health["checks"]["mtls_certs"], "ok")

    async def test_openssl(self) -> None:
        """The openssl command sees which CA is asked for, and that a certificate of another one is refused."""
        await self.start()
        stranger = self.path / "stranger.pem"
        certificate, key = _issue("127.0.0.2", None, None)
        stranger.write_bytes(certificate.public_bytes(Encoding.PEM) + _pem(key))
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{self.port}", "-tls1_2"]
        run = {"input": "", "capture_output": True, "text": True, "timeout": 60}
        plain = await deferToThread(subprocess.run, command, **run)
        self.assertIn("Acceptable client certificate CA names\nO = identree, CN = identree mTLS CA\n", plain.stdout)
        refused = await deferToThread(subprocess.run, [*command, "-cert", str(stranger), "-key", str(stranger)], **run)
        self.assertIn("alert unknown ca", refused.stderr)


class RemedyTests(SynchronousTestCase):
    def test_busy(self) -> None:
        """A busy port is named with what to do."""
        said = remedy(CannotListenError("127.0.0.1", 8090, OSError(98, "Address already in use")))
        self.assertEqual(
            said,
            "cannot listen on 127.0.0.1:8090: Address already in use. End what uses the address, or set "
            "IDENTREE_LISTEN_ADDR",
        )

    def test_privileged(self) -> None:
        """So is what a low port needs."""
        self.assertIn("CAP_NET", remedy(CannotListenError("", 80, PermissionError(13, "Permission denied"))))

    def test_database(self) -> None:
        """A database out of reach is told with the setting that names it."""
        self.assertIn("IDENTREE_DATABASE_DSN", remedy(StorageUnavailable("unreachable", "no such file")))


class StartTests(SynchronousTestCase):
    """``identree serve`` as an operator meets it when something is wrong."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        self.port = free_port()

    def serve(self, **more: str) -> str:
        """What it says; it must fail, and without a traceback."""
        environment = {"PATH": os.environ["PATH"], **_environment(self.path, self.port), **more}
        done = subprocess.run(
            [sys.executable, "-m", "identree.cli", "serve"],
            env=environment,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(done.returncode, 1, done)
        said = done.stdout + done.stderr
        self.assertNotIn("Traceback", said)
        self.assertNotIn("-secret-", said)
        return said

    def test_tls(self) -> None:
        """Certificate files that are not there."""
        said = self.serve(IDENTREE_TLS_CERT_FILE="/none.pem", IDENTREE_TLS_KEY_FILE="/none.key")
        self.assertIn("identree: IDENTREE_TLS_CERT_FILE: /none.pem cannot be read", said)

    def test_state_file(self) -> None:
        """A host registry that makes no sense."""
        (self.path / "hosts.json").write_text("{")
        self.assertIn(f"identree cannot start: {self.path}/hosts.json: ", self.serve())

    def test_audit_log(self) -> None:
        """An audit log that leads elsewhere."""
        (self.path / "audit.jsonl").symlink_to(self.path / "elsewhere")
        self.assertIn("identree: IDENTREE_AUDIT_LOG: the audit log", self.serve())

    def test_no_directory(self) -> None:
        """A database whose directory does not exist."""
        said = self.serve(IDENTREE_DATABASE_DSN=str(self.path / "none" / "identree.db"))
        self.assertIn("Check IDENTREE_DATABASE_DSN", said)

    def test_busy_port_of_the_demo(self) -> None:
        """There the port is an option."""
        with socket.socket() as other:
            other.bind(("127.0.0.1", self.port))
            other.listen()
            done = subprocess.run(
                [sys.executable, "-m", "identree.cli", "demo", f"--port={self.port}", f"--provider-port={free_port()}"],
                cwd=Path(__file__).parents[1],
                capture_output=True,
                text=True,
                timeout=60,
            )
        self.assertEqual(done.returncode, 1, done)
        self.assertIn("or choose another with --port", done.stderr)
        self.assertNotIn("Traceback", done.stderr)

    def test_busy_port(self) -> None:
        """An address that another program uses."""
        with socket.socket() as other:
            other.bind(("127.0.0.1", self.port))
            other.listen()
            self.assertIn("or set IDENTREE_LISTEN_ADDR", self.serve())


def _environment(directory: Path, port: int) -> dict[str, str]:
    return {
        "IDENTREE_LISTEN_ADDR": f"127.0.0.1:{port}",
        "IDENTREE_EXTERNAL_URL": f"http://127.0.0.1:{port}",
        "IDENTREE_SHARED_SECRET": "listening-secret-0123456789abcdef",
        "IDENTREE_SESSION_SECRET": "listening-session-secret-456789abcdef",
        "IDENTREE_DATABASE_DSN": str(directory / "identree.db"),
        "IDENTREE_HOST_REGISTRY_FILE": str(directory / "hosts.json"),
        "IDENTREE_APPROVAL_POLICIES_FILE": str(directory / "policies.json"),
        "IDENTREE_SESSION_STATE_FILE": str(directory / "sessions.json"),
        "IDENTREE_AUDIT_LOG": f"file:{directory / 'audit.jsonl'}",
        "IDENTREE_LDAP_ENABLED": "false",
        "IDENTREE_DEV_LOGIN": "true",
    }


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _issue(name: str, issuer: x509.Certificate | None, issuer_key: Any) -> tuple[x509.Certificate, Any]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )
    if name[0].isdigit():
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(name))]), critical=False)
    else:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(issuer_key or key, SHA256()), key
