"""
The HTTP listener: what holds for every request and every answer (spec/http-api section 2).

Limits are enforced while bytes arrive. A body that is longer than its path allows is cut there: the request is answered
at once with its beginning, and the connection ends. No time-out runs while we work on an answer, so that requests can
be held; all others are short.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource

from identree.core.addresses import throttle_key
from identree.core.requests import current
from identree.web.router import log_crash

# Request line and headers, in bytes; and how many headers.
HEADER_BYTES = 12_288
HEADER_COUNT = 100
# A body on a path that has no limit of its own, in bytes (spec/http-api section 2.7: forms).
BODY_BYTES = 8192
# What bodies beyond that may take in all, in bytes: a stranger can begin many that a path allows, before it is known
# who asks. One that finds no room is cut.
LARGE_BODIES_BYTES = 32 << 20
HEADER_SECONDS = 10
REQUEST_SECONDS = 30
IDLE_SECONDS = 60
# After the answer to a cut body the rest is read and dropped this long, so that the client sees the answer.
LINGER_SECONDS = 1
# The last answer may take this long to be read.
CLOSE_SECONDS = 30
# An open connection costs about 20 KiB; this many fit beside everything else.
MAX_CONNECTIONS = 40_000

_STRICT = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    b"manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_NOTHING = b"default-src 'none'"
_ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
# A name or an address, with or without port (RFC 9112 section 3.2); empty where the target has none.
_HOST = re.compile(
    rb"(?:[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63}){0,126}\.?|\[[0-9A-Fa-f:.]{2,45}\])?(?::[0-9]{0,5})?"
)


class Channel(http.HTTPChannel):
    """One connection."""

    totalHeadersSize = HEADER_BYTES
    MAX_LENGTH = HEADER_BYTES
    maxHeaders = HEADER_COUNT
    site: Site
    # Any: half of what a transport can do is not in ITransport
    transport: Any
    _header_bytes = 0
    # what the number of connections is counted by; empty when it is not
    address_key = ""
    # waiting for another request
    _idle = False
    # nothing more is read: the answer to what came so far is the last one
    _deaf = False
    _closing = False
    _lost = False
    timeOut: Any
    _timer: IDelayedCall | None = None
    _deadline = 0.0

    def setTimeout(self, period: float | None) -> float | None:
        """
        As TimeoutMixin's, but for the timer: it runs on when it ends before the time-out, and looks then. Moving one to
        an earlier time makes the reactor search all timers, and there is one for each of thousands of connections.
        """
        before: float | None = self.timeOut
        self.timeOut = period
        if period is not None:
            self._deadline = self.site.reactor.seconds() + period
            timer = self._timer
            if timer is not None and timer.getTime() > self._deadline:
                timer.cancel()
                timer = None
            if timer is None:
                self._timer = self.callLater(period, self._look)
        elif self._lost and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return before

    def resetTimeout(self) -> None:
        if self.timeOut is not None:
            self.setTimeout(self.timeOut)

    def _look(self) -> None:
        """The time-out may have been put off, or taken away."""
        self._timer = None
        if self.timeOut is None:
            return
        left = self._deadline - self.site.reactor.seconds()
        if left > 0:
            self._timer = self.callLater(left, self._look)
        else:
            self.timeOut = None
            self.timeoutConnection()

    def connectionMade(self) -> None:
        super().connectionMade()
        self.setTimeout(HEADER_SECONDS)

    def dataReceived(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._idle:
            self._idle = False
            self.setTimeout(HEADER_SECONDS)
        # not HTTPChannel's: there every byte begins the time-out anew
        LineReceiver.dataReceived(self, data)

    def lineReceived(self, line: bytes) -> None:
        if self._deaf:
            return
        self._header_bytes += len(line) + 2
        if self._header_bytes > HEADER_BYTES:
            self._too_large()
        else:
            super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        self._too_large()

    def headerReceived(self, line: bytes) -> bool:
        if self._deaf:
            return False
        if self._receivedHeaderCount >= HEADER_COUNT:
            self._too_large()
            return False
        return bool(super().headerReceived(line))

    def allHeadersReceived(self) -> None:
        if self._deaf:
            return
        self._header_bytes = 0
        request: Any = self.requests[-1]
        if not self._unmistakable(request.requestHeaders):
            self._respondToBadRequestAndDisconnect()
            return
        request.limit = self.site.body_limit(self._path.partition(b"?")[0])
        if self.length != 0:
            self.setTimeout(REQUEST_SECONDS - HEADER_SECONDS)
        super().allHeadersReceived()

    def _unmistakable(self, headers: Headers) -> bool:
        """Whether no proxy before us can have read the request as another one (RFC 9112 sections 3.2 and 6.3)."""
        hosts = headers.getRawHeaders(b"Host", [])
        if len(hosts) > 1 or (self._version == b"HTTP/1.1" and not hosts):
            return False
        if hosts and not _HOST.fullmatch(hosts[0].strip(b" \t")):
            return False
        codings = headers.getRawHeaders(b"Transfer-Encoding", [])
        chunked = self._version == b"HTTP/1.1" and [coding.strip(b" \t").lower() for coding in codings] == [b"chunked"]
        return chunked or not codings

    def allContentReceived(self) -> None:
        if not self._deaf:
            super().allContentReceived()

    def rawDataReceived(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._handlingRequest:
            super().rawDataReceived(data)
            return
        request: Any = self.requests[-1]
        super().rawDataReceived(data)
        unanswered = bool(self.requests) and self.requests[-1] is request and not self._handlingRequest
        if request.cut and unanswered:
            self.persistent = False
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
            self._deaf = True
            super().allContentReceived()

    def requestDone(self, request: http.Request) -> None:
        super().requestDone(request)
        if self.persistent and not self.requests:
            self._idle = True
            self.setTimeout(IDLE_SECONDS)

    def timeoutConnection(self) -> None:
        if self._closing:
            self.transport.abortConnection()
            return
        self._deaf = False
        self.loseConnection()

    def loseConnection(self) -> None:
        if self._deaf:
            # closing with unread bytes would reset the connection, and the client might not get the answer
            self.setTimeout(LINGER_SECONDS)
        elif not self._closing:
            self._closing = True
            super().loseConnection()
            if not self._lost:
                # it closes when the client has read everything; that must end, too
                self.setTimeout(CLOSE_SECONDS)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._lost = True
        super().connectionLost(reason)
        self.site.connection_lost(self)

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        request: Any = self.requests[0]
        lines = [version, b" ", code, b" ", reason, b"\r\n"]
        if request.request_id is not None:
            lines.append(self.site.common_headers(request, headers))
        for name, values in headers.getAllRawHeaders():
            for value in values:
                lines.extend((name, b": ", value, b"\r\n"))
        lines.append(b"\r\n")
        self.transport.write(b"".join(lines))

    def _respondToBadRequestAndDisconnect(self) -> None:
        self._bare(b"400 Bad Request")

    def _too_large(self) -> None:
        self._bare(b"431 Request Header Fields Too Large")

    def _bare(self, status: bytes) -> None:
        """Answer what is no request, and hang up."""
        head = b"HTTP/1.1 %b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
        self.transport.write(head % (status, len(status)) + b"Connection: close\r\n\r\n" + status)
        self.persistent = False
        self._deaf = True
        self.loseConnection()


class Request(server.Request):
    """
    :ivar cut: the body was longer than ``limit``; ``content`` has its beginning.
    :ivar request_id: 16 hex digits, empty where the contract wants none; None before it is assigned.
    :ivar route: the template of the path that it belongs to.
    :ivar held: ``poll`` or ``stream`` when its answer waits for something to happen; empty when it does not.
    """

    defaultContentType = None
    limit = BODY_BYTES
    cut = False
    request_id: str | None = None
    route = "other"
    held = ""
    # on the monotonic clock; None before it is whole and after it was counted
    _began: float | None = None
    # bytes of the body that count as those of a large one
    _large = 0

    def __init__(self, channel: Channel, queued: object = None) -> None:
        super().__init__(channel, parsePOSTFormSubmission=False)

    content: Any
    channel: Any

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        room = self.limit - self.content.tell()
        if len(data) > room:
            self.cut = True
            data = data[:room]
        large = self.content.tell() + len(data) - BODY_BYTES
        if large > self._large:
            if self.channel.site.hold(large - self._large):
                self._large = large
            else:
                self.cut = True
                data = data[: max(0, BODY_BYTES - self.content.tell())]
        self.content.write(data)

    def _let_go(self) -> None:
        """The body is not needed any more."""
        large, self._large = self._large, 0
        if large:
            self.channel.site.let_go(large)

    def parseCookies(self) -> None:
        """The first cookie of a name counts."""
        for header in self.requestHeaders.getRawHeaders(b"Cookie") or ():
            for part in header.split(b";"):
                name, separator, value = part.strip(b" \t").partition(b"=")
                if separator:
                    self.received_cookies.setdefault(name, value)

    def process(self) -> None:
        site = self.site = self.channel.site
        self.prepath = []
        self.postpath = []
        self._began = site.monotonic()
        # nothing of the request before on this connection is left, in whose turn this one may begin
        before = current.set("")
        try:
            absolute = _ABSOLUTE.match(self.uri)
            if absolute:  # RFC 9112 section 3.2.2
                self.uri = self.uri[absolute.end() :] or b"/"
                self.path = self.path[absolute.end() :] or b"/"
            if site.redirects and self.requestHeaders.getRawHeaders(b"X-Forwarded-Proto", [b""])[0] == b"http":
                self._to_https(site)
                return
            self.request_id = "" if self.path == b"/healthz" else site.token(8)
            current.set(self.request_id)
            self.render(site.resource)
        except Exception:
            self.processingFailed(Failure())
        finally:
            current.reset(before)

    def render(self, resrc: IResource) -> None:
        body = resrc.render(self)
        if body is server.NOT_DONE_YET:
            return
        if not self.responseHeaders.hasHeader(b"Content-Length") and self.code not in http.NO_BODY_CODES:
            self.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        self.write(body)
        self.finish()

    def write(self, data: bytes) -> None:
        if not self.startedWriting and self.cookies:
            for cookie in self.cookies:
                self.responseHeaders.addRawHeader(b"Set-Cookie", cookie)
            self.cookies = []
        http.Request.write(self, data)

    def finish(self) -> None:
        status = str(self.code)
        self._let_go()
        http.Request.finish(self)
        self._over(status)

    def connectionLost(self, reason: Failure) -> None:
        self._let_go()
        http.Request.connectionLost(self, reason)
        self._over("gone")

    def _over(self, status: str) -> None:
        """Count it, once."""
        began, self._began = self._began, None
        if began is None:
            return
        site: Any = self.site
        seconds = site.monotonic() - began
        if self.held and status in ("200", "gone"):
            site.observe_held(self.held, seconds)
        else:
            site.observe(self.route, status, seconds)

    def processingFailed(self, reason: Failure) -> Failure:
        """The crash guard: everything to the log, nothing to the client."""
        log_crash(self, reason)
        if self.startedWriting:
            self.channel.transport.abortConnection()
            return reason
        body = b"internal error\n"
        self.setResponseCode(500)
        self.responseHeaders = Headers(
            {b"Content-Type": [b"text/plain; charset=utf-8"], b"Content-Length": [b"%d" % len(body)]}
        )
        self.write(body)
        self.finish()
        return reason

    def _to_https(self, site: Site) -> None:
        path = self.uri if self.uri.startswith(b"/") else b"/"
        self.setResponseCode(301)
        self.responseHeaders.setRawHeaders(b"Location", [site.redirects + path])
        self.responseHeaders.setRawHeaders(b"Content-Length", [b"0"])
        self.write(b"")
        self.finish()


class Site(server.Site):
    """
    :param external_url: the public base URL; https turns on the redirect and HSTS.
    :param token: returns n random bytes as hex.
    :param body_limits: in bytes, for exact paths.
    :param max_connections: one more is closed at once.
    :param max_per_address: the same for one address, of IPv6 one /64 network.
    :param many_clients: whether an address stands for many clients, as a proxy of ours does; it has no such bound.
    :param wall: unix seconds for the header ``Date``; by default the reactor's.
    :param monotonic: times the requests; by default the reactor's.
    :param observe: told of every request that was not held: its route, its status (``gone`` when the client hung up
        before the answer) and how many seconds it took.
    :param observe_held: told of every other one: ``poll`` or ``stream``, and for how many seconds.
    """

    _log = Logger()
    displayTracebacks = False
    protocol = Channel  # type: ignore[assignment]

    def __init__(
        self,
        root: IResource,
        *,
        reactor: Any,
        external_url: str,
        token: Callable[[int], str],
        body_limits: Mapping[bytes, int] | None = None,
        max_connections: int = MAX_CONNECTIONS,
        max_per_address: int = MAX_CONNECTIONS,
        many_clients: Callable[[str], bool] = lambda address: False,
        wall: Callable[[], float] | None = None,
        monotonic: Callable[[], float] | None = None,
        observe: Callable[[str, str, float], None] = lambda route, status, seconds: None,
        observe_held: Callable[[str, float], None] = lambda kind, seconds: None,
    ) -> None:
        super().__init__(
            root,
            requestFactory=Request,
            parsePOSTFormSubmission=False,
            reactor=reactor,
            timeout=IDLE_SECONDS,
        )
        self.token = token
        self._wall: Callable[[], float] = wall or reactor.seconds
        self.monotonic: Callable[[], float] = monotonic or reactor.seconds
        self.observe = observe
        self.observe_held = observe_held
        self._body_limits = dict(body_limits or {})
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._many_clients = many_clients
        self._channels: set[Channel] = set()
        self._by_address: dict[str, int] = {}
        self.large_bodies_limit = LARGE_BODIES_BYTES
        self._large_bodies = 0
        self._refusing = False
        https = external_url.startswith("https://")
        # scheme, host and port, where plain requests are sent on to
        self.redirects = b"/".join(external_url.encode().split(b"/")[:3]) if https else b""
        common = (
            b"Server: identree\r\n"
            b"X-Content-Type-Options: nosniff\r\n"
            b"X-Frame-Options: DENY\r\n"
            b"Referrer-Policy: no-referrer\r\n"
            b"Permissions-Policy: camera=(), microphone=(), geolocation=(), payment=()\r\n"
        )
        if https:
            common += b"Strict-Transport-Security: max-age=63072000; includeSubDomains\r\n"
        self._common = common
        self._dated = common
        self._second = -1

    def body_limit(self, path: bytes) -> int:
        return self._body_limits.get(path, BODY_BYTES)

    def hold(self, size: int) -> bool:
        """Whether there is room for so many more bytes of large bodies; they are counted then."""
        if self._large_bodies + size > self.large_bodies_limit:
            return False
        self._large_bodies += size
        return True

    def let_go(self, size: int) -> None:
        """So many bytes that were counted are not held any more."""
        self._large_bodies -= size

    def busy(self) -> int:
        """How many requests are being worked on."""
        return sum(1 for channel in self._channels if channel._handlingRequest and channel.requests)

    @property
    def limit(self) -> int:
        """How many connections there may be."""
        return self._max_connections

    def __len__(self) -> int:
        return len(self._channels)

    def common_headers(self, request: Request, headers: Headers) -> bytes:
        """The headers of section 2.3 that the answer did not set itself, as they go on the wire."""
        second = int(self._wall())
        if second != self._second:
            self._second = second
            self._dated = self._common + b"Date: %b\r\n" % http.datetimeToString(second)
        block = self._dated
        if request.request_id:
            block += b"X-Request-ID: %b\r\n" % request.request_id.encode("ascii")
        if not headers.hasHeader(b"Cache-Control"):
            block += b"Cache-Control: no-store\r\n"
        if not headers.hasHeader(b"Content-Security-Policy"):
            kind = headers.getRawHeaders(b"Content-Type")
            plain = request.path.startswith(b"/api/") and not (kind and kind[0].startswith(b"text/html"))
            block += b"Content-Security-Policy: %b\r\n" % (_NOTHING if plain else _STRICT)
        return block

    # -- connections --------------------------------------------------------------------------------------------------
    def buildProtocol(self, addr: IAddress | None) -> Any:
        if len(self._channels) >= self._max_connections:
            if not self._refusing:
                self._log.warn("more than {limit} connections; further ones are refused", limit=self._max_connections)
            self._refusing = True
            return None
        self._refusing = False
        address = str(getattr(addr, "host", ""))
        key = "" if self._many_clients(address) else throttle_key(address)
        count = self._by_address.get(key, 0)
        if key and count >= self._max_per_address:
            if count == self._max_per_address:
                # once for each time that the bound is reached
                self._by_address[key] += 1
                self._log.warn("{address} has {limit} connections; further ones are refused", address=key, limit=count)
            return None
        channel: Any = super().buildProtocol(addr)
        channel.address_key = key
        self._channels.add(channel)
        if key:
            self._by_address[key] = count + 1
        return channel

    def connection_lost(self, channel: Channel) -> None:
        if channel not in self._channels:
            return
        self._channels.discard(channel)
        key = channel.address_key
        if key:
            left = min(self._by_address[key], self._max_per_address) - 1
            if left:
                self._by_address[key] = left
            else:
                del self._by_address[key]

    def startFactory(self) -> None:
        """There is no access log, and so no clock for its lines."""

    def stopFactory(self) -> None:
        """See above."""

    def log(self, request: http.Request) -> None:
        """Requests are not logged: their paths carry codes and ids. The journal has what matters."""

    def acceptableProtocols(self) -> list[bytes]:
        return [b"http/1.1"]
