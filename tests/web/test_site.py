"""What holds for every request and answer (spec/http-api section 2)."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from identree.web.site import (
    BODY_BYTES,
    CLOSE_SECONDS,
    HEADER_SECONDS,
    IDLE_SECONDS,
    LINGER_SECONDS,
    REQUEST_SECONDS,
    Site,
)
from tests.app.world import SECRET, World
from tests.web.front import Front, encoded

COMMON = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=()",
    "cache-control": "no-store",
    "strict-transport-security": "max-age=63072000; includeSubDomains",
    "server": "identree",
}
STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class SiteTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.front = Front()
        self.addCleanup(self.front.close)
        self.clock = self.front.world.clock


class HeaderTests(SiteTestCase):
    def test_every_answer(self) -> None:
        """Successes, refusals, unknown paths and wrong methods carry the same headers."""
        for method, path in (
            ("GET", "/nowhere"),
            ("GET", "/api/challenge"),
            ("POST", "/api/challenges/approve"),
            ("GET", "/theme?set=dark"),
            ("OPTIONS", "/theme"),
            ("HEAD", "/theme"),
            ("GET", "/api/events"),
            ("GET", "/metrics"),
            ("GET", "/healthz"),
        ):
            response = self.front.ask(method, path)
            for name, value in COMMON.items():
                self.assertEqual(response.headers.get(name), [value], (path, name))

    def test_request_id(self) -> None:
        """16 hex digits, new for each request, whatever the client sends; none on /healthz."""
        ids = {self.front.ask("GET", "/nowhere", {"X-Request-ID": "mine"}).header("X-Request-ID") for _ in range(3)}
        self.assertEqual(len(ids), 3)
        for id in ids:
            self.assertRegex(id or "", r"\A[0-9a-f]{16}\Z")
        self.assertIsNone(self.front.ask("GET", "/healthz").header("X-Request-ID"))

    def test_policy_of_the_api(self) -> None:
        """Under /api/ nothing may be loaded."""
        response = self.front.ask("GET", "/api/challenge")
        self.assertEqual(response.header("Content-Security-Policy"), "default-src 'none'")

    def test_policy_of_cards(self) -> None:
        """A card is a page wherever it comes from; it may load its style sheet."""
        response = self.front.post("/api/challenges/approve")
        self.assertEqual(response.code, 403)
        self.assertEqual(response.header("Content-Security-Policy"), STRICT)

    def test_policy_elsewhere(self) -> None:
        """All other answers have the strict policy, without anything inline."""
        self.assertEqual(self.front.ask("GET", "/nowhere").header("Content-Security-Policy"), STRICT)

    def test_no_transport_security_on_http(self) -> None:
        """Without an https external URL there is no HSTS."""
        world = World()
        world.change_rules(external_url="http://identree.example")
        self.assertIsNone(Front(world).ask("GET", "/nowhere").header("Strict-Transport-Security"))


class HTTPSTests(SiteTestCase):
    def test_redirect(self) -> None:
        """What came to the proxy unencrypted is sent to https, with path and query, and nothing else is said."""
        for method, path in (("GET", "/approve/X?a=b"), ("POST", "/api/challenge"), ("GET", "/healthz")):
            response = self.front.ask(method, path, {"X-Forwarded-Proto": "http"})
            self.assertEqual(response.code, 301)
            self.assertEqual(response.header("Location"), "https://identree.example" + path)
            self.assertIsNone(response.header("X-Frame-Options"))

    def test_other_values(self) -> None:
        """Only exactly ``http`` redirects."""
        for value in ("https", "HTTP", "http,https", ""):
            self.assertEqual(self.front.ask("GET", "/nowhere", {"X-Forwarded-Proto": value}).code, 404)

    def test_no_way_out(self) -> None:
        """A request for another site is not sent there."""
        connection = self.front.connect()
        connection.send(b"GET //evil.example/ HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: http\r\n\r\n")
        response = connection.response()
        assert response is not None
        self.assertEqual(response.header("Location"), "https://identree.example//evil.example/")

    def test_plain_deployment(self) -> None:
        """With an http external URL there is nothing to redirect to."""
        world = World()
        world.change_rules(external_url="http://identree.example")
        self.assertEqual(Front(world).ask("GET", "/nowhere", {"X-Forwarded-Proto": "http"}).code, 404)


class RoutingTests(SiteTestCase):
    def test_unknown(self) -> None:
        """Unknown paths are plain 404s; paths are exact."""
        for path in (
            "/nowhere",
            "/theme/",
            "/api/grace-status/",
            "/%74heme",
            "/sessions/x",
            "*",
        ):
            response = self.front.ask("GET", path)
            self.assertEqual((response.code, response.body), (404, b"404 page not found\n"), path)

    def test_not_yet(self) -> None:
        """What a later version has is not found now."""
        for path in ("/api/challenges/override", "/api/hosts/elevate"):
            self.assertEqual(self.front.ask("POST", path).code, 404)

    def test_wrong_method(self) -> None:
        """A text 405 that says what is allowed."""
        response = self.front.ask("GET", "/api/challenges/approve")
        self.assertEqual((response.code, response.body), (405, b"method not allowed\n"))
        self.assertEqual(response.header("Allow"), "POST")

    def test_unclean_paths(self) -> None:
        """Doubled slashes and dots lead to the right path, never to another site."""
        for path, clean in (
            ("//theme?set=dark", "/theme?set=dark"),
            ("/x/../theme", "/theme"),
            ("/./theme", "/theme"),
        ):
            response = self.front.ask("GET", path)
            self.assertEqual((response.code, response.header("Location")), (307, clean))

    def test_absolute_form(self) -> None:
        """A request in absolute form is the same request (RFC 9112 section 3.2.2)."""
        self.assertEqual(self.front.ask("GET", "http://identree.example/theme?set=dark").code, 303)


class MalformedTests(SiteTestCase):
    def refused(self, data: bytes, status: bytes) -> None:
        connection = self.front.connect()
        connection.send(data)
        self.assertTrue(connection.raw.startswith(b"HTTP/1.1 " + status), connection.raw)
        self.assertEqual(connection.raw.count(b"HTTP/1.1"), 1)
        self.clock.advance(LINGER_SECONDS)
        self.assertTrue(connection.closed)

    def test_host_twice(self) -> None:
        """Two hosts: a proxy may have believed the other one."""
        self.refused(b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", b"400 ")

    def test_impossible_host(self) -> None:
        """A host that is none is a 400, and no bug that fills the log."""
        for host in (b"a/b", b"a b", b"a@b", b"[::1", b"x:y", b"\xc3\xa4", b"<script>", b"x" * 64, b"a..b", b"."):
            self.refused(b"GET /healthz HTTP/1.1\r\nHost: " + host + b"\r\n\r\n", b"400 ")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_possible_hosts(self) -> None:
        """Names, addresses and ports as browsers and agents send them reach the router, which answers."""
        for host in (b"id.example.com", b"ID.example.com.:8090", b"127.0.0.1", b"[2001:db8::1]:80", b"a_b", b"", b"x:"):
            connection = self.front.connect()
            connection.send(b"GET /theme HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
            self.assertIn(b" 303 ", connection.raw[:20], host)

    def test_other_codings(self) -> None:
        """A transfer coding but chunked, or one in HTTP/1.0, leaves open where the body ends."""
        for version, coding in (
            (b"1.1", b"identity"),
            (b"1.1", b"chunked\r\nTransfer-Encoding: identity"),
            (b"1.0", b"chunked"),
        ):
            self.refused(
                b"POST /theme HTTP/" + version + b"\r\nHost: x\r\nTransfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n",
                b"400 ",
            )

    def test_no_host(self) -> None:
        """HTTP/1.1 without Host is a 400."""
        self.refused(b"GET /theme HTTP/1.1\r\n\r\n", b"400 ")

    def test_no_host_with_a_body(self) -> None:
        """Its body is not taken for another request."""
        self.refused(b"POST /theme HTTP/1.1\r\nContent-Length: 40\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", b"400 ")

    def test_http_1_0(self) -> None:
        """HTTP/1.0 needs no Host and gets one answer."""
        connection = self.front.connect()
        connection.send(b"GET /nowhere HTTP/1.0\r\n\r\n")
        self.assertTrue(connection.raw.startswith(b"HTTP/1.0 404"))
        self.assertTrue(connection.closed)

    def test_nonsense(self) -> None:
        """What is no HTTP is a 400."""
        self.refused(b"\x16\x03\x01\x02\x00\r\n\r\n", b"400 ")
        self.refused(b"GET / HTTP/1.1\r\nHost x\r\n\r\n", b"400 ")

    def test_two_lengths(self) -> None:
        """Contradicting lengths are refused, so that nothing can be smuggled."""
        self.refused(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400 "
        )

    def test_many_bytes_of_headers(self) -> None:
        """More than 12 KiB of headers are a bare 431."""
        filler = b"".join(b"X-%d: %b\r\n" % (n, b"a" * 1000) for n in range(13))
        self.refused(b"GET / HTTP/1.1\r\nHost: x\r\n" + filler + b"\r\n", b"431 ")

    def test_one_long_line(self) -> None:
        """So is a line that does not end."""
        self.refused(b"GET /" + b"a" * 13_000, b"431 ")

    def test_many_headers(self) -> None:
        """So are very many small ones."""
        self.refused(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431 ")

    def test_large_but_legal(self) -> None:
        """Eight KiB of headers are fine."""
        self.assertEqual(self.front.ask("GET", "/nowhere", {"X-Long": "a" * 8000}).code, 404)


class BodyTests(SiteTestCase):
    def sent(self, body: bytes) -> bytes:
        return encoded("POST", "/api/challenge", {"Content-Type": "application/json", "X-Shared-Secret": SECRET}, body)

    def test_too_long(self) -> None:
        """A challenge beyond the limit is refused while it arrives, and the connection ends."""
        connection = self.front.connect()
        whole = self.sent(b'{"username": "alice", "reason": "' + b"a" * 100_000)
        connection.send(whole[:20_000])
        self.clock.advance(0.005)
        response = connection.response()
        assert response is not None
        self.assertEqual((response.code, response.json), (400, {"error": "invalid request body"}))
        self.assertEqual(response.header("Connection"), "close")
        connection.send(whole[20_000:])
        self.clock.advance(LINGER_SECONDS)
        self.assertTrue(connection.closed)

    def test_complete_within_the_limit(self) -> None:
        """A value that is complete within the limit succeeds, whatever follows."""
        connection = self.front.connect()
        connection.send(self.sent(json.dumps({"username": "alice"}).encode() + b" " * 50_000)[:9000])
        response = connection.response()
        assert response is not None
        self.assertEqual(response.code, 201)

    def test_chunked(self) -> None:
        """A body of unknown length has the same limit."""
        connection = self.front.connect()
        connection.send(
            b"POST /api/challenge HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(12):
            connection.send(b"400\r\n" + b"[" * 1024 + b"\r\n")
        self.clock.advance(0.005)
        response = connection.response()
        assert response is not None
        self.assertEqual(response.code, 400)

    def test_nothing_is_kept_beyond_the_limit(self) -> None:
        """What comes after the cut is dropped, however much it is."""
        connection = self.front.connect()
        connection.send(self.sent(b"[" * 10_000_000)[:10_000])
        for _ in range(10):
            connection.send(b"[" * 100_000)
        self.assertEqual(connection.protocol._dataBuffer, [])

    def test_form(self) -> None:
        """A form beyond 8 KiB is a card."""
        body = b"x=" + b"a" * BODY_BYTES
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        response = self.front.ask("POST", "/api/challenges/approve", headers, body)
        self.assertEqual(response.code, 400)
        self.assertIn("CARD(invalid_form)", response.text)

    def test_sign_out(self) -> None:
        """A sign-out beyond 1 KiB is a bad form."""
        self.front.sign_in()
        response = self.front.post("/signout", x="a" * 1024)
        self.assertEqual((response.code, response.body), (403, b"invalid_csrf\n"))

    def test_elsewhere(self) -> None:
        """Any other path answers 413."""
        self.assertEqual(self.front.ask("POST", "/theme", {}, b"a" * (BODY_BYTES + 1)).code, 413)

    def test_next_request(self) -> None:
        """A body that was too long but came whole does not disturb the next request on the connection."""
        connection = self.front.connect()
        connection.send(encoded("POST", "/theme", {}, b"a" * (BODY_BYTES + 1)) + encoded("GET", "/nowhere"))
        codes = [response.code for response in (connection.response(), connection.response()) if response]
        self.assertEqual(codes, [413, 404])


class TimeTests(SiteTestCase):
    def test_slow_headers(self) -> None:
        """Headers take at most ten seconds, however steadily they drip."""
        connection = self.front.connect()
        for _ in range(HEADER_SECONDS):
            connection.send(b"G")
            self.assertFalse(connection.closed)
            self.clock.advance(1)
        self.assertTrue(connection.closed)

    def test_slow_body(self) -> None:
        """The whole request takes at most half a minute."""
        connection = self.front.connect()
        connection.send(b"POST /theme HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(REQUEST_SECONDS):
            connection.send(b"a")
            self.clock.advance(1)
        self.assertTrue(connection.closed)

    def test_idle(self) -> None:
        """A kept connection ends after a minute without a request; each one begins it anew."""
        connection = self.front.connect()
        for _ in range(3):
            connection.send(encoded("GET", "/nowhere"))
            self.clock.advance(IDLE_SECONDS - 1)
            self.assertFalse(connection.closed)
        self.clock.advance(1)
        self.assertTrue(connection.closed)

    def test_gone(self) -> None:
        """A closed connection leaves no timer."""
        connection = self.front.connect()
        connection.send(encoded("GET", "/nowhere"))
        connection.hang_up()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_client_that_does_not_read(self) -> None:
        """A last answer that nobody reads does not hold the connection for ever."""
        connection = self.front.connect()
        connection.send(encoded("GET", "/nowhere", {"Connection": "close"}))
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(connection.transport.disconnected)


class ConnectionTests(SiteTestCase):
    def test_bound(self) -> None:
        """Beyond the bound a connection is refused, until another one ends."""
        connections = [self.front.connect() for _ in range(50)]
        self.assertIsNone(self.front.site.buildProtocol(None))
        connections[0].hang_up()
        self.assertIsNotNone(self.front.site.buildProtocol(None))

    def test_pipelined(self) -> None:
        """Requests in a row are answered in their order."""
        connection = self.front.connect()
        connection.send(encoded("GET", "/nowhere") + encoded("GET", "/theme") + encoded("OPTIONS", "/theme"))
        codes = [connection.response() for _ in range(3)]
        self.assertEqual([response.code for response in codes if response], [404, 303, 405])

    def test_only_http_1_1(self) -> None:
        """That is all that TLS offers."""
        self.assertEqual(self.front.site.acceptableProtocols(), [b"http/1.1"])


class ConnectionsOfOneAddressTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.site = Site(
            Resource(),
            reactor=Clock(),
            external_url="http://identree.example",
            token=lambda size: "0" * size,
            max_per_address=2,
            many_clients=lambda address: address == "10.0.0.1",
        )

    def connect(self, host: str) -> Any:
        channel = self.site.buildProtocol((IPv6Address if ":" in host else IPv4Address)("TCP", host, 4711))
        if channel is not None:
            channel.makeConnection(StringTransport())
        return channel

    def hang_up(self, channel: Any) -> None:
        channel.connectionLost(Failure(ConnectionDone()))

    def test_bound(self) -> None:
        """One address has no more than its share; another one is not concerned."""
        first = self.connect("192.0.2.1")
        self.connect("192.0.2.1")
        for _ in range(3):
            self.assertIsNone(self.connect("192.0.2.1"))
        self.assertIsNotNone(self.connect("192.0.2.2"))
        self.hang_up(first)
        self.assertIsNotNone(self.connect("192.0.2.1"))
        self.assertIsNone(self.connect("192.0.2.1"))

    def test_one_network_of_ipv6(self) -> None:
        """What one customer gets counts as one."""
        self.connect("2001:db8::1")
        self.connect("2001:db8::2")
        self.assertIsNone(self.connect("2001:db8::3"))
        self.assertIsNotNone(self.connect("2001:db8:0:1::1"))

    def test_a_proxy(self) -> None:
        """Who stands for many clients has no bound of his own."""
        self.assertNotIn(None, [self.connect("10.0.0.1") for _ in range(10)])

    def test_nothing_is_kept(self) -> None:
        """Addresses that left are forgotten."""
        channels = [self.connect("192.0.2.1"), self.connect("192.0.2.1")]
        self.assertIsNone(self.connect("192.0.2.1"))
        for channel in channels:
            self.hang_up(channel)
        self.assertEqual((len(self.site), self.site._by_address), (0, {}))
