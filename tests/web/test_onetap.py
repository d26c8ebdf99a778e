"""One-tap pages, override, taking back, step-up (spec/http-api section 8, spec/web-ui section 6)."""

from __future__ import annotations

from identree.core import tokens
from identree.core.challenge import Challenge, Status
from identree.core.events import UserLoggedIn
from identree.core.policy import Policies
from identree.storage.interface import BrowserSession
from tests.web.house import EXTERNAL_URL, result
from tests.web.houses import HouseCase
from tests.web.test_render import Document


class PathCase(HouseCase):
    def setUp(self) -> None:
        super().setUp()
        for name in ("alice", "bob", "carol"):
            self.login(name)

    def login(self, name: str) -> None:
        now = self.house.now()
        session = BrowserSession(nonce=f"{name:0>32}".replace("l", "1"), username=name, started_at=now)
        result(self.house.store.record_login(session, UserLoggedIn(at=now, username=name), now))

    def policy(self, **fields: object) -> None:
        self.house.policies = Policies.from_fields([{"name": "prod", **fields}])

    def link(self, challenge: Challenge) -> str:
        expires = int(challenge.expires_at.timestamp())
        token = tokens.one_tap_token(self.house.keys, challenge.id, challenge.username, expires, challenge.hostname)
        return f"/api/onetap/{token}"

    def status(self, challenge: Challenge) -> Status:
        found = result(self.house.store.challenge(challenge.id))
        assert found is not None
        return found.status


class OneTapTests(PathCase):
    def test_asked_first(self) -> None:
        """Looking shows what would be approved, and approves nothing; nobody keeps the page."""
        challenge = self.house.ask()
        answer = self.get(self.link(challenge), "alice", "user")
        self.assertEqual(answer.code, 200)
        self.assertIn("Approve sudo for", answer.text)
        self.assertEqual(answer.header("Cache-Control"), "no-store")
        self.assertEqual(self.status(challenge), Status.PENDING)

    def test_approved(self) -> None:
        """The button approves, and the page says so."""
        challenge = self.house.ask()
        answer = self.form(self.link(challenge), "alice", "user")
        self.assertEqual((answer.code, Document(answer.text).all("data-onetap")), (200, ["done"]))
        self.assertEqual(self.status(challenge), Status.APPROVED)
        self.assertEqual(self.form(self.link(challenge), "alice", "user").code, 404)

    def test_without_session(self) -> None:
        """Who is not signed in is asked to, and the link goes on afterwards."""
        challenge = self.house.ask()
        answer = self.ask("GET", self.link(challenge))
        self.assertEqual(answer.code, 200)
        self.assertIn("sign-in", Document(answer.text).all("data-test"))
        self.assertIn("pam_onetap=", answer.cookie("pam_onetap") or "")

    def test_statuses(self) -> None:
        """Each mistake has the status of the contract."""
        challenge = self.house.ask()
        link = self.link(challenge)
        id = challenge.id
        expires = int(challenge.expires_at.timestamp())
        for path, code in (
            ("/api/onetap/", 400),
            ("/api/onetap/x", 400),
            (f"/api/onetap/{id}.1.{'0' * 64}", 410),
            (f"/api/onetap/{'f' * 32}.{expires}.{'0' * 64}", 404),
            (f"/api/onetap/{id}.{expires}.{'0' * 64}", 403),
        ):
            self.assertEqual(self.get(path, "alice", "user").code, code, path)
        self.assertEqual(self.form(link, "bob", "user").code, 403)
        self.assertEqual(self.ask("PUT", link).code, 405)
        self.assertEqual(self.status(challenge), Status.PENDING)

    def test_stale(self) -> None:
        """Who signed in more than a day ago signs in first; the link is kept for that, and not used up."""
        self.house.reactor.advance(25 * 3600)
        challenge = self.house.ask()
        answer = self.get(self.link(challenge), "alice", "user")
        self.assertEqual((answer.code, answer.header("Location")), (303, f"{EXTERNAL_URL}/sessions/login"))
        self.assertIn("SameSite=Lax", answer.cookie("pam_onetap") or "")
        self.assertEqual(self.form(self.link(challenge), "alice", "user").code, 303)
        self.assertEqual(self.status(challenge), Status.PENDING)

    def test_policy(self) -> None:
        """The policy holds: an administrator, the window, several people."""
        self.policy(require_admin=True)
        challenge = self.house.ask()
        self.assertEqual(self.form(self.link(challenge), "alice", "user").code, 403)
        self.assertEqual(self.form(self.link(challenge)).code, 200)
        self.policy(allowed_hours="00:00-00:00")
        challenge = self.house.ask()
        self.assertEqual(self.form(self.link(challenge), "alice", "user").code, 403)
        self.policy(min_approvals=2)
        challenge = self.house.ask()
        partial = self.form(self.link(challenge), "alice", "user")
        self.assertEqual(self.flash(partial, "/"), f"partial_approve:{challenge.user_code}:1:2")
        self.assertEqual(self.form(self.link(challenge), "alice", "user").code, 409)
        self.assertEqual(self.form(self.link(challenge)).code, 200)

    def test_justification(self) -> None:
        """Where a reason is required the page has a field for it, and the server wants it."""
        self.house.rules = self.house.rules.__class__(external_url=EXTERNAL_URL, require_justification=False)
        challenge = self.house.ask()
        self.house.rules = self.house.rules.__class__(external_url=EXTERNAL_URL, require_justification=True)
        self.assertIn('name="reason"', self.get(self.link(challenge), "alice", "user").text)
        self.assertEqual(self.form(self.link(challenge), "alice", "user").code, 400)
        self.assertEqual(self.form(self.link(challenge), "alice", "user", reason="Deployment").code, 200)


