"""
Web Push from a request to the phone: the server with its planner and dispatcher, a push service on loopback that checks
what real ones check, and Chromium's service worker, which gets what the push service got and nothing else.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Queue
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from playwright.sync_api import CDPSession, Worker, expect

from identree.clients.notify.webpush import VapidKey, encrypt, unb64
from tests.clients.notify.test_webpush import Browser as PushBrowser
from tests.e2e import wire
from tests.e2e.browser import Browser, Person
from tests.e2e.provider import Provider
from tests.e2e.server import Server, free_port
from tests.e2e.test_policy_pages import fits

pytestmark = pytest.mark.e2e

USER = "alice"
HOSTNAME = "web-01"
CONTACT = "mailto:ops@example.com"
TEST_TITLE = "Test notification from identree"
PATIENCE_SECONDS = 30.0
DAY_SECONDS = 24 * 3600
MOST_BYTES = 4096
# How often it is looked whether a notification is shown, and after how many looks it is delivered once more.
POLL_MS, TRIES_EACH, TRIES = 20, 100, 1500


class Unwelcome(Exception):
    """
    A push service does not take a message.

    :ivar status: that it answers.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class PushService:
    """
    A push service for one browser (RFC 8030, 8188, 8291, 8292).

    :ivar key: with which the browser subscribed; only its owner may send.
    """

    def __init__(self) -> None:
        self.browser = PushBrowser()
        self._received: Queue[str | Exception] = Queue()
        self.key = ""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                try:
                    service.check(headers, body)
                    service._received.put(service.browser.decrypt(body).decode())
                    status = 201
                except Exception as problem:  # the test is told, whatever it is
                    service._received.put(problem)
                    status = problem.status if isinstance(problem, Unwelcome) else 400
                self.send_response(status)
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

    def check(self, headers: Mapping[str, str], body: bytes) -> None:
        """
        :param headers: names in lower case.
        :raise Unwelcome: the message is not taken.
        """
        if headers.get("content-encoding") != "aes128gcm":
            raise Unwelcome(400, f"Content-Encoding: {headers.get('content-encoding')}")
        if len(body) > MOST_BYTES:
            raise Unwelcome(413, f"{len(body)} bytes")
        if not headers.get("ttl", "").isdigit():
            raise Unwelcome(400, f"TTL: {headers.get('ttl')}")
        if headers.get("urgency") not in ("very-low", "low", "normal", "high"):
            raise Unwelcome(400, f"Urgency: {headers.get('urgency')}")
        scheme, _, rest = headers.get("authorization", "").partition(" ")
        given = dict(part.strip().split("=", 1) for part in rest.split(",") if "=" in part)
        if scheme != "vapid" or given.keys() != {"t", "k"}:
            raise Unwelcome(401, "no VAPID")
        if not self.key or given["k"] != self.key:
            raise Unwelcome(403, "another key than the browser has subscribed with")
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), unb64(given["k"]))
        try:
            claims = jwt.decode(
                given["t"], point, ["ES256"], audience=self.origin, options={"require": ["aud", "exp", "sub"]}
            )
        except jwt.InvalidTokenError as problem:
            raise Unwelcome(403, f"the token: {problem}") from None
        if claims["exp"] - time.time() > DAY_SECONDS:
            raise Unwelcome(403, "the token lasts for more than a day")
        if not claims["sub"].startswith(("mailto:", "https:")):
            raise Unwelcome(403, f"nobody to turn to: {claims['sub']}")

    def next(self) -> str:
        """
        What was sent, decrypted as only the browser can.

        :raise Exception: why it was not taken.
        """
        came = self._received.get(timeout=PATIENCE_SECONDS)
        if isinstance(came, Exception):
            raise came
        return came

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

    def deliver(self, message: str) -> dict[str, Any]:
        """
        Returns what is shown for it, and the titles of all that is shown.

        :param message: as the push service has it.
        """
        look = """async (wanted) => {
  const registration = await navigator.serviceWorker.ready;
  const all = await registration.getNotifications();
  const one = all.find((each) => each.title === wanted);
  const actions = one?.actions.map((each) => each.action);
  const { tag, title, body, requireInteraction: insists } = one ?? {};
  return one ? { tag, title, body, actions, insists, titles: all.map((each) => each.title).sort() } : null;
}"""
        title = json.loads(message)["title"]
        for tries in range(TRIES):
            if tries % TRIES_EACH == 0:
                # again: Chromium drops what comes before the worker is active, and what is shown right behind
                # a notification of the same tag that is being closed
                self._session.send(
                    "ServiceWorker.deliverPushMessage",
                    {"origin": self._origin, "registrationId": self._registration, "data": message},
                )
            shown: dict[str, Any] | None = self.who.page.evaluate(look, title)
            if shown is not None:
                return shown
            self.who.page.wait_for_timeout(POLL_MS)
        raise AssertionError(f"not shown: {message}")

    def press(self, message: str, action: str) -> str:
        """Deliver, and press a button of the notification, or itself; it goes then. Returns the address that opens."""
        # only a real press may open a window; where it would lead is what counts here
        press = """async ([tag, action]) => {
  const [notification] = await self.registration.getNotifications({ tag });
  if (!notification) return "";
  const opened = await new Promise((resolve) => {
    Object.defineProperty(self.clients, "openWindow", { configurable: true, value: async (url) => resolve(url) });
    self.dispatchEvent(new NotificationEvent("notificationclick", { notification, action }));
  });
  // it leaves a little later; the next one must not be taken for it
  while ((await self.registration.getNotifications({ tag })).length) await new Promise((go) => setTimeout(go, 10));
  return opened;
}"""
        opened = ""
        while not opened:
            self.deliver(message)
            opened = self.worker.evaluate(press, [json.loads(message)["tag"], action])
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
        phone = Phone(who, server.url)
        shown = phone.deliver(test)
        assert (shown["title"], shown["actions"]) == (TEST_TITLE, [])

        made = wire.create(server.port, USER, HOSTNAME).json
        code = made["user_code"]
        asks = service.next()
        for asked in (phone.deliver(asks), phone.deliver(asks)):
            assert (asked["tag"], asked["actions"], asked["insists"]) == (code, ["approve", "open"], True)
            assert asked["titles"] == ["Sudo approval needed", TEST_TITLE]
            assert USER in asked["body"]
            assert HOSTNAME in asked["body"]
        assert phone.press(asks, "open") == phone.press(asks, "") == f"{server.url}/approve/{code}"
        one_tap = phone.press(asks, "approve")
        assert one_tap.startswith(f"{server.url}/api/onetap/")
        # pressed notifications go; the outcome is to find one
        phone.deliver(asks)

        # whoever only looks at the link decides nothing, signed in or not
        path = urlsplit(one_tap).path
        signed_in = {"Cookie": f"pam_session={(who.cookie('pam_session') or {})['value']}"}
        for method, headers in itertools.product(("GET", "HEAD"), ({}, signed_in)):
            assert wire.ask(server.port, method, path, headers).status == (200 if method == "GET" else 405)
        who.open(one_tap)
        expect(who.page.locator("main")).to_contain_text(code)
        fits(who)
        who.accessible()
        who.keep("one-tap")
        assert wire.poll(server.port, made["challenge_id"]).json["status"] == "pending"
        who.page.locator("[data-test=approve]").click()
        who.shows("[data-onetap=done]")
        fits(who)
        who.accessible()
        who.keep("one-tap-done")
        assert wire.poll(server.port, made["challenge_id"]).json["status"] == "approved"

        who.open(f"{server.url}/profile/notifications")
        over = phone.deliver(service.next())
        assert (over["tag"], over["actions"], over["insists"]) == (code, [], False)
        # in the place of the request
        assert over["titles"] == ["Sudo approved", TEST_TITLE]
        who.expected.append("status of 404")
        who.open(one_tap)
        expect(who.page.locator("main h1")).to_have_text("This request is over")
        expect(who.page.locator("[data-test=approve]")).to_have_count(0)
        fits(who)
        who.accessible()
        who.keep("one-tap-over")


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({}, 0),
        ({"content-encoding": "aesgcm"}, 400),
        ({"ttl": "soon"}, 400),
        ({"urgency": "urgent"}, 400),
        ({"authorization": "Bearer x"}, 401),
        ({"body": b"x" * (MOST_BYTES + 1)}, 413),
        ({"signed": VapidKey(b"t" * 32)}, 403),
        ({"named": VapidKey(b"t" * 32)}, 403),
        ({"endpoint": "http://127.0.0.1:1/send/one"}, 403),
        ({"contact": "ops@example.com"}, 403),
        ({"now": -2 * DAY_SECONDS}, 403),
        ({"now": DAY_SECONDS}, 403),
    ],
)
def test_push_service_refuses(service: PushService, wrong: dict[str, Any], status: int) -> None:
    """The push service of the test is one that could have said no."""
    ours = VapidKey(b"s" * 32)
    service.key = ours.public
    authorization = wrong.get("signed", ours).authorization(
        wrong.get("endpoint", f"{service.origin}/send/one"),
        wrong.get("contact", CONTACT),
        int(time.time()) + wrong.get("now", 0),
    )
    token = authorization.partition(" t=")[2].partition(",")[0]
    headers = {
        "content-encoding": "aes128gcm",
        "ttl": "60",
        "urgency": "high",
        "authorization": f"vapid t={token}, k={wrong.get('named', ours).public}",
        **wrong,
    }
    body = wrong.get("body") or encrypt(b"{}", service.browser.p256dh, service.browser.auth, salt=os.urandom(16))
    try:
        service.check(headers, body)
        said = 0
    except Unwelcome as problem:
        said = problem.status
    assert said == status
