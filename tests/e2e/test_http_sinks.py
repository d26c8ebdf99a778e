"""Records on their way to Splunk and Loki, over real connections, through everything that goes wrong there."""

from __future__ import annotations

import gc
import json
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.trial.unittest import TestCase

from identree.core import audit
from identree.core.audit import Sealed
from identree.core.events import ChallengeApproved
from identree.sinks.follower import Follower, Unavailable
from identree.sinks.formats import NATIVE
from identree.sinks.http import REQUEST_SECONDS, WIRE_BYTES, Connections, Names, Receiver
from identree.sinks.loki import Loki
from identree.sinks.splunk import SplunkHEC
from identree.sinks.tls import ClientTrust, TrustFiles
from identree.storage.opening import open_store
from identree.storage.store import SqlStore
from tests.e2e import hec, loki
from tests.e2e.tls import CA

pytestmark = pytest.mark.e2e

reactor: Any = global_reactor

INSTANCE = "0123456789abcdef"
CHANNEL = "0d3c2b1a-1111-4222-8333-444455556666"
BATCH = 20
# For receivers that do not answer: short, so that the fault shows.
IMPATIENT_SECONDS = 1.5
PATIENCE_SECONDS = 90.0
FAULT_SECONDS = 2.0


class Tally:
    """What happened to records, counted."""

    def __init__(self) -> None:
        self.shipped = self.failures = self.set_aside = 0

    def emitted(self, count: int) -> None:
        self.shipped += count

    def failed(self) -> None:
        self.failures += 1

    def parked(self, count: int) -> None:
        self.set_aside += count


async def pause(seconds: float) -> None:
    await deferLater(reactor, seconds)


async def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, what
        await pause(0.05)


