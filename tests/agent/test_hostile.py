"""
Traps at every path that the agent reads or writes: links, pipes, directories, devices, other people's files.

Whatever stands there: it is not followed, nothing waits for it, nothing in it is believed or overwritten, and the error
says which file it is about.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import tempfile
import threading
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from identree.agent import breakglass, config, journal, places, rotation, setup_files, wire
from identree.agent.bcrypt import Bcrypt
from identree.agent.breakglass import Limit, Pending
from identree.agent.config import Config, ConfigError
from identree.agent.places import PENDING, SIGNAL, Places
from identree.agent.rotation import Rotation, RotationError
from identree.agent.watch import Watch
from identree.agent.wire import Client, Unreachable, WireError
from tests.agent.harness import Helper, archive
from tests.agent.scripted import SECRET, Answer, ScriptedServer, approved, created, in_turn
from tests.agent.setuphost import DEBIAN, MadeUpHost

BCRYPT = Bcrypt()
OLD = "the-old-one"
OLD_HASH = BCRYPT.hash(OLD, 4)
NOW = 1_780_000_000
STRANGER = 12345

# Nothing here takes as long, on any machine; what blocks, blocks for ever.
BLOCKED_SECONDS = 60


@contextlib.contextmanager
def not_blocking() -> Iterator[None]:
    """Fail instead of hanging in a system call."""

    def blocked(number: int, frame: object) -> None:
        raise AssertionError("it waits for what was planted")

    before = signal.signal(signal.SIGALRM, blocked)
    signal.alarm(BLOCKED_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Victim:
    """Somebody's directory with things in it, that traps lead to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "precious"
        self.inner = directory / "inside"
        directory.mkdir()
        self.inner.mkdir(mode=0o700)
        # exactly what the agent would take for its own, but for the name
        self.file.write_text(f"{OLD_HASH}\n")
        self.file.chmod(0o600)
        os.utime(self.file, (NOW - 86400, NOW - 86400))
        self._before = self._look()

    def _look(self) -> list[object]:
        found: list[object] = []
        for path in sorted(self.directory.rglob("*")):
            info = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found.append((str(path), info.st_mode, info.st_uid, int(info.st_mtime), content))
        # the time of a directory tells of what was made and removed in it
        return found

    def harm(self) -> str:
        """What was done to it; empty when it is as it was."""
        now = self._look()
        return "" if now == self._before else f"{self._before} became {now}"


def symlink(path: Path, victim: Victim) -> None:
    path.symlink_to(victim.file)


def dangling(path: Path, victim: Victim) -> None:
    path.symlink_to(victim.directory / "not-there")


def circle(path: Path, victim: Victim) -> None:
    path.symlink_to(path.name)


def to_directory(path: Path, victim: Victim) -> None:
    path.symlink_to(victim.inner)


def hard_link(path: Path, victim: Victim) -> None:
    os.link(victim.file, path)


def pipe(path: Path, victim: Victim) -> None:
    os.mkfifo(path, 0o600)


def directory(path: Path, victim: Victim) -> None:
    path.mkdir()
    (path / "something").touch()


def local_socket(path: Path, victim: Victim) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def foreign(path: Path, victim: Victim) -> None:
    path.write_text(f"{OLD_HASH}\n")
    path.chmod(0o600)
    os.chown(path, STRANGER, STRANGER)


def writable(path: Path, victim: Victim) -> None:
    path.write_text(f"{OLD_HASH}\n")
    path.chmod(0o666)


def endless(path: Path, victim: Victim) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    path.chmod(0o600)


def device(path: Path, victim: Victim) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero


PLANTS: tuple[Callable[[Path, Victim], None], ...] = (
    symlink,
    dangling,
    circle,
    to_directory,
    hard_link,
    pipe,
    directory,
    local_socket,
    foreign,
    writable,
    endless,
    device,
)


