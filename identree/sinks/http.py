"""
What the HTTP sinks share: connections, one bounded POST, and what an answer means for the records that were sent
(spec/audit-and-metrics sections 8 and 9).

Only an answer that says so counts as delivered. A status that somebody can put right without touching the records (a
wrong token, a wrong URL, a redirect) keeps them waiting; only an answer about the records themselves refuses them.
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, cast
from urllib.parse import unquote, unquote_plus, urlsplit

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from identree.core.audit import Sealed
from identree.sinks.follower import Rejected, Unavailable
from identree.sinks.tls import ClientTrust

# Most records in one request, and how long a request that is not full waits for more, in seconds.
BATCH = 100
LINGER_SECONDS = 5.0

CONNECT_SECONDS = 5.0
# From the first look at the certificates to the last byte of the answer.
REQUEST_SECONDS = 15.0
# A connection that nobody uses is kept this long: past the next batch, and shorter than receivers keep theirs.
KEPT_SECONDS = 15
CLOSE_SECONDS = 1.0
# Of an answer; what is longer is not read.
ANSWER_BYTES = 1 << 16
# Of an answer with its head, and what one read of a socket may bring beyond its end.
WIRE_BYTES = 3 * ANSWER_BYTES
# Of a body that is built without a pause: about a millisecond of formatting and two of compression.
SLICE_BYTES = 1 << 16
GZIP_LEVEL = 6
# Of an answer, in an error text and in the log.
QUOTED_CHARACTERS = 200
LOGGED_BYTES = 1024
# A shorter value of the URL's query is no secret; hiding it would only make the receiver's words unreadable.
SECRET_CHARACTERS = 6
# A longer number of seconds in Retry-After is no number of seconds.
_LONGEST_NUMBER = 9

# What is said about the records themselves: they, or some of them, will never be taken.
_ABOUT_RECORDS = (400, 413, 415, 422)
_TOO_LARGE = 413
_UNSUPPORTED_MEDIA = 415
# The receiver is not able to just now, and may say for how long.
_FOR_NOW = (408, 425, 429)
_UNANSWERED = (RequestTransmissionFailed, ResponseNeverReceived)
# Web servers answer so, with 400, when somebody speaks HTTP to their HTTPS port.
_PLAIN_TO_TLS = ("http request to an https server", "plain http request was sent to https port")


class Client(Protocol):
    """``IAgent`` that can be closed: :class:`Connections`, or a fake."""

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]: ...

    async def close(self) -> None: ...


class Connections:
    """
    Connections to one receiver, kept from one batch to the next. No proxy is read from the environment, no redirect
    followed.

    :param trust: for https; None: there will be none.
    """

    def __init__(self, reactor: Any, trust: ClientTrust | None) -> None:
        self._clock: IReactorTime = reactor
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool.maxPersistentPerHost = 1
        self._pool.cachedConnectionTimeout = KEPT_SECONDS
        self._agent = Agent.usingEndpointFactory(reactor, _Endpoints(reactor, trust), self._pool)

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        return cast(Deferred[IResponse], self._agent.request(method, uri, headers, bodyProducer))

    async def close(self) -> None:
        """Drop the connections that are not in use; those in use belong to whoever waits for their answer."""
        with suppress(Exception):
            await self._pool.closeCachedConnections().addTimeout(CLOSE_SECONDS, self._clock)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    def __init__(self, reactor: Any, trust: ClientTrust | None) -> None:
        self._reactor, self._trust = reactor, trust

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        endpoint: IStreamClientEndpoint = HostnameEndpoint(self._reactor, uri.host, uri.port, timeout=CONNECT_SECONDS)
        if uri.scheme == b"https":
            if self._trust is None:
                raise ValueError("there is nothing to check certificates against")
            endpoint = wrapClientTLS(self._trust.creatorForNetloc(uri.host, uri.port), endpoint)
        return _Bounded(endpoint)


@implementer(IStreamClientEndpoint)
class _Bounded:
    """Twisted reads as many header lines as the other side likes to send; over these connections they end."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        connected: Deferred[Any] = self._endpoint.connect(_Counting(protocolFactory))
        return connected.addCallback(lambda counter: counter.wrappedProtocol)


class _Counter(ProtocolWrapper):
    """Ends the connection when more comes than an answer, read whole or dropped, can have."""

    came = 0

    def write(self, data: bytes) -> None:
        self.came = 0
        super().write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.came = 0
        super().writeSequence(data)

    def dataReceived(self, data: bytes) -> None:
        self.came += len(data)
        if self.came > WIRE_BYTES:
            transport: Any = self.transport
            transport.abortConnection()
        else:
            super().dataReceived(data)


