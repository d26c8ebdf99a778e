"""
Who is who, as the directory that is served says: for policies that ask for groups, and for disabled accounts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import chain
from operator import attrgetter
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from identree.app.demotions import ServedDirectory
from identree.app.ports import Monotonic
from identree.app.slices import sliced
from identree.core.verdict import Approver
from identree.directory.snapshot import Snapshot
from identree.directory.source import Source, SourceUser

# People of one answer; more would hold the reactor for too long, and fit on no page.
MOST_APPROVERS = 2000
# People and members that are gone through in one step.
STEP = 500
# A new directory holds the reactor for long enough by itself.
SLICE_SECONDS = 0.001
# Answers that are kept until the next directory.
MOST_ANSWERS = 64

_by_name = attrgetter("username")


@dataclass(frozen=True, slots=True)
class _Index:
    """
    Where people are in ``users``, and groups in ``groups``: mappings to numbers and text cost the garbage collector
    nothing, while it would go through young ones of objects again and again.

    :ivar by_name: people whose names the directory serves. :ivar by_id: the same people.
    :ivar groups: names.
    :ivar groups_of: of a person, by id; numbers with blanks between them.
    :ivar members: ids of a group, by its name; the first by name where there are very many.
    :ivar answers: to what was asked of this index.
    """

    users: Sequence[SourceUser]
    by_name: dict[str, int]
    by_id: dict[str, int]
    groups: tuple[str, ...]
    groups_of: dict[str, str]
    members: dict[str, Collection[str]]
    answers: dict[tuple[frozenset[str], frozenset[str]], tuple[Approver, ...]] = field(default_factory=dict)

    def person(self, username: str) -> SourceUser | None:
        at = self.by_name.get(username)
        return None if at is None else self.users[at]

    def names(self, person: SourceUser) -> frozenset[str]:
        """Of the groups of a person."""
        return frozenset(self.groups[int(number)] for number in self.groups_of.get(person.id, "").split())

    def able(self, ids: Iterable[str]) -> Iterator[SourceUser]:
        """Those of these people who may act."""
        people = (self.users[self.by_id[id]] for id in ids if id in self.by_id)
        return (person for person in people if not person.disabled)

    def approvers(self, admin_groups: frozenset[str], groups: frozenset[str]) -> tuple[Approver, ...]:
        asked = admin_groups, groups
        if asked not in self.answers:
            if len(self.answers) >= MOST_ANSWERS:
                self.answers.clear()
            ids = {id for name in admin_groups | groups for id in self.members.get(name, ())}
            people = nsmallest(MOST_APPROVERS, self.able(ids), key=_by_name)
            self.answers[asked] = tuple(self._approver(person, admin_groups) for person in people)
        return self.answers[asked]

    def _approver(self, person: SourceUser, admin_groups: frozenset[str]) -> Approver:
        groups = self.names(person)
        return Approver(username=person.username, is_admin=not admin_groups.isdisjoint(groups), groups=groups)


class Roster:
    """
    A new directory counts at once, or a moment later where it has very many people: until then the one before does.

    :param admin_groups: as the settings are now.
    """

    _log = Logger()

    def __init__(
        self,
        directory: ServedDirectory,
        admin_groups: Callable[[], Collection[str]],
        *,
        clock: IReactorTime,
        monotonic: Monotonic,
    ) -> None:
        self._directory = directory
        self._admin_groups = admin_groups
        self._clock = clock
        self._monotonic = monotonic
        self._index: _Index | None = None
        self._reading: Source | None = None
        self._work: Deferred[None] | None = None

    def heard(self, snapshot: Snapshot) -> None:
        """Subscribe this, so that nobody has to wait for the first answer."""
        self._indexed()

    def groups_of(self, username: str) -> frozenset[str] | None:
        """The groups of a person; None: the directory does not know the person, or there is none."""
        index = self._indexed()
        person = index.person(username) if index is not None else None
        return index.names(person) if index is not None and person is not None else None

    def disabled(self, username: str) -> bool:
        """Whether the source says that this person's account is disabled."""
        index = self._indexed()
        person = index.person(username) if index is not None else None
        return person is not None and person.disabled

    def approvers(self, groups: Collection[str]) -> Sequence[Approver]:
        """
        Administrators and members of ``groups``, by name, at most :data:`MOST_APPROVERS`. Empty without a directory.
        """
        index = self._indexed()
        return index.approvers(frozenset(self._admin_groups()), frozenset(groups)) if index is not None else ()

    def _indexed(self) -> _Index | None:
        served = self._directory.served
        source = served.source if served is not None else None
        if source is None or not source.users:
            return None
        if source is not self._reading:
            self._reading = source
            if self._work is not None:
                self._work.cancel()
            self._work = Deferred.fromCoroutine(self._read(source))
        return self._index

    async def _read(self, source: Source) -> None:
        try:
            index = await sliced(_indexing(source), self._clock, self._monotonic, SLICE_SECONDS)
        except CancelledError:
            return
        except Exception:
            self._log.failure("who is who could not be read from the directory")
            return
        before, self._index = self._index, index
        if before is not None:
            Deferred.fromCoroutine(sliced(_forgetting(before), self._clock, self._monotonic, SLICE_SECONDS))


def _indexing(source: Source) -> Generator[None, None, _Index]:
    by_name: dict[str, int] = {}
    by_id: dict[str, int] = {}
    for at, user in enumerate(source.users):
        # of two people with one name the directory serves the first
        if by_name.setdefault(user.username, at) == at:
            by_id[user.id] = at
        if at % STEP == STEP - 1:
            yield
    groups_of: dict[str, str] = {}
    members: dict[str, Collection[str]] = {}
    index = _Index(source.users, by_name, by_id, tuple(group.name for group in source.groups), groups_of, members)
    count = 0
    for number, group in enumerate(source.groups):
        for id in group.member_ids:
            groups_of[id] = f"{groups_of.get(id, '')} {number}"
            count += 1
            if count % STEP == 0:
                yield
        known = members.get(group.name)
        some = group.member_ids if known is None else (*known, *group.member_ids)
        members[group.name] = some if len(some) <= MOST_APPROVERS else (yield from _first(index, some))
    return index


def _first(index: _Index, ids: Sequence[str]) -> Generator[None, None, tuple[str, ...]]:
    """The first by name of those who may act."""
    first: list[SourceUser] = []
    for start in range(0, len(ids), STEP):
        first = nsmallest(MOST_APPROVERS, chain(first, index.able(ids[start : start + STEP])), key=_by_name)
        yield
    return tuple(person.id for person in first)


def _forgetting(index: _Index) -> Generator[None, None, None]:
    """Let go of an index that nobody uses any more in steps: freed at once, a large one would hold up the reactor."""
    mappings: tuple[dict[str, Any], ...] = (index.groups_of, index.by_id, index.by_name)
    for mapping in mappings:
        while mapping:
            for _ in range(min(STEP, len(mapping))):
                mapping.popitem()
            yield
