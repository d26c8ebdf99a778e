"""
The SSH client against hosts that misbehave, played by Conch's server on loopback. What a good sshd does with it is in
tests/e2e/test_deploy.py.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from twisted.conch.ssh.common import NS
from twisted.conch.ssh.connection import MSG_CHANNEL_DATA, MSG_CHANNEL_REQUEST, SSHConnection
from twisted.conch.ssh.factory import SSHFactory
from twisted.conch.ssh.keys import Key
from twisted.conch.ssh.service import SSHService
from twisted.conch.ssh.transport import MSG_DISCONNECT, SSHServerTransport
from twisted.conch.ssh.userauth import MSG_USERAUTH_FAILURE, MSG_USERAUTH_SUCCESS
from twisted.internet import reactor as installed
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, Logger
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import provider

from identree.clients import sshdeploy
from identree.clients.sshdeploy import PrivateKey, SshClient, load_private_key
from identree.core.deploy import (
    BadPrivateKey,
    ExpectedKey,
    HostKey,
    HostKeyMismatch,
    SshTrouble,
    target,
)

reactor: Any = installed
ED25519 = ed25519.Ed25519PrivateKey.generate()
RSA_2048 = rsa.generate_private_key(65537, 2048)


@provider(ILogObserver)
def unheard(event: object) -> None:
    """What Conch's server says to its log."""


QUIET = Logger(observer=unheard)


def openssh(key: Any, passphrase: bytes = b"") -> bytes:
    encryption: Any = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, encryption)
    return text


class LoadTests(SynchronousTestCase):
    def refused(self, text: bytes) -> str:
        return str(self.assertRaises(BadPrivateKey, load_private_key, text))

    def test_forms(self) -> None:
        """OpenSSH's own, PKCS#8, and the old ones; white space and Windows' line ends are no matter."""
        curve = ec.generate_private_key(ec.SECP256R1())
        for key, type in ((ED25519, "ssh-ed25519"), (RSA_2048, "ssh-rsa"), (curve, "ecdsa-sha2-nistp256")):
            own: Any = key
            forms = [
                openssh(key),
                own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
                b"\n " + openssh(key).replace(b"\n", b"\r\n") + b"\n\n",
            ]
            if key is not ED25519:
                forms.append(own.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
            for form in forms:
                loaded = load_private_key(form)
                blob = Key(own.public_key()).blob()
                self.assertEqual((loaded.type, loaded.blob), (type, blob))
                self.assertEqual(loaded.fingerprint, HostKey(type=type, blob=blob).fingerprint)

    def test_encrypted(self) -> None:
        """In all forms it is told apart from a damaged key, with the remedy."""
        own: Any = RSA_2048
        forms = [openssh(RSA_2048, b"pass")]
        for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
            forms.append(own.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"pass")))
        for text in forms:
            self.assertIn("ssh-keygen -p", self.refused(text))

    def test_other_things(self) -> None:
        """What people take for the key by mistake."""
        public = ED25519.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        self.assertIn("public key", self.refused(public))
        self.assertIn("PuTTYgen", self.refused(b"PuTTY-User-Key-File-3: ssh-ed25519\n"))
        self.assertIn("-----BEGIN", self.refused(b"hunter2"))
        self.assertIn("-----BEGIN", self.refused(b""))
        self.assertIn("longer than", self.refused(b"-" * 40_000))

    def test_damaged(self) -> None:
        """Nothing of a damaged key stands in the refusal."""
        text = openssh(ED25519)
        for broken in (text[:60], text[:200] + b"\n" + text[250:], b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n"):
            message = self.refused(broken)
            self.assertIn("damaged", message)
            self.assertNotIn("c2VjcmV0", message)

    def test_weak(self) -> None:
        """DSA, short RSA, and curves that SSH does not have."""
        old: Any = dsa.generate_private_key(1024)
        self.assertIn("DSA", self.refused(old.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())))
        short: Any = rsa.generate_private_key(65537, 1024)
        self.assertIn("1024 bits", self.refused(openssh(short)))
        curve: Any = ec.generate_private_key(ec.SECP256K1())
        self.assertIn("secp256k1", self.refused(curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())))

    def test_forgotten(self) -> None:
        """A key signs no more."""
        key = load_private_key(openssh(ED25519))
        key.forget()
        self.assertRaises(SshTrouble, key.sign, b"data", b"ssh-ed25519")

    def test_rsa_signatures(self) -> None:
        """SHA-2 always; the smaller one where a host has told that it knows no other."""
        key = load_private_key(openssh(RSA_2048))
        self.assertEqual(key.algorithm(None), b"rsa-sha2-512")
        self.assertEqual(key.algorithm(b"ssh-rsa,rsa-sha2-256"), b"rsa-sha2-256")
        self.assertEqual(key.algorithm(b"ssh-rsa"), b"rsa-sha2-512")


