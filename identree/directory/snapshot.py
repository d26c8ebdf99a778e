"""
What is served: every entry encoded once, and the indexes that find it; immutable, swapped as a whole.

A search is answered from candidates (:meth:`Snapshot.candidates`: the most selective indexed term of its filter) or,
failing that, from the blocks of its scope (:meth:`Snapshot.blocks`): entries of one shape under one parent, for which
most of a filter is decided at once.

Building is a generator of short steps, and shares with the snapshot before whatever did not change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Generic, TypeVar

from . import dn, schema
from .draft import Attributes, Draft, Kind, Stamp, encode_one, encoded_name
from .filters import And, Approx, Equal, Filter, GreaterOrEqual, Or, Present, alternatives
from .schema import AttributeType
from .slices import different
from .stamps import NONE, Stamps

# Work of one step of a build, in units of about half a microsecond: some 2 ms.
STEP = 3000
# What an entry costs that is made anew, beside its values, in the same units.
_ENTRY_COST = 40
# Beyond this many entries with one value, the value selects nothing and is no longer indexed.
MAX_BUCKET = 2000
# Last changed entries that a question for changes is answered from; more changes than this are found by a scan.
MAX_RECENT = 4096
# What finding candidates may come to, in entries that are looked at, some 0.2 microseconds each; a look into an index
# counts as five, a changed entry, whose time is to be made, as eight. The largest filter has 5000 terms. Whoever needs
# more is answered by a scan, in steps.
MAX_PLANNING = 30_000
_LOOK_COST = 5
_CHANGE_COST = 8
# An index is split so that a change copies little of it, and so that dropping an old one costs little at once.
_SHARDS = 64
# Up to so many entries that changed in their places, the next snapshot is the last one with these replaced.
MAX_REPLACED = 200

BASE, ONE, SUBTREE, SUBORDINATES = range(4)

# Attributes with exact indexes (spec/ldap section 14.8); object classes are decided by the blocks.
INDEXED = ("uid", "uidNumber", "cn", "gidNumber", "memberUid", "member", "mail", "sudoUser", "sudoHost", "entryUUID")

_TIMESTAMP = schema.BY_NAME["modifytimestamp"]
_CREATED = schema.BY_NAME["createtimestamp"]
_USN = schema.BY_NAME["entryusn"]
_ENTRY_DN = schema.BY_NAME["entrydn"]
_STRUCTURAL = schema.BY_NAME["structuralobjectclass"]
_SUBORDINATES = schema.BY_NAME["hassubordinates"]
_SUBSCHEMA = schema.BY_NAME["subschemasubentry"]
_OBJECT_CLASS = schema.BY_NAME["objectclass"]
# the last two pieces of every stamped entry
_STAMPED = (_TIMESTAMP, _USN)


class NoSuchObject(Exception):
    """
    :ivar matched_dn: of the nearest entry above that exists, as it is sent; empty if there is none.
    """

    def __init__(self, matched_dn: str) -> None:
        super().__init__("there is no such entry")
        self.matched_dn = matched_dn


@lru_cache(maxsize=1024)
def timestamp(usn: int) -> bytes:
    """A change number as the time that it is."""
    return datetime.fromtimestamp(usn, UTC).strftime("%Y%m%d%H%M%SZ").encode()


ShapeKey = tuple[tuple[str, ...], tuple[bytes, ...], bool, bool]


class Shape:
    """
    What entries with the same attributes and object classes have in common.

    :ivar key: attribute names, object classes, whether these entries are stamped, and whether some are below them.
    :ivar types: of every attribute, in the order of the entry's pieces, then those that have no piece.
    :ivar pieces: how many of ``types`` have a piece.
    :ivar classes: normalised object classes, superclasses included.
    """

    __slots__ = ("_positions", "_user", "classes", "indexed", "key", "pieces", "structural", "types")

    def __init__(self, key: ShapeKey) -> None:
        names, classes, stamped, _ = self.key = key
        types = tuple(_TYPES[name] for name in names)
        # what its entries are indexed by: place, name and rule
        self.indexed = tuple(
            (place, name, type_.normalise)
            for place, (name, type_) in enumerate(zip(names, types, strict=True))
            if name in _INDEXED
        )
        self.structural = schema.structural_class(classes)
        self.classes = schema.with_superclasses(classes)
        self._user = len(types)
        if stamped:
            types += _STAMPED
        self.pieces = len(types)
        if stamped:
            types += (_CREATED, _ENTRY_DN, _SUBORDINATES, _SUBSCHEMA)
            if self.structural is not None:
                types += (_STRUCTURAL,)
        self.types = types
        self._positions = {type_: at for at, type_ in enumerate(types)}

    def dn(self, entry: Entry) -> str:
        return entry.draft.dn

    def position(self, type_: AttributeType) -> int | None:
        """Where the attribute is in ``types`` and, below ``pieces``, in the entry's pieces."""
        return self._positions.get(type_)

    def reader(self, type_: AttributeType) -> Callable[[Entry], Sequence[bytes]] | None:
        at = self._positions.get(type_)
        if at is None:
            return None
        if at < self._user:
            place = at
            return lambda entry: entry.draft.values_at(place)
        if type_ is _TIMESTAMP:
            return lambda entry: (timestamp(entry.usn),)
        if type_ is _USN:
            return lambda entry: (b"%d" % entry.usn,)
        if type_ is _CREATED:
            return lambda entry: (timestamp(entry.created),)
        if type_ is _ENTRY_DN:
            return lambda entry: (entry.draft.dn.encode(),)
        if type_ is _SUBORDINATES:
            constant = b"TRUE" if self.key[3] else b"FALSE"
        elif type_ is _SUBSCHEMA:
            constant = schema.SUBSCHEMA_DN.encode()
        else:
            constant = self.structural or b""
        return lambda entry: (constant,)


