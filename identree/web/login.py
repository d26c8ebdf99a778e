"""
Signing in and out, and what a person sets for the browser (spec/web-ui sections 3, 4.5, 5 and 8.2).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from twisted.web.iweb import IRequest

from identree.app.development import Development, Seed
from identree.app.onetap import OneTapLinks
from identree.app.people import LOGIN_LIFE, People, SignedIn
from identree.app.rules import Rules
from identree.core import names
from identree.core.errors import Invalid, LoginFailed, ProviderUnavailable, Refused, SessionExpired, Throttled
from identree.web.reading import (
    Addresses,
    BadJSON,
    body,
    cookie,
    cut,
    form,
    json_integer,
    json_string,
    json_value,
    query,
)
from identree.web.replies import RETRY_UNAVAILABLE_SECONDS, empty, redirect, retry_after, see_other, set_cookie, text
from identree.web.router import (
    LOGIN_PATH,
    PROVIDER_UNAVAILABLE,
    SIGNED_OUT,
    CardAnswers,
    Cards,
    Router,
    TextAnswers,
)
from identree.web.sessions import BrowserSessions

# Binds a sign-in to the browser that began it.
LOGIN_COOKIE = "identree_login"
THEME_COOKIE = "identree_theme"
THEMES = ("dark", "light")
YEAR_SECONDS = 31_536_000
SIGN_OUT_BODY_BYTES = 1024
SEED_BODY_BYTES = 65_536
SEED_ENTRIES = 1000
# Ten years.
LONGEST_AGO_MINUTES = 5_256_000
# A sign-in older than this satisfies nobody who asks for a fresh one.
LONGEST_FRESH_SECONDS = 366 * 86_400
# Keeps a one-tap link over the sign-in that it needs.
ONE_TAP_COOKIE = "pam_onetap"
ONE_TAP_PREFIX = "/api/onetap/"
ANY_METHOD = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class LoginRoutes:
    router = Router()

    def __init__(
        self,
        *,
        people: People,
        sessions: BrowserSessions,
        addresses: Addresses,
        cards: Cards,
        rules: Callable[[], Rules],
        one_taps: OneTapLinks | None = None,
    ) -> None:
        self._one_taps = one_taps
        self.answers = CardAnswers(cards)
        self._people = people
        self._sessions = sessions
        self._addresses = addresses
        self._cards = cards
        self._rules = rules

    @router.route("/sessions/login", methods=["GET"])
    async def login(self, request: IRequest) -> bytes:
        """
        To the identity provider; ``next`` is the page that the person wanted, ``fresh`` asks for a sign-in that is at
        most so many seconds old.
        """
        parameters = query(request)
        if parameters.get("signed_out") == "1":
            return self._cards.card(request, 200, SIGNED_OUT, retry=LOGIN_PATH)
        try:
            start = await self._people.begin_login(
                address=self._addresses.of(request),
                browser=cookie(request, LOGIN_COOKIE),
                return_to=parameters.get("next", "/"),
                fresh=_fresh(parameters.get("fresh", "")),
            )
        except Throttled as refusal:
            retry_after(request, refusal.retry_after)
            return text(request, 429, "too many requests \u2014 try again later")
        except ProviderUnavailable:
            return self._provider_unavailable(request)
        set_cookie(
            request,
            LOGIN_COOKIE,
            start.browser,
            max_age=int(LOGIN_LIFE.total_seconds()),
            secure=self._rules().secure,
        )
        return redirect(request, 302, start.url)

    @router.route("/callback", methods=["GET"])
    async def callback(self, request: IRequest) -> bytes:
        """Back from the identity provider."""
        parameters = query(request)
        try:
            signed_in = await self._people.finish_login(
                state=parameters.get("state", ""),
                code=parameters.get("code", ""),
                error=parameters.get("error", ""),
                address=self._addresses.of(request),
                browser=cookie(request, LOGIN_COOKIE),
            )
        except Throttled as refusal:
            retry_after(request, refusal.retry_after)
            return text(request, 429, "too many requests")
        except LoginFailed as failure:
            return self._cards.card(request, failure.status, failure.key, retry=LOGIN_PATH)
        except ProviderUnavailable:
            return self._provider_unavailable(request)
        self._sessions.signed_in(request, signed_in)
        return see_other(request, self._rules().external_url + await self._wanted(request, signed_in))

    async def _wanted(self, request: IRequest, signed_in: SignedIn) -> str:
        """Where it goes on: a one-tap link that asked for the sign-in, if it is this person's, comes first."""
        token = cookie(request, ONE_TAP_COOKIE)
        if not token:
            return signed_in.return_to
        set_cookie(request, ONE_TAP_COOKIE, "", max_age=0, secure=self._rules().secure)
        if self._one_taps is not None and await self._one_taps.resumable(signed_in.caller, token):
            return ONE_TAP_PREFIX + token
        return signed_in.return_to

    @router.route("/signout", methods=["POST"])
    async def sign_out(self, request: IRequest) -> bytes:
        """Ends the browser session and the person's sudo sessions; without a session only the cookie goes."""
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            return self._signed_out(request)
        try:
            fields = form(request)
            self._people.check_csrf(caller, fields.get("csrf_token", ""), fields.get("csrf_ts", ""))
        except Refused:
            return text(request, 403, "invalid_csrf")
        await self._people.sign_out(caller, self._addresses.of(request))
        return self._signed_out(request)

    @router.route("/signout", methods=["GET", "PUT", "PATCH", "DELETE"])
    def no_sign_out(self, request: IRequest) -> bytes:
        return see_other(request, self._rules().prefix + "/")

    @router.route("/sessions", methods=ANY_METHOD)
    def sessions(self, request: IRequest) -> bytes:
        return see_other(request, self._rules().external_url + "/")

    @router.route("/theme", methods=["GET"])
    def theme(self, request: IRequest) -> bytes:
        """Keep the choice of colours, or forget it."""
        parameters = query(request)
        chosen = parameters.get("set", "")
        known = chosen in THEMES
        set_cookie(
            request,
            THEME_COOKIE,
            chosen if known else "",
            max_age=YEAR_SECONDS if known else 0,
            secure=self._rules().secure,
        )
        return see_other(request, self._rules().external_url + names.local_path(parameters.get("from", "")))

    def _signed_out(self, request: IRequest) -> bytes:
        self._sessions.forget(request)
        return see_other(request, f"{self._rules().external_url}{LOGIN_PATH}?{SIGNED_OUT}=1")

    def _provider_unavailable(self, request: IRequest) -> bytes:
        retry_after(request, RETRY_UNAVAILABLE_SECONDS)
        return self._cards.card(request, 503, PROVIDER_UNAVAILABLE, retry=LOGIN_PATH)


