"""Windows and back-off on an injected monotonic clock."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core.limits import FailureThrottle, SlidingWindow


class SlidingWindowTests(SynchronousTestCase):
    def test_limit(self) -> None:
        """The limit is reached by that many occasions, per key."""
        window = SlidingWindow(2, 60)
        window.record("a", 0)
        self.assertTrue(window.allowed("a", 0))
        window.record("a", 1)
        self.assertFalse(window.allowed("a", 1))
        self.assertTrue(window.allowed("b", 1))

    def test_slides(self) -> None:
        """It is open again when the oldest occasion is a window old, and says when that is."""
        window = SlidingWindow(2, 60)
        window.record("a", 0)
        window.record("a", 30)
        self.assertEqual(window.retry_after("a", 30.5), 30)
        self.assertFalse(window.allowed("a", 59.9))
        self.assertTrue(window.allowed("a", 60))

    @given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 30)), max_size=60))
    def test_model(self, steps: list[tuple[str, float]]) -> None:
        """Among accepted occasions no more than the limit lie within a window; a refused one had that many before."""
        window, now = SlidingWindow(3, 60), 0.0
        accepted: dict[str, list[float]] = {"a": [], "b": []}
        for key, pause in steps:
            now += pause
            recent = [t for t in accepted[key] if t + 60 > now]
            self.assertEqual(window.allowed(key, now), len(recent) < 3)
            if window.allowed(key, now):
                window.record(key, now)
                accepted[key].append(now)

    def test_memory(self) -> None:
        """However many keys strangers use, no more are kept, and old ones are forgotten by themselves."""
        window = SlidingWindow(2, 60, max_keys=100)
        for n in range(1000):
            window.record(str(n), 0)
        self.assertEqual(len(window), 100)
        window.record("late", 60)
        self.assertEqual(len(window), 1)


class FailureThrottleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.throttle = FailureThrottle()

    def fails(self, times: int, now: float, address: str = "a") -> None:
        for _ in range(times):
            self.throttle.failed(address, now)

    def test_ten(self) -> None:
        """Nine failures do nothing, the tenth blocks for a minute."""
        self.fails(9, 0)
        self.assertEqual(self.throttle.retry_after("a", 0), 0)
        self.fails(1, 59)
        self.assertEqual(self.throttle.retry_after("a", 59), 60)
        self.assertEqual(self.throttle.retry_after("a", 119), 0)

    def test_window(self) -> None:
        """Ten failures over more than a minute do nothing."""
        self.fails(5, 0)
        self.fails(4, 30)
        self.fails(1, 60)
        self.assertEqual(self.throttle.retry_after("a", 60), 0)

    def test_doubles(self) -> None:
        """Each further block is twice as long, at most a quarter of an hour."""
        now, lengths = 0.0, []
        for _ in range(7):
            self.fails(10, now)
            lengths.append(self.throttle.retry_after("a", now))
            now += lengths[-1]
        self.assertEqual(lengths, [60, 120, 240, 480, 900, 900, 900])

    def test_forgets(self) -> None:
        """After a quiet quarter of an hour it begins with a minute again."""
        self.fails(10, 0)
        self.fails(10, 60 + 900)
        self.assertEqual(self.throttle.retry_after("a", 960), 60)

    def test_remembers(self) -> None:
        """Just before that it does not, also when other addresses fail meanwhile."""
        self.fails(10, 0)
        self.fails(1, 500, "b")
        self.fails(10, 60 + 899)
        self.assertEqual(self.throttle.retry_after("a", 959), 120)

    def test_others(self) -> None:
        """Another address is not concerned."""
        self.fails(10, 0)
        self.assertEqual(self.throttle.retry_after("b", 0), 0)

    def test_blocked_failures(self) -> None:
        """What arrives during a block does not lengthen it."""
        self.fails(100, 0)
        self.assertEqual(self.throttle.retry_after("a", 0), 60)

    def test_memory(self) -> None:
        """However many addresses fail, no more are kept, and harmless ones are forgotten by themselves."""
        throttle = FailureThrottle(max_keys=100)
        for n in range(1000):
            throttle.failed(str(n), 0)
        self.assertEqual(len(throttle), 100)
        throttle.failed("late", 60)
        self.assertEqual(len(throttle), 1)
