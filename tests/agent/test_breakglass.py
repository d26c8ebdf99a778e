"""The break-glass password: its files, the rate limit, the prompt, the reports, and when it is asked for at all."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import stat
import string
import subprocess
import sys
import tempfile
import termios
import threading
import time
import unittest
from pathlib import Path

from identree.agent import breakglass, messages, outage, places
from identree.agent.bcrypt import Bcrypt
from identree.agent.breakglass import HashError, Limit, Pending
from identree.agent.config import Config
from identree.agent.places import Places
from identree.agent.watch import Watch
from identree.agent.wire import Client
from tests.agent.harness import Helper, archive, interpreters
from tests.agent.scripted import SECRET, Answer, Script, ScriptedServer, approved, created, in_turn, pending, token

PASSWORD = "correct-horse"
DIGEST = Bcrypt().hash(PASSWORD, 4)
BCRYPT = Bcrypt()

# The agent with its fixed places below a directory of the test, and a system log on standard error.
PROGRAM = """
import os, sys, types
fake = types.ModuleType("syslog")
fake.LOG_PID, fake.LOG_AUTHPRIV, fake.LOG_WARNING, fake.LOG_INFO, fake.LOG_ERR = 1, 80, 4, 6, 3
fake.openlog = fake.closelog = lambda *a: None
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
fake.syslog = lambda priority, text: open({log!r}, "a").write(f"{{priority}} {{text}}\\n")
sys.modules["syslog"] = fake
sys.path.insert(0, sys.argv.pop(1))
from identree.agent import config, places
config.DEFAULT_PATH = os.environ.get("IDENTREE_CLIENT_CONF", config.DEFAULT_PATH)
places.PLACES.__init__({run!r}, {state!r})
from identree.agent.main import main
main()
"""


class Directory(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        self.where = Places(str(self.directory), str(self.directory / "state"))
        self.file = str(self.directory / "hash")
        self.clock = 1_700_000_000.0

    def now(self) -> float:
        return self.clock

    def put(self, path: str, text: str, mode: int = 0o600) -> None:
        Path(path).write_text(text)
        os.chmod(path, mode)

    def link(self, path: str) -> Path:
        """A planted symbolic link in place of ``path``, and what it must not touch."""
        victim = self.directory / "victim"
        victim.write_text("precious")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.symlink(victim, path)
        return victim


class HashFileTests(Directory):
    def test_format(self) -> None:
        """Comments and blank lines are passed over, the first other line is the hash."""
        self.put(self.file, f"# identree breakglass host=x\n\n  {DIGEST}  \nmore")
        self.assertEqual(breakglass.read_hash(self.file), DIGEST)

    def test_refused(self) -> None:
        """Open to others, no file, a link, a directory, garbage, or too far down: no hash, and the text says why."""
        for text, mode, words in (
            (DIGEST, 0o640, "mode 600"),
            ("nonsense\n" + DIGEST, 0o600, "no bcrypt hash"),
            ("#" * 600 + "\n" + DIGEST, 0o600, "no bcrypt hash"),
            ("", 0o600, "no bcrypt hash"),
        ):
            self.put(self.file, text, mode)
            with self.assertRaisesRegex(HashError, words):
                breakglass.read_hash(self.file)
        self.link(self.file)
        with self.assertRaisesRegex(HashError, "symbolic link"):
            breakglass.read_hash(self.file)
        with self.assertRaisesRegex(HashError, "does not exist"):
            breakglass.read_hash(self.file + "x")
        with self.assertRaisesRegex(HashError, "regular file"):
            breakglass.read_hash(str(self.directory))

    def test_owner(self) -> None:
        """A hash that another user could have written does not count."""
        self.put(self.file, DIGEST)
        os.chown(self.file, 12345, 12345)
        with self.assertRaisesRegex(HashError, "12345"):
            breakglass.read_hash(self.file)

    def test_fifo(self) -> None:
        """A pipe in its place does not hold anybody up."""
        os.mkfifo(self.file, 0o600)
        with self.assertRaises(HashError):
            breakglass.read_hash(self.file)

    def test_usable(self) -> None:
        """A regular file makes it usable, a link does not, and a first password on its way does."""
        self.assertFalse(places.usable(self.file))
        self.put(self.file + places.PENDING, "x")
        self.assertTrue(places.usable(self.file))
        self.link(self.file)
        self.assertFalse(places.usable(self.file))
        os.unlink(self.file)
        self.put(self.file, "x")
        self.assertTrue(places.usable(self.file))

    def test_matches(self) -> None:
        """The password of the hash opens, and so does the one whose way into the vault is not settled."""
        self.put(self.file, DIGEST)
        self.put(self.file + places.PENDING, Pending("new", "random", 1_700_000_000).text("web01"))
        for typed, right in ((PASSWORD.encode(), True), (b"new", True), (b"old", False), (b"", False)):
            self.assertEqual(breakglass.matches(self.file, typed, BCRYPT), right, typed)

    def test_switched_off_by_link(self) -> None:
        """Where somebody made the hash a link, nothing opens, not even the password on its way."""
        self.link(self.file)
        self.put(self.file + places.PENDING, Pending("new", "random", 1_700_000_000).text("web01"))
        self.assertFalse(breakglass.matches(self.file, b"new", BCRYPT))

    def test_equal_work(self) -> None:
        """Without a usable hash as much is computed, and nothing opens."""
        asked: list[bytes] = []

        def crypt(password: bytes, setting: bytes) -> bytes:
            asked.append(setting)
            return setting

        self.assertFalse(breakglass.matches(self.file, b"x", Bcrypt(crypt)))
        self.assertEqual(asked, [breakglass.DUMMY.encode()])

    def test_pending(self) -> None:
        """What was written is read again; anything else is an error, not a password."""
        path = self.file + places.PENDING
        self.assertIsNone(breakglass.read_pending(self.file))
        self.put(path, Pending("a-b", "passphrase", 1_700_000_000).text("web01"))
        found = breakglass.read_pending(self.file)
        assert found
        self.assertEqual((found.password, found.kind, found.created), ("a-b", "passphrase", 1_700_000_000))
        for text in ("", "x\ny\n", Path(path).read_text()[:-1], Path(path).read_text() + "z\n"):
            self.put(path, text)
            with self.assertRaises(HashError):
                breakglass.read_pending(self.file)


class LimitTests(Directory):
    def setUp(self) -> None:
        super().setUp()
        self.limit = Limit(self.where.failures, self.now)

    def test_doubling(self) -> None:
        """Three are free, then one has to wait 1, 2, 4 … 256 seconds; whoever is too early is not counted."""
        waits = []
        for _ in range(13):
            left = self.limit.count()
            waits.append(left)
            if left:
                self.assertEqual(self.limit.seconds_left(), left)
                self.clock += left
                self.assertEqual(self.limit.count(), 0)
        self.assertEqual(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 256])

    def test_format(self) -> None:
        """The file is as deployed agents write and read it."""
        self.limit.count()
        self.assertEqual(Path(self.where.failures).read_text(), "1 1700000000")
        self.assertEqual(stat.S_IMODE(os.stat(self.where.failures).st_mode), 0o600)

    def test_other_time_format(self) -> None:
        """A time in RFC 3339 is understood."""
        self.put(self.where.failures, "5 2023-11-14T22:13:20Z")
        self.assertEqual(self.limit.seconds_left(), 4)

    def test_nonsense(self) -> None:
        """What makes no sense is no failure."""
        for text in ("", "x", "1", "1 2 3", "-5 1700000000", "9 soon"):
            self.put(self.where.failures, text)
            self.assertEqual(self.limit.seconds_left(), 0, text)

    def test_cleared(self) -> None:
        """A right password forgets the failures; looking at none creates none."""
        self.limit.count()
        self.limit.clear()
        self.assertEqual(self.limit.seconds_left(), 0)
        self.assertFalse(os.path.exists(self.where.failures))

    def test_clock_went_back(self) -> None:
        """A failure in the future makes nobody wait until then."""
        self.put(self.where.failures, "5 1900000000")
        self.assertEqual(self.limit.seconds_left(), 4)
        self.clock += 4
        self.assertEqual(self.limit.seconds_left(), 0)

    def test_planted(self) -> None:
        """A link or another's file is replaced; nothing is written through it."""
        victim = self.link(self.where.failures)
        self.assertEqual(self.limit.count(), 0)
        self.assertEqual(victim.read_text(), "precious")
        self.assertEqual(Path(self.where.failures).read_text(), "1 1700000000")
        os.chmod(self.where.failures, 0o666)
        self.limit.count()
        self.assertEqual(Path(self.where.failures).read_text(), "1 1700000000")

    def test_many_at_once(self) -> None:
        """However many prompts are open at a time, four passwords are compared and no more."""
        results: list[int] = []
        threads = [threading.Thread(target=lambda: results.append(self.limit.count())) for _ in range(30)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual(results.count(0), 3)

    def test_unwritable(self) -> None:
        """When it cannot be known the caller is told."""
        os.mkdir(self.where.failures)
        with self.assertRaises(OSError):
            self.limit.count()


class ReportTests(Directory):
    def setUp(self) -> None:
        super().setUp()
        self.status = [200]
        self.server = ScriptedServer(
            lambda request: Answer(self.status.pop(0) if len(self.status) > 1 else self.status[0], {})
        )
        self.addCleanup(self.server.stop)
        self.config = Config(
            "f",
            {
                "IDENTREE_SERVER_URL": self.server.url,
                "IDENTREE_SHARED_SECRET": SECRET,
                "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true",
                "IDENTREE_HOSTNAME": "web01",
            },
        )

    def client(self) -> Client:
        return Client(self.config, Watch(parent=False))

    def use(self, *users: str) -> None:
        for number, user in enumerate(users):
            breakglass.record_use("web01", user, 1_700_000_000 + number, self.where)

    def flush(self) -> int:
        return breakglass.flush_reports(self.client(), 20, self.where)

    def test_format(self) -> None:
        """A line of host, user and seconds, in the file that auditd watches and in the one that survives a reboot."""
        self.use("alice")
        for path in (self.where.used, self.where.kept):
            self.assertEqual(Path(path).read_text(), "web01 alice 1700000000\n")
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)

    def test_sent(self) -> None:
        """Each use is reported once, with the secret, and then forgotten."""
        self.use("alice", "bob")
        self.assertEqual(self.flush(), 0)
        self.assertEqual(
            [request.json for request in self.server.requests],
            [
                {"hostname": "web01", "username": "alice", "timestamp": 1_700_000_000},
                {"hostname": "web01", "username": "bob", "timestamp": 1_700_000_001},
            ],
        )
        self.assertEqual({request.path for request in self.server.requests}, {"/api/breakglass/report"})
        self.assertEqual(self.server.requests[0].headers["x-shared-secret"], SECRET)
        self.assertFalse(places.to_report(self.where))
        self.assertEqual(self.flush(), 0)
        self.assertEqual(len(self.server.requests), 2)

    def test_rest_is_kept(self) -> None:
        """What the server did not take stays, in both files; the taken one does not come again."""
        self.use("alice", "bob", "carol")
        self.status[:] = [200, 503]
        self.assertEqual(self.flush(), 2)
        for path in (self.where.used, self.where.kept):
            self.assertEqual(Path(path).read_text(), "web01 bob 1700000001\nweb01 carol 1700000002\n")
        self.assertEqual(len(self.server.requests), 2)
        self.status[:] = [200]
        self.assertEqual(self.flush(), 0)
        self.assertEqual(len(self.server.requests), 4)

    def test_bad_one_holds_up_nobody(self) -> None:
        """A use that the server calls bad stays on record and does not keep the others from being reported."""
        self.use("alice", "bob")
        self.status[:] = [400, 200]
        self.assertEqual(self.flush(), 1)
        self.assertEqual(Path(self.where.kept).read_text(), "web01 alice 1700000000\n")

    def test_after_a_reboot(self) -> None:
        """The copy is enough."""
        self.use("alice")
        os.unlink(self.where.used)
        self.assertEqual(self.flush(), 0)
        self.assertEqual(len(self.server.requests), 1)

    def test_malformed(self) -> None:
        """What is no record is passed over and dropped; half a line is none."""
        self.put(self.where.used, "nonsense\nweb01 alice 17\n a b\nweb01 bob x\nweb01 carol 18")
        self.assertEqual(self.flush(), 0)
        self.assertEqual([request.json["username"] for request in self.server.requests], ["alice"])
        self.assertEqual(Path(self.where.used).read_text(), "")

    def test_unreachable(self) -> None:
        """Without a server nothing is lost."""
        self.use("alice")
        self.server.stop()
        self.assertEqual(self.flush(), 1)
        self.assertEqual(Path(self.where.kept).read_text(), "web01 alice 1700000000\n")

    def test_slow_server(self) -> None:
        """The time is limited in all, not per use."""
        self.use("alice", "bob", "carol")
        never = threading.Event()
        self.addCleanup(never.set)
        self.server.script = lambda request: Answer(200, {}, hold=never)
        self.assertEqual(breakglass.flush_reports(self.client(), 0.3, self.where), 3)
        self.assertEqual(len(self.server.requests), 1)

    def test_one_at_a_time(self) -> None:
        """While one process reports, another leaves it to that one."""
        self.use("alice")
        fd = os.open(self.where.state, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        self.assertTrue(breakglass.lock(fd))
        self.assertEqual(self.flush(), 1)
        self.assertEqual(self.server.requests, [])

    def test_planted(self) -> None:
        """Links and others' files are replaced, and nothing is written through them or believed in them."""
        os.mkdir(self.where.state)
        for path in (self.where.used, self.where.kept):
            victim = self.link(path)
            self.use("alice")
            self.assertEqual(victim.read_text(), "precious")
        self.assertEqual(Path(self.where.kept).read_text(), "web01 alice 1700000000\n")
        os.chmod(self.where.used, 0o666)
        self.put(self.where.kept, "web01 mallory 5\n", 0o666)
        self.assertEqual(breakglass.pending_reports(self.where), [])

    def test_nowhere_to_write(self) -> None:
        """That it cannot be recorded keeps nobody out."""
        where = Places("/proc/nowhere", "/proc/nowhere")
        breakglass.record_use("web01", "alice", 1, where)

    def test_limits_of_the_caller(self) -> None:
        """A caller's ulimit and umask keep no use from being recorded."""
        code = (
            "import os, resource, sys; sys.path.insert(0, sys.argv[1])\n"
            "from identree.agent import breakglass, journal, places\njournal.enabled = False\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))\n"
            "os.umask(0o777)\n"
            "breakglass.lift_limits()\n"
            "breakglass.record_use('web01', 'alice', 1700000000, places.Places(sys.argv[2], sys.argv[2] + '/state'))"
        )
        subprocess.run([sys.executable, "-ISBc", code, archive(), str(self.directory)], check=True, timeout=60)
        self.assertEqual(Path(self.where.kept).read_text(), "web01 alice 1700000000\n")
        self.assertEqual(stat.S_IMODE(os.stat(self.where.kept).st_mode), 0o600)

    def test_full(self) -> None:
        """The record has an end."""
        os.mkdir(self.where.state)
        self.put(self.where.used, "web01 a 1\n" * 7000)
        before = os.path.getsize(self.where.used)
        self.use("alice")
        self.assertEqual(os.path.getsize(self.where.used), before)
        self.assertEqual(Path(self.where.kept).read_text(), "web01 alice 1700000000\n")


class PromptTests(unittest.TestCase):
    """The question at a real terminal."""

    def setUp(self) -> None:
        self.master, self.slave = pty.openpty()
        self.addCleanup(os.close, self.master)
        self.before = termios.tcgetattr(self.slave)
        self.terminal = breakglass.Terminal(self.slave, Watch(parent=False))
        self.addCleanup(self.terminal.close)

    def ask(self, *typed: bytes) -> bytes:
        def type_() -> None:
            os.read(self.master, 100)  # the question stands
            for each in typed:
                os.write(self.master, each)

        thread = threading.Thread(target=type_)
        thread.start()
        try:
            return self.terminal.ask("password: ")
        finally:
            thread.join()
            self.assertEqual(termios.tcgetattr(self.slave), self.before)

    def test_stars(self) -> None:
        """A star per byte; backspace takes one back; other control characters are not part of it."""
        self.assertEqual(self.ask(b"ab\x7fc\x1b\x04\x15\x08d\r"), b"ad")
        shown = b""
        while not shown.endswith(b"\n"):
            shown += os.read(self.master, 1000)
        self.assertEqual(shown.decode().replace("\r\r", "\r"), "**\b \b*\b \b*\r\n")

    def test_line_feed(self) -> None:
        """Either line end ends it, and what comes behind it is not for the shell."""
        self.assertEqual(self.ask(b"x\nrm -rf /\n"), b"x")
        self.assertEqual(os.get_blocking(self.slave), True)

    def test_interrupt(self) -> None:
        """Ctrl-C is the end."""
        from identree.agent.watch import Cancelled

        with self.assertRaises(Cancelled):
            self.ask(b"abc\x03")

    def test_long(self) -> None:
        """Without an end there is a limit."""
        self.assertEqual(len(self.ask(*[b"x" * 100] * 20, b"\n")), breakglass.MAX_TYPED_BYTES)

    def test_hang_up(self) -> None:
        """A terminal that goes away is the end, too."""
        code = (
            "import os, pty, sys\nsys.path.insert(0, sys.argv[1])\nfrom identree.agent import breakglass, watch\n"
            "master, slave = pty.openpty()\nos.close(master)\n"
            "try:\n    breakglass.Terminal(slave, watch.Watch(parent=False)).ask('p: ')\n"
            "except watch.Cancelled:\n    print('cancelled')"
        )
        done = subprocess.run([sys.executable, "-ISBc", code, archive()], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.stdout, "cancelled\n", done.stderr)


class FlowTestCase(Directory):
    """The packed agent at a real terminal, with a hash and its fixed files below a directory of the test."""

    def setUp(self) -> None:
        super().setUp()
        self.put(self.file, f"# comment\n{DIGEST}\n")

    def helper(self, script: Script | None, **conf: str) -> Helper:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        conf = {"IDENTREE_BREAKGLASS_FILE": self.file, "IDENTREE_SYSLOG": "true", **conf}
        if script is None:
            conf.setdefault("IDENTREE_SERVER_URL", f"http://127.0.0.1:{port}")
        helper = Helper(script, conf=conf)
        self.addCleanup(helper.close)
        return helper

    def start(self, helper: Helper, **options: object) -> None:
        code = PROGRAM.format(run=str(self.directory), state=self.where.state, log=str(self.directory / "log"))
        helper.start(code=code, on_terminal=True, **options)  # type: ignore[arg-type]

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def wait_for(self, done, what: str) -> None:  # type: ignore[no-untyped-def]
        until = time.monotonic() + 30
        while not done():
            self.assertLess(time.monotonic(), until, what)
            time.sleep(0.05)


def _number(version: str) -> int:
    return int(version.partition(".")[2])


class UnreachableTests(FlowTestCase):
    def answer(self, typed: str, **conf: str) -> Helper:
        helper = self.helper(None, **conf)
        self.start(helper)
        helper.read_until("break-glass password: ")
        helper.type(typed)
        helper.finish()
        return helper

    def test_right(self) -> None:
        """The right password opens; the use is on record in file and log, the password is nowhere."""
        helper = self.answer(PASSWORD + "\r")
        self.assertEqual(helper.code, 0, helper.terminal)
        self.assertIn("BREAK-GLASS: http://127.0.0.1", helper.terminal)
        self.assertIn("*" * len(PASSWORD), helper.terminal)
        self.assertRegex(Path(self.where.used).read_text(), r"^web01\.example\.com alice \d{10}\n$")
        self.assertIn('4 user=alice result="break-glass opened"', self.log())
        self.assertNotIn(PASSWORD, helper.terminal + helper.output + self.log())

    def test_wrong(self) -> None:
        """A wrong one does not, is counted, and is not a use."""
        helper = self.answer("wrong\r")
        self.assertEqual(helper.code, 1)
        self.assertIn("authentication failed", helper.terminal)
        self.assertTrue(Path(self.where.failures).read_text().startswith("1 "))
        self.assertFalse(os.path.exists(self.where.used))
        self.assertIn('result="break-glass failed"', self.log())

    def test_bad_hash(self) -> None:
        """With a hash file that is not to be trusted it looks like a wrong password; the log knows better."""
        os.chmod(self.file, 0o644)
        helper = self.answer(PASSWORD + "\r")
        self.assertEqual(helper.code, 1)
        self.assertIn("authentication failed", helper.terminal)
        self.assertNotIn("mode 600", helper.terminal)
        self.assertIn("mode 600", self.log())

    def test_cleared(self) -> None:
        """The right password clears the failures."""
        self.put(self.where.failures, "2 1700000000")
        self.answer(PASSWORD + "\r")
        self.assertFalse(os.path.exists(self.where.failures))

    def test_limited(self) -> None:
        """Who has to wait is told how long, and is not asked."""
        self.put(self.where.failures, f"11 {int(time.time())}")
        helper = self.helper(None)
        self.start(helper)
        self.assertEqual(helper.finish(), 1)
        self.assertRegex(helper.terminal, r"too many failed attempts; try again in 2\d\d s")
        self.assertNotIn("password:", helper.terminal)
        self.assertTrue(Path(self.where.failures).read_text().startswith("11 "))

    def test_interrupted(self) -> None:
        """Ctrl-C at the prompt is the end and no failure; the terminal is as before."""
        helper = self.answer("abc\x03")
        self.assertEqual(helper.code, 1)
        self.assertIn("interrupted", helper.terminal)
        self.assertFalse(os.path.exists(self.where.failures))

    def test_signals(self) -> None:
        """SIGTERM and SIGHUP at the prompt put the terminal back."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            with self.subTest(number):
                helper = self.helper(None)
                before = termios.tcgetattr(helper._slave)
                self.start(helper)
                helper.read_until("break-glass password: ")
                self.assertNotEqual(termios.tcgetattr(helper._slave), before)
                helper.signal(number)
                self.assertEqual(helper.finish(), 1)
                self.assertEqual(termios.tcgetattr(helper._slave), before)

    def test_gateway(self) -> None:
        """A gateway with nobody behind it, for all of the tries, is a server that cannot be reached."""
        helper = self.helper(in_turn(Answer(503, {})))
        self.start(helper)
        helper.read_until("break-glass password: ")
        helper.type(PASSWORD + "\r")
        self.assertEqual(helper.finish(), 0)

    def test_other_pythons(self) -> None:
        """The oldest and the newest Python that are here do the same."""
        found = interpreters()
        for python in {found[min(found, key=_number)], found[max(found, key=_number)]}:
            with self.subTest(python):
                helper = self.helper(None)
                self.start(helper, python=python)
                helper.read_until("break-glass password: ")
                helper.type(PASSWORD + "\r")
                self.assertEqual(helper.finish(), 0, helper.output)

    def test_german(self) -> None:
        """It speaks the person's language."""
        helper = self.helper(None)
        self.start(helper, LANG="de_DE.UTF-8")
        helper.read_until("Notfallpasswort: ")
        helper.type(PASSWORD + "\r")
        self.assertEqual(helper.finish(), 0)
        self.assertIn("Notfallpasswort angenommen", helper.terminal)

    def test_pending_password(self) -> None:
        """The password on its way to the vault opens as well: perhaps it is the one that is shown there."""
        self.put(self.file + places.PENDING, Pending("new-one", "random", 1_700_000_000).text("web01"))
        self.assertEqual(self.answer("new-one\r").code, 0)

    def test_vanished(self) -> None:
        """A server that goes away while it is polled leads there, too, and the use is on record."""
        helper = self.helper(in_turn(created(), pending()))
        self.start(helper)
        assert helper.server
        helper.server.wait_for("GET")
        helper.server.stop()
        helper.read_until("break-glass password: ")
        self.assertIn("became unreachable", helper.terminal)
        helper.type(PASSWORD + "\r")
        self.assertEqual(helper.finish(), 0, helper.terminal)
        self.assertIn("alice", Path(self.where.used).read_text())


class NothingElseTests(FlowTestCase):
    """Whatever else goes wrong does not lead to the prompt."""

    def refused(self, helper: Helper, **options: object) -> None:
        self.start(helper, **options)
        self.assertEqual(helper.finish(), 1, helper.terminal)
        self.assertNotIn("break-glass", helper.terminal.lower())

    def test_other_answers(self) -> None:
        """Refusals, server errors, redirects, nonsense and cut connections."""
        for answer in (
            Answer(401, {}),
            Answer(403, {}),
            Answer(429, {}),
            Answer(500, {}),
            Answer(501, {}),
            Answer(505, {}),
            Answer(302, b"", {"Location": "http://127.0.0.1:1"}),
            Answer(201, b"<html>"),
            Answer(raw=b""),
            Answer(raw=b"SSH-2.0-x\r\n"),
        ):
            with self.subTest(str(answer)[:40]):
                self.refused(self.helper(in_turn(answer)))

    def test_other_answers_while_retrying(self) -> None:
        """An attacker who lets the first connection fail and spoils the next one gets no prompt either."""
        self.refused(self.helper(in_turn(Answer(503, {}), Answer(raw=b""))))
        self.refused(self.helper(in_turn(Answer(503, {}), Answer(401, {}))))

    def test_gateway_while_polling(self) -> None:
        """A gateway's word does not count once the challenge is there."""
        helper = self.helper(in_turn(created(), Answer(503, {}, {"Connection": "close"})), IDENTREE_TIMEOUT="9s")
        self.refused(helper)
        self.assertIn("nobody approved in time", helper.terminal)

    def test_no_tls(self) -> None:
        """A server that cannot prove who it is, is not one that cannot be reached."""
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def hang_up() -> None:
                connection, _ = listener.accept()
                connection.recv(100)
                connection.close()

            thread = threading.Thread(target=hang_up)
            thread.start()
            port = listener.getsockname()[1]
            self.refused(self.helper(None, IDENTREE_SERVER_URL=f"https://127.0.0.1:{port}"))
            thread.join()

    def test_trial(self) -> None:
        """Whoever tries another client.conf neither rotates nor reports for this host."""
        breakglass.record_use("web01", "bob", 1_700_000_000, self.where)
        os.unlink(self.file)
        helper = self.helper(in_turn(created(), approved()))
        code = PROGRAM.format(run=str(self.directory), state=self.where.state, log=str(self.directory / "log"))
        helper.start(code=code.replace("config.DEFAULT_PATH = ", "unused = "), on_terminal=True)
        self.assertEqual(helper.finish(), 0)
        assert helper.server
        self.assertEqual(len(helper.server.requests), 2)

    def test_switched_off(self) -> None:
        """Nor where the host has switched it off, has no hash, or has a link in its place."""
        self.refused(self.helper(None, IDENTREE_BREAKGLASS_ENABLED="false"))
        self.link(self.file)
        self.refused(self.helper(None))
        os.unlink(self.file)
        self.refused(self.helper(None))

    def test_pushed_off(self) -> None:
        """What a server pushes before an approval does not switch it off."""
        helper = self.helper(in_turn(created(client_config={"breakglass_enabled": False}), pending()))
        self.start(helper)
        assert helper.server
        helper.server.wait_for("GET")
        helper.server.stop()
        helper.read_until("break-glass password: ")
        helper.type("\x03")
        helper.finish()

    def test_nobody_to_ask(self) -> None:
        """sudo -n asks nobody."""
        helper = self.helper(None)
        self.start(helper, sudo="sudo|-n|id")
        self.assertEqual(helper.finish(), 1)
        self.assertNotIn("password: ", helper.terminal)


class AfterwardsTests(FlowTestCase):
    """What happens after a challenge or an approval, behind everybody's back."""

    def test_report(self) -> None:
        """Recorded uses are reported once the challenge is there, and hold up nobody."""
        breakglass.record_use("web01", "bob", 1_700_000_000, self.where)
        never = threading.Event()
        self.addCleanup(never.set)

        def script(request):  # type: ignore[no-untyped-def]
            if request.path == "/api/breakglass/report":
                return Answer(200, {}, hold=never)
            return created() if request.method == "POST" else approved()

        helper = self.helper(script)
        self.start(helper)
        self.assertEqual(helper.finish(), 0)
        assert helper.server
        self.wait_for(lambda: len(helper.server.requests) >= 3, "the report")  # type: ignore[union-attr]
        self.assertEqual(helper.server.requests[0].path, "/api/challenge")
        [report] = [r for r in helper.server.requests if r.path == "/api/breakglass/report"]
        self.assertEqual(report.json, {"hostname": "web01", "username": "bob", "timestamp": 1_700_000_000})
        never.set()
        self.wait_for(lambda: not places.to_report(self.where), "the end of the report")

    def test_nothing_to_do(self) -> None:
        """With a fresh hash and nothing to report the server is asked for the approval and nothing else."""
        helper = self.helper(in_turn(created(status="approved", approval_token=token("approved"))))
        self.start(helper)
        self.assertEqual(helper.finish(), 0)
        assert helper.server
        self.assertEqual(len(helper.server.requests), 1)

    def rotating(self, **extra: object) -> Script:
        stored = self.stored = list[str]()

        def script(request):  # type: ignore[no-untyped-def]
            if request.path == "/api/breakglass/escrow":
                stored.append(str(request.json["password"]))
                return Answer(200, {"status": "ok"})
            if request.path == "/api/breakglass/report":
                return Answer(200, {})
            signed = token("approved", rotate=str(extra.get("rotate_breakglass_before", "")))
            if request.method == "POST":
                return created(**extra)
            return approved(approval_token=signed)

        return script

    def changed(self) -> bool:
        return bool(self.stored) and breakglass.matches(self.file, self.stored[-1].encode(), BCRYPT)

    def settled(self) -> bool:
        return self.changed() and not os.path.exists(self.file + places.PENDING)

    def test_age(self) -> None:
        """An old password is replaced after an approval; the pushed type is the one that is made."""
        old = time.time() - 91 * 86400
        os.utime(self.file, (old, old))
        config = {"breakglass_password_type": "passphrase", "breakglass_enabled": False}
        helper = self.helper(self.rotating(client_config=config), IDENTREE_BREAKGLASS_BCRYPT_COST="10")
        self.start(helper)
        self.assertEqual(helper.finish(), 0)
        self.wait_for(self.settled, "the rotation")
        self.assertRegex(self.stored[0], r"^([a-z]{4}-){9}[a-z]{4}$")
        self.assertNotIn(self.stored[0], helper.terminal + helper.output + self.log())

    def test_signal(self) -> None:
        """The server's signal replaces it, once."""
        before = "2033-01-01T00:00:00Z"
        at = time.time() - 86400
        os.utime(self.file, (at, at))
        signalled = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 60))
        self.assertLess(signalled, before)
        conf = {"IDENTREE_BREAKGLASS_BCRYPT_COST": "10"}
        script = self.rotating(rotate_breakglass_before=signalled)
        helper = self.helper(script, **conf)
        self.start(helper)
        self.assertEqual(helper.finish(), 0, helper.terminal)
        self.wait_for(self.settled, "the rotation")
        self.wait_for(lambda: os.path.exists(self.file + places.SIGNAL), "the sidecar")
        helper = self.helper(script, **conf)
        self.start(helper)
        self.assertEqual(helper.finish(), 0, helper.terminal)
        self.assertEqual(places.due(self.file, 90, signalled, time.time()), "")

    def test_denied(self) -> None:
        """Without an approval nothing is rotated."""
        old = time.time() - 91 * 86400
        os.utime(self.file, (old, old))
        helper = self.helper(in_turn(created(), Answer(401, {}), Answer(200, {"status": "x"})))
        self.start(helper)
        self.assertEqual(helper.finish(), 1)
        assert helper.server
        self.assertNotIn("/api/breakglass/escrow", [request.path for request in helper.server.requests])


