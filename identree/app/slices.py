"""Long work in the reactor's thread, a slice at a time."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from identree.app.ports import Monotonic

T = TypeVar("T")

# Of one turn of the reactor; others get theirs in between. Generators yield every 2 ms, so a turn takes 7 at the most.
SLICE_SECONDS = 0.005


async def sliced(
    work: Generator[None, None, T], clock: IReactorTime, monotonic: Monotonic, seconds: float = SLICE_SECONDS
) -> T:
    """
    What the generator returns, at the end; it is closed when the wait is cancelled.

    :param seconds: that a slice may take before the reactor gets its turn.
    """
    until = monotonic() + seconds
    try:
        while True:
            try:
                next(work)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if monotonic() >= until:
                await deferLater(clock, 0.0)
                until = monotonic() + seconds
    finally:
        work.close()
