"""Records for the tests of the sinks."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from identree.core import audit
from identree.core.events import ChallengeApproved

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def sealed(count: int, *, instance: str = "a1", head: audit.Head | None = None, reason: str = "fix <a> & é") -> list:
    """A chain of that many approvals."""
    head = head or audit.Head()
    records: list[audit.Sealed] = []
    for _ in range(count):
        event = ChallengeApproved(
            at=START + timedelta(seconds=head.next_seq),
            username=f"user{head.next_seq}",
            hostname="web-01",
            code="ABCDEF-123456",
            actor="bob",
            reason=reason,
            remote_addr="10.0.0.1",
        )
        head, record = audit.seal(head, audit.fields(event), version="1.0", instance=instance)
        records.append(record)
    return records


def lines(records: Iterable[audit.Sealed]) -> bytes:
    """What a log file holds for them."""
    return b"".join(record.plain + b"\n" for record in records)
