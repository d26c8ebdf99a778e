"""Scripts over the history that people see (spec/storage section 3, ``action_log``)."""

from __future__ import annotations

from collections.abc import Sequence

from identree.core.challenge import HistoryEntry
from identree.storage.script import Do, Script
from identree.storage.times import instant, seconds

INSERT = (
    "INSERT INTO action_log (username, action, hostname, code, actor, reason, ts_unix) "
    "VALUES (:username, :action, :hostname, :code, :actor, :reason, :ts_unix)"
)
_COLUMNS = "username, action, hostname, code, actor, reason, ts_unix"
_NEWEST = f"SELECT {_COLUMNS} FROM action_log ORDER BY ts_unix DESC, id DESC LIMIT :limit"  # noqa: S608
_NEWEST_OF = (
    f"SELECT {_COLUMNS} FROM action_log WHERE username = :username "  # noqa: S608
    "ORDER BY ts_unix DESC, id DESC LIMIT :limit"
)


def to_row(entry: HistoryEntry) -> dict[str, object]:
    return {
        "username": entry.username,
        "action": entry.action,
        "hostname": entry.hostname,
        "code": entry.code,
        "actor": "" if entry.actor == entry.username else entry.actor,
        "reason": entry.reason,
        "ts_unix": seconds(entry.at),
    }


def append(entries: Sequence[HistoryEntry]) -> Script[None]:
    for entry in entries:
        yield Do(INSERT, to_row(entry))


def newest(username: str | None, limit: int) -> Script[list[HistoryEntry]]:
    if username is None:
        rows = yield _NEWEST, {"limit": limit}
    else:
        rows = yield _NEWEST_OF, {"username": username, "limit": limit}
    return [
        HistoryEntry(
            username=row[0],
            action=row[1],
            hostname=row[2],
            code=row[3],
            actor=row[4],
            reason=row[5],
            at=instant(row[6]),
        )
        for row in rows
    ]
