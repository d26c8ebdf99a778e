"""
The whole web adapter over the real application and a store in memory, with people who are signed in and requests that
wait: what tests of pages, and people who want to look at them, stand on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock

from identree.app.challenges import Challenges, Draft
from identree.app.decisions import Decisions
from identree.app.development import Development
from identree.app.health import Health
from identree.app.hosts import Credential, Hosts
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.noticefile import NoticeFile
from identree.app.notices import Notices
from identree.app.onetap import OneTapLinks
from identree.app.people import Caller, People
from identree.app.policies import PolicyBook
from identree.app.ports import DeliveryFailed, Identity
from identree.app.rules import Rules
from identree.app.waiters import Waiters
from identree.core import tokens
from identree.core.addresses import Network
from identree.core.challenge import Challenge, HistoryEntry, HostContext
from identree.core.hosts import HostRegistry
from identree.core.limits import FailureThrottle, SlidingWindow
from identree.core.noticefiles import parse_channels, parse_preferences
from identree.core.notices import Channel, Notice
from identree.core.policy import Policies
from identree.storage.interface import BrowserSession, PushDevice
from identree.web.directory import ADMIN_PAGES, DirectoryDesk
from identree.web.render import Renderer
from identree.web.root import build_site
from tests.fakes import memory_store

START = datetime(2026, 3, 4, 9, 30, tzinfo=UTC)
SECRET = "a shared secret of tests only, long enough"
EXTERNAL_URL = "http://identree.test"

T = TypeVar("T")


def result(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that never waits."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    assert results, "the coroutine still waits"
    if hasattr(results[0], "raiseException"):
        results[0].raiseException()
    return results[0]  # type: ignore[no-any-return]


class NoProvider:
    """An identity provider that sends people to an address that does not exist."""

    async def authorization_url(
        self, *, state: str, nonce: str, code_challenge: str, max_age: int | None = None
    ) -> str:
        return f"http://provider.test/authorize?state={state}"

    async def redeem(self, *, code: str, verifier: str, nonce: str) -> Identity:
        return Identity(username="alice", groups=())


async def _at_once(function: Callable[[], Any]) -> Any:
    return function()


class FakeMessenger:
    """
    :ivar sent: what was handed over, with the device.
    :ivar failure: raised instead.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[Channel, Notice, PushDevice | None]] = []
        self.failure: DeliveryFailed | None = None

    async def send(
        self, channel: Channel, notice: Notice, *, device: PushDevice | None = None, previous: str = ""
    ) -> str:
        if self.failure is not None:
            raise self.failure
        self.sent.append((channel, notice, device))
        return ""

    def edits(self, channel: Channel) -> bool:
        return False


@dataclass(frozen=True)
class WebSettings:
    external_url: str = EXTERNAL_URL
    trusted_proxies: tuple[Network, ...] = ()
    metrics_token: str = ""
    webhook_secret: str = ""
    dev_login: bool = False
    max_streams: int = 100
    max_streams_per_user: int = 10
    max_connections_per_address: int = 2000


