"""Instants as the database keeps them: whole unix seconds, 0 for none."""

from __future__ import annotations

from datetime import UTC, datetime


def seconds(at: datetime | None) -> int:
    """Truncated towards the past."""
    return 0 if at is None else int(at.timestamp())


def instant(value: int) -> datetime:
    return datetime.fromtimestamp(value, UTC)


def instant_or_none(value: int | None) -> datetime | None:
    return datetime.fromtimestamp(value, UTC) if value else None
