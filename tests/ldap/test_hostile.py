"""Hostile peers: memory stays bounded, nothing is answered that should not be, and others are served."""

import tracemalloc
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ldaptor.protocols import pureldap
from twisted.trial.unittest import SynchronousTestCase

from identree.ldap import connection, framing
from identree.ldap.framing import BOUND_BYTES, STRANGERS_BYTES
from tests.ldap.harness import SERVICE, Client, World, code, message, names, pieces, search

SEARCH = message(search(), 9)


def nested(depth: int, inner: bytes = b"\x87\x02cn") -> bytes:
    """A search whose filter is so many negations deep, with lengths that are all right."""
    parts = [inner]
    size = len(inner)
    for _ in range(depth):
        length = bytes([size]) if size < 0x80 else b"\x83" + size.to_bytes(3, "big")
        parts.append(b"\xa2" + length)
        size += 1 + len(length)
    filter = b"".join(reversed(parts))
    content = bytes.fromhex("0400 0a0102 0a0100 020100 020100 010100") + filter + b"\x30\x00"
    op = b"\x63\x83" + len(content).to_bytes(3, "big") + content
    return b"\x30\x83" + (len(op) + 3).to_bytes(3, "big") + b"\x02\x01\x09" + op


class HostileTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()

    def assertRefused(self, client: Client, reason: str = "protocol") -> None:
        """A notice of disconnection with protocolError, and the end."""
        notice = client.received()[-1]
        self.assertEqual((notice.id, notice.value.resultCode, client.over), (0, 2, True))
        self.assertEqual(self.world.value("identree_ldap_connections_refused_total", reason=reason), 1)

    def assertServed(self) -> None:
        """Somebody else is."""
        self.assertEqual(len(names(self.world.bound("198.51.100.9").ask(search()))), 1)


