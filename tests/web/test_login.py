"""Signing in and out (spec/web-ui sections 3, 4.5, 5 and 8.2)."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

from twisted.trial.unittest import SynchronousTestCase

from identree.app.ports import Identity
from identree.core.errors import ProviderUnavailable
from tests.app.world import SECRET, START
from tests.web.front import Front, Response

BASE = "https://identree.example"


class LoginTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.front = Front()
        self.addCleanup(self.front.close)
        self.world = self.front.world

    def begin(self, query: str = "", peer: str = "192.0.2.7") -> str:
        """Go to the provider; returns the state."""
        response = self.front.ask("GET", f"/sessions/login{query}", peer=peer)
        self.assertEqual(response.code, 302, response.text)
        cookie = response.cookie("identree_login") or ""
        self.front.cookies["identree_login"] = cookie.partition(";")[0].partition("=")[2]
        return parse_qs(urlsplit(response.header("Location") or "").query)["state"][0]

    def finish(self, state: str, query: str = "&code=good", **more: str) -> Response:
        return self.front.ask("GET", f"/callback?state={state}{query}", **more)  # type: ignore[arg-type]

    def card(self, response: Response, code: int, key: str, retry: str | None = "/sessions/login") -> None:
        self.assertEqual((response.code, response.text), (code, f"CARD({key}) retry={retry}"))


class LoginTests(LoginTestCase):
    def test_to_the_provider(self) -> None:
        """302 to the provider, with a cookie that binds the sign-in to this browser."""
        response = self.front.ask("GET", "/sessions/login")
        self.assertEqual(response.code, 302)
        self.assertTrue((response.header("Location") or "").startswith("https://idp.example/authorize?state=sessions:"))
        self.assertRegex(
            response.cookie("identree_login") or "",
            r"\Aidentree_login=[0-9a-f]{64}; Path=/; Max-Age=900; HttpOnly; SameSite=Lax; Secure\Z",
        )

    def test_signed_in(self) -> None:
        """Back with a code: a session, the picture, and on to the dashboard."""
        self.world.provider.identity = Identity(username="alice", groups=(), picture="https://p.example/a.png")
        response = self.finish(self.begin())
        self.assertEqual((response.code, response.header("Location")), (303, BASE + "/"))
        unix = int(START.timestamp())
        self.assertRegex(
            response.cookie("pam_session") or "",
            rf"\Apam_session=alice:user:{unix}:[0-9a-f]{{32}}:[0-9a-f]{{64}}; "
            r"Path=/; Max-Age=1800; HttpOnly; SameSite=Lax; Secure\Z",
        )
        self.assertEqual(
            response.cookie("identree_avatar"),
            "identree_avatar=https://p.example/a.png; Path=/; Max-Age=2592000; SameSite=Strict; Secure",
        )

    def test_page_survives(self) -> None:
        """The page that was wanted is gone on with."""
        state = self.begin("?next=/approve/ABCDEF-123456")
        self.assertEqual(self.finish(state).header("Location"), BASE + "/approve/ABCDEF-123456")

    def test_page_elsewhere(self) -> None:
        """No other site is gone on with."""
        for wish in ("//evil.example", "https://evil.example", "/%5Cevil", "/\\evil", "/a%0d%0ab"):
            self.world.clock.advance(30)
            location = self.finish(self.begin(f"?next={wish}")).header("Location") or ""
            self.assertTrue(location.startswith(BASE + "/"), location)
            self.assertFalse(location.startswith(BASE + "//"), location)

    def test_several_tabs(self) -> None:
        """Sign-ins begun in two tabs both come back."""
        first, second = self.begin(), self.begin()
        self.assertEqual(self.finish(first).code, 303)
        self.assertEqual(self.finish(second).code, 303)

    def test_once(self) -> None:
        """A sign-in is used up by its first return."""
        state = self.begin()
        self.finish(state)
        self.card(self.finish(state), 400, "login_session_expired")

    def test_too_late(self) -> None:
        """A sign-in is good for a quarter of an hour."""
        state = self.begin()
        self.world.clock.advance(901)
        self.card(self.finish(state), 400, "login_session_expired")

    def test_state(self) -> None:
        """A state that is not ours."""
        for state in ("", "x", "other:" + "0" * 32, "sessions:xyz"):
            self.card(self.finish(state), 400, "login_state_invalid")

    def test_another_browser(self) -> None:
        """A sign-in begun elsewhere is refused: it could be a stranger's."""
        state = self.begin()
        self.front.cookies.clear()
        self.card(self.finish(state), 400, "login_other_browser")

    def test_another_address(self) -> None:
        """It is refused only when the operator wants that."""
        self.world.change_rules(enforce_ip_binding=True)
        self.card(self.finish(self.begin(), peer="198.51.100.1"), 403, "ip_binding_mismatch")

    def test_provider_says_no(self) -> None:
        """The provider's error is not repeated to the browser."""
        self.card(self.finish(self.begin(), "&error=access_denied<script>"), 403, "login_provider_error")

    def test_no_code(self) -> None:
        """A return without a code."""
        self.card(self.finish(self.begin(), ""), 400, "login_code_missing")

    def test_exchange_failed(self) -> None:
        """The provider does not take the code."""
        self.card(self.finish(self.begin(), "&code=bad"), 500, "login_exchange_failed")

    def test_provider_away(self) -> None:
        """While the provider cannot be reached: a card to try again, before and after."""

        async def away(**_: str) -> str:
            raise ProviderUnavailable

        state = self.begin()
        self.world.provider.redeem = away  # type: ignore[assignment, method-assign]
        self.card(self.finish(state), 503, "provider_unavailable")
        self.world.provider.authorization_url = away  # type: ignore[method-assign]
        response = self.front.ask("GET", "/sessions/login")
        self.card(response, 503, "provider_unavailable")
        self.assertEqual(response.header("Retry-After"), "2")

    def test_limits(self) -> None:
        """Ten a minute from one address; the texts are the contract's."""
        for _ in range(10):
            state = self.begin()
        response = self.front.ask("GET", "/sessions/login")
        self.assertEqual((response.code, response.text), (429, "too many requests \u2014 try again later\n"))
        self.assertEqual(response.header("Retry-After"), "60")
        for _ in range(10):
            self.finish("sessions:" + "0" * 32)
        response = self.finish(state)
        self.assertEqual((response.code, response.text), (429, "too many requests\n"))

    def test_limits_behind_a_proxy(self) -> None:
        """Behind a trusted proxy each person has a limit of his own."""
        self.front.trust("10.0.0.1")
        for number in range(11):
            headers = {"X-Forwarded-For": f"203.0.113.{number}"}
            self.assertEqual(self.front.ask("GET", "/sessions/login", headers, peer="10.0.0.1").code, 302)

    def test_wrong_method(self) -> None:
        """Links only."""
        for path in ("/sessions/login", "/callback"):
            self.assertEqual(self.front.ask("POST", path).code, 405)

    def test_picture_that_is_none(self) -> None:
        """Only addresses of the web are kept."""
        self.world.provider.identity = Identity(username="alice", groups=(), picture="javascript:alert(1)")
        self.assertIsNone(self.finish(self.begin()).cookie("identree_avatar"))


