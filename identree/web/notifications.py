"""
Notification channels, routes and preferences, and the browsers that get push messages: pages, forms, and calls of
scripts (spec/notifications-and-policy section 4, spec/http-api section 9, spec/web-ui section 12.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

from twisted.web import http
from twisted.web.iweb import IRequest

from identree.app.decisions import Decisions
from identree.app.notices import MAX_ENDPOINT, NoticeRefused, Notices, TestResult
from identree.app.people import Caller, People
from identree.app.rules import Rules
from identree.core import durations, errors, noticefiles
from identree.core.errors import Forbidden, Refused, SessionExpired
from identree.core.notices import Preference, Quiet, Route
from identree.storage.interface import DeliveryState
from identree.web import replies
from identree.web.fleet import AdminCalls, CallAnswers, CallRefused
from identree.web.forms import Form, Forms
from identree.web.notification_views import NotificationsView, page_banners, page_view, profile_view
from identree.web.reading import Addresses, BadJSON, body, first_header, is_json, json_object, json_string, query
from identree.web.render import AdminPage, Renderer, Shell
from identree.web.router import LOGIN_PATH, CardAnswers, Router, TextAnswers
from identree.web.sessions import BrowserSessions, Flash
from identree.web.translations import N_

NOTIFICATIONS_PATH = "/admin/notifications"
PROFILE_PATH = "/profile/notifications"
# Systems that cut icons to their own shape take the maskable one.
INSTALLED_ICONS = (
    ("icon-192.png", 192, "any"),
    ("icon-512.png", 512, "any"),
    ("icon-maskable-512.png", 512, "maskable"),
)
WORKER_PATH, MANIFEST_PATH = "/sw.js", "/manifest.webmanifest"
FORM_BODY_BYTES = 64 << 10
DEVICE_BODY_BYTES = 4096

NOTIFICATIONS_PAGE = AdminPage(
    path=NOTIFICATIONS_PATH,
    name=N_("Notifications"),
    icon="bell",
    key="n",
    goes=N_("Go to the notifications"),
)


class NoticeAnswers(CardAnswers):
    """The form endpoints of the contract say what is wrong in plain text."""

    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        if isinstance(refusal, NoticeRefused):
            return replies.text(request, refusal.status, refusal.detail)
        if type(refusal) is Forbidden:
            return replies.text(request, http.FORBIDDEN, "forbidden")
        return super().refused(request, refusal)


class NotificationRoutes:
    """:param ends_at: when a session that is renewed now ends (``People.session_ends_at``)."""

    router = Router()

    def __init__(
        self,
        *,
        desk: Notices,
        decisions: Decisions,
        forms: Forms,
        sessions: BrowserSessions,
        render: Renderer,
        rules: Callable[[], Rules],
        ends_at: Callable[[Caller], datetime],
    ) -> None:
        self.answers = NoticeAnswers(render)
        self._desk = desk
        self._decisions = decisions
        self._forms = forms
        self._sessions = sessions
        self._render = render
        self._rules = rules
        self._ends_at = ends_at

    # -- pages --------------------------------------------------------------------------------------------------------
    @router.route(NOTIFICATIONS_PATH, methods=["GET"])
    async def page(self, request: IRequest) -> bytes:
        """``?edit=NAME`` and ``?route=N`` show forms; ``channel``, ``state`` and ``before`` are of the delivery log."""
        opened = await self._opened(request)
        if isinstance(opened, bytes):
            return opened
        if not opened.is_admin:
            return replies.see_other(request, self._rules().external_url + "/")
        view = await self._view(request, opened)
        return await self._page(request, "admin_notifications.html", opened, view)

    @router.route("/fragments/deliveries", methods=["GET"])
    async def deliveries_fragment(self, request: IRequest) -> bytes:
        """The delivery log of the page with the same query, as it is now; does not prolong the session."""
        caller = await self._sessions.caller(request)
        return self._render.fragment(request, "fragments/deliveries.html", view=await self._view(request, caller))

    async def _view(self, request: IRequest, caller: Caller) -> NotificationsView:
        asked = query(request)
        state = next((one for one in DeliveryState if one.value == asked.get("state", "")), None)
        channel = asked.get("channel", "")[:64]
        log = await self._desk.deliveries(caller, before=_number(asked.get("before", "")), channel=channel, state=state)
        return page_view(
            self._render.reading(request),
            channels=self._desk.channels(caller),
            routes=self._desk.routes(caller),
            preferences=self._desk.preferences(caller),
            problems=self._desk.problems(caller),
            log=log,
            editing=asked.get("edit", ""),
            route=_number(asked.get("route", "")),
            channel=channel,
            state=state,
        )

    @router.route(PROFILE_PATH, methods=["GET"])
    async def profile(self, request: IRequest) -> bytes:
        opened = await self._opened(request)
        if isinstance(opened, bytes):
            return opened
        view = profile_view(
            self._render.reading(request),
            admin=opened.is_admin,
            preference=self._desk.preference(opened) if opened.is_admin else None,
            channels=self._desk.channels(opened) if opened.is_admin else (),
            devices=await self._desk.devices(opened),
            public_key=self._desk.vapid_public,
        )
        return await self._page(request, "profile_notifications.html", opened, view)

    async def _opened(self, request: IRequest) -> Caller | bytes:
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
        return caller

    async def _page(self, request: IRequest, template: str, caller: Caller, view: object) -> bytes:
        flashes = self._sessions.flashes(request)
        reading = self._render.reading(request)
        shell = Shell(
            caller=caller,
            csrf=self._sessions.csrf(caller),
            ends=int(self._ends_at(caller).astimezone(UTC).timestamp()),
            pending=len(await self._decisions.pending(caller)),
        )
        banners = (*self._render.banners(request, flashes), *page_banners(flashes, reading))
        return self._render.page(request, template, shell=shell, view=view, banners=banners)

    # -- channels -----------------------------------------------------------------------------------------------------
    @router.route("/api/notification/channels/add", methods=["POST"])
    async def add_channel(self, request: IRequest) -> bytes:
        sent = await self._admin_form(request)
        name = sent.get("name").strip()
        await self._desk.add_channel(
            sent.caller, name, sent.get("backend"), sent.get("url").strip(), address=sent.address, **_more(sent)
        )
        return self._done(request, ("channel_added", (name,)))

    @router.route("/api/notification/channels/update", methods=["POST"])
    async def update_channel(self, request: IRequest) -> bytes:
        sent = await self._admin_form(request)
        name = sent.get("name").strip()
        await self._desk.update_channel(
            sent.caller, name, sent.get("backend"), sent.get("url").strip(), address=sent.address, **_more(sent)
        )
        return self._done(request, ("channel_changed", (name,)))

    @router.route("/api/notification/channels/delete", methods=["POST"])
    async def delete_channel(self, request: IRequest) -> bytes:
        sent = await self._admin_form(request)
        name = sent.get("name").strip()
        await self._desk.delete_channel(sent.caller, name, address=sent.address)
        return self._done(request, ("channel_deleted", (name,)))

    @router.route("/api/admin/test-channel", methods=["POST"])
    async def test_channel(self, request: IRequest) -> bytes:
        sent = await self._admin_form(request)
        name = sent.get("channel").strip()
        result = await self._desk.test(sent.caller, name, address=sent.address)
        return self._done(request, _tested(result))

    # -- routes -------------------------------------------------------------------------------------------------------
    @router.route("/api/notification/routes/add", methods=["POST"])
    async def add_route(self, request: IRequest) -> bytes:
        sent = await self._admin_form(request)
        await self._desk.add_route(sent.caller, _route(sent), address=sent.address)
        return self._done(request, ("route_added", ()))

    @router.route("/api/notification/routes/update", methods=["POST"])
    async def update_route(self, request: IRequest) -> bytes:
        sent = await self._admin_form(request)
        await self._desk.update_route(
            sent.caller, sent.get("index"), _route(sent), seen=sent.get("seen"), address=sent.address
        )
        return self._done(request, ("route_changed", ()))

    @router.route("/api/notification/routes/delete", methods=["POST"])
    async def delete_route(self, request: IRequest) -> bytes:
        sent = await self._admin_form(request)
        await self._desk.delete_route(sent.caller, sent.get("index"), seen=sent.get("seen"), address=sent.address)
        return self._done(request, ("route_deleted", ()))

    # -- preferences --------------------------------------------------------------------------------------------------
    @router.route("/api/admin/notification-preferences", methods=["POST"])
    async def preferences(self, request: IRequest) -> bytes:
        sent = await self._admin_form(request)
        location = PROFILE_PATH if sent.get("redirect_to") == PROFILE_PATH else NOTIFICATIONS_PATH
        if sent.get("action") == "delete":
            await self._desk.delete_preference(sent.caller, address=sent.address)
            return self._done(request, ("pref_deleted", ()), location)
        preference = Preference(
            username=sent.caller.username,
            channels=_list(sent, "channels"),
            events=_list(sent, "events"),
            hosts=_list(sent, "hosts"),
            enabled=sent.get("enabled") in ("on", "true"),
            quiet=_quiet(sent),
        )
        await self._desk.save_preference(sent.caller, preference, address=sent.address)
        return self._done(request, ("pref_saved", ()), location)

    # -- inside -------------------------------------------------------------------------------------------------------
    async def _admin_form(self, request: IRequest) -> Form:
        sent = await self._forms.accepted(request)
        if not sent.caller.is_admin:
            raise Forbidden
        return sent

    def _done(self, request: IRequest, flash: Flash, location: str = NOTIFICATIONS_PATH) -> bytes:
        self._sessions.flash(request, [flash])
        return replies.see_other(request, self._rules().external_url + location)


class NotificationCalls:
    """What scripts of administrators ask."""

    router = Router()

    def __init__(self, *, desk: Notices, calls: AdminCalls, addresses: Addresses) -> None:
        self.answers = NoticeCallAnswers()
        self._desk = desk
        self._calls = calls
        self._addresses = addresses

    @router.route("/api/notification/channels", methods=["GET"])
    async def channels(self, request: IRequest) -> bytes:
        """Without secrets."""
        caller = await self._calls.accepted(request)
        found = []
        for channel in self._desk.channels(caller):
            value = noticefiles.channel_json(channel)
            found.append({key: value[key] for key in ("name", "backend", "url", "timeout") if key in value})
        return replies.send_json(request, http.OK, found)

    @router.route("/api/admin/test-notification", methods=["POST"])
    async def test(self, request: IRequest) -> bytes:
        caller = await self._calls.accepted(request)
        name = query(request).get("channel", "")
        address = self._addresses.of(request)
        try:
            results = (
                [await self._desk.test(caller, name, address=address)]
                if name
                else await self._desk.test_all(caller, address=address)
            )
        except NoticeRefused as refusal:
            return replies.send_json(request, refusal.status, {"error": refusal.detail, "ok": False})
        errors_ = [f"{one.channel}: {one.error}" for one in results if one.error]
        if errors_:
            return replies.send_json(request, http.BAD_GATEWAY, {"errors": errors_, "ok": False})
        return replies.send_json(request, http.OK, {"ok": True})


class NoticeCallAnswers(CallAnswers):
    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        if isinstance(refusal, NoticeRefused):
            return replies.json_error(request, refusal.status, refusal.detail)
        return super().refused(request, refusal)


class InstallRoutes:
    """What makes the dashboard installable, and the worker that shows push messages; no session, no cookies."""

    router = Router()

    def __init__(self, render: Renderer) -> None:
        self.answers = TextAnswers()
        self._render = render

    # -- the installable page -----------------------------------------------------------------------------------------
    @router.route(WORKER_PATH, methods=["GET"])
    def worker(self, request: IRequest) -> bytes:
        """The service worker: its address is its reach, so it stands at the top."""
        request.responseHeaders.setRawHeaders(b"Cache-Control", [b"no-cache"])
        return replies.send(request, http.OK, b"text/javascript; charset=utf-8", self._render.assets.read("sw.js"))

    @router.route(MANIFEST_PATH, methods=["GET"])
    def manifest(self, request: IRequest) -> bytes:
        """What makes the dashboard installable (W3C Web Application Manifest)."""
        url = self._render.url
        value = {
            "name": "identree",
            "short_name": "identree",
            "start_url": url("/"),
            "scope": url("/"),
            "display": "standalone",
            "background_color": "#f6f7f6",
            "theme_color": "#127a4a",
            "icons": [
                {
                    "src": url(self._render.assets.path(name)),
                    "sizes": f"{size}x{size}",
                    "type": "image/png",
                    "purpose": purpose,
                }
                for name, size, purpose in INSTALLED_ICONS
            ],
        }
        request.responseHeaders.setRawHeaders(b"Cache-Control", [b"max-age=3600"])
        return replies.send(request, http.OK, b"application/manifest+json", replies.encode_json(value))


class PushRoutes:
    """Browsers that get push messages: of everybody who is signed in, with the form token in headers."""

    router = Router()

    def __init__(
        self,
        *,
        desk: Notices,
        people: People,
        sessions: BrowserSessions,
        addresses: Addresses,
    ) -> None:
        self.answers = NoticeCallAnswers()
        self._desk = desk
        self._people = people
        self._sessions = sessions
        self._addresses = addresses

    @router.route("/api/push/key", methods=["GET"])
    async def key(self, request: IRequest) -> bytes:
        """For ``PushManager.subscribe``; no secret."""
        return replies.send_json(request, http.OK, {"key": self._desk.vapid_public})

    @router.route("/api/push/devices", methods=["POST"])
    async def add(self, request: IRequest) -> bytes:
        """Body: what ``PushSubscription.toJSON`` gives, and ``label``."""
        caller = await self._accepted(request)
        members = self._members(request)
        try:
            keys = members.get("keys")
            keys = keys if isinstance(keys, dict) else {}
            endpoint, label = json_string(members, "endpoint"), json_string(members, "label")
            p256dh, auth = json_string(keys, "p256dh"), json_string(keys, "auth")
        except BadJSON:
            raise NoticeRefused(400, "invalid request body") from None
        if not _good_endpoint(endpoint):
            raise NoticeRefused(400, "the endpoint must be an https address of at most 1024 characters")
        if not (_sized(p256dh, 65) and _sized(auth, 16)):
            raise NoticeRefused(400, "the keys must be those of a push subscription")
        device = await self._desk.add_device(
            caller,
            endpoint=endpoint,
            p256dh=p256dh,
            auth=auth,
            label=label or "Browser",
            address=self._addresses.of(request),
        )
        return replies.send_json(request, http.CREATED, {"id": device.id, "label": device.label})

    @router.route("/api/push/devices/remove", methods=["POST"])
    async def remove(self, request: IRequest) -> bytes:
        caller = await self._accepted(request)
        removed = await self._desk.remove_device(caller, self._id(request), address=self._addresses.of(request))
        return replies.send_json(request, http.OK, {"ok": True, "removed": removed})

    @router.route("/api/push/devices/test", methods=["POST"])
    async def test(self, request: IRequest) -> bytes:
        caller = await self._accepted(request)
        result = await self._desk.test_device(caller, self._id(request))
        if result.error:
            return replies.send_json(request, http.BAD_GATEWAY, {"error": result.error, "ok": False})
        return replies.send_json(request, http.OK, {"ok": True})

    # -- inside -------------------------------------------------------------------------------------------------------
    async def _accepted(self, request: IRequest) -> Caller:
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            raise CallRefused(http.UNAUTHORIZED, "unauthorized") from None
        token = first_header(request, b"X-CSRF-Token").decode("latin-1")
        ts = first_header(request, b"X-CSRF-Ts").decode("latin-1")
        if not (token and ts):
            raise CallRefused(http.FORBIDDEN, "missing CSRF headers")
        try:
            self._people.check_csrf(caller, token, ts)
        except (errors.Invalid, errors.FormExpired, errors.BadCsrfToken):
            raise CallRefused(http.FORBIDDEN, "invalid CSRF token") from None
        self._people.accept_form(caller)
        return caller

    def _members(self, request: IRequest) -> dict[str, Any]:
        if not is_json(request):
            raise CallRefused(http.UNSUPPORTED_MEDIA_TYPE, "content-type must be application/json")
        try:
            return dict(json_object(body(request)[:DEVICE_BODY_BYTES]))
        except BadJSON:
            raise NoticeRefused(400, "invalid request body") from None

    def _id(self, request: IRequest) -> str:
        try:
            id = json_string(self._members(request), "id")
        except BadJSON:
            id = ""
        if len(id) != 64 or not set(id) <= set("0123456789abcdef"):
            raise NoticeRefused(400, "invalid id")
        return id


def _good_endpoint(endpoint: str) -> bool:
    if not 0 < len(endpoint) <= MAX_ENDPOINT or not endpoint.isascii() or not endpoint.isprintable():
        return False
    try:
        parts = urlsplit(endpoint)
    except ValueError:
        return False
    # a push service on this machine is one for tests, and the guard lets nothing through to it unless it is told to
    local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
    return bool(parts.hostname) and "@" not in parts.netloc and (parts.scheme == "https" or local)


def _sized(text: str, length: int) -> bool:
    """URL-safe base64 of so many bytes."""
    clean = text.rstrip("=")
    return len(clean) == (length * 4 + 2) // 3 and all(
        one.isascii() and (one.isalnum() or one in "-_") for one in clean
    )


def _list(sent: Form, name: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in sent.get(name).split(",") if item.strip())[: noticefiles.MAX_ITEMS]


def _route(sent: Form) -> Route:
    route = Route(
        channels=_list(sent, "channels"),
        events=_list(sent, "events"),
        hosts=_list(sent, "hosts"),
        users=_list(sent, "users"),
        escalate_to=_list(sent, "escalate_to"),
    )
    text = sent.get("escalate_after").strip()
    if not text:
        return route
    try:
        after = durations.parse(text)
    except ValueError:
        after = timedelta(0)
    if not timedelta(0) < after <= noticefiles.LONGEST_ESCALATION:
        raise NoticeRefused(400, "the time of an escalation must be like 60s or 5m, at most 24h")
    return replace(route, escalate_after=after)


def _quiet(sent: Form) -> Quiet | None:
    hours = sent.get("quiet_hours").strip()
    if not hours:
        return None
    try:
        return noticefiles.quiet_hours(hours, sent.get("quiet_zone").strip() or "UTC", sent.get("quiet_days").strip())
    except ValueError as problem:
        raise NoticeRefused(400, str(problem)) from None


def _more(sent: Form) -> dict[str, Any]:
    """The fields of a channel that deployed pages do not send."""
    timeout = _number(sent.get("timeout").strip())
    return {
        "sender": sent.get("sender").strip()[:256],
        "to": _list(sent, "to"),
        "topic": sent.get("topic").strip()[:256],
        "quiet": _quiet(sent),
        "timeout": min(timedelta(seconds=timeout), noticefiles.LONGEST_TIMEOUT) if timeout else None,
    }


def _tested(result: TestResult) -> Flash:
    if result.error:
        # the cookie's items end at commas
        return "test_failed", (quote(f"{result.channel}: {result.error}"[:500], safe=" "),)
    return "test_sent", (result.channel,)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
