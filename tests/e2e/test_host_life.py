"""
The whole life of a host, on real parts: enrolled with a one-time token, installed by the served script, sudo approved
and rejected in a browser, its break-glass password shown, used and replaced, and in the end the host as it was before.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.hostlife import CA_FILE, ESCROW, SECONDS, SUDO_MEMORY, Admin, DeployedAgent, Life, host_secret, life
from tests.e2e.server import Server
from tests.e2e.test_install import AGENT, CONF, HASH_FILE, NAME, PAM, Tree, changes
from tests.e2e.test_registry import PROVIDER, command, until
from tests.e2e.test_setup import USER, Terminal, approved
from tests.e2e.wire import Visitor
from tests.e2e.world import ADMIN, CODE, URL

pytestmark = pytest.mark.e2e

PROMPT = "break-glass password: "
FAILURES = "/run/identree-breakglass-failures"
USES, USES_UNTIL_RESTART = "/var/lib/identree/breakglass-used", "/run/identree-breakglass-used"
REASON = "the disk of web-01 is full"


def test_life(tmp_path: Path) -> None:
    """A host comes, does its work in good and bad times, and goes without a trace."""
    with life(tmp_path) as it:
        before = tree(it)
        is_enrolled_and_installed(it)
        asks_in_a_browser(it)
        shown_password_is_replaced_by_the_heartbeat(it)
        opens_while_the_server_is_away(it)
        is_rotated_on_request(it)
        nobody_else_learns_a_secret(it)
        is_forgotten(it)
        leaves_no_trace(it, before)
        nobody_else_learns_a_secret(it)


def test_deployed_agent(tmp_path: Path) -> None:
    """
    A host with the agent of today: it believes this server's decisions, also together with a request to rotate; its
    password is shown to an administrator; its report and its heartbeat arrive.
    """
    settings = {**PROVIDER, **ESCROW, "IDENTREE_GRACE_PERIOD": "1h"}
    alice, bob, carol = Visitor("alice"), Visitor("bob"), Admin()
    with Server(tmp_path, settings) as server, closing(DeployedAgent(server.port, "WEB-01.")) as agent:
        made = agent.create("alice")
        assert "status" not in made
        assert made["verification_url"] == f"{server.url}/approve/{made['user_code']}"
        assert agent.poll(made)["status"] == "pending"
        assert alice.approve(server.port, made["challenge_id"]).status == 200
        answer = agent.poll(made)
        assert answer["status"] == "approved"
        assert agent.believes(answer["approval_token"], made, "approved", "alice")

        now = int(time.time())
        assert [agent.escrow("abet-able-ache", stamp) for stamp in (now, now, now + 1)] == [200, 410, 200]
        assert carol.post(server.port, "/api/hosts/rotate", hostname=NAME).status == 200
        made = agent.create("alice")
        assert made["status"] == "approved"
        assert made["rotate_breakglass_before"].endswith("Z")
        assert agent.believes(made["approval_token"], made, "approved", "alice")
        assert agent.escrow("able-ache-acid", now + 2) == 200
        shown = carol.call(server.port, "/api/breakglass/reveal", {"hostname": NAME})
        assert shown.json["password"] == "able-ache-acid"

        made = agent.create("bob")
        assert bob.post(server.port, "/api/challenges/reject", challenge_id=made["challenge_id"]).status == 200
        answer = agent.poll(made)
        assert answer["status"] == "denied"
        assert agent.believes(answer["denial_token"], made, "denied", "bob")

        used = {"hostname": NAME, "username": "alice", "timestamp": now}
        assert agent.ask("POST", "/api/breakglass/report", used).status == 200
        beat = {"hostname": NAME, "version": "0.2.1", "os_info": "Debian GNU/Linux 12 (bookworm) (amd64)"}
        assert agent.ask("POST", "/api/agent/heartbeat", beat).status in (200, 204)
        [row] = carol.get(server.port, "/api/agents").json["agents"]
        assert (row["hostname"], row["version"], row["status"]) == (NAME, "0.2.1", "green")


# -- birth -------------------------------------------------------------------------------------------------------------
def is_enrolled_and_installed(it: Life) -> None:
    """One command on the server, one on the host; the global secret is never there, and nobody sees the host's own."""
    token = command(it.server, "enrol", NAME, "--users", USER, "--yes")
    it.secrets[token] = "the enrolment token"
    told = it.piped("/install.sh", it.url, environment={"IDENTREE_ENROL_TOKEN": token, "IDENTREE_CA_CERT": CA_FILE})
    assert told.status == 0, told.all
    secret = host_secret(it.host)
    it.secrets[secret] = "the host's secret"
    assert secret != it.server.settings["IDENTREE_SHARED_SECRET"]
    assert b"pam_exec.so" in it.host.read(PAM)
    assert it.host.file(CONF).stat().st_mode & 0o777 == 0o600
    assert accepts(it, secret)
    # without a terminal and without a vault there would be none
    assert record(it, "breakglass_escrowed")["hostname"] == NAME
    assert record(it, "host_enrolled")["hostname"] == NAME
    assert f"bash -s {it.url}" in it.arguments.text, "the look at arguments sees nothing"
    with it.hosts_page() as who:
        who.shows(f'[data-host="{NAME}"] [data-seen=online]')
        who.shows(f'[data-host="{NAME}"] [data-kept=escrowed]')


