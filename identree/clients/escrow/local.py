"""The local back end: identree's own database keeps what it has sealed with AES-256-GCM."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from identree.app.escrow import Ciphertexts, EscrowFailed, Stored
from identree.core.escrow import checked_hostname, checked_password

NONCE_BYTES = 12
TAG_BYTES = 16
MIN_KEY_CHARACTERS = 32
MIN_SALT_BYTES = 16
_INFO = b"identree-breakglass-v1"
# What old versions used, and still is used without a setting.
_FIXED_SALT = b"identree-escrow-salt-v1"


class Unreadable(Exception):
    """The text is not what this key has sealed for this host. The message has nothing of it."""


@dataclass(frozen=True, slots=True)
class SealingKey:
    """AES-256-GCM with the host's name as additional data. :ivar raw: 32 bytes."""

    raw: bytes = field(repr=False)

    @classmethod
    def derived(cls, encryption_key: str, hkdf_salt: str) -> SealingKey:
        """
        :param encryption_key: ``IDENTREE_ESCROW_ENCRYPTION_KEY``; its characters count, whatever they look like.
        :param hkdf_salt: ``IDENTREE_ESCROW_HKDF_SALT``, hex; empty: the fixed one.
        :raise ValueError: one of them cannot be used; says what to do.
        """
        if len(encryption_key) < MIN_KEY_CHARACTERS:
            raise ValueError(f"the escrow encryption key needs at least {MIN_KEY_CHARACTERS} characters")
        try:
            salt = bytes.fromhex(hkdf_salt) if hkdf_salt else _FIXED_SALT
        except ValueError:
            raise ValueError("the escrow HKDF salt is not an even number of hexadecimal digits") from None
        if len(salt) < MIN_SALT_BYTES:
            raise ValueError(f"the escrow HKDF salt needs at least {MIN_SALT_BYTES} bytes in hexadecimal digits")
        return cls(HKDF(SHA256(), 32, salt, _INFO).derive(encryption_key.encode("utf-8", "surrogateescape")))

    def seal(self, hostname: str, password: str, nonce: bytes) -> str:
        """
        Standard base64 of nonce, ciphertext and tag.

        :param nonce: 12 random bytes; never twice with one key.
        """
        sealed = AESGCM(self.raw).encrypt(nonce, password.encode(), hostname.encode())
        return base64.b64encode(nonce + sealed).decode("ascii")

    def open(self, hostname: str, text: str) -> str:
        """:raise Unreadable: made with another key, for another host, or damaged."""
        try:
            raw = base64.b64decode(text, validate=True)
            if len(raw) < NONCE_BYTES + TAG_BYTES:
                raise Unreadable("it is too short to be a sealed password")
            return AESGCM(self.raw).decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], hostname.encode()).decode()
        except binascii.Error:
            raise Unreadable("it is not base64") from None
        except InvalidTag:
            raise Unreadable("it was sealed with another key or salt, or is damaged") from None
        except UnicodeDecodeError:
            raise Unreadable("what is sealed is no text") from None


class LocalBackend:
    """
    Implements :class:`identree.app.escrow.EscrowBackend`. A host's name is all that finds its password again.

    :param random_bytes: as ``secrets.token_bytes``.
    """

    name = "local"
    revealable = True

    def __init__(self, key: SealingKey, ciphertexts: Ciphertexts, random_bytes: Callable[[int], bytes]) -> None:
        self._key, self._ciphertexts, self._random_bytes = key, ciphertexts, random_bytes

    async def store(self, hostname: str, password: str) -> Stored:
        try:
            name, usable = checked_hostname(hostname), checked_password(password)
        except ValueError as problem:
            raise EscrowFailed(f"local escrow: {problem}") from None
        text = self._key.seal(name, usable, self._random_bytes(NONCE_BYTES))
        await self._ciphertexts.store_ciphertext(hostname, text)
        return Stored()

    async def retrieve(self, hostname: str, item_id: str, vault_id: str) -> str:
        text = await self._ciphertexts.ciphertext(hostname)
        if text is None:
            raise EscrowFailed(
                "local escrow: there is no password of this host in the database; was it stored at another back end?"
            )
        try:
            password = self._key.open(hostname, text)
        except Unreadable as problem:
            raise EscrowFailed(
                f"local escrow: the password cannot be read: {problem}; check IDENTREE_ESCROW_ENCRYPTION_KEY and "
                "IDENTREE_ESCROW_HKDF_SALT, and see: identree escrow rekey --help"
            ) from None
        if not password:
            raise EscrowFailed("local escrow: the stored password is empty")
        return password

    async def check(self) -> None:
        """Whether the database is well is another check's business."""

    async def keep(self) -> None:
        """Nothing is lent."""
