"""
Change numbers, as sssd's incremental refreshes need them (spec/ldap section 11.1, the traps).

One counter serves all branches: whatever changes in a refresh gets the same number, greater than any number ever shown.
It follows unix seconds, so that it fits 32 bits and serves as a time too.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from identree.directory.draft import Draft, Stamp
from identree.directory.slices import ITEMS_AT_A_TIME, SLICE, different

DIGEST_BYTES = 16
# sssd keeps numbers partly in 32 bits; in unix seconds this is the year 2106
USN_LIMIT = 2**32

# Cost of a digest in units of SLICE.
_DIGEST_WORK = 3
# Bytes of one entry that one uninterrupted step digests.
_BYTES_AT_A_TIME = 500_000
# With more changes than this, drafts have moved: they are looked for everywhere.
MAX_PLACES = 200
# Into how many parts stamps are dealt, in memory as in the database; 100,000 people make about 800 in each.
BUCKETS = 256


def bucket(key: str) -> int:
    """Where a stamp stands."""
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) & (BUCKETS - 1)


class Stamps(Mapping[str, Stamp]):
    """
    Stamps by key, immutable; one that follows another shares with it all buckets that did not change.

    :ivar buckets: as :func:`bucket` says.
    """

    __slots__ = ("_size", "buckets")

    def __init__(self, buckets: tuple[Mapping[str, Stamp], ...]) -> None:
        self.buckets = buckets
        self._size = sum(map(len, buckets))

    def __getitem__(self, key: str) -> Stamp:
        return self.buckets[bucket(key)][key]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key in self.buckets[bucket(key)]

    def __iter__(self) -> Iterator[str]:
        for each in self.buckets:
            yield from each

    def __len__(self) -> int:
        return self._size

    @classmethod
    def of(cls, stamps: Mapping[str, Stamp]) -> Generator[None, None, Stamps]:
        """The same in this form."""
        if isinstance(stamps, Stamps):
            return stamps
        return (yield from NONE.followed(stamps))

    def followed(self, changed: Mapping[str, Stamp], gone: Collection[str] = ()) -> Generator[None, None, Stamps]:
        """With these stamps, and without those of keys that are gone."""
        if not changed and not gone:
            return self
        buckets = list(self.buckets)
        own: dict[int, dict[str, Stamp]] = {}

        def owned(key: str) -> dict[str, Stamp]:
            at = bucket(key)
            found = own.get(at)
            if found is None:
                buckets[at] = found = own[at] = dict(buckets[at])
            return found

        work = 0
        for key in gone:
            owned(key).pop(key, None)
            work += 1
            if work >= SLICE * 2:
                work = 0
                yield
        for key, stamp in changed.items():
            owned(key)[key] = stamp
            work += 1
            if work >= SLICE * 2:
                work = 0
                yield
        return Stamps(tuple(buckets))

    def differing(self, other: Stamps, most: int) -> Generator[None, None, set[str] | None]:
        """
        Keys whose stamps here differ from the other's, or are missing there.

        :return: None if there are more than ``most`` of them.
        """
        keys: set[str] = set()
        for mine, theirs in zip(self.buckets, other.buckets, strict=True):
            if mine is theirs:
                continue
            yield
            keys.update(key for key, stamp in mine.items() if theirs.get(key) != stamp)
            if len(keys) > most:
                return None
        return keys


NONE = Stamps(tuple({} for _ in range(BUCKETS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Restamped:
    """
    :ivar usn: the highest number shown from now on; the last one when nothing changed.
    :ivar stamps: by key, of all drafts.
    :ivar changed: those of them that are new or different.
    :ivar gone: keys that no draft has any more.
    """

    usn: int
    stamps: Mapping[str, Stamp]
    changed: Mapping[str, Stamp]
    gone: frozenset[str]


def digest(draft: Draft) -> bytes:
    """Of everything that a client can see of it: two drafts with one digest are one entry."""
    steps = _digest(draft)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: bytes = end.value
            return made


def _digest(draft: Draft) -> Generator[None, None, bytes]:
    for _ in draft.encoding():
        yield
    # encoded elements say where they end, so that no two entries are the same text
    text = draft.head + b"".join(draft.pieces)
    if len(text) <= _BYTES_AT_A_TIME:
        return blake2b(text, digest_size=DIGEST_BYTES).digest()
    state = blake2b(digest_size=DIGEST_BYTES)
    for start in range(0, len(text), _BYTES_AT_A_TIME):
        state.update(text[start : start + _BYTES_AT_A_TIME])
        yield
    return state.digest()


def restamp(
    drafts: Sequence[Draft],
    known: Mapping[str, Stamp],
    last_usn: int,
    now_unix: int,
    before: Sequence[Draft] = (),
) -> Generator[None, None, Restamped]:
    """
    Stamp a refresh's drafts. A changed DN under the same key is a change; a clock that goes back does no harm.

    :param known: stamps of the last refresh, by key.
    :param last_usn: the highest number ever shown.
    :param before: the drafts that ``known`` was made for: the very same objects among ``drafts`` are not digested
        again.
    :raise ValueError: the number would not fit 32 bits; the clock is wrong.
    """
    usn = max(last_usn + 1, now_unix)
    if usn >= USN_LIMIT:
        raise ValueError(f"change number {usn} does not fit 32 bits; is the clock right?")
    known = yield from Stamps.of(known)
    changed: dict[str, Stamp] = {}
    hits = 0
    # Both sequences are alike but for a few places, and what is the same in both has been seen to.
    others = yield from _alike(drafts, before)
    hits += len(drafts) - len(others)
    work = 0
    for draft in others:
        work += 1 + _DIGEST_WORK
        if work >= SLICE * 2:
            work = 0
            yield
        stamp = known.get(draft.key)
        hits += stamp is not None
        fresh = yield from _digest(draft)
        if stamp is None:
            changed[draft.key] = Stamp(usn=usn, created=usn, digest=fresh)
        elif stamp.digest != fresh:
            changed[draft.key] = Stamp(usn=usn, created=stamp.created, digest=fresh)
    gone: set[str] = set()
    if hits != len(known):
        keys: set[str] = set()
        for draft in drafts:
            work += 1
            if work >= SLICE * 2:
                work = 0
                yield
            keys.add(draft.key)
        for key in known:
            work += 1
            if work >= SLICE * 2:
                work = 0
                yield
            if key not in keys:
                gone.add(key)
    if not changed and not gone:
        return Restamped(usn=last_usn, stamps=known, changed={}, gone=frozenset())
    stamps = yield from known.followed(changed, gone)
    return Restamped(usn=usn if changed else last_usn, stamps=stamps, changed=changed, gone=frozenset(gone))


def _alike(drafts: Sequence[Draft], before: Sequence[Draft]) -> Generator[None, None, Sequence[Draft]]:
    """Those of the drafts that were not there before, as the same objects or equal ones in the same places."""
    if not before:
        return drafts
    if len(drafts) == len(before):
        places = yield from different(drafts, before, MAX_PLACES)
        if places is not None:
            return [drafts[place] for place in places]
    known: set[int] = set()
    for start in range(0, len(before), ITEMS_AT_A_TIME):
        known.update(map(id, before[start : start + ITEMS_AT_A_TIME]))
        yield
    others: list[Draft] = []
    for start in range(0, len(drafts), ITEMS_AT_A_TIME):
        others += [draft for draft in drafts[start : start + ITEMS_AT_A_TIME] if id(draft) not in known]
        yield
    return others
