"""``identree setup`` on a made-up system below a directory: Debian's and Red Hat's PAM files, every way back."""

from __future__ import annotations

import os
import unittest
from unittest import mock

from identree.agent import setup, setup_files, setup_pam
from tests.agent.scripted import Answer
from tests.agent.setuphost import CLASSIC, DEBIAN, RED_HAT, RED_HAT_LOGIN, SOLE, MadeUpHost


class EditTests(unittest.TestCase):
    """The text alone."""

    def test_lines(self) -> None:
        """The two lines of the contract, byte for byte."""
        self.assertEqual(setup_pam.rule_for("sole", setup.AGENT), SOLE)
        self.assertEqual(setup_pam.rule_for("additional", setup.AGENT), CLASSIC)

    def test_place(self) -> None:
        """Before the first auth rule or include; at the end when there is none."""
        for before, after in (
            (DEBIAN, DEBIAN.replace(b"@include common-auth", SOLE + b"@include common-auth")),
            (RED_HAT, RED_HAT.replace(b"auth  ", SOLE + b"auth  ", 1)),
            (b"-auth optional x.so\n", SOLE + b"-auth optional x.so\n"),
            (
                b"session required \\\nauth.so\nAUTH required y.so",
                b"session required \\\nauth.so\n" + SOLE + b"AUTH required y.so",
            ),
            (b"# auth\nsession required x.so", b"# auth\nsession required x.so\n" + SOLE),
            (b"", SOLE),
        ):
            self.assertEqual(setup_pam.insert(before, "sole", setup.AGENT), after)

    def test_place_as_libpam_reads(self) -> None:
        """A CR ends no line and so no comment, blanks may follow a backslash, comments stand between and end a rule."""
        for before, after in (
            (
                b"# x\rauth required y.so\nauth required z.so\n",
                b"# x\rauth required y.so\n" + SOLE + b"auth required z.so\n",
            ),
            (
                b"session required \\ \nauth.so\nauth required y.so\n",
                b"session required \\ \nauth.so\n" + SOLE + b"auth required y.so\n",
            ),
            (b"session x.so # \\\nauth required y.so\n", b"session x.so # \\\n" + SOLE + b"auth required y.so\n"),
            (b"@INCLUDE common-auth\n", SOLE + b"@INCLUDE common-auth\n"),
        ):
            self.assertEqual(setup_pam.insert(before, "sole", setup.AGENT), after)

    def test_taken_out_whole(self) -> None:
        """A rule for the helper that goes on over comments and blank lines is one rule."""
        ours = b"auth required \\\n# why\n\n pam_exec.so stdout /usr/local/bin/identree\n"
        self.assertEqual(setup_pam.strip(b"# a \\\n" + ours + RED_HAT, setup.AGENT), b"# a \\\n" + RED_HAT)

    def test_conversion(self) -> None:
        """Any rule that runs the helper through pam_exec counts as present, is converted in place, and is alone."""
        for present in (
            CLASSIC,
            b"auth sufficient /lib/security/pam_exec.so debug stdout /usr/local/bin/identree\n",
            b"auth [success=1 default=ignore] pam_exec.so \\\n  /usr/local/bin/identree # old\n",
            CLASSIC + CLASSIC,
        ):
            self.assertEqual(
                setup_pam.insert(b"# x\n" + present + RED_HAT, "sole", setup.AGENT), b"# x\n" + SOLE + RED_HAT
            )

    def test_same_mode(self) -> None:
        """A rule in the wanted mode is left as it is, with its own options."""
        for mode, rule in (
            ("sole", SOLE),
            ("additional", CLASSIC),
            ("additional", CLASSIC.replace(b"stdout", b"debug stdout")),
        ):
            self.assertEqual(setup_pam.insert(rule + RED_HAT, mode, setup.AGENT), rule + RED_HAT)

    def test_not_ours(self) -> None:
        """Comments and rules that run something else are not ours."""
        other = (
            b"# "
            + CLASSIC
            + b"auth required pam_exec.so /opt/identree\nauth required pam_x.so /usr/local/bin/identree\n"
        )
        self.assertEqual(setup_pam.strip(other, setup.AGENT), other)

    def test_another_path(self) -> None:
        """A helper at another path is ours there too."""
        made = setup_pam.insert(DEBIAN, "sole", "/opt/identree")
        self.assertIn(b"stdout /opt/identree\n", made)
        self.assertEqual(setup_pam.strip(made, "/opt/identree"), DEBIAN)

    def test_includes(self) -> None:
        """Whether another service takes sudo's rules."""
        self.assertTrue(setup_pam.includes_sudo(RED_HAT_LOGIN))
        self.assertTrue(setup_pam.includes_sudo(b"@include sudo\n"))
        self.assertFalse(setup_pam.includes_sudo(RED_HAT + b"session include sudo\n"))

    def test_host_name(self) -> None:
        """The name is written once into client.conf, in place when it is there."""
        self.assertEqual(setup.name_host(b"A=1", "web01"), b"A=1\nIDENTREE_HOSTNAME=web01\n")
        before = b"export IDENTREE_HOSTNAME=x\nA=1\nIDENTREE_HOSTNAME=y\n"
        self.assertEqual(setup.name_host(before, "web01"), b"IDENTREE_HOSTNAME=web01\nA=1\n")


