"""TLS for clients with certificates: real handshakes in memory, refusals with their reason, files that change."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred, execute
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from identree.ldap.tls import (
    REFUSAL_LOG_SECONDS,
    WORDS,
    ClientAuth,
    ServerConnection,
    ServerTLS,
    TLSFiles,
    peer_name,
    server_certificate,
)
from tests.ldap.certificates import DAY, Meeting, TestCA, key_pem, pem

# Made once for all tests: keys take a while.
CA = TestCA()
FOREIGN = TestCA("foreign")
SERVER = CA.issue("localhost", eku=ExtendedKeyUsageOID.SERVER_AUTH)
GOOD = CA.issue("web1.example.com")

any_reactor: Any = real_reactor


def inline(function: Callable[[], Any]) -> Deferred[Any]:
    return execute(function)


class TLSTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        self.write("server.crt", pem(SERVER[0]))
        self.write("server.key", key_pem(SERVER[1]))
        self.clock = Clock()
        self.refused: list[str] = []
        self.lines: list[str] = []
        self.patch(ServerTLS, "_log", Logger(observer=lambda event: self.lines.append(formatEvent(event))))

    def write(self, name: str, content: bytes) -> str:
        """As a renewal does: a new file in the place of the old one."""
        path = self.path / name
        fresh = path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.rename(path)
        return str(path)

    def tls(
        self,
        client_auth: ClientAuth = ClientAuth.REQUIRED,
        authorities: tuple[x509.Certificate, ...] = (CA.certificate,),
        **more: Any,
    ) -> ServerTLS:
        files = {name: more.pop(name) for name in ("ca", "crl") if name in more}
        return ServerTLS(
            "LDAPS",
            TLSFiles(certificate=str(self.path / "server.crt"), key=str(self.path / "server.key"), **files),
            client_auth=client_auth,
            authorities=lambda: authorities,
            refused=self.refused.append,
            in_thread=inline,
            now=lambda: datetime.now(UTC),
            monotonic=self.clock.seconds,
            **more,
        )

    def refresh(self, tls: ServerTLS) -> bool:
        return self.successResultOf(Deferred.fromCoroutine(tls.refresh()))

    def assert_refused(self, meeting: Meeting, reason: str) -> None:
        self.assertEqual((meeting.answer, self.refused), (b"", [reason]))
        self.assertEqual(self.lines, [f"TLS_REJECTED LDAPS client 192.0.2.7: {WORDS[reason]}"])


class HandshakeTests(TLSTestCase):
    def test_good(self) -> None:
        """A certificate of the CA opens the connection and names the host, in both versions."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            meeting = Meeting(self.tls(), GOOD, versions=(version, version))
            self.assertEqual((meeting.answer, meeting.error), (b"hello client", None))
            self.assertEqual(peer_name(meeting.server), "web1.example.com")
        self.assertEqual((self.refused, self.lines), ([], []))

    def test_no_certificate(self) -> None:
        """None at all is refused, in both versions."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            self.refused.clear()
            self.lines.clear()
            self.assert_refused(Meeting(self.tls(), versions=(version, version)), "no_certificate")

    def test_expired(self) -> None:
        """One that has expired."""
        self.assert_refused(Meeting(self.tls(), CA.issue("web1", begins=-2 * DAY, ends=-DAY)), "expired")

    def test_not_yet_valid(self) -> None:
        """One of tomorrow."""
        self.assert_refused(Meeting(self.tls(), CA.issue("web1", begins=DAY, ends=2 * DAY)), "not_yet_valid")

    def test_foreign_ca(self) -> None:
        """One of another CA."""
        self.assert_refused(Meeting(self.tls(), FOREIGN.issue("web1")), "foreign_ca")

    def test_namesake_ca(self) -> None:
        """One of another CA that has the same name."""
        self.assert_refused(Meeting(self.tls(), TestCA().issue("web1")), "foreign_ca")

    def test_public_ca(self) -> None:
        """The system's authorities mean nothing here: only the ones that are named do."""
        meeting = Meeting(self.tls(authorities=(FOREIGN.certificate,)), GOOD)
        self.assert_refused(meeting, "foreign_ca")

    def test_wrong_purpose(self) -> None:
        """A certificate for servers is none for clients."""
        self.assert_refused(Meeting(self.tls(), SERVER), "wrong_purpose")

    def test_old_protocol(self) -> None:
        """TLS 1.1 is refused, and said."""
        old = (SSL.TLS1_1_VERSION, SSL.TLS1_1_VERSION)
        self.assert_refused(Meeting(self.tls(), GOOD, versions=old), "protocol_too_old")

    def test_no_tls(self) -> None:
        """Somebody who speaks plain LDAP to the TLS port."""
        meeting = Meeting(self.tls(), GOOD)
        self.assertEqual(self.refused, [])
        transport = meeting.transport
        server = meeting.server.factory.buildProtocol(transport.getPeer())
        server.makeConnection(transport)
        server.dataReceived(bytes.fromhex("300c020101600702010304008000"))
        self.assertEqual(self.refused, ["no_tls"])

    def test_client_refuses(self) -> None:
        """A client that does not trust the server's certificate: the log says whose fault it is."""
        self.assert_refused(Meeting(self.tls(), GOOD, trust=FOREIGN.certificate), "refused_by_client")

    def test_without_extended_usage(self) -> None:
        """A certificate that is not narrowed to a purpose serves any, as RFC 5280 has it."""
        self.assertEqual(Meeting(self.tls(), CA.issue("web1", eku=None)).answer, b"hello client")

    def test_intermediate_as_authority(self) -> None:
        """An authority that itself stands below another one is enough."""
        root, middle = TestCA("root"), TestCA("middle")
        middle.certificate, _ = root.issue("", subject=middle.name, key=middle.key, ca=True, eku=None)
        meeting = Meeting(self.tls(authorities=(middle.certificate,)), middle.issue("web1"))
        self.assertEqual(meeting.answer, b"hello client")

    def test_no_resumption(self) -> None:
        """No session can be taken up again: its certificate might be revoked by then."""
        self.write("client.pem", pem(GOOD[0]) + key_pem(GOOD[1]))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(self.path / "client.pem")
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context.maximum_version = version
            tls = self.tls()
            first = self.meet(context, tls, None)
            self.assertEqual(first.version(), version.name.replace("_", "."))
            again = self.meet(context, tls, first.session)
            self.assertIs(again.session_reused, False)
        self.assertEqual(self.refused, [])

    def meet(self, context: ssl.SSLContext, tls: ServerTLS, session: ssl.SSLSession | None) -> ssl.SSLObject:
        """The standard library's client, which knows whether a session was taken up again."""
        server = tls.serverConnectionForTLS(None)
        server.set_accept_state()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, session=session)
        for _ in range(5):
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
                client.read(1)
            if outgoing.pending:
                server.bio_write(outgoing.read())
            with contextlib.suppress(SSL.WantReadError):
                server.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                incoming.write(server.bio_read(1 << 16))
        return client


