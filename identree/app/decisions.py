"""
What a signed-in person can decide: challenges and grace sessions (spec/http-api section 8, spec/web-ui section 6.3).

Authorisation is decided here, inside the transaction that acts on it; handlers only say who is asking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from identree.app.hosts import Hosts
from identree.app.journal import Journal, short
from identree.app.metrics import Metrics
from identree.app.people import Caller
from identree.app.ports import Now
from identree.app.rules import Rules
from identree.app.trail import Trail
from identree.core import challenge as moves
from identree.core import durations, events, tokens, verdict
from identree.core.challenge import UNKNOWN_HOST, Challenge, GraceSession, HistoryEntry, Live, Status, Step
from identree.core.errors import (
    AccountDisabled,
    AdminRequired,
    AlreadyResolved,
    DuplicateApproval,
    FreshLoginRequired,
    JustificationRequired,
    NotAnApprover,
    NotFound,
    OneTapUsed,
    OutsideWindow,
    OverrideNotAllowed,
    Refused,
    SelfApprovalForbidden,
    Superseded,
)
from identree.core.policy import Policies, Requirement
from identree.core.verdict import Approver
from identree.storage.interface import Change, GraceChange, Store

# What one press of approve-all or reject-all acts on at most; a user may have ten pending.
BULK_LIMIT = 100
LONGEST_EXTENSION = timedelta(days=7)
# Names of those who may approve that a page shows.
MOST_NAMES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    A committed decision.

    :ivar grace_until: the end of the grace session that the approval left behind, None without one.
    """

    challenge: Challenge
    grace_until: datetime | None = None

    @property
    def complete(self) -> bool:
        return self.challenge.status is not Status.PENDING


@dataclass(frozen=True, slots=True, kw_only=True)
class WhoMay:
    """
    Who else may approve a request.

    :ivar names: some of them, by name. :ivar more: how many others.
    :ivar known: False: there is no directory that would say; then the names are none.
    """

    names: tuple[str, ...] = ()
    more: int = 0
    known: bool = False


