"""
This machine as a managed host: a throw-away user, sudo rule and PAM service, and the agent's real configuration path.

sudo is told by ``Defaults:USER pam_service=...`` to use our PAM service, so that the machine's own stays untouched.
Everything is put back on exit, whatever happened; what an earlier, killed run left behind is removed first.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

PAM_SERVICE = "sudo-identree-test"
PAM_FILE = Path("/etc/pam.d") / PAM_SERVICE
SUDOERS_FILE = Path("/etc/sudoers.d/zz-identree-test")
CONFIG_DIRECTORY = Path("/etc/identree")
SAVED_CONFIG_DIRECTORY = Path("/etc/identree.before-test")
LOCK = Path("/run/lock/identree-sudo-test")


class SudoProcess:
    """A person's terminal with one ``sudo`` in it."""

    def __init__(self, user: str, arguments: list[str], environment: dict[str, str], columns: int, rows: int) -> None:
        account = pwd.getpwnam(user)
        self.screen = ""
        self.status: int | None = None
        self.pid, self._terminal = os.forkpty()
        if self.pid == 0:
            try:
                os.fchown(0, account.pw_uid, account.pw_gid)
                os.initgroups(user, account.pw_gid)
                os.setgid(account.pw_gid)
                os.setuid(account.pw_uid)
                os.chdir("/")
                os.execve("/usr/bin/sudo", ["sudo", *arguments], environment)
            finally:
                os._exit(127)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, seconds: float) -> bool:
        """Take in what the terminal shows within this time; False once it is closed."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not select.select([self._terminal], [], [], left)[0]:
                return True
            try:
                data = os.read(self._terminal, 65536)
            except OSError:
                return False
            if not data:
                return False
            self.screen += data.decode("utf-8", "replace")
        return True

    def expect(self, text: str, seconds: float = 30) -> None:
        """Wait until the terminal shows ``text``."""
        end = time.monotonic() + seconds
        while text not in self.screen:
            open_ = self.read(0.05)
            if text in self.screen:
                return
            if not open_ or time.monotonic() > end:
                raise AssertionError(f"the terminal did not show {text!r} but:\n{self.screen}")

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait(self, seconds: float = 30) -> int:
        """The exit status of sudo; takes in the rest of its output."""
        end = time.monotonic() + seconds
        while self.status is None:
            self.read(0.02)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                self.read(0.2)
            elif time.monotonic() > end:
                raise AssertionError(f"sudo did not end within {seconds} s; the terminal shows:\n{self.screen}")
        return self.status

    def close(self) -> None:
        if self.status is None:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        with suppress(OSError):
            os.close(self._terminal)


class SudoHost:
    """
    :param user: its name on this machine and in the identity provider.
    :param pam: text of the PAM service file.
    :param configuration: text of ``/etc/identree/client.conf``.
    """

    def __init__(self, user: str, pam: str, configuration: str) -> None:
        self.user = user
        self._pam = pam
        self._configuration = configuration
        self._stack = ExitStack()
        self._processes: list[SudoProcess] = []

    def __enter__(self) -> SudoHost:
        if os.geteuid() != 0:
            raise AssertionError("the sudo tests create a user and a PAM service: run them as root")
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._stack.callback(os.close, lock)
        try:
            self._restore()
            self._stack.callback(self._restore)
            self._install()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def sudo(
        self, *arguments: str, environment: dict[str, str] | None = None, columns: int = 100, rows: int = 40
    ) -> SudoProcess:
        """The user types ``sudo ARGUMENTS`` in a terminal of this size."""
        base = {
            "PATH": "/usr/bin:/bin",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "HOME": "/nonexistent",
            "USER": self.user,
        }
        process = SudoProcess(self.user, list(arguments), {**base, **(environment or {})}, columns, rows)
        self._processes.append(process)
        return process

    def _install(self) -> None:
        subprocess.run(
            ["useradd", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/bash", self.user],
            check=True,
            capture_output=True,
        )
        if CONFIG_DIRECTORY.exists():
            CONFIG_DIRECTORY.rename(SAVED_CONFIG_DIRECTORY)
        CONFIG_DIRECTORY.mkdir(mode=0o755)
        self.configure(self._configuration)
        PAM_FILE.write_text(self._pam)
        PAM_FILE.chmod(0o644)
        rules = SUDOERS_FILE.with_suffix(".tmp~")
        rules.write_text(
            f"Defaults:{self.user} pam_service={PAM_SERVICE}, pam_login_service={PAM_SERVICE}, "
            f"timestamp_timeout=0, !mail_always, !mail_badpass, !mail_no_user\n{self.user} ALL=(ALL) ALL\n"
        )
        rules.chmod(0o440)
        subprocess.run(["visudo", "-cf", str(rules)], check=True, capture_output=True)
        rules.rename(SUDOERS_FILE)

    def configure(self, text: str) -> None:
        """Write the agent's configuration."""
        path = CONFIG_DIRECTORY / "client.conf"
        path.write_text(text)
        path.chmod(0o600)

    def _restore(self) -> None:
        for process in self._processes:
            process.close()
        self._processes.clear()
        SUDOERS_FILE.unlink(missing_ok=True)
        SUDOERS_FILE.with_suffix(".tmp~").unlink(missing_ok=True)
        PAM_FILE.unlink(missing_ok=True)
        if SAVED_CONFIG_DIRECTORY.exists():
            shutil.rmtree(CONFIG_DIRECTORY, ignore_errors=True)
            SAVED_CONFIG_DIRECTORY.rename(CONFIG_DIRECTORY)
        elif CONFIG_DIRECTORY.exists() and _made_by_us():
            shutil.rmtree(CONFIG_DIRECTORY)
        try:
            pwd.getpwnam(self.user)
        except KeyError:
            return
        subprocess.run(["pkill", "-KILL", "-u", self.user], check=False, capture_output=True)
        subprocess.run(["userdel", self.user], check=True, capture_output=True)


def _made_by_us() -> bool:
    """Whether the configuration directory holds nothing but what a test writes."""
    return all(entry.name == "client.conf" for entry in CONFIG_DIRECTORY.iterdir())
