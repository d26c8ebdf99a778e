"""One connection: the order of operations, what overtakes, back-pressure, time-outs, the end."""

import contextlib
import socket
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from ldaptor.protocols import pureldap
from twisted.internet import tcp
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorFDSet
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from identree.directory.snapshot import View
from identree.ldap import ber, connection
from identree.ldap.readiness import Readiness
from tests.ldap.harness import (
    BASE,
    PAGED,
    PASSWORD,
    PEOPLE,
    SERVICE,
    World,
    code,
    cookie,
    host_dn,
    message,
    messages,
    names,
    page_control,
    registry,
    search,
    snapshot,
)

ALL = "(objectClass=posixAccount)"
# a filter that no index serves
SLOW = "(gecos=User*)"
WHO = b"1.3.6.1.4.1.4203.1.11.3"


def extended(oid: bytes, value: bytes | None = None) -> Any:
    return pureldap.LDAPExtendedRequest(requestName=oid, requestValue=value)


def cancel(id: int) -> Any:
    return extended(b"1.3.6.1.1.8", b"\x30\x03\x02\x01" + bytes([id]))


class SearchTests(SynchronousTestCase):
    def test_found(self) -> None:
        """A bound connection gets its entry at once."""
        answers = World().bound().ask(search())
        self.assertEqual((names(answers), code(answers)), ([b"uid=user1," + PEOPLE.encode()], 0))

    def test_ids(self) -> None:
        """Answers carry the id of their request, up to the greatest that there is."""
        client = World().bound()
        for id in (1, 127, 128, 32_767, 32_768, 2**31 - 1):
            client.received()
            client.send(search(), id=id)
            self.assertEqual({each.id for each in client.received()}, {id})

    def test_lengths(self) -> None:
        """A message with longer forms of its lengths, as Windows sends, is answered alike."""
        client = World().bound()
        expected = client.ask(search())
        op = bytes(search().toWire())
        start = 2 if op[1] < 0x80 else 3
        long_op = b"\x63\x84" + (len(op) - start).to_bytes(4, "big") + op[start:]
        content = b"\x02\x01\x05" + long_op
        client.feed(b"\x30\x84" + len(content).to_bytes(4, "big") + content)
        self.assertEqual([each.value.toWire() for each in client.received()], [e.value.toWire() for e in expected])

    def test_pipelined(self) -> None:
        """Requests that come together are answered in their order, with one write."""
        world = World()
        client = world.bound()
        client.received()
        before = client.wire.writes
        client.feed(b"".join(message(search(filter=f"(uid=user{i})"), 10 + i) for i in range(3)))
        self.assertEqual([each.id for each in client.received()], [10, 10, 11, 11, 12, 12])
        self.assertEqual(client.wire.writes - before, 1)

    def test_pipelined_in_pieces(self) -> None:
        """However many requests are cut by the network, and wherever."""
        world = World()
        raw = b"".join(message(search(filter=f"(uid=user{i})"), 126 + i) for i in range(5))
        whole = world.bound()
        whole.received()
        whole.feed(raw)
        expected = whole.wire.value()
        for at in range(1, len(raw)):
            client = world.bound()
            client.received()
            client.feed(raw[:at])
            client.feed(raw[at:])
            self.assertEqual(client.wire.value(), expected)

    def test_pipelined_with_others(self) -> None:
        """Searches that are answered at once keep their place among other operations."""
        client = World().bound()
        client.received()
        client.feed(message(search(), 5) + message(extended(WHO), 6) + message(search(), 7))
        self.assertEqual([each.id for each in client.received()], [5, 5, 6, 7, 7])

    def test_pipelined_unbind(self) -> None:
        """Nothing after the end is performed, everything before it is."""
        client = World().bound()
        client.received()
        client.feed(message(search(), 5) + message(pureldap.LDAPUnbindRequest(), 6) + message(search(), 7))
        self.assertEqual(([each.id for each in client.received()], client.over), ([5, 5], True))

    def test_odd_ids(self) -> None:
        """An id in more octets than it needs is answered with the fewest; a negative one is no request."""
        op = bytes(search().toWire())
        client = World().bound()
        for id, sent in ((5, b"\x02\x02\x00\x05"), (5, b"\x02\x04\x00\x00\x00\x05"), (128, b"\x02\x02\x00\x80")):
            client.received()
            client.feed(ber.sequence(sent, op))
            self.assertIn(ber.message_id(id), client.wire.value()[:8])
            self.assertEqual({each.id for each in client.received()}, {id})
        client.feed(ber.sequence(b"\x02\x01\xff", op))
        self.assertTrue(client.over)

    def test_in_pieces(self) -> None:
        """However a request is cut by the network."""
        client = World().bound()
        client.received()
        raw = message(search(), 9)
        for at in range(len(raw)):
            client.feed(raw[at : at + 1])
        self.assertEqual(code(client.received()), 0)

    def test_not_bound(self) -> None:
        """Without a bind nothing of the directory is searched or compared."""
        client = World().connect()
        self.assertEqual(code(client.ask(search())), 50)
        ava = pureldap.LDAPAttributeValueAssertion(
            pureldap.LDAPAttributeDescription(b"cn"), pureldap.LDAPAssertionValue(b"x")
        )
        self.assertEqual(code(client.ask(pureldap.LDAPCompareRequest(BASE.encode(), ava))), 50)

    def test_anonymous(self) -> None:
        """Unless that is allowed, which is looked up at each request."""
        world = World()
        client = world.connect()
        world.anonymous = True
        self.assertEqual(len(names(client.ask(search()))), 1)
        world.anonymous = False
        self.assertEqual(code(client.ask(search())), 50)

    def test_not_loaded(self) -> None:
        """Before there is a directory, searches and comparisons are told to come again."""
        world = World()
        world.snapshot = None
        client = world.bound()
        self.assertEqual(code(client.ask(search())), 51)

    def test_no_such_object(self) -> None:
        """An absent base, with the nearest entry above."""
        answers = World().bound().ask(search(base=f"uid=nobody,{PEOPLE}"))
        self.assertEqual((code(answers), answers[-1].value.matchedDN), (32, PEOPLE.encode()))

    def test_long(self) -> None:
        """A search over everything is made in turns, and what came after it is answered after it."""
        world = World(people=500)
        client = world.bound()
        client.received()
        client.feed(message(search(filter=SLOW), 5) + message(search(), 6))
        world.turn(50)
        answers = client.received()
        self.assertEqual([each.id for each in answers], [5] * 501 + [6] * 2)
        self.assertEqual(code(answers), 0)

    def test_new_snapshot(self) -> None:
        """The next search sees a new snapshot."""
        world = World()
        client = world.bound()
        client.ask(search(filter="(uid=user7)"))
        world.snapshot = snapshot(10, previous=world.snapshot)
        world.factory.snapshot_changed()
        self.assertEqual(len(names(client.ask(search(filter="(uid=user7)")))), 1)

    def test_broken(self) -> None:
        """A bug in a search is answered with 'other', without a word about it, and logged."""
        world = World()
        client = world.bound()

        def fail(op: bytes, view: Any) -> Any:
            raise RuntimeError("secret detail")

        world.searcher.answer = fail  # type: ignore[method-assign]
        answers = client.ask(search())
        self.assertEqual((code(answers), answers[-1].value.errorMessage), (80, b""))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_time_limit(self) -> None:
        """A search that goes on beyond the server's limit ends with timeLimitExceeded."""
        world = World(people=2000, time_limit_seconds=0.0)
        client = world.bound()
        client.send(search(filter=SLOW))
        world.turn()
        self.assertEqual(code(client.received()), 3)


