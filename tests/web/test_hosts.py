"""What hosts ask, as it stands on the wire (spec/http-api sections 7.1 to 7.3)."""

from __future__ import annotations

import json
from datetime import timedelta

from twisted.trial.unittest import SynchronousTestCase

from identree.core import tokens
from identree.core.errors import StorageUnavailable
from identree.core.hosts import HostRegistry
from identree.core.policy import Policies
from tests.app.world import SECRET
from tests.web.front import Connection, Front, Response

HOST_SECRET = "f" * 64
OTHER_SECRET = "e" * 64


def registry(users: list[str] | None = None) -> HostRegistry:
    entries = {
        "web1": {"secret": HOST_SECRET, "users": ["*"] if users is None else users},
        "web2": {"secret": OTHER_SECRET, "users": ["*"]},
    }
    return HostRegistry.parse(json.dumps(entries).encode())


class HostTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.front = Front()
        self.addCleanup(self.front.close)
        self.world = self.front.world

    def challenge(self, **parts: str) -> str:
        response = self.front.create({"username": "alice", "hostname": "web1", **parts})
        self.assertEqual(response.code, 201, response.text)
        id: str = response.json["challenge_id"]
        return id

    def refused(self, response: Response, code: int, body: object) -> None:
        self.assertEqual((response.code, response.json), (code, body))

    def break_store(self, name: str) -> None:
        async def unavailable(*_: object, **__: object) -> object:
            raise StorageUnavailable("locked")

        setattr(self.world.store, name, unavailable)


