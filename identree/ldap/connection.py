"""
One LDAP connection: bytes in, operations in their order, answers out (RFC 4511; spec/ldap sections 6 and 12).

Operations are performed one after the other, as their answers are sent; only Abandon, Cancel and Unbind overtake.
Nothing is performed while the peer does not read what it was sent, and nothing is read while too much waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from identree.app.binds import Binds, Bound, Peer
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.ports import Monotonic
from identree.core.hosts import HostRegistry
from identree.directory import dn
from identree.directory.snapshot import Snapshot, View
from identree.ldap import ber, operations
from identree.ldap.ber import SEARCH_REQUEST, BerError
from identree.ldap.framing import BOUND_BYTES, STRANGERS_BYTES, Framer
from identree.ldap.operations import Code, Envelope
from identree.ldap.paging import (
    KNOWN_FOR_SEARCH,
    ONLY_PAGE,
    Answered,
    Cursor,
    Cursors,
    Page,
    only_page,
    page_control,
    page_request,
)
from identree.ldap.readiness import Readiness, possible
from identree.ldap.rootdse import SUBSCHEMA_NORMAL, RootDSE
from identree.ldap.search import Comparison, Reply, Scan, Searcher
from identree.ldap.tally import Tally
from identree.ldap.turns import Turns

# For the TLS handshake, from the connection or from the answer to StartTLS.
HANDSHAKE_SECONDS = 10.0
# Between two requests of somebody who has not bound, and before the first one.
UNBOUND_SECONDS = 60.0
# For one message to arrive, from its first byte.
MESSAGE_SECONDS = 60.0
# For the peer to read anything of what waits for it.
STALLED_SECONDS = 60.0
# For the last answers to leave after the end of a connection.
LINGER_SECONDS = 5.0
# How often a connection looks at all these; so much longer they may last.
CHECK_SECONDS = 15.0
# Requests that wait on one connection before it is read no further. sssd has a few under way, load generators hundreds.
MAX_WAITING = 256
# And their bytes; the last one read may go beyond it.
MAX_WAITING_BYTES = 256 << 10
# The same before a bind, when there is nothing to ask for much of.
STRANGERS_WAITING = 16
STRANGERS_WAITING_BYTES = 16 << 10
# What a request that waits takes beside its bytes.
REQUEST_BYTES = 256
# Operations in one turn, seconds after which no further one is begun (the largest filter takes 10 ms to decode), and
# bytes of answers that are collected before they are written.
TURN_OPERATIONS = 32
TURN_SECONDS = 0.005
OUTPUT_BYTES = 64 << 10
# What is kept of requests in all connections together, in bytes: unfinished messages, requests that wait, searches that
# are performed. Beyond it, who adds to it is cut, unless he keeps no more than a few ordinary requests.
KEPT_BYTES = 64 << 20
KEPT_ANYWAY = 8 << 10

# What follows a search in its message is remembered when it asks for a first page; so long, and so many of them. Each
# kind of client has one.
PAGED_BYTES = 64
MAX_PAGED = 64


class Common:
    """
    What all connections share.

    :param directory: the snapshot that is served, None before there is one.
    :param registry: the host registry; each operation of a host notices when it has changed.
    :param view: what a bound host may see, None for everything.
    :param start_tls: puts TLS on a transport; None when there is no certificate.
    :param peer_name: the verified name in the client certificate of a transport, or empty.
    :param spoiled: why the client certificate of a transport does not count any more, or empty.
    :param idle_seconds: a bound connection without a request for so long is closed.
    :param time_limit_seconds: longest time of one search, or of one page.
    :ivar epoch: replaced whenever what connections may do must be looked at again.
    :ivar kept_bytes: of requests, by all connections.
    """

    def __init__(
        self,
        *,
        searcher: Searcher,
        directory: Callable[[], Snapshot | None],
        root_dse: RootDSE,
        binds: Binds,
        registry: Callable[[], HostRegistry],
        view: Callable[[str], View | None],
        start_tls: Callable[[Any], None] | None,
        peer_name: Callable[[Any], str],
        spoiled: Callable[[Any], str] = lambda transport: "",
        cursors: Cursors,
        turns: Turns,
        tally: Tally,
        journal: Journal,
        metrics: Metrics,
        clock: IReactorTime,
        monotonic: Monotonic,
        idle_seconds: float,
        time_limit_seconds: float,
    ) -> None:
        self.searcher = searcher
        self.directory = directory
        self.root_dse = root_dse
        self.binds = binds
        self.registry = registry
        self.view = view
        self.start_tls = start_tls
        self.peer_name = peer_name
        self.spoiled = spoiled
        self.cursors = cursors
        self.turns = turns
        self.tally = tally
        self.journal = journal
        self.metrics = metrics
        self.clock = clock
        self.monotonic = monotonic
        self.idle_seconds = idle_seconds
        self.time_limit_seconds = time_limit_seconds
        self.epoch = object()
        self.kept_bytes = 0
        self._paged: dict[bytes, int] = {}
        self._readiness: Readiness | None = None

    def readiness(self, reactor: object) -> Readiness | None:
        """Where plain sockets of a reactor can wait to be read; None: they cannot."""
        if self._readiness is None and possible(reactor):
            self._readiness = Readiness(reactor, self.monotonic)
        return self._readiness

    def first_page(self, controls: bytes) -> int:
        """See :func:`only_page`: which clients send with nearly every search, in always the same bytes."""
        size = self._paged.get(controls)
        if size is None:
            size = only_page(controls)
            if size and len(controls) <= PAGED_BYTES:
                if len(self._paged) >= MAX_PAGED:
                    self._paged.clear()
                self._paged[controls] = size
        return size


class _Running:
    """
    A search or comparison that takes more than one turn.

    :ivar size: bytes of the request.
    """

    __slots__ = ("base", "count", "id", "since", "size", "steps")

    def __init__(self, id: int, steps: Scan | Page | Comparison, base: str, since: float, size: int) -> None:
        self.id, self.steps, self.base, self.since, self.size = id, steps, base, since, size
        self.count = 0


@implementer(IHandshakeListener, IPushProducer)
class LdapConnection(Protocol):
    """
    :param number: unique in this process; names the connection in the log.
    :param address: of the peer, without port.
    :param lost: told when it is over.
    """

    _log = Logger()

    def __init__(self, common: Common, number: int, address: str, lost: Callable[[LdapConnection], None]) -> None:
        self._common = common
        self._number = number
        self._address = address
        self._lost = lost
        self._framer = Framer(STRANGERS_BYTES)
        self._unfinished = 0
        self._kept = 0
        self._fault = ""
        self._waiting: deque[Envelope] = deque()
        self._waiting_bytes = 0
        self._running: _Running | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._certificate = ""
        self._bound: Bound | None = None
        self._view: View | None = None
        # what they were when the standing of who is bound was looked at
        self._epoch: object = None
        self._registry: HostRegistry | None = None
        # somebody is bound and nothing waits: the next message can be answered at once
        self._ready = False
        # a plain socket, which can be written to without waiting for the reactor
        self._direct = False
        self._socket: Any = None
        self._number_of_socket = -1
        # where it waits to be read; None: the reactor reads it
        self._readiness: Readiness | None = None
        self._turn_asked = False
        self._reading = True
        self._timer: IDelayedCall | None = None
        self._active_at = 0.0
        self._unfinished_since = 0.0
        self._handshake_since: float | None = None
        self._stalled_since: float | None = None
        self._closing_since: float | None = None
        self._over = False

    def __repr__(self) -> str:
        return f"<LDAP connection {self._number} of {self._address}>"

    @property
    def hostname(self) -> str:
        """Of the host that is bound, or empty."""
        return "" if self._bound is None else self._bound.hostname

    @property
    def buffered_bytes(self) -> int:
        """What is kept of requests: unfinished and waiting ones."""
        return self._framer.buffered + self._waiting_bytes

    # --- the transport's side -----------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        transport: Any = self.transport
        common = self._common
        now = common.monotonic()
        self._active_at = now
        secure = ISSLTransport.providedBy(transport)
        if secure:
            self._handshake_since = now
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
        transport.registerProducer(self, True)
        if isinstance(transport, tcp.Connection) and not secure and hasattr(transport, "_tempDataBuffer"):
            self._direct, self._socket = True, transport.getHandle()
            self._number_of_socket = self._socket.fileno()
            self._readiness = common.readiness(transport.reactor)
            if self._wait_beside():
                transport.stopReading()
        self._check_in(HANDSHAKE_SECONDS if secure else CHECK_SECONDS)

    def handshakeCompleted(self) -> None:
        self._handshake_since = None
        self._certificate = self._common.peer_name(self.transport)
        self._settle()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._over = True
        self._ready = self._direct = False
        self._leave()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._clear()
        self._running = None
        self._out.clear()
        self._common.kept_bytes -= self._kept
        self._kept = 0
        self._common.cursors.drop(self._number)
        self._lost(self)

    def _wait_beside(self) -> bool:
        """Be read beside the reactor, if that is possible."""
        if self._readiness is None:
            return False
        try:
            self._readiness.add(self._socket, self._read, self._read_by_reactor)
        except OSError:
            self._readiness = None
        return self._readiness is not None

    def _leave(self) -> None:
        """Nothing is read beside the reactor any more."""
        if self._readiness is not None:
            self._readiness.remove(self._number_of_socket)
            self._readiness = None

    def _read_by_reactor(self, broken: bool = False) -> None:
        """
        From now on, as for instance for the end of the connection.

        :param broken: what was received could not be dealt with.
        """
        transport: Any = self.transport
        self._leave()
        if self._over:
            return
        if broken:
            transport.abortConnection()
        else:
            self._reading = True
            transport.startReading()

    def _pause(self) -> None:
        transport: Any = self.transport
        self._reading = False
        if self._readiness is not None:
            self._readiness.remove(self._number_of_socket)
        else:
            transport.pauseProducing()

    def _resume(self) -> None:
        transport: Any = self.transport
        self._reading = True
        if not self._wait_beside():
            transport.resumeProducing()

    def pauseProducing(self) -> None:
        if self._stalled_since is None:
            self._stalled_since = self._common.monotonic()
        self._ready = False

    def resumeProducing(self) -> None:
        self._stalled_since = None
        if not self._over and self._closing_since is None:
            self._active_at = self._common.monotonic()
            self._settle()

    def stopProducing(self) -> None:
        """The connection is lost, which is told by :meth:`connectionLost`."""

    def dataReceived(self, data: bytes) -> None:
        self._read(data)

    def _read(self, data: bytes) -> bool:
        """Whether all of it was searches that are answered already."""
        common = self._common
        if self._ready and self._epoch is common.epoch and self._registry is common.registry():
            done, over = self._at_once(data)
            if done == len(data):
                return True
            if done:
                data = data[done:]
            if over:
                self._received(data, later=True)
                return False
        self._received(data)
        return False

    def _at_once(self, data: bytes) -> tuple[int, bool]:
        """
        The way of nearly every search: whole messages, nothing waits, and the answers are there.

        Lengths are taken apart in place. What is in any way different is left for the long way, and so is what is
        beyond the bounds of one turn.

        :return: how many bytes are dealt with, and whether the turn is over.
        """
        common, view, end = self._common, self._view, len(data)
        monotonic, answer, count = common.monotonic, common.searcher.answer, common.tally.search
        out: list[bytes] = []
        out_bytes = at = 0
        over = False
        since = now = monotonic()
        while end - at > 16 and data[at] == 0x30:
            size, start = data[at + 1], at + 2
            if size > 0x7F:
                start = at + size - 0x7E
                if not 0x80 < size < 0x85:
                    break
                size = int.from_bytes(data[at + 2 : start], "big")
            stop = start + size
            op = start + 2 + data[start + 1]
            if stop > end or data[start] != 2 or not start + 2 < op < start + 7 or op + 6 > stop:
                break
            if data[op] != SEARCH_REQUEST:
                break
            size, after = data[op + 1], op + 2
            if size > 0x7F:
                after = op + size - 0x7E
                if not 0x80 < size < 0x85:
                    break
                size = int.from_bytes(data[op + 2 : after], "big")
            after += size
            # positive, and in the fewest octets: so it can be given back as it is
            first = data[start + 2]
            if after > stop or first > 0x7F or (first == 0 and (op == start + 3 or data[start + 3] < 0x80)):
                break
            page = 0
            if after < stop:
                page = common.first_page(data[after:stop])
                if not page:
                    break
            try:
                reply = answer(data[op:after], view)
            except Exception:
                # the long way says what is wrong with it
                break
            if not isinstance(reply, Reply):
                self._begin(int.from_bytes(data[start + 2 : op], "big"), data[op:after], reply, page, now)
                at = stop
                break
            if reply.code == Code.NO_SUCH_OBJECT or (page and reply.count > page):
                # the long way knows the entries that are in no tree, and cursors
                break
            rendered = reply.around(data[start:op], ONLY_PAGE if page else b"")
            at = stop
            before, now = now, monotonic()
            count(reply.base, reply.code, reply.count, now - before)
            if at == end and not out:
                # nearly always
                self._active_at = now
                self._write(rendered)
                return at, False
            out.append(rendered)
            out_bytes += len(rendered)
            if len(out) >= TURN_OPERATIONS or out_bytes >= OUTPUT_BYTES or now - since > TURN_SECONDS:
                over = True
                break
        if out:
            self._active_at = now
            self._write(b"".join(out))
        if self._running is not None:
            self._settle()
        return at, over

    def _begin(self, id: int, op: bytes, scan: Scan, page: int, since: float) -> None:
        """
        Perform a search that takes more than one turn.

        :param page: entries of the page that it is asked for; 0: all are.
        """
        steps: Scan | Page = scan
        if page:
            cursors, snapshot = self._common.cursors, self._common.directory()
            assert snapshot is not None
            steps = Page(Cursor(self._number, op, scan, snapshot.version), page, cursors)
        self._running = _Running(id, steps, scan.base, since, len(op))

    # --- receiving ----------------------------------------------------------------------------------------------------

    def _received(self, data: bytes, *, later: bool = False) -> None:
        """:param later: perform nothing in this turn."""
        if self._closing_since is not None or self._over or self._fault:
            return
        framer = self._framer
        for frame in framer.feed(data):
            try:
                self._arrived(operations.envelope(frame))
            except BerError as e:
                self._fault = str(e)
                break
            if self._closing_since is not None:
                return
        self._fault = self._fault or framer.broken
        buffered = framer.buffered
        if buffered != self._unfinished:
            if self._unfinished == 0 or buffered < self._unfinished:
                self._unfinished_since = self._common.monotonic()
            self._unfinished = buffered
        self._count_kept()
        if self._closing_since is not None:
            return
        if later:
            self._settle()
        else:
            self._work()

    def _count_kept(self) -> None:
        """Whenever what is kept of requests may have changed."""
        running = self._running
        kept = self._framer.buffered + self._waiting_bytes + (0 if running is None else running.size)
        more = kept - self._kept
        if more == 0 or self._over:
            return
        common = self._common
        self._kept = kept
        common.kept_bytes += more
        if more > 0 and kept > KEPT_ANYWAY and common.kept_bytes > KEPT_BYTES:
            self._cut("buffers", abort=True)

    def _arrived(self, request: Envelope) -> None:
        """Let those that overtake do so; the others wait for their turn."""
        busy = self._running is not None or bool(self._waiting)
        tag = request.tag
        if busy and tag == operations.ABANDON:
            self._forget(operations.abandoned(request.op))
        elif busy and tag == operations.UNBIND:
            self._close()
        elif busy and tag == operations.EXTENDED:
            asked = operations.extended(request.op)
            if asked.oid == operations.CANCEL:
                self._cancel(request, asked.value)
            elif asked.oid == operations.START_TLS:
                self._extended_answer(request.id, Code.OPERATIONS_ERROR, "operations are outstanding", asked.oid)
            else:
                self._wait(request)
        else:
            self._wait(request)

    def _wait(self, request: Envelope) -> None:
        self._waiting.append(request)
        self._waiting_bytes += request.size + REQUEST_BYTES

    def _forget(self, id: int) -> Envelope | _Running | None:
        """Give up the operation with this id if it is outstanding and can be given up."""
        if self._running is not None and self._running.id == id:
            running, self._running = self._running, None
            return running
        for request in self._waiting:
            if request.id == id and request.tag not in (operations.BIND, operations.UNBIND, operations.EXTENDED):
                self._waiting.remove(request)
                self._waiting_bytes -= request.size + REQUEST_BYTES
                return request
        return None

    # --- working ------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._turn_asked = False
        if self._over or self._closing_since is not None or self._stalled_since is not None:
            return
        if self._running is not None:
            self._step(self._running)
            if self._running is not None:
                self._flush()
                self._settle()
                return
        if self._framer.more and not self._waiting:
            self._received(b"")
        else:
            self._work()

    def _work(self) -> None:
        """Perform what waits, up to the bound of one turn."""
        performed, monotonic = 0, self._common.monotonic
        until = monotonic() + TURN_SECONDS
        while (
            self._waiting
            and self._running is None
            and self._stalled_since is None
            and self._closing_since is None
            and performed < TURN_OPERATIONS
        ):
            performed += 1
            request = self._waiting.popleft()
            self._waiting_bytes -= request.size + REQUEST_BYTES
            try:
                self._perform(request)
            except BerError as e:
                self._clear()
                self._fault = str(e)
            except Exception:
                self._log.failure("an operation failed")
                self._broken(request)
            if self._out_bytes >= OUTPUT_BYTES:
                self._flush()
            if self._waiting and monotonic() > until:
                break
        if self._closing_since is not None:
            return
        if performed:
            self._active_at = self._common.monotonic()
        if self._fault and not self._waiting and self._running is None and self._stalled_since is None:
            self._protocol_error(self._fault)
            return
        self._flush()
        self._settle()

    def _settle(self) -> None:
        """What to do next: read, wait for a turn, or be ready."""
        if self._closing_since is not None or self._over:
            return
        self._count_kept()
        if self._closing_since is not None:
            return
        waiting, more = len(self._waiting), self._framer.more or bool(self._fault)
        most, most_bytes = (
            (STRANGERS_WAITING, STRANGERS_WAITING_BYTES) if self._bound is None else (MAX_WAITING, MAX_WAITING_BYTES)
        )
        if self._reading and (waiting >= most or self._waiting_bytes >= most_bytes or more):
            self._pause()
        elif not self._reading and waiting <= most // 2 and self._waiting_bytes <= most_bytes // 2 and not more:
            self._resume()
        if self._stalled_since is not None:
            self._ready = False
            return
        busy = self._running is not None or waiting > 0 or more
        if busy and not self._turn_asked:
            self._turn_asked = True
            self._common.turns.add(self._turn)
        self._ready = (
            not busy and self._bound is not None and self._handshake_since is None and self._framer.buffered == 0
        )

    def _send(self, message: bytes) -> None:
        self._out.append(message)
        self._out_bytes += len(message)

    def _flush(self) -> None:
        if self._out:
            joined = b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            self._write(joined)

    def _write(self, data: bytes) -> None:
        """
        Write, at once where that is possible.

        Twisted's own way waits for the reactor to say that the socket can be written to, which for answers of a few
        hundred bytes is always so, and costs two system calls and a round of the reactor: 40 % of what a repeated
        search takes in all. What the socket does not take goes that way.
        """
        transport: Any = self.transport
        if self._direct and not transport._tempDataBuffer and not transport.dataBuffer and transport.connected:
            try:
                sent = self._socket.send(data)
            except OSError:
                # full, or lost, which the next write finds out again and handles
                sent = 0
            if sent == len(data):
                return
            if sent:
                data = data[sent:]
        transport.write(data)

    def _clear(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0

    def _broken(self, request: Envelope) -> None:
        """Answer an operation that a bug of ours ended; what it was is in the log, not in the answer."""
        if request.tag == operations.SEARCH:
            self._done(request.id, Code.OTHER)
        elif request.tag in _RESPONSES:
            response, operation = _RESPONSES[request.tag]
            self._refuse(request.id, response, operation, Code.OTHER)

    def _perform(self, request: Envelope) -> None:
        tag = request.tag
        if tag == operations.SEARCH:
            self._search(request)
        elif tag == operations.BIND:
            self._bind(request)
        elif tag == operations.UNBIND:
            self._close()
        elif tag == operations.ABANDON:
            # what it names is answered already, for it did not overtake anything
            operations.abandoned(request.op)
        elif tag == operations.EXTENDED:
            self._extended(request)
        elif tag == operations.COMPARE:
            self._compare(request)
        elif tag in operations.WRITES:
            if self._controls_refused(request, *operations.WRITES[tag]):
                return
            self._common.tally.result(operations.WRITES[tag][1], Code.UNWILLING_TO_PERFORM)
            self._send(ber.message(request.id, operations.refused_write(tag)))
        else:
            raise BerError(f"operation 0x{tag:02x} is no request")

    def _controls_refused(self, request: Envelope, response: int, operation: str) -> bool:
        """Whether a critical control that nobody knows forbids the operation, which is answered then."""
        if not request.controls or not operations.unsupported(operations.controls(request.controls)):
            return False
        self._refuse(request.id, response, operation, Code.UNAVAILABLE_CRITICAL_EXTENSION)
        return True

    def _refuse(self, id: int, response: int, operation: str, code: int, text: str = "") -> None:
        self._common.tally.result(operation, code)
        self._send(ber.message(id, operations.answer(response, code, text)))

    # --- who is it ----------------------------------------------------------------------------------------------------

    @property
    def _peer(self) -> Peer:
        return Peer(address=self._address, connection=self._number, certificate=self._certificate)

    def _bind(self, request: Envelope) -> None:
        common = self._common
        # whatever comes of it, what was bound before no longer counts (RFC 4513 section 4)
        self._become(None)
        common.cursors.drop(self._number)
        asked = operations.bind(request.op)
        if self._controls_refused(request, operations.BIND_RESPONSE, "bind"):
            return
        if asked.version != 3:
            self._refuse(request.id, operations.BIND_RESPONSE, "bind", Code.PROTOCOL_ERROR, "only LDAPv3 is spoken")
            return
        if asked.mechanism is None:
            outcome = common.binds.simple(asked.dn, asked.credentials, self._peer)
        elif asked.mechanism == b"EXTERNAL":
            outcome = common.binds.external(asked.credentials, self._peer)
        else:
            self._refuse(request.id, operations.BIND_RESPONSE, "bind", Code.AUTH_METHOD_NOT_SUPPORTED)
            return
        text = "too many failed binds, try again later" if outcome.throttled else ""
        self._refuse(request.id, operations.BIND_RESPONSE, "bind", outcome.code, text)
        if outcome.throttled:
            self._cut("throttled")
            return
        self._become(outcome.bound)

    def _become(self, bound: Bound | None) -> None:
        self._bound = bound
        self._framer.limit = STRANGERS_BYTES if bound is None else BOUND_BYTES
        self._view = None
        self._ready = False
        if bound is not None:
            self._look()

    def _look(self) -> None:
        """What may who is bound see now."""
        common = self._common
        self._epoch, self._registry = common.epoch, common.registry()
        hostname = self.hostname
        self._view = common.view(hostname) if hostname else None

    def _admitted(self) -> bool:
        """
        Whether searches are allowed here and now; a host that was let in before and is removed since is cut.
        """
        common = self._common
        if self._bound is None:
            return common.binds.anonymous_allowed
        if self._epoch is not common.epoch or self._registry is not common.registry():
            if not common.binds.current(self._bound):
                self.host_removed()
                return False
            self._look()
        return True

    def recheck(self) -> None:
        """Cut the connection of a host that is no longer let in, now and not at its next request."""
        if self._bound is not None and not self._common.binds.current(self._bound):
            self.host_removed()
        elif (reason := self._common.spoiled(self.transport)) and self._closing_since is None:
            self._common.journal.info(
                "LDAP_CONNECTION_CUT certificate",
                reason=reason,
                hostname=self._certificate,
                conn=self._number,
                remote_addr=self._address,
            )
            notice = operations.disconnection(Code.STRONGER_AUTH_REQUIRED, f"the client certificate is {reason}")
            self._cut(reason, notice)

    def host_removed(self) -> None:
        if self._closing_since is None:
            self._common.journal.info(
                "LDAP_CONNECTION_CUT host removed", hostname=self.hostname, conn=self._number, remote_addr=self._address
            )
            self._cut("removed", operations.disconnection(Code.STRONGER_AUTH_REQUIRED, "this host is no longer let in"))

    # --- operations ---------------------------------------------------------------------------------------------------

    def _search(self, request: Envelope) -> None:
        common = self._common
        controls = operations.controls(request.controls) if request.controls else ()
        if operations.unsupported(controls, KNOWN_FOR_SEARCH):
            self._done(request.id, Code.UNAVAILABLE_CRITICAL_EXTENSION)
            return
        paged = [page_request(control.value) for control in controls if control.oid == operations.PAGED_RESULTS]
        if len(paged) > 1:
            raise BerError("two paged results controls")
        base = _base_of(request.op)
        since = common.monotonic()
        if not base or _is_subschema(base):
            external = common.binds.external_offered(self._peer)
            try:
                reply = common.root_dse.answer(ber.decode_search(request.op), subschema=bool(base), external=external)
            except ber.FilterTooLarge as e:
                self._done(request.id, Code.ADMIN_LIMIT_EXCEEDED, str(e))
                return
            self._reply(request.id, reply, since, paged=bool(paged))
            return
        if not self._admitted():
            if self._closing_since is None:
                self._done(request.id, Code.INSUFFICIENT_ACCESS_RIGHTS)
            return
        snapshot = common.directory()
        if snapshot is None:
            self._done(request.id, Code.BUSY, "the directory is not loaded yet")
            return
        if paged:
            self._page(request, paged[0].size, paged[0].cookie, snapshot, since)
            return
        answer = common.searcher.answer(request.op, self._view)
        if isinstance(answer, Reply):
            self._reply(request.id, answer, since)
        else:
            self._begin(request.id, request.op, answer, 0, since)

    def _page(self, request: Envelope, size: int, cookie: bytes, snapshot: Snapshot, since: float) -> None:
        common = self._common
        if cookie:
            cursor = common.cursors.take(self._number, cookie, request.op)
            if cursor is None:
                self._done(request.id, Code.UNWILLING_TO_PERFORM, "this cookie is not, or no longer, of this search")
                return
        else:
            answer = common.searcher.answer(request.op, self._view)
            if isinstance(answer, Reply):
                if answer.count <= size:
                    self._reply(request.id, answer, since, paged=True)
                    return
                steps: Scan | Answered = Answered(answer.entries, answer.done, answer.base)
            else:
                steps = answer
            cursor = Cursor(self._number, request.op, steps, snapshot.version)
        if size == 0:
            # given up: what was asked for was nothing
            self._done(request.id, Code.SUCCESS, control=page_control(b""))
            return
        # a page that is not smaller than the size limit is the only one: the search itself stops at the limit
        page = Page(cursor, size, common.cursors)
        self._running = _Running(request.id, page, cursor.steps.base, since, len(request.op))

    def _step(self, running: _Running) -> None:
        """One slice of a long search or comparison."""
        steps = running.steps
        if self._common.monotonic() - running.since >= self._common.time_limit_seconds:
            self._running = None
            self._end(running, Code.TIME_LIMIT_EXCEEDED)
            return
        ops: list[bytes] = []
        try:
            if isinstance(steps, Comparison):
                steps.step()
            else:
                ops = steps.step()
        except Exception:
            self._log.failure("a search failed")
            self._running = None
            self._end(running, Code.OTHER)
            return
        if isinstance(steps, Comparison):
            if steps.done:
                self._running = None
                self._active_at = self._common.monotonic()
                self._end(running, steps.code)
            return
        running.count += len(ops)
        if ops:
            self._send(ber.messages(running.id, ops))
        if steps.done:
            if isinstance(steps, Page):
                self._send(ber.message(running.id, steps.final, (steps.control,)))
                code = _code_of(steps.final)
            else:
                self._send(ber.message(running.id, steps.done_op()))
                code = steps.reply_code
            self._running = None
            now = self._common.monotonic()
            self._active_at = now
            self._common.tally.search(running.base, code, running.count, now - running.since)

    def _end(self, running: _Running, code: int) -> None:
        """Of an operation that has only its code to answer now."""
        if isinstance(running.steps, Comparison):
            self._compared(running.id, code)
        else:
            self._done(running.id, code)

    def _reply(self, id: int, reply: Reply, since: float, *, paged: bool = False) -> None:
        """
        Send what is answered at once.

        :param paged: it was asked for in pages, and this is the only one.
        """
        tally, now = self._common.tally, self._common.monotonic()
        tally.search(reply.base, reply.code, reply.count, now - since)
        self._send(reply.render(id, ONLY_PAGE if paged else b""))

    def _done(self, id: int, code: int, text: str = "", control: bytes = b"") -> None:
        """A search that ends without entries."""
        self._common.tally.result("search", code)
        self._send(ber.message(id, ber.search_done(code, text=text.encode()), (control,) if control else ()))

    def _compare(self, request: Envelope) -> None:
        common = self._common
        asked = operations.compare(request.op)
        if self._controls_refused(request, operations.COMPARE_RESPONSE, "compare"):
            return
        if not self._admitted():
            if self._closing_since is None:
                self._refuse(request.id, operations.COMPARE_RESPONSE, "compare", Code.INSUFFICIENT_ACCESS_RIGHTS)
            return
        outcome = common.searcher.compare(asked.dn, asked.attribute, asked.value, self._view)
        if isinstance(outcome, Comparison):
            self._running = _Running(request.id, outcome, "", common.monotonic(), len(request.op))
        else:
            self._compared(request.id, *outcome)

    def _compared(self, id: int, code: int, matched: str = "") -> None:
        self._common.tally.result("compare", code)
        self._send(ber.message(id, operations.answer(operations.COMPARE_RESPONSE, code, matched=matched)))

    def _extended(self, request: Envelope) -> None:
        asked = operations.extended(request.op)
        if self._controls_refused(request, operations.EXTENDED_RESPONSE, "extended"):
            return
        if asked.oid == operations.START_TLS:
            self._start_tls(request.id)
        elif asked.oid == operations.WHO_AM_I:
            if asked.value is not None:
                raise BerError("who am I has a value")
            who = b"" if self._bound is None else b"dn:" + self._bound.dn.encode()
            self._extended_answer(request.id, Code.SUCCESS, value=who)
        elif asked.oid == operations.CANCEL:
            self._cancel(request, asked.value)
        elif asked.oid == operations.PASSWORD_MODIFY:
            self._extended_answer(request.id, Code.UNWILLING_TO_PERFORM, "read-only directory")
        else:
            self._extended_answer(request.id, Code.PROTOCOL_ERROR, "unknown extended operation")

    def _extended_answer(
        self, id: int, code: int, text: str = "", name: bytes | None = None, value: bytes | None = None
    ) -> None:
        self._common.tally.result("extended", code)
        self._send(ber.message(id, operations.extended_answer(code, text, name, value)))

    def _cancel(self, request: Envelope, value: bytes | None) -> None:
        """Cancel (RFC 3909): like Abandon, but both operations are answered."""
        id = operations.cancelled(value)
        if any(waiting.id == id and waiting.tag in _NOT_CANCELLED for waiting in self._waiting):
            self._extended_answer(request.id, Code.CANNOT_CANCEL)
            return
        found = self._forget(id)
        if found is None:
            self._extended_answer(request.id, Code.NO_SUCH_OPERATION)
            return
        if isinstance(found, _Running):
            self._end(found, Code.CANCELED)
        elif found.tag == operations.SEARCH:
            self._done(id, Code.CANCELED)
        else:
            response, operation = _RESPONSES[found.tag]
            self._refuse(id, response, operation, Code.CANCELED)
        self._extended_answer(request.id, Code.SUCCESS)

    def _start_tls(self, id: int) -> None:
        common, name = self._common, operations.START_TLS
        if ISSLTransport.providedBy(self.transport):
            self._extended_answer(id, Code.OPERATIONS_ERROR, "TLS is in place already", name)
        elif self._waiting or self._framer.buffered:
            # what came in the clear must not be taken for something that came through TLS
            self._extended_answer(id, Code.OPERATIONS_ERROR, "operations are outstanding", name)
        elif common.start_tls is None:
            self._extended_answer(id, Code.UNAVAILABLE, "there is no certificate", name)
        else:
            self._extended_answer(id, Code.SUCCESS, name=name)
            self._flush()
            self._ready = self._direct = False
            if self._readiness is not None:
                self._read_by_reactor()
            self._handshake_since = common.monotonic()
            self._check_in(HANDSHAKE_SECONDS)
            common.start_tls(self.transport)

    # --- time and end -------------------------------------------------------------------------------------------------

    def _check_in(self, seconds: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._common.clock.callLater(seconds, self._check)

    def _check(self) -> None:
        self._timer = None
        reason, abort = self._overdue(self._common.monotonic())
        if reason:
            self._cut(reason, abort=abort)
        if not self._over and self._timer is None:
            self._check_in(CHECK_SECONDS)

    def _overdue(self, now: float) -> tuple[str, bool]:
        """Which patience has ended, and whether what was not sent yet is lost with it."""
        if self._closing_since is not None:
            return ("lingering", True) if now - self._closing_since >= LINGER_SECONDS else ("", False)
        if self._handshake_since is not None:
            return ("handshake", True) if now - self._handshake_since >= HANDSHAKE_SECONDS else ("", False)
        if self._stalled_since is not None:
            return ("stalled", True) if now - self._stalled_since >= STALLED_SECONDS else ("", False)
        if self._framer.buffered and now - self._unfinished_since >= MESSAGE_SECONDS:
            return "slow", False
        if self._running is not None or self._waiting:
            return "", False
        quiet, idle = now - self._active_at, self._common.idle_seconds
        if self._bound is None and not self._common.binds.anonymous_allowed:
            return ("unbound", False) if quiet >= min(UNBOUND_SECONDS, idle) else ("", False)
        return ("idle", False) if quiet >= idle else ("", False)

    def _protocol_error(self, why: str) -> None:
        self._log.debug("{connection!r} sent what is no LDAP: {why}", connection=self, why=why)
        self._cut("protocol", operations.disconnection(Code.PROTOCOL_ERROR, why))

    def shut_down(self) -> None:
        """The server stops: say so, and close when it is sent."""
        self._close(operations.disconnection(Code.UNAVAILABLE, "the server is shutting down"))

    def _cut(self, reason: str, notice: bytes = b"", *, abort: bool = False) -> None:
        if reason != "lingering":
            self._common.metrics.ldap_refused.labels(reason).inc()
        self._close(notice)
        if abort:
            transport: Any = self.transport
            transport.abortConnection()

    def _close(self, notice: bytes = b"") -> None:
        """Send what was answered and end the connection; nothing more is read or performed."""
        if self._closing_since is not None or self._over:
            return
        if notice:
            self._send(notice)
        self._closing_since = self._common.monotonic()
        self._ready = False
        self._clear()
        self._leave()
        self._running = None
        self._count_kept()
        transport: Any = self.transport
        if self._handshake_since is None:
            self._flush()
        transport.unregisterProducer()
        self._check_in(LINGER_SECONDS)
        transport.loseConnection()


_RESPONSES = operations.WRITES | {
    operations.BIND: (operations.BIND_RESPONSE, "bind"),
    operations.COMPARE: (operations.COMPARE_RESPONSE, "compare"),
    operations.EXTENDED: (operations.EXTENDED_RESPONSE, "extended"),
}
_NOT_CANCELLED = (operations.BIND, operations.UNBIND, operations.ABANDON, operations.EXTENDED)


def _base_of(op: bytes) -> bytes:
    """The base DN of a search as it was sent."""
    at, end = ber.expect(op, 0, len(op), SEARCH_REQUEST, "the search")
    start, stop = ber.expect(op, at, end, 0x04, "the base DN")
    return op[start:stop]


def _is_subschema(base: bytes) -> bool:
    if len(base) > 64 or b"ubschema" not in base.lower():
        return False
    try:
        return dn.normal(base.decode()) == SUBSCHEMA_NORMAL
    except ValueError:
        return False


def _code_of(done: bytes) -> int:
    """The result code of a SearchResultDone."""
    at, end = ber.expect(done, 0, len(done), ber.SEARCH_DONE, "the end of a search")
    return ber.read_integer(done, at, end, 0x0A, "a result code")[0]