class OverrideTests(PathCase):
    def override(self, challenge: Challenge, user: str = "carol", role: str = "admin", reason: str = "fire") -> int:
        return self.form("/api/challenges/override", user, role, challenge_id=challenge.id, reason=reason).code

    def test_overridden(self) -> None:
        """Where the policy permits it an administrator approves at once, over window and number; loudly recorded."""
        self.policy(min_approvals=3, allowed_hours="00:00-00:00", break_glass_bypass=True)
        challenge = self.house.ask()
        answer = self.form("/api/challenges/override", challenge_id=challenge.id, reason="fire")
        self.assertEqual(self.flash(answer, "/"), "break_glass_override:web-01.example.com:alice")
        self.assertEqual(self.status(challenge), Status.APPROVED)
        told = self.events()[-1]
        self.assertEqual(
            (told["event"], told["actor"], told["reason"]), ("break_glass_policy_override", "carol", "fire")
        )

    def test_refused(self) -> None:
        """Not without permission, reason, or role; the role is looked at first."""
        challenge = self.house.ask()
        self.assertEqual(self.override(challenge), 403)
        self.policy(break_glass_bypass=True)
        challenge = self.house.ask(hostname="web-02.example.com")
        self.assertEqual(self.override(challenge, reason=""), 400)
        self.assertEqual(self.override(challenge, "alice", "user"), 403)
        self.assertEqual(self.form("/api/challenges/override", "alice", "user", challenge_id="x").code, 403)
        self.assertEqual(self.form("/api/challenges/override", challenge_id="x").code, 400)
        self.assertEqual(self.status(challenge), Status.PENDING)

    def test_shown(self) -> None:
        """The card offers it to administrators only, and only where the policy permits it."""
        self.policy(require_admin=True, min_approvals=2, break_glass_bypass=True)
        challenge = self.house.ask()
        page = f"/approve/{challenge.user_code}"
        self.assertIn("data-override", self.get(page).text)
        self.assertNotIn("data-override", self.get(page, "alice", "user").text)


class QuorumTests(PathCase):
    def test_taken_back(self) -> None:
        """An approval can be taken back while others are missing, and the card offers that."""
        self.policy(min_approvals=2)
        challenge = self.house.ask()
        self.form("/api/challenges/approve", "alice", "user", challenge_id=challenge.id)
        self.assertIn('data-test="withdraw"', self.get(f"/approve/{challenge.user_code}", "alice", "user").text)
        answer = self.form("/api/challenges/withdraw", "alice", "user", challenge_id=challenge.id)
        self.assertEqual(self.flash(answer, "/"), f"withdrawn:{challenge.user_code}")
        found = result(self.house.store.challenge(challenge.id))
        assert found is not None
        self.assertEqual(found.approvals, ())
        again = self.form("/api/challenges/withdraw", "alice", "user", challenge_id=challenge.id)
        self.assertEqual(again.code, 404)


class StepUpTests(PathCase):
    def test_one_button(self) -> None:
        """Where a recent sign-in is asked for the card leads to one that is recent enough, and back."""
        self.policy(require_fresh_oidc="5m")
        self.house.reactor.advance(600)
        challenge = self.house.ask()
        text = self.get(f"/approve/{challenge.user_code}", "alice", "user").text
        wanted = f"/sessions/login?next=/approve/{challenge.user_code}&amp;fresh=300"
        self.assertIn(wanted, text)
        self.login("alice")
        self.assertNotIn("fresh=300", self.get(f"/approve/{challenge.user_code}", "alice", "user").text)

    def test_explained(self) -> None:
        """The card says which policy applies and why, and what it asks for."""
        self.policy(match_hosts=["web*"], forbid_self_approval=True)
        challenge = self.house.ask()
        text = self.get(f"/approve/{challenge.user_code}", "alice", "user").text
        self.assertIn("The host fits web*.", text)
        self.assertIn("Nobody may approve their own request.", text)
        self.assertIn("The policy wants somebody else than you", text)
        self.assertNotIn('data-test="approve"', text)


class GroupTests(PathCase):
    def test_members(self) -> None:
        """A member of an approver group sees and approves requests of others; nobody else does."""
        self.policy(approver_groups=["dba"])
        challenge = self.house.ask()
        self.house.people._directory_groups = lambda name: frozenset({"dba"} if name == "dora" else ())
        self.assertEqual(self.get(f"/approve/{challenge.user_code}", "bob", "user").code, 404)
        self.assertIn(challenge.user_code, self.get("/", "dora", "user").text)
        self.assertNotIn(challenge.user_code, self.get("/", "bob", "user").text)
        answer = self.form("/api/challenges/approve", "dora", "user", challenge_id=challenge.id)
        self.assertEqual(answer.code, 303)
        self.assertEqual(self.status(challenge), Status.APPROVED)
