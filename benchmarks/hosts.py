"""Hosts: creating challenges, waiting for decisions, and being released."""

from __future__ import annotations

import itertools
import json
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks import agents, peers
from benchmarks.client import Exchange, Loop, Timing, closed_loop, connect, percentile
from benchmarks.report import Report, Result
from benchmarks.server import WatchedServer, approval, creation, held_poll, served, session_cookie

CONNECTIONS = 32
CREATION_RUNS = 5
CREATION_SECONDS = 3.0
APPROVALS_PER_SECOND = 50
APPROVALS_PER_RUN = 250
APPROVAL_RUNS = 5
REAL_AGENTS = 40
# Requests of the latency are sent one after the other, to either server in turns.
ROUNDS, ROUND_SECONDS = 12, 0.5
# The default life of a challenge is shorter than these runs.
_PATIENT = {"IDENTREE_CHALLENGE_TTL": "10m"}


def people(prefix: str = "u") -> Iterator[tuple[str, str]]:
    """Another person each time, on one of 500 hosts."""
    return ((f"{prefix}{number:07d}", f"web-{number % 500:03d}") for number in itertools.count())


def _all(timing: Timing, status: int) -> None:
    if set(timing.statuses) != {status}:
        raise RuntimeError(f"not every answer was {status}: {timing.statuses}")


# -- created and durable ----------------------------------------------------------------------------------------------
def creations(report: Report, name: str, target: float, settings: dict[str, str], peer: Callable[[], str]) -> None:
    with served(settings) as server:
        requests = (creation(user, host) for user, host in people())
        warming = closed_loop(server.port, requests, CONNECTIONS, 1.0)
        _all(warming, 201)
        server.turns()
        timings = []
        processor = server.cpu_seconds()
        for _ in range(CREATION_RUNS):
            timings.append(closed_loop(server.port, requests, CONNECTIONS, CREATION_SECONDS))
            _all(timings[-1], 201)
        processor = (server.cpu_seconds() - processor) / sum(len(timing.latencies) for timing in timings)
        turns = str(server.turns())
        _recorded(server, sum(len(timing.latencies) for timing in (warming, *timings)))
    p99 = statistics.median(timing.percentile(0.99) for timing in timings)
    report.add(
        Result(
            name=f"Challenge created and durable, {name}",
            unit="/s",
            target=target,
            at_least=True,
            runs=[timing.rate for timing in timings],
            peer=peer(),
            reactor=f"{turns}; {processor * 1e6:,.0f} µs of processor each; answers p99 {p99 * 1000:.0f} ms",
            hindrance="one interpreter runs the HTTP and the application, and shares two cores with database and load",
        )
    )


def _recorded(server: WatchedServer, answered: int) -> None:
    """Every answer is a record in the audit log already, or the rate means nothing."""
    created = server.audit_log.read_bytes().count(b'"event":"challenge_created"')
    if created != answered:
        raise RuntimeError(f"{answered} creations were answered, and the audit log has {created}")


def added(report: Report, by: str, short: str, target: float, plain: WatchedServer, other: WatchedServer) -> None:
    """
    What ``other`` has and ``plain`` has not adds to the median of a creation; each round has the two after one another.

    :param by: what that is, ``short`` in one word. :param target: in milliseconds.
    """
    stock = {server.port: (creation(*pair) for pair in people()) for server in (plain, other)}
    # the first turns are those of the start
    for port in stock:
        _median_ms(port, stock[port])
    other.turns()
    medians: dict[int, list[float]] = {port: [] for port in stock}
    for port in itertools.chain.from_iterable([list(stock)] * ROUNDS):
        medians[port].append(_median_ms(port, stock[port]))
    without, within = medians[plain.port], medians[other.port]
    report.add(
        Result(
            name=f"Added to a creation by {by}, median",
            unit="ms",
            target=target,
            digits=2,
            runs=[b - a for a, b in zip(without, within, strict=True)],
            peer=f"without {short} {statistics.median(without):.2f} ms, with them {statistics.median(within):.2f} ms",
            reactor=str(other.turns()),
        )
    )


def _median_ms(port: int, requests: Iterator[bytes]) -> float:
    timing = closed_loop(port, requests, 1, ROUND_SECONDS)
    _all(timing, 201)
    return statistics.median(timing.latencies) * 1000


