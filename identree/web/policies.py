"""
Approval policies for administrators: the page, its forms, import and export, and what a request would meet
(spec/notifications-and-policy section 7, spec/http-api sections 9.2 and 11).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from urllib.parse import quote

from twisted.web import http
from twisted.web.iweb import IRequest

from identree.app.decisions import Decisions
from identree.app.health import InThread
from identree.app.hosts import Hosts
from identree.app.people import Caller
from identree.app.policies import POLICY_BYTES, PolicyBook, UnknownPolicy, preview_in_full, preview_json
from identree.app.rules import Rules
from identree.core.errors import Forbidden, Invalid, PoliciesChanged, PoliciesFromFile, Refused, SessionExpired
from identree.core.noticefiles import NAME
from identree.web import replies
from identree.web.fleet import AdminCalls, CallAnswers
from identree.web.forms import Form, Forms
from identree.web.policy_views import policies_view, preview_view
from identree.web.reading import Addresses, BadJSON, Credentials, body, is_json, json_object, json_string, query
from identree.web.render import AdminPage, Renderer, Shell
from identree.web.router import LOGIN_PATH, CardAnswers, Router
from identree.web.sessions import BrowserSessions, Flash
from identree.web.translations import N_
from identree.web.views import banners

POLICIES_PATH = "/admin/policies"
PREVIEW_PATH = "/api/policy/preview"
IMPORT_PATH = "/api/policies/import"
# A form with every list at its length.
FORM_BODY_BYTES = 64 << 10
# A whole policy file in a form field, percent-encoded.
IMPORT_BODY_BYTES = 3 * POLICY_BYTES
PREVIEW_BODY_BYTES = POLICY_BYTES + 4096
MAX_HOSTS_AND_USERS = 253

POLICIES_PAGE = AdminPage(path=POLICIES_PATH, name=N_("Policies"), icon="key", key="p", goes=N_("Go to the policies"))

_LISTS = (
    "match_hosts",
    "match_host_groups",
    "match_users",
    "match_commands",
    "notify_channels",
    "approver_groups",
)
_TRUTHS = ("require_admin", "auto_approve_grace", "break_glass_bypass", "forbid_self_approval")
_TEXTS = (
    "allowed_hours",
    "allowed_days",
    "time_zone",
    "require_fresh_oidc",
    "max_grace",
    "unknown_command",
    "description",
)


def fields_of(get: Callable[[str], str]) -> dict[str, object]:
    """
    A policy from a form: lists by commas, ``on`` or ``true`` for what is ticked.

    :raise Invalid: the name, or a number.
    """
    name = get("name").strip()
    if NAME.fullmatch(name) is None:
        raise Invalid("policy name must be lowercase alphanumeric with hyphens/dots/underscores (1-64 chars)")
    values: dict[str, object] = {"name": name}
    for key in _LISTS:
        items = [item.strip() for item in get(key).split(",") if item.strip()]
        if items:
            values[key] = items
    for key in _TRUTHS:
        values[key] = get(key) in ("on", "true")
    for key in _TEXTS:
        if get(key).strip():
            values[key] = get(key).strip()
    if "match_commands" not in values:
        values.pop("unknown_command", None)
    approvals = get("min_approvals").strip()
    values["min_approvals"] = (
        max(1, int(approvals)) if approvals.isascii() and approvals.isdigit() and len(approvals) < 9 else 1
    )
    priority = get("priority").strip()
    if priority:
        try:
            values["priority"] = int(priority[:8])
        except ValueError:
            raise Invalid("priority: a whole number such as 10") from None
    return {key: value for key, value in values.items() if value is not False}


class PolicyRoutes:
    """
    :param ends_at: when a session that is renewed now ends (``People.session_ends_at``).
    :param channels: names of the notification channels.
    :param host_groups: of the host registry; None: there is none.
    :param in_thread: runs what takes long in a thread.
    """

    router = Router()

    def __init__(
        self,
        *,
        book: PolicyBook,
        decisions: Decisions,
        forms: Forms,
        sessions: BrowserSessions,
        render: Renderer,
        rules: Callable[[], Rules],
        ends_at: Callable[[Caller], datetime],
        channels: Callable[[], tuple[str, ...]] = tuple,
        host_groups: Callable[[], tuple[str, ...] | None] = lambda: None,
        in_thread: InThread,
    ) -> None:
        self.answers = PolicyAnswers(render)
        self._book = book
        self._decisions = decisions
        self._forms = forms
        self._sessions = sessions
        self._render = render
        self._rules = rules
        self._ends_at = ends_at
        self._channels = channels
        self._host_groups = host_groups
        self._in_thread = in_thread

    # -- looking ------------------------------------------------------------------------------------------------------
    @router.route(POLICIES_PATH, methods=["GET"])
    async def page(self, request: IRequest) -> bytes:
        """``?edit=NAME`` shows the form of one, ``?version=N`` compares an older version with what is in force."""
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
        asked = query(request)
        try:
            sight = await self._book.sight(caller, _number(asked.get("before", "")))
        except Forbidden:
            return replies.see_other(request, self._rules().external_url + "/")
        number = _number(asked.get("version", ""))
        older = await self._book.version(caller, number) if number else None
        reading = self._render.reading(request)
        flashes = self._sessions.flashes(request)
        channels, host_groups = self._channels(), self._host_groups()
        user, host = asked.get("user", "").strip(), asked.get("host", "").strip().lower()
        command = asked.get("command", "")[:4096]
        preview = None
        if user and host:
            found = self._book.preview(user[:MAX_HOSTS_AND_USERS], host[:MAX_HOSTS_AND_USERS], command=command)
            preview = preview_view(reading, found)

        def make() -> dict[str, object]:
            view = policies_view(
                reading,
                sight,
                editing=asked.get("edit", ""),
                older=older,
                channels=channels,
                host_groups=host_groups,
            )
            return {
                "view": view,
                "preview": preview,
                "asked": {"user": user, "host": host, "command": command},
                "banners": (*banners(flashes, reading), *view.said(flashes)),
            }

        return await self._render.page_in_thread(
            request, "admin_policies.html", self._in_thread, make, shell=await self._shell(caller)
        )

    @router.route("/api/policies/export", methods=["GET"])
    async def export(self, request: IRequest) -> bytes:
        """The policies in force, or ``?version=N``, as a policy file."""
        caller = await self._sessions.caller(request)
        number = _number(query(request).get("version", ""))
        if number:
            document = (await self._book.version(caller, number)).document
        else:
            await self._book.sight(caller)
            document = self._book().to_json()
        request.responseHeaders.setRawHeaders(
            b"Content-Disposition", [b'attachment; filename="approval-policies.json"']
        )
        return replies.send(request, http.OK, b"application/json", document.encode())

    # -- changing -----------------------------------------------------------------------------------------------------
    @router.route("/api/policies/add", methods=["POST"])
    async def add(self, request: IRequest) -> bytes:
        sent = await self._accepted(request)

        async def work() -> Flash:
            fields = fields_of(sent.get)
            return "policy_added", (await self._book.add(sent.caller, fields, seen=_seen(sent), address=sent.address),)

        return await self._done(request, work)

    @router.route("/api/policies/update", methods=["POST"])
    async def update(self, request: IRequest) -> bytes:
        sent = await self._accepted(request)

        async def work() -> Flash:
            fields = fields_of(sent.get)
            name = await self._book.update(
                sent.caller, sent.get("policy") or str(fields["name"]), fields, seen=_seen(sent), address=sent.address
            )
            return "policy_updated", (name,)

        return await self._done(request, work)

    @router.route("/api/policies/delete", methods=["POST"])
    async def delete(self, request: IRequest) -> bytes:
        sent = await self._accepted(request)
        name = sent.get("name")

        async def work() -> Flash:
            await self._book.delete(sent.caller, name, seen=_seen(sent), address=sent.address)
            return "policy_deleted", (name,)

        return await self._done(request, work)

    @router.route("/api/policies/move", methods=["POST"])
    async def move(self, request: IRequest) -> bytes:
        sent = await self._accepted(request)

        async def work() -> Flash:
            position = _number(sent.get("position"))
            if position is None:
                raise Invalid("position: a whole number")
            await self._book.move(sent.caller, sent.get("name"), position, seen=_seen(sent), address=sent.address)
            return "policy_moved", (sent.get("name"),)

        return await self._done(request, work)

    @router.route(IMPORT_PATH, methods=["POST"])
    async def import_document(self, request: IRequest) -> bytes:
        sent = await self._accepted(request)

        async def work() -> Flash:
            raw = sent.get("document").encode()
            count = await self._book.import_document(sent.caller, raw, seen=_seen(sent), address=sent.address)
            return "policies_imported", (str(count),)

        return await self._done(request, work)

    @router.route("/api/policies/revert", methods=["POST"])
    async def revert(self, request: IRequest) -> bytes:
        sent = await self._accepted(request)

        async def work() -> Flash:
            number = _number(sent.get("version"))
            if number is None:
                raise Invalid("version: a whole number")
            await self._book.revert(sent.caller, number, seen=_seen(sent), address=sent.address)
            return "policies_reverted", (str(number),)

        return await self._done(request, work)

    # -- inside -------------------------------------------------------------------------------------------------------
    async def _accepted(self, request: IRequest) -> Form:
        sent = await self._forms.accepted(request)
        if not sent.caller.is_admin:
            raise Forbidden
        return sent

    async def _done(self, request: IRequest, work: Callable[[], Awaitable[Flash]]) -> bytes:
        """Every refusal is a flash on the page (spec/http-api section 9.2)."""
        try:
            flash = await work()
        except (Invalid, PoliciesFromFile, PoliciesChanged, UnknownPolicy) as refusal:
            text = refusal.detail if isinstance(refusal, Invalid) else self._render.sentence(request, refusal.key)
            # the cookie's items end at commas
            flash = ("policy_error", (quote(text[:500], safe=" "),))
        self._sessions.flash(request, [flash])
        return replies.see_other(request, self._rules().external_url + POLICIES_PATH)

    async def _shell(self, caller: Caller) -> Shell:
        return Shell(
            caller=caller,
            csrf=self._sessions.csrf(caller),
            ends=int(self._ends_at(caller).astimezone(UTC).timestamp()),
            pending=len(await self._decisions.pending(caller)),
        )


class PolicyAnswers(CardAnswers):
    """The form endpoints of the contract say in plain text that somebody is no administrator."""

    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        if type(refusal) is Forbidden:
            return replies.text(request, http.FORBIDDEN, "forbidden")
        return super().refused(request, refusal)


class PreviewRoutes:
    """What a request would meet, for hosts and administrators."""

    router = Router()

    def __init__(
        self,
        *,
        book: PolicyBook,
        hosts: Hosts,
        sessions: BrowserSessions,
        calls: AdminCalls,
        addresses: Addresses,
        credentials: Credentials,
    ) -> None:
        self.answers = CallAnswers()
        self._book = book
        self._hosts = hosts
        self._sessions = sessions
        self._calls = calls
        self._addresses = addresses
        self._credentials = credentials

    @router.route(PREVIEW_PATH, methods=["GET"])
    async def preview(self, request: IRequest) -> bytes:
        """An administrator's session, or any API secret."""
        if not await self._is_admin(request):
            try:
                self._hosts.authenticate(
                    self._credentials.of(request), self._addresses.of(request), "GET /api/policy/preview"
                )
            except Refused:
                return replies.json_error(request, http.UNAUTHORIZED, "unauthorized")
        asked = query(request)
        host, user = asked.get("host", "").strip().lower(), asked.get("user", "").strip()
        if not host or not user:
            return replies.json_error(request, http.BAD_REQUEST, "host and user query parameters required")
        found = self._book.preview(user[:MAX_HOSTS_AND_USERS], host[:MAX_HOSTS_AND_USERS])
        return replies.send_json(request, http.OK, preview_json(found))

    @router.route(PREVIEW_PATH, methods=["POST"])
    async def who(self, request: IRequest) -> bytes:
        """
        Members ``user`` and ``host``, and if wanted ``command``, ``at`` (RFC 3339) and ``policies``, a draft that is
        asked instead of what is in force. Answers also why, and who could approve it.
        """
        await self._calls.accepted(request)
        if not is_json(request):
            raise Invalid("content-type must be application/json")
        try:
            raw = body(request)[:PREVIEW_BODY_BYTES]
            members = json_object(raw)
            user, host = json_string(members, "user").strip(), json_string(members, "host").strip().lower()
            command, at = json_string(members, "command")[:4096], json_string(members, "at")
        except BadJSON:
            raise Invalid("invalid request body") from None
        if not host or not user:
            raise Invalid("host and user are required")
        draft = None
        if members.get("policies") is not None:
            try:
                draft = await self._book.draft(members["policies"])
            except ValueError as problem:
                raise Invalid(str(problem)) from None
        found = self._book.preview(
            user[:MAX_HOSTS_AND_USERS], host[:MAX_HOSTS_AND_USERS], command=command, at=_instant(at), draft=draft
        )
        return replies.send_json(request, http.OK, preview_in_full(found))

    async def _is_admin(self, request: IRequest) -> bool:
        try:
            return (await self._sessions.caller(request)).is_admin
        except SessionExpired:
            return False


def _instant(text: str) -> datetime | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid("at: a time such as 2026-03-01T12:00:00Z") from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _seen(sent: Form) -> int | None:
    """The version that the page showed; deployed pages send none."""
    return _number(sent.get("seen"))
