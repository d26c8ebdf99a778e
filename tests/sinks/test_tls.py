"""Trust towards receivers: what is accepted, what is refused and why, and files that change."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto
from twisted.internet.defer import CancelledError, Deferred, execute
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface.verify import verifyObject

from identree.sinks.tls import PEM_BYTES, ClientTrust, TrustFiles, Untrusted
from tests.ldap.certificates import DAY, TestCA, key_pem, pem

NAME = "logs.example.com"
PREFIX = "IDENTREE_AUDIT_SYSLOG"


def inline(function: Callable[[], Any]) -> Deferred[Any]:
    """A thread that is none."""
    return execute(function)


class Talker(Protocol):
    """Says a word as soon as it may."""

    ended: Failure | None = None

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"a record")

    def connectionLost(self, reason: Any = None) -> None:
        self.ended = reason


class Meeting:
    """
    Our client and a receiver's TLS in memory.

    :ivar heard: what the receiver got.
    :ivar problem: what our side ended with; None while all is well.
    :ivar sent_along: the certificates that the receiver was shown beside ours.
    """

    def __init__(
        self,
        creator: IOpenSSLClientConnectionCreator,
        certificate: x509.Certificate,
        key: Any,
        *,
        clients: TestCA | None = None,
        newest: int | None = None,
    ) -> None:
        """
        :param clients: the CA of the client certificates that it demands.
        :param newest: TLS version that it speaks.
        """
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.use_certificate(certificate)
        context.use_privatekey(key)
        if newest is not None:
            context.set_min_proto_version(0)
            context.set_max_proto_version(newest)
            context.set_cipher_list(b"ALL:@SECLEVEL=0")
        if clients is not None:
            store = context.get_cert_store()
            assert store is not None
            store.add_cert(crypto.X509.from_cryptography(clients.certificate))
            context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        self.server = SSL.Connection(context, None)
        self.server.set_accept_state()
        clock: Any = Clock()
        factory = TLSMemoryBIOFactory(creator, True, Factory.forProtocol(Talker), clock)
        self._tls: Any = factory.buildProtocol(None)  # type: ignore[arg-type]
        talker: Talker = self._tls.wrappedProtocol
        self._wire = StringTransport()
        self._tls.makeConnection(self._wire)
        self.heard = b""
        for _ in range(20):
            clock.advance(1)
            sent = self._wire.value()
            self._wire.clear()
            if sent:
                self.server.bio_write(sent)
            with contextlib.suppress(SSL.Error):
                self.heard += self.server.recv(1 << 16)
            try:
                answer = self.server.bio_read(1 << 16)
            except SSL.Error:
                answer = b""
            if answer:
                self._tls.dataReceived(answer)
            if not sent and not answer:
                break
        if self._wire.disconnecting:
            self._tls.connectionLost(Failure(ConnectionDone()))
        ended = talker.ended
        self.problem: BaseException | None = None if ended is None else ended.value
        self.sent_along = self.server.get_peer_cert_chain(as_cryptography=True) or []
        self.server_name = self.server.get_servername()


class TrustTests(SynchronousTestCase):
    """A receiver's certificate."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.ca = TestCA()
        self.files = TrustFiles(ca=self.write("ca.pem", pem(self.ca.certificate)), settings=PREFIX)

    def write(self, name: str, content: bytes) -> str:
        path = self.directory / name
        path.write_bytes(content)
        return str(path)

    def trust(self, files: TrustFiles | None = None) -> ClientTrust:
        trust = ClientTrust(files or self.files, inline)
        self.successResultOf(trust.refresh())
        return trust

    def server(self, name: str = NAME, **how: Any) -> tuple[x509.Certificate, Any]:
        return self.ca.issue(name, **{"eku": ExtendedKeyUsageOID.SERVER_AUTH, **how})

    def meet(self, trust: ClientTrust | None = None, hostname: str = NAME, **how: Any) -> Meeting:
        certificate, key = how.pop("server", None) or self.server()
        return Meeting((trust or self.trust()).creator(hostname), certificate, key, **how)

    def refused(self, meeting: Meeting, trust: ClientTrust | None = None) -> str:
        """Why; nothing was told to the receiver."""
        self.assertEqual(meeting.heard, b"")
        assert meeting.problem is not None
        return (trust or self.trust()).explain(meeting.problem)

    def test_good(self) -> None:
        """A certificate of the CA for the name is good, and the name is asked for."""
        meeting = self.meet()
        self.assertEqual((meeting.heard, meeting.problem, meeting.server_name), (b"a record", None, NAME.encode()))

    def test_any_case(self) -> None:
        """Names are compared without regard to case."""
        self.assertEqual(self.meet(hostname="Logs.Example.COM").heard, b"a record")

    def test_wrong_name(self) -> None:
        """Another name is refused, before anything is sent."""
        meeting = self.meet(hostname="other.example.com")
        self.assertIsInstance(meeting.problem, Untrusted)
        self.assertIn("its certificate is not for other.example.com", self.refused(meeting))

    def test_foreign_ca(self) -> None:
        """The text names the setting."""
        other = TestCA("another")
        meeting = self.meet(server=other.issue(NAME, eku=ExtendedKeyUsageOID.SERVER_AUTH))
        self.assertIn(f"put the certificate of that CA into the file that {PREFIX}_CA_FILE", self.refused(meeting))

    def test_expired(self) -> None:
        """An expired certificate is refused."""
        meeting = self.meet(server=self.server(begins=-2 * DAY, ends=-DAY))
        self.assertIn("has expired", self.refused(meeting))

    def test_not_yet_valid(self) -> None:
        """So is one that begins tomorrow."""
        meeting = self.meet(server=self.server(begins=DAY, ends=2 * DAY))
        self.assertIn("not valid yet", self.refused(meeting))

    def test_wrong_purpose(self) -> None:
        """A client's certificate does not make a receiver."""
        meeting = self.meet(server=self.ca.issue(NAME))
        self.assertIn("not for servers", self.refused(meeting))

    def test_address(self) -> None:
        """A certificate for the address in the URL is good, of either kind."""
        for address in ("127.0.0.1", "::1"):
            key = ec.generate_private_key(ec.SECP256R1())
            builder = x509.CertificateBuilder(
                subject_name=x509.Name([]),
                issuer_name=self.ca.name,
                public_key=key.public_key(),
                serial_number=x509.random_serial_number(),
                not_valid_before=datetime.now(UTC) - DAY,
                not_valid_after=datetime.now(UTC) + DAY,
            )
            name = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
            certificate = builder.add_extension(name, critical=False).sign(self.ca.key, SHA256())
            meeting = self.meet(hostname=address, server=(certificate, key))
            self.assertEqual((meeting.heard, meeting.server_name), (b"a record", None))

    def test_wrong_address(self) -> None:
        """An address in the URL is looked for among the certificate's addresses; a name alone does not do."""
        meeting = self.meet(hostname="127.0.0.1", server=self.server("127.0.0.1"))
        self.assertIn("not for 127.0.0.1", self.refused(meeting))
        self.assertIsNone(meeting.server_name)

    def test_own_certificate_as_ca(self) -> None:
        """A receiver's self-signed certificate may be trusted itself."""
        own = TestCA(NAME)
        certificate, key = own.issue(NAME, subject=own.name, key=own.key, eku=ExtendedKeyUsageOID.SERVER_AUTH)
        trust = self.trust(TrustFiles(ca=self.write("own.pem", pem(certificate))))
        self.assertEqual(self.meet(trust, server=(certificate, key)).heard, b"a record")

    def test_intermediate_as_ca(self) -> None:
        """An intermediate CA may be trusted without the one above it."""
        middle = TestCA("middle")
        between, _ = self.ca.issue("", subject=middle.name, key=middle.key, ca=True, eku=None)
        trust = self.trust(TrustFiles(ca=self.write("middle.pem", pem(between))))
        server = middle.issue(NAME, eku=ExtendedKeyUsageOID.SERVER_AUTH)
        self.assertEqual(self.meet(trust, server=server).heard, b"a record")

    def test_system(self) -> None:
        """Without a CA file the system's CAs count, which do not know ours."""
        trust = self.trust(TrustFiles(settings=PREFIX))
        self.assertIn("CA that is not trusted", self.refused(self.meet(trust), trust))

    def test_old_version(self) -> None:
        """TLS 1.1 is refused."""
        meeting = self.meet(newest=SSL.TLS1_1_VERSION)
        self.assertIn("nothing newer than TLS 1.1", self.refused(meeting))

    def test_no_tls(self) -> None:
        """A receiver that answers in clear text is told apart."""
        tls: Any = TLSMemoryBIOFactory(self.trust().creator(NAME), True, Factory.forProtocol(Talker), Clock())
        protocol: Any = tls.buildProtocol(None)
        talker: Talker = protocol.wrappedProtocol
        protocol.makeConnection(StringTransport())
        protocol.dataReceived(b"220 no TLS here, sorry about that\r\n")
        protocol.connectionLost(Failure(ConnectionDone()))
        assert talker.ended is not None
        self.assertIn("does not speak TLS", self.trust().explain(talker.ended.value))

    def test_other_problems(self) -> None:
        """What is no matter of TLS is not explained."""
        self.assertEqual(self.trust().explain(OSError("no route")), "")

    def test_unknown_alert(self) -> None:
        """What we have no words for is told as OpenSSL says it, shortened."""
        words = self.trust().explain(SSL.Error([("SSL routines", "", "x" * 1000)]))
        self.assertTrue(words.startswith("the TLS connection failed (ssl routines"), words)
        self.assertLess(len(words), 300)

    def test_host_name(self) -> None:
        """What is no host name makes no connection."""
        with self.assertRaises(ValueError):
            self.trust().creator("a" * 64 + ".example.com")

    def test_before_refresh(self) -> None:
        """Nothing is trusted before anything is loaded."""
        with self.assertRaises(RuntimeError):
            ClientTrust(self.files, inline).creator(NAME)

    def test_policy(self) -> None:
        """It is a policy for web clients as well."""
        trust = self.trust()
        verifyObject(IPolicyForHTTPS, trust)
        certificate, key = self.server()
        self.assertEqual(Meeting(trust.creatorForNetloc(NAME.encode(), 443), certificate, key).heard, b"a record")
        verifyObject(IOpenSSLClientConnectionCreator, trust.creatorForNetloc(b"[::1]", 443))

    # -- client certificates ------------------------------------------------------------------------------------------
    def identified(self, chain: bytes, key: Any) -> TrustFiles:
        return TrustFiles(
            ca=self.files.ca,
            certificate=self.write("client.pem", chain),
            key=self.write("client.key", key_pem(key)),
            settings=PREFIX,
        )

    def test_client_certificate(self) -> None:
        """A receiver that demands a certificate is shown ours."""
        certificate, key = self.ca.issue("identree.example.com")
        meeting = self.meet(self.trust(self.identified(pem(certificate), key)), clients=self.ca)
        self.assertEqual((meeting.heard, meeting.problem), (b"a record", None))

    def test_chain(self) -> None:
        """Intermediate certificates in the file are sent along."""
        middle = TestCA("middle")
        between, _ = self.ca.issue("", subject=middle.name, key=middle.key, ca=True, eku=None)
        certificate, key = middle.issue("identree.example.com")
        meeting = self.meet(self.trust(self.identified(pem(certificate, between), key)), clients=self.ca)
        self.assertEqual((meeting.heard, meeting.sent_along), (b"a record", [between]))

    def test_no_client_certificate(self) -> None:
        """Without one the text names the settings; TLS 1.3 tells it after our first record."""
        meeting = self.meet(clients=self.ca)
        self.assertIn(f"demands a client certificate; set {PREFIX}_CERT_FILE", self.refused(meeting))

    def test_foreign_client_certificate(self) -> None:
        """One of a CA that the receiver does not know is told."""
        certificate, key = TestCA("another").issue("identree.example.com")
        meeting = self.meet(self.trust(self.identified(pem(certificate), key)), clients=self.ca)
        self.assertIn(f"{PREFIX}_CERT_FILE", self.refused(meeting))

    # -- files --------------------------------------------------------------------------------------------------------
    def unusable(self, files: TrustFiles) -> str:
        failure = self.failureResultOf(ClientTrust(files, inline).refresh(), ValueError)
        return str(failure.value)

    def test_missing_file(self) -> None:
        """The text names the setting, the file and the right that is missing."""
        text = self.unusable(TrustFiles(ca="/nonexistent/ca.pem", settings=PREFIX))
        self.assertIn(f"{PREFIX}_CA_FILE: /nonexistent/ca.pem cannot be read (No such file or directory)", text)

    def test_disk_hangs(self) -> None:
        """A look at the files that does not come back keeps one thread, however often a connection is tried."""
        calls: list[Any] = []

        def hanging(function: Any) -> Deferred[Any]:
            calls.append(function)
            return Deferred()

        trust = ClientTrust(self.files, hanging)
        first = Deferred.fromCoroutine(trust.refresh())
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertIn("does their disk hang?", str(self.failureResultOf(trust.refresh(), ValueError).value))
        self.assertEqual(len(calls), 1)
        calls[0]()
        Deferred.fromCoroutine(trust.refresh())
        self.assertEqual(len(calls), 2)

    def test_no_certificate(self) -> None:
        """A file without PEM is refused."""
        self.assertIn("holds no certificate in PEM form", self.unusable(TrustFiles(ca=self.write("x", b"hello"))))

    def test_huge_file(self) -> None:
        """Nothing is read without end."""
        path = self.write("x", b"#" * (PEM_BYTES + 1))
        self.assertIn(f"is larger than {PEM_BYTES} bytes", self.unusable(TrustFiles(ca=path)))

    def test_certificate_without_key(self) -> None:
        """Each of the two needs the other."""
        certificate, key = self.ca.issue("identree.example.com")
        path = self.write("client.pem", pem(certificate))
        self.assertIn(f"{PREFIX}_KEY_FILE must name", self.unusable(TrustFiles(certificate=path, settings=PREFIX)))
        path = self.write("client.key", key_pem(key))
        self.assertIn(f"{PREFIX}_CERT_FILE must name", self.unusable(TrustFiles(key=path, settings=PREFIX)))

    def test_other_key(self) -> None:
        """The key must be the certificate's."""
        certificate, _ = self.ca.issue("identree.example.com")
        files = self.identified(pem(certificate), ec.generate_private_key(ec.SECP256R1()))
        self.assertIn("is not the key of the first certificate", self.unusable(files))

    def test_encrypted_key(self) -> None:
        """Nobody is there to type a password; nothing of the key is told."""
        certificate, key = self.ca.issue("identree.example.com")
        encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
        path, key_path = self.write("client.pem", pem(certificate)), self.write("client.key", encrypted)
        text = self.unusable(TrustFiles(certificate=path, key=key_path))
        self.assertIn("holds no unencrypted private key", text)

    def test_follows_files(self) -> None:
        """A CA that is put right is in force after the next look."""
        trust = self.trust(TrustFiles(ca=self.write("ca2.pem", pem(TestCA("another").certificate))))
        self.assertIsInstance(self.meet(trust).problem, Untrusted)
        self.write("ca2.pem", pem(self.ca.certificate))
        os.utime(self.directory / "ca2.pem", (1, 1))
        self.successResultOf(trust.refresh())
        self.assertEqual(self.meet(trust).heard, b"a record")

    def test_reads_only_what_changed(self) -> None:
        """As long as the files stay, nothing is loaded again."""
        trust = self.trust()
        before = trust._context
        self.successResultOf(trust.refresh())
        self.assertIs(trust._context, before)

    def test_broken_renewal(self) -> None:
        """A file that became unusable is told, each time, and what was read before is still there."""
        trust = self.trust()
        self.write("ca.pem", b"half")
        for _ in range(2):
            self.failureResultOf(trust.refresh(), ValueError)
        self.assertEqual(self.meet(trust).heard, b"a record")

    def test_ed25519(self) -> None:
        """Certificates with Ed25519 keys do as well."""
        certificate, key = self.ca.issue("identree.example.com", key=ed25519.Ed25519PrivateKey.generate())
        meeting = self.meet(self.trust(self.identified(pem(certificate), key)), clients=self.ca)
        self.assertEqual(meeting.heard, b"a record")
