"""
The hosts as the server knows them: who is alive, whose break-glass password lies where, and what administrators do with
a host (spec/http-api sections 7.4, 8 and 9.1, spec/web-ui section 12.3).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, TypeVar

from identree.app.hosts import Credential, Hosts
from identree.app.journal import Journal
from identree.app.people import Caller
from identree.app.ports import Now
from identree.app.rules import Rules
from identree.core import durations, names, tokens
from identree.core.challenge import GraceSession, HistoryEntry, Live, Strength
from identree.core.errors import AccountDisabled, Forbidden, Invalid, Refused, StorageUnavailable, Unauthorized
from identree.core.events import BreakglassRotationRequested, GraceElevated, HostRemoved
from identree.core.hosts import HostRegistry
from identree.core.policy import Policies
from identree.core.verdict import may_elevate
from identree.storage.interface import MOST_ROTATED, Agent, EscrowRecord, GraceChange, Store

HEARTBEAT = "POST /api/agent/heartbeat"
# Heartbeats come every five minutes; one may get lost.
ONLINE = timedelta(minutes=10)
STALE = timedelta(minutes=60)
# Of what a host tells about itself, in characters.
VERSION_LENGTH = 64
OS_INFO_LENGTH = 200
# A password is old after this where no other number is pushed to hosts.
ROTATION_DAYS = 90
SHORTEST_ELEVATION = timedelta(hours=1)
LONGEST_ELEVATION = timedelta(hours=24)
# Names from any one source; more are not looked at. A name costs about a kilobyte while a page is made.
MOST_HOSTS = 20_000
# Rows of one read, a few milliseconds.
ROWS_AT_ONCE = 1000
HOSTS_PER_PAGE = 50

_HOSTNAME = re.compile(r"[a-z0-9._-]{1,253}")

T = TypeVar("T")
# Runs a function in a thread.
InThread = Callable[[Callable[[], T]], Awaitable[T]]


class UnknownHost(Refused):
    """The registry is enabled and does not know the host."""

    key = "hostname_not_registered"


class TooManyHosts(Refused):
    """As many hosts have sent heartbeats as may."""


class GraceOff(Forbidden):
    """Without a grace period no session is honoured, so that none can be opened."""


class Seen(Enum):
    """How long ago a host was heard of; the values are the contract's."""

    ONLINE = "green"
    STALE = "amber"
    OFFLINE = "red"
    NEVER = "never"


class Kept(Enum):
    """What is known of a host's break-glass password."""

    ESCROWED = "escrowed"
    EXPIRED = "expired"
    NONE = "none"


