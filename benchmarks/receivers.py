"""
Receivers of audit records and of messages, which do nothing but count, in a process of their own:
``python -m benchmarks.receivers``.

It prints a line of JSON with its ports. When told a number of records on standard input it forgets what came before,
and prints, once every sink that had something has so many, how many came and when the last of them was complete, in
seconds of the system's monotonic clock.
"""

from __future__ import annotations

import json
import time
import zlib
from typing import Any

from twisted.internet import reactor as any_reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineReceiver

reactor: Any = any_reactor

# What stands once in every record, as each sink writes it.
MARKS = {"splunk_hec": b'{"event":', "loki": b'{\\"seq\\":', "webhook": b'"event":"challenge_created"'}
ANSWERS = {
    "splunk_hec": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 27\r\n\r\n"
    b'{"text":"Success","code":0}',
    "loki": b"HTTP/1.1 204 No Content\r\n\r\n",
    "webhook": b"HTTP/1.1 204 No Content\r\n\r\n",
}
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


class Tally:
    """Counts by sink, since the last order, and tells when each has what was ordered."""

    def __init__(self) -> None:
        self._wanted = 0
        self._sinks: set[str] = set()
        self._counts: dict[str, int] = {}
        self._at: dict[str, float] = {}

    def order(self, wanted: int, sinks: list[str]) -> None:
        self._wanted, self._sinks = wanted, set(sinks)
        self._counts = dict.fromkeys(sinks, 0)
        self._at = {}

    def came(self, sink: str, count: int) -> None:
        if sink not in self._sinks:
            return
        self._counts[sink] += count
        if self._counts[sink] >= self._wanted and sink not in self._at:
            self._at[sink] = time.monotonic()
            if len(self._at) == len(self._sinks):
                print(json.dumps({"at": self._at, "counts": self._counts}), flush=True)


class Lines(Protocol):
    """Syslog with newlines."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def dataReceived(self, data: bytes) -> None:
        self._tally.came("syslog", data.count(b"\n"))


class Posts(Protocol):
    """As much HTTP as our sinks speak: requests with a length, one after the other."""

    def __init__(self, sink: str, tally: Tally) -> None:
        self._sink, self._tally = sink, tally
        self._buffer = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        while True:
            end = self._buffer.find(_HEAD_END)
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            at = head.index(_LENGTH) + len(_LENGTH)
            length = int(head[at:].split(b"\r\n", 1)[0])
            start = end + len(_HEAD_END)
            if len(self._buffer) < start + length:
                return
            body = bytes(self._buffer[start : start + length])
            del self._buffer[: start + length]
            if b"content-encoding: gzip" in head:
                body = zlib.decompress(body, 31)
            assert self.transport is not None
            self.transport.write(ANSWERS[self._sink])
            self._tally.came(self._sink, body.count(MARKS[self._sink]))


class Orders(LineReceiver):
    """A number and the names of sinks on a line; the end of the input is the end of the process."""

    delimiter = b"\n"

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def lineReceived(self, line: bytes) -> None:
        wanted, *sinks = line.decode().split()
        self._tally.order(int(wanted), sinks)
        print(json.dumps({"ordered": int(wanted)}), flush=True)

    def connectionLost(self, reason: Any = None) -> None:
        if reactor.running:
            reactor.stop()


def _listen(make: Any) -> int:
    factory = Factory.forProtocol(make)
    factory.noisy = False
    return int(reactor.listenTCP(0, factory, interface="127.0.0.1").getHost().port)


def main() -> None:
    tally = Tally()
    ports = {"syslog": _listen(lambda: Lines(tally))}
    for sink in MARKS:
        ports[sink] = _listen(lambda sink=sink: Posts(sink, tally))
    StandardIO(Orders(tally))
    print(json.dumps(ports), flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
