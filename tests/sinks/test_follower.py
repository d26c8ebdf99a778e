"""The follower, between a feed in memory and a receiver that does what the test says."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from identree.core.audit import Head, Sealed
from identree.core.errors import StorageUnavailable
from identree.sinks.follower import (
    ACKNOWLEDGE_SECONDS,
    FAREWELL_SECONDS,
    FIRST_RETRY_SECONDS,
    LONGEST_PATIENCE_SECONDS,
    LONGEST_RETRY_SECONDS,
    Follower,
    Lag,
    Rejected,
    Unavailable,
)
from tests.fakes import memory_store
from tests.sinks.records import sealed

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


class MemoryFeed:
    """A feed without a database."""

    def __init__(self) -> None:
        self.records: list[Sealed] = []
        self.cursors: dict[str, int] = {}
        self.saves: list[int] = []
        self.aside: list[Sealed] = []
        self.reasons: list[str] = []
        self.cut = -1
        self.broken = False
        self.longest_read = 0
        # reads wait for it
        self.slow: Deferred[None] | None = None
        self._waiting: list[tuple[int, Deferred[None]]] = []

    @property
    def newest(self) -> int:
        return self.records[-1].seq if self.records else -1

    def add(self, count: int = 1) -> None:
        self.records.extend(sealed(count, head=Head(len(self.records), self.records[-1].hash if self.records else "")))
        waiting, self._waiting = self._waiting, []
        for seq, waiter in waiting:
            if seq <= self.newest:
                waiter.callback(None)
            else:
                self._waiting.append((seq, waiter))

    def _check(self) -> None:
        if self.broken:
            raise StorageUnavailable("locked", "by the test")

    async def head(self) -> Head:
        return Head(self.newest + 1, "")

    async def position(self, sink: str) -> int:
        self._check()
        return self.cursors.get(sink, -1)

    async def reached(self, seq: int) -> None:
        if self.newest < seq:
            waiter: Deferred[None] = Deferred()
            self._waiting.append((seq, waiter))
            try:
                await waiter
            except CancelledError:
                self._waiting.remove((seq, waiter))
                raise

    async def after(self, seq: int, limit: int) -> list[Sealed]:
        self._check()
        if self.slow is not None:
            await self.slow
        found = [record for record in self.records if record.seq > max(seq, self.cut)][:limit]
        self.longest_read = max(self.longest_read, len(found))
        return found

    async def acknowledge(self, sink: str, seq: int) -> None:
        self._check()
        self.cursors[sink] = max(seq, self.cursors.get(sink, -1))
        self.saves.append(seq)

    async def park(self, sink: str, records: Sequence[Sealed], reason: str, now: datetime) -> None:
        self._check()
        self.aside.extend(records)
        self.reasons.append(reason)

    async def parked(self, sink: str, limit: int) -> list[Sealed]:
        return self.aside[:limit]

    async def unpark(self, sink: str, seqs: Sequence[int]) -> None:
        self.aside = [record for record in self.aside if record.seq not in seqs]


class Receiver:
    """A shipper that notes what it got. ``answer`` is called with each batch and may raise or return a Deferred."""

    name = "test"

    def __init__(self, batch: int = 4, linger: float = 0.0, settle: float = 0.0) -> None:
        self.batch, self.linger_seconds, self.settle_seconds = batch, linger, settle
        self.batches: list[list[int]] = []
        self.answer: Any = lambda records: None
        self.closed = False

    def lost(self) -> None:
        raise AssertionError("nobody follows")

    async def ship(self, records: Sequence[Sealed]) -> None:
        assert not self.closed
        result = self.answer(records)
        if result is not None:
            await result
        self.batches.append([record.seq for record in records])

    async def close(self) -> None:
        self.closed = True

    @property
    def got(self) -> list[int]:
        return [seq for batch in self.batches for seq in batch]


class Counts:
    def __init__(self) -> None:
        self.numbers = {"emitted": 0, "failed": 0, "parked": 0}

    def emitted(self, count: int) -> None:
        self.numbers["emitted"] += count

    def failed(self) -> None:
        self.numbers["failed"] += 1

    def parked(self, count: int) -> None:
        self.numbers["parked"] += count


class FollowerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.feed, self.counts = Clock(), MemoryFeed(), Counts()
        self.receiver = Receiver()

    def follow(self, **options: Any) -> Follower:
        follower = Follower(
            self.feed,
            self.receiver,
            self.counts,
            self.clock,
            now=lambda: START + timedelta(seconds=self.clock.seconds()),
            monotonic=self.clock.seconds,
            **options,
        )
        follower.startService()
        self.addCleanup(lambda: follower.stopService() if follower.running else None)
        return follower

    def unavailable(self, records: Sequence[Sealed]) -> None:
        raise Unavailable("away")

    # -- the usual course ---------------------------------------------------------------------------------------------
    def test_in_order(self) -> None:
        """Everything arrives in order, in batches, what is there first and then what comes."""
        self.feed.add(6)
        self.follow()
        self.feed.add(1)
        self.assertEqual(self.receiver.batches, [[0, 1, 2, 3], [4, 5], [6]])
        self.assertEqual(self.counts.numbers, {"emitted": 7, "failed": 0, "parked": 0})

    def test_small_memory(self) -> None:
        """No more records are taken at once than the bound allows, whatever the receiver would take."""
        self.feed.add(9)
        self.follow(batch=2)
        self.assertEqual((self.feed.longest_read, self.receiver.got), (2, list(range(9))))

    def test_from_the_cursor(self) -> None:
        """It begins behind what was acknowledged."""
        self.feed.add(4)
        self.feed.cursors["test"] = 2
        self.follow()
        self.assertEqual(self.receiver.got, [3])

    def test_acknowledges(self) -> None:
        """The cursor moves at once, then at most once a second, and at the end."""
        follower = self.follow()
        for _ in range(3):
            self.feed.add()
        self.assertEqual(self.feed.saves, [0])
        self.clock.advance(ACKNOWLEDGE_SECONDS)
        self.assertEqual(self.feed.saves, [0, 2])
        self.feed.add()
        self.successResultOf(follower.stopService())
        self.assertEqual((self.feed.saves, self.receiver.closed), ([0, 2, 3], True))

    def test_lingers(self) -> None:
        """A receiver that prefers full batches gets one when it is full, or after its time."""
        self.receiver.linger_seconds = 5.0
        self.follow()
        self.feed.add(3)
        self.assertEqual(self.receiver.batches, [])
        self.feed.add(2)
        self.assertEqual(self.receiver.batches, [[0, 1, 2, 3]])
        self.clock.advance(5.0)
        self.assertEqual(self.receiver.batches, [[0, 1, 2, 3], [4]])

    def test_cut_off(self) -> None:
        """What retention has removed is not waited for."""
        self.feed.add(3)
        self.feed.cut = 2
        self.follow()
        self.feed.add()
        self.assertEqual(self.receiver.got, [3])

    def test_cut_off_while_new_ones_come(self) -> None:
        """What is sealed while it sees that the rest is cut off is not skipped with it."""
        self.feed.add(3)
        self.feed.cut = 2
        self.feed.slow = Deferred()
        self.follow()
        slow, self.feed.slow = self.feed.slow, None
        head = self.feed.head

        async def head_a_moment_later() -> Head:
            self.feed.add()
            return await head()

        self.feed.head = head_a_moment_later  # type: ignore[method-assign]
        slow.callback(None)
        self.feed.add()
        self.assertEqual(self.receiver.got, list(range(3, self.feed.newest + 1)))

    def test_set_back(self) -> None:
        """A database that lost its latest commits gives their numbers again, and what bears them now is shipped."""
        follower = self.follow()
        self.feed.add(6)
        del self.feed.records[3:]
        follower.set_back(2)
        self.feed.add(2)
        self.assertEqual(self.receiver.got, [0, 1, 2, 3, 4, 5, 3, 4])

    def test_set_back_beyond(self) -> None:
        """Also when the chain has passed the old place meanwhile, and the receiver was away."""
        follower = self.follow()
        self.feed.add(4)
        self.receiver.answer = self.unavailable
        del self.feed.records[2:]
        self.feed.add(4)
        follower.set_back(1)
        self.receiver.answer = lambda records: None
        self.clock.advance(LONGEST_RETRY_SECONDS)
        self.assertEqual(self.receiver.got, [0, 1, 2, 3, 2, 3, 4, 5])

    def test_set_back_while_reading(self) -> None:
        """What was read before counts no more."""
        follower = self.follow()
        self.feed.add(1)
        self.feed.slow = Deferred()
        self.feed.add(3)
        slow, self.feed.slow = self.feed.slow, None
        after = self.feed.after
        stale = list(self.feed.records[1:])

        async def read(seq: int, limit: int) -> list[Sealed]:
            self.feed.after = after  # type: ignore[method-assign]
            del self.feed.records[2:]
            follower.set_back(1)
            return stale

        self.feed.after = read  # type: ignore[method-assign]
        slow.errback(StorageUnavailable("unreachable", "failed over"))
        self.clock.advance(FIRST_RETRY_SECONDS)
        self.assertEqual(self.receiver.got, [0, 1])

    def test_cursor_ahead(self) -> None:
        """A cursor that was saved before the database lost commits does not hold up what comes."""
        self.feed.add(2)
        self.feed.cursors["test"] = 5
        self.follow()
        self.feed.add()
        self.assertEqual(self.receiver.got, [2])

    # -- trouble ------------------------------------------------------------------------------------------------------
    def test_receiver_away(self) -> None:
        """The same batch is tried again, ever more rarely; nothing is lost and the cursor stays."""
        self.receiver.answer = self.unavailable
        self.feed.add(2)
        self.follow()
        for delay in (0.5, 1.0, 2.0, 4.0):
            self.clock.advance(delay - 0.01)
            failed = self.counts.numbers["failed"]
            self.clock.advance(0.01)
            self.assertEqual(self.counts.numbers["failed"], failed + 1)
        self.assertEqual(self.feed.cursors, {})
        self.receiver.answer = lambda records: None
        self.clock.advance(8.0)
        self.assertEqual((self.receiver.got, self.feed.cursors), ([0, 1], {"test": 1}))

    def test_patience_ends(self) -> None:
        """However long a receiver is away, it is asked again within half a minute."""
        self.receiver.answer = self.unavailable
        self.feed.add()
        self.follow()
        for _ in range(20):
            self.clock.advance(LONGEST_RETRY_SECONDS)
        self.receiver.answer = lambda records: None
        self.clock.advance(LONGEST_RETRY_SECONDS)
        self.assertEqual(self.receiver.got, [0])

    def test_receiver_asks_for_patience(self) -> None:
        """Retry-After is honoured, within reason."""
        for asked, granted in ((20.0, 20.0), (1e9, LONGEST_PATIENCE_SECONDS)):
            self.setUp()
            failures = iter([Unavailable("busy", asked)])

            def answer(records: object, failures: Any = failures) -> None:
                for failure in failures:
                    raise failure

            self.receiver.answer = answer
            self.feed.add()
            self.follow()
            self.clock.advance(granted - 0.01)
            self.assertEqual(self.receiver.got, [])
            self.clock.advance(0.01)
            self.assertEqual(self.receiver.got, [0])

    def test_said_once(self) -> None:
        """Going down and coming back have a line each, not every attempt."""
        lines: list[tuple[str, object]] = []

        def note(event: Any) -> None:
            lines.append((event["message"], event["attributes"].get("err") or event["attributes"].get("waiting")))

        self.receiver.answer = self.unavailable
        self.feed.add(2)
        self.follow(log=Logger("test", observer=note))
        self.clock.pump([FIRST_RETRY_SECONDS, 1.0, 2.0])
        self.receiver.answer = lambda records: None
        self.clock.advance(LONGEST_RETRY_SECONDS)
        self.assertEqual(lines, [("AUDIT sink error", "away"), ("AUDIT sink works again", 0)])

    def test_database_away(self) -> None:
        """A database that cannot be read is waited for."""
        self.feed.add(2)
        self.feed.broken = True
        self.follow()
        self.feed.broken = False
        self.clock.advance(FIRST_RETRY_SECONDS)
        self.assertEqual(self.receiver.got, [0, 1])

    def test_bug(self) -> None:
        """A mistake of ours does not end the stream."""
        failures = iter([ZeroDivisionError()])

        def answer(records: object) -> None:
            for failure in failures:
                raise failure

        self.receiver.answer = answer
        self.feed.add(1)
        self.follow()
        self.clock.advance(FIRST_RETRY_SECONDS)
        self.assertEqual(self.receiver.got, [0])

    # -- what cannot succeed ------------------------------------------------------------------------------------------
    def refuse(self, *bad: int) -> None:
        def answer(records: Sequence[Sealed]) -> None:
            if any(record.seq in bad for record in records):
                raise Rejected("400 too strange")

        self.receiver.answer = answer

    def test_set_aside(self) -> None:
        """One record that the receiver will not take is set aside; all others arrive, in order."""
        self.refuse(5)
        self.feed.add(12)
        self.follow(batch=8)
        self.receiver.batch = 8
        self.assertEqual(self.receiver.got, [seq for seq in range(12) if seq != 5])
        self.assertEqual(([r.seq for r in self.feed.aside], self.feed.reasons), ([5], ["400 too strange"]))
        self.assertEqual(self.counts.numbers["parked"], 1)
        self.assertEqual(self.feed.cursors["test"], 11 if len(self.feed.saves) > 1 else self.feed.saves[0])

    def test_offered_again(self) -> None:
        """After a restart the receiver is offered once more what was set aside; what it takes now is forgotten."""
        self.feed.add(3)
        self.feed.aside, self.feed.cursors["test"] = self.feed.records[:2], 2
        self.refuse(1)
        self.follow()
        self.assertEqual((self.receiver.got, [r.seq for r in self.feed.aside]), ([0], [1]))
        self.feed.add()
        self.assertEqual(self.receiver.got, [0, 3])

    def test_offered_again_later(self) -> None:
        """Also when the receiver is away at that moment."""
        self.feed.add(1)
        self.feed.aside, self.feed.cursors["test"] = list(self.feed.records), 0
        self.receiver.answer = self.unavailable
        self.follow()
        self.receiver.answer = lambda records: None
        self.clock.advance(FIRST_RETRY_SECONDS)
        self.assertEqual((self.receiver.got, self.feed.aside), ([0], []))

    # -- connections that take records with them ----------------------------------------------------------------------
    def settling(self) -> Follower:
        self.receiver.settle_seconds = 10.0
        return self.follow()

    def test_not_settled(self) -> None:
        """What may still be lost with the connection is not acknowledged."""
        self.settling()
        self.feed.add(2)
        self.clock.advance(9.9)
        self.assertEqual(self.feed.cursors, {})
        self.clock.advance(0.1)
        self.assertEqual(self.feed.cursors, {"test": 1})

    def test_connection_lost(self) -> None:
        """What was shipped over a lost connection, and is not settled, is shipped again; the rest is not."""
        self.settling()
        self.feed.add(2)
        self.clock.advance(6.0)
        self.feed.add(2)
        self.clock.advance(6.0)
        self.receiver.lost()
        self.assertEqual(self.receiver.got, [0, 1, 2, 3, 2, 3])

    def test_connection_lost_while_shipping(self) -> None:
        """Also what was on its way at that moment."""
        self.settling()
        self.feed.add(1)
        under_way: Deferred[None] = Deferred()
        self.receiver.answer = lambda records: under_way
        self.feed.add(1)
        self.receiver.lost()
        self.receiver.answer = lambda records: None
        under_way.errback(Unavailable("lost"))
        self.clock.advance(FIRST_RETRY_SECONDS)
        self.assertEqual(self.receiver.got, [0, 0, 1])

    def test_connection_lost_while_reading(self) -> None:
        """What is read from the database at that moment does not overtake what may be lost."""
        self.settling()
        self.feed.add(2)
        reading: Deferred[None] = Deferred()
        self.feed.slow = reading
        self.feed.add(2)
        self.receiver.lost()
        self.feed.slow = None
        reading.callback(None)
        self.assertEqual(self.receiver.got, [0, 1, 0, 1, 2, 3])

    def test_lost_again_after_all_settled(self) -> None:
        """A connection over which everything has settled takes nothing with it."""
        self.settling()
        self.feed.add(1)
        self.clock.advance(10.0)
        self.receiver.lost()
        self.assertEqual(self.receiver.got, [0])

    # -- the end ------------------------------------------------------------------------------------------------------
    def test_farewell(self) -> None:
        """Stopping ships what is left, without lingering, and acknowledges it."""
        self.receiver.linger_seconds = 5.0
        follower = self.follow()
        self.feed.add(2)
        self.successResultOf(follower.stopService())
        self.assertEqual((self.receiver.got, self.feed.cursors), ([0, 1], {"test": 1}))

    def test_farewell_ends(self) -> None:
        """A receiver that does not answer is not waited for longer than the farewell takes."""
        self.receiver.answer = lambda records: Deferred()
        follower = self.follow()
        self.feed.add(1)
        stopping = follower.stopService()
        self.assertNoResult(stopping)
        self.clock.advance(FAREWELL_SECONDS)
        self.successResultOf(stopping)
        self.assertEqual((self.feed.cursors, self.receiver.closed), ({}, True))

    def test_farewell_while_down(self) -> None:
        """A receiver that is known to be away is not tried again."""
        self.receiver.answer = self.unavailable
        self.feed.add(1)
        follower = self.follow()
        self.successResultOf(follower.stopService())
        self.assertEqual(self.counts.numbers["failed"], 1)

    def test_starts_again(self) -> None:
        """A stopped follower can be started anew and goes on where it was."""
        follower = self.follow()
        self.feed.add(1)
        self.successResultOf(follower.stopService())
        self.receiver.closed = False
        self.feed.add(1)
        follower.startService()
        self.assertEqual(self.receiver.got, [0, 1])

    # -- how far behind -----------------------------------------------------------------------------------------------
    def test_lag(self) -> None:
        """Number and age of what waits; nothing when nothing does."""
        follower = self.follow()
        self.assertEqual(follower.lag, Lag(0, 0.0, 0.0))
        self.receiver.answer = self.unavailable
        self.feed.add(7)
        self.clock.advance(0.2)
        written = datetime.fromisoformat("2026-01-02T03:04:05+00:00")
        age = (START - written).total_seconds() + 0.2
        self.assertEqual((follower.lag.records, round(follower.lag.seconds, 3)), (7, round(age, 3)))
        self.receiver.answer = lambda records: None
        self.clock.advance(LONGEST_RETRY_SECONDS)
        self.assertEqual((follower.lag.records, follower.lag.seconds), (0, 0.0))
        self.assertGreater(follower.lag.last_success, START.timestamp())


class FollowedStoreTests(SynchronousTestCase):
    """Follower and store together."""

    def test_follows_the_store(self) -> None:
        """Records of a real store arrive as they were sealed, those before the start too, from memory or not."""
        from tests.contracts.feed import signed_out

        clock = Clock()
        store = memory_store(clock, recent_events=2)
        self.addCleanup(lambda: self.successResultOf(store.stop()))
        receiver = Receiver(batch=3)
        arrived: list[Sealed] = []
        receiver.answer = lambda records: arrived.extend(records)
        for _ in range(5):
            self.successResultOf(store.record([signed_out()]))
        follower = Follower(store.outbox, receiver, Counts(), clock, now=lambda: START, monotonic=clock.seconds)
        follower.startService()
        for _ in range(5):
            self.successResultOf(store.record([signed_out()]))
        self.assertEqual(arrived, store.log.records)
        self.successResultOf(follower.stopService())
        self.assertEqual(self.successResultOf(store.outbox.position("test")), 9)
