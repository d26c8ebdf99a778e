"""Certificates of every kind that a TLS listener may meet, and a client without a network."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from identree.ldap.tls import ServerTLS

DAY = timedelta(days=1)
PEER = "192.0.2.7"


class TestCA:
    """An authority of tests. OpenSSL knows only the real time, so certificates are made around it."""

    __test__ = False

    def __init__(self, name: str = "tests") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate, _ = self.issue("", subject=self.name, key=self.key, ca=True, eku=None)

    def issue(
        self,
        hostname: str,
        *,
        subject: x509.Name | None = None,
        key: Any = None,
        ca: bool = False,
        eku: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.CLIENT_AUTH,
        begins: timedelta = -DAY,
        ends: timedelta = DAY,
    ) -> tuple[x509.Certificate, Any]:
        """:param begins, ends: from now."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject or x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname)]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
        )
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        else:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=False)
        if eku is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([eku]), critical=False)
        return builder.sign(self.key, SHA256()), key

    def revoke(self, *certificates: x509.Certificate, ends: timedelta = DAY) -> bytes:
        """A revocation list in PEM."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name)
        builder = builder.last_update(now - 2 * DAY).next_update(now + ends)
        for certificate in certificates:
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, SHA256()).public_bytes(Encoding.PEM)


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def key_pem(key: Any) -> bytes:
    raw: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return raw


class Greeter(Protocol):
    """Says a word as soon as somebody has spoken."""

    ended: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"hello " + data)

    def connectionLost(self, reason: Any = None) -> None:
        self.ended = reason


class Wire(StringTransport):
    """With what a web server asks of a TCP connection."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """There is no network."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """See above."""


class Meeting:
    """
    A client and a TLS server in memory.

    :ivar error: what the client's side ended with, None while all is well.
    :ivar answer: what the server said.
    """

    def __init__(
        self,
        tls: ServerTLS,
        shown: tuple[x509.Certificate, Any] | None = None,
        *,
        versions: tuple[int, int] | None = None,
        protocols: list[bytes] | None = None,
        trust: x509.Certificate | None = None,
        peer: str = PEER,
        factory: Any = None,
        says: bytes = b"client",
    ) -> None:
        """
        :param shown: the client's certificate and key.
        :param trust: what the client trusts; None: anything.
        :param factory: of the server's protocol, by default one that greets.
        """
        self._says = says
        greeting = Factory.forProtocol(Greeter)
        # a site without connections is false
        factory = TLSMemoryBIOFactory(tls, False, greeting if factory is None else factory, Clock())
        self.clock: Any = factory._clock
        self.transport = Wire(peerAddress=IPv4Address("TCP", peer, 40000))
        self.server: Any = factory.buildProtocol(self.transport.getPeer())
        self.server.makeConnection(self.transport)
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        if versions is not None:
            context.set_min_proto_version(versions[0])
            context.set_max_proto_version(versions[1])
        if shown is not None:
            context.use_certificate(shown[0])
            context.use_privatekey(shown[1])
        if protocols:
            context.set_alpn_protos(protocols)
        if trust is not None:
            store = context.get_cert_store()
            assert store is not None
            store.add_cert(crypto.X509.from_cryptography(trust))
            context.set_verify(SSL.VERIFY_PEER, None)
        if versions is not None and versions[1] < SSL.TLS1_2_VERSION:
            context.set_cipher_list(b"ALL:@SECLEVEL=0")
        self.client = SSL.Connection(context, None)
        self.client.set_connect_state()
        self.error: SSL.Error | None = None
        self.answer = b""
        self._spoken = False
        self._run()

    def _run(self) -> None:
        for _ in range(20):
            self._client_step()
            try:
                sent = self.client.bio_read(1 << 16)
            except SSL.WantReadError:
                sent = b""
            if sent and not self.transport.disconnecting:
                self.server.dataReceived(sent)
            self.clock.advance(1)
            came = self.transport.value()
            self.transport.clear()
            if came:
                self.client.bio_write(came)
            if not sent and not came:
                break

    def _client_step(self) -> None:
        if self.error is not None:
            return
        try:
            if not self._spoken:
                self.client.do_handshake()
                self.client.send(self._says)
                self._spoken = True
            self.answer += self.client.recv(1 << 16)
        except SSL.WantReadError:
            pass
        except SSL.Error as e:
            self.error = e
