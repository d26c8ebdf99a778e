"""
Behind a reverse proxy that takes a path prefix off: whatever a browser is to ask for has the prefix, and paths that the
server gets back have not.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

from treq.testing import StubTreq
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

from identree.app.rules import Rules
from identree.core.challenge import HostContext
from identree.web.translations import SENTENCES
from tests.web.house import House
from tests.web.test_render import STATIC, Document, PageCase

PREFIX = "/identree"


class PrefixCase(PageCase):
    def setUp(self) -> None:
        self.house = House(rules=Rules(external_url=f"https://example.test{PREFIX}", grace_period=timedelta(hours=8)))
        root: Any = self.house.root
        self.http = StubTreq(root)

    def location(self, path: str, user: str = "") -> str:
        """Where a GET of this path, which the proxy has shortened, leads."""
        [location] = self.get(path, user).headers.getRawHeaders("location")
        return str(location)


class PageTests(PrefixCase):
    def setUp(self) -> None:
        super().setUp()
        for host in ("web-01", "web-02"):
            challenge = self.house.ask("alice", host, context=HostContext(command="apt upgrade"))
        self.house.session("alice", "web-03", timedelta(minutes=20))
        self.approve = f"/approve/{challenge.user_code}"
        self.paths = {
            self.approve: "alice",
            "/": "alice",
            "/fragments/dashboard?flash=rejected:web-01": "alice",
            f"/fragments/challenge/{challenge.id}": "alice",
            "/sessions/login?signed_out=1": "",
            "/approve/ABCDEF-000000": "",
        }
        self.pages = {path: self.document(path, user) for path, user in self.paths.items()}

    def test_addresses(self) -> None:
        """Every link, script, style sheet, icon and form of every page begins with the prefix."""
        seen = set()
        for path, page in self.pages.items():
            for attribute in ("href", "src", "action", "formaction", "data-href"):
                for url in page.all(attribute):
                    if not url.startswith("#"):
                        self.assertEqual((path, url, url.startswith(f"{PREFIX}/")), (path, url, True))
                        seen.add(url.removeprefix(PREFIX).partition("?")[0])
        for expected in ("/", "/theme", "/signout", "/sessions/login", "/api/challenges/approve-all"):
            self.assertIn(expected, seen)
        self.assertLess({"/api/sessions/extend", "/api/sessions/revoke", "/api/challenges/reject"}, seen)

    def test_addresses_are_served(self) -> None:
        """What the proxy makes of each link is a path of this server."""
        links = {url for page in self.pages.values() for url in page.all("href") + page.all("src")}
        for link in links - {"#main"}:
            self.house.reactor.advance(1)
            path = link.partition("#")[0].removeprefix(PREFIX)
            self.assertIn((link, self.get(path, "alice").code), [(link, 200), (link, 302), (link, 303)])

    def test_pages_that_come_back(self) -> None:
        """The fields ``from`` and ``page``, and the parameters ``next`` and ``from``, are the server's own paths."""
        page = self.pages[self.approve]
        values = [
            attributes["value"]
            for tag, attributes in page.tags
            if tag == "input" and attributes.get("name") in ("from", "page")
        ]
        self.assertEqual(set(values), {"/", "inline", self.approve})
        links = page.all("href")
        self.assertIn(f"{PREFIX}/theme?set=dark&from={self.approve}", links)
        self.assertIn(f"{PREFIX}/sessions/login?next={self.approve}", links)
        self.assertIn(f"{PREFIX}{self.approve}?lang=de", links)

    def test_scripts_learn_it(self) -> None:
        """The root element tells the scripts, once."""
        bases = [page.all("data-base") for path, page in self.pages.items() if not path.startswith("/fragments")]
        self.assertEqual(bases, [[PREFIX]] * 4)

    def test_cards(self) -> None:
        """The links of every card."""
        for key in SENTENCES:
            request: Any = DummyRequest([b""])
            request.uri = request.path = b"/"
            card = Document(self.house.renderer.card(request, 403, key, retry="/sessions/login?next=/").decode())
            links = [link for link in card.all("href") if not link.startswith(f"{PREFIX}/")]
            self.assertEqual((key, links), (key, []))


class RedirectTests(PrefixCase):
    def test_redirects(self) -> None:
        """Redirects lead to the public address."""
        locations = {
            path: self.location(path, "alice").removeprefix("https://example.test")
            for path in ("/?lang=de&x=1", "/signout", "/sessions", "/theme?set=dark&from=/approve/A", "//", "/approve")
        }
        self.assertEqual(
            locations,
            {
                "/?lang=de&x=1": f"{PREFIX}/?x=1",
                "/signout": f"{PREFIX}/",
                "/sessions": f"{PREFIX}/",
                "/theme?set=dark&from=/approve/A": f"{PREFIX}/approve/A",
                "//": f"{PREFIX}/",
                "/approve": f"{PREFIX}/approve/",
            },
        )

    def test_to_sign_in(self) -> None:
        """The page that was wanted is named by the server's own path."""
        self.assertEqual(self.location("/"), f"https://example.test{PREFIX}/sessions/login?next=/")

    def test_cookies(self) -> None:
        """Cookies are for the whole site, as ever."""
        cookies = self.get("/", "alice").headers.getRawHeaders("set-cookie")
        self.assertEqual([cookie for cookie in cookies if "; Path=/;" not in cookie], [])


class NoPrefixTests(SynchronousTestCase):
    def test_none(self) -> None:
        """An address without a path has no prefix, and one with a path has it without the last slash."""
        rules = Rules(external_url="https://example.test")
        self.assertEqual(rules.prefix, "")
        self.assertEqual(replace(rules, external_url="https://example.test:8443/a/b/").prefix, "/a/b")


class ScriptTests(SynchronousTestCase):
    """Scripts have one source of the prefix."""

    def setUp(self) -> None:
        self.scripts = {path.name: path.read_text() for path in STATIC.glob("*.js")}

    def test_addresses(self) -> None:
        """A path of the server is written only as an argument of ``url``."""
        for name, text in self.scripts.items():
            for line in text.splitlines():
                for path in re.finditer(r"""["'`]/(?=["'`a-z])""", line):
                    self.assertIn("url(", line[: path.start()], f"{name}: {line}")

    def test_own_path(self) -> None:
        """No script works out paths from the address of its page; the prefix is read in one place."""
        text = "".join(self.scripts.values())
        self.assertEqual((text.count("location.pathname"), text.count("dataset.base")), (0, 1))

    def test_modules_are_relative(self) -> None:
        """Modules find each other wherever they are served."""
        for name, text in self.scripts.items():
            for source in re.findall(r'(?:from|import\()\s*"([^"]+)"', text):
                self.assertTrue(source.startswith("./"), f"{name}: {source}")
