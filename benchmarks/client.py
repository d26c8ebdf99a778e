"""
A load generator that leaves the processors to the server: one thread, one epoll, requests that are bytes already.

It knows as much HTTP as our server's answers need: a status, a ``Content-Length``, or a stream without end.
"""

from __future__ import annotations

import heapq
import itertools
import select
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

# Further connections come from another address of loopback: a source address has about 28,000 ports.
PORTS_PER_ADDRESS = 20_000
READ_BYTES = 1 << 16
_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length: "


class Loop:
    """Readiness and timers. Every wait has a limit, after which the run has gone wrong."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()

    def watch(self, fd: int, reader: Callable[[], None]) -> None:
        self._readers[fd] = reader
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        del self._readers[fd]
        self._epoll.unregister(fd)

    def at(self, moment: float, call: Callable[[], None]) -> None:
        """:param moment: on ``time.perf_counter``."""
        heapq.heappush(self._timers, (moment, next(self._numbers), call))

    def run(self, over: Callable[[], bool], seconds: float) -> None:
        """
        Until ``over()``.

        :raise TimeoutError: it took longer than ``seconds``.
        """
        now, timers, readers = time.perf_counter, self._timers, self._readers
        end = now() + seconds
        while not over():
            wait = min(end, timers[0][0] if timers else end) - now()
            for fd, _ in self._epoll.poll(max(0.0, wait), 512):
                reader = readers.get(fd)
                if reader is not None:
                    reader()
            moment = now()
            while timers and timers[0][0] <= moment:
                heapq.heappop(timers)[2]()
            if moment > end:
                raise TimeoutError(f"not over after {seconds:.0f} s")


def connect(port: int, number: int = 0, receive_bytes: int = 0) -> socket.socket:
    """
    :param number: the how-manieth connection this is, which chooses the source address.
    :param receive_bytes: size of the receive buffer; 0 is the system's.
    """
    connection = socket.socket()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    source = number // PORTS_PER_ADDRESS
    if source:
        connection.bind((f"127.0.0.{1 + source}", 0))
    connection.connect(("127.0.0.1", port))
    connection.setblocking(False)
    return connection


class Exchange:
    """
    Requests and answers on one connection that stays open.

    :param answered: gets the status and the body; it may send the next request.
    """

    __slots__ = ("_answered", "_buffer", "_loop", "_socket", "sent_at")

    def __init__(self, loop: Loop, connection: socket.socket, answered: Callable[[Exchange, int, bytes], None]) -> None:
        self._loop = loop
        self._socket = connection
        self._answered = answered
        self._buffer = b""
        self.sent_at = 0.0
        loop.watch(connection.fileno(), self._readable)

    def send(self, request: bytes) -> None:
        self.sent_at = time.perf_counter()
        if self._socket.send(request) != len(request):
            raise OSError("the socket's buffer does not take a request")

    def close(self) -> None:
        self._loop.forget(self._socket.fileno())
        self._socket.close()

    def _readable(self) -> None:
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError("the server closed a connection")
        data = self._buffer + data
        end = data.find(_END)
        if end < 0:
            self._buffer = data
            return
        head = data[:end].lower() + b"\r\n"
        at = head.find(_LENGTH)
        start = at + len(_LENGTH)
        length = int(head[start : head.index(b"\r\n", start)]) if at >= 0 else 0
        if len(data) < end + 4 + length:
            self._buffer = data
            return
        self._buffer = b""
        self._answered(self, int(data[9:12]), data[end + 4 :])


@dataclass(slots=True)
class Timing:
    """
    What a run measured; all in seconds.

    :ivar latencies: of each answer, unsorted.
    :ivar statuses: how many answers had each status.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        return percentile(self.latencies, share)


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def closed_loop(port: int, requests: Iterable[bytes], connections: int, seconds: float) -> Timing:
    """Each connection sends its next request when it has its answer, for ``seconds``; the last answers are awaited."""
    timing = Timing()
    latencies, statuses = timing.latencies, timing.statuses
    stock = iter(requests)
    with Loop() as loop:
        busy = 0
        end = 0.0

        def answered(exchange: Exchange, status: int, body: bytes) -> None:
            nonlocal busy
            moment = time.perf_counter()
            latencies.append(moment - exchange.sent_at)
            statuses[status] = statuses.get(status, 0) + 1
            if moment < end:
                exchange.send(next(stock))
            else:
                busy -= 1

        exchanges = [Exchange(loop, connect(port), answered) for _ in range(connections)]
        start = time.perf_counter()
        end = start + seconds
        for exchange in exchanges:
            busy += 1
            exchange.send(next(stock))
        loop.run(lambda: busy == 0, seconds + 30)
        timing.seconds = time.perf_counter() - start
        for exchange in exchanges:
            exchange.close()
    return timing
