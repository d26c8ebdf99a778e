"""Ed25519: the vectors of RFC 8032, against ``cryptography`` and openssl, and what a strict verifier refuses."""

from __future__ import annotations

import os
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from identree.agent import ed25519

# Seed, public key, message, signature (RFC 8032 section 7.1).
VECTORS = (
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
        "655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aee"
        "b00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d"
        "c027beceea1ec40a",
    ),
)
# Points whose order divides 8, in all encodings that some library has taken.
SMALL_ORDER = tuple(
    bytes.fromhex(text)
    for text in (
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


def pair(seed: bytes) -> tuple[Ed25519PrivateKey, bytes]:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return key, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


class VerifyTests(unittest.TestCase):
    def test_vectors(self) -> None:
        """The vectors of the RFC; each bit of the signature counts."""
        for _, public, message, signature in VECTORS:
            key, text, mark = (bytes.fromhex(each) for each in (public, message, signature))
            self.assertTrue(ed25519.verify(key, text, mark))
            self.assertFalse(ed25519.verify(key, text + b"x", mark))
            for bit in range(0, 512, 37):
                changed = bytearray(mark)
                changed[bit // 8] ^= 1 << bit % 8
                self.assertFalse(ed25519.verify(key, text, bytes(changed)), bit)

    @settings(max_examples=60, deadline=None)
    @given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
    def test_cross(self, seed: bytes, message: bytes) -> None:
        """What another implementation signs verifies, and not for another message."""
        key, public = pair(seed)
        signature = key.sign(message)
        self.assertTrue(ed25519.verify(public, message, signature))
        self.assertFalse(ed25519.verify(public, message + b"\0", signature))

    @settings(max_examples=60, deadline=None)
    @given(st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64))
    def test_nothing_more_than_others(self, public: bytes, signature: bytes) -> None:
        """What the other implementation refuses is refused, whatever the bytes."""
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, b"m")
            theirs = True
        except (InvalidSignature, ValueError):
            theirs = False
        self.assertLessEqual(ed25519.verify(public, b"m", signature), theirs)

    def test_malleable(self) -> None:
        """S + L is the same number modulo L, and another signature of the same text; it is refused."""
        key, public = pair(bytes(32))
        signature = key.sign(b"m")
        s = int.from_bytes(signature[32:], "little")
        for factor in (1, 2, 7):
            if s + factor * ed25519.L < 1 << 256:
                other = signature[:32] + (s + factor * ed25519.L).to_bytes(32, "little")
                self.assertFalse(ed25519.verify(public, b"m", other), factor)
        self.assertFalse(ed25519.verify(public, b"m", signature[:32] + ed25519.L.to_bytes(32, "little")))

    def test_small_order_keys(self) -> None:
        """Under a key of small order one signature is good for (nearly) every text; such keys are none."""
        identity = SMALL_ORDER[0]
        forged = identity + bytes(32)  # R = 0, S = 0: 0 = 0 - h·0
        for public in SMALL_ORDER:
            for text in (b"a", b"b", b"c", b"d"):
                self.assertFalse(ed25519.verify(public, text, forged), public.hex())

    def test_small_order_r(self) -> None:
        """A signature with S = 0 and R of small order."""
        _, public = pair(bytes(32))
        for r in SMALL_ORDER:
            self.assertFalse(ed25519.verify(public, b"m", r + bytes(32)))

    def test_encodings(self) -> None:
        """y beyond the field, x = 0 with a sign, no point at all."""
        for y in (ed25519.P, ed25519.P + 1, (1 << 255) - 1, 2):
            self.assertIsNone(ed25519._decode(y.to_bytes(32, "little")))
        self.assertIsNone(ed25519._decode((1 | 1 << 255).to_bytes(32, "little")))

    def test_lengths(self) -> None:
        """Keys and signatures of other lengths."""
        key, public = pair(bytes(32))
        signature = key.sign(b"m")
        for a, b in ((public[:-1], signature), (public + b"\0", signature), (public, signature[:-1]), (public, b"")):
            self.assertFalse(ed25519.verify(a, b"m", b))


class PemTests(unittest.TestCase):
    def setUp(self) -> None:
        self.seed = bytes(range(32))
        self.key, self.public = pair(self.seed)
        self.pkcs8 = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.spki = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def test_both_forms(self) -> None:
        """Our own labels and the standard's."""
        own_private = ed25519.pem(ed25519.OWN_PRIVATE, self.seed)
        self.assertEqual(ed25519.private_key(own_private), self.seed)
        self.assertEqual(ed25519.private_key(self.pkcs8), self.seed)
        self.assertEqual(ed25519.public_key(ed25519.pem(ed25519.OWN_PUBLIC, self.public)), self.public)
        self.assertEqual(ed25519.public_key(self.spki), self.public)
        self.assertEqual(
            own_private.splitlines()[0::2], ["-----BEGIN ED25519 PRIVATE KEY-----", "-----END ED25519 PRIVATE KEY-----"]
        )

    def test_with_public_key(self) -> None:
        """The newer private form, which carries the public key as well (RFC 5958)."""
        der = bytes.fromhex("3051020101300506032b657004220420") + self.seed + bytes.fromhex("812100") + self.public
        self.assertEqual(ed25519.private_key(ed25519.pem("PRIVATE KEY", der)), self.seed)

    def test_openssl_form(self) -> None:
        """What openssl writes, with Windows line ends, text before and no padding."""
        text = "some text\r\n" + self.pkcs8.replace("\n", "\r\n")
        self.assertEqual(ed25519.private_key(text), self.seed)
        own = ed25519.pem(ed25519.OWN_PUBLIC, self.public).replace("=", "")
        self.assertEqual(ed25519.public_key(own), self.public)

    def test_mistakes(self) -> None:
        """The wrong half, an encrypted key, another kind, a damaged or doubled one: each is named."""
        rsa_like = ed25519.pem("PUBLIC KEY", bytes(60))
        for parse, text, word in (
            (ed25519.public_key, self.pkcs8, "private key"),
            (ed25519.private_key, self.spki, "public key"),
            (ed25519.private_key, ed25519.pem("ENCRYPTED PRIVATE KEY", bytes(60)), "encrypted"),
            (ed25519.public_key, rsa_like, "no public key of Ed25519"),
            (ed25519.private_key, ed25519.pem("EC PRIVATE KEY", bytes(60)), "no private key"),
            (ed25519.public_key, self.spki.replace("-----END", "-----ENDE"), "damaged"),
            (ed25519.public_key, self.spki.replace("M", "!"), "damaged"),
            (ed25519.public_key, self.spki * 2, "more than one"),
            (ed25519.public_key, "nothing", "no key"),
            (ed25519.public_key, ed25519.pem(ed25519.OWN_PUBLIC, bytes(33)), "no public key"),
        ):
            with self.subTest(word), self.assertRaises(ed25519.KeyProblem) as caught:
                parse(text)
            self.assertIn(word, str(caught.exception))

    def test_base64(self) -> None:
        """With padding and without, and nothing between."""
        self.assertEqual(ed25519.decode_base64("QQ=="), b"A")
        self.assertEqual(ed25519.decode_base64("QQ"), b"A")
        for bad in ("Q", "QQ=", "QQ===", "Q Q", "QQ-_", "=QQ", "QQ==QQ"):
            with self.subTest(bad), self.assertRaises(ValueError):
                ed25519.decode_base64(bad)


class SignerTests(unittest.TestCase):
    def test_both_ways(self) -> None:
        """cryptography and openssl give the signatures and public keys of the RFC."""
        with mock.patch.object(ed25519, "_find_cryptography", lambda: None):
            by_openssl = ed25519.Signer()
        self.assertTrue(by_openssl._openssl)
        for signer in (ed25519.Signer(), by_openssl):
            for seed, public, message, signature in VECTORS:
                raw = bytes.fromhex(seed)
                self.assertEqual(signer.public(raw).hex(), public)
                if message or signer is not by_openssl:
                    self.assertEqual(signer.sign(raw, bytes.fromhex(message)).hex(), signature)

    def test_openssl_agrees(self) -> None:
        """openssl verifies what we sign, and we verify what openssl signs with a key of its own."""
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            key, message, signature = directory / "key.pem", directory / "message", directory / "signature"
            message.write_bytes(b"#!/bin/bash\n" + os.urandom(3000))

            def openssl(*arguments: object) -> None:
                subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

            openssl("genpkey", "-algorithm", "ed25519", "-out", key)
            openssl("pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", message, "-out", signature)
            seed = ed25519.private_key(key.read_text())
            public = ed25519.Signer().public(seed)
            self.assertTrue(ed25519.verify(public, message.read_bytes(), signature.read_bytes()))
            signature.write_bytes(ed25519.Signer().sign(seed, message.read_bytes()))
            openssl("pkeyutl", "-verify", "-rawin", "-inkey", key, "-in", message, "-sigfile", signature)

    def test_neither(self) -> None:
        """Without either, signing is refused; the text names both."""
        with (
            mock.patch.object(ed25519, "_find_cryptography", lambda: None),
            mock.patch.object(ed25519, "_find_openssl", lambda: ""),
            self.assertRaises(ed25519.CannotSign) as caught,
        ):
            ed25519.Signer()
        self.assertIn("OpenSSL 3", str(caught.exception))

    def test_old_openssl(self) -> None:
        """1.1.1 and LibreSSL are passed over."""
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "openssl")
            for said, found in (("OpenSSL 1.1.1k  FIPS", False), ("LibreSSL 3.9.0", False), ("OpenSSL 3.2.1 x", True)):
                Path(path).write_text(f"#!/bin/sh\necho '{said}'\n")
                os.chmod(path, 0o755)
                with mock.patch.object(ed25519, "_OPENSSL", (path,)):
                    self.assertEqual(bool(ed25519._find_openssl()), found, said)

    def test_faulty_library(self) -> None:
        """A signature that does not verify is not given out."""
        signer = ed25519.Signer()
        with mock.patch.object(ed25519, "verify", lambda *a: False), self.assertRaises(ed25519.CannotSign):
            signer.sign(bytes(32), b"m")
