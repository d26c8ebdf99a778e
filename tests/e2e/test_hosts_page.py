"""The administrators' page about hosts, in a real browser: sizes, schemes, languages, and what its script does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.e2e.browser import Browser, Person
from tests.e2e.yard import YardProcess

pytestmark = pytest.mark.e2e

LOOKS = list(itertools.product(("phone", "desktop"), ("light", "dark"), ("en", "de")))
HOSTS = "/admin/hosts"
WEB, DB = "web-01.example.com", "db-01.example.com"
# The browser's console tells of refused calls too.
REFUSED = r"status of (404|422|500)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


@pytest.fixture
def yard() -> Iterator[YardProcess]:
    with YardProcess() as made:
        yield made


def go(who: Person, yard: YardProcess, path: str = HOSTS) -> None:
    """As the administrator."""
    who.page.context.add_cookies([{"name": "pam_session", "value": yard.cookie, "url": yard.url}])
    who.open(yard.url + path)


def fits(who: Person) -> None:
    """Nothing is wider than the screen; the window of a phone grows with its page."""
    assert who.page.viewport_size is not None
    wide = who.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= who.page.viewport_size["width"], f"the page is {wide} pixels wide"


def row(who: Person, host: str) -> str:
    return f'[data-host="{host}"]'


@pytest.mark.parametrize(("size", "scheme", "language"), LOOKS)
def test_looks(browser: Browser, yard: YardProcess, size: str, scheme: str, language: str) -> None:
    """The table, an open menu, and both dialogs."""
    with browser.person(size=size, scheme=scheme, language=language) as who:
        go(who, yard)
        who.shows(row(who, WEB))
        fits(who)
        who.accessible()
        who.keep("hosts")
        menu = who.page.locator(f"{row(who, WEB)} [data-test=manage]")
        menu.locator("summary").click()
        expect(menu.locator("[data-remove]")).to_be_visible()
        fits(who)
        who.accessible()
        who.keep("hosts-manage")
        menu.locator("[data-remove]").click()
        who.shows("#remove-name")
        who.accessible()
        who.keep("hosts-remove")
        who.page.locator("#remove [data-close]").click()
        who.page.locator(f"{row(who, WEB)} [data-reveal]").click()
        who.shows("#reveal-reason")
        who.accessible()
        who.keep("hosts-reveal")
        who.page.locator("#reveal-reason").fill("disk full")
        who.page.locator("[data-test=reveal-now]").click()
        expect(who.page.locator("[data-password]")).to_have_text("correct-horse-battery-staple")
        who.accessible()
        who.keep("hosts-revealed")


class TestReveal:
    def test_shown_and_taken_away(self, browser: Browser, yard: YardProcess) -> None:
        """A reason must be given; once the dialog is closed the password is gone, and the row says what follows."""
        with browser.person() as who:
            go(who, yard)
            who.page.locator(f"{row(who, WEB)} [data-reveal]").click()
            who.page.locator("[data-test=reveal-now]").click()
            assert who.page.locator("#reveal-reason").evaluate("field => field.validity.valueMissing")
            who.page.locator("#reveal .chips button").first.click()
            who.page.locator("[data-test=reveal-now]").click()
            shown = who.page.locator("[data-password]")
            expect(shown).to_have_text("correct-horse-battery-staple")
            expect(who.page.locator("[data-rotates]")).to_be_visible()
            expect(shown).to_be_focused()
            who.page.keyboard.press("Escape")
            who.shows(f"{row(who, WEB)} [data-test=rotation]")
            assert "correct-horse" not in who.page.content()

    def test_taken_away_by_itself(self, browser: Browser, yard: YardProcess) -> None:
        """Nobody has to close it."""
        with browser.person() as who:
            go(who, yard)
            who.page.evaluate("document.getElementById('reveal').dataset.seconds = '1'")
            who.page.locator(f"{row(who, WEB)} [data-reveal]").click()
            who.page.locator("#reveal-reason").fill("disk full")
            with who.page.expect_navigation():
                who.page.locator("[data-test=reveal-now]").click()
            assert "correct-horse" not in who.page.content()

    def test_not_shown(self, browser: Browser, yard: YardProcess) -> None:
        """What went wrong is said in a sentence, where it was asked for."""
        with browser.person() as who:
            who.expected.append(REFUSED)
            go(who, yard)
            who.page.locator('[data-host="vault-only.example.com"] [data-reveal]').evaluate(
                "button => { button.dataset.reveal = 'gone.example.com'; }"
            )
            who.page.locator('[data-reveal="gone.example.com"]').click()
            who.page.locator("#reveal-reason").fill("disk full")
            who.page.locator("[data-test=reveal-now]").click()
            expect(who.page.locator("#reveal [data-problem]")).to_contain_text("no escrowed password any more")


class TestUse:
    def test_without_scripts(self, browser: Browser, yard: YardProcess) -> None:
        """Looking, searching, rotating and opening a session need no script; what needs one is not there."""
        with browser.person(scripts=False) as who:
            go(who, yard)
            assert who.page.locator("[data-reveal]:visible, [data-remove]:visible").count() == 0
            who.page.locator("#search").fill("WEB-0")
            who.page.locator("#filter-kept").select_option("escrowed")
            who.page.locator(".filters button").click()
            expect(who.page.locator("[data-host]")).to_have_count(1)
            menu = who.page.locator(f"{row(who, WEB)} [data-test=manage]")
            menu.locator("summary").click()
            menu.locator("[data-test=rotate]").click()
            expect(who.page.locator("[data-flash]")).to_have_text(
                f"{WEB} was asked to replace its break-glass password."
            )
            menu.locator("summary").click()
            menu.locator("[name=target_user]").fill("bob")
            menu.locator("[data-test=elevate]").click()
            expect(who.page.locator("[data-flash]")).to_contain_text(f"Opened: sudo for bob on {WEB} until")
            expect(who.page.locator(f"{row(who, WEB)} .count")).to_have_text("2")

    def test_rotate_listed(self, browser: Browser, yard: YardProcess) -> None:
        """All that the filters list, and no more."""
        with browser.person() as who:
            go(who, yard, f"{HOSTS}?q=app-")
            who.page.locator("[data-test=rotate-all] summary").click()
            who.page.locator("[data-test=rotate-all-now]").click()
            expect(who.page.locator("[data-flash]")).to_have_text(
                "8 hosts were asked to replace their break-glass passwords."
            )
            assert who.page.locator("[data-test=rotation]").count() == 9

    def test_removed(self, browser: Browser, yard: YardProcess) -> None:
        """Once its name was typed."""
        with browser.person() as who:
            go(who, yard)
            menu = who.page.locator(f"{row(who, DB)} [data-test=manage]")
            menu.locator("summary").click()
            menu.locator("[data-remove]").click()
            who.page.locator("#remove-name").fill("db-02.example.com")
            who.page.locator("[data-test=remove-now]").click()
            expect(who.page.locator("#remove [data-problem]")).to_have_text("This is not the name of the host.")
            who.page.locator("#remove-name").fill(DB)
            with who.page.expect_navigation():
                who.page.locator("[data-test=remove-now]").click()
            who.shows(row(who, WEB))
            assert who.page.locator(row(who, DB)).count() == 0
