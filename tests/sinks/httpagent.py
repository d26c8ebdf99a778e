"""An agent without a network, for the tests of the HTTP sinks."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseNeverReceived
from twisted.web.http_headers import Headers


@dataclass(frozen=True, slots=True)
class Posted:
    """A request that came. ``body`` is unpacked, ``wire`` as it was sent."""

    method: bytes
    url: str
    headers: Headers
    wire: bytes

    @property
    def body(self) -> bytes:
        return gzip.decompress(self.wire) if self.header("content-encoding") == "gzip" else self.wire

    def header(self, name: str) -> str | None:
        values = self.headers.getRawHeaders(name)
        assert values is None or len(values) == 1, values
        return None if values is None else values[0]


class Reply:
    """An answer; ``ends`` is what its body ends with, None: it does not end."""

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        ends: Exception | None = ResponseDone(),  # noqa: B008  a value
    ) -> None:
        self.code = status
        self.headers = Headers({name: [value] for name, value in (headers or {}).items()})
        self._body, self._ends = body, ends
        self.aborted = False

    def deliverBody(self, protocol: Any) -> None:
        protocol.makeConnection(self)
        for start in range(0, len(self._body), 1000):
            protocol.dataReceived(self._body[start : start + 1000])
        if self._ends is not None:
            protocol.connectionLost(Failure(self._ends))

    def abortConnection(self) -> None:
        self.aborted = True

    def loseConnection(self) -> None:
        raise AssertionError("a peer that does not listen holds that up")


class Agent:
    """
    Answers requests from a list, the last answer again and again: a :class:`Reply`, an exception, None for no answer
    at all, or a function of the request that gives one of these.

    :ivar posted: what came.
    :ivar cancelled: how many requests were given up.
    """

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.posted: list[Posted] = []
        self.cancelled = 0
        self.closed = False

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: Any = None
    ) -> Deferred[Any]:
        parts: list[bytes] = []

        class Consumer:
            def write(self, data: bytes) -> None:
                parts.append(data)

        bodyProducer.startProducing(Consumer())
        wire = b"".join(parts)
        assert len(wire) == bodyProducer.length
        assert headers is not None
        self.posted.append(Posted(method, uri.decode(), headers, wire))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Callable):  # type: ignore[arg-type]
            reply = reply(self.posted[-1])
        if reply is None:
            return Deferred(self._cancel)
        return fail(reply) if isinstance(reply, Exception) else succeed(reply)

    def _cancel(self, deferred: Deferred[Any]) -> None:
        self.cancelled += 1
        # as Twisted does: a cancelled request ends by the name of another error
        deferred.errback(ResponseNeverReceived([Failure(ConnectionDone("cancelled"))]))

    async def close(self) -> None:
        self.closed = True
