"""
The composition root: builds everything, knows everybody, and is the only place that names the reactor, the clocks and
the sources of randomness.
"""

from __future__ import annotations

import gc
import os
import resource
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver, Logger, globalLogBeginner
from twisted.python import usage
from twisted.python.failure import Failure

from identree import __version__
from identree.app.challenges import Challenges
from identree.app.decisions import Decisions
from identree.app.development import Development
from identree.app.health import LOOK_SECONDS, Check, Health, OneAtATime, Unwell, audit_check
from identree.app.hosts import Hosts
from identree.app.idtokens import IdTokens
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.onetap import OneTapLinks
from identree.app.people import SESSION_LIFE, People
from identree.app.policies import PolicyBook
from identree.app.registry import Enrolments, LiveRegistry, RegistryFile
from identree.app.rules import ClientDefaults, Rules
from identree.app.statefiles import BadStateFile
from identree.app.trail import Trail
from identree.app.waiters import Waiters
from identree.auditparts import (
    CHECKPOINT_LOOK_SECONDS,
    Around,
    CheckpointSigner,
    LogKeeper,
    LogState,
    Sinks,
    announce,
    network_sinks,
    open_log,
    recent_events,
    sink_names,
)
from identree.clients.http import build_http_client
from identree.clients.oidc import OIDCProvider
from identree.clients.vault import RENEW_LOOK_SECONDS
from identree.core import tokens
from identree.core.errors import SchemaTooNew, StorageUnavailable
from identree.core.limits import FailureThrottle, SlidingWindow
from identree.core.verdict import Approver
from identree.demo.pocketid import DemoPocketID, fill
from identree.demo.provider import USERS, DemoProvider
from identree.demo.run import DemoOptions, demo_settings, refuse_non_loopback, write_host_config
from identree.directoryparts import (
    DEMOTE_AGAIN_SECONDS,
    FOLLOW_TRUST_SECONDS,
    MEASURE_SECONDS,
    RECHECK_SECONDS,
    Surroundings,
    Trust,
    build_directory,
    build_provisioning,
    build_trust,
)
from identree.hostparts import KEEP_SECONDS, build_deploys, build_downloads, build_hosts
from identree.ldap.tls import ServerTLS, peer_name
from identree.listening import listener, remedy, web_tls
from identree.noticeparts import FOLLOWER, build_notices, resolver
from identree.serverlog import keep_standard_streams, observer
from identree.settings.load import SettingsError, load, no_files
from identree.settings.values import Settings
from identree.sinks.jsonl import SinkError
from identree.storage.opening import SQLITE_NAMES, open_store
from identree.storage.operations import Retention
from identree.storage.store import SqlStore
from identree.web.directory import ADMIN_PAGES
from identree.web.fleet import HOSTS_PAGE
from identree.web.notifications import NOTIFICATIONS_PAGE
from identree.web.operations import waiting_for_threads
from identree.web.policies import POLICIES_PAGE
from identree.web.reading import Credentials
from identree.web.render import Renderer
from identree.web.root import build_site

T = TypeVar("T")

SWEEP_SECONDS = 10.0
STATE_FILE_SECONDS = 5.0
LAG_SECONDS = 0.25
# How often the audit log is flushed to the disk, where the settings want that apart from writing.
SYNC_SECONDS = 1.0
# How often it is told how many records were left out of a burst of failures.
TRAIL_SECONDS = 60.0
# A sweep takes at most this many bounded batches, then lets others work.
SWEEP_BATCHES = 20
THREADS = 10
# Full garbage collections are made this often, by nothing else, and so that they take this share of the time at most.
COLLECT_SECONDS = 600.0
COLLECT_SHARE = 1e-4
DISK_PROBE_BYTES = 4096
# Open files beside held requests and streams: pages, the database, the log.
SPARE_FILES = 4096


class Options(usage.Options):
    """``twistd identree`` takes no options: settings have sources of their own."""

    synopsis = "[no options; see identree check-config]"
    longdesc = "identree: sudo approved in a browser, accounts from an OIDC directory."

    def postOptions(self) -> None:
        """A bad setting is a usage error before the reactor runs, not a traceback after."""
        keep_standard_streams()
        try:
            self["settings"] = load(os.environ)
        except SettingsError as mistakes:
            raise usage.UsageError(str(mistakes)) from mistakes
        self._log_to_stderr(self["settings"])

    def _log_to_stderr(self, settings: Settings) -> None:
        """Our lines go to standard error (standard output is the audit log's), unless the operator chose otherwise."""
        runner: Any = self.parent
        if runner is None:
            return
        chosen = any(runner.get(name) for name in ("logfile", "syslog", "logger"))
        if "logger" in runner and not chosen:
            # twistd looks this name up once our options are read
            runner["logger"] = f"{__name__}.{log_observer.__name__}"
        elif "fileLogObserverFactory" in runner and runner.get("logFile") is sys.stdout:
            ours = partial(observer, settings.log_level, as_json=settings.log_format == "json")
            runner["logFile"] = sys.stderr
            runner["fileLogObserverFactory"] = lambda out: ours(out=out)


