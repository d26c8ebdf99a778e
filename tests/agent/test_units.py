"""Units, cron lines and audit rules: their text, and what systemd says of it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from identree.agent import units


def lines(name: str, **more: str) -> list[str]:
    return units.unit(name, **more).splitlines()


class UnitTests(unittest.TestCase):
    def test_commands(self) -> None:
        """Every service runs one command of the agent, once."""
        for name, command in (("rotate", "rotate-breakglass"), ("heartbeat", "heartbeat"), ("renew", "renew-cert")):
            text = lines(f"identree-{name}.service")
            self.assertIn("Type=oneshot", text)
            self.assertIn(f"ExecStart=/usr/local/bin/identree {command}", text)
            self.assertIn(
                "ExecStart=/opt/identree " + command, lines(f"identree-{name}.service", agent="/opt/identree")
            )

    def test_timers(self) -> None:
        """When they run; none of them pulls its service in at the start."""
        for name, wanted in (
            ("rotate", ["OnCalendar=weekly", "Persistent=true", "RandomizedDelaySec=3600"]),
            ("heartbeat", ["OnBootSec=30s", "OnUnitActiveSec=5min", "RandomizedDelaySec=60s", "AccuracySec=15s"]),
            ("renew", ["OnCalendar=weekly", "Persistent=true", "RandomizedDelaySec=86400"]),
        ):
            text = lines(f"identree-{name}.timer")
            self.assertLessEqual({*wanted, "WantedBy=timers.target"}, set(text))
            self.assertFalse([line for line in text if line.startswith("Requires")])

    def test_hardened(self) -> None:
        """What a service may do is cut down, and a failure is one."""
        for name in units.NAMES:
            if not name.endswith(".service"):
                continue
            with self.subTest(name):
                text = lines(name)
                self.assertLessEqual(
                    {
                        "ProtectSystem=strict",
                        "ProtectHome=true",
                        "ProtectKernelModules=true",
                        "ProtectKernelTunables=true",
                        "ProtectKernelLogs=true",
                        "ProtectControlGroups=true",
                        "PrivateTmp=true",
                        "PrivateDevices=true",
                        "NoNewPrivileges=true",
                        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
                        "LockPersonality=true",
                        "SystemCallFilter=@system-service",
                        "UMask=0077",
                        "TimeoutStartSec=90",
                    },
                    set(text),
                )
                self.assertEqual(len([line for line in text if line.startswith("CapabilityBoundingSet=")]), 1)
                self.assertFalse([line for line in text if line.startswith("SuccessExitStatus")])

    def test_closures_of_ctypes(self) -> None:
        """bcrypt through ctypes needs memory that is written and executed; the others do without."""
        self.assertNotIn("MemoryDenyWriteExecute=true", lines(units.ROTATE_SERVICE))
        self.assertNotIn("MemoryDenyWriteExecute=true", lines(units.HEARTBEAT_SERVICE))  # it rotates when asked

    def test_hash_file_elsewhere(self) -> None:
        """The rotation may write to the directory of the configured hash file."""
        self.assertIn("ReadWritePaths=/etc /run", lines(units.ROTATE_SERVICE))
        self.assertIn("ReadWritePaths=/etc /run", lines(units.ROTATE_SERVICE, hash_file="/etc/identree/hash"))
        self.assertIn("ReadWritePaths=/etc -/srv/keys /run", lines(units.ROTATE_SERVICE, hash_file="/srv/keys/hash"))

    def test_unknown(self) -> None:
        """There is no other unit, whatever the name says."""
        for name in ("identree.service", "../x", ""):
            self.assertRaises(KeyError, units.unit, name)

    def test_systemd_reads_them(self) -> None:
        """systemd finds nothing to complain about, and its own rating of the exposure is low."""
        with tempfile.TemporaryDirectory() as directory:
            paths = [Path(directory) / name for name in units.NAMES]
            for path in paths:
                path.write_text(units.unit(path.name, agent="/bin/true"))
            done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, timeout=60)
            said = [line for line in (done.stdout + done.stderr).splitlines() if "identree" in line]
            self.assertEqual((done.returncode, said), (0, []))
            for path in paths:
                if path.suffix != ".service":
                    continue
                command = ["systemd-analyze", "security", "--offline=yes", "--threshold=30", path]
                done = subprocess.run(command, capture_output=True, text=True, timeout=60)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_systemd_would_complain(self) -> None:
        """It does complain about what it does not know."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "identree-rotate.service"
            path.write_text(units.unit(path.name, agent="/bin/true") + "Frobnicate=true\n")
            done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60)
            self.assertIn("Frobnicate", done.stdout + done.stderr)


