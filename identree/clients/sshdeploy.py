"""
One command on a host, over SSH (RFC 4252 to 4254) through Twisted Conch.

Only what is worth its name today is spoken: key exchange over elliptic curves, AES in counter mode, SHA-2, host keys
and signatures without SHA-1, authentication by public key. Nothing is sent before the host has proved that it has the
key which was expected. What Conch leaves open is closed here: a signature must be of the negotiated kind, a host has
one key per connection, what a hostile host sends is worked off in slices, and a broken protocol ends in a sentence.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from twisted.conch.error import ConchError
from twisted.conch.ssh.channel import SSHChannel
from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.connection import SSHConnection
from twisted.conch.ssh.keys import Key
from twisted.conch.ssh.transport import DISCONNECT_KEY_EXCHANGE_FAILED, SSHClientTransport
from twisted.conch.ssh.userauth import MSG_USERAUTH_REQUEST, SSHUserAuthClient
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IDelayedCall, IProtocol, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure
from zope.interface import provider

from identree.core.deploy import (
    CONNECT_SECONDS,
    FAMILIES,
    PRIVATE_KEY_BYTES,
    RSA,
    BadPrivateKey,
    ExpectedKey,
    HostKey,
    HostKeyMismatch,
    SshTrouble,
    Target,
)

# Bits of RSA keys: fewer are weak, more hold up everybody while they sign.
RSA_BITS = (2048, 8192)
# Bytes worked off before others get their turn: some milliseconds where they are many small packets.
SLICE_BYTES = 8192
# Seconds that a host gets to close after we have said that it is over.
CLOSE_SECONDS = 5
# Seconds between the end of the command and the end of its output: a child may hold the pipe for ever.
LINGER_SECONDS = 5
# Seconds for the answer to a signal.
SIGNAL_SECONDS = 2
# Characters of what a host says about a refusal.
_REASON_LENGTH = 200

_KEX = [
    b"curve25519-sha256",
    b"curve25519-sha256@libssh.org",
    b"ecdh-sha2-nistp256",
    b"ecdh-sha2-nistp384",
    b"ecdh-sha2-nistp521",
]
_CIPHERS = [b"aes256-ctr", b"aes192-ctr", b"aes128-ctr"]
_MACS = [b"hmac-sha2-512", b"hmac-sha2-256"]
# Of an RSA key (RFC 8332), the better one first.
_RSA_ALGORITHMS = (b"rsa-sha2-512", b"rsa-sha2-256")
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----")

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
# What the host writes, and whether it is its stdout; the rest is stderr.
Output = Callable[[bytes, bool], None]


# Conch's log is not kept; what matters to people is in the exceptions here.
@provider(ILogObserver)
def _unheard(event: object) -> None:
    """It tells its log of every step."""


_quiet = Logger(namespace="identree.clients.sshdeploy", observer=_unheard)


# -- private keys -----------------------------------------------------------------------------------------------------
class PrivateKey:
    """
    An administrator's key, as long as it is needed.

    :ivar type: as in :class:`~identree.core.deploy.HostKey`. :ivar fingerprint: the same.
    """

    def __init__(self, key: Key) -> None:
        public = key.public()
        self.type: str = public.sshType().decode("ascii")
        self.blob: bytes = public.blob()
        self.fingerprint = HostKey(type=self.type, blob=self.blob).fingerprint
        self._key: Key | None = key

    def algorithm(self, accepted: bytes | None) -> bytes:
        """:param accepted: ``server-sig-algs`` of the host (RFC 8308 section 3.1); None when it did not tell."""
        if self.type != RSA:
            return self.type.encode("ascii")
        told = (accepted or b"").split(b",")
        return next((one for one in _RSA_ALGORITHMS if one in told), _RSA_ALGORITHMS[0])

    def sign(self, data: bytes, algorithm: bytes) -> bytes:
        """Takes milliseconds. :raise SshTrouble: it was forgotten."""
        if self._key is None:
            raise SshTrouble("the private key is not there any more")
        return self._key.sign(data, signatureType=algorithm)

    def forget(self) -> None:
        """It is not needed any more. The memory is given back; Python cannot be made to overwrite it."""
        self._key = None


def load_private_key(text: bytes | bytearray) -> PrivateKey:
    """
    Read a key of OpenSSH or PEM. Blocks for up to a second: an RSA key is checked.

    :raise BadPrivateKey: it cannot be used; says why.
    """
    if len(text) > PRIVATE_KEY_BYTES:
        raise BadPrivateKey(f"longer than {PRIVATE_KEY_BYTES} bytes")
    raw = bytes(text).strip().replace(b"\r\n", b"\n") + b"\n"
    if raw.startswith(b"PuTTY-User-Key-File"):
        raise BadPrivateKey("a key of PuTTY; export it from PuTTYgen as an OpenSSH key")
    if raw.startswith((b"ssh-", b"ecdsa-", b"sk-")):
        raise BadPrivateKey("this is the public key; the file without .pub is the private one")
    begins = _PEM.match(raw)
    if begins is None:
        raise BadPrivateKey("expected a key in OpenSSH or PEM form, which begins with -----BEGIN")
    if begins[1] == b"OPENSSH PRIVATE KEY":
        _check_openssh(raw)
    elif b"ENCRYPTED" in raw:
        raise _encrypted()
    try:
        loaded: Any = (
            load_ssh_private_key(raw, None)
            if begins[1] == b"OPENSSH PRIVATE KEY"
            else load_pem_private_key(raw, password=None)
        )
    except UnsupportedAlgorithm:
        raise BadPrivateKey("of a type that is not supported; use Ed25519, ECDSA or RSA") from None
    except Exception:
        # nothing of what a parser says about a private key is passed on
        raise BadPrivateKey("damaged, or of a form that is not known") from None
    _check_kind(loaded)
    return PrivateKey(Key(loaded))


def _encrypted() -> BadPrivateKey:
    return BadPrivateKey(
        "encrypted with a passphrase, which nobody can be asked for here; use a key of its own without one, or take "
        "the passphrase off a copy: ssh-keygen -p -N '' -f COPY"
    )


def _check_openssh(raw: bytes) -> None:
    """:raise BadPrivateKey: encrypted, or of a security key. (PROTOCOL.key of OpenSSH)"""
    try:
        inner = base64.b64decode(b"".join(raw.split(b"\n")[1:-2]))
        cipher, _, _, rest = getNS(inner[len(b"openssh-key-v1\0") :], 3)
        public = getNS(rest[4:])[0]
        type = getNS(public)[0]
    except Exception:
        raise BadPrivateKey("damaged, or of a form that is not known") from None
    if cipher != b"none":
        raise _encrypted()
    if type.startswith(b"sk-"):
        raise BadPrivateKey("of a security key, which is not plugged in here")


def _check_kind(key: object) -> None:
    """:raise BadPrivateKey:"""
    if isinstance(key, dsa.DSAPrivateKey):
        raise BadPrivateKey("DSA is not safe, and SSH servers have stopped to accept it; use Ed25519")
    if isinstance(key, rsa.RSAPrivateKey):
        if not RSA_BITS[0] <= key.key_size <= RSA_BITS[1]:
            raise BadPrivateKey(f"RSA with {key.key_size} bits; accepted are {RSA_BITS[0]} to {RSA_BITS[1]}")
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        if key.curve.name not in ("secp256r1", "secp384r1", "secp521r1"):
            raise BadPrivateKey(f"ECDSA on the curve {key.curve.name}, which SSH does not have")
    elif not isinstance(key, ed25519.Ed25519PrivateKey):
        raise BadPrivateKey("of a type that is not supported; use Ed25519, ECDSA or RSA")


# -- one connection ---------------------------------------------------------------------------------------------------
def _algorithms(family: tuple[str, ...]) -> list[bytes]:
    """Of host keys: what is negotiated for the types of one family."""
    return [one for type in family for one in (_RSA_ALGORITHMS if type == RSA else (type.encode("ascii"),))]


def _said(raw: bytes) -> str:
    """What a host says, fit for one line."""
    return "".join(c for c in raw.decode("utf-8", "replace") if c.isprintable())[:_REASON_LENGTH]


class _Conversation(SSHClientTransport):
    """
    :ivar secured: fires with the host's key when it has proved to have it, and that is the expected one.
    :ivar over: fires when the connection is closed.
    """

    _log = _quiet
    ourVersionString = b"SSH-2.0-identree"
    supportedKeyExchanges = _KEX
    supportedCiphers = _CIPHERS
    supportedMACs = _MACS
    supportedCompressions = [b"none"]  # noqa: RUF012 - Conch's

    def __init__(self, clock: IReactorTime, families: list[tuple[str, ...]], expected: ExpectedKey | None) -> None:
        self.supportedPublicKeys = [one for family in families for one in _algorithms(family)]
        self._clock = clock
        self._expected = expected
        self._shown: HostKey | None = None
        self._inbox = bytearray()
        self._working: IDelayedCall | None = None
        self._aborting: IDelayedCall | None = None
        self._closed = False
        # why it ended, told to who waits for something then
        self.trouble: Exception | None = None
        self.secured: Deferred[HostKey] = Deferred()
        self.over: Deferred[None] = Deferred()
        self.on_trouble: Callable[[Exception], None] = lambda trouble: None

    # -- what comes ---------------------------------------------------------------------------------------------------
    def dataReceived(self, data: bytes) -> None:
        if self._closed:
            return
        self._inbox += data
        if self._working is None:
            self._work()

    def _work(self) -> None:
        self._working = None
        piece = bytes(self._inbox[:SLICE_BYTES])
        del self._inbox[:SLICE_BYTES]
        try:
            super().dataReceived(piece)
        except Exception:
            # whatever it sent: no text of ours describes it better, and none of its own is to be trusted
            self.fail(SshTrouble("the host broke the SSH protocol"))
        transport: Any = self.transport
        if self._closed or self.trouble is not None:
            self._inbox.clear()
        elif self._inbox:
            transport.pauseProducing()
            self._working = self._clock.callLater(0, self._work)
        else:
            transport.resumeProducing()

    def verifyHostKey(self, hostKey: bytes, fingerprint: bytes) -> Deferred[bool]:
        try:
            key = HostKey.from_blob(hostKey)
        except ValueError:
            return self._refuse(SshTrouble("the host has no key of a type that is accepted"))
        negotiated = self.keyAlg
        if key.type != (RSA if negotiated in _RSA_ALGORITHMS else negotiated.decode("ascii")):
            return self._refuse(SshTrouble("the host shows a key of another type than it offered"))
        if self._shown is not None and key != self._shown:
            return self._refuse(SshTrouble("the host changed its key while we talked"))
        if self._expected is not None and key.fingerprint != self._expected.fingerprint:
            return self._refuse(HostKeyMismatch(key))
        self._shown = key
        return succeed(True)

    def _refuse(self, trouble: Exception) -> Deferred[bool]:
        self.fail(trouble)
        # never fires: an errback would make Conch talk on
        return Deferred()

    def ssh_KEX_DH_GEX_GROUP(self, packet: bytes) -> Any:
        """The host's answer, by which it proves to have its key. Conch would take a weaker signature, too."""
        signature = getNS(packet, 3)[2]
        if getNS(signature)[0] != self.keyAlg:
            self.fail(SshTrouble("the host signed with another algorithm than was agreed on"))
            return None
        return super().ssh_KEX_DH_GEX_GROUP(packet)

    def connectionSecure(self) -> None:
        """Also after a change of keys in the middle of a session."""
        if not self.secured.called and self._shown is not None:
            self.secured.callback(self._shown)

    def receiveError(self, reasonCode: int, description: bytes) -> None:
        self.fail(SshTrouble(f"the host ended the connection: {_said(description) or 'without a reason'}"))

    def receiveUnimplemented(self, seqnum: int) -> None:
        self.fail(SshTrouble("the host does not understand what identree asks"))

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._closed = True
        for call in (self._working, self._aborting):
            if call is not None and call.active():
                call.cancel()
        if self.trouble is None:
            self.trouble = SshTrouble("the host closed the connection")
            self._tell()
        with suppress(Exception):
            super().connectionLost(reason)
        if not self.over.called:
            self.over.callback(None)

    # -- how it ends --------------------------------------------------------------------------------------------------
    def sendDisconnect(self, reason: int, desc: bytes) -> None:
        """Conch gives up."""
        if reason == DISCONNECT_KEY_EXCHANGE_FAILED and b"match" in desc:
            wanted = b", ".join([*_KEX[::2], *self.supportedPublicKeys, _CIPHERS[0], *_MACS]).decode("ascii")
            self.fail(
                SshTrouble(
                    "the host and identree have no algorithms in common; its sshd must offer one of each kind of "
                    f"these: {wanted}"
                )
            )
        elif reason == DISCONNECT_KEY_EXCHANGE_FAILED:
            self.fail(SshTrouble("the host could not prove that it has its key"))
        else:
            self.fail(SshTrouble("the host broke the SSH protocol"))

    def fail(self, trouble: Exception) -> None:
        if self.trouble is None:
            self.trouble = trouble
            self._tell()
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def _tell(self) -> None:
        assert self.trouble is not None
        if not self.secured.called:
            self.secured.errback(self.trouble)
        self.on_trouble(self.trouble)

    async def hang_up(self) -> None:
        """What was written still goes out; who does not let go is cut off."""
        if self.trouble is None:
            self.trouble = CancelledError()
        if not self._closed:
            transport: Any = self.transport
            transport.resumeProducing()
            transport.loseConnection()
            self._aborting = self._clock.callLater(CLOSE_SECONDS, transport.abortConnection)
            await self.over


