"""Administrators who are none any more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree.app.demotions import Demotions, administrators
from identree.core.errors import StorageUnavailable
from identree.directory.source import Source, SourceGroup, SourceUser
from tests.app.world import World, now_result


def source(*admins: str, disabled: tuple[str, ...] = ()) -> Source:
    names = ("alice", "bob", "carol")
    users = tuple(SourceUser(id=f"id-{name}", username=name, disabled=name in disabled) for name in names)
    group = SourceGroup(id="g", name="admins", member_ids=tuple(f"id-{name}" for name in admins))
    other = SourceGroup(id="h", name="users", member_ids=tuple(user.id for user in users))
    return Source(users=users, groups=(group, other))


class AdministratorsTests(SynchronousTestCase):
    def test_members(self) -> None:
        """Members of the named groups who may sign in at all."""
        self.assertEqual(administrators(source("alice", "carol"), ("admins",)), {"alice", "carol"})
        self.assertEqual(administrators(source("alice", "carol", disabled=("carol",)), ("admins",)), {"alice"})
        self.assertEqual(administrators(source("alice"), ()), frozenset())


class DemotionsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.directory: Any = SimpleNamespace(served=None)
        self.groups = ("admins",)
        self.demotions = Demotions(
            directory=self.directory,
            store=self.world.store,
            admin_groups=lambda: self.groups,
            now=self.world.now,
            journal=self.world.journal,
        )

    def swap(self, after: Source) -> None:
        self.directory.served = SimpleNamespace(source=after)
        waiting = self.demotions.look()
        if waiting is not None:
            self.successResultOf(waiting)

    def revoked(self) -> set[str]:
        return set(now_result(self.world.store.revocations()).admins)

    def test_left(self) -> None:
        """Who leaves all admin groups is no administrator in an open session either; the first look revokes nobody."""
        self.swap(source("alice", "carol"))
        self.assertEqual(self.revoked(), set())
        self.swap(source("alice"))
        self.assertEqual(self.revoked(), {"carol"})
        self.assertIn(("ADMIN_SESSIONS_REVOKED", {"user": "carol", "reason": "left all admin groups"}), self.world.log)

    def test_disabled_and_removed(self) -> None:
        """So is who is disabled, and who is gone."""
        self.swap(source("alice", "bob", "carol"))
        self.swap(source("alice", "bob", "carol", disabled=("bob",)))
        everybody = source("alice", "carol")
        self.swap(Source(users=everybody.users[:2], groups=everybody.groups))
        self.assertEqual(self.revoked(), {"bob", "carol"})

    def test_groups_changed(self) -> None:
        """When the setting no longer names the group, nobody in it is one."""
        first = source("alice")
        self.swap(first)
        self.groups = ("others",)
        self.swap(first)
        self.assertEqual(self.revoked(), {"alice"})

    def test_database_away(self) -> None:
        """What could not be stored is stored with the next look, also at the same directory."""
        self.swap(source("alice", "carol"))
        works = self.world.store.revoke_admins

        async def fails(*_: object) -> None:
            raise StorageUnavailable("locked")

        self.patch(self.world.store, "revoke_admins", fails)
        self.swap(source("alice"))
        self.assertEqual(self.revoked(), set())
        self.patch(self.world.store, "revoke_admins", works)
        self.successResultOf(Deferred.fromCoroutine(self.demotions.again()))
        self.assertEqual(self.revoked(), {"carol"})
