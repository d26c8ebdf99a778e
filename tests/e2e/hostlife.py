"""
A host from its enrolment to its removal: a machine of its own with a system log, the server over HTTPS, people at their
browsers, and everything that was said anywhere meanwhile.
"""

from __future__ import annotations

import gzip
import hmac
import json
import os
import secrets
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, ClassVar

from playwright.sync_api import expect

from tests.e2e.browser import SIZES, Browser, Person
from tests.e2e.provider import CLIENT_SECRET, Provider
from tests.e2e.server import SHARED_SECRET, free_port
from tests.e2e.test_install import AGENT, CONF, NAME, PRIVATE, Host, Told
from tests.e2e.test_setup import USER, USER_ID, Terminal
from tests.e2e.tls import CA, SecureServer
from tests.e2e.wire import Answer, Visitor, ask
from tests.e2e.world import ADMIN, build_agent

# Chromium resolves this name by itself.
SERVER_NAME = "localhost"
# Where the host has the certificate of the authority, before it has anything of identree.
CA_FILE = "/etc/ssl/identree-test-ca.crt"
SECONDS = 60.0
ESCROW = {
    "IDENTREE_ESCROW_BACKEND": "local",
    "IDENTREE_ESCROW_ENCRYPTION_KEY": "e2e-escrow-encryption-key-0123456789abcdef",
    "IDENTREE_ESCROW_HKDF_SALT": "5a" * 16,
}
# What sudo remembers of people is its own.
SUDO_MEMORY = ("/run/sudo", "/var/lib/sudo")


class SystemLog:
    """
    ``/dev/log`` of the host.

    :param path: of the socket; shorter than 100 bytes. :ivar lines: what was sent there.
    """

    def __init__(self, path: Path) -> None:
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o666)
        self._socket.settimeout(0.2)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._socket.close()

    def _take(self) -> None:
        while not self._ending.is_set():
            with suppress(TimeoutError):
                self.lines.append(self._socket.recv(65536).decode("utf-8", "replace"))


class Arguments:
    """
    The command lines of all processes of this machine, looked at again and again.

    A program that ends between two looks is missed; what waits for a network is not.
    """

    PAUSE_SECONDS = 0.004

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """All that there were, one a line."""
        return b"\n".join(self._seen.copy()).replace(b"\0", b" ").decode("utf-8", "replace")

    def close(self) -> None:
        self._ending.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ending.wait(self.PAUSE_SECONDS):
            for name in os.listdir("/proc"):
                if name.isdigit():
                    # it may be gone by now
                    with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                        self._seen.add(file.read())


class LivingHost(Host):
    """A host with a system log and a person who may use sudo. :ivar log: what its programs told the log."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._place = directory
        self._terminals: list[Terminal] = []
        self.log = SystemLog(directory / "syslog")

    def __enter__(self) -> LivingHost:
        super().__enter__()
        dev = self._place / "dev"
        commands = [f"mkdir {dev}", f"mount -t tmpfs -o mode=755 tmpfs {dev}", f"mkdir {dev}/pts {dev}/shm"]
        commands += [f"mount --bind /dev/pts {dev}/pts", f"chmod 1777 {dev}/shm"]
        commands += [f"ln -s /proc/self/fd {dev}/fd", f"ln -s pts/ptmx {dev}/ptmx"]
        for name in ("null", "zero", "full", "random", "urandom", "tty"):
            commands.append(f"touch {dev}/{name} && mount --bind /dev/{name} {dev}/{name}")
        commands += [f"touch {dev}/log && mount --bind {self._place}/syslog {dev}/log", f"mount --rbind {dev} /dev"]
        made = self.run("sh", "-ec", "\n".join(commands))
        assert made.status == 0, made.all
        for path, line in (
            ("/etc/passwd", f"{USER}:x:{USER_ID}:{USER_ID}::/:/bin/bash\n"),
            ("/etc/group", f"{USER}:x:{USER_ID}:\n"),
            ("/etc/shadow", f"{USER}:*:19000::::::\n"),
            ("/etc/sudoers", f"Defaults !mail_badpass, !mail_no_user, timestamp_timeout=0\n{USER} ALL=(ALL) ALL\n"),
        ):
            with self.file(path).open("a") as file:
                file.write(line)
        return self

    def __exit__(self, *exc: object) -> None:
        for terminal in self._terminals:
            terminal.close()
        super().__exit__(*exc)
        self.log.close()

    @property
    def private(self) -> tuple[Path, ...]:
        """Where the directories of this host really are."""
        return tuple(self.file(path) for path in PRIVATE)

    @property
    def screens(self) -> str:
        """What all terminals have shown."""
        return "\n".join(terminal.screen for terminal in self._terminals)

    def sudo(self) -> Terminal:
        """The person types ``sudo id -u`` at a terminal."""
        person = ("setpriv", f"--reuid={USER_ID}", f"--regid={USER_ID}", "--clear-groups")
        return self._terminal(*person, "/usr/bin/sudo", "id", "-u")

    def opens(self, password: str) -> bool:
        """Whether root is told at a terminal that this is the break-glass password."""
        terminal = self._terminal(AGENT, "verify-breakglass")
        terminal.expect("password: ", SECONDS)
        terminal.type(password + "\r")
        right = terminal.wait(SECONDS) == 0
        assert f"the password is {'right' if right else 'wrong'}" in terminal.screen
        return right

    def cron(self, command: str) -> Told:
        """Run a line of the cron file as cron does. :param command: of the agent, by which the line is found."""
        lines = self.read("/etc/cron.d/identree-rotate").decode().splitlines()
        [line] = [line for line in lines if f"{AGENT} {command}" in line]
        job = line.split(maxsplit=6)[6]
        return self.run("env", "-i", "PATH=/usr/bin:/bin", "SHELL=/bin/sh", "HOME=/root", "/bin/sh", "-c", job)

    def _terminal(self, *command: str) -> Terminal:
        enter = ("/usr/bin/nsenter", f"--target={self._inside}", "--mount", "--uts", "--pid", "--wd=/")
        terminal = Terminal([*enter, *command])
        self._terminals.append(terminal)
        return terminal


class TrustingBrowser(Browser):
    """Takes the server's certificate, whose authority only the host knows."""

    def person(
        self, *, size: str = "desktop", scheme: str = "light", language: str = "en", scripts: bool = True
    ) -> Person:
        assert self._chromium is not None
        context = self._chromium.new_context(
            viewport=SIZES[size], locale="en-US", java_script_enabled=scripts, ignore_https_errors=True
        )
        return Person(context, f"{size}-{scheme}-{language}")


