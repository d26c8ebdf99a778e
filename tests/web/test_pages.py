"""The approval page, the dashboard and their fragments, over the whole web adapter."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

from treq.testing import StubTreq
from twisted.logger import Logger

from identree.app.journal import Journal
from identree.core.challenge import HistoryEntry
from identree.core.policy import Policies
from identree.web.pages import PageRoutes
from identree.web.sessions import BrowserSessions
from tests.web.house import EXTERNAL_URL, result
from tests.web.test_render import Document, PageCase

UNKNOWN = "/approve/ABCDEF-000000"
TWO = b'[{"name": "two", "match_hosts": ["*"], "min_approvals": 2}]'
ADMIN = b'[{"name": "strict", "match_hosts": ["*"], "require_admin": true}]'


class ApproveTests(PageCase):
    def test_empty(self) -> None:
        """Without a code there is nothing to look up."""
        response = self.get("/approve/")
        self.assertEqual((response.code, self.body(response)), (400, "code required\n"))

    def test_malformed(self) -> None:
        """What cannot be a code is said to be none."""
        for code in ("ABCDEF", "ABCDEF_123456", "ABCDEF-1234567", "a/b", "%00%00%00%00%00%00-000000x"):
            self.house.reactor.advance(61)
            response = self.get(f"/approve/{code}")
            self.assertEqual((code, response.code, self.body(response)), (code, 400, "invalid code format\n"))

    def test_limit(self) -> None:
        """Ten looks in a minute from one address, then 429 until the window has passed."""
        codes = [self.get(UNKNOWN).code for _ in range(10)]
        refused = self.get(UNKNOWN)
        self.assertEqual((set(codes), refused.code, self.body(refused)), ({404}, 429, "too many requests\n"))
        self.assertEqual(refused.headers.getRawHeaders("retry-after"), ["60"])
        self.house.reactor.advance(60)
        self.assertEqual(self.get(UNKNOWN).code, 404)

    def test_wrong_method(self) -> None:
        """Looking is all that can be done here."""
        posting = self.http.post(EXTERNAL_URL + UNKNOWN)
        self.http.flush()
        self.assertEqual(self.successResultOf(posting).code, 405)

    def test_signs_in_and_comes_back(self) -> None:
        """Somebody who is not signed in is sent to sign in, and will come back to this very code."""
        code = self.house.ask("alice").user_code
        response = self.get(f"/approve/{code}")
        wanted = f"{EXTERNAL_URL}/sessions/login?next=/approve/{code}"
        self.assertEqual((response.code, response.headers.getRawHeaders("location")), (303, [wanted]))

    def test_no_detour(self) -> None:
        """Somebody who is signed in sees the page, and the session slides."""
        code = self.house.ask("alice").user_code
        response = self.get(f"/approve/{code}", "alice")
        self.assertEqual(response.code, 200)
        self.assertIn("pam_session=", response.headers.getRawHeaders("set-cookie")[0])

    def test_forms_name_their_page(self) -> None:
        """Each form knows the page that a refused sender is led back to."""
        code = self.house.ask("alice").user_code
        page = self.body(self.get(f"/approve/{code}", "alice"))
        text = page.decode() if isinstance(page, bytes) else page
        self.assertEqual(text.count(f'name="page" value="/approve/{code}"'), 2)

    def test_typed_code(self) -> None:
        """A code typed in small letters is the same code."""
        code = self.house.ask("alice").user_code
        self.assertEqual(self.get(f"/approve/{code.lower()}", "alice").code, 200)

    def test_all_alike(self) -> None:
        """Unknown, decided, expired and other people's codes give the same bytes, signed in or not."""
        expired = self.house.ask("alice")
        self.house.reactor.advance(121)
        denied, foreign = self.house.ask("alice"), self.house.ask("bob")
        result(self.house.decisions.reject(self.house.caller("alice"), denied.id))
        answers = [
            self.get(UNKNOWN),
            self.get(UNKNOWN, "alice"),
            self.get(f"/approve/{expired.user_code}"),
            self.get(f"/approve/{denied.user_code}"),
            self.get(f"/approve/{denied.user_code}", "alice"),
            self.get(f"/approve/{foreign.user_code}", "alice"),
        ]
        self.assertEqual({response.code for response in answers}, {404})
        self.assertEqual(len({self.body(response) for response in answers}), 1)

    def test_form(self) -> None:
        """The page carries what the decision endpoints ask for, and works without scripts."""
        challenge = self.house.ask("alice")
        page = self.document(f"/approve/{challenge.user_code}", "alice")
        names = set(page.all("name"))
        self.assertLessEqual(
            {"username", "csrf_token", "csrf_ts", "challenge_id", "reason", "deny_reason", "from"}, names
        )
        self.assertLessEqual({"/api/challenges/approve", "/api/challenges/reject"}, set(page.all("action")))

    def test_shown(self) -> None:
        """Who, where, why, from which address, and the code in groups."""
        challenge = self.house.ask("alice", reason="disk is full", address="192.0.2.99")
        text = self.document(f"/approve/{challenge.user_code}", "alice").text
        for fact in ("alice", "web-01.example.com", "disk is full", "192.0.2.99", challenge.user_code):
            self.assertIn(fact, text)

    def test_admin_required(self) -> None:
        """Who may not approve is offered Reject only, and told why."""
        self.house.policies = Policies.parse(ADMIN)
        code = self.house.ask("alice").user_code
        page = self.document(f"/approve/{code}", "alice")
        self.assertNotIn("approve", page.all("id"))
        self.assertIn("Only an administrator can approve this.", page.text)
        self.assertIn("approve", self.document(f"/approve/{code}", "carol", "admin").all("id"))

    def test_justification(self) -> None:
        """A required reason is required by the form too, with the offered choices."""
        self.house.rules = replace(self.house.rules, require_justification=False)
        challenge = self.house.ask("alice")
        self.house.rules = replace(self.house.rules, require_justification=True, justification_choices=("Testing",))
        page = self.document(f"/approve/{challenge.user_code}", "alice")
        [field] = [attributes for tag, attributes in page.tags if attributes.get("name") == "reason"]
        self.assertIn("required", field)
        self.assertIn(("option", {"value": "Testing"}), page.tags)


