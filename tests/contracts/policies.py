"""What every store must do with sets of approval policies (identree.storage.interface)."""

from __future__ import annotations

import json
from abc import abstractmethod
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from identree.core.challenge import HistoryEntry, Live
from identree.core.events import ConfigChanged
from identree.storage import policies
from identree.storage.interface import Conflict, PolicyVersion
from identree.storage.store import SqlStore

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


class PolicyContract:
    """To be mixed into a test case that opens a store."""

    store: SqlStore
    log: Any
    assertEqual: Any
    assertIsNone: Any
    patch: Any

    @abstractmethod
    async def open(self, **options: Any) -> SqlStore: ...

    async def save(self, document: str, seen: int, *, outside: bool = False, store: SqlStore | None = None) -> Any:
        return await (store or self.store).save_policies(
            document,
            seen=seen,
            author="carol",
            note=f"note of {document}",
            now=NOW + timedelta(minutes=seen),
            events=[ConfigChanged(at=NOW, username="carol", actor="policy_added", reason=document)],
            history=[HistoryEntry(at=NOW, username="carol", action="config_changed", reason=document)],
            outside=outside,
        )

    async def test_policies_of_a_new_database(self) -> None:
        """There are none, in no version."""
        self.assertIsNone(await self.store.policies())
        self.assertIsNone(await self.store.policies(1))
        self.assertEqual(await self.store.policy_versions(), [])

    async def test_policies_saved(self) -> None:
        """The newest is in force, the older ones stay; event and history come with it, and who follows is woken."""
        heard: list[Live] = []
        self.store.subscribe(heard.append)
        first = await self.save("a", 0)
        second = await self.save("b", 1)
        wanted = PolicyVersion(version=2, document="b", author="carol", at=NOW + timedelta(minutes=1), note="note of b")
        self.assertEqual(second, wanted)
        self.assertEqual(await self.store.policies(), wanted)
        self.assertEqual(await self.store.policies(1), first)
        self.assertEqual(await self.store.policy_versions(), [second, first])
        self.assertEqual(await self.store.policy_versions(before=2), [first])
        self.assertEqual(await self.store.policy_versions(limit=1), [second])
        self.assertEqual([live.event for live in heard], ["policies_changed"] * 2)
        told = [json.loads(record.plain) for record in self.log.records]
        self.assertEqual(
            [(one["event"], one["reason"]) for one in told], [("config_changed", "a"), ("config_changed", "b")]
        )
        self.assertEqual([entry.reason for entry in await self.store.history("carol")], ["b", "a"])

    async def test_policies_conflict(self) -> None:
        """Whoever missed a version changes nothing."""
        await self.save("a", 0)
        await self.save("b", 1)
        for seen in (0, 1, 3):
            try:
                await self.save("c", seen)
            except Conflict:
                continue
            raise AssertionError(f"{seen} was not refused")
        newest = await self.store.policies()
        assert newest is not None
        self.assertEqual((newest.version, newest.document), (2, "b"))
        self.assertEqual(len(self.log.records), 2)

    async def test_policies_race(self) -> None:
        """Of many who follow the same version one wins."""

        async def attempt(number: int) -> int:
            try:
                await self.save(f"p{number}", 0)
            except Conflict:
                return 0
            return 1

        won = await gatherResults([Deferred.fromCoroutine(attempt(number)) for number in range(8)])
        self.assertEqual(sum(won), 1)
        self.assertEqual(len(await self.store.policy_versions()), 1)

    async def test_policies_of_another_program(self) -> None:
        """Its event waits for a server, which puts it into its chain."""
        await self.save("a", 0, outside=True)
        self.assertEqual(self.log.records, [])
        self.assertEqual(await self.store.take_outside_events(), 1)
        told = json.loads(self.log.records[0].plain)
        self.assertEqual((told["event"], told["actor"], told["reason"]), ("config_changed", "policy_added", "a"))

    async def test_old_policies(self) -> None:
        """The oldest of too many versions go."""
        self.patch(policies, "MOST_POLICY_VERSIONS", 2)
        for number in range(4):
            await self.save(f"p{number}", number)
        self.assertEqual([one.version for one in await self.store.policy_versions()], [4, 3])
