"""
The real agent on a real file system that fills up under it, and in a network that swallows everything.

The file system is a small tmpfs on which less and less is free: so each write of the agent is in turn the one that
fails, whatever it writes and in whatever order.
"""

from __future__ import annotations

import os
import pty
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from identree.agent import breakglass
from identree.agent.bcrypt import Bcrypt
from tests.agent.harness import Helper, archive
from tests.agent.scripted import SECRET, Answer, Request, ScriptedServer
from tests.agent.setuphost import DEBIAN
from tests.agent.test_breakglass import PROGRAM
from tests.e2e.test_breakglass import PATIENCE_SECONDS, PROMPT, black_hole

pytestmark = pytest.mark.e2e

PASSWORD = "abet-able-ache"
PAGE_BYTES = 4096
DISK_BYTES = 4 << 20
# One run of the agent, on a busy machine.
RUN_SECONDS = 120.0


class Disk:
    """A file system of its own. :ivar path: where it is mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def leave(self, pages: int) -> None:
        """Fill it, but for so many pages."""
        self._filler.unlink(missing_ok=True)
        state = os.statvfs(self.path)
        # an empty file costs nothing; so the filler is written, not reserved
        with open(self._filler, "wb") as file:
            file.write(b"x" * max(0, state.f_bavail * state.f_frsize - pages * PAGE_BYTES))

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)


@contextmanager
def mounted(*options: str) -> Iterator[Disk]:
    path = Path(tempfile.mkdtemp(prefix="identree-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={DISK_BYTES}", "mode=0755", *options]), "tmpfs", path]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        path.rmdir()
        without(f"file systems cannot be mounted here: {done.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)
        path.rmdir()


@pytest.fixture
def disk() -> Iterator[Disk]:
    with mounted() as disk:
        yield disk


def without(what: str) -> NoReturn:
    """A machine that cannot do it: elsewhere a reason not to try, where it counts a failure."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def run(*arguments: str | Path, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-ISB", archive(), *arguments],
        capture_output=True,
        text=True,
        env=environ or {},
        stdin=subprocess.DEVNULL,
        timeout=RUN_SECONDS,
    )


