"""Who is told of an event, through which channels (spec/notifications-and-policy section 3). Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from identree.core.glob import Glob
from identree.core.notices import Channel, Configuration, Preference, Quiet, Recipient, Route
from identree.core.policy import Hours, parse_days

# The channel that is always there: browsers whose people have asked for it.
WEBPUSH = "webpush"


@lru_cache(maxsize=4096)
def _glob(pattern: str) -> Glob | None:
    """None: malformed, which fits nothing."""
    try:
        return Glob(pattern)
    except ValueError:
        return None


def fits(patterns: Collection[str], text: str) -> bool:
    """An empty list fits everything, as does an item that is exactly ``*``, also what has a slash."""
    if not patterns:
        return True
    for pattern in patterns:
        if pattern == "*":
            return True
        glob = _glob(pattern)
        if glob is not None and glob.matches(text):
            return True
    return False


def is_quiet(quiet: Quiet | None, event: str, now: datetime) -> bool:
    """
    Whether it is a time at which this event is not told.

    :param now: aware UTC.
    """
    if quiet is None or (quiet.despite and fits(quiet.despite, event)):
        return False
    try:
        hours, days = Hours.parse(quiet.hours), parse_days(quiet.days) if quiet.days else None
        local = now.astimezone(UTC if quiet.time_zone == "UTC" else ZoneInfo(quiet.time_zone))
    except (ValueError, KeyError, OSError):
        # what was checked when it was read: better told than lost
        return False
    return hours.contains(local.time()) and (days is None or local.isoweekday() % 7 in days)


def recipients(
    configuration: Configuration,
    preferences: Sequence[Preference],
    policy_channels: Iterable[str],
    *,
    event: str,
    hostname: str,
    username: str,
    now: datetime,
) -> tuple[tuple[Recipient, ...], tuple[str, ...]]:
    """
    Every channel once, and the names of channels that there are not.

    A channel is told at once if anybody wants it at once, and quiet only if everybody who names it is, or it is itself.

    :param policy_channels: those of the policy that applies to the event's user and host.
    """
    channels = {channel.name: channel for channel in configuration.channels}
    now_loud: dict[str, bool] = {}
    later: dict[str, timedelta] = {}

    def tell(names: Iterable[str], loud: bool) -> None:
        for name in names:
            now_loud[name] = now_loud.get(name, False) or loud

    for route in configuration.routes:
        if not _fits_route(route, event, hostname, username):
            continue
        tell(route.channels, True)
        if route.escalate_after is not None:
            for name in route.escalate_to:
                later[name] = min(route.escalate_after, later.get(name, route.escalate_after))
    for preference in preferences:
        if preference.enabled and fits(preference.events, event) and fits(preference.hosts, hostname):
            tell(preference.channels, not is_quiet(preference.quiet, event, now))
    tell(policy_channels, True)
    unknown = tuple(name for name in (*now_loud, *later) if name not in channels and name != WEBPUSH)
    told: list[Recipient] = []
    for name, loud in now_loud.items():
        if name in channels and name != WEBPUSH:
            quiet = not loud or is_quiet(channels[name].quiet, event, now)
            told.append(Recipient(channel=name, quiet=quiet))
    told.extend(
        Recipient(channel=name, after=after, quiet=is_quiet(channels[name].quiet, event, now + after))
        for name, after in later.items()
        if name in channels and name not in now_loud and name != WEBPUSH
    )
    return tuple(told), tuple(dict.fromkeys(unknown))


def _fits_route(route: Route, event: str, hostname: str, username: str) -> bool:
    return fits(route.events, event) and fits(route.hosts, hostname) and fits(route.users, username)


def dangling(
    configuration: Configuration, preferences: Sequence[Preference], policy_channels: Iterable[str] = ()
) -> tuple[str, ...]:
    """Names that are used and belong to no channel."""
    known = {channel.name for channel in configuration.channels} | {WEBPUSH}
    used = [name for route in configuration.routes for name in (*route.channels, *route.escalate_to)]
    used += [name for preference in preferences for name in preference.channels]
    return tuple(sorted({name for name in (*used, *policy_channels) if name not in known}))


def by_name(channels: Sequence[Channel], name: str) -> Channel | None:
    """Of two with one name the last counts."""
    return next((channel for channel in reversed(channels) if channel.name == name), None)
