"""What every store must do with messages to be sent and with push devices (identree.storage.interface)."""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from identree.core import challenge as moves
from identree.core.challenge import Challenge, Live
from identree.core.events import PushDeviceAdded, PushDeviceRemoved
from identree.storage.interface import Caps, Delivery, DeliveryState, Planned, PushDevice
from identree.storage.store import SqlStore

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
LEASE = timedelta(seconds=60)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def message(key: str = "k", **more: Any) -> Planned:
    values: dict[str, Any] = {
        "channel": "ops",
        "event": "challenge_created",
        "code": "ABCDEF-123456",
        "notice": '{"event":"challenge_created"}',
        "due_at": NOW,
        "until": at(120),
    }
    return Planned(key=key, **(values | more))


def device(endpoint: str = "e", username: str = "carol", **more: Any) -> PushDevice:
    values: dict[str, Any] = {"p256dh": "p", "auth": "a", "label": "phone", "events": ("challenge_*",)}
    return PushDevice(id=f"id-{endpoint}", username=username, endpoint=endpoint, created_at=NOW, **(values | more))


class NoticeContract:
    """To be mixed into a test case that opens a store."""

    store: SqlStore
    log: Any
    assertEqual: Any
    assertIsNone: Any
    assertTrue: Any
    assertFalse: Any
    assertIn: Any
    assertNotIn: Any

    @abstractmethod
    async def open(self, **options: Any) -> SqlStore: ...

    async def claim(self, owner: str = "one", seconds: float = 0, limit: int = 10) -> list[Delivery]:
        return await self.store.claim_deliveries(owner, at(seconds), LEASE, limit)

    async def only(self) -> Delivery:
        [found] = await self.store.deliveries()
        return found

    async def challenge(self) -> Challenge:
        wanted = Challenge(
            id="0" * 32,
            user_code="ABCDEF-123456",
            username="alice",
            hostname="web01",
            reason="",
            created_at=NOW,
            expires_at=at(120),
        )
        await self.store.create_challenge(
            "alice", "web01", [wanted.user_code], lambda code, state: moves.opened(wanted), Caps(), NOW
        )
        return wanted

    # -- deliveries ---------------------------------------------------------------------------------------------------
    async def test_no_deliveries(self) -> None:
        """Nothing waits in a new database."""
        self.assertEqual(await self.claim(), [])
        self.assertEqual(await self.store.deliveries(), [])
        self.assertIsNone(await self.store.next_delivery())
        counts = await self.store.delivery_counts()
        self.assertEqual(counts, {DeliveryState.QUEUED: 0, DeliveryState.SENDING: 0})

    async def test_planned_once(self) -> None:
        """The same message is planned once; who sends is woken when there is something new."""
        heard: list[Live] = []
        self.store.subscribe(heard.append)
        wanted = message(target="d", username="alice", hostname="web01", if_pending="", replaces=7)
        self.assertEqual(await self.store.plan_deliveries([wanted, message("other")], NOW), 2)
        self.assertEqual(await self.store.plan_deliveries([replace(wanted, channel="x")], at(1)), 0)
        self.assertEqual([live.event for live in heard], ["deliveries_planned"])
        [other, found] = await self.store.deliveries()
        self.assertEqual(other.planned.key, "other")
        self.assertEqual(found.planned, wanted)
        self.assertEqual((found.state, found.attempts, found.created_at), (DeliveryState.QUEUED, 0, NOW))
        self.assertEqual(await self.store.next_delivery(), NOW)

    async def test_planned_as_skipped(self) -> None:
        """What nobody wants is in the log of deliveries, and never sent."""
        await self.store.plan_deliveries([message(state=DeliveryState.SKIPPED, error="quiet hours")], NOW)
        self.assertEqual(await self.claim(), [])
        found = await self.only()
        self.assertEqual((found.state, found.error, found.finished_at), (DeliveryState.SKIPPED, "quiet hours", NOW))

    async def test_claimed(self) -> None:
        """What is due is in one process's hands, the longest due first; what is not due stays."""
        await self.store.plan_deliveries([message("b", due_at=at(2)), message("a"), message("c", due_at=at(50))], NOW)
        self.assertEqual([one.planned.key for one in await self.claim(seconds=5, limit=1)], ["a"])
        [taken] = await self.claim("two", 5)
        self.assertEqual((taken.planned.key, taken.state, taken.attempts), ("b", DeliveryState.SENDING, 1))
        self.assertEqual(await self.claim("three", 5), [])
        self.assertEqual(await self.store.next_delivery(), at(50))
        counts = await self.store.delivery_counts()
        self.assertEqual(counts, {DeliveryState.QUEUED: 1, DeliveryState.SENDING: 2})

    async def test_claimed_by_many(self) -> None:
        """Many who claim at once never get the same one."""
        await self.store.plan_deliveries([message(f"k{number}") for number in range(40)], NOW)
        claims = await gatherResults([Deferred.fromCoroutine(self.claim(f"p{number}", 1, 9)) for number in range(8)])
        keys = [one.planned.key for claim in claims for one in claim]
        self.assertEqual(len(keys), len(set(keys)))
        rest = await self.claim("last", 1, 100)
        self.assertEqual(len(keys) + len(rest), 40)

    async def test_settled(self) -> None:
        """What was sent is over and known by its reference; only who has it in hand can say so."""
        await self.store.plan_deliveries([message()], NOW)
        [taken] = await self.claim()
        settle = self.store.settle_delivery
        self.assertFalse(await settle(taken.id, "two", DeliveryState.FAILED, at(1)))
        self.assertTrue(await settle(taken.id, "one", DeliveryState.SENT, at(1), reference="r"))
        self.assertFalse(await settle(taken.id, "one", DeliveryState.FAILED, at(2)))
        found = await self.only()
        self.assertEqual((found.state, found.reference, found.finished_at), (DeliveryState.SENT, "r", at(1)))
        self.assertIsNone(await self.store.next_delivery())

    async def test_tried_again(self) -> None:
        """A failed attempt waits for its next time, with what went wrong."""
        await self.store.plan_deliveries([message()], NOW)
        [taken] = await self.claim()
        await self.store.settle_delivery(taken.id, "one", DeliveryState.QUEUED, at(1), error="refused", due_at=at(9))
        self.assertEqual(await self.claim(seconds=8), [])
        [again] = await self.claim("two", 9)
        self.assertEqual((again.attempts, again.error), (2, "refused"))

    async def test_lease(self) -> None:
        """What a dead process had in hand is another one's when the lease is over, and not its own any more."""
        await self.store.plan_deliveries([message()], NOW)
        [taken] = await self.claim("dead")
        self.assertEqual(await self.claim("two", 59), [])
        [again] = await self.claim("two", 60)
        self.assertEqual(again.attempts, 2)
        self.assertFalse(await self.store.settle_delivery(taken.id, "dead", DeliveryState.SENT, at(61)))

    async def test_too_late(self) -> None:
        """What nobody sent in time is skipped, and keeps the reason if it had one."""
        await self.store.plan_deliveries([message("a", until=at(5)), message("b", until=at(20))], NOW)
        for taken in await self.claim(limit=2):
            if taken.planned.key == "b":
                await self.store.settle_delivery(
                    taken.id, "one", DeliveryState.QUEUED, at(1), error="refused", due_at=at(9)
                )
            else:
                await self.store.settle_delivery(taken.id, "one", DeliveryState.QUEUED, at(1), due_at=at(9))
        self.assertEqual(await self.claim(seconds=21), [])
        self.assertEqual(
            [(one.planned.key, one.state, one.error) for one in await self.store.deliveries()],
            [("b", DeliveryState.SKIPPED, "refused"), ("a", DeliveryState.SKIPPED, "too late")],
        )

    async def test_only_while_pending(self) -> None:
        """A message about a request is not sent once the request is decided, or unknown."""
        challenge = await self.challenge()
        await self.store.plan_deliveries(
            [message("a", if_pending=challenge.id), message("b", if_pending="f" * 32, due_at=at(3))], NOW
        )
        [taken] = await self.claim(seconds=1)
        self.assertEqual(taken.planned.key, "a")
        await self.store.settle_delivery(taken.id, "one", DeliveryState.QUEUED, at(1), due_at=at(2))
        await self.store.decide(challenge.id, lambda c, revoked: moves.deny(c, "bob", at(2)))
        self.assertEqual(await self.claim(seconds=5), [])
        self.assertEqual(
            {one.planned.key: one.error for one in await self.store.deliveries()},
            {"a": "no longer waiting", "b": "no longer waiting"},
        )

    async def test_dropped(self) -> None:
        """When a request is decided, what still waits about it goes; what was sent stays, and so do other messages."""
        await self.store.plan_deliveries(
            [
                message("sent"),
                message("waits", due_at=at(60)),
                message("outcome", event="challenge_approved", due_at=at(60)),
                message("other", code="GHJKLM-123456", due_at=at(60)),
            ],
            NOW,
        )
        await self.claim()
        self.assertEqual(await self.store.drop_deliveries("ABCDEF-123456", at(1), "decided"), 1)
        states = {one.planned.key: one.state.value for one in await self.store.deliveries()}
        self.assertEqual(states, {"sent": "sending", "waits": "skipped", "outcome": "queued", "other": "queued"})

    async def test_found(self) -> None:
        """The log of deliveries is read by channel, state and code, in pages."""
        await self.store.plan_deliveries(
            [message("a"), message("b", channel="mail"), message("c", code="GHJKLM-123456")], NOW
        )
        await self.claim(limit=1)

        async def keys(**wanted: Any) -> list[str]:
            return [one.planned.key for one in await self.store.deliveries(**wanted)]

        self.assertEqual(await keys(), ["c", "b", "a"])
        self.assertEqual(await keys(channel="mail"), ["b"])
        self.assertEqual(await keys(state=DeliveryState.SENDING), ["a"])
        self.assertEqual(await keys(code="ABCDEF-123456"), ["b", "a"])
        [newest, *_] = await self.store.deliveries(limit=1)
        self.assertEqual(await keys(before=newest.id), ["b", "a"])

    async def test_old_deliveries(self) -> None:
        """What became of old messages is forgotten; what waits is not."""
        await self.store.plan_deliveries(
            [message("over", state=DeliveryState.SKIPPED), message("waits", until=at(10**9))], NOW
        )
        await self.store.delete_old(NOW + timedelta(days=31))
        self.assertEqual([one.planned.key for one in await self.store.deliveries()], ["waits"])

    # -- push devices -------------------------------------------------------------------------------------------------
    async def add(self, device: PushDevice, limit: int = 20) -> bool:
        event = PushDeviceAdded(at=NOW, username=device.username, actor=device.username)
        return await self.store.add_push_device(device, event, limit)

    async def test_push_device(self) -> None:
        """It comes back as it was, with its event; another one's devices are apart."""
        one, other = device(), device("f", "dave", events=())
        self.assertTrue(await self.add(one))
        self.assertTrue(await self.add(other))
        self.assertEqual(await self.store.push_devices("carol"), [one])
        self.assertEqual(await self.store.push_devices(), [one, other])
        self.assertEqual(await self.store.push_devices(after=one.id), [other])
        self.assertEqual(await self.store.push_device(one.id), one)
        self.assertIsNone(await self.store.push_device("none"))
        await self.store.push_sent(one.id, at(5))
        self.assertEqual(await self.store.push_device(one.id), replace(one, last_sent_at=at(5)))
        self.assertEqual(json.loads(self.log.records[0].plain)["event"], "push_device_added")

    async def test_push_device_again(self) -> None:
        """The same browser takes the place of what it was, also as another person's."""
        await self.add(device())
        again = device(username="dave", p256dh="q", auth="b", label="desk", events=("*",))
        self.assertTrue(await self.add(again, limit=1))
        self.assertEqual(await self.store.push_devices(), [again])

    async def test_push_device_limit(self) -> None:
        """One more than a person may have is refused; the same one again is not."""
        await self.add(device(), limit=1)
        self.assertFalse(await self.add(device("f"), limit=1))
        self.assertTrue(await self.add(device(), limit=1))
        self.assertEqual(len(await self.store.push_devices()), 1)

    async def test_push_device_removed(self) -> None:
        """Only its person removes it, or whoever names nobody; with the event, once."""
        await self.add(device())
        gone = PushDeviceRemoved(at=NOW, username="carol")
        self.assertFalse(await self.store.remove_push_device("id-e", gone, username="dave"))
        self.assertTrue(await self.store.remove_push_device("id-e", gone, username="carol"))
        self.assertFalse(await self.store.remove_push_device("id-e", gone))
        self.assertEqual(len(self.log.records), 2)
