"""
The audit stream over kill -9 and over a receiver that is away: rsyslog, a collector, a Loki and the JSON log, fed by a
real server under load.
"""

from __future__ import annotations

import itertools
import json
import random
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from identree.core import audit
from tests.e2e import hec, loki
from tests.e2e.directory import metric, until
from tests.e2e.provider import CLIENT_ID, CLIENT_SECRET
from tests.e2e.rsyslog import Rsyslog
from tests.e2e.server import PROGRAMS, Server, free_port
from tests.e2e.test_kill import Load

# A hundred starts take two minutes where nothing else runs.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

SINKS = ("syslog", "splunk_hec", "loki")
CLIENTS = 6
KILLS = 100
# Approvals of one life, and how long it goes on behind the last of them.
LEAST_APPROVALS, MOST_APPROVALS, MOST_DELAY_SECONDS = 4, 24, 0.05
# One life lasts until every sink's place was saved. rsyslog confirms nothing, so its place follows after ten seconds,
# and all other lives begin where this one ended.
LONG_LIFE = 40
# Beside them, every so many lives one start is cut off, so many seconds after its beginning: some before the database
# is open, some while the log and the sinks catch up.
CUT_EVERY, LEAST_START_SECONDS, MOST_START_SECONDS = 20, 0.2, 1.2
# Small, so that the log is rotated many times, and large enough that nothing is rotated away.
LOG_BYTES, LOG_FILES = 200_000, 1000
# A receiver is away for so long; the others must not feel it.
AWAY_SECONDS = 20.0
# What the receiver missed must not be kept in memory: this many records may be.
BUFFERED = 300
GROWTH_BYTES = 80_000_000
# A batch of the HTTP sinks, which may wait for company.
BATCH = 100
PATIENCE_SECONDS = 120.0


