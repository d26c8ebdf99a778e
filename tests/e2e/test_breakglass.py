"""
Real ``sudo`` on this machine's PAM while the server cannot be reached: the break-glass password at a real terminal, and
what the server hears of it afterwards.

The server is scripted, because what it does here is mostly not to be there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from identree.agent import places
from identree.agent.bcrypt import Bcrypt
from tests.agent.scripted import SECRET, Answer, Request, ScriptedServer, created, token
from tests.e2e.server import free_port
from tests.e2e.sudohost import CONFIG_DIRECTORY, SudoHost, SudoProcess, pam_text, throw_away_name
from tests.e2e.world import build_agent, client_conf

pytestmark = pytest.mark.e2e

PASSWORD = "abet-able-ache"
PROMPT = "break-glass password: "
# A decision that takes longer is no decision; on a busy machine it may take longer than the promised seven seconds.
PATIENCE_SECONDS = 15.0


@dataclass
class Host:
    """:ivar user: who types sudo. :ivar hash: the hash file."""

    user: str
    sudo_host: SudoHost
    hash: Path

    def configure(self, url: str) -> None:
        more = {
            "IDENTREE_BREAKGLASS_ENABLED": "true",
            "IDENTREE_BREAKGLASS_FILE": str(self.hash),
            "IDENTREE_BREAKGLASS_BCRYPT_COST": "10",
        }
        self.sudo_host.configure(client_conf(url, SECRET, **more))

    def sudo(self, *arguments: str, environment: dict[str, str] | None = None) -> SudoProcess:
        return self.sudo_host.sudo(*(arguments or ("id", "-u")), environment=environment)

    def asked(self, url: str, *arguments: str, environment: dict[str, str] | None = None) -> SudoProcess:
        """``sudo`` that asks for the break-glass password, because there is nobody at ``url``."""
        self.configure(url)
        begun = time.monotonic()
        process = self.sudo(*arguments, environment=environment)
        process.expect(PROMPT)
        assert time.monotonic() - begun < PATIENCE_SECONDS, process.screen
        return process

    def approve_all(self, request: Request) -> Answer:
        if request.path == "/api/challenge":
            granted = token("approved", user=self.user)
            return created(status="approved", approval_token=granted, grace_remaining=60)
        return Answer(200, {"status": "ok"})


def nobody() -> str:
    return f"http://127.0.0.1:{free_port()}"


@contextmanager
def black_hole() -> Iterator[str]:
    """An address where connections neither succeed nor fail: its queue is full, and nobody takes from it."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            with suppress(BlockingIOError):
                filling.connect(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def forget() -> None:
    where = places.Places()
    for path in (where.failures, where.used, where.kept, where.attempt, where.warned):
        Path(path).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    assert not CONFIG_DIRECTORY.exists(), f"{CONFIG_DIRECTORY} exists: these tests would use this host's own record"
    where = places.Places()
    had_state = os.path.isdir(where.state)
    directory = tmp_path_factory.mktemp("breakglass")
    user = throw_away_name("alice", "alice-of-identree")
    archive = build_agent()
    server = ScriptedServer(lambda request: Answer(200, {"status": "ok"}))
    try:
        configuration = client_conf(server.url, SECRET)
        pam = pam_text(archive, configuration, directory)
    finally:
        server.stop()
    try:
        with SudoHost(user, pam, configuration, archive) as host:
            yield Host(user, host, directory / "hash")
    finally:
        forget()
        if not had_state:
            shutil.rmtree(where.state, ignore_errors=True)


@pytest.fixture
def host(machine: Host) -> Iterator[Host]:
    forget()
    for path in machine.hash.parent.glob("hash*"):
        path.unlink()
    machine.hash.write_text(f"# identree breakglass host=web-01 type=passphrase\n{Bcrypt().hash(PASSWORD, 10)}\n")
    machine.hash.chmod(0o600)
    yield machine
    machine.sudo_host.end()


class TestServerDown:
    def test_right_password(self, host: Host) -> None:
        """The command runs as root; the password is shown as stars; nothing else is asked."""
        process = host.asked(nobody())
        process.type(PASSWORD + "\r")
        assert process.wait() == 0, process.screen
        lines = [line.strip() for line in process.screen.splitlines() if line.strip()]
        assert lines[-1] == "0"
        assert PROMPT + "*" * len(PASSWORD) in process.screen
        assert PASSWORD not in process.screen
        assert "[sudo]" not in process.screen

    def test_wrong_password(self, host: Host) -> None:
        """The command does not run, and no other password is asked for."""
        process = host.asked(nobody())
        process.type("nonsense\r")
        assert process.wait() == 1, process.screen
        assert "authentication failed" in process.screen
        assert "\n0\r\n" not in process.screen
        assert "[sudo]" not in process.screen

    def test_rate_limit(self, host: Host) -> None:
        """After some wrong ones nobody is asked for a while, also with the right one in hand; then it works."""
        Path(places.Places().failures).write_text(f"7 {int(time.time())}")
        os.chmod(places.Places().failures, 0o600)
        host.configure(nobody())
        process = host.sudo()
        limited = process.expect_match(r"too many failed attempts; try again in (\d+) s")
        assert process.wait() == 1
        assert PROMPT not in process.screen
        assert 1 <= int(limited[1]) <= 16
        Path(places.Places().failures).write_text(f"7 {int(time.time()) - 20}")
        process = host.asked(nobody())
        process.type(PASSWORD + "\r")
        assert process.wait() == 0, process.screen
        assert not Path(places.Places().failures).exists()

    def test_interrupted(self, host: Host) -> None:
        """Ctrl-C ends it, counts as no failure, and leaves the terminal as it was."""
        host.configure(nobody())
        process = host.sudo()
        before = termios.tcgetattr(process._terminal)
        process.expect(PROMPT)
        assert termios.tcgetattr(process._terminal) != before
        process.type("abet\x03")
        assert process.wait() == 1, process.screen
        assert "interrupted" in process.screen
        assert not Path(places.Places().failures).exists()
        assert termios.tcgetattr(process._terminal) == before

    def test_interrupted_while_trying(self, host: Host) -> None:
        """Ctrl-C before the question ends it as well, and nothing is asked."""
        host.configure(nobody())
        process = host.sudo()
        process.expect("trying again")
        process.type("\x03")
        assert process.wait() != 0
        assert PROMPT not in process.screen

    def test_killed(self, host: Host) -> None:
        """When sudo is killed at the question, the helper puts the terminal back."""
        host.configure(nobody())
        process = host.sudo()
        before = termios.tcgetattr(process._terminal)
        process.expect(PROMPT)
        os.kill(process.pid, signal.SIGKILL)
        until = time.monotonic() + 20
        while termios.tcgetattr(process._terminal) != before:
            assert time.monotonic() < until, "the terminal stays raw"
            process.read(0.05)

    def test_language(self, host: Host) -> None:
        """The question comes in the person's language."""
        host.configure(nobody())
        process = host.sudo(environment={"LANG": "de_DE.UTF-8"})
        process.expect("Notfallpasswort: ")
        process.type(PASSWORD + "\r")
        assert process.wait() == 0, process.screen

    def test_nobody_to_ask(self, host: Host) -> None:
        """``sudo -n`` fails without a question."""
        host.configure(nobody())
        process = host.sudo("-n", "id", "-u")
        assert process.wait() == 1
        assert PROMPT not in process.screen


class TestBlackHole:
    def test_decides(self, host: Host) -> None:
        """A server that swallows connections leads to the question as well, within the same time."""
        with black_hole() as url:
            process = host.asked(url)
            assert "connection timed out" in process.screen
            process.type(PASSWORD + "\r")
            assert process.wait() == 0, process.screen

    def test_stalling_is_not_unreachable(self, host: Host) -> None:
        """A server that takes the connection and then says nothing may be an attacker: no question."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            host.configure(f"http://127.0.0.1:{listener.getsockname()[1]}")
            process = host.sudo()
            assert process.wait(60) == 1
        assert PROMPT not in process.screen


class TestServerBack:
    def test_report(self, host: Host) -> None:
        """Each use is reported when the server is there again, once, and nobody waits for it."""
        for _ in range(2):
            process = host.asked(nobody())
            process.type(PASSWORD + "\r")
            assert process.wait() == 0, process.screen
        Path(places.Places().used).unlink()  # the machine was restarted meanwhile
        server = ScriptedServer(host.approve_all)
        try:
            host.configure(server.url)
            process = host.sudo()
            assert process.wait() == 0, process.screen
            assert PROMPT not in process.screen
            until = time.monotonic() + 30
            while os.path.getsize(places.Places().kept):
                assert time.monotonic() < until, [request.path for request in server.requests]
                time.sleep(0.05)
            reports = [request for request in server.requests if request.path == "/api/breakglass/report"]
            assert [(each.json["hostname"], each.json["username"]) for each in reports] == [("web-01", host.user)] * 2
            assert all(abs(int(str(each.json["timestamp"])) - time.time()) < 300 for each in reports)
            assert server.requests[0].path == "/api/challenge"
        finally:
            server.stop()

    def test_rotation(self, host: Host) -> None:
        """A password that is too old is replaced behind a sudo: the vault's new one opens, the old one does not."""
        old = time.time() - 91 * 86400
        os.utime(host.hash, (old, old))
        server = ScriptedServer(host.approve_all)
        try:
            host.configure(server.url)
            assert host.sudo().wait() == 0
            until = time.monotonic() + 30
            while os.stat(host.hash).st_mtime == old or os.path.exists(f"{host.hash}{places.PENDING}"):
                assert time.monotonic() < until, [request.path for request in server.requests]
                time.sleep(0.05)
            [stored] = [request.json for request in server.requests if request.path == "/api/breakglass/escrow"]
        finally:
            server.stop()
        password = str(stored["password"])
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", password)
        for typed, status in ((PASSWORD, 1), (password, 0)):
            process = host.asked(nobody())
            process.type(typed + "\r")
            assert process.wait() == status, process.screen
