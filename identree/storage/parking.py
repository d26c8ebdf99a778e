"""Audit records that a sink will never take as they are, set aside so that those behind them go on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from identree.core import audit
from identree.core.audit import Sealed
from identree.storage.interface import Parked
from identree.storage.script import Do, Script
from identree.storage.times import instant, seconds

# Of one sink; beyond it the oldest go.
MOST_PARKED = 10_000
LONGEST_REASON_CHARACTERS = 500

_PARK = """
INSERT INTO parked_records (instance, sink, seq, record, hash, reason, parked_at)
VALUES (:instance, :sink, :seq, :record, :hash, :reason, :parked_at)
ON CONFLICT (instance, sink, seq) DO UPDATE SET reason = excluded.reason
""".strip()
_FORGET_EXCESS = """
DELETE FROM parked_records WHERE instance = :instance AND sink = :sink AND seq < (
    SELECT MIN(seq) FROM (
        SELECT seq FROM parked_records WHERE instance = :instance AND sink = :sink ORDER BY seq DESC LIMIT :most
    ) AS kept
)
""".strip()
_PARKED = """
SELECT seq, record, hash FROM parked_records WHERE instance = :instance AND sink = :sink ORDER BY seq LIMIT :limit
""".strip()
_ALL = """
SELECT instance, sink, seq, record, hash, reason, parked_at FROM parked_records
WHERE (instance, sink, seq) > (:instance, :sink, :seq) ORDER BY instance, sink, seq LIMIT :limit
""".strip()
_UNPARK = "DELETE FROM parked_records WHERE instance = :instance AND sink = :sink AND seq = :seq"


def _sealed(instance: str, seq: int, record: str, digest: str) -> Sealed:
    plain, canonical = record.encode(), audit.canonical(record).encode()
    return Sealed(instance=instance, seq=seq, plain=plain, canonical=canonical, hash=digest)


def park(sink: str, records: Sequence[Sealed], reason: str, now: datetime) -> Script[None]:
    for record in records:
        yield Do(
            _PARK,
            {
                "instance": record.instance,
                "sink": sink,
                "seq": record.seq,
                "record": record.plain.decode(),
                "hash": record.hash,
                "reason": reason[:LONGEST_REASON_CHARACTERS],
                "parked_at": seconds(now),
            },
        )
    for instance in {record.instance for record in records}:
        yield Do(_FORGET_EXCESS, {"instance": instance, "sink": sink, "most": MOST_PARKED})


def parked(instance: str, sink: str, limit: int) -> Script[list[Sealed]]:
    """The oldest first."""
    rows = yield _PARKED, {"instance": instance, "sink": sink, "limit": limit}
    return [_sealed(instance, *row) for row in rows]


def everything(after: tuple[str, str, int], limit: int) -> Script[list[Parked]]:
    """Of all chains and sinks, behind that chain, sink and number."""
    instance, sink, seq = after
    rows = yield _ALL, {"instance": instance, "sink": sink, "seq": seq, "limit": limit}
    return [
        Parked(sink=row[1], record=_sealed(row[0], *row[2:5]), reason=row[5], parked_at=instant(row[6])) for row in rows
    ]


def unpark(instance: str, sink: str, seqs: Sequence[int]) -> Script[None]:
    for seq in seqs:
        yield Do(_UNPARK, {"instance": instance, "sink": sink, "seq": seq})