def log_observer() -> ILogObserver:
    """What ``twistd`` logs through; it wants a name and calls without arguments."""
    settings = load(os.environ)
    return observer(settings.log_level, as_json=settings.log_format == "json")


def makeService(options: Options) -> IService:
    """What ``twistd`` and ``twist`` run."""
    from twisted.internet import reactor

    try:
        steady_timers(reactor)
        root = build(options["settings"], reactor)
    except SinkError as problem:
        raise SystemExit(f"identree: IDENTREE_AUDIT_LOG: {problem.strerror}") from problem
    except (BadStateFile, ValueError) as problem:
        # too late for a usage error: twistd shows those of its options only, all others with a traceback
        raise SystemExit(f"identree: {problem}") from problem
    answer_hangup(reactor, terminal=os.isatty(0), reopen=root.reopen)
    root.started.addCallback(lambda _: settle_memory())
    Keeper("garbage", COLLECT_SECONDS, Collector(time.monotonic), reactor).setServiceParent(root)
    return root


def settle_memory() -> None:
    """
    What is there when the server is ready stays, and the garbage collector need not look at it again.

    Every few thousand requests a full collection would hold the reactor for 30 to 50 ms, with 10,000 waiting hosts for
    hundreds, and find nothing: requests go with their references, and their few cycles die young. So full collections
    are left to a timer.
    """
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 1_000_000)


class Collector:
    """Full garbage collections, the rarer the longer the last one has held the reactor."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._not_before = monotonic()

    async def __call__(self) -> None:
        start = self._monotonic()
        if start >= self._not_before:
            gc.collect()
            self._not_before = start + (self._monotonic() - start) / COLLECT_SHARE


def steady_timers(reactor: Any, monotonic: Callable[[], float] = time.monotonic) -> None:
    """
    Let the reactor's timers follow the monotonic clock. By default they follow the wall clock: set back by an hour, it
    would hold every refusal, time-out and sweep for that hour; set forward, it would end every held request at once.

    Only before anything is timed: what waits for an instant of the one clock would never come on the other.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = monotonic


def answer_hangup(reactor: Any, *, terminal: bool, reopen: Callable[[], None]) -> None:
    """
    A SIGHUP, which log rotation and reload commands send, must not end the server in the middle of a request, as it
    would by default. Where a terminal is, it means that the terminal has gone: then the server stops in order.
    What ignores the signal already (``nohup``) goes on ignoring it.

    :param reopen: opens the audit log anew, for who rotates it.
    """
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        return

    def say() -> None:
        Logger(namespace="identree").info(
            "SIGHUP: the audit log is opened anew; registry and policies are followed anyway; for the rest restart"
        )
        reopen()

    work = reactor.stop if terminal else say
    signal.signal(signal.SIGHUP, lambda number, frame: reactor.callFromThread(work))


class Keeper(Service):
    """
    Does something every ``seconds``, for as long as it runs; a failure is logged and does not end it.

    :param work: started only when the one before is over.
    :param at_once: the first time when the service starts, not ``seconds`` later.
    """

    _log = Logger()

    def __init__(
        self, name: str, seconds: float, work: Callable[[], Awaitable[object]], clock: Any, *, at_once: bool = False
    ) -> None:
        self.setName(name)
        self._at_once = at_once
        self._seconds = seconds
        self._work = work
        self._loop = LoopingCall(self._tick)
        self._loop.clock = clock
        self._running: Deferred[object] | None = None
        self._said = ""

    def startService(self) -> None:
        super().startService()
        self._loop.start(self._seconds, now=self._at_once).addErrback(
            lambda failure: self._log.failure("{name} ended", failure, name=self.name)
        )

    def stopService(self) -> Deferred[object] | None:
        super().stopService()
        if self._loop.running:
            self._loop.stop()
        return self._running

    def _tick(self) -> Deferred[object]:
        work = Deferred.fromCoroutine(_awaited(self._work()))
        over: Deferred[object] = Deferred()
        self._running = over

        def done(result: object) -> None:
            said = ""
            if isinstance(result, Failure):
                if result.check(StorageUnavailable):
                    # while a disk is full or the database is away every round ends so: it is said once, and is no bug
                    said = result.getErrorMessage()
                    if said != self._said:
                        self._log.warn("{name}: this round failed: {why}", name=self.name, why=said)
                else:
                    self._log.failure("{name}: this round failed", result, name=self.name)
            self._said = said
            self._running = None
            over.callback(None)

        work.addBoth(done)
        return over


