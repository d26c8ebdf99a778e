"""
Audit records of what others cause by being refused: wrong credentials, refused approvals, failed binds
(spec/audit-and-metrics section 15.7).

Strangers decide how many of these there are. So they are bounded: a flood of them must neither fill the audit log, nor
push out of the database what a sink has not yet got, nor hold up the requests of others. What is over is counted, and
the number is told with the next record of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from identree.app.ports import Monotonic, Now
from identree.core.addresses import throttle_key
from identree.core.audit import timestamp
from identree.core.events import Event
from identree.core.limits import SlidingWindow

# Records of one kind from one address in WINDOW_SECONDS. As many wrong credentials as block an address.
FROM_ONE_ADDRESS = 10
# Records of one kind from all addresses together in WINDOW_SECONDS: 86,400 a day, where the database keeps a million.
FROM_ALL = 60
WINDOW_SECONDS = 60
# Addresses that are counted at a time, for all kinds together; about 500 bytes each.
MOST_ADDRESSES = 10_000
# Records on their way into the database. More only wait there when it is slow, which is no time to give it more work.
MOST_OUTSTANDING = 32
# What was counted is told after this, also when nothing of its kind follows.
QUIET = timedelta(seconds=WINDOW_SECONDS)
# Of each column, in characters: a stranger's texts; the longest that is meant is a host name.
COLUMN_CHARACTERS = 256


class Records(Protocol):
    """Where the events go (``identree.storage.interface.Store``)."""

    async def record(self, events: Sequence[Event]) -> None:
        """:raise StorageUnavailable: they are not recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surplus:
    """
    Events that got no record of their own.

    :ivar since: when the first of them happened. :ivar began: the same on the monotonic clock, in seconds.
    """

    count: int
    since: datetime
    began: float

    def __str__(self) -> str:
        return f"{self.count} more of this kind since {timestamp(self.since)}"


class Trail:
    """
    Records an event without the caller waiting for it or hearing of its failure.

    :param monotonic: seconds; the limits are kept by it.
    """

    _log = Logger()

    def __init__(self, *, store: Records, now: Now, monotonic: Monotonic) -> None:
        self._store = store
        self._now = now
        self._monotonic = monotonic
        self._by_address = SlidingWindow(FROM_ONE_ADDRESS, WINDOW_SECONDS, MOST_ADDRESSES)
        self._in_all = SlidingWindow(FROM_ALL, WINDOW_SECONDS)
        # one per kind of event at most
        self._surplus: dict[type[Event], _Surplus] = {}
        self._outstanding = 0
        self._failing = False

    def note(
        self,
        kind: type[Event],
        *,
        reason: str,
        remote_addr: str,
        username: str = "",
        hostname: str = "",
        code: str = "",
        actor: str = "",
    ) -> None:
        """
        It happened just now. Never raises; texts are cut at :data:`COLUMN_CHARACTERS`.

        :param reason: what was wrong, without anything secret.
        :param remote_addr: the source, which is also what is counted by.
        """
        monotonic, now = self._monotonic(), self._now()
        address = f"{kind.kind} {throttle_key(remote_addr)}"
        if (
            self._outstanding >= MOST_OUTSTANDING
            or not self._in_all.allowed(kind.kind, monotonic)
            or not self._by_address.allowed(address, monotonic)
        ):
            self._count(kind, _Surplus(count=1, since=now, began=monotonic))
            return
        self._by_address.record(address, monotonic)
        self._in_all.record(kind.kind, monotonic)
        surplus = self._surplus.pop(kind, None)
        said = _cut(reason)
        event = kind(
            at=now,
            username=_cut(username),
            hostname=_cut(hostname),
            code=_cut(code),
            actor=_cut(actor),
            reason=f"{said}; and {surplus}" if surplus else said,
            remote_addr=_cut(remote_addr),
        )
        self._send(event, _Surplus(count=1, since=now, began=monotonic), surplus)

    async def summarise(self, after: timedelta = QUIET) -> None:
        """
        Tell what was counted and not told since, one record per kind, from nobody in particular. Called every minute,
        and with ``after`` of zero before the server stops.

        :param after: leave what is younger; the next record of its kind will tell it.
        """
        monotonic, now = self._monotonic(), self._now()
        for kind, surplus in list(self._surplus.items()):
            if monotonic - surplus.began < after.total_seconds() or self._outstanding >= MOST_OUTSTANDING:
                continue
            del self._surplus[kind]
            await self._send(kind(at=now, username="", reason=f"{surplus}, not recorded one by one"), surplus)

    def _send(self, event: Event, *counted: _Surplus | None) -> Deferred[None]:
        """:param counted: what the record stands for, to be counted again if it cannot be written."""

        def recorded(_: object) -> None:
            self._outstanding -= 1
            self._failing = False

        def failed(failure: Failure) -> None:
            self._outstanding -= 1
            for surplus in counted:
                if surplus is not None:
                    self._count(type(event), surplus)
            if not self._failing:
                self._failing = True
                self._log.warn(
                    "audit: {kind} could not be recorded: {problem}; what is missed is counted and told later",
                    kind=event.kind,
                    problem=failure.getErrorMessage(),
                )

        self._outstanding += 1
        return Deferred.fromCoroutine(self._store.record([event])).addCallbacks(recorded, failed)

    def _count(self, kind: type[Event], more: _Surplus) -> None:
        known = self._surplus.get(kind)
        if known is None:
            self._surplus[kind] = more
        else:
            first = known if known.began <= more.began else more
            self._surplus[kind] = _Surplus(count=known.count + more.count, since=first.since, began=first.began)


def _cut(text: str) -> str:
    return text if len(text) <= COLUMN_CHARACTERS else text[:COLUMN_CHARACTERS] + "..."
