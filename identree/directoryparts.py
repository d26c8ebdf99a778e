"""
The directory's part of the composition root: its source, what is served, the LDAP listeners, certificates, and what
pages and health see of them.
"""

from __future__ import annotations

import gc
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar, cast
from urllib.parse import urlsplit

from cryptography import x509
from twisted.application.service import IService, Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from identree import __version__
from identree.app.authority import Authority, CAFiles, InThread, trusted
from identree.app.binds import Binds
from identree.app.bridge import Bridge
from identree.app.demotions import Demotions
from identree.app.departures import Departures
from identree.app.directory import Directory, Mode
from identree.app.directoryadmin import DirectoryAdmin
from identree.app.health import Check
from identree.app.hosts import Hosts
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.ports import Monotonic, Now, SigningFailed
from identree.app.posixids import GID, UID, PosixIds
from identree.app.provision import Certificates, Provisioning, Terms, bind_secret
from identree.app.publication import Publication
from identree.app.refresh import Refresh
from identree.app.roster import Roster
from identree.app.slices import sliced
from identree.app.sudorules import SudoRules
from identree.app.trail import Trail
from identree.app.uidmapfile import UidMapFile
from identree.clients.http import build_http_client, build_pool
from identree.clients.pocketid import PARALLEL, PocketID
from identree.clients.vault import VaultKey
from identree.core.hosts import EVERYBODY, HostRegistry
from identree.core.limits import FailureThrottle
from identree.directory.accounts import ssh_keys
from identree.directory.ids import Numbers
from identree.directory.layout import Layout
from identree.directory.snapshot import Snapshot, View
from identree.directory.source import Source
from identree.ldap.connection import Common
from identree.ldap.paging import Cursors
from identree.ldap.rootdse import RootDSE
from identree.ldap.search import Searcher
from identree.ldap.server import LdapFactory
from identree.ldap.tally import Tally
from identree.ldap.tls import ServerTLS, peer_name
from identree.ldap.turns import Turns
from identree.listening import ldap_tls, listening, remedy
from identree.settings.values import Settings
from identree.storage.opening import open_store
from identree.storage.store import SqlStore
from identree.web.deploy import KeyHolder
from identree.web.directory import DirectoryDesk

T = TypeVar("T")

