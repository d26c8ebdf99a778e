"""
Simple paged results (RFC 2696): a search that is answered in parts, each asked for with the cookie of the one before.

A search goes on in the snapshot that it began with. Cookies are random and of one connection, and good for one use with
the very same search: whoever changes the search in between, or has let too many searches lie, is told to start anew.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from identree.directory.encoding import octets, tlv
from identree.ldap import ber, operations
from identree.ldap.ber import BerError
from identree.ldap.operations import CONTROLS_TAG, PAGED_RESULTS, Code

# Controls that a search may have.
KNOWN_FOR_SEARCH = operations.IGNORED_CONTROLS | {PAGED_RESULTS}
# Unfinished paged searches of one connection; sssd has one at a time.
CURSORS_OF_CONNECTION = 4
# And of all: each keeps its snapshot alive.
CURSORS = 512
# And the bytes of these searches as they were sent: a filter takes some ten times as much once it is compiled.
CURSORS_BYTES = 4 << 20
# Old snapshots that unfinished searches may keep alive, beside the one that is served. Snapshots share what did not
# change, so one costs its indexes.
KEPT_SNAPSHOTS = 16
COOKIE_BYTES = 16
# Entries of an answer that is there already in one slice of a page; 0.1 ms, and about as many bytes as a slice of a
# scan has.
ANSWERED_AT_ONCE = 256


class Steps(Protocol):
    """
    A search that is worked off in slices, such as :class:`identree.ldap.search.Scan`.

    :ivar base: the branch that it looks into, for the metric.
    """

    base: str

    @property
    def done(self) -> bool: ...

    def step(self, limit: int | None = None) -> list[bytes]:
        """The next entries, at most ``limit``; it may be none although there are more."""

    def done_op(self) -> bytes:
        """The SearchResultDone, once it is done."""


class Answered:
    """
    An answer that is there as a whole, and is too large for one page.

    :param done: its SearchResultDone.
    """

    def __init__(self, entries: Sequence[bytes], done: bytes, base: str) -> None:
        self._entries, self._done, self._at = entries, done, 0
        self.base = base

    @property
    def done(self) -> bool:
        return self._at >= len(self._entries)

    def step(self, limit: int | None = None) -> list[bytes]:
        """See :class:`Steps`."""
        at = self._at
        self._at = at + ANSWERED_AT_ONCE if limit is None else at + min(limit, ANSWERED_AT_ONCE)
        return list(self._entries[at : self._at])

    def done_op(self) -> bytes:
        """See :class:`Steps`."""
        return self._done


@dataclass(frozen=True, slots=True)
class PageRequest:
    """
    :ivar size: entries wanted; 0 gives the search up.
    :ivar cookie: of the page before, empty for the first one.
    """

    size: int
    cookie: bytes


def page_request(value: bytes | None) -> PageRequest:
    """
    The value of the control in a request.

    :raise BerError: it is none.
    """
    if value is None:
        raise BerError("the paged results control has no value")
    at, end = ber.expect(value, 0, len(value), 0x30, "the value of the paged results control")
    size, at = ber.read_integer(value, at, end, 0x02, "the page size")
    start, stop = ber.expect(value, at, end, 0x04, "the cookie")
    if stop != end or end != len(value):
        raise BerError("there are bytes after the cookie")
    return PageRequest(size, value[start:stop])


def page_control(cookie: bytes) -> bytes:
    """
    The control of an answer; an empty cookie says that it was the last page.

    The estimate of all entries is 0, "unknown": a search is not evaluated further than it was asked for.
    """
    return ber.control(PAGED_RESULTS, ber.sequence(ber.integer(0), octets(cookie)))


# After the SearchResultDone of a search that was asked for in pages and fits into one; with the tag of controls.
ONLY_PAGE = tlv(CONTROLS_TAG, page_control(b""))


def only_page(controls: bytes) -> int:
    """
    How many entries the first page may have, where nothing but that is asked for by what follows a search in its
    message; 0 if there is more to it, such as a cookie, or a mistake.
    """
    try:
        tag, at, end = ber.header(controls, 0, len(controls))
        if tag != CONTROLS_TAG or end != len(controls):
            return 0
        found = operations.controls(controls[at:end])
        if operations.unsupported(found, KNOWN_FOR_SEARCH):
            return 0
        asked = [page_request(control.value) for control in found if control.oid == PAGED_RESULTS]
    except BerError:
        return 0
    return asked[0].size if len(asked) == 1 and not asked[0].cookie else 0


def _digest(op: bytes) -> bytes:
    return sha256(op).digest()


class Cursor:
    """
    A paged search between two pages.

    :param owner: the number of its connection.
    :param op: the whole search as it was sent; later pages must repeat it, so its digest is kept.
    :param version: of the snapshot.
    :ivar size: bytes of the search as it was sent.
    """

    __slots__ = ("digest", "owner", "pending", "size", "steps", "version")

    def __init__(self, owner: int, op: bytes, steps: Steps, version: int) -> None:
        self.owner, self.steps, self.version = owner, steps, version
        self.digest, self.size = _digest(op), len(op)
        # made, but not sent: the first entry of the next page
        self.pending: deque[bytes] = deque()


class Cursors:
    """
    The unfinished paged searches of all connections, bounded: where there are too many the oldest is forgotten.

    :param random_bytes: that many unpredictable bytes.
    """

    def __init__(
        self,
        random_bytes: Callable[[int], bytes],
        *,
        of_connection: int = CURSORS_OF_CONNECTION,
        in_all: int = CURSORS,
        snapshots: int = KEPT_SNAPSHOTS,
    ) -> None:
        self._random_bytes = random_bytes
        self._of_connection, self._in_all, self._snapshots = of_connection, in_all, snapshots
        # by cookie, oldest first
        self._cursors: OrderedDict[bytes, Cursor] = OrderedDict()
        self._of: dict[int, list[bytes]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._cursors)

    def keep(self, cursor: Cursor) -> bytes:
        """Until it is taken, or there are too many; gives the cookie to take it by."""
        own = self._of.setdefault(cursor.owner, [])
        if len(own) >= self._of_connection:
            self._forget(own[0])
        elif len(self._cursors) >= self._in_all:
            self._forget(next(iter(self._cursors)))
        while self._cursors and self._bytes + cursor.size > CURSORS_BYTES:
            self._forget(next(iter(self._cursors)))
        cookie = self._random_bytes(COOKIE_BYTES)
        self._cursors[cookie] = cursor
        self._bytes += cursor.size
        self._of.setdefault(cursor.owner, []).append(cookie)
        return cookie

    def take(self, owner: int, cookie: bytes, op: bytes) -> Cursor | None:
        """The search that goes on; None when the connection has none with this cookie, or it was another search."""
        cursor = self._cursors.get(cookie)
        if cursor is None or cursor.owner != owner:
            return None
        self._forget(cookie)
        return cursor if cursor.digest == _digest(op) else None

    def drop(self, owner: int) -> None:
        """The connection is gone, or is somebody else now."""
        for cookie in list(self._of.get(owner, ())):
            self._forget(cookie)

    def snapshot_changed(self) -> None:
        """Let go of searches in the oldest snapshots, so that a client which never comes back keeps few of them."""
        versions = sorted({cursor.version for cursor in self._cursors.values()})
        for version in versions[: -self._snapshots]:
            for cookie in [cookie for cookie, cursor in self._cursors.items() if cursor.version == version]:
                self._forget(cookie)

    def _forget(self, cookie: bytes) -> None:
        cursor = self._cursors.pop(cookie)
        self._bytes -= cursor.size
        own = self._of[cursor.owner]
        own.remove(cookie)
        if not own:
            del self._of[cursor.owner]


class Page:
    """
    One page of a search, worked off in slices like the search itself.

    :ivar final: once it is done: the SearchResultDone of the page.
    :ivar control: and the control that goes with it.
    """

    __slots__ = ("_cursor", "_cursors", "_left", "control", "done", "final")

    def __init__(self, cursor: Cursor, size: int, cursors: Cursors) -> None:
        self._cursor, self._left, self._cursors = cursor, size, cursors
        self.done = False
        self.final = b""
        self.control = b""

    def step(self) -> list[bytes]:
        """The next entries; the last slice ends the page, and keeps the cursor when there are more."""
        cursor = self._cursor
        pending = cursor.pending
        if not cursor.steps.done:
            # one more than the page has, so that the last page has no cookie to an empty one
            pending.extend(cursor.steps.step(self._left + 1 - len(pending)))
        entries = [pending.popleft() for _ in range(min(self._left, len(pending)))]
        self._left -= len(entries)
        if pending:
            self._end(ber.search_done(Code.SUCCESS), self._cursors.keep(cursor))
        elif cursor.steps.done:
            self._end(cursor.steps.done_op(), b"")
        return entries

    def _end(self, final: bytes, cookie: bytes) -> None:
        self.final, self.control, self.done = final, page_control(cookie), True
