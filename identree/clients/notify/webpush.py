"""
Web Push: encryption of a message for one browser (RFC 8291, content coding aes128gcm of RFC 8188), and who we are for
its push service (VAPID, RFC 8292). Pure, apart from the randomness that is given.
"""

from __future__ import annotations

import base64
import struct
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

RECORD_SIZE = 4096
# One record: its size without the tag, the delimiter and the header (RFC 8291 section 4).
MAX_PLAINTEXT = 3993
TOKEN_SECONDS = 12 * 3600
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_CURVE = ec.SECP256R1()


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def unb64(text: str) -> bytes:
    """:raise ValueError: not URL-safe base64."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """The uncompressed point, 65 bytes."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


class VapidKey:
    """
    Our identity for push services.

    :param seed: 32 secret bytes; the same ones make the same key, on every replica.
    :ivar public: for ``PushManager.subscribe``, URL-safe base64.
    """

    def __init__(self, seed: bytes) -> None:
        # expanded to more bits than the order has, so that every key is as likely as any other
        wide = HKDF(hashes.SHA256(), 48, None, b"identree vapid").derive(seed)
        self._key = ec.derive_private_key(int.from_bytes(wide, "big") % (_ORDER - 1) + 1, _CURVE)
        self.public = b64(public_bytes(self._key.public_key()))

    def authorization(self, endpoint: str, contact: str, now_unix: int) -> str:
        """
        The header for one push service (RFC 8292 section 3).

        :param contact: ``mailto:`` or ``https:`` address.
        """
        parts = urlsplit(endpoint)
        claims = {"aud": f"{parts.scheme}://{parts.netloc}", "exp": now_unix + TOKEN_SECONDS, "sub": contact}
        return f"vapid t={jwt.encode(claims, self._key, algorithm='ES256')}, k={self.public}"


def encrypt(
    plaintext: bytes,
    p256dh: str,
    auth: str,
    *,
    salt: bytes,
    private: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """
    The body for one browser.

    :param salt: 16 random bytes, new ones each time.
    :param private: the sender's key for this message; None: a new one.
    :raise ValueError: the browser's keys are none, or the message is too long.
    """
    if len(plaintext) > MAX_PLAINTEXT:
        raise ValueError(f"at most {MAX_PLAINTEXT} bytes fit into a message")
    receiver = unb64(p256dh)
    secret = unb64(auth)
    if len(receiver) != 65 or len(secret) != 16:
        raise ValueError("the keys of the browser have a wrong length")
    public = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, receiver)
    key = private or ec.generate_private_key(_CURVE)
    sender = public_bytes(key.public_key())
    shared = key.exchange(ec.ECDH(), public)
    info = b"WebPush: info\x00" + receiver + sender
    material = HKDF(hashes.SHA256(), 32, secret, info).derive(shared)
    content_key = HKDF(hashes.SHA256(), 16, salt, b"Content-Encoding: aes128gcm\x00").derive(material)
    nonce = HKDF(hashes.SHA256(), 12, salt, b"Content-Encoding: nonce\x00").derive(material)
    sealed = AESGCM(content_key).encrypt(nonce, plaintext + b"\x02", None)
    return salt + struct.pack(">IB", RECORD_SIZE, len(sender)) + sender + sealed
