"""Syslog: messages byte for byte, and the two shippers without a network."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL, crypto
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, execute, fail, succeed
from twisted.internet.error import (
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    MessageLengthError,
)
from twisted.internet.interfaces import IHandshakeListener, IPullProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from identree.core import audit
from identree.core.audit import Sealed
from identree.core.events import ChallengeApproved
from identree.sinks import syslog
from identree.sinks.follower import Rejected, Unavailable
from identree.sinks.formats import FORMATS, NATIVE
from identree.sinks.syslog import (
    BURST,
    BURST_PAUSE_SECONDS,
    CHUNK_BYTES,
    CLOSE_SECONDS,
    CONNECT_SECONDS,
    KEEPALIVE_IDLE_SECONDS,
    LEAST_UDP_BYTES,
    LONGEST_LOOK_SECONDS,
    MOST_UDP_BYTES,
    PEER_BYTES,
    PROBATION_SECONDS,
    RESOLVE_AGAIN_SECONDS,
    RESOLVE_REFUSED_SECONDS,
    RESOLVE_SECONDS,
    SLICE,
    STALL_SECONDS,
    UDP_PATIENCE_SECONDS,
    Receiver,
    SyslogTCP,
    SyslogUDP,
    datagram,
    first_address,
    message,
    newline,
    octet_counted,
    parse_url,
    printable_hostname,
    unacknowledged,
)
from identree.sinks.tls import ClientTrust, TrustFiles
from tests.ldap.certificates import TestCA, key_pem, pem
from tests.sinks.records import sealed

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NAME = "logs.example.com"
# RFC 5424 section 6, as far as our messages use it.
GRAMMAR = re.compile(
    rb"<86>1 (?P<timestamp>[!-~]{1,32}) (?P<hostname>[!-~]{1,255}) identree - - "
    rb'\[identree@0 event="(?P<event>(?:[^"\\\]]|\\.)*)" username="(?P<username>(?:[^"\\\]]|\\.)*)" '
    rb'hostname="(?P<target>(?:[^"\\\]]|\\.)*)"(?: truncated="(?P<truncated>[0-9]+)")?\] (?P<msg>.*)',
    re.DOTALL,
)


def record(username: str = "alice", hostname: str = "web-01", reason: str = "because") -> Sealed:
    event = ChallengeApproved(at=AT, username=username, hostname=hostname, actor="bob", reason=reason)
    return audit.seal(audit.Head(), audit.fields(event), version="dev", instance="a1")[1]


def broken() -> Sealed:
    return Sealed(instance="a1", seq=7, plain=b"half of a rec", canonical=b"half of a rec", hash="")


class MessageTests(SynchronousTestCase):
    """Section 7 of the specification, and RFC 5424."""

    def test_message(self) -> None:
        """Byte for byte as deployed."""
        self.assertEqual(
            message(record(reason="a <b> & c"), NATIVE, "identree-1"),
            b'<86>1 2026-01-02T03:04:05Z identree-1 identree - - [identree@0 event="challenge_approved" '
            b'username="alice" hostname="web-01"] {"seq":0,"timestamp":"2026-01-02T03:04:05Z",'
            b'"event":"challenge_approved","username":"alice","hostname":"web-01","actor":"bob",'
            b'"reason":"a \\u003cb\\u003e \\u0026 c","source":"identree","version":"dev","instance":"a1"}',
        )

    def test_empty_hostname(self) -> None:
        """All three parameters are there, even when one is empty."""
        self.assertIn(b' hostname=""] {', message(record(hostname=""), NATIVE, "h"))

    def test_escapes(self) -> None:
        """Backslash, quote and bracket are escaped in structured data."""
        self.assertIn(b'username="a\\\\b\\"c\\]d[" ', message(record('a\\b"c]d['), NATIVE, "h"))

    def test_utf8(self) -> None:
        """Anything else is UTF-8."""
        self.assertIn('username="änne 木" '.encode(), message(record("änne 木"), NATIVE, "h"))

    def test_no_newline(self) -> None:
        """A control character does not end the message."""
        written = message(record("a\nb\x00c\r"), NATIVE, "h")
        self.assertIn(b'username="a?b?c?" ', written)
        self.assertNotIn(b"\n", written)

    def test_forms(self) -> None:
        """Whatever the form of MSG, the rest is the same and there is no newline."""
        for form in FORMATS.values():
            written = message(record("a\nb"), form, "h")
            self.assertTrue(written.endswith(b"] " + form.wire(record("a\nb"))), written)
            self.assertNotIn(b"\n", written)

    def test_no_time(self) -> None:
        """A record without a usable time has the NILVALUE."""
        odd = Sealed(
            instance="", seq=0, plain=b'{"timestamp":"a b","event":"e","username":""}', canonical=b"x", hash=""
        )
        self.assertTrue(message(odd, NATIVE, "h").startswith(b"<86>1 - h identree - - "))

    def test_no_record(self) -> None:
        """What is no record is refused, without its content."""
        for raw in (b"half", b"[]", b"{}", b'{"timestamp":1,"event":"e","username":"u"}'):
            with self.assertRaisesRegex(ValueError, "^it is no audit record$"):
                message(Sealed(instance="", seq=0, plain=raw, canonical=raw, hash=""), NATIVE, "h")

    def test_hostname(self) -> None:
        """HOSTNAME is printable ASCII of 255 characters at most, and never empty."""
        self.assertEqual(printable_hostname("web 01\n.örg"), "web01.rg")
        self.assertEqual(printable_hostname("x" * 300), "x" * 255)
        self.assertEqual(printable_hostname("\u6728"), "identree")

    def test_framing(self) -> None:
        """A newline behind, or the length before."""
        self.assertEqual((newline(b"abc"), octet_counted("é".encode())), (b"abc\n", b"2 \xc3\xa9"))

    # -- datagrams ----------------------------------------------------------------------------------------------------
    def test_short(self) -> None:
        """What fits is whole, with the newline as deployed."""
        self.assertEqual(datagram(record(), NATIVE, "h", 2048), message(record(), NATIVE, "h") + b"\n")

    def test_fits_exactly(self) -> None:
        """The limit itself is allowed; one byte less is not."""
        whole = message(record(reason="x" * 500), NATIVE, "h") + b"\n"
        self.assertEqual(datagram(record(reason="x" * 500), NATIVE, "h", len(whole)), whole)
        cut = datagram(record(reason="x" * 500), NATIVE, "h", len(whole) - 1)
        self.assertIn(b' truncated="', cut)

    def test_cut(self) -> None:
        """Header and parameters stay; the record is cut, and says by how much."""
        whole = record(reason="x" * 500)
        cut = datagram(whole, NATIVE, "h", 480)
        parts = GRAMMAR.fullmatch(cut.removesuffix(b"\n"))
        assert parts is not None
        self.assertEqual((parts["username"], parts["target"]), (b"alice", b"web-01"))
        self.assertEqual(parts["msg"] + whole.canonical[len(parts["msg"]) :], whole.canonical)
        self.assertEqual(int(parts["truncated"]), len(whole.canonical) - len(parts["msg"]))
        self.assertGreater(len(cut), 470)

    @given(
        username=st.text(max_size=600),
        target=st.text(max_size=600),
        reason=st.text(max_size=600),
        hostname=st.text(max_size=300),
        limit=st.integers(LEAST_UDP_BYTES, 4096),
        form=st.sampled_from(sorted(FORMATS)),
    )
    def test_any(self, username: str, target: str, reason: str, hostname: str, limit: int, form: str) -> None:
        """Whatever a record holds, a datagram is within the limit, UTF-8, and in the grammar."""
        one, how = record(username, target, reason), FORMATS[form]
        sent = datagram(one, how, printable_hostname(hostname), limit)
        self.assertLessEqual(len(sent), limit)
        sent.decode()
        self.assertEqual(sent[-1:], b"\n")
        parts = GRAMMAR.fullmatch(sent[:-1])
        assert parts is not None, sent
        text = how.wire(one)
        self.assertTrue(text.startswith(parts["msg"]))
        missing = int(parts["truncated"] or 0)
        self.assertEqual(len(parts["msg"]) + missing, len(text))


class ReceiverTests(SynchronousTestCase):
    """The setting."""

    def test_good(self) -> None:
        """The three transports; names, addresses, brackets."""
        for url, transport, host, port in (
            ("udp://logs.example.com:514", "udp", "logs.example.com", 514),
            ("tcp://10.0.0.1:601", "tcp", "10.0.0.1", 601),
            ("tcp://[2001:db8::1]:601", "tcp", "2001:db8::1", 601),
            ("TCP+TLS://logs_1:6514/", "tls", "logs_1", 6514),
            (" tcp://a:65535 ", "tcp", "a", 65535),
        ):
            found = parse_url(url)
            self.assertEqual((found.transport, found.host, found.port), (transport, host, port))

    def test_text(self) -> None:
        """How it is named in texts."""
        self.assertEqual(str(parse_url("tcp://[::1]:601")), "[::1]:601")
        self.assertEqual(str(parse_url("udp://a:514")), "a:514")

    def test_bad(self) -> None:
        """Each mistake has a text that says what is right, and repeats nothing."""
        for url, why in (
            ("logs.example.com:514", "must begin with udp://"),
            ("http://logs.example.com:514", "must begin with udp://"),
            ("tcp://logs.example.com", "must end with the receiver's port"),
            ("tcp://logs.example.com:0", "must end with the receiver's port"),
            ("tcp://logs.example.com:65536", "must end with the receiver's port"),
            ("tcp://logs.example.com:x", "must end with the receiver's port"),
            ("tcp://:601", "must name a host"),
            ("tcp://user:sesame@logs:601", "must name a host"),
            ("tcp://logs/x:601", "must name a host"),
            ("tcp://::1:601", "must name a host"),
            ("tcp://[10.0.0.1]:601", "must be an IPv6 address"),
            ("tcp://[logs]:601", "must be an IPv6 address"),
        ):
            with self.assertRaises(ValueError) as raised:
                parse_url(url)
            self.assertIn(why, str(raised.exception), url)
            self.assertNotIn("sesame", str(raised.exception))

    def test_first_address(self) -> None:
        """The first address that the system has for a name; none is an error."""

        class Resolver:
            found: tuple[object, ...] = (IPv6Address("UDP", "::1", 0), IPv4Address("UDP", "127.0.0.1", 0))

            def resolveHostName(self, receiver: Any, name: str, port: int, *, transportSemantics: str) -> Any:
                receiver.resolutionBegan(self)
                for address in self.found:
                    receiver.addressResolved(address)
                receiver.resolutionComplete()
                return self

        resolver: Any = Resolver()
        self.assertEqual(self.successResultOf(first_address(resolver)("localhost")), "::1")
        resolver.found = ()
        self.failureResultOf(first_address(resolver)("nobody"), DNSLookupError)


# -- UDP --------------------------------------------------------------------------------------------------------------
class FakePort:
    """A UDP socket; ``trouble`` is raised instead of sending, while there is some."""

    def __init__(self, network: FakeUDP, protocol: Any, interface: str) -> None:
        self.network, self.protocol, self.interface = network, protocol, interface
        self.peer: tuple[str, int] | None = None
        self.closed = False

    def connect(self, host: str, port: int) -> None:
        self.peer = (host, port)

    def write(self, datagram: bytes, addr: Any = None) -> None:
        if self.network.refusing:
            self.network.refusing -= 1
            self.protocol.connectionRefused()
            return
        if self.network.trouble:
            raise self.network.trouble.pop(0)
        assert self.peer is not None
        self.network.sent.append((self.peer, datagram))

    def stopListening(self) -> Deferred[None]:
        self.closed = True
        self.protocol.doStop()
        return succeed(None)


class FakeUDP:
    """The part of the reactor that makes UDP sockets, and the network behind it."""

    def __init__(self) -> None:
        self.ports: list[FakePort] = []
        self.sent: list[tuple[tuple[str, int], bytes]] = []
        self.trouble: list[Exception] = []
        self.refusing = 0

    def listenUDP(self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192) -> FakePort:
        made = FakePort(self, protocol, interface)
        self.ports.append(made)
        protocol.makeConnection(made)
        return made


class UDPTests(SynchronousTestCase):
    """Fire and forget."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.network: Any = FakeUDP()
        self.asked: list[str] = []
        self.answer: Callable[[], Deferred[str]] = lambda: succeed("192.0.2.1")

    def resolve(self, name: str) -> Deferred[str]:
        self.asked.append(name)
        return self.answer()

    def shipper(self, host: str = NAME, max_bytes: int = 2048) -> SyslogUDP:
        clock: Any = self.clock
        return SyslogUDP(
            host,
            514,
            hostname="h ö",
            form=NATIVE,
            max_bytes=max_bytes,
            udp=self.network,
            resolve=self.resolve,
            clock=clock,
            monotonic=self.clock.seconds,
        )

    def ship(self, shipper: SyslogUDP, records: list[Sealed]) -> Deferred[None]:
        return Deferred.fromCoroutine(shipper.ship(records))

    def test_ships(self) -> None:
        """One datagram per record, to the address of the name."""
        self.successResultOf(self.ship(self.shipper(), sealed(2)))
        self.assertEqual(
            self.network.sent, [(("192.0.2.1", 514), datagram(one, NATIVE, "h", 2048)) for one in sealed(2)]
        )
        self.assertEqual((self.asked, self.network.ports[0].interface), ([NAME], ""))

    def test_cuts(self) -> None:
        """No datagram is longer than the setting."""
        self.successResultOf(self.ship(self.shipper(max_bytes=480), [record(reason="x" * 500)]))
        [(_, sent)] = self.network.sent
        self.assertLessEqual(len(sent), 480)

    def test_limits(self) -> None:
        """Limits that no datagram can have are refused."""
        for limit in (LEAST_UDP_BYTES - 1, MOST_UDP_BYTES + 1):
            with self.assertRaises(ValueError):
                self.shipper(max_bytes=limit)

    def test_literals(self) -> None:
        """Addresses are not looked up; IPv6 has a socket of its own kind."""
        self.successResultOf(self.ship(self.shipper("192.0.2.7"), sealed(1)))
        self.successResultOf(self.ship(self.shipper("2001:db8::1"), sealed(1)))
        self.assertEqual([there for there, _ in self.network.sent], [("192.0.2.7", 514), ("2001:db8::1", 514)])
        self.assertEqual((self.asked, [port.interface for port in self.network.ports]), ([], ["", "::"]))

    def test_bursts(self) -> None:
        """A long batch has pauses, so that it does not overrun the receiver."""
        shipping = self.ship(self.shipper(), sealed(BURST + 1))
        self.assertEqual(len(self.network.sent), BURST)
        self.clock.advance(BURST_PAUSE_SECONDS)
        self.successResultOf(shipping)
        self.assertEqual(len(self.network.sent), BURST + 1)

    def test_slices(self) -> None:
        """Other work goes on while a long batch is formatted."""
        self.ship(self.shipper(), sealed(SLICE + 1))
        self.assertEqual(self.network.sent, [])
        self.clock.advance(0)
        self.assertEqual(len(self.network.sent), BURST)

    def test_moves(self) -> None:
        """A receiver that has moved is found after a while; the old socket is closed."""
        shipper = self.shipper()
        self.successResultOf(self.ship(shipper, sealed(1)))
        self.answer = lambda: succeed("2001:db8::2")
        self.successResultOf(self.ship(shipper, sealed(1)))
        self.clock.advance(RESOLVE_AGAIN_SECONDS)
        self.successResultOf(self.ship(shipper, sealed(1)))
        hosts = [there[0] for there, _ in self.network.sent]
        self.assertEqual(hosts, ["192.0.2.1", "192.0.2.1", "2001:db8::2"])
        self.assertEqual([port.closed for port in self.network.ports], [True, False])

    def test_stays(self) -> None:
        """The same answer keeps the socket."""
        shipper = self.shipper()
        for _ in range(2):
            self.successResultOf(self.ship(shipper, sealed(1)))
            self.clock.advance(RESOLVE_AGAIN_SECONDS)
        self.assertEqual((len(self.asked), len(self.network.ports)), (2, 1))

    def test_no_name(self) -> None:
        """A name that cannot be looked up is told."""
        self.answer = lambda: fail(DNSLookupError("no results"))
        failure = self.failureResultOf(self.ship(self.shipper(), sealed(1)), Unavailable)
        self.assertIn(f"syslog receiver {NAME}:514: its name cannot be looked up: ", str(failure.value))

    def test_silent_name_server(self) -> None:
        """A name server that says nothing is not waited for."""
        self.answer = Deferred
        shipping = self.ship(self.shipper(), sealed(1))
        self.clock.advance(RESOLVE_SECONDS)
        self.assertIn("no answer", str(self.failureResultOf(shipping, Unavailable).value))

    def test_name_server_away(self) -> None:
        """What was known before is good enough then."""
        shipper = self.shipper()
        self.successResultOf(self.ship(shipper, sealed(1)))
        self.clock.advance(RESOLVE_AGAIN_SECONDS)
        self.answer = lambda: fail(DNSLookupError("no results"))
        self.successResultOf(self.ship(shipper, sealed(1)))
        self.assertEqual(len(self.network.sent), 2)

    def test_refused(self) -> None:
        """A refusal stops nothing: the datagram in whose place it was told is sent, and the name looked up again."""
        shipper = self.shipper()
        self.successResultOf(self.ship(shipper, sealed(1)))
        self.network.refusing = 1
        self.clock.advance(RESOLVE_REFUSED_SECONDS)
        self.successResultOf(self.ship(shipper, sealed(1)))
        self.assertEqual(len(self.network.sent), 2)
        self.successResultOf(self.ship(shipper, sealed(1)))
        self.assertEqual(len(self.asked), 2)

    def test_closed_by_the_reactor(self) -> None:
        """A socket that the reactor closes because of a refusal is replaced, also in the middle of a batch."""
        shipper = self.shipper()
        shipping = self.ship(shipper, sealed(2 * BURST))
        self.network.ports[0].protocol.doStop()
        self.clock.advance(BURST_PAUSE_SECONDS)
        self.successResultOf(shipping)
        self.assertEqual((len(self.network.sent), len(self.network.ports)), (2 * BURST, 2))

    def test_refusals_are_logged(self) -> None:
        """That nobody receives is said, once in a while."""
        said: list[LogEvent] = []

        def note(event: LogEvent) -> None:
            if "receiver" in event.get("attributes", {}):
                said.append(event)

        observer = cast(ILogObserver, note)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        shipper = self.shipper()
        for _ in range(2):
            self.network.refusing = 2
            self.successResultOf(self.ship(shipper, sealed(1)))
        self.assertEqual([event["attributes"] for event in said], [{"receiver": f"{NAME}:514"}])

    def test_refusals_are_bounded(self) -> None:
        """However many there are, the name is not looked up with every batch."""
        shipper = self.shipper()
        for _ in range(20):
            self.network.refusing = 1
            self.successResultOf(self.ship(shipper, sealed(1)))
        self.assertEqual(len(self.asked), 1)

    def test_no_room(self) -> None:
        """A system without room is tried again for a while."""
        self.network.trouble = [OSError(errno.ENOBUFS, "No buffer space"), BlockingIOError(errno.EAGAIN, "again")]
        shipping = self.ship(self.shipper(), sealed(1))
        self.assertNoResult(shipping)
        self.clock.pump([BURST_PAUSE_SECONDS] * 4)
        self.successResultOf(shipping)
        self.assertEqual(len(self.network.sent), 1)

    def test_never_room(self) -> None:
        """Then it is told."""
        self.network.trouble = [OSError(errno.ENOBUFS, "No buffer space") for _ in range(100)]
        shipping = self.ship(self.shipper(), sealed(1))
        self.clock.pump([0.1] * int(UDP_PATIENCE_SECONDS * 30))
        self.assertIn("No buffer space", str(self.failureResultOf(shipping, Unavailable).value))

    def test_too_long(self) -> None:
        """A datagram that the system does not send names the setting."""
        self.network.trouble = [MessageLengthError("message too long")]
        failure = self.failureResultOf(self.ship(self.shipper(), sealed(1)), Unavailable)
        self.assertIn("IDENTREE_AUDIT_SYSLOG_MAX_UDP_BYTES", str(failure.value))

    def test_unreachable(self) -> None:
        """Without a way to the receiver it is told; the next attempt has a new socket."""
        shipper = self.shipper()
        self.network.trouble = [OSError(errno.ENETUNREACH, "Network is unreachable")]
        failure = self.failureResultOf(self.ship(shipper, sealed(1)), Unavailable)
        self.assertEqual(str(failure.value), f"syslog receiver {NAME}:514: Network is unreachable")
        self.successResultOf(self.ship(shipper, sealed(1)))
        self.assertEqual([port.closed for port in self.network.ports], [True, False])

    def test_no_record(self) -> None:
        """A batch with a broken record is refused before anything is sent."""
        self.failureResultOf(self.ship(self.shipper(), [*sealed(1), broken()]), Rejected)
        self.assertEqual(self.network.sent, [])

    def test_close(self) -> None:
        """The socket is given back; closing twice does nothing."""
        shipper = self.shipper()
        self.successResultOf(self.ship(shipper, sealed(1)))
        for _ in range(2):
            self.successResultOf(shipper.close())
        self.assertTrue(self.network.ports[0].closed)


