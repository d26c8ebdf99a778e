"""
Keeps the directory as PocketID has it: fetch, give numbers, build, stamp, publish, swap (spec/ldap section 9).

One refresh at a time. What goes wrong leaves the served directory in force; so does a source from which more has
vanished than is normal, until an administrator accepts it. With several replicas one of them asks PocketID and the
others read what it has published; each of them would do the same.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from identree.app.directory import Directory, Loss, Refusal, Served, entry_counts
from identree.app.metrics import Metrics
from identree.app.ports import Monotonic, Now, PeopleSource, SourceRefused, SourceUnavailable
from identree.app.posixids import PosixIds
from identree.app.publication import Edition, Publication
from identree.app.settling import Settling, fire
from identree.app.slices import sliced
from identree.core.challenge import Live
from identree.core.errors import StorageUnavailable
from identree.directory.archive import BadArchive, Divided, divide
from identree.directory.build import Built, build
from identree.directory.draft import Kind, Stamp
from identree.directory.ids import Numbers
from identree.directory.layout import Layout
from identree.directory.snapshot import Snapshot
from identree.directory.source import Source
from identree.directory.stamps import Restamped, Stamps
from identree.storage.interface import Conflict, Store

T = TypeVar("T")

# After so many failures in a row, so many seconds to the next attempt; the last one repeats.
BACK_OFF_SECONDS = (60.0, 120.0, 240.0, 300.0)
# Who was refused by the source comes back after this, whatever the interval: an operator has to act first.
REFUSED_SECONDS = 300.0
# A wish to wait, in the source's answer to a rate limit, is honoured up to this.
LONGEST_WAIT_SECONDS = 3600.0
# A burst of notifications makes one refresh: this long after the last of them, and at the latest this long after the
# first one.
QUIET_SECONDS, LONGEST_QUIET_SECONDS = 2.0, 10.0
# Changed settings count after this at the latest.
LAYOUT_SECONDS = 5.0
# A replica leaves the source alone while another one has asked it within this share of the interval, and gives that
# other one this share of the interval before it steps in.
FRESH_SHARE, TURN_SHARE = 0.9, 1.1
# Nobody else asks for this share of the interval after one has begun to, nor for longer than this; whoever fails comes
# back later than that.
CLAIM_SHARE, LONGEST_CLAIM_SECONDS = 0.5, 30.0
# How often another replica may publish while we do.
ATTEMPTS = 10
PEOPLE, ENABLED, GROUPS, MEMBERSHIPS, RULES = "people", "enabled people", "groups", "memberships", "sudo rules"
# Losses below these are everyday's, whatever share they are; shares of small numbers say nothing.
LEAST = {PEOPLE: 3, ENABLED: 3, GROUPS: 3, MEMBERSHIPS: 10, RULES: 5}


class Trigger(Enum):
    """Why the source is asked; the value labels the metric, which knows two."""

    POLL = "poll"
    WEBHOOK = "webhook"


class Outcome(Enum):
    """What became of a refresh."""

    PUBLISHED = "published"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(slots=True)
class _Request:
    """
    :ivar accepted: losses that an administrator has seen and accepts, up to their numbers.
    :ivar scheduled: by the clock, not by somebody; its failure makes the next one come sooner.
    """

    trigger: Trigger = Trigger.POLL
    accepted: tuple[Loss, ...] = ()
    scheduled: bool = False
    waiters: list[Deferred[Outcome]] = field(default_factory=list)


class Refresh(Service):
    """
    :param layout: as the settings are now; a change is served at once.
    :param interval_seconds: between two refreshes.
    :param max_shrink_percent: a refresh that loses more is refused; 100 accepts everything.
    """

    _log = Logger()

    def __init__(
        self,
        source: PeopleSource,
        store: Store,
        ids: PosixIds,
        publication: Publication,
        directory: Directory,
        layout: Callable[[], Layout],
        metrics: Metrics,
        *,
        interval_seconds: float,
        max_shrink_percent: int,
        clock: IReactorTime,
        now: Now,
        monotonic: Monotonic,
    ) -> None:
        self.setName("directory")
        self._source = source
        self._store = store
        self._ids = ids
        self._publication = publication
        self._directory = directory
        self._layout = layout
        self._metrics = metrics
        self._interval = interval_seconds
        self._max_shrink = max_shrink_percent
        self._clock = clock
        self._now = now
        self._monotonic = monotonic
        self._work: Deferred[None] | None = None
        self._settling = Settling(clock)
        self._unsubscribe: Callable[[], None] = lambda: None
        # what the loop has to do next, and how it is woken
        self._requested: _Request | None = None
        self._heard = False
        self._due = 0.0
        self._wake: Deferred[None] | None = None
        # notifications that wait for quiet
        self._quiet: IDelayedCall | None = None
        self._first_notified = 0.0
        self._failures = 0
        # whoever restarts the server expects it to look at the source, whatever other replicas did
        self._asked = False
        self._warned = ""
        # snapshots that nobody here looks at any more, to be freed a little at a time
        self._old: list[Generator[None, None, None]] = []
        self._differs = False

    # -- from outside -------------------------------------------------------------------------------------------------
    def startService(self) -> None:
        super().startService()
        self._unsubscribe = self._store.subscribe(self._told)
        self._work = Deferred.fromCoroutine(self._run())
        self._work.addErrback(lambda failure: self._log.failure("the directory's refresh has ended", failure))

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        self._unsubscribe()
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
        request, self._requested = self._requested, None
        if request is not None:
            _answer(request, Outcome.FAILED)
        self._settling.settle()
        return work

    async def settled(self) -> None:
        """Until there is something to serve, or the first refresh has failed, or it takes too long."""
        await self._settling.wait()

    async def now(self, accept_shrink: bool = False) -> Outcome:
        """
        Read the source from here on; a refresh that is under way has to end first, for it may have read before.

        :param accept_shrink: accept the loss for which the last refresh was refused, this time; not a larger one, which
            the source may have come to meanwhile.
        """
        refusal = self._directory.status().refusal if accept_shrink else None
        return await self._ask(_Request(accepted=refusal.losses if refusal is not None else ()))

    def notify(self) -> None:
        """The source says that it has changed. Refreshes when no more of these come, and never late."""
        if not self.running:
            return
        now = self._monotonic()
        if self._quiet is None:
            self._first_notified = now
        else:
            self._quiet.cancel()
        wait = min(QUIET_SECONDS, self._first_notified + LONGEST_QUIET_SECONDS - now)
        self._quiet = self._clock.callLater(max(0.0, wait), self._quieted)

    def _quieted(self) -> None:
        self._quiet = None
        self._add(_Request(trigger=Trigger.WEBHOOK))

    def _told(self, live: Live) -> None:
        """By the other replicas; after a lost connection to them they may have told something."""
        if live.event in ("directory_published", "resync"):
            self._heard = True
            self._stir()

    def _ask(self, request: _Request) -> Deferred[Outcome]:
        answer: Deferred[Outcome] = Deferred()
        if not self.running:
            answer.callback(Outcome.FAILED)
            return answer
        request.waiters.append(answer)
        self._add(request)
        return answer

    def _add(self, request: _Request) -> None:
        waiting = self._requested
        if waiting is None:
            self._requested = request
        else:
            waiting.accepted += request.accepted
            waiting.waiters += request.waiters
            if request.trigger is Trigger.WEBHOOK:
                waiting.trigger = Trigger.WEBHOOK
        self._stir()

    def _stir(self) -> None:
        if self._wake is not None:
            fire(self._wake)

    # -- the loop -----------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        try:
            await self._begin()
            # whoever is answered from within may stop us, which a coroutine that is running cannot hear
            while self.running:
                request = await self._next()
                if request is not None:
                    await self._round(request)
                    self._settling.settle()
                await self._tidy()
        except CancelledError:
            return

    async def _begin(self) -> None:
        """Know the ids, and serve what was kept."""
        while self.running:
            try:
                await self._ids.start()
                await self._catch_up(own=True)
                break
            except StorageUnavailable as problem:
                self._failed(f"the database does not answer: {problem.reason}", True)
                self._settling.settle()
                await self._sleep(self._due - self._monotonic())
        if self._directory.ready:
            status = self._directory.status()
            self._log.info(
                "directory: serving {people} people and {groups} groups as they were kept, {age} s old",
                people=status.people,
                groups=status.groups,
                age=int(status.age_seconds or 0),
            )
            self._settling.settle()
        self._due = self._monotonic()

    async def _next(self) -> _Request | None:
        """What to ask the source for; None after work that did not need it."""
        while self.running:
            if self._requested is not None:
                request, self._requested = self._requested, None
                return request
            if self._heard:
                self._heard = False
                await self._guarded("reading another replica's directory", self._hear)
                return None
            served = self._directory.served
            if served is not None and served.layout != self._layout():
                if not await self._guarded("serving changed settings", self._relaid):
                    await self._sleep(LAYOUT_SECONDS)
                return None
            left = self._due - self._monotonic()
            if left <= 0:
                return _Request(scheduled=True)
            await self._sleep(min(left, LAYOUT_SECONDS))
        return None

    async def _sleep(self, seconds: float) -> None:
        """Until then, or until something happens."""
        if self._requested is not None or self._heard or not self.running:
            return
        self._wake = Deferred()
        timer = self._clock.callLater(max(0.0, seconds), self._stir)
        try:
            await self._wake
        finally:
            self._wake = None
            if timer.active():
                timer.cancel()

    async def _guarded(self, what: str, work: Callable[[], Awaitable[object]]) -> bool:
        """What fails here leaves the directory as it is, and is made good later; whether it worked."""
        try:
            await work()
            return True
        except CancelledError:
            raise
        except StorageUnavailable as problem:
            self._log.warn("directory: {what} failed: {reason}", what=what, reason=problem.reason)
        except Exception:
            self._log.failure("directory: {what} failed", what=what)
        return False

    async def _tidy(self) -> None:
        while self._old:
            await self._sliced(self._old.pop())
        await self._guarded("exporting the ids", self._ids.export)
        await self._guarded("removing old pieces", self._publication.drop_old)

    async def _hear(self) -> None:
        await self._catch_up(own=False)

    async def _relaid(self) -> None:
        self._log.info("directory: settings have changed")
        await self._catch_up(own=True)

    # -- one refresh --------------------------------------------------------------------------------------------------
    async def _round(self, request: _Request) -> None:
        outcome = Outcome.FAILED
        try:
            outcome = await self._attempt(request)
        finally:
            _answer(request, outcome)

    async def _attempt(self, request: _Request) -> Outcome:
        started = self._monotonic()
        wait = 0.0
        try:
            if request.scheduled and await self._done_elsewhere():
                return Outcome.UNCHANGED
            outcome = await self._refresh(request.accepted)
        except SourceUnavailable as problem:
            reason, wait = problem.reason, min(problem.retry_after, LONGEST_WAIT_SECONDS)
        except SourceRefused as problem:
            reason, wait = problem.reason, max(REFUSED_SECONDS, self._interval)
        except StorageUnavailable as problem:
            reason = f"the database does not answer: {problem.reason}"
        except Conflict:
            reason = "other replicas publish all the time"
        except CancelledError:
            raise
        except Exception as problem:
            self._log.failure("directory: a refresh failed by a mistake of ours")
            reason = f"internal error: {type(problem).__name__}"
        else:
            self._metrics.directory_refresh.observe(self._monotonic() - started)
            self._failures = 0
            self._due = self._monotonic() + self._interval
            if outcome is not Outcome.REFUSED:
                self._metrics.ldap_refresh.labels(request.trigger.value).inc()
                self._directory.succeeded()
            return outcome
        self._failed(reason, request.scheduled, wait)
        return Outcome.FAILED

    def _failed(self, reason: str, scheduled: bool, wait: float = 0.0) -> None:
        self._metrics.ldap_sync_failures.inc()
        self._directory.failed(reason)
        if scheduled:
            self._failures += 1
            pause = BACK_OFF_SECONDS[min(self._failures, len(BACK_OFF_SECONDS)) - 1]
            self._due = self._monotonic() + max(pause, wait)
        else:
            # nothing becomes more urgent by it, but who was asked to wait waits
            self._due = max(self._due, self._monotonic() + wait)
        self._log.warn(
            "directory: refresh failed: {reason}. {state}; next attempt in {pause} s",
            reason=reason,
            state="The last good one stays in service" if self._directory.ready else "There is none to serve",
            pause=max(0, round(self._due - self._monotonic())),
        )

    async def _done_elsewhere(self) -> bool:
        """Whether another replica has asked the source in time; what it published is served then."""
        await self._catch_up(own=False)
        fetched_at = self._publication.edition.fetched_at
        if fetched_at is None or not self._directory.ready or not self._asked:
            return False
        age = (self._now() - fetched_at).total_seconds()
        # an age of the wrong sign is a stepped clock's and says nothing
        if -1.0 <= age < FRESH_SHARE * self._interval:
            self._directory.succeeded()
            self._failures = 0
            self._due = self._monotonic() + TURN_SHARE * self._interval - age
            return True
        now, claim = self._now(), min(CLAIM_SHARE * self._interval, LONGEST_CLAIM_SECONDS)
        if await self._publication.claim(now, now - timedelta(seconds=claim)):
            return False
        # another one asks right now; should nothing come of it, we do
        self._due = self._monotonic() + claim
        return True

    async def _refresh(self, accepted: Sequence[Loss]) -> Outcome:
        asked_at = self._now()
        source = await self._source.fetch()
        self._asked = True
        return await self._take(source, accepted, asked_at)

    async def _take(self, source: Source, accepted: Sequence[Loss], asked_at: datetime) -> Outcome:
        for _ in range(ATTEMPTS):
            await self._catch_up(own=False)
            edition = self._publication.edition
            divided = await self._sliced(divide(source, edition.divided))
            served = self._directory.served
            layout = self._layout()
            try:
                if (
                    served is not None
                    and served.layout == layout
                    and edition.divided is not None
                    and divided.same(edition.divided)
                ):
                    await self._publication.confirm(asked_at)
                    self._directory.confirmed(asked_at)
                    self._log.debug("directory: unchanged")
                    return Outcome.UNCHANGED
                return await self._publish(divided, layout, accepted, asked_at)
            except Conflict:
                continue
        raise Conflict

    async def _publish(self, divided: Divided, layout: Layout, accepted: Sequence[Loss], asked_at: datetime) -> Outcome:
        """:raise Conflict: another replica was faster."""
        if divided.rejected:
            self._log.warn(
                "directory: {count} people or groups have no usable id, or one that another has, such as {example}",
                count=len(divided.rejected),
                example=divided.rejected[0],
            )
        numbers = await self._ids.numbers(divided.source)
        built = await self._build(divided.source, numbers, layout)
        stamped = await self._publication.restamped(built.drafts)
        counts = entry_counts(built)
        served = self._directory.served
        rules = entry_counts(served.built)[Kind.ROLE] if served is not None else 0
        losses = await self._sliced(_losses(self._publication.edition, rules, divided.source, counts, stamped.gone))
        too_large = [loss for loss in losses if self._too_large(loss)]
        if not all(any(one.what == loss.what and loss.lost <= one.lost for one in accepted) for loss in too_large):
            await self._refuse(Refusal(at=asked_at, losses=tuple(too_large)))
            return Outcome.REFUSED
        if too_large:
            self._log.warn(
                "directory: a smaller one is accepted: {losses}", losses=str(Refusal(at=asked_at, losses=tuple(losses)))
            )
        snapshot = await self._snapshot(built, layout, stamped.stamps, stamped)
        await self._publication.publish(
            built.drafts, stamped, divided, asked_at, people=counts[Kind.PERSON], groups=counts[Kind.GROUP]
        )
        self._swap(snapshot, built, layout, divided.source, numbers)
        self._differs = False
        self._directory.confirmed(asked_at)
        self._log.info(
            "directory refreshed: {people} people, {groups} groups; {changed} entries changed, {gone} gone",
            people=counts[Kind.PERSON],
            groups=counts[Kind.GROUP],
            changed=len(stamped.changed),
            gone=len(stamped.gone),
        )
        return Outcome.PUBLISHED

    def _too_large(self, loss: Loss) -> bool:
        if self._max_shrink >= 100 or loss.lost <= 0:
            return False
        if loss.lost == loss.before and loss.what in (PEOPLE, GROUPS):
            # whatever the number: a source that has forgotten everybody is broken
            return loss.what == PEOPLE or loss.before >= LEAST[GROUPS]
        return loss.lost >= LEAST[loss.what] and loss.lost * 100 > self._max_shrink * loss.before

    async def _refuse(self, refusal: Refusal) -> None:
        self._metrics.directory_refused.inc()
        self._directory.refused(refusal)
        if str(refusal) != self._warned:
            self._warned = str(refusal)
            self._log.warn(
                "directory: refresh refused: {losses}. The last good one stays in service until the directory page or "
                "a refresh with accept_shrink accepts the smaller one",
                losses=str(refusal),
            )
        await self._publication.refuse(_dump_refusal(refusal))

    # -- what all ways to a new snapshot share ------------------------------------------------------------------------
    async def _catch_up(self, *, own: bool) -> None:
        """
        Serve what is published.

        :param own: publish what our own settings or program make of it, if that is something else; otherwise show it
            with the stamps that everybody has: two replicas with different settings must not publish in turns.
        :raise StorageUnavailable: it could not be read.
        """
        for _ in range(ATTEMPTS):
            try:
                await self._publication.read()
            except BadArchive as problem:
                self._log.error("directory: {problem}; the next refresh replaces it", problem=problem)
                return
            edition = self._publication.edition
            self._directory.refused(_parse_refusal(edition.refusal))
            if edition.divided is None:
                return
            layout = self._layout()
            served = self._directory.served
            if served is not None and served.version == edition.version and (served.layout == layout or not own):
                self._directory.confirmed(edition.fetched_at)
                return
            source = edition.divided.source
            numbers = await self._ids.numbers(source)
            built = await self._build(source, numbers, layout)
            stamped = await self._publication.restamped(built.drafts)
            stamps: Mapping[str, Stamp] = stamped.stamps
            different = bool(stamped.changed or stamped.gone)
            if different and own:
                counts = entry_counts(built)
                snapshot = await self._snapshot(built, layout, stamps, stamped)
                try:
                    await self._publication.publish(
                        built.drafts,
                        stamped,
                        edition.divided,
                        edition.fetched_at,
                        people=counts[Kind.PERSON],
                        groups=counts[Kind.GROUP],
                    )
                except Conflict:
                    continue
                self._differs = False
            elif different:
                if not self._differs:
                    self._log.warn(
                        "directory: this replica makes other entries of the same source than the one that published "
                        "them; settings and version must be the same on all of them"
                    )
                self._differs = True
                theirs = {key: edition.stamps[key] for key in stamped.changed if key in edition.stamps}
                own_stamps = await self._sliced(Stamps.of(stamps))
                stamps = await self._sliced(own_stamps.followed(theirs))
                snapshot = await self._snapshot(built, layout, stamps, stamped)
            else:
                self._publication.stamped(built.drafts)
                snapshot = await self._snapshot(built, layout, stamps, None)
                self._differs = False
            self._swap(snapshot, built, layout, source, numbers)
            self._directory.confirmed(edition.fetched_at)
            return

    async def _build(self, source: Source, numbers: Numbers, layout: Layout) -> Built:
        served = self._directory.served
        return await self._sliced(build(source, numbers, layout, served.built if served else None))

    async def _snapshot(
        self, built: Built, layout: Layout, stamps: Mapping[str, Stamp], stamped: Restamped | None
    ) -> Snapshot:
        """:param stamped: what it differs in from the published one; None: the stamps were read with it."""
        served = self._directory.served
        if (
            served is not None
            and served.layout == layout
            and stamped is not None
            and not (stamped.changed or stamped.gone or self._differs)
        ):
            # only what nobody sees has changed; answers that are remembered stay good
            return served.snapshot
        previous = served.snapshot if served is not None else None
        usn = max(self._publication.edition.usn, stamped.usn if stamped is not None else 0)
        return await self._sliced(Snapshot.build(layout.base_dn, built.drafts, stamps, previous, usn))

    def _swap(self, snapshot: Snapshot, built: Built, layout: Layout, source: Source, numbers: Numbers) -> None:
        before = self._directory.snapshot
        self._directory.swap(
            Served(
                snapshot=snapshot,
                built=built,
                layout=layout,
                version=self._publication.edition.version,
                source=source,
                numbers=numbers,
            )
        )
        if before is not None and before is not snapshot:
            self._old.append(before.retire())

    async def _sliced(self, work: Generator[None, None, T]) -> T:
        return await sliced(work, self._clock, self._monotonic)


def _losses(
    before: Edition, rules: int, source: Source, counts: Mapping[Kind, int], gone: Collection[str]
) -> Generator[None, None, list[Loss]]:
    """
    What would vanish: the ones that are not there any more, and not only how many fewer there are.

    :param rules: how many are served now.
    """
    missing = {"person": 0, "group": 0, "rule": 0}
    for number, key in enumerate(gone):
        if number % 5000 == 0:
            yield
        kind = key.partition(":")[0]
        if kind in missing:
            missing[kind] += 1
    members = [
        sum(len(group.member_ids) for group in groups)
        for groups in (before.divided.source.groups if before.divided else (), source.groups)
    ]
    enabled = []
    for users in (before.divided.source.users if before.divided else (), source.users):
        count = 0
        for start in range(0, len(users), 5000):
            count += sum(not user.disabled for user in users[start : start + 5000])
            yield
        enabled.append(count)
    people = max(missing["person"], before.people - counts[Kind.PERSON])
    return [
        Loss(what=what, before=whole, lost=lost)
        for what, whole, lost in (
            (PEOPLE, before.people, people),
            # beside those that are gone altogether: who is switched off has neither keys nor rules any more
            (ENABLED, enabled[0], enabled[0] - enabled[1] - people),
            (GROUPS, before.groups, max(missing["group"], before.groups - counts[Kind.GROUP])),
            (MEMBERSHIPS, members[0], members[0] - members[1]),
            (RULES, rules, max(missing["rule"], rules - counts[Kind.ROLE])),
        )
        if lost > 0
    ]


def _dump_refusal(refusal: Refusal) -> str:
    losses = [[loss.what, loss.before, loss.lost] for loss in refusal.losses]
    return json.dumps({"at": int(refusal.at.timestamp()), "losses": losses}, separators=(",", ":"))


def _parse_refusal(text: str) -> Refusal | None:
    """None also for what another program has written."""
    if not text:
        return None
    try:
        value = json.loads(text)
        losses = tuple(
            Loss(what=str(what), before=int(before), lost=int(lost)) for what, before, lost in value["losses"]
        )
        return Refusal(at=datetime.fromtimestamp(int(value["at"]), UTC), losses=losses)
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _answer(request: _Request, outcome: Outcome) -> None:
    for waiter in request.waiters:
        if not waiter.called:
            waiter.callback(outcome)
