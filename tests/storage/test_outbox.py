"""The chain over restarts and crashes, a log that fails, sinks and retention."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from identree.core.audit import Sealed
from identree.core.challenge import Step
from identree.core.errors import StorageUnavailable
from identree.storage.interface import Caps
from identree.storage.operations import Retention
from identree.storage.outbox import RETRY_SECONDS, Publisher
from tests.contracts.store import NOW, approving, challenge, opening
from tests.fakes import MemoryLog, MemoryStore, memory_store


class CrashingLog(MemoryLog):
    """A log that can die between writing and telling so."""

    def __init__(self) -> None:
        super().__init__()
        self.dies_after_write = False
        self.silent = False

    def write(self, records: Sequence[Sealed]) -> None:
        super().write(records)
        if self.dies_after_write:
            raise OSError(errno.EIO, "died")

    def last_seq(self, instance: str) -> int | None:
        return None if self.silent else super().last_seq(instance)


class OutboxTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        self.path = directory + "/a.db"
        self.clock = Clock()
        self.log = CrashingLog()
        self.failures: list[Exception] = []
        self.recoveries: list[int] = []
        self.lost: list[tuple[str, int]] = []

    def open(self, **options: Any) -> MemoryStore:
        store = memory_store(
            self.clock,
            **{
                "dsn": self.path,
                "log": self.log,
                "on_log_failure": self.failures.append,
                "on_log_recovery": lambda: self.recoveries.append(1),
                "on_lost": lambda sink, count: self.lost.append((sink, count)),
                **options,
            },
        )
        self.addCleanup(lambda: self.successResultOf(store.stop()))
        return store

    def create(self, store: MemoryStore, **fields: Any) -> str:
        wanted = challenge(**fields)
        doing = store.create_challenge(
            wanted.username, "h", [wanted.user_code], opening(wanted), Caps(per_user=1000), wanted.created_at
        )
        step: Step = self.successResultOf(doing)
        return step.challenge.id

    def crash(self, store: MemoryStore) -> None:
        """Without any farewell."""
        store.connection.close()
        store.driver.connection = None

    def sequence(self) -> list[int]:
        return [record.seq for record in self.log.records]

    # -- crash points -------------------------------------------------------------------------------------------------
    def test_sealed_but_not_logged(self) -> None:
        """What was committed before the log had it is written at the next start, in order."""
        store = self.open()
        self.create(store)
        self.log.broken = OSError(errno.EIO, "gone")
        for _ in range(3):
            self.create(store)
        self.crash(store)
        self.log.broken = None
        store = self.open()
        self.create(store)
        self.assertEqual(self.sequence(), [0, 1, 2, 3, 4])
        hashes = [json.loads(record.plain).get("prev_hash", "") for record in self.log.records]
        self.assertEqual(hashes[1:], [record.hash for record in self.log.records][:-1])

    def test_logged_but_cursor_not_moved(self) -> None:
        """What the log says it holds is not written again."""
        store = self.open()
        for _ in range(3):
            self.create(store)
        self.crash(store)
        self.open()
        self.assertEqual(self.sequence(), [0, 1, 2])

    def test_silent_log(self) -> None:
        """A log that cannot say where it stands gets what the saved cursor says, at least once."""
        self.log.silent = True
        store = self.open()
        for _ in range(3):
            self.create(store)
        self.crash(store)
        self.open()
        # the cursor travels with the batch after the one it describes
        self.assertEqual(self.sequence(), [0, 1, 2, 2])

    def test_stop_saves_the_cursor(self) -> None:
        """After an orderly stop a silent log is not given anything twice."""
        self.log.silent = True
        store = self.open()
        self.create(store)
        self.successResultOf(store.stop())
        self.open()
        self.assertEqual(self.sequence(), [0])

    def test_database_put_back(self) -> None:
        """A log that is ahead of a database that was put back still gets every new record."""
        self.create(self.open(dsn=":memory:"))
        put_back = self.open(dsn=":memory:")
        self.create(put_back)
        self.assertEqual(self.sequence(), [0, 0])

    # -- a log that fails ---------------------------------------------------------------------------------------------
    def test_failing_log(self) -> None:
        """Operations go on while the log fails; it is tried again and gets everything in order."""
        store = self.open()
        self.log.broken = OSError(errno.EPIPE, "broken")
        self.create(store)
        self.create(store)
        self.assertEqual(len(self.failures), 1)
        self.clock.advance(RETRY_SECONDS)
        self.assertEqual(len(self.failures), 2)
        self.log.broken = None
        self.clock.advance(2 * RETRY_SECONDS)
        self.create(store)
        self.assertEqual(self.sequence(), [0, 1, 2])
        self.assertEqual(self.recoveries, [1])

    def test_full_disk(self) -> None:
        """While the log's disk is full nothing is granted that cannot be recorded; reading goes on."""
        store = self.open()
        waiting = self.create(store)
        self.log.broken = OSError(errno.ENOSPC, "full")
        self.create(store)
        e = self.failureResultOf(Deferred.fromCoroutine(store.decide(waiting, approving("bob"))), StorageUnavailable)
        self.assertEqual(e.value.reason, "full")
        stored = self.successResultOf(store.challenge(waiting))
        assert stored is not None
        self.assertEqual(stored.approved_by, "")
        self.log.broken = None
        self.clock.advance(RETRY_SECONDS)
        self.successResultOf(store.decide(waiting, approving("bob")))
        self.assertEqual(self.sequence(), [0, 1, 2])

    def test_log_down_at_start(self) -> None:
        """A log that fails at the start does not keep the server from starting."""
        store = self.open()
        self.create(store)
        self.crash(store)
        records, self.log.records = self.log.records, []
        self.log.broken = OSError(errno.EIO, "gone")
        self.open()
        self.log.broken = None
        self.clock.advance(RETRY_SECONDS)
        self.assertEqual(self.log.records, records)

    # -- sinks and retention ------------------------------------------------------------------------------------------
    def test_cursors_are_separate(self) -> None:
        """One sink's progress is not another's, and never goes back."""
        store = self.open(sinks=["syslog", "loki"])
        for _ in range(3):
            self.create(store)
        self.successResultOf(store.outbox.acknowledge("syslog", 1))
        self.successResultOf(store.outbox.acknowledge("syslog", 0))
        self.assertEqual([r.seq for r in self.following(store, "syslog")], [2])
        self.assertEqual([r.seq for r in self.following(store, "loki")], [0, 1, 2])

    def test_same_bytes(self) -> None:
        """What is read back is what was sealed."""
        store = self.open()
        self.create(store, reason="<a> & \u2028 ü\U0001f600")
        self.assertEqual(self.following(store, "syslog"), self.log.records)

    def following(self, store: MemoryStore, sink: str) -> list[Sealed]:
        """What comes next for a sink."""
        position = self.successResultOf(store.outbox.position(sink))
        records: list[Sealed] = self.successResultOf(store.outbox.after(position, 500))
        return records

    def rows(self, store: MemoryStore) -> int:
        [(count,)] = store.connection.execute("SELECT COUNT(*) FROM outbox").fetchall()
        return int(count)

    def test_undelivered_stays(self) -> None:
        """Retention waits for every configured sink."""
        store = self.open(sinks=["syslog"])
        for _ in range(3):
            self.create(store)
        self.successResultOf(store.delete_old(NOW + timedelta(hours=25)))
        self.assertEqual(self.rows(store), 3)
        self.successResultOf(store.outbox.acknowledge("syslog", 1))
        self.create(store)  # which also saves the log's cursor
        self.successResultOf(store.delete_old(NOW + timedelta(hours=25)))
        self.assertEqual(self.rows(store), 2)
        self.assertEqual(self.lost, [])

    def test_cut_off_by_age(self) -> None:
        """What is too old goes whether or not a dead sink has it, and that is told."""
        store = self.open(sinks=["dead"])
        for _ in range(3):
            self.create(store)
        self.successResultOf(store.delete_old(NOW + timedelta(days=31)))
        self.assertEqual(self.rows(store), 0)
        self.assertIn(("dead", 3), self.lost)
        self.create(store)
        self.assertEqual([r.seq for r in self.following(store, "dead")], [3])

    def test_cut_off_by_number(self) -> None:
        """So does what is beyond the bound on rows, the oldest first."""
        store = self.open(sinks=["dead"], retention=Retention(most_events=2))
        for _ in range(5):
            self.create(store)
        self.successResultOf(store.delete_old(NOW))
        self.assertEqual([r.seq for r in self.following(store, "dead")], [3, 4])
        self.assertIn(("dead", 3), self.lost)

    def test_cut_off_of_another_replica(self) -> None:
        """What is cut off of the chain of another process is counted by who cuts it: nobody else sees it."""
        other = self.open(sinks=["dead"], log=None, instance="other")
        for _ in range(3):
            self.create(other)
        self.successResultOf(other.outbox.acknowledge("dead", 0))
        self.crash(other)
        store = self.open(sinks=["dead"])
        self.create(store)
        self.successResultOf(store.delete_old(NOW + timedelta(days=31)))
        self.assertIn(("dead", 3), self.lost)

    def test_waits(self) -> None:
        """Who waits for a number hears of it when it is committed, and may give up."""
        store = self.open(sinks=["syslog"])
        waiting, other = (Deferred.fromCoroutine(store.outbox.reached(0)) for _ in range(2))
        other.cancel()
        self.failureResultOf(other, CancelledError)
        self.assertNoResult(waiting)
        self.create(store)
        self.assertIsNone(self.successResultOf(waiting))

    def test_from_memory(self) -> None:
        """The latest records are not read from the database; older ones are."""
        store = self.open(sinks=["syslog"], recent_events=2)
        for _ in range(4):
            self.create(store)
        store.connection.execute("DELETE FROM outbox WHERE seq >= 2")
        self.assertEqual(self.successResultOf(store.outbox.after(1, 10)), self.log.records[2:])
        self.assertEqual([r.seq for r in self.successResultOf(store.outbox.after(2, 1))], [3])
        self.assertEqual([r.seq for r in self.successResultOf(store.outbox.after(-1, 10))], [0, 1])

    def test_knows_the_newest(self) -> None:
        """After a restart the feed knows what there is, also without a log."""
        store = self.open()
        self.create(store)
        self.crash(store)
        self.assertEqual(memory_store(self.clock, dsn=self.path, log=None).outbox.newest, 0)


