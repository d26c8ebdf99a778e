"""
What administrators see of the directory and may do to it: its state, an early refresh, the acceptance of a smaller one,
and the account of everything that is known about one name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from identree.app.directory import OK, Mode, Served, Status
from identree.app.journal import Journal
from identree.app.people import Caller
from identree.app.ports import SourceRefused, SourceUnavailable
from identree.core.errors import Forbidden
from identree.directory.draft import Kind
from identree.directory.eligibility import Withheld
from identree.directory.explain import AccountExplained, Explanation, GroupExplained, RuleExplained, explain
from identree.directory.ids import Numbers

# what the pages need to show it; they see the directory only through the application
__all__ = [
    "OK",
    "AccountExplained",
    "Asked",
    "DirectoryAdmin",
    "Explanation",
    "GroupExplained",
    "Kind",
    "Mode",
    "RuleExplained",
    "Status",
    "Withheld",
]

# A person waits so long for a refresh before the page comes back without its result.
PATIENCE_SECONDS = 8.0
# Characters of a name that is asked about: a user name has 64, a group's 32.
NAME_LENGTH = 100


class Asked(Enum):
    """What became of a refresh that somebody asked for."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    # what was to be accepted is not what waits for acceptance now
    OTHER = "other"


class ServedDirectory(Protocol):
    """What is needed of :class:`identree.app.directory.Directory`."""

    @property
    def served(self) -> Served | None: ...

    def status(self) -> Status: ...


class DirectoryAdmin:
    """
    :param refresh: reads the source anew; True accepts a smaller directory, once.
    :param in_thread: runs a blocking function away from the reactor: to explain a name takes a look at everybody.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        directory: ServedDirectory,
        refresh: Callable[[bool], Awaitable[object]],
        in_thread: Callable[[Callable[[], Explanation]], Awaitable[Explanation]],
        clock: IReactorTime,
        journal: Journal,
    ) -> None:
        self._directory = directory
        self._refresh = refresh
        self._in_thread = in_thread
        self._clock = clock
        self._journal = journal

    def status(self, caller: Caller) -> Status:
        """:raise Forbidden: not an administrator."""
        _must_be_admin(caller)
        return self._directory.status()

    async def explain(self, caller: Caller, name: str) -> Explanation | None:
        """
        Everything about a name, or None when nobody and nothing has it.

        :param name: of an account or a group, or an id of the source; white space around it does not count.
        :raise Forbidden: not an administrator.
        """
        _must_be_admin(caller)
        name, served = name.strip(), self._directory.served
        if served is None or not 0 < len(name) <= NAME_LENGTH:
            return None
        numbers = served.numbers or Numbers(uids={}, gids={})
        explained = await self._in_thread(lambda: explain(name, served.source, numbers, served.layout, served.built))
        return explained if explained.found else None

    async def refresh(self, caller: Caller, *, accept_shrink: bool = False, seen: str = "", address: str = "") -> Asked:
        """
        Have the source read now, and wait a while for the result. It goes on when nobody waits any more.

        :param accept_shrink: take a directory that lost more than is normal.
        :param seen: the loss that is accepted, as the page said it; empty for whatever waits.
        :raise Forbidden: not an administrator.
        """
        _must_be_admin(caller)
        if accept_shrink:
            refusal = self._directory.status().refusal
            if refusal is None or (seen and seen != str(refusal)):
                return Asked.OTHER
            self._journal.warn(
                "DIRECTORY_SHRINK_ACCEPTED", admin=caller.username, losses=str(refusal), remote_addr=address
            )
        else:
            self._journal.info("DIRECTORY_REFRESH", admin=caller.username, remote_addr=address)
        answer: Deferred[Asked] = Deferred()

        def tell(outcome: Asked) -> None:
            if not answer.called:
                answer.callback(outcome)

        def over(result: object) -> None:
            if isinstance(result, Failure):
                # the refresh tells the log and the page why; anything else is a bug
                if not result.check(SourceUnavailable, SourceRefused):
                    self._log.failure("a refresh that was asked for failed", result)
                tell(Asked.FAILED)
                return
            status = self._directory.status()
            tell(Asked.FAILED if status.trouble is not None or status.refusal is not None else Asked.DONE)

        async def work() -> None:
            await self._refresh(accept_shrink)

        working: Deferred[None] = Deferred.fromCoroutine(work())
        working.addBoth(over)
        timer = self._clock.callLater(PATIENCE_SECONDS, tell, Asked.RUNNING)
        try:
            return await answer
        finally:
            if timer.active():
                timer.cancel()


def _must_be_admin(caller: Caller) -> None:
    if not caller.is_admin:
        raise Forbidden