@dataclass
class House:
    """
    :ivar reactor: its clock is the time of everything; START is its zero. A real one runs by the wall clock.
    :ivar directory: makes what administrators see of the directory; None: the server has no such pages.
    """

    rules: Rules = field(
        default_factory=lambda: Rules(
            external_url=EXTERNAL_URL, grace_period=timedelta(hours=8), challenge_ttl=timedelta(minutes=2)
        )
    )
    policies: Policies = field(default_factory=Policies.empty)
    reactor: Any = None
    start: datetime = START
    trusted_proxies: tuple[Network, ...] = ()
    directory: Callable[[House], DirectoryDesk] | None = None
    notice_path: str = ""

    def __post_init__(self) -> None:
        real = self.reactor is not None
        clock = self.reactor = self.reactor if real else MemoryReactorClock()
        self.now = (
            (lambda: datetime.fromtimestamp(clock.seconds(), UTC))
            if real
            else (lambda: self.start + timedelta(seconds=clock.seconds()))
        )
        self.keys = tokens.Keys.from_secrets(shared=SECRET, session="", hmac="")
        self.store = memory_store(genuine=lambda row: tokens.grace_valid(self.keys.grace, row))
        journal, metrics = Journal(), Metrics(CollectorRegistry(), "test")
        self.journal = journal
        hosts = Hosts(
            shared_secret=SECRET.encode(),
            registry=HostRegistry.empty,
            throttle=FailureThrottle(),
            monotonic=clock.seconds,
            journal=journal,
            metrics=metrics,
        )
        waiters = Waiters(clock, 10)
        common: dict[str, Any] = {
            "store": self.store,
            "keys": self.keys,
            "rules": lambda: self.rules,
            "now": self.now,
            "journal": journal,
            "metrics": metrics,
        }
        self.challenges = Challenges(
            hosts=hosts,
            waiters=waiters,
            policies=lambda: self.policies,
            token=secrets.token_hex,
            below=secrets.randbelow,
            **common,
        )
        self.decisions = Decisions(hosts=hosts, policies=lambda: self.policies, **common)
        self.people = People(
            provider=NoProvider(),
            monotonic=clock.seconds,
            token=secrets.token_hex,
            pkce=lambda: secrets.token_urlsafe(32),
            login_limit=SlidingWindow(10, 60),
            callback_limit=SlidingWindow(10, 60),
            form_limit=SlidingWindow(30, 60),
            **common,
        )
        desk = None if self.directory is None else self.directory(self)
        self.book = PolicyBook(
            store=self.store,
            source="database",
            path="",
            now=self.now,
            in_thread=_at_once,
            journal=journal,
        )
        result(self.book.load())
        self.messenger = FakeMessenger()
        self.channel_file = NoticeFile(
            self.notice_path, lambda raw: parse_channels(raw, {}), ".notify-config-", _at_once, 0.0
        )
        self.notices = Notices(
            store=self.store,
            channel_file=self.channel_file,
            preference_file=NoticeFile(
                self.notice_path and f"{self.notice_path}.admins", parse_preferences, ".admin-notify-", _at_once, 0.0
            ),
            messenger=self.messenger,
            policy_channels=frozenset,
            vapid_public="B" * 87,
            now=self.now,
            journal=journal,
        )
        self.one_taps = OneTapLinks(
            store=self.store,
            decisions=self.decisions,
            keys=self.keys,
            now=self.now,
            max_age=lambda: timedelta(hours=24),
        )
        self.renderer = Renderer(
            now=self.now, rules=lambda: self.rules, admin_pages=() if desk is None else ADMIN_PAGES
        )
        self.front = build_site(
            reactor=clock,
            settings=WebSettings(external_url=self.rules.external_url, trusted_proxies=self.trusted_proxies),
            challenges=self.challenges,
            decisions=self.decisions,
            hosts=hosts,
            people=self.people,
            store=self.store,
            waiters=waiters,
            health=Health([], clock, clock.seconds),
            metrics=metrics,
            renderer=self.renderer,
            rules=lambda: self.rules,
            now=self.now,
            monotonic=clock.seconds,
            in_thread=_at_once,
            directory=desk,
            one_taps=self.one_taps,
            policies=self.book,
            notices=self.notices,
        )
        self.development = Development(store=self.store, keys=self.keys, rules=lambda: self.rules, now=self.now)

    @property
    def root(self) -> Any:
        """The root resource, for ``StubTreq``."""
        return self.front.site.resource

    def cookie(self, username: str, role: str = "user") -> str:
        """A ``pam_session`` of somebody who signed in just now."""
        now = self.now().replace(microsecond=0)
        nonce = secrets.token_hex(16)
        result(self.store.browser_session(BrowserSession(nonce=nonce, username=username, started_at=now)))
        return tokens.session_cookie(self.keys, username, role, int(now.timestamp()), nonce)

    def caller(self, username: str, role: str = "user") -> Caller:
        now = self.now().replace(microsecond=0)
        return Caller(username=username, role=role, nonce="0" * 32, issued_at=now, started_at=now)

    def ask(
        self,
        username: str = "alice",
        hostname: str = "web-01.example.com",
        *,
        reason: str = "",
        context: HostContext | None = None,
        address: str = "192.0.2.17",
    ) -> Challenge:
        """A host asks for an approval."""
        draft = Draft(username=username, hostname=hostname, reason=reason, context=context or HostContext())
        opened = result(self.challenges.create(draft, Credential(secret=SECRET.encode()), address))
        return opened.challenge

    def session(self, username: str, hostname: str, lasting: timedelta) -> None:
        """An open sudo session that ends so far from now."""
        rules, self.rules = self.rules, replace(self.rules, grace_period=lasting)
        result(self.development.seed_session(username, hostname))
        self.rules = rules

    def history(self, entries: Sequence[HistoryEntry]) -> None:
        result(self.store.append_history(entries))