def _fresh(text: str) -> timedelta | None:
    """None: an ordinary sign-in."""
    if not (text.isascii() and text.isdigit()):
        return None
    return timedelta(seconds=min(int(text[:9]), LONGEST_FRESH_SECONDS))


class DevelopmentRoutes:
    """Signing in without a provider and seeding state; routed only with ``IDENTREE_DEV_LOGIN``."""

    router = Router()

    def __init__(
        self,
        *,
        development: Development,
        people: People,
        sessions: BrowserSessions,
        addresses: Addresses,
        rules: Callable[[], Rules],
    ) -> None:
        self.answers = TextAnswers()
        self._development = development
        self._people = people
        self._sessions = sessions
        self._addresses = addresses
        self._rules = rules

    @router.route("/dev/login", methods=ANY_METHOD)
    async def login(self, request: IRequest) -> bytes:
        parameters = query(request)
        try:
            username = names.username(parameters.get("user", ""))
        except Invalid:
            return text(request, 400, "missing or invalid user param")
        role = "admin" if parameters.get("role") == "admin" else "user"
        signed_in = await self._people.sign_in_for_development(username, role, self._addresses.of(request))
        self._sessions.signed_in(request, signed_in)
        return see_other(request, self._rules().prefix + "/")

    @router.route("/dev/seed-session", methods=["POST"])
    async def seed_session(self, request: IRequest) -> bytes:
        try:
            username, hostname = _seed_session(_whole(request))
        except (BadJSON, Invalid):
            return text(request, 400, "invalid body")
        await self._development.seed_session(username, hostname)
        return empty(request, 201)

    @router.route("/dev/seed-history", methods=["POST"])
    async def seed_history(self, request: IRequest) -> bytes:
        try:
            entries = _seed_history(_whole(request))
        except (BadJSON, Invalid):
            return text(request, 400, "invalid body")
        await self._development.seed_history(entries)
        return empty(request, 201)


def _whole(request: IRequest) -> Any:
    if cut(request):
        raise BadJSON
    return json_value(body(request))


def _seed_session(value: Any) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise BadJSON
    return names.username(json_string(value, "username")), names.optional_hostname(json_string(value, "hostname"))


def _seed_history(value: Any) -> list[Seed]:
    if not isinstance(value, list) or len(value) > SEED_ENTRIES:
        raise BadJSON
    return [_seed(item) for item in value]


def _seed(item: Any) -> Seed:
    minutes_ago = json_integer(item, "minutes_ago") if isinstance(item, dict) else -1
    if not 0 <= minutes_ago <= LONGEST_AGO_MINUTES:
        raise BadJSON
    return Seed(
        username=names.username(json_string(item, "username")),
        action=json_string(item, "action")[:64],
        hostname=json_string(item, "hostname")[:253],
        actor=json_string(item, "actor")[:64],
        minutes_ago=minutes_ago,
    )
