"""
What the application may ask of persistent state.

Every method is one transaction: it happens whole or not at all, and the events that it emits are committed with it.
A method that emits events answers only when they have their place in the audit chain and the JSON log has them.

All methods raise :class:`~identree.core.errors.StorageUnavailable` when the database cannot do it; nothing was done
then. All instants are aware UTC; the database keeps whole seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol

from identree.core.audit import Head, Sealed
from identree.core.challenge import Challenge, GraceSession, HistoryEntry, Live, Step
from identree.core.events import Event
from identree.core.hosts import HostEntry

# Called in one transaction with the challenge as it is and the owner's revocation time (None: never revoked).
# Must be pure: it may run in another thread, and again when the database asks for a repetition.
Change = Callable[[Challenge, "datetime | None"], Step]


# Rows of one call: a few milliseconds of work, so that challenges are not held up behind a large import.
MOST_IDS = 500
MOST_PIECES = 8
MOST_RESEALED = 100
MOST_ROTATED = 100
MOST_PLANNED = 200
# Saved sets of policies that are kept.
MOST_POLICY_VERSIONS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """How many pending challenges there may be; at the cap, creation is refused."""

    per_user: int = 10
    total: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerState:
    """
    What creation must know about the owner and the host, read in the transaction that inserts.

    :ivar revoked_at: the owner's revocation time.
    :ivar host_rotated_at: the last rotation request for this host.
    :ivar grace: the row for exactly (user, host), unverified; None when there is none.
    """

    revoked_at: datetime | None
    host_rotated_at: datetime | None
    grace: GraceSession | None


# Decides, from the owner's state, what is inserted: a pending challenge or one approved in grace. Pure, as above.
# Called with one of ``codes``; again with the next one when that code is taken.
Opening = Callable[[str, OwnerState], Step]


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """
    A sign-in under way.

    :ivar nonce: 32 hex digits; also the ``state`` and the browser cookie's value.
    :ivar verifier: the PKCE code verifier.
    :ivar return_to: local path that the person wanted.
    :ivar fresh_since: the person had to prove who it is anew, not before this; None: an ordinary sign-in.
    """

    nonce: str
    verifier: str
    client_ip: str
    return_to: str
    issued_at: datetime
    expires_at: datetime
    fresh_since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserSession:
    """
    The first sight of a session cookie's nonce; gives the session an absolute end.

    :ivar groups: that the sign-in said the person is in.
    :ivar authenticated_at: when the identity provider last saw the person itself (``auth_time``), as far as it said so,
        else when the sign-in was completed; None: unknown, as for sessions of earlier versions.
    :ivar id_token: that the person signed in with, sealed; empty: none is kept. Written, and never read with the rest.
    """

    nonce: str
    username: str
    started_at: datetime
    groups: tuple[str, ...] = ()
    authenticated_at: datetime | None = None
    id_token: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocations:
    """What makes signed cookies void: signed-out nonces and the times at which people lost the admin role."""

    nonces: dict[str, datetime]
    admins: dict[str, datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """For the gauges."""

    pending_challenges: int
    grace_sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GraceChange:
    """
    What happens to one grace session.

    :ivar session: the row to write; None leaves it.
    """

    session: GraceSession | None
    events: tuple[Event, ...] = ()
    history: tuple[HistoryEntry, ...] = ()
    live: tuple[Live, ...] = ()


class Conflict(Exception):
    """Somebody else, usually another replica, has written since it was read. Nothing was done: read again, repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PosixCounter:
    """
    :ivar next_number: what the next newcomer gets, unless that number must not be used.
    :ivar revision: grows by one with every transaction that adds ids of this kind.
    """

    next_number: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PosixId:
    """
    :ivar source_id: PocketID's id of a person or a group.
    :ivar revision: the counter's, that the row came with.
    """

    source_id: str
    number: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryState:
    """
    The directory that is published.

    :ivar version: grows by one with each publication.
    :ivar usn: the greatest change number ever shown.
    :ivar manifest: names the pieces; its form is the application's business.
    :ivar fetched_at: when the source last confirmed it; None: never, as in bridge mode.
    :ivar refusal: a smaller directory that waits for acceptance, in a form that is the application's business; or
        empty.
    """

    version: int
    usn: int
    manifest: str
    fetched_at: datetime | None
    published_at: datetime
    people: int = 0
    groups: int = 0
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCertificate:
    """
    The last client certificate that a host was given.

    :ivar hostname: normalised.
    :ivar serial: lower-case hex without leading zeros.
    """

    hostname: str
    serial: str
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EscrowRecord:
    """
    Where a host's break-glass password lies.

    :ivar hostname: in the spelling under which the back end has it; old servers kept the host's own.
    :ivar item_id: what the back end calls it; may be empty, as may ``vault_id``.
    """

    hostname: str
    escrowed_at: datetime
    item_id: str = ""
    vault_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ciphertext:
    """A password that the local back end has sealed; base64 text."""

    hostname: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resealed:
    """The ciphertext of a host: as it was read, and the same password under another key."""

    hostname: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """
    A host that has sent heartbeats.

    :ivar version, os_info: as it told them last, or empty.
    :ivar address: that it sent from.
    """

    hostname: str
    version: str = ""
    os_info: str = ""
    address: str = ""
    first_seen: datetime
    last_seen: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """
    What became of a heartbeat.

    :ivar accepted: False: there are as many hosts as there may be.
    :ivar rotated_at: when the host was last asked for another break-glass password.
    :ivar escrowed_at: when it last escrowed one.
    """

    accepted: bool
    rotated_at: datetime | None = None
    escrowed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """When a host was last asked for another break-glass password."""

    hostname: str
    requested_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownHost:
    """
    A name in the history.

    :ivar present: False: nothing has happened on it since it was removed, or it is no host's name.
    """

    hostname: str
    present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryLook:
    """
    The state of the host registry at a glance.

    :ivar revision: grows with each change; 0: no host was ever registered.
    :ivar imported: the file of earlier versions was taken over.
    :ivar outside: another program has done something that is in no audit chain yet.
    """

    revision: int
    imported: bool
    outside: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryPage:
    """Some hosts, by name, and the revision that the registry had then."""

    revision: int
    entries: tuple[HostEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentToken:
    """
    What lets a host get a secret of its own, once.

    :ivar digest: SHA-256 of it.
    :ivar hostname: normalised; no other host can use it.
    :ivar users: None: everybody, or for a host that is registered those that it has.
    :ivar group: empty: none, or the one that it has.
    :ivar again: also for a host that is registered; its secret is replaced.
    """

    digest: bytes = field(repr=False)
    hostname: str
    users: frozenset[str] | None
    group: str
    again: bool
    created_by: str
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Redeem:
    """
    :ivar token: SHA-256 of the enrolment token.
    :ivar hostname: normalised.
    :ivar secret: SHA-256 of the secret that the host gets.
    """

    token: bytes = field(repr=False)
    hostname: str
    secret: bytes = field(repr=False)
    now: datetime
    remote_addr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """
    What a token has done.

    :ivar created_by: who had made it.
    :ivar again: the host was registered already, and has another secret now.
    """

    created_by: str
    again: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersion:
    """
    A set of approval policies as it was saved.

    :ivar version: grows by one with each; the greatest one is in force.
    :ivar document: JSON, as in a policy file.
    :ivar note: what was done, in words for people.
    """

    version: int
    document: str
    author: str
    at: datetime
    note: str = ""


class DeliveryState(Enum):
    """
    ``QUEUED`` waits for its time, ``SENDING`` is in the hands of a process, the others are over: ``SENT``; ``FAILED``:
    it was given up; ``SKIPPED``: there was no point any more, or nobody wanted it (``error`` says why).
    """

    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """
    A message that shall be sent.

    :ivar key: the same for the same message: planning it again does nothing. At most 200 characters.
    :ivar channel: the channel's name.
    :ivar target: one of several receivers of the channel (a push device's id), or empty.
    :ivar notice: ``core.notices.Notice`` as JSON.
    :ivar due_at: not before this.
    :ivar until: not after this.
    :ivar if_pending: id of a challenge: only while nobody has decided it; or empty.
    :ivar replaces: id of the delivery whose message this one brings up to date; 0: none.
    """

    key: str
    channel: str
    target: str = ""
    event: str
    username: str = ""
    hostname: str = ""
    code: str = ""
    notice: str = field(repr=False)
    due_at: datetime
    until: datetime
    if_pending: str = ""
    replaces: int = 0
    state: DeliveryState = DeliveryState.QUEUED
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """
    A planned message and what became of it.

    :ivar attempts: begun so far.
    :ivar finished_at: None: it is not over.
    :ivar error: why the last attempt came to nothing, or why it is over unsent; for people, without secrets.
    :ivar reference: by which the receiver knows the message, for bringing it up to date; empty: it has none.
    """

    id: int
    planned: Planned
    state: DeliveryState
    attempts: int
    created_at: datetime
    due_at: datetime
    finished_at: datetime | None = None
    error: str = ""
    reference: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushDevice:
    """
    A browser that gets Web Push messages (RFC 8030).

    :ivar id: SHA-256 of the endpoint, hex.
    :ivar endpoint: the push service's URL for it; whoever knows it can bother the person.
    :ivar p256dh, auth: keys of the browser, URL-safe base64 without padding (RFC 8291 section 3.1 and 3.2).
    :ivar label: what the person recognises it by.
    :ivar events: patterns of the events that it gets.
    """

    id: str
    username: str
    endpoint: str = field(repr=False)
    p256dh: str = field(repr=False)
    auth: str = field(repr=False)
    label: str = ""
    events: tuple[str, ...] = ()
    created_at: datetime
    last_sent_at: datetime | None = None


class TokenUse(Enum):
    """What became of an escrow token: accepted, seen before, or refused as too many are remembered."""

    NEW = "new"
    USED = "used"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The sealed records of one chain that the database still has: the numbers of the first and the last one."""

    instance: str
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """
    A record that a receiver has refused.

    :ivar reason: what it said.
    """

    sink: str
    record: Sealed
    reason: str
    parked_at: datetime


class Feed(Protocol):
    """
    What network sinks follow: the committed records of one chain, in order, at least once.

    Numbers are ``seq``; -1 stands for "before the first".
    """

    @property
    def newest(self) -> int:
        """The last record that there is."""

    async def head(self) -> Head:
        """Where the chain stands in the database. :raise StorageUnavailable: try again."""

    async def position(self, sink: str) -> int:
        """
        The last record that the sink has acknowledged.

        :raise StorageUnavailable: try again.
        """

    async def begin(self, sink: str) -> None:
        """
        A sink that has no place yet begins behind the newest record: what has happened before it existed is none of
        its business. :raise StorageUnavailable: try again.
        """

    async def reached(self, seq: int) -> None:
        """Returns when there is a record of this number; may be cancelled."""

    async def after(self, seq: int, limit: int) -> list[Sealed]:
        """
        The records behind ``seq``, at most ``limit``. A gap at the beginning says that retention has cut records off.

        :raise StorageUnavailable: try again.
        """

    async def acknowledge(self, sink: str, seq: int) -> None:
        """
        The sink has everything up to ``seq``; durable when this returns. Never goes back.

        :raise StorageUnavailable: not saved; acknowledge again, or the records are repeated after a restart.
        """

    async def park(self, sink: str, records: Sequence[Sealed], reason: str, now: datetime) -> None:
        """
        Set records aside that the sink will not take, a bounded number of them.

        :raise StorageUnavailable: not saved.
        """

    async def parked(self, sink: str, limit: int) -> list[Sealed]:
        """What is set aside, the oldest first. :raise StorageUnavailable: try again."""

    async def unpark(self, sink: str, seqs: Sequence[int]) -> None:
        """The sink has taken them after all. :raise StorageUnavailable: not saved."""


class Store(Protocol):
    """The operations on persistent state. One contract suite runs on every implementation."""

    # -- challenges -------------------------------------------------------------------------------------------------
    async def create_challenge(
        self, username: str, hostname: str, codes: Iterable[str], opening: Opening, caps: Caps, now: datetime
    ) -> Step:
        """
        Insert what ``opening`` returns, serialised with everything else that concerns ``username``.

        :raise TooManyPending: a cap is reached; nothing is inserted.
        """

    async def challenge(self, id: str) -> Challenge | None:
        """The challenge whatever its status and age, or None. Readers decide visibility with ``Challenge.readable``."""

    async def challenge_by_code(self, user_code: str) -> Challenge | None: ...

    async def pending_challenges(self, username: str | None, now: datetime, limit: int = 500) -> list[Challenge]:
        """Live pending ones, soonest expiry first; of everybody when ``username`` is None."""

    async def decide(self, id: str, change: Change, *, session: str = "") -> Step:
        """
        Apply a move, serialised per owner; the row is updated only if it is still as it was read.

        :param session: the nonce of the browser session of whoever decides; an approval of an own request keeps the
            session's ID token for the host.
        :raise NotFound: unknown id.
        :raise Refused: whatever ``change`` raises; nothing is written then.
        """

    async def id_token(self, challenge_id: str) -> str:
        """What an approval has kept for the host, sealed; empty: nothing."""

    async def expire_challenges(
        self, now: datetime, change: Callable[[Challenge], Step], limit: int = 500
    ) -> list[Step]:
        """Expire overdue pending challenges: each by exactly one caller, also with several replicas."""

    async def delete_old(self, now: datetime) -> int:
        """One bounded batch of retention work: decided challenges, logins, grace rows, revoked nonces, outbox rows
        delivered to every sink, cluster messages. Returns the number of rows deleted."""

    # -- grace sessions and revocation --------------------------------------------------------------------------------
    async def grace(self, username: str, hostname: str) -> GraceSession | None:
        """The row as stored, unverified; None when absent."""

    async def grace_sessions(self, username: str | None, now: datetime, limit: int = 1000) -> list[GraceSession]:
        """Unexpired rows, unverified, by user then host; of everybody when ``username`` is None."""

    async def delete_grace(self, username: str, hostname: str, mac: str) -> None:
        """Drop a row whose MAC did not verify, if it still has that MAC."""

    async def change_grace(
        self, username: str, hostname: str, change: Callable[[GraceSession | None], GraceChange]
    ) -> GraceChange:
        """Read, decide and write one grace session, serialised per owner."""

    async def revoke_grace(
        self,
        username: str,
        hostnames: Sequence[str] | None,
        now: datetime,
        describe: Callable[[Sequence[str]], GraceChange],
    ) -> list[str]:
        """
        Delete grace sessions and set the owner's revocation time to ``now``, in one transaction.

        :param hostnames: those; None means all of the user's. Missing rows are fine.
        :param describe: given the host names acted upon (``hostnames``, or all that existed), returns what commits
            with it.
        :returns: the host names of the rows that existed.
        """

    async def revocation_time(self, username: str) -> datetime | None: ...

    # -- signing in ---------------------------------------------------------------------------------------------------
    async def start_login(self, login: Login) -> None: ...

    async def take_login(self, nonce: str, now: datetime) -> Login | None:
        """Remove and return it: of any number of callers at most one gets it. None: unknown, used or expired."""

    async def record_login(self, session: BrowserSession, event: Event, now: datetime) -> None:
        """A completed sign-in: the person's last login time, the browser session, the event."""

    async def last_login(self, username: str) -> datetime | None: ...

    async def browser_session(self, session: BrowserSession) -> BrowserSession:
        """The stored session of this nonce; ``session`` is stored and returned when it is the first sight of it."""

    async def sign_out(
        self, username: str, nonce: str, now: datetime, describe: Callable[[Sequence[str]], GraceChange]
    ) -> list[str]:
        """
        Revoke the nonce and all grace sessions of the user, in one transaction; the revocation time is set only if
        there was a session. Returns the host names that had one.
        """

    async def revoke_admins(self, usernames: Sequence[str], now: datetime) -> None:
        """Session cookies of these people issued up to now are no administrator's; the other replicas are told."""

    async def revocations(self) -> Revocations:
        """All that is in force, for the caches of the session check."""

    # -- history ------------------------------------------------------------------------------------------------------
    async def history(self, username: str | None, limit: int = 50) -> list[HistoryEntry]:
        """Newest first; of everybody when ``username`` is None."""

    async def append_history(self, entries: Sequence[HistoryEntry]) -> None: ...

    # -- POSIX ids ----------------------------------------------------------------------------------------------------
    async def posix_counter(self, kind: str) -> PosixCounter | None:
        """
        Read it before the ids: what is added in between then makes :meth:`add_posix_ids` fail, never collide.

        :param kind: ``uid`` or ``gid``.
        :returns: None when no id of this kind was ever given.
        """

    async def posix_ids(self, kind: str, after: tuple[int, int], limit: int = 2000) -> list[PosixId]:
        """
        A page of what there is, in the order of writing.

        :param after: revision and number of the last one that is known; (0, 0) begins.
        """

    async def add_posix_ids(self, kind: str, ids: Sequence[tuple[str, int]], seen: int, next_number: int) -> int:
        """
        Give these numbers to these source ids for ever, and move the counter to ``next_number`` unless it is further.

        :param ids: source id and number, at most :data:`MOST_IDS`; none of them has an id of this kind already, and no
            number is anybody's.
        :param seen: the counter's revision by which the caller knows that; 0: there is no counter.
        :returns: the new revision.
        :raise Conflict: the counter has moved.
        """

    # -- the directory ------------------------------------------------------------------------------------------------
    async def directory(self) -> DirectoryState | None:
        """None: nothing was ever published."""

    async def directory_pieces(self, names: Sequence[str]) -> dict[str, str]:
        """At most :data:`MOST_PIECES` of them; without those that do not exist (any more)."""

    async def save_directory_pieces(self, pieces: Mapping[str, str], now: datetime) -> None:
        """
        Have them in the database for the next hour at least; and for good once a publication names them.

        :param pieces: base64 text by the name that its content gives it; at most :data:`MOST_PIECES`.
        """

    async def publish_directory(self, state: DirectoryState, seen: int) -> None:
        """
        Make it the directory; the other replicas are told.

        :param seen: the version that it follows; 0: the first.
        :raise Conflict: another version was published since.
        """

    async def confirm_directory(self, version: int, fetched_at: datetime) -> None:
        """
        The source has confirmed this version: it is as fresh as that, and no refusal waits. Never sets it back.

        :raise Conflict: another version was published since.
        """

    async def claim_directory(self, now: datetime, since: datetime) -> bool:
        """
        Whether it is the caller's turn to ask the source: nobody has claimed it after ``since``. Of several who ask at
        once one gets it. Without a published directory nobody does.
        """

    async def refuse_directory(self, version: int, refusal: str) -> None:
        """Let all replicas show what waits for acceptance; does nothing when another version was published since."""

    async def drop_directory_pieces(self, keep: Sequence[str], version: int, now: datetime) -> int:
        """
        One bounded batch of old pieces that ``version`` does not need.

        :param keep: names that ``version`` needs; all else that nobody wanted for an hour goes.
        :returns: how many were dropped; 0 also when another version was published since.
        """

    # -- certificates of hosts ----------------------------------------------------------------------------------------
    async def record_certificate(self, certificate: HostCertificate, event: Event, *, force: bool) -> bool:
        """
        Remember it as the host's last one, with the event. Certificates that ended long ago are forgotten on the way.

        :param force: whatever the host has; otherwise only if it has none that is still valid.
        :returns: False: it has one, and nothing was done.
        """

    async def host_certificate(self, hostname: str) -> HostCertificate | None:
        """:param hostname: normalised."""

    async def host_certificates(self, limit: int = 1000) -> list[HostCertificate]:
        """Those that end first, also the ones that have ended."""

    async def forget_certificate(self, hostname: str) -> bool:
        """
        Whether there was one to forget. It stays valid.

        :param hostname: normalised.
        """

    # -- escrowed break-glass passwords -------------------------------------------------------------------------------
    async def record_escrow(self, record: EscrowRecord, entry: HistoryEntry, event: Event) -> None:
        """
        A back end has the host's password; with the event, and the history entry of everybody active on the host.

        :param entry: as it stands in everybody's history; its ``username`` does not matter.
        """

    async def escrow_record(self, hostname: str) -> EscrowRecord | None:
        """The newest one of the host, in whatever spelling of its name."""

    async def escrow_records(self, after: str = "", limit: int = 1000) -> list[EscrowRecord]:
        """
        By host name.

        :param after: the last one that is known; empty begins.
        """

    async def store_ciphertext(self, hostname: str, ciphertext: str) -> None:
        """Instead of the one that the host had."""

    async def ciphertext(self, hostname: str) -> str | None:
        """:param hostname: exactly as it was stored."""

    async def ciphertexts(self, after: str = "", limit: int = 100) -> list[Ciphertext]:
        """
        By host name.

        :param after: the last one that is known; empty begins.
        """

    async def replace_ciphertexts(self, changes: Sequence[Resealed]) -> list[str]:
        """
        :param changes: at most :data:`MOST_RESEALED`.
        :returns: the hosts whose ciphertext was still the one that was read; the others were left alone.
        """

    async def use_escrow_token(self, key: str, now: datetime) -> TokenUse:
        """
        Remember it, for ten minutes: of any number of callers one is told ``NEW``.

        :param key: of :func:`identree.core.escrow.token_key`.
        """

    async def give_back_escrow_token(self, key: str) -> None:
        """The password was not stored: the host may come again with the same token."""

    # -- hosts --------------------------------------------------------------------------------------------------------
    async def record_heartbeat(self, agent: Agent) -> Beat:
        """
        The host was there at ``last_seen``; ``first_seen`` counts for a new one only, and empty texts change nothing.
        A new host takes the place of one that was silent for a month when there are too many.
        """

    async def agents(self, after: str = "", limit: int = 1000) -> list[Agent]:
        """
        By host name.

        :param after: the last one that is known; empty begins.
        """

    async def request_rotation(
        self,
        hostnames: Sequence[str],
        at: datetime,
        history: Sequence[HistoryEntry],
        events: Sequence[Event],
        live: Sequence[Live],
    ) -> None:
        """
        These hosts shall have another break-glass password than the one that they have at ``at``. A later time that
        they were told already stays.

        :param hostnames: at most :data:`MOST_ROTATED`.
        """

    async def rotations(self, after: str = "", limit: int = 1000) -> list[Rotation]:
        """By host name; ``after`` as above."""

    async def record_reveal(
        self,
        entry: HistoryEntry,
        event: Event,
        rotate_at: datetime | None,
        live: Sequence[Live],
        *,
        outside: bool = False,
    ) -> None:
        """
        Somebody is about to see the host's password.

        :param entry: as it stands in the history of everybody active on the host, and in that of its actor.
        :param rotate_at: as for :meth:`request_rotation`; None: it stays.
        :param outside: this process has no audit log; a server puts the event into its chain.
        """

    async def record_use(self, entry: HistoryEntry, event: Event, live: Sequence[Live]) -> bool:
        """
        A break-glass password was used: for the history of everybody active on the host, and of its actor.

        :param entry: its ``username`` and ``actor`` are who used it.
        :returns: False: the same person's use at the same time on the host is known already, and nothing was done. Two
            entries with the same reason, if they have one, are the same use.
        """

    async def known_hosts(self, after: str = "", limit: int = 1000) -> list[KnownHost]:
        """The names in the history, in the database's order; ``after`` as above."""

    async def session_hosts(self, now: datetime, after: str = "", limit: int = 1000) -> dict[str, int]:
        """How many unexpired grace sessions there are on each host that has one, by name; ``after`` as above."""

    async def remove_host(self, entry: HistoryEntry, event: Event, live: Sequence[Live]) -> None:
        """
        Forget a host in every spelling: registration, grace sessions, escrowed password, rotation request, heartbeats,
        certificate. Its history stays. An unknown one is fine.

        :param entry: names the host; for the history of whoever removed it.
        """

    # -- the host registry --------------------------------------------------------------------------------------------
    async def registry_look(self) -> RegistryLook: ...

    async def registry_page(self, after: str = "", limit: int = 500) -> RegistryPage:
        """
        Hosts by name. Pages of one revision belong together.

        :param after: the last one that is known; empty begins.
        """

    async def import_registry(self, entries: Sequence[HostEntry], *, exported: bool) -> bool:
        """
        Take over the hosts of a file, once; those that are registered already stay as they are.

        :param exported: the file is an export of a registry; it only fills one that was never used.
        :returns: False: that was done before, or the export came too late. Nothing is changed.
        :raise TooManyHosts: nothing is changed.
        """

    async def register_host(self, entry: HostEntry, event: Event, *, first: bool, outside: bool = False) -> None:
        """
        :param first: it may be the first one ever.
        :param outside: this process has no audit log; a server puts the event into its chain.
        :raise FirstHost, HostExists, TooManyHosts: nothing is changed.
        """

    async def unregister_host(self, hostname: str, event: Event, *, outside: bool = False) -> None:
        """:raise UnknownHost: nothing is changed."""

    async def rotate_host_secret(self, hostname: str, digest: bytes, event: Event, *, outside: bool = False) -> None:
        """
        :param digest: SHA-256 of the new secret; the old one is void at once.
        :raise UnknownHost: nothing is changed.
        """

    async def change_host(
        self,
        hostname: str,
        users: frozenset[str] | None,
        group: str | None,
        event: Event,
        *,
        outside: bool = False,
    ) -> None:
        """
        :param users: None leaves them; so does ``group``, where empty takes it away.
        :raise UnknownHost: nothing is changed.
        """

    async def drop_host_user(self, username: str) -> int:
        """Off the lists of all hosts; from how many."""

    async def add_enrolment_token(
        self, token: EnrolmentToken, event: Event, *, first: bool, outside: bool = False
    ) -> None:
        """
        An older one of the same host is void from now on.

        :param first: the host may be the first one ever.
        :raise FirstHost, HostExists, TooManyHosts: nothing is changed.
        """

    async def redeem_enrolment_token(self, wish: Redeem) -> Enrolment:
        """
        Give the host its secret: of any number of callers with one token, one gets it.

        :raise BadToken, OtherHost: it gives nothing.
        :raise HostExists, TooManyHosts: nothing is changed, and the token is still good.
        """

    async def take_outside_events(self, limit: int = 100) -> int:
        """Put what other programs have done into the chain of this process; how many events that were."""

    # -- approval policies --------------------------------------------------------------------------------------------
    async def policies(self, version: int | None = None) -> PolicyVersion | None:
        """
        One set of policies.

        :param version: None: the one in force.
        :returns: None: there is none, or it was deleted long ago.
        """

    async def policy_versions(self, before: int | None = None, limit: int = 50) -> list[PolicyVersion]:
        """The newest first. :param before: those with a smaller number; None begins."""

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
        """
        Put another set in force; all processes are told (``policies_changed``). The oldest of more than
        :data:`MOST_POLICY_VERSIONS` are deleted.

        :param seen: the version that it follows; 0: the first.
        :param outside: this process has no audit log; a server puts the events into its chain.
        :raise Conflict: somebody else has saved since.
        """

    # -- notifications ------------------------------------------------------------------------------------------------
    async def plan_deliveries(self, planned: Sequence[Planned], now: datetime) -> int:
        """
        Have these messages sent; a key that is known already is left as it is.

        :param planned: at most :data:`MOST_PLANNED`.
        :returns: how many are new.
        """

    async def claim_deliveries(self, owner: str, now: datetime, lease: timedelta, limit: int) -> list[Delivery]:
        """
        Those that are due, the longest due first: each is in the hands of exactly one process until it is settled or
        the lease is over; then another one gets it. They come back with ``attempts`` grown by one.

        :param owner: names the process.
        """

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
        """
        What came of it.

        :param state: ``QUEUED`` with ``due_at``: it is tried again then.
        :returns: False: it was not in the hands of ``owner`` any more, and nothing was done.
        """

    async def drop_deliveries(self, code: str, now: datetime, why: str) -> int:
        """Skip what still waits of ``challenge_created`` messages about this code; how many that were."""

    async def deliveries(
        self,
        *,
        before: int | None = None,
        channel: str = "",
        state: DeliveryState | None = None,
        code: str = "",
        limit: int = 50,
    ) -> list[Delivery]:
        """The newest first. :param before: those with a smaller id; None begins."""

    async def next_delivery(self) -> datetime | None:
        """When the next one is due or a lease ends; None: nothing waits."""

    async def delivery_counts(self) -> dict[DeliveryState, int]:
        """For the gauges: those that are not over."""

    # -- push devices -------------------------------------------------------------------------------------------------
    async def add_push_device(self, device: PushDevice, event: Event, limit: int) -> bool:
        """
        One that is known already changes its person, keys, label and events.

        :returns: False: the person has ``limit`` others; nothing was done.
        """

    async def push_devices(self, username: str | None = None, after: str = "", limit: int = 500) -> list[PushDevice]:
        """By id; of everybody when ``username`` is None."""

    async def push_device(self, id: str) -> PushDevice | None: ...

    async def remove_push_device(self, id: str, event: Event, *, username: str = "") -> bool:
        """
        Whether there was one to remove.

        :param username: only if it is this person's.
        """

    async def push_sent(self, id: str, now: datetime) -> None:
        """The push service has taken a message for it."""

    # -- the audit chain ----------------------------------------------------------------------------------------------
    async def record(self, events: Sequence[Event]) -> None:
        """Events that come with no other change."""

    async def chains(self) -> list[Extent]:
        """What the database has of every chain; replicas have one each."""

    async def chain_records(self, instance: str, after: int, limit: int = 500) -> list[Sealed]:
        """
        Sealed records in order.

        :param after: their ``seq`` is greater than this; -1 begins.
        """

    async def parked_records(self, after: tuple[str, str, int], limit: int = 500) -> list[Parked]:
        """
        What sinks would not take, by chain, sink and number.

        :param after: chain, sink and number of the last one that is known; ``("", "", -1)`` begins.
        """

    # -- operations ---------------------------------------------------------------------------------------------------
    async def counts(self, now: datetime) -> Counts: ...

    async def ping(self) -> None:
        """Whether the database answers and can be written to."""

    async def tell_replicas(self, event: str) -> None:
        """Wake the other replicas with this event, which names nobody: ``reload_notify_config``."""

    async def deliveries_changed(self) -> None:
        """Tell pages that show the delivery log, whichever replica has served them."""

    def subscribe(self, listener: Callable[[Live], None]) -> Callable[[], None]:
        """
        Be told, on the reactor, of every committed :class:`Live`, of this process and of other replicas, once.
        After a lost connection to the other replicas an event ``resync`` with an empty username says: read again; an
        event ``revoked`` (username may be empty) says that another replica revoked browser sessions: read the
        :class:`Revocations` again; an event ``directory_published`` that another replica published a directory; an
        event ``policies_changed`` that a process, this one too, has saved other policies; an event
        ``reload_notify_config`` that another replica has changed the notification files; an event
        ``deliveries_planned`` that messages wait to be sent, and ``deliveries_changed`` that some have been dealt with.
        Returns the function that ends it.
        """
