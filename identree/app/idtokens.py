"""
ID tokens for the hosts' token cache (spec/host-agent section 8). A person who approves an own request hands the token
of the sign-in on to the host, which checks it by itself from then on.

Whoever has such a token passes for its owner at that client of the identity provider, so the database has it sealed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# What agents keep; a longer one is not handed on.
LONGEST_TOKEN_BYTES = 16_000
NONCE_BYTES = 12


class IdTokens:
    """
    :param key: 32 bytes, of this deployment.
    :param random_bytes: returns so many random bytes.
    """

    def __init__(self, key: bytes, random_bytes: Callable[[int], bytes]) -> None:
        self._cipher = AESGCM(key)
        self._random_bytes = random_bytes

    def seal(self, username: str, token: str) -> str:
        """Base64 text; empty for a token that is too long, or none."""
        raw = token.encode("ascii", "replace")
        if not raw or len(raw) > LONGEST_TOKEN_BYTES:
            return ""
        nonce = self._random_bytes(NONCE_BYTES)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, raw, username.encode())).decode("ascii")

    def open(self, username: str, sealed: str) -> str:
        """The token; empty when there is none, or it was sealed for somebody else or with another key."""
        try:
            raw = base64.b64decode(sealed, validate=True)
            return self._cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], username.encode()).decode("ascii")
        except (binascii.Error, InvalidTag, ValueError):
            return ""