class BytesTests(HostileTestCase):
    def test_not_ldap(self) -> None:
        """HTTP, TLS on the wrong port, and noise."""
        for raw in (b"GET / HTTP/1.1\r\n\r\n", bytes.fromhex("16030100"), bytes(50), b"\xff" * 1000):
            self.world = World()
            client = self.world.connect()
            client.feed(raw)
            self.assertRefused(client)
            self.assertServed()

    def test_too_long(self) -> None:
        """A message beyond the bound is refused by its header, before a bind and after it."""
        stranger, bound = self.world.connect(), self.world.bound()
        stranger.feed(b"\x30\x84" + STRANGERS_BYTES.to_bytes(4, "big"))
        self.assertRefused(stranger)
        bound.received()
        bound.feed(b"\x30\x84" + STRANGERS_BYTES.to_bytes(4, "big"))
        self.assertFalse(bound.over)
        other = self.world.bound()
        other.feed(b"\x30\x84" + BOUND_BYTES.to_bytes(4, "big"))
        self.assertTrue(other.over)

    def test_indefinite(self) -> None:
        """Indefinite lengths, outside and inside."""
        for raw in ("3080", "300602010160800000", "300a0201016380040000000000"):
            self.world = World()
            client = self.world.connect()
            client.feed(bytes.fromhex(raw))
            self.assertRefused(client)

    def test_nested(self) -> None:
        """A filter nested ten thousand deep, to strangers at the root DSE and to the bound in the directory."""
        for client in (self.world.connect(), self.world.bound()):
            client.received()
            client.feed(nested(10_000))
            # adminLimitExceeded, or no LDAP at all
            self.assertIn(code(client.received()), (11, 2))
        self.assertServed()

    def test_lying_lengths(self) -> None:
        """Every element of a search that says it is longer or shorter than it is, one after the other."""
        for at in range(len(SEARCH)):
            for change in (1, 0x7F, 0x80, 0x84, 0xFF):
                raw = bytearray(SEARCH)
                raw[at] = (raw[at] + change) % 256
                client = self.world.bound()
                client.received()
                client.feed(bytes(raw))
                for each in client.received():
                    self.assertIn(each.id in range(2**31), (True,))
        self.assertServed()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_truncated(self) -> None:
        """A message that ends early, as its header says or with the connection."""
        for end in range(2, len(SEARCH)):
            client = self.world.bound()
            client.received()
            client.feed(b"\x30" + bytes([end - 2]) + SEARCH[2:end])
            self.assertTrue(client.over, end)
            whole = self.world.bound()
            whole.feed(SEARCH[:end])
            whole.wire.abortConnection()
        self.assertEqual(self.world.common.kept_bytes, 0)
        self.assertServed()

    def test_huge_counts(self) -> None:
        """A hundred thousand attributes, terms and controls in one message."""
        attributes = search(attributes=["cn"] * 100_000)
        controls = [(b"1.2.3", None, None)] * 50_000
        terms = search()
        terms.filter = pureldap.LDAPFilter_or([pureldap.LDAPFilter_present("cn")] * 100_000)
        for raw in (message(attributes, 9), message(terms, 9), message(search(), 9, controls)):
            client = self.world.bound()
            client.received()
            client.feed(raw)
            self.assertIn(code(client.received()), (2, 11))
        self.assertServed()

    def test_long_numbers(self) -> None:
        """Ids, versions and limits of sixty thousand octets."""
        number = b"\x02\x83\x00\xea\x60" + bytes(60_000)
        for content in (number + b"\x42\x00", b"\x02\x01\x09\x60\x83\x00\xea\x69" + number + b"\x04\x00\x80\x00"):
            client = self.world.connect()
            client.feed(b"\x30\x83" + len(content).to_bytes(3, "big") + content)
            self.assertTrue(client.over)
        self.assertServed()

    @settings(suppress_health_check=[HealthCheck.differing_executors], deadline=None)
    @given(st.binary(max_size=200), st.integers(1, 50), st.booleans())
    def test_anything(self, raw: bytes, size: int, bound: bool) -> None:
        """Whatever comes, however it is cut: no exception, and only whole messages are answered."""
        client = self.world.bound() if bound else self.world.connect()
        client.received()
        for piece in pieces(raw, size):
            client.feed(piece)
        self.world.turn(3)
        client.received()
        if not client.over:
            client.wire.abortConnection()
        self.assertEqual(self.flushLoggedErrors(), [])

    @settings(suppress_health_check=[HealthCheck.differing_executors], deadline=None)
    @given(st.lists(st.tuples(st.integers(0, len(SEARCH) - 1), st.integers(0, 255)), min_size=1, max_size=4))
    def test_mutated(self, changes: list[tuple[int, int]]) -> None:
        """A good search with some octets changed is answered, or refused as no LDAP; never an error of ours."""
        raw = bytearray(SEARCH)
        for at, value in changes:
            raw[at] = value
        client = self.world.bound()
        client.received()
        client.feed(bytes(raw))
        self.world.turn(3)
        for each in client.received():
            if hasattr(each.value, "resultCode"):
                self.assertNotEqual(each.value.resultCode, 80)
        if not client.over:
            client.wire.abortConnection()
        self.assertEqual(self.flushLoggedErrors(), [])


class SlowTests(HostileTestCase):
    def test_byte_by_byte(self) -> None:
        """A sender of single bytes gets his answer, and costs nobody else theirs."""
        client = self.world.bound()
        client.received()
        for byte in SEARCH:
            client.feed(bytes([byte]))
            self.assertServed()
        self.assertEqual(code(client.received()), 0)

    def test_unfinished_in_all(self) -> None:
        """Unfinished messages of all strangers together are bounded: who goes beyond is cut, others are served."""
        self.patch(connection, "KEPT_BYTES", 1_000_000)
        half = b"\x30\x83" + (60_000).to_bytes(3, "big") + bytes(50_000)
        clients = [self.world.connect() for _ in range(40)]
        for client in clients:
            client.feed(half)
        self.assertEqual(sum(not client.over for client in clients), 19)
        self.assertLessEqual(self.world.common.kept_bytes, 1_000_000)
        self.assertServed()
        for client in clients:
            if not client.over:
                client.wire.abortConnection()
        self.assertEqual(self.world.common.kept_bytes, 0)

    def test_idle_connections(self) -> None:
        """A thousand connections that say nothing cost little, and are gone after a minute."""
        self.connect_many(10)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            clients = self.connect_many(1000)
            each = (tracemalloc.get_traced_memory()[0] - before) / 1000
        finally:
            tracemalloc.stop()
        # with the test's own transport and client
        self.assertLess(each, 12_000)
        self.assertServed()
        self.world.clock.pump([15] * 6)
        self.assertTrue(all(client.over for client in clients))
        # the one that was served is bound, and may be quiet for longer
        self.assertEqual(len(self.world.factory), 1)

    def connect_many(self, number: int) -> list[Client]:
        return [self.world.connect(f"10.0.{i // 250}.{i % 250}") for i in range(number)]


