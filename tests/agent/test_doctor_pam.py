"""The walk through PAM: stacks as distributions and administrators write them."""

from __future__ import annotations

import shutil
import tempfile
import unittest
from pathlib import Path

from identree.agent import doctor_pam
from identree.agent.findings import FAIL, OK, Findings
from tests.agent.setuphost import CLASSIC, DEBIAN, RED_HAT, RED_HAT_LOGIN, SOLE

AGENT = "/usr/local/bin/identree"
COMMON = (
    b"auth [success=1 default=ignore] pam_unix.so nullok\nauth requisite pam_deny.so\nauth required pam_permit.so\n"
)


class PamTests(unittest.TestCase):
    def setUp(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="identree-pam-"))
        self.addCleanup(shutil.rmtree, self.root, True)
        self.directory = self.root / "etc/pam.d"
        self.directory.mkdir(parents=True)
        self.write("common-auth", COMMON)
        self.write("system-auth", COMMON)
        for name in ("common-account", "common-session-noninteractive"):
            self.write(name, b"")

    def write(self, name: str, data: bytes) -> None:
        (self.directory / name).write_bytes(data)

    def examine(self, sudo: bytes, login: bytes | None = None) -> dict[str, str]:
        """Ids and levels of what is found."""
        self.write("sudo", sudo)
        if login is not None:
            self.write("sudo-i", login)
        findings = Findings()
        doctor_pam.examine(findings, str(self.root), AGENT)
        for each in findings.all:
            self.assertEqual(bool(each.remedy), each.level != OK, each.id)
        return {each.id: each.level for each in findings.all}

    def states(self) -> list[str]:
        return [doctor_pam.state(str(self.root), file, AGENT) for file in doctor_pam.FILES]

    def test_debian(self) -> None:
        """The two modes on Debian."""
        for rule, mode in ((SOLE, "sole"), (CLASSIC, "additional")):
            self.assertEqual(self.examine(rule + DEBIAN, rule + DEBIAN), {"pam.sudo": OK, "pam.sudo-i": OK})
            self.assertEqual(self.states(), [mode, mode])

    def test_red_hat(self) -> None:
        """On Red Hat sudo-i includes sudo, and has no rule of its own."""
        self.assertEqual(self.examine(SOLE + RED_HAT, RED_HAT_LOGIN), {"pam.sudo": OK, "pam.sudo-i": OK})
        self.assertEqual(self.states(), ["sole", "included"])

    def test_absent(self) -> None:
        """No rule in one of the two, or a commented one."""
        self.assertEqual(self.examine(b"#" + SOLE + DEBIAN, SOLE + DEBIAN)["pam.sudo"], FAIL)
        self.assertEqual(self.examine(SOLE + DEBIAN, DEBIAN)["pam.sudo-i"], FAIL)
        self.assertEqual(self.states(), ["sole", "absent"])

    def test_no_files(self) -> None:
        """Without sudo's file something is wrong; without sudo-i's nothing."""
        self.assertEqual(self.states(), ["no file", "no file"])
        findings = Findings()
        doctor_pam.examine(findings, str(self.root), AGENT)
        self.assertEqual([(each.id, each.level) for each in findings.all], [("pam.sudo", FAIL)])

    def test_doubled(self) -> None:
        """Twice in one file, and once in sudo-i besides the included one."""
        self.assertEqual(self.examine(SOLE + SOLE + DEBIAN), {"pam.sudo-doubled": FAIL})
        self.assertEqual(self.examine(CLASSIC + RED_HAT, CLASSIC + RED_HAT_LOGIN)["pam.sudo-i-doubled"], FAIL)
        self.assertEqual(self.states(), ["additional", "other"])

    def test_bypass(self) -> None:
        """What comes before and lets in by itself."""
        for before in (
            b"auth sufficient pam_unix.so\n",
            b"auth [success=done default=ignore] pam_unix.so\n",
            b"auth [success=1 default=ignore] pam_unix.so\n",
            b"auth [default=done] pam_permit.so\n",
            b"-auth sufficient pam_fprintd.so\n",
            b"auth \\\n sufficient pam_rootok.so\n",
            b"@include common-auth2\n",
        ):
            self.write("common-auth2", b"auth [success=2 default=ignore] pam_unix.so\nauth required pam_env.so\n")
            with self.subTest(before):
                self.assertEqual(self.examine(before + SOLE + DEBIAN), {"pam.sudo-bypass": FAIL})

    def test_before_but_harmless(self) -> None:
        """What comes before and only counts against somebody, or jumps over something else."""
        for before in (
            b"auth required pam_faillock.so preauth\n",
            b"auth requisite pam_nologin.so\n",
            b"auth optional pam_echo.so\n",
            b"auth [success=1 default=ignore] pam_succeed_if.so user = x\nauth required pam_env.so\n",
            b"account sufficient pam_permit.so\n",
        ):
            with self.subTest(before):
                self.assertEqual(self.examine(before + SOLE + DEBIAN), {"pam.sudo": OK})

    def test_control(self) -> None:
        """A rule whose failure does not keep anybody out."""
        program = f"pam_exec.so stdout {AGENT}\n".encode()
        for control in (
            b"sufficient",
            b"optional",
            b"[success=done default=ignore]",
            b"[default=bad system_err=ignore]",
        ):
            with self.subTest(control):
                found = self.examine(b"auth " + control + b" " + program + DEBIAN)
                self.assertEqual(found, {"pam.sudo-control": FAIL})
        for control in (b"required", b"requisite", b"[success=ok default=bad]"):
            self.assertEqual(self.examine(b"auth " + control + b" " + program + DEBIAN), {"pam.sudo": OK})

    def test_options(self) -> None:
        """Options that keep the person in the dark, or hand out passwords."""
        found = self.examine(f"auth required pam_exec.so expose_authtok {AGENT}\n".encode() + DEBIAN)
        self.assertEqual(found, {"pam.sudo-output": "warn", "pam.sudo-password": "warn"})

    def test_elsewhere(self) -> None:
        """A rule in a file that logins use as well; copies do not count."""
        self.write("common-auth", SOLE + COMMON)
        self.write("su.identree.bak", SOLE)
        found = self.examine(DEBIAN)
        self.assertEqual(found["pam.elsewhere"], "warn")
        self.assertEqual(self.states()[0], "included")
        self.assertEqual(found["pam.sudo"], OK)

    def test_broken(self) -> None:
        """A circle, a missing file, a link to nowhere: broken, not endless."""
        self.write("a", b"@include b\n")
        self.write("b", b"auth include a\n")
        for stack in (b"@include a\n" + SOLE, SOLE + b"@include nothing\n"):
            self.assertEqual(self.examine(stack), {"pam.sudo": FAIL})
            self.assertEqual(self.states()[0], "other")

    def test_links(self) -> None:
        """authselect's links are followed below the root."""
        (self.root / "etc/authselect").mkdir()
        (self.root / "etc/authselect/system-auth").write_bytes(COMMON)
        (self.directory / "system-auth").unlink()
        (self.directory / "system-auth").symlink_to("/etc/authselect/system-auth")
        self.assertEqual(self.examine(SOLE + RED_HAT), {"pam.sudo": OK})
