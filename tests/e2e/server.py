"""A real identree process on loopback, started as an operator starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).resolve().parents[2]
# twistd, twist and identree of this environment.
PROGRAMS = Path(sys.executable).parent
SHARED_SECRET = "e2e-shared-secret-0123456789abcdef"
SESSION_SECRET = "e2e-session-secret-0123456789abcdef"
START_SECONDS = 30.0


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The ways to run it.
TWISTD = (str(PROGRAMS / "twistd"), "-n", "identree")
TWIST = (str(PROGRAMS / "twist"), "identree")
SERVE = (str(PROGRAMS / "identree"), "serve")
# A server never outlives the test run, even one that was killed.
DYING_WITH_US = ("setpriv", "--pdeathsig", "KILL")


class Server:
    """
    A server with its state, and its working directory, in ``directory``.

    :param settings: more settings, by full name; they win over the defaults here.
    :param port: where to listen; a free one when None.
    """

    def __init__(
        self,
        directory: Path,
        settings: dict[str, str] | None = None,
        port: int | None = None,
        command: Sequence[str] = TWISTD,
    ) -> None:
        self._command = command
        self.directory = directory
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.audit_log = directory / "audit.jsonl"
        self._log = directory / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.settings = {
            "IDENTREE_LISTEN_ADDR": f"127.0.0.1:{self.port}",
            "IDENTREE_EXTERNAL_URL": self.url,
            "IDENTREE_SHARED_SECRET": SHARED_SECRET,
            "IDENTREE_SESSION_SECRET": SESSION_SECRET,
            "IDENTREE_DATABASE_DSN": str(directory / "identree.db"),
            "IDENTREE_AUDIT_LOG": f"file:{self.audit_log}",
            "IDENTREE_HOST_REGISTRY_FILE": str(directory / "hosts.json"),
            "IDENTREE_APPROVAL_POLICIES_FILE": str(directory / "approval-policies.json"),
            "IDENTREE_SESSION_STATE_FILE": str(directory / "sessions.json"),
            "IDENTREE_TOML_CONFIG_FILE": str(directory / "identree.toml"),
            "IDENTREE_LDAP_ENABLED": "false",
            "IDENTREE_ADMIN_GROUPS": "admins",
            **(settings or {}),
        }

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.directory), "LANG": "C.UTF-8", **self.settings}

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*DYING_WITH_US, *self._command],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + START_SECONDS
        while not self.answers():
            if self.process.poll() is not None:
                raise AssertionError(f"identree ended with status {self.process.returncode}:\n{self.log}")
            if time.monotonic() > end:
                raise AssertionError(f"identree did not answer within {START_SECONDS} s:\n{self.log}")
            time.sleep(0.05)

    def answers(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status in (200, 503)
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self, seconds: float = 30) -> int:
        """Ask it to stop and return its exit status; twistd ends by the signal itself, once it has tidied up."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        finally:
            self.kill()

    def fails(self, seconds: float = 30) -> tuple[int, str]:
        """Start it where it cannot work; its exit status, and what it said."""
        done = subprocess.run(
            [*DYING_WITH_US, *self._command],
            check=False,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
        )
        return done.returncode, done.stdout.decode("utf-8", "replace")

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