def tree(root: Path) -> dict[str, object]:
    """Every file below it but the filler, with mode and content."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
        if path.name != "filler"
    }


# The set-up


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer(lambda request: Answer(200, {"status": "ok"}))
    yield server
    server.stop()


def furnish(root: Path, url: str) -> None:
    """A host below ``root``."""
    for name in "etc/pam.d etc/identree etc/cron.d etc/audit/rules.d usr/local/bin var/lib lib/security".split():
        (root / name).mkdir(parents=True)
    (root / "lib/security/pam_exec.so").touch()
    agent = root / "usr/local/bin/identree"
    agent.write_text("#!/bin/sh\necho 0.1.0\n")
    agent.chmod(0o755)
    conf = root / "etc/identree/client.conf"
    conf.write_text(f"IDENTREE_SERVER_URL={url}\nIDENTREE_INSECURE_ALLOW_HTTP_ESCROW=true\n")
    conf.chmod(0o600)
    for name in ("sudo", "sudo-i"):
        (root / "etc/pam.d" / name).write_bytes(DEBIAN)


def filling_up(
    attempt: Callable[[], subprocess.CompletedProcess[str]],
    disk: Disk,
    before: dict[str, object],
    root: Path,
    *,
    failures: int,
) -> None:
    """
    Try with no free page, with one … until it succeeds; whenever it fails, nothing may have changed.

    :param failures: so many there are at least, or the disk was never full.
    """
    codes: list[int] = []
    for pages in range(64):
        disk.leave(pages)
        done = attempt()
        codes.append(done.returncode)
        if done.returncode == 0:
            break
        assert "No space left on device" in done.stdout + done.stderr, done
        assert str(root) in done.stderr, "the error names the file"
        assert "could not be put back" not in done.stderr, done
        assert tree(root) == before, (pages, done)
    assert codes[-1] == 0, "it never succeeded"
    assert len(codes) > failures, "the disk was never full"


def test_setup_on_a_full_disk(disk: Disk, server: ScriptedServer) -> None:
    """The set-up is done, or everything is as it was, wherever the disk runs full."""
    root = disk.path / "root"
    furnish(root, server.url)
    before = tree(root)
    arguments = ("setup", f"--root={root}", "--auditd", "--timers", "--hostname", "web01.example.com")
    filling_up(lambda: run(*arguments), disk, before, root, failures=3)
    disk.free()
    # and so it is when it was set up before, and is to be set up otherwise
    arguments = ("setup", f"--root={root}", "--pam-mode=additional", "--hostname", "other.example.com")
    filling_up(lambda: run(*arguments), disk, tree(root), root, failures=1)
    disk.free()
    assert run("setup", f"--root={root}", "--remove", "--keep-files").returncode == 0
    assert tree(root) == before


def test_removal_on_a_full_disk(disk: Disk, server: ScriptedServer) -> None:
    """A removal that cannot be completed for want of space leaves PAM files that are whole, and is completed later."""
    root = disk.path / "root"
    furnish(root, server.url)
    before = tree(root)
    assert run("setup", f"--root={root}", "--auditd", "--timers").returncode == 0
    configured = (root / "etc/pam.d/sudo").read_bytes()
    for pages in range(8):
        disk.leave(pages)
        done = run("setup", f"--root={root}", "--remove", "--keep-files")
        for name in ("sudo", "sudo-i"):
            assert (root / "etc/pam.d" / name).read_bytes() in (configured, DEBIAN), (pages, done)
        assert (root / "usr/local/bin/identree").exists()
        if done.returncode == 0:
            break
    disk.free()
    assert run("setup", f"--root={root}", "--remove", "--keep-files").returncode == 0
    assert tree(root) == before


def test_setup_without_inodes(server: ScriptedServer) -> None:
    """So it is when there is space, and no file can be made any more."""
    with mounted("nr_inodes=4096") as disk:
        root = disk.path / "root"
        furnish(root, server.url)
        fill = disk.path / "fill"
        fill.mkdir()
        before = tree(root)
        left = os.statvfs(root).f_ffree
        for number in range(left):
            (fill / str(number)).touch()
        done = None
        for number in range(32):
            done = run("setup", f"--root={root}", "--auditd", "--timers")
            if done.returncode == 0:
                break
            assert "No space left on device" in done.stderr, done
            assert tree(root) == before, (number, done)
            (fill / str(number)).unlink()
        assert done is not None and done.returncode == 0 and number > 3


# Break-glass


def test_rotation_on_a_full_disk(disk: Disk) -> None:
    """The password that the vault shows opens, wherever the disk runs full; or else the old one does."""
    stored: list[str] = []

    def vault(request: Request) -> Answer:
        stored.append(str(request.json["password"]))
        return Answer(200, {"status": "ok"})

    server = ScriptedServer(vault)
    try:
        file, conf = disk.path / "hash", Path(tempfile.mkdtemp(prefix="identree-")) / "client.conf"
        bcrypt = Bcrypt()
        file.write_text(bcrypt.hash(PASSWORD, 4) + "\n")
        file.chmod(0o600)
        write_conf(conf, server.url, file)
        codes: list[int] = []
        for pages in range(32):
            disk.leave(pages)
            code, shown = at_terminal(conf, "rotate-breakglass", "--force")
            codes.append(code)
            if code:
                assert "No space left on device" in shown and str(file) in shown, shown
            right = (stored or [PASSWORD])[-1]
            assert breakglass.matches(str(file), right.encode(), bcrypt), (pages, shown)
            if code == 0:
                break
            assert not list(disk.path.glob(".breakglass-tmp-*"))
        assert codes[0] == 1 and codes[-1] == 0
    finally:
        server.stop()
        shutil.rmtree(conf.parent, ignore_errors=True)


def write_conf(path: Path, url: str, file: Path) -> None:
    path.write_text(
        f"IDENTREE_SERVER_URL={url}\nIDENTREE_SHARED_SECRET={SECRET}\nIDENTREE_INSECURE_ALLOW_HTTP_ESCROW=true\n"
        f"IDENTREE_HOSTNAME=web01\nIDENTREE_BREAKGLASS_FILE={file}\nIDENTREE_BREAKGLASS_BCRYPT_COST=10\n"
        "IDENTREE_SYSLOG=false\n"
    )
    path.chmod(0o600)


def at_terminal(conf: Path, *words: str) -> tuple[int, str]:
    """A command of root's at a terminal of its own, which makes the agent take ``conf``."""
    pid, master = pty.fork()
    if pid == 0:
        try:
            command = [sys.executable, "-ISB", archive(), *words]
            os.execve(sys.executable, command, {"IDENTREE_CLIENT_CONF": str(conf)})
        finally:
            os._exit(127)
    shown, until = "", time.monotonic() + RUN_SECONDS
    try:
        while time.monotonic() < until:
            data = os.read(master, 4096).decode("utf-8", "replace")
            if not data:
                break
            shown += data
    except OSError:
        pass
    os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


