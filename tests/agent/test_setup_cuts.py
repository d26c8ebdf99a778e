"""
The power fails at every point where ``identree setup`` writes: root is never locked out, and a second run or a removal
repairs what was begun.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from identree.agent import config as configuration
from identree.agent import setup_pam
from tests.agent.scripted import Answer
from tests.agent.setuphost import DEBIAN, SOLE, MadeUpHost
from tests.agent.test_setup_sssd import NSSWITCH, authority, with_certificate

CUT = 77
CONFIGURED = DEBIAN.replace(b"@include common-auth", SOLE + b"@include common-auth")
EVERYTHING = ("--sssd", "--auditd", "--timers", "--hostname=web02")
# Calls that change what a later run finds, also when shutil makes them.
CHANGING = ("rename", "unlink", "mkdir", "rmdir", "write")
# More than any run has; a test that gets here does not end by itself.
MOST_POINTS = 1000


class CutTests(MadeUpHost):
    def setUp(self) -> None:
        super().setUp()
        for name in ("usr/local/share/ca-certificates", "etc/audit/rules.d", "etc/cron.d", "var/lib", "var/run"):
            (self.root / name).mkdir(parents=True)
        (self.root / "etc/nsswitch.conf").write_bytes(NSSWITCH)
        (self.root / "etc/audit/audit.rules").write_text("-D\n")
        (self.root / "etc/identree-breakglass").write_text("$2b$\n")
        self.answers["/api/client/provision"] = Answer(200, with_certificate(tls_ca_cert=authority().certificate))
        self.commands.programs = {"augenrules": self.augenrules, "auditctl": self.auditctl}
        self.base = Path(tempfile.mkdtemp(prefix="identree-cut-"))
        self.addCleanup(shutil.rmtree, self.base, True)
        self.before, self.unconfigured = self.tree(), self.conf.read_bytes()
        self.keep("before")
        # Nothing here survives a real power cut anyhow, and thousands of syncs would keep every other test waiting.
        unsynced = mock.patch.object(os, "fsync", lambda fd: None)
        unsynced.start()
        self.addCleanup(unsynced.stop)

    def augenrules(self, arguments: Sequence[str]) -> tuple[int, str]:
        made = self.root / "etc/audit/audit.rules"
        (self.root / "etc/audit/audit.rules.prev").write_bytes(made.read_bytes())
        made.write_text("-D\n")
        os.rename(made, made)  # a point where the power fails in the middle of a program
        made.write_text("-D\n" + (self.root / "etc/audit/rules.d/identree.rules").read_text())
        return 0, ""

    def auditctl(self, arguments: Sequence[str]) -> tuple[int, str]:
        rules = (self.root / "etc/audit/audit.rules").read_text().replace("/ -p", " -p")
        return 0, "enabled 1\n" if arguments[0] == "-s" else rules

    def keep(self, name: str) -> None:
        shutil.copytree(self.root, self.base / name, symlinks=True)

    def go_back(self, name: str) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.base / name, self.root, symlinks=True)

    def cut(self, point: int, *arguments: str) -> int:
        """Run the command in a process of its own that ends at its ``point``-th change; its exit status."""
        child = os.fork()
        if child == 0:
            try:
                with mock.patch.multiple(os, **_counted(point)):
                    code = self.setup(*arguments)
            except BaseException:
                code = 99
            os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def nobody_is_locked_out(self) -> None:
        """Each PAM file is one of the two that work, and what it runs is there and can be configured."""
        for path in (self.sudo, self.login):
            self.assertIn(path.read_bytes(), (DEBIAN, CONFIGURED))
            if setup_pam.has_agent(path.read_bytes(), setup_pam.AGENT):
                self.assertTrue(os.access(self.agent, os.X_OK))
                self.assertTrue(configuration.load(str(self.conf)).server_url)

    def at_every_point(self, arguments: Sequence[str], check: Callable[[], None], *, start: str, last: int) -> None:
        """:param start: the state to begin with. :param last: the exit status when the power does not fail."""
        for point in range(1, MOST_POINTS):
            self.go_back(start)
            code = self.cut(point, *arguments)
            if code != CUT:
                self.assertEqual(code, last)
                self.assertGreater(point, 10)
                return
            with self.subTest(point=point):
                self.nobody_is_locked_out()
                check()
        self.fail("it never ended")

    def test_installation(self) -> None:
        """A second run ends where an undisturbed one ends, and a removal where all began."""
        self.assertEqual(self.setup(*EVERYTHING), 0, self.said)
        wanted = self.tree()
        self.assertEqual(self.sudo.read_bytes(), CONFIGURED)

        def check() -> None:
            shutil.rmtree(self.base / "cut", ignore_errors=True)
            self.keep("cut")
            self.assertEqual(self.setup(*EVERYTHING), 0, self.said)
            now = {**self.tree(), JOURNAL: wanted[JOURNAL]}  # it also tells of the first run
            self.assertEqual(sorted(now), sorted(wanted))
            self.assertEqual(now, wanted)
            self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
            self.assertEqual(self.tree(), self.before)
            self.go_back("cut")
            self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
            self.assertEqual(self.tree(), self.before)

        self.at_every_point(EVERYTHING, check, start="before", last=0)

    def test_removal(self) -> None:
        """A removal that was cut off is completed by a second one."""
        self.assertEqual(self.setup(*EVERYTHING), 0, self.said)
        self.keep("done")

        def check() -> None:
            self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
            self.assertEqual(self.tree(), self.before)

        self.at_every_point(("--remove", "--keep-files"), check, start="done", last=0)

    def test_whole_removal(self) -> None:
        """So is one that takes the helper too: as long as the helper is there, it can be run again."""
        self.assertEqual(self.setup(*EVERYTHING), 0, self.said)
        self.keep("done")

        def check() -> None:
            self.assertEqual(self.setup("--remove"), 0, self.said)
            left = {name for name in self.before if "identree" not in name}
            self.assertEqual(self.tree(), {name: self.before[name] for name in left})

        self.at_every_point(("--remove",), check, start="done", last=0)

    def test_roll_back(self) -> None:
        """A power cut while a failed set-up is rolled back leaves what a removal can complete."""
        self.helper('grep -q pam_exec "$(dirname "$0")/../../../etc/pam.d/sudo" && exit 1; echo 0.1.0')
        before = self.tree()
        shutil.rmtree(self.base / "before")
        self.keep("before")

        def check() -> None:
            self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
            self.assertEqual(self.tree(), before)

        self.at_every_point(EVERYTHING, check, start="before", last=1)


JOURNAL = "var/lib/identree/setup.json"


def _counted(point: int) -> dict[str, Callable[..., object]]:
    """The changing calls of :mod:`os`, the ``point``-th of which ends the process; a write does so half-way."""
    count = 0

    def counted(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*arguments: object, **more: object) -> object:
            nonlocal count
            changing = name != "write" or arguments[0] not in (1, 2)
            count += 1 if changing else 0
            if changing and count == point:
                if name == "write":
                    data = arguments[1]
                    assert isinstance(data, bytes)
                    real(arguments[0], data[: len(data) // 2])
                os._exit(CUT)
            return real(*arguments, **more)

        return call

    return {name: counted(name) for name in CHANGING}