class VerifyTests(Directory):
    """``identree verify-breakglass``"""

    def verify(self, typed: str = "", *arguments: str) -> tuple[int, str]:
        conf = self.directory / "client.conf"
        conf.write_text(f"IDENTREE_BREAKGLASS_FILE={self.file}\nIDENTREE_SYSLOG=false\n")
        conf.chmod(0o600)
        code = (
            "import sys; sys.path.insert(0, sys.argv[1])\nfrom identree.agent import breakglass, main\n"
            "main.leave(breakglass.run(sys.argv[2:]))"
        )
        pid, master = pty.fork()
        if pid == 0:
            environ = {"IDENTREE_CLIENT_CONF": str(conf)}
            os.execve(sys.executable, [sys.executable, "-ISBc", code, archive(), *arguments], environ)
        shown = ""
        try:
            while True:
                data = os.read(master, 1000).decode()
                if not data:
                    break
                shown += data
                if typed and shown.endswith("password: "):
                    os.write(master, typed.encode())
        except OSError:
            pass
        os.close(master)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown

    def test_right_and_wrong(self) -> None:
        """It says whether it is right, and does not count."""
        self.put(self.file, DIGEST)
        code, shown = self.verify(PASSWORD + "\r")
        self.assertEqual((code, "the password is right" in shown), (0, True), shown)
        code, shown = self.verify("nonsense\r")
        self.assertEqual((code, "the password is wrong" in shown), (1, True), shown)

    def test_no_hash(self) -> None:
        """Without a hash it says what to do, and asks nothing."""
        code, shown = self.verify("x\r")
        self.assertEqual(code, 1)
        self.assertIn("rotate-breakglass", shown)
        self.assertNotIn("password: ", shown)

    def test_arguments(self) -> None:
        """It takes none: a password in an argument would be seen by everybody."""
        code, shown = self.verify("", "hunter2")
        self.assertEqual(code, 1)
        self.assertIn("usage", shown)

    def test_interrupted(self) -> None:
        """Ctrl-C ends it."""
        self.put(self.file, DIGEST)
        code, shown = self.verify("abc\x03")
        self.assertEqual((code, "interrupted" in shown), (1, True), shown)


