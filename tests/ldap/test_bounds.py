"""What somebody who may ask can make the server do in one go, and keep."""

import gc
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from ldaptor.protocols import pureldap
from twisted.trial.unittest import SynchronousTestCase

from identree.directory import filters
from identree.directory import snapshot as snapshots
from identree.directory.filters import And, Equal, Filter, Not, Or, Substrings
from identree.directory.snapshot import Entry, Snapshot, View
from identree.ldap import ber, connection, paging, search
from identree.ldap.ber import SearchRequest
from identree.ldap.search import Comparison, Reply, Scan, Searcher, entry_answer

from ..directory.drafts import containers, group, person, role, snapshot
from . import harness
from .harness import World, code, host_dn, message, names, page_control
from .test_search import GETGRNAM, GROUPS, PEOPLE, SUDOERS, Clock, ask, reply

MEMBERS = 1000
LARGE = f"cn=group1,{GROUPS}"


def everybody() -> list[str]:
    return [f"user{each}" for each in range(MEMBERS)]


def large(*more: Any) -> Snapshot:
    """A group of a thousand, and a small one."""
    return snapshot(
        [
            *containers(),
            *(person(each) for each in range(MEMBERS)),
            group(1, everybody()),
            group(2, ["user1"]),
            role(1, ["user1", "%group2"]),
            *more,
        ]
    )


def member(number: int) -> str:
    return f"uid=user{number},{PEOPLE}"


def containing(attribute: str, values: Iterable[str]) -> tuple[Filter, ...]:
    return tuple(Substrings(attribute, None, (value.encode(),), None) for value in values)


class BoundsCase(SynchronousTestCase):
    """Every look at the clock ends a step, so the number of steps is that of the pieces of work."""

    SNAPSHOT: Snapshot

    @classmethod
    def setUpClass(cls) -> None:
        cls.SNAPSHOT = large()

    def setUp(self) -> None:
        self.snapshot: Snapshot | None = self.SNAPSHOT
        self.clock = Clock(1)
        self.searcher = Searcher(lambda: self.snapshot, 1 << 20, self.clock)

    def steps(
        self, filter: str | Filter, base: str = GROUPS, view: View | None = None, **more: Any
    ) -> tuple[int, Reply]:
        """How many steps there are, and the whole answer."""
        answer = self.searcher.answer(ask(filter, base, **more), view)
        if isinstance(answer, Reply):
            return 1, answer
        found: list[bytes] = []
        count = 1
        while not answer.done:
            found += answer.step()
            count += 1
        return count, Reply(found, answer.done_op(), answer.reply_code, answer.base)


