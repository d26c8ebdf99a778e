"""Steps of the wall clock, which an administrator or NTP makes."""

from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import SynchronousTestCase

from identree.service import steady_timers


class SteadyTimersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.time = 1000.0
        self.reactor = SelectReactor()
        self.addCleanup(self.reactor.removeAll)
        self.fired: list[str] = []

    def test_monotonic(self) -> None:
        """Timers follow the monotonic clock, whatever the wall clock says."""
        steady_timers(self.reactor, lambda: self.time)
        self.reactor.callLater(10, self.fired.append, "timer")
        self.time += 9
        self.reactor.runUntilCurrent()
        self.assertEqual(self.fired, [])
        self.time += 1
        self.reactor.runUntilCurrent()
        self.assertEqual(self.fired, ["timer"])

    def test_too_late(self) -> None:
        """A reactor that has timers already is left as it is: they would never fire."""
        self.addCleanup(self.reactor.callLater(10, self.fired.append, "timer").cancel)
        before = self.reactor.seconds
        steady_timers(self.reactor, lambda: self.time)
        self.assertEqual(self.reactor.seconds, before)
