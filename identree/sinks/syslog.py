"""
The syslog sink: RFC 5424 messages over UDP (RFC 5426), TCP (RFC 6587) and TLS (RFC 5425); spec/audit-and-metrics
section 7.

Plain syslog confirms nothing. Over a connection, a batch counts as shipped when the receiver's system has acknowledged
it; what its program had not read when it died is lost there. So what was shipped shortly before a connection is lost is
shipped again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import re
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import (
    ConnectError,
    ConnectionClosed,
    ConnectionDone,
    DNSLookupError,
    MessageLengthError,
)
from twisted.internet.interfaces import (
    IHandshakeListener,
    IHostnameResolver,
    IPullProducer,
    IReactorTime,
    IReactorUDP,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from identree.core.audit import Sealed
from identree.sinks.follower import Rejected, Unavailable
from identree.sinks.formats import Format
from identree.sinks.tls import ClientTrust

# Facility 10 (authpriv), severity 6 (informational); syslog protocol version 1.
PRIORITY = b"<86>1"
# RFC 5424 section 6.2.4.
HOSTNAME_CHARACTERS = 255
# RFC 5424 section 6.1: what every receiver takes. Header and structured data fit in there whatever their values are.
LEAST_UDP_BYTES = 480
# The most that a datagram of IPv4 holds.
MOST_UDP_BYTES = 65_507

# A connection with its handshake, and a name, must be there in so much time.
CONNECT_SECONDS = 5.0
RESOLVE_SECONDS = 5.0
# A receiver that takes nothing for so long is given up.
STALL_SECONDS = 30.0
# The first batch on a connection counts as shipped only when the connection has lasted so long: a receiver that does
# not accept our certificate says so only after the handshake (TLS 1.3), and a proxy closes when nobody is behind it.
PROBATION_SECONDS = 1.0
# What was shipped may be lost with the connection for so long: the receiver's program must have read it by then.
SETTLE_SECONDS = 10.0
# At the end, so much time is left for what is still on its way.
CLOSE_SECONDS = 1.0
# The most that waits in our memory for a connection to take it, beside one batch.
CHUNK_BYTES = 64 * 1024
# Receivers say nothing; one that says more than this on one connection is none.
PEER_BYTES = 1 << 20
# How often is looked whether the receiver has acknowledged: twice as long each time, within these bounds.
FIRST_LOOK_SECONDS = 0.001
LONGEST_LOOK_SECONDS = 0.1
# A connection on which nothing happens is probed, so that firewalls do not forget it and a dead receiver is noticed.
KEEPALIVE_IDLE_SECONDS = 60
KEEPALIVE_INTERVAL_SECONDS = 15
KEEPALIVE_PROBES = 4

# Datagrams that are sent in one go; more would overrun the buffers of a receiver in an instant.
BURST = 32
BURST_PAUSE_SECONDS = 0.001
# For so long a system without room for another datagram is tried again.
UDP_PATIENCE_SECONDS = 1.0
# A name is looked up again so often, since nothing else tells that a receiver has moved.
RESOLVE_AGAIN_SECONDS = 60.0
# And so often while datagrams are refused.
RESOLVE_REFUSED_SECONDS = 5.0
# One line about refused datagrams in so much time.
REFUSAL_LOG_SECONDS = 600.0

# Records at once: some 300 KiB. Each batch waits for the last acknowledgement, which a receiver may delay by 40 ms.
BATCH = 512
# Records that are formatted in one go, which takes a millisecond or two where they are mapped to another form.
SLICE = 64

_UNPRINTABLE = re.compile(r"[^\x21-\x7e]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TIMESTAMP = re.compile(r"[0-9T:.Z+-]{20,32}")
_HOST = re.compile(r"[^\s\x00-\x20\x7f/@:?#\[\]\\]{1,253}")


# -- messages ---------------------------------------------------------------------------------------------------------
def printable_hostname(name: str) -> str:
    """HOSTNAME as RFC 5424 section 6.2.4 allows it: printable ASCII, 255 characters; ``identree`` when none is left."""
    return _UNPRINTABLE.sub("", name)[:HOSTNAME_CHARACTERS] or "identree"


def message(record: Sealed, form: Format, hostname: str) -> bytes:
    """
    The message of a record, without framing.

    :param hostname: of this system, printable.
    :raise ValueError: it is no record.
    """
    values = _Values.of(record)
    return _written(values, form.wire(record), hostname)


def datagram(record: Sealed, form: Format, hostname: str, max_bytes: int) -> bytes:
    """
    The message with its LF, as deployed. One that is too long is cut at the end, at a boundary of UTF-8, and says with
    the parameter ``truncated`` how many bytes of the record are missing. Values of the structured data are cut as well
    when they take too much; they stand in the record too.

    :param max_bytes: at least :data:`LEAST_UDP_BYTES`; never exceeded.
    :raise ValueError: it is no record.
    """
    values, text = _Values.of(record), form.wire(record)
    whole = _written(values, text, hostname) + b"\n"
    if len(whole) <= max_bytes:
        return whole
    # as many digits as the number can have
    reserved = str(len(text))
    empty = _written(_Values(values.timestamp, "", "", ""), b"", hostname, reserved)
    room = max_bytes - len(empty) - 1
    short = values.shortened(room // 4)
    room = max_bytes - len(_written(short, b"", hostname, reserved)) - 1
    end = min(room, len(text))
    while 0 < end < len(text) and text[end] & 0xC0 == 0x80:
        end -= 1
    return _written(short, text[:end], hostname, str(len(text) - end)) + b"\n"


def newline(one: bytes) -> bytes:
    """Non-transparent framing (RFC 6587 section 3.4.2); records hold no newline."""
    return one + b"\n"


def octet_counted(one: bytes) -> bytes:
    """RFC 6587 section 3.4.1."""
    return b"%d %b" % (len(one), one)


@dataclass(frozen=True, slots=True)
class _Values:
    """What the header and the structured data take from a record."""

    timestamp: str
    event: str
    username: str
    hostname: str

    @classmethod
    def of(cls, record: Sealed) -> _Values:
        try:
            read = json.loads(record.plain)
            timestamp, event, username = read["timestamp"], read["event"], read["username"]
            hostname = read.get("hostname", "")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ValueError("it is no audit record") from None
        if not all(isinstance(value, str) for value in (timestamp, event, username, hostname)):
            raise ValueError("it is no audit record")
        # RFC 5424 section 6.2.3: "-" stands for a time that is not known
        return cls(timestamp if _TIMESTAMP.fullmatch(timestamp) else "-", event, username, hostname)

    def shortened(self, limit: int) -> _Values:
        """:param limit: bytes that each of the parameters may take when it is written."""
        return _Values(self.timestamp, _cut(self.event, limit), _cut(self.username, limit), _cut(self.hostname, limit))


def _written(values: _Values, text: bytes, hostname: str, truncated: str | None = None) -> bytes:
    flag = b"" if truncated is None else b' truncated="%b"' % truncated.encode()
    return b'%b %b %b identree - - [identree@0 event="%b" username="%b" hostname="%b"%b] %b' % (
        PRIORITY,
        values.timestamp.encode(),
        hostname.encode(),
        _escaped(values.event),
        _escaped(values.username),
        _escaped(values.hostname),
        flag,
        text,
    )


def _escaped(value: str) -> bytes:
    """A PARAM-VALUE (RFC 5424 section 6.3.3). A control character would end the message on a connection."""
    value = _CONTROL.sub("?", value)
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]").encode("utf-8", "replace")


def _cut(value: str, limit: int) -> str:
    # a character takes a byte at least
    value = value[:limit]
    while len(_escaped(value)) > limit:
        value = value[: -max(1, (len(_escaped(value)) - limit) // 4)]
    return value


# -- where to ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """
    :ivar host: a name or an address, without brackets.
    """

    transport: Literal["udp", "tcp", "tls"]
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_SCHEMES: dict[str, Literal["udp", "tcp", "tls"]] = {"udp": "udp", "tcp": "tcp", "tcp+tls": "tls"}


def parse_url(url: str) -> Receiver:
    """
    ``udp://host:port``, ``tcp://host:port`` or ``tcp+tls://host:port``; an IPv6 address stands in brackets.

    :raise ValueError: anything else; the text says what would be right and does not repeat the value.
    """
    scheme, there, rest = url.strip().partition("://")
    transport = _SCHEMES.get(scheme.lower())
    if not there or transport is None:
        raise ValueError("it must begin with udp://, tcp:// or tcp+tls://, as in tcp://syslog.example.com:601")
    rest = rest.removesuffix("/")
    host, colon, port = rest.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
        raise ValueError(f"it must end with the receiver's port, as in {scheme}://syslog.example.com:601")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            known = ip_address(host).version == 6
        except ValueError:
            known = False
        if not known:
            raise ValueError("what stands in brackets must be an IPv6 address, as in tcp://[2001:db8::1]:601")
    elif not _HOST.fullmatch(host):
        raise ValueError(
            f"it must name a host, and nothing else, before the port, as in {scheme}://syslog.example.com:601; an IPv6 "
            "address stands in brackets"
        )
    return Receiver(transport=transport, host=host, port=int(port))


def first_address(resolver: IHostnameResolver) -> Callable[[str], Deferred[str]]:
    """The system's way to look a name up, for :class:`SyslogUDP`: the address that the system prefers."""

    def resolve(name: str) -> Deferred[str]:
        found: Deferred[str] = Deferred()
        resolver.resolveHostName(_First(name, found), name, 0, transportSemantics="UDP")
        return found

    return resolve


