"""
The SQLite driver (spec/storage sections 1 and 15, design section 3.1).

One writer thread, as SQLite has one writer. Scripts that wait while it is busy are run in one transaction, each in its
savepoint, so that they share the fsync of ``synchronous=FULL``; a refusal undoes only its own savepoint. Their events
are sealed at the end of the same transaction. Readers have connections and threads of their own; WAL lets them run
beside the writer. Threads and connections are those of ``twisted.enterprise.adbapi``; one call of a thread runs a whole
batch, so a busy server pays one hop per batch and not per operation.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import get_ident
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from identree.core import audit
from identree.core.audit import Head, Sealed
from identree.core.errors import StorageUnavailable
from identree.core.events import Event
from identree.storage import migrate, outbox
from identree.storage.bus import Bus
from identree.storage.jobs import (
    BUDGET_SECONDS,
    MOST_OUTSTANDING,
    READ,
    WRITE,
    Job,
    Observe,
    has_events,
    unobserved,
    wake_ups,
    watched,
)
from identree.storage.outbox import LOG, Chain, Publisher
from identree.storage.script import Do, Effects, MakeScript, Row, T, Taken
from identree.storage.times import seconds

# Scripts that share one commit: enough to make the fsync cheap, few enough that the first does not wait long.
MOST_PER_COMMIT = 256
# Reading scripts that one hop takes along.
MOST_PER_READ = 64
# Instructions of SQLite's virtual machine between two looks at the clock, about a millisecond.
_INSTRUCTIONS = 50_000
_CACHED_STATEMENTS = 256

_REASONS = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_READONLY: "read_only",
    sqlite3.SQLITE_PERM: "read_only",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_CANTOPEN: "unreachable",
    sqlite3.SQLITE_INTERRUPT: "overloaded",
    sqlite3.SQLITE_NOMEM: "overloaded",
    sqlite3.SQLITE_IOERR: "error",
    sqlite3.SQLITE_CORRUPT: "error",
    sqlite3.SQLITE_NOTADB: "error",
    sqlite3.SQLITE_PROTOCOL: "locked",
}


def unavailable(e: sqlite3.Error) -> StorageUnavailable | None:
    """What the application may know of a driver's error; None when it is a bug."""
    code = getattr(e, "sqlite_errorcode", None)
    if code is None:
        return None
    reason = _REASONS.get(code & 0xFF)
    return None if reason is None else StorageUnavailable(reason, str(e))


