"""The administrators' pages about the directory, in a real browser: keyboard, phone, both languages, no scripts."""

from __future__ import annotations

import itertools
import json
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.e2e.browser import Browser, Person
from tests.e2e.desk import DeskProcess
from tests.e2e.directory import settings
from tests.e2e.server import Server, free_port
from tests.e2e.slapd import BASE_DN, BIND_DN, BIND_PASSWORD

pytestmark = pytest.mark.e2e

LOOKS = list(itertools.product(("phone", "desktop"), ("light", "dark"), ("en", "de")))
SAVED = {"en": "Saved: the sudo rule of ops.", "de": "Gespeichert: die sudo-Regel von ops."}
# A refused form answers 400, which the browser's console tells too.
REFUSED = r"status of 400"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


@pytest.fixture
def bridge() -> Iterator[DeskProcess]:
    with DeskProcess("bridge") as made:
        yield made


@pytest.fixture(scope="module")
def full() -> Iterator[DeskProcess]:
    with DeskProcess("full") as made:
        yield made


def go(who: Person, desk: DeskProcess, path: str) -> None:
    """As the administrator."""
    who.page.context.add_cookies([{"name": "pam_session", "value": desk.cookie, "url": desk.url}])
    who.open(desk.url + path)


def fits(who: Person) -> None:
    """Nothing is wider than the window."""
    assert who.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"


class TestLooks:
    @pytest.mark.parametrize(("size", "scheme", "language"), LOOKS)
    def test_rules(self, browser: Browser, bridge: DeskProcess, size: str, scheme: str, language: str) -> None:
        """The table, the form with a refused negation, and the form that asks about an item."""
        with browser.person(size=size, scheme=scheme, language=language) as who:
            who.expected.append(REFUSED)
            go(who, bridge, "/admin/sudo-rules")
            who.shows("[data-rule=dba]")
            fits(who)
            who.accessible()
            who.keep("sudo-rules")
            who.page.locator("[data-rule=ops] [data-test=edit]").click()
            commands = who.shows("#field-commands")
            assert commands.input_value() == "/usr/bin/apt\n/usr/bin/systemctl restart nginx"
            commands.fill("ALL\n!/bin/su")
            who.page.locator("[data-test=save]").click()
            who.shows("[data-test=refused]")
            assert who.page.locator("#field-commands").input_value() == "ALL\n!/bin/su"
            fits(who)
            who.accessible()
            who.keep("sudo-rule-refused")
            who.page.locator("#field-commands").fill("/usr/bin/apt\napt")
            who.page.locator("[data-test=save]").click()
            who.shows("[data-test=asks]")
            who.accessible()
            who.keep("sudo-rule-asks")
            who.page.locator("[data-test=save-anyway]").click()
            expect(who.page.locator("[data-flash]")).to_have_text(SAVED[language])
            expect(who.page.locator("[data-rule=ops]")).to_have_attribute("data-state", "in_part")

    @pytest.mark.parametrize(("size", "scheme", "language"), LOOKS)
    def test_directory(self, browser: Browser, full: DeskProcess, size: str, scheme: str, language: str) -> None:
        """State, refusal, what is withheld, and an account explained."""
        with browser.person(size=size, scheme=scheme, language=language) as who:
            go(who, full, "/admin/directory")
            who.shows("[data-test=refusal]")
            who.shows("[data-withheld=www-data]")
            fits(who)
            who.accessible()
            who.keep("directory")
            who.page.locator("[data-search]").fill("alice")
            who.page.keyboard.press("Enter")
            who.shows("[data-test=explained]")
            fits(who)
            who.accessible()
            who.keep("directory-explained")
            go(who, full, "/admin/sudo-rules")
            who.shows("[data-rule=docker]")
            fits(who)
            who.accessible()
            who.keep("sudo-rules-of-groups")


