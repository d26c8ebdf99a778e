"""Refreshing the directory: nothing lost, nothing moved, nothing smaller by accident."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from identree.app.ports import SourceRefused, SourceUnavailable
from identree.app.refresh import Outcome
from identree.core.challenge import Live
from identree.core.errors import StorageUnavailable
from identree.directory.source import Source
from tests.app.directoryworld import INTERVAL, Replica, ScriptedSource, group, people, started, user
from tests.fakes import MemoryStore, memory_store

_PUBLISHED = Live(event="directory_published", username="")


class _World(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.temporary = TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.root = Path(self.temporary.name)
        self.store: MemoryStore = memory_store(self.clock)
        self.addCleanup(lambda: self.successResultOf(started(self.store.stop())))
        self.source = ScriptedSource(people("alice", "bob", groups=(group("ops", "alice", "bob"),)))

    def replica(self, name: str = "a", **options: Any) -> Replica:
        path = self.root / name
        path.mkdir(exist_ok=True)
        replica = Replica(self.store, options.pop("source", self.source), self.clock, path, **options)
        self.addCleanup(lambda: replica.refresh.running and replica.refresh.stopService())
        return replica

    def started(self, name: str = "a", **options: Any) -> Replica:
        return self.replica(name, **options).start()

    def stop(self, replica: Replica) -> None:
        stopping = replica.refresh.stopService()
        assert stopping is not None
        self.successResultOf(stopping)

    def refreshed(self, replica: Replica, accept_shrink: bool = False) -> Outcome:
        outcome: Outcome = self.successResultOf(started(replica.refresh.now(accept_shrink)))
        return outcome


class RefreshTests(_World):
    def test_first(self) -> None:
        """The first refresh comes at the start; then everybody is served, numbered from the base, and counted."""
        a = self.started()
        self.assertEqual(a.names, ["alice", "bob"])
        self.assertEqual(a.numbers, {"alice": 200_000, "bob": 200_001})
        status = a.directory.status()
        self.assertEqual((status.people, status.groups, status.health, status.trouble), (2, 1, "ok", None))
        self.assertEqual(a.metric("identree_ldap_refresh_total", trigger="poll"), 1)
        self.assertEqual(a.metric("identree_directory_entries", kind="person"), 2)
        self.assertEqual(a.metric("identree_directory_change_number"), status.usn)

    def test_interval(self) -> None:
        """The source is asked once per interval."""
        self.started()
        self.clock.advance(INTERVAL - 1)
        self.assertEqual(self.source.asked, 1)
        self.clock.advance(1)
        self.assertEqual(self.source.asked, 2)

    def test_unchanged(self) -> None:
        """A source that says the same again writes nothing but the time, and leaves the very same snapshot."""
        a = self.started()
        snapshot, before = a.directory.snapshot, self.successResultOf(started(self.store.directory()))
        self.clock.advance(INTERVAL)
        self.assertIs(a.directory.snapshot, snapshot)
        after = self.successResultOf(started(self.store.directory()))
        self.assertEqual(replace(before, fetched_at=after.fetched_at), after)
        self.assertEqual(after.fetched_at, a.now())
        self.assertEqual(a.metric("identree_ldap_refresh_total", trigger="poll"), 2)

    def test_change(self) -> None:
        """What changes gets one new change number, greater than all before; all else keeps its own."""
        a = self.started()
        before = a.stamps
        self.source.answer = replace(self.source.answer, users=(user("alice", email="a@x"), user("bob")))  # type: ignore[type-var]
        self.clock.advance(INTERVAL)
        changed = {dn for dn, stamp in a.stamps.items() if stamp != before[dn]}
        self.assertEqual(changed, {"uid=alice,ou=people,dc=example,dc=com"})
        [(usn, created)] = [a.stamps[dn] for dn in changed]
        self.assertGreater(usn, max(stamp[0] for stamp in before.values()))
        self.assertEqual(created, before["uid=alice,ou=people,dc=example,dc=com"][1])

    def test_invisible_change(self) -> None:
        """A change that no host can see is kept, and leaves the very same snapshot."""
        a = self.started()
        snapshot = a.directory.snapshot
        self.source.answer = replace(self.source.answer, users=(user("alice", claims=(("x", "y"),)), user("bob")))  # type: ignore[type-var]
        self.assertEqual(self.refreshed(a), Outcome.PUBLISHED)
        self.assertIs(a.directory.snapshot, snapshot)
        self.assertEqual(self.refreshed(a), Outcome.UNCHANGED)

    def test_removed_highest(self) -> None:
        """The greatest change number ever shown is remembered when the entry that had it is gone, also by a restart."""
        a = self.started()
        self.source.answer = people("alice", "bob", "carol", groups=(group("ops", "alice", "bob"),))
        self.clock.advance(INTERVAL)
        usn = a.directory.status().usn
        self.source.answer = people("alice", "bob", groups=(group("ops", "alice", "bob"),))
        self.clock.advance(INTERVAL)
        self.assertGreaterEqual(a.directory.status().usn, usn)
        self.stop(a)
        self.source.answer = SourceUnavailable("down")
        self.assertGreaterEqual(self.started("b").directory.status().usn, usn)

    def test_back_off(self) -> None:
        """After 1, 2, 3, 4, 5 failures the next attempt comes after 1, 2, 4, 5 and 5 minutes, whatever the interval."""
        self.source.answer = SourceUnavailable("PocketID answers 500")
        a = self.started()
        for asked, minutes in ((1, 1), (2, 2), (3, 4), (4, 5), (5, 5)):
            self.assertEqual(self.source.asked, asked)
            # the loop looks at its settings now and then, so time passes in small steps
            for _ in range(minutes * 12 - 1):
                self.clock.advance(5)
            self.assertEqual(self.source.asked, asked)
            self.clock.advance(5)
        self.assertEqual(a.metric("identree_ldap_sync_failures_total"), 6)
        trouble = a.directory.status().trouble
        assert trouble is not None
        self.assertEqual((trouble.reason, trouble.at), ("PocketID answers 500", a.now()))

    def test_recovery(self) -> None:
        """A success ends the back-off and forgets the failure."""
        good, self.source.answer = self.source.answer, SourceUnavailable("down")
        a = self.started()
        self.source.answer = good
        self.clock.pump([5] * 12)
        self.assertEqual((a.names, a.directory.status().trouble), (["alice", "bob"], None))
        self.source.answer = SourceUnavailable("down again")
        self.clock.pump([5] * 60)
        self.assertEqual(self.source.asked, 3)
        self.clock.pump([5] * 12)
        self.assertEqual(self.source.asked, 4)

    def test_failure_keeps(self) -> None:
        """Whatever fails, the served directory stays, with its age."""
        a = self.started()
        snapshot = a.directory.snapshot
        for problem in (SourceUnavailable("x"), SourceRefused("y"), RuntimeError("a bug"), StorageUnavailable("z")):
            self.source.answer = problem
            self.assertEqual(self.refreshed(a), Outcome.FAILED)
            self.assertIs(a.directory.snapshot, snapshot)
            self.assertIsNotNone(a.directory.status().trouble)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_rate_limit(self) -> None:
        """Who is asked by the source to wait, waits, if that is longer than the back-off."""
        self.source.answer = SourceUnavailable("429", retry_after=200)
        self.started()
        self.clock.pump([5] * 39)
        self.assertEqual(self.source.asked, 1)
        self.clock.pump([5])
        self.assertEqual(self.source.asked, 2)

    def test_refused_by_source(self) -> None:
        """A bad API key is not tried again every minute."""
        self.source.answer = SourceRefused("the API key is wrong")
        self.started()
        self.clock.pump([5] * 59)
        self.assertEqual(self.source.asked, 1)
        self.clock.pump([5])
        self.assertEqual(self.source.asked, 2)

    def test_on_demand(self) -> None:
        """Whoever asks gets a reading that began after the question."""
        a = self.started()
        slow: Deferred[Source] = Deferred()
        self.source.answer = slow
        first = started(a.refresh.now())
        second = started(a.refresh.now())
        self.source.answer = people("alice", "bob", "carol", groups=(group("ops", "alice", "bob"),))
        slow.callback(people("alice", "bob", groups=(group("ops", "alice", "bob"),)))
        self.assertEqual(self.successResultOf(first), Outcome.UNCHANGED)
        self.assertEqual(self.successResultOf(second), Outcome.PUBLISHED)
        self.assertEqual((self.source.asked, a.names), (3, ["alice", "bob", "carol"]))

    def test_not_urgent(self) -> None:
        """A failure on demand brings the next one no closer."""
        a = self.started()
        self.source.answer = SourceUnavailable("down")
        self.refreshed(a)
        self.clock.pump([5] * 59)
        self.assertEqual(self.source.asked, 2)

    def test_notified(self) -> None:
        """A burst of notifications makes one refresh, two seconds after its end."""
        a = self.started()
        for _ in range(5):
            a.refresh.notify()
            self.clock.advance(1)
        self.assertEqual(self.source.asked, 1)
        self.clock.advance(1)
        self.assertEqual(self.source.asked, 2)
        self.assertEqual(a.metric("identree_ldap_refresh_total", trigger="webhook"), 1)

    def test_notified_without_end(self) -> None:
        """Notifications that never pause are heard after ten seconds."""
        a = self.started()
        for _ in range(10):
            a.refresh.notify()
            self.clock.advance(1)
        self.assertEqual(self.source.asked, 2)

    def test_notified_during(self) -> None:
        """A notification during a refresh is followed by another one, for the first may have read before."""
        a = self.started()
        slow: Deferred[Source] = Deferred()
        self.source.answer = slow
        a.refresh.notify()
        self.clock.advance(2)
        a.refresh.notify()
        self.clock.advance(2)
        self.assertEqual(self.source.asked, 2)
        slow.callback(people("alice", "bob"))
        self.assertEqual(self.source.asked, 3)

    def test_stopped_during(self) -> None:
        """Stopping ends a refresh that waits for the source, and whoever waits for that."""
        a = self.started()
        self.source.answer = Deferred()
        waiting = started(a.refresh.now())
        a.refresh.notify()
        self.stop(a)
        self.assertEqual(self.successResultOf(waiting), Outcome.FAILED)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.refreshed(a), Outcome.FAILED)

    def test_stopped_by_the_answered(self) -> None:
        """Whoever gets an answer may stop the service right then."""
        a = self.started()
        stopped: list[Any] = []
        started(a.refresh.now()).addCallback(lambda _: stopped.append(a.refresh.stopService()))
        self.successResultOf(stopped[0])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_settled(self) -> None:
        """The listeners open after the first refresh, good or bad, or after twenty seconds."""
        good, self.source.answer = self.source.answer, Deferred()
        waiting = started(self.started("a").refresh.settled())
        self.assertNoResult(waiting)
        self.clock.pump([5] * 4)
        self.successResultOf(waiting)
        self.source.answer = SourceUnavailable("down")
        self.successResultOf(started(self.started("b", source=ScriptedSource(self.source.answer)).refresh.settled()))
        self.successResultOf(started(self.started("c", source=ScriptedSource(good)).refresh.settled()))

    def test_layout(self) -> None:
        """A changed setting is served within seconds, with new change numbers, and without asking the source."""
        a = self.started()
        usn = a.directory.status().usn
        a.layout = replace(a.layout, default_shell="/bin/zsh")
        self.clock.advance(5)
        snapshot = a.directory.snapshot
        assert snapshot is not None
        shells = {dict(entry.draft.attributes).get("loginShell") for entry in snapshot.entries}
        self.assertEqual(shells, {None, (b"/bin/zsh",)})
        self.assertGreater(snapshot.usn, usn)
        self.assertEqual(self.source.asked, 1)

    def test_listeners(self) -> None:
        """Whoever wants to know of swaps is told after them, and a broken listener keeps nobody else from it."""
        a = self.started()
        heard: list[Any] = []
        a.directory.subscribe(lambda snapshot: 1 / 0 and None)  # type: ignore[arg-type]
        end = a.directory.subscribe(lambda snapshot: heard.append((snapshot, a.directory.snapshot)))
        self.source.answer = people("alice", "bob", "carol")
        self.refreshed(a, accept_shrink=True)
        end()
        self.source.answer = people("alice", "bob", "carol", "dora")
        self.refreshed(a)
        self.assertEqual(len(heard), 1)
        self.assertIs(heard[0][0], heard[0][1])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_bad_ids(self) -> None:
        """People whose ids cannot be kept, or are another's, are left out; the others are served."""
        bad = (replace(user("nul"), id="a\0b"), replace(user("half"), id="\ud800"), user("alice"))
        self.source.answer = Source(users=(user("alice"), *bad, user("bob")))
        self.assertEqual(self.started().names, ["alice", "bob"])