class Lag(Service):
    """Measures how late the reactor runs a timer: what no request may make long."""

    def __init__(self, metrics: Metrics, clock: Any, monotonic: Callable[[], float]) -> None:
        self._metrics = metrics
        self._monotonic = monotonic
        self._expected = 0.0
        self._loop = LoopingCall(self._tick)
        self._loop.clock = clock

    def startService(self) -> None:
        super().startService()
        self._expected = self._monotonic() + LAG_SECONDS
        self._loop.start(LAG_SECONDS, now=False)

    def stopService(self) -> None:
        super().stopService()
        if self._loop.running:
            self._loop.stop()

    def _tick(self) -> None:
        now = self._monotonic()
        self._metrics.reactor_lag.observe(max(0.0, now - self._expected))
        self._expected = now + LAG_SECONDS


class Identree(MultiService):
    """
    The whole server. Starting opens the store first and listens last; a store that cannot be opened stops the process
    with a message that says what to do.

    :param listeners: services that accept connections, started when everything behind them is ready.
    :param prepare: what must be known before anything runs; its ``ValueError`` stops the process.
    :param drain: ends what is under way before the listeners' connections are dropped.
    :param reopen: opens the audit log anew.
    :param finish: after everything else, the store too, has ended.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        store: SqlStore,
        reactor: Any,
        listeners: MultiService,
        prepare: Callable[[], Awaitable[None]],
        drain: Callable[[], Awaitable[None]],
        give_up: Callable[[str], None],
        reopen: Callable[[], None] = lambda: None,
        finish: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        super().__init__()
        self.reopen = reopen
        self._finish = finish
        self.store = store
        self._reactor = reactor
        self._listeners = listeners
        self._prepare = prepare
        self._drain = drain
        self._give_up = give_up
        self.started: Deferred[None] = Deferred()
        self._starting: Deferred[None] | None = None
        self._stopping = False

    def startService(self) -> None:
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._failed)

    async def _start(self) -> None:
        await self.store.start()
        await self._prepare()
        super().startService()
        self._listeners.setServiceParent(self)
        self._log.info("identree {version} is ready", version=__version__)
        self.started.callback(None)

    def _failed(self, failure: Failure) -> None:
        if self._stopping and failure.check(CancelledError):
            return  # asked to stop before it was ready, which is no failure
        problem = remedy(failure.value)
        if failure.check(BadStateFile, CannotListenError, SchemaTooNew, StorageUnavailable, ValueError):
            self._log.error("identree cannot start: {problem}", problem=problem)
        else:
            self._log.failure("identree cannot start", failure)
        self._give_up(problem)

    def stopService(self) -> Deferred[object]:
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> object:
        self._stopping = True
        if self._starting is not None and not self._starting.called:
            self._starting.cancel()
        if self.running:
            await self._drain()
            await maybeDeferred(super().stopService)
        await self.store.stop()
        if self._finish is not None:
            await self._finish()
        return None


def build(settings: Settings, reactor: Any, *, give_up: Callable[[str], None] | None = None) -> Identree:
    """
    Put everything together; opens only what shows mistakes in the settings.

    :param give_up: told why the server cannot start; the default ends the process with failure.

    :raise BadStateFile, SinkError, ValueError: a setting points at something unusable.
    """
    log = Logger(namespace="identree")
    for warning in settings.warnings:
        log.warn("config: {warning}", warning=warning)
    _say_what_is_missing(settings, log)
    directory_connections = settings.ldap_max_connections if settings.ldap_enabled else 0
    _allow_connections(settings.max_waiters + settings.max_streams + directory_connections + SPARE_FILES, log)
    journal = Journal()
    metrics = Metrics(CollectorRegistry(), __version__, sink_names(settings))
    monotonic = time.monotonic
    reactor.suggestThreadPoolSize(THREADS)

    def now() -> datetime:
        return datetime.now(UTC)

    def in_thread(function: Callable[[], T]) -> Deferred[T]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), function)

    keys = tokens.Keys.from_secrets(
        shared=settings.shared_secret, session=settings.session_secret, hmac=settings.hmac_secret
    )
    rules = rules_of(settings)

    audit_log, log_state = open_log(settings, metrics), LogState(journal, metrics)
    announce(settings, journal)
    store = open_store(
        reactor,
        driver=settings.database_driver,
        dsn=settings.database_dsn,
        version=__version__,
        instance=_instance(settings),
        log=audit_log,
        sinks=(*network_sinks(settings), FOLLOWER),
        recent_events=recent_events(settings),
        max_open_conns=settings.database_max_open_conns,
        readers=settings.read_connections,
        retention=Retention(
            browser_sessions=settings.session_max_age + SESSION_LIFE,
            events=settings.audit_retention,
            most_events=settings.audit_retention_rows,
            deliveries=settings.notify_retention,
        ),
        genuine=partial(tokens.grace_valid, keys.grace),
        on_log_failure=log_state.failed,
        on_log_recovery=log_state.works,
        on_lost=partial(_events_lost, log, metrics),
        monotonic=monotonic,
        wall=lambda: now().timestamp(),
        observe=metrics.database_answered,
    )

    policies = PolicyBook(
        store=store,
        source=settings.policy_source,
        path=settings.approval_policies_file,
        now=now,
        in_thread=in_thread,
        journal=journal,
        group=lambda hostname: hosts.group(hostname),
        roster=lambda groups: directory.roster.approvers(groups) if directory is not None else (),
        trouble=lambda bad: metrics.policies_bad.set(int(bad)),
    )
    store.subscribe(policies.heard)

    log_keeper = LogKeeper(audit_log, log_state, store.log_thread, in_thread) if audit_log else None
    sinks = Sinks(
        Around(
            settings=settings,
            reactor=reactor,
            metrics=metrics,
            now=now,
            monotonic=monotonic,
            wall_ns=time.time_ns,
            in_thread=in_thread,
        ),
        store,
        adopts=settings.database_driver.strip().lower() not in SQLITE_NAMES,
    )

    async def registry_changed() -> None:
        metrics.registered_hosts.set(len(registry.stored))
        if directory is not None:
            directory.registry_changed()
        if trust.authority is not None:
            # a removed host's certificate is nobody's concern any more
            await trust.certificates.measure()

    registry = LiveRegistry(
        store=store,
        mode=settings.host_registry,
        file=RegistryFile(settings.host_registry_file),
        clock=reactor,
        in_thread=in_thread,
        changed=registry_changed,
    )
    trail = Trail(store=store, now=now, monotonic=monotonic)
    throttle = FailureThrottle()
    hosts = Hosts(
        shared_secret=settings.shared_secret.encode(),
        registry=registry,
        throttle=throttle,
        monotonic=monotonic,
        journal=journal,
        metrics=metrics,
        certificate_required=settings.mtls_enabled,
        trail=trail,
    )
    id_tokens = IdTokens(keys.id_tokens, secrets.token_bytes)

    def disabled(username: str) -> bool:
        return directory is not None and directory.roster.disabled(username)

    def roster() -> Sequence[Approver]:
        return directory.roster.approvers(policies().approver_groups) if directory is not None else ()

    def directory_groups(username: str) -> frozenset[str] | None:
        return directory.roster.groups_of(username) if directory is not None else None

    # what goes with a challenge says whether anybody is told of it
    def present_rules() -> Rules:
        return replace(rules, notification_routes=bool(notices.desk.configuration.routes))

    waiters = Waiters(reactor, rules.max_waiters)
    store.subscribe(waiters.heard)
    challenges = Challenges(
        store=store,
        hosts=hosts,
        waiters=waiters,
        keys=keys,
        rules=present_rules,
        policies=policies,
        now=now,
        token=secrets.token_hex,
        below=secrets.randbelow,
        journal=journal,
        metrics=metrics,
        id_tokens=id_tokens,
        disabled=disabled,
    )
    decisions = Decisions(
        store=store,
        hosts=hosts,
        keys=keys,
        rules=lambda: rules,
        policies=policies,
        now=now,
        journal=journal,
        metrics=metrics,
        trail=trail,
        disabled=disabled,
        roster=roster,
    )
    provider = OIDCProvider(
        http=build_http_client(reactor, settings.oidc_insecure_skip_verify),
        clock=reactor,
        now=now,
        issuer_url=settings.oidc_issuer_url,
        public_url=settings.oidc_issuer_public_url,
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret,
        redirect_uri=f"{settings.external_url}/callback",
        leeway=settings.oidc_clock_leeway,
        observe_exchange=metrics.exchange.observe,
        monotonic=monotonic,
    )
    notices = build_notices(
        settings=settings,
        reactor=reactor,
        store=store,
        metrics=metrics,
        journal=journal,
        keys=keys,
        policies=policies,
        group=hosts.group,
        roster=lambda groups: directory.roster.approvers(groups) if directory is not None else (),
        now=now,
        monotonic=monotonic,
        in_thread=in_thread,
        resolve=resolver(reactor),
        owner=secrets.token_hex(8),
    )
    people = People(
        store=store,
        provider=provider,
        keys=keys,
        rules=lambda: rules,
        now=now,
        monotonic=monotonic,
        token=secrets.token_hex,
        pkce=partial(secrets.token_urlsafe, 48),
        login_limit=SlidingWindow(10, 60),
        callback_limit=SlidingWindow(10, 60),
        form_limit=SlidingWindow(30, 60),
        journal=journal,
        metrics=metrics,
        trail=trail,
        id_tokens=id_tokens,
        directory_groups=directory_groups,
    )
    around = Surroundings(
        settings=settings,
        reactor=reactor,
        store=store,
        registry=registry,
        metrics=metrics,
        journal=journal,
        now=now,
        monotonic=monotonic,
        in_thread=in_thread,
        trail=trail,
    )
    trust = build_trust(around)
    https = web_tls(settings, trust.authority, in_thread=in_thread, now=now, monotonic=monotonic)
    directory = build_directory(around, trust) if settings.ldap_enabled else None
    disk_thread = OneAtATime(in_thread)
    checks = [
        Check(
            name="disk",
            probe=lambda: _disk(store, settings.audit_log, settings.session_state_file, disk_thread),
            failure="not_writable",
            critical=True,
            fresh_seconds=10,
        ),
        *(directory.checks if directory else ()),
        *(
            [
                Check(
                    name="oidc",
                    probe=lambda: _oidc(provider),
                    failure="unreachable",
                    critical=False,
                    fresh_seconds=30,
                )
            ]
            if settings.oidc_issuer_url
            else []
        ),
        Check(name="database", probe=lambda: _database(store), failure="error", critical=True, fresh_seconds=0),
        *(
            # informational: there is no value that it fails with
            [
                Check(
                    name="mtls_certs",
                    probe=trust.certificates.health,
                    failure="unknown",
                    critical=False,
                    fresh_seconds=0,
                )
            ]
            if trust.authority
            else []
        ),
        *([audit_check(lambda: sinks.lagging)] if network_sinks(settings) else ()),
    ]
    credentials = Credentials()
    if trust.authority is not None and https is not None:
        credentials = Credentials(peer_name, hosts.certified, https.spoiled)
    fleet = build_hosts(
        around,
        hosts=hosts,
        registry=registry,
        keys=keys,
        rules=lambda: rules,
        disabled=disabled,
        policies=policies,
    )
    downloads = build_downloads(around)
    deploys = build_deploys(
        around,
        fleet=fleet,
        downloads=downloads,
        registry=registry,
        key_holders=directory.key_holders if directory else list,
    )
    admin_pages = (
        HOSTS_PAGE,
        POLICIES_PAGE,
        NOTIFICATIONS_PAGE,
        *(ADMIN_PAGES if settings.ldap_enabled else ()),
    )
    renderer = Renderer(rules=lambda: rules, now=now, admin_pages=admin_pages)
    metrics.audit_buffer_limit.set(settings.audit_buffer_size)
    health = Health(checks, reactor, monotonic, metrics.health_checked)

    def measure() -> None:
        outstanding, limit = store.outstanding
        metrics.database_outstanding.set(outstanding)
        metrics.database_outstanding_limit.set(limit)
        metrics.threads_waiting.set(waiting_for_threads(reactor.getThreadPool()))
        for name, tls in (("https", https), ("ldaps", trust.ldap_tls)):
            if tls is not None:
                metrics.certificate_ends(name, (tls.ends_at - now()).total_seconds())

    front = build_site(
        reactor=reactor,
        settings=settings,
        challenges=challenges,
        decisions=decisions,
        hosts=hosts,
        people=people,
        store=store,
        waiters=waiters,
        health=health,
        metrics=metrics,
        renderer=renderer,
        rules=lambda: rules,
        now=now,
        monotonic=monotonic,
        development=(Development(store=store, keys=keys, rules=lambda: rules, now=now) if settings.dev_login else None),
        journal=journal,
        credentials=credentials,
        provisioning=build_provisioning(around, trust, hosts, throttle),
        enrolments=Enrolments(
            store=store,
            registry=registry,
            hosts=hosts,
            throttle=throttle,
            now=now,
            monotonic=monotonic,
            token=secrets.token_hex,
            journal=journal,
            metrics=metrics,
        ),
        downloads=downloads,
        deploys=deploys,
        fleet=fleet.desk,
        directory=directory.desk if directory else None,
        one_taps=OneTapLinks(
            store=store, decisions=decisions, keys=keys, now=now, max_age=lambda: settings.one_tap_max_age
        ),
        policies=policies,
        notices=notices.desk,
        channels=lambda: tuple(channel.name for channel in notices.desk.configuration.channels),
        host_groups=lambda: tuple(sorted({entry.group for entry in registry.stored.entries if entry.group})) or None,
        refresh_wanted=directory.notify if directory else lambda: None,
        measure=(measure, sinks.measure),
        in_thread=in_thread,
        trail=trail,
    )

    listeners = MultiService()
    listener(settings, front.site, reactor, https).setServiceParent(listeners)
    if directory is not None:
        directory.listeners.setServiceParent(listeners)

    async def drain() -> None:
        """Streams first, then held requests, then up to the time-out for what is still running."""
        await maybeDeferred(deploys.deploys.disownServiceParent)
        front.close_streams()
        waiters.close()
        until = monotonic() + settings.shutdown_timeout.total_seconds()
        while front.busy() and monotonic() < until:
            await deferLater(reactor, 0.05, lambda: None)
        await fleet.break_glass.stop()
        await maybeDeferred(notices.close)
        await trail.summarise(timedelta(0))

    def exit_with_failure(problem: str) -> None:
        # the log has the problem; twistd reports success unless the process ends otherwise
        reactor.addSystemEventTrigger("after", "shutdown", lambda: os._exit(1))
        reactor.callLater(0, reactor.stop)

    async def prepare() -> None:
        await policies.load()
        await registry.load()
        await trust.check()
        await health.prime()

    root = Identree(
        store=store,
        reactor=reactor,
        listeners=listeners,
        prepare=prepare,
        drain=drain,
        give_up=give_up or exit_with_failure,
        reopen=log_keeper.reopen if log_keeper else lambda: None,
        finish=log_keeper.finish if log_keeper else None,
    )
    if log_keeper is not None and settings.audit_log_fsync == "interval":
        Keeper("audit log", SYNC_SECONDS, log_keeper.sync, reactor).setServiceParent(root)
    if directory is not None:
        directory.settler.setServiceParent(root)
        directory.filler.setServiceParent(root)
        Keeper("former administrators", DEMOTE_AGAIN_SECONDS, directory.demotions.again, reactor).setServiceParent(root)
        Keeper("people who left", DEMOTE_AGAIN_SECONDS, directory.departures.look, reactor).setServiceParent(root)
    sinks.followed_too(notices.follow)
    sinks.setServiceParent(root)
    notices.services.setServiceParent(root)
    registry.setServiceParent(root)
    deploys.deploys.setServiceParent(root)
    if settings.oidc_issuer_url:
        provider.setServiceParent(root)
    if fleet.backend is not None:
        Keeper("escrow", KEEP_SECONDS, fleet.keep, reactor).setServiceParent(root)
    Lag(metrics, reactor, monotonic).setServiceParent(root)
    Keeper("health", LOOK_SECONDS, health.look, reactor).setServiceParent(root)
    if sink_names(settings):
        signer = CheckpointSigner(store, settings, metrics, now, monotonic, in_thread)
        signer.setServiceParent(root)
        Keeper("checkpoints", CHECKPOINT_LOOK_SECONDS, signer.look, reactor, at_once=True).setServiceParent(root)
    Keeper("audit trail", TRAIL_SECONDS, trail.summarise, reactor).setServiceParent(root)
    Keeper("sweep", SWEEP_SECONDS, partial(_sweep, challenges, store, now), reactor).setServiceParent(root)

    async def follow_files() -> None:
        await policies.refresh()
        await notices.desk.refresh()
        await notices.measure()

    Keeper("state files", STATE_FILE_SECONDS, follow_files, reactor).setServiceParent(root)
    _keep_trust(trust, https, reactor, root)
    if directory is not None and trust.ldap_tls is not None:
        factory = directory.listeners.factory

        async def recheck() -> None:
            factory.certificates_changed()

        Keeper("client certificates", RECHECK_SECONDS, recheck, reactor).setServiceParent(root)
    return root


def _keep_trust(trust: Trust, https: ServerTLS | None, reactor: Any, root: MultiService) -> None:
    """Certificates, keys and revocation lists are followed; what nears its end is measured and said."""

    async def follow() -> None:
        if trust.authority is not None:
            await trust.authority.refresh()
        for tls in (https, trust.ldap_tls):
            if tls is not None:
                await tls.refresh()

    if https is not None or trust.ldap_tls is not None or trust.authority is not None:
        Keeper("certificate files", FOLLOW_TRUST_SECONDS, follow, reactor).setServiceParent(root)
    if trust.authority is not None:
        Keeper("certificates", MEASURE_SECONDS, trust.certificates.measure, reactor, at_once=True).setServiceParent(
            root
        )
    if trust.vault is not None:
        Keeper("vault token", RENEW_LOOK_SECONDS, trust.vault.renew, reactor).setServiceParent(root)


def run_demo(options: DemoOptions) -> int:
    """
    A server with a built-in identity provider, on loopback, in a directory that is gone afterwards.

    :returns: the exit status.
    """
    from twisted.internet import reactor

    with TemporaryDirectory(prefix="identree-demo-") as name:
        directory = Path(name)
        environment = demo_settings(directory, options.http_port, options.provider_port, options.ldap_port)
        environment["IDENTREE_AGENT_FILE"] = str((options.agent or Path("build/identree.pyz")).resolve())
        environment["IDENTREE_LOG_LEVEL"] = os.environ.get("IDENTREE_LOG_LEVEL") or "warn"
        refuse_non_loopback(environment)
        settings = load(environment, read=no_files)
        globalLogBeginner.beginLoggingTo([observer(settings.log_level, as_json=False)], redirectStandardIO=False)
        any_reactor: Any = reactor
        people = DemoPocketID(api_key=settings.pocketid_api_key, now=lambda: datetime.now(UTC), clock=any_reactor)
        fill(people, USERS)
        provider = DemoProvider(
            any_reactor,
            pocketid=people,
            issuer=settings.oidc_issuer_url,
            client_id=settings.oidc_client_id,
            client_secret=settings.oidc_client_secret,
            redirect_uris=(f"{settings.external_url}/callback",),
            now=lambda: datetime.now(UTC),
        )
        status: list[int] = []

        def failed(problem: str) -> None:
            status.append(1)
            # the demo's settings are its own; what can be chosen is an option
            said = problem.replace("set IDENTREE_LISTEN_ADDR", "choose another with --port")
            print(f"identree demo: {said}", file=sys.stderr)
            if any_reactor.running:
                any_reactor.stop()

        def stop() -> object:
            return root.stopService()

        try:
            provider.listen(options.provider_port)
            root = build(settings, any_reactor, give_up=failed)
        except (CannotListenError, BadStateFile, SinkError, ValueError) as problem:
            failed(f"{problem}. Other ports: identree demo --port 18090 --provider-port 18091 --ldap-port 18389")
            return 1
        client_conf = write_host_config(directory, settings.external_url, settings.shared_secret)
        root.started.addCallback(lambda _: print(_demo_text(settings, client_conf, options.agent), flush=True))
        any_reactor.addSystemEventTrigger("before", "shutdown", stop)
        any_reactor.callWhenRunning(root.startService)
        answer_hangup(any_reactor, terminal=True, reopen=root.reopen)
        any_reactor.run()
        return status[0] if status else 0


def _demo_text(settings: Settings, client_conf: Path, agent: Path | None) -> str:
    url = settings.external_url
    program = shlex.quote(str((agent or Path("build/identree.pyz")).resolve()))
    command = (
        "env PAM_USER=alice PAM_TYPE=auth PAM_SERVICE=sudo PAM_TTY=$(tty) SUDO_COMMAND='systemctl restart nginx' "
        f"IDENTREE_CLIENT_CONF={shlex.quote(str(client_conf))} python3 -ISB {program}"
    )
    return f"""
