"""
Deploying over SSH: jobs that install identree on a host or take it off again (spec/notifications-and-policy section
10, spec/http-api section 9.1).

A private key is in memory from the request until it has signed once. A job lives in the memory of this process, and so
does what it printed; what it did is in the history and in the audit log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from identree.app.journal import Journal
from identree.app.people import Caller
from identree.app.ports import Monotonic, Now
from identree.core import deploy
from identree.core.addresses import throttle_key
from identree.core.challenge import HistoryEntry, Live
from identree.core.deploy import (
    Access,
    BadPrivateKey,
    ExpectedKey,
    HostKey,
    HostKeyChanged,
    HostKeyMismatch,
    HostKeyUnknown,
    Scrubber,
    SshTrouble,
    State,
    Target,
    Transcript,
)
from identree.core.errors import Forbidden, Invalid, NotFound, Refused, StorageUnavailable, Throttled
from identree.core.events import Deployed, Event, HostUnconfigured
from identree.core.limits import SlidingWindow

# Seconds in which a host key that was shown can be confirmed without waiting for the next start.
OFFER_SECONDS = 300.0
MOST_OFFERS = 100
# Ended jobs that are kept; each has up to a megabyte of output.
MOST_KEPT = 50
# Seconds after which a job that nobody needs any more is looked at again while somebody reads it.
READ_SECONDS = 30
# Streams of one job.
MOST_READERS = 10
# Seconds for which a job waits to be recorded; the audit log may be stuck.
RECORD_SECONDS = 15

INSTALLED = "Install completed successfully."
REMOVED = "Removal completed successfully."
TIMED_OUT = f"ERROR: timed out after {deploy.SESSION_SECONDS // 60}m{deploy.SESSION_SECONDS % 60}s"
SHUT_DOWN = "ERROR: deployment cancelled: server shutting down"
MAY_GO_ON = "What had begun on the host may still go on there."
# What sudo says when it may not do without a password.
_SUDO_ASKS = ("sudo: a password is required", "sudo: a terminal is required", "sudo: no tty present")


# -- ports ------------------------------------------------------------------------------------------------------------
class Key(Protocol):
    """A private key; it never leaves the client."""

    @property
    def type(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def forget(self) -> None: ...


class Ssh(Protocol):
    """See :class:`identree.clients.sshdeploy.SshClient`."""

    async def load_key(self, text: bytes | bytearray) -> Key:
        """:raise BadPrivateKey:"""

    async def host_key(self, host: str, port: int) -> HostKey:
        """:raise SshTrouble:"""

    async def run(
        self,
        *,
        target: Target,
        key: Any,
        expected: ExpectedKey,
        command: str,
        secured: Callable[[HostKey], Awaitable[None]],
        stdin: Callable[[], Awaitable[bytes]],
        output: Callable[[bytes, bool], None],
    ) -> int:
        """
        :param key: one that it has loaded.
        :raise HostKeyMismatch, SshTrouble:
        """


class Confirmed(Protocol):
    """A host key that somebody has confirmed."""

    @property
    def key(self) -> HostKey: ...
    @property
    def confirmed_by(self) -> str: ...
    @property
    def confirmed_at(self) -> datetime: ...


class Records(Protocol):
    """See :class:`identree.storage.hostkeys.DeployStore`."""

    async def host_key(self, hostname: str, port: int) -> Confirmed | None: ...
    async def remember_host_key(self, hostname: str, port: int, key: HostKey, by: str, now: datetime) -> Confirmed: ...
    async def forget_host_key(self, hostname: str, port: int) -> bool: ...
    async def record(self, entries: Sequence[HistoryEntry], event: Event, live: Sequence[Live]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """
    What others do for a job.

    :ivar server_url: where hosts get identree from: the install URL, else the external one.
    :ivar install_script: the script that hosts get, custom or built in.
    :ivar uninstall_script: what takes identree off a host; with whether PAM is unconfigured and files are removed.
    :ivar access: gives a host, by the name under which identree will have it, what it needs to talk to us: a token that
        is good once where there is a registry, else the shared secret; with the address of who asked. What it refuses
        ends the job.
    :ivar remove_host: what identree knows of a host is forgotten; with the address of who asked.
    :ivar secrets: those of this server; they are struck out of what hosts print.
    """

    server_url: Callable[[], str]
    install_script: Callable[[], Awaitable[bytes]]
    uninstall_script: Callable[[bool, bool], Awaitable[bytes]]
    access: Callable[[Caller, str, str], Awaitable[Access]]
    remove_host: Callable[[Caller, str, str], Awaitable[None]]
    secrets: Callable[[], Iterable[str]]


# -- what is asked ----------------------------------------------------------------------------------------------------
class Kind(Enum):
    INSTALL = "install"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """
    :ivar known_as: the name of the host in identree, normalised.
    :ivar private_key: is overwritten as soon as it was read.
    :ivar host_key: what the administrator says that the host's key is; None: whatever was confirmed before.
    :ivar unconfigure_pam, remove_files: of a removal.
    """

    kind: Kind
    target: Target
    known_as: str
    private_key: bytearray = field(repr=False)
    host_key: ExpectedKey | None = None
    unconfigure_pam: bool = True
    remove_files: bool = True


class TooManyJobs(Refused):
    """As many jobs run as may."""

    key = "too_many_deploys"

    def __init__(self) -> None:
        super().__init__("server busy — too many concurrent deploys")


class Stopping(Refused):
    """The server stops."""

    key = "server_stopping"

    def __init__(self) -> None:
        super().__init__("the server is stopping; try again in a minute")


class HostUnreachable(Refused):
    """The host's key could not be read; ``detail`` says why and what to do."""

    key = "host_unreachable"


