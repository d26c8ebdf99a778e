"""Administrators who are none any more lose what their browser sessions still say (spec/ldap section 9.3)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from identree.app.directory import Served
from identree.app.journal import Journal
from identree.app.ports import Now
from identree.core.errors import StorageUnavailable
from identree.directory.snapshot import Snapshot
from identree.directory.source import Source
from identree.storage.interface import Store


def administrators(source: Source, admin_groups: Collection[str]) -> frozenset[str]:
    """Names of the people in these groups; who is disabled is no administrator."""
    members = {id for group in source.groups if group.name in admin_groups for id in group.member_ids}
    return frozenset(user.username for user in source.users if user.id in members and not user.disabled)


class ServedDirectory(Protocol):
    """What is needed of :class:`identree.app.directory.Directory`."""

    @property
    def served(self) -> Served | None: ...


class Demotions:
    """
    Looks at each new directory. The first one is only remembered: whoever left before the start has a session from
    before, which ends by itself within half an hour.

    :param admin_groups: as the settings are now.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        directory: ServedDirectory,
        store: Store,
        admin_groups: Callable[[], Collection[str]],
        now: Now,
        journal: Journal,
    ) -> None:
        self._directory = directory
        self._store = store
        self._admin_groups = admin_groups
        self._now = now
        self._journal = journal
        self._seen: tuple[Source, Collection[str]] | None = None
        self._admins: frozenset[str] | None = None

    def heard(self, snapshot: Snapshot) -> None:
        """Subscribe this; what goes wrong is logged and made good by the next look."""
        self.look()

    async def again(self) -> None:
        """To be called now and then: makes good what could not be stored. Costs nothing when there is nothing to do."""
        waiting = self.look()
        if waiting is not None:
            await waiting

    def look(self) -> Deferred[None] | None:
        """Compare what is served with what was; fires when what that means is in force. None: it means nothing."""
        served, groups = self._directory.served, self._admin_groups()
        if served is None or (self._seen is not None and self._seen[0] is served.source and self._seen[1] == groups):
            return None
        self._seen = (served.source, groups)
        before, self._admins = self._admins, administrators(served.source, groups)
        gone = sorted(before - self._admins) if before else []
        return Deferred.fromCoroutine(self._revoke(gone)) if gone else None

    async def _revoke(self, usernames: list[str]) -> None:
        try:
            await self._store.revoke_admins(usernames, self._now())
        except StorageUnavailable as problem:
            # found again by the next look
            self._admins = (self._admins or frozenset()) | frozenset(usernames)
            self._seen = None
            self._log.warn("sessions of former administrators could not be revoked: {reason}", reason=problem.reason)
            return
        except Exception:
            self._log.failure("sessions of former administrators could not be revoked")
            return
        for username in usernames:
            self._journal.info("ADMIN_SESSIONS_REVOKED", user=username, reason="left all admin groups")