class StepTests(BoundsCase):
    def test_many_values(self) -> None:
        """A test of many values is as many steps as it has terms and parts of the values; it says the same."""
        for values, count in ((["nobody"] * 20, 0), ([*["nobody"] * 19, "user99"], 1)):
            steps, found = self.steps(Or(containing("memberUid", values)))
            self.assertEqual(found.count, count)
            self.assertGreater(steps, 20 * MEMBERS / filters.VALUES_AT_ONCE)

    def test_equality(self) -> None:
        """Whether many values have one of them is looked up, not searched."""
        for name, value, other in (("memberUid", "user7", "nobody"), ("member", member(7), member(MEMBERS))):
            steps, found = self.steps(And(tuple(Not(Equal(name, other.encode())) for _ in range(100))))
            self.assertEqual(found.count, 3)
            self.assertLess(steps, 20)
            self.assertEqual(self.steps(Not(Equal(name, value.encode())))[1].count, 2)

    def test_small_entries(self) -> None:
        """Nor are many entries with some values each one step."""
        self.snapshot = snapshot(
            [
                *containers(),
                *(person(each) for each in range(80)),
                *(group(each, everybody()[:80]) for each in range(60)),
            ]
        )
        steps, _ = self.steps(Or(containing("memberUid", ["nobody"] * 30)))
        self.assertGreaterEqual(steps, 60)

    def test_kinds(self) -> None:
        """A question of a known kind about something with many values is answered in steps, with the same outcome."""
        for number, count in ((1, 0), (2, 1)):
            filter = And((Equal("cn", b"group%d" % number), Not(Or(containing("memberUid", ["user99"] * 30)))))
            for _ in range(2):
                self.assertEqual(self.steps(filter)[1].count, count)
        answer = self.searcher.answer(ask(And((Equal("cn", b"group1"), Not(Or(containing("memberUid", ["x"] * 30)))))))
        self.assertIsInstance(answer, Scan)

    def test_many_answers(self) -> None:
        """A question of a known kind with hundreds of answers is answered in steps."""
        self.snapshot = snapshot(
            [*containers(), person(0), *(group(each, ["user0"]) for each in range(search.MAX_AT_ONCE + 1))]
        )
        for _ in range(2):
            op = ask("(&(memberUid=user0)(objectClass=posixGroup))", GROUPS)
            answer = self.searcher.answer(op)
            self.assertIsInstance(answer, Scan)
            self.assertEqual(reply(answer).count, search.MAX_AT_ONCE + 1)

    def test_large_filter(self) -> None:
        """Decoding a large filter is all that is done at first; thousands of alternatives are answered."""
        users = [Equal("sudoUser", b"%%group%d" % each) for each in range(4000)]
        op = ask(And((Equal("objectClass", b"sudoRole"), Or(tuple(users)))), SUDOERS)
        looked = self.clock.now
        answer = self.searcher.answer(op)
        assert isinstance(answer, Scan)
        # the time at which it began, for its limit
        self.assertLessEqual(self.clock.now - looked, 1)
        self.assertEqual(answer.step(), [])
        self.assertEqual(reply(answer).count, 1)

    def test_compare(self) -> None:
        """A comparison with one of many values says the same, and takes steps where nothing can be looked up."""
        view = View(hostname="web1", people=frozenset(everybody()[:-1]))
        for seen, count in ((None, 1), (view, 2 * (MEMBERS - 1) / filters.VALUES_AT_ONCE)):
            for number, expected in ((7, 6), (MEMBERS - 1, 6 if seen is None else 5), (MEMBERS, 5)):
                outcome = self.searcher.compare(LARGE.encode(), b"member", member(number).encode(), seen)
                assert isinstance(outcome, Comparison)
                steps = 0
                while not outcome.done:
                    outcome.step()
                    steps += 1
                self.assertEqual(outcome.code, expected)
                self.assertGreaterEqual(steps, count)
                count = 1

    def test_values_that_take_long(self) -> None:
        """Values of which each byte costs are refused beyond a bound: nothing that is served is as long."""
        long = "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * search.MAX_DEAR_BYTES
        for value in (long.encode(), b"a  " * search.MAX_DEAR_BYTES, b"A=" + b"\\2c" * search.MAX_DEAR_BYTES):
            filter = Or((Equal("cn", value), Not(Equal("uid", b"x"))))
            self.assertEqual(self.steps(filter)[1].code, 11)
            self.assertEqual(self.searcher.compare(LARGE.encode(), b"member", value), (11, ""))
        self.assertEqual(self.steps(Equal("cn", b"a" * 100_000))[1].code, 0)

    def test_base_that_takes_long(self) -> None:
        """Nor is such a base taken for a DN."""
        long = "cn=" + "\N{LATIN SMALL LETTER E WITH ACUTE}" * search.MAX_BASE_BYTES
        for base, expected in ((long, 34), (long[:100], 32)):
            self.assertEqual(self.steps("(objectClass=*)", f"{base},{PEOPLE}")[1].code, expected)
            outcome = self.searcher.compare(f"{base},{PEOPLE}".encode(), b"cn", b"x")
            assert not isinstance(outcome, Comparison)
            self.assertEqual(outcome[0], expected)

    def test_outside_of_the_tree(self) -> None:
        """An entry that is answered in one go is not tested against everything that it has, a hundred times."""
        entry = Entry.alone("cn=x", (("cn", tuple(b"value%d" % each for each in range(200))),))
        for terms, expected in ((1, 0), (200, 11)):
            request = SearchRequest(b"cn=x", 0, 0, 0, 0, False, Or(containing("cn", ["y"] * terms)), ())
            self.assertEqual(entry_answer(entry, request).code, expected)


