"""The archive: reproducible, small at the start, and its commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import unittest
import zipfile

import identree
from tests.agent.harness import archive, interpreters
from tools import build_agent

# What the way to the first byte may import (spec/host-agent section 18.1); what these import themselves comes along.
ALLOWED = "os, sys, time, errno, fcntl, signal, select, json, hmac, socket, ssl"

# Prints what was loaded when the first byte goes out, beyond what is allowed.
PROBE = f"""
import sys, zipimport
import __future__
import {ALLOWED}
allowed = set(sys.modules)
class Probe(socket.socket):
    def send(self, *data):
        os.write(1, "\\n".join(sorted(set(sys.modules) - allowed)).encode())
        os._exit(0)
    def connect_ex(self, address):
        return 0
socket.socket = Probe
sys.path.insert(0, sys.argv[1])
sys.argv = ["identree"]
from identree.agent import config
config._read = lambda path, warnings: "IDENTREE_SERVER_URL=http://127.0.0.1:9\\nIDENTREE_INSECURE_ALLOW_HTTP_ESCROW=1"
from identree.agent.main import main
main()
"""

FIRST = {"main", "build", "text", "watch", "pam", "config", "caller", "wire"}


def run(*arguments: str, python: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    command = [python or os.path.realpath(sys.executable), "-ISB", archive(), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=30, stdin=subprocess.DEVNULL)


class BuildTests(unittest.TestCase):
    def test_reproducible(self) -> None:
        """The same version and commit give the same bytes, in sorted order."""
        once = build_agent.build("1.2.3", "abc")
        self.assertEqual(once, build_agent.build("1.2.3", "abc"))
        with zipfile.ZipFile(archive()) as packed:
            self.assertEqual(packed.namelist(), sorted(packed.namelist()))
            self.assertEqual({entry.date_time for entry in packed.infolist()}, {(1980, 1, 1, 0, 0, 0)})

    def test_executable(self) -> None:
        """The file can be executed, by an absolute and isolated interpreter."""
        self.assertEqual(os.stat(archive()).st_mode & 0o7777, 0o755)
        with open(archive(), "rb") as file:
            self.assertEqual(file.readline(), b"#!/usr/bin/python3 -ISB\n")

    def test_usage(self) -> None:
        """Without target the builder says how it is called."""
        command = [sys.executable, build_agent.__file__]
        self.assertEqual(subprocess.run(command, capture_output=True, timeout=30).returncode, 1)

    def test_no_commit(self) -> None:
        """Outside a checkout the version stands alone."""
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "identree.pyz")
            with open(path, "wb") as file:
                file.write(build_agent.build("1.2.3", ""))
            done = subprocess.run([sys.executable, "-ISB", path, "version"], capture_output=True, text=True, timeout=30)
        self.assertEqual(done.stdout, "1.2.3\n")


class StartTests(unittest.TestCase):
    def test_imports(self) -> None:
        """Until the first byte is sent nothing is imported but what the start-up budget allows, on any Python."""
        for version, path in interpreters().items():
            with self.subTest(version):
                command = [path, "-ISB", "-c", PROBE, archive()]
                environ = {"PAM_USER": "alice", "PAM_SERVICE": "sudo", "PAM_TYPE": "auth"}
                done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=30)
                loaded = set(done.stdout.split())
                self.assertEqual(
                    loaded, {"identree", "identree.agent", *(f"identree.agent.{name}" for name in FIRST)}, done
                )

    def test_server_modules_are_absent(self) -> None:
        """The archive holds the agent and nothing else of identree."""
        with zipfile.ZipFile(archive()) as packed:
            others = [name for name in packed.namelist() if not name.startswith("identree/agent/")]
        self.assertEqual(others, ["__main__.py", "identree/__init__.py"])


class CommandTests(unittest.TestCase):
    def test_version(self) -> None:
        """The first word is the server's version, so that installers can compare."""
        for argument in ("--version", "-v", "version"):
            done = run(argument)
            self.assertEqual((done.returncode, done.stdout.split()[0]), (0, identree.__version__))
            self.assertRegex(done.stdout, re.compile(r"^\S+( \([0-9a-f]+\))?\n$"))

    def test_help(self) -> None:
        """Help goes to standard output."""
        for argument in ("--help", "-h", "help"):
            done = run(argument)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertIn("identree setup", done.stdout)

    def test_unknown_word(self) -> None:
        """An unknown word is named on standard error, cleaned."""
        done = run("frobni\x1bcate")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("'frobnicate'", done.stderr)

    def test_unknown_option(self) -> None:
        """An unknown option is the PAM helper, as ever."""
        done = run("--debug")
        self.assertEqual(done.returncode, 1)
        self.assertIn("PAM_USER is not set", done.stdout)

    def test_server_commands(self) -> None:
        """Commands that are not here say where they are, and fail."""
        for command in ("serve", "add-host", "audit"):
            done = run(command)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn("server", done.stderr)

    def test_host_commands(self) -> None:
        """Every command of a host is found, and explains itself."""
        from identree.agent.main import _COMMANDS

        for command in _COMMANDS:
            done = run(command, "--help")
            self.assertEqual((done.returncode, done.stderr), (0, ""), command)
            self.assertIn(f"identree {command}", done.stdout)

    def test_bug(self) -> None:
        """A bug is one short line on the terminal, and the helper fails."""
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); sys.argv = ['identree']\n"
            "from identree.agent import journal, main\njournal.enabled = False\n"
            "main.dispatch = lambda a: 1 / 0\nmain.main()"
        )
        done = subprocess.run(
            [sys.executable, "-ISB", "-c", code, archive()], capture_output=True, text=True, timeout=30
        )
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout, "identree: internal error; the details are in the system log\n")
        self.assertEqual(done.stderr, "")

    def test_override_without_terminal(self) -> None:
        """Without controlling terminal, as under pam_exec, nobody's environment names the file, root's or not."""
        code = (
            "import os, sys; sys.path.insert(0, sys.argv[1])\nfrom identree.agent import pam\n"
            "for id in 0, 1000:\n"
            "    os.geteuid = os.getuid = os.getgid = os.getegid = lambda: id\n"
            "    print(pam.conf_path({'IDENTREE_CLIENT_CONF': '/tmp/mine'}))"
        )
        command = [sys.executable, "-ISB", "-c", code, archive()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, start_new_session=True)
        self.assertEqual(done.stdout, "/etc/identree/client.conf\n" * 2, done)

    def test_environment(self) -> None:
        """What could redirect, preload or reconfigure is removed from our own environment."""
        code = (
            "import os, sys; sys.path.insert(0, sys.argv[1])\nfrom identree.agent import config\n"
            "config.strip_environment()\nprint(sorted(os.environ))"
        )
        environ = dict.fromkeys(
            (
                "IDENTREE_X",
                "http_proxy",
                "LD_DEBUG_OUTPUT_",
                "SSL_CERT_FILE",
                "OPENSSL_CONF",
                "RES_OPTIONS",
                "PAM_USER",
            ),
            "x",
        )
        command = [sys.executable, "-ISB", "-c", code, archive()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env={**environ, "LC_ALL": "C.UTF-8"})
        self.assertEqual(done.stdout, "['LC_ALL', 'LD_DEBUG_OUTPUT_', 'PAM_USER']\n", done.stderr)
