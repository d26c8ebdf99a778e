"""
What a host can ask for: a challenge, its state, its end, and the state of the grace session (spec/http-api section 7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from twisted.internet.defer import Deferred

from identree.app.hosts import GRACE_STATUS, Credential, Hosts
from identree.app.idtokens import IdTokens
from identree.app.journal import Journal, short
from identree.app.metrics import Metrics
from identree.app.ports import Now
from identree.app.rules import Rules
from identree.app.waiters import Waiters
from identree.core import challenge as moves
from identree.core import durations, tokens
from identree.core.challenge import Challenge, HostContext, Status, Step
from identree.core.errors import AlreadyResolved, Gone, JustificationRequired, TooManyPending
from identree.core.explanation import Clause, Explanation
from identree.core.policy import Policies
from identree.core.verdict import grace_suffices
from identree.storage.interface import Caps, OwnerState, Store

# A taken user code is one in 1.4e14; a handful of candidates makes a collision impossible in practice.
CODE_CANDIDATES = 4
CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
SHORTEST_POLL_INTERVAL = timedelta(seconds=1)


def instant_text(at: datetime | None) -> str:
    """RFC 3339 with whole seconds and ``Z``, or empty: the form of the snapshots that are hashed into tokens."""
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A creation request whose parts are valid each (``identree.core.names``)."""

    username: str
    hostname: str
    reason: str = ""
    context: HostContext = field(default_factory=HostContext)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """
    :ivar expires_in: seconds, the whole life.
    :ivar approval_token: form A, empty unless the challenge is approved already and the host can verify it.
    :ivar grace_remaining: seconds that its grace session still has, when approved by it.
    :ivar client_config: pushed settings by their wire names; empty when nothing is pushed.
    """

    challenge: Challenge
    expires_in: int
    verification_url: str
    notification_queued: bool
    client_config: dict[str, object]
    grace_remaining: int = 0
    approval_token: str = ""
    approval_token_derived: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Polled:
    """
    :ivar token: form A over the decided status; empty while pending or when the host could not verify it.
    :ivar remaining: seconds.
    :ivar id_token: the owner's, for the host's token cache; empty: none.
    """

    challenge: Challenge
    remaining: int
    grace_remaining: int = 0
    token: str = ""
    token_derived: str = ""
    may_tell: bool = False
    id_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraceStatus:
    """:ivar revoke_tokens_before: RFC 3339, empty when the user was never revoked."""

    remaining: int
    revoke_tokens_before: str


