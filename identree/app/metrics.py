"""
The Prometheus metrics (spec/audit-and-metrics section 11), on an injected registry.

Those of features still to come exist with their zero, so that dashboards and alerts can be built on them today.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from datetime import datetime
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, disable_created_metrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from identree.core import events
from identree.core.challenge import Challenge, Step

disable_created_metrics()

CHALLENGE_BUCKETS = (5, 10, 15, 30, 45, 60, 90, 120)
EXCHANGE_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 15)
DELIVERY_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30)
SEARCH_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1, 5)
REFRESH_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
# Why LDAP connections are refused or cut: by the server's bounds, by its clock, by what was sent, by their certificate.
REFUSED_CONNECTIONS = (
    *("connections", "address", "buffers"),
    *("unbound", "idle", "slow", "stalled"),
    *("protocol", "throttled", "removed"),
    *("expired", "not_yet_valid", "revoked", "wrong_purpose", "foreign_ca", "bad_certificate", "no_certificate"),
    *("protocol_too_old", "no_tls", "no_common_cipher", "refused_by_client", "handshake"),
)
LAG_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1)
HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# Polls are held for up to half a minute, streams for as long as a page is open.
HELD_BUCKETS = (0.1, 1, 5, 10, 15, 20, 25, 30, 60, 300, 3600, 28800)
DATABASE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
CHECK_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2)
NOTIFICATION_STATUSES = ("sent", "failed", "skipped")
# The channel that stands in the metrics while none is configured.
NO_CHANNEL = "none"
DATABASE_OPERATIONS = ("read", "write")
# Of StorageUnavailable.
DATABASE_REASONS = ("locked", "read_only", "full", "unreachable", "overloaded", "error")
LISTENERS = ("https", "ldaps")
# The route of a request whose path belongs to nothing.
OTHER = "other"
# Instead of a status: the client hung up before there was an answer.
GONE = "gone"
HELD_KINDS = ("poll", "stream")
# Pairs of a route and a status with series of their own; routes are the templates of the program, so there are a few
# hundred. What goes beyond is counted together.
MOST_ANSWERS = 1000
_STATUSES = frozenset(str(status.value) for status in HTTPStatus) | {GONE}
# Lines of the exposition that are written between two looks at the clock, about a millisecond.
_LINES = 200
# Fastest that still halves the size more than twice.
_COMPRESSION = 5


class Process(Collector):
    """
    The ``process_*`` metrics as they were when somebody looked last: looking lists the open files, which takes 13 ms
    when there are 14,000, so it is done in a thread.
    """

    def __init__(self) -> None:
        self._collector = ProcessCollector(registry=None)
        self._families: tuple[Metric, ...] = ()
        self.look()

    def look(self) -> None:
        """Blocks."""
        self._families = tuple(self._collector.collect())

    def collect(self) -> Iterable[Metric]:
        return self._families


class Answers(Collector):
    """
    A histogram by route and status. The library makes the many thousand samples of one in one go, which takes 20 ms;
    here the family comes in pieces, one for each pair.
    """

    NAME = "identree_http_request_duration_seconds"
    HELP = "From a whole request to the end of its answer; without held requests and event streams."

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], Histogram] = {}

    def observe(self, route: str, status: str, seconds: float) -> None:
        answers = self._answers.get((route, status))
        if answers is None:
            answers = self._add(route, status)
        answers.observe(seconds)

    def _add(self, route: str, status: str) -> Histogram:
        key = (
            route if len(self._answers) < MOST_ANSWERS else OTHER,
            status if status in _STATUSES else "500",
        )
        answers = self._answers.get(key)
        if answers is None:
            answers = self._answers[key] = Histogram(self.NAME, self.HELP, buckets=HTTP_BUCKETS, registry=None)
        return answers

    def describe(self) -> Iterable[Metric]:
        return (Metric(self.NAME, self.HELP, "histogram"),)

    def collect(self) -> Iterator[Metric]:
        """At least one, so that the name is there from the start."""
        yield Metric(self.NAME, self.HELP, "histogram")
        for (route, status), answers in list(self._answers.items()):
            piece = Metric(self.NAME, self.HELP, "histogram")
            for family in answers.collect():
                for sample in family.samples:
                    labels = {"route": route, "status": status, **sample.labels}
                    piece.add_sample(sample.name, labels, sample.value)
            yield piece


class Metrics:
    """Every metric by name; methods say what happened, so that callers name no metric."""

    def __init__(
        self,
        registry: CollectorRegistry,
        version: str,
        sinks: tuple[str, ...] = (),
        channels: tuple[str, ...] = (),
    ) -> None:
        """
        :param sinks: the configured audit sinks.
        :param channels: the configured notification channels.
        """
        self.registry = registry

        def counter(name: str, help: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, help, labels, registry=registry)

        def gauge(name: str, help: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(name, help, labels, registry=registry)

        self.created = counter("identree_challenges_created_total", "Challenges created.")
        self.approved = counter("identree_challenges_approved_total", "Challenges fully approved by people.")
        self.auto_approved = counter(
            "identree_challenges_auto_approved_total", "Challenges approved by a grace session."
        )
        self.denied = counter(
            "identree_challenges_denied_total", "Refusals and failed sign-ins, by reason.", ("reason",)
        )
        for reason in ("oidc_error", "nonce_mismatch", "identity_mismatch", "user_rejected"):
            self.denied.labels(reason)
        self.expired = counter("identree_challenges_expired_total", "Challenges that nobody decided in time.")
        self.cancelled = counter("identree_challenges_cancelled_total", "Challenges given up at the terminal.")
        self.active = gauge("identree_active_challenges", "Pending challenges.")
        self.grace_sessions = gauge("identree_grace_sessions_active", "Unexpired grace sessions.")
        self.duration = Histogram(
            "identree_challenge_duration_seconds",
            "From creation to decision.",
            buckets=CHALLENGE_BUCKETS,
            registry=registry,
        )
        self.rate_limited = counter(
            "identree_rate_limit_rejections_total", "Challenges refused because too many are pending."
        )
        self.auth_failures = counter("identree_auth_failures_total", "Requests of hosts with a bad credential.")
        self.escrow = counter("identree_breakglass_escrow_total", "Break-glass escrow attempts.", ("status",))
        for status in ("success", "failure"):
            self.escrow.labels(status)
        self.exchange = Histogram(
            "identree_oidc_exchange_duration_seconds",
            "Exchange of the authorization code at the identity provider.",
            buckets=EXCHANGE_BUCKETS,
            registry=registry,
        )
        self.registered_hosts = gauge("identree_registered_hosts", "Hosts in the registry.")
        self.ldap_sync_failures = counter("identree_ldap_sync_failures_total", "Failed directory refreshes.")
        self.ldap_refresh = counter("identree_ldap_refresh_total", "Directory refreshes.", ("trigger",))
        for trigger in ("poll", "webhook"):
            self.ldap_refresh.labels(trigger)
        self.ldap_queries = counter("identree_ldap_queries_total", "LDAP searches.", ("base",))
        for base in ("people", "groups", "sudoers", "root"):
            self.ldap_queries.labels(base)
        self.ldap_bind_failures = counter("identree_ldap_bind_failures_total", "Failed LDAP binds.")
        self.ldap_results = counter(
            "identree_ldap_results_total", "LDAP answers by operation and result code.", ("operation", "code")
        )
        self.ldap_entries = counter("identree_ldap_entries_total", "Entries sent in answers to LDAP searches.")
        self.ldap_search = Histogram(
            "identree_ldap_search_duration_seconds",
            "From a decoded LDAP search to the end of its answer.",
            buckets=SEARCH_BUCKETS,
            registry=registry,
        )
        self.ldap_memo_hits = counter("identree_ldap_memo_hits_total", "LDAP searches answered from the reply memo.")
        self.ldap_connections = gauge("identree_ldap_connections", "Open LDAP connections.")
        self.ldap_connections_limit = gauge("identree_ldap_connections_limit", "Bound of identree_ldap_connections.")
        self.ldap_refused = counter(
            "identree_ldap_connections_refused_total", "LDAP connections refused or cut, by reason.", ("reason",)
        )
        for reason in REFUSED_CONNECTIONS:
            self.ldap_refused.labels(reason)
        self.ldap_throttled = counter(
            "identree_ldap_binds_throttled_total", "LDAP binds refused unseen after too many failures."
        )
        self.directory_entries = gauge("identree_directory_entries", "Entries that are served.", ("kind",))
        for kind in ("person", "group", "role"):
            self.directory_entries.labels(kind)
        self.directory_withheld = gauge(
            "identree_directory_withheld", "People, groups and rules that are not served, or only in part.", ("kind",)
        )
        for kind in ("person", "group", "role"):
            self.directory_withheld.labels(kind)
        self.directory_age = gauge(
            "identree_directory_age_seconds", "Time since the served directory was last confirmed by its source."
        )
        self.directory_usn = gauge("identree_directory_change_number", "The entryUSN of the latest change.")
        self.directory_refused = counter(
            "identree_directory_refused_total", "Refreshes refused because too many people would vanish."
        )
        self.directory_refresh = Histogram(
            "identree_directory_refresh_duration_seconds",
            "One refresh, from the first request to the source to serving the result.",
            buckets=REFRESH_BUCKETS,
            registry=registry,
        )
        self.notifications = counter("identree_notifications_total", "Notifications.", ("status", "channel"))
        self.notification_delivery = Histogram(
            "identree_notification_delivery_duration_seconds",
            "Delivery of one notification.",
            ("channel",),
            buckets=DELIVERY_BUCKETS,
            registry=registry,
        )
        self.notifications_waiting = gauge(
            "identree_notifications_waiting", "Notifications that are not over: queued or being sent.", ("state",)
        )
        self.policies_bad = gauge(
            "identree_policies_unusable", "1 while the newest approval policies cannot be used and older ones are."
        )
        self._channels: frozenset[str] = frozenset()
        self.know_channels(channels or (NO_CHANNEL,))
        self.audit = counter("identree_audit_events_total", "Audit records by sink and fate.", ("sink", "status"))
        for sink in ("_channel", *sinks):
            for status in ("emitted", "dropped", "failed"):
                self.audit.labels(sink, status)
        self.audit_lag_records = gauge(
            "identree_audit_sink_lag_records", "Audit records that the sink has not been sent.", ("sink",)
        )
        self.audit_lag_seconds = gauge(
            "identree_audit_sink_lag_seconds",
            "Age of the oldest audit record that the sink has not been sent.",
            ("sink",),
        )
        self.audit_last_success = gauge(
            "identree_audit_sink_last_success_timestamp_seconds",
            "When the sink last took a record, since the start; 0: not yet.",
            ("sink",),
        )
        self.audit_parked = counter(
            "identree_audit_parked_total", "Audit records set aside because the receiver will not take them.", ("sink",)
        )
        for sink in sinks:
            self.audit_lag_records.labels(sink)
            self.audit_lag_seconds.labels(sink)
            self.audit_last_success.labels(sink)
            self.audit_parked.labels(sink)
        self.audit_buffer_limit = gauge(
            "identree_audit_buffer_limit",
            "Audit records that a sink may have in memory.",
        )
        self.audit_checkpoint = gauge(
            "identree_audit_checkpoint_timestamp_seconds",
            "When the audit chain was last signed; 0: not yet.",
        )
        self.server_certificate_expires = gauge(
            "identree_server_certificate_expires_in_seconds",
            "Remaining life of the certificate that a listener shows.",
            ("listener",),
        )
        self.mtls_ca_expires = gauge("identree_mtls_ca_expires_in_seconds", "Remaining life of the mTLS CA.")
        self.mtls_cert_expires = gauge(
            "identree_mtls_cert_expires_in_seconds", "Remaining life of client certificates.", ("hostname",)
        )
        self.certificates_issued = counter(
            "identree_mtls_certificates_issued_total", "Client certificates issued to hosts."
        )
        self.provision_refused = counter(
            "identree_provision_refused_total", "Refused requests for provisioning, by status.", ("status",)
        )
        self.waiters = gauge("identree_held_requests", "Host requests held until their challenge is decided.")
        self.waiters_limit = gauge("identree_held_requests_limit", "Bound of identree_held_requests.")
        self.streams = gauge("identree_event_streams", "Open live-update streams of browsers.")
        self.streams_limit = gauge("identree_event_streams_limit", "Bound of identree_event_streams.")
        self.http_connections = gauge("identree_http_connections", "Open HTTP connections.")
        self.http_connections_limit = gauge("identree_http_connections_limit", "Bound of identree_http_connections.")
        self.http_duration = Answers()
        registry.register(self.http_duration)
        self.http_held = Histogram(
            "identree_http_held_duration_seconds",
            "How long requests were held that wait for something to happen: polls of hosts and streams of browsers.",
            ("kind",),
            buckets=HELD_BUCKETS,
            registry=registry,
        )
        self._held = {kind: self.http_held.labels(kind) for kind in HELD_KINDS}
        self.database_duration = Histogram(
            "identree_database_duration_seconds",
            "From submitting a database operation to its answer.",
            ("operation",),
            buckets=DATABASE_BUCKETS,
            registry=registry,
        )
        self._operations = {name: self.database_duration.labels(name) for name in DATABASE_OPERATIONS}
        self.database_errors = counter(
            "identree_database_errors_total", "Database operations that could not be done, by reason.", ("reason",)
        )
        for reason in DATABASE_REASONS:
            self.database_errors.labels(reason)
        self.database_outstanding = gauge(
            "identree_database_outstanding", "Database operations submitted and not yet answered."
        )
        self.database_outstanding_limit = gauge(
            "identree_database_outstanding_limit", "Bound of identree_database_outstanding."
        )
        self.threads_waiting = gauge("identree_threads_waiting", "Calls that wait for a thread of the common pool.")
        self.health_check = Histogram(
            "identree_health_check_duration_seconds",
            "One probe of a health check, until its answer or its time-out.",
            ("check",),
            buckets=CHECK_BUCKETS,
            registry=registry,
        )
        self.process = Process()
        registry.register(self.process)
        self.reactor_lag = Histogram(
            "identree_reactor_lag_seconds",
            "How late the event loop ran a timer.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self.build = gauge("identree_build_info", "The running version.", ("version",))
        self.build.labels(version).set(1)

    def know_channels(self, names: Iterable[str]) -> None:
        """The channels that there are now; their series begin with zero."""
        self._channels = frozenset(names)
        for channel in self._channels:
            self.notification_delivery.labels(channel)
            for status in NOTIFICATION_STATUSES:
                self.notifications.labels(status, channel)

    def channel(self, name: str) -> str:
        """The label of a channel; names that are no channel's share one, so that there are not ever more series."""
        return name if name in self._channels else "unknown"

    def happened(self, step: Step, created_at: datetime | None = None) -> None:
        """Count a committed move."""
        challenge = step.challenge
        for event in step.events:
            if isinstance(event, events.ChallengeCreated):
                self.created.inc()
            elif isinstance(event, events.AutoApproved):
                self.created.inc()
                self.auto_approved.inc()
                self.duration.observe(0)
            elif isinstance(event, events.ChallengeApproved | events.BreakGlassOverride):
                self.approved.inc()
                self._decided(challenge, event.at)
            elif isinstance(event, events.ChallengeRejected):
                self.denied.labels("user_rejected").inc()
                self._decided(challenge, event.at)
            elif isinstance(event, events.ChallengeExpired):
                self.expired.inc()
            elif isinstance(event, events.ChallengeCancelled):
                self.cancelled.inc()

    def http_answered(self, route: str, status: str, seconds: float) -> None:
        """
        A request is over that was not held.

        :param route: the template of its path, or ``other``.
        :param status: the code, or ``gone`` when the client hung up before the answer.
        """
        self.http_duration.observe(route, status, seconds)

    def http_held_over(self, kind: str, seconds: float) -> None:
        """:param kind: one of HELD_KINDS."""
        self._held[kind].observe(seconds)

    def database_answered(self, operation: str, seconds: float, reason: str) -> None:
        """
        :param operation: ``read`` or ``write``.
        :param reason: why it could not be done (StorageUnavailable); empty when it was.
        """
        self._operations[operation].observe(seconds)
        if reason:
            self.database_errors.labels(reason if reason in DATABASE_REASONS else "error").inc()

    def health_checked(self, check: str, seconds: float) -> None:
        """A probe of this check has answered, failed or run out of time."""
        self.health_check.labels(check).observe(seconds)

    def certificate_ends(self, listener: str, seconds: float) -> None:
        """
        The certificate that a listener shows. A listener that has none has no series: nothing of it can expire.

        :param listener: ``https`` or ``ldaps``.
        :param seconds: until it ends; negative when it has.
        :raise ValueError: there is no such listener.
        """
        if listener not in LISTENERS:
            raise ValueError(f"no listener is called {listener!r}")
        self.server_certificate_expires.labels(listener).set(seconds)

    def _decided(self, challenge: Challenge, at: datetime) -> None:
        self.duration.observe(max(0.0, (at - challenge.created_at).total_seconds()))


