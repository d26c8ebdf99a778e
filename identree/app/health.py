"""
The state of everything that identree depends on (spec/audit-and-metrics section 12).

Probes run in the background and are shared; an answer never waits longer than :data:`PATIENCE_SECONDS` for them, so
that the health of identree can be asked while everything behind it hangs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from identree.app.ports import Monotonic

PROBE_SECONDS = 2.0
PATIENCE_SECONDS = 0.03


class Unwell(Exception):
    """Raised by a probe that can say why: the reason stands in the log, the report has only the check's ``failure``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """
    :ivar probe: resolves to the value to report; raising or taking too long gives ``failure``.
    :ivar critical: whether ``failure`` makes the whole unhealthy (503) rather than degraded.
    :ivar fresh_seconds: how long a result is reused.
    """

    name: str
    probe: Callable[[], Awaitable[str]]
    failure: str
    critical: bool
    fresh_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """:ivar status: ``ok``, ``degraded`` or ``unhealthy``."""

    status: str
    checks: dict[str, str]

    @property
    def healthy(self) -> bool:
        return self.status != "unhealthy"


class Health:
    """:param checks: in the order of the report."""

    _log = Logger()

    def __init__(self, checks: list[Check], clock: IReactorTime, monotonic: Monotonic) -> None:
        self._checks = checks
        self._clock = clock
        self._monotonic = monotonic
        self._results: dict[str, tuple[float, str]] = {}
        self._running: dict[str, Deferred[None]] = {}

    async def report(self) -> Report:
        started = [running for check in self._checks if (running := self._refresh(check)) is not None]
        if started:
            await self._patiently(started)
        values = {check.name: self._value(check) for check in self._checks}
        failed = [check for check in self._checks if values[check.name] == check.failure]
        if any(check.critical for check in failed):
            status = "unhealthy"
        else:
            status = "degraded" if failed else "ok"
        return Report(status=status, checks=values)

    def _value(self, check: Check) -> str:
        result = self._results.get(check.name)
        if result is None:
            # never answered so far: what hangs from the start is not well
            return check.failure
        age = self._monotonic() - result[0]
        if check.name in self._running and age > check.fresh_seconds + PROBE_SECONDS:
            return check.failure
        return result[1]

    def _refresh(self, check: Check) -> Deferred[None] | None:
        """Start the probe if its result is old; None when there is nothing to wait for."""
        result = self._results.get(check.name)
        if result is not None and self._monotonic() - result[0] < check.fresh_seconds:
            return None
        if check.name not in self._running:
            probing: Deferred[str] = Deferred.fromCoroutine(_coroutine(check.probe))
            probing.addTimeout(PROBE_SECONDS, self._clock)
            running: Deferred[None] = Deferred()

            def done(value: str | Failure, check: Check = check, running: Deferred[None] = running) -> None:
                known = value if isinstance(value, str) else check.failure
                before = self._results.get(check.name)
                if before is None or before[1] != known:
                    level = self._log.info if known != check.failure else self._log.warn
                    why = f": {value.getErrorMessage()}" if isinstance(value, Failure) and value.check(Unwell) else ""
                    level("health: {check} is {value}{why}", check=check.name, value=known, why=why)
                self._results[check.name] = (self._monotonic(), known)
                self._running.pop(check.name, None)
                running.callback(None)

            self._running[check.name] = running
            probing.addBoth(done)
        return self._running.get(check.name)

    async def _patiently(self, running: list[Deferred[None]]) -> None:
        enough: Deferred[None] = Deferred()
        left = len(running)

        def one(result: None) -> None:
            nonlocal left
            left -= 1
            if left == 0 and not enough.called:
                enough.callback(None)

        for deferred in running:
            deferred.addCallback(one)
        timer = self._clock.callLater(PATIENCE_SECONDS, lambda: None if enough.called else enough.callback(None))
        try:
            await enough
        finally:
            if timer.active():
                timer.cancel()


async def _coroutine(probe: Callable[[], Awaitable[str]]) -> str:
    return await probe()
