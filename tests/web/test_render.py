"""Templates, cards and static files: nothing inline, everything resolves, hostile values stay text."""

from __future__ import annotations

import gzip
import re
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import treq
from treq.testing import RequestTraversalAgent, StubTreq
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.test.requesthelper import DummyRequest

from identree.core.challenge import HostContext
from identree.web.render import templates_directory
from identree.web.static import Assets
from identree.web.translations import LANGUAGES, SENTENCES
from tests.web.house import EXTERNAL_URL, House

# Elements without an end tag.
VOID = frozenset(["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"])
STATIC = templates_directory() / "static"


class Document(HTMLParser):
    """
    :ivar tags: name and attributes of every element.
    :ivar text: all text.
    :ivar unclosed: elements that are open at the end, or were closed in the wrong order.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.unclosed: list[str] = []
        self._open: list[str] = []
        self.inline: list[str] = []
        self.feed(text)
        self.close()
        self.unclosed += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.unclosed.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            self.inline.append(data)
        self.text += data

    def all(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]


class PageCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.house = House()
        root: IResource = self.house.root
        self.http = StubTreq(root)

    def get(self, path: str, user: str = "", role: str = "user", **options: Any) -> Any:
        cookies = options.pop("cookies", {})
        if user:
            cookies = {**cookies, "pam_session": self.house.cookie(user, role)}
        answering = self.http.get(EXTERNAL_URL + path, cookies=cookies, allow_redirects=False, **options)
        self.http.flush()
        return self.successResultOf(answering)

    def body(self, response: Any) -> str:
        return str(self.successResultOf(response.text()))

    def document(self, path: str, user: str = "", role: str = "user", **options: Any) -> Document:
        return Document(self.body(self.get(path, user, role, **options)))


class MarkupTests(PageCase):
    """What holds for every page."""

    def setUp(self) -> None:
        super().setUp()
        context = HostContext(command="apt upgrade", cwd="/root", tty="/dev/pts/1", remote_host="host")
        challenge = self.house.ask("alice", context=context)
        self.pages = {
            "approve": self.body(self.get(f"/approve/{challenge.user_code}", "alice")),
            "dashboard": self.body(self.get("/", "carol", "admin")),
            "empty": self.body(self.get("/", "dave")),
            "card": self.body(self.get("/approve/ABCDEF-000000")),
            "fragment": self.body(self.get("/fragments/dashboard?flash=rejected:web-01", "alice")),
        }

    def test_nothing_inline(self) -> None:
        """No script or style stands in a page, no handler and no style in an attribute: the policy forbids them."""
        for name, text in self.pages.items():
            page = Document(text)
            self.assertEqual("".join(page.inline).strip(), "", name)
            for tag, attributes in page.tags:
                bad = [key for key in attributes if key.startswith("on") or key == "style"]
                self.assertEqual((tag, bad), (tag, []), name)
            self.assertEqual([value for value in page.all("href") if value.startswith("javascript:")], [])

    def test_well_formed(self) -> None:
        """Every element is closed where it was opened."""
        for name, text in self.pages.items():
            self.assertEqual((name, Document(text).unclosed), (name, []))

    def test_ids_are_unique(self) -> None:
        """An id names one element."""
        for name, text in self.pages.items():
            ids = Document(text).all("id")
            self.assertEqual((name, sorted(ids)), (name, sorted(set(ids))))

    def test_references_resolve(self) -> None:
        """Labels, descriptions and forms are named by ids that exist."""
        for name, text in self.pages.items():
            page = Document(text)
            ids = set(page.all("id"))
            named = page.all("for") + page.all("form") + page.all("list")
            for attribute in ("aria-labelledby", "aria-describedby"):
                named += " ".join(page.all(attribute)).split()
            self.assertEqual((name, set(named) - ids), (name, set()))

    def test_assets_exist(self) -> None:
        """Every file that a page names is served, and every icon is in the sprite."""
        sprite = (STATIC / "icons.svg").read_text()
        for text in self.pages.values():
            for url in Document(text).all("href") + Document(text).all("src"):
                path, _, fragment = url.partition("#")
                if path.startswith("/static/"):
                    self.assertEqual((path, self.get(path).code), (path, 200))
                    if fragment:
                        self.assertIn(f'<symbol id="{fragment}"', sprite)

    def test_titles(self) -> None:
        """Titles name the page and identree."""
        self.assertIn("<title>Requests - identree</title>", self.pages["dashboard"])
        self.assertIn("<title>Approve - identree</title>", self.pages["approve"])


class ScriptTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.scripts = {path.name: path.read_text() for path in STATIC.glob("*.js")}

    def test_modules_resolve(self) -> None:
        """What a module imports exists beside it and exports that name."""
        for name, text in self.scripts.items():
            for names, source in re.findall(r'import \{([^}]*)\} from "\./([a-z]+\.js)"', text):
                for wanted in (part.strip() for part in names.split(",")):
                    exported = re.search(rf"export (async )?(function|const|let) {wanted}\b", self.scripts[source])
                    self.assertTrue(exported, f"{name}: {wanted} from {source}")

    def test_words(self) -> None:
        """Scripts have their words from the page, and the page carries no others."""
        used = set(re.findall(r"words\.(\w+)", "".join(self.scripts.values()))) | {"live", "connecting", "offline"}
        base = (templates_directory() / "pages" / "base.html").read_text()
        words = re.findall(r"^  data-([a-z-]+)=", base.partition('<template id="words"')[2], re.MULTILINE)
        given = {re.sub(r"-([a-z])", lambda match: match[1].upper(), word) for word in words}
        self.assertEqual(used, given)

    def test_no_markup_from_strings(self) -> None:
        """Scripts make text into elements only through a parsed answer of our own server."""
        for name, text in self.scripts.items():
            for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", ".style."):
                self.assertNotIn(dangerous, text, name)


class EscapingTests(PageCase):
    HOSTILE = "</code><script>alert(1)</script> \"'><img src=x onerror=alert(1)> %s {{ 7*7 }}"

    def test_command(self) -> None:
        """A command is shown to the character and never is markup, also with right-to-left letters in it."""
        command = self.HOSTILE + " rm -rf \u05d0\u05d1\u05d2"
        challenge = self.house.ask("alice", reason=self.HOSTILE, context=HostContext(command=command))
        for path in (f"/approve/{challenge.user_code}", "/"):
            page = self.document(path, "alice")
            self.assertIn(command, page.text)
            self.assertEqual([tag for tag, _ in page.tags if tag == "img"], [])
            self.assertEqual("".join(page.inline).strip(), "")

    def test_command_keeps_its_direction(self) -> None:
        """Right-to-left letters in a command do not turn the rest of the line around."""
        challenge = self.house.ask("alice", context=HostContext(command="ls \u05d0"))
        page = self.document(f"/approve/{challenge.user_code}", "alice")
        [code] = [attributes for tag, attributes in page.tags if tag == "code"]
        self.assertEqual(code["dir"], "ltr")

    def test_flash(self) -> None:
        """A forged flash is text."""
        page = self.document("/", "alice", cookies={"pam_flash": "rejected:<b onclick=x>host</b>"})
        self.assertIn("Rejected: sudo on <b onclick=x>host</b>.", page.text)
        self.assertEqual(page.all("onclick"), [])

    def test_path(self) -> None:
        """The address of the page stands in its links as a path and nothing else."""
        challenge = self.house.ask("alice")
        links = self.document(f"/approve/{challenge.user_code}?x=%22%3E%3Cscript%3E", "alice").all("href")
        self.assertIn(f"/theme?set=dark&from=/approve/{challenge.user_code}", links)


class CardTests(PageCase):
    def test_every_key(self) -> None:
        """Every key makes a card in every language, with its status."""
        for code in LANGUAGES:
            for key, message in SENTENCES.items():
                request: Any = DummyRequest([b""])
                request.uri = request.path = b"/"
                request.requestHeaders.setRawHeaders(b"accept-language", [code.encode()])
                text = self.house.renderer.card(request, 403, key, retry="/again", detail="a detail").decode()
                page = Document(text)
                self.assertEqual(request.responseCode, 403)
                self.assertIn(self.house.renderer.catalogues[code].gettext(message.text), page.text)
                self.assertEqual(page.unclosed, [])

    def test_unknown_key(self) -> None:
        """A key without a sentence still says what to do."""
        request: Any = DummyRequest([b""])
        request.uri = request.path = b"/"
        self.assertIn("identree refused this", self.house.renderer.card(request, 403, "unheard_of").decode())
        self.assertIn("identree refused this", self.house.renderer.sentence(request, "unheard_of"))

    def test_signed_out(self) -> None:
        """After signing out there is a way back in."""
        page = self.document("/sessions/login?signed_out=1")
        self.assertIn("You are signed out", page.text)
        self.assertIn("/sessions/login", page.all("href"))


class AppearanceTests(PageCase):
    def root(self, **options: Any) -> dict[str, str]:
        return self.document("/", "alice", **options).tags[0][1]

    def test_theme(self) -> None:
        """The cookie decides the class of the root; anything else leaves it to the system."""
        self.assertEqual(self.root(cookies={"identree_theme": "dark"})["class"], "dark")
        self.assertNotIn("class", self.root(cookies={"identree_theme": "neon"}))

    def test_language(self) -> None:
        """The page says its language, the cookie's before the browser's."""
        self.assertEqual(self.root(headers={"Accept-Language": "de-DE"})["lang"], "de")
        self.assertEqual(self.root(headers={"Accept-Language": "de"}, cookies={"identree_lang": "en"})["lang"], "en")

    def test_switch(self) -> None:
        """``?lang=`` keeps the choice for a year and asks for the page again, with its other parameters."""
        response = self.get("/?lang=de&x=1%202", "alice")
        cookie = next(value for value in response.headers.getRawHeaders("set-cookie") if "identree_lang" in value)
        self.assertEqual((response.code, response.headers.getRawHeaders("location")), (303, ["/?x=1+2"]))
        self.assertEqual(cookie, "identree_lang=de; Path=/; Max-Age=31536000; SameSite=Lax")

    def test_unknown_switch(self) -> None:
        """A language that does not exist changes nothing."""
        response = self.get("/?lang=tlh", "alice")
        self.assertEqual((response.code, response.headers.getRawHeaders("set-cookie")), (303, None))

    def test_zone(self) -> None:
        """Times are written in the browser's zone, with UTC beside."""
        challenge = self.house.ask("alice")
        page = self.document(f"/approve/{challenge.user_code}", "alice", cookies={"pam_tz": "Europe/Berlin"})
        self.assertIn("Mar 4, 2026, 10:30:00 AM CET", page.all("title")[0].replace("\u202f", " "))


