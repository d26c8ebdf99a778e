"""The metrics of the contract: names, types, labels, buckets, and what is there from the start."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from twisted.trial.unittest import SynchronousTestCase

from identree.app.metrics import Metrics

# spec/audit-and-metrics section 11
CONTRACT = {
    "identree_challenges_created_total": "counter",
    "identree_challenges_approved_total": "counter",
    "identree_challenges_auto_approved_total": "counter",
    "identree_challenges_denied_total": "counter",
    "identree_challenges_expired_total": "counter",
    "identree_active_challenges": "gauge",
    "identree_grace_sessions_active": "gauge",
    "identree_challenge_duration_seconds": "histogram",
    "identree_rate_limit_rejections_total": "counter",
    "identree_auth_failures_total": "counter",
    "identree_breakglass_escrow_total": "counter",
    "identree_oidc_exchange_duration_seconds": "histogram",
    "identree_registered_hosts": "gauge",
    "identree_ldap_sync_failures_total": "counter",
    "identree_ldap_refresh_total": "counter",
    "identree_ldap_queries_total": "counter",
    "identree_ldap_bind_failures_total": "counter",
    "identree_notifications_total": "counter",
    "identree_notification_delivery_duration_seconds": "histogram",
    "identree_audit_events_total": "counter",
    "identree_mtls_ca_expires_in_seconds": "gauge",
    "identree_mtls_cert_expires_in_seconds": "gauge",
}
UNLABELLED = {
    name
    for name, kind in CONTRACT.items()
    if kind != "histogram"
    and name
    not in {
        "identree_challenges_denied_total",
        "identree_breakglass_escrow_total",
        "identree_ldap_refresh_total",
        "identree_ldap_queries_total",
        "identree_notifications_total",
        "identree_audit_events_total",
        "identree_mtls_cert_expires_in_seconds",
    }
}


class ContractTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.metrics = Metrics(CollectorRegistry(), "dev", ("jsonlog",))

    def text(self) -> str:
        return generate_latest(self.metrics.registry).decode()

    def bounds(self, name: str) -> list[float]:
        lines = [line for line in self.text().splitlines() if line.startswith(f"{name}_bucket{{")]
        return [float(line.partition('le="')[2].partition('"')[0]) for line in lines]

    def test_types(self) -> None:
        """Every name with its type, as dashboards and alerts know them."""
        lines = [line.split() for line in self.text().splitlines() if line.startswith("# TYPE ")]
        present = {name: kind for _, _, name, kind in lines}
        self.assertEqual({name: kind for name, kind in present.items() if name in CONTRACT}, CONTRACT)

    def test_from_the_start(self) -> None:
        """What has no label is there with its zero."""
        lines = self.text().splitlines()
        self.assertEqual({name for name in UNLABELLED if f"{name} 0.0" not in lines}, set())

    def test_labels_from_the_start(self) -> None:
        """So are the label values that are known beforehand."""
        lines = self.text().splitlines()
        for sample in (
            *(
                f'identree_challenges_denied_total{{reason="{reason}"}}'
                for reason in ("oidc_error", "nonce_mismatch", "identity_mismatch", "user_rejected")
            ),
            *(f'identree_breakglass_escrow_total{{status="{status}"}}' for status in ("success", "failure")),
            *(f'identree_ldap_refresh_total{{trigger="{trigger}"}}' for trigger in ("poll", "webhook")),
            *(f'identree_ldap_queries_total{{base="{base}"}}' for base in ("people", "groups", "sudoers", "root")),
            *(
                f'identree_audit_events_total{{sink="{sink}",status="{status}"}}'
                for sink in ("_channel", "jsonlog")
                for status in ("emitted", "dropped", "failed")
            ),
        ):
            self.assertIn(f"{sample} 0.0", lines)

    def test_buckets(self) -> None:
        """The bounds of the contract."""
        endless = float("inf")
        self.assertEqual(self.bounds("identree_challenge_duration_seconds"), [5, 10, 15, 30, 45, 60, 90, 120, endless])
        self.assertEqual(self.bounds("identree_oidc_exchange_duration_seconds"), [0.1, 0.25, 0.5, 1, 2, 5, 15, endless])
        self.metrics.notification_delivery.labels("mail").observe(1)
        self.assertEqual(
            self.bounds("identree_notification_delivery_duration_seconds"),
            [0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30, endless],
        )

    def test_labels(self) -> None:
        """The label names of what has no value yet."""
        self.metrics.notifications.labels(status="sent", channel="mail").inc()
        self.metrics.mtls_cert_expires.labels(hostname="web01").set(1)
        text = self.text()
        self.assertRegex(
            text, r'identree_notifications_total\{(channel="mail",status="sent"|status="sent",channel="mail")\} 1'
        )
        self.assertIn('identree_mtls_cert_expires_in_seconds{hostname="web01"} 1.0', text)
