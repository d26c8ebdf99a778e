"""
Scripts over hosts: heartbeats, rotation requests, uses of break-glass passwords, which hosts there are, and the removal
of one (spec/storage sections 3 and 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from identree.core.challenge import HistoryEntry, Live
from identree.core.events import Event
from identree.core.names import normalised_hostname
from identree.storage import certificates, escrow, registry
from identree.storage.history import INSERT as INSERT_HISTORY
from identree.storage.history import to_row as history_row
from identree.storage.interface import Agent, Beat, KnownHost, Rotation
from identree.storage.script import Do, Effects, Owner, Row, Script
from identree.storage.times import instant, instant_or_none, seconds

# Heartbeats that are kept; whoever has the shared secret can name as many hosts as he likes.
MOST_AGENTS = 20_000
# Where all places are taken, a host that was silent for so long makes room for a new one.
FORGOTTEN_AFTER = timedelta(days=30)

# -- heartbeats -------------------------------------------------------------------------------------------------------
# An old agent may leave fields out, which must not erase what a newer one has told; clocks of replicas differ.
_SEEN = """
UPDATE agents SET
    version = CASE WHEN :version = '' THEN version ELSE :version END,
    os_info = CASE WHEN :os_info = '' THEN os_info ELSE :os_info END,
    ip = :ip,
    last_seen = CASE WHEN last_seen < :now THEN :now ELSE last_seen END
WHERE hostname = :hostname RETURNING 1
""".strip()
_AGENTS = "SELECT COUNT(*) FROM (SELECT 1 FROM agents LIMIT :most) AS known"
_FORGET_SILENT = """
DELETE FROM agents WHERE hostname IN (
    SELECT hostname FROM agents WHERE last_seen < :before ORDER BY last_seen, hostname LIMIT 1
) RETURNING 1
""".strip()
_NEW = """
INSERT INTO agents (hostname, version, os_info, ip, first_seen, last_seen)
VALUES (:hostname, :version, :os_info, :ip, :now, :now)
ON CONFLICT (hostname) DO UPDATE SET ip = excluded.ip, last_seen = excluded.last_seen
""".strip()
_DUE = """
SELECT (SELECT rotated_at FROM rotate_breakglass_before WHERE hostname = :hostname),
    (SELECT ts_unix FROM escrowed_hosts WHERE hostname = :hostname)
""".strip()
_SOME_AGENTS = """
SELECT hostname, version, os_info, ip, first_seen, last_seen FROM agents
WHERE hostname > :after ORDER BY hostname LIMIT :limit
""".strip()

# -- rotation ---------------------------------------------------------------------------------------------------------
# Never back: a request by a clock that was set back would else undo the one before.
_ROTATE = """
INSERT INTO rotate_breakglass_before (hostname, rotated_at) VALUES (:hostname, :at)
ON CONFLICT (hostname) DO UPDATE SET rotated_at = CASE
    WHEN rotate_breakglass_before.rotated_at < excluded.rotated_at THEN excluded.rotated_at
    ELSE rotate_breakglass_before.rotated_at END
""".strip()
_ROTATIONS = """
SELECT hostname, rotated_at FROM rotate_breakglass_before WHERE hostname > :after ORDER BY hostname LIMIT :limit
""".strip()

# -- history ----------------------------------------------------------------------------------------------------------
# Everybody active on the host (spec/http-api section 12.3), and whoever did it.
_HISTORY_OF_ALL_AND_ACTOR = """
INSERT INTO action_log (username, action, hostname, code, actor, reason, ts_unix)
SELECT person.username, :action, :hostname, :code,
    CASE WHEN person.username = :actor THEN '' ELSE :actor END, :reason, :ts_unix
FROM (
    SELECT username FROM action_log WHERE hostname = :hostname
    UNION SELECT username FROM grace_sessions WHERE hostname = :hostname
    UNION SELECT CAST(:actor AS TEXT)
) AS person
WHERE person.username <> ''
""".strip()
_USE_KNOWN = """
SELECT 1 FROM action_log
WHERE hostname = :hostname AND username = :username AND action = :action AND reason = :reason
    AND (ts_unix = :ts_unix OR :reason <> '')
