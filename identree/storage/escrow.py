"""
Scripts over escrowed break-glass passwords (spec/notifications-and-policy section 8, spec/storage section 3): which
host's password lies where, the ciphertexts of the local back end, and the tokens that were used.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from identree.core.challenge import HistoryEntry
from identree.core.escrow import MOST_USED_TOKENS
from identree.core.events import Event
from identree.core.names import normalised_hostname
from identree.storage.history import to_row
from identree.storage.interface import Ciphertext, EscrowRecord, Resealed, TokenUse
from identree.storage.script import Do, Effects, Row, Script
from identree.storage.times import instant, seconds

_RECORD = """
INSERT INTO escrowed_hosts (hostname, ts_unix, item_id, vault_id)
VALUES (:hostname, :ts_unix, :item_id, :vault_id)
ON CONFLICT (hostname) DO UPDATE
SET ts_unix = excluded.ts_unix, item_id = excluded.item_id, vault_id = excluded.vault_id
""".strip()
# Old servers kept the spelling that the host had sent, and the ciphertext is bound to it. The newest one counts; of
# two of one second the exact one.
_ONE = """
SELECT hostname, ts_unix, item_id, vault_id FROM escrowed_hosts
WHERE lower(hostname) IN (:name, :dotted)
ORDER BY ts_unix DESC, CASE WHEN hostname = :hostname THEN 0 ELSE 1 END, hostname LIMIT 1
""".strip()
_ALL = """
SELECT hostname, ts_unix, item_id, vault_id FROM escrowed_hosts WHERE hostname > :after ORDER BY hostname LIMIT :limit
""".strip()
_FORGET_RECORDS = "DELETE FROM escrowed_hosts WHERE lower(hostname) IN (:name, :dotted) RETURNING 1"
_FORGET_CIPHERTEXTS = "DELETE FROM escrow_ciphertexts WHERE lower(hostname) IN (:name, :dotted)"

_STORE = """
INSERT INTO escrow_ciphertexts (hostname, ciphertext) VALUES (:hostname, :ciphertext)
ON CONFLICT (hostname) DO UPDATE SET ciphertext = excluded.ciphertext RETURNING 1
""".strip()
_CIPHERTEXT = "SELECT ciphertext FROM escrow_ciphertexts WHERE hostname = :hostname"
_CIPHERTEXTS = """
SELECT hostname, ciphertext FROM escrow_ciphertexts WHERE hostname > :after ORDER BY hostname LIMIT :limit
""".strip()
# Only the text that was read is replaced: a host may have escrowed a newer password since.
_REPLACE = """
UPDATE escrow_ciphertexts SET ciphertext = :after WHERE hostname = :hostname AND ciphertext = :before
RETURNING ciphertext
""".strip()

_USED = "SELECT COUNT(*) FROM (SELECT 1 FROM used_escrow_tokens LIMIT :most) AS used"
_USE = """
INSERT INTO used_escrow_tokens (token_key, first_seen) VALUES (:key, :now) ON CONFLICT (token_key) DO NOTHING
RETURNING 1
""".strip()
_KNOWN = "SELECT 1 FROM used_escrow_tokens WHERE token_key = :key"
_GIVE_BACK = "DELETE FROM used_escrow_tokens WHERE token_key = :key"

# Everybody who has ever done something on the host, or may do so now, sees it in the own history
# (spec/http-api section 12.3).
_HISTORY_OF_ALL = """
INSERT INTO action_log (username, action, hostname, code, actor, reason, ts_unix)
SELECT person.username, :action, :hostname, :code,
    CASE WHEN person.username = :actor THEN '' ELSE :actor END, :reason, :ts_unix
FROM (
    SELECT username FROM action_log WHERE hostname = :hostname
    UNION SELECT username FROM grace_sessions WHERE hostname = :hostname
) AS person
WHERE person.username <> ''
""".strip()


def _spellings(hostname: str) -> dict[str, object]:
    name = normalised_hostname(hostname)
    return {"name": name, "dotted": f"{name}."}


def from_row(row: Row) -> EscrowRecord:
    return EscrowRecord(hostname=row[0], escrowed_at=instant(row[1]), item_id=row[2], vault_id=row[3])


# -- records ----------------------------------------------------------------------------------------------------------
def history_of_all(entry: HistoryEntry) -> Script[None]:
    """The entry for every user active on its host; its user name does not matter."""
    row = to_row(entry)
    del row["username"]
    yield Do(_HISTORY_OF_ALL, {**row, "actor": entry.actor})


def record(record: EscrowRecord, entry: HistoryEntry, event: Event) -> Script[None]:
    yield Do(
        _RECORD,
        {
            "hostname": record.hostname,
            "ts_unix": seconds(record.escrowed_at),
            "item_id": record.item_id,
            "vault_id": record.vault_id,
        },
    )
    yield from history_of_all(entry)
    yield Effects((event,))


def one(hostname: str) -> Script[EscrowRecord | None]:
    rows = yield _ONE, {"hostname": hostname, **_spellings(hostname)}
    return from_row(rows[0]) if rows else None


def some(after: str, limit: int) -> Script[list[EscrowRecord]]:
    rows = yield _ALL, {"after": after, "limit": limit}
    return [from_row(row) for row in rows]


def forget(hostname: str) -> Script[bool]:
    """Record and ciphertext, in every spelling. Part of the removal of a host."""
    known = yield _FORGET_RECORDS, _spellings(hostname)
    yield Do(_FORGET_CIPHERTEXTS, _spellings(hostname))
    return bool(known)


# -- ciphertexts of the local back end --------------------------------------------------------------------------------
def store_ciphertext(hostname: str, ciphertext: str) -> Script[None]:
    yield _STORE, {"hostname": hostname, "ciphertext": ciphertext}


def ciphertext(hostname: str) -> Script[str | None]:
    rows = yield _CIPHERTEXT, {"hostname": hostname}
    return rows[0][0] if rows else None


def ciphertexts(after: str, limit: int) -> Script[list[Ciphertext]]:
    rows = yield _CIPHERTEXTS, {"after": after, "limit": limit}
    return [Ciphertext(hostname=row[0], text=row[1]) for row in rows]


def replace_ciphertexts(changes: Sequence[Resealed]) -> Script[list[str]]:
    replaced = []
    for change in changes:
        rows = yield _REPLACE, {"hostname": change.hostname, "before": change.before, "after": change.after}
        if rows:
            replaced.append(change.hostname)
    return replaced


# -- tokens -----------------------------------------------------------------------------------------------------------
def use_token(key: str, now: datetime) -> Script[TokenUse]:
    [(used,)] = yield _USED, {"most": MOST_USED_TOKENS}
    if used >= MOST_USED_TOKENS:
        # who repeats a token hears that, however full it is
        return TokenUse.USED if (yield _KNOWN, {"key": key}) else TokenUse.FULL
    return TokenUse.NEW if (yield _USE, {"key": key, "now": seconds(now)}) else TokenUse.USED


def give_back_token(key: str) -> Script[None]:
    yield Do(_GIVE_BACK, {"key": key})
