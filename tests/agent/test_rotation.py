"""New break-glass passwords: what they are, when they come, and that a cut at any point locks nobody out."""

from __future__ import annotations

import contextlib
import os
import pickle
import pty
import re
import stat
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable
from pathlib import Path

from identree.agent import breakglass, journal, places, rotation
from identree.agent.bcrypt import Bcrypt
from identree.agent.breakglass import Pending
from identree.agent.config import Config, ConfigError
from identree.agent.places import PENDING, SIGNAL, Places
from identree.agent.rotation import (
    NO_VAULT,
    REFUSED,
    STORED,
    UNCLEAR,
    Busy,
    Disk,
    Escrow,
    NotEscrowed,
    Rotation,
    RotationError,
    escrow_token,
    generate,
)
from identree.agent.words import WORDS
from tests.agent.harness import archive, interpreters
from tests.agent.scripted import SECRET, Answer, Request, ScriptedServer

OLD = "the-old-one"
BCRYPT = Bcrypt()
OLD_HASH = BCRYPT.hash(OLD, 4)
NOW = 1_780_000_000


class PasswordTests(unittest.TestCase):
    def test_kinds(self) -> None:
        """The three types have their form, are never the same twice, and fit bcrypt."""
        for kind, pattern in (
            ("random", r"[A-Za-z0-9_-]{43}"),
            ("passphrase", r"([a-z]{4}-){9}[a-z]{4}"),
            ("alphanumeric", r"[2-9A-HJ-NP-Za-km-z]{24}"),
        ):
            made = {generate(kind) for _ in range(50)}
            self.assertEqual(len(made), 50)
            for password in made:
                self.assertTrue(re.fullmatch(pattern, password), password)
                self.assertLessEqual(len(password), 72)

    def test_unknown_kind(self) -> None:
        """A type that there is not names the key and what would be right."""
        with self.assertRaisesRegex(RotationError, "IDENTREE_BREAKGLASS_PASSWORD_TYPE.*passphrase"):
            generate("PIN")

    def test_alphabet(self) -> None:
        """55 characters, all of which come up."""
        self.assertEqual((len(rotation.ALPHANUMERIC), len(set(rotation.ALPHANUMERIC))), (55, 55))
        self.assertEqual(set("".join(generate("alphanumeric") for _ in range(200))), set(rotation.ALPHANUMERIC))

    def test_words(self) -> None:
        """256 words of four letters, of which no two differ in one letter."""
        self.assertEqual((len(WORDS), len(set(WORDS))), (256, 256))
        for word in WORDS:
            self.assertRegex(word, "^[a-z]{4}$")
            for other in WORDS:
                if other != word:
                    self.assertGreaterEqual(sum(a != b for a, b in zip(word, other, strict=True)), 2, (word, other))


class Vault:
    """
    A server with a vault. ``script`` says what happens to each request, the last word again and again: a status;
    ``lost``, stored but never answered; ``before``, cut off before it was stored; ``broken``, 500 after it was stored.
    """

    def __init__(self, *script: object) -> None:
        self.script = list(script) or [200]
        self.stored: list[str] = []
        self.server = ScriptedServer(self._answer)

    def _answer(self, request: Request) -> Answer:
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if step in (200, "lost", "broken"):
            self.stored.append(str(request.json["password"]))
        if step in ("lost", "before"):
            return Answer(raw=b"")
        return Answer(500 if step == "broken" else int(str(step)), {})

    @property
    def known(self) -> str:
        return self.stored[-1]

    @property
    def requests(self) -> list[Request]:
        return self.server.requests


