"""
Loki as its documentation has it ("Loki HTTP API", "Accept out-of-order writes", "limits_config"): a stand-in for tests
that takes pushes of JSON and answers range queries of a selector.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from tests.e2e.httpreceiver import Asked, HttpReceiver, Told

PUSH = "/loki/api/v1/push"
QUERY_RANGE = "/loki/api/v1/query_range"
SECOND_NS = 1_000_000_000
# Defaults of Loki: max_chunk_age of 2 h halved, reject_old_samples_max_age, creation_grace_period, max_line_size,
# max_entries_limit_per_query.
BEHIND_NS = 3600 * SECOND_NS
OLD_NS = 7 * 24 * 3600 * SECOND_NS
NEW_NS = 600 * SECOND_NS
LINE_BYTES = 256 << 10
MOST_ENTRIES = 5000

_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*')

Labels = tuple[tuple[str, str], ...]


class Loki(HttpReceiver):
    """
    :ivar token: a bearer token that a proxy in front of it demands; empty: none.
    :ivar tenants: whether it is one of several tenants (``auth_enabled``).
    :ivar poison: a line that holds this text is too long; empty: none is.
    :ivar stored: per tenant and labels, the entries in the order of coming: nanoseconds and line.
    :ivar repeated: how many entries it dropped because it had them.
    :ivar now_ns: its clock.
    """

    def __init__(self, port: int = 0, *, token: str = "", tenants: bool = False) -> None:
        super().__init__(port)
        self.token = token
        self.tenants = tenants
        self.poison = ""
        self.stored: dict[tuple[str, Labels], list[tuple[int, str]]] = {}
        self._known: set[tuple[str, Labels, int, str]] = set()
        self._newest: dict[tuple[str, Labels], int] = {}
        self.repeated = 0
        self.now_ns: Callable[[], int] = time.time_ns

    @property
    def url(self) -> str:
        return self.origin

    @property
    def records(self) -> list[bytes]:
        """The lines of all streams; each stream by time, as it is read."""
        with self.lock:
            return [line.encode() for entries in self.stored.values() for _, line in sorted(entries)]

    def seqs(self) -> list[int]:
        return [json.loads(line)["seq"] for line in self.records]

    def busy(self) -> Told:
        return _said(503, "at least 2 live replicas required, could only find 1 - unhealthy instances")

    def throttled(self, retry_after: str) -> Told:
        words = (
            "Ingestion rate limit exceeded for user fake (limit: 1 bytes/sec) while attempting to ingest '100' lines"
        )
        return Told(429, words.encode() + b"\n", {"Content-Type": "text/plain", "Retry-After": retry_after})

    def take(self, asked: Asked) -> Told:
        if asked.path == "/ready":
            return _said(200, "ready")
        if asked.path not in (PUSH, QUERY_RANGE):
            return _said(404, "404 page not found")
        if asked.method != ("POST" if asked.path == PUSH else "GET"):
            return _said(405, "405 method not allowed")
        if self.token and asked.headers.get("authorization") != f"Bearer {self.token}":
            return _said(401, "Unauthorized")
        tenant = asked.headers.get("x-scope-orgid", "") if self.tenants else "fake"
        if not tenant:
            return _said(401, "no org id")
        if asked.path == QUERY_RANGE:
            return self._query(tenant, asked.query)
        return self._push(tenant, asked)

    # -- pushing ------------------------------------------------------------------------------------------------------
    def _push(self, tenant: str, asked: Asked) -> Told:
        if asked.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _said(400, "snappy: corrupt input")
        try:
            streams = json.loads(asked.body)["streams"]
            parsed = [(_labels(stream["stream"]), [_entry(value) for value in stream["values"]]) for stream in streams]
        except (ValueError, TypeError, KeyError, IndexError) as e:
            return _said(400, f"couldn't parse push request: {type(e).__name__}")
        if not parsed:
            return _said(422, "error at least one valid stream is required for ingestion")
        refusals: list[str] = []
        for labels, entries in parsed:
            if not labels:
                return _said(400, "error at least one label pair is required per stream")
            for ns, line in entries:
                why = self._entry(tenant, labels, ns, line)
                if why:
                    refusals.append(why)
        # as Loki does: what is good of a push is taken, though the answer is an error
        return _said(400, refusals[0]) if refusals else Told(204, b"", {})

    def _entry(self, tenant: str, labels: Labels, ns: int, line: str) -> str:
        stream, now = (tenant, labels), self.now_ns()
        shown = "{" + ", ".join(f'{name}="{value}"' for name, value in labels) + "}"
        if (self.poison and self.poison in line) or len(line.encode()) > LINE_BYTES:
            return f"max entry size '{LINE_BYTES}' bytes exceeded for stream '{shown}' while adding an entry"
        if ns < now - OLD_NS:
            return f"entry for stream '{shown}' has timestamp too old: {ns}, oldest acceptable timestamp is later"
        if ns > now + NEW_NS:
            return f"entry for stream '{shown}' has timestamp too new: {ns}"
        newest = self._newest.get(stream, ns)
        if ns < newest - BEHIND_NS:
            return (
                f"entry with timestamp {ns} ignored, reason: 'entry too far behind, entry timestamp is: {ns}, "
                f"oldest acceptable timestamp is: {newest - BEHIND_NS}',"
            )
        if (*stream, ns, line) in self._known:
            self.repeated += 1
            return ""
        self._known.add((*stream, ns, line))
        self._newest[stream] = max(newest, ns)
        self.stored.setdefault(stream, []).append((ns, line))
        return ""

    # -- querying -----------------------------------------------------------------------------------------------------
    def _query(self, tenant: str, query: Any) -> Told:
        try:
            wanted = _selector(query["query"])
            now = self.now_ns()
            start = _time(query["start"]) if "start" in query else now - 3600 * SECOND_NS
            end = _time(query["end"]) if "end" in query else now
            limit, direction = int(query.get("limit", 100)), query.get("direction", "backward").lower()
        except (KeyError, ValueError) as e:
            return _said(400, f"parse error at line 1, col 1: {e}")
        if limit > MOST_ENTRIES:
            return _said(400, f"max entries limit per query exceeded, limit > max_entries_limit ({limit} > 5000)")
        if direction not in ("forward", "backward") or end < start:
            return _said(400, "end timestamp must not be before or equal to start time")
        found = [
            (ns, line, labels)
            for (owner, labels), entries in self.stored.items()
            if owner == tenant and wanted.items() <= dict(labels).items()
            for ns, line in entries
            if start <= ns < end
        ]
        found.sort(reverse=direction == "backward")
        streams: dict[Labels, list[list[str]]] = {}
        for ns, line, labels in found[:limit]:
            streams.setdefault(labels, []).append([str(ns), line])
        result = [{"stream": dict(labels), "values": values} for labels, values in streams.items()]
        data = {"resultType": "streams", "result": result, "stats": {}}
        return Told(200, json.dumps({"status": "success", "data": data}).encode())


def _labels(stream: Any) -> Labels:
    if not isinstance(stream, dict):
        raise TypeError(stream)
    if not all(re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", name) and isinstance(v, str) for name, v in stream.items()):
        raise ValueError("labels")
    return tuple(sorted(stream.items()))


def _entry(value: Any) -> tuple[int, str]:
    """``[nanoseconds, line]`` with an optional object of structured metadata."""
    ns, line, *rest = value
    if not isinstance(ns, str) or not re.fullmatch("-?[0-9]{1,19}", ns) or not isinstance(line, str):
        raise ValueError("entry")
    if len(rest) > 1 or not all(isinstance(extra, dict) for extra in rest):
        raise ValueError("metadata")
    return int(ns), line


def _selector(text: str) -> dict[str, str]:
    """``{app="identree",job="identree-audit"}``."""
    text = text.strip()
    if not text.startswith("{") or not text.endswith("}"):
        raise ValueError("syntax error: unexpected IDENTIFIER, expecting {")
    found: dict[str, str] = {}
    for part in text[1:-1].split(","):
        match = _LABEL.fullmatch(part)
        if match is None:
            raise ValueError("syntax error: unexpected }, expecting string")
        found[match[1]] = json.loads(f'"{match[2]}"')
    return found


def _time(text: str) -> int:
    """Nanoseconds, seconds with a fraction, or RFC 3339."""
    if re.fullmatch("[0-9]{11,19}", text):
        return int(text)
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return int(float(text) * SECOND_NS)
    return int(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()) * SECOND_NS


def _said(status: int, text: str) -> Told:
    return Told(status, text.encode() + b"\n", {"Content-Type": "text/plain; charset=utf-8"})