class PlantedTestCase(unittest.TestCase):
    def setUp(self) -> None:
        self.said: list[str] = []
        self.enterContext(mock.patch.object(journal, "_send", lambda priority, text: self.said.append(text)))

    @contextlib.contextmanager
    def planted(self, name: str, plant: Callable[[Path, Victim], None]) -> Iterator[Path]:
        """A directory with a trap in it by ``name``; afterwards the victim has to be as it was."""
        with tempfile.TemporaryDirectory(prefix="identree-") as made:
            base = Path(made)
            victim = Victim(base / "victim")
            home = base / "home"
            (home / "state").mkdir(parents=True, mode=0o700)
            path = home / name
            if path.is_dir():
                path.rmdir()
            try:
                plant(path, victim)
            except PermissionError as e:
                if plant is not device:
                    raise
                self.skipTest(f"no devices here: {e}")  # a container without the right to make them
            with self.subTest(f"{plant.__name__} at {name}"), not_blocking():
                yield home
                self.assertEqual(victim.harm(), "")


class RotationTests(PlantedTestCase):
    """``rotate-breakglass`` and the automatic rotation."""

    def rotation(self, home: Path, vault: list[str]) -> Rotation:
        made = Config("f", {"IDENTREE_HOSTNAME": "web01", "IDENTREE_BREAKGLASS_FILE": str(home / "hash")}, server=False)
        made.bcrypt_cost = 4
        self.config = made

        class Escrow:
            detail = ""

            def store(self, password: str) -> str:
                vault.append(password)
                return rotation.STORED

        self.escrow = Escrow()
        return Rotation(made, self.escrow, bcrypt=BCRYPT, now=lambda: NOW)  # type: ignore[arg-type]

    def put_old(self, home: Path) -> None:
        if not os.path.lexists(home / "hash"):
            (home / "hash").write_text(f"{OLD_HASH}\n")
            (home / "hash").chmod(0o600)

    def test_side_files(self) -> None:
        """At the lock, the pending password or the remembered signal: either it is replaced, or named in the error."""
        for suffix in (places.LOCK, PENDING, SIGNAL):
            for plant in PLANTS:
                with self.planted("hash" + suffix, plant) as home:
                    self.put_old(home)
                    vault: list[str] = []
                    rotated = self.rotation(home, vault)
                    try:
                        with rotated.locked():
                            rotated.settle()
                            rotated.rotate()
                            rotated.honour("2026-01-01T00:00:00Z")
                    except (RotationError, OSError) as e:
                        self.assertIn(str(home / "hash"), str(e))
                    # some password opens: the new one, when the vault has it, else the old one
                    right = (vault or [OLD])[-1]
                    self.assertTrue(breakglass.matches(str(home / "hash"), right.encode(), BCRYPT))

    def test_hash(self) -> None:
        """In the place of the hash: nothing is written through it, and no trap opens anything."""
        for plant in PLANTS:
            with self.planted("hash", plant) as home:
                regular = (home / "hash").is_file() and not (home / "hash").is_symlink()
                if plant is not hard_link:  # another name of root's own file is root's own file
                    self.assertFalse(breakglass.matches(str(home / "hash"), OLD.encode(), BCRYPT))
                vault: list[str] = []
                rotated = self.rotation(home, vault)
                try:
                    with rotated.locked():
                        rotated.settle()
                        rotated.rotate()
                except RotationError as e:
                    self.assertFalse(regular, e)
                    self.assertIn(str(home / "hash"), str(e))
                    self.assertEqual(vault, [], "nobody may learn a password that does not count")
                else:
                    self.assertTrue(regular)
                    self.assertTrue(breakglass.matches(str(home / "hash"), vault[-1].encode(), BCRYPT))
                    info = (home / "hash").lstat()
                    self.assertEqual((stat.S_IMODE(info.st_mode), info.st_uid), (0o600, os.geteuid()))

    def test_temporary_names(self) -> None:
        """What bears the name of a temporary file goes, its target does not; a directory of that name stops nothing."""
        for plant in PLANTS:
            with self.planted(rotation.TEMPORARY + "0123456789abcdef", plant) as home:
                self.put_old(home)
                vault: list[str] = []
                rotated = self.rotation(home, vault)
                with rotated.locked():
                    rotated.settle()
                    rotated.rotate()
                self.assertTrue(breakglass.matches(str(home / "hash"), vault[-1].encode(), BCRYPT))

    def test_marks(self) -> None:
        """At the marks of the last attempt and the last warning, too: no exception, and the sudo is long through."""
        for name in ("identree-breakglass-attempt", "identree-breakglass-warned"):
            for plant in PLANTS:
                with self.planted(name, plant) as home:
                    self.put_old(home)
                    old = NOW - 200 * 86400
                    os.utime(home / "hash", (old, old))
                    vault: list[str] = []
                    self.rotation(home, vault)
                    self.config.hostname = ""  # a failure, which is to be remembered
                    with mock.patch.object(breakglass, "lift_limits"), mock.patch.object(rotation, "lift_limits"):
                        rotation.automatic(
                            self.config,
                            "",
                            escrow=self.escrow,  # type: ignore[arg-type]
                            bcrypt=BCRYPT,
                            now=lambda: NOW,
                            where=Places(str(home), str(home / "state")),
                        )

    def test_pending_is_no_backdoor(self) -> None:
        """Somebody else's pending password opens nothing."""
        text = Pending("theirs", "random", NOW).text("web01")
        for owner, mode in ((STRANGER, 0o600), (os.geteuid(), 0o622), (os.geteuid(), 0o644)):
            with tempfile.TemporaryDirectory() as made:
                home = Path(made)
                self.put_old(home)
                pending = home / ("hash" + PENDING)
                pending.write_text(text)
                pending.chmod(mode)
                os.chown(pending, owner, -1)
                self.assertFalse(breakglass.matches(str(home / "hash"), b"theirs", BCRYPT), (owner, oct(mode)))
                self.assertTrue(breakglass.matches(str(home / "hash"), OLD.encode(), BCRYPT))

    def test_read_only(self) -> None:
        """A file system that takes nothing: an error that names the file, and the old password counts."""
        with tempfile.TemporaryDirectory() as made:
            home = Path(made)
            self.put_old(home)
            vault: list[str] = []
            rotated = self.rotation(home, vault)
            with rotated.locked():
                full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                with mock.patch.object(rotation.Disk, "write", side_effect=full), self.assertRaises(OSError) as caught:
                    rotated.rotate()
            self.assertIn(str(home / "hash"), str(caught.exception))
            self.assertEqual(vault, [])
            self.assertEqual(sorted(path.name for path in home.iterdir()), ["hash", "hash.lock"])
            self.assertTrue(breakglass.matches(str(home / "hash"), OLD.encode(), BCRYPT))


