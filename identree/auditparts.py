"""
The audit stream, built from the settings: the JSON log, a follower per network sink, and those that look after the
chains of replicas that are gone. A part of the composition root.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit
from uuid import NAMESPACE_URL, uuid5

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from identree.app.checkpoints import Checkpoints, SigningKey
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.core.audit import Sealed
from identree.core.errors import StorageUnavailable
from identree.settings.values import Settings
from identree.sinks.follower import Follower, Shipper
from identree.sinks.formats import FORMATS
from identree.sinks.http import Connections
from identree.sinks.jsonl import JsonLog, SinkError, parse_target
from identree.sinks.loki import Loki
from identree.sinks.splunk import SplunkHEC
from identree.sinks.syslog import SyslogTCP, SyslogUDP, first_address, parse_url
from identree.sinks.tls import ClientTrust, TrustFiles
from identree.storage.adoption import ALIVE_SECONDS
from identree.storage.interface import Feed
from identree.storage.store import SqlStore

T = TypeVar("T")

JSON_LOG = "jsonlog"
# How often it is seen whether a checkpoint is due.
CHECKPOINT_LOOK_SECONDS = 10.0
# Of the records that may be in memory, this part is for those that followers have in hand.
IN_HAND = 4


def network_sinks(settings: Settings) -> tuple[str, ...]:
    """The names of the sinks that follow the chain, in the order of the specification."""
    wanted = (
        ("syslog", settings.audit_syslog_url),
        ("splunk_hec", settings.audit_splunk_hec_url),
        ("loki", settings.audit_loki_url),
    )
    return tuple(name for name, url in wanted if url)


def sink_names(settings: Settings) -> tuple[str, ...]:
    """The names of all sinks."""
    return (*((JSON_LOG,) if settings.audit_log else ()), *network_sinks(settings))


def recent_events(settings: Settings) -> int:
    """How many of the latest records the store keeps in memory; the others of the bound are in followers' hands."""
    sinks = network_sinks(settings)
    return max(1, settings.audit_buffer_size - in_hand(settings) * len(sinks)) if sinks else 0


