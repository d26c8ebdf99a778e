"""The alerts of Prometheus: their rules, the tests of their rules, and the runbook of each."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry
from twisted.trial.unittest import SynchronousTestCase

from identree.app.metrics import Metrics
from tests.deploy.test_grafana import known_metrics, used_metrics

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
OPERATIONS = ROOT / "docs" / "operations.md"
TESTS = ("alerts_test.yml", "alerts_long_test.yml")
SEVERITIES = {"warning", "critical"}
# What a runbook answers, in this order.
ANSWERS = ("Means.", "First look.", "Usual causes.", "Do.", "Escalate")


def promtool(*arguments: str) -> str:
    """What it says, after it was content."""
    done = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=280
    )
    if done.returncode:
        raise AssertionError(f"promtool {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def cases() -> list[dict[str, Any]]:
    """All questions that the rules' tests ask."""
    documents = [yaml.safe_load((PROMETHEUS / name).read_text("utf-8")) for name in TESTS]
    return [case for document in documents for test in document["tests"] for case in test["alert_rule_test"]]


def runbooks() -> dict[str, str]:
    """By heading, the sections below "Alerts"."""
    _, _, rest = OPERATIONS.read_text("utf-8").partition("\n## Alerts\n")
    section = re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.split(r"^### (.+)$", section, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


def anchors(document: Path) -> set[str]:
    """Of the headings of a Markdown file, as its readers make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


class RuleTests(SynchronousTestCase):
    def test_clean(self) -> None:
        """promtool takes the rules and the example configuration."""
        promtool("check", "rules", "alerts.yml")
        promtool("check", "config", "--syntax-only", "prometheus.yml")

    def test_behaviour(self) -> None:
        """Every case of the rules' tests: when an alert fires, with which labels and words, and when it is silent."""
        said = promtool("test", "rules", *TESTS)
        self.assertEqual(said.count("SUCCESS"), len(TESTS), said)

    def test_labels(self) -> None:
        """Every alert says how bad it is, what is the matter, with the values, and where its runbook is."""
        for alert in alerts():
            self.assertEqual(set(alert["labels"]), {"severity"}, alert["alert"])
            self.assertIn(alert["labels"]["severity"], SEVERITIES)
            self.assertEqual(set(alert["annotations"]), {"summary", "description", "runbook"}, alert["alert"])
            self.assertRegex(alert["alert"], r"^Identree[A-Z][A-Za-z]+$")

    def test_once_each(self) -> None:
        """No alert has two rules of one severity."""
        pairs = [(alert["alert"], alert["labels"]["severity"]) for alert in alerts()]
        self.assertEqual(len(pairs), len(set(pairs)))

    def test_known_metrics(self) -> None:
        """Every expression asks for metrics that identree has."""
        known = known_metrics()
        for alert in alerts():
            used = used_metrics(alert["expr"])
            self.assertTrue(used, alert["alert"])
            self.assertLessEqual(used, known, alert["alert"])

    def test_bounds(self) -> None:
        """Every bound that is measured has the alert that says when it is near."""
        (near,) = [alert["expr"] for alert in alerts() if alert["alert"] == "IdentreeBoundNear"]
        families = Metrics(CollectorRegistry(), "test").registry.collect()
        # of the audit's memory there is no use to compare with: what does not fit waits in the database
        limits = {family.name for family in families if family.name.endswith("_limit")} - {
            "identree_audit_buffer_limit"
        }
        self.assertTrue(limits)
        for limit in limits:
            self.assertIn(f"{limit.removesuffix('_limit')} / {limit}", near)


class CoverageTests(SynchronousTestCase):
    def test_fires_and_stays_silent(self) -> None:
        """Each alert, in each of its severities, has a case in which it fires and one in which it is silent."""
        fires = {
            (case["alertname"], expected["exp_labels"]["severity"])
            for case in cases()
            for expected in case["exp_alerts"]
        }
        silent = {case["alertname"] for case in cases() if not case["exp_alerts"]}
        self.assertEqual(fires, {(alert["alert"], alert["labels"]["severity"]) for alert in alerts()})
        self.assertEqual(silent, {alert["alert"] for alert in alerts()})


class RunbookTests(SynchronousTestCase):
    def test_every_alert(self) -> None:
        """The annotation of each alert leads to a section under its own name, and each section has an alert."""
        for alert in alerts():
            self.assertEqual(alert["annotations"]["runbook"], f"docs/operations.md#{alert['alert'].lower()}")
        self.assertEqual(set(runbooks()), {alert["alert"] for alert in alerts()})

    def test_answers(self) -> None:
        """Each section answers the same questions in the same order."""
        for name, section in runbooks().items():
            places = [section.find(f"**{answer}**") for answer in ANSWERS]
            self.assertNotIn(-1, places, name)
            self.assertEqual(places, sorted(places), name)

    def test_links(self) -> None:
        """Links within the document and to files lead somewhere."""
        for target in re.findall(r"\]\(([^)]+)\)", OPERATIONS.read_text("utf-8")):
            path, _, anchor = target.partition("#")
            place = OPERATIONS.parent / path if path else OPERATIONS
            self.assertTrue(place.exists(), target)
            if anchor:
                self.assertIn(anchor, anchors(place), target)


class ReferenceTests(SynchronousTestCase):
    def test_metrics(self) -> None:
        """The reference has every metric of the registry with its type and labels, and no other."""
        documented: dict[str, tuple[str, set[str]]] = {}
        row = re.compile(r"^\| (`[a-z0-9_`, ]+`) \| (counter|gauge|histogram) \|([^|]*)\|", re.MULTILINE)
        for names, kind, labels in row.findall(OPERATIONS.read_text("utf-8")):
            for name in re.findall(r"`(\w+)`", names):
                self.assertNotIn(name, documented)
                documented[name] = (kind, set(re.findall(r"`(\w+)`", labels)))
        metrics = Metrics(CollectorRegistry(), "test", ("jsonlog",))
        metrics.http_answered("/", "200", 0.1)
        registered = {}
        for family in metrics.registry.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels if label != "le"}
            kind, known = registered.get(name, (family.type, set()))
            registered[name] = (kind, known | labels)
        self.assertEqual(set(documented), set(registered))
        for name, (kind, labels) in registered.items():
            self.assertEqual(documented[name][0], kind, name)
            # without a first value, nobody knows the labels
            if labels:
                self.assertEqual(documented[name][1], labels, name)