class FloodTests(HostileTestCase):
    def test_binds(self) -> None:
        """
        A flood of wrong binds is cut and hardly logged, and is not told when it is right; from elsewhere the right
        password gets in all the while.
        """
        for _ in range(300):
            client = self.world.connect()
            client.bind(password=b"guess")
        self.assertLessEqual(len(self.world.messages), 10)
        self.assertEqual(self.world.value("identree_ldap_binds_throttled_total"), 290)
        self.assertEqual((self.world.connect().bind(), self.world.connect("198.51.100.1").bind()), (51, 0))

    def test_pipelined_binds(self) -> None:
        """Guesses in one stream end with the connection after the tenth."""
        client = self.world.connect()
        raw = [message(pureldap.LDAPBindRequest(3, SERVICE.encode(), b"%d" % i), i + 1) for i in range(1000)]
        client.feed(b"".join(raw))
        codes = [each.value.resultCode for each in client.received()]
        self.assertEqual((codes, client.over), ([49] * 10 + [51], True))

    def test_unread(self) -> None:
        """Who asks for everything again and again without reading makes neither answers nor requests pile up."""
        world = World(people=2000)
        client = world.bound()
        client.received()
        big = message(search(filter="(gecos=User*)"), 9)
        client.connection.pauseProducing()
        sent = 0
        while client.wire.producerState == "producing":
            client.feed(big)
            sent += 1
        world.turn(100)
        self.assertEqual(client.wire.value(), b"")
        self.assertLessEqual(sent, connection.MAX_WAITING)
        self.assertLess(client.connection.buffered_bytes, connection.MAX_WAITING_BYTES + STRANGERS_BYTES)
        other = world.bound("198.51.100.9")
        self.assertEqual(len(names(other.ask(search()))), 1)

    def test_one_slice(self) -> None:
        """A large answer to somebody who reads slowly is made as he reads: a slice at a time."""
        world = World(people=3000)
        client = world.bound()
        client.received()
        largest = 0

        write = client.wire.write

        def full(data: bytes) -> None:
            # as a transport whose buffer is full after every write
            nonlocal largest
            write(data)
            largest = max(largest, len(data))
            client.connection.pauseProducing()

        client.wire.write = full  # type: ignore[method-assign]
        client.send(search(filter="(gecos=User*)"))
        count = 0
        for _ in range(200):
            world.turn()
            count += len(client.received())
            client.connection.resumeProducing()
        self.assertEqual(count, 3001)
        self.assertLess(largest, 512 << 10)

    def test_abandons(self) -> None:
        """A flood of abandons of nothing is neither answered nor kept."""
        client = self.world.bound()
        client.received()
        client.feed(b"".join(message(pureldap.LDAPAbandonRequest(id=5), i + 1) for i in range(5000)))
        self.world.turn(500)
        self.assertEqual((client.received(), client.connection.buffered_bytes), ([], 0))

    def test_small_messages(self) -> None:
        """Thousands of the smallest messages in one read are looked at in parts: in one go, not more than the bound."""
        client = self.world.bound()
        client.received()
        seen: list[int] = []
        perform = client.connection._arrived

        def count(request: Any) -> None:
            seen.append(request.id)
            perform(request)

        client.connection._arrived = count
        client.feed(b"\x30\x06\x02\x01\x05\x50\x01\x07" * 8000)
        self.assertLessEqual(len(seen), framing.FRAMES_AT_ONCE)
        self.assertEqual(client.wire.producerState, "paused")
        self.world.turn(400)
        self.assertEqual((len(seen), client.wire.producerState), (8000, "producing"))
        self.assertEqual(code(client.ask(search())), 0)

    def test_cursors(self) -> None:
        """Paged searches that nobody goes on with do not pile up."""
        world = World(people=10)
        from tests.ldap.harness import page_control

        for _ in range(30):
            client: Any = world.bound()
            for _ in range(10):
                client.send(search(filter="(objectClass=*)"), [page_control(2)])
                world.turn(2)
        self.assertLessEqual(len(world.cursors), 30 * 4)
