"""
PocketID as identree sees it: who there is, and in which groups (spec/ldap section 9).

Two listings tell everything: users with the groups that they are in, and groups with their claims. Servers that leave
one of these out are asked for each group by itself; which kind a server is shows in what it sends.

PocketID pages by counting rows, so whatever is created or deleted while we read shifts the rest. A listing counts only
when its pages agree with each other; it is read anew otherwise, a few times, and then the fetch fails. Nothing with a
hole in it is ever handed on.
"""

from __future__ import annotations

import json
import operator
import re
import time
from collections.abc import Callable, Collection, Coroutine, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from sys import intern
from typing import Any, Generic, NoReturn, TypeVar
from urllib.parse import urlencode

from twisted.internet.defer import Deferred, DeferredLock, FirstError, gatherResults
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.task import deferLater
from twisted.logger import Logger

from identree.app.ports import Monotonic, Now, SourceRefused, SourceUnavailable
from identree.clients.http import Answer, Fetch, Nonsense, Unanswered, build_http_client, build_pool
from identree.directory.source import Claims, Source, SourceGroup, SourceUser

__all__ = ["PARALLEL", "PocketID", "build_http_client", "build_pool"]

T = TypeVar("T")
Row = TypeVar("Row", "SourceUser", "_Group")

# PocketID gives no more in one page.
PAGE_ITEMS = 100
# A page of a hundred people with fifty long keys each.
PAGE_BYTES = 8 << 20
# One group with its members, each with all that is known of them: some 50,000.
DETAIL_BYTES = 32 << 20
# A million people. What claims to be more is no directory.
MAX_PAGES = 10_000
REQUEST_SECONDS = 10.0
# For everything, at one request per second: what PocketID grants in the long run, and 100,000 people are 1,000 pages.
FETCH_SECONDS = 1800.0
# Requests under way at once.
PARALLEL = 4
# How often a listing is read that changes under our hands, the first time included.
LISTING_TRIES = 4
# How often a request is made that is put off, the first time included.
REQUEST_TRIES = 6
# A wait that we are asked for is done within the fetch up to this length; a longer one ends the fetch.
LONGEST_WAIT_SECONDS = 60.0
# The first wait after a refusal that asks for none; each further one is twice as long.
WAIT_SECONDS = 1.0
# Retry-After beyond this is no time.
MAX_RETRY_AFTER_SECONDS = 86_400.0
# Work on what was received lets others run after this long.
SLICE_SECONDS = 0.002
PROBE_SECONDS = 2.0
# Groups that one warning each was given for; then no more.
MAX_WARNED = 1000
MAX_QUOTED = 200

_URL_ID = re.compile(r"[a-fA-F0-9-]{1,128}", re.ASCII)
_SPACE = re.compile(r"[ \t\r\n]*")
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_decode = json.JSONDecoder().raw_decode


class _Shifted(Exception):
    """The listing changed while it was read."""


