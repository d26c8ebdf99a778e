"""
Real ``sudo`` on this machine's PAM, decided by people with real browsers who sign in at an identity provider.

The PAM service is what ``identree setup`` makes of Debian's own, and the agent is the built archive.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import expect

from tests.e2e.browser import SCREENSHOTS, Person
from tests.e2e.server import free_port
from tests.e2e.terminal import Terminal
from tests.e2e.world import ADMIN, HOSTNAME, Request, World, asked, client_conf, world

pytestmark = pytest.mark.e2e

LOOKS = list(itertools.product(("phone", "desktop"), ("light", "dark"), ("en", "de")))
SAID = {
    "en": {
        "approved": "sudo approved",
        "denied": "sudo denied (reason: not tonight)",
        "cancelled": "cancelled; the request was withdrawn",
        "approve": "Approve",
        "reject": "Reject",
    },
    "de": {
        "approved": "sudo genehmigt",
        "denied": "sudo abgelehnt (Grund: not tonight)",
        "cancelled": "abgebrochen; die Anfrage wurde zurückgezogen",
        "approve": "Genehmigen",
        "reject": "Ablehnen",
    },
}
# What a browser says of a server that is going and coming back; the page shows it in its own words.
RESTARTING = r"ERR_(CONNECTION_REFUSED|CONNECTION_RESET|INCOMPLETE|EMPTY_RESPONSE)|status of (429|503)"
# What sudo or pam_unix would ask; sudo's own last line ("a password is required") asks nothing.
PROMPT = re.compile(r"(?i)\[sudo\]|password( for .*)?: |passwort( für .*)?: ")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("sudo")) as made:
        yield made


@pytest.fixture(autouse=True)
def usual(here: World) -> Iterator[None]:
    """Every test begins with a host that is configured well, and leaves no request behind."""
    here.host.configure(client_conf(here.server.url))
    yield
    here.host.end()


def open_request(who: Person, request: Request, username: str) -> None:
    """Follow the link in the terminal, sign in, and compare the codes."""
    who.open(request.url)
    who.sign_in(username)
    assert who.page.url == request.url or who.shows("#code")
    compare(who, request)


def compare(who: Person, request: Request) -> None:
    shown = "".join(who.shows("#code").inner_text().split())
    assert shown == request.code, "the browser and the terminal show the same code"


def records(here: World, kind: str, challenge: str = "") -> list[dict[str, object]]:
    """Audit records of a kind that name a challenge."""
    lines = [json.loads(line) for line in here.server.audit_log.read_text().splitlines()]
    return [line for line in lines if line.get("event") == kind and challenge in json.dumps(line)]


class TestDecisions:
    """A person decides in a browser; the terminal follows at once."""

    @pytest.mark.parametrize(("size", "scheme", "language"), LOOKS)
    def test_approved(self, here: World, size: str, scheme: str, language: str) -> None:
        """The command runs as root, and sudo ends with its status."""
        request = here.sudo("id", "-u", language=language)
        with here.browser.person(size=size, scheme=scheme, language=language) as who:
            who.open(request.url)
            who.accessible()
            who.keep("provider")
            open_request(who, request, here.user)
            expect(who.page.locator("html")).to_have_attribute("lang", language)
            approve = who.shows("#approve")
            assert approve.inner_text().strip() == SAID[language]["approve"]
            who.accessible()
            who.keep("approve")
            approve.click()
            assert request.terminal.wait() == 0
            who.shows("[data-state=approved]")
            who.accessible()
            who.keep("approved")
        last = screen_of(request).lines
        assert [line.strip() for line in last if line][-2:] == [SAID[language]["approved"], "0"]

    @pytest.mark.parametrize(("size", "scheme", "language"), LOOKS)
    def test_rejected_with_a_reason(self, here: World, size: str, scheme: str, language: str) -> None:
        """The terminal shows the reason, no password is asked for, and sudo ends with 1."""
        request = here.sudo("id", "-u", language=language)
        with here.browser.person(size=size, scheme=scheme, language=language) as who:
            open_request(who, request, here.user)
            who.page.locator("details.more:has([name=deny_reason]) summary").click()
            who.page.locator("input[name=deny_reason]").fill("not tonight")
            reject = who.shows("#reject")
            assert reject.inner_text().strip() == SAID[language]["reject"]
            who.accessible()
            who.keep("reject")
            reject.click()
            assert request.terminal.wait() == 1
            who.shows("[data-state=denied]")
            who.accessible()
            who.keep("rejected")
        shown = request.terminal.screen
        assert SAID[language]["denied"] in shown
        assert not PROMPT.search(shown), shown

    @pytest.mark.parametrize(("size", "scheme", "language"), LOOKS)
    def test_interrupted(self, here: World, size: str, scheme: str, language: str) -> None:
        """Ctrl-C ends sudo, the challenge is cancelled on the server, and the open page says so by itself."""
        request = here.sudo("id", "-u", language=language)
        with here.browser.person(size=size, scheme=scheme, language=language) as who:
            open_request(who, request, here.user)
            who.shows("[data-connection=live]")
            request.terminal.type("\x03")
            assert request.terminal.wait() != 0
            who.shows("[data-state=cancelled]")
            expect(who.page.locator("#approve")).to_be_hidden()
            who.accessible()
            who.keep("cancelled")
        assert SAID[language]["cancelled"] in request.terminal.screen
        assert "\n0\r\n" not in request.terminal.screen

    def test_the_page_tells_what_the_host_told(self, here: World) -> None:
        """Host, user, command, directory, terminal and reason are on the page, the command as it was typed."""
        request = here.sudo("sh", "-c", "echo 'a  b' && id", environment={"SUDO_REASON": "look around"})
        with here.browser.person() as who:
            open_request(who, request, here.user)
            text = who.shows("[data-request]").inner_text()
            assert who.shows("[data-command]").inner_text() == """sh -c 'echo '\\''a  b'\\'' && id'"""
            for part in (here.user, HOSTNAME, "look around", "/dev/pts/"):
                assert part in text
            who.page.locator("#approve").click()
            assert request.terminal.wait() == 0

    def test_already_signed_in(self, here: World) -> None:
        """Who is signed in gets the request without a detour through the identity provider."""
        first = here.sudo("id", "-u")
        with here.browser.person() as who:
            open_request(who, first, here.user)
            who.page.locator("#approve").click()
            assert first.terminal.wait() == 0
            second = here.sudo("id", "-u")
            visited: list[str] = []
            who.page.on("framenavigated", lambda frame: visited.append(frame.url))
            who.open(second.url)
            compare(who, second)
            who.page.locator("#approve").click()
            assert second.terminal.wait() == 0
            assert visited == [second.url]

    def test_without_scripts(self, here: World) -> None:
        """Deciding needs no script in the browser."""
        request = here.sudo("id", "-u")
        with here.browser.person(size="phone", scripts=False) as who:
            open_request(who, request, here.user)
            who.page.locator("#approve").click()
            assert request.terminal.wait() == 0
            who.shows("main")
            who.keep("approved-without-scripts")

    def test_keyboard(self, here: World) -> None:
        """Deciding needs no pointer: "a" leads to the request, "a" on it approves."""
        request = here.sudo("id", "-u")
        with here.browser.person() as who:
            open_request(who, request, here.user)
            who.shows("[data-connection=live]")
            who.page.keyboard.press("a")
            expect(who.page.locator("[data-request]")).to_be_focused()
            who.page.keyboard.press("a")
            assert request.terminal.wait() == 0

    def test_somebody_else(self, here: World) -> None:
        """Another person's request looks like no request at all."""
        request = here.sudo("id", "-u")
        with here.browser.person() as who:
            who.expected.append("status of 404")
            who.open(request.url)
            who.sign_in("bob")
            who.shows("[data-card=challenge_expired_or_resolved]")

    def test_an_administrator(self, here: World) -> None:
        """An administrator decides for others; the audit record says who it was."""
        request = here.sudo("id", "-u")
        with here.browser.person() as who:
            open_request(who, request, ADMIN)
            who.page.locator("#approve").click()
            assert request.terminal.wait() == 0
        (record,) = records(here, "challenge_approved", request.code)
        assert record["actor"] == ADMIN


