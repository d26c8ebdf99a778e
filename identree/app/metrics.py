"""
The Prometheus metrics (spec/audit-and-metrics section 11), on an injected registry.

Those of features still to come exist with their zero, so that dashboards and alerts can be built on them today.
"""

from __future__ import annotations

from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

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


class Metrics:
    """Every metric by name; methods say what happened, so that callers name no metric."""

    def __init__(self, registry: CollectorRegistry, version: str, sinks: tuple[str, ...] = ()) -> None:
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
        self.reactor_lag = Histogram(
            "identree_reactor_lag_seconds",
            "How late the event loop ran a timer.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self.build = gauge("identree_build_info", "The running version.", ("version",))
        self.build.labels(version).set(1)

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

    def _decided(self, challenge: Challenge, at: datetime) -> None:
        self.duration.observe(max(0.0, (at - challenge.created_at).total_seconds()))
