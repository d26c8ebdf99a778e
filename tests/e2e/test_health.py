"""
A server's health as others see it, also while everything that it depends on hangs; and how the traces of one request
are found together. All on real parts: hanging is a stopped process, whose sockets still take connections.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres
from tests.e2e import directory, wire
from tests.e2e.pocketid import PocketIdServer
from tests.e2e.provider import Provider
from tests.e2e.server import PROGRAMS, Server, free_port

pytestmark = pytest.mark.e2e

# Far above what an answer takes (benchmarks/health.py), far below what one takes that waits for somebody.
ANSWER_SECONDS = 2.0
# What is known of others is looked at every half a minute.
NOTICED_SECONDS = 120.0
FULL = ["disk", "ldap_sync", "pocketid", "oidc", "ldap_server", "database"]


@pytest.fixture
def oidc() -> Iterator[Provider]:
    with Provider(free_port(), ["http://127.0.0.1:8090/callback"], {"alice": ["users"]}) as provider:
        yield provider


@pytest.fixture
def pocketid() -> Iterator[PocketIdServer]:
    with PocketIdServer(5, 2, 1) as served:
        yield served


@pytest.fixture
def dsn() -> Iterator[str]:
    running = postgres.cluster()
    name = running.create_database()
    yield name
    running.drop_database(name)


def asked(server: Server, path: str = "/healthz", method: str = "GET") -> wire.Answer:
    """An answer, which comes soon."""
    begun = time.monotonic()
    answer = wire.ask(server.port, method, path, seconds=10)
    assert time.monotonic() - begun < ANSWER_SECONDS, f"{path} took {time.monotonic() - begun:.1f} s"
    return answer


def until(server: Server, status: int, **checks: str) -> wire.Answer:
    """Ask until it is so; every answer on the way comes soon, too."""
    end = time.monotonic() + NOTICED_SECONDS
    while True:
        answer = asked(server)
        found = answer.json["checks"]
        if answer.status == status and {name: found.get(name) for name in checks} == checks:
            return answer
        assert time.monotonic() < end, answer
        time.sleep(0.1)


def healthcheck(server: Server) -> tuple[int, str]:
    """What the container's health check says: exit status and output."""
    done = subprocess.run(
        [PROGRAMS / "identree", "healthcheck"],
        check=False,
        cwd=server.directory,
        env=server.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace")


def family(pid: int) -> list[int]:
    """A process and its children."""
    found = [pid]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if int(parent) == pid:
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def hanging(*pids: int) -> Iterator[None]:
    """The processes are there and do nothing."""
    stopped = [one for pid in pids for one in family(pid)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def pid_of(served: Provider | PocketIdServer) -> int:
    assert served._process is not None
    return served._process.pid


def without_provider() -> dict[str, str]:
    """Settings of an identity provider that is not there."""
    return {
        "IDENTREE_OIDC_ISSUER_URL": f"http://127.0.0.1:{free_port()}",
        "IDENTREE_OIDC_CLIENT_ID": "identree",
        "IDENTREE_OIDC_CLIENT_SECRET": "nobody asks for it",
    }


class FirstAsked(Server):
    """Remembers the very first answer of a server that starts."""

    first: wire.Answer | None = None

    def answers(self) -> bool:
        try:
            self.first = wire.ask(self.port, "GET", "/healthz", seconds=10)
        except OSError:
            return False
        return True


class TestHanging:
    def test_everything(self, tmp_path: Path, oidc: Provider, pocketid: PocketIdServer, dsn: str) -> None:
        """
        With database, PocketID and identity provider hanging at once, health is told at once and rightly; when they
        come back, so does it.
        """
        settings = {
            **oidc.settings,
            **directory.settings(tmp_path, pocketid, free_port()),
            "IDENTREE_DATABASE_DRIVER": "postgres",
            "IDENTREE_DATABASE_DSN": dsn,
        }
        with Server(tmp_path, settings) as server:
            well = until(server, 200, **dict.fromkeys(FULL, "ok"))
            assert well.json == {"status": "ok", "checks": dict.fromkeys(FULL, "ok")}
            assert list(well.json["checks"]) == FULL
            assert healthcheck(server) == (0, well.body.decode() + "\n")

            with hanging(postgres.cluster().process.pid, pid_of(pocketid), pid_of(oidc)):
                ill = until(server, 503, database="error", pocketid="unreachable", oidc="unreachable")
                assert ill.json["status"] == "unhealthy"
                assert ill.json["checks"]["disk"] == "ok"
                status, said = healthcheck(server)
                assert status == 1
                assert '"database":"error"' in said
                assert asked(server, "/livez").status == 200
                ready = asked(server, "/readyz")
                assert (ready.status, ready.json) == (503, {"status": "unhealthy", "failed": ["database"]})
                metrics = asked(server, "/metrics")
                assert metrics.status == 200
                assert b'identree_health_check_duration_seconds_count{check="database"}' in metrics.body
            until(server, 200, **dict.fromkeys(FULL, "ok"))
            assert asked(server, "/readyz").status == 200
            failed = [
                directory.metric(server.port, f'identree_database_errors_total{{reason="{reason}"}}')
                for reason in ("unreachable", "overloaded", "locked")
            ]
            assert sum(failed) > 0

    def test_provider(self, tmp_path: Path) -> None:
        """Without its identity provider a server is degraded, which is no reason to restart it."""
        with Server(tmp_path, without_provider()) as server:
            answer = until(server, 200, oidc="unreachable")
            assert answer.json["status"] == "degraded"
            status, said = healthcheck(server)
            assert status == 0
            assert '"degraded"' in said
            assert asked(server, "/readyz").status == 200

    def test_slow(self, tmp_path: Path, oidc: Provider, pocketid: PocketIdServer) -> None:
        """Who is slower than an answer may wait is not unreachable: not at the start, and not later."""
        pocketid.slow(0.2)
        settings = {**oidc.settings, **directory.settings(tmp_path, pocketid, free_port())}
        with FirstAsked(tmp_path, settings) as server:
            assert server.first is not None
            assert server.first.json["checks"]["pocketid"] == "ok"
            # past the first time that what is known is no longer fresh
            end = time.monotonic() + 34
            while time.monotonic() < end:
                assert asked(server).json["checks"]["pocketid"] == "ok"
                time.sleep(0.2)
            assert "pocketid is unreachable" not in server.log


class TestAnswer:
    @pytest.fixture(scope="class")
    @staticmethod
    def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
        with (
            Provider(free_port(), ["http://127.0.0.1:8090/callback"], {"alice": ["users"]}) as provider,
            Server(tmp_path_factory.mktemp("health"), provider.settings) as server,
        ):
            yield server

    def test_bytes(self, server: Server) -> None:
        """The answer of the contract, byte for byte, for a server without a directory."""
        answer = until(server, 200, oidc="ok")
        assert answer.body == b'{"status":"ok","checks":{"disk":"ok","oidc":"ok","database":"ok"}}'
        assert answer.headers["content-type"] == "application/json"

    def test_no_request_id(self, server: Server) -> None:
        """Health has no request id; everything else has one."""
        assert "x-request-id" not in asked(server).headers
        for path in ("/livez", "/readyz", "/metrics", "/nowhere"):
            assert re.fullmatch("[0-9a-f]{16}", asked(server, path).headers["x-request-id"])

    def test_head(self, server: Server) -> None:
        """HEAD says the same without a body."""
        for path in ("/healthz", "/livez", "/readyz"):
            answer = asked(server, path, "HEAD")
            assert (answer.status, answer.body) == (200, b"")
            assert answer.headers["content-length"] == str(len(asked(server, path).body))

    def test_other_methods(self, server: Server) -> None:
        """Nothing else is allowed."""
        for path in ("/healthz", "/livez", "/readyz"):
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                assert asked(server, path, method).status == 405

    def test_nobody_there(self, tmp_path: Path) -> None:
        """The health check of a server that does not run fails, and says where it looked."""
        server = Server(tmp_path, without_provider())
        status, said = healthcheck(server)
        assert status == 1
        assert f"127.0.0.1:{server.port} does not answer" in said

    def test_metrics(self, server: Server) -> None:
        """Prometheus's own judge has nothing to say about what a running server tells; routes are templates."""
        wire.poll(server.port, "0" * 32)
        text = asked(server, "/metrics").body
        judged = subprocess.run(
            ["promtool", "check", "metrics"],
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=60,
        )
        assert (judged.returncode, judged.stdout) == (0, b"")
        assert b'identree_http_request_duration_seconds_count{route="/api/challenge/<id>",status="410"}' in text
        for name in (
            "identree_database_outstanding_limit",
            "identree_http_connections_limit",
            'identree_database_duration_seconds_count{operation="read"}',
            "process_open_fds",
        ):
            assert directory.metric(server.port, name) > 0, name


class TestRequestId:
    def test_traces(self, tmp_path: Path) -> None:
        """The id of an answer stands in the audit record and in the log lines of its request, and in no others."""
        with Server(tmp_path, without_provider()) as server:
            created = wire.create(server.port, "alice")
            assert created.status == 201
            approved = wire.Visitor("alice").approve(server.port, created.json["challenge_id"])
            assert approved.status == 200, approved
            refused = wire.ask(server.port, "GET", f"/api/challenge/{'0' * 32}", {"X-Shared-Secret": "x" * 40})
            assert refused.status == 401
            server.stop()
            records = [json.loads(line) for line in server.audit_log.read_text().splitlines()]
            by_event = {record["event"]: record.get("request_id") for record in records}
            assert by_event["challenge_created"] == created.headers["x-request-id"]
            assert by_event["challenge_approved"] == approved.headers["x-request-id"]
            lines = {
                re.search(r'msg=("[^"]*"|\S+)', line)[1].strip('"'): line  # type: ignore[index]
                for line in server.log.splitlines()
                if " msg=" in line
            }
            for message, answer in (
                ("CHALLENGE created", created),
                ("BULK_APPROVED", approved),
                ("AUTH_FAILURE invalid shared secret", refused),
            ):
                assert lines[message].endswith(f" request_id={answer.headers['x-request-id']}"), lines[message]
            ready = next(line for message, line in lines.items() if message.endswith("is ready"))
            assert "request_id" not in ready