class CreationTests(HostTestCase):
    def test_pending(self) -> None:
        """A pending challenge is a 201 with sorted keys and no status."""
        response = self.front.create()
        self.assertEqual(response.code, 201)
        self.assertEqual(list(response.json), ["challenge_id", "expires_in", "user_code", "verification_url"])
        self.assertEqual(response.json["expires_in"], 120)
        self.assertEqual(
            response.json["verification_url"], f"https://identree.example/approve/{response.json['user_code']}"
        )
        self.assertEqual(response.header("Content-Type"), "application/json")
        self.assertTrue(response.body.endswith(b"}\n"))

    def test_notification_queued(self) -> None:
        """It is told when a notification route exists."""
        self.world.change_rules(notification_routes=True)
        self.assertIs(self.front.create().json["notification_queued"], True)

    def test_auto_approved(self) -> None:
        """Within a grace session the answer is an approval with both tokens and no URL."""
        self.world.change_rules(grace_period=timedelta(minutes=10))
        self.front.ask("POST", "/dev/seed-session", body=b'{"username": "alice", "hostname": "web1"}')
        answer = self.front.create().json
        self.assertEqual(
            list(answer),
            [
                "approval_token",
                "approval_token_derived",
                "challenge_id",
                "expires_in",
                "grace_remaining",
                "status",
                "user_code",
            ],
        )
        self.assertEqual((answer["status"], answer["grace_remaining"]), ("approved", 600))
        self.assertTrue(
            tokens.verify_status_token(
                SECRET.encode(), answer["approval_token"], answer["challenge_id"], "approved", "alice", "", ""
            )
        )

    def test_client_config(self) -> None:
        """Pushed settings come along."""
        from identree.app.rules import ClientDefaults

        self.world.change_rules(client=ClientDefaults(timeout=timedelta(seconds=90)))
        self.assertEqual(self.front.create().json["client_config"], {"timeout": "1m30s"})

    def test_hostname_is_normalised(self) -> None:
        """Case and a trailing dot do not make another host."""
        id = self.challenge(hostname="WEB1.")
        self.assertEqual(self.front.poll(id).code, 200)

    def test_context_is_stored(self) -> None:
        """What the host tells about the command reaches the approver."""
        self.front.create({"username": "alice", "hostname": "web1", "command": "id", "tty": "pts/3"})
        [row] = self.world.store.connection.execute("SELECT command, tty FROM challenges").fetchall() or [None]
        self.assertEqual(tuple(row), ("id", "pts/3"))

    def test_context_that_misleads(self) -> None:
        """A control character in the command is refused by its field."""
        response = self.front.create({"username": "alice", "command": "id\u202etxt"})
        self.assertEqual(response.code, 400)
        self.assertTrue(response.json["error"].startswith("command: "))

    def test_longest_legal_request_fits(self) -> None:
        """500 characters of three bytes and every optional field at its limit are within the body limit."""
        value = {
            "username": "a" * 64,
            "hostname": "h" * 253,
            "reason": "\u20ac" * 500,
            "command": "\u20ac" * 1024,
            "cwd": "/" + "d" * 511,
            "tty": "pts/1",
            "remote_host": "r" * 253,
        }
        self.assertEqual(self.front.create(json.dumps(value, ensure_ascii=False).encode()).code, 201)

    # -- refusals, in the order of section 7.1
    def test_wrong_method(self) -> None:
        """Anything but POST is a 405 that names POST."""
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
            response = self.front.ask(method, "/api/challenge")
            self.refused(response, 405, {"error": "method not allowed"})
            self.assertEqual(response.header("Allow"), "POST")

    def test_head(self) -> None:
        """HEAD is no exception."""
        self.assertEqual(self.front.ask("HEAD", "/api/challenge").code, 405)

    def test_content_type(self) -> None:
        """The content type must begin with application/json."""
        for kind in ("", "text/plain", "Application/JSON"):
            self.refused(self.front.create(Content_Type=kind), 415, {"error": "content-type must be application/json"})

    def test_content_type_by_prefix(self) -> None:
        """What follows the prefix does not matter."""
        self.assertEqual(self.front.create(Content_Type="application/jsonx; charset=latin-1").code, 201)

    def test_broken_json(self) -> None:
        """What does not begin with a JSON object of strings is a 400."""
        for body in (
            b"",
            b"{",
            b"[]",
            b'"alice"',
            b"1",
            b'{"username": 1}',
            b'{"username": ["a"]}',
            b"{username: 1}",
            b'{"username": "a\nb"}',
            b'{"username": NaN}',
            b"\xef\xbb\xbf{}",
            b"[" * 8000,
            b'{"username": "alice", "command": {}}',
        ):
            self.refused(self.front.create(body), 400, {"error": "invalid request body"})

    def test_username(self) -> None:
        """A missing user name and a malformed one are told apart."""
        for body in (b"{}", b"null", b'{"username": null}', b'{"username": ""}', b'{"user": "alice"}'):
            self.refused(self.front.create(body), 400, {"error": "username required"})
        for name in ("a b", "a" * 65, "\u00e4", "alice\n", "..%2f"):
            self.refused(self.front.create({"username": name}), 400, {"error": "invalid username format"})

    def test_hostname(self) -> None:
        """A hostname that is there must be one."""
        for name in ("a b", "h" * 254, "w\u00e4b", ".", "web1\n"):
            self.refused(
                self.front.create({"username": "alice", "hostname": name}), 400, {"error": "invalid hostname format"}
            )

    def test_reason(self) -> None:
        """A control character in the reason is refused, TAB is not."""
        self.refused(
            self.front.create({"username": "alice", "reason": "a\x1bb"}),
            400,
            {"error": "reason contains invalid characters"},
        )
        self.assertEqual(self.front.create({"username": "alice", "reason": "a\tb"}).code, 201)

    def test_justification(self) -> None:
        """A required reason is asked for with the choices."""
        self.world.change_rules(require_justification=True, justification_choices=("Deployment",))
        self.refused(
            self.front.create(),
            422,
            {"error": "justification_required", "justification_choices": ["Deployment"]},
        )

    def test_choices_are_not_for_strangers(self) -> None:
        """Without a credential the answer is 401, whatever is missing."""
        self.world.change_rules(require_justification=True)
        self.refused(self.front.create(secret="wrong" * 8), 401, {"error": "unauthorized"})

    def test_unauthorized(self) -> None:
        """No secret and a wrong one get the same answer."""
        for secret in ("", "x" * 32, SECRET + "x"):
            self.refused(self.front.create(secret=secret), 401, {"error": "unauthorized"})
        self.assertEqual(self.world.sample("identree_auth_failures_total"), 3)

    def test_scheme(self) -> None:
        """A 401 names the scheme, as RFC 9110 section 15.5.2 wants it; no client knows it, so none acts on it."""
        self.assertEqual(self.front.create(secret="x" * 32).header("WWW-Authenticate"), "Identree")
        self.assertIsNone(self.front.create().header("WWW-Authenticate"))

    def test_first_secret_counts(self) -> None:
        """Of several secret headers the first is read."""
        connection = self.front.connect()
        body = b'{"username": "alice"}'
        connection.send(
            b"POST /api/challenge HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"X-Shared-Secret: %b\r\nX-Shared-Secret: wrong\r\nContent-Length: %d\r\n\r\n%b"
            % (SECRET.encode(), len(body), body)
        )
        response = connection.response()
        assert response is not None
        self.assertEqual(response.code, 201)

    def test_host_secret(self) -> None:
        """A registered host uses its own secret, for itself only."""
        self.world.registry = registry()
        self.assertEqual(self.front.create(secret=HOST_SECRET).code, 201)
        self.refused(
            self.front.create({"username": "alice", "hostname": "web2"}, secret=HOST_SECRET),
            401,
            {"error": "unauthorized"},
        )

    def test_user_not_listed(self) -> None:
        """A right credential for a user who is not listed is a 401 that does not count as an attack."""
        self.world.registry = registry(["bob"])
        for _ in range(12):
            self.refused(self.front.create(secret=HOST_SECRET), 401, {"error": "unauthorized"})

    def test_too_many_pending(self) -> None:
        """The cap of a user is a 429 that says when to ask again."""
        self.world.change_rules(max_pending_per_user=1)
        self.challenge()
        response = self.front.create()
        self.refused(response, 429, {"error": "rate limit exceeded", "poll_after": 5})
        self.assertEqual(response.header("Retry-After"), "5")
        self.assertEqual(self.world.sample("identree_rate_limit_rejections_total"), 1)

    def test_storage_unavailable(self) -> None:
        """A locked database is a 503 with a hint, and nothing about the database."""
        self.break_store("create_challenge")
        response = self.front.create()
        self.assertEqual((response.code, response.header("Retry-After")), (503, "2"))
        self.assertIn("try again", response.json["error"])
        self.assertNotIn("locked", response.text)

    def test_bug(self) -> None:
        """A bug is a 500 without a word about it; the log has it with the request's id."""

        async def broken(*_: object, **__: object) -> object:
            raise RuntimeError("inside")

        self.world.store.create_challenge = broken  # type: ignore[assignment]
        response = self.front.create()
        self.assertEqual((response.code, response.body), (500, b"internal error\n"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    # -- time and throttling
    def test_refusals_take_their_time(self) -> None:
        """A refused creation is not answered before 5 ms; an accepted one at once."""
        refused = self.front.start("POST", "/api/challenge", {"Content-Type": "application/json"}, b"{}")
        self.assertIsNone(refused.response())
        self.world.clock.advance(0.005)
        self.assertIsNotNone(refused.response())

    def test_throttled(self) -> None:
        """After ten failures the address waits, and is told how long."""
        for _ in range(10):
            self.front.create(secret="x" * 32)
        response = self.front.create(secret="x" * 32)
        self.assertEqual(response.code, 429)
        self.assertEqual(response.json["error"], "too many failed attempts \u2014 try again later")
        self.assertEqual(response.header("Retry-After"), str(response.json["poll_after"]))

    def test_throttle_spares_the_innocent(self) -> None:
        """From a blocked address a right credential still works."""
        for _ in range(10):
            self.front.create(secret="x" * 32)
        self.assertEqual(self.front.create().code, 201)

    def test_throttle_behind_a_proxy(self) -> None:
        """Behind a trusted proxy the client's address counts, not the proxy's."""
        self.front.trust("10.0.0.0/8")
        for _ in range(10):
            self.front.create(secret="x" * 32, peer="10.0.0.1", X_Forwarded_For="203.0.113.9")
        bad = {"secret": "x" * 32, "peer": "10.0.0.1"}
        self.assertEqual(self.front.create(**bad, X_Forwarded_For="203.0.113.9").code, 429)
        self.assertEqual(self.front.create(**bad, X_Forwarded_For="203.0.113.10").code, 401)

    def test_forwarded_by_anybody(self) -> None:
        """Who is not a trusted proxy cannot choose an address."""
        for number in range(10):
            self.front.create(secret="x" * 32, X_Forwarded_For=f"203.0.113.{number}")
        self.assertEqual(self.front.create(secret="x" * 32, X_Forwarded_For="203.0.113.99").code, 429)


class JSONTests(HostTestCase):
    def test_trailing_bytes(self) -> None:
        """What follows the first value is ignored, even if it is nonsense."""
        self.assertEqual(self.front.create(b'{"username": "alice"} garbage \xff').code, 201)

    def test_keys_ignore_case(self) -> None:
        """Keys match in any case; of equal ones the last wins."""
        response = self.front.create(b' {"USERNAME": "al ice", "UserName": "alice", "HostName": "web1"}')
        self.assertEqual(response.code, 201)

    def test_unknown_keys(self) -> None:
        """Unknown keys are ignored, whatever they hold."""
        self.assertEqual(self.front.create(b'{"username": "alice", "x": [1, {"username": 2}]}').code, 201)

    def test_null(self) -> None:
        """null is the zero value."""
        self.assertEqual(self.front.create(b'{"username": "alice", "hostname": null, "reason": null}').code, 201)

    def test_invalid_utf8(self) -> None:
        """Invalid UTF-8 and lone surrogates become U+FFFD."""
        response = self.front.create(b'{"username": "alice", "reason": "\xff\\ud800"}')
        self.assertEqual(response.code, 201)
        [row] = self.world.store.connection.execute("SELECT reason FROM challenges").fetchall()
        self.assertEqual(row[0], "\ufffd\ufffd")


class PollTests(HostTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.id = self.challenge()

    def decide(self, how: str, **fields: str) -> None:
        self.front.sign_in()
        response = self.front.post(f"/api/challenges/{how}", challenge_id=self.id, **fields)
        self.assertEqual(response.code, 303, response.text)

    def test_pending(self) -> None:
        """Pending: what is left, truncated, and the status."""
        self.world.clock.advance(0.5)
        response = self.front.poll(self.id)
        self.assertEqual((response.code, response.json), (200, {"expires_in": 119, "status": "pending"}))

    def test_approved(self) -> None:
        """Approved: a token in the form that agents verify, and the other form."""
        self.decide("approve")
        answer = self.front.poll(self.id).json
        self.assertEqual(list(answer), ["approval_token", "approval_token_derived", "expires_in", "status"])
        self.assertTrue(
            tokens.verify_status_token(SECRET.encode(), answer["approval_token"], self.id, "approved", "alice", "", "")
        )

    def test_approved_with_id_token(self) -> None:
        """The token that the owner signed in with, for the host's cache."""
        self.decide("approve")
        sealed = self.world.id_tokens.seal("alice", "e30.e30.c2ln")
        self.world.store.connection.execute("UPDATE challenges SET raw_id_token = ?", (sealed,))
        answer = self.front.poll(self.id).json
        self.assertEqual(answer["id_token"], "e30.e30.c2ln")
        self.assertEqual(list(answer), sorted(answer))

    def test_approved_with_grace(self) -> None:
        """The grace session that the approval left behind is told."""
        self.world.change_rules(grace_period=timedelta(minutes=5))
        self.decide("approve")
        self.assertEqual(self.front.poll(self.id).json["grace_remaining"], 300)

    def test_denied(self) -> None:
        """Denied: a signed denial and its reason."""
        self.decide("reject", deny_reason="not <now> & here")
        response = self.front.poll(self.id)
        self.assertEqual(response.json["deny_reason"], "not <now> & here")
        self.assertIn(b"not \\u003cnow\\u003e \\u0026 here", response.body)
        self.assertTrue(
            tokens.verify_status_token(
                SECRET.encode(), response.json["denial_token"], self.id, "denied", "alice", "", ""
            )
        )

    def test_quorum(self) -> None:
        """With several approvals required the reply says how many and whose."""
        self.world.policies = Policies.parse(b'[{"name": "two", "match_hosts": ["web1"], "min_approvals": 2}]')
        id = self.challenge()
        self.assertEqual(
            self.front.poll(id).json,
            {
                "approvers": [],
                "current_approvals": 0,
                "expires_in": 120,
                "required_approvals": 2,
                "status": "pending",
            },
        )

    def test_readable_after_expiry(self) -> None:
        """A last-second approval is still readable after the challenge would have expired."""
        self.decide("approve")
        self.world.clock.advance(150)
        self.assertEqual(self.front.poll(self.id).json["status"], "approved")

    def test_repeatable(self) -> None:
        """Polling changes nothing."""
        self.decide("approve")
        self.assertEqual(self.front.poll(self.id).body, self.front.poll(self.id).body)

    # -- refusals, in the order of section 7.2
    def test_wrong_method(self) -> None:
        """Other methods are refused as JSON."""
        for method in ("POST", "PUT", "OPTIONS"):
            self.refused(self.front.ask(method, f"/api/challenge/{self.id}"), 405, {"error": "method not allowed"})
        self.assertEqual(self.front.ask("HEAD", f"/api/challenge/{self.id}").code, 405)

    def test_throttled(self) -> None:
        """The throttle has its own words here."""
        for _ in range(10):
            self.front.poll(self.id, secret="x" * 32)
        response = self.front.poll(self.id, secret="x" * 32)
        self.assertEqual((response.code, response.json["error"]), (429, "too many auth failures"))

    def test_unauthorized(self) -> None:
        """Authentication comes before everything about the id."""
        for id in (self.id, "", "xyz", "0" * 32):
            self.refused(self.front.poll(id, secret="x" * 32), 401, {"error": "unauthorized"})

    def test_id_syntax(self) -> None:
        """A missing and a malformed id are told apart; whatever stands behind the prefix comes here."""
        self.refused(self.front.poll("", ""), 400, {"error": "challenge ID required"})
        for id in ("xyz", self.id + "0", self.id + "/x", "a%20b"):
            self.refused(self.front.poll(id), 400, {"error": "invalid challenge ID"})

    def test_unknown(self) -> None:
        """Unknown, upper-case and expired ids are gone, not missing."""
        for id in ("0" * 32, "A" * 32):
            self.refused(self.front.poll(id), 410, {"status": "expired"})
        self.world.clock.advance(120)
        self.refused(self.front.poll(self.id), 410, {"status": "expired"})

    def test_hostname(self) -> None:
        """The hostname must be the challenge's, even with the right secret; its spelling may differ."""
        for query in ("", "?hostname=web2", "?hostname="):
            self.refused(self.front.poll(self.id, query), 403, {"error": "hostname mismatch"})
        self.assertEqual(self.front.poll(self.id, "?x=%zz&hostname=WEB1.&hostname=web2").code, 200)

    def test_foreign_host_secret(self) -> None:
        """One host's secret does not read another host's challenge."""
        self.world.registry = registry()
        self.refused(
            self.front.poll(self.id, secret=OTHER_SECRET),
            403,
            {"error": "credential does not match challenge hostname"},
        )

    def test_storage_unavailable(self) -> None:
        """A locked database is a 503 with a hint."""
        self.break_store("challenge")
        response = self.front.poll(self.id)
        self.assertEqual((response.code, response.header("Retry-After")), (503, "2"))


class HeldPollTests(HostTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.id = self.challenge()

    def hold(self, seconds: str) -> Connection:
        return self.front.start(
            "GET", f"/api/challenge/{self.id}?hostname=web1&wait={seconds}", {"X-Shared-Secret": SECRET}
        )

    def test_woken_by_the_decision(self) -> None:
        """The answer comes with the decision, not before."""
        held = self.hold("25")
        self.assertIsNone(held.response())
        self.front.sign_in()
        self.front.post("/api/challenges/approve", challenge_id=self.id)
        self.assertEqual(held.response().json["status"], "approved")

    def test_released_at_its_time(self) -> None:
        """Without a decision the answer is the present state, at the time asked for."""
        held = self.hold("25")
        self.world.clock.advance(24.9)
        self.assertIsNone(held.response())
        self.world.clock.advance(0.1)
        self.assertEqual(held.response().json, {"expires_in": 95, "status": "pending"})

    def test_at_most_half_a_minute(self) -> None:
        """Longer wishes are cut."""
        held = self.hold("9999")
        self.world.clock.advance(30)
        self.assertIsNotNone(held.response())

    def test_no_time_out_while_held(self) -> None:
        """A held request outlives every time-out of the connection, which can be used again afterwards."""
        held = self.hold("30")
        self.world.clock.pump([10, 10, 9])
        self.assertFalse(held.closed)

    def test_nonsense_holds_nothing(self) -> None:
        """What is no number is answered at once."""
        for wish in ("", "0", "-1", "abc", "1e9", "nan", "inf"):
            self.assertEqual(self.hold(wish).response().json["status"], "pending")

    def test_hang_up(self) -> None:
        """A client that goes away leaves nothing behind."""
        held = self.hold("25")
        self.assertEqual(len(self.world.waiters), 1)
        held.hang_up()
        self.assertEqual(
            (len(self.world.waiters), self.world.clock.getDelayedCalls(), len(self.front.site)), (0, [], 0)
        )

    def test_shutdown(self) -> None:
        """At the end of the server everybody is answered with what is known."""
        held = self.hold("25")
        self.world.waiters.close()
        self.assertEqual(held.response().json["status"], "pending")

    def test_decided_already(self) -> None:
        """What is decided is not held."""
        self.front.sign_in()
        self.front.post("/api/challenges/reject", challenge_id=self.id)
        self.assertEqual(self.hold("25").response().json["status"], "denied")


class CancellationTests(HostTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.id = self.challenge()

    def cancel(self, query: str = "?hostname=web1", secret: str = SECRET) -> Response:
        return self.front.ask("DELETE", f"/api/challenge/{self.id}{query}", {"X-Shared-Secret": secret})

    def test_cancelled(self) -> None:
        """Ctrl-C takes the request back; nobody can approve it afterwards. Twice is fine."""
        for _ in range(2):
            response = self.cancel()
            self.assertEqual((response.code, response.body), (204, b""))
        self.front.sign_in()
        self.assertEqual(self.front.post("/api/challenges/approve", challenge_id=self.id).code, 404)

    def test_decided(self) -> None:
        """What is decided is not cancelled."""
        self.front.sign_in()
        self.front.post("/api/challenges/approve", challenge_id=self.id)
        self.refused(self.cancel(), 409, {"error": "already decided"})

    def test_unknown(self) -> None:
        """An expired challenge is gone."""
        self.world.clock.advance(121)
        self.refused(self.cancel(), 410, {"status": "expired"})

    def test_not_ones_own(self) -> None:
        """The same credentials as for polling are needed."""
        self.refused(self.cancel(secret="x" * 32), 401, {"error": "unauthorized"})
        self.refused(self.cancel(query=""), 403, {"error": "hostname mismatch"})


class GraceStatusTests(HostTestCase):
    def status(self, query: str = "?username=alice&hostname=web1", secret: str = SECRET) -> Response:
        return self.front.ask("GET", f"/api/grace-status{query}", {"X-Shared-Secret": secret})

    def test_nothing(self) -> None:
        """Users and hosts need not be known."""
        self.refused(self.status(), 200, {"grace_remaining": 0})

    def test_remaining(self) -> None:
        """Seconds of the session of exactly this user and host."""
        self.world.change_rules(grace_period=timedelta(minutes=10))
        self.front.ask("POST", "/dev/seed-session", body=b'{"username": "alice", "hostname": "web1"}')
        self.refused(self.status("?username=alice&hostname=WEB1."), 200, {"grace_remaining": 600})

    def test_revocation(self) -> None:
        """A revocation is told with whole seconds in UTC."""
        self.front.sign_in()
        self.front.post("/api/sessions/revoke", hostname="web1")
        self.refused(self.status(), 200, {"grace_remaining": 0, "revoke_tokens_before": "2026-01-02T03:04:05Z"})

    def test_refusals(self) -> None:
        """In the order of section 7.3."""
        self.refused(self.front.ask("POST", "/api/grace-status"), 405, {"error": "method not allowed"})
        self.refused(self.status("", secret="x" * 32), 401, {"error": "unauthorized"})
        self.refused(self.status(""), 400, {"error": "username required"})
        self.refused(self.status("?username=a%20b"), 400, {"error": "invalid username"})
        self.refused(self.status("?username=alice&hostname=a%20b"), 400, {"error": "invalid hostname"})

    def test_foreign_host_secret(self) -> None:
        """One host does not learn about another."""
        self.world.registry = registry()
        self.refused(self.status(secret=OTHER_SECRET), 403, {"error": "hostname mismatch"})
        self.assertEqual(self.status(secret=HOST_SECRET).code, 200)

    def test_throttled(self) -> None:
        """Failures count here, too."""
        for _ in range(10):
            self.status(secret="x" * 32)
        self.assertEqual(self.status(secret="x" * 32).json["error"], "too many auth failures")