# -- TCP --------------------------------------------------------------------------------------------------------------
class FakeSocket:
    def __init__(self) -> None:
        self.options: dict[int, int] = {}

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.options[option] = value


class Line(StringTransport):
    """
    A TCP transport. What is written waits until :meth:`take`; then the system has it, until :meth:`acknowledge`.

    :ivar arrived: all that was taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.arrived = b""
        self.unacknowledged = 0
        self.keepalive = self.aborted = False
        self.socket = FakeSocket()

    def setTcpNoDelay(self, enabled: bool) -> None:
        """There is no network."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.keepalive = enabled

    def getHandle(self) -> Any:
        return self.socket

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        super().registerProducer(producer, streaming)
        producer.resumeProducing()

    def take(self) -> None:
        """The system takes what waits; as long as more comes, that too."""
        while waiting := self.value():
            self.clear()
            self.arrived += waiting
            self.unacknowledged += len(waiting)
            if self.producer is not None:
                self.producer.resumeProducing()

    def acknowledge(self) -> None:
        self.unacknowledged = 0

    def abortConnection(self) -> None:
        self.aborted = True
        self.end(ConnectionLost())

    def end(self, why: Exception) -> None:
        self.disconnected = True
        self.protocol.connectionLost(Failure(why))


class Endpoint:
    """Gives a new :class:`Line` each time, or what ``refusal`` makes."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.refusal: Callable[[], Deferred[Any]] | None = None

    def connect(self, factory: Any) -> Deferred[Any]:
        if self.refusal is not None:
            return self.refusal()
        line = Line()
        self.lines.append(line)
        line.protocol = factory.buildProtocol(line.getPeer())
        line.protocol.makeConnection(line)
        return succeed(line.protocol)


class StreamCase(SynchronousTestCase):
    """A shipper over :class:`Line`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.endpoint = Endpoint()
        self.losses = 0

    def shipper(self, *, octet_counting: bool = False, trust: ClientTrust | None = None) -> SyslogTCP:
        endpoint: Any = self.endpoint
        clock: Any = self.clock
        made = SyslogTCP(
            lambda: endpoint,
            clock,
            self.clock.seconds,
            receiver=Receiver(transport="tcp", host=NAME, port=601),
            hostname="h",
            form=NATIVE,
            octet_counting=octet_counting,
            trust=trust,
            outstanding=lambda line: line.unacknowledged,
        )

        def lost() -> None:
            self.losses += 1

        made.lost = lost
        return made

    @property
    def line(self) -> Line:
        return self.endpoint.lines[-1]

    def ship(self, shipper: SyslogTCP, records: list[Sealed]) -> Deferred[None]:
        return Deferred.fromCoroutine(shipper.ship(records))

    def arrive(self) -> None:
        """Everything gets through and is acknowledged."""
        self.line.take()
        self.line.acknowledge()
        self.clock.advance(LONGEST_LOOK_SECONDS)

    def proven(self, **how: Any) -> SyslogTCP:
        """A shipper whose connection has shipped a record, and stood the time of probation."""
        shipper = self.shipper(**how)
        shipping = self.ship(shipper, sealed(1))
        self.arrive()
        self.clock.advance(PROBATION_SECONDS)
        self.successResultOf(shipping)
        return shipper

    def why(self, shipping: Deferred[None]) -> str:
        return str(self.failureResultOf(shipping, Unavailable).value)


