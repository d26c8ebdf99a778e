"""People at a browser: Chromium from Debian, driven by Playwright, with a fresh profile for everybody."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import (
    BrowserContext,
    Error,
    Page,
    Playwright,
    Request,
    Response,
    ViewportSize,
    expect,
    sync_playwright,
)

from tests.e2e.terminal import Terminal

SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"

SIZES: dict[str, ViewportSize] = {
    "phone": {"width": 390, "height": 844},
    "desktop": {"width": 1440, "height": 900},
}
LOCALES = {"en": "en-US", "de": "de-DE"}
# WCAG 2.2 up to level AA, as axe-core names its rules.
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
# How long anything may take before a test gives up on it.
PATIENCE_MS = 30_000

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Told to the page before its own scripts: what the content security policy refuses is kept for the test to see.
_WATCH_POLICY = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""

_STILL = """() => Promise.all(document.getAnimations()
  .filter((animation) => animation.effect?.getComputedTiming().iterations !== Infinity)
  .map((animation) => animation.finished.catch(() => null))).then(() => null)"""

_numbers = itertools.count(1)


class Browser:
    """One Chromium for many people."""

    def __init__(self) -> None:
        self._playwright: Playwright | None = None
        self._chromium: Chromium | None = None

    def __enter__(self) -> Browser:
        path = shutil.which("chromium")
        if path is None:
            raise AssertionError("Chromium is not installed (Debian: apt-get install chromium)")
        expect.set_options(timeout=PATIENCE_MS)
        self._playwright = sync_playwright().start()
        self._chromium = self._playwright.chromium.launch(executable_path=path, headless=True, args=_ARGUMENTS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._chromium is not None:
            self._chromium.close()
        if self._playwright is not None:
            self._playwright.stop()

    def person(
        self, *, size: str = "desktop", scheme: str = "light", language: str = "en", scripts: bool = True
    ) -> Person:
        """
        Somebody with a browser of their own, at an address of their own (limits count per address).

        :param size: a name in :data:`SIZES`. :param scheme: ``light`` or ``dark``. :param language: ``en`` or ``de``.
        """
        assert self._chromium is not None
        number = next(_numbers)
        context = self._chromium.new_context(
            viewport=SIZES[size],
            device_scale_factor=2 if size == "phone" else 1,
            has_touch=size == "phone",
            is_mobile=size == "phone",
            color_scheme="dark" if scheme == "dark" else "light",
            locale=LOCALES[language],
            java_script_enabled=scripts,
            extra_http_headers={"X-Forwarded-For": f"198.51.{100 + number // 250}.{1 + number % 250}"},
        )
        return Person(context, f"{size}-{scheme}-{language}")

    def picture(self, terminal: Terminal, name: str) -> None:
        """Keep what a terminal shows as ``build/screenshots/NAME.png``."""
        assert self._chromium is not None
        page = self._chromium.new_page(viewport={"width": 1200, "height": 900}, device_scale_factor=2)
        try:
            page.set_content(terminal.html())
            page.locator("main").screenshot(path=_path(name), omit_background=True)
        finally:
            page.close()


class Person:
    """
    :ivar page: their one page.
    :ivar look: size, scheme and language, for the names of screenshots.
    :ivar expected: what may stand in the console, as regular expressions.
    """

    def __init__(self, context: BrowserContext, look: str) -> None:
        self._context = context
        self.look = look
        self.expected: list[str] = []
        self._problems: list[str] = []
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(_WATCH_POLICY)
        self.page: Page = context.new_page()
        self.page.on("console", lambda message: self._said(message.type, message.text))
        self.page.on("pageerror", lambda error: self._problems.append(f"exception: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("response", self._answered)

    def __enter__(self) -> Person:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.page.screenshot(path=_path(f"failed-{self.look}"))
        self._leave()
        self._context.close()
        if error is None:
            assert not self.problems, "\n".join(self.problems)

    @property
    def problems(self) -> Sequence[str]:
        """Errors in the console, policy violations, exceptions and failed requests that nobody expected."""
        return [text for text in self._problems if not any(re.search(known, text) for known in self.expected)]

    def open(self, url: str) -> None:
        self.page.goto(url, wait_until="domcontentloaded")

    def sign_in(self, username: str) -> None:
        """Click a name at the demo's identity provider, where the browser is now."""
        self.page.locator(f'button[name=user][value="{username}"]').click()

    def cookie(self, name: str) -> dict[str, Any] | None:
        return next((dict(cookie) for cookie in self._context.cookies() if cookie.get("name") == name), None)

    def shows(self, selector: str) -> Any:
        """Wait until something is visible; returns its locator."""
        locator = self.page.locator(selector).first
        expect(locator).to_be_visible()
        return locator

    def keep(self, name: str) -> None:
        """A picture of the whole page as ``build/screenshots/NAME-SIZE-SCHEME-LANGUAGE.png``."""
        usual = self.page.viewport_size
        assert usual is not None
        # a window as high as the page: what is fixed to an edge stays at the edge
        height = max(usual["height"], self.page.evaluate("document.documentElement.scrollHeight"))
        self.page.set_viewport_size({"width": usual["width"], "height": height})
        self.page.screenshot(path=_path(f"{name}-{self.look}"), animations="disabled")
        self.page.set_viewport_size(usual)

    def accessible(self) -> None:
        """:raise AssertionError: axe-core finds a violation of WCAG 2.2 AA on the page as it is."""
        self.page.evaluate(_STILL)  # what fades in has the wrong contrast until it is there
        options = {"runOnly": {"type": "tag", "values": WCAG}, "resultTypes": ["violations"]}
        found = Axe().run(self.page, options=options).response["violations"]
        lines = [
            f"{violation['id']} ({violation['impact']}): {violation['help']}\n    "
            + "\n    ".join(f"{node['target']}: {node['html'][:160]} {_why(node)}" for node in violation["nodes"])
            for violation in found
        ]
        assert not lines, f"{self.page.url} [{self.look}]\n" + "\n".join(lines)

    def _leave(self) -> None:
        """Chromium never closes a page that happens to load itself anew, as live pages do: it goes elsewhere first."""
        for _ in range(5):
            if self.page.is_closed() or self.page.url == "about:blank":
                return
            with suppress(Error):  # the reload came between
                self.page.goto("about:blank")

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self._problems.append(f"console {kind}: {text}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self._problems.append(f"{response.request.method} {response.url}: status of {response.status}")

    def _failed(self, request: Request) -> None:
        # leaving a page ends its event stream, and a redirected form its request: neither is a failure
        if request.failure != "net::ERR_ABORTED":
            self._problems.append(f"{request.method} {request.url}: {request.failure}")


def _why(node: Any) -> str:
    return " ".join(str(check.get("message", "")) for check in node.get("any", []))


def _path(name: str) -> str:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return str(SCREENSHOTS / f"{name}.png")
