"""
What administrators see of hosts and do with them: the hosts page, its forms, and the calls of its script
(spec/http-api sections 7.8, 8 and 9.1, spec/web-ui section 12.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from twisted.web import http
from twisted.web.iweb import IRequest

from identree.app import breakglass
from identree.app.breakglass import BreakGlass
from identree.app.challenges import instant_text
from identree.app.decisions import Decisions
from identree.app.fleet import Fleet, Kept, Seen, Wanted
from identree.app.people import Caller, People
from identree.app.rules import Rules
from identree.core import errors, names
from identree.core.errors import Forbidden, Invalid, Refused, SessionExpired
from identree.web import replies
from identree.web.fleet_views import fleet_banners, fleet_view
from identree.web.forms import Form, Forms
from identree.web.reading import (
    Addresses,
    BadJSON,
    body,
    first_header,
    is_json,
    json_object,
    json_string,
    query,
    wants_json,
)
from identree.web.render import AdminPage, Renderer, Shell
from identree.web.router import LOGIN_PATH, UNAVAILABLE_TEXT, CardAnswers, Router
from identree.web.sessions import BrowserSessions, Flash, flash_item
from identree.web.translations import N_

HOSTS_PATH = "/admin/hosts"
ELEVATE_PATH, ROTATE_PATH, ROTATE_ALL_PATH = "/api/hosts/elevate", "/api/hosts/rotate", "/api/hosts/rotate-all"
REVEAL_PATH = "/api/breakglass/reveal"
REMOVE_PATH = "/api/hosts/remove-host"
# The contract's 1024 bytes are for a host's name; a reason of 500 characters needs more.
REVEAL_BODY_BYTES = 4096
REMOVE_BODY_BYTES = 8192
# Characters of a search.
SEARCH_LENGTH = 253

HOSTS_PAGE = AdminPage(path=HOSTS_PATH, name=N_("Hosts"), icon="host", key="h", goes=N_("Go to the hosts"))

_SORTS = ("hostname", "seen", "sessions")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetDesk:
    """What administrators see and do here."""

    fleet: Fleet
    break_glass: BreakGlass


class FleetRoutes:
    """
    The page and its forms.

    :param ends_at: when a session that is renewed now ends (``People.session_ends_at``).
    """

    router = Router()

    def __init__(
        self,
        *,
        desk: FleetDesk,
        decisions: Decisions,
        forms: Forms,
        sessions: BrowserSessions,
        render: Renderer,
        rules: Callable[[], Rules],
        ends_at: Callable[[Caller], datetime],
    ) -> None:
        self.answers = CardAnswers(render)
        self._fleet = desk.fleet
        self._break_glass = desk.break_glass
        self._decisions = decisions
        self._forms = forms
        self._sessions = sessions
        self._render = render
        self._rules = rules
        self._ends_at = ends_at

    @router.route(HOSTS_PATH, methods=["GET"])
    async def hosts(self, request: IRequest) -> bytes:
        """Filters, order and page stand in the query: ``q``, ``group``, ``seen``, ``kept``, ``sort``, ``dir``."""
        switched = self._render.switched_language(request)
        if switched is not None:
            return switched
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            self._sessions.ended(request)
            wanted = request.uri.decode("ascii", "replace")
            return replies.see_other(
                request, f"{self._rules().external_url}{LOGIN_PATH}?next={quote(wanted, safe='/')}"
            )
        self._sessions.renew(request, caller)
        asked = _wanted(query(request).get)
        try:
            page = await self._fleet.page(caller, asked)
        except Forbidden:
            # spec/web-ui section 1: pages send others home
            return replies.see_other(request, self._rules().external_url + "/")
        rules, reading = self._rules(), self._render.reading(request)
        view = fleet_view(
            reading,
            page,
            asked,
            revealable=self._break_glass.revealable,
            grace_period=rules.grace_period,
            choices=rules.justification_choices,
        )
        flashes = self._sessions.flashes(request)
        return self._render.page(
            request,
            "admin_hosts.html",
            shell=await self._shell(caller),
            view=view,
            banners=(*self._render.banners(request, flashes), *fleet_banners(flashes, reading)),
        )

    @router.route(ELEVATE_PATH, methods=["POST"])
    async def elevate(self, request: IRequest) -> bytes:
        sent = await self._forms.accepted(request)
        hostname, target, duration = (sent.get(name) for name in ("hostname", "target_user", "duration"))
        if not (hostname and target and duration):
            raise Invalid("hostname, target_user and duration", key="missing_fields")
        name, person = names.hostname(hostname), names.username(target)
        session = await self._fleet.elevate(sent.caller, name, person, _seconds(duration), address=sent.address)
        ends = str(int(session.expires_at.timestamp()))
        location = HOSTS_PATH if sent.back == "/" else sent.back
        return self._done(request, ("elevated", (name, person, ends)), location)

    @router.route(ROTATE_PATH, methods=["POST"])
    async def rotate(self, request: IRequest) -> bytes:
        sent = await self._admin_form(request)
        hostname = sent.get("hostname")
        if not hostname:
            raise Invalid("hostname", key="missing_fields")
        name = names.hostname(hostname)
        await self._fleet.rotate(sent.caller, name, address=sent.address)
        return self._done(request, ("rotated", (name,)), HOSTS_PATH)

    @router.route(ROTATE_ALL_PATH, methods=["POST"])
    async def rotate_all(self, request: IRequest) -> bytes:
        """All hosts; or those that fit the same fields as on the page."""
        sent = await self._admin_form(request)
        count = await self._fleet.rotate_all(sent.caller, _wanted(sent.fields.get), address=sent.address)
        return self._done(request, ("rotated_all", (str(count),)), HOSTS_PATH)

    # -- inside -------------------------------------------------------------------------------------------------------
    async def _admin_form(self, request: IRequest) -> Form:
        sent = await self._forms.accepted(request)
        if not sent.caller.is_admin:
            raise Forbidden
        return sent

    async def _shell(self, caller: Caller) -> Shell:
        return Shell(
            caller=caller,
            csrf=self._sessions.csrf(caller),
            ends=int(self._ends_at(caller).astimezone(UTC).timestamp()),
            pending=len(await self._decisions.pending(caller)),
        )

    def _done(self, request: IRequest, flash: Flash, location: str) -> bytes:
        if wants_json(request):
            value = {"ok": True, "flash": flash_item(flash), "location": location}
            return replies.send_json(request, http.OK, value)
        self._sessions.flash(request, [flash])
        return replies.see_other(request, self._rules().external_url + location)


class CallRefused(Refused):
    """A call of a script is refused before its endpoint looks at it. :ivar status: HTTP. ``detail`` is the text."""

    key = "unauthorized"

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class AdminCalls:
    """JSON of signed-in administrators, accepted once for all routes (spec/http-api section 5, *JSON admin auth*)."""

    def __init__(self, *, people: People, sessions: BrowserSessions) -> None:
        self._people = people
        self._sessions = sessions

    async def accepted(self, request: IRequest) -> Caller:
        """
        Whose call it is. It counts as a form of theirs.

        :raise CallRefused: no administrator, or a token that is not theirs.
        :raise Throttled: too many.
        """
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            raise CallRefused(http.UNAUTHORIZED, "unauthorized") from None
        if not caller.is_admin:
            raise CallRefused(http.UNAUTHORIZED, "unauthorized")
        token = first_header(request, b"X-CSRF-Token").decode("latin-1")
        ts = first_header(request, b"X-CSRF-Ts").decode("latin-1")
        if not (token and ts):
            raise CallRefused(http.FORBIDDEN, "missing CSRF headers")
        try:
            self._people.check_csrf(caller, token, ts)
        except Invalid:
            raise CallRefused(http.FORBIDDEN, "invalid CSRF timestamp") from None
        except errors.FormExpired:
            raise CallRefused(http.FORBIDDEN, "CSRF token expired") from None
        except errors.BadCsrfToken:
            raise CallRefused(http.FORBIDDEN, "invalid CSRF token") from None
        self._people.accept_form(caller)
        return caller


class CallAnswers:
    """``J(...)`` for scripts of administrators."""

    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        if isinstance(refusal, CallRefused):
            return replies.json_error(request, refusal.status, refusal.detail)
        if isinstance(refusal, errors.Throttled):
            replies.retry_after(request, refusal.retry_after)
            return replies.json_error(request, 429, "rate limit exceeded")
        if isinstance(refusal, errors.JustificationRequired):
            value = {"error": refusal.key, "justification_choices": list(refusal.choices)}
            return replies.send_json(request, 422, value)
        if isinstance(refusal, breakglass.NoRecord):
            return replies.json_error(request, http.NOT_FOUND, "no escrow record for host")
        if isinstance(refusal, breakglass.NothingConfigured):
            return replies.json_error(request, http.NOT_IMPLEMENTED, "no escrow backend configured")
        if isinstance(refusal, breakglass.NotRevealed):
            return replies.json_error(request, http.INTERNAL_SERVER_ERROR, "failed to retrieve password")
        if isinstance(refusal, Invalid):
            return replies.json_error(request, http.BAD_REQUEST, refusal.detail)
        return replies.json_error(request, http.FORBIDDEN, refusal.key)

    def unavailable(self, request: IRequest, error: Exception) -> bytes:
        replies.retry_after(request, replies.RETRY_UNAVAILABLE_SECONDS)
        return replies.json_error(request, http.SERVICE_UNAVAILABLE, UNAVAILABLE_TEXT)

    def wrong_method(self, request: IRequest) -> bytes:
        return replies.json_error(request, http.NOT_ALLOWED, "method not allowed")


class FleetCalls:
    """What the page's script asks."""

    router = Router()

    def __init__(self, *, desk: FleetDesk, calls: AdminCalls, addresses: Addresses) -> None:
        self.answers = CallAnswers()
        self._fleet = desk.fleet
        self._break_glass = desk.break_glass
        self._calls = calls
        self._addresses = addresses

    @router.route(REVEAL_PATH, methods=["POST"])
    async def reveal(self, request: IRequest) -> bytes:
        """Deployed scripts send no ``reason``; where one is required for everything, it is here too."""
        caller = await self._calls.accepted(request)
        try:
            members = json_object(body(request)[:REVEAL_BODY_BYTES])
            hostname, reason = json_string(members, "hostname"), json_string(members, "reason")
        except BadJSON:
            raise Invalid("invalid request body") from None
        name = _hostname(hostname)
        try:
            reason = names.reason(reason)
        except Invalid:
            raise Invalid("reason contains invalid characters") from None
        shown = await self._break_glass.reveal(caller, name, reason=reason, address=self._addresses.of(request))
        request.responseHeaders.setRawHeaders(b"Cache-Control", [b"no-store"])
        value: dict[str, object] = {"escrowed_at": instant_text(shown.escrowed_at), "password": shown.password}
        if shown.rotates:
            value["rotation_requested"] = True
        return replies.send_json(request, http.OK, value)

    @router.route(REMOVE_PATH, methods=["POST"])
    async def remove(self, request: IRequest) -> bytes:
        caller = await self._calls.accepted(request)
        if not is_json(request):
            raise CallRefused(http.UNSUPPORTED_MEDIA_TYPE, "content-type must be application/json")
        try:
            hostname = json_string(json_object(body(request)[:REMOVE_BODY_BYTES]), "hostname")
        except BadJSON:
            raise Invalid("invalid request") from None
        await self._fleet.remove(caller, _hostname(hostname), address=self._addresses.of(request))
        return replies.send_json(request, http.OK, {"status": "ok"})


def _hostname(text: str) -> str:
    try:
        return names.hostname(text)
    except Invalid:
        raise Invalid("invalid hostname") from None


def _wanted(get: Callable[[str, str], str]) -> Wanted:
    """What nobody could have chosen on the page counts as not chosen."""
    sort = get("sort", "")
    return Wanted(
        search=get("q", "").strip()[:SEARCH_LENGTH],
        group=get("group", "")[:SEARCH_LENGTH],
        seen=next((state for state in Seen if state.value == get("seen", "")), None),
        kept=next((state for state in Kept if state.value == get("kept", "")), None),
        sort=sort if sort in _SORTS else "hostname",
        descending=get("dir", "") == "desc",
        number=_number(get("page", "")),
    )


def _number(digits: str) -> int:
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 6 else 1


def _seconds(text: str) -> int | None:
    """None: it is no number of seconds; longer ones are as good as the longest."""
    return int(text[:12]) if text.isascii() and text.isdigit() else None
