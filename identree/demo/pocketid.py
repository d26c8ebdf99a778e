"""
PocketID's API for people, groups and custom claims, in memory: a stand-in for the demo and for tests.

It counts rows into pages as PocketID does: at most a hundred on a page, the last page again for one beyond the end, and
no order unless a column is asked for. It can be slow, refuse by rate, fail, and be an old version that tells less.
"""

from __future__ import annotations

import json
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from identree.core.tokens import same

PAGE_ITEMS = 20
MAX_PAGE_ITEMS = 100
MAX_BODY_BYTES = 1 << 20
# The last requests are remembered, for tests to look at.
MAX_REMEMBERED = 10_000
# Answers that are kept as bytes until something changes; each has some 100 KiB.
MAX_RENDERED = 2000
# Orders of rows that are kept until something changes.
MAX_ORDERS = 16
_NAMESPACE = uuid.UUID("6f1c3f9e-54b7-4f0d-9d4c-3b1d6c6f0a57")

T = TypeVar("T")
Claims = Sequence[tuple[str, str]]


@dataclass(slots=True, kw_only=True)
class Person:
    """A user as PocketID has one."""

    id: str
    username: str
    email: str | None = None
    first_name: str = ""
    last_name: str | None = None
    is_admin: bool = False
    disabled: bool = False
    claims: list[tuple[str, str]] = field(default_factory=list)
    created_at: datetime


@dataclass(slots=True, kw_only=True)
class Team:
    """:ivar members: ids of people."""

    id: str
    name: str
    friendly_name: str = ""
    claims: list[tuple[str, str]] = field(default_factory=list)
    members: dict[str, None] = field(default_factory=dict)
    created_at: datetime


# What the groups of the demo's people may do; others may do nothing.
_DEMO_CLAIMS: Mapping[str, Claims] = {
    "admins": (("sudoCommands", "ALL"), ("sudoHosts", "ALL")),
    "users": (("sudoCommands", "/usr/bin/systemctl restart nginx,/usr/bin/apt"), ("sudoHosts", "ALL")),
}

