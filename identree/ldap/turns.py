"""Sharing the reactor among connections that have much to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from identree.app.ports import Monotonic

# In one go, before whatever else the reactor has to do gets its chance: so long, and the turn that was begun before it
# was over. One slice of a search takes 2 ms, so small searches of others wait for one slice, not for several.
GO_SECONDS = 0.001
# Turns in one go, should the clock stand still.
GO_TURNS = 256


class Turns:
    """
    Work in small pieces, in the order in which it was asked for. Who has more to do asks again and comes after the
    others, so that a hundred searches over everything delay a small one by one go, not by a hundred pieces.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, monotonic: Monotonic) -> None:
        self._clock, self._monotonic = clock, monotonic
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, turn: Callable[[], None]) -> None:
        self._waiting.append(turn)
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._go)

    def _go(self) -> None:
        until = self._monotonic() + GO_SECONDS
        for _ in range(GO_TURNS):
            if not self._waiting:
                break
            turn = self._waiting.popleft()
            try:
                turn()
            except Exception:
                self._log.failure("a turn failed")
            if self._monotonic() >= until:
                break
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            self._clock.callLater(0, self._go)
