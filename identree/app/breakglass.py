"""
Break-glass passwords on the server: taking them in from hosts, showing one to an administrator, and hearing of their
use (spec/http-api sections 7.6 to 7.8, spec/notifications-and-policy section 8).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from identree.app.challenges import instant_text
from identree.app.escrow import EscrowBackend, EscrowFailed, Stored
from identree.app.hosts import Credential, Hosts
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.people import Caller
from identree.app.ports import Now
from identree.app.rules import Rules
from identree.core import names
from identree.core.challenge import HistoryEntry, Live
from identree.core.errors import Forbidden, Invalid, JustificationRequired, Refused, StorageUnavailable
from identree.core.escrow import COMMAND, MOST_AT_ONCE, TOKEN_SECONDS, token_key
from identree.core.events import BreakglassEscrowed, BreakGlassUsed, RevealedBreakglass
from identree.core.hosts import HostRegistry
from identree.core.tokens import escrow_token, same
from identree.storage.interface import EscrowRecord, Store, TokenUse

ESCROW = "POST /api/breakglass/escrow"
REPORT = "POST /api/breakglass/report"
# A report of a use may wait on its host for the server to come back; what is older than this is taken for a wrong
# clock, as is what is further in the future than clocks differ.
OLDEST_USE = timedelta(days=30)
FUTURE_USE = timedelta(minutes=5)
# Until it may have got a place; the slowest operation takes half a minute.
RETRY_BUSY_SECONDS = 5
# A token is remembered for ten minutes, and some of them end all the time.
RETRY_TOKENS_SECONDS = 60

_UNIX = re.compile(r"-?[0-9]{1,12}")

T = TypeVar("T")


class NoWayToEscrow(Refused):
    """There is no shared secret, no registry and no certificate, so that nothing could prove which host it is."""


class NotItsOwn(Refused):
    """The credential is another host's."""

    key = "credential_mismatch"


class BadEscrowToken(Refused):
    """``detail`` says what is wrong with the token or its time, in the words of the contract."""


class TokenUsed(Refused):
    """The token was good, once."""


class TooManyTokens(Refused):
    """More hosts have escrowed in the last ten minutes than can be told apart from repetitions."""

    key = "rate_limit_exceeded"


class NothingConfigured(Refused):
    """There is no escrow back end; or none that gives passwords back, when one is to be shown."""


class EscrowBusy(Refused):
    """
    As many passwords as may be at once are being stored, or one of the same host is, or the server stops. Trying again
    helps.
    """


class NotStored(Refused):
    """The back end failed; what it has is not known. :ivar by_command: it was the custom command."""

    def __init__(self, *, by_command: bool) -> None:
        super().__init__()
        self.by_command = by_command


class NoRecord(Refused):
    """The host has escrowed nothing."""


