"""The passwords of the local escrow back end from the command line: to be shown, and to get another key."""

from __future__ import annotations

import io
import json
import os
import pty
import pwd
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree import escrowcli
from identree.clients.escrow.local import SealingKey
from identree.core.challenge import HistoryEntry
from identree.core.errors import StorageUnavailable
from identree.core.events import BreakglassEscrowed
from identree.escrowcli import NotShown, Report, Request, Shown, rekey, show
from identree.storage.interface import MOST_RESEALED, Ciphertext, EscrowRecord, Resealed
from tests.app.world import now_result
from tests.fakes import MemoryLog, memory_store
from tests.settings.fakes import environment, loaded

OLD = "o" * 32
NEW = "n" * 32
SALT = "ab" * 16
PASSWORD = "correct-horse-battery-staple"
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
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


class ShowTests(SynchronousTestCase):
    """What is shown, and what is on record before it is."""

    def setUp(self) -> None:
        self.log = MemoryLog()
        self.store = memory_store(log=self.log)

    def put(self, hostname: str, password: str = PASSWORD, escrowed_at: datetime = NOW - DAY) -> None:
        entry = HistoryEntry(at=escrowed_at, username="", action="rotated_breakglass", hostname=hostname)
        event = BreakglassEscrowed(at=escrowed_at, username=hostname, hostname=hostname)
        now_result(self.store.store_ciphertext(hostname, OLD_KEY.seal(hostname, password, b"n" * 12)))
        now_result(self.store.record_escrow(EscrowRecord(hostname=hostname, escrowed_at=escrowed_at), entry, event))

    def request(self, **changed: Any) -> Request:
        values = {"hostname": "web1", "account": "ada", "reason": "server is down", "rotates": True, "terminal": True}
        return Request(**{**values, **changed})

    def show(self, key: SealingKey = OLD_KEY, **changed: Any) -> Shown:
        return now_result(show(self.store, key, self.request(**changed), NOW))  # type: ignore[no-any-return]

    def not_shown(self, key: SealingKey = OLD_KEY, **changed: Any) -> str:
        """Why not. Nothing is on record then."""
        before = len(self.log.records)
        work: Any = show(self.store, key, self.request(**changed), NOW)
        failure = self.failureResultOf(Deferred.fromCoroutine(work), NotShown)
        now_result(self.store.take_outside_events())
        self.assertEqual((self.reveals(), len(self.log.records), self.rotations()), ([], before, []))
        self.assertNotIn(PASSWORD, str(failure.value))
        return str(failure.value)

    def reveals(self) -> list[HistoryEntry]:
        return [one for one in now_result(self.store.history(None)) if one.action == "revealed_breakglass"]

    def rotations(self) -> list[tuple[str, datetime]]:
        return [(one.hostname, one.requested_at) for one in now_result(self.store.rotations())]

    def test_shown(self) -> None:
        """The password, on record in the history and for the next server's audit chain; the host is to replace it."""
        self.put("web1")
        before = len(self.log.records)
        shown = self.show()
        self.assertEqual((shown.password, shown.escrowed_at), (PASSWORD, NOW - DAY))
        [entry] = self.reveals()
        reason = "server is down (identree escrow show)"
        self.assertEqual((entry.username, entry.hostname, entry.at, entry.reason), ("ada", "web1", NOW, reason))
        self.assertEqual(self.rotations(), [("web1", NOW)])
        self.assertEqual(len(self.log.records), before)
        self.assertEqual(now_result(self.store.take_outside_events()), 1)
        record = json.loads(self.log.records[-1].plain)
        told = [record[key] for key in ("event", "username", "actor", "hostname", "reason")]
        self.assertEqual(told, ["revealed_breakglass", "ada", "ada", "web1", reason])
        self.assertEqual([PASSWORD.encode() in one.plain for one in self.log.records], [False] * len(self.log.records))

    def test_not_recorded(self) -> None:
        """What cannot be recorded is not shown."""
        self.put("web1")
        store = self.store

        class Full:
            escrow_record, escrow_records, ciphertext = store.escrow_record, store.escrow_records, store.ciphertext

            async def record_reveal(self, *_: Any, **__: Any) -> None:
                raise StorageUnavailable("full")

        work: Any = show(Full(), OLD_KEY, self.request(), NOW)
        self.failureResultOf(Deferred.fromCoroutine(work), StorageUnavailable)

    def test_no_rotation(self) -> None:
        """By the setting it stays."""
        self.put("web1")
        self.show(rotates=False)
        self.assertEqual((len(self.reveals()), self.rotations()), (1, []))

    def test_stored_just_now(self) -> None:
        """A password of this very second is still older than the rotation that is asked for."""
        self.put("web1", escrowed_at=NOW)
        self.show()
        self.assertEqual(self.rotations(), [("web1", NOW + timedelta(seconds=1))])

    def test_old_spelling(self) -> None:
        """Old servers kept the host's own spelling, to which the sealed password is bound; the rest is normalised."""
        self.put("WEB1.")
        self.assertEqual(self.show().password, PASSWORD)
        self.assertEqual(self.rotations(), [("web1", NOW)])

    def test_long_reason(self) -> None:
        """Where it comes from is said however long the reason is, within the bound of reasons."""
        self.put("web1")
        self.show(reason="x" * 500)
        [entry] = self.reveals()
        self.assertEqual(len(entry.reason), 500)
        self.assertTrue(entry.reason.endswith("x (identree escrow show)"))

    def test_unknown(self) -> None:
        """No password: the short name and the full one are easily mixed up."""
        self.assertEqual(self.not_shown(), "there is no password of web1 in this database")
        for name in ("web1.example.com", "web10.example.com", "db1"):
            self.put(name)
        self.assertIn("did you mean web1.example.com?", self.not_shown())
        self.assertIn("did you mean db1?", self.not_shown(hostname="db1.example.com"))

    def test_elsewhere(self) -> None:
        """Stored while another back end was set."""
        entry = HistoryEntry(at=NOW, username="", action="rotated_breakglass", hostname="web1")
        event = BreakglassEscrowed(at=NOW, username="web1", hostname="web1")
        now_result(self.store.record_escrow(EscrowRecord(hostname="web1", escrowed_at=NOW), entry, event))
        self.assertIn("another back end", self.not_shown())

    def test_wrong_key(self) -> None:
        """With another key, and a password that is empty."""
        self.put("web1")
        self.assertIn("IDENTREE_ESCROW_ENCRYPTION_KEY", self.not_shown(NEW_KEY))
        self.put("web1", "")
        self.assertIn("empty", self.not_shown())

    def test_control_characters(self) -> None:
        """A host's password does not command the terminal of who looks; a file may have it."""
        self.put("web1", f"{PASSWORD}\x1b]0;x\x07")
        self.assertIn("--print", self.not_shown())
        self.assertEqual(self.show(terminal=False).password, f"{PASSWORD}\x1b]0;x\x07")


