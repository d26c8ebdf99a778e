"""
The served install script and uninstall script, run for real by root, on a host of their own: a mount namespace with
private ``/etc``, ``/usr/local``, ``/var/lib`` and ``/run`` over this machine's programs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path

import pytest

from identree import dist
from identree.agent import certificates, config, signing
from identree.app.signing import signature_bytes
from tests.agent.harness import interpreters
from tests.agent.scripted import Answer, Request, ScriptedServer
from tests.e2e.server import DYING_WITH_US, PROGRAMS, SHARED_SECRET, Server, free_port
from tests.e2e.slapd import BASE_DN
from tests.e2e.tls import CA, SERVER_NAME, SecureServer
from tests.e2e.world import build_agent
from tools import build_agent as builder

pytestmark = pytest.mark.e2e

PRIVATE = ("/etc", "/usr/local", "/var/lib", "/run")
# Of this machine, and so not to be touched by a test: the kernel's audit rules.
HIDDEN = ("/usr/sbin/auditctl", "/usr/sbin/augenrules")
FETCHERS = ("/usr/bin/curl", "/usr/bin/wget")
NAME = "web-01"
AGENT, CONF, PAM = "/usr/local/bin/identree", "/etc/identree/client.conf", "/etc/pam.d/sudo"
HASH_FILE = "/etc/identree-breakglass"
CLIENT_CERT, CLIENT_KEY = "/etc/identree/client.crt", "/etc/identree/client.key"
CERTIFIED = f"IDENTREE_CLIENT_CERT={CLIENT_CERT}\nIDENTREE_CLIENT_KEY={CLIENT_KEY}\n"
SCRIPT_SECONDS = 120.0
DEFAULT_PAM = b"#%PAM-1.0\nsession required pam_limits.so\n@include common-auth\n@include common-account\n"
OLD_LINE = b"auth required pam_exec.so stdout /usr/local/bin/identree\n"
# Writes down what it was started with, then is what it stands for.
SPY = '#!/bin/bash\n{{ printf "%s\\n" "$0" "$@"; env; }} >>{log}\nexec {program} "$@"\n'

Tree = dict[str, tuple[int, int, int, str]]


@dataclass(frozen=True)
class Told:
    status: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err


class Host:
    """:param hide: programs that this host does not have."""

    def __init__(self, directory: Path, hide: tuple[str, ...] = ()) -> None:
        self._directory = directory
        self._hide = [path for path in (*HIDDEN, *hide) if os.path.exists(path)]
        self._holder: subprocess.Popen[bytes] | None = None
        self._inside = 0

    def file(self, path: str) -> Path:
        """Where a file of this host really is."""
        top = next(top for top in PRIVATE if path == top or path.startswith(top + "/"))
        return self._directory / top.strip("/").replace("/", "-") / path[len(top) :].strip("/")

    def __enter__(self) -> Host:
        if os.geteuid() != 0:
            raise AssertionError("a host of its own needs a mount namespace: run these tests as root")
        shutil.copytree("/etc", self.file("/etc"), symlinks=True, ignore=_unreadable)
        for path in PRIVATE[1:]:
            self.file(path).mkdir(mode=0o755)
        self.file("/usr/local/bin").mkdir(mode=0o755)
        shutil.rmtree(self.file("/etc/identree"), ignore_errors=True)
        self.file(HASH_FILE).unlink(missing_ok=True)
        self.file("/etc/pam.d/sudo-i").unlink(missing_ok=True)
        self.write(PAM, DEFAULT_PAM)
        # sudo wants its own name to lead somewhere
        self.write("/etc/hosts", f"127.0.0.1 localhost {NAME}\n".encode())
        commands = [f"mount --bind {self.file(path)} {path}" for path in PRIVATE]
        commands += [f"mount --bind /dev/null {path}" for path in self._hide]
        self._holder = subprocess.Popen(
            [
                *DYING_WITH_US,
                *("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("--propagation", "private"),
                *("sh", "-ec", f"hostname {NAME}; {'; '.join(commands)}; echo ready; exec sleep infinity"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # it complains when its child is killed, which is how it ends
            stderr=subprocess.DEVNULL,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise AssertionError("the namespace did not come to be: is this a container without CAP_SYS_ADMIN?")
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self._inside = int(children[0])
        return self

    def __exit__(self, *exc: object) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()

    def write(self, path: str, content: bytes, mode: int = 0o644) -> None:
        file = self.file(path)
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)

    def read(self, path: str) -> bytes:
        return self.file(path).read_bytes()

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.file(path))

    def run(
        self,
        *command: str,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        seconds: float = SCRIPT_SECONDS,
    ) -> Told:
        done = subprocess.run(
            ["nsenter", "--target", str(self._inside), "--mount", "--uts", "--pid", "--wd=/", *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **(environment or {})},
            input=stdin,
            capture_output=True,
            timeout=seconds,
        )
        return Told(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))

    def tree(self) -> Tree:
        """Everything on this host: mode, owner and content of each file."""
        found: Tree = {}
        for top in PRIVATE:
            base = self.file(top)
            for path in (base, *base.rglob("*")):
                info = path.lstat()
                if stat.S_ISLNK(info.st_mode):
                    content = os.readlink(path)
                elif stat.S_ISREG(info.st_mode):
                    content = hashlib.sha256(path.read_bytes()).hexdigest()
                else:
                    content = ""
                name = f"{top}/{path.relative_to(base)}"
                found[name] = (info.st_mode, info.st_uid, info.st_gid, content)
        return found


def _unreadable(directory: str, names: list[str]) -> list[str]:
    """What is no file, directory or link, such as sockets and pipes."""
    kinds = (os.path.islink, os.path.isdir, os.path.isfile)
    return [name for name in names if not any(kind(os.path.join(directory, name)) for kind in kinds)]


def changes(before: Tree, after: Tree) -> list[str]:
    """What differs."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


