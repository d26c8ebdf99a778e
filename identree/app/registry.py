"""
The host registry as it works: kept in the database, followed while we run, changed by one piece of code for the server
and the command line, and exported to the file of earlier versions (spec/storage section 13, spec/host-agent
section 15).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from identree.app.atomicfile import replace_file
from identree.app.hosts import Hosts
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.ports import Monotonic, Now
from identree.app.statefiles import BadStateFile, Signature, read_state_file
from identree.core import names
from identree.core.addresses import throttle_key
from identree.core.audit import timestamp
from identree.core.challenge import Live
from identree.core.durations import render
from identree.core.errors import Invalid, StorageUnavailable, Throttled
from identree.core.events import (
    EnrolmentTokenCreated,
    HostRegistered,
    HostRegistrationChanged,
    HostRemoved,
    HostSecretRotated,
)
from identree.core.hosts import (
    EVERYBODY,
    SECRET_BYTES,
    TOKEN_PREFIX,
    BadToken,
    HostEntry,
    HostRegistry,
    OtherHost,
    RegistryOff,
    TooManyHosts,
    checked_group,
    checked_users,
    digest_of,
    registrable,
    token_digest,
)
from identree.core.limits import FailureThrottle, SlidingWindow
from identree.storage.interface import EnrolmentToken, Redeem, Store

# ``IDENTREE_HOST_REGISTRY``.
AUTO, ON, OFF = "auto", "on", "off"

FILE_BYTES = 16 << 20
# How often the revision is looked at. Other processes of a database in a file wake nobody.
POLL_SECONDS = 2.0
# Hosts read at once: a few milliseconds of work.
PAGE = 500
# A registry that changes while it is read is read again; so often until the next look.
MOST_READS = 20
# Events of other programs that are taken over at once.
MOST_EVENTS = 100
# Who writes the file holds its lock for milliseconds; who does not get it by then leaves it to the others.
LOCK_SECONDS = 5.0
LOCK_AGAIN_SECONDS = 0.05

# How long an enrolment token may be good.
SHORTEST_LIFE = timedelta(minutes=1)
LONGEST_LIFE = timedelta(days=7)
DEFAULT_LIFE = timedelta(hours=1)
# Attempts to enrol from one address, and those of all that cost the database a write, in a minute. A rollout of
# hundreds of hosts behind one address should come through; what does not even look like a token must not use up the
# places of all.
MOST_FROM_ONE = 120
MOST_FROM_ALL = 600
ATTEMPTS_SECONDS = 60.0
ENROL = "POST /api/enrol"

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


# -- the file ---------------------------------------------------------------------------------------------------------
class RegistryFile:
    """
    The file of earlier versions: taken over once, and afterwards written, so that other programs can read what is
    registered. All methods block, and belong in a thread.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen: Signature = None

    def read(self) -> HostRegistry | None:
        """None: there is none. :raise BadStateFile: it must not be used."""
        raw, self._seen = read_state_file(self.path, FILE_BYTES)
        if raw is None:
            return None
        try:
            return HostRegistry.parse(raw)
        except ValueError as problem:
            raise BadStateFile(f"{self.path}: {problem}") from problem

    def read_if_changed(self) -> HostRegistry | None:
        """None also when it is as it was at the last look. :raise BadStateFile:"""
        try:
            about = os.lstat(self.path)
        except OSError:
            return None
        if self._seen == (about.st_ino, about.st_mtime_ns, about.st_size):
            return None
        return self.read()

    def settle(self, registry: HostRegistry, *, used: bool) -> str:
        """
        At the start. A file that was taken over stays as it was until the first change, so that one can go back to the
        program before; an export is brought up to date.

        :param used: whether there is anything to export.
        :returns: what an operator should know, or empty.
        :raise OSError, BadStateFile: it cannot be written.
        """
        try:
            there = self.read()
        except BadStateFile as problem:
            return f"{problem}. It is not read any more, and is replaced when the registry changes"
        if there is None or there.exported:
            if used:
                self._write(registry.export())
        elif not there.means(registry):
            return (
                f"{self.path} differs from the registry in the database, which alone counts; changes of the file do "
                "nothing, and are lost with the next change of the registry: use identree add-host, remove-host and "
                "change-host"
            )
        return ""

    def write(self, registry: HostRegistry, *, imported: bool) -> None:
        """
        :param imported: whatever is there may be replaced; otherwise only an export.
        :raise OSError, BadStateFile: it is as it was.
        """
        if not imported:
            there = self.read()
            if there is not None and not there.exported:
                raise BadStateFile(f"{self.path} was not taken over yet")
        self._write(registry.export())

    def _lock_file(self) -> int:
        path, flags = f"{self.path}.lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return os.open(path, flags)
        if os.geteuid() == 0:
            # a command that root gave must not lock out the server; only of a file that was made just now, as another
            # one could be a link to whatever
            owner = os.stat(os.path.dirname(path) or ".")
            os.fchown(handle, owner.st_uid, owner.st_gid)
        return handle

    def _write(self, content: bytes) -> None:
        with open(self._lock_file(), "rb") as lock:
            until = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(LOCK_AGAIN_SECONDS)
            with suppress(BadStateFile):
                there, self._seen = read_state_file(self.path, FILE_BYTES)
                if there == content:
                    return
            replace_file(self.path, content, ".hosts-tmp-")
            with suppress(BadStateFile):
                _, self._seen = read_state_file(self.path, FILE_BYTES)


