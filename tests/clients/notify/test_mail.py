"""Mail through a real SMTP server on loopback: TLS, authentication, refusals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from io import BytesIO
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal
from twisted.internet import reactor
from twisted.internet.defer import succeed
from twisted.internet.endpoints import HostnameEndpoint, SSL4ServerEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, PrivateCertificate, trustRootFromCertificates
from twisted.mail.imap4 import LOGINCredentials, PLAINCredentials
from twisted.mail.smtp import ESMTP, IMessage, IMessageDelivery, SMTPBadRcpt, SMTPServerError
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from identree.app.ports import DeliveryFailed
from identree.clients.notify.mail import Mailer
from identree.core.notices import Channel
from tests.clients.notify.test_payloads import HOSTILE, RICH

SECRET = b"mail-secret"


def certificate() -> PrivateCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return PrivateCertificate.loadPEM(pem)


@implementer(IMessage)
class Kept:
    def __init__(self, box: Box) -> None:
        self._box, self._lines = box, BytesIO()

    def lineReceived(self, line: bytes) -> None:
        self._lines.write(line + b"\r\n")

    def eomReceived(self) -> Any:
        self._box.mails.append(self._lines.getvalue())
        return succeed(b"kept")

    def connectionLost(self) -> None: ...


@implementer(IMessageDelivery)
class Box:
    """:ivar refusal: what recipients are answered with."""

    def __init__(self) -> None:
        self.mails: list[bytes] = []
        self.recipients: list[bytes] = []
        self.secured: list[bool] = []
        self.refusal: int = 0

    def receivedHeader(self, helo: Any, origin: Any, recipients: Any) -> bytes:
        return b"Received: from a test"

    def validateFrom(self, helo: Any, origin: Any) -> Any:
        return origin

    def validateTo(self, user: Any) -> Any:
        if self.refusal:
            if self.refusal >= 500:
                raise SMTPBadRcpt(user, self.refusal)
            raise SMTPServerError(self.refusal, "try later")
        self.recipients.append(bytes(user.dest.local) + b"@" + bytes(user.dest.domain))
        return lambda: Kept(self)

    # cred's realm: everybody who is let in gets the same box
    def requestAvatar(self, avatarId: Any, mind: Any, *interfaces: Any) -> Any:
        return IMessageDelivery, self, lambda: None


class MailTests(TestCase):
    async def start(self, *, tls: bool = True, implicit: bool = False, auth: bool = True) -> Channel:
        self.box = Box()
        self.certificate = certificate()
        portal = Portal(self.box)
        if auth:
            checker = InMemoryUsernamePasswordDatabaseDontUse()
            checker.addUser(b"bot", SECRET)
            portal.registerChecker(checker)
        context = self.certificate.options()
        ways = {b"LOGIN": LOGINCredentials, b"PLAIN": PLAINCredentials} if auth else {}

        def protocol() -> ESMTP:
            server = ESMTP(chal=ways, contextFactory=context if tls and not implicit else None)
            server.host = b"localhost"
            server.portal = portal
            server.delivery = None if auth else self.box
            return server

        factory = Factory.forProtocol(protocol)
        if implicit:
            endpoint: Any = SSL4ServerEndpoint(reactor, 0, context, interface="127.0.0.1")
        else:
            endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        port = await endpoint.listen(factory)
        self.addCleanup(port.stopListening)
        scheme = "smtps" if implicit else "smtp"
        user = "bot@" if auth else ""
        return Channel(
            name="mail",
            backend="email",
            url=f"{scheme}://{user}localhost:{port.getHost().port}",
            token=SECRET.decode() if auth else "",
            sender="identree@identree.example",
            to=("ops@b.example",),
        )

    def mailer(self) -> Mailer:
        return Mailer(
            reactor,
            lambda host, port: HostnameEndpoint(reactor, b"127.0.0.1", port),
            domain="identree.example",
            now=lambda: datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
            trust=trustRootFromCertificates([Certificate.loadPEM(self.certificate.dumpPEM())]),
        )

    async def send(self, channel: Channel, notice: Any = RICH, **more: Any) -> str:
        return await self.mailer().send(channel, notice, seconds=20, **more)

    async def failed(self, channel: Channel) -> DeliveryFailed:
        try:
            await self.send(channel)
        except DeliveryFailed as e:
            return e
        except Exception as e:
            return DeliveryFailed(f"{type(e).__name__}: {e}")
        raise AssertionError("it was sent")

    async def test_starttls(self) -> None:
        """The connection is secured, then the account is named, then the mail goes, whole."""
        channel = await self.start()
        id = await self.send(channel, HOSTILE)
        [raw] = self.box.mails
        mail = message_from_bytes(raw, policy=default)
        self.assertEqual((self.box.recipients, mail["Message-ID"]), ([b"ops@b.example"], id))
        self.assertNotIn(b"\r\r\n", raw)
        self.assertEqual([part.get_content_type() for part in mail.iter_parts()], ["text/plain", "text/html"])

    async def test_implicit(self) -> None:
        """A server that begins with TLS."""
        await self.send(await self.start(implicit=True))
        self.assertEqual(len(self.box.mails), 1)

    async def test_reply(self) -> None:
        """A later mail about the same request answers the first one, and keeps its name."""
        channel = await self.start()
        id = await self.send(channel)
        self.assertEqual(await self.send(channel, previous=id), id)
        self.assertEqual(message_from_bytes(self.box.mails[1], policy=default)["In-Reply-To"], id)

    async def test_no_tls(self) -> None:
        """A server without TLS gets neither mail nor password."""
        channel = await self.start(tls=False)
        await self.failed(channel)
        self.assertEqual(self.box.mails, [])

    async def test_unknown_certificate(self) -> None:
        """Nor does one whose certificate nobody vouches for."""
        channel = await self.start()
        self.certificate = certificate()
        await self.failed(channel)
        self.assertEqual(self.box.mails, [])

    async def test_wrong_password(self) -> None:
        """A refused account is said without the password."""
        channel = await self.start()
        failure = await self.failed(
            Channel(**{name: getattr(channel, name) for name in channel.__slots__} | {"token": "wr0ng"})
        )
        self.assertNotIn("wr0ng", str(failure))
        self.assertEqual(self.box.mails, [])

    async def test_refused(self) -> None:
        """A 5xx is final, a 4xx is not."""
        channel = await self.start()
        for code, permanent in ((550, True), (451, False)):
            self.box.refusal = code
            failure = await self.failed(channel)
            self.assertEqual((failure.permanent, str(code) in str(failure)), (permanent, True), str(failure))

    async def test_incomplete(self) -> None:
        """A channel without recipients or with an odd address fails for good."""
        await self.start()
        for channel in (
            Channel(name="m", backend="email", url="smtp://localhost:1"),
            Channel(name="m", backend="email", url="https://localhost", to=("a@b.example",)),
        ):
            self.assertTrue((await self.failed(channel)).permanent)
