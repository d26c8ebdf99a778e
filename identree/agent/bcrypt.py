"""
bcrypt through the system's crypt(3), or the ``bcrypt`` package where the system has none (spec/host-agent 18.2).

Python has no bcrypt, and 3.13 no ``crypt`` either. A crypt(3) that does not know bcrypt does not fail: it may answer
with a hash of another kind. So every setting is checked before it is passed on, and every backend has to reproduce a
known answer before it is believed.
"""

from __future__ import annotations

import hmac
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Crypt = Callable[[bytes, bytes], bytes]

# By name, because finding libraries by search would start compilers and linkers. None is the C library itself (musl).
LIBRARIES = ("libcrypt.so.1", "libcrypt.so.2", None)

# Where distributions keep packages; the agent runs without ``site``, which would have found them.
PACKAGE_PLACES = (
    "/usr/lib/python3/dist-packages",
    f"/usr/lib64/python3.{sys.version_info[1]}/site-packages",
    f"/usr/lib/python3.{sys.version_info[1]}/site-packages",
)

# bcrypt looks at no more of a password, in bytes. A longer one is refused instead of being cut unnoticed.
MAX_PASSWORD_BYTES = 72

# The cost is the logarithm of the rounds: 12 takes a quarter of a second, each step doubles that.
LEAST_COST, GREATEST_COST = 4, 17

ALPHABET = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
HASH_CHARACTERS = 60
SALT_BYTES = 16

# Published with the first free implementation; of the three marks 2a, 2b and 2y all must give it for ASCII passwords.
_KNOWN_PASSWORD = b"U*U"
_KNOWN_SALT, _KNOWN_SUM = b"05$CCCCCCCCCCCCCCCCCCCCC.", b"E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
_MARKS = (b"$2a$", b"$2b$", b"$2y$")


class NoBcrypt(Exception):
    """Nothing here computes bcrypt rightly; the text says what to install."""


def valid(digest: str) -> bool:
    """``^\\$2[aby]\\$\\d\\d\\$[./A-Za-z0-9]{53}$``, with a cost that ends in bearable time."""
    return (
        len(digest) == HASH_CHARACTERS
        and digest[:2] == "$2"
        and digest[2] in "aby"
        and digest[3] == digest[6] == "$"
        and digest[4:6].isascii()
        and digest[4:6].isdigit()
        and LEAST_COST <= int(digest[4:6]) <= GREATEST_COST
        and set(digest[7:]) <= set(ALPHABET)
    )


class Bcrypt:
    """
    :param crypt: crypt(3); the first one of this system that passes the self-test, when it is not given.
    :raise NoBcrypt: there is none.
    """

    def __init__(self, crypt: Crypt | None = None) -> None:
        self._crypt = crypt or find()

    def hash(self, password: str, cost: int, salt: bytes = b"") -> str:
        """
        The hash with mark ``2b``.

        :param cost: :data:`LEAST_COST` to :data:`GREATEST_COST`.
        :param salt: 16 bytes; of the system's random source when not given.
        :raise ValueError: a password or a cost that bcrypt does not take.
        """
        data = password.encode()
        if not data or len(data) > MAX_PASSWORD_BYTES or 0 in data:
            raise ValueError(f"a password has 1 to {MAX_PASSWORD_BYTES} bytes")
        if not LEAST_COST <= cost <= GREATEST_COST:
            raise ValueError(f"the cost is {LEAST_COST} to {GREATEST_COST}")
        setting = f"$2b${cost:02d}${encode(salt or os.urandom(SALT_BYTES))}"
        digest = self._crypt(data, setting.encode()).decode("ascii", "replace")
        if not valid(digest) or not digest.startswith(setting[:-1]):
            raise NoBcrypt("the system's crypt(3) gave no bcrypt hash")
        return digest

    def matches(self, password: bytes, digest: str) -> bool:
        """Whether ``digest`` is of ``password``; False for a hash that is none."""
        if not valid(digest) or not password or len(password) > MAX_PASSWORD_BYTES or 0 in password:
            return False
        found = self._crypt(password, digest.encode())
        return len(found) == HASH_CHARACTERS and hmac.compare_digest(found, digest.encode())


def find() -> Crypt:
    """:raise NoBcrypt: neither a library nor the package passes the self-test."""
    for name in LIBRARIES:
        crypt = _library(name)
        if crypt is not None and passes(crypt):
            return crypt
    crypt = _package()
    if crypt is not None and passes(crypt):
        return crypt
    raise NoBcrypt(
        "this system's crypt(3) does not know bcrypt; install the package libxcrypt, or bcrypt for Python "
        "(python3-bcrypt)"
    )


def passes(crypt: Crypt) -> bool:
    """Whether ``crypt`` gives the known answer, and another one for another password."""
    try:
        for mark in _MARKS:
            setting = mark + _KNOWN_SALT
            if crypt(_KNOWN_PASSWORD, setting + _KNOWN_SUM) != setting + _KNOWN_SUM:
                return False
        return crypt(b"U*V", _MARKS[1] + _KNOWN_SALT + _KNOWN_SUM) != _MARKS[1] + _KNOWN_SALT + _KNOWN_SUM
    except Exception:  # whatever a foreign library does, it did not pass
        return False


def encode(salt: bytes) -> str:
    """bcrypt's own base64: another alphabet, no padding; 22 characters for 16 bytes."""
    text, bits, count = "", 0, 0
    for byte in salt:
        bits, count = bits << 8 | byte, count + 8
        while count >= 6:
            count -= 6
            text += ALPHABET[bits >> count & 63]
    return text + (ALPHABET[bits << 6 - count & 63] if count else "")


def _library(name: str | None) -> Crypt | None:
    try:
        import ctypes

        function = ctypes.CDLL(name).crypt
    except (ImportError, OSError, AttributeError):
        return None
    function.restype = ctypes.c_char_p
    function.argtypes = (ctypes.c_char_p, ctypes.c_char_p)

    def crypt(password: bytes, setting: bytes) -> bytes:
        return function(password, setting) or b"*0"

    return crypt


def _package() -> Crypt | None:
    """The ``bcrypt`` package, from root's directories only."""
    before = list(sys.path)
    sys.path.extend(place for place in PACKAGE_PLACES if place not in before)
    try:
        import bcrypt  # type: ignore[import-not-found,unused-ignore]
    except Exception:  # not there, or made for another Python
        return None
    finally:
        sys.path[:] = before

    def crypt(password: bytes, setting: bytes) -> bytes:
        return bytes(bcrypt.hashpw(password, setting))

    return crypt
