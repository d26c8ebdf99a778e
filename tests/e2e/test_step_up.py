"""A policy that asks for a recent sign-in, with a provider that keeps its sessions for long."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import expect

from tests.e2e import wire
from tests.e2e.browser import Browser, Person
from tests.e2e.provider import Provider
from tests.e2e.server import Server, free_port

pytestmark = pytest.mark.e2e

USER = "alice"
HOSTNAME = "web-01"
POLICIES = [{"name": "recent", "match_hosts": ["web-*"], "require_fresh_oidc": "5m"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory, port = tmp_path_factory.mktemp("server"), free_port()
    (directory / "approval-policies.json").write_text(json.dumps(POLICIES))
    with ExitStack() as stack:
        callback = f"http://127.0.0.1:{port}/callback"
        provider = stack.enter_context(Provider(free_port(), [callback], {USER: ["users"]}, since=3600))
        yield stack.enter_context(Server(directory, provider.settings, port))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


def asked(server: Server) -> tuple[str, str]:
    """A request of a host: its id, and the path of its page."""
    made = wire.create(server.port, USER, HOSTNAME)
    assert made.status in (200, 201), made.body
    return made.json["challenge_id"], f"/approve/{made.json['user_code']}"


def status(server: Server, challenge: str) -> str:
    found: str = wire.poll(server.port, challenge, hostname=HOSTNAME).json["status"]
    return found


def signs_in_again(who: Person, server: Server, path: str) -> None:
    """At the provider, where the one button led; back on the page of the request."""
    expect(who.page.locator("button[name=user]").first).to_be_visible()
    assert "prompt=login" in who.page.url
    assert "max_age=300" in who.page.url
    who.sign_in(USER)
    who.page.wait_for_url(server.url + path)


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without"])
def test_returns_to_the_decision(server: Server, browser: Browser, scripts: bool) -> None:
    """Whoever comes from a session of an hour ago signs in with one button, and is back at the decision."""
    challenge, path = asked(server)
    with browser.person(size="phone", scripts=scripts) as who:
        who.open(server.url + path)
        who.sign_in(USER)
        again = who.shows("[data-step-up]")
        expect(who.page.locator("#approve")).to_have_count(0)
        if scripts:
            who.accessible()
            who.keep("step-up")
        assert status(server, challenge) == "pending"
        again.click()
        signs_in_again(who, server, path)
        expect(who.page.locator("[data-step-up]")).to_have_count(0)
        who.page.locator("#approve").click()
        # without scripts the answer is the next page
        who.shows("[data-state=approved]" if scripts else "[data-banners] .banner")
    assert status(server, challenge) == "approved"


def test_pressed_too_late(server: Server, browser: Browser) -> None:
    """A page that could still approve when it was opened, and cannot any more: the refusal has the same way back."""
    challenge, path = asked(server)
    with browser.person() as who:
        who.expected.append("status of 403")
        who.open(f"{server.url}/sessions/login?next={path}&fresh=300")
        who.sign_in(USER)
        expect(who.page.locator("#approve")).to_be_visible()
        with who.page.context.expect_page() as opened:
            who.page.evaluate("window.open('/sessions/login?next=/')")
        # in another tab, from the provider's session of an hour ago
        opened.value.locator(f'button[name=user][value="{USER}"]').click()
        opened.value.wait_for_url(f"{server.url}/")
        opened.value.close()
        who.page.locator("#approve").click()
        again = who.shows("[data-error] a")
        assert status(server, challenge) == "pending"
        again.click()
        signs_in_again(who, server, path)
        who.page.locator("#approve").click()
        who.shows("[data-state=approved]")
    assert status(server, challenge) == "approved"


def test_declined(server: Server, browser: Browser) -> None:
    """Whoever goes back from the sign-in finds nothing decided, and the button again."""
    challenge, path = asked(server)
    with browser.person() as who:
        who.open(server.url + path)
        who.sign_in(USER)
        who.shows("[data-step-up]").click()
        expect(who.page.locator("button[name=user]").first).to_be_visible()
        who.open(server.url + path)
        who.shows("[data-step-up]")
    assert status(server, challenge) == "pending"
