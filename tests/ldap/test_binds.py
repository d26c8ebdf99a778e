"""Binds on the wire: their answers, and what a connection is afterwards."""

from ldaptor.protocols import pureldap
from twisted.trial.unittest import SynchronousTestCase

from tests.ldap.harness import SERVICE, Client, World, code, host_dn, names, search

PASSWORD_POLICY = (b"1.3.6.1.4.1.42.2.27.8.5.1", None, None)


def external(authorization: bytes = b"") -> pureldap.LDAPBindRequest:
    return pureldap.LDAPBindRequest(3, b"", (b"EXTERNAL", authorization), sasl=True)


class BindTests(SynchronousTestCase):
    def found(self, client: Client) -> int:
        """How many entries a search gives, or minus its code."""
        answers = client.ask(search())
        return -code(answers) or len(names(answers))

    def test_results(self) -> None:
        """The codes of the specification, without text and matched DN."""
        client = World().connect()
        for dn, password, expected in (
            ("", b"x", 53),
            ("", b"", 50),
            (SERVICE, b"the right one", 0),
            (SERVICE, b"wrong", 49),
            (SERVICE, b"", 49),
            ("cn=nobody", b"x", 49),
            (host_dn("web1"), b"x", 49),
        ):
            [answer] = client.ask(pureldap.LDAPBindRequest(3, dn.encode(), password))
            self.assertIsInstance(answer.value, pureldap.LDAPBindResponse)
            self.assertEqual(answer.value.resultCode, expected, dn)
            self.assertEqual((answer.value.matchedDN, answer.value.errorMessage), (b"", b""))

    def test_as_sssd(self) -> None:
        """sssd's bind carries the password policy control, which needs no answer."""
        client = World().connect()
        [answer] = client.ask(pureldap.LDAPBindRequest(3, SERVICE.encode(), b"the right one"), [PASSWORD_POLICY])
        self.assertEqual((answer.value.resultCode, answer.controls), (0, None))

    def test_version(self) -> None:
        """LDAPv2 is a protocolError, and binds nobody."""
        client = World().bound()
        self.assertEqual(client.bind(version=2), 2)
        self.assertEqual(self.found(client), -50)

    def test_sasl(self) -> None:
        """Other mechanisms are not supported."""
        client = World().connect()
        answers = client.ask(pureldap.LDAPBindRequest(3, b"", (b"DIGEST-MD5", b"x"), sasl=True))
        self.assertEqual(code(answers), 7)

    def test_failed_again(self) -> None:
        """A failed bind after a good one leaves the connection anonymous."""
        client = World().bound()
        self.assertEqual(self.found(client), 1)
        client.bind(password=b"wrong")
        self.assertEqual(self.found(client), -50)

    def test_anonymous_again(self) -> None:
        """So does an anonymous one, and a refused one."""
        world = World()
        client = world.bound()
        client.bind("", b"")
        self.assertEqual(self.found(client), -50)

    def test_undecodable_again(self) -> None:
        """And one that is no bind ends the connection."""
        client = World().bound()
        client.feed(bytes.fromhex("300c020105 6007020103 0400 8600".replace(" ", "")))
        self.assertTrue(client.over)

    def test_limit(self) -> None:
        """Longer messages are taken after a bind, and no longer after a failed one."""
        client = World().bound()
        long = pureldap.LDAPDelRequest(b"x" * 100_000)
        self.assertEqual(code(client.ask(long)), 53)
        client.bind(password=b"wrong")
        self.assertEqual(client.ask(long)[-1].id, 0)
        self.assertTrue(client.over)

    def test_host(self) -> None:
        """A host binds with its derived password."""
        client = World().connect()
        self.assertEqual(client.bind_host("web1.example.com"), 0)
        self.assertEqual(self.found(client), 1)

    def test_certificate(self) -> None:
        """The certificate of this connection counts, not one that was seen on another."""
        world = World()
        world.certificate = "web1"
        web1 = world.connect(tls=True)
        web1.connection.handshakeCompleted()
        world.certificate = "db1"
        db1 = world.connect(tls=True)
        db1.connection.handshakeCompleted()
        self.assertEqual((web1.bind(host_dn("web1"), b""), db1.bind(host_dn("web1"), b"")), (0, 49))

    def test_certificate_alone(self) -> None:
        """A certificate without a bind opens nothing."""
        world = World()
        world.certificate = "web1"
        client = world.connect(tls=True)
        client.connection.handshakeCompleted()
        self.assertEqual(self.found(client), -50)

    def test_external(self) -> None:
        """SASL EXTERNAL makes it an identity."""
        world = World()
        world.certificate = "web1"
        client = world.connect(tls=True)
        client.connection.handshakeCompleted()
        self.assertEqual(code(client.ask(external())), 0)
        self.assertEqual(self.found(client), 1)
        who = pureldap.LDAPExtendedRequest(requestName=b"1.3.6.1.4.1.4203.1.11.3")
        self.assertEqual(client.ask(who)[0].value.response, b"dn:" + host_dn("web1").encode())

    def test_external_without(self) -> None:
        """Without a certificate it is inappropriate."""
        self.assertEqual(code(World().connect().ask(external())), 48)

    def test_throttled(self) -> None:
        """After too many failures the answer is 'busy', and each further guess costs a connection."""
        world = World()
        client = world.connect()
        self.assertEqual([client.bind(password=b"wrong") for _ in range(10)], [49] * 10)
        self.assertEqual(client.bind(password=b"wrong"), 51)
        self.assertTrue(client.over)
        self.assertEqual((world.connect().bind(), world.connect("192.0.2.2").bind()), (51, 0))

    def test_counted(self) -> None:
        """Answers are counted by operation and code."""
        world = World()
        client = world.connect()
        client.bind()
        client.bind(password=b"wrong")
        results = [
            world.value("identree_ldap_results_total", operation="bind", code=code) for code in ("0", "49", "53")
        ]
        self.assertEqual(results, [1, 1, 0])