# How soon a port that was taken is tried again.
LISTEN_AGAIN_SECONDS = 30.0
SETTLE_SECONDS = 0.1
# The directory's answer to "is PocketID there" is reused for so long.
PROBE_FRESH_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the rest of the server gives to its parts."""

    settings: Settings
    reactor: Any
    store: SqlStore
    registry: Callable[[], HostRegistry]
    metrics: Metrics
    journal: Journal
    now: Now
    monotonic: Monotonic
    in_thread: InThread
    trail: Trail

    @property
    def clock(self) -> IReactorTime:
        clock: IReactorTime = self.reactor
        return clock


# -- certificates -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """
    :ivar authority: None without mTLS.
    :ivar vault: holds the authority's key; None where a file does.
    :ivar ldap_tls: None: there is neither LDAPS nor StartTLS.
    """

    authority: Authority | None
    vault: VaultKey | None
    certificates: Certificates
    ldap_tls: ServerTLS | None

    async def check(self) -> None:
        """
        To be called once the server runs.

        :raise ValueError: the CA's certificate and Vault's key do not belong together.
        """
        if self.vault is None:
            return
        try:
            await self.vault.check()
        except SigningFailed as problem:
            Logger(namespace="identree").error(
                "Vault cannot be asked for the CA's key now, and will be when a host is provisioned: {problem}",
                problem=problem,
            )


def build_trust(around: Surroundings) -> Trust:
    """:raise ValueError: a certificate or key cannot be used; the text names the setting and what to do."""
    settings = around.settings
    vaults: list[VaultKey] = []
    authority: Authority | None = None
    if settings.mtls_enabled:

        def vault(certificate: x509.Certificate) -> VaultKey:
            key = VaultKey(
                http=build_http_client(around.reactor),
                clock=around.reactor,
                monotonic=around.monotonic,
                address=settings.mtls_vault_addr,
                token=settings.mtls_vault_token,
                key_name=settings.mtls_vault_key_name,
                mount=settings.mtls_vault_mount,
                namespace=settings.mtls_vault_namespace,
                certificate=certificate,
            )
            vaults.append(key)
            return key

        in_vault = settings.mtls_kms_backend == "vault-transit"
        authority = Authority(
            CAFiles(
                settings.mtls_ca_cert,
                "" if in_vault else settings.mtls_ca_key,
                now=around.now,
                random_bits=secrets.randbits,
            ),
            vault if in_vault else None,
            lifetime=settings.mtls_cert_ttl,
            now=around.now,
            below=secrets.randbelow,
            random_bits=secrets.randbits,
            in_thread=around.in_thread,
        )
    tls = None
    if settings.ldap_enabled:
        tls = ldap_tls(
            settings,
            authority,
            refused=lambda reason: around.metrics.ldap_refused.labels(reason).inc(),
            in_thread=around.in_thread,
            now=around.now,
            monotonic=around.monotonic,
        )
    return Trust(
        authority=authority,
        vault=vaults[0] if vaults else None,
        certificates=Certificates(
            store=around.store, authority=authority, registry=around.registry, now=around.now, metrics=around.metrics
        ),
        ldap_tls=tls,
    )


def build_provisioning(around: Surroundings, trust: Trust, hosts: Hosts, throttle: FailureThrottle) -> Provisioning:
    """:param throttle: the one that ``hosts`` looks at."""
    settings = around.settings
    ca_cert = trusted(settings.ldap_tls_ca_cert).pem if settings.ldap_tls_ca_cert else ""
    terms = Terms.of(settings, ca_cert)
    return Provisioning(
        terms=lambda: terms,
        hosts=hosts,
        registry=around.registry,
        throttle=throttle,
        authority=trust.authority,
        store=around.store,
        certificates=trust.certificates,
        now=around.now,
        monotonic=around.monotonic,
        journal=around.journal,
        metrics=around.metrics,
    )


# -- what is served ---------------------------------------------------------------------------------------------------
def layout_of(settings: Settings) -> Layout:
    """
    The settings that shape the tree.

    :raise ValueError: the base DN is none.
    """
    layout = Layout(
        base_dn=settings.ldap_base_dn,
        default_shell=settings.ldap_default_shell,
        default_home=settings.ldap_default_home,
        sudo_no_authenticate=cast(Literal["false", "true", "claims"], settings.ldap_sudo_no_authenticate),
        schema=cast(Literal["rfc2307", "rfc2307bis"], settings.ldap_schema),
        nested_groups=settings.ldap_nested_groups,
    )
    try:
        layout.first_rdn()
    except ValueError as problem:
        raise ValueError(
            f"IDENTREE_LDAP_BASE_DN: {settings.ldap_base_dn!r} is no distinguished name ({problem}); for example "
            "IDENTREE_LDAP_BASE_DN=dc=example,dc=com"
        ) from None
    return layout


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryParts:
    """
    :ivar filler: keeps ``directory`` up to date; to be started.
    :ivar pocketid: None in bridge mode.
    :ivar notify: what PocketID's webhook calls.
    :ivar roster: who is who, for policies.
    """

    directory: Directory
    filler: Refresh | Bridge
    listeners: LdapListeners
    pocketid: PocketID | None
    notify: Callable[[], None]
    desk: DirectoryDesk
    demotions: Demotions
    departures: Departures
    settler: MemorySettler
    checks: tuple[Check, ...]
    roster: Roster

    def key_holders(self) -> list[KeyHolder]:
        """Whoever has SSH keys, by name."""
        served = self.directory.served
        holders = [
            KeyHolder(username=user.username, email=user.email, ssh_keys=keys)
            for user in (served.source.users if served is not None else ())
            if not user.disabled and (keys := tuple(key.decode("utf-8", "replace") for key in ssh_keys(user.claims)))
        ]
        return sorted(holders, key=lambda holder: holder.username)

    def registry_changed(self) -> None:
        self.listeners.factory.registry_changed()


def build_directory(around: Surroundings, trust: Trust) -> DirectoryParts:
    """
    Reads what files it must, so that mistakes show before anything runs.

    :raise BadStateFile: the id map or the rules file is there and must not be used.
    :raise ValueError: a setting is wrong.
    """
    settings, clock = around.settings, around.clock
    layout = layout_of(settings)
    mode = Mode.FULL if settings.full_mode else Mode.BRIDGE
    directory = Directory(
        mode,
        around.metrics,
        interval_seconds=settings.ldap_refresh_interval.total_seconds(),
        now=around.now,
        monotonic=around.monotonic,
    )
    publication = Publication(
        around.store, clock, now=around.now, monotonic=around.monotonic, in_thread=around.in_thread
    )
    filler: Refresh | Bridge
    pocketid: PocketID | None = None
    if mode is Mode.FULL:
        pocketid = _pocketid(around, directory)
        file = UidMapFile(
            settings.ldap_uid_map_file,
            uid_base=settings.ldap_uid_base,
            gid_base=settings.ldap_gid_base,
            now_unix=around.now().timestamp(),
            in_thread=around.in_thread,
        )
        refresh = filler = Refresh(
            pocketid,
            around.store,
            PosixIds(around.store, file, clock, around.monotonic),
            publication,
            directory,
            lambda: layout,
            around.metrics,
            interval_seconds=settings.ldap_refresh_interval.total_seconds(),
            max_shrink_percent=settings.ldap_max_shrink,
            clock=clock,
            now=around.now,
            monotonic=around.monotonic,
        )
        notify: Callable[[], None] = refresh.notify
        read_anew: Callable[[bool], Awaitable[object]] = refresh.now
    else:
        filler = Bridge(
            settings.sudo_rules_file,
            around.store,
            publication,
            directory,
            lambda: layout,
            clock=clock,
            now=around.now,
            monotonic=around.monotonic,
            in_thread=around.in_thread,
        )
        notify, read_anew = _nothing_to_do, _nothing_to_read
    demotions = Demotions(
        directory=directory,
        store=around.store,
        admin_groups=lambda: settings.admin_groups,
        now=around.now,
        journal=around.journal,
    )
    directory.subscribe(demotions.heard)
    departures = Departures(
        directory=directory,
        store=around.store,
        clock=clock,
        now=around.now,
        monotonic=around.monotonic,
        journal=around.journal,
    )
    directory.subscribe(departures.heard)
    roster = Roster(directory, lambda: settings.admin_groups, clock=clock, monotonic=around.monotonic)
    directory.subscribe(roster.heard)
    settler = MemorySettler(clock)
    directory.subscribe(settler.heard)
    listeners = _listeners(around, trust, directory, filler)
    desk = DirectoryDesk(
        sudo_rules=SudoRules(
            file=filler if isinstance(filler, Bridge) else None,
            reports=lambda: directory.served.built.rules if directory.served is not None else (),
            no_authenticate=lambda: layout.sudo_no_authenticate,
            store=around.store,
            now=around.now,
            journal=around.journal,
            sliced=lambda work: sliced(work, clock, around.monotonic),
        ),
        admin=DirectoryAdmin(
            directory=directory, refresh=read_anew, in_thread=around.in_thread, clock=clock, journal=around.journal
        ),
    )
    return DirectoryParts(
        directory=directory,
        filler=filler,
        listeners=listeners,
        pocketid=pocketid,
        notify=notify,
        desk=desk,
        demotions=demotions,
        departures=departures,
        settler=settler,
        checks=_checks(directory, listeners, pocketid),
        roster=roster,
    )


def _nothing_to_do() -> None:
    """In bridge mode there is no PocketID whose news could matter."""


async def _nothing_to_read(accept_shrink: bool = False) -> None:
    """In bridge mode the rules file is followed anyway."""


class MemorySettler(Service):
    """
    Lets full collections of garbage leave a new snapshot alone: it is large, lives long, and goes with its references.

    A little later than the swap, so that both together do not hold the reactor.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.setName("memory settler")
        self._clock = clock
        self._call: IDelayedCall | None = None

    def heard(self, snapshot: Snapshot) -> None:
        if self.running and self._call is None:
            self._call = self._clock.callLater(SETTLE_SECONDS, self._settle)

    def stopService(self) -> None:
        super().stopService()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _settle(self) -> None:
        self._call = None
        gc.collect(1)
        gc.freeze()


