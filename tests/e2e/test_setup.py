"""
``identree setup`` on a whole host: real sudo, PAM, pam-auth-update, update-ca-certificates, augenrules and sssctl, in a
mount namespace where ``/etc``, ``/var/lib``, ``/usr/local``, ``/run`` and debconf's memory are the test's own.

Afterwards the file system is compared with what it was, file by file.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.browser import Browser
from tests.e2e.directory import settings as directory_settings
from tests.e2e.provider import Provider
from tests.e2e.server import DYING_WITH_US, SHARED_SECRET, Server, free_port
from tests.e2e.sudohost import SudoProcess
from tests.e2e.tls import CA, SERVER_NAME, SecureServer
from tests.e2e.world import ADMIN, CODE, HOSTNAME, URL, build_agent, client_conf

pytestmark = pytest.mark.e2e

USER, USER_ID = "erin-of-setup", 64242
AGENT = "/usr/local/bin/identree"
# What is compared, without what sudo remembers of people and the list of changes that Java has not read yet.
COMPARED = ("/etc", "/var/lib", "/usr/local", "/run")
TREE = """
import hashlib, json, os, sys
found = {}
for top in sys.argv[1:]:
    for directory, directories, files in os.walk(top):
        directories[:] = [name for name in directories if os.path.join(directory, name) not in
                          ("/run/sudo", "/var/lib/sudo", "/var/lib/ca-certificates-java")]
        for name in directories + files:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            if os.path.islink(path):
                said = os.readlink(path)
            elif os.path.isfile(path):
                said = hashlib.sha256(open(path, "rb").read()).hexdigest()
            else:
                said = ""
            found[path] = [oct(info.st_mode), info.st_uid, info.st_gid, said]
json.dump(found, sys.stdout)
"""
RED_HAT = {
    "sudo": """\
#%PAM-1.0
auth       include      system-auth
account    include      system-auth
password   include      system-auth
session    include      system-auth
""",
    "sudo-i": """\
#%PAM-1.0
auth       include      sudo
account    include      sudo
password   include      sudo
session    optional     pam_keyinit.so force revoke
session    include      sudo
""",
    "system-auth": """\
auth        required      pam_env.so
auth        sufficient    pam_unix.so try_first_pass
auth        required      pam_deny.so
account     required      pam_unix.so
password    requisite     pam_deny.so
session     required      pam_limits.so
session     required      pam_unix.so
""",
}


class Terminal(SudoProcess):
    """A person's terminal on the host in the namespace."""

    def __init__(self, command: list[str]) -> None:
        self.screen = ""
        self.status: int | None = None
        self.columns = 100
        self.pid, self._terminal = os.forkpty()
        if self.pid == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, self.columns, 0, 0))
                os.fchown(0, USER_ID, USER_ID)
                os.execve(command[0], command, {"PATH": "/usr/bin:/bin", "TERM": "xterm", "LANG": "C.UTF-8"})
            finally:
                os._exit(127)