class CronTests(unittest.TestCase):
    def test_lines(self) -> None:
        """The two lines of the contract, byte for byte, and one more where there is a certificate."""
        text = units.cron()
        self.assertEqual(
            text.splitlines()[2:],
            [
                "0 3 * * 0 root /usr/local/bin/identree rotate-breakglass",
                "*/5 * * * * root /usr/local/bin/identree heartbeat >/dev/null 2>&1",
            ],
        )
        self.assertTrue(all(line.startswith("#") for line in text.splitlines()[:2]))
        self.assertIn("root /opt/i renew-cert\n", units.cron(agent="/opt/i", renew=True))


class AuditTests(unittest.TestCase):
    def test_paths(self) -> None:
        """Everything that decides about root is watched, at the paths that are used, with the known keys."""
        text = units.audit_text(units.audit_rules(hash_file="/etc/identree/breakglass.hash"))
        for rule in (
            "-w /etc/identree/breakglass.hash -p r -k identree-breakglass",
            "-w /var/run/identree-breakglass-used -p wa -k identree-breakglass-report",
            "-w /etc/identree/ -p wa -k identree-config",
            "-w /etc/pam.d/sudo -p wa -k identree-pam-config",
            "-w /etc/pam.d/sudo-i -p wa -k identree-pam-config",
            "-w /etc/sssd/sssd.conf -p wa -k identree-sssd-config",
            "-w /etc/identree/client.key -p r -k identree-mtls-key",
            "-w /usr/local/bin/identree -p wa -k identree-config",
        ):
            self.assertIn(rule + "\n", text)
        self.assertEqual({key for _, _, key in units.audit_rules()}, set(units.AUDIT_KEYS))

    def test_syntax(self) -> None:
        """Each line is one that auditctl reads as it is meant; others are refused."""
        for line in ("", "# x", "-w /a -p rwxa -k k", "-w /etc/identree/ -p wa -k identree-config"):
            self.assertEqual(units.audit_problem(line), "")
        for line in (
            "-w a -p r -k k",
            "-w /a b -p r -k k",
            "-w /a -p q -k k",
            "-w /a -p rr -k k",
            "-w /a -p r -k ",
            "-w /a -p r",
            "-a always,exit -S all",
            "-w /ä -p r -k k",
            "-w /a\t -p r -k k",
            f"-w /{'a' * 4096} -p r -k k",
            f"-w /a -p r -k {'k' * 300}",
        ):
            self.assertNotEqual(units.audit_problem(line), "", line)
        with self.assertRaises(ValueError):
            units.audit_text(units.audit_rules(hash_file="/etc/my hash"))

    def test_augenrules_takes_them(self) -> None:
        """augenrules keeps every rule."""
        with tempfile.TemporaryDirectory() as directory:
            rules = Path(directory) / "rules.d"
            rules.mkdir()
            text = units.audit_text(units.audit_rules())
            (rules / "identree.rules").write_text(text)
            program = Path(shutil.which("augenrules") or "").read_text()
            program = program.replace("/etc/audit/", f"{directory}/")
            done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 0, done.stderr)
            made = (Path(directory) / "audit.rules").read_text().splitlines()
            self.assertEqual(
                [line for line in made if line.startswith("-w")],
                [line for line in text.splitlines() if line.startswith("-w")],
            )
