"""``identree directory`` and ``identree certificates``: what the words of a command mean, and what comes out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from identree import directoryparts
from identree.core.errors import StorageUnavailable
from identree.directory.archive import BadArchive
from identree.directory.ids import Numbers
from identree.directory.source import Source, SourceGroup, SourceUser
from identree.directorycli import certificates, main
from identree.ldap import selfcheck
from identree.ldap.selfcheck import Subject, Target

BASE = "dc=example,dc=com"
READER, PASSWORD = f"cn=readonly,{BASE}", "readonly-password-0123456789"


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        self.environ = {
            "IDENTREE_EXTERNAL_URL": "https://identree.example.com",
            "IDENTREE_SHARED_SECRET": "cli-shared-0123456789abcdef01234",
            "IDENTREE_SESSION_SECRET": "cli-session-0123456789abcdef0123",
            "IDENTREE_DATABASE_DSN": str(self.path / "identree.db"),
            "IDENTREE_OIDC_ISSUER_URL": "https://id.example.com",
            "IDENTREE_OIDC_CLIENT_ID": "identree",
            "IDENTREE_OIDC_CLIENT_SECRET": "a-client-secret",
            "IDENTREE_TOML_CONFIG_FILE": str(self.path / "identree.toml"),
            "IDENTREE_SUDO_RULES_FILE": str(self.path / "sudorules.json"),
            "IDENTREE_LDAP_ENABLED": "true",
            "IDENTREE_LDAP_BASE_DN": BASE,
            "IDENTREE_LDAP_BIND_DN": READER,
            "IDENTREE_LDAP_BIND_PASSWORD": PASSWORD,
        }

    def run_main(self, *words: str, command: Callable[[list[str]], int] = main) -> int:
        """Its exit status; ``self.out`` and ``self.err`` have what it printed."""
        out, err = StringIO(), StringIO()
        with patch.dict(os.environ, self.environ, clear=True), redirect_stdout(out), redirect_stderr(err):
            status = command(list(words))
        self.out, self.err = out.getvalue(), err.getvalue()
        return status

    def file(self, content: bytes) -> str:
        path = self.path / "password"
        path.write_bytes(content)
        return str(path)


class WordsTests(Case):
    def test_help(self) -> None:
        self.assertEqual(self.run_main("--help"), 0)
        self.assertIn("check", self.out)
        self.assertIn("show", self.out)

    def test_mistakes(self) -> None:
        """No command, an unknown one and a missing word are the caller's mistakes."""
        for words in ((), ("look",), ("show",), ("check", "--colour")):
            self.assertEqual(self.run_main(*words), 2, words)
            self.assertIn("usage", self.err)

    def test_bad_settings(self) -> None:
        """All mistakes in the settings are said, and nothing is asked."""
        self.environ["IDENTREE_CHALLENGE_TTL"] = "soon"
        self.environ["IDENTREE_LDAP_UID_BASE"] = "5"
        for words in (("check",), ("show", "alice")):
            self.assertEqual(self.run_main(*words), 2)
            self.assertIn("the settings cannot be used", self.err)
            self.assertIn("IDENTREE_CHALLENGE_TTL", self.err)
            self.assertIn("IDENTREE_LDAP_UID_BASE", self.err)
        self.assertEqual(self.run_main("reset", "web1", command=certificates), 2)
        self.assertIn("IDENTREE_CHALLENGE_TTL", self.err)


class CheckTests(Case):
    def asked(self, *words: str, status: int = 0) -> tuple[Target, Subject]:
        """What the check would ask."""
        with patch.object(selfcheck, "check", return_value=status) as check:
            self.assertEqual(self.run_main("check", *words), status, self.err if hasattr(self, "err") else "")
        target, subject, *_ = check.call_args.args
        return target, subject

    def test_own_server(self) -> None:
        """Without words: this machine's server, as the read-only account."""
        target, subject = self.asked()
        self.assertEqual(target, Target(url="ldap://127.0.0.1:389", base_dn=BASE, bind_dn=READER, password=PASSWORD))
        self.assertEqual(subject, Subject())

    def test_addresses(self) -> None:
        """An address that stands for all of them is reached by loopback, any other by itself."""
        for listen, url in (
            (":1389", "ldap://127.0.0.1:1389"),
            ("0.0.0.0:389", "ldap://127.0.0.1:389"),
            ("[::]:389", "ldap://127.0.0.1:389"),
            ("192.0.2.1:389", "ldap://192.0.2.1:389"),
            ("[2001:db8::1]:389", "ldap://[2001:db8::1]:389"),
        ):
            self.environ["IDENTREE_LDAP_LISTEN_ADDR"] = listen
            self.assertEqual(self.asked()[0].url, url)

    def test_no_plain_listener(self) -> None:
        """Then another address must be named."""
        self.environ["IDENTREE_LDAP_LISTEN_ADDR"] = ""
        self.assertEqual(self.run_main("check"), 2)
        self.assertIn("the plain LDAP listener is off; name another with --url", self.err)
        self.assertEqual(self.asked("--url", "ldaps://a:636")[0].url, "ldaps://a:636")

    def test_every_word(self) -> None:
        """With everything said, no settings are needed."""
        self.environ = {}
        words = [
            *("--url", "ldaps://ldap.example.com", "--base", "o=x", "--bind-dn", "cn=y,o=x"),
            *("--password-file", self.file("pässword \r\n".encode()), "--starttls", "--ca", "ca", "--cert", "cert"),
            *("--key", "key", "--user", "alice", "--group", "ops", "--host", "web1"),
        ]
        target, subject = self.asked(*words)
        self.assertEqual(
            target,
            Target(
                url="ldaps://ldap.example.com",
                base_dn="o=x",
                bind_dn="cn=y,o=x",
                password="pässword ",
                start_tls=True,
                ca_file="ca",
                cert_file="cert",
                key_file="key",
            ),
        )
        self.assertEqual(subject, Subject(user="alice", group="ops", host="web1"))

    def test_somebody_else(self) -> None:
        """The read-only account's password is for nobody else."""
        self.assertEqual(self.asked("--bind-dn", "cn=other,o=x")[0].password, "")
        anonymous = self.asked("--bind-dn", "")[0]
        self.assertEqual((anonymous.bind_dn, anonymous.password), ("", ""))

    def test_status(self) -> None:
        """What the check found is the status of the command."""
        self.asked(status=1)

    def test_password_files(self) -> None:
        """One that is not there, or is no text, is a mistake of the caller's; its content is nowhere."""
        for name in (str(self.path / "none"), self.file(b"\xff\xfesecret"), str(self.path)):
            self.assertEqual(self.run_main("check", "--password-file", name), 2)
            self.assertIn(f"{name} cannot be read", self.err)
            self.assertNotIn("secret", self.err)


