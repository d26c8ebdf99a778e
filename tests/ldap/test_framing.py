"""Cutting bytes into messages."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.ldap.framing import BOUND_BYTES, FRAMES_AT_ONCE, STRANGERS_BYTES, Framer

SMALL = bytes.fromhex("300c020101600702010304008000")


def message(content: bytes, form: int) -> bytes:
    """One frame around ``content``; ``form`` 0 is the shortest length, 1 to 4 the long form with so many bytes."""
    if form == 0 and len(content) < 0x80:
        return b"\x30" + bytes([len(content)]) + content
    form = max(form, (len(content).bit_length() + 7) // 8)
    return b"\x30" + bytes([0x80 | form]) + len(content).to_bytes(form, "big") + content


class FramerTests(SynchronousTestCase):
    def test_one(self) -> None:
        """A message that comes in one piece."""
        framer = Framer()
        self.assertEqual((framer.feed(SMALL), framer.buffered, framer.broken), ([SMALL], 0, ""))

    def test_byte_by_byte(self) -> None:
        """Nothing is given out before a message is complete, and nothing is lost."""
        framer = Framer()
        given = [framer.feed(SMALL[i : i + 1]) for i in range(len(SMALL))]
        self.assertEqual(given, [[]] * (len(SMALL) - 1) + [[SMALL]])

    @given(
        st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 4)), max_size=8),
        st.lists(st.integers(1, 200), max_size=40),
    )
    def test_any_cut(self, contents: list[tuple[bytes, int]], cuts: list[int]) -> None:
        """However the stream is cut, the same messages come out."""
        frames = [message(content, form) for content, form in contents]
        stream, framer, out = b"".join(frames), Framer(), []
        for cut in cuts:
            out += framer.feed(stream[:cut])
            stream = stream[cut:]
        out += framer.feed(stream)
        self.assertEqual((out, framer.buffered, framer.broken), (frames, 0, ""))

    def test_longest(self) -> None:
        """A message as long as the limit passes."""
        whole = b"\x30\x83\x00\xff\xfb" + bytes(STRANGERS_BYTES - 5)
        self.assertEqual(Framer().feed(whole), [whole])

    def test_too_long(self) -> None:
        """One byte more is refused by its header alone, with both numbers."""
        framer = Framer()
        self.assertEqual(framer.feed(b"\x30\x83\x00\xff\xfc"), [])
        self.assertIn("65537 bytes where 65536", framer.broken)

    def test_raised(self) -> None:
        """After a bind longer messages pass, up to the greater limit."""
        framer = Framer()
        framer.limit = BOUND_BYTES
        whole = b"\x30\x83\x0f\xff\xfb" + bytes(BOUND_BYTES - 5)
        self.assertEqual(framer.feed(whole), [whole])
        framer.feed(b"\x30\x83\x0f\xff\xfc")
        self.assertIn("1048577", framer.broken)

    def test_indefinite(self) -> None:
        """There are no indefinite lengths in LDAP."""
        framer = Framer()
        framer.feed(b"\x30\x80\x02\x01\x01")
        self.assertIn("indefinite", framer.broken)

    def test_length_of_lengths(self) -> None:
        """A length of five bytes and more is refused before it has come."""
        for first in (0x85, 0x88, 0xFF):
            framer = Framer()
            framer.feed(bytes([0x30, first]))
            self.assertIn("a length of", framer.broken)

    def test_other_tag(self) -> None:
        """What is no SEQUENCE, such as a TLS handshake or HTTP, is refused by its first byte."""
        for first in (0x16, 0x47, 0x31, 0x00):
            framer = Framer()
            framer.feed(bytes([first]))
            self.assertIn(f"0x{first:02x}", framer.broken)

    def test_at_once(self) -> None:
        """A read of very many small messages is given out in parts, and nothing is lost."""
        framer, count = Framer(), FRAMES_AT_ONCE * 2 + 5
        sizes = [len(framer.feed(SMALL * count + SMALL[:4]))]
        while framer.more:
            sizes.append(len(framer.feed(b"")))
        self.assertEqual((sizes, framer.buffered), ([FRAMES_AT_ONCE, FRAMES_AT_ONCE, 5], 4))
        self.assertEqual(framer.feed(SMALL[4:]), [SMALL])

    def test_before_the_fault(self) -> None:
        """Messages before a fault are given out; after it nothing is read or kept."""
        framer = Framer()
        self.assertEqual(framer.feed(SMALL + SMALL + b"\x00" + SMALL), [SMALL, SMALL])
        self.assertEqual((framer.feed(SMALL), framer.buffered), ([], 0))
