"""Scripts over the saved sets of approval policies (design section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from identree.core.challenge import HistoryEntry, Live
from identree.core.events import Event
from identree.storage.history import INSERT as INSERT_HISTORY
from identree.storage.history import to_row as history_row
from identree.storage.interface import MOST_POLICY_VERSIONS, Conflict, PolicyVersion
from identree.storage.registry import tell
from identree.storage.script import Do, Effects, Row, Script
from identree.storage.times import instant, seconds

POLICIES_CHANGED = "policies_changed"

_COLUMNS = "version, document, author, note, saved_at"
_NEWEST = f"SELECT {_COLUMNS} FROM policy_versions ORDER BY version DESC LIMIT 1"  # noqa: S608
_ONE = f"SELECT {_COLUMNS} FROM policy_versions WHERE version = :version"  # noqa: S608
_PAGE = f"SELECT {_COLUMNS} FROM policy_versions WHERE version < :before ORDER BY version DESC LIMIT :limit"  # noqa: S608
# Of two that follow the same version the primary key lets one in; the condition refuses whoever missed one.
_SAVE = """
INSERT INTO policy_versions (version, document, author, note, saved_at)
SELECT :version, :document, :author, :note, :saved_at
WHERE (SELECT COALESCE(MAX(version), 0) FROM policy_versions) = :seen
ON CONFLICT (version) DO NOTHING RETURNING version
""".strip()
_PRUNE = "DELETE FROM policy_versions WHERE version <= :oldest"


def from_row(row: Row) -> PolicyVersion:
    return PolicyVersion(version=row[0], document=row[1], author=row[2], note=row[3], at=instant(row[4]))


def get(version: int | None) -> Script[PolicyVersion | None]:
    if version is None:
        rows = yield _NEWEST, {}
    else:
        rows = yield _ONE, {"version": version}
    return from_row(rows[0]) if rows else None


def page(before: int | None, limit: int) -> Script[list[PolicyVersion]]:
    rows = yield _PAGE, {"before": 2**62 if before is None else before, "limit": limit}
    return [from_row(row) for row in rows]


def save(
    document: str,
    *,
    seen: int,
    author: str,
    note: str,
    now: datetime,
    events: Sequence[Event],
    history: Sequence[HistoryEntry],
    outside: bool,
) -> Script[PolicyVersion]:
    """:raise Conflict: somebody else has saved since."""
    version = seen + 1
    row = {
        "version": version,
        "document": document,
        "author": author,
        "note": note,
        "saved_at": seconds(now),
        "seen": seen,
    }
    if not (yield _SAVE, row):
        raise Conflict(f"version {seen}")
    yield Do(_PRUNE, {"oldest": version - MOST_POLICY_VERSIONS})
    for entry in history:
        yield Do(INSERT_HISTORY, history_row(entry))
    if outside:
        for event in events:
            yield from tell(event)
    yield Effects(() if outside else tuple(events), (Live(event=POLICIES_CHANGED, username=""),))
    return from_row((version, document, author, note, seconds(now)))
