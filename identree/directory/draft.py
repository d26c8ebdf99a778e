"""Entries before they are stamped and indexed: what the builders make and the snapshot takes."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from .encoding import OCTETS_HEADERS, SEQUENCE, SEQUENCE_HEADERS, SET, SET_HEADERS, octets, tlv, values_of

# Canonical attribute name and its values in UTF-8, in the order in which they are sent.
Attributes = tuple[tuple[str, tuple[bytes, ...]], ...]

# Attributes whose values are mostly the same in many entries: one object serves all of them.
_SHARED = frozenset(
    "objectClass loginShell shadowLastChange shadowMin shadowMax shadowWarning shadowExpire accountStatus sudoHost"
    " sudoRunAsUser sudoRunAsGroup sudoOption".split()
)
# Such values that are remembered; of rarer ones each entry has its own.
_SHARED_PIECES = 4096
# An attribute with more values than this is encoded in steps, and keeps its values, which others have too.
FEW_VALUES = 100
# Values that are encoded in one step.
_CHUNK = 2000
# A value with a shorter encoding takes the quick way.
_SHORT_VALUE = 1000


class Kind(Enum):
    """What an entry is; the value stands in its key and in metrics."""

    ROOT = "root"
    CONTAINER = "container"
    PERSON = "person"
    GROUP = "group"
    PRIVATE_GROUP = "private"
    ROLE = "role"


@lru_cache(maxsize=512)
def encoded_name(name: str) -> bytes:
    """An attribute's name as an OCTET STRING."""
    return octets(name.encode())


@lru_cache(maxsize=512)
def _names(names: tuple[str, ...]) -> tuple[str, ...]:
    """One object for all entries with these attributes."""
    return names


def encode_one(name: bytes, value: bytes) -> bytes:
    """
    A PartialAttribute of one value that is shorter than :data:`_SHORT_VALUE`.

    :param name: encoded.
    """
    header = OCTETS_HEADERS[len(value)]
    size = len(value) + len(header)
    values = SET_HEADERS[size]
    return b"".join((SEQUENCE_HEADERS[size + len(values) + len(name)], name, values, header, value))


def _piece(name: str, values: tuple[bytes, ...]) -> bytes:
    if len(values) == 1 and len(values[0]) < _SHORT_VALUE:
        return encode_one(encoded_name(name), values[0])
    return tlv(SEQUENCE, encoded_name(name) + tlv(SET, b"".join(map(octets, values))))


_shared_piece = lru_cache(maxsize=_SHARED_PIECES)(_piece)


class Draft:
    """
    An entry. It is a value: two with the same content are equal, and nothing visible of one ever changes.

    The content is kept as it is sent, once for the draft and the entry made of it; ``dn`` and ``attributes`` are read
    from that.

    :ivar key: identity across refreshes and renames, such as ``person:<source id>``.
    :ivar head: the DN as it is sent, an encoded OCTET STRING.
    :ivar names: canonical names of its attributes.
    """

    __slots__ = ("_many", "_pieces", "head", "key", "kind", "names")

    def __init__(self, kind: Kind, key: str, dn: str, attributes: Attributes) -> None:
        """
        :param dn: RFC 4514, as it is sent.
        :param attributes: user attributes and ``entryUUID``, no other operational ones; never one without a value.
        """
        self.kind = kind
        self.key = key
        self.head = octets(dn.encode())
        self.names = _names(tuple([name for name, _ in attributes]))
        # values of attributes that have many
        self._many: dict[int, tuple[bytes, ...]] | None = None
        pieces: list[bytes] = []
        for name, values in attributes:
            if name in _SHARED and len(values) <= FEW_VALUES:
                pieces.append(_shared_piece(name, values))
            elif len(values) <= FEW_VALUES:
                pieces.append(_piece(name, values))
            else:
                if self._many is None:
                    self._many = {}
                self._many[len(pieces)] = values
                pieces.append(b"")
        self._pieces: tuple[bytes, ...] = tuple(pieces)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Draft):
            return NotImplemented
        if (self.kind, self.key, self.head, self.names) != (other.kind, other.key, other.head, other.names):
            return False
        if self._many is None and other._many is None:
            size = len(self.names)
            return self._pieces[:size] == other._pieces[:size]
        # one of the two may not be encoded yet
        return all(self.values_at(place) == other.values_at(place) for place in range(len(self.names)))

    def __hash__(self) -> int:
        return hash((self.key, self.head))

    def __repr__(self) -> str:
        return f"Draft({self.kind}, {self.key!r}, {self.dn!r}, {self.attributes!r})"

    @property
    def dn(self) -> str:
        size = self.head[1]
        return self.head[2 if size < 0x80 else 2 + (size & 0x7F) :].decode()

    @property
    def attributes(self) -> Attributes:
        return tuple((name, self.values_at(place)) for place, name in enumerate(self.names))

    def values_at(self, place: int) -> tuple[bytes, ...]:
        """The values of one of its attributes, by its place in ``names``."""
        if self._many is not None and place in self._many:
            return self._many[place]
        return values_of(self._pieces[place])

    def encoding(self) -> Generator[int, None, None]:
        """Encode what a single step could not, unless that is done; yields how many values it has encoded."""
        if self._many is None or all(self._pieces):
            return
        pieces = list(self._pieces)
        for place, values in self._many.items():
            if pieces[place]:
                continue
            parts: list[bytes] = []
            for at in range(0, len(values), _CHUNK):
                parts.append(b"".join(map(octets, values[at : at + _CHUNK])))
                yield _CHUNK
            pieces[place] = tlv(SEQUENCE, encoded_name(self.names[place]) + tlv(SET, b"".join(parts)))
        self._pieces = tuple(pieces)

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """Encoded PartialAttributes, one for each name; to be asked for after :meth:`encoding`."""
        size = len(self.names)
        return self._pieces if len(self._pieces) == size else self._pieces[:size]

    def share(self, pieces: tuple[bytes, ...]) -> None:
        """
        Memory for one tuple instead of two.

        :param pieces: the same as its own, and then others.
        """
        self._pieces = pieces


@dataclass(frozen=True, slots=True)
class Stamp:
    """
    When an entry changed, as sssd needs it (spec/ldap section 11.1, traps).

    :ivar usn: change number: ``entryUSN``, and as unix seconds ``modifyTimestamp``; greater than any stamp shown before
        it was made, in any branch.
    :ivar created: change number of its first sight; as unix seconds ``createTimestamp``.
    :ivar digest: of the draft that it was made for (:func:`identree.directory.stamps.digest`).
    """

    usn: int
    created: int
    digest: bytes