@implementer(IResolutionReceiver)
class _First:
    def __init__(self, name: str, found: Deferred[str]) -> None:
        self._name, self._found = name, found
        self._address = ""

    def resolutionBegan(self, resolutionInProgress: object) -> None:
        """Nothing is known yet."""

    def addressResolved(self, address: Any) -> None:
        self._address = self._address or str(address.host)

    def resolutionComplete(self) -> None:
        if self._found.called:
            return
        if self._address:
            self._found.callback(self._address)
        else:
            self._found.errback(DNSLookupError(f"no address found for {self._name!r}"))


async def _sleep(clock: IReactorTime, seconds: float) -> None:
    over: Deferred[None] = Deferred()
    timer = clock.callLater(seconds, over.callback, None)
    try:
        await over
    finally:
        if timer.active():
            timer.cancel()


async def _formatted(records: Sequence[Sealed], write: Callable[[Sealed], bytes], clock: IReactorTime) -> list[bytes]:
    """
    All of them, a few at a time.

    :raise Rejected: one is no record; nothing was sent.
    """
    written: list[bytes] = []
    for start in range(0, len(records), SLICE):
        if start:
            await _sleep(clock, 0)
        try:
            written += map(write, records[start : start + SLICE])
        except ValueError as e:
            raise Rejected(str(e)) from None
    return written


