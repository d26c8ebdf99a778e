"""
What operators and their machines ask: health and metrics (spec/audit-and-metrics sections 11 and 12).
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import generate_latest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest

from identree.app.health import Health
from identree.app.metrics import Metrics
from identree.app.ports import Monotonic, Now
from identree.core.errors import StorageUnavailable
from identree.core.tokens import same
from identree.storage.interface import Store
from identree.web.reading import first_header, query
from identree.web.replies import JSON, encode_json, send, text
from identree.web.router import Router, TextAnswers

HEALTH_PATH = b"/healthz"
METRICS_PATH = b"/metrics"
METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
# The gauges that cost a look into the database are at most this old.
COUNTS_FRESH_SECONDS = 5.0
# A scrape waits at most so long for them; then it gets the last ones.
COUNTS_PATIENCE_SECONDS = 1.0


class OperationsRoutes:
    """
    :param waiters, streams: how many there are now, and how many there may be.
    :param metrics_token: empty: the metrics are open.
    """

    router = Router()
    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        health: Health,
        metrics: Metrics,
        store: Store,
        waiters: Callable[[], tuple[int, int]],
        streams: Callable[[], tuple[int, int]],
        metrics_token: str,
        now: Now,
        monotonic: Monotonic,
    ) -> None:
        self.answers = TextAnswers()
        self._clock = clock
        self._health = health
        self._metrics = metrics
        self._store = store
        self._waiters = waiters
        self._streams = streams
        self._metrics_token = metrics_token
        self._now = now
        self._monotonic = monotonic
        self._counted: float | None = None
        self._counting: Deferred[None] | None = None

    @router.route("/healthz", methods=["GET", "HEAD"])
    async def healthz(self, request: IRequest) -> bytes:
        report = await self._health.report()
        body = encode_json({"status": report.status, "checks": report.checks})
        return send(request, 200 if report.healthy else 503, JSON, body)

    @router.route("/metrics", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    async def metrics(self, request: IRequest) -> bytes:
        if self._metrics_token and not same(self._presented(request), self._metrics_token):
            return text(request, 401, "unauthorized")
        await self._count()
        body = generate_latest(self._metrics.registry)
        if b"gzip" in first_header(request, b"Accept-Encoding"):
            request.responseHeaders.setRawHeaders(b"Content-Encoding", [b"gzip"])
            request.responseHeaders.setRawHeaders(b"Vary", [b"Accept-Encoding"])
            body = gzip.compress(body, 5, mtime=0)
        return send(request, 200, METRICS_TYPE, body)

    @staticmethod
    def _presented(request: IRequest) -> bytes:
        header = first_header(request, b"Authorization").removeprefix(b"Bearer ")
        return header or query(request).get("token", "").encode("utf-8", "replace")

    async def _count(self) -> None:
        """
        Bring the gauges up to date. While the database is away or locked the last counts stand: the rest is still worth
        it.
        """
        metrics = self._metrics
        for (present, limit), gauge, bound in (
            (self._waiters(), metrics.waiters, metrics.waiters_limit),
            (self._streams(), metrics.streams, metrics.streams_limit),
        ):
            gauge.set(present)
            bound.set(limit)
        asked = self._monotonic()
        if self._counted is not None and asked - self._counted < COUNTS_FRESH_SECONDS:
            return
        if self._counting is None:
            self._counted = asked
            counting: Deferred[None] = Deferred.fromCoroutine(self._count_stored())
            self._counting = counting
            counting.addBoth(self._stored_counted)
        if self._counting is not None:
            await self._patiently(self._counting)

    async def _count_stored(self) -> None:
        with suppress(StorageUnavailable):
            counts = await self._store.counts(self._now())
            self._metrics.active.set(counts.pending_challenges)
            self._metrics.grace_sessions.set(counts.grace_sessions)

    def _stored_counted(self, result: Failure | None) -> None:
        self._counting = None
        if isinstance(result, Failure):
            self._log.failure("the gauges could not be counted", result)

    async def _patiently(self, counting: Deferred[None]) -> None:
        """Until the counting is over, but not longer than a scrape may take; it goes on without us."""
        enough: Deferred[None] = Deferred()

        def stop_waiting(_: object = None) -> None:
            if not enough.called:
                enough.callback(None)

        counting.addCallback(stop_waiting)
        timer = self._clock.callLater(COUNTS_PATIENCE_SECONDS, stop_waiting)
        try:
            await enough
        finally:
            if timer.active():
                timer.cancel()
