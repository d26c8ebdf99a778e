"""
Signed tokens of an OpenID provider (RFC 7515, 7517, 7518): RS256, RS384, RS512 and ES256, verified in pure Python,
which has neither RSA nor elliptic curves. All that is computed with here is public, so that the time it takes tells
nothing.

An algorithm is never taken from the token alone: it must be one that the provider advertises, and fit the key.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import json

ALGORITHMS = ("RS256", "RS384", "RS512", "ES256")

MAX_TOKEN_BYTES = 65536
MAX_KEYS = 64
# Without a key id in the token all fitting keys are tried; more of them are somebody's waste of our time.
MAX_TRIED = 8

# Smaller can be factored; larger, or with a large exponent, costs more than it protects.
LEAST_RSA_BITS, GREATEST_RSA_BITS = 2048, 8192
GREATEST_EXPONENT = 1 << 32

_HASHES = {"RS256": "sha256", "RS384": "sha384", "RS512": "sha512", "ES256": "sha256"}

# DigestInfo up to the digest (RFC 8017 section 9.2, note 1).
_PREFIXES = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}

_BASE64URL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")

# P-256 (SEC 2 section 2.4.2): y² = x³ - 3x + b.
P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)


class BadToken(Exception):
    """The token is not to be believed. The text says why, and holds nothing of it."""


class UnknownKey(BadToken):
    """No key with the token's id: perhaps the provider has changed its keys."""


def decode(text: str) -> bytes:
    """
    base64url without padding, in the one form that an encoder gives.

    :raise BadToken: another form.
    """
    if not set(text) <= _BASE64URL or len(text) % 4 == 1:
        raise BadToken("not base64url")
    raw = binascii.a2b_base64(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4))
    if encode(raw) != text:
        raise BadToken("not base64url")
    return raw


def encode(raw: bytes) -> str:
    return binascii.b2a_base64(raw, newline=False).decode().replace("+", "-").replace("/", "_").rstrip("=")


def split(token: str) -> tuple[str, str, str]:
    """:raise BadToken: it has not three parts, or is too long."""
    if len(token) > MAX_TOKEN_BYTES or not token.isascii():
        raise BadToken("too long, or not ASCII")
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        raise BadToken("not three parts")
    return parts[0], parts[1], parts[2]


def unverified(token: str) -> dict[str, object]:
    """The claims, whoever wrote them. :raise BadToken: there are none."""
    return _object(split(token)[1])


def verify(token: str, keys: object, advertised: list[str]) -> dict[str, object]:
    """
    The claims of a token that one of the provider's keys has signed.

    :param keys: the ``keys`` of its JWKS. :param advertised: the algorithms that it uses.
    :raise UnknownKey: it may help to fetch the keys again.
    :raise BadToken: the token is not to be believed.
    """
    head, body, tail = split(token)
    header, signature = _object(head), decode(tail)
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS or algorithm not in advertised:
        raise BadToken("an algorithm that is not accepted")
    if "crit" in header:
        raise BadToken("it demands an extension")
    signed = f"{head}.{body}".encode()
    for key in _candidates(keys, header.get("kid"), algorithm):
        if _signed(key, algorithm, signed, signature):
            return _object(body)
    raise BadToken("the signature is wrong")


