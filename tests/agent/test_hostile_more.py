"""
Traps at the paths of the token cache, the renewal of certificates and the heartbeat, and under the eyes of ``status``
and ``doctor``, which only look.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import stat
import tempfile
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from identree.agent import certificates, heartbeat, journal, renew, setup_files, tokencache
from identree.agent.doctor import Doctor
from identree.agent.heartbeat import Record, os_info
from identree.agent.renew import CA, CERT, CURRENT, KEY, VERSIONS, RenewalError, Store, present_certificate
from identree.agent.status import Status
from identree.agent.tokencache import KEYS_FILE, forget, revoke, store
from tests.agent.test_doctor import AGENT, HostCase
from tests.agent.test_heartbeat import NOW as BEAT_NOW
from tests.agent.test_heartbeat import BeatCase
from tests.agent.test_hostile import (
    BLOCKED_SECONDS,
    OLD_HASH,
    PLANTS,
    STRANGER,
    Victim,
    circle,
    device,
    directory,
    endless,
    local_socket,
    not_blocking,
    pipe,
)
from tests.agent.test_renew import RenewCase
from tests.agent.test_tokencache import HOST, NOW, CacheCase, rfc3339

Plant = Callable[[Path, Victim], None]


def foreign_directory(path: Path, victim: Victim) -> None:
    path.mkdir(mode=0o700)
    os.chown(path, STRANGER, STRANGER)


def open_directory(path: Path, victim: Victim) -> None:
    path.mkdir()
    path.chmod(0o777)


DIRECTORY_PLANTS: tuple[Plant, ...] = (*PLANTS, foreign_directory, open_directory)

# What can keep somebody who only reads; the others are for those who believe or write.
READ_PLANTS: tuple[Plant, ...] = (circle, pipe, directory, local_socket, endless)


def take_away(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def trap(case: unittest.TestCase, path: Path, plant: Plant) -> Iterator[Victim]:
    """A trap at ``path`` instead of what is there; afterwards the victim has to be as it was."""
    with tempfile.TemporaryDirectory(prefix="identree-") as made:
        victim = Victim(Path(made) / "victim")
        take_away(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with case.subTest(f"{plant.__name__} at {path.name}"), not_blocking():
            try:
                plant(path, victim)
            except PermissionError as e:
                if plant is not device:
                    raise
                case.skipTest(f"no devices here: {e}")  # a container without the right to make them
            try:
                yield victim
                # the alarm may have been taken for an error of the file, and passed over
                case.assertGreater(signal.alarm(BLOCKED_SECONDS), 0, "it waits for what was planted")
                case.assertEqual(victim.harm(), "")
            finally:
                take_away(path)


def fixed(length: int) -> bytes:
    """Randomness that everybody can guess, so that temporary names can be planted."""
    return bytes(length)


class CacheTests(CacheCase):
    """What was to be kept of an approval."""

    def setUp(self) -> None:
        super().setUp()
        self.approved = self.token()

    def hold(self) -> None:
        self.assertTrue(store(self.config, "alice", HOST, self.approved))

    def try_all(self) -> bool:
        """Everything that is done to a cache; whether a token was kept."""
        self.assertIsNone(self.look(), "no trap lets anybody in")
        self.records.clear()
        kept = store(self.config, "alice", HOST, self.approved)
        if kept:
            info = self.file.lstat()
            self.assertTrue(stat.S_ISREG(info.st_mode))
            self.assertEqual((stat.S_IMODE(info.st_mode), info.st_uid), (0o600, os.geteuid()))
            self.assertEqual(self.hit().token, self.approved)
        else:
            self.assertIn(str(self.directory), " ".join(self.records), "it says which file it is about")
        revoke(self.config, "alice", HOST, rfc3339(NOW * 2))
        forget(self.config, "alice", HOST)
        self.assertIsNone(self.look())
        return kept

    def test_directories(self) -> None:
        """At the directory of the cache or of the host: nothing is written behind it, nor taken away there."""
        for path in (self.directory, self.directory / HOST):
            for plant in DIRECTORY_PLANTS:
                with trap(self, path, plant) as victim:
                    if path == self.directory:
                        (victim.inner / HOST).mkdir()
                        (victim.inner / HOST / "alice").write_text("somebody's")
                        victim = self.again(victim)
                    # a directory that only root can change is a good one
                    self.assertEqual(self.try_all(), plant.__name__ == "directory")
                    self.assertEqual(victim.harm(), "")
            self.directory.mkdir(0o755, exist_ok=True)

    def again(self, victim: Victim) -> Victim:
        """The victim as it is from now on."""
        victim._before = victim._look()
        return victim

    def test_token(self) -> None:
        """At the token of a user: a miss; it is replaced, or left and named."""
        for plant in PLANTS:
            with trap(self, self.file, plant):
                left = self.file.is_symlink() or plant in (directory, local_socket)
                self.assertEqual(self.try_all(), not left)

    def test_temporary(self) -> None:
        """At the very name of the temporary file: nothing is written there, and nothing taken away."""
        with mock.patch.object(os, "urandom", fixed):
            for plant in PLANTS:
                path = self.directory / HOST / f"{tokencache.TEMPORARY}{fixed(8).hex()}"
                with trap(self, path, plant):
                    self.assertFalse(self.try_all())
                    self.assertTrue(os.path.lexists(path))

    def test_keys(self) -> None:
        """At the provider's keys: they are fetched, and the trap is replaced or costs no more than that."""
        self.hold()
        path = self.directory / KEYS_FILE
        for plant in PLANTS:
            with trap(self, path, plant):
                self.server.requests.clear()
                self.records.clear()
                self.hit()
                self.assertIn("/keys", self.asked)
                if plant.__name__ == "directory":
                    self.assertIn(str(path), " ".join(self.records))
                else:
                    info = path.lstat()
                    self.assertEqual((stat.S_IFMT(info.st_mode), info.st_mode & 0o777), (stat.S_IFREG, 0o600))

    def test_temporary_of_keys(self) -> None:
        """At the name of their temporary file: they are fetched and not kept."""
        self.hold()
        for plant in PLANTS:
            with (
                mock.patch.object(os, "urandom", fixed),
                trap(self, self.directory / f"{tokencache.TEMPORARY}{fixed(8).hex()}", plant),
            ):
                self.hit()
                self.assertFalse((self.directory / KEYS_FILE).exists())

    def test_keys_damaged(self) -> None:
        """Numbers that are none are a damaged file and no exception."""
        self.hold()
        self.hit()
        path = self.directory / KEYS_FILE
        value = json.loads(path.read_text())
        for number in ("NaN", "Infinity", "-1", "1e400", "9" * 400):
            text = json.dumps({**value, "fetched": 0}).replace('"fetched": 0', f'"fetched": {number}')
            path.write_text(text)
            with self.subTest(number[:9]):
                self.hit()

    def test_believable(self) -> None:
        """A token that would count counts only from a file that is root's alone, and not through a link."""
        self.hold()
        self.hit()
        elsewhere = self.directory.parent / "elsewhere"
        shutil.copytree(self.directory, elsewhere)

        def behind(path: Path) -> None:
            target = elsewhere / path.relative_to(self.directory)
            take_away(path)
            path.symlink_to(target)

        def given_away(path: Path) -> None:
            os.chown(path, STRANGER, STRANGER)

        def opened(path: Path) -> None:
            path.chmod(0o777)

        for path in (self.directory, self.directory / HOST, self.file):
            for change in (behind, given_away, opened):
                with self.subTest(f"{change.__name__} {path.name}"):
                    change(path)
                    self.assertIsNone(self.look())
                    if path == self.directory and change is behind:
                        slashed = self.configured(IDENTREE_TOKEN_CACHE_DIR=f"{self.directory}/")
                        self.assertIsNone(tokencache.lookup(slashed, "alice", HOST, now=lambda: self.now))
                take_away(self.directory)
                shutil.copytree(elsewhere, self.directory)
                self.hit()

    def test_count(self) -> None:
        """Tokens are counted where they would be believed, and names behind a link are nobody's business."""
        for path in (self.directory, self.directory / HOST):
            for plant in DIRECTORY_PLANTS:
                with trap(self, path, plant) as victim:
                    (victim.inner / "alice").touch()
                    (victim.inner / HOST).mkdir()
                    (victim.inner / HOST / "bob").touch()
                    self.again(victim)
                    with contextlib.suppress(OSError):
                        found = tokencache.count(self.config, HOST)
                        self.assertEqual(found, 1 if plant.__name__ == "directory" and path.name == HOST else 0)
            self.directory.mkdir(0o755, exist_ok=True)


