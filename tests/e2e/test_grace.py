"""What an approval opens for a while, and how it is closed again; and requests that nobody answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.e2e.browser import Person
from tests.e2e.world import CODE, HOSTNAME, World, client_conf, world

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settings = {"IDENTREE_GRACE_PERIOD": "1h", "IDENTREE_CHALLENGE_TTL": "30s"}
    with world(tmp_path_factory.mktemp("grace"), settings) as made:
        yield made


@pytest.fixture(autouse=True)
def usual(here: World) -> Iterator[None]:
    """Every test leaves no request behind."""
    here.host.configure(client_conf(here.server.url))
    yield
    here.host.end()


def released_at_once(here: World) -> bool:
    """Whether ``sudo`` runs its command without asking anybody."""
    terminal = here.host.sudo("id", "-u")
    terminal.expect_match(CODE.pattern + r"|\n0\r\n")
    if CODE.search(terminal.screen):
        terminal.type("\x03")
        terminal.wait()
        return False
    return terminal.wait() == 0


def signed_in(here: World, who: Person) -> Person:
    who.open(here.server.url)
    who.sign_in(here.user)
    who.shows("[data-connection=live]")
    return who


class TestGrace:
    """In this order: the session that one approval opens serves the tests after it."""

    def test_approved_once(self, here: World) -> None:
        """After an approval the next sudo asks nobody; revoking on the dashboard ends that at once."""
        request = here.sudo("id", "-u")
        with here.browser.person() as who:
            signed_in(here, who)
            who.shows("[data-request] [data-test=approve]").click()
            assert request.terminal.wait() == 0
            assert "session expires in 59m" in request.terminal.screen or "1h" in request.terminal.screen
            session = who.shows(f'[data-session="{HOSTNAME}"]')
            who.accessible()
            who.keep("dashboard-grace")
            assert released_at_once(here)
            session.locator("[data-test=revoke]").click()
            who.shows("[data-test=no-sessions]")
            assert not released_at_once(here)

    def test_signing_out_ends_it(self, here: World) -> None:
        """Signing out ends the person's sudo sessions too."""
        request = here.sudo("id", "-u")
        with here.browser.person(size="phone") as who:
            who.expected.append("status of 401")  # the open page may notice before the browser leaves it
            signed_in(here, who)
            who.shows("[data-request] [data-test=approve]").click()
            assert request.terminal.wait() == 0
            who.shows(f'[data-session="{HOSTNAME}"]')
            assert released_at_once(here)
            who.page.locator("#user-menu summary").click()
            who.keep("menu")
            who.accessible()
            who.page.locator("#signout").click()
            who.shows("[data-card=signed_out]")
            assert not released_at_once(here)


class TestExpiry:
    def test_nobody_answers(self, here: World) -> None:
        """After its life time the request is over everywhere: terminal, open page, dashboard, link."""
        request = here.sudo("id", "-u")
        with here.browser.person() as who, here.browser.person() as other:
            who.expected.append("status of 404")
            who.open(request.url)
            who.sign_in(here.user)
            signed_in(here, other)
            other.shows(f'[data-request][data-code="{request.code}"]')
            assert request.terminal.wait(60) == 1
            assert "nobody approved in time" in request.terminal.screen
            who.shows("[data-state=expired]")
            expect(who.page.locator("#approve")).to_be_hidden()
            who.accessible()
            who.keep("expired")
            other.shows("[data-test=no-requests]")
            who.open(request.url)
            who.shows("[data-card=challenge_expired_or_resolved]")