class Entry:
    """
    One entry.

    :ivar usn: its change number, also the time of its change; 0 for entries that are not stamped.
    :ivar head: its DN as it is sent, an encoded OCTET STRING.
    :ivar pieces: encoded PartialAttributes, as ``shape.types`` says.
    :ivar normal: its DN as DNs are compared.
    :ivar parent: the same of the entry above; one object for all entries below it.
    """

    __slots__ = ("draft", "head", "normal", "parent", "pieces", "shape", "stamp", "usn")

    def __init__(
        self,
        draft: Draft,
        stamp: Stamp | None,
        shape: Shape,
        pieces: tuple[bytes, ...],
        normal: str,
        parent: str,
    ) -> None:
        self.draft = draft
        self.stamp = stamp
        self.usn = stamp.usn if stamp is not None else 0
        self.shape = shape
        self.head = draft.head
        self.pieces = pieces
        self.normal = normal
        self.parent = parent

    def __repr__(self) -> str:
        return f"<Entry {self.draft.dn!r}>"

    @property
    def created(self) -> int:
        """The change number of its first sight; 0 for entries that are not stamped."""
        return self.stamp.created if self.stamp is not None else 0

    @classmethod
    def alone(cls, dn_text: str, attributes: Attributes) -> Entry:
        """An entry that is in no tree, such as the root DSE: it has these attributes and no others."""
        return run(
            _Maker(None).make(Draft(Kind.ROOT, "alone", dn_text, attributes), None, dn.parse(dn_text).normal, False)
        )

    def values(self, type_: AttributeType) -> Sequence[bytes]:
        """The values of an attribute, operational ones included; none if the entry does not have it."""
        read = self.shape.reader(type_)
        return () if read is None else read(self)


T = TypeVar("T")


