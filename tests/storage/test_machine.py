"""
Random histories of challenges against a model in plain Python, on both engines.

The model says what must be true of every challenge after every step. The stores must agree on what people and hosts
see, on the grace sessions that approvals leave, and on the events of the chain, which grows by exactly what happened.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet import reactor, threads
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread
from twisted.trial.unittest import TestCase

from identree.core.audit import timestamp
from identree.core.challenge import cancel, deny, expire
from identree.core.errors import AlreadyResolved, DuplicateApproval, NotFound, Superseded, TooManyPending
from identree.storage.interface import Caps
from identree.storage.opening import open_store
from identree.storage.store import SqlStore
from tests.contracts.store import approving, at, challenge, code, described, opening
from tests.fakes import MemoryLog
from tests.postgres import cluster

T = TypeVar("T")

USERS = st.sampled_from(["alice", "bob"])
HOSTS = st.sampled_from(["", "web01"])
# typed only in part
REACTOR: Any = reactor

LIFE = 30
CAP = 3


@dataclass
class Model:
    """One challenge as it must be; times in seconds since the beginning."""

    username: str
    hostname: str
    created: int
    required: int
    snapshot: int | None
    status: str = "pending"
    approvers: list[str] = field(default_factory=list)

    def live(self, now: int) -> bool:
        return self.status == "pending" and now < self.created + LIFE


class Challenges(RuleBasedStateMachine):
    """:cvar driver: the engine."""

    driver: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.models: dict[str, Model] = {}
        self.grace: dict[tuple[str, str], int] = {}
        self.revoked: dict[str, int] = {}
        self.kinds: list[str] = []
        self.log = MemoryLog()
        self.number = 0
        self.directory = tempfile.mkdtemp()
        postgres = self.driver == "postgres"
        self.dsn = cluster().create_database() if postgres else f"{self.directory}/identree.db"
        self.store = self.open()

    # the machine runs in a thread beside the reactor, which the stores need
    def do(self, doing: Coroutine[Any, Any, T]) -> T:
        start: Any = Deferred.fromCoroutine
        result: T = blockingCallFromThread(REACTOR, start, doing)
        return result

    def open(self) -> SqlStore:
        def build() -> SqlStore:
            return open_store(
                reactor,
                driver=self.driver,
                dsn=self.dsn,
                version="dev",
                instance="0123456789abcdef",
                log=self.log,
                max_open_conns=2,
            )

        store: SqlStore = blockingCallFromThread(REACTOR, build)
        self.do(store.start())
        return store

    def teardown(self) -> None:
        self.do(self.store.stop())
        if self.driver == "postgres":
            cluster().drop_database(self.dsn)
        shutil.rmtree(self.directory)

    def attempt(self, doing: Coroutine[Any, Any, Any]) -> str:
        """The name of the refusal; empty when it was done."""
        try:
            self.do(doing)
        except (AlreadyResolved, DuplicateApproval, NotFound, Superseded, TooManyPending) as e:
            return type(e).__name__
        return ""

    # -- what can happen ----------------------------------------------------------------------------------------------
    @rule(seconds=st.integers(1, 20))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(username=USERS, hostname=HOSTS, required=st.integers(1, 2))
    def create(self, username: str, hostname: str, required: int) -> None:
        self.number += 1
        snapshot = self.revoked.get(username)
        wanted = challenge(
            self.number,
            username,
            hostname,
            created_at=at(self.now),
            expires_at=at(self.now + LIFE),
            required_approvals=required,
            revoke_before="" if snapshot is None else timestamp(at(snapshot)),
        )
        codes, caps = [code(self.number)], Caps(per_user=CAP)
        said = self.attempt(self.store.create_challenge(username, hostname, codes, opening(wanted), caps, at(self.now)))
        full = sum(model.live(self.now) for model in self.models.values() if model.username == username) >= CAP
        assert said == ("TooManyPending" if full else "")
        if not full:
            self.models[wanted.id] = Model(username, hostname, self.now, required, snapshot)
            self.kinds.append("challenge_created")

    @precondition(lambda self: self.models)
    @rule(data=st.data(), by=st.sampled_from(["carol", "dave", "alice"]), grace=st.integers(0, 100))
    def approve(self, data: st.DataObject, by: str, grace: int) -> None:
        id = data.draw(st.sampled_from(sorted(self.models)))
        model = self.models[id]
        said = self.attempt(self.store.decide(id, approving(by, at(self.now), at(self.now + grace))))
        revoked = self.revoked.get(model.username)
        if not model.live(self.now):
            assert said == "AlreadyResolved"
        elif revoked != model.snapshot:
            assert said == "Superseded"
        elif by in model.approvers:
            assert said == "DuplicateApproval"
        else:
            assert said == ""
            model.approvers.append(by)
            if len(model.approvers) < model.required:
                self.kinds.append("challenge_partially_approved")
                return
            model.status = "approved"
            key = (model.username, model.hostname)
            self.grace[key] = max(self.grace.get(key, 0), self.now + grace)
            self.kinds.append("challenge_approved")

    @precondition(lambda self: self.models)
    @rule(data=st.data(), cancelled=st.booleans())
    def end(self, data: st.DataObject, cancelled: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.models)))
        model, now = self.models[id], at(self.now)
        said = self.attempt(self.store.decide(id, lambda c, _: cancel(c, now) if cancelled else deny(c, "carol", now)))
        assert said == ("" if model.live(self.now) else "AlreadyResolved")
        if not said:
            model.status = "cancelled" if cancelled else "denied"
            self.kinds.append("challenge_cancelled" if cancelled else "challenge_rejected")

    @rule(username=USERS)
    def revoke(self, username: str) -> None:
        held = sorted(hostname for user, hostname in self.grace if user == username)
        assert self.do(self.store.revoke_grace(username, None, at(self.now), described)) == held
        for hostname in held:
            del self.grace[username, hostname]
        self.revoked[username] = max(self.now, self.revoked.get(username, -1) + 1)
        self.kinds += ["session_revoked"] * len(held)

    @rule()
    def sweep(self) -> None:
        now = at(self.now)
        steps = self.do(self.store.expire_challenges(now, lambda c: expire(c, now)))
        overdue = {id for id, m in self.models.items() if m.status == "pending" and not m.live(self.now)}
        assert {step.challenge.id for step in steps} == overdue
        for id in overdue:
            self.models[id].status = "expired"
        self.kinds += ["challenge_expired"] * len(overdue)

    @rule()
    def restart(self) -> None:
        self.do(self.store.stop())
        self.store = self.open()

    # -- what must be true --------------------------------------------------------------------------------------------
    @invariant()
    def challenges_agree(self) -> None:
        for id, model in self.models.items():
            stored = self.do(self.store.challenge(id))
            assert stored is not None
            assert (stored.status.value, list(stored.approvers)) == (model.status, model.approvers)
        pending = self.do(self.store.pending_challenges(None, at(self.now)))
        assert {found.id for found in pending} == {id for id, m in self.models.items() if m.live(self.now)}
        assert self.do(self.store.counts(at(self.now))).pending_challenges == len(pending)

    @invariant()
    def grace_agrees(self) -> None:
        for username in ("alice", "bob"):
            for hostname in ("", "web01"):
                stored = self.do(self.store.grace(username, hostname))
                expiry = self.grace.get((username, hostname))
                assert (None if stored is None else stored.expires_at) == (None if expiry is None else at(expiry))

    @invariant()
    def chain_agrees(self) -> None:
        records = [json.loads(record.plain) for record in self.log.records]
        assert [record["event"] for record in records] == self.kinds
        assert [record["seq"] for record in records] == list(range(len(records)))
        hashes = ["", *(record.hash for record in self.log.records)]
        assert [record.get("prev_hash", "") for record in records] == hashes[: len(records)]


class SqliteChallenges(Challenges):
    driver = "sqlite"


class PostgresChallenges(Challenges):
    driver = "postgres"


def _settings(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=bool(os.environ.get("CI")),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


class MachineTests(TestCase):
    """The machines run in a thread, the stores on the reactor."""

    timeout = 280

    def test_sqlite(self) -> Deferred[None]:
        """Any history on SQLite agrees with the model."""
        return threads.deferToThread(run_state_machine_as_test, SqliteChallenges, settings=_settings(40, 30))

    def test_postgres(self) -> Deferred[None]:
        """Any history on PostgreSQL agrees with the model."""
        return threads.deferToThread(run_state_machine_as_test, PostgresChallenges, settings=_settings(12, 25))
