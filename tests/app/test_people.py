"""Signing in, browser sessions, forms and signing out, on a memory store."""

from datetime import datetime, timedelta

from twisted.trial.unittest import SynchronousTestCase

from identree.app.people import SignedIn
from identree.app.ports import Identity
from identree.core import tokens
from identree.core.errors import BadCsrfToken, FormExpired, LoginFailed, SessionExpired, Throttled
from tests.app.world import START, World, now_result


class PeopleCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.people = self.world.people

    def begin(self, return_to: str = "/", browser: str = "", address: str = "10.0.0.1") -> tuple[str, str]:
        start = now_result(self.people.begin_login(address=address, browser=browser, return_to=return_to))
        state = start.url.split("state=")[1].split("&")[0]
        return state, start.browser

    def finish(
        self, state: str, browser: str, code: str = "good", error: str = "", address: str = "10.0.0.1"
    ) -> SignedIn:
        return now_result(
            self.people.finish_login(state=state, code=code, error=error, address=address, browser=browser)
        )

    def sign_in(self, username: str = "alice", *groups: str) -> SignedIn:
        self.world.provider.identity = Identity(username=username, groups=groups or ("staff",))
        return self.finish(*self.begin())

    def refusal(self, *arguments: str, **more: str) -> tuple[str, int]:
        with self.assertRaises(LoginFailed) as refused:
            self.finish(*arguments, **more)
        return refused.exception.key, refused.exception.status


class LoginTests(PeopleCase):
    def test_signed_in(self) -> None:
        """The cookie is good, the page that was wanted is kept, the event is recorded."""
        state, browser = self.begin("/approve/ABCDEF-123456")
        signed_in = self.finish(state, browser)
        self.assertEqual(signed_in.return_to, "/approve/ABCDEF-123456")
        self.assertEqual(now_result(self.people.caller(signed_in.cookie)).username, "alice")
        self.assertEqual(self.world.store.events, ["user_logged_in"])

    def test_role(self) -> None:
        """An admin is who is in an admin group, by its exact name."""
        self.assertEqual(self.sign_in("carol", "admins").caller.role, "admin")
        self.assertEqual(self.sign_in("bob", "Admins").caller.role, "user")

    def test_groups(self) -> None:
        """The groups of the sign-in come with the session; where the directory knows the person its groups count."""
        cookie = self.sign_in("alice", "dba", "staff").cookie
        self.assertEqual(now_result(self.people.caller(cookie)).groups, frozenset({"dba", "staff"}))
        self.people._directory_groups = lambda name: frozenset({"ops"}) if name == "alice" else None
        self.assertEqual(now_result(self.people.caller(cookie)).groups, frozenset({"ops"}))

    def test_authenticated(self) -> None:
        """When the provider saw the person is what it says, else when the sign-in was completed."""
        seen = START - timedelta(minutes=3)
        self.world.provider.identity = Identity(username="alice", groups=(), authenticated_at=seen)
        cookie = self.finish(*self.begin()).cookie
        self.assertEqual(now_result(self.people.caller(cookie)).authenticated_at, seen)
        self.assertEqual(now_result(self.people.caller(self.sign_in().cookie)).authenticated_at, START)

    def step_up(self, authenticated_at: datetime | None) -> SignedIn:
        self.world.provider.identity = Identity(username="alice", groups=(), authenticated_at=authenticated_at)
        start = now_result(self.people.begin_login(address="10.0.0.1", fresh=timedelta(minutes=5)))
        self.assertIn("max_age=300", start.url)
        return self.finish(start.url.split("state=")[1].split("&")[0], start.browser)

    def test_step_up(self) -> None:
        """A sign-in that has to be fresh is, by the provider's own word; its clock may be a little behind."""
        for ago in (0, 299, 305):
            self.step_up(START - timedelta(seconds=ago))

    def test_step_up_refused(self) -> None:
        """A provider that saw the person too long ago, or does not say when, satisfies nobody."""
        for at in (START - timedelta(minutes=6), None):
            with self.assertRaises(LoginFailed) as refused:
                self.step_up(at)
            self.assertEqual((refused.exception.key, refused.exception.status), ("login_not_fresh", 403))
        self.assertIn("authentication_failed", self.world.store.events)

    def test_elsewhere(self) -> None:
        """The wanted page is a local one, whatever was asked for."""
        for wanted in ("https://evil.example/", "//evil.example/", "/\\evil.example", "/x\n"):
            self.assertEqual(self.finish(*self.begin(wanted)).return_to, "/")

    def test_another_browser(self) -> None:
        """A sign-in that was begun in another browser is refused, and can still be finished in its own."""
        state, browser = self.begin()
        self.assertEqual(self.refusal(state, ""), ("login_other_browser", 400))
        self.assertEqual(self.refusal(state, self.begin()[1]), ("login_other_browser", 400))
        self.finish(state, browser)

    def test_several_tabs(self) -> None:
        """Sign-ins under way in several tabs of one browser can all be finished."""
        first, browser = self.begin()
        second, browser = self.begin(browser=browser)
        self.finish(first, browser)
        self.finish(second, browser)

    def test_once(self) -> None:
        """A sign-in is used up by its first return, also a failed one."""
        state, browser = self.begin()
        self.assertEqual(self.refusal(state, browser, code="bad"), ("login_exchange_failed", 500))
        self.assertEqual(self.refusal(state, browser), ("login_session_expired", 400))

    def test_too_late(self) -> None:
        """After 15 minutes it has to be begun again."""
        state, browser = self.begin()
        self.world.clock.advance(15 * 60)
        self.assertEqual(self.refusal(state, browser), ("login_session_expired", 400))

    def test_nonsense_state(self) -> None:
        """What is not a state of ours."""
        for state in ("", "x", "sessions:", "sessions:" + "Z" * 32, "other:" + "0" * 32):
            self.assertEqual(self.refusal(state, ""), ("login_state_invalid", 400))

    def test_provider_says_no(self) -> None:
        """An error parameter and a missing code."""
        self.assertEqual(self.refusal(*self.begin(), error="access_denied"), ("login_provider_error", 403))
        self.assertEqual(self.refusal(*self.begin(), code=""), ("login_code_missing", 400))

    def test_another_address(self) -> None:
        """Another address is only logged, unless the binding is enforced."""
        state, browser = self.begin()
        self.finish(state, browser, address="10.0.0.2")
        self.assertIn("SECURITY OIDC callback from another address", [line for line, _ in self.world.log])
        self.world.change_rules(enforce_ip_binding=True)
        state, browser = self.begin()
        self.assertEqual(self.refusal(state, browser, address="10.0.0.2"), ("ip_binding_mismatch", 403))

    def test_limit(self) -> None:
        """Ten sign-ins a minute from one address."""
        for _ in range(10):
            self.begin()
        with self.assertRaises(Throttled):
            self.begin()
        self.begin(address="10.0.0.2")


