"""
Distinguished names: reading (RFC 4514), comparing and writing them.

Two names are the same exactly when their ``normal`` forms are: attribute types in lower case under their short name,
values without regard to case and to the number of spaces, the parts of a multi-valued RDN sorted, escapes canonical.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

# A DN of ours is under 1,000 characters: a base DN of 512 at most, and a name of 64.
MAX_CHARACTERS = 8192
MAX_RDNS = 128
# Of a DN with other characters than ASCII: one of them may fold to eighteen.
MAX_FOLDED_CHARACTERS = 1024

# Other names of the types that RFC 4514 section 3 wants known, and of those that name entries here.
_SHORT = {
    "commonname": "cn",
    "2.5.4.3": "cn",
    "surname": "sn",
    "2.5.4.4": "sn",
    "countryname": "c",
    "2.5.4.6": "c",
    "localityname": "l",
    "2.5.4.7": "l",
    "stateorprovincename": "st",
    "2.5.4.8": "st",
    "streetaddress": "street",
    "2.5.4.9": "street",
    "organizationname": "o",
    "2.5.4.10": "o",
    "organizationalunitname": "ou",
    "2.5.4.11": "ou",
    "userid": "uid",
    "0.9.2342.19200300.100.1.1": "uid",
    "domaincomponent": "dc",
    "0.9.2342.19200300.100.1.25": "dc",
}

# What nearly every DN looks like; it is its own normal form.
_PLAIN = re.compile(r"[a-z]+=[a-z0-9._-]+(?:,[a-z]+=[a-z0-9._-]+)*", re.ASCII)
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9-]*|(?:oid\.|OID\.)?\d+(?:\.\d+)+", re.ASCII)
_SPACES = re.compile(" {2,}")
_HEX = frozenset("0123456789abcdefABCDEF")
_ESCAPED = frozenset(' "#+,;<=>\\')
# these may stand in a value only when escaped
_SPECIAL = frozenset('"+,;<>')


@dataclass(frozen=True, slots=True)
class DN:
    """
    :ivar rdns: from the entry up; each one its (type, value) pairs, types normalised, values as they were meant.
    :ivar normal_rdns: each one's normal form.
    """

    rdns: tuple[tuple[tuple[str, str], ...], ...]
    normal_rdns: tuple[str, ...]

    @property
    def normal(self) -> str:
        return ",".join(self.normal_rdns)

    @property
    def parent(self) -> DN | None:
        """None for the empty DN and for a DN of one RDN."""
        return DN(self.rdns[1:], self.normal_rdns[1:]) if len(self.rdns) > 1 else None

    @property
    def rdn(self) -> tuple[tuple[str, str], ...]:
        """:raise IndexError: the empty DN has none."""
        return self.rdns[0]


def normal(text: str) -> str:
    """
    The normal form of a DN.

    :raise ValueError: the text is no DN.
    """
    if len(text) <= MAX_CHARACTERS and _PLAIN.fullmatch(text) and text.count(",") < MAX_RDNS and not _aliased(text):
        return text
    return parse(text).normal


def _aliased(text: str) -> bool:
    return any(part.partition("=")[0] in _SHORT for part in text.split(","))


def escape(value: str) -> str:
    """A value as it stands in a DN (spec/ldap section 2.6)."""
    escaped = "".join("\\" + c if c in ',+"\\<>;=' else "\\00" if c == "\0" else c for c in value)
    if escaped[:1] in (" ", "#"):
        escaped = "\\" + escaped
    if escaped[-1:] == " " and escaped[-2:] != "\\ ":
        escaped = escaped[:-1] + "\\ "
    return escaped


def fold(value: str) -> str:
    """A value as two values are compared: case folded, without outer spaces, inner ones once."""
    if value.isascii():
        folded = value.lower()
    else:
        folded = unicodedata.normalize("NFKC", value).casefold()
    return _SPACES.sub(" ", folded).strip(" ")


def parse(text: str) -> DN:
    """
    Read a DN, tolerating spaces around its separators, and ``;`` for ``,`` as RFC 2253 asks.

    :raise ValueError: the text is no DN, or longer than :data:`MAX_CHARACTERS` allows; the message does not repeat it.
    """
    if len(text) > (MAX_CHARACTERS if text.isascii() else MAX_FOLDED_CHARACTERS):
        raise ValueError("the DN is too long")
    if not text.strip(" "):
        return DN((), ())
    rdns: list[tuple[tuple[str, str], ...]] = []
    normals: list[str] = []
    pairs: list[tuple[str, str]] = []
    at = 0
    while True:
        type_, value, at = _pair(text, at)
        pairs.append((type_, value))
        separator = text[at : at + 1]
        at += 1
        if separator == "+":
            continue
        rdns.append(tuple(pairs))
        normals.append("+".join(sorted(f"{type_}={escape(fold(value))}" for type_, value in pairs)))
        pairs = []
        if len(rdns) > MAX_RDNS:
            raise ValueError("the DN has too many parts")
        if not separator:
            return DN(tuple(rdns), tuple(normals))


def _pair(text: str, at: int) -> tuple[str, str, int]:
    """One ``type=value``, and the index of the separator or the end after it."""
    while text[at : at + 1] == " ":
        at += 1
    equals = text.find("=", at)
    if equals < 0:
        raise ValueError("a part of the DN has no =")
    name = text[at:equals].rstrip(" ")
    if not _TYPE.fullmatch(name):
        raise ValueError("a part of the DN does not begin with an attribute type")
    name = name.lower().removeprefix("oid.")
    at = equals + 1
    while text[at : at + 1] == " ":
        at += 1
    if text[at : at + 1] == "#":
        value, at = _hex_string(text, at + 1)
    elif text[at : at + 1] == '"':
        value, at = _quoted(text, at + 1)
    else:
        value, at = _string(text, at)
    return _SHORT.get(name, name), value, at


def _escape_sequence(text: str, at: int, raw: bytearray) -> int:
    """What a backslash at ``at - 1`` introduces; returns the index after it."""
    following = text[at : at + 1]
    pair = text[at : at + 2]
    if len(pair) == 2 and pair[0] in _HEX and pair[1] in _HEX:
        raw.append(int(pair, 16))
        return at + 2
    if following and following in _ESCAPED:
        raw += following.encode()
        return at + 1
    raise ValueError("a backslash in the DN escapes nothing")


def _text(raw: bytearray) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("a value in the DN is not UTF-8") from None


def _string(text: str, at: int) -> tuple[str, int]:
    raw = bytearray()
    # the length up to which trailing spaces are meant
    kept = 0
    while at < len(text):
        c = text[at]
        if c == "\\":
            at = _escape_sequence(text, at + 1, raw)
            kept = len(raw)
            continue
        if c in ",;+":
            break
        if c in _SPECIAL or c == "\0":
            raise ValueError("a character in the DN must be escaped")
        raw += c.encode("utf-8", "surrogatepass")
        if c != " ":
            kept = len(raw)
        at += 1
    return _text(raw[:kept]), at


def _quoted(text: str, at: int) -> tuple[str, int]:
    raw = bytearray()
    while True:
        c = text[at : at + 1]
        if not c:
            raise ValueError("a quoted value in the DN has no end")
        at += 1
        if c == '"':
            break
        if c == "\\":
            at = _escape_sequence(text, at, raw)
        else:
            raw += c.encode("utf-8", "surrogatepass")
    return _text(raw), _separator(text, at)


def _separator(text: str, at: int) -> int:
    while text[at : at + 1] == " ":
        at += 1
    if at < len(text) and text[at] not in ",;+":
        raise ValueError("a value in the DN is followed by something else")
    return at


def _hex_string(text: str, at: int) -> tuple[str, int]:
    """``#`` and the hexadecimal BER of a string type (RFC 4514 section 2.4)."""
    start = at
    while text[at : at + 1] and text[at] in _HEX:
        at += 1
    digits = text[start:at]
    if len(digits) < 4 or len(digits) % 2:
        raise ValueError("a hexadecimal value in the DN is not BER")
    raw = bytes.fromhex(digits)
    # OCTET STRING, UTF8String, PrintableString, IA5String; short lengths do for any value that names an entry
    if raw[0] not in (0x04, 0x0C, 0x13, 0x16) or raw[1] >= 0x80 or raw[1] != len(raw) - 2:
        raise ValueError("a hexadecimal value in the DN is not the BER of a short string")
    return _text(bytearray(raw[2:])), _separator(text, at)
