"""
A process that emits audit events through the real store, log and sinks, and nothing else of the server:
``python -m benchmarks.emitter EVENTS...`` with the settings in the environment.

For each number of EVENTS it waits for a line on standard input, emits so many events, waits for the sinks that are not
down, and prints a line of JSON: when it began, in seconds of the system's monotonic clock, when the last event was
committed and in the JSON log, and the most memory that the process has had.

``--bare PORT LINES`` sends lines over one TCP connection instead, with nothing behind them.
"""

from __future__ import annotations

import cProfile
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.internet import reactor as any_reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater, react
from twisted.internet.threads import deferToThread, deferToThreadPool

from identree.app.metrics import Metrics
from identree.auditparts import Around, Sinks, network_sinks, open_log, recent_events, sink_names
from identree.core.events import ChallengeApproved
from identree.settings.load import load
from identree.settings.values import Settings
from identree.sinks.follower import Follower
from identree.storage.opening import open_store
from identree.storage.store import SqlStore

# Events of one script, and scripts under way: what a busy server commits at a time, so that making events is not what
# is measured.
BATCH = 50
UNDER_WAY = 4
# Of the peer's lines: what such a record takes in syslog.
LINE_BYTES = 550


def peak_bytes() -> int:
    """The most memory that the process has had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not say how much memory the process has")


def events(begin: int, count: int) -> list[ChallengeApproved]:
    """As a server's: people, hosts, codes, and a reason now and then."""
    at = datetime.now(UTC)
    return [
        ChallengeApproved(
            at=at,
            username=f"user{number:07d}",
            hostname=f"web-{number % 500:03d}",
            code=f"GZDUYP-{number % 1_000_000:06d}",
            actor=f"admin{number % 20:02d}",
            reason="rolling restart of <nginx> & friends" if number % 3 == 0 else "",
            remote_addr="192.0.2.17",
        )
        for number in range(begin, begin + count)
    ]


class Emitter:
    def __init__(self, reactor: Any, settings: Settings) -> None:
        self._reactor = reactor
        metrics = Metrics(CollectorRegistry(), "bench", sink_names(settings))
        self.store: SqlStore = open_store(
            reactor,
            driver=settings.database_driver,
            dsn=settings.database_dsn,
            version="bench",
            log=open_log(settings, metrics),
            sinks=network_sinks(settings),
            recent_events=recent_events(settings),
        )

        def in_thread(function: Callable[[], Any]) -> Deferred[Any]:
            return deferToThreadPool(reactor, reactor.getThreadPool(), function)

        around = Around(
            settings=settings,
            reactor=reactor,
            metrics=metrics,
            now=lambda: datetime.now(UTC),
            monotonic=time.monotonic,
            wall_ns=time.time_ns,
            in_thread=in_thread,
        )
        self.sinks = Sinks(around, self.store, adopts=False)
        self._emitted = 0

    async def start(self) -> None:
        await self.store.start()
        self.sinks.startService()

    async def stop(self) -> None:
        await self.sinks.stopService()
        await self.store.stop()

    async def emit(self, count: int) -> None:
        end = self._emitted + count

        async def work() -> None:
            while self._emitted < end:
                begin = self._emitted
                some = min(BATCH, end - begin)
                self._emitted += some
                await self.store.record(events(begin, some))

        await DeferredList(
            [Deferred.fromCoroutine(work()) for _ in range(UNDER_WAY)], fireOnOneErrback=True, consumeErrors=True
        )

    async def delivered(self) -> None:
        """Every sink that is not down was sent everything."""
        followers = [follower for follower in self.sinks if isinstance(follower, Follower)]
        while any(follower.lag.records and not follower.down for follower in followers):
            await deferLater(self._reactor, 0.02)


class _Bare(Protocol):
    """Writes lines as fast as the other side takes them."""

    def __init__(self, count: int) -> None:
        self._left = count

    def connectionMade(self) -> None:
        self._chunk = b"x" * (LINE_BYTES - 1) + b"\n"
        print(json.dumps({"begun": time.monotonic()}), flush=True)
        transport: Any = self.transport
        transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """A pull producer: the transport has sent what it had."""
        transport: Any = self.transport
        if not self._left:
            transport.unregisterProducer()
            return
        count = min(BATCH, self._left)
        self._left -= count
        for _ in range(count):
            transport.write(self._chunk)

    def stopProducing(self) -> None:
        """The connection is gone."""


def bare(reactor: Any, port: int, count: int) -> Deferred[None]:
    """The peer: lines as long as records, over one connection, until the process is ended."""
    factory = Factory.forProtocol(lambda: _Bare(count))
    factory.noisy = False
    connected = TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(factory)
    return connected.addCallback(lambda _: Deferred())


async def run(reactor: Any, amounts: Sequence[int]) -> None:
    emitter = Emitter(reactor, load(os.environ))
    await emitter.start()
    print(json.dumps({"ready": True}), flush=True)
    for amount in amounts:
        await deferToThread(sys.stdin.readline)
        begun = time.monotonic()
        await emitter.emit(amount)
        emitted = time.monotonic()
        await emitter.delivered()
        told = {"begun": begun, "emitted": emitted, "peak": peak_bytes(), "down": emitter.sinks.lagging}
        print(json.dumps(told), flush=True)
    await emitter.stop()


def main(arguments: Sequence[str]) -> None:
    """A profile of the reactor's thread goes to the file that IDENTREE_BENCH_PROFILE names."""
    if arguments[0] == "--bare":
        port, count = map(int, arguments[1:])
        react(lambda reactor: bare(reactor, port, count))
    amounts = [int(argument) for argument in arguments]

    def begin(reactor: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(run(reactor, amounts))

    profile = os.environ.pop("IDENTREE_BENCH_PROFILE", "")
    if not profile:
        react(begin)
    profiler = cProfile.Profile()
    any_reactor.addSystemEventTrigger("after", "shutdown", lambda: profiler.dump_stats(profile))
    profiler.runcall(react, begin)


if __name__ == "__main__":
    main(sys.argv[1:])