def run(steps: Generator[object, None, T]) -> T:
    """The result of a build that need not be done in steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


_TYPES = {type_.name: type_ for type_ in schema.BY_NAME.values()}
_INDEXED = frozenset(INDEXED)


class _Maker:
    """Makes entries, and keeps what they share."""

    def __init__(self, previous: Snapshot | None) -> None:
        self._shapes: dict[ShapeKey, Shape] = dict(previous.shapes) if previous is not None else {}
        # the same by the encoded object classes
        self._encoded: dict[tuple[tuple[str, ...], bytes, bool, bool], Shape] = {}
        self._stamped: dict[int, tuple[bytes, bytes]] = {}
        self._parents: dict[str, str] = {}

    def parent(self, normal: str) -> str:
        """The normal DN above, the same object each time."""
        _, _, above = normal.partition(",")
        if "\\" in normal:
            over = dn.parse(normal).parent
            above = over.normal if over is not None else ""
        return self._parents.setdefault(above, above)

    def make(self, draft: Draft, stamp: Stamp | None, normal: str, parental: bool) -> Generator[int, None, Entry]:
        """
        :raise ValueError: the draft has an attribute that the schema lacks.
        """
        yield from draft.encoding()
        pieces = draft.pieces
        names = draft.names
        place = names.index("objectClass") if "objectClass" in names else -1
        key = (names, pieces[place] if place >= 0 else b"", stamp is not None, parental)
        shape = self._encoded.get(key)
        if shape is None:
            shape = self._encoded[key] = self._shape(draft, place, stamp is not None, parental)
        if stamp is not None:
            pieces += self._stamp(stamp.usn)
            draft.share(pieces)
        return Entry(draft, stamp, shape, pieces, normal, self.parent(normal))

    def _shape(self, draft: Draft, classes: int, stamped: bool, parental: bool) -> Shape:
        for name in draft.names:
            if name not in _TYPES:
                raise ValueError(f"{draft.dn}: the schema has no attribute {name}")
        key = (draft.names, draft.values_at(classes) if classes >= 0 else (), stamped, parental)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = Shape(key)
        return shape

    def _stamp(self, usn: int) -> tuple[bytes, bytes]:
        found = self._stamped.get(usn)
        if found is None:
            encoded = (timestamp(usn), b"%d" % usn)
            pair = [encode_one(encoded_name(type_.name), value) for type_, value in zip(_STAMPED, encoded, strict=True)]
            found = self._stamped[usn] = (pair[0], pair[1])
        return found


# --- indexes ---------------------------------------------------------------------------------------------------------

Key = TypeVar("Key", bound=Hashable)
# One entry, several, or none of them any more: MANY.
Hit = Entry | tuple[Entry, ...]
MANY: tuple[Entry, ...] = ()


class Index(Generic[Key]):
    """Entries by a value."""

    __slots__ = ("shards",)

    def __init__(self, shards: tuple[dict[Key, Hit], ...]) -> None:
        self.shards = shards

    def get(self, key: Key) -> Hit | None:
        """An entry, a tuple of them, or :data:`MANY` for a value that is not selective; None: no entry has it."""
        return self.shards[hash(key) % _SHARDS].get(key)

    @classmethod
    def empty(cls) -> Index[Key]:
        return cls(tuple({} for _ in range(_SHARDS)))


def _found(index: Index[bytes], value: bytes) -> Sequence[Entry] | None:
    found = index.get(value)
    if found is None:
        return ()
    if isinstance(found, Entry):
        return (found,)
    return None if found is MANY else found


class _Edit(Generic[Key]):
    """The next index: what changes is copied, shard by shard, and the rest is shared."""

    def __init__(self, index: Index[Key]) -> None:
        self._shards = list(index.shards)
        self._own = bytearray(_SHARDS)

    def _shard(self, key: Key) -> dict[Key, Hit]:
        at = hash(key) % _SHARDS
        if not self._own[at]:
            self._own[at] = 1
            self._shards[at] = self._shards[at].copy()
        return self._shards[at]

    def add(self, key: Key, entry: Entry) -> None:
        at = hash(key) % _SHARDS
        shard = self._shards[at] if self._own[at] else self._shard(key)
        before = shard.setdefault(key, entry)
        if before is entry:
            return
        if isinstance(before, Entry):
            shard[key] = (before, entry)
        elif before is not MANY and before[-1] is not entry:
            shard[key] = (*before, entry) if len(before) < MAX_BUCKET else MANY

    def remove(self, key: Key, entry: Entry) -> None:
        shard = self._shard(key)
        before = shard.get(key)
        if before is entry:
            del shard[key]
        elif before is not None and not isinstance(before, Entry) and before is not MANY:
            after = tuple(each for each in before if each is not entry)
            if after:
                shard[key] = after[0] if len(after) == 1 else after
            else:
                shard.pop(key)

    def has(self, key: Key) -> bool:
        return key in self._shards[hash(key) % _SHARDS]

    def done(self) -> Index[Key]:
        return Index(tuple(self._shards))


class Block:
    """
    Entries of one shape under one parent, in the order of the drafts.

    :ivar parent: the parent's normal DN.
    """

    __slots__ = ("entries", "parent", "shape")

    def __init__(self, parent: str, shape: Shape, entries: tuple[Entry, ...]) -> None:
        self.parent = parent
        self.shape = shape
        self.entries = entries


# --- the snapshot ----------------------------------------------------------------------------------------------------


class Snapshot:
    """
    :ivar version: greater by one than that of the snapshot that it was built from.
    :ivar usn: the highest change number shown so far, also by entries that are gone.
    :ivar entries: in the order of the drafts.
    """

    __slots__ = (
        *("_blocks", "_by_dn", "_containers", "_drafts", "_floor", "_indexes", "_recent", "_stamps"),
        *("base", "base_dn", "entries", "shapes", "usn", "version"),
    )

    def __init__(
        self,
        *,
        base_dn: str,
        version: int,
        usn: int,
        entries: tuple[Entry, ...],
        by_dn: Index[str],
        indexes: dict[str, Index[bytes]],
        blocks: dict[str, tuple[Block, ...]],
        shapes: dict[ShapeKey, Shape],
        recent: tuple[Entry, ...],
        floor: int,
        drafts: Sequence[Draft] = (),
        stamps: Mapping[str, Stamp] = NONE,
    ) -> None:
        self.base_dn = base_dn
        self.base = dn.normal(base_dn)
        self.version = version
        self.usn = usn
        self.entries = entries
        self.shapes = shapes
        self._by_dn = by_dn
        self._indexes = indexes
        self._blocks = blocks
        self._recent = recent
        # every entry with a greater change number is in _recent
        self._floor = floor
        # what it was built from
        self._drafts = drafts
        self._stamps = stamps
        # normal DN of a parent to the normal DNs of those directly below it that are parents themselves
        self._containers: dict[str, list[str]] = {}
        for parent in blocks:
            entry = by_dn.get(parent)
            if isinstance(entry, Entry):
                self._containers.setdefault(entry.parent, []).append(parent)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"<Snapshot {self.version} of {self.base_dn!r}: {len(self.entries)} entries, usn {self.usn}>"

    def by_dn(self, normal: str) -> Entry | None:
        """The entry of that (normal) DN."""
        found = self._by_dn.get(normal)
        return found if isinstance(found, Entry) else None

    def index(self, type_: AttributeType) -> Index[bytes] | None:
        """The exact index of an attribute, by normalised values; None: it has none."""
        return self._indexes.get(type_.name)

    def lookup(self, attribute: str, value: bytes) -> Sequence[Entry] | None:
        """
        The entries with a (normalised) value of an attribute.

        :return: None if no index can tell, since there is none or too many entries have the value.
        """
        type_ = schema.BY_NAME.get(attribute.lower())
        return None if type_ is None else self.holders(type_, value)

    def find(self, base_dn: str) -> Entry:
        """
        The entry that a search or comparison is based at.

        :raise ValueError: the text is no DN.
        :raise NoSuchObject: there is no such entry.
        """
        parsed = dn.normal(base_dn)
        found = self.by_dn(parsed)
        if found is not None:
            return found
        above = dn.parse(base_dn).parent
        while above is not None:
            near = self.by_dn(above.normal)
            if near is not None:
                raise NoSuchObject(near.draft.dn)
            above = above.parent
        raise NoSuchObject("")

    def in_scope(self, entry: Entry, base: Entry, scope: int) -> bool:
        """Whether a search of ``scope`` from ``base`` covers the entry."""
        if entry is base:
            return scope in (BASE, SUBTREE)
        if scope == BASE:
            return False
        above = entry.parent
        if above == base.normal:
            return True
        if scope == ONE:
            return False
        while above:
            parent = self.by_dn(above)
            if parent is None:
                return False
            above = parent.parent
            if above == base.normal:
                return True
        return False

    def blocks(self, base: Entry, scope: int) -> Iterator[Block]:
        """Everything in the scope, the base itself first."""
        if scope in (BASE, SUBTREE):
            yield Block(base.parent, base.shape, (base,))
        if scope == BASE:
            return
        waiting = [base.normal]
        while waiting:
            parent = waiting.pop(0)
            yield from self._blocks.get(parent, ())
            if scope != ONE:
                waiting += self._containers.get(parent, ())

    # --- planning ---

    def candidates(self, filter: Filter, by_change: bool = True) -> Sequence[Entry] | None:
        """
        A superset of the entries for which the filter is True, in any scope; None: only a scan can tell.

        :param by_change: whether change numbers may select; not in a view, where some are seen as later ones.
        """
        return self._candidates(filter, by_change, [MAX_PLANNING])

    def _candidates(self, filter: Filter, by_change: bool, left: list[int]) -> Sequence[Entry] | None:
        """:param left: of :data:`MAX_PLANNING`; one number, which becomes less."""
        if left[0] <= 0:
            return None
        left[0] -= _LOOK_COST
        if isinstance(filter, And):
            best: Sequence[Entry] | None = None
            for part in filter.parts:
                found = self._candidates(part, by_change, left)
                if found is not None and (best is None or len(found) < len(best)):
                    best = found
                    if len(best) <= 1:
                        break
            return best
        if isinstance(filter, Or):
            return self._any(filter, by_change, left)
        if isinstance(filter, (Equal, Approx)):
            return self._equal(filter.attribute, filter.value)
        if isinstance(filter, GreaterOrEqual) and by_change:
            left[0] -= _CHANGE_COST * len(self._recent)
            return self._since(filter)
        if isinstance(filter, Present):
            types = schema.known(filter.attribute)
            if types is None or not any(
                shape.position(type_) is not None for shape in self.shapes.values() for type_ in types
            ):
                return ()
        return None

    def _any(self, filter: Or, by_change: bool, left: list[int]) -> Sequence[Entry] | None:
        union: dict[Entry, None] = {}
        wanted, rest = alternatives(filter.parts)
        for part in rest:
            found = self._candidates(part, by_change, left)
            if found is None:
                return None
            left[0] -= len(found)
            union.update(dict.fromkeys(found))
        for type_, values in wanted.items():
            for value in values:
                found = self._having(type_, value)
                if found is None:
                    return None
                left[0] -= _LOOK_COST + len(found)
                if left[0] <= 0:
                    return None
                union.update(dict.fromkeys(found))
        return tuple(union)

    def _equal(self, attribute: str, value: bytes) -> Sequence[Entry] | None:
        types = schema.known(attribute)
        if not types:
            return ()
        if len(types) > 1:
            return None
        wanted = types[0].normalise(value)
        return () if wanted is None else self._having(types[0], wanted)

    def _having(self, type_: AttributeType, wanted: bytes) -> Sequence[Entry] | None:
        """:param wanted: normalised."""
        if type_ is _OBJECT_CLASS:
            return None if any(wanted in shape.classes for shape in self.shapes.values()) else ()
        if type_ is _ENTRY_DN:
            entry = self.by_dn(wanted.decode())
            return () if entry is None else (entry,)
        return self.holders(type_, wanted)

    def holders(self, type_: AttributeType, value: bytes) -> Sequence[Entry] | None:
        """The same as :meth:`lookup` by the type itself."""
        index = self._indexes.get(type_.name)
        return None if index is None else _found(index, value)

    def _since(self, filter: GreaterOrEqual) -> Sequence[Entry] | None:
        types = schema.known(filter.attribute)
        if not types:
            return ()
        type_ = types[0]
        asked = type_.normalise(filter.value)
        if asked is None:
            return ()
        if type_ is _USN:
            number = int(asked)
            return [entry for entry in self._recent if entry.usn >= number] if number > self._floor else None
        if type_ is _TIMESTAMP and asked > timestamp(self._floor)[:-1]:
            return [entry for entry in self._recent if timestamp(entry.usn)[:-1] >= asked]
        return None

    # --- building ---

    @staticmethod
    def build(
        base_dn: str,
        drafts: Sequence[Draft],
        stamps: Mapping[str, Stamp],
        previous: Snapshot | None = None,
        usn: int = 0,
    ) -> Generator[None, None, Snapshot]:
        """
        Build a snapshot in steps of about 2 ms.

        :param drafts: a parent before what is below it; an identical object with an equal stamp costs next to nothing.
        :param stamps: by the drafts' keys. With :class:`Stamps`, and drafts in a tuple, the next snapshot is a quick
            one if only a few entries change in their places.
        :param usn: the highest change number known to have been shown; entries that had it may be gone.
        :raise ValueError: a draft without stamp or parent, two of one DN, or an attribute that the schema lacks.
        """
        if previous is not None and previous.base_dn != base_dn:
            previous = None
        return _build(base_dn, drafts, stamps, previous, usn)

    def retire(self) -> Generator[None, None, None]:
        """
        Let go of a snapshot in steps, once the caller has dropped its own references; freed at once, a large one would
        hold up everything else. Whoever still uses it is not disturbed.
        """
        entries = list(self.entries)
        shards: list[object] = [shard for index in self._indexes.values() for shard in index.shards]
        shards += self._by_dn.shards
        blocks = [block for each in self._blocks.values() for block in each]
        return _retire(entries, shards, blocks)

    def view(self, view: View, narrowed: Narrowed | None = None) -> Sight:
        """What one host sees of this; made as it is looked at. ``narrowed``: see :class:`Sight`."""
        return Sight(self, view, narrowed)


def _retire(*parts: list[Any]) -> Generator[None, None, None]:
    entries, shards, blocks = parts
    while blocks:
        blocks.pop()
        yield
    while shards:
        shards.pop()
        yield
    while entries:
        del entries[-500:]
        yield


def _keys(entry: Entry, known: dict[bytes, bytes]) -> Iterator[tuple[str, bytes]]:
    """
    What the entry is indexed by.

    :param known: makes one object of equal keys of several indexes and entries.
    """
    values_at = entry.draft.values_at
    for place, name, normalise in entry.shape.indexed:
        for value in values_at(place):
            normal = normalise(value)
            if normal is not None:
                yield name, known.setdefault(normal, normal) if name in _REPEATED else normal


# Indexes whose keys are those of other indexes and entries too: a person's name is one of a private group and a member.
_REPEATED = frozenset(("uid", "cn", "memberUid", "sudoUser", "member"))


def _build(
    base_dn: str,
    drafts: Sequence[Draft],
    stamps: Mapping[str, Stamp],
    previous: Snapshot | None,
    usn: int,
) -> Generator[None, None, Snapshot]:
    maker = _Maker(previous)
    base = dn.normal(base_dn)
    blocks: dict[str, tuple[Block, ...]] | None = None
    entries: Sequence[Entry] = ()
    replaced = None if previous is None else (yield from _replaced(drafts, stamps, previous, maker))
    if previous is not None and replaced is not None:
        places, fresh = replaced
        gone = [previous.entries[place] for place in places]
        blocks = yield from _with_replaced(previous._blocks, gone, fresh)
        own = list(previous.entries)
        for place, entry in zip(places, fresh, strict=True):
            own[place] = entry
        yield
        entries = tuple(own)
        del own
        yield
    else:
        entries, fresh, gone = yield from _entries(drafts, stamps, previous, maker)
    by_dn = _Edit(previous._by_dn if previous is not None else Index[str].empty())
    indexes = {
        name: _Edit(previous._indexes[name] if previous is not None else Index[bytes].empty()) for name in INDEXED
    }
    keys: dict[bytes, bytes] = {}
    work = 0
    for changed, adding in ((gone, False), (fresh, True)):
        for entry in changed:
            if adding:
                if by_dn.has(entry.normal):
                    raise ValueError(f"{entry.draft.dn}: there are two entries of this name")
                by_dn.add(entry.normal, entry)
            else:
                by_dn.remove(entry.normal, entry)
            work += 2
            for name, key in _keys(entry, keys):
                edit = indexes[name]
                (edit.add if adding else edit.remove)(key, entry)
                work += 2
                if work > STEP:
                    work = 0
                    yield
    del keys
    names = by_dn.done()
    highest = 0
    lowest = _NEVER
    last = base
    for at, entry in enumerate(fresh):
        if entry.parent is not last and entry.normal != base:
            last = entry.parent
            if names.get(last) is None:
                raise ValueError(f"{entry.draft.dn}: there is nothing above it")
        highest = max(highest, entry.usn)
        lowest = min(lowest, entry.usn)
        if at % STEP == 0:
            yield
    yield
    if blocks is None:
        blocks = yield from _blocks(entries, base)
    recent, floor = yield from _recent(entries, gone, fresh, lowest, previous)
    shapes = {block.shape.key: block.shape for each in blocks.values() for block in each}
    root = names.get(base)
    if isinstance(root, Entry):
        shapes[root.shape.key] = root.shape
    return Snapshot(
        base_dn=base_dn,
        version=previous.version + 1 if previous is not None else 1,
        usn=max(usn, highest, previous.usn if previous is not None else 0),
        entries=entries,
        by_dn=names,
        indexes={name: edit.done() for name, edit in indexes.items()},
        blocks=blocks,
        shapes=shapes,
        recent=recent,
        floor=floor,
        # of what may still change nothing can be concluded later
        drafts=drafts if isinstance(drafts, tuple) else (),
        stamps=stamps,
    )


def _entries(
    drafts: Sequence[Draft], stamps: Mapping[str, Stamp], previous: Snapshot | None, maker: _Maker
) -> Generator[None, None, tuple[tuple[Entry, ...], list[Entry], list[Entry]]]:
    """All entries in their order; those that are new; and those of the snapshot before that are not there any more."""
    entries: list[Entry] = []
    fresh: list[Entry] = []
    old = _Old(previous.entries if previous is not None else ())
    # normal DNs that something is below
    parents: set[str] = set()
    last = ""
    # containers say whether something is below them, so they are made last, the lowest first
    waiting: list[tuple[int, Draft, Entry | None]] = []
    work = 0
    for draft in drafts:
        found = old.entry(draft)
        if old.lost:
            yield from old.search()
            found = old.entry(draft)
        if draft.kind in _PARENTAL:
            waiting.append((len(entries), draft, found))
            entries.append(_PLACEHOLDER)
            continue
        stamp = stamps.get(draft.key)
        if found is not None and stamp is not None and (found.stamp is stamp or _same(found, stamp)):
            entry = found
            work += 1
        else:
            entry = yield from _paced(maker.make(draft, _needed(draft, stamp), dn.normal(draft.dn), False))
            fresh.append(entry)
            work += _ENTRY_COST
            if found is not None:
                old.gone.append(found)
        if entry.parent is not last:
            last = entry.parent
            parents.add(last)
        entries.append(entry)
        if work > STEP:
            work = 0
            yield
    for place, draft, found in reversed(waiting):
        stamp = _needed(draft, stamps.get(draft.key))
        normal = dn.normal(draft.dn)
        above = normal in parents
        if found is None or not _same(found, stamp) or found.shape.key[3] is not above:
            if found is not None:
                old.gone.append(found)
            found = yield from _paced(maker.make(draft, stamp, normal, above))
            fresh.append(found)
        parents.add(found.parent)
        entries[place] = found
    yield from old.rest()
    yield
    return tuple(entries), fresh, old.gone


def _replaced(
    drafts: Sequence[Draft], stamps: Mapping[str, Stamp], previous: Snapshot, maker: _Maker
) -> Generator[None, None, tuple[list[int], list[Entry]] | None]:
    """
    Places where a few entries changed, and what is there now; None if anything else has changed too. It is how most
    refreshes are, and spares a look at everybody.
    """
    if len(drafts) != len(previous._drafts) or not isinstance(stamps, Stamps):
        return None
    if not isinstance(previous._stamps, Stamps):
        return None
    restamped = yield from stamps.differing(previous._stamps, MAX_REPLACED)
    if restamped is None:
        return None
    places = yield from different(drafts, previous._drafts, MAX_REPLACED)
    if places is None:
        return None
    fresh: list[Entry] = []
    for place in places:
        draft, old = drafts[place], previous.entries[place]
        if draft.kind in _PARENTAL or draft.key != old.draft.key:
            return None
        stamp = _needed(draft, stamps.get(draft.key))
        entry = yield from _paced(maker.make(draft, stamp, dn.normal(draft.dn), False))
        if entry.shape is not old.shape or entry.parent != old.parent:
            return None
        entry.parent = old.parent
        fresh.append(entry)
        restamped.discard(draft.key)
        yield
    # an entry that got another stamp and is the same otherwise
    return None if restamped else (places, fresh)


def _with_replaced(
    blocks: dict[str, tuple[Block, ...]], gone: list[Entry], fresh: list[Entry]
) -> Generator[None, None, dict[str, tuple[Block, ...]]]:
    """The blocks with some entries in the places of others of their shape."""
    instead = {id(old): new for old, new in zip(gone, fresh, strict=True)}
    touched = {(old.parent, old.shape) for old in gone}
    made = dict(blocks)
    for parent in {old.parent for old in gone}:
        each = list(made[parent])
        for number, block in enumerate(each):
            if (parent, block.shape) not in touched:
                continue
            members: list[Entry] = []
            for at in range(0, len(block.entries), STEP * 4):
                some = block.entries[at : at + STEP * 4]
                members += map(instead.get, map(id, some), some)
                yield
            each[number] = Block(parent, block.shape, tuple(members))
            yield
        made[parent] = tuple(each)
    return made


_PARENTAL = (Kind.ROOT, Kind.CONTAINER)


# above every change number
_NEVER = 2**63
_PLACEHOLDER = Entry.alone("", ())


def _needed(draft: Draft, stamp: Stamp | None) -> Stamp:
    if stamp is None:
        raise ValueError(f"{draft.dn}: there is no stamp for it")
    return stamp


def _same(entry: Entry, stamp: Stamp) -> bool:
    return entry.usn == stamp.usn and entry.created == stamp.created


def _paced(making: Generator[int, None, Entry]) -> Generator[None, None, Entry]:
    """A step for every :data:`STEP` units of work that are reported."""
    work = 0
    while True:
        try:
            work += next(making)
        except StopIteration as end:
            entry: Entry = end.value
            return entry
        if work >= STEP // 2:
            work = 0
            yield


class _Old:
    """
    Entries of the snapshot before, found again by their drafts: side by side as long as the order is the same, else by
    identity.

    :ivar lost: :meth:`entry` cannot tell before :meth:`search` has run.
    :ivar gone: entries that are not found again.
    """

    # entries in a row that may be missing, and drafts that may be new, before the order counts as another one
    _WINDOW = 16
    _MISSES = 200

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self._entries = entries
        self._at = 0
        self._misses = 0
        self._by_draft: dict[int, Entry] | None = None
        self.lost = False
        self.gone: list[Entry] = []

    def entry(self, draft: Draft) -> Entry | None:
        """The entry of this very draft; each only once."""
        if self._by_draft is not None:
            return self._by_draft.pop(id(draft), None)
        at = self._at
        if at >= len(self._entries):
            return None
        entry = self._entries[at]
        if entry.draft is draft:
            self._at = at + 1
            return entry
        if entry.draft.key == draft.key:
            self._at = at + 1
            self.gone.append(entry)
            return None
        for ahead in range(at + 1, min(at + self._WINDOW, len(self._entries))):
            if self._entries[ahead].draft is draft:
                self.gone += self._entries[at:ahead]
                self._at = ahead + 1
                return self._entries[ahead]
        self._misses += 1
        self.lost = self._misses > self._MISSES
        return None

    def search(self) -> Iterator[None]:
        """Go on by identity."""
        self.lost = False
        # what was passed over may well come later
        found: dict[int, Entry] = {id(entry.draft): entry for entry in self.gone}
        self.gone = []
        for at in range(self._at, len(self._entries), STEP):
            found.update((id(entry.draft), entry) for entry in self._entries[at : at + STEP])
            yield
        self._by_draft = found

    def rest(self) -> Iterator[None]:
        """At the end: what was not found again is gone."""
        rest = self._entries[self._at :] if self._by_draft is None else tuple(self._by_draft.values())
        yield
        self.gone += rest


def _blocks(entries: Sequence[Entry], base: str) -> Generator[None, None, dict[str, tuple[Block, ...]]]:
    grouped: dict[tuple[str, Shape], list[Entry]] = {}
    last: tuple[str, Shape] | None = None
    into: list[Entry] = []
    for at, entry in enumerate(entries):
        if last is None or entry.shape is not last[1] or entry.parent is not last[0]:
            last = (entry.parent, entry.shape)
            into = grouped.setdefault(last, [])
        into.append(entry)
        if at % (STEP * 2) == 0:
            yield
    blocks: dict[str, list[Block]] = {}
    for (parent, shape), members in grouped.items():
        if members[0].normal != base:
            blocks.setdefault(parent, []).append(Block(parent, shape, tuple(members)))
    yield
    return {parent: tuple(each) for parent, each in blocks.items()}


def _recent(
    entries: Sequence[Entry], gone: list[Entry], fresh: list[Entry], lowest: int, previous: Snapshot | None
) -> Generator[None, None, tuple[tuple[Entry, ...], int]]:
    """The last changed entries, and the change number above which they are all."""
    pool: Sequence[Entry]
    floor = 0
    if previous is not None and lowest > previous._floor:
        without = set(map(id, gone))
        pool = [entry for entry in previous._recent if id(entry) not in without] + fresh
        floor = previous._floor
    else:
        pool = entries
    counts: dict[int, int] = {}
    for at, entry in enumerate(pool):
        counts[entry.usn] = counts.get(entry.usn, 0) + 1
        if at % (STEP * 2) == 0:
            yield
    total = 0
    for usn in sorted(counts, reverse=True):
        total += counts[usn]
        if total > MAX_RECENT:
            floor = max(floor, usn)
            break
    recent: list[Entry] = []
    for at in range(0, len(pool), STEP * 4):
        recent += [entry for entry in pool[at : at + STEP * 4] if entry.usn > floor]
        yield
    return tuple(recent), floor


# --- views -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """
    What one host may see (spec/ldap section 14.32).

    :ivar people: names of accounts; None: all.
    """

    hostname: str
    people: frozenset[str] | None = None


# A host name or the first part of one. What a rule names otherwise may be an address, a network, a netgroup or a
# pattern, of which we do not know whether the host is meant.
_HOSTNAME = re.compile(r"[A-Za-z0-9_-]*[A-Za-z_-][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")


def concerns(hostname: str, host: str) -> bool:
    """Whether a value of sudoHost may mean the host: also when only the host itself can tell."""
    host, hostname = host.lower(), hostname.lower().rstrip(".")
    if host == "all" or not _HOSTNAME.fullmatch(host) or _is_address(host):
        return True
    if host == hostname:
        return True
    # one of the two may be the short name
    return host == hostname.partition(".")[0] or host.partition(".")[0] == hostname


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


_SUDO_USER, _SUDO_HOST = schema.BY_NAME["sudouser"], schema.BY_NAME["sudohost"]
# Attributes of which a host sees only the values that name people of its view.
NARROWED = frozenset(("memberUid", "member", "sudoUser"))
_PERSONAL = (Kind.PERSON, Kind.PRIVATE_GROUP)


# Groups and rules as whoever has the same people sees them; None: a rule that shows nobody.
Narrowed = dict[Entry, "Entry | None"]
# Values that one step of narrowing looks at, some 2 microseconds each.
_VALUES_AT_ONCE = 400


class Sight:
    """
    A snapshot as a host sees it: people and their own groups only if the view has them; groups without the members
    that it does not have; rules that concern the host, without users that it does not have.

    A group or rule that shows some of its members carries the change number of the last of them that changed, if that
    is later than its own: a person who comes into view is a change of the group, which sssd must not miss.

    :param narrowed: what sights of this snapshot with the same people have seen so far, and will have.
    """

    def __init__(self, snapshot: Snapshot, view: View, narrowed: Narrowed | None = None) -> None:
        self._snapshot = snapshot
        self._view = view
        self._narrowed: Narrowed = {} if narrowed is None else narrowed
        # whether a rule concerns the host; as many as the snapshot has, at most
        self._concerns: dict[Entry, bool] = {}
        self._maker = _Maker(None)

    def see(self, entry: Entry) -> Entry | None:
        """The entry as the host sees it; None: it does not."""
        if entry.draft.kind in _PERSONAL:
            people = self._view.people
            return entry if people is None or _name(entry) in people else None
        return run(self.looking(entry))

    def weight(self, entry: Entry) -> int:
        """
        Bytes of the entry that :meth:`see` has to go through, in up to a quarter of a microsecond each; beyond a few
        thousand :meth:`looking` is to be used.
        """
        kind = entry.draft.kind
        if (kind is not Kind.GROUP and kind is not Kind.ROLE) or entry in self._narrowed:
            return 0
        return sum(map(len, entry.pieces))

    def looking(self, entry: Entry) -> Generator[None, None, Entry | None]:
        """The same as :meth:`see` in short steps."""
        kind, people = entry.draft.kind, self._view.people
        if kind in _PERSONAL:
            return self.see(entry)
        if kind is Kind.ROLE and not self._concerned(entry):
            return None
        if people is None or (kind is not Kind.ROLE and kind is not Kind.GROUP):
            return entry
        if entry not in self._narrowed:
            self._narrowed[entry] = yield from self._narrow(entry)
        return self._narrowed[entry]

    def visible(self, entry: Entry) -> bool:
        """Whether the host sees the entry at all."""
        if entry.draft.kind is not Kind.ROLE:
            return entry.draft.kind not in _PERSONAL or self.see(entry) is not None
        if not self._concerned(entry):
            return False
        users, people = entry.values(_SUDO_USER), self._view.people
        if people is None or not users:
            return True
        names = (user.decode("utf-8", "replace") for user in users)
        return any(_general(name) or name in people for name in names)

    def _concerned(self, entry: Entry) -> bool:
        found = self._concerns.get(entry)
        if found is None:
            hosts, hostname = entry.values(_SUDO_HOST), self._view.hostname
            found = not hosts or any(concerns(hostname, host.decode("utf-8", "replace")) for host in hosts)
            self._concerns[entry] = found
        return found

    def _narrow(self, entry: Entry) -> Generator[None, None, Entry | None]:
        shown: list[Entry] = []
        attributes: list[tuple[str, tuple[bytes, ...]]] = []
        for name, values in entry.draft.attributes:
            if name in NARROWED:
                kept: list[bytes] = []
                for at in range(0, len(values), _VALUES_AT_ONCE):
                    some = values[at : at + _VALUES_AT_ONCE]
                    kept += [value for value in some if self._visible(name, value, shown)]
                    yield
                values = tuple(kept)
            if values:
                attributes.append((name, values))
            elif name == _SUDO_USER.name:
                return None
        usn = max((person.usn for person in shown), default=0)
        if tuple(attributes) == entry.draft.attributes and usn <= entry.usn:
            return entry
        yield
        draft = Draft(entry.draft.kind, entry.draft.key, entry.draft.dn, tuple(attributes))
        stamp = Stamp(max(usn, entry.usn), entry.created, b"")
        return (yield from _paced(self._maker.make(draft, stamp, entry.normal, False)))

    def _visible(self, attribute: str, value: bytes, shown: list[Entry]) -> bool:
        people = self._view.people
        assert people is not None
        if attribute == "member":
            found = distinguished(self._snapshot, value)
            if found is None or (found.draft.kind is Kind.PERSON and _name(found) not in people):
                return False
        else:
            name = value.decode("utf-8", "replace")
            if attribute == _SUDO_USER.name and _general(name):
                return True
            if name not in people:
                return False
            candidates = self._snapshot.lookup("uid", schema.case_ignore(value) or b"") or ()
            found = next((each for each in candidates if each.draft.kind is Kind.PERSON), None)
        if found is not None and found.draft.kind is Kind.PERSON:
            shown.append(found)
        return True


def _general(user: str) -> bool:
    """Whether a value of sudoUser is not the name of one person."""
    return user == "ALL" or user[:1] in "%#+!"


def distinguished(snapshot: Snapshot, value: bytes) -> Entry | None:
    """The entry that a DN in an attribute names."""
    normal = schema.distinguished_name(value)
    return snapshot.by_dn(normal.decode()) if normal is not None else None


def _name(entry: Entry) -> str:
    """The account that a person's entry or private group is about."""
    attribute = schema.BY_NAME["uid" if entry.draft.kind is Kind.PERSON else "cn"]
    values = entry.values(attribute)
    return values[0].decode("utf-8", "replace") if values else ""
