"""
The key that signs install scripts, and the signatures (spec/notifications-and-policy section 9, spec/host-agent section
16).

A signature is Ed25519 over the exact bytes, in standard base64 without padding: 86 characters. Keys are PEM files. What
deployed agents read is the own form, a block ``ED25519 PRIVATE KEY`` or ``ED25519 PUBLIC KEY`` around the 32 raw bytes;
that is what is written and served. The standard forms that OpenSSL makes (RFC 8410) are read as well.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from binascii import Error, a2b_base64, b2a_base64
from collections.abc import Callable
from contextlib import suppress

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from twisted.logger import Logger

from identree.app.atomicfile import sync_directory

SETTING = "IDENTREE_INSTALL_SIGNING_KEY"
PUBLIC_SETTING = "IDENTREE_INSTALL_VERIFY_KEY"
PRIVATE_LABEL, PUBLIC_LABEL = "ED25519 PRIVATE KEY", "ED25519 PUBLIC KEY"
PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
# Rights on a private key that are one too many. A group may read it: container platforms mount secrets that way.
FORBIDDEN_MODE = 0o037
KEY_BYTES = 32
SIGNATURE_BYTES = 64
# A key in PEM, with whatever its maker wrote before it, is some hundred bytes.
PEM_BYTES = 64 << 10
# A signature with padding and a line end has 89.
SIGNATURE_CHARACTERS = 256

_BLOCK = re.compile(
    rb"^-----BEGIN ([A-Z0-9 ]{1,40})-----[ \t]*\r?\n([A-Za-z0-9+/=\s]*?)^-----END \1-----[ \t]*\r?$", re.MULTILINE
)
_BEGIN = re.compile(rb"^-----BEGIN ", re.MULTILINE)
_BASE64 = re.compile(r"[A-Za-z0-9+/]*(={0,2})")
_log = Logger()


class CannotSign(Exception):
    """There is only the public key."""


class BadKey(ValueError):
    """A key file is there and cannot be used. The message names the setting, the file and the remedy."""


class CannotMakeKey(Exception):
    """There is no key, and none can be made. The message names the file and the remedy."""


class InstallKeys:
    """
    The pair, or its public half. Signing and verifying take some 50 microseconds, and 3 ms for a mebibyte.

    :ivar public_pem: the public key in the own form.
    """

    def __init__(self, public: Ed25519PublicKey, private: Ed25519PrivateKey | None = None) -> None:
        self._public, self._private = public, private
        self.public_pem = pem(PUBLIC_LABEL, public.public_bytes_raw())

    @property
    def can_sign(self) -> bool:
        return self._private is not None

    def sign(self, content: bytes) -> str:
        """
        The signature in its text form, without line end.

        :raise CannotSign: the private key is elsewhere, as it should be.
        """
        if self._private is None:
            raise CannotSign
        return signature_text(self._private.sign(content))

    def verify(self, content: bytes, signature: str) -> bool:
        """:param signature: text form, also with padding and blanks around it."""
        raw = signature_bytes(signature)
        if raw is None:
            return False
        try:
            self._public.verify(raw, content)
        except InvalidSignature:
            return False
        return True


def signature_text(raw: bytes) -> str:
    """Without padding: deployed agents refuse it."""
    return b2a_base64(raw, newline=False).decode("ascii").rstrip("=")


def signature_bytes(text: str) -> bytes | None:
    """None for what is no signature in base64, with padding or without."""
    text = text.strip(" \t\r\n")
    match = _BASE64.fullmatch(text) if len(text) <= SIGNATURE_CHARACTERS else None
    if match is None:
        return None
    bare = text[: len(text) - len(match[1])]
    if len(bare) % 4 == 1 or len(match[1]) not in (0, -len(bare) % 4):
        return None
    raw = a2b_base64(bare + "=" * (-len(bare) % 4))
    return raw if len(raw) == SIGNATURE_BYTES else None


def pem(label: str, raw: bytes) -> bytes:
    """A PEM block; 32 bytes fit into one line."""
    return (
        f"-----BEGIN {label}-----\n{b2a_base64(raw, newline=False).decode('ascii')}\n-----END {label}-----\n".encode()
    )


def load_or_create(
    private_path: str,
    public_path: str,
    *,
    generate: Callable[[], Ed25519PrivateKey] = Ed25519PrivateKey.generate,
) -> InstallKeys:
    """
    The keys of the files. What is there is never overwritten. Blocks.

    Both: they must belong together. Only the private one: the public one follows from it, and is written when that can
    be done. Only the public one: nothing is signed here. Neither: a pair is made; of two servers that start at once on
    one volume, one makes it and both have it.

    :raise BadKey: a file cannot be used; the server must not start.
    :raise CannotMakeKey: neither is there, nor can it be made; the server can run without.
    """
    made = False
    if not os.path.lexists(private_path):
        if os.path.lexists(public_path):
            return InstallKeys(_public(public_path))
        try:
            with suppress(FileExistsError):  # another replica was faster, and its key is everybody's
                _make(private_path, pem(PRIVATE_LABEL, generate().private_bytes_raw()), PRIVATE_MODE)
        except OSError as problem:
            raise CannotMakeKey(
                f"{SETTING}: {private_path} cannot be made ({problem.strerror}), so install scripts are not signed; "
                "its directory must exist and be writable for the user that identree runs as"
            ) from None
        made = True
    private = _private(private_path)
    keys = InstallKeys(private.public_key(), private)
    if not os.path.lexists(public_path):
        try:
            with suppress(FileExistsError):
                _make(public_path, keys.public_pem, PUBLIC_MODE)
        except OSError as problem:
            # a secret mounted read-only; the key is served all the same
            _log.info("{path} is not written: {problem}", path=public_path, problem=problem.strerror)
            return keys
    if _public(public_path).public_bytes_raw() != private.public_key().public_bytes_raw():
        raise BadKey(
            f"{PUBLIC_SETTING}: {public_path} is not the public key of {SETTING} {private_path}. Hosts verify with one "
            "key: put back the file that belongs to the other, or move the public key away to have it written anew"
        )
    if made:
        _log.warn(
            "a key to sign install scripts was made: {path}. In production make the pair elsewhere, with identree "
            "sign-script --generate-key, and keep the private key off this server",
            path=private_path,
        )
    return keys


def _private(path: str) -> Ed25519PrivateKey:
    """:raise BadKey:"""
    content, mode = _read(SETTING, path)
    if mode & FORBIDDEN_MODE:
        raise BadKey(f"{SETTING}: {path} can be read or changed by others; run: chmod 600 {path}")
    label, raw = _block(content)
    key: object = None
    if label == PRIVATE_LABEL and len(raw) == KEY_BYTES:
        key = Ed25519PrivateKey.from_private_bytes(raw)
    elif label == "PRIVATE KEY":
        with suppress(ValueError, TypeError):
            key = load_pem_private_key(content, password=None)
    elif label == "ENCRYPTED PRIVATE KEY":
        raise BadKey(f"{SETTING}: {path} is encrypted; decrypt it: openssl pkey -in {path} -out PLAIN")
    elif label.endswith("PUBLIC KEY"):
        raise BadKey(f"{SETTING}: {path} holds a public key; it belongs to {PUBLIC_SETTING}")
    if not isinstance(key, Ed25519PrivateKey):
        raise BadKey(
            f"{SETTING}: {path} holds no unencrypted Ed25519 private key in PEM form; put it back from the backup, or "
            "make a pair with identree sign-script --generate-key"
        )
    return key


def _public(path: str) -> Ed25519PublicKey:
    """:raise BadKey:"""
    content, mode = _read(PUBLIC_SETTING, path)
    if mode & 0o022:
        raise BadKey(f"{PUBLIC_SETTING}: {path} can be changed by others; run: chmod go-w {path}")
    label, raw = _block(content)
    key: object = None
    if label == PUBLIC_LABEL and len(raw) == KEY_BYTES:
        with suppress(ValueError):
            key = Ed25519PublicKey.from_public_bytes(raw)
    elif label == "PUBLIC KEY":
        with suppress(ValueError):
            key = load_pem_public_key(content)
    elif label.endswith("PRIVATE KEY"):
        raise BadKey(f"{PUBLIC_SETTING}: {path} holds a private key, which would be served to everybody; replace it")
    if not isinstance(key, Ed25519PublicKey):
        raise BadKey(
            f"{PUBLIC_SETTING}: {path} holds no Ed25519 public key in PEM form; put it back, or move it away to have "
            "it written anew from the private key"
        )
    return key


def _block(content: bytes) -> tuple[str, bytes]:
    """Label and content of the one PEM block; what stands around it does not count. Empty where there is none."""
    if len(_BEGIN.findall(content)) != 1:
        return "", b""
    match = _BLOCK.search(content)
    if match is None:
        return "", b""
    try:
        return match[1].decode("ascii"), a2b_base64(b"".join(match[2].split()), strict_mode=True)
    except Error:
        return "", b""


def _read(setting: str, path: str) -> tuple[bytes, int]:
    """The content and the mode of a file, from one opening. :raise BadKey:"""
    # symbolic links are followed: container platforms mount secrets as links. O_NONBLOCK: a FIFO must not hold us.
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(PEM_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as problem:
        raise BadKey(
            f"{setting}: {path} cannot be read ({problem.strerror}); it must be readable for the user that identree "
            "runs as"
        ) from None
    if not stat.S_ISREG(status.st_mode) or len(content) > PEM_BYTES:
        raise BadKey(f"{setting}: {path} is no file with a key in it")
    return content, stat.S_IMODE(status.st_mode)


def _make(path: str, content: bytes, mode: int) -> None:
    """
    A new file, whole or not at all, never in place of another.

    :raise FileExistsError: the name is taken. :raise OSError: it cannot be made.
    """
    directory = os.path.dirname(path) or "."
    temporary = os.path.join(directory, f".{os.path.basename(path)}.new")
    # the lock orders writers on one volume; the file that one finds in its way is of somebody who died, and goes
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, PRIVATE_MODE), "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # unlike a rename, a link fails when the name is taken
            os.link(temporary, path)
        finally:
            with suppress(OSError):
                os.unlink(temporary)
    finally:
        os.close(lock)
    sync_directory(directory)
