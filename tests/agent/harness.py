"""
The real ``identree.pyz``, run as pam_exec runs it or as a person tries it, and what came out of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from tests.agent.scripted import SECRET, Script, ScriptedServer
from tools import build_agent

VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")

# A run that takes longer has gone wrong.
PATIENCE_SECONDS = 40.0

# Plays sudo: keeps SIGINT and SIGQUIT pending, as sudo does while PAM works, and passes on what the helper says.
FAKE_SUDO = """
import os, signal, subprocess, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGQUIT])
command = os.environ["FAKE_COMMAND"].split("|")
stat = open("/proc/self/stat").read().rpartition(")")[2].split()
start, end = int(stat[45]), int(stat[46])
line = "\\0".join(command).encode() + b"\\0"
memory = open("/proc/self/mem", "r+b", buffering=0)
memory.seek(start)
memory.write(line[: end - start].ljust(end - start, b"\\0"))
environ = {k[4:]: v for k, v in os.environ.items() if k.startswith("PAM:")}
child = subprocess.Popen(os.environ["FAKE_HELPER"].split("|"), env=environ, stdin=subprocess.DEVNULL)
print("helper", child.pid, flush=True)
sys.exit(child.wait())
"""


@functools.cache
def archive() -> str:
    """The agent, built once for all tests of a run."""
    directory = tempfile.mkdtemp(prefix="identree-agent-")
    import atexit

    atexit.register(shutil.rmtree, directory, True)
    path = os.path.join(directory, "identree.pyz")
    assert build_agent.main([path]) == 0
    return path


@functools.cache
def interpreters() -> dict[str, str]:
    """Every Python from 3.9 to 3.13 that is here, by version; always the current one."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": os.path.realpath(sys.executable)}
    candidates = [path for version in VERSIONS if (path := shutil.which(f"python{version}"))]
    with contextlib.suppress(RuntimeError, OSError):
        candidates += map(str, sorted((Path.home() / ".pyenv" / "versions").glob("*/bin/python")))
    for path in candidates:
        show = [path, "-ISBc", "import ssl, sys; print('%d.%d' % sys.version_info[:2])"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            version = subprocess.run(show, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
            if version in VERSIONS:
                found.setdefault(version, path)
    return found


class Helper:
    """
    One run of the agent against a scripted server.

    It has a controlling terminal, so that the test's configuration file is accepted whoever runs the tests. What is
    written to it is in ``terminal``; what pam_exec would forward is in ``output``.
    """

    def __init__(self, script: Script | None, *, conf: dict[str, str] | None = None) -> None:
        self.directory = tempfile.mkdtemp(prefix="identree-test-")
        self.server = ScriptedServer(script) if script is not None else None
        self.conf = {
            "IDENTREE_SHARED_SECRET": SECRET,
            "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true",
            "IDENTREE_SYSLOG": "false",
            "IDENTREE_HOSTNAME": "Web01.example.com.",
            **({"IDENTREE_SERVER_URL": self.server.url} if self.server else {}),
            **(conf or {}),
        }
        self.terminal, self.output, self.code = "", "", -1
        self._process: subprocess.Popen[bytes] | None = None
        self._raw = {"terminal": b"", "output": b""}
        self.master, self._slave = pty.openpty()
        self.tty = os.ttyname(self._slave)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for fd in (self.master, self._slave):
            with contextlib.suppress(OSError):
                os.close(fd)
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        if self.server is not None:
            self.server.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(
        self,
        *,
        on_terminal: bool = False,
        size: tuple[int, int] = (50, 100),
        python: str = "",
        code: str = "",
        sudo: str = "",
        **environ: str,
    ) -> None:
        """
        :param on_terminal: PAM names the terminal, so the agent may draw on it.
        :param code: run this with the archive as first argument, instead of the archive.
        :param sudo: a sudo command line, words separated by ``|``: a process of that name is the parent.
        """
        path = os.path.join(self.directory, "client.conf")
        with open(path, "w") as file:
            file.writelines(f"{key}={value}\n" for key, value in self.conf.items())
        os.chmod(path, 0o600)
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        pam = {"PAM_USER": "alice", "PAM_TYPE": "auth", "PAM_SERVICE": "sudo", "IDENTREE_CLIENT_CONF": path}
        if on_terminal:
            pam["PAM_TTY"] = self.tty
        command = [python or os.path.realpath(sys.executable), "-ISB", *(["-c", code] if code else []), archive()]
        if sudo:
            parent = os.path.join(self.directory, "sudo")
            shutil.copy(os.path.realpath(sys.executable), parent)
            script = os.path.join(self.directory, "fake_sudo.py")
            with open(script, "w") as file:
                file.write(FAKE_SUDO)
            env = {f"PAM:{key}": value for key, value in pam.items()}
            env |= {"FAKE_COMMAND": sudo, "FAKE_HELPER": "|".join(command), "PYTHONHOME": sys.base_prefix, **environ}
            command = [parent, "-SB", script, "x" * 200]
        else:
            env = {**pam, **environ}
        slave = self._slave

        def own_the_terminal() -> None:
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        self._process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=own_the_terminal,
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        """To the started process only: the agent, or the one that plays sudo."""
        os.kill(self.pid, number)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read_until(self, text: str, where: str = "terminal") -> None:
        """Return when ``text`` has been written."""
        self._pump(lambda: text in getattr(self, where))
        assert text in getattr(self, where), (self.terminal, self.output)

    def finish(self) -> int:
        """The exit code, with everything that was written read."""
        assert self._process is not None
        process = self._process
        self._pump(lambda: False)
        self.code = process.wait(PATIENCE_SECONDS)
        return self.code

    def run(self, **options: object) -> int:
        self.start(**options)  # type: ignore[arg-type]
        return self.finish()

    def _pump(self, enough) -> None:  # type: ignore[no-untyped-def]
        assert self._process is not None and self._process.stdout is not None
        sources = {self._process.stdout.fileno(): "output", self.master: "terminal"}
        until = time.monotonic() + PATIENCE_SECONDS
        while not enough() and time.monotonic() < until:
            ready, _, _ = select.select(list(sources), [], [], 0.05)
            for fd in ready:
                try:
                    data = os.read(fd, 65536)
                except OSError:
                    data = b""
                self._raw[sources[fd]] += data
                setattr(self, sources[fd], self._raw[sources[fd]].decode("utf-8", "replace"))
                if not data:
                    del sources[fd]
            if not ready and "output" not in sources.values():
                return