async def nobody_minds() -> None:
    """What is called on a change that nobody wants to know of."""


# -- the registry that is asked ---------------------------------------------------------------------------------------
class LiveRegistry(Service):
    """
    The registry as it counts now: call it for the value. Until it is loaded it lets nobody in.

    Follows what other processes and replicas change: at once where the database wakes us, else within
    :data:`POLL_SECONDS`.

    :param mode: ``auto``: only registered hosts are served as soon as one was ever registered, also when all of them
        were removed again; ``on``: always; ``off``: the registry is kept, and not asked.
    :param clock: times the looks.
    :param in_thread: runs a blocking function away from the reactor.
    :param changed: called when the value has become another one.
    :param takes_events: this process has the audit log: what programs beside the server did goes into its chain.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        store: Store,
        mode: str,
        file: RegistryFile,
        clock: IReactorTime,
        in_thread: InThread,
        changed: Callable[[], Awaitable[None]] = nobody_minds,
        takes_events: bool = True,
    ) -> None:
        self._store = store
        self.mode = mode
        self._file = file
        self._clock = clock
        self._in_thread = in_thread
        self._changed = changed
        self._takes_events = takes_events
        self._stored = HostRegistry.empty()
        self._counts = HostRegistry.empty() if mode == OFF else HostRegistry({}, closed=True)
        self._revision = -1
        # reads are numbered in the order in which they began
        self._reading = self._accepted = 0
        self._imported = False
        self.file_trouble = ""
        self.taken_over = 0
        self._import_trouble = ""
        self._trouble = ""
        self._work: Deferred[None] | None = None
        self._waking: Deferred[None] | None = None
        self._woken = False
        self._unsubscribe: Callable[[], None] = lambda: None

    def __call__(self) -> HostRegistry:
        return self._counts

    @property
    def stored(self) -> HostRegistry:
        """All registered hosts, also while the registry is switched off."""
        return self._stored

    @property
    def used(self) -> bool:
        """Whether a host was ever registered."""
        return self._revision > 0

    # -- once ---------------------------------------------------------------------------------------------------------
    async def load(self) -> None:
        """
        Read it, after taking over the file of earlier versions where that was not done yet. To be called before hosts
        are served.

        :raise BadStateFile: the file is to be taken over and cannot be used; taken for an empty one, it would open
            every host to the shared secret. (Where a registry is in force already, it opens nothing, and is told.)
        :raise StorageUnavailable: try again.
        """
        look = await self._store.registry_look()
        self._imported = look.imported
        usable = True
        if not look.imported:
            try:
                await self._take_over(await self._in_thread(self._file.read), look.revision)
            except BadStateFile as problem:
                if look.revision == 0:
                    raise
                usable = False
                self._not_taken_over(problem)
        await self._read()
        if usable:
            await self._settle_file()
        if self.mode == ON and not len(self._stored):
            self._log.warn(
                "host registry: it is on and has no host, so every host is refused; see identree add-host and identree "
                "enrol"
            )

    async def _settle_file(self) -> None:
        registry, used = self._stored, self.used
        try:
            told = await self._in_thread(lambda: self._file.settle(registry, used=used))
        except (OSError, BadStateFile) as problem:
            self._not_written(problem)
        else:
            if told:
                self._log.warn("host registry: {told}", told=told)

    # -- again and again ----------------------------------------------------------------------------------------------
    async def refresh(self) -> bool:
        """
        Look whether it has changed, and read it then; whether it had.

        :raise StorageUnavailable: what counted goes on counting.
        """
        look = await self._store.registry_look()
        self._imported = look.imported
        if not look.imported:
            await self._look_at_file(look.revision)
            look = await self._store.registry_look()
        changed = look.revision != self._revision and await self._read()
        if changed:
            await self._write_file()
        if look.outside and self._takes_events:
            while await self._store.take_outside_events(MOST_EVENTS) == MOST_EVENTS:
                pass
        return changed

    async def _look_at_file(self, revision: int) -> None:
        try:
            await self._take_over(await self._in_thread(self._file.read_if_changed), revision)
        except BadStateFile as problem:
            self._not_taken_over(problem)

    def _not_taken_over(self, problem: BadStateFile) -> None:
        if str(problem) != self._import_trouble:
            self._import_trouble = str(problem)
            self._log.error("host registry: {problem}. The file is not taken over.", problem=problem)

    async def _take_over(self, found: HostRegistry | None, revision: int) -> None:
        if found is None or (found.exported and revision > 0):
            return
        if found.dropped:
            self._log.warn(
                "host registry: {count} entries of {path} are unusable and ignored: {names}",
                count=len(found.dropped),
                path=self._file.path,
                names=", ".join(map(repr, found.dropped[:10])),
            )
        try:
            taken = await self._store.import_registry(found.entries, exported=found.exported)
        except TooManyHosts as problem:
            raise BadStateFile(f"{self._file.path}: {problem}") from problem
        if taken:
            self._imported = True
            self.taken_over = len(found)
            self._log.info(
                "host registry: {count} hosts of {path} were taken over into the database; the file is only an export "
                "from now on",
                count=len(found),
                path=self._file.path,
            )

    async def _read(self) -> bool:
        """
        :returns: whether the value is another one.
        :raise StorageUnavailable: also when it changes faster than it can be read.
        """
        self._reading += 1
        turn = self._reading
        for _ in range(MOST_READS):
            found = await self._pages()
            if found is None:
                continue
            revision, entries = found
            closed = self.mode == ON or revision > 0
            # sorting and hashing many thousand names takes longer than the reactor may be held
            stored = await self._in_thread(partial(HostRegistry.of, entries, closed=closed))
            if turn < self._accepted or revision == self._revision:
                # who began later has seen at least as much; or it is what we have
                return False
            self._accepted = turn
            before = self._counts
            self._revision, self._stored = revision, stored
            if self.mode != OFF:
                self._counts = stored
            self._say(before)
            await self._changed()
            return True
        raise StorageUnavailable("locked", "the host registry changes while it is read")

    async def _pages(self) -> tuple[int, list[HostEntry]] | None:
        """None: it has changed in between."""
        entries: list[HostEntry] = []
        revision: int | None = None
        while True:
            page = await self._store.registry_page(entries[-1].name if entries else "", PAGE)
            if revision is not None and page.revision != revision:
                return None
            revision = page.revision
            entries += page.entries
            if len(page.entries) < PAGE:
                return revision, entries

    def _say(self, before: HostRegistry) -> None:
        if self._counts.enabled and not before.enabled:
            self._log.warn("host registry: a host is registered, so from now on only registered hosts are served")
        if len(before) and not len(self._counts):
            self._log.error(
                "host registry: it has become empty, so every host is refused. Register hosts; or, to let all hosts in "
                "by the shared secret, set IDENTREE_HOST_REGISTRY=off."
            )

    async def _write_file(self) -> None:
        registry, imported = self._stored, self._imported
        try:
            await self._in_thread(lambda: self._file.write(registry, imported=imported))
        except (OSError, BadStateFile) as problem:
            self._not_written(problem)
        else:
            self.file_trouble = ""

    def _not_written(self, problem: Exception) -> None:
        told = (problem.strerror or str(problem)) if isinstance(problem, OSError) else str(problem)
        if told != self.file_trouble:
            self.file_trouble = told
            self._log.warn(
                "host registry: {path} cannot be written: {problem}. The database has the registry, nothing is lost; "
                "what reads the file sees an old state",
                path=self._file.path,
                problem=told,
            )

    # -- as a service -------------------------------------------------------------------------------------------------
    def startService(self) -> None:
        super().startService()
        self._unsubscribe = self._store.subscribe(self._heard)
        self._work = Deferred.fromCoroutine(self._follow())

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        self._unsubscribe()
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
        return work

    def _heard(self, live: Live) -> None:
        if live.event in ("registry_changed", "resync"):
            self._woken = True
            waking, self._waking = self._waking, None
            if waking is not None:
                waking.callback(None)

    async def _follow(self) -> None:
        with suppress(CancelledError):
            while True:
                await self._pause()
                try:
                    await self.refresh()
                    self._trouble = ""
                except CancelledError:
                    raise
                except StorageUnavailable as problem:
                    if str(problem) != self._trouble:
                        self._trouble = str(problem)
                        self._log.warn("host registry: it cannot be looked at: {problem}", problem=problem)
                except Exception:
                    self._log.failure("host registry: this look failed")

    async def _pause(self) -> None:
        """Until somebody wakes us, or it is time."""
        if not self._woken:
            waking = self._waking = Deferred()

            def time_is_up() -> None:
                self._waking = None
                waking.callback(None)

            call = self._clock.callLater(POLL_SECONDS, time_is_up)
            try:
                await waking
            finally:
                self._waking = None
                if call.active():
                    call.cancel()
        self._woken = False


# -- changes ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class By:
    """
    Who changes something.

    :ivar name: of the administrator.
    :ivar reason: for the audit record; what was used where there is no page.
    """

    name: str
    reason: str = ""
    remote_addr: str = ""


class Registrar:
    """
    What changes the registry; each change counts here when the call returns.

    :param token: returns n random bytes as hex.
    :param outside: this process has no audit log; a server records what was done.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        store: Store,
        registry: LiveRegistry,
        now: Now,
        token: Callable[[int], str],
        outside: bool = False,
    ) -> None:
        self._store = store
        self._registry = registry
        self._now = now
        self._token = token
        self._outside = outside

    async def add(
        self, hostname: str, users: Sequence[str] | None, group: str, by: By, *, first: bool = False
    ) -> tuple[HostEntry, str]:
        """
        Register a host.

        :param users: None: everybody.
        :param first: it may be the first one ever, by which all others are refused.
        :returns: the entry, and the secret, which is nowhere else.
        :raise Invalid, HostExists, FirstHost, TooManyHosts: nothing is changed.
        """
        secret = self._token(SECRET_BYTES)
        now = self._now()
        entry = HostEntry(
            name=registrable(hostname),
            digest=digest_of(secret),
            users=frozenset({EVERYBODY}) if users is None else checked_users(users),
            group=checked_group(group) if group else "",
            registered_at=now,
        )
        event = HostRegistered(
            at=now,
            username=by.name,
            actor=by.name,
            hostname=entry.name,
            reason=by.reason,
            remote_addr=by.remote_addr,
        )
        await self._store.register_host(entry, event, first=self._first(first), outside=self._outside)
        await self._follow()
        return entry, secret

    async def change(self, hostname: str, users: Sequence[str] | None, group: str | None, by: By) -> None:
        """
        :param users: None leaves them; so does ``group``, where empty takes it away.
        :raise Invalid, UnknownHost: nothing is changed.
        """
        name = names.hostname(hostname)
        listed = None if users is None else checked_users(users)
        label = checked_group(group) if group else group
        said = [] if listed is None else [f"users {', '.join(sorted(listed))}"]
        said += [] if label is None else [f"group {label or 'none'}"]
        event = HostRegistrationChanged(
            at=self._now(),
            username=by.name,
            actor=by.name,
            hostname=name,
            # a long list of users must not make a long record
            reason="; ".join(said)[: names.REASON_LENGTH],
            remote_addr=by.remote_addr,
        )
        await self._store.change_host(name, listed, label, event, outside=self._outside)
        await self._follow()

    async def remove(self, hostname: str, by: By) -> str:
        """The name as it was registered. :raise Invalid, UnknownHost: nothing is changed."""
        name = names.hostname(hostname)
        event = HostRemoved(
            at=self._now(),
            username=by.name,
            actor=by.name,
            hostname=name,
            reason=by.reason,
            remote_addr=by.remote_addr,
        )
        await self._store.unregister_host(name, event, outside=self._outside)
        await self._follow()
        return name

    async def rotate(self, hostname: str, by: By) -> tuple[str, str]:
        """The name and the new secret; the old one is void. :raise Invalid, UnknownHost: nothing is changed."""
        name, secret = names.hostname(hostname), self._token(SECRET_BYTES)
        event = HostSecretRotated(
            at=self._now(),
            username=by.name,
            actor=by.name,
            hostname=name,
            reason=by.reason,
            remote_addr=by.remote_addr,
        )
        await self._store.rotate_host_secret(name, digest_of(secret), event, outside=self._outside)
        await self._follow()
        return name, secret

    async def enrolment_token(
        self,
        hostname: str,
        by: By,
        *,
        users: Sequence[str] | None = None,
        group: str = "",
        life: timedelta = DEFAULT_LIFE,
        again: bool = False,
        first: bool = False,
    ) -> tuple[EnrolmentToken, str]:
        """
        Let a host get a secret of its own, once.

        :param again: also when it is registered; its secret is replaced then.
        :returns: what is kept of the token, and the token, which is nowhere else.
        :raise RegistryOff: it would get a secret that is not accepted.
        :raise Invalid, HostExists, FirstHost, TooManyHosts: nothing is changed.
        """
        if self._registry.mode == OFF:
            raise RegistryOff
        if not SHORTEST_LIFE <= life <= LONGEST_LIFE:
            raise Invalid(f"ttl: {render(SHORTEST_LIFE)} to {render(LONGEST_LIFE)}")
        text = TOKEN_PREFIX + self._token(SECRET_BYTES)
        now = self._now()
        token = EnrolmentToken(
            digest=digest_of(text),
            hostname=registrable(hostname),
            users=None if users is None else checked_users(users),
            group=checked_group(group) if group else "",
            again=again,
            created_by=by.name,
            created_at=now,
            expires_at=now + life,
        )
        event = EnrolmentTokenCreated(
            at=now,
            username=by.name,
            actor=by.name,
            hostname=token.hostname,
            reason=f"until {timestamp(token.expires_at)}",
            remote_addr=by.remote_addr,
        )
        await self._store.add_enrolment_token(token, event, first=self._first(first), outside=self._outside)
        return token, text

    def _first(self, wanted: bool) -> bool:
        """Only where one host more decides about all others must that be wanted."""
        return wanted or self._registry.mode != AUTO

    async def _follow(self) -> None:
        try:
            await self._registry.refresh()
        except StorageUnavailable as problem:
            # the change is made; the next look sees it
            self._log.warn("host registry: it cannot be looked at: {problem}", problem=problem)