class ConfigTests(unittest.TestCase):
    """The keys of client.conf about it."""

    def config(self, **keys: str) -> Config:
        values = {f"IDENTREE_BREAKGLASS_{key}": value for key, value in keys.items()}
        return Config("f", {"IDENTREE_HOSTNAME": "web01", **values}, server=False)

    def test_defaults(self) -> None:
        """On, at its place, ninety days, random, cost twelve; no server is needed for that."""
        made = self.config()
        self.assertEqual(
            (made.breakglass_enabled, made.breakglass_file, made.rotation_days, made.password_type, made.bcrypt_cost),
            (True, "/etc/identree-breakglass", 90, "random", 12),
        )
        self.assertEqual((made.server_url, made.warnings), ("", []))

    def test_numbers(self) -> None:
        """What is too small or no number is as if it were not there, with a warning; a huge cost is cut."""
        for text, days in {"1": 1, "30": 30, "0": 90, "-5": 90, "soon": 90, "9" * 9: 36500}.items():
            self.assertEqual(self.config(ROTATION_DAYS=text).rotation_days, days, text)
        for text, cost in {"10": 10, "15": 15, "9": 12, "31": 15, "x": 12}.items():
            self.assertEqual(self.config(BCRYPT_COST=text).bcrypt_cost, cost, text)
        self.assertIn("IDENTREE_BREAKGLASS_BCRYPT_COST", self.config(BCRYPT_COST="x").warnings[0])

    def test_switched_off(self) -> None:
        """Only what says yes says yes."""
        for text in ("false", "0", "yes", "on", "nonsense"):
            self.assertFalse(self.config(ENABLED=text).breakglass_enabled, text)

    def test_pushed(self) -> None:
        """What was pushed with a genuine approval is applied, nonsense is not."""
        made = self.config()
        made.push_verified(
            {
                "breakglass_enabled": "no",
                "breakglass_password_type": "PIN",
                "breakglass_rotation_days": -1,
                "token_cache_enabled": 0,
            }
        )
        self.assertEqual((made.breakglass_enabled, made.password_type, made.rotation_days), (True, "random", 90))
        self.assertTrue(made.token_cache_enabled)
        made.push_verified(
            {
                "breakglass_enabled": False,
                "breakglass_password_type": "passphrase",
                "breakglass_rotation_days": 7,
                "token_cache_enabled": False,
            }
        )
        self.assertEqual((made.breakglass_enabled, made.password_type, made.rotation_days), (False, "passphrase", 7))
        self.assertFalse(made.token_cache_enabled)

    def test_not_pushed_before(self) -> None:
        """None of it is applied from a challenge that nobody has approved yet."""
        made = self.config()
        made.push({"breakglass_enabled": False, "breakglass_rotation_days": 1})
        self.assertEqual((made.breakglass_enabled, made.rotation_days), (True, 90))


