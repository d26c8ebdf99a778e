"""
This machine as a managed host: a throw-away user, sudo rule and PAM service, the agent as root installed it, and its
real configuration path.

sudo is told by ``Defaults:USER pam_service=...`` to use our PAM service, so that the machine's own stays untouched.
Everything is put back on exit, whatever happened; what an earlier, killed run left behind is removed first.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
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
STOCK_PAM_FILE = Path("/etc/pam.d/sudo")
# Root's, on a file system that may execute; its own directory, so that removing it touches nothing else.
AGENT = Path("/usr/local/lib/identree-sudo-test/identree")
SUDOERS_FILE = Path("/etc/sudoers.d/zz-identree-test")
CONFIG_DIRECTORY = Path("/etc/identree")
SAVED_CONFIG_DIRECTORY = Path("/etc/identree.before-test")
LOCK = Path("/run/lock/identree-sudo-test")
# Stands in the account and the configuration that tests make; what lacks it is somebody's and is never removed.
MARK = "made by the tests of identree"
# What sudo remembers of a user.
SUDO_MEMORY = (Path("/run/sudo/ts"), Path("/var/lib/sudo/lectured"))


def throw_away_name(*wanted: str) -> str:
    """The first of these names that no account of this machine has, other than one a test left behind."""
    for name in wanted:
        if not _somebody(name):
            return name
    raise AssertionError(f"this machine has accounts of all these names: {', '.join(wanted)}")


def _somebody(name: str) -> bool:
    return any(account.pw_name == name and account.pw_gecos != MARK for account in pwd.getpwall())


def pam_text(archive: Path, configuration: str, directory: Path, *options: str) -> str:
    """
    What ``identree setup`` makes of this machine's own sudo service, in a made-up root below ``directory``.

    :param archive: the built agent. :param configuration: its ``client.conf``; the server in it must answer.
    """
    root = directory / "root"
    stock = STOCK_PAM_FILE.read_text()
    assert "identree" not in stock, f"{STOCK_PAM_FILE} is configured for identree already; these tests need a plain one"
    modules = [path for place in ("/lib", "/usr/lib") for path in Path(place).glob("*/security/pam_exec.so")]
    for path, source in ((STOCK_PAM_FILE, STOCK_PAM_FILE), (AGENT, archive), (modules[0], modules[0])):
        copy = root / path.relative_to("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    conf = root / CONFIG_DIRECTORY.relative_to("/") / "client.conf"
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text(configuration)
    conf.chmod(0o600)
    command = [archive, "setup", "--root", root, "--agent-path", AGENT, *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return (root / STOCK_PAM_FILE.relative_to("/")).read_text()


class SudoProcess:
    """
    A person's terminal with one program in it.

    :ivar screen: everything that the terminal was sent.
    """

    def __init__(
        self, user: str, program: str, arguments: list[str], environment: dict[str, str], columns: int, rows: int
    ) -> None:
        account = pwd.getpwnam(user)
        self.screen = ""
        self.status: int | None = None
        self.columns = columns
        self.pid, self._terminal = os.forkpty()
        if self.pid == 0:
            try:
                # before the program looks how large its terminal is
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
                os.fchown(0, account.pw_uid, account.pw_gid)
                os.initgroups(user, account.pw_gid)
                os.setgid(account.pw_gid)
                os.setuid(account.pw_uid)
                os.chdir("/")
                os.execve(program, [os.path.basename(program), *arguments], environment)
            finally:
                os._exit(127)

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
        self.expect_match(re.escape(text), seconds)

    def expect_match(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        """Wait until what the terminal shows matches a regular expression."""
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self.screen)) is None:
            open_ = self.read(0.05)
            if not (open_ or re.search(pattern, self.screen)) or time.monotonic() > end:
                raise AssertionError(f"the terminal did not show {pattern!r} but:\n{self.screen}")
        return found

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
    :param archive: the built agent, copied to :data:`AGENT`.
    """

    def __init__(self, user: str, pam: str, configuration: str, archive: Path) -> None:
        self.user = user
        self._pam = pam
        self._archive = archive
        self._configuration = configuration
        self._stack = ExitStack()
        self._processes: list[SudoProcess] = []

    def __enter__(self) -> SudoHost:
        if os.geteuid() != 0:
            raise AssertionError("the sudo tests create a user and a PAM service: run them as root")
        if _somebody(self.user):
            raise AssertionError(f"this machine has an account {self.user!r} that is not of these tests")
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
        return self._start("/usr/bin/sudo", list(arguments), environment or {}, columns, rows)

    def shell(self, prompt: str, *, columns: int = 80, rows: int = 40) -> SudoProcess:
        """The user's shell, with this prompt."""
        return self._start("/bin/bash", ["--norc", "--noediting", "-i"], {"PS1": prompt}, columns, rows)

    def end(self) -> None:
        """Ctrl-C in every terminal where something still runs; its request is withdrawn then."""
        for process in self._processes:
            if process.status is None:
                with suppress(OSError, AssertionError):
                    process.type("\x03")
                    process.wait(5)
            process.close()
        self._processes.clear()

    def _start(
        self, program: str, arguments: list[str], environment: dict[str, str], columns: int, rows: int
    ) -> SudoProcess:
        base = {
            "PATH": "/usr/bin:/bin",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "HOME": "/nonexistent",
            "USER": self.user,
        }
        process = SudoProcess(self.user, program, arguments, {**base, **environment}, columns, rows)
        self._processes.append(process)
        return process

    def _install(self) -> None:
        subprocess.run(
            [
                *("useradd", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/bash"),
                *("--comment", MARK, self.user),
            ],
            check=True,
            capture_output=True,
        )
        AGENT.parent.mkdir(mode=0o755, parents=True)
        shutil.copyfile(self._archive, AGENT)
        AGENT.chmod(0o755)
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
        path.write_text(f"# {MARK}\n{text}")
        path.chmod(0o600)

    def _restore(self) -> None:
        for process in self._processes:
            process.close()
        self._processes.clear()
        SUDOERS_FILE.unlink(missing_ok=True)
        SUDOERS_FILE.with_suffix(".tmp~").unlink(missing_ok=True)
        PAM_FILE.unlink(missing_ok=True)
        shutil.rmtree(AGENT.parent, ignore_errors=True)
        if SAVED_CONFIG_DIRECTORY.exists():
            shutil.rmtree(CONFIG_DIRECTORY, ignore_errors=True)
            SAVED_CONFIG_DIRECTORY.rename(CONFIG_DIRECTORY)
        elif CONFIG_DIRECTORY.exists() and _made_by_us():
            shutil.rmtree(CONFIG_DIRECTORY)
        for account in [entry for entry in pwd.getpwall() if entry.pw_gecos == MARK]:
            subprocess.run(["pkill", "-KILL", "--uid", str(account.pw_uid)], check=False, capture_output=True)
            subprocess.run(["userdel", account.pw_name], check=True, capture_output=True)
            for directory in SUDO_MEMORY:
                (directory / account.pw_name).unlink(missing_ok=True)


def _made_by_us() -> bool:
    """Whether the configuration directory holds nothing but what a test writes."""
    names = [entry.name for entry in CONFIG_DIRECTORY.iterdir()]
    return names in ([], ["client.conf"]) and all(
        (CONFIG_DIRECTORY / name).read_text("utf-8", "replace").startswith(f"# {MARK}\n") for name in names
    )
