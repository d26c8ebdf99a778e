"""
BER as LDAP uses it (RFC 4511 section 5.1): the writing of it, for entries that are encoded once and sent often.

Lengths are definite and minimal. Reading is :mod:`identree.ldap.ber`.
"""

from __future__ import annotations

from collections.abc import Iterable

SEQUENCE = 0x30
SET = 0x31
OCTETS = 0x04
SEARCH_ENTRY = 0x64

# Most contents that we write are shorter: their headers are looked up, not computed.
TABLED_LENGTHS = 2048


def length(size: int) -> bytes:
    """The length octets of a content of ``size`` bytes."""
    if size < 0x80:
        return bytes((size,))
    raw = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((0x80 | len(raw),)) + raw


def _headers(tag: int) -> tuple[bytes, ...]:
    return tuple(bytes((tag,)) + length(size) for size in range(TABLED_LENGTHS))


SEQUENCE_HEADERS = _headers(SEQUENCE)
SET_HEADERS = _headers(SET)
OCTETS_HEADERS = _headers(OCTETS)
ENTRY_HEADERS = _headers(SEARCH_ENTRY)


def sequence_header(size: int) -> bytes:
    return SEQUENCE_HEADERS[size] if size < TABLED_LENGTHS else b"\x30" + length(size)


def entry_header(size: int) -> bytes:
    return ENTRY_HEADERS[size] if size < TABLED_LENGTHS else b"\x64" + length(size)


def octets(value: bytes) -> bytes:
    """An OCTET STRING."""
    size = len(value)
    return (OCTETS_HEADERS[size] if size < TABLED_LENGTHS else b"\x04" + length(size)) + value


def tlv(tag: int, content: bytes) -> bytes:
    """Any element with a tag of one octet."""
    return bytes((tag,)) + length(len(content)) + content


def partial_attribute(name: bytes, values: Iterable[bytes]) -> bytes:
    """``PartialAttribute ::= SEQUENCE { type, vals SET OF value }``; no values is how typesOnly is answered."""
    content = b"".join(map(octets, values))
    size = len(content)
    header = SET_HEADERS[size] if size < TABLED_LENGTHS else b"\x31" + length(size)
    content = b"".join((octets(name), header, content))
    return sequence_header(len(content)) + content


def search_entry(dn: bytes, attributes: bytes) -> bytes:
    """
    A SearchResultEntry protocolOp.

    :param dn: as an OCTET STRING, header included.
    :param attributes: encoded PartialAttributes, one after the other.
    """
    size = len(attributes)
    header = SEQUENCE_HEADERS[size] if size < TABLED_LENGTHS else b"\x30" + length(size)
    size += len(dn) + len(header)
    return b"".join((ENTRY_HEADERS[size] if size < TABLED_LENGTHS else b"\x64" + length(size), dn, header, attributes))


def values_of(piece: bytes) -> tuple[bytes, ...]:
    """The values in a PartialAttribute that was written here."""
    if piece[1] < 0x80:
        # everything in it is short; most have one value
        at = piece[3] + 6
        if at == len(piece):
            return ()
        size = piece[at + 1]
        first = at + 2 + size
        if first == len(piece):
            return (piece[at + 2 :],)
        values = [piece[at + 2 : first]]
        at = first
    else:
        values = []
        _, at = _content(piece, 0)
        size, at = _content(piece, at)
        _, at = _content(piece, at + size)
    end = len(piece)
    while at < end:
        size, at = _content(piece, at)
        values.append(piece[at : at + size])
        at += size
    return tuple(values)


def _content(raw: bytes, at: int) -> tuple[int, int]:
    """Length and place of the content of the element that begins there."""
    size = raw[at + 1]
    if size < 0x80:
        return size, at + 2
    start = at + 2 + (size & 0x7F)
    return int.from_bytes(raw[at + 2 : start], "big"), start
