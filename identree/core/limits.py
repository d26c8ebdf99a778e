"""
Rate limits in memory, bounded whatever strangers send. ``now`` is seconds on a monotonic clock, never the wall clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

# Addresses, people or whatever else is counted: at most this many at a time, about 200 bytes each.
MAX_KEYS = 50_000


class SlidingWindow:
    """
    At most ``limit`` occasions per key in any ``seconds``.

    Keys without an occasion in the window are forgotten. Beyond ``max_keys`` the key whose last occasion is oldest is
    forgotten too: a stranger with that many addresses gains new tries, but never memory, and never locks out others.
    """

    def __init__(self, limit: int, seconds: float, max_keys: int = MAX_KEYS) -> None:
        self._limit, self._seconds, self._max_keys = limit, seconds, max_keys
        # by last occasion, oldest first
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def _forget(self, now: float) -> None:
        while self._times:
            key, times = next(iter(self._times.items()))
            if times[-1] + self._seconds > now:
                return
            del self._times[key]

    def allowed(self, key: str, now: float) -> bool:
        """Whether another occasion would keep the limit; records nothing."""
        return self.retry_after(key, now) == 0

    def record(self, key: str, now: float) -> None:
        """An occasion happened, within the limit or not."""
        self._forget(now)
        times = self._times.get(key)
        if times is None:
            times = self._times[key] = deque(maxlen=self._limit)
        times.append(now)
        self._times.move_to_end(key)
        if len(self._times) > self._max_keys:
            self._times.popitem(last=False)

    def retry_after(self, key: str, now: float) -> int:
        """Whole seconds until :meth:`allowed` again, rounded up; 0 when it is now."""
        times = self._times.get(key)
        if times is None or len(times) < self._limit:
            return 0
        # with as many entries as the limit, the oldest one decides
        return max(0, math.ceil(times[0] + self._seconds - now))


@dataclass(slots=True)
class _Offender:
    times: deque[float] = field(default_factory=deque)
    blocks: int = 0
    blocked_until: float = -math.inf


class FailureThrottle:
    """
    Back-off for failed authentication, per address (spec/http-api section 6, with back-off added).

    * The tenth failure within 60 s blocks the address for 60 s from that failure; the count starts anew then.
    * Each further block of the same address lasts twice as long as the one before: 60, 120, 240, 480, then 900 s.
    * The doubling is forgotten when 900 s have passed since the end of the last block without another one.
    * Failures while blocked are not counted: they were not tried.
    * A success changes nothing, for anybody: one who knows a good secret must not clear the way for his neighbour.

    Beyond ``max_keys`` addresses the one that failed least recently is forgotten.
    """

    def __init__(
        self,
        limit: int = 10,
        seconds: float = 60,
        longest: float = 900,
        max_keys: int = MAX_KEYS,
    ) -> None:
        self._limit, self._seconds, self._longest, self._max_keys = limit, seconds, longest, max_keys
        # by last failure, oldest first
        self._offenders: OrderedDict[str, _Offender] = OrderedDict()

    def __len__(self) -> int:
        return len(self._offenders)

    def retry_after(self, address: str, now: float) -> int:
        """Whole seconds for which the address is still blocked, rounded up; 0: not blocked."""
        offender = self._offenders.get(address)
        if offender is None or offender.blocked_until <= now:
            return 0
        return math.ceil(offender.blocked_until - now)

    def failed(self, address: str, now: float) -> None:
        """A credential from this address was wrong."""
        self._forget(now)
        offender = self._offenders.get(address)
        if offender is None:
            offender = self._offenders[address] = _Offender()
            if len(self._offenders) > self._max_keys:
                self._offenders.popitem(last=False)
        if offender.blocked_until > now:
            return
        self._offenders.move_to_end(address)
        if offender.blocks and offender.blocked_until + self._longest <= now:
            offender.blocks = 0
        times = offender.times
        times.append(now)
        while times[0] + self._seconds <= now:
            times.popleft()
        if len(times) >= self._limit:
            # the exponent is bounded so that the float is
            length = min(self._seconds * 2.0 ** min(offender.blocks, 30), self._longest)
            offender.blocked_until = now + length
            offender.blocks += 1
            times.clear()

    def _forget(self, now: float) -> None:
        """Drop what no longer has an effect, from the front; an entry is in its place by its last failure."""
        while self._offenders:
            address, offender = next(iter(self._offenders.items()))
            quiet = not offender.times or offender.times[-1] + self._seconds <= now
            if not quiet or offender.blocked_until + self._longest > now:
                return
            del self._offenders[address]
