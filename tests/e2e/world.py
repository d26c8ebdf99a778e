"""A server, its identity provider and this machine as a host of theirs, together."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.browser import Browser
from tests.e2e.provider import Provider
from tests.e2e.server import PROGRAMS, REPOSITORY, SHARED_SECRET, Server, free_port
from tests.e2e.sudohost import SudoHost, SudoProcess, pam_text, throw_away_name

ADMIN = "carol"
HOSTNAME = "web-01"
LANGUAGES = {"en": "en_GB.UTF-8", "de": "de_DE.UTF-8"}
CODE = re.compile(r"[A-HJ-NP-Z]{6}-[0-9]{6}")
URL = re.compile(r"https?://[!-~]+/approve/[A-Z]{6}-[0-9]{6}")


def build_agent() -> Path:
    """The archive that ``make agent`` builds, of the sources as they are."""
    archive = REPOSITORY / "build" / "identree.pyz"
    subprocess.run([PROGRAMS / "python", REPOSITORY / "tools" / "build_agent.py", archive], check=True)
    return archive


def client_conf(url: str, secret: str = SHARED_SECRET, **more: str) -> str:
    """``client.conf`` of a host that speaks to a server on this machine."""
    lines = {
        "IDENTREE_SERVER_URL": url,
        "IDENTREE_SHARED_SECRET": secret,
        "IDENTREE_HOSTNAME": HOSTNAME,
        "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true",
        # an approved sudo must not give the machine that runs the tests a break-glass password
        "IDENTREE_BREAKGLASS_ENABLED": "false",
        **more,
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


@dataclass(frozen=True)
class Request:
    """A ``sudo`` that waits, as its terminal shows it."""

    terminal: SudoProcess
    code: str
    url: str


@dataclass(frozen=True)
class World:
    """:ivar user: the person with the account on this machine; :data:`ADMIN` is the administrator."""

    user: str
    server: Server
    provider: Provider
    host: SudoHost
    browser: Browser

    def sudo(self, *arguments: str, language: str = "en", environment: dict[str, str] | None = None) -> Request:
        """The user types ``sudo``; returns once the terminal shows the code."""
        terminal = self.host.sudo(*arguments, environment={"LANG": LANGUAGES[language], **(environment or {})})
        return asked(terminal)


def asked(terminal: SudoProcess) -> Request:
    """Wait until a terminal shows where to approve, and the code."""
    terminal.expect_match(CODE.pattern + r"(?s:.*)" + CODE.pattern)
    url = URL.search(terminal.screen)
    codes = set(CODE.findall(terminal.screen))
    assert url is not None, terminal.screen
    assert len(codes) == 1, f"one code, in the link and by itself:\n{terminal.screen}"
    return Request(terminal, codes.pop(), url[0])


@contextmanager
def world(directory: Path, settings: dict[str, str] | None = None) -> Iterator[World]:
    """Everything, started; everything is put back at the end."""
    user = throw_away_name("alice", "alice-of-identree")
    port = free_port()
    archive = build_agent()
    users = {user: ["users"], "bob": ["users"], ADMIN: ["users", "admins"]}
    with ExitStack() as stack:
        provider = stack.enter_context(Provider(free_port(), [f"http://127.0.0.1:{port}/callback"], users))
        server = stack.enter_context(Server(directory, {**provider.settings, **(settings or {})}, port))
        configuration = client_conf(server.url)
        pam = pam_text(archive, configuration, directory)
        host = stack.enter_context(SudoHost(user, pam, configuration, archive))
        browser = stack.enter_context(Browser())
        yield World(user, server, provider, host, browser)