class SetupTests(MadeUpHost):
    def test_debian(self) -> None:
        """Both files get the line, keep mode and owner, and leave a backup."""
        self.assertEqual(self.setup(), 0, self.said)
        wanted = DEBIAN.replace(b"@include common-auth", SOLE + b"@include common-auth")
        self.assertEqual((self.sudo.read_bytes(), self.login.read_bytes()), (wanted, wanted))
        self.assertEqual(self.sudo.stat().st_mode & 0o777, 0o640)
        self.assertEqual((self.root / "etc/pam.d/sudo.identree.bak").read_bytes(), DEBIAN)
        self.assertEqual([request.path for request in self.server.requests], ["/healthz"])

    def test_red_hat(self) -> None:
        """A sudo-i that includes sudo is left alone: one approval is enough."""
        self.sudo.write_bytes(RED_HAT)
        self.login.write_bytes(RED_HAT_LOGIN)
        self.assertEqual(self.setup(), 0, self.said)
        self.assertIn(SOLE, self.sudo.read_bytes())
        self.assertEqual(self.login.read_bytes(), RED_HAT_LOGIN)

    def test_double_approval_repaired(self) -> None:
        """A line that an older set-up put into such a sudo-i goes."""
        self.sudo.write_bytes(CLASSIC + RED_HAT)
        self.login.write_bytes(CLASSIC + RED_HAT_LOGIN)
        self.assertEqual(self.setup(), 0, self.said)
        self.assertEqual((self.sudo.read_bytes(), self.login.read_bytes()), (SOLE + RED_HAT, RED_HAT_LOGIN))

    def test_twice(self) -> None:
        """A second run changes nothing and keeps the first backup."""
        self.setup()
        before = self.tree()
        self.assertEqual(self.setup(), 0)
        self.assertEqual(self.tree(), before)
        self.assertIn("already configured", self.said)

    def test_change_of_mode(self) -> None:
        """The mode can be changed, and the way back is still to the original."""
        before = self.tree()
        self.setup()
        self.assertEqual(self.setup("--pam-mode=additional"), 0)
        self.assertIn(CLASSIC, self.sudo.read_bytes())
        self.setup("--remove", "--keep-files")
        self.assertEqual(self.tree(), before)

    def test_remove_restores_bytes(self) -> None:
        """Removal gives back every byte, mode and file, whatever the file looked like."""
        for content in (DEBIAN, RED_HAT, b"session required x.so", b"", DEBIAN.replace(b"\n", b"\r\n")):
            with self.subTest(content[:30]):
                self.sudo.write_bytes(content)
                before = self.tree()
                self.assertEqual(self.setup(), 0, self.said)
                self.assertNotEqual(self.sudo.read_bytes(), content)
                self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
                self.assertEqual(self.tree(), before)

    def test_remove_keeps_later_edits(self) -> None:
        """What others changed since then stays; only our line goes, and the backup stays for whoever wants it."""
        self.setup()
        edited = self.sudo.read_bytes() + b"session optional pam_umask.so\n"
        self.sudo.write_bytes(edited)
        self.setup("--remove", "--keep-files")
        self.assertEqual(self.sudo.read_bytes(), DEBIAN + b"session optional pam_umask.so\n")

    def test_remove_does_not_bring_back_an_older_line(self) -> None:
        """A backup that already had the helper is not a state without it."""
        self.sudo.write_bytes(CLASSIC + DEBIAN)
        self.setup()
        self.setup("--remove", "--keep-files")
        self.assertEqual(self.sudo.read_bytes(), DEBIAN)

    def test_remove_needs_nothing(self) -> None:
        """Removal works with a broken helper and without server."""
        self.setup()
        self.agent.unlink()
        self.conf.unlink()
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.assertEqual(self.sudo.read_bytes(), DEBIAN)

    def test_dry_run(self) -> None:
        """A dry run shows the lines, changes nothing and calls nobody."""
        before = self.tree()
        for arguments in (["--dry-run"], ["--dry-run", "--hostname=web02"], ["--dry-run", "--remove"]):
            self.assertEqual(self.setup(*arguments), 0, self.said)
            self.assertEqual((self.tree(), self.server.requests), (before, []))
        self.setup("--dry-run")
        self.assertIn("+ auth    [success=done default=die]    pam_exec.so", self.said)

    def test_symbolic_link(self) -> None:
        """A link stays a link; what it names below the root is edited."""
        real = self.root / "etc/real-sudo"
        real.write_bytes(RED_HAT)
        self.sudo.unlink()
        self.sudo.symlink_to("/etc/real-sudo")
        self.assertEqual(self.setup(), 0, self.said)
        self.assertTrue(self.sudo.is_symlink())
        self.assertIn(SOLE, real.read_bytes())

    def test_broken_helper(self) -> None:
        """A helper that is missing, cannot run or fails is found before anything is changed."""
        self.helper("exit 3")
        self.refused("failed")
        self.agent.write_text("#!/no/such/interpreter\n")
        self.refused("does not start")
        self.agent.unlink()
        self.refused("does not start")

    def test_missing_module(self) -> None:
        """So is a system without pam_exec."""
        (self.root / "lib/x86_64-linux-gnu/security/pam_exec.so").unlink()
        self.refused("pam_exec.so")

    def test_bad_configuration(self) -> None:
        """So is a configuration that does not load."""
        self.conf.write_text("")
        self.refused("IDENTREE_SERVER_URL")

    def test_unhealthy_server(self) -> None:
        """So is a server that does not answer, or not well."""
        self.server.script = lambda request: Answer(503, {"status": "unhealthy"})
        self.refused("HTTP 503")
        self.server.stop()
        self.refused("does not answer")

    def test_force(self) -> None:
        """--force makes a failed check a warning."""
        self.server.script = lambda request: Answer(503, {})
        self.assertEqual(self.setup("--force"), 0)
        self.assertIn("warning", self.said)
        self.assertIn(SOLE, self.sudo.read_bytes())

    def test_roll_back(self) -> None:
        """When the helper fails after the edit, everything is as before, without a trace."""
        self.helper('grep -q pam_exec "$(dirname "$0")/../../../etc/pam.d/sudo" && exit 1; echo 0.1.0')
        self.refused("rolled back")

    def test_write_failure(self) -> None:
        """When the second file cannot be written the first is rolled back."""
        real = setup_files.write

        def write(path: str, data: bytes, look: setup_files.Look) -> None:
            if path.endswith("sudo-i"):
                raise OSError(28, "No space left on device", path)
            real(path, data, look)

        with mock.patch.object(setup_files, "write", write):
            self.refused("No space left on device")

    def test_write_failure_for_good(self) -> None:
        """When a file cannot be put back either, that is said, with the place of the original, and the others are."""
        real = setup_files.write
        calls: list[str] = []

        def write(path: str, data: bytes, look: setup_files.Look) -> None:
            calls.append(path)
            if path.endswith("sudo-i") or (path.endswith("sudo") and calls.count(path) > 1):
                raise OSError(5, "Input/output error", path)
            real(path, data, look)

        with mock.patch.object(setup_files, "write", write):
            self.assertEqual(self.setup(), 1)
        self.assertIn("could not be put back", self.said)
        self.assertEqual((self.root / "etc/pam.d/sudo.identree.bak").read_bytes(), DEBIAN)

    def test_replaceable_helper(self) -> None:
        """A helper that others than root could replace is not given to sudo."""
        self.agent.chmod(0o775)
        self.refused("chmod go-w")
        self.agent.chmod(0o755)
        self.agent.parent.chmod(0o777)
        self.refused("its directory")

    def test_foreign_helper(self) -> None:
        """Nor is one that belongs to a user."""
        if os.geteuid() == 0:
            os.chown(self.agent, 65534, 65534)
            self.refused("belongs to uid 65534")

    def test_host_name(self) -> None:
        """--hostname is kept in client.conf, with its mode."""
        self.assertEqual(self.setup("--hostname", "Web02.Example.com."), 0, self.said)
        self.assertTrue(self.conf.read_text().endswith("IDENTREE_HOSTNAME=web02.example.com\n"))
        self.assertEqual(self.conf.stat().st_mode & 0o777, 0o600)

    def test_no_sudo(self) -> None:
        """Without sudo there is nothing to set up."""
        self.sudo.unlink()
        self.login.unlink()
        self.refused("install sudo")

    def test_bad_arguments(self) -> None:
        """Unknown options, missing and bad values, and what comes later: a line, and nothing is done."""
        self.refused("identree setup: ", "--remove", "--sssd")
        for argument in (
            "--frob",
            "--hostname",
            "--hostname=a b",
            "--pam-mode=x",
            "--agent-path=identree",
            "--agent-path=/a b",
            "--dry-run=yes",
            "--keep-files",
            "--sssd=yes",
            "extra",
        ):
            with self.subTest(argument):
                self.refused("identree setup: ", argument)

    def test_help(self) -> None:
        """Help is help."""
        self.assertEqual(self.setup("--help"), 0)
        self.assertIn("--pam-mode=sole", self.said)

    def test_needs_root(self) -> None:
        """On the system itself only root may."""
        with mock.patch.object(os, "geteuid", lambda: 1000), mock.patch.object(setup, "complain") as said:
            self.assertEqual(setup.run([]), 1)
        said.assert_called_once_with("identree setup: this needs root")

    def test_circle(self) -> None:
        """A circle of links is refused."""
        self.sudo.unlink()
        self.sudo.symlink_to("/etc/pam.d/sudo")
        self.assertEqual(self.setup(), 1)
        self.assertIn("circle", self.said)
