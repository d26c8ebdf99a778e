"""
Live updates for browsers: server-sent events (spec/http-api section 11, spec/web-ui section 9).

Every change has the frame of the contract (``event: update``) and one of ours, typed, with an id. There is one bounded
journal of the newest frames, and a stream is a position in it: what a stream missed, because its browser was away or
read slowly, is what stands behind its position. Nothing is queued per stream, and a frame is built once for all.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from zope.interface import implementer

from identree.app.people import Caller
from identree.core.challenge import Live
from identree.core.errors import SessionExpired
from identree.web.reading import first_header
from identree.web.replies import text
from identree.web.router import TextAnswers
from identree.web.sessions import BrowserSessions

EVENTS_PATH = b"/api/events"
# What browsers are told of (spec/web-ui section 9).
EVENTS = frozenset(
    {
        "challenge_created",
        "challenge_updated",
        "challenge_resolved",
        "session_changed",
        "host_changed",
        # of ours, for the pages of administrators
        "policies_changed",
        "deliveries_changed",
    }
)

# Frames that can be replayed after a reconnect.
JOURNAL_FRAMES = 1024
# A stream that is further behind reads the page anew instead.
MAX_BEHIND = 64
KEEPALIVE_SECONDS = 30
# A browser that reads nothing for two keep-alives is gone.
STALLED_KEEPALIVES = 2
# Streams written to without letting others work: a few milliseconds.
SLICE = 200
RETRY_SECONDS = 30

_CONNECTED = b": connected\n\n"
_KEEPALIVE = b": keepalive\n\n"


def _chunk(frame: bytes) -> bytes:
    """As HTTP/1.1 sends it (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(frame), frame)


_KEEPALIVE_CHUNK = _chunk(_KEEPALIVE)


@dataclass(frozen=True, slots=True)
class _Frame:
    number: int
    username: str
    frame: bytes


@implementer(IPushProducer)
class _Stream:
    """
    One open answer.

    :ivar seen: number of the last frame that it does not need any more; only meaningful while ``behind``.
    :ivar ended: fires when the stream is over.
    """

    __slots__ = (
        "__weakref__",
        "_request",
        "_streams",
        "behind",
        "caller",
        "chunked",
        "ended",
        "paused",
        "seen",
        "stalls",
    )

    def __init__(self, streams: EventStreams, request: Any, caller: Caller, seen: int) -> None:
        self._streams = streams
        self._request = request
        self.caller = caller
        self.seen = seen
        self.behind = False
        self.paused = False
        self.stalls = 0
        self.chunked = request.clientproto == b"HTTP/1.1"
        self.ended: Deferred[None] = Deferred()

    def send(self, frame: bytes, chunk: bytes) -> None:
        """Straight to the connection: the framework would build every chunk anew."""
        self._request.channel.write(chunk if self.chunked else frame)

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        self.stalls = 0
        if self.behind:
            self._streams.wake(self)

    def stopProducing(self) -> None:
        """The connection is gone; the request says so too."""

    def abort(self) -> None:
        self._request.channel.transport.abortConnection()

    def end(self) -> None:
        if not self.ended.called:
            self.ended.callback(None)


