"""Another key for the passwords of the local escrow back end."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree import escrowcli
from identree.clients.escrow.local import SealingKey
from identree.core.errors import StorageUnavailable
from identree.escrowcli import Report, rekey
from identree.storage.interface import MOST_RESEALED, Ciphertext, Resealed
from tests.fakes import memory_store
from tests.settings.fakes import environment

OLD = "o" * 32
NEW = "n" * 32
SALT = "ab" * 16
OLD_KEY, NEW_KEY = SealingKey.derived(OLD, ""), SealingKey.derived(NEW, "")


class RekeyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = memory_store()
        self.nonce = 0

    def random_bytes(self, count: int) -> bytes:
        self.nonce += 1
        return self.nonce.to_bytes(count, "big")

    def put(self, hostname: str, key: SealingKey = OLD_KEY, password: str = "") -> None:
        text = key.seal(hostname, password or f"password of {hostname}", self.random_bytes(12))
        self.successResultOf(Deferred.fromCoroutine(self.store.store_ciphertext(hostname, text)))

    def fill(self, count: int) -> list[str]:
        names = [f"web{number:04d}" for number in range(count)]
        for name in names:
            self.put(name)
        return names

    def text(self, hostname: str) -> str:
        text = self.successResultOf(Deferred.fromCoroutine(self.store.ciphertext(hostname)))
        assert text is not None
        return str(text)

    def run_it(self, store: Any = None, **options: Any) -> Report:
        values: dict[str, Any] = {"old": [OLD_KEY], "new": NEW_KEY, "random_bytes": self.random_bytes, **options}
        return self.successResultOf(Deferred.fromCoroutine(rekey(store or self.store, **values)))  # type: ignore[no-any-return]

    def test_all(self) -> None:
        """Every password, over several batches, is the same under the new key."""
        names = self.fill(2 * MOST_RESEALED + 50)
        report = self.run_it()
        self.assertEqual((report.changed, report.good, report.left), (len(names), len(names), 0))
        for name in names:
            self.assertEqual(NEW_KEY.open(name, self.text(name)), f"password of {name}")

    def test_again(self) -> None:
        """A second run has nothing to do, and touches nothing."""
        self.fill(3)
        self.run_it()
        before = self.text("web0001")
        self.assertEqual(self.run_it().changed, 0)
        self.assertEqual(self.text("web0001"), before)

    def test_interrupted(self) -> None:
        """However often it is cut off, every password is under one of the two keys, and a later run ends the work."""
        names = self.fill(3 * MOST_RESEALED)
        store = self.store

        class Cut:
            """Loses the database before, or after, its second write."""

            def __init__(self, after: bool) -> None:
                self.after, self.writes = after, 0

            async def ciphertexts(self, after: str = "", limit: int = 100) -> list[Ciphertext]:
                return await store.ciphertexts(after, limit)

            async def replace_ciphertexts(self, changes: Sequence[Resealed]) -> list[str]:
                self.writes += 1
                done = [] if self.writes == 2 and not self.after else await store.replace_ciphertexts(changes)
                if self.writes == 2:
                    raise StorageUnavailable("unreachable")
                return done

        def readable() -> int:
            under_new = 0
            for name in names:
                text = self.text(name)
                opened = escrowcli._opened(Ciphertext(hostname=name, text=text), [OLD_KEY, NEW_KEY])
                self.assertEqual(opened, f"password of {name}")
                under_new += escrowcli._opened(Ciphertext(hostname=name, text=text), [NEW_KEY]) is not None
            return under_new

        for after, expected in ((False, MOST_RESEALED), (True, 3 * MOST_RESEALED)):
            work: Any = rekey(Cut(after), old=[OLD_KEY], new=NEW_KEY, random_bytes=self.random_bytes)
            self.failureResultOf(Deferred.fromCoroutine(work), StorageUnavailable)
            self.assertEqual(readable(), expected)
        self.assertEqual(self.run_it().good, 3 * MOST_RESEALED)

    def test_beside_the_server(self) -> None:
        """What the server stores with the old key meanwhile is not overwritten with an older password, and found."""
        self.fill(2)
        test, store = self, self.store

        class Busy:
            """A host comes between reading and writing, once."""

            def __init__(self) -> None:
                self.came = False

            async def ciphertexts(self, after: str = "", limit: int = 100) -> list[Ciphertext]:
                return await store.ciphertexts(after, limit)

            async def replace_ciphertexts(self, changes: Sequence[Resealed]) -> list[str]:
                if not self.came:
                    self.came = True
                    test.put("web0000", password="newer")
                return await store.replace_ciphertexts(changes)

        report = self.run_it(Busy())
        self.assertEqual((report.changed, report.good), (2, 2))
        self.assertEqual(NEW_KEY.open("web0000", self.text("web0000")), "newer")

    def test_unreadable(self) -> None:
        """What no key opens is left as it is and named; the others are done."""
        self.fill(2)
        self.put("lost", SealingKey.derived("x" * 32, ""))
        before = self.text("lost")
        report = self.run_it()
        self.assertEqual((report.changed, report.unreadable, report.unreadable_count), (2, ("lost",), 1))
        self.assertEqual(self.text("lost"), before)

    def test_several_old(self) -> None:
        """Any of the old keys may open one; another salt is another key."""
        salted = SealingKey.derived(OLD, SALT)
        self.put("a")
        self.put("b", salted)
        self.assertEqual(self.run_it(old=[OLD_KEY, salted]).changed, 2)

    def test_dry_run(self) -> None:
        """Only counts."""
        self.fill(3)
        self.put("done", NEW_KEY)
        before = self.text("web0000")
        report = self.run_it(dry_run=True)
        self.assertEqual((report.changed, report.left, report.good), (0, 3, 1))
        self.assertEqual(self.text("web0000"), before)

    def test_not_kept(self) -> None:
        """A database that does not keep what it is given ends it, with nothing lost."""
        self.fill(1)
        store = self.store

        class Forgetful:
            async def ciphertexts(self, after: str = "", limit: int = 100) -> list[Ciphertext]:
                return await store.ciphertexts(after, limit)

            async def replace_ciphertexts(self, changes: Sequence[Resealed]) -> list[str]:
                return []

        work: Any = rekey(Forgetful(), old=[OLD_KEY], new=NEW_KEY, random_bytes=self.random_bytes)
        self.failureResultOf(Deferred.fromCoroutine(work), RuntimeError)

    def test_not_read_back(self) -> None:
        """A password that would not come back is not replaced."""
        self.fill(1)

        class Wrong:
            raw = NEW_KEY.raw

            def seal(self, hostname: str, password: str, nonce: bytes) -> str:
                return NEW_KEY.seal(hostname, password + "!", nonce)

            def open(self, hostname: str, text: str) -> str:
                return NEW_KEY.open(hostname, text)

        before = self.text("web0000")
        work: Any = rekey(self.store, old=[OLD_KEY], new=Wrong(), random_bytes=self.random_bytes)  # type: ignore[arg-type]
        self.failureResultOf(Deferred.fromCoroutine(work), RuntimeError)
        self.assertEqual(self.text("web0000"), before)


class CommandTests(SynchronousTestCase):
    """``identree escrow rekey``, as a process of its own on a database file."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.database = self.directory / "identree.db"
        store = memory_store(dsn=str(self.database))
        for name in ("web1", "web2"):
            text = OLD_KEY.seal(name, f"password of {name}", b"n" * 12)
            self.successResultOf(Deferred.fromCoroutine(store.store_ciphertext(name, text)))
        self.successResultOf(Deferred.fromCoroutine(store.stop()))
        self.key("new", NEW)
        self.key("old", OLD)

    def key(self, name: str, text: str, mode: int = 0o600) -> str:
        path = self.directory / name
        path.write_text(text + "\n")
        path.chmod(mode)
        return str(path)

    def environment(self, key: str = OLD) -> dict[str, str]:
        toml = str(self.directory / "none.toml")
        settings = environment(DATABASE_DSN=str(self.database), ESCROW_ENCRYPTION_KEY=key, TOML_CONFIG_FILE=toml)
        return {**settings, "PATH": os.environ["PATH"]}

    def run_it(self, *arguments: str, key: str = OLD) -> tuple[int, str, str]:
        code = "import sys; from identree.escrowcli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, "rekey", *arguments],
            env=self.environment(key),
            cwd=Path(escrowcli.__file__).parent.parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        for secret in (OLD, NEW, "password of"):
            self.assertNotIn(secret, done.stdout + done.stderr)
        return done.returncode, done.stdout, done.stderr

    def opened(self, key: SealingKey) -> list[str]:
        with sqlite3.connect(self.database) as connection:
            rows = connection.execute(
                "SELECT hostname, ciphertext FROM escrow_ciphertexts ORDER BY hostname"
            ).fetchall()
        connection.close()
        return [key.open(*row) for row in rows]

    def test_whole(self) -> None:
        """It tells what to do next; the run after the restart takes the old key from a file."""
        status, said, errors = self.run_it("--new-key-file", f"{self.directory}/new")
        self.assertEqual((status, errors), (0, ""))
        self.assertIn("2 passwords have got the new key", said)
        self.assertIn("set IDENTREE_ESCROW_ENCRYPTION_KEY", said)
        self.assertEqual(self.opened(NEW_KEY), ["password of web1", "password of web2"])
        arguments = ("--new-key-file", f"{self.directory}/new", "--old-key-file", f"{self.directory}/old")
        status, said, _ = self.run_it(*arguments, key=NEW)
        self.assertEqual(status, 0)
        self.assertIn("0 passwords have got the new key; 2 have it in all", said)
        self.assertNotIn("restart", said)

    def test_salt(self) -> None:
        """Only the salt may change, too."""
        status, said, _ = self.run_it("--new-key-file", f"{self.directory}/old", "--new-salt", SALT)
        self.assertEqual(status, 0)
        self.assertIn("IDENTREE_ESCROW_HKDF_SALT to the new salt", said)
        self.assertEqual(len(self.opened(SealingKey.derived(OLD, SALT))), 2)

    def test_unreadable(self) -> None:
        """With the wrong old key nothing is touched, the hosts are named, and the status says it."""
        status, _, errors = self.run_it("--new-key-file", f"{self.directory}/new", key="x" * 32)
        self.assertEqual(status, 1)
        self.assertIn("web1, web2", errors)
        self.assertEqual(len(self.opened(OLD_KEY)), 2)


