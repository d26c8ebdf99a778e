"""
What is known about the program that called us, from ``/proc`` of the parent (spec/host-agent section 2).

Under pam_exec the helper's own environment is empty. Root may read its parent's; a container may forbid it, which is
no error: then nothing is known. None of this decides anything, it only tells the approver what the host says.
"""

from __future__ import annotations

import os

from identree.agent.text import clean, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# The most of a parent's environment or command line that is looked at.
MAX_PROC_BYTES = 262144

# More characters of a command are never sent.
MAX_COMMAND = 2000

_SUDO_NAMES = ("sudo", "sudo-rs", "sudo.ws")
# A site may give some users a PAM service of its own (``pam_service`` in sudoers); ``sudo-i`` is sudo's own second one.
_SUDO_SERVICE = "sudo"
_SUDO_SERVICE_PREFIX = "sudo-"
_WANTED = ("SUDO_REASON", "TERM", "NO_COLOR", "LANG", "LC_ALL", "LC_MESSAGES", "LC_CTYPE", "SSH_CONNECTION")

# What Python itself puts into LC_CTYPE when it cannot use the locale (PEP 538); it says nothing about the terminal.
_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")

# sudo's options that take a word (sudo(8)), and those that say nothing about what will run as whom.
_WITH_WORD = "CDgahpRrtTUuc"
_LONG_WITH_WORD = (
    "--auth-type --close-from --chdir --group --host --login-class --prompt --chroot --role --type --command-timeout "
    "--other-user --user"
).split()
_SILENT = "AbBEHknNpPST"
_LONG_SILENT = "--askpass --background --bell --preserve-env --set-home --reset-timestamp --no-update --non-interactive --prompt --preserve-groups --stdin".split()  # noqa: E501
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789@%+=:,./_-")


class Caller:
    """
    :ivar is_sudo: the parent is sudo, authenticating for sudo.
    :ivar environ: the few variables of the caller that matter, or of our own when the parent is not sudo.
    :ivar command: what is to be run, quoted for a shell; empty when unknown.
    :ivar interactive: false when ``sudo -n`` forbids waiting for a person.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.pid = os.getppid()
        service = environ.get("PAM_SERVICE", "")
        for_sudo = service == _SUDO_SERVICE or service.startswith(_SUDO_SERVICE_PREFIX)
        self.is_sudo = for_sudo and _executable(self.pid) in _SUDO_NAMES
        self.environ = {key: environ[key] for key in _WANTED if key in environ}
        if self.environ.get("LC_CTYPE") in _COERCED and self.environ.get("LANG", "C") not in ("C", "POSIX"):
            del self.environ["LC_CTYPE"]
        self.command, self.interactive, self.cwd = shown(environ.get("SUDO_COMMAND", ""), MAX_COMMAND), True, ""
        if self.is_sudo:
            theirs = _read(f"/proc/{self.pid}/environ")
            if theirs:
                self.environ = _wanted(theirs)
            raw = _read(f"/proc/{self.pid}/cmdline").rstrip(b"\0")
            argv = [word.decode("utf-8", "backslashreplace") for word in raw.split(b"\0")] if raw else []
            self.command, self.interactive = parse_sudo(argv)
        try:
            self.cwd = shown(os.readlink(f"/proc/{self.pid}/cwd"), 4096) if self.is_sudo or self.command else ""
        except OSError:
            self.cwd = ""
        tty = environ.get("PAM_TTY", "")
        if " " in tty:  # tty(1) said "not a tty"
            tty = ""
        self.tty = tty if not tty or tty.startswith(("/", ":")) else "/dev/" + tty
        self.remote_host = environ.get("PAM_RHOST", "") or self.environ.get("SSH_CONNECTION", "").split(" ")[0]
        self.reason = clean(self.environ.get("SUDO_REASON", ""))


def parse_sudo(argv: list[str]) -> tuple[str, bool]:
    """
    The command that a sudo command line asks for, and whether sudo may wait for a person.

    Options that decide who or where (``-u``, ``-i``, ``-R`` …) are shown with the whole line; silent ones are left out.
    """
    if not argv:
        return "", True
    interactive, telling = True, os.path.basename(argv[0]) == "sudoedit"
    at = 1
    while at < len(argv):
        word = argv[at]
        if word == "--":
            at += 1
            break
        if not word.startswith("-") or word == "-":
            break
        at += 1
        if word.startswith("--"):
            name, equals, _ = word.partition("=")
            # getopt_long takes unambiguous abbreviations; every one of this option begins so
            if name.startswith("--non") and "--non-interactive".startswith(name):
                interactive = False
            elif not any(option.startswith(name) for option in _LONG_SILENT):
                telling = True
            if not equals and any(option.startswith(name) for option in _LONG_WITH_WORD):
                at += 1
            continue
        for index, letter in enumerate(word[1:], 1):
            if letter == "n":
                interactive = False
            elif letter not in _SILENT:
                telling = True
            if letter in _WITH_WORD:
                if index == len(word) - 1:
                    at += 1
                break
    words = argv[at:]
    if telling or not words:
        words = [os.path.basename(argv[0]), *argv[1:]]
    return shown(" ".join(map(_quote, words)), MAX_COMMAND), interactive


def _wanted(block: bytes) -> dict[str, str]:
    """The variables of interest in a process's environment block."""
    found = {}
    for item in block.split(b"\0"):
        key, _, value = item.partition(b"=")
        name = key.decode("ascii", "replace")
        if name in _WANTED:
            found[name] = value.decode("utf-8", "replace")
    return found


def _quote(word: str) -> str:
    if word and set(word) <= _PLAIN:
        return word
    return "'" + word.replace("'", "'\\''") + "'"


def _executable(pid: int) -> str:
    try:
        path = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""
    if path.endswith(" (deleted)"):  # upgraded while it runs
        path = path[: -len(" (deleted)")]
    return os.path.basename(path)


def _read(path: str) -> bytes:
    data = b""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        while len(data) < MAX_PROC_BYTES:
            chunk = os.read(fd, 65536)
            if not chunk:
                break
            data += chunk
    except OSError:
        return b""
    finally:
        os.close(fd)
    return data
