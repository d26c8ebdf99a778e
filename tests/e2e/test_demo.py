"""``make demo``, as a newcomer sees it: two terminals and a browser."""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.browser import Browser
from tests.e2e.server import DYING_WITH_US, PROGRAMS, REPOSITORY, free_port
from tests.e2e.sudohost import SudoProcess
from tests.e2e.world import asked, build_agent

pytestmark = pytest.mark.e2e

SHELL = {"PATH": "/usr/bin:/bin", "TERM": "xterm-256color", "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Demo:
    """:ivar directory: where everything of it is. :ivar command: what plays a host, as printed."""

    process: subprocess.Popen[str]
    text: str
    url: str
    command: str
    directory: Path


@pytest.fixture
def demo() -> Iterator[Demo]:
    arguments = ["--agent", str(build_agent())]
    for option in ("--port", "--provider-port", "--ldap-port"):
        arguments += [option, str(free_port())]
    process = subprocess.Popen(
        [*DYING_WITH_US, PROGRAMS / "python", "-m", "identree.cli", "demo", *arguments],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        text = ""
        while "Ctrl-C" not in text:
            line = process.stdout.readline()
            assert line, f"the demo ended:\n{text}"
            text += line
        command = next(line.strip() for line in text.splitlines() if "PAM_USER=" in line)
        conf = re.search(r"IDENTREE_CLIENT_CONF=(\S+)", command)
        url = re.search(r"http://127\.0\.0\.1:[0-9]+/", text)
        assert conf is not None
        assert url is not None
        yield Demo(process, text, url[0], command, Path(conf[1]).parent)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def in_a_terminal(command: str) -> SudoProcess:
    """Paste a command into a shell."""
    name = pwd.getpwuid(os.geteuid()).pw_name
    return SudoProcess(name, "/bin/bash", ["-c", command], SHELL, 100, 40)


class TestDemo:
    def test_approved(self, demo: Demo) -> None:
        """The printed command shows a challenge; the person clicks a name, approves, and it is released."""
        terminal = in_a_terminal(demo.command)
        try:
            request = asked(terminal)
            with Browser() as browser, browser.person(size="phone") as who:
                who.open(request.url)
                who.sign_in("alice")
                assert "".join(who.shows("#code").inner_text().split()) == request.code
                assert who.shows("[data-command]").inner_text() == "systemctl restart nginx"
                who.page.locator("#approve").click()
                assert terminal.wait() == 0
            assert "sudo approved" in terminal.screen
        finally:
            terminal.close()

    def test_directory(self, demo: Demo) -> None:
        """The printed ldapsearch finds alice, with her id and her groups' rules within reach."""
        command = next(line.strip() for line in demo.text.splitlines() if line.strip().startswith("ldapsearch "))
        for _ in range(50):  # the directory opens when it has been read from the provider
            done = subprocess.run(command.split(), check=False, capture_output=True, text=True)
            if done.returncode == 0:
                break
            time.sleep(0.1)
        assert "dn: uid=alice,ou=people,dc=demo,dc=invalid" in done.stdout, done.stderr
        assert "uidNumber: 200000" in done.stdout

    def test_leaves_nothing_behind(self, demo: Demo) -> None:
        """Ctrl-C ends it quietly: no process, no directory."""
        assert (demo.directory / "client.conf").stat().st_mode & 0o077 == 0
        session = demo.process.pid
        os.killpg(session, signal.SIGINT)
        output, _ = demo.process.communicate(timeout=30)
        assert "Traceback" not in output
        assert not demo.directory.exists()
        assert [pid for pid in running() if session_of(pid) == session] == []


def running() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1
