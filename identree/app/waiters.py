"""
Held requests: hosts that wait for the decision of their challenge (design section 3.5).

A wake-up carries an id, never state: who is woken reads the truth. A lost wake-up costs the rest of one hold, at most
:data:`LONGEST_HOLD_SECONDS`, since every hold ends in a read.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from identree.core.challenge import Live

LONGEST_HOLD_SECONDS = 30.0
# Hosts that begin to wait together, as after a restart, do not end together: a hold is up to this share shorter than it
# was asked for. Multiples of the golden ratio, modulo 1, spread any number of them evenly.
SPREAD = 0.2
_GOLDEN = 0.6180339887498949
# Everyone whose hold ends without a decision reads the database: so many of them at once, and then so many per second,
# which is half of what the slowest reader does. A decision goes ahead of all of them.
ENDED_AT_ONCE = 16
ENDED_PER_SECOND = 1600.0
_PAUSE_SECONDS = ENDED_AT_ONCE / ENDED_PER_SECOND


class Waiters:
    """
    :param limit: holds at a time; one more is answered at once instead of being held.
    """

    def __init__(self, clock: IReactorTime, limit: int) -> None:
        self._clock = clock
        self.limit = limit
        self._waiting: dict[str, set[Deferred[None]]] = {}
        self._count = 0
        self._begun = 0
        self._closed = False
        # those whose hold is over, as soon as it is their turn
        self._due: deque[Deferred[None]] = deque()
        self._ending: IDelayedCall | None = None
        self._room = float(ENDED_AT_ONCE)
        self._room_at = clock.seconds()

    def __len__(self) -> int:
        return self._count

    def expect(self, challenge_id: str, seconds: float) -> Deferred[None]:
        """
        Fires when the challenge is decided, when another approval of it comes or goes, or when the time is over. Ask
        for it before reading the challenge, so that no decision falls between; cancel it when it is not needed.
        """
        waiting: Deferred[None] = Deferred()
        if self._closed or self._count >= self.limit or seconds <= 0:
            waiting.callback(None)
            return waiting
        group = self._waiting.setdefault(challenge_id, set())
        group.add(waiting)
        self._count += 1
        early = SPREAD * (self._begun * _GOLDEN % 1.0)
        self._begun += 1
        timer = self._clock.callLater(min(seconds, LONGEST_HOLD_SECONDS) * (1.0 - early), self._end, waiting)

        def over(result: Failure | None) -> Failure | None:
            self._count -= 1
            if timer.active():
                timer.cancel()
            group.discard(waiting)
            if not group and self._waiting.get(challenge_id) is group:
                del self._waiting[challenge_id]
            return result

        waiting.addBoth(over)
        return waiting

    def heard(self, live: Live) -> None:
        """A listener for the store's wake-ups."""
        if live.event in ("challenge_resolved", "challenge_updated"):
            for waiting in list(self._waiting.get(live.challenge_id, ())):
                self._release(waiting)
        elif live.event == "resync":
            self._wake_everybody()

    def close(self) -> None:
        """Answer everybody; nobody is held any more."""
        self._closed = True
        self._wake_everybody()

    def _wake_everybody(self) -> None:
        for group in list(self._waiting.values()):
            for waiting in list(group):
                self._end(waiting)

    def _end(self, waiting: Deferred[None]) -> None:
        """Release it when it is its turn: at once, unless very many end together."""
        if not self._due and self._has_room():
            self._release(waiting)
            return
        self._due.append(waiting)
        if self._ending is None:
            self._ending = self._clock.callLater(_PAUSE_SECONDS, self._end_some)

    def _end_some(self) -> None:
        self._ending = None
        due = self._due
        while due:
            # it may have been decided, or have hung up, meanwhile
            if not due[0].called and not self._has_room():
                self._ending = self._clock.callLater(_PAUSE_SECONDS, self._end_some)
                return
            self._release(due.popleft())

    def _has_room(self) -> bool:
        """A token bucket."""
        now = self._clock.seconds()
        passed = max(0.0, now - self._room_at)  # a wall clock may be put back
        self._room_at = now
        self._room = min(float(ENDED_AT_ONCE), self._room + passed * ENDED_PER_SECOND)
        if self._room < 1.0:
            return False
        self._room -= 1.0
        return True

    @staticmethod
    def _release(waiting: Deferred[None]) -> None:
        if not waiting.called:
            waiting.callback(None)