class RenewalTests(RenewCase):
    """The directories, links and files of the certificates."""

    def setUp(self) -> None:
        super().setUp()
        self.renew()
        self.good = self.root / "good"
        shutil.copytree(self.etc, self.good, symlinks=True)
        self.version = os.readlink(self.etc / VERSIONS / CURRENT)

    def restore(self) -> None:
        shutil.rmtree(self.etc)
        shutil.copytree(self.good, self.etc, symlinks=True)

    def attempt(self) -> bool:
        """Whether there is a new pair. If not, the error names a file, and no certificate was issued for nothing."""
        count = len(self.provisions)
        before = sorted(os.listdir(self.etc))
        try:
            self.assertTrue(self.renew(force=True, IDENTREE_CA_CERT=self.authority.file))
        except (RenewalError, OSError) as e:
            self.assertIn(str(self.etc), setup_files.reason(e))
            self.assertEqual(len(self.provisions), count)
            self.assertEqual(sorted(os.listdir(self.etc)), before)
            return False
        self.assertEqual(self.present(), self.new.texts)
        for name in (CERT, KEY, CA):
            real = (self.etc / name).resolve()
            self.assertEqual(real.parent.parent, self.etc.resolve() / VERSIONS)
            self.assertEqual(stat.S_IMODE(real.stat().st_mode), 0o600 if name == KEY else 0o644)
        return True

    def test_names(self) -> None:
        """At the three names: what is not a file of root's is neither read nor taken over, and named."""
        for name in (CERT, KEY, CA):
            for plant in PLANTS:
                with trap(self, self.etc / name, plant):
                    # another name of root's own file is root's own file; it is taken over and not written to
                    self.assertEqual(self.attempt(), plant.__name__ == "hard_link")
                self.restore()

    def test_directories(self) -> None:
        """At the directory of the renewals, or the one that counts: nothing is kept behind it."""
        for path in (self.etc / VERSIONS, self.etc / VERSIONS / self.version):
            for plant in DIRECTORY_PLANTS:
                with trap(self, path, plant):
                    self.assertEqual(self.attempt(), plant.__name__ == "directory")
                self.restore()

    def test_current(self) -> None:
        """At the link to the renewal that counts: no file is read behind it, and it is not replaced."""
        for plant in PLANTS:
            with trap(self, self.etc / VERSIONS / CURRENT, plant):
                self.assertFalse(self.attempt())
            self.restore()

    def test_inside(self) -> None:
        """In the directory that counts."""
        for name in (CERT, KEY, CA):
            for plant in PLANTS:
                with trap(self, self.etc / VERSIONS / self.version / name, plant):
                    self.assertEqual(self.attempt(), plant.__name__ == "hard_link")
                self.restore()

    def test_left_behind(self) -> None:
        """What bears the name of something unfinished goes, or stays, and stops nothing."""
        random = fixed(4).hex()
        for name in (f"{VERSIONS}/.new-{random}", f"{CERT}.new-{random[1:]}", f"{VERSIONS}/{CURRENT}.new-{random}"):
            for plant in PLANTS:
                with trap(self, self.etc / name, plant), mock.patch.object(os, "urandom", fixed):
                    self.assertTrue(self.attempt())
                self.restore()

    def test_other_versions(self) -> None:
        """What is no renewal takes no renewal's place: the one before stays, for who has just opened it."""
        for plant in PLANTS:
            with trap(self, self.etc / VERSIONS / "9-planted", plant) as victim:
                if plant.__name__ == "directory":
                    continue
                self.assertTrue(self.attempt())
                self.assertTrue((self.etc / VERSIONS / self.version / KEY).exists())
                self.assertEqual(victim.harm(), "")
            self.restore()

    def test_forgotten(self) -> None:
        """The removal does not follow a link out of the directory."""
        for plant in PLANTS:
            for name in (CERT, KEY, CA):
                (self.etc / name).unlink()
            with trap(self, self.etc / VERSIONS, plant):
                renew.forget(str(self.etc))
            self.restore()

    def test_sssd(self) -> None:
        """At sssd's copies and its configuration: the renewal counts all the same, and no key is for everybody."""
        for path in map(Path, self.sssd):
            for plant in PLANTS:
                with trap(self, path, plant):
                    self.assertTrue(self.attempt())
                    info = path.lstat()
                    if path.name == "sssd.key" and stat.S_ISREG(info.st_mode):
                        self.assertFalse(stat.S_IMODE(info.st_mode) & 0o027, oct(info.st_mode))
                self.restore()

    def test_lock(self) -> None:
        """The directory itself is no link and nobody else's."""
        for plant in DIRECTORY_PLANTS:
            if plant.__name__ == "directory":
                continue
            path = self.root / "identree"
            with (
                trap(self, path, plant),
                self.assertRaises((RenewalError, OSError)) as caught,
                renew._Lock(str(path)),
            ):
                pass
            self.assertIn(str(path), setup_files.reason(caught.exception))

    def test_read(self) -> None:
        """A certificate that is only looked at holds nobody up."""
        path = self.root / "some.pem"
        for plant in PLANTS:
            with trap(self, path, plant):
                self.assertIsNone(present_certificate(str(path)))
                with self.assertRaises((OSError, ValueError)):
                    certificates.refusal(self.new.certificate, self.new.key, str(path))
                with self.assertRaises((OSError, ValueError)):
                    certificates.refusal(self.new.certificate, str(path), self.authority.file)

    def test_unharmed(self) -> None:
        """Without a trap all of that works."""
        Store(str(self.etc)).check()
        self.assertTrue(self.attempt())


