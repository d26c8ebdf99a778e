"""The store: every operation of :mod:`identree.storage.interface` as one script on a driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from twisted.internet.defer import Deferred

from identree.core.audit import Sealed
from identree.core.challenge import Challenge, GraceSession, HistoryEntry, Live, Step
from identree.core.errors import StorageUnavailable
from identree.core.events import Event
from identree.core.hosts import HostEntry
from identree.storage import (
    adoption,
    certificates,
    challenges,
    directory,
    escrow,
    fleet,
    grace,
    history,
    logins,
    notices,
    operations,
    outbox,
    parking,
    policies,
    registry,
)
from identree.storage.bus import Bus
from identree.storage.challenges import Headroom
from identree.storage.hostkeys import DeployStore
from identree.storage.interface import (
    Agent,
    Beat,
    BrowserSession,
    Caps,
    Change,
    Ciphertext,
    Counts,
    Delivery,
    DeliveryState,
    DirectoryState,
    Enrolment,
    EnrolmentToken,
    EscrowRecord,
    Extent,
    GraceChange,
    HostCertificate,
    KnownHost,
    Login,
    Opening,
    Parked,
    Planned,
    PolicyVersion,
    PosixCounter,
    PosixId,
    PushDevice,
    Redeem,
    RegistryLook,
    RegistryPage,
    Resealed,
    Revocations,
    Rotation,
    TokenUse,
)
from identree.storage.jobs import MOST_OUTSTANDING
from identree.storage.operations import Retention
from identree.storage.outbox import LOG, Outbox, Publisher
from identree.storage.script import Driver, MakeScript, Script, T, Taken

# Never more rows than this in one answer, whatever is asked for.
MOST_ROWS = 10_000


class SqlStore:
    """
    Implements :class:`identree.storage.interface.Store`.

    :ivar outbox: what network sinks follow.
    """

    def __init__(
        self,
        driver: Driver,
        publisher: Publisher,
        bus: Bus,
        *,
        sinks: Sequence[str] = (),
        retention: Retention | None = None,
        genuine: Callable[[GraceSession], bool] = lambda session: True,
        on_lost: Callable[[str, int], None] = lambda sink, count: None,
        version: str = "dev",
        outstanding: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        :param version: of the build, for records that are sealed for somebody else.
        :param sinks: names of the configured network sinks; retention waits for them.
        :param genuine: whether a grace session's MAC verifies; an approval replaces a forged one whatever its expiry.
        :param on_lost: told of records that retention took before a sink had them.
        :param outstanding: how many operations the driver has accepted and not yet answered.
        """
        self._driver = driver
        self._publisher = publisher
        self._bus = bus
        self._sinks = (*((LOG,) if publisher.has_log else ()), *sinks)
        self._retention = retention or Retention()
        self._genuine = genuine
        self._on_lost = on_lost
        self._outstanding = outstanding
        self._version = version
        self._headroom = Headroom()
        self.outbox = Outbox(driver, publisher)

    async def start(self) -> None:
        """
        Open and migrate the database, and bring the log up to date.

        :raise StorageUnavailable: it cannot be opened.
        :raise SchemaTooNew: it was migrated by a newer program.
        """
        await self._driver.start()

    async def stop(self) -> None:
        """Finish what was accepted, then close."""
        await self._driver.stop()

    @property
    def instance(self) -> str:
        """The identity of the audit chain that this process writes."""
        return self._publisher.instance

    @property
    def outstanding(self) -> tuple[int, int]:
        """Operations accepted and not yet answered, and how many there may be."""
        return self._outstanding(), MOST_OUTSTANDING

    @property
    def records(self) -> bool:
        """Whether events can be recorded; while the audit log's disk is full they are refused."""
        return self._publisher.refusal is None

    def _recording(self, make: MakeScript[T]) -> Deferred[T]:
        """
        Run a script that emits events.

        :raise StorageUnavailable: also while the audit log's disk is full: what cannot be recorded is not done.
        """
        refusal = self._publisher.refusal
        if refusal is not None:
            raise type(refusal)(refusal.reason, "the audit log cannot be written")
        return self._driver.write(make)

    # -- challenges ---------------------------------------------------------------------------------------------------
    async def create_challenge(
        self, username: str, hostname: str, codes: Iterable[str], opening: Opening, caps: Caps, now: datetime
    ) -> Step:
        for code in codes:
            with suppress(Taken):
                return await self._recording(
                    lambda code=code: challenges.create(  # type: ignore[misc]
                        username, hostname, code, opening, caps, now, self._headroom, self._genuine
                    )
                )
        raise StorageUnavailable("error", "none of the user codes is free")

    async def challenge(self, id: str) -> Challenge | None:
        return await self._driver.read(lambda: challenges.by_id(id))

    async def challenge_by_code(self, user_code: str) -> Challenge | None:
        return await self._driver.read(lambda: challenges.by_code(user_code))

    async def pending_challenges(self, username: str | None, now: datetime, limit: int = 500) -> list[Challenge]:
        return await self._driver.read(lambda: challenges.pending(username, now, _bounded(limit)))

    async def decide(self, id: str, change: Change, *, session: str = "") -> Step:
        return await self._recording(lambda: challenges.decide(id, change, self._genuine, session))

    async def id_token(self, challenge_id: str) -> str:
        return await self._driver.read(lambda: challenges.id_token(challenge_id))

    async def expire_challenges(
        self, now: datetime, change: Callable[[Challenge], Step], limit: int = 500
    ) -> list[Step]:
        return await self._recording(lambda: challenges.expire(now, change, _bounded(limit)))

    async def delete_old(self, now: datetime) -> int:
        deleted = await self._driver.write(lambda: operations.delete_old(now, self._retention))
        instance = self._publisher.instance
        cut = await self._driver.write(lambda: outbox.delete_old(instance, self._sinks, now, self._retention))
        for sink, count in cut.lost.items():
            self._on_lost(sink, count)
        return deleted + cut.deleted

    # -- grace sessions and revocation --------------------------------------------------------------------------------
    async def grace(self, username: str, hostname: str) -> GraceSession | None:
        return await self._driver.read(lambda: grace.get(username, hostname))

    async def grace_sessions(self, username: str | None, now: datetime, limit: int = 1000) -> list[GraceSession]:
        return await self._driver.read(lambda: grace.unexpired(username, now, _bounded(limit)))

    async def delete_grace(self, username: str, hostname: str, mac: str) -> None:
        await self._driver.write(lambda: grace.delete_forged(username, hostname, mac))

    async def change_grace(
        self, username: str, hostname: str, change: Callable[[GraceSession | None], GraceChange]
    ) -> GraceChange:
        return await self._recording(lambda: grace.change(username, hostname, change))

    async def revoke_grace(
        self,
        username: str,
        hostnames: Sequence[str] | None,
        now: datetime,
        describe: Callable[[Sequence[str]], GraceChange],
    ) -> list[str]:
        return await self._recording(lambda: grace.revoke(username, hostnames, now, describe))

    async def revocation_time(self, username: str) -> datetime | None:
        return await self._driver.read(lambda: grace.revocation_time(username))

    # -- signing in ---------------------------------------------------------------------------------------------------
    async def start_login(self, login: Login) -> None:
        await self._driver.write(lambda: logins.start(login))

    async def take_login(self, nonce: str, now: datetime) -> Login | None:
        return await self._driver.write(lambda: logins.take(nonce, now))

    async def record_login(self, session: BrowserSession, event: Event, now: datetime) -> None:
        await self._recording(lambda: logins.completed(session, event, now))

    async def last_login(self, username: str) -> datetime | None:
        return await self._driver.read(lambda: logins.last_login(username))

    async def browser_session(self, session: BrowserSession) -> BrowserSession:
        # every page asks and nearly every one finds it: a write only for the first sight
        stored = await self._driver.read(lambda: logins.browser_session(session.nonce))
        if stored is None:
            stored = await self._driver.write(lambda: logins.first_sight(session))
        return stored

    async def sign_out(
        self, username: str, nonce: str, now: datetime, describe: Callable[[Sequence[str]], GraceChange]
    ) -> list[str]:
        return await self._recording(lambda: logins.sign_out(username, nonce, now, describe))

    async def revoke_admins(self, usernames: Sequence[str], now: datetime) -> None:
        await self._driver.write(lambda: logins.revoke_admins(usernames, now))

    async def revocations(self) -> Revocations:
        return await self._driver.read(logins.revocations)

    # -- history ------------------------------------------------------------------------------------------------------
    async def history(self, username: str | None, limit: int = 50) -> list[HistoryEntry]:
        return await self._driver.read(lambda: history.newest(username, _bounded(limit)))

    async def append_history(self, entries: Sequence[HistoryEntry]) -> None:
        await self._driver.write(lambda: history.append(entries))

    # -- POSIX ids ----------------------------------------------------------------------------------------------------
    async def posix_counter(self, kind: str) -> PosixCounter | None:
        return await self._driver.read(lambda: directory.counter(kind))

    async def posix_ids(self, kind: str, after: tuple[int, int], limit: int = 2000) -> list[PosixId]:
        return await self._driver.read(lambda: directory.ids(kind, after, _bounded(limit)))

    async def add_posix_ids(self, kind: str, ids: Sequence[tuple[str, int]], seen: int, next_number: int) -> int:
        return await self._driver.write(lambda: directory.add_ids(kind, ids, seen, next_number))

    # -- the directory ------------------------------------------------------------------------------------------------
    async def directory(self) -> DirectoryState | None:
        return await self._driver.read(directory.state)

    async def directory_pieces(self, names: Sequence[str]) -> dict[str, str]:
        return await self._driver.read(lambda: directory.pieces(names))

    async def save_directory_pieces(self, pieces: Mapping[str, str], now: datetime) -> None:
        await self._driver.write(lambda: directory.save_pieces(pieces, now))

    async def publish_directory(self, state: DirectoryState, seen: int) -> None:
        await self._driver.write(lambda: directory.publish(state, seen))

    async def confirm_directory(self, version: int, fetched_at: datetime) -> None:
        await self._driver.write(lambda: directory.confirm(version, fetched_at))

    async def claim_directory(self, now: datetime, since: datetime) -> bool:
        return await self._driver.write(lambda: directory.claim(now, since))

    async def refuse_directory(self, version: int, refusal: str) -> None:
        await self._driver.write(lambda: directory.refuse(version, refusal))

    async def drop_directory_pieces(self, keep: Sequence[str], version: int, now: datetime) -> int:
        return await self._driver.write(lambda: directory.drop_pieces(keep, version, now))

    # -- certificates of hosts ----------------------------------------------------------------------------------------
    async def record_certificate(self, certificate: HostCertificate, event: Event, *, force: bool) -> bool:
        return await self._recording(lambda: certificates.record(certificate, event, force=force))

    async def host_certificate(self, hostname: str) -> HostCertificate | None:
        return await self._driver.read(lambda: certificates.one(hostname))

    async def host_certificates(self, limit: int = 1000) -> list[HostCertificate]:
        return await self._driver.read(lambda: certificates.soonest(_bounded(limit)))

    async def forget_certificate(self, hostname: str) -> bool:
        return await self._driver.write(lambda: certificates.forget(hostname))

    # -- escrowed break-glass passwords -------------------------------------------------------------------------------
    async def record_escrow(self, record: EscrowRecord, entry: HistoryEntry, event: Event) -> None:
        await self._recording(lambda: escrow.record(record, entry, event))

    async def escrow_record(self, hostname: str) -> EscrowRecord | None:
        return await self._driver.read(lambda: escrow.one(hostname))

    async def escrow_records(self, after: str = "", limit: int = 1000) -> list[EscrowRecord]:
        return await self._driver.read(lambda: escrow.some(after, _bounded(limit)))

    async def store_ciphertext(self, hostname: str, ciphertext: str) -> None:
        await self._driver.write(lambda: escrow.store_ciphertext(hostname, ciphertext))

    async def ciphertext(self, hostname: str) -> str | None:
        return await self._driver.read(lambda: escrow.ciphertext(hostname))

    async def ciphertexts(self, after: str = "", limit: int = 100) -> list[Ciphertext]:
        return await self._driver.read(lambda: escrow.ciphertexts(after, _bounded(limit)))

    async def replace_ciphertexts(self, changes: Sequence[Resealed]) -> list[str]:
        return await self._driver.write(lambda: escrow.replace_ciphertexts(changes))

    async def use_escrow_token(self, key: str, now: datetime) -> TokenUse:
        return await self._driver.write(lambda: escrow.use_token(key, now))

    async def give_back_escrow_token(self, key: str) -> None:
        await self._driver.write(lambda: escrow.give_back_token(key))

    # -- hosts --------------------------------------------------------------------------------------------------------
    async def record_heartbeat(self, agent: Agent) -> Beat:
        return await self._driver.write(lambda: fleet.beat(agent))

    async def agents(self, after: str = "", limit: int = 1000) -> list[Agent]:
        return await self._driver.read(lambda: fleet.agents(after, _bounded(limit)))

    async def request_rotation(
        self,
        hostnames: Sequence[str],
        at: datetime,
        history: Sequence[HistoryEntry],
        events: Sequence[Event],
        live: Sequence[Live],
    ) -> None:
        await self._recording(lambda: fleet.rotate(hostnames, at, history, events, live))

    async def rotations(self, after: str = "", limit: int = 1000) -> list[Rotation]:
        return await self._driver.read(lambda: fleet.rotations(after, _bounded(limit)))

    async def record_reveal(
        self,
        entry: HistoryEntry,
        event: Event,
        rotate_at: datetime | None,
        live: Sequence[Live],
        *,
        outside: bool = False,
    ) -> None:
        await self._recording(lambda: fleet.reveal(entry, event, rotate_at, live, outside=outside))

    async def record_use(self, entry: HistoryEntry, event: Event, live: Sequence[Live]) -> bool:
        return await self._recording(lambda: fleet.use(entry, event, live))

    async def known_hosts(self, after: str = "", limit: int = 1000) -> list[KnownHost]:
        return await self._driver.read(lambda: fleet.known(after, _bounded(limit)))

    async def session_hosts(self, now: datetime, after: str = "", limit: int = 1000) -> dict[str, int]:
        return await self._driver.read(lambda: fleet.sessions(after, now, _bounded(limit)))

    async def remove_host(self, entry: HistoryEntry, event: Event, live: Sequence[Live]) -> None:
        await self._recording(lambda: fleet.remove(entry, event, live))

    # -- the host registry --------------------------------------------------------------------------------------------
    async def registry_look(self) -> RegistryLook:
        return await self._driver.read(registry.look)

    async def registry_page(self, after: str = "", limit: int = 500) -> RegistryPage:
        return await self._driver.read(lambda: registry.page(after, _bounded(limit)))

    async def import_registry(self, entries: Sequence[HostEntry], *, exported: bool) -> bool:
        return await self._driver.write(lambda: registry.take_over(entries, exported=exported))

    async def register_host(self, entry: HostEntry, event: Event, *, first: bool, outside: bool = False) -> None:
        await self._recording(lambda: registry.register(entry, event, first=first, outside=outside))

    async def unregister_host(self, hostname: str, event: Event, *, outside: bool = False) -> None:
        await self._recording(lambda: registry.unregister(hostname, event, outside=outside))

    async def rotate_host_secret(self, hostname: str, digest: bytes, event: Event, *, outside: bool = False) -> None:
        await self._recording(lambda: registry.rotate(hostname, digest, event, outside=outside))

    async def change_host(
        self,
        hostname: str,
        users: frozenset[str] | None,
        group: str | None,
        event: Event,
        *,
        outside: bool = False,
    ) -> None:
        await self._recording(lambda: registry.change(hostname, users, group, event, outside=outside))

    async def drop_host_user(self, username: str) -> int:
        return await self._driver.write(lambda: registry.drop_user(username))

    async def add_enrolment_token(
        self, token: EnrolmentToken, event: Event, *, first: bool, outside: bool = False
    ) -> None:
        await self._recording(lambda: registry.add_token(token, event, first=first, outside=outside))

    async def redeem_enrolment_token(self, wish: Redeem) -> Enrolment:
        return await self._recording(lambda: registry.redeem(wish))

    async def take_outside_events(self, limit: int = 100) -> int:
        return await self._recording(lambda: registry.take_outside(_bounded(limit)))

    # -- approval policies --------------------------------------------------------------------------------------------
    async def policies(self, version: int | None = None) -> PolicyVersion | None:
        return await self._driver.read(lambda: policies.get(version))

    async def policy_versions(self, before: int | None = None, limit: int = 50) -> list[PolicyVersion]:
        return await self._driver.read(lambda: policies.page(before, _bounded(limit)))

    async def save_policies(
        self,
        document: str,
        *,
        seen: int,
        author: str,
        note: str,
        now: datetime,
        events: Sequence[Event] = (),
        history: Sequence[HistoryEntry] = (),
        outside: bool = False,
    ) -> PolicyVersion:
        def make() -> Script[PolicyVersion]:
            return policies.save(
                document,
                seen=seen,
                author=author,
                note=note,
                now=now,
                events=events,
                history=history,
                outside=outside,
            )

        return await (self._driver.write(make) if outside else self._recording(make))

    # -- notifications ------------------------------------------------------------------------------------------------
    async def plan_deliveries(self, planned: Sequence[Planned], now: datetime) -> int:
        return await self._driver.write(lambda: notices.plan(planned, now)) if planned else 0

    async def claim_deliveries(self, owner: str, now: datetime, lease: timedelta, limit: int) -> list[Delivery]:
        return await self._driver.write(lambda: notices.claim(owner, now, lease, _bounded(limit)))

    async def settle_delivery(
        self,
        id: int,
        owner: str,
        state: DeliveryState,
        now: datetime,
        *,
        error: str = "",
        reference: str = "",
        due_at: datetime | None = None,
    ) -> bool:
        return await self._driver.write(
            lambda: notices.settle(id, owner, state, now, error=error, reference=reference, due_at=due_at)
        )

    async def drop_deliveries(self, code: str, now: datetime, why: str) -> int:
        return await self._driver.write(lambda: notices.drop(code, now, why))

    async def deliveries(
        self,
        *,
        before: int | None = None,
        channel: str = "",
        state: DeliveryState | None = None,
        code: str = "",
        limit: int = 50,
    ) -> list[Delivery]:
        return await self._driver.read(lambda: notices.page(before, channel, state, code, _bounded(limit)))

    async def next_delivery(self) -> datetime | None:
        return await self._driver.read(notices.next_due)

    async def delivery_counts(self) -> dict[DeliveryState, int]:
        return await self._driver.read(notices.waiting)

    # -- push devices -------------------------------------------------------------------------------------------------
    async def add_push_device(self, device: PushDevice, event: Event, limit: int) -> bool:
        return await self._recording(lambda: notices.add_device(device, event, limit))

    async def push_devices(self, username: str | None = None, after: str = "", limit: int = 500) -> list[PushDevice]:
        return await self._driver.read(lambda: notices.devices(username, after, _bounded(limit)))

    async def push_device(self, id: str) -> PushDevice | None:
        return await self._driver.read(lambda: notices.device(id))

    async def remove_push_device(self, id: str, event: Event, *, username: str = "") -> bool:
        return await self._recording(lambda: notices.remove_device(id, event, username))

    async def push_sent(self, id: str, now: datetime) -> None:
        await self._driver.write(lambda: notices.pushed(id, now))

    # -- the audit chain ----------------------------------------------------------------------------------------------
    async def record(self, events: Sequence[Event]) -> None:
        await self._recording(lambda: outbox.record(events))

    async def chains(self) -> list[Extent]:
        return await self._driver.read(outbox.chains)

    async def chain_records(self, instance: str, after: int, limit: int = 500) -> list[Sealed]:
        return await self._driver.read(lambda: outbox.sealed_after(instance, after, _bounded(limit)))

    async def parked_records(self, after: tuple[str, str, int], limit: int = 500) -> list[Parked]:
        return await self._driver.read(lambda: parking.everything(after, _bounded(limit)))

    async def adopt(self, now: datetime) -> list[str]:
        """
        Say that this process runs, and take over chains whose writers have not said so for some minutes. Ask again
        every :data:`~identree.storage.adoption.ALIVE_SECONDS`: what is not in the answer is not, or no longer, ours.
        """
        instance = self._publisher.instance
        await self._driver.write(lambda: adoption.alive(instance, now))
        return await self._driver.write(lambda: adoption.adopt(instance, now))

    async def orphan(self, instance: str) -> adoption.Orphan:
        """
        An adopted chain, to be followed to its end. What its writer has committed and not sealed is sealed first.

        :raise StorageUnavailable: try again.
        """
        version = self._version
        while len(await self._driver.write(lambda: outbox.seal_pending(instance, version))) == outbox.BATCH:
            pass
        last = await self._driver.read(lambda: outbox.newest(instance))
        return adoption.Orphan(self._driver, self._publisher, instance, last)

    async def disown(self, orphan: str) -> None:
        """All sinks have everything of an adopted chain."""
        instance = self._publisher.instance
        await self._driver.write(lambda: adoption.disown(instance, orphan))

    # -- deploying ----------------------------------------------------------------------------------------------------
    def deploying(self) -> DeployStore:
        """What deploying over SSH keeps in this database."""
        return DeployStore(self._driver)

    # -- operations ---------------------------------------------------------------------------------------------------
    async def counts(self, now: datetime) -> Counts:
        return await self._driver.read(lambda: operations.counts(now))

    async def ping(self) -> None:
        await self._driver.write(operations.ping)

    async def tell_replicas(self, event: str) -> None:
        await self._driver.write(lambda: notices.tell_replicas(event))

    async def deliveries_changed(self) -> None:
        await self._driver.write(notices.tell_pages)

    def subscribe(self, listener: Callable[[Live], None]) -> Callable[[], None]:
        return self._bus.subscribe(listener)


def _bounded(limit: int) -> int:
    return max(0, min(limit, MOST_ROWS))
