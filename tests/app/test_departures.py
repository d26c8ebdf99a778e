"""Who left loses what was open."""

from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree.app.departures import Departures
from identree.core import tokens
from identree.core.challenge import GraceSession
from identree.core.errors import StorageUnavailable
from identree.directory.source import Source, SourceUser
from identree.storage.interface import GraceChange
from tests.app.world import World, now_result


class DepartureTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.world.change_rules(grace_period=timedelta(hours=1))
        self.directory: Any = SimpleNamespace(served=None)
        self.departures = Departures(
            directory=self.directory,
            store=self.world.store,
            clock=self.world.clock,
            now=self.world.now,
            monotonic=self.world.clock.seconds,
            journal=self.world.journal,
        )
        for name in ("alice", "bob"):
            for host in ("web01", ""):
                session = tokens.signed_grace(
                    self.world.keys.grace,
                    GraceSession(username=name, hostname=host, expires_at=self.world.now() + timedelta(minutes=30)),
                )
                change = GraceChange(session=session)
                now_result(self.world.store.change_grace(name, host, lambda row, change=change: change))  # type: ignore[misc]

    def serve(self, **people: bool) -> None:
        users = tuple(SourceUser(id=name, username=name, disabled=disabled) for name, disabled in people.items())
        self.directory.served = SimpleNamespace(source=Source(users=users))

    def owners(self) -> list[str]:
        rows = now_result(self.world.store.grace_sessions(None, self.world.now()))
        return sorted({row.username for row in rows})

    def test_disabled(self) -> None:
        """A disabled account loses all its sessions at once, with an event each that says why."""
        self.serve(alice=False, bob=True)
        self.departures.heard(None)  # type: ignore[arg-type]
        self.assertEqual(self.owners(), ["alice"])
        told = [json.loads(record.plain) for record in self.world.store.log.records]
        self.assertEqual(
            [(one["event"], one["username"], one["hostname"], one["reason"]) for one in told],
            [
                ("session_revoked", "bob", "(unknown)", "account disabled"),
                ("session_revoked", "bob", "web01", "account disabled"),
            ],
        )
        self.assertIsNotNone(now_result(self.world.store.revocation_time("bob")))
        self.assertIsNone(now_result(self.world.store.revocation_time("alice")))

    def test_removed(self) -> None:
        """So does one that is gone from the directory."""
        self.serve(alice=False)
        self.assertEqual(now_result(self.departures.look()), 1)
        self.assertEqual(self.owners(), ["alice"])

    def test_nobody(self) -> None:
        """Without a directory, and in bridge mode, where it has no people, nobody loses anything."""
        self.assertEqual(now_result(self.departures.look()), 0)
        self.directory.served = SimpleNamespace(source=Source())
        self.assertEqual(now_result(self.departures.look()), 0)
        self.assertEqual(self.owners(), ["alice", "bob"])

    def test_once(self) -> None:
        """The same directory is looked at once."""
        self.serve(alice=False, bob=False)
        now_result(self.departures.look())
        self.world.store.grace_sessions = None  # type: ignore[method-assign, assignment]
        self.assertEqual(now_result(self.departures.look()), 0)

    def test_not_stored(self) -> None:
        """What could not be stored is made good by the next look."""
        self.serve(alice=False, bob=True)
        revoke = self.world.store.revoke_grace

        async def fails(*arguments: Any) -> list[str]:
            raise StorageUnavailable("locked")

        self.world.store.revoke_grace = fails  # type: ignore[method-assign]
        self.assertEqual(now_result(self.departures.look()), 0)
        self.world.store.revoke_grace = revoke  # type: ignore[method-assign]
        self.assertEqual(now_result(self.departures.look()), 1)
        self.assertEqual(self.owners(), ["alice"])

    def test_meanwhile(self) -> None:
        """A directory that comes while one is looked at is looked at next, not half a minute later."""
        waiting, works = Deferred[None](), self.world.store.grace_sessions

        async def slow(*arguments: Any) -> list[GraceSession]:
            await waiting
            return await works(*arguments)

        self.world.store.grace_sessions = slow  # type: ignore[method-assign]
        self.serve(alice=False, bob=False)
        self.departures.heard(None)  # type: ignore[arg-type]
        self.serve(alice=True, bob=False)
        self.departures.heard(None)  # type: ignore[arg-type]
        waiting.callback(None)
        self.world.store.grace_sessions = works  # type: ignore[method-assign]
        self.assertEqual(self.owners(), ["bob"])

    def test_same_name(self) -> None:
        """Of two people with one name, one who may is enough."""
        users = (
            SourceUser(id="1", username="alice", disabled=True),
            SourceUser(id="2", username="alice"),
            SourceUser(id="3", username="bob"),
        )
        self.directory.served = SimpleNamespace(source=Source(users=users))
        self.assertEqual(now_result(self.departures.look()), 0)
