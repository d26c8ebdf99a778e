"""``make bench``: measure everything, print the table, write ``docs/benchmarks.md``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import agents, audit, dashboards, directory, health, hosts, notifications, peers, policies, start
from benchmarks.report import Report, machine
from benchmarks.server import raise_file_limit, temporary_directory
from tests.e2e.server import REPOSITORY
from tests.postgres import cluster

DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"
HOSTS_WAITING = 1_000
MANY_HOSTS_WAITING = 10_000
DASHBOARDS = 5_000
# Sockets of the server, or of the load, beside the counted ones.
SPARE_FILES = 1_000


def _postgres(report: Report) -> None:
    running = cluster()
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    dsn, other = running.create_database(), running.create_database()
    settings = {"IDENTREE_DATABASE_DRIVER": "postgres", "IDENTREE_DATABASE_DSN": dsn}
    hosts.creations(report, "PostgreSQL", 1000, settings, lambda: peers.pgbench(other, str(programs[-1])))


BENCHMARKS: dict[str, Callable[[Report], None]] = {
    "sqlite": lambda report: hosts.creations(report, "SQLite", 1500, {}, peers.sqlite),
    "postgres": _postgres,
    "release": lambda report: hosts.releases(report, HOSTS_WAITING),
    "memory": lambda report: hosts.memory(report, MANY_HOSTS_WAITING),
    "dashboards": lambda report: dashboards.woken(report, DASHBOARDS),
    "breakglass": agents.breakglass_decision,
    "agent": agents.own_time,
    "start": start.first_answer,
    "ldap": directory.compared,
    "refresh": directory.unchanged,
    "swaps": directory.swaps,
    "many": directory.many,
    "idle": directory.idle,
    "audit": audit.through,
    "added": audit.added,
    "away": audit.away,
    "policies": policies.many,
    "notifications": notifications.burst,
    "health": health.while_all_hangs,
}


def main(names: list[str]) -> int:
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    needed = MANY_HOSTS_WAITING + SPARE_FILES
    allowed = raise_file_limit(needed)
    if allowed < needed:
        print(f"a process may open only {allowed} files here, and {needed} are needed: ulimit -n", file=sys.stderr)
        return 1
    begun = time.monotonic()
    with temporary_directory() as directory:
        report = Report(machine(directory))
    for name, value in report.machine.items():
        print(f"{name}: {value}")
    print()
    for name, benchmark in BENCHMARKS.items():
        if not names or name in names:
            benchmark(report)
    print(f"\n{report.text()}\n\n{time.monotonic() - begun:.0f} s in all")
    if not names:
        DOCUMENT.write_text(report.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
