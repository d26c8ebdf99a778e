"""
Host keys of SSH servers that administrators have confirmed, and what is recorded of a job that worked
(spec/notifications-and-policy section 10).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from identree.core.challenge import HistoryEntry, Live
from identree.core.deploy import HostKey
from identree.core.events import Event
from identree.storage.history import INSERT as INSERT_HISTORY
from identree.storage.history import to_row as history_row
from identree.storage.script import Do, Driver, Effects, Row, Script
from identree.storage.times import instant, seconds

# Places; about 400 bytes each. The one that was not used for longest makes room, and has to be confirmed again.
MOST_HOST_KEYS = 20_000

_COLUMNS = "hostname, port, key_type, public_key, confirmed_by, confirmed_at, used_at"
_ONE = f"SELECT {_COLUMNS} FROM ssh_host_keys WHERE hostname = :hostname AND port = :port"  # noqa: S608
# Whoever confirmed first has decided.
_REMEMBER = """
INSERT INTO ssh_host_keys (hostname, port, key_type, public_key, confirmed_by, confirmed_at, used_at)
VALUES (:hostname, :port, :key_type, :public_key, :confirmed_by, :now, :now)
ON CONFLICT (hostname, port) DO UPDATE SET
    used_at = CASE WHEN ssh_host_keys.used_at < excluded.used_at THEN excluded.used_at ELSE ssh_host_keys.used_at END
""".strip()
_ALL = "SELECT COUNT(*) FROM ssh_host_keys"
_MAKE_ROOM = """
DELETE FROM ssh_host_keys WHERE (hostname, port) IN (
    SELECT hostname, port FROM ssh_host_keys
    WHERE NOT (hostname = :hostname AND port = :port) ORDER BY used_at, hostname, port LIMIT :surplus
)
""".strip()
_FORGET = "DELETE FROM ssh_host_keys WHERE hostname = :hostname AND port = :port RETURNING 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmedKey:
    """:ivar used_at: when it was last checked for a connection."""

    hostname: str
    port: int
    key: HostKey
    confirmed_by: str
    confirmed_at: datetime
    used_at: datetime


def _from_row(row: Row) -> ConfirmedKey:
    try:
        blob = base64.b64decode(row[3], validate=True)
    except binascii.Error:
        # somebody edited the database: no host has this key
        blob = b""
    return ConfirmedKey(
        hostname=row[0],
        port=row[1],
        key=HostKey(type=row[2], blob=blob),
        confirmed_by=row[4],
        confirmed_at=instant(row[5]),
        used_at=instant(row[6]),
    )


def _one(hostname: str, port: int) -> Script[ConfirmedKey | None]:
    rows = yield _ONE, {"hostname": hostname, "port": port}
    return _from_row(rows[0]) if rows else None


def _remember(hostname: str, port: int, key: HostKey, by: str, now: datetime) -> Script[ConfirmedKey]:
    place = {"hostname": hostname, "port": port}
    yield Do(
        _REMEMBER,
        {
            **place,
            "key_type": key.type,
            "public_key": base64.b64encode(key.blob).decode("ascii"),
            "confirmed_by": by,
            "now": seconds(now),
        },
    )
    [(count,)] = yield _ALL, {}
    if count > MOST_HOST_KEYS:
        yield Do(_MAKE_ROOM, {**place, "surplus": count - MOST_HOST_KEYS})
    [row] = yield _ONE, place
    return _from_row(row)


def _forget(hostname: str, port: int) -> Script[bool]:
    return bool((yield _FORGET, {"hostname": hostname, "port": port}))


def _record(entries: Sequence[HistoryEntry], event: Event, live: Sequence[Live]) -> Script[None]:
    for entry in entries:
        yield Do(INSERT_HISTORY, history_row(entry))
    yield Effects((event,), tuple(live))


class DeployStore:
    """
    What deploying keeps, on the database of the store. All methods raise
    :class:`~identree.core.errors.StorageUnavailable` when the database cannot do it; nothing was done then.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def host_key(self, hostname: str, port: int) -> ConfirmedKey | None:
        """:param hostname: normalised, here and below."""
        return await self._driver.read(lambda: _one(hostname, port))

    async def remember_host_key(self, hostname: str, port: int, key: HostKey, by: str, now: datetime) -> ConfirmedKey:
        """
        The host has proved to have the key. Where another one is known already, that stays.

        :returns: the one that counts.
        """
        return await self._driver.write(lambda: _remember(hostname, port, key, by, now))

    async def forget_host_key(self, hostname: str, port: int) -> bool:
        """Whether there was one to forget."""
        return await self._driver.write(lambda: _forget(hostname, port))

    async def record(self, entries: Sequence[HistoryEntry], event: Event, live: Sequence[Live]) -> None:
        """A job has worked."""
        await self._driver.write(lambda: _record(entries, event, live))
