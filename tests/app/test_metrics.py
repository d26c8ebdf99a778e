"""The metrics of the contract: names, types, labels, buckets, and what is there from the start."""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Generator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from identree.app.metrics import MOST_ANSWERS, Metrics, exposition

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


# What this server has beside the contract: name, type, and the label names in their order.
OURS = {
    "identree_audit_buffer_limit": ("gauge", ()),
    "identree_audit_checkpoint_timestamp_seconds": ("gauge", ()),
    "identree_build_info": ("gauge", ("version",)),
    "identree_database_duration_seconds": ("histogram", ("operation",)),
    "identree_database_errors_total": ("counter", ("reason",)),
    "identree_database_outstanding": ("gauge", ()),
    "identree_database_outstanding_limit": ("gauge", ()),
    "identree_event_streams": ("gauge", ()),
    "identree_event_streams_limit": ("gauge", ()),
    "identree_health_check_duration_seconds": ("histogram", ("check",)),
    "identree_held_requests": ("gauge", ()),
    "identree_held_requests_limit": ("gauge", ()),
    "identree_http_connections": ("gauge", ()),
    "identree_http_connections_limit": ("gauge", ()),
    "identree_http_held_duration_seconds": ("histogram", ("kind",)),
    "identree_http_request_duration_seconds": ("histogram", ("route", "status")),
    "identree_reactor_lag_seconds": ("histogram", ()),
    "identree_server_certificate_expires_in_seconds": ("gauge", ("listener",)),
    "identree_threads_waiting": ("gauge", ()),
    "process_cpu_seconds_total": ("counter", ()),
    "process_max_fds": ("gauge", ()),
    "process_open_fds": ("gauge", ()),
    "process_resident_memory_bytes": ("gauge", ()),
    "process_start_time_seconds": ("gauge", ()),
    "process_virtual_memory_bytes": ("gauge", ()),
}


def finished(work: Generator[None, None, bytes]) -> bytes:
    """What sliced work returns."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: bytes = stop.value
            return result


class MetricsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.metrics = Metrics(CollectorRegistry(), "dev", ("jsonlog",))

    def text(self) -> str:
        return finished(exposition(self.metrics.registry)).decode()

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


class ContractTests(MetricsTestCase):
    def bounds(self, name: str, labels: str = "") -> list[float]:
        lines = [line for line in self.text().splitlines() if line.startswith(f"{name}_bucket{{") and labels in line]
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
                f'identree_notifications_total{{channel="none",status="{status}"}}'
                for status in ("sent", "failed", "skipped")
            ),
            'identree_notification_delivery_duration_seconds_count{channel="none"}',
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
        self.assertEqual(
            self.bounds("identree_notification_delivery_duration_seconds", 'channel="none"'),
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

    def test_configured_channels(self) -> None:
        """Channels that are configured stand there with their zero, and then the one that is none does not."""
        metrics = Metrics(CollectorRegistry(), "dev", channels=("mail", "chat"))
        text = finished(exposition(metrics.registry)).decode()
        for channel in ("mail", "chat"):
            for status in ("sent", "failed", "skipped"):
                self.assertIn(f'identree_notifications_total{{channel="{channel}",status="{status}"}} 0.0\n', text)
        self.assertNotIn('"none"', text)

    def test_certificate_of_the_authority(self) -> None:
        """Without mTLS the CA's remaining life is 0, as deployed versions have it."""
        self.assertEqual(self.sample("identree_mtls_ca_expires_in_seconds"), 0)