class _Authentication(SSHUserAuthClient):
    """By the one key, with one attempt."""

    _log = _quiet
    transport: Any

    def __init__(self, user: str, session: _Session, key: PrivateKey, in_thread: InThread) -> None:
        super().__init__(user.encode("ascii"), session)
        self._key = key
        self._in_thread = in_thread

    def serviceStarted(self) -> None:
        offering = Deferred.fromCoroutine(self._offer())
        offering.addErrback(lambda failure: self.transport.fail(failure.value))

    async def _offer(self) -> None:
        transport = self.transport
        algorithm = self._key.algorithm(transport.peerExtensions.get(b"server-sig-algs"))
        named = NS(algorithm) + NS(self._key.blob)
        signed = b"".join(
            (
                NS(transport.sessionID),
                bytes((MSG_USERAUTH_REQUEST,)),
                NS(self.user),
                NS(self.instance.name),
                NS(b"publickey"),
                b"\1",
                named,
            )
        )
        signature = await self._in_thread(lambda: self._key.sign(signed, algorithm))
        self._key.forget()
        # a host may have let us in meanwhile, or hung up
        if transport.trouble is None and transport.service is self:
            self.askForAuth(b"publickey", b"\1" + named + NS(signature))

    def ssh_USERAUTH_FAILURE(self, packet: bytes) -> None:
        methods, rest = getNS(packet)
        user = self.user.decode("ascii")
        if rest[:1] not in (b"", b"\0"):
            why = f"the host wants a second proof beside the key ({_said(methods)}), which nobody can give here"
        elif b"publickey" not in methods.split(b","):
            why = f"the host lets {user} in by {_said(methods) or 'nothing'} only, not by a key"
        else:
            why = (
                f"the host does not let {user} in with this key ({self._key.type} {self._key.fingerprint}); add its "
                f"public key to the authorized_keys of {user}"
                + (", and see PermitRootLogin in its sshd_config" if user == "root" else "")
            )
        self.transport.fail(SshTrouble(why))

    def ssh_USERAUTH_BANNER(self, packet: bytes) -> None:
        """Terms of use, for people at a terminal."""

    def ssh_USERAUTH_PK_OK(self, packet: bytes) -> None:
        """Nobody asked."""
        self.transport.fail(SshTrouble("the host broke the SSH protocol"))