identree is running, with an identity provider of its own, on this machine only.

  1. In another terminal, be a host on which alice types sudo:

     {command}

  2. Open the address that it shows, click alice (or carol, who is an admin), compare the code, approve.

  3. Ask the directory, as sssd on that host would:

     ldapsearch -x -H ldap://{settings.ldap_listen_addr} -b {settings.ldap_base_dn} uid=alice

  The dashboard is at {url}/. Ctrl-C here ends the demo and leaves nothing behind.
"""


def rules_of(settings: Settings) -> Rules:
    """The settings that the application decides with."""
    return Rules(
        external_url=settings.external_url,
        challenge_ttl=settings.challenge_ttl,
        grace_period=settings.grace_period,
        require_justification=settings.require_justification,
        justification_choices=tuple(settings.justification_choices),
        rotate_before=settings.breakglass_rotate_before,
        admin_groups=tuple(settings.admin_groups),
        session_max_age=settings.session_max_age,
        enforce_ip_binding=settings.oidc_enforce_ip_binding,
        max_pending_per_user=settings.max_pending_per_user,
        max_pending=settings.max_pending,
        max_waiters=settings.max_waiters,
        client=ClientDefaults(
            poll_interval=settings.client_poll_interval,
            timeout=settings.client_timeout,
            breakglass_enabled=settings.client_breakglass_enabled,
            breakglass_password_type=settings.client_breakglass_password_type,
            breakglass_rotation_days=settings.client_breakglass_rotation_days,
            token_cache_enabled=settings.client_token_cache_enabled,
        ),
    )


def _events_lost(log: Logger, metrics: Metrics, sink: str, count: int) -> None:
    metrics.audit.labels(sink, "dropped").inc(count)
    log.error("AUDIT retention cut off {count} events that {sink} had not got", count=count, sink=sink)


def _instance(settings: Settings) -> str:
    """
    The identity of this process's audit chain. Replicas share a database, so each keeps its own in its state directory.
    """
    if settings.database_driver.strip().lower() in SQLITE_NAMES:
        return ""
    path = Path(settings.session_state_file).parent / "identree-instance"
    try:
        known = path.read_text("ascii").strip()
    except FileNotFoundError:
        known = secrets.token_hex(8)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(known + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as problem:
            raise ValueError(f"{path} cannot be written ({problem.strerror}): every replica needs one") from problem
    except (OSError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} cannot be read ({problem}): every replica needs one") from problem
    if len(known) != 16 or not set(known) <= set("0123456789abcdef"):
        raise ValueError(f"{path} must hold 16 hexadecimal digits; remove it to begin a new audit chain")
    return known


def _say_what_is_missing(settings: Settings, log: Logger) -> None:
    """A setting of a feature that this version does not have must not be believed to work."""
    absent = {
        "the history export": settings.api_keys,
    }
    for feature, wanted in absent.items():
        if wanted:
            log.warn("config: this version does not have {feature} yet; it is not started", feature=feature)


def _allow_connections(wanted: int, log: Logger) -> None:
    """Let the process open as many sockets as the settings promise, as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return
    permitted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (permitted, hard))
    if permitted < wanted:
        log.warn(
            "config: the system permits {permitted} open files, the settings need {wanted}; raise LimitNOFILE or lower "
            "IDENTREE_MAX_WAITERS, IDENTREE_MAX_STREAMS and IDENTREE_LDAP_MAX_CONNECTIONS",
            permitted=permitted,
            wanted=wanted,
        )


