"""From starting the daemon to its first answer."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import time

from benchmarks.client import closed_loop
from benchmarks.hosts import people
from benchmarks.report import Report, Result
from benchmarks.server import SETTINGS, creation, temporary_directory
from tests.e2e.server import PROGRAMS, REPOSITORY, Server

RUNS = 5
CHALLENGES = 20_000
_ASK = b"GET /healthz HTTP/1.1\r\nHost: identree.example.com\r\nConnection: close\r\n\r\n"


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(_ASK)
            return connection.recv(12).startswith(b"HTTP/1.1 ")
    except OSError:
        return False


def _started(server: Server) -> float:
    """Seconds; the server is stopped again."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(server.directory), "LANG": "C.UTF-8", **server.settings}
    command = ["setpriv", "--pdeathsig", "KILL", str(PROGRAMS / "twistd"), "--nodaemon", "--pidfile=", "identree"]
    with open(server.directory / "start.log", "ab") as log:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            while not _answers(server.port):
                if process.poll() is not None or time.perf_counter() > begun + 30:
                    raise RuntimeError(
                        "the server did not start: " + (server.directory / "start.log").read_text()[-2000:]
                    )
                time.sleep(0.002)
            seconds = time.perf_counter() - begun
            process.terminate()
            process.wait(30)
            return seconds
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def first_answer(report: Report) -> None:
    with temporary_directory() as directory:
        server = Server(directory, SETTINGS)
        fresh = _started(server)  # which warms the caches of files too
        with server:
            requests = (creation(*pair) for pair in people("s"))
            created = 0
            while created < CHALLENGES:
                created += len(closed_loop(server.port, requests, 32, 2.0).latencies)
            server.stop()
        runs = [_started(server) for _ in range(RUNS)]
        bare = []
        for _ in range(RUNS):
            begun = time.perf_counter()
            subprocess.run([str(PROGRAMS / "python"), "-c", "import twisted.internet.reactor, klein"], check=True)
            bare.append(time.perf_counter() - begun)
    report.add(
        Result(
            name=f"Start to first answer, {CHALLENGES:,} challenges in the database",
            unit="s",
            target=1.5,
            digits=2,
            runs=runs,
            peer=f"new database, files not cached {fresh:.2f} s; an interpreter that imports Twisted and Klein "
            f"{statistics.median(bare):.2f} s",
        )
    )