def in_hand(settings: Settings) -> int:
    """How many records a follower may have in hand."""
    return max(1, settings.audit_buffer_size // (IN_HAND * max(1, len(network_sinks(settings)))))


# -- the JSON log -----------------------------------------------------------------------------------------------------
class CountedLog:
    """The JSON log, with each record that it has counted as emitted."""

    def __init__(self, log: JsonLog, metrics: Metrics) -> None:
        self._log = log
        self._emitted = metrics.audit.labels(JSON_LOG, "emitted")

    def write(self, records: Sequence[Sealed]) -> None:
        self._log.write(records)
        self._emitted.inc(len(records))

    def last_seq(self, instance: str) -> int | None:
        return self._log.last_seq(instance)

    def sync(self) -> None:
        """What was written is on the disk, as far as the settings want it to be."""
        self._log.sync()

    def reopen(self) -> None:
        """The next record opens the file anew."""
        self._log.reopen()


def open_log(settings: Settings, metrics: Metrics) -> CountedLog | None:
    """
    None: there is none.

    :raise SinkError, ValueError: it cannot be written.
    """
    target = parse_target(settings.audit_log)
    if target is None:
        return None
    log = JsonLog(
        target,
        max_bytes=settings.audit_log_max_size,
        max_files=settings.audit_log_max_files,
        fsync=settings.audit_log_fsync,  # type: ignore[arg-type]  # one of its choices
        form=FORMATS[settings.audit_log_format],
    )
    log.open()
    return CountedLog(log, metrics)


class LogState:
    """Counts every failure of the JSON log, and says it once, as well as when the log works again."""

    def __init__(self, journal: Journal, metrics: Metrics) -> None:
        self._journal = journal
        self._failures = metrics.audit.labels(JSON_LOG, "failed")
        self._down = False

    def failed(self, problem: Exception) -> None:
        self._failures.inc()
        if not self._down:
            self._down = True
            self._journal.error("AUDIT sink error", sink=JSON_LOG, err=str(problem))

    def works(self) -> None:
        if self._down:
            self._down = False
            self._journal.info("AUDIT sink works again", sink=JSON_LOG)


class LogKeeper:
    """
    What is done with the JSON log beside writing, in the log's own thread, where nothing is ever written meanwhile.

    :param in_log_thread: runs a function there.
    :param in_thread: another one, for the end, when that thread is gone.
    """

    def __init__(
        self,
        log: CountedLog,
        state: LogState,
        in_log_thread: Callable[[Callable[[], object]], Deferred[object]],
        in_thread: Callable[[Callable[[], object]], Deferred[object]],
    ) -> None:
        self._log = log
        self._state = state
        self._in_log_thread = in_log_thread
        self._in_thread = in_thread

    async def sync(self) -> None:
        """What was written is on the disk."""
        await self._guarded(self._in_log_thread, self._log.sync)

    def reopen(self) -> None:
        """The next record opens the file anew."""
        Deferred.fromCoroutine(self._guarded(self._in_log_thread, self._log.reopen))

    async def finish(self) -> None:
        """The last :meth:`sync`, after the store and its thread have ended."""
        await self._guarded(self._in_thread, self._log.sync)

    async def _guarded(
        self, run: Callable[[Callable[[], object]], Deferred[object]], work: Callable[[], object]
    ) -> None:
        try:
            await run(work)
        except SinkError as problem:
            self._state.failed(problem)


# -- the network sinks ------------------------------------------------------------------------------------------------
class CountedSink:
    """What happens to the records of one network sink, as metrics."""

    def __init__(self, sink: str, metrics: Metrics) -> None:
        self._emitted = metrics.audit.labels(sink, "emitted")
        self._failed = metrics.audit.labels(sink, "failed")
        self._parked = metrics.audit_parked.labels(sink)

    def emitted(self, count: int) -> None:
        self._emitted.inc(count)

    def failed(self) -> None:
        self._failed.inc()

    def parked(self, count: int) -> None:
        self._parked.inc(count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What the sinks are built with."""

    settings: Settings
    reactor: Any
    metrics: Metrics
    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    wall_ns: Callable[[], int]
    in_thread: Callable[[Callable[[], Any]], Deferred[Any]]


# Where a sink's URL stands.
URL_SETTINGS = {
    "syslog": "IDENTREE_AUDIT_SYSLOG_URL",
    "splunk_hec": "IDENTREE_AUDIT_SPLUNK_HEC_URL",
    "loki": "IDENTREE_AUDIT_LOKI_URL",
}


def build_shipper(name: str, around: Around, instance: str) -> Shipper:
    """:raise ValueError: the setting of the URL is of no use; the text says why."""
    builders = {"syslog": _syslog, "splunk_hec": _splunk, "loki": _loki}
    try:
        return builders[name](around, instance)
    except ValueError as problem:
        raise ValueError(f"{URL_SETTINGS[name]} {problem}") from None


def _syslog(around: Around, instance: str) -> Shipper:
    settings, reactor = around.settings, around.reactor
    receiver = parse_url(settings.audit_syslog_url)
    form, hostname = FORMATS[settings.audit_syslog_format], socket.gethostname()
    if receiver.transport == "udp":
        return SyslogUDP(
            receiver.host,
            receiver.port,
            hostname=hostname,
            form=form,
            max_bytes=settings.audit_syslog_max_udp_bytes,
            udp=reactor,
            resolve=first_address(reactor.nameResolver),
            clock=reactor,
            monotonic=around.monotonic,
        )
    tls = receiver.transport == "tls"
    files = TrustFiles(
        ca=settings.audit_syslog_ca_file,
        certificate=settings.audit_syslog_cert_file,
        key=settings.audit_syslog_key_file,
        settings="IDENTREE_AUDIT_SYSLOG",
    )
    framing = settings.audit_syslog_framing or ("octet-counting" if tls else "newline")
    return SyslogTCP(
        lambda: HostnameEndpoint(reactor, receiver.host, receiver.port, timeout=5),
        reactor,
        around.monotonic,
        receiver=receiver,
        hostname=hostname,
        form=form,
        octet_counting=framing == "octet-counting",
        trust=ClientTrust(files, around.in_thread) if tls else None,
    )


def _splunk(around: Around, instance: str) -> Shipper:
    settings, reactor = around.settings, around.reactor
    files = TrustFiles(
        ca=settings.audit_splunk_ca_file,
        certificate=settings.audit_splunk_cert_file,
        key=settings.audit_splunk_key_file,
        settings="IDENTREE_AUDIT_SPLUNK",
    )
    trust = _trust(settings.audit_splunk_hec_url, files, around)
    return SplunkHEC(
        settings.audit_splunk_hec_url,
        settings.audit_splunk_token,
        agent=Connections(reactor, trust),
        trust=trust,
        channel=str(uuid5(NAMESPACE_URL, f"identree:{instance}")),
        form=FORMATS[settings.audit_splunk_format],
        gzip=settings.audit_splunk_gzip,
        clock=reactor,
        monotonic=around.monotonic,
    )


def _loki(around: Around, instance: str) -> Shipper:
    settings, reactor = around.settings, around.reactor
    files = TrustFiles(
        ca=settings.audit_loki_ca_file,
        certificate=settings.audit_loki_cert_file,
        key=settings.audit_loki_key_file,
        settings="IDENTREE_AUDIT_LOKI",
    )
    trust = _trust(settings.audit_loki_url, files, around)
    return Loki(
        settings.audit_loki_url,
        settings.audit_loki_token,
        tenant=settings.audit_loki_tenant,
        agent=Connections(reactor, trust),
        trust=trust,
        form=FORMATS[settings.audit_loki_format],
        gzip=settings.audit_loki_gzip,
        clock=reactor,
        now_ns=around.wall_ns,
    )


def _trust(url: str, files: TrustFiles, around: Around) -> ClientTrust | None:
    """Whom an https URL trusts; None: there is nothing to check."""
    return ClientTrust(files, around.in_thread) if url.lower().startswith("https:") else None


class Sinks(MultiService):
    """
    The network sinks of this process's chain; and of chains whose writers are gone, while this one looks after them.

    :param adopts: whether other processes write chains into the same database.
    :raise ValueError: a sink's setting is of no use.
    """

    _log = Logger(namespace="identree")

    def __init__(self, around: Around, store: SqlStore, *, adopts: bool) -> None:
        super().__init__()
        self.setName("audit sinks")
        self._around = around
        self._store = store
        self._names = network_sinks(around.settings)
        for name in self._names:
            # they open nothing; a mistake in the settings shows at start, not when the store is open
            build_shipper(name, around, "")
        self._counted = {name: CountedSink(name, around.metrics) for name in self._names}
        self._own: dict[str, Follower] = {}
        self._adopted: dict[str, list[Follower]] = {}
        self._look = LoopingCall(self._look_around)
        self._look.clock = around.reactor
        self._adopts = adopts
        self._others: list[Callable[[Feed], Follower]] = []

    def followed_too(self, make: Callable[[Feed], Follower]) -> None:
        """
        A follower that its own service starts for this process's chain takes part in the chains of others. To be said
        before the start.
        """
        self._others.append(make)

    def startService(self) -> None:
        """After the store, whose chain has its name then."""
        if not self._own:
            for name in self._names:
                self._own[name] = self._follow(name, self._store.outbox)
                self._store.outbox.when_set_back(self._own[name].set_back)
        super().startService()
        if self._adopts and (self._names or self._others):
            self._look.start(ALIVE_SECONDS).addErrback(
                lambda failure: self._log.failure("nobody looks after other chains any more", failure)
            )

    def stopService(self) -> Deferred[object]:
        if self._look.running:
            self._look.stop()
        stopped: Deferred[object] = super().stopService()
        return stopped

    def measure(self) -> None:
        """Bring the gauges up to date: a scrape asks."""
        metrics = self._around.metrics
        for name, follower in self._own.items():
            lag = follower.lag
            metrics.audit_lag_records.labels(name).set(lag.records)
            metrics.audit_lag_seconds.labels(name).set(lag.seconds)
            metrics.audit_last_success.labels(name).set(lag.last_success)

    @property
    def lagging(self) -> list[str]:
        """Sinks whose last attempt failed."""
        return [name for name, follower in self._own.items() if follower.down]

    def _follow(self, name: str, feed: Feed) -> Follower:
        around = self._around
        follower = Follower(
            feed,
            build_shipper(name, around, self._store.instance),
            self._counted[name],
            around.reactor,
            now=around.now,
            monotonic=around.monotonic,
            batch=in_hand(around.settings),
        )
        follower.setServiceParent(self)
        return follower

    # -- chains of others ---------------------------------------------------------------------------------------------
    def _look_around(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._look_after_others())

    async def _look_after_others(self) -> None:
        # the database may be away, and a bug here must not end what comes again in half a minute
        try:
            with suppress(StorageUnavailable):
                await self._adopt()
        except Exception:
            self._log.failure("the chains of other replicas could not be looked after")

    async def _adopt(self) -> None:
        ours = await self._store.adopt(self._around.now())
        for instance in [name for name in self._adopted if name not in ours]:
            await self._leave(instance)
        for instance in ours:
            followers = self._adopted.get(instance)
            if followers is None:
                feed = await self._store.orphan(instance)
                self._log.warn(
                    "audit: replica {instance} is gone; its last events are sent on from here", instance=instance
                )
                followers = [self._follow(name, feed) for name in self._names]
                for make in self._others:
                    followers.append(make(feed))
                    followers[-1].setServiceParent(self)
                self._adopted[instance] = followers
            elif all(follower.finished for follower in followers):
                await self._leave(instance)
                await self._store.disown(instance)

    async def _leave(self, instance: str) -> None:
        for follower in self._adopted.pop(instance):
            await maybeDeferred(follower.disownServiceParent)


class CheckpointSigner(Service):
    """
    Signs where the chain stands: at start, now and then, and at the end. Without a key that can be used nothing is
    signed, which is said once; everything else goes on.
    """

    _log = Logger(namespace="identree")

    def __init__(
        self,
        store: SqlStore,
        settings: Settings,
        metrics: Metrics,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
    ) -> None:
        self._monotonic = monotonic
        self._interval = settings.audit_checkpoint_interval.total_seconds()
        # when the next one is due; a new chain has nothing to vouch for at first
        self._due = monotonic()
        self._store = store
        self._paths = settings.audit_signing_key, settings.audit_verify_key
        self._metrics = metrics
        self._now = now
        self._in_thread = in_thread
        self._checkpoints: Checkpoints | None = None
        self._problem = ""

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._last())

    async def _last(self) -> None:
        try:
            await self.sign()
        except Exception:
            self._log.failure("the last checkpoint could not be signed")

    async def look(self) -> None:
        """To be called every :data:`CHECKPOINT_LOOK_SECONDS`: the first records of a chain are vouched for soon."""
        if self._monotonic() >= self._due:
            await self.sign()

    async def sign(self) -> None:
        """A checkpoint, if there is something new to vouch for. What the database refuses comes with the next one."""
        if self._checkpoints is None:
            try:
                key = await self._in_thread(lambda: SigningKey.load_or_create(*self._paths))
            except (ValueError, OSError) as problem:
                if str(problem) != self._problem:
                    self._problem = str(problem)
                    self._log.error("audit: no checkpoints are signed: {problem}", problem=self._problem)
                return
            self._checkpoints = Checkpoints(self._store, self._store.outbox, key, self._now)
        try:
            signed = await self._checkpoints.sign()
        except StorageUnavailable as problem:
            self._log.warn("audit: a checkpoint could not be recorded: {problem}", problem=str(problem))
        else:
            if signed is not None:
                self._due = self._monotonic() + self._interval
                self._metrics.audit_checkpoint.set(signed.timestamp())


def announce(settings: Settings, journal: Journal) -> None:
    """The lines that say which sinks there are."""
    if settings.audit_log:
        journal.info(
            "AUDIT sink: jsonlog",
            dest=settings.audit_log,
            max_size=settings.audit_log_max_size,
            max_files=settings.audit_log_max_files,
        )
    for name, url in (
        ("syslog", settings.audit_syslog_url),
        ("splunk_hec", settings.audit_splunk_hec_url),
        ("loki", settings.audit_loki_url),
    ):
        if url:
            journal.info(f"AUDIT sink: {name}", url=shown(url))
    if sink_names(settings):
        journal.info("AUDIT streaming enabled", sinks=list(sink_names(settings)))


def shown(url: str) -> str:
    """The URL as it may be logged: without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
