"""The server as a process: how it starts, refuses to, stops, and lives through trouble with its database."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests import postgres
from tests.e2e import wire
from tests.e2e.provider import Provider
from tests.e2e.server import SERVE, TWIST, TWISTD, Server, free_port

pytestmark = pytest.mark.e2e

COMMANDS = pytest.mark.parametrize("command", [TWISTD, TWIST, SERVE], ids=["twistd", "twist", "serve"])
# Health looks at most this long at an older answer.
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def oidc() -> Iterator[dict[str, str]]:
    """Settings of a provider that answers, so that health depends on nothing but what a test breaks."""
    with Provider(free_port(), ["http://127.0.0.1:8090/callback"], {"alice": ["users"]}) as provider:
        yield provider.settings


def told(text: str) -> str:
    """What an operator sees, which is never a traceback."""
    assert "Traceback" not in text, text
    return text


def until_health(server: Server, status: int) -> wire.Answer:
    """Wait until ``/healthz`` answers with this status."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        answer = wire.ask(server.port, "GET", "/healthz")
        if answer.status == status:
            return answer
        assert time.monotonic() < end, answer
        time.sleep(0.2)


class TestStarting:
    @COMMANDS
    def test_starts_and_stops(self, tmp_path: Path, oidc: dict[str, str], command: Sequence[str]) -> None:
        """It answers, ends soon after SIGTERM without complaint, and leaves no pid file."""
        with Server(tmp_path, oidc, command=command) as server:
            assert until_health(server, 200).json["status"] == "ok"
            assert wire.ask(server.port, "GET", "/metrics").status == 200
            server.stop()
            assert "identree 0." in told(server.log)
        assert not (tmp_path / "twistd.pid").exists()

    @COMMANDS
    def test_bad_settings(self, tmp_path: Path, command: Sequence[str]) -> None:
        """All mistakes at once, each with the variable's name, and failure."""
        mistakes = {
            "IDENTREE_CHALLENGE_TTL": "soon",
            "IDENTREE_SHARED_SECRET": "short",
            "IDENTREE_MAX_PENDING": "-3",
            "IDENTREE_EXTERNAL_URL": "identree.example.com",
        }
        status, output = Server(tmp_path, mistakes, command=command).fails()
        assert status not in (0, None)
        for name in (*mistakes, "IDENTREE_OIDC_ISSUER_URL"):
            assert name in told(output)
        assert "'short'" not in output
        assert not (tmp_path / "identree.db").exists()

    @COMMANDS
    def test_busy_port(self, tmp_path: Path, oidc: dict[str, str], command: Sequence[str]) -> None:
        """Somebody else listens there already: one clear line, and failure."""
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            status, output = Server(tmp_path, oidc, port, command).fails()
        assert status not in (0, None)
        assert str(port) in told(output)
        assert re.search("(?i)in use", output)

    def test_newer_schema(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """A database that a newer version migrated is refused and left as it is."""
        server = Server(tmp_path, oidc)
        with server:
            server.stop()
        path = server.settings["IDENTREE_DATABASE_DSN"]
        with sqlite3.connect(path) as database:
            database.execute("INSERT INTO schema_migrations VALUES (999, 'of the future', 0)")
        database.close()
        status, output = server.fails()
        assert status not in (0, None)
        assert "999" in told(output)
        assert "newer" in output

    def test_unusable_directory(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """A database below a path that is no directory."""
        (tmp_path / "file").write_text("")
        dsn = str(tmp_path / "file" / "identree.db")
        status, output = Server(tmp_path, {**oidc, "IDENTREE_DATABASE_DSN": dsn}).fails()
        assert status not in (0, None)
        assert dsn in told(output)

    def test_after_a_kill(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """What kill -9 leaves, a pid file for one, does not keep it from starting again."""
        with Server(tmp_path, oidc) as server:
            created = wire.create(server.port, "alice").json
            server.kill()
            assert (tmp_path / "twistd.pid").exists(), "this is twistd's own file"
            server.start()
            assert wire.poll(server.port, created["challenge_id"]).json["status"] == "pending"
            server.stop()
        assert not (tmp_path / "twistd.pid").exists()

    def test_files_are_private(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """The database is for its owner only; the audit log also for a group, whose members ship logs."""
        with Server(tmp_path, oidc) as server:
            wire.create(server.port, "alice")
            assert Path(server.settings["IDENTREE_DATABASE_DSN"]).stat().st_mode & 0o077 == 0
            assert server.audit_log.stat().st_mode & 0o027 == 0


class Held(threading.Thread):
    """A host that waits for a decision; ``answer`` is there after ``join``."""

    def __init__(self, port: int, challenge: str) -> None:
        super().__init__(daemon=True)
        self._port, self._challenge = port, challenge
        self.answer: wire.Answer | None = None
        self.start()

    def run(self) -> None:
        self.answer = wire.poll(self._port, self._challenge, wait=25)


def held(server: Server, challenge: str) -> Held:
    """A poll that the server holds now."""
    waiting = waiters(server)
    thread = Held(server.port, challenge)
    end = time.monotonic() + PATIENCE_SECONDS
    while waiters(server) <= waiting:
        assert time.monotonic() < end, "the poll is not held"
        time.sleep(0.02)
    return thread


def waiters(server: Server) -> int:
    """How many requests are held, as the metrics say."""
    text = wire.ask(server.port, "GET", "/metrics").body.decode()
    found = re.search(r"^identree_held_requests(?:\{[^}]*\})? ([0-9.]+)$", text, re.MULTILINE)
    assert found is not None, text
    return int(float(found[1]))


class TestStopping:
    @COMMANDS
    def test_nobody_is_cut_off(self, tmp_path: Path, oidc: dict[str, str], command: Sequence[str]) -> None:
        """SIGTERM answers held polls with the truth and ends event streams orderly."""
        with Server(tmp_path, oidc, command=command) as server:
            challenge = wire.create(server.port, "alice").json["challenge_id"]
            stream = HTTPConnection("127.0.0.1", server.port, timeout=30)
            stream.request("GET", "/api/events", headers=wire.Visitor("alice").headers)
            events = stream.getresponse()
            assert events.status == 200
            poll = held(server, challenge)
            server.stop()
            poll.join(30)
            assert poll.answer is not None
            assert (poll.answer.status, poll.answer.json["status"]) == (200, "pending")
            events.read()  # to its end; a connection that is cut off raises
            stream.close()
            told(server.log)


class TestFullDisk:
    def test_refuses_and_recovers(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """No space: 503 with Retry-After, nothing granted, unhealthy; with space again it goes on by itself."""
        small = tmp_path / "small"
        small.mkdir()
        # a mount of the server's own name space: it is gone with the server, however that ends
        script = f"mount -t tmpfs -o size=3m,mode=700 tmpfs {small} && exec {' '.join(TWISTD)}"
        settings = {
            **oidc,
            "IDENTREE_DATABASE_DSN": str(small / "identree.db"),
            "IDENTREE_SESSION_STATE_FILE": str(small / "sessions.json"),
        }
        with Server(tmp_path, settings, command=("unshare", "-m", "sh", "-c", script)) as server:
            until_health(server, 200)
            challenge = wire.create(server.port, "alice").json["challenge_id"]
            assert server.process is not None
            filler = Path(f"/proc/{server.process.pid}/root{small}/filler")
            fill(filler)
            visitor = wire.Visitor("alice")
            # what fits into pages that the database has already may still succeed
            refused = next(
                answer for answer in (wire.create(server.port, f"u{n}") for n in range(5000)) if answer.status != 201
            )
            assert refused.status == 503
            assert int(refused.headers["retry-after"]) > 0
            assert "error" in refused.json
            approval = visitor.approve(server.port, challenge)
            if approval.status != 200:
                assert approval.status == 503
                assert wire.poll(server.port, challenge).json["status"] == "pending"
            health = until_health(server, 503)
            assert health.json["status"] == "unhealthy"
            filler.unlink()
            assert until_health(server, 200).json["status"] == "ok"
            assert visitor.approve(server.port, challenge).status in (200, 404)
            assert wire.poll(server.port, challenge).json["status"] == "approved"
            assert wire.create(server.port, "after").status == 201
            server.stop()
            told(server.log)


def fill(path: Path) -> None:
    """Write until there is no space."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


class TestReplicas:
    def test_two_on_one_database(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """A decision at one replica answers the host that waits at the other; a sign-out holds at both."""
        dsn = postgres.cluster().create_database()
        settings = {
            **oidc,
            "IDENTREE_DATABASE_DRIVER": "postgres",
            "IDENTREE_DATABASE_DSN": dsn,
            "IDENTREE_EXTERNAL_URL": "http://127.0.0.1:8090",
        }
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        with Server(tmp_path / "a", settings) as a, Server(tmp_path / "b", settings) as b:
            challenge = wire.create(a.port, "alice").json["challenge_id"]
            poll = held(b, challenge)
            visitor = wire.Visitor("alice")
            assert visitor.get(b.port, "/fragments/session").status == 200
            assert visitor.approve(a.port, challenge).status == 200
            poll.join(30)
            assert poll.answer is not None
            assert poll.answer.json["status"] == "approved"
            again = visitor.approve(b.port, challenge)
            assert again.status == 404, "approved once, also by way of the other replica"
            visitor.post(a.port, "/signout")
            end = time.monotonic() + PATIENCE_SECONDS
            while visitor.get(b.port, "/fragments/session").status != 401:
                assert time.monotonic() < end, "signed out at one replica, signed in at the other"
                time.sleep(0.02)
            a.stop()
            b.stop()
            records = [json.loads(line) for log in (a, b) for line in log.audit_log.read_text().splitlines()]
        assert [record["event"] for record in records].count("challenge_approved") == 1
        postgres.cluster().drop_database(dsn)
