"""
The PostgreSQL driver over txpostgres (spec/storage sections 1, 8, 10 and 15).

A round trip costs more than a statement, so statements whose rows nobody wants travel with the next one: ``BEGIN``, the
owner's lock and the first question go together, and so do the last writes, the events, ``NOTIFY`` and ``COMMIT``. Each
statement of such a message has its own snapshot, so what is read behind the lock is the truth.

Events are sealed in a second small transaction; while one runs, later commits wait for the next and share it. The same
transaction tells the other replicas by ``NOTIFY``, which carries an id, never state.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg2
import psycopg2.errors
from psycopg2.extensions import POLL_READ, POLL_WRITE
from psycopg2.extensions import parse_dsn as libpq_parse
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from txpostgres import txpostgres
from zope.interface import implementer

from identree.core.audit import Sealed
from identree.core.challenge import Live
from identree.core.errors import StorageUnavailable
from identree.storage import migrate, outbox
from identree.storage.bus import RESYNC, Bus
from identree.storage.directory import PUBLISHED
from identree.storage.jobs import (
    BUDGET_SECONDS,
    MOST_OUTSTANDING,
    READ,
    WRITE,
    Job,
    Observe,
    has_events,
    on_behalf_of_nobody,
    unobserved,
    wake_ups,
    watched,
)
from identree.storage.notices import RELOAD_NOTIFY
from identree.storage.outbox import LOG, Chain, Publisher
from identree.storage.script import Do, Effects, MakeScript, Owner, OwnerOf, Row, Script, T, Taken

# The class of the per-owner advisory locks: any constant that all replicas share.
OWNER_LOCKS = 7_294_829
# How often a transaction is begun when the server asks for a repetition or the connection turns out to be dead.
ATTEMPTS = 4
# The server ends a statement, or its wait for a lock, after these.
STATEMENT_TIMEOUT_MS = 5_000
LOCK_TIMEOUT_MS = 4_000
# A whole transaction that is not over by then has lost its server; seconds.
SILENCE_SECONDS = 12.0
CONNECT_SECONDS = 5.0
# Waiting for another replica's migration, and for one's own; milliseconds.
MIGRATION_TIMEOUT_MS = 120_000

SSE = "identree_sse"
CLUSTER = "identree_cluster"
# NOTIFY takes at most 7999 bytes; longer bodies go through cluster_messages (spec/storage section 10).
LONGEST_PAYLOAD = 6_000
# Between attempts to listen again, in seconds.
RELISTEN_SECONDS = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)
# A half-open link is noticed by this; seconds.
PING_SECONDS = 30.0

_REASONS = {
    "25006": "read_only",  # read_only_sql_transaction
    "53100": "full",  # disk_full
    "53200": "overloaded",  # out_of_memory
    "53300": "overloaded",  # too_many_connections
    "55P03": "locked",  # lock_not_available
    "57014": "overloaded",  # query_canceled: the statement timeout
    "40001": "locked",  # serialization_failure, repeated in vain
    "40P01": "locked",  # deadlock_detected, repeated in vain
    "58030": "error",  # io_error
    "XX001": "error",  # data_corrupted
    "XX002": "error",  # index_corrupted
}
_REPEAT = frozenset({"40001", "40P01"})
_GONE = ("08", "57P")

_MESSAGE = "SELECT payload FROM cluster_messages WHERE id = :id AND topic = :topic"


def lost(e: BaseException) -> bool:
    """Whether the connection is gone."""
    if isinstance(e, (ConnectionDone, ConnectionLost, psycopg2.InterfaceError)):
        return True
    if isinstance(e, psycopg2.Error):
        code = e.pgcode or ""
        return code.startswith(_GONE) or (isinstance(e, psycopg2.OperationalError) and not code)
    return False


def unavailable(e: BaseException) -> StorageUnavailable | None:
    """What the application may know of a driver's error; None when it is a bug."""
    if isinstance(e, psycopg2.Error) and e.pgcode in _REASONS:
        return StorageUnavailable(_REASONS[e.pgcode], e.pgcode)
    if lost(e):
        return StorageUnavailable("unreachable", type(e).__name__)
    return None


def taken(e: BaseException) -> Taken | None:
    """Whether it is the user code that exists already."""
    if isinstance(e, psycopg2.errors.UniqueViolation) and "user_code" in (e.diag.constraint_name or ""):
        return Taken()
    return None