def _pocketid(around: Surroundings, directory: Directory) -> PocketID:
    settings = around.settings
    same_server = _origin(settings.pocketid_api_url) == _origin(settings.oidc_issuer_url)
    pool = build_pool(around.reactor, PARALLEL)
    around.reactor.addSystemEventTrigger("before", "shutdown", pool.closeCachedConnections)
    return PocketID(
        http=build_http_client(around.reactor, settings.oidc_insecure_skip_verify and same_server, pool=pool),
        clock=around.reactor,
        now=around.now,
        base_url=settings.pocketid_api_url,
        api_key=settings.pocketid_api_key,
        # after a restart, whoever did not change is the object that is served already
        known=lambda: directory.served.source if directory.served is not None else Source(),
        monotonic=around.monotonic,
    )


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme.lower(), (parts.hostname or "").lower(), parts.port


def _checks(directory: Directory, listeners: LdapListeners, pocketid: PocketID | None) -> tuple[Check, ...]:
    async def sync() -> str:
        return directory.health()

    async def server() -> str:
        return "ok" if listeners.listening else "not_started"

    checks = [
        Check(name="ldap_sync", probe=sync, failure="stale", critical=True, fresh_seconds=0),
        Check(name="ldap_server", probe=server, failure="not_started", critical=True, fresh_seconds=0),
    ]
    if pocketid is not None:
        there = pocketid

        async def reachable() -> str:
            return "ok" if await there.probe() else "unreachable"

        checks.append(
            Check(
                name="pocketid",
                probe=reachable,
                failure="unreachable",
                critical=False,
                fresh_seconds=PROBE_FRESH_SECONDS,
            )
        )
    return tuple(checks)


