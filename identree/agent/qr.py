"""
QR codes (ISO/IEC 18004), as far as a URL on a terminal needs them: byte mode, versions 1 to 10, levels L and M.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# (check codewords per block, blocks) by version, table 9 of the standard.
_BLOCKS = {
    "L": ((7, 1), (10, 1), (15, 1), (20, 1), (26, 1), (18, 2), (20, 2), (24, 2), (30, 2), (18, 4)),
    "M": ((10, 1), (16, 1), (26, 1), (18, 2), (24, 2), (16, 4), (18, 4), (22, 4), (22, 5), (26, 5)),
}
_CODEWORDS = (26, 44, 70, 100, 134, 172, 196, 242, 292, 346)
_ALIGNMENT = ((), (6, 18), (6, 22), (6, 26), (6, 30), (6, 34), (6, 22, 38), (6, 24, 42), (6, 26, 46), (6, 28, 50))
_LEVEL_BITS = {"L": 1, "M": 0}

_MASKS: tuple[Callable[[int, int], bool], ...] = (
    lambda r, c: (r + c) % 2 == 0,
    lambda r, c: r % 2 == 0,
    lambda r, c: c % 3 == 0,
    lambda r, c: (r + c) % 3 == 0,
    lambda r, c: (r // 2 + c // 3) % 2 == 0,
    lambda r, c: r * c % 2 + r * c % 3 == 0,
    lambda r, c: (r * c % 2 + r * c % 3) % 2 == 0,
    lambda r, c: ((r + c) % 2 + r * c % 3) % 2 == 0,
)


class TooLong(Exception):
    """The text does not fit into version 10."""


def capacity(version: int, level: str) -> int:
    """How many bytes of data a version takes."""
    check, blocks = _BLOCKS[level][version - 1]
    bits = 8 * (_CODEWORDS[version - 1] - check * blocks) - 4 - (8 if version < 10 else 16)
    return bits // 8


def encode(data: bytes, level: str = "") -> list[list[bool]]:
    """
    The modules, true being dark, without the quiet zone.

    :param level: ``L`` or ``M``; by default M when it needs no larger symbol than L.
    :raise TooLong: more than 271 bytes.
    """
    wanted = level or "L"
    for version in range(1, 11):
        if len(data) <= capacity(version, wanted):
            break
    else:
        raise TooLong(str(len(data)))
    if not level and len(data) <= capacity(version, "M"):
        wanted = "M"
    size = version * 4 + 17
    modules = [[False] * size for _ in range(size)]
    fixed = [[False] * size for _ in range(size)]
    _draw_patterns(modules, fixed, version)
    _draw_data(modules, fixed, interleave(_pack(data, version, wanted), version, wanted))
    best, least = 0, -1
    for number in range(8):
        _mask(modules, fixed, number)
        _draw_format(modules, fixed, wanted, number)
        score = _penalty(modules)
        if least < 0 or score < least:
            best, least = number, score
        _mask(modules, fixed, number)
    _mask(modules, fixed, best)
    _draw_format(modules, fixed, wanted, best)
    return modules


def check_codewords(data: list[int], count: int) -> list[int]:
    """The Reed-Solomon remainder over GF(256) with polynomial 0x11D (annex A)."""
    generator = [0] * (count - 1) + [1]
    root = 1
    for _ in range(count):
        for i in range(count):
            generator[i] = _multiply(generator[i], root)
            if i + 1 < count:
                generator[i] ^= generator[i + 1]
        root = _multiply(root, 2)
    remainder = [0] * count
    for value in data:
        factor = value ^ remainder.pop(0)
        remainder.append(0)
        for i, coefficient in enumerate(generator):
            remainder[i] ^= _multiply(coefficient, factor)
    return remainder


def interleave(data: list[int], version: int, level: str) -> list[int]:
    """Data and check codewords of all blocks, in the order of section 7.6."""
    check, count = _BLOCKS[level][version - 1]
    total = _CODEWORDS[version - 1] - check * count
    short, longer = total // count, total % count
    blocks, at = [], 0
    for index in range(count):
        length = short + (1 if index >= count - longer else 0)
        blocks.append(data[at : at + length])
        at += length
    checks = [check_codewords(block, check) for block in blocks]
    out = [block[i] for i in range(short + 1) for block in blocks if i < len(block)]
    return out + [each[i] for i in range(check) for each in checks]


def format_bits(level: str, mask: int) -> int:
    """Format information with its BCH code (section 7.9.1)."""
    value = _LEVEL_BITS[level] << 3 | mask
    remainder = value
    for _ in range(10):
        remainder = (remainder << 1) ^ ((remainder >> 9) * 0x537)
    return (value << 10 | remainder) ^ 0x5412


def version_bits(version: int) -> int:
    """Version information with its Golay code (section 7.10)."""
    remainder = version
    for _ in range(12):
        remainder = (remainder << 1) ^ ((remainder >> 11) * 0x1F25)
    return version << 12 | remainder


def _pack(data: bytes, version: int, level: str) -> list[int]:
    check, blocks = _BLOCKS[level][version - 1]
    room = 8 * (_CODEWORDS[version - 1] - check * blocks)
    bits = "0100" + format(len(data), "08b" if version < 10 else "016b") + "".join(format(b, "08b") for b in data)
    bits += "0" * min(4, room - len(bits))
    bits += "0" * (-len(bits) % 8)
    out = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    for pad in range(room // 8 - len(out)):
        out.append((0xEC, 0x11)[pad % 2])
    return out


def _multiply(x: int, y: int) -> int:
    product = 0
    for bit in range(7, -1, -1):
        product = (product << 1) ^ ((product >> 7) * 0x11D)
        product ^= ((y >> bit) & 1) * x
    return product


def _draw_patterns(modules: list[list[bool]], fixed: list[list[bool]], version: int) -> None:
    size = len(modules)

    def put(row: int, column: int, dark: bool) -> None:
        modules[row][column], fixed[row][column] = dark, True

    for i in range(size):
        put(6, i, i % 2 == 0)
        put(i, 6, i % 2 == 0)
    for centre_row, centre_column in ((3, 3), (3, size - 4), (size - 4, 3)):
        for dr in range(-4, 5):
            for dc in range(-4, 5):
                row, column = centre_row + dr, centre_column + dc
                if 0 <= row < size and 0 <= column < size:
                    put(row, column, max(abs(dr), abs(dc)) not in (2, 4))
    places = _ALIGNMENT[version - 1]
    for row in places:
        for column in places:
            if (row, column) in ((6, 6), (6, size - 7), (size - 7, 6)):
                continue
            for dr in range(-2, 3):
                for dc in range(-2, 3):
                    put(row + dr, column + dc, max(abs(dr), abs(dc)) != 1)
    if version >= 7:
        bits = version_bits(version)
        for i in range(18):
            dark = bool(bits >> i & 1)
            put(size - 11 + i % 3, i // 3, dark)
            put(i // 3, size - 11 + i % 3, dark)
    _draw_format(modules, fixed, "L", 0)


def _draw_format(modules: list[list[bool]], fixed: list[list[bool]], level: str, mask: int) -> None:
    bits, size = format_bits(level, mask), len(modules)
    for i in range(15):
        dark = bool(bits >> i & 1)
        if i < 6:
            first = (i, 8)
        elif i < 8:
            first = (i + 1, 8)
        elif i == 8:
            first = (8, 7)
        else:
            first = (8, 14 - i)
        second = (8, size - 1 - i) if i < 8 else (size - 15 + i, 8)
        for row, column in (first, second):
            modules[row][column], fixed[row][column] = dark, True
    modules[size - 8][8], fixed[size - 8][8] = True, True


def _draw_data(modules: list[list[bool]], fixed: list[list[bool]], codewords: list[int]) -> None:
    size, at = len(modules), 0
    for right in range(size - 1, 0, -2):
        if right <= 6:
            right -= 1
        upward = (right + 1) & 2 == 0
        for step in range(size):
            row = size - 1 - step if upward else step
            for column in (right, right - 1):
                if not fixed[row][column] and at < len(codewords) * 8:
                    modules[row][column] = bool(codewords[at >> 3] >> (7 - (at & 7)) & 1)
                    at += 1


def _mask(modules: list[list[bool]], fixed: list[list[bool]], number: int) -> None:
    condition = _MASKS[number]
    for r, row in enumerate(modules):
        free = fixed[r]
        for c in range(len(row)):
            if not free[c] and condition(r, c):
                row[c] = not row[c]


def _penalty(modules: list[list[bool]]) -> int:
    """Section 7.8.3: runs, blocks, finder-like patterns, balance."""
    size = len(modules)
    rows = ["".join("1" if dark else "0" for dark in row) for row in modules]
    lines = rows + ["".join(column) for column in zip(*rows)]
    score = 0
    for line in lines:
        run = 1
        for i in range(1, size + 1):
            if i < size and line[i] == line[i - 1]:
                run += 1
            else:
                score += run - 2 if run >= 5 else 0
                run = 1
        for pattern in ("10111010000", "00001011101"):
            at = line.find(pattern)
            while at >= 0:
                score += 40
                at = line.find(pattern, at + 1)
    for above, below in zip(rows, rows[1:]):  # noqa: RUF007 (3.9)
        for c in range(size - 1):
            if above[c] == above[c + 1] == below[c] == below[c + 1]:
                score += 3
    dark = sum(row.count("1") for row in rows)
    return score + 10 * (abs(dark * 20 - size * size * 10) // (size * size))