class Host(SSHServerTransport):
    """A host; what it does wrong is in its subclasses."""

    _log = QUIET


class Auth(SSHService):
    """Lets everybody in. :cvar answers: whether there is an answer at all."""

    _log = QUIET
    name = b"ssh-userauth"
    transport: Any

    def ssh_USERAUTH_REQUEST(self, packet: bytes) -> None:
        self.transport.factory.logins.append(packet)
        self.decide()

    def decide(self) -> None:
        self.transport.sendPacket(MSG_USERAUTH_SUCCESS, b"")
        self.transport.setService(Session())

    protocolMessages = {50: "MSG_USERAUTH_REQUEST"}  # noqa: RUF012 - Conch's


class Session(SSHConnection):
    """Says what the factory tells it to, when a command is to be run."""

    _log = QUIET

    def ssh_CHANNEL_OPEN(self, packet: bytes) -> None:
        self.transport.sendPacket(91, struct.pack(">4L", 0, 0, 1 << 20, 1 << 15))

    def ssh_CHANNEL_REQUEST(self, packet: bytes) -> None:
        self.transport.sendPacket(99, struct.pack(">L", 0))
        self.transport.factory.act(self.transport)

    def ssh_CHANNEL_DATA(self, packet: bytes) -> None:
        self.transport.factory.received += packet[8:]

    def ssh_CHANNEL_EOF(self, packet: bytes) -> None:
        self.transport.factory.eof = True

    def ssh_CHANNEL_CLOSE(self, packet: bytes) -> None:
        pass

    def ssh_CHANNEL_WINDOW_ADJUST(self, packet: bytes) -> None:
        pass


def says(transport: Any, text: bytes) -> None:
    transport.sendPacket(MSG_CHANNEL_DATA, struct.pack(">L", 0) + NS(text))


def exits(transport: Any, status: int) -> None:
    request = struct.pack(">L", 0) + NS(b"exit-status") + b"\0" + struct.pack(">L", status)
    transport.sendPacket(MSG_CHANNEL_REQUEST, request)
    transport.sendPacket(97, struct.pack(">L", 0))


class HostFactory(SSHFactory):
    protocol = Host
    _log = QUIET
    noisy = False

    def __init__(self, key: Any = ED25519) -> None:
        self.key = Key(key)
        self.publicKeys = {self.key.sshType(): self.key.public()}
        self.privateKeys = {self.key.sshType(): self.key}
        self.services = {b"ssh-userauth": Auth}
        self.logins: list[bytes] = []
        self.received = b""
        self.eof = False
        self.act: Callable[[Any], None] = lambda transport: exits(transport, 0)

    @property
    def fingerprint(self) -> str:
        return HostKey(type="", blob=self.key.blob()).fingerprint


class SshCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.output: list[bytes] = []
        self.secured: list[str] = []
        self.client = SshClient(reactor, deferToThread)
        self.key = load_private_key(openssh(ED25519))

    def listen(self, factory: Any) -> int:
        built: list[Any] = []
        build = factory.buildProtocol

        def kept(address: Any) -> Any:
            built.append(build(address))
            return built[-1]

        factory.buildProtocol = kept
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")

        async def close() -> None:
            await port.stopListening()
            for protocol in built:
                if protocol.transport is not None:
                    protocol.transport.abortConnection()
            # until both ends have noticed
            await deferLater(reactor, 0.01)

        self.addCleanup(lambda: Deferred.fromCoroutine(close()))
        return int(port.getHost().port)

    def run_on(self, factory: Any, *, expected: ExpectedKey | None = None, stdin: bytes = b"") -> Deferred[int]:
        port = self.listen(factory)
        return Deferred.fromCoroutine(
            self.client.run(
                target=target("127.0.0.1", port, "ops"),
                key=self.key,
                expected=expected or ExpectedKey(fingerprint=factory.fingerprint, type="ssh-ed25519"),
                command="bash",
                secured=self._secured,
                stdin=self._stdin(stdin),
                output=lambda data, stdout: self.output.append(data),
            )
        )

    async def _secured(self, key: HostKey) -> None:
        self.secured.append(key.fingerprint)

    def _stdin(self, text: bytes) -> Callable[[], Awaitable[bytes]]:
        async def stdin() -> bytes:
            return text

        return stdin

    async def trouble(self, running: Deferred[Any], kind: type[Exception] = SshTrouble) -> str:
        return str(await self.assertFailure(running, kind))


