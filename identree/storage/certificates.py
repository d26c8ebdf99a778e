"""Scripts over the certificates of hosts (spec/ldap section 7)."""

from __future__ import annotations

from datetime import timedelta

from identree.core.events import Event
from identree.storage.interface import HostCertificate
from identree.storage.script import Do, Effects, Row, Script
from identree.storage.times import instant, seconds

# A certificate is remembered so long after its end: its host is reported as one that needs a new one.
REMEMBERED = timedelta(days=90)
# So many of the older ones are forgotten with each new one.
FORGOTTEN_AT_ONCE = 10

# The condition decides between two that are provisioned at once.
_RECORD = """
INSERT INTO host_certificates (hostname, serial, issued_at, expires_at)
VALUES (:hostname, :serial, :issued_at, :expires_at)
ON CONFLICT (hostname) DO UPDATE
SET serial = excluded.serial, issued_at = excluded.issued_at, expires_at = excluded.expires_at
WHERE :force = 1 OR host_certificates.expires_at <= :issued_at
RETURNING 1
""".strip()
_ONE = "SELECT hostname, serial, issued_at, expires_at FROM host_certificates WHERE hostname = :hostname"
_SOONEST = (
    "SELECT hostname, serial, issued_at, expires_at FROM host_certificates ORDER BY expires_at, hostname LIMIT :limit"
)
_FORGET = "DELETE FROM host_certificates WHERE hostname = :hostname RETURNING 1"
_FORGET_OLD = """
DELETE FROM host_certificates WHERE hostname IN (
    SELECT hostname FROM host_certificates WHERE expires_at < :before ORDER BY expires_at LIMIT :limit
)
""".strip()


def from_row(row: Row) -> HostCertificate:
    return HostCertificate(hostname=row[0], serial=row[1], issued_at=instant(row[2]), expires_at=instant(row[3]))


def record(certificate: HostCertificate, event: Event, *, force: bool) -> Script[bool]:
    rows = yield (
        _RECORD,
        {
            "hostname": certificate.hostname,
            "serial": certificate.serial,
            "issued_at": seconds(certificate.issued_at),
            "expires_at": seconds(certificate.expires_at),
            "force": int(force),
        },
    )
    if not rows:
        return False
    before = seconds(certificate.issued_at - REMEMBERED)
    yield Do(_FORGET_OLD, {"before": before, "limit": FORGOTTEN_AT_ONCE})
    yield Effects((event,))
    return True


def one(hostname: str) -> Script[HostCertificate | None]:
    rows = yield _ONE, {"hostname": hostname}
    return from_row(rows[0]) if rows else None


def soonest(limit: int) -> Script[list[HostCertificate]]:
    rows = yield _SOONEST, {"limit": limit}
    return [from_row(row) for row in rows]


def forget(hostname: str) -> Script[bool]:
    return bool((yield _FORGET, {"hostname": hostname}))
