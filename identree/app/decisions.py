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
from identree.core import challenge as moves
from identree.core import durations, events, tokens
from identree.core.challenge import UNKNOWN_HOST, Challenge, GraceSession, HistoryEntry, Live, Status, Step
from identree.core.errors import (
    AdminRequired,
    AlreadyResolved,
    FreshLoginRequired,
    JustificationRequired,
    NotFound,
    OutsideWindow,
    Refused,
)
from identree.core.policy import Policies
from identree.storage.interface import GraceChange, Store

# What one press of approve-all or reject-all acts on at most; a user may have ten pending.
BULK_LIMIT = 100
LONGEST_EXTENSION = timedelta(days=7)


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


class Decisions:
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
    ) -> None:
        self._store = store
        self._hosts = hosts
        self._keys = keys
        self._rules = rules
        self._policies = policies
        self._now = now
        self._journal = journal
        self._metrics = metrics

    # -- looking ------------------------------------------------------------------------------------------------------
    async def by_code(self, caller: Caller, user_code: str) -> Challenge:
        """
        The pending challenge of a code that the caller may decide.

        :raise NotFound: unknown, decided, expired, or another person's: all the same.
        """
        challenge = await self._store.challenge_by_code(user_code)
        if challenge is None or not challenge.live(self._now()) or not _visible(challenge, caller):
            raise NotFound
        return challenge

    async def followed(self, caller: Caller, id: str) -> Challenge:
        """
        What became of a challenge that the caller has in front of him, decided or not.

        :param id: the secret handle, known only from a page that showed the pending challenge to the caller.
        :raise NotFound: unknown, deleted, or another person's.
        """
        challenge = await self._store.challenge(id)
        if challenge is None or not _visible(challenge, caller):
            raise NotFound
        return challenge

    async def code_is_pending(self, user_code: str) -> bool:
        """Whether there is anything to sign in for; tells a stranger who has the code no more than that."""
        challenge = await self._store.challenge_by_code(user_code)
        return challenge is not None and challenge.live(self._now())

    async def pending(self, caller: Caller) -> list[Challenge]:
        """The caller's; an admin's list is everybody's. Soonest expiry first."""
        return await self._store.pending_challenges(None if caller.is_admin else caller.username, self._now())

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
    async def approve(self, caller: Caller, id: str, *, reason: str = "", address: str = "") -> Outcome:
        """
        :raise NotFound: unknown, not pending, or not the caller's to see.
        :raise AdminRequired, OutsideWindow, FreshLoginRequired: a policy says no.
        :raise JustificationRequired: neither the request nor the approver gave a reason.
        :raise DuplicateApproval: the caller is already counted.
        :raise Superseded: the owner's sessions were revoked after the challenge was created.
        """
        now = self._now()
        last_login = await self._store.last_login(caller.username)
        try:
            step = await self._store.decide(
                id, lambda c, revoked_at: self._approval(caller, c, revoked_at, last_login, now, reason, address)
            )
        except (OutsideWindow, FreshLoginRequired) as refusal:
            await self._log_refusal(caller, id, refusal)
            raise
        self._metrics.happened(step)
        challenge = step.challenge
        if step.resolved:
            self._journal.info(
                "BULK_APPROVED",
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
        return Outcome(challenge=challenge, grace_until=step.grace.expires_at if step.grace else None)

    async def approve_all(self, caller: Caller, *, address: str = "") -> list[Outcome]:
        """
        Approve the caller's own pending requests; those that a rule refuses are left as they are, by the same checks
        as a single approval.
        """
        outcomes = []
        for challenge in await self._store.pending_challenges(caller.username, self._now(), BULK_LIMIT):
            try:
                outcomes.append(await self.approve(caller, challenge.id, address=address))
            except Refused:
                continue
        return outcomes

    async def reject(self, caller: Caller, id: str, *, reason: str = "", address: str = "") -> Outcome:
        """:raise NotFound: unknown, not pending, or not the caller's to see."""
        now = self._now()

        def change(challenge: Challenge, revoked_at: datetime | None) -> Step:
            _must_see(challenge, caller, now)
            return moves.deny(challenge, caller.username, now, reason=reason, remote_addr=address)

        step = await self._store.decide(id, change)
        self._metrics.happened(step)
        self._journal.info(
            "REJECTED",
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
                outcomes.append(await self.reject(caller, challenge.id, reason=reason, address=address))
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
        End all grace sessions of one person; of everybody when an admin names nobody.

        :returns: how many there were.
        """
        now = self._now()
        if owner or not caller.is_admin:
            owners = [self._owner(caller, owner)]
        else:
            owners = sorted({row.username for row in await self._store.grace_sessions(None, now)})
        total = 0
        for name in owners:
            total += await self._revoke_all_of(caller, name, now, address)
        return total

    async def _revoke_all_of(self, caller: Caller, owner: str, now: datetime, address: str) -> int:
        def describe(hostnames: Sequence[str]) -> GraceChange:
            if not hostnames:
                return GraceChange(session=None)
            return GraceChange(
                session=None,
                events=(
                    events.SessionsRevokedBulk(at=now, username=owner, actor=caller.username, remote_addr=address),
                ),
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
        return await self._extend(caller, owner, hostname, seconds, address, (told,))

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
        address: str,
        told: tuple[events.SessionExtended, ...],
    ) -> GraceSession:
        """:param told: events that commit with it."""
        now = self._now().replace(microsecond=0)
        longest = min(self._rules().grace_period, LONGEST_EXTENSION)
        wanted = longest if seconds is None or seconds <= 0 else min(timedelta(seconds=seconds), longest)

        def change(row: GraceSession | None) -> GraceChange:
            if (
                wanted <= timedelta(0)
                or row is None
                or row.expires_at <= now
                or not tokens.grace_valid(self._keys.grace, row)
            ):
                raise NotFound
            session = self._signed(replace(row, expires_at=max(row.expires_at, now + wanted)))
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
        self._journal.info(
            "EXTENDED",
            user=owner,
            host=hostname or UNKNOWN_HOST,
            remaining=f"{done.session.remaining_seconds(now)}s",
            remote_addr=address,
        )
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
                await self._extend(caller, owner, row.hostname, None, address, untold)
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
    def _approval(
        self,
        caller: Caller,
        challenge: Challenge,
        revoked_at: datetime | None,
        last_login: datetime | None,
        now: datetime,
        reason: str,
        address: str,
    ) -> Step:
        _must_see(challenge, caller, now)
        if challenge.require_admin and not caller.is_admin:
            raise AdminRequired
        rules = self._rules()
        if challenge.policy_name:
            group = self._hosts.group(challenge.hostname)
            requirement = self._policies().requirement(challenge.username, challenge.hostname, group, now)
            if not requirement.window_ok:
                raise OutsideWindow(requirement.window)
            fresh = requirement.require_fresh
            if fresh is not None and (last_login is None or now - last_login > fresh):
                raise FreshLoginRequired(durations.render(fresh))
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
        )

    async def _log_refusal(self, caller: Caller, id: str, refusal: OutsideWindow | FreshLoginRequired) -> None:
        challenge = await self._store.challenge(id)
        if challenge is None:
            return
        if isinstance(refusal, OutsideWindow):
            self._journal.warn(
                "APPROVAL_REJECTED outside time window",
                user=challenge.username,
                host=challenge.hostname,
                policy=challenge.policy_name,
                window=refusal.detail,
            )
        else:
            self._journal.warn(
                "APPROVAL_REJECTED stale OIDC auth",
                approver=caller.username,
                host=challenge.hostname,
                policy=challenge.policy_name,
                require_fresh=refusal.detail,
            )

    def _grace(self, username: str, hostname: str, now: datetime) -> GraceSession | None:
        period = self._rules().grace_period
        if period <= timedelta(0):
            return None
        expires_at = now.replace(microsecond=0) + period
        return self._signed(GraceSession(username=username, hostname=hostname, expires_at=expires_at))

    def _signed(self, session: GraceSession) -> GraceSession:
        mac = tokens.grace_mac(
            self._keys.grace, session.username, session.hostname, int(session.expires_at.timestamp())
        )
        return replace(session, mac=mac)

    @staticmethod
    def _owner(caller: Caller, owner: str) -> str:
        return owner if owner and caller.is_admin else caller.username


def _visible(challenge: Challenge, caller: Caller) -> bool:
    return caller.is_admin or caller.username == challenge.username


def _must_see(challenge: Challenge, caller: Caller, now: datetime) -> None:
    """What is not the caller's answers like what does not exist."""
    if not _visible(challenge, caller):
        raise NotFound
    if not challenge.live(now):
        raise AlreadyResolved
