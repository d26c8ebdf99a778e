"""Scripts for the server itself: gauges, health, retention (spec/storage sections 4 and 14)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from identree.core.challenge import RETENTION
from identree.storage.interface import Counts
from identree.storage.logins import LOGIN_SECONDS
from identree.storage.script import Script
from identree.storage.times import seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """
    How long rows are kept that nobody needs for a decision.

    :ivar revoked_nonces: a signed-out cookie lives 30 minutes at most.
    :ivar browser_sessions: no session may be older than this, or it would start anew.
    :ivar delivered_events: events that every sink has.
    :ivar events: events whether or not every sink has them, what a dead sink loses then is reported; and parked ones.
    :ivar most_events: the same by number of rows.
    :ivar deliveries: what became of notifications.
    :ivar batch: rows deleted of one table in one transaction.
    """

    challenges: timedelta = RETENTION
    revoked_nonces: timedelta = timedelta(seconds=2100)
    revoked_admin_sessions: timedelta = timedelta(seconds=2100)
    used_escrow_tokens: timedelta = timedelta(seconds=600)
    browser_sessions: timedelta = timedelta(days=30)
    cluster_messages: timedelta = timedelta(hours=1)
    delivered_events: timedelta = timedelta(hours=24)
    events: timedelta = timedelta(days=30)
    most_events: int = 1_000_000
    deliveries: timedelta = timedelta(days=30)
    batch: int = 500


_COUNTS = (
    "SELECT (SELECT COUNT(*) FROM challenges WHERE status = 'pending' AND expires_at > :now), "
    "(SELECT COUNT(*) FROM grace_sessions WHERE expiry_unix > :now)"
)
# Touches no row and writes nothing, but needs all that a write needs.
_PING = "UPDATE sink_cursors SET seq = seq WHERE instance = '' AND sink = ''"


def _delete(table: str, key: str, condition: str) -> str:
    """A bounded deletion; rows that another replica is deleting are left to it."""
    return (
        f"WITH chosen AS MATERIALIZED (SELECT {key} FROM {table} WHERE {condition} LIMIT :limit "  # noqa: S608 - constants
        "/*postgres FOR UPDATE SKIP LOCKED*/) "
        f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM chosen) RETURNING 1"
    )


def _older(table: str, key: str, column: str) -> str:
    return _delete(table, key, f"{column} < :before")


_DELETE_CHALLENGES = _delete("challenges", "id", "expires_at < :before AND status <> 'pending'")
_DELETE_LOGINS = _delete(
    "session_nonces", "nonce", "((expires_at > 0 AND expires_at <= :now) OR (expires_at = 0 AND issued_at < :before))"
)
_DELETE_GRACE = _older("grace_sessions", "username, hostname", "expiry_unix")
_DELETE_NONCES = _older("revoked_nonces", "nonce", "revoked_at")
_DELETE_ADMINS = _older("revoked_admin_sessions", "username", "revoked_at")
_DELETE_ESCROW_TOKENS = _older("used_escrow_tokens", "token_key", "first_seen")
_DELETE_SESSIONS = _older("browser_sessions", "nonce", "started_at")
_DELETE_PARKED = _older("parked_records", "instance, sink, seq", "parked_at")
_DELETE_MESSAGES = _older("cluster_messages", "id", "created_at")
_DELETE_DELIVERIES = _delete("notification_deliveries", "id", "finished_at > 0 AND finished_at < :before")


def counts(now: datetime) -> Script[Counts]:
    [(challenges, sessions)] = yield _COUNTS, {"now": seconds(now)}
    return Counts(pending_challenges=challenges, grace_sessions=sessions)


def ping() -> Script[None]:
    yield _PING, {}


def delete_old(now: datetime, retention: Retention) -> Script[int]:
    """One bounded batch of each table but the outbox."""
    limit, at = retention.batch, seconds(now)
    deleted = 0
    for sql, before in (
        (_DELETE_CHALLENGES, seconds(now - retention.challenges)),
        (_DELETE_GRACE, at),
        (_DELETE_NONCES, seconds(now - retention.revoked_nonces)),
        (_DELETE_ADMINS, seconds(now - retention.revoked_admin_sessions)),
        (_DELETE_ESCROW_TOKENS, seconds(now - retention.used_escrow_tokens)),
        (_DELETE_SESSIONS, seconds(now - retention.browser_sessions)),
        (_DELETE_PARKED, seconds(now - retention.events)),
        (_DELETE_DELIVERIES, seconds(now - retention.deliveries)),
        (_DELETE_MESSAGES, seconds(now - retention.cluster_messages)),
    ):
        deleted += len((yield sql, {"before": before, "limit": limit}))
    deleted += len((yield _DELETE_LOGINS, {"now": at, "before": at - LOGIN_SECONDS, "limit": limit}))
    return deleted