class NoScript(Refused):
    """There is no script to be run; the log says why."""

    key = "no_script"


class UnknownJob(NotFound):
    """It never was, or is forgotten, or runs on another replica."""

    key = "job_not_found"


class NotInitiator(Forbidden):
    """Another administrator has started it."""

    key = "not_initiator"


class TooManyReaders(Throttled):
    key = "too_many_connections"


# -- jobs -------------------------------------------------------------------------------------------------------------
class Job:
    """
    :ivar id: 32 hex digits; of a removal 16.
    :ivar confirmed: the host key that was confirmed before this job; None: this is the first use.
    :ivar ended: None while it runs; else when, in seconds of the monotonic clock.
    """

    def __init__(self, *, id: str, caller: Caller, wish: Wish, address: str, confirmed: Confirmed | None) -> None:
        self.id = id
        self.confirmed = confirmed
        self.caller = caller
        self.kind = wish.kind
        self.target = wish.target
        self.known_as = wish.known_as
        self.address = address
        self.state = State.RUNNING
        self.reported = ""
        self.sudo_asked = False
        self.cancelled = ""
        self._transcript = Transcript()
        self._scrubbers: dict[bool, Scrubber] = {}
        self._listeners: set[Callable[[], None]] = set()
        self.ended: float | None = None
        self.work: Deferred[None] | None = None
        self.dropping: IDelayedCall | None = None

    @property
    def lines(self) -> Sequence[str]:
        return self._transcript.lines

    @property
    def readers(self) -> int:
        return len(self._listeners)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """
        Be called when there are more lines, or the state is another one.

        :returns: what ends that.
        :raise TooManyReaders:
        """
        if len(self._listeners) >= MOST_READERS:
            raise TooManyReaders(READ_SECONDS)
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def say(self, line: str) -> None:
        self._transcript.say(line)
        self._tell()

    def strike_out(self, secrets: Iterable[str]) -> None:
        """To be called before the first output."""
        known = tuple(secrets)
        self._scrubbers = {stdout: Scrubber(known) for stdout in (True, False)}

    def output(self, data: bytes, stdout: bool) -> None:
        """From the host: the two streams are cut into lines apart, and stand in the order in which these end."""
        self._show(self._scrubbers[stdout].feed(data), stdout)

    def close_output(self) -> None:
        for stdout, scrubber in self._scrubbers.items():
            self._show(scrubber.close(), stdout)

    def _show(self, lines: list[str], stdout: bool) -> None:
        if not lines or self.state is not State.RUNNING:
            return
        if stdout and not self.reported:
            self.reported = deploy.reported_hostname(lines)
        if not stdout and any(line.startswith(_SUDO_ASKS) for line in lines):
            self.sudo_asked = True
        if not self._transcript.full:
            self._transcript.output(lines)
            self._tell()

    def end(self, state: State, *lines: str) -> None:
        for line in lines:
            self._transcript.say(line)
        self.state = state
        self._tell()

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()


