"""The key of the install scripts: its files, and signatures as deployed agents read them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from twisted.trial.unittest import SynchronousTestCase

from identree.agent import ed25519
from identree.app.signing import (
    PRIVATE_LABEL,
    PUBLIC_LABEL,
    BadKey,
    CannotMakeKey,
    CannotSign,
    InstallKeys,
    load_or_create,
    pem,
    signature_bytes,
)

SEED = bytes(range(32))
PRIVATE = Ed25519PrivateKey.from_private_bytes(SEED)
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
# spec/notifications-and-policy section 9
CONTENT = b"#!/bin/bash\n"
SIGNATURE = "7rAuHbjhGrdmBMhL9nRCdeTYMegpz7yb4N/I3VLx8QSP/pSHNoDZF7y1SZG1S9oh+92kQn3Z4mlQR4FQu9ySAA"
PUBLIC_PEM = (
    b"-----BEGIN ED25519 PUBLIC KEY-----\n"
    b"A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=\n"
    b"-----END ED25519 PUBLIC KEY-----\n"
)


def own_private(key: Ed25519PrivateKey = PRIVATE) -> bytes:
    return pem(PRIVATE_LABEL, key.private_bytes_raw())


def own_public(key: Ed25519PrivateKey = PRIVATE) -> bytes:
    return pem(PUBLIC_LABEL, key.public_key().public_bytes_raw())


def standard_private(key: Ed25519PrivateKey = PRIVATE) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def standard_public(key: Ed25519PrivateKey = PRIVATE) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class SignatureTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.keys = InstallKeys(PRIVATE.public_key(), PRIVATE)

    def test_vector(self) -> None:
        """The contract's vector: 86 characters without padding."""
        self.assertEqual(self.keys.sign(CONTENT), SIGNATURE)

    def test_public_form(self) -> None:
        """What is served is the form that deployed agents read."""
        self.assertEqual(self.keys.public_pem, PUBLIC_PEM)

    def test_agent_agrees(self) -> None:
        """The agent reads the key, and finds the signature good."""
        key = ed25519.public_key(self.keys.public_pem.decode())
        signature = ed25519.decode_base64(self.keys.sign(CONTENT))
        self.assertTrue(ed25519.verify(key, CONTENT, signature))

    def test_openssl_agrees(self) -> None:
        """OpenSSL finds the signature good, too."""
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory)
            (place / "key").write_bytes(standard_public())
            (place / "content").write_bytes(CONTENT)
            raw = signature_bytes(self.keys.sign(CONTENT))
            assert raw is not None
            (place / "signature").write_bytes(raw)
            done = subprocess.run(
                [*"openssl pkeyutl -verify -pubin -inkey key -rawin -in content -sigfile signature".split()],
                cwd=place,
                capture_output=True,
                text=True,
                timeout=30,
            )
        self.assertIn("Verified Successfully", done.stdout, done)

    def test_padding_is_accepted(self) -> None:
        """A signature may come with padding, blanks and a line end."""
        for text in (SIGNATURE, SIGNATURE + "==", f" {SIGNATURE}==\r\n"):
            self.assertTrue(self.keys.verify(CONTENT, text), text)

    def test_no_signature(self) -> None:
        """What is no signature verifies nothing, whatever it is."""
        bad = [
            "",
            "x",
            SIGNATURE[:-1],
            SIGNATURE + "=",
            SIGNATURE + "===",
            SIGNATURE + "AA",
            SIGNATURE.replace("/", "_"),
        ]
        bad += ["A" * 86, "\u00e9" * 86, SIGNATURE[:40] + " " + SIGNATURE[40:], "A" * 1_000_000]
        for text in bad:
            self.assertFalse(self.keys.verify(CONTENT, text), text[:100])

    def test_other_content(self) -> None:
        """One byte more is another script."""
        self.assertFalse(self.keys.verify(CONTENT + b"\n", SIGNATURE))

    def test_public_only(self) -> None:
        """With the public key alone signatures are verified and none is made."""
        keys = InstallKeys(PRIVATE.public_key())
        self.assertFalse(keys.can_sign)
        self.assertTrue(keys.verify(CONTENT, SIGNATURE))
        self.assertRaises(CannotSign, keys.sign, CONTENT)


class KeyFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.private, self.public = Path(place.name, "install.key"), Path(place.name, "install.pub")

    def load(self) -> InstallKeys:
        return load_or_create(str(self.private), str(self.public), generate=lambda: PRIVATE)

    def put(self, private: bytes | None = None, public: bytes | None = None) -> None:
        for path, content in ((self.private, private), (self.public, public)):
            if content is not None:
                path.write_bytes(content)
                path.chmod(0o600)

    def tree(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.private.parent.iterdir()}

    def refused(self, *words: str) -> None:
        """Loading fails with these words and leaves all files as they are."""
        before = self.tree()
        message = str(self.assertRaises(BadKey, self.load))
        for word in words:
            self.assertIn(word, message)
        self.assertEqual(self.tree(), before)

    def test_neither(self) -> None:
        """A pair is made, in the own form, the private key for its owner only; the next start finds it."""
        self.assertEqual(self.load().sign(CONTENT), SIGNATURE)
        self.assertEqual(self.tree(), {"install.key": own_private(), "install.pub": PUBLIC_PEM})
        self.assertEqual([p.stat().st_mode & 0o777 for p in (self.private, self.public)], [0o600, 0o644])
        self.assertEqual(load_or_create(str(self.private), str(self.public)).sign(CONTENT), SIGNATURE)

    def test_both_forms(self) -> None:
        """Each key may be in the own form or in the standard one."""
        for private in (own_private(), standard_private()):
            for public in (own_public(), standard_public()):
                self.put(private, public)
                self.assertEqual(self.load().sign(CONTENT), SIGNATURE)
                self.assertEqual(self.tree(), {"install.key": private, "install.pub": public})

    def test_text_before(self) -> None:
        """What stands before the block does not count."""
        self.put(b"key of the install scripts\n" + own_private(), b"# public\n\n" + own_public())
        self.assertTrue(self.load().can_sign)

    def test_private_only(self) -> None:
        """The public key follows from the private one, which stays, and is written."""
        self.put(private=own_private())
        self.assertEqual(self.load().sign(CONTENT), SIGNATURE)
        self.assertEqual(self.tree(), {"install.key": own_private(), "install.pub": PUBLIC_PEM})

    def test_public_cannot_be_written(self) -> None:
        """A private key in a place that cannot be written to is enough."""
        self.put(private=own_private())
        self.public = self.private.parent / "missing" / "install.pub"
        self.assertTrue(self.load().can_sign)

    def test_public_only(self) -> None:
        """An operator's public key is neither overwritten nor is a private one made beside it."""
        self.put(public=standard_public())
        self.assertFalse(self.load().can_sign)
        self.assertEqual(self.tree(), {"install.pub": standard_public()})

    def test_no_pair(self) -> None:
        """Keys of different pairs stop the start."""
        self.put(own_private(), own_public(OTHER))
        self.refused("install.pub is not the public key of", "install.key")

    def test_open_private_key(self) -> None:
        """A private key that others can read is none any more."""
        self.put(own_private())
        self.private.chmod(0o644)
        self.refused("chmod 600", "install.key")

    def test_public_key_of_anybody(self) -> None:
        """A public key that others can replace is not believed."""
        self.put(public=own_public())
        self.public.chmod(0o666)
        self.refused("chmod go-w", "install.pub")

    def test_swapped(self) -> None:
        """Who swaps the two is told so, and no private key is ever served."""
        self.put(public=own_private())
        self.refused("holds a private key")
        self.put(own_public(), own_public())
        self.refused("holds a public key", "IDENTREE_INSTALL_VERIFY_KEY")

    def test_damaged(self) -> None:
        """Neither nothing, nor half of it, nor another kind of key, nor two are a key; nothing is put in place."""
        curve = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        whole = own_private()
        for content in (
            b"",
            whole[:-30],
            curve,
            whole + whole,
            pem(PRIVATE_LABEL, SEED[1:]),
            whole.replace(b"END ED", b"END XX"),
            whole.replace(b"A", b"!"),
            bytes(70_000),
        ):
            self.put(private=content)
            self.refused("install.key")

    def test_encrypted(self) -> None:
        """An encrypted key is told how to be decrypted."""
        self.put(private=whole_pem("ENCRYPTED PRIVATE KEY"))
        self.refused("openssl pkey")

    def test_fifo(self) -> None:
        """A pipe in the place of a key does not hold the start."""
        os.mkfifo(self.private, 0o600)
        with self.assertRaises(BadKey):
            self.load()

    def test_nowhere(self) -> None:
        """Where no key can be made the server can do without."""
        self.private = self.private.parent / "missing" / "install.key"
        self.public = self.private.with_suffix(".pub")
        self.assertIn("missing/install.key", str(self.assertRaises(CannotMakeKey, self.load)))

    def test_leftover(self) -> None:
        """What a start left behind that was cut off is in nobody's way."""
        (self.private.parent / ".install.key.new").write_bytes(b"half")
        self.assertTrue(self.load().can_sign)
        self.assertEqual(sorted(self.tree()), ["install.key", "install.pub"])

    def test_two_at_once(self) -> None:
        """Of two that find no key, the second takes what the first has made."""

        def late() -> Ed25519PrivateKey:
            self.put(own_private(OTHER))
            return PRIVATE

        keys = load_or_create(str(self.private), str(self.public), generate=late)
        self.assertEqual(keys.public_pem, own_public(OTHER))
        self.assertEqual(self.tree(), {"install.key": own_private(OTHER), "install.pub": own_public(OTHER)})


def whole_pem(label: str) -> bytes:
    return pem(label, bytes(64))