class _Counting(WrappingFactory):
    protocol = _Counter
    noisy = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """
    How the settings of a sink are called in texts.

    :ivar access: the end of a sentence about a request that was not let in.
    """

    url: str
    gzip: str
    access: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """
    :ivar body: as far as it was read, at most ``ANSWER_BYTES``.
    :ivar retry_after: seconds that it asks for; None when it does not say.
    :ivar location: where it redirects to, without what may be secret.
    """

    status: int
    body: bytes
    retry_after: float | None = None
    location: str = ""

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_page(self) -> bool:
        """A web page: from a login form, a proxy or another server, never from a receiver of records."""
        return self.body.lstrip()[:1] == b"<"


@dataclass(frozen=True, slots=True)
class Address:
    """
    A URL taken apart, so that what is secret in it goes nowhere but to the receiver.

    :ivar origin: scheme, host and port.
    :ivar path: at least ``/``.
    :ivar query: with its question mark, or empty.
    :ivar login: ``user:password`` of the URL, or empty.
    """

    origin: str
    path: str
    query: str
    login: str

    @property
    def basic(self) -> str:
        """Value of an Authorization header (RFC 7617)."""
        return "Basic " + b64encode(self.login.encode()).decode()

    @property
    def secrets(self) -> tuple[str, ...]:
        """What of it must not be quoted."""
        query = self.query.removeprefix("?")
        # a receiver may repeat a value alone, as it stands in the URL or as it read it; the short ones are no secrets
        written = {value for part in query.split("&") if (value := part.partition("=")[2])}
        values = sorted(
            {form for value in written for form in (value, unquote_plus(value)) if len(form) >= SECRET_CHARACTERS}
        )
        if not self.login:
            return (query, *values)
        return query, *values, self.login, self.login.partition(":")[2], self.basic.partition(" ")[2]


