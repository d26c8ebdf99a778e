"""Build a store from a data source name; used by the composition root only."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from identree.core.challenge import GraceSession
from identree.storage.bus import Bus
from identree.storage.jobs import Observe, unobserved
from identree.storage.operations import Retention
from identree.storage.outbox import Chain, Publisher, RecordLog
from identree.storage.script import Driver
from identree.storage.sqlite import SqliteDriver
from identree.storage.store import SqlStore

SQLITE_NAMES = ("sqlite", "sqlite3", "")
POSTGRES_NAMES = ("postgres", "postgresql", "pg", "pgx")


_URL_PASSWORD = re.compile(r"(//[^/?#:@]*):[^/?#]*@")
_PAIR_PASSWORD = re.compile(r"((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'?|[^\s&]*)", re.IGNORECASE)


def masked(dsn: str) -> str:
    """The DSN as it may be logged: without passwords, in both forms."""
    return _PAIR_PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1:***@", dsn))


class LogThread:
    """The thread in which the synchronous log is written: a blocked stdout must not hold the reactor."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, 1, name="identree-log")
        self._started = False

    def __call__(self, function: Callable[[], object]) -> Deferred[object]:
        if not self._started:
            self._pool.start()
            self._started = True
        return deferToThreadPool(self._reactor, self._pool, function)

    def stop(self) -> None:
        """Waits for the call under way, if there is one."""
        if self._started:
            self._pool.stop()
            self._started = False


class _Counting(Driver, Protocol):
    """A driver that accepts a limited number of operations."""

    @property
    def outstanding(self) -> int: ...


class ServedStore(SqlStore):
    """
    A store with threads of its own.

    :ivar log_thread: the one in which the synchronous log is written; runs a function there.
    """

    log_thread: LogThread

    async def stop(self) -> None:
        await super().stop()
        self.log_thread.stop()


def open_store(
    reactor: Any,
    *,
    driver: str,
    dsn: str,
    version: str,
    instance: str = "",
    log: RecordLog | None = None,
    sinks: Sequence[str] = (),
    recent_events: int = 0,
    max_open_conns: int = 25,
    readers: int = 2,
    retention: Retention | None = None,
    genuine: Callable[[GraceSession], bool] = lambda session: True,
    on_log_failure: Callable[[Exception], None] = lambda e: None,
    on_log_recovery: Callable[[], None] = lambda: None,
    on_lost: Callable[[str, int], None] = lambda sink, count: None,
    new_instance: Callable[[], str] = lambda: secrets.token_hex(8),
    monotonic: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] | None = None,
    observe: Observe = unobserved,
) -> ServedStore:
    """
    Nothing is opened before ``start()``.

    :param driver: one of the names above, in any case.
    :param version: the build, which every audit record carries.
    :param instance: the identity of this process's audit chain; empty: the one persisted in the database, right for a
        server that is alone with its database. Replicas must each have their own, the same after every restart.
    :param sinks: names of the configured network sinks.
    :param recent_events: how many of the latest audit records stay in memory for them.
    :param wall: unix seconds; by default the reactor's, which a steadied reactor does not have.
    :param max_open_conns: PostgreSQL only; at least 2.
    :param readers: SQLite only.
    :param observe: told of every operation that was answered: ``read`` or ``write``, the seconds since it was
        submitted, and why it could not be done, or empty.
    :raise ValueError: the driver is unknown or the DSN malformed; the text names no password.
    """
    unix_seconds = wall or reactor.seconds

    def applied_at() -> int:
        return int(unix_seconds())

    chain, bus = Chain(instance=instance, version=version), Bus()
    log_thread = LogThread(reactor)
    publisher = Publisher(
        reactor,
        log,
        in_thread=log_thread,
        on_log_failure=on_log_failure,
        on_log_recovery=on_log_recovery,
        keep=recent_events,
    )
    name = driver.strip().lower()
    built: _Counting
    if name in SQLITE_NAMES:
        built = SqliteDriver(
            reactor,
            dsn,
            chain,
            publisher,
            bus,
            applied_at=applied_at,
            new_instance=new_instance,
            readers=readers,
            monotonic=monotonic,
            observe=observe,
        )
    elif name in POSTGRES_NAMES:
        # psycopg2 and txpostgres are an extra
        from identree.storage.postgres import PostgresDriver

        built = PostgresDriver(
            reactor,
            dsn,
            chain,
            publisher,
            bus,
            applied_at=applied_at,
            new_instance=new_instance,
            connections=max_open_conns,
            monotonic=monotonic,
            observe=observe,
        )
    else:
        raise ValueError(f"unknown database driver {driver!r}; use sqlite or postgres")
    store = ServedStore(
        built,
        publisher,
        bus,
        sinks=sinks,
        retention=retention,
        genuine=genuine,
        on_lost=on_lost,
        version=version,
        outstanding=lambda: built.outstanding,
    )
    store.log_thread = log_thread
    return store
