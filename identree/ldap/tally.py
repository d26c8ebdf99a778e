"""Counting what LDAP does: in plain numbers while it happens, in the metrics a second later."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from identree.app.metrics import SEARCH_BUCKETS, Metrics

# Metrics lag at most so long behind.
FLUSH_SECONDS = 1.0


class Tally:
    """
    Counters of a client library cost a lock and more than a microsecond each, which an answer from the memo does not
    take in all. Nothing runs while nothing happens.

    :param memo_hits: how many there were so far.
    """

    def __init__(self, metrics: Metrics, clock: IReactorTime, memo_hits: Callable[[], int]) -> None:
        self._metrics, self._clock, self._memo_hits = metrics, clock, memo_hits
        self._counted_hits = 0
        self._timer: IDelayedCall | None = None
        self._searches: dict[tuple[str, int], int] = {}
        self._results: dict[tuple[str, int], int] = {}
        self._entries = 0
        self._seconds = 0.0
        # of each bucket, and of what is slower than the last
        self._durations = [0] * (len(SEARCH_BUCKETS) + 1)

    def search(self, base: str, code: int, entries: int, seconds: float) -> None:
        """A search was answered that had passed the checks of controls and authentication."""
        searches, key = self._searches, (base, code)
        searches[key] = searches.get(key, 0) + 1
        self._entries += entries
        self._seconds += seconds
        self._durations[bisect_left(SEARCH_BUCKETS, seconds)] += 1
        if self._timer is None:
            self._timer = self._clock.callLater(FLUSH_SECONDS, self.flush)

    def result(self, operation: str, code: int) -> None:
        """Any other answer."""
        results, key = self._results, (operation, int(code))
        results[key] = results.get(key, 0) + 1
        if self._timer is None:
            self._timer = self._clock.callLater(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Bring the metrics up to date."""
        if self._timer is not None:
            if self._timer.active():
                self._timer.cancel()
            self._timer = None
        for (base, code), count in self._searches.items():
            self._metrics.ldap_queries.labels(base).inc(count)
            self._metrics.ldap_results.labels("search", str(code)).inc(count)
        self._searches.clear()
        for (operation, code), count in self._results.items():
            self._metrics.ldap_results.labels(operation, str(code)).inc(count)
        self._results.clear()
        self._metrics.ldap_entries.inc(self._entries)
        self._entries = 0
        hits = self._memo_hits()
        self._metrics.ldap_memo_hits.inc(hits - self._counted_hits)
        self._counted_hits = hits
        # the library takes observations only one at a time; its parts can be moved by any amount
        histogram: Any = self._metrics.ldap_search
        for bucket, count in enumerate(self._durations):
            if count:
                histogram._buckets[bucket].inc(count)
                self._durations[bucket] = 0
        histogram._sum.inc(self._seconds)
        self._seconds = 0.0
