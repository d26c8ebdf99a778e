"""
Bounded HTTP requests to servers that we depend on but do not trust with our memory or our time.

No redirect is followed, no compressed answer taken (it could grow without bound), no answer read beyond its limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from OpenSSL.SSL import Connection
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.python.failure import Failure
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

CONNECT_SECONDS = 5.0
# A connection that nobody uses is kept this long: within a run of requests, not until the next one.
KEPT_SECONDS = 15
# Too Many Requests and Service Unavailable.
_MAY_SAY_WHEN = (429, 503)


class Unanswered(Exception):
    """No usable connection, or no whole answer in time. Trying again may help."""


class Nonsense(Exception):
    """It answered, but not with what was asked for. The message says what was wrong, without quoting the answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """:ivar retry_after: the header of this name as it came (RFC 9110 section 10.2.3), empty when there was none."""

    status: int
    body: bytes
    retry_after: str = ""


class Fetch:
    """
    Requests over an injected treq client.

    :param http: anything with treq's ``request``.
    :param clock: an ``IReactorTime``; measures the time limits.
    """

    def __init__(self, http: Any, clock: Any) -> None:
        self._http, self._clock = http, clock

    async def __call__(
        self,
        method: str,
        url: str,
        *,
        limit: int,
        seconds: float,
        headers: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
    ) -> Answer:
        """
        One request and its whole answer.

        :param limit: bytes of the body; at 0 the body is not read at all.
        :param seconds: for everything, from connecting to the last byte.
        :raise Unanswered: see there; the message names the cause.
        :raise Nonsense: the body is longer than ``limit``.
        """
        work = Deferred.fromCoroutine(self._request(method, url, limit, headers or {}, data))
        gone = False

        def leave(_: Deferred[Answer]) -> None:
            nonlocal gone
            gone = True
            work.cancel()

        answer: Deferred[Answer] = Deferred(leave)
        work.addBoth(answer.callback)
        late = self._clock.callLater(seconds, work.cancel)
        try:
            return await answer
        except Nonsense:
            raise
        except Exception as e:
            if gone:  # whoever waited; Twisted calls that by other names too, such as a name that was not found
                raise CancelledError from None
            if not late.active():
                raise Unanswered(f"no answer within {seconds:g} s") from None
            raise Unanswered(_described(_cause(e))) from None
        finally:
            if late.active():
                late.cancel()

    async def _request(
        self, method: str, url: str, limit: int, headers: Mapping[str, str], data: Mapping[str, str] | None
    ) -> Answer:
        response = await self._http.request(
            method,
            url,
            headers={"Accept": "application/json", **headers},
            data=None if data is None else dict(data),
            allow_redirects=False,
            unbuffered=True,
            reactor=self._clock,
        )
        body = _Body(limit)
        response.deliverBody(body)
        status = response.code
        asked = response.headers.getRawHeaders(b"retry-after", [b""])[0] if status in _MAY_SAY_WHEN else b""
        return Answer(status, await body.whole, asked.decode("latin-1"))


class _Body(Protocol):
    """Collects a body up to its limit; whoever stops waiting closes the connection."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._length = 0
        self._over = False
        self.whole: Deferred[bytes] = Deferred(self._cancelled)

    def connectionMade(self) -> None:
        if not self._limit:
            self._end(b"")

    def dataReceived(self, data: bytes) -> None:
        self._length += len(data)
        if self._over:
            return
        if self._length > self._limit:
            self._end(Failure(Nonsense(f"the answer is longer than {self._limit} bytes")))
        else:
            self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._over:
            return
        self._over = True
        # Without a length the end of the connection ends the body; whoever parses it notices a missing part.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(b"".join(self._parts))
        else:
            self.whole.errback(reason)

    def _end(self, result: bytes | Failure) -> None:
        self._over = True
        self._parts.clear()
        self._close()
        if isinstance(result, Failure):
            self.whole.errback(result)
        else:
            self.whole.callback(result)

    def _cancelled(self, _: Deferred[bytes]) -> None:
        self._over = True
        self._parts.clear()
        self._close()

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


def _cause(e: BaseException) -> BaseException:
    """Twisted hides the cause in a list of failures."""
    for reason in getattr(e, "reasons", None) or ():
        if isinstance(reason, Failure) and reason.value is not None and not reason.check(ResponseDone):
            return _cause(reason.value)
    return e


def _described(e: BaseException) -> str:
    """In one line of bounded length."""
    text = " ".join(str(e).split())
    return f"{type(e).__name__}: {text}"[:300] if text else type(e).__name__


# -- the client for real connections ----------------------------------------------------------------------------------
def build_http_client(reactor: Any, insecure: bool = False, pool: HTTPConnectionPool | None = None) -> HTTPClient:
    """
    A treq client with connection limits. It reads no proxy variables, and keeps no connection open but in ``pool``.

    :param insecure: certificates are not verified (``IDENTREE_OIDC_INSECURE_SKIP_VERIFY``).
    """
    policy: Any = _Unverified() if insecure else BrowserLikePolicyForHTTPS()
    return HTTPClient(Uncompressed(Agent(reactor, policy, connectTimeout=CONNECT_SECONDS, pool=pool)))


def build_pool(reactor: Any, connections: int) -> HTTPConnectionPool:
    """
    Keeps connections open for a run of requests to one server. Whoever made it closes it with
    ``closeCachedConnections``.

    :param connections: that are kept while they are not in use.
    """
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = connections
    pool.cachedConnectionTimeout = KEPT_SECONDS
    return pool


@implementer(IAgent)
class Uncompressed:
    """
    Asks for plain answers and refuses others: treq would unpack them, and a few kilobytes can unpack to gigabytes.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        headers = headers.copy() if headers is not None else Headers()
        headers.setRawHeaders(b"accept-encoding", [b"identity"])
        return self._agent.request(method, uri, headers, bodyProducer).addCallback(_plain)


def _plain(response: Any) -> Any:
    if any(value.strip().lower() != b"identity" for value in response.headers.getRawHeaders(b"content-encoding", [])):
        response.deliverBody(_Body(0))  # closes the connection
        raise Nonsense("the answer is compressed, which was not asked for")
    return response


@implementer(IPolicyForHTTPS)
class _Unverified:
    def __init__(self) -> None:
        self._context = CertificateOptions(verify=False).getContext()

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        return cast(IOpenSSLClientConnectionCreator, _UnverifiedConnection(self._context, hostname))


@implementer(IOpenSSLClientConnectionCreator)
class _UnverifiedConnection:
    def __init__(self, context: Any, hostname: bytes) -> None:
        self._context, self._hostname = context, hostname

    def clientConnectionForTLS(self, tlsProtocol: Any) -> Connection:
        connection = Connection(self._context, None)
        connection.set_tlsext_host_name(self._hostname)
        return connection
