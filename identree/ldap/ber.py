"""
LDAP messages as bytes (RFC 4511 sections 4.1.1, 4.5 and 5.1): strict reading, and the writing of searches' answers.

Everything that is read comes from a stranger. Lengths are definite, of at most four octets, and an element ends where
its parent lets it; nesting and the number of filter terms are bounded before anything recursive looks at them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from identree.directory import encoding
from identree.directory.encoding import SEQUENCE_HEADERS, TABLED_LENGTHS, length, octets, sequence_header, tlv
from identree.directory.filters import (
    And,
    Approx,
    Equal,
    Extensible,
    Filter,
    GreaterOrEqual,
    LessOrEqual,
    Not,
    Or,
    Present,
    Substrings,
)

SEARCH_REQUEST = 0x63
SEARCH_DONE = 0x65

# Elements within elements in one message; LDAP itself needs about ten beside the filter.
MAX_DEPTH = 64
# And, or and not within each other (spec/ldap section 6.4).
MAX_FILTER_DEPTH = 32
# sudo asks with up to four terms for each of a person's groups. This many are decoded and planned in about 10 ms.
MAX_FILTER_TERMS = 5000
# Those of them that are no alternatives of an equality: such alternatives are one look into a set for each entry, and
# the others are asked one by one.
MAX_SINGLE_TERMS = 256
# Attributes that one search may name; sssd names about forty.
MAX_SELECTED = 1024
# The highest value of LDAP's INTEGER (0..maxInt).
MAX_INT = 2**31 - 1


class BerError(ValueError):
    """These bytes are no LDAP message; the text says why and never repeats them."""


class FilterTooLarge(Exception):
    """A well-formed filter beyond our bounds (LDAP: adminLimitExceeded)."""


# --- reading ---------------------------------------------------------------------------------------------------------


def header(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """
    The element at ``at``: its tag, and where its content starts and ends.

    :param end: where the parent's content ends.
    :raise BerError: truncated, indefinite, overlong, or beyond ``end``.
    """
    if at + 2 > end:
        raise BerError("an element is cut off")
    tag = data[at]
    if tag & 0x1F == 0x1F:
        raise BerError("tags of several octets do not occur in LDAP")
    size = data[at + 1]
    start = at + 2
    if size >= 0x80:
        octets_of_length = size & 0x7F
        if not octets_of_length:
            raise BerError("indefinite lengths are not allowed")
        if octets_of_length > 4:
            raise BerError("a length of more than four octets")
        if start + octets_of_length > end:
            raise BerError("a length is cut off")
        size = int.from_bytes(data[start : start + octets_of_length], "big")
        start += octets_of_length
    stop = start + size
    if stop > end:
        raise BerError("an element is longer than what it is in")
    return tag, start, stop


def check_structure(data: bytes, max_depth: int = MAX_DEPTH) -> None:
    """
    Whether ``data`` is exactly one element whose constructed parts are well-formed all the way down.

    Walks without recursion, so that afterwards a recursive decoder is safe.

    :raise BerError: it is not, or it nests deeper than ``max_depth``.
    """
    ends = [len(data)]
    at = 0
    first = True
    while ends:
        if at == ends[-1]:
            if first:
                raise BerError("there is no element")
            ends.pop()
            continue
        if not first and len(ends) == 1:
            raise BerError("there are bytes after the message")
        tag, start, stop = header(data, at, ends[-1])
        first = False
        if tag & 0x20:
            if len(ends) > max_depth:
                raise BerError("elements are nested too deeply")
            ends.append(stop)
            at = start
        else:
            at = stop


def expect(data: bytes, at: int, end: int, tag: int, what: str) -> tuple[int, int]:
    """Start and end of the content of the element at ``at``, which must be tagged ``tag``."""
    found, start, stop = header(data, at, end)
    if found != tag:
        raise BerError(f"{what} has another tag than it should")
    return start, stop


def read_integer(data: bytes, at: int, end: int, tag: int, what: str, top: int = MAX_INT) -> tuple[int, int]:
    """A number in ``0..top``, and where the next element starts."""
    start, stop = expect(data, at, end, tag, what)
    if not 1 <= stop - start <= 8:
        raise BerError(f"{what} is no number")
    value = int.from_bytes(data[start:stop], "big", signed=True)
    if not 0 <= value <= top:
        raise BerError(f"{what} is out of range")
    return value, stop


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """
    :ivar base: the base DN as it was sent.
    :ivar scope: 0 base, 1 one level, 2 subtree, 3 subordinates (draft-sermersheim-ldap-subordinate-scope).
    :ivar size_limit: entries; 0 is no limit.
    :ivar time_limit: seconds; 0 is no limit.
    :ivar attributes: as they were sent; empty is all user attributes.
    """

    base: bytes
    scope: int
    deref: int
    size_limit: int
    time_limit: int
    types_only: bool
    filter: Filter
    attributes: tuple[bytes, ...]


def decode_search(op: bytes) -> SearchRequest:
    """
    A SearchRequest protocolOp, tag and length included.

    :raise BerError: it is none.
    :raise FilterTooLarge: it is one, but its filter nests too deeply or has too many terms.
    """
    at, end = expect(op, 0, len(op), SEARCH_REQUEST, "the search")
    if end != len(op):
        raise BerError("there are bytes after the search")
    start, at = expect(op, at, end, 0x04, "the base DN")
    base = op[start:at]
    scope, at = read_integer(op, at, end, 0x0A, "the scope", 3)
    deref, at = read_integer(op, at, end, 0x0A, "derefAliases", 3)
    size_limit, at = read_integer(op, at, end, 0x02, "the size limit")
    time_limit, at = read_integer(op, at, end, 0x02, "the time limit")
    start, at = expect(op, at, end, 0x01, "typesOnly")
    if at - start != 1:
        raise BerError("typesOnly is no truth value")
    types_only = op[start] != 0
    _, _, after = header(op, at, end)
    filter_ = decode_filter(op[at:after])
    start, stop = expect(op, after, end, 0x30, "the attribute list")
    if stop != end:
        raise BerError("there are bytes after the attribute list")
    attributes = tuple(_octet_strings(op, start, stop, 0x04, "an attribute of the list", MAX_SELECTED))
    return SearchRequest(base, scope, deref, size_limit, time_limit, types_only, filter_, attributes)


def _octet_strings(data: bytes, at: int, end: int, tag: int, what: str, limit: int) -> list[bytes]:
    found: list[bytes] = []
    while at < end:
        start, at = expect(data, at, end, tag, what)
        found.append(data[start:at])
        if len(found) > limit:
            raise BerError(f"there are more than {limit}: {what}")
    return found


def decode_filter(data: bytes) -> Filter:
    """
    One encoded Filter.

    :raise BerError: it is none.
    :raise FilterTooLarge: see :func:`decode_search`.
    """
    decoder = _FilterDecoder(data)
    found, at = decoder.decode(0, len(data), 0)
    if at != len(data):
        raise BerError("there are bytes after the filter")
    return found


def _name(raw: bytes) -> str:
    # a description that is no text is one that nobody knows: Undefined, not an error
    return raw.decode("utf-8", "replace")


class _FilterDecoder:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._terms = 0
        self._single = 0

    def decode(self, at: int, end: int, depth: int, alternative: bool = False) -> tuple[Filter, int]:
        self._terms += 1
        if self._terms > MAX_FILTER_TERMS:
            raise FilterTooLarge(f"the filter has more than {MAX_FILTER_TERMS} terms")
        data = self._data
        tag, start, stop = header(data, at, end)
        if tag == 0xA3:
            if not alternative:
                self._count()
            return Equal(*self._assertion(start, stop)), stop
        self._count()
        if tag == 0x87:
            return Present(_name(data[start:stop])), stop
        if tag == 0xA0 or tag == 0xA1:
            parts = tuple(self._parts(start, stop, depth + 1, tag == 0xA1))
            return (And(parts) if tag == 0xA0 else Or(parts)), stop
        if tag == 0xA2:
            if depth >= MAX_FILTER_DEPTH:
                raise FilterTooLarge(f"the filter is nested deeper than {MAX_FILTER_DEPTH}")
            part, after = self.decode(start, stop, depth + 1)
            if after != stop:
                raise BerError("a negation of more than one filter")
            return Not(part), stop
        if tag == 0xA4:
            return self._substrings(start, stop), stop
        if tag == 0xA5:
            return GreaterOrEqual(*self._assertion(start, stop)), stop
        if tag == 0xA6:
            return LessOrEqual(*self._assertion(start, stop)), stop
        if tag == 0xA8:
            return Approx(*self._assertion(start, stop)), stop
        if tag == 0xA9:
            return self._extensible(start, stop), stop
        raise BerError("a filter of no known kind")

    def _count(self) -> None:
        self._single += 1
        if self._single > MAX_SINGLE_TERMS:
            raise FilterTooLarge(f"the filter has more than {MAX_SINGLE_TERMS} terms that are not alternatives")

    def _parts(self, at: int, end: int, depth: int, alternatives: bool) -> list[Filter]:
        if depth > MAX_FILTER_DEPTH:
            raise FilterTooLarge(f"the filter is nested deeper than {MAX_FILTER_DEPTH}")
        found: list[Filter] = []
        while at < end:
            part, at = self.decode(at, end, depth, alternatives)
            found.append(part)
        return found

    def _assertion(self, at: int, end: int) -> tuple[str, bytes]:
        data = self._data
        start, after = expect(data, at, end, 0x04, "the attribute of an assertion")
        name = _name(data[start:after])
        start, after = expect(data, after, end, 0x04, "the value of an assertion")
        if after != end:
            raise BerError("there are bytes after an assertion")
        return name, data[start:after]

    def _substrings(self, at: int, end: int) -> Filter:
        data = self._data
        start, at = expect(data, at, end, 0x04, "the attribute of a substring filter")
        name = _name(data[start:at])
        at, stop = expect(data, at, end, 0x30, "the list of substrings")
        if stop != end:
            raise BerError("there are bytes after the substrings")
        initial: bytes | None = None
        final: bytes | None = None
        middle: list[bytes] = []
        while at < end:
            tag, start, after = header(data, at, end)
            if start == after:
                raise BerError("an empty substring")
            if final is not None:
                raise BerError("a substring after the final one")
            if tag == 0x80 and initial is None and not middle:
                initial = data[start:after]
            elif tag == 0x81:
                middle.append(data[start:after])
            elif tag == 0x82:
                final = data[start:after]
            else:
                raise BerError("substrings in no possible order")
            at = after
            self._count()
        if initial is None and final is None and not middle:
            raise BerError("a substring filter without substrings")
        return Substrings(name, initial, tuple(middle), final)

    def _extensible(self, at: int, end: int) -> Filter:
        data = self._data
        rule: str | None = None
        name: str | None = None
        value: bytes | None = None
        dn_attributes = False
        last = 0x80
        while at < end:
            tag, start, at = header(data, at, end)
            if tag <= last:
                raise BerError("the parts of an extensible match in no possible order")
            last = tag
            if tag == 0x81:
                rule = _name(data[start:at])
            elif tag == 0x82:
                name = _name(data[start:at])
            elif tag == 0x83:
                value = data[start:at]
            elif tag == 0x84 and at - start == 1:
                dn_attributes = data[start] != 0
            else:
                raise BerError("an unknown part of an extensible match")
        if value is None or (rule is None and name is None):
            raise BerError("an extensible match without its value, or without both rule and attribute")
        return Extensible(rule, name, value, dn_attributes)


# --- writing ---------------------------------------------------------------------------------------------------------


def integer(value: int, tag: int = 0x02) -> bytes:
    """An INTEGER, or by its tag an ENUMERATED, in the fewest octets."""
    return tlv(tag, value.to_bytes((value + (value < 0)).bit_length() // 8 + 1, "big", signed=True))


def boolean(value: bool) -> bytes:
    return b"\x01\x01\xff" if value else b"\x01\x01\x00"


def sequence(*parts: bytes) -> bytes:
    content = b"".join(parts)
    return sequence_header(len(content)) + content


# Message ids of sssd's first searches on a connection, and then of most.
_IDS = tuple(integer(value) for value in range(128))


def message_id(value: int) -> bytes:
    """The encoded INTEGER of a message id."""
    if value < 128:
        return _IDS[value]
    if value < 32768:
        return b"\x02\x02" + value.to_bytes(2, "big")
    return integer(value)


def control(oid: bytes, value: bytes | None = None, critical: bool = False) -> bytes:
    """One Control, for :func:`message`."""
    parts = [octets(oid)]
    if critical:
        parts.append(boolean(True))
    if value is not None:
        parts.append(octets(value))
    return sequence(*parts)


def message(id: int, op: bytes, controls: Iterable[bytes] = ()) -> bytes:
    """An LDAPMessage around a protocolOp."""
    content = message_id(id) + op
    joined = b"".join(controls)
    if joined:
        content += tlv(0xA0, joined)
    return sequence_header(len(content)) + content


def messages(id: int, ops: Iterable[bytes]) -> bytes:
    """LDAPMessages around many protocolOps of one request, without controls."""
    encoded = message_id(id)
    extra = len(encoded)
    parts: list[bytes] = []
    for op in ops:
        size = len(op) + extra
        parts += (SEQUENCE_HEADERS[size] if size < TABLED_LENGTHS else b"\x30" + length(size), encoded, op)
    return b"".join(parts)


def result(tag: int, code: int, matched: bytes = b"", text: bytes = b"") -> bytes:
    """An answer that is an LDAPResult and nothing more."""
    return tlv(tag, integer(code, 0x0A) + octets(matched) + octets(text))


def search_done(code: int, matched: bytes = b"", text: bytes = b"") -> bytes:
    """A SearchResultDone protocolOp."""
    return result(SEARCH_DONE, code, matched, text)


def search_entry(dn: bytes, attributes: Iterable[tuple[bytes, Iterable[bytes]]]) -> bytes:
    """A SearchResultEntry protocolOp from plain values."""
    encoded = b"".join(encoding.partial_attribute(name, values) for name, values in attributes)
    return encoding.search_entry(octets(dn), encoded)
