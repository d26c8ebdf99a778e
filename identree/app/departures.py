"""
People whose account is disabled, or who are gone from the directory, lose their sudo sessions with the next directory
(spec/http-api section 12.2).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from identree.app.demotions import ServedDirectory
from identree.app.journal import Journal
from identree.app.ports import Monotonic, Now
from identree.app.slices import sliced
from identree.core.challenge import UNKNOWN_HOST, HistoryEntry, Live
from identree.core.errors import StorageUnavailable
from identree.core.events import SessionRevoked
from identree.directory.snapshot import Snapshot
from identree.directory.source import Source
from identree.storage.interface import GraceChange, Store

# Sessions that one look goes through at most.
MOST_SESSIONS = 10_000
# People that are gone through in one step.
STEP = 1000


class Departures:
    """
    Looks at each new directory, the first one too: sessions outlive a restart. In bridge mode there are no people to
    look at, and nothing is done.
    """

    _log = Logger(namespace="identree")

    def __init__(
        self,
        *,
        directory: ServedDirectory,
        store: Store,
        clock: IReactorTime,
        now: Now,
        monotonic: Monotonic,
        journal: Journal,
    ) -> None:
        self._directory = directory
        self._store = store
        self._clock = clock
        self._now = now
        self._monotonic = monotonic
        self._journal = journal
        self._done: Source | None = None
        self._working = False

    def heard(self, snapshot: Snapshot) -> None:
        """Subscribe this; what goes wrong is logged and made good by the next look."""
        Deferred.fromCoroutine(self.look())

    async def look(self) -> int:
        """
        To be called now and then: makes good what could not be stored. Returns how many people lost theirs.
        """
        if self._working:
            return 0
        self._working, count = True, 0
        try:
            # another one may come meanwhile
            while (source := self._unseen()) is not None:
                count += await self._revoke(source)
                self._done = source
        except StorageUnavailable as problem:
            self._log.warn("sudo sessions of people who left could not be ended: {reason}", reason=problem.reason)
        except Exception:
            self._log.failure("sudo sessions of people who left could not be ended")
        finally:
            self._working = False
        return count

    def _unseen(self) -> Source | None:
        served = self._directory.served
        source = served.source if served is not None else None
        return source if source is not None and source.users and source is not self._done else None

    async def _revoke(self, source: Source) -> int:
        owners = {row.username for row in await self._store.grace_sessions(None, self._now(), MOST_SESSIONS)}
        if not owners:
            return 0
        present, enabled = await sliced(_standing(source, owners), self._clock, self._monotonic)
        gone = sorted(owners - enabled)
        for name in gone:
            await self._end(name, "account disabled" if name in present else "account removed")
        return len(gone)

    async def _end(self, username: str, why: str) -> None:
        now = self._now()

        def describe(hostnames: Sequence[str]) -> GraceChange:
            if not hostnames:
                return GraceChange(session=None)
            return GraceChange(
                session=None,
                events=tuple(
                    SessionRevoked(at=now, username=username, hostname=name or UNKNOWN_HOST, reason=why)
                    for name in hostnames
                ),
                history=tuple(
                    HistoryEntry(at=now, username=username, action="revoked", hostname=name or UNKNOWN_HOST, reason=why)
                    for name in hostnames
                ),
                live=(Live(event="session_changed", username=username),),
            )

        for name in await self._store.revoke_grace(username, None, now, describe):
            self._journal.info("SESSION_REVOKED", user=username, host=name or UNKNOWN_HOST, reason=why)


def _standing(source: Source, usernames: set[str]) -> Generator[None, None, tuple[set[str], set[str]]]:
    """
    Which of these the directory has, and which of them may act: of two people with one name, one who may is enough.
    """
    present, enabled = set[str](), set[str]()
    for count, user in enumerate(source.users, 1):
        if user.username in usernames:
            present.add(user.username)
            if not user.disabled:
                enabled.add(user.username)
        if count % STEP == 0:
            yield
    return present, enabled
