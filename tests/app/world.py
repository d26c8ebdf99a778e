"""The application on a memory store, with a clock that stands until it is advanced."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure

from identree.app.challenges import Challenges
from identree.app.decisions import Decisions
from identree.app.hosts import Credential, Hosts
from identree.app.idtokens import IdTokens
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.people import Caller, People
from identree.app.ports import Identity
from identree.app.rules import Rules
from identree.app.trail import Trail
from identree.app.waiters import Waiters
from identree.core.errors import LoginFailed
from identree.core.hosts import HostRegistry
from identree.core.limits import FailureThrottle, SlidingWindow
from identree.core.policy import Policies
from identree.core.tokens import Keys
from tests.fakes import memory_store

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECRET = "0123456789abcdef0123456789abcdef"
GLOBAL = Credential(secret=SECRET.encode())

T = TypeVar("T")


def now_result(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of something that must finish at once."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    if not results:
        raise AssertionError("it did not finish")
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]  # type: ignore[no-any-return]


class FakeProvider:
    """Signs in whoever ``identity`` says, if the code is ``good``."""

    def __init__(self) -> None:
        self.identity = Identity(username="alice", groups=("staff",))
        self.redeemed: list[tuple[str, str, str]] = []

    async def authorization_url(
        self, *, state: str, nonce: str, code_challenge: str, max_age: int | None = None
    ) -> str:
        fresh = "" if max_age is None else f"&max_age={max_age}"
        return f"https://idp.example/authorize?state={state}&code_challenge={code_challenge}{fresh}"

    async def redeem(self, *, code: str, verifier: str, nonce: str) -> Identity:
        self.redeemed.append((code, verifier, nonce))
        if code != "good":
            raise LoginFailed("login_exchange_failed", 500)
        return self.identity


class World:
    def __init__(self) -> None:
        self.clock = Clock()
        self.store = memory_store()
        self.rules = Rules(external_url="https://identree.example", admin_groups=("admins",))
        self.registry = HostRegistry.empty()
        self.policies = Policies.empty()
        self.keys = Keys.from_secrets(shared=SECRET, session="", hmac="")
        self.metrics = Metrics(CollectorRegistry(), "test")
        self.id_tokens = IdTokens(self.keys.id_tokens, lambda size: b"n" * size)
        self.log: list[tuple[str, dict[str, object]]] = []
        self.journal = journal = Journal(
            Logger(observer=lambda event: self.log.append((event["message"], dict(event["attributes"]))))
        )
        self.trail = Trail(store=self.store, now=self.now, monotonic=self.clock.seconds)
        self._numbers = count(1)
        self.hosts = Hosts(
            shared_secret=SECRET.encode(),
            registry=lambda: self.registry,
            throttle=FailureThrottle(),
            monotonic=self.clock.seconds,
            journal=journal,
            metrics=self.metrics,
            trail=self.trail,
        )
        self.waiters = Waiters(self.clock, limit=100)
        self.store.subscribe(self.waiters.heard)
        self.challenges = Challenges(
            store=self.store,
            hosts=self.hosts,
            waiters=self.waiters,
            keys=self.keys,
            rules=lambda: self.rules,
            policies=lambda: self.policies,
            now=self.now,
            token=self.token,
            below=lambda n: next(self._numbers) * 7_654_321 % n,
            journal=journal,
            metrics=self.metrics,
            id_tokens=self.id_tokens,
        )
        self.decisions = Decisions(
            store=self.store,
            hosts=self.hosts,
            keys=self.keys,
            rules=lambda: self.rules,
            policies=lambda: self.policies,
            now=self.now,
            journal=journal,
            metrics=self.metrics,
            trail=self.trail,
        )
        self.provider = FakeProvider()
        self.people = People(
            store=self.store,
            provider=self.provider,
            keys=self.keys,
            rules=lambda: self.rules,
            now=self.now,
            monotonic=self.clock.seconds,
            token=self.token,
            pkce=lambda: "v" * 43,
            login_limit=SlidingWindow(10, 60),
            callback_limit=SlidingWindow(10, 60),
            form_limit=SlidingWindow(30, 60),
            journal=journal,
            metrics=self.metrics,
            trail=self.trail,
            id_tokens=self.id_tokens,
        )

    def now(self) -> datetime:
        return START + timedelta(seconds=self.clock.seconds())

    def token(self, size: int) -> str:
        return f"{next(self._numbers):0{2 * size}x}"

    def change_rules(self, **changes: Any) -> None:
        self.rules = replace(self.rules, **changes)

    def caller(self, username: str, role: str = "user") -> Caller:
        return Caller(username=username, role=role, nonce=self.token(16), issued_at=self.now(), started_at=self.now())

    def sample(self, name: str, **labels: str) -> float:
        """The present value of a metric."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0