class PlanTests(BoundsCase):
    def test_same_values(self) -> None:
        """Alternatives that are the same are looked up once."""
        self.patch(snapshots, "MAX_PLANNING", 60)
        found = self.SNAPSHOT.candidates(Or(tuple(Equal("memberUid", b"user1") for _ in range(1000))))
        assert found is not None
        self.assertEqual(len(found), 2)

    def test_given_up(self) -> None:
        """Alternatives that come to too much are left to a scan, and so are too many questions for changes."""
        self.patch(snapshots, "MAX_PLANNING", 60)
        users = tuple(Equal("memberUid", each.encode()) for each in everybody())
        self.assertIsNone(self.SNAPSHOT.candidates(Or(users)))
        self.assertIsNotNone(self.SNAPSHOT.candidates(Or(users[:5])))
        cheap, since = Equal("uid", b"user1"), filters.GreaterOrEqual("modifyTimestamp", b"20990101000000Z")
        self.assertIsNotNone(self.SNAPSHOT.candidates(And((cheap, *[since] * 100))))

    def test_one_look_at_changes(self) -> None:
        """A filter of many terms about changes goes through the changed entries a few times, not for each term."""
        looked = []
        self.patch(Snapshot, "_since", lambda snapshot, filter: looked.append(filter))
        since = filters.GreaterOrEqual("modifyTimestamp", b"20990101000000Z")
        self.SNAPSHOT.candidates(And((since,) * 250))
        self.assertLess(len(looked), 10)


class ViewTests(BoundsCase):
    VIEW = View(hostname="web1", people=frozenset(everybody()[1:]))

    def test_narrowed_in_steps(self) -> None:
        """What a host sees of a group of many is found in steps, once for all hosts with the same people."""
        listing = ask("(objectClass=posixGroup)", GROUPS)
        steps, found = self.steps("(objectClass=posixGroup)", view=self.VIEW)
        self.assertEqual(found.count, 2)
        self.assertGreater(steps, 2 * (MEMBERS - 1) / filters.VALUES_AT_ONCE)
        other = View(hostname="web2", people=frozenset(everybody()[1:]))
        again, same = self.steps("(objectClass=posixGroup)", view=other)
        self.assertLess(again, steps - 4)
        self.assertEqual(same.entries, found.entries)
        alone = Searcher(lambda: self.snapshot, 0, Clock())
        self.assertEqual(reply(alone.answer(listing, other)).entries, found.entries)

    def test_kinds(self) -> None:
        """A question of a known kind about such a group is answered in steps as well."""
        for name in ("group2", "group1"):
            found = self.steps(GETGRNAM % name, view=self.VIEW)[1]
            self.assertEqual(found.count, 1)
            self.assertNotIn(b"user0", found.entries[0])

    def test_visible(self) -> None:
        """Whether an entry is to be seen at all is what comes of looking at it."""
        rules = [role(2, ["user0"]), role(3, ["user0", "ALL"]), role(4, ["user1"], ["web2"]), role(5, ["user1", "%x"])]
        self.snapshot = found = large(*rules)
        for people in (None, self.VIEW.people):
            sight = found.view(View(hostname="web1", people=people))
            visible = [entry for entry in found.entries if sight.visible(entry)]
            self.assertEqual(visible, [entry for entry in found.entries if sight.see(entry) is not None])
        hidden = self.steps("(objectClass=*)", f"cn=role2,{SUDOERS}", self.VIEW)[1]
        self.assertEqual((hidden.code, hidden.done), (32, search.failure(32, "", SUDOERS).done))

    def test_who_exists(self) -> None:
        """Whether somebody is not there or not to be seen is not told, nor by what is asked below him."""
        for name in ("uid=user0", "uid=nobody"):
            for below in ("", "cn=x,", "cn=y,cn=x,"):
                dn = f"{below}{name},{PEOPLE}"
                found = self.steps("(objectClass=*)", dn, self.VIEW)[1]
                same = search.failure(32, "", PEOPLE)
                self.assertEqual((found.code, found.done), (32, same.done))
                outcome = self.searcher.compare(dn.encode(), b"uid", b"x", self.VIEW)
                self.assertEqual(outcome, (32, PEOPLE))