class LimitTests(PlantedTestCase):
    """The count of wrong passwords."""

    def test_planted(self) -> None:
        """It counts whatever stood there; where it cannot, it says so, and the caller waits instead."""
        for plant in PLANTS:
            with self.planted("failures", plant) as home:
                limit = Limit(str(home / "failures"), lambda: float(NOW))
                try:
                    for _ in range(4):
                        limit.count()
                    self.assertGreater(limit.count(), 0, "the fifth has to wait")
                    info = (home / "failures").lstat()
                    self.assertEqual((stat.S_IMODE(info.st_mode), info.st_uid), (0o600, os.geteuid()))
                    limit.clear()
                    self.assertEqual(limit.seconds_left(), 0)
                except OSError as e:
                    self.assertIs(plant, directory, e)
                    limit.clear()  # no exception

    def test_full_disk(self) -> None:
        """A disk that is full forgets no failure."""
        with tempfile.TemporaryDirectory() as made:
            path = os.path.join(made, "failures")
            limit = Limit(path, lambda: float(NOW))
            for _ in range(3):
                self.assertEqual(limit.count(), 0)
            limit = Limit(path, lambda: float(NOW + 60))
            full = OSError(errno.ENOSPC, "full")
            with (
                mock.patch.object(os, "pwrite", side_effect=full),
                mock.patch.object(os, "write", side_effect=full),
                self.assertRaises(OSError),
            ):
                limit.count()
            self.assertEqual(Path(path).read_text(), f"3 {NOW}")

    def test_somebody_holds_the_lock(self) -> None:
        """A lock that is never released delays an attempt, and no more."""
        with tempfile.TemporaryDirectory() as made, not_blocking():
            path = os.path.join(made, "failures")
            with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600)) as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                self.assertEqual(Limit(path, lambda: float(NOW)).count(), 0)


