"""
A real PostgreSQL server for tests: a temporary cluster on 127.0.0.1, started on first use and stopped with the process.

PostgreSQL refuses to run as root, so a test run as root drops to an unprivileged user for it. ``fsync`` stays on.
"""

from __future__ import annotations

import atexit
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psycopg2

_USER = "identree_test"
_numbers = itertools.count()


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parent.parent.name))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        raise RuntimeError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return Path(on_path).resolve().parent


def _account() -> pwd.struct_passwd | None:
    """Whom to become; None when nobody else is needed."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("there is no unprivileged user to run PostgreSQL as")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]
    directory: Path

    def dsn(self, database: str) -> str:
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """A fresh, empty database; returns its DSN."""
        name = f"t{os.getpid()}_{next(_numbers)}"
        self.execute("postgres", f"CREATE DATABASE {name}")
        return self.dsn(name)

    def drop_database(self, dsn: str) -> None:
        self.execute("postgres", f"DROP DATABASE IF EXISTS {dsn.rpartition('/')[2]} WITH (FORCE)")

    def execute(self, database: str, sql: str) -> list[tuple[object, ...]]:
        """Run one statement outside of any transaction."""
        connection = psycopg2.connect(self.dsn(database))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # fast shutdown
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


@cache
def cluster() -> Cluster:
    """The server of this test run."""
    binaries, account = _binaries(), _account()
    identity: dict[str, Any] = (
        {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    )
    directory = Path(tempfile.mkdtemp(prefix="identree-postgres-"))
    try:
        if account is not None:
            os.chown(directory, account.pw_uid, account.pw_gid)
        data = directory / "data"
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-locale"],
            check=True,
            capture_output=True,
            cwd=directory,
            env=environment,
            **identity,
        )
        for _ in range(5):  # somebody else may take the port between the look and the start
            port = _free_port()
            with open(directory / "log", "ab") as log:
                process = subprocess.Popen(
                    [
                        *(binaries / "postgres", "-D", data, "-p", str(port), "-k", ""),
                        *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"),
                    ],
                    cwd=directory,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    **identity,
                )
            running = Cluster(port, process, directory)
            if _answers(running):
                atexit.register(running.stop)
                return running
            process.kill()
            process.wait()
        raise RuntimeError("PostgreSQL did not start: " + (directory / "log").read_text(errors="replace")[-2000:])
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _answers(running: Cluster) -> bool:
    for _ in range(600):
        if running.process.poll() is not None:
            return False
        try:
            running.execute("postgres", "SELECT 1")
            return True
        except psycopg2.OperationalError:
            try:
                running.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
    return False
