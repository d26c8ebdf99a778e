"""``identree setup --auditd --timers``: rules and units on a made-up host whose programs only pretend."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

from identree.agent import setup, units
from tests.agent.setuphost import DEBIAN, MadeUpHost


class AuditTests(MadeUpHost):
    def setUp(self) -> None:
        super().setUp()
        (self.root / "etc/audit/rules.d").mkdir(parents=True)
        (self.root / "var/run").mkdir(parents=True)
        self.rules = self.root / "etc/audit/rules.d/identree.rules"
        self.made = self.root / "etc/audit/audit.rules"
        self.made.write_text("-D\n")
        self.kernel: list[str] = []
        self.state = "enabled 1\n"
        self.commands.programs = {"augenrules": self.augenrules, "auditctl": self.auditctl}

    def augenrules(self, arguments: Sequence[str]) -> tuple[int, str]:
        text = self.rules.read_text()
        self.made.write_text("-D\n" + text)
        self.kernel += [line.replace("/ -p", " -p") for line in text.splitlines() if line.startswith("-w")]
        return 0, ""

    def auditctl(self, arguments: Sequence[str]) -> tuple[int, str]:
        if arguments[0] == "-s":
            return 0, self.state
        if arguments[0] == "-D":
            self.kernel = [line for line in self.kernel if not line.endswith(f"-k {arguments[2]}")]
            return 0, ""
        return 0, "\n".join(self.kernel) + "\n"

    def test_loaded(self) -> None:
        """The rules are written, loaded, and looked for in the kernel."""
        self.assertEqual(self.setup("--auditd"), 0, self.said)
        self.assertIn("-w /etc/pam.d/sudo-i -p wa -k identree-pam-config\n", self.rules.read_text())
        self.assertEqual(self.rules.stat().st_mode & 0o777, 0o640)
        self.assertIn("-w /etc/identree -p wa -k identree-config", self.kernel)
        self.assertIn("augenrules --load", self.commands.calls)

    def test_configured_paths(self) -> None:
        """The break-glass file and the key are watched where client.conf has them."""
        text = self.conf.read_text()
        self.conf.write_text(text + "IDENTREE_BREAKGLASS_FILE=/etc/keys.hash\nIDENTREE_CLIENT_KEY=/etc/host.key\n")
        self.assertEqual(self.setup("--auditd"), 0, self.said)
        self.assertIn("-w /etc/keys.hash -p r -k identree-breakglass\n", self.rules.read_text())
        self.assertIn("-w /etc/host.key -p r -k identree-mtls-key\n", self.rules.read_text())

    def test_missing_directory(self) -> None:
        """A rule whose directory is missing would keep those after it from being loaded, so it is left out."""
        self.setup("--auditd")
        self.assertNotIn("/etc/sssd", self.rules.read_text())
        self.assertIn("/etc/sssd does not exist", self.said)

    def test_no_auditd(self) -> None:
        """Without auditd that is said, and the rest goes on."""
        self.commands.programs = {}
        self.assertEqual(self.setup("--auditd"), 0)
        self.assertIn("no auditd here", self.said)
        self.assertFalse(self.rules.exists())

    def test_not_taken(self) -> None:
        """Rules that the kernel does not take are an error, and everything is rolled back."""
        self.commands.programs["augenrules"] = lambda arguments: (0, "")
        self.refused("did not take the rule", "--auditd")
        self.commands.programs["augenrules"] = lambda arguments: (1, "There was an error in line 3")
        self.refused("error in line 3", "--auditd")

    def test_locked(self) -> None:
        """Where the kernel's rules are locked, they come with the next start."""
        self.state = "enabled 2\n"
        self.assertEqual(self.setup("--auditd"), 0, self.said)
        self.assertIn("next start", self.said)

    def test_removed(self) -> None:
        """Removal gives back every file, and takes the rules out of the kernel by their keys."""
        before = self.tree()
        self.kernel = ["-w /etc/passwd -p wa -k theirs"]
        self.setup("--auditd")
        self.assertNotEqual(self.tree(), before)
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.assertEqual((self.tree(), self.kernel), (before, ["-w /etc/passwd -p wa -k theirs"]))

    def test_twice(self) -> None:
        """A second run loads nothing anew."""
        self.setup("--auditd")
        before, self.commands.calls = self.tree(), []
        self.assertEqual(self.setup("--auditd"), 0, self.said)
        self.assertEqual((self.tree(), "augenrules --load" in self.commands.calls), (before, False))

    def test_unwatchable(self) -> None:
        """A path that no rule can hold is an error, before PAM is touched."""
        self.conf.write_text(self.conf.read_text() + "IDENTREE_BREAKGLASS_FILE=/etc/my hash\n")
        self.refused("cannot be written", "--auditd")


