"""
What administrators do with notification channels, routes and preferences, and everybody with the browsers that are told
(spec/notifications-and-policy section 4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from identree.app.journal import Journal
from identree.app.noticefile import NoticeFile
from identree.app.people import Caller
from identree.app.ports import DeliveryFailed, Messenger, Now
from identree.app.statefiles import BadStateFile
from identree.core import events, noticefiles, routing
from identree.core.challenge import Live
from identree.core.errors import Forbidden, Refused
from identree.core.glob import Glob
from identree.core.noticefiles import ChannelFile
from identree.core.notices import TEST, Channel, Configuration, Notice, Preference, Route, iso
from identree.core.routing import WEBPUSH
from identree.storage.interface import Delivery, DeliveryState, PushDevice, Store

# Those that the form of the contract knows, and ours.
FORM_BACKENDS = ("ntfy", "slack", "discord", "teams", "apprise", "webhook", "email", "custom")
MOST_DEVICES_EACH = 20
MAX_LABEL = 80
MAX_ENDPOINT = 1024
LOG_LINES = 50


class NoticeRefused(Refused):
    """What was entered is refused; ``detail`` is the text of the contract. :ivar status: HTTP."""

    key = "invalid_form"

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Problems:
    """
    What an administrator should look at.

    :ivar files: why a file cannot be used, as sentences.
    :ivar dangling: names that are used and belong to no channel.
    :ivar colliding: environment variables that more than one channel reads.
    :ivar in_file: channels whose secrets stand in the file; saving here takes them out of it.
    """

    files: tuple[str, ...] = ()
    dangling: tuple[str, ...] = ()
    colliding: tuple[str, ...] = ()
    in_file: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        return bool(self.files or self.dangling or self.colliding or self.in_file)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """:ivar error: why it did not arrive; empty: it did."""

    channel: str
    error: str = ""


class Notices:
    """
    :param policy_channels: names that policies use.
    :param vapid_public: for ``PushManager.subscribe``.
    :param changed: told when the channels are others.
    """

    def __init__(
        self,
        *,
        store: Store,
        channel_file: NoticeFile[ChannelFile],
        preference_file: NoticeFile[tuple[Preference, ...]],
        messenger: Messenger,
        policy_channels: Callable[[], frozenset[str]],
        vapid_public: str,
        now: Now,
        journal: Journal,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._channel_file = channel_file
        self._preference_file = preference_file
        self._messenger = messenger
        self._policy_channels = policy_channels
        self.vapid_public = vapid_public
        self._now = now
        self._journal = journal
        self._changed = changed

    # -- what there is ------------------------------------------------------------------------------------------------
    @property
    def configuration(self) -> Configuration:
        return self._channel_file().configuration

    @property
    def all_preferences(self) -> tuple[Preference, ...]:
        return self._preference_file()

    def channels(self, caller: Caller) -> tuple[Channel, ...]:
        """:raise Forbidden: not an administrator."""
        _must_be_admin(caller)
        return self.configuration.channels

    def routes(self, caller: Caller) -> tuple[Route, ...]:
        _must_be_admin(caller)
        return self.configuration.routes

    def preference(self, caller: Caller) -> Preference | None:
        """The caller's own; only administrators have one."""
        return next((one for one in self.all_preferences if one.username == caller.username), None)

    def preferences(self, caller: Caller) -> tuple[Preference, ...]:
        _must_be_admin(caller)
        return self.all_preferences

    def problems(self, caller: Caller) -> Problems:
        _must_be_admin(caller)
        file = self._channel_file()
        return Problems(
            files=tuple(text for text in (self._channel_file.problem, self._preference_file.problem) if text),
            dangling=routing.dangling(file.configuration, self.all_preferences, self._policy_channels()),
            colliding=file.colliding,
            in_file=file.stripped,
        )

    async def deliveries(
        self,
        caller: Caller,
        *,
        before: int | None = None,
        channel: str = "",
        state: DeliveryState | None = None,
    ) -> list[Delivery]:
        """The delivery log, the newest first."""
        _must_be_admin(caller)
        return await self._store.deliveries(before=before, channel=channel, state=state, limit=LOG_LINES)

    # -- following ----------------------------------------------------------------------------------------------------
    async def refresh(self) -> None:
        """To be called every few seconds: files that others have written count."""
        if await self._channel_file.refresh():
            self._changed()
        await self._preference_file.refresh()

    async def reread(self) -> None:
        """Another replica has written the files."""
        await self._channel_file.refresh(always=True)
        await self._preference_file.refresh(always=True)
        self._changed()

    # -- channels -----------------------------------------------------------------------------------------------------
    async def add_channel(
        self, caller: Caller, name: str, backend: str, url: str, *, address: str = "", **more: Any
    ) -> None:
        """
        :param more: other fields of :class:`Channel`.
        :raise NoticeRefused: with status and text of the contract.
        """
        _must_be_admin(caller)
        if not name or not backend:
            raise NoticeRefused(400, "name and backend are required")
        if noticefiles.NAME.fullmatch(name) is None:
            raise NoticeRefused(
                400, "channel name must be lowercase alphanumeric with hyphens/dots/underscores (1-64 chars)"
            )
        if backend not in FORM_BACKENDS:
            raise NoticeRefused(400, "invalid backend")
        if name == WEBPUSH or routing.by_name(self.configuration.channels, name) is not None:
            raise NoticeRefused(409, f"channel already exists: {name}")
        # a channel without an address is added, as ever; the page says that it has none
        problem = noticefiles.checked_url(backend, url) if url else ""
        if problem:
            raise NoticeRefused(400, problem)
        channel = Channel(name=name, backend=backend, url=url, **more)
        await self._save(lambda present: replace(present, channels=(*present.channels, channel)))
        await self._tell(
            events.NotificationChannelAdded(
                at=self._now(), username="", hostname=name, actor=caller.username, remote_addr=address
            )
        )

    async def update_channel(
        self, caller: Caller, name: str, backend: str, url: str, *, address: str = "", **more: Any
    ) -> None:
        """Everything but the name, and the secrets, which are not kept here."""
        _must_be_admin(caller)
        if backend not in FORM_BACKENDS:
            raise NoticeRefused(400, "invalid backend")
        if routing.by_name(self.configuration.channels, name) is None:
            raise NoticeRefused(404, "channel not found")
        problem = noticefiles.checked_url(backend, url) if url else ""
        if problem:
            raise NoticeRefused(400, problem)

        def edit(present: Configuration) -> Configuration:
            return replace(
                present,
                channels=tuple(
                    replace(one, backend=backend, url=url, **more) if one.name == name else one
                    for one in present.channels
                ),
            )

        await self._save(edit)
        await self._tell(
            events.NotificationChannelChanged(
                at=self._now(), username="", hostname=name, actor=caller.username, remote_addr=address
            )
        )

    async def delete_channel(self, caller: Caller, name: str, *, address: str = "") -> None:
        _must_be_admin(caller)
        if not name:
            raise NoticeRefused(400, "name required")
        if routing.by_name(self.configuration.channels, name) is None:
            raise NoticeRefused(404, "channel not found")
        await self._save(
            lambda present: replace(present, channels=tuple(one for one in present.channels if one.name != name))
        )
        await self._tell(
            events.NotificationChannelDeleted(
                at=self._now(), username="", hostname=name, actor=caller.username, remote_addr=address
            )
        )

    # -- routes -------------------------------------------------------------------------------------------------------
    async def add_route(self, caller: Caller, route: Route, *, address: str = "") -> None:
        _must_be_admin(caller)
        _check_route(route)
        if len(self.configuration.routes) >= noticefiles.MAX_ROUTES:
            raise NoticeRefused(400, f"there are {noticefiles.MAX_ROUTES} routes already")
        await self._save(lambda present: replace(present, routes=(*present.routes, route)))
        await self._tell(
            events.NotificationRouteAdded(at=self._now(), username="", actor=caller.username, remote_addr=address)
        )

    async def update_route(
        self, caller: Caller, index: str, route: Route, *, seen: str = "", address: str = ""
    ) -> None:
        """:param seen: :func:`route_digest` of what the caller has looked at; empty: whatever stands there."""
        _must_be_admin(caller)
        _check_route(route)
        at = self._index(index, seen)
        await self._save(
            lambda present: replace(present, routes=(*present.routes[:at], route, *present.routes[at + 1 :]))
        )
        await self._tell(
            events.NotificationRouteChanged(at=self._now(), username="", actor=caller.username, remote_addr=address)
        )

    async def delete_route(self, caller: Caller, index: str, *, seen: str = "", address: str = "") -> None:
        _must_be_admin(caller)
        at = self._index(index, seen)
        await self._save(lambda present: replace(present, routes=(*present.routes[:at], *present.routes[at + 1 :])))
        await self._tell(
            events.NotificationRouteDeleted(at=self._now(), username="", actor=caller.username, remote_addr=address)
        )

    def _index(self, text: str, seen: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise NoticeRefused(400, "invalid index")
        at, routes = int(text), self.configuration.routes
        if at >= len(routes):
            raise NoticeRefused(400, "index out of range")
        if seen and seen != route_digest(routes[at]):
            raise NoticeRefused(409, "the routes have changed; load the page again")
        return at

    async def _save(self, edit: Callable[[Configuration], Configuration]) -> None:
        try:
            await self._channel_file.write(
                lambda file: noticefiles.write_channels(file, edit(file.configuration)),
                keep=lambda file: bool(file.stripped),
            )
        except (BadStateFile, OSError) as problem:
            self._journal.warn("NOTIFY_CONFIG not saved", reason=str(problem))
            raise NoticeRefused(500, "failed to save") from problem
        self._changed()
        await self._store.tell_replicas("reload_notify_config")

    # -- preferences --------------------------------------------------------------------------------------------------
    async def save_preference(self, caller: Caller, preference: Preference, *, address: str = "") -> None:
        """The caller's own, whatever name stands in it."""
        _must_be_admin(caller)
        if not preference.channels or not preference.events:
            raise NoticeRefused(400, "channels and events are required")
        for pattern in (*preference.events, *preference.hosts):
            _check_pattern(pattern)
        mine = replace(preference, username=caller.username)
        others = [one for one in self.all_preferences if one.username != caller.username]
        if len(others) >= noticefiles.MAX_PREFERENCES:
            raise NoticeRefused(500, "too many preferences")
        await self._save_preferences(lambda present: _with(present, mine))
        await self._tell(
            events.NotificationPreferenceSaved(
                at=self._now(), username=caller.username, actor=caller.username, remote_addr=address
            )
        )

    async def delete_preference(self, caller: Caller, *, address: str = "") -> None:
        _must_be_admin(caller)
        if self.preference(caller) is None:
            return
        await self._save_preferences(lambda present: tuple(one for one in present if one.username != caller.username))
        await self._tell(
            events.NotificationPreferenceDeleted(
                at=self._now(), username=caller.username, actor=caller.username, remote_addr=address
            )
        )

    async def _save_preferences(self, edit: Callable[[tuple[Preference, ...]], tuple[Preference, ...]]) -> None:
        try:
            await self._preference_file.write(lambda present: noticefiles.write_preferences(edit(present)))
        except (BadStateFile, OSError) as problem:
            self._journal.warn("NOTIFY_PREFERENCES not saved", reason=str(problem))
            raise NoticeRefused(500, "failed to save") from problem
        await self._store.tell_replicas("reload_notify_config")

    # -- testing ------------------------------------------------------------------------------------------------------
    async def test(self, caller: Caller, name: str, *, address: str = "") -> TestResult:
        """
        Send the test message through one channel, now; it counts nowhere.

        :raise NoticeRefused: there is no such channel.
        """
        _must_be_admin(caller)
        channel = routing.by_name(self.configuration.channels, name)
        if channel is None:
            raise NoticeRefused(400, f"unknown channel: {name[:64]}")
        result = await self._try(channel, caller, None)
        await self._store.record(
            [
                events.NotificationTested(
                    at=self._now(),
                    username=caller.username,
                    hostname=name,
                    actor=caller.username,
                    reason=result.error[:200] or "sent",
                    remote_addr=address,
                )
            ]
        )
        return result

    async def test_all(self, caller: Caller, *, address: str = "") -> list[TestResult]:
        """All channels in turn. :raise NoticeRefused: there are none."""
        _must_be_admin(caller)
        if not self.configuration.channels:
            raise NoticeRefused(503, "no notification channels configured")
        return [await self.test(caller, channel.name, address=address) for channel in self.configuration.channels]

    async def _try(self, channel: Channel, caller: Caller, device: PushDevice | None) -> TestResult:
        at = self._now()
        notice = Notice(
            event=TEST,
            username="test-user",
            hostname="test-host",
            user_code="TEST-001",
            actor=caller.username,
            timestamp=iso(at),
            key=f"test-{int(at.timestamp())}",
        )
        try:
            await self._messenger.send(channel, notice, device=device)
        except DeliveryFailed as failure:
            if failure.gone and device is not None:
                gone = events.PushDeviceRemoved(at=at, username=device.username, reason=device.label)
                await self._store.remove_push_device(device.id, gone)
            return TestResult(channel=channel.name, error=str(failure))
        return TestResult(channel=channel.name)

    # -- push devices -------------------------------------------------------------------------------------------------
    async def devices(self, caller: Caller) -> list[PushDevice]:
        return await self._store.push_devices(caller.username)

    async def add_device(
        self,
        caller: Caller,
        *,
        endpoint: str,
        p256dh: str,
        auth: str,
        label: str,
        events_wanted: Sequence[str] = (),
        address: str = "",
    ) -> PushDevice:
        """
        Tell this browser from now on; one that is known already is the caller's then.

        :raise NoticeRefused: too many, or a pattern is none.
        """
        for pattern in events_wanted:
            _check_pattern(pattern)
        device = PushDevice(
            id=hashlib.sha256(endpoint.encode()).hexdigest(),
            username=caller.username,
            endpoint=endpoint,
            p256dh=p256dh,
            auth=auth,
            label=label[:MAX_LABEL],
            events=tuple(events_wanted),
            created_at=self._now().replace(microsecond=0),
        )
        event = events.PushDeviceAdded(
            at=self._now(),
            username=caller.username,
            actor=caller.username,
            reason=device.label,
            remote_addr=address,
        )
        if not await self._store.add_push_device(device, event, MOST_DEVICES_EACH):
            raise NoticeRefused(409, f"you have {MOST_DEVICES_EACH} devices already; remove one first")
        return device

    async def remove_device(self, caller: Caller, id: str, *, address: str = "") -> bool:
        """Whether it was there and the caller's."""
        event = events.PushDeviceRemoved(
            at=self._now(), username=caller.username, actor=caller.username, remote_addr=address
        )
        return await self._store.remove_push_device(id, event, username=caller.username)

    async def test_device(self, caller: Caller, id: str) -> TestResult:
        device = await self._store.push_device(id)
        if device is None or device.username != caller.username:
            raise NoticeRefused(404, "device not found")
        return await self._try(Channel(name=WEBPUSH, backend=WEBPUSH, timeout=timedelta(seconds=10)), caller, device)

    # -- inside -------------------------------------------------------------------------------------------------------
    async def _tell(self, event: events.Event) -> None:
        await self._store.record([event])
        marker = _MARKERS.get(event.kind, event.kind.upper())
        about = {"user": event.actor} if "preference" in event.kind else {"admin": event.actor}
        if event.hostname:
            about["channel"] = event.hostname
        self._journal.info(marker, **about)

    def heard(self, live: Live) -> bool:
        """Whether another replica has written the files."""
        return live.event in ("reload_notify_config", "resync")


# Lines of the log that deployed versions have (spec/audit-and-metrics section 14).
_MARKERS = {
    "notification_channel_added": "NOTIFY_CHANNEL_ADDED",
    "notification_channel_deleted": "NOTIFY_CHANNEL_DELETED",
    "notification_channel_changed": "NOTIFY_CHANNEL_CHANGED",
    "notification_route_added": "NOTIFY_ROUTE_ADDED",
    "notification_route_deleted": "NOTIFY_ROUTE_DELETED",
    "notification_route_changed": "NOTIFY_ROUTE_CHANGED",
    "notification_preference_saved": "ADMIN_NOTIFY_PREF_SAVED",
    "notification_preference_deleted": "ADMIN_NOTIFY_PREF_DELETED",
}


def route_digest(route: Route) -> str:
    """Tells a route from others, for forms that name it by its place."""
    return hashlib.sha256(repr(noticefiles.route_json(route)).encode()).hexdigest()[:16]


def _with(present: tuple[Preference, ...], mine: Preference) -> tuple[Preference, ...]:
    if any(one.username == mine.username for one in present):
        return tuple(mine if one.username == mine.username else one for one in present)
    return (*present, mine)


def _check_route(route: Route) -> None:
    if not route.channels or not route.events:
        raise NoticeRefused(400, "channels and events are required")
    for pattern in (*route.events, *route.hosts, *route.users):
        _check_pattern(pattern)
    if (route.escalate_after is None) != (not route.escalate_to):
        raise NoticeRefused(400, "an escalation needs a time and channels")


def _check_pattern(pattern: str) -> None:
    bad = any(ord(character) < 0x20 or ord(character) == 0x7F for character in pattern)
    try:
        Glob(pattern)
    except ValueError:
        bad = True
    if bad:
        raise NoticeRefused(400, f"invalid glob pattern: {pattern[:200]}")


def _must_be_admin(caller: Caller) -> None:
    if not caller.is_admin:
        raise Forbidden