def parse_address(url: str) -> Address:
    """:raise ValueError: it is no http or https URL; the text does not repeat it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if ":" in host:
            host = f"[{host}]"
        elif not host.isascii():
            host = host.encode("idna").decode()
        bare = parts.path.encode() + parts.query.encode()
    except ValueError:
        host, port, bare = "", None, b""
    if not host or parts.scheme not in ("http", "https"):
        raise ValueError("is not a URL that begins with http:// or https:// and names a host")
    if any(byte <= 0x20 or byte >= 0x7F for byte in bare):
        raise ValueError("holds characters that a URL cannot; write them with % and two hexadecimal digits")
    login = ""
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Address(
        origin=f"{parts.scheme}://{host}" + (f":{port}" if port is not None else ""),
        path=parts.path or "/",
        query=f"?{parts.query}" if parts.query else "",
        login=login,
    )


class Receiver:
    """
    The other end of an HTTP sink.

    :param name: of the sink, for the log.
    :param headers: of every request; values may be secret.
    :param secrets: what must not be quoted from an answer that repeats it.
    :param compress: send gzip bodies.
    :param request_seconds: for one request, from connecting to the last byte of the answer.
    """

    _log = Logger(namespace="identree")

    def __init__(
        self,
        name: str,
        names: Names,
        headers: Mapping[str, str],
        *,
        secrets: Iterable[str],
        agent: Client,
        trust: ClientTrust | None,
        compress: bool,
        clock: IReactorTime,
        request_seconds: float,
        log: Logger | None = None,
    ) -> None:
        if log is not None:
            self._log = log
        self._name = name
        self._names = names
        self._headers = {"Content-Type": "application/json", "User-Agent": "identree", **headers}
        # the longest first: one may be part of another
        self._secrets = sorted((secret for secret in secrets if secret), key=len, reverse=True)
        self._agent = agent
        self._trust = trust
        self._compress = compress
        self._clock = clock
        self._seconds = request_seconds
        # whether a connection may be left from the last request
        self._kept = False
        # statuses that the log knows of, and the last record of those that were refused
        self._said: set[int] = set()
        self._refused = -1

    async def close(self) -> None:
        await self._agent.close()

    # -- asking -------------------------------------------------------------------------------------------------------
    async def send(self, url: str, pieces: Callable[[], Iterable[bytes]]) -> Answer:
        """
        Post a body, compressed if the receiver takes it so.

        :param pieces: of the body; they are made while others of the reactor's work go on in between.
        :raise Unavailable: there was no whole answer.
        """
        answer = await self.post(url, await self._body(pieces()), compressed=self._compress)
        if answer.status == _UNSUPPORTED_MEDIA and self._compress:
            # it is the same for every record, so it is not about them
            answer = await self.post(url, await self._body(pieces(), plain=True))
            if answer.good:
                self._compress = False
                self._log.warn(
                    "{message}",
                    message=f"AUDIT {self._name}: the receiver takes no compressed bodies; they are sent as they are",
                    attributes={"setting": self._names.gzip},
                )
        return answer

    async def post(self, url: str, body: bytes, *, compressed: bool = False) -> Answer:
        """
        One request and its whole answer.

        :param compressed: whether the body is.
        :raise Unavailable: there was none; the text says why.
        """
        headers = Headers({name: [value] for name, value in self._headers.items()})
        if compressed:
            headers.setRawHeaders("Content-Encoding", ["gzip"])
        gone = late = False
        work = Deferred.fromCoroutine(self._exchange(url.encode(), headers, body, lambda: gone or late))

        def leave(_: Deferred[Answer]) -> None:
            nonlocal gone
            gone = True
            work.cancel()

        def too_late() -> None:
            nonlocal late
            late = True
            work.cancel()

        answer: Deferred[Answer] = Deferred(leave)
        work.addBoth(answer.callback)
        timer = self._clock.callLater(self._seconds, too_late)
        try:
            return await answer
        except Exception as e:
            if gone:
                # whoever waited gave up; Twisted calls that by the names of many errors
                raise CancelledError from None
            if late:
                raise Unavailable(f"it gave no whole answer within {self._seconds:g} s") from None
            raise Unavailable(self._described(_cause(e))) from None
        finally:
            if timer.active():
                timer.cancel()

    async def _exchange(self, url: bytes, headers: Headers, body: bytes, over: Callable[[], bool]) -> Answer:
        if self._trust is not None:
            await self._trust.refresh()
        try:
            answer = await self._once(url, headers, body)
        except Exception as e:
            # The receiver may have closed a kept connection at that very moment, which is nobody's fault. What it has
            # got twice has the same numbers.
            kept, self._kept = self._kept, False
            ended = isinstance(e, _UNANSWERED) and isinstance(_cause(e), (ConnectionDone, ConnectionLost))
            if over() or not kept or not ended:
                raise
            answer = await self._once(url, headers, body)
        self._kept = True
        return answer

    async def _once(self, url: bytes, headers: Headers, body: bytes) -> Answer:
        response: Any = await self._agent.request(b"POST", url, headers.copy(), _Written(body))
        read = _Read()
        response.deliverBody(read)
        return Answer(
            status=response.code,
            body=await read.whole,
            retry_after=_retry_after(response.headers),
            location=_location(response.headers),
        )

    async def _body(self, pieces: Iterable[bytes], *, plain: bool = False) -> bytes:
        packer = None if plain or not self._compress else zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
        parts: list[bytes] = []
        size = 0
        for piece in pieces:
            parts.append(piece if packer is None else packer.compress(piece))
            size += len(piece)
            if size >= SLICE_BYTES:
                size = 0
                await deferLater(self._clock, 0)
        if packer is not None:
            parts.append(packer.flush())
        return b"".join(parts)

    # -- judging ------------------------------------------------------------------------------------------------------
    def taken(self, records: Sequence[Sealed]) -> None:
        """The receiver has them. Parts of a batch that was refused are no sign that it takes records again."""
        if records[-1].seq > self._refused:
            self._said.clear()

    def check(self, answer: Answer, records: Sequence[Sealed]) -> None:
        """
        Returns when the answer says that the records are there.

        :raise Unavailable: they are to be sent again.
        :raise Rejected: the answer is about them.
        """
        status = answer.status
        if answer.good and not answer.is_page:
            return
        # a proxy's page is about the request as such, unless that is too large for it
        refused = status == _TOO_LARGE or (
            status in _ABOUT_RECORDS and not answer.is_page and not self._speaks_tls(answer)
        )
        if 400 <= status < 500 and status not in _FOR_NOW:
            if refused:
                self._refused = max(self._refused, records[-1].seq)
            self._complain(answer, len(records))
        if refused:
            raise Rejected(self.quoted(answer))
        raise self.unavailable(answer)

    def unavailable(self, answer: Answer) -> Unavailable:
        """What to raise for an answer that is not about the records."""
        names, status = self._names, answer.status
        advice = ""
        if answer.good:
            advice = f"a web page, not a receiver of records; check {names.url}"
        elif 300 <= status < 400:
            where = f" to {answer.location}" if answer.location else ""
            advice = f"the URL redirects{where}; write the final one into {names.url}"
        elif self._speaks_tls(answer):
            advice = f"it speaks TLS on this port; begin {names.url} with https://"
        elif status in (401, 403):
            advice = names.access
        elif status in (404, 405) or status in _ABOUT_RECORDS:
            advice = f"check {names.url}"
        elif status == 407:
            advice = f"a proxy wants a login, which is not supported; write a URL into {names.url} that needs none"
        quoted = self.quoted(answer)
        return Unavailable(f"{quoted}; {advice}" if advice else quoted, answer.retry_after)

    def quoted(self, answer: Answer) -> str:
        """The answer in one short line."""
        said = self._printable(answer.body)[:QUOTED_CHARACTERS]
        return f"it answered {answer.status}" + (f": {said}" if said else "")

    def _complain(self, answer: Answer, events: int) -> None:
        if answer.status in self._said:
            return
        self._said.add(answer.status)
        body = self._printable(answer.body).encode()[:LOGGED_BYTES].decode(errors="ignore")
        self._log.error(
            "{message}",
            message=f"AUDIT {self._name}: permanent HTTP error",
            attributes={"status": answer.status, "body": body, "events": events},
        )

    def _printable(self, body: bytes) -> str:
        # before anything is cut off: half a token is still too much
        text = body.decode(errors="replace")
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())

    @staticmethod
    def _speaks_tls(answer: Answer) -> bool:
        said = answer.body.decode(errors="replace").lower()
        return answer.status == 400 and any(words in said for words in _PLAIN_TO_TLS)

    def _described(self, e: BaseException) -> str:
        words = "" if self._trust is None else self._trust.explain(e)
        if words:
            return words
        if isinstance(e, (ConnectionDone, ConnectionLost)):
            return "it closed the connection before its answer was whole"
        text = " ".join(str(e).split())
        if isinstance(e, ValueError) and text:
            # a file of certificates, named with what to do
            return text
        return f"{type(e).__name__}: {text}"[:300] if text else type(e).__name__


# -- the parts of a request -------------------------------------------------------------------------------------------
@implementer(IBodyProducer)
class _Written:
    """A body that is whole in memory already, and bounded by the size of a batch."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length: Any = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """All is written."""

    def resumeProducing(self) -> None:
        """See above."""

    def stopProducing(self) -> None:
        """See above."""


class _Read(TwistedProtocol):
    """Collects an answer. One that is too long has said enough: the connection goes, what was read stands."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._length = 0
        self._over = False
        self.whole: Deferred[bytes] = Deferred(self._cancelled)

    def dataReceived(self, data: bytes) -> None:
        if self._over:
            return
        self._parts.append(data[: ANSWER_BYTES - self._length])
        self._length += len(data)
        if self._length > ANSWER_BYTES:
            self._end()
            self.whole.callback(b"".join(self._parts))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._over:
            return
        self._over = True
        # without a length the end of the connection ends the body
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(b"".join(self._parts))
        else:
            self.whole.errback(reason)

    def _cancelled(self, _: Deferred[bytes]) -> None:
        self._end()

    def _end(self) -> None:
        self._over = True
        transport: Any = self.transport
        if transport is None:
            return
        # a peer that does not listen would hold a mere loseConnection up
        getattr(transport, "abortConnection", transport.loseConnection)()


