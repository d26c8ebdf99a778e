"""
Look at the pages: ``python -m tests.web.gallery DIRECTORY`` writes screenshots of every page, phone and desktop, light
and dark, in every language, and says what axe-core finds. Everything runs on loopback and ends with the command.
"""

from __future__ import annotations

import socket
import sys
from contextlib import closing
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import react
from twisted.internet.threads import blockingCallFromThread, deferToThread

from identree.app.rules import Rules
from identree.core.addresses import parse_networks
from identree.core.challenge import HistoryEntry, HostContext
from identree.core.policy import Policies
from tests.web.house import House

ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
ADDRESSES = count(1)
SIZES = {"phone": (390, 844), "desktop": (1440, 900)}
POLICIES = b"""{"policies": [
    {"name": "database", "match_hosts": ["db-*"], "min_approvals": 2, "require_admin": true},
    {"name": "production", "match_hosts": ["prod-*"], "min_approvals": 2}
]}"""


def furnish(house: House) -> dict[str, str]:
    """Requests, sessions and history of a plausible morning; returns the codes by host."""
    context = HostContext(
        command="systemctl restart nginx", cwd="/etc/nginx", tty="/dev/pts/3", remote_host="198.51.100.7"
    )
    web = house.ask("alice", "web-01.example.com", reason="nginx answers 502", context=context)
    plain = house.ask("alice", "build-7.example.com")
    database = house.ask(
        "bob",
        "db-primary.example.com",
        reason="restore of yesterday's backup, ticket OPS-4711",
        context=HostContext(
            command="pg_restore --clean --if-exists --jobs=4 --dbname=orders /var/backups/orders-2026-03-03.dump",
            cwd="/var/backups",
        ),
    )
    house.session("alice", "web-02.example.com", timedelta(minutes=35))
    house.session("alice", "mail.example.com", timedelta(hours=7, minutes=50))
    now = house.now()
    house.history(
        [
            HistoryEntry(
                at=now - timedelta(minutes=minutes),
                username="alice",
                action=action,
                hostname=host,
                actor=actor,
                reason=why,
            )
            for minutes, action, host, actor, why in (
                (1600, "revoked", "old-3.example.com", "carol", ""),
                (95, "rejected", "web-01.example.com", "carol", "not during the sale"),
                (31, "auto_approved", "mail.example.com", "", ""),
                (25, "approved", "mail.example.com", "", "queue is stuck"),
                (4, "approved", "web-02.example.com", "bob", "nginx answers 502"),
            )
        ]
    )
    return {"web": web.user_code, "plain": plain.user_code, "database": database.user_code}


def look(base: str, house: House, codes: dict[str, str], directory: Path) -> list[str]:
    """Runs in a thread. Returns what axe-core has to say."""
    directory.mkdir(parents=True, exist_ok=True)
    said: list[str] = []

    def cookie(user: str, role: str) -> str:
        return blockingCallFromThread(reactor, house.cookie, user, role)  # type: ignore[no-any-return]

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        for size in SIZES:
            for theme in ("light", "dark"):
                for language in ("en", "de"):
                    visit(browser, base, size, theme, language, cookie, codes, directory, said)
        browser.close()
    return said


def visit(
    browser: Browser,
    base: str,
    size: str,
    theme: Any,
    language: str,
    cookie: Any,
    codes: dict[str, str],
    directory: Path,
    said: list[str],
) -> None:
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=theme,
        locale="de-DE" if language == "de" else "en-GB",
        timezone_id="Europe/Berlin",
        has_touch=size == "phone",
        # every visit has an address of its own, or the limit of looks per address would answer
        extra_http_headers={"X-Forwarded-For": f"198.51.100.{next(ADDRESSES)}"},
    )
    page = context.new_page()
    page.on("console", lambda message: said.append(f"console: {message.text}") if message.type != "log" else None)
    page.on("pageerror", lambda error: said.append(f"script: {error}"))

    def shot(name: str, path: str, user: str, role: str, ready: str) -> None:
        context.add_cookies([{"name": "pam_session", "value": cookie(user, role), "url": base}])
        page.goto(base + path)
        page.wait_for_selector(ready)
        page.screenshot(path=directory / f"{name}-{size}-{theme}-{language}.png", full_page=True)
        said.extend(f"{name} {size} {theme} {language}: {line}" for line in violations(page))

    shot("approve", f"/approve/{codes['web']}", "alice", "user", "[data-connection=live]")
    shot("approve-policy", f"/approve/{codes['database']}", "bob", "user", "[data-connection=live]")
    shot("dashboard", "/", "alice", "user", "[data-connection=live]")
    if language == "en":
        shot("dashboard-admin", "/", "carol", "admin", "[data-connection=live]")
        shot("approve-plain", f"/approve/{codes['plain']}", "carol", "admin", "[data-connection=live]")
        shot("dashboard-empty", "/", "dave", "user", "[data-connection=live]")
        page.click("#user-menu summary")
        page.screenshot(path=directory / f"menu-{size}-{theme}-{language}.png")
        said.extend(f"menu {size} {theme}: {line}" for line in violations(page))
    shot("over", "/approve/ABCDEF-123456", "alice", "user", ".card")
    context.close()


def violations(page: Page) -> list[str]:
    results = Axe().run(page)
    return [
        f"{rule['id']} ({rule['impact']}): {rule['nodes'][0]['html'][:160]} {rule['nodes'][0]['failureSummary'][:200]}"
        for rule in results.response["violations"]
    ]


async def main(reactor: Any, directory: str) -> None:
    # the port is found before the house is built, because its links carry it
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    base = f"http://127.0.0.1:{number}"
    rules = Rules(external_url=base, grace_period=timedelta(hours=8), challenge_ttl=timedelta(hours=1))
    house = House(
        rules=rules, policies=Policies.parse(POLICIES), reactor=reactor, trusted_proxies=parse_networks(["127.0.0.1"])
    )
    codes = furnish(house)
    port = await TCP4ServerEndpoint(reactor, number, interface="127.0.0.1").listen(house.front.site)
    try:
        said = await deferToThread(look, base, house, codes, Path(directory))
    finally:
        house.front.close_streams()
        await port.stopListening()
    print("\n".join(said) or "axe-core: no violations; no script errors")


if __name__ == "__main__":
    react(main, sys.argv[1:2])
