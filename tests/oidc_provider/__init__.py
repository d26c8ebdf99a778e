"""
The certified ``oidc-provider`` from npm, run for real: a second opinion on our OIDC client.

It is installed from its lock file, needs Node 18 or later, and listens on 127.0.0.1 only.
"""

from __future__ import annotations

import fcntl
import json
import select
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALL_SECONDS = 240
START_SECONDS = 30

CLIENT_ID = "identree"
CLIENT_SECRET = "a: secret/of the tests"


@dataclass(frozen=True)
class RunningProvider:
    """Where it is, and how its one client shows itself."""

    issuer: str
    client_id: str
    client_secret: str


def ensure_installed() -> None:
    """``npm ci``, if what the lock file names is not installed. Only one process at a time does it."""
    lock, done = HERE / "package-lock.json", HERE / "node_modules" / ".package-lock.json"
    with open(HERE / "package.json") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if done.exists() and done.stat().st_mtime >= lock.stat().st_mtime:
            return
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=HERE,
            check=True,
            timeout=INSTALL_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        done.touch()


@contextmanager
def running_provider(
    redirect_uris: Sequence[str],
    *,
    algorithm: str = "RS256",
    auth_method: str = "client_secret_basic",
    admins: Sequence[str] = ("carol",),
    port: int = 0,
) -> Iterator[RunningProvider]:
    """
    Start the provider on a free port, stop it at the end. Whoever types a name at its login page (a form with the one
    field ``login``) is signed in under that name, in group ``users``, and ``admins`` too when named here.

    :param algorithm: of the ID tokens: RS256, PS256, ES256 or EdDSA.
    :param auth_method: the only way in which the client may show its secret.
    """
    ensure_installed()
    settings = {
        "port": port,
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "redirect_uris": list(redirect_uris),
        "algorithm": algorithm,
        "auth_method": auth_method,
        "admins": list(admins),
    }
    process = subprocess.Popen(
        ["node", "server.mjs", json.dumps(settings)],
        cwd=HERE,
        stdin=subprocess.PIPE,  # it ends with us, however we end
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield RunningProvider(_ready(process), CLIENT_ID, CLIENT_SECRET)
    finally:
        process.kill()
        process.communicate()


def _ready(process: subprocess.Popen[bytes]) -> str:
    """The issuer, once it is printed."""
    assert process.stdout is not None
    while select.select([process.stdout], [], [], START_SECONDS)[0]:
        line = process.stdout.readline()
        if not line:
            break
        if line.startswith(b'{"issuer"'):
            return str(json.loads(line)["issuer"])
    raise RuntimeError(f"oidc-provider did not start within {START_SECONDS} s, exit code {process.poll()}")