class ShrinkTests(_World):
    def setUp(self) -> None:
        super().setUp()
        self.many = [f"p{n}" for n in range(10)]
        self.groups = tuple(group(f"g{n}", *self.many) for n in range(6))
        self.source.answer = people(*self.many, groups=self.groups)

    def test_refused(self) -> None:
        """Losing more than the share is refused: served, numbers, log and metric say so, and nothing changes."""
        a = self.started()
        snapshot = a.directory.snapshot
        self.source.answer = people(*self.many[:6], groups=self.groups)
        self.assertEqual(self.refreshed(a), Outcome.REFUSED)
        self.assertIs(a.directory.snapshot, snapshot)
        self.assertEqual(a.metric("identree_directory_refused_total"), 1)
        status = a.directory.status()
        self.assertEqual(str(status.refusal), "4 of 10 people would vanish")
        self.assertIsNone(status.trouble)
        # what was not accepted is no confirmation
        self.clock.pump([5] * 120)
        self.assertEqual(a.directory.health(), "stale")

    def test_rules_vanish(self) -> None:
        """Rules count too: claims that come back empty do not take all sudo rules away."""
        rule = (("sudoCommands", "/bin/ls"),)
        self.source.answer = people(*self.many, groups=tuple(replace(group, claims=rule) for group in self.groups))
        a = self.started()
        self.assertEqual(a.directory.status().roles, 6)
        self.source.answer = people(*self.many, groups=self.groups)
        self.assertEqual(self.refreshed(a), Outcome.REFUSED)
        self.assertEqual(str(a.directory.status().refusal), "6 of 6 sudo rules would vanish")
        self.assertEqual(a.directory.status().roles, 6)

    def test_everybody_disabled(self) -> None:
        """So does being switched off, which takes keys and rules like vanishing does."""
        a = self.started()
        before = people(*self.many, groups=self.groups)
        self.source.answer = replace(before, users=tuple(replace(user, disabled=True) for user in before.users))
        self.assertEqual(self.refreshed(a), Outcome.REFUSED)
        self.assertIn("10 of 10 enabled people", str(a.directory.status().refusal))

    def test_accepted_is_not_more(self) -> None:
        """What is accepted is the loss that was refused: the source may have lost more since."""
        a = self.started()
        self.source.answer = people(*self.many[:5], groups=self.groups)
        self.assertEqual(self.refreshed(a), Outcome.REFUSED)
        self.source.answer = Source()
        self.assertEqual(self.refreshed(a, accept_shrink=True), Outcome.REFUSED)
        self.assertEqual(a.directory.status().people, 10)
        self.source.answer = people(*self.many[:6], groups=self.groups)
        self.assertEqual(self.refreshed(a, accept_shrink=True), Outcome.PUBLISHED)
        self.assertEqual(a.directory.status().people, 6)

    def test_at_the_share(self) -> None:
        """Losing exactly the share is normal."""
        a = self.started()
        self.source.answer = people(*self.many[:7], groups=self.groups)
        self.assertEqual(self.refreshed(a), Outcome.PUBLISHED)

    def test_small(self) -> None:
        """Of a few people two may go, however large a share that is; all may not."""
        self.source.answer = people("alice", "bob", "carol")
        a = self.started()
        self.source.answer = people("alice")
        self.assertEqual(self.refreshed(a), Outcome.PUBLISHED)
        self.source.answer = Source()
        self.assertEqual(self.refreshed(a), Outcome.REFUSED)
        self.assertEqual(a.names, ["alice"])

    def test_accepted(self) -> None:
        """An administrator may accept it, once; then it is the measure."""
        a = self.started()
        self.source.answer = people(*self.many[:5], groups=self.groups)
        self.assertEqual(self.refreshed(a), Outcome.REFUSED)
        self.assertEqual(self.refreshed(a, accept_shrink=True), Outcome.PUBLISHED)
        self.assertEqual((a.names, a.directory.status().refusal), (self.many[:5], None))
        self.source.answer = people(self.many[0], groups=self.groups)
        self.assertEqual(self.refreshed(a), Outcome.REFUSED)

    def test_over(self) -> None:
        """A source that has found its people again ends the refusal."""
        a = self.started()
        self.source.answer = people(*self.many[:1], groups=self.groups)
        self.refreshed(a)
        self.source.answer = people(*self.many, groups=self.groups)
        self.assertEqual(self.refreshed(a), Outcome.UNCHANGED)
        self.assertIsNone(a.directory.status().refusal)

    def test_others(self) -> None:
        """As many other people are a loss: they would get new numbers."""
        a = self.started()
        self.source.answer = people(*(f"q{n}" for n in range(10)), groups=self.groups)
        self.assertEqual(self.refreshed(a), Outcome.REFUSED)
        self.assertIn("10 of 10 people", str(a.directory.status().refusal))

    def test_groups(self) -> None:
        """Groups and memberships are guarded as people are."""
        a = self.started()
        self.source.answer = people(*self.many)
        self.assertEqual(self.refreshed(a), Outcome.REFUSED)
        self.assertEqual(
            str(a.directory.status().refusal), "6 of 6 groups would vanish; 60 of 60 memberships would vanish"
        )
        self.source.answer = people(*self.many, groups=tuple(group(f"g{n}") for n in range(6)))
        self.assertEqual(self.refreshed(a), Outcome.REFUSED)
        self.assertEqual(str(a.directory.status().refusal), "60 of 60 memberships would vanish")

    def test_off(self) -> None:
        """At 100 percent everything is accepted."""
        a = self.started(max_shrink_percent=100)
        self.source.answer = Source()
        self.assertEqual(self.refreshed(a), Outcome.PUBLISHED)
        self.assertEqual(a.names, [])

    def test_other_replica(self) -> None:
        """Every replica shows what waits for acceptance, and any of them can accept it."""
        a, b = self.started("a"), self.started("b")
        self.source.answer = people(*self.many[:2], groups=self.groups)
        self.refreshed(a)
        self.assertIsNone(b.directory.status().refusal)
        self.assertEqual(self.refreshed(b), Outcome.REFUSED)
        self.assertEqual(a.directory.status().refusal, b.directory.status().refusal)
        self.assertEqual(self.refreshed(b, accept_shrink=True), Outcome.PUBLISHED)

    def test_restart(self) -> None:
        """A restart is no way around the refusal, and shows it before the source is asked."""
        a = self.started()
        self.source.answer = people(*self.many[:2], groups=self.groups)
        self.refreshed(a)
        self.stop(a)
        self.source.answer = Deferred()
        b = self.started("b")
        self.assertEqual(str(b.directory.status().refusal), "8 of 10 people would vanish")


