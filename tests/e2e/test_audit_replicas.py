"""Two servers on one PostgreSQL: what a replica that is gone for good has not delivered, the other one delivers."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path

import pytest

from identree.core import audit
from tests import postgres
from tests.e2e import wire
from tests.e2e.directory import until
from tests.e2e.httpreceiver import Inbox
from tests.e2e.provider import Provider
from tests.e2e.server import PROGRAMS, Server, free_port
from tests.e2e.test_audit_kill import SINKS, Receivers, by_seq, caught_up, logged, served

pytestmark = pytest.mark.e2e

CLIENTS = 4
# Answered by the replica that goes, while the collector is away.
CREATIONS = 300
# Longer than the others wait before they take a chain over.
GONE_SECONDS = 3600
# They look around twice a minute.
PATIENCE_SECONDS = 180.0


@contextmanager
def database() -> Iterator[str]:
    cluster = postgres.cluster()
    dsn = cluster.create_database()
    try:
        yield dsn
    finally:
        cluster.drop_database(dsn)


def rows(dsn: str, sql: str) -> list[tuple[object, ...]]:
    return postgres.cluster().execute(dsn.rpartition("/")[2], sql)


def replica(place: Path, receivers: Receivers, dsn: str) -> Server:
    place.mkdir()
    return served(place, receivers, IDENTREE_DATABASE_DRIVER="postgres", IDENTREE_DATABASE_DSN=dsn)


def instance(server: Server) -> str:
    return (server.directory / "identree-instance").read_text().strip()


def created(port: int, prefix: str, enough: threading.Event) -> set[str]:
    """Codes of the challenges that were answered before the server went; ``enough`` is set when it may go."""
    numbers, codes = itertools.count(), set[str]()

    def client() -> None:
        # until the connection breaks, which the test is about
        while True:
            try:
                answer = wire.create(port, f"{prefix}{next(numbers)}")
            except (OSError, HTTPException):
                return
            assert answer.status == 201, (answer.status, answer.body)
            codes.add(answer.json["user_code"])
            if len(codes) >= CREATIONS:
                enough.set()

    try:
        with ThreadPoolExecutor(CLIENTS) as clients:
            for work in [clients.submit(client) for _ in range(CLIENTS)]:
                work.result()
    finally:
        enough.set()
    return codes


def chains(records: list[str], where: str) -> dict[str, dict[int, str]]:
    """By instance and number."""
    found: dict[str, list[str]] = {}
    for record in records:
        found.setdefault(json.loads(record)["instance"], []).append(record)
    return {name: by_seq(some, f"{where}, chain {name},") for name, some in found.items()}


def codes_of(chain: dict[int, str]) -> set[str]:
    records = map(json.loads, chain.values())
    return {record["code"] for record in records if record["event"] == "challenge_created"}


class TestGone:
    def test_the_other_delivers(self, tmp_path: Path) -> None:
        """
        A replica is killed under load while the collector has nothing of it, and never comes back: after its time the
        other one delivers its chain to every sink, to the end and beside its own, and both verify.
        """
        with database() as dsn, Receivers(tmp_path / "rsyslog") as receivers, ExitStack() as stack:
            one, other = replica(tmp_path / "one", receivers, dsn), replica(tmp_path / "other", receivers, dsn)
            for each in (one, other):
                stack.callback(each.kill)
                each.start()
            gone, alive = instance(one), instance(other)
            writers = "SELECT instance FROM chain_writers ORDER BY instance"
            until(lambda: rows(dsn, writers) == sorted([(gone,), (alive,)]), "both to say that they run")
            receivers.hec.stop()
            answered = self.killed_under_load(one)
            of_other = {wire.create(other.port, f"other{number}").json["user_code"] for number in range(20)}
            assert not receivers.hec.seqs(), "the collector was not away"
            receivers.hec.start()
            rows(dsn, f"UPDATE chain_writers SET seen_at = seen_at - {GONE_SECONDS} WHERE instance = '{gone}'")
            # what is delivered is let go of: nobody has to look after it any more
            until(lambda: rows(dsn, writers) == [(alive,)], "the chain to be delivered", PATIENCE_SECONDS)
            of_other.add(wire.create(other.port, "afterwards").json["user_code"])
            until(lambda: caught_up(other), "the sinks to catch up", PATIENCE_SECONDS)
            assert f"audit: replica {gone} is gone" in other.log
            other.stop()
            counts = rows(dsn, "SELECT instance, COUNT(*), MAX(seq) FROM outbox GROUP BY instance ORDER BY instance")
            last = {str(name): int(str(newest)) for name, _, newest in counts}
            assert rows(dsn, "SELECT COUNT(*) FROM outbox WHERE seq IS NULL") == [(0,)]
            until(
                lambda: len(chains(receivers.arrived()["syslog"], "rsyslog").get(gone, ())) > last[gone],
                "rsyslog's file",
            )
            for sink, records in receivers.arrived().items():
                found = chains(records, sink)
                assert {name: list(chain) for name, chain in found.items()} == {
                    name: list(range(newest + 1)) for name, newest in last.items()
                }, f"{sink} lacks records, or was not sent them in order"
                assert answered <= codes_of(found[gone])
                assert of_other <= codes_of(found[alive])
                for server, name in ((one, gone), (other, alive)):
                    for line in logged(server):
                        record = audit.canonical(line)
                        assert found[name][json.loads(record)["seq"]] == record
            self.verify(receivers, one, other, tmp_path / "exported")

    @staticmethod
    def killed_under_load(server: Server) -> set[str]:
        enough = threading.Event()
        with ThreadPoolExecutor(1) as background:
            work = background.submit(created, server.port, "gone", enough)
            enough.wait(PATIENCE_SECONDS)
            server.kill()
            codes = work.result()
        assert len(codes) >= CREATIONS, "that was no load"
        return codes

    @staticmethod
    def verify(receivers: Receivers, one: Server, other: Server, exported: Path) -> None:
        """Each sink for itself, and all of them beside the logs."""
        exported.mkdir()
        files = receivers.exports(exported)
        assert set(files) == set(SINKS)
        logs = [path for server in (one, other) for path in sorted(server.directory.glob("audit.jsonl*"))]
        everything = [*logs, *itertools.chain.from_iterable(files.values())]
        for paths in (*files.values(), everything):
            said = subprocess.run(
                [PROGRAMS / "identree", "audit", "verify", *paths], check=False, capture_output=True, text=True
            )
            assert said.returncode == 0, f"{paths}: {said.stdout}{said.stderr}"


class TestMessagesOfTheGone:
    def test_the_other_tells(self, tmp_path: Path) -> None:
        """
        A replica is killed between the commit of an event and the note of who is told of it, and never comes back: the
        other one tells, also where no sink is configured.
        """
        with database() as dsn, Inbox() as inbox, ExitStack() as stack:
            provider = stack.enter_context(
                Provider(free_port(), ["http://127.0.0.1:8090/callback"], {"alice": ["users"]})
            )
            settings = {"IDENTREE_DATABASE_DRIVER": "postgres", "IDENTREE_DATABASE_DSN": dsn, **provider.settings}
            one, other = (self.telling(tmp_path / name, inbox, settings) for name in ("one", "other"))
            for each in (one, other):
                stack.callback(each.kill)
                each.start()
            gone = instance(one)
            challenge = wire.create(one.port, "alice").json["challenge_id"]
            assert wire.Visitor("alice").post(one.port, "/api/challenges/reject", challenge_id=challenge).status == 200
            until(lambda: len(inbox.messages) == 1, "the first message")
            one.kill()
            # as if it had not come that far; it runs no more, so that nobody else changes this
            rows(dsn, "DELETE FROM notification_deliveries")
            rows(dsn, f"UPDATE sink_cursors SET seq = -1 WHERE instance = '{gone}' AND sink = 'notifications'")
            assert len(inbox.messages) == 1
            rows(dsn, f"UPDATE chain_writers SET seen_at = seen_at - {GONE_SECONDS} WHERE instance = '{gone}'")
            until(lambda: len(inbox.messages) == 2, "the message of the one that is gone", PATIENCE_SECONDS)
            assert inbox.messages[1] == inbox.messages[0]
            assert inbox.messages[1]["event"] == "challenge_rejected"

    @staticmethod
    def telling(place: Path, inbox: Inbox, settings: dict[str, str]) -> Server:
        place.mkdir()
        channels = place / "channels.json"
        channels.write_text(
            json.dumps(
                {
                    "channels": [{"name": "inbox", "backend": "webhook", "url": f"{inbox.origin}/"}],
                    "routes": [{"channels": ["inbox"], "events": ["challenge_rejected"]}],
                }
            )
        )
        return Server(
            place,
            {
                **settings,
                "IDENTREE_AUDIT_LOG": "",
                "IDENTREE_NOTIFICATION_CONFIG_FILE": str(channels),
                "IDENTREE_NOTIFY_ALLOWED_NETWORKS": "127.0.0.0/8",
            },
        )