# -- LDAP -------------------------------------------------------------------------------------------------------------
def _listeners(around: Surroundings, trust: Trust, directory: Directory, filler: Refresh | Bridge) -> LdapListeners:
    settings, tls = around.settings, trust.ldap_tls
    searcher = Searcher(
        lambda: directory.snapshot, settings.ldap_reply_memo, around.monotonic, settings.ldap_size_limit
    )
    common = Common(
        searcher=searcher,
        directory=lambda: directory.snapshot,
        root_dse=RootDSE(
            base_dn=settings.ldap_base_dn,
            version=__version__,
            directory=lambda: directory.snapshot,
            start_tls=tls is not None,
        ),
        binds=Binds(
            base_dn=settings.ldap_base_dn,
            service_dn=settings.ldap_bind_dn,
            service_password=settings.ldap_bind_password,
            ldap_secret=bind_secret(settings),
            registry=around.registry,
            provisioning=lambda: settings.ldap_provision_enabled,
            anonymous=lambda: settings.ldap_allow_anonymous,
            by_address=FailureThrottle(),
            by_dn=FailureThrottle(),
            monotonic=around.monotonic,
            journal=around.journal,
            metrics=around.metrics,
            trail=around.trail,
        ),
        registry=around.registry,
        view=_views(around) if settings.ldap_host_views else lambda hostname: None,
        start_tls=(lambda transport: transport.startTLS(tls)) if tls is not None else None,
        peer_name=peer_name,
        spoiled=tls.spoiled if tls is not None else lambda transport: "",
        cursors=Cursors(secrets.token_bytes),
        turns=Turns(around.clock, around.monotonic),
        tally=Tally(around.metrics, around.clock, lambda: searcher.memo_hits),
        journal=around.journal,
        metrics=around.metrics,
        clock=around.clock,
        monotonic=around.monotonic,
        idle_seconds=settings.ldap_idle_timeout.total_seconds(),
        time_limit_seconds=settings.ldap_time_limit.total_seconds(),
    )
    factory = LdapFactory(
        common,
        max_connections=settings.ldap_max_connections,
        max_per_address=settings.ldap_max_connections_per_address,
    )
    directory.subscribe(lambda snapshot: factory.snapshot_changed())
    wanted: list[tuple[str, ServerTLS | None]] = []
    if settings.ldap_listen_addr:
        wanted.append((settings.ldap_listen_addr, None))
    if tls is not None and settings.ldap_tls_listen_addr:
        wanted.append((settings.ldap_tls_listen_addr, tls))
    return LdapListeners(factory, wanted, settings.listen_backlog, filler.settled, around.reactor)


def _views(around: Surroundings) -> Callable[[str], View | None]:
    def view(hostname: str) -> View:
        entry = around.registry().entry(hostname)
        everybody = entry is None or EVERYBODY in entry.users
        return View(hostname=hostname, people=None if everybody or entry is None else entry.users)

    return view


