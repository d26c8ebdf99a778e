"""What holds for every request and answer (spec/http-api section 2)."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from identree.app.journal import Journal
from identree.core.requests import current
from identree.serverlog import observer
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
from tests.web.front import Connection, Front, encoded

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

    def test_large_bodies_together(self) -> None:
        """Bodies that a path allows to be large have one bound together; it is free again when they are gone."""
        site = self.front.site
        site.large_bodies_limit = 100_000
        site._body_limits[b"/large"] = 65_536
        head = b"POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
        first, second = self.front.connect(), self.front.connect()
        first.send(head + b"x" * 59_999)
        self.assertEqual((first.response(), site._large_bodies), (None, 59_999 - BODY_BYTES))
        second.send(head + b"x" * 59_999)
        cut = second.response()
        assert cut is not None
        self.assertEqual((cut.header("Connection"), site._large_bodies), ("close", 59_999 - BODY_BYTES))
        first.hang_up()
        self.assertEqual(site._large_bodies, 0)
        third = self.front.connect()
        third.send(head + b"x" * 60_000)
        self.assertIsNotNone(third.response())
        self.assertEqual(site._large_bodies, 0)

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


class RequestIdTests(SiteTestCase):
    """The id of an answer stands in everything that the request left behind."""

    def recorded(self, event: str) -> list[str]:
        records = [json.loads(record.plain) for record in self.front.world.store.log.records]
        return [record.get("request_id", "") for record in records if record["event"] == event]

    def log(self) -> StringIO:
        """The server log, of the journal and of everybody else, as it is written."""
        out = StringIO()
        writer = observer("debug", as_json=True, out=out)
        world = self.front.world
        journal = Journal(Logger(namespace="identree", observer=writer))
        for owner in (world.hosts, world.challenges, world.decisions, world.people):
            owner._journal = journal  # type: ignore[attr-defined]
        globalLogPublisher.addObserver(writer)
        self.addCleanup(globalLogPublisher.removeObserver, writer)
        return out

    @staticmethod
    def ids(out: StringIO, message: str) -> list[str]:
        lines = [json.loads(line) for line in out.getvalue().splitlines()]
        return [line.get("request_id", "") for line in lines if line["msg"] == message]

    def test_audit_record(self) -> None:
        """The record of what was done has the id of the request that did it."""
        created = self.front.create()
        self.front.sign_in("alice")
        rejected = self.front.post("/api/challenges/reject", challenge_id=created.json["challenge_id"])
        self.assertEqual(rejected.code, 303)
        ids = [created.header("X-Request-ID"), rejected.header("X-Request-ID")]
        self.assertEqual([*self.recorded("challenge_created"), *self.recorded("challenge_rejected")], ids)

    def test_over_a_wait(self) -> None:
        """It is still there after the database has answered, whoever else has been served meanwhile."""
        world = self.front.world
        answers: list[Deferred[None]] = []
        by_id = world.store.challenge

        async def slow(id: str) -> Any:
            answers.append(Deferred())
            await answers[-1]
            return await by_id(id)

        first, second = self.front.create(), self.front.create({"username": "alice", "hostname": "web2"})
        world.store.challenge = slow  # type: ignore[method-assign]
        self.front.sign_in("alice")
        out = self.log()
        waiting = [self.start_reject(created.json["challenge_id"], "alice") for created in (first, second)]
        while answers:
            answers.pop().callback(None)
        ids = [connection.response().header("X-Request-ID") for connection in waiting]  # type: ignore[union-attr]
        self.assertEqual(len(set(ids)), 2)
        self.assertEqual(set(self.recorded("challenge_rejected")), set(ids))
        self.assertEqual(set(self.ids(out, "REJECTED")), set(ids))
        self.assertEqual(current.get(), "")

    def start_reject(self, id: str, username: str) -> Connection:
        fields = {"username": username, **self.front.csrf(username), "challenge_id": id}
        body = "&".join(f"{name}={value}" for name, value in fields.items()).encode()
        return self.front.start(
            "POST", "/api/challenges/reject", {"Content-Type": "application/x-www-form-urlencoded"}, body
        )

    def test_refusals(self) -> None:
        """So have the lines of requests that were refused."""
        out = self.log()
        refused = self.front.create(secret="wrong")
        self.assertEqual(refused.code, 401)
        self.assertEqual(self.ids(out, "AUTH_FAILURE"), [refused.header("X-Request-ID")])

    def test_a_bug(self) -> None:
        """So has the line of a bug, in front of what else is known of the request; no id or code is in its path."""
        out = self.log()

        async def broken(*_: object) -> object:
            raise RuntimeError("a bug")

        async def broken_later(*_: object) -> object:
            await held
            raise RuntimeError("a bug")

        id = self.front.create().json["challenge_id"]
        held: Deferred[None] = Deferred()
        for bug in (broken, broken_later):
            self.front.world.store.challenge = bug  # type: ignore[method-assign, assignment]
            connection = self.front.start("GET", f"/api/challenge/{id}?hostname=web1", {"X-Shared-Secret": SECRET})
            if not held.called and bug is broken_later:
                held.callback(None)
            response = connection.response()
            assert response is not None
            self.assertEqual(response.code, 500)
            line = json.loads(out.getvalue().splitlines()[-1])
            self.assertEqual(
                list(line), ["time", "level", "msg", "request_id", "remote", "method", "path", "value", "stack"]
            )
            self.assertEqual((line["level"], line["msg"]), ("ERROR", "panic in handler"))
            self.assertEqual(line["request_id"], response.header("X-Request-ID"))
            self.assertEqual((line["remote"], line["method"]), ("192.0.2.7", "GET"))
            self.assertEqual((line["path"], line["value"]), ("/api/challenge/<id>", "RuntimeError: a bug"))
        self.assertNotIn(id, out.getvalue())
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_nothing_is_left(self) -> None:
        """What happens outside of requests has no id; nor has /healthz."""
        seen: list[str] = []

        async def probe() -> str:
            seen.append(current.get())
            return "ok"

        self.front.probe = probe
        connection = self.front.connect()
        connection.send(encoded("GET", "/nowhere") + encoded("GET", "/healthz"))
        self.assertEqual((seen, current.get()), ([""], ""))


class DurationTests(SiteTestCase):
    """Requests are counted by what they belong to, not by what was asked."""

    def setUp(self) -> None:
        super().setUp()
        self.seen: list[tuple[str, str, float]] = []
        self.held: list[tuple[str, float]] = []
        site = self.front.site
        site.observe = lambda route, status, seconds: self.seen.append((route, status, seconds))
        site.observe_held = lambda kind, seconds: self.held.append((kind, seconds))

    def routes(self) -> list[tuple[str, str]]:
        return [(route, status) for route, status, _ in self.seen]

    def test_templates(self) -> None:
        """Paths with a variable part are one route, and all unknown ones are another."""
        self.front.poll("0" * 32)
        self.front.poll("nonsense")
        self.front.ask("GET", "/nowhere")
        self.front.ask("GET", "/elsewhere//")
        self.front.ask("OPTIONS", "/theme")
        self.assertEqual(
            self.routes(),
            [
                ("/api/challenge/<id>", "410"),
                ("/api/challenge/<id>", "400"),
                ("other", "404"),
                ("other", "404"),
                ("/theme", "405"),
            ],
        )

    def test_redirected(self) -> None:
        """What is sent to https belongs to nothing yet."""
        self.front.ask("GET", "/theme", {"X-Forwarded-Proto": "http"})
        self.assertEqual(self.routes(), [("other", "301")])

    def test_seconds(self) -> None:
        """From the whole request to the end of the answer: a refused creation takes 5 ms."""
        self.front.create(secret="wrong")
        [(route, status, seconds)] = self.seen
        self.assertEqual((route, status), ("/api/challenge", "401"))
        self.assertAlmostEqual(seconds, 0.005)

    def test_gone(self) -> None:
        """A client that does not wait for the answer is counted as gone, once."""
        connection = self.front.start("POST", "/api/challenge", {"Content-Type": "application/json"}, b"{}")
        self.clock.advance(0.001)
        connection.hang_up()
        self.clock.advance(1)
        self.assertEqual(self.routes(), [("/api/challenge", "gone")])

    def test_held(self) -> None:
        """What was held until something happened is measured apart; its refusals are not."""
        id = self.front.create().json["challenge_id"]
        self.seen.clear()
        path = f"/api/challenge/{id}?hostname=web1&wait=20"
        poll = self.front.start("GET", path, {"X-Shared-Secret": SECRET})
        self.clock.advance(20)
        self.assertIsNotNone(poll.response())
        self.front.ask("GET", path, {"X-Shared-Secret": "wrong"})
        self.assertEqual(self.held, [("poll", 20.0)])
        self.assertEqual(self.routes(), [("/api/challenge/<id>", "401")])

    def test_not_held(self) -> None:
        """A poll that does not want to wait is a request like others."""
        id = self.front.create().json["challenge_id"]
        self.seen.clear()
        self.front.poll(id, "?hostname=await=1")
        self.assertEqual((self.held, [route for route, _ in self.routes()]), ([], ["/api/challenge/<id>"]))

    def test_streams(self) -> None:
        """So are the streams of browsers."""
        self.front.ask("GET", "/api/events")
        self.front.sign_in()
        self.seen.clear()
        stream = self.front.start("GET", "/api/events")
        self.clock.advance(7)
        stream.hang_up()
        self.assertEqual((self.held, self.seen), ([("stream", 7.0)], []))

    def test_unanswerable(self) -> None:
        """What is no request is not counted as one."""
        connection = self.front.connect()
        connection.send(b"nonsense\r\n\r\n")
        connection.hang_up()
        self.assertEqual((self.seen, self.held), ([], []))

    def test_connections(self) -> None:
        """The site knows how many connections it has, and how many there may be."""
        before = len(self.front.site)
        self.front.connect()
        self.assertEqual((len(self.front.site) - before, self.front.site.limit), (1, 50))