class UsesTests(PlantedTestCase):
    """The records of uses, until the server has heard of them."""

    def test_planted(self) -> None:
        """A trap at one of the two costs at most this one; the use is on record and is reported."""
        server = ScriptedServer(lambda request: Answer(200, {}))
        self.addCleanup(server.stop)
        for name in ("identree-breakglass-used", "state/breakglass-used", "state"):
            for plant in PLANTS:
                with self.planted(name, plant) as home:
                    where = Places(str(home), str(home / "state"))
                    breakglass.record_use("web01", "alice", NOW, where)
                    self.assertEqual(breakglass.pending_reports(where), [f"web01 alice {NOW}"])
                    values = {"IDENTREE_SERVER_URL": server.url, "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true"}
                    client = Client(Config("f", values), Watch(parent=False))
                    count = len(server.requests)
                    self.assertEqual(breakglass.flush_reports(client, 30, where), 0)
                    self.assertEqual(len(server.requests), count + 1)
                    self.assertEqual(breakglass.pending_reports(where), [])

    def test_forged(self) -> None:
        """What others wrote is not reported: nobody can tell the server of uses that were none."""
        for owner, mode in ((STRANGER, 0o600), (os.geteuid(), 0o666)):
            with tempfile.TemporaryDirectory() as made:
                where = Places(made, made + "/state")
                Path(where.used).write_text(f"web01 mallory {NOW}\n")
                os.chmod(where.used, mode)
                os.chown(where.used, owner, -1)
                self.assertEqual(breakglass.pending_reports(where), [])

    def test_open_directory(self) -> None:
        """A state directory that others can write to is not used."""
        with tempfile.TemporaryDirectory() as made:
            where = Places(made, made + "/state")
            os.mkdir(where.state)
            os.chmod(where.state, 0o777)
            breakglass.record_use("web01", "alice", NOW, where)
            self.assertFalse(os.path.exists(where.kept))
            self.assertIn("uses do not survive a restart", " ".join(self.said))


class ConfigurationTests(PlantedTestCase):
    """``client.conf`` and the certificates that it names."""

    def test_planted(self) -> None:
        """It is believed only as a regular file that nobody else could have written; the error names it."""
        for plant in PLANTS:
            with self.planted("client.conf", plant) as home:
                path = str(home / "client.conf")
                if plant is hard_link:
                    config.load(path, server=False)  # another name of root's own file is root's own file
                    continue
                with self.assertRaisesRegex(ConfigError, path):
                    config.load(path, server=False)

    def test_certificates(self) -> None:
        """OpenSSL is not sent to a pipe, a device or a file without end, where it would stay."""
        for key in ("IDENTREE_CA_CERT", "IDENTREE_CLIENT_CERT", "IDENTREE_CLIENT_KEY"):
            for plant in PLANTS:
                with self.planted("file.pem", plant) as home:
                    other = str(home.parent / "victim" / "precious")
                    values = {
                        "IDENTREE_SERVER_URL": "https://id.example.com",
                        "IDENTREE_CLIENT_CERT": other,
                        "IDENTREE_CLIENT_KEY": other,
                        key: str(home / "file.pem"),
                    }
                    with self.assertRaisesRegex(ConfigError, "IDENTREE_C"):
                        Client(Config("f", values), Watch(parent=False))

    def test_helper(self) -> None:
        """The PAM helper itself ends at once with one line, whatever its certificates are."""
        with tempfile.TemporaryDirectory() as made:
            path = os.path.join(made, "ca.pem")
            os.mkfifo(path)
            helper = Helper(None, conf={"IDENTREE_SERVER_URL": "https://127.0.0.1:1", "IDENTREE_CA_CERT": path})
            self.addCleanup(helper.close)
            self.assertEqual(helper.run(), 1)
            self.assertIn(f"IDENTREE_CA_CERT {path} cannot be used: it is not a regular file", helper.output)


