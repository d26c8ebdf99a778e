"""What other policies would have changed for past requests, for ``identree policy replay``. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from identree.core import durations
from identree.core.policy import Policies, Requirement

# Differences that are told one by one; the others are only counted.
MOST_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A past request. Audit records do not have the command."""

    at: datetime
    username: str
    hostname: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """:ivar changes: what would have been different, as ``key: before -> after``."""

    asked: Asked
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """
    :ivar requests: how many were looked at. :ivar different: how many of them would have met something else.
    :ivar counts: how often each change; the most frequent first.
    """

    requests: int
    different: int
    counts: tuple[tuple[str, int], ...]
    shown: tuple[Difference, ...]


def facts(required: Requirement) -> dict[str, str]:
    return {
        "policy": required.policy_name or "none",
        "approvals": str(required.min_approvals),
        "administrator": "required" if required.require_admin else "not required",
        "window": "open" if required.window_ok else "closed",
        "open sessions": "count" if required.auto_approve_grace else "do not count",
        "fresh sign-in": durations.render(required.require_fresh) if required.require_fresh else "not required",
        "own approval": "does not count" if required.forbid_self_approval else "counts",
        "approvers": ", ".join(required.approver_groups) or "anybody",
        "longest session": "as the server" if required.max_grace is None else durations.render(required.max_grace),
        "override": "permitted" if required.break_glass_bypass else "not permitted",
    }


def replay(requests: Iterable[Asked], present: Policies, draft: Policies, group: Callable[[str], str]) -> Replay:
    """:param group: the group of a host in the registry, as it is now."""
    total, different = 0, 0
    counts: dict[str, int] = {}
    shown: list[Difference] = []
    for asked in requests:
        total += 1
        label = group(asked.hostname)
        before = facts(present.requirement(asked.username, asked.hostname, label, asked.at))
        after = facts(draft.requirement(asked.username, asked.hostname, label, asked.at))
        changes = tuple(f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key])
        if not changes:
            continue
        different += 1
        for change in changes:
            counts[change] = counts.get(change, 0) + 1
        if len(shown) < MOST_SHOWN:
            shown.append(Difference(asked=asked, changes=changes))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Replay(requests=total, different=different, counts=tuple(ordered), shown=tuple(shown))
