"""
POSIX numbers of people and groups (spec/ldap section 5): given once, never moved, never given again.

The numbers of users and of groups are two independent series. The second one counts groups by their ids and private
groups by their persons' ids, so that no private group has a group's number.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from types import MappingProxyType
from typing import Any, Literal

from identree.directory.slices import SLICE
from identree.directory.source import Source

# The highest number: one less than the "no change" of chown(2).
TOP = 4_294_967_294
# Never given: nobody's, its 16-bit twin that old file systems and programs take for "none", and the 32-bit one.
RESERVED = frozenset({65_534, 65_535, 4_294_967_295})
# Size of uidmap.json, bytes: about 400,000 entries; the deployed limit.
FILE_LIMIT = 64 * 1024 * 1024

# Ids that are looked up at once: most are known.
_CHECKED = 500

Space = Literal["uids", "gids"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """User numbers by person's id; group numbers by group's id and, for private groups, by person's id."""

    uids: Mapping[str, int]
    gids: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clash:
    """
    Two ids with one number.

    :ivar kept: the id that keeps it.
    :ivar dropped: the id that gets another one.
    """

    space: Space
    number: int
    kept: str
    dropped: str

    def text(self) -> str:
        """One English sentence."""
        noun = "user" if self.space == "uids" else "group"
        return f"{noun} number {self.number} was given twice: {self.kept!r} keeps it, {self.dropped!r} gets a new one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """
    What a refresh adds; to be stored before anything with these numbers is published.

    :ivar exhausted: ids that got no number, as the series are at their end.
    """

    new_uids: Mapping[str, int] = field(default_factory=dict)
    new_gids: Mapping[str, int] = field(default_factory=dict)
    next_uid: int
    next_gid: int
    exhausted: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.new_uids and not self.new_gids


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMap:
    """
    All numbers ever given, and where the search for the next one begins. Immutable; :meth:`of` makes it from what was
    stored, and keeps the promise that neither counter is at or below a number that is taken.
    """

    uids: Mapping[str, int]
    gids: Mapping[str, int]
    next_uid: int
    next_gid: int

    @classmethod
    def of(cls, *, uids: Mapping[str, int], gids: Mapping[str, int], next_uid: int, next_gid: int) -> IdMap:
        """Counters are raised above every number in use; one beyond :data:`TOP` means that the series is used up."""
        return cls(
            uids=MappingProxyType(dict(uids)),
            gids=MappingProxyType(dict(gids)),
            next_uid=max(next_uid, max(uids.values(), default=0) + 1),
            next_gid=max(next_gid, max(gids.values(), default=0) + 1),
        )

    @property
    def numbers(self) -> Numbers:
        return Numbers(uids=self.uids, gids=self.gids)

    def allocate(self, source: Source) -> Generator[None, None, Allocation]:
        """
        Numbers for whoever has none: first all people's, then all groups', then all private groups', each in source
        order, so that a fresh install counts as the deployed servers did. People whose names are not served get
        theirs too: a name may become valid, and the order stays the same. Each result is empty of what is known.
        """
        uids, gids = _Series(self.uids, self.next_uid), _Series(self.gids, self.next_gid)
        exhausted: dict[str, None] = {}
        work = 0
        for series, items in ((uids, source.users), (gids, source.groups), (gids, source.users)):
            for start in range(0, len(items), _CHECKED):
                work += _CHECKED // 10
                if work >= SLICE:
                    work = 0
                    yield
                ids = [item.id for item in items[start : start + _CHECKED]]
                if series.known_all(ids):
                    continue
                work += _CHECKED
                for id in ids:
                    if not series.give(id):
                        exhausted[id] = None
        return Allocation(
            new_uids=uids.new, new_gids=gids.new, next_uid=uids.next, next_gid=gids.next, exhausted=tuple(exhausted)
        )

    def with_allocation(self, allocation: Allocation) -> IdMap:
        """The map after it. :raise ValueError: it contradicts this map, being made from another one."""
        for known, new in ((self.uids, allocation.new_uids), (self.gids, allocation.new_gids)):
            if not known.keys().isdisjoint(new):
                raise ValueError("the allocation was made from another id map")
        if allocation.empty and (allocation.next_uid, allocation.next_gid) == (self.next_uid, self.next_gid):
            return self
        return IdMap(
            uids=MappingProxyType({**self.uids, **allocation.new_uids}) if allocation.new_uids else self.uids,
            gids=MappingProxyType({**self.gids, **allocation.new_gids}) if allocation.new_gids else self.gids,
            next_uid=max(self.next_uid, allocation.next_uid),
            next_gid=max(self.next_gid, allocation.next_gid),
        )


class _Series:
    """One counter at work. Everything below the counter was given or skipped, so no look at values is needed."""

    def __init__(self, known: Mapping[str, int], next_number: int) -> None:
        self._known, self.next = known, next_number
        self.new: dict[str, int] = {}

    def known_all(self, ids: Sequence[str]) -> bool:
        """Whether each of these had a number before."""
        return all(map(self._known.__contains__, ids))

    def give(self, id: str) -> bool:
        """Whether the id has a number now."""
        if id in self._known or id in self.new:
            return True
        while self.next in RESERVED:
            self.next += 1
        if self.next > TOP:
            return False
        self.new[id] = self.next
        self.next += 1
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """
    :ivar clashes: numbers that the file gives to two ids; for the operator, as somebody's number moves.
    :ivar reserved: ids in the file that hold a number of :data:`RESERVED`. They keep it, for a number never moves.
    """

    map: IdMap
    clashes: tuple[Clash, ...] = ()
    reserved: tuple[str, ...] = ()


def parse(raw: bytes | None, *, uid_base: int, gid_base: int) -> Parsed:
    """
    Read ``uidmap.json``; None is no file, a fresh map.

    Numbers that are no POSIX ones are dropped. Of two ids with one number the first in the file keeps it: the file is
    sorted by id, so every reader decides alike. A counter out of range begins at the base again; bases count for
    nothing else once there is a counter.

    :raise ValueError: not the JSON that the deployed servers write.
    """
    if raw is None:
        return Parsed(map=IdMap.of(uids={}, gids={}, next_uid=uid_base, next_gid=gid_base))
    if len(raw) > FILE_LIMIT:
        raise ValueError(f"it is larger than {FILE_LIMIT} bytes")
    try:
        document = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"it is not valid JSON: {problem}") from None
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ValueError("it must be an object with uids, gids, nextUID and nextGID")
    clashes: list[Clash] = []
    reserved: list[str] = []
    uids = _entries(document, "uids", clashes, reserved)
    gids = _entries(document, "gids", clashes, reserved)
    return Parsed(
        map=IdMap.of(
            uids=uids,
            gids=gids,
            next_uid=_counter(document, "nextUID", uid_base),
            next_gid=_counter(document, "nextGID", gid_base),
        ),
        clashes=tuple(clashes),
        reserved=tuple(reserved),
    )


def _entries(document: dict[str, Any], space: Space, clashes: list[Clash], reserved: list[str]) -> dict[str, int]:
    entries = document.get(space)
    if entries is None:
        return {}
    if not isinstance(entries, dict):
        raise ValueError(f"{space} must be an object")
    kept: dict[str, int] = {}
    owners: dict[int, str] = {}
    for id, number in entries.items():
        if type(number) is not int:
            raise ValueError(f"{space}: the number of {id!r} must be a whole number")
        if not 1 <= number <= TOP:
            continue
        owner = owners.setdefault(number, id)
        if owner != id:
            clashes.append(Clash(space=space, number=number, kept=owner, dropped=id))
            continue
        if number in RESERVED:
            reserved.append(id)
        kept[id] = number
    return kept


def _counter(document: dict[str, Any], name: str, base: int) -> int:
    number = document.get(name)
    if number is None:
        return base
    if type(number) is not int:
        raise ValueError(f"{name} must be a whole number")
    return number if 1 <= number <= TOP else base


def dump(map: IdMap) -> bytes:
    """``uidmap.json``, byte for byte as the deployed servers write it: two spaces, sorted ids, no final newline."""
    # written by hand: the standard encoder with indentation takes seconds for 100,000 people
    parts = ["{\n"]
    for space, entries in (("uids", map.uids), ("gids", map.gids)):
        if entries:
            lines = ",\n".join(f"    {encode_basestring(id)}: {entries[id]}" for id in sorted(entries))
            parts.append(f'  "{space}": {{\n{lines}\n  }},\n')
        else:
            parts.append(f'  "{space}": {{}},\n')
    parts.append(f'  "nextUID": {map.next_uid},\n  "nextGID": {map.next_gid}\n}}')
    return "".join(parts).encode("utf-8", "surrogatepass")