class _Stream(TestCase):
    """A store of events, and a follower that takes them to a stand-in."""

    timeout = 240
    receiver: Any
    store: SqlStore
    follower: Follower
    instance = INSTANCE
    request_seconds = REQUEST_SECONDS

    def setUp(self) -> Any:
        return Deferred.fromCoroutine(self._set_up())

    async def _set_up(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.log = Logger(observer=lambda event: self.lines.append((event["message"], event["attributes"])))  # type: ignore[misc]
        self.tally = Tally()
        self.emitted = 0
        self.trust: ClientTrust | None = None
        self.running = False
        self.receiver = self.stand_in()
        self.receiver.start()
        self.addCleanup(self.receiver.stop)
        self.addCleanup(self.leave)

    def stand_in(self) -> Any:
        """The receiver; each class of tests has its own."""
        raise NotImplementedError

    def shipper(self, url: str) -> Any:
        """What speaks to it; each class of tests has its own."""
        raise NotImplementedError

    def sent(self, record: Sealed) -> bytes:
        """A record as the receiver is to have it; each class of tests says how."""
        raise NotImplementedError

    async def follow(self, url: str = "") -> None:
        shipper = self.shipper(url or self.receiver.url)
        shipper.linger_seconds = 0.1
        self.store = open_store(
            reactor,
            driver="sqlite",
            dsn=str(self.directory / "identree.db"),
            version="dev",
            instance=self.instance,
            sinks=[shipper.name],
        )
        await self.store.start()
        self.follower = Follower(
            self.store.outbox,
            shipper,
            self.tally,
            reactor,
            now=lambda: datetime.now(UTC),
            monotonic=time.monotonic,
            batch=BATCH,
            log=self.log,
        )
        self.follower.startService()
        self.running = True

    async def leave(self) -> None:
        if self.running:
            self.running = False
            await self.follower.stopService()
            await self.store.stop()

    async def emit(self, count: int, reason: str = "fix <a> & é") -> None:
        events = [
            ChallengeApproved(at=datetime.now(UTC), username=f"u{self.emitted + n}", hostname="web-01", reason=reason)
            for n in range(count)
        ]
        await self.store.record(events)
        self.emitted += count

    async def emit_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self.emit(7)
            await pause(0.04)

    def arrived(self) -> int:
        return len(set(self.receiver.seqs()))

    async def all_arrive(self) -> None:
        """At the receiver, and its answers here."""
        await until(lambda: self.arrived() >= self.emitted, "not all arrived")
        await until(lambda: self.tally.shipped >= self.emitted, "not all were answered")

    async def check_all(self) -> None:
        """Everything is there, as it was sealed and in order; what is there twice is the same."""
        sealed = await self.store.chain_records(self.instance, -1, self.emitted + 1)
        self.assertEqual(len(sealed), self.emitted)
        found = list(dict.fromkeys(self.receiver.records))
        self.assertEqual(found, [self.sent(record) for record in sealed])

    def errors(self) -> str:
        return "\n".join(str(attributes["err"]) for _, attributes in self.lines if "err" in attributes)

    async def through(self, fault: str, **options: Any) -> None:
        """Load before, during and after the fault."""
        await self.follow()
        await self.emit(50)
        await self.all_arrive()
        self.receiver.fail(fault, **options)
        await self.emit_for(FAULT_SECONDS)
        await until(lambda: self.tally.failures > 0, "the fault was not noticed")
        self.receiver.heal()
        await self.emit_for(0.5)
        await self.all_arrive()
        await self.check_all()
        await until(lambda: not self.follower.down, "still down")
        said = [message for message, _ in self.lines]
        self.assertEqual(said, ["AUDIT sink error", "AUDIT sink works again"] * (len(said) // 2))

    async def insecure(self, **files: Any) -> None:
        """TLS with files of certificates that are not yet right: nothing is delivered, and it is said."""
        self.trust = ClientTrust(
            TrustFiles(settings="IDENTREE_AUDIT_TEST", **{kind: str(path) for kind, path in files.items()}),
            deferToThread,
        )
        await self.follow(self.receiver.url.replace("127.0.0.1", "localhost"))
        await self.emit(BATCH + 5)
        await until(lambda: self.tally.failures > 1, "nothing failed")
        self.assertEqual(self.receiver.records, [])

    async def position(self) -> int:
        return await self.store.outbox.position(self.follower._shipper.name)


class _Common(_Stream):
    """What every HTTP sink must come through."""

    async def test_load(self) -> None:
        """A load arrives over one kept connection, compressed, and the place is saved."""
        await self.follow()
        await self.emit_for(2)
        await self.all_arrive()
        await self.check_all()
        self.assertEqual(self.tally.failures, 0)
        self.assertEqual(self.receiver.connections, 1)
        self.assertEqual(self.receiver.compressed, self.receiver.asked)
        await self.leave()
        await self.follow()
        self.assertEqual(await self.position(), self.emitted - 1)

    async def test_busy(self) -> None:
        """503."""
        await self.through("busy")

    async def test_throttled(self) -> None:
        """429 with Retry-After."""
        await self.through("throttled", retry_after=1)

    async def test_slow(self) -> None:
        """It takes records, but answers when nobody listens any more."""
        self.request_seconds = IMPATIENT_SECONDS
        await self.through("slow", seconds=IMPATIENT_SECONDS + 1)

    async def test_silent(self) -> None:
        """It takes connections and requests, and never answers."""
        self.request_seconds = IMPATIENT_SECONDS
        await self.through("silent")

    async def test_cut(self) -> None:
        """It takes records, and its answers end in the middle."""
        await self.through("cut")
        self.assertIn("before its answer was whole", self.errors())

    async def test_trickle(self) -> None:
        """It takes records, and its answers do not come to an end."""
        self.request_seconds = IMPATIENT_SECONDS
        await self.through("trickle")
        self.assertIn("no whole answer within", self.errors())

    async def test_reset(self) -> None:
        """Connections are reset."""
        await self.through("reset")

    async def test_away(self) -> None:
        """It is not there at all, and comes back."""
        await self.follow()
        await self.emit(50)
        await self.all_arrive()
        self.receiver.stop()
        await self.emit_for(FAULT_SECONDS)
        await until(lambda: self.tally.failures > 0, "nothing failed")
        self.receiver.start()
        await self.emit(30)
        await self.all_arrive()
        await self.check_all()

    async def test_restart(self) -> None:
        """What waited while the receiver was away, over a restart of identree, arrives."""
        self.receiver.fail("busy")
        await self.follow()
        await self.emit(70)
        await until(lambda: self.tally.failures > 0, "nothing failed")
        await self.leave()
        self.receiver.heal()
        await self.follow()
        await self.emit(10)
        await self.all_arrive()
        await self.check_all()

    async def test_hung_up_while_idle(self) -> None:
        """A kept connection that the receiver has closed meanwhile is no failure."""
        await self.follow()
        for _ in range(3):
            await self.emit(BATCH)
            await self.all_arrive()
            self.receiver.hang_up()
        await self.check_all()
        self.assertEqual(self.tally.failures, 0)

    async def test_poison(self) -> None:
        """A record that is refused is set aside alone; put right, it is taken after a restart."""
        self.receiver.poison = "poison"
        await self.follow()
        await self.emit(13)
        await self.emit(1, reason="poison")
        await self.emit(36)
        await until(lambda: self.arrived() >= 49, "the others did not arrive")
        await until(lambda: self.tally.set_aside == 1, "nothing was set aside")
        self.assertEqual(set(range(50)) - set(self.receiver.seqs()), {13})
        [parked] = await self.store.parked_records(("", "", -1))
        self.assertEqual((parked.sink, parked.record.seq), (self.follower._shipper.name, 13))
        self.assertIn("it answered 400: ", parked.reason)
        permanent = [attributes for message, attributes in self.lines if message.endswith("permanent HTTP error")]
        self.assertEqual([attributes["status"] for attributes in permanent], [400])
        await self.leave()
        self.receiver.poison = ""
        await self.follow()
        await self.all_arrive()
        await self.leave()
        await self.follow()
        self.assertEqual(await self.store.parked_records(("", "", -1)), [])

    async def test_redirected(self) -> None:
        """A redirect is not followed and delivers nothing; the text says where it leads, without what may be secret."""
        self.receiver.fail("status", status=307, headers={"Location": f"{self.receiver.origin}/new?token=sesame"})
        await self.follow()
        await self.emit(BATCH)
        await until(lambda: self.tally.failures > 0, "nothing failed")
        self.assertIn(f"redirects to {self.receiver.origin}/new;", self.errors())
        self.assertNotIn("sesame", self.errors())
        self.receiver.heal()
        await self.all_arrive()
        await self.check_all()

    async def test_foreign_ca(self) -> None:
        """A certificate of a CA that is not trusted gets no record; once it is, they arrive, without a restart."""
        right, wrong = CA(self.directory / "right"), CA(self.directory / "wrong")
        self.receiver.secure(*right.issue("localhost"))
        trusted = self.directory / "trusted.pem"
        shutil.copy(wrong.certificate, trusted)
        await self.insecure(ca=trusted)
        self.assertIn("IDENTREE_AUDIT_TEST_CA_FILE", self.errors())
        shutil.copy(right.certificate, trusted)
        await self.all_arrive()
        await self.check_all()

    async def test_wrong_name(self) -> None:
        """A certificate for another host gets no record; once the right one is there, they arrive."""
        ca = CA(self.directory / "ca")
        self.receiver.secure(*ca.issue("elsewhere.example"))
        await self.insecure(ca=ca.certificate)
        self.assertIn("its certificate is not for localhost", self.errors())
        self.receiver.secure(*ca.issue("localhost"))
        await self.all_arrive()
        await self.check_all()

    async def test_client_certificate(self) -> None:
        """A receiver that demands a client certificate is shown one as soon as the right one is there."""
        ca, other = CA(self.directory / "ca"), CA(self.directory / "other")
        self.receiver.secure(*ca.issue("localhost"), client_ca=ca.certificate)
        certificate, key = self.directory / "client.crt", self.directory / "client.key"
        for source, target in zip(other.issue("identree", "clientAuth"), (certificate, key), strict=True):
            shutil.copy(source, target)
        await self.insecure(ca=ca.certificate, certificate=certificate, key=key)
        self.assertIn("IDENTREE_AUDIT_TEST_CERT_FILE", self.errors())
        for source, target in zip(ca.issue("identree", "clientAuth"), (certificate, key), strict=True):
            shutil.copy(source, target)
        await self.all_arrive()
        await self.check_all()

    async def test_tls(self) -> None:
        """Over TLS, a load arrives through a fault as well."""
        ca = CA(self.directory / "ca")
        self.receiver.secure(*ca.issue("localhost"))
        self.trust = ClientTrust(TrustFiles(ca=str(ca.certificate)), deferToThread)
        await self.follow(self.receiver.url.replace("127.0.0.1", "localhost"))
        await self.emit(50)
        for fault in ("cut", "reset", "silent"):
            self.receiver.fail(fault)
            await self.emit_for(1)
            self.receiver.heal()
        await self.all_arrive()
        await self.check_all()

    async def test_https_missing(self) -> None:
        """A URL with http:// for a port with TLS delivers nothing and sets nothing aside."""
        ca = CA(self.directory / "ca")
        self.receiver.secure(*ca.issue("localhost"))
        await self.follow(self.receiver.url.replace("https://", "http://"))
        await self.emit(BATCH)
        await until(lambda: self.tally.failures > 1, "nothing failed")
        self.assertEqual((self.receiver.records, self.tally.set_aside), ([], 0))

    async def test_memory(self) -> None:
        """While the receiver does not answer, one batch is in memory and the rest in the database."""
        self.instance = "fedcba9876543210"
        self.request_seconds = IMPATIENT_SECONDS
        self.receiver.fail("silent")
        await self.follow()
        for _ in range(10):
            await self.emit(100)
        # the store remembers what it wrote last
        await self.emit(1)
        held = [0]
        while self.tally.failures < 3 or max(held) < BATCH:
            gc.collect()
            found = [one for one in gc.get_objects() if isinstance(one, Sealed) and one.instance == self.instance]
            held.append(len(found))
            del found
            await pause(0.2)
        self.assertLessEqual(max(held), BATCH + 1)
        self.receiver.heal()
        await self.all_arrive()
        await self.check_all()


class SplunkTests(_Common):
    """Splunk's collector."""

    def stand_in(self) -> hec.HEC:
        return hec.HEC()

    def shipper(self, url: str) -> SplunkHEC:
        return SplunkHEC(
            url,
            hec.TOKEN,
            agent=Connections(reactor, self.trust),
            trust=self.trust,
            channel=CHANNEL,
            form=NATIVE,
            gzip=True,
            clock=reactor,
            monotonic=time.monotonic,
            request_seconds=self.request_seconds,
            log=self.log,
        )

    def sent(self, record: Sealed) -> bytes:
        return record.plain

    async def test_event(self) -> None:
        """An event in Splunk has the record, its type and its source, and nothing else."""
        await self.follow()
        await self.emit(1)
        await self.all_arrive()
        [event] = self.receiver.stored
        self.assertEqual({key: event[key] for key in event if key not in ("raw", "event")},
                         {"sourcetype": "identree:audit", "source": "identree"})  # fmt: skip
        self.assertEqual(self.receiver.channels, {CHANNEL})

    async def test_acknowledged(self) -> None:
        """With indexer acknowledgement, a batch counts when it is indexed."""
        self.receiver.ack, self.receiver.acks_after = True, -1
        await self.follow()
        await self.emit(BATCH * 2)
        await until(lambda: self.receiver.asked > 3, "no questions")
        self.assertEqual((self.tally.shipped, await self.position()), (0, -1))
        self.receiver.acks_after = 1
        await self.all_arrive()
        await self.check_all()
        self.assertEqual(self.tally.failures, 0)

    async def test_wrong_token(self) -> None:
        """A token that the collector does not know delivers nothing, sets nothing aside, and is never shown."""
        self.receiver.token = "another"
        await self.follow()
        await self.emit(BATCH)
        await until(lambda: self.tally.failures > 1, "nothing failed")
        self.assertEqual((self.receiver.records, self.tally.set_aside), ([], 0))
        self.assertIn("check IDENTREE_AUDIT_SPLUNK_TOKEN", self.errors())
        self.assertNotIn(hec.TOKEN, str(self.lines))
        self.receiver.token = hec.TOKEN
        await self.all_arrive()


class LokiTests(_Common):
    """Loki."""

    tenant = ""

    def stand_in(self) -> loki.Loki:
        return loki.Loki()

    def shipper(self, url: str) -> Loki:
        return Loki(
            url,
            "",
            tenant=self.tenant,
            agent=Connections(reactor, self.trust),
            trust=self.trust,
            form=NATIVE,
            gzip=True,
            clock=reactor,
            now_ns=time.time_ns,
            request_seconds=self.request_seconds,
            log=self.log,
        )

    def sent(self, record: Sealed) -> bytes:
        return record.canonical

    def query(self, **parameters: Any) -> list[tuple[int, str]]:
        url = f"{self.receiver.url}{loki.QUERY_RANGE}?{urlencode(parameters)}"
        with urlopen(url, timeout=30) as response:
            result = json.load(response)["data"]["result"]
        return [(int(ns), line) for stream in result for ns, line in stream["values"]]

    async def test_read_back(self) -> None:
        """What a query gives back is the chain, whole and in order."""
        await self.follow()
        await self.emit(50)
        await self.all_arrive()
        ask = {"query": '{app="identree", job="identree-audit"}', "limit": 1000, "direction": "forward"}
        ask.update(start=time.time_ns() - 600 * loki.SECOND_NS, end=time.time_ns())
        found = await deferToThread(self.query, **ask)
        links = [audit.read(line.encode()) for _, line in found]
        self.assertEqual([link.seq for link in links], list(range(50)))
        self.assertEqual([link.prev_hash for link in links], ["", *(link.hash for link in links[:-1])])
        times = [ns for ns, _ in found]
        self.assertEqual(times, sorted(set(times)))

    async def test_repetitions(self) -> None:
        """What is sent again after a lost answer has the same times, so Loki has each line once."""
        await self.follow()
        self.receiver.fail("cut")
        await self.emit(BATCH)
        await until(lambda: self.tally.failures > 0, "nothing failed")
        self.receiver.heal()
        await self.all_arrive()
        await until(lambda: self.receiver.repeated >= BATCH, "nothing was repeated")
        self.assertEqual(len(self.receiver.records), BATCH)

    async def test_tenant(self) -> None:
        """A Loki of several tenants wants to know which; nothing is set aside until it is told."""
        self.receiver.tenants = True
        await self.follow()
        await self.emit(BATCH)
        await until(lambda: self.tally.failures > 0, "nothing failed")
        self.assertIn("no org id; check IDENTREE_AUDIT_LOKI_TOKEN and IDENTREE_AUDIT_LOKI_TENANT", self.errors())
        await self.leave()
        self.tenant = "operations"
        await self.follow()
        await self.all_arrive()
        self.assertEqual([tenant for tenant, _ in self.receiver.stored], ["operations"])
        self.assertEqual(self.tally.set_aside, 0)

    async def test_clock(self) -> None:
        """While the clocks differ too much nothing is set aside; then all arrives."""
        self.receiver.now_ns = lambda: time.time_ns() - 3600 * loki.SECOND_NS
        await self.follow()
        await self.emit(BATCH)
        await until(lambda: self.tally.failures > 1, "nothing failed")
        self.assertIn("compare the clocks", self.errors())
        self.receiver.now_ns = time.time_ns
        await self.all_arrive()
        await self.check_all()
        self.assertEqual(self.tally.set_aside, 0)


class StandInTests(TestCase):
    """The stand-ins are as strict as what they stand for."""

    def ask(self, url: str, body: bytes | None = None, /, **headers: str) -> tuple[int, str]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            with urlopen(Request(url, body, names), timeout=30) as response:
                return response.status, response.read().decode()
        except HTTPError as e:
            with e:
                return e.code, e.read().decode()

    def test_hec(self) -> None:
        """Codes of the collector."""
        with hec.HEC() as collector:
            good, ack = b'{"event":{"seq":1}}', f"{collector.origin}/services/collector/ack"

            def code(body: bytes, url: str = collector.url, /, **headers: str) -> tuple[int, int, int | None]:
                headers.setdefault("authorization", f"Splunk {hec.TOKEN}")
                status, text = self.ask(url, body, **{k: v for k, v in headers.items() if v})
                said = json.loads(text)
                return status, said["code"], said.get("invalid-event-number")

            self.assertEqual(code(good), (200, 0, None))
            self.assertEqual(code(good, authorization=""), (401, 2, None))
            self.assertEqual(code(good, authorization="Bearer x"), (401, 3, None))
            self.assertEqual(code(good, authorization="Splunk x"), (403, 4, None))
            self.assertEqual(code(b" "), (400, 5, None))
            self.assertEqual(code(good + b"{"), (400, 6, 1))
            self.assertEqual(code(b'{"event":"x","index":"nowhere"}'), (400, 7, 0))
            self.assertEqual(code(b'{"source":"x"}'), (400, 12, 0))
            self.assertEqual(code(good + b'{"event":""}'), (400, 13, 1))
            self.assertEqual(code(good, ack), (400, 14, None))
            self.assertEqual(len(collector.stored), 3)
            self.assertEqual(self.ask(collector.url, good, content_encoding="gzip")[0], 400)
            self.assertEqual(self.ask(collector.url, good, content_encoding="zstd")[0], 415)
            self.assertEqual(self.ask(f"{collector.origin}/services/collector/health")[0], 200)
            collector.ack = True
            self.assertEqual(code(good), (400, 10, None))
            self.assertEqual(code(good, x_splunk_request_channel="x"), (400, 11, None))
            there = {"authorization": f"Splunk {hec.TOKEN}", "x_splunk_request_channel": CHANNEL}
            self.assertEqual(json.loads(self.ask(collector.url, good, **there)[1])["ackId"], 0)
            for indexed in (True, False):
                self.assertEqual(json.loads(self.ask(ack, b'{"acks":[0]}', **there)[1]), {"acks": {"0": indexed}})
            collector.fail("busy")
            self.assertEqual(code(good), (503, 9, None))

    def test_loki(self) -> None:
        """Answers of Loki."""
        with loki.Loki(tenants=True) as server:
            url, now = server.url + loki.PUSH, time.time_ns()

            def push(*entries: tuple[int, str], labels: Any = {"a": "b"}, **headers: str) -> tuple[int, str]:  # noqa: B006
                values = [[str(ns), line] for ns, line in entries]
                body = json.dumps({"streams": [{"stream": labels, "values": values}]}).encode()
                there = {"content_type": "application/json", "x_scope_orgid": "t", **headers}
                return self.ask(url, body, **{k: v for k, v in there.items() if v})

            self.assertEqual(push((now, "x")), (204, ""))
            self.assertEqual(push((now, "x"), (now - loki.SECOND_NS, "earlier")), (204, ""))
            self.assertEqual(server.repeated, 1)
            self.assertEqual(push((now, "x"), x_scope_orgid=""), (401, "no org id\n"))
            for bad, words in (
                (push((now, "x"), labels={}), "at least one label pair"),
                (push((now - 2 * loki.BEHIND_NS, "x")), "too far behind"),
                (push((now - 2 * loki.OLD_NS, "x")), "timestamp too old"),
                (push((now + 2 * loki.NEW_NS, "x")), "timestamp too new"),
                (push((now, "x" * (loki.LINE_BYTES + 1)), (now, "good")), "max entry size"),
                (push((now, "x"), content_type=""), "snappy"),
            ):
                self.assertEqual(bad[0], 400)
                self.assertIn(words, bad[1])
            status, text = self.ask(f"{server.url}{loki.QUERY_RANGE}?query=%7Ba%3D%22b%22%7D", x_scope_orgid="t")
            [stream] = json.loads(text)["data"]["result"]
            self.assertEqual((status, [line for _, line in stream["values"]]), (200, ["x", "good", "earlier"]))
            self.assertEqual(self.ask(f"{server.url}{loki.QUERY_RANGE}?query=a", x_scope_orgid="t")[0], 400)
            server.fail("throttled", retry_after=3)
            self.assertEqual(push((now, "x"))[0], 429)


class FloodTests(TestCase):
    """A receiver that says more than anybody wants to hear."""

    timeout = 120

    def flood(self, begin: bytes, piece: bytes) -> tuple[str, list[int]]:
        """A server that answers ``begin`` and then ``piece`` for ever; returns its URL, and how much it got rid of."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(60)
        got_rid: list[int] = []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(60)
                connection.recv(65536)
                count = 0
                try:
                    connection.sendall(begin)
                    while count < 256 << 20:
                        connection.sendall(piece)
                        count += len(piece)
                except OSError:
                    pass
                got_rid.append(count)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        self.addCleanup(lambda: deferToThread(thread.join, 60))
        self.addCleanup(listener.close)
        return f"http://127.0.0.1:{listener.getsockname()[1]}/", got_rid

    def receiver(self) -> Receiver:
        connections = Connections(reactor, None)
        self.addCleanup(connections.close)
        return Receiver(
            "test",
            Names(url="URL", gzip="GZIP", access="ACCESS"),
            {},
            secrets=(),
            agent=connections,
            trust=None,
            compress=False,
            clock=reactor,
            request_seconds=60.0,
        )

    async def test_headers(self) -> None:
        """Header lines without end end the connection."""
        url, got_rid = self.flood(
            b"HTTP/1.1 200 OK\r\n", b"".join(b"X-%d: %s\r\n" % (n, b"y" * 900) for n in range(64))
        )
        with self.assertRaises(Unavailable):
            await self.receiver().post(url, b"x")
        await until(lambda: bool(got_rid), "the connection goes on")
        # beside what was read, what the buffers of the system took
        self.assertLess(got_rid[0], WIRE_BYTES + (32 << 20))

    async def test_body(self) -> None:
        """Of a body without end the beginning is read, and the connection ended."""
        url, got_rid = self.flood(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n", b"x" * 65536)
        answer = await self.receiver().post(url, b"x")
        self.assertEqual((answer.status, answer.body), (200, b"x" * 65536))
        await until(lambda: bool(got_rid), "the connection goes on")
        self.assertLess(got_rid[0], WIRE_BYTES + (32 << 20))


# the base classes hold tests for others, not their own
del _Common, _Stream
