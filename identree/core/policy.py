"""
Approval policies: what an approval needs, by user, host and time (spec/notifications-and-policy section 7).

A policy file that cannot be understood in every detail is refused as a whole. Deployed versions took what they did not
understand for "no restriction".
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

from identree.core import durations
from identree.core.glob import Glob

# The policy that applies when no other does; its criteria are ignored.
DEFAULT = "default"
# More is a mistake, and would make every challenge slow.
MAX_POLICIES = 1000
MAX_ITEMS = 1000

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{1,2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """
    What the policies say about one user on one host at one time. The defaults are the answer without any policy.

    :ivar policy_name: the policy that matched; empty: none.
    :ivar min_approvals: at least 1.
    :ivar auto_approve_grace: whether a grace session may stand in for an approval.
    :ivar window_ok: whether it is the time for it now.
    :ivar window: the allowed hours and days as written, or empty.
    :ivar require_fresh: how recent the approver's login must be; None: any.
    :ivar break_glass_bypass: whether an admin may override the policy.
    """

    policy_name: str = ""
    min_approvals: int = 1
    require_admin: bool = False
    auto_approve_grace: bool = True
    window_ok: bool = True
    window: str = ""
    require_fresh: timedelta | None = None
    break_glass_bypass: bool = False
    notify_channels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """``start`` is in it, ``end`` is not; a start after the end passes midnight; equal ones leave nothing. UTC."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Hours:
        """``HH:MM-HH:MM``. :raise ValueError:"""
        start, dash, end = text.partition("-")
        if not dash:
            raise ValueError("must be like 09:00-17:00, in UTC")
        return cls(start=cls._clock(start), end=cls._clock(end))

    @staticmethod
    def _clock(text: str) -> time:
        clock = _CLOCK.fullmatch(text.strip(" "))
        if clock is None:
            raise ValueError("must be like 09:00-17:00, in UTC")
        hour, minute = int(clock[1]), int(clock[2])
        if hour == 24 and minute == 0:
            raise ValueError("24:00 is not a time; the end of the day is written 00:00, as in 18:00-00:00")
        if hour > 23 or minute > 59:
            raise ValueError("hours go from 0 to 23 and minutes from 0 to 59")
        return time(hour, minute)

    def contains(self, at: time) -> bool:
        if self.start <= self.end:
            return self.start <= at < self.end
        return at >= self.start or at < self.end


def parse_days(text: str) -> frozenset[int]:
    """
    ``Mon-Fri``, ``Sat,Sun``, ``Fri-Mon``: numbers with Sunday = 0.

    :raise ValueError: anything that is no day; a misspelled day must not silently close it.
    """
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip(" ").lower() for piece in part.partition("-"))
        for name in (first, last) if dash else (first,):
            if name not in _DAYS:
                raise ValueError(f"{name!r} is not one of Mon Tue Wed Thu Fri Sat Sun; write Mon-Fri or Sat,Sun")
        day = _DAYS.index(first)
        days.add(day)
        while dash and _DAYS[day] != last:
            day = (day + 1) % 7
            days.add(day)
    return frozenset(days)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """
    One policy as loaded. An empty tuple of criteria is not used; one without any never matches.
    """

    name: str
    match_hosts: tuple[Glob, ...] = ()
    match_users: tuple[Glob, ...] = ()
    match_host_groups: tuple[str, ...] = ()
    require_admin: bool = False
    min_approvals: int = 1
    auto_approve_grace: bool = False
    hours: Hours | None = None
    days: frozenset[int] | None = None
    window: str = ""
    notify_channels: tuple[str, ...] = ()
    require_fresh: timedelta | None = None
    break_glass_bypass: bool = False

    def matches(self, username: str, hostname: str, host_group: str) -> bool:
        if not (self.match_hosts or self.match_users or self.match_host_groups):
            return False
        return (
            (not self.match_host_groups or host_group in self.match_host_groups)
            and (not self.match_hosts or any(glob.matches(hostname) for glob in self.match_hosts))
            and (not self.match_users or any(glob.matches(username) for glob in self.match_users))
        )

    def open_at(self, now: datetime) -> bool:
        """Hours and days are tested each for itself, in UTC: Friday 23:00 does not carry over into Saturday."""
        utc = now.astimezone(UTC)
        return (self.hours is None or self.hours.contains(utc.time())) and (
            self.days is None or utc.isoweekday() % 7 in self.days
        )

    def requirement(self, now: datetime) -> Requirement:
        return Requirement(
            policy_name=self.name,
            min_approvals=self.min_approvals,
            require_admin=self.require_admin,
            auto_approve_grace=self.auto_approve_grace,
            window_ok=self.open_at(now),
            window=self.window,
            require_fresh=self.require_fresh,
            break_glass_bypass=self.break_glass_bypass,
            notify_channels=self.notify_channels,
        )