# -- work --------------------------------------------------------------------------------------------------------------
def asks_in_a_browser(it: Life) -> None:
    """Approved, the command runs as root; rejected, it does not; nobody is asked for a password."""
    terminal = it.host.sudo()
    approved(terminal, it.browser)
    assert terminal.screen.endswith("0\r\n"), terminal.screen
    terminal = it.host.sudo()
    terminal.expect_match(CODE.pattern + r"(?s:.*)" + CODE.pattern, SECONDS)
    url = URL.search(terminal.screen)
    assert url is not None
    with it.browser.person() as who:
        who.open(url[0])
        who.sign_in(USER)
        who.shows("#reject").click()
        assert terminal.wait(SECONDS) == 1, terminal.screen
    assert "\n0\r\n" not in terminal.screen
    assert not re.search(r"(?i)password[^\r\n]*: ", it.host.screens), it.host.screens
    assert record(it, "challenge_approved")["hostname"] == NAME
    assert record(it, "challenge_rejected")["hostname"] == NAME
    assert any("result=approved" in line for line in it.host.log.lines), it.host.log.lines


def shown_password_is_replaced_by_the_heartbeat(it: Life) -> None:
    """The vault's password is the host's; once an administrator has seen it, the next heartbeat makes another."""
    first = it.reveal(REASON)
    assert it.host.opens(first)
    shown = record(it, "revealed_breakglass")
    assert (shown["actor"], shown["hostname"], shown["reason"]) == (ADMIN, NAME, REASON)
    old = it.hash()
    told = it.host.cron("heartbeat")
    assert told.status == 0, told.all
    assert it.hash() != old
    second = it.reveal("to try the new one")
    assert second != first
    assert not it.host.opens(first)
    assert it.host.opens(second)


def is_rotated_on_request(it: Life) -> None:
    """An administrator asks for a new password; the next heartbeat makes it, and the request is done."""
    old = it.hash()
    with it.hosts_page() as who:
        menu = who.page.locator(f'[data-host="{NAME}"] [data-test=manage]')
        menu.locator("summary").click()
        menu.locator("[data-test=rotate]").click()
        who.shows(f'[data-host="{NAME}"] [data-test=rotation]')
        escrowed = len(records(it, "breakglass_escrowed"))
        asked = record(it, "breakglass_rotation_requested")
        assert (asked["actor"], asked["hostname"]) == (ADMIN, NAME)
        # times are whole seconds: what happens in the second of the request cannot be told from what was before
        time.sleep(1.1)
        assert it.host.cron("heartbeat").status == 0
        assert it.hash() != old
        record(it, "breakglass_escrowed", escrowed + 1)
        who.page.reload()
        who.shows(f'[data-host="{NAME}"]')
        assert who.page.locator("[data-test=rotation]").count() == 0
    now = it.hash()
    assert it.host.cron("heartbeat").status == 0
    assert it.hash() == now, "one request, one new password"


# -- bad times ---------------------------------------------------------------------------------------------------------
def opens_while_the_server_is_away(it: Life) -> None:
    """Without the server the right password opens, and a wrong one does not, at most so often."""
    it.server.stop()
    terminal = asked_for_password(it)
    terminal.type("nonsense\r")
    assert terminal.wait(SECONDS) == 1, terminal.screen
    assert "authentication failed" in terminal.screen
    assert "\n0\r\n" not in terminal.screen
    assert it.host.read(FAILURES).startswith(b"1 ")
    failed(it, 10, ago=0)
    terminal = it.host.sudo()
    terminal.expect_match(r"too many failed attempts; try again in \d+ s", SECONDS)
    assert terminal.wait(SECONDS) == 1
    assert PROMPT not in terminal.screen
    failed(it, 10, ago=1000)
    it.server.start()
    is_used_and_replaced(it, 1, lambda: approved(it.host.sudo(), it.browser))
    is_used_and_replaced(it, 2, lambda: it.host.cron("heartbeat"))