@dataclass(frozen=True)
class Place:
    """:ivar agent: the file that the server gives to hosts. :ivar public: the key that install scripts verify with."""

    server: Server
    agent: Path
    public: Path

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            connection.request("GET", path, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, path: str, value: object) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            connection.request("POST", path, json.dumps(value), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def fetched(self, path: str) -> bytes:
        status, body = self.get(path)
        assert status == 200, (path, status, body)
        return body

    def install(self, host: Host, secret: str = SHARED_SECRET, **environment: str) -> Told:
        """As the deploy feature does it: the script comes on standard input."""
        more = {"IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true", **environment}
        if secret:
            more["IDENTREE_SHARED_SECRET"] = secret
        return host.run("bash", "-s", self.server.url + "/", stdin=self.fetched("/install.sh"), environment=more)

    def uninstall(self, host: Host, query: str = "") -> Told:
        return host.run("bash", stdin=self.fetched("/api/deploy/uninstall-script" + query))

    def give(self, content: bytes) -> None:
        """Another agent to fetch."""
        fresh = self.agent.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.rename(self.agent)


class Endless:
    """A server that answers everything with more than anybody can want. :ivar sent: bytes that somebody took."""

    BYTES = 256 << 20

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.sent = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Endless:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        # closing alone does not wake who waits in accept
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                while self.sent < self.BYTES:
                    self.sent += connection.send(bytes(1 << 20))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("server")
    agent = directory / "identree.pyz"
    shutil.copy(build_agent(), agent)
    settings = {
        "IDENTREE_DEV_LOGIN": "true",
        "IDENTREE_GRACE_PERIOD": "1h",
        "IDENTREE_INSTALL_SIGNING_KEY": str(directory / "install-signing.key"),
        "IDENTREE_INSTALL_VERIFY_KEY": str(directory / "install-signing.pub"),
        "IDENTREE_AGENT_FILE": str(agent),
    }
    with Server(directory, settings) as server:
        yield Place(server, agent, directory / "install-signing.pub")


@pytest.fixture(autouse=True)
def usual(place: Place) -> Iterator[None]:
    """Every test begins with the agent as it is built."""
    before = place.agent.read_bytes()
    yield
    if place.agent.read_bytes() != before:
        place.give(before)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path / "host") as made:
        yield made


