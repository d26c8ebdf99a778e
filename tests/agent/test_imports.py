"""
What the agent imports, and when (spec/host-agent section 18.1): every module costs each ``sudo`` of each host its time.

The start-up budget itself is measured by ``make bench``; here it is held by names, which no slow machine can change.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import unittest

from identree.agent.bcrypt import Bcrypt
from tests.agent.harness import VERSIONS, Helper, archive, interpreters
from tests.agent.scripted import Script, approved, created, denied, in_turn, pending

# What the way to the approval may import. What these import themselves comes along.
ALLOWED = "os sys time errno fcntl signal select json hmac _hashlib socket ssl".split()

# Never, before somebody was let in or not.
FORBIDDEN = (
    "argparse logging subprocess urllib http email pathlib tempfile dataclasses typing datetime secrets random shutil "
    "threading concurrent inspect getpass gettext locale traceback tty pty uuid queue asyncio"
).split()

# Beyond that list, once the first byte is on its way: the terminal and the host's log, which are C, and small.
TERMINAL_AND_LOG = {"termios", "syslog"}

# Beyond that, at the break-glass prompt: bcrypt is in no module of the standard library (section 18.2).
BCRYPT = {"ctypes", "resource"}

FIRST = {"main", "build", "text", "watch", "pam", "config", "caller", "wire"}
WAITING = FIRST | {"flow", "places", "screen", "tokens", "messages", "journal"}

# Run instead of the archive: names what is loaded when the first byte goes out, and at the very end.
PROBE = """
import sys, zipimport, encodings.utf_8, __future__
{imports}
base = set(sys.modules)
import os, json
report = os.open({report!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def tell(event, loaded=None):
    names = sorted(set(loaded or sys.modules) - base)
    os.write(report, (json.dumps([event, names]) + "\\n").encode())
import socket
class Socket(socket.socket):
    def send(self, *data):
        tell("sent", list(sys.modules))
        return super().send(*data)
socket.socket = Socket
leave = os._exit
def leaving(code):
    tell("end")
    leave(code)
os._exit = leaving
sys.path.insert(0, sys.argv.pop(1))
import identree.agent.main as main
main.main()
"""


class ImportTestCase(unittest.TestCase):
    def closure(self, python: str, names: list[str]) -> set[str]:
        """What importing ``names`` loads."""
        code = "import sys\nfor each in sys.argv[1:]:\n    __import__(each)\nprint(*sorted(sys.modules))"
        done = subprocess.run(
            [python, "-ISBc", code, *names], capture_output=True, text=True, check=True, timeout=60, env={}
        )
        return set(done.stdout.split())

    def loaded(self, python: str, script: Script | None, *, asked: bool = False, **conf: str) -> dict[str, set[str]]:
        """
        The modules beyond the allowed ones, by event: ``sent`` (the first byte) and ``end``.

        :param asked: there is nobody to answer, and a break-glass password; Ctrl-C answers the prompt.
        """
        helper = Helper(script, conf=conf)
        try:
            report = os.path.join(helper.directory, "report")
            code = PROBE.format(imports="\n".join(f"import {name}" for name in ALLOWED), report=report)
            helper.start(code=code, on_terminal=True, python=python, TERM="xterm", LANG="en_US.UTF-8")
            if asked:
                helper.read_until("password: ")
                helper.type("\x03")
            helper.finish()
            events: dict[str, set[str]] = {}
            with open(report) as file:
                for line in file:
                    event, names = json.loads(line)
                    events.setdefault(event, set(names))
            self.output = helper.terminal + helper.output
        finally:
            helper.close()
        self.assertIn("end", events, self.output)
        return events

    def split(self, names: set[str]) -> tuple[set[str], set[str]]:
        """Our own modules by their short names, and the others."""
        ours = {name for name in names if name.partition(".")[0] == "identree"}
        short = {name.rpartition(".")[2] for name in ours} - {"identree", "agent"}
        return short, names - ours

    def pythons(self) -> dict[str, str]:
        found = interpreters()
        self.assertEqual(set(found), set(VERSIONS), "make pythons installs what is missing")
        return found


class FastPathTests(ImportTestCase):
    def test_first_byte(self) -> None:
        """When the first byte is sent, nothing is loaded but what is allowed, and eight small modules of our own."""
        for version, python in self.pythons().items():
            with self.subTest(version):
                ours, others = self.split(self.loaded(python, in_turn(created(), approved()))["sent"])
                self.assertEqual((ours, others), (FIRST, set()), self.output)

    def test_end(self) -> None:
        """At the end of an approval or a denial, terminal and log have come, and nothing else."""
        for version, python in self.pythons().items():
            for script in (in_turn(created(), pending(), approved()), in_turn(created(), denied())):
                with self.subTest(version):
                    ours, others = self.split(self.loaded(python, script, IDENTREE_SYSLOG="true")["end"])
                    self.assertLessEqual(others, TERMINAL_AND_LOG, self.output)
                    # the code is drawn on a large terminal, while the server waits for a person
                    self.assertEqual(ours - {"qr"}, WAITING, self.output)

    def test_allowed_is_small(self) -> None:
        """The allowed modules bring none of the forbidden ones along, on any Python; a new one may not either."""
        for version, python in self.pythons().items():
            with self.subTest(version):
                self.assertEqual(self.closure(python, ALLOWED) & set(FORBIDDEN), set())


class BreakglassTests(ImportTestCase):
    def test_prompt(self) -> None:
        """
        Up to the break-glass prompt there is bcrypt beside that, and nothing that is forbidden. Ctrl-C there loads
        nothing more, so that the end says it.
        """
        for version, python in self.pythons().items():
            with self.subTest(version):
                bcrypt = self.closure(python, [*ALLOWED, *TERMINAL_AND_LOG, *BCRYPT])
                path = self.hash_file()
                events = self.loaded(
                    python, None, asked=True, IDENTREE_SERVER_URL="http://127.0.0.1:1", IDENTREE_BREAKGLASS_FILE=path
                )
                ours, others = self.split(events["end"])
                self.assertEqual(ours, WAITING | {"breakglass", "bcrypt"}, self.output)
                self.assertLessEqual(others, bcrypt, self.output)
                self.assertEqual(events["end"] & set(FORBIDDEN), set(), self.output)

    def hash_file(self) -> str:
        path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), "hash")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(Bcrypt().hash("x", 4) + "\n")
        return path


class CommandTests(ImportTestCase):
    def test_help(self) -> None:
        """Neither help nor version need the network."""
        code = "import sys, os; sys.path.insert(0, sys.argv.pop(1))\nleave = os._exit\n"
        code += "def leaving(code):\n    os.write(2, ' '.join(sorted(sys.modules)).encode())\n    leave(code)\n"
        code += "os._exit = leaving\nfrom identree.agent.main import main\nmain()"
        for version, python in self.pythons().items():
            for word in ("--help", "version"):
                with self.subTest(f"{version} {word}"):
                    command = [python, "-ISBc", code, archive(), word]
                    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={})
                    self.assertEqual(done.returncode, 0)
                    self.assertEqual(set(done.stderr.split()) & {"socket", "ssl", "json", *FORBIDDEN}, set())