def _object(part: str) -> dict[str, object]:
    try:
        value = json.loads(decode(part).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise BadToken("not JSON") from None
    if not isinstance(value, dict):
        raise BadToken("not a JSON object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _candidates(keys: object, wanted: object, algorithm: str) -> list[dict[str, object]]:
    """The keys that may have signed. :raise UnknownKey: none has the id. :raise BadToken: none fits."""
    if not isinstance(keys, list):
        raise BadToken("the provider has no keys")
    found = [key for key in keys[:MAX_KEYS] if isinstance(key, dict)]
    if wanted is not None:
        found = [key for key in found if key.get("kid") == wanted]
        if not found:
            raise UnknownKey("a key that the provider does not have")
    kind = "EC" if algorithm == "ES256" else "RSA"
    found = [
        key
        for key in found
        if key.get("kty") == kind
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
        and (not isinstance(key.get("key_ops"), list) or "verify" in key["key_ops"])
    ]
    if not found:
        # also when it had no id: the keys may have changed since they were kept
        raise UnknownKey("no key of the provider fits")
    return found[:MAX_TRIED]


def _signed(key: dict[str, object], algorithm: str, message: bytes, signature: bytes) -> bool:
    name = _HASHES[algorithm]
    digest = hashlib.new(name, message).digest()
    try:
        if algorithm == "ES256":
            if key.get("crv") != "P-256":
                return False
            x, y = _bytes(key, "x"), _bytes(key, "y")
            return len(x) == len(y) == 32 and es256(
                int.from_bytes(x, "big"), int.from_bytes(y, "big"), digest, signature
            )
        return rsa(_number(key, "n"), _number(key, "e"), name, digest, signature)
    except BadToken:
        return False  # a broken key has signed nothing


def _bytes(key: dict[str, object], name: str) -> bytes:
    value = key.get(name)
    if not isinstance(value, str) or len(value) > 2048:
        raise BadToken("a broken key")
    return decode(value)


def _number(key: dict[str, object], name: str) -> int:
    return int.from_bytes(_bytes(key, name), "big")


def rsa(n: int, e: int, hash_name: str, digest: bytes, signature: bytes) -> bool:
    """
    RSASSA-PKCS1-v1_5 (RFC 8017 section 8.2.2): the whole block is made anew and compared. Taking the signed one apart
    has let forgeries in, again and again.
    """
    bits = n.bit_length()
    if not LEAST_RSA_BITS <= bits <= GREATEST_RSA_BITS or n % 2 == 0 or e % 2 == 0 or not 3 <= e < GREATEST_EXPONENT:
        return False
    size = (bits + 7) // 8
    value = int.from_bytes(signature, "big")
    if len(signature) != size or value >= n:
        return False
    tail = b"\x00" + _PREFIXES[hash_name] + digest
    expected = b"\x00\x01" + b"\xff" * (size - len(tail) - 2) + tail
    return hmac.compare_digest(pow(value, e, n).to_bytes(size, "big"), expected)


def es256(x: int, y: int, digest: bytes, signature: bytes) -> bool:
    """ECDSA on P-256 (FIPS 186-5 section 6.4.2), ``signature`` being r and s, 32 bytes each (RFC 7518 section 3.4)."""
    if len(signature) != 64 or x >= P or y >= P or (y * y - (x * x * x - 3 * x + B)) % P:
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not (0 < r < N and 0 < s < N):
        return False
    inverse = pow(s, -1, N)
    point = _sum_of_two(int.from_bytes(digest, "big") * inverse % N, r * inverse % N, (x, y))
    return point is not None and point % N == r


# Below, a point is (X, Y, Z) for the affine (X/Z², Y/Z³); Z = 0 is the point at infinity.


def _sum_of_two(u: int, v: int, q: tuple[int, int]) -> int | None:
    """The x of ``uG + vQ``; None at infinity. Both at once, bit by bit."""
    g = (G[0], G[1], 1)
    other = (q[0], q[1], 1)
    both = _add(g, other)
    result: tuple[int, int, int] = (1, 1, 0)
    for bit in range(max(u.bit_length(), v.bit_length()) - 1, -1, -1):
        result = _double(result)
        first, second = u >> bit & 1, v >> bit & 1
        if first or second:
            result = _add(result, both if first and second else g if first else other)
    x, _, z = result
    return None if z == 0 else x * pow(z, -2, P) % P


def _double(point: tuple[int, int, int]) -> tuple[int, int, int]:
    x, y, z = point
    if z == 0 or y == 0:
        return (1, 1, 0)
    square = y * y % P
    s = 4 * x * square % P
    m = 3 * (x - z * z) * (x + z * z) % P
    x3 = (m * m - 2 * s) % P
    return x3, (m * (s - x3) - 8 * square * square) % P, 2 * y * z % P


def _add(one: tuple[int, int, int], two: tuple[int, int, int]) -> tuple[int, int, int]:
    x1, y1, z1 = one
    x2, y2, z2 = two
    if z1 == 0:
        return two
    if z2 == 0:
        return one
    zz1, zz2 = z1 * z1 % P, z2 * z2 % P
    u1, u2 = x1 * zz2 % P, x2 * zz1 % P
    s1, s2 = y1 * zz2 * z2 % P, y2 * zz1 * z1 % P
    if u1 == u2:
        return _double(one) if s1 == s2 else (1, 1, 0)
    h, r = u2 - u1, s2 - s1
    hh = h * h % P
    hhh, v = h * hh % P, u1 * hh % P
    x3 = (r * r - hhh - 2 * v) % P
    return x3, (r * (v - x3) - s1 * hhh) % P, h * z1 * z2 % P