# -- waiting and being released ---------------------------------------------------------------------------------------
@dataclass(slots=True)
class Host:
    """One host that waits; ``released`` on ``time.perf_counter``."""

    user: str
    hostname: str
    challenge_id: str
    released: float = 0.0
    polls: int = 0


@dataclass(slots=True)
class Crowd:
    """
    Hosts that hold a poll each, and ask again when it ends undecided.

    :ivar loop: their sockets.
    """

    loop: Loop
    port: int
    hosts: list[Host] = field(default_factory=list)
    _exchanges: list[Exchange] = field(default_factory=list)
    _free: list[Exchange] = field(default_factory=list)
    answered: int = 0

    def create(self, count: int, prefix: str) -> list[Host]:
        """New challenges, each of another person."""
        wanted = list(itertools.islice(people(prefix), count))
        hosts: list[Host] = []
        stock = iter(wanted)
        asked: dict[Exchange, tuple[str, str]] = {}

        def next_one(exchange: Exchange) -> None:
            pair = next(stock, None)
            if pair is not None:
                asked[exchange] = pair
                exchange.send(creation(*pair))

        def answered(exchange: Exchange, status: int, body: bytes) -> None:
            if status != 201:
                raise RuntimeError(f"a creation was answered with {status}")
            hosts.append(Host(*asked[exchange], json.loads(body)["challenge_id"]))
            next_one(exchange)

        exchanges = [Exchange(self.loop, connect(self.port), answered) for _ in range(min(count, CONNECTIONS))]
        for exchange in exchanges:
            next_one(exchange)
        self.loop.run(lambda: len(hosts) == count, 120)
        for exchange in exchanges:
            exchange.close()
        return hosts

    def wait(self, hosts: list[Host]) -> None:
        """They hold their polls from now on; returns when the server has had the time to take all of them."""
        for host in hosts:
            exchange = Exchange(self.loop, connect(self.port, len(self._exchanges)), self._poll_answer(host))
            self._exchanges.append(exchange)
            exchange.send(held_poll(host.challenge_id, host.hostname))
            self.loop.run(lambda: True, 1)
        self.hosts += hosts
        self.pause(0.5)

    def pause(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        self.loop.at(end, lambda: None)
        self.loop.run(lambda: time.perf_counter() >= end, seconds + 60)

    def _poll_answer(self, host: Host) -> Callable[[Exchange, int, bytes], None]:
        def answered(exchange: Exchange, status: int, body: bytes) -> None:
            moment = time.perf_counter()
            told = json.loads(body)
            if status != 200:
                raise RuntimeError(f"a poll was answered with {status}: {told}")
            host.polls += 1
            if told["status"] == "pending":
                exchange.send(held_poll(host.challenge_id, host.hostname))
            else:
                if not told.get("approval_token"):
                    raise RuntimeError(f"released without a token: {told}")
                host.released = moment

        return answered

    def approve(self, hosts: list[Host], per_second: float) -> list[float]:
        """Approve them at this rate; seconds from each approval's sending to the release of its host."""
        sent: dict[str, float] = {}

        def decide(host: Host) -> None:
            request = approval(host.challenge_id, host.user, session_cookie(host.user))
            exchange = self._free.pop() if self._free else Exchange(self.loop, connect(self.port), decided)
            sent[host.challenge_id] = time.perf_counter()
            exchange.send(request)

        def decided(exchange: Exchange, status: int, body: bytes) -> None:
            if status != 200:
                raise RuntimeError(f"an approval was answered with {status}: {body[:300]!r}")
            self._free.append(exchange)

        start = time.perf_counter() + 0.01
        for number, host in enumerate(hosts):
            self.loop.at(start + number / per_second, lambda host=host: decide(host))  # type: ignore[misc]
        self.loop.run(lambda: all(host.released for host in hosts), len(hosts) / per_second + 60)
        return [host.released - sent[host.challenge_id] for host in hosts]

    def close(self) -> None:
        for exchange in (*self._exchanges, *self._free):
            exchange.close()


def releases(report: Report, waiting: int) -> None:
    """Approval to released agent, while ``waiting`` others wait on."""
    with served(_PATIENT) as server, Loop() as loop:
        crowd = Crowd(loop, server.port)
        hosts = crowd.create(waiting + APPROVAL_RUNS * APPROVALS_PER_RUN, "w")
        crowd.wait(hosts)
        server.turns()
        runs = [
            crowd.approve(hosts[run * APPROVALS_PER_RUN : (run + 1) * APPROVALS_PER_RUN], APPROVALS_PER_SECOND)
            for run in range(APPROVAL_RUNS)
        ]
        turns = str(server.turns())
        everyone = [latency for run in runs for latency in run]
        report.add(
            Result(
                name=f"Approval to released host, p99, {waiting:,} waiting, {APPROVALS_PER_SECOND} approvals a second",
                unit="ms",
                target=100,
                digits=1,
                runs=[percentile(run, 0.99) * 1000 for run in runs],
                peer=f"median {statistics.median(everyone) * 1000:.1f} ms, longest {max(everyone) * 1000:.1f} ms; "
                + peers.release(waiting),
                reactor=turns,
                hindrance="decision, audit record and answer wait for two flushes to disk and the one interpreter",
            )
        )
        with agents.Agents(server.port) as started:
            numbers = range(REAL_AGENTS)
            started.run(REAL_AGENTS)
            challenges = _challenges(server, [agents.user(number) for number in numbers])
            latencies = _released(crowd, started, challenges)
        report.add(
            Result(
                name=f"Approval to the end of a real agent's process, p99 of {REAL_AGENTS}, {waiting:,} waiting",
                unit="ms",
                target=100,
                digits=1,
                runs=[percentile(latencies, 0.99) * 1000],
                peer=f"median {statistics.median(latencies) * 1000:.1f} ms",
                reactor=str(server.turns()),
            )
        )
        crowd.close()


def _challenges(server: WatchedServer, users: list[str]) -> list[Host]:
    """What the agents have created, read from the database."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with sqlite3.connect(server.settings["IDENTREE_DATABASE_DSN"]) as database:
            found = dict(database.execute("SELECT username, id FROM challenges WHERE username LIKE 'agent-%'"))
        if set(users) <= set(found):
            time.sleep(1.0)  # until the last of them holds its poll
            return [Host(user, "bench-host", found[user]) for user in users]
        time.sleep(0.1)
    raise RuntimeError(f"{len(users) - len(found)} agents did not create a challenge")


def _released(crowd: Crowd, started: agents.Agents, hosts: list[Host]) -> list[float]:
    latencies = []
    for number, host in enumerate(hosts):
        answers: list[int] = []
        exchange = Exchange(crowd.loop, connect(crowd.port), lambda _, status, body: answers.append(status))  # noqa: B023
        request = approval(host.challenge_id, host.user, session_cookie(host.user))
        sent = time.perf_counter()
        exchange.send(request)
        ended, code = started.end_of(number)
        if code != 0:
            raise RuntimeError(f"an approved agent ended with {code}")
        latencies.append(ended - sent)
        crowd.loop.run(lambda: bool(answers), 10)  # noqa: B023
        exchange.close()
    return latencies


# -- ten thousand -----------------------------------------------------------------------------------------------------
def memory(report: Report, waiting: int) -> None:
    settings = {**_PATIENT, "IDENTREE_MAX_WAITERS": str(waiting * 2)}
    with served(settings) as server, Loop() as loop:
        empty = server.resident_bytes()
        crowd = Crowd(loop, server.port)
        hosts = crowd.create(waiting, "m")
        crowd.wait(hosts)
        server.turns()
        loop.run(lambda: all(host.polls for host in hosts), 60)
        crowd.pause(1)
        resident = server.resident_bytes()
        turns = str(server.turns())
        latencies = crowd.approve(hosts[:APPROVALS_PER_RUN], APPROVALS_PER_SECOND)
        resident = max(resident, server.resident_bytes())
        report.add(
            Result(
                name=f"Resident memory with {waiting:,} hosts waiting",
                unit="MB",
                target=500,
                runs=[resident / 1e6],
                peer=f"empty server {empty / 1e6:.0f} MB, so {(resident - empty) / waiting / 1024:.1f} KiB per host",
                reactor=f"while every host asks again within {25} s: {turns}",
            )
        )
        report.add(
            Result(
                name=f"Approval to released host, p99, {waiting:,} waiting",
                unit="ms",
                digits=1,
                runs=[percentile(latencies, 0.99) * 1000],
                peer=f"median {statistics.median(latencies) * 1000:.1f} ms",
                reactor=str(server.turns()),
            )
        )
        crowd.close()