class TestCards:
    """Pages that say one thing."""

    @pytest.mark.parametrize(("size", "scheme", "language"), LOOKS)
    def test_no_such_request(self, here: World, size: str, scheme: str, language: str) -> None:
        """A code that nobody waits for."""
        with here.browser.person(size=size, scheme=scheme, language=language) as who:
            who.expected.append("status of 404")
            who.open(f"{here.server.url}/approve/AAAAAA-000000")
            who.shows("[data-card]")
            expect(who.page.locator("html")).to_have_attribute("lang", language)
            who.accessible()
            who.keep("card")

    def test_signed_out(self, here: World) -> None:
        """Signing out ends the session; the next page asks to sign in again."""
        with here.browser.person() as who:
            who.expected.append("status of 401")  # the open page may notice before the browser leaves it
            who.open(here.server.url)
            who.sign_in(here.user)
            who.shows("#live")
            who.page.locator("#user-menu summary").click()
            who.keep("menu")
            who.accessible()
            who.page.locator("#signout").click()
            who.shows("[data-card=signed_out]")
            who.accessible()
            who.keep("signed-out")
            who.open(here.server.url)
            who.shows("button[name=user]")

    def test_sign_in_refused(self, here: World) -> None:
        """Who turns back at the provider is told so and can try again."""
        with here.browser.person() as who:
            who.expected.append("status of 403")
            who.open(here.server.url)
            who.sign_in("")
            who.shows("[data-card]")
            who.accessible()
            who.keep("sign-in-refused")
            who.page.get_by_role("link", name="Try again").click()
            who.shows("button[name=user]")


