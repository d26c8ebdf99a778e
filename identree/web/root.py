"""
The web adapter, put together from finished collaborators.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import unquote

from klein import Klein
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource

from identree.app.challenges import Challenges
from identree.app.decisions import Decisions
from identree.app.development import Development
from identree.app.health import Health, InThread
from identree.app.hosts import Hosts
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.notices import Notices
from identree.app.onetap import OneTapLinks
from identree.app.people import People
from identree.app.policies import PolicyBook
from identree.app.ports import Monotonic, Now
from identree.app.provision import Provisioning
from identree.app.registry import Enrolments
from identree.app.rules import Rules
from identree.app.trail import Trail
from identree.app.waiters import Waiters
from identree.core.addresses import Network, is_trusted
from identree.storage.interface import Store
from identree.web import breakglass as breakglass_routes
from identree.web import directory as directory_routes
from identree.web import fleet as fleet_routes
from identree.web import hosts as host_routes
from identree.web import login as login_routes
from identree.web import notifications as notification_routes
from identree.web import policies as policy_routes
from identree.web.actions import ActionRoutes
from identree.web.breakglass import BreakGlassRoutes, HeartbeatRoutes
from identree.web.deploy import BODY_LIMITS as DEPLOY_BODY_LIMITS
from identree.web.deploy import DeployCalls, DeployDesk, DeployRoutes
from identree.web.directory import DirectoryDesk, DirectoryRoutes
from identree.web.downloads import UPLOAD_BODY_BYTES, UPLOAD_PATH, DownloadDesk, DownloadRoutes, UploadRoutes
from identree.web.enrol import ENROL_BODY_BYTES, ENROL_PATH, EnrolRoutes
from identree.web.events import EVENTS_PATH, EventStreams
from identree.web.fleet import AdminCalls, CallAnswers, FleetCalls, FleetDesk, FleetRoutes
from identree.web.forms import Forms
from identree.web.hooks import WEBHOOK_BODY_BYTES, WEBHOOK_PATH, HookRoutes
from identree.web.login import DevelopmentRoutes, LoginRoutes
from identree.web.notifications import InstallRoutes, NotificationCalls, NotificationRoutes, PushRoutes
from identree.web.onetap import OneTapRoutes
from identree.web.operations import HEALTH_PATH, LIVE_PATH, METRICS_PATH, READY_PATH, OperationsRoutes
from identree.web.pages import PageRoutes
from identree.web.policies import PolicyRoutes, PreviewRoutes
from identree.web.provision import ProvisionRoutes
from identree.web.reading import Addresses, Credentials, cut
from identree.web.render import Renderer
from identree.web.replies import redirect, text
from identree.web.router import Direct, Routes, not_found
from identree.web.sessions import BrowserSessions
from identree.web.site import Site
from identree.web.static import StaticRoutes

# Connections beside those of waiting hosts and open pages.
SPARE_CONNECTIONS = 4096
_GET = frozenset({b"GET"})

# These have answers of their own to a body that is too long.
_JUDGES_BODY = frozenset({host_routes.CHALLENGE_PATH, b"/signout", b"/dev/seed-session", b"/dev/seed-history"})
# HEAD is a wrong method everywhere else (spec/http-api section 2.4).
_HEADS = frozenset({HEALTH_PATH, METRICS_PATH, LIVE_PATH, READY_PATH})
# What is held until something happens is measured apart: its time is that of people.
_POLL, _STREAM = "poll", "stream"
_WAITS = re.compile(rb"[?&]wait=")


class WebSettings(Protocol):
    """What the web adapter needs of the settings."""

    @property
    def external_url(self) -> str: ...
    @property
    def trusted_proxies(self) -> tuple[Network, ...]: ...
    @property
    def metrics_token(self) -> str: ...
    @property
    def webhook_secret(self) -> str: ...
    @property
    def dev_login(self) -> bool: ...
    @property
    def max_streams(self) -> int: ...
    @property
    def max_streams_per_user(self) -> int: ...
    @property
    def max_connections_per_address(self) -> int: ...


class Root(Resource):
    """
    Which room a path belongs to. Paths are exact, but for those of ``prefixes``, where any rest goes to one resource.

    A table instead of a tree of resources: what is asked most is found with one look.
    """

    isLeaf = True

    def __init__(
        self,
        exact: Mapping[bytes, IResource],
        prefixes: Mapping[bytes, IResource],
        public_prefix: Callable[[], str] = str,
        templates: Mapping[bytes, str] | None = None,
    ) -> None:
        """:param templates: what the paths of a prefix look like, for metrics and the log."""
        super().__init__()
        self._public_prefix = public_prefix
        self._exact = dict(exact)
        self._prefix_names = frozenset(prefixes)
        self._templates = {prefix: prefix.decode("ascii") for prefix in prefixes} | dict(templates or {})
        # the longest prefix that fits
        self._prefixes = sorted(prefixes.items(), key=lambda item: len(item[0]), reverse=True)

    def render(self, request: Any) -> Any:
        path: bytes = request.path
        resource = self._exact.get(path)
        if resource is not None:
            request.route = path.decode("ascii")
            if path == EVENTS_PATH:
                request.held = _STREAM
        else:
            prefix = self._prefix_of(path)
            if prefix is None:
                return self._elsewhere(request)
            name, resource = prefix
            request.route = self._templates[name]
            if name == host_routes.CHALLENGE_PREFIX and _WAITS.search(request.uri):
                request.held = _POLL
        if cut(request) and path not in _JUDGES_BODY and not path.startswith(b"/api/"):
            return text(request, 413, "request body too large")
        if isinstance(resource, Direct):
            return resource.render(request)
        if request.method == b"HEAD" and path not in _HEADS:
            return text(request, 405, "method not allowed")
        request.prepath = []
        request.postpath = [unquote(segment).encode("utf-8", "replace") for segment in _segments(path)]
        return resource.render(request)

    def _prefix_of(self, path: bytes) -> tuple[bytes, IResource] | None:
        for item in self._prefixes:
            if path.startswith(item[0]):
                return item
        return None

    def _elsewhere(self, request: IRequest) -> bytes:
        """A prefix without its slash, or a path that is not clean, is sent on; anything else is not found."""
        path: bytes = request.path
        if not path.startswith(b"/"):
            return not_found(request)
        clean = b"/" + b"/".join(_clean(path))
        if path.endswith(b"/") and clean != b"/":
            clean += b"/"
        if clean == path:
            clean += b"/"
        known = clean in self._exact or self._prefix_of(clean) is not None
        if not known or (clean == path + b"/" and clean not in self._prefix_names):
            return not_found(request)
        question = request.uri.partition(b"?")[2]
        location = (clean + (b"?" + question if question else b"")).decode("latin-1")
        return redirect(request, 307, self._public_prefix() + location)


def _segments(path: bytes) -> list[str]:
    return path[1:].decode("latin-1").split("/")


def _clean(path: bytes) -> list[bytes]:
    """The segments without empty ones, ``.`` and ``..``."""
    segments: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            del segments[-1:]
        elif segment not in (b"", b"."):
            segments.append(segment)
    return segments


def _tables(
    routers: Iterable[Klein],
) -> tuple[dict[bytes, IResource], dict[bytes, IResource], dict[bytes, str]]:
    """Which paths each router knows: exact ones, the prefixes of those with a variable part, and how they go on."""
    exact: dict[bytes, IResource] = {}
    prefixes: dict[bytes, IResource] = {}
    templates: dict[bytes, str] = {}
    for router in routers:
        resource = router.resource()
        for rule in router.url_map.iter_rules():
            fixed, variable, _ = rule.rule.partition("<")
            (prefixes if variable else exact)[fixed.encode("ascii")] = resource
            if variable:
                templates.setdefault(fixed.encode("ascii"), rule.rule)
    return exact, prefixes, templates


class Front:
    """The web server as the composition root sees it."""

    def __init__(self, site: Site, streams: EventStreams, operations: OperationsRoutes) -> None:
        self.site = site
        self._streams = streams
        self._operations = operations

    def close_streams(self) -> None:
        """The server stops: streams end, and ``/readyz`` sends everybody to others."""
        self._operations.leave()
        self._streams.close()

    def busy(self) -> int:
        """Requests that are being worked on."""
        return self.site.busy()


def build_root(
    *,
    hosts: host_routes.HostRoutes,
    streams: EventStreams,
    routes: Iterable[Routes],
    public_prefix: Callable[[], str] = str,
) -> Root:
    """
    The root resource over finished routes.

    :param public_prefix: what browsers put before our paths (``Rules.prefix``).
    """
    exact, prefixes, templates = _tables([one.router for one in routes])
    posts = frozenset({b"POST"})
    exact[host_routes.CHALLENGE_PATH] = Direct(hosts.create, hosts.answers, posts)
    templates[host_routes.CHALLENGE_PREFIX] = host_routes.CHALLENGE_PREFIX.decode("ascii") + "<id>"
    prefixes[host_routes.CHALLENGE_PREFIX] = Direct(hosts.challenge, hosts.answers, frozenset({b"GET", b"DELETE"}))
    exact[host_routes.GRACE_STATUS_PATH] = Direct(hosts.grace_status, hosts.answers, _GET)
    exact[EVENTS_PATH] = Direct(streams.open, streams.answers, _GET)
    return Root(exact, prefixes, public_prefix, templates)


def build_site(
    *,
    reactor: Any,
    settings: WebSettings,
    challenges: Challenges,
    decisions: Decisions,
    hosts: Hosts,
    people: People,
    store: Store,
    waiters: Waiters,
    health: Health,
    metrics: Metrics,
    renderer: Renderer,
    rules: Callable[[], Rules],
    now: Now,
    monotonic: Monotonic,
    development: Development | None = None,
    journal: Journal | None = None,
    credentials: Credentials | None = None,
    provisioning: Provisioning | None = None,
    enrolments: Enrolments | None = None,
    downloads: DownloadDesk | None = None,
    deploys: DeployDesk | None = None,
    fleet: FleetDesk | None = None,
    directory: DirectoryDesk | None = None,
    one_taps: OneTapLinks | None = None,
    policies: PolicyBook | None = None,
    notices: Notices | None = None,
    channels: Callable[[], tuple[str, ...]] = tuple,
    host_groups: Callable[[], tuple[str, ...] | None] = lambda: None,
    refresh_wanted: Callable[[], None] = lambda: None,
    trail: Trail | None = None,
    measure: Sequence[Callable[[], None]] = (),
    in_thread: InThread | None = None,
    token: Callable[[int], str] = secrets.token_hex,
) -> Front:
    """
    :param development: routed only when ``settings.dev_login``.
    :param credentials: reads what hosts present; by default without client certificates.
    :param provisioning: None: its endpoint does not exist.
    :param one_taps, policies, notices: None: what belongs to them does not exist.
    :param channels: names of the notification channels.
    :param host_groups: of the host registry; None: there is none.
    :param enrolments, downloads, deploys, fleet: the same.
    :param directory: None: its pages do not exist.
    :param refresh_wanted: what PocketID's webhook calls.
    :param trail: gets the audit records of what strangers try.
    :param measure: what brings gauges up to date, called before each scrape of the metrics; it must not block.
    :param in_thread: runs what takes long in a thread.
    :param token: returns n random bytes as hex.
    """
    addresses = Addresses(lambda: settings.trusted_proxies)
    sessions = BrowserSessions(people, rules)
    streams = EventStreams(
        sessions=sessions,
        clock=reactor,
        epoch=token(4),
        limit=settings.max_streams,
        limit_per_user=settings.max_streams_per_user,
        follows_all=decisions.follows_all,
    )
    store.subscribe(streams.heard)

    def measure_connections() -> None:
        metrics.http_connections.set(len(site))
        metrics.http_connections_limit.set(site.limit)

    operations = OperationsRoutes(
        clock=reactor,
        health=health,
        metrics=metrics,
        store=store,
        waiters=lambda: (len(waiters), waiters.limit),
        streams=lambda: (len(streams), streams.limit),
        metrics_token=settings.metrics_token,
        now=now,
        monotonic=monotonic,
        measure=(measure_connections, *measure),
        in_thread=in_thread,
    )
    routes: list[Routes] = [
        PageRoutes(
            decisions=decisions,
            sessions=sessions,
            render=renderer,
            rules=rules,
            ends_at=people.session_ends_at,
            address=addresses.of,
            monotonic=monotonic,
            journal=journal or Journal(),
        ),
        StaticRoutes(renderer.assets),
        InstallRoutes(renderer),
        ActionRoutes(
            decisions=decisions, people=people, sessions=sessions, addresses=addresses, cards=renderer, rules=rules
        ),
        LoginRoutes(
            people=people, sessions=sessions, addresses=addresses, cards=renderer, rules=rules, one_taps=one_taps
        ),
        operations,
    ]
    if settings.dev_login and development is not None:
        routes.append(
            DevelopmentRoutes(
                development=development, people=people, sessions=sessions, addresses=addresses, rules=rules
            )
        )
    if one_taps is not None:
        routes.append(
            OneTapRoutes(
                links=one_taps,
                decisions=decisions,
                forms=Forms(people=people, sessions=sessions, addresses=addresses),
                sessions=sessions,
                render=renderer,
                rules=rules,
                ends_at=people.session_ends_at,
                address=addresses.of,
                monotonic=monotonic,
            )
        )
    presented = credentials or Credentials()
    if policies is not None and in_thread is not None:
        routes += [
            PolicyRoutes(
                book=policies,
                decisions=decisions,
                forms=Forms(people=people, sessions=sessions, addresses=addresses),
                sessions=sessions,
                render=renderer,
                rules=rules,
                ends_at=people.session_ends_at,
                channels=channels,
                host_groups=host_groups,
                in_thread=in_thread,
            ),
            PreviewRoutes(
                book=policies,
                hosts=hosts,
                sessions=sessions,
                calls=AdminCalls(people=people, sessions=sessions),
                addresses=addresses,
                credentials=presented,
            ),
        ]
    if notices is not None:
        routes += [
            NotificationRoutes(
                desk=notices,
                decisions=decisions,
                forms=Forms(people=people, sessions=sessions, addresses=addresses),
                sessions=sessions,
                render=renderer,
                rules=rules,
                ends_at=people.session_ends_at,
            ),
            NotificationCalls(desk=notices, calls=AdminCalls(people=people, sessions=sessions), addresses=addresses),
            PushRoutes(desk=notices, people=people, sessions=sessions, addresses=addresses),
        ]
    if directory is not None:
        routes.append(
            DirectoryRoutes(
                desk=directory,
                decisions=decisions,
                forms=Forms(people=people, sessions=sessions, addresses=addresses),
                sessions=sessions,
                render=renderer,
                rules=rules,
                ends_at=people.session_ends_at,
            )
        )
    if provisioning is not None:
        routes.append(
            ProvisionRoutes(provisioning=provisioning, credentials=presented, addresses=addresses, metrics=metrics)
        )
    if fleet is not None and in_thread is not None:
        routes += [
            FleetRoutes(
                desk=fleet,
                decisions=decisions,
                forms=Forms(people=people, sessions=sessions, addresses=addresses),
                sessions=sessions,
                render=renderer,
                rules=rules,
                ends_at=people.session_ends_at,
            ),
            FleetCalls(desk=fleet, calls=AdminCalls(people=people, sessions=sessions), addresses=addresses),
            BreakGlassRoutes(break_glass=fleet.break_glass, hosts=hosts, addresses=addresses, credentials=presented),
            HeartbeatRoutes(
                fleet=fleet.fleet,
                hosts=hosts,
                sessions=sessions,
                addresses=addresses,
                credentials=presented,
                in_thread=in_thread,
                now=now,
            ),
        ]
    if downloads is not None and in_thread is not None:
        routes += [
            DownloadRoutes(desk=downloads, hosts=hosts, addresses=addresses, credentials=presented, clock=reactor),
            UploadRoutes(
                scripts=downloads.scripts,
                calls=AdminCalls(people=people, sessions=sessions),
                answers=CallAnswers(),
                addresses=addresses,
                in_thread=in_thread,
            ),
        ]
    if deploys is not None:
        routes += [
            DeployCalls(
                desk=deploys,
                calls=AdminCalls(people=people, sessions=sessions),
                sessions=sessions,
                addresses=addresses,
                clock=reactor,
            ),
            DeployRoutes(
                desk=deploys,
                decisions=decisions,
                sessions=sessions,
                render=renderer,
                rules=rules,
                ends_at=people.session_ends_at,
            ),
        ]
    if enrolments is not None:
        routes.append(EnrolRoutes(enrolments=enrolments, addresses=addresses, server_url=settings.external_url))
    routes.append(
        HookRoutes(
            secret=settings.webhook_secret,
            refresh_wanted=refresh_wanted,
            addresses=addresses,
            journal=journal or Journal(),
            monotonic=monotonic,
            trail=trail,
        )
    )
    root = build_root(
        hosts=host_routes.HostRoutes(
            challenges=challenges, hosts=hosts, addresses=addresses, clock=reactor, credentials=presented
        ),
        streams=streams,
        routes=routes,
        public_prefix=lambda: rules().prefix,
    )
    site = Site(
        root,
        reactor=reactor,
        external_url=settings.external_url,
        token=token,
        body_limits={
            host_routes.CHALLENGE_PATH: host_routes.CHALLENGE_BODY_BYTES,
            b"/signout": login_routes.SIGN_OUT_BODY_BYTES,
            b"/dev/seed-session": login_routes.SEED_BODY_BYTES,
            b"/dev/seed-history": login_routes.SEED_BODY_BYTES,
            WEBHOOK_PATH: WEBHOOK_BODY_BYTES,
            ENROL_PATH: ENROL_BODY_BYTES,
            **DEPLOY_BODY_LIMITS,
            UPLOAD_PATH.encode(): UPLOAD_BODY_BYTES,
            breakglass_routes.ESCROW_PATH.encode(): breakglass_routes.BODY_BYTES,
            breakglass_routes.REPORT_PATH.encode(): breakglass_routes.BODY_BYTES,
            breakglass_routes.HEARTBEAT_PATH.encode(): breakglass_routes.HEARTBEAT_BODY_BYTES,
            fleet_routes.REVEAL_PATH.encode(): fleet_routes.REVEAL_BODY_BYTES,
            fleet_routes.REMOVE_PATH.encode(): fleet_routes.REMOVE_BODY_BYTES,
            policy_routes.IMPORT_PATH.encode(): policy_routes.IMPORT_BODY_BYTES,
            policy_routes.PREVIEW_PATH.encode(): policy_routes.PREVIEW_BODY_BYTES,
            b"/api/policies/add": policy_routes.FORM_BODY_BYTES,
            b"/api/policies/update": policy_routes.FORM_BODY_BYTES,
            b"/api/notification/routes/add": notification_routes.FORM_BODY_BYTES,
            b"/api/notification/routes/update": notification_routes.FORM_BODY_BYTES,
            b"/api/push/devices": notification_routes.DEVICE_BODY_BYTES,
            directory_routes.ADD_PATH.encode(): directory_routes.RULE_BODY_BYTES,
            directory_routes.UPDATE_PATH.encode(): directory_routes.RULE_BODY_BYTES,
        },
        max_connections=waiters.limit + settings.max_streams + SPARE_CONNECTIONS,
        max_per_address=settings.max_connections_per_address,
        many_clients=lambda address: is_trusted(address, settings.trusted_proxies),
        wall=lambda: now().timestamp(),
        monotonic=monotonic,
        observe=metrics.http_answered,
        observe_held=metrics.http_held_over,
    )
    return Front(site, streams, operations)
