"""
The host registry as operators and hosts meet it: the command line beside running servers, enrolment over HTTP, the file
of an earlier version, replicas on PostgreSQL.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from tests import postgres
from tests.e2e import wire
from tests.e2e.server import PROGRAMS, SHARED_SECRET, Server, free_port

pytestmark = pytest.mark.e2e

SECONDS = 60.0
# Nobody asks it: a challenge is only opened.
PROVIDER = {
    "IDENTREE_OIDC_ISSUER_URL": "http://127.0.0.1:9",
    "IDENTREE_OIDC_CLIENT_ID": "identree",
    "IDENTREE_OIDC_CLIENT_SECRET": "nobody asks for it",
}
OLD = "a" * 64
NUMBERS = count()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, PROVIDER) as running:
        yield running


@pytest.fixture
def dsn() -> Iterator[str]:
    running = postgres.cluster()
    name = running.create_database()
    yield name
    running.drop_database(name)


def command(server: Server, *words: str) -> str:
    """What ``identree`` prints, run as an operator beside the server."""
    done = subprocess.run(
        [PROGRAMS / "identree", *words],
        check=False,
        cwd=server.directory,
        env=server.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, f"not within {SECONDS} s: {what}"
        time.sleep(0.2)


def opens(server: Server, hostname: str, secret: str = SHARED_SECRET, username: str = "") -> int:
    """The status of a challenge that a host asks for; by default for somebody new, since one has only so many."""
    body = json.dumps({"username": username or f"user-{next(NUMBERS)}", "hostname": hostname})
    headers = {"Content-Type": "application/json", "X-Shared-Secret": secret}
    return wire.ask(server.port, "POST", "/api/challenge", headers, body).status


def known(server: Server, secret: str) -> bool:
    """Whether it is the secret of web01. Too many noes block an address, but never a right secret."""
    return opens(server, "web01", secret) == 201


def enrol(server: Server, token: str, hostname: str) -> wire.Answer:
    body = json.dumps({"token": token, "hostname": hostname})
    return wire.ask(server.port, "POST", "/api/enrol", {"Content-Type": "application/json"}, body)


def events(server: Server) -> list[str]:
    return [json.loads(line)["event"] for line in server.audit_log.read_text().splitlines()]


class TestCommands:
    def test_live(self, server: Server) -> None:
        """What the command line does counts for the running server within seconds, and is in its audit log."""
        assert opens(server, "other") == 201
        web01 = command(server, "add-host", "web01", "--users", "alice", "--yes")
        until(lambda: opens(server, "other") == 401, "only registered hosts are served")
        assert opens(server, "web01", web01, "alice") == 201
        assert opens(server, "web01", web01, "bob") == 401
        web02 = command(server, "add-host", "web02")
        until(lambda: opens(server, "web02") == 201, "the second host is registered")
        assert opens(server, "web02", web02) == 201
        rotated = command(server, "rotate-host-secret", "web02")
        until(lambda: "host_secret_rotated" in events(server), "the server has seen it")
        assert [opens(server, "web02", secret) for secret in (web02, rotated)] == [401, 201]
        command(server, "remove-host", "web01")
        until(lambda: opens(server, "web01") == 401, "a removed host is refused")
        assert command(server, "list-hosts").startswith("web02  users=*  registered=")
        until(lambda: "host_removed" in events(server), "its record")
        done = [event for event in events(server) if event.startswith("host_")]
        assert done == ["host_registered", "host_registered", "host_secret_rotated", "host_removed"]
        command(server, "audit", "verify", str(server.audit_log))
        everything = server.log + server.audit_log.read_text() + (server.directory / "hosts.json").read_text()
        for secret in (web01, web02, rotated):
            assert secret not in everything
            assert secret.encode() not in (server.directory / "identree.db").read_bytes()

    def test_without_a_server(self, tmp_path: Path) -> None:
        """What is done while no server runs counts, and is recorded, when one starts."""
        server = Server(tmp_path, PROVIDER)
        secret = command(server, "add-host", "web01", "--yes")
        with server:
            assert opens(server, "other") == 401
            assert opens(server, "web01", secret) == 201
            until(lambda: "host_registered" in events(server), "its record")

    def test_last_host(self, server: Server) -> None:
        """The removal of the last host lets nobody in, now and after a restart; a setting does."""
        command(server, "add-host", "web01", "--yes")
        command(server, "remove-host", "web01")
        until(lambda: opens(server, "web01") == 401, "it is refused")
        server.stop()
        server.start()
        assert opens(server, "web01") == 401
        server.stop()
        server.settings["IDENTREE_HOST_REGISTRY"] = "off"
        server.start()
        assert opens(server, "web01") == 201

    def test_on(self, tmp_path: Path) -> None:
        """Switched on, the registry is in force before it has a host."""
        with Server(tmp_path, {**PROVIDER, "IDENTREE_HOST_REGISTRY": "on"}) as server:
            assert opens(server, "web01") == 401
            secret = command(server, "add-host", "web01")
            until(lambda: opens(server, "web01") == 201, "it is registered")
            assert opens(server, "web01", secret) == 201


class TestEnrolment:
    def test_once(self, server: Server) -> None:
        """A token becomes a secret that works at once, and nothing the second time; nobody logs either."""
        token = command(server, "enrol", "web01", "--users", "alice", "--group", "g", "--yes")
        answer = enrol(server, token, "WEB01")
        assert answer.status == 201, answer
        assert answer.headers["cache-control"] == "no-store"
        secret = answer.json["secret"]
        assert answer.json == {"hostname": "web01", "secret": secret, "server_url": server.url}
        assert opens(server, "web01", secret, "alice") == 201
        assert opens(server, "other") == 401
        assert enrol(server, token, "web01").status == 401
        until(lambda: "enrolment_token_created" in events(server), "the record of the command line")
        assert {"host_enrolled", "authentication_failed"} <= set(events(server))
        everything = server.log + server.audit_log.read_text()
        assert token not in everything
        assert secret not in everything
        again = command(server, "enrol", "web01", "--again")
        assert enrol(server, again, "web01").status == 201
        assert opens(server, "web01", secret, "alice") == 401

    def test_killed(self, server: Server) -> None:
        """A host whose secret was answered has it also when the server is killed right afterwards."""
        token = command(server, "enrol", "web01", "--yes")
        secret = enrol(server, token, "web01").json["secret"]
        server.kill()
        server.start()
        assert opens(server, "web01", secret) == 201
        assert enrol(server, token, "web01").status == 401


class TestFile:
    def old_file(self, place: Path) -> Path:
        path = place / "hosts.json"
        path.touch(0o600)
        entry = {
            "secret": OLD,
            "users": ["alice"],
            "registered_at": "2026-04-17T20:55:14.123456789Z",
            "cert_expires_at": "0001-01-01T00:00:00Z",
        }
        path.write_text(json.dumps({"web01": entry}))
        return path

    def test_taken_over(self, tmp_path: Path) -> None:
        """Hosts of an earlier version go on with the secrets that they have; changes make the file an export."""
        path = self.old_file(tmp_path)
        with Server(tmp_path, PROVIDER) as server:
            assert opens(server, "web01", OLD, "alice") == 201
            assert opens(server, "other") == 401
            assert command(server, "list-hosts") == "web01  users=alice  registered=2026-04-17"
            assert OLD in path.read_text()
            secret = command(server, "add-host", "web02")
            until(lambda: opens(server, "web02", secret) == 201, "the host is registered")
            assert OLD not in path.read_text()
            assert sorted(json.loads(path.read_text())) == ["web01", "web02"]
            server.stop()
            server.start()
            assert opens(server, "web01", OLD, "alice") == 201

    def test_damaged(self, tmp_path: Path) -> None:
        """A registry that is there and cannot be taken over stops the start; it is never taken for none."""
        path = self.old_file(tmp_path)
        path.write_text(path.read_text()[:40])
        status, said = Server(tmp_path, PROVIDER).fails()
        assert status != 0
        assert "hosts.json" in said
        assert "Traceback" not in said


class TestReplicas:
    def test_replicas(self, tmp_path: Path, dsn: str) -> None:
        """
        Two servers on one database: of many who come with one token to both, one gets a secret, and the other server
        knows it at once; a removal at the command line reaches both.
        """
        servers = []
        for name in ("one", "other"):
            place = tmp_path / name
            place.mkdir()
            settings = {**PROVIDER, "IDENTREE_DATABASE_DRIVER": "postgres", "IDENTREE_DATABASE_DSN": dsn}
            servers.append(Server(place, settings, free_port()))
        one, other = servers
        with one, other:
            token = command(one, "enrol", "web01", "--yes")
            with ThreadPoolExecutor(8) as threads:
                answers = list(threads.map(lambda n: enrol(servers[n % 2], token, "web01"), range(8)))
            assert sorted(answer.status for answer in answers) == [201] + [401] * 7
            [secret] = [answer.json["secret"] for answer in answers if answer.status == 201]
            for server in servers:
                until(lambda server=server: known(server, secret), "the secret is known")  # type: ignore[misc]
                assert opens(server, "other") == 401
            command(other, "remove-host", "web01")
            for server in servers:
                until(lambda server=server: opens(server, "web01") == 401, "the removal is known")  # type: ignore[misc]
            until(
                lambda: sum((events(server) for server in servers), []).count("host_removed") == 1,  # noqa: RUF017
                "one of them has recorded it",
            )
            recorded = sum((events(server) for server in servers), [])  # noqa: RUF017
            assert recorded.count("host_enrolled") == recorded.count("enrolment_token_created") == 1