class ShowCommandTests(SynchronousTestCase):
    """``identree escrow show``, as a process of its own on a database file, without a server."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.database = self.directory / "identree.db"
        store = memory_store(dsn=str(self.database))
        entry = HistoryEntry(at=NOW, username="", action="rotated_breakglass", hostname="web1")
        event = BreakglassEscrowed(at=NOW, username="web1", hostname="web1")
        now_result(store.store_ciphertext("web1", OLD_KEY.seal("web1", PASSWORD, b"n" * 12)))
        now_result(store.record_escrow(EscrowRecord(hostname="web1", escrowed_at=NOW), entry, event))
        now_result(store.stop())
        self.environment = {
            **environment(
                DATABASE_DSN=str(self.database),
                ESCROW_BACKEND="local",
                ESCROW_ENCRYPTION_KEY=OLD,
                TOML_CONFIG_FILE=str(self.directory / "none.toml"),
            ),
            "PATH": os.environ["PATH"],
            "SUDO_USER": "ada",
        }

    def run_it(self, *arguments: str, **options: Any) -> tuple[int, str, str]:
        code = "import sys; from identree.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, "escrow", "show", *arguments],
            env=self.environment,
            cwd=Path(escrowcli.__file__).parent.parent,
            text=True,
            timeout=120,
            check=False,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
        self.assertNotIn(PASSWORD, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        return done.returncode, done.stdout or "", done.stderr

    def refused(self, said: str, *arguments: str, status: int = 2) -> str:
        """Nothing is shown, and nothing on record."""
        code, out, errors = self.run_it(*arguments)
        self.assertEqual((code, out), (status, ""), errors)
        self.assertIn(said, errors)
        self.assertEqual(self.rows("SELECT * FROM outside_events"), [])
        return errors

    def rows(self, sql: str) -> list[Any]:
        connection = sqlite3.connect(self.database)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def account(self) -> str:
        return "ada" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name

    def test_printed(self) -> None:
        """Standard output has the password alone; who wanted it is on record, and the host is to replace it."""
        status, out, errors = self.run_it("Web1.", "--reason", "it is down", "--print")
        self.assertEqual((status, out), (0, PASSWORD + "\n"), errors)
        self.assertIn(f"{self.account()} was shown it", errors)
        self.assertIn("replaces it", errors)
        [(kind, fields)] = self.rows("SELECT kind, fields FROM outside_events")
        record = json.loads(fields)
        told = [record[key] for key in ("username", "actor", "hostname", "reason")]
        self.assertEqual(kind, "revealed_breakglass")
        self.assertEqual(told, [self.account(), self.account(), "web1", "it is down (identree escrow show)"])
        self.assertEqual(len(self.rows("SELECT * FROM rotate_breakglass_before")), 1)

    def test_terminal(self) -> None:
        """On a terminal it needs no more than the reason."""
        controller, terminal = pty.openpty()
        try:
            status, _, errors = self.run_it("web1", "--reason", "it is down", stdout=terminal)
            self.assertEqual(status, 0, errors)
            self.assertEqual(os.read(controller, 4096).decode(), PASSWORD + "\r\n")
        finally:
            os.close(terminal)
            os.close(controller)

    def test_kept(self) -> None:
        """By the setting the host keeps its password, which is said."""
        self.environment["IDENTREE_ESCROW_ROTATE_AFTER_REVEAL"] = "false"
        self.assertIn("It stays", self.run_it("web1", "--reason", "it is down", "--print")[2])
        self.assertEqual(self.rows("SELECT * FROM rotate_breakglass_before"), [])

    def test_words(self) -> None:
        """No terminal, no reason, no name of a host, none at all."""
        self.refused("--print", "web1", "--reason", "it is down")
        self.refused("--reason", "web1", "--print")
        self.refused("--reason", "web1", "--print", "--reason", " ")
        self.refused("control characters", "web1", "--print", "--reason", "a\nb")
        self.refused("letters, digits", "web 1", "--print", "--reason", "x")
        self.refused("letters, digits", "..", "--print", "--reason", "x")

    def test_other_hosts(self) -> None:
        """A host that has none."""
        self.refused("no password of web2", "web2", "--print", "--reason", "x", status=1)

    def test_only_what_matters(self) -> None:
        """A copy of the database and the key are enough; without the key, or with half of one, they are not."""
        for name in ("OIDC_ISSUER_URL", "OIDC_CLIENT_SECRET", "SHARED_SECRET", "EXTERNAL_URL"):
            del self.environment[f"IDENTREE_{name}"]
        status, out, errors = self.run_it("web1", "--reason", "it is down", "--print")
        self.assertEqual((status, out), (0, PASSWORD + "\n"), errors)
        self.assertIn("does not matter here", errors)

    def test_settings(self) -> None:
        """What a password cannot be found or opened with."""
        self.environment["IDENTREE_ESCROW_ENCRYPTION_KEY"] = "short"
        self.refused("IDENTREE_ESCROW_ENCRYPTION_KEY: at least 32", "web1", "--print", "--reason", "x")
        self.environment["IDENTREE_ESCROW_ENCRYPTION_KEY"] = OLD
        self.environment["IDENTREE_DATABASE_DSN"] = str(self.directory / "other.db")
        self.refused("other.db; set IDENTREE_DATABASE_DSN", "web1", "--print", "--reason", "x")
        self.assertFalse((self.directory / "other.db").exists(), "it is not made by the way")

    def test_elsewhere(self) -> None:
        """With other back ends it says where to look."""
        self.environment["IDENTREE_ESCROW_BACKEND"] = ""
        self.refused("no escrow back end is set", "web1", "--print", "--reason", "x")
        self.environment["IDENTREE_ESCROW_COMMAND"] = "/bin/store"
        self.refused("BREAKGLASS_HOSTNAME=web1", "web1", "--print", "--reason", "x")


class ElsewhereTests(SynchronousTestCase):
    """Where the password of ``web-1.example.com`` is, by back end."""

    def where(self, backend: str, path: str, **more: str) -> str:
        settings = loaded(ESCROW_BACKEND=backend, ESCROW_URL="https://v.example", ESCROW_PATH=path, **more)
        return escrowcli._elsewhere(settings, "web-1.example.com")

    def test_vault(self) -> None:
        """Path and field, and the page."""
        said = self.where("vault", "secret/identree", ESCROW_AUTH_SECRET="x", ESCROW_WEB_URL="https://v.example")
        self.assertIn("at https://v.example for the field password of secret/identree/web-1.example.com", said)
        self.assertIn("\nhttps://v.example/ui/vault/secrets/secret/kv/identree/web-1.example.com/details", said)

    def test_vault_map(self) -> None:
        """The host's own place counts."""
        said = self.where(
            "vault", "secret/identree", ESCROW_AUTH_SECRET="x", ESCROW_VAULT_MAP='{"web-*": "secret/web"}'
        )
        self.assertIn("secret/web/web-1.example.com", said)

    def test_onepassword(self) -> None:
        """Item and vault."""
        said = self.where("1password-connect", "ops", ESCROW_AUTH_SECRET="x")
        self.assertIn("the item breakglass-web-1.example.com of the vault ops", said)

    def test_bitwarden(self) -> None:
        """Secret and project."""
        said = self.where("bitwarden", "org/project", ESCROW_AUTH_SECRET="x")
        self.assertIn("the secret breakglass-web-1.example.com of org/project", said)

    def test_infisical(self) -> None:
        """Secret, workspace and environment."""
        said = self.where("infisical", "ws/prod", ESCROW_AUTH_ID="x", ESCROW_AUTH_SECRET="x")
        self.assertIn("the secret BREAKGLASS_WEB_1_EXAMPLE_COM of ws/prod, in /", said)


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