class _Malformed(Exception):
    """The answer is not what PocketID sends; the message says where, without quoting it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """
    :ivar value: without members.
    :ivar has_claims: whether the listing tells them.
    :ivar count: of members, if it is told.
    """

    value: SourceGroup
    has_claims: bool
    count: int | None

    @property
    def id(self) -> str:
        return self.value.id


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page(Generic[Row]):
    """
    :ivar total_items: None: not told.
    :ivar members: of users: by group, who of this page is in it; None: not told.
    :ivar rows: what the rows are known by; None: they do not stand by themselves in the answer.
    """

    items: tuple[Row, ...]
    total_pages: int
    total_items: int | None
    members: Mapping[str, tuple[str, ...]] | None = None
    rows: tuple[str, bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Detail:
    claims: Claims
    member_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """
    What is listed.

    :ivar unique: a column that no two rows share. Rows that share their time of creation may come in another order on
        each page, so that some never come.
    """

    name: str
    path: str
    unique: str


_USERS = _Kind(name="users", path="/api/users", unique="username")
_GROUPS = _Kind(name="groups", path="/api/user-groups", unique="name")


@dataclass(slots=True, kw_only=True)
class _Reading:
    """
    One fetch under way.

    :ivar pages: what each answer meant, by a digest of its bytes.
    :ivar details: of groups that were asked for; None: gone, or not to be asked for.
    """

    pages: dict[tuple[str, bytes], Any]
    details: dict[str, _Detail | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """
    What the last good fetch was made of.

    :ivar answers: what each answer meant, by a digest of its bytes.
    """

    source: Source
    users: Sequence[_Page[SourceUser]] = ()
    groups: Sequence[_Page[_Group]] = ()
    members: Mapping[str, Sequence[str]] | None = None
    group_order: Iterable[str] | None = None
    details: Mapping[str, _Detail | None]
    answers: Mapping[tuple[str, bytes], Any]
    user_by_id: Mapping[str, SourceUser]
    group_by_id: Mapping[str, SourceGroup]


class PocketID:
    """
    A :class:`~identree.app.ports.PeopleSource`.

    What did not change costs little: an answer with the same bytes as last time is not parsed again. People and groups
    that did not change are the identical objects again, and so is the whole when nothing changed.

    :param http: anything with treq's ``request``; see :func:`build_http_client`. Connections that it keeps are closed
        by whoever made it.
    :param clock: an ``IReactorTime``.
    :param base_url: where PocketID is, without ``/api``.
    :param known: what is served when the first fetch begins, from before a restart: people who did not change since are
        these objects, so that memory has everybody once.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        http: Any,
        clock: Any,
        now: Now,
        base_url: str,
        api_key: str,
        monotonic: Monotonic = time.perf_counter,
        known: Callable[[], Source] = Source,
    ) -> None:
        self._fetch = Fetch(http, clock)
        self._clock, self._now, self._monotonic = clock, now, monotonic
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._headers = {"X-API-KEY": api_key}
        # Held while waiting out a rate limit, so that no more than one request spends what is granted.
        self._turn = DeferredLock()
        self._kept = _Kept(source=Source(), details={}, answers={}, user_by_id={}, group_by_id={})
        self._warned: set[str] = set()
        self._known = known
        # of the first fetch
        self._earlier_users: Mapping[str, SourceUser] = {}
        self._earlier_groups: Mapping[str, SourceGroup] = {}

    # -- PeopleSource -------------------------------------------------------------------------------------------------
    async def fetch(self) -> Source:
        """See :class:`~identree.app.ports.PeopleSource`."""
        work: Deferred[Source] = Deferred.fromCoroutine(self._read())
        try:
            return await work.addTimeout(FETCH_SECONDS, self._clock)
        except TimedOut:
            raise SourceUnavailable(f"PocketID: not everything was read within {FETCH_SECONDS:g} s") from None

    async def probe(self) -> bool:
        """Whether PocketID answers within 2 s and not with an error of its own; for ``/healthz``. Never raises."""
        try:
            url = f"{self._base_url}/api/v1/users"
            answer = await self._fetch("HEAD", url, limit=0, seconds=PROBE_SECONDS)
        except (Unanswered, Nonsense):
            return False
        return answer.status < 500

    # -- one fetch ----------------------------------------------------------------------------------------------------
    async def _read(self) -> Source:
        kept = self._kept
        reading = _Reading(pages={}, details={})
        if not kept.answers:
            earlier = self._known()
            self._earlier_users = await self._sliced(_in_order(earlier.users, None))
            self._earlier_groups = await self._sliced(_in_order(earlier.groups, None))
        users, user_order = await self._listing(_USERS, self._user_page, kept.users, kept.user_by_id, reading)
        groups, group_order = await self._listing(_GROUPS, self._group_page, kept.groups, kept.group_by_id, reading)
        same_users, same_groups = _identical(users, kept.users), _identical(groups, kept.groups)
        same_listed: bool = same_groups or await self._sliced(_same_ids(groups, kept.groups))
        if same_listed:  # what is listed as before comes in the order that was found for it before
            group_order = kept.group_order
        members = kept.members
        if not await self._sliced(_same_members(users, kept.users)):
            members = await self._sliced(_memberships(users))
        await self._details(groups, members, reading)
        if same_users and same_groups and _same_details(reading.details, kept.details):
            source, user_by_id, group_by_id = kept.source, kept.user_by_id, kept.group_by_id
        else:
            if same_users:
                user_by_id = kept.user_by_id
            elif len(kept.user_by_id) == sum(len(page.items) for page in users) and (
                await self._sliced(_same_ids(users, kept.users))
            ):
                # who changed takes the old place
                user_by_id = dict(kept.user_by_id)
                user_by_id.update(await self._sliced(_changed(users, kept.users)))
            else:
                people = (user for page in users for user in page.items)
                user_by_id = await self._sliced(_in_order(people, user_order))
            listed = (item for page in groups for item in page.items)
            known_groups = kept.group_by_id or self._earlier_groups
            made = _groups(listed, members, reading.details, user_by_id, known_groups)
            group_by_id = await self._sliced(_in_order(made, group_order))
            source = Source(users=tuple(user_by_id.values()), groups=tuple(group_by_id.values()))
            if _identical(source.users, kept.source.users) and _identical(source.groups, kept.source.groups):
                source = kept.source
        self._kept = _Kept(
            source=source,
            users=users,
            groups=groups,
            members=members,
            group_order=group_order,
            details=reading.details,
            answers=reading.pages,
            user_by_id=user_by_id,
            group_by_id=group_by_id,
        )
        self._earlier_users, self._earlier_groups = {}, {}
        return source

    # -- listings -----------------------------------------------------------------------------------------------------
    async def _listing(
        self,
        kind: _Kind,
        parse: Callable[[str], Generator[None, None, _Page[Row]]],
        before: Sequence[_Page[Row]],
        known: Mapping[str, object],
        reading: _Reading,
    ) -> tuple[list[_Page[Row]], Iterable[str] | None]:
        """
        All pages, and the ids in the order of creation where that is not the order of the pages.

        Somebody who was known and now is missing may have been deleted, or have slipped from one page to another as a
        third one was deleted and a fourth created. So a listing that misses somebody counts only when the next one
        misses the same.
        """
        tried: list[dict[int, _Page[Row]]] = []
        missing: set[str] = set()
        trouble = ""
        for attempt in range(LISTING_TRIES):
            by_creation = attempt < LISTING_TRIES // 2
            found: dict[int, _Page[Row]] = {}
            if by_creation:
                tried.append(found)
            try:
                await self._pages(kind, "createdAt" if by_creation else kind.unique, parse, reading, found)
                pages = [found[number] for number in sorted(found)]
                same: bool = _identical(pages, before) or await self._sliced(_same_ids(pages, before))
                if same:
                    return pages, None
                ids: dict[str, None] = await self._sliced(_ids(kind.name, pages))
            except _Shifted as e:
                trouble = str(e)
                continue
            gone: set[str] = await self._sliced(_without(known, ids))
            if gone and gone != missing:
                missing, trouble = gone, f"{len(gone)} that were there before are missing, not always the same"
                continue
            if by_creation:
                return pages, None
            created: dict[str, None] = await self._sliced(_order(known, tried, ids))
            return pages, created
        raise SourceUnavailable(f"PocketID: the {kind.name} changed while they were listed: {trouble}")

    async def _pages(
        self,
        kind: _Kind,
        column: str,
        parse: Callable[[str], Generator[None, None, _Page[Row]]],
        reading: _Reading,
        pages: dict[int, _Page[Row]],
    ) -> None:
        """
        :param pages: to put them into.
        :raise _Shifted: they do not agree on how many there are.
        """

        async def page(number: int) -> _Page[Row]:
            query = {
                "pagination[page]": number,
                "pagination[limit]": PAGE_ITEMS,
                "sort[column]": column,
                "sort[direction]": "asc",
            }
            what = f"page {number} of the {kind.name}"
            raw = await self._get(f"{kind.path}?{urlencode(query)}", what, PAGE_BYTES)
            assert raw is not None
            return await self._parsed_page(kind, what, raw, parse, reading)

        first = await page(1)
        if first.total_pages > MAX_PAGES:
            raise SourceRefused(f"PocketID: more than {MAX_PAGES} pages of {kind.name}")
        pages[1] = first
        numbers = iter(range(2, first.total_pages + 1))

        async def read_some() -> None:
            for number in numbers:
                made = await page(number)
                if (made.total_pages, made.total_items) != (first.total_pages, first.total_items):
                    raise _Shifted("their number changed")
                pages[number] = made

        await _all(read_some() for _ in range(min(PARALLEL, first.total_pages - 1)))

    # -- single groups ------------------------------------------------------------------------------------------------
    async def _details(
        self, groups: Sequence[_Page[_Group]], members: Mapping[str, Sequence[str]] | None, reading: _Reading
    ) -> None:
        """Ask for each group of which the listings do not tell everything, or not the same."""
        wanted = []
        for page in groups:
            for group in page.items:
                id = group.value.id
                told = members is not None and group.count in (None, len(members.get(id, ())))
                if told and group.has_claims:
                    continue
                if _URL_ID.fullmatch(id):
                    wanted.append(id)
                else:
                    self._warn_once(id)
                    if members is None or not group.has_claims:
                        reading.details[id] = None
        left = iter(wanted)

        async def read_some() -> None:
            for id in left:
                what = f"group {id}"
                raw = await self._get(f"{_GROUPS.path}/{id}", what, DETAIL_BYTES, may_be_gone=True)
                reading.details[id] = None
                if raw is not None:
                    reading.details[id] = await self._parsed("group", what, raw, _detail, reading)

        await _all(read_some() for _ in range(min(PARALLEL, len(wanted))))

    def _warn_once(self, id: str) -> None:
        if id not in self._warned and len(self._warned) < MAX_WARNED:
            self._warned.add(id)
            self._log.warn("PocketID: nothing can be asked about group {id!r}: its id is none of a URL", id=id[:128])

    async def _parsed_page(
        self,
        kind: _Kind,
        what: str,
        raw: bytes,
        parse: Callable[[str], Generator[None, None, _Page[Row]]],
        reading: _Reading,
    ) -> _Page[Row]:
        """
        What a page means. Somebody who comes or goes changes the count that stands on all pages, so the rows count by
        themselves: those that are known are not parsed again.
        """
        whole = kind.name, blake2b(raw, digest_size=16).digest()
        known: _Page[Row] | None = reading.pages.get(whole) or self._kept.answers.get(whole)
        parted = None if known is not None else _parted(raw)
        if parted is not None:
            head, said = parted
            rows = f"rows of {kind.name}", blake2b(head, digest_size=16).digest()
            before: _Page[Row] | None = reading.pages.get(rows) or self._kept.answers.get(rows)
            if before is not None:
                try:
                    known = replace(before, **_said(said), rows=rows)
                except _Malformed as e:
                    raise SourceUnavailable(f"PocketID: {what}: {e}") from None
            else:
                known = replace(await self._parsed(kind.name, what, raw, parse, reading), rows=rows)
        if known is None:
            return await self._parsed(kind.name, what, raw, parse, reading)
        reading.pages[whole] = known
        if known.rows is not None:
            reading.pages[known.rows] = known
        return known

    # -- what the answers mean ----------------------------------------------------------------------------------------
    async def _parsed(
        self,
        name: str,
        what: str,
        raw: bytes,
        parse: Callable[[str], Generator[None, None, T]],
        reading: _Reading,
    ) -> T:
        """What an answer means; of one that is known it is the same as before."""
        key = name, blake2b(raw, digest_size=16).digest()
        meaning: T | None = reading.pages.get(key) or self._kept.answers.get(key)
        if meaning is None:
            try:
                meaning = await self._sliced(parse(raw.decode()))
            except _Malformed as e:
                raise SourceUnavailable(f"PocketID: {what}: {e}") from None
            except (ValueError, RecursionError):
                raise SourceUnavailable(f"PocketID: {what} is no JSON; is there a PocketID at this address?") from None
        reading.pages[key] = meaning
        return meaning

    def _user_page(self, text: str) -> Generator[None, None, _Page[SourceUser]]:
        users: list[SourceUser] = []
        members: dict[str, list[str]] | None = {}
        known = self._kept.user_by_id or self._earlier_users

        def take(value: Any) -> None:
            nonlocal members
            user, group_ids = _user(value, len(users))
            before = known.get(user.id)
            if before == user:
                user = before
            users.append(user)
            if group_ids is None:
                members = None
            elif members is not None:
                for id in group_ids:
                    members.setdefault(id, []).append(user.id)

        said = yield from _page(text, take)
        in_groups = None if members is None else {id: tuple(found) for id, found in members.items()}
        return _Page(items=tuple(users), members=in_groups, **said(len(users)))

    def _group_page(self, text: str) -> Generator[None, None, _Page[_Group]]:
        groups: list[_Group] = []
        said = yield from _page(text, lambda value: groups.append(_group(value, len(groups))))
        return _Page(items=tuple(groups), **said(len(groups)))

    # -- requests -----------------------------------------------------------------------------------------------------
    async def _get(self, target: str, what: str, limit: int, *, may_be_gone: bool = False) -> bytes | None:
        """The body; None when it is not found and may be."""
        answer = await self._ask(target, what, limit)
        if _put_off(answer):
            await self._turn.acquire()
            try:
                answer = await self._ask_again(answer, target, what, limit)
            finally:
                self._turn.release()
        status = answer.status
        if status == 200:
            return answer.body
        if status == 404 and may_be_gone:
            return None
        said = f"PocketID: {what}: it answered {self._described(answer)}"
        if status in (401, 403):
            raise SourceRefused(f"{said}; check IDENTREE_POCKETID_API_KEY, and that its owner is an administrator")
        if 300 <= status < 400:
            raise SourceRefused(f"{said}, a redirect; set IDENTREE_POCKETID_API_URL to the final address")
        if status == 404:
            raise SourceRefused(f"{said}; check IDENTREE_POCKETID_API_URL")
        if 400 <= status < 500 and status not in (408, 425):
            raise SourceRefused(said)
        raise SourceUnavailable(said)

    async def _ask_again(self, answer: Answer, target: str, what: str, limit: int) -> Answer:
        wait = WAIT_SECONDS
        for _ in range(REQUEST_TRIES - 1):
            asked = self._asked_wait(answer.retry_after)
            seconds = wait if asked is None else asked
            if seconds > LONGEST_WAIT_SECONDS:
                break
            await deferLater(self._clock, seconds)
            wait *= 2
            answer = await self._ask(target, what, limit)
            if not _put_off(answer):
                return answer
        raise SourceUnavailable(
            f"PocketID: {what}: it answered {self._described(answer)}",
            retry_after=self._asked_wait(answer.retry_after) or 0.0,
        )

    async def _ask(self, target: str, what: str, limit: int) -> Answer:
        try:
            return await self._fetch(
                "GET", self._base_url + target, limit=limit, seconds=REQUEST_SECONDS, headers=self._headers
            )
        except (Unanswered, Nonsense) as e:
            raise SourceUnavailable(f"PocketID: {what}: {e}") from None

    def _asked_wait(self, header: str) -> float | None:
        """Seconds or a date (RFC 9110 section 10.2.3); None when it is neither."""
        text = header.strip()
        if text.isascii() and text.isdigit():
            return min(float(text[:9]), MAX_RETRY_AFTER_SECONDS)
        try:
            at = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        return min(max(0.0, (at - self._now()).total_seconds()), MAX_RETRY_AFTER_SECONDS)

    def _described(self, answer: Answer) -> str:
        """The status, and what PocketID says about it in ``error``; never a text with the key in it."""
        try:
            said = json.loads(answer.body)["error"]
        except (ValueError, RecursionError, KeyError, TypeError, IndexError):
            said = ""
        if not isinstance(said, str) or (self._api_key and self._api_key in said):
            said = ""
        said = " ".join(_UNSAFE.sub(" ", said[:MAX_QUOTED]).split())
        return f"{answer.status} ({said})" if said else str(answer.status)

    async def _sliced(self, work: Generator[None, None, T]) -> T:
        """Do the work, letting others run now and then."""
        began = self._monotonic()
        while True:
            try:
                next(work)
            except StopIteration as e:
                result: T = e.value
                return result
            if self._monotonic() - began > SLICE_SECONDS:
                await deferLater(self._clock, 0)
                began = self._monotonic()