class ArgumentTests(SynchronousTestCase):
    """What is refused before the database is touched."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        toml = str(self.directory / "none.toml")
        self.patch(os, "environ", environment(ESCROW_ENCRYPTION_KEY=OLD, TOML_CONFIG_FILE=toml))

        def never(*_: Any, **__: Any) -> int:
            raise AssertionError("it went on")

        self.patch(escrowcli, "_run", never)

    def refused(self, raw: bytes, *more: str) -> str:
        path = self.directory / "key"
        path.write_bytes(raw)
        path.chmod(0o600)
        return self.said("rekey", "--new-key-file", str(path), *more)

    def said(self, *arguments: str) -> str:
        out, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(errors):
            self.assertEqual(escrowcli.main(arguments), 2)
        self.assertNotIn(NEW, errors.getvalue())
        return errors.getvalue()

    def test_key_files(self) -> None:
        """Too short, too long, of several lines, with white space that a setting would lose, no text, not there."""
        self.assertIn("at least 32 characters", self.refused(b"n" * 31))
        self.assertIn("nothing else", self.refused(b"n" * 5000))
        self.assertIn("one line", self.refused(NEW.encode() + b"\n" + NEW.encode()))
        self.assertIn("white space", self.refused(b" " + NEW.encode()))
        self.assertIn("not UTF-8", self.refused(b"\xff" * 40))
        self.assertIn("No such file", self.said("rekey", "--new-key-file", str(self.directory / "none")))

    def test_salts(self) -> None:
        """As the setting's."""
        self.assertIn("hexadecimal", self.refused(NEW.encode(), "--new-salt", "xyz"))
        self.assertIn("16 bytes", self.refused(NEW.encode(), "--new-salt", "abcd"))
        self.assertIn("--old-key-file", self.refused(NEW.encode(), "--old-salt", SALT))

    def test_same(self) -> None:
        """The key that is set already."""
        self.assertIn("set already", self.refused(OLD.encode()))

    def test_words(self) -> None:
        """The key is no argument, and the file is needed."""
        self.said("rekey")
        self.said("rekey", "--new-key", NEW[:5])
        self.said()