# -- enrolment --------------------------------------------------------------------------------------------------------
class RegistryReader(Protocol):
    """The registry, as far as enrolment is concerned."""

    @property
    def mode(self) -> str: ...

    async def refresh(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """:ivar secret: the host's own."""

    hostname: str
    secret: str = field(repr=False)


class Enrolments:
    """
    What a host does with its enrolment token.

    :param throttle: of failed authentications per address; the one that ``hosts`` looks at.
    :param token: returns n random bytes as hex.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        store: Store,
        registry: RegistryReader,
        hosts: Hosts,
        throttle: FailureThrottle,
        now: Now,
        monotonic: Monotonic,
        token: Callable[[int], str],
        journal: Journal,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._registry = registry
        self._hosts = hosts
        self._throttle = throttle
        self._now = now
        self._monotonic = monotonic
        self._token = token
        self._journal = journal
        self._metrics = metrics
        self._from_one = SlidingWindow(MOST_FROM_ONE, ATTEMPTS_SECONDS)
        self._from_all = SlidingWindow(MOST_FROM_ALL, ATTEMPTS_SECONDS, max_keys=1)

    def admit(self, address: str) -> None:
        """Before anything is read. :raise Throttled: with the seconds to wait."""
        key, now = throttle_key(address), self._monotonic()
        wait = max(
            self._throttle.retry_after(key, now),
            self._from_one.retry_after(key, now),
            self._from_all.retry_after("", now),
        )
        if wait > 0:
            raise Throttled(wait)
        self._from_one.record(key, now)

    async def redeem(self, token: str, hostname: str, address: str) -> Enrolled:
        """
        Give the host a secret of its own. It works at once, here.

        :raise Invalid: the host name is none.
        :raise BadToken: counted against the address.
        :raise OtherHost, HostExists, TooManyHosts, RegistryOff: refused; the token is still good.
        """
        name = registrable(hostname)
        try:
            digest = token_digest(token)
            if self._registry.mode == OFF:
                raise RegistryOff
            self._from_all.record("", self._monotonic())
            secret = self._token(SECRET_BYTES)
            done = await self._store.redeem_enrolment_token(
                Redeem(token=digest, hostname=name, secret=digest_of(secret), now=self._now(), remote_addr=address)
            )
        except BadToken as problem:
            self._refused(f"enrolment token {problem.why}", name, address)
            self._throttle.failed(throttle_key(address), self._monotonic())
            self._metrics.auth_failures.inc()
            raise
        except OtherHost:
            # a mistake more often than an attack: the token is a good one
            self._refused("enrolment token of another host", name, address)
            raise
        self._journal.info("HOST_ENROLLED", host=name, again=done.again, token_by=done.created_by, remote_addr=address)
        try:
            await self._registry.refresh()
        except StorageUnavailable as problem:
            # it is registered; the next look sees it
            self._log.warn("host registry: it cannot be looked at: {problem}", problem=problem)
        return Enrolled(hostname=name, secret=secret)

    def _refused(self, reason: str, hostname: str, address: str) -> None:
        self._journal.warn("AUTH_FAILURE", reason=reason, remote_addr=address, host=hostname)
        self._hosts.note_failure(f"{reason}: {ENROL}", address, hostname=hostname)


def expires_text(at: datetime) -> str:
    """For people, in UTC."""
    return at.strftime("%Y-%m-%d %H:%M UTC")
