"""Who may approve whose requests, in the browsers of those who may and of those who may not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import expect

from tests.e2e import wire
from tests.e2e.browser import Browser
from tests.e2e.provider import Provider
from tests.e2e.server import Server, free_port
from tests.e2e.world import ADMIN

pytestmark = pytest.mark.e2e

USER, STRANGER, MEMBER = "alice", "bob", "dave"
HOSTNAME = "db-01"
POLICIES = [{"name": "databases", "match_hosts": ["db-*"], "approver_groups": ["dba"], "forbid_self_approval": True}]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory, port = tmp_path_factory.mktemp("server"), free_port()
    (directory / "approval-policies.json").write_text(json.dumps(POLICIES))
    users = {USER: ["users", "dba"], STRANGER: ["users"], MEMBER: ["users", "dba"], ADMIN: ["users", "admins"]}
    with ExitStack() as stack:
        callback = f"http://127.0.0.1:{port}/callback"
        provider = stack.enter_context(Provider(free_port(), [callback], users))
        yield stack.enter_context(Server(directory, provider.settings, port))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


def test_member_approves(server: Server, browser: Browser) -> None:
    """
    A member sees the request of somebody else as it comes, and approves. Who asks may not, though a member; a stranger
    sees nothing; an administrator sees it and may only reject.
    """
    with browser.person() as user, browser.person() as stranger, browser.person() as member, browser.person() as admin:
        for who, name in ((user, USER), (stranger, STRANGER), (member, MEMBER), (admin, ADMIN)):
            who.open(server.url)
            who.sign_in(name)
            expect(who.page.locator("[data-connection=live]")).to_be_visible()
        made = wire.create(server.port, USER, HOSTNAME).json
        approve = '[data-test="approve"]'
        expect(member.page.locator(approve)).to_be_visible()
        for who in (user, admin):
            expect(who.page.locator('[data-test="reject"]')).to_be_visible()
            expect(who.page.locator(approve)).to_have_count(0)
        expect(stranger.page.locator("[data-request]")).to_have_count(0)
        stranger.expected.append("status of 404")
        stranger.open(f"{server.url}/approve/{made['user_code']}")
        expect(stranger.page.locator("[data-request]")).to_have_count(0)
        stranger.accessible()
        # whoever sends the form without having been offered it is told why not
        for name, role in ((USER, "user"), (ADMIN, "admin"), (STRANGER, "user")):
            answer = wire.Visitor(name, role).approve(server.port, made["challenge_id"])
            assert answer.status in (403, 404), answer.body
        assert wire.poll(server.port, made["challenge_id"], hostname=HOSTNAME).json["status"] == "pending"
        member.page.locator(approve).click()
        for who in (user, member, admin):
            expect(who.page.locator("[data-request]")).to_have_count(0)
    assert wire.poll(server.port, made["challenge_id"], hostname=HOSTNAME).json["status"] == "approved"
