"""
Transaction scripts: an operation on persistent state as a plain generator.

A script yields what it wants done and is sent the rows; the driver owns the connection, the transaction and the thread.
One text serves both engines, so texts keep to the SQL that SQLite (3.35 or later) and PostgreSQL share, name their
parameters ``:name`` and contain no other colon. Text between ``/*postgres`` and ``*/`` is seen by PostgreSQL only.

A driver may run a script again from its beginning (a serialization failure, a batch that must be split), so a script
is handed over as a function that makes it, and everything that it calls must be pure.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred

from identree.core.challenge import Live
from identree.core.events import Event

T = TypeVar("T")

Row = tuple[Any, ...]
# The text and its parameters; the script is sent the rows.
Statement = tuple[str, Mapping[str, object]]


class Do:
    """A statement whose rows nobody wants: a driver may send it along with the next one. It is sent no rows."""

    __slots__ = ("parameters", "sql")

    def __init__(self, sql: str, parameters: Mapping[str, object]) -> None:
        self.sql = sql
        self.parameters = parameters


class Taken(Exception):
    """A driver says: the user code that a script inserted exists already. Nothing was done."""


class Owner:
    """
    Serialise with everything else that concerns this person until the transaction ends (spec/storage section 8).
    Must come before the first statement.
    """

    __slots__ = ("username",)

    def __init__(self, username: str) -> None:
        self.username = username


class OwnerOf:
    """The same for the owner of a challenge, who never changes; nothing happens when there is no such challenge."""

    __slots__ = ("challenge_id",)

    def __init__(self, challenge_id: str) -> None:
        self.challenge_id = challenge_id


class Effects:
    """
    What becomes true with the commit: events for the outbox, wake-ups for dashboards and held requests, messages for
    the other replicas (channel ``identree_cluster``, spec/storage section 10).
    """

    __slots__ = ("cluster", "events", "live")

    def __init__(
        self,
        events: tuple[Event, ...] = (),
        live: tuple[Live, ...] = (),
        cluster: tuple[Mapping[str, object], ...] = (),
    ) -> None:
        self.events = events
        self.live = live
        self.cluster = cluster


Wish = Statement | Do | Owner | OwnerOf | Effects
Script = Generator[Wish, list[Row], T]
MakeScript = Callable[[], Script[T]]


class Driver(Protocol):
    """
    Runs scripts, each in one transaction.

    A cancelled Deferred never breaks the driver: a script that has not begun is dropped, one under way finishes.
    All calls are made on the reactor. Refused and other exceptions of a script roll it back and come out unchanged.
    """

    async def start(self) -> None:
        """
        Open, migrate, seal what a crash left unsealed, and bring the log up to date.

        :raise StorageUnavailable: it cannot be opened.
        :raise SchemaTooNew: it was migrated by a newer program.
        """

    async def stop(self) -> None:
        """Finish what was accepted, then close. Later calls fail with StorageUnavailable."""

    def write(self, make: MakeScript[T]) -> Deferred[T]:
        """
        Fires when the script is committed, its events are sealed and the log has them.

        :raise StorageUnavailable: nothing was done.
        """

    def read(self, make: MakeScript[T]) -> Deferred[T]:
        """The same for a script that only reads."""
