"""Health probes: shared, bounded, never waited for long."""

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from identree.app.health import PATIENCE_SECONDS, PROBE_SECONDS, Check, Health, Unwell


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