class TimerTests(MadeUpHost):
    def setUp(self) -> None:
        super().setUp()
        (self.root / "etc/systemd/system").mkdir(parents=True)
        (self.root / "etc/cron.d").mkdir(parents=True)
        (self.root / "run/systemd/system").mkdir(parents=True)
        self.units = self.root / "etc/systemd/system"
        self.failing = ""
        self.commands.programs = {"systemctl": self.systemctl}

    def systemctl(self, arguments: Sequence[str]) -> tuple[int, str]:
        return (1, "it is broken") if arguments[0] == self.failing else (0, "")

    def test_units(self) -> None:
        """Units are written and enabled; renewal only where there is a certificate."""
        self.assertEqual(self.setup("--timers"), 0, self.said)
        self.assertEqual(
            sorted(path.name for path in self.units.iterdir()),
            sorted(set(units.NAMES) - set(units.RENEW_NAMES)),
        )
        self.assertIn("systemctl enable --now identree-rotate.timer identree-heartbeat.timer", self.commands.calls)
        self.conf.write_text(self.conf.read_text() + "IDENTREE_CLIENT_CERT=/etc/identree/client.crt\n")
        self.assertEqual(self.setup("--timers"), 0, self.said)
        self.assertIn("ExecStart=/usr/local/bin/identree renew-cert", (self.units / units.RENEW_SERVICE).read_text())

    def test_removed(self) -> None:
        """Removal disables them, and leaves nothing."""
        before = self.tree()
        self.setup("--timers")
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.assertEqual(self.tree(), before)
        self.assertIn("systemctl disable --now identree-rotate.timer", self.commands.calls)
        self.assertIn("systemctl daemon-reload", self.commands.calls)

    def test_refused(self) -> None:
        """When systemd does not take them everything is rolled back."""
        self.failing = "enable"
        self.refused("it is broken", "--timers")

    def test_cron(self) -> None:
        """Without systemd cron does it."""
        (self.root / "run/systemd/system").rmdir()
        self.assertEqual(self.setup("--timers"), 0, self.said)
        self.assertEqual((self.root / "etc/cron.d/identree-rotate").read_text(), units.cron())
        self.assertEqual(self.commands.calls, [])

    def test_cron_updated(self) -> None:
        """What an older installer wrote there is brought up to date, and goes with the removal."""
        (self.root / "run/systemd/system").rmdir()
        (self.root / "etc/cron.d/identree-rotate").write_text("old\n")
        self.setup("--timers")
        self.assertEqual((self.root / "etc/cron.d/identree-rotate").read_text(), units.cron())
        self.setup("--remove", "--keep-files")
        self.assertFalse((self.root / "etc/cron.d/identree-rotate").exists())

    def test_neither(self) -> None:
        """Without both that is said."""
        (self.root / "run/systemd/system").rmdir()
        (self.root / "etc/cron.d").rmdir()
        self.assertEqual(self.setup("--timers"), 0)
        self.assertIn("neither systemd nor cron", self.said)

    def test_other_root(self) -> None:
        """In a system that does not run, units are written and enabling them is left to its start."""
        self.commands.programs, self.commands.usable = {}, False
        systemd = self.root / "usr/lib/systemd/systemd"
        systemd.parent.mkdir(parents=True)
        systemd.touch()
        self.assertEqual(self.setup("--timers"), 0, self.said)
        self.assertTrue((self.units / units.HEARTBEAT_TIMER).exists())
        self.assertIn("systemctl enable --now", self.said)

    def test_dry_run(self) -> None:
        """A dry run names the files."""
        before = self.tree()
        self.assertEqual(self.setup("--dry-run", "--timers", "--auditd"), 0, self.said)
        self.assertEqual((self.tree(), self.commands.calls), (before, []))
        self.assertIn("identree-heartbeat.timer", self.said)