class RotationTestCase(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.file = str(self.directory / "hash")
        self.where = Places(str(self.directory), str(self.directory / "state"))
        self.clock = float(NOW)
        self.pauses: list[float] = []

    def now(self) -> float:
        return self.clock

    def put_old(self, made: float | None = None) -> None:
        Path(self.file).write_text(f"# old\n{OLD_HASH}\n")
        os.chmod(self.file, 0o600)
        os.utime(self.file, (made or self.clock, made or self.clock))

    def vault(self, *script: object) -> Vault:
        vault = Vault(*script)
        self.addCleanup(vault.server.stop)
        return vault

    def config(self, vault: Vault | None, **conf: str) -> Config:
        values = {
            "IDENTREE_SHARED_SECRET": SECRET,
            "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true",
            "IDENTREE_HOSTNAME": "web01.example.com",
            "IDENTREE_BREAKGLASS_FILE": self.file,
            **({"IDENTREE_SERVER_URL": vault.server.url} if vault else {}),
            **conf,
        }
        made = Config("f", values, server=False)
        made.bcrypt_cost = 4
        return made

    def escrow(self, vault: Vault) -> Escrow:
        return Escrow(self.config(vault), now=self.now, sleep=self.pauses.append)

    def rotation(self, vault: Vault | None, disk: Disk | None = None, **conf: str) -> Rotation:
        escrow = self.escrow(vault) if vault else None
        return Rotation(self.config(vault, **conf), escrow, bcrypt=BCRYPT, disk=disk, now=self.now)

    def opens(self, password: str) -> bool:
        return breakglass.matches(self.file, password.encode(), BCRYPT)

    @property
    def pending(self) -> str:
        found = breakglass.read_pending(self.file)
        return found.password if found else ""

    def names(self) -> list[str]:
        return sorted(os.listdir(self.directory))


class EscrowTests(RotationTestCase):
    def test_token(self) -> None:
        """The token has the form of the contract."""
        self.assertEqual(
            escrow_token(SECRET, "web01.example.com", 1767225600),
            "c1305d6de2c3125ed707cc6025bac42a7ab58a5af293e546f41a471aa948208a",
        )

    def test_request(self) -> None:
        """Host and password go in the body, stamp, token and secret in the headers, and nothing else."""
        vault = self.vault()
        self.assertEqual(self.escrow(vault).store("p w"), STORED)
        [request] = vault.requests
        self.assertEqual((request.method, request.path), ("POST", "/api/breakglass/escrow"))
        self.assertEqual(request.json, {"hostname": "web01.example.com", "password": "p w"})
        self.assertEqual(request.headers["x-shared-secret"], SECRET)
        self.assertEqual(request.headers["x-escrow-ts"], str(NOW))
        self.assertEqual(request.headers["x-escrow-token"], escrow_token(SECRET, "web01.example.com", NOW))
        self.assertEqual(request.headers["content-type"], "application/json")

    def test_without_secret(self) -> None:
        """A host that has only a certificate sends no token."""
        vault = self.vault()
        config = self.config(vault, IDENTREE_SHARED_SECRET="")
        Escrow(config, now=self.now).store("x")
        self.assertFalse({"x-escrow-ts", "x-escrow-token", "x-shared-secret"} & set(vault.requests[0].headers))

    def test_answers(self) -> None:
        """What surely was not stored is kept apart from what perhaps was."""
        for script, outcome, tries in (
            ((200,), STORED, 1),
            ((501,), NO_VAULT, 1),
            ((403,), REFUSED, 1),
            ((429,), REFUSED, 1),
            ((302,), REFUSED, 1),
            ((404,), REFUSED, 1),
            ((500,), UNCLEAR, 3),
            ((503,), UNCLEAR, 3),
            (("lost",), UNCLEAR, 3),
            ((410, 200), STORED, 2),
            (("lost", 200), STORED, 2),
            (("broken", 403), UNCLEAR, 2),
            (("lost", 501), UNCLEAR, 2),
        ):
            with self.subTest(script):
                vault = self.vault(*script)
                self.assertEqual(self.escrow(vault).store("x"), outcome)
                self.assertEqual(len(vault.requests), tries)

    def test_same_password_new_stamp(self) -> None:
        """Tries after an unclear one send the same password with a later stamp, more than a second later."""
        vault = self.vault("lost", "lost", 200)
        self.escrow(vault).store("x")
        self.assertEqual([r.json["password"] for r in vault.requests], ["x"] * 3)
        stamps = [int(r.headers["x-escrow-ts"]) for r in vault.requests]
        self.assertEqual(stamps, sorted(set(stamps)))
        self.assertTrue(all(pause > 1 for pause in self.pauses))

    def test_unreachable(self) -> None:
        """Where no connection came about nothing was stored, and nothing is tried again."""
        vault = self.vault()
        vault.server.stop()
        self.assertEqual(self.escrow(vault).store("x"), REFUSED)

    def test_bad_certificate(self) -> None:
        """Certificates that cannot be used are an error before anything is sent."""
        vault = self.vault()
        config = self.config(vault, IDENTREE_SERVER_URL="https://127.0.0.1:1", IDENTREE_CA_CERT="/nonexistent")
        with self.assertRaises(ConfigError):
            Escrow(config).store("x")


class RotateTests(RotationTestCase):
    def test_stored(self) -> None:
        """The password of the vault opens, the old one no longer; the file is as deployed agents read it."""
        self.put_old()
        vault = self.vault()
        self.assertTrue(self.rotation(vault).rotate())
        self.assertTrue(self.opens(vault.known))
        self.assertFalse(self.opens(OLD))
        header, digest = Path(self.file).read_text().splitlines()
        self.assertEqual(
            header, "# identree breakglass host=web01.example.com type=random created=2026-05-28T20:26:40Z"
        )
        self.assertTrue(digest.startswith("$2b$04$"))
        self.assertEqual(stat.S_IMODE(os.stat(self.file).st_mode), 0o600)
        self.assertEqual(os.stat(self.file).st_mtime, NOW)
        self.assertEqual(self.names(), ["hash"])

    def test_password_is_nowhere(self) -> None:
        """On the host nothing is left of the password but its hash."""
        vault = self.vault()
        self.rotation(vault).rotate()
        for name in self.names():
            self.assertNotIn(vault.known, (self.directory / name).read_text())

    def test_refused(self) -> None:
        """What the vault does not take does not count, and the old one stays."""
        self.put_old()
        with self.assertRaisesRegex(RotationError, "HTTP 403"):
            self.rotation(self.vault(403)).rotate()
        self.assertTrue(self.opens(OLD))
        self.assertEqual(self.names(), ["hash"])

    def test_unclear(self) -> None:
        """While nobody knows what the vault has, both open; the next run sends the same and settles it."""
        self.put_old()
        vault = self.vault("lost")
        with self.assertRaisesRegex(RotationError, "run this again"):
            self.rotation(vault).rotate()
        self.assertTrue(self.opens(OLD) and self.opens(vault.known))
        self.assertEqual(self.pending, vault.known)
        vault.script[:] = [200]
        self.clock += 100
        self.rotation(vault).settle()
        self.assertEqual(set(vault.stored), {vault.known})
        self.assertTrue(self.opens(vault.known))
        self.assertFalse(self.opens(OLD))
        self.assertEqual(self.names(), ["hash"])
        self.assertEqual(os.stat(self.file).st_mtime, NOW)

    def test_unclear_stays(self) -> None:
        """A refusal later does not say that the first try stored nothing: both open still."""
        self.put_old()
        vault = self.vault("lost")
        with contextlib.suppress(RotationError):
            self.rotation(vault).rotate()
        for answer in (403, 501):
            vault.script[:] = [answer]
            with self.assertRaisesRegex(RotationError, "both valid"):
                self.rotation(vault).settle()
            self.assertTrue(self.opens(OLD) and self.opens(vault.known))

    def test_no_vault(self) -> None:
        """Without a vault, and nobody to be told, nothing is made: neither by refusal of the server nor without one."""
        for vault in (self.vault(501), None):
            with self.assertRaises(NotEscrowed):
                self.rotation(vault).rotate()
            self.assertEqual(self.names(), [])

    def test_told_before_it_counts(self) -> None:
        """Without a vault a person is told before the password counts, so that a cut in between costs nothing."""
        self.put_old()
        told: list[str] = []

        def disclose(password: str) -> bool:
            self.assertTrue(self.opens(OLD))
            told.append(password)
            return True

        self.assertFalse(self.rotation(None).rotate(disclose))
        self.assertTrue(self.opens(told[0]))
        self.assertFalse(self.opens(OLD))

    def test_not_told(self) -> None:
        """When the person could not be told, the old one stays."""
        self.put_old()
        with self.assertRaises(NotEscrowed):
            self.rotation(self.vault(501)).rotate(lambda password: False)
        self.assertTrue(self.opens(OLD))
        self.assertEqual(self.names(), ["hash"])

    def test_planted_links(self) -> None:
        """Links at any of its paths are not followed: refused, or replaced by a file."""
        victim = self.directory / "victim"
        victim.write_text("precious")
        self.put_old()
        for suffix in (PENDING, SIGNAL):
            os.symlink(victim, self.file + suffix)
        self.rotation(self.vault()).settle()
        self.rotation(self.vault()).rotate()
        self.rotation(None).honour("2026-01-01T00:00:00Z")
        self.assertFalse(os.path.islink(self.file + SIGNAL))
        os.symlink(victim, self.file + places.LOCK)
        with self.assertRaisesRegex(RotationError, "symbolic link"), self.rotation(None).locked():
            pass
        os.unlink(self.file)
        os.symlink(victim, self.file)
        vault = self.vault()
        with self.assertRaisesRegex(RotationError, "not a regular file"):
            self.rotation(vault).rotate()
        self.assertEqual(vault.requests, [])
        self.assertEqual(victim.read_text(), "precious")

    def test_damaged_pending(self) -> None:
        """What is no password of ours on its way is removed, and nothing is sent of it."""
        self.put_old()
        Path(self.file + PENDING).write_text("nonsense")
        os.chmod(self.file + PENDING, 0o600)
        vault = self.vault()
        self.assertEqual(self.rotation(vault).settle(), "")
        self.assertEqual((self.names(), vault.requests), (["hash"], []))

    def test_busy(self) -> None:
        """Two do not rotate at the same time."""
        with self.rotation(None).locked(), self.assertRaises(Busy), self.rotation(None).locked():
            pass
        with self.rotation(None).locked():
            pass

    def test_disk_full(self) -> None:
        """An error of the disk is one; the old password stays and nothing is left lying about."""

        class Full(Disk):
            def write(self, fd: int, data: bytes) -> int:
                raise OSError(28, "No space left on device")

        self.put_old()
        vault = self.vault()
        with self.assertRaises(OSError):
            self.rotation(vault, Full()).rotate()
        self.assertEqual((self.names(), vault.requests), (["hash"], []))
        self.assertTrue(self.opens(OLD))


class AutomaticTests(RotationTestCase):
    def automatic(self, vault: Vault, signalled: str = "") -> str:
        escrow = self.escrow(vault)
        return rotation.automatic(
            self.config(vault), signalled, escrow=escrow, bcrypt=BCRYPT, now=self.now, where=self.where
        )

    def test_missing(self) -> None:
        """A host without a password gets one, if the vault takes it."""
        vault = self.vault()
        self.assertEqual(self.automatic(vault), "missing")
        self.assertTrue(self.opens(vault.known))
        self.assertEqual(self.automatic(vault), "")
        self.assertEqual(len(vault.stored), 1)

    def test_age(self) -> None:
        """The last day of its time it stays, then it goes; one from the future goes, too."""
        for age, due in ((89.9, ""), (90, "age"), (-0.5, ""), (-2, "age")):
            self.put_old(self.clock - age * 86400)
            self.assertEqual(self.automatic(self.vault()), due, age)

    def test_no_vault(self) -> None:
        """Without a vault nothing is made and nothing replaced, and the server is not asked with every sudo."""
        vault = self.vault(501)
        self.assertEqual(self.automatic(vault), "")
        self.assertFalse(os.path.exists(self.file))
        self.automatic(vault)
        self.assertEqual(len(vault.requests), 1)
        self.clock += places.PAUSE_SECONDS
        self.automatic(vault)
        self.assertEqual(len(vault.requests), 2)

    def test_warned_once_a_day(self) -> None:
        """That no vault takes it is said once a day."""
        said: list[str] = []
        self.patch_journal(said)
        vault = self.vault(501)
        for _ in range(30):
            self.automatic(vault)
            self.clock += 3600
        self.assertEqual(len([line for line in said if "no vault" in line]), 2, said)

    def patch_journal(self, said: list[str]) -> None:
        self.addCleanup(setattr, journal, "record", journal.record)
        setattr(journal, "record", lambda **fields: said.append(str(fields)))  # noqa: B010 (for the type checker)

    def test_signal(self) -> None:
        """A later signal than the password's making rotates, once, however far the clocks are apart."""
        for ahead in (-200, 0, 200, 86000):
            with self.subTest(ahead):
                self.put_old(self.clock - 86400)
                self.clock += 86400
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.file + SIGNAL)
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.clock + ahead))
                vault = self.vault()
                self.assertEqual(self.automatic(vault, at), "signal")
                self.assertEqual(self.automatic(vault, at), "")
                self.assertEqual(len(vault.stored), 1)
                self.assertEqual(Path(self.file + SIGNAL).read_text(), at + "\n")

    def test_old_signal(self) -> None:
        """An earlier signal than the password does nothing, nor one that is not time yet, nor one that is none."""
        self.put_old()
        for signalled in ("2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z", "soon", ""):
            self.assertEqual(self.automatic(self.vault(), signalled), "", signalled)

    def test_unsettled(self) -> None:
        """An unsettled rotation is settled with the same password; if that is old by then, a new one follows."""
        for made, passwords in ((NOW, 1), (NOW - 100 * 86400, 2)):
            self.put_old()
            Path(self.file + PENDING).write_text(Pending("on-its-way", "random", made).text("web01"))
            os.chmod(self.file + PENDING, 0o600)
            vault = self.vault()
            self.automatic(vault)
            self.assertEqual((vault.stored[0], len(vault.stored)), ("on-its-way", passwords))
            self.assertTrue(self.opens(vault.known))
            self.assertEqual(self.pending, "")

    def test_link(self) -> None:
        """A link in place of the hash is somebody's decision and is left alone."""
        os.symlink("/nonexistent", self.file)
        vault = self.vault()
        self.assertEqual(self.automatic(vault), "")
        self.assertEqual(vault.requests, [])

    def test_unreachable(self) -> None:
        """Without a server nothing changes."""
        self.put_old(self.clock - 91 * 86400)
        vault = self.vault()
        vault.server.stop()
        self.assertEqual(self.automatic(vault), "")
        self.assertTrue(self.opens(OLD))