class TestDashboard:
    """All requests of a person, alive."""

    @pytest.mark.parametrize(("size", "scheme", "language"), LOOKS)
    def test_a_request_appears(self, here: World, size: str, scheme: str, language: str) -> None:
        """A request appears on the open page, is decided there, and moves to the recent activity."""
        with here.browser.person(size=size, scheme=scheme, language=language) as who:
            who.open(here.server.url)
            who.sign_in(here.user)
            who.shows("[data-connection=live]")
            who.shows("[data-test=no-requests]")
            who.accessible()
            who.keep("dashboard-empty")
            request = here.sudo("id", "-u", language=language)
            card = who.shows(f'[data-request][data-code="{request.code}"]')
            expect(who.page.locator("[data-pending-count] [data-number]")).to_have_text("1")
            who.accessible()
            who.keep("dashboard")
            card.locator("[data-test=approve]").click()
            assert request.terminal.wait() == 0
            expect(card).to_be_hidden()
            who.shows("[data-test=no-requests]")
            expect(who.page.locator("[data-pending-count]")).to_be_hidden()
            expect(who.page.locator("[data-list=activity] li").first).to_contain_text(HOSTNAME)
            who.accessible()
            who.keep("dashboard-decided")

    def test_approve_all(self, here: World) -> None:
        """One press releases everything of one's own that waits."""
        waiting = [here.sudo("id", "-u") for _ in range(3)]
        with here.browser.person() as who:
            who.open(here.server.url)
            who.sign_in(here.user)
            expect(who.page.locator("[data-request]")).to_have_count(3)
            who.accessible()
            who.keep("dashboard-many")
            who.page.locator("[data-test=approve-all]").click()
            assert [request.terminal.wait() for request in waiting] == [0, 0, 0]
            who.shows("[data-test=no-requests]")

    def test_reject_all(self, here: World) -> None:
        """One press refuses everything of one's own that waits."""
        waiting = [here.sudo("id", "-u") for _ in range(2)]
        with here.browser.person(size="phone") as who:
            who.open(here.server.url)
            who.sign_in(here.user)
            expect(who.page.locator("[data-request]")).to_have_count(2)
            who.keep("dashboard-many")
            who.page.locator("[data-test=reject-all]").click()
            assert [request.terminal.wait() for request in waiting] == [1, 1]
            who.shows("[data-test=no-requests]")

    def test_decided_elsewhere(self, here: World) -> None:
        """A decision in one browser shows in another that is open."""
        request = here.sudo("id", "-u")
        with here.browser.person() as owner, here.browser.person() as admin:
            open_request(owner, request, here.user)
            owner.shows("[data-connection=live]")
            admin.open(here.server.url)
            admin.sign_in(ADMIN)
            card = admin.shows(f'[data-request][data-code="{request.code}"]')
            card.locator("[data-test=approve]").click()
            owner.shows("[data-state=approved]")
        assert request.terminal.wait() == 0

    def test_the_connection_indicator(self, here: World) -> None:
        """It says when the page is not connected, and the page catches up once it is again."""
        with here.browser.person() as who:
            who.open(here.server.url)
            who.sign_in(here.user)
            who.shows("[data-connection=live]")
            who.expected.append(RESTARTING)
            here.server.stop()
            expect(who.page.locator("[data-connection]")).not_to_have_attribute("data-connection", "live")
            who.accessible()
            who.keep("dashboard-offline")
            here.server.start()
            request = here.sudo("id", "-u")
            who.shows("[data-connection=live]")
            who.shows(f'[data-request][data-code="{request.code}"]')


