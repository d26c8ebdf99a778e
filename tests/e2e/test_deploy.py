"""
Deploying over SSH to a real sshd (spec/notifications-and-policy section 10): the client, the jobs and the database
behind them. The scripts are small ones of the tests; the real ones have tests of their own.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import blockingCallFromThread, deferToThread
from twisted.logger import Logger
from twisted.trial.unittest import TestCase
from twisted.web.iweb import IRequest

from identree.app.deploys import INSTALLED, REMOVED, Deploys, HostUnreachable, Job, Kind, Parts, Wish
from identree.app.journal import Journal
from identree.app.people import Caller
from identree.app.rules import Rules
from identree.clients.sshdeploy import SshClient
from identree.core import deploy
from identree.core.addresses import parse_networks
from identree.core.deploy import Access, ExpectedKey, HostKeyUnknown, State
from identree.core.errors import Invalid
from identree.storage.hostkeys import DeployStore
from identree.web.deploy import DeployDesk, KeyHolder
from identree.web.reading import query
from identree.web.replies import text
from identree.web.router import Router, TextAnswers
from tests.e2e.browser import Browser, Person
from tests.e2e.server import DYING_WITH_US, free_port
from tests.fakes import memory_store
from tests.web.house import House
from tests.web.test_deploy import deploy_site

pytestmark = pytest.mark.e2e

reactor: Any = installed
SSHD = "/usr/sbin/sshd"
USER = getpass.getuser()
# On a busy machine.
PATIENCE_SECONDS = 60.0
SECRET = "the shared secret of the tests it's long"
ADMIN = Caller(
    username="carol",
    role="admin",
    nonce="0" * 32,
    issued_at=datetime(2026, 1, 1, tzinfo=UTC),
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
)


def keygen(path: Path, *options: str, passphrase: str = "") -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-N", passphrase, "-C", "test", "-f", str(path), *options],
        check=True,
        stdin=subprocess.DEVNULL,
    )


def alive(pid: str) -> bool:
    return Path(f"/proc/{pid.strip()}").exists()


def fingerprint(path: Path) -> str:
    """As ssh-keygen says it: a second opinion."""
    shown = subprocess.run(["ssh-keygen", "-lf", str(path)], check=True, capture_output=True, text=True)
    return shown.stdout.split()[1]


class Sshd:
    """
    A real sshd on loopback that lets in the user of the tests.

    :param host_keys: types, as ssh-keygen names them.
    :param options: more lines of ``sshd_config``; the first one of a name counts.
    """

    def __init__(self, directory: Path, *host_keys: str, options: str = "") -> None:
        self.directory = directory
        self.port = free_port()
        self.log = directory / "sshd.log"
        self.authorized = directory / "authorized_keys"
        self.authorized.write_text("")
        self.host_keys = {kind: directory / f"host_{kind}" for kind in host_keys or ("ed25519",)}
        for kind, path in self.host_keys.items():
            keygen(path, "-t", kind)
        (directory / "sshd_config").write_text(
            f"{options}\nPort {self.port}\nListenAddress 127.0.0.1\nPidFile {directory}/sshd.pid\nUsePAM no\n"
            f"PermitRootLogin yes\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"AuthorizedKeysFile {self.authorized}\nLogLevel VERBOSE\nUseDNS no\nPrintMotd no\n"
            + "".join(f"HostKey {path}\n" for path in self.host_keys.values())
        )
        if os.getuid() == 0:
            # sshd wants this directory, which init makes elsewhere
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.process: Any = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*DYING_WITH_US, SSHD, "-D", "-e", "-f", str(self.directory / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + PATIENCE_SECONDS
        while "Server listening" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(self.log.read_text())
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def allow(self, key: Path) -> None:
        with self.authorized.open("a") as keys:
            keys.write(key.with_name(key.name + ".pub").read_text())


class DeployCase(TestCase):
    timeout = 240
    host_keys: tuple[str, ...] = ("ed25519",)
    options = ""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.sshd = Sshd(self.directory, *self.host_keys, options=self.options)
        self.sshd.start()
        self.addCleanup(self.sshd.stop)
        self.key = self.directory / "admin"
        keygen(self.key, "-t", "ed25519")
        self.sshd.allow(self.key)
        self.ssh = SshClient(reactor, deferToThread)
        self.store = memory_store(reactor)
        self.removed: list[tuple[str, str, str]] = []
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.install = b"echo IDENTREE_HOSTNAME=web1.example.com\n"
        self.uninstall: Callable[[bool, bool], Awaitable[bytes]] = self.small_uninstall
        self.access = Access(secret=SECRET)
        self.numbers = iter(range(1, 100))
        self.deploys = Deploys(
            ssh=self.ssh,
            records=DeployStore(self.store.driver),
            parts=Parts(
                server_url=lambda: "https://identree.example",
                install_script=self.install_script,
                uninstall_script=lambda pam, files: self.uninstall(pam, files),
                access=self.give_access,
                remove_host=self.remove_host,
                secrets=lambda: [SECRET],
            ),
            clock=reactor,
            monotonic=time.monotonic,
            now=lambda: datetime.now(UTC),
            token=lambda n: f"{next(self.numbers):0{2 * n}x}",
            journal=Journal(Logger(observer=lambda e: self.log.append((e["message"], dict(e["attributes"]))))),
        )
        self.deploys.startService()
        self.addCleanup(self.deploys.stopService)

    async def install_script(self) -> bytes:
        return self.install

    async def small_uninstall(self, pam: bool, files: bool) -> bytes:
        return f"echo pam={pam} files={files}\n".encode()

    async def give_access(self, caller: Caller, hostname: str, address: str) -> Access:
        return self.access

    async def remove_host(self, caller: Caller, hostname: str, address: str) -> None:
        self.removed.append((caller.username, hostname, address))

    def wish(self, kind: Kind = Kind.INSTALL, **changed: Any) -> Wish:
        return Wish(
            **{
                "kind": kind,
                "target": deploy.target("127.0.0.1", self.sshd.port, USER),
                "known_as": "web1.example.com",
                "private_key": bytearray(self.key.read_bytes()),
                "host_key": ExpectedKey(fingerprint=fingerprint(next(iter(self.sshd.host_keys.values())))),
                **changed,
            }
        )

    async def ended(self, job: Job) -> list[str]:
        """What it shows when it is over."""
        end = time.monotonic() + PATIENCE_SECONDS * 2
        while job.state is State.RUNNING:
            self.assertLess(time.monotonic(), end, job.lines)
            await deferLater(reactor, 0.05)
        return list(job.lines)

    async def said(self, job: Job, text: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not any(text in line for line in job.lines):
            self.assertLess(time.monotonic(), end, job.lines)
            await deferLater(reactor, 0.05)

    async def run_job(self, kind: Kind = Kind.INSTALL, **changed: Any) -> tuple[Job, list[str]]:
        job = await self.deploys.start(ADMIN, self.wish(kind, **changed), "192.0.2.7")
        return job, await self.ended(job)


class InstallTests(DeployCase):
    async def test_an_installation(self) -> None:
        """The script runs with the URL as its argument and the secret in its environment, and everything is shown."""
        self.install = (
            b"echo IDENTREE_HOSTNAME=web1.example.com\necho url: $1\n"
            b"[ ${#IDENTREE_SHARED_SECRET} = 40 ] && [ $SHARED_SECRET = x ] || true\n"
            b'echo "${#IDENTREE_SHARED_SECRET} ${#SHARED_SECRET}" >&2\n'
        )
        job, lines = await self.run_job()
        self.assertEqual(job.state, State.DONE, lines)
        place = f"127.0.0.1:{self.sshd.port}"
        key = fingerprint(self.sshd.host_keys["ed25519"])
        self.assertEqual(
            lines[:3],
            [
                f"Connecting to {place} as {USER} …",
                f"Host key verified: ssh-ed25519 {key}",
                "Connected. Running install script …",
            ],
        )
        told = set(lines[3:-1])
        self.assertTrue({"IDENTREE_HOSTNAME=web1.example.com", "url: https://identree.example"} <= told, lines)
        self.assertIn(f"{len(SECRET)} {len(SECRET)}", told)
        self.assertEqual(lines[-1], INSTALLED)
        self.assertEqual(self.store.events, ["deployed"])

    async def test_a_secret_is_struck_out(self) -> None:
        """Also when it is printed byte by byte."""
        self.install = (
            b'for i in $(seq 0 $((${#SHARED_SECRET} - 1))); do printf %s "${SHARED_SECRET:$i:1}"; sleep 0.01; done\n'
            b'echo; set -x; echo "$SHARED_SECRET" >/dev/null\n'
        )
        _, lines = await self.run_job()
        shown = "\n".join(lines)
        self.assertIn("\n***\n", shown)
        for part in (SECRET, SECRET[:20], "it's", "long"):
            self.assertNotIn(part, shown)

    async def test_no_secret_in_the_process_list(self) -> None:
        """What runs on the host has the URL among its arguments, and no secret."""
        self.install = b"tr '\\0' ' ' </proc/$$/cmdline; echo\n"
        _, lines = await self.run_job()
        self.assertIn("bash -s https://identree.example ", lines)

    async def test_output_comes_live(self) -> None:
        """A line is there before the script ends, which goes on when it is allowed to."""
        gate = self.directory / "gate"
        self.install = f"echo begun\nwhile [ ! -e {gate} ]; do sleep 0.05; done\necho goes on\n".encode()
        job = await self.deploys.start(ADMIN, self.wish(), "192.0.2.7")
        await self.said(job, "begun")
        self.assertEqual(job.state, State.RUNNING)
        gate.touch()
        self.assertEqual((await self.ended(job))[-2:], ["goes on", INSTALLED])

    async def test_a_failing_script(self) -> None:
        """Its exit status is told, and nothing is recorded."""
        self.install = b"echo no curl here >&2\nexit 7\n"
        job, lines = await self.run_job()
        self.assertEqual(job.state, State.FAILED)
        self.assertEqual(lines[-2:], ["no curl here", "ERROR: the script ended with exit status 7"])
        self.assertEqual(self.store.events, [])

    async def test_a_killed_script(self) -> None:
        """So is the signal that ended it."""
        self.install = b"kill -9 $$\n"
        _, lines = await self.run_job()
        self.assertEqual(lines[-1], "ERROR: the command was ended by the signal KILL")

    async def test_a_flood(self) -> None:
        """A megabyte is kept, the rest is not waited for by anybody, and how it ended is told."""
        self.install = b"yes 0123456789012345678901234567890123456789012345678901234567890123 | head -c 8000000\n"
        job, lines = await self.run_job()
        self.assertEqual(job.state, State.DONE)
        self.assertEqual(lines[-2:], [deploy.TOO_LONG, INSTALLED])
        self.assertLess(sum(len(line) + 1 for line in lines), deploy.OUTPUT_BYTES + 1000)

    async def test_a_long_script(self) -> None:
        """More than the window of SSH comes through, to the last byte."""
        self.install = b"# " + b"x" * 70 + b"\n"
        self.install = self.install * 60_000 + b"echo read to the end\n"
        _, lines = await self.run_job()
        self.assertEqual(lines[-2:], ["read to the end", INSTALLED])

    async def test_a_child_that_holds_the_output(self) -> None:
        """The job ends with the script."""
        self.install = b"sleep 600 & echo $!\n"
        job, lines = await self.run_job()
        self.assertEqual(job.state, State.DONE, lines)
        os.kill(int(lines[-2]), 9)

    async def test_sudo_for_others(self) -> None:
        """Who is not root goes through sudo."""
        self.assertEqual(deploy.install_command("deploy", "https://x"), "sudo bash -s 'https://x'")

    async def test_cancelling(self) -> None:
        """The script ends at the latest when it writes something, and the job says who wanted it."""
        pid = self.directory / "pid"
        self.install = f"echo $$ >{pid}\necho begun\nwhile :; do echo tick; sleep 0.1; done\n".encode()
        job = await self.deploys.start(ADMIN, self.wish(), "192.0.2.7")
        await self.said(job, "begun")
        self.deploys.cancel(ADMIN, job.id)
        lines = await self.ended(job)
        self.assertEqual((job.state, lines[-2]), (State.FAILED, "ERROR: cancelled by carol"))
        end = time.monotonic() + PATIENCE_SECONDS
        while alive(pid.read_text()):
            self.assertLess(time.monotonic(), end, "the script still runs")
            await deferLater(reactor, 0.05)

    async def test_shutting_down(self) -> None:
        """The server waits until the jobs have ended, and they say why."""
        self.install = b"echo begun\nsleep 600\n"
        job = await self.deploys.start(ADMIN, self.wish(), "192.0.2.7")
        await self.said(job, "begun")
        await self.deploys.stopService()
        self.assertEqual(job.lines[-2], "ERROR: deployment cancelled: server shutting down")


class RemovalTests(DeployCase):
    async def test_a_removal(self) -> None:
        """The script runs, there is an event of its own, and the host is forgotten by the name that identree knows."""
        job, lines = await self.run_job(Kind.REMOVE)
        self.assertEqual((job.state, lines[-2:]), (State.DONE, ["pam=True files=True", REMOVED]))
        self.assertEqual(self.store.events, ["host_unconfigured"])
        self.assertEqual(self.removed, [("carol", "web1.example.com", "192.0.2.7")])

    async def test_a_failed_removal(self) -> None:
        """Nothing is forgotten."""

        async def failing(pam: bool, files: bool) -> bytes:
            return b"exit 1\n"

        self.uninstall = failing
        job, _ = await self.run_job(Kind.REMOVE)
        self.assertEqual((job.state, self.removed, self.store.events), (State.FAILED, [], []))

    async def test_a_host_that_claims_to_be_another_one(self) -> None:
        """What it prints does not decide which host is forgotten."""

        async def lying(pam: bool, files: bool) -> bytes:
            return b"echo IDENTREE_HOSTNAME=victim\n"

        self.uninstall = lying
        await self.run_job(Kind.REMOVE)
        self.assertEqual(self.removed, [("carol", "web1.example.com", "192.0.2.7")])


class HostKeyTests(DeployCase):
    host_keys = ("rsa", "ecdsa", "ed25519")

    async def test_first_use(self) -> None:
        """It is refused with the key; confirmed, it is remembered, and needs no confirmation again."""
        unknown = await self.assertFailure(
            Deferred.fromCoroutine(self.deploys.start(ADMIN, self.wish(host_key=None), "192.0.2.7")), HostKeyUnknown
        )
        shown = fingerprint(self.sshd.host_keys["ed25519"])
        self.assertEqual((unknown.host_key.type, unknown.host_key.fingerprint), ("ssh-ed25519", shown))
        self.assertNotIn("Accepted", self.sshd.log.read_text())
        job, lines = await self.run_job(host_key=ExpectedKey(fingerprint=shown))
        self.assertEqual(job.state, State.DONE, lines)
        job, lines = await self.run_job(host_key=None)
        self.assertEqual(job.state, State.DONE, lines)

    async def test_any_of_its_keys(self) -> None:
        """A known fingerprint counts, of whichever of the host's keys it is."""
        for kind, path in self.sshd.host_keys.items():
            with self.subTest(kind=kind):
                await self.deploys.forget_host_key(ADMIN, "127.0.0.1", self.sshd.port, "")
                job, lines = await self.run_job(host_key=ExpectedKey(fingerprint=fingerprint(path)))
                self.assertEqual((job.state, lines[1].split()[-1]), (State.DONE, fingerprint(path)))
                job, lines = await self.run_job(host_key=None)
                self.assertEqual((job.state, lines[1].split()[-1]), (State.DONE, fingerprint(path)))

    async def test_a_public_key_line(self) -> None:
        """So does the line of a file."""
        line = self.sshd.host_keys["rsa"].with_name("host_rsa.pub").read_text()
        job, lines = await self.run_job(host_key=deploy.expected_key(f"web1 {line}"))
        self.assertEqual(job.state, State.DONE, lines)

    async def test_another_key_than_given(self) -> None:
        """Nothing is sent, not even who we are."""
        job, lines = await self.run_job(host_key=ExpectedKey(fingerprint="SHA256:" + "A" * 43))
        self.assertEqual(job.state, State.FAILED)
        self.assertIn("is not the one that was given. Nothing was sent.", lines[-2])
        self.assertNotIn("Accepted", self.sshd.log.read_text())

    async def test_a_changed_key(self) -> None:
        """A host with other keys is refused loudly, until somebody lets the old one be forgotten."""
        await self.run_job(host_key=ExpectedKey(fingerprint=fingerprint(self.sshd.host_keys["ed25519"])))
        self.sshd.stop()
        for kind, path in self.sshd.host_keys.items():
            path.unlink()
            keygen(path, "-t", kind)
        self.sshd.log.write_text("")
        self.sshd.start()
        job, lines = await self.run_job(host_key=None)
        self.assertEqual(job.state, State.FAILED)
        self.assertTrue(any("HAS CHANGED. Nothing was sent." in line for line in lines), lines)
        self.assertIn("DEPLOY host key refused", [message for message, _ in self.log])
        self.assertNotIn("Accepted", self.sshd.log.read_text())
        self.assertTrue(await self.deploys.forget_host_key(ADMIN, "127.0.0.1", self.sshd.port, ""))
        job, lines = await self.run_job()
        self.assertEqual(job.state, State.DONE, lines)


