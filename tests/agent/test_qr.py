"""QR codes: the standard's examples, and a reader of our own that shares no code with the encoder."""

from __future__ import annotations

import unittest

from hypothesis import given, settings
from hypothesis import strategies as st

from identree.agent import qr
from identree.agent.screen import half_blocks

# Table 9 of ISO/IEC 18004, written out: blocks as (codewords, data codewords), by version and level.
BLOCKS = {
    (1, "L"): [(26, 19)],
    (1, "M"): [(26, 16)],
    (2, "L"): [(44, 34)],
    (2, "M"): [(44, 28)],
    (3, "L"): [(70, 55)],
    (3, "M"): [(70, 44)],
    (4, "L"): [(100, 80)],
    (4, "M"): [(50, 32)] * 2,
    (5, "L"): [(134, 108)],
    (5, "M"): [(67, 43)] * 2,
    (6, "L"): [(86, 68)] * 2,
    (6, "M"): [(43, 27)] * 4,
    (7, "L"): [(98, 78)] * 2,
    (7, "M"): [(49, 31)] * 4,
    (8, "L"): [(121, 97)] * 2,
    (8, "M"): [(60, 38)] * 2 + [(61, 39)] * 2,
    (9, "L"): [(146, 116)] * 2,
    (9, "M"): [(58, 36)] * 3 + [(59, 37)] * 2,
    (10, "L"): [(86, 68)] * 2 + [(87, 69)] * 2,
    (10, "M"): [(69, 43)] * 4 + [(70, 44)],
}
ALIGNMENT = {2: 18, 3: 22, 4: 26, 5: 30, 6: 34, 7: 38, 8: 42, 9: 46, 10: 50}
MIDDLE = {7: 22, 8: 24, 9: 26, 10: 28}

# Exponents and logarithms of GF(256) with x^8 + x^4 + x^3 + x^2 + 1.
EXP = [1]
while len(EXP) < 255:
    EXP.append(EXP[-1] << 1 ^ (0x11D if EXP[-1] & 0x80 else 0))


def syndromes(block: list[int], check: int) -> list[int]:
    """The codeword polynomial at the roots of the generator; all zero when nothing is damaged."""
    result = []
    for power in range(check):
        value = 0
        for position, codeword in enumerate(reversed(block)):
            if codeword:
                value ^= EXP[(EXP.index(codeword) + power * position) % 255]
        result.append(value)
    return result


def reserved(version: int, row: int, column: int) -> bool:
    """Whether the module belongs to a function pattern."""
    size = version * 4 + 17
    if (row < 9 and column < 9) or (row < 9 and column >= size - 8) or (row >= size - 8 and column < 9):
        return True
    if row == 6 or column == 6:
        return True
    if version >= 7 and ((row < 6 and column >= size - 11) or (column < 6 and row >= size - 11)):
        return True
    if version == 1:
        return False
    places = [6, *([MIDDLE[version]] if version in MIDDLE else []), ALIGNMENT[version]]
    for r in places:
        for c in places:
            corner = (r, c) in ((6, 6), (6, places[-1]), (places[-1], 6))
            if not corner and abs(row - r) <= 2 and abs(column - c) <= 2:
                return True
    return False


