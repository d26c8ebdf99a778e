"""Held requests."""

from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from identree.app.waiters import ENDED_AT_ONCE, Waiters
from identree.core.challenge import Live

ID = "00112233445566778899aabbccddeeff"
OTHER = "ffeeddccbbaa99887766554433221100"


def resolved(challenge_id: str) -> Live:
    return Live(event="challenge_resolved", username="alice", challenge_id=challenge_id)


class WaitersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.waiters = Waiters(self.clock, limit=3)

    def test_woken_by_its_decision(self) -> None:
        """A decision wakes those who wait for that challenge, and nobody else."""
        mine, other = self.waiters.expect(ID, 25), self.waiters.expect(OTHER, 25)
        self.waiters.heard(resolved(ID))
        self.successResultOf(mine)
        self.assertNoResult(other)
        self.assertEqual(len(self.waiters), 1)

    def test_released_at_its_time(self) -> None:
        """Without a decision the hold ends when its time is over, and leaves no timer."""
        mine = self.waiters.expect(ID, 25)
        self.clock.advance(24.9)
        self.assertNoResult(mine)
        self.clock.advance(0.2)
        self.successResultOf(mine)
        self.assertEqual((len(self.waiters), self.clock.getDelayedCalls()), (0, []))

    def test_no_longer_than_the_longest(self) -> None:
        """Whatever a host asks for, no hold is longer than 30 s."""
        mine = self.waiters.expect(ID, 3600)
        self.clock.advance(30)
        self.successResultOf(mine)

    def test_a_full_house_answers_at_once(self) -> None:
        """Beyond the limit nobody is held; the host polls as before."""
        held = [self.waiters.expect(ID, 25) for _ in range(3)]
        self.successResultOf(self.waiters.expect(ID, 25))
        for waiting in held:
            self.assertNoResult(waiting)

    def test_progress_wakes(self) -> None:
        """One of several approvals is told to the terminal at once; those of other requests are not."""
        mine, other = self.waiters.expect(ID, 25), self.waiters.expect(OTHER, 25)
        self.waiters.heard(Live(event="challenge_updated", username="alice", challenge_id=ID))
        self.successResultOf(mine)
        self.assertNoResult(other)

    def test_resync_wakes_everybody(self) -> None:
        """After a lost connection to other replicas everybody reads again."""
        held = [self.waiters.expect(ID, 25), self.waiters.expect(OTHER, 25)]
        self.waiters.heard(Live(event="resync", username=""))
        for waiting in held:
            self.successResultOf(waiting)

    def test_a_host_that_hangs_up(self) -> None:
        """A cancelled hold leaves no timer and no entry."""
        mine = self.waiters.expect(ID, 25)
        mine.cancel()
        self.failureResultOf(mine, CancelledError)
        self.assertEqual((len(self.waiters), self.clock.getDelayedCalls()), (0, []))

    def test_closing(self) -> None:
        """At shutdown everybody is answered and nobody is held any more."""
        mine = self.waiters.expect(ID, 25)
        self.waiters.close()
        self.successResultOf(mine)
        self.successResultOf(self.waiters.expect(ID, 25))

    def test_waking_a_crowd(self) -> None:
        """All are woken, a part at a time, and no timer stays."""
        waiters = Waiters(self.clock, limit=1000)
        held = [waiters.expect(f"{number:032x}", 25) for number in range(600)]
        waiters.heard(Live(event="resync", username=""))
        self.assertEqual(len(waiters), 600 - ENDED_AT_ONCE)
        self.clock.pump([0.01] * 40)
        for waiting in held:
            self.successResultOf(waiting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_crowd_that_ends_together(self) -> None:
        """However many holds end in the same instant, only so many are released in it; the rest follows."""
        waiters = Waiters(self.clock, limit=1000)
        held = [waiters.expect(f"{number:032x}", 25) for number in range(600)]
        self.clock.advance(30)
        self.assertEqual(len(waiters), 600 - ENDED_AT_ONCE)
        self.clock.pump([0.01] * 40)
        for waiting in held:
            self.successResultOf(waiting)

    def test_a_decision_does_not_queue(self) -> None:
        """While a crowd is being released, a decision releases its host at once."""
        waiters = Waiters(self.clock, limit=1000)
        for number in range(600):
            waiters.expect(f"{number:032x}", 25)
        self.clock.advance(30)
        mine = waiters.expect(ID, 25)
        waiters.heard(resolved(ID))
        self.successResultOf(mine)

    def test_a_crowd_is_spread(self) -> None:
        """Holds that begin together end over a fifth of their time, none later than it was asked for."""
        waiters = Waiters(self.clock, limit=1000)
        for number in range(200):
            waiters.expect(f"{number:032x}", 25)
        self.clock.advance(19.9)
        self.assertEqual(len(waiters), 200)
        self.clock.advance(0.1)
        for left in (160, 120, 80, 40, 0):
            self.clock.pump([0.01] * 100)
            self.assertLessEqual(abs(len(waiters) - left), 2)