def _nobody() -> None:
    """Stands where the follower will stand."""


# -- UDP --------------------------------------------------------------------------------------------------------------
class SyslogUDP:
    """
    Sends each record in a datagram and hears nothing of it: a receiver that is away loses it.

    :param host: a name or an address, without brackets.
    :param hostname: of this system.
    :param max_bytes: of a datagram, from :data:`LEAST_UDP_BYTES` to :data:`MOST_UDP_BYTES`.
    :param resolve: gives one address of a name.
    :param monotonic: seconds.
    :raise ValueError: ``max_bytes`` is out of bounds.
    """

    name = "syslog"
    batch = BATCH
    linger_seconds = 0.0
    settle_seconds = 0.0

    def __init__(
        self,
        host: str,
        port: int,
        *,
        hostname: str,
        form: Format,
        max_bytes: int,
        udp: IReactorUDP,
        resolve: Callable[[str], Deferred[str]],
        clock: IReactorTime,
        monotonic: Callable[[], float],
    ) -> None:
        if not LEAST_UDP_BYTES <= max_bytes <= MOST_UDP_BYTES:
            raise ValueError(f"a datagram has {LEAST_UDP_BYTES} to {MOST_UDP_BYTES} bytes")
        self.lost: Callable[[], None] = _nobody
        self._receiver = Receiver(transport="udp", host=host, port=port)
        self._hostname = printable_hostname(hostname)
        self._form = form
        self._max_bytes = max_bytes
        self._udp = udp
        self._resolve = resolve
        self._clock = clock
        self._monotonic = monotonic
        self._socket: _Datagrams | None = None
        self._resolved_at = self._resolve_at = 0.0

    async def ship(self, records: Sequence[Sealed]) -> None:
        datagrams = await _formatted(
            records, lambda record: datagram(record, self._form, self._hostname, self._max_bytes), self._clock
        )
        for start in range(0, len(datagrams), BURST):
            if start:
                await _sleep(self._clock, BURST_PAUSE_SECONDS)
            for one in datagrams[start : start + BURST]:
                await self._send(one)

    async def close(self) -> None:
        there, self._socket = self._socket, None
        if there is not None:
            await there.close()

    async def _send(self, one: bytes) -> None:
        end = self._monotonic() + UDP_PATIENCE_SECONDS
        wait = BURST_PAUSE_SECONDS
        while True:
            # the socket may have been closed since
            there = await self._there()
            try:
                there.send(one)
                return
            except MessageLengthError:
                raise Unavailable(
                    f"syslog receiver {self._receiver}: the system does not send a datagram of {len(one)} bytes; lower "
                    "IDENTREE_AUDIT_SYSLOG_MAX_UDP_BYTES"
                ) from None
            except OSError as e:
                if e.errno not in (errno.EAGAIN, errno.ENOBUFS) or self._monotonic() >= end:
                    # the receiver may have moved, or we have
                    self._refused()
                    await self.close()
                    raise Unavailable(
                        f"syslog receiver {self._receiver}: {e.strerror or 'cannot be sent to'}"
                    ) from None
            await _sleep(self._clock, wait)
            wait *= 2

    async def _there(self) -> _Datagrams:
        there = self._socket
        fresh = _is_address(self._receiver.host) or self._monotonic() < self._resolve_at
        if there is not None and fresh and not there.broken:
            return there
        address = await self._address()
        self._resolved_at = self._monotonic()
        self._resolve_at = self._resolved_at + RESOLVE_AGAIN_SECONDS
        if there is not None and there.address == address and not there.broken:
            return there
        await self.close()
        there = _Datagrams(address, self._receiver, self._refused, self._monotonic)
        try:
            self._udp.listenUDP(0, there, "::" if ":" in address else "", MOST_UDP_BYTES)
        except (OSError, ConnectError) as e:
            raise Unavailable(f"syslog receiver {self._receiver}: no socket: {e}") from None
        self._socket = there
        return there

    async def _address(self) -> str:
        host = self._receiver.host
        if _is_address(host):
            return host
        try:
            return await self._resolve(host).addTimeout(RESOLVE_SECONDS, self._clock)
        except CancelledError:
            raise
        except Exception as e:
            if self._socket is not None and not self._socket.broken:
                # the name server is away; the receiver need not be
                return self._socket.address
            why = "no answer" if isinstance(e, DeferredTimeout) else str(e) or type(e).__name__
            raise Unavailable(f"syslog receiver {self._receiver}: its name cannot be looked up: {why}") from None

    def _refused(self) -> None:
        # it may have moved
        self._resolve_at = min(self._resolve_at, self._resolved_at + RESOLVE_REFUSED_SECONDS)


