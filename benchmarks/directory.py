"""
The directory beside OpenLDAP's slapd: the same entries, the same searches, one load generator, in turns.

Ratios count, not rates: both servers, and the load, share the machine.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle

from benchmarks.ldapload import (
    ALL_USERS_FILTER,
    USER_ATTRIBUTES,
    Asks,
    Generator,
    Outcome,
    Query,
    enumerate_all,
)
from benchmarks.report import Report, Result
from benchmarks.server import LONGEST_TURN, Turns, WatchedServer, temporary_directory
from identree.directory.draft import Draft, Kind
from tests.e2e import directory, wire
from tests.e2e.ldaptools import SUB
from tests.e2e.pocketid import Control, PocketIdServer, groupname, username
from tests.e2e.server import free_port
from tests.e2e.slapd import BASE_DN, BIND_DN, BIND_PASSWORD, Slapd

USERS, GROUPS, RULES = 10_000, 500, 200
MANY_USERS = 100_000
CONNECTIONS = (1, 16, 128)
# How many searches are under way on one connection: one, and as many as sssd has when several processes ask it.
WINDOWS = (1, 8)
ROUNDS = 3
# Nobody asks twice: each round takes its part of all the searches that there are.
PARTS = len(CONNECTIONS) * ROUNDS
REPEATED = 200
SECONDS = 2.0
# Before a measurement, with searches that it does not have.
WARM_UP = 3000
SWAPS = 1000
# The server takes 30 forms a minute of one person.
ADMINS = 100
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class World:
    """
    :ivar drafts: what both serve.
    :ivar turn: whose turn it is to ask for a refresh.
    """

    pocketid: PocketIdServer
    server: WatchedServer
    port: int
    drafts: Sequence[Draft]
    turn: Iterator[int] = field(default_factory=lambda: cycle(range(ADMINS)))

    def refresh(self) -> None:
        """As the button of the administrator's page, which answers when it is done."""
        answer = wire.Visitor(f"admin{next(self.turn)}", "admin").post(self.server.port, "/api/directory/refresh")
        if answer.status not in (200, 303):
            raise RuntimeError(f"the refresh is answered with {answer.status}: {answer.body[:500]!r}")


def everywhere(control: Control | PocketIdServer, rules: int) -> None:
    """All of the rules hold on every host, so that a full refresh of one host gets them all."""
    for number in range(rules):
        commands = f"/usr/bin/systemctl restart app{number},/usr/bin/journalctl -u app{number}"
        control.change_group(groupname(number), claims={"sudoCommands": commands})


@contextmanager
def world(users: int, groups: int, rules: int) -> Iterator[World]:
    """PocketID, and identree that has read it."""
    with ExitStack() as stack:
        pocketid = stack.enter_context(PocketIdServer(users, groups, rules))
        everywhere(pocketid, rules)
        made = directory.stand_in(users, groups, rules)
        everywhere(Control(made), rules)
        drafts = directory.entries(directory.source(made))
        place = stack.enter_context(temporary_directory())
        port = free_port()
        server = WatchedServer(place, directory.settings(place, pocketid, port))
        stack.callback(server.kill)
        try:
            server.start()
            last = f"cn={groupname(rules - 1)}" if rules else f"uid={username(users - 1)}"
            directory.until(
                lambda: directory.served(port, last, "sudoers" if rules else "people"), "the directory", 300
            )
            server.turns()
            yield World(pocketid, server, port, drafts)
            server.stop()
        except BaseException:
            print(server.log[-3000:], file=sys.stderr)
            raise


# -- searches ---------------------------------------------------------------------------------------------------------
def searches(drafts: Sequence[Draft]) -> list[Query]:
    """Every lookup of sssd's for every person and group, each of them once, in no order."""
    asks = Asks(BASE_DN)
    found: list[Query] = []
    memberships: dict[str, int] = {}
    for draft in drafts:
        if draft.kind in (Kind.GROUP, Kind.PRIVATE_GROUP):
            attributes = dict(draft.attributes)
            for member in attributes.get("memberUid", ()):
                memberships[member.decode()] = memberships.get(member.decode(), 0) + 1
            name, number = attributes["cn"][0].decode(), int(attributes["gidNumber"][0])
            found += [asks.group_by_name(name), asks.group_by_id(number, name)]
    for draft in drafts:
        if draft.kind is Kind.PERSON:
            attributes = dict(draft.attributes)
            name, number = attributes["uid"][0].decode(), int(attributes["uidNumber"][0])
            found += [
                asks.passwd_by_name(name),
                asks.passwd_by_id(number, name),
                asks.person_of_memberships(name),
                asks.memberships(name, memberships[name]),
            ]
    random.Random(4711).shuffle(found)
    return found


