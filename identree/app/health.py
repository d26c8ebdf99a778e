"""
The state of everything that identree depends on (spec/audit-and-metrics section 12).

Probes run in the background and are shared. An answer never waits longer than :data:`PATIENCE_SECONDS` for them, so
that the health of identree can be asked while everything behind it hangs: while a probe is under way the result before
stands, and the probe's own limit decides when it is over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from identree.app.ports import Monotonic
from identree.core.requests import current

T = TypeVar("T")

PROBE_SECONDS = 2.0
PATIENCE_SECONDS = 0.02
# How often what is no longer fresh is looked at although nobody asks (:meth:`Health.look`).
LOOK_SECONDS = 5.0
# The start waits this long for the first results, of the second and a half that it may take in all.
PRIME_SECONDS = 0.5

# The order of the report (section 12); what is not listed comes after it, in the order in which it was given.
ORDER = ("disk", "ldap_sync", "pocketid", "oidc", "ldap_server", "database", "mtls_certs")


class Unwell(Exception):
    """Raised by a probe that can say why: the reason stands in the log, the report has only the check's ``failure``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """
    :ivar probe: resolves to the value to report; raising or taking too long gives ``failure``.
    :ivar critical: whether ``failure`` makes the whole unhealthy (503) rather than degraded.
    :ivar fresh_seconds: how long a result is reused; 0: it is asked for with every report.
    """

    name: str
    probe: Callable[[], Awaitable[str]]
    failure: str
    critical: bool
    fresh_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """
    :ivar status: ``ok``, ``degraded`` or ``unhealthy``.
    :ivar broken: the names of the critical checks that fail.
    """

    status: str
    checks: dict[str, str]
    broken: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        return self.status != "unhealthy"


class InThread(Protocol):
    """Runs a function in a thread."""

    def __call__(self, function: Callable[[], T]) -> Awaitable[T]: ...


class OneAtATime:
    """
    Calls in a thread, never two at once: a disk that hangs keeps one thread and not one more with every look, until
    none is left for anybody.

    :param in_thread: runs a function in a thread.
    """

    def __init__(self, in_thread: InThread) -> None:
        self._in_thread = in_thread
        self._busy = False

    async def __call__(self, function: Callable[[], T]) -> T:
        """:raise Unwell: the call before has not come back."""
        if self._busy:
            raise Unwell("the look before has not come back yet")
        self._busy = True

        def call() -> T:
            try:
                return function()
            finally:
                # here and not where the result is awaited: who gives up waiting does not end the thread
                self._busy = False

        return await self._in_thread(call)


def audit_check(lagging: Callable[[], Sequence[str]]) -> Check:
    """
    The check ``audit``, which never changes the status: ``ok``, or ``lagging: SINK SINK``.

    :param lagging: the names of the network sinks that are behind.
    """

    async def look() -> str:
        behind = lagging()
        return f"lagging: {' '.join(behind)}" if behind else "ok"

    return Check(name="audit", probe=look, failure="unknown", critical=False, fresh_seconds=0)


class Health:
    """
    :param checks: the report has them in the order of the contract.
    :param observe: told of each probe how many seconds it took.
    """

    _log = Logger()

    def __init__(
        self,
        checks: Sequence[Check],
        clock: IReactorTime,
        monotonic: Monotonic,
        observe: Callable[[str, float], None] = lambda check, seconds: None,
    ) -> None:
        last = len(ORDER)
        self._checks = sorted(checks, key=lambda check: ORDER.index(check.name) if check.name in ORDER else last)
        self._clock = clock
        self._monotonic = monotonic
        self._observe = observe
        self._results: dict[str, tuple[float, str]] = {}
        self._running: dict[str, Deferred[None]] = {}
        self._priming = False

    async def prime(self, seconds: float = PRIME_SECONDS) -> None:
        """
        Get the first results before anybody asks.

        :param seconds: the wait for probes that take longer, which go on.
        """
        self._priming = True
        try:
            await self._patiently(self._refreshed(), seconds)
        finally:
            self._priming = False

    async def look(self) -> None:
        """
        Look at what is no longer fresh. Done every LOOK_SECONDS, it keeps what is known recent enough to stand while
        the next probe runs, however seldom somebody asks.
        """
        self._refreshed()

    async def report(self) -> Report:
        started = self._refreshed()
        if started:
            await self._patiently(started, PATIENCE_SECONDS)
        values = {check.name: self._value(check) for check in self._checks}
        failed = [check for check in self._checks if values[check.name] == check.failure]
        broken = tuple(check.name for check in failed if check.critical)
        if broken:
            status = "unhealthy"
        else:
            status = "degraded" if failed else "ok"
        return Report(status=status, checks=values, broken=broken)

    def _value(self, check: Check) -> str:
        result = self._results.get(check.name)
        if result is None:
            # never answered so far: what hangs from the start is not well
            return check.failure
        age = self._monotonic() - result[0]
        if check.name in self._running and age > check.fresh_seconds + LOOK_SECONDS + PROBE_SECONDS:
            return check.failure
        return result[1]

    def _refreshed(self) -> list[Deferred[None]]:
        """The probes that are under way, those included that begin now."""
        return [running for check in self._checks if (running := self._refresh(check)) is not None]

    def _refresh(self, check: Check) -> Deferred[None] | None:
        """Start the probe if its result is old; None when there is nothing to wait for."""
        began = self._monotonic()
        result = self._results.get(check.name)
        if result is not None and began - result[0] < check.fresh_seconds:
            return None
        if check.name not in self._running:
            # a probe is everybody's, and its log lines belong to no request
            asked_by = current.set("")
            try:
                probing: Deferred[str] = Deferred.fromCoroutine(_coroutine(check.probe))
            finally:
                current.reset(asked_by)
            probing.addTimeout(PROBE_SECONDS, self._clock)
            running: Deferred[None] = Deferred()
            # before the server listens, what is asked with every report tells nothing by failing
            early = self._priming and not check.fresh_seconds

            def done(value: str | Failure) -> None:
                self._observe(check.name, self._monotonic() - began)
                known = value if isinstance(value, str) else check.failure
                if known != check.failure or not early:
                    self._learn(check, known, value)
                self._running.pop(check.name, None)
                running.callback(None)

            self._running[check.name] = running
            probing.addBoth(done)
        return self._running.get(check.name)

    def _learn(self, check: Check, known: str, value: str | Failure) -> None:
        before = self._results.get(check.name)
        if before is None or before[1] != known:
            level = self._log.info if known != check.failure else self._log.warn
            why = f": {value.getErrorMessage()}" if isinstance(value, Failure) and value.check(Unwell) else ""
            level("health: {check} is {value}{why}", check=check.name, value=known, why=why)
        self._results[check.name] = (self._monotonic(), known)

    async def _patiently(self, running: list[Deferred[None]], seconds: float) -> None:
        enough: Deferred[None] = Deferred()
        left = len(running)
        if not left:
            return

        def one(result: None) -> None:
            nonlocal left
            left -= 1
            if left == 0 and not enough.called:
                enough.callback(None)

        for deferred in running:
            deferred.addCallback(one)
        timer = self._clock.callLater(seconds, lambda: None if enough.called else enough.callback(None))
        try:
            await enough
        finally:
            if timer.active():
                timer.cancel()


async def _coroutine(probe: Callable[[], Awaitable[str]]) -> str:
    return await probe()
