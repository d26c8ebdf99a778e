"""
LDAP clients: OpenLDAP's commands, and one of a few lines that asks any filter on one connection.

The small one shares nothing with the server: requests are encoded and answers are read here, by the letter of RFC 4511.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

# A filter: ("&"|"|", filters...), ("!", filter), ("=", attribute, value), (">=", ...), ("<=", ...), ("~=", ...),
# ("*", attribute), ("sub", attribute, initial, (any, ...), final), ("ext", rule, attribute, value, dn attributes too).
Filter = tuple[object, ...]
Entries = dict[str, dict[str, tuple[bytes, ...]]]
BASE, ONE, SUB = 0, 1, 2
PAGED = "1.2.840.113556.1.4.319"
ANSWER_SECONDS = 30.0
READ_BYTES = 1 << 16


# -- what is sent -----------------------------------------------------------------------------------------------------
def tlv(tag: int, *contents: bytes) -> bytes:
    """One element of BER, its length as short as it can be."""
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def integer(value: int, tag: int = 0x02) -> bytes:
    return tlv(tag, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def text(value: str | bytes, tag: int = 0x04) -> bytes:
    return tlv(tag, value.encode() if isinstance(value, str) else value)


def encode_filter(filter: Filter) -> bytes:
    """RFC 4511 section 4.5.1.7."""
    kind, *parts = filter
    match kind:
        case "&" | "|":
            return tlv(0xA0 if kind == "&" else 0xA1, *(encode_filter(part) for part in parts))  # type: ignore[arg-type]
        case "!":
            return tlv(0xA2, encode_filter(parts[0]))  # type: ignore[arg-type]
        case "*":
            return text(parts[0], 0x87)  # type: ignore[arg-type]
        case "=" | ">=" | "<=" | "~=":
            tag = {"=": 0xA3, ">=": 0xA5, "<=": 0xA6, "~=": 0xA8}[kind]
            return tlv(tag, text(parts[0]), text(parts[1]))  # type: ignore[arg-type]
        case "sub":
            attribute, initial, middle, final = parts
            pieces = [text(initial, 0x80)] if initial else []  # type: ignore[arg-type]
            pieces += [text(piece, 0x81) for piece in middle]  # type: ignore[attr-defined]
            pieces += [text(final, 0x82)] if final else []  # type: ignore[arg-type]
            return tlv(0xA4, text(attribute), tlv(0x30, *pieces))  # type: ignore[arg-type]
        case "ext":
            rule, attribute, value, dn_too = parts
            pieces = [text(rule, 0x81)] if rule else []  # type: ignore[arg-type]
            pieces += [text(attribute, 0x82)] if attribute else []  # type: ignore[arg-type]
            pieces += [text(value, 0x83)]  # type: ignore[arg-type]
            pieces += [tlv(0x84, b"\xff")] if dn_too else []
            return tlv(0xA9, *pieces)
    raise AssertionError(f"no such filter: {filter!r}")


def parse_filter(written: str) -> Filter:
    """RFC 4515, as much of it as clients of ours are documented with: no extensible match."""
    filter, rest = _filter(written)
    assert not rest, f"behind the filter: {rest!r}"
    return filter


def _filter(written: str) -> tuple[Filter, str]:
    assert written.startswith("("), written
    if written[1] in "&|!":
        parts: list[Filter] = []
        kind, rest = written[1], written[2:]
        while rest.startswith("("):
            part, rest = _filter(rest)
            parts.append(part)
        assert rest.startswith(")"), rest
        return (kind, *parts), rest[1:]
    item, _, rest = written[1:].partition(")")
    attribute, _, value = item.partition("=")
    if attribute[-1] in "<>~":
        return (attribute[-1] + "=", attribute[:-1], unescape(value)), rest
    if value == "*":
        return ("*", attribute), rest
    if "*" in value:
        initial, *middle, final = map(unescape, value.split("*"))
        return ("sub", attribute, initial, tuple(middle), final), rest
    return ("=", attribute, unescape(value)), rest


def unescape(value: str) -> bytes:
    first, *escaped = value.encode().split(b"\\")
    return first + b"".join(bytes.fromhex(part[:2].decode()) + part[2:] for part in escaped)


def search_request(
    base: str,
    scope: int,
    filter: Filter,
    attributes: Sequence[str] = (),
    *,
    size_limit: int = 0,
    time_limit: int = 0,
    types_only: bool = False,
) -> bytes:
    """The protocolOp: what stands between message id and controls."""
    return tlv(
        0x63,
        text(base),
        integer(scope, 0x0A),
        integer(0, 0x0A),
        integer(size_limit),
        integer(time_limit),
        tlv(0x01, b"\xff" if types_only else b"\x00"),
        encode_filter(filter),
        tlv(0x30, *map(text, attributes)),
    )


def paged_control(size: int, cookie: bytes = b"", critical: bool = False) -> bytes:
    """RFC 2696, as one element of the message's controls."""
    criticality = tlv(0x01, b"\xff") if critical else b""
    return tlv(0x30, text(PAGED), criticality, text(tlv(0x30, integer(size), text(cookie))))


