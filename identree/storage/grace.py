"""Scripts over grace sessions and revocation times (spec/storage sections 3 and 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from identree.core.challenge import GraceSession, Strength
from identree.storage.history import INSERT as INSERT_HISTORY
from identree.storage.history import to_row as history_row
from identree.storage.interface import GraceChange
from identree.storage.script import Do, Effects, Owner, Row, Script
from identree.storage.times import instant, instant_or_none, seconds

_COLUMNS = "username, hostname, expiry_unix, hmac_hex, policy_name, approvals, by_admin, by_other, strength_mac"
_NAMES = [name.strip() for name in _COLUMNS.split(",")]
UPSERT = (
    f"INSERT INTO grace_sessions ({_COLUMNS}) VALUES (:{', :'.join(_NAMES)}) "  # noqa: S608 - constants
    "ON CONFLICT (username, hostname) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in _NAMES[2:])
)
# Every revocation moves the time on, also the second one within a second and one by a clock that was set back: it must
# differ from what was snapshot into challenges before.
REVOKE = (
    "INSERT INTO revoke_tokens_before (username, revoked_at) VALUES (:username, :revoked_at) "
    "ON CONFLICT (username) DO UPDATE SET revoked_at = CASE "
    "WHEN revoke_tokens_before.revoked_at < excluded.revoked_at THEN excluded.revoked_at "
    "ELSE revoke_tokens_before.revoked_at + 1 END"
)
_ONE = (
    f"SELECT {_COLUMNS} FROM grace_sessions "  # noqa: S608
    "WHERE username = :username AND hostname = :hostname"
)
_ALL = (
    f"SELECT {_COLUMNS} FROM grace_sessions WHERE expiry_unix > :now "  # noqa: S608
    "ORDER BY username, hostname LIMIT :limit"
)
_ALL_OF = (
    f"SELECT {_COLUMNS} FROM grace_sessions "  # noqa: S608
    "WHERE username = :username AND expiry_unix > :now ORDER BY username, hostname LIMIT :limit"
)
_DELETE_FORGED = (
    "DELETE FROM grace_sessions WHERE username = :username AND hostname = :hostname AND hmac_hex = :hmac_hex"
)
_DELETE = "DELETE FROM grace_sessions WHERE username = :username AND hostname = :hostname RETURNING hostname"
_DELETE_ALL_OF = "DELETE FROM grace_sessions WHERE username = :username RETURNING hostname"
_REVOKED_AT = "SELECT revoked_at FROM revoke_tokens_before WHERE username = :username"


def from_row(row: Row) -> GraceSession:
    return GraceSession(
        username=row[0],
        hostname=row[1],
        expires_at=instant(row[2]),
        mac=row[3],
        strength=Strength(policy=row[4], approvals=row[5], by_admin=bool(row[6]), by_other=bool(row[7])),
        strength_mac=row[8],
    )


def to_row(session: GraceSession) -> dict[str, object]:
    strength = session.strength
    return {
        "username": session.username,
        "hostname": session.hostname,
        "expiry_unix": seconds(session.expires_at),
        "hmac_hex": session.mac,
        "policy_name": strength.policy,
        "approvals": strength.approvals,
        "by_admin": int(strength.by_admin),
        "by_other": int(strength.by_other),
        "strength_mac": session.strength_mac,
    }


def get(username: str, hostname: str) -> Script[GraceSession | None]:
    rows = yield _ONE, {"username": username, "hostname": hostname}
    return from_row(rows[0]) if rows else None


def unexpired(username: str | None, now: datetime, limit: int) -> Script[list[GraceSession]]:
    if username is None:
        rows = yield _ALL, {"now": seconds(now), "limit": limit}
    else:
        rows = yield _ALL_OF, {"username": username, "now": seconds(now), "limit": limit}
    return [from_row(row) for row in rows]


def delete_forged(username: str, hostname: str, mac: str) -> Script[None]:
    yield Do(_DELETE_FORGED, {"username": username, "hostname": hostname, "hmac_hex": mac})


def change(username: str, hostname: str, decide: Callable[[GraceSession | None], GraceChange]) -> Script[GraceChange]:
    yield Owner(username)
    rows = yield _ONE, {"username": username, "hostname": hostname}
    result = decide(from_row(rows[0]) if rows else None)
    yield from commit(result)
    return result


def revoke(
    username: str,
    hostnames: Sequence[str] | None,
    now: datetime,
    describe: Callable[[Sequence[str]], GraceChange],
) -> Script[list[str]]:
    yield Owner(username)
    existed = yield from _delete(username, hostnames)
    yield Do(REVOKE, {"username": username, "revoked_at": seconds(now)})
    yield from commit(describe(existed if hostnames is None else list(hostnames)))
    return existed


def revocation_time(username: str) -> Script[datetime | None]:
    rows = yield _REVOKED_AT, {"username": username}
    return instant_or_none(rows[0][0]) if rows else None


def delete_all(username: str) -> Script[list[str]]:
    """Returns the host names, sorted."""
    return (yield from _delete(username, None))


def commit(result: GraceChange) -> Script[None]:
    """Write what a :class:`GraceChange` says."""
    if result.session is not None:
        yield Do(UPSERT, to_row(result.session))
    for entry in result.history:
        yield Do(INSERT_HISTORY, history_row(entry))
    if result.events or result.live:
        yield Effects(result.events, result.live)


def _delete(username: str, hostnames: Sequence[str] | None) -> Script[list[str]]:
    if hostnames is None:
        rows = yield _DELETE_ALL_OF, {"username": username}
        return sorted(hostname for (hostname,) in rows)
    existed: list[str] = []
    for hostname in hostnames:
        rows = yield _DELETE, {"username": username, "hostname": hostname}
        existed.extend(found for (found,) in rows)
    return existed