class GoodHostTests(SshCase):
    async def test_a_command(self) -> None:
        """Host key, login by the key, input with its end, output, and exit status."""
        host = HostFactory()

        def act(transport: Any) -> None:
            says(transport, b"hello\n")
            reactor.callLater(0.05, exits, transport, 3)

        host.act = act
        status = await self.run_on(host, stdin=b"script\n")
        self.assertEqual((status, b"".join(self.output)), (3, b"hello\n"))
        self.assertEqual((self.secured, host.received, host.eof), ([host.fingerprint], b"script\n", True))
        self.assertIn(b"publickey", host.logins[0])

    async def test_the_first_look(self) -> None:
        """The host's key is read without a login."""
        host = HostFactory()
        shown = await self.client.host_key("127.0.0.1", self.listen(host))
        self.assertEqual((shown.fingerprint, host.logins), (host.fingerprint, []))

    async def test_refused_by_us(self) -> None:
        """What is decided about the host's key comes before any login."""
        host = HostFactory()

        async def secured(key: HostKey) -> None:
            raise HostKeyMismatch(key)

        self._secured = secured  # type: ignore[method-assign]
        await self.trouble(self.run_on(host), HostKeyMismatch)
        self.assertEqual(host.logins, [])

    async def test_the_input_is_refused(self) -> None:
        """No command is begun then, and the reason comes out."""
        host = HostFactory()
        acted: list[object] = []
        host.act = acted.append

        async def stdin() -> bytes:
            raise SshTrouble("no token")

        self._stdin = lambda text: stdin  # type: ignore[method-assign]
        self.assertEqual(await self.trouble(self.run_on(host)), "no token")
        self.assertEqual(acted, [])

    async def test_the_key_is_forgotten(self) -> None:
        """As soon as it has signed, long before the command ends."""
        host = HostFactory()
        signed: list[bool] = []

        def act(transport: Any) -> None:
            signed.append(self.key._key is None)
            exits(transport, 0)

        host.act = act
        await self.run_on(host)
        self.assertEqual(signed, [True])


class ForgingHost(Host):
    """Has the public key of a host, and not the private one: whoever stands in between."""

    def connectionMade(self) -> None:
        factory: Any = self.factory
        other = Key(ed25519.Ed25519PrivateKey.generate())
        factory.privateKeys = {factory.key.sshType(): other}
        super().connectionMade()


class WeaklySigningHost(Host):
    """Agrees on SHA-2 and signs with SHA-1."""

    def connectionMade(self) -> None:
        factory: Any = self.factory

        class Weak(Key):
            def sign(self, data: bytes, signatureType: bytes | None = None) -> bytes:
                return super().sign(data, b"ssh-rsa")

        weak = Weak(factory.key._keyObject)
        factory.privateKeys = {b"ssh-rsa": weak}
        super().connectionMade()


class HostKeyTests(SshCase):
    async def test_a_forger(self) -> None:
        """The right public key is not enough, neither for a job nor for a first look."""
        host = HostFactory()
        host.protocol = ForgingHost
        self.assertEqual(await self.trouble(self.run_on(host)), "the host could not prove that it has its key")
        looking = Deferred.fromCoroutine(self.client.host_key("127.0.0.1", self.listen(host)))
        await self.trouble(looking)
        self.assertEqual((self.secured, host.logins), ([], []))

    async def test_another_key(self) -> None:
        """It is told which one the host has."""
        host = HostFactory()
        expected = ExpectedKey(fingerprint="SHA256:" + "A" * 43, type="ssh-ed25519")
        self.assertIn(host.fingerprint, await self.trouble(self.run_on(host, expected=expected), HostKeyMismatch))
        self.assertEqual((self.secured, host.logins), ([], []))

    async def test_a_weak_signature(self) -> None:
        """SHA-1 counts for nothing, whatever was agreed on."""
        host = HostFactory(RSA_2048)
        host.protocol = WeaklySigningHost
        expected = ExpectedKey(fingerprint=host.fingerprint, type="ssh-rsa")
        self.assertEqual(
            await self.trouble(self.run_on(host, expected=expected)),
            "the host signed with another algorithm than was agreed on",
        )