def masked(number: int, i: int, j: int) -> bool:
    """Table 10 of the standard, i being the row."""
    return [
        (i + j) % 2,
        i % 2,
        j % 3,
        (i + j) % 3,
        (i // 2 + j // 3) % 2,
        (i * j) % 2 + (i * j) % 3,
        ((i * j) % 2 + (i * j) % 3) % 2,
        ((i + j) % 2 + (i * j) % 3) % 2,
    ][number] == 0


def read(modules: list[list[bool]]) -> bytes:
    """What a reader finds in an undamaged symbol."""
    size = len(modules)
    version = (size - 17) // 4
    spots = [(8, c) for c in (0, 1, 2, 3, 4, 5, 7, 8)] + [(r, 8) for r in (7, 5, 4, 3, 2, 1, 0)]
    first = int("".join("01"[modules[r][c]] for r, c in spots), 2)
    second_spots = [(size - 1 - n, 8) for n in range(7)] + [(8, size - 8 + n) for n in range(8)]
    second = int("".join("01"[modules[r][c]] for r, c in second_spots), 2)
    assert first == second, "the two copies of the format information differ"
    assert modules[size - 8][8], "the dark module is missing"
    data = (first ^ 0b101010000010010) >> 10
    level, mask = {1: "L", 0: "M"}[data >> 3], data & 7
    bits, column, upward = "", size - 1, True
    while column > 0:
        if column == 6:
            column -= 1
        for row in range(size - 1, -1, -1) if upward else range(size):
            for c in (column, column - 1):
                if not reserved(version, row, c):
                    bits += "01"[modules[row][c] ^ masked(mask, row, c)]
        column, upward = column - 2, not upward
    words = [int(bits[n : n + 8], 2) for n in range(0, len(bits) // 8 * 8, 8)]
    shape = BLOCKS[version, level]
    blocks: list[list[int]] = [[] for _ in shape]
    for n in range(max(d for _, d in shape)):
        for block, (_, length) in zip(blocks, shape, strict=True):
            if n < length:
                block.append(words.pop(0))
    content = [list(block) for block in blocks]
    check = shape[0][0] - shape[0][1]
    for _ in range(check):
        for block in blocks:
            block.append(words.pop(0))
    for block in blocks:
        assert not any(syndromes(block, check)), "the error correction does not fit the data"
    text = "".join(format(word, "08b") for block in content for word in block)
    assert text[:4] == "0100", "not byte mode"
    width = 8 if version < 10 else 16
    length = int(text[4 : 4 + width], 2)
    return bytes(int(text[4 + width + 8 * n : 12 + width + 8 * n], 2) for n in range(length))


class StandardTests(unittest.TestCase):
    def test_error_correction(self) -> None:
        """The check codewords of the standard's example, 01234567 in version 1-M (annex I)."""
        data = [0x10, 0x20, 0x0C, 0x56, 0x61, 0x80] + [0xEC, 0x11] * 5
        expected = [0xA5, 0x24, 0xD4, 0xC1, 0xED, 0x36, 0xC7, 0x87, 0x2C, 0x55]
        self.assertEqual(qr.check_codewords(data, 10), expected)

    def test_format_information(self) -> None:
        """The example of section 7.9: level M, mask 5."""
        self.assertEqual(format(qr.format_bits("M", 5), "015b"), "100000011001110")

    def test_version_information(self) -> None:
        """The example of section 7.10: version 7."""
        self.assertEqual(format(qr.version_bits(7), "018b"), "000111110010010100")


class ReadingTests(unittest.TestCase):
    def test_every_version(self) -> None:
        """The fullest text of each version and level comes back."""
        for version in range(1, 11):
            for level in "LM":
                data = bytes(33 + n % 90 for n in range(qr.capacity(version, level)))
                modules = qr.encode(data, level)
                self.assertEqual(len(modules), version * 4 + 17)
                self.assertEqual(read(modules), data)

    @settings(max_examples=15, deadline=None)
    @given(st.binary(min_size=1, max_size=120))
    def test_any_bytes(self, data: bytes) -> None:
        """Any bytes come back."""
        self.assertEqual(read(qr.encode(data)), data)

    def test_finder_patterns(self) -> None:
        """Three corners carry the finder, with its light border."""
        modules = qr.encode(b"https://id.example.com/approve/ABCDEF-123456")
        size = len(modules)
        ring = ["1111111", "1000001", "1011101", "1011101", "1011101", "1000001", "1111111"]
        for top, left in ((0, 0), (0, size - 7), (size - 7, 0)):
            self.assertEqual(["".join("01"[modules[top + r][left + c]] for c in range(7)) for r in range(7)], ring)
        self.assertFalse(any(modules[7][:8]))

    def test_stronger_level_for_nothing(self) -> None:
        """The stronger level is taken when it needs no larger symbol."""
        self.assertEqual(qr.encode(b"x" * 14), qr.encode(b"x" * 14, "M"))
        self.assertEqual(len(qr.encode(b"x" * 17)), 21)

    def test_too_long(self) -> None:
        """More than version 10 holds is refused."""
        with self.assertRaises(qr.TooLong):
            qr.encode(b"x" * 272)


class HalfBlockTests(unittest.TestCase):
    def test_drawing(self) -> None:
        """Light modules are drawn, two rows in a line, with a quiet zone of two modules around."""
        lines = half_blocks([[True, False], [False, True]])
        self.assertEqual(lines, ["██████", "██▄▀██", "██████"])

    def test_odd_height(self) -> None:
        """An odd number of rows ends with half a line."""
        self.assertEqual(half_blocks([[True]]), ["█████", "██▄██", "▀▀▀▀▀"])
