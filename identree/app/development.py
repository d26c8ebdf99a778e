"""
What exists only with ``IDENTREE_DEV_LOGIN``: state out of nothing, for screenshots and tests (spec/web-ui section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from identree.app.ports import Now
from identree.app.rules import Rules
from identree.core import tokens
from identree.core.challenge import GraceSession, HistoryEntry, Live
from identree.storage.interface import GraceChange, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """A line of history that never happened."""

    username: str
    action: str
    hostname: str
    actor: str
    minutes_ago: int


class Development:
    def __init__(self, *, store: Store, keys: tokens.Keys, rules: Callable[[], Rules], now: Now) -> None:
        self._store = store
        self._keys = keys
        self._rules = rules
        self._now = now

    async def seed_session(self, username: str, hostname: str) -> None:
        """A grace session of the configured period."""
        expires_at = self._now().replace(microsecond=0) + self._rules().grace_period
        mac = tokens.grace_mac(self._keys.grace, username, hostname, int(expires_at.timestamp()))
        session = GraceSession(username=username, hostname=hostname, expires_at=expires_at, mac=mac)
        change = GraceChange(session=session, live=(Live(event="session_changed", username=username),))
        await self._store.change_grace(username, hostname, lambda before: change)

    async def seed_history(self, seeds: Sequence[Seed]) -> None:
        now = self._now().replace(microsecond=0)
        await self._store.append_history(
            [
                HistoryEntry(
                    at=now - timedelta(minutes=seed.minutes_ago),
                    username=seed.username,
                    action=seed.action,
                    hostname=seed.hostname,
                    actor=seed.actor,
                )
                for seed in seeds
            ]
        )
