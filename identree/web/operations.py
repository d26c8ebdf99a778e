"""
What operators and their machines ask: health and metrics (spec/audit-and-metrics sections 11 and 12).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest

from identree.app.health import Health, InThread
from identree.app.metrics import Metrics, exposition
from identree.app.ports import Monotonic, Now
from identree.app.slices import sliced
from identree.core.errors import StorageUnavailable
from identree.core.requests import current
from identree.core.tokens import same
from identree.storage.interface import Store
from identree.web.reading import first_header, query
from identree.web.replies import JSON, encode_json, send, text
from identree.web.router import Router, TextAnswers

HEALTH_PATH = b"/healthz"
METRICS_PATH = b"/metrics"
LIVE_PATH = b"/livez"
READY_PATH = b"/readyz"
METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
# What costs a look into the database or a thread is at most this old.
LOOK_FRESH_SECONDS = 5.0
# A scrape waits at most so long for it; then it gets what was there before.
LOOK_PATIENCE_SECONDS = 1.0


def waiting_for_threads(pool: Any) -> int:
    """Calls that wait for one of the threads of a :class:`twisted.python.threadpool.ThreadPool`."""
    return int(pool.q.qsize())


class _Look:
    """Something that takes a while, done at most every LOOK_FRESH_SECONDS and never twice at once."""

    _log = Logger()

    def __init__(
        self, what: str, look: Callable[[], Awaitable[None]], clock: IReactorTime, monotonic: Monotonic
    ) -> None:
        self._what = what
        self._look = look
        self._clock = clock
        self._monotonic = monotonic
        self._began: float | None = None
        self._under_way: Deferred[None] | None = None

    async def __call__(self) -> None:
        """Until it is done, but not longer than a scrape may take; it goes on without us."""
        now = self._monotonic()
        if self._began is not None and now - self._began < LOOK_FRESH_SECONDS:
            return
        if self._under_way is None:
            self._began = now
            asked_by = current.set("")
            try:
                looking: Deferred[None] = Deferred.fromCoroutine(self._guarded())
            finally:
                current.reset(asked_by)
            self._under_way = looking
            looking.addBoth(self._over)
        if self._under_way is None:
            return
        enough: Deferred[None] = Deferred()

        def stop_waiting(_: object = None) -> None:
            if not enough.called:
                enough.callback(None)

        self._under_way.addCallback(stop_waiting)
        timer = self._clock.callLater(LOOK_PATIENCE_SECONDS, stop_waiting)
        try:
            await enough
        finally:
            if timer.active():
                timer.cancel()

    async def _guarded(self) -> None:
        await self._look()

    def _over(self, result: Failure | None) -> None:
        self._under_way = None
        if isinstance(result, Failure):
            self._log.failure("metrics: {what} could not be looked at", result, what=self._what)


class OperationsRoutes:
    """
    :param waiters, streams: how many there are now, and how many there may be.
    :param metrics_token: empty: the metrics are open.
    :param measure: what brings gauges up to date, called before each scrape; it must not block.
    :param in_thread: runs what looks at the process, which is slow with many open files; by default it is not looked
        at after the start.
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
        measure: Sequence[Callable[[], None]] = (),
        in_thread: InThread | None = None,
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
        self._measure = tuple(measure)
        self._in_thread = in_thread
        self._looks = [_Look("the database", self._count_stored, clock, monotonic)]
        if in_thread is not None:
            self._looks.append(_Look("the process", self._look_at_process, clock, monotonic))
        self._leaving = False

    def leave(self) -> None:
        """The server stops: no further requests are wanted."""
        self._leaving = True

    # -- health -------------------------------------------------------------------------------------------------------
    @router.route("/healthz", methods=["GET", "HEAD"])
    async def healthz(self, request: IRequest) -> bytes:
        report = await self._health.report()
        body = encode_json({"status": report.status, "checks": report.checks})
        return send(request, 200 if report.healthy else 503, JSON, body)

    @router.route("/livez", methods=["GET", "HEAD"])
    async def livez(self, request: IRequest) -> bytes:
        """Whether the event loop turns, whatever the state of everything else: who restarts us mends nothing there."""
        return send(request, 200, JSON, encode_json({"status": "ok"}))

    @router.route("/readyz", methods=["GET", "HEAD"])
    async def readyz(self, request: IRequest) -> bytes:
        """Whether requests should be sent here."""
        if self._leaving:
            return send(request, 503, JSON, encode_json({"status": "stopping"}))
        report = await self._health.report()
        if report.healthy:
            return send(request, 200, JSON, encode_json({"status": "ok"}))
        return send(request, 503, JSON, encode_json({"status": "unhealthy", "failed": list(report.broken)}))

    # -- metrics ------------------------------------------------------------------------------------------------------
    @router.route("/metrics", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    async def metrics(self, request: IRequest) -> bytes:
        if self._metrics_token and not same(self._presented(request), self._metrics_token):
            return text(request, 401, "unauthorized")
        await self._bring_up_to_date()
        request.responseHeaders.setRawHeaders(b"Vary", [b"Accept-Encoding"])
        compressed = _accepts_gzip(first_header(request, b"Accept-Encoding"))
        if compressed:
            request.responseHeaders.setRawHeaders(b"Content-Encoding", [b"gzip"])
        body = await sliced(exposition(self._metrics.registry, compressed=compressed), self._clock, self._monotonic)
        return send(request, 200, METRICS_TYPE, body)

    @staticmethod
    def _presented(request: IRequest) -> bytes:
        header = first_header(request, b"Authorization").removeprefix(b"Bearer ")
        return header or query(request).get("token", "").encode("utf-8", "replace")

    async def _bring_up_to_date(self) -> None:
        """
        The gauges. While the database is away or locked, or no thread is free, what was last seen of them stands: the
        rest is still worth it.
        """
        metrics = self._metrics
        for (present, limit), gauge, bound in (
            (self._waiters(), metrics.waiters, metrics.waiters_limit),
            (self._streams(), metrics.streams, metrics.streams_limit),
        ):
            gauge.set(present)
            bound.set(limit)
        for measure in self._measure:
            try:
                measure()
            except Exception:
                # one gauge that cannot be read takes none of the others away
                self._log.failure("metrics: a gauge could not be measured")
        looks = [Deferred.fromCoroutine(look()) for look in self._looks]
        for look in looks:
            await look

    async def _count_stored(self) -> None:
        with suppress(StorageUnavailable):
            counts = await self._store.counts(self._now())
            self._metrics.active.set(counts.pending_challenges)
            self._metrics.grace_sessions.set(counts.grace_sessions)

    async def _look_at_process(self) -> None:
        assert self._in_thread is not None
        await self._in_thread(self._metrics.process.look)


def _accepts_gzip(header: bytes) -> bool:
    """Whether ``Accept-Encoding`` names gzip with a quality above zero (RFC 9110 section 12.5.3)."""
    for coding in header.lower().split(b","):
        name, _, quality = coding.partition(b";")
        if name.strip() == b"gzip":
            value = quality.strip().removeprefix(b"q=")
            return not value or value.strip(b"0.") != b""
    return False
