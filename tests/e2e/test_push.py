"""
Web Push from a request to the phone: the server with its planner and dispatcher, a push service on loopback that checks
what real ones check, and Chromium's service worker, which gets what the push service got and nothing else.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Queue
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from playwright.sync_api import CDPSession, Worker, expect

from identree.clients.notify.webpush import unb64
from tests.clients.notify.test_webpush import Browser as PushBrowser
from tests.e2e import wire
from tests.e2e.browser import Browser, Person
from tests.e2e.provider import Provider
from tests.e2e.server import Server, free_port

pytestmark = pytest.mark.e2e

USER = "alice"
HOSTNAME = "web-01"
CONTACT = "mailto:ops@example.com"
PATIENCE_SECONDS = 30.0
DAY_SECONDS = 24 * 3600
MOST_BYTES = 4096


class PushService:
    """
    A push service for one browser (RFC 8030, 8188, 8291, 8292).

    :ivar received: what was sent, decrypted as only the browser can.
    :ivar refused: why something was not taken.
    :ivar key: with which the browser subscribed; only its owner may send.
    """

    def __init__(self) -> None:
        self.browser = PushBrowser()
        self.received: Queue[dict[str, Any]] = Queue()
        self.refused: list[str] = []
        self.key = ""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                why = service.objection(headers, body)
                if why:
                    service.refused.append(why)
                else:
                    service.received.put(json.loads(service.browser.decrypt(body)))
                self.send_response(400 if why else 201)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> PushService:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def objection(self, headers: dict[str, str], body: bytes) -> str:
        """Why the message is not taken; empty: it is."""
        if headers.get("content-encoding") != "aes128gcm" or len(body) > MOST_BYTES:
            return "not one record of aes128gcm"
        if not headers.get("ttl", "").isdigit():
            return f"TTL: {headers.get('ttl')}"
        if headers.get("urgency") not in ("very-low", "low", "normal", "high"):
            return f"Urgency: {headers.get('urgency')}"
        scheme, _, rest = headers.get("authorization", "").partition(" ")
        given = dict(part.strip().split("=", 1) for part in rest.split(",") if "=" in part)
        if scheme != "vapid" or given.get("k") != self.key or not self.key:
            return "not from whom the browser has subscribed with"
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), unb64(given["k"]))
        try:
            claims = jwt.decode(given.get("t", ""), point, ["ES256"], audience=self.origin)
        except jwt.InvalidTokenError as problem:
            return f"the token: {problem}"
        if not 0 < claims["exp"] - time.time() <= DAY_SECONDS:
            return "the token lasts for too long"
        return "" if claims.get("sub") == CONTACT else f"nobody to turn to: {claims.get('sub')}"

    def next(self) -> dict[str, Any]:
        message = self.received.get(timeout=PATIENCE_SECONDS)
        assert not self.refused, self.refused
        return message

    @property
    def script(self) -> str:
        """Headless Chromium has no push service of its own; this is its subscription with ours."""
        value = {
            "endpoint": f"{self.origin}/send/one",
            "expirationTime": None,
            "keys": {"p256dh": self.browser.p256dh, "auth": self.browser.auth},
        }
        return f"""
