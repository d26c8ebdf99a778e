"""The dashboards as files that Grafana imports (spec/audit-and-metrics section 13)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.trial.unittest import SynchronousTestCase

from identree.app.metrics import Metrics
from tools import dashboards, plot_dashboards

ROOT = Path(__file__).resolve().parents[2]
SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
TITLES = {
    "identree-overview": (
        "identree Overview",
        ["identree"],
        {
            1: "Challenges Created Rate",
            2: "Approved vs Denied vs Expired",
            3: "Active Challenges",
            4: "Active Grace Sessions",
            5: "Challenge Duration (p50 / p95 / p99)",
            6: "Notifications by Status & Channel",
            7: "Notification Delivery Latency (p95)",
            8: "Auth Failures Rate",
            9: "Rate Limit Rejections",
            10: "OIDC Exchange Latency",
            11: "LDAP Sync Failures",
            12: "LDAP Queries by Base",
            13: "LDAP Bind Failures (5m)",
            14: "Registered Hosts",
            15: "Break-glass Escrow Operations",
        },
    ),
    "identree-audit-health": (
        "identree Audit & Health",
        ["identree", "audit"],
        {
            1: "Audit Events Emitted (by sink)",
            2: "Audit Events Dropped (by sink)",
            3: "Audit Events Failed (by sink)",
            4: "Total Dropped Events (all sinks)",
            5: "Total Failed Events (all sinks)",
        },
    ),
}
# Where deployed dashboards have them: x, y, width, height, by dashboard and panel.
PLACES = {
    "identree-overview": {
        100: (0, 0, 24, 1),
        1: (0, 1, 8, 8),
        2: (8, 1, 8, 8),
        3: (16, 1, 4, 4),
        4: (20, 1, 4, 4),
        5: (16, 5, 8, 8),
        200: (0, 13, 24, 1),
        6: (0, 14, 12, 8),
        7: (12, 14, 12, 8),
        300: (0, 22, 24, 1),
        8: (0, 23, 8, 8),
        9: (8, 23, 8, 8),
        10: (16, 23, 8, 8),
        400: (0, 31, 24, 1),
        11: (0, 32, 8, 8),
        12: (8, 32, 8, 8),
        13: (16, 32, 4, 4),
        14: (20, 32, 4, 4),
        500: (0, 40, 24, 1),
        15: (0, 41, 12, 8),
    },
    "identree-audit-health": {
        100: (0, 0, 24, 1),
        1: (0, 1, 8, 8),
        2: (8, 1, 8, 8),
        3: (16, 1, 8, 8),
        4: (0, 9, 8, 4),
        5: (8, 9, 8, 4),
        200: (0, 13, 24, 1),
        6: (0, 14, 12, 8),
        7: (12, 14, 12, 8),
    },
}


def files() -> dict[str, dict[str, Any]]:
    """Each dashboard by its uid, as it is imported."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "deploy" / "grafana").glob("*.json"))]
    return {dashboard["uid"]: dashboard for dashboard in found}


def known_metrics() -> set[str]:
    """Names of the registry's metrics, with those of histograms' series."""
    names = {"up"}
    for family in Metrics(CollectorRegistry(), "test", ("jsonlog",)).registry.collect():
        if family.type == "counter":
            names.add(f"{family.name}_total")
        elif family.type == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        else:
            names.add(family.name)
    return names


def used_metrics(expr: str) -> set[str]:
    """Names of metrics in an expression."""
    return set(re.findall(r"\b(?:identree|process)_[a-z0-9_]+|\bup\b", expr))


class DashboardTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.dashboards = files()

    def test_current(self) -> None:
        """The files are what the tables say."""
        for dashboard in dashboards.DASHBOARDS:
            content = (dashboards.TARGET / dashboard.file).read_text("utf-8")
            self.assertEqual(content, dashboards.text(dashboard), "run tools/dashboards.py write")

    def test_both(self) -> None:
        """There are two, with their titles, tags, and panels under the ids that operators know."""
        self.assertEqual(set(self.dashboards), set(TITLES))
        for uid, (title, tags, panels) in TITLES.items():
            dashboard = self.dashboards[uid]
            self.assertEqual((dashboard["title"], dashboard["tags"]), (title, tags))
            found = {panel["id"]: panel["title"] for panel in dashboard["panels"]}
            self.assertEqual({id: found[id] for id in panels}, panels)

    def test_places(self) -> None:
        """Known panels are where they have always been."""
        for uid, places in PLACES.items():
            grids = {panel["id"]: panel["gridPos"] for panel in self.dashboards[uid]["panels"]}
            found = {id: tuple(grids[id][side] for side in "xywh") for id in places}
            self.assertEqual(found, places)

    def test_frame(self) -> None:
        """Six hours, every 30 s, a shared crosshair, no variables, and what an import asks for."""
        for dashboard in self.dashboards.values():
            self.assertEqual(dashboard["time"], {"from": "now-6h", "to": "now"})
            self.assertEqual((dashboard["refresh"], dashboard["timezone"]), ("30s", "browser"))
            self.assertEqual(dashboard["timepicker"], {"refresh_intervals": ["10s", "30s", "1m", "5m", "15m"]})
            self.assertEqual((dashboard["schemaVersion"], dashboard["version"]), (39, 1))
            self.assertEqual((dashboard["graphTooltip"], dashboard["editable"], dashboard["id"]), (1, True, None))
            self.assertEqual((dashboard["templating"], dashboard["links"]), ({"list": []}, []))
            (asked,) = dashboard["__inputs"]
            self.assertEqual(
                (asked["name"], asked["type"], asked["pluginId"], asked["label"]),
                ("DS_PROMETHEUS", "datasource", "prometheus", "Prometheus"),
            )
            required = {(need["type"], need["id"]): need["version"] for need in dashboard["__requires"]}
            self.assertEqual(required["grafana", "grafana"], "11.0.0")
            self.assertLessEqual({("panel", "timeseries"), ("panel", "stat")}, set(required))
            (annotation,) = dashboard["annotations"]["list"]
            self.assertEqual((annotation["builtIn"], annotation["hide"]), (1, True))

    def test_ids(self) -> None:
        """Every panel, rows included, has an id of its own."""
        for dashboard in self.dashboards.values():
            ids = [panel["id"] for panel in dashboard["panels"]]
            self.assertEqual(len(ids), len(set(ids)))

    def test_rows(self) -> None:
        """Each row is open, spans the page, and the panels after it lie below it and above the next one."""
        for dashboard in self.dashboards.values():
            bottom, row = 0, None
            for panel in dashboard["panels"]:
                place = panel["gridPos"]
                if panel["type"] == "row":
                    self.assertEqual((panel["collapsed"], panel["panels"]), (False, []))
                    self.assertEqual((place["x"], place["w"], place["h"]), (0, 24, 1))
                    self.assertGreaterEqual(place["y"], bottom)
                    row = place["y"]
                else:
                    self.assertIsNotNone(row, panel["title"])
                    self.assertGreater(place["y"], row)
                    bottom = max(bottom, place["y"] + place["h"])

    def test_no_overlap(self) -> None:
        """No two panels cover the same cell, and none leaves the grid."""
        for dashboard in self.dashboards.values():
            taken: dict[tuple[int, int], str] = {}
            for panel in dashboard["panels"]:
                place = panel["gridPos"]
                self.assertLessEqual(place["x"] + place["w"], 24)
                for x in range(place["x"], place["x"] + place["w"]):
                    for y in range(place["y"], place["y"] + place["h"]):
                        self.assertNotIn((x, y), taken, panel["title"])
                        taken[x, y] = panel["title"]

    def test_source(self) -> None:
        """Every panel and query asks the data source that was chosen at the import."""
        for dashboard in self.dashboards.values():
            for panel in dashboard["panels"]:
                if panel["type"] != "row":
                    self.assertEqual(panel["datasource"], SOURCE)
                    self.assertTrue(panel["targets"])
                    for target in panel["targets"]:
                        self.assertEqual(target["datasource"], SOURCE)

    def test_looks(self) -> None:
        """Curves have their table below, numbers the last value on a coloured ground."""
        for dashboard in self.dashboards.values():
            for panel in dashboard["panels"]:
                if panel["type"] == "timeseries":
                    legend = panel["options"]["legend"]
                    self.assertEqual((legend["displayMode"], legend["placement"]), ("table", "bottom"))
                elif panel["type"] == "stat":
                    self.assertEqual(panel["options"]["colorMode"], "background")
                    self.assertEqual(panel["options"]["reduceOptions"]["calcs"], ["lastNotNull"])
                else:
                    self.assertEqual(panel["type"], "row")

    def test_known_metrics(self) -> None:
        """Every query asks for metrics that identree has."""
        known = known_metrics()
        for dashboard in self.dashboards.values():
            for panel in dashboard["panels"]:
                for target in panel.get("targets", ()):
                    used = used_metrics(target["expr"])
                    self.assertTrue(used, target["expr"])
                    self.assertLessEqual(used, known, panel["title"])