class TestTrouble:
    """What the terminal says when something is wrong, in one clear line; sudo never opens."""

    def refused(self, here: World, *wanted: str) -> str:
        terminal = here.host.sudo("id", "-u", environment={"LANG": "en_GB.UTF-8"})
        assert terminal.wait() == 1
        for text in wanted:
            assert text in terminal.screen, terminal.screen
        assert "Traceback" not in terminal.screen
        assert not PROMPT.search(terminal.screen)
        return terminal.screen

    def test_unreachable(self, here: World) -> None:
        """A server that does not listen."""
        url = f"http://127.0.0.1:{free_port()}"
        here.host.configure(client_conf(url))
        self.refused(here, f"{url} cannot be reached", "connection refused")

    def test_wrong_secret(self, here: World) -> None:
        """A host whose secret is not the server's."""
        here.host.configure(client_conf(here.server.url, "another-secret-0123456789abcdefghij"))
        screen = self.refused(here, "refuses this host (HTTP 401)", "IDENTREE_SHARED_SECRET")
        assert "another-secret" not in screen

    def test_not_configured(self, here: World) -> None:
        """A host without a server."""
        here.host.configure("")
        self.refused(here, "IDENTREE_SERVER_URL is not set")

    def test_forged_approval(self, here: World) -> None:
        """Somebody between host and server says "approved" without the secret."""
        with ForgingProxy(here.server.port) as port:
            here.host.configure(client_conf(f"http://127.0.0.1:{port}"))
            self.refused(here, "the approval does not carry this host's signature")

    def test_time_runs_out(self, here: World) -> None:
        """Nobody answers within the host's time: sudo ends, and the server no longer offers the request."""
        here.host.configure(client_conf(here.server.url, IDENTREE_TIMEOUT="5s"))
        request = here.sudo("id", "-u")
        with here.browser.person() as who:
            open_request(who, request, here.user)
            assert request.terminal.wait() == 1
            assert "nobody approved in time" in request.terminal.screen
            who.shows("[data-state=cancelled], [data-state=expired]")
            expect(who.page.locator("#approve")).to_be_hidden()

    def test_sudo_without_a_person(self, here: World) -> None:
        """``sudo -n`` does not wait, and leaves no request behind."""
        before = len(records(here, "challenge_created"))
        terminal = here.host.sudo("-n", "id", "-u")
        assert terminal.wait() == 1
        assert len(records(here, "challenge_created")) == before

    def test_the_server_restarts(self, here: World) -> None:
        """A request survives a restart of the server; the terminal and the page go on."""
        request = here.sudo("id", "-u")
        with here.browser.person() as who:
            who.expected.append(RESTARTING)
            open_request(who, request, here.user)
            here.server.stop()
            here.server.start()
            who.shows("[data-connection=live]")
            who.page.locator("#approve").click()
            assert request.terminal.wait(60) == 0


class TestPictures:
    """The README's pictures: the terminal of a person, and the page on their phone."""

    def test_terminal(self, here: World) -> None:
        """A whole story in one terminal: typed, approved, done."""
        shell = here.host.shell(f"{here.user}@{HOSTNAME}:~$ ")
        shell.expect("$ ")
        shell.type("sudo wc -l /etc/shadow\n")
        request = asked(shell)
        with here.browser.person(size="phone") as who:
            open_request(who, request, here.user)
            who.keep("story")
            # the living line comes below the picture with the address
            shell.expect_match("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]")
            waiting = screen_of(request)
            who.page.locator("#approve").click()
            shell.expect_match(r"\n[0-9]+ /etc/shadow\r\n[^\n]*\$ ")
        story = screen_of(request)
        shell.type("exit\n")
        assert shell.wait() == 0
        here.browser.picture(waiting, "terminal-waiting")
        here.browser.picture(story, "terminal")
        # a reader that knows nothing of our encoder sees the page's address in the picture
        read = subprocess.run(
            ["zbarimg", "--quiet", "--raw", str(SCREENSHOTS / "terminal-waiting.png")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert read.stdout.strip().endswith(f"/approve/{request.code}")


def screen_of(request: Request) -> Terminal:
    terminal = Terminal(request.terminal.columns)
    terminal.feed(request.terminal.screen)
    return terminal


class ForgingProxy:
    """Passes everything on to the server, but answers every poll with an approval of its own. Gives its port."""

    def __init__(self, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self._pass_on(self.rfile.read(int(self.headers["content-length"])))

            def do_DELETE(self) -> None:
                self._pass_on(None)

            def do_GET(self) -> None:
                self._answer(200, b'{"approval_token":"%s","expires_in":100,"status":"approved"}' % (b"0" * 64))

            def _pass_on(self, body: bytes | None) -> None:
                server = HTTPConnection("127.0.0.1", port, timeout=10)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")}
                server.request(self.command, self.path, body, headers)
                answer = server.getresponse()
                self._answer(answer.status, answer.read())
                server.close()

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> int:
        self._thread.start()
        return int(self._server.server_address[1])

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