class SetupTests(MadeUpHost):
    """``identree setup`` below a root with traps in it."""

    PATHS = (
        "var/lib/identree",
        "var/lib/identree/setup.json",
        "etc/identree/client.conf",
        "etc/pam.d/sudo",
        "etc/pam.d/sudo.identree.bak",
        "etc/pam.d/sudo.identree-setup-0123456789ab",
        "etc/audit/rules.d/90-identree.rules",
        "etc/cron.d/identree",
    )

    def test_planted(self) -> None:
        """It is either done or not done at all; PAM's files are whole, and nothing outside the root changes."""
        for name in self.PATHS:
            for plant in PLANTS:
                with self.subTest(f"{plant.__name__} at {name}"), not_blocking():
                    self._try(name, plant)

    def _try(self, name: str, plant: Callable[[Path, Victim], None]) -> None:
        base = Path(tempfile.mkdtemp(prefix="identree-"))
        self.addCleanup(shutil.rmtree, base, True)
        victim = Victim(base / "victim")
        self.debian()
        shutil.rmtree(self.root / "var", ignore_errors=True)
        for each in ("var/lib", "etc/audit/rules.d", "etc/cron.d"):
            (self.root / each).mkdir(parents=True, exist_ok=True)
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        saved = path.read_bytes() if path.is_file() else None
        if saved is not None:
            path.unlink()
        try:
            plant(path, victim)
        except PermissionError as e:
            if plant is not device:
                raise
            self.skipTest(f"no devices here: {e}")
        try:
            code = self.setup("--auditd", "--timers")
            self.assertNotIn("internal error", self.said)
            self.assertEqual(victim.harm(), "")
            if code:
                self.assertRegex(self.said, f"{self.root}|/{name}", "the error names the file")
                if name != "etc/pam.d/sudo":
                    self.assertEqual(self.sudo.read_bytes(), DEBIAN)
            self.assertEqual(self.login.read_bytes().count(b"pam_exec"), 0 if code else 1)
            code = self.setup("--remove", "--keep-files")
            self.assertEqual(victim.harm(), "")
            if name != "etc/pam.d/sudo":
                self.assertEqual(self.sudo.read_bytes(), DEBIAN)
            self.assertEqual(self.login.read_bytes(), DEBIAN)
        finally:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            if saved is not None:
                path.write_bytes(saved)
                path.chmod(0o600)

    def test_forged_journal(self) -> None:
        """A journal that somebody else wrote takes nothing away from anybody."""
        prey = self.root / "etc/passwd"
        prey.write_text("root:x:0:0::/root:/bin/sh\n")
        state = self.root / "var/lib/identree"
        state.mkdir(parents=True, mode=0o700)
        entry = setup_files.Entry(existed=False, was="", own=True)
        forged = {"version": 1, "files": {"/etc/passwd": entry.as_dict()}, "directories": [], "facts": {}}
        for owner, mode in ((STRANGER, 0o600), (os.geteuid(), 0o666)):
            path = state / "setup.json"
            path.write_text(json.dumps({**forged, "watching": {}}))
            path.chmod(mode)
            os.chown(path, owner, -1)
            for arguments in (("--remove",), ()):
                self.assertEqual(self.setup(*arguments), 1, self.said)
                self.assertIn("setup.json could have been written by others", self.said)
                self.assertTrue(prey.exists())


class SetupLockTests(PlantedTestCase):
    """The lock of a set-up of the running system."""

    def test_out_of_reach(self) -> None:
        """Whoever locks the root directory, as everybody can, keeps no set-up from running; nothing is left of it."""
        with tempfile.TemporaryDirectory() as made:
            path = Path(made) / "shadow"
            path.write_text("precious")
            path.chmod(0o640)
            held = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with (
                    mock.patch.object(setup_files, "SETUP_LOCK", str(path)),
                    setup_files.Lock("/"),
                    self.assertRaisesRegex(setup_files.SetupError, "another"),
                    setup_files.Lock("/"),
                ):
                    pass
            finally:
                os.close(held)
            self.assertEqual([(each.name, each.read_text()) for each in Path(made).iterdir()], [("shadow", "precious")])

    def test_planted(self) -> None:
        """What strangers could open is not used; the root directory is then."""
        for plant in PLANTS:
            if plant in (hard_link, endless):
                continue  # private files: nothing is read of them or written
            with (
                self.planted("shadow", plant) as home,
                mock.patch.object(setup_files, "SETUP_LOCK", str(home / "shadow")),
            ):
                self.assertEqual(setup_files.Lock("/")._path, "/")