def seen_state(last_seen: datetime | None, now: datetime) -> Seen:
    """Less than ten minutes ago is online, less than an hour stale."""
    if last_seen is None:
        return Seen.NEVER
    ago = now - last_seen
    if ago < ONLINE:
        return Seen.ONLINE
    return Seen.STALE if ago < STALE else Seen.OFFLINE


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """
    All that is known of one host.

    :ivar name: normalised. :ivar group: its label in the registry, or empty.
    :ivar agent: None: it never sent a heartbeat.
    :ivar escrow: None: it escrowed nothing.
    :ivar rotation: a rotation that it was asked for, and has not escrowed a password since.
    :ivar sessions: open sudo sessions on it.
    :ivar link: to its password in the escrow back end's own pages, or empty.
    """

    name: str
    group: str
    agent: Agent | None
    escrow: EscrowRecord | None
    rotation: datetime | None
    sessions: int
    seen: Seen
    kept: Kept
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """
    Which hosts, and in which order.

    :ivar search: part of the name, in any case.
    :ivar group: of the registry; empty: all, as for the next two.
    :ivar seen, kept: a value of :class:`Seen` and :class:`Kept`.
    :ivar sort: ``hostname``, ``seen`` or ``sessions``.
    :ivar number: of the page, from 1.
    """

    search: str = ""
    group: str = ""
    seen: Seen | None = None
    kept: Kept | None = None
    sort: str = "hostname"
    descending: bool = False
    number: int = 1

    @property
    def narrows(self) -> bool:
        return bool(self.search or self.group or self.seen or self.kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPage:
    """
    :ivar found: how many fit. :ivar total: how many there are. :ivar number: of this page; of ``pages``, at least 1.
    :ivar seen: how many of all are in each state. :ivar groups: of the registry.
    :ivar escrowed: whether any of all has a password escrowed.
    """

    hosts: tuple[HostState, ...]
    found: int
    total: int
    number: int
    pages: int
    seen: Mapping[Seen, int]
    groups: tuple[str, ...]
    escrowed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """What was read, to be put together in a thread."""

    registry: HostRegistry
    agents: Sequence[Agent]
    logged: Sequence[str]
    sessions: Mapping[str, int]
    records: Sequence[EscrowRecord]
    rotations: Mapping[str, datetime]
    now: datetime
    rotation_life: timedelta


class Fleet:
    """
    :param follow: reads the registry again, so that a removal counts at once (``LiveRegistry.refresh``).
    :param policies: what approvals need, as it is now.
    :param link: to a host's password in the escrow back end's own pages, or empty; pure.
    :param disabled: whether the directory has this person's account disabled.
    :param in_thread: runs what takes long in a thread.
    """

    def __init__(
        self,
        *,
        store: Store,
        hosts: Hosts,
        registry: Callable[[], HostRegistry],
        follow: Callable[[], Awaitable[object]],
        keys: tokens.Keys,
        rules: Callable[[], Rules],
        link: Callable[[EscrowRecord], str],
        disabled: Callable[[str], bool],
        in_thread: InThread[Any],
        now: Now,
        journal: Journal,
        policies: Callable[[], Policies] = Policies.empty,
    ) -> None:
        self._store = store
        self._hosts = hosts
        self._registry = registry
        self._follow = follow
        self._keys = keys
        self._rules = rules
        self._link = link
        self._disabled = disabled
        self._in_thread = in_thread
        self._now = now
        self._journal = journal
        self._policies = policies

    # -- heartbeats ---------------------------------------------------------------------------------------------------
    async def heartbeat(
        self, hostname: str, version: str, os_info: str, presented: Credential, address: str
    ) -> datetime | None:
        """
        A host is alive.

        :param version, os_info: as it told them; what cannot be shown is left out.
        :returns: a break-glass password that is older than this shall be replaced; None: it is new enough.
        :raise Invalid: the name is none.
        :raise Unauthorized: neither the global secret nor the host's own secret or certificate.
        :raise UnknownHost: it is not in the enabled registry.
        :raise TooManyHosts: there is no place for another one.
        """
        try:
            name = names.hostname(hostname)
        except Invalid:
            raise Invalid("invalid hostname format") from None
        if name != names.normalised_hostname(name):
            raise Invalid("invalid hostname format")
        self._hosts.authenticate(presented, address, HEARTBEAT)
        registry = self._registry()
        own = presented.certificate == name or registry.matches(name, presented.secret)
        if not own and not self._hosts.is_global(presented):
            # not counted against the address: whoever it is, the secret is a good one
            self._journal.warn("AUTH_FAILURE heartbeat credential mismatch", host=name, remote_addr=address)
            self._hosts.note_failure(f"credential mismatch: {HEARTBEAT}", address, hostname=name)
            raise Unauthorized
        if registry.enabled and registry.entry(name) is None:
            raise UnknownHost
        now = self._now()
        agent = Agent(
            hostname=name,
            version=_shown(version, VERSION_LENGTH),
            os_info=_shown(os_info, OS_INFO_LENGTH),
            address=address,
            first_seen=now,
            last_seen=now,
        )
        beat = await self._store.record_heartbeat(agent)
        if not beat.accepted:
            raise TooManyHosts
        wanted = [at for at in (self._rules().rotate_before, beat.rotated_at) if at is not None]
        if not wanted or (beat.escrowed_at is not None and beat.escrowed_at > max(wanted)):
            return None
        return max(wanted)

    async def agents(self, caller: Caller) -> list[Agent]:
        """
        Who has ever sent a heartbeat, the latest first; one for all spellings of a name.

        :raise Forbidden: not an administrator.
        """
        _must_be_admin(caller)
        agents = await self._all_agents()

        def latest() -> list[Agent]:
            return sorted(_by_name(agents).values(), key=lambda agent: (-agent.last_seen.timestamp(), agent.hostname))

        found: list[Agent] = await self._in_thread(latest)
        return found

    # -- the page -----------------------------------------------------------------------------------------------------
    async def page(self, caller: Caller, wanted: Wanted) -> FleetPage:
        """:raise Forbidden: not an administrator."""
        _must_be_admin(caller)
        sources = await self._sources()

        def made() -> FleetPage:
            hosts = _assembled(sources)
            found = _sorted(_fitting(hosts, wanted), wanted)
            pages = max(1, -(-len(found) // HOSTS_PER_PAGE))
            number = min(max(1, wanted.number), pages)
            shown = found[(number - 1) * HOSTS_PER_PAGE : number * HOSTS_PER_PAGE]
            return FleetPage(
                hosts=tuple(
                    host if host.escrow is None else replace(host, link=self._link(host.escrow)) for host in shown
                ),
                found=len(found),
                total=len(hosts),
                number=number,
                pages=pages,
                seen={state: sum(host.seen is state for host in hosts) for state in Seen},
                groups=tuple(sorted({group for name in sources.registry.names if (group := _group(sources, name))})),
                escrowed=bool(sources.records),
            )

        page: FleetPage = await self._in_thread(made)
        return page

    async def _all_agents(self) -> list[Agent]:
        agents: list[Agent] = []
        while len(agents) < MOST_HOSTS:
            some = await self._store.agents(agents[-1].hostname if agents else "", ROWS_AT_ONCE)
            agents += some
            if len(some) < ROWS_AT_ONCE:
                break
        return agents

    async def _sources(self) -> _Sources:
        now, registry = self._now(), self._registry()
        records: list[EscrowRecord] = []
        while len(records) < MOST_HOSTS:
            page = await self._store.escrow_records(records[-1].hostname if records else "", ROWS_AT_ONCE)
            records += page
            if len(page) < ROWS_AT_ONCE:
                break
        rotations: dict[str, datetime] = {}
        after = ""
        while len(rotations) < MOST_HOSTS:
            asked = await self._store.rotations(after, ROWS_AT_ONCE)
            rotations |= {one.hostname: one.requested_at for one in asked}
            if len(asked) < ROWS_AT_ONCE:
                break
            after = asked[-1].hostname
        sessions: dict[str, int] = {}
        after = ""
        while len(sessions) < MOST_HOSTS:
            counted = await self._store.session_hosts(now, after, ROWS_AT_ONCE)
            sessions |= counted
            if len(counted) < ROWS_AT_ONCE:
                break
            after = list(counted)[-1]
        days = self._rules().client.breakglass_rotation_days or ROTATION_DAYS
        return _Sources(
            registry=registry,
            agents=await self._all_agents(),
            logged=[] if registry.enabled else await self._logged(),
            sessions=sessions,
            records=records,
            rotations=rotations,
            now=now,
            rotation_life=timedelta(days=days),
        )

    async def _logged(self) -> list[str]:
        """The hosts of the history. There may be many names in it that are none any more."""
        found: list[str] = []
        after, looked = "", 0
        while looked < 2 * MOST_HOSTS and len(found) < MOST_HOSTS:
            some = await self._store.known_hosts(after, ROWS_AT_ONCE)
            found += [one.hostname for one in some if one.present]
            if len(some) < ROWS_AT_ONCE:
                break
            after, looked = some[-1].hostname, looked + len(some)
        return found

    # -- rotation -----------------------------------------------------------------------------------------------------
    async def rotate(self, caller: Caller, hostname: str, *, address: str = "") -> None:
        """
        Ask a host to replace its break-glass password, with the next challenge or heartbeat.

        :param hostname: normalised.
        :raise Forbidden: not an administrator.
        """
        _must_be_admin(caller)
        await self._rotate(caller, [hostname], address)
        self._journal.info("ROTATE_BREAKGLASS", user=caller.username, host=hostname, remote_addr=address)

    async def rotate_all(self, caller: Caller, wanted: Wanted, *, address: str = "") -> int:
        """
        The same of all hosts that the page lists with these filters, on whatever page they stand.

        :returns: how many.
        :raise Forbidden: not an administrator.
        :raise StorageUnavailable: some of them may have been asked; asking again does no harm.
        """
        _must_be_admin(caller)
        sources = await self._sources()

        def fitting() -> list[str]:
            return sorted(host.name for host in _fitting(_assembled(sources), wanted))

        found: list[str] = await self._in_thread(fitting)
        for start in range(0, len(found), MOST_ROTATED):
            await self._rotate(caller, found[start : start + MOST_ROTATED], address)
        self._journal.info("ROTATE_ALL_BREAKGLASS", user=caller.username, count=len(found), remote_addr=address)
        return len(found)

    async def _rotate(self, caller: Caller, hostnames: Sequence[str], address: str) -> None:
        now, admin = self._now(), caller.username
        await self._store.request_rotation(
            hostnames,
            now,
            [
                HistoryEntry(at=now, username=admin, action="rotation_requested", hostname=name, actor=admin)
                for name in hostnames
            ],
            [
                BreakglassRotationRequested(at=now, username=admin, hostname=name, actor=admin, remote_addr=address)
                for name in hostnames
            ],
            [Live(event="host_changed", username=admin)],
        )

    # -- grace without a challenge ------------------------------------------------------------------------------------
    async def elevate(
        self, caller: Caller, hostname: str, target: str, seconds: int | None, *, address: str = ""
    ) -> GraceSession:
        """
        Open a sudo session for somebody; one that lasts longer stays.

        :param hostname: normalised. :param target: of valid syntax.
        :param seconds: at least 1, else it is refused; raised to an hour, then cut to the grace period and a day.
        :raise Forbidden: of another person without being an administrator; or not an administrator and no registry says
            who may do what; or the registry does not list the person for the host.
        :raise AdminRequired, SelfApprovalForbidden, NotAnApprover, OutsideWindow, FreshLoginRequired: what the caller
            could not approve, the caller cannot open either.
        :raise GraceOff: sessions are not honoured.
        :raise AccountDisabled: see there.
        """
        if target != caller.username:
            _must_be_admin(caller)
        registry = self._registry()
        if not registry.enabled:
            _must_be_admin(caller)
        elif not registry.lists(hostname, target):
            raise Forbidden
        if seconds is None or seconds < 1:
            raise Invalid("duration: a whole number of seconds", key="invalid_duration")
        if self._disabled(target):
            raise AccountDisabled
        now = self._now().replace(microsecond=0)
        # where one could not approve a challenge, one cannot do without it either
        needed = self._policies().requirement(target, hostname, registry.group(hostname), now)
        approver = caller.approver
        if approver.authenticated_at is None:
            approver = replace(approver, authenticated_at=await self._store.last_login(caller.username))
        may_elevate(needed, approver, target, now)
        period = self._rules().grace_period
        if needed.max_grace is not None:
            period = min(period, needed.max_grace)
        if period <= timedelta(0):
            raise GraceOff
        length = min(max(timedelta(seconds=min(seconds, 10**9)), SHORTEST_ELEVATION), LONGEST_ELEVATION, period)

        def change(row: GraceSession | None) -> GraceChange:
            session = GraceSession(
                username=target,
                hostname=hostname,
                expires_at=now + length,
                strength=Strength(
                    policy=needed.policy_name, by_admin=caller.is_admin, by_other=caller.username != target
                ),
            )
            if row is not None and tokens.grace_valid(self._keys.grace, row) and row.expires_at > session.expires_at:
                session = replace(row, strength=tokens.grace_strength(self._keys.grace, row))
            return GraceChange(
                session=tokens.signed_grace(self._keys.grace, session),
                events=(
                    GraceElevated(
                        at=now, username=target, hostname=hostname, actor=caller.username, remote_addr=address
                    ),
                ),
                history=(
                    HistoryEntry(at=now, username=target, action="elevated", hostname=hostname, actor=caller.username),
                ),
                live=(Live(event="session_changed", username=target),),
            )

        done = await self._store.change_grace(target, hostname, change)
        assert done.session is not None
        self._journal.info(
            "ELEVATED",
            user=target,
            host=hostname,
            duration=durations.render(length),
            by=caller.username,
            remote_addr=address,
        )
        return done.session

    # -- removal ------------------------------------------------------------------------------------------------------
    async def remove(self, caller: Caller, hostname: str, *, address: str = "") -> None:
        """
        Forget a host: its sudo sessions, escrowed password, rotation request, heartbeats, certificate and registration.
        Its history stays. An unknown one is fine, so this can be repeated.

        :param hostname: normalised.
        :raise Forbidden: not an administrator.
        """
        _must_be_admin(caller)
        now, admin = self._now(), caller.username
        await self._store.remove_host(
            HistoryEntry(at=now, username=admin, action="removed_host", hostname=hostname, actor=admin),
            HostRemoved(at=now, username=admin, hostname=hostname, actor=admin, remote_addr=address),
            [Live(event="host_changed", username=admin)],
        )
        with suppress(StorageUnavailable):
            # it is done; the registry looks again by itself
            await self._follow()
        self._journal.info("HOST_REMOVED", admin=admin, host=hostname, client_ip=address)


# -- putting together, pure --------------------------------------------------------------------------------------------
def _assembled(sources: _Sources) -> list[HostState]:
    """
    With an enabled registry the hosts are those that it has, otherwise all that were ever heard of; and always those
    whose password is escrowed, since somebody may need it.
    """
    agents = _by_name(sources.agents)
    records: dict[str, EscrowRecord] = {}
    for record in sources.records:
        name = names.normalised_hostname(record.hostname)
        if name not in records or records[name].escrowed_at < record.escrowed_at:
            records[name] = record
    sessions: dict[str, int] = {}
    for spelling, count in sources.sessions.items():
        name = names.normalised_hostname(spelling)
        sessions[name] = sessions.get(name, 0) + count
    rotations: dict[str, datetime] = {}
    for spelling, at in sources.rotations.items():
        name = names.normalised_hostname(spelling)
        rotations[name] = max(at, rotations.get(name, at))
    if sources.registry.enabled:
        known: set[str] = set(sources.registry.names)
    else:
        known = {*agents, *sessions, *map(names.normalised_hostname, sources.logged)}
    known = {name for name in known if _HOSTNAME.fullmatch(name)} | set(records)
    return [
        _host(sources, name, agents.get(name), records.get(name), rotations.get(name), sessions.get(name, 0))
        for name in known
    ]


def _host(
    sources: _Sources,
    name: str,
    agent: Agent | None,
    record: EscrowRecord | None,
    rotation: datetime | None,
    sessions: int,
) -> HostState:
    kept = Kept.NONE
    if record is not None:
        old = sources.now - record.escrowed_at >= sources.rotation_life
        kept = Kept.EXPIRED if old else Kept.ESCROWED
        if rotation is not None and record.escrowed_at > rotation:
            rotation = None
    return HostState(
        name=name,
        group=_group(sources, name),
        agent=agent,
        escrow=record,
        rotation=rotation,
        sessions=sessions,
        seen=seen_state(None if agent is None else agent.last_seen, sources.now),
        kept=kept,
    )


def _group(sources: _Sources, name: str) -> str:
    return sources.registry.group(name)


def _by_name(agents: Iterable[Agent]) -> dict[str, Agent]:
    """By the normalised name; of several spellings the one that was heard of last. Old servers kept what was sent."""
    found: dict[str, Agent] = {}
    for agent in agents:
        name = names.normalised_hostname(agent.hostname)
        if name not in found or found[name].last_seen < agent.last_seen:
            found[name] = agent
    return found


def _fitting(hosts: Iterable[HostState], wanted: Wanted) -> list[HostState]:
    search = wanted.search.lower()
    return [
        host
        for host in hosts
        if search in host.name
        and (not wanted.group or host.group == wanted.group)
        and (wanted.seen is None or host.seen is wanted.seen)
        and (wanted.kept is None or host.kept is wanted.kept)
    ]


def _sorted(hosts: list[HostState], wanted: Wanted) -> list[HostState]:
    """By the name where all else is equal, also when the order is turned round."""
    hosts = sorted(hosts, key=lambda host: host.name)
    if wanted.sort == "sessions":
        return sorted(hosts, key=lambda host: host.sessions, reverse=wanted.descending)
    if wanted.sort == "seen":
        return sorted(hosts, key=_heard_of, reverse=wanted.descending)
    return hosts[::-1] if wanted.descending else hosts


def _heard_of(host: HostState) -> float:
    return 0.0 if host.agent is None else host.agent.last_seen.timestamp()


def _shown(text: str, limit: int) -> str:
    """What a host tells about itself, as it may stand on a page and in a log."""
    return "".join(character for character in text.strip()[:limit] if character.isprintable())


def _must_be_admin(caller: Caller) -> None:
    if not caller.is_admin:
        raise Forbidden