class SessionTests(PeopleCase):
    def test_ends_after_thirty_minutes(self) -> None:
        """Without a page load."""
        cookie = self.sign_in().cookie
        self.world.clock.advance(1800)
        now_result(self.people.caller(cookie))
        self.world.clock.advance(1)
        with self.assertRaises(SessionExpired):
            now_result(self.people.caller(cookie))

    def test_slides(self) -> None:
        """Every page load moves the end, but not beyond the absolute one."""
        cookie = self.sign_in().cookie
        for _ in range(23):
            self.world.clock.advance(1800)
            cookie = self.people.renewed(now_result(self.people.caller(cookie)))
        self.world.clock.advance(1800)
        with self.assertRaises(SessionExpired):
            now_result(self.people.caller(cookie))

    def test_made_by_a_script(self) -> None:
        """A cookie computed from the secret (a wire contract) is good, and has an absolute end too."""
        self.world.change_rules(session_max_age=timedelta(minutes=45))
        ts = int(START.timestamp())
        cookie = tokens.session_cookie(self.world.keys, "erin", "admin", ts, "ab" * 16)
        caller = now_result(self.people.caller(cookie))
        self.assertEqual((caller.username, caller.is_admin), ("erin", True))
        self.world.clock.advance(1700)
        cookie = self.people.renewed(caller)
        self.world.clock.advance(1000)
        with self.assertRaises(SessionExpired):
            now_result(self.people.caller(cookie))

    def test_forged(self) -> None:
        """Any change breaks it."""
        cookie = self.sign_in().cookie
        for forged in (cookie.replace("user", "admin"), cookie.replace("alice", "carol"), cookie[:-1] + "x", ""):
            with self.assertRaises(SessionExpired):
                now_result(self.people.caller(forged))

    def test_signing_out_ends_the_whole_chain(self) -> None:
        """Earlier cookies of the same sliding session end with it; another browser's do not."""
        first = self.sign_in().cookie
        other = self.sign_in().cookie
        caller = now_result(self.people.caller(first))
        self.world.clock.advance(60)
        later = self.people.renewed(caller)
        now_result(self.people.sign_out(caller, "10.0.0.1"))
        for cookie in (first, later):
            with self.assertRaises(SessionExpired):
                now_result(self.people.caller(cookie))
        now_result(self.people.caller(other))
        self.assertEqual(self.world.store.events[-1], "user_signed_out")

    def test_signed_out_elsewhere(self) -> None:
        """A sign-out through another replica is noticed within a second."""
        cookie = self.sign_in().cookie
        caller = now_result(self.people.caller(cookie))
        now_result(self.world.store.sign_out("alice", caller.nonce, self.world.now(), lambda names: _nothing()))
        self.world.clock.advance(1)
        with self.assertRaises(SessionExpired):
            now_result(self.people.caller(cookie))

    def test_demoted(self) -> None:
        """Who lost the admin role is a user, with the cookie that still says otherwise."""
        cookie = self.sign_in("carol", "admins").cookie
        self.world.store.connection.execute(
            "INSERT INTO revoked_admin_sessions (username, revoked_at) VALUES ('carol', ?)", (int(START.timestamp()),)
        )
        self.world.clock.advance(1)
        self.assertFalse(now_result(self.people.caller(cookie)).is_admin)


class FormTests(PeopleCase):
    def test_token(self) -> None:
        """Good for its owner, for 30 minutes."""
        alice, bob = self.sign_in().caller, self.sign_in("bob").caller
        token, ts = self.people.csrf(alice)
        self.people.check_csrf(alice, token, ts)
        self.assertRaises(BadCsrfToken, self.people.check_csrf, bob, token, ts)
        self.world.clock.advance(1801)
        self.assertRaises(FormExpired, self.people.check_csrf, alice, token, ts)

    def test_limit(self) -> None:
        """Thirty accepted forms a minute."""
        alice = self.sign_in().caller
        for _ in range(30):
            self.people.accept_form(alice)
        self.assertRaises(Throttled, self.people.accept_form, alice)


def _nothing():  # type: ignore[no-untyped-def]
    from identree.storage.interface import GraceChange

    return GraceChange(session=None)
