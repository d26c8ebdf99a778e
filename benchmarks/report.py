"""What was measured, the machine that it was measured on, and the table of both."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """
    One line of the table.

    :ivar runs: what each run measured; the median counts.
    :ivar target: None for a number that only explains another one.
    :ivar at_least: whether more is better.
    :ivar peer: what the same run gave for something that does less.
    :ivar hindrance: what stands in the way, said when the target is missed.
    """

    name: str
    unit: str
    runs: Sequence[float]
    target: float | None = None
    at_least: bool = False
    digits: int = 0
    peer: str = ""
    reactor: str = ""
    hindrance: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    @property
    def met(self) -> bool:
        if self.target is None:
            return True
        return self.median >= self.target if self.at_least else self.median <= self.target

    @property
    def verdict(self) -> str:
        if self.target is None:
            return "-"
        if self.met:
            return "met"
        missed = abs(self.median - self.target) / self.target
        return f"missed by {missed:.0%}: {self.hindrance}" if self.hindrance else f"missed by {missed:.0%}"

    def number(self, value: float) -> str:
        return f"{value:,.{self.digits}f}"

    def cells(self) -> tuple[str, ...]:
        bound = "≥" if self.at_least else "≤"
        return (
            self.name,
            "-" if self.target is None else f"{bound} {self.number(self.target)} {self.unit}",
            f"{self.number(self.median)} {self.unit}",
            ", ".join(map(self.number, self.runs)),
            self.verdict,
        )


HEADINGS = ("What", "Target", "Median", "Runs", "Verdict")


@dataclass(slots=True)
class Report:
    machine: dict[str, str]
    results: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Collect it, and show it at once: a run takes minutes."""
        self.results.append(result)
        name, target, median, runs, verdict = result.cells()
        print(f"{name}: {median} ({runs}); target {target}: {verdict}")
        for more in (result.peer, result.reactor):
            if more:
                print(f"    {more}")
        sys.stdout.flush()

    def text(self) -> str:
        rows = [HEADINGS, *(result.cells() for result in self.results)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        rows.insert(1, tuple("-" * width for width in widths))
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)

    def markdown(self) -> str:
        lines = [_INTRODUCTION, "| Machine | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in self.machine.items()]
        lines += ["", "## Results", "", "| " + " | ".join(HEADINGS) + " |", "|---|---|---|---|---|"]
        lines += ["| " + " | ".join(result.cells()) + " |" for result in self.results]
        lines += ["", "## Beside it, in the same run", "", "| What | Peer | Turns of the reactor |", "|---|---|---|"]
        lines += [
            f"| {result.name} | {result.peer or '-'} | {result.reactor or '-'} |"
            for result in self.results
            if result.peer or result.reactor
        ]
        return "\n".join([*lines, "", _METHOD])


_INTRODUCTION = """\
# Benchmarks

Written by `make bench`. The median of the runs counts; all runs are shown. Server, database and load share the machine.
"""

_METHOD = """\
## How it is measured

Everything is real and on loopback: the server is `twistd -n identree` with its defaults, its log and its audit log
written, SQLite in a file with `synchronous=FULL`, PostgreSQL a fresh cluster with `fsync` on. Load comes from one
process without threads, on connections that stay open. Raised for the load: how many requests may be pending, and
how long they live.

- **Created and durable**: `POST /api/challenge` as the agent sends it, each for another person, from 32 connections
  that send the next request when they have the answer. An answer means: committed and flushed, and in the audit
  log, which is flushed too.
- **Approval to released host**: hosts hold `GET /api/challenge/ID?wait=25`, and ask again when it ends. Signed-in
  people approve at a fixed rate, as the page's script does; the clock runs from sending the approval to the last
  byte of the host's answer. With real agents, to the end of the agent's process.
- **Resident memory**: of the server's process, after every host has asked a second time.
- **Dashboards woken**: the clock runs from sending a creation, whose commit comes later, to the last byte that the
  last of the open event streams gets. All of them are administrators', whom every request concerns.
- **Agent's own time**: the built archive, started with a PAM environment, against a server that answers at once:
  created, then approved. From the start of the process to its end, nothing subtracted. Each run is the median of 20
  starts.
- **Start to first answer**: from starting `twistd` to the first answer of `/healthz`.
- **LDAP searches**: slapd (back_mdb, the indexes that sssd's questions want, no log) and identree hold the same
  entries. One compiled load generator asks both in turns, with the filters and attributes that sssd was seen to send,
  and checks every answer. "New" asks each question once and nobody asks twice; "repeated" asks a few again and again.
  "8 under way" is how sssd uses its one connection when several programs ask it. Ratios are of one round, and their
  median counts.
- **Audit events through three sinks**: a process with the server's store, JSON log and sinks, and nothing else of it,
  commits 50 events at a time. Syslog over TCP, and Splunk and Loki with compressed batches of 100, go to one process
  that only counts what arrives; the clock stops when the last sink has the last event and it is in the JSON log.
- **Added to a creation**: two servers, one of which has the three sinks or the policies, are asked in turns, one
  creation after the other. A run is the difference of the medians of one turn each. Of the policies only the last fits.
- **Created and told**: the clock runs from the first request, all of which come as fast as the server takes them, until
  the last message has come to a process that only counts. The server has one channel, a webhook.
- **Memory while a receiver misses events**: the same process, with nobody on Splunk's port. What counts is how much
  its peak grows after 20,000 events have filled what may be kept in memory.
- **Health told**: each question on a connection of its own, while the processes of PostgreSQL are stopped and the
  identity provider takes connections and says nothing.
- **Turns of the reactor**: how long the server's event loop was away from its sockets, each time; measured in the
  server.

The peers do less on purpose: they show what the machine gives for the part that cannot be left out.
"""


def machine(directory: Path) -> dict[str, str]:
    """The machine, by name; ``directory`` is where the databases lie."""
    memory = int(_line("/proc/meminfo", "MemTotal:").split()[0]) / 2**20
    return {
        "Processor": f"{_line('/proc/cpuinfo', 'model name').lstrip(': ')}, {len(os.sched_getaffinity(0))} cores",
        "Memory": f"{memory:.0f} GiB",
        "Kernel": platform.release(),
        "System": _line("/etc/os-release", "PRETTY_NAME=").strip('"'),
        "Python": f"{platform.python_version()} (agent: {_system_python()})",
        "One flush to disk": f"{flush_seconds(directory) * 1e6:,.0f} µs (write 4 KiB, fdatasync; median of 200)",
        "Load before the run": f"{os.getloadavg()[0]:.1f}",
    }


def _line(path: str, start: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(start):
            return line.removeprefix(start).strip()
    return "unknown"


def _system_python() -> str:
    return subprocess.run(
        ["/usr/bin/python3", "-ISBc", "import platform; print(platform.python_version())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def flush_seconds(directory: Path) -> float:
    file = os.open(directory / "flush", os.O_CREAT | os.O_WRONLY, 0o600)
    times = []
    try:
        for _ in range(200):
            os.write(file, bytes(4096))
            start = time.perf_counter()
            os.fdatasync(file)
            times.append(time.perf_counter() - start)
    finally:
        os.close(file)
        os.unlink(directory / "flush")
    return statistics.median(times)