class AccessTests(PageCase):
    def setUp(self) -> None:
        super().setUp()
        house = self.house
        self.lines: list[tuple[str, dict[str, Any]]] = []
        log = Logger(observer=lambda event: self.lines.append((event["message"], dict(event["attributes"]))))
        routes = PageRoutes(
            decisions=house.decisions,
            sessions=BrowserSessions(house.people, lambda: house.rules),
            render=house.renderer,
            rules=lambda: house.rules,
            ends_at=house.people.session_ends_at,
            address=lambda request: "192.0.2.7",
            monotonic=house.reactor.seconds,
            journal=Journal(log),
        )
        self.http = StubTreq(routes.router.resource())

    def test_line(self) -> None:
        """Each look at a code is logged with the code's letters, whether there is such a request or not."""
        code = self.house.ask("alice").user_code
        for wanted in (code.lower(), "ABCDEF-000000"):
            self.get(f"/approve/{wanted}")
        prefixes = [code[:6], "ABCDEF"]
        shown = [{"path": "/approve/", "remote_addr": "192.0.2.7", "code_prefix": prefix} for prefix in prefixes]
        self.assertEqual(self.lines, [("ACCESS", attributes) for attributes in shown])
        self.assertEqual(list(self.lines[0][1]), ["path", "remote_addr", "code_prefix"])

    def test_no_code(self) -> None:
        """What is no code is not logged, and neither are looks beyond the limit."""
        self.get("/approve/nonsense")
        for _ in range(12):
            self.get(UNKNOWN)
        self.assertEqual(len(self.lines), 9)


