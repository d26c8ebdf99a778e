"""Policies, approvals by several people and override in a real browser."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import time
from functools import cache

import pytest
from playwright.sync_api import expect

from identree.core.policy import Hours
from tests.e2e.browser import Browser, Person
from tests.e2e.floor import Asking, Floor

pytestmark = pytest.mark.e2e

LOOKS = list(itertools.product(("phone", "desktop"), ("light", "dark"), ("en", "de")))

# hours as written, the hour that is pressed, and what is written then
PRESSES = [
    ("22:00-06:00", 6, "22:00-07:00"),
    ("22:00-06:00", 12, "22:00-13:00"),
    ("22:00-06:00", 21, "21:00-06:00"),
    ("09:00-17:00", 8, "08:00-17:00"),
    ("09:00-17:00", 9, "10:00-17:00"),
    ("09:00-17:00", 12, "13:00-17:00"),
    ("09:00-17:00", 14, "09:00-14:00"),
    ("09:30-17:00", 17, "09:30-18:00"),
    ("09:30-17:15", 16, "09:30-16:00"),
    ("18:00-00:00", 0, "18:00-01:00"),
    ("22:30-22:15", 12, "22:30-12:00"),
    ("", 12, "13:00-12:00"),
    ("00:00-23:00", 23, ""),
    # an empty field would mean any time
    ("09:00-10:00", 9, "09:00-10:00"),
    ("09:15-09:45", 9, "09:15-09:45"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


@pytest.fixture
def floor() -> Iterator[Floor]:
    with Floor() as made:
        yield made


def go(who: Person, floor: Floor, path: str, name: str = "carol") -> None:
    who.page.context.add_cookies([{"name": "pam_session", "value": floor.cookies[name], "url": floor.url}])
    who.open(floor.url + path)


def fits(who: Person) -> None:
    """Nothing is wider than the screen; the window of a phone grows with its page."""
    assert who.page.viewport_size is not None
    wide = who.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= who.page.viewport_size["width"], f"the page is {wide} pixels wide"


@pytest.mark.parametrize(("size", "scheme", "language"), LOOKS)
def test_looks(browser: Browser, floor: Floor, size: str, scheme: str, language: str) -> None:
    """The pages and the card, in all sizes, schemes and languages."""
    with browser.person(size=size, scheme=scheme, language=language) as who:
        for path, shown, name in (
            (
                "/admin/policies?edit=production&version=1&user=alice&host=db-01.example.com",
                "[data-preview]",
                "policies",
            ),
            ("/admin/notifications", "[data-test=no-routes]", "notifications"),
            ("/profile/notifications", "[data-test=no-devices]", "profile-notifications"),
            (f"/approve/{floor.codes[Asking.QUORUM]}", "[data-explanation]", "approve-policy"),
        ):
            go(who, floor, path)
            who.shows(shown)
            for summary in who.page.locator("[data-explanation] > summary, [data-override] > summary").all():
                summary.click()
            fits(who)
            who.accessible()
            who.keep(name)


class TestPolicies:
    def test_added(self, browser: Browser, floor: Floor) -> None:
        """A policy is written with the form, its week pressed into the grid, and stands in the list."""
        with browser.person() as who:
            go(who, floor, "/admin/policies")
            form = who.page.locator("[data-policy-form]")
            form.locator("#f-name").fill("night")
            form.locator("#f-allowed_hours").fill("22:00-06:00")
            expect(form.locator('[data-at="1-23"]')).to_have_attribute("aria-pressed", "true")
            expect(form.locator('[data-at="1-12"]')).to_have_attribute("aria-pressed", "false")
            form.locator('[data-at="6-23"]').focus()
            form.locator("#f-allowed_days").fill("Mon-Fri")
            expect(form.locator('[data-at="6-23"]')).to_have_attribute("aria-pressed", "false")
            form.locator('[data-at="6-23"]').click()
            expect(form.locator("#f-allowed_days")).to_have_value("Mon,Tue,Wed,Thu,Fri,Sat")
            form.locator("[data-test=save]").click()
            expect(who.page.locator('[data-policy="night"]')).to_be_visible()
            expect(who.page.locator("[data-banners]")).to_contain_text("night")

    def test_hour_pressed(self, browser: Browser, floor: Floor) -> None:
        """One press opens or closes one hour, and at most what lies between it and the nearer end."""
        with browser.person() as who:
            go(who, floor, "/admin/policies")
            field = who.page.locator("#f-allowed_hours")
            for written, hour, then in PRESSES:
                field.fill(written)
                who.page.locator(f'[data-at="3-{hour}"]').click()
                expect(field).to_have_value(then)

    def test_every_hour(self, browser: Browser, floor: Floor) -> None:
        """
        Whatever is written and pressed, by the server's own reading: closing opens nothing, opening closes nothing,
        and the hour is what was asked for.
        """
        with browser.person() as who:
            go(who, floor, "/admin/policies")
            who.shows("[data-week] table")
            presses = who.page.evaluate(
                """async () => {
  const script = document.querySelector('script[src*="policies.js"]').src;
  const { hoursOf, spanOf, spanText, withHour, withoutHour } = await import(new URL("hours.js", script));
  const clock = (at) => `${String(Math.floor(at / 60)).padStart(2, "0")}:${String(at % 60).padStart(2, "0")}`;
  const found = [];
  for (let from = 0; from < 1440; from += 45) {
    for (let to = 0; to < 1440; to += 45) {
      const text = `${clock(from)}-${clock(to)}`;
      const span = spanOf(text);
      for (let hour = 0; hour < 24; hour += 1) {
        const open = hoursOf(span).has(hour);
        found.push([text, hour, open, spanText((open ? withoutHour : withHour)(span, hour))]);
      }
    }
  }
  return found;
}"""
            )
        quarters = [time(hour, minute) for hour in range(24) for minute in range(0, 60, 15)]

        @cache
        def opened(text: str) -> frozenset[time]:
            return frozenset(at for at in quarters if not text or Hours.parse(text).contains(at))

        assert len(presses) == 32 * 32 * 24
        for text, hour, was_open, then in presses:
            before, after = opened(text), opened(then)
            pressed = frozenset(at for at in quarters if at.hour == hour)
            assert was_open == bool(before & pressed), (text, hour)
            if not was_open:
                assert after >= before | pressed, (text, hour, then)
            else:
                assert after <= before, (text, hour, then)
                assert not after & pressed or (then == text and before <= pressed), (text, hour, then)

    def test_keys(self, browser: Browser, floor: Floor) -> None:
        """The grid is one stop of the tab key; arrows move in it, and space presses."""
        with browser.person() as who:
            go(who, floor, "/admin/policies")
            who.page.locator("#f-allowed_hours").fill("22:00-06:00")
            who.page.locator("#f-allowed_days").fill("Mon")
            expect(who.page.locator('[data-week] button[tabindex="0"]')).to_have_count(1)
            who.page.locator('[data-at="1-0"]').focus()
            for key, at in (("ArrowUp", "1-0"), ("ArrowLeft", "1-0"), ("ArrowRight", "1-1"), ("ArrowDown", "2-1")):
                who.page.keyboard.press(key)
                expect(who.page.locator(f'[data-at="{at}"]')).to_be_focused()
            who.page.keyboard.press("Space")
            expect(who.page.locator("#f-allowed_days")).to_have_value("Mon,Tue")
            expect(who.page.locator('[data-at="2-1"]')).to_be_focused()
            who.page.keyboard.press("ArrowUp")
            who.page.keyboard.press("Space")
            expect(who.page.locator("#f-allowed_hours")).to_have_value("02:00-06:00")

    def test_seen_by_others(self, browser: Browser, floor: Floor) -> None:
        """Whoever has the page open sees what somebody else saves."""
        with browser.person() as one, browser.person() as other:
            go(other, floor, "/admin/policies")
            other.shows("[data-policies]")
            go(one, floor, "/admin/policies")
            one.page.locator('[data-policy="late"] details.drop > summary').click()
            one.page.locator('[data-policy="late"] [data-test=delete]').click()
            expect(other.page.locator('[data-policy="late"]')).to_have_count(0)


class TestQuorum:
    def test_two_people(self, browser: Browser, floor: Floor) -> None:
        """Two approvers in two browsers: each sees what the other does, one takes back, both together approve."""
        path = f"/approve/{floor.codes[Asking.QUORUM]}"
        with browser.person() as alice, browser.person() as carol:
            go(alice, floor, path, "alice")
            go(carol, floor, path)
            for who in (alice, carol):
                expect(who.page.locator("[data-progress]")).to_contain_text("0 of 2")
                expect(who.page.locator("[data-connection=live]")).to_be_visible()
            alice.page.locator("#approve").click()
            expect(carol.page.locator("[data-progress]")).to_contain_text("1 of 2")
            expect(alice.page.locator("[data-test=withdraw]")).to_be_visible()
            alice.page.locator("[data-test=withdraw]").click()
            expect(carol.page.locator("[data-progress]")).to_contain_text("0 of 2")
            carol.page.locator("#approve").click()
            expect(alice.page.locator("[data-progress]")).to_contain_text("1 of 2")
            alice.page.locator("#approve").click()
            for who in (alice, carol):
                expect(who.page.locator("[data-state=approved]")).to_be_visible()


class TestOverride:
    def test_with_a_reason(self, browser: Browser, floor: Floor) -> None:
        """An administrator passes over the policy only with a reason; others are not offered it."""
        path = f"/approve/{floor.codes[Asking.OVERRIDE]}"
        with browser.person() as carol, browser.person() as alice:
            go(alice, floor, path, "alice")
            expect(alice.page.locator("[data-override]")).to_have_count(0)
            go(carol, floor, path)
            carol.page.locator("[data-override] > summary").click()
            carol.page.locator("[data-test=override]").click()
            field = carol.page.locator("[data-override] input[name=reason]")
            assert field.evaluate("field => field.validity.valueMissing")
            field.fill("the database burns")
            carol.page.locator("[data-test=override]").click()
            expect(alice.page.locator("[data-state=approved]")).to_be_visible()