class BadHostTests(SshCase):
    async def test_no_ssh(self) -> None:
        """Something else listens there: it is waited for no longer than a connection."""
        self.patch(sshdeploy, "CONNECT_SECONDS", 0.2)
        silent = Factory.forProtocol(Protocol)
        silent.noisy = False
        looking = Deferred.fromCoroutine(self.client.host_key("127.0.0.1", self.listen(silent)))
        self.assertIn("did not speak SSH within", await self.trouble(looking))

    async def test_a_chatterbox(self) -> None:
        """Nor does it fill the memory."""

        class Chatterbox(Protocol):
            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" * 1000)

        loud = Factory.forProtocol(Chatterbox)
        loud.noisy = False
        looking = Deferred.fromCoroutine(self.client.host_key("127.0.0.1", self.listen(loud)))
        self.assertEqual(await self.trouble(looking), "the host broke the SSH protocol")

    async def test_hanging_up(self) -> None:
        """In the middle of a command it is no success."""
        host = HostFactory()
        host.act = lambda transport: transport.transport.abortConnection()
        self.assertEqual(await self.trouble(self.run_on(host)), "the host closed the connection")

    async def test_a_reason(self) -> None:
        """What a host says at the end is shown on one line, and not for ever."""
        host = HostFactory()

        def act(transport: Any) -> None:
            transport.sendPacket(MSG_DISCONNECT, struct.pack(">L", 2) + NS(b"go\naway\x1b[31m" + b"!" * 999) + NS(b""))

        host.act = act
        told = await self.trouble(self.run_on(host))
        self.assertTrue(told.startswith("the host ended the connection: goaway[31m!!!"), told)
        self.assertLess(len(told), 250)

    async def test_closing_without_a_status(self) -> None:
        """Nobody knows how the command ended."""
        host = HostFactory()
        host.act = lambda transport: transport.sendPacket(97, struct.pack(">L", 0))
        self.assertEqual(await self.trouble(self.run_on(host)), "the host ended the command without saying how")

    async def test_nonsense(self) -> None:
        """Packets that are cut off, for channels that do not exist, of kinds that nobody knows."""
        for packet in ((MSG_CHANNEL_DATA, b"\0"), (MSG_CHANNEL_DATA, struct.pack(">LL", 9, 0)), (91, b"")):
            with self.subTest(packet=packet):
                self.key = load_private_key(openssh(ED25519))
                host = HostFactory()
                host.act = lambda transport, packet=packet: transport.sendPacket(*packet)  # type: ignore[misc]
                self.assertEqual(await self.trouble(self.run_on(host)), "the host broke the SSH protocol")

    async def test_an_early_welcome(self) -> None:
        """A host that lets us in before anybody has signed does no harm: it is still the host that was expected."""

        class Eager(Auth):
            def serviceStarted(self) -> None:
                self.decide()

        host = HostFactory()
        host.services = {b"ssh-userauth": Eager}
        self.assertEqual(await self.run_on(host), 0)

    async def test_a_refusal(self) -> None:
        """Which ways in there are is told."""

        class Deaf(Auth):
            def decide(self) -> None:
                self.transport.sendPacket(MSG_USERAUTH_FAILURE, NS(b"password,hostbased") + b"\0")

        host = HostFactory()
        host.services = {b"ssh-userauth": Deaf}
        self.assertEqual(
            await self.trouble(self.run_on(host)),
            "the host lets ops in by password,hostbased only, not by a key",
        )
        self.assertEqual(len(host.logins), 1)

    async def test_a_flood_of_small_packets(self) -> None:
        """It is worked off in slices, between which others have their turn."""
        host = HostFactory()

        def act(transport: Any) -> None:
            for _ in range(3000):
                says(transport, b"x\n")
            exits(transport, 0)

        host.act = act
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            waiting[0] = reactor.callLater(0, turn)

        waiting = [reactor.callLater(0, turn)]
        received: list[int] = []
        collect = self.output.append

        def output(data: bytes) -> None:
            received.append(turns)
            collect(data)

        self.output = type("Output", (list,), {"append": lambda _, data: output(data)})()
        # the fake list keeps nothing itself
        kept: list[bytes] = []
        collect = kept.append
        await self.run_on(host)
        waiting[0].cancel()
        self.assertEqual(b"".join(kept), b"x\n" * 3000)
        most = max(received.count(number) for number in set(received))
        self.assertLess(most, 1000)

    async def test_cancelling(self) -> None:
        """Ends the connection also where the host does not react to anything."""
        self.patch(sshdeploy, "SIGNAL_SECONDS", 0.05)
        self.patch(sshdeploy, "CLOSE_SECONDS", 0.05)
        host = HostFactory()
        begun: Deferred[None] = Deferred()
        host.act = lambda transport: None if begun.called else begun.callback(None)
        running = self.run_on(host)
        await begun
        await deferLater(reactor, 0.05)
        running.cancel()
        await self.assertFailure(running, CancelledError)
        self.assertIsNone(self.key._key)


class KeyTypeTests(SshCase):
    async def test_each_type(self) -> None:
        """What the host gets is a signature of the kind that belongs to the key."""
        for key, algorithm in (
            (RSA_2048, b"rsa-sha2-512"),
            (ec.generate_private_key(ec.SECP384R1()), b"ecdsa-sha2-nistp384"),
            (ED25519, b"ssh-ed25519"),
        ):
            with self.subTest(algorithm=algorithm):
                self.key: PrivateKey = load_private_key(openssh(key))
                host = HostFactory()
                await self.run_on(host)
                self.assertEqual(host.logins[0].count(NS(algorithm)), 2 if algorithm == b"rsa-sha2-512" else 3)
