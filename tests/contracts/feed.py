"""What every store must do for those who follow its audit chain (identree.storage.interface.Feed)."""

from __future__ import annotations

from abc import abstractmethod
from datetime import UTC, datetime, timedelta
from typing import Any

from identree.core.audit import Sealed
from identree.core.events import Event, UserSignedOut
from identree.core.requests import current
from identree.storage.adoption import GONE
from identree.storage.interface import Extent
from identree.storage.parking import MOST_PARKED
from identree.storage.store import SqlStore

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def signed_out(username: str = "alice") -> Event:
    return UserSignedOut(at=NOW, username=username)


class FeedContract:
    """To be mixed into a test case that opens a store."""

    store: SqlStore
    log: Any
    assertEqual: Any
    assertNotIn: Any
    assertIn: Any

    @abstractmethod
    async def open(self, **options: Any) -> SqlStore: ...

    async def records(self, count: int) -> list[Sealed]:
        for number in range(count):
            await self.store.record([signed_out(f"user{number}")])
        return list(self.log.records[-count:])

    async def test_recorded_alone(self) -> None:
        """Events that come with no other change are recorded in their order."""
        await self.store.record([signed_out("a"), signed_out("b")])
        self.assertEqual([b'"username":"a"' in r.plain for r in self.log.records], [True, False])

    async def test_request_id(self) -> None:
        """The record says which request it came from, at its end; without one it says nothing."""
        token = current.set("0011223344556677")
        try:
            asked = self.store.record([signed_out()])
            await asked
        finally:
            current.reset(token)
        await self.store.record([signed_out()])
        first, second = self.log.records
        self.assertEqual(first.plain.rpartition(b",")[2], b'"request_id":"0011223344556677"}')
        self.assertNotIn(b"request_id", second.plain)

    async def test_follows(self) -> None:
        """A follower gets what it has not acknowledged, as it was sealed."""
        records = await self.records(3)
        feed = self.store.outbox
        await feed.acknowledge("syslog", records[0].seq)
        await feed.acknowledge("syslog", -1)
        self.assertEqual(await feed.position("syslog"), records[0].seq)
        self.assertEqual(await feed.after(records[0].seq, 10), records[1:])
        self.assertEqual(await feed.after(-1, 2), records[:2])
        self.assertEqual((feed.newest, (await feed.head()).hash), (records[2].seq, records[2].hash))

    async def test_begins_at_the_head(self) -> None:
        """A sink that begins has nothing to do with what was before, and begins once."""
        records = await self.records(2)
        feed = self.store.outbox
        await feed.begin("notifications")
        self.assertEqual(await feed.position("notifications"), records[-1].seq)
        later = await self.records(1)
        await feed.begin("notifications")
        self.assertEqual(await feed.after(await feed.position("notifications"), 10), later)

    async def test_begins_in_an_empty_chain(self) -> None:
        """Before the first record everything is still to come."""
        feed = self.store.outbox
        await feed.begin("notifications")
        self.assertEqual(await feed.position("notifications"), -1)

    async def test_chains(self) -> None:
        """What there is of every chain, and any stretch of it."""
        records = await self.records(3)
        mine = self.store.instance
        self.assertEqual(await self.store.chains(), [Extent(instance=mine, first=0, last=2)])
        self.assertEqual(await self.store.chain_records(mine, 0, 1), records[1:2])
        self.assertEqual(await self.store.chain_records("nobody", -1), [])

    async def test_living_are_left_alone(self) -> None:
        """Nobody takes over the chain of a process that says that it runs."""
        other = await self.open(instance="1123456789abcdef")
        await other.record([signed_out()])
        self.assertEqual(await other.adopt(NOW), [])
        self.assertEqual(await self.store.adopt(NOW + GONE), [])

    async def test_takes_over(self) -> None:
        """What a dead process has left is followed to its end, by one of the living, until nothing is left of it."""
        dead = await self.open(instance="1123456789abcdef")
        await dead.adopt(NOW)
        await dead.record([signed_out("a"), signed_out("b")])
        records = await dead.chain_records("1123456789abcdef", -1)
        later = NOW + GONE + timedelta(seconds=1)
        self.assertEqual(await self.store.adopt(later), ["1123456789abcdef"])
        other = await self.open(instance="2123456789abcdef")
        self.assertEqual(await other.adopt(later), [])
        self.assertEqual(await self.store.adopt(later), ["1123456789abcdef"])
        feed = await self.store.orphan("1123456789abcdef")
        self.assertEqual((feed.newest, await feed.after(-1, 10)), (1, records))
        await feed.acknowledge("loki", 1)
        self.assertEqual((await feed.position("loki"), await self.store.outbox.position("loki")), (1, -1))
        await self.store.disown("1123456789abcdef")
        self.assertEqual(await self.store.adopt(later), [])

    async def test_comes_back(self) -> None:
        """Who was thought dead and runs again has his chain back; who has died since is taken over."""
        dead = await self.open(instance="1123456789abcdef")
        await dead.adopt(NOW)
        await dead.record([signed_out()])
        later = NOW + GONE + timedelta(seconds=1)
        await self.store.adopt(later)
        await dead.adopt(later)
        self.assertEqual(await self.store.adopt(later), [])
        other = await self.open(instance="2123456789abcdef")
        self.assertEqual(await other.adopt(later + GONE + timedelta(seconds=1)), ["1123456789abcdef"])

    async def test_parks(self) -> None:
        """What is set aside can be listed, offered again and taken back; a repetition changes only the reason."""
        records = await self.records(3)
        feed = self.store.outbox
        await feed.park("loki", records[:2], "too <old>", NOW)
        await feed.park("loki", records[:1], "x" * 1000, NOW)
        await feed.park("splunk_hec", records[2:], "no", NOW)
        self.assertEqual(await feed.parked("loki", 10), records[:2])
        first, second, third = await self.store.parked_records(("", "", -1))
        self.assertEqual(
            (first.sink, first.record, first.reason, first.parked_at), ("loki", records[0], "x" * 500, NOW)
        )
        self.assertEqual((second.reason, third.sink, third.record), ("too <old>", "splunk_hec", records[2]))
        self.assertEqual(await self.store.parked_records((self.store.instance, "loki", records[1].seq)), [third])
        await feed.unpark("loki", [records[0].seq])
        self.assertEqual(await feed.parked("loki", 10), records[1:2])

    async def test_parking_ends(self) -> None:
        """What is set aside is forgotten with age, and beyond a number."""
        [record] = await self.records(1)
        await self.store.outbox.park("loki", [record], "no", NOW)
        await self.store.delete_old(NOW + timedelta(days=31))
        self.assertEqual(await self.store.parked_records(("", "", -1)), [])
        many = [
            Sealed(instance="i", seq=seq, plain=b"{}", canonical=b"{}", hash="") for seq in range(1, MOST_PARKED + 3)
        ]
        for start in range(0, len(many), 1000):
            await self.store.outbox.park("loki", many[start : start + 1000], "no", NOW)
        [first] = await self.store.parked_records(("", "", -1), 1)
        self.assertEqual(first.record.seq, 3)
