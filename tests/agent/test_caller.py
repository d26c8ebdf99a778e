"""What a sudo command line says, and how the request is made to fit."""

from __future__ import annotations

import json
import os
import unittest

from hypothesis import given
from hypothesis import strategies as st

from identree.agent.caller import Caller, parse_sudo
from identree.agent.pam import MAX_REQUEST_BYTES, ambiguous, encode, valid_user
from identree.agent.screen import open_terminal
from identree.agent.watch import pending_signals
from identree.core import names


class CommandLineTests(unittest.TestCase):
    def test_commands(self) -> None:
        """Silent options are left out; those that change who or where show the whole line; words are quoted."""
        for line, wanted in {
            "sudo|id": "id",
            "sudo|-E|-H|--|ls|-n": "ls -n",
            "sudo|-p|pass: |id": "id",
            "sudo|-ppass|id": "id",
            "sudo|--prompt=x|id": "id",
            "sudo|--prompt|x|id": "id",
            "sudo|-u|postgres|psql": "sudo -u postgres psql",
            "sudo|-uroot|id": "sudo -uroot id",
            "sudo|--user=bob|id": "sudo --user=bob id",
            "sudo|--user|bob|id": "sudo --user bob id",
            "sudo|-i": "sudo -i",
            "sudo|-s": "sudo -s",
            "/usr/bin/sudo|-v": "sudo -v",
            "sudo|LD_PRELOAD=x|id": "LD_PRELOAD=x id",
            "sudoedit|/etc/hosts": "sudoedit /etc/hosts",
            "sudo|sh|-c|echo 'a'": "sh -c 'echo '\\''a'\\'''",
            "sudo|rm|a\x1b[8mb\nc\u202e": "rm 'a\\x1b[8mb\\x0ac\\u202e'",
            "sudo|rm|": "rm ''",
            "sudo": "sudo",
        }.items():
            self.assertEqual(parse_sudo(line.split("|")), (wanted, True), line)

    def test_without_asking(self) -> None:
        """-n in all its forms, but not as the command's own option or another option's word."""
        for line in ("sudo|-n|id", "sudo|-En|id", "sudo|--non-interactive|id", "sudo|--non|id", "sudo|-nu|bob|id"):
            self.assertFalse(parse_sudo(line.split("|"))[1], line)
        for line in ("sudo|ls|-n", "sudo|-u|-n|id", "sudo|-un|id", "sudo|--|-n", "sudo|-p|-n|id"):
            self.assertTrue(parse_sudo(line.split("|"))[1], line)

    def test_unknown(self) -> None:
        """Nothing readable, nothing known."""
        self.assertEqual(parse_sudo([]), ("", True))

    @given(st.lists(st.text(max_size=20), max_size=6))
    def test_never_raises(self, words: list[str]) -> None:
        """Whatever a person types after sudo, it is one clean line."""
        command, _ = parse_sudo(["sudo", *words])
        self.assertNotIn("\n", command)

    @given(st.lists(st.text(st.characters(), max_size=20), max_size=6))
    def test_the_server_takes_it(self, words: list[str]) -> None:
        """What is sent about a command is within what our server accepts."""
        caller = Caller({})
        caller.command, _ = parse_sudo(["sudo", *words])
        caller.cwd = caller.remote_host = caller.tty = "".join(words)
        sent = json.loads(encode("alice", "web01", caller, ""))
        names.host_context(**{key: sent.get(key, "") for key in ("command", "cwd", "tty", "remote_host")})