const ours = {{ ...{json.dumps(value)}, toJSON: () => ({json.dumps(value)}), unsubscribe: async () => true }};
PushManager.prototype.subscribe = async function (options) {{
  if (!options.userVisibleOnly) throw new Error("silent pushes are not permitted");
  const key = btoa(String.fromCharCode(...new Uint8Array(options.applicationServerKey)));
  sessionStorage.setItem("subscribed", key.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, ""));
  return ours;
}};
PushManager.prototype.getSubscription = async () => (sessionStorage.getItem("subscribed") ? ours : null);
"""


class Phone:
    """A browser with our service worker, into which messages are put as its push service would."""

    def __init__(self, who: Person, origin: str) -> None:
        self.who = who
        self._origin = origin
        self._session: CDPSession = who.page.context.new_cdp_session(who.page)
        found: list[str] = []
        self._session.on(
            "ServiceWorker.workerRegistrationUpdated",
            lambda event: found.extend(one["registrationId"] for one in event["registrations"]),
        )
        self._session.send("ServiceWorker.enable")
        who.page.evaluate("navigator.serviceWorker.ready.then(() => null)")
        while not found:
            who.page.wait_for_timeout(20)
        self._registration = found[-1]

    @property
    def worker(self) -> Worker:
        [worker] = self.who.page.context.service_workers
        return worker

    def deliver(self, message: dict[str, Any]) -> dict[str, Any]:
        """Returns what is shown for it."""
        self._session.send(
            "ServiceWorker.deliverPushMessage",
            {"origin": self._origin, "registrationId": self._registration, "data": json.dumps(message)},
        )
        shown: dict[str, Any] = self.who.page.wait_for_function(
            """async (title) => {
  const registration = await navigator.serviceWorker.ready;
  const all = await registration.getNotifications();
  const one = all.find((each) => each.title === title);
  const actions = one?.actions.map((each) => each.action);
  return one ? { tag: one.tag, body: one.body, actions, insists: one.requireInteraction, count: all.length } : null;
}""",
            arg=message["title"],
        ).json_value()
        return shown

    def press(self, message: dict[str, Any], action: str) -> str:
        """Deliver, and press a button of the notification, or itself; it goes then. Returns the address that opens."""
        self.deliver(message)
        # only a real press may open a window; where it would lead is what counts here
        opened: str = self.worker.evaluate(
            """async ([tag, action]) => {
  const [notification] = await self.registration.getNotifications({ tag });
  return await new Promise((resolve) => {
    Object.defineProperty(self.clients, "openWindow", { configurable: true, value: async (url) => resolve(url) });
    self.dispatchEvent(new NotificationEvent("notificationclick", { notification, action }));
  });
}""",
            [message["tag"], action],
        )
        return opened


@pytest.fixture(scope="module")
def service() -> Iterator[PushService]:
    with PushService() as made:
        yield made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    with ExitStack() as stack:
        provider = stack.enter_context(Provider(free_port(), [f"http://127.0.0.1:{port}/callback"], {USER: ["users"]}))
        settings = {
            **provider.settings,
            "IDENTREE_NOTIFY_ALLOWED_NETWORKS": "127.0.0.0/8",
            "IDENTREE_WEBPUSH_CONTACT": CONTACT,
        }
        yield stack.enter_context(Server(tmp_path_factory.mktemp("server"), settings, port))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


def test_from_request_to_phone(server: Server, browser: Browser, service: PushService) -> None:
    """A device is added and tested; a request comes, is approved from it, and the outcome takes the request's place."""
    with browser.person(size="phone") as who:
        who.page.context.grant_permissions(["notifications"], origin=server.url)
        who.page.add_init_script(service.script)
        who.open(f"{server.url}/profile/notifications")
        who.sign_in(USER)
        who.page.locator("[data-push-on]").click()
        expect(who.page.locator("[data-device]")).to_have_count(1)
        expect(who.page.locator("[data-push-off]")).to_be_visible()
        service.key = who.page.evaluate("sessionStorage.getItem('subscribed')")
        who.page.locator("[data-device-test]").click()
        test = service.next()
        assert test["title"] == "Test notification from identree"
        phone = Phone(who, server.url)
        assert phone.deliver(test)["actions"] == []

        made = wire.create(server.port, USER, HOSTNAME).json
        code = made["user_code"]
        asks = service.next()
        asked = phone.deliver(asks)
        assert (asked["tag"], asked["actions"], asked["insists"], asked["count"]) == (
            code,
            ["approve", "open"],
            True,
            2,
        )
        assert USER in asked["body"]
        assert HOSTNAME in asked["body"]
        assert phone.press(asks, "open") == phone.press(asks, "") == f"{server.url}/approve/{code}"
        one_tap = phone.press(asks, "approve")
        assert one_tap.startswith(f"{server.url}/api/onetap/")

        # whoever only looks at the link decides nothing
        path = urlsplit(one_tap).path
        for method in ("GET", "HEAD"):
            wire.ask(server.port, method, path)
        assert wire.poll(server.port, made["challenge_id"]).json["status"] == "pending"
        who.open(one_tap)
        expect(who.page.locator("main")).to_contain_text(code)
        who.accessible()
        who.keep("one-tap")
        who.page.locator("[data-test=approve]").click()
        who.shows("[data-onetap=done]")
        assert wire.poll(server.port, made["challenge_id"]).json["status"] == "approved"

        who.open(f"{server.url}/profile/notifications")
        over = phone.deliver(service.next())
        assert (over["tag"], over["actions"], over["insists"], over["count"]) == (code, [], False, 2)
        who.expected.append("status of (4[0-9][0-9])")
        who.open(one_tap)
        expect(who.page.locator("[data-test=approve]")).to_have_count(0)
