"""
Held requests: hosts that wait for the decision of their challenge (design section 3.5).

A wake-up carries an id, never state: who is woken reads the truth. A lost wake-up costs the rest of one hold, at most
:data:`LONGEST_HOLD_SECONDS`, since every hold ends in a read.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from identree.core.challenge import Live

LONGEST_HOLD_SECONDS = 30.0
# When all are woken: so many, then a pause, so that neither the reactor nor the readers of the database are swamped.
WOKEN_AT_ONCE = 250
WAKING_SECONDS = 0.05


class Waiters:
    """
    :param limit: holds at a time; one more is answered at once instead of being held.
    """

    def __init__(self, clock: IReactorTime, limit: int) -> None:
        self._clock = clock
        self.limit = limit
        self._waiting: dict[str, set[Deferred[None]]] = {}
        self._count = 0
        self._closed = False

    def __len__(self) -> int:
        return self._count

    def expect(self, challenge_id: str, seconds: float) -> Deferred[None]:
        """
        Fires when the challenge is decided or the time is over. Ask for it before reading the challenge, so that no
        decision falls between; cancel it when it is not needed.
        """
        waiting: Deferred[None] = Deferred()
        if self._closed or self._count >= self.limit or seconds <= 0:
            waiting.callback(None)
            return waiting
        group = self._waiting.setdefault(challenge_id, set())
        group.add(waiting)
        self._count += 1
        timer = self._clock.callLater(min(seconds, LONGEST_HOLD_SECONDS), self._release, waiting)

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
        if live.event == "challenge_resolved":
            self._wake(self._waiting.get(live.challenge_id))
        elif live.event == "resync":
            self._wake_everybody()

    def close(self) -> None:
        """Answer everybody; nobody is held any more."""
        self._closed = True
        self._wake_everybody()

    def _wake_everybody(self) -> None:
        """A part at a time: each one who is woken reads the database."""
        ids = list(self._waiting)

        def some(start: int = 0) -> None:
            for challenge_id in ids[start : start + WOKEN_AT_ONCE]:
                self._wake(self._waiting.get(challenge_id))
            if start + WOKEN_AT_ONCE < len(ids):
                self._clock.callLater(WAKING_SECONDS, some, start + WOKEN_AT_ONCE)

        some()

    def _wake(self, group: set[Deferred[None]] | None) -> None:
        for waiting in list(group or ()):
            self._release(waiting)

    @staticmethod
    def _release(waiting: Deferred[None]) -> None:
        if not waiting.called:
            waiting.callback(None)