class KeyTests(DeployCase):
    async def log_in_with(self, *options: str) -> tuple[Job, list[str]]:
        self.key = self.directory / "other"
        keygen(self.key, *options)
        self.sshd.allow(self.key)
        return await self.run_job()

    async def test_an_rsa_key(self) -> None:
        """Signed with SHA-2, as sshd demands."""
        job, lines = await self.log_in_with("-t", "rsa", "-b", "3072")
        self.assertEqual(job.state, State.DONE, lines)
        self.assertIn("Accepted publickey for " + USER, self.sshd.log.read_text())

    async def test_an_rsa_key_in_pem_form(self) -> None:
        """The form of old keys."""
        job, lines = await self.log_in_with("-t", "rsa", "-b", "2048", "-m", "PEM")
        self.assertEqual(job.state, State.DONE, lines)

    async def test_an_ecdsa_key(self) -> None:
        """On each of the curves of SSH."""
        job, lines = await self.log_in_with("-t", "ecdsa", "-b", "521")
        self.assertEqual(job.state, State.DONE, lines)

    async def test_a_key_that_is_not_let_in(self) -> None:
        """It says which key, and what to do."""
        self.sshd.authorized.write_text("")
        job, lines = await self.run_job()
        self.assertEqual(job.state, State.FAILED)
        self.assertIn(f"does not let {USER} in with this key (ssh-ed25519 {fingerprint(self.key)})", lines[-1])

    async def test_an_encrypted_key(self) -> None:
        """It is refused before anybody connects."""
        self.key = self.directory / "locked"
        keygen(self.key, "-t", "ed25519", passphrase="passphrase")
        refusal = await self.assertFailure(
            Deferred.fromCoroutine(self.deploys.start(ADMIN, self.wish(), "192.0.2.7")), Invalid
        )
        self.assertIn("invalid private key: encrypted with a passphrase", refusal.detail)