class LdapListeners(Service):
    """
    Opens the LDAP ports once there is something to serve. A port that is taken does not stop the server, which people
    need for their ``sudo``: health shows it, and it is tried again.

    :param wanted: addresses, and the TLS of those that speak it from the first byte.
    :param ready: returns when there is something to serve, or it is no use to wait.
    """

    _log = Logger()

    def __init__(
        self,
        factory: LdapFactory,
        wanted: Sequence[tuple[str, ServerTLS | None]],
        backlog: int,
        ready: Callable[[], Awaitable[None]],
        reactor: Any,
    ) -> None:
        self.setName("ldap listeners")
        self.factory = factory
        self._wanted = list(wanted)
        self._backlog = backlog
        self._ready = ready
        self._reactor = reactor
        self._open: list[IService] = []
        self._work: Deferred[None] | None = None
        self._missing = len(self._wanted)

    @property
    def listening(self) -> bool:
        """Whether all ports are open."""
        return bool(self.running) and self._missing == 0

    def startService(self) -> None:
        super().startService()
        self._work = Deferred.fromCoroutine(self._run())
        self._work.addErrback(lambda failure: self._log.failure("the LDAP listeners have ended", failure))

    def stopService(self) -> Deferred[None]:
        super().stopService()
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for port in self._open:
            await maybeDeferred(port.stopService)
        self._open.clear()
        await self.factory.close()

    async def _run(self) -> None:
        try:
            await self._ready()
            left, said = list(self._wanted), set[str]()
            while left:
                failed = []
                for address, tls in left:
                    try:
                        port = listening(address, self._backlog, self.factory, self._reactor, tls)
                        port.startService()
                    except CannotListenError as problem:
                        failed.append((address, tls))
                        setting = "IDENTREE_LDAP_TLS_LISTEN_ADDR" if tls else "IDENTREE_LDAP_LISTEN_ADDR"
                        told = remedy(problem, setting)
                        if told not in said:
                            self._log.error("LDAP: {problem}", problem=told)
                        said.add(told)
                    else:
                        self._open.append(port)
                        self._log.info(
                            "LDAP: listening on {address}{tls}", address=address, tls=" (TLS)" if tls else ""
                        )
                left, self._missing = failed, len(failed)
                if left:
                    await deferLater(self._reactor, LISTEN_AGAIN_SECONDS)
        except CancelledError:
            return


# How often the certificates of open connections are looked at; one that has expired stays so much longer at most.
RECHECK_SECONDS = 30.0
# What could not be stored of former administrators is tried again so often.
DEMOTE_AGAIN_SECONDS = 30.0
# How often certificate files, CA and revocation lists are looked at, and how often expiries are measured.
FOLLOW_TRUST_SECONDS = 5.0
MEASURE_SECONDS = timedelta(hours=1).total_seconds()


# -- for the command line ---------------------------------------------------------------------------------------------
# Ids that are read at once.
PAGE = 2000


def beside_the_server(settings: Settings, work: Callable[[SqlStore, Any], Awaitable[T]]) -> T:
    """
    Do something with the database in a program that runs beside the server. Runs the reactor until it is done.

    :param work: is given the open store and the reactor.
    :raise StorageUnavailable, SchemaTooNew: the database cannot be used; or whatever ``work`` raises.
    """
    from twisted.internet import reactor as global_reactor

    reactor: Any = global_reactor
    store = open_store(
        reactor,
        driver=settings.database_driver,
        dsn=settings.database_dsn,
        version=__version__,
        max_open_conns=2,
        readers=1,
    )

    async def whole() -> T:
        await store.start()
        try:
            return await work(store, reactor)
        finally:
            await store.stop()

    results: list[T | Failure] = []

    def over(result: T | Failure) -> None:
        results.append(result)
        reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(whole()).addBoth(over))
    reactor.run()
    [result] = results
    if isinstance(result, Failure):
        result.raiseException()
    return result


async def published(store: SqlStore, reactor: Any) -> tuple[Source, Numbers] | None:
    """
    People and groups as they were last read, and their numbers; None when they never were.

    :raise BadArchive: what is in the database is damaged.
    """

    def in_thread(function: Callable[[], Any]) -> Deferred[Any]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), function)

    publication = Publication(
        store, reactor, now=lambda: datetime.now(UTC), monotonic=time.monotonic, in_thread=in_thread
    )
    await publication.read()
    divided = publication.edition.divided
    if divided is None:
        return None
    return divided.source, Numbers(uids=await _numbers(store, UID), gids=await _numbers(store, GID))


async def _numbers(store: SqlStore, kind: str) -> dict[str, int]:
    numbers: dict[str, int] = {}
    last = (0, 0)
    while True:
        page = await store.posix_ids(kind, last, PAGE)
        numbers.update((row.source_id, row.number) for row in page)
        if len(page) < PAGE:
            return numbers
        last = (page[-1].revision, page[-1].number)