class HeartbeatTests(BeatCase):
    """What is remembered of the heartbeats."""

    def setUp(self) -> None:
        super().setUp()
        self.said: list[str] = []
        self.enterContext(mock.patch.object(journal, "_send", lambda priority, text: self.said.append(text)))
        self.state = Path(self.where.state)

    def try_all(self, *, kept: bool) -> None:
        self.assertEqual(self.record().heard, 0.0, "nothing in a trap is believed")
        self.said.clear()
        self.beat()
        if kept:
            self.assertEqual(self.record().heard, BEAT_NOW)
            info = (self.state / heartbeat.RECORD).lstat()
            self.assertEqual((stat.S_IMODE(info.st_mode), info.st_uid), (0o600, os.geteuid()))
        else:
            self.assertEqual(self.record().heard, 0.0)
            self.assertRegex(" ".join(self.said), f"heartbeat not remembered.*{self.state}")

    def test_record(self) -> None:
        """At the record: it is replaced, and never written through; the heartbeat is sent whatever stands there."""
        for plant in PLANTS:
            with trap(self, self.state / heartbeat.RECORD, plant):
                self.try_all(kept=plant.__name__ != "directory")

    def test_state(self) -> None:
        """At its directory: nothing is written behind it."""
        for plant in DIRECTORY_PLANTS:
            with trap(self, self.state, plant):
                self.try_all(kept=plant.__name__ == "directory")

    def test_temporary(self) -> None:
        """At the very name of the temporary file: nothing is written there, and nothing taken away."""
        path = self.state / f"{heartbeat.RECORD}{setup_files.TEMPORARY}{fixed(6).hex()}"
        for plant in PLANTS:
            with trap(self, path, plant), mock.patch.object(os, "urandom", fixed):
                self.try_all(kept=False)
                self.assertTrue(os.path.lexists(path))

    def test_damaged(self) -> None:
        """Numbers that are none, or no dates, are nothing remembered."""
        self.state.mkdir(0o700)
        path = self.state / heartbeat.RECORD
        for number in ("NaN", "Infinity", "-5", "1e300", "9" * 400, "true"):
            for name in ("heard", "tried", "ahead"):
                value = {"heard": 1, "tried": 1, "problem": "", "ahead": 1, name: "@"}
                path.write_text(json.dumps(value).replace('"@"', number))
                path.chmod(0o600)
                with self.subTest(f"{name} {number[:9]}"):
                    if (name, number) == ("ahead", "-5"):
                        self.assertEqual(self.record().ahead, -5)
                    else:
                        self.assertEqual((self.record().heard, self.record().ahead), (0.0, None))

    def test_release(self) -> None:
        """At the name of the system, which is a link nearly everywhere: followed, but not waited for."""
        path = self.root / "os-release"
        for plant in PLANTS:
            with trap(self, path, plant):
                self.assertEqual(os_info((str(path),), "x86_64"), "linux/amd64")