class Deploys(Service):
    """
    :param records: what is kept in the database.
    :param recording: whether events can be recorded now; what cannot be recorded is not begun.
    :param clock: times the jobs. :param monotonic: times limits.
    :param token: returns n random bytes as hex.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        ssh: Ssh,
        records: Records,
        parts: Parts,
        clock: IReactorTime,
        monotonic: Monotonic,
        now: Now,
        token: Callable[[int], str],
        journal: Journal,
        recording: Callable[[], bool] = lambda: True,
    ) -> None:
        self._ssh = ssh
        self._records = records
        self._parts = parts
        self._clock = clock
        self._monotonic = monotonic
        self._now = now
        self._token = token
        self._journal = journal
        self._recording = recording
        self._starts = SlidingWindow(1, deploy.START_SECONDS)
        # what was shown to whom, of which place, and until when it may be confirmed
        self._offers: dict[tuple[str, str, int], tuple[str, float]] = {}
        self._jobs: dict[str, Job] = {}
        self._busy = 0
        self._stopping = False

    @property
    def busy(self) -> int:
        """Jobs and looks at host keys under way, of :data:`~identree.core.deploy.MOST_JOBS`."""
        return self._busy

    # -- as a service -------------------------------------------------------------------------------------------------
    def startService(self) -> None:
        super().startService()
        self._stopping = False

    def stopService(self) -> Deferred[object]:
        """Cancels what runs, and waits until it has ended."""
        super().stopService()
        self._stopping = True
        ending: list[Deferred[None]] = []
        for job in self._jobs.values():
            if job.dropping is not None:
                with suppress(AlreadyCalled, AlreadyCancelled):
                    job.dropping.cancel()
            if job.work is not None and job.state is State.RUNNING:
                done: Deferred[None] = Deferred()
                job.work.addBoth(_pass_on, done)
                ending.append(done)
                self._cancel(job, SHUT_DOWN)
        return DeferredList(ending)  # type: ignore[return-value]

    # -- small questions ----------------------------------------------------------------------------------------------
    async def public_key(self, caller: Caller, private_key: bytearray) -> tuple[str, str]:
        """
        Type and fingerprint of a private key, which is overwritten.

        :raise Invalid: it cannot be used.
        """
        _must_be_admin(caller)
        try:
            key = await self._ssh.load_key(private_key)
        except BadPrivateKey as problem:
            raise Invalid(f"invalid key: {problem}") from None
        finally:
            wipe(private_key)
        key.forget()
        return key.type, key.fingerprint

    async def uninstall_script(self, unconfigure_pam: bool, remove_files: bool) -> bytes:
        """:raise Invalid: sudo would not work any more. :raise NoScript:"""
        if remove_files and not unconfigure_pam:
            raise Invalid("files cannot be removed while PAM still uses them: sudo would not work any more")
        return await self._script(lambda: self._parts.uninstall_script(unconfigure_pam, remove_files))

    async def forget_host_key(self, caller: Caller, hostname: str, port: int, address: str) -> bool:
        """
        The host may have another key from now on; it has to be confirmed.

        :raise Invalid: of :func:`identree.core.deploy.target`.
        """
        _must_be_admin(caller)
        place = deploy.target(hostname, port, "")
        known = await self._records.host_key(place.host, place.port)
        if known is None or not await self._records.forget_host_key(place.host, place.port):
            return False
        self._journal.warn(
            "DEPLOY host key forgotten",
            admin=caller.username,
            host=place.host,
            port=place.port,
            fingerprint=known.key.fingerprint,
            client_ip=address,
        )
        return True

    # -- starting -----------------------------------------------------------------------------------------------------
    def admit(self, caller: Caller, address: str, confirmed: tuple[str, int, str] | None = None) -> None:
        """
        Count a start, before what was sent is looked at.

        :param confirmed: host, port and host key as they were sent. The confirmation of a key that this administrator
            was shown belongs to the start before.
        :raise Throttled: too soon.
        """
        _must_be_admin(caller)
        now = self._monotonic()
        if confirmed is not None and self._takes_offer(caller, confirmed, now):
            return
        key = throttle_key(address)
        wait = self._starts.retry_after(key, now)
        if wait:
            raise Throttled(wait, "too many requests — wait before retrying")
        self._starts.record(key, now)

    def _takes_offer(self, caller: Caller, confirmed: tuple[str, int, str], now: float) -> bool:
        hostname, port, text = confirmed
        try:
            place, key = deploy.target(hostname, port, ""), deploy.expected_key(text)
        except Invalid:
            return False
        offer = self._offers.pop((caller.username, place.host, place.port), None)
        return offer is not None and offer[0] == key.fingerprint and now < offer[1]

    async def start(self, caller: Caller, wish: Wish, address: str) -> Job:
        """
        Begin a job, when the host's key is confirmed.

        :raise Invalid: the private key cannot be used, or the wish would break the host.
        :raise HostKeyUnknown: it has to be confirmed: repeat with ``host_key``.
        :raise HostKeyChanged: what was given is not what was confirmed before.
        :raise TooManyJobs, Stopping, HostUnreachable, NoScript:
        :raise StorageUnavailable: also while nothing can be recorded.
        """
        _must_be_admin(caller)
        try:
            key = await self._ssh.load_key(wish.private_key)
        except BadPrivateKey as problem:
            raise Invalid(f"invalid private key: {problem}") from None
        finally:
            wipe(wish.private_key)
        if self._stopping:
            key.forget()
            raise Stopping
        if self._busy >= deploy.MOST_JOBS:
            key.forget()
            raise TooManyJobs
        self._busy += 1
        try:
            if not self._recording():
                raise StorageUnavailable("full", "the audit log cannot be written")
            if wish.kind is Kind.REMOVE:
                script = await self.uninstall_script(wish.unconfigure_pam, wish.remove_files)
            else:
                script = await self._script(self._parts.install_script)
            expected, confirmed = await self._expected(caller, wish, address)
            if self._stopping:
                raise Stopping
        except BaseException:
            self._busy -= 1
            key.forget()
            raise
        job = Job(
            id=self._token(16 if wish.kind is Kind.INSTALL else 8),
            caller=caller,
            wish=wish,
            address=address,
            confirmed=confirmed,
        )
        self._jobs[job.id] = job
        self._launch(job, key, expected, script)
        return job

    async def _script(self, get: Callable[[], Awaitable[bytes]]) -> bytes:
        try:
            return await get()
        except (Refused, StorageUnavailable, CancelledError):
            raise
        except Exception as problem:
            self._log.failure("a script for hosts could not be made")
            raise NoScript from problem

    async def _expected(self, caller: Caller, wish: Wish, address: str) -> tuple[ExpectedKey, Confirmed | None]:
        place = wish.target
        known = await self._records.host_key(place.host, place.port)
        if known is not None:
            if wish.host_key is not None and wish.host_key.fingerprint != known.key.fingerprint:
                self._journal.warn(
                    "DEPLOY host key refused",
                    admin=caller.username,
                    host=place.host,
                    port=place.port,
                    expected=known.key.fingerprint,
                    given=wish.host_key.fingerprint,
                    client_ip=address,
                )
                raise HostKeyChanged(
                    f"the host key of {place.place} is known, and is another one: {known.key.type} "
                    f"{known.key.fingerprint}, confirmed by {known.confirmed_by}. If the host was installed anew, let "
                    "identree forget the known key first"
                )
            return ExpectedKey.of(known.key), known
        if wish.host_key is not None:
            return wish.host_key, None
        try:
            shown = await self._ssh.host_key(place.host, place.port)
        except SshTrouble as problem:
            raise HostUnreachable(str(problem)) from None
        self._offer(caller, place, shown)
        raise HostKeyUnknown(place.host, place.port, shown)

    def _offer(self, caller: Caller, place: Target, shown: HostKey) -> None:
        now = self._monotonic()
        self._offers = {who: offer for who, offer in self._offers.items() if now < offer[1]}
        if len(self._offers) >= MOST_OFFERS:
            del self._offers[next(iter(self._offers))]
        self._offers[caller.username, place.host, place.port] = (shown.fingerprint, now + OFFER_SECONDS)

    # -- running ------------------------------------------------------------------------------------------------------
    def _launch(self, job: Job, key: Key, expected: ExpectedKey, script: bytes) -> None:
        target = job.target
        about: dict[str, object] = {
            "admin": job.caller.username,
            "host": target.host,
            "port": target.port,
            "ssh_user": target.user,
        }
        if job.kind is Kind.INSTALL:
            self._journal.info("DEPLOY starting", **about, client_ip=job.address, job=job.id)
        else:
            self._journal.info("REMOVE starting", **about, job=job.id)
        working = Deferred.fromCoroutine(self._work(job, key, expected, script))
        working.addTimeout(deploy.SESSION_SECONDS, self._clock)
        working.addErrback(self._failed, job)
        working.addBoth(self._over, job, key)
        job.work = working

    async def _work(self, job: Job, key: Key, expected: ExpectedKey, script: bytes) -> None:
        target = job.target
        job.say(f"Connecting to {target.place} as {target.user} …")

        async def secured(shown: HostKey) -> None:
            await self._check(job, shown)

        async def stdin() -> bytes:
            return await self._input(job, script)

        if job.kind is Kind.INSTALL:
            command = deploy.install_command(target.user, self._parts.server_url())
        else:
            command = deploy.remove_command(target.user)
        try:
            status = await self._ssh.run(
                target=target,
                key=key,
                expected=expected,
                command=command,
                secured=secured,
                stdin=stdin,
                output=job.output,
            )
        finally:
            job.close_output()
        if status != 0:
            raise SshTrouble(f"the script ended with exit status {status}")
        await (self._installed(job) if job.kind is Kind.INSTALL else self._removed(job))

    async def _check(self, job: Job, shown: HostKey) -> None:
        """The host has proved to have the expected key."""
        place, admin = job.target, job.caller.username
        now = self._now()
        counts = await self._records.remember_host_key(place.host, place.port, shown, admin, now)
        if counts.key != shown:
            # somebody else has confirmed another one meanwhile
            raise HostKeyMismatch(shown)
        if job.confirmed is None:
            self._journal.info(
                "DEPLOY host key confirmed",
                admin=admin,
                host=place.host,
                port=place.port,
                fingerprint=shown.fingerprint,
                client_ip=job.address,
                job=job.id,
            )
        job.say(f"Host key verified: {shown.type} {shown.fingerprint}")

    async def _input(self, job: Job, script: bytes) -> bytes:
        """The host has let us in."""
        access = Access()
        if job.kind is Kind.INSTALL:
            try:
                access = await self._parts.access(job.caller, job.known_as, job.address)
            except Refused as refusal:
                raise SshTrouble(f"the host gets no access to identree: {refusal}") from refusal
        job.strike_out([*self._parts.secrets(), access.token, access.secret])
        script_name = "install" if job.kind is Kind.INSTALL else "uninstall"
        job.say(f"Connected. Running {script_name} script …")
        return deploy.install_input(access, script)

    async def _installed(self, job: Job) -> None:
        name = job.reported or job.known_as
        if job.reported and job.reported != job.known_as:
            job.say(f"The host calls itself {job.reported}.")
        event = Deployed(**self._about(job, name))  # type: ignore[arg-type]
        await self._record(job, "deployed", name, event)
        job.end(State.DONE, INSTALLED)

    async def _removed(self, job: Job) -> None:
        # what a host says about itself must not decide which host is forgotten
        event = HostUnconfigured(**self._about(job, job.known_as))  # type: ignore[arg-type]
        await self._record(job, "", job.known_as, event)
        try:
            await self._parts.remove_host(job.caller, job.known_as, job.address)
        except (Refused, StorageUnavailable) as problem:
            raise SshTrouble(
                f"identree was taken off the host, but what the server knows of it could not be deleted ({problem}); "
                "remove the host on the page of hosts"
            ) from problem
        job.end(State.DONE, REMOVED)

    def _about(self, job: Job, hostname: str) -> dict[str, object]:
        admin = job.caller.username
        return {
            "at": self._now(),
            "username": admin,
            "hostname": hostname,
            "actor": admin,
            "remote_addr": job.address,
        }

    async def _record(self, job: Job, action: str, hostname: str, event: Event) -> None:
        """:param action: for the history; empty: something else tells it there."""
        admin = job.caller.username
        entries = [HistoryEntry(at=event.at, username=admin, action=action, hostname=hostname, actor=admin)]
        live = [Live(event="host_changed", username=admin)]
        recording = Deferred.fromCoroutine(self._records.record(entries if action else [], event, live))
        recording.addTimeout(RECORD_SECONDS, self._clock)
        try:
            await recording
        except (StorageUnavailable, Late) as problem:
            self._log.error(
                "a job over SSH has worked, and could not be recorded: {kind} on {host} by {admin}",
                kind=event.kind,
                host=hostname,
                admin=admin,
            )
            raise SshTrouble("it has worked on the host, but the server could not record it; see its log") from problem

    # -- ending -------------------------------------------------------------------------------------------------------
    def _failed(self, failure: Failure, job: Job) -> None:
        error = failure.value
        if isinstance(error, Late):
            job.end(State.FAILED, TIMED_OUT, MAY_GO_ON)
        elif isinstance(error, CancelledError):
            job.end(State.FAILED, job.cancelled or SHUT_DOWN, MAY_GO_ON)
        elif isinstance(error, HostKeyMismatch):
            job.end(State.FAILED, *self._other_key(job, error.shown))
        elif isinstance(error, SshTrouble):
            hints = []
            if job.sudo_asked:
                hints.append(
                    f"On the host, {job.target.user} needs the right to use sudo without a password (NOPASSWD); or "
                    "connect as root."
                )
            job.end(State.FAILED, *hints, f"ERROR: {error}")
        elif isinstance(error, StorageUnavailable):
            job.end(State.FAILED, "ERROR: the server cannot reach its database; try again")
        else:
            self._log.failure("a job over SSH failed", failure)
            job.end(State.FAILED, "ERROR: internal error; the server's log says more")

    def _other_key(self, job: Job, shown: HostKey) -> tuple[str, ...]:
        place = job.target
        self._journal.warn(
            "DEPLOY host key refused",
            admin=job.caller.username,
            host=place.host,
            port=place.port,
            shown=shown.fingerprint,
            client_ip=job.address,
            job=job.id,
        )
        confirmed = job.confirmed
        if confirmed is None:
            return (
                f"ERROR: the host key of {place.place} is not the one that was given. Nothing was sent.",
                f"The host has {shown.type} {shown.fingerprint}.",
            )
        return (
            f"ERROR: THE HOST KEY OF {place.place} HAS CHANGED. Nothing was sent.",
            f"The host has {shown.type} {shown.fingerprint}.",
            f"Known is {confirmed.key.type} {confirmed.key.fingerprint}, confirmed by {confirmed.confirmed_by} on "
            f"{confirmed.confirmed_at:%Y-%m-%d}.",
            "Either the host was installed anew, or somebody stands between it and identree.",
            "If the new key is right, let identree forget the known one; then confirm the new one.",
        )

    def _over(self, result: object, job: Job, key: Key) -> None:
        key.forget()
        self._busy -= 1
        job.ended = self._monotonic()
        self._journal.info(
            "DEPLOY finished" if job.kind is Kind.INSTALL else "REMOVE finished",
            admin=job.caller.username,
            host=job.target.host,
            status=job.state.value,
            job=job.id,
        )
        if not self._stopping:
            job.dropping = self._clock.callLater(deploy.KEPT_SECONDS, self._drop, job)
        ended = [one for one in self._jobs.values() if one.ended is not None]
        for old in sorted(ended, key=lambda one: one.ended or 0.0)[: max(0, len(ended) - MOST_KEPT)]:
            if not old.readers:
                self._forget(old)

    def _drop(self, job: Job) -> None:
        if job.readers:
            job.dropping = self._clock.callLater(READ_SECONDS, self._drop, job)
        else:
            self._forget(job)

    def _forget(self, job: Job) -> None:
        if job.dropping is not None and job.dropping.active():
            job.dropping.cancel()
        self._jobs.pop(job.id, None)

    # -- afterwards ---------------------------------------------------------------------------------------------------
    def job(self, caller: Caller, id: str) -> Job:
        """
        :raise Invalid: no id. :raise UnknownJob: :raise NotInitiator:
        """
        _must_be_admin(caller)
        job = self._jobs.get(deploy.job_id(id))
        if job is None:
            raise UnknownJob
        if job.caller.username != caller.username:
            raise NotInitiator
        return job

    def cancel(self, caller: Caller, id: str) -> Job:
        """
        End it, if it still runs. The host is asked to end what it does, which it may not do.

        :raise Invalid, UnknownJob, NotInitiator: as :meth:`job`.
        """
        job = self.job(caller, id)
        if job.state is State.RUNNING:
            self._journal.info("DEPLOY cancelled", admin=caller.username, host=job.target.host, job=job.id)
            self._cancel(job, f"ERROR: cancelled by {caller.username}")
        return job

    def _cancel(self, job: Job, why: str) -> None:
        job.cancelled = job.cancelled or why
        if job.work is not None:
            job.work.cancel()


def wipe(buffer: bytearray) -> None:
    """Overwrite a secret. Copies that were made of it are not reached."""
    buffer[:] = bytes(len(buffer))


def _must_be_admin(caller: Caller) -> None:
    if not caller.is_admin:
        raise Forbidden


def _pass_on(result: object, done: Deferred[None]) -> object:
    done.callback(None)
    return result
