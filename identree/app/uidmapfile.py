"""
``uidmap.json``: taken over once, written after every change (spec/ldap section 5).

The truth is in the database. The file is what an operator backs up, what an older program reads, and what a database
that was lost is filled from.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from twisted.logger import Logger

from identree.app.atomicfile import remove_leftovers, replace_file, sync_directory
from identree.app.statefiles import BadStateFile, read_state_file
from identree.directory.archive import keepable
from identree.directory.ids import FILE_LIMIT, IdMap, Parsed, Space, dump, parse

PREFIX = ".uidmap-tmp-"
# Where the file is kept as it was, when it says something else than the database.
SET_ASIDE = ".contradicts-database"

InThread = Callable[[Callable[[], object]], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """
    The file would move a number.

    :ivar space: ``uids`` or ``gids``.
    :ivar taken_by: whose the file's number is in the database; empty when the id itself has another one there.
    :ivar known: the id's number in the database; 0: none yet.
    """

    space: Space
    source_id: str
    number: int
    known: int = 0
    taken_by: str = ""

    def __str__(self) -> str:
        noun = "user" if self.space == "uids" else "group"
        if self.taken_by:
            return f"{self.source_id!r} has {noun} number {self.number} there, which is {self.taken_by!r}'s"
        return f"{self.source_id!r} has {noun} number {self.number} there, and {self.known} in the database"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """
    :ivar new_uids: what the file knows and the database does not, by number.
    :ivar contradictions: what is not taken over.
    """

    new_uids: Mapping[str, int]
    new_gids: Mapping[str, int]
    next_uid: int
    next_gid: int
    contradictions: tuple[Contradiction, ...] = ()


def merge(known: IdMap, file: IdMap) -> Merged:
    """
    Take over what contradicts nothing: no id's number is changed, none is given twice, counters only grow.

    Ids that no source can have are left behind, but their numbers are not given away.
    """
    contradictions: list[Contradiction] = []

    def space(name: Space, have: Mapping[str, int], offered: Mapping[str, int]) -> dict[str, int]:
        owners = {number: id for id, number in have.items()}
        new: dict[str, int] = {}
        for id, number in offered.items():
            if not keepable(id):
                continue
            mine = have.get(id)
            if mine == number:
                continue
            owner = owners.get(number)
            if mine is not None:
                contradictions.append(Contradiction(space=name, source_id=id, number=number, known=mine))
            elif owner is not None:
                contradictions.append(Contradiction(space=name, source_id=id, number=number, taken_by=owner))
            else:
                new[id] = number
        return dict(sorted(new.items(), key=lambda item: item[1]))

    return Merged(
        new_uids=space("uids", known.uids, file.uids),
        new_gids=space("gids", known.gids, file.gids),
        next_uid=max(known.next_uid, file.next_uid),
        next_gid=max(known.next_gid, file.next_gid),
        contradictions=tuple(contradictions),
    )


class UidMapFile:
    """
    Reads the file when it is made, and so before anything is served.

    :param uid_base: counters begin here where the file has none.
    :param in_thread: runs a blocking function away from the reactor.
    :ivar content: what the file said at the start; None once it is not needed any more.
    :ivar existed: whether there was a file.
    """

    _log = Logger()

    def __init__(self, path: str, *, uid_base: int, gid_base: int, now_unix: float, in_thread: InThread) -> None:
        """:raise BadStateFile: it is there and must not be used."""
        self._path = path
        self._in_thread = in_thread
        self._written: IdMap | None = None
        self._trouble = ""
        for name in remove_leftovers(path, PREFIX, now_unix):
            self._log.info("removed {name}, which a writer left behind", name=name)
        raw, _ = read_state_file(path, FILE_LIMIT)
        self.existed = raw is not None
        try:
            self.content: Parsed | None = parse(raw, uid_base=uid_base, gid_base=gid_base)
        except ValueError as problem:
            raise BadStateFile(
                f"{path}: {problem}. It holds the POSIX ids of all people: restore it from a backup; without it they "
                "would get new ones"
            ) from problem
        if self.existed:
            self._look_at_owner()

    @property
    def trouble(self) -> str:
        """Why the file does not say what it should; empty when it does."""
        return self._trouble

    def _look_at_owner(self) -> None:
        with suppress(OSError):
            owner = os.lstat(self._path).st_uid
            if owner not in (0, os.getuid()):
                self._log.warn("{path} belongs to user {owner}, not to root", path=self._path, owner=owner)

    async def set_aside(self) -> str:
        """
        Keep the file as it is under another name, once; the name, or empty when it cannot be kept.
        """
        name = self._path + SET_ASIDE

        def link() -> None:
            try:
                os.link(self._path, name, follow_symlinks=False)
            except FileExistsError:
                return
            sync_directory(os.path.dirname(name) or ".")

        try:
            await self._in_thread(link)
        except OSError as problem:
            self._log.error("{path} could not be kept: {problem}", path=self._path, problem=problem.strerror)
            return ""
        return name

    async def export(self, map: IdMap) -> bool:
        """
        Make the file say this, unless it does. A failure is logged, and made good by the next call.

        :returns: whether it says so now.
        """
        if map is self._written:
            return True

        def write() -> None:
            content = dump(map)
            with suppress(BadStateFile):
                if read_state_file(self._path, FILE_LIMIT)[0] == content:
                    return
            replace_file(self._path, content, PREFIX)

        try:
            await self._in_thread(write)
        except OSError as problem:
            trouble = f"{self._path} could not be written: {problem.strerror}"
            # once per cause: the next refresh tries again
            if trouble != self._trouble:
                self._log.error("{trouble}. The ids are safe in the database.", trouble=trouble)
            self._trouble = trouble
            return False
        if self._trouble:
            self._log.info("{path} is written again", path=self._path)
        self._trouble = ""
        self._written = map
        return True