class TCPTests(StreamCase):
    """One connection, its back-pressure and its ends."""

    def test_newline(self) -> None:
        """Each message ends with a newline."""
        self.ship(self.shipper(), sealed(3))
        self.arrive()
        self.assertEqual(self.line.arrived, b"".join(message(one, NATIVE, "h") + b"\n" for one in sealed(3)))

    def test_octet_counting(self) -> None:
        """Or has its length before it."""
        self.ship(self.shipper(octet_counting=True), sealed(3))
        self.arrive()
        self.assertEqual(self.line.arrived, b"".join(octet_counted(message(one, NATIVE, "h")) for one in sealed(3)))

    def test_acknowledged(self) -> None:
        """A batch is shipped when the receiver's system has acknowledged it, and not before."""
        shipper = self.proven()
        shipping = self.ship(shipper, sealed(1))
        self.clock.advance(1)
        self.assertNoResult(shipping)
        self.line.take()
        self.clock.advance(1)
        self.assertNoResult(shipping)
        self.line.acknowledge()
        self.clock.advance(LONGEST_LOOK_SECONDS)
        self.successResultOf(shipping)
        self.assertEqual((len(self.endpoint.lines), self.losses), (1, 0))

    def test_probation(self) -> None:
        """The first batch on a connection waits whether the connection lasts."""
        shipping = self.ship(self.shipper(), sealed(1))
        self.arrive()
        self.assertNoResult(shipping)
        self.clock.advance(PROBATION_SECONDS)
        self.successResultOf(shipping)

    def test_closed_at_once(self) -> None:
        """A receiver that closes within that time has nothing."""
        shipping = self.ship(self.shipper(), sealed(1))
        self.arrive()
        self.line.end(ConnectionDone())
        self.assertEqual(self.why(shipping), f"syslog receiver {NAME}:601: it closed the connection")

    def test_bounded(self) -> None:
        """One chunk at most waits in memory."""
        self.ship(self.proven(), [record(reason="x" * 500) for _ in range(SLICE)] * 4)
        for _ in range(3):
            self.clock.advance(0)
        size = len(message(record(reason="x" * 500), NATIVE, "h"))
        self.assertGreater(SLICE * 4 * size, 2 * CHUNK_BYTES)
        self.assertLessEqual(len(self.line.value()), CHUNK_BYTES + size)
        self.line.take()
        self.assertEqual(self.line.arrived.count(b"\n"), 1 + SLICE * 4)

    def test_makes_way(self) -> None:
        """A transport that wants to close, as TLS does when it fails, is not kept open by what is left to write."""
        self.ship(self.proven(), [record(reason="x" * 500) for _ in range(SLICE)] * 4)
        for _ in range(3):
            self.clock.advance(0)
        self.line.loseConnection()
        before = len(self.line.arrived)
        self.line.take()
        self.assertIsNone(self.line.producer)
        self.assertLess(len(self.line.arrived) - before, 2 * CHUNK_BYTES)

    def test_loss_while_idle(self) -> None:
        """The follower is told, and the next batch has a new connection."""
        shipper = self.proven()
        self.line.end(ConnectionDone())
        self.assertEqual(self.losses, 1)
        shipping = self.ship(shipper, sealed(1))
        self.arrive()
        self.clock.advance(PROBATION_SECONDS)
        self.successResultOf(shipping)
        self.assertEqual((len(self.endpoint.lines), self.losses), (2, 1))

    def test_loss_while_formatting(self) -> None:
        """Records do not go out before earlier ones that were lost meanwhile."""
        shipping = self.ship(self.proven(), sealed(SLICE + 1))
        self.line.end(ConnectionLost())
        self.clock.advance(0)
        self.assertIn("the connection broke", self.why(shipping))
        self.assertEqual((len(self.endpoint.lines), self.losses), (1, 1))

    def test_loss_while_shipping(self) -> None:
        """Both: the follower is told, since earlier records may be lost, and the batch is not shipped."""
        shipper = self.proven()
        shipping = self.ship(shipper, sealed(1))
        self.line.end(ConnectionLost())
        self.assertIn("the connection broke", self.why(shipping))
        self.assertEqual(self.losses, 1)

    def test_stall(self) -> None:
        """A receiver that takes nothing is given up."""
        shipper = self.proven()
        shipping = self.ship(shipper, sealed(1))
        self.line.take()
        self.clock.pump([LONGEST_LOOK_SECONDS] * int(STALL_SECONDS / LONGEST_LOOK_SECONDS - 5))
        self.assertNoResult(shipping)
        self.clock.pump([LONGEST_LOOK_SECONDS] * 10)
        self.assertIn("it takes nothing for 30 s", self.why(shipping))
        self.assertEqual((self.line.aborted, self.losses), (True, 1))

    def test_stall_before_the_system(self) -> None:
        """Also when not even the system takes anything."""
        shipper = self.proven()
        shipping = self.ship(shipper, sealed(1))
        self.clock.pump([LONGEST_LOOK_SECONDS] * int(STALL_SECONDS / LONGEST_LOOK_SECONDS + 5))
        self.assertIn("it takes nothing", self.why(shipping))
        self.assertIsNone(self.line.producer)

    def test_slow(self) -> None:
        """One that takes little is not."""
        shipper = self.proven()
        shipping = self.ship(shipper, sealed(1))
        self.line.take()
        for _ in range(10):
            self.clock.pump([LONGEST_LOOK_SECONDS] * int(STALL_SECONDS / LONGEST_LOOK_SECONDS / 2))
            self.line.unacknowledged -= 1
        self.assertNoResult(shipping)
        self.line.acknowledge()
        self.clock.advance(LONGEST_LOOK_SECONDS)
        self.successResultOf(shipping)

    def test_connect_timeout(self) -> None:
        """A connection that does not come about is told in time."""
        self.endpoint.refusal = Deferred
        shipping = self.ship(self.shipper(), sealed(1))
        self.clock.advance(CONNECT_SECONDS)
        self.assertIn("no connection within 5 s", self.why(shipping))

    def test_refused(self) -> None:
        """What the system says of a refused connection is told; nothing is lost."""
        self.endpoint.refusal = lambda: fail(ConnectionRefusedError("Connection refused"))
        said = self.why(self.ship(self.shipper(), sealed(1)))
        self.assertTrue(said.startswith(f"syslog receiver {NAME}:601: Connection was refused"), said)
        self.assertEqual(self.losses, 0)

    def test_drops_what_is_said(self) -> None:
        """Receivers say nothing; a little is passed over, without end is not."""
        self.proven()
        self.line.protocol.dataReceived(b"x" * PEER_BYTES)
        self.assertFalse(self.line.aborted)
        self.line.protocol.dataReceived(b"x")
        self.assertEqual((self.line.aborted, self.losses), (True, 1))

    def test_keepalive(self) -> None:
        """A silent connection is probed."""
        self.proven()
        self.assertTrue(self.line.keepalive)
        self.assertEqual(self.line.socket.options[socket.TCP_KEEPIDLE], KEEPALIVE_IDLE_SECONDS)

    def test_no_record(self) -> None:
        """A batch with a broken record is refused before anything is written."""
        self.failureResultOf(self.ship(self.shipper(), [*sealed(1), broken()]), Rejected)
        self.assertEqual(self.endpoint.lines, [])

    def test_cancelled(self) -> None:
        """Who gives up a batch leaves whole messages behind, and the connection goes on."""
        shipper = self.proven()
        shipping = self.ship(shipper, [record(reason="x" * 500) for _ in range(SLICE)] * 4)
        for _ in range(3):
            self.clock.advance(0)
        shipping.addErrback(lambda failure: None)
        shipping.cancel()
        again = self.ship(shipper, sealed(1))
        self.arrive()
        self.successResultOf(again)
        lines = self.line.arrived.split(b"\n")
        self.assertTrue(all(GRAMMAR.fullmatch(one) and json.loads(one[one.index(b"{") :]) for one in lines[:-1]))
        self.assertEqual(lines[-1], b"")

    def test_cancelled_while_connecting(self) -> None:
        """An attempt can be given up."""
        attempt: Deferred[Any] = Deferred()
        self.endpoint.refusal = lambda: attempt
        shipping = self.ship(self.shipper(), sealed(1))
        shipping.addErrback(lambda failure: None)
        shipping.cancel()
        self.assertTrue(attempt.called)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_close(self) -> None:
        """At the end the connection is closed; that is no loss."""
        shipper = self.proven()
        closing = Deferred.fromCoroutine(shipper.close())
        self.assertTrue(self.line.disconnecting)
        self.assertNoResult(closing)
        self.line.end(ConnectionDone())
        self.successResultOf(closing)
        self.assertEqual(self.losses, 0)

    def test_close_of_the_deaf(self) -> None:
        """Nobody waits long for a receiver that does not react."""
        shipper = self.proven()
        closing = Deferred.fromCoroutine(shipper.close())
        self.clock.advance(CLOSE_SECONDS)
        self.successResultOf(closing)
        self.assertEqual((self.line.aborted, self.losses), (True, 0))

    def test_close_before_anything(self) -> None:
        """Without a connection there is nothing to close."""
        self.successResultOf(self.shipper().close())

    def test_leaves_no_timers(self) -> None:
        """When a batch is shipped, nothing is pending."""
        self.proven()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_interfaces(self) -> None:
        """Twisted finds what it looks for."""
        self.proven()
        verifyObject(IHandshakeListener, self.line.protocol)
        verifyObject(IPullProducer, self.line.protocol)