@pytest.fixture(autouse=True)
def room(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()


class TestInstall:
    def test_fresh(self, place: Place, host: Host) -> None:
        """sudo asks identree afterwards; the files belong to root alone; nothing else was left."""
        before = host.tree()
        told = place.install(host)
        assert told.status == 0, told.all
        assert told.out.startswith(f"IDENTREE_HOSTNAME={NAME}")
        rules = host.read(PAM).decode().splitlines()
        assert len([line for line in rules if "pam_exec.so" in line and AGENT in line]) == 1
        assert host.read(CONF).decode() == (
            f"IDENTREE_SERVER_URL={place.server.url}\nIDENTREE_SHARED_SECRET={SHARED_SECRET}\n"
            "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW=true\n"
        )
        after = host.tree()
        assert {stat.S_IMODE(after[name][0]) for name in ("/etc/identree/client.conf",)} == {0o600}
        assert stat.S_IMODE(after["/etc/identree/."[:-2]][0]) == 0o750
        assert stat.S_IMODE(after[AGENT][0]) == 0o755
        first, _, rest = host.read(AGENT).partition(b"\n")
        assert first.startswith(b"#!/usr/bin/python3") and first.endswith(b" -ISB")
        assert rest == place.agent.read_bytes().partition(b"\n")[2]
        ours = (
            "/etc/identree",
            "/usr/local/bin",
            "/var/lib/identree",
            "/etc/pam.d/sudo",
            "/etc/cron.d",
            HASH_FILE,
            "/run",
        )
        assert [name for name in changes(before, after) if not name.startswith(ours)] == []
        assert not any("install" in name for name in after if name.startswith("/run/")), "its directory is gone"
        assert host.run(AGENT, "--version").out.startswith(place.fetched("/download/version").decode())
        assert SHARED_SECRET not in told.all

    def test_again(self, place: Place, host: Host) -> None:
        """A second run changes nothing but the time of the last heartbeat, with the secret or without."""
        assert place.install(host).status == 0
        before = host.tree()
        for secret in (SHARED_SECRET, ""):
            told = place.install(host, secret)
            assert told.status == 0, told.all
            assert "up to date" in told.out
            passing = ("/run", "/var/lib/identree/heartbeat.json")
            assert [name for name in changes(before, host.tree()) if not name.startswith(passing)] == []

    def test_upgrade(self, place: Place, host: Host) -> None:
        """A new agent takes the place of the old one, which is kept beside it for the way back."""
        assert place.install(host).status == 0
        old = host.read(AGENT)
        place.give(builder.build("99.1.0", "abc"))
        told = place.install(host)
        assert told.status == 0, told.all
        assert host.run(AGENT, "--version").out == "99.1.0 (abc)\n"
        assert host.read(AGENT + ".previous") == old
        assert host.file(AGENT + ".previous").stat().st_mode & 0o777 == 0o755

    def test_uninstall(self, place: Place, host: Host) -> None:
        """Afterwards the host is as it was: every file, its mode and its owner."""
        before = host.tree()
        assert place.install(host).status == 0
        place.give(builder.build("99.1.0", "abc"))
        assert place.install(host).status == 0
        told = place.uninstall(host)
        assert told.status == 0, told.all
        assert [name for name in changes(before, host.tree()) if not name.startswith("/run")] == [], told.all

    def test_merged(self, place: Place, host: Host) -> None:
        """Of a configuration that is there only the keys change that the installer knows."""
        text = (
            "# mine\nexport IDENTREE_SERVER_URL='https://old.example'\nIDENTREE_TIMEOUT=30s\n\n"
            "IDENTREE_SHARED_SECRET=first\nIDENTREE_SHARED_SECRET = second\nIDENTREE_CLIENT_CERT=/etc/x.crt"
        )
        host.write(CONF, text.encode(), 0o644)
        told = place.install(host)
        assert told.status == 0, told.all
        assert host.read(CONF).decode() == (
            f"# mine\nIDENTREE_SERVER_URL={place.server.url}\nIDENTREE_TIMEOUT=30s\n\n"
            f"IDENTREE_SHARED_SECRET={SHARED_SECRET}\nIDENTREE_CLIENT_CERT=/etc/x.crt\n"
            "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW=true\n"
        )
        assert host.file(CONF).stat().st_mode & 0o777 == 0o600

    def test_named(self, place: Place, host: Host) -> None:
        """A name that is not the kernel's is kept for the agent."""
        assert place.install(host, IDENTREE_HOSTNAME="DB-7.example.com.").status == 0
        assert b"\nIDENTREE_HOSTNAME=db-7.example.com\n" in host.read(CONF)

    @pytest.mark.parametrize("fetcher", ["curl", "wget", "neither"])
    def test_secret_stays_secret(self, place: Place, tmp_path: Path, fetcher: str) -> None:
        """With each way to fetch: the secret is neither among the arguments of a program nor in its environment."""
        hidden = tuple(path for path in FETCHERS if not path.endswith(fetcher))
        with Host(tmp_path / "host", hidden) as host:
            log = tmp_path / "log"
            log.touch()
            python = host.file("/usr/local/python3")
            spied = {"/usr/local/python3": "/usr/bin/python3"}
            if fetcher != "neither":
                spied[f"/usr/local/bin/{fetcher}"] = f"/usr/bin/{fetcher}"
            for spy, program in spied.items():
                host.write(spy, SPY.format(log=log, program=program).encode(), 0o755)
            assert python.exists()
            told = place.install(host, IDENTREE_PYTHON="/usr/local/python3")
            assert told.status == 0, told.all
            seen = log.read_text()
            assert "/usr/local/python3" in seen and (fetcher == "neither" or f"/usr/local/bin/{fetcher}" in seen)
            assert SHARED_SECRET not in seen
            assert "pam_exec.so" in host.read(PAM).decode()

    def test_interpreters(self, place: Place, host: Host) -> None:
        """Every Python from 3.9 on is good enough."""
        for version, path in interpreters().items():
            told = place.install(host, IDENTREE_PYTHON=path)
            assert told.status == 0, (version, told.all)
            assert host.read(AGENT).startswith(f"#!{path} -ISB\n".encode())
            assert place.uninstall(host).status == 0

    def test_sole_authentication_of_old(self, place: Place, host: Host) -> None:
        """A host of the deployed installer is taken over: one rule, one set of timers, and its secret."""
        host.write(PAM, OLD_LINE + DEFAULT_PAM)
        host.write(
            CONF, f"IDENTREE_SERVER_URL={place.server.url}\nIDENTREE_SHARED_SECRET={SHARED_SECRET}\n".encode(), 0o600
        )
        host.write(AGENT, b"\x7fELF of another program", 0o755)
        told = place.install(host, "")
        assert told.status == 0, told.all
        assert host.read(PAM).count(b"pam_exec.so") == 1
        assert host.read(AGENT + ".previous") == b"\x7fELF of another program"


class TestNothingHappens:
    """What fails leaves the host as it was, and says why."""

    @contextmanager
    def unchanged(self, host: Host) -> Iterator[None]:
        before = host.tree()
        yield
        assert changes(before, host.tree()) == []

    def test_wrong_secret(self, place: Place, host: Host) -> None:
        with self.unchanged(host):
            told = place.install(host, "x" * 32)
        assert told.status == 1
        assert "does not accept this secret" in told.err

    def test_no_secret(self, place: Place, host: Host) -> None:
        with self.unchanged(host):
            told = place.install(host, "")
        assert told.status == 1
        assert "IDENTREE_ENROL_TOKEN" in told.err

    def test_plain_http(self, place: Place, host: Host) -> None:
        with self.unchanged(host):
            told = place.install(host, IDENTREE_INSECURE_ALLOW_HTTP_ESCROW="")
        assert told.status == 1
        assert "is not encrypted" in told.err

    def test_no_url(self, place: Place, host: Host) -> None:
        script = place.fetched("/install.sh")
        for arguments, said in (([], "usage:"), (["ftp://x"], "no address"), (["https://a b"], "no address")):
            with self.unchanged(host):
                told = host.run("bash", "-s", *arguments, stdin=script)
            assert told.status == 1
            assert said in told.err

    def test_nobody_there(self, place: Place, host: Host) -> None:
        url = f"http://127.0.0.1:{free_port()}"
        environment = {"IDENTREE_SHARED_SECRET": SHARED_SECRET, "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true"}
        with self.unchanged(host):
            told = host.run("bash", "-s", url, stdin=place.fetched("/install.sh"), environment=environment)
        assert told.status == 1
        assert f"{url} does not answer" in told.err

    def test_no_python(self, place: Place, host: Host) -> None:
        with self.unchanged(host):
            told = place.install(host, IDENTREE_PYTHON="/bin/false")
        assert told.status == 1
        assert "Python 3.9" in told.err

    def test_old_python(self, place: Place, tmp_path: Path) -> None:
        """Where the system's Python is too old, or broken, the remedy is named."""
        real = tuple(str(path) for path in Path("/usr/bin").glob("python3*") if not path.is_symlink())
        with Host(tmp_path / "host", real) as host, self.unchanged(host):
            told = place.install(host)
        assert told.status == 1
        assert "dnf install python39" in told.err

    def test_half_a_script(self, place: Place, host: Host) -> None:
        """A download that was cut off does nothing, wherever it was cut."""
        script = place.fetched("/install.sh")
        for size in (len(script) // 3, len(script) * 2 // 3, len(script) - len('main "$@"\n')):
            with self.unchanged(host):
                host.run("bash", "-s", place.server.url, stdin=script[:size])

    def test_not_root(self, place: Place, host: Host) -> None:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-s", place.server.url]
        with self.unchanged(host):
            told = host.run(*command, stdin=place.fetched("/install.sh"))
        assert told.status == 1
        assert "needs root" in told.err

    def test_broken_agent(self, place: Place, host: Host) -> None:
        """An agent that does not start, although its checksum is right, is not installed."""
        place.give(b"#!/usr/bin/python3 -ISB\nraise SystemExit(3)\n")
        with self.unchanged(host):
            told = place.install(host)
        assert told.status == 1
        assert "does not start" in told.err

    def test_pam_cannot_be_written(self, place: Place, host: Host) -> None:
        """Nor where the file cannot be changed."""
        pam = host.file(PAM)
        pam.rename(pam.with_name("gone"))
        pam.mkdir()
        with self.unchanged(host):
            told = place.install(host)
        assert told.status == 1, told.all

    def test_pam_fails(self, place: Place, host: Host) -> None:
        """What was done before PAM could not be configured is taken back: agent, configuration, directory."""
        host.file(PAM).unlink()
        with self.unchanged(host):
            told = place.install(host)
        assert told.status == 1
        assert "install sudo first" in told.all
        assert "taken back" in told.err

    def test_upgrade_fails(self, place: Place, host: Host) -> None:
        """So is an upgrade: the old agent is back, and sudo never lost it."""
        assert place.install(host).status == 0
        place.give(builder.build("99.1.0", "abc"))
        assert place.install(host).status == 0
        place.give(builder.build("99.2.0", "abc"))
        before = host.tree()
        told = place.install(host, IDENTREE_PAM_MODE="nonsense")
        assert told.status == 1, told.all
        assert [name for name in changes(before, host.tree()) if not name.startswith("/run")] == []
        assert host.run(AGENT, "--version").out == "99.1.0 (abc)\n"

    def test_two_at_once(self, place: Place, host: Host) -> None:
        script = place.fetched("/install.sh")
        environment = {"IDENTREE_SHARED_SECRET": SHARED_SECRET, "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true"}
        host.write("/run/identree-installing", b"", 0o600)
        with self.unchanged(host):
            command = ("flock", "/run/identree-installing", "bash", "-s", place.server.url)
            told = host.run(*command, stdin=script, environment=environment)
        assert told.status == 1
        assert "by somebody else" in told.err

    @pytest.mark.parametrize("fetcher", ["curl", "wget", "neither"])
    def test_endless_answer(self, place: Place, tmp_path: Path, fetcher: str) -> None:
        """What does not say how long it is, and does not end, fills neither disk nor memory."""
        hidden = tuple(path for path in FETCHERS if not path.endswith(fetcher))
        environment = {"IDENTREE_SHARED_SECRET": SHARED_SECRET, "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true"}
        with Endless() as endless, Host(tmp_path / "host", hidden) as host, self.unchanged(host):
            url = f"http://127.0.0.1:{endless.port}"
            told = host.run("bash", "-s", url, stdin=place.fetched("/install.sh"), environment=environment)
        assert told.status == 1
        assert f"{url} does not answer" in told.err
        assert 0 < endless.sent < Endless.BYTES

    def test_locked_by_anybody(self, place: Place, host: Host) -> None:
        """What everybody can open everybody can lock; that keeps nobody from installing, and no lock is left."""
        directory = os.open(host.file("/etc"), os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            told = place.install(host)
        finally:
            os.close(directory)
        assert told.status == 0, told.all
        assert not host.exists("/run/identree-installing")


class TestSignatures:
    def test_verified(self, place: Place, tmp_path: Path) -> None:
        """The agent's own check and OpenSSL agree that the served script is the signed one."""
        script, signature, key = (tmp_path / name for name in ("install.sh", "install.sh.sig", "install.pub"))
        script.write_bytes(place.fetched("/install.sh"))
        signature.write_bytes(place.fetched("/install.sh.sig"))
        key.write_bytes(place.fetched("/install.pub"))
        assert script.read_bytes() == dist.read(dist.INSTALL)
        assert key.read_bytes() == place.public.read_bytes()
        options = ["--key", str(key), "--script", str(script), "--sig", str(signature)]
        assert signing.verify_install(options) == 0
        raw = signature_bytes(signature.read_text())
        assert raw is not None
        (tmp_path / "raw").write_bytes(raw)
        head = bytes.fromhex("302a300506032b6570032100")
        (tmp_path / "key.der").write_bytes(head + signing_key(key.read_text()))
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", tmp_path / "key.der"]
        done = subprocess.run([*command, "-rawin", "-in", script, "-sigfile", tmp_path / "raw"], capture_output=True)
        assert b"Verified Successfully" in done.stdout, done
        script.write_bytes(script.read_bytes() + b"\n")
        assert signing.verify_install(options) == 1

    def test_agent_verified(self, place: Place, host: Host) -> None:
        """With the key of the operator the agent is installed only if that key has signed its checksum."""
        host.write("/etc/install.pub", place.public.read_bytes())
        told = place.install(host, IDENTREE_VERIFY_KEY="/etc/install.pub")
        assert told.status == 0, told.all

    def test_standard_form(self, place: Place, host: Host, tmp_path: Path) -> None:
        """The key may be in the form of OpenSSL."""
        der = tmp_path / "key.der"
        der.write_bytes(bytes.fromhex("302a300506032b6570032100") + signing_key(place.public.read_text()))
        command = ["openssl", "pkey", "-pubin", "-inform", "DER", "-in", der]
        host.write("/etc/install.pub", subprocess.run(command, capture_output=True, check=True).stdout)
        told = place.install(host, IDENTREE_VERIFY_KEY="/etc/install.pub")
        assert told.status == 0, told.all

    def test_agent_of_another(self, place: Place, host: Host, tmp_path: Path) -> None:
        """With another key nothing happens."""
        key = tmp_path / "other"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
        command = ["openssl", "pkey", "-in", key, "-pubout"]
        host.write("/etc/install.pub", subprocess.run(command, capture_output=True, check=True).stdout)
        before = host.tree()
        told = place.install(host, IDENTREE_VERIFY_KEY="/etc/install.pub")
        assert told.status == 1
        assert "NOT signed" in told.err
        assert changes(before, host.tree()) == []

    def test_published_scripts(self, place: Place, tmp_path: Path) -> None:
        """What scripts fetch that are out already: a file that runs, and its checksum as sha256sum reads it."""
        for name in ("identree-linux-amd64", "identree-linux-arm64"):
            (tmp_path / name).write_bytes(place.fetched(f"/download/{name}"))
            (tmp_path / name).chmod(0o755)
            (tmp_path / "sum").write_bytes(place.fetched(f"/download/{name}.sha256"))
            subprocess.run(["sha256sum", "-c", "sum"], cwd=tmp_path, check=True, capture_output=True)
            said = subprocess.run([tmp_path / name, "--version"], capture_output=True, text=True, check=True).stdout
            assert said.split()[0] == place.fetched("/download/version").decode()


def signing_key(text: str) -> bytes:
    from identree.agent import ed25519

    return ed25519.public_key(text)


class Enrolling:
    """A server that says what :class:`Place` would, with enrolment tokens, and an agent that may be spoiled."""

    def __init__(self, agent: bytes) -> None:
        self.agent, self.sent = agent, agent
        self.secret, self.config = "own" * 20, dict[str, str]()
        self.held, self.hold = "", threading.Event()
        # paths that lead elsewhere
        self.moved: dict[str, str] = {}
        self.tokens = {"one-time": NAME}
        self.server = ScriptedServer(self.answer)

    def answer(self, request: Request) -> Answer:
        return replace(self.answer_at_once(request), hold=self.hold if request.path == self.held else None)

    def answer_at_once(self, request: Request) -> Answer:
        plain = {"Content-Type": "text/plain"}
        if request.path in self.moved:
            return Answer(302, b"", {"Location": self.moved[request.path]})
        if request.path == "/download/version":
            return Answer(200, b"1.0", plain)
        if request.path == "/download/identree.pyz.sha256":
            return Answer(200, f"{hashlib.sha256(self.agent).hexdigest()}  identree.pyz\n".encode(), plain)
        if request.path in ("/download/identree.pyz", "/elsewhere/agent"):
            return Answer(200, self.sent, plain)
        if request.path == "/healthz":
            return Answer(200, {"status": "ok"})
        if request.path == "/api/enrol":
            token, name = str(request.json["token"]), request.json["hostname"]
            if token not in self.tokens:
                return Answer(401, {"error": "the enrolment token is unknown"})
            if self.tokens[token] != name:
                return Answer(403, {"error": "the enrolment token is for another host"})
            del self.tokens[token]
            return Answer(201, {"hostname": name, "secret": self.secret, "server_url": self.server.url})
        if request.path == "/install-config.json":
            if request.headers["x-shared-secret"] != self.secret or request.headers["x-hostname"] != NAME:
                return Answer(401, {})
            return Answer(200, {"server_url": self.server.url, **self.config})
        return Answer(404, {"error": "not found"})

    def install(self, host: Host, **environment: str) -> Told:
        more = {"IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true", **environment}
        script = dist.read(dist.INSTALL)
        return host.run("bash", "-s", self.server.url, stdin=script, environment=more)


WAYS = ("curl", "wget", "neither")


def others(fetcher: str) -> tuple[str, ...]:
    """What is to be hidden, so that this is what fetches."""
    return tuple(path for path in FETCHERS if not path.endswith(fetcher))


@pytest.fixture
def enrolling(place: Place) -> Iterator[Enrolling]:
    made = Enrolling(place.agent.read_bytes())
    yield made
    made.server.stop()


class TestRegistry:
    def test_enrolled(self, tmp_path: Path) -> None:
        """With a registry: one command at the server, one at the host, which goes on with the secret it got."""
        agent = tmp_path / "identree.pyz"
        shutil.copy(build_agent(), agent)
        settings = {
            "IDENTREE_DEV_LOGIN": "true",
            "IDENTREE_HOST_REGISTRY": "on",
            "IDENTREE_INSTALL_SIGNING_KEY": str(tmp_path / "install-signing.key"),
            "IDENTREE_INSTALL_VERIFY_KEY": str(tmp_path / "install-signing.pub"),
            "IDENTREE_AGENT_FILE": str(agent),
        }
        with Server(tmp_path, settings) as server, Host(tmp_path / "host") as host:
            place = Place(server, agent, tmp_path / "install-signing.pub")
            command = [PROGRAMS / "identree", "enrol", NAME, "--yes"]
            made = subprocess.run(
                command, cwd=tmp_path, env=server.environment, capture_output=True, text=True, timeout=60
            )
            assert made.returncode == 0, made.stderr
            token = made.stdout.strip()
            told = place.install(host, "", IDENTREE_ENROL_TOKEN=token)
            assert told.status == 0, told.all
            secret = config.parse(host.read(CONF).decode())["IDENTREE_SHARED_SECRET"]
            assert len(secret) >= 32
            assert secret != SHARED_SECRET
            assert token not in told.all and secret not in told.all
            told = place.install(host, "", IDENTREE_ENROL_TOKEN=token)
            assert told.status == 1, "a token is good for once"
            assert config.parse(host.read(CONF).decode())["IDENTREE_SHARED_SECRET"] == secret
            told = place.install(host, "")
            assert told.status == 0, told.all
            assert config.parse(host.read(CONF).decode())["IDENTREE_SHARED_SECRET"] == secret


class TestEnrolment:
    def test_enrolled(self, enrolling: Enrolling, host: Host) -> None:
        """A token is turned into a secret of this host's own, and the global one is never needed."""
        told = enrolling.install(host, IDENTREE_ENROL_TOKEN="one-time")
        assert told.status == 0, told.all
        assert f"IDENTREE_SHARED_SECRET={'own' * 20}\n" in host.read(CONF).decode()
        assert "pam_exec.so" in host.read(PAM).decode()
        assert "own" * 20 not in told.all
        assert "one-time" not in told.all

    def test_full_name(self, enrolling: Enrolling, host: Host) -> None:
        """A token for the full name is used under that name, which the agent then keeps to."""
        enrolling.tokens = {"one-time": f"{NAME}.example.com"}
        host.write("/etc/hosts", f"127.0.1.1 {NAME}.example.com {NAME}\n127.0.0.1 localhost\n".encode())
        told = enrolling.install(host, IDENTREE_ENROL_TOKEN="one-time")
        assert told.status == 0, told.all
        assert told.out.startswith(f"IDENTREE_HOSTNAME={NAME}.example.com\n")
        assert f"\nIDENTREE_HOSTNAME={NAME}.example.com\n" in host.read(CONF).decode()

    def test_used_up(self, enrolling: Enrolling, host: Host) -> None:
        """A token that is no good changes nothing, and the server's words are shown."""
        before = host.tree()
        told = enrolling.install(host, IDENTREE_ENROL_TOKEN="nonsense")
        assert told.status == 1
        assert "the enrolment token is unknown" in told.err
        assert changes(before, host.tree()) == []

    def test_spoiled_agent(self, enrolling: Enrolling, host: Host) -> None:
        """An agent that is not what its checksum says changes nothing, and the token is still good."""
        enrolling.sent = enrolling.agent + b"evil"
        before = host.tree()
        told = enrolling.install(host, IDENTREE_ENROL_TOKEN="one-time")
        assert told.status == 1
        assert hashlib.sha256(enrolling.agent).hexdigest() in told.err
        assert hashlib.sha256(enrolling.sent).hexdigest() in told.err
        assert changes(before, host.tree()) == []
        assert enrolling.tokens

    def test_kept(self, enrolling: Enrolling, host: Host) -> None:
        """When a later step fails the secret is kept, since the token is gone; a second run goes on with it."""
        pam = host.read(PAM)
        host.file(PAM).unlink()
        told = enrolling.install(host, IDENTREE_ENROL_TOKEN="one-time")
        assert told.status == 1
        assert "is kept" in told.err
        assert not host.exists(AGENT)
        assert f"IDENTREE_SHARED_SECRET={'own' * 20}\n" in host.read(CONF).decode()
        host.write(PAM, pam)
        told = enrolling.install(host)
        assert told.status == 0, told.all
        assert "pam_exec.so" in host.read(PAM).decode()


class TestWays:
    """The same with curl, with wget, and with Python alone."""

    @pytest.mark.parametrize("fetcher", WAYS)
    def test_any_character(self, enrolling: Enrolling, tmp_path: Path, fetcher: str) -> None:
        """A secret may have quotes, backslashes and blanks; the agent reads it as it is."""
        enrolling.secret = given = "\"a\\b'c $(id) `id` #%;= " * 2 + '"x"'
        with Host(tmp_path / "host", others(fetcher)) as host:
            before = host.tree()
            told = enrolling.install(host, IDENTREE_SHARED_SECRET="\u00e9" * 32)
            assert (told.status, "printable ASCII" in told.err) == (1, True), told.all
            assert changes(before, host.tree()) == []
            told = enrolling.install(host, IDENTREE_SHARED_SECRET=given)
            assert told.status == 0, told.all
            assert config.parse(host.read(CONF).decode())["IDENTREE_SHARED_SECRET"] == given

    @pytest.mark.parametrize("fetcher", WAYS)
    def test_moved(self, enrolling: Enrolling, tmp_path: Path, fetcher: str) -> None:
        """Downloads may come from elsewhere."""
        enrolling.moved["/download/identree.pyz"] = "/elsewhere/agent"
        with Host(tmp_path / "host", others(fetcher)) as host:
            told = enrolling.install(host, IDENTREE_ENROL_TOKEN="one-time")
        assert told.status == 0, told.all

    @pytest.mark.parametrize("fetcher", WAYS)
    def test_secret_goes_nowhere_else(self, enrolling: Enrolling, tmp_path: Path, fetcher: str) -> None:
        """Neither the secret nor the token follows a server that sends elsewhere."""
        other = ScriptedServer(lambda request: Answer(200, {"server_url": "http://127.0.0.1"}))
        try:
            for path in ("/install-config.json", "/api/enrol"):
                enrolling.moved[path] = f"{other.url}{path}"
            with Host(tmp_path / "host", others(fetcher)) as host:
                before = host.tree()
                told = enrolling.install(host, IDENTREE_SHARED_SECRET=enrolling.secret)
                assert (told.status, "sends us elsewhere" in told.err) == (1, True), told.all
                assert enrolling.install(host, IDENTREE_ENROL_TOKEN="one-time").status == 1
                assert changes(before, host.tree()) == []
            assert other.requests == []
        finally:
            other.stop()

    def test_downloads_from_elsewhere(self, enrolling: Enrolling, host: Host) -> None:
        """With an address of its own for installing, the agent is fetched there, and works with the server."""
        source = Enrolling(enrolling.agent)
        try:
            enrolling.config["install_url"] = source.server.url
            told = enrolling.install(host, IDENTREE_SHARED_SECRET=enrolling.secret)
            assert told.status == 0, told.all
            assert [request.path for request in source.server.requests if "pyz" in request.path]
            assert not [request.path for request in enrolling.server.requests if "pyz" in request.path]
            assert f"IDENTREE_SERVER_URL={enrolling.server.url}\n" in host.read(CONF).decode()
            assert not [request for request in source.server.requests if "x-shared-secret" in request.headers]
        finally:
            source.server.stop()


class TestInterrupted:
    """Somebody ends the script in its middle."""

    def interrupted(self, enrolling: Enrolling, host: Host, path: str) -> Told:
        """A signal while the server takes its time with an answer; the script hears of it when it has that."""
        enrolling.held = path
        enrolling.hold = threading.Event()
        host.write("/etc/install.sh", dist.read(dist.INSTALL))
        result: list[Told] = []
        environment = {"IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true", "IDENTREE_SHARED_SECRET": enrolling.secret}
        command = ("bash", "-c", f"echo $$ >/run/pid; exec bash /etc/install.sh {enrolling.server.url}")
        working = threading.Thread(target=lambda: result.append(host.run(*command, environment=environment)))
        working.start()
        until = time.monotonic() + 60
        while not [request for request in enrolling.server.requests if request.path == path]:
            assert time.monotonic() < until, enrolling.server.requests
            time.sleep(0.05)
        assert host.run("sh", "-c", "kill -TERM $(cat /run/pid)").status == 0
        enrolling.hold.set()
        working.join(SCRIPT_SECONDS)
        host.file("/etc/install.sh").unlink()
        host.file("/run/pid").unlink()
        assert result[0].status == 143, result[0].all
        return result[0]

    def test_at_the_end(self, enrolling: Enrolling, host: Host) -> None:
        """When PAM runs the agent already, the agent stays: without it nobody could use sudo."""
        told = self.interrupted(enrolling, host, "/healthz")
        assert b"pam_exec.so" in host.read(PAM)
        assert host.run(AGENT, "--version").status == 0
        assert host.exists(CONF)
        assert "PAM runs the agent already" in told.err

    def test_at_the_beginning(self, enrolling: Enrolling, host: Host) -> None:
        """While it fetches, nothing has happened yet, and nothing is left."""
        before = host.tree()
        self.interrupted(enrolling, host, "/download/version")
        assert changes(before, host.tree()) == []

    def test_killed(self, place: Place, host: Host) -> None:
        """What one left behind that was killed goes with the next run."""
        host.write("/run/identree-install.ABCDEFGH/secret", b"x" * 32, 0o600)
        host.write(AGENT + ".new-0123", b"half", 0o600)
        assert place.install(host).status == 0
        assert not host.exists("/run/identree-install.ABCDEFGH")
        assert not host.exists(AGENT + ".new-0123")


class TestSudo:
    """sudo itself, on a host that was installed this way."""

    def test_sudo(self, place: Place, host: Host) -> None:
        """sudo asks identree, runs the command when that was approved, and works without identree after it is gone."""
        for path, line in (
            ("/etc/passwd", "zoe:x:4711:4711::/:/bin/bash\n"),
            ("/etc/group", "zoe:x:4711:\n"),
            ("/etc/shadow", "zoe:*:19000::::::\n"),
            ("/etc/sudoers", "Defaults !mail_badpass, !mail_no_user, timestamp_timeout=0\nzoe ALL=(ALL) ALL\n"),
        ):
            with host.file(path).open("a") as file:
                file.write(line)
        zoe = ("setpriv", "--reuid=4711", "--regid=4711", "--clear-groups")
        assert host.run(*zoe, "sudo", "-n", "id", "-u").status == 1, (
            "before, there is a password that zoe does not have"
        )
        assert place.install(host).status == 0
        status, _ = place.post("/dev/seed-session", {"username": "zoe", "hostname": NAME})
        assert status == 201, status
        told = host.run(*zoe, "sudo", "id", "-u", seconds=60)
        assert (told.status, "0" in told.out.splitlines(), "sudo approved" in told.out) == (0, True, True), told.all
        assert place.uninstall(host).status == 0
        assert host.run(*zoe, "sudo", "-n", "id", "-u").status == 1


@dataclass(frozen=True)
class Certifying:
    """A server with HTTPS that gives certificates to hosts."""

    server: SecureServer
    ca: CA

    def prepare(self, host: Host, days: int) -> None:
        """:param host: gets a certificate that ends in so many days."""
        certificate, key = self.ca.issue(NAME, "clientAuth", days)
        host.write("/etc/hosts", f"127.0.0.1 localhost {NAME} {SERVER_NAME}\n".encode())
        host.write("/etc/server-ca.pem", self.ca.certificate.read_bytes())
        host.write(CLIENT_CERT, certificate.read_bytes())
        host.write(CLIENT_KEY, key.read_bytes(), 0o600)
        host.write(CONF, CERTIFIED.encode(), 0o600)

    def install(self, host: Host, secret: str = SHARED_SECRET) -> Told:
        environment = {
            "IDENTREE_CA_CERT": "/etc/server-ca.pem",
            **({"IDENTREE_SHARED_SECRET": secret} if secret else {}),
        }
        address = self.server.settings["IDENTREE_EXTERNAL_URL"]
        return host.run("bash", "-s", address, stdin=dist.read(dist.INSTALL), environment=environment)


def certificate(host: Host) -> certificates.Certificate:
    return certificates.read_pem(host.run("cat", CLIENT_CERT).out)[0]


@pytest.fixture(scope="class")
def certifying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certifying]:
    directory, ca = tmp_path_factory.mktemp("certifying"), CA(tmp_path_factory.mktemp("ca"))
    agent = directory / "identree.pyz"
    shutil.copy(build_agent(), agent)
    settings = {
        **ca.settings(),
        # nobody signs in
        "IDENTREE_OIDC_ISSUER_URL": "http://127.0.0.1:9",
        "IDENTREE_OIDC_CLIENT_ID": "identree",
        "IDENTREE_OIDC_CLIENT_SECRET": "nobody asks for it",
        "IDENTREE_AGENT_FILE": str(agent),
        "IDENTREE_LDAP_PROVISION_ENABLED": "true",
        "IDENTREE_LDAP_BASE_DN": BASE_DN,
        "IDENTREE_LDAP_EXTERNAL_URL": f"ldaps://{SERVER_NAME}:636",
    }
    server = SecureServer(directory, settings)
    server.settings["IDENTREE_EXTERNAL_URL"] = f"https://{SERVER_NAME}:{server.port}"
    with server:
        yield Certifying(server, ca)


class TestCertificate:
    """The host has one already."""

    def test_ended(self, certifying: Certifying, host: Host) -> None:
        """A host whose certificate has ended, so that the server breaks its connections off, is well afterwards."""
        certifying.prepare(host, days=-1)
        before = certificate(host)
        told = certifying.install(host)
        assert told.status == 0, told.all
        assert f"certificate renewed for {NAME}" in told.out
        assert before.not_after < time.time() < certificate(host).not_after
        assert "ok   server.secret" in host.run(AGENT, "doctor").all

    def test_good(self, certifying: Certifying, host: Host) -> None:
        """One that is good for long is renewed as well, by the certificate alone where that is all there is."""
        certifying.prepare(host, days=3000)
        before = certificate(host)
        told = certifying.install(host, secret="")
        assert told.status == 0, told.all
        assert certificate(host).serial != before.serial

    def test_not_given(self, place: Place, host: Host) -> None:
        """A server that gives none does not keep the agent from being installed."""
        host.write(CONF, CERTIFIED.encode(), 0o600)
        told = place.install(host)
        assert told.status == 0, told.all
        assert "IDENTREE_LDAP_PROVISION_ENABLED" in told.err
        assert "this host's certificate was not renewed" in told.err
        assert host.read(PAM) != DEFAULT_PAM

    def test_from_elsewhere(self, place: Place, host: Host) -> None:
        """Others' certificates are none of the installer's business."""
        host.write(CONF, CERTIFIED.replace("/etc/identree/client.", "/etc/pki/host.").encode(), 0o600)
        told = place.install(host)
        assert told.status == 0, told.all
        assert "renew" not in told.all


class TestUninstallWithoutAgent:
    """The agent is gone or broken: sudo has to work all the same."""

    def prepare(self, place: Place, host: Host) -> None:
        assert place.install(host).status == 0
        host.file(AGENT).unlink()

    def test_restored(self, place: Place, host: Host) -> None:
        """The PAM file is as it was, timers and files are gone."""
        self.prepare(place, host)
        told = place.uninstall(host)
        assert told.status == 0, told.all
        assert host.read(PAM) == DEFAULT_PAM
        assert not any(host.exists(path) for path in (AGENT, "/etc/identree", HASH_FILE, "/etc/cron.d/identree-rotate"))
        assert not host.exists(PAM + ".identree-new")

    def test_changed_since(self, place: Place, host: Host) -> None:
        """What others added since stays; only our rules go."""
        self.prepare(place, host)
        host.write(PAM, host.read(PAM) + b"session optional pam_umask.so\n")
        host.file(PAM + ".identree.bak").unlink(missing_ok=True)
        told = place.uninstall(host)
        assert told.status == 0, told.all
        assert b"identree" not in host.read(PAM)
        assert b"pam_umask.so" in host.read(PAM)
        assert b"common-auth" in host.read(PAM)

    def test_all_of_it_ours(self, place: Place, host: Host) -> None:
        """A stack that was identree's alone gets the system's back, never none."""
        host.write(PAM, OLD_LINE + b"# identree\naccount include common-account\n")
        told = place.uninstall(host)
        assert told.status == 0, told.all
        assert host.read(PAM) == b"@include common-auth\naccount include common-account\n"

    def test_nothing_to_fall_back_on(self, place: Place, host: Host) -> None:
        """Where nobody knows how the system asks, the file stays as it is, and so does the agent that it runs."""
        host.file("/etc/pam.d/common-auth").unlink()
        host.write(PAM, OLD_LINE)
        host.write(AGENT, b"broken", 0o755)
        told = place.uninstall(host)
        assert told.status == 1
        assert host.read(PAM) == OLD_LINE
        assert host.exists(AGENT)
        assert "stays as it is" in told.err

    def test_continued_rule(self, place: Place, host: Host) -> None:
        """A rule that goes on in the next line is taken out whole."""
        host.write(
            PAM, b"auth [success=done default=die] \\\n pam_exec.so \\\n /usr/local/bin/identree\n" + DEFAULT_PAM
        )
        told = place.uninstall(host)
        assert told.status == 0, told.all
        assert host.read(PAM) == DEFAULT_PAM

    def test_files_without_pam(self, place: Place, host: Host) -> None:
        """The agent is not removed while PAM runs it."""
        assert place.install(host).status == 0
        before = host.tree()
        told = place.uninstall(host, "?pam=false")
        assert told.status == 1
        assert "nobody could use sudo" in told.err
        assert PAM in told.err
        assert [name for name in changes(before, host.tree()) if not name.startswith("/run")] == []

    def test_pam_without_files(self, place: Place, host: Host) -> None:
        """sudo no longer asks; the agent and its configuration stay."""
        assert place.install(host).status == 0
        told = place.uninstall(host, "?files=false")
        assert told.status == 0, told.all
        assert host.read(PAM) == DEFAULT_PAM
        assert host.exists(AGENT)
        assert host.exists(CONF)

    def test_nothing_there(self, place: Place, host: Host) -> None:
        """On a host that never had identree nothing changes, and that is fine."""
        before = host.tree()
        told = place.uninstall(host)
        assert told.status == 0, told.all
        assert changes(before, host.tree()) == []


class TestScripts:
    def test_shellcheck(self, tmp_path: Path) -> None:
        """shellcheck has nothing to say."""
        for name in (dist.INSTALL, dist.UNINSTALL):
            (tmp_path / name).write_bytes(dist.read(name))
            done = subprocess.run(["shellcheck", tmp_path / name], capture_output=True, text=True)
            assert done.stdout == ""
