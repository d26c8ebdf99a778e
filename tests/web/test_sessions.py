"""Cookies that carry messages to the next page (spec/http-api section 2.8, spec/web-ui section 10)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

from identree.web.reading import Addresses, cookie
from identree.web.sessions import MAX_FLASHES, BrowserSessions, Flash
from tests.app.world import World


def request(cookies: str = "") -> DummyRequest:
    made = DummyRequest([b""])
    if cookies:
        made.requestHeaders.setRawHeaders(b"Cookie", [cookies.encode("latin-1")])
    return made


class FlashTests(SynchronousTestCase):
    def setUp(self) -> None:
        world = World()
        self.sessions = BrowserSessions(world.people, lambda: world.rules)

    def written(self, *items: Flash) -> str:
        """The value of the cookie as a browser would send it back."""
        made = request()
        self.sessions.flash(made, items)
        [line] = made.responseHeaders.getRawHeaders(b"Set-Cookie")
        value: str = line.decode().partition(";")[0].partition("=")[2]
        return value

    def test_there_and_back(self) -> None:
        """What is left for the next page is what it reads."""
        items: list[Flash] = [("approved", ("web1", "alice", "1767323045")), ("highlight", ("alice", "web1"))]
        value = self.written(*items)
        self.assertEqual(value, '"approved:web1:alice:1767323045,highlight:alice:web1"')
        self.assertEqual(self.sessions.flashes(request(f"pam_flash={value}")), items)

    def test_without_arguments(self) -> None:
        """A bare code ends in a colon."""
        self.assertEqual(self.written(("expired", ())), "expired:")
        self.assertEqual(self.sessions.flashes(request("pam_flash=expired:")), [("expired", ())])

    def test_nothing(self) -> None:
        """No message, no cookie."""
        made = request()
        self.sessions.flash(made, [])
        self.assertFalse(made.responseHeaders.hasHeader(b"Set-Cookie"))

    def test_read_once(self) -> None:
        """Reading clears it; without one there is nothing to clear."""
        made = request("a=b; pam_flash=expired:")
        self.sessions.flashes(made)
        self.assertEqual(
            made.responseHeaders.getRawHeaders(b"Set-Cookie"),
            [b"pam_flash=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure"],
        )
        made = request("a=b")
        self.assertEqual(self.sessions.flashes(made), [])
        self.assertFalse(made.responseHeaders.hasHeader(b"Set-Cookie"))

    def test_no_header_splitting(self) -> None:
        """What cannot stand in a cookie is dropped."""
        self.assertEqual(self.written(("rejected", ('w"e;b\\1\r\nX: y\u20ac',))), '"rejected:web1X: y"')

    def test_bounded(self) -> None:
        """A cookie full of messages is read as far as we would write one."""
        self.assertEqual(len(self.sessions.flashes(request("pam_flash=" + "a:," * 500))), MAX_FLASHES)


class EndedSessionTests(SynchronousTestCase):
    """What is said after a repeated sign-in: the provider being another site, only Lax cookies return."""

    def setUp(self) -> None:
        self.world = World()
        self.sessions = BrowserSessions(self.world.people, lambda: self.world.rules)

    def left(self, made: DummyRequest, name: str = "identree_signin") -> str | None:
        """The cookie as the browser would send it back."""
        lines = [line.decode() for line in made.responseHeaders.getRawHeaders(b"Set-Cookie", [])]
        return next((line.partition(";")[0] for line in lines if line.startswith(f"{name}=")), None)

    def signed_in(self, cookies: str = "") -> str | None:
        made = request(cookies)
        signing_in = self.world.people.sign_in_for_development("alice", "user", "192.0.2.1")
        self.sessions.signed_in(made, self.successResultOf(signing_in))
        return self.left(made)

    def ended(self, cookies: str) -> str | None:
        made = request(cookies)
        self.sessions.ended(made)
        return self.left(made)

    def test_said_once(self) -> None:
        """A session ends, the person signs in again: the first page says why, the second does not."""
        known = self.signed_in()
        self.assertEqual(known, "identree_signin=known")
        ended = self.ended(known or "")
        again = self.signed_in(ended or "")
        first = request(again or "")
        self.assertEqual(self.sessions.flashes(first), [("expired", ())])
        self.assertEqual(self.sessions.flashes(request(self.left(first) or "")), [])

    def test_said_once_at_the_same_site(self) -> None:
        """Where the flash comes back too, it is still said once."""
        self.assertEqual(self.sessions.flashes(request("identree_signin=again; pam_flash=expired:")), [("expired", ())])

    def test_never_signed_in(self) -> None:
        """Who comes for the first time is told nothing."""
        self.assertIsNone(self.ended(""))
        self.assertEqual(self.sessions.flashes(request(self.signed_in() or "")), [])

    def test_other_picture(self) -> None:
        """The picture of the person before is not kept for one who has none."""
        made = request("identree_avatar=https://p.example/a.png")
        signing_in = self.world.people.sign_in_for_development("bob", "user", "192.0.2.1")
        self.sessions.signed_in(made, self.successResultOf(signing_in))
        self.assertEqual(self.left(made, "identree_avatar"), "identree_avatar=")

    def test_signed_out(self) -> None:
        """Who signed out knows why."""
        made = request("identree_signin=known")
        self.sessions.forget(made)
        self.assertEqual(self.left(made), "identree_signin=")

    def test_comes_back_from_another_site(self) -> None:
        """The cookie is Lax, and no script reads it."""
        made = request("pam_session=over")
        self.sessions.ended(made)
        self.assertIn(
            b"identree_signin=ended; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax; Secure",
            made.responseHeaders.getRawHeaders(b"Set-Cookie"),
        )


class CookieTests(SynchronousTestCase):
    def test_first(self) -> None:
        """The first of a name counts, in any of the headers."""
        self.assertEqual(cookie(request("x=1; pam=2; pam=3"), "pam"), "2")

    def test_absent(self) -> None:
        """No cookie is an empty one; names are whole."""
        self.assertEqual(cookie(request("xpam=1; pam"), "pam"), "")


class AddressTests(SynchronousTestCase):
    def test_unknown_peer(self) -> None:
        """A peer without an address, as on a Unix socket, is nobody in particular."""
        self.assertEqual(Addresses(lambda: ()).of(request()), "")