def _retry_after(headers: Headers) -> float | None:
    """
    Seconds (RFC 9110 section 10.2.3). A date is compared with the date of the answer itself, by the receiver's own
    clock; without one it says nothing.
    """
    text = _first(headers, "retry-after")
    if text.isascii() and text.isdigit():
        return float(text[:_LONGEST_NUMBER])
    until, now = _date(text), _date(_first(headers, "date"))
    if until is None or now is None:
        return None
    return max(0.0, (until - now).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _location(headers: Headers) -> str:
    text = _first(headers, "location")
    try:
        parts = urlsplit(text)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return ""
    where = f"{parts.scheme}://{host}{parts.path}" if host else parts.path
    return where[:QUOTED_CHARACTERS] if where.isprintable() else ""


def _first(headers: Headers, name: str) -> str:
    return (headers.getRawHeaders(name) or [""])[0].strip()


def _cause(e: BaseException) -> BaseException:
    """Twisted hides the cause in a list of failures, of which the end of the connection is the least telling."""
    reasons = [reason.value for reason in getattr(e, "reasons", None) or () if isinstance(reason, Failure)]
    causes = [_cause(value) for value in reasons if value is not None and not isinstance(value, ResponseDone)]
    if isinstance(e, ResponseFailed) and not isinstance(e, ResponseNeverReceived):
        # the answer had begun; what the parser says about its end is of no use to an operator
        causes = [cause for cause in causes if isinstance(cause, (ConnectionDone, ConnectionLost))] or causes
    else:
        causes = [cause for cause in causes if not isinstance(cause, (ConnectionDone, ConnectionLost))] or causes
    return (causes or [e])[0]
