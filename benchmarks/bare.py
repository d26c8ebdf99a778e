"""
A Twisted web server without anything behind it, the peer of ours: ``python -m benchmarks.bare`` prints its port.

It answers with bytes as long as ours. ``/wait`` holds a request, ``/release`` lets the longest holding one go,
``/events`` is a stream, ``/wake`` writes to every stream.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet import reactor as any_reactor
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

reactor: Any = any_reactor
CREATED = (
    b'{"challenge_id":"9cfc96d5faed1d6af8853aab322e49c8","expires_in":120,"user_code":"GZDUYP-926377",'
    b'"verification_url":"http://127.0.0.1:50443/approve/GZDUYP-926377"}\n'
)
RELEASED = b'{"approval_token":"' + b"0" * 64 + b'","expires_in":100,"status":"approved"}\n'
FRAME = (
    b"event: update\ndata: challenge_created\n\n"
    b'id: 00000000-1\nevent: challenge_created\ndata: {"challenge":"9cfc96d5faed1d6af8853aab322e49c8"}\n\n'
)


class Bare(Resource):
    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.holding: deque[Any] = deque()
        self.streams: list[Any] = []

    def render(self, request: Any) -> Any:
        path = request.path
        request.content.read()
        request.setHeader(b"Content-Type", b"application/json")
        if path == b"/wait":
            self.holding.append(request)
            return NOT_DONE_YET
        if path == b"/events":
            request.write(b": connected\n\n")
            self.streams.append(request)
            return NOT_DONE_YET
        if path == b"/release" and self.holding:
            held = self.holding.popleft()
            held.setHeader(b"Content-Length", b"%d" % len(RELEASED))
            held.write(RELEASED)
            held.finish()
        if path == b"/wake":
            for stream in self.streams:
                stream.write(FRAME)
        request.setResponseCode(201)
        request.setHeader(b"Content-Length", b"%d" % len(CREATED))
        return CREATED


def main() -> None:
    site = Site(Bare())
    site.noisy = False
    port = reactor.listenTCP(0, site, interface="127.0.0.1", backlog=1024)
    reactor.callWhenRunning(lambda: print(port.getHost().port, flush=True))
    reactor.run()


if __name__ == "__main__":
    main()