class Receivers:
    """
    Where the network sinks deliver to.

    :param directory: for rsyslog.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.rsyslog, self.hec, self.loki = Rsyslog(directory), hec.HEC(), loki.Loki()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.hec)
        self._stack.enter_context(self.loki)
        self._stack.callback(self.rsyslog.kill)
        self.rsyslog.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def settings(self) -> dict[str, str]:
        return {
            "IDENTREE_AUDIT_SYSLOG_URL": f"tcp://127.0.0.1:{self.rsyslog.counted}",
            "IDENTREE_AUDIT_SYSLOG_FRAMING": "octet-counting",
            "IDENTREE_AUDIT_SPLUNK_HEC_URL": self.hec.url,
            "IDENTREE_AUDIT_SPLUNK_TOKEN": hec.TOKEN,
            "IDENTREE_AUDIT_LOKI_URL": self.loki.url,
        }

    def arrived(self) -> dict[str, list[str]]:
        """Per sink the records, in C-form, as they came."""
        messages = (message.partition(b"] ")[2].decode() for message in self.rsyslog.received("counted"))
        return {
            "syslog": list(messages),
            "splunk_hec": [audit.canonical(record.decode()) for record in self.hec.records],
            "loki": [record.decode() for record in self.loki.records],
        }

    def exports(self, directory: Path) -> dict[str, list[Path]]:
        """Per sink files as its users get them out of it."""
        splunk = directory / "splunk-export.json"
        with splunk.open("w") as file:
            for offset, record in enumerate(self.hec.records):
                result = {"_raw": record.decode(), "source": "identree", "sourcetype": "identree:audit"}
                file.write(json.dumps({"preview": False, "offset": offset, "result": result}) + "\n")
        return {
            "syslog": [self.rsyslog.directory / "counted.log"],
            "splunk_hec": [splunk],
            "loki": list(self._loki_pages(directory)),
        }

    def _loki_pages(self, directory: Path) -> Iterator[Path]:
        """Answers of its API, until one is not full."""
        now = time.time_ns()
        start, end = now - 3600 * loki.SECOND_NS, now + 60 * loki.SECOND_NS
        for number in itertools.count():
            asked = urlencode(
                {
                    "query": '{app="identree"}',
                    "start": start,
                    "end": end,
                    "limit": loki.MOST_ENTRIES,
                    "direction": "forward",
                }
            )
            with urlopen(f"{self.loki.origin}{loki.QUERY_RANGE}?{asked}", timeout=60) as answer:
                body = answer.read()
            page = directory / f"loki-{number}.json"
            page.write_bytes(body)
            yield page
            times = [int(ns) for stream in json.loads(body)["data"]["result"] for ns, _ in stream["values"]]
            if len(times) < loki.MOST_ENTRIES:
                return
            start = max(times)


def served(place: Path, receivers: Receivers, **more: str) -> Server:
    return Server(
        place,
        {
            "IDENTREE_OIDC_ISSUER_URL": f"http://127.0.0.1:{free_port()}",
            "IDENTREE_OIDC_CLIENT_ID": CLIENT_ID,
            "IDENTREE_OIDC_CLIENT_SECRET": CLIENT_SECRET,
            "IDENTREE_CHALLENGE_TTL": "10m",
            "IDENTREE_AUDIT_LOG_MAX_SIZE": str(LOG_BYTES),
            "IDENTREE_AUDIT_LOG_MAX_FILES": str(LOG_FILES),
            **receivers.settings,
            **more,
        },
    )


class SteadyLoad(Load):
    """
    Sudos and approvals without a pause, each repeated until it is answered; in the end all are.

    :ivar work: ends early when something is wrong.
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._numbers, self._over = itertools.count(), threading.Event()
        self.work: list[Future[None]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(CLIENTS) as clients:
            self.work = [clients.submit(self._client) for _ in range(CLIENTS)]
            try:
                yield
            finally:
                self._over.set()
            for each in self.work:
                each.result()

    def _client(self) -> None:
        while not self._over.is_set():
            self.run(next(self._numbers))


def lag(server: Server, sink: str) -> float:
    return metric(server.port, f'identree_audit_sink_lag_records{{sink="{sink}"}}')


def caught_up(server: Server) -> bool:
    return all(lag(server, sink) == 0 for sink in SINKS)


def logged(server: Server) -> list[str]:
    """The lines of the JSON log and of what was rotated away, in order."""
    rotated = sorted(server.directory.glob("audit.jsonl.*"), key=lambda path: -int(path.suffix[1:]))
    lines: list[str] = []
    for path in (*rotated, server.audit_log):
        content = path.read_bytes()
        assert not content or content.endswith(b"\n"), f"the last line of {path.name} is not whole"
        lines += content.decode().splitlines()
    return lines


def by_seq(records: list[str], where: str) -> dict[int, str]:
    """
    In the order of their first coming.

    :raise AssertionError: two different records bear the same number.
    """
    found: dict[int, str] = {}
    for record in records:
        seq = json.loads(record)["seq"]
        assert found.setdefault(seq, record) == record, f"{where} has two records {seq}: {found[seq]} and {record}"
    return found


def check(server: Server, receivers: Receivers, load: Load, directory: Path) -> dict[str, int]:
    """Everybody has everything, unchanged and in order; how often records were repeated, by sink."""
    expected = by_seq([audit.canonical(line) for line in logged(server)], "the JSON log")
    assert list(expected) == list(range(len(expected))), "the JSON log has gaps"
    until(lambda: len(by_seq(receivers.arrived()["syslog"], "rsyslog")) >= len(expected), "rsyslog's file")
    repeated: dict[str, int] = {}
    for sink, records in receivers.arrived().items():
        found = by_seq(records, sink)
        missing = [seq for seq in expected if seq not in found]
        assert not missing, f"{sink} lacks {len(missing)} of {len(expected)} records, the first is {missing[0]}"
        assert found == expected, f"{sink} has other records than the JSON log"
        assert list(found) == list(expected), f"{sink} was not sent them in order"
        repeated[sink] = len(records) - len(found)
        answered = set(load.approved.values())
        for event in ("challenge_created", "challenge_approved"):
            codes = [record["code"] for record in map(json.loads, found.values()) if record["event"] == event]
            assert len(codes) == len(set(codes)), f"{sink} has {event} twice for one challenge"
            assert answered <= set(codes), f"{sink} lacks {event} of {len(answered - set(codes))} answered requests"
    files: dict[str, list[Path]] = {
        "the JSON log": [server.audit_log, *server.directory.glob("audit.jsonl.*")],
        **receivers.exports(directory),
    }
    for name, paths in files.items():
        said = subprocess.run(
            [PROGRAMS / "identree", "audit", "verify", *paths], check=False, capture_output=True, text=True
        )
        assert said.returncode == 0, f"{name}: {said.stdout}{said.stderr}"
    return repeated


class TestKilled:
    def test_again_and_again(self, tmp_path: Path) -> None:
        """
        Killed a hundred times at random moments under load, started again on the same database: every sink has every
        record from the first to the last, repetitions are the same bytes, every chain verifies, and what was answered
        is in every sink.
        """
        seed = random.SystemRandom().randrange(2**32)
        print(f"seed {seed}")
        chance = random.Random(seed)
        exported = tmp_path / "exported"
        exported.mkdir()
        with Receivers(tmp_path / "rsyslog") as receivers:
            server = served(tmp_path, receivers)
            try:
                server.start()
                load = SteadyLoad(server.port)
                with load.running():
                    for number in range(KILLS):
                        self.live(server, load, chance, long=number == LONG_LIFE)
                        server.kill()
                        if number % CUT_EVERY == 0:
                            self.cut_start(server, chance.uniform(LEAST_START_SECONDS, MOST_START_SECONDS))
                        server.start()
                until(lambda: caught_up(server), "every sink to catch up", PATIENCE_SECONDS)
                server.stop()
            finally:
                server.kill()
            assert "Traceback" not in server.log, server.log
            repeated = check(server, receivers, load, exported)
        print(f"{len(load.approved)} approvals; repeated: {repeated}")
        # else nobody was killed between shipping and saving the place
        assert sum(repeated.values()) > 0
        assert len(list(tmp_path.glob("audit.jsonl.*"))) > 3, "the log was not rotated"

    @staticmethod
    def cut_start(server: Server, seconds: float) -> None:
        timer = threading.Timer(seconds, server.kill)
        timer.start()
        with suppress(AssertionError):  # it ended, says who has waited for it
            server.start()
        timer.join()
        server.kill()

    @staticmethod
    def live(server: Server, load: SteadyLoad, chance: random.Random, *, long: bool) -> None:
        if long:
            before = places(server)
            until(
                lambda: (
                    all(place > before.get(sink, -1) for sink, place in places(server).items())
                    and len(places(server)) >= len(SINKS)
                ),
                "the places of all sinks",
                PATIENCE_SECONDS,
            )
        wanted = load.count + chance.randint(LEAST_APPROVALS, MOST_APPROVALS)
        while load.count < wanted:
            assert not any(each.done() for each in load.work), "the load has ended"
            time.sleep(0.001)
        time.sleep(chance.uniform(0, MOST_DELAY_SECONDS))


def places(server: Server) -> dict[str, int]:
    """What the network sinks have for sure, by the database."""
    with closing(sqlite3.connect(server.settings["IDENTREE_DATABASE_DSN"], timeout=10)) as database:
        rows = database.execute("SELECT sink, seq FROM sink_cursors").fetchall()
    return {sink: seq for sink, seq in rows if sink in SINKS}


class TestAway:
    def test_one_receiver(self, tmp_path: Path) -> None:
        """
        While the collector is away under load the other sinks keep up; how far it is behind is a metric, is not in
        memory, and is nothing when it is back and has everything.
        """
        exported = tmp_path / "exported"
        exported.mkdir()
        with Receivers(tmp_path / "rsyslog") as receivers:
            with served(tmp_path, receivers, IDENTREE_AUDIT_BUFFER_SIZE=str(BUFFERED)) as server:
                load = SteadyLoad(server.port)
                with load.running():
                    until(lambda: len(receivers.hec.seqs()) >= 5 * BATCH, "the first records")
                    receivers.hec.stop()
                    before = resident_bytes(server)
                    lags = self.observe(server)
                    after = resident_bytes(server)
                    # the collector has had nothing meanwhile, and the others everything, but for a batch under way
                    until(
                        lambda: lag(server, "syslog") <= BATCH and lag(server, "loki") <= 2 * BATCH,
                        "the other sinks, while one is away",
                    )
                    assert self.seconds(server) >= AWAY_SECONDS / 2
                    receivers.hec.start()
                    until(lambda: lag(server, "splunk_hec") < lags[-1] / 2, "the collector", PATIENCE_SECONDS)
                until(lambda: caught_up(server), "every sink to catch up", PATIENCE_SECONDS)
                assert self.seconds(server) == 0
                for sink in SINKS:
                    assert metric(server.port, f'identree_audit_events_total{{sink="{sink}",status="dropped"}}') == 0
                    assert metric(server.port, f'identree_audit_parked_total{{sink="{sink}"}}') == 0
                server.stop()
            assert lags == sorted(lags)
            assert lags[-1] > 2 * BUFFERED, "that was no load"
            assert after - before < GROWTH_BYTES, f"{(after - before) / 1e6:.0f} MB more for {lags[-1]:.0f} records"
            assert server.log.count("AUDIT sink error") == 1, server.log
            check(server, receivers, load, exported)

    @staticmethod
    def observe(server: Server) -> list[float]:
        """How many records the collector lacked, from time to time."""
        end = time.monotonic() + AWAY_SECONDS
        lags = []
        while time.monotonic() < end:
            lags.append(lag(server, "splunk_hec"))
            time.sleep(AWAY_SECONDS / 10)
        return lags

    @staticmethod
    def seconds(server: Server) -> float:
        return metric(server.port, 'identree_audit_sink_lag_seconds{sink="splunk_hec"}')


def resident_bytes(server: Server) -> int:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024
