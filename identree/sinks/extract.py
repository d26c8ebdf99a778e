"""
A span of time cut out of audit logs: each record once, chain after chain, in the order of their numbers.

Records come in any order, from files and from the database, and a span may hold more of them than memory does. So they
are sorted by SQLite in a private temporary database, which spills to the disk (``SQLITE_TMPDIR``, else ``TMPDIR``) and
is gone with the process.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import datetime, timedelta

from identree.core import audit
from identree.core.audit import Link, Sealed
from identree.sinks.exports import sealed_of

# Pages that stay in memory.
CACHE_KIBIBYTES = 32 << 10

_TABLE = """
CREATE TABLE records (chain BLOB, place BLOB, seq BLOB, hash BLOB, record BLOB, PRIMARY KEY (chain, place))
WITHOUT ROWID
""".strip()
_INSERT = "INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_HASH = "SELECT hash FROM records WHERE chain = ? AND place = ?"
_ALL = "SELECT chain, seq, hash, record FROM records ORDER BY chain, place"


class Extract:
    """
    Everything is shown to it twice: first to be looked at, then to be kept; so it learns which numbers the span has,
    and takes what lies between them even where a clock was set, or a record sealed a moment after a later one.
    Otherwise what it gives would not be a chain.

    Records of deployed versions without an identity begin anew at every start. Of them it takes those with a timestamp
    in the span, by time.

    :param begin: the first instant; None: the beginning.
    :param end: the first instant behind the span; None: there is none.
    :param instance: only this chain; empty: all.
    :ivar differing: the first chain and number under which two different records stand.
    :ivar gaps: chain, and first and last number, of what is missing between the records given, the first few of them.
    """

    MOST_GAPS = 20

    def __init__(self, begin: datetime | None, end: datetime | None, instance: str = "") -> None:
        self._begin = _whole_second(begin) if begin is not None else ""
        self._end = _whole_second(end) if end is not None else ""
        self._instance = instance
        self._spans: dict[str, tuple[int, int]] = {}
        self.differing: tuple[str, int] | None = None
        self.gaps: list[tuple[str, int, int]] = []
        self.count = 0
        # an empty name is a database on the disk that nobody else can open
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KIBIBYTES}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute(_TABLE)
        self._database.execute("BEGIN")

    def look(self, link: Link) -> None:
        """Learn that there is such a record."""
        if link.instance and self._inside(link):
            low, high = self._spans.get(link.instance, (link.seq, link.seq))
            self._spans[link.instance] = min(low, link.seq), max(high, link.seq)

    def keep(self, link: Link, raw: bytes) -> None:
        """
        Take the record if it belongs to the span.

        :param raw: its P-form or C-form.
        :raise sqlite3.Error: the disk is full.
        """
        seq, digest = link.seq.to_bytes(8, "big"), bytes.fromhex(link.hash)
        if link.instance:
            low, high = self._spans.get(link.instance, (0, -1))
            if not low <= link.seq <= high:
                return
            place = seq
        elif self._inside(link):
            place = link.timestamp.encode() + seq + digest
        else:
            return
        key = (link.instance.encode(), place)
        inserted = self._database.execute(_INSERT, (*key, seq, digest, raw)).rowcount
        if not inserted and self.differing is None:
            [(known,)] = self._database.execute(_HASH, key)
            if known != digest:
                self.differing = link.instance, link.seq

    def spans(self) -> dict[str, tuple[int, int]]:
        """First and last number of each chain, as far as it has been looked at."""
        return dict(self._spans)

    def records(self) -> Iterator[Sealed]:
        """What was kept; counts them, and notes the gaps on the way."""
        self.gaps, self.count = [], 0
        last: tuple[str, int] | None = None
        for chain, seq_bytes, digest, raw in self._database.execute(_ALL):
            instance, seq = chain.decode(), int.from_bytes(seq_bytes, "big")
            missing = last is not None and instance and last[0] == instance and last[1] + 1 != seq
            if missing and last is not None and len(self.gaps) < self.MOST_GAPS:
                self.gaps.append((instance, last[1] + 1, seq - 1))
            last = instance, seq
            self.count += 1
            link = Link(instance=instance, seq=seq, prev_hash="", timestamp="", hash=digest.hex())
            yield sealed_of(raw, link)

    def close(self) -> None:
        """Give the disk back."""
        self._database.close()

    def _inside(self, link: Link) -> bool:
        if self._instance and link.instance != self._instance:
            return False
        # all of one form, in UTC: their order as text is their order in time
        return self._begin <= link.timestamp and (not self._end or link.timestamp < self._end)


def _whole_second(at: datetime) -> str:
    """Timestamps have whole seconds: what is not before 12:00:00.5 is not before 12:00:01."""
    return audit.timestamp(at if not at.microsecond else at.replace(microsecond=0) + timedelta(seconds=1))
