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