class SecondFactorTests(DeployCase):
    options = "AuthenticationMethods publickey,password\nPasswordAuthentication yes"

    async def test_a_second_proof(self) -> None:
        """A host that wants more than a key is told apart."""
        _, lines = await self.run_job()
        self.assertIn("wants a second proof beside the key (password)", lines[-1])


class AlgorithmTests(DeployCase):
    options = "Ciphers aes128-cbc"

    async def test_old_algorithms(self) -> None:
        """A host that has only what nobody should use any more is refused, with what it would need."""
        _, lines = await self.run_job()
        self.assertIn("no algorithms in common", lines[-1])
        self.assertIn("aes256-ctr", lines[-1])


class RekeyTests(DeployCase):
    options = "RekeyLimit 64K"

    async def test_new_keys_in_the_middle(self) -> None:
        """A host that changes its keys while it talks is understood."""
        self.install = b"seq 1 40000\n"
        job, lines = await self.run_job()
        self.assertEqual((job.state, lines[-2:]), (State.DONE, ["40000", INSTALLED]))


class UnreachableTests(DeployCase):
    async def test_nobody_listens(self) -> None:
        """A first look says so at once."""
        self.sshd.stop()
        refusal = await self.assertFailure(
            Deferred.fromCoroutine(self.deploys.start(ADMIN, self.wish(host_key=None), "192.0.2.7")), HostUnreachable
        )
        self.assertIn("refuses connections; is sshd running there", refusal.detail)

    async def test_no_such_name(self) -> None:
        """So it does of a name that nobody knows."""
        wish = self.wish(host_key=None, target=deploy.target("no-such-host.invalid", 22, USER))
        refusal = await self.assertFailure(
            Deferred.fromCoroutine(self.deploys.start(ADMIN, wish, "192.0.2.7")), HostUnreachable
        )
        self.assertIn("the name no-such-host.invalid cannot be resolved", refusal.detail)