def unknown(count: int) -> list[Query]:
    """Of people that nobody knows: what warms up the code without spoiling what is measured."""
    asks = Asks(BASE_DN)
    return [asks.passwd_by_name(f"nobody{number}", 0) for number in range(count)]


# -- identree and slapd in turns --------------------------------------------------------------------------------------
@dataclass(slots=True)
class Rounds:
    """What each round gave, ours beside theirs."""

    ours: list[Outcome]
    theirs: list[Outcome]

    def ratios(self, share: float = 0.0) -> list[float]:
        """Rates, ours divided by theirs; with a ``share``, those percentiles of the latencies."""
        pairs = zip(self.ours, self.theirs, strict=True)
        if share:
            return [our.percentile_seconds(share) / their.percentile_seconds(share) for our, their in pairs]
        return [our.rate / their.rate for our, their in pairs]

    def add(self, our: Outcome, their: Outcome) -> None:
        for whose, outcome in (("identree", our), ("slapd", their)):
            if outcome.wrong:
                raise RuntimeError(f"{whose} gave {outcome.wrong} wrong answers: {'; '.join(outcome.described)}")
        self.ours.append(our)
        self.theirs.append(their)

    @property
    def told(self) -> str:
        """The middle round of each, and whether the load was what limited."""
        parts = []
        for whose, outcomes in (("identree", self.ours), ("slapd", self.theirs)):
            middle = sorted(outcomes, key=lambda outcome: outcome.rate)[len(outcomes) // 2]
            parts.append(f"{whose} {middle} (load {middle.busy:.0%} busy)")
        return "; ".join(parts)


def _lines(report: Report, name: str, rounds: Rounds, target: float, turns: Turns, *, p99: bool = True) -> None:
    report.add(
        Result(
            name=f"{name}: rate ÷ slapd's",
            unit="×",
            runs=rounds.ratios(),
            target=target,
            at_least=True,
            digits=2,
            peer=rounds.told,
            reactor=str(turns),
        )
    )
    if p99:
        report.add(Result(name=f"{name}: p99 ÷ slapd's", unit="×", runs=rounds.ratios(0.99), target=1, digits=2))


def compared(report: Report) -> None:
    """10,000 people, 500 groups and 200 rules, in both."""
    with world(USERS, GROUPS, RULES) as ours, ExitStack() as stack:
        place = stack.enter_context(temporary_directory())
        theirs = stack.enter_context(Slapd(place, ours.drafts))
        generator = Generator(place, BIND_DN, BIND_PASSWORD)
        ports = (ours.port, theirs.port)
        warm = generator.plan("warm", unknown(WARM_UP))
        for port in ports:
            generator.run(port, warm, 16)
        _new(report, ours, generator, ports)
        _repeats(report, ours, generator, ports)
        _rules(report, ours, generator, ports)
        _enumeration(report, ours, ports)


def _new(report: Report, ours: World, generator: Generator, ports: tuple[int, int]) -> None:
    everything = searches(ours.drafts)
    size = len(everything) // (PARTS * len(WINDOWS))
    parts = iter([everything[place : place + size] for place in range(0, size * PARTS * len(WINDOWS), size)])
    for window in WINDOWS:
        for connections in CONNECTIONS:
            rounds = Rounds([], [])
            for _ in range(ROUNDS):
                plan = generator.plan("new", next(parts))
                rounds.add(*(generator.run(port, plan, connections, window) for port in ports))
            _lines(report, _name("LDAP, every search new", connections, window), rounds, 1, ours.server.turns())


def _repeats(report: Report, ours: World, generator: Generator, ports: tuple[int, int]) -> None:
    plan = generator.plan("repeats", searches(ours.drafts)[:REPEATED])
    for window in WINDOWS:
        for connections in CONNECTIONS:
            rounds = Rounds([], [])
            for _ in range(ROUNDS):
                rounds.add(*(generator.run(port, plan, connections, window, SECONDS) for port in ports))
            _lines(report, _name("LDAP, repeated searches", connections, window), rounds, 3, ours.server.turns())


def _name(what: str, connections: int, window: int) -> str:
    many = f"{connections} connections" if connections > 1 else "1 connection"
    return f"{what}, {many}" + (f", {window} searches under way on each" if window > 1 else "")


def _rules(report: Report, ours: World, generator: Generator, ports: tuple[int, int]) -> None:
    plan = generator.plan("rules", [Asks(BASE_DN).rules(RULES)])
    for connections in CONNECTIONS:
        rounds = Rounds([], [])
        for _ in range(ROUNDS):
            rounds.add(*(generator.run(port, plan, connections, 1, SECONDS) for port in ports))
        name = _name(f"sudo full refresh of {RULES} rules", connections, 1)
        _lines(report, name, rounds, 1, ours.server.turns(), p99=False)


def _enumeration(report: Report, ours: World, ports: tuple[int, int]) -> None:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(2 * ROUNDS + 1):
        for port, taken in zip(ports, times, strict=True):
            taken.append(_everybody(port, USERS))
    report.add(
        Result(
            name=f"All {USERS:,} people in pages: time ÷ slapd's",
            unit="×",
            runs=[our / their for our, their in zip(*times, strict=True)],
            target=1,
            digits=2,
            peer="identree {:.0f} ms, slapd {:.0f} ms".format(*(statistics.median(t) * 1000 for t in times)),
            reactor=str(ours.server.turns()),
        )
    )


def _everybody(port: int, expected: int) -> float:
    base = f"ou=people,{BASE_DN}"
    count, seconds = enumerate_all(port, BIND_DN, BIND_PASSWORD, base, ALL_USERS_FILTER, USER_ATTRIBUTES)
    if count != expected:
        raise RuntimeError(f"{count} people came, and there are {expected}")
    return seconds


# -- refreshes --------------------------------------------------------------------------------------------------------
def unchanged(report: Report) -> None:
    """What a refresh costs that finds nothing new."""
    with world(USERS, GROUPS, RULES) as ours:
        ours.refresh()
        ours.server.turns()
        runs = []
        for _ in range(2 * ROUNDS + 1):
            before = ours.server.cpu_seconds()
            for _ in range(4):
                ours.refresh()
            runs.append((ours.server.cpu_seconds() - before) / 4 * 1000)
        turns = ours.server.turns()
        report.add(
            Result(
                name=f"Refresh of {USERS:,} unchanged people: processor time",
                unit="ms",
                runs=runs,
                target=100,
                reactor=str(turns),
            )
        )
        report.add(
            Result(
                name=f"Refresh of {USERS:,} people: longest turn of the reactor",
                unit="ms",
                runs=[turns.longest_seconds * 1000],
                target=LONGEST_TURN * 1000,
                digits=1,
            )
        )
        _changed(report, ours, USERS)


def _changed(report: Report, ours: World, users: int) -> None:
    """One change: from the moment that PocketID has it and is asked to the moment that a search finds it."""
    nothing = [_refresh_costs(ours) for _ in range(ROUNDS)]
    served, own = [], []
    for number in range(ROUNDS):
        name, mail = username(number), f"changed{number}@example.com"
        ours.pocketid.change_user(name, email=mail)
        before, begun = ours.server.cpu_seconds(), time.monotonic()
        ours.refresh()
        directory.until(partial(_has, ours.port, mail, name), "the change", pause=0.01)
        served.append(time.monotonic() - begun)
        own.append(ours.server.cpu_seconds() - before)
    peer = (
        "of it, identree's processor time {:.2f} s; a refresh that finds nothing new takes {:.2f} s, of it {:.2f} s of "
        "that processor time, so that the change itself costs {:.2f} s"
    )
    idle_seconds, idle_own = (statistics.median(values) for values in zip(*nothing, strict=True))
    report.add(
        Result(
            name=f"Refresh of {users:,} people with one change, until it is served",
            unit="s",
            runs=served,
            target=1,
            digits=2,
            peer=peer.format(statistics.median(own), idle_seconds, idle_own, statistics.median(own) - idle_own),
            reactor=str(ours.server.turns()),
            hindrance="all pages are fetched from a stand-in for PocketID that shares the processors",
        )
    )


def _refresh_costs(ours: World) -> tuple[float, float]:
    """Seconds, and seconds of identree's processor time, of a refresh that finds what the one before found."""
    before, begun = ours.server.cpu_seconds(), time.monotonic()
    ours.refresh()
    return time.monotonic() - begun, ours.server.cpu_seconds() - before


def _has(port: int, mail: str, name: str) -> bool:
    with directory.bound(port) as client:
        found = client.search(BASE_DN, SUB, ("=", "mail", mail.encode()), ["1.1"])
    return found.order == [f"uid={name},ou=people,{BASE_DN}"]


def swaps(report: Report) -> None:
    """Searches go on while one snapshot after the other is served."""
    users = 1000
    with world(users, 50, 20) as ours, temporary_directory() as place:
        generator = Generator(place, BIND_DN, BIND_PASSWORD)
        plan = generator.plan("swaps", [*searches(ours.drafts), Asks(BASE_DN).rules(20)])
        ours.pocketid.add_user("swap")
        wrong, asked, number = 0, 0, 0
        described: list[str] = []
        while number < SWAPS:
            running = generator.start(ours.port, plan, 4, 2, 20.0)
            while running.poll() is None:
                # whom nobody asks for: everybody else stays as they are
                ours.pocketid.change_user("swap", email=f"{number}@example.com")
                ours.refresh()
                number += 1
            outcome = generator.finish(running)
            wrong, asked = wrong + outcome.wrong, asked + outcome.count
            described += outcome.described
        report.add(
            Result(
                name=f"Failed or wrong searches across {number:,} swaps of the snapshot",
                unit="of " + f"{asked:,}",
                runs=[wrong],
                target=0,
                peer="; ".join(described[:3]),
                reactor=str(ours.server.turns()),
            )
        )


# -- sizes ------------------------------------------------------------------------------------------------------------
def many(report: Report) -> None:
    """100,000 people: everybody is served, in bounded memory, and a change soon."""
    with world(MANY_USERS, GROUPS, RULES) as ours, temporary_directory() as place:
        report.add(
            Result(
                name=f"Resident memory with {MANY_USERS:,} people",
                unit="MB",
                runs=[ours.server.resident_bytes() / MB],
                target=1000,
                reactor=str(ours.server.turns()),
            )
        )
        seconds = _everybody(ours.port, MANY_USERS)
        generator = Generator(place, BIND_DN, BIND_PASSWORD)
        asked = random.Random(4711).sample(searches(ours.drafts), 20_000)
        outcome = generator.run(ours.port, generator.plan("many", asked), 16)
        report.add(
            Result(
                name=f"Wrong answers with {MANY_USERS:,} people",
                unit=f"of {outcome.count:,}",
                runs=[outcome.wrong],
                target=0,
                peer=f"{outcome}; all people in pages: {seconds:.2f} s",
                reactor=str(ours.server.turns()),
            )
        )
        _changed(report, ours, MANY_USERS)
        report.add(
            Result(
                name=f"Resident memory with {MANY_USERS:,} people, after refreshes and searches",
                unit="MB",
                runs=[ours.server.resident_bytes() / MB],
                target=1000,
                reactor=str(ours.server.turns()),
            )
        )


def idle(report: Report) -> None:
    """Memory of a server that has read its people and waits."""
    for users, most in ((1000, 120), (USERS, 200)):
        with world(users, GROUPS, RULES) as ours:
            report.add(
                Result(
                    name=f"Resident memory with {users:,} people, idle",
                    unit="MB",
                    runs=[ours.server.resident_bytes() / MB],
                    target=most,
                )
            )
