"""
From committed events to messages (design section 3.2): the planner says who is told what, and writes that down; the
dispatcher sends what is written down, as often as it takes.

What is planned survives a crash, and so does what was sent but not yet settled: a message arrives at least once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.ports import DeliveryFailed, Messenger, Monotonic, Now
from identree.core import routing, tokens, verdict
from identree.core.challenge import Challenge, Live, Status
from identree.core.errors import StorageUnavailable
from identree.core.events import PushDeviceRemoved
from identree.core.notices import Channel, Configuration, Notice, Preference, iso, notice_json, read_notice
from identree.core.policy import Policies
from identree.core.routing import WEBPUSH, fits
from identree.core.verdict import Approver
from identree.storage.interface import MOST_PLANNED, Delivery, DeliveryState, Planned, PushDevice, Store

# Events that are told (column N of the catalogue), and those of ours that only bring messages up to date.
TOLD = frozenset(
    """
    challenge_created auto_approved challenge_approved challenge_rejected break_glass_policy_override session_revoked
    sessions_revoked_bulk session_extended grace_elevated breakglass_rotation_requested breakglass_escrowed
    revealed_breakglass break_glass_used config_changed user_removed claims_updated host_removed deployed
    host_unconfigured sudo_rule_modified server_restarted user_logged_in notification_channel_added
    notification_channel_deleted notification_channel_changed notification_route_added notification_route_deleted
    notification_route_changed
    """.split()
)
# What became of a request -> the outcome that messages show; empty: it still waits.
OUTCOMES: Mapping[str, str] = {
    "challenge_approved": "approved",
    "challenge_rejected": "rejected",
    "challenge_expired": "expired",
    "challenge_cancelled": "cancelled",
    "break_glass_policy_override": "overridden",
    "challenge_partially_approved": "",
    "challenge_approval_withdrawn": "",
}
# Push devices hear of these, where their own list says nothing else.
PUSHED = ("challenge_created", "challenge_approved", "challenge_rejected", "break_glass*")
# An event that is older is history.
STALE = timedelta(hours=1)
# Messages of one event at most: channels, and devices of everybody who may act on it.
MOST_MESSAGES = MOST_PLANNED
MOST_DEVICES = 2000
# Back-off between attempts, doubled from the first to the last.
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 60.0
LONGEST_PATIENCE_SECONDS = 600.0
# Running at once, all together and of one channel (spec/notifications-and-policy section 5).
MOST_RUNNING, MOST_OF_CHANNEL = 50, 10
# Longer than the longest attempt: what a dead process had in hand is sent by another one then.
LEASE = timedelta(minutes=6)
# Without a wake-up it is looked this often whether something is due.
LOOK_SECONDS = 15.0
FAREWELL_SECONDS = 45.0
# Pages that show the log are told of changes this often at most.
TELL_SECONDS = 1.0
MAX_ERROR = 1200


class NoticePlanner:
    """
    :param files: channels and routes, and preferences, as they are now.
    :param group: the group of a host in the registry.
    :param roster: administrators and members of the given groups.
    :param external_url: without trailing slash.
    """

    _log = Logger(namespace="identree")

    def __init__(
        self,
        *,
        store: Store,
        configuration: Callable[[], Configuration],
        preferences: Callable[[], Sequence[Preference]],
        policies: Callable[[], Policies],
        group: Callable[[str], str],
        roster: Callable[[frozenset[str]], Sequence[Approver]],
        edits: Callable[[Channel], bool],
        keys: tokens.Keys,
        external_url: str,
        give_up_after: timedelta,
        now: Now,
    ) -> None:
        self._store = store
        self._configuration = configuration
        self._preferences = preferences
        self._policies = policies
        self._group = group
        self._roster = roster
        self._edits = edits
        self._keys = keys
        self._external_url = external_url
        self._give_up_after = give_up_after
        self._now = now
        self._unknown: set[str] = set()

    async def plan(self, *records: Mapping[str, object]) -> None:
        """
        Write down who is told of audit records; the same records again change nothing.

        :raise StorageUnavailable: try again.
        """
        devices: list[PushDevice] | None = None
        anybody = False
        for record in records:
            event = str(record.get("event", ""))
            if event not in TOLD and event not in OUTCOMES:
                continue
            if devices is None:
                devices = await self._all_devices()
                anybody = bool(devices) or self._tells
            # what was sent before may have to be brought up to date, even where nobody is told of anything any more
            if anybody or event in OUTCOMES:
                await self._plan(event, record, devices)

    @property
    def _tells(self) -> bool:
        """Whether anything but devices could be told of something."""
        configuration = self._configuration()
        return bool(
            configuration.channels
            or configuration.routes
            or self._preferences()
            or any(policy.notify_channels for policy in self._policies())
        )

    async def _plan(self, event: str, record: Mapping[str, object], devices: Sequence[PushDevice]) -> None:
        now = self._now()
        at = _instant(str(record.get("timestamp", "")), now)
        code = str(record.get("code", ""))
        challenge = await self._store.challenge_by_code(code) if code and "challenge" in _about(event) else None
        if event in OUTCOMES and code:
            await self._catch_up(event, record, challenge, at, now)
        if event not in TOLD:
            return
        waits = event == "challenge_created"
        if waits and (challenge is None or not challenge.live(now)):
            return
        if not waits and now - at > STALE:
            return
        notice = self._notice(event, record, challenge if waits else None, challenge)
        until = challenge.expires_at if waits and challenge is not None else now + self._give_up_after
        pending = challenge.id if waits and challenge is not None else ""
        planned = self._channels(notice, record, now, at, until, pending)
        planned += self._pushes(devices, notice, record, challenge, now, until, pending)
        await self._store.plan_deliveries(planned[:MOST_MESSAGES], now)

    # -- who ----------------------------------------------------------------------------------------------------------
    def _channels(
        self,
        notice: Notice,
        record: Mapping[str, object],
        now: datetime,
        at: datetime,
        until: datetime,
        pending: str,
    ) -> list[Planned]:
        hostname = notice.hostname
        policy_channels: tuple[str, ...] = ()
        if hostname:
            group = self._group(hostname)
            required = self._policies().requirement(notice.username, hostname, group, now, notice.command)
            policy_channels = required.notify_channels
        told, unknown = routing.recipients(
            self._configuration(),
            self._preferences(),
            policy_channels,
            event=notice.event,
            hostname=hostname,
            username=notice.username,
            now=now,
        )
        for name in unknown:
            if name not in self._unknown and len(self._unknown) < 1000:
                self._unknown.add(name)
                self._log.warn("notify: there is no channel {channel}", channel=name[:64])
        planned = []
        for recipient in told:
            if recipient.after is not None and not pending:
                continue
            due = at + recipient.after if recipient.after is not None else now
            escalated = recipient.after is not None
            planned.append(
                self._planned(
                    notice,
                    record,
                    recipient.channel,
                    "",
                    due,
                    until,
                    pending,
                    suffix=":e" if escalated else "",
                    skipped="quiet hours" if recipient.quiet else "",
                )
            )
        return planned

    def _pushes(
        self,
        devices: Sequence[PushDevice],
        notice: Notice,
        record: Mapping[str, object],
        challenge: Challenge | None,
        now: datetime,
        until: datetime,
        pending: str,
    ) -> list[Planned]:
        if not devices:
            return []
        people = self._audience(notice, challenge)
        return [
            self._planned(notice, record, WEBPUSH, device.id, now, until, pending)
            for device in devices
            if device.username in people and fits(device.events or PUSHED, notice.event)
        ]

    async def _all_devices(self) -> list[PushDevice]:
        found: list[PushDevice] = []
        while len(found) < MOST_DEVICES:
            page = await self._store.push_devices(after=found[-1].id if found else "")
            found += page
            if len(page) < 500:
                break
        return found

    def _audience(self, notice: Notice, challenge: Challenge | None) -> frozenset[str]:
        """Whose devices hear of it: who can act on it; of what is over, its owner and administrators."""
        groups = frozenset(challenge.approver_groups) if challenge is not None else frozenset()
        roster = list(self._roster(groups))
        admins = {person.username for person in roster if person.is_admin}
        if challenge is not None and notice.event == "challenge_created":
            owner = Approver(username=challenge.username, is_admin=challenge.username in admins)
            people = [*roster] if any(one.username == owner.username for one in roster) else [*roster, owner]
            return frozenset(verdict.approvers_of(challenge, people))
        if notice.event in OUTCOMES or notice.event == "auto_approved":
            return frozenset({notice.username})
        return frozenset(admins)

    # -- what ---------------------------------------------------------------------------------------------------------
    def _notice(
        self, event: str, record: Mapping[str, object], waiting: Challenge | None, challenge: Challenge | None
    ) -> Notice:
        def text(key: str) -> str:
            return str(record.get(key, ""))

        notice = Notice(
            event=event,
            username=text("username"),
            hostname=text("hostname"),
            user_code=text("code"),
            reason=text("reason"),
            actor=text("actor"),
            timestamp=text("timestamp"),
            outcome=OUTCOMES.get(event, ""),
            key=_key(record),
        )
        if challenge is not None:
            context = challenge.context
            notice = replace(
                notice,
                command=context.command,
                cwd=context.cwd,
                remote_host=context.remote_host,
                policy=challenge.policy_name,
                approvals=len(challenge.approvals) if challenge.required_approvals > 1 else 0,
                required=challenge.required_approvals if challenge.required_approvals > 1 else 0,
            )
        if waiting is not None:
            notice = self._linked(notice, waiting)
        return notice

    def _linked(self, notice: Notice, challenge: Challenge) -> Notice:
        token = tokens.one_tap_token(
            self._keys,
            challenge.id,
            challenge.username,
            int(challenge.expires_at.timestamp()),
            challenge.hostname,
        )
        return replace(
            notice,
            approval_url=f"{self._external_url}/approve/{challenge.user_code}",
            onetap_url=f"{self._external_url}/api/onetap/{token}",
            expires_in=challenge.remaining_seconds(self._now()),
        )

    def fresh(self, notice: Notice, challenge: Challenge, now: datetime) -> Notice:
        """The notice of a waiting request as it is at this moment."""
        return replace(
            notice,
            approvals=len(challenge.approvals) if challenge.required_approvals > 1 else 0,
            expires_in=challenge.remaining_seconds(now),
        )

    async def _catch_up(
        self, event: str, record: Mapping[str, object], challenge: Challenge | None, at: datetime, now: datetime
    ) -> None:
        """What waits about a request that is over goes; what was sent is brought up to date where that can be."""
        code = str(record.get("code", ""))
        over = bool(OUTCOMES[event])
        if over:
            await self._store.drop_deliveries(code, now, "decided before it was sent")
        if now - at > STALE:
            return
        channels = {channel.name: channel for channel in self._configuration().channels}
        channels[WEBPUSH] = Channel(name=WEBPUSH, backend=WEBPUSH)
        planned = []
        for sent in await self._store.deliveries(code=code, state=DeliveryState.SENT, limit=MOST_MESSAGES):
            channel = channels.get(sent.planned.channel)
            if (
                sent.planned.event != "challenge_created"
                or sent.planned.replaces
                or not sent.reference
                or channel is None
                or not self._edits(channel)
            ):
                continue
            try:
                before = read_notice(sent.planned.notice)
            except ValueError:
                continue
            notice = replace(
                before,
                outcome=OUTCOMES[event],
                event=event,
                actor=str(record.get("actor", "")),
                reason=str(record.get("reason", "")) or before.reason,
                timestamp=str(record.get("timestamp", "")),
                key=_key(record),
            )
            if over or challenge is None:
                notice = replace(notice, approval_url="", onetap_url="", expires_in=0)
            else:
                notice = self.fresh(notice, challenge, now)
            until = now + self._give_up_after
            planned.append(
                self._planned(
                    notice, record, sent.planned.channel, sent.planned.target, now, until, "", replaces=sent.id
                )
            )
        await self._store.plan_deliveries(planned, now)

    async def decided_meanwhile(self, sent: Delivery, challenge: Challenge) -> None:
        """
        Bring up to date what was being sent while the request was decided: when that was planned for, the message had
        no reference yet.
        """
        event, outcome, actor = _outcome(challenge)
        now = self._now()
        channel = routing.by_name(self._configuration().channels, sent.planned.channel)
        if sent.planned.channel == WEBPUSH:
            channel = Channel(name=WEBPUSH, backend=WEBPUSH)
        if channel is None or not self._edits(channel):
            return
        notice = replace(
            read_notice(sent.planned.notice),
            event=event,
            outcome=outcome,
            actor=actor,
            approval_url="",
            onetap_url="",
            expires_in=0,
            timestamp=iso(now),
        )
        record = {"instance": "late", "seq": sent.id}
        until = now + self._give_up_after
        update = self._planned(notice, record, channel.name, sent.planned.target, now, until, "", replaces=sent.id)
        await self._store.plan_deliveries([update], now)

    def _planned(
        self,
        notice: Notice,
        record: Mapping[str, object],
        channel: str,
        target: str,
        due: datetime,
        until: datetime,
        pending: str,
        *,
        suffix: str = "",
        skipped: str = "",
        replaces: int = 0,
    ) -> Planned:
        update = f":u{replaces}" if replaces else ""
        return Planned(
            key=f"{_key(record)}:{channel}{':' + target if target else ''}{suffix}{update}"[:200],
            channel=channel,
            target=target,
            event=notice.event,
            username=notice.username[:256],
            hostname=notice.hostname[:256],
            code=notice.user_code[:32],
            notice=notice_json(notice),
            due_at=due,
            until=until,
            if_pending=pending,
            replaces=replaces,
            state=DeliveryState.SKIPPED if skipped else DeliveryState.QUEUED,
            error=skipped,
        )


def _outcome(challenge: Challenge) -> tuple[str, str, str]:
    """The event that ended it, the outcome in one word, and who did it."""
    if challenge.overridden:
        return "break_glass_policy_override", "overridden", challenge.approved_by
    return {
        Status.APPROVED: ("challenge_approved", "approved", challenge.approved_by),
        Status.DENIED: ("challenge_rejected", "rejected", challenge.denied_by),
        Status.CANCELLED: ("challenge_cancelled", "cancelled", challenge.username),
    }.get(challenge.status, ("challenge_expired", "expired", ""))


def _about(event: str) -> str:
    """What kind of event it is: those of challenges have a code that is one."""
    return "challenge" if event.startswith(("challenge_", "auto_approved", "break_glass_policy")) else ""


def _key(record: Mapping[str, object]) -> str:
    """Names a record among those of all processes."""
    return f"{record.get('instance') or '-'}:{record.get('seq', 0)}"


def _instant(text: str, fallback: datetime) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return fallback


class Dispatcher(Service):
    """
    Sends what is due, a bounded number at a time.

    :param owner: names this process in the database.
    :param configuration: the channels as they are now.
    :param timeout: of an attempt of a channel that has none of its own.
    """

    _log = Logger(namespace="identree")

    def __init__(
        self,
        *,
        store: Store,
        messenger: Messenger,
        configuration: Callable[[], Configuration],
        planner: NoticePlanner,
        metrics: Metrics,
        clock: IReactorTime,
        now: Now,
        monotonic: Monotonic,
        owner: str,
        journal: Journal,
    ) -> None:
        self.setName("notifications")
        self._journal = journal
        self._store = store
        self._messenger = messenger
        self._configuration = configuration
        self._planner = planner
        self._metrics = metrics
        self._clock = clock
        self._now = now
        self._monotonic = monotonic
        self._owner = owner
        self._busy: Counter[str] = Counter()
        self._running: set[Deferred[None]] = set()
        self._timer: IDelayedCall | None = None
        self._looking = False
        self._again = False
        self._said = ""
        self._idle: list[Deferred[None]] = []
        # whether the log has changed since pages were told, and when that was
        self._changed = False
        self._told = -TELL_SECONDS

    # -- service ------------------------------------------------------------------------------------------------------
    def startService(self) -> None:
        super().startService()
        self.wake()

    def stopService(self) -> Deferred[None]:
        """What is being sent is finished, within bounds; the rest stays in the database."""
        super().stopService()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        over: Deferred[None] = Deferred()
        if not self._running and not self._looking:
            over.callback(None)
            return over
        self._idle.append(over)
        deadline = self._clock.callLater(FAREWELL_SECONDS, self._give_up)

        def in_time(result: None) -> None:
            if deadline.active():
                deadline.cancel()

        return over.addCallback(in_time)

    def _give_up(self) -> None:
        for work in list(self._running):
            work.cancel()

    def heard(self, live: Live) -> None:
        """Subscribe this to the store."""
        if live.event in ("deliveries_planned", "resync"):
            self.wake()

    def wake(self) -> None:
        """Look whether something is due, soon."""
        if not self.running:
            return
        if self._looking:
            self._again = True
            return
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._looking = True
        Deferred.fromCoroutine(self._look()).addErrback(
            lambda failure: self._log.failure("notify: messages could not be looked for", failure)
        )

    async def _look(self) -> None:
        pause = LOOK_SECONDS
        try:
            while self.running:
                self._again = False
                free = MOST_RUNNING - len(self._running)
                if free <= 0:
                    break
                # whole seconds, as the database has them
                claimed = await self._store.claim_deliveries(self._owner, self._now(), LEASE, free)
                for delivery in claimed:
                    self._start(delivery)
                if not claimed and not self._again:
                    break
            due = await self._store.next_delivery()
            if due is not None:
                pause = min(pause, max(0.05, (due - self._now()).total_seconds() + 0.05))
            if self._changed:
                pause = min(pause, await self._tell_pages())
            self._said = ""
        except StorageUnavailable as problem:
            if str(problem) != self._said:
                self._said = str(problem)
                self._log.warn("notify: the database cannot be asked: {why}", why=problem)
        finally:
            self._looking = False
            self._maybe_idle()
            # whatever went wrong, it looks again
            if self.running:
                if self._timer is not None and self._timer.active():
                    self._timer.cancel()
                self._timer = self._clock.callLater(pause, self.wake)

    async def _tell_pages(self) -> float:
        """Returns in how many seconds there is something to tell again."""
        again = self._told + TELL_SECONDS - self._monotonic()
        if again > 0:
            return again
        self._changed, self._told = False, self._monotonic()
        try:
            await self._store.deliveries_changed()
        except StorageUnavailable:
            self._changed = True
            raise
        return LOOK_SECONDS

    def _start(self, delivery: Delivery) -> None:
        work = Deferred.fromCoroutine(self._deliver(delivery))
        if work.called:
            self._swallow(work)
            return
        self._running.add(work)

        def over(result: object) -> None:
            self._running.discard(work)
            self._maybe_idle()
            self.wake()

        self._swallow(work)
        work.addBoth(over)

    def _swallow(self, work: Deferred[None]) -> None:
        def failed(failure: object) -> None:
            if getattr(failure, "check", lambda *kinds: None)(CancelledError, StorageUnavailable):
                return  # the lease ends, and it is sent again
            self._log.failure("notify: a message could not be sent", failure)  # type: ignore[arg-type]

        work.addErrback(failed)

    def _maybe_idle(self) -> None:
        if not self._running and not self._looking:
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)

    # -- one message --------------------------------------------------------------------------------------------------
    async def _deliver(self, delivery: Delivery) -> None:
        planned, now = delivery.planned, self._now()
        channel = self._channel(planned.channel)
        if channel is None:
            await self._settle(delivery, DeliveryState.SKIPPED, error="there is no such channel any more")
            return
        if self._busy[channel.name] >= MOST_OF_CHANNEL:
            later = now + timedelta(seconds=1)
            await self._put_back(delivery, delivery.error, later)
            return
        self._busy[channel.name] += 1
        began = self._monotonic()
        try:
            device, previous = await self._receiver(delivery)
            if planned.target and device is None:
                await self._settle(delivery, DeliveryState.SKIPPED, error="the device is gone")
                return
            notice = await self._present(delivery, now)
            reference = await self._messenger.send(channel, notice, device=device, previous=previous)
        except DeliveryFailed as failure:
            await self._failed(delivery, channel, failure, self._monotonic() - began)
            return
        finally:
            self._busy[channel.name] -= 1
        self._over("sent", delivery, channel.name, self._monotonic() - began)
        self._journal.info(
            "NOTIFY sent", channel=channel.name, event=planned.event, user=planned.username, host=planned.hostname
        )
        await self._settle(delivery, DeliveryState.SENT, reference=reference)
        if reference and planned.if_pending and not planned.replaces:
            challenge = await self._store.challenge(planned.if_pending)
            if challenge is not None and challenge.status is not Status.PENDING:
                await self._planner.decided_meanwhile(delivery, challenge)
        if device is not None:
            await self._store.push_sent(device.id, self._now())

    def _channel(self, name: str) -> Channel | None:
        if name == WEBPUSH:
            return Channel(name=WEBPUSH, backend=WEBPUSH)
        return routing.by_name(self._configuration().channels, name)

    async def _receiver(self, delivery: Delivery) -> tuple[PushDevice | None, str]:
        planned = delivery.planned
        device = await self._store.push_device(planned.target) if planned.target else None
        if not planned.replaces:
            return device, ""
        found = await self._store.deliveries(before=planned.replaces + 1, limit=1)
        original = found[0] if found and found[0].id == planned.replaces else None
        return device, original.reference if original is not None else ""

    async def _present(self, delivery: Delivery, now: datetime) -> Notice:
        notice = read_notice(delivery.planned.notice)
        if delivery.planned.if_pending:
            challenge = await self._store.challenge(delivery.planned.if_pending)
            if challenge is not None and challenge.status is Status.PENDING:
                return self._planner.fresh(notice, challenge, now)
        return notice

    async def _failed(self, delivery: Delivery, channel: Channel, failure: DeliveryFailed, took: float) -> None:
        now, planned = self._now(), delivery.planned
        why = str(failure)[:MAX_ERROR]
        if failure.gone and planned.target:
            device = await self._store.push_device(planned.target)
            if device is not None:
                gone = PushDeviceRemoved(at=now, username=device.username, reason=device.label)
                await self._store.remove_push_device(device.id, gone)
        # as long again as it has been tried: the pauses double
        tried = (now - delivery.created_at).total_seconds()
        pause = min(max(FIRST_RETRY_SECONDS, tried), LONGEST_RETRY_SECONDS)
        if failure.retry_after is not None:
            pause = max(pause, min(failure.retry_after, LONGEST_PATIENCE_SECONDS))
        due = now + timedelta(seconds=pause)
        # a command may have done what it does before it failed
        if failure.permanent or channel.backend == "custom" or due > planned.until:
            self._over("failed", delivery, channel.name, took)
            self._journal.error("NOTIFY failed", channel=channel.name, event=planned.event, err=why)
            await self._settle(delivery, DeliveryState.FAILED, error=why)
            return
        await self._put_back(delivery, why, due)

    async def _put_back(self, delivery: Delivery, why: str, due: datetime) -> None:
        self._changed = True
        await self._store.settle_delivery(
            delivery.id, self._owner, DeliveryState.QUEUED, self._now(), error=why, due_at=due
        )

    async def _settle(self, delivery: Delivery, state: DeliveryState, *, error: str = "", reference: str = "") -> None:
        if state is DeliveryState.SKIPPED:
            self._count("skipped", delivery.planned.channel)
            self._journal.warn(
                "NOTIFY skipped", reason=error, channel=delivery.planned.channel, event=delivery.planned.event
            )
        self._changed = True
        await self._store.settle_delivery(
            delivery.id, self._owner, state, self._now(), error=error, reference=reference[:2000]
        )

    def _over(self, status: str, delivery: Delivery, channel: str, took: float) -> None:
        """Count it, with the time of all its attempts."""
        if delivery.attempts > 1:
            took = max(took, (self._now() - delivery.created_at).total_seconds())
        self._metrics.notification_delivery.labels(self._metrics.channel(channel)).observe(took)
        self._count(status, channel)

    def _count(self, status: str, channel: str) -> None:
        self._metrics.notifications.labels(status, self._metrics.channel(channel)).inc()


def parse_record(plain: bytes) -> Mapping[str, object]:
    """An audit record as the planner takes it; what is none plans nothing."""
    with suppress(ValueError):
        value = json.loads(plain)
        if isinstance(value, dict):
            return value
    return {}
