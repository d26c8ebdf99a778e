"""
One directory in its three places: at PocketID, served by identree, and as the entries that slapd is loaded with.

The entries for slapd are built in this process, by the pure rules, from the same people and groups that identree reads
over HTTP: what fetching, numbering, storing, indexing and encoding do to them shows in the comparison.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from identree.demo.pocketid import DemoPocketID
from identree.directory import ids
from identree.directory.build import build
from identree.directory.draft import Draft
from identree.directory.layout import Layout
from identree.directory.source import Source, SourceGroup, SourceUser
from tests.e2e import wire
from tests.e2e.ldaptools import SUB, Client, Entries
from tests.e2e.pocketid import PocketIdServer, populate
from tests.e2e.slapd import BASE_DN, BIND_DN, BIND_PASSWORD

UID_BASE, GID_BASE = 200_000, 300_000
WEBHOOK_SECRET = "e2e-webhook-secret-0123456789abcdef"
# A change reaches the directory after the webhook's pause and the refresh itself.
SERVED_SECONDS = 60.0

T = TypeVar("T")


def settings(directory: Path, pocketid: PocketIdServer | None, port: int, **more: str) -> dict[str, str]:
    """
    :param pocketid: None is bridge mode.
    :param port: of the plain listener.
    """
    return {
        "IDENTREE_LDAP_ENABLED": "true",
        "IDENTREE_LDAP_LISTEN_ADDR": f"127.0.0.1:{port}",
        "IDENTREE_LDAP_BASE_DN": BASE_DN,
        "IDENTREE_LDAP_BIND_DN": BIND_DN,
        "IDENTREE_LDAP_BIND_PASSWORD": BIND_PASSWORD,
        "IDENTREE_LDAP_UID_MAP_FILE": str(directory / "uidmap.json"),
        "IDENTREE_LDAP_UID_BASE": str(UID_BASE),
        "IDENTREE_LDAP_GID_BASE": str(GID_BASE),
        "IDENTREE_SUDO_RULES_FILE": str(directory / "sudorules.json"),
        "IDENTREE_WEBHOOK_SECRET": WEBHOOK_SECRET,
        **(pocketid.settings if pocketid is not None else {}),
        **more,
    }


def stand_in(users: int, groups: int, rules: int) -> DemoPocketID:
    """In this process, the same people and groups as in :class:`PocketIdServer`."""
    made = DemoPocketID(api_key="", now=lambda: datetime.now(UTC), clock=None)
    populate(made, users, groups, rules)
    return made


def source(pocketid: DemoPocketID) -> Source:
    """What a fetch gives, without one."""
    people, teams = pocketid.people.values(), pocketid.teams.values()
    users = tuple(
        SourceUser(
            id=person.id,
            username=person.username,
            email=person.email or "",
            first_name=person.first_name,
            last_name=person.last_name or "",
            disabled=person.disabled,
            claims=tuple(person.claims),
            created_at=person.created_at.isoformat(),
        )
        for person in sorted(people, key=lambda person: (person.created_at, person.id))
    )
    places = {user.id: place for place, user in enumerate(users)}
    groups = tuple(
        SourceGroup(
            id=team.id,
            name=team.name,
            friendly_name=team.friendly_name,
            claims=tuple(team.claims),
            member_ids=tuple(sorted(team.members, key=places.__getitem__)),
            created_at=team.created_at.isoformat(),
        )
        for team in sorted(teams, key=lambda team: (team.created_at, team.id))
    )
    return Source(users=users, groups=groups)


def result(work: Generator[None, None, T]) -> T:
    """All of it at once."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            value: T = end.value
            return value


def entries(of: Source, layout: Layout | None = None) -> tuple[Draft, ...]:
    """What is served of it, when nobody had a number before."""
    empty = ids.IdMap.of(uids={}, gids={}, next_uid=UID_BASE, next_gid=GID_BASE)
    numbers = empty.with_allocation(result(empty.allocate(of))).numbers
    return result(build(of, numbers, layout or Layout(base_dn=BASE_DN), None)).drafts


def bound(port: int) -> Client:
    """A connection of the read-only account."""
    client = Client(port)
    code = client.bind(BIND_DN, BIND_PASSWORD)
    if code:
        client.close()
        raise AssertionError(f"the bind is answered with {code}")
    return client


def until(true: Callable[[], bool], what: str, seconds: float = SERVED_SECONDS, pause: float = 0.05) -> None:
    """Wait until it is so; trouble with a connection counts as not yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except (OSError, EOFError, AssertionError):
            if time.monotonic() > end:
                raise
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:.0f} s for {what}")
        time.sleep(pause)


def served(port: int, rdn: str, branch: str = "people") -> bool:
    """Whether an entry is there, asked on a connection of its own."""
    with bound(port) as client:
        return client.search(f"{rdn},ou={branch},{BASE_DN}", 0, ("*", "objectClass"), ["1.1"]).code == 0


def everything(port: int, filter: tuple[object, ...] = ("*", "objectClass")) -> Entries:
    """Every entry with all attributes, operational ones too, as the read-only account sees them."""
    with bound(port) as client:
        found = client.search(BASE_DN, SUB, filter, ["*", "+"])
    assert found.code == 0, found.diagnostic
    return found.entries


def ring(port: int, secret: str = WEBHOOK_SECRET) -> wire.Answer:
    """PocketID's webhook, signed with ``secret``."""
    body = b"{}"
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {"Content-Type": "application/json", "X-Webhook-Signature": f"sha256={signature}"}
    return wire.ask(port, "POST", "/api/webhook/pocketid", headers, body)


def refresh(port: int) -> None:
    """The signed webhook that says that PocketID has changed; the refresh comes after it."""
    answer = ring(port)
    assert answer.status == 204, answer


def metric(port: int, name: str) -> float:
    """
    :param name: with its labels, as ``/metrics`` writes them.
    """
    body = wire.ask(port, "GET", "/metrics").body.decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", body, re.MULTILINE)
    assert found is not None, f"there is no metric {name}"
    return float(found[1])