class PictureTests(SynchronousTestCase):
    def curves(self, dashboard: dict[str, Any], *values: str) -> dict[str, Any]:
        """For every query of a dashboard two series with these values, a second apart."""
        series = [
            {"metric": {"sink": name}, "values": [[100.0 + second, value] for second, value in enumerate(values)]}
            for name in ("jsonlog", "syslog")
        ]
        return {
            str(panel["id"]): {target["refId"]: series for target in panel["targets"]}
            for panel in dashboard["panels"]
            if panel["type"] != "row"
        }

    def drawn(self, dashboard: dict[str, Any], kept: dict[str, Any]) -> list[str]:
        """All texts of the picture."""
        figure = plot_dashboards.draw(dashboard, kept, 100.0, 3.0)
        return [text.get_text() for text in figure.texts]

    def test_titles(self) -> None:
        """A picture has the title of every panel and row, whatever the units and colours."""
        for dashboard in files().values():
            texts = self.drawn(dashboard, self.curves(dashboard, "0", "12.5", "100000"))
            self.assertLessEqual({panel["title"] for panel in dashboard["panels"]}, set(texts))

    def test_names(self) -> None:
        """Curves are called as the legend says, with the values of their labels."""
        dashboard = files()["identree-audit-health"]
        texts = self.drawn(dashboard, self.curves(dashboard, "1", "2"))
        self.assertLessEqual({"jsonlog", "syslog", "outstanding"}, set(texts))

    def test_without_values(self) -> None:
        """What has no value, as a quantile of nothing, is drawn as nothing."""
        for dashboard in files().values():
            self.assertIn("no data", self.drawn(dashboard, self.curves(dashboard, "NaN", "NaN")))

    def test_without_series(self) -> None:
        """A panel whose queries gave nothing is drawn empty."""
        for dashboard in files().values():
            self.assertIn(dashboard["panels"][1]["title"], self.drawn(dashboard, {}))

    def test_numbers(self) -> None:
        """Numbers are written as Grafana writes them."""
        written = {
            ("s", 0.0005): "500 µs",
            ("s", 90.0): "1.5 min",
            ("s", 691200.0): "1.14 weeks",
            ("bytes", 3 * 2.0**20): "3 MiB",
            ("percentunit", 0.805): "80.5%",
            ("short", 12_500.0): "12.5 K",
            ("ops", 0.25): "0.25 ops/s",
            ("", 7.0): "7",
        }
        for (unit, value), text in written.items():
            self.assertEqual(plot_dashboards.FORMATS[unit](value), text)
