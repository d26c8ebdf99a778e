"""A follower with a real database and the syslog shippers, against a real rsyslog."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as installed
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.trial.unittest import TestCase

from identree.core.events import ChallengeApproved
from identree.sinks.follower import Follower, Shipper
from identree.sinks.formats import NATIVE
from identree.sinks.syslog import Receiver, SyslogTCP, SyslogUDP, first_address, message
from identree.sinks.tls import ClientTrust, TrustFiles
from identree.storage.opening import open_store
from identree.storage.store import SqlStore
from tests.e2e.rsyslog import Identity, Rsyslog
from tests.e2e.tls import CA
from tests.fakes import MemoryLog

pytestmark = pytest.mark.e2e

reactor: Any = installed
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOSTNAME = "identree-1"
RECEIVER_NAME = "logs.example.com"
OUR_NAME = "identree.example.com"
PREFIX = "IDENTREE_AUDIT_SYSLOG"
# For everything to arrive on a busy machine.
PATIENCE_SECONDS = 90.0
# An hour in production and a minute in the issue; what matters is that it outlasts the growing pauses between attempts.
AWAY_SECONDS = 15.0
# Events that are emitted per tenth of a second while there is load.
LOAD = 40


def now() -> datetime:
    return datetime.now(UTC)


class Count:
    """Of what became of records."""

    def __init__(self) -> None:
        self.shipped = self.failures = self.aside = 0

    def emitted(self, count: int) -> None:
        self.shipped += count

    def failed(self) -> None:
        self.failures += 1

    def parked(self, count: int) -> None:
        self.aside += count


class RsyslogTests(TestCase):
    """What is emitted arrives."""

    timeout = 240

    def setUp(self) -> Any:
        return Deferred.fromCoroutine(self._set_up())

    async def _set_up(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.log = MemoryLog()
        self.store: SqlStore = open_store(
            reactor,
            driver="sqlite",
            dsn=str(self.directory / "identree.db"),
            version="1.0",
            instance="0123456789abcdef",
            log=self.log,
            sinks=("syslog",),
            recent_events=1024,
        )
        await self.store.start()
        self.addCleanup(self.store.stop)
        self.count = Count()
        self.troubles: list[str] = []
        self.ca = CA(self.directory / "ca")

    def _observe(self, event: dict[str, Any]) -> None:
        if event.get("message") == "AUDIT sink error":
            self.troubles.append(event["attributes"]["err"])

    async def rsyslog(self, identity: Identity | None = None) -> Rsyslog:
        directory = self.directory / "rsyslog"
        directory.mkdir(exist_ok=True)
        there = Rsyslog(directory, identity)
        await deferToThread(there.start)
        self.addCleanup(deferToThread, there.kill)
        return there

    def identity(self, name: str = RECEIVER_NAME) -> Identity:
        certificate, key = self.ca.issue(name)
        return Identity(ca=self.ca.certificate, certificate=certificate, key=key, peer=OUR_NAME)

    def follow(self, shipper: Shipper) -> Follower:
        follower = Follower(
            self.store.outbox,
            shipper,
            self.count,
            reactor,
            now=now,
            monotonic=time.monotonic,
            batch=256,
            log=Logger("test", observer=self._observe),  # type: ignore[arg-type]
        )
        follower.startService()
        self.addCleanup(follower.stopService)
        return follower

    def tcp(self, port: int, *, counted: bool) -> SyslogTCP:
        return self._stream(Receiver(transport="tcp", host="127.0.0.1", port=port), counted, None)

    def tls(self, port: int, *, ca: Path | None = None, identified: tuple[Path, Path] | None = None) -> SyslogTCP:
        certificate, key = identified or ("", "")
        files = TrustFiles(
            ca=str(ca or self.ca.certificate), certificate=str(certificate), key=str(key), settings=PREFIX
        )
        trust = ClientTrust(files, deferToThread)
        return self._stream(Receiver(transport="tls", host=RECEIVER_NAME, port=port), True, trust)

    def _stream(self, receiver: Receiver, counted: bool, trust: ClientTrust | None) -> SyslogTCP:
        return SyslogTCP(
            # the receiver's name is nobody's on this machine
            lambda: HostnameEndpoint(reactor, b"127.0.0.1", receiver.port, timeout=5),
            reactor,
            time.monotonic,
            receiver=receiver,
            hostname=HOSTNAME,
            form=NATIVE,
            octet_counting=counted,
            trust=trust,
        )

    async def emit(self, count: int) -> None:
        begin = len(self.log.records)
        await self.store.record(
            [
                ChallengeApproved(
                    at=START,
                    username=f"user{begin + number}",
                    hostname='web]"01\\',
                    actor="bob",
                    reason="a <reason> & änother 木 " * (number % 12),
                )
                for number in range(count)
            ]
        )

    async def load(self, seconds: float) -> None:
        """Events at a steady rate."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self.emit(LOAD)
            await deferLater(reactor, 0.1)

    async def until(self, met: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not met():
            if time.monotonic() > end:
                self.fail(f"not within {PATIENCE_SECONDS:g} s: {what}; troubles: {self.troubles}")
            await deferLater(reactor, 0.05)

    def expected(self) -> dict[bytes, int]:
        """``seq`` by message."""
        return {message(record, NATIVE, HOSTNAME): record.seq for record in self.log.records}

    async def arrived(self, there: Rsyslog, way: str) -> list[int]:
        """
        The ``seq`` of all messages, as they came, when every one has come.

        A message that was cut through when rsyslog ended may be there as well, but no byte that was not sent.
        """
        expected = self.expected()
        await self.until(lambda: expected.keys() <= set(there.received(way)), f"all of {len(expected)} over {way}")
        seqs = []
        for one in there.received(way):
            if one in expected:
                seqs.append(expected[one])
            else:
                self.assertTrue(any(whole.startswith(one) for whole in expected), one)
        return seqs

    def assert_caught_up_in_order(self, seqs: list[int]) -> None:
        """Each for the first time in order; repetitions may stand between."""
        self.assertEqual(list(dict.fromkeys(seqs)), list(range(len(self.log.records))))

    # -- one by one ---------------------------------------------------------------------------------------------------
    async def delivered(self, shipper: Shipper, there: Rsyslog, way: str) -> None:
        self.follow(shipper)
        for _ in range(20):
            await self.emit(50)
        self.assertEqual(await self.arrived(there, way), list(range(1000)))
        self.assertEqual((self.troubles, self.count.failures), ([], 0))

    def udp(self, port: int) -> SyslogUDP:
        return SyslogUDP(
            "localhost",
            port,
            hostname=HOSTNAME,
            form=NATIVE,
            max_bytes=8192,
            udp=reactor,
            resolve=first_address(_Loopback(reactor.nameResolver)),
            clock=reactor,
            monotonic=time.monotonic,
        )

    async def test_udp(self) -> None:
        """Datagrams hold the messages that were emitted, in order."""
        there = await self.rsyslog()
        await self.delivered(self.udp(there.udp), there, "udp")

    async def test_udp_away(self) -> None:
        """Datagrams that nobody receives are lost, which stops nothing: from when rsyslog is back, all arrive."""
        there = await self.rsyslog()
        self.follow(self.udp(there.udp))
        await self.emit(50)
        await self.arrived(there, "udp")
        await deferToThread(there.stop)
        await self.emit(50)
        await self.until(lambda: self.count.shipped == 100, "100 shipped")
        await deferToThread(there.start)
        await self.emit(50)
        expected = [one for one, seq in self.expected().items() if not 50 <= seq < 100]
        await self.until(lambda: there.received("udp") == expected, "the first and the last 50")
        self.assertEqual((self.troubles, self.count.failures), ([], 0))

    async def test_newline(self) -> None:
        """Message by message what was emitted."""
        there = await self.rsyslog()
        await self.delivered(self.tcp(there.newline, counted=False), there, "newline")

    async def test_octet_counting(self) -> None:
        """The other framing, too."""
        there = await self.rsyslog()
        await self.delivered(self.tcp(there.counted, counted=True), there, "counted")

    async def test_tls(self) -> None:
        """With a client certificate that rsyslog demands."""
        there = await self.rsyslog(self.identity())
        await self.delivered(self.tls(there.tls, identified=self.ca.issue(OUR_NAME, usage="clientAuth")), there, "tls")

    # -- losses -------------------------------------------------------------------------------------------------------
    async def restarted(self, there: Rsyslog, way: str, end: Callable[[], None]) -> None:
        """:param end: how rsyslog goes, twice, while there is load."""
        load = Deferred.fromCoroutine(self.load(9))
        for _ in range(2):
            await deferLater(reactor, 2.5)
            await deferToThread(end)
            await deferLater(reactor, 0.5)
            await deferToThread(there.start)
        await load
        self.assert_caught_up_in_order(await self.arrived(there, way))
        self.assertEqual(self.count.aside, 0)

    async def test_restart_newline(self) -> None:
        """A restart in mid-stream loses nothing."""
        there = await self.rsyslog()
        self.follow(self.tcp(there.newline, counted=False))
        await self.restarted(there, "newline", there.stop)

    async def test_restart_tls(self) -> None:
        """Nor does it with TLS."""
        there = await self.rsyslog(self.identity())
        self.follow(self.tls(there.tls, identified=self.ca.issue(OUR_NAME, usage="clientAuth")))
        await self.restarted(there, "tls", there.stop)

    async def test_killed(self) -> None:
        """What rsyslog had in memory when it was killed is sent again."""
        there = await self.rsyslog()
        self.follow(self.tcp(there.counted, counted=True))
        await self.restarted(there, "counted", there.kill)

    async def test_away(self) -> None:
        """While rsyslog is away under load, everything waits, the trouble is told once, and it catches up in order."""
        there = await self.rsyslog()
        follower = self.follow(self.tcp(there.counted, counted=True))
        await self.emit(100)
        await self.arrived(there, "counted")
        await deferToThread(there.stop)
        await self.load(AWAY_SECONDS)
        self.assertTrue(follower.down)
        self.assertGreater(follower.lag.records, AWAY_SECONDS * 10 * LOAD / 10)
        self.assertEqual(len(self.troubles), 1)
        self.assertIn(f"syslog receiver 127.0.0.1:{there.counted}: ", self.troubles[0])
        await deferToThread(there.start)
        self.assert_caught_up_in_order(await self.arrived(there, "counted"))
        self.assertEqual(len(self.troubles), 1)

    async def test_frozen(self) -> None:
        """What a rsyslog that hangs has not read when it dies is sent again."""
        there = await self.rsyslog()
        self.follow(self.tcp(there.newline, counted=False))
        await self.emit(100)
        await self.arrived(there, "newline")
        there.freeze()
        await self.emit(100)
        # the system behind it takes them
        await self.until(lambda: self.count.shipped >= 200, "200 shipped")
        await deferToThread(there.kill)
        await deferToThread(there.start)
        self.assert_caught_up_in_order(await self.arrived(there, "newline"))

    # -- trust --------------------------------------------------------------------------------------------------------
    async def refused(self, there: Rsyslog, why: str, attempts: int = 2) -> None:
        """Nothing is delivered, it is said why, once, and the records wait."""
        await self.emit(10)
        await self.until(lambda: self.count.failures >= attempts, "failures")
        self.assertEqual((there.received("tls"), self.count.shipped, len(self.troubles)), ([], 0, 1))
        self.assertIn(f"syslog receiver {RECEIVER_NAME}:{there.tls}: ", self.troubles[0])
        self.assertIn(why, self.troubles[0])

    async def test_wrong_ca(self) -> None:
        """A foreign CA is named; the right one in the file is enough."""
        there = await self.rsyslog(self.identity())
        file = self.directory / "trusted.pem"
        shutil.copy(CA(self.directory / "other", "another CA").certificate, file)
        self.follow(self.tls(there.tls, ca=file, identified=self.ca.issue(OUR_NAME, usage="clientAuth")))
        await self.refused(there, f"put the certificate of that CA into the file that {PREFIX}_CA_FILE names")
        shutil.copy(self.ca.certificate, file)
        self.assertEqual(await self.arrived(there, "tls"), list(range(10)))

    async def test_wrong_name(self) -> None:
        """So is a certificate for another name, until rsyslog has the right one."""
        identity = self.identity("other.example.com")
        there = await self.rsyslog(identity)
        self.follow(self.tls(there.tls, identified=self.ca.issue(OUR_NAME, usage="clientAuth")))
        await self.refused(there, f"its certificate is not for {RECEIVER_NAME}")
        await deferToThread(there.stop)
        there.identity = self.identity()
        await deferToThread(there.start)
        self.assertEqual(await self.arrived(there, "tls"), list(range(10)))

    async def test_no_client_certificate(self) -> None:
        """Without ours nothing counts as shipped, although TLS 1.3 refuses only after the handshake."""
        there = await self.rsyslog(self.identity())
        first = self.follow(self.tls(there.tls))
        await self.refused(there, f"{PREFIX}_CERT_FILE", attempts=3)
        await first.stopService()
        self.follow(self.tls(there.tls, identified=self.ca.issue(OUR_NAME, usage="clientAuth")))
        self.assertEqual(await self.arrived(there, "tls"), list(range(10)))

    async def test_not_permitted(self) -> None:
        """One that rsyslog does not permit is refused, too."""
        there = await self.rsyslog(self.identity())
        first = self.follow(self.tls(there.tls, identified=self.ca.issue("else.example.com", usage="clientAuth")))
        await self.refused(there, "", attempts=3)
        await first.stopService()
        self.follow(self.tls(there.tls, identified=self.ca.issue(OUR_NAME, usage="clientAuth")))
        self.assertEqual(await self.arrived(there, "tls"), list(range(10)))


class _Loopback:
    """The system's resolver, asked for IPv4 only: rsyslog listens there."""

    def __init__(self, resolver: Any) -> None:
        self._resolver = resolver

    def resolveHostName(self, receiver: Any, name: str, port: int, *, transportSemantics: str) -> Any:
        return self._resolver.resolveHostName(receiver, name, port, [IPv4Address], transportSemantics)