class Host:
    """:param directory: an empty one, for everything private."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._holder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Host:
        if os.geteuid() != 0:
            raise AssertionError("a host of its own needs a mount namespace: run these tests as root")
        # Copies, because other tests change this machine's own at the same time.
        etc, var, local = (self._directory / name for name in ("etc", "var-lib", "usr-local"))
        for path in (var, local / "bin", local / "share/ca-certificates"):
            path.mkdir(mode=0o755, parents=True)
        subprocess.run(["cp", "-a", "/etc", etc], check=True)
        for name in ("pam", "sss"):
            subprocess.run(["cp", "-a", f"/var/lib/{name}", var], check=True)
        subprocess.run(["cp", "-a", "/var/cache/debconf", self._directory], check=True)
        for name in ("identree", "sudoers.d", "cron.d"):
            shutil.rmtree(etc / name, ignore_errors=True)
        for name in ("sudoers.d", "cron.d"):
            (etc / name).mkdir(mode=0o755)
        (etc / "sssd/sssd.conf").unlink(missing_ok=True)
        for name in ("sudo", "sudo-i"):
            assert "identree" not in (etc / "pam.d" / name).read_text(), "these tests need a plain machine"
        places = {"/etc": etc, "/var/lib": var, "/usr/local": local, "/var/cache/debconf": self._directory / "debconf"}
        commands = ["mount --make-rprivate /", *(f"mount --bind {mine} {path}" for path, mine in places.items())]
        commands += [
            "mount -t tmpfs -o mode=755 tmpfs /run",
            "mkdir -m 711 /run/sudo",
            "mkdir -m 700 /run/sudo/ts",
            "mkdir -m 1777 /run/lock",
        ]
        script = "; ".join([*commands, "echo ready", "exec sleep infinity"])
        self._holder = subprocess.Popen(
            [*DYING_WITH_US, "unshare", "--mount", "sh", "-ec", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            self._holder.kill()
            raise AssertionError("the namespace did not come to be: is this a container without CAP_SYS_ADMIN?")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait(10)
            assert self._holder.stdout is not None
            self._holder.stdout.close()

    def _enter(self, *command: str) -> list[str]:
        assert self._holder is not None
        return ["/usr/bin/nsenter", f"--target={self._holder.pid}", "--mount", "--wd=/", *command]

    def run(self, *command: str, stdin: str = "") -> str:
        """What a command of root's prints. :raise AssertionError: it fails."""
        code, said = self.try_(*command, stdin=stdin)
        assert code == 0, f"{' '.join(command)}: {code}\n{said}"
        return said

    def try_(self, *command: str, stdin: str = "") -> tuple[int, str]:
        done = subprocess.run(
            self._enter(*command),
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        self.run("sh", "-ec", f"mkdir -p $(dirname {path}); cat > {path}; chmod {mode:o} {path}", stdin=text)

    def tree(self) -> dict[str, list[object]]:
        found: dict[str, list[object]] = json.loads(self.run("/usr/bin/python3", "-c", TREE, *COMPARED))
        return found

    def terminal(self, *command: str) -> Terminal:
        """The person types a command."""
        person = ["setpriv", f"--reuid={USER_ID}", f"--regid={USER_ID}", "--clear-groups"]
        return Terminal(self._enter(*person, *command))

    def prepare(self, configuration: str) -> None:
        """The person, their sudo rule, and the agent as an installer leaves it."""
        self.run("useradd", "--uid", str(USER_ID), "--user-group", "--no-create-home", "--shell", "/bin/sh", USER)
        rules = f"Defaults timestamp_timeout=0, !mail_always, !mail_badpass, !mail_no_user\n{USER} ALL=(ALL) ALL\n"
        self.write("/etc/sudoers.d/zz-test", rules, 0o440)
        self.run("sh", "-c", f"cp {build_agent()} {AGENT} && chown root:root {AGENT} && chmod 755 {AGENT}")
        self.write("/etc/identree/client.conf", configuration, 0o600)

    def restores(self, before: dict[str, list[object]]) -> None:
        """Nothing differs from what was."""
        after = self.tree()
        differing = {
            path: (before.get(path), after.get(path))
            for path in sorted({*before, *after})
            if before.get(path) != after.get(path)
        }
        assert not differing


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path / "host") as made:
        yield made


@pytest.fixture
def audit() -> Iterator[bool]:
    """Whether the kernel takes audit rules from us; its state is put back afterwards."""
    if shutil.which("auditctl") is None:
        yield False
        return
    done = subprocess.run(["auditctl", "-s"], check=False, capture_output=True, text=True)
    listed = subprocess.run(["auditctl", "-l"], check=False, capture_output=True, text=True)
    limit = re.search(r"^backlog_limit (\d+)$", done.stdout, re.MULTILINE)
    usable = done.returncode == 0 and limit is not None and "enabled 2" not in done.stdout
    # somebody's rules are not ours to reload
    usable = usable and "No rules" in listed.stdout
    yield usable
    if usable and limit is not None:
        subprocess.run(["auditctl", "-D"], check=False, capture_output=True)
        subprocess.run(["auditctl", "-b", limit[1]], check=False, capture_output=True)


def approved(terminal: Terminal, browser: Browser) -> None:
    """The person approves in a browser what the terminal shows."""
    terminal.expect_match(CODE.pattern + r"(?s:.*)" + CODE.pattern)
    url = URL.search(terminal.screen)
    assert url is not None
    with browser.person() as who:
        who.open(url[0])
        who.sign_in(USER)
        who.shows("#approve").click()
        assert terminal.wait() == 0, terminal.screen


