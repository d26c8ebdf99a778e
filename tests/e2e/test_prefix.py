"""The server under a path of a reverse proxy that takes this path off, as ``location /identree/`` of nginx does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.e2e import wire
from tests.e2e.browser import Browser
from tests.e2e.provider import Provider
from tests.e2e.server import Server, free_port

pytestmark = pytest.mark.e2e

PREFIX = "/identree"
# What ends at the proxy (RFC 9110 section 7.6.1).
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade"})


@contextmanager
def stripping_proxy(server_port: int) -> Iterator[tuple[int, list[str]]]:
    """A proxy in front of a server: its port, and the paths outside the prefix that were asked for."""
    strays: list[str] = []

    class Forwarding(BaseHTTPRequestHandler):
        def forward(self) -> None:
            if not self.path.startswith(f"{PREFIX}/"):
                strays.append(self.path)
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = HTTPConnection("127.0.0.1", server_port, timeout=60)
            try:
                kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
                connection.request(self.command, self.path.removeprefix(PREFIX), body or None, kept)
                answer = connection.getresponse()
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in HOP_BY_HOP:
                        self.send_header(name, value)
                self.end_headers()
                while piece := answer.read1(65536):  # an event stream is passed on as it comes
                    self.wfile.write(piece)
                    self.wfile.flush()
            except OSError:
                return  # one of the two has hung up
            finally:
                connection.close()

        do_GET = do_POST = do_DELETE = forward

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    class Proxy(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    with Proxy(("127.0.0.1", 0), Forwarding) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy.server_address[1], strays
        finally:
            proxy.shutdown()
            thread.join()


class TestPrefix:
    def test_approved(self, tmp_path: Path) -> None:
        """
        Signing in, approving, and a dashboard that is alive: nothing is asked for outside the prefix, and the console
        is quiet.
        """
        port = free_port()
        with stripping_proxy(port) as (public, strays):
            url = f"http://127.0.0.1:{public}{PREFIX}"
            users = {"alice": ["users"]}
            with (
                Provider(free_port(), [f"{url}/callback"], users) as provider,
                Server(tmp_path, {**provider.settings, "IDENTREE_EXTERNAL_URL": url}, port),
                Browser() as browser,
                browser.person() as who,
            ):
                first = wire.create(port, "alice", "web-01").json
                assert first["verification_url"] == f"{url}/approve/{first['user_code']}"
                who.open(first["verification_url"])
                who.sign_in("alice")
                who.shows("[data-connection=live]")
                who.shows("#approve").click()
                who.shows("[data-state=approved]")
                assert wire.poll(port, first["challenge_id"], hostname="web-01").json["status"] == "approved"

                who.page.get_by_role("link", name="All requests").click()
                who.page.wait_for_url(f"{url}/")
                who.shows("[data-connection=live]")
                second = wire.create(port, "alice", "web-02").json
                card = who.shows(f'[data-request][data-code="{second["user_code"]}"]')
                card.locator("[data-test=approve]").click()
                expect(card).to_be_hidden()
                assert wire.poll(port, second["challenge_id"], hostname="web-02").json["status"] == "approved"

                who.page.locator("#user-menu summary").click()
                who.page.get_by_role("link", name="Deutsch").click()
                expect(who.page.locator("html")).to_have_attribute("lang", "de")
                who.page.locator("#user-menu summary").click()
                who.page.get_by_role("link", name="Dunkel").click()
                expect(who.page.locator("html")).to_have_class("dark")
                who.page.keyboard.press("g")
                who.page.keyboard.press("r")
                who.shows("[data-connection=live]")
                who.page.locator("#user-menu summary").click()
                who.page.locator("#signout").click()
                who.shows("[data-card=signed_out]")
                assert who.page.url.startswith(f"{url}/")
            assert strays == []
