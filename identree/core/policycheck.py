"""
Assertions about approval policies: a file that says what shall hold, for ``identree policy test``. Pure.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from identree.core import durations, verdict
from identree.core.challenge import Challenge
from identree.core.errors import Refused
from identree.core.policy import Policies, Requirement
from identree.core.verdict import Approver

MAX_TESTS = 5000

# member of ``expect`` -> what the requirement says, as JSON has it
_FACTS: dict[str, Callable[[Requirement], object]] = {
    "policy": lambda required: required.policy_name,
    "min_approvals": lambda required: required.min_approvals,
    "require_admin": lambda required: required.require_admin,
    "auto_approve_grace": lambda required: required.auto_approve_grace,
    "window_ok": lambda required: required.window_ok,
    "break_glass_bypass": lambda required: required.break_glass_bypass,
    "forbid_self_approval": lambda required: required.forbid_self_approval,
    "approver_groups": lambda required: list(required.approver_groups),
    "notify_channels": lambda required: list(required.notify_channels),
    "require_fresh_oidc": lambda required: durations.render(required.require_fresh) if required.require_fresh else "",
    "max_grace": lambda required: "" if required.max_grace is None else durations.render(required.max_grace),
}
_CONTEXT = ("name", "user", "host", "host_group", "command", "at", "expect")
_PERSON = ("user", "groups", "admin", "fresh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """:ivar failures: what is not as it shall be, one sentence each; empty: the test holds."""

    name: str
    failures: tuple[str, ...]


def run(raw: bytes, policies: Policies | None, now: datetime) -> list[Result]:
    """
    ``{"policies": [...], "tests": [{"name", "user", "host", "host_group", "command", "at", "expect": {...}}]}``.

    :param policies: those that the tests are about, where the file has none of its own.
    :param now: the time of tests that say none.
    :raise ValueError: the file cannot be understood, or there are no policies.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"not JSON: {e}") from None
    if not isinstance(document, dict):
        raise ValueError("must be an object with the member 'tests'")
    _known(document, ("policies", "tests"), "the file")
    own = document.get("policies")
    tested = Policies.from_fields(own) if own is not None else policies
    if tested is None:
        raise ValueError("there are no policies: the file has no member 'policies', and none were given")
    tests = document.get("tests")
    if not isinstance(tests, list) or not 0 < len(tests) <= MAX_TESTS:
        raise ValueError(f"'tests' must be a list of 1 to {MAX_TESTS}")
    return [_test(number, value, tested, now) for number, value in enumerate(tests, 1)]


def _known(values: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise ValueError(f"{what}: unknown member {key!r}" + (f"; did you mean {near[0]}?" if near else ""))


def _text(values: Mapping[str, Any], key: str, what: str) -> str:
    value = values.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{what}: {key}: must be text")
    return value


def _test(number: int, value: object, policies: Policies, now: datetime) -> Result:
    what = f"test {number}"
    if not isinstance(value, dict):
        raise ValueError(f"{what}: must be an object")
    _known(value, _CONTEXT, what)
    name = _text(value, "name", what) or what
    user, host = _text(value, "user", what), _text(value, "host", what).lower()
    at = now
    if _text(value, "at", what):
        try:
            at = datetime.fromisoformat(value["at"])
        except ValueError:
            raise ValueError(f"{what}: at: must be a time such as 2026-03-01T12:00:00Z") from None
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    expected = value.get("expect")
    if not isinstance(expected, dict) or not expected:
        raise ValueError(f"{what}: expect: must be an object that says something")
    _known(expected, (*_FACTS, "may_approve", "may_not_approve"), f"{what}: expect")
    required = policies.requirement(user, host, _text(value, "host_group", what), at, _text(value, "command", what))
    failures = []
    for key, wanted in expected.items():
        if key in _FACTS:
            found = _FACTS[key](required)
            if found != wanted:
                failures.append(f"{key} is {json.dumps(found)}, not {json.dumps(wanted)}")
        else:
            failures += _people(key == "may_approve", wanted, required, user, at, f"{what}: expect: {key}")
    return Result(name=name, failures=tuple(failures))


def _people(may: bool, wanted: object, required: Requirement, owner: str, at: datetime, what: str) -> list[str]:
    if not isinstance(wanted, list):
        raise ValueError(f"{what}: must be a list of people such as {{'user': 'carol', 'admin': true}}")
    failures = []
    for one in wanted:
        person = {"user": one} if isinstance(one, str) else one
        if not isinstance(person, dict):
            raise ValueError(f"{what}: must be a list of names or people")
        _known(person, _PERSON, what)
        groups = person.get("groups", [])
        if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
            raise ValueError(f"{what}: groups: must be a list of texts")
        refusal = _refusal(
            required,
            Approver(
                username=_text(person, "user", what),
                is_admin=person.get("admin") is True,
                groups=frozenset(groups),
                authenticated_at=None if person.get("fresh") is False else at,
            ),
            owner,
            at,
        )
        if may and refusal:
            failures.append(f"{person.get('user')} may not approve: {refusal}")
        if not may and not refusal:
            failures.append(f"{person.get('user')} may approve")
    return failures


def _refusal(required: Requirement, person: Approver, owner: str, at: datetime) -> str:
    challenge = Challenge(
        id="",
        user_code="",
        username=owner,
        hostname="",
        reason="",
        created_at=at,
        expires_at=at,
        policy_name=required.policy_name,
        require_admin=required.require_admin,
        forbid_self_approval=required.forbid_self_approval,
        approver_groups=required.approver_groups,
    )
    if not verdict.may_see(challenge, person):
        return "neither the requester, nor an administrator, nor in a group of approvers"
    try:
        verdict.may_approve(challenge, person, required, at, owner_disabled=False)
    except Refused as refusal:
        return refusal.key.replace("_", " ")
    return ""
