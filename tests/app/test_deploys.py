"""Jobs over SSH: limits, host keys, what is recorded, and how they end (spec/notifications-and-policy section 10)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from identree.app import deploys
from identree.app.deploys import (
    INSTALLED,
    MAY_GO_ON,
    MOST_KEPT,
    MOST_READERS,
    REMOVED,
    SHUT_DOWN,
    TIMED_OUT,
    Deploys,
    HostUnreachable,
    Job,
    Kind,
    NoScript,
    NotInitiator,
    Parts,
    Stopping,
    TooManyJobs,
    TooManyReaders,
    UnknownJob,
    Wish,
)
from identree.app.journal import Journal
from identree.app.people import Caller
from identree.core import deploy
from identree.core.deploy import (
    Access,
    BadPrivateKey,
    ExpectedKey,
    HostKey,
    HostKeyChanged,
    HostKeyMismatch,
    HostKeyUnknown,
    SshTrouble,
    State,
)
from identree.core.errors import Forbidden, Invalid, Refused, StorageUnavailable, Throttled
from identree.storage.hostkeys import DeployStore
from tests.fakes import memory_store

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ADDRESS = "192.0.2.7"


def caller(name: str = "carol", role: str = "admin") -> Caller:
    return Caller(username=name, role=role, nonce="0" * 32, issued_at=START, started_at=START)


def host_key(letter: str = "a") -> HostKey:
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + letter.encode() * 32
    return HostKey(type="ssh-ed25519", blob=blob)


class FakeKey:
    type = "ssh-ed25519"
    fingerprint = "SHA256:of-the-admin"

    def __init__(self) -> None:
        self.forgotten = False

    def forget(self) -> None:
        self.forgotten = True


class FakeSsh:
    """
    Hosts that do what the test says.

    :ivar shows: the key that they have. :ivar unreachable: why nobody gets there.
    :ivar sent: command and input of each run. :ivar running: fires with the exit status; None: it has ended.
    """

    def __init__(self) -> None:
        self.shows = host_key()
        self.unreachable = ""
        self.looks = 0
        self.keys: list[FakeKey] = []
        self.sent: list[tuple[str, bytes]] = []
        self.running: list[Deferred[int]] = []
        self.output: Callable[[bytes, bool], None] = lambda data, stdout: None

    async def load_key(self, text: bytes | bytearray) -> FakeKey:
        if not text.startswith(b"key"):
            raise BadPrivateKey("no key")
        self.keys.append(FakeKey())
        return self.keys[-1]

    async def host_key(self, host: str, port: int) -> HostKey:
        self.looks += 1
        if self.unreachable:
            raise SshTrouble(self.unreachable)
        return self.shows

    async def run(
        self,
        *,
        target: deploy.Target,
        key: FakeKey,
        expected: ExpectedKey,
        command: str,
        secured: Callable[[HostKey], Awaitable[None]],
        stdin: Callable[[], Awaitable[bytes]],
        output: Callable[[bytes, bool], None],
    ) -> int:
        if self.unreachable:
            raise SshTrouble(self.unreachable)
        if expected.fingerprint != self.shows.fingerprint:
            raise HostKeyMismatch(self.shows)
        await secured(self.shows)
        self.sent.append((command, await stdin()))
        self.output = output
        waiting: Deferred[int] = Deferred()
        self.running.append(waiting)
        return await waiting


class DeployCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.ssh = FakeSsh()
        self.store = memory_store(self.clock)
        self.records = DeployStore(self.store.driver)
        self.access: Access | Exception = Access(secret="the shared secret")
        self.removed: list[tuple[str, str, str]] = []
        self.removal_fails: Exception | None = None
        self.script: bytes | Exception = b"echo\n"
        self.recording = True
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.numbers = iter(range(1, 1000))
        self.deploys = Deploys(
            ssh=self.ssh,
            records=self.records,
            parts=Parts(
                server_url=lambda: "https://identree.example",
                install_script=self.install_script,
                uninstall_script=self.uninstall_script,
                access=self.give_access,
                remove_host=self.remove_host,
                secrets=lambda: ["the shared secret", ""],
            ),
            clock=self.clock,
            monotonic=self.clock.seconds,
            now=lambda: START,
            token=lambda n: f"{next(self.numbers):0{2 * n}x}",
            journal=Journal(Logger(observer=lambda e: self.log.append((e["message"], dict(e["attributes"]))))),
            recording=lambda: self.recording,
        )
        self.deploys.startService()

    async def install_script(self) -> bytes:
        if isinstance(self.script, Exception):
            raise self.script
        return self.script

    async def uninstall_script(self, pam: bool, files: bool) -> bytes:
        return f"uninstall {pam} {files}\n".encode()

    async def give_access(self, who: Caller, hostname: str, address: str) -> Access:
        if isinstance(self.access, Exception):
            raise self.access
        return self.access

    async def remove_host(self, who: Caller, hostname: str, address: str) -> None:
        if self.removal_fails is not None:
            raise self.removal_fails
        self.removed.append((who.username, hostname, address))

    def wish(self, kind: Kind = Kind.INSTALL, **changed: Any) -> Wish:
        return Wish(
            **{
                "kind": kind,
                "target": deploy.target("192.0.2.1", 22, "ops"),
                "known_as": "web1",
                "private_key": bytearray(b"key"),
                "host_key": ExpectedKey(fingerprint=self.ssh.shows.fingerprint),
                **changed,
            }
        )

    def start(self, kind: Kind = Kind.INSTALL, who: Caller | None = None, **changed: Any) -> Job:
        starting = self.deploys.start(who or caller(), self.wish(kind, **changed), ADDRESS)
        return self.successResultOf(Deferred.fromCoroutine(starting))

    def refused(self, coroutine: Coroutine[Any, Any, Any], *kinds: type[Exception]) -> Any:
        return self.failureResultOf(Deferred.fromCoroutine(coroutine), *kinds).value

    def not_started(self, refusal: type[Exception], /, **changed: Any) -> Any:
        return self.refused(self.deploys.start(caller(), self.wish(**changed), ADDRESS), refusal)

    def say(self, text: str, *, stdout: bool = True) -> None:
        self.ssh.output(text.encode(), stdout)

    def exit(self, status: int = 0, run: int = -1) -> None:
        self.ssh.running[run].callback(status)

    def history(self) -> list[tuple[str, str, str]]:
        entries = self.successResultOf(Deferred.fromCoroutine(self.store.history(None)))
        return [(entry.username, entry.action, entry.hostname) for entry in entries]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(record.plain) for record in self.store.log.records]

    def logged(self, message: str) -> dict[str, Any]:
        [attributes] = [attributes for said, attributes in self.log if said == message]
        return attributes


class InstallTests(DeployCase):
    def test_what_is_sent(self) -> None:
        """The URL is an argument, the secret comes in through the input, and root is got by sudo."""
        self.start()
        self.assertEqual(
            self.ssh.sent,
            [
                (
                    "sudo bash -s 'https://identree.example'",
                    b"export SHARED_SECRET='the shared secret'\n"
                    b"export IDENTREE_SHARED_SECRET='the shared secret'\necho\n",
                )
            ],
        )

    def test_a_token(self) -> None:
        """Where there is a registry, the shared secret stays here."""
        self.access = Access(token="identree-enrol-0")
        self.start()
        self.assertEqual(self.ssh.sent[0][1], b"export IDENTREE_ENROL_TOKEN='identree-enrol-0'\necho\n")

    def test_no_access(self) -> None:
        """A host that must not be enrolled gets nothing to run."""
        self.access = Refused("registered already")
        job = self.start()
        self.assertEqual(
            (job.state, job.lines[-1]),
            (State.FAILED, "ERROR: the host gets no access to identree: registered already"),
        )
        self.assertEqual(self.ssh.sent, [])

    def test_it_works(self) -> None:
        """What is shown, the history, the event, and the lines of the log."""
        job = self.start()
        self.assertEqual((job.state, len(job.id)), (State.RUNNING, 32))
        self.say("IDENTREE_HOSTNAME=Web1.Example.com\n")
        self.exit()
        self.assertEqual(
            (job.state, list(job.lines)),
            (
                State.DONE,
                [
                    "Connecting to 192.0.2.1:22 as ops …",
                    f"Host key verified: ssh-ed25519 {host_key().fingerprint}",
                    "Connected. Running install script …",
                    "IDENTREE_HOSTNAME=Web1.Example.com",
                    "The host calls itself web1.example.com.",
                    INSTALLED,
                ],
            ),
        )
        self.assertEqual(self.history(), [("carol", "deployed", "web1.example.com")])
        [event] = self.events()
        self.assertEqual(
            [event[name] for name in ("event", "username", "hostname", "actor", "remote_addr")],
            ["deployed", "carol", "web1.example.com", "carol", ADDRESS],
        )
        self.assertEqual(
            self.logged("DEPLOY starting"),
            {
                "admin": "carol",
                "host": "192.0.2.1",
                "port": 22,
                "ssh_user": "ops",
                "client_ip": ADDRESS,
                "job": job.id,
            },
        )

    def test_a_host_without_a_name(self) -> None:
        """It is recorded by the name that identree has."""
        self.start()
        self.exit()
        self.assertEqual(self.history(), [("carol", "deployed", "web1")])

    def test_it_fails(self) -> None:
        """Nothing is recorded."""
        job = self.start()
        self.exit(3)
        self.assertEqual(
            (job.state, job.lines[-1], self.history(), self.events()),
            (State.FAILED, "ERROR: the script ended with exit status 3", [], []),
        )

    def test_sudo_asks(self) -> None:
        """The remedy is told."""
        job = self.start()
        self.say("sudo: a password is required\n", stdout=False)
        self.exit(1)
        self.assertIn("ops needs the right to use sudo without a password", job.lines[-2])

    def test_secrets(self) -> None:
        """Ours are struck out of both streams, each of which has its own pieces."""
        job = self.start()
        self.say("one the shared ")
        self.say("two the ", stdout=False)
        self.say("secret\n")
        self.say("shared secret\n", stdout=False)
        self.exit()
        self.assertEqual(job.lines[3:5], ["one ***", "two ***"])

    def test_an_unfinished_line(self) -> None:
        """What the host wrote last is shown, too."""
        job = self.start()
        self.say("no line feed")
        self.exit()
        self.assertEqual(job.lines[-2:], ["no line feed", INSTALLED])

    def test_not_recorded(self) -> None:
        """Who is told that it worked can find it in the log."""
        job = self.start()
        self.store.connection.execute("PRAGMA query_only = 1")
        self.exit()
        self.assertEqual(job.state, State.FAILED)
        self.assertIn("could not record it", job.lines[-1])

    def test_no_script(self) -> None:
        """It is said before anybody connects; why stands in the log."""
        self.script = OSError("gone")
        self.not_started(NoScript)
        self.assertEqual((len(self.flushLoggedErrors(OSError)), self.ssh.looks, self.deploys.busy), (1, 0, 0))

    def test_nothing_can_be_recorded(self) -> None:
        """Then nothing is begun."""
        self.recording = False
        self.not_started(StorageUnavailable)


class RemovalTests(DeployCase):
    def test_it_works(self) -> None:
        """No secret is sent; the event has its own name; what identree knew is forgotten."""
        job = self.start(Kind.REMOVE)
        self.assertEqual(self.ssh.sent, [("sudo bash", b"uninstall True True\n")])
        self.exit()
        self.assertEqual((job.state, job.lines[-1], len(job.id)), (State.DONE, REMOVED, 16))
        self.assertEqual([event["event"] for event in self.events()], ["host_unconfigured"])
        self.assertEqual(self.removed, [("carol", "web1", ADDRESS)])
        self.assertNotIn("client_ip", self.logged("REMOVE starting"))

    def test_the_name_is_ours(self) -> None:
        """A host that calls itself another one takes nobody else with it."""
        self.start(Kind.REMOVE)
        self.say("IDENTREE_HOSTNAME=victim\n")
        self.exit()
        self.assertEqual((self.removed[0][1], self.events()[0]["hostname"]), ("web1", "web1"))

    def test_the_script_fails(self) -> None:
        """Nothing is forgotten."""
        self.start(Kind.REMOVE)
        self.exit(1)
        self.assertEqual((self.removed, self.events()), ([], []))

    def test_forgetting_fails(self) -> None:
        """The host has it no more, and it is said what is left to do."""
        self.removal_fails = StorageUnavailable("locked")
        job = self.start(Kind.REMOVE)
        self.exit()
        self.assertEqual(job.state, State.FAILED)
        self.assertIn("remove the host on the page of hosts", job.lines[-1])

    def test_files_without_pam(self) -> None:
        """sudo would be locked."""
        refusal = self.not_started(Invalid, kind=Kind.REMOVE, unconfigure_pam=False)
        self.assertIn("sudo would not work any more", refusal.detail)
        self.assertEqual(self.deploys.busy, 0)


class HostKeyTests(DeployCase):
    def test_unknown(self) -> None:
        """The first answer is a refusal with the key; nobody has logged in."""
        refusal = self.not_started(HostKeyUnknown, host_key=None)
        self.assertEqual(refusal.host_key, self.ssh.shows)
        self.assertIn(self.ssh.shows.fingerprint, refusal.detail)
        self.assertEqual((self.ssh.sent, self.deploys.busy, self.ssh.keys[0].forgotten), ([], 0, True))

    def test_remembered(self) -> None:
        """A confirmed key needs no second confirmation, and no look."""
        self.start()
        self.start(host_key=None)
        self.assertEqual((len(self.ssh.sent), self.ssh.looks), (2, 0))
        self.assertEqual(self.logged("DEPLOY host key confirmed")["fingerprint"], self.ssh.shows.fingerprint)

    def test_per_place(self) -> None:
        """Another port is another place."""
        self.start()
        self.not_started(HostKeyUnknown, host_key=None, target=deploy.target("192.0.2.1", 2222, ""))

    def test_another_one_than_given(self) -> None:
        """It is not remembered either."""
        job = self.start(host_key=ExpectedKey(fingerprint="SHA256:" + "x" * 43))
        self.assertEqual(job.state, State.FAILED)
        self.assertIn("is not the one that was given. Nothing was sent.", job.lines[-2])
        self.not_started(HostKeyUnknown, host_key=None)

    def test_changed(self) -> None:
        """It is refused loudly: both keys, who confirmed the known one, and a line of the log."""
        self.start()
        known, self.ssh.shows = self.ssh.shows, host_key("b")
        job = self.start(host_key=None)
        text = "\n".join(job.lines)
        for part in ("HAS CHANGED", known.fingerprint, self.ssh.shows.fingerprint, "confirmed by carol on 2026-01-02"):
            self.assertIn(part, text)
        self.assertEqual(self.logged("DEPLOY host key refused")["shown"], self.ssh.shows.fingerprint)

    def test_given_against_known(self) -> None:
        """A changed key cannot be confirmed as if it were a new one."""
        self.start()
        self.ssh.shows = host_key("b")
        refusal = self.not_started(HostKeyChanged)
        self.assertIn("forget the known key first", refusal.detail)
        self.assertEqual(len(self.ssh.sent), 1)

    def test_forgotten(self) -> None:
        """Afterwards the new one can be confirmed; that is logged."""
        self.start()
        old, self.ssh.shows = self.ssh.shows, host_key("b")
        forgetting = self.deploys.forget_host_key(caller(), "192.0.2.1", 0, ADDRESS)
        self.assertTrue(self.successResultOf(Deferred.fromCoroutine(forgetting)))
        self.assertEqual(self.logged("DEPLOY host key forgotten")["fingerprint"], old.fingerprint)
        self.start()
        self.assertEqual(len(self.ssh.sent), 2)

    def test_nothing_to_forget(self) -> None:
        """It is said."""
        forgetting = self.deploys.forget_host_key(caller(), "web9", 0, ADDRESS)
        self.assertFalse(self.successResultOf(Deferred.fromCoroutine(forgetting)))

    def test_confirmed_by_two(self) -> None:
        """Where two confirm different keys of one place, the first one counts."""
        self.start()
        other = host_key("b")
        remembering = self.records.remember_host_key("192.0.2.1", 22, other, "dave", START)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(remembering)).key, self.ssh.shows)

    def test_unreachable(self) -> None:
        """The first look says why."""
        self.ssh.unreachable = "192.0.2.1:22 refuses connections"
        refusal = self.not_started(HostUnreachable, host_key=None)
        self.assertEqual((refusal.detail, self.deploys.busy), ("192.0.2.1:22 refuses connections", 0))


class LimitTests(DeployCase):
    def throttled(self, address: str = ADDRESS, confirmed: tuple[str, int, str] | None = None) -> int:
        """Seconds to wait; 0: admitted."""
        try:
            self.deploys.admit(caller(), address, confirmed)
        except Throttled as throttled:
            self.assertEqual(throttled.detail, "too many requests — wait before retrying")
            return throttled.retry_after
        return 0

    def test_one_start(self) -> None:
        """One per address in 15 seconds; another address does not wait."""
        self.assertEqual([self.throttled(), self.throttled(), self.throttled("192.0.2.8")], [0, 15, 0])
        self.clock.advance(15)
        self.assertEqual(self.throttled(), 0)

    def test_a_confirmation(self) -> None:
        """To confirm the key that one was just shown is no other start; once, by whom it was shown to."""
        self.throttled()
        self.not_started(HostKeyUnknown, host_key=None)
        shown = ("192.0.2.1", 0, self.ssh.shows.fingerprint)
        self.assertGreater(self.throttled(confirmed=("192.0.2.1", 0, "SHA256:" + "x" * 43)), 0)
        self.not_started(HostKeyUnknown, host_key=None)
        self.assertEqual(self.throttled(confirmed=shown), 0)
        self.assertGreater(self.throttled(confirmed=shown), 0)

    def test_a_late_confirmation(self) -> None:
        """It is a start like any other."""
        self.not_started(HostKeyUnknown, host_key=None)
        self.clock.advance(deploys.OFFER_SECONDS)
        self.throttled()
        self.assertGreater(self.throttled(confirmed=("192.0.2.1", 0, self.ssh.shows.fingerprint)), 0)

    def test_three_jobs(self) -> None:
        """A fourth is refused, and forgets its key; when one has ended, the next one starts."""
        for _ in range(deploy.MOST_JOBS):
            self.start()
        self.not_started(TooManyJobs)
        self.assertTrue(self.ssh.keys[-1].forgotten)
        self.exit()
        self.start()

    def test_only_administrators(self) -> None:
        """Whatever the web lets through."""
        user = caller("alice", "user")
        self.assertRaises(Forbidden, self.deploys.admit, user, ADDRESS)
        self.refused(self.deploys.start(user, self.wish(), ADDRESS), Forbidden)
        self.refused(self.deploys.public_key(user, bytearray(b"key")), Forbidden)
        self.refused(self.deploys.forget_host_key(user, "web1", 22, ADDRESS), Forbidden)
        self.assertRaises(Forbidden, self.deploys.job, user, "0" * 32)

    def test_three_minutes(self) -> None:
        """Then a job is ended."""
        job = self.start()
        self.clock.advance(deploy.SESSION_SECONDS - 1)
        self.assertEqual(job.state, State.RUNNING)
        self.clock.advance(1)
        self.assertEqual((job.state, job.lines[-2:]), (State.FAILED, ["ERROR: timed out after 3m0s", MAY_GO_ON]))
        self.assertEqual((TIMED_OUT, self.deploys.busy), ("ERROR: timed out after 3m0s", 0))


class PrivateKeyTests(DeployCase):
    def test_overwritten(self) -> None:
        """What was posted is gone when it was read, also if it was no key."""
        for text in (b"key material", b"nonsense"):
            posted = bytearray(text)
            Deferred.fromCoroutine(self.deploys.start(caller(), self.wish(private_key=posted), ADDRESS)).addErrback(
                lambda failure: failure.trap(Invalid)
            )
            self.assertEqual(posted, bytes(len(text)))

    def test_forgotten_at_the_end(self) -> None:
        """However a job ends."""
        self.start()
        self.exit(1)
        self.assertTrue(self.ssh.keys[0].forgotten)

    def test_not_shown(self) -> None:
        """A wish that gets into a log has no key in it."""
        self.assertNotIn("key material", repr(self.wish(private_key=bytearray(b"key material"))))

    def test_unusable(self) -> None:
        """The text of the contract, and why."""
        refusal = self.not_started(Invalid, private_key=bytearray(b"nonsense"))
        self.assertEqual(refusal.detail, "invalid private key: no key")

    def test_public_half(self) -> None:
        """Type and fingerprint; the key is not kept."""
        posted = bytearray(b"key")
        asked = self.deploys.public_key(caller(), posted)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(asked)), ("ssh-ed25519", "SHA256:of-the-admin"))
        self.assertEqual((posted, self.ssh.keys[0].forgotten), (b"\0\0\0", True))
        refusal = self.refused(self.deploys.public_key(caller(), bytearray(b"x")), Invalid)
        self.assertEqual(refusal.detail, "invalid key: no key")


class EndTests(DeployCase):
    def test_cancelling(self) -> None:
        """By who started it, and nobody else; twice is no harm."""
        job = self.start()
        self.assertRaises(NotInitiator, self.deploys.cancel, caller("dave"), job.id)
        self.deploys.cancel(caller(), job.id.upper())
        self.assertEqual((job.state, job.lines[-2:]), (State.FAILED, ["ERROR: cancelled by carol", MAY_GO_ON]))
        self.assertEqual(self.deploys.cancel(caller(), job.id).state, State.FAILED)
        self.assertEqual((len(job.lines), self.events()), (5, []))

    def test_shutting_down(self) -> None:
        """Running jobs say so; what waits for the service waits for them; nobody starts another one."""
        job = self.start()
        self.successResultOf(self.deploys.stopService())
        self.assertEqual((job.lines[-2], SHUT_DOWN), (SHUT_DOWN, "ERROR: deployment cancelled: server shutting down"))
        self.not_started(Stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_bug(self) -> None:
        """It is logged, and people learn nothing of it."""
        job = self.start()
        self.ssh.running[0].errback(ZeroDivisionError("internals"))
        self.assertEqual(job.lines[-1], "ERROR: internal error; the server's log says more")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_kept_for_an_hour(self) -> None:
        """Then a job is forgotten; one that is read stays until it is not."""
        job, read = self.start(), self.start()
        self.exit(run=0)
        self.exit(run=1)
        stop = read.listen(lambda: None)
        self.clock.advance(deploy.KEPT_SECONDS - 1)
        self.assertIs(self.deploys.job(caller(), job.id), job)
        self.clock.advance(1)
        self.assertRaises(UnknownJob, self.deploys.job, caller(), job.id)
        self.assertIs(self.deploys.job(caller(), read.id), read)
        stop()
        self.clock.advance(deploys.READ_SECONDS)
        self.assertRaises(UnknownJob, self.deploys.job, caller(), read.id)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_not_too_many_are_kept(self) -> None:
        """The oldest one goes first."""
        jobs = []
        for _ in range(MOST_KEPT + 1):
            jobs.append(self.start())
            self.exit()
            self.clock.advance(1)
        self.assertRaises(UnknownJob, self.deploys.job, caller(), jobs[0].id)
        self.assertIs(self.deploys.job(caller(), jobs[1].id), jobs[1])

    def test_ids(self) -> None:
        """Nonsense, and what nobody knows."""
        self.assertRaises(Invalid, self.deploys.job, caller(), "xyz")
        self.assertRaises(UnknownJob, self.deploys.job, caller(), "0" * 32)

    def test_listeners(self) -> None:
        """They are told of lines and of the end, and there are not too many."""
        job = self.start()
        told: list[int] = []
        stop = job.listen(lambda: told.append(len(job.lines)))
        self.say("one\n")
        stop()
        self.say("two\n")
        self.assertEqual(told, [4])
        for _ in range(MOST_READERS):
            job.listen(lambda: None)
        self.assertRaises(TooManyReaders, job.listen, lambda: None)