class Challenges:
    """
    :param token: returns n random bytes as hex (``secrets.token_hex``).
    :param below: a uniform random integer below n, from a CSPRNG (``secrets.randbelow``).
    :param id_tokens: opens what approvals keep for hosts; None: nothing is handed on.
    :param disabled: whether the directory says that a person's account is disabled: no grace session counts then.
    """

    def __init__(
        self,
        *,
        store: Store,
        hosts: Hosts,
        waiters: Waiters,
        keys: tokens.Keys,
        rules: Callable[[], Rules],
        policies: Callable[[], Policies],
        now: Now,
        token: Callable[[int], str],
        below: Callable[[int], int],
        journal: Journal,
        metrics: Metrics,
        id_tokens: IdTokens | None = None,
        disabled: Callable[[str], bool] = lambda username: False,
    ) -> None:
        self._disabled = disabled
        self._store = store
        self._hosts = hosts
        self._waiters = waiters
        self._keys = keys
        self._rules = rules
        self._policies = policies
        self._now = now
        self._token = token
        self._below = below
        self._journal = journal
        self._metrics = metrics
        self._id_tokens = id_tokens

    async def create(self, draft: Draft, credential: Credential, address: str) -> Opened:
        """
        :raise Unauthorized: bad credential, or the user is not listed for the host.
        :raise JustificationRequired: no reason was given; told only to those who may ask.
        :raise TooManyPending: a cap is reached.
        """
        hostname = self._hosts.authenticate_challenge(credential, draft.hostname, draft.username, address)
        rules = self._rules()
        if rules.require_justification and not draft.reason:
            raise JustificationRequired(rules.justification_choices)
        now = self._now().replace(microsecond=0)
        requirement = self._policies().requirement(
            draft.username, hostname, self._hosts.group(hostname), now, draft.context.command
        )
        id = self._token(16)
        grace_usable = rules.grace_period > timedelta(0) and not self._disabled(draft.username)

        def opening(code: str, owner: OwnerState) -> Step:
            rotations = [at for at in (rules.rotate_before, owner.host_rotated_at) if at is not None]
            challenge = Challenge(
                id=id,
                user_code=code,
                username=draft.username,
                hostname=hostname,
                reason=draft.reason,
                created_at=now,
                expires_at=now + rules.challenge_ttl,
                rotate_before=instant_text(max(rotations, default=None)),
                revoke_before=instant_text(owner.revoked_at),
                policy_name=requirement.policy_name,
                required_approvals=requirement.min_approvals,
                require_admin=requirement.require_admin,
                bypass_allowed=requirement.break_glass_bypass,
                context=draft.context,
                remote_addr=address,
                forbid_self_approval=requirement.forbid_self_approval,
                approver_groups=requirement.approver_groups,
                max_grace=requirement.max_grace,
                # that no policy applies needs no words
                explanation=requirement.explanation if requirement.policy_name else Explanation(),
            )
            grace = owner.grace
            if (
                grace_usable
                and grace is not None
                and grace.expires_at > now
                and tokens.grace_valid(self._keys.grace, grace)
                and grace_suffices(requirement, tokens.grace_strength(self._keys.grace, grace))
            ):
                return moves.auto_approved(_explained(challenge, "grace_session"), now)
            return moves.opened(challenge)

        caps = Caps(per_user=rules.max_pending_per_user, total=rules.max_pending)
        # made when they are wanted: hardly ever a second one
        codes = (self._code() for _ in range(CODE_CANDIDATES))
        try:
            step = await self._store.create_challenge(draft.username, hostname, codes, opening, caps, now)
        except TooManyPending:
            self._metrics.rate_limited.inc()
            self._journal.warn("RATE_LIMIT", user=draft.username, remote_addr=address, host=hostname)
            raise
        self._metrics.happened(step)
        challenge = step.challenge
        approved = challenge.status is Status.APPROVED
        if approved:
            self._journal.info("GRACE auto-approved", user=challenge.username, challenge=short(challenge.id))
        else:
            self._journal.info(
                "CHALLENGE created",
                challenge=short(challenge.id),
                user=challenge.username,
                remote_addr=address,
                host=hostname,
                policy=challenge.policy_name,
            )
        token, derived = self._tokens(challenge, credential)
        return Opened(
            challenge=challenge,
            expires_in=int(rules.challenge_ttl.total_seconds()),
            verification_url=f"{rules.external_url}/approve/{challenge.user_code}",
            notification_queued=rules.notification_routes,
            client_config=client_config(rules),
            grace_remaining=await self._grace_remaining(challenge.username, hostname, now) if approved else 0,
            approval_token=token,
            approval_token_derived=derived,
        )

    async def poll(
        self, id: str, hostname: str, credential: Credential, address: str, *, hold_seconds: float = 0.0
    ) -> Polled:
        """
        :param hostname: normalised; must be the challenge's.
        :param hold_seconds: answer only when it is decided or this long has passed (bounded by ``Waiters``).
        :raise Unauthorized: bad credential, counted.
        :raise Gone: unknown or no longer readable.
        :raise HostnameMismatch, CredentialMismatch: not this caller's.
        """
        self._hosts.authenticate(credential, address, "GET /api/challenge/")
        waiting: Deferred[None] | None = self._waiters.expect(id, hold_seconds) if hold_seconds > 0 else None
        held = waiting is not None and not waiting.called
        try:
            challenge = await self._readable(id)
            self._hosts.owns(credential, challenge, hostname, address)
            if waiting is not None and held and challenge.status is Status.PENDING:
                # it may have been woken already, by a decision that came while we read
                await waiting
                challenge = await self._readable(id)
        finally:
            if waiting is not None and not waiting.called:
                waiting.callback(None)
        now = self._now()
        token, derived = self._tokens(challenge, credential)
        approved = challenge.status is Status.APPROVED
        return Polled(
            challenge=challenge,
            remaining=challenge.remaining_seconds(now),
            grace_remaining=(
                await self._grace_remaining(challenge.username, challenge.hostname, now) if approved else 0
            ),
            token=token,
            token_derived=derived,
            may_tell=bool(self._hosts.signing_secret(credential)),
            id_token=await self._id_token(challenge) if approved and token else "",
        )

    async def cancel(self, id: str, hostname: str, credential: Credential, address: str) -> None:
        """
        The person at the terminal gave up. Cancelling twice is fine.

        :raise AlreadyResolved: a decision came first.
        :raise Unauthorized, Gone, HostnameMismatch, CredentialMismatch: as for ``poll``.
        """
        self._hosts.authenticate(credential, address, "DELETE /api/challenge/")
        challenge = await self._readable(id)
        self._hosts.owns(credential, challenge, hostname, address)
        if challenge.status is Status.CANCELLED:
            return
        if challenge.status is not Status.PENDING:
            raise AlreadyResolved(short(id))
        now = self._now()
        step = await self._store.decide(id, lambda c, revoked_at: moves.cancel(c, now, remote_addr=address))
        self._metrics.happened(step)
        self._journal.info(
            "CHALLENGE cancelled",
            challenge=short(id),
            user=challenge.username,
            remote_addr=address,
            host=challenge.hostname,
        )

    async def grace_status(self, username: str, hostname: str, credential: Credential, address: str) -> GraceStatus:
        """
        :raise Unauthorized: bad credential, counted.
        :raise HostnameMismatch: the credential is another host's.
        """
        self._hosts.authenticate(credential, address, GRACE_STATUS)
        self._hosts.speaks_for(credential, hostname, address)
        now = self._now()
        return GraceStatus(
            remaining=await self._grace_remaining(username, hostname, now),
            revoke_tokens_before=instant_text(await self._store.revocation_time(username)),
        )

    async def expire_overdue(self) -> int:
        """Expire what nobody decided; returns how many. One bounded batch."""
        now = self._now()
        steps = await self._store.expire_challenges(now, lambda c: moves.expire(c, now))
        for step in steps:
            self._metrics.happened(step)
        return len(steps)

    async def _readable(self, id: str) -> Challenge:
        challenge = await self._store.challenge(id)
        if challenge is None or not challenge.readable(self._now()):
            raise Gone(short(id))
        return challenge

    async def _grace_remaining(self, username: str, hostname: str, now: datetime) -> int:
        if self._rules().grace_period <= timedelta(0):
            return 0
        row = await self._store.grace(username, hostname)
        if row is None:
            return 0
        if not tokens.grace_valid(self._keys.grace, row):
            await self._store.delete_grace(username, hostname, row.mac)
            return 0
        return row.remaining_seconds(now)

    async def _id_token(self, challenge: Challenge) -> str:
        if self._id_tokens is None or self._rules().client.token_cache_enabled is False:
            return ""
        return self._id_tokens.open(challenge.username, await self._store.id_token(challenge.id))

    def _tokens(self, challenge: Challenge, credential: Credential) -> tuple[str, str]:
        secret = self._hosts.signing_secret(credential)
        if not secret or challenge.status not in (Status.APPROVED, Status.DENIED):
            return "", ""
        said = (
            challenge.id,
            challenge.status.value,
            challenge.username,
            challenge.rotate_before,
            challenge.revoke_before,
        )
        return tokens.status_token_for_host(secret, *said), tokens.status_token_derived(self._keys, *said)

    def _code(self) -> str:
        """``ABCDEF-123456``, uniform over all codes."""
        rest = self._below(len(CODE_LETTERS) ** 6 * 10**6)
        rest, digits = divmod(rest, 10**6)
        letters = ""
        for _ in range(6):
            rest, index = divmod(rest, len(CODE_LETTERS))
            letters += CODE_LETTERS[index]
        return f"{letters}-{digits:06d}"


def _explained(challenge: Challenge, code: str) -> Challenge:
    explanation = challenge.explanation
    return replace(challenge, explanation=replace(explanation, because=(*explanation.because, Clause(code))))


def client_config(rules: Rules) -> dict[str, object]:
    """What is pushed to hosts, by wire name (spec/http-api section 7.1)."""
    client = rules.client
    pushed: dict[str, object] = {}
    if client.poll_interval > timedelta(0):
        pushed["poll_interval"] = durations.render(max(client.poll_interval, SHORTEST_POLL_INTERVAL))
    if client.timeout > timedelta(0):
        pushed["timeout"] = durations.render(client.timeout)
    if client.breakglass_enabled is not None:
        pushed["breakglass_enabled"] = client.breakglass_enabled
    if client.breakglass_password_type:
        pushed["breakglass_password_type"] = client.breakglass_password_type
    if client.breakglass_rotation_days > 0:
        pushed["breakglass_rotation_days"] = client.breakglass_rotation_days
    if client.token_cache_enabled is not None:
        pushed["token_cache_enabled"] = client.token_cache_enabled
    return pushed
