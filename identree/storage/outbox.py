"""
The outbox: committed events get their place in the chain, then go to the log and to the sinks (design section 3.2).

The driver seals: in the same commit on SQLite, in a second small transaction on PostgreSQL. Sealed records are handed
to the :class:`Publisher`, which writes them to the synchronous log, in order, in a thread of its own, and only then
lets the operations answer. What the log could not take stays in the database and is written later, in order.
"""

from __future__ import annotations

import errno
import json
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from identree.core import audit
from identree.core.audit import Head, Sealed
from identree.core.errors import StorageUnavailable
from identree.core.events import Event
from identree.storage import parking
from identree.storage.interface import Extent
from identree.storage.operations import Retention
from identree.storage.script import Do, Driver, Effects, Script
from identree.storage.times import seconds

T = TypeVar("T")

# The cursor of the synchronous log.
LOG = "jsonlog"

# Records read from the database, or handed to the log, at once.
BATCH = 500

# Only an administrator can end these; until then what cannot be recorded is refused.
REFUSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
# Waits between attempts to write what the log has refused, in seconds.
RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0


class RecordLog(Protocol):
    """The synchronous log. Both methods are called in one dedicated thread, never at the same time."""

    def write(self, records: Sequence[Sealed]) -> None:
        """
        Append them, in this order; whole or, when it raises, so that a repetition of all of them does no harm.

        :raise OSError: not written; with ``ENOSPC`` or ``EDQUOT``, new writes are refused until it works again.
        """

    def last_seq(self, instance: str) -> int | None:
        """The number of the last record of this chain that the log holds; None when it cannot say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """
    Whose chain a driver continues.

    :ivar instance: its identity; empty stands for the one that is persisted in the database.
    :ivar version: the build, for the record.
    """

    instance: str = ""
    version: str = "dev"


# -- scripts ----------------------------------------------------------------------------------------------------------
HEAD = "SELECT next_seq, hash FROM chain_heads WHERE instance = :instance"
SAVE_HEAD = (
    "INSERT INTO chain_heads (instance, next_seq, hash) VALUES (:instance, :next_seq, :hash) "
    "ON CONFLICT (instance) DO UPDATE SET next_seq = excluded.next_seq, hash = excluded.hash"
)
INSERT_SEALED = (
    "INSERT INTO outbox (instance, seq, record, hash, created_at) VALUES (:instance, :seq, :record, :hash, :created_at)"
)
INSERT_UNSEALED = "INSERT INTO outbox (instance, fields, created_at) VALUES (:instance, :fields, :created_at)"
SAVE_CURSOR = (
    "INSERT INTO sink_cursors (instance, sink, seq) VALUES (:instance, :sink, :seq) "
    "ON CONFLICT (instance, sink) DO UPDATE SET seq = excluded.seq WHERE sink_cursors.seq < excluded.seq"
)
_FIRST_CURSOR = (
    "INSERT INTO sink_cursors (instance, sink, seq) VALUES (:instance, :sink, :seq) "
    "ON CONFLICT (instance, sink) DO NOTHING"
)
# One statement for the whole pass; only PostgreSQL has unsealed rows.
_SEAL = """
UPDATE outbox SET seq = sealed.seq, record = sealed.record, hash = sealed.hash, fields = ''
FROM json_to_recordset(CAST(:records AS json)) AS sealed (id BIGINT, seq BIGINT, record TEXT, hash TEXT)
WHERE outbox.id = sealed.id
""".strip()
_LOCK_HEAD = (
    "INSERT INTO chain_heads (instance, next_seq, hash) VALUES (:instance, 0, '') "
    "ON CONFLICT (instance) DO UPDATE SET instance = excluded.instance"
)
_UNSEALED = """
SELECT h.next_seq, h.hash, o.id, o.fields FROM chain_heads h JOIN (
    SELECT id, instance, fields FROM outbox WHERE instance = :instance AND seq IS NULL ORDER BY id LIMIT :limit
) o ON o.instance = h.instance ORDER BY o.id
""".strip()
_AFTER = "SELECT seq, record, hash FROM outbox WHERE instance = :instance AND seq > :seq ORDER BY seq LIMIT :limit"
_CURSOR = "SELECT seq FROM sink_cursors WHERE instance = :instance AND sink = :sink"
_IDENTIFY = "INSERT INTO instance_identity (name, instance) VALUES ('default', :instance) ON CONFLICT (name) DO NOTHING"
_IDENTITY = "SELECT instance FROM instance_identity WHERE name = 'default'"
_CHAINS = "SELECT instance, MIN(seq), MAX(seq) FROM outbox WHERE seq IS NOT NULL GROUP BY instance ORDER BY instance"
_CURSORS = "SELECT instance, sink, seq FROM sink_cursors"
_DELETE_DELIVERED = """
WITH chosen AS MATERIALIZED (
    SELECT id FROM outbox WHERE instance = :instance AND seq <= :seq AND created_at < :before ORDER BY seq LIMIT :limit
)
DELETE FROM outbox WHERE id IN (SELECT id FROM chosen) RETURNING 1
""".strip()
_DELETE_AGED = """
WITH chosen AS MATERIALIZED (
    SELECT id FROM outbox WHERE seq IS NOT NULL AND created_at < :before ORDER BY created_at LIMIT :limit
    /*postgres FOR UPDATE SKIP LOCKED*/
)
DELETE FROM outbox WHERE id IN (SELECT id FROM chosen) RETURNING instance, seq
""".strip()
_DELETE_EXCESS = """
WITH chosen AS MATERIALIZED (
    SELECT id FROM outbox WHERE instance = :instance AND seq < :seq ORDER BY seq LIMIT :limit
)
DELETE FROM outbox WHERE id IN (SELECT id FROM chosen) RETURNING instance, seq
""".strip()


def identify(candidate: str) -> Script[str]:
    """The persisted identity; ``candidate`` becomes it when there is none."""
    yield Do(_IDENTIFY, {"instance": candidate})
    [(instance,)] = yield _IDENTITY, {}
    return str(instance)


def sealed_after(instance: str, seq: int, limit: int) -> Script[list[Sealed]]:
    rows = yield _AFTER, {"instance": instance, "seq": seq, "limit": limit}
    return [
        Sealed(
            instance=instance,
            seq=number,
            plain=record.encode(),
            canonical=audit.canonical(record).encode(),
            hash=digest,
        )
        for number, record, digest in rows
    ]


def cursor(instance: str, sink: str) -> Script[int]:
    """The last acknowledged number; -1 when there is none."""
    rows = yield _CURSOR, {"instance": instance, "sink": sink}
    return int(rows[0][0]) if rows else -1


def first_cursor(instance: str, sink: str) -> Script[None]:
    """A place behind the newest record, for a sink that has none."""
    [(next_seq, _)] = (yield HEAD, {"instance": instance}) or [(0, "")]
    yield Do(_FIRST_CURSOR, {"instance": instance, "sink": sink, "seq": next_seq - 1})


def save_cursor(instance: str, sink: str, seq: int) -> Script[None]:
    yield Do(SAVE_CURSOR, {"instance": instance, "sink": sink, "seq": seq})


def unsealed_row(instance: str, event: Event, request_id: str) -> dict[str, object]:
    fields = audit.fields(event, request_id)
    return {"instance": instance, "fields": json.dumps(fields), "created_at": seconds(event.at)}


def sealed_row(record: Sealed, created_at: int) -> dict[str, object]:
    return {
        "instance": record.instance,
        "seq": record.seq,
        "record": record.plain.decode(),
        "hash": record.hash,
        "created_at": created_at,
    }


def seal_pending(instance: str, version: str, position: int | None = None, limit: int = BATCH) -> Script[list[Sealed]]:
    """
    Give committed events their place in the chain, in the order of their ids. The head's row is the lock: two processes
    that by mistake share an identity still write one chain.

    :param position: the log's cursor, saved on this occasion.
    """
    yield Do(_LOCK_HEAD, {"instance": instance})
    rows = yield _UNSEALED, {"instance": instance, "limit": limit}
    records: list[Sealed] = []
    sealed: list[dict[str, object]] = []
    if rows:
        head = Head(rows[0][0], rows[0][1])
        for _, _, id, fields in rows:
            head, record = audit.seal(head, json.loads(fields), version=version, instance=instance)
            records.append(record)
            sealed.append({"id": id, "seq": record.seq, "record": record.plain.decode(), "hash": record.hash})
        yield Do(_SEAL, {"records": json.dumps(sealed)})
        yield Do(SAVE_HEAD, {"instance": instance, "next_seq": head.next_seq, "hash": head.hash})
    if position is not None:
        yield Do(SAVE_CURSOR, {"instance": instance, "sink": LOG, "seq": position})
    return records


@dataclass(frozen=True, slots=True)
class Cut:
    """
    What retention did to the outbox.

    :ivar deleted: rows, delivered ones included.
    :ivar lost: per sink, records that it will never get.
    """

    deleted: int
    lost: dict[str, int]


def delete_old(instance: str, sinks: Sequence[str], now: datetime, retention: Retention) -> Script[Cut]:
    """
    Delete what every one of ``sinks`` has and what the bounds by age and number cut off. Age does so in all chains,
    also in those that nobody writes any more; whoever deletes counts, since nobody else sees it.

    :param sinks: those that are configured, here and in other processes; one without a cursor has nothing yet.
    """
    limit = retention.batch
    stored = {(owner, sink): int(seq) for owner, sink, seq in (yield _CURSORS, {})}
    cursors = {sink: stored.get((instance, sink), -1) for sink in sinks}
    [(next_seq, _)] = (yield HEAD, {"instance": instance}) or [(0, "")]
    delivered = min(cursors.values(), default=next_seq - 1)
    before = seconds(now - retention.delivered_events)
    rows = yield _DELETE_DELIVERED, {"instance": instance, "seq": delivered, "before": before, "limit": limit}
    deleted = len(rows)
    cut = yield _DELETE_AGED, {"before": seconds(now - retention.events), "limit": limit}
    if next_seq > retention.most_events:
        excess = {"instance": instance, "seq": next_seq - retention.most_events, "limit": limit}
        cut = cut + (yield _DELETE_EXCESS, excess)
    lost = Counter(
        sink
        for owner, number in cut
        for sink in sinks
        # of another process's log only that process knows
        if number > stored.get((owner, sink), -1) and (owner == instance or sink != LOG)
    )
    return Cut(deleted + len(cut), dict(lost))


# -- the publisher ----------------------------------------------------------------------------------------------------
class Publisher:
    """
    Takes sealed records to the log before operations answer, and wakes the sinks.

    :ivar position: the last record that the log has; -1 before the first.
    :ivar refusal: set while the log's disk is full: what cannot be recorded is not granted.
    """

    def __init__(
        self,
        clock: IReactorTime,
        log: RecordLog | None = None,
        *,
        in_thread: Callable[[Callable[[], object]], Deferred[object]] | None = None,
        on_log_failure: Callable[[Exception], None] = lambda e: None,
        on_log_recovery: Callable[[], None] = lambda: None,
        keep: int = 0,
    ) -> None:
        """
        :param keep: how many of the latest records stay in memory, for sinks that are not behind.
        :param in_thread: runs a function in the log's own thread; None runs it at once.
        :param on_log_failure: told of every failed attempt.
        :param on_log_recovery: told when the log has caught up after a failure.
        """
        self._clock = clock
        self._log = log
        self._in_thread = in_thread or _at_once
        self._on_log_failure = on_log_failure
        self._on_log_recovery = on_log_recovery
        self._driver: Driver | None = None
        self.instance = ""
        self.position = -1
        self.saved_position = -1
        self.refusal: StorageUnavailable | None = None
        self._recent: deque[Sealed] = deque(maxlen=keep)
        self._queue: deque[tuple[Sequence[Sealed], Callable[[], None]]] = deque()
        self._writing = False
        # the newest record known to be sealed; the log is behind while its position is smaller and nothing is queued
        self._newest = -1
        self._behind = False
        self._retry: IDelayedCall | None = None
        self._delay = RETRY_SECONDS
        # while records that we did not hear of are written, who published later ones waits here
        self._filling = False
        self._late: list[Callable[[], None]] = []
        self._idle: list[Deferred[None]] = []
        self._wakeners: list[Deferred[None]] = []
        self._set_back: list[Callable[[int], None]] = []
        self._stopped = False

    @property
    def has_log(self) -> bool:
        return self._log is not None

    @property
    def behind(self) -> bool:
        """Whether the log waits for records that are only in the database."""
        return self._behind

    async def start(self, driver: Driver, instance: str) -> None:
        """
        Learn where the log stands and bring it up to date; a log that fails is tried again later.

        :raise StorageUnavailable: the database cannot be read.
        """
        self._driver, self.instance = driver, instance
        self._newest = await driver.read(lambda: newest(instance))
        if self._log is None:
            return
        log = self._log
        self.saved_position = await driver.read(lambda: cursor(instance, LOG))
        # a cursor ahead of the chain was saved before the database lost its latest commits
        self.position = min(self.saved_position, self._newest)
        try:
            held = await self._in_thread(lambda: log.last_seq(instance))
        except Exception as e:
            self._on_log_failure(e)
            held = None
        # The log itself knows best: the cursor is saved lazily. A log that is ahead of the chain belongs to a database
        # that was put back; what it lacks cannot be told, so the cursor counts.
        if isinstance(held, int) and held <= self._newest:
            self.position = held
        if self._newest > self.position:
            self._behind = True
            await self._catch_up()

    def publish(self, records: Sequence[Sealed], answer: Callable[[], None]) -> None:
        """
        Hand over freshly sealed records, in order.

        Where a number is skipped, a connection broke at the commit that sealed those before: they are in the database,
        and go to the log first. Where numbers come again, the database has lost its latest commits.

        :param records: at least one.
        :param answer: called once, on the reactor, when the log has them or has failed.
        """
        first, last = records[0].seq, records[-1].seq
        skipped = first > self._newest + 1
        if first <= self._newest:
            self.position = min(self.position, first - 1)
            for listener in self._set_back:
                listener(first - 1)
        if self._recent.maxlen:
            if self._recent and first != self._recent[-1].seq + 1:
                self._recent.clear()
            self._recent.extend(records)
        self._reached(last)
        if self._log is None:
            answer()
        elif skipped or self._behind:
            self._answer_late(answer, skipped)
        else:
            self._queue.append((records, answer))
            if not self._writing:
                self._write()

    async def look_again(self, answer: Callable[[], None]) -> None:
        """
        There was nothing to seal: what there was may have been sealed without our hearing of it. Nothing may be sealed
        before this returns: what the look found already would seem to come again when it is published.

        :param answer: as for :meth:`publish`.
        """
        at, instance = self._newest, self.instance
        if self._driver is not None:
            with suppress(StorageUnavailable):
                at = await self._driver.read(lambda: newest(instance))
        if at <= self._newest:
            answer()
            return
        self._recent.clear()
        self._reached(at)
        if self._log is None:
            answer()
        else:
            self._answer_late(answer, True)

    def _reached(self, seq: int) -> None:
        self._newest = seq
        wakeners, self._wakeners = self._wakeners, []
        for waiter in wakeners:
            waiter.callback(None)

    def _answer_late(self, answer: Callable[[], None], skipped: bool) -> None:
        """Not before the log has what was skipped; at once when it is behind for another reason, which may last."""
        if skipped and not self._behind:
            self._behind = self._filling = True
        if not self._filling:
            answer()
            return
        self._late.append(answer)
        if not self._writing:
            self._fill()

    def when_set_back(self, listener: Callable[[int], None]) -> None:
        """
        :param listener: told when the database has lost commits that it had confirmed, as a standby may that takes
            over: the last number that still stands. What comes now bears numbers that sinks have had already.
        """
        self._set_back.append(listener)

    async def wait(self, seq: int) -> None:
        """Returns when there is a record after ``seq``."""
        while self._newest <= seq:
            waiter: Deferred[None] = Deferred()
            self._wakeners.append(waiter)
            try:
                await waiter
            except CancelledError:
                if waiter in self._wakeners:
                    self._wakeners.remove(waiter)
                raise

    @property
    def newest(self) -> int:
        """The number of the last sealed record; -1 before the first."""
        return self._newest

    def recent_after(self, seq: int, limit: int) -> list[Sealed]:
        """The records after ``seq`` if they are still in memory; empty when they are not, or when there are none."""
        recent = self._recent
        start = seq + 1 - recent[0].seq if recent else -1
        if start < 0 or start >= len(recent):
            return []
        return list(islice(recent, start, start + limit))

    async def stop(self) -> None:
        """Waits for the write under way; further records stay in the database."""
        self._stopped = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        while self._writing:
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            await idle

    def _write(self) -> None:
        assert self._log is not None
        log = self._log
        taken = list(self._queue)
        self._queue.clear()
        records = [record for some, _ in taken for record in some]
        self._writing = True

        def written(_: object) -> None:
            self.position = records[-1].seq
            self._finished(taken)

        def failed(failure: object) -> None:
            self._behind = True
            # those that came meanwhile would overtake the failed ones: they too wait in the database
            later = list(self._queue)
            self._queue.clear()
            self._failed(getattr(failure, "value", None))
            self._finished(taken + later + self._filled())

        self._in_thread(lambda: log.write(records)).addCallbacks(written, failed)

    def _finished(self, taken: Sequence[tuple[Sequence[Sealed], Callable[[], None]]]) -> None:
        self._writing = False
        for _, answer in taken:
            answer()
        # an answer may have published more, which has then started the next write already
        if self._queue and not self._writing:
            self._write()
        if self._filling and not self._writing:
            self._fill()
        if not self._writing:
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)

    def _failed(self, error: object) -> None:
        e = error if isinstance(error, Exception) else RuntimeError(str(error))
        self._on_log_failure(e)
        if isinstance(e, OSError) and e.errno in REFUSING:
            self.refusal = StorageUnavailable("full", "the audit log cannot be written")
        if self._retry is None and not self._stopped:
            self._retry = self._clock.callLater(self._delay, self._try_again)
            self._delay = min(self._delay * 2, LONGEST_RETRY_SECONDS)

    def _fill(self) -> None:
        Deferred.fromCoroutine(self._catch_up()).addErrback(lambda failure: self._failed(failure.value))

    def _filled(self) -> list[tuple[Sequence[Sealed], Callable[[], None]]]:
        """Those who waited for it, whether it has worked or not."""
        late, self._late = self._late, []
        self._filling = False
        return [((), answer) for answer in late]

    def _try_again(self) -> None:
        self._retry = None
        if self._writing:  # cannot be: nothing is queued while behind
            return
        self._fill()

    async def _catch_up(self) -> None:
        """Write from the database what the log lacks, then let new records go to it directly."""
        assert self._log is not None
        assert self._driver is not None
        log, driver, instance = self._log, self._driver, self.instance
        self._writing = True
        try:
            while self.position < self._newest:
                # of what is sealed while we look, nothing is known
                seq, newest = self.position, self._newest
                records = await driver.read(lambda seq=seq: sealed_after(instance, seq, BATCH))  # type: ignore[misc]
                if not records:  # cut off by retention
                    self.position = newest
                    continue
                await self._in_thread(lambda records=records: log.write(records))  # type: ignore[misc]
                self.position = records[-1].seq
        except Exception as e:
            self._writing = False
            self._failed(e)
        else:
            self._writing = False
            self._behind = False
            self.refusal = None
            self._delay = RETRY_SECONDS
            self._on_log_recovery()
        self._finished(self._filled())


def head(instance: str) -> Script[Head]:
    """Where the chain stands; a new one stands at its beginning."""
    rows = yield HEAD, {"instance": instance}
    return Head(*rows[0]) if rows else Head()


def newest(instance: str) -> Script[int]:
    """The number of the last sealed record; -1 when there is none."""
    at = yield from head(instance)
    return at.next_seq - 1


def chains() -> Script[list[Extent]]:
    rows = yield _CHAINS, {}
    return [Extent(instance=instance, first=first, last=last) for instance, first, last in rows]


def record(events: Sequence[Event]) -> Script[None]:
    yield Effects(events=tuple(events))


def _at_once(function: Callable[[], object]) -> Deferred[object]:
    done: Deferred[object] = Deferred()
    try:
        result = function()
    except Exception as e:
        done.errback(e)
    else:
        done.callback(result)
    return done


class Outbox:
    """Implements :class:`identree.storage.interface.Feed` on the chain of this process."""

    def __init__(self, driver: Driver, publisher: Publisher) -> None:
        self._driver = driver
        self._publisher = publisher

    @property
    def instance(self) -> str:
        return self._publisher.instance

    @property
    def newest(self) -> int:
        return self._publisher.newest

    async def head(self) -> Head:
        instance = self.instance
        return await self._driver.read(lambda: head(instance))

    async def position(self, sink: str) -> int:
        instance = self.instance
        return await self._driver.read(lambda: cursor(instance, sink))

    async def begin(self, sink: str) -> None:
        instance = self.instance
        await self._driver.write(lambda: first_cursor(instance, sink))

    async def reached(self, seq: int) -> None:
        await self._publisher.wait(seq - 1)

    async def after(self, seq: int, limit: int) -> list[Sealed]:
        recent = self._publisher.recent_after(seq, limit)
        if recent:
            return recent
        instance = self.instance
        return await self._driver.read(lambda: sealed_after(instance, seq, limit))

    def when_set_back(self, listener: Callable[[int], None]) -> None:
        """See :meth:`Publisher.when_set_back`."""
        self._publisher.when_set_back(listener)

    async def acknowledge(self, sink: str, seq: int) -> None:
        instance = self.instance
        await self._driver.write(lambda: save_cursor(instance, sink, seq))

    async def park(self, sink: str, records: Sequence[Sealed], reason: str, now: datetime) -> None:
        await self._driver.write(lambda: parking.park(sink, records, reason, now))

    async def parked(self, sink: str, limit: int) -> list[Sealed]:
        instance = self.instance
        return await self._driver.read(lambda: parking.parked(instance, sink, limit))

    async def unpark(self, sink: str, seqs: Sequence[int]) -> None:
        instance = self.instance
        await self._driver.write(lambda: parking.unpark(instance, sink, seqs))