class PersistenceTests(_World):
    def test_kept(self) -> None:
        """After a restart with the source down, the last good directory is served, byte for byte, with its age."""
        a = self.started()
        stamps = a.stamps
        self.stop(a)
        self.clock.advance(100)
        self.source.answer = SourceUnavailable("down")
        b = self.started()
        self.assertEqual((b.names, b.stamps), (["alice", "bob"], stamps))
        self.assertEqual((b.directory.age_seconds(), b.directory.health()), (100, "ok"))
        self.clock.advance(1.5 * INTERVAL - 100)
        self.assertEqual(b.directory.health(), "ok")
        self.clock.advance(1)
        self.assertEqual(b.directory.health(), "stale")
        self.assertEqual(b.metric("identree_directory_age_seconds"), 451)

    def test_never(self) -> None:
        """What was never read is stale, and not ready."""
        self.source.answer = SourceUnavailable("down")
        a = self.started()
        self.assertEqual((a.directory.ready, a.directory.snapshot, a.directory.health()), (False, None, "stale"))

    def test_damaged(self) -> None:
        """A damaged directory is replaced by the next refresh; change numbers go on."""
        a = self.started()
        usn = a.directory.status().usn
        self.stop(a)
        self.store.connection.execute("UPDATE directory_pieces SET content = 'AAAA'")
        self.clock.advance(1)
        b = self.started()
        self.assertEqual(b.names, ["alice", "bob"])
        self.assertGreater(b.directory.status().usn, usn)
        self.assertEqual(b.numbers, {"alice": 200_000, "bob": 200_001})

    def test_lost_pieces(self) -> None:
        """So is one of which a part is missing."""
        self.stop(self.started())
        self.store.connection.execute("DELETE FROM directory_pieces")
        self.assertEqual(self.started().names, ["alice", "bob"])

    def test_new_settings(self) -> None:
        """Settings that changed over a restart are served at once, as changes, though the source is down."""
        a = self.started()
        before = a.stamps
        self.stop(a)
        self.clock.advance(10)
        self.source.answer = SourceUnavailable("down")
        b = self.started(layout=replace(a.layout, default_shell="/bin/zsh"))
        changed = {dn.partition(",")[0] for dn, stamp in b.stamps.items() if stamp != before[dn]}
        self.assertEqual(changed, {"uid=alice", "uid=bob"})

    def test_small_writes(self) -> None:
        """One change among many writes two pieces: one of people, one of stamps."""
        names = [f"u{n}" for n in range(2000)]
        self.source.answer = people(*names)
        a = self.started()

        def pieces() -> int:
            [(count,)] = self.store.connection.execute("SELECT COUNT(*) FROM directory_pieces").fetchall()
            return int(count)

        before = pieces()
        assert isinstance(self.source.answer, Source)
        users = list(self.source.answer.users)
        users[1000] = replace(users[1000], email="new@example.com")
        self.source.answer = Source(users=tuple(users))
        self.refreshed(a)
        self.assertEqual(pieces() - before, 2)

    def test_old_pieces(self) -> None:
        """What no version needs is gone after an hour and a bit."""
        a = self.started()
        self.source.answer = people("alice", "bob", "carol", groups=(group("ops", "alice", "bob"),))
        self.refreshed(a)
        self.clock.pump([INTERVAL] * 15)
        names = {name for (name,) in self.store.connection.execute("SELECT name FROM directory_pieces")}
        self.assertEqual(names, set(a.publication.edition.manifest.names()))

    def test_slow_database(self) -> None:
        """A database that does not answer at the start is asked again, and what was kept is served then."""
        self.stop(self.started())
        self.source.answer = SourceUnavailable("down")
        b = self.replica()
        answers = self.store.posix_counter

        async def broken(kind: str) -> Any:
            raise StorageUnavailable("locked")

        self.store.posix_counter = broken  # type: ignore[method-assign]
        b.start()
        self.assertFalse(b.directory.ready)
        self.store.posix_counter = answers  # type: ignore[method-assign]
        self.clock.pump([5] * 12)
        self.assertEqual(b.names, ["alice", "bob"])


