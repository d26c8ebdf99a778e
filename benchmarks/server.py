"""The server under test, and what it says about itself."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.daemon import BOUNDS
from identree.core import tokens
from tests.e2e.server import REPOSITORY, SESSION_SECRET, SHARED_SECRET, Server

KEYS = tokens.Keys.from_secrets(shared=SHARED_SECRET, session=SESSION_SECRET, hmac="")
# No promise is longer than this, and no turn of the reactor should be; seconds.
LONGEST_TURN = 0.020
SETTINGS = {
    # nobody is there: what is measured needs no signing in
    "IDENTREE_OIDC_ISSUER_URL": "http://127.0.0.1:9",
    "IDENTREE_OIDC_CLIENT_ID": "identree",
    "IDENTREE_OIDC_CLIENT_SECRET": "nobody asks for it",
    "IDENTREE_MAX_PENDING": "1000000",
}


@dataclass(frozen=True, slots=True)
class Turns:
    """
    How long the reactor's turns were.

    :ivar counts: per bound of ``BOUNDS``, and one more for the longer ones.
    :ivar busy: share of the time that it did not wait.
    """

    counts: tuple[int, ...]
    longest_seconds: float
    busy: float

    @property
    def too_long(self) -> int:
        return sum(self.counts[BOUNDS.index(LONGEST_TURN) + 1 :])

    def __str__(self) -> str:
        return (
            f"{sum(self.counts)} turns, {self.too_long} over {LONGEST_TURN * 1000:.0f} ms, "
            f"longest {self.longest_seconds * 1000:.1f} ms, busy {self.busy:.0%}"
        )


class WatchedServer(Server):
    """A server whose reactor counts its turns; its state goes away with it."""

    def __init__(self, directory: Path, settings: dict[str, str] | None = None, profile: str = "") -> None:
        super().__init__(directory, {**SETTINGS, **(settings or {})})
        self._turns = directory / "turns"
        self._read = 0
        self._command = [sys.executable, "-m", "benchmarks.daemon", str(self._turns), *([profile] if profile else [])]

    def start(self) -> None:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory), "LANG": "C.UTF-8", **self.settings}
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._command],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 30
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server does not run:\n{self.log}")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def turns(self) -> Turns:
        """Since it was asked before."""
        os.kill(self.pid, signal.SIGUSR1)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            lines = self._turns.read_text().splitlines() if self._turns.exists() else []
            if len(lines) > self._read:
                self._read = len(lines)
                told = json.loads(lines[-1])
                return Turns(tuple(told["counts"]), told["longest"], told["busy"] / told["seconds"])
            time.sleep(0.01)
        raise RuntimeError("the server does not say how long its turns were")

    def resident_bytes(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the system does not say how much memory the server has")

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def temporary_directory() -> Iterator[Path]:
    directory = Path(mkdtemp(prefix="identree-bench-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def served(settings: dict[str, str] | None = None, profile: str = "") -> Iterator[WatchedServer]:
    with temporary_directory() as directory:
        server = WatchedServer(directory, settings, profile)
        try:
            server.start()
            yield server
            server.stop()
        except BaseException:
            print(server.log[-2000:], file=sys.stderr)
            raise
        finally:
            server.kill()


def raise_file_limit(wanted: int) -> int:
    """Ours, and so that of the servers which we start; returns what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(wanted, hard), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return limit
        except (ValueError, OSError):
            continue
    return soft


# -- what hosts and browsers send -------------------------------------------------------------------------------------
def creation(username: str, hostname: str) -> bytes:
    """As the agent creates a challenge."""
    body = json.dumps(
        {
            "username": username,
            "hostname": hostname,
            "reason": "rolling restart",
            "command": "/usr/bin/systemctl restart nginx",
            "cwd": f"/home/{username}",
            "tty": "/dev/pts/3",
            "remote_host": "192.0.2.17",
        },
        separators=(",", ":"),
    ).encode()
    return (
        b"POST /api/challenge HTTP/1.1\r\nHost: identree.example.com\r\nUser-Agent: identree/0.1.0\r\n"
        b"Accept: application/json\r\nContent-Type: application/json\r\nX-Shared-Secret: %b\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (SHARED_SECRET.encode(), len(body), body)
    )


def held_poll(challenge_id: str, hostname: str, seconds: int = 25) -> bytes:
    return (
        b"GET /api/challenge/%b?hostname=%b&wait=%d HTTP/1.1\r\nHost: identree.example.com\r\n"
        b"User-Agent: identree/0.1.0\r\nAccept: application/json\r\nX-Shared-Secret: %b\r\n\r\n"
        % (challenge_id.encode(), hostname.encode(), seconds, SHARED_SECRET.encode())
    )


def session_cookie(username: str, role: str = "user") -> bytes:
    """Of a person who has signed in just now."""
    return tokens.session_cookie(KEYS, username, role, int(time.time()), os.urandom(16).hex()).encode()


def approval(challenge_id: str, username: str, cookie: bytes) -> bytes:
    """As our page's script sends it."""
    made = int(time.time())
    body = b"challenge_id=%b&username=%b&csrf_token=%b&csrf_ts=%d" % (
        challenge_id.encode(),
        username.encode(),
        tokens.csrf_token(KEYS, username, made).encode(),
        made,
    )
    return (
        b"POST /api/challenges/approve HTTP/1.1\r\nHost: identree.example.com\r\nAccept: application/json\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\nCookie: pam_session=%b\r\nContent-Length: %d\r\n\r\n%b"
        % (cookie, len(body), body)
    )


def event_stream(cookie: bytes) -> bytes:
    return (
        b"GET /api/events HTTP/1.1\r\nHost: identree.example.com\r\nAccept: text/event-stream\r\n"
        b"Cookie: pam_session=%b\r\n\r\n" % cookie
    )