class FullRemovalTests(MadeUpHost):
    def test_nothing_is_left(self) -> None:
        """With everything of the helper: program, configuration, password, state."""
        for path in (
            "etc/identree-breakglass",
            "etc/identree-breakglass.lock",
            "etc/identree/client.crt",
            "var/lib/identree/breakglass-used",
            "var/run/identree-breakglass-failures",
            "usr/local/bin/identree-linux-amd64",
        ):
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).touch()
        (self.root / "etc/identree-other").touch()
        self.assertEqual(self.setup(), 0, self.said)
        self.assertEqual(self.setup("--remove"), 0, self.said)
        left = [name for name in self.tree() if not name.endswith("pam_exec.so")]
        self.assertEqual(left, ["etc/identree-other", "etc/pam.d/sudo", "etc/pam.d/sudo-i"])
        self.assertEqual(self.sudo.read_bytes(), DEBIAN)

    def test_helper_still_used(self) -> None:
        """While another service runs the helper, nothing that it needs is removed."""
        self.setup()
        other = self.root / "etc/pam.d/su"
        other.write_text("auth required pam_exec.so stdout /usr/local/bin/identree\n")
        self.assertEqual(self.setup("--remove"), 1)
        self.assertIn("su still runs the helper", self.said)
        self.assertTrue(self.agent.exists() and self.conf.exists())
        other.unlink()
        self.assertEqual(self.setup("--remove"), 0, self.said)
        self.assertFalse(self.agent.exists())

    def test_dry_run(self) -> None:
        """A dry run of the removal names what would go."""
        self.setup()
        before = self.tree()
        self.assertEqual(self.setup("--remove", "--dry-run"), 0)
        self.assertIn(f"would remove {self.agent}", self.said)
        self.assertEqual(self.tree(), before)

    def test_damaged_journal(self) -> None:
        """A journal that is none is said, and nothing is guessed."""
        self.setup()
        journal = self.root / "var/lib/identree/setup.json"
        for text in (
            "{",
            "[]",
            '{"version": 2}',
            '{"version": 1, "files": {"/a": {}}, "directories": [], "facts": {}}',
        ):
            journal.write_text(text)
            self.refused("move it away", "--remove")
        journal.unlink()
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.assertEqual(self.sudo.read_bytes(), DEBIAN)

    def test_journal_is_private(self) -> None:
        """Nobody else reads what was done."""
        self.setup()
        self.assertEqual((self.root / "var/lib/identree/setup.json").stat().st_mode & 0o777, 0o600)

    def test_edits_between_two_runs(self) -> None:
        """What others changed between two runs survives the removal."""
        self.setup()
        self.sudo.write_bytes(self.sudo.read_bytes() + b"session optional pam_umask.so\n")
        self.setup("--pam-mode=additional")
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.assertEqual(self.sudo.read_bytes(), DEBIAN + b"session optional pam_umask.so\n")

    def test_two_at_once(self) -> None:
        """A second run at the same time is refused."""
        with setup.Lock(str(self.root)):
            self.refused("another identree setup is running")

    def test_interrupted(self) -> None:
        """A hang-up in the middle takes everything back."""

        def interrupt(*arguments: object) -> None:
            raise KeyboardInterrupt

        with mock.patch.object(setup.Setup, "_verify", interrupt):
            self.refused("interrupted")
