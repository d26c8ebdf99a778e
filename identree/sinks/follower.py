"""
What takes the records of a chain to a receiver across the network: one follower per sink (design section 3.2).

A sink itself only formats and ships a batch. The follower keeps its place: a durable cursor, so that a receiver that is
away loses nothing, slows nobody else down and catches up in order. Records arrive at least once; ``seq`` tells a
repetition. Memory holds one batch per sink; everything else waits in the database.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from identree.core.audit import Sealed
from identree.storage.interface import Feed

# Between attempts, in seconds: doubled from the first to the last, and back to the first after a success.
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
# A receiver may ask for more patience than that (Retry-After), but not for more than this.
LONGEST_PATIENCE_SECONDS = 300.0
# The cursor is saved this often at most; a crash repeats what was shipped since.
ACKNOWLEDGE_SECONDS = 1.0
# At the end, what is left is shipped for so long; the rest waits for the next start.
FAREWELL_SECONDS = 5.0
# Records that were set aside and are offered again, per round.
AGAIN = 500

_TIMESTAMP = re.compile(rb'"timestamp":"([0-9TZ:-]{20})"')


class Unavailable(Exception):
    """
    The receiver has not got the batch, or nobody knows; the same batch may succeed later. The text says what is wrong,
    for the log, and holds no secret.

    :ivar retry_after: seconds that the receiver asked for, or None.
    """

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class Rejected(Exception):
    """The receiver will never take this batch as it is; the text is its answer. Nothing of the batch was taken."""


class Shipper(Protocol):
    """
    The part of a sink that knows its protocol.

    :ivar name: of the sink, as in metrics and cursors.
    :ivar batch: most records at once.
    :ivar linger_seconds: how long a batch that is not full waits for more records.
    :ivar settle_seconds: how long what was shipped may still be lost with the connection; 0: the receiver confirms it.
    :ivar lost: set by the follower; the shipper calls it when a connection is lost over which it has shipped records
        that it cannot vouch for.
    """

    name: str
    batch: int
    linger_seconds: float
    settle_seconds: float
    lost: Callable[[], None]

    async def ship(self, records: Sequence[Sealed]) -> None:
        """
        Returns when the receiver, or at least its system, has them. Never called twice at a time. When it is cancelled,
        whether they arrived is unknown.

        :raise Unavailable: try again later.
        :raise Rejected: not these; others may succeed.
        """

    async def close(self) -> None:
        """Let go of connections, within a second or two. Nothing is shipped afterwards."""


class Tally(Protocol):
    """Who counts what happens to records of one sink (metric ``identree_audit_events_total``)."""

    def emitted(self, count: int) -> None:
        """Records that were shipped."""

    def failed(self) -> None:
        """One attempt that came to nothing."""

    def parked(self, count: int) -> None:
        """Records that were set aside, because the receiver will not take them."""


@dataclass(frozen=True, slots=True)
class Lag:
    """
    How far a sink is behind.

    :ivar records: that it has not been sent.
    :ivar seconds: age of the oldest of them; 0 when there is none.
    :ivar last_success: unix seconds of the last shipment; 0 when there was none since the start.
    """

    records: int
    seconds: float
    last_success: float


class Follower(Service):
    """
    Takes every record of a chain to one receiver, in order.

    :param batch: most records at once; at most the shipper's own limit.
    :param now: aware UTC.
    :param monotonic: seconds, for what must survive a step of the clock.
    """

    _log = Logger(namespace="identree")

    def __init__(
        self,
        feed: Feed,
        shipper: Shipper,
        tally: Tally,
        clock: IReactorTime,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        batch: int = 1 << 30,
        log: Logger | None = None,
    ) -> None:
        if log is not None:
            self._log = log
        self._feed = feed
        self._shipper = shipper
        self._tally = tally
        self._clock = clock
        self._now = now
        self._monotonic = monotonic
        self._batch = max(1, min(batch, shipper.batch))
        shipper.lost = self._lost
        # the last record that was shipped; what is shipped and settled; what is acknowledged
        self._position = self._settled = self._saved = -1
        # shipped, but not settled yet: until when, and up to which record
        self._unsettled: deque[tuple[float, int]] = deque()
        self._known = False
        self._set_backs = 0
        # whether what was set aside is still to be offered again
        self._parked = True
        self._next_save = 0.0
        self._pending_since = 0.0
        self._last_success = 0.0
        self._delay = FIRST_RETRY_SECONDS
        self._down = False
        self._work: Deferred[None] | None = None
        self._wait: Deferred[None] | None = None
        self._over: list[Deferred[None]] = []
        self._hurry = False

    @property
    def lag(self) -> Lag:
        records = max(0, self._feed.newest - self._position) if self._known else 0
        since = self._pending_since
        seconds = max(0.0, self._now().timestamp() - since) if records and since else 0.0
        return Lag(records, seconds, self._last_success)

    @property
    def finished(self) -> bool:
        """Whether everything that there is has been shipped, has settled and is acknowledged."""
        return self._known and not self._parked and self._saved >= self._feed.newest

    @property
    def down(self) -> bool:
        """Whether the last attempt failed."""
        return self._down

    def set_back(self, newest: int) -> None:
        """
        The database has lost its latest commits, as a standby may that takes over. Records that come now bear numbers
        that the receiver has had already, and are shipped nevertheless: whoever verifies sees two of one number.

        :param newest: the last record that still stands.
        """
        self._set_backs += 1
        if self._known and self._position > newest:
            self._position = newest
            self._settled, self._saved = min(self._settled, newest), min(self._saved, newest)
            self._unsettled = deque((until, seq) for until, seq in self._unsettled if seq <= newest)
            self._interrupt()

    # -- service ------------------------------------------------------------------------------------------------------
    def startService(self) -> None:
        super().startService()
        self._hurry = False
        self._work = Deferred.fromCoroutine(self._run())
        self._work.addErrback(self._bug)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """What is left is shipped if that is quickly done; a receiver that is away is not waited for."""
        work = self._work
        if work is not None and not work.called:
            over: Deferred[None] = Deferred()
            self._over.append(over)
            self._hurry = True
            self._interrupt()
            deadline = self._clock.callLater(FAREWELL_SECONDS, work.cancel)
            await over
            if deadline.active():
                deadline.cancel()
        with suppress(Exception):
            await self._save(everything=True)
        await self._shipper.close()

    def _bug(self, failure: object) -> None:
        self._log.failure("the audit sink {sink} ended", failure, sink=self._shipper.name)  # type: ignore[arg-type]

    # -- the loop -----------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        try:
            with suppress(CancelledError):
                while not (self._hurry and (self._down or (self._known and self._position >= self._feed.newest))):
                    try:
                        await self._round()
                    except CancelledError:
                        raise
                    except Exception as e:
                        await self._failed(e)
        finally:
            over, self._over = self._over, []
            for waiter in over:
                waiter.callback(None)

    async def _round(self) -> None:
        if not self._known:
            # a cursor ahead of the chain was saved before the database lost its latest commits
            position = min(await self._feed.position(self._shipper.name), self._feed.newest)
            self._position = self._settled = self._saved = position
            self._known = True
        if self._parked:
            await self._offer_parked_again()
            self._parked = False
        if self._position >= self._feed.newest:
            # nothing to do: what is settled meanwhile is still to be saved
            if not self._hurry:
                await self._pause(self._feed.reached(self._position + 1), self._save_soon())
            await self._save()
            self._well()
            return
        place = self._position, self._set_backs
        records = await self._gather()
        if not records or (self._position, self._set_backs) != place:
            # nothing there; or the connection was lost meanwhile, and what it may have taken with it comes first
            return
        await self._ship(records)
        if (self._position, self._set_backs) != place:
            # the connection was lost while the last records were on their way: they are shipped again
            return
        self._position = records[-1].seq
        self._unsettled.append((self._monotonic() + self._shipper.settle_seconds, self._position))
        self._last_success = self._now().timestamp()
        await self._save()
        self._well()

    async def _gather(self) -> list[Sealed]:
        """The next batch. One that is not full waits a little for more, if the receiver prefers full ones."""
        feed = self._feed
        linger = self._shipper.linger_seconds
        if linger and not self._hurry and feed.newest - self._position < self._batch:
            first = await feed.after(self._position, 1)
            if first:
                self._pending_since = _written(first[0]) or self._now().timestamp()
            await self._pause(feed.reached(self._position + self._batch), linger)
        # of what is sealed while we look, nothing is known
        position, newest = self._position, feed.newest
        records = await feed.after(position, self._batch)
        if records:
            self._pending_since = _written(records[0]) or self._now().timestamp()
        elif self._position == position:
            # what was there is cut off by retention, which has said so
            self._position = max(position, newest)
        return records

    async def _ship(self, records: Sequence[Sealed]) -> None:
        """In halves where the whole is refused, down to the single records that the receiver will not have."""
        try:
            await self._shipper.ship(records)
            self._tally.emitted(len(records))
        except Rejected as e:
            self._tally.failed()
            if len(records) > 1:
                half = len(records) // 2
                await self._ship(records[:half])
                await self._ship(records[half:])
                return
            await self._feed.park(self._shipper.name, records, str(e), self._now())
            self._tally.parked(1)
            self._log.error(
                "{message}",
                message=f"AUDIT {self._shipper.name}: the receiver will not take a record; it is set aside",
                attributes={"seq": records[0].seq, "instance": records[0].instance, "err": str(e)},
            )

    async def _offer_parked_again(self) -> None:
        """What was set aside before the restart: the receiver may have been put right."""
        while records := await self._feed.parked(self._shipper.name, AGAIN):
            taken: list[int] = []
            for record in records:
                try:
                    await self._shipper.ship([record])
                except Rejected:
                    continue
                self._tally.emitted(1)
                taken.append(record.seq)
            if taken:
                await self._feed.unpark(self._shipper.name, taken)
            if len(taken) < len(records) or len(records) < AGAIN:
                return

    # -- its place ----------------------------------------------------------------------------------------------------
    def _lost(self) -> None:
        """What was shipped and is not settled may be lost with the connection: it is shipped again."""
        if self._unsettled:
            self._settle()
        if self._position > self._settled:
            self._position = self._settled
            self._unsettled.clear()
            self._interrupt()

    def _settle(self) -> None:
        now = self._monotonic()
        while self._unsettled and self._unsettled[0][0] <= now:
            self._settled = self._unsettled.popleft()[1]

    def _save_soon(self) -> float | None:
        """Seconds until there is something to save; None when there is nothing."""
        self._settle()
        if self._settled > self._saved:
            return max(0.0, self._next_save - self._monotonic())
        if self._unsettled:
            return max(0.0, self._unsettled[-1][0] - self._monotonic())
        return None

    async def _save(self, *, everything: bool = False) -> None:
        self._settle()
        now = self._monotonic()
        if self._settled > self._saved and (everything or now >= self._next_save):
            seq = self._settled
            await self._feed.acknowledge(self._shipper.name, seq)
            self._saved = seq
            self._next_save = now + ACKNOWLEDGE_SECONDS

    # -- up and down --------------------------------------------------------------------------------------------------
    def _well(self) -> None:
        self._delay = FIRST_RETRY_SECONDS
        if self._down:
            self._down = False
            waiting = max(0, self._feed.newest - self._position)
            self._log.info(
                "{message}",
                message="AUDIT sink works again",
                attributes={"sink": self._shipper.name, "waiting": waiting},
            )

    async def _failed(self, e: Exception) -> None:
        self._tally.failed()
        delay = self._delay
        if isinstance(e, Unavailable) and e.retry_after is not None:
            delay = max(delay, min(e.retry_after, LONGEST_PATIENCE_SECONDS))
        if not self._down:
            self._down = True
            attributes = {"sink": self._shipper.name, "err": str(e) or type(e).__name__, "backoff": f"{delay:g}s"}
            self._log.error("{message}", message="AUDIT sink error", attributes=attributes)
        if not isinstance(e, Unavailable):
            # storage that is away is a matter of course; anything else is a bug, which must not stop the stream
            self._log.debug("the audit sink {sink} failed: {kind}", sink=self._shipper.name, kind=type(e).__name__)
        self._delay = min(self._delay * 2, LONGEST_RETRY_SECONDS)
        if not self._hurry:
            await self._pause(None, delay)

    # -- waiting ------------------------------------------------------------------------------------------------------
    def _interrupt(self) -> None:
        wait, self._wait = self._wait, None
        if wait is not None and not wait.called:
            wait.callback(None)

    async def _pause(self, until: object, seconds: float | None) -> None:
        """Until the coroutine ``until`` is over, or so many seconds have passed, or somebody interrupts."""
        wait: Deferred[None] = Deferred()
        self._wait = wait

        def enough(_: object = None) -> None:
            if not wait.called:
                wait.callback(None)

        timer: IDelayedCall | None = None
        reaching: Deferred[None] | None = None
        if seconds is not None:
            timer = self._clock.callLater(seconds, enough)
        if until is not None:
            reaching = Deferred.fromCoroutine(until)  # type: ignore[arg-type]
            reaching.addErrback(lambda failure: failure.trap(CancelledError) and None)
            reaching.addCallback(enough)
        try:
            await wait
        finally:
            self._wait = None
            if timer is not None and timer.active():
                timer.cancel()
            if reaching is not None and not reaching.called:
                reaching.cancel()


def _written(record: Sealed) -> float:
    """When the record was written, in unix seconds; 0 when it does not say."""
    match = _TIMESTAMP.search(record.plain)
    if match is None:
        return 0.0
    try:
        return datetime.strptime(match[1].decode(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
