"""
The built archive under every Python that a managed host may have, started by somebody who means harm.

Each interpreter must be here: a version that nobody ran is a version that does not work. ``make test`` fetches them.
"""

from __future__ import annotations

import os
import pty
import shutil
import socket
import stat
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import identree
from identree.agent.bcrypt import Bcrypt
from tests.agent.harness import Helper, archive, interpreters
from tests.agent.scripted import (
    SECRET,
    Answer,
    Request,
    Script,
    ScriptedServer,
    approved,
    created,
    denied,
    in_turn,
    pending,
)
from tests.agent.setuphost import DEBIAN, SOLE

PASSWORD = "correct-horse"
PATIENCE_SECONDS = 120.0

# Modules that an interpreter which is not isolated would take from the working directory or from PYTHONPATH.
SHADOWED = (
    "os json hmac socket ssl select fcntl termios syslog resource ctypes subprocess identree sitecustomize".split()
)
# Programs that a search in PATH would find.
PROGRAMS = (
    "sh python python3 identree openssl systemctl augenrules auditctl sssctl authselect ldconfig gcc logger".split()
)


class Trap:
    """
    A directory where everything that is loaded or started leaves a mark.

    :ivar environ: an environment that leads there by every name that Python, the C library, OpenSSL, a shell or the
        agent itself may look at.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="identree-trap-"))
        self.marks = self.path / "marks"
        self.marks.mkdir(mode=0o777)
        for name in SHADOWED:
            (self.path / f"{name}.py").write_text(f"open({str(self.marks / ('module-' + name))!r}, 'w')\n")
        for name in PROGRAMS:
            program = self.path / name
            program.write_text(f"#!/bin/sh\n: > {self.marks}/program-{name}\n")
            program.chmod(0o755)
        (self.path / "env.sh").write_text(f": > {self.marks}/shell\n")
        (self.path / "openssl.cnf").write_text("openssl_conf = nonsense\n[nonsense]\nproviders = nowhere\n")
        (self.path / "hosts").write_text("id id.attacker.example\n")
        self.server = ScriptedServer(lambda request: approved())
        here = str(self.path)
        self.environ = {
            "PATH": here,
            "HOME": here,
            "TMPDIR": str(self.marks),
            "IFS": "/",
            "ENV": f"{here}/env.sh",
            "BASH_ENV": f"{here}/env.sh",
            "PYTHONPATH": here,
            "PYTHONHOME": here,
            "PYTHONSTARTUP": f"{here}/os.py",
            "PYTHONINSPECT": "1",
            "PYTHONWARNINGS": "error",
            "PYTHONOPTIMIZE": "2",
            "PYTHONIOENCODING": "utf-16",
            "PYTHONPYCACHEPREFIX": str(self.marks),
            "PYTHONBREAKPOINT": "os.abort",
            "PYTHONPLATLIBDIR": here,
            "PYTHONUSERBASE": here,
            "LD_LIBRARY_PATH": here,
            "LD_BIND_NOW": "1",
            "LOCPATH": here,
            "GCONV_PATH": here,
            "NLSPATH": here,
            "LC_ALL": "xx_XX.NONSENSE",
            "TZ": "Nowhere/Nothing",
            "SSL_CERT_FILE": f"{here}/openssl.cnf",
            "SSL_CERT_DIR": here,
            "SSLKEYLOGFILE": str(self.marks / "keys"),
            "OPENSSL_CONF": f"{here}/openssl.cnf",
            "OPENSSL_MODULES": here,
            "OPENSSL_ENGINES": here,
            "HOSTALIASES": f"{here}/hosts",
            "RESOLV_HOST_CONF": f"{here}/hosts",
            "LOCALDOMAIN": "attacker.example",
            "RES_OPTIONS": "attempts:1 timeout:1",
            **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"), self.server.url),
        }
        # Of the commands that root types into, only setup listens to these; to nothing that PAM starts do they matter.
        self.agent_environ = {
            "IDENTREE_SERVER_URL": self.server.url,
            "IDENTREE_SHARED_SECRET": "f" * 32,
            "IDENTREE_BREAKGLASS_FILE": f"{here}/os.py",
            "IDENTREE_BREAKGLASS_ENABLED": "true",
            "IDENTREE_CA_CERT": f"{here}/openssl.cnf",
            "IDENTREE_TIMEOUT": "1ms",
        }

    def sprung(self) -> list[str]:
        """What fell into it."""
        return sorted(os.listdir(self.marks)) + [f"request {each.path}" for each in self.server.requests]

    def close(self) -> None:
        self.server.stop()
        shutil.rmtree(self.path, ignore_errors=True)


class PythonTestCase(unittest.TestCase):
    """:ivar python: the interpreter. :ivar trap: checked after each test: nothing may have fallen into it."""

    version = ""

    def setUp(self) -> None:
        found = interpreters()
        self.assertIn(self.version, found, f"there is no Python {self.version}; make pythons installs it")
        self.python = found[self.version]
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory(prefix="identree-")))
        self.trap = Trap()
        self.addCleanup(self.trap.close)
        self.addCleanup(lambda: self.assertEqual(self.trap.sprung(), []))

    def run_agent(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Without terminal, in the trap."""
        command = [self.python, "-ISB", archive(), *arguments]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**self.trap.environ, **environ},
            cwd=self.trap.path,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_SECONDS,
            start_new_session=True,
        )

    def wrapped(self, shell: str) -> str:
        """An interpreter that a shell starts after having made things worse; ``"$@"`` is left to be started."""
        path = self.directory / "python"
        path.write_text(f"#!/bin/sh\n{shell.replace('PYTHON', self.python)}\n")
        path.chmod(0o755)
        return str(path)

    def helper(self, script: Script | None, **conf: str) -> Helper:
        helper = Helper(script, conf=conf)
        self.addCleanup(helper.close)
        return helper

    def sudo(self, script: Script | None, *, wrapped: str = "", on_terminal: bool = True, **conf: str) -> Helper:
        """One PAM helper in a hostile environment."""
        helper = self.helper(script, **conf)
        environ = {**self.trap.environ, **self.trap.agent_environ}
        helper.run(python=wrapped or self.python, on_terminal=on_terminal, **environ)
        return helper

    # The commands

    def test_help_and_version(self) -> None:
        """Help and version, wherever and however it is started."""
        for word in ("--help", "-h", "help"):
            done = self.run_agent(word)
            self.assertEqual((done.returncode, done.stderr), (0, ""), done)
            self.assertIn("rotate-breakglass", done.stdout)
        for word in ("--version", "-v", "version"):
            done = self.run_agent(word)
            self.assertEqual((done.returncode, done.stdout.split()[0]), (0, identree.__version__), done)

    def host(self) -> Path:
        """A root directory with sudo, and a server that answers."""
        root = self.directory / "root"
        for name in ("etc/pam.d", "etc/identree", "usr/local/bin", "lib/x86_64-linux-gnu/security"):
            (root / name).mkdir(parents=True)
        (root / "var/lib").mkdir(parents=True)
        (root / "lib/x86_64-linux-gnu/security/pam_exec.so").touch()
        agent = root / "usr/local/bin/identree"
        # the self-test starts the helper as PAM does: with this very interpreter
        agent.write_bytes(f"#!{self.python} -ISB\n".encode() + Path(archive()).read_bytes().partition(b"\n")[2])
        agent.chmod(0o755)
        server = ScriptedServer(lambda request: Answer(200, {"status": "ok"}))
        self.addCleanup(server.stop)
        conf = root / "etc/identree/client.conf"
        conf.write_text(
            f"IDENTREE_SERVER_URL={server.url}\nIDENTREE_INSECURE_ALLOW_HTTP_ESCROW=true\nIDENTREE_HOSTNAME=web01\n"
        )
        conf.chmod(0o600)
        for name in ("sudo", "sudo-i"):
            (root / "etc/pam.d" / name).write_bytes(DEBIAN)
        self.asked = server
        return root

    @staticmethod
    def tree(root: Path) -> dict[str, object]:
        return {
            str(path.relative_to(root)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
            for path in sorted(root.rglob("*"))
        }

    def test_setup_dry_run(self) -> None:
        """A dry run of the set-up changes nothing and calls nobody."""
        root = self.host()
        before = self.tree(root)
        done = self.run_agent("setup", "--dry-run", f"--root={root}", "--auditd", "--timers")
        self.assertEqual(done.returncode, 0, done)
        self.assertIn("pam_exec.so", done.stdout)
        self.assertIn("nothing was changed", done.stdout)
        self.assertEqual(self.tree(root), before)
        self.assertEqual(self.asked.requests, [], "a dry run calls nobody")

    def test_setup_and_remove(self) -> None:
        """The set-up and its removal leave every byte as it was."""
        root = self.host()
        before = self.tree(root)
        done = self.run_agent("setup", f"--root={root}")
        self.assertEqual(done.returncode, 0, done)
        self.assertIn(SOLE, (root / "etc/pam.d/sudo").read_bytes())
        done = self.run_agent("setup", f"--root={root}", "--remove", "--keep-files")
        self.assertEqual(done.returncode, 0, done)
        self.assertEqual(self.tree(root), before)

    def test_approve(self) -> None:
        """An approval opens."""
        helper = self.sudo(in_turn(created(), pending(), approved()))
        self.assertEqual(helper.code, 0, helper.terminal + helper.output)
        self.assertIn("sudo approved", helper.terminal)

    def test_deny(self) -> None:
        """A denial does not open, and its reason is shown."""
        helper = self.sudo(in_turn(created(), denied(deny_reason="not today")))
        self.assertEqual(helper.code, 1, helper.terminal + helper.output)
        self.assertIn("not today", helper.terminal)

    def test_expire(self) -> None:
        """A challenge that nobody answers ends."""
        helper = self.sudo(in_turn(created(expires_in=1), pending()), IDENTREE_TIMEOUT="1s")
        self.assertEqual(helper.code, 1, helper.terminal + helper.output)
        self.assertIn("nobody approved in time", helper.terminal)

    def test_forged(self) -> None:
        """An approval without this host's signature does not open."""
        helper = self.sudo(in_turn(created(), approved(approval_token="0" * 64)))
        self.assertEqual(helper.code, 1, helper.terminal + helper.output)

    def test_nonsense(self) -> None:
        """Nonsense in answers is a refusal, not a crash."""
        for body in (
            b"[" * 65000,
            b'{"a":' * 13000,
            b"9" * 65000,
            b'{"challenge_id": ' + b"9" * 5000 + b"}",
            b'{"status": NaN, "challenge_id": Infinity}',
            b'"' + b"\\ud800" * 1000 + b'"',
            b"\xff\xfe" * 500,
            b"\0" * 1000,
            b"",
        ):
            helper = self.sudo(in_turn(Answer(201, body)))
            self.assertEqual(helper.code, 1, body[:20])
            self.assertNotIn("internal error", helper.terminal + helper.output, body[:20])
            helper.close()

    def test_closed(self) -> None:
        """Closed standard descriptors neither stop it nor mix messages into the connection."""
        for redirection in ("<&-", ">&- 2>&-", "<&- >&- 2>&-"):
            helper = self.sudo(
                in_turn(created(), pending(), approved()), wrapped=self.wrapped(f'exec PYTHON "$@" {redirection}')
            )
            self.assertEqual(helper.code, 0, (redirection, helper.terminal, helper.output))
            assert helper.server
            # were a message ever written into the connection, the server would have got no second request
            self.assertGreaterEqual(len(helper.server.seen("GET")), 2)
            helper.close()
        done = subprocess.run(
            ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", self.python, "-ISB", archive(), "--help"],
            timeout=PATIENCE_SECONDS,
        )
        self.assertEqual(done.returncode, 0)

    def test_limits(self) -> None:
        """Limits on descriptors, memory, stack and files open nothing."""
        file = self.hash_file()
        for limit in ("-n 3", "-n 4", "-n 5", "-n 6", "-n 7", "-n 8", "-n 12", "-f 0", "-c 0", "-v 40000", "-s 64"):
            helper = self.sudo(
                in_turn(created(), denied()),
                wrapped=self.wrapped(f'ulimit {limit}\nexec PYTHON "$@"'),
                IDENTREE_BREAKGLASS_FILE=file,
            )
            self.assertEqual(helper.code == 0, False, limit)
            self.assertNotIn("break-glass", helper.terminal, limit)
            helper.close()

    def test_no_descriptors(self) -> None:
        """A caller with few descriptors gets no break-glass prompt by them."""
        for count in (5, 6, 7, 8, 9, 10, 12):
            helper = self.sudo(
                None,
                wrapped=self.wrapped(f'ulimit -n {count}\nexec PYTHON "$@"'),
                IDENTREE_SERVER_URL="http://id.invalid",
                IDENTREE_BREAKGLASS_FILE=self.hash_file(),
            )
            self.assertEqual(helper.code == 0, False, count)
            self.assertNotIn("break-glass", helper.terminal, count)
            helper.close()

    def test_no_network(self) -> None:
        """Without network there is a clear line."""
        unshare = "unshare -n" if os.geteuid() == 0 else "unshare -rn"
        if subprocess.run([*unshare.split(), "true"], capture_output=True).returncode:
            self.skipTest("no network of its own can be made here")
        for url in ("http://192.0.2.1", "http://id.example.com", "https://[2001:db8::1]"):
            helper = self.sudo(
                None,
                wrapped=self.wrapped(f'exec /usr/bin/{unshare} PYTHON "$@"'),
                IDENTREE_SERVER_URL=url,
                IDENTREE_BREAKGLASS_ENABLED="false",
            )
            self.assertEqual(helper.code, 1)
            self.assertIn(f"{url} cannot be reached", " ".join(helper.terminal.split()))
            helper.close()

    # Break-glass

    def hash_file(self) -> str:
        path = self.directory / "hash"
        path.write_text(Bcrypt().hash(PASSWORD, 4) + "\n")
        path.chmod(0o600)
        return str(path)

    def conf(self, **keys: str) -> Path:
        path = self.directory / "client.conf"
        path.write_text("IDENTREE_SYSLOG=false\n" + "".join(f"{key}={value}\n" for key, value in keys.items()))
        path.chmod(0o600)
        return path

    def typed(self, conf: Path, word: str, typed: str = "") -> tuple[int, str]:
        """A command at a terminal, in the trap; ``typed`` answers its question."""
        pid, master = pty.fork()
        if pid == 0:
            try:
                os.chdir(self.trap.path)
                environ = {**self.trap.environ, **self.trap.agent_environ, "IDENTREE_CLIENT_CONF": str(conf)}
                words = word.split()
                os.execve(self.python, [self.python, "-ISB", archive(), *words], environ)
            finally:
                os._exit(127)
        shown, until = "", time.monotonic() + PATIENCE_SECONDS
        try:
            while time.monotonic() < until:
                data = os.read(master, 1000).decode("utf-8", "replace")
                if not data:
                    break
                shown += data
                if typed and shown.endswith("password: "):
                    os.write(master, typed.encode())
        except OSError:
            pass
        os.close(master)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown

    def test_verify_breakglass(self) -> None:
        """A break-glass password is told from a wrong one."""
        conf = self.conf(IDENTREE_BREAKGLASS_FILE=self.hash_file())
        self.assertEqual(self.typed(conf, "verify-breakglass", PASSWORD + "\r")[0], 0)
        code, shown = self.typed(conf, "verify-breakglass", "wrong\r")
        self.assertEqual((code, "the password is wrong" in shown), (1, True), shown)

    def test_rotate_breakglass(self) -> None:
        """A new break-glass password goes to the vault and counts."""
        stored: list[str] = []

        def vault(request: Request) -> Answer:
            stored.append(str(request.json["password"]))
            return Answer(200, {"status": "ok"})

        server = ScriptedServer(vault)
        self.addCleanup(server.stop)
        file = self.directory / "rotated"
        conf = self.conf(
            IDENTREE_SERVER_URL=server.url,
            IDENTREE_SHARED_SECRET=SECRET,
            IDENTREE_INSECURE_ALLOW_HTTP_ESCROW="true",
            IDENTREE_HOSTNAME="web01",
            IDENTREE_BREAKGLASS_FILE=str(file),
            IDENTREE_BREAKGLASS_BCRYPT_COST="10",
        )
        code, shown = self.typed(conf, "rotate-breakglass --force")
        self.assertEqual((code, len(stored)), (0, 1), shown)
        self.assertNotIn(stored[0], shown)
        self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600)
        self.assertTrue(Bcrypt().matches(stored[0].encode(), file.read_text().split("\n")[1]))
        self.assertEqual(self.typed(conf, "verify-breakglass", stored[0] + "\r")[0], 0)

    def test_breakglass_prompt(self) -> None:
        """The break-glass prompt comes when the server is away."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
            helper = self.helper(
                None,
                IDENTREE_SERVER_URL=f"http://127.0.0.1:{taken.getsockname()[1]}",
                IDENTREE_BREAKGLASS_FILE=self.hash_file(),
            )
            helper.start(python=self.python, on_terminal=True, **self.trap.environ, **self.trap.agent_environ)
            helper.read_until("password: ")
            helper.type("\x03")
            self.assertEqual(helper.finish(), 1)


class Python39Tests(PythonTestCase):
    version = "3.9"


class Python310Tests(PythonTestCase):
    version = "3.10"


class Python311Tests(PythonTestCase):
    version = "3.11"


class Python312Tests(PythonTestCase):
    version = "3.12"


class Python313Tests(PythonTestCase):
    version = "3.13"


del PythonTestCase  # whose tests are those of the versions
