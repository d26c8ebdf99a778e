"""A made-up managed host below a directory: its files, its server, and programs that only pretend to be its own."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from identree.agent import setup, setup_files
from tests.agent.scripted import Answer, Request, ScriptedServer

DEBIAN = b"""#%PAM-1.0

# Set up user limits from /etc/security/limits.conf.
session    required   pam_limits.so

@include common-auth
@include common-account
@include common-session-noninteractive
"""
RED_HAT = b"""#%PAM-1.0
auth       include      system-auth
account    include      system-auth
password   include      system-auth
session    include      system-auth
"""
RED_HAT_LOGIN = b"""#%PAM-1.0
auth       include      sudo
account    include      sudo
password   include      sudo
session    optional     pam_keyinit.so force revoke
session    include      sudo
"""

SOLE = b"auth    [success=done default=die]    pam_exec.so    quiet stdout /usr/local/bin/identree\n"
CLASSIC = b"auth    required    pam_exec.so    stdout /usr/local/bin/identree\n"


class PretendCommands(setup_files.Commands):
    """
    :ivar programs: what each answers to its arguments: exit status and text. :ivar calls: how they were called.
    """

    def __init__(self) -> None:
        super().__init__("/")
        self.programs: dict[str, Callable[[list[str]], tuple[int, str]]] = {}
        self.calls: list[str] = []

    def find(self, name: str) -> str:
        return f"/usr/sbin/{name}" if name in self.programs else ""

    def run(self, *words: str, seconds: float = 0) -> tuple[int, str]:
        if words[0] not in self.programs:
            return 127, "not there"
        self.calls.append(" ".join(words))
        return self.programs[words[0]](list(words[1:]))


class MadeUpHost(unittest.TestCase):
    """:ivar said: all that the last command said. :ivar answers: of the server, by path."""

    def setUp(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="identree-setup-"))
        self.addCleanup(shutil.rmtree, self.root, True)
        for name in ("etc/pam.d", "etc/identree", "usr/local/bin", "lib/x86_64-linux-gnu/security"):
            (self.root / name).mkdir(parents=True)
        (self.root / "lib/x86_64-linux-gnu/security/pam_exec.so").touch()
        self.sudo, self.login = self.root / "etc/pam.d/sudo", self.root / "etc/pam.d/sudo-i"
        self.conf = self.root / "etc/identree/client.conf"
        self.agent = self.root / "usr/local/bin/identree"
        self.helper("echo 0.1.0")
        self.commands = PretendCommands()
        self.answers = {"/healthz": Answer(200, {"status": "ok"})}
        self.server = ScriptedServer(self.answer)
        self.addCleanup(self.server.stop)
        self.conf.write_text(
            f"IDENTREE_SERVER_URL={self.server.url}\nIDENTREE_INSECURE_ALLOW_HTTP_ESCROW=true\nIDENTREE_HOSTNAME=web01\n"
        )
        self.conf.chmod(0o600)
        self.debian()
        self.said = ""

    def answer(self, request: Request) -> Answer:
        return self.answers.get(request.path, Answer(404, {}))

    def helper(self, script: str) -> None:
        self.agent.write_text(f"#!/bin/sh\n{script}\n")
        self.agent.chmod(0o755)

    def debian(self) -> None:
        self.sudo.write_bytes(DEBIAN)
        self.login.write_bytes(DEBIAN)
        self.sudo.chmod(0o640)

    def setup(self, *arguments: str) -> int:
        """Run the command; all it said is in ``said``."""
        out = io.StringIO()
        with (
            mock.patch.object(setup, "note", lambda line: print(line, file=out)),
            mock.patch.object(setup, "complain", lambda line: print(line, file=out)),
            mock.patch.object(setup, "Commands", lambda root: self.commands),
            contextlib.redirect_stdout(out),
        ):
            code = setup.run([f"--root={self.root}", *arguments])
        self.said = out.getvalue()
        return code

    def tree(self) -> dict[str, tuple[bytes, int]]:
        return {
            str(path.relative_to(self.root)): (path.read_bytes(), path.stat().st_mode)
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }

    def refused(self, word: str, *arguments: str) -> None:
        """The command fails, says why, and leaves no trace."""
        before = self.tree()
        self.assertEqual(self.setup(*arguments), 1, self.said)
        self.assertIn(word, self.said)
        self.assertEqual(self.tree(), before)