class OptionalTests(TLSTestCase):
    def test_none(self) -> None:
        """No certificate is fine; the client then has no name."""
        meeting = Meeting(self.tls(ClientAuth.OPTIONAL))
        self.assertEqual((meeting.answer, peer_name(meeting.server)), (b"hello client", ""))

    def test_good(self) -> None:
        """One that is shown counts."""
        self.assertEqual(peer_name(Meeting(self.tls(ClientAuth.OPTIONAL), GOOD).server), "web1.example.com")

    def test_bad(self) -> None:
        """One that is shown and bad is refused."""
        self.assert_refused(Meeting(self.tls(ClientAuth.OPTIONAL), FOREIGN.issue("web1")), "foreign_ca")

    def test_no_authority(self) -> None:
        """Without a CA nobody is asked, and a certificate that is there anyway names nobody."""
        meeting = Meeting(self.tls(ClientAuth.OPTIONAL, ()), GOOD)
        self.assertEqual((meeting.answer, peer_name(meeting.server)), (b"hello client", ""))

    def test_not_wanted(self) -> None:
        """Nor does it where certificates are not wanted at all."""
        meeting = Meeting(self.tls(ClientAuth.NONE), GOOD)
        self.assertEqual((meeting.answer, peer_name(meeting.server)), (b"hello client", ""))


