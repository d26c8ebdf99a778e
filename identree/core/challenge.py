"""
The challenge: what a waiting ``sudo`` is to the server, and the moves it can make.

Every move takes the present value and the time and returns a :class:`Step`: the new value and all that must be
committed together with it. An illegal move raises and changes nothing. (spec/storage section 5)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum

from identree.core import events
from identree.core.errors import AlreadyResolved, DuplicateApproval, NotFound, Superseded
from identree.core.explanation import Explanation

# How a host without a name is shown; the stored name is empty.
UNKNOWN_HOST = "(unknown)"

# A decided challenge stays readable this long past its expiry, so that a last-second decision still reaches its host.
READABLE_AFTER_EXPIRY = timedelta(seconds=60)

# Decided rows are deleted this long after their expiry.
RETENTION = timedelta(hours=1)


class Status(Enum):
    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One of possibly several required approvals. :ivar as_admin: given by an administrator."""

    approver: str
    at: datetime
    as_admin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostContext:
    """
    What the host said about the command; optional, unverified, shown to approvers as told by the host.
    Every field is bounded and free of control characters (``names.host_context``).
    """

    command: str = ""
    cwd: str = ""
    tty: str = ""
    remote_host: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """
    :ivar id: 32 lower-case hex digits; the secret handle used by the host, never shown whole to people.
    :ivar user_code: ``ABCDEF-123456``; printed in the terminal and shown to the approver.
    :ivar hostname: normalised, or empty.
    :ivar created_at, expires_at: aware UTC, whole seconds.
    :ivar rotate_before, revoke_before: RFC 3339 snapshots, empty when none; hashed into status tokens, so the exact
        text is kept.
    :ivar required_approvals: at least 1.
    :ivar remote_addr: the address that the host asked from.
    :ivar forbid_self_approval, approver_groups, max_grace: as for ``policy.Requirement``, when it was created.
    :ivar explanation: which policy applied at creation, and why.
    """

    id: str
    user_code: str
    username: str
    hostname: str
    reason: str
    created_at: datetime
    expires_at: datetime
    status: Status = Status.PENDING
    approved_by: str = ""
    approved_at: datetime | None = None
    denied_by: str = ""
    deny_reason: str = ""
    rotate_before: str = ""
    revoke_before: str = ""
    policy_name: str = ""
    required_approvals: int = 1
    require_admin: bool = False
    bypass_allowed: bool = False
    overridden: bool = False
    one_tap_used: bool = False
    approvals: tuple[Approval, ...] = ()
    context: HostContext = field(default_factory=HostContext)
    remote_addr: str = ""
    forbid_self_approval: bool = False
    approver_groups: tuple[str, ...] = ()
    max_grace: timedelta | None = None
    explanation: Explanation = field(default_factory=Explanation)

    @property
    def shown_host(self) -> str:
        return self.hostname or UNKNOWN_HOST

    @property
    def approvers(self) -> tuple[str, ...]:
        return tuple(approval.approver for approval in self.approvals)

    @property
    def strength(self) -> Strength:
        """Of the grace session that its approvals leave behind."""
        return Strength(
            policy=self.policy_name,
            approvals=max(1, len(self.approvals)),
            by_admin=any(approval.as_admin for approval in self.approvals),
            by_other=any(approver.lower() != self.username.lower() for approver in self.approvers),
        )

    def approved_already(self, by: str) -> bool:
        """
        Whether ``by`` is counted, in whatever case: a directory that takes Alice for alice must not make a quorum of
        one person.
        """
        return by.lower() in (approver.lower() for approver in self.approvers)

    def live(self, now: datetime) -> bool:
        """Whether it can still be decided; an instant of exactly ``expires_at`` is too late."""
        return self.status is Status.PENDING and self.expires_at > now.replace(microsecond=0)

    def readable(self, now: datetime) -> bool:
        """Whether its host may still read it: live, or decided and not long past its expiry."""
        if self.status in (Status.PENDING, Status.EXPIRED):
            return self.live(now)
        return self.expires_at + READABLE_AFTER_EXPIRY > now.replace(microsecond=0)

    def remaining_seconds(self, now: datetime) -> int:
        """Whole seconds left, truncated, never negative."""
        return max(0, int((self.expires_at - now).total_seconds()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """
    What a grace session was opened by. A session stands in for an approval only where that would have been enough:
    what one person has approved alone does not pass a policy that wants two, or an administrator.

    :ivar policy: name of the policy that was satisfied; empty: none.
    :ivar approvals: how many distinct people approved.
    :ivar by_admin: one of them at least as an administrator.
    :ivar by_other: one of them at least was not the owner.
    """

    policy: str = ""
    approvals: int = 1
    by_admin: bool = False
    by_other: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GraceSession:
    """
    A time-limited sudo approval for one (user, host).

    :ivar hostname: normalised, or empty for challenges without a host.
    :ivar mac: see ``tokens.grace_mac``; a row whose MAC is wrong does not exist.
    :ivar strength_mac: see ``tokens.strength_mac``; where it is wrong, as in rows of deployed versions, the session is
        as weak as its owner's own approval.
    """

    username: str
    hostname: str
    expires_at: datetime
    mac: str = ""
    strength: Strength = field(default_factory=Strength)
    strength_mac: str = ""

    @property
    def shown_host(self) -> str:
        return self.hostname or UNKNOWN_HOST

    def remaining_seconds(self, now: datetime) -> int:
        return max(0, int((self.expires_at - now).total_seconds()))


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """
    One line of the history that people see (spec/storage section 3, ``action_log``).

    :ivar actor: who did it; stored empty when equal to ``username``.
    """

    at: datetime
    username: str
    action: str
    hostname: str = ""
    code: str = ""
    actor: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """
    A wake-up for dashboards, held requests and other replicas. It carries an id, never state (design section 3.4).

    :ivar event: ``challenge_created``, ``challenge_updated``, ``challenge_resolved``, ``session_changed`` or
        ``host_changed``.
    :ivar username: whose dashboards (and all admins') it concerns.
    :ivar challenge_id: set for the challenge events.
    """

    event: str
    username: str
    challenge_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """
    A move: the challenge after it and everything that commits with it.

    :ivar grace: a grace session to be written (replacing an older one, never shortening it).
    """

    challenge: Challenge
    events: tuple[events.Event, ...] = ()
    history: tuple[HistoryEntry, ...] = ()
    live: tuple[Live, ...] = ()
    grace: GraceSession | None = None

    @property
    def resolved(self) -> bool:
        return self.challenge.status is not Status.PENDING


# Makes the grace session that an approval of this challenge leaves behind; None where there is none.
GraceMaker = Callable[["Challenge", datetime], "GraceSession | None"]


def _still_pending(challenge: Challenge, now: datetime) -> None:
    if not challenge.live(now):
        raise AlreadyResolved(challenge.id[:8])


def superseded(challenge: Challenge, revoked_at: datetime | None) -> bool:
    """
    Whether the owner's sessions were revoked after the challenge was created (spec/storage section 5).

    Creation takes a snapshot of the owner's revocation time, and every revocation moves that time on. So another time
    than the snapshot's is a later revocation, whatever the clock did in between and however close they were.

    :param revoked_at: the owner's revocation time now.
    """
    if revoked_at is None:
        return False
    try:
        # compared as an instant: deployed versions write their local offset
        return datetime.fromisoformat(challenge.revoke_before) != revoked_at
    except (ValueError, TypeError):
        return True


def _event(
    kind: type[events.Event],
    challenge: Challenge,
    at: datetime,
    *,
    actor: str = "",
    reason: str = "",
    remote_addr: str = "",
    hostname: str | None = None,
) -> events.Event:
    """:param hostname: where the record has the stored name, also an empty one, instead of the shown one."""
    return kind(
        at=at,
        username=challenge.username,
        hostname=challenge.shown_host if hostname is None else hostname,
        code=challenge.user_code,
        actor=actor,
        reason=reason,
        remote_addr=remote_addr,
    )


def _entry(challenge: Challenge, action: str, at: datetime, *, actor: str = "", reason: str = "") -> HistoryEntry:
    return HistoryEntry(
        at=at,
        username=challenge.username,
        action=action,
        hostname=challenge.shown_host,
        code=challenge.user_code,
        actor=actor,
        reason=reason,
    )


def _live(challenge: Challenge, event: str) -> Live:
    return Live(event=event, username=challenge.username, challenge_id=challenge.id)


def opened(challenge: Challenge) -> Step:
    """A challenge that waits for people."""
    created = _event(
        events.ChallengeCreated,
        challenge,
        challenge.created_at,
        reason=challenge.reason,
        remote_addr=challenge.remote_addr,
        hostname=challenge.hostname,
    )
    return Step(challenge=challenge, events=(created,), live=(_live(challenge, "challenge_created"),))


def auto_approved(challenge: Challenge, now: datetime) -> Step:
    """A challenge that a valid grace session of its owner on its host approves at once; the session is not extended."""
    after = replace(challenge, status=Status.APPROVED, approved_by=challenge.username, approved_at=now)
    event = _event(
        events.AutoApproved, after, now, actor=after.username, reason=after.reason, remote_addr=after.remote_addr
    )
    return Step(
        challenge=after,
        events=(event,),
        history=(_entry(after, "auto_approved", now, reason=after.reason),),
        live=(_live(after, "challenge_resolved"),),
    )


def approve(
    challenge: Challenge,
    by: str,
    now: datetime,
    *,
    reason: str = "",
    remote_addr: str = "",
    grace: GraceMaker | None = None,
    superseded: bool = False,
    one_tap: bool = False,
    as_admin: bool = False,
) -> Step:
    """
    Count one approval; the one that completes the quorum resolves the challenge.

    :param by: directory name of the approver, already authorised.
    :param now: aware UTC; an approval at exactly ``expires_at`` is too late.
    :param reason: the approver's reason; the request's own stands in for an empty one.
    :param superseded: the owner's sessions were revoked after creation.
    :param as_admin: ``by`` is an administrator.
    :param one_tap: it comes by the challenge's one-tap link, which is used up by the approval that resolves it: with
        several approvals the link serves each approver once.
    :raise AlreadyResolved: no longer pending.
    :raise DuplicateApproval: ``by`` is already counted.
    :raise Superseded: see above.
    """
    _still_pending(challenge, now)
    if superseded:
        raise Superseded(challenge.id[:8])
    if challenge.approved_already(by):
        raise DuplicateApproval(by)
    said = reason or challenge.reason
    after = replace(challenge, approvals=(*challenge.approvals, Approval(approver=by, at=now, as_admin=as_admin)))
    if len(after.approvals) < after.required_approvals:
        partial = _event(events.PartialApproval, after, now, actor=by, reason=said, remote_addr=remote_addr)
        return Step(challenge=after, events=(partial,), live=(_live(after, "challenge_updated"),))
    after = replace(
        after, status=Status.APPROVED, approved_by=by, approved_at=now, one_tap_used=one_tap or after.one_tap_used
    )
    return Step(
        challenge=after,
        events=(_event(events.ChallengeApproved, after, now, actor=by, reason=said, remote_addr=remote_addr),),
        history=(_entry(after, "approved", now, actor=by, reason=said),),
        live=(_live(after, "challenge_resolved"),),
        grace=grace(after, now) if grace is not None else None,
    )


def withdraw(challenge: Challenge, by: str, now: datetime, *, remote_addr: str = "") -> Step:
    """
    Take one's approval back while others are still missing.

    :raise AlreadyResolved: no longer pending.
    :raise NotFound: ``by`` is not counted.
    """
    _still_pending(challenge, now)
    if not challenge.approved_already(by):
        raise NotFound
    kept = tuple(approval for approval in challenge.approvals if approval.approver.lower() != by.lower())
    after = replace(challenge, approvals=kept)
    return Step(
        challenge=after,
        events=(_event(events.ApprovalWithdrawn, after, now, actor=by, remote_addr=remote_addr),),
        live=(_live(after, "challenge_updated"),),
    )


def override(
    challenge: Challenge,
    by: str,
    now: datetime,
    *,
    reason: str = "",
    remote_addr: str = "",
    grace: GraceMaker | None = None,
    superseded: bool = False,
) -> Step:
    """
    An administrator approves at once what the policy would not let pass yet; whether the policy permits that is known
    already.

    :raise AlreadyResolved: no longer pending.
    :raise Superseded: the owner's sessions were revoked after creation.
    """
    _still_pending(challenge, now)
    if superseded:
        raise Superseded(challenge.id[:8])
    approvals = challenge.approvals
    if not challenge.approved_already(by):
        approvals = (*approvals, Approval(approver=by, at=now, as_admin=True))
    after = replace(
        challenge, status=Status.APPROVED, approved_by=by, approved_at=now, overridden=True, approvals=approvals
    )
    return Step(
        challenge=after,
        events=(_event(events.BreakGlassOverride, after, now, actor=by, reason=reason, remote_addr=remote_addr),),
        history=(_entry(after, "breakglass_override", now, actor=by, reason=reason),),
        live=(_live(after, "challenge_resolved"),),
        grace=grace(after, now) if grace is not None else None,
    )


def deny(challenge: Challenge, by: str, now: datetime, *, reason: str = "", remote_addr: str = "") -> Step:
    """
    Refuse it, whatever approvals it has.

    :raise AlreadyResolved: no longer pending.
    """
    _still_pending(challenge, now)
    after = replace(challenge, status=Status.DENIED, denied_by=by, deny_reason=reason)
    return Step(
        challenge=after,
        events=(_event(events.ChallengeRejected, after, now, actor=by, reason=reason, remote_addr=remote_addr),),
        history=(_entry(after, "rejected", now, actor=by, reason=reason or after.reason),),
        live=(_live(after, "challenge_resolved"),),
    )


def cancel(challenge: Challenge, now: datetime, *, remote_addr: str = "") -> Step:
    """
    The person at the terminal gave up.

    :raise AlreadyResolved: no longer pending.
    """
    _still_pending(challenge, now)
    after = replace(challenge, status=Status.CANCELLED)
    cancelled = _event(events.ChallengeCancelled, after, now, actor=after.username, remote_addr=remote_addr)
    return Step(
        challenge=after,
        events=(cancelled,),
        history=(_entry(after, "cancelled", now, reason=after.reason),),
        live=(_live(after, "challenge_resolved"),),
    )


def expire(challenge: Challenge, now: datetime) -> Step:
    """
    Nobody decided in time. No history entry (spec/storage section 4).

    :raise AlreadyResolved: decided, or not yet over.
    """
    if challenge.status is not Status.PENDING or challenge.live(now):
        raise AlreadyResolved(challenge.id[:8])
    after = replace(challenge, status=Status.EXPIRED)
    return Step(
        challenge=after,
        events=(_event(events.ChallengeExpired, after, now, hostname=after.hostname),),
        live=(_live(after, "challenge_resolved"),),
    )
