"""
Who has which POSIX number, on all replicas alike (spec/ldap sections 5 and 14.25).

Numbers are in the database before anything with them is served. Two replicas that give out numbers at once are told by
the counter's revision: the later one has written nothing, reads what the other gave, and does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from identree.app.ports import Monotonic
from identree.app.slices import sliced
from identree.app.uidmapfile import UidMapFile, merge
from identree.core.errors import StorageUnavailable
from identree.directory.ids import TOP, IdMap, Numbers
from identree.directory.source import Source
from identree.storage.interface import MOST_IDS, Conflict, Store

UID, GID = "uid", "gid"
# How often another replica may be faster before the refresh is given up.
ATTEMPTS = 20
# Rows of one page when the ids are read.
PAGE = 2000
# Contradictions of the file that are logged one by one.
MOST_REPORTED = 50


@dataclass(slots=True)
class _Known:
    """
    How much of one kind is known.

    :ivar seen: the counter's revision; 0: there is none.
    :ivar read: the revision up to which every row is in the map; behind ``seen`` while we are writing.
    :ivar last: revision and number of the last row that is in the map.
    """

    seen: int = 0
    read: int = 0
    last: tuple[int, int] = (0, 0)


class PosixIds:
    """:param file: taken over by :meth:`start`, and kept up to date by :meth:`export`."""

    _log = Logger()

    def __init__(self, store: Store, file: UidMapFile, clock: IReactorTime, monotonic: Monotonic) -> None:
        self._store = store
        self._file = file
        self._clock = clock
        self._monotonic = monotonic
        self._known = {UID: _Known(), GID: _Known()}
        content = file.content
        self._uids: dict[str, int] = {}
        self._gids: dict[str, int] = {}
        # where counting begins, in a database without ids
        self._map = IdMap(
            uids=self._uids,
            gids=self._gids,
            next_uid=content.map.next_uid if content else 1,
            next_gid=content.map.next_gid if content else 1,
        )
        self._exhausted: frozenset[str] = frozenset()

    @property
    def map(self) -> IdMap:
        """All that is known."""
        return self._map

    async def start(self) -> None:
        """
        Read the database, and take over what the file has beyond it: everything the first time.

        :raise StorageUnavailable: nothing may be served until this has worked once.
        """
        await self._catch_up()
        content = self._file.content
        if content is None:
            return
        for clash in content.clashes:
            self._log.error("uidmap.json: {clash}", clash=clash.text())
        merged = merge(self._map, content.map)
        if merged.contradictions:
            await self._contradicted([str(item) for item in merged.contradictions])
        for _ in range(ATTEMPTS):
            try:
                if self._file.existed:
                    await self._give(merged.new_uids, merged.new_gids, merged.next_uid, merged.next_gid)
                break
            except Conflict:
                await self._catch_up()
                merged = merge(self._map, content.map)
        else:
            raise StorageUnavailable("locked", "other replicas write POSIX ids all the time")
        count = len(merged.new_uids) + len(merged.new_gids)
        if count:
            self._log.info("uidmap.json: {count} ids taken over into the database", count=count)
        self._file.content = None

    async def _contradicted(self, items: list[str]) -> None:
        kept = await self._file.set_aside()
        for item in items[:MOST_REPORTED]:
            self._log.error("uidmap.json contradicts the database: {item}. The database counts.", item=item)
        if len(items) > MOST_REPORTED:
            self._log.error("uidmap.json contradicts the database {more} times more", more=len(items) - MOST_REPORTED)
        if kept:
            self._log.warn("the contradicting file is kept as {kept}", kept=kept)

    async def numbers(self, source: Source) -> Numbers:
        """
        Of everybody; whoever had none has one now, in the database.

        :raise StorageUnavailable: some could not be stored; nothing with them may be served.
        """
        for _ in range(ATTEMPTS):
            allocation = await sliced(self._map.allocate(source), self._clock, self._monotonic)
            exhausted = frozenset(allocation.exhausted)
            if exhausted - self._exhausted:
                self._log.error("there are no POSIX ids left for {count} people or groups", count=len(exhausted))
            self._exhausted = exhausted
            if allocation.empty:
                return self._map.numbers
            try:
                await self._give(allocation.new_uids, allocation.new_gids, allocation.next_uid, allocation.next_gid)
            except Conflict:
                await self._catch_up()
        raise StorageUnavailable("locked", "other replicas write POSIX ids all the time")

    async def export(self) -> bool:
        """Bring the file up to date; whether that worked."""
        return await self._file.export(self._map)

    async def _give(self, uids: Mapping[str, int], gids: Mapping[str, int], next_uid: int, next_gid: int) -> None:
        """
        In small transactions, each of which counts by itself.

        :raise Conflict: those that were written are for the next catching up.
        """
        try:
            await self._give_kind(UID, uids, next_uid, self._map.next_uid)
            await self._give_kind(GID, gids, next_gid, self._map.next_gid)
        except BaseException:
            # some may be written and not in the map: whoever writes next is told to read them first
            for known in self._known.values():
                known.seen = known.read
            raise
        for known in self._known.values():
            if known.read != known.seen:
                known.read, known.last = known.seen, (known.seen, TOP)
        self._learn(uids, gids, max(next_uid, self._map.next_uid), max(next_gid, self._map.next_gid))

    async def _give_kind(self, kind: str, new: Mapping[str, int], next_number: int, counted: int) -> None:
        known = self._known[kind]
        # ascending, so that the counter can follow from batch to batch
        rows = list(new.items())
        for start in range(0, len(rows), MOST_IDS):
            batch = rows[start : start + MOST_IDS]
            final = start + MOST_IDS >= len(rows)
            next_after = next_number if final else max(batch[-1][1] + 1, counted)
            known.seen = await self._store.add_posix_ids(kind, batch, known.seen, min(next_after, TOP + 1))
        if not rows and (next_number > counted or known.seen == 0):
            known.seen = await self._store.add_posix_ids(kind, (), known.seen, min(next_number, TOP + 1))

    async def _catch_up(self) -> None:
        """Read what others have given."""
        found: dict[str, dict[str, int]] = {UID: {}, GID: {}}
        counters = {UID: self._map.next_uid, GID: self._map.next_gid}
        for kind, known in self._known.items():
            counter = await self._store.posix_counter(kind)
            if counter is None or counter.revision == known.read:
                continue
            # the configured bases count for nothing once there is a counter
            counters[kind] = max(counters[kind] if known.read else 0, counter.next_number)
            last = known.last
            while True:
                page = await self._store.posix_ids(kind, last, PAGE)
                found[kind].update((row.source_id, row.number) for row in page)
                if page:
                    last = (page[-1].revision, page[-1].number)
                if len(page) < PAGE:
                    break
            known.last, known.seen, known.read = last, counter.revision, counter.revision
        self._learn(found[UID], found[GID], counters[UID], counters[GID])

    def _learn(self, uids: Mapping[str, int], gids: Mapping[str, int], next_uid: int, next_gid: int) -> None:
        """Maps that were given out stay as they are. Plain copies: of 100,000 entries they take a few milliseconds."""
        if uids:
            self._uids = self._uids.copy()
            self._uids.update(uids)
        if gids:
            self._gids = self._gids.copy()
            self._gids.update(gids)
        self._map = IdMap(
            uids=self._uids,
            gids=self._gids,
            next_uid=max(next_uid, max(uids.values(), default=0) + 1),
            next_gid=max(next_gid, max(gids.values(), default=0) + 1),
        )