@dataclass
class Life:
    """
    :ivar directory: of the server. :ivar url: of it, as everybody but its operator calls it.
    :ivar secrets: what must not stand where others can read it, and what it is.
    :ivar said: what programs printed; :ivar arguments: what processes were started with.
    """

    directory: Path
    url: str
    server: SecureServer
    host: LivingHost
    browser: Browser
    arguments: Arguments
    secrets: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def piped(self, path: str, *arguments: str, environment: dict[str, str] | None = None) -> Told:
        """On the host: ``curl URL/PATH | bash``, as root."""
        fetch = f"curl --cacert {CA_FILE} -fsS '{self.url}{path}'"
        told = self.host.run(
            "bash", "-c", f"set -o pipefail; {fetch} | bash -s {' '.join(arguments)}", environment=environment
        )
        self.said.append(told.all)
        return told

    @contextmanager
    def hosts_page(self) -> Iterator[Person]:
        """An administrator signs in and looks at the hosts."""
        with self.browser.person() as who:
            who.open(f"{self.url}/admin/hosts")
            who.sign_in(ADMIN)
            who.shows("#list-title, [data-test=no-hosts]")
            cookie = who.cookie("pam_session")
            assert cookie is not None
            self.secrets[str(cookie["value"])] = "an administrator's session"
            yield who

    def reveal(self, reason: str) -> str:
        """An administrator has the password shown."""
        with self.hosts_page() as who:
            who.page.locator(f'[data-reveal="{NAME}"]').click()
            who.page.locator("#reveal-reason").fill(reason)
            who.page.locator("[data-test=reveal-now]").click()
            shown = who.page.locator("[data-password]")
            expect(shown).not_to_be_empty()
            password = shown.inner_text()
        self.secrets[password] = f"the password shown because of {reason}"
        return password

    def hash(self) -> bytes:
        return self.host.read("/etc/identree-breakglass")

    def open_files(self) -> Iterator[Path]:
        """Files of server and host that everybody may read."""
        for top in (self.directory, *self.host.private):
            for path in top.rglob("*"):
                info = path.lstat()
                if stat.S_ISREG(info.st_mode) and info.st_mode & 0o004:
                    yield path