class Decisions:
    """
    :param trail: gets the audit records of approvals that a rule refused; None: there are none.
    :param disabled: whether the directory says that a person's account is disabled.
    :param roster: administrators and members of the groups that policies name, as far as a directory knows them.
    """

    def __init__(
        self,
        *,
        store: Store,
        hosts: Hosts,
        keys: tokens.Keys,
        rules: Callable[[], Rules],
        policies: Callable[[], Policies],
        now: Now,
        journal: Journal,
        metrics: Metrics,
        trail: Trail | None = None,
        disabled: Callable[[str], bool] = lambda username: False,
        roster: Callable[[], Sequence[Approver]] = list,
    ) -> None:
        self._disabled = disabled
        self._roster = roster
        self._store = store
        self._hosts = hosts
        self._keys = keys
        self._rules = rules
        self._policies = policies
        self._now = now
        self._journal = journal
        self._metrics = metrics
        self._trail = trail

    # -- looking ------------------------------------------------------------------------------------------------------
    async def by_code(self, caller: Caller, user_code: str) -> Challenge:
        """
        The pending challenge of a code that the caller may decide.

        :raise NotFound: unknown, decided, expired, or another person's: all the same.
        """
        challenge = await self._store.challenge_by_code(user_code)
        if challenge is None or not challenge.live(self._now()) or not verdict.may_see(challenge, caller.approver):
            raise NotFound
        return challenge

    async def followed(self, caller: Caller, id: str) -> Challenge:
        """
        What became of a challenge that the caller has in front of him, decided or not.

        :param id: the secret handle, known only from a page that showed the pending challenge to the caller.
        :raise NotFound: unknown, deleted, or another person's.
        """
        challenge = await self._store.challenge(id)
        if challenge is None or not verdict.may_see(challenge, caller.approver):
            raise NotFound
        return challenge

    async def code_is_pending(self, user_code: str) -> bool:
        """Whether there is anything to sign in for; tells a stranger who has the code no more than that."""
        challenge = await self._store.challenge_by_code(user_code)
        return challenge is not None and challenge.live(self._now())

    async def pending(self, caller: Caller) -> list[Challenge]:
        """
        The caller's, and those that the caller may approve as a member of a group; an admin's list is everybody's.
        Soonest expiry first.
        """
        if caller.is_admin or not self.follows_all(caller):
            return await self._store.pending_challenges(None if caller.is_admin else caller.username, self._now())
        approver = caller.approver
        everybody = await self._store.pending_challenges(None, self._now())
        return [challenge for challenge in everybody if verdict.may_see(challenge, approver)]

    def follows_all(self, caller: Caller) -> bool:
        """Whether requests of others may concern the caller."""
        return caller.is_admin or not caller.groups.isdisjoint(self._policies().approver_groups)

    def requirement_now(self, challenge: Challenge) -> Requirement:
        """What the policies say now about the same user, host and command."""
        group = self._hosts.group(challenge.hostname)
        return self._policies().requirement(
            challenge.username, challenge.hostname, group, self._now(), challenge.context.command
        )

    async def known(self, caller: Caller) -> Caller:
        """The caller, with the time of the last sign-in where the browser session does not know its own."""
        if caller.authenticated_at is not None:
            return caller
        return replace(caller, authenticated_at=await self._store.last_login(caller.username))

    def obstacle(self, caller: Caller, challenge: Challenge) -> Refused | None:
        """Why the caller's approval would not count now; None: it would. For pages; asked again when it is given."""
        try:
            verdict.may_approve(
                challenge,
                caller.approver,
                self.requirement_now(challenge),
                self._now(),
                owner_disabled=self._disabled(challenge.username),
            )
        except Refused as refusal:
            return refusal
        return None

    def who_may(self, caller: Caller, challenge: Challenge) -> WhoMay:
        """Who beside the caller may approve it."""
        people = self._roster()
        if not people:
            return WhoMay()
        owner = Approver(username=challenge.username, is_admin=False)
        if all(person.username != owner.username for person in people):
            people = [*people, owner]
        others = [name for name in verdict.approvers_of(challenge, people) if name != caller.username]
        return WhoMay(names=tuple(others[:MOST_NAMES]), more=max(0, len(others) - MOST_NAMES), known=True)

    async def grace_sessions(self, caller: Caller) -> list[GraceSession]:
        """The caller's own, verified; an admin's list is everybody's."""
        rows = await self._store.grace_sessions(None if caller.is_admin else caller.username, self._now())
        return [row for row in rows if tokens.grace_valid(self._keys.grace, row)]

    async def activity(self, caller: Caller, limit: int = 10) -> list[HistoryEntry]:
        """The newest entries of the caller's own history."""
        return await self._store.history(caller.username, limit)

    def grace_period(self) -> timedelta:
        return self._rules().grace_period

    def justification(self) -> tuple[bool, tuple[str, ...]]:
        """Whether a reason is required, and the offered ones."""
        rules = self._rules()
        return rules.require_justification, rules.justification_choices

    # -- deciding -----------------------------------------------------------------------------------------------------
    async def approve(
        self, caller: Caller, id: str, *, reason: str = "", address: str = "", one_tap: bool = False
    ) -> Outcome:
        """
        :param one_tap: it comes by the challenge's one-tap link.
        :raise NotFound: unknown, not pending, or not the caller's to see.
        :raise AdminRequired, SelfApprovalForbidden, NotAnApprover, OutsideWindow, FreshLoginRequired: a policy says no.
        :raise AccountDisabled: the requester's is.
        :raise OneTapUsed: the link has approved already.
        :raise JustificationRequired: neither the request nor the approver gave a reason.
        :raise DuplicateApproval: the caller is already counted.
        :raise Superseded: the owner's sessions were revoked after the challenge was created.
        """
        outcome = await self._approve(caller, id, reason, address, one_tap)
        challenge = outcome.challenge
        if outcome.complete:
            self._journal.info(
                "ONETAP_APPROVED" if one_tap else "BULK_APPROVED",
                user=challenge.username,
                approver=caller.username,
                host=challenge.shown_host,
                challenge=short(id),
                remote_addr=address,
            )
        else:
            self._journal.info(
                "PARTIAL_APPROVAL",
                user=challenge.username,
                approver=caller.username,
                host=challenge.shown_host,
                challenge=short(id),
                approvals=len(challenge.approvals),
                required=challenge.required_approvals,
                remote_addr=address,
            )
        return outcome

    async def approve_all(self, caller: Caller, *, address: str = "") -> list[Outcome]:
        """
        Approve the caller's own pending requests; those that a rule refuses are left as they are, by the same checks
        as a single approval.
        """
        outcomes = []
        for challenge in await self._store.pending_challenges(caller.username, self._now(), BULK_LIMIT):
            try:
                outcome = await self._approve(caller, challenge.id, "", address, False)
            except Refused:
                continue
            outcomes.append(outcome)
            approver = {} if outcome.complete else {"approver": caller.username}
            self._journal.info(
                "BULK_APPROVE_ALL" if outcome.complete else "BULK_APPROVE_ALL_PARTIAL",
                user=challenge.username,
                host=challenge.shown_host,
                challenge=short(challenge.id),
                **approver,
                remote_addr=address,
            )
        return outcomes

    async def left_to_approve(self, caller: Caller) -> int:
        """How many of the caller's own requests wait for the caller's approval."""
        own = await self._store.pending_challenges(caller.username, self._now(), BULK_LIMIT)
        return sum(not challenge.approved_already(caller.username) for challenge in own)

    async def _approve(self, caller: Caller, id: str, reason: str, address: str, one_tap: bool) -> Outcome:
        now = self._now()
        approver = await self._approver(caller)

        def change(challenge: Challenge, revoked_at: datetime | None) -> Step:
            _must_see(challenge, approver, now)
            if one_tap and challenge.one_tap_used:
                raise OneTapUsed
            required = self.requirement_now(challenge)
            disabled = self._disabled(challenge.username)
            verdict.may_approve(challenge, approver, required, now, owner_disabled=disabled)
            rules = self._rules()
            if rules.require_justification and not (reason or challenge.reason):
                raise JustificationRequired(rules.justification_choices)
            return moves.approve(
                challenge,
                caller.username,
                now,
                reason=reason,
                remote_addr=address,
                grace=self._grace,
                superseded=moves.superseded(challenge, revoked_at),
                one_tap=one_tap,
                as_admin=caller.is_admin,
            )

        return await self._decide(caller, id, change, address)

    async def _decide(self, caller: Caller, id: str, change: Change, address: str) -> Outcome:
        seen: list[Challenge] = []

        def watched(challenge: Challenge, revoked_at: datetime | None) -> Step:
            seen.append(challenge)
            return change(challenge, revoked_at)

        try:
            keeps = self._rules().client.token_cache_enabled is not False
            step = await self._store.decide(id, watched, session=caller.nonce if keeps else "")
        except Refused as refusal:
            if seen:
                self._tell_refusal(caller, seen[-1], refusal, address)
            raise
        self._metrics.happened(step)
        return Outcome(challenge=step.challenge, grace_until=step.grace.expires_at if step.grace else None)

    async def _approver(self, caller: Caller) -> Approver:
        """A browser session of an earlier version does not know when its person signed in."""
        return (await self.known(caller)).approver

    async def withdraw(self, caller: Caller, id: str, *, address: str = "") -> Challenge:
        """
        Take one's own approval back, as long as others are missing.

        :raise NotFound: unknown, decided, not the caller's to see, or the caller is not counted.
        """
        now = self._now()
        approver = await self._approver(caller)

        def change(challenge: Challenge, revoked_at: datetime | None) -> Step:
            _must_see(challenge, approver, now)
            return moves.withdraw(challenge, caller.username, now, remote_addr=address)

        step = await self._store.decide(id, change)
        challenge = step.challenge
        self._journal.info(
            "APPROVAL_WITHDRAWN",
            user=challenge.username,
            approver=caller.username,
            host=challenge.shown_host,
            challenge=short(id),
            approvals=len(challenge.approvals),
            required=challenge.required_approvals,
            remote_addr=address,
        )
        return challenge

    async def override(self, caller: Caller, id: str, *, reason: str, address: str = "") -> Outcome:
        """
        Approve at once over window, number of approvals and freshness, where the policy lets administrators do that.

        :param reason: must say something; it goes into the audit record.
        :raise AdminRequired: not an administrator, whatever the id.
        :raise NotFound: unknown or not pending.
        :raise OverrideNotAllowed, SelfApprovalForbidden, AccountDisabled: see there.
        :raise JustificationRequired: no reason.
        """
        if not caller.is_admin:
            raise AdminRequired
        now = self._now()
        approver = await self._approver(caller)

        def change(challenge: Challenge, revoked_at: datetime | None) -> Step:
            _must_see(challenge, approver, now)
            verdict.may_override(challenge, approver, owner_disabled=self._disabled(challenge.username))
            if not reason:
                raise JustificationRequired(self._rules().justification_choices)
            return moves.override(
                challenge,
                caller.username,
                now,
                reason=reason,
                remote_addr=address,
                grace=self._grace,
                superseded=moves.superseded(challenge, revoked_at),
            )

        outcome = await self._decide(caller, id, change, address)
        challenge = outcome.challenge
        self._journal.warn(
            "BREAK_GLASS_OVERRIDE",
            user=challenge.username,
            approver=caller.username,
            host=challenge.shown_host,
            challenge=short(id),
            policy=challenge.policy_name,
            remote_addr=address,
        )
        return outcome

    async def reject(self, caller: Caller, id: str, *, reason: str = "", address: str = "") -> Outcome:
        """:raise NotFound: unknown, not pending, or not the caller's to see."""
        return await self._reject("REJECTED", caller, id, reason, address)

    async def _reject(self, marker: str, caller: Caller, id: str, reason: str, address: str) -> Outcome:
        now = self._now()
        approver = caller.approver

        def change(challenge: Challenge, revoked_at: datetime | None) -> Step:
            _must_see(challenge, approver, now)
            return moves.deny(challenge, caller.username, now, reason=reason, remote_addr=address)

        step = await self._store.decide(id, change)
        self._metrics.happened(step)
        self._journal.info(
            marker,
            user=step.challenge.username,
            host=step.challenge.shown_host,
            challenge=short(id),
            reason=reason,
            remote_addr=address,
        )
        return Outcome(challenge=step.challenge)

    async def reject_all(self, caller: Caller, *, reason: str = "", address: str = "") -> list[Outcome]:
        """Reject the caller's own pending requests."""
        outcomes = []
        for challenge in await self._store.pending_challenges(caller.username, self._now(), BULK_LIMIT):
            try:
                outcomes.append(await self._reject("BULK_REJECT_ALL", caller, challenge.id, reason, address))
            except Refused:
                continue
        return outcomes

    # -- grace sessions -----------------------------------------------------------------------------------------------
    async def revoke(self, caller: Caller, hostname: str, *, owner: str = "", address: str = "") -> str:
        """
        End one grace session; the owner's cached tokens and older pending requests end with it.

        :param hostname: normalised; empty for the session without a host.
        :param owner: whose; only admins may name somebody else, others mean themselves.
        :returns: the owner.
        """
        owner = self._owner(caller, owner)
        now = self._now()

        def describe(hostnames: Sequence[str]) -> GraceChange:
            shown = hostname or UNKNOWN_HOST
            return GraceChange(
                session=None,
                events=(
                    events.SessionRevoked(
                        at=now, username=owner, hostname=shown, actor=caller.username, remote_addr=address
                    ),
                ),
                history=(
                    HistoryEntry(at=now, username=owner, action="revoked", hostname=shown, actor=caller.username),
                ),
                live=(Live(event="session_changed", username=owner),),
            )

        await self._store.revoke_grace(owner, [hostname], now, describe)
        self._journal.info("SESSION_REVOKED", user=owner, host=hostname or UNKNOWN_HOST, remote_addr=address)
        if owner != caller.username:
            self._journal.warn(
                "CROSS_USER_SESSION_REVOKE",
                actor=caller.username,
                target_user=owner,
                host=hostname or UNKNOWN_HOST,
                remote_addr=address,
            )
        return owner

    async def revoke_all(self, caller: Caller, *, owner: str = "", address: str = "") -> int:
        """
        End all grace sessions of one person; of everybody when an admin names nobody. One event if there was any, that
        commits with the first person's.

        :returns: how many there were.
        """
        now = self._now()
        everybody = caller.is_admin and not owner
        subject = "" if everybody else self._owner(caller, owner)
        event = events.SessionsRevokedBulk(at=now, username=subject, actor=caller.username, remote_addr=address)
        untold: tuple[events.SessionsRevokedBulk, ...] = (event,)
        done: set[str] = set()
        total = 0
        while True:
            # a page of sessions at a time: those of a page are gone when the next one is read
            owners = {row.username for row in await self._store.grace_sessions(None, now)} if everybody else {subject}
            if owners <= done:
                return total
            for name in sorted(owners - done):
                revoked = await self._revoke_all_of(caller, name, now, address, untold)
                if revoked:
                    untold = ()
                total += revoked
            done |= owners

    async def _revoke_all_of(
        self,
        caller: Caller,
        owner: str,
        now: datetime,
        address: str,
        told: tuple[events.SessionsRevokedBulk, ...],
    ) -> int:
        """:param told: events that commit with it, if there was a session."""

        def describe(hostnames: Sequence[str]) -> GraceChange:
            if not hostnames:
                return GraceChange(session=None)
            return GraceChange(
                session=None,
                events=told,
                history=tuple(
                    HistoryEntry(
                        at=now,
                        username=owner,
                        action="revoked",
                        hostname=name or UNKNOWN_HOST,
                        actor=caller.username,
                    )
                    for name in hostnames
                ),
                live=(Live(event="session_changed", username=owner),),
            )

        revoked = await self._store.revoke_grace(owner, None, now, describe)
        for name in revoked:
            self._journal.info("BULK_REVOKE_ALL", user=owner, host=name or UNKNOWN_HOST, remote_addr=address)
        return len(revoked)

    async def extend(
        self, caller: Caller, hostname: str, *, seconds: int | None = None, owner: str = "", address: str = ""
    ) -> GraceSession:
        """
        Move the end of a grace session to ``seconds`` from now, or as far as it goes. Never shortens, never revives.

        :param seconds: None means the whole grace period.
        :raise NotFound: there is no valid session, or grace is off.
        """
        owner = self._owner(caller, owner)
        told = self._extended(caller, owner, hostname or UNKNOWN_HOST, address)
        session = await self._extend(caller, owner, hostname, seconds, (told,))
        remaining = timedelta(seconds=session.remaining_seconds(self._now().replace(microsecond=0)))
        self._journal.info(
            "EXTENDED",
            user=owner,
            host=session.shown_host,
            remaining=durations.render(remaining),
            remote_addr=address,
        )
        return session

    def _extended(self, caller: Caller, owner: str, shown: str, address: str) -> events.SessionExtended:
        now = self._now().replace(microsecond=0)
        return events.SessionExtended(
            at=now, username=owner, hostname=shown, actor=caller.username, remote_addr=address
        )

    async def _extend(
        self,
        caller: Caller,
        owner: str,
        hostname: str,
        seconds: int | None,
        told: tuple[events.SessionExtended, ...],
    ) -> GraceSession:
        """:param told: events that commit with it."""
        now = self._now().replace(microsecond=0)
        longest = min(self._longest_grace(owner, hostname), LONGEST_EXTENSION)
        wanted = longest if seconds is None or seconds <= 0 else min(timedelta(seconds=seconds), longest)

        def change(row: GraceSession | None) -> GraceChange:
            if (
                wanted <= timedelta(0)
                or row is None
                or row.expires_at <= now
                or not tokens.grace_valid(self._keys.grace, row)
            ):
                raise NotFound
            ends = max(row.expires_at, now + wanted)
            session = tokens.signed_grace(
                self._keys.grace,
                replace(row, expires_at=ends, strength=tokens.grace_strength(self._keys.grace, row)),
            )
            shown = hostname or UNKNOWN_HOST
            return GraceChange(
                session=session,
                events=told,
                history=(
                    HistoryEntry(at=now, username=owner, action="extended", hostname=shown, actor=caller.username),
                ),
                live=(Live(event="session_changed", username=owner),),
            )

        done = await self._store.change_grace(owner, hostname, change)
        assert done.session is not None
        return done.session

    async def extend_all(self, caller: Caller, *, owner: str = "", address: str = "") -> tuple[int, datetime]:
        """
        Extend all grace sessions of one person to the whole grace period: one event, also when there are none, that
        commits with the first.

        :returns: how many, and the new end.
        """
        owner = self._owner(caller, owner)
        now = self._now().replace(microsecond=0)
        count = 0
        untold: tuple[events.SessionExtended, ...] = (self._extended(caller, owner, "", address),)
        for row in await self._store.grace_sessions(owner, now):
            try:
                await self._extend(caller, owner, row.hostname, None, untold)
            except NotFound:
                continue
            untold = ()
            count += 1
        if untold:
            nothing = GraceChange(session=None, events=untold, live=(Live(event="session_changed", username=owner),))
            await self._store.change_grace(owner, "", lambda row: nothing)
        self._journal.info("BULK_EXTEND_ALL", user=caller.username, count=count, target_user=owner, remote_addr=address)
        return count, now + self._rules().grace_period

    # -- inside -------------------------------------------------------------------------------------------------------
    def _longest_grace(self, username: str, hostname: str) -> timedelta:
        """How long a session of this person there may be: what the server and the present policy allow."""
        period = self._rules().grace_period
        required = self._policies().requirement(username, hostname, self._hosts.group(hostname), self._now())
        return period if required.max_grace is None else min(period, required.max_grace)

    def _tell_refusal(self, caller: Caller, challenge: Challenge, refusal: Refused, address: str) -> None:
        """Into the log what the contract has a line for, into the audit trail whatever a rule refused."""
        if isinstance(refusal, OutsideWindow):
            self._journal.warn(
                "APPROVAL_REJECTED outside time window",
                user=challenge.username,
                host=challenge.hostname,
                policy=challenge.policy_name,
                window=refusal.detail,
            )
        elif isinstance(refusal, FreshLoginRequired):
            self._journal.warn(
                "APPROVAL_REJECTED stale OIDC auth",
                approver=caller.username,
                host=challenge.hostname,
                policy=challenge.policy_name,
                require_fresh=refusal.detail,
            )
        rule = _refusing_rule(caller, challenge, refusal)
        if rule and self._trail is not None:
            self._trail.note(
                events.ApprovalRefused,
                username=challenge.username,
                hostname=challenge.shown_host,
                code=challenge.user_code,
                actor=caller.username,
                reason=rule,
                remote_addr=address,
            )

    def _grace(self, challenge: Challenge, now: datetime) -> GraceSession | None:
        period = self._rules().grace_period
        if challenge.max_grace is not None:
            period = min(period, challenge.max_grace)
        if period <= timedelta(0):
            return None
        return tokens.signed_grace(
            self._keys.grace,
            GraceSession(
                username=challenge.username,
                hostname=challenge.hostname,
                expires_at=now.replace(microsecond=0) + period,
                strength=challenge.strength,
            ),
        )

    @staticmethod
    def _owner(caller: Caller, owner: str) -> str:
        return owner if owner and caller.is_admin else caller.username


