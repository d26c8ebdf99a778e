"""Long work in slices."""

from collections.abc import Generator

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from identree.app.slices import sliced
from tests.app.directoryworld import started


class SlicedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.time = 0.0
        self.steps = 0
        self.closed = False

    def work(self, steps: int, seconds: float) -> Generator[None, None, str]:
        try:
            for _ in range(steps):
                self.time += seconds
                self.steps += 1
                yield
            return "done"
        finally:
            self.closed = True

    def test_short(self) -> None:
        """What fits into a slice is done at once."""
        self.assertEqual(
            self.successResultOf(started(sliced(self.work(3, 0.001), self.clock, lambda: self.time))), "done"
        )

    def test_long(self) -> None:
        """The reactor gets its turn after each slice."""
        turns: list[int] = []

        def turn() -> None:
            turns.append(self.steps)
            if self.steps < 12:
                self.clock.callLater(0, turn)

        working = started(sliced(self.work(12, 0.002), self.clock, lambda: self.time))
        self.assertNoResult(working)
        self.clock.callLater(0, turn)
        self.clock.advance(0)
        self.assertEqual(sorted(set(turns)), [6, 9, 12])
        self.assertEqual(self.successResultOf(working), "done")

    def test_cancelled(self) -> None:
        """Who does not wait any more ends the work."""
        working = started(sliced(self.work(100, 0.01), self.clock, lambda: self.time))
        working.addErrback(lambda failure: None)
        working.cancel()
        self.clock.advance(0)
        self.assertEqual((self.steps, self.closed), (1, True))

    def test_failed(self) -> None:
        """What the work raises comes out."""

        def broken() -> Generator[None, None, None]:
            yield
            raise ValueError

        self.failureResultOf(started(sliced(broken(), self.clock, lambda: self.time)), ValueError)