class SignOutTests(LoginTestCase):
    def sign_out(self, **fields: str | None) -> Response:
        return self.front.post("/signout", username=None, **fields)  # type: ignore[arg-type]

    def test_signed_out(self) -> None:
        """Session and sudo sessions end, the cookie goes, and a page says so."""
        self.world.change_rules(grace_period=timedelta(minutes=10))
        self.front.sign_in()
        self.front.ask("POST", "/dev/seed-session", body=b'{"username": "alice", "hostname": ""}')
        response = self.front.post("/signout")
        self.assertEqual((response.code, response.header("Location")), (303, BASE + "/sessions/login?signed_out=1"))
        self.assertEqual(
            response.cookie("pam_session"),
            "pam_session=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure",
        )
        self.assertEqual(self.front.ask("GET", "/api/events").code, 401)
        status = self.front.ask("GET", "/api/grace-status?username=alice", {"X-Shared-Secret": SECRET})
        self.assertEqual(status.json["grace_remaining"], 0)

    def test_page(self) -> None:
        """The page does not sign in again by itself."""
        self.card(self.front.ask("GET", "/sessions/login?signed_out=1"), 200, "signed_out")

    def test_bad_forms(self) -> None:
        """Missing, wrong and foreign tokens end nothing."""
        self.front.sign_in()
        for fields in (
            {"csrf_token": None},
            {"csrf_ts": "x"},
            {"csrf_token": "0" * 64},
            self.front.csrf("bob"),
        ):
            response = self.front.post("/signout", **fields)  # type: ignore[arg-type]
            self.assertEqual((response.code, response.body), (403, b"invalid_csrf\n"))
        self.assertEqual(self.front.post("/api/challenges/approve-all").code, 303)

    def test_page_left_open(self) -> None:
        """A page that was open for twenty minutes can still sign out."""
        self.front.sign_in()
        form = self.front.csrf()
        self.world.clock.advance(1200)
        self.assertEqual(self.front.post("/signout", **form).code, 303)

    def test_without_session(self) -> None:
        """Only the cookie goes."""
        response = self.front.post("/signout", csrf_token="x")
        self.assertEqual(response.code, 303)
        self.assertIn("Max-Age=0", response.cookie("pam_session") or "")

    def test_get(self) -> None:
        """A link signs nobody out."""
        self.front.sign_in()
        response = self.front.ask("GET", "/signout")
        self.assertEqual((response.code, response.header("Location")), (303, "/"))
        self.assertIsNone(response.cookie("pam_session"))


