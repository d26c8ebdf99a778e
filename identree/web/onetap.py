"""
What a one-tap link of a notification opens: a confirmation page, and the approval itself
(spec/http-api section 8, spec/web-ui section 6.2).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from twisted.web.iweb import IRequest

from identree.app.decisions import Decisions
from identree.app.onetap import Look, OneTapLinks, StaleSignIn
from identree.app.people import Caller
from identree.app.ports import Monotonic
from identree.app.rules import Rules
from identree.core import names
from identree.core.addresses import throttle_key
from identree.core.errors import SessionExpired
from identree.core.limits import SlidingWindow
from identree.web.forms import Forms
from identree.web.login import ONE_TAP_COOKIE
from identree.web.render import Renderer, Shell
from identree.web.replies import retry_after, see_other, set_cookie, text
from identree.web.router import LOGIN_PATH, CardAnswers, Router
from identree.web.sessions import BrowserSessions
from identree.web.views import request_view

PREFIX = "/api/onetap/"
# Looks of one address; a person needs two or three.
LIMIT, LIMIT_SECONDS = 60, 60.0
# Longest token: id, expiry, signature and two dots.
MAX_TOKEN = 128


class OneTapRoutes:
    """
    :param ends_at: when a session that is renewed now ends (``People.session_ends_at``).
    :param address: the client's address, behind trusted proxies the forwarded one.
    """

    router = Router()

    def __init__(
        self,
        *,
        links: OneTapLinks,
        decisions: Decisions,
        forms: Forms,
        sessions: BrowserSessions,
        render: Renderer,
        rules: Callable[[], Rules],
        ends_at: Callable[[Caller], datetime],
        address: Callable[[IRequest], str],
        monotonic: Monotonic,
    ) -> None:
        self.answers = CardAnswers(render)
        self._links = links
        self._decisions = decisions
        self._forms = forms
        self._sessions = sessions
        self._render = render
        self._rules = rules
        self._ends_at = ends_at
        self._address = address
        self._monotonic = monotonic
        self._limit = SlidingWindow(LIMIT, LIMIT_SECONDS)

    @router.route(PREFIX, defaults={"token": ""}, methods=["GET"])
    @router.route(f"{PREFIX}<path:token>", methods=["GET"])
    async def look(self, request: IRequest, token: str) -> bytes:
        """Asks whether it is meant. Looking decides nothing, so link previewers are harmless."""
        refused = self._throttled(request)
        if refused is not None:
            return refused
        switched = self._render.switched_language(request)
        if switched is not None:
            return switched
        caller: Caller | None = None
        with suppress(SessionExpired):
            caller = await self._decisions.known(await self._sessions.caller(request))
        look = await self._links.look(token[:MAX_TOKEN], caller)
        if caller is None or not look.fresh:
            self._remember(request, look)
        if not look.fresh:
            # nothing is consumed: the link goes on after the sign-in
            return see_other(request, self._rules().external_url + LOGIN_PATH)
        return self._page(request, look, caller)

    @router.route(PREFIX, defaults={"token": ""}, methods=["POST"])
    @router.route(f"{PREFIX}<path:token>", methods=["POST"])
    async def use(self, request: IRequest, token: str) -> bytes:
        refused = self._throttled(request)
        if refused is not None:
            return refused
        sent = await self._forms.accepted(request)
        caller = await self._decisions.known(sent.caller)
        try:
            outcome = await self._links.use(
                caller,
                token[:MAX_TOKEN],
                reason=names.decision_reason(sent.get("reason")),
                address=sent.address,
            )
        except StaleSignIn:
            self._remember(request, await self._links.look(token[:MAX_TOKEN], caller))
            return see_other(request, self._rules().external_url + LOGIN_PATH)
        challenge = outcome.challenge
        if not outcome.complete:
            count = (str(len(challenge.approvals)), str(challenge.required_approvals))
            self._sessions.flash(request, [("partial_approve", (challenge.user_code, *count))])
            return see_other(request, self._rules().external_url + "/")
        self._headers(request)
        return self._render.page(
            request, "onetap.html", shell=self._shell(caller), item=None, token="", host=challenge.shown_host
        )

    # -- inside -------------------------------------------------------------------------------------------------------
    def _page(self, request: IRequest, look: Look, caller: Caller | None) -> bytes:
        required, choices = self._decisions.justification()
        challenge = look.challenge
        view = request_view(
            challenge,
            caller or _nobody(challenge.username),
            self._render.reading(request),
            reason_required=required,
            choices=choices,
            obstacle=look.obstacle,
        )
        self._headers(request)
        host = challenge.shown_host
        if caller is None:
            return self._render.fragment(request, "onetap.html", item=view, token=look.token, host=host)
        self._sessions.renew(request, caller)
        return self._render.page(
            request, "onetap.html", shell=self._shell(caller), item=view, token=look.token, host=host
        )

    def _throttled(self, request: IRequest) -> bytes | None:
        key, now = throttle_key(self._address(request)), self._monotonic()
        if self._limit.allowed(key, now):
            self._limit.record(key, now)
            return None
        retry_after(request, self._limit.retry_after(key, now))
        return text(request, 429, "too many requests")

    def _remember(self, request: IRequest, look: Look) -> None:
        """
        For the way through the identity provider, which may be on another site: a Strict cookie would not come back
        from there. It is no more than the link that is in the address bar anyway.
        """
        left = look.challenge.remaining_seconds(self._render.reading(request).now)
        set_cookie(request, ONE_TAP_COOKIE, look.token, max_age=max(1, left), secure=self._rules().secure)

    def _shell(self, caller: Caller) -> Shell:
        return Shell(
            caller=caller,
            csrf=self._sessions.csrf(caller),
            ends=int(self._ends_at(caller).astimezone(UTC).timestamp()),
            pending=0,
        )

    @staticmethod
    def _headers(request: IRequest) -> None:
        request.responseHeaders.setRawHeaders(b"Cache-Control", [b"no-store"])
        request.responseHeaders.setRawHeaders(b"X-Robots-Tag", [b"noindex, nofollow"])


def _nobody(owner: str) -> Caller:
    """Whoever looks without a session sees what the requester would."""
    never = datetime.fromtimestamp(0, UTC)
    return Caller(username=owner, role="user", nonce="", issued_at=never, started_at=never)