# -- the data source name ---------------------------------------------------------------------------------------------
_PRAGMA = re.compile(r"([A-Za-z_]{1,64})[(=]\s*([A-Za-z0-9_.+-]{1,64})\s*\)?")
# WAL lets readers run beside the writer; FULL makes a commit survive a power cut.
_DEFAULT_PRAGMAS = {
    "journal_mode": "WAL",
    "busy_timeout": "5000",
    "synchronous": "FULL",
    "foreign_keys": "ON",
}
# Parameters of SQLite's own URI syntax; others belong to other drivers.
_URI_PARAMETERS = frozenset({"mode", "cache", "vfs", "immutable", "nolock", "psow", "modeof"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """
    A parsed DSN: a path, ``:memory:`` or a ``file:`` URI, optionally with ``?_pragma=NAME(VALUE)``.

    :ivar database: what sqlite3.connect gets, a URI when ``uri``.
    :ivar path: the file's path; empty for a database in memory.
    :ivar ignored: names of parameters that belong to other drivers.
    """

    database: str
    uri: bool
    path: str
    pragmas: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()

    @property
    def in_memory(self) -> bool:
        return not self.path


def parse_dsn(dsn: str) -> Source:
    """:raise ValueError: what is wrong with it."""
    base, _, query = dsn.partition("?")
    if not base or base == "file:":
        raise ValueError("the SQLite DSN names no file; use a path such as /config/identree.db")
    pragmas: dict[str, str] = {}
    kept: list[tuple[str, str]] = []
    ignored: list[str] = []
    uri = base.startswith("file:")
    for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=50):
        if name == "_pragma":
            match = _PRAGMA.fullmatch(value.strip())
            if match is None:
                raise ValueError(f"_pragma must look like NAME(VALUE), not {value!r}")
            pragmas[match[1].lower()] = match[2]
        elif uri and name in _URI_PARAMETERS:
            kept.append((name, value))
        else:
            ignored.append(name)
    path = base
    if uri:
        path = base.removeprefix("file:")
        if path.startswith("//"):
            path = "/" + path[2:].partition("/")[2]
        path = unquote(path)
    if path == ":memory:" or ("mode", "memory") in kept:
        path = ""
    return Source(
        database=base + ("?" + urlencode(kept) if kept else ""),
        uri=uri,
        path=path,
        pragmas=tuple((_DEFAULT_PRAGMAS | pragmas).items()),
        ignored=tuple(ignored),
    )


# -- one connection, blocking -----------------------------------------------------------------------------------------
class Engine:
    """
    Runs batches on one connection. Blocks, so it lives in a thread (or in a test).

    :param publisher: asked for the log's position, which is saved along with batches.
    """

    def __init__(
        self, connection: Any, chain: Chain, publisher: Publisher, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._chain = chain
        self._publisher = publisher
        self._monotonic = monotonic
        self._deadline = float("inf")
        self._writes: dict[str, bool] = {}
        connection.set_progress_handler(self._late, _INSTRUCTIONS)

    def _late(self) -> bool:
        return self._monotonic() > self._deadline

    def commit(self, jobs: Sequence[Job]) -> list[Sealed]:
        """
        Run the scripts in one transaction and seal their events; every job has its result or failure afterwards.

        :returns: the sealed records.
        """
        jobs = [job for job in jobs if self._wanted(job)]
        if not jobs:
            return []
        try:
            return self._transaction(jobs)
        except StorageUnavailable as e:
            if len(jobs) == 1:
                jobs[0].fail(e)
                return []
        # One of them cannot be done, or they cannot be done together: each for itself.
        sealed: list[Sealed] = []
        for job in jobs:
            job.reset()
            try:
                sealed += self._transaction([job])
            except StorageUnavailable as e:
                job.fail(e)
                if e.reason == "locked":  # each attempt waits its full time: the rest would wait for ever
                    self._give_up(jobs[jobs.index(job) + 1 :], e)
                    break
        return sealed

    def read(self, jobs: Sequence[Job]) -> None:
        """Run scripts that only read."""
        for job in jobs:
            if not self._wanted(job):
                continue
            self._deadline = job.deadline
            try:
                self._run(job, writable=False)
            except StorageUnavailable as e:
                job.fail(e)
            finally:
                self._deadline = float("inf")

    def _give_up(self, jobs: Sequence[Job], e: StorageUnavailable) -> None:
        for job in jobs:
            job.fail(StorageUnavailable(e.reason))

    def _wanted(self, job: Job) -> bool:
        if job.cancelled:
            return False
        if self._monotonic() > job.deadline:
            job.fail(StorageUnavailable("overloaded", "waited too long"))
            return False
        return True

    def _transaction(self, jobs: Sequence[Job]) -> list[Sealed]:
        """:raise StorageUnavailable: nothing of it was done."""
        self._deadline = max(job.deadline for job in jobs)
        try:
            self._execute("BEGIN IMMEDIATE")
            try:
                events: list[tuple[Event, str]] = []
                for job in jobs:
                    self._run(job, writable=True)
                    for effects in job.effects:
                        events.extend((event, job.request_id) for event in effects.events)
                sealed = self._seal(events) if events else []
                # only a whole transaction may be interrupted by the clock, not its commit
                self._deadline = float("inf")
                self._execute("COMMIT")
                return sealed
            except BaseException:
                self._roll_back()
                raise
        except sqlite3.Error as e:
            reason = unavailable(e)
            if reason is None:
                raise
            raise reason from e
        finally:
            self._deadline = float("inf")

    def _roll_back(self) -> None:
        self._deadline = float("inf")
        # SQLite ends the transaction by itself after some errors
        if self._connection.in_transaction:
            self._execute("ROLLBACK")

    def _run(self, job: Job, *, writable: bool) -> None:
        """:raise StorageUnavailable: the transaction is beyond repair."""
        execute = self._execute
        script = job.make()
        saved = False
        try:
            wish = next(script)
            while True:
                if type(wish) is tuple:
                    sql, parameters = wish
                    rows: list[Row] | None = None
                elif type(wish) is Do:
                    sql, parameters = wish.sql, wish.parameters
                    rows = []
                elif type(wish) is Effects:
                    job.effects.append(wish)
                    wish = script.send([])
                    continue
                else:  # Owner, OwnerOf: BEGIN IMMEDIATE has serialised already
                    wish = script.send([])
                    continue
                if not saved and writable and self._is_write(sql):
                    execute("SAVEPOINT script")
                    saved = True
                cursor = execute(sql, parameters)
                wish = script.send(cursor.fetchall() if rows is None else rows)
        except StopIteration as stop:
            job.result = stop.value
            if saved:
                execute("RELEASE script")
        except sqlite3.Error as e:
            script.close()
            reason = unavailable(e)
            if reason is not None:
                raise reason from e
            code_taken = getattr(e, "sqlite_errorcode", 0) == sqlite3.SQLITE_CONSTRAINT_UNIQUE and "user_code" in str(e)
            self._undo(job, Taken() if code_taken else e, saved)
        except StorageUnavailable as e:
            # a script's own: it concerns nobody else
            self._undo(job, e, saved)
        except Exception as e:
            self._undo(job, e, saved)

    def _undo(self, job: Job, e: BaseException, saved: bool) -> None:
        job.fail(e)
        if saved:
            self._execute("ROLLBACK TO script")
            self._execute("RELEASE script")

    def _is_write(self, sql: str) -> bool:
        write = self._writes.get(sql)
        if write is None:
            write = self._writes[sql] = not sql.lstrip().upper().startswith("SELECT")
        return write

    def _seal(self, events: Sequence[tuple[Event, str]]) -> list[Sealed]:
        instance, version = self._publisher.instance, self._chain.version
        rows: list[Row] = self._execute(outbox.HEAD, {"instance": instance}).fetchall()
        head = Head(*rows[0]) if rows else Head()
        sealed: list[Sealed] = []
        records: list[dict[str, object]] = []
        for event, request_id in events:
            head, record = audit.seal(head, audit.fields(event, request_id), version=version, instance=instance)
            sealed.append(record)
            records.append(outbox.sealed_row(record, seconds(event.at)))
        self._connection.executemany(outbox.INSERT_SEALED, records)
        self._execute(outbox.SAVE_HEAD, {"instance": instance, "next_seq": head.next_seq, "hash": head.hash})
        position = self._publisher.position
        if position > self._publisher.saved_position:
            # lazily: the log itself knows better, this only bounds what a restart must look through
            self._execute(outbox.SAVE_CURSOR, {"instance": instance, "sink": LOG, "seq": position})
            self._publisher.saved_position = position
        return sealed


def create_file(source: Source) -> None:
    """
    Make the file when there is none, readable by its owner only: it holds escrow ciphertext and login verifiers. The
    journal files get the mode of the database. A directory that is missing is not made.

    :raise OSError: it cannot be made.
    """
    if source.path and "mode=" not in source.database and not os.path.exists(source.path):
        os.close(os.open(source.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def connect(source: Source) -> sqlite3.Connection:
    """:raise sqlite3.Error, OSError: it cannot be opened."""
    create_file(source)
    connection = sqlite3.connect(
        source.database,
        uri=source.uri,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_CACHED_STATEMENTS,
    )
    prepare(connection, source)
    return connection


def prepare(connection: Any, source: Source, *, read_only: bool = False) -> None:
    """The pragmas of a fresh connection."""
    for name, value in sorted(source.pragmas, key=lambda pragma: pragma[0] != "busy_timeout"):
        if read_only and name == "journal_mode":
            continue
        connection.execute(f"PRAGMA {name}({value})")
    if read_only:
        connection.execute("PRAGMA query_only(ON)")


def upgrade(connection: sqlite3.Connection, source: Source, applied_at: int) -> int:
    """
    Bring the schema up to date; an existing database is copied to ``PATH.before-NNN`` first. Blocks.

    :returns: the version.
    :raise SchemaTooNew: it is ahead of this program.
    """
    known = migrate.migrations(migrate.SQLITE)
    execute = connection.execute
    tables = {name for (name,) in execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    version = 0
    if "schema_migrations" in tables:
        [(version,)] = execute(migrate.CURRENT).fetchall()
    for migration in migrate.pending(version, known):
        copy = ""
        if source.path and tables:
            copy = _copy(connection, source.path, migration.version)
        execute("BEGIN IMMEDIATE")
        try:
            execute(migrate.BOOKKEEPING.replace("BIGINT", "INTEGER"))
            for sql, parameters in migrate.steps(migration, applied_at):
                execute(sql, parameters)
            execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                execute("ROLLBACK")
            if copy:  # the database is as it was
                os.unlink(copy)
            raise
    return known[-1].version


def _copy(connection: sqlite3.Connection, path: str, version: int) -> str:
    """A consistent copy, made durable before the original is touched. Never overwrites an older one."""
    base = f"{path}.before-{version:03}"
    for attempt in range(100):
        name = base if attempt == 0 else f"{base}.{attempt}"
        try:
            os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            continue
        break
    else:
        raise StorageUnavailable("error", f"there are too many copies named {base}")
    try:
        copy = sqlite3.connect(name)
        try:
            connection.backup(copy)
        finally:
            copy.close()
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        os.unlink(name)
        raise
    return name


# -- the drivers ------------------------------------------------------------------------------------------------------
class _Deliveries:
    """What both drivers do on the reactor once a batch is committed."""

    def __init__(self, bus: Bus, publisher: Publisher) -> None:
        self._bus = bus
        self._publisher = publisher

    def committed(self, jobs: Sequence[Job], sealed: Sequence[Sealed], answered: Callable[[int], None]) -> None:
        """:param answered: told how many operations have just been answered."""
        waiting = [job for job in jobs if has_events(job)] if sealed else []

        def answer() -> None:
            answered(len(waiting))
            for job in waiting:
                job.fire()

        if sealed:
            self._publisher.publish(sealed, answer)
        # who is woken reads the truth, which is committed
        self._bus.deliver(wake_ups(jobs))
        others = [job for job in jobs if not has_events(job)] if waiting else jobs
        answered(len(others))
        for job in others:
            job.fire()


class InlineSqliteDriver:
    """Everything at once, in the calling thread: for tests and for tools."""

    def __init__(
        self,
        dsn: str,
        chain: Chain,
        publisher: Publisher,
        bus: Bus,
        *,
        applied_at: Callable[[], int],
        new_instance: Callable[[], str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = parse_dsn(dsn)
        self._chain = chain
        self._publisher = publisher
        self._deliveries = _Deliveries(bus, publisher)
        self._applied_at = applied_at
        self._new_instance = new_instance
        self._monotonic = monotonic
        self.connection: sqlite3.Connection | None = None
        self._engine: Engine | None = None

    async def start(self) -> None:
        self.connection = _opened(self._source, self._applied_at())
        self._engine = Engine(self.connection, self._chain, self._publisher, self._monotonic)
        instance = self._chain.instance or await self.write(lambda: outbox.identify(self._new_instance()))
        await self._publisher.start(self, instance)

    async def stop(self) -> None:
        await self._publisher.stop()
        instance, position = self._publisher.instance, self._publisher.position
        if self.connection is not None:
            if position > self._publisher.saved_position:
                with suppress(StorageUnavailable):  # the log knows where it stands
                    await self.write(lambda: outbox.save_cursor(instance, LOG, position))
            self.connection.close()
        self._engine = self.connection = None

    def write(self, make: MakeScript[T]) -> Deferred[T]:
        job = Job(make, self._monotonic() + BUDGET_SECONDS)
        if self._engine is None:
            job.fail(StorageUnavailable("unreachable", "the store is closed"))
            job.fire()
        else:
            sealed = self._engine.commit([job])
            self._deliveries.committed([job], sealed, lambda _: None)
        return job.answer

    def read(self, make: MakeScript[T]) -> Deferred[T]:
        job = Job(make, self._monotonic() + BUDGET_SECONDS)
        if self._engine is None:
            job.fail(StorageUnavailable("unreachable", "the store is closed"))
        else:
            self._engine.read([job])
        job.fire()
        return job.answer


def _opened(source: Source, applied_at: int) -> sqlite3.Connection:
    """:raise StorageUnavailable, SchemaTooNew: it cannot be used."""
    try:
        connection = connect(source)
        try:
            upgrade(connection, source, applied_at)
        except BaseException:
            connection.close()
            raise
    except OSError as e:
        raise StorageUnavailable("unreachable", f"{source.path}: {e.strerror}") from e
    except sqlite3.Error as e:
        raise (unavailable(e) or StorageUnavailable("error", str(e))) from e
    return connection


class _Lane:
    """A queue before one or more threads: what waits while they are busy is taken along together."""

    def __init__(
        self,
        pool: adbapi.ConnectionPool,
        workers: int,
        most: int,
        work: Callable[[Any, list[Job]], Any],
        done: Callable[[list[Job], Any], None],
    ) -> None:
        self._pool = pool
        self._workers = workers
        self._most = most
        self._work = work
        self._done = done
        self._waiting: deque[Job] = deque()
        self._busy = 0
        self._idle: list[Deferred[None]] = []

    def add(self, job: Job) -> None:
        self._waiting.append(job)
        if self._busy < self._workers:
            self._next()

    async def drain(self) -> None:
        while self._busy or self._waiting:
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            await idle

    def _next(self) -> None:
        waiting = self._waiting
        if len(waiting) <= self._most:
            jobs = list(waiting)
            waiting.clear()
        else:
            jobs = [waiting.popleft() for _ in range(self._most)]
        self._busy += 1
        self._pool.runWithConnection(self._work, jobs).addCallbacks(
            self._finished, self._broken, callbackArgs=(jobs,), errbackArgs=(jobs,)
        )

    def _finished(self, result: Any, jobs: list[Job]) -> None:
        self._busy -= 1
        if self._waiting:
            # the thread works on while the reactor answers
            self._next()
        self._done(jobs, result)
        self._rest()

    def _broken(self, failure: Failure, jobs: list[Job]) -> None:
        """The connection cannot be used, or the driver has a bug."""
        error: BaseException = failure.value or RuntimeError("no failure")
        if isinstance(error, sqlite3.Error):
            error = unavailable(error) or error
        for job in jobs:
            job.fail(error)
        self._busy -= 1
        if self._waiting:
            self._next()
        self._done(jobs, [])
        self._rest()

    def _rest(self) -> None:
        if not self._busy and not self._waiting:
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)


class SqliteDriver:
    """
    The server's driver: a writer thread and reader threads.

    A database in memory has only the writer's connection, which then reads too.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        dsn: str,
        chain: Chain,
        publisher: Publisher,
        bus: Bus,
        *,
        applied_at: Callable[[], int],
        new_instance: Callable[[], str],
        readers: int = 2,
        monotonic: Callable[[], float] = time.monotonic,
        observe: Observe = unobserved,
    ) -> None:
        """
        :param reactor: has the threads (IReactorThreads).
        :param applied_at: unix seconds, for the rows of migrations.
        :param new_instance: makes an identity for a database that has none.
        :param readers: threads and connections that only read.
        :param observe: told of every operation that was answered.
        :raise ValueError: the DSN is malformed.
        """
        self._reactor = reactor
        self._source = parse_dsn(dsn)
        self._chain = chain
        self._publisher = publisher
        self._deliveries = _Deliveries(bus, publisher)
        self._applied_at = applied_at
        self._new_instance = new_instance
        self._readers = readers
        self._monotonic = monotonic
        self._observe = observe
        self._outstanding = 0
        self._engines: dict[int, Engine] = {}
        self._pools: list[adbapi.ConnectionPool] = []
        self._writer: _Lane | None = None
        self._reader: _Lane | None = None

    @property
    def outstanding(self) -> int:
        """Operations accepted and not yet answered."""
        return self._outstanding

    async def start(self) -> None:
        for name in self._source.ignored:
            self._log.warn("the database DSN's parameter {name} is not known here and is ignored", name=name)
        try:
            create_file(self._source)
        except OSError as e:
            raise StorageUnavailable("unreachable", f"{self._source.path}: {e.strerror}") from e
        writing = self._pool(1, self._open_writer)
        self._pools.append(writing)
        try:
            await _first_use(writing)
            self._writer = _Lane(writing, 1, MOST_PER_COMMIT, self._commit, self._committed)
            if self._source.in_memory:
                self._reader = None
            else:
                reading = self._pool(self._readers, self._open_reader)
                self._pools.append(reading)
                self._reader = _Lane(reading, self._readers, MOST_PER_READ, self._read, self._answered)
            instance = self._chain.instance or await self.write(lambda: outbox.identify(self._new_instance()))
            await self._publisher.start(self, instance)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        writer, reader = self._writer, self._reader
        if writer is not None:
            await writer.drain()
        await self._publisher.stop()
        instance, position = self._publisher.instance, self._publisher.position
        if writer is not None and position > self._publisher.saved_position:
            with suppress(StorageUnavailable):  # the log knows where it stands
                await self.write(lambda: outbox.save_cursor(instance, LOG, position))
        self._writer = self._reader = None
        if writer is not None:
            await writer.drain()
        if reader is not None:
            await reader.drain()
        for pool in self._pools:
            pool.close()
        self._pools.clear()
        self._engines.clear()

    def write(self, make: MakeScript[T]) -> Deferred[T]:
        return self._submit(self._writer, make, WRITE)

    def read(self, make: MakeScript[T]) -> Deferred[T]:
        return self._submit(self._writer if self._reader is None else self._reader, make, READ)

    def _submit(self, lane: _Lane | None, make: MakeScript[T], operation: str) -> Deferred[T]:
        job = Job(make, self._monotonic() + BUDGET_SECONDS)
        answer = watched(job, operation, self._monotonic, self._observe)
        if lane is None:
            job.fail(StorageUnavailable("unreachable", "the store is closed"))
            job.fire()
        elif self._outstanding >= MOST_OUTSTANDING:
            job.fail(StorageUnavailable("overloaded", "too many operations wait"))
            job.fire()
        else:
            self._outstanding += 1
            lane.add(job)
        return answer

    # -- in the threads -----------------------------------------------------------------------------------------------
    def _pool(self, size: int, prepare: Callable[[Any], None]) -> adbapi.ConnectionPool:
        source = self._source
        return adbapi.ConnectionPool(
            "sqlite3",
            source.database,
            uri=source.uri,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=_CACHED_STATEMENTS,
            cp_min=size,
            cp_max=size,
            cp_reactor=self._reactor,
            cp_openfun=prepare,
            cp_name="identree",
        )

    def _open_writer(self, connection: Any) -> None:
        prepare(connection, self._source)
        upgrade(connection, self._source, self._applied_at())
        self._equip(connection)

    def _open_reader(self, connection: Any) -> None:
        prepare(connection, self._source, read_only=True)
        self._equip(connection)

    def _equip(self, connection: Any) -> None:
        # adbapi keeps one connection per thread
        self._engines[get_ident()] = Engine(connection, self._chain, self._publisher, self._monotonic)

    def _commit(self, _: object, jobs: list[Job]) -> list[Sealed]:
        return self._engines[get_ident()].commit(jobs)

    def _read(self, _: object, jobs: list[Job]) -> None:
        self._engines[get_ident()].read(jobs)

    # -- on the reactor -----------------------------------------------------------------------------------------------
    def _committed(self, jobs: list[Job], sealed: list[Sealed]) -> None:
        self._deliveries.committed(jobs, sealed, self._leave)

    def _answered(self, jobs: list[Job], _: object) -> None:
        self._leave(len(jobs))
        for job in jobs:
            job.fire()

    def _leave(self, count: int) -> None:
        self._outstanding -= count


async def _first_use(pool: adbapi.ConnectionPool) -> None:
    """Open the connection now, so that a database that cannot be used stops the start."""
    try:
        await pool.runWithConnection(lambda connection: None)
    except sqlite3.Error as e:
        raise (unavailable(e) or StorageUnavailable("error", str(e))) from e
