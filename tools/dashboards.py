"""
The Grafana dashboards in ``deploy/grafana``, from the tables below (spec/audit-and-metrics section 13).

    dashboards.py write    write both files
    dashboards.py check    say which file is not what the tables say; exit 1 if any is

Operators know panels by their ids and places: those stay as they are, new panels are added behind them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "deploy" / "grafana"

SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
# Height, width: a third and half of a line, and numbers.
THIRD, HALF = (8, 8), (8, 12)
SMALL, WIDE = (4, 4), (4, 8)

# From the first value on: "green" up to the next one.
Steps = tuple[tuple[str, float | None], ...]
PLAIN: Steps = (("green", None),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """:ivar color: of the series whose legend begins with the text before ``{{``; empty: whichever is next."""

    expr: str
    legend: str
    color: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """
    :ivar at: x and y in the grid, which has 24 columns.
    :ivar size: height and width.
    :ivar look: ``line``, ``bars`` (stacked), ``number``, or ``area`` (a number with its graph behind it).
    :ivar colors: by the beginning of a series' name, for series that one query gives.
    """

    id: int
    title: str
    about: str
    at: tuple[int, int]
    size: tuple[int, int]
    queries: tuple[Query, ...]
    look: str = "line"
    unit: str = ""
    color: str = ""
    colors: tuple[tuple[str, str], ...] = ()
    steps: Steps = PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    id: int
    title: str
    y: int
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """:ivar kinds: of panels that Grafana must know."""

    file: str
    uid: str
    title: str
    about: str
    tags: tuple[str, ...]
    rows: tuple[Row, ...]
    kinds: tuple[str, ...] = field(default=("stat", "timeseries"))


def quantiles(metric: str, by: str = "", which: tuple[float, ...] = (0.5, 0.95, 0.99)) -> tuple[Query, ...]:
    """:param by: empty: each series by itself, or the ``sum by`` that the buckets are added up with."""
    colors = {0.5: "green", 0.95: "orange", 0.99: "red"}
    rate = f"rate({metric}_bucket[5m])"
    rate = f"sum by ({by}) ({rate})" if by else rate
    return tuple(Query(expr=f"histogram_quantile({q}, {rate})", legend=f"p{q * 100:g}", color=colors[q]) for q in which)


def audit_events(status: str) -> tuple[Query, ...]:
    return (Query(expr=f'rate(identree_audit_events_total{{status="{status}"}}[5m])', legend="{{sink}}"),)


def lost_events(status: str) -> tuple[Query, ...]:
    expr = f'sum(increase(identree_audit_events_total{{status="{status}"}}[1h]))'
    return (Query(expr=expr, legend=f"{status} (1h)"),)


OVERVIEW = Dashboard(
    file="identree-overview.json",
    uid="identree-overview",
    title="identree Overview",
    about="Sudo requests, notifications, sign-ins, the LDAP directory and break-glass escrow.",
    tags=("identree",),
    # the last one is not used: importers that compare requirements expect it
    kinds=("stat", "timeseries", "gauge"),
    rows=(
        Row(
            id=100,
            title="Challenge Flow",
            y=0,
            panels=(
                Panel(
                    id=1,
                    title="Challenges Created Rate",
                    about="Sudo requests per second, those that a grace session approves at once included.",
                    at=(0, 1),
                    size=THIRD,
                    unit="ops",
                    queries=(Query(expr="rate(identree_challenges_created_total[5m])", legend="created"),),
                ),
                Panel(
                    id=2,
                    title="Approved vs Denied vs Expired",
                    about="How requests end. Denied with another reason than user_rejected is a sign-in that failed.",
                    at=(8, 1),
                    size=THIRD,
                    unit="ops",
                    queries=(
                        Query(
                            expr="rate(identree_challenges_approved_total[5m])",
                            legend="approved",
                            color="green",
                        ),
                        Query(
                            expr="rate(identree_challenges_auto_approved_total[5m])",
                            legend="auto-approved",
                            color="super-light-green",
                        ),
                        Query(
                            expr="rate(identree_challenges_denied_total[5m])",
                            legend="denied ({{reason}})",
                            color="red",
                        ),
                        Query(
                            expr="rate(identree_challenges_expired_total[5m])",
                            legend="expired",
                            color="orange",
                        ),
                    ),
                ),
                Panel(
                    id=3,
                    title="Active Challenges",
                    about="Requests that wait for somebody now.",
                    at=(16, 1),
                    size=SMALL,
                    look="area",
                    steps=(("green", None), ("yellow", 10), ("red", 50)),
                    queries=(Query(expr="identree_active_challenges", legend="active"),),
                ),
                Panel(
                    id=4,
                    title="Active Grace Sessions",
                    about="Approvals that still open further sudo without asking.",
                    at=(20, 1),
                    size=SMALL,
                    look="area",
                    steps=(("green", None), ("yellow", 50), ("orange", 200)),
                    queries=(Query(expr="identree_grace_sessions_active", legend="grace sessions"),),
                ),
                Panel(
                    id=5,
                    title="Challenge Duration (p50 / p95 / p99)",
                    about="From sudo to the decision. Expired requests are not in it; those approved at once count 0.",
                    at=(16, 5),
                    size=THIRD,
                    unit="s",
                    queries=quantiles("identree_challenge_duration_seconds"),
                ),
            ),
        ),
        Row(
            id=200,
            title="Notifications",
            y=13,
            panels=(
                Panel(
                    id=6,
                    title="Notifications by Status & Channel",
                    about="Deliveries per second; skipped: too many were running already.",
                    at=(0, 14),
                    size=HALF,
                    look="bars",
                    unit="ops",
                    colors=(("sent", "green"), ("failed", "red"), ("skipped", "yellow")),
                    queries=(
                        Query(
                            expr="rate(identree_notifications_total[5m])",
                            legend="{{status}} / {{channel}}",
                        ),
                    ),
                ),
                Panel(
                    id=7,
                    title="Notification Delivery Latency (p95)",
                    about="One delivery with its retries.",
                    at=(12, 14),
                    size=HALF,
                    unit="s",
                    queries=tuple(
                        Query(
                            expr=f"histogram_quantile({q},"
                            " rate(identree_notification_delivery_duration_seconds_bucket[5m]))",
                            legend=f"p{q * 100:g} {{{{channel}}}}",
                        )
                        for q in (0.95, 0.5)
                    ),
                ),
            ),
        ),
        Row(
            id=300,
            title="Authentication",
            y=22,
            panels=(
                Panel(
                    id=8,
                    title="Auth Failures Rate",
                    about="Requests of hosts with a wrong or unknown secret.",
                    at=(0, 23),
                    size=THIRD,
                    unit="ops",
                    color="red",
                    queries=(Query(expr="rate(identree_auth_failures_total[5m])", legend="auth failures"),),
                ),
                Panel(
                    id=9,
                    title="Rate Limit Rejections",
                    about="Requests refused because too many of one person, or of all, are waiting.",
                    at=(8, 23),
                    size=THIRD,
                    unit="ops",
                    color="orange",
                    queries=(Query(expr="rate(identree_rate_limit_rejections_total[5m])", legend="rate limited"),),
                ),
                Panel(
                    id=10,
                    title="OIDC Exchange Latency",
                    about="What the identity provider takes for the last step of a sign-in.",
                    at=(16, 23),
                    size=THIRD,
                    unit="s",
                    queries=quantiles("identree_oidc_exchange_duration_seconds"),
                ),
            ),
        ),
        Row(
            id=400,
            title="LDAP",
            y=31,
            panels=(
                Panel(
                    id=11,
                    title="LDAP Sync Failures",
                    about="Reads of the directory's source that came to nothing; the last good directory is served on.",
                    at=(0, 32),
                    size=THIRD,
                    unit="ops",
                    color="red",
                    queries=(Query(expr="rate(identree_ldap_sync_failures_total[5m])", legend="sync failures"),),
                ),
                Panel(
                    id=12,
                    title="LDAP Queries by Base",
                    about="Searches per second.",
                    at=(8, 32),
                    size=THIRD,
                    look="bars",
                    unit="ops",
                    queries=(Query(expr="rate(identree_ldap_queries_total[5m])", legend="{{base}}"),),
                ),
                Panel(
                    id=13,
                    title="LDAP Bind Failures (5m)",
                    about="Wrong passwords and unknown names within five minutes.",
                    at=(16, 32),
                    size=SMALL,
                    look="area",
                    steps=(("green", None), ("red", 1)),
                    queries=(Query(expr="increase(identree_ldap_bind_failures_total[5m])", legend="bind failures"),),
                ),
                Panel(
                    id=14,
                    title="Registered Hosts",
                    about="Hosts in the registry.",
                    at=(20, 32),
                    size=SMALL,
                    look="area",
                    steps=(("blue", None), ("green", 1)),
                    queries=(Query(expr="identree_registered_hosts", legend="hosts"),),
                ),
            ),
        ),
        Row(
            id=500,
            title="Break-glass",
            y=40,
            panels=(
                Panel(
                    id=15,
                    title="Break-glass Escrow Operations",
                    about="Passwords handed over for safe keeping, and the attempts that failed.",
                    at=(0, 41),
                    size=HALF,
                    look="bars",
                    unit="ops",
                    colors=(("success", "green"), ("failure", "red")),
                    queries=(Query(expr="rate(identree_breakglass_escrow_total[5m])", legend="{{status}}"),),
                ),
            ),
        ),
    ),
)

AUDIT = Dashboard(
    file="identree-audit-health.json",
    uid="identree-audit-health",
    title="identree Audit & Health",
    about="Whether every audit record arrives, and how close the server is to its bounds.",
    tags=("identree", "audit"),
    rows=(
        Row(
            id=100,
            title="Audit Pipeline",
            y=0,
            panels=(
                Panel(
                    id=1,
                    title="Audit Events Emitted (by sink)",
                    about="Records that a sink has written, or that its receiver has taken.",
                    at=(0, 1),
                    size=THIRD,
                    unit="ops",
                    queries=audit_events("emitted"),
                ),
                Panel(
                    id=2,
                    title="Audit Events Dropped (by sink)",
                    about="Records given up because a sink was behind for longer than retention lasts.",
                    at=(8, 1),
                    size=THIRD,
                    unit="ops",
                    color="orange",
                    queries=audit_events("dropped"),
                ),
                Panel(
                    id=3,
                    title="Audit Events Failed (by sink)",
                    about="Attempts that came to nothing; the records are sent again.",
                    at=(16, 1),
                    size=THIRD,
                    unit="ops",
                    color="red",
                    queries=audit_events("failed"),
                ),
                Panel(
                    id=4,
                    title="Total Dropped Events (all sinks)",
                    about="Within an hour. Anything but 0 is a hole in what a receiver has.",
                    at=(0, 9),
                    size=WIDE,
                    look="number",
                    steps=(("green", None), ("red", 1)),
                    queries=lost_events("dropped"),
                ),
                Panel(
                    id=5,
                    title="Total Failed Events (all sinks)",
                    about="Within an hour.",
                    at=(8, 9),
                    size=WIDE,
                    look="number",
                    steps=(("green", None), ("red", 1)),
                    queries=lost_events("failed"),
                ),
            ),
        ),
        Row(
            id=200,
            title="Database",
            y=13,
            panels=(
                Panel(
                    id=6,
                    title="Database Operations Outstanding",
                    about="Begun or waiting, beside the bound past which requests are refused.",
                    at=(0, 14),
                    size=HALF,
                    unit="short",
                    queries=(
                        Query(expr="identree_database_outstanding", legend="outstanding"),
                        Query(expr="identree_database_outstanding_limit", legend="limit", color="red"),
                    ),
                ),
                Panel(
                    id=7,
                    title="Database Latency (p50 / p95 / p99)",
                    about="From asking to the answer, waiting for a turn included.",
                    at=(12, 14),
                    size=HALF,
                    unit="s",
                    queries=quantiles("identree_database_duration_seconds", "le"),
                ),
            ),
        ),
        Row(
            id=300,
            title="Sink Lag",
            y=22,
            panels=(
                Panel(
                    id=8,
                    title="Records Waiting (by sink)",
                    about="Records that the sink has not been sent. They wait in the database.",
                    at=(0, 23),
                    size=THIRD,
                    unit="short",
                    queries=(Query(expr="identree_audit_sink_lag_records", legend="{{sink}}"),),
                ),
                Panel(
                    id=9,
                    title="Age of the Oldest Waiting Record (by sink)",
                    about="How far behind the receiver is. Past retention, records are given up.",
                    at=(8, 23),
                    size=THIRD,
                    unit="s",
                    queries=(Query(expr="identree_audit_sink_lag_seconds", legend="{{sink}}"),),
                ),
                Panel(
                    id=10,
                    title="Time Since the Last Success (by sink)",
                    about="Since the receiver last took a record. It grows while nothing happens, too.",
                    at=(16, 23),
                    size=THIRD,
                    unit="s",
                    queries=(
                        Query(
                            expr="time() - (identree_audit_sink_last_success_timestamp_seconds > 0)",
                            legend="{{sink}}",
                        ),
                    ),
                ),
                Panel(
                    id=11,
                    title="Parked Records (1h)",
                    about="Records that a receiver will not take, set aside within an hour.",
                    at=(0, 31),
                    size=WIDE,
                    look="number",
                    steps=(("green", None), ("red", 1)),
                    queries=(Query(expr="sum(increase(identree_audit_parked_total[1h]))", legend="parked (1h)"),),
                ),
                Panel(
                    id=12,
                    title="Age of the Last Signed Checkpoint",
                    about="Due every IDENTREE_AUDIT_CHECKPOINT_INTERVAL (1 h); once a day while nothing happens.",
                    at=(8, 31),
                    size=WIDE,
                    look="number",
                    unit="s",
                    steps=(("green", None), ("yellow", 9000), ("red", 93600)),
                    queries=(
                        Query(
                            expr="time() - (identree_audit_checkpoint_timestamp_seconds > 0)",
                            legend="checkpoint",
                        ),
                    ),
                ),
                Panel(
                    id=13,
                    title="Sinks More Than a Minute Behind",
                    about="0 when every receiver has everything.",
                    at=(16, 31),
                    size=WIDE,
                    look="number",
                    steps=(("green", None), ("red", 1)),
                    queries=(
                        Query(
                            expr="count(identree_audit_sink_lag_seconds > 60) or vector(0)",
                            legend="sinks behind",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            id=400,
            title="Event Loop and Bounds",
            y=35,
            panels=(
                Panel(
                    id=14,
                    title="Event Loop Lag (p50 / p99)",
                    about="How late a timer runs. Everything waits for the one event loop.",
                    at=(0, 36),
                    size=THIRD,
                    unit="s",
                    queries=quantiles("identree_reactor_lag_seconds", which=(0.5, 0.99)),
                ),
                Panel(
                    id=15,
                    title="Use of Bounds",
                    about="What there is beside what there may be. At 100 % the next one is refused.",
                    at=(8, 36),
                    size=THIRD,
                    unit="percentunit",
                    queries=(
                        Query(expr="identree_held_requests / identree_held_requests_limit", legend="waiting hosts"),
                        Query(expr="identree_event_streams / identree_event_streams_limit", legend="live pages"),
                        Query(
                            expr="identree_http_connections / identree_http_connections_limit",
                            legend="HTTP connections",
                        ),
                        Query(
                            expr="identree_ldap_connections / identree_ldap_connections_limit",
                            legend="LDAP connections",
                        ),
                        Query(
                            expr="identree_database_outstanding / identree_database_outstanding_limit",
                            legend="database",
                        ),
                        Query(expr="process_open_fds / process_max_fds", legend="open files"),
                    ),
                ),
                Panel(
                    id=16,
                    title="Waiting Hosts, Live Pages, Connections",
                    about="Held requests of hosts, open live-update streams, connections, work waiting for a thread.",
                    at=(16, 36),
                    size=THIRD,
                    unit="short",
                    queries=(
                        Query(expr="identree_held_requests", legend="waiting hosts"),
                        Query(expr="identree_event_streams", legend="live pages"),
                        Query(expr="identree_http_connections", legend="HTTP connections"),
                        Query(expr="identree_ldap_connections", legend="LDAP connections"),
                        Query(expr="identree_threads_waiting", legend="waiting for a thread"),
                    ),
                ),
            ),
        ),
        Row(
            id=500,
            title="Certificates and Directory",
            y=44,
            panels=(
                Panel(
                    id=17,
                    title="Certificates Expire In",
                    about="The host CA, the first host's certificate, and what the listeners show.",
                    at=(0, 45),
                    size=THIRD,
                    look="number",
                    unit="s",
                    steps=(("red", None), ("yellow", 604800), ("green", 2592000)),
                    queries=(
                        Query(expr="min(identree_mtls_ca_expires_in_seconds != 0)", legend="host CA"),
                        Query(expr="min(identree_mtls_cert_expires_in_seconds)", legend="first host"),
                        Query(
                            expr="min by (listener) (identree_server_certificate_expires_in_seconds)",
                            legend="{{listener}}",
                        ),
                    ),
                ),
                Panel(
                    id=18,
                    title="Directory Age",
                    about="Since the source last confirmed the directory that is served.",
                    at=(8, 45),
                    size=THIRD,
                    unit="s",
                    queries=(Query(expr="identree_directory_age_seconds", legend="age"),),
                ),
                Panel(
                    id=19,
                    title="Directory Entries",
                    about="What is served, and what is withheld because something is wrong with it.",
                    at=(16, 45),
                    size=THIRD,
                    unit="short",
                    queries=(
                        Query(expr="identree_directory_entries", legend="{{kind}}"),
                        Query(expr="identree_directory_withheld", legend="withheld {{kind}}"),
                    ),
                ),
            ),
        ),
        Row(
            id=600,
            title="HTTP and Process",
            y=53,
            panels=(
                Panel(
                    id=20,
                    title="HTTP Answers by Status",
                    about="Per second; 503: the database is away, 500: a bug, gone: the client hung up first.",
                    at=(0, 54),
                    size=HALF,
                    look="bars",
                    unit="ops",
                    colors=(("2", "green"), ("3", "blue"), ("4", "orange"), ("5", "red"), ("gone", "purple")),
                    queries=(
                        Query(
                            expr="sum by (status) (rate(identree_http_request_duration_seconds_count[5m]))",
                            legend="{{status}}",
                        ),
                    ),
                ),
                Panel(
                    id=21,
                    title="HTTP Latency by Route (p99)",
                    about="Without polls of hosts that are held on purpose, and without live pages.",
                    at=(12, 54),
                    size=HALF,
                    unit="s",
                    queries=(
                        Query(
                            expr="histogram_quantile(0.99,"
                            " sum by (le, route) (rate(identree_http_request_duration_seconds_bucket[5m])))",
                            legend="{{route}}",
                        ),
                    ),
                ),
                Panel(
                    id=22,
                    title="Database Errors (by reason)",
                    about="Operations that failed; whoever asked got 503.",
                    at=(0, 62),
                    size=HALF,
                    unit="ops",
                    color="red",
                    queries=(Query(expr="rate(identree_database_errors_total[5m])", legend="{{reason}}"),),
                ),
                Panel(
                    id=23,
                    title="Resident Memory",
                    about="Of the server's process.",
                    at=(12, 62),
                    size=HALF,
                    unit="bytes",
                    queries=(Query(expr='process_resident_memory_bytes{job="identree"}', legend="{{instance}}"),),
                ),
            ),
        ),
    ),
)

DASHBOARDS = (OVERVIEW, AUDIT)


# -- as Grafana wants it ----------------------------------------------------------------------------------------------
def _color(name: str) -> dict[str, Any]:
    return {"mode": "fixed", "fixedColor": name}


def _override(matcher: str, options: str, color: str) -> dict[str, Any]:
    return {
        "matcher": {"id": matcher, "options": options},
        "properties": [{"id": "color", "value": _color(color)}],
    }


def _overrides(panel: Panel) -> list[dict[str, Any]]:
    """Colours of series by name, exactly where the name is fixed and by its beginning where a label ends it."""
    overrides = []
    for query in panel.queries:
        if query.color:
            fixed, label, _ = query.legend.partition("{{")
            pattern = "/^" + fixed.replace("(", r"\(") + "/"
            overrides.append(_override("byRegexp" if label else "byName", pattern if label else fixed, query.color))
    overrides += [_override("byRegexp", f"/^{start}/", color) for start, color in panel.colors]
    return overrides


def _thresholds(steps: Steps) -> dict[str, Any]:
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}


def _panel(panel: Panel) -> dict[str, Any]:
    stat = panel.look in ("number", "area")
    defaults: dict[str, Any] = {
        "color": {"mode": "thresholds"}
        if stat
        else _color(panel.color)
        if panel.color
        else {"mode": "palette-classic"},
        "mappings": [],
        "thresholds": _thresholds(panel.steps),
    }
    if panel.unit:
        defaults["unit"] = panel.unit
    if stat:
        options: dict[str, Any] = {
            "colorMode": "background",
            "graphMode": "area" if panel.look == "area" else "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
        }
    else:
        bars = panel.look == "bars"
        defaults["min"] = 0
        defaults["custom"] = {
            "axisPlacement": "auto",
            "drawStyle": "bars" if bars else "line",
            "fillOpacity": 80 if bars else 10,
            "lineInterpolation": "linear",
            "lineWidth": 1 if bars else 2,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": "normal" if bars else "none"},
            "thresholdsStyle": {"mode": "off"},
        }
        options = {
            "legend": {
                "calcs": ["mean", "lastNotNull", "max"],
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    height, width = panel.size
    return {
        "id": panel.id,
        "type": "stat" if stat else "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {"h": height, "w": width, "x": panel.at[0], "y": panel.at[1]},
        "fieldConfig": {"defaults": defaults, "overrides": _overrides(panel)},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "editorMode": "code",
                "expr": query.expr,
                "legendFormat": query.legend,
                "range": True,
            }
            for number, query in enumerate(panel.queries)
        ],
    }


def _row(row: Row) -> dict[str, Any]:
    """An open row: what follows it, up to the next one, folds with it."""
    return {
        "id": row.id,
        "type": "row",
        "title": row.title,
        "collapsed": False,
        "gridPos": {"h": 1, "w": 24, "x": 0, "y": row.y},
        "panels": [],
    }


def model(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana's import reads it."""
    names = {"stat": "Stat", "timeseries": "Time series", "gauge": "Gauge"}
    panels: list[dict[str, Any]] = []
    for row in dashboard.rows:
        panels += [_row(row), *map(_panel, row.panels)]
    return {
        "__inputs": [
            {
                "name": "DS_PROMETHEUS",
                "label": "Prometheus",
                "description": "",
                "type": "datasource",
                "pluginId": "prometheus",
                "pluginName": "Prometheus",
            }
        ],
        "__elements": {},
        "__requires": [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": "11.0.0"},
            {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
            *({"type": "panel", "id": kind, "name": names[kind], "version": ""} for kind in dashboard.kinds),
        ],
        "annotations": {
            "list": [
                {
                    "builtIn": 1,
                    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
                    "enable": True,
                    "hide": True,
                    "iconColor": "rgba(0, 211, 255, 1)",
                    "name": "Annotations & Alerts",
                    "type": "dashboard",
                }
            ]
        },
        "description": dashboard.about,
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [],
        "panels": panels,
        "refresh": "30s",
        "schemaVersion": 39,
        "tags": list(dashboard.tags),
        "templating": {"list": []},
        "time": {"from": "now-6h", "to": "now"},
        "timepicker": {"refresh_intervals": ["10s", "30s", "1m", "5m", "15m"]},
        "timezone": "browser",
        "title": dashboard.title,
        "uid": dashboard.uid,
        "version": 1,
        "weekStart": "",
    }


def text(dashboard: Dashboard) -> str:
    """The content of its file."""
    return json.dumps(model(dashboard), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    if arguments == ["write"]:
        TARGET.mkdir(parents=True, exist_ok=True)
        for dashboard in DASHBOARDS:
            (TARGET / dashboard.file).write_text(text(dashboard), encoding="utf-8")
        return 0
    if arguments == ["check"]:
        stale = []
        for dashboard in DASHBOARDS:
            path = TARGET / dashboard.file
            if not path.exists() or path.read_text("utf-8") != text(dashboard):
                stale.append(f"{path.relative_to(ROOT)}: not what the tables say; run tools/dashboards.py write")
        print("\n".join(stale) or "both dashboards are what the tables say")
        return 1 if stale else 0
    print((__doc__ or "").strip(), file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
