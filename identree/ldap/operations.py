"""
LDAP messages other than searches: reading requests and writing answers, pure (RFC 4511; spec/ldap section 6.6).

Decoded by :mod:`identree.ldap.ber`, not by ldaptor, which is the tests' second opinion: it prints what it does not know
on standard output, where the audit log goes, slices the rest of a message for every element and shifts the whole of a
number for every octet, so that a stranger's 64 KiB would hold the reactor for a second. Operations that write are
refused by their tag alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from identree.directory.encoding import octets, tlv
from identree.ldap import ber
from identree.ldap.ber import BerError

# Controls that one request may carry; sssd sends one, administration tools a handful.
MAX_CONTROLS = 32

CONTROLS_TAG = 0xA0

BIND, UNBIND, SEARCH, MODIFY, ADD, DELETE = 0x60, 0x42, 0x63, 0x66, 0x68, 0x4A
MODIFY_DN, COMPARE, ABANDON, EXTENDED = 0x6C, 0x6E, 0x50, 0x77
BIND_RESPONSE, COMPARE_RESPONSE, EXTENDED_RESPONSE = 0x61, 0x6F, 0x78

# What changes the directory, with the tag of its answer and its name in metrics.
WRITES = {MODIFY: (0x67, "modify"), ADD: (0x69, "add"), DELETE: (0x6B, "delete"), MODIFY_DN: (0x6D, "modifydn")}

START_TLS = b"1.3.6.1.4.1.1466.20037"
WHO_AM_I = b"1.3.6.1.4.1.4203.1.11.3"
PASSWORD_MODIFY = b"1.3.6.1.4.1.4203.1.11.1"
CANCEL = b"1.3.6.1.1.8"
DISCONNECTION = b"1.3.6.1.4.1.1466.20036"

PAGED_RESULTS = b"1.2.840.113556.1.4.319"
# Controls that change nothing here and that clients send as critical all the same (spec/ldap section 6.3).
IGNORED_CONTROLS = frozenset(
    (
        b"2.16.840.1.113730.3.4.2",  # ManageDsaIT: there are no referrals
        b"1.3.6.1.4.1.42.2.27.8.5.1",  # password policy, with every bind of sssd's
        b"2.16.840.1.113730.3.4.4",  # password expired: a control of answers
        b"1.2.840.113556.1.4.417",  # show deleted: nothing deleted is kept
        b"1.2.840.113556.1.4.528",  # change notification
        b"1.2.840.113556.1.4.2309",  # links with a time to live
    )
)


class Code(IntEnum):
    """Result codes (RFC 4511 section 4.1.9, RFC 3909 section 2.1)."""

    SUCCESS = 0
    OPERATIONS_ERROR = 1
    PROTOCOL_ERROR = 2
    TIME_LIMIT_EXCEEDED = 3
    SIZE_LIMIT_EXCEEDED = 4
    COMPARE_FALSE = 5
    COMPARE_TRUE = 6
    AUTH_METHOD_NOT_SUPPORTED = 7
    STRONGER_AUTH_REQUIRED = 8
    ADMIN_LIMIT_EXCEEDED = 11
    UNAVAILABLE_CRITICAL_EXTENSION = 12
    NO_SUCH_ATTRIBUTE = 16
    UNDEFINED_ATTRIBUTE_TYPE = 17
    INAPPROPRIATE_MATCHING = 18
    INVALID_ATTRIBUTE_SYNTAX = 21
    NO_SUCH_OBJECT = 32
    INVALID_DN_SYNTAX = 34
    INVALID_CREDENTIALS = 49
    INSUFFICIENT_ACCESS_RIGHTS = 50
    BUSY = 51
    UNAVAILABLE = 52
    UNWILLING_TO_PERFORM = 53
    OTHER = 80
    CANCELED = 118
    NO_SUCH_OPERATION = 119
    TOO_LATE = 120
    CANNOT_CANCEL = 121


@dataclass(frozen=True, slots=True)
class Envelope:
    """
    A request around which nothing else was looked at yet.

    :ivar op: the protocolOp, tag and length included. Not shown: that of a bind holds the password.
    :ivar controls: the content of its controls, empty when there are none.
    """

    id: int
    op: bytes = field(repr=False)
    controls: bytes = field(default=b"", repr=False)

    @property
    def tag(self) -> int:
        return self.op[0]

    @property
    def size(self) -> int:
        return len(self.op) + len(self.controls)


@dataclass(frozen=True, slots=True)
class Control:
    oid: bytes
    critical: bool
    value: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Bind:
    """
    :ivar mechanism: of SASL; None for a simple bind.
    :ivar credentials: the password, or what goes with the mechanism.
    """

    version: int
    dn: str
    mechanism: bytes | None
    credentials: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Compare:
    """As it was sent. The value is not shown: clients try passwords this way."""

    dn: bytes
    attribute: bytes
    value: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Extended:
    oid: bytes
    value: bytes | None = field(repr=False)


# --- reading ---------------------------------------------------------------------------------------------------------


def envelope(frame: bytes) -> Envelope:
    """
    Cut a whole message into its parts; the operation and the controls are not looked into.

    :raise BerError: it is no LDAPMessage. Further components are ignored, as RFC 4511 section 4 asks.
    """
    at, end = ber.expect(frame, 0, len(frame), 0x30, "a message")
    if end != len(frame):
        raise BerError("there are bytes after the message")
    id, at = ber.read_integer(frame, at, end, 0x02, "the message id")
    if id == 0:
        raise BerError("message id 0 is the server's own")
    _, _, stop = ber.header(frame, at, end)
    op = frame[at:stop]
    if stop == end:
        return Envelope(id, op)
    tag, start, last = ber.header(frame, stop, end)
    return Envelope(id, op, frame[start:last] if tag == CONTROLS_TAG else b"")


def controls(raw: bytes) -> tuple[Control, ...]:
    """
    The content of a message's controls.

    :raise BerError: they are none, or too many.
    """
    found: list[Control] = []
    at = 0
    while at < len(raw):
        if len(found) == MAX_CONTROLS:
            raise BerError(f"there are more than {MAX_CONTROLS} controls")
        start, end = ber.expect(raw, at, len(raw), 0x30, "a control")
        at = end
        first, stop = ber.expect(raw, start, end, 0x04, "the type of a control")
        oid, critical, value = raw[first:stop], False, None
        if stop < end and raw[stop] == 0x01:
            first, stop = ber.expect(raw, stop, end, 0x01, "the criticality of a control")
            if stop - first != 1:
                raise BerError("the criticality of a control is no truth value")
            critical = raw[first] != 0
        if stop < end:
            first, stop = ber.expect(raw, stop, end, 0x04, "the value of a control")
            value = raw[first:stop]
        if stop != end:
            raise BerError("there are bytes after a control")
        found.append(Control(oid, critical, value))
    return tuple(found)


def unsupported(found: tuple[Control, ...], known: frozenset[bytes] = IGNORED_CONTROLS) -> bool:
    """Whether a control is critical and none of ``known``: then the operation must not be performed."""
    return any(control.critical and control.oid not in known for control in found)


def bind(op: bytes) -> Bind:
    """:raise BerError: it is no BindRequest."""
    at, end = _whole(op, BIND, "a bind")
    version, at = ber.read_integer(op, at, end, 0x02, "the version of a bind", 127)
    start, at = ber.expect(op, at, end, 0x04, "the DN of a bind")
    name = op[start:at]
    tag, start, at = ber.header(op, at, end)
    if tag == 0x80:
        return Bind(version, _text(name, "the DN of a bind"), None, op[start:at])
    if tag != 0xA3:
        raise BerError("a bind with an unknown kind of authentication")
    first, stop = ber.expect(op, start, at, 0x04, "the mechanism of a SASL bind")
    mechanism, credentials = op[first:stop], b""
    if stop < at:
        first, stop = ber.expect(op, stop, at, 0x04, "the credentials of a SASL bind")
        credentials = op[first:stop]
    return Bind(version, _text(name, "the DN of a bind"), mechanism, credentials)


def compare(op: bytes) -> Compare:
    """:raise BerError: it is no CompareRequest."""
    at, end = _whole(op, COMPARE, "a comparison")
    start, at = ber.expect(op, at, end, 0x04, "the DN of a comparison")
    name = op[start:at]
    at, stop = ber.expect(op, at, end, 0x30, "the assertion of a comparison")
    start, at = ber.expect(op, at, stop, 0x04, "the attribute of a comparison")
    attribute = op[start:at]
    start, at = ber.expect(op, at, stop, 0x04, "the value of a comparison")
    if at != stop:
        raise BerError("there are bytes after an assertion")
    return Compare(name, attribute, op[start:at])


def abandoned(op: bytes) -> int:
    """
    The message id that an AbandonRequest names.

    :raise BerError: it is none.
    """
    id, end = ber.read_integer(op, 0, len(op), ABANDON, "the id of an abandon")
    if end != len(op):
        raise BerError("there are bytes after the id of an abandon")
    return id


def extended(op: bytes) -> Extended:
    """:raise BerError: it is no ExtendedRequest."""
    at, end = _whole(op, EXTENDED, "an extended request")
    start, at = ber.expect(op, at, end, 0x80, "the name of an extended request")
    oid, value = op[start:at], None
    if at < end:
        start, at = ber.expect(op, at, end, 0x81, "the value of an extended request")
        value = op[start:at]
    return Extended(oid, value)


def cancelled(value: bytes | None) -> int:
    """
    The message id that the value of a Cancel names (RFC 3909 section 2).

    :raise BerError: it names none.
    """
    if value is None:
        raise BerError("a cancel without a value")
    start, end = ber.expect(value, 0, len(value), 0x30, "the value of a cancel")
    id, stop = ber.read_integer(value, start, end, 0x02, "the id of a cancel")
    if stop != end or end != len(value):
        raise BerError("there are bytes after the id of a cancel")
    return id


def _whole(op: bytes, tag: int, what: str) -> tuple[int, int]:
    start, end = ber.expect(op, 0, len(op), tag, what)
    if end != len(op):
        raise BerError(f"there are bytes after {what}")
    return start, end


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BerError(f"{what} is not UTF-8") from None


# --- writing ---------------------------------------------------------------------------------------------------------


def answer(tag: int, code: int, text: str = "", matched: str = "") -> bytes:
    """A protocolOp that is an LDAPResult and nothing more."""
    return ber.result(tag, code, matched.encode(), text.encode())


def extended_answer(code: int, text: str = "", name: bytes | None = None, value: bytes | None = None) -> bytes:
    """An ExtendedResponse protocolOp."""
    content = ber.integer(code, 0x0A) + octets(b"") + octets(text.encode())
    if name is not None:
        content += tlv(0x8A, name)
    if value is not None:
        content += tlv(0x8B, value)
    return tlv(EXTENDED_RESPONSE, content)


def disconnection(code: int, text: str) -> bytes:
    """The whole message that says why the server ends the connection (RFC 4511 section 4.4.1)."""
    return ber.message(0, extended_answer(code, text, DISCONNECTION))


def refused_write(tag: int) -> bytes:
    """The answer to an operation that would change the directory."""
    return answer(WRITES[tag][0], Code.UNWILLING_TO_PERFORM, "read-only directory")