PAGED_FIRST = ber.control(PAGED, ber.sequence(ber.integer(2), ber.octets(b"")))
REQUESTS = st.lists(
    st.builds(
        lambda id, filter, base, controls: ber.message(id, bytes(search(base, filter, ["uid"]).toWire()), controls),
        st.sampled_from([1, 127, 128, 255, 32_768, 8_388_608]),
        st.sampled_from(["(uid=user1)", "(&(uid=user0)(cn=*))", ALL, "(uid=nobody)"]),
        st.sampled_from([PEOPLE, BASE, "", f"uid=x,{PEOPLE}"]),
        st.sampled_from([[], [PAGED_FIRST], [ber.control(b"1.2.3")], [PAGED_FIRST, PAGED_FIRST]]),
    ),
    min_size=1,
    max_size=4,
)


class WaysTests(SynchronousTestCase):
    """What is answered at once is answered as it is the long way."""

    def answered(self, raw: bytes, at_once: bool) -> tuple[bytes, bool]:
        world = World(people=4)
        client = world.bound()
        client.received()
        if not at_once:
            client.connection._at_once = lambda data: (0, False)
        client.feed(raw)
        world.turn(20)
        return client.wire.value(), client.over

    @settings(max_examples=150)
    @given(REQUESTS, st.data())
    def test_same(self, requests: list[bytes], data: st.DataObject) -> None:
        """Whatever comes, well-formed or damaged, and however much of it."""
        raw = bytearray(b"".join(requests))
        if data.draw(st.booleans()):
            raw[data.draw(st.integers(0, min(len(raw), 80) - 1))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            del raw[data.draw(st.integers(0, len(raw) - 1)) :]
        self.assertEqual(self.answered(bytes(raw), True), self.answered(bytes(raw), False))


class PagingTests(SynchronousTestCase):
    def page(self, world: World, client: Any, size: int, key: bytes = b"", filter: str = ALL) -> Any:
        client.received()
        client.send(search(filter=filter), [page_control(size, key)])
        world.turn(20)
        return client.received()

    def test_all(self) -> None:
        """All entries in pages, and the last has no cookie."""
        world = World(people=25)
        client = world.bound()
        found, sizes, key = [], [], b""
        while True:
            answers = self.page(world, client, 10, key)
            found += names(answers)
            sizes.append(len(names(answers)))
            key = cookie(answers)
            if not key:
                break
        self.assertEqual((sizes, len(set(found)), code(answers)), ([10, 10, 5], 25, 0))

    def test_swapped(self) -> None:
        """Pages go on in the snapshot that they began with."""
        world = World(people=6)
        client = world.bound()
        first = self.page(world, client, 4)
        world.snapshot = snapshot(2)
        world.factory.snapshot_changed()
        second = self.page(world, client, 4, cookie(first))
        self.assertEqual([len(names(first)), len(names(second)), code(second)], [4, 2, 0])

    def test_unknown_cookie(self) -> None:
        """A cookie that was used, or made up, is refused."""
        world = World(people=6)
        client = world.bound()
        key = cookie(self.page(world, client, 2))
        self.page(world, client, 2, key)
        for bad in (key, b"made up"):
            self.assertEqual(code(self.page(world, client, 2, bad)), 53)

    def test_given_up(self) -> None:
        """Size 0 gives the search up; its cookie is worth nothing afterwards."""
        world = World(people=6)
        client = world.bound()
        key = cookie(self.page(world, client, 2))
        answers = self.page(world, client, 0, key)
        self.assertEqual((names(answers), code(answers), cookie(answers)), ([], 0, b""))
        self.assertEqual(code(self.page(world, client, 2, key)), 53)

    def test_size_limit(self) -> None:
        """The size limit counts over all pages."""
        world = World(people=25)
        client = world.bound()
        codes, found, key = [], 0, b""
        while True:
            client.send(search(filter=ALL, size_limit=12), [page_control(5, key)])
            world.turn(20)
            answers = client.received()
            found += len(names(answers))
            codes.append(code(answers))
            key = cookie(answers) if answers[-1].controls else b""
            if not key:
                break
        self.assertEqual((found, codes), (12, [0, 0, 4]))

    def test_rebind(self) -> None:
        """A bind ends the paged searches of whoever was bound before."""
        world = World(people=6)
        client = world.bound()
        key = cookie(self.page(world, client, 2))
        client.bind()
        self.assertEqual(code(self.page(world, client, 2, key)), 53)

    def test_with_connection(self) -> None:
        """Nothing of a paged search remains when its connection is gone."""
        world = World(people=6)
        client = world.bound()
        self.page(world, client, 2)
        self.assertEqual(len(world.cursors), 1)
        client.wire.abortConnection()
        self.assertEqual(len(world.cursors), 0)

    def first_page(self, client: Any, filter: str, control: bytes) -> list[Any]:
        client.received()
        client.feed(ber.message(9, bytes(search(filter=filter).toWire()), [control]))
        return client.received()

    def test_only_page(self) -> None:
        """An answer that fits into the first page is given at once and from the memo, and its control has no cookie."""
        world = World()
        client = world.bound()
        expected = client.ask(search())
        for control in (page_control(1), page_control(1000, critical=True), page_control(1000, critical=False)):
            for _ in range(2):
                client.send(search(), [control])
                answers = client.received()
                self.assertEqual([each.value.toWire() for each in answers], [each.value.toWire() for each in expected])
                self.assertEqual(([each.controls for each in answers[:-1]], cookie(answers)), ([None], b""))
        self.assertEqual((world.value("identree_ldap_memo_hits_total"), len(world.cursors)), (6, 0))

    def test_only_page_of_many(self) -> None:
        """So is one of many entries, or of none, and each size of page counts anew."""
        world = World(people=7)
        client = world.bound()
        for filter, count in ((ALL, 7), ("(uid=nobody)", 0)):
            for size in (7, 1000, 2**31 - 1):
                answers = self.page(world, client, size, filter=filter)
                self.assertEqual((len(names(answers)), code(answers), cookie(answers)), (count, 0, b""))
        first = self.page(world, client, 6)
        second = self.page(world, client, 6, cookie(first))
        self.assertEqual((names(first) + names(second)), names(self.page(world, client, 7)))
        self.assertEqual((len(names(first)), cookie(second)), (6, b""))

    def test_encodings(self) -> None:
        """The control is understood however its lengths and numbers are encoded, and beside others."""
        client = World().bound()
        value = ber.sequence(ber.integer(5), ber.octets(b""))
        long_value = b"\x30\x84\x00\x00\x00\x0a\x02\x04\x00\x00\x00\x05\x04\x82\x00\x00"
        for control in (
            ber.control(PAGED, value),
            ber.control(PAGED, value, critical=True),
            ber.sequence(ber.octets(PAGED), ber.boolean(False), ber.octets(value)),
            ber.control(PAGED, long_value),
            ber.control(b"1.2.3") + ber.control(PAGED, value),
            ber.control(PAGED, value) + ber.control(b"1.2.3", b"x" * 200),
        ):
            for _ in range(2):
                answers = self.first_page(client, "(uid=user1)", control)
                self.assertEqual((len(names(answers)), code(answers), cookie(answers)), (1, 0, b""))

    def test_bad_encodings(self) -> None:
        """What is no such control ends the connection, however often one was understood before."""
        good = ber.control(PAGED, ber.sequence(ber.integer(5), ber.octets(b"")))
        for bad in (
            ber.control(PAGED),
            ber.control(PAGED, b"\x30\x03\x02\x01\x05"),
            good + good,
            good[:-1],
            good + b"\x00",
        ):
            client = World().bound()
            self.first_page(client, "(uid=user1)", good)
            self.first_page(client, "(uid=user1)", bad)
            self.assertTrue(client.over, bad)

    def test_many_kinds(self) -> None:
        """So many sizes and controls as a client likes: what is remembered of them is bounded."""
        world = World()
        client = world.bound()
        for size in range(1, 3 * connection.MAX_PAGED):
            self.assertEqual(
                len(
                    names(
                        self.first_page(
                            client, "(uid=user1)", ber.control(PAGED, ber.sequence(ber.integer(size), ber.octets(b"")))
                        )
                    )
                ),
                1,
            )
        self.assertLessEqual(len(world.common._paged), connection.MAX_PAGED)

    def test_long(self) -> None:
        """The first page of a search over everything is made in turns, and the next goes on."""
        world = World(people=500)
        client = world.bound()
        world.clock.rightNow = 0.0
        first = self.page(world, client, 300, filter=SLOW)
        second = self.page(world, client, 300, cookie(first), filter=SLOW)
        self.assertEqual((len(set(names(first) + names(second))), cookie(second)), (500, b""))

    def test_root_dse(self) -> None:
        """The root DSE is a page of its own."""
        world = World()
        client = world.bound()
        client.send(search("", "(objectClass=*)", scope=0), [page_control(2)])
        answers = client.received()
        self.assertEqual((len(names(answers)), cookie(answers)), (1, b""))


class ControlTests(SynchronousTestCase):
    def test_critical(self) -> None:
        """An unknown critical control forbids any operation, and nothing of it is done."""
        client = World().bound()
        unknown = [(b"1.2.3", True, None)]
        for op in (search(), pureldap.LDAPDelRequest(b"cn=x"), extended(WHO), pureldap.LDAPBindRequest(3, b"", b"")):
            answers = client.ask(op, unknown)
            self.assertEqual((len(answers), code(answers)), (1, 12))

    def test_not_critical(self) -> None:
        """An unknown one that is not critical, and those that change nothing here, do not matter."""
        client = World().bound()
        for control in ((b"1.2.3", None, None), (b"2.16.840.1.113730.3.4.2", True, None)):
            self.assertEqual(code(client.ask(search(), [control])), 0)

    def test_two_pages(self) -> None:
        """Two paged results controls are no request."""
        client = World().bound()
        client.ask(search(), [page_control(2), page_control(3)])
        self.assertTrue(client.wire.closed)


class OtherOperationTests(SynchronousTestCase):
    def test_writes(self) -> None:
        """Every operation that writes has its own answer: the directory is read-only."""
        client = World().bound()
        for op, kind in (
            (pureldap.LDAPModifyRequest(b"cn=x", []), pureldap.LDAPModifyResponse),
            (pureldap.LDAPAddRequest(b"cn=x", []), pureldap.LDAPAddResponse),
            (pureldap.LDAPDelRequest(b"cn=x"), pureldap.LDAPDelResponse),
            (pureldap.LDAPModifyDNRequest(b"cn=x", b"cn=y", True), pureldap.LDAPModifyDNResponse),
        ):
            [answer] = client.ask(op)
            self.assertIsInstance(answer.value, kind)
            self.assertEqual((answer.value.resultCode, answer.value.errorMessage), (53, b"read-only directory"))

    def test_compare(self) -> None:
        """Compare says true, false, or what is missing."""
        client = World().bound()
        for name, attribute, value, expected in (
            (f"uid=user1,{PEOPLE}", "uid", "USER1", 6),
            (f"uid=user1,{PEOPLE}", "uid", "user2", 5),
            (f"uid=user1,{PEOPLE}", "mail", "x", 16),
            (f"uid=nobody,{PEOPLE}", "uid", "x", 32),
        ):
            ava = pureldap.LDAPAttributeValueAssertion(
                pureldap.LDAPAttributeDescription(attribute.encode()), pureldap.LDAPAssertionValue(value.encode())
            )
            self.assertEqual(code(client.ask(pureldap.LDAPCompareRequest(name.encode(), ava))), expected)

    def test_who_am_i(self) -> None:
        """Who am I is the bind DN as it was sent, and nothing for strangers."""
        client = World().connect()
        [answer] = client.ask(extended(WHO))
        self.assertEqual((answer.value.resultCode, answer.value.response), (0, b""))
        client.bind("CN=Readonly,DC=example,DC=com")
        [answer] = client.ask(extended(WHO))
        self.assertEqual(answer.value.response, b"dn:CN=Readonly,DC=example,DC=com")

    def test_extended(self) -> None:
        """Passwords are not changed here; what nobody knows is a protocolError, and the connection lives."""
        client = World().bound()
        self.assertEqual(code(client.ask(extended(b"1.3.6.1.4.1.4203.1.11.1", b""))), 53)
        self.assertEqual(code(client.ask(extended(b"1.2.3.4"))), 2)
        self.assertEqual(code(client.ask(search())), 0)

    def test_unbind(self) -> None:
        """Unbind ends the connection without an answer."""
        client = World().bound()
        self.assertEqual(client.ask(pureldap.LDAPUnbindRequest()), [])
        self.assertTrue(client.over)

    def test_no_request(self) -> None:
        """An answer sent by a client is no request: notice of disconnection with protocolError, then the end."""
        client = World().bound()
        [notice] = client.ask(pureldap.LDAPBindResponse(0))
        self.assertEqual((notice.id, notice.value.resultCode), (0, 2))
        self.assertEqual(notice.value.responseName, b"1.3.6.1.4.1.1466.20036")
        self.assertTrue(client.over)


class OvertakingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(people=2000)
        self.client = self.world.bound()
        self.client.received()

    def begin(self) -> int:
        """A search that does not end by itself in the tests' time."""
        return self.client.send(search(filter=SLOW))

    def test_abandon(self) -> None:
        """An abandoned search stops and is not answered; an abandon has no answer either."""
        id = self.begin()
        self.client.send(pureldap.LDAPAbandonRequest(id=id))
        self.world.turn(50)
        self.assertEqual(self.client.received(), [])
        self.assertEqual(code(self.client.ask(search())), 0)

    def test_abandon_waiting(self) -> None:
        """A request that waits for its turn can be abandoned too; the others are answered."""
        first = self.begin()
        second, third = self.client.send(search()), self.client.send(search())
        self.client.send(pureldap.LDAPAbandonRequest(id=second))
        self.world.turn(50)
        ids = [each.id for each in self.client.received()]
        self.assertEqual((ids.count(first), ids.count(second), ids.count(third)), (2001, 0, 2))

    def test_abandon_nothing(self) -> None:
        """Abandoning what is over, or never was, is nothing."""
        self.assertEqual(self.client.ask(pureldap.LDAPAbandonRequest(id=77)), [])
        self.assertFalse(self.client.over)

    def test_cancel(self) -> None:
        """A cancelled search ends with 'canceled', and the cancel with success."""
        id = self.begin()
        answers = self.client.ask(cancel(id))
        self.assertEqual([(each.id, each.value.resultCode) for each in answers], [(id, 118), (id + 1, 0)])

    def test_cancel_waiting(self) -> None:
        """So does one that waits, whatever it is."""
        self.begin()
        id = self.client.send(pureldap.LDAPDelRequest(b"cn=x"))
        answers = self.client.ask(cancel(id))
        self.assertEqual([(each.id, each.value.resultCode) for each in answers], [(id, 118), (id + 1, 0)])

    def test_cancel_nothing(self) -> None:
        """There is nothing to cancel any more, also when nothing at all runs."""
        self.assertEqual(code(self.client.ask(cancel(77))), 119)
        self.begin()
        self.assertEqual(code(self.client.ask(cancel(77))), 119)

    def test_cannot_cancel(self) -> None:
        """A bind cannot be cancelled."""
        self.begin()
        id = self.client.send(pureldap.LDAPBindRequest(3, b"", b"x"))
        self.assertEqual(code(self.client.ask(cancel(id))), 121)

    def test_unbind(self) -> None:
        """Unbind does not wait for a search."""
        self.begin()
        self.client.send(pureldap.LDAPUnbindRequest())
        self.assertTrue(self.client.over)

    def test_start_tls(self) -> None:
        """StartTLS while operations are outstanding is an operationsError."""
        self.begin()
        self.assertEqual(code(self.client.ask(extended(b"1.3.6.1.4.1.1466.20037"))), 1)

    def test_lost(self) -> None:
        """A search of a connection that is gone goes no further."""
        self.begin()
        self.client.wire.abortConnection()
        self.world.turn(5)
        self.assertEqual((len(self.world.turns), self.client.received()), (0, []))


class BackPressureTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(people=3000)
        self.client = self.world.bound()
        self.client.received()

    def test_scan_waits(self) -> None:
        """Nothing more is made of an answer while the peer does not read."""
        self.client.send(search(filter=SLOW))
        self.client.connection.pauseProducing()
        self.world.turn(20)
        self.assertEqual(self.client.received(), [])
        self.client.connection.resumeProducing()
        self.world.turn(50)
        self.assertEqual(len(self.client.received()), 3001)

    def test_requests_wait(self) -> None:
        """Nor is a further request performed, and none is lost."""
        self.client.connection.pauseProducing()
        for _ in range(5):
            self.client.send(search())
        self.world.turn(5)
        self.assertEqual(self.client.received(), [])
        self.client.connection.resumeProducing()
        self.world.turn(5)
        self.assertEqual(len(self.client.received()), 10)

    def test_reading_stops(self) -> None:
        """Beyond a bound of waiting requests the connection is not read, until they are fewer."""
        self.client.connection.pauseProducing()
        for _ in range(connection.MAX_WAITING):
            self.client.send(search())
        self.assertEqual(self.client.wire.producerState, "paused")
        self.client.connection.resumeProducing()
        self.world.turn(20)
        self.assertEqual(self.client.wire.producerState, "producing")
        self.assertEqual(len(self.client.received()), 2 * connection.MAX_WAITING)

    def test_large_requests(self) -> None:
        """Their bytes count too."""
        self.client.connection.pauseProducing()
        for _ in range(4):
            self.client.send(pureldap.LDAPDelRequest(b"x" * 100_000))
        self.assertEqual(self.client.wire.producerState, "paused")

    def test_one_turn(self) -> None:
        """One connection does not hold the reactor with a thousand requests: others come in between."""
        self.client.feed(b"".join(message(search(), i + 10) for i in range(connection.TURN_OPERATIONS * 3)))
        self.assertEqual(len(self.client.received()), connection.TURN_OPERATIONS * 2)
        self.world.turn(5)
        self.assertEqual(len(self.client.received()), connection.TURN_OPERATIONS * 4)

    def test_stalled(self) -> None:
        """Who reads nothing for a minute is cut, and what waited for him is freed."""
        self.client.send(search(filter=SLOW))
        self.client.connection.pauseProducing()
        self.world.clock.pump([15] * 3)
        self.assertFalse(self.client.over)
        self.world.clock.advance(15)
        self.assertTrue(self.client.wire.aborted)
        self.assertEqual(self.world.value("identree_ldap_connections_refused_total", reason="stalled"), 1)


class Socket(tcp.Connection):
    """A plain TCP connection that is its own socket, which takes so many bytes at once."""

    def __init__(self, takes: int) -> None:
        self.takes, self.at_once, self.later = takes, b"", b""
        self.dataBuffer, self._tempDataBuffer = b"", []
        self.connected = True
        self.reactor = None

    def getHandle(self) -> Any:
        return self

    def fileno(self) -> int:
        return 99

    def send(self, data: bytes) -> int:
        if self.takes < 0:
            raise BrokenPipeError
        if self.takes == 0:
            raise BlockingIOError
        self.at_once += bytes(data[: self.takes])
        return min(len(data), self.takes)

    def write(self, data: bytes) -> None:
        self._tempDataBuffer.append(data)
        self.later += data

    def setTcpNoDelay(self, enabled: bool) -> None:
        """There is no socket."""

    setTcpKeepAlive = setTcpNoDelay

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Nothing is ever full here."""


class DirectTests(SynchronousTestCase):
    def written(self, takes: int) -> tuple[bytes, bytes]:
        """What goes into the socket at once, and what is left to the reactor, of two answers."""
        world = World()
        made = world.factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
        socket = Socket(takes)
        made.makeConnection(socket)
        bind = pureldap.LDAPBindRequest(3, SERVICE.encode(), PASSWORD)
        made.dataReceived(message(bind, 1))
        made.dataReceived(message(search(), 2))
        made.connectionLost()
        return socket.at_once, socket.later

    def test_at_once(self) -> None:
        """A socket that takes all is written to at once."""
        at_once, later = self.written(1 << 20)
        self.assertEqual(([each.id for each in messages(at_once)], later), ([1, 2, 2], b""))

    def test_partly(self) -> None:
        """What it does not take follows in order, and so does everything after it."""
        whole, _ = self.written(1 << 20)
        for takes in (0, 1, 5):
            at_once, later = self.written(takes)
            self.assertEqual((len(at_once), at_once + later), (takes, whole))

    def test_lost(self) -> None:
        """A lost connection is left to the reactor, which finds it out itself."""
        at_once, later = self.written(-1)
        self.assertEqual((at_once, [each.id for each in messages(later)]), (b"", [1, 2, 2]))


@implementer(IReactorFDSet)
class FDSet:
    """A reactor that only remembers what it should read."""

    def __init__(self) -> None:
        self.readers: list[Any] = []
        self.writers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def addWriter(self, writer: Any) -> None:
        if writer not in self.writers:
            self.writers.append(writer)

    def removeWriter(self, writer: Any) -> None:
        if writer in self.writers:
            self.writers.remove(writer)

    def callLater(self, seconds: float, *what: Any) -> None:
        """Nothing is closed here."""


class BesideTests(SynchronousTestCase):
    """Plain sockets are read beside the reactor."""

    def setUp(self) -> None:
        self.world, self.reactor = World(people=500), FDSet()
        self.near, self.far = socket.socketpair()
        self.far.setblocking(False)
        self.connection: Any = self.world.factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
        self.transport: Any = tcp.Connection(self.near, self.connection, self.reactor)  # type: ignore[arg-type]
        self.patch(self.transport, "setTcpNoDelay", lambda enabled: None)
        self.patch(self.transport, "setTcpKeepAlive", lambda enabled: None)
        self.transport.connected = True
        self.transport.startReading()
        self.connection.makeConnection(self.transport)
        self.addCleanup(self.end)
        self.ask(pureldap.LDAPBindRequest(3, SERVICE.encode(), PASSWORD))

    def end(self) -> None:
        if not self.connection._over:
            self.transport.connectionLost(Failure(ConnectionDone()))
        self.far.close()

    def read(self) -> None:
        """What the reactor would."""
        for reader in list(self.reactor.readers):
            reader.doRead()

    def ask(self, op: Any, id: int = 1) -> list[Any]:
        self.far.send(message(op, id))
        self.read()
        return self.received()

    def received(self) -> list[Any]:
        try:
            return messages(self.far.recv(1 << 20))
        except BlockingIOError:
            return []

    @property
    def beside(self) -> bool:
        """Whether it is read beside the reactor; else the reactor reads it, or nobody does."""
        return self.reactor.readers == [self.world.common._readiness]

    def test_answered(self) -> None:
        """It is read there, and answered."""
        self.assertTrue(self.beside)
        self.assertEqual(len(names(self.ask(search()))), 1)

    def test_no_room(self) -> None:
        """Where the system has no room for it the reactor reads it."""
        self.end()
        self.patch(Readiness, "add", self.no_room)
        self.setUp()
        self.assertEqual(self.reactor.readers, [self.transport])
        self.assertEqual(len(names(self.ask(search()))), 1)

    def no_room(self, *arguments: Any) -> None:
        raise OSError

    def test_reading_stops(self) -> None:
        """Nobody reads it while too much waits, and then it is read there again."""
        many = b"".join(message(search(filter=SLOW), i + 2) for i in range(connection.MAX_WAITING + 2))
        self.far.send(many[: len(many) // 2])
        self.read()
        self.far.send(many[len(many) // 2 :])
        self.read()
        self.assertEqual(self.reactor.readers, [])
        for _ in range(10 * connection.MAX_WAITING):
            self.world.turn()
            self.drain()
            for writer in list(self.reactor.writers):
                writer.doWrite()
            if self.beside:
                break
        self.assertTrue(self.beside)

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.far.recv(1 << 24)

    def test_end(self) -> None:
        """Its end is left to the reactor."""
        self.far.close()
        self.read()
        self.assertEqual(self.reactor.readers, [self.transport])
        self.assertEqual(type(self.transport.doRead()), ConnectionDone)

    def test_cut(self) -> None:
        """Nothing is read of a connection that is closed from here."""
        self.connection.shut_down()
        self.assertNotIn(self.world.common._readiness, self.reactor.readers)
        self.assertEqual([each.value.resultCode for each in self.received()], [52])

    def test_lost(self) -> None:
        """Nor when it is lost: the number of its socket may be another's."""
        self.transport.connectionLost(Failure(ConnectionDone()))
        beside = self.world.common._readiness
        assert beside is not None
        self.assertEqual((self.reactor.readers, len(beside)), ([], 0))

    def test_broken(self) -> None:
        """A bug of ours ends the connection, as the reactor would."""
        self.patch(self.connection, "_framer", None)
        self.ask(extended(WHO))
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)
        self.assertEqual(self.reactor.readers, [])


