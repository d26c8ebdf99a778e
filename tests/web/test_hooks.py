"""PocketID's webhook (spec/ldap section 9.4)."""

from __future__ import annotations

import hmac
import json
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from identree.app.journal import Journal
from identree.app.trail import Trail
from identree.core.addresses import Network, parse_networks
from identree.web.hooks import LOGGED_FAILURES, LOGGED_SECONDS, WEBHOOK_BODY_BYTES, WEBHOOK_PATH, HookRoutes
from identree.web.reading import Addresses
from identree.web.root import Root
from identree.web.site import Site
from tests.app.world import START
from tests.fakes import memory_store
from tests.web.front import Connection, Response, encoded

PATH = "/api/webhook/pocketid"
SECRET = "whsecwhsecwhsecwhsecwhsecwhsec01"
BODY = b'{"event":"user.updated"}'
# of BODY (spec/http-api section 4.9)
SIGNATURE = "2ff7b5de70a35870abe0088c9892ff1162eb69748264a98bcbcf9d2d33933d2b"


def signature(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.digest(secret.encode(), body, "sha256").hex()


class HookTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.refreshes = 0
        self.trusted: tuple[Network, ...] = ()
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.site = self.build(SECRET)

    def build(self, secret: str, trail: Trail | None = None) -> Site:
        routes = HookRoutes(
            secret=secret,
            refresh_wanted=self.refresh,
            addresses=Addresses(lambda: self.trusted),
            journal=Journal(Logger(observer=lambda e: self.log.append((e["message"], dict(e["attributes"]))))),
            monotonic=self.clock.seconds,
            trail=trail,
        )
        return Site(
            Root({WEBHOOK_PATH: routes.router.resource()}, {}),
            reactor=self.clock,
            external_url="http://identree.example",
            token=lambda n: "0" * (2 * n),
            body_limits={WEBHOOK_PATH: WEBHOOK_BODY_BYTES},
        )

    def refresh(self) -> None:
        self.refreshes += 1

    def ask(self, body: bytes = BODY, method: str = "POST", **headers: str | None) -> Response:
        """A good request, but for the headers given; one given as None is left out."""
        sent = {
            "Content-Type": "application/json",
            "X-Webhook-Signature": signature(body),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        connection = Connection(self.site)
        self.addCleanup(connection.hang_up)
        given = {name: value for name, value in sent.items() if value is not None}
        connection.send(encoded(method, PATH, given, body))
        response = connection.response(head=method == "HEAD")
        assert response is not None, connection.raw
        return response

    def assert_refused(self, response: Response, code: int, message: str) -> None:
        self.assertEqual((response.code, response.text), (code, message + "\n"))
        self.assertEqual(response.header("Content-Type"), "text/plain; charset=utf-8")
        self.assertEqual(self.refreshes, 0)

    def test_genuine(self) -> None:
        """A signed request asks for a refresh, and is answered with nothing."""
        response = self.ask(X_Webhook_Signature="sha256=" + SIGNATURE)
        self.assertEqual((response.code, response.body, self.refreshes), (204, b"", 1))

    def test_without_prefix(self) -> None:
        """The prefix of the signature is optional."""
        self.assertEqual(self.ask(X_Webhook_Signature=SIGNATURE).code, 204)

    def test_empty_body(self) -> None:
        """The body is not read: it may be empty, or no JSON at all."""
        self.assertEqual([self.ask(b"").code, self.ask(b"\xff{").code], [204, 204])
        self.assertEqual(self.refreshes, 2)

    def test_content_type_with_parameters(self) -> None:
        """The content type may say more."""
        self.assertEqual(self.ask(Content_Type="application/json; charset=utf-8").code, 204)

    def test_wrong_method(self) -> None:
        """Other methods are told which one it is."""
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
            response = self.ask(method=method)
            self.assert_refused(response, 405, "method not allowed")
            self.assertEqual(response.header("Allow"), "POST")

    def test_wrong_content_type(self) -> None:
        """Anything but JSON is refused before the signature is looked at."""
        for value in (None, "text/plain", "application/x-www-form-urlencoded", "Application/JSON"):
            self.assert_refused(self.ask(Content_Type=value), 415, "content-type must be application/json")
        self.assertEqual(self.log, [])

    def test_not_configured(self) -> None:
        """Without a secret nothing is genuine, not even what is signed with nothing."""
        self.site = self.build("")
        self.assert_refused(self.ask(X_Webhook_Signature=signature(BODY, "")), 403, "webhook not configured")

    def test_wrong_signature(self) -> None:
        """A wrong, missing, upper-case or foreign signature is refused and logged."""
        wrong = (None, "", "sha256=", SIGNATURE[:-1], SIGNATURE.upper(), "\xe9" * 64, signature(b"{}"))
        for value in wrong:
            self.assert_refused(self.ask(X_Webhook_Signature=value), 403, "invalid signature")
        line = ("AUTH_FAILURE webhook signature mismatch", {"remote_addr": "192.0.2.7"})
        self.assertEqual(self.log, [line] * len(wrong))

    def test_recorded(self) -> None:
        """A wrong signature stands in the audit trail, with the client's address; a right one does not."""
        store = memory_store()
        trail = Trail(store=store, now=lambda: START, monotonic=self.clock.seconds)
        self.site = self.build(SECRET, trail)
        self.ask()
        self.ask(X_Webhook_Signature="no")
        [record] = [json.loads(sealed.plain) for sealed in store.log.records]
        shown = [record.get(name) for name in ("event", "username", "reason", "remote_addr")]
        reason = "signature mismatch: POST /api/webhook/pocketid"
        self.assertEqual(shown, ["authentication_failed", "", reason, "192.0.2.7"])

    def test_logged_seldom(self) -> None:
        """A flood from one address is ten lines per minute."""
        for _ in range(LOGGED_FAILURES + 5):
            self.ask(X_Webhook_Signature="no")
        self.assertEqual(len(self.log), LOGGED_FAILURES)
        self.clock.advance(LOGGED_SECONDS)
        self.ask(X_Webhook_Signature="no")
        self.assertEqual(len(self.log), LOGGED_FAILURES + 1)

    def test_behind_a_proxy(self) -> None:
        """The line in the log names the client that a trusted proxy names."""
        self.trusted = parse_networks(("192.0.2.0/24",))
        self.ask(X_Webhook_Signature="no", X_Forwarded_For="198.51.100.9")
        self.assertEqual([attributes for _, attributes in self.log], [{"remote_addr": "198.51.100.9"}])

    def test_longest_body(self) -> None:
        """65,535 bytes are taken."""
        self.assertEqual(self.ask(b"x" * 65_535).code, 204)

    def test_body_too_long(self) -> None:
        """One byte more is refused, even if its beginning was signed."""
        body = b"x" * 65_536
        for value in (signature(body), signature(body[:-1])):
            self.assert_refused(self.ask(body, X_Webhook_Signature=value), 403, "invalid signature")