@contextmanager
def prompted(disk: Disk, url: str, **options: str) -> Iterator[Helper]:
    """A PAM helper at the break-glass prompt, whose records are on the disk."""
    file = disk.path / "hash"
    if not file.exists():
        file.write_text(Bcrypt().hash(PASSWORD, 4) + "\n")
        file.chmod(0o600)
    helper = Helper(None, conf={"IDENTREE_SERVER_URL": url, "IDENTREE_BREAKGLASS_FILE": str(file)})
    log = os.path.join(helper.directory, "log")
    code = PROGRAM.format(run=str(disk.path), state=str(disk.path / "state"), log=log)
    try:
        helper.start(code=code, on_terminal=True, **options)
        helper.read_until(PROMPT)
        yield helper
    finally:
        helper.close()


def test_the_right_password_opens_on_a_full_disk(disk: Disk) -> None:
    """Neither uses nor failures can be written down: whoever knows the password gets in all the same."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for pages in range(3):
            with prompted(disk, url) as helper:
                disk.leave(pages)
                helper.type(PASSWORD + "\r")
                assert helper.finish() == 0, helper.terminal
            disk.free()


def test_a_full_disk_forgets_no_failure(disk: Disk) -> None:
    """Filling the disk does not buy free attempts: what was counted stays counted."""
    failures = disk.path / "identree-breakglass-failures"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for attempt in range(3):
            with prompted(disk, url) as helper:
                if attempt:
                    disk.leave(0)
                helper.type("wrong\r")
                assert helper.finish() == 1, helper.terminal
            assert failures.read_text().startswith(f"{attempt + 1} "), failures.read_text()
            disk.free()


# The network


def test_black_hole(disk: Disk) -> None:
    """Where packets vanish, the password is asked for within seconds: nobody waits for a network that is not there."""
    with black_hole() as url:
        begun = time.monotonic()
        with prompted(disk, url) as helper:
            assert time.monotonic() - begun < PATIENCE_SECONDS, helper.terminal
            helper.type("\x03")
            assert helper.finish() == 1


# Raises the loopback device of the network that it is in, takes every question, and ends with its parent.
SILENT = """
import fcntl, os, pathlib, socket, struct, sys, time
parent = os.getppid()
silent = socket.socket(type=socket.SOCK_DGRAM)
fcntl.ioctl(silent, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS; IFF_UP, IFF_RUNNING
silent.bind(("127.0.0.1", 53))
pathlib.Path(sys.argv[1]).touch()
while os.getppid() == parent:
    time.sleep(0.2)
"""


def test_name_server_black_hole(disk: Disk) -> None:
    """So it is when the name server swallows the question: looking up a name knows no time limit of its own."""
    if subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode:
        without("no network of its own can be made here")
    resolver, silent, ready = disk.path / "resolv.conf", disk.path / "silent.py", disk.path / "ready"
    resolver.write_text("nameserver 127.0.0.1\n")
    silent.write_text(SILENT)
    inner, outer = disk.path / "inner", disk.path / "outer"
    inner.write_text(
        "#!/bin/sh\n"
        f'mount --bind {resolver} "$(readlink -f /etc/resolv.conf)" || exit 99\n'
        f"{sys.executable} {silent} {ready} </dev/null >/dev/null 2>&1 &\n"
        f"while [ ! -e {ready} ]; do sleep 0.05; done\n"
        f'exec {sys.executable} "$@"\n'
    )
    outer.write_text(f'#!/bin/sh\nexec unshare --net --mount {inner} "$@"\n')
    for program in (inner, outer):
        program.chmod(0o755)
    begun = time.monotonic()
    with prompted(disk, "http://identree.example.com", python=str(outer)) as helper:
        assert time.monotonic() - begun < PATIENCE_SECONDS, helper.terminal
        assert "the name server does not answer" in helper.terminal.replace("\r\n", " "), helper.terminal
        helper.type("\x03")
        assert helper.finish() == 1
