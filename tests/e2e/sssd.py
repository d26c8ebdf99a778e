"""
A managed host with a real sssd: its own ``/etc``, ``/var/lib/sss`` and ``/run`` in a mount namespace of its own.

Nothing of the machine is touched, so nothing has to be put back: the namespace, and every process in it, ends with the
test. The network is the machine's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.e2e.ldaptools import Told
from tests.e2e.server import DYING_WITH_US, REPOSITORY

CONFIGURATIONS = REPOSITORY / "docs" / "sssd"
# Who the documented files speak to; the host's own /etc/hosts leads it to loopback.
SERVER_NAME = "identree.example.com"
# What this host is called; the kernel says the short name, /etc/hosts the full one.
NAME = "web1"
FULL_NAME = f"{NAME}.example.com"
# How long sssd may take to find that it is online, and for whatever a test waits for beyond a refresh's interval.
PATIENCE_SECONDS = 30.0
# Messages of what sssd asks and when; more would fill the disk.
DEBUG_LEVEL = "0x07f0"
# Everything that sssd, sudo and their libraries write to or are configured by.
PRIVATE = ("/etc", "/var/lib/sss", "/var/log/sssd", "/var/lib/sudo", "/run")
# As the package makes them below /var/lib/sss.
STATE = {
    "db": 0o700,
    "deskprofile": 0o751,
    "gpo_cache": 0o755,
    "keytabs": 0o700,
    "mc": 0o775,
    "pipes": 0o755,
    "pipes/private": 0o750,
    "pubconf": 0o755,
    "pubconf/krb5.include.d": 0o755,
    "secrets": 0o700,
}
NSSWITCH = """\
passwd: files sss
group: files sss
shadow: files sss
hosts: files dns
netgroup: sss
services: files sss
sudoers: files sss
"""
# What decides is the rule, and the account phase: authentication always succeeds.
PAM_PERMITS = """\
auth required pam_permit.so
account sufficient pam_localuser.so
account required pam_sss.so
session required pam_permit.so
"""
# Authentication never succeeds: only a rule with !authenticate gets past it.
PAM_REFUSES = PAM_PERMITS.replace("auth required pam_permit.so", "auth required pam_deny.so")
SUDOERS = """\
Defaults !mail_always, !mail_badpass, !mail_no_user, !mail_no_host, !mail_no_perms, timestamp_timeout=0
root ALL=(ALL:ALL) ALL
"""


def configuration(name: str, **replaced: str) -> str:
    """
    One of the documented files, with what depends on the place replaced: each text must be there.

    :param replaced: by a word for the error message; ``"old=>new"``.
    """
    text = (CONFIGURATIONS / name).read_text()
    for what, change in replaced.items():
        old, _, new = change.partition("=>")
        assert old in text, f"{name} has no {what} {old!r}"
        text = text.replace(old, new)
    return text


class ManagedHost:
    """
    :param directory: an empty one, for everything private.
    :param names: what ``/etc/hosts`` leads to loopback, beside ``localhost``.
    """

    def __init__(self, directory: Path, names: Sequence[str] = (SERVER_NAME,)) -> None:
        self._directory = directory
        self._names = names
        self._holder: subprocess.Popen[bytes] | None = None
        self._sssd: subprocess.Popen[bytes] | None = None
        self._inside = 0
        self._log = directory / "sssd.stderr"

    # -- the machine ---------------------------------------------------------------------------------------------------
    def _private(self, path: str) -> Path:
        return self._directory / path.strip("/").replace("/", "-")

    def file(self, path: str) -> Path:
        """Where a file of this host's ``/etc`` really is."""
        assert path.startswith("/etc/"), path
        return self._private("/etc") / path.removeprefix("/etc/")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file in its ``/etc``."""
        file = self.file(path)
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.touch(mode)
        file.chmod(mode)
        file.write_text(text)

    def start(self) -> None:
        """The namespace, with nothing running in it yet."""
        if os.geteuid() != 0:
            raise AssertionError("a host of its own needs a mount namespace: run these tests as root")
        shutil.copytree("/etc", self._private("/etc"), symlinks=True, ignore=_unreadable)
        for path in PRIVATE[1:]:
            self._private(path).mkdir(mode=0o755)
        for name, mode in STATE.items():
            (self._private("/var/lib/sss") / name).mkdir(parents=True)
            (self._private("/var/lib/sss") / name).chmod(mode)
        for name, mode in (("sudo", 0o711), ("sudo/ts", 0o700), ("lock", 0o1777)):
            (self._private("/run") / name).mkdir()
            (self._private("/run") / name).chmod(mode)
        shutil.rmtree(self.file("/etc/sssd"), ignore_errors=True)
        shutil.rmtree(self.file("/etc/identree"), ignore_errors=True)
        shutil.rmtree(self.file("/etc/sudoers.d"), ignore_errors=True)
        self.write("/etc/nsswitch.conf", NSSWITCH)
        # its own name first: sudo wants it to lead somewhere
        names = [FULL_NAME, NAME, "localhost", *self._names]
        self.write("/etc/hosts", f"127.0.0.1 {' '.join(names)}\n")
        self.write("/etc/sudoers", SUDOERS, 0o440)
        self.pam(PAM_PERMITS)
        commands = "; ".join(f"mount --bind {self._private(path)} {path}" for path in PRIVATE)
        self._holder = subprocess.Popen(
            [
                *DYING_WITH_US,
                *("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("--propagation", "private"),
                *("sh", "-ec", f"hostname {NAME}; {commands}; echo ready; exec sleep infinity"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # it complains when its child is killed, which is how it ends
            stderr=subprocess.DEVNULL,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise AssertionError("the namespace did not come to be: is this a container without CAP_SYS_ADMIN?")
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self._inside = int(children[0])

    def pam(self, text: str) -> None:
        """The PAM services of sudo and su."""
        for service in ("sudo", "sudo-i", "su"):
            self.write(f"/etc/pam.d/{service}", text)

    def enter(self, command: Sequence[str], user: int | None = None, group: int | None = None) -> list[str]:
        """
        The command that runs ``command`` in here.

        :param user: numeric; with all its groups as this host knows them.
        """
        entering = ["nsenter", "--target", str(self._inside), "--mount", "--uts", "--pid", "--wd=/"]
        if user is not None:
            entering += ["setpriv", f"--reuid={user}", f"--regid={group}", "--init-groups"]
        return [*entering, *command]

    def run(
        self,
        *command: str,
        user: int | None = None,
        group: int | None = None,
        environment: Mapping[str, str] | None = None,
        seconds: float = 60,
    ) -> Told:
        """What a command in here prints."""
        done = subprocess.run(
            self.enter(command, user, group),
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
        )
        return Told(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))

    def run_as(self, name: str, *command: str, seconds: float = 60) -> Told:
        """What a command prints that a person of the directory runs, with their groups."""
        fields = self.getent("passwd", name).split(":")
        assert len(fields) == 7, f"nobody here is called {name!r}"
        return self.run(*command, user=int(fields[2]), group=int(fields[3]), seconds=seconds)

    def getent(self, database: str, key: str) -> str:
        """The line, or nothing."""
        return self.run("getent", database, key).output.rstrip("\n")

    # -- sssd ----------------------------------------------------------------------------------------------------------
    def start_sssd(self, configuration: str, known: Sequence[str] = ()) -> None:
        """
        Start it, and wait until it serves.

        :param known: a command that prints something once sssd has been to the server.
        """
        self.write("/etc/sssd/sssd.conf", configuration, 0o600)
        self.file("/etc/sssd").chmod(0o711)
        with self._log.open("ab") as log:
            self._sssd = subprocess.Popen(
                [*DYING_WITH_US, *self.enter(["/usr/sbin/sssd", "-i", "--logger=files", "-d", DEBUG_LEVEL])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.until(lambda: self._serving(known), "sssd to serve")

    def _serving(self, known: Sequence[str]) -> bool:
        assert self._sssd is not None
        if self._sssd.poll() is not None:
            raise AssertionError(f"sssd ended with status {self._sssd.returncode}:\n{self.sssd_log()}")
        return not known or bool(self.run(*known).output.strip())

    def until(self, true: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait for something; :raise AssertionError: with what sssd says, when it does not come."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds:.0f} s for {what}; sssd says:\n{self.sssd_log()[-6000:]}")
            time.sleep(0.2)

    def sssd_log(self, name: str = "") -> str:
        """What sssd wrote, of every part or of the one whose log is called ``name``."""
        files = sorted(self._private("/var/log/sssd").glob(f"{name or '*'}.log"))
        texts = [file.read_text("utf-8", "replace") for file in files]
        return "\n".join([*texts, self._log.read_text("utf-8", "replace") if self._log.exists() and not name else ""])

    def restart_sssd(self, known: Sequence[str] = ()) -> None:
        """Begin again, with an empty cache."""
        self._end_sssd()
        for name in ("db", "mc"):
            for file in (self._private("/var/lib/sss") / name).iterdir():
                file.unlink()
        self.start_sssd(self.file("/etc/sssd/sssd.conf").read_text(), known)

    def forget(self) -> None:
        """Everything that sssd keeps in its cache counts as expired."""
        self.run("sss_cache", "-E")

    def _end_sssd(self) -> None:
        if self._sssd is not None and self._sssd.poll() is None:
            # ours is nsenter, which ends when its child does
            with suppress(OSError, ValueError, subprocess.TimeoutExpired):
                self.run("kill", str(int((self._private("/run") / "sssd.pid").read_text())))
                self._sssd.wait(10)
        self._sssd = None

    def stop(self) -> None:
        self._end_sssd()
        if self._holder is not None:
            if self._inside:
                with suppress(ProcessLookupError):
                    # the namespace's first process: with it goes every other one
                    os.kill(self._inside, signal.SIGKILL)
            else:
                # it never came to be; the number 0 would be all of us
                self._holder.kill()
            self._holder.wait(10)
            assert self._holder.stdout is not None
            self._holder.stdout.close()
            self._holder = None
        # a copy of this machine's, with its secrets
        shutil.rmtree(self._private("/etc"), ignore_errors=True)

    def __enter__(self) -> ManagedHost:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _unreadable(directory: str, names: list[str]) -> list[str]:
    """What is no file, directory or link: sockets and pipes that somebody put into ``/etc``."""
    kinds = (os.path.islink, os.path.isdir, os.path.isfile)
    return [name for name in names if not any(kind(os.path.join(directory, name)) for kind in kinds)]