class TLSTests(StreamCase):
    """The same through TLS, with a receiver's TLS in memory."""

    def setUp(self) -> None:
        super().setUp()
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.ca = TestCA()
        self.heard = b""
        self.server: SSL.Connection | None = None

    def write(self, name: str, content: bytes) -> str:
        path = self.directory / name
        path.write_bytes(content)
        return str(path)

    def trust(self, ca: TestCA | None = None, *, identified: bool = False) -> ClientTrust:
        certificate, key = self.ca.issue("identree.example.com")
        files = TrustFiles(
            ca=self.write("ca.pem", pem((ca or self.ca).certificate)),
            certificate=self.write("client.pem", pem(certificate)) if identified else "",
            key=self.write("client.key", key_pem(key)) if identified else "",
            settings="IDENTREE_AUDIT_SYSLOG",
        )

        def inline(function: Callable[[], Any]) -> Deferred[Any]:
            return execute(function)

        return ClientTrust(files, inline)

    def receiver(self, *, demands: bool = False) -> SSL.Connection:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        certificate, key = self.ca.issue(NAME, eku=ExtendedKeyUsageOID.SERVER_AUTH)
        context.use_certificate(certificate)
        context.use_privatekey(key)
        if demands:
            store = context.get_cert_store()
            assert store is not None
            store.add_cert(crypto.X509.from_cryptography(self.ca.certificate))
            context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        server = SSL.Connection(context, None)
        server.set_accept_state()
        return server

    def talk(self, server: SSL.Connection) -> None:
        """Carry bytes to and fro until there are no more."""
        for _ in range(30):
            before = len(self.line.arrived)
            self.line.take()
            self.line.acknowledge()
            came = self.line.arrived[before:]
            if came:
                server.bio_write(came)
            with contextlib.suppress(SSL.Error):
                self.heard += server.recv(1 << 20)
            try:
                answer = server.bio_read(1 << 20)
            except SSL.Error:
                answer = b""
            if answer and not self.line.disconnected:
                self.line.protocol.dataReceived(answer)
            if self.line.disconnecting and not self.line.disconnected:
                self.line.end(ConnectionDone())
            self.clock.advance(0.002)

    def test_ships(self) -> None:
        """What the receiver reads is the messages."""
        shipping = self.ship(self.shipper(octet_counting=True, trust=self.trust()), sealed(SLICE))
        self.talk(self.receiver())
        self.clock.advance(PROBATION_SECONDS)
        self.successResultOf(shipping)
        self.assertEqual(self.heard, b"".join(octet_counted(message(one, NATIVE, "h")) for one in sealed(SLICE)))

    def test_large(self) -> None:
        """More than a chunk is whole as well, and in order."""
        records = sealed(SLICE, reason="x" * 500) * 4
        shipping = self.ship(self.shipper(trust=self.trust()), records)
        for _ in range(3):
            self.clock.advance(0)
        server = self.receiver()
        self.talk(server)
        self.clock.advance(PROBATION_SECONDS)
        self.successResultOf(shipping)
        self.assertEqual(self.heard, b"".join(newline(message(one, NATIVE, "h")) for one in records))

    def test_foreign_ca(self) -> None:
        """Nothing is sent to a receiver that is not trusted; the text says what to do."""
        shipping = self.ship(self.shipper(trust=self.trust(TestCA("another"))), sealed(1))
        self.talk(self.receiver())
        self.assertIn("IDENTREE_AUDIT_SYSLOG_CA_FILE", self.why(shipping))
        self.assertEqual((self.heard, self.losses), (b"", 0))

    def test_no_client_certificate(self) -> None:
        """A receiver that misses ours says so after the handshake (TLS 1.3); nothing counts as shipped."""
        shipping = self.ship(self.shipper(trust=self.trust()), sealed(1))
        self.talk(self.receiver(demands=True))
        self.assertIn("set IDENTREE_AUDIT_SYSLOG_CERT_FILE", self.why(shipping))
        self.assertEqual(self.heard, b"")

    def test_client_certificate(self) -> None:
        """With it, it listens."""
        shipping = self.ship(self.shipper(trust=self.trust(identified=True)), sealed(1))
        self.talk(self.receiver(demands=True))
        self.clock.advance(PROBATION_SECONDS)
        self.successResultOf(shipping)
        self.assertIn(b"challenge_approved", self.heard)

    def test_closed_without_a_word(self) -> None:
        """Some receivers close instead of saying what they miss."""
        shipping = self.ship(self.shipper(trust=self.trust()), sealed(1))
        self.talk(self.receiver())
        self.line.end(ConnectionLost())
        self.assertIn("if it demands a client certificate, compare IDENTREE_AUDIT_SYSLOG_CERT_FILE", self.why(shipping))

    def test_silent(self) -> None:
        """A receiver that does not shake hands is not waited for."""
        shipping = self.ship(self.shipper(trust=self.trust()), sealed(1))
        self.clock.advance(CONNECT_SECONDS)
        self.assertIn("no connection within 5 s", self.why(shipping))
        self.assertTrue(self.line.aborted)

    def test_unusable_file(self) -> None:
        """A CA file that cannot be used is named, and nobody is called."""
        trust = self.trust()
        self.write("ca.pem", b"nothing")
        self.assertIn("IDENTREE_AUDIT_SYSLOG_CA_FILE: ", self.why(self.ship(self.shipper(trust=trust), sealed(1))))
        self.assertEqual(self.endpoint.lines, [])

    def test_loss_later(self) -> None:
        """A receiver that ends TLS in good order is lost at once."""
        server = self.receiver()
        shipper = self.shipper(trust=self.trust())
        shipping = self.ship(shipper, sealed(1))
        self.talk(server)
        self.clock.advance(PROBATION_SECONDS)
        self.successResultOf(shipping)
        server.shutdown()
        self.talk(server)
        self.assertEqual(self.losses, 1)


class UnacknowledgedTests(SynchronousTestCase):
    """What the system tells about a connection."""

    def test_full(self) -> None:
        """A receiver that reads nothing leaves bytes unacknowledged once its system is full."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            self.addCleanup(ours.close)
            theirs, _ = listener.accept()
            self.addCleanup(theirs.close)
        ours.setblocking(False)
        with self.assertRaises(BlockingIOError):
            while True:
                ours.send(b"x" * 65536)

        class Transport:
            def getHandle(self) -> socket.socket:
                return ours

        self.assertGreater(unacknowledged(Transport()), 0)

    def test_not_told(self) -> None:
        """Where the system does not tell, what it has taken counts as arrived."""
        self.assertEqual(unacknowledged(StringTransport()), 0)


class BoundsTests(SynchronousTestCase):
    """Numbers that belong together."""

    def test_settles_after_probation(self) -> None:
        """What was shipped on a connection on probation is not settled before it is over."""
        self.assertGreater(syslog.SETTLE_SECONDS, PROBATION_SECONDS)
        self.assertGreater(SyslogTCP.settle_seconds, 0)
        self.assertEqual(SyslogUDP.settle_seconds, 0)