class ThemeTests(LoginTestCase):
    def test_chosen(self) -> None:
        """Kept for a year; back to the page."""
        response = self.front.ask("GET", "/theme?set=dark&from=/access")
        self.assertEqual((response.code, response.header("Location")), (303, BASE + "/access"))
        self.assertEqual(
            response.cookie("identree_theme"),
            "identree_theme=dark; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax; Secure",
        )

    def test_system(self) -> None:
        """Anything else forgets the choice."""
        for chosen in ("system", "", "x%0d%0aSet-Cookie:a=b"):
            cookie = self.front.ask("GET", f"/theme?set={chosen}").cookie("identree_theme") or ""
            self.assertTrue(cookie.startswith("identree_theme=; Path=/; Max-Age=0"))

    def test_elsewhere(self) -> None:
        """Only local paths."""
        response = self.front.ask("GET", "/theme?set=dark&from=//evil.example")
        self.assertEqual(response.header("Location"), BASE + "/")

    def test_sessions(self) -> None:
        """The old name of the dashboard."""
        for method in ("GET", "POST", "DELETE"):
            response = self.front.ask(method, "/sessions")
            self.assertEqual((response.code, response.header("Location")), (303, BASE + "/"))


class DevelopmentTests(LoginTestCase):
    def test_login(self) -> None:
        """A session for whoever is named; any other role than admin is a user."""
        for role, got in (("admin", "admin"), ("root", "user"), ("", "user")):
            response = self.front.ask("GET", f"/dev/login?user=bob&role={role}")
            self.assertEqual((response.code, response.header("Location")), (303, "/"))
            self.assertIn(f"pam_session=bob:{got}:", response.cookie("pam_session") or "")

    def test_bad_user(self) -> None:
        """The name must be one."""
        for user in ("", "a%20b"):
            response = self.front.ask("GET", f"/dev/login?user={user}")
            self.assertEqual((response.code, response.body), (400, b"missing or invalid user param\n"))

    def test_seed_history(self) -> None:
        """Entries appear where they are said to be."""
        body = b'[{"username": "alice", "action": "approved", "hostname": "web1", "actor": "bob", "minutes_ago": 5}]'
        response = self.front.ask("POST", "/dev/seed-history", body=body)
        self.assertEqual((response.code, response.body), (201, b""))
        rows = self.world.store.connection.execute("SELECT username, action, hostname, actor FROM action_log")
        self.assertEqual([tuple(row) for row in rows], [("alice", "approved", "web1", "bob")])

    def test_bad_seeds(self) -> None:
        """What is not of the form."""
        for path, body in (
            ("/dev/seed-session", b"[]"),
            ("/dev/seed-session", b'{"username": "a b"}'),
            ("/dev/seed-history", b"{}"),
            ("/dev/seed-history", b"[1]"),
            ("/dev/seed-history", b'[{"username": "alice", "minutes_ago": -1}]'),
        ):
            response = self.front.ask("POST", path, body=body)
            self.assertEqual((response.code, response.body), (400, b"invalid body\n"))