LIMIT 1
""".strip()

# -- which hosts there are --------------------------------------------------------------------------------------------
# From one name to the next by the index, as the history may have millions of entries. In these actions the column has
# another name than a host's (spec/storage section 3). An entry before the removal says nothing about now.
_KNOWN = """
WITH RECURSIVE named (hostname, number) AS (
    SELECT (SELECT MIN(hostname) FROM action_log WHERE hostname > :after), 1
    UNION ALL
    SELECT (SELECT MIN(entry.hostname) FROM action_log AS entry WHERE entry.hostname > named.hostname), number + 1
    FROM named WHERE named.hostname IS NOT NULL AND number < :limit
), removed (hostname, id) AS (
    SELECT hostname, MAX(id) FROM action_log WHERE action = 'removed_host' GROUP BY hostname
)
SELECT named.hostname, CASE WHEN EXISTS (
    SELECT 1 FROM action_log AS entry
    WHERE entry.hostname = named.hostname AND entry.id > COALESCE(removed.id, 0)
        AND entry.action NOT IN ('removed_host', 'claims_updated', 'sudo_rule_modified', 'config_changed')
) THEN 1 ELSE 0 END
FROM named LEFT JOIN removed ON removed.hostname = named.hostname
WHERE named.hostname IS NOT NULL ORDER BY named.hostname
""".strip()
_SESSIONS = """
SELECT hostname, COUNT(*) FROM grace_sessions WHERE hostname > :after AND expiry_unix > :now
GROUP BY hostname ORDER BY hostname LIMIT :limit
""".strip()

# -- removal ----------------------------------------------------------------------------------------------------------
# Old servers kept the spelling that was sent.
_REMOVE_SESSIONS = "DELETE FROM grace_sessions WHERE lower(hostname) IN (:name, :dotted) RETURNING username"
_REMOVE_ROTATION = "DELETE FROM rotate_breakglass_before WHERE lower(hostname) IN (:name, :dotted)"
_REMOVE_AGENT = "DELETE FROM agents WHERE lower(hostname) IN (:name, :dotted)"


def _agent(row: Row) -> Agent:
    return Agent(
        hostname=row[0],
        version=row[1],
        os_info=row[2],
        address=row[3],
        first_seen=instant(row[4]),
        last_seen=instant(row[5]),
    )


def beat(agent: Agent) -> Script[Beat]:
    row = {
        "hostname": agent.hostname,
        "version": agent.version,
        "os_info": agent.os_info,
        "ip": agent.address,
        "now": seconds(agent.last_seen),
    }
    if not (yield _SEEN, row):
        [(known,)] = yield _AGENTS, {"most": MOST_AGENTS}
        if known >= MOST_AGENTS:
            before = seconds(agent.last_seen - FORGOTTEN_AFTER)
            if not (yield _FORGET_SILENT, {"before": before}):
                return Beat(accepted=False)
        yield Do(_NEW, row)
    [(rotated_at, escrowed_at)] = yield _DUE, {"hostname": agent.hostname}
    return Beat(accepted=True, rotated_at=instant_or_none(rotated_at), escrowed_at=instant_or_none(escrowed_at))


def agents(after: str, limit: int) -> Script[list[Agent]]:
    rows = yield _SOME_AGENTS, {"after": after, "limit": limit}
    return [_agent(row) for row in rows]


def rotate(
    hostnames: Sequence[str],
    at: datetime,
    history: Sequence[HistoryEntry],
    events: Sequence[Event],
    live: Sequence[Live],
) -> Script[None]:
    for hostname in hostnames:
        yield Do(_ROTATE, {"hostname": hostname, "at": seconds(at)})
    for entry in history:
        yield Do(INSERT_HISTORY, history_row(entry))
    yield Effects(tuple(events), tuple(live))


def rotations(after: str, limit: int) -> Script[list[Rotation]]:
    rows = yield _ROTATIONS, {"after": after, "limit": limit}
    return [Rotation(hostname=row[0], requested_at=instant(row[1])) for row in rows]


def reveal(
    entry: HistoryEntry, event: Event, rotate_at: datetime | None, live: Sequence[Live], *, outside: bool
) -> Script[None]:
    yield Do(_HISTORY_OF_ALL_AND_ACTOR, _everybody(entry))
    if rotate_at is not None:
        yield Do(_ROTATE, {"hostname": entry.hostname, "at": seconds(rotate_at)})
    if outside:
        yield from registry.tell(event)
    yield Effects(() if outside else (event,), tuple(live))


def use(entry: HistoryEntry, event: Event, live: Sequence[Live]) -> Script[bool]:
    # a host that sends a report twice must not be told of twice, also when it does so at the same time
    yield Owner(entry.username)
    if (yield _USE_KNOWN, {**_without(history_row(entry), "code", "actor")}):
        return False
    yield Do(_HISTORY_OF_ALL_AND_ACTOR, _everybody(entry))
    yield Effects((event,), tuple(live))
    return True


def known(after: str, limit: int) -> Script[list[KnownHost]]:
    rows = yield _KNOWN, {"after": after, "limit": limit}
    return [KnownHost(hostname=row[0], present=bool(row[1])) for row in rows]


def sessions(after: str, now: datetime, limit: int) -> Script[dict[str, int]]:
    rows = yield _SESSIONS, {"after": after, "now": seconds(now), "limit": limit}
    return {row[0]: row[1] for row in rows}


def remove(entry: HistoryEntry, event: Event, live: Sequence[Live]) -> Script[None]:
    name = normalised_hostname(entry.hostname)
    spellings = {"name": name, "dotted": f"{name}."}
    # first, as it orders all changes of the registry
    yield from registry.forget(name)
    owners = yield _REMOVE_SESSIONS, spellings
    yield from escrow.forget(name)
    yield Do(_REMOVE_ROTATION, spellings)
    yield Do(_REMOVE_AGENT, spellings)
    yield from certificates.forget(name)
    yield Do(INSERT_HISTORY, history_row(entry))
    ended = tuple(Live(event="session_changed", username=owner) for owner in sorted({owner for (owner,) in owners}))
    yield Effects((event,), (*live, *ended))


def _everybody(entry: HistoryEntry) -> dict[str, object]:
    return {**_without(history_row(entry), "username"), "actor": entry.actor}


def _without(row: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in names}