class TestUse:
    def test_without_scripts(self, browser: Browser, bridge: DeskProcess) -> None:
        """Adding, changing and deleting need no script."""
        with browser.person(scripts=False) as who:
            go(who, bridge, "/admin/sudo-rules")
            who.page.locator("[data-test=add]").click()
            who.page.locator("#field-group").fill("ci")
            who.page.locator("#field-commands").fill("/usr/bin/docker ps")
            who.page.locator("[data-test=save]").click()
            who.shows("[data-rule=ci]")
            who.page.locator("[data-rule=ci] [data-test=edit]").click()
            who.page.locator("#field-hosts").fill("ci1\nci2")
            who.page.locator("[data-test=save]").click()
            expect(who.page.locator("[data-rule=ci]")).to_contain_text("ci2")
            who.page.locator("[data-rule=ci] [data-test=delete] summary").click()
            who.page.locator("[data-rule=ci] [data-test=delete-now]").click()
            expect(who.page.locator("[data-rule=ci]")).to_have_count(0)

    def test_keyboard(self, browser: Browser, bridge: DeskProcess) -> None:
        """From the requests to the rules and the directory, and into its search, by keys alone."""
        with browser.person() as who:
            go(who, bridge, "/")
            who.shows("[data-connection=live]")
            who.page.keyboard.press("g")
            who.page.keyboard.press("s")
            who.page.wait_for_url("**/admin/sudo-rules")
            who.shows("[data-rule=ops]")
            who.page.keyboard.press("g")
            who.page.keyboard.press("d")
            who.page.wait_for_url("**/admin/directory")
            who.shows("#explain-title")
            who.page.keyboard.press("/")
            expect(who.page.locator("[data-search]")).to_be_focused()

    def test_refresh(self, browser: Browser, full: DeskProcess) -> None:
        """The button asks the source and comes back to the page with what became of it."""
        with browser.person() as who:
            go(who, full, "/admin/directory")
            who.page.locator("[data-test=refresh]").click()
            who.shows("[data-flash]")


class TestServer:
    """A whole server in bridge mode."""

    def test_a_rule_reaches_the_hosts(self, browser: Browser, tmp_path: Path) -> None:
        """What is saved in the browser stands in the file, and the next search finds it; deleted, it is gone."""
        port, file = free_port(), tmp_path / "sudorules.json"
        file.write_text(json.dumps([{"group": "ops", "commands": "/usr/bin/apt"}]))
        more = {**settings(tmp_path, None, port), "IDENTREE_DEV_LOGIN": "true"}

        def served(group: str) -> str:
            command = ["ldapsearch", "-x", "-LLL", "-o", "ldif-wrap=no", "-H", f"ldap://127.0.0.1:{port}"]
            bind = ["-D", BIND_DN, "-w", BIND_PASSWORD, "-b", f"ou=sudoers,{BASE_DN}"]
            wanted = f"(&(objectClass=sudoRole)(cn={group}))"
            done = subprocess.run([*command, *bind, wanted], check=True, capture_output=True, text=True, timeout=30)
            return done.stdout

        with Server(tmp_path, more) as server, browser.person() as who:
            who.open(f"{server.url}/dev/login?user=carol&role=admin")
            who.open(f"{server.url}/admin/sudo-rules?add=1")
            who.page.locator("#field-group").fill("web")
            who.page.locator("#field-commands").fill("/usr/bin/nginx -t\n/usr/bin/nginx -s reload")
            who.page.locator("#field-hosts").fill("web1")
            who.page.locator("[data-test=save]").click()
            who.shows("[data-rule=web]")
            entry = served("web")
            for line in (
                "sudoUser: %web",
                "sudoHost: web1",
                "sudoCommand: /usr/bin/nginx -t",
                "sudoCommand: /usr/bin/nginx -s reload",
                "sudoOrder: 2",
            ):
                assert line in entry.splitlines(), entry
            assert [rule["group"] for rule in json.loads(file.read_text())] == ["ops", "web"]
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            who.page.locator("[data-rule=web] [data-test=delete] summary").click()
            who.page.locator("[data-rule=web] [data-test=delete-now]").click()
            expect(who.page.locator("[data-rule=web]")).to_have_count(0)
            assert served("web").strip() == ""
            who.open(f"{server.url}/admin/directory")
            expect(who.page.locator("[data-count=roles]")).to_have_text("1")
            records = [json.loads(line) for line in server.audit_log.read_text().splitlines()]
        assert [record["hostname"] for record in records if record["event"] == "sudo_rule_modified"] == ["web", "web"]