class TimeOutTests(SynchronousTestCase):
    def pump(self, world: World, seconds: int) -> None:
        world.clock.pump([5] * (seconds // 5))

    def test_first_request(self) -> None:
        """Who connects and says nothing is cut after a minute."""
        world = World()
        client = world.connect()
        self.pump(world, 55)
        self.assertFalse(client.over)
        self.pump(world, 20)
        self.assertTrue(client.over)

    def test_idle(self) -> None:
        """A bound connection may be quiet for the idle time, which every request starts anew."""
        world = World()
        client = world.bound()
        self.pump(world, 1100)
        client.ask(search())
        self.pump(world, 1100)
        self.assertFalse(client.over)
        self.pump(world, 120)
        self.assertTrue(client.over)
        self.assertEqual(world.value("identree_ldap_connections_refused_total", reason="idle"), 1)

    def test_anonymous(self) -> None:
        """Where anonymous searches are allowed, who did not bind has the idle time too."""
        world = World()
        world.anonymous = True
        client = world.connect()
        self.pump(world, 1100)
        self.assertFalse(client.over)

    def test_slow_message(self) -> None:
        """A message that does not become whole within a minute ends the connection, though bytes keep coming."""
        world = World()
        client = world.bound()
        for byte in message(search(), 9)[:17]:
            client.feed(bytes([byte]))
            world.clock.advance(5)
        self.assertTrue(client.over)
        self.assertEqual(world.value("identree_ldap_connections_refused_total", reason="slow"), 1)

    def test_handshake(self) -> None:
        """A TLS handshake has ten seconds."""
        world = World()
        client, other = world.connect(tls=True), world.connect(tls=True)
        other.connection.handshakeCompleted()
        world.clock.advance(10)
        self.assertEqual((client.wire.aborted, other.over), (True, False))
        self.assertEqual(world.value("identree_ldap_connections_refused_total", reason="handshake"), 1)

    def test_lingering(self) -> None:
        """A connection whose last answers nobody reads is cut in the end."""
        world = World()
        client = world.bound()
        client.wire.stuck = True
        client.send(pureldap.LDAPUnbindRequest())
        self.assertEqual((client.wire.closed, client.over), (True, False))
        world.clock.advance(connection.LINGER_SECONDS)
        self.assertTrue(client.wire.aborted)

    def test_clean(self) -> None:
        """A connection that is over leaves no timer."""
        world = World()
        client = world.bound()
        client.send(pureldap.LDAPUnbindRequest())
        world.tally.flush()
        self.assertEqual(world.clock.getDelayedCalls(), [])


class StartTLSTests(SynchronousTestCase):
    NAME = b"1.3.6.1.4.1.1466.20037"

    def test_none(self) -> None:
        """Without a certificate it is unavailable, and the root DSE does not list it."""
        client = World().connect()
        self.assertEqual(code(client.ask(extended(self.NAME))), 52)
        [entry, _] = client.ask(search("", "(objectClass=*)", ["supportedExtension"], 0))
        self.assertNotIn(self.NAME, dict(entry.value.attributes)[b"supportedExtension"])

    def test_started(self) -> None:
        """The answer goes first, in the clear; the handshake has its ten seconds from then."""
        calls: list[bytes] = []
        world = World(start_tls=lambda transport: calls.append(transport.value()))
        client = world.connect()
        [answer] = client.ask(extended(self.NAME))
        self.assertEqual((answer.value.resultCode, answer.value.responseName, len(calls)), (0, self.NAME, 1))
        self.assertTrue(calls[0])
        world.clock.advance(10)
        self.assertTrue(client.wire.aborted)

    def test_again(self) -> None:
        """Within TLS it is an operationsError."""
        world = World(start_tls=lambda transport: None)
        client = world.connect(tls=True)
        client.connection.handshakeCompleted()
        self.assertEqual(code(client.ask(extended(self.NAME))), 1)

    def test_injected(self) -> None:
        """What was sent in the clear behind it must not count as said within TLS: there is no TLS then."""
        calls: list[Any] = []
        world = World(start_tls=calls.append)
        client = world.connect()
        client.feed(message(extended(self.NAME), 1) + message(search(), 2))
        self.assertEqual([each.value.resultCode for each in client.received()], [1, 50])
        client.feed(message(extended(self.NAME), 3) + b"\x30")
        self.assertEqual((code(client.received()), calls), (1, []))


class HostTests(SynchronousTestCase):
    def test_removed(self) -> None:
        """A host that is removed is cut at once, with a notice; others are not."""
        world = World()
        world.registry = registry("web1", "db1")
        web1, db1 = world.connect(), world.connect()
        self.assertEqual((web1.bind_host("web1"), db1.bind_host("db1")), (0, 0))
        web1.received()
        world.registry = registry("db1")
        world.factory.registry_changed()
        self.assertEqual([each.id for each in web1.received()], [0])
        self.assertEqual((web1.over, db1.over), (True, False))
        self.assertIn("LDAP_CONNECTION_CUT host removed", world.messages)

    def test_removed_quietly(self) -> None:
        """Even when nobody says so, its next request is not answered."""
        world = World()
        world.registry = registry("web1", "db1")
        client = world.connect()
        client.bind_host("web1")
        client.ask(search())
        world.registry = registry("db1")
        answers = client.ask(search())
        self.assertEqual((names(answers), client.over), ([], True))

    def test_spoiled_certificate(self) -> None:
        """Who came with a certificate that is revoked or expired since is cut, bound or not; others are not."""
        spoiled: dict[object, str] = {}
        world = World(spoiled=lambda transport: spoiled.get(transport, ""))
        bound, unbound, other = world.bound(), world.connect(), world.bound()
        bound.received()
        world.factory.certificates_changed()
        self.assertEqual((bound.over, unbound.over), (False, False))
        spoiled[bound.wire], spoiled[unbound.wire] = "revoked", "expired"
        world.factory.certificates_changed()
        self.assertEqual([each.id for each in bound.received()], [0])
        self.assertEqual((bound.over, unbound.over, other.over), (True, True, False))
        for reason in ("revoked", "expired"):
            self.assertEqual(world.value("identree_ldap_connections_refused_total", reason=reason), 1)

    def test_view(self) -> None:
        """A host sees what its view has, and again when that has changed."""
        world = World()
        world.views["web1"] = View(hostname="web1", people=frozenset({"user1"}))
        client = world.connect()
        client.bind_host("web1")
        self.assertEqual([len(names(client.ask(search(filter=f"(uid=user{i})")))) for i in (1, 2)], [1, 0])
        world.views["web1"] = View(hostname="web1", people=frozenset({"user1", "user2"}))
        world.factory.snapshot_changed()
        self.assertEqual([len(names(client.ask(search(filter=f"(uid=user{i})")))) for i in (1, 2)], [1, 1])

    def test_who(self) -> None:
        """A host is itself."""
        client = World().connect()
        client.bind_host("web1")
        self.assertEqual(client.ask(extended(WHO))[0].value.response, b"dn:" + host_dn("web1").encode())