class NotRevealed(Refused):
    """The back end did not give the password back; the log says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """:ivar ts, token: ``X-Escrow-Ts`` and ``X-Escrow-Token``, empty when absent."""

    ts: str = ""
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revealed:
    """:ivar rotates: the host was asked to replace the password at its next contact."""

    password: str = field(repr=False)
    escrowed_at: datetime
    rotates: bool


class BreakGlass:
    """
    :param secrets: escrow tokens may be signed with any of these: the escrow secret, and the shared secret, which is
        all that deployed agents know. Empty ones count as none.
    :param escrow: the back end as it is now; None: none is configured.
    :param has_shared_secret: whether hosts may show the global secret.
    :param rotate_after_reveal: the setting ``ESCROW_ROTATE_AFTER_REVEAL``.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        store: Store,
        hosts: Hosts,
        registry: Callable[[], HostRegistry],
        escrow: Callable[[], EscrowBackend | None],
        secrets: tuple[bytes, ...],
        has_shared_secret: bool,
        rotate_after_reveal: Callable[[], bool],
        rules: Callable[[], Rules],
        now: Now,
        journal: Journal,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._hosts = hosts
        self._registry = registry
        self._escrow = escrow
        self._secrets = tuple(dict.fromkeys(secret for secret in secrets if secret))
        self._has_shared_secret = has_shared_secret
        self._rotate_after_reveal = rotate_after_reveal
        self._rules = rules
        self._now = now
        self._journal = journal
        self._metrics = metrics
        # with the host's name: of two passwords of one host the back end would keep whichever comes last, which need
        # not be the one that the record is of; and one host must not take the places of all
        self._running: dict[Deferred[Any], str] = {}

    @property
    def revealable(self) -> bool:
        """Whether passwords can be shown at all."""
        backend = self._escrow()
        return backend is not None and backend.revealable

    @property
    def running(self) -> int:
        """Passwords that are being stored, at most :data:`~identree.core.escrow.MOST_AT_ONCE`."""
        return len(self._running)

    async def stop(self) -> None:
        """Give up what is being stored; its hosts will come again with the same passwords."""
        running = list(self._running)
        for working in running:
            working.cancel()
        await DeferredList(running, consumeErrors=True)

    # -- escrow -------------------------------------------------------------------------------------------------------
    def may_escrow(self, presented: Credential) -> None:
        """
        Whether there is any way to escrow; the first check of all.

        :raise NoWayToEscrow:
        """
        if not self._has_shared_secret and not self._registry().enabled and not presented.certificate:
            raise NoWayToEscrow

    async def escrow(self, hostname: str, password: str, signed: Signed, presented: Credential, address: str) -> None:
        """
        Keep a host's password. Once it returns, back end and record have it. A host that hangs up does not stop it:
        what a back end was sent can be stored, and then there must be a record of it.

        The token is used up by success only, so a host may come again with it after any other answer.

        :param hostname, password: as sent; not empty.
        :param presented: known already (``Hosts.authenticate``).
        :raise Invalid: the name is none.
        :raise NotItsOwn, BadEscrowToken: it does not prove that it is this host.
        :raise NothingConfigured, EscrowBusy, TooManyTokens, TokenUsed, NotStored: see there.
        :raise StorageUnavailable: it may be stored, but is not recorded.
        """
        name = _hostname(hostname)
        key = self._authorised(hostname, name, signed, presented, address)
        backend = self._escrow()
        if backend is None:
            self._journal.warn("BREAKGLASS escrow received but not configured on this server", host=name)
            raise NothingConfigured
        if len(self._running) >= MOST_AT_ONCE or name in self._running.values():
            raise EscrowBusy
        await self._whatever_the_host_does(name, self._keep(backend, name, password, key, address))

    def _authorised(self, sent: str, name: str, signed: Signed, presented: Credential, address: str) -> str:
        """Under which the token is remembered; empty where another proof makes it needless."""
        if presented.certificate == name:
            return ""
        registry = self._registry()
        if registry.enabled:
            # whoever has the global secret must not replace the password of a host that has one of its own
            if not registry.matches(name, presented.secret):
                self._refuse("credential mismatch", name, address, NotItsOwn())
            return ""
        if not self._secrets:
            self._refuse("credential mismatch", name, address, NotItsOwn())
        if not signed.ts:
            self._refuse("missing timestamp", name, address, BadEscrowToken("missing escrow timestamp"))
        if not _UNIX.fullmatch(signed.ts):
            self._refuse("malformed timestamp", name, address, BadEscrowToken("invalid escrow timestamp"))
        ts = int(signed.ts)
        difference = int(self._now().timestamp()) - ts
        if abs(difference) > TOKEN_SECONDS:
            refusal = BadEscrowToken("escrow timestamp out of window")
            self._refuse("timestamp out of window", name, address, refusal, diff=f"{difference}s")
        good = False
        for secret in self._secrets:
            good |= same(signed.token, escrow_token(secret, sent, ts))
        if not good:
            self._refuse("bad token", name, address, BadEscrowToken("invalid escrow token for hostname"))
        return token_key(sent, ts)

    def _refuse(self, what: str, hostname: str, address: str, refusal: Refused, **more: object) -> NoReturn:
        self._journal.warn(f"AUTH_FAILURE escrow {what}", host=hostname, remote_addr=address, **more)
        self._hosts.note_failure(f"{what}: {ESCROW}", address, hostname=hostname)
        raise refusal

    async def _keep(self, backend: EscrowBackend, name: str, password: str, key: str, address: str) -> None:
        # of before the back end has it: who reveals it meanwhile asks for a newer one than this
        began = self._now()
        if key:
            use = await self._store.use_escrow_token(key, began)
            if use is TokenUse.FULL:
                raise TooManyTokens
            if use is TokenUse.USED:
                self._journal.warn("REPLAY escrow token already used", host=name, remote_addr=address)
                self._hosts.note_failure(f"token already used: {ESCROW}", address, hostname=name)
                raise TokenUsed
        try:
            stored = await backend.store(name, password)
            await self._record(name, stored, began, address)
        except (EscrowFailed, StorageUnavailable, CancelledError) as problem:
            self._metrics.escrow.labels("failure").inc()
            if key:
                with suppress(StorageUnavailable):
                    await self._store.give_back_escrow_token(key)
            if isinstance(problem, EscrowFailed):
                raise self._not_stored(backend, name, problem) from problem
            raise
        self._metrics.escrow.labels("success").inc()
        self._journal.info("BREAKGLASS password escrowed", host=name)
        self._journal.warn(
            "BREAKGLASS_ESCROWED",
            host=name,
            backend=backend.name,
            timestamp=instant_text(began),
            remote_addr=address,
        )

    async def _record(self, name: str, stored: Stored, at: datetime, address: str) -> None:
        await self._store.record_escrow(
            EscrowRecord(hostname=name, escrowed_at=at, item_id=stored.item_id, vault_id=stored.vault_id),
            HistoryEntry(at=at, username="", action="rotated_breakglass", hostname=name),
            BreakglassEscrowed(at=self._now(), username=name, hostname=name, remote_addr=address),
        )

    def _not_stored(self, backend: EscrowBackend, name: str, problem: EscrowFailed) -> NotStored:
        by_command = backend.name == COMMAND
        if by_command:
            self._journal.error(
                "BREAKGLASS escrow command failed", host=name, err=problem.reason, output=problem.output
            )
        else:
            self._journal.error("BREAKGLASS escrow failed", backend=backend.name, host=name, err=problem.reason)
        return NotStored(by_command=by_command)

    async def _whatever_the_host_does(self, name: str, work: Coroutine[Any, Any, T]) -> T:
        """Its result. Whoever waits may be cancelled, the work goes on; only :meth:`stop` ends it."""
        waiting: Deferred[T] = Deferred()
        running = Deferred.fromCoroutine(work)
        self._running[running] = name

        def over(result: T | Failure) -> None:
            self._running.pop(running, None)
            if not waiting.called:
                stopped = isinstance(result, Failure) and result.check(CancelledError) is not None
                waiting.callback(Failure(EscrowBusy()) if stopped else result)
            elif isinstance(result, Failure) and not result.check(Refused, CancelledError):
                self._log.warn(
                    "escrow: what a host has sent that hung up could not be recorded: {problem}",
                    problem=result.getErrorMessage(),
                )

        running.addBoth(over)
        return await waiting

    # -- reports ------------------------------------------------------------------------------------------------------
    async def report(
        self, hostname: str, username: str, used_at_unix: int, presented: Credential, address: str
    ) -> bool:
        """
        A host tells that somebody used its password. Agents send a report again when they are not sure that it arrived.

        :param used_at_unix: as the host's clock has it; 0: not told.
        :param presented: known already (``Hosts.authenticate``).
        :returns: False: it was known, and nothing is told again.
        :raise Invalid: one of the names is none.
        :raise NotItsOwn: the credential is another host's.
        """
        name = _hostname(hostname)
        try:
            person = names.username(username)
        except Invalid:
            raise Invalid("invalid username format") from None
        if not self._speaks_for(presented, name):
            self._journal.warn("AUTH_FAILURE report credential mismatch", host=name, remote_addr=address)
            self._hosts.note_failure(f"credential mismatch: {REPORT}", address, hostname=name)
            raise NotItsOwn
        now = self._now()
        used_at = _instant(used_at_unix)
        plausible = used_at is not None and now - OLDEST_USE <= used_at <= now + FUTURE_USE
        entry = HistoryEntry(
            # the history says when it was used, unless that cannot be
            at=used_at if used_at is not None and plausible else now,
            username=person,
            action="breakglass_used",
            hostname=name,
            actor=person,
            reason="" if plausible or not used_at_unix else f"the host's clock said {_said(used_at_unix)}",
        )
        event = BreakGlassUsed(at=now, username=person, hostname=name, remote_addr=address)
        if not await self._store.record_use(entry, event, [Live(event="host_changed", username=person)]):
            return False
        self._journal.warn(
            "BREAK_GLASS_USED",
            host=name,
            user=person,
            break_glass_time=_said(used_at_unix),
            reported_at=instant_text(now),
            remote_addr=address,
        )
        return True

    def _speaks_for(self, presented: Credential, name: str) -> bool:
        """The global secret may name any host; a host's secret or certificate only its own."""
        if presented.certificate:
            return presented.certificate == name
        return self._hosts.is_global(presented) or self._registry().matches(name, presented.secret)

    # -- reveal -------------------------------------------------------------------------------------------------------
    async def reveal(self, caller: Caller, hostname: str, *, reason: str = "", address: str = "") -> Revealed:
        """
        Show a host's password. Nobody is shown one before it is on record that he was.

        :param hostname: normalised.
        :param reason: of valid form; for the record.
        :raise Forbidden: not an administrator.
        :raise JustificationRequired: there must be a reason.
        :raise NoRecord, NothingConfigured, NotRevealed: see there.
        :raise StorageUnavailable: it cannot be recorded, so it is not shown.
        """
        if not caller.is_admin:
            raise Forbidden
        rules = self._rules()
        if rules.require_justification and not reason:
            raise JustificationRequired(rules.justification_choices)
        record = await self._store.escrow_record(hostname)
        if record is None:
            raise NoRecord
        backend = self._escrow()
        if backend is None or not backend.revealable:
            raise NothingConfigured
        try:
            password = await backend.retrieve(record.hostname, record.item_id, record.vault_id)
        except EscrowFailed as problem:
            self._journal.error("BREAKGLASS reveal failed", host=hostname, admin=caller.username, err=problem.reason)
            raise NotRevealed from problem
        now, rotates = self._now(), self._rotate_after_reveal()
        entry = HistoryEntry(
            at=now,
            username=caller.username,
            action="revealed_breakglass",
            hostname=hostname,
            actor=caller.username,
            reason=reason,
        )
        event = RevealedBreakglass(
            at=now,
            username=caller.username,
            hostname=hostname,
            actor=caller.username,
            reason=reason,
            remote_addr=address,
        )
        # later than the second in which it was stored, or the host takes it for one that is new enough
        rotate_at = max(now, record.escrowed_at + timedelta(seconds=1)) if rotates else None
        changed = [Live(event="host_changed", username=caller.username)]
        await self._store.record_reveal(entry, event, rotate_at, changed)
        self._journal.warn("BREAKGLASS password revealed", host=hostname, admin=caller.username, remote_addr=address)
        return Revealed(password=password, escrowed_at=record.escrowed_at, rotates=rotates)


def _hostname(text: str) -> str:
    """
    The normalised name.

    :raise Invalid: in the words of the contract; also for ``..``, which names no host, and for ``web1..``, which would
        be another one each time that it is normalised.
    """
    try:
        name = names.hostname(text)
    except Invalid:
        raise Invalid("invalid hostname format") from None
    if not name.strip(".") or name != names.normalised_hostname(name):
        raise Invalid("invalid hostname format")
    return name


def _instant(unix: int) -> datetime | None:
    """None for 0, and for what no calendar has."""
    try:
        return datetime.fromtimestamp(unix, UTC) if unix else None
    except (OverflowError, OSError, ValueError):
        return None


def _said(unix: int) -> str:
    """A time that a host has told."""
    at = _instant(unix)
    # more digits than that are no time, and the log is no place for them
    return instant_text(at) if at is not None else str(unix) if abs(unix) < 10**18 else "a number that is no time"
