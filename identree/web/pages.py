"""
The pages of a person: the approval page, the dashboard, and the pieces that their scripts fetch
(spec/web-ui sections 6.1 and 11.1, spec/http-api section 11).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import quote

from twisted.web import http
from twisted.web.iweb import IRequest

from identree.app.decisions import Decisions
from identree.app.journal import Journal
from identree.app.people import SESSION_LIFE, Caller
from identree.app.ports import Monotonic
from identree.app.rules import Rules
from identree.core.addresses import throttle_key
from identree.core.errors import NotFound, SessionExpired
from identree.core.limits import SlidingWindow
from identree.web.reading import query
from identree.web.render import Renderer, Shell
from identree.web.replies import json_error, retry_after, see_other, send_json, text
from identree.web.router import CardAnswers, Router
from identree.web.views import Flash, dashboard, highlighted, parse_flashes, request_view, state_view

# Codes that one address may look up.
APPROVE_LIMIT = 10
APPROVE_SECONDS = 60.0
# ``ABCDEF-123456``
CODE_LENGTH = 13
DASH_AT = 6
# Requests on the dashboard for which it is said who else may approve them: each goes through all approvers.
MOST_EXPLAINED = 20
# Lines of recent activity on the dashboard.
ACTIVITY_LINES = 10


class Sessions(Protocol):
    """What the pages need of the browser sessions (``identree.web.sessions``)."""

    async def caller(self, request: IRequest) -> Caller:
        """:raise SessionExpired: nobody is signed in."""

    def renew(self, request: IRequest, caller: Caller) -> None: ...

    def csrf(self, caller: Caller) -> tuple[str, str]: ...

    def flashes(self, request: IRequest) -> Sequence[Flash]: ...

    def ended(self, request: IRequest) -> None: ...


class PageRoutes:
    """
    :param ends_at: when a session that is renewed now ends (``People.session_ends_at``).
    :param address: the client's address, behind trusted proxies the forwarded one.
    :param limit: looks at ``/approve/CODE`` per address.
    :param journal: gets a line for each such look; None: there is none.
    """

    router = Router()

    def __init__(
        self,
        *,
        decisions: Decisions,
        sessions: Sessions,
        render: Renderer,
        rules: Callable[[], Rules],
        ends_at: Callable[[Caller], datetime],
        address: Callable[[IRequest], str],
        monotonic: Monotonic,
        limit: SlidingWindow | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._decisions = decisions
        self._sessions = sessions
        self._render = render
        self._rules = rules
        self._ends_at = ends_at
        self._address = address
        self._monotonic = monotonic
        self.answers = CardAnswers(render)
        self._limit = SlidingWindow(APPROVE_LIMIT, APPROVE_SECONDS) if limit is None else limit
        self._journal = journal

    # -- approving ----------------------------------------------------------------------------------------------------
    @router.route("/approve/", defaults={"code": ""}, methods=["GET"])
    @router.route("/approve/<path:code>", methods=["GET"])
    async def approve(self, request: IRequest, code: str) -> bytes:
        """The link printed in the terminal. Looking decides nothing, so link previewers are harmless."""
        switched = self._render.switched_language(request)
        if switched is not None:
            return switched
        key, now = throttle_key(self._address(request)), self._monotonic()
        if not self._limit.allowed(key, now):
            retry_after(request, self._limit.retry_after(key, now))
            return text(request, 429, "too many requests")
        self._limit.record(key, now)
        if not code:
            return text(request, http.BAD_REQUEST, "code required")
        if len(code) != CODE_LENGTH or code[DASH_AT] != "-":
            return text(request, http.BAD_REQUEST, "invalid code format")
        code = code.upper()  # typed by hand from the terminal
        if self._journal is not None:
            # the letters are enough to find the request again; who has the whole code knows what to approve
            self._journal.info(
                "ACCESS", path="/approve/", remote_addr=self._address(request), code_prefix=code[:DASH_AT]
            )
        if not code.isascii() or not await self._decisions.code_is_pending(code):
            return self._not_pending(request)
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            return self._to_login(request, f"/approve/{code}")
        self._sessions.renew(request, caller)
        try:
            challenge = await self._decisions.by_code(caller, code)
        except NotFound:
            return self._not_pending(request)
        required, choices = self._decisions.justification()
        reading = self._render.reading(request)
        caller = await self._decisions.known(caller)
        view = request_view(
            challenge,
            caller,
            reading,
            reason_required=required,
            choices=choices,
            obstacle=self._decisions.obstacle(caller, challenge),
            who=self._decisions.who_may(caller, challenge),
        )
        flashes = self._sessions.flashes(request)
        return self._render.page(
            request,
            "approve.html",
            shell=await self._shell(caller, flashes),
            item=view,
        )

    @router.route("/fragments/challenge/<string:id>", methods=["GET"])
    async def challenge_fragment(self, request: IRequest, id: str) -> bytes:
        """What became of a request that is shown in a browser: a piece of HTML for its script."""
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            return self._signed_out(request)
        try:
            challenge = await self._decisions.followed(caller, id)
        except NotFound:
            return json_error(request, http.NOT_FOUND, "not_found")
        reading = self._render.reading(request)
        state = state_view(challenge, caller, reading)
        item = None
        if not state.over:
            required, choices = self._decisions.justification()
            caller = await self._decisions.known(caller)
            item = request_view(
                challenge,
                caller,
                reading,
                reason_required=required,
                choices=choices,
                obstacle=self._decisions.obstacle(caller, challenge),
                who=self._decisions.who_may(caller, challenge),
            )
        return self._render.fragment(
            request, "fragments/challenge.html", state=state, item=item, shell=await self._shell(caller, ())
        )

    # -- the dashboard ------------------------------------------------------------------------------------------------
    @router.route("/", methods=["GET"])
    async def index(self, request: IRequest) -> bytes:
        """Pending requests, own sudo sessions, recent activity."""
        switched = self._render.switched_language(request)
        if switched is not None:
            return switched
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            return self._to_login(request, "/")
        self._sessions.renew(request, caller)
        flashes = self._sessions.flashes(request)
        return await self._dashboard(request, caller, "dashboard.html", flashes)

    @router.route("/fragments/dashboard", methods=["GET"])
    async def dashboard_fragment(self, request: IRequest) -> bytes:
        """
        The live part of the dashboard as it is now; does not prolong the session. ``?flash=`` has what a decision
        endpoint answered, to be said in words beside it.
        """
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            return self._signed_out(request)
        return await self._dashboard(
            request, caller, "fragments/dashboard.html", parse_flashes(query(request).get("flash", ""))
        )

    async def _dashboard(self, request: IRequest, caller: Caller, template: str, flashes: Sequence[Flash]) -> bytes:
        pending = await self._decisions.pending(caller)
        sessions = await self._decisions.grace_sessions(caller)
        history = await self._decisions.activity(caller, ACTIVITY_LINES)
        required, choices = self._decisions.justification()
        caller = await self._decisions.known(caller)
        view = dashboard(
            caller,
            self._render.reading(request),
            pending=pending,
            sessions=sessions,
            history=history,
            grace_period=self._decisions.grace_period(),
            reason_required=required,
            choices=choices,
            highlighted=highlighted(flashes),
            obstacles={one.id: self._decisions.obstacle(caller, one) for one in pending},
            whos={one.id: self._decisions.who_may(caller, one) for one in pending[:MOST_EXPLAINED]},
        )
        shell = self._framed(caller, len(view.requests), flashes)
        return self._render.page(
            request, template, shell=shell, view=view, is_fragment=template.startswith("fragments/")
        )

    # -- the session --------------------------------------------------------------------------------------------------
    @router.route("/fragments/session", methods=["GET"])
    async def session_fragment(self, request: IRequest) -> bytes:
        """
        When the browser session ends and a form token that is good until then; with ``?renew=1`` the session is
        prolonged first, as a page load would. For pages that stay open and must not lose what was typed.
        """
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            return self._signed_out(request)
        ends = min(self._ends_at(caller), caller.issued_at + SESSION_LIFE)
        if query(request).get("renew") == "1":
            self._sessions.renew(request, caller)
            ends = self._ends_at(caller)
        token, ts = self._sessions.csrf(caller)
        return send_json(
            request,
            http.OK,
            {
                "username": caller.username,
                "csrf_token": token,
                "csrf_ts": ts,
                "ends": int(ends.timestamp()),
                "now": int(self._render.reading(request).now.timestamp()),
            },
        )

    # -- inside -------------------------------------------------------------------------------------------------------
    async def _shell(self, caller: Caller, flashes: Sequence[Flash]) -> Shell:
        return self._framed(caller, len(await self._decisions.pending(caller)), flashes)

    def _framed(self, caller: Caller, pending: int, flashes: Sequence[Flash]) -> Shell:
        return Shell(
            caller=caller,
            csrf=self._sessions.csrf(caller),
            ends=int(self._ends_at(caller).astimezone(UTC).timestamp()),
            pending=pending,
            flashes=flashes,
        )

    def _not_pending(self, request: IRequest) -> bytes:
        """The same bytes for whatever reason, so that codes cannot be probed."""
        return self._render.card(request, http.NOT_FOUND, "challenge_expired_or_resolved")

    def _to_login(self, request: IRequest, wanted: str) -> bytes:
        self._sessions.ended(request)
        return see_other(request, f"{self._rules().external_url}/sessions/login?next={quote(wanted, safe='/')}")

    def _signed_out(self, request: IRequest) -> bytes:
        key = "session_expired_sign_in"
        return json_error(request, http.UNAUTHORIZED, key, message=self._render.sentence(request, key))
