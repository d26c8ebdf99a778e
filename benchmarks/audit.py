"""The audit stream: how much goes through, what it costs a request, and what an absent receiver costs in memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import hosts
from benchmarks.report import Report, Result
from benchmarks.server import SETTINGS, served, temporary_directory
from tests.e2e.server import REPOSITORY, SESSION_SECRET, SHARED_SECRET, free_port

SINKS = ("syslog", "splunk_hec", "loki")
# Events of a run: long enough that what is kept in memory for the sinks cannot hide that one of them is too slow.
EVENTS = 30_000
WARMING = 3_000
RUNS = 3
EVENTS_PER_SECOND = 5_000
# While a receiver is away; the first of them fill what may be in memory.
SETTLING, MISSED = 20_000, 60_000
GROWTH_MB = 20.0
ADDED_MS = 2.0


class Receivers:
    """The process that counts; ``ports`` by sink."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.ports: dict[str, int] = self._told()

    def order(self, wanted: int, sinks: Sequence[str]) -> None:
        """Forget what came, and tell when each of ``sinks`` has ``wanted`` records."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{wanted} {' '.join(sinks)}\n".encode())
        self._process.stdin.flush()
        self._told()

    def complete(self) -> dict[str, float]:
        """When each sink had everything, in seconds of the system's monotonic clock."""
        at: dict[str, float] = self._told()["at"]
        return at

    def settings(self, **others: int) -> dict[str, str]:
        """:param others: other ports, by sink."""
        ports = {**self.ports, **others}
        return {
            "IDENTREE_AUDIT_SYSLOG_URL": f"tcp://127.0.0.1:{ports['syslog']}",
            "IDENTREE_AUDIT_SPLUNK_HEC_URL": f"http://127.0.0.1:{ports['splunk_hec']}/services/collector/event",
            "IDENTREE_AUDIT_SPLUNK_TOKEN": "8f7e6d5c-0000-4000-8000-0123456789ab",
            "IDENTREE_AUDIT_LOKI_URL": f"http://127.0.0.1:{ports['loki']}",
        }

    def _told(self) -> Any:
        return told(self._process, "the receivers")


def told(process: subprocess.Popen[bytes], who: str) -> Any:
    """The next line of JSON that a process prints."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{who} ended with status {process.wait()}")
    return json.loads(line)


@contextmanager
def spoken_with(module: str, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[Any]:
    """A process of ours that is told lines and tells lines."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def receivers() -> Iterator[Receivers]:
    with spoken_with("benchmarks.receivers") as process:
        yield Receivers(process)


class Emitter:
    """A process that has been told how much to emit; each :meth:`go` is the next amount."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        told(process, "the emitter")

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def told(self) -> dict[str, Any]:
        """When it began and had emitted, and its memory at its peak; once the sinks have been sent everything."""
        said: dict[str, Any] = told(self._process, "the emitter")
        return said


@contextmanager
def emitter(settings: dict[str, str], amounts: Sequence[int]) -> Iterator[Emitter]:
    with temporary_directory() as directory:
        environment = {
            **SETTINGS,
            "HOME": str(directory),
            "IDENTREE_EXTERNAL_URL": "http://127.0.0.1",
            "IDENTREE_SHARED_SECRET": SHARED_SECRET,
            "IDENTREE_SESSION_SECRET": SESSION_SECRET,
            "IDENTREE_LDAP_ENABLED": "false",
            "IDENTREE_DATABASE_DSN": str(directory / "identree.db"),
            "IDENTREE_AUDIT_LOG": f"file:{directory / 'audit.jsonl'}",
            "IDENTREE_TOML_CONFIG_FILE": str(directory / "identree.toml"),
            **settings,
        }
        profile = os.environ.get("IDENTREE_BENCH_PROFILE")
        if profile:
            environment["IDENTREE_BENCH_PROFILE"] = profile
        with spoken_with("benchmarks.emitter", *map(str, amounts), environment=environment) as process:
            yield Emitter(process)


# -- through ----------------------------------------------------------------------------------------------------------
def through(report: Report) -> None:
    """Events per second, from the first that is emitted to the last that the last sink has."""
    rates, logged, processor = [], [], []
    with receivers() as there, emitter(there.settings(), [WARMING, *[EVENTS] * RUNS]) as source:
        for amount in (WARMING, *[EVENTS] * RUNS):
            there.order(amount, SINKS)
            used = source.cpu_seconds
            source.go()
            at = there.complete()
            said = source.told()
            if said["down"]:
                raise RuntimeError(f"sinks are down: {said['down']}")
            rates.append(amount / (max(said["emitted"], *at.values()) - said["begun"]))
            logged.append(amount / (said["emitted"] - said["begun"]))
            processor.append((source.cpu_seconds - used) / amount)
        last = max(at, key=lambda sink: at[sink])
        peers = [_bare(there.ports["syslog"], there) for _ in range(RUNS)]
    report.add(
        Result(
            name="Audit events through syslog, Splunk and Loki, committed and in the JSON log",
            unit="/s",
            target=EVENTS_PER_SECOND,
            at_least=True,
            runs=rates[1:],
            peer=f"the last to have them was {last}; committed and in the JSON log "
            f"{statistics.median(logged[1:]):,.0f}/s; bare Twisted, records that are bytes already, over one TCP "
            f"connection and nothing kept {statistics.median(peers):,.0f}/s",
            reactor=f"{statistics.median(processor[1:]) * 1e6:,.0f} µs of processor for each event",
            hindrance="one interpreter seals, logs, formats and sends each event four times",
        )
    )


def _bare(port: int, there: Receivers) -> float:
    """Lines of the same length, from another process, until they were counted."""
    there.order(EVENTS, ("syslog",))
    with spoken_with("benchmarks.emitter", "--bare", str(port), str(EVENTS)) as process:
        begun: float = told(process, "the bare sender")["begun"]
        return EVENTS / (there.complete()["syslog"] - begun)


# -- added to a request -----------------------------------------------------------------------------------------------
def added(report: Report) -> None:
    """What the sinks add to the median of a creation, with and without them in turns."""
    with ExitStack() as stack:
        there = stack.enter_context(receivers())
        plain = stack.enter_context(served())
        streaming = stack.enter_context(served(there.settings()))
        there.order(1, SINKS)
        hosts.added(report, "three network sinks", "sinks", ADDED_MS, plain, streaming)
        # each sink has had something, or nothing was measured
        there.complete()


# -- while one is away ------------------------------------------------------------------------------------------------
def away(report: Report) -> None:
    """How much memory grows while a receiver misses 60,000 events."""
    with receivers() as there, emitter(there.settings(splunk_hec=free_port()), [SETTLING, MISSED]) as source:
        sizes = []
        for amount in (SETTLING, MISSED):
            there.order(amount, ("syslog", "loki"))
            source.go()
            there.complete()
            said = source.told()
            if said["down"] != ["splunk_hec"]:
                raise RuntimeError(f"one sink should be down, and these are: {said['down']}")
            sizes.append(said["peak"] / 1e6)
    report.add(
        Result(
            name=f"Memory while a receiver misses {MISSED:,} events",
            unit="MB",
            target=GROWTH_MB,
            digits=1,
            runs=[sizes[1] - sizes[0]],
            peer=f"in all {sizes[1]:.0f} MB; the records themselves, about {MISSED * 0.4 / 1000:.0f} MB, wait in the "
            "database",
        )
    )