# What rows can be sorted by.
_PERSON_COLUMNS: Mapping[str, Callable[[Person], Any]] = {
    "createdAt": lambda person: person.created_at,
    "username": lambda person: person.username.lower(),
}
_TEAM_COLUMNS: Mapping[str, Callable[[Team], Any]] = {
    "createdAt": lambda team: team.created_at,
    "name": lambda team: team.name,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """
    What is answered instead.

    :ivar times: how many requests still get it; negative: all.
    :ivar silent: no answer at all.
    """

    path: str
    status: int = 500
    body: bytes = b'{"error":"Something went wrong"}'
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = -1
    silent: bool = False


class DemoPocketID:
    """
    :param api_key: that requests must show.
    :param now: aware; what is created carries it.
    :param clock: an ``IReactorTime``, for slowness and the rate limit.
    :ivar old: tells no groups of users and no claims of listed groups, as early versions.
    :ivar latency_seconds: of every answer.
    :ivar before: called with each request's path and query before it is answered, and may change what is there.
    :ivar requests: method and target of the last requests.
    """

    def __init__(self, *, api_key: str, now: Callable[[], datetime], clock: Any) -> None:
        self.people: dict[str, Person] = {}
        self.teams: dict[str, Team] = {}
        self.old = False
        self.latency_seconds = 0.0
        self.before: Callable[[str, Mapping[str, str]], None] | None = None
        self.requests: deque[str] = deque(maxlen=MAX_REMEMBERED)
        self._api_key, self._now, self._clock = api_key, now, clock
        self._failures: list[Failure] = []
        self._burst, self._per_second, self._tells = 0, 0.0, True
        self._granted, self._granted_at = 0.0, 0.0
        self._last_created: datetime | None = None
        # by target; emptied with every change
        self._rendered: dict[str, bytes] = {}
        self._orders: dict[tuple[str, str, bool], Sequence[Any]] = {}
        self._teams_of: dict[str, list[Team]] | None = None

    # -- what is there ------------------------------------------------------------------------------------------------
    def add_user(self, username: str, *, claims: Claims = (), **fields: Any) -> Person:
        """:param fields: of :class:`Person`. An id is derived from the name when none is given."""
        fields.setdefault("id", str(uuid.uuid5(_NAMESPACE, f"user {username}")))
        fields.setdefault("created_at", self._created())
        person = Person(username=username, claims=list(claims), **fields)
        self.people[person.id] = person
        self.changed()
        return person

    def add_group(self, name: str, *, members: Iterable[Person] = (), claims: Claims = (), **fields: Any) -> Team:
        """:param fields: of :class:`Team`."""
        fields.setdefault("id", str(uuid.uuid5(_NAMESPACE, f"group {name}")))
        fields.setdefault("created_at", self._created())
        fields.setdefault("friendly_name", name)
        team = Team(name=name, claims=list(claims), members={person.id: None for person in members}, **fields)
        self.teams[team.id] = team
        self.changed()
        return team

    def delete_user(self, person: Person) -> None:
        del self.people[person.id]
        for team in self.teams.values():
            team.members.pop(person.id, None)
        self.changed()

    def delete_group(self, team: Team) -> None:
        del self.teams[team.id]
        self.changed()

    def user(self, username: str) -> Person:
        """:raise KeyError: there is nobody of this name."""
        for person in self.people.values():
            if person.username == username:
                return person
        raise KeyError(username)

    def group(self, name: str) -> Team:
        """:raise KeyError: there is none of this name."""
        for team in self.teams.values():
            if team.name == name:
                return team
        raise KeyError(name)

    def changed(self) -> None:
        """To be called after a person or group was changed in place."""
        self._rendered.clear()
        self._orders.clear()
        self._teams_of = None

    def _created(self) -> datetime:
        """Now, but later than all before: the order of creation is then the order of calls."""
        now = self._now()
        if self._last_created is not None and now <= self._last_created:
            now = self._last_created + timedelta(microseconds=1)
        self._last_created = now
        return now

    # -- how it misbehaves --------------------------------------------------------------------------------------------
    def fail(self, path: str, status: int = 500, **more: Any) -> None:
        """:param more: of :class:`Failure`; ``path`` is the beginning of the paths that fail."""
        self._failures.append(Failure(path=path, status=status, **more))

    def heal(self) -> None:
        self._failures.clear()
        self._burst = 0
        self.latency_seconds = 0.0

    def limit_rate(self, burst: int, per_second: float, *, tells: bool = True) -> None:
        """
        :param burst: how many requests are granted at once.
        :param per_second: how many more with time.
        :param tells: whether a refusal says when to come again.
        """
        self._burst, self._per_second, self._tells = burst, per_second, tells
        self._granted, self._granted_at = float(burst), self._clock.seconds()

    def over_limit(self) -> int | None:
        """Spend one of the requests that are granted; or how many seconds there is none."""
        if not self._burst:
            return None
        now = self._clock.seconds()
        self._granted = min(self._burst, self._granted + (now - self._granted_at) * self._per_second)
        self._granted_at = now
        if self._granted >= 1:
            self._granted -= 1
            return None
        return max(1, -int(-(1 - self._granted) // self._per_second))

    @property
    def tells_wait(self) -> bool:
        return self._tells

    def failure(self, path: str) -> Failure | None:
        """What to answer instead, this time."""
        for position, failure in enumerate(self._failures):
            if path.startswith(failure.path):
                if failure.times == 1:
                    del self._failures[position]
                elif failure.times > 0:
                    self._failures[position] = Failure(
                        path=failure.path,
                        status=failure.status,
                        body=failure.body,
                        headers=failure.headers,
                        times=failure.times - 1,
                        silent=failure.silent,
                    )
                return failure
        return None

    # -- what it says -------------------------------------------------------------------------------------------------
    def resource(self) -> Resource:
        """To be served as ``/api``."""
        return _Api(self, self._clock)

    def knows(self, key: str) -> bool:
        return same(key, self._api_key)

    def rendered(self, target: str, path: str, query: Mapping[str, str]) -> bytes | None:
        """The body of a good answer; None: there is no such thing."""
        body = self._rendered.get(target)
        if body is None:
            document = self._document(path, query)
            if document is None:
                return None
            body = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
            if len(self._rendered) < MAX_RENDERED:
                self._rendered[target] = body
        return body

    def _document(self, path: str, query: Mapping[str, str]) -> Any:
        if path == "users":
            people, pagination = _paged(self._sorted(path, self.people, _PERSON_COLUMNS, query), query)
            return {"data": [self._person(person) for person in people], "pagination": pagination}
        if path == "user-groups":
            teams, pagination = _paged(self._sorted(path, self.teams, _TEAM_COLUMNS, query), query)
            return {"data": [self._listed(team) for team in teams], "pagination": pagination}
        kind, _, id = path.partition("/")
        if kind == "users" and id in self.people:
            return self._person(self.people[id])
        if kind == "user-groups" and id in self.teams:
            team = self.teams[id]
            members = [self._person(self.people[id], groups=False) for id in team.members if id in self.people]
            return {**_team(team), "customClaims": _claims(team.claims), "users": members}
        return None

    def _sorted(
        self, path: str, rows: Mapping[str, T], columns: Mapping[str, Callable[[T], Any]], query: Mapping[str, str]
    ) -> Sequence[T]:
        asked = path, query.get("sort[column]", ""), query.get("sort[direction]", "").lower() == "desc"
        if asked not in self._orders:
            if len(self._orders) >= MAX_ORDERS:
                self._orders.clear()
            self._orders[asked] = sorted(rows.values(), key=columns.get(asked[1], _by_nothing), reverse=asked[2])
        return self._orders[asked]

    def _person(self, person: Person, *, groups: bool = True) -> dict[str, Any]:
        last = person.last_name or ""
        said: dict[str, Any] = {
            "id": person.id,
            "username": person.username,
            "email": person.email,
            "emailVerified": person.email is not None,
            "firstName": person.first_name,
            "lastName": person.last_name,
            "displayName": f"{person.first_name} {last}".strip(),
            "isAdmin": person.is_admin,
            "locale": None,
            "customClaims": _claims(person.claims),
        }
        if groups and not self.old:
            teams = self._memberships().get(person.id, ())
            said["userGroups"] = [{**_team(team), "customClaims": []} for team in teams]
        return {**said, "ldapId": None, "disabled": person.disabled}

    def _listed(self, team: Team) -> dict[str, Any]:
        claims = {} if self.old else {"customClaims": _claims(team.claims)}
        return {**_team(team), **claims, "userCount": sum(id in self.people for id in team.members)}

    def _memberships(self) -> dict[str, list[Team]]:
        if self._teams_of is None:
            self._teams_of = {}
            for team in self.teams.values():
                for id in team.members:
                    self._teams_of.setdefault(id, []).append(team)
        return self._teams_of

    def replace_claims(self, path: str, raw: bytes) -> tuple[int, Any]:
        """``PUT /api/custom-claims/…``: status and document."""
        kind, _, id = path.removeprefix("custom-claims/").partition("/")
        found: Person | Team | None = self.people.get(id) if kind == "user" else None
        if kind == "user-group":
            found = self.teams.get(id)
        if found is None:
            return 404, {"error": "Record not found"}
        try:
            claims = [(str(claim["key"]), str(claim["value"])) for claim in json.loads(raw)]
        except (ValueError, RecursionError, KeyError, TypeError):
            return 400, {"error": "Invalid claims"}
        if len({key for key, _ in claims}) != len(claims):
            return 400, {"error": "The same claim is there twice"}
        found.claims[:] = claims
        self.changed()
        return 200, _claims(claims)


def fill(pocketid: DemoPocketID, users: Mapping[str, Sequence[str]]) -> None:
    """Put the people of the demo in, who are invented. :param users: names and their groups."""
    people = {
        name: pocketid.add_user(name, email=f"{name}@demo.invalid", first_name=name.capitalize()) for name in users
    }
    for group in dict.fromkeys(group for groups in users.values() for group in groups):
        members = [person for name, person in people.items() if group in users[name]]
        pocketid.add_group(group, friendly_name=group.capitalize(), members=members, claims=_DEMO_CLAIMS.get(group, ()))


def _by_nothing(row: Any) -> str:
    """Ids are as good as random: an order that nobody may rely on."""
    id: str = row.id
    return id[::-1]


def _paged(rows: Sequence[T], query: Mapping[str, str]) -> tuple[Sequence[T], dict[str, int]]:
    """Rows of one page as PocketID counts them."""
    number, limit = _integer(query, "pagination[page]"), _integer(query, "pagination[limit]")
    limit = PAGE_ITEMS if limit < 1 else min(limit, MAX_PAGE_ITEMS)
    pages = max(1, -(-len(rows) // limit))
    number = min(max(1, number), pages)
    said = {"totalPages": pages, "totalItems": len(rows), "currentPage": number, "itemsPerPage": limit}
    return rows[(number - 1) * limit : number * limit], said


def _integer(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _team(team: Team) -> dict[str, Any]:
    return {
        "id": team.id,
        "friendlyName": team.friendly_name,
        "name": team.name,
        "ldapId": None,
        "createdAt": team.created_at.isoformat().replace("+00:00", "Z"),
    }


def _claims(claims: Claims) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in claims]


class _Api(Resource):
    isLeaf = True

    def __init__(self, pocketid: DemoPocketID, clock: Any) -> None:
        super().__init__()
        self._pocketid, self._clock = pocketid, clock

    def render(self, request: Any) -> int:
        delay = self._pocketid.latency_seconds
        if delay:
            call = self._clock.callLater(delay, self._answer, request)
            request.notifyFinish().addErrback(lambda _: call.active() and call.cancel())
        else:
            self._answer(request)
        return NOT_DONE_YET

    def _answer(self, request: Any) -> None:
        pocketid = self._pocketid
        target = request.uri.decode("latin-1")
        path, _, query_string = target.partition("?")
        path = path.partition("/api/")[2]
        query = {name: values[0] for name, values in parse_qs(query_string).items()}
        pocketid.requests.append(f"{request.method.decode('latin-1')} {unquote(target)}")
        if pocketid.before is not None:
            pocketid.before(path, query)
        failure = pocketid.failure(path)
        if failure is not None:
            if not failure.silent:
                _send(request, failure.status, failure.body, failure.headers)
            return
        seconds = pocketid.over_limit()
        if seconds is not None:
            headers = {"retry-after": str(seconds)} if pocketid.tells_wait else {}
            _send(request, 429, b'{"error":"Too many requests"}', headers)
        elif path.partition("/")[0] not in ("users", "user-groups", "custom-claims"):
            _send(request, 404, b'{"error":"Record not found"}')
        elif not pocketid.knows(request.getHeader("x-api-key") or ""):
            _send(request, 401, b'{"error":"You are not signed in"}')
        elif request.method == b"PUT" and path.startswith("custom-claims/"):
            status, document = pocketid.replace_claims(path, request.content.read(MAX_BODY_BYTES))
            _send(request, status, json.dumps(document).encode())
        elif request.method in (b"GET", b"HEAD"):
            body = pocketid.rendered(target, path, query)
            if body is None:
                _send(request, 404, b'{"error":"Record not found"}')
            else:
                _send(request, 200, body)
        else:
            _send(request, 404, b'{"error":"Record not found"}')


def _send(request: Any, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    """Without a length, as PocketID's answers come: in chunks."""
    request.setResponseCode(status)
    request.setHeader("content-type", "application/json; charset=utf-8")
    for name, value in (headers or {}).items():
        request.setHeader(name, value)
    if request.method != b"HEAD":
        request.write(body)
    request.finish()
