"""
Notifications, built from the settings: files, clients, the follower that plans, the dispatcher that sends. A part of
the composition root.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IHostResolution, IResolutionReceiver, IStreamClientEndpoint
from twisted.logger import Logger
from zope.interface import implementer

from identree import __version__
from identree.app.deliveries import Dispatcher, NoticePlanner, parse_record
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.noticefile import NoticeFile
from identree.app.notices import Notices
from identree.clients.guarded import Guard, GuardedEndpoint, build_guarded_client
from identree.clients.http import build_pool
from identree.clients.notify.mail import Mailer
from identree.clients.notify.messenger import Notifiers
from identree.clients.notify.webpush import VapidKey
from identree.core import noticefiles, tokens
from identree.core.audit import Sealed
from identree.core.challenge import Live
from identree.core.errors import StorageUnavailable
from identree.core.policy import Policies
from identree.core.routing import WEBPUSH
from identree.core.verdict import Approver
from identree.settings.values import Settings
from identree.sinks.follower import Follower, Unavailable
from identree.storage.interface import DeliveryState, Feed
from identree.storage.store import SqlStore

# The follower's name, as in the table of cursors.
FOLLOWER = "notifications"
KEPT_CONNECTIONS = 2
BATCH = 100
BEGIN_AGAIN_SECONDS = 5.0
ROSTER = Callable[[frozenset[str]], Sequence[Approver]]


class _Planning:
    """The planner, as a follower ships records to it."""

    name = FOLLOWER
    batch = BATCH
    # nobody notices, and under load events share the saving of the place
    linger_seconds = 0.05
    settle_seconds = 0.0

    def __init__(self, planner: NoticePlanner) -> None:
        self._planner = planner
        self.lost: Callable[[], None] = lambda: None

    async def ship(self, records: Sequence[Sealed]) -> None:
        try:
            await self._planner.plan(*(parse_record(record.plain) for record in records))
        except StorageUnavailable as problem:
            raise Unavailable(str(problem)) from problem

    async def close(self) -> None:
        """It has no connection."""


class _Nothing:
    """Nobody counts planned records; what is sent is counted."""

    def emitted(self, count: int) -> None: ...
    def failed(self) -> None: ...
    def parked(self, count: int) -> None: ...


class NoticeServices(MultiService):
    """The follower begins where the chain stands when notifications are there for the first time."""

    _log = Logger(namespace="identree")

    def __init__(self, store: SqlStore, dispatcher: Dispatcher, make: Callable[[Feed], Follower], clock: Any) -> None:
        super().__init__()
        self.setName("notification services")
        self._store = store
        self._dispatcher = dispatcher
        self._make = make
        self._clock = clock
        self._follower: Follower | None = None
        self._retry: Any = None
        dispatcher.setServiceParent(self)

    def startService(self) -> None:
        super().startService()
        self._begin()

    def _begin(self) -> None:
        self._retry = None
        Deferred.fromCoroutine(self._follow()).addErrback(
            lambda failure: self._log.failure("notify: events cannot be followed", failure)
        )

    async def _follow(self) -> None:
        try:
            await self._store.outbox.begin(FOLLOWER)
        except StorageUnavailable:
            if self.running:
                self._retry = self._clock.callLater(BEGIN_AGAIN_SECONDS, self._begin)
            return
        if self.running and self._follower is None:
            self._follower = self._make(self._store.outbox)
            self._store.outbox.when_set_back(self._follower.set_back)
            self._follower.setServiceParent(self)

    def stopService(self) -> Deferred[object]:
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        return maybeDeferred(super().stopService)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeParts:
    """
    :ivar services: to be started.
    :ivar follow: makes a follower that plans the messages of a chain.
    :ivar measure: brings gauges up to date; may ask the database.
    """

    desk: Notices
    services: NoticeServices
    follow: Callable[[Feed], Follower]
    measure: Callable[[], Awaitable[None]]
    close: Callable[[], object]


def build_notices(
    *,
    settings: Settings,
    reactor: Any,
    store: SqlStore,
    metrics: Metrics,
    journal: Journal,
    keys: tokens.Keys,
    policies: Callable[[], Policies],
    group: Callable[[str], str],
    roster: ROSTER,
    now: Callable[[], datetime],
    monotonic: Callable[[], float],
    in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
    resolve: Callable[[str], Awaitable[Sequence[str]]],
    owner: str,
) -> NoticeParts:
    """
    :param resolve: host name to addresses.
    :param owner: names this process among those that share the database.
    """
    at = now().timestamp()
    channel_file = NoticeFile(
        settings.notification_config_file,
        lambda raw: noticefiles.parse_channels(raw, os.environ),
        ".notify-config-",
        in_thread,
        at,
    )
    preference_file = NoticeFile(
        settings.admin_notify_file, noticefiles.parse_preferences, ".admin-notify-", in_thread, at
    )
    guard = Guard(resolve, settings.notify_allowed_networks)
    pool = build_pool(reactor, KEPT_CONNECTIONS)
    external = urlsplit(settings.external_url)

    def endpoint(host: str, port: int) -> IStreamClientEndpoint:
        return GuardedEndpoint(reactor, guard, host, port)

    vapid = VapidKey(keys.vapid)
    contact = settings.webpush_contact or settings.external_url
    messenger = Notifiers(
        http=build_guarded_client(reactor, guard, pool=pool),
        mailer=Mailer(reactor, endpoint, domain=external.hostname or "localhost", now=now),
        clock=reactor,
        now=now,
        timeout_seconds=lambda: settings.notify_timeout.total_seconds(),
        user_agent=f"identree/{__version__}",
        vapid=vapid,
        contact=contact if contact.startswith(("mailto:", "https:")) else f"mailto:identree@{external.hostname}",
        random=secrets.token_bytes,
        environment=os.environ,
    )

    def known_channels() -> None:
        metrics.know_channels((*(one.name for one in channel_file().configuration.channels), WEBPUSH))

    def policy_channels() -> frozenset[str]:
        return frozenset(name for policy in policies() for name in policy.notify_channels)

    desk = Notices(
        store=store,
        channel_file=channel_file,
        preference_file=preference_file,
        messenger=messenger,
        policy_channels=policy_channels,
        vapid_public=vapid.public,
        now=now,
        journal=journal,
        changed=known_channels,
    )
    known_channels()
    present = desk.configuration
    if present.channels:
        journal.info("NOTIFY enabled", channels=len(present.channels), routes=len(present.routes))
    planner = NoticePlanner(
        store=store,
        configuration=lambda: desk.configuration,
        preferences=lambda: desk.all_preferences,
        policies=policies,
        group=group,
        roster=roster,
        edits=messenger.edits,
        keys=keys,
        external_url=settings.external_url,
        give_up_after=settings.notify_give_up_after,
        now=now,
    )
    dispatcher = Dispatcher(
        store=store,
        messenger=messenger,
        configuration=lambda: desk.configuration,
        planner=planner,
        metrics=metrics,
        clock=reactor,
        now=now,
        monotonic=monotonic,
        owner=owner,
        journal=journal,
    )
    store.subscribe(dispatcher.heard)

    def heard(live: Live) -> None:
        if desk.heard(live):
            Deferred.fromCoroutine(desk.reread()).addErrback(lambda failure: None)

    store.subscribe(heard)

    def follow(feed: Feed) -> Follower:
        return Follower(feed, _Planning(planner), _Nothing(), reactor, now=now, monotonic=monotonic, batch=BATCH)

    async def measure() -> None:
        counts = await store.delivery_counts()
        for state in (DeliveryState.QUEUED, DeliveryState.SENDING):
            metrics.notifications_waiting.labels(state.value).set(counts[state])

    return NoticeParts(
        desk=desk,
        services=NoticeServices(store, dispatcher, follow, reactor),
        follow=follow,
        measure=measure,
        close=pool.closeCachedConnections,
    )


@implementer(IResolutionReceiver)
class _Receiver:
    def __init__(self) -> None:
        self.found: list[str] = []
        self.done: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None: ...

    def addressResolved(self, address: Any) -> None:
        if address.host not in self.found:
            self.found.append(address.host)

    def resolutionComplete(self) -> None:
        if not self.done.called:
            self.done.callback(self.found)


def resolver(reactor: Any) -> Callable[[str], Awaitable[Sequence[str]]]:
    """By the reactor's resolver, in its threads, both families. Whoever waits bounds the time."""

    async def resolve(host: str) -> Sequence[str]:
        receiver = _Receiver()
        reactor.nameResolver.resolveHostName(receiver, host, 0)
        return await receiver.done

    return resolve
