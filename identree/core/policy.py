"""
Approval policies: what an approval needs, by user, host, command and time (spec/notifications-and-policy section 7).

A policy file that cannot be understood in every detail is refused as a whole. Deployed versions took what they did not
understand for "no restriction".
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo

from identree.core import durations
from identree.core.explanation import Clause, Explanation
from identree.core.glob import Glob

# The policy that applies when no other does; its criteria are ignored.
DEFAULT = "default"
# More is a mistake, and would make every challenge slow.
MAX_POLICIES = 1000
MAX_ITEMS = 1000
MAX_NAME = 200
MAX_DESCRIPTION = 500
# What the database can hold; a file of deployed versions has no bound.
MAX_APPROVALS = 2**31 - 1
MAX_PRIORITY = 1000
# Longest duration of a policy: a year.
LONGEST = timedelta(days=366)
# What happens to a policy with ``match_commands`` where the host told no command.
UNKNOWN_COMMAND = ("match", "no_match")

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
    :ivar forbid_self_approval: the requester's own approval does not count.
    :ivar approver_groups: who approves is a member of one of these groups; empty: anybody who may otherwise.
    :ivar max_grace: the longest grace session that an approval leaves behind; None: no limit but the server's.
    :ivar explanation: which policy, and why.
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
    forbid_self_approval: bool = False
    approver_groups: tuple[str, ...] = ()
    max_grace: timedelta | None = None
    explanation: Explanation = field(default_factory=Explanation, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """``start`` is in it, ``end`` is not; a start after the end passes midnight; equal ones leave nothing."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Hours:
        """``HH:MM-HH:MM``. :raise ValueError:"""
        start, dash, end = text.partition("-")
        if not dash:
            raise ValueError("must be like 09:00-17:00")
        return cls(start=cls._clock(start), end=cls._clock(end))

    @staticmethod
    def _clock(text: str) -> time:
        clock = _CLOCK.fullmatch(text.strip(" "))
        if clock is None:
            raise ValueError("must be like 09:00-17:00")
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
    One policy as loaded. An empty tuple of criteria is not used; a policy without any matches everything, but the one
    named ``default``, which applies when no other does.

    :ivar hours, days: in ``zone``.
    :ivar window: both as written, and the zone unless it is UTC; empty: always.
    :ivar unknown_command: whether ``match_commands`` fits where the host told no command.
    :ivar priority: higher ones are looked at first, equal ones in the order of the file.
    :ivar written: the fields as they stand in a file, in its order.
    """

    name: str
    match_hosts: tuple[Glob, ...] = ()
    match_users: tuple[Glob, ...] = ()
    match_host_groups: tuple[str, ...] = ()
    match_commands: tuple[Glob, ...] = ()
    unknown_command: bool = False
    require_admin: bool = False
    min_approvals: int = 1
    auto_approve_grace: bool = False
    hours: Hours | None = None
    days: frozenset[int] | None = None
    zone: tzinfo = UTC
    window: str = ""
    notify_channels: tuple[str, ...] = ()
    require_fresh: timedelta | None = None
    break_glass_bypass: bool = False
    forbid_self_approval: bool = False
    approver_groups: tuple[str, ...] = ()
    max_grace: timedelta | None = None
    priority: int = 0
    description: str = ""
    written: Mapping[str, object] = field(default_factory=dict, compare=False)

    @property
    def without_criteria(self) -> bool:
        return not (self.match_hosts or self.match_users or self.match_host_groups or self.match_commands)

    def matches(self, username: str, hostname: str, host_group: str, command: str = "") -> bool:
        return self.because(username, hostname, host_group, command) is not None

    def because(self, username: str, hostname: str, host_group: str, command: str) -> tuple[Clause, ...] | None:
        """Which item of each list fits; None: one of the lists has none that does."""
        clauses: list[Clause] = []
        if self.match_host_groups:
            if host_group not in self.match_host_groups:
                return None
            clauses.append(Clause("host_group", host_group))
        if self.match_hosts:
            fits = _first(self.match_hosts, hostname)
            if fits is None:
                return None
            clauses.append(Clause("host", fits))
        if self.match_users:
            fits = _first(self.match_users, username)
            if fits is None:
                return None
            clauses.append(Clause("user", fits))
        if self.match_commands:
            if not command:
                if not self.unknown_command:
                    return None
                clauses.append(Clause("command_unknown"))
            else:
                fits = _first(self.match_commands, command)
                if fits is None:
                    return None
                clauses.append(Clause("command", fits))
        return tuple(clauses) or (Clause("everything"),)

    def open_at(self, now: datetime) -> bool:
        """
        Hours and days are tested each for itself, by the clock on the wall in the policy's zone: Friday 23:00 does not
        carry over into Saturday, and an hour that the change of clocks repeats counts both times.
        """
        local = now.astimezone(self.zone)
        return (self.hours is None or self.hours.contains(local.time())) and (
            self.days is None or local.isoweekday() % 7 in self.days
        )

    def requirement(self, now: datetime, because: tuple[Clause, ...] = (), version: int = 0) -> Requirement:
        is_open = self.open_at(now)
        return Requirement(
            policy_name=self.name,
            min_approvals=self.min_approvals,
            require_admin=self.require_admin,
            auto_approve_grace=self.auto_approve_grace,
            window_ok=is_open,
            window=self.window,
            require_fresh=self.require_fresh,
            break_glass_bypass=self.break_glass_bypass,
            notify_channels=self.notify_channels,
            forbid_self_approval=self.forbid_self_approval,
            approver_groups=self.approver_groups,
            max_grace=self.max_grace,
            explanation=Explanation(
                policy=self.name, version=version, because=because, asks=tuple(self._asks(is_open))
            ),
        )

    def asked(self) -> tuple[Clause, ...]:
        """What it asks for at any time."""
        return tuple(self._asks(True))

    def _asks(self, is_open: bool) -> Iterator[Clause]:
        yield Clause("approvals", str(self.min_approvals))
        if self.require_admin:
            yield Clause("admin")
        if self.approver_groups:
            yield Clause("approver_groups", ", ".join(self.approver_groups)[:500])
        if self.forbid_self_approval:
            yield Clause("not_self")
        if self.window:
            yield Clause("window" if is_open else "window_closed", self.window)
        if self.require_fresh is not None:
            yield Clause("fresh", durations.render(self.require_fresh))
        yield Clause("grace" if self.auto_approve_grace else "no_grace")
        if self.max_grace is not None:
            yield Clause("max_grace", durations.render(self.max_grace))
        if self.break_glass_bypass:
            yield Clause("override")

    def fields(self) -> dict[str, object]:
        """As in a policy file: the first three keys always, the others where they say something."""
        values: dict[str, object] = {
            "name": self.name,
            "require_admin": self.require_admin,
            "min_approvals": self.min_approvals,
            "auto_approve_grace": self.auto_approve_grace,
        }
        values.update((key, value) for key, value in self.written.items() if key not in values and value)
        return {key: values[key] for key in _FIELDS if key in values}


def _first(globs: tuple[Glob, ...], text: str) -> str | None:
    """The pattern that fits."""
    for glob in globs:
        if glob.matches(text):
            return glob.pattern
    return None


class Policies:
    """An immutable set of policies, in the order in which they are looked at."""

    def __init__(self, policies: Sequence[Policy] = (), version: int = 0) -> None:
        """:param version: of the set; goes into explanations."""
        self._written = tuple(policies)
        self._policies = tuple(sorted(policies, key=lambda policy: -policy.priority))
        self._ordinary = tuple(policy for policy in self._policies if policy.name != DEFAULT)
        self._default = next((policy for policy in self._policies if policy.name == DEFAULT), None)
        self.version = version
        self.approver_groups = frozenset(group for policy in policies for group in policy.approver_groups)

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
        return cls.from_fields([] if document is None else document)

    @classmethod
    def from_fields(cls, values: object) -> Policies:
        """
        :param values: a list of objects as in a policy file.
        :raise ValueError: as for :meth:`parse`.
        """
        if not isinstance(values, list) or len(values) > MAX_POLICIES:
            raise ValueError(f"approval policies: must be a list of at most {MAX_POLICIES} policies")
        return cls([_policy(number, value) for number, value in enumerate(values, 1)])

    def with_version(self, version: int) -> Policies:
        return Policies(self._written, version)

    def __len__(self) -> int:
        return len(self._policies)

    def __iter__(self) -> Iterator[Policy]:
        """In the order in which they are looked at; ``default`` stands where its priority puts it."""
        return iter(self._policies)

    @property
    def in_written_order(self) -> tuple[Policy, ...]:
        return self._written

    def get(self, name: str) -> Policy | None:
        return next((policy for policy in self._written if policy.name == name), None)

    def fields(self) -> list[dict[str, object]]:
        return [policy.fields() for policy in self._written]

    def to_json(self) -> str:
        """As a policy file; what is loaded from it means the same."""
        document = {"policies": self.fields() or None}
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    def requirement(
        self, username: str, hostname: str, host_group: str, now: datetime, command: str = ""
    ) -> Requirement:
        """
        The first policy that matches, else the one named ``default``, else no requirement but one approval.

        :param hostname: normalised, or empty.
        :param host_group: the host's label in the registry, or empty.
        :param command: as the host told it; empty: it told none.
        """
        for policy in self._ordinary:
            because = policy.because(username, hostname, host_group, command)
            if because is not None:
                return policy.requirement(now, because, self.version)
        if self._default is not None:
            return self._default.requirement(now, (Clause("default"),), self.version)
        return replace(_NOTHING, explanation=Explanation(version=self.version, because=(Clause("none"),), asks=_ASKED))


_NOTHING = Requirement()
_ASKED = (Clause("approvals", "1"), Clause("grace"))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value


def _name(value: object) -> str:
    return _printable(_text(value), MAX_NAME)


def _description(value: object) -> str:
    return _printable(_text(value), MAX_DESCRIPTION)


def _printable(text: str, most: int) -> str:
    if len(text) > most or any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise ValueError(f"must be at most {most} characters, without control characters")
    return text


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _number(value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number such as 2")
    if not least <= value <= most:
        raise ValueError(f"must be between {least} and {most}")
    return value


def _count(value: object) -> int:
    # less than one is one, as ever
    return max(1, _number(value, -(2**63), MAX_APPROVALS))


def _priority(value: object) -> int:
    return _number(value, -MAX_PRIORITY, MAX_PRIORITY)


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_ITEMS or not all(isinstance(item, str) for item in value):
        raise ValueError(f"must be a list of at most {MAX_ITEMS} texts")
    return tuple(value)


def _groups(value: object) -> tuple[str, ...]:
    groups = _texts(value)
    if not all(groups):
        raise ValueError("has an empty name")
    return tuple(_printable(group, MAX_NAME) for group in groups)


def _globs(value: object) -> tuple[Glob, ...]:
    return _compiled(value, slashes=False)


def _command_globs(value: object) -> tuple[Glob, ...]:
    return _compiled(value, slashes=True)


def _compiled(value: object, *, slashes: bool) -> tuple[Glob, ...]:
    globs = []
    for text in _texts(value):
        try:
            globs.append(Glob(text, slashes=slashes))
        except ValueError as e:
            raise ValueError(f"pattern {text[:80]!r}: {e}") from None
    return tuple(globs)


def _duration(value: object) -> timedelta | None:
    text = _text(value)
    if not text:
        return None
    duration = durations.parse(text)
    if not timedelta() <= duration <= LONGEST:
        raise ValueError("must be between 0 and a year")
    return duration


def _fresh(value: object) -> timedelta | None:
    return _duration(value) or None


def _unknown_command(value: object) -> bool:
    if value not in UNKNOWN_COMMAND:
        raise ValueError("must be 'match' or 'no_match'")
    return value == "match"


def _zone(value: object) -> tzinfo:
    text = _text(value)
    if text in ("", "UTC"):
        return UTC
    try:
        return ZoneInfo(text)
    except (ValueError, OSError):
        # also a name that is a path; ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"{text[:80]!r} is no time zone; write one such as Europe/Berlin") from None
    except KeyError:
        near = difflib.get_close_matches(text, ("Europe/Berlin", "Europe/London", "America/New_York", "Asia/Tokyo"), 1)
        hint = f"; did you mean {near[0]}?" if near else "; write one such as Europe/Berlin"
        raise ValueError(f"{text[:80]!r} is no time zone{hint}") from None


def _hours(value: object) -> Hours | None:
    text = _text(value).strip(" ")
    return Hours.parse(text) if text else None


def _days(value: object) -> frozenset[int] | None:
    text = _text(value).strip(" ")
    return parse_days(text) if text else None


# key of the file -> attribute of Policy and its reader; null is the same as absent
_FIELDS: dict[str, tuple[str, Callable[[object], object]]] = {
    "name": ("name", _name),
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
    "match_commands": ("match_commands", _command_globs),
    "unknown_command": ("unknown_command", _unknown_command),
    "time_zone": ("zone", _zone),
    "forbid_self_approval": ("forbid_self_approval", _truth),
    "approver_groups": ("approver_groups", _groups),
    "max_grace": ("max_grace", _duration),
    "priority": ("priority", _priority),
    "description": ("description", _description),
}
KEYS = tuple(_FIELDS)


def _policy(number: int, value: object) -> Policy:
    if not isinstance(value, Mapping):
        raise ValueError(f"approval policy {number}: must be an object")
    # keys are matched without regard to case, as deployed versions did
    fields = {str(key).lower(): item for key, item in value.items() if item is not None}
    name = fields.get("name")
    shown = f"approval policy {number}" + (f" ({name[:MAX_NAME]})" if isinstance(name, str) and name else "")
    arguments: dict[str, object] = {}
    for key, item in fields.items():
        if key not in _FIELDS:
            near = difflib.get_close_matches(key, _FIELDS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{shown}: unknown field {key[:80]!r}{hint}")
        attribute, read = _FIELDS[key]
        try:
            arguments[attribute] = read(item)
        except ValueError as e:
            raise ValueError(f"{shown}: {key}: {e}") from None
    if arguments.get("match_commands") and "unknown_command" not in fields:
        raise ValueError(
            f"{shown}: match_commands: hosts do not always tell the command; say with unknown_command whether the "
            "policy applies then: 'match' or 'no_match'"
        )
    # decisions look at the window again only where a policy has a name, so every policy gets one
    arguments["name"] = arguments.get("name") or f"policy-{number}"
    window = " ".join(
        str(text).strip(" ") for text in (fields.get("allowed_hours"), fields.get("allowed_days")) if text
    )
    zone = fields.get("time_zone")
    arguments["window"] = f"{window} {zone}" if window and zone and zone != "UTC" else window
    arguments["written"] = fields
    return Policy(**arguments)  # type: ignore[arg-type]