class StaticTests(PageCase):
    def url(self, name: str) -> str:
        return self.house.renderer.assets.path(name)

    def test_immutable(self) -> None:
        """A file under its content's hash is kept for ever."""
        headers = self.get(self.url("identree.css")).headers
        self.assertEqual(headers.getRawHeaders("cache-control"), ["public, max-age=31536000, immutable"])
        self.assertEqual(headers.getRawHeaders("content-type"), ["text/css; charset=utf-8"])

    def test_other_version(self) -> None:
        """A page of another version gets the present file, but keeps it for this once."""
        response = self.get("/static/0123456789abcdef/identree.css")
        self.assertEqual((response.code, response.headers.getRawHeaders("cache-control")), (200, ["no-cache"]))

    def test_etag(self) -> None:
        """A browser that has the file is told so without it."""
        tag = self.get(self.url("page.js")).headers.getRawHeaders("etag")[0]
        response = self.get(self.url("page.js"), headers={"If-None-Match": tag})
        self.assertEqual((response.code, self.body(response)), (304, ""))

    def test_gzip(self) -> None:
        """Who accepts gzip gets it."""
        assets = self.house.renderer.assets
        asset = assets.get("identree.css")
        assert asset is not None
        # treq would unpack it
        agent = RequestTraversalAgent(self.house.root)
        asking = agent.request(
            b"GET",
            (EXTERNAL_URL + self.url("identree.css")).encode(),
            Headers({b"Accept-Encoding": [b"br;q=1, gzip"]}),
        )
        agent.flush()
        response = self.successResultOf(asking)
        self.assertEqual(response.headers.getRawHeaders("content-encoding"), ["gzip"])
        self.assertEqual(gzip.decompress(self.successResultOf(treq.content(response))), asset.body)

    def test_gzip_refused(self) -> None:
        """Who refuses it does not."""
        response = self.get(self.url("identree.css"), headers={"Accept-Encoding": "gzip;q=0"})
        self.assertIsNone(response.headers.getRawHeaders("content-encoding"))

    def test_unknown(self) -> None:
        """Only the known names are served; no path leads out of the directory."""
        for name in ("nothing.css", "..%2f..%2fsetup.cfg", "__init__.py"):
            self.assertEqual((name, self.get(f"/static/{self.house.renderer.assets.hash}/{name}").code), (name, 404))

    def test_favicon(self) -> None:
        """Browsers that ask for the old name get the mark."""
        headers = self.get("/favicon.ico").headers
        self.assertEqual(headers.getRawHeaders("content-type"), ["image/svg+xml"])

    def test_hash_follows_content(self) -> None:
        """Another content has another URL."""
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        (directory / "a.css").write_text("a{}")
        before = Assets(directory).path("a.css")
        (directory / "a.css").write_text("b{}")
        self.assertNotEqual(Assets(directory).path("a.css"), before)

    def test_no_dead_reference(self) -> None:
        """A template that names a file which does not exist is a mistake that shows."""
        self.assertRaises(KeyError, self.url, "nothing.css")
