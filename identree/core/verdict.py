"""
Who may decide what: the one place where a policy's requirement meets a person. Every way to an approval (page, bulk,
one-tap link, grace session, elevation, override) asks here. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from identree.core import durations
from identree.core.challenge import Challenge, Strength
from identree.core.errors import (
    AccountDisabled,
    AdminRequired,
    FreshLoginRequired,
    NotAnApprover,
    OutsideWindow,
    OverrideNotAllowed,
    SelfApprovalForbidden,
)
from identree.core.policy import Requirement


@dataclass(frozen=True, slots=True, kw_only=True)
class Approver:
    """
    A person, as far as policies ask.

    :ivar groups: that the person is in, as the directory or else the sign-in says.
    :ivar authenticated_at: when the person last proved to the identity provider who it is; None: unknown.
    """

    username: str
    is_admin: bool
    groups: frozenset[str] = field(default_factory=frozenset)
    authenticated_at: datetime | None = None


def _same_person(one: str, other: str) -> bool:
    return one.lower() == other.lower()


def may_see(challenge: Challenge, approver: Approver) -> bool:
    """The requester, an administrator, or one of the approvers that the policy names."""
    return (
        approver.is_admin
        or _same_person(approver.username, challenge.username)
        or bool(approver.groups.intersection(challenge.approver_groups))
    )


def may_approve(
    challenge: Challenge, approver: Approver, now_required: Requirement, now: datetime, *, owner_disabled: bool
) -> None:
    """
    Whether this person's approval counts, whatever way it comes.

    Who may approve and how many it takes stands in the challenge, as the policy was when it was created; time window
    and freshness count as they are now, for challenges to which a policy applied (spec/notifications-and-policy
    section 7).

    :param now_required: what the policies say now about the same user, host and command.
    :raise AdminRequired, SelfApprovalForbidden, NotAnApprover, OutsideWindow, FreshLoginRequired, AccountDisabled:
    """
    if challenge.require_admin and not approver.is_admin:
        raise AdminRequired
    if challenge.forbid_self_approval and _same_person(approver.username, challenge.username):
        raise SelfApprovalForbidden
    if challenge.approver_groups and not approver.groups.intersection(challenge.approver_groups):
        raise NotAnApprover(", ".join(challenge.approver_groups))
    if challenge.policy_name:
        if not now_required.window_ok:
            raise OutsideWindow(now_required.window)
        fresh = now_required.require_fresh
        if fresh is not None and (approver.authenticated_at is None or now - approver.authenticated_at > fresh):
            raise FreshLoginRequired(durations.render(fresh))
    if owner_disabled:
        raise AccountDisabled


def may_override(challenge: Challenge, approver: Approver, *, owner_disabled: bool) -> None:
    """
    An administrator may pass over window, number of approvals and freshness where the policy allows that.

    :raise AdminRequired, OverrideNotAllowed, SelfApprovalForbidden, AccountDisabled:
    """
    if not approver.is_admin:
        raise AdminRequired
    if not challenge.bypass_allowed:
        raise OverrideNotAllowed
    if challenge.forbid_self_approval and _same_person(approver.username, challenge.username):
        raise SelfApprovalForbidden
    if owner_disabled:
        raise AccountDisabled


def grace_suffices(required: Requirement, strength: Strength) -> bool:
    """
    Whether a live grace session of this strength stands in for the approvals that are required now.

    What somebody has approved under one policy does not pass another one that asks for more. A policy that wants a
    recent sign-in is not satisfied by a session either, nor one that names approvers, unless it is the same policy.
    """
    if not (required.auto_approve_grace and required.window_ok):
        return False
    if strength.approvals < required.min_approvals:
        return False
    if required.require_admin and not strength.by_admin:
        return False
    if required.forbid_self_approval and not strength.by_other:
        return False
    own_policy = strength.policy == required.policy_name
    if required.approver_groups and not own_policy:
        return False
    return required.require_fresh is None or own_policy


def may_elevate(required: Requirement, approver: Approver, target: str, now: datetime) -> None:
    """
    Whether this person may open a sudo session for ``target`` without a request: whoever's approval alone would be
    enough for one; administrators also where it is not, or not now: what the session may stand in for is judged when it
    is used (:func:`grace_suffices`).

    :raise AdminRequired: also where several people would have to approve.
    :raise SelfApprovalForbidden, NotAnApprover, OutsideWindow, FreshLoginRequired:
    """
    if required.min_approvals > 1 and not approver.is_admin:
        raise AdminRequired
    if required.require_admin and not approver.is_admin:
        raise AdminRequired
    if required.forbid_self_approval and _same_person(approver.username, target):
        raise SelfApprovalForbidden
    if required.approver_groups and not approver.groups.intersection(required.approver_groups):
        raise NotAnApprover(", ".join(required.approver_groups))
    if not required.window_ok and not approver.is_admin:
        raise OutsideWindow(required.window)
    fresh = required.require_fresh
    if fresh is not None and (approver.authenticated_at is None or now - approver.authenticated_at > fresh):
        raise FreshLoginRequired(durations.render(fresh))


def approvers_of(challenge: Challenge, people: Sequence[Approver]) -> tuple[str, ...]:
    """Which of these people's approval would count as far as it depends on who they are; not those counted already."""
    return tuple(
        person.username
        for person in people
        if may_see(challenge, person)
        and not challenge.approved_already(person.username)
        and not (challenge.require_admin and not person.is_admin)
        and not (challenge.forbid_self_approval and _same_person(person.username, challenge.username))
        and not (challenge.approver_groups and not person.groups.intersection(challenge.approver_groups))
    )
