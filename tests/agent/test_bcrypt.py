"""bcrypt: published answers, what is refused, and which backend is believed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from identree.agent.bcrypt import Bcrypt, encode, passes, valid
from identree.agent.breakglass import DUMMY
from tests.agent.harness import archive, interpreters

# From the test vectors of crypt_blowfish and OpenBSD.
VECTORS = {
    "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW": b"U*U",
    "$2a$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK": b"U*U*",
    "$2a$05$XXXXXXXXXXXXXXXXXXXXXOAcXxm9kjPGEMsLznoKqmqw7tc8WCx4a": b"U*U*U",
    "$2a$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkY8jIucDrjc8deX1s0.": b"",
    "$2a$06$m0CrhHm10qJ3lXRY.5zDGO3rS2KdeeWLuGmsfGlMfOxih58VYVfxe": b"a",
    "$2a$06$If6bvum7DFjUnE9p2uDeDu0YHzrHM6tf.iqN8.yx.jNN1ILEf7h0i": b"abc",
}


class KnownAnswerTests(unittest.TestCase):
    def test_published(self) -> None:
        """Published hashes match their passwords and no others; an empty password never does."""
        for digest, password in VECTORS.items():
            with self.subTest(digest):
                self.assertEqual(Bcrypt().matches(password, digest), bool(password))
                self.assertFalse(Bcrypt().matches(password + b"x", digest))

    def test_marks(self) -> None:
        """2a, 2b and 2y are the same for the passwords that are made here."""
        rest = "$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
        for mark in ("$2a", "$2b", "$2y"):
            self.assertTrue(Bcrypt().matches(b"U*U", mark + rest), mark)

    def test_round(self) -> None:
        """A made hash has mark and cost, another salt each time, and matches."""
        first, second = Bcrypt().hash("secret", 4), Bcrypt().hash("secret", 4)
        self.assertNotEqual(first, second)
        self.assertTrue(first.startswith("$2b$04$"))
        self.assertTrue(Bcrypt().matches(b"secret", first))
        self.assertFalse(Bcrypt().matches(b"Secret", first))

    def test_salt(self) -> None:
        """Sixteen bytes are twenty-two characters, of which the last carries two bits."""
        self.assertEqual(encode(bytes(16)), "." * 22)
        self.assertEqual(encode(b"\xff" * 16), "9" * 21 + "u")

    def test_every_python(self) -> None:
        """The packed agent computes it on every Python that is here."""
        code = (
            "import sys; sys.path.insert(0, sys.argv[1])\nfrom identree.agent.bcrypt import Bcrypt\n"
            "print(Bcrypt().matches(b'abc', '$2a$06$If6bvum7DFjUnE9p2uDeDu0YHzrHM6tf.iqN8.yx.jNN1ILEf7h0i'))"
        )
        for version, path in interpreters().items():
            with self.subTest(version):
                done = subprocess.run([path, "-ISBc", code, archive()], capture_output=True, text=True, timeout=60)
                self.assertEqual(done.stdout, "True\n", done.stderr)


class RefusalTests(unittest.TestCase):
    def test_settings(self) -> None:
        """What is no bcrypt hash never reaches crypt(3), which would answer with something else."""
        digest = "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
        self.assertTrue(valid(digest))
        for bad in (
            "",
            "x",
            digest[:-1],
            digest + "x",
            digest.replace("$2b", "$2x"),
            digest.replace("$2b$", "$2$b"),
            digest.replace("$05", "$31"),
            digest.replace("$05", "$03"),
            digest.replace("$05", "$²5"),
            digest[:-1] + "\n",
            digest[:-1] + "!",
            "$6$" + digest[3:],
        ):
            self.assertFalse(valid(bad), bad)

            def never(password: bytes, setting: bytes) -> bytes:
                raise AssertionError(setting)

            self.assertFalse(Bcrypt(never).matches(b"U*U", bad))

    def test_passwords(self) -> None:
        """More than 72 bytes would be cut, a zero byte would end it: both are refused."""
        digest = Bcrypt().hash("x" * 72, 4)
        self.assertTrue(Bcrypt().matches(b"x" * 72, digest))
        self.assertFalse(Bcrypt().matches(b"x" * 73, digest))
        self.assertFalse(Bcrypt().matches(b"x" * 71 + b"\0", digest))
        for bad in ("", "x" * 73, "a\0b"):
            with self.assertRaises(ValueError):
                Bcrypt().hash(bad, 4)
        for cost in (3, 18):
            with self.assertRaises(ValueError):
                Bcrypt().hash("x", cost)

    def test_dummy(self) -> None:
        """The hash that stands in for a missing one is a valid one, so that it takes as long."""
        self.assertTrue(valid(DUMMY))
        self.assertEqual(DUMMY[:7], "$2b$12$")


class BackendTests(unittest.TestCase):
    def test_des(self) -> None:
        """A crypt(3) that answers with a hash of another kind, or with a failure, is not believed."""
        for answer in (b"$2Ajx8PZbdI6.", b"*0", b""):
            self.assertFalse(passes(lambda password, setting, answer=answer: answer))

    def test_echo(self) -> None:
        """One that says yes to every password is not believed either."""
        self.assertFalse(passes(lambda password, setting: setting))

    def test_raises(self) -> None:
        """Neither is one that fails."""
        self.assertFalse(passes(lambda password, setting: bytes(1 // 0)))

    def test_none(self) -> None:
        """Without any it says what to install."""
        code = (
            "import sys; sys.path.insert(0, sys.argv[1])\nfrom identree.agent import bcrypt\n"
            "bcrypt.LIBRARIES = ('libno-such.so.9',)\nbcrypt.PACKAGE_PLACES = ()\n"
            "try:\n    bcrypt.Bcrypt()\nexcept bcrypt.NoBcrypt as e:\n    print(e)"
        )
        command = [os.path.realpath(sys.executable), "-ISBc", code, archive()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertIn("python3-bcrypt", done.stdout, done.stderr)

    def test_package(self) -> None:
        """The package steps in where the library has none, found without the site module, and is tested as well."""
        with tempfile.TemporaryDirectory() as directory:
            package = Path(directory, "bcrypt.py")
            package.write_text(
                "import ctypes\n_crypt = ctypes.CDLL('libcrypt.so.1').crypt\n_crypt.restype = ctypes.c_char_p\n"
                "def hashpw(password, salt):\n    return _crypt(password, salt)\n"
            )
            code = (
                "import sys; sys.path.insert(0, sys.argv[1])\nfrom identree.agent import bcrypt\n"
                "bcrypt.LIBRARIES = ()\nbcrypt.PACKAGE_PLACES = (sys.argv[2],)\nb = bcrypt.Bcrypt()\n"
                "print(b.matches(b'x', b.hash('x', 4)), sys.argv[2] in sys.path)"
            )
            command = [os.path.realpath(sys.executable), "-ISBc", code, archive(), directory]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            self.assertEqual(done.stdout, "True False\n", done.stderr)
