"""Who is who, as the directory says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from identree.app.roster import MOST_APPROVERS, Roster
from identree.directory.source import Source, SourceGroup, SourceUser


def person(name: str, *, disabled: bool = False) -> SourceUser:
    return SourceUser(id=f"id-{name}", username=name, disabled=disabled)


def group(name: str, *members: str) -> SourceGroup:
    return SourceGroup(id=f"g-{name}", name=name, member_ids=tuple(f"id-{member}" for member in members))


class RosterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory: Any = SimpleNamespace(served=None)
        self.admin_groups = ["admins"]
        self.roster = Roster(self.directory, lambda: self.admin_groups)

    def serve(self, users: list[SourceUser], groups: list[SourceGroup]) -> None:
        self.directory.served = SimpleNamespace(source=Source(users=tuple(users), groups=tuple(groups)))

    def test_no_directory(self) -> None:
        """Without a directory nothing is known, and nobody is disabled."""
        self.assertIsNone(self.roster.groups_of("alice"))
        self.assertFalse(self.roster.disabled("alice"))
        self.assertEqual(self.roster.approvers(["dba"]), [])

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
        """Of many approvers an answer has the first ones."""
        names = [f"p{number:05}" for number in range(MOST_APPROVERS + 5)]
        self.serve([person(name) for name in names], [group("dba", *names)])
        found = self.roster.approvers(["dba"])
        self.assertEqual([one.username for one in found], names[:MOST_APPROVERS])

    def test_same_name(self) -> None:
        """Of two people with one name the first counts, as in the directory."""
        first = SourceUser(id="1", username="alice")
        self.serve([first, SourceUser(id="2", username="alice", disabled=True)], [])
        self.assertFalse(self.roster.disabled("alice"))
