"""
The files of channels and routes, and of administrators' preferences (spec/notifications-and-policy section 1). Pure.

Keys are matched whatever their case, null is the same as absent, and keys that we do not know are kept when a file is
written again. A wrong type anywhere refuses the whole file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from identree.core import durations
from identree.core.glob import Glob
from identree.core.notices import BACKENDS, Channel, Configuration, Preference, Quiet, Route
from identree.core.policy import Hours, parse_days

FILE_BYTES = 4 << 20
MAX_CHANNELS = 200
MAX_ROUTES = 1000
MAX_PREFERENCES = 500
MAX_ITEMS = 200
MAX_TEXT = 4096
LONGEST_TIMEOUT = timedelta(minutes=5)
LONGEST_ESCALATION = timedelta(hours=24)
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# Members of a channel that are secrets: in the environment they come before the file, and no page writes them.
SECRETS = ("token", "command", "secret")

Environment = Mapping[str, str]


def environment_name(channel: str, secret: str) -> str:
    """The name of the variable that has a channel's token, command or secret."""
    return f"IDENTREE_NOTIFY_CHANNEL_{channel.upper().replace('-', '_').replace('.', '_')}_{secret.upper()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFile:
    """
    :ivar raw: the members as they stand in the file, for writing it again.
    :ivar stripped: names of channels whose secrets the file has.
    :ivar colliding: variables of the environment that more than one channel would read.
    """

    configuration: Configuration
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    stripped: tuple[str, ...] = ()
    colliding: tuple[str, ...] = ()


# -- reading ----------------------------------------------------------------------------------------------------------
def parse_channels(raw: bytes | None, environment: Environment) -> ChannelFile:
    """
    :param raw: the file; None: there is none.
    :raise ValueError: it cannot be understood.
    """
    if raw is None:
        return ChannelFile(configuration=Configuration())
    document = _object(_json(raw), "the file")
    channels = _list(document.get("channels"), "channels", MAX_CHANNELS)
    routes = _list(document.get("routes"), "routes", MAX_ROUTES)
    read = [_channel(value, f"channel {number}", environment) for number, value in enumerate(channels, 1)]
    names: dict[str, str] = {}
    colliding = []
    for channel in read:
        variable = environment_name(channel.name, "token")
        if names.setdefault(variable, channel.name) != channel.name:
            colliding.append(variable)
    return ChannelFile(
        configuration=Configuration(
            channels=tuple(read),
            routes=tuple(_route(value, f"route {number}") for number, value in enumerate(routes, 1)),
        ),
        raw=document,
        stripped=tuple(
            channel.name
            for channel, value in zip(read, channels, strict=True)
            if any(_lower(value).get(secret) for secret in SECRETS)
        ),
        colliding=tuple(colliding),
    )


def parse_preferences(raw: bytes | None) -> tuple[Preference, ...]:
    """:raise ValueError: it cannot be understood."""
    if raw is None:
        return ()
    values = _list(_json(raw), "preferences", MAX_PREFERENCES)
    return tuple(_preference(value, f"preference {number}") for number, value in enumerate(values, 1))


def _json(raw: bytes) -> object:
    if len(raw) > FILE_BYTES:
        raise ValueError(f"larger than {FILE_BYTES} bytes")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"not JSON: {e}") from None


def _lower(value: Any) -> dict[str, Any]:
    return {str(key).lower(): item for key, item in value.items() if item is not None}


