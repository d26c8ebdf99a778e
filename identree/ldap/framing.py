"""
Cutting a stream of bytes into LDAP messages (RFC 4511 section 5.1), pure and bounded.

Only the outer tag and length are read here. A message that is too long is refused when its length is known, not when
its bytes have come.
"""

from __future__ import annotations

# Longest message, header included, in bytes. Before a bind nobody needs more than a name and a password.
STRANGERS_BYTES = 64 << 10
# Afterwards: sudo's own queries name every group of a person, in a few hundred KiB at the very most.
BOUND_BYTES = 1 << 20

# Messages given out at once. The smallest has seven bytes: one read of 64 KiB could have nine thousand, and whoever
# looks at them would hold up everybody else.
FRAMES_AT_ONCE = 256

SEQUENCE = 0x30
# The length of a message fits into four bytes many times over, so longer forms are an attack or a mistake.
MAX_LENGTH_BYTES = 4


class Framer:
    """
    :param limit: longest message in bytes; may be raised between two messages.
    :ivar broken: why the stream cannot be read on, in words for a log; empty while it can. Messages before the fault
        are still given out.
    :ivar more: there may be whole messages left, for the next call; it needs no further bytes.
    """

    __slots__ = ("_buffer", "_needed", "broken", "limit", "more")

    def __init__(self, limit: int = STRANGERS_BYTES) -> None:
        self.limit = limit
        self.broken = ""
        self.more = False
        self._buffer = bytearray()
        # bytes from the start of the buffer to the end of the message in it, 0 while that is not known: a sender of
        # single bytes costs one comparison for each
        self._needed = 0

    @property
    def buffered(self) -> int:
        """Bytes that were not given out; at most the limit plus one read."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """
        The messages that ``data`` completes, in order, up to :data:`FRAMES_AT_ONCE`; nothing more once the stream is
        broken.
        """
        if self.broken:
            return []
        buffer = self._buffer
        buffer += data
        length = len(buffer)
        if length < self._needed:
            return []
        frames: list[bytes] = []
        start = 0
        while True:
            if len(frames) == FRAMES_AT_ONCE:
                self._needed = 0
                break
            needed = self._length(buffer, start, length)
            if needed == 0 or start + needed > length:
                self._needed = needed
                break
            frames.append(bytes(buffer[start : start + needed]))
            start += needed
        if self.broken:
            buffer.clear()
        else:
            del buffer[:start]
        self.more = len(frames) == FRAMES_AT_ONCE and bool(buffer)
        return frames

    def _length(self, buffer: bytearray, start: int, end: int) -> int:
        """Of the message at ``start``, header included; 0 when its header is incomplete or bad."""
        if start == end:
            return 0
        if buffer[start] != SEQUENCE:
            return self._refuse(f"a message begins with tag 0x{buffer[start]:02x} instead of 0x30")
        if end - start < 2:
            return 0
        first = buffer[start + 1]
        if first < 0x80:
            return self._bounded(first + 2)
        if first == 0x80:
            return self._refuse("a message of indefinite length")
        count = first & 0x7F
        if count > MAX_LENGTH_BYTES:
            return self._refuse(f"a length of {count} bytes")
        if end - start < 2 + count:
            return 0
        return self._bounded(int.from_bytes(buffer[start + 2 : start + 2 + count], "big") + 2 + count)

    def _bounded(self, length: int) -> int:
        if length > self.limit:
            return self._refuse(f"a message of {length} bytes where {self.limit} are allowed")
        return length

    def _refuse(self, why: str) -> int:
        self.broken = why
        return 0