class FollowTests(PageCase):
    """What became of a request that is on the screen."""

    def state(self, id: str, user: str = "alice") -> Document:
        return self.document(f"/fragments/challenge/{id}", user)

    def test_pending(self) -> None:
        """Still waiting: the card as it is now."""
        self.house.policies = Policies.parse(TWO)
        challenge = self.house.ask("alice")
        result(self.house.decisions.approve(self.house.caller("bob", "admin"), challenge.id))
        self.assertIn("1 of 2 approvals", self.state(challenge.id).text)

    def test_decided(self) -> None:
        """Who decided is said to those who may know."""
        challenge = self.house.ask("alice")
        result(self.house.decisions.approve(self.house.caller("carol", "admin"), challenge.id))
        page = self.state(challenge.id)
        self.assertIn("Approved by carol", page.text)
        self.assertEqual(page.all("data-state"), ["approved"])

    def test_expired(self) -> None:
        """Time that ran out is said."""
        challenge = self.house.ask("alice")
        self.house.reactor.advance(120)
        self.assertEqual(self.state(challenge.id).all("data-state"), ["expired"])

    def test_foreign(self) -> None:
        """Other people's requests do not exist, nor do invented ones."""
        challenge = self.house.ask("alice")
        answers = [self.get(f"/fragments/challenge/{id}", "bob") for id in (challenge.id, "f" * 32, "nonsense")]
        self.assertEqual([(r.code, self.body(r)) for r in answers], [(404, '{"error":"not_found"}\n')] * 3)

    def test_signed_out(self) -> None:
        """A script learns that the session is over, in words."""
        response = self.get(f"/fragments/challenge/{'a' * 32}")
        answer = json.loads(self.body(response))
        self.assertEqual((response.code, answer["error"]), (401, "session_expired_sign_in"))
        self.assertIn("Sign in again", answer["message"])