class _Session(SSHConnection):
    """Has one channel; the host gets none."""

    _log = _quiet
    transport: Any

    def __init__(self, command: _Command) -> None:
        super().__init__()
        self._command = command

    def serviceStarted(self) -> None:
        super().serviceStarted()
        self.openChannel(self._command)

    def getChannel(self, channelType: bytes, windowSize: int, maxPacket: int, data: bytes) -> SSHChannel:
        raise ValueError("no channels from the host")


class _Command(SSHChannel):
    """
    :ivar ended: fires with the exit status, when the output is complete too.
    """

    _log = _quiet
    name = b"session"
    conn: Any

    def __init__(
        self, *, clock: IReactorTime, command: str, stdin: Callable[[], Awaitable[bytes]], output: Output
    ) -> None:
        super().__init__()
        self._clock = clock
        self._command = command.encode()
        self._stdin = stdin
        self._output = output
        self._eof_due = False
        self._status: int | SshTrouble | None = None
        self._lingering: IDelayedCall | None = None
        self._beginning: Deferred[None] | None = None
        self.running = False
        self.ended: Deferred[int] = Deferred()

    def channelOpen(self, specificData: bytes) -> None:
        self._beginning = Deferred.fromCoroutine(self._begin())
        self._beginning.addErrback(self._not_begun)

    def _not_begun(self, failure: Failure) -> None:
        assert isinstance(failure.value, Exception)
        self.stop(failure.value)

    async def _begin(self) -> None:
        stdin = await self._stdin()
        if self.ended.called:
            return
        try:
            await self.conn.sendRequest(self, b"exec", NS(self._command), wantReply=True)
        except ConchError:
            raise SshTrouble("the host does not run commands for this user") from None
        self.running = self._status is None
        self._eof_due = True
        self.write(stdin)
        self._send_eof()

    def openFailed(self, reason: Any) -> None:
        self.stop(SshTrouble("the host does not open a session"))

    def addWindowBytes(self, data: int) -> None:
        super().addWindowBytes(data)
        self._send_eof()

    def _send_eof(self) -> None:
        if self._eof_due and not self.buf and not self.localClosed:
            self._eof_due = False
            self.conn.sendEOF(self)

    def dataReceived(self, data: bytes) -> None:
        self._output(data, True)

    def extReceived(self, dataType: int, data: bytes) -> None:
        self._output(data, False)

    def request_exit_status(self, data: bytes) -> int:
        self._exited(int.from_bytes(data[:4], "big"))
        return 1

    def request_exit_signal(self, data: bytes) -> int:
        self._exited(SshTrouble(f"the command was ended by the signal {_said(getNS(data)[0])}"))
        return 1

    def _exited(self, status: int | SshTrouble) -> None:
        self.running = False
        if self._status is None:
            self._status = status
            self._lingering = self._clock.callLater(LINGER_SECONDS, self._settle)

    def eofReceived(self) -> None:
        """The end of the output; the status may still come."""

    def closeReceived(self) -> None:
        # the host reads nothing any more
        self.buf = b""
        self.loseConnection()

    def closed(self) -> None:
        self._settle()

    def _settle(self) -> None:
        self.stop(SshTrouble("the host ended the command without saying how"))

    def stop(self, trouble: Exception) -> None:
        """:param trouble: counts where the host has not told how the command ended."""
        if self._lingering is not None and self._lingering.active():
            self._lingering.cancel()
        self.running = False
        if self.ended.called:
            return
        if isinstance(self._status, int):
            self.ended.callback(self._status)
        else:
            self.ended.errback(self._status or trouble)
        if self._beginning is not None:
            self._beginning.cancel()

    async def terminate(self) -> None:
        """
        Ask the host to end it (RFC 4254 section 6.9). OpenSSH refuses that for root and cannot do it for sudo; there
        the command ends when it next writes something, which nobody reads any more.
        """
        if not self.running or self.localClosed:
            return
        self.running = False
        # with an answer: who hangs up too early is not heard
        asking: Deferred[Any] = self.conn.sendRequest(self, b"signal", NS(b"TERM"), wantReply=True)
        asking.addTimeout(SIGNAL_SECONDS, self._clock)
        with suppress(ConchError, Late):
            await asking