class ResourceTests(unittest.TestCase):
    """What runs out here says nothing about the server."""

    def client(self, url: str) -> Client:
        return Client(
            Config("f", {"IDENTREE_SERVER_URL": url, "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true"}),
            Watch(parent=False),
        )

    def test_sockets(self) -> None:
        """No descriptor, no memory, no buffers: an error, but not an unreachable server."""
        for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
            failing = mock.Mock(side_effect=OSError(code, os.strerror(code)))
            with mock.patch.object(wire.socket, "socket", failing), self.assertRaises(WireError):
                self.client("http://127.0.0.1:1").request("GET", "/")

    def test_other_family(self) -> None:
        """A kernel without IPv6 is one: there is no way to that address."""
        failing = mock.Mock(side_effect=OSError(errno.EAFNOSUPPORT, "no"))
        with mock.patch.object(wire.socket, "socket", failing), self.assertRaises(Unreachable):
            self.client("http://[::1]:1").request("GET", "/")

    def test_names(self) -> None:
        """Neither are a resolver without memory or descriptors, and a limit on threads."""
        numeric = socket.gaierror(socket.EAI_NONAME, "not a number")
        for failure in (
            socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure"),
            OSError(errno.EMFILE, "Too many open files"),
            MemoryError(),
        ):
            with (
                mock.patch.object(wire.socket, "getaddrinfo", side_effect=[numeric, failure]),
                self.assertRaises(WireError),
            ):
                self.client("http://id.example.com").request("GET", "/")
        with (
            mock.patch.object(wire.socket, "getaddrinfo", side_effect=numeric),
            mock.patch("_thread.start_new_thread", side_effect=RuntimeError("can't start new thread")),
            self.assertRaises(WireError),
        ):
            self.client("http://id.example.com").request("GET", "/")

    def test_unknown_name(self) -> None:
        """A name that has no address is an unreachable server, as before."""
        unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        with (
            mock.patch.object(wire.socket, "getaddrinfo", side_effect=unknown),
            self.assertRaises(Unreachable),
        ):
            self.client("http://id.example.com").request("GET", "/")


class TerminalTests(unittest.TestCase):
    """What PAM_TTY may name."""

    def test_no_terminal(self) -> None:
        """A pipe, a file or a device in its place is not opened for good, and holds nobody up."""
        with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
            fifo, file = os.path.join(made, "fifo"), os.path.join(made, "file")
            os.mkfifo(fifo)
            Path(file).touch()
            for path in (fifo, file, "/dev/null", "/dev/zero", made, f"{made}/../x", "/etc/passwd"):
                helper = Helper(in_turn(created(), approved()))
                try:
                    helper.start(PAM_TTY=path)
                    self.assertEqual(helper.finish(), 0, (path, helper.output))
                    self.assertIn("sudo approved", helper.output)
                finally:
                    helper.close()


class ReplacedTests(unittest.TestCase):
    def test_upgrade_while_waiting(self) -> None:
        """An archive that is replaced under a waiting sudo does not spoil it: what it will need is loaded."""
        decided = threading.Event()

        def script(request):  # type: ignore[no-untyped-def]
            if request.method == "POST":
                return created()
            return Answer(200, approved().body, hold=decided)

        helper = Helper(script, conf={"IDENTREE_SHARED_SECRET": SECRET})
        self.addCleanup(helper.close)
        self.addCleanup(decided.set)
        own = os.path.join(helper.directory, "identree.pyz")
        shutil.copy(archive(), own)
        code = f"import sys, runpy; sys.argv = sys.argv[:1]; runpy.run_path({own!r}, run_name='__main__')"
        helper.start(code=code)
        assert helper.server
        helper.server.wait_for("GET")
        with open(own + ".new", "wb") as file:
            file.write(b"#!/usr/bin/python3 -ISB\nraise SystemExit(1)\n" * 100)
        os.rename(own + ".new", own)
        decided.set()
        self.assertEqual(helper.finish(), 0, helper.output)
        self.assertIn("sudo approved", helper.output)
