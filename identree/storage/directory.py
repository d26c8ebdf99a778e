"""
Scripts over POSIX ids and the published directory.

A publication is one conditional update, whatever the size of the directory: everything large is written before, in
small transactions, as pieces that are named by their content. A process that dies in between leaves pieces that nobody
names and ids that belong to whom they were given; the directory is still the one before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from identree.storage.interface import (
    MOST_IDS,
    MOST_PIECES,
    Conflict,
    DirectoryState,
    PosixCounter,
    PosixId,
)
from identree.storage.script import Do, Effects, Script
from identree.storage.times import instant, instant_or_none, seconds

# What a publisher has written and not yet named, or a replica has still to read.
PIECES_KEPT = timedelta(hours=1)
# Pieces looked at and dropped in one transaction.
PIECES_BATCH = 200

# What replicas tell each other (channel identree_cluster); the server's bus knows it by the same name.
PUBLISHED = "directory_published"

_COUNTER = "SELECT next_number, revision FROM posix_counters WHERE kind = :kind"
_IDS = (
    "SELECT source_id, number, revision FROM posix_ids "
    "WHERE kind = :kind AND (revision, number) > (:revision, :number) ORDER BY revision, number LIMIT :limit"
)
_FIRST_COUNTER = (
    "INSERT INTO posix_counters (kind, next_number, revision) VALUES (:kind, :next_number, 1) "
    "ON CONFLICT (kind) DO NOTHING RETURNING revision"
)
# Takes the row's lock, so that of several replicas one after the other looks at the revision.
_MOVE_COUNTER = (
    "UPDATE posix_counters SET revision = revision + 1, "
    "next_number = CASE WHEN next_number < :next_number THEN :next_number ELSE next_number END "
    "WHERE kind = :kind AND revision = :seen RETURNING revision"
)
_INSERT_ID = "INSERT INTO posix_ids (kind, source_id, number, revision) VALUES (:kind, :source_id, :number, :revision)"

_STATE = (
    "SELECT version, usn, manifest, fetched_at, published_at, people_count, group_count, refusal "
    "FROM directory_state WHERE name = 'default'"
)
_FIRST_STATE = (
    "INSERT INTO directory_state "
    "(name, version, usn, manifest, fetched_at, published_at, people_count, group_count, refusal) VALUES "
    "('default', :version, :usn, :manifest, :fetched_at, :published_at, :people_count, :group_count, :refusal) "
    "ON CONFLICT (name) DO NOTHING RETURNING version"
)
_PUBLISH = (
    "UPDATE directory_state SET version = :version, usn = :usn, manifest = :manifest, fetched_at = :fetched_at, "
    "published_at = :published_at, people_count = :people_count, group_count = :group_count, refusal = :refusal "
    "WHERE name = 'default' AND version = :seen AND usn <= :usn RETURNING version"
)
_CONFIRM = (
    "UPDATE directory_state SET refusal = '', "
    "fetched_at = CASE WHEN fetched_at < :fetched_at THEN :fetched_at ELSE fetched_at END "
    "WHERE name = 'default' AND version = :version RETURNING version"
)
# an instant to come is a stepped clock's
_CLAIM = (
    "UPDATE directory_state SET asked_at = :now "
    "WHERE name = 'default' AND (asked_at <= :before OR asked_at > :now) RETURNING version"
)
_REFUSE = "UPDATE directory_state SET refusal = :refusal WHERE name = 'default' AND version = :version"
_PIECE = "SELECT content FROM directory_pieces WHERE name = :name"
_SAVE_PIECE = (
    "INSERT INTO directory_pieces (name, content, written_at) VALUES (:name, :content, :written_at) "
    "ON CONFLICT (name) DO UPDATE SET written_at = excluded.written_at"
)
_VERSION = "SELECT version FROM directory_state WHERE name = 'default' /*postgres FOR SHARE*/"
_OLD_PIECES = (
    "SELECT name FROM directory_pieces WHERE written_at < :before AND name > :after ORDER BY name LIMIT :limit"
)
# The age again: somebody may have wanted it since.
_DROP_PIECE = "DELETE FROM directory_pieces WHERE name = :name AND written_at < :before"


# -- POSIX ids --------------------------------------------------------------------------------------------------------
def counter(kind: str) -> Script[PosixCounter | None]:
    rows = yield _COUNTER, {"kind": kind}
    return PosixCounter(next_number=rows[0][0], revision=rows[0][1]) if rows else None


def ids(kind: str, after: tuple[int, int], limit: int) -> Script[list[PosixId]]:
    revision, number = after
    rows = yield _IDS, {"kind": kind, "revision": revision, "number": number, "limit": limit}
    return [PosixId(source_id=row[0], number=row[1], revision=row[2]) for row in rows]


def add_ids(kind: str, new: Sequence[tuple[str, int]], seen: int, next_number: int) -> Script[int]:
    """:raise Conflict: the counter has moved."""
    if len(new) > MOST_IDS:
        raise ValueError(f"{len(new)} ids in one transaction; at most {MOST_IDS}")
    if seen == 0:
        rows = yield _FIRST_COUNTER, {"kind": kind, "next_number": next_number}
    else:
        rows = yield _MOVE_COUNTER, {"kind": kind, "next_number": next_number, "seen": seen}
    if not rows:
        raise Conflict(kind)
    revision = int(rows[0][0])
    for source_id, number in new:
        yield Do(_INSERT_ID, {"kind": kind, "source_id": source_id, "number": number, "revision": revision})
    return revision


# -- the directory ----------------------------------------------------------------------------------------------------
def state() -> Script[DirectoryState | None]:
    rows = yield _STATE, {}
    if not rows:
        return None
    version, usn, manifest, fetched_at, published_at, people, groups, refusal = rows[0]
    return DirectoryState(
        version=version,
        usn=usn,
        manifest=manifest,
        fetched_at=instant_or_none(fetched_at),
        published_at=instant(published_at),
        people=people,
        groups=groups,
        refusal=refusal,
    )


def pieces(names: Sequence[str]) -> Script[dict[str, str]]:
    _bounded(names)
    found: dict[str, str] = {}
    for name in names:
        rows = yield _PIECE, {"name": name}
        if rows:
            found[name] = rows[0][0]
    return found


def save_pieces(new: Mapping[str, str], now: datetime) -> Script[None]:
    _bounded(new)
    for name, content in new.items():
        yield Do(_SAVE_PIECE, {"name": name, "content": content, "written_at": seconds(now)})


def publish(new: DirectoryState, seen: int) -> Script[None]:
    """:raise Conflict: another version was published, or a greater change number was shown."""
    row: dict[str, object] = {
        "version": new.version,
        "usn": new.usn,
        "manifest": new.manifest,
        "fetched_at": seconds(new.fetched_at),
        "published_at": seconds(new.published_at),
        "people_count": new.people,
        "group_count": new.groups,
        "refusal": new.refusal,
    }
    if seen == 0:
        rows = yield _FIRST_STATE, row
    else:
        rows = yield _PUBLISH, {**row, "seen": seen}
    if not rows:
        raise Conflict(f"version {seen}")
    yield Effects(cluster=({"type": PUBLISHED, "version": new.version},))


def confirm(version: int, fetched_at: datetime) -> Script[None]:
    """:raise Conflict: another version was published."""
    rows = yield _CONFIRM, {"version": version, "fetched_at": seconds(fetched_at)}
    if not rows:
        raise Conflict(f"version {version}")


def claim(now: datetime, since: datetime) -> Script[bool]:
    rows = yield _CLAIM, {"now": seconds(now), "before": seconds(since)}
    return bool(rows)


def refuse(version: int, refusal: str) -> Script[None]:
    yield Do(_REFUSE, {"version": version, "refusal": refusal})


def drop_pieces(keep: Sequence[str], version: int, now: datetime) -> Script[int]:
    rows = yield _VERSION, {}
    if not rows or rows[0][0] != version:
        return 0
    kept = frozenset(keep)
    before = seconds(now - PIECES_KEPT)
    dropped, after = 0, ""
    while dropped < PIECES_BATCH:
        old = yield _OLD_PIECES, {"before": before, "after": after, "limit": PIECES_BATCH}
        for (name,) in old:
            after = name
            if name not in kept:
                yield Do(_DROP_PIECE, {"name": name, "before": before})
                dropped += 1
        if len(old) < PIECES_BATCH:
            break
    return dropped


def _bounded(names: Sequence[str] | Mapping[str, str]) -> None:
    if len(names) > MOST_PIECES:
        raise ValueError(f"{len(names)} pieces in one transaction; at most {MOST_PIECES}")
