"""Open pages: how fast all of them hear of a change."""

from __future__ import annotations

import itertools
import socket
import statistics
import time

from benchmarks import peers
from benchmarks.client import READ_BYTES, Exchange, Loop, connect
from benchmarks.report import Report, Result
from benchmarks.server import creation, event_stream, served, session_cookie

RUNS = 9
_WOKEN = b"event: challenge_created"


class Dashboards:
    """Event streams; each wake-up is awaited on all of them."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._sockets: list[socket.socket] = []
        self._heard: set[int] = set()
        self._connected: set[int] = set()

    def open(self, port: int, number: int, request: bytes) -> None:
        connection = connect(port, number, receive_bytes=16384)
        self._sockets.append(connection)
        connection.send(request)
        fd = connection.fileno()
        read, heard, connected = connection.recv, self._heard, self._connected

        def readable() -> None:
            data = read(READ_BYTES)
            if not data:
                raise ConnectionError("the server ended a stream")
            if _WOKEN in data:
                heard.add(fd)
            elif b": connected" in data:
                connected.add(fd)

        self._loop.watch(fd, readable)
        self._loop.run(lambda: True, 1)

    def settle(self) -> None:
        """Until every stream is open."""
        self._loop.run(lambda: len(self._connected) == len(self._sockets), 120)

    def wake(self, port: int, request: bytes) -> float:
        """Seconds from sending ``request`` to the moment when the last stream has heard of it."""
        self._heard.clear()
        answers: list[tuple[int, bytes]] = []
        exchange = Exchange(self._loop, connect(port), lambda _, status, body: answers.append((status, body)))
        start = time.perf_counter()
        exchange.send(request)
        self._loop.run(lambda: len(self._heard) == len(self._sockets), 60)
        seconds = time.perf_counter() - start
        self._loop.run(lambda: bool(answers), 10)
        exchange.close()
        if answers[0][0] != 201:
            raise RuntimeError(f"the waking request was answered with {answers[0]}")
        return seconds

    def close(self) -> None:
        for connection in self._sockets:
            self._loop.forget(connection.fileno())
            connection.close()


def woken(report: Report, count: int) -> None:
    # administrators see every request, so one creation concerns all of them
    with served({"IDENTREE_MAX_STREAMS": str(count + 100)}) as server, Loop() as loop:
        empty = server.resident_bytes()
        dashboards = Dashboards(loop)
        for number in range(count):
            dashboards.open(server.port, number, event_stream(session_cookie(f"admin-{number}", "admin")))
        dashboards.settle()
        requests = (creation(f"d{number:05d}", "web-001") for number in itertools.count())
        dashboards.wake(server.port, next(requests))
        server.turns()
        runs = []
        for _ in range(RUNS):
            runs.append(dashboards.wake(server.port, next(requests)) * 1000)
            time.sleep(0.1)
        turns = str(server.turns())
        resident = server.resident_bytes()
        dashboards.close()
    report.add(
        Result(
            name=f"{count:,} dashboards woken",
            unit="ms",
            target=250,
            runs=runs,
            peer=f"{peers.wake(count)}; longest {max(runs):.0f} ms, median {statistics.median(runs):.0f} ms; server "
            f"{resident / 1e6:.0f} MB, {(resident - empty) / count / 1024:.1f} KiB per stream",
            reactor=turns,
        )
    )