class ReplicaTests(_World):
    def pair(self) -> tuple[Replica, Replica]:
        return self.started("a"), self.started("b")

    def test_equal(self) -> None:
        """Two replicas serve the same numbers and the same change numbers, whoever reads what first."""
        a, b = self.pair()
        self.assertEqual((a.numbers, a.stamps), (b.numbers, b.stamps))
        self.source.answer = people("alice", "bob", "carol", groups=(group("ops", "carol", "bob"),))
        self.clock.advance(7)
        self.refreshed(b)
        a.refresh._told(_PUBLISHED)
        self.assertEqual((a.numbers, a.stamps), (b.numbers, b.stamps))
        assert a.directory.snapshot is not None and b.directory.snapshot is not None
        self.assertEqual(
            [entry.pieces for entry in a.directory.snapshot.entries],
            [entry.pieces for entry in b.directory.snapshot.entries],
        )

    def test_turns(self) -> None:
        """One of them asks the source; the other one steps in only when that one is gone."""
        mine, others = ScriptedSource(self.source.answer), ScriptedSource(self.source.answer)
        a, b = self.started("a", source=mine), self.started("b", source=others)
        self.clock.pump([5] * int(INTERVAL / 5 * 6))
        self.assertEqual(mine.asked + others.asked, 2 + 6)
        self.assertEqual((a.directory.health(), b.directory.health()), ("ok", "ok"))
        survivor = others if mine.asked > others.asked else mine
        self.stop(a if survivor is others else b)
        before = survivor.asked
        self.clock.pump([5] * int(INTERVAL / 5 * 1.2))
        self.assertEqual(survivor.asked, before + 1)

    def test_same_moment(self) -> None:
        """Two whose time comes at once do not both ask."""
        mine, others = ScriptedSource(self.source.answer), ScriptedSource(self.source.answer)
        a, b = self.started("a", source=mine), self.started("b", source=others)
        for _ in range(3):
            # whoever asks has no answer yet when the other one looks
            answers: list[Deferred[Source]] = [Deferred(), Deferred()]
            people_now, (mine.answer, others.answer) = self.source.answer, answers
            before = mine.asked + others.asked
            while mine.asked + others.asked == before:
                self.clock.advance(1)
            self.clock.pump([1] * 20)
            self.assertEqual(mine.asked + others.asked, before + 1)
            mine.answer = others.answer = people_now
            for answer in answers:
                answer.callback(people_now)
            self.clock.pump([1] * 20)
            self.assertEqual(mine.asked + others.asked, before + 1)
            self.assertEqual((a.directory.health(), b.directory.health()), ("ok", "ok"))

    def test_claim_without_an_end(self) -> None:
        """Whoever has begun to ask and gets no answer is soon not waited for any more."""
        mine, others = ScriptedSource(self.source.answer), ScriptedSource(self.source.answer)
        self.started("a", source=mine)
        self.started("b", source=others)
        mine.answer, others.answer = Deferred(), Deferred()
        self.clock.pump([1] * int(INTERVAL + 40))
        self.assertEqual((mine.asked, others.asked), (2, 2))

    def test_confirmed_elsewhere(self) -> None:
        """A replica is as fresh as what another one has confirmed, though nobody told it."""
        a, b = self.pair()
        for _ in range(20):
            self.clock.advance(INTERVAL / 2)
            self.assertEqual((a.directory.health(), b.directory.health()), ("ok", "ok"))

    def test_both_new(self) -> None:
        """Newcomers get one number each, though two replicas see them at once."""
        a, b = self.pair()
        joined = people("alice", "bob", "carol", groups=(group("ops", "alice", "bob"),))
        slow = [Deferred[Source](), Deferred[Source]()]
        a.source = b.source = self.source
        waiting = []
        for replica, answer in zip((a, b), slow, strict=True):
            self.source.answer = answer
            waiting.append(started(replica.refresh.now()))
        slow[0].callback(joined)
        slow[1].callback(replace(joined, users=(*joined.users, user("dora"))))
        for outcome in waiting:
            self.assertEqual(self.successResultOf(outcome), Outcome.PUBLISHED)
        a.refresh._told(_PUBLISHED)
        self.assertEqual(a.numbers, b.numbers)
        self.assertEqual(a.numbers, {"alice": 200_000, "bob": 200_001, "carol": 200_002, "dora": 200_003})

    def test_different_settings(self) -> None:
        """Replicas that differ in settings do not publish in turns for ever; both show the published change numbers."""
        a = self.started("a")
        b = self.started("b", layout=replace(a.layout, default_shell="/bin/zsh"))
        version = b.publication.edition.version
        for _ in range(5):
            a.refresh._told(_PUBLISHED)
            b.refresh._told(_PUBLISHED)
            self.clock.advance(1)
        self.assertEqual((a.publication.edition.version, b.publication.edition.version), (version, version))
        self.assertEqual(a.stamps, b.stamps)

    def test_crash_before_publication(self) -> None:
        """Who dies between giving numbers and publishing has given them: they are the same later, and nobody else's."""
        a = self.started()
        self.source.answer = people("alice", "bob", "carol", groups=(group("ops", "alice", "bob"),))
        publish = self.store.publish_directory

        async def dies(*arguments: Any) -> None:
            raise StorageUnavailable("unreachable")

        self.store.publish_directory = dies  # type: ignore[method-assign, assignment]
        self.assertEqual(self.refreshed(a), Outcome.FAILED)
        self.assertEqual(a.names, ["alice", "bob"])
        self.stop(a)
        self.store.publish_directory = publish  # type: ignore[method-assign]
        # carol left meanwhile, dora came
        self.source.answer = people("alice", "bob", "dora", groups=(group("ops", "alice", "bob"),))
        b = self.started("b")
        self.assertEqual(b.numbers, {"alice": 200_000, "bob": 200_001, "dora": 200_003})
        self.source.answer = people("alice", "bob", "dora", "carol", groups=(group("ops", "alice", "bob"),))
        self.refreshed(b)
        self.assertEqual(b.numbers["carol"], 200_002)

    def test_export(self) -> None:
        """Each replica's file says what the database says."""
        a, b = self.pair()
        self.assertEqual(json.loads(a.path.read_text())["uids"], {"id-alice": 200_000, "id-bob": 200_001})
        self.assertEqual(a.path.read_bytes(), b.path.read_bytes())
        self.assertEqual(a.path.stat().st_mode & 0o777, 0o600)
