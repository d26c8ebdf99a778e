"""What less than our server gives on the same machine, in the same run."""

from __future__ import annotations

import itertools
import os
import re
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.client import Exchange, Loop, closed_loop, connect, percentile
from benchmarks.server import creation, temporary_directory
from tests.e2e.server import REPOSITORY

CONNECTIONS = 32
SECONDS = 2.0
_ROW = (
    "INSERT INTO challenges (id, user_code, username, hostname, reason, created_at, expires_at, status) "
    "VALUES ({}, {}, {}, 'web-001', 'rolling restart', 1, 2, 'pending')"
)
_SCHEMA = (
    "CREATE TABLE challenges (id TEXT PRIMARY KEY, user_code TEXT NOT NULL UNIQUE, username TEXT NOT NULL, "
    "hostname TEXT NOT NULL, reason TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, "
    "status TEXT NOT NULL)"
)


@contextmanager
def bare() -> Iterator[int]:
    """A Twisted web server with nothing behind it; its port."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "benchmarks.bare"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def bare_rate() -> float:
    """Answers per second to the same requests."""
    with bare() as port:
        requests = (creation(f"u{number:07d}", f"web-{number % 500:03d}") for number in itertools.count())
        closed_loop(port, requests, CONNECTIONS, 0.5)
        return closed_loop(port, requests, CONNECTIONS, SECONDS).rate


def sqlite() -> str:
    """One insertion per commit, WAL and ``synchronous=FULL``, one thread that does nothing else."""
    with temporary_directory() as directory:
        database = sqlite3.connect(directory / "raw.db", isolation_level=None)
        database.execute("PRAGMA journal_mode(WAL)")
        database.execute("PRAGMA synchronous(FULL)")
        database.execute(_SCHEMA)
        text = _ROW.format("?", "?", "?")
        count, end = 0, time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            count += 1
            database.execute("BEGIN IMMEDIATE")
            database.execute(text, (os.urandom(16).hex(), f"CODE-{count:09d}", f"u{count:07d}"))
            database.execute("COMMIT")
        database.close()
    return f"sqlite3 alone, one insertion per commit {count / SECONDS:,.0f}/s; bare Twisted {bare_rate():,.0f}/s"


def pgbench(dsn: str, program: str) -> str:
    """The bare insertion and COMMIT from as many connections as we have."""
    with temporary_directory() as directory:
        subprocess.run([program.replace("pgbench", "psql"), "-q", "-d", dsn, "-c", _SCHEMA], check=True)
        script = directory / "insert.sql"
        unique = "md5(random()::text || clock_timestamp()::text)"
        script.write_text(f"BEGIN;\n{_ROW.format(unique, unique, unique)};\nCOMMIT;\n")
        told = subprocess.run(
            [program, "-n", "-c", str(CONNECTIONS), "-j", "1", "-T", "3", "-M", "prepared", "-f", str(script), dsn],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = re.search(r"tps = ([0-9.]+)", told)
    if found is None:
        raise RuntimeError(f"pgbench says nothing of tps:\n{told}")
    return f"pgbench, one insertion per commit, {CONNECTIONS} connections {float(found[1]):,.0f}/s"


def release(waiting: int) -> str:
    """A held request let go by another one, in memory."""
    released: list[float] = []
    with bare() as port, Loop() as loop:

        def gone(exchange: Exchange, status: int, body: bytes) -> None:
            released.append(time.perf_counter())

        holding = [Exchange(loop, connect(port, number), gone) for number in range(waiting)]
        for exchange in holding:
            exchange.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.5)
        answers: list[int] = []
        decider = Exchange(loop, connect(port), lambda _, status, body: answers.append(status))
        latencies = []
        for number in range(min(200, waiting)):
            sent = time.perf_counter()
            decider.send(b"POST /release HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            loop.run(lambda number=number: len(released) > number and len(answers) > number, 10)  # type: ignore[misc]
            latencies.append(released[-1] - sent)
        for exchange in (*holding, decider):
            exchange.close()
    return f"bare Twisted, in memory, p99 {percentile(latencies, 0.99) * 1000:.1f} ms"


def wake(count: int) -> str:
    """As many streams, written to by a loop in memory."""
    from benchmarks.dashboards import Dashboards

    with bare() as port, Loop() as loop:
        dashboards = Dashboards(loop)
        for number in range(count):
            dashboards.open(port, number, b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
        dashboards.settle()
        times = [
            dashboards.wake(port, b"POST /wake HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n") * 1000
            for _ in range(3)
        ]
        dashboards.close()
    return f"bare Twisted, in memory, {statistics.median(times):.0f} ms"