async def _disk(
    store: SqlStore, audit_log: str, state_file: str, in_thread: Callable[[Callable[[], str]], Awaitable[str]]
) -> str:
    """Whether the audit log and the state directory can be written. :raise Unwell: with the one that cannot."""
    if not store.records:
        raise Unwell(f"the audit log {audit_log} cannot be written")
    problem = await in_thread(partial(_why_not_writable, state_file))
    if problem:
        raise Unwell(problem)
    return "ok"


def _why_not_writable(state_file: str) -> str:
    """Why nothing can be written beside the state file, found by writing; empty when there is room and permission."""
    if not state_file:
        return ""
    path = Path(state_file).parent / f".healthz-{secrets.token_hex(8)}"
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(b"x")
        path.unlink()
    except OSError as problem:
        with suppress(OSError):
            path.unlink()
        return f"the directory {path.parent} cannot be written: {problem.strerror or problem}"
    return ""


async def _oidc(provider: OIDCProvider) -> str:
    return "ok" if await provider.probe() else "unreachable"


async def _database(store: SqlStore) -> str:
    await store.ping()
    return "ok"


async def _sweep(challenges: Challenges, store: SqlStore, now: Callable[[], datetime]) -> None:
    for _ in range(SWEEP_BATCHES):
        if not await challenges.expire_overdue():
            break
    for _ in range(SWEEP_BATCHES):
        if not await store.delete_old(now()):
            break


async def _awaited(work: Awaitable[object]) -> object:
    return await work
