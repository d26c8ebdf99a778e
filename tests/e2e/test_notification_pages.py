"""The notifications page of a running server: channels, routes, and the log while messages are sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.e2e import wire
from tests.e2e.browser import Browser, Person
from tests.e2e.httpreceiver import Inbox
from tests.e2e.provider import Provider
from tests.e2e.server import Server, free_port
from tests.e2e.test_policy_pages import fits
from tests.e2e.world import ADMIN

pytestmark = pytest.mark.e2e

PAGE = "/admin/notifications"
REFUSAL = "no such room: the moderators have closed it for the summer, and nobody knows when it opens again"


@dataclass(frozen=True)
class Office:
    server: Server
    inbox: Inbox
    browser: Browser

    def enter(self, who: Person, path: str = PAGE) -> None:
        who.open(self.server.url + path)
        who.sign_in(ADMIN)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


@pytest.fixture
def office(tmp_path: Path, browser: Browser) -> Iterator[Office]:
    directory, port = tmp_path, free_port()
    with ExitStack() as stack:
        inbox = stack.enter_context(Inbox())
        channels = [
            {"name": "inbox", "backend": "webhook", "url": f"{inbox.origin}/"},
            {
                "name": "night-watch-of-the-data-centre-in-frankfurt",
                "backend": "ntfy",
                "url": f"{inbox.origin}/alerts-of-the-night-watch",
                "quiet_hours": {"hours": "08:00-20:00", "time_zone": "Europe/Berlin"},
            },
        ]
        routes = [
            {"channels": ["inbox"], "events": ["challenge_created"]},
            {"channels": ["inbox"], "events": ["break_glass*"], "hosts": ["*.prod.example.com"], "users": ["root"]},
        ]
        (directory / "channels.json").write_text(json.dumps({"channels": channels, "routes": routes}))
        users = {"alice": ["users"], ADMIN: ["users", "admins"]}
        provider = stack.enter_context(Provider(free_port(), [f"http://127.0.0.1:{port}/callback"], users))
        settings = {
            **provider.settings,
            "IDENTREE_NOTIFICATION_CONFIG_FILE": str(directory / "channels.json"),
            "IDENTREE_ADMIN_NOTIFY_FILE": str(directory / "preferences.json"),
            "IDENTREE_NOTIFY_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        server = stack.enter_context(Server(directory, settings, port))
        yield Office(server, inbox, browser)


def test_log(office: Office) -> None:
    """Messages come into the log as they are sent, without a reload; what was typed stays."""
    with office.browser.person() as who:
        office.enter(who)
        who.shows("[data-test=no-deliveries]")
        who.page.locator("#channel-form > summary").click()
        typed = who.page.locator("[data-test=channel-form] input[name=name]")
        typed.fill("half a na")
        assert wire.create(office.server.port, "alice", "web-01").status == 201
        rows = who.page.locator("[data-delivery]")
        expect(rows).to_have_count(1)
        expect(rows.first).to_contain_text("Sent")
        office.inbox.fail("status", status=404, body=REFUSAL.encode())
        assert wire.create(office.server.port, "alice", "web-02").status == 201
        expect(rows).to_have_count(2)
        expect(rows.first).to_contain_text(REFUSAL)
        office.inbox.heal()
        expect(typed).to_have_value("half a na")
        # what is chosen above the log holds for what comes, too
        who.open(f"{office.server.url}{PAGE}?state=failed#log")
        expect(rows).to_have_count(1)
        assert wire.create(office.server.port, "alice", "web-03").status == 201
        with office.browser.person() as other:
            office.enter(other)
            expect(other.page.locator("[data-delivery]")).to_have_count(3)
        expect(rows).to_have_count(1)


@pytest.mark.parametrize(("size", "scheme", "language"), [("phone", "dark", "de"), ("desktop", "light", "en")])
def test_looks(office: Office, size: str, scheme: str, language: str) -> None:
    """Long names, addresses and answers, in both sizes, schemes and languages; no policies."""
    with office.browser.person(size=size, scheme=scheme, language=language) as who:
        office.enter(who)
        expect(who.page.locator("[data-channel]")).to_have_count(2)
        expect(who.page.locator("[data-route]")).to_have_count(2)
        who.page.locator('[data-channel="inbox"] [data-test=test]').click()
        expect(who.page.locator("[data-banners]")).to_contain_text("inbox")
        assert len(office.inbox.messages) == 1
        office.inbox.fail("status", status=404, body=REFUSAL.encode())
        assert wire.create(office.server.port, "alice", "web-01").status == 201
        expect(who.page.locator("[data-delivery]")).to_contain_text(REFUSAL)
        fits(who)
        who.accessible()
        who.keep("notifications-in-use")
        who.open(f"{office.server.url}/admin/policies")
        who.shows("main .empty")
        expect(who.page.locator("[data-policy]")).to_have_count(0)
        fits(who)
        who.accessible()
        who.keep("policies-none")