# -- the client -------------------------------------------------------------------------------------------------------
def _unheeded(failure: Failure) -> None:
    """Somebody else tells of it."""


class SshClient:
    """
    :param reactor: opens connections, resolves names, and times.
    :param in_thread: runs a blocking function away from the reactor.
    """

    def __init__(self, reactor: Any, in_thread: InThread) -> None:
        self._reactor = reactor
        self._in_thread = in_thread

    async def load_key(self, text: bytes | bytearray) -> PrivateKey:
        """:raise BadPrivateKey: it cannot be used; says why."""
        key: PrivateKey = await self._in_thread(lambda: load_private_key(text))
        return key

    async def host_key(self, host: str, port: int) -> HostKey:
        """
        The key that the host has, of the best type that it has; it has proved to have it.

        :raise SshTrouble: the host cannot be reached.
        """
        conversation = await self._connect(host, port, list(FAMILIES), None)
        try:
            return await self._secured(conversation)
        finally:
            await conversation.hang_up()

    async def run(
        self,
        *,
        target: Target,
        key: PrivateKey,
        expected: ExpectedKey,
        command: str,
        secured: Callable[[HostKey], Awaitable[None]],
        stdin: Callable[[], Awaitable[bytes]],
        output: Output,
    ) -> int:
        """
        One command. Cancelled, it asks the host to end the command, and hangs up.

        :param key: is forgotten as soon as it has signed.
        :param secured: told the host's key before anything is sent; what it raises ends it.
        :param stdin: what the command reads, asked for when the host has let us in; what it raises ends it.
        :param output: told of everything that comes out.
        :returns: the exit status.
        :raise HostKeyMismatch: the host has another key; nothing was sent.
        :raise SshTrouble: it could not be done, or the host does not say how it ended.
        """
        running: _Command | None = None
        conversation: _Conversation | None = None
        try:
            conversation = await self._expected(target, expected)
            await secured(await self._secured(conversation))
            if conversation.trouble is not None:
                raise conversation.trouble
            running = _Command(clock=self._reactor, command=command, stdin=stdin, output=output)
            conversation.on_trouble = running.stop
            conversation.requestService(_Authentication(target.user, _Session(running), key, self._in_thread))
            return await running.ended
        finally:
            key.forget()
            if running is not None:
                await running.terminate()
                # nobody waits for it any more
                running.stop(SshTrouble("given up"))
                running.ended.addErrback(_unheeded)
            if conversation is not None:
                await conversation.hang_up()

    async def _expected(self, target: Target, expected: ExpectedKey) -> _Conversation:
        """
        A conversation that gets to the expected key, as far as the host has it. Where only its fingerprint is known,
        the host is asked for keys of one type after the other.
        """
        if expected.type:
            first = [family for family in FAMILIES if expected.type in family]
            families = [*first, *(family for family in FAMILIES if family not in first)]
            return await self._connect(target.host, target.port, families, expected)
        others: list[HostKey] = []
        trouble: SshTrouble | None = None
        for family in FAMILIES:
            conversation = await self._connect(target.host, target.port, [family], expected)
            try:
                # the caller awaits the same Deferred again
                await self._shown(conversation)
                return conversation
            except HostKeyMismatch as mismatch:
                others.append(mismatch.shown)
            except SshTrouble as problem:
                trouble = trouble or problem
            except BaseException:
                await conversation.hang_up()
                raise
            await conversation.hang_up()
        if others:
            raise HostKeyMismatch(others[0])
        assert trouble is not None
        raise trouble

    async def _shown(self, conversation: _Conversation) -> None:
        key = await self._secured(conversation)
        conversation.secured = succeed(key)

    async def _secured(self, conversation: _Conversation) -> HostKey:
        waiting: Deferred[HostKey] = conversation.secured
        if not waiting.called:
            waiting.addTimeout(
                CONNECT_SECONDS,
                self._reactor,
                lambda failure, seconds: Failure(SshTrouble(f"the host did not speak SSH within {seconds:.0f} s")),
            )
        return await waiting

    async def _connect(
        self, host: str, port: int, families: list[tuple[str, ...]], expected: ExpectedKey | None
    ) -> _Conversation:
        def conversation(address: object) -> IProtocol:
            return _Conversation(self._reactor, families, expected)

        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = conversation  # type: ignore[method-assign, assignment]
        place = f"{host}:{port}"
        endpoint = HostnameEndpoint(self._reactor, host.encode("ascii"), port, timeout=CONNECT_SECONDS)
        connecting: Deferred[Any] = endpoint.connect(factory)
        # an endpoint tries all addresses of a name, each with its own time
        connecting.addTimeout(CONNECT_SECONDS, self._reactor)
        try:
            connected: _Conversation = await connecting
        except (error.DNSLookupError, UnicodeError):
            raise SshTrouble(f"the name {host} cannot be resolved; check it, and the DNS of this server") from None
        except error.ConnectionRefusedError:
            raise SshTrouble(f"{place} refuses connections; is sshd running there, on this port?") from None
        except (error.TimeoutError, error.TCPTimedOutError, Late):
            raise SshTrouble(
                f"{place} did not answer within {CONNECT_SECONDS} s; is it up, and does a firewall let this server in?"
            ) from None
        except error.ConnectError as problem:
            raise SshTrouble(f"{place} cannot be reached: {problem.osError or type(problem).__name__}") from None
        return connected
