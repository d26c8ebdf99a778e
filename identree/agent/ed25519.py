"""
Ed25519 (RFC 8032) and the two forms of its keys (spec/host-agent section 16).

Verifying is done here: everything in it is public, and the command line of OpenSSL 1.1.1 cannot. Signing is not,
because the time that Python takes would tell about the key: the package ``cryptography`` does it, or OpenSSL 3.
"""

from __future__ import annotations

import binascii
import hashlib
import os
import sys

SEED_BYTES = KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_PEM_BYTES = 16384

OWN_PRIVATE, OWN_PUBLIC = "ED25519 PRIVATE KEY", "ED25519 PUBLIC KEY"
_PKCS8, _SPKI = "PRIVATE KEY", "PUBLIC KEY"

# DER up to the key: RFC 8410 sections 4 and 7; the second private form carries the public key as well (RFC 5958).
_SPKI_HEAD = bytes.fromhex("302a300506032b6570032100")
_PKCS8_HEAD = bytes.fromhex("302e020100300506032b657004220420")
_PKCS8_BOTH_HEAD, _PKCS8_BOTH_MIDDLE = bytes.fromhex("3051020101300506032b657004220420"), bytes.fromhex("812100")

# The field, the order of the base point, and the curve's constant.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
_ROOT = pow(2, (P - 1) // 4, P)

OPENSSL_SECONDS = 20.0
# Where OpenSSL may be; PATH is not asked, it may be anybody's. RHEL 8 has version 3 under its own name.
_OPENSSL = tuple(
    f"{place}/{name}" for place in ("/usr/bin", "/usr/local/bin", "/bin") for name in ("openssl", "openssl3")
)


class KeyProblem(Exception):
    """A key that cannot be used; the text says why and what would do."""


class CannotSign(Exception):
    """Nothing here signs without telling about the key; the text says what to install."""


# Verifying


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """
    Whether ``signature`` is the one of ``message`` by ``public`` (RFC 8032 section 5.1.7, without cofactor). Every
    number must stand there in its one proper form, and a key of small order, which signs everything, is none.
    """
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    point = _decode(public)
    if point is None or _is_zero(_times_eight(point)):
        return False
    s = int.from_bytes(signature[32:], "little")
    if s >= L:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    # R = sB - hA; its encoding is compared, so a second form of R is refused as well
    negative = (P - point[0], point[1], point[2], P - point[3])
    return _encode(_sum_of_two(s, h, negative)) == signature[:32]


def _decode(raw: bytes) -> tuple[int, int, int, int] | None:
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * _ROOT % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def _encode(point: tuple[int, int, int, int]) -> bytes:
    inverse = pow(point[2], -1, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _add(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Extended coordinates (RFC 8032 section 5.1.4); complete, so it doubles as well."""
    a = (one[1] - one[0]) * (two[1] - two[0]) % P
    b = (one[1] + one[0]) * (two[1] + two[0]) % P
    c = 2 * one[3] * two[3] * D % P
    d = 2 * one[2] * two[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


_ZERO = (0, 1, 1, 0)


def _base() -> tuple[int, int, int, int]:
    point = _decode((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    assert point is not None
    return point


_BASE = _base()


def _sum_of_two(s: int, h: int, point: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    both = _add(_BASE, point)
    result = _ZERO
    for bit in range(max(s.bit_length(), h.bit_length()) - 1, -1, -1):
        result = _add(result, result)
        first, second = s >> bit & 1, h >> bit & 1
        if first or second:
            result = _add(result, both if first and second else _BASE if first else point)
    return result


def _times_eight(point: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    for _ in range(3):
        point = _add(point, point)
    return point


def _is_zero(point: tuple[int, int, int, int]) -> bool:
    return point[0] % P == 0 and (point[1] - point[2]) % P == 0


# Keys in PEM


def public_key(text: str) -> bytes:
    """:raise KeyProblem: the text is no public key of Ed25519 in one of the two forms."""
    label, raw = _block(text)
    if label == OWN_PUBLIC and len(raw) == KEY_BYTES:
        return raw
    if label == _SPKI and raw.startswith(_SPKI_HEAD) and len(raw) == len(_SPKI_HEAD) + KEY_BYTES:
        return raw[len(_SPKI_HEAD) :]
    if "PRIVATE" in label:
        raise KeyProblem("it is a private key; give the public one, and keep this one to yourself")
    raise KeyProblem("it is no public key of Ed25519 in PEM form")


def private_key(text: str) -> bytes:
    """The seed. :raise KeyProblem: the text is no private key of Ed25519 in one of the two forms."""
    label, raw = _block(text)
    if label == OWN_PRIVATE and len(raw) == SEED_BYTES:
        return raw
    if label == _PKCS8:
        if raw.startswith(_PKCS8_HEAD) and len(raw) == len(_PKCS8_HEAD) + SEED_BYTES:
            return raw[len(_PKCS8_HEAD) :]
        end = len(_PKCS8_BOTH_HEAD) + SEED_BYTES
        whole = end + len(_PKCS8_BOTH_MIDDLE) + KEY_BYTES
        if raw.startswith(_PKCS8_BOTH_HEAD) and len(raw) == whole and raw[end:].startswith(_PKCS8_BOTH_MIDDLE):
            return raw[len(_PKCS8_BOTH_HEAD) : end]
    if label == "ENCRYPTED PRIVATE KEY":
        raise KeyProblem("it is encrypted; decrypt it first: openssl pkey -in KEY -out PLAIN")
    if "PUBLIC" in label:
        raise KeyProblem("it is a public key; signing takes the private one")
    raise KeyProblem("it is no private key of Ed25519 in PEM form")


def pem(label: str, raw: bytes) -> str:
    text = binascii.b2a_base64(raw, newline=False).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def _block(text: str) -> tuple[str, bytes]:
    """Label and content of the one block. :raise KeyProblem: there is none, or more than one."""
    lines = [line.strip() for line in text[:MAX_PEM_BYTES].splitlines()]
    begins = [i for i, line in enumerate(lines) if line.startswith("-----BEGIN ") and line.endswith("-----")]
    if len(begins) != 1:
        raise KeyProblem("it holds no key in PEM form" if not begins else "it holds more than one key")
    label = lines[begins[0]][11:-5]
    try:
        end = lines.index(f"-----END {label}-----", begins[0])
        return label, decode_base64("".join(lines[begins[0] + 1 : end]))
    except ValueError:
        raise KeyProblem("its PEM is damaged") from None


def decode_base64(text: str) -> bytes:
    """Standard base64, with padding or without. :raise ValueError: it is none."""
    bare = text.rstrip("=")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    if bare.strip(alphabet) or len(bare) % 4 == 1 or len(text) - len(bare) not in (0, -len(bare) % 4):
        raise ValueError("not base64")
    return binascii.a2b_base64(bare + "=" * (-len(bare) % 4))


# Signing


class Signer:
    """
    Signs and derives through a library that keeps the key to itself.

    :raise CannotSign: there is neither.
    """

    def __init__(self) -> None:
        self._cryptography = _find_cryptography()
        self._openssl = "" if self._cryptography else _find_openssl()
        if not self._cryptography and not self._openssl:
            raise CannotSign(
                "signing needs the Python package cryptography (python3-cryptography) or OpenSSL 3; neither is here"
            )

    def public(self, seed: bytes) -> bytes:
        """The public key. :raise CannotSign: OpenSSL failed."""
        if self._cryptography:
            return _raw_public(self._cryptography.from_private_bytes(seed))
        der = _openssl(self._openssl, ["pkey", "-pubout", "-outform", "DER"], "-in", seed)
        if not der.startswith(_SPKI_HEAD) or len(der) != len(_SPKI_HEAD) + KEY_BYTES:
            raise CannotSign("openssl gave no public key")
        return der[len(_SPKI_HEAD) :]

    def sign(self, seed: bytes, message: bytes) -> bytes:
        """
        The signature, and that it is one.

        :raise CannotSign: it is none: better no signature than one that nobody can verify.
        """
        if self._cryptography:
            signature = bytes(self._cryptography.from_private_bytes(seed).sign(message))
        else:
            signature = _openssl(self._openssl, ["pkeyutl", "-sign", "-rawin"], "-inkey", seed, message)
        if not verify(self.public(seed), message, signature):
            raise CannotSign("the signature that was made does not verify")
        return signature


def _find_cryptography():  # type: ignore[no-untyped-def]
    """Its class of private keys; of root's directories only. None where it is missing or too old."""
    from identree.agent.bcrypt import PACKAGE_PLACES

    before = list(sys.path)
    sys.path.extend(place for place in PACKAGE_PLACES if place not in before)
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        # a binary part that does not fit this Python or its OpenSSL fails here, not while signing
        _raw_public(Ed25519PrivateKey.from_private_bytes(bytes(SEED_BYTES)))
        return Ed25519PrivateKey
    except BaseException as e:  # its binary part panics with what is no Exception
        if isinstance(e, KeyboardInterrupt):
            raise
        return None
    finally:
        sys.path[:] = before


def _raw_public(key) -> bytes:  # type: ignore[no-untyped-def]
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return bytes(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def _find_openssl() -> str:
    """OpenSSL 3 or later by its own word: 1.1.1 cannot sign with these keys, and LibreSSL is another program."""
    for path in _OPENSSL:
        if os.access(path, os.X_OK):
            words = _run([path, "version"], ()).decode("utf-8", "replace").split()
            major = words[1].partition(".")[0] if len(words) > 1 and words[0] == "OpenSSL" else ""
            if major.isdigit() and int(major) >= 3:
                return path
    return ""


def _openssl(path: str, arguments: list[str], key_option: str, seed: bytes, message: bytes | None = None) -> bytes:
    """The key goes there in memory: it is neither on a disk nor among the arguments."""
    files = [_memory(pem(_PKCS8, _PKCS8_HEAD + seed).encode())]
    try:
        command = [path, *arguments, key_option, f"/dev/fd/{files[0]}"]
        if message is not None:
            files.append(_memory(message))
            command += ["-in", f"/dev/fd/{files[1]}"]
        return _run(command, tuple(files))
    finally:
        for fd in files:
            os.close(fd)


def _memory(data: bytes) -> int:
    fd = os.memfd_create("identree")
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _run(command: list[str], files: tuple[int, ...]) -> bytes:
    import subprocess

    try:
        done = subprocess.run(
            command,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=OPENSSL_SECONDS,
            pass_fds=files,
        )
    except (OSError, subprocess.TimeoutExpired):
        raise CannotSign(f"{command[0]} does not run") from None
    if done.returncode:
        raise CannotSign(f"{command[0]} {command[1]} failed with {done.returncode}")
    return done.stdout