def _object(value: object, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{what}: must be an object")
    return _lower(value)


def _list(value: object, what: str, most: int) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{what}: must be a list of at most {most}")
    return value


def _text(values: Mapping[str, Any], key: str, what: str, most: int = MAX_TEXT) -> str:
    value = values.get(key, "")
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{what}: {key}: must be text of at most {most} characters")
    return value


def _texts(values: Mapping[str, Any], key: str, what: str) -> tuple[str, ...]:
    value = values.get(key, [])
    if isinstance(value, str) and key == "to":
        value = [item.strip() for item in value.split(",") if item.strip()]
    if (
        not isinstance(value, list)
        or len(value) > MAX_ITEMS
        or not all(isinstance(item, str) and len(item) <= MAX_TEXT for item in value)
    ):
        raise ValueError(f"{what}: {key}: must be a list of at most {MAX_ITEMS} texts")
    return tuple(value)


def _number(values: Mapping[str, Any], key: str, what: str) -> int:
    value = values.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 10**9:
        raise ValueError(f"{what}: {key}: must be a whole number")
    return value


def _truth(values: Mapping[str, Any], key: str, what: str) -> bool:
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{what}: {key}: must be true or false")
    return value


def _duration(values: Mapping[str, Any], key: str, what: str, longest: timedelta) -> timedelta | None:
    text = _text(values, key, what)
    if not text:
        return None
    try:
        duration = durations.parse(text)
    except ValueError as e:
        raise ValueError(f"{what}: {key}: {e}") from None
    if not timedelta() < duration <= longest:
        raise ValueError(f"{what}: {key}: must be more than 0 and at most {durations.render(longest)}")
    return duration


def _quiet(values: Mapping[str, Any], what: str) -> Quiet | None:
    value = _object(values.get("quiet_hours"), f"{what}: quiet_hours")
    if not value:
        return None
    what = f"{what}: quiet_hours"
    return quiet_hours(
        _text(value, "hours", what),
        _text(value, "time_zone", what) or "UTC",
        _text(value, "days", what),
        _texts(value, "except", what) if "except" in value else None,
        what,
    )


def quiet_hours(
    hours: str,
    time_zone: str = "UTC",
    days: str = "",
    despite: tuple[str, ...] | None = None,
    what: str = "quiet hours",
) -> Quiet:
    """:raise ValueError: one of them cannot be understood."""
    try:
        Hours.parse(hours)
        if days:
            parse_days(days)
        if time_zone != "UTC":
            ZoneInfo(time_zone)
        for pattern in despite or ():
            Glob(pattern)
    except (ValueError, KeyError, OSError) as e:
        raise ValueError(f"{what}: {e}") from None
    quiet = Quiet(hours=hours, time_zone=time_zone, days=days)
    return quiet if despite is None else replace(quiet, despite=despite)


def _channel(value: object, what: str, environment: Environment) -> Channel:
    values = _object(value, what)
    name = _text(values, "name", what)
    what = f"{what} ({name[:64]})" if name else what
    secrets = {}
    for secret in SECRETS:
        in_file = _text(values, secret, what)
        secrets[secret] = environment.get(environment_name(name, secret), "") or in_file
    timeout = _number(values, "timeout", what)
    backend = _text(values, "backend", what)
    return Channel(
        name=name,
        backend=backend if backend in BACKENDS else "webhook",
        url=_text(values, "url", what),
        timeout=min(timedelta(seconds=timeout), LONGEST_TIMEOUT) if timeout > 0 else None,
        sender=_text(values, "from", what),
        to=_texts(values, "to", what),
        quiet=_quiet(values, what),
        topic=_text(values, "topic", what),
        priority=max(0, min(5, _number(values, "priority", what))),
        **secrets,
    )


def _route(value: object, what: str) -> Route:
    values = _object(value, what)
    return Route(
        channels=_texts(values, "channels", what),
        events=_texts(values, "events", what),
        hosts=_texts(values, "hosts", what),
        users=_texts(values, "users", what),
        escalate_after=_duration(values, "escalate_after", what, LONGEST_ESCALATION),
        escalate_to=_texts(values, "escalate_to", what),
    )


def _preference(value: object, what: str) -> Preference:
    values = _object(value, what)
    return Preference(
        username=_text(values, "username", what),
        channels=_texts(values, "channels", what),
        events=_texts(values, "events", what),
        hosts=_texts(values, "hosts", what),
        enabled=_truth(values, "enabled", what),
        quiet=_quiet(values, what),
    )


# -- writing ----------------------------------------------------------------------------------------------------------
def _quiet_json(quiet: Quiet) -> dict[str, object]:
    value: dict[str, object] = {"hours": quiet.hours, "time_zone": quiet.time_zone}
    if quiet.days:
        value["days"] = quiet.days
    if quiet.despite != Quiet(hours="").despite:
        value["except"] = list(quiet.despite)
    return value


def channel_json(channel: Channel) -> dict[str, object]:
    """Without secrets, and without what says nothing."""
    value: dict[str, object] = {"name": channel.name, "backend": channel.backend}
    if channel.url:
        value["url"] = channel.url
    if channel.timeout is not None:
        value["timeout"] = int(channel.timeout.total_seconds())
    if channel.sender:
        value["from"] = channel.sender
    if channel.to:
        value["to"] = list(channel.to)
    if channel.topic:
        value["topic"] = channel.topic
    if channel.priority:
        value["priority"] = channel.priority
    if channel.quiet is not None:
        value["quiet_hours"] = _quiet_json(channel.quiet)
    return value


def route_json(route: Route) -> dict[str, object]:
    value: dict[str, object] = {
        "channels": list(route.channels),
        "events": list(route.events),
        "hosts": list(route.hosts),
        "users": list(route.users),
    }
    if route.escalate_after is not None:
        value["escalate_after"] = durations.render(route.escalate_after)
        value["escalate_to"] = list(route.escalate_to)
    return value


def preference_json(preference: Preference) -> dict[str, object]:
    value: dict[str, object] = {
        "username": preference.username,
        "channels": list(preference.channels),
        "events": list(preference.events),
        "hosts": list(preference.hosts),
        "enabled": preference.enabled,
    }
    if preference.quiet is not None:
        value["quiet_hours"] = _quiet_json(preference.quiet)
    return value


_CHANNEL_KEYS = frozenset(
    {"name", "backend", "url", "timeout", "from", "to", "topic", "priority", "quiet_hours", *SECRETS}
)


def write_channels(before: ChannelFile, configuration: Configuration) -> bytes:
    """
    The file with these channels and routes: secrets are gone, members that we do not know stay where they were.
    """
    old = {}
    for value in before.raw.get("channels") or ():
        lowered = _lower(value)
        old[lowered.get("name", "")] = {key: item for key, item in lowered.items() if key not in _CHANNEL_KEYS}
    document: dict[str, object] = {
        "channels": [{**channel_json(one), **old.get(one.name, {})} for one in configuration.channels],
        "routes": [route_json(one) for one in configuration.routes],
    }
    document.update((key, value) for key, value in before.raw.items() if key not in document)
    return _written(document)


def write_preferences(preferences: Sequence[Preference]) -> bytes:
    return _written([preference_json(one) for one in preferences])


def _written(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


# -- what people enter ------------------------------------------------------------------------------------------------
def checked_url(backend: str, url: str) -> str:
    """
    What is wrong with a channel's address; empty: nothing. Deployed versions took anything, and failed later.
    """
    if not url:
        return "" if backend in ("custom", "webpush") else "an address is required"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError:
        return "the address cannot be understood"
    if len(url) > 2000 or any(ord(character) <= 0x20 or ord(character) == 0x7F for character in url):
        return "the address has characters that no address has, or too many"
    schemes: tuple[str, ...] = ("https", "http")
    if backend == "email":
        schemes = ("smtps", "smtp", "smtp+plain")
    if parts.scheme not in schemes or not parts.hostname:
        return f"the address must begin with {schemes[0]}:// and name a server"
    if backend != "email" and "@" in parts.netloc:
        return "the address must not hold a name or password; the token is a setting of its own"
    if backend == "email" and parts.password:
        return "the address must not hold a password; it is the channel's token"
    return ""