class Policies:
    """An immutable, ordered set of policies."""

    def __init__(self, policies: Sequence[Policy] = ()) -> None:
        self._policies = tuple(policies)

    @classmethod
    def empty(cls) -> Policies:
        """No policies: everything is permitted with one approval."""
        return cls()

    @classmethod
    def parse(cls, raw: bytes) -> Policies:
        """
        The object ``{"policies": [...]}`` or the bare list that published documentation shows.

        :raise ValueError: naming the policy and the field, and what would be right.
        """
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"approval policies: not JSON: {e}") from None
        if isinstance(document, dict):
            unknown = [key for key in document if key.lower() != "policies"]
            if unknown:
                raise ValueError(f"approval policies: unknown key {unknown[0]!r}; the list is called 'policies'")
            document = next(iter(document.values()), None)
        if document is None:
            document = []
        if not isinstance(document, list) or len(document) > MAX_POLICIES:
            raise ValueError(f"approval policies: must be a list of at most {MAX_POLICIES} policies")
        return cls([_policy(number, value) for number, value in enumerate(document, 1)])

    def __len__(self) -> int:
        return len(self._policies)

    def __iter__(self) -> Iterator[Policy]:
        return iter(self._policies)

    def requirement(self, username: str, hostname: str, host_group: str, now: datetime) -> Requirement:
        """
        The first policy that matches, else the one named ``default``, else no requirement but one approval.

        :param hostname: normalised, or empty.
        :param host_group: the host's label in the registry, or empty.
        """
        for policy in self._policies:
            if policy.name != DEFAULT and policy.matches(username, hostname, host_group):
                return policy.requirement(now)
        for policy in self._policies:
            if policy.name == DEFAULT:
                return policy.requirement(now)
        return Requirement()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number such as 2")
    return max(1, value)


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_ITEMS or not all(isinstance(item, str) for item in value):
        raise ValueError(f"must be a list of at most {MAX_ITEMS} texts")
    return tuple(value)


def _globs(value: object) -> tuple[Glob, ...]:
    globs = []
    for text in _texts(value):
        try:
            globs.append(Glob(text))
        except ValueError as e:
            raise ValueError(f"pattern {text!r}: {e}") from None
    return tuple(globs)


def _fresh(value: object) -> timedelta | None:
    text = _text(value)
    if not text:
        return None
    duration = durations.parse(text)
    if duration < timedelta():
        raise ValueError("must not be negative")
    return duration or None


def _hours(value: object) -> Hours | None:
    text = _text(value).strip(" ")
    return Hours.parse(text) if text else None


def _days(value: object) -> frozenset[int] | None:
    text = _text(value).strip(" ")
    return parse_days(text) if text else None


# key of the file -> attribute of Policy and its reader; null is the same as absent
_FIELDS: dict[str, tuple[str, Callable[[object], object]]] = {
    "name": ("name", _text),
    "match_host_groups": ("match_host_groups", _texts),
    "match_hosts": ("match_hosts", _globs),
    "match_users": ("match_users", _globs),
    "require_admin": ("require_admin", _truth),
    "min_approvals": ("min_approvals", _count),
    "auto_approve_grace": ("auto_approve_grace", _truth),
    "allowed_hours": ("hours", _hours),
    "allowed_days": ("days", _days),
    "notify_channels": ("notify_channels", _texts),
    "require_fresh_oidc": ("require_fresh", _fresh),
    "break_glass_bypass": ("break_glass_bypass", _truth),
}


def _policy(number: int, value: object) -> Policy:
    if not isinstance(value, dict):
        raise ValueError(f"approval policy {number}: must be an object")
    # keys are matched without regard to case, as deployed versions did
    fields = {key.lower(): item for key, item in value.items() if item is not None}
    name = fields.get("name")
    shown = f"approval policy {number}" + (f" ({name})" if isinstance(name, str) and name else "")
    arguments: dict[str, object] = {}
    for key, item in fields.items():
        if key not in _FIELDS:
            near = difflib.get_close_matches(key, _FIELDS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{shown}: unknown field {key!r}{hint}")
        attribute, read = _FIELDS[key]
        try:
            arguments[attribute] = read(item)
        except ValueError as e:
            raise ValueError(f"{shown}: {key}: {e}") from None
    # decisions look at the window again only where a policy has a name, so every policy gets one
    arguments["name"] = arguments.get("name") or f"policy-{number}"
    window = (fields.get("allowed_hours", ""), fields.get("allowed_days", ""))
    arguments["window"] = " ".join(text.strip(" ") for text in window if text)
    return Policy(**arguments)  # type: ignore[arg-type]
