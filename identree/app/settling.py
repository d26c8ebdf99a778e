"""Waiting for the first directory before anybody is let in."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

# What opens the listeners waits this long for the first directory, if none was kept.
FIRST_SECONDS = 20.0


class Settling:
    """Those who wait until it is known what there is to serve, or that there is nothing yet."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: list[Deferred[None]] = []
        self._is_settled = False

    async def wait(self) -> None:
        """Returns at the latest after :data:`FIRST_SECONDS`."""
        if self._is_settled:
            return
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        timer = self._clock.callLater(FIRST_SECONDS, fire, waiting)
        try:
            await waiting
        finally:
            if timer.active():
                timer.cancel()

    def settle(self) -> None:
        """Nobody has to wait from now on."""
        self._is_settled = True
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            fire(waiter)


def fire(waiting: Deferred[None]) -> None:
    """Let it go on, unless it did."""
    if not waiting.called:
        waiting.callback(None)