class NameTests(TLSTestCase):
    def test_common_name(self) -> None:
        """Without alternative names the common name counts."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cn.example.com")])
        shown = CA.issue("san.example.com", subject=name)
        self.assertEqual(peer_name(Meeting(self.tls(), shown).server), "san.example.com")

    def test_two_hosts(self) -> None:
        """Each connection has its own name, whoever connected before."""
        tls = self.tls()
        meetings = [Meeting(tls, CA.issue(name)) for name in ("web1", "web2")]
        self.assertEqual([peer_name(meeting.server) for meeting in meetings], ["web1", "web2"])

    def test_before_the_handshake(self) -> None:
        """Until the handshake is over nobody has a name."""
        meeting = Meeting(self.tls(), GOOD)
        transport = meeting.transport
        server = meeting.server.factory.buildProtocol(transport.getPeer())
        server.makeConnection(transport)
        self.assertEqual(peer_name(server), "")

    def test_plain(self) -> None:
        """A connection without TLS has none either."""
        self.assertEqual((peer_name(StringTransport()), peer_name(None)), ("", ""))


class IdentityTests(TLSTestCase):
    """One CA makes hosts, another one, perhaps a public one, is trusted as well."""

    def both(self, client_auth: ClientAuth = ClientAuth.REQUIRED, **more: Any) -> ServerTLS:
        both = {"authorities": (FOREIGN.certificate, CA.certificate), "identifying": lambda: (CA.certificate,)}
        return self.tls(client_auth, **{**both, **more})

    def test_host(self) -> None:
        """A certificate of the CA that makes hosts names one, in both versions of the protocol."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            meeting = Meeting(self.both(), GOOD, versions=(version, version))
            self.assertEqual((meeting.answer, peer_name(meeting.server)), (b"hello client", "web1.example.com"))

    def test_nobody(self) -> None:
        """One of the other CA opens the connection, and names nobody, whatever host it is made out to."""
        for client_auth in (ClientAuth.REQUIRED, ClientAuth.OPTIONAL):
            meeting = Meeting(self.both(client_auth), FOREIGN.issue("web1.example.com"))
            self.assertEqual((meeting.answer, peer_name(meeting.server)), (b"hello client", ""))

    def test_everybody(self) -> None:
        """Unless told apart, all CAs that are accepted make hosts."""
        meeting = Meeting(self.both(identifying=None), FOREIGN.issue("web1.example.com"))
        self.assertEqual(peer_name(meeting.server), "web1.example.com")

    def test_none(self) -> None:
        """Where no CA makes hosts, nobody is one."""
        self.assertEqual(peer_name(Meeting(self.both(identifying=tuple), GOOD).server), "")

    def test_itself(self) -> None:
        """The CA's own certificate is no host's."""
        self.assertEqual(peer_name(Meeting(self.both(), (CA.certificate, CA.key)).server), "")

    def test_namesake(self) -> None:
        """Another CA with the same name makes no hosts."""
        namesake = TestCA()
        meeting = Meeting(self.both(authorities=(namesake.certificate,)), namesake.issue("web1"))
        self.assertEqual((meeting.answer, peer_name(meeting.server)), (b"hello client", ""))

    def test_below(self) -> None:
        """The CA that makes hosts may stand below the trusted one, whose own certificates still name nobody."""
        middle = TestCA("middle")
        middle.certificate, _ = CA.issue("", subject=middle.name, key=middle.key, ca=True, eku=None)
        tls = self.tls(authorities=(middle.certificate, CA.certificate), identifying=lambda: (middle.certificate,))
        self.assertEqual(peer_name(Meeting(tls, middle.issue("web1")).server), "web1")
        self.assertEqual(peer_name(Meeting(tls, GOOD).server), "")

    def test_sent_along(self) -> None:
        """The certificate of the right CA, sent along with one of the wrong CA, proves nothing."""
        tls = self.both()
        shown, key = FOREIGN.issue("web1")
        self.write("client.pem", pem(shown, CA.certificate) + key_pem(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(self.path / "client.pem")
        server = tls.serverConnectionForTLS(None)
        server.set_accept_state()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing)
        for _ in range(5):
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            if outgoing.pending:
                server.bio_write(outgoing.read())
            with contextlib.suppress(SSL.WantReadError):
                server.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                incoming.write(server.bio_read(1 << 16))
        assert isinstance(server, ServerConnection)
        # a server's chain is without the client's own
        self.assertEqual(server.get_peer_cert_chain(as_cryptography=True), [CA.certificate])
        self.assertEqual(server.peer_name, "")

    def test_followed(self) -> None:
        """A CA that is renewed makes hosts from then on."""
        making = [FOREIGN.certificate]
        tls = self.both(identifying=lambda: tuple(making))
        self.assertEqual(peer_name(Meeting(tls, GOOD).server), "")
        making.append(CA.certificate)
        self.assertIs(self.refresh(tls), True)
        self.assertEqual(peer_name(Meeting(tls, GOOD).server), "web1.example.com")

    def test_watched(self) -> None:
        """A certificate that names nobody ends its connection all the same when it is revoked."""
        shown = FOREIGN.issue("web1")
        tls = self.both(crl=self.write("ca.crl", FOREIGN.revoke()))
        meeting = Meeting(tls, shown)
        self.write("ca.crl", FOREIGN.revoke(shown[0]))
        self.refresh(tls)
        self.assertEqual(tls.spoiled(meeting.server), "revoked")


class RevocationTests(TLSTestCase):
    def test_revoked(self) -> None:
        """A revoked certificate is refused, another one is not."""
        tls = self.tls(crl=self.write("ca.crl", CA.revoke(GOOD[0])))
        self.assertEqual(Meeting(tls, CA.issue("web2")).answer, b"hello client")
        self.assert_refused(Meeting(tls, GOOD), "revoked")

    def test_followed(self) -> None:
        """A new list counts for the connections after it."""
        tls = self.tls(crl=self.write("ca.crl", CA.revoke()))
        self.assertEqual(Meeting(tls, GOOD).answer, b"hello client")
        self.write("ca.crl", CA.revoke(GOOD[0]))
        self.assertIs(self.refresh(tls), True)
        self.assertEqual((Meeting(tls, GOOD).answer, self.refused), (b"", ["revoked"]))

    def test_of_another_ca(self) -> None:
        """A serial number is revoked only for the issuer of the list."""
        other = CA.issue("web2")
        lists = CA.revoke() + FOREIGN.revoke(GOOD[0])
        tls = self.tls(authorities=(CA.certificate, FOREIGN.certificate), crl=self.write("ca.crl", lists))
        self.assertEqual(Meeting(tls, other).answer, b"hello client")
        self.assertEqual(Meeting(tls, GOOD).answer, b"hello client")

    def test_overdue(self) -> None:
        """A list past its time still revokes, and the operator is told that it is old."""
        tls = self.tls(crl=self.write("ca.crl", CA.revoke(GOOD[0], ends=-DAY)))
        self.assertIn("was to be replaced by", self.lines[0])
        self.assertEqual(Meeting(tls, CA.issue("web2")).answer, b"hello client")
        Meeting(tls, GOOD)
        self.assertEqual(self.refused, ["revoked"])

    def test_forged(self) -> None:
        """A list that the CA has not signed stops the start; later, the last good one stays in force."""
        path = self.write("ca.crl", CA.revoke(GOOD[0]))
        tls = self.tls(crl=path)
        self.write("ca.crl", TestCA().revoke())
        self.assertIs(self.refresh(tls), False)
        Meeting(tls, GOOD)
        self.assertEqual(self.refused, ["revoked"])
        said = str(self.assertRaises(ValueError, self.tls, crl=path))
        self.assertIn("IDENTREE_MTLS_CRL_FILE", said)
        self.assertIn("none of the CAs of clients has signed", said)

    def test_gone(self) -> None:
        """The loss of the list does not un-revoke anything."""
        tls = self.tls(crl=self.write("ca.crl", CA.revoke(GOOD[0])))
        (self.path / "ca.crl").unlink()
        self.assertIs(self.refresh(tls), False)
        Meeting(tls, GOOD)
        self.assertEqual(self.refused, ["revoked"])

    def test_rubbish(self) -> None:
        """A file that holds no list stops the start."""
        for content in (b"rubbish", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"):
            said = str(self.assertRaises(ValueError, self.tls, crl=self.write("ca.crl", content)))
            self.assertIn("IDENTREE_MTLS_CRL_FILE", said)


class OpenConnectionTests(TLSTestCase):
    def test_well(self) -> None:
        """Nothing is wrong with a good certificate, with none, and without TLS."""
        tls = self.tls(ClientAuth.OPTIONAL, crl=self.write("ca.crl", CA.revoke()))
        for transport in (Meeting(tls, GOOD).server, Meeting(tls).server, StringTransport()):
            self.assertEqual(tls.spoiled(transport), "")

    def test_revoked_since(self) -> None:
        """A certificate that was revoked after its owner came."""
        tls = self.tls(crl=self.write("ca.crl", CA.revoke()))
        meeting = Meeting(tls, GOOD)
        self.write("ca.crl", CA.revoke(GOOD[0]))
        self.refresh(tls)
        self.assertEqual(tls.spoiled(meeting.server), "revoked")

    def test_expired_since(self) -> None:
        """One that has come to its end."""
        tls = self.tls()
        meeting = Meeting(tls, GOOD)
        tls._now = lambda: datetime.now(UTC) + 2 * DAY
        self.assertEqual(tls.spoiled(meeting.server), "expired")


class ReloadTests(TLSTestCase):
    def shown(self, tls: ServerTLS) -> x509.Certificate | None:
        return Meeting(tls, GOOD).client.get_peer_certificate(as_cryptography=True)

    def test_unchanged(self) -> None:
        """Without a change nothing is read."""
        self.assertIs(self.refresh(self.tls()), False)

    def test_renewed(self) -> None:
        """A renewed pair is used for new connections; open ones go on."""
        tls = self.tls()
        before = Meeting(tls, GOOD)
        renewed = CA.issue("localhost", eku=ExtendedKeyUsageOID.SERVER_AUTH)
        self.write("server.crt", pem(renewed[0]))
        self.write("server.key", key_pem(renewed[1]))
        self.assertIs(self.refresh(tls), True)
        self.assertEqual(self.shown(tls), renewed[0])
        before.client.send(b" again")
        before._run()
        self.assertEqual(before.answer, b"hello clienthello  again")

    def test_half_renewed(self) -> None:
        """Half a renewal keeps the old pair, says so once, and the other half completes it."""
        tls = self.tls()
        renewed = CA.issue("localhost", eku=ExtendedKeyUsageOID.SERVER_AUTH)
        self.write("server.crt", pem(renewed[0]))
        self.assertEqual([self.refresh(tls), self.refresh(tls)], [False, False])
        self.assertEqual(self.shown(tls), SERVER[0])
        self.assertEqual([line for line in self.lines if "is not the key of" in line], self.lines)
        self.assertEqual(len(self.lines), 1)
        self.write("server.key", key_pem(renewed[1]))
        self.assertIs(self.refresh(tls), True)
        self.assertEqual(self.shown(tls), renewed[0])

    def test_authority_file(self) -> None:
        """The file of the CA is followed."""
        tls = self.tls(authorities=(), ca=self.write("ca.crt", pem(FOREIGN.certificate)))
        self.assertEqual(Meeting(tls, GOOD).answer, b"")
        self.write("ca.crt", pem(CA.certificate))
        self.assertIs(self.refresh(tls), True)
        self.assertEqual(Meeting(tls, GOOD).answer, b"hello client")

    def test_authorities(self) -> None:
        """So is the CA that issues certificates itself."""
        present = [FOREIGN.certificate]
        tls = self.tls()
        tls._authorities = lambda: tuple(present)
        self.refresh(tls)
        self.assertEqual(Meeting(tls, GOOD).answer, b"")
        present.append(CA.certificate)
        self.assertIs(self.refresh(tls), True)
        self.assertEqual(Meeting(tls, GOOD).answer, b"hello client")

    def test_touched(self) -> None:
        """A file that is written again with the same content does no harm."""
        tls = self.tls()
        os.utime(self.path / "server.crt", (1, 1))
        self.assertIs(self.refresh(tls), True)
        self.assertEqual(self.shown(tls), SERVER[0])


class StartTests(TLSTestCase):
    def test_no_authority(self) -> None:
        """To require certificates without a CA would shut out everybody: the start says what to set."""
        said = str(self.assertRaises(ValueError, self.tls, authorities=()))
        self.assertIn("IDENTREE_LDAP_TLS_CLIENT_AUTH=optional", said)

    def test_expired_server(self) -> None:
        """An expired certificate of our own is used, and told."""
        certificate, key = CA.issue("localhost", begins=-2 * DAY, ends=-timedelta(hours=1))
        self.write("server.crt", pem(certificate))
        self.write("server.key", key_pem(key))
        self.tls()
        self.assertIn("has expired; clients will refuse it", self.lines[0])

    def test_chain(self) -> None:
        """The whole chain of the file is sent."""
        self.write("server.crt", pem(SERVER[0], CA.certificate))
        chain = Meeting(self.tls(), GOOD).client.get_peer_cert_chain(as_cryptography=True)
        self.assertEqual(chain, [SERVER[0], CA.certificate])

    def test_files(self) -> None:
        """Each unusable file is named with its setting."""
        certificate, key = str(self.path / "server.crt"), str(self.path / "server.key")
        rubbish = self.write("rubbish", b"rubbish")
        for pair, said in (
            (("/none.pem", key), "IDENTREE_TLS_CERT_FILE: /none.pem cannot be read"),
            ((certificate, "/none.key"), "IDENTREE_TLS_KEY_FILE: /none.key cannot be read"),
            ((rubbish, key), "holds no certificate in PEM form"),
            ((certificate, rubbish), "holds no unencrypted private key in PEM form"),
        ):
            self.assertIn(said, str(self.assertRaises(ValueError, server_certificate, *pair)))


class LogTests(TLSTestCase):
    def test_rate(self) -> None:
        """A host that fails again and again is counted each time and logged once in ten minutes."""
        tls = self.tls()
        for _ in range(3):
            Meeting(tls)
        self.assertEqual((len(self.refused), len(self.lines)), (3, 1))
        self.clock.advance(REFUSAL_LOG_SECONDS)
        Meeting(tls)
        self.assertEqual((len(self.refused), len(self.lines)), (4, 2))

    def test_others(self) -> None:
        """Another host, and another reason, have lines of their own."""
        tls = self.tls()
        Meeting(tls)
        Meeting(tls, peer="192.0.2.8")
        Meeting(tls, FOREIGN.issue("web1"))
        self.assertEqual(len(self.lines), 3)


class StartTLSTests(TLSTestCase, TestCase):
    """Over a real connection: only there can a transport begin TLS."""

    async def test_start(self) -> None:
        """A connection that begins TLS has no name before, and the client's afterwards."""
        tls, names = self.tls(), []

        class Starting(Protocol):
            transport: Any

            def dataReceived(self, data: bytes) -> None:
                names.append(peer_name(self.transport))
                if data == b"start":
                    self.transport.write(b"ready")
                    self.transport.startTLS(tls)
                else:
                    self.transport.write(data)

        port = any_reactor.listenTCP(0, Factory.forProtocol(Starting), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.write("client.pem", pem(GOOD[0]) + key_pem(GOOD[1]))

        def talk() -> bytes:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.load_cert_chain(self.path / "client.pem")
            with socket.create_connection(("127.0.0.1", port.getHost().port), timeout=10) as plain:
                plain.sendall(b"start")
                self.assertEqual(plain.recv(100), b"ready")
                with context.wrap_socket(plain) as channel:
                    channel.sendall(b"hello")
                    return channel.recv(100)

        self.assertEqual(await deferToThread(talk), b"hello")
        self.assertEqual(names, ["", "web1.example.com"])


class NegotiationTests(TLSTestCase):
    def test_http(self) -> None:
        """What both speak is agreed on; a client that offers only others gets none, and goes on."""
        tls = self.tls(protocols=(b"http/1.1",))
        agreed = Meeting(tls, GOOD, protocols=[b"h2", b"http/1.1"]).client.get_alpn_proto_negotiated()
        other = Meeting(tls, GOOD, protocols=[b"h2"])
        self.assertEqual((agreed, other.answer), (b"http/1.1", b"hello client"))
