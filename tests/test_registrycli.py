"""The host registry from the command line: what goes where, and what it does to the database."""

from __future__ import annotations

import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

COMMAND = "import sys; from identree.registrycli import main; sys.exit(main(sys.argv[1], sys.argv[2:]))"
SECONDS = 60
HEX = re.compile(r"[0-9a-f]{64}\n")


class RegistryCliTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        self.file = self.path / "hosts.json"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.path),
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "IDENTREE_EXTERNAL_URL": "https://identree.example",
            "IDENTREE_OIDC_ISSUER_URL": "https://id.example",
            "IDENTREE_OIDC_CLIENT_ID": "identree",
            "IDENTREE_OIDC_CLIENT_SECRET": "nobody asks for it",
            "IDENTREE_SHARED_SECRET": "shared-secret-0123456789abcdef0123",
            "IDENTREE_SESSION_SECRET": "session-secret-0123456789abcdef012",
            "IDENTREE_DATABASE_DSN": str(self.path / "identree.db"),
            "IDENTREE_LDAP_ENABLED": "false",
            "IDENTREE_HOST_REGISTRY_FILE": str(self.file),
            "IDENTREE_TOML_CONFIG_FILE": str(self.path / "identree.toml"),
        }

    def run_command(self, *words: str, **options: Any) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *words],
            **{
                "check": False,
                "cwd": self.path,
                "env": self.environment,
                "stdin": subprocess.DEVNULL,
                "capture_output": True,
                "timeout": SECONDS,
                "text": True,
                **options,
            },
        )
        return done.returncode, done.stdout or "", done.stderr or ""

    def fine(self, *words: str) -> str:
        status, out, err = self.run_command(*words)
        self.assertEqual(status, 0, err)
        self.assertNotIn("Traceback", err)
        return out

    def refused(self, said: str, *words: str) -> None:
        status, out, err = self.run_command(*words)
        self.assertEqual((status, out), (1, ""), err)
        self.assertIn(said, err)
        self.assertNotIn("Traceback", err)

    def rows(self, sql: str) -> list[Any]:
        connection = sqlite3.connect(self.path / "identree.db")
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def test_add(self) -> None:
        """Standard output has the secret and nothing else; standard error says the rest, and not the secret."""
        status, out, err = self.run_command("add-host", "Web01.", "--users", "alice,bob", "--group=g", "--yes", "more")
        self.assertEqual(status, 0, err)
        self.assertRegex(out, rf"\A{HEX.pattern}\Z")
        for said in ("web01", "alice, bob", "Group: g", "/etc/identree/client.conf", "IDENTREE_SHARED_SECRET="):
            self.assertIn(said, err)
        self.assertNotIn(out.strip(), err)
        digest = sha256(out.strip().encode()).hexdigest()
        [row] = self.rows("SELECT hostname, secret_sha256, users, host_group FROM registry_hosts")
        self.assertEqual(row, ("web01", digest, '["alice", "bob"]', "g"))
        self.assertEqual(json.loads(self.file.read_text())["web01"]["secret_sha256"], digest)
        [(kind, fields)] = self.rows("SELECT kind, fields FROM outside_events")
        self.assertEqual((kind, json.loads(fields)["reason"]), ("host_registered", "identree add-host"))

    def test_first(self) -> None:
        """The first host is not registered by the way: who cannot be asked must say so."""
        self.refused("--yes", "add-host", "web01")
        self.refused("every host that is not\nregistered is refused", "enrol", "web01")
        self.assertEqual(self.rows("SELECT * FROM registry_hosts"), [])
        self.environment["IDENTREE_HOST_REGISTRY"] = "off"
        self.assertIn("switched off", self.run_command("add-host", "web01")[2])

    def test_asked(self) -> None:
        """On a terminal the question is asked there, and only yes is yes; standard output stays clean."""
        for answer, status in (("n\n", 1), ("\n", 1), ("y\n", 0)):
            controller, terminal = pty.openpty()
            try:
                os.write(controller, answer.encode())
                done = self.run_command(
                    "add-host", "web01", stdin=terminal, stderr=terminal, stdout=subprocess.PIPE, capture_output=False
                )
                said = os.read(controller, 65536).decode()
            finally:
                os.close(terminal)
                os.close(controller)
            self.assertEqual(done[0], status, said)
            self.assertIn("Go on? [y/N]", said)
            self.assertEqual(HEX.fullmatch(done[1]) is not None, status == 0)

    def test_list(self) -> None:
        """One line for each host, sorted; nothing on standard output when there is none."""
        self.assertEqual(self.run_command("list-hosts"), (0, "", "No hosts are registered.\n"))
        self.fine("add-host", "web02", "--yes")
        self.fine("add-host", "web01", "--users", "bob,alice", "--group", "g")
        [(at,)] = self.rows("SELECT date(registered_at, 'unixepoch') FROM registry_hosts WHERE hostname = 'web01'")
        self.assertEqual(self.fine("list-hosts").splitlines()[0], f"web01  users=alice,bob  registered={at}")
        self.assertRegex(self.fine("list-hosts").splitlines()[1], r"\Aweb02  users=\*  registered=\d{4}-\d\d-\d\d\Z")
        listed = json.loads(self.fine("list-hosts", "--json"))
        self.assertEqual([(one["hostname"], one["group"]) for one in listed], [("web01", "g"), ("web02", "")])

    def test_rotate(self) -> None:
        """Another secret, alone on standard output."""
        first = self.fine("add-host", "web01", "--yes")
        second = self.fine("rotate-host-secret", "WEB01")
        self.assertRegex(second, rf"\A{HEX.pattern}\Z")
        self.assertNotEqual(first, second)
        self.refused("not registered", "rotate-host-secret", "web02")

    def test_remove(self) -> None:
        """Nothing on standard output; after the last one it is said what that means."""
        self.fine("add-host", "web01", "--yes")
        status, out, err = self.run_command("remove-host", "web01")
        self.assertEqual((status, out), (0, ""))
        self.assertIn("IDENTREE_HOST_REGISTRY=off", err)
        self.refused("not registered", "remove-host", "web01")
        self.assertEqual(json.loads(self.file.read_text()), {})

    def test_change(self) -> None:
        """Who may ask, and the group."""
        self.fine("add-host", "web01", "--yes")
        self.fine("change-host", "web01", "--users", "bob", "--group", "g")
        self.assertEqual(self.rows("SELECT users, host_group FROM registry_hosts"), [('["bob"]', "g")])
        self.fine("change-host", "web01", "--no-group", "--users", "*")
        self.assertEqual(self.rows("SELECT users, host_group FROM registry_hosts"), [('["*"]', "")])
        self.refused("nothing to change", "change-host", "web01")
        self.refused("not registered", "change-host", "web02", "--no-group")

    def test_enrol(self) -> None:
        """A token, alone on standard output; the database has its digest."""
        status, out, err = self.run_command("enrol", "web01", "--ttl", "30m", "--yes")
        self.assertEqual(status, 0, err)
        self.assertRegex(out, r"\Aidentree-enrol-[0-9a-f]{64}\n\Z")
        self.assertIn("https://identree.example/api/enrol", err)
        self.assertNotIn(out.strip(), err)
        [(digest, life)] = self.rows("SELECT token_sha256, expires_at - created_at FROM enrolment_tokens")
        self.assertEqual((digest, life), (sha256(out.strip().encode()).hexdigest(), 1800))
        self.fine("add-host", "web02", "--yes")
        self.refused("--again", "enrol", "web02")
        self.fine("enrol", "web02", "--again")

    def test_usage(self) -> None:
        """Words that are off are an error with the usage, and touch nothing; the exit status is 1."""
        for words in (
            ("add-host",),
            ("add-host", "web01", "--users"),
            ("add-host", "web01", "--users", "--yes"),
            ("add-host", "web01", "--users="),
            ("add-host", "web01", "--nope"),
            ("remove-host",),
            ("rotate-host-secret",),
            ("list-hosts", "--users"),
            ("enrol", "--ttl", "1h"),
        ):
            self.refused(f"usage: identree {words[0]}", *words)
        self.assertEqual(os.listdir(self.path), [])
        self.assertIn("usage: identree enrol", self.fine("enrol", "--help"))

    def test_values(self) -> None:
        """Names and values that cannot be: the message says what would be right."""
        self.refused("reserved", "add-host", "www", "--yes")
        self.refused("letter", "add-host", "123", "--yes")
        self.refused("1 to 253", "add-host", "a/b", "--yes")
        self.refused("users:", "add-host", "web01", "--users", "a b", "--yes")
        self.refused("group:", "add-host", "web01", "--group", "a b", "--yes")
        self.refused("90s, 10m or 1h30m", "enrol", "web01", "--ttl", "5", "--yes")
        self.refused("1m0s", "enrol", "web01", "--ttl", "5s", "--yes")
        self.environment["IDENTREE_HOST_REGISTRY"] = "off"
        self.refused("switched off", "enrol", "web01")

    def test_taken_over(self) -> None:
        """The hosts of an earlier version are not lost by a command that comes before the new server."""
        self.file.touch(0o600)
        self.file.write_text(json.dumps({"old": {"secret": "s" * 64, "users": ["*"]}}))
        status, _, err = self.run_command("add-host", "web01")
        self.assertEqual(status, 0, err)
        self.assertIn("1 hosts", err)
        self.assertEqual(self.rows("SELECT hostname FROM registry_hosts ORDER BY 1"), [("old",), ("web01",)])

    def test_bad_file(self) -> None:
        """If they cannot be taken over, nothing is done."""
        self.file.touch(0o600)
        self.file.write_text("{nonsense")
        self.refused("hosts.json", "add-host", "web01", "--yes")
        self.assertEqual(self.rows("SELECT * FROM registry_hosts"), [])

    def test_file_not_written(self) -> None:
        """The database has the change, so it is one; that the export is old is said."""
        self.environment["IDENTREE_HOST_REGISTRY_FILE"] = str(self.path / "nowhere" / "hosts.json")
        status, out, err = self.run_command("add-host", "web01", "--yes")
        self.assertEqual(status, 0, err)
        self.assertRegex(out, rf"\A{HEX.pattern}\Z")
        self.assertIn("The database has the change", err)

    def test_database_away(self) -> None:
        """No database, no change, no secret."""
        self.environment["IDENTREE_DATABASE_DSN"] = str(self.path / "nowhere" / "identree.db")
        self.refused("nothing was changed", "add-host", "web01", "--yes")

    def test_no_settings(self) -> None:
        """Without the server's settings there is no telling which database it would be."""
        del self.environment["IDENTREE_EXTERNAL_URL"]
        self.refused("IDENTREE_EXTERNAL_URL", "list-hosts")

    def test_secret_that_cannot_be_written(self) -> None:
        """A full disk behind standard output does not pass for success."""
        with Path("/dev/full").open("w") as full:
            status, _, err = self.run_command(
                "add-host", "web01", "--yes", stdout=full, stderr=subprocess.PIPE, capture_output=False
            )
        self.assertEqual(status, 1)
        self.assertIn("rotate-host-secret web01", err)