# -- the text ---------------------------------------------------------------------------------------------------------
def exposition(registry: CollectorRegistry, *, compressed: bool = False) -> Generator[None, None, bytes]:
    """
    The Prometheus text format 0.0.4 of everything in the registry, a slice at a time: many hosts and routes make many
    thousand lines.

    :param compressed: with gzip (RFC 1952).
    """
    squeeze = zlib.compressobj(_COMPRESSION, zlib.DEFLATED, 16 + zlib.MAX_WBITS) if compressed else None
    parts: list[bytes] = []
    lines: list[str] = []

    def write() -> None:
        raw = "".join(lines).encode("utf-8", "replace")
        lines.clear()
        parts.append(raw if squeeze is None else squeeze.compress(raw))

    before = ""
    for family in registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        if name != before:
            lines.append(f"# HELP {name} {_escaped(family.documentation)}\n# TYPE {name} {family.type}\n")
            before = name
        for sample in family.samples:
            lines.append(f"{sample.name}{_labels(sample.labels)} {floatToGoString(sample.value)}\n")
            if len(lines) >= _LINES:
                write()
                yield
        # collecting the next family may take a while of its own
        yield
    write()
    return b"".join(parts) if squeeze is None else b"".join((*parts, squeeze.flush()))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = []
    for name, value in sorted(labels.items()):
        # whole bounds as deployed versions write them: 5 and not 5.0
        shown = value.removesuffix(".0") if name == "le" else _escaped(value).replace('"', r"\"")
        pairs.append(f'{name}="{shown}"')
    return "{" + ",".join(pairs) + "}"
