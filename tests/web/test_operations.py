"""Health and metrics (spec/audit-and-metrics sections 11 and 12)."""

from __future__ import annotations

import gzip
from datetime import datetime

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree.app.health import PATIENCE_SECONDS
from identree.core.errors import StorageUnavailable
from identree.storage.interface import Counts
from identree.web.operations import COUNTS_PATIENCE_SECONDS
from tests.web.front import Front


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
            self.world.clock.advance(COUNTS_PATIENCE_SECONDS)
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