def is_used_and_replaced(it: Life, count: int, contact: Callable[[], object]) -> None:
    """
    The password opens while the server is away. With the next contact the server hears of it, even if the host was
    restarted in between; and the host has another password, as the reveal has asked for.

    :param count: of uses, this one included.
    """
    password = it.reveal(f"outage {count}")
    it.server.stop()
    terminal = asked_for_password(it)
    terminal.type(password + "\r")
    assert terminal.wait(SECONDS) == 0, terminal.screen
    assert "\n0\r\n" in terminal.screen
    assert not it.host.exists(FAILURES)
    assert it.host.read(USES)
    it.host.file(USES_UNTIL_RESTART).unlink()
    old = it.hash()
    it.server.start()
    assert len(records(it, "break_glass_used")) == count - 1
    contact()
    used = record(it, "break_glass_used", count)
    assert (used["username"], used["hostname"]) == (USER, NAME)
    until(lambda: it.hash() != old and not it.host.exists(HASH_FILE + ".pending"), "there is a new password")
    until(lambda: not it.host.read(USES), "nothing waits to be reported")
    assert not it.host.opens(password)
    assert it.host.opens(it.reveal("to try the newest one"))


def asked_for_password(it: Life) -> Terminal:
    terminal = it.host.sudo()
    terminal.expect(PROMPT, SECONDS)
    return terminal


def failed(it: Life, count: int, *, ago: int) -> None:
    """As if wrong passwords had been typed. :param ago: when the last one was, in seconds."""
    it.host.write(FAILURES, f"{count} {int(time.time()) - ago}".encode(), 0o600)


# -- end ---------------------------------------------------------------------------------------------------------------
def is_forgotten(it: Life) -> None:
    """An administrator removes it: its secret is void, and page and registry do not know it, whatever it sends."""
    secret = host_secret(it.host)
    with it.hosts_page() as who:
        menu = who.page.locator(f'[data-host="{NAME}"] [data-test=manage]')
        menu.locator("summary").click()
        menu.locator("[data-remove]").click()
        who.page.locator("#remove-name").fill(NAME)
        with who.page.expect_navigation():
            who.page.locator("[data-test=remove-now]").click()
        who.shows("[data-test=no-hosts]")
    assert NAME not in command(it.server, "list-hosts")
    assert record(it, "host_removed")["actor"] == ADMIN
    assert not accepts(it, secret)
    assert it.host.cron("heartbeat").status == 1
    terminal = it.host.sudo()
    assert terminal.wait(SECONDS) == 1, terminal.screen
    # a server that refuses is there
    assert PROMPT not in terminal.screen
    with it.hosts_page() as who:
        who.shows("[data-test=no-hosts]")


def leaves_no_trace(it: Life, before: Tree) -> None:
    """After the served uninstall script every file is as it was, with its mode and owner."""
    told = it.piped("/api/deploy/uninstall-script")
    assert told.status == 0, told.all
    assert not it.host.exists(AGENT)
    assert changes(before, tree(it)) == [], told.all


# -- all the time ------------------------------------------------------------------------------------------------------
def nobody_else_learns_a_secret(it: Life) -> None:
    """
    No secret is in a log, an audit record, the arguments of a process, on a terminal, or in a file that others can
    read; passwords are in no file at all, of host or server.
    """
    said = {
        "the server's log": it.server.log,
        "the audit log": it.server.audit_log.read_text(),
        "the host's system log": "\n".join(it.host.log.lines),
        "the arguments of processes": it.arguments.text,
        "what programs said": "\n".join(it.said),
        "a terminal": it.host.screens,
    }
    assert all(said.values()), "something was not listened to"
    found = [(what, where) for secret, what in it.secrets.items() for where, text in said.items() if secret in text]
    assert found == []
    for path in it.open_files():
        content = path.read_bytes()
        assert [what for secret, what in it.secrets.items() if secret.encode() in content] == [], path
    kept = {
        (what, path.name)
        for top in (it.directory, *it.host.private)
        for path in top.rglob("*")
        if path.is_file() and not path.is_symlink()
        for content in [path.read_bytes()]
        for secret, what in it.secrets.items()
        if secret.encode() in content
    }
    assert kept <= {("the host's secret", os.path.basename(CONF))}


# -- inside ------------------------------------------------------------------------------------------------------------
def tree(it: Life) -> Tree:
    return {name: value for name, value in it.host.tree().items() if not name.startswith(SUDO_MEMORY)}


def records(it: Life, kind: str) -> list[dict[str, Any]]:
    """Of the audit log."""
    every = [json.loads(line) for line in it.server.audit_log.read_text().splitlines()]
    return [entry for entry in every if entry["event"] == kind]


def record(it: Life, kind: str, count: int = 1) -> dict[str, Any]:
    """The last of this kind, once there are so many of it."""
    until(lambda: len(records(it, kind)) >= count, f"{count} {kind} in the audit log")
    found = records(it, kind)
    assert len(found) == count, found
    return found[-1]


def accepts(it: Life, secret: str) -> bool:
    """Whether the server takes this for the host's secret."""
    status = it.server.ask("GET", "/install-config.json", {"X-Shared-Secret": secret, "X-Hostname": NAME}).status
    assert status in (200, 401)
    return status == 200