@contextmanager
def life(directory: Path) -> Iterator[Life]:
    """A server, an administrator, a person, and a host that has nothing of identree yet."""
    port = free_port()
    url = f"https://{SERVER_NAME}:{port}"
    ca = CA(directory / "ca")
    certificate, key = ca.issue(SERVER_NAME)
    place, machine = directory / "server", directory / "host"
    place.mkdir()
    machine.mkdir()
    agent = place / "identree.pyz"
    agent.write_bytes(build_agent().read_bytes())
    # no other test's, whose processes we look at as well
    own = {
        key: secrets.token_hex(24)
        for key in ("IDENTREE_SHARED_SECRET", "IDENTREE_SESSION_SECRET", "IDENTREE_ESCROW_ENCRYPTION_KEY")
    }
    people = {USER: ["users"], ADMIN: ["users", "admins"]}
    with ExitStack() as stack:
        provider = stack.enter_context(Provider(free_port(), [f"{url}/callback"], people))
        settings = {
            **provider.settings,
            "IDENTREE_EXTERNAL_URL": url,
            "IDENTREE_TLS_CERT_FILE": str(certificate),
            "IDENTREE_TLS_KEY_FILE": str(key),
            "IDENTREE_HOST_REGISTRY": "on",
            **ESCROW,
            **own,
            "IDENTREE_AGENT_FILE": str(agent),
            "IDENTREE_INSTALL_SIGNING_KEY": str(place / "install-signing.key"),
            "IDENTREE_INSTALL_VERIFY_KEY": str(place / "install-signing.pub"),
        }
        server = SecureServer(place, settings, port)
        stack.enter_context(server)
        host = stack.enter_context(LivingHost(machine))
        host.write(CA_FILE, ca.certificate.read_bytes())
        browser = stack.enter_context(TrustingBrowser())
        arguments = Arguments()
        stack.callback(arguments.close)
        made = Life(place, url, server, host, browser, arguments)
        made.secrets |= {own[key]: key for key in own}
        made.secrets[CLIENT_SECRET] = "IDENTREE_OIDC_CLIENT_SECRET"
        yield made


def host_secret(host: Host) -> str:
    """What the host authenticates with."""
    lines = host.read(CONF).decode().splitlines()
    [secret] = [line.partition("=")[2] for line in lines if line.startswith("IDENTREE_SHARED_SECRET=")]
    return secret


class Admin(Visitor):
    """An administrator who signed in, and the calls of pages' scripts."""

    def __init__(self) -> None:
        super().__init__(ADMIN, "admin")

    def call(self, port: int, path: str, value: object) -> Answer:
        csrf = {"X-CSRF-Token": self._csrf["csrf_token"], "X-CSRF-Ts": self._csrf["csrf_ts"]}
        return ask(port, "POST", path, {**self.headers, **csrf, "Content-Type": "application/json"}, json.dumps(value))


class DeployedAgent:
    """
    What the agent that is installed on hosts today sends, byte by byte where it matters, and how it judges an answer
    (spec/host-agent sections 4 to 6, 9). It keeps its connection, and takes names as the kernel has them.

    :param kernel_name: of its host.
    """

    HEADERS: ClassVar[Mapping[str, str]] = {"User-Agent": "Go-http-client/1.1", "Accept-Encoding": "gzip"}

    def __init__(self, port: int, kernel_name: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        self._kernel_name = kernel_name
        self.hostname = kernel_name.lower().removesuffix(".")

    def close(self) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, value: object = None, headers: Mapping[str, str] | None = None) -> Answer:
        sent = {**self.HEADERS, "X-Shared-Secret": SHARED_SECRET, **(headers or {})}
        if value is not None:
            sent["Content-Type"] = "application/json"
        self._connection.request(method, path, None if value is None else json.dumps(value), sent)
        response = self._connection.getresponse()
        content = response.read()
        if response.headers["Content-Encoding"] == "gzip":
            content = gzip.decompress(content)
        return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, content)

    def create(self, username: str) -> dict[str, Any]:
        answer = self.ask("POST", "/api/challenge", {"username": username, "hostname": self.hostname})
        assert answer.status in (200, 201), answer
        made: dict[str, Any] = answer.json
        return made

    def poll(self, made: Mapping[str, Any]) -> dict[str, Any]:
        answer = self.ask("GET", f"/api/challenge/{made['challenge_id']}?hostname={self.hostname}")
        assert answer.status == 200, answer
        said: dict[str, Any] = answer.json
        return said

    def believes(self, token: str, made: Mapping[str, Any], status: str, username: str) -> bool:
        """:param made: the answer to the creation, whose instants count."""
        message = "".join(f"{len(part)}:{part}" for part in (made["challenge_id"], status, username))
        for prefix, key in (("", "rotate_breakglass_before"), ("r", "revoke_tokens_before")):
            if made.get(key):
                message += f"{prefix}{len(made[key])}:{made[key]}"
        return token == hmac.new(SHARED_SECRET.encode(), message.encode(), "sha256").hexdigest()

    def escrow(self, password: str, stamp: int) -> int:
        """The status of the answer."""
        key = hmac.new(SHARED_SECRET.encode(), b"escrow", "sha256").digest()
        token = hmac.new(key, f"escrow:{self._kernel_name}:{stamp}".encode(), "sha256").hexdigest()
        headers = {"X-Escrow-Ts": str(stamp), "X-Escrow-Token": token}
        value = {"hostname": self._kernel_name, "password": password}
        return self.ask("POST", "/api/breakglass/escrow", value, headers).status