class FakeRecords:
    """The driver of a database that holds nothing but records of one chain."""

    def __init__(self, seqs: Sequence[int]) -> None:
        self.seqs = list(seqs)
        self.slow: Deferred[None] | None = None

    def add(self, *seqs: int) -> None:
        self.seqs += seqs

    def cut(self, last: int) -> None:
        self.seqs = [seq for seq in self.seqs if seq > last]

    async def read(self, make: Any) -> Any:
        seqs = list(self.seqs)
        if self.slow is not None:
            await self.slow
        script, rows = make(), None
        while True:
            try:
                sql, values = script.send(rows)
            except StopIteration as done:
                return done.value
            if "chain_heads" in sql:
                rows = [(seqs[-1] + 1, "")] if seqs else []
            elif "sink_cursors" in sql:
                rows = []
            else:
                rows = [(seq, "{}", "") for seq in seqs if seq > values["seq"]]


class PublisherTests(SynchronousTestCase):
    """The order between the log and the answers."""

    def setUp(self) -> None:
        self.log = MemoryLog()
        self.calls: list[tuple[Any, Deferred[object]]] = []
        self.clock = Clock()
        self.publisher = Publisher(self.clock, self.log, in_thread=self.in_thread)
        self.answers: list[str] = []

    def in_thread(self, function: Any) -> Deferred[object]:
        waiting: Deferred[object] = Deferred()
        self.calls.append((function, waiting))
        return waiting

    def run_thread(self) -> None:
        function, waiting = self.calls.pop(0)
        try:
            result = function()
        except Exception as e:
            waiting.errback(e)
        else:
            waiting.callback(result)

    def record(self, seq: int) -> Sealed:
        return Sealed(instance="i", seq=seq, plain=b"{}", canonical=b"{}", hash="")

    def publish(self, seq: int) -> None:
        self.publisher.publish([self.record(seq)], lambda: self.answers.append(f"answer {seq}"))

    def test_answers_wait(self) -> None:
        """Nobody is answered before the log has the record; what waits meanwhile is written together."""
        for seq in range(4):
            self.publish(seq)
        self.assertEqual((len(self.calls), self.answers), (1, []))
        self.run_thread()
        self.assertEqual(self.answers, ["answer 0"])
        self.run_thread()
        self.assertEqual(self.answers, [f"answer {seq}" for seq in range(4)])
        self.assertEqual([record.seq for record in self.log.records], [0, 1, 2, 3])

    def test_stop_waits(self) -> None:
        """Stopping waits for the write under way."""
        self.publish(0)
        stopping = Deferred.fromCoroutine(self.publisher.stop())
        self.assertNoResult(stopping)
        self.run_thread()
        self.assertIsNone(self.successResultOf(stopping))

    def stored(self, *seqs: int) -> FakeRecords:
        """Start on a database that has so many records of the chain."""
        driver = FakeRecords(seqs)
        starting = Deferred.fromCoroutine(self.publisher.start(driver, "i"))  # type: ignore[arg-type]
        while self.calls:
            self.run_thread()
        self.assertIsNone(self.successResultOf(starting))
        return driver

    def look_again(self, word: str) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.publisher.look_again(lambda: self.answers.append(word))))

    def test_skipped(self) -> None:
        """Records that were sealed without our hearing of it, as a connection broke, are written before later ones."""
        driver = self.stored(0)
        driver.add(1, 2, 3)
        self.publish(3)
        self.assertEqual(self.answers, [])
        while self.calls:
            self.run_thread()
        self.assertEqual(([r.seq for r in self.log.records], self.answers), ([0, 1, 2, 3], ["answer 3"]))
        driver.add(4)
        self.publish(4)
        self.run_thread()
        self.assertEqual([r.seq for r in self.log.records], [0, 1, 2, 3, 4])

    def test_skipped_while_writing(self) -> None:
        """Also when the log is busy at that moment; who comes meanwhile waits for them, too."""
        driver = self.stored(0)
        driver.add(1, 2, 3, 4)
        self.publish(1)
        self.publish(3)
        self.publish(4)
        self.run_thread()
        self.assertEqual(self.answers, ["answer 1"])
        while self.calls:
            self.run_thread()
        self.assertEqual([r.seq for r in self.log.records], [0, 1, 2, 3, 4])
        self.assertEqual(self.answers, ["answer 1", "answer 3", "answer 4"])

    def test_nothing_left_to_seal(self) -> None:
        """That there is nothing to seal may mean that it is sealed already; it is written, though nothing follows."""
        driver = self.stored(0)
        driver.add(1, 2)
        waiting = Deferred.fromCoroutine(self.publisher.wait(0))
        self.look_again("answer")
        self.assertIsNone(self.successResultOf(waiting))
        self.assertEqual(self.answers, [])
        self.run_thread()
        self.assertEqual(([r.seq for r in self.log.records], self.answers), ([0, 1, 2], ["answer"]))
        self.look_again("again")
        self.assertEqual((self.answers, self.calls), (["answer", "again"], []))

    def test_skipped_and_failing(self) -> None:
        """A log that fails then holds nobody up for ever."""
        driver = self.stored(0)
        driver.add(1, 2)
        self.log.broken = OSError(errno.EIO, "gone")
        self.publish(2)
        self.run_thread()
        self.assertEqual((self.answers, self.publisher.behind), (["answer 2"], True))
        self.log.broken = None
        self.clock.advance(RETRY_SECONDS)
        self.run_thread()
        self.assertEqual([r.seq for r in self.log.records], [0, 1, 2])

    def test_cut_off_while_new_ones_come(self) -> None:
        """What retention has taken is not waited for; what was sealed during that very look is not skipped."""
        driver = self.stored(0)
        self.log.broken = OSError(errno.EIO, "gone")
        driver.add(1)
        self.publish(1)
        self.run_thread()
        self.log.broken = None
        driver.cut(1)
        driver.slow = Deferred()
        self.clock.advance(RETRY_SECONDS)
        driver.add(2)
        self.publish(2)
        slow, driver.slow = driver.slow, None
        slow.callback(None)
        while self.calls:
            self.run_thread()
        self.assertEqual([r.seq for r in self.log.records], [0, 2])

    def test_failure_after_the_end(self) -> None:
        """A log that fails while it is brought up to date at the end is not tried again."""
        driver = self.stored(0)
        self.log.broken = OSError(errno.EIO, "gone")
        driver.add(1)
        self.publish(1)
        self.run_thread()
        self.clock.advance(RETRY_SECONDS)
        stopping = Deferred.fromCoroutine(self.publisher.stop())
        self.run_thread()
        self.assertIsNone(self.successResultOf(stopping))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_set_back(self) -> None:
        """A database that lost its latest commits, as a standby may, is noticed: who follows is told where it stood."""
        heard: list[int] = []
        self.publisher.when_set_back(heard.append)
        driver = self.stored(0, 1, 2, 3)
        driver.cut(3)
        self.publish(4)
        self.publish(2)
        while self.calls:
            self.run_thread()
        self.assertEqual((heard, self.publisher.newest), ([1], 2))

    def test_without_log(self) -> None:
        """Without a log the answer comes at once."""
        publisher = Publisher(Clock())
        publisher.publish([self.record(0)], lambda: self.answers.append("answer"))
        self.assertEqual(self.answers, ["answer"])
