"""Health probes: shared, bounded, never waited for long."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from identree.app.health import (
    LOOK_SECONDS,
    PATIENCE_SECONDS,
    PRIME_SECONDS,
    PROBE_SECONDS,
    Check,
    Health,
    OneAtATime,
    Unwell,
    audit_check,
)
from identree.core.requests import current

T = TypeVar("T")


async def well() -> str:
    return "ok"


def check(name: str, probe: Callable[[], Awaitable[str]], critical: bool = True, fresh: float = 30) -> Check:
    return Check(name=name, probe=probe, failure="broken", critical=critical, fresh_seconds=fresh)


class HealthTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def health(self, *checks: Check) -> Health:
        return Health(list(checks), self.clock, self.clock.seconds)

    def test_all_well(self) -> None:
        """Every check ok: the whole is ok, in the order of the checks."""
        health = self.health(check("disk", lambda: succeed("ok")), check("oidc", lambda: succeed("ok"), False))
        report = self.successResultOf(Deferred.fromCoroutine(health.report()))
        self.assertEqual((report.status, report.checks), ("ok", {"disk": "ok", "oidc": "ok"}))

    def test_degraded(self) -> None:
        """A failure that is not critical degrades, and is still healthy."""
        health = self.health(
            check("disk", lambda: succeed("ok")), check("oidc", lambda: fail(OSError("no route")), False)
        )
        report = self.successResultOf(Deferred.fromCoroutine(health.report()))
        self.assertEqual((report.status, report.healthy, report.checks["oidc"]), ("degraded", True, "broken"))
        self.flushLoggedErrors()

    def test_unhealthy(self) -> None:
        """A critical failure is unhealthy."""
        health = self.health(check("database", lambda: fail(OSError("locked"))))
        report = self.successResultOf(Deferred.fromCoroutine(health.report()))
        self.assertEqual((report.status, report.healthy), ("unhealthy", False))

    def test_reason(self) -> None:
        """What a probe knows about the failure stands in the log, once, and not in the report."""
        lines: list[str] = []
        health = self.health(check("disk", lambda: fail(Unwell("/config cannot be written")), fresh=0))
        health._log = Logger(observer=lambda event: lines.append(formatEvent(event)))
        for _ in range(2):
            report = self.successResultOf(Deferred.fromCoroutine(health.report()))
            self.assertEqual(report.checks, {"disk": "broken"})
        self.assertEqual(lines, ["health: disk is broken: /config cannot be written"])

    def test_a_hanging_probe_is_not_waited_for(self) -> None:
        """The answer comes after the patience is over, with the hanging check failed."""
        health = self.health(check("disk", lambda: succeed("ok")), check("oidc", lambda: Deferred(), False))
        asked = Deferred.fromCoroutine(health.report())
        self.assertNoResult(asked)
        self.clock.advance(PATIENCE_SECONDS)
        report = self.successResultOf(asked)
        self.assertEqual(report.checks, {"disk": "ok", "oidc": "broken"})
        self.clock.advance(PROBE_SECONDS)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_probes_are_shared_and_cached(self) -> None:
        """Questions that come together cause one probe; a fresh result causes none."""
        pending: list[Deferred[str]] = []

        def probe() -> Deferred[str]:
            pending.append(Deferred())
            return pending[-1]

        health = self.health(check("oidc", probe, False))
        asked = [Deferred.fromCoroutine(health.report()) for _ in range(3)]
        self.assertEqual(len(pending), 1)
        pending[0].callback("ok")
        for one in asked:
            self.assertEqual(self.successResultOf(one).status, "ok")
        self.clock.advance(29)
        self.successResultOf(Deferred.fromCoroutine(health.report()))
        self.assertEqual(len(pending), 1)
        self.clock.advance(2)
        self.assertNoResult(Deferred.fromCoroutine(health.report()))
        self.assertEqual(len(pending), 2)
        pending[1].callback("ok")

    def test_the_order_of_the_contract(self) -> None:
        """Known keys in the order of the contract, however they were given, and others after them."""
        names = ("audit", "mtls_certs", "database", "ldap_server", "disk", "oidc", "ldap_sync", "pocketid", "another")
        health = self.health(*(check(name, lambda: succeed("ok")) for name in names))
        report = self.successResultOf(Deferred.fromCoroutine(health.report()))
        self.assertEqual(
            list(report.checks),
            ["disk", "ldap_sync", "pocketid", "oidc", "ldap_server", "database", "mtls_certs", "audit", "another"],
        )

    def test_what_is_broken(self) -> None:
        """The report names the critical checks that fail, and only those."""
        health = self.health(
            check("disk", lambda: fail(OSError())), check("oidc", lambda: fail(OSError()), False), check("x", well)
        )
        report = self.successResultOf(Deferred.fromCoroutine(health.report()))
        self.assertEqual(report.broken, ("disk",))

    def test_durations(self) -> None:
        """Each probe is timed, also one that does not come back."""
        seen: list[tuple[str, float]] = []
        health = Health(
            [check("disk", well), check("oidc", lambda: Deferred())],
            self.clock,
            self.clock.seconds,
            lambda name, seconds: seen.append((name, seconds)),
        )
        asked = Deferred.fromCoroutine(health.report())
        self.clock.advance(PROBE_SECONDS)
        self.successResultOf(asked)
        self.assertEqual(seen, [("disk", 0.0), ("oidc", PROBE_SECONDS)])

    def test_a_probe_belongs_to_nobody(self) -> None:
        """What a shared probe writes into the log has not the id of the request that began it."""
        ids: list[str] = []

        async def probe() -> str:
            ids.append(current.get())
            return "ok"

        before = current.set("0123456789abcdef")
        try:
            self.successResultOf(Deferred.fromCoroutine(self.health(check("disk", probe)).report()))
            self.assertEqual((ids, current.get()), ([""], "0123456789abcdef"))
        finally:
            current.reset(before)


class StandingTests(SynchronousTestCase):
    """What is known stands while somebody looks again."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.pending: list[Deferred[str]] = []

    def health(self, fresh: float) -> Health:
        def probe() -> Deferred[str]:
            self.pending.append(Deferred())
            return self.pending[-1]

        return Health([check("database", probe, fresh=fresh)], self.clock, self.clock.seconds)

    def asked(self, health: Health) -> str:
        """The value that is told, patience included."""
        asking = Deferred.fromCoroutine(health.report())
        self.clock.advance(PATIENCE_SECONDS)
        return self.successResultOf(asking).checks["database"]

    def test_slow_is_not_ill(self) -> None:
        """A probe that takes longer than an answer may wait does not make a healthy server ill."""
        health = self.health(fresh=0)
        self.asked(health)
        self.pending.pop().callback("ok")
        for _ in range(5):
            self.assertEqual(self.asked(health), "ok")
            self.clock.advance(0.2)
            self.pending.pop().callback("ok")
            self.clock.advance(1)

    def test_until_its_time_is_over(self) -> None:
        """The end of the probe's own time is the end of what was known."""
        health = self.health(fresh=0)
        self.asked(health)
        self.pending.pop().callback("ok")
        self.assertEqual(self.asked(health), "ok")
        self.clock.advance(PROBE_SECONDS)
        self.assertEqual(self.asked(health), "broken")

    def test_too_old(self) -> None:
        """What nobody has looked at for long tells nothing any more."""
        health = self.health(fresh=30)
        self.asked(health)
        self.pending.pop().callback("ok")
        self.clock.advance(30 + LOOK_SECONDS + PROBE_SECONDS + 1)
        self.assertEqual(self.asked(health), "broken")

    def test_looking(self) -> None:
        """Looking now and then keeps what is known recent, however seldom somebody asks."""
        health = self.health(fresh=30)
        self.asked(health)
        self.pending.pop().callback("ok")
        for _ in range(100):
            self.clock.advance(LOOK_SECONDS)
            self.successResultOf(Deferred.fromCoroutine(health.look()))
            if self.pending:
                self.clock.advance(0.5)
                self.pending.pop().callback("ok")
            self.assertEqual(self.asked(health), "ok")

    def test_recovery(self) -> None:
        """An answer after failures counts at once."""
        health = self.health(fresh=0)
        self.asked(health)
        self.clock.advance(PROBE_SECONDS)
        self.assertEqual(self.asked(health), "broken")
        asking = Deferred.fromCoroutine(health.report())
        self.pending.pop().callback("ok")
        self.assertEqual(self.successResultOf(asking).checks["database"], "ok")


class PrimingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.lines: list[str] = []

    def health(self, *checks: Check) -> Health:
        health = Health(checks, self.clock, self.clock.seconds)
        health._log = Logger(observer=lambda event: self.lines.append(formatEvent(event)))
        return health

    def test_first_answer(self) -> None:
        """After priming the first answer is right, also when a probe takes longer than an answer may wait."""
        slow: Deferred[str] = Deferred()
        health = self.health(check("oidc", lambda: slow, False))
        priming = Deferred.fromCoroutine(health.prime())
        self.clock.advance(0.2)
        self.assertNoResult(priming)
        slow.callback("ok")
        self.successResultOf(priming)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(health.report())).status, "ok")

    def test_bounded(self) -> None:
        """What hangs does not keep the server from starting."""
        health = self.health(check("oidc", lambda: Deferred(), False), check("disk", well))
        priming = Deferred.fromCoroutine(health.prime())
        self.clock.advance(PRIME_SECONDS)
        self.successResultOf(priming)
        self.clock.advance(PROBE_SECONDS)

    def test_too_early(self) -> None:
        """What cannot be well before the server listens is neither remembered nor said."""
        values = iter(["broken", "ok"])

        async def listening() -> str:
            return next(values)

        health = self.health(check("ldap_server", listening, fresh=0))
        self.successResultOf(Deferred.fromCoroutine(health.prime()))
        self.assertEqual(self.lines, [])
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(health.report())).status, "ok")

    def test_nothing(self) -> None:
        """No checks, no wait."""
        self.successResultOf(Deferred.fromCoroutine(self.health().prime()))


class OneAtATimeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.begun: list[Callable[[], object]] = []
        self.threads = OneAtATime(self.in_thread)

    def in_thread(self, function: Callable[[], T]) -> Deferred[T]:
        self.begun.append(function)
        return Deferred()

    def test_hanging(self) -> None:
        """While one call is in its thread no other begins, even if nobody waits for the first any more."""
        first = Deferred.fromCoroutine(self.threads(lambda: 1))
        first.cancel()
        self.failureResultOf(first)
        self.failureResultOf(Deferred.fromCoroutine(self.threads(lambda: 2)), Unwell)
        self.assertEqual(len(self.begun), 1)

    def test_back(self) -> None:
        """When the thread is free again, the next one may go; also after a failure."""

        def broken() -> int:
            raise OSError

        for function in (lambda: 1, broken, lambda: 1):
            call = Deferred.fromCoroutine(self.threads(function))
            self.assertNoResult(call)
            with contextlib.suppress(OSError):
                self.begun.pop()()


class AuditCheckTests(SynchronousTestCase):
    def test_lagging(self) -> None:
        """Sinks that are behind are named; the status stays as it is."""
        behind = ["syslog", "loki"]
        clock = Clock()
        health = Health([audit_check(lambda: behind)], clock, clock.seconds)
        report = self.successResultOf(Deferred.fromCoroutine(health.report()))
        self.assertEqual((report.status, report.checks), ("ok", {"audit": "lagging: syslog loki"}))
        behind.clear()
        report = self.successResultOf(Deferred.fromCoroutine(health.report()))
        self.assertEqual((report.status, report.checks), ("ok", {"audit": "ok"}))