class MemoryTests(BoundsCase):
    def test_attribute_lists(self) -> None:
        """Long lists of attributes leave nothing behind."""
        unknown = [f"{'x' * 1000}{each}" for each in range(500)]
        self.searcher.answer(ask("(uid=user0)", PEOPLE, 0, unknown))
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for each in range(20):
                self.searcher.answer(ask("(uid=user0)", PEOPLE, 0, [*unknown, str(each)]))
            gc.collect()
            kept = tracemalloc.get_traced_memory()[0] - before - self.searcher.memo_bytes_used
        finally:
            tracemalloc.stop()
        self.assertLess(kept, 200_000)

    def test_selections(self) -> None:
        """Lists with the same meaning are one."""
        for each in range(50):
            self.searcher.answer(ask(f"(uid=user{each})", PEOPLE, 2, ["cn", f"unknown{each}"]))
        self.assertEqual(len(self.searcher._selections), 1)

    def test_kinds(self) -> None:
        """Kinds of questions are remembered up to a bound, and not at all when they are long."""
        self.clock.tick = 0
        self.searcher.answer(ask("(uid=user1)", PEOPLE, 0))
        lane = self.searcher._lane(self.SNAPSHOT, None)
        rest = Or(tuple(Equal("cn", b"%d" % each) for each in range(search.MAX_PATTERN_TERMS)))
        self.searcher.answer(ask(And((Equal("uid", b"user1"), rest)), PEOPLE))
        self.searcher.answer(ask("(&(uid=user1)(cn=*))", PEOPLE, attributes=["x" * search.MAX_PATTERN_BYTES]))
        self.assertEqual(len(lane.patterns), 0)
        self.patch(search, "PATTERNS_BYTES", 100_000)
        for each in range(200):
            self.searcher.answer(ask(f"(&(uid=user1)(cn=*{each}))", PEOPLE))
            self.assertLess(len(lane.patterns), 40)
        self.assertGreater(len(lane.patterns), 0)

    def test_freed_in_steps(self) -> None:
        """The memo of the snapshot before is freed bit by bit."""
        self.clock.tick = 0
        self.patch(search, "FREED_AT_ONCE", 10)
        for each in range(100):
            self.searcher.answer(ask(f"(uid=user{each})", PEOPLE))
        self.snapshot = snapshot(containers())
        self.searcher.renew()
        self.assertEqual(self.searcher.memo_bytes_used, 0)
        left = []
        more = True
        while more:
            left.append(sum(map(len, self.searcher._freeing)))
            more = self.searcher.free()
        self.assertGreaterEqual(len(left), 10)
        self.assertTrue(all(before - after <= 10 for before, after in pairwise(left)))

    def test_old_half(self) -> None:
        """The half of the memo that is dropped goes as the other one fills."""
        self.searcher = Searcher(lambda: self.snapshot, 100_000, self.clock)
        for each in range(MEMBERS):
            self.searcher.answer(ask(f"(uid=user{each})", PEOPLE))
            self.assertLessEqual(len(self.searcher._freeing), 1)
        self.assertFalse(self.searcher._old.keys() & {key for each in self.searcher._freeing for key in each})


class ConnectionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.bound()
        self.client.received()

    def compare(self, number: int) -> Any:
        assertion = pureldap.LDAPAttributeValueAssertion(
            pureldap.LDAPAttributeDescription(b"member"), pureldap.LDAPAssertionValue(member(number).encode())
        )
        return pureldap.LDAPCompareRequest(LARGE.encode(), assertion)

    def host(self, people: int) -> harness.Client:
        """A host that sees some people of a large directory."""
        self.world.snapshot = large()
        self.world.registry = harness.registry("web1")
        self.world.views["web1"] = View(hostname="web1", people=frozenset(everybody()[:people]))
        client = self.world.connect()
        assert client.bind_host("web1") == 0, host_dn("web1")
        client.received()
        return client

    def test_compare(self) -> None:
        """A long comparison is answered after some turns, in its order."""
        for people, expected in ((999, 6), (7, 5)):
            client = self.host(people)
            client.send(self.compare(7))
            client.send(harness.search())
            self.assertEqual(client.received(), [])
            self.world.turn(50)
            first, *others = client.received()
            self.assertEqual(first.value.resultCode, expected)
            self.assertEqual(len(names(others)), 1)

    def test_compare_cancelled(self) -> None:
        """A long comparison that is cancelled is answered as one."""
        client = self.host(999)
        client.send(self.compare(7), id=50)
        value = b"\x30\x03\x02\x01\x32"
        client.send(pureldap.LDAPExtendedRequest(b"1.3.6.1.1.8", value))
        self.world.turn(5)
        first, second = client.received()
        self.assertIsInstance(first.value, pureldap.LDAPCompareResponse)
        self.assertEqual((first.id, first.value.resultCode, second.value.resultCode), (50, 118, 0))

    def test_compare_too_long(self) -> None:
        """A comparison that is still not done at the time limit ends with 3."""
        client = self.host(999)
        client.send(self.compare(7))
        self.world.clock.advance(61)
        [answer] = client.received()
        self.assertIsInstance(answer.value, pureldap.LDAPCompareResponse)
        self.assertEqual(answer.value.resultCode, 3)

    def test_kept_in_all(self) -> None:
        """What waits because nobody reads the answers counts too, over all connections."""
        self.patch(connection, "KEPT_BYTES", 1_000_000)
        clients = [self.world.bound() for _ in range(20)]
        for client in clients:
            client.connection.pauseProducing()
            client.feed(message(pureldap.LDAPDelRequest(b"x" * 100_000), 9))
        self.assertEqual(sum(not client.over for client in clients), 9)
        self.assertLessEqual(self.world.common.kept_bytes, 1_000_000)
        for client in clients:
            if not client.over:
                client.connection.resumeProducing()
        self.world.turn(5)
        self.assertEqual(self.world.common.kept_bytes, 0)

    def test_small_requests_in_need(self) -> None:
        """Who sends ordinary requests is served however much others keep."""
        self.patch(connection, "KEPT_BYTES", 1000)
        self.client.connection.pauseProducing()
        self.client.send(harness.search())
        self.client.send(harness.search())
        self.client.send(harness.search())
        self.assertGreater(self.world.common.kept_bytes, 900)
        other = self.world.bound()
        self.assertEqual(len(names(other.ask(harness.search()))), 1)
        self.assertFalse(self.client.over)

    def test_running(self) -> None:
        """A search counts as long as it is performed."""
        op = ask(Or(tuple(Equal("cn", b"%d" % each) for each in range(2000))), PEOPLE)
        self.client.feed(ber.message(9, op))
        self.assertEqual(self.world.common.kept_bytes, len(op))
        self.world.turn(100)
        self.assertEqual(code(self.client.received()), 0)
        self.assertEqual(self.world.common.kept_bytes, 0)

    def test_strangers_wait(self) -> None:
        """Before a bind little is read that waits."""
        client = self.world.connect()
        client.connection.pauseProducing()
        sent = 0
        while client.wire.producerState == "producing":
            client.send(harness.search())
            sent += 1
        self.assertLessEqual(sent, connection.STRANGERS_WAITING)
        client.connection.resumeProducing()
        self.world.turn(5)
        self.assertEqual(client.wire.producerState, "producing")
        self.assertEqual(len(client.received()), sent)

    def test_memo_is_freed(self) -> None:
        """After a swap the reactor frees what was remembered, in turns."""
        self.patch(search, "FREED_AT_ONCE", 1)
        for each in range(3):
            self.client.ask(harness.search(filter=f"(uid=user{each})"))
        self.world.snapshot = harness.snapshot(previous=self.world.snapshot)
        self.world.factory.snapshot_changed()
        self.assertTrue(self.world.searcher._freeing)
        self.world.turn(10)
        self.assertEqual(self.world.searcher._freeing, [])

    def test_cursors(self) -> None:
        """Searches between two pages keep a digest of what was asked; long ones drive out the oldest."""
        self.patch(paging, "CURSORS_BYTES", 50_000)
        for each in range(4):
            long = harness.search(filter="(gecos=User*)", attributes=["x" * 15_000, str(each)])
            self.client.send(long, [page_control(1)])
            self.world.turn(5)
            self.assertEqual(len(self.world.cursors), min(each + 1, 3))
