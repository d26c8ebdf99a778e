"""
The published directory in the database, as this replica knows it and changes it.

What is published is the source and the stamps; entries are built from them by every replica alike. A publication names
the version that it follows, so that of two replicas that publish at once one is told to read again. Small changes are
small to write and small to read (:mod:`identree.directory.archive`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from identree.app.ports import Monotonic, Now
from identree.app.slices import sliced
from identree.directory.archive import (
    BadArchive,
    Block,
    Divided,
    Manifest,
    assemble,
    dealt,
    decode_groups,
    decode_stamps,
    decode_users,
    encode_groups,
    encode_stamps,
    encode_users,
    pack,
    unpack,
)
from identree.directory.draft import Draft, Stamp
from identree.directory.source import SourceGroup, SourceUser
from identree.directory.stamps import BUCKETS, NONE, Restamped, Stamps, restamp
from identree.storage.interface import MOST_PIECES, DirectoryState, Store

T = TypeVar("T")
InThread = Callable[[Callable[[], object]], Awaitable[Any]]

# How often a newer version may appear while one is read.
ATTEMPTS = 10
# Old pieces are looked for this often, in seconds, and at most this many batches of them are dropped then.
DROP_SECONDS = 600.0
DROP_BATCHES = 50
EMPTY = Manifest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edition:
    """
    What this replica knows of the published directory.

    :ivar version: 0: nothing was ever published.
    :ivar divided: people and groups; None: not known, as in bridge mode or after damage.
    :ivar fetched_at: when the source last confirmed it; None in bridge mode, which has none.
    :ivar stamps: by entry key.
    :ivar people: how many are served.
    """

    version: int = 0
    usn: int = 0
    manifest: Manifest = EMPTY
    divided: Divided | None = None
    stamps: Stamps = field(default_factory=lambda: NONE)
    fetched_at: datetime | None = None
    people: int = 0
    groups: int = 0
    refusal: str = ""


class Publication:
    """:param in_thread: runs a blocking function away from the reactor."""

    _log = Logger()

    def __init__(
        self, store: Store, clock: IReactorTime, *, now: Now, monotonic: Monotonic, in_thread: InThread
    ) -> None:
        self._store = store
        self._clock = clock
        self._now = now
        self._monotonic = monotonic
        self._in_thread = in_thread
        self._edition = Edition()
        self._stamped: Sequence[Draft] = ()
        self._dropped = monotonic()

    @property
    def edition(self) -> Edition:
        return self._edition

    async def _sliced(self, work: Generator[None, None, T]) -> T:
        return await sliced(work, self._clock, self._monotonic)

    # -- reading ------------------------------------------------------------------------------------------------------
    async def read(self) -> bool:
        """
        Catch up with the database; whether there is another version now. Costs little when there is none.

        :raise StorageUnavailable: it cannot be read.
        :raise BadArchive: what is published is damaged. Its version and change number are known nevertheless, and the
            next publication replaces it whole.
        """
        for _ in range(ATTEMPTS):
            state = await self._store.directory()
            if state is None:
                return False
            if state.version == self._edition.version:
                self._edition = replace(self._edition, fetched_at=state.fetched_at, refusal=state.refusal)
                return False
            if await self._adopt(state):
                return True
        raise BadArchive("pieces of the published directory are missing")

    async def _adopt(self, state: DirectoryState) -> bool:
        """Read what is new in it; False: it is not there any more, as yet another version was published."""
        known = self._edition
        try:
            manifest = Manifest.parse(state.manifest)
            users = {block.name: block for block in known.divided.users} if known.divided else {}
            groups = {block.name: block for block in known.divided.groups} if known.divided else {}
            new_users = [name for name in manifest.users if name not in users]
            new_groups = [name for name in manifest.groups if name not in groups]
            changed = [
                number
                for number, name in enumerate(manifest.stamps)
                if len(manifest.stamps) != len(known.manifest.stamps) or known.manifest.stamps[number] != name
            ]
            async for name, people in self._pieces(new_users, decode_users):
                users[name] = Block(people, name)
            async for name, teams in self._pieces(new_groups, decode_groups):
                groups[name] = Block(teams, name)
            fresh: dict[str, Mapping[str, Stamp]] = {}
            new_stamps = [manifest.stamps[number] for number in changed if manifest.stamps[number]]
            async for name, dealt_stamps in self._pieces(new_stamps, decode_stamps):
                fresh[name] = dealt_stamps
        except _Gone:
            latest = await self._store.directory()
            if latest is not None and latest.version != state.version:
                return False
            self._damaged(state)
            raise BadArchive("pieces of the published directory are missing") from None
        except BadArchive:
            self._damaged(state)
            raise
        divided: Divided | None = None
        if state.fetched_at is not None:
            divided = await self._sliced(
                assemble([users[name] for name in manifest.users], [groups[name] for name in manifest.groups])
            )
        stamps = await self._sliced(_put_together(known.stamps, manifest.stamps, changed, fresh))
        self._edition = Edition(
            version=state.version,
            usn=state.usn,
            manifest=manifest,
            divided=divided,
            stamps=stamps,
            fetched_at=state.fetched_at,
            people=state.people,
            groups=state.groups,
            refusal=state.refusal,
        )
        self._stamped = ()
        return True

    def _damaged(self, state: DirectoryState) -> None:
        self._edition = Edition(version=state.version, usn=state.usn, people=state.people)
        self._stamped = ()

    async def _pieces(
        self, names: Sequence[str], decode: Callable[[bytes], Generator[None, None, T]]
    ) -> AsyncIterator[tuple[str, T]]:
        """
        What the pieces mean.

        :raise _Gone: one of them does not exist.
        """
        for start in range(0, len(names), MOST_PIECES):
            wanted = names[start : start + MOST_PIECES]
            texts = await self._store.directory_pieces(wanted)
            if len(texts) < len(set(wanted)):
                raise _Gone
            raws: dict[str, bytes] = await self._in_thread(
                lambda texts=texts: {name: unpack(name, text) for name, text in texts.items()}  # type: ignore[misc]
            )
            meanings = await self._sliced(_each([decode(raw) for raw in raws.values()]))
            for name, meaning in zip(raws, meanings, strict=True):
                yield name, meaning

    # -- writing ------------------------------------------------------------------------------------------------------
    async def restamped(self, drafts: Sequence[Draft]) -> Restamped:
        """Stamps for these drafts, as the next publication would have them."""
        edition = self._edition
        now = int(self._now().timestamp())
        return await self._sliced(restamp(drafts, edition.stamps, edition.usn, now, self._stamped))

    async def publish(
        self,
        drafts: Sequence[Draft],
        stamped: Restamped,
        divided: Divided | None,
        fetched_at: datetime | None,
        *,
        people: int,
        groups: int,
    ) -> None:
        """
        Make it the directory of all replicas.

        :param stamped: of these drafts, by :meth:`restamped`, since the last reading.
        :raise Conflict: another version was published since; read, stamp and publish again.
        :raise StorageUnavailable: it could not be written; nothing has changed.
        """
        before = self._edition
        if divided is not None:
            divided = Divided(
                divided.source, await self._written_users(divided.users), await self._written_groups(divided.groups)
            )
        whole = len(before.manifest.stamps) != BUCKETS
        touched: Collection[str] | None = None if whole else stamped.changed.keys() | stamped.gone
        names = [""] * BUCKETS if whole else list(before.manifest.stamps)
        stamps_after = await self._sliced(Stamps.of(stamped.stamps))
        buckets = await self._sliced(dealt(stamps_after, touched))
        # one at a time in the order of writing: a bucket is encoded, packed and forgotten
        numbers = sorted(buckets)
        for start in range(0, len(numbers), MOST_PIECES):
            some = numbers[start : start + MOST_PIECES]
            content = [buckets.pop(number) for number in some]
            packed = await self._saved([encode_stamps_in(stamps) for stamps in content])
            for number, stamps, name in zip(some, content, packed, strict=True):
                names[number] = name if stamps else ""
        manifest = Manifest(
            users=tuple(block.name for block in divided.users) if divided else (),
            groups=tuple(block.name for block in divided.groups) if divided else (),
            stamps=tuple(names),
        )
        state = DirectoryState(
            version=before.version + 1,
            usn=stamped.usn,
            manifest=manifest.dump(),
            fetched_at=fetched_at,
            published_at=self._now(),
            people=people,
            groups=groups,
        )
        await self._store.publish_directory(state, before.version)
        self._edition = Edition(
            version=state.version,
            usn=state.usn,
            manifest=manifest,
            divided=divided,
            stamps=stamps_after,
            fetched_at=fetched_at,
            people=people,
            groups=groups,
        )
        self._stamped = drafts

    def stamped(self, drafts: Sequence[Draft]) -> None:
        """The stamps are known to be of these drafts, which need no digest the next time."""
        self._stamped = drafts

    async def confirm(self, fetched_at: datetime) -> None:
        """
        The source says the same again.

        :raise Conflict: another version was published since.
        """
        await self._store.confirm_directory(self._edition.version, fetched_at)
        self._edition = replace(self._edition, fetched_at=fetched_at, refusal="")

    async def claim(self, now: datetime, since: datetime) -> bool:
        """Whether nobody else has begun to ask the source after ``since``; then nobody else does now."""
        return await self._store.claim_directory(now, since)

    async def refuse(self, refusal: str) -> None:
        """Let all replicas know of a smaller directory."""
        await self._store.refuse_directory(self._edition.version, refusal)
        self._edition = replace(self._edition, refusal=refusal)

    async def drop_old(self) -> None:
        """Now and then remove pieces that no version needs."""
        if self._monotonic() - self._dropped < DROP_SECONDS or not self._edition.version:
            return
        self._dropped = self._monotonic()
        edition = self._edition
        names = edition.manifest.names()
        for _ in range(DROP_BATCHES):
            if not await self._store.drop_directory_pieces(names, edition.version, self._now()):
                return

    async def _written_users(self, blocks: tuple[Block[SourceUser], ...]) -> tuple[Block[SourceUser], ...]:
        new = [block for block in blocks if not block.name]
        names = await self._saved([encode_users(block.items) for block in new])
        named = {id(block): Block(block.items, name) for block, name in zip(new, names, strict=True)}
        return tuple(named.get(id(block), block) for block in blocks)

    async def _written_groups(self, blocks: tuple[Block[SourceGroup], ...]) -> tuple[Block[SourceGroup], ...]:
        new = [block for block in blocks if not block.name]
        names = await self._saved([encode_groups(block.items) for block in new])
        named = {id(block): Block(block.items, name) for block, name in zip(new, names, strict=True)}
        return tuple(named.get(id(block), block) for block in blocks)

    async def _saved(self, contents: Sequence[Generator[None, None, bytes]]) -> list[str]:
        """Write pieces, each in its turn; their names."""
        names: list[str] = []
        for start in range(0, len(contents), MOST_PIECES):
            raws = await self._sliced(_each(contents[start : start + MOST_PIECES]))
            packed: list[tuple[str, str]] = await self._in_thread(
                lambda raws=raws: [pack(raw) for raw in raws]  # type: ignore[misc]
            )
            await self._store.save_directory_pieces(dict(packed), self._now())
            names += [name for name, _ in packed]
        return names


def _each(works: Sequence[Generator[None, None, T]]) -> Generator[None, None, list[T]]:
    """All results. It is one work: of many small ones each would think that it has the whole turn."""
    results: list[T] = []
    for work in works:
        results.append((yield from work))
    return results


class _Gone(Exception):
    """A piece does not exist (any more)."""


def encode_stamps_in(stamps: Mapping[str, Stamp]) -> Generator[None, None, bytes]:
    """One bucket is a slice's work."""
    yield
    return encode_stamps(stamps)


def _put_together(
    known: Stamps, names: Sequence[str], changed: Sequence[int], fresh: Mapping[str, Mapping[str, Stamp]]
) -> Generator[None, None, Stamps]:
    """All stamps: of buckets that changed those that were read, by the piece's name; of the others the known ones."""
    if len(names) == BUCKETS:
        buckets = list(known.buckets)
        for number in changed:
            buckets[number] = fresh.get(names[number], {})
        yield
        return Stamps(tuple(buckets))
    # another program's dealing: everything was read, and is dealt anew
    stamps = NONE
    for name in names:
        stamps = yield from stamps.followed(fresh.get(name, {}))
    return stamps