# -- work on what was read --------------------------------------------------------------------------------------------
async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; the first failure ends the others and is raised."""
    running = [Deferred.fromCoroutine(work) for work in works]
    try:
        await gatherResults(running, consumeErrors=True)
    except FirstError as e:
        reason = e.subFailure.value
        assert reason is not None
        raise reason from None
    finally:
        for one in running:
            one.cancel()


def _put_off(answer: Answer) -> bool:
    return answer.status == 429 or (answer.status == 503 and bool(answer.retry_after))


def _ids(name: str, pages: Sequence[_Page[Any]]) -> Generator[None, None, dict[str, None]]:
    """All ids in order. :raise _Shifted: there are not as many as the pages say, or some twice without their saying."""
    ids: dict[str, None] = {}
    rows = 0
    for page in pages:
        ids.update(dict.fromkeys(item.id for item in page.items))
        rows += len(page.items)
        yield
    total = pages[0].total_items
    if len(ids) != (rows if total is None else total):
        raise _Shifted(f"{len(ids)} different {name} of {rows if total is None else total}")
    return ids


def _same_ids(pages: Sequence[_Page[Any]], before: Sequence[_Page[Any]]) -> Generator[None, None, bool]:
    """Whether the same ones are listed in the same places as before."""
    if len(pages) != len(before):
        return False
    for page, old in zip(pages, before, strict=True):
        if page is not old:
            yield
            same = page.total_items == old.total_items and len(page.items) == len(old.items)
            if not same or any(item.id != was.id for item, was in zip(page.items, old.items, strict=True)):
                return False
    return True


def _same_members(
    pages: Sequence[_Page[SourceUser]], before: Sequence[_Page[SourceUser]]
) -> Generator[None, None, bool]:
    """Whether the pages tell the same memberships as before."""
    if len(pages) != len(before):
        return False
    for page, old in zip(pages, before, strict=True):
        if page is not old:
            yield
            if page.members != old.members:
                return False
    return True


def _changed(
    pages: Sequence[_Page[SourceUser]], before: Sequence[_Page[SourceUser]]
) -> Generator[None, None, dict[str, SourceUser]]:
    """Users who are not as before, by id; of one that is listed twice the first."""
    changed: dict[str, SourceUser] = {}
    for page, old in zip(pages, before, strict=True):
        if page is not old:
            yield
            for user in page.items:
                changed.setdefault(user.id, user)
    return changed


def _without(known: Iterable[str], ids: Mapping[str, None]) -> Generator[None, None, set[str]]:
    """Those that are not among the ids."""
    gone = set()
    for count, id in enumerate(known):
        if id not in ids:
            gone.add(id)
        if count % 1024 == 0:
            yield
    return gone


def _order(
    known: Iterable[str], tried: Iterable[Mapping[int, _Page[Any]]], ids: Iterable[str]
) -> Generator[None, None, dict[str, None]]:
    """By creation, as far as it can be told: as they were before, then as listings say that did not succeed."""
    order = dict.fromkeys(known)
    yield
    for pages in tried:
        for number in sorted(pages):
            order.update(dict.fromkeys(item.id for item in pages[number].items))
            yield
    order.update(dict.fromkeys(ids))
    return order


def _memberships(pages: Sequence[_Page[SourceUser]]) -> Generator[None, None, dict[str, list[str]] | None]:
    """By group id, who is in it; None: not every page tells."""
    if any(page.members is None for page in pages):
        return None
    found: dict[str, list[str]] = {}
    for page in pages:
        for id, members in (page.members or {}).items():
            found.setdefault(id, []).extend(members)
        yield
    return found


def _groups(
    listed: Iterable[_Group],
    members: Mapping[str, Sequence[str]] | None,
    details: Mapping[str, _Detail | None],
    users: Collection[str],
    known: Mapping[str, SourceGroup],
) -> Generator[SourceGroup, None, None]:
    """
    The listed groups that still exist, with all that is known about them.

    :param users: ids in order, which is that of members too: a single group tells its own in no particular one.
    """
    rank = dict(zip(users, range(len(users)), strict=True)) if details else {}
    for item in listed:
        value = item.value
        if value.id in details:
            detail = details[value.id]
            if detail is None:
                continue
            ids = sorted(detail.member_ids, key=lambda id: rank.get(id, len(rank)))
            value = replace(value, claims=detail.claims, member_ids=tuple(ids))
        elif members is not None:
            # once each: a page that came twice has its people twice
            value = replace(value, member_ids=tuple(dict.fromkeys(members.get(value.id, ()))))
        before = known.get(value.id)
        yield before if before == value else value


V = TypeVar("V", SourceUser, SourceGroup)


def _in_order(values: Iterable[V], order: Iterable[str] | None) -> Generator[None, None, dict[str, V]]:
    """By id, each once: as they come, or in the order given, which names at least all of them."""
    found: dict[str, V] = {}
    for count, value in enumerate(values):
        found.setdefault(value.id, value)
        if count % 64 == 0:
            yield
    if order is None:
        return found
    ordered: dict[str, V] = {}
    for count, id in enumerate(order):
        if id in found:
            ordered.setdefault(id, found[id])
        if count % 256 == 0:
            yield
    return ordered


def _identical(these: Sequence[object], those: Sequence[object]) -> bool:
    return len(these) == len(those) and all(map(operator.is_, these, those))


def _same_details(these: Mapping[str, object], those: Mapping[str, object]) -> bool:
    return these.keys() == those.keys() and all(value is those[id] for id, value in these.items())


# -- what PocketID sends ----------------------------------------------------------------------------------------------
def _document(text: str, name: str, take: Callable[[Any], None]) -> Generator[None, None, dict[str, Any] | None]:
    """
    Read a JSON object whose member ``name`` is a long array, or that array alone, element by element.

    :returns: the other members; None for the array alone.
    :raise ValueError: it is not JSON.
    """

    def skip(at: int) -> int:
        match = _SPACE.match(text, at)
        return match.end() if match else at

    def expect(character: str, at: int) -> int:
        if not text.startswith(character, at):
            raise ValueError(character)
        return skip(at + 1)

    def elements(at: int) -> Generator[None, None, int]:
        at = expect("[", at)
        if text.startswith("]", at):
            return skip(at + 1)
        while True:
            value, at = _decode(text, at)
            take(value)
            at = skip(at)
            yield
            if text.startswith("]", at):
                return skip(at + 1)
            at = expect(",", at)

    members: dict[str, Any] | None = None
    seen = False
    at = skip(0)
    if text.startswith("[", at):
        at = yield from elements(at)
    else:
        members = {}
        at = expect("{", at)
        while not (text.startswith("}", at) and not members and not seen):
            key, at = _decode(text, at)
            if not isinstance(key, str):
                raise ValueError("key")
            at = expect(":", skip(at))
            if key == name and not seen and text.startswith("[", at):
                seen = True
                at = yield from elements(at)
            else:
                members[key], at = _decode(text, at)
                at = skip(at)
            if text.startswith("}", at):
                break
            at = expect(",", at)
        at = skip(at + 1)
    if at != len(text):
        raise ValueError("more")
    if members is not None and seen and name in members:
        raise ValueError("twice")
    if members is not None and not seen and members.get(name, 0) is not None:
        raise _Malformed(f"{name} is missing, or no list")
    return members


def _page(text: str, take: Callable[[Any], None]) -> Generator[None, None, Callable[[int], dict[str, Any]]]:
    """:returns: what the envelope says about the page, given how many items were on it."""
    envelope = yield from _document(text, "data", take)
    if envelope is None:
        return lambda count: {"total_pages": 1, "total_items": count}
    said = _said(envelope)
    return lambda count: said


def _said(envelope: Mapping[str, Any]) -> dict[str, Any]:
    pagination = _object(envelope.get("pagination"), "its pagination")
    said = {
        "total_pages": _count(pagination, "totalPages", "its pagination"),
        "total_items": _count(pagination, "totalItems", "its pagination"),
    }
    if said["total_pages"] is None:
        raise _Malformed("totalPages of its pagination is missing")
    return said


# Around the rows of a page, and longer than what is said after them.
_BEFORE_ROWS, _AFTER_ROWS, _MOST_SAID = b'{"data":[', b'],"pagination":{', 1000


def _parted(raw: bytes) -> tuple[bytes, dict[str, Any]] | None:
    """
    The beginning of a page up to the end of its rows, and what is said after them; None: it is written another way.

    What comes after the rows is JSON by itself, so that it is no part of a text in a row.
    """
    at = raw.rfind(_AFTER_ROWS, -_MOST_SAID)
    if at < 0 or not raw.startswith(_BEFORE_ROWS):
        return None
    try:
        said = json.loads(b"{" + raw[at + 2 :])
    except (ValueError, RecursionError):
        return None
    return (raw[: at + 1], said) if said.keys() == {"pagination"} else None


def _user(value: Any, position: int) -> tuple[SourceUser, tuple[str, ...] | None]:
    """:returns: also the ids of the groups that the user is in; None: it is not told."""
    fields = _object(value, f"item {position + 1}")
    id = _id(fields, f"item {position + 1}")
    where = f"user {_shown(id)}"
    user = SourceUser(
        id=id,
        username=_text(fields, "username", where, required=True),
        email=_text(fields, "email", where),
        first_name=_text(fields, "firstName", where),
        last_name=_text(fields, "lastName", where),
        disabled=_flag(fields, "disabled", where),
        claims=_claims(fields, where),
        created_at=_text(fields, "createdAt", where),
    )
    if "userGroups" not in fields:
        return user, None
    groups = _list(fields, "userGroups", where)
    # each id is on thousands of pages, and is kept once
    ids = (intern(_id(_object(group, f"a group of {where}"), f"a group of {where}")) for group in groups)
    return user, tuple(dict.fromkeys(ids))


def _group(value: Any, position: int) -> _Group:
    fields = _object(value, f"item {position + 1}")
    id = _id(fields, f"item {position + 1}")
    where = f"group {_shown(id)}"
    group = SourceGroup(
        id=id,
        name=_text(fields, "name", where, required=True),
        friendly_name=_text(fields, "friendlyName", where),
        claims=_claims(fields, where),
        created_at=_text(fields, "createdAt", where),
    )
    return _Group(value=group, has_claims="customClaims" in fields, count=_count(fields, "userCount", where))


def _detail(text: str) -> Generator[None, None, _Detail]:
    ids: dict[str, None] = {}

    def take(value: Any) -> None:
        ids[_id(_object(value, f"member {len(ids) + 1}"), f"member {len(ids) + 1}")] = None

    fields = yield from _document(text, "users", take)
    if fields is None:
        raise _Malformed("it is a list")
    return _Detail(claims=_claims(fields, "it"), member_ids=tuple(ids))


def _claims(fields: Mapping[str, Any], where: str) -> Claims:
    found = []
    for value in _list(fields, "customClaims", where):
        claim = _object(value, f"a claim of {where}")
        key = _text(claim, "key", f"a claim of {where}", required=True)
        found.append((intern(key), _text(claim, "value", f"claim {_shown(key)} of {where}")))
    return tuple(found)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Malformed(f"{where} is {_type(value)}, not an object")
    return value


def _list(fields: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """Empty when absent or null."""
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        _wrong(name, where, value, "a list")
    return value


def _id(fields: Mapping[str, Any], where: str) -> str:
    id = _text(fields, "id", where, required=True)
    if not id:
        raise _Malformed(f"id of {where} is empty")
    return id


def _text(fields: Mapping[str, Any], name: str, where: str, *, required: bool = False) -> str:
    """Empty when absent or null, unless required."""
    value = fields.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        _wrong(name, where, value, "text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Malformed(f"{name} of {where} is no Unicode text") from None
    return value


def _flag(fields: Mapping[str, Any], name: str, where: str) -> bool:
    """False when absent or null."""
    value = fields.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        _wrong(name, where, value, "true or false")
    return value


def _count(fields: Mapping[str, Any], name: str, where: str) -> int | None:
    """None when absent or null."""
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        _wrong(name, where, value, "a number of things")
    return value


def _wrong(name: str, where: str, value: Any, wanted: str) -> NoReturn:
    raise _Malformed(f"{name} of {where} is {_type(value)}, not {wanted}")


_NAMES: Mapping[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "missing",
}


def _type(value: Any) -> str:
    return _NAMES.get(type(value), "something else")


def _shown(id: str) -> str:
    """An id or key as a message shows it."""
    return repr(_UNSAFE.sub("\ufffd", id[:64]))
