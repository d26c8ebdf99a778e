"""OpenLDAP's own tools against the server in this process: StartTLS, LDAPS, SASL EXTERNAL, paging, comparisons."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.x509.oid import ExtendedKeyUsageOID
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred, execute
from twisted.internet.utils import getProcessOutputAndValue
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import TestCase

from identree.ldap.tls import ClientAuth, ServerTLS, TLSFiles, peer_name
from tests.ldap.certificates import TestCA, key_pem, pem
from tests.ldap.harness import BASE, PASSWORD, PEOPLE, SERVICE, World, host_dn

CA = TestCA()
SERVER = CA.issue("localhost", eku=ExtendedKeyUsageOID.SERVER_AUTH)
HOST = CA.issue("web1.example.com")

reactor: Any = real_reactor


def inline(function: Callable[[], Any]) -> Deferred[Any]:
    return execute(function)


class ToolsTests(TestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        for name, content in (
            ("ca.crt", pem(CA.certificate)),
            ("server.crt", pem(SERVER[0])),
            ("server.key", key_pem(SERVER[1])),
            ("host.crt", pem(HOST[0])),
            ("host.key", key_pem(HOST[1])),
        ):
            (self.path / name).write_bytes(content)
        files = TLSFiles(
            certificate=str(self.path / "server.crt"), key=str(self.path / "server.key"), ca=str(self.path / "ca.crt")
        )
        tls = ServerTLS(
            "LDAP",
            files,
            client_auth=ClientAuth.OPTIONAL,
            in_thread=inline,
            now=lambda: datetime.now(UTC),
            monotonic=reactor.seconds,
        )
        self.world = World(
            people=250, reactor=reactor, start_tls=lambda transport: transport.startTLS(tls), peer_name=peer_name
        )
        plain = reactor.listenTCP(0, self.world.factory, interface="127.0.0.1")
        secure = reactor.listenTCP(0, TLSMemoryBIOFactory(tls, False, self.world.factory), interface="127.0.0.1")
        self.addCleanup(plain.stopListening)
        self.addCleanup(secure.stopListening)
        self.addCleanup(self.world.factory.close)
        self.plain = f"ldap://localhost:{plain.getHost().port}"
        self.secure = f"ldaps://localhost:{secure.getHost().port}"

    async def run_tool(self, tool: str, *arguments: str, certificate: bool = False) -> tuple[str, str, int]:
        environment = {
            **os.environ,
            "LDAPCONF": "/dev/null",
            "LDAPTLS_CACERT": str(self.path / "ca.crt"),
            # the library compares the certificate of a loopback address with the name of this machine, whatever it is
            "LDAPTLS_REQCERT": "allow",
        }
        if certificate:
            environment["LDAPTLS_CERT"] = str(self.path / "host.crt")
            environment["LDAPTLS_KEY"] = str(self.path / "host.key")
        out, err, status = await getProcessOutputAndValue(f"/usr/bin/{tool}", arguments, environment)
        return out.decode(), err.decode(), status

    BOUND = ("-x", "-D", SERVICE, "-w", PASSWORD.decode())

    async def test_start_tls(self) -> None:
        """StartTLS, then a bind and a search within TLS."""
        out, err, status = await self.run_tool(
            "ldapsearch", "-H", self.plain, "-ZZ", *self.BOUND, "-LLL", "-b", PEOPLE, "(uid=user7)", "uidNumber"
        )
        self.assertEqual((status, err), (0, ""))
        self.assertIn("uidNumber: 200007", out)

    async def test_start_tls_external(self) -> None:
        """A certificate that is shown in StartTLS is an identity for EXTERNAL."""
        out, err, status = await self.run_tool(
            "ldapwhoami", "-H", self.plain, "-ZZ", "-Q", "-Y", "EXTERNAL", certificate=True
        )
        self.assertEqual((status, out, err), (0, f"dn:{host_dn('web1.example.com')}\n", ""))

    async def test_ldaps(self) -> None:
        """A host binds with its certificate; the password does not matter."""
        bound = ("-x", "-D", host_dn("web1.example.com"), "-w", "whatever")
        out, err, status = await self.run_tool("ldapwhoami", "-H", self.secure, *bound, certificate=True)
        self.assertEqual((status, out, err), (0, f"dn:{host_dn('web1.example.com')}\n", ""))

    async def test_ldaps_without(self) -> None:
        """Without one, that password is wrong, and EXTERNAL is not offered."""
        bound = ("-x", "-D", host_dn("web1.example.com"), "-w", "whatever")
        _, _, status = await self.run_tool("ldapwhoami", "-H", self.secure, *bound)
        self.assertEqual(status, 49)
        out, _, status = await self.run_tool("ldapsearch", "-H", self.secure, *self.BOUND, "-s", "base", "-b", "", "+")
        self.assertEqual(status, 0)
        self.assertNotIn("EXTERNAL", out)

    async def test_paged(self) -> None:
        """All entries in pages, over TLS."""
        out, err, status = await self.run_tool(
            "ldapsearch", "-H", self.secure, *self.BOUND, "-E", "pr=30/noprompt", "-b", PEOPLE, "(uid=*)", "1.1"
        )
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(out.count("dn: uid="), 250)

    async def test_compare(self) -> None:
        """True, false, and no such object."""
        for value, expected in (("uid:USER1", 6), ("uid:user2", 5)):
            _, _, status = await self.run_tool(
                "ldapcompare", "-H", self.plain, *self.BOUND, f"uid=user1,{PEOPLE}", value
            )
            self.assertEqual(status, expected)
        _, _, status = await self.run_tool("ldapcompare", "-H", self.plain, *self.BOUND, f"uid=x,{PEOPLE}", "uid:x")
        self.assertEqual(status, 32)

    async def test_write(self) -> None:
        """A deletion is refused with the reason."""
        _, err, status = await self.run_tool("ldapdelete", "-H", self.plain, *self.BOUND, f"uid=user1,{PEOPLE}")
        self.assertEqual(status, 53)
        self.assertIn("read-only directory", err)

    async def test_large(self) -> None:
        """An answer that does not fit into any buffer arrives whole."""
        arguments = ("-H", self.plain, *self.BOUND, "-LLL", "-b", BASE, "(objectClass=*)")
        out, err, status = await self.run_tool("ldapsearch", *arguments)
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(out.count("dn: "), 254)
