"""
Change numbers, as sssd's incremental refreshes need them (spec/ldap section 11.1, the traps).

One counter serves all branches: whatever changes in a refresh gets the same number, greater than any number ever shown.
It follows unix seconds, so that it fits 32 bits and serves as a time too.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from identree.directory.draft import Draft, Stamp
from identree.directory.slices import SLICE, copied

DIGEST_BYTES = 16
# sssd keeps numbers partly in 32 bits; in unix seconds this is the year 2106
USN_LIMIT = 2**32

# Cost of a digest in units of SLICE.
_DIGEST_WORK = 12
# Values of one entry that one uninterrupted step digests.
_VALUES_AT_A_TIME = 2000


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
    # ascii() of texts and bytes is unambiguous, and the same in all versions of Python; as C code it is the fastest too
    if sum(len(values) for _, values in draft.attributes) <= _VALUES_AT_A_TIME:
        return blake2b(ascii((draft.dn, draft.attributes)).encode(), digest_size=DIGEST_BYTES).digest()
    state = blake2b(ascii(draft.dn).encode(), digest_size=DIGEST_BYTES)
    for name, values in draft.attributes:
        state.update(ascii((name, len(values))).encode())
        for start in range(0, len(values), _VALUES_AT_A_TIME):
            state.update(ascii(values[start : start + _VALUES_AT_A_TIME]).encode())
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
    changed: dict[str, Stamp] = {}
    hits = work = 0
    # Both sequences are alike but for a few places, so a walk along both tells most of what is the same. Where they
    # part for good, the rest is looked up.
    place, end = 0, len(before)
    rest: set[int] | None = None
    for draft in drafts:
        work += 1
        if work >= SLICE * 2:
            work = 0
            yield
        stamp = known.get(draft.key)
        if stamp is not None:
            hits += 1
            if rest is None:
                if place < end and before[place] is draft:
                    place += 1
                    continue
                if place < end and before[place].key == draft.key:
                    place += 1
                else:
                    rest = set()
                    for other in before[place:]:
                        work += 1
                        if work >= SLICE * 2:
                            work = 0
                            yield
                        rest.add(id(other))
            if rest is not None and id(draft) in rest:
                continue
        work += _DIGEST_WORK
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
    stamps = yield from copied(known)
    stamps.update(changed)
    for key in gone:
        del stamps[key]
    return Restamped(usn=usn if changed else last_usn, stamps=stamps, changed=changed, gone=frozenset(gone))
