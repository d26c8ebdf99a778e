"""
Who is who, as the directory that is served says: for policies that ask for groups, and for disabled accounts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from identree.app.demotions import ServedDirectory
from identree.core.verdict import Approver
from identree.directory.source import Source, SourceUser

# People of one answer; more would hold the reactor for too long, and fit on no page.
MOST_APPROVERS = 2000


@dataclass(frozen=True, slots=True)
class _Index:
    source: Source
    people: dict[str, SourceUser]
    groups: dict[str, list[str]]


class Roster:
    """
    :param admin_groups: as the settings are now.
    """

    def __init__(self, directory: ServedDirectory, admin_groups: Callable[[], Collection[str]]) -> None:
        self._directory = directory
        self._admin_groups = admin_groups
        self._index: _Index | None = None

    def groups_of(self, username: str) -> frozenset[str] | None:
        """The groups of a person; None: the directory does not know the person, or there is none."""
        index = self._indexed()
        person = index.people.get(username) if index is not None else None
        if index is None or person is None:
            return None
        return frozenset(index.groups.get(person.id, ()))

    def disabled(self, username: str) -> bool:
        """Whether the source says that this person's account is disabled."""
        index = self._indexed()
        person = index.people.get(username) if index is not None else None
        return person is not None and person.disabled

    def approvers(self, groups: Collection[str]) -> list[Approver]:
        """
        Administrators and members of ``groups``, by name, at most :data:`MOST_APPROVERS`. Empty without a directory.
        """
        index = self._indexed()
        if index is None:
            return []
        admin_groups = frozenset(self._admin_groups())
        wanted = admin_groups.union(groups)
        members = {id: None for group in index.source.groups if group.name in wanted for id in group.member_ids}
        people = sorted(self._people(index, members), key=lambda person: person.username)
        return [
            Approver(
                username=person.username,
                is_admin=not admin_groups.isdisjoint(index.groups.get(person.id, ())),
                groups=frozenset(index.groups.get(person.id, ())),
            )
            for person in people[:MOST_APPROVERS]
        ]

    def _people(self, index: _Index, ids: Collection[str]) -> Iterator[SourceUser]:
        return (person for person in index.people.values() if person.id in ids and not person.disabled)

    def _indexed(self) -> _Index | None:
        served = self._directory.served
        source = served.source if served is not None else None
        if source is None or not source.users:
            return None
        if self._index is None or self._index.source is not source:
            groups: dict[str, list[str]] = {}
            for group in source.groups:
                for id in group.member_ids:
                    groups.setdefault(id, []).append(group.name)
            # of two people with one name the directory serves the first
            people: dict[str, SourceUser] = {}
            for user in source.users:
                people.setdefault(user.username, user)
            self._index = _Index(source, people, groups)
        return self._index
