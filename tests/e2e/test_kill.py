"""kill -9 of the server at random points while people approve: what was answered is true for ever."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import pytest

from tests import postgres
from tests.e2e import wire
from tests.e2e.provider import CLIENT_ID, CLIENT_SECRET
from tests.e2e.server import PROGRAMS, Server, free_port

pytestmark = pytest.mark.e2e

APPROVALS = 200
CLIENTS = 8
KILLS = 12
# Nobody is served for this long only if the server is broken.
PATIENCE_SECONDS = 60.0
NO_PROVIDER = {
    "IDENTREE_OIDC_ISSUER_URL": f"http://127.0.0.1:{free_port()}",
    "IDENTREE_OIDC_CLIENT_ID": CLIENT_ID,
    "IDENTREE_OIDC_CLIENT_SECRET": CLIENT_SECRET,
    "IDENTREE_CHALLENGE_TTL": "10m",
}


class Load:
    """
    Hosts and people who come again until they are answered.

    :ivar approved: challenge and code of every approval that a person was told of.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self.approved: dict[str, str] = {}

    @property
    def count(self) -> int:
        with self._lock:
            return len(self.approved)

    def run(self, number: int) -> None:
        """One sudo and its approval."""
        visitor = wire.Visitor(f"user{number}")
        created = self._until_answered(lambda: wire.create(self._port, visitor.username), 201).json
        challenge = created["challenge_id"]
        answer = self._until_answered(lambda: visitor.approve(self._port, challenge), 200, 404)
        if answer.status == 404:
            # an approval that was cut off before its answer was made nevertheless
            assert self.status(challenge) == "approved", answer.body
        with self._lock:
            self.approved[challenge] = created["user_code"]
        assert self.status(challenge, wait=5) == "approved"

    def status(self, challenge: str, wait: int = 0) -> str:
        return str(self._until_answered(lambda: wire.poll(self._port, challenge, wait), 200).json["status"])

    def _until_answered(self, request, *wanted: int) -> wire.Answer:  # type: ignore[no-untyped-def]
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer: wire.Answer = request()
            except (OSError, HTTPException):
                pass
            else:
                if answer.status in wanted:
                    return answer
                # 503 is the server's own word for "not now"
                assert answer.status == 503, (answer.status, answer.body)
            assert time.monotonic() < end, "the server was away for too long"
            time.sleep(0.02)


class TestKill:
    @pytest.mark.parametrize("engine", ["sqlite", "postgres"])
    def test_nothing_is_lost_and_nothing_twice(self, tmp_path: Path, engine: str) -> None:
        """Answered approvals stay, each with one record and one line of history; the log has no torn line."""
        seed = random.SystemRandom().randrange(2**32)
        print(f"seed {seed}")
        chance = random.Random(seed)
        settings = dict(NO_PROVIDER)
        dsn = ""
        if engine == "postgres":
            dsn = postgres.cluster().create_database()
            settings.update(IDENTREE_DATABASE_DRIVER="postgres", IDENTREE_DATABASE_DSN=dsn)
        with Server(tmp_path, settings) as server:
            load = Load(server.port)
            with ThreadPoolExecutor(CLIENTS) as clients:
                work = [clients.submit(load.run, number) for number in range(APPROVALS)]
                for threshold in sorted(chance.sample(range(APPROVALS - CLIENTS), KILLS)):
                    while load.count < threshold and not all(each.done() for each in work):
                        time.sleep(0.001)
                    time.sleep(chance.uniform(0, 0.03))
                    server.kill()
                    server.start()
                for each in work:
                    each.result()
            server.kill()
            server.start()
            assert len(load.approved) == APPROVALS
            with ThreadPoolExecutor(CLIENTS) as clients:
                assert set(clients.map(load.status, load.approved)) == {"approved"}
            server.stop()
        self.check_audit(server, load)
        assert self.history(engine, server, dsn, load) == {"approved": APPROVALS}
        if dsn:
            postgres.cluster().drop_database(dsn)

    def check_audit(self, server: Server, load: Load) -> None:
        lines = server.audit_log.read_bytes().split(b"\n")
        assert lines.pop() == b"", "the last line is whole"
        records = [json.loads(line) for line in lines]
        codes = Counter(self.code(record) for record in records if record["event"] == "challenge_approved")
        assert codes == Counter(load.approved.values())
        verified = subprocess.run(
            [PROGRAMS / "identree", "audit", "verify", server.audit_log], check=False, capture_output=True, text=True
        )
        assert verified.returncode == 0, verified.stdout + verified.stderr

    @staticmethod
    def code(record: dict[str, object]) -> str:
        return next(value for key, value in record.items() if key in ("code", "user_code") and isinstance(value, str))

    def history(self, engine: str, server: Server, dsn: str, load: Load) -> dict[str, int]:
        """Lines of history by kind."""
        query = "SELECT code, action FROM action_log WHERE action = 'approved'"
        if engine == "postgres":
            rows = postgres.cluster().execute(dsn.rpartition("/")[2], query)
        else:
            database = sqlite3.connect(server.settings["IDENTREE_DATABASE_DSN"])
            rows = database.execute(query).fetchall()
            database.close()
        assert Counter(row[0] for row in rows) == Counter(load.approved.values())
        return Counter(str(row[1]) for row in rows)