# -- the data source name ---------------------------------------------------------------------------------------------
_LIBPQ = frozenset(
    """
    host hostaddr port dbname user password passfile require_auth channel_binding connect_timeout client_encoding
    options application_name fallback_application_name keepalives keepalives_idle keepalives_interval keepalives_count
    tcp_user_timeout replication gssencmode sslmode requiressl sslnegotiation sslcompression sslcert sslkey sslpassword
    sslcertmode sslrootcert sslcrl sslcrldir sslsni requirepeer ssl_min_protocol_version ssl_max_protocol_version
    krbsrvname gsslib gssdelegation service target_session_attrs load_balance_hosts
    """.split()
)
_PAIR = re.compile(r"\s*([A-Za-z_]+)\s*=\s*('(?:[^'\\]|\\.)*'|[^\s']\S*|)")


def parse_dsn(dsn: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """
    Understand the URL and the ``key=value`` form.

    :returns: libpq's parameters, and the names of those that belong to drivers of old deployments and are ignored.
    :raise ValueError: it is malformed; the text shows nothing of it, as it may hold a password.
    """
    ignored: list[str] = []
    if not dsn.strip():
        raise ValueError("the PostgreSQL DSN is empty; use postgresql://USER:PASSWORD@HOST/DATABASE")
    try:
        if dsn.startswith(("postgres://", "postgresql://")):
            parts = urlsplit(dsn)
            kept = []
            for name, value in parse_qsl(parts.query, keep_blank_values=True, max_num_fields=100):
                if name in _LIBPQ:
                    kept.append((name, value))
                else:
                    ignored.append(name)
            dsn = urlunsplit(parts._replace(query=urlencode(kept, quote_via=quote)))
        else:
            pairs = []
            position = 0
            while dsn[position:].strip():
                match = _PAIR.match(dsn, position)
                if match is None:
                    raise ValueError
                position = match.end()
                if match[1] in _LIBPQ:
                    pairs.append(f"{match[1]}={match[2] or chr(39) * 2}")
                else:
                    ignored.append(match[1])
            dsn = " ".join(pairs)
        parameters = {name: str(value) for name, value in libpq_parse(dsn).items()}
    except (ValueError, psycopg2.Error):
        raise ValueError(
            "the PostgreSQL DSN is malformed; use postgresql://USER:PASSWORD@HOST/DATABASE "
            "or host=HOST dbname=DATABASE user=USER password=PASSWORD"
        ) from None
    return parameters, tuple(ignored)


# -- statements -------------------------------------------------------------------------------------------------------
_PARAMETER = re.compile(r":([a-z_]+)")
_OURS = re.compile(r"/\*postgres (.*?)\*/", re.DOTALL)
_texts: dict[str, tuple[str, str]] = {}


def translate(sql: str) -> tuple[str, str]:
    """The text for psycopg2, with and without parameters."""
    found = _texts.get(sql)
    if found is None:
        bare = _OURS.sub(r"\1", sql)
        found = _texts[sql] = (_PARAMETER.sub(r"%(\1)s", bare.replace("%", "%%")), bare)
    return found


@implementer(IReadWriteDescriptor)
class _Link:
    """
    A connection's descriptor in the reactor: a duplicate that is ours to close. libpq closes its own whenever it likes,
    and the number may be somebody else's before the reactor has forgotten it.
    """

    def __init__(self, descriptor: int, connection: _Connection) -> None:
        self._descriptor = os.dup(descriptor)
        self._connection = connection

    def fileno(self) -> int:
        return self._descriptor

    def logPrefix(self) -> str:
        return "postgres"

    def doRead(self) -> None:
        self._connection.readable()

    def doWrite(self) -> None:
        self._connection.writable()

    def connectionLost(self, reason: Failure) -> None:
        self._connection.abandon()

    def close(self) -> None:
        """After the reactor has let go of it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


# A statement with its parameters, or bytes that go as they are.
Part = tuple[str, Mapping[str, object]] | bytes
_preparable: dict[str, tuple[str, str]] = {}


def preparable(sql: str) -> tuple[str, str]:
    """The text with numbered parameters, and psycopg2's list of the parameters by name, in parentheses or empty."""
    found = _preparable.get(sql)
    if found is None:
        bare = _OURS.sub(r"\1", sql)
        names = list(dict.fromkeys(_PARAMETER.findall(bare)))
        numbered = _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", bare)
        given = f" ({', '.join(f'%({name})s' for name in names)})" if names else ""
        found = _preparable[sql] = (numbered, given)
    return found


class _Connection(txpostgres.Connection):  # type: ignore[misc]
    """
    txpostgres connects; queries go straight to psycopg2, with the descriptor registered all the time: the library's
    cursors register anew twice per query, which costs as much as the query. The loss of the connection is an event
    here and not an exception where nobody can catch it.
    """

    def __init__(self, reactor: Any, on_lost: Callable[[_Connection], None]) -> None:
        super().__init__(reactor=reactor)
        self._on_lost: Callable[[_Connection], None] | None = on_lost
        self.on_notify: Callable[[str, str], None] = lambda channel, payload: None
        self._cursor: Any = None
        self._link: _Link | None = None
        self._answer: Deferred[list[Row]] | None = None
        # names of the statements that the server has parsed and planned; and how many names have been used
        self._prepared: dict[str, str] = {}
        self._names = 0

    @property
    def usable(self) -> bool:
        return self._link is not None and not self._connection.closed

    def _cancel(self, d: Deferred[Any]) -> None:
        # the library would ask a server for it that there is no connection to yet
        self.abandon()

    async def open(self, parameters: Mapping[str, Any]) -> None:
        """:raise psycopg2.Error, ConnectionDone: there is no connection."""
        await self.connect(**parameters)
        self.reactor.removeReader(self)
        self._cursor = self._connection.cursor()
        self._link = _Link(self._connection.fileno(), self)
        self.reactor.addReader(self._link)

    def text(self, sql: str, parameters: Mapping[str, object]) -> bytes:
        """The statement with its parameters written in."""
        with_parameters, bare = translate(sql)
        if not parameters:
            return bare.encode()
        text: bytes = self._cursor.mogrify(with_parameters, parameters)
        return text

    def send(self, message: Sequence[Part]) -> Deferred[list[Row]]:
        """
        As :meth:`query`, each statement prepared by the message that has it first. Planning our short statements anew
        every time costs the server several times what running them does.
        """
        fresh: list[str] = []
        text = b";".join(part if isinstance(part, bytes) else self._named(part[0], part[1], fresh) for part in message)
        try:
            answer = self.query(text)
        except BaseException:
            self._doubt(fresh)
            raise
        if fresh:
            answer.addErrback(self._in_doubt, fresh)
        return answer

    def _named(self, sql: str, parameters: Mapping[str, object], fresh: list[str]) -> bytes:
        text, given = preparable(sql)
        name = self._prepared.get(sql)
        first = b""
        if name is None:
            self._names += 1
            name = self._prepared[sql] = f"s{self._names}"
            fresh.append(sql)
            first = f"PREPARE {name} AS {text};".encode()
        call = f"EXECUTE {name}{given}"
        return first + (self._cursor.mogrify(call, parameters) if given else call.encode())

    def _doubt(self, fresh: Sequence[str]) -> None:
        """Nobody knows how far the message came: they get new names."""
        for sql in fresh:
            self._prepared.pop(sql, None)

    def _in_doubt(self, failure: Failure, fresh: Sequence[str]) -> Failure:
        self._doubt(fresh)
        return failure

    def query(self, text: bytes) -> Deferred[list[Row]]:
        """
        One round trip; fires with the rows of the last statement in it. One at a time.

        :raise psycopg2.Error, ConnectionDone: also through the Deferred.
        """
        if self._answer is not None:
            raise RuntimeError("a query is under way on this connection")
        if not self.usable:
            raise ConnectionDone
        self._cursor.execute(text)
        answer = self._answer = Deferred()
        self._advance()
        return answer

    def readable(self) -> None:
        """The server has sent something, or is gone."""
        if not self.usable:
            self.abandon()
            return
        self._advance()
        if self.usable and self._connection.notifies:
            self.checkForNotifies()

    def look(self) -> None:
        """Notice now what the reactor would tell in its next turn."""
        if self._link is not None:
            waiting = select.poll()
            waiting.register(self._link.fileno(), select.POLLIN)
            if waiting.poll(0):
                self.readable()

    def writable(self) -> None:
        """The rest of a long query can go."""
        if self._link is not None:
            self.reactor.removeWriter(self._link)
        if self.usable:
            self._advance()

    def _advance(self) -> None:
        try:
            state = self._connection.poll()
            if state == POLL_READ:
                return
            if state == POLL_WRITE:
                self.reactor.addWriter(self._link)
                return
            cursor = self._cursor
            rows = cursor.fetchall() if self._answer is not None and cursor.description else []
        except psycopg2.Error as e:
            answer, self._answer = self._answer, None
            if answer is None or not self.usable:
                self.abandon()
            if answer is not None:
                answer.errback(Failure(e))
            return
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.callback(rows)

    def checkForNotifies(self) -> None:
        # as they come and in order; the library's cooperator would take the global reactor
        notifies = self._connection.notifies
        while notifies:
            notify = notifies.pop(0)
            self.on_notify(notify.channel, notify.payload)

    def abandon(self) -> None:
        """Close it; whatever waits for an answer fails with ConnectionDone."""
        link, self._link = self._link, None
        if link is not None:
            self.reactor.removeReader(link)
            self.reactor.removeWriter(link)
            link.close()
            self._connection.close()
        elif self._connection is not None and not self._connection.closed:
            self.close()  # still connecting: txpostgres has the descriptor
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.errback(Failure(ConnectionDone()))
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(self)


class PostgresDriver:
    """A pool of connections for transactions and one more that listens."""

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
        connections: int = 25,
        monotonic: Callable[[], float] = time.monotonic,
        observe: Observe = unobserved,
    ) -> None:
        """
        :param connections: size of the pool, at least 2 whatever is asked for.
        :param observe: told of every operation that was answered.
        :raise ValueError: the DSN is malformed.
        """
        self._reactor = reactor
        self._parameters, self._ignored = parse_dsn(dsn)
        self._chain = chain
        self._publisher = publisher
        self._bus = bus
        self._applied_at = applied_at
        self._new_instance = new_instance
        self._size = max(2, connections)
        self._monotonic = monotonic
        self._observe = observe
        # tells our own notifications from those of other replicas, also of ones with our identity
        self._origin = new_instance()
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._workers = 0
        self._waiting: deque[Job] = deque()
        self._outstanding = 0
        self._unsealed: list[Job] = []
        # effects of committed operations that the other replicas have not been told of
        self._untold: list[Effects] = []
        self._sealing: Deferred[None] | None = None
        self._seal_again: Any = None
        self._quiet: list[Deferred[None]] = []
        self._open = False
        self._listening: Deferred[None] | None = None
        self._stopping = False

    @property
    def outstanding(self) -> int:
        """Operations accepted and not yet answered."""
        return self._outstanding

    @property
    def open_connections(self) -> int:
        """Of the pool."""
        return len(self._all)

    # -- life ---------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        for name in self._ignored:
            self._log.warn("the database DSN's parameter {name} is not PostgreSQL's and is ignored", name=name)
        try:
            await self._migrate()
        except (psycopg2.Error, ConnectionDone, OSError) as e:
            raise (unavailable(e) or StorageUnavailable("error", type(e).__name__)) from e
        self._open = True
        try:
            instance = self._chain.instance or await self.write(lambda: outbox.identify(self._new_instance()))
            self._publisher.instance = instance
            # what a crash left unsealed
            while len(await self._seal_once()) == outbox.BATCH:
                pass
            await self._publisher.start(self, instance)
            # listening comes first, whatever is read for a cache comes later
            first: Deferred[None] = Deferred()
            self._listening = Deferred.fromCoroutine(self._listen(first)).addErrback(self._deaf, first)
            await first
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        self._stopping = True
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.cancel()
            await listening
        if self._seal_again is not None:
            self._seal_again.cancel()
            self._seal_again = None
        await self._quiesce()
        await self._publisher.stop()
        position = self._publisher.position
        if self._open and position > self._publisher.saved_position:
            try:
                await self.write(lambda: outbox.save_cursor(self._publisher.instance, LOG, position))
            except StorageUnavailable:
                self._log.info("the log's cursor could not be saved; the log knows where it stands")
        self._open = False
        await self._quiesce()
        for connection in list(self._all):
            connection.abandon()

    async def _quiesce(self) -> None:
        while self._workers or self._sealing is not None:
            quiet: Deferred[None] = Deferred()
            self._quiet.append(quiet)
            await quiet

    def _rest(self) -> None:
        if not self._workers and self._sealing is None:
            quiet, self._quiet = self._quiet, []
            for waiter in quiet:
                waiter.callback(None)

    # -- operations ---------------------------------------------------------------------------------------------------
    def write(self, make: MakeScript[T]) -> Deferred[T]:
        return self._submit(_Writing(make, self._monotonic() + BUDGET_SECONDS), WRITE)

    def read(self, make: MakeScript[T]) -> Deferred[T]:
        return self._submit(Job(make, self._monotonic() + BUDGET_SECONDS), READ)

    def _submit(self, job: Job, operation: str) -> Deferred[Any]:
        answer = watched(job, operation, self._monotonic, self._observe)
        if not self._open:
            job.fail(StorageUnavailable("unreachable", "the store is closed"))
            job.fire()
        elif self._outstanding >= MOST_OUTSTANDING:
            job.fail(StorageUnavailable("overloaded", "too many operations wait"))
            job.fire()
        else:
            self._outstanding += 1
            self._enqueue(job)
        return answer

    def _enqueue(self, job: Job) -> None:
        self._waiting.append(job)
        if self._workers < self._size:
            self._workers += 1
            on_behalf_of_nobody(self._work()).addErrback(self._bug)

    def _bug(self, failure: Failure) -> None:
        self._log.failure("the PostgreSQL driver failed", failure=failure)

    def _deaf(self, failure: Failure, first: Deferred[None]) -> None:
        """A bug has ended the listening."""
        self._bug(failure)
        if not first.called:
            first.errback(failure)

    async def _work(self) -> None:
        """Serve what waits, on one connection; many of these run at once."""
        connection: _Connection | None = None
        try:
            while self._waiting:
                job = self._waiting.popleft()
                if job.cancelled:
                    self._answer(job)
                    continue
                if self._monotonic() > job.deadline:
                    job.fail(StorageUnavailable("overloaded", "waited too long"))
                    self._answer(job)
                    continue
                try:
                    connection = await self._attempt(job, connection)
                except Exception as e:  # a bug: it concerns this operation only
                    job.fail(e)
                    if connection is not None:
                        connection.abandon()
                        connection = None
                self._done(job)
        finally:
            self._workers -= 1
            if connection is not None and connection.usable:
                self._idle.append(connection)
            self._rest()

    async def _attempt(self, job: Job, connection: _Connection | None) -> _Connection | None:
        """Run the script until it is done or cannot be; returns the connection while that is good."""
        for attempt in range(ATTEMPTS):
            job.reset()
            try:
                if connection is None or not connection.usable:
                    connection = await self._connection()
                watchdog = self._reactor.callLater(SILENCE_SECONDS, connection.abandon)
                try:
                    await self._run(job, connection)
                finally:
                    if watchdog.active():
                        watchdog.cancel()
                return connection
            except (psycopg2.Error, ConnectionDone, ConnectionLost) as e:
                gone = lost(e)
                code = getattr(e, "pgcode", None)
                if gone and connection is not None:
                    connection.abandon()
                    connection = None
                elif connection is not None:
                    connection = await self._roll_back(connection)
                # Without COMMIT nothing was done. With it, nobody knows: a repetition could do it twice.
                again = code in _REPEAT or (gone and not (isinstance(job, _Writing) and job.committing))
                if again and attempt + 1 < ATTEMPTS and self._monotonic() < job.deadline:
                    continue
                job.fail(unavailable(e) or taken(e) or e)
                return connection
            except StorageUnavailable as e:  # no connection to be had
                job.fail(e)
                return None
        return connection

    async def _run(self, job: Job, connection: _Connection) -> None:
        """
        Drive one script through one transaction. What the script raises becomes the job's failure.

        :raise psycopg2.Error: the transaction is not over; roll back.
        """
        writing = isinstance(job, _Writing)
        if isinstance(job, _Writing):
            job.committing = False
        script: Script[Any] = job.make()
        message: list[Part] = [b"BEGIN"] if writing else []
        begun = False
        try:
            wish = next(script)
            while True:
                if type(wish) is tuple:
                    message.append(wish)
                    begun = writing
                    rows = await connection.send(message)
                    message.clear()
                    wish = script.send(rows)
                    continue
                if type(wish) is Do:
                    message.append((wish.sql, wish.parameters))
                elif type(wish) is Owner:
                    message.append((_LOCK_OWNER, {"class": OWNER_LOCKS, "username": wish.username}))
                elif type(wish) is OwnerOf:
                    message.append((_LOCK_OWNER_OF, {"class": OWNER_LOCKS, "id": wish.challenge_id}))
                elif type(wish) is Effects:
                    job.effects.append(wish)
                wish = script.send([])
        except StopIteration as stop:
            job.result = stop.value
        except psycopg2.Error:
            script.close()
            raise
        except (ConnectionDone, ConnectionLost):
            script.close()
            raise
        except Exception as e:  # the script's own refusal
            if begun:
                await self._roll_back(connection)
            job.fail(e)
            return
        if not isinstance(job, _Writing):
            if message:
                await connection.send(message)
            return
        self._append_effects(job, message)
        if not begun and len(message) > 1:
            # Nothing has been sent on this connection yet, and it may have died while idle: without COMMIT the loss can
            # be made good by a repetition.
            await connection.send(message)
            message, begun = [], True
        if begun:
            message.append(b"COMMIT")
            job.committing = True
            await connection.send(message)

    async def _roll_back(self, connection: _Connection) -> _Connection | None:
        """The connection, or None when it is of no use any more."""
        try:
            await connection.query(b"ROLLBACK")
        except (psycopg2.Error, ConnectionDone, ConnectionLost):
            connection.abandon()
            return None
        return connection

    def _append_effects(self, job: Job, message: list[Part]) -> None:
        """
        What commits with the script. Where there are events, the wake-ups of other replicas commit with their sealing:
        NOTIFY holds a lock of the whole server until the commit is on disk; business transactions would queue up.
        """
        instance = self._publisher.instance
        events = [event for effects in job.effects for event in effects.events]
        for event in events:
            message.append((outbox.INSERT_UNSEALED, outbox.unsealed_row(instance, event, job.request_id)))
        if not events:
            message += self._notifications(job.effects)

    def _notifications(self, effects: Sequence[Effects]) -> list[Part]:
        """Statements that tell the other replicas."""
        short: dict[str, list[str]] = {SSE: [], CLUSTER: []}
        statements: list[Part] = []
        for channel, body in self._bodies(effects):
            payload = json.dumps(body, separators=(",", ":"))
            if len(payload) <= LONGEST_PAYLOAD:
                short[channel].append(payload)
            else:
                row = {"channel": channel, "payload": payload, "created_at": self._applied_at()}
                statements.append((_NOTIFY_LONG, row))
        for channel, payloads in short.items():
            if payloads:
                values = {"channel": channel, "payloads": json.dumps(payloads)}
                statements.append((_NOTIFY, values))
        return statements

    def _bodies(self, effects: Sequence[Effects]) -> Iterator[tuple[str, dict[str, object]]]:
        for effect in effects:
            for live in effect.live:
                body: dict[str, object] = {"user": live.username, "event": live.event, "origin": self._origin}
                if live.challenge_id:
                    body["challenge"] = live.challenge_id
                yield SSE, body
            for extra in effect.cluster:
                yield CLUSTER, {**extra, "origin": self._origin}

    def _done(self, job: Job) -> None:
        """It is committed, or it has failed."""
        if job.failure is not None or not job.effects:
            self._answer(job)
            return
        if isinstance(job, _Sealing):
            self._answer(job)
            return
        if has_events(job):
            self._unsealed.append(job)
            self._untold.extend(job.effects)
            self._seal()
        else:
            self._answer(job)
        self._bus.deliver(wake_ups((job,)))

    def _answer(self, job: Job) -> None:
        self._outstanding -= 1
        job.fire()

    # -- sealing ------------------------------------------------------------------------------------------------------
    def _seal(self) -> None:
        if self._sealing is None and self._seal_again is None:
            self._sealing = on_behalf_of_nobody(self._seal_all()).addErrback(self._bug)
            # it may be over already
            self._sealing.addCallback(self._sealed)

    def _sealed(self, _: object) -> None:
        self._sealing = None
        if self._unsealed:
            self._seal()
        self._rest()

    async def _seal_all(self) -> None:
        while self._unsealed:
            jobs, self._unsealed = self._unsealed, []
            try:
                while True:
                    records = await self._seal_once()
                    whole = len(records) < outbox.BATCH
                    answers = _Answers(self, jobs if whole else [])
                    if records:
                        self._publisher.publish(records, answers)
                    else:
                        await self._publisher.look_again(answers)
                    if whole:
                        break
            except Exception as e:
                # The state is committed and its events are with it: the answer is yes, and they are sealed later.
                if not isinstance(e, StorageUnavailable):
                    self._log.failure("sealing failed")
                for job in jobs:
                    self._answer(job)
                if not self._stopping:
                    self._seal_again = self._reactor.callLater(1.0, self._retry_sealing)
                return

    def _retry_sealing(self) -> None:
        self._seal_again = None
        # an operation without a script: it only carries the pass
        nothing = Job(_nothing, self._monotonic())
        self._outstanding += 1
        self._unsealed.append(nothing)
        self._seal()

    async def _seal_once(self) -> list[Sealed]:
        """Goes ahead of what waits: all who have committed wait for it."""
        publisher = self._publisher
        position = publisher.position if publisher.position > publisher.saved_position else None
        untold, self._untold = self._untold, []

        def seal() -> Script[list[Sealed]]:
            records = yield from outbox.seal_pending(publisher.instance, self._chain.version, position)
            for effects in untold:
                yield Effects(live=effects.live, cluster=effects.cluster)
            return records

        job = _Sealing(seal, self._monotonic() + BUDGET_SECONDS)
        self._outstanding += 1
        self._waiting.appendleft(job)
        if self._workers < self._size:
            self._workers += 1
            on_behalf_of_nobody(self._work()).addErrback(self._bug)
        try:
            records: list[Sealed] = await job.answer
        except StorageUnavailable:
            # a lost wake-up costs time and not truth: a few are worth keeping
            self._untold = (untold + self._untold)[-outbox.BATCH :]
            raise
        if position is not None:
            publisher.saved_position = position
        return records

    # -- connections --------------------------------------------------------------------------------------------------
    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            # what died while idle has not been noticed yet when this turn of the reactor began before
            connection.look()
            if connection.usable:
                return connection
        connection = await self._connect(self._forget)
        self._all.add(connection)
        return connection

    def _forget(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def _connect(
        self, on_lost: Callable[[_Connection], None], statement_timeout: int = STATEMENT_TIMEOUT_MS
    ) -> _Connection:
        """:raise StorageUnavailable: there is no connection to be had."""
        parameters: dict[str, Any] = {
            "application_name": "identree",
            "keepalives_idle": "30",
            "keepalives_interval": "10",
            "keepalives_count": "3",
            "tcp_user_timeout": "20000",
            **self._parameters,
        }
        parameters.pop("connect_timeout", None)  # libpq ignores it here; the watchdog below does it
        connection = _Connection(self._reactor, on_lost)
        watchdog = self._reactor.callLater(CONNECT_SECONDS, connection.abandon)
        try:
            await self._resolve(parameters)
            await connection.open(parameters)
            lock_timeout = min(LOCK_TIMEOUT_MS, statement_timeout)
            await connection.query(
                f"SET statement_timeout = {statement_timeout}; SET lock_timeout = {lock_timeout}; "
                "SET idle_in_transaction_session_timeout = 30000; SET client_encoding = 'UTF8'; "
                "SET default_transaction_isolation = 'read committed'; "
                # a plan is kept, and must not be that of the small table on which it was made
                "SET enable_seqscan = off".encode()
            )
        except (psycopg2.Error, ConnectionDone, ConnectionLost, OSError) as e:
            connection.abandon()
            raise StorageUnavailable("unreachable", type(e).__name__) from e
        finally:
            if watchdog.active():
                watchdog.cancel()
        return connection

    async def _resolve(self, parameters: dict[str, Any]) -> None:
        """libpq would look the name up in the reactor's thread."""
        host = parameters.get("host", "")
        if not host or host.startswith(("/", "@")) or "," in host or "hostaddr" in parameters:
            return
        try:
            ip_address(host)
        except ValueError:
            found = await deferToThreadPool(
                self._reactor,
                self._reactor.getThreadPool(),
                socket.getaddrinfo,
                host,
                None,
                type=socket.SOCK_STREAM,
            )
            addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
            parameters["hostaddr"] = ",".join(addresses)
            parameters["host"] = ",".join([host] * len(addresses))

    # -- migrations ---------------------------------------------------------------------------------------------------
    async def _migrate(self) -> None:
        known = migrate.migrations(migrate.POSTGRES)
        connection = await self._connect(lambda _: None, MIGRATION_TIMEOUT_MS)
        try:
            await connection.query(
                f"SET lock_timeout = {MIGRATION_TIMEOUT_MS}; SELECT pg_advisory_lock({migrate.ADVISORY_LOCK})".encode()
            )
            # the table is looked up, not made: only a migration needs the right to create
            [(there,)] = await connection.query(b"SELECT to_regclass('schema_migrations') IS NOT NULL")
            version = 0
            if there:
                [(version,)] = await connection.query(migrate.CURRENT.encode())
            for migration in migrate.pending(version, known):
                message = [b"BEGIN", migrate.BOOKKEEPING.encode()]
                for sql, parameters in migrate.steps(migration, self._applied_at()):
                    message.append(connection.text(sql, parameters))
                await connection.query(b";\n".join([*message, b"COMMIT"]))
        finally:
            connection.abandon()  # which gives the lock back

    # -- the other replicas -------------------------------------------------------------------------------------------
    async def _listen(self, first: Deferred[None]) -> None:
        """
        Keep one connection listening; after each loss tell everybody to read again.

        :param first: fires when it listens for the first time, or fails.
        """
        attempt = 0
        again = False
        try:
            while True:
                connection = None
                try:
                    ended: Deferred[None] = Deferred()
                    connection = await self._connect(_callback(ended))
                    connection.on_notify = self._notified
                    await connection.query(f"LISTEN {SSE}; LISTEN {CLUSTER}".encode())
                    attempt = 0
                    if again:
                        self._log.info("listening to the other replicas again")
                        self._bus.deliver((RESYNC,))
                    else:
                        # in a turn of its own: whoever waits may end this very loop, which a running one cannot hear
                        again = True
                        self._reactor.callLater(0, first.callback, None)
                    await self._attend(connection, ended)
                    self._log.warn("the connection to the other replicas is lost")
                except (StorageUnavailable, psycopg2.Error, ConnectionDone, ConnectionLost) as e:
                    if not again:
                        self._reactor.callLater(0, first.errback, unavailable(e) or e)
                        return
                finally:
                    if connection is not None:
                        connection.abandon()
                if self._stopping:
                    return
                await deferLater(self._reactor, RELISTEN_SECONDS[min(attempt, len(RELISTEN_SECONDS) - 1)])
                attempt += 1
        except CancelledError:
            return

    async def _attend(self, connection: _Connection, ended: Deferred[None]) -> None:
        """Until the connection is lost; a ping now and then notices a half-open link."""
        pings = LoopingCall(self._ping, connection)
        pings.clock = self._reactor
        pings.start(PING_SECONDS, now=False).addErrback(self._bug)
        try:
            await ended
        finally:
            pings.stop()

    async def _ping(self, connection: _Connection) -> None:
        watchdog = self._reactor.callLater(CONNECT_SECONDS, connection.abandon)
        try:
            await connection.query(b"SELECT 1")
        except (psycopg2.Error, ConnectionDone, ConnectionLost):
            connection.abandon()
        finally:
            if watchdog.active():
                watchdog.cancel()

    def _notified(self, channel: str, payload: str) -> None:
        try:
            body = json.loads(payload)
        except ValueError:
            return
        if not isinstance(body, dict) or body.get("origin") == self._origin:
            return
        row = body.get("row")
        if isinstance(row, int) and not isinstance(row, bool) and row > 0:
            self.read(lambda: _message(row, channel)).addCallbacks(
                lambda text: self._notified_long(channel, text),
                lambda failure: self._log.warn("a long message of another replica could not be read"),
            )
        elif channel == SSE:
            user, event, challenge = body.get("user"), body.get("event"), body.get("challenge", "")
            if isinstance(user, str) and isinstance(event, str) and isinstance(challenge, str):
                self._bus.deliver((Live(event=event, username=user, challenge_id=challenge),))
        elif channel == CLUSTER and body.get("type") in ("revoke_nonce", "revoke_admin"):
            user = body.get("username", "")
            self._bus.deliver((Live(event="revoked", username=user if isinstance(user, str) else ""),))
        elif channel == CLUSTER and body.get("type") == PUBLISHED:
            self._bus.deliver((Live(event=PUBLISHED, username=""),))
        elif channel == CLUSTER and body.get("type") == RELOAD_NOTIFY:
            self._bus.deliver((Live(event=RELOAD_NOTIFY, username=""),))

    def _notified_long(self, channel: str, text: str | None) -> None:
        # a message about a message would never end
        if text is not None and '"row"' not in text:
            self._notified(channel, text)


class _Writing(Job):
    """:ivar committing: COMMIT has been sent, so a lost connection leaves the outcome open."""

    __slots__ = ("committing",)

    def __init__(self, make: MakeScript[Any], deadline: float) -> None:
        super().__init__(make, deadline)
        self.committing = False


class _Sealing(_Writing):
    """The second small transaction."""

    __slots__ = ()


class _Answers:
    """Answers operations when the publisher says so."""

    __slots__ = ("_driver", "_jobs")

    def __init__(self, driver: PostgresDriver, jobs: list[Job]) -> None:
        self._driver = driver
        self._jobs = jobs

    def __call__(self) -> None:
        for job in self._jobs:
            self._driver._answer(job)


def _callback(ended: Deferred[None]) -> Callable[[object], None]:
    return lambda _: None if ended.called else ended.callback(None)


def _nothing() -> Script[None]:
    yield Effects()


def _message(id: int, topic: str) -> Script[str | None]:
    rows = yield _MESSAGE, {"id": id, "topic": topic}
    return str(rows[0][0]) if rows else None


_LOCK_OWNER = "SELECT pg_advisory_xact_lock(:class, hashtext(:username))"
_LOCK_OWNER_OF = "SELECT pg_advisory_xact_lock(:class, hashtext(username)) FROM challenges WHERE id = :id"
_NOTIFY = "SELECT pg_notify(:channel, payload) FROM json_array_elements_text(CAST(:payloads AS json)) AS p (payload)"
_NOTIFY_LONG = (
    "WITH message AS (INSERT INTO cluster_messages (topic, payload, created_at) "
    "VALUES (:channel, :payload, :created_at) RETURNING id) "
    """SELECT pg_notify(:channel, '{"row"' || chr(58) || id || '}') FROM message"""
)
