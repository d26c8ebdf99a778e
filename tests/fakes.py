"""
What tests of other rooms stand on.

:func:`memory_store` is the real store on a SQLite database in memory, run in the calling thread: its coroutines finish
at once, and it passes the same contract suite as the server's drivers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from identree.core.audit import Sealed
from identree.core.challenge import GraceSession
from identree.storage.bus import Bus
from identree.storage.operations import Retention
from identree.storage.outbox import Chain, Publisher, RecordLog
from identree.storage.sqlite import InlineSqliteDriver
from identree.storage.store import SqlStore


class MemoryLog:
    """A :class:`~identree.storage.outbox.RecordLog` that keeps everything; ``broken`` is raised while set."""

    def __init__(self) -> None:
        self.records: list[Sealed] = []
        self.broken: Exception | None = None

    def write(self, records: Sequence[Sealed]) -> None:
        if self.broken is not None:
            raise self.broken
        self.records.extend(records)

    def last_seq(self, instance: str) -> int | None:
        return max((record.seq for record in self.records if record.instance == instance), default=None)


class MemoryStore(SqlStore):
    """
    :ivar log: has every record that the operations emitted, unless another one was given.
    :ivar connection: the database behind it, to look at and to break.
    """

    log: MemoryLog
    driver: InlineSqliteDriver

    @property
    def connection(self) -> sqlite3.Connection:
        assert self.driver.connection is not None
        return self.driver.connection

    @property
    def events(self) -> list[str]:
        """The kinds of all events so far, in order."""
        import json

        return [json.loads(record.plain)["event"] for record in self.log.records]


def memory_store(
    clock: Any = None,
    *,
    dsn: str = ":memory:",
    instance: str = "0123456789abcdef",
    log: RecordLog | None = None,
    sinks: Sequence[str] = (),
    recent_events: int = 0,
    retention: Retention | None = None,
    genuine: Callable[[GraceSession], bool] = lambda session: True,
    on_log_failure: Callable[[Exception], None] = lambda e: None,
    on_log_recovery: Callable[[], None] = lambda: None,
    on_lost: Callable[[str, int], None] = lambda sink, count: None,
) -> MemoryStore:
    """
    A started store whose coroutines finish synchronously.

    :param clock: an IReactorTime; retries of a failing log wait on it.
    """
    clock = Clock() if clock is None else clock
    bus = Bus()
    memory_log = MemoryLog()
    publisher = Publisher(
        clock,
        memory_log if log is None else log,
        on_log_failure=on_log_failure,
        on_log_recovery=on_log_recovery,
        keep=recent_events,
    )
    driver = InlineSqliteDriver(
        dsn,
        Chain(instance=instance),
        publisher,
        bus,
        applied_at=lambda: int(clock.seconds()),
        new_instance=lambda: "fedcba9876543210",
    )
    store = MemoryStore(driver, publisher, bus, sinks=sinks, retention=retention, genuine=genuine, on_lost=on_lost)
    store.log, store.driver = memory_log, driver
    failures: list[Any] = []
    Deferred.fromCoroutine(store.start()).addErrback(failures.append)
    if failures:
        failures[0].raiseException()
    return store