class Previews:
    """The uninstall script as others serve it."""

    router = Router()

    def __init__(self, deploys: Deploys) -> None:
        self.answers = TextAnswers()
        self._deploys = deploys

    @router.route("/api/deploy/uninstall-script", methods=["GET"])
    async def script(self, request: IRequest) -> bytes:
        asked = query(request)
        script = await self._deploys.uninstall_script(asked["pam"] == "true", asked["files"] == "true")
        return text(request, 200, script.decode())


class PageTests(DeployCase):
    """The page in a real browser, with everything behind it."""

    def setUp(self) -> None:
        super().setUp()
        port = free_port()
        self.base = f"http://127.0.0.1:{port}"
        rules = Rules(external_url=self.base, grace_period=timedelta(hours=8), challenge_ttl=timedelta(minutes=2))
        # many visitors at addresses of their own
        proxies = parse_networks(["127.0.0.1"])
        self.house = House(rules=rules, reactor=reactor, trusted_proxies=proxies)
        self.holders = [KeyHolder(username="alice", email="alice@example.com", ssh_keys=("ssh-ed25519 AAAAC3Nz a@b",))]
        desk = DeployDesk(deploys=self.deploys, key_holders=self.key_holders, server_url=lambda: self.base)
        site = deploy_site(self.house, desk, lambda: proxies, [Previews(self.deploys)])
        listening = reactor.listenTCP(port, site, interface="127.0.0.1")
        self.addCleanup(self.house.front.close_streams)
        self.addCleanup(listening.stopListening)
        self.admin = self.house.cookie("carol", "admin")

    async def key_holders(self) -> list[KeyHolder]:
        return self.holders

    def visit(self, person: Person, path: str) -> None:
        person.page.context.add_cookies([{"name": "pam_session", "value": self.admin, "url": self.base}])
        person.open(self.base + path)
        person.page.fill("#port", str(self.sshd.port))
        person.page.fill("#ssh_user", USER)
        person.page.set_input_files("[data-file]", str(self.key))
        expect(person.page.locator("[data-key-fingerprint]")).to_have_text(fingerprint(self.key))

    async def in_browser(self, look: Callable[[Browser], None]) -> None:
        def run() -> None:
            with Browser() as browser:
                look(browser)

        await deferToThread(run)

    async def test_setting_up(self) -> None:
        """A key from a file, the host key compared and confirmed, the output as it comes, and the end."""
        self.install = b"echo IDENTREE_HOSTNAME=web1\nfor i in 1 2 3; do echo step $i; sleep 0.2; done\n"

        def look(browser: Browser) -> None:
            for size, scheme, language in (("desktop", "light", "en"), ("phone", "dark", "en")):
                with browser.person(size=size, scheme=scheme, language=language) as carol:
                    # the answer that asks for the confirmation of the host key
                    carol.expected.append("409")
                    self.visit(carol, "/admin/deploy")
                    carol.page.fill("#hostname", "127.0.0.1")
                    carol.page.select_option("#holder", "alice")
                    carol.keep("deploy")
                    carol.accessible()
                    carol.page.click("[data-start]")
                    shown = carol.page.locator("#host-key [data-shown-key]")
                    expect(shown).to_have_text(fingerprint(self.sshd.host_keys["ed25519"]))
                    carol.keep("deploy-host-key")
                    carol.accessible()
                    carol.page.click("[data-test=confirm-key]")
                    log = carol.page.locator("[data-log]")
                    expect(log).to_contain_text(INSTALLED)
                    carol.keep("deploy-done")
                    carol.accessible()
                    lines = log.inner_text().splitlines()
                    assert [line for line in lines if line.startswith("step")] == ["step 1", "step 2", "step 3"], lines
                    expect(carol.page.locator("[data-job-state]")).to_have_text("Done")
                blockingCallFromThread(
                    reactor,
                    lambda: Deferred.fromCoroutine(
                        self.deploys.forget_host_key(ADMIN, "127.0.0.1", self.sshd.port, "")
                    ),
                )

        await self.in_browser(look)

    async def test_taking_off(self) -> None:
        """What is undone is chosen and shown; the job can be stopped, and the form comes back."""
        gate = self.directory / "gate"

        async def slow(pam: bool, files: bool) -> bytes:
            return f"echo pam={pam} files={files}\nwhile [ ! -e {gate} ]; do sleep 0.1; done\n".encode()

        self.uninstall = slow

        def look(browser: Browser) -> None:
            with browser.person() as carol:
                carol.expected.append("409")
                self.visit(carol, "/admin/deploy?host=web1&remove=1")
                carol.page.fill("#hostname", "127.0.0.1")
                carol.page.click("details[data-preview] summary")
                expect(carol.page.locator("[data-script]")).to_contain_text("pam=True files=True")
                carol.page.uncheck("[name=unconfigure_pam]")
                expect(carol.page.locator("[data-script]")).to_contain_text("pam=False files=False")
                carol.page.check("[name=unconfigure_pam]")
                carol.keep("deploy-remove")
                carol.page.click("[data-start]")
                carol.page.click("[data-test=confirm-key]")
                expect(carol.page.locator("[data-log]")).to_contain_text("pam=True files=False")
                carol.page.click("[data-cancel]")
                expect(carol.page.locator("[data-log]")).to_contain_text("ERROR: cancelled by carol")
                expect(carol.page.locator("[data-job-state]")).to_have_text("Failed")
                carol.page.click("[data-again]")
                # the key was dropped when it was used
                carol.page.click("[data-start]")
                expect(carol.page.locator("[data-key-problem]")).to_have_text("A private key is needed.")

        try:
            await self.in_browser(look)
        finally:
            gate.touch()
