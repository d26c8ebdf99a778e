"""View models of the pages about notifications. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlencode

from identree.app.notices import FORM_BACKENDS, LOG_LINES, Problems, route_digest
from identree.core import durations, notices
from identree.core.noticefiles import environment_name
from identree.core.notices import Channel, Preference, Quiet, Route
from identree.storage.interface import Delivery, DeliveryState, PushDevice
from identree.web.translations import N_
from identree.web.views import Banner, Flash, Reading, When, when

# Event names that forms offer.
EVENTS = (
    "*",
    "challenge_*",
    "challenge_created",
    "challenge_approved",
    "challenge_rejected",
    "break_glass*",
    "revealed_breakglass",
    "grace_elevated",
    "config_changed",
)
_STATES = {
    DeliveryState.QUEUED: ("clock", "calm", N_("Waiting")),
    DeliveryState.SENDING: ("clock", "calm", N_("Being sent")),
    DeliveryState.SENT: ("check", "good", N_("Sent")),
    DeliveryState.FAILED: ("warning", "bad", N_("Failed")),
    DeliveryState.SKIPPED: ("info", "calm", N_("Left out")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelView:
    """
    :ivar secrets: names of the environment variables of its secrets, and whether each is there.
    :ivar url: without what lets somebody write there.
    """

    name: str
    backend: str
    url: str
    to: str
    quiet: str
    secrets: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteView:
    index: int
    seen: str
    channels: str
    events: str
    hosts: str
    users: str
    escalate_after: str
    escalate_to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelForm:
    editing: str = ""
    name: str = ""
    backend: str = "ntfy"
    url: str = ""
    sender: str = ""
    to: str = ""
    topic: str = ""
    timeout: str = ""
    quiet_hours: str = ""
    quiet_days: str = ""
    quiet_zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryView:
    id: int
    icon: str
    tone: str
    state: str
    channel: str
    title: str
    about: str
    error: str
    attempts: int
    at: When


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChoice:
    value: str
    label: str
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationsView:
    channels: tuple[ChannelView, ...]
    names: tuple[str, ...]
    backends: tuple[str, ...]
    events: tuple[str, ...]
    routes: tuple[RouteView, ...]
    route: RouteView | None
    form: ChannelForm
    preferences: tuple[tuple[str, str, str], ...]
    problems: tuple[str, ...]
    log: tuple[DeliveryView, ...]
    channel: str
    states: tuple[StateChoice, ...]
    older: str
    narrowed: bool


def page_view(
    reading: Reading,
    *,
    channels: Sequence[Channel],
    routes: Sequence[Route],
    preferences: Sequence[Preference],
    problems: Problems,
    log: Sequence[Delivery],
    editing: str,
    route: int | None,
    channel: str,
    state: DeliveryState | None,
) -> NotificationsView:
    _ = reading.language.gettext
    edited = next((one for one in reversed(channels) if one.name == editing), None) if editing else None
    shown = tuple(_route(index, one) for index, one in enumerate(routes))
    older = ""
    if len(log) == LOG_LINES:
        older = urlencode({"before": log[-1].id, "channel": channel, "state": state.value if state else ""})
    return NotificationsView(
        channels=tuple(_channel(one) for one in channels),
        names=tuple(one.name for one in channels),
        backends=FORM_BACKENDS,
        events=EVENTS,
        routes=shown,
        route=shown[route] if route is not None and route < len(shown) else None,
        form=_form(edited) if edited is not None else ChannelForm(),
        preferences=tuple(
            (one.username, ", ".join(one.events), ", ".join(one.channels)) for one in preferences if one.enabled
        ),
        problems=_problems(problems, reading),
        log=tuple(_delivery(one, reading) for one in log),
        channel=channel,
        states=(
            StateChoice(value="", label=_("All"), chosen=state is None),
            *(
                StateChoice(value=one.value, label=_(words), chosen=state is one)
                for one, (_icon, _tone, words) in _STATES.items()
            ),
        ),
        older=older,
        narrowed=bool(channel or state),
    )


def _problems(problems: Problems, reading: Reading) -> tuple[str, ...]:
    _ = reading.language.gettext
    found = [*problems.files]
    if problems.dangling:
        found.append(
            _("There is no channel of this name, but something uses it: %(names)s.", names=", ".join(problems.dangling))
        )
    if problems.colliding:
        found.append(
            _("More than one channel reads the same variable: %(names)s.", names=", ".join(problems.colliding))
        )
    if problems.in_file:
        found.append(
            _(
                "The file holds secrets of %(names)s. Saving here takes them out of it, and keeps a copy of the file "
                "beside it: put them into the environment first.",
                names=", ".join(problems.in_file),
            )
        )
    return tuple(found)


def _quiet_text(quiet: Quiet | None) -> str:
    if quiet is None:
        return ""
    return " ".join(one for one in (quiet.hours, quiet.days, quiet.time_zone) if one)


def _channel(channel: Channel) -> ChannelView:
    wanted = {
        "custom": ("command",),
        "webhook": ("token", "secret"),
        "discord": (),
        "teams": (),
    }.get(channel.backend, ("token",))
    return ChannelView(
        name=channel.name,
        backend=channel.backend,
        url=_without_key(channel.url),
        to=", ".join(channel.to),
        quiet=_quiet_text(channel.quiet),
        secrets=tuple((environment_name(channel.name, secret), bool(getattr(channel, secret))) for secret in wanted),
    )


def _without_key(url: str) -> str:
    """Of many receivers the end of the address is all it takes to write there."""
    head, slash, tail = url.rpartition("/")
    return f"{head}/{tail[:4]}\u2026" if slash and len(tail) >= 20 else url


def _route(index: int, route: Route) -> RouteView:
    return RouteView(
        index=index,
        seen=route_digest(route),
        channels=", ".join(route.channels),
        events=", ".join(route.events),
        hosts=", ".join(route.hosts),
        users=", ".join(route.users),
        escalate_after=durations.render(route.escalate_after) if route.escalate_after is not None else "",
        escalate_to=", ".join(route.escalate_to),
    )


def _form(channel: Channel) -> ChannelForm:
    quiet = channel.quiet
    return ChannelForm(
        editing=channel.name,
        name=channel.name,
        backend=channel.backend,
        url=channel.url,
        sender=channel.sender,
        to=", ".join(channel.to),
        topic=channel.topic,
        timeout=str(int(channel.timeout.total_seconds())) if channel.timeout is not None else "",
        quiet_hours=quiet.hours if quiet is not None else "",
        quiet_days=quiet.days if quiet is not None else "",
        quiet_zone=quiet.time_zone if quiet is not None else "",
    )


def _delivery(delivery: Delivery, reading: Reading) -> DeliveryView:
    icon, tone, words = _STATES[delivery.state]
    planned = delivery.planned
    about = " · ".join(one for one in (planned.username, planned.hostname, planned.code) if one)
    return DeliveryView(
        id=delivery.id,
        icon=icon,
        tone=tone,
        state=reading.language.gettext(words),
        channel=planned.channel,
        title=notices.title_of(planned.event),
        about=about,
        error=delivery.error,
        attempts=delivery.attempts,
        at=when(delivery.finished_at or delivery.created_at, reading),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    id: str
    label: str
    added: When
    sent: When | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileView:
    """:ivar names: of the channels that there are, for administrators."""

    admin: bool
    names: tuple[str, ...]
    events: tuple[str, ...]
    chosen_channels: str
    chosen_events: str
    chosen_hosts: str
    enabled: bool
    saved: bool
    quiet_hours: str
    quiet_days: str
    quiet_zone: str
    devices: tuple[DeviceView, ...]
    public_key: str


def profile_view(
    reading: Reading,
    *,
    admin: bool,
    preference: Preference | None,
    channels: Sequence[Channel],
    devices: Sequence[PushDevice],
    public_key: str,
) -> ProfileView:
    one = preference or Preference(username="", events=("*",), enabled=True)
    quiet = one.quiet
    return ProfileView(
        admin=admin,
        names=tuple(channel.name for channel in channels),
        events=EVENTS,
        chosen_channels=", ".join(one.channels),
        chosen_events=", ".join(one.events),
        chosen_hosts=", ".join(one.hosts),
        enabled=one.enabled,
        saved=preference is not None,
        quiet_hours=quiet.hours if quiet is not None else "",
        quiet_days=quiet.days if quiet is not None else "",
        quiet_zone=quiet.time_zone if quiet is not None else "",
        devices=tuple(
            DeviceView(
                id=device.id,
                label=device.label,
                added=when(device.created_at, reading),
                sent=when(device.last_sent_at, reading) if device.last_sent_at is not None else None,
            )
            for device in devices
        ),
        public_key=public_key,
    )


def page_banners(flashes: Sequence[Flash], reading: Reading) -> tuple[Banner, ...]:
    """The messages of these pages' forms; texts came through a cookie whose items end at commas."""
    return tuple(found for code, arguments in flashes if (found := _banner(code, arguments, reading)))


def _banner(code: str, arguments: Sequence[str], reading: Reading) -> Banner | None:
    _ = reading.language.gettext
    first = unquote(arguments[0]) if arguments else ""
    if code == "test_failed":
        return Banner(kind="bad", icon="warning", text=_("The test message did not arrive. %(why)s", why=first))
    texts = {
        "channel_added": lambda: _("Added: the channel %(name)s.", name=first),
        "channel_changed": lambda: _("Saved: the channel %(name)s.", name=first),
        "channel_deleted": lambda: _("Deleted: the channel %(name)s.", name=first),
        "route_added": lambda: _("The route is added."),
        "route_changed": lambda: _("The route is saved."),
        "route_deleted": lambda: _("The route is deleted."),
        "pref_saved": lambda: _("Your preference is saved."),
        "pref_deleted": lambda: _("Your preference is deleted."),
        "test_sent": lambda: _("The test message has gone through %(name)s.", name=first),
    }
    return Banner(kind="good", icon="check", text=texts[code]()) if code in texts else None