def message(number: int, operation: bytes, *controls: bytes) -> bytes:
    return tlv(0x30, integer(number), operation, tlv(0xA0, *controls) if controls else b"")


# -- what is read -----------------------------------------------------------------------------------------------------
def elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element."""
    place = 0
    while place < len(content):
        tag, content_start, end = header(content, place)
        yield tag, content[content_start:end]
        place = end


def header(data: bytes | bytearray, place: int) -> tuple[int, int, int]:
    """
    Tag, start of the content and end of the element that begins at ``place``.

    :raise IndexError: not even the length is there.
    """
    length, start = data[place + 1], place + 2
    if length & 0x80:
        octets = length & 0x7F
        assert 0 < octets <= 4, "LDAP has definite lengths only"
        start += octets
        if len(data) < start:
            raise IndexError("the length goes on")
        length = int.from_bytes(data[start - octets : start], "big")
    return data[place], start, start + length


def strings(content: bytes) -> list[bytes]:
    return [value for _, value in elements(content)]


@dataclass(slots=True)
class Found:
    """
    Everything that one search was answered.

    :ivar entries: by DN as it was sent; attribute names as they were sent.
    :ivar order: the DNs in the order in which they came.
    :ivar cookie: of the paging control, None when the answer has none.
    """

    code: int = -1
    matched_dn: str = ""
    diagnostic: str = ""
    entries: Entries = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    cookie: bytes | None = None


class Client:
    """
    One connection, one request at a time.

    :param source: the address to come from; empty: whichever the system takes.
    :param receive_buffer: what the system keeps of answers that are not read yet, in bytes; 0: as much as it likes.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", source: str = "", receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        try:
            self.socket.settimeout(ANSWER_SECONDS)
            if receive_buffer:
                # before the connection is made, or it is too late
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source:
                self.socket.bind((source, 0))
            self.socket.connect((host, port))
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        self._number = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, operation: bytes, *controls: bytes) -> int:
        """The message id."""
        self._number += 1
        self.socket.sendall(message(self._number, operation, *controls))
        return self._number

    def receive(self) -> tuple[int, int, bytes, list[bytes]]:
        """
        Message id, tag and content of the operation, and the controls.

        :raise EOFError: the server closed the connection.
        """
        while True:
            try:
                _, start, end = header(self._buffer, 0)
                if len(self._buffer) >= end:
                    break
            except IndexError:
                pass
            data = self.socket.recv(READ_BYTES)
            if not data:
                raise EOFError("the server closed the connection")
            self._buffer += data
        content = bytes(self._buffer[start:end])
        del self._buffer[:end]
        (_, number), (tag, operation), *rest = elements(content)
        return int.from_bytes(number, "big", signed=True), tag, operation, strings(rest[0][1]) if rest else []

    def result(self, operation: bytes, *controls: bytes) -> int:
        """The code that an operation with one answer ends with."""
        number = self.send(operation, *controls)
        answered, _, content, _ = self.receive()
        assert answered == number, f"an answer to {answered}, and {number} was asked"
        return int.from_bytes(strings(content)[0], "big")

    def bind(self, dn: str, password: str) -> int:
        return self.result(tlv(0x60, integer(3), text(dn), text(password, 0x80)))

    def compare(self, dn: str, attribute: str, value: bytes) -> int:
        """The code: true is 6, false is 5."""
        return self.result(tlv(0x6E, text(dn), tlv(0x30, text(attribute), text(value))))

    def search(
        self,
        base: str,
        scope: int,
        filter: Filter,
        attributes: Sequence[str] = (),
        *controls: bytes,
        size_limit: int = 0,
        time_limit: int = 0,
        types_only: bool = False,
    ) -> Found:
        operation = search_request(
            base, scope, filter, attributes, size_limit=size_limit, time_limit=time_limit, types_only=types_only
        )
        return self.ask(operation, *controls)

    def ask(self, operation: bytes, *controls: bytes) -> Found:
        """A search that is encoded already."""
        number, entries, order = self.send(operation, *controls), Entries(), []
        while True:
            answered, tag, content, answer_controls = self.receive()
            assert answered == number, f"an answer to {answered}, and {number} was asked"
            if tag == 0x64:
                dn, entry = self._entry(content)
                assert dn not in entries, f"{dn} twice in one answer"
                entries[dn] = entry
                order.append(dn)
                continue
            found = self._done((answered, tag, content, answer_controls))
            found.entries, found.order = entries, order
            return found

    @staticmethod
    def _done(answer: tuple[int, int, bytes, list[bytes]]) -> Found:
        _, tag, content, controls = answer
        assert tag == 0x65, f"a search is not answered with {tag:#x}"
        code, matched, diagnostic, *_ = strings(content)
        found = Found(int.from_bytes(code, "big"), matched.decode(), diagnostic.decode())
        for control in controls:
            oid, *values = strings(control)
            if oid == PAGED.encode():
                found.cookie = strings(strings(values[-1])[0])[1]
        return found

    @staticmethod
    def _entry(content: bytes) -> tuple[str, dict[str, tuple[bytes, ...]]]:
        dn, attributes = strings(content)
        entry: dict[str, tuple[bytes, ...]] = {}
        for attribute in strings(attributes):
            name, values = strings(attribute)
            assert name.decode() not in entry, f"{name.decode()} twice in {dn.decode()}"
            entry[name.decode()] = tuple(strings(values))
        return dn.decode(), entry

    def count(self, operation: bytes, *controls: bytes) -> tuple[int, int, bytes | None]:
        """As :meth:`ask`, for the clock: how many entries, the code, and the paging cookie; entries are not decoded."""
        number, entries = self.send(operation, *controls), 0
        expected = integer(number)
        buffer, place = self._buffer, 0
        assert not buffer
        while True:
            buffer += self.socket.recv(1 << 18)
            while True:
                try:
                    _, start, end = header(buffer, place)
                except IndexError:
                    break
                if end > len(buffer):
                    break
                assert buffer.startswith(expected, start), "an answer to another search"
                if buffer[start + len(expected)] != 0x64:
                    del buffer[:place]
                    done = self._done(self.receive())
                    return entries, done.code, done.cookie
                entries += 1
                place = end

    def pages(
        self, base: str, scope: int, filter: Filter, attributes: Sequence[str] = (), *, size: int = 500
    ) -> Iterator[Found]:
        """All pages of a paged search."""
        cookie = b""
        while True:
            found = self.search(base, scope, filter, attributes, paged_control(size, cookie))
            yield found
            if found.code or not found.cookie:
                return
            cookie = found.cookie


# -- OpenLDAP's own ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Told:
    """What a command printed, and the status that it ended with."""

    status: int
    output: str
    errors: str

    @property
    def entries(self) -> list[dict[str, list[str]]]:
        """The entries of LDIF output, values as they are printed."""
        found: list[dict[str, list[str]]] = []
        for block in self.output.replace("\n ", "").split("\n\n"):
            lines = [line for line in block.splitlines() if line and not line.startswith("#")]
            entry: dict[str, list[str]] = {}
            for line in lines:
                name, _, value = line.partition(":")
                entry.setdefault(name, []).append(value.removeprefix(":").strip())
            if "dn" in entry:
                found.append(entry)
        return found


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None, seconds: float = 60) -> Told:
    """
    One of OpenLDAP's commands, with nothing configured but what the test says.

    :param environment: such as ``LDAPTLS_CACERT``.
    """
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
    )
    return Told(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))
