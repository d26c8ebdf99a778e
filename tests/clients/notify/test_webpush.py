"""Web Push encryption and identification (RFC 8291, RFC 8188, RFC 8292)."""

from __future__ import annotations

import os
import struct

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.clients.notify.webpush import MAX_PLAINTEXT, VapidKey, b64, encrypt, public_bytes, unb64


class Browser:
    """The receiving end, as RFC 8291 section 3 describes it."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._auth = os.urandom(16)
        self.p256dh, self.auth = b64(public_bytes(self._key.public_key())), b64(self._auth)

    def decrypt(self, body: bytes) -> bytes:
        salt, (size, length) = body[:16], struct.unpack(">IB", body[16:21])
        sender, sealed = body[21 : 21 + length], body[21 + length :]
        assert size >= len(sealed) and length == 65
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), sender)
        info = b"WebPush: info\0" + public_bytes(self._key.public_key()) + sender
        material = HKDF(hashes.SHA256(), 32, self._auth, info).derive(self._key.exchange(ec.ECDH(), point))
        key = HKDF(hashes.SHA256(), 16, salt, b"Content-Encoding: aes128gcm\0").derive(material)
        nonce = HKDF(hashes.SHA256(), 12, salt, b"Content-Encoding: nonce\0").derive(material)
        plain = AESGCM(key).decrypt(nonce, sealed, None).rstrip(b"\0")
        assert plain[-1:] == b"\2", "the last record is marked by a 2"
        return plain[:-1]


class EncryptionTests(SynchronousTestCase):
    def test_vector(self) -> None:
        """The example of RFC 8291 section 5, byte for byte."""
        private = ec.derive_private_key(
            int.from_bytes(unb64("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"), "big"), ec.SECP256R1()
        )
        body = encrypt(
            b"When I grow up, I want to be a watermelon",
            "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
            "BTBZMqHH6r4Tts7J_aSIgg",
            salt=unb64("DGv6ra1nlYgDCS1FRnbzlw"),
            private=private,
        )
        self.assertEqual(
            b64(body),
            "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru"
            "3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN",
        )

    @settings(max_examples=30, deadline=None)
    @given(st.binary(max_size=MAX_PLAINTEXT))
    def test_decrypted(self, plain: bytes) -> None:
        """A browser reads what was sent, and no two messages look alike."""
        browser = Browser()
        bodies = [encrypt(plain, browser.p256dh, browser.auth, salt=os.urandom(16)) for _ in range(2)]
        self.assertEqual([browser.decrypt(body) for body in bodies], [plain, plain])
        self.assertNotEqual(*bodies)
        self.assertTrue(len(bodies[0]) <= 4096)

    def test_refused(self) -> None:
        """Keys that are none, and messages that are too long."""
        browser = Browser()
        for p256dh, auth, plain in (
            (browser.p256dh[:-4], browser.auth, b""),
            (browser.p256dh, browser.auth + "AAAA", b""),
            (b64(b"\4" + b"\1" * 64), browser.auth, b""),
            ("+/=!", browser.auth, b""),
            (browser.p256dh, browser.auth, b"x" * (MAX_PLAINTEXT + 1)),
        ):
            self.assertRaises(ValueError, encrypt, plain, p256dh, auth, salt=os.urandom(16))


class VapidTests(SynchronousTestCase):
    def test_same_key(self) -> None:
        """The same seed makes the same key, on every replica; another one another."""
        self.assertEqual(VapidKey(b"s" * 32).public, VapidKey(b"s" * 32).public)
        self.assertNotEqual(VapidKey(b"s" * 32).public, VapidKey(b"t" * 32).public)
        self.assertEqual(len(unb64(VapidKey(b"s" * 32).public)), 65)

    def test_authorization(self) -> None:
        """A token for exactly this push service, that ends within a day, signed with the key that is named."""
        key = VapidKey(b"s" * 32)
        header = key.authorization("https://push.example:8443/send/abc?x", "mailto:ops@example.com", 1_000_000)
        scheme, _, rest = header.partition(" ")
        values = dict(part.strip().split("=", 1) for part in rest.split(","))
        self.assertEqual((scheme, values["k"]), ("vapid", key.public))
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), unb64(values["k"]))
        claims = jwt.decode(
            values["t"],
            public,
            algorithms=["ES256"],
            audience="https://push.example:8443",
            options={"verify_exp": False},
        )
        self.assertEqual(claims["sub"], "mailto:ops@example.com")
        self.assertTrue(1_000_000 < claims["exp"] <= 1_000_000 + 86_400)
