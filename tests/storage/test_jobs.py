"""Operations are timed, and what they start belongs to nobody."""

from __future__ import annotations

from tempfile import TemporaryDirectory

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from identree.core.errors import NotFound, StorageUnavailable
from identree.core.requests import current
from identree.storage.jobs import BUDGET_SECONDS, MOST_OUTSTANDING, Job, on_behalf_of_nobody, unobserved, watched
from identree.storage.opening import open_store
from identree.storage.script import Script


def nothing() -> Script[None]:
    yield "SELECT 1", {}


class WatchedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.seen: list[tuple[str, float, str]] = []
        self.job = Job(nothing, BUDGET_SECONDS)
        self.answer = watched(self.job, "write", self.clock.seconds, lambda *seen: self.seen.append(seen))

    def test_answered(self) -> None:
        """From submitting to the answer, which passes unchanged."""
        self.clock.advance(0.25)
        self.job.result = 7
        self.job.fire()
        self.assertEqual((self.successResultOf(self.answer), self.seen), (7, [("write", 0.25, "")]))

    def test_unavailable(self) -> None:
        """What could not be done has its reason."""
        self.job.fail(StorageUnavailable("locked", "a text that goes nowhere"))
        self.job.fire()
        self.failureResultOf(self.answer, StorageUnavailable)
        self.assertEqual(self.seen, [("write", 0.0, "locked")])

    def test_refused(self) -> None:
        """A refusal of the domain is an answer, and no failure of the database."""
        self.job.fail(NotFound("x"))
        self.job.fire()
        self.failureResultOf(self.answer, NotFound)
        self.assertEqual(self.seen, [("write", 0.0, "")])

    def test_nobody_waits(self) -> None:
        """An operation that was given up is not counted."""
        self.answer.cancel()
        self.failureResultOf(self.answer)
        self.job.fire()
        self.assertEqual((self.seen, self.job.cancelled), ([], True))

    def test_unobserved(self) -> None:
        """Where nobody watches, nothing is added."""
        job = Job(nothing, BUDGET_SECONDS)
        self.assertIs(watched(job, "read", self.clock.seconds, unobserved), job.answer)


class NobodyTests(SynchronousTestCase):
    def test_context(self) -> None:
        """Work for many has not the id of the request that started it, now and later; the request keeps its own."""
        ids: list[str] = []
        later: Deferred[None] = Deferred()

        async def work() -> None:
            ids.append(current.get())
            await later
            ids.append(current.get())

        before = current.set("0123456789abcdef")
        try:
            working = on_behalf_of_nobody(work())
            self.assertEqual(current.get(), "0123456789abcdef")
            later.callback(None)
        finally:
            current.reset(before)
        self.successResultOf(working)
        self.assertEqual(ids, ["", ""])


class StoreTests(TestCase):
    async def test_observed(self) -> None:
        """A store tells how long reading and writing took, and how much is under way."""
        from twisted.internet import reactor

        seen: list[tuple[str, str]] = []
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        store = open_store(
            reactor,
            driver="sqlite",
            dsn=f"{directory.name}/identree.db",
            version="test",
            observe=lambda operation, seconds, reason: seen.append((operation, reason)),
        )
        await store.start()
        try:
            seen.clear()
            reading = Deferred.fromCoroutine(store.challenge("0" * 32))
            self.assertEqual(store.outstanding, (1, MOST_OUTSTANDING))
            await reading
            await store.record(())
            self.assertEqual((seen, store.outstanding), ([("read", ""), ("write", "")], (0, MOST_OUTSTANDING)))
        finally:
            await store.stop()
