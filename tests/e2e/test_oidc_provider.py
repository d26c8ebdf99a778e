"""The same flow with the certified ``oidc-provider`` from npm as the identity provider."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.browser import Browser
from tests.e2e.server import Server, free_port
from tests.e2e.sudohost import SudoHost, pam_text, throw_away_name
from tests.e2e.world import asked, build_agent, client_conf
from tests.oidc_provider import running_provider

pytestmark = pytest.mark.e2e


class TestCertifiedProvider:
    def test_approved(self, tmp_path: Path) -> None:
        """sudo asks, a person types a name at the provider, compares the code, approves; the command runs."""
        user, port, archive = throw_away_name("alice", "alice-of-identree"), free_port(), build_agent()
        with ExitStack() as stack:
            provider = stack.enter_context(running_provider([f"http://127.0.0.1:{port}/callback"]))
            settings = {
                "IDENTREE_OIDC_ISSUER_URL": provider.issuer,
                "IDENTREE_OIDC_CLIENT_ID": provider.client_id,
                "IDENTREE_OIDC_CLIENT_SECRET": provider.client_secret,
            }
            server = stack.enter_context(Server(tmp_path, settings, port))
            configuration = client_conf(server.url)
            pam = pam_text(archive, configuration, tmp_path)
            host = stack.enter_context(SudoHost(user, pam, configuration, archive))
            browser = stack.enter_context(Browser())
            request = asked(host.sudo("id", "-u"))
            with browser.person(size="phone") as who:
                who.expected.append("status of 404")  # that provider has no icon
                who.open(request.url)
                who.page.locator("input[name=login]").fill(user)
                who.page.keyboard.press("Enter")
                assert "".join(who.shows("#code").inner_text().split()) == request.code
                who.page.locator("#approve").click()
                assert request.terminal.wait() == 0
                who.shows("[data-state=approved]")
                # it keeps a session; a fresh sign-in asks nevertheless, and its auth_time is accepted
                who.open(f"{server.url}/sessions/login?next=/&fresh=60")
                who.page.locator("input[name=login]").fill(user)
                who.page.keyboard.press("Enter")
                who.page.wait_for_url(f"{server.url}/")
                who.shows("main")
            assert request.terminal.screen.endswith("\n0\r\n")
