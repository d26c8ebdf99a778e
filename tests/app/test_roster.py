"""Who is who, as the directory says."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from identree.app.roster import MOST_ANSWERS, MOST_APPROVERS, SLICE_SECONDS, STEP, Roster
from identree.directory.source import Source, SourceGroup, SourceUser


def person(name: str, *, disabled: bool = False) -> SourceUser:
    return SourceUser(id=f"id-{name}", username=name, disabled=disabled)


def group(name: str, *members: str) -> SourceGroup:
    return SourceGroup(id=f"g-{name}", name=name, member_ids=tuple(f"id-{member}" for member in members))


class RosterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory: Any = SimpleNamespace(served=None)
        self.admin_groups = ["admins"]
        self.clock = Clock()
        # each look at it takes a moment
        self.seconds = itertools.count(0, 0.002)
        self.roster = Roster(
            self.directory, lambda: self.admin_groups, clock=self.clock, monotonic=lambda: next(self.seconds)
        )

    def serve(self, users: list[SourceUser], groups: list[SourceGroup]) -> None:
        self.directory.served = SimpleNamespace(source=Source(users=tuple(users), groups=tuple(groups)))

    def test_no_directory(self) -> None:
        """Without a directory nothing is known, and nobody is disabled."""
        self.assertIsNone(self.roster.groups_of("alice"))
        self.assertFalse(self.roster.disabled("alice"))
        self.assertEqual(self.roster.approvers(["dba"]), ())

    def test_people(self) -> None:
        """Groups and disabled accounts are as the source has them; strangers are unknown."""
        self.serve([person("alice"), person("bob", disabled=True), person("dave")], [group("dba", "alice", "nobody")])
        self.assertEqual(self.roster.groups_of("alice"), frozenset({"dba"}))
        self.assertEqual(self.roster.groups_of("dave"), frozenset())
        self.assertIsNone(self.roster.groups_of("eve"))
        self.assertEqual([self.roster.disabled(name) for name in ("alice", "bob", "eve")], [False, True, False])

    def test_another_directory(self) -> None:
        """A new source counts at once."""
        self.serve([person("alice")], [])
        self.assertFalse(self.roster.disabled("alice"))
        self.serve([person("alice", disabled=True)], [group("dba", "alice")])
        self.assertTrue(self.roster.disabled("alice"))
        self.assertEqual(self.roster.groups_of("alice"), frozenset({"dba"}))

    def test_approvers(self) -> None:
        """Administrators and members of the groups asked for, by name, without disabled ones and others."""
        self.serve(
            [person("zoe"), person("carol"), person("bob", disabled=True), person("dave")],
            [group("admins", "carol", "bob"), group("dba", "zoe", "carol"), group("staff", "dave")],
        )
        found = self.roster.approvers(["dba"])
        self.assertEqual(
            [(one.username, one.is_admin, one.groups) for one in found],
            [("carol", True, frozenset({"admins", "dba"})), ("zoe", False, frozenset({"dba"}))],
        )
        self.admin_groups = []
        self.assertEqual([one.is_admin for one in self.roster.approvers(["dba"])], [False, False])

    def test_bounded(self) -> None:
        """Of many approvers an answer has the first ones, whatever the order that they come in."""
        names = [f"p{number:05}" for number in range(MOST_APPROVERS + 1500)]
        shuffled = random.Random(4711).sample(names, len(names))
        people = [person(name, disabled=name == "p00001") for name in shuffled]
        self.serve(people, [group("dba", *shuffled[:2500]), group("dba", *shuffled[2500:]), group("ops", "p00001")])
        self.roster.heard(None)  # type: ignore[arg-type]
        self.clock.advance(0)
        wanted = [name for name in names if name != "p00001"][:MOST_APPROVERS]
        self.assertEqual([one.username for one in self.roster.approvers(["dba", "ops"])], wanted)
        self.assertEqual(self.roster.groups_of("p00001"), frozenset({"dba", "ops"}))

    def test_many_people(self) -> None:
        """Many people are read in turns of the reactor; until then the directory before counts."""
        self.serve([person("alice")], [group("dba", "alice")])
        self.assertEqual(self.roster.groups_of("alice"), frozenset({"dba"}))
        many = [person("alice", disabled=True), *(person(f"p{number}") for number in range(20 * STEP))]
        self.serve(many, [])
        self.roster.heard(None)  # type: ignore[arg-type]
        self.assertEqual((self.roster.disabled("alice"), self.roster.groups_of("alice")), (False, frozenset({"dba"})))
        before = next(self.seconds)
        self.clock.advance(0)
        self.assertGreater(next(self.seconds) - before, 20 * SLICE_SECONDS)
        self.assertEqual((self.roster.disabled("alice"), self.roster.groups_of("alice")), (True, frozenset()))

    def test_overtaken(self) -> None:
        """A directory that comes while the one before is still read takes its place."""
        self.serve([person(f"p{number}") for number in range(20 * STEP)], [])
        self.assertIsNone(self.roster.groups_of("p1"))
        self.serve([person("alice")], [group("dba", "alice")])
        self.assertEqual(self.roster.groups_of("alice"), frozenset({"dba"}))
        self.clock.advance(0)
        self.assertEqual(self.roster.groups_of("alice"), frozenset({"dba"}))
        self.assertIsNone(self.roster.groups_of("p1"))

    def test_many_questions(self) -> None:
        """Answers are kept, a bounded number of them."""
        self.serve([person("alice")], [group("dba", "alice")])
        self.assertIs(self.roster.approvers(["dba"]), self.roster.approvers(["dba"]))
        for number in range(2 * MOST_ANSWERS):
            self.assertEqual(self.roster.approvers([f"g{number}"]), ())
        assert self.roster._index is not None
        self.assertLessEqual(len(self.roster._index.answers), MOST_ANSWERS)

    def test_same_name(self) -> None:
        """Of two people with one name the first counts, as in the directory."""
        first = SourceUser(id="1", username="alice")
        self.serve([first, SourceUser(id="2", username="alice", disabled=True)], [])
        self.assertFalse(self.roster.disabled("alice"))