class OwnTests(MetricsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.metrics.http_answered("/metrics", "200", 0.02)
        self.metrics.certificate_ends("https", 86400)
        self.metrics.health_checked("disk", 0.001)

    def test_names(self) -> None:
        """Every name with its type and its labels."""
        families = {family.name: family for family in text_string_to_metric_families(self.text())}
        found: dict[str, Any] = {}
        for name in OURS:
            family = families.get(name.removesuffix("_total")) or families[name]
            labels = {key for sample in family.samples for key in sample.labels if key != "le"}
            found[name] = (family.type, tuple(sorted(labels)))
        self.assertEqual(found, OURS)

    def test_from_the_start(self) -> None:
        """What has known label values has them with their zero."""
        for operation in ("read", "write"):
            self.assertEqual(self.sample("identree_database_duration_seconds_count", operation=operation), 0)
        for reason in ("locked", "read_only", "full", "unreachable", "overloaded", "error"):
            self.assertEqual(self.sample("identree_database_errors_total", reason=reason), 0)
        for kind in ("poll", "stream"):
            self.assertEqual(self.sample("identree_http_held_duration_seconds_count", kind=kind), 0)

    def test_database(self) -> None:
        """An operation that could not be done counts with its duration and its reason."""
        self.metrics.database_answered("write", 0.3, "")
        self.metrics.database_answered("write", 0.1, "locked")
        self.metrics.database_answered("read", 0.1, "a reason that nobody knows")
        self.assertEqual(self.sample("identree_database_duration_seconds_count", operation="write"), 2)
        self.assertEqual(self.sample("identree_database_duration_seconds_sum", operation="write"), 0.4)
        self.assertEqual(self.sample("identree_database_errors_total", reason="locked"), 1)
        self.assertEqual(self.sample("identree_database_errors_total", reason="error"), 1)

    def test_answers(self) -> None:
        """Requests are counted by route and status."""
        self.metrics.http_answered("/metrics", "401", 0.01)
        self.metrics.http_answered("/metrics", "200", 0.04)
        name = "identree_http_request_duration_seconds_bucket"
        bounds = {le: self.sample(name, route="/metrics", status="200", le=le) for le in ("0.01", "0.025", "0.05")}
        self.assertEqual(bounds, {"0.01": 0, "0.025": 1, "0.05": 2})
        self.assertEqual(self.sample(name, route="/metrics", status="401", le="0.01"), 1)

    def test_answers_are_bounded(self) -> None:
        """However many routes and statuses there are, they do not fill the memory of Prometheus."""
        for number in range(2 * MOST_ANSWERS):
            self.metrics.http_answered(f"/{number}", "200", 0.1)
            self.metrics.http_answered("/metrics", f"made up {number}", 0.1)
        lines = re.findall("^identree_http_request_duration_seconds_count.*", self.text(), re.MULTILINE)
        # those beyond share one route, and unknown statuses one status
        self.assertLessEqual(len(lines), MOST_ANSWERS + 2)
        self.assertEqual(sum(float(line.rpartition(" ")[2]) for line in lines), 4 * MOST_ANSWERS + 1)
        self.assertNotIn("made up", self.text())

    def test_server_certificates(self) -> None:
        """The remaining life of each listener's certificate; one without certificate has no series to alert on."""
        name = "identree_server_certificate_expires_in_seconds"
        self.assertEqual((self.sample(name, listener="https"), self.sample(name, listener="ldaps")), (86400, None))
        self.assertRaises(ValueError, self.metrics.certificate_ends, "web1.example", 1)

    def test_process(self) -> None:
        """The process is there from the start, and is looked at only when somebody asks for it."""
        before = self.sample("process_open_fds")
        assert before is not None
        with open("/dev/null"):
            self.assertEqual(self.sample("process_open_fds"), before)
            self.metrics.process.look()
            self.assertEqual(self.sample("process_open_fds"), before + 1)


class ExpositionTests(MetricsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.metrics.mtls_cert_expires.labels('a "name" with \\ and\n').set(-1.5)
        self.metrics.duration.observe(7)
        self.metrics.http_held_over("poll", 25)

    def test_same_as_the_library(self) -> None:
        """Line for line what the client library writes, but for the form of whole bounds."""
        expected = re.sub(r'le="(\d+)\.0"', r'le="\1"', generate_latest(self.metrics.registry).decode())
        self.assertEqual(self.text(), expected)

    def test_whole_bounds(self) -> None:
        """Bounds look as deployed versions write them."""
        self.assertIn('identree_challenge_duration_seconds_bucket{le="5"} 0.0\n', self.text())
        self.assertIn('identree_oidc_exchange_duration_seconds_bucket{le="0.25"} 0.0\n', self.text())

    def test_one_head(self) -> None:
        """A name is introduced once, although its samples come in pieces."""
        self.metrics.http_answered("/a", "200", 0.1)
        self.metrics.http_answered("/b", "200", 0.1)
        self.assertEqual(self.text().count("# TYPE identree_http_request_duration_seconds histogram\n"), 1)

    def test_compressed(self) -> None:
        """gzip, of the same text."""
        squeezed = finished(exposition(self.metrics.registry, compressed=True))
        self.assertEqual(gzip.decompress(squeezed), finished(exposition(self.metrics.registry)))

    def test_slices(self) -> None:
        """Many thousand lines come in pieces of a few hundred, so that the reactor gets its turns in between."""
        for number in range(1000):
            self.metrics.mtls_cert_expires.labels(f"host{number}").set(1)
            self.metrics.http_answered(f"/{number % 100}", str(200 + number // 100), 0.1)
        lines = self.text().count("\n")
        self.assertGreater(sum(1 for _ in exposition(self.metrics.registry)), lines // 200)

    def test_promtool(self) -> None:
        """Prometheus's own judge of metrics has nothing to say."""
        self.metrics.http_answered("/a", "200", 0.1)
        self.metrics.certificate_ends("ldaps", 5)
        judged = subprocess.run(
            ["promtool", "check", "metrics"],
            input=finished(exposition(self.metrics.registry)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        self.assertEqual((judged.returncode, judged.stdout), (0, b""))
