"""The audit log on a disk that fills up or cannot be written: nothing is granted silently, and nothing is missing."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from identree.sinks import formats
from tests.e2e import wire
from tests.e2e.provider import Provider
from tests.e2e.server import PROGRAMS, TWISTD, Server, free_port

pytestmark = pytest.mark.e2e

# Health looks at most 10 s at an older answer, and the log is tried again after 30 s at the latest.
PATIENCE_SECONDS = 120.0
# What a host and a person are told; it comes with Retry-After.
AGAIN = "administrator"


@pytest.fixture(scope="module")
def oidc() -> Iterator[dict[str, str]]:
    """Settings of a provider that answers, so that health depends on nothing but what a test breaks."""
    with Provider(free_port(), ["http://127.0.0.1:8090/callback"], {"alice": ["users"]}) as provider:
        yield provider.settings


def until(what: str, true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def health(server: Server) -> wire.Answer:
    return wire.ask(server.port, "GET", "/healthz")


def counted(server: Server, status: str) -> float:
    """Records of the JSON log with this fate, as the metrics say."""
    text = wire.ask(server.port, "GET", "/metrics").body.decode()
    found = re.search(rf'^identree_audit_events_total{{sink="jsonlog",status="{status}"}} (\S+)$', text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def verified(*logs: Path) -> str:
    """What ``identree audit verify`` says of logs that are whole."""
    done = subprocess.run(
        [PROGRAMS / "identree", "audit", "verify", *logs], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def approved_codes(log: Path) -> list[str]:
    records = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert [record["seq"] for record in records] == list(range(len(records))), "each record once, in order"
    return [record["code"] for record in records if record["event"] == "challenge_approved"]


class SmallDisk:
    """
    A server whose audit log is on a file system of its own, which nobody else sees: it is gone with the server, however
    that ends.
    """

    def __init__(self, directory: Path, settings: dict[str, str], size: str = "256k") -> None:
        self.mount = directory / "small"
        self.mount.mkdir()
        script = f"mount -t tmpfs -o size={size},mode=700 tmpfs {self.mount} && exec {' '.join(TWISTD)}"
        self.server = Server(
            directory,
            {
                **settings,
                "IDENTREE_AUDIT_LOG": f"file:{self.mount}/audit.jsonl",
                # who waits is still there when the disk is well again
                "IDENTREE_CHALLENGE_TTL": "10m",
            },
            command=("unshare", "-m", "sh", "-c", script),
        )
        self.codes: list[str] = []
        self._people = 0

    def inside(self, name: str) -> Path:
        """A path as the server sees it."""
        assert self.server.process is not None
        return Path(f"/proc/{self.server.process.pid}/root{self.mount}/{name}")

    def run(self, *command: str) -> None:
        """A command among the server's mounts."""
        assert self.server.process is not None
        subprocess.run(["nsenter", f"--mount=/proc/{self.server.process.pid}/ns/mnt", *command], check=True)

    def fill(self) -> None:
        with self.inside("filler").open("wb", buffering=0) as file:
            for size in (65536, 4096, 512, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue

    def ask(self) -> dict[str, str]:
        """A new request for sudo: the host's answer."""
        self._people += 1
        created = wire.create(self.server.port, f"user{self._people}")
        assert created.status == 201, created
        return {"username": f"user{self._people}", **created.json}

    def attempts(self) -> Iterator[wire.Answer]:
        """Requests of people who do not come back, fewer than a page of the log has room for twice."""
        for number in range(50):
            yield wire.create(self.server.port, f"passer{number}")

    def approve(self, asked: dict[str, str]) -> wire.Answer:
        answer = wire.Visitor(asked["username"]).approve(self.server.port, asked["challenge_id"])
        if answer.status == 200:
            self.codes.append(asked["user_code"])
        return answer

    def status(self, asked: dict[str, str]) -> str:
        return str(wire.poll(self.server.port, asked["challenge_id"]).json["status"])

    def refuses(self, waiting: Sequence[dict[str, str]]) -> None:
        """
        None of those who wait is approved; they get a text that says why and a time to come again. Health, metrics and
        log say what is wrong.
        """
        server = self.server
        # what fits into the log's last page is still written, and the record that finds the disk full is safe in the
        # database: refused is what comes after it
        created = next(answer for answer in self.attempts() if answer.status != 201)
        assert (created.status, AGAIN in created.json["error"]) == (503, True), created
        for asked in waiting:
            answer = self.approve(asked)
            assert answer.status == 503, answer
            assert int(answer.headers["retry-after"]) > 0
            assert AGAIN in answer.json["message"], answer.json
            assert self.status(asked) == "pending"
        until("health never said it", lambda: health(server).status == 503)
        report = health(server).json
        assert (report["status"], report["checks"]["disk"]) == ("unhealthy", "not_writable")
        until("it is not tried again", lambda: counted(server, "failed") >= 2)
        assert server.log.count("AUDIT sink error") == 1, server.log
        assert str(self.mount / "audit.jsonl") in server.log

    def goes_on(self, waiting: Sequence[dict[str, str]]) -> Path:
        """With the disk well again all are approved; a copy of the log, which holds every approval once."""
        server = self.server
        until("health does not recover", lambda: health(server).status == 200)
        for asked in waiting:
            if self.status(asked) == "pending":
                assert self.approve(asked).status == 200
            assert self.status(asked) == "approved"
        assert server.log.count("AUDIT sink works again") == 1, server.log
        copy = server.directory / "copy.jsonl"
        copy.write_bytes(self.inside("audit.jsonl").read_bytes())
        assert approved_codes(copy) == self.codes
        verified(copy)
        return copy


class TestFullDisk:
    @pytest.mark.parametrize("fsync", ["always", "interval", "off"])
    def test_refuses_and_recovers(self, tmp_path: Path, oidc: dict[str, str], fsync: str) -> None:
        """No space for the audit log, with every fsync policy."""
        disk = SmallDisk(tmp_path, {**oidc, "IDENTREE_AUDIT_LOG_FSYNC": fsync})
        with disk.server as server:
            until("health", lambda: health(server).status == 200)
            assert disk.approve(disk.ask()).status == 200
            waiting = [disk.ask() for _ in range(4)]
            disk.fill()
            disk.refuses(waiting)
            disk.inside("filler").unlink()
            disk.goes_on(waiting)
            server.stop()
            assert "Traceback" not in server.log

    def test_killed_while_full(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """kill -9 while the disk is full: the next start writes what the log lacks from the database, in order."""
        disk = SmallDisk(tmp_path, oidc)
        with disk.server as server:
            assert disk.approve(disk.ask()).status == 200
            waiting = [disk.ask() for _ in range(3)]
            disk.fill()
            disk.refuses(waiting)
            kept = disk.inside("audit.jsonl").read_bytes()
            server.kill()
        # its file system is gone with it; the log is put back where the next server finds it, with space around it
        log = tmp_path / "audit.jsonl"
        log.write_bytes(kept)
        server.settings["IDENTREE_AUDIT_LOG"] = f"file:{log}"
        with Server(tmp_path, server.settings, server.port) as again:
            until("the log is not brought up to date", lambda: counted(again, "emitted") > 0)
            again.stop()
        assert approved_codes(log) == disk.codes
        verified(log)


class TestReadOnly:
    def test_refuses_and_recovers(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """A file system that has become read-only."""
        disk = SmallDisk(tmp_path, oidc)
        with disk.server as server:
            until("health", lambda: health(server).status == 200)
            assert disk.approve(disk.ask()).status == 200
            waiting = [disk.ask() for _ in range(4)]
            # what is being written cannot be remounted; a read-only one on top is the same to who opens the path
            disk.run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk.mount))
            disk.refuses(waiting)
            assert "read-only" in server.log
            disk.run("umount", str(disk.mount))
            disk.goes_on(waiting)
            server.stop()
            assert "Traceback" not in server.log


class TestStart:
    """What the log cannot be shows at start, in one line that names the setting, the path and what to do."""

    def refused(self, server: Server, *words: str) -> str:
        status, output = server.fails()
        assert status not in (0, None)
        assert "Traceback" not in output, output
        [line] = [line for line in output.splitlines() if "IDENTREE_AUDIT_LOG" in line]
        for word in words:
            assert word in line
        return line

    def test_symlink(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """A symbolic link is not followed, and what it points to stays as it is."""
        target = tmp_path / "target"
        target.write_bytes(b"precious")
        server = Server(tmp_path, oidc)
        server.audit_log.symlink_to(target)
        self.refused(server, str(server.audit_log), "symbolic link", "name the real file")
        assert target.read_bytes() == b"precious"

    def test_directory(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """A directory is no file."""
        server = Server(tmp_path, oidc)
        server.audit_log.mkdir()
        self.refused(server, str(server.audit_log), "it is a directory; name a file")

    def test_below_a_file(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """A path through something that is no directory."""
        (tmp_path / "file").write_bytes(b"")
        path = tmp_path / "file" / "audit.jsonl"
        self.refused(Server(tmp_path, {**oidc, "IDENTREE_AUDIT_LOG": str(path)}), str(path), "no directory")

    def test_foreign_file(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """A file that holds something else is not written to."""
        server = Server(tmp_path, oidc)
        server.audit_log.write_bytes(b"my only copy of a poem")
        self.refused(server, str(server.audit_log), "name another file")
        assert server.audit_log.read_bytes() == b"my only copy of a poem"

    def test_read_only_file(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """A read-only file."""
        log = tmp_path / "audit.jsonl"
        log.write_bytes(b"")
        script = f"mount --bind {log} {log} && mount -o remount,ro,bind {log} && exec {' '.join(TWISTD)}"
        server = Server(tmp_path, oidc, command=("unshare", "-m", "sh", "-c", script))
        self.refused(server, str(log), "read-only")


class TestFormats:
    @pytest.mark.parametrize("form", ["ocsf", "cef"])
    def test_goes_on_in_another(self, tmp_path: Path, oidc: dict[str, str], form: str) -> None:
        """A log that was begun in identree's own form goes on in another one, without a record twice."""
        visitor = wire.Visitor("alice")
        with Server(tmp_path, oidc) as server:
            asked = wire.create(server.port, "alice").json
            assert visitor.approve(server.port, asked["challenge_id"]).status == 200
            server.stop()
        native = len(server.audit_log.read_bytes().splitlines())
        server.settings["IDENTREE_AUDIT_LOG_FORMAT"] = form
        server.settings["IDENTREE_AUDIT_LOG_FSYNC"] = "interval"
        for _ in range(2):
            with Server(tmp_path, server.settings, server.port) as again:
                created = wire.create(again.port, "bob", "web-02").json
                assert wire.Visitor("bob").approve(again.port, created["challenge_id"]).status == 200
                again.stop()
        places = [line_place(line) for line in server.audit_log.read_bytes().splitlines()]
        assert [seq for _, seq in places] == list(range(len(places)))
        assert len({instance for instance, _ in places}) == 1
        assert len(places) > native


def line_place(line: bytes) -> tuple[str, int]:
    place = formats.place(line)
    assert place is not None, line
    return place