class DashboardTests(PageCase):
    def test_signs_in(self) -> None:
        """Nobody signed in: to the sign-in, without a word about a session that never was."""
        response = self.get("/")
        self.assertEqual(response.headers.getRawHeaders("location"), [f"{EXTERNAL_URL}/sessions/login?next=/"])
        self.assertIsNone(response.headers.getRawHeaders("set-cookie"))

    def test_session_ended(self) -> None:
        """A session that has ended is mentioned after the next sign-in."""
        response = self.get("/", cookies={"pam_session": "over"})
        self.assertIn("pam_flash=expired:", response.headers.getRawHeaders("set-cookie")[0])

    def test_expired_is_said(self) -> None:
        """And there it is said."""
        page = self.document("/", "alice", cookies={"pam_flash": "expired:"})
        self.assertIn("Your sign-in had ended", page.text)

    def test_own_only(self) -> None:
        """One sees one's own requests; an administrator everybody's."""
        mine, other = self.house.ask("alice"), self.house.ask("bob")
        self.assertEqual(self.document("/", "alice").all("data-code"), [mine.user_code])
        self.assertEqual(set(self.document("/", "carol", "admin").all("data-code")), {mine.user_code, other.user_code})

    def test_sessions(self) -> None:
        """Own sudo sessions, with the offers that the server would accept."""
        self.house.session("alice", "web-01.example.com", timedelta(hours=3))
        self.house.session("bob", "web-02.example.com", timedelta(hours=3))
        page = self.document("/", "alice")
        self.assertEqual(page.all("data-session"), ["web-01.example.com"])
        offered = [attributes["value"] for tag, attributes in page.tags if attributes.get("name") == "duration"]
        self.assertEqual(offered, ["14400", "max"])

    def test_offer_is_kept(self) -> None:
        """What the menu promises is what the server does."""
        self.house.session("alice", "web-01.example.com", timedelta(hours=3))
        session = result(self.house.decisions.extend(self.house.caller("alice"), "web-01.example.com", seconds=14400))
        self.assertEqual(session.expires_at, self.house.now().replace(microsecond=0) + timedelta(hours=4))

    def test_unnamed_host(self) -> None:
        """The session of a host without a name can be ended too: the form says it as the endpoint wants it."""
        self.house.session("alice", "", timedelta(hours=3))
        page = self.document("/", "alice")
        hosts = {attributes["value"] for _, attributes in page.tags if attributes.get("name") == "hostname"}
        self.assertEqual(hosts, {"(unknown)"})

    def test_activity(self) -> None:
        """The newest lines of one's own history."""
        now = self.house.now()
        self.house.history(
            [
                HistoryEntry(at=now, username=name, action="revoked", hostname=f"host-{name}")
                for name in ("alice", "bob")
            ]
        )
        text = self.document("/", "alice").text
        self.assertIn("host-alice", text)
        self.assertNotIn("host-bob", text)

    def test_bulk(self) -> None:
        """The buttons for all appear when there are several, with their count."""
        self.house.ask("alice")
        self.assertNotIn("approve-all", self.document("/", "alice").all("data-test"))
        self.house.ask("alice")
        self.assertIn("Approve all 2", self.document("/", "alice").text)

    def test_empty(self) -> None:
        """Where nothing is, the page says what would be there and how to make it appear."""
        page = self.document("/", "dave")
        self.assertLessEqual({"no-requests", "no-sessions", "no-activity"}, set(page.all("data-test")))
        self.assertIn("Run sudo on a host", page.text)

    def test_flash_is_read_once(self) -> None:
        """A message is shown and cleared."""
        response = self.get("/", "alice", cookies={"pam_flash": "rejected:web-01"})
        self.assertIn("Rejected: sudo on web-01.", self.body(response))
        cleared = [value for value in response.headers.getRawHeaders("set-cookie") if value.startswith("pam_flash")]
        self.assertIn("Max-Age=0", cleared[0])

    def test_fragment(self) -> None:
        """The live part alone, with what a decision answered put into words; it does not prolong the session."""
        response = self.get("/fragments/dashboard?flash=rejected:web-01", "alice")
        text = self.body(response)
        self.assertIn("Rejected: sudo on web-01.", text)
        self.assertNotIn("<html", text)
        self.assertIsNone(response.headers.getRawHeaders("set-cookie"))

    def test_fragment_signed_out(self) -> None:
        """A script learns that the session is over."""
        self.assertEqual(self.get("/fragments/dashboard").code, 401)


class SessionFragmentTests(PageCase):
    def ask(self, path: str) -> tuple[dict[str, object], bool]:
        response = self.get(path, "alice")
        return json.loads(self.body(response)), response.headers.getRawHeaders("set-cookie") is not None

    def test_look(self) -> None:
        """Looking tells the end and prolongs nothing."""
        answer, renewed = self.ask("/fragments/session")
        self.assertEqual((answer["ends"], renewed), (int(self.house.now().timestamp()) + 1800, False))

    def test_look_does_not_promise(self) -> None:
        """The end is that of the cookie, not of one that a page load would make."""
        cookie = self.house.cookie("alice")
        self.house.reactor.advance(600)
        response = self.get("/fragments/session", cookies={"pam_session": cookie})
        left = json.loads(self.body(response))["ends"] - int(self.house.now().timestamp())
        self.assertEqual(left, 1200)

    def test_renew(self) -> None:
        """One click prolongs it, and the answer has a token for the forms that are open."""
        answer, renewed = self.ask("/fragments/session?renew=1")
        self.assertTrue(renewed)
        self.house.people.check_csrf(self.house.caller("alice"), str(answer["csrf_token"]), str(answer["csrf_ts"]))

    def test_over(self) -> None:
        """Nobody is signed in."""
        self.assertEqual(self.get("/fragments/session").code, 401)