@pytest.mark.parametrize("layout", ["debian", "red-hat"])
def test_there_and_back(host: Host, audit: bool, tmp_path: Path, layout: str) -> None:
    """Set-up with everything, sudo with one approval and no password, removal without a trace."""
    port, ldap = free_port(), free_port()
    people = {USER: ["users"], ADMIN: ["users", "admins"]}
    provider = Provider(free_port(), [f"http://127.0.0.1:{port}/callback"], people)
    directory = directory_settings(tmp_path, None, ldap, IDENTREE_LDAP_PROVISION_ENABLED="true")
    with provider, Server(tmp_path, {**directory, **provider.settings}, port) as server, Browser() as browser:
        # what sudo's use leaves is not the set-up's
        host.prepare(client_conf(server.url, IDENTREE_BREAKGLASS_ENABLED="false"))
        if layout == "red-hat":
            for name, text in RED_HAT.items():
                host.write(f"/etc/pam.d/{name}", text)
        before = host.tree()
        steps = ["--sssd", "--timers", *(["--auditd"] if audit else [])]
        host.run(AGENT, "setup", *steps)
        said = host.run("cat", "/etc/pam.d/sudo", "/etc/nsswitch.conf", "/etc/sssd/sssd.conf")
        assert f"pam_exec.so    quiet stdout {AGENT}\n" in said
        assert "ldap_uri = ldap://" in said
        if audit:
            assert "identree-pam-config" in host.run("auditctl", "-l")

        for command, shown in (
            (["/usr/bin/sudo", "id", "-u"], "0\r\n"),
            (["/usr/bin/sudo", "-i", "id", "-u"], "0\r\n"),
        ):
            terminal = host.terminal(*command)
            try:
                approved(terminal, browser)
            finally:
                terminal.close()
            assert terminal.screen.endswith(shown), terminal.screen
            assert len(set(CODE.findall(terminal.screen))) == 1, "one request"
            assert not re.search(r"(?i)password", terminal.screen)

        twice = host.tree()
        host.run(AGENT, "setup", *steps)
        now = host.tree()
        assert {path for path in {*twice, *now} if twice.get(path) != now.get(path)} == set()

        host.run(AGENT, "setup", "--remove", "--keep-files")
        host.restores(before)
        if audit:
            assert "identree" not in host.run("auditctl", "-l")
        code, text = host.try_("sh", "-c", "cat /etc/pam.d/sudo")
        assert (code, "identree" in text) == (0, False)

        host.run(AGENT, "setup", *steps)
        host.run(AGENT, "setup", "--remove")
        gone = {path for path in before if "/identree" in path}
        host.restores({path: value for path, value in before.items() if path not in gone})


def test_certificates(host: Host, tmp_path: Path) -> None:
    """
    With mTLS the host gets a certificate, sssd a configuration that its own checker accepts, and for HTTPS the CA alone
    is trusted because a handshake with it alone came about; all of it goes again.
    """
    ca = CA(tmp_path / "ca")
    port, ldap, ldaps = free_port(), free_port(), free_port()
    more = directory_settings(
        tmp_path,
        None,
        ldap,
        IDENTREE_LDAP_PROVISION_ENABLED="true",
        IDENTREE_LDAP_TLS_LISTEN_ADDR=f"127.0.0.1:{ldaps}",
        IDENTREE_EXTERNAL_URL=f"https://{SERVER_NAME}:{port}",
        IDENTREE_LDAP_EXTERNAL_URL=f"ldaps://{SERVER_NAME}:{ldaps}",
        IDENTREE_MTLS_ENABLED="true",
        **ca.settings(),
    )
    provider = Provider(free_port(), [f"http://127.0.0.1:{port}/callback"], {USER: ["users"]})
    with provider, SecureServer(tmp_path, {**provider.settings, **more}, port):
        url = f"https://{SERVER_NAME}:{port}"
        host.prepare(
            f"IDENTREE_SERVER_URL={url}\nIDENTREE_SHARED_SECRET={SHARED_SECRET}\nIDENTREE_HOSTNAME={HOSTNAME}\n"
        )
        host.write("/etc/hosts", f"127.0.0.1 localhost {SERVER_NAME}\n")
        host.write("/usr/local/share/ca-certificates/test.crt", ca.certificate.read_text())
        host.run("update-ca-certificates")
        before = host.tree()
        said = host.run(AGENT, "setup", "--sssd")
        conf = host.run("cat", "/etc/identree/client.conf")
        assert "IDENTREE_CLIENT_CERT=/etc/identree/client.crt\n" in conf
        assert "IDENTREE_CA_CERT=/etc/identree/ca.crt\n" in conf, said
        sssd = host.run("cat", "/etc/sssd/sssd.conf")
        assert "ldap_tls_reqcert = demand\n" in sssd
        assert f"ldap_uri = ldaps://{SERVER_NAME}:{ldaps}\n" in sssd
        if shutil.which("sssctl"):
            assert "Issues identified by validators: 0" in host.run("sssctl", "config-check")
        # the next call is made with the certificate
        host.run(AGENT, "setup", "--sssd")
        # openssl agrees that the chain holds
        host.run("openssl", "verify", "-CAfile", "/etc/identree/ca.crt", "/etc/identree/client.crt")
        host.run(AGENT, "setup", "--remove", "--keep-files")
        host.restores(before)


def test_terminated(host: Host, tmp_path: Path) -> None:
    """Killed while it waits for the server, it has changed nothing."""
    port = free_port()
    provider = Provider(free_port(), [f"http://127.0.0.1:{port}/callback"], {USER: ["users"]})
    with provider, Server(tmp_path, provider.settings, port) as server:
        host.prepare(client_conf(server.url))
        before = host.tree()
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                subprocess.run(host._enter(AGENT, "setup"), check=False, capture_output=True, timeout=3)
        finally:
            with suppress(ProcessLookupError):
                os.kill(server.process.pid, signal.SIGCONT)
        host.restores(before)