class CallerTests(unittest.TestCase):
    def test_another_parent(self) -> None:
        """A parent that is not sudo is not looked into, whatever PAM_SERVICE says."""
        caller = Caller({"PAM_SERVICE": "sudo", "PAM_TTY": "pts/9", "PAM_RHOST": "192.0.2.1"})
        self.assertEqual((caller.is_sudo, caller.command, caller.cwd), (False, "", ""))
        self.assertEqual((caller.tty, caller.remote_host), ("/dev/pts/9", "192.0.2.1"))

    def test_coerced_locale(self) -> None:
        """What Python put into LC_CTYPE does not hide that the locale is another one."""
        self.assertNotIn("LC_CTYPE", Caller({"LC_CTYPE": "C.UTF-8", "LANG": "de_DE"}).environ)

    def test_own_signals(self) -> None:
        """Nothing is pending in this process; a process that is gone has nothing pending."""
        self.assertEqual(pending_signals(f"/proc/{os.getpid()}/status") & 2, 0)
        self.assertEqual(pending_signals("/proc/0/status"), 0)


class RequestTests(unittest.TestCase):
    def caller(self, **values: str) -> Caller:
        caller = Caller({})
        for key, value in values.items():
            setattr(caller, key, value)
        return caller

    def test_fits(self) -> None:
        """The command is shortened first, the reason last, and nothing is invented."""
        caller = self.caller(command="x" * 2000, cwd="/home/alice", tty="/dev/pts/1")
        sent = json.loads(encode("alice", "h" * 200, caller, "r" * 500))
        self.assertEqual((sent["reason"], sent["cwd"]), ("r" * 500, "/home/alice"))
        self.assertTrue(sent["command"].endswith("x…"))

    def test_reason_hides_no_command(self) -> None:
        """However long the reason is that the person wrote, the approver sees how the command begins."""
        caller = self.caller(command="rm -rf / " + "y" * 900, remote_host="r" * 253, cwd="/" + "c" * 254)
        sent = json.loads(encode("a" * 64, "h" * 253, caller, "\U0001f600" * 500))
        self.assertTrue(sent["command"].startswith("rm -rf / yyy"))
        self.assertTrue(sent["command"].endswith("…"))

    def test_without_parts(self) -> None:
        """Empty parts are left out."""
        self.assertEqual(json.loads(encode("alice", "", self.caller(), "")), {"username": "alice"})

    @given(*[st.text(max_size=3000)] * 4)
    def test_always_fits(self, reason: str, command: str, cwd: str, remote: str) -> None:
        """Whatever the parts are, the request is valid and within the limit of deployed servers."""
        caller = self.caller(command=command, cwd=cwd, tty="/dev/pts/1", remote_host=remote)
        body = encode("a" * 64, "h" * 253, caller, reason)
        self.assertLessEqual(len(body), MAX_REQUEST_BYTES)
        self.assertEqual(json.loads(body)["username"], "a" * 64)

    def test_user_names(self) -> None:
        """Letters, digits, dot, dash, underscore; neither dot nor dash first; at most 64."""
        for name in ("alice", "_svc", "a.b-c", "0", "a" * 64):
            self.assertTrue(valid_user(name), name)
        for name in ("", ".a", "-a", "a b", "ä", "a" * 65, "a/b", "a\n"):
            self.assertFalse(valid_user(name), name)


class PamEnvironmentTests(unittest.TestCase):
    def test_names_twice(self) -> None:
        """A PAM name that was planted before pam_exec's own is noticed, also behind a huge value."""
        self.assertTrue(ambiguous(b"PAM_TYPE=account\0X=" + b"x" * 300_000 + b"\0PAM_USER=alice\0PAM_TYPE=auth\0"))

    def test_ordinary(self) -> None:
        """What pam_exec sets has each name once; other names are none of our business."""
        self.assertFalse(ambiguous(b"X=1\0X=2\0PAM_USER=alice\0PAM_TYPE=auth\0PAM_TTY=PAM_TYPE=x\0"))


class TerminalOpeningTests(unittest.TestCase):
    def test_refused(self) -> None:
        """Only terminals below /dev are opened."""
        for path in ("", "/dev/null", "/dev/zero", "/etc/passwd", "/dev/../dev/tty", "pts/1", "/dev/no-such"):
            self.assertEqual(open_terminal(path, os.getppid()), -1, path)