class FallingDisk(Disk):
    """
    A disk on which the power fails at call ``at``.

    :param mode: ``before``: the call does not happen; ``after``: it does; ``lossy``: it does, and whatever was not
        synced until then is lost: content becomes empty, names become what they were.
    """

    def __init__(self, at: int, mode: str, report: Callable[[int], None]) -> None:
        self._at, self._mode, self._report, self._calls = at, mode, report, 0
        self._unsynced: dict[int, str] = {}
        self._undo: list[Callable[[], None]] = []

    def _step(self, act: Callable[[], object]) -> object:
        self._calls += 1
        self._report(self._calls)
        if self._calls == self._at and self._mode == "before":
            os._exit(9)
        result = act()
        if self._calls == self._at:
            if self._mode == "lossy":
                for path in self._unsynced.values():
                    with contextlib.suppress(OSError):
                        os.truncate(path, 0)
                for undo in reversed(self._undo):
                    undo()
            os._exit(9)
        return result

    @staticmethod
    def _back(path: str) -> Callable[[], None]:
        """Puts back what ``path`` is now."""
        try:
            content, times = Path(path).read_bytes(), (os.stat(path).st_atime, os.stat(path).st_mtime)
        except FileNotFoundError:

            def gone() -> None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

            return gone

        def restore() -> None:
            Path(path).write_bytes(content)
            os.chmod(path, 0o600)
            os.utime(path, times)

        return restore

    def create(self, path: str) -> int:
        def act() -> int:
            fd = super(FallingDisk, self).create(path)
            self._unsynced[fd] = path
            return fd

        return int(str(self._step(act)))

    def write(self, fd: int, data: bytes) -> int:
        half = data[: max(1, len(data) // 2)]  # every write is a short one, so that there is a cut in the middle
        return int(str(self._step(lambda: super(FallingDisk, self).write(fd, half))))

    def set_time(self, fd: int, seconds: int) -> None:
        self._step(lambda: super(FallingDisk, self).set_time(fd, seconds))

    def sync(self, fd: int) -> None:
        def act() -> None:
            super(FallingDisk, self).sync(fd)
            self._unsynced.pop(fd, None)

        self._step(act)

    def rename(self, source: str, target: str) -> None:
        backs = [self._back(source), self._back(target)]

        def act() -> None:
            super(FallingDisk, self).rename(source, target)
            self._undo.extend(backs)
            for fd, path in self._unsynced.items():
                if path == source:
                    self._unsynced[fd] = target

        self._step(act)

    def unlink(self, path: str) -> None:
        back = self._back(path)

        def act() -> None:
            super(FallingDisk, self).unlink(path)
            self._undo.append(back)

        self._step(act)

    def sync_directory(self, path: str) -> None:
        def act() -> None:
            super(FallingDisk, self).sync_directory(path)
            self._undo.clear()

        self._step(act)


class PowerCutTests(RotationTestCase):
    """
    A child rotates, and the power fails at each of its calls in turn. Whatever the vault shows afterwards must open,
    at once and after the next run; and then there is one password, and it is the vault's.
    """

    def cut(self, vault: Vault | None, at: int, mode: str, disclose: bool = False) -> tuple[bool, list[str], int]:
        """Whether the child got through, what it told, and how many calls it made."""
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:

                def say(kind: str, value: object) -> None:
                    os.write(writable, pickle.dumps((kind, value)))

                def told(password: str) -> bool:
                    say("told", password)
                    return True

                disk = FallingDisk(at, mode, lambda calls: say("calls", calls))
                each = self.rotation(vault, disk)
                with each.locked():
                    each.settle(told if disclose else None)
                    each.rotate(told if disclose else None)
                code = 0
            except RotationError:
                code = 7
            finally:
                os._exit(code)
        os.close(writable)
        said: list[tuple[str, object]] = []
        with os.fdopen(readable, "rb") as stream:
            while True:
                try:
                    said.append(pickle.load(stream))
                except EOFError:
                    break
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.assertIn(status, (0, 7, 9))
        calls = [int(str(value)) for kind, value in said if kind == "calls"]
        return status != 9, [str(value) for kind, value in said if kind == "told"], max(calls, default=0)

    def restart(self) -> None:
        for name in self.names():
            os.unlink(self.directory / name)
        self.clock = float(NOW)

    def check(self, *script: object, old: bool, modes: tuple[str, ...] = ("before", "after", "lossy")) -> int:
        """:return: at how many points the power was cut."""
        points = 0
        for mode in modes:
            at, through = 1, False
            while not through:
                with self.subTest(script=script, mode=mode, at=at):
                    self.restart()
                    vault = self.vault(*script)
                    if old:
                        self.put_old()
                        vault.stored.append(OLD)
                    through, _, _ = self.cut(vault, at, mode)
                    points += not through
                    if vault.stored and places.usable(self.file):
                        self.assertTrue(self.opens(vault.known), "what the vault shows opens at once")
                    if old:
                        self.assertTrue(places.usable(self.file), "there is a password at any time")
                    # the server is back, and so is the host
                    vault.script[:] = [200]
                    self.clock += 60
                    after = self.rotation(vault)
                    with after.locked():
                        after.settle()
                    if vault.stored:
                        self.assertTrue(self.opens(vault.known))
                        self.assertEqual(self.pending, "")
                        self.assertTrue(
                            BCRYPT.matches(vault.known.encode(), breakglass.read_hash(self.file)), "hash and vault"
                        )
                        for other in set(vault.stored) - {vault.known}:
                            self.assertFalse(self.opens(other))
                    self.assertEqual([n for n in self.names() if n.startswith(".breakglass-tmp")], [])
                at += 1
                self.assertLess(at, 60)
        return points

    def test_replaced(self) -> None:
        """Replacing a password."""
        self.assertGreater(self.check(200, old=True), 40)

    def test_first(self) -> None:
        """The first password of a host."""
        self.assertGreater(self.check(200, old=False), 40)

    def test_no_answer(self) -> None:
        """A server that stores and never answers."""
        self.assertGreater(self.check("lost", old=True), 10)

    def test_refused(self) -> None:
        """A server that does not store: the old password stays the one."""
        self.assertGreater(self.check(403, old=True), 20)

    def test_cut_while_settling(self) -> None:
        """A second cut while the first one is repaired."""
        for mode in ("after", "lossy"):
            at, through = 1, False
            while not through:
                with self.subTest(mode=mode, at=at):
                    self.restart()
                    vault = self.vault("lost")
                    self.put_old()
                    self.cut(vault, 0, "none")
                    self.assertNotEqual(self.pending, "")
                    vault.script[:] = [200]
                    through, _, _ = self.cut(vault, at, mode)
                    self.assertTrue(self.opens(vault.known))
                    with self.rotation(vault).locked():
                        self.rotation(vault).settle()
                    self.assertTrue(self.opens(vault.known))
                    self.assertEqual(self.pending, "")
                at += 1

    def test_told(self) -> None:
        """Without a vault: the last password that counts was told, or it is the old one."""
        for vault in (None, self.vault(501)):
            for mode in ("before", "after", "lossy"):
                at, through = 1, False
                while not through:
                    with self.subTest(mode=mode, at=at, vault=vault):
                        self.restart()
                        self.put_old()
                        through, told, _ = self.cut(vault, at, mode, disclose=True)
                        self.assertTrue(self.opens(OLD) or any(map(self.opens, told)))
                        digest = breakglass.read_hash(self.file)
                        self.assertTrue(
                            any(BCRYPT.matches(each.encode(), digest) for each in [OLD, *told]), "no unknown one"
                        )
                    at += 1


class CommandTests(RotationTestCase):
    """``identree rotate-breakglass`` of the packed agent."""

    def command(
        self, *arguments: str, vault: Vault | None = None, terminal: bool = False, python: str = "", **conf: str
    ) -> tuple[int, str, str]:
        path = self.directory / "client.conf"
        values = {
            "IDENTREE_BREAKGLASS_FILE": self.file,
            "IDENTREE_BREAKGLASS_BCRYPT_COST": "10",
            "IDENTREE_SYSLOG": "false",
            "IDENTREE_SHARED_SECRET": SECRET,
            "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true",
            "IDENTREE_HOSTNAME": "web01",
            **({"IDENTREE_SERVER_URL": vault.server.url} if vault else {}),
            **conf,
        }
        path.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
        path.chmod(0o600)
        code = (
            "import sys; sys.path.insert(0, sys.argv[1])\nfrom identree.agent import config, main, pam, rotation\n"
            f"pam.conf_path = lambda environ: {str(path)!r}\nmain.leave(rotation.run(sys.argv[2:]))"
        )
        command = [python or os.path.realpath(sys.executable), "-ISBc", code, archive(), *arguments]
        hostile = {
            "PATH": str(self.directory),
            "IDENTREE_BREAKGLASS_FILE": "/nonexistent/x",
            "https_proxy": "http://127.0.0.1:1",
            "http_proxy": "http://127.0.0.1:1",
            "PYTHONPATH": str(self.directory),
            "TMPDIR": "/nonexistent",
        }
        master, slave = pty.openpty()
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=slave if terminal else subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=hostile,
                timeout=60,
                start_new_session=True,
            )
            os.close(slave)
            shown = b""
            if terminal:
                with contextlib.suppress(OSError):
                    while data := os.read(master, 1000):
                        shown += data
        finally:
            os.close(master)
        return done.returncode, (shown if terminal else done.stdout).decode(), done.stderr.decode()

    def test_escrowed(self) -> None:
        """The vault gets it, nobody sees it, on every Python that is here."""
        for version, python in interpreters().items():
            with self.subTest(version):
                vault = self.vault()
                code, out, err = self.command("--force", "--print", vault=vault, python=python)
                self.assertEqual((code, out), (0, ""), err)
                self.assertIn("in the vault", err)
                self.assertNotIn(vault.known, err)
                self.assertTrue(self.opens(vault.known))

    def test_not_due(self) -> None:
        """A password that is not old enough stays; the message says how old it is."""
        self.put_old(time.time() - 5 * 86400 - 10)
        code, out, _ = self.command()
        self.assertEqual((code, "5 days old" in out, self.opens(OLD)), (0, True, True), out)

    def test_terminal(self) -> None:
        """Without a server it is shown at a terminal, alone."""
        code, out, err = self.command(terminal=True)
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"^[A-Za-z0-9_-]{43}\r\n$")
        self.assertTrue(self.opens(out.strip()))
        self.assertIn("No vault has it", err)

    def test_no_terminal(self) -> None:
        """To a journal or a mail nothing goes, and nothing is rotated, forced or not; --print permits it."""
        self.put_old(time.time() - 91 * 86400)
        for arguments in ((), ("--force",), ("-f",)):
            code, out, err = self.command(*arguments, vault=self.vault(501))
            self.assertEqual((code, out), (1, ""))
            self.assertIn("--print", err)
            self.assertTrue(self.opens(OLD))
        code, out, _ = self.command("--print", vault=self.vault(501))
        self.assertEqual(code, 0)
        self.assertTrue(self.opens(out.strip()))

    def test_refused(self) -> None:
        """A vault that refuses is an error that says so."""
        code, out, err = self.command(vault=self.vault(403))
        self.assertEqual((code, out), (1, ""))
        self.assertIn("HTTP 403", err)

    def test_busy(self) -> None:
        """Another rotation is no error."""
        with self.rotation(None).locked():
            code, _, err = self.command("-f")
        self.assertEqual(code, 0)
        self.assertIn("another rotation is running", err)

    def test_mistakes(self) -> None:
        """Unknown options, types and files are named, and nothing is changed."""
        for arguments, conf, words in (
            (("--froce",), {}, "usage"),
            ((), {"IDENTREE_BREAKGLASS_PASSWORD_TYPE": "PIN"}, "PASSWORD_TYPE"),
            ((), {"IDENTREE_BREAKGLASS_FILE": "relative"}, "absolute"),
            ((), {"IDENTREE_SERVER_URL": "http://x", "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": ""}, "https://"),
            ((), {"IDENTREE_BREAKGLASS_FILE": "/nonexistent/there/hash"}, "/nonexistent/there/hash.lock"),
        ):
            code, out, err = self.command(*arguments, **conf)  # type: ignore[arg-type]
            self.assertEqual((code, out), (1, ""), err)
            self.assertIn(words, err)

    def test_shown_once(self) -> None:
        """Where the vault has gone meanwhile, the password on its way is shown and is the one; no second follows."""
        self.put_old()
        Path(self.file + PENDING).write_text(Pending("on-its-way", "random", int(time.time())).text("web01"))
        os.chmod(self.file + PENDING, 0o600)
        code, out, err = self.command("--force", "--print", vault=self.vault(501))
        self.assertEqual((code, out), (0, "on-its-way\n"), err)
        self.assertTrue(self.opens("on-its-way"))
        self.assertFalse(self.opens(OLD))

    def test_settles_first(self) -> None:
        """What the last run left open is settled, and that is enough when nothing else is due."""
        self.put_old(time.time() - 91 * 86400)
        Path(self.file + PENDING).write_text(Pending("on-its-way", "random", int(time.time())).text("web01"))
        os.chmod(self.file + PENDING, 0o600)
        vault = self.vault()
        code, out, err = self.command(vault=vault)
        self.assertEqual((code, vault.stored), (0, ["on-its-way"]), err)
        self.assertIn("complete now", err)
        self.assertIn("skipping", out)
        self.assertTrue(self.opens("on-its-way"))
