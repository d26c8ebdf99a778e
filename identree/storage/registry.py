"""
Scripts over the host registry and its enrolment tokens (spec/storage section 13).

Every change moves the revision first. That row is the lock which puts changes in an order, and the number by which
everybody who follows the registry notices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from identree.core import audit
from identree.core.challenge import Live
from identree.core.events import (
    KINDS,
    ConfigChanged,
    EnrolmentTokenCreated,
    Event,
    HostEnrolled,
    HostRegistered,
    HostRegistrationChanged,
    HostRemoved,
    HostSecretRotated,
    RevealedBreakglass,
)
from identree.core.hosts import (
    EVERYBODY,
    MOST_HOSTS,
    BadToken,
    FirstHost,
    HostEntry,
    HostExists,
    OtherHost,
    TooManyHosts,
    UnknownHost,
)
from identree.storage.interface import Enrolment, EnrolmentToken, Redeem, RegistryLook, RegistryPage
from identree.storage.script import Do, Effects, Row, Script
from identree.storage.times import instant_or_none, seconds

# Wakes who follows the registry, here and in other replicas.
REGISTRY_CHANGED = "registry_changed"
# Tokens that can still be used, all hosts together.
MOST_TOKENS = 10_000
# A token is remembered so long after its end: that it was used tells apart a mistake from a theft.
REMEMBERED = timedelta(days=7)
# So many of the older ones are forgotten with each new one.
FORGOTTEN_AT_ONCE = 20
# Rows of one statement of an import, one for each letter: names of parameters have no digits.
_LETTERS = "abcdefghijklmnopqrstuvwxy"
_AT_ONCE = len(_LETTERS)

# What programs beside the server can do.
OUTSIDE: tuple[type[Event], ...] = (
    HostRegistered,
    HostRegistrationChanged,
    HostRemoved,
    HostSecretRotated,
    EnrolmentTokenCreated,
    RevealedBreakglass,
    ConfigChanged,
)

_LOOK = """
SELECT revision, imported, (SELECT COUNT(*) FROM (SELECT 1 FROM outside_events LIMIT 1) AS waiting)
FROM registry_state WHERE name = 'default'
""".strip()
_REVISION = "SELECT revision FROM registry_state WHERE name = 'default'"
_MOVE = "UPDATE registry_state SET revision = revision + 1 WHERE name = 'default' RETURNING revision"
# An export is what another registry was; it must not bring back hosts that were removed from this one.
_IMPORT = """
UPDATE registry_state SET imported = 1, revision = revision + :moved
WHERE name = 'default' AND imported = 0 AND (:exported = 0 OR revision = 0) RETURNING 1
""".strip()

_COLUMNS = "hostname, secret_sha256, users, host_group, registered_at, cert_expires_at"
_PAGE = """
SELECT h.hostname, h.secret_sha256, h.users, h.host_group, h.registered_at, COALESCE(c.expires_at, h.cert_expires_at)
FROM registry_hosts h LEFT JOIN host_certificates c ON c.hostname = h.hostname
WHERE h.hostname > :after ORDER BY h.hostname LIMIT :limit
""".strip()
_COUNT = "SELECT COUNT(*) FROM registry_hosts"
_KNOWN = "SELECT 1 FROM registry_hosts WHERE hostname = :hostname"
_DELETE = "DELETE FROM registry_hosts WHERE hostname = :hostname RETURNING 1"
_ROTATE = "UPDATE registry_hosts SET secret_sha256 = :digest WHERE hostname = :hostname RETURNING 1"
_SET_USERS = "UPDATE registry_hosts SET users = :users WHERE hostname = :hostname RETURNING 1"
_SET_GROUP = "UPDATE registry_hosts SET host_group = :host_group WHERE hostname = :hostname"
# A superset: the pattern's wildcards may stand in a name, and SQLite does not mind the case.
_LISTING = "SELECT hostname, users FROM registry_hosts WHERE users LIKE :pattern ORDER BY hostname"

_OPEN_TOKENS = "SELECT COUNT(*) FROM enrolment_tokens WHERE used_at = 0 AND expires_at > :now"
_REPLACE_TOKENS = "DELETE FROM enrolment_tokens WHERE hostname = :hostname AND used_at = 0"
_FORGET_TOKENS = """
DELETE FROM enrolment_tokens WHERE token_sha256 IN (
    SELECT token_sha256 FROM enrolment_tokens WHERE expires_at < :before ORDER BY expires_at LIMIT :limit
)
""".strip()
_ADD_TOKEN = """
INSERT INTO enrolment_tokens
(token_sha256, hostname, users, host_group, again, created_by, created_at, expires_at, used_at)
VALUES (:digest, :hostname, :users, :host_group, :again, :created_by, :now, :expires_at, 0) RETURNING 1
""".strip()
# The condition decides between two that come with the same token.
_USE_TOKEN = """
UPDATE enrolment_tokens SET used_at = :now
WHERE token_sha256 = :digest AND hostname = :hostname AND used_at = 0 AND expires_at > :now
RETURNING users, host_group, again, created_by
""".strip()
_TOKEN = "SELECT hostname, expires_at, used_at FROM enrolment_tokens WHERE token_sha256 = :digest"  # noqa: S105

_TELL = "INSERT INTO outside_events (kind, fields, created_at) VALUES (:kind, :fields, :created_at)"
_TAKE = f"""
DELETE FROM outside_events WHERE id IN (
    SELECT id FROM outside_events WHERE kind IN ({", ".join(f"'{kind.kind}'" for kind in OUTSIDE)})
    ORDER BY id LIMIT :limit /*postgres FOR UPDATE SKIP LOCKED*/
) RETURNING id, kind, fields, created_at
""".strip()  # noqa: S608 - constants


def _insert(rows: int) -> str:
    values = ", ".join(
        f"(:hostname_{x}, :digest_{x}, :users_{x}, :host_group_{x}, :registered_at_{x}, :cert_expires_at_{x})"
        for x in _LETTERS[:rows]
    )
    return f"INSERT INTO registry_hosts ({_COLUMNS}) VALUES {values} ON CONFLICT (hostname) DO NOTHING"  # noqa: S608


_INSERT_ONE = _insert(1) + " RETURNING 1"
_INSERTS = {rows: _insert(rows) for rows in range(1, _AT_ONCE + 1)}


# -- rows -------------------------------------------------------------------------------------------------------------
def _users_text(users: frozenset[str]) -> str:
    return json.dumps(sorted(users))


def _lettered(entry: HostEntry, letter: str) -> dict[str, object]:
    return {
        f"hostname_{letter}": entry.name,
        f"digest_{letter}": entry.digest.hex(),
        f"users_{letter}": _users_text(entry.users),
        f"host_group_{letter}": entry.group,
        f"registered_at_{letter}": seconds(entry.registered_at),
        f"cert_expires_at_{letter}": seconds(entry.certificate_ends),
    }


def from_row(row: Row) -> HostEntry:
    return HostEntry(
        name=row[0],
        digest=bytes.fromhex(row[1]),
        users=frozenset(json.loads(row[2])),
        group=row[3],
        registered_at=instant_or_none(row[4]),
        certificate_ends=instant_or_none(row[5]),
    )


def _done(event: Event | None, *, outside: bool = False) -> Script[None]:
    """The change is made: record it, and wake who follows."""
    if event is not None and outside:
        yield from tell(event)
    events = () if event is None or outside else (event,)
    live = (Live(event=REGISTRY_CHANGED, username=""), Live(event="host_changed", username=""))
    yield Effects(events=events, live=live)


# -- reading ----------------------------------------------------------------------------------------------------------
def look() -> Script[RegistryLook]:
    [(revision, imported, waiting)] = yield _LOOK, {}
    return RegistryLook(revision=revision, imported=bool(imported), outside=bool(waiting))


def page(after: str, limit: int) -> Script[RegistryPage]:
    [(revision,)] = yield _REVISION, {}
    rows = yield _PAGE, {"after": after, "limit": limit}
    return RegistryPage(revision=revision, entries=tuple(from_row(row) for row in rows))


# -- hosts ------------------------------------------------------------------------------------------------------------
def take_over(entries: Sequence[HostEntry], *, exported: bool) -> Script[bool]:
    """Once: what the file has, beside what is there already."""
    if len(entries) > MOST_HOSTS:
        raise TooManyHosts(f"the file has {len(entries)} hosts; at most {MOST_HOSTS} can be registered")
    if not (yield _IMPORT, {"moved": int(bool(entries)), "exported": int(exported)}):
        return False
    for start in range(0, len(entries), _AT_ONCE):
        some = entries[start : start + _AT_ONCE]
        row: dict[str, object] = {}
        for letter, entry in zip(_LETTERS, some, strict=False):
            row.update(_lettered(entry, letter))
        yield Do(_INSERTS[len(some)], row)
    yield from _done(None)
    return True


def register(entry: HostEntry, event: Event, *, first: bool, outside: bool) -> Script[None]:
    """:raise FirstHost, HostExists, TooManyHosts: nothing is changed."""
    [(revision,)] = yield _MOVE, {}
    if revision == 1 and not first:
        raise FirstHost
    yield from _insert_new(entry)
    yield from _done(event, outside=outside)


def _insert_new(entry: HostEntry) -> Script[None]:
    [(count,)] = yield _COUNT, {}
    if count >= MOST_HOSTS:
        raise TooManyHosts(f"{MOST_HOSTS} hosts are registered; remove some first")
    if not (yield _INSERT_ONE, _lettered(entry, _LETTERS[0])):
        raise HostExists(entry.name)


def unregister(hostname: str, event: Event, *, outside: bool) -> Script[None]:
    """:raise UnknownHost: nothing is changed."""
    yield _MOVE, {}
    if not (yield _DELETE, {"hostname": hostname}):
        raise UnknownHost(hostname)
    yield Do(_REPLACE_TOKENS, {"hostname": hostname})
    yield from _done(event, outside=outside)


def forget(hostname: str) -> Script[bool]:
    """
    Part of the removal of a host, whose event is its caller's: whether it was registered. What could enrol it again is
    gone, too.

    :param hostname: normalised.
    """
    yield Do(_REPLACE_TOKENS, {"hostname": hostname})
    if not (yield _KNOWN, {"hostname": hostname}):
        return False
    yield _MOVE, {}
    known = yield _DELETE, {"hostname": hostname}
    yield from _done(None)
    return bool(known)


def rotate(hostname: str, digest: bytes, event: Event, *, outside: bool) -> Script[None]:
    """:raise UnknownHost: nothing is changed."""
    yield _MOVE, {}
    if not (yield _ROTATE, {"hostname": hostname, "digest": digest.hex()}):
        raise UnknownHost(hostname)
    yield from _done(event, outside=outside)


def change(
    hostname: str, users: frozenset[str] | None, group: str | None, event: Event, *, outside: bool
) -> Script[None]:
    """:raise UnknownHost: nothing is changed."""
    yield _MOVE, {}
    if not (yield _KNOWN, {"hostname": hostname}):
        raise UnknownHost(hostname)
    if users is not None:
        yield _SET_USERS, {"hostname": hostname, "users": _users_text(users)}
    if group is not None:
        yield Do(_SET_GROUP, {"hostname": hostname, "host_group": group})
    yield from _done(event, outside=outside)


def drop_user(username: str) -> Script[int]:
    """
    Part of the removal of a person, whose event is its caller's: off all lists; from how many. ``*`` is nobody's name.
    """
    if username == EVERYBODY:
        return 0
    yield _MOVE, {}
    changed = 0
    for hostname, text in (yield _LISTING, {"pattern": f"%{json.dumps(username)}%"}):
        users = frozenset(json.loads(text))
        if username in users:
            yield _SET_USERS, {"hostname": hostname, "users": _users_text(users - {username})}
            changed += 1
    if changed:
        yield from _done(None)
    return changed


# -- enrolment --------------------------------------------------------------------------------------------------------
def add_token(token: EnrolmentToken, event: Event, *, first: bool, outside: bool) -> Script[None]:
    """:raise FirstHost, HostExists, TooManyHosts: nothing is changed."""
    now = seconds(token.created_at)
    # nothing is registered yet, so the revision stays as it is
    [(revision,)] = yield _REVISION, {}
    if revision == 0 and not first:
        raise FirstHost
    if not token.again and (yield _KNOWN, {"hostname": token.hostname}):
        raise HostExists(token.hostname)
    yield Do(_REPLACE_TOKENS, {"hostname": token.hostname})
    before = seconds(token.created_at - REMEMBERED)
    yield Do(_FORGET_TOKENS, {"before": before, "limit": FORGOTTEN_AT_ONCE})
    [(count,)] = yield _OPEN_TOKENS, {"now": now}
    if count >= MOST_TOKENS:
        raise TooManyHosts(f"{MOST_TOKENS} enrolment tokens are open; wait until some have expired")
    yield (
        _ADD_TOKEN,
        {
            "digest": token.digest.hex(),
            "hostname": token.hostname,
            "users": "" if token.users is None else _users_text(token.users),
            "host_group": token.group,
            "again": int(token.again),
            "created_by": token.created_by,
            "now": now,
            "expires_at": seconds(token.expires_at),
        },
    )
    yield from _done(event, outside=outside)


def redeem(wish: Redeem) -> Script[Enrolment]:
    """
    :raise BadToken, OtherHost: it gives nothing.
    :raise HostExists, TooManyHosts: nothing is changed, the token is still good.
    """
    now = seconds(wish.now)
    yield _MOVE, {}
    used = yield _USE_TOKEN, {"digest": wish.token.hex(), "hostname": wish.hostname, "now": now}
    if not used:
        raise _why_not((yield _TOKEN, {"digest": wish.token.hex()}), wish.hostname, now)
    [(users, group, again, created_by)] = used
    known = yield _KNOWN, {"hostname": wish.hostname}
    if known and not again:
        raise HostExists(wish.hostname)
    if known:
        yield _ROTATE, {"hostname": wish.hostname, "digest": wish.secret.hex()}
        if users:
            yield _SET_USERS, {"hostname": wish.hostname, "users": users}
        if group:
            yield Do(_SET_GROUP, {"hostname": wish.hostname, "host_group": group})
    else:
        yield from _insert_new(
            HostEntry(
                name=wish.hostname,
                digest=wish.secret,
                users=frozenset(json.loads(users)) if users else frozenset({EVERYBODY}),
                group=group,
                registered_at=wish.now,
            )
        )
    yield from _done(
        HostEnrolled(
            at=wish.now,
            username=wish.hostname,
            hostname=wish.hostname,
            actor=created_by,
            reason="another secret" if known else "",
            remote_addr=wish.remote_addr,
        )
    )
    return Enrolment(created_by=created_by, again=bool(known))


def _why_not(rows: list[Row], hostname: str, now: int) -> Exception:
    if not rows:
        return BadToken("unknown")
    [(name, expires_at, used_at)] = rows
    if used_at:
        return BadToken("used")
    if expires_at <= now:
        return BadToken("expired")
    # a statement of another transaction may have come in between, in the worst case
    return OtherHost(hostname) if name != hostname else BadToken("used")


# -- events of other programs -----------------------------------------------------------------------------------------
def tell(event: Event) -> Script[None]:
    """Leave the event, which is one of :data:`OUTSIDE`, to a server, which has an audit chain."""
    row = {"kind": event.kind, "fields": json.dumps(audit.fields(event)), "created_at": seconds(event.at)}
    yield Do(_TELL, row)


def take_outside(limit: int) -> Script[int]:
    """Into the chain of this process, each by exactly one. Returns how many."""
    rows = yield _TAKE, {"limit": limit}
    events = tuple(_event(kind, fields, created_at) for _, kind, fields, created_at in sorted(rows))
    if events:
        yield Effects(events=events)
    return len(events)


def _event(kind: str, fields: str, created_at: int) -> Event:
    values: dict[str, str] = json.loads(fields)
    known = ("username", "hostname", "code", "actor", "reason", "remote_addr")
    return KINDS[kind](
        at=datetime.fromtimestamp(created_at, UTC), **{name: str(values.get(name, "")) for name in known}
    )