class LanguageTests(unittest.TestCase):
    def test_whole(self) -> None:
        """Every language says what is said during an outage, with the same named places."""
        wanted = {"retrying", "server_silent", "server_vanished", "unreachable"}
        wanted |= {key for key in messages.ENGLISH if key.startswith("breakglass_")}
        for lang in messages.LANGUAGES:
            catalogue = messages.CATALOGUES.get(lang) or outage.CATALOGUES[lang]
            for key in wanted:
                self.assertEqual(self.places(catalogue[key]), self.places(messages.ENGLISH[key]), (lang, key))
            self.assertEqual(messages.say(lang, "breakglass_prompt"), catalogue["breakglass_prompt"])

    @staticmethod
    def places(text: str) -> set[str]:
        return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}


class InstantTests(unittest.TestCase):
    def test_values(self) -> None:
        """RFC 3339 with fraction and offset; what is none is none."""
        from datetime import datetime

        for text in (
            "2026-01-01T00:00:00Z",
            "2024-02-29T23:59:59.25Z",
            "1970-01-01T00:00:00Z",
            "2026-07-01t12:00:00+02:00",
            "2000-03-01T00:00:00-11:30",
            "2100-12-31T01:02:03Z",
        ):
            wanted = datetime.fromisoformat(text.replace("Z", "+00:00").replace("t", "T")).timestamp()
            self.assertEqual(places.instant(text), wanted, text)
        for text in (
            "",
            "now",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+2:00",
            "2026-01-01T00-00-00Z",
            "2026-01-01T00:00:00Z" + "0" * 30,
        ):
            self.assertIsNone(places.instant(text), text)


def test_names() -> None:
    """The fixed places are those of the contract."""
    assert places.Places().failures == "/var/run/identree-breakglass-failures"
    assert places.Places().used == "/var/run/identree-breakglass-used"
