"""
What is probably a mistake in a set of policies that can be loaded: for those who write them. Only what is certain is
said; silence does not mean that the policies are what somebody wants.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta

from identree.core.glob import Glob
from identree.core.policy import DEFAULT, Policies, Policy

# Pairs that are compared at most: a thousand policies have half a million, and a page waits for the answer.
MOST_PAIRS = 50_000
MOST_WARNINGS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Warning:
    """
    :ivar policy: that has it.
    :ivar other: another one that has to do with it, or empty.
    :ivar text: a sentence, in English.
    """

    policy: str
    text: str
    other: str = ""


def warnings(
    policies: Policies, *, channels: Collection[str] | None = None, host_groups: Collection[str] | None = None
) -> tuple[Warning, ...]:
    """
    :param channels: names of the notification channels that there are; None: unknown.
    :param host_groups: of the host registry; None: unknown, or there is none.
    """
    found: list[Warning] = []
    for warning in (*_each(policies, channels, host_groups), *_pairs(policies)):
        found.append(warning)
        if len(found) == MOST_WARNINGS:
            break
    return tuple(found)


def _each(
    policies: Policies, channels: Collection[str] | None, host_groups: Collection[str] | None
) -> Iterator[Warning]:
    names: set[str] = set()
    for policy in policies:
        name = policy.name
        if name in names:
            yield Warning(policy=name, text="Another policy has the same name: give each a name of its own.")
        names.add(name)
        if name == DEFAULT and not policy.without_criteria:
            yield Warning(
                policy=name, text="It applies where no other policy does, whatever its criteria say: they are ignored."
            )
        if policy.hours is not None and policy.hours.start == policy.hours.end:
            yield Warning(
                policy=name, text=f"{policy.window} is never: a window that begins when it ends has no minute."
            )
        if policy.auto_approve_grace and policy.max_grace == timedelta(0):
            yield Warning(policy=name, text="Grace sessions may stand in for approvals, but max_grace leaves none.")
        if policy.require_admin and policy.approver_groups:
            yield Warning(
                policy=name,
                text="Approvers have to be administrators and members of the groups, both at once.",
            )
        for channel in policy.notify_channels:
            if channels is not None and channel not in channels:
                yield Warning(policy=name, text=f"There is no notification channel {channel}.")
        for group in policy.match_host_groups:
            if host_groups is not None and group and group not in host_groups:
                yield Warning(policy=name, text=f"No registered host is in the group {group}.")


def _pairs(policies: Policies) -> Iterator[Warning]:
    ordinary = [policy for policy in policies if policy.name != DEFAULT]
    compared = 0
    for place, policy in enumerate(ordinary):
        for earlier in ordinary[:place]:
            compared += 1
            if compared > MOST_PAIRS:
                return
            if _covers(earlier, policy):
                yield Warning(
                    policy=policy.name,
                    other=earlier.name,
                    text=f"It never applies: {earlier.name} comes before it and fits whatever this one does.",
                )
                break
            if earlier.priority == policy.priority and _covers(policy, earlier) and _stricter(policy, earlier):
                yield Warning(
                    policy=earlier.name,
                    other=policy.name,
                    text=f"It is an exception to {policy.name}, which asks for more and comes after it.",
                )


def _covers(broad: Policy, narrow: Policy) -> bool:
    """Whether it is certain that ``broad`` fits wherever ``narrow`` does."""
    if broad.match_commands and not narrow.match_commands:
        return False
    if broad.match_commands and narrow.unknown_command and not broad.unknown_command:
        return False
    return (
        (not broad.match_host_groups or _within(narrow.match_host_groups, broad.match_host_groups))
        and _globs_cover(broad.match_hosts, narrow.match_hosts, "*")
        and _globs_cover(broad.match_users, narrow.match_users, "*")
        and _globs_cover(broad.match_commands, narrow.match_commands, "*")
    )


def _within(items: Collection[str], others: Collection[str]) -> bool:
    return bool(items) and set(items) <= set(others)


def _globs_cover(broad: tuple[Glob, ...], narrow: tuple[Glob, ...], everything: str) -> bool:
    if not broad:
        return True
    patterns = {glob.pattern for glob in broad}
    if not narrow:
        # names of hosts and users have no slashes, so that a star fits them all
        return everything in patterns
    return all(
        glob.pattern in patterns
        or everything in patterns
        or (glob.literal is not None and any(other.matches(glob.literal) for other in broad))
        for glob in narrow
    )


def _stricter(one: Policy, other: Policy) -> bool:
    return (
        one.min_approvals > other.min_approvals
        or (one.require_admin and not other.require_admin)
        or (one.forbid_self_approval and not other.forbid_self_approval)
        or (bool(one.approver_groups) and not other.approver_groups)
        or (one.require_fresh is not None and other.require_fresh is None)
        or (bool(one.window) and not other.window)
    )
