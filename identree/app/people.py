"""
Who is at the browser: signing in at the identity provider, sessions, forms, signing out (spec/web-ui sections 3 and 4).

A session cookie is signed, not stored (its form is contract). What deployed versions lacked is kept beside it: the
nonce stays the same while the cookie slides, so that signing out ends all cookies of the chain, and the first sight of
a nonce is recorded, so that a session has an absolute end.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from identree.app.idtokens import IdTokens
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.ports import Identity, IdentityProvider, Monotonic, Now
from identree.app.rules import Rules
from identree.app.trail import Trail
from identree.core import events, names, tokens
from identree.core.addresses import throttle_key
from identree.core.challenge import HistoryEntry, Live
from identree.core.errors import Invalid, LoginFailed, SessionExpired, Throttled
from identree.core.limits import SlidingWindow
from identree.core.verdict import Approver
from identree.storage.interface import BrowserSession, GraceChange, Login, Revocations, Store

LOGIN_LIFE = timedelta(minutes=15)
SESSION_LIFE = timedelta(minutes=30)
# How old the cached revocations may be; another replica's sign-out is noticed within this.
REVOCATIONS_FRESH_SECONDS = 1.0
# Nonces whose start is remembered; more only cost a look into the database.
REMEMBERED_SESSIONS = 10_000
# Groups of a sign-in that are kept.
MOST_GROUPS = 1000
# How far the provider's clock may be behind ours.
CLOCK_LEEWAY = timedelta(seconds=10)
# Sign-ins that one browser may have under way in several tabs.
LOGINS_PER_BROWSER = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """
    A signed-in person.

    :ivar groups: as the directory has them, or else the sign-in.
    :ivar authenticated_at: when the identity provider last saw the person itself, for this browser session; None:
        unknown.
    """

    username: str
    role: str
    nonce: str
    issued_at: datetime
    started_at: datetime
    groups: frozenset[str] = frozenset()
    authenticated_at: datetime | None = None

    @property
    def is_admin(self) -> bool:
        return self.role == "admin"

    @property
    def approver(self) -> Approver:
        """The same person, as policies see it."""
        return Approver(
            username=self.username,
            is_admin=self.is_admin,
            groups=self.groups,
            authenticated_at=self.authenticated_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginStart:
    """:ivar browser: value of the cookie that binds the sign-in to this browser."""

    url: str
    browser: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn:
    """:ivar cookie: value of ``pam_session``. :ivar return_to: local path to go on with."""

    caller: Caller
    cookie: str
    picture: str
    return_to: str


class People:
    """
    :param login_limit, callback_limit: sign-ins begun and finished per address.
    :param form_limit: accepted forms per person.
    :param trail: gets the audit records of refused sign-ins; None: there are none.
    :param id_tokens: seals what people sign in with, for their hosts; None: it is not kept.
    :param directory_groups: the groups of a person as the directory has them; None: those of the sign-in count.
    """

    def __init__(
        self,
        *,
        store: Store,
        provider: IdentityProvider,
        keys: tokens.Keys,
        rules: Callable[[], Rules],
        now: Now,
        monotonic: Monotonic,
        token: Callable[[int], str],
        pkce: Callable[[], str],
        login_limit: SlidingWindow,
        callback_limit: SlidingWindow,
        form_limit: SlidingWindow,
        journal: Journal,
        metrics: Metrics,
        trail: Trail | None = None,
        id_tokens: IdTokens | None = None,
        directory_groups: Callable[[str], frozenset[str] | None] = lambda username: None,
    ) -> None:
        self._directory_groups = directory_groups
        self._store = store
        self._provider = provider
        self._keys = keys
        self._rules = rules
        self._now = now
        self._monotonic = monotonic
        self._token = token
        self._pkce = pkce
        self._login_limit = login_limit
        self._callback_limit = callback_limit
        self._form_limit = form_limit
        self._journal = journal
        self._metrics = metrics
        self._trail = trail
        self._id_tokens = id_tokens
        self._revocations = Revocations(nonces={}, admins={})
        self._revocations_read: float | None = None
        self._starts: OrderedDict[str, BrowserSession] = OrderedDict()

    # -- signing in ---------------------------------------------------------------------------------------------------
    async def begin_login(
        self, *, address: str, browser: str = "", return_to: str = "/", fresh: timedelta | None = None
    ) -> LoginStart:
        """
        :param fresh: the person has to prove who it is now, or within this time; None: as the provider likes.
        :param browser: the present value of the binding cookie.
        :param return_to: local path that the person wanted; anything else becomes ``/``.
        :raise Throttled: too many from this address.
        :raise ProviderUnavailable: the identity provider is not known yet.
        """
        self._limit(self._login_limit, throttle_key(address))
        now = self._now().replace(microsecond=0)
        nonce, verifier = self._token(16), self._pkce()
        try:
            wanted = names.return_path(return_to)
        except Invalid:
            wanted = "/"
        url = await self._provider.authorization_url(
            state=f"sessions:{nonce}",
            nonce=nonce,
            code_challenge=_s256(verifier),
            max_age=None if fresh is None else int(fresh.total_seconds()),
        )
        await self._store.start_login(
            Login(
                nonce=nonce,
                verifier=verifier,
                client_ip=address,
                return_to=wanted,
                issued_at=now,
                expires_at=now + LOGIN_LIFE,
                fresh_since=None if fresh is None else now - fresh,
            )
        )
        under_way = [digest for digest in browser.split(".") if len(digest) == 64][-(LOGINS_PER_BROWSER - 1) :]
        return LoginStart(url=url, browser=".".join([*under_way, _digest(nonce)]))

    async def finish_login(self, *, state: str, code: str, error: str, address: str, browser: str = "") -> SignedIn:
        """
        The browser comes back. The sign-in is used up whatever the result.

        :param browser: the binding cookie; a sign-in begun in another browser is refused.
        :raise LoginFailed: with the page's message key and status.
        :raise Throttled: too many from this address.
        :raise ProviderUnavailable: the identity provider does not answer.
        """
        prefix, _, nonce = state.partition(":")
        if prefix != "sessions":
            raise LoginFailed("login_state_invalid", 400)
        self._limit(self._callback_limit, throttle_key(address))
        if len(nonce) != 32 or not set(nonce) <= set("0123456789abcdef"):
            raise LoginFailed("login_state_invalid", 400)
        if not any(tokens.same(digest, _digest(nonce)) for digest in browser.split(".")[:LOGINS_PER_BROWSER]):
            self._journal.warn("SECURITY OIDC state of another browser", remote_addr=address)
            self._note_failure("begun in another browser", address)
            raise LoginFailed("login_other_browser", 400)
        now = self._now()
        login = await self._store.take_login(nonce, now)
        if login is None:
            raise LoginFailed("login_session_expired", 400)
        if login.client_ip != address:
            self._journal.warn(
                "SECURITY OIDC callback from another address", login_ip=login.client_ip, callback_ip=address
            )
            if self._rules().enforce_ip_binding:
                self._note_failure("begun from another address", address)
                raise LoginFailed("ip_binding_mismatch", 403)
        if error:
            raise LoginFailed("login_provider_error", 403, error[:64])
        if not code:
            raise LoginFailed("login_code_missing", 400)
        try:
            identity = await self._provider.redeem(code=code, verifier=login.verifier, nonce=nonce)
        except LoginFailed as failure:
            self._count(failure)
            self._journal.warn("SECURITY OIDC sign-in refused", remote_addr=address, reason=failure.key)
            self._note_failure(failure.key, address)
            raise
        self._check_fresh(identity, login, address)
        return await self._signed_in(identity, login, address)

    def _check_fresh(self, identity: Identity, login: Login, address: str) -> None:
        """
        Whoever was asked to sign in anew has to have done so: a provider that was asked for ``max_age`` must say when
        (OpenID Connect Core section 2, ``auth_time``).

        :raise LoginFailed: the provider does not say it, or it was too long ago.
        """
        if login.fresh_since is None:
            return
        seen = identity.authenticated_at
        if seen is None or seen < login.fresh_since - CLOCK_LEEWAY:
            why = "no auth_time" if seen is None else "auth_time is too old"
            self._journal.warn("SECURITY OIDC sign-in is not fresh", remote_addr=address, reason=why)
            self._note_failure("login_not_fresh", address)
            raise LoginFailed("login_not_fresh", 403, why)

    async def sign_in_for_development(self, username: str, role: str, address: str) -> SignedIn:
        """A session without identity provider; only reachable with ``IDENTREE_DEV_LOGIN``."""
        now = self._now().replace(microsecond=0)
        caller = Caller(username=username, role=role, nonce=self._token(16), issued_at=now, started_at=now)
        self._journal.warn("DEV_LOGIN used without authentication", user=username, role=role, remote_addr=address)
        await self._store.browser_session(BrowserSession(nonce=caller.nonce, username=username, started_at=now))
        return SignedIn(caller=caller, cookie=self._cookie(caller), picture="", return_to="/")

    async def _signed_in(self, identity: Identity, login: Login, address: str) -> SignedIn:
        now = self._now().replace(microsecond=0)
        rules = self._rules()
        if rules.admin_groups and not identity.groups:
            self._journal.warn("SECURITY OIDC no groups claim; is the groups scope allowed", remote_addr=address)
        role = "admin" if set(identity.groups) & set(rules.admin_groups) else "user"
        caller = Caller(username=identity.username, role=role, nonce=self._token(16), issued_at=now, started_at=now)
        await self._store.record_login(
            BrowserSession(
                nonce=caller.nonce,
                username=caller.username,
                started_at=now,
                groups=identity.groups[:MOST_GROUPS],
                # of a provider that does not say when it saw the person, the sign-in is all that there is
                authenticated_at=identity.authenticated_at or now,
                id_token=self._sealed(identity),
            ),
            events.UserLoggedIn(at=now, username=caller.username, remote_addr=address),
            now,
        )
        self._journal.info("SESSIONS", user=caller.username, role=role, remote_addr=address)
        return SignedIn(caller=caller, cookie=self._cookie(caller), picture=identity.picture, return_to=login.return_to)

    def _sealed(self, identity: Identity) -> str:
        """What the host of an own request may be handed; empty where hosts are told to keep none."""
        if self._id_tokens is None or self._rules().client.token_cache_enabled is False:
            return ""
        return self._id_tokens.seal(identity.username, identity.id_token)

    def _note_failure(self, reason: str, address: str) -> None:
        if self._trail is not None:
            self._trail.note(events.AuthenticationFailed, reason=f"{reason}: sign-in", remote_addr=address)

    def _count(self, failure: LoginFailed) -> None:
        reasons = {
            "login_nonce_mismatch": "nonce_mismatch",
            "login_claims_invalid": "identity_mismatch",
            "login_username_invalid": "identity_mismatch",
        }
        self._metrics.denied.labels(reasons.get(failure.key, "oidc_error")).inc()

    # -- sessions -----------------------------------------------------------------------------------------------------
    async def caller(self, cookie: str) -> Caller:
        """
        Who presents this ``pam_session``.

        :raise SessionExpired: none, malformed, too old, signed out, or past its absolute end.
        """
        now = self._now()
        read = tokens.read_session_cookie(self._keys, cookie, int(now.timestamp()))
        revocations = await self._current_revocations()
        if read.nonce in revocations.nonces:
            raise SessionExpired
        issued_at = datetime.fromtimestamp(read.issued_at, UTC)
        first = self._starts.get(read.nonce)
        if first is None:
            first = await self._store.browser_session(
                BrowserSession(nonce=read.nonce, username=read.username, started_at=issued_at)
            )
            self._starts[read.nonce] = first
            if len(self._starts) > REMEMBERED_SESSIONS:
                self._starts.popitem(last=False)
        if now - first.started_at >= self._rules().session_max_age:
            raise SessionExpired
        demoted = revocations.admins.get(read.username)
        role = "user" if demoted is not None and issued_at <= demoted else read.role
        groups = self._directory_groups(read.username)
        return Caller(
            username=read.username,
            role=role,
            nonce=read.nonce,
            issued_at=issued_at,
            started_at=first.started_at,
            groups=frozenset(first.groups) if groups is None else groups,
            authenticated_at=first.authenticated_at,
        )

    def renewed(self, caller: Caller) -> str:
        """The cookie that slides the session: same nonce, present time and role."""
        return self._cookie(caller)

    def session_ends_at(self, caller: Caller) -> datetime:
        """When the session ends without another page load."""
        return min(self._now() + SESSION_LIFE, caller.started_at + self._rules().session_max_age)

    def csrf(self, caller: Caller) -> tuple[str, str]:
        """Token and timestamp for forms and for the ``X-CSRF-*`` headers."""
        ts = int(self._now().timestamp())
        return tokens.csrf_token(self._keys, caller.username, ts), str(ts)

    def check_csrf(self, caller: Caller, token: str, ts: str) -> None:
        """:raise Invalid, FormExpired, BadCsrfToken:"""
        tokens.check_csrf(self._keys, caller.username, token, ts, int(self._now().timestamp()))

    def accept_form(self, caller: Caller) -> None:
        """
        Count one accepted form.

        :raise Throttled: 30 in the last minute.
        """
        self._limit(self._form_limit, caller.username)

    async def sign_out(self, caller: Caller, address: str) -> int:
        """
        End the browser session and all grace sessions of the person.

        :returns: how many grace sessions ended.
        """
        now = self._now()

        def describe(hostnames: Sequence[str]) -> GraceChange:
            changed = (Live(event="session_changed", username=caller.username),) if hostnames else ()
            return GraceChange(
                session=None,
                events=(
                    events.UserSignedOut(at=now, username=caller.username, actor=caller.username, remote_addr=address),
                ),
                history=tuple(
                    HistoryEntry(at=now, username=caller.username, action="revoked", hostname=name or "(unknown)")
                    for name in hostnames
                ),
                live=changed,
            )

        ended = await self._store.sign_out(caller.username, caller.nonce, now, describe)
        self._revocations.nonces[caller.nonce] = now
        self._journal.info("SIGNED_OUT", user=caller.username, count=len(ended), remote_addr=address)
        return len(ended)

    async def _current_revocations(self) -> Revocations:
        asked = self._monotonic()
        if self._revocations_read is None or asked - self._revocations_read >= REVOCATIONS_FRESH_SECONDS:
            # a failing read lets nobody in: an unknown revocation must not count as none
            self._revocations = await self._store.revocations()
            self._revocations_read = asked
        return self._revocations

    def _cookie(self, caller: Caller) -> str:
        return tokens.session_cookie(
            self._keys, caller.username, caller.role, int(self._now().timestamp()), caller.nonce
        )

    def _limit(self, window: SlidingWindow, key: str) -> None:
        now = self._monotonic()
        if not window.allowed(key, now):
            raise Throttled(window.retry_after(key, now))
        window.record(key, now)


def _digest(nonce: str) -> str:
    """What the browser keeps of a sign-in: enough to recognise it, not enough to make its ``state``."""
    return sha256(b"identree-login:" + nonce.encode()).hexdigest()


def _s256(verifier: str) -> str:
    """The PKCE code challenge (RFC 7636 section 4.2)."""
    return urlsafe_b64encode(sha256(verifier.encode("ascii")).digest()).rstrip(b"=").decode("ascii")
