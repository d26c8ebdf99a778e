"""The syntaxes of the configuration files."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.settings.files import MAX_FILE, parse_conf, parse_toml, read_file, read_lines
from tests.settings.fakes import directory


class ConfTests(SynchronousTestCase):
    def test_syntax(self) -> None:
        """Comments, quotes, export; the last duplicate; nothing else has a meaning."""
        raw = b"""
            # comment
            A=plain
            export B = 'single # not a comment'
            C="double"
            D="unequal'
            E="
            F=a=b
            G=
            H=$A \\n
            no assignment
            A=last
        """
        self.assertEqual(
            parse_conf(raw),
            {
                "A": "last",
                "B": "single # not a comment",
                "C": "double",
                "D": "\"unequal'",
                "E": '"',
                "F": "a=b",
                "G": "",
                "H": "$A \\n",
            },
        )

    def test_bounds(self) -> None:
        """A line over 64 KiB, or one that is not UTF-8, is an error that names it."""
        e = self.assertRaises(ValueError, parse_conf, b"A=1\nB=" + b"x" * 65536)
        self.assertIn("line 2", str(e))
        e = self.assertRaises(ValueError, parse_conf, b"A=\xff")
        self.assertIn("line 1", str(e))


class TomlTests(SynchronousTestCase):
    def test_values(self) -> None:
        """Texts, booleans, integers and lists, with escapes and comments."""
        raw = b"""
            # three comment lines
            [server]
            external_url = "https://x" # comment
            [ldap] # comment
            enabled = false
            uid_base = 5000
            [admin]
            groups = ["a, b", "c"] # comment
            empty = []
            escaped = "a\\"b\\\\c\\nd"
        """
        values, warning = parse_toml(raw)
        self.assertEqual(warning, "")
        self.assertEqual(
            values,
            {
                "server.external_url": "https://x",
                "ldap.enabled": "false",
                "ldap.uid_base": "5000",
                "admin.groups": ("a, b", "c"),
                "admin.empty": (),
                "admin.escaped": 'a"b\\c\nd',
            },
        )

    def test_fallback(self) -> None:
        """Bare digits with a leading zero, which deployed versions wrote, are read line by line, with a warning."""
        values, warning = parse_toml(b'[oidc]\nclient_id = 0123\nissuer_url = "https://id"\n')
        self.assertEqual(values, {"oidc.client_id": "0123", "oidc.issuer_url": "https://id"})
        self.assertIn("line by line", warning)

    def test_lines(self) -> None:
        """What the reader of deployed versions understood."""
        for line, value in (
            ('"a # b" # c', "a # b"),
            ('"a\\"b\\tc"', 'a"b\tc'),
            ("'quoted'", "'quoted'"),
            ("true # yes", "true"),
            ("[]", ()),
            ('["a", "b", "c"]', ("a", "b", "c")),
            ('[\'a\', "b\\"c", d]', ("a", 'b"c', "d")),
            ('["a # b", "c"] # d', ("a # b", "c")),
            ('["admin, ops", "users"]', ("admin, ops", "users")),
            ("rawvalue", "rawvalue"),
            ("a, b", "a, b"),
        ):
            self.assertEqual(read_lines(f"[s] # comment\nkey = {line}\n"), {"s.key": value}, line)

    @given(st.text(max_size=60))
    def test_noise(self, text: str) -> None:
        """Any text is read somehow."""
        parse_toml(b"[a]\nb = " + text.encode("utf-8", "replace"))

    def test_not_utf8(self) -> None:
        """Other encodings are an error."""
        self.assertRaises(ValueError, parse_toml, b"\xff")


class ReadingTests(SynchronousTestCase):
    def test_mode(self) -> None:
        """A file is read with its mode."""
        path = str(directory(self) / "file")
        with open(path, "wb") as file:
            file.write(b"x")
        os.chmod(path, 0o640)
        read = read_file(path)
        self.assertEqual((read.raw, read.mode), (b"x", 0o640))

    def test_not_a_file(self) -> None:
        """A directory and a missing file are errors; a FIFO nobody writes to does not stop the start."""
        path = str(directory(self) / "file")
        self.assertRaises(FileNotFoundError, read_file, path)
        os.mkdir(path)
        self.assertRaises(OSError, read_file, path)
        fifo = str(directory(self) / "fifo")
        os.mkfifo(fifo)
        self.assertEqual(read_file(fifo).raw, b"")

    def test_too_large(self) -> None:
        """A file beyond the bound is not read."""
        path = str(directory(self) / "file")
        with open(path, "wb") as file:
            file.truncate(MAX_FILE + 1)
        self.assertRaises(OSError, read_file, path)
