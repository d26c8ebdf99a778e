"""client.conf: syntax, checks, trust in the file, pushed values."""

from __future__ import annotations

import os
import tempfile
import unittest
from pathlib import Path

from identree.agent import config
from identree.agent.config import Config, ConfigError, parse, split_url

GOOD = {"IDENTREE_SERVER_URL": "https://id.example.com/", "IDENTREE_HOSTNAME": "web01"}


class ParseTests(unittest.TestCase):
    def test_syntax(self) -> None:
        """Comments, export, quotes, blanks, duplicates; what is no assignment is ignored."""
        text = "# c\n\n export A = 'x y' \nB=\"q\nC=\nD=1=2 # no comment\nnonsense\nE=1\nE=2\nF=''\n"
        self.assertEqual(parse(text), {"A": "x y", "B": '"q', "D": "1=2 # no comment", "E": "2"})


class UrlTests(unittest.TestCase):
    def test_parts(self) -> None:
        """Default ports, ports, IPv6, base paths."""
        for url, parts in {
            "https://id.example.com": ("https", "id.example.com", 443, ""),
            "http://127.0.0.1:8090": ("http", "127.0.0.1", 8090, ""),
            "https://[::1]:8443/id": ("https", "::1", 8443, "/id"),
        }.items():
            self.assertEqual(split_url(url, "f"), parts)

    def test_refused(self) -> None:
        """Other schemes, credentials, queries, fragments, blanks, bad ports, non-ASCII names."""
        for url in (
            "id.example.com",
            "HTTPS://x",
            "ftp://x",
            "https://",
            "https://u:p@x",
            "https://x?y",
            "https://x/#y",
            "https://x y",
            "https://x:0",
            "https://x:99999",
            "https://x:http",
            "https://bücher.example",
            "https://[::1",
            "https://x\ny",
        ):
            with self.subTest(url), self.assertRaises(ConfigError):
                split_url(url, "f")


class ConfigTests(unittest.TestCase):
    def test_defaults(self) -> None:
        """Two seconds, two minutes; the trailing slash is cut."""
        made = Config("f", GOOD)
        self.assertEqual((made.poll_interval, made.timeout, made.server_url), (2.0, 120.0, "https://id.example.com"))

    def test_bad_duration(self) -> None:
        """A bad duration is the default and a warning; too short an interval is the default."""
        made = Config("f", {**GOOD, "IDENTREE_TIMEOUT": "soon", "IDENTREE_POLL_INTERVAL": "0.5s"})
        self.assertEqual((made.timeout, made.poll_interval, len(made.warnings)), (120.0, 2.0, 1))

    def test_pushed(self) -> None:
        """Pushed values are applied within bounds, nonsense is ignored."""
        for pushed, interval, timeout in (
            ({"poll_interval": "1ms", "timeout": "1s"}, 1.0, 5.0),
            ({"poll_interval": "5s", "timeout": "1h"}, 5.0, 600.0),
            ({"poll_interval": 5, "timeout": "soon"}, 2.0, 120.0),
            ({"timeout": "0"}, 2.0, 120.0),
        ):
            made = Config("f", GOOD)
            made.push(pushed)
            self.assertEqual((made.poll_interval, made.timeout), (interval, timeout), pushed)

    def test_hostname(self) -> None:
        """Lower case, one trailing dot removed; the kernel's name by default."""
        self.assertEqual(Config("f", {**GOOD, "IDENTREE_HOSTNAME": "Web01.Example.COM."}).hostname, "web01.example.com")
        self.assertEqual(Config("f", {"IDENTREE_SERVER_URL": "https://x"}).hostname, os.uname().nodename.lower())


class FileTests(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "client.conf"
        self.path.write_text("IDENTREE_SERVER_URL=https://id.example.com\n")
        self.path.chmod(0o600)

    def refused(self, word: str) -> None:
        with self.assertRaises(ConfigError) as caught:
            config.load(str(self.path))
        self.assertIn(word, str(caught.exception))

    def test_good(self) -> None:
        """A file of its owner alone is read."""
        self.assertEqual(config.load(str(self.path)).host, "id.example.com")

    def test_writable_by_others(self) -> None:
        """A file that others can write is refused, and the remedy named."""
        for mode in (0o620, 0o602):
            self.path.chmod(mode)
            self.refused("chmod 600")

    def test_readable_by_others(self) -> None:
        """A file that others can read is a warning."""
        self.path.chmod(0o644)
        self.assertIn("chmod 600", config.load(str(self.path)).warnings[0])

    def test_symbolic_link(self) -> None:
        """A link is not followed."""
        link = self.path.with_name("link")
        link.symlink_to(self.path)
        self.path = link
        self.refused("symbolic link")

    def test_not_a_file(self) -> None:
        """A directory or a pipe is refused without waiting."""
        pipe = self.path.with_name("pipe")
        os.mkfifo(pipe, 0o600)
        self.path = pipe
        self.refused("not a regular file")

    def test_huge(self) -> None:
        """A huge file is refused."""
        self.path.write_text("#" * 70000)
        self.refused("larger than")

    def test_missing(self) -> None:
        """A missing file says which key is missing and where it belongs."""
        self.path.unlink()
        self.refused("IDENTREE_SERVER_URL is not set")

    def test_foreign_owner(self) -> None:
        """A file of somebody else is refused (only root can make one)."""
        if os.geteuid() == 0:
            os.chown(self.path, 65534, 65534)
            self.refused("chown root")

    def test_override(self) -> None:
        """Overrides go before the file, empty ones do not count."""
        made = config.load(
            str(self.path), {"IDENTREE_SERVER_URL": "https://other", "IDENTREE_TIMEOUT": "", "HOME": "x"}
        )
        self.assertEqual(made.host, "other")