class _Datagrams(DatagramProtocol):
    """
    A socket for one address.

    :ivar broken: it is closed, or was never open.
    """

    _log = Logger(namespace="identree")

    def __init__(
        self, address: str, receiver: Receiver, refused: Callable[[], None], monotonic: Callable[[], float]
    ) -> None:
        self.address = address
        self.broken = True
        self._receiver = receiver
        self._refused = refused
        self._monotonic = monotonic
        self._refusals = 0
        self._log_at = 0.0

    def startProtocol(self) -> None:
        # a connected socket hears of refusals, and takes nothing from anybody else
        transport: Any = self.transport
        transport.connect(self.address, self._receiver.port)
        self.broken = False

    def stopProtocol(self) -> None:
        if not self.broken:
            # some of Twisted's reactors close a socket when they hear of a refusal
            self.broken = True
            self.connectionRefused()

    def send(self, one: bytes) -> None:
        transport: Any = self.transport
        refusals = self._refusals
        transport.write(one)
        if self._refusals != refusals:
            # the system told of an earlier one instead of sending this one
            transport.write(one)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Receivers say nothing that we would want to know."""

    def connectionRefused(self) -> None:
        self._refusals += 1
        self._refused()
        now = self._monotonic()
        if now >= self._log_at:
            self._log_at = now + REFUSAL_LOG_SECONDS
            self._log.warn(
                "{message}",
                message="AUDIT syslog: nobody receives our datagrams; records are lost there",
                attributes={"receiver": str(self._receiver)},
            )

    async def close(self) -> None:
        transport: Any = self.transport
        if transport is not None and not self.broken:
            self.broken = True
            await transport.stopListening()


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


# -- TCP and TLS ------------------------------------------------------------------------------------------------------
def unacknowledged(transport: Any) -> int:
    """
    Bytes that the system holds because the receiver's system has not acknowledged them (``SIOCOUTQ``); 0 where the
    system does not tell.

    :param transport: of a TCP connection.
    """
    try:
        answer = fcntl.ioctl(transport.getHandle().fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, AttributeError, ValueError):
        return 0
    return int(struct.unpack("i", answer)[0])


class SyslogTCP:
    """
    Keeps one connection, plain or with TLS, and writes records to it.

    :param endpoint: gives a plain TCP endpoint for the receiver.
    :param receiver: for texts; its host is what a TLS certificate must be for.
    :param hostname: of this system.
    :param octet_counting: by its length a message is told from the next one; else by a newline.
    :param trust: for TLS; None: without.
    :param monotonic: seconds.
    :param outstanding: bytes of a TCP transport that the receiver's system has not acknowledged.
    """

    name = "syslog"
    batch = BATCH
    linger_seconds = 0.0
    settle_seconds = SETTLE_SECONDS

    def __init__(
        self,
        endpoint: Callable[[], IStreamClientEndpoint],
        clock: IReactorTime,
        monotonic: Callable[[], float],
        *,
        receiver: Receiver,
        hostname: str,
        form: Format,
        octet_counting: bool,
        trust: ClientTrust | None = None,
        outstanding: Callable[[Any], int] = unacknowledged,
    ) -> None:
        self.lost: Callable[[], None] = _nobody
        self._endpoint = endpoint
        self._clock = clock
        self._monotonic = monotonic
        self._receiver = receiver
        self._hostname = printable_hostname(hostname)
        self._form = form
        self._frame = octet_counted if octet_counting else newline
        self._trust = trust
        self._outstanding = outstanding
        self._connection: _Connection | None = None

    async def ship(self, records: Sequence[Sealed]) -> None:
        connection = self._connection
        messages = await _formatted(
            records, lambda record: self._frame(message(record, self._form, self._hostname)), self._clock
        )
        if connection is None:
            connection = self._connection = await self._connect()
        elif connection.ending is not None:
            # lost meanwhile: earlier records are to be shipped again before these
            raise Unavailable(connection.ending)
        await connection.send(_chunks(messages))

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _connect(self) -> _Connection:
        connection = _Connection(self._clock, self._monotonic, self._outstanding, self._explain, self._on_loss)
        factory: Any = Factory.forProtocol(lambda: connection)
        factory.noisy = False
        if self._trust is not None:
            try:
                await self._trust.refresh()
                creator = self._trust.creator(self._receiver.host)
            except ValueError as e:
                raise Unavailable(f"syslog receiver {self._receiver}: {e}") from None
            factory = TLSMemoryBIOFactory(creator, True, factory, self._clock)
            factory.noisy = False
        end = self._monotonic() + CONNECT_SECONDS
        try:
            protocol: Any = await self._endpoint().connect(factory).addTimeout(CONNECT_SECONDS, self._clock)
            connection.begin(protocol.transport, tls=self._trust is not None)
            await connection.ready.addTimeout(max(0.0, end - self._monotonic()), self._clock)
            if connection.ending is not None:
                raise Unavailable(connection.ending)
        except CancelledError:
            connection.abort("it was given up")
            raise
        except DeferredTimeout:
            connection.abort("no connection in time")
            raise Unavailable(f"syslog receiver {self._receiver}: no connection within {CONNECT_SECONDS:g} s") from None
        except Unavailable:
            raise
        except Exception as e:
            connection.abort("no connection")
            raise Unavailable(self._explain(e)) from None
        return connection

    def _explain(self, problem: BaseException | str, *, at_once: bool = False) -> str:
        """What became of a connection, for the log. :param at_once: it ended as soon as it had begun."""
        if isinstance(problem, str):
            why = problem
        elif self._trust is not None and (words := self._trust.explain(problem, at_once=at_once)):
            why = words
        elif isinstance(problem, ConnectionDone):
            why = "it closed the connection"
        elif isinstance(problem, ConnectionClosed):
            why = "the connection broke"
        else:
            why = str(problem).rstrip(".") or type(problem).__name__
        return f"syslog receiver {self._receiver}: {why}"

    def _on_loss(self, connection: _Connection) -> None:
        if connection is self._connection:
            self._connection = None
            self.lost()


def _chunks(messages: Iterable[bytes]) -> deque[bytes]:
    """Whole messages in each, so that one that is given up leaves none half."""
    chunks: deque[bytes] = deque()
    gathered: list[bytes] = []
    size = 0
    for one in messages:
        gathered.append(one)
        size += len(one)
        if size >= CHUNK_BYTES:
            chunks.append(b"".join(gathered))
            gathered, size = [], 0
    if gathered:
        chunks.append(b"".join(gathered))
    return chunks


@implementer(IHandshakeListener, IPullProducer)
class _Connection(Protocol):
    """
    One connection to a receiver.

    It writes as a pull producer of the TCP transport, also beneath TLS: the transport asks for the next chunk when it
    has handed everything to the system, so that one chunk at most waits here, and the last question tells that nothing
    does.

    :ivar ready: fires when records may be written, with TLS after the handshake, or when it is over.
    :ivar ending: why it is over, in words; None while it lasts.
    """

    def __init__(
        self,
        clock: IReactorTime,
        monotonic: Callable[[], float],
        outstanding: Callable[[Any], int],
        explain: Callable[..., str],
        on_loss: Callable[[_Connection], None],
    ) -> None:
        self.ready: Deferred[None] = Deferred()
        self.ending: str | None = None
        self._clock = clock
        self._monotonic = monotonic
        self._outstanding = outstanding
        self._explain = explain
        self._on_loss = on_loss
        self._tcp: Any = None
        self._chunks: deque[bytes] = deque()
        self._producing = False
        self._heard = 0
        self._proven_at = 0.0
        self._wait: Deferred[None] | None = None
        self._over: Deferred[None] = Deferred()

    # -- the transport's side -----------------------------------------------------------------------------------------
    def begin(self, transport: Any, *, tls: bool) -> None:
        """
        The connection is there.

        :param transport: of TCP: ours, or beneath TLS.
        """
        self._tcp = transport
        with suppress(OSError, AttributeError):
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
            handle = transport.getHandle()
            for option, value in (
                ("TCP_KEEPIDLE", KEEPALIVE_IDLE_SECONDS),
                ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_SECONDS),
                ("TCP_KEEPCNT", KEEPALIVE_PROBES),
            ):
                handle.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        if not tls:
            self.handshakeCompleted()

    def handshakeCompleted(self) -> None:
        self._proven_at = self._monotonic() + PROBATION_SECONDS
        if not self.ready.called:
            self.ready.callback(None)

    def dataReceived(self, data: bytes) -> None:
        self._heard += len(data)
        if self._heard > PEER_BYTES:
            self.abort("it talks, which syslog receivers do not; is this the right port?")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        problem: BaseException = reason.value or ConnectionDone()
        self._end(problem)
        if not self._over.called:
            self._over.callback(None)

    def resumeProducing(self) -> None:
        """The transport has handed everything to the system."""
        if self._chunks and self.ending is None and not getattr(self._tcp, "disconnecting", False):
            assert self.transport is not None
            self.transport.write(self._chunks.popleft())
        else:
            # also when TLS wants to close: the transport does not while it has a producer
            self._stop_producing()
        self._wake()

    def stopProducing(self) -> None:
        """The transport is closed; connectionLost follows."""
        self._producing = False

    # -- the shipper's side -------------------------------------------------------------------------------------------
    async def send(self, chunks: deque[bytes]) -> None:
        """
        Returns when the receiver's system has acknowledged them.

        :raise Unavailable: the connection was lost.
        """
        try:
            self._chunks = chunks
            self._producing = True
            self._tcp.registerProducer(self, False)
            await self._acknowledged()
        finally:
            # whoever gives up leaves whole messages behind
            self._chunks = deque()
            self._stop_producing()
        if self.ending is not None:
            raise Unavailable(self.ending)

    async def _acknowledged(self) -> None:
        look = FIRST_LOOK_SECONDS
        state: tuple[int, bool, int] | None = None
        since = 0.0
        while self.ending is None:
            now = self._monotonic()
            before, state = state, (len(self._chunks), self._producing, self._outstanding(self._tcp))
            if state == (0, False, 0):
                if now >= self._proven_at:
                    return
                await self._pause(self._proven_at - now)
                continue
            if state != before:
                since = now
            elif now - since >= STALL_SECONDS:
                self.abort(f"it takes nothing for {STALL_SECONDS:g} s")
                return
            await self._pause(look)
            look = min(2 * look, LONGEST_LOOK_SECONDS)

    async def close(self) -> None:
        """What is still on its way gets a moment."""
        if self.ending is not None:
            return
        self._stop_producing()
        assert self.transport is not None
        self.transport.loseConnection()
        try:
            await self._over.addTimeout(CLOSE_SECONDS, self._clock)
        except DeferredTimeout:
            self.abort("we closed it")

    def abort(self, why: str) -> None:
        self._stop_producing()
        self._end(why)
        if self._tcp is not None:
            self._tcp.abortConnection()

    def _end(self, problem: BaseException | str) -> None:
        if self.ending is not None:
            return
        begun = self.ready.called and self._monotonic() >= self._proven_at
        self.ending = self._explain(problem, at_once=not begun)
        self._on_loss(self)
        if not self.ready.called:
            self.ready.callback(None)
        self._wake()

    def _stop_producing(self) -> None:
        if self._producing:
            self._producing = False
            self._tcp.unregisterProducer()

    def _wake(self) -> None:
        wait, self._wait = self._wait, None
        if wait is not None and not wait.called:
            wait.callback(None)

    async def _pause(self, seconds: float) -> None:
        """So long, or until something happens."""
        wait = self._wait = Deferred()
        timer = self._clock.callLater(seconds, self._wake)
        try:
            await wait
        finally:
            self._wait = None
            if timer.active():
                timer.cancel()