class ShowTests(Case):
    """Full mode: from what the database has."""

    def setUp(self) -> None:
        super().setUp()
        self.environ["IDENTREE_POCKETID_API_KEY"] = "pocketid-api-key-0123456789"

    def show(self, name: str, found: Any) -> int:
        """:param found: what the database has, or the exception instead."""
        outcome = {"side_effect": found} if isinstance(found, Exception) else {"return_value": found}
        with patch.object(directoryparts, "beside_the_server", **outcome):
            return self.run_main("show", name)

    source = Source(
        users=(SourceUser(id="u1", username="alice", first_name="Alice", last_name="Smith"),),
        groups=(SourceGroup(id="g1", name="ops", member_ids=("u1",), claims=(("sudoCommands", "/usr/bin/apt, apt"),)),),
    )
    numbers = Numbers(uids={"u1": 200007}, gids={"u1": 200008, "g1": 200009})

    def test_person(self) -> None:
        """Numbers, groups and rules."""
        self.assertEqual(self.show("alice", (self.source, self.numbers)), 0)
        for part in ("alice", "Alice Smith", "200007", "ops", "/usr/bin/apt"):
            self.assertIn(part, self.out)
        self.assertFalse(self.out.endswith("\n\n"))

    def test_group(self) -> None:
        """With what is wrong with its rule."""
        self.assertEqual(self.show("ops", (self.source, self.numbers)), 0)
        self.assertIn("200009", self.out)
        self.assertIn("apt", self.out)

    def test_nobody(self) -> None:
        self.assertEqual(self.show("bob", (self.source, self.numbers)), 1)
        self.assertEqual(self.out, "nothing in the directory is called 'bob'\n")

    def test_never_read(self) -> None:
        """Is another failure than somebody who is not there."""
        self.assertEqual(self.show("alice", None), 1)
        self.assertIn("nothing was ever read from PocketID", self.err)

    def test_troubles(self) -> None:
        """A database that is away or damaged: one line, no traceback."""
        for problem in (
            StorageUnavailable("locked", "in use"),
            BadArchive("damaged"),
            OSError(13, "Permission denied"),
        ):
            self.assertEqual(self.show("alice", problem), 2)
            self.assertIn("the directory cannot be read", self.err)


class ShowRulesTests(Case):
    """Bridge mode: from the rules file, without any database."""

    def save(self, text: str) -> None:
        path = self.path / "sudorules.json"
        path.touch(0o600)
        path.write_text(text)

    def test_group(self) -> None:
        self.save(json.dumps([{"group": "ops", "commands": "/usr/bin/apt", "hosts": "web1"}]))
        self.assertEqual(self.run_main("show", "ops"), 0, self.err)
        self.assertIn("/usr/bin/apt", self.out)
        self.assertIn("web1", self.out)

    def test_nobody(self) -> None:
        """Without a file there are no rules."""
        self.assertEqual(self.run_main("show", "ops"), 1)
        self.assertIn("nothing in the directory is called 'ops'", self.out)

    def test_nonsense(self) -> None:
        self.save("[{")
        self.assertEqual(self.run_main("show", "ops"), 2)
        self.assertIn("the directory cannot be read", self.err)

    def test_readable_for_all(self) -> None:
        """A file that others may write is not believed here either."""
        self.save("[]")
        (self.path / "sudorules.json").chmod(0o666)
        self.assertEqual(self.run_main("show", "ops"), 2)
        self.assertIn("sudorules.json", self.err)


class CertificateTests(Case):
    def reset(self, *words: str, known: Any = True) -> int:
        outcome = {"side_effect": known} if isinstance(known, Exception) else {"return_value": known}
        with patch.object(directoryparts, "beside_the_server", **outcome) as self.database:
            return self.run_main(*words, command=certificates)

    def test_known(self) -> None:
        """Says what it has done, and what it has not."""
        self.assertEqual(self.reset("reset", "WEB1.example.com"), 0)
        self.assertIn("web1.example.com may be given a new certificate", self.out)
        self.assertIn("stays valid", self.out)

    def test_unknown(self) -> None:
        self.assertEqual(self.reset("reset", "web1", known=False), 1)
        self.assertIn("no certificate is on record for web1", self.err)

    def test_words(self) -> None:
        """Nothing is done for a command that is not understood, or a name that is none."""
        for words in ((), ("reset",), ("forget", "web1"), ("reset", "web1", "web2"), ("reset", "no such host")):
            self.assertEqual(self.reset(*words), 2, words)
            self.database.assert_not_called()

    def test_no_database(self) -> None:
        self.assertEqual(self.reset("reset", "web1", known=StorageUnavailable("locked", "in use")), 2)
        self.assertIn("the database cannot be used", self.err)
