"""Health and metrics (spec/audit-and-metrics sections 11 and 12)."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import datetime
from itertools import count
from typing import Any

from treq.testing import StubTreq
from twisted.internet.defer import Deferred, succeed
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import SynchronousTestCase

from identree.app.health import PATIENCE_SECONDS
from identree.core.errors import StorageUnavailable
from identree.storage.interface import Counts
from identree.web.operations import LOOK_FRESH_SECONDS, LOOK_PATIENCE_SECONDS, OperationsRoutes, waiting_for_threads
from tests.web.front import Front
from tests.web.house import House


class OperationsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.front = Front()
        self.addCleanup(self.front.close)
        self.world = self.front.world


class HealthTests(OperationsTestCase):
    def test_well(self) -> None:
        """The bytes of the contract: keys in order, no spaces, no line feed."""
        response = self.front.ask("GET", "/healthz")
        self.assertEqual(
            (response.code, response.body), (200, b'{"status":"ok","checks":{"disk":"ok","database":"ok"}}')
        )
        self.assertEqual(response.header("Content-Type"), "application/json")

    def test_head(self) -> None:
        """HEAD is allowed here."""
        response = self.front.ask("HEAD", "/healthz")
        self.assertEqual((response.code, response.header("Content-Length")), (200, "54"))

    def test_wrong_method(self) -> None:
        """Others are not."""
        response = self.front.ask("POST", "/healthz")
        self.assertEqual((response.code, response.body), (405, b"method not allowed\n"))

    def test_unhealthy(self) -> None:
        """A failing database is a 503."""

        async def ill() -> str:
            raise StorageUnavailable("locked")

        self.front.probe = ill
        response = self.front.ask("GET", "/healthz")
        self.assertEqual((response.code, response.json["status"]), (503, "unhealthy"))
        self.assertEqual(response.json["checks"]["database"], "error")

    def test_probe_that_hangs(self) -> None:
        """The answer does not wait for a probe that hangs."""

        async def hanging() -> str:
            await Deferred()
            return "ok"

        self.front.probe = hanging
        connection = self.front.start("GET", "/healthz")
        self.assertIsNone(connection.response())
        self.world.clock.advance(PATIENCE_SECONDS)
        response = connection.response()
        assert response is not None
        self.assertEqual((response.code, response.json["checks"]["database"]), (503, "error"))

    def test_hanging_is_no_news(self) -> None:
        """What was known stands while a probe takes its time."""
        self.front.ask("GET", "/healthz")

        async def slow() -> str:
            await Deferred()
            return "ok"

        self.front.probe = slow
        connection = self.front.start("GET", "/healthz")
        self.world.clock.advance(PATIENCE_SECONDS)
        response = connection.response()
        assert response is not None
        self.assertEqual((response.code, response.json["checks"]["database"]), (200, "ok"))


class LiveTests(OperationsTestCase):
    def test_alive(self) -> None:
        """While everything hangs, the answer comes at once."""

        async def hanging() -> str:
            await Deferred()
            return "ok"

        self.front.probe = hanging
        response = self.front.ask("GET", "/livez")
        self.assertEqual((response.code, response.body), (200, b'{"status":"ok"}'))
        self.assertEqual(response.header("Content-Type"), "application/json")

    def test_methods(self) -> None:
        """GET and HEAD."""
        self.assertEqual(self.front.ask("HEAD", "/livez").code, 200)
        self.assertEqual(self.front.ask("POST", "/livez").code, 405)


class ReadyTests(OperationsTestCase):
    def ready(self) -> tuple[int, dict[str, object]]:
        response = self.front.ask("GET", "/readyz")
        return response.code, response.json

    def test_ready(self) -> None:
        """Requests are welcome while nothing critical fails."""
        self.assertEqual(self.ready(), (200, {"status": "ok"}))

    def test_not_well(self) -> None:
        """What keeps requests away is named."""

        async def ill() -> str:
            raise StorageUnavailable("locked")

        self.front.probe = ill
        self.assertEqual(self.ready(), (503, {"status": "unhealthy", "failed": ["database"]}))

    def test_leaving(self) -> None:
        """A server that stops wants no more, and says so without asking anybody."""
        self.front.operations.leave()
        self.assertEqual(self.ready(), (503, {"status": "stopping"}))
        self.assertEqual(self.front.ask("GET", "/livez").code, 200)

    def test_stopping(self) -> None:
        """The end of the streams is when it begins to stop."""
        house = House()
        http = StubTreq(house.root)
        house.front.close_streams()
        response = self.successResultOf(http.get("http://identree.test/readyz"))
        self.assertEqual(response.code, 503)

    def test_methods(self) -> None:
        """GET and HEAD."""
        self.assertEqual(self.front.ask("HEAD", "/readyz").code, 200)
        self.assertEqual(self.front.ask("DELETE", "/readyz").code, 405)


class MetricsTests(OperationsTestCase):
    def value(self, name: str) -> float:
        lines = self.front.ask("GET", "/metrics").text.splitlines()
        [line] = [line for line in lines if line.startswith(name + " ")]
        return float(line.rpartition(" ")[2])

    def test_format(self) -> None:
        """Prometheus text 0.0.4, for any method."""
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
            response = self.front.ask(method, "/metrics")
            self.assertEqual(response.code, 200)
            self.assertEqual(response.header("Content-Type"), "text/plain; version=0.0.4; charset=utf-8")

    def test_gzip(self) -> None:
        """Compressed when accepted."""
        response = self.front.ask("GET", "/metrics", {"Accept-Encoding": "gzip, deflate"})
        self.assertEqual(response.header("Content-Encoding"), "gzip")
        self.assertIn(b"identree_challenges_created_total", gzip.decompress(response.body))
        self.assertEqual(response.header("Vary"), "Accept-Encoding")

    def test_no_gzip(self) -> None:
        """Not where it is refused, or not known."""
        for accepted in ("gzip;q=0", "deflate, gzip; q=0.0", "x-gzip", ""):
            response = self.front.ask("GET", "/metrics", {"Accept-Encoding": accepted})
            self.assertIsNone(response.header("Content-Encoding"), accepted)
            self.assertIn(b"identree_challenges_created_total", response.body)

    def test_gzip_with_a_quality(self) -> None:
        """Any quality above zero is consent."""
        response = self.front.ask("GET", "/metrics", {"Accept-Encoding": "br;q=1, GZIP;q=0.1"})
        self.assertEqual(response.header("Content-Encoding"), "gzip")

    def test_measured_at_each_scrape(self) -> None:
        """Gauges are brought up to date when somebody asks; one that cannot be read takes none of the others away."""
        numbers = iter(range(1, 9))

        def broken() -> None:
            raise RuntimeError("no thread pool")

        threads = self.world.metrics.threads_waiting
        self.front.operations._measure = (broken, lambda: threads.set(next(numbers)))
        self.assertEqual([self.value("identree_threads_waiting") for _ in range(2)], [1, 2])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_process(self) -> None:
        """The process is looked at in a thread, every few seconds."""
        looks: list[Callable[[], object]] = []

        def in_thread(function: Callable[[], object]) -> Deferred[object]:
            looks.append(function)
            return succeed(function())

        operations = self.with_threads(in_thread)
        for _ in range(2):
            self.assertIn(b"process_open_fds ", self.scraped(operations))
        self.assertEqual(len(looks), 1)
        self.world.clock.advance(LOOK_FRESH_SECONDS)
        self.scraped(operations)
        self.assertEqual(len(looks), 2)

    def test_no_thread(self) -> None:
        """Where no thread is free, everything else is told within a second; no second look is begun."""
        looks: list[object] = []

        def in_thread(function: Callable[[], object]) -> Deferred[object]:
            looks.append(function)
            return Deferred()

        operations = self.with_threads(in_thread)
        for _ in range(3):
            http = StubTreq(operations.router.resource())
            scrape = http.get("http://identree.test/metrics")
            self.world.clock.advance(LOOK_PATIENCE_SECONDS)
            http.flush()
            body = self.successResultOf(self.successResultOf(scrape).content())
            self.assertIn(b"process_open_fds ", body)
            self.world.clock.advance(LOOK_FRESH_SECONDS)
        self.assertEqual(len(looks), 1)

    def test_in_slices(self) -> None:
        """A long text is written over several turns of the reactor."""
        clock = self.world.clock
        steps = count()
        self.front.operations._monotonic = lambda: float(next(steps))
        scrape = self.front.start("GET", "/metrics")
        self.assertIsNone(scrape.response())
        call_later, turns = clock.callLater, []

        def counted(delay: float, *call: Any) -> Any:
            turns.append(delay)
            return call_later(delay, *call)

        clock.callLater = counted  # type: ignore[method-assign]
        clock.advance(0)
        self.assertIsNotNone(scrape.response())
        self.assertGreater(len(turns), 10)

    def with_threads(self, in_thread: Any) -> OperationsRoutes:
        world = self.world
        return OperationsRoutes(
            clock=world.clock,
            health=self.front.health,
            metrics=world.metrics,
            store=world.store,
            waiters=lambda: (0, 1),
            streams=lambda: (0, 1),
            metrics_token="",
            now=world.now,
            monotonic=world.clock.seconds,
            in_thread=in_thread,
        )

    def scraped(self, operations: OperationsRoutes) -> bytes:
        http = StubTreq(operations.router.resource())
        response = self.successResultOf(http.get("http://identree.test/metrics"))
        body: bytes = self.successResultOf(response.content())
        return body

    def test_no_created_series(self) -> None:
        """Only the names of the contract."""
        self.assertNotIn("_created{", self.front.ask("GET", "/metrics").text)
        self.assertNotIn("_created ", self.front.ask("GET", "/metrics").text)

    def test_counts(self) -> None:
        """The gauges are counted in the database, at most every five seconds."""
        self.front.create()
        self.assertEqual(self.value("identree_active_challenges"), 1)
        self.front.create({"username": "alice", "hostname": "web2"})
        self.assertEqual(self.value("identree_active_challenges"), 1)
        self.world.clock.advance(5)
        self.assertEqual(self.value("identree_active_challenges"), 2)

    def test_database_away(self) -> None:
        """Without the database all other metrics are still there."""

        async def unavailable(*_: object) -> object:
            raise StorageUnavailable("locked")

        self.world.store.counts = unavailable  # type: ignore[assignment, method-assign]
        self.assertEqual(self.value("identree_challenges_created_total"), 0)

    def test_database_locked(self) -> None:
        """While the database is locked the last counts are told within a second; its answer counts when it comes."""
        self.front.create()
        self.assertEqual(self.value("identree_active_challenges"), 1)
        store = self.world.store
        locked: Deferred[None] = Deferred()
        counts = store.counts
        asked: list[datetime] = []

        async def waiting(now: datetime) -> Counts:
            asked.append(now)
            await locked
            return await counts(now)

        store.counts = waiting  # type: ignore[method-assign]
        self.front.create({"username": "alice", "hostname": "web2"})
        self.world.clock.advance(5)
        for _ in range(2):
            scrape = self.front.start("GET", "/metrics")
            self.assertIsNone(scrape.response())
            self.world.clock.advance(LOOK_PATIENCE_SECONDS)
            response = scrape.response()
            assert response is not None
            self.assertIn("identree_active_challenges 1.0\n", response.text)
            self.world.clock.advance(5)
        self.assertEqual(len(asked), 1)
        locked.callback(None)
        self.assertIn("identree_active_challenges 2.0\n", self.front.ask("GET", "/metrics").text)

    def test_how_close(self) -> None:
        """What is bounded shows how close it is."""
        self.front.sign_in()
        self.front.start("GET", "/api/events")
        self.assertEqual(self.value("identree_event_streams"), 1)
        self.assertEqual(self.value("identree_event_streams_limit"), 8)
        self.assertEqual(self.value("identree_held_requests_limit"), 100)

    def test_token(self) -> None:
        """With a token configured it is needed: as a header, with or without Bearer, or as a parameter."""
        self.front.operations._metrics_token = "a-metrics-token"
        for header in ("Bearer a-metrics-token", "a-metrics-token"):
            self.assertEqual(self.front.ask("GET", "/metrics", {"Authorization": header}).code, 200)
        self.assertEqual(self.front.ask("GET", "/metrics?token=a-metrics-token").code, 200)
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic a-metrics-token"}):
            response = self.front.ask("GET", "/metrics", headers)
            self.assertEqual((response.code, response.body), (401, b"unauthorized\n"))

    def test_header_before_parameter(self) -> None:
        """A wrong header is not made good by a right parameter."""
        self.front.operations._metrics_token = "a-metrics-token"
        response = self.front.ask("GET", "/metrics?token=a-metrics-token", {"Authorization": "Bearer x"})
        self.assertEqual(response.code, 401)


class ThreadsTests(SynchronousTestCase):
    def test_waiting(self) -> None:
        """Calls that no thread has taken are counted."""
        pool = ThreadPool(0, 1)
        for _ in range(3):
            pool.callInThread(lambda: None)
        self.assertEqual(waiting_for_threads(pool), 3)