class EventStreams:
    """
    All open streams.

    :param epoch: names this process in event ids; another process cannot replay our journal.
    :param limit, limit_per_user: open streams at a time.
    :param follows_all: whether what concerns others may concern a person: administrators, and those whom a policy names
        as approvers. A wake-up says no more than that something has happened.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        sessions: BrowserSessions,
        clock: IReactorTime,
        epoch: str,
        limit: int,
        limit_per_user: int,
        follows_all: Callable[[Caller], bool] = lambda caller: caller.is_admin,
    ) -> None:
        self._follows_all = follows_all
        self.answers = TextAnswers()
        self.limit = limit
        self._sessions = sessions
        self._clock = clock
        self._epoch = epoch
        self._limit_per_user = limit_per_user
        self._journal: deque[_Frame] = deque(maxlen=JOURNAL_FRAMES)
        self._number = 0
        self._count = 0
        self._by_user: dict[str, set[_Stream]] = {}
        self._admins: set[_Stream] = set()
        # streams with something to send, in the order in which they were woken
        self._behind: dict[_Stream, None] = {}
        self._pumping: IDelayedCall | None = None
        # streams by the second, modulo KEEPALIVE_SECONDS, at which they get their keep-alive
        self._slots: list[set[_Stream]] = [set() for _ in range(KEEPALIVE_SECONDS)]
        self._slot = 0
        self._ticking: IDelayedCall | None = None
        self._closed = False

    def __len__(self) -> int:
        return self._count

    # -- GET /api/events ----------------------------------------------------------------------------------------------
    async def open(self, request: Any) -> bytes | None:
        """The stream of the person who is signed in; returns when it is over."""
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            return text(request, 401, "unauthorized")
        mine = self._by_user.get(caller.username, ())
        if self._closed:
            request.responseHeaders.setRawHeaders(b"Retry-After", [b"%d" % RETRY_SECONDS])
            return text(request, 503, "the server is stopping; try again")
        if self._count >= self.limit or len(mine) >= self._limit_per_user:
            request.responseHeaders.setRawHeaders(b"Retry-After", [b"%d" % RETRY_SECONDS])
            return text(request, 429, "too many connections")
        stream = _Stream(self, request, caller, self._number)
        self._headers(request)
        request.write(_CONNECTED)
        request.registerProducer(stream, True)
        self._add(stream)
        self._replay(stream, first_header(request, b"Last-Event-ID"))
        try:
            await stream.ended
        finally:
            self._remove(stream)
        request.unregisterProducer()
        request.finish()
        return None

    @staticmethod
    def _headers(request: IRequest) -> None:
        request.setResponseCode(200)
        headers = request.responseHeaders
        headers.setRawHeaders(b"Content-Type", [b"text/event-stream"])
        headers.setRawHeaders(b"Cache-Control", [b"no-cache"])
        headers.setRawHeaders(b"Connection", [b"keep-alive"])
        headers.setRawHeaders(b"X-Accel-Buffering", [b"no"])

    def _add(self, stream: _Stream) -> None:
        self._count += 1
        self._by_user.setdefault(stream.caller.username, set()).add(stream)
        if self._follows_all(stream.caller):
            self._admins.add(stream)
        # the slot that was just served: its next turn is in KEEPALIVE_SECONDS
        self._slots[self._slot].add(stream)
        if self._ticking is None:
            self._ticking = self._clock.callLater(1, self._tick)

    def _remove(self, stream: _Stream) -> None:
        self._count -= 1
        group = self._by_user[stream.caller.username]
        group.discard(stream)
        if not group:
            del self._by_user[stream.caller.username]
        self._admins.discard(stream)
        self._behind.pop(stream, None)
        for slot in self._slots:
            slot.discard(stream)
        stream.end()

    # -- waking -------------------------------------------------------------------------------------------------------
    def heard(self, live: Live) -> None:
        """A listener for the store's wake-ups."""
        if live.event == "resync":
            # what happened meanwhile is not in the journal
            self._journal.clear()
            self._number += 1
            for group in self._by_user.values():
                for stream in group:
                    stream.behind, stream.seen = True, -1
                    self.wake(stream)
            return
        if live.event not in EVENTS:
            # between replicas only
            return
        self._number += 1
        data = json.dumps({"challenge": live.challenge_id} if live.challenge_id else {}, separators=(",", ":"))
        typed = f"id: {self._epoch}-{self._number}\nevent: {live.event}\ndata: {data}\n\n"
        frame = f"event: update\ndata: {live.event}\n\n{typed}".encode()
        self._journal.append(_Frame(self._number, live.username, frame))
        for stream in self._by_user.get(live.username, ()):
            self._concerns(stream)
        for stream in self._admins:
            self._concerns(stream)

    def _concerns(self, stream: _Stream) -> None:
        if not stream.behind:
            stream.behind, stream.seen = True, self._number - 1
            self.wake(stream)

    def wake(self, stream: _Stream) -> None:
        """Let it have what it missed, soon."""
        if stream.paused:
            return
        self._behind[stream] = None
        if self._pumping is None:
            self._pumping = self._clock.callLater(0, self._pump)

    def _pump(self) -> None:
        """Write to one slice of the streams, then let others work."""
        self._pumping = None
        made: dict[tuple[str, int], tuple[bytes, bytes]] = {}
        for stream in [stream for stream, _ in zip(self._behind, range(SLICE), strict=False)]:
            del self._behind[stream]
            key = ("" if stream in self._admins else stream.caller.username, stream.seen)
            if key not in made:
                missed = self._missed(*key)
                made[key] = (missed, _chunk(missed) if missed else b"")
            stream.behind = False
            frame, chunk = made[key]
            if frame:
                stream.send(frame, chunk)
        if self._behind:
            self._pumping = self._clock.callLater(0, self._pump)

    def _missed(self, username: str, seen: int) -> bytes:
        """What stands in the journal for this person (empty: everybody's) behind ``seen``, or that it is too much."""
        oldest = self._journal[0].number if self._journal else self._number + 1
        if seen + 1 < oldest:
            return self._resync()
        frames = []
        for entry in reversed(self._journal):
            if entry.number <= seen:
                break
            if not username or entry.username == username:
                frames.append(entry.frame)
                if len(frames) > MAX_BEHIND:
                    return self._resync()
        return b"".join(reversed(frames))

    def _resync(self) -> bytes:
        return f"id: {self._epoch}-{self._number}\nevent: resync\ndata: {{}}\n\n".encode()

    def _replay(self, stream: _Stream, last_id: bytes) -> None:
        """A browser that comes back says what it saw last (HTML standard, section 9.2.4)."""
        if not last_id:
            return
        epoch, _, number = last_id.decode("latin-1").partition("-")
        known = epoch == self._epoch and number.isdigit() and len(number) < 20 and int(number) <= self._number
        stream.behind, stream.seen = True, int(number) if known else -1
        self.wake(stream)

    # -- keeping alive ------------------------------------------------------------------------------------------------
    def _tick(self) -> None:
        self._ticking = self._clock.callLater(1, self._tick) if self._count else None
        self._slot = (self._slot + 1) % KEEPALIVE_SECONDS
        for stream in list(self._slots[self._slot]):
            if stream.paused:
                stream.stalls += 1
                if stream.stalls >= STALLED_KEEPALIVES:
                    stream.abort()
                continue
            stream.send(_KEEPALIVE, _KEEPALIVE_CHUNK)
            checking = Deferred.fromCoroutine(self._check(stream))
            checking.addErrback(self._unchecked)

    async def _check(self, stream: _Stream) -> None:
        """The session may have ended, or the role may be another one."""
        request = stream._request
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            self._end(stream)
            return
        follows = self._follows_all(caller)
        if follows != (stream in self._admins) and not stream.ended.called:
            (self._admins.add if follows else self._admins.discard)(stream)
        stream.caller = caller

    def _end(self, stream: _Stream) -> None:
        if not stream.ended.called:
            frame = b"event: ended\ndata: {}\n\n"
            stream.send(frame, _chunk(frame))
            stream.end()

    def _unchecked(self, failure: Failure) -> None:
        # nobody loses a stream because the database is away; the next keep-alive asks again
        self._log.debug("a stream's session could not be checked: {error}", error=failure.value)

    def close(self) -> None:
        """End all streams; no further ones are opened."""
        self._closed = True
        for group in list(self._by_user.values()):
            for stream in list(group):
                stream.end()
        for timer in (self._pumping, self._ticking):
            if timer is not None and timer.active():
                timer.cancel()
        self._pumping = self._ticking = None