class LookingTests(HostCase):
    """``status`` and ``doctor``."""

    PATHS = (
        "etc/identree/client.crt",
        "etc/identree/client.key",
        "etc/identree/ca.crt",
        "etc/identree-breakglass",
        "etc/identree-breakglass.pending",
        "etc/identree-breakglass.signal",
        "etc/pam.d/sudo",
        "etc/cron.d/identree",
        "run/identree",
        "run/identree/web01",
        "usr/local/bin/identree",
        "var/state",
        "var/state/heartbeat.json",
        "var/run/identree-breakglass-used",
    )

    def setUp(self) -> None:
        super().setUp()
        self.conf["IDENTREE_TOKEN_CACHE_ISSUER"] = "https://id.example.com"
        self.conf["IDENTREE_TOKEN_CACHE_CLIENT_ID"] = "identree"
        self.sssd = {}
        # without systemd the cron table is read
        shutil.rmtree(self.root / "run/systemd")

    def look(self, name: str, plant: Plant, act: Callable[[], str]) -> None:
        path = self.root / name
        saved = self.root.parent / f"{self.root.name}-saved"
        there = os.path.lexists(path)
        if there:
            self.addCleanup(take_away, saved)
            path.rename(saved)
        with trap(self, path, plant):
            said = act()
            self.assertNotIn(OLD_HASH, said)
            self.assertTrue(os.path.lexists(path), "looking changes nothing")
        if there:
            saved.rename(path)

    def status(self) -> str:
        found = Status(self.write(), root=str(self.root), agent=AGENT, where=self.where)
        return "\n".join([*found.lines(), json.dumps(found.facts)])

    def doctor(self) -> str:
        examined = Doctor(self.write(), self.commands, root=str(self.root), agent=AGENT, where=self.where)
        return "\n".join(f"{each.id} {each.text} {each.remedy}" for each in examined.run().all)

    def test_status(self) -> None:
        """It always has an answer."""
        for name in self.PATHS:
            for plant in PLANTS:
                self.look(name, plant, self.status)

    def test_doctor(self) -> None:
        """It always comes to its end."""
        for name in self.PATHS:
            for plant in READ_PLANTS:
                self.look(name, plant, self.doctor)

    def test_named(self) -> None:
        """It says which certificate is none, and what to do."""
        for name in ("client.crt", "client.key", "ca.crt"):
            for plant in (pipe, endless):
                self.look(f"etc/identree/{name}", plant, functools.partial(self.named, name))

    def named(self, name: str) -> str:
        wrong = [each for each in self.wrong().values() if f"{self.root}/etc/identree/{name}" in each.text]
        self.assertTrue(wrong)
        self.assertTrue(wrong[0].remedy)
        return ""

    def test_linked_cache(self) -> None:
        """A cache behind a link, which is never used, is not said to be well."""
        (self.root / "run/other").mkdir(parents=True)
        for slash in ("", "/"):
            self.conf["IDENTREE_TOKEN_CACHE_DIR"] = f"{self.root}/run/identree{slash}"
            self.look("run/identree", lambda path, victim: path.symlink_to("other"), self.linked)

    def linked(self) -> str:
        self.assertIn("token-cache.directory", self.wrong())
        return ""

    def test_record_behind_link(self) -> None:
        """A heartbeat that somebody left elsewhere is none of this host's."""
        Record(5.0, 5.0).write(f"{self.root}/other")
        self.look("var/state", lambda path, victim: path.symlink_to(self.root / "other"), self.never)

    def never(self) -> str:
        self.assertEqual(Record.read(self.where.state).heard, 0.0)
        return self.status()


if __name__ == "__main__":
    unittest.main()