def _refusing_rule(caller: Caller, challenge: Challenge, refusal: Refused) -> str:
    """Which rule refused an approval; empty where none did: it came too late, or its form lacked something."""
    if not verdict.may_see(challenge, caller.approver):
        return "neither the own request nor an admin"
    policy = f" (policy {challenge.policy_name})" if challenge.policy_name else ""
    if isinstance(refusal, OutsideWindow):
        return f"outside the time window {refusal.detail}{policy}"
    if isinstance(refusal, FreshLoginRequired):
        return f"no sign-in within {refusal.detail}{policy}"
    if isinstance(refusal, AdminRequired):
        return f"not an admin{policy}"
    if isinstance(refusal, SelfApprovalForbidden):
        return f"the own request{policy}"
    if isinstance(refusal, NotAnApprover):
        return f"in none of the groups {refusal.detail}{policy}"
    if isinstance(refusal, OverrideNotAllowed):
        return f"no override{policy}"
    if isinstance(refusal, AccountDisabled):
        return "the requester's account is disabled"
    if isinstance(refusal, DuplicateApproval):
        return f"already approved by the same person{policy}"
    if isinstance(refusal, Superseded):
        return "older than the last revocation of the owner's sessions"
    return ""


def _must_see(challenge: Challenge, approver: Approver, now: datetime) -> None:
    """What is not the caller's answers like what does not exist."""
    if not verdict.may_see(challenge, approver):
        raise NotFound
    if not challenge.live(now):
        raise AlreadyResolved
