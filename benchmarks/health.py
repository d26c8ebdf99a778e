"""How soon a server says how it is, while everything behind it hangs."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.report import Report, Result
from benchmarks.server import served
from tests import postgres
from tests.e2e import wire

# While they hang, health is asked this often per run; each run begins and ends with what the probes begin and end.
ASKED = 200
RUNS = 3
PAUSE_SECONDS = 0.05
TARGET_MS = 50.0
# The longest that the probes may need to notice.
NOTICED_SECONDS = 60.0


@contextmanager
def _tarpit() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1024)
        yield listening.getsockname()[1]


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """The process and all that belongs to its session do nothing."""
    family = [pid]
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as stat:
                    parent = stat.read().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if int(parent) == pid:
                family.append(int(name))
    for one in family:
        os.kill(one, signal.SIGSTOP)
    try:
        yield
    finally:
        for one in family:
            try:
                os.kill(one, signal.SIGCONT)
            except ProcessLookupError:
                continue


def while_all_hangs(report: Report) -> None:
    """The 99th percentile of the time that ``/healthz`` takes with database and identity provider hanging."""
    running = postgres.cluster()
    dsn = running.create_database()
    with _tarpit() as port:
        settings = {
            "IDENTREE_OIDC_ISSUER_URL": f"http://127.0.0.1:{port}",
            "IDENTREE_DATABASE_DRIVER": "postgres",
            "IDENTREE_DATABASE_DSN": dsn,
        }
        with served(settings) as server:
            well = _times(server.port)
            server.turns()
            with _stopped(running.process.pid):
                end = time.monotonic() + NOTICED_SECONDS
                while wire.ask(server.port, "GET", "/healthz").json["checks"]["database"] != "error":
                    if time.monotonic() > end:
                        raise RuntimeError("the server does not notice that its database hangs")
                    time.sleep(PAUSE_SECONDS)
                hung = [_times(server.port) for _ in range(RUNS)]
            turns = server.turns()
    report.add(
        Result(
            name=f"Health told, p99 of {ASKED}, database and identity provider hanging",
            unit="ms",
            target=TARGET_MS,
            digits=1,
            runs=[_p99(times) for times in hung],
            peer=f"median {statistics.median(hung[0]):.1f} ms; with the database well p99 {_p99(well):.1f} ms, "
            f"median {statistics.median(well):.1f} ms",
            reactor=str(turns),
        )
    )


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


def _times(port: int) -> list[float]:
    """Milliseconds of each question, connecting included."""
    times = []
    for _ in range(ASKED):
        begun = time.perf_counter()
        wire.ask(port, "GET", "/healthz")
        times.append((time.perf_counter() - begun) * 1000)
        time.sleep(PAUSE_SECONDS)
    return times
