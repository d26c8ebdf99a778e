"""
Splunk's HTTP event collector as its documentation has it ("HTTP Event Collector REST API endpoints", "About HTTP Event
Collector Indexer Acknowledgment", "Possible error codes"): a stand-in for tests.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from tests.e2e.httpreceiver import Asked, HttpReceiver, Told

TOKEN = "8f7e6d5c-0000-4000-8000-0123456789ab"
EVENT_PATHS = ("/services/collector", "/services/collector/event", "/services/collector/event/1.0")
ACK_PATHS = ("/services/collector/ack", "/services/collector/ack/1.0")
HEALTH_PATHS = ("/services/collector/health", "/services/collector/health/1.0")
# What an event may have beside itself.
KEYS = {"time", "host", "source", "sourcetype", "index", "fields", "event"}


class HEC(HttpReceiver):
    """
    :ivar stored: the events that were taken, in the order in which they came: whole objects, with the text of
        ``event`` as it was sent under ``raw``.
    :ivar ack: whether the token has indexer acknowledgement.
    :ivar acks_after: how many questions an acknowledgement takes; -1: it never comes.
    :ivar poison: an event that holds this text is invalid; empty: none is.
    :ivar disabled: whether the token is switched off.
    :ivar indexes: names that an event may ask for.
    :ivar channels: that were used.
    """

    def __init__(self, port: int = 0, *, token: str = TOKEN, ack: bool = False) -> None:
        super().__init__(port)
        self.token = token
        self.ack = ack
        self.acks_after = 1
        self.poison = ""
        self.disabled = False
        self.indexes = {"main"}
        self.stored: list[dict[str, Any]] = []
        self.channels: set[str] = set()
        # per channel: the next id, and how often each one was asked for
        self._next: dict[str, int] = {}
        self._asked_for: dict[tuple[str, int], int] = {}

    @property
    def url(self) -> str:
        return f"{self.origin}/services/collector/event"

    @property
    def records(self) -> list[bytes]:
        """The text of each event in the order of coming."""
        with self.lock:
            return [event["raw"].encode() for event in self.stored]

    def seqs(self) -> list[int]:
        with self.lock:
            return [event["event"]["seq"] for event in self.stored]

    def busy(self) -> Told:
        return _said(503, "Server is busy", 9)

    def take(self, asked: Asked) -> Told:
        if asked.path in HEALTH_PATHS:
            return _said(200, "HEC is healthy", 17) if asked.method == "GET" else _not_allowed()
        if asked.path not in (*EVENT_PATHS, *ACK_PATHS):
            return _said(404, "The requested URL was not found on this server.", 404)
        if asked.method != "POST":
            return _not_allowed()
        refusal = self._refusal(asked)
        if refusal is not None:
            return refusal
        if asked.path in ACK_PATHS:
            return self._acknowledge(asked)
        return self._events(asked)

    def _refusal(self, asked: Asked) -> Told | None:
        given = asked.headers.get("authorization", "")
        scheme, _, token = given.partition(" ")
        if not given:
            return _said(401, "Token is required", 2)
        if scheme.lower() != "splunk" or not token:
            return _said(401, "Invalid authorization", 3)
        if token != self.token:
            return _said(403, "Invalid token", 4)
        if self.disabled:
            return _said(403, "Token disabled", 1)
        return None

    def _channel(self, asked: Asked) -> str | Told:
        channel = asked.headers.get("x-splunk-request-channel") or asked.query.get("channel", "")
        if not channel:
            return _said(400, "Data channel is missing", 10)
        try:
            return str(uuid.UUID(channel))
        except ValueError:
            return _said(400, "Invalid data channel", 11)

    # -- events -------------------------------------------------------------------------------------------------------
    def _events(self, asked: Asked) -> Told:
        channel: str | Told = ""
        if self.ack or "x-splunk-request-channel" in asked.headers:
            channel = self._channel(asked)
            if isinstance(channel, Told):
                return channel
            self.channels.add(channel)
        try:
            text = asked.body.decode()
        except UnicodeDecodeError:
            return _said(400, "Invalid data format", 6, 0)
        if not text.strip():
            return _said(400, "No data", 5)
        number, place = 0, 0
        decoder = json.JSONDecoder()
        while text[place:].strip():
            place += len(text[place:]) - len(text[place:].lstrip())
            try:
                event, end = decoder.raw_decode(text, place)
            except ValueError:
                return _said(400, "Invalid data format", 6, number)
            # as Splunk does: what stands before the bad event is taken
            wrong = self._wrong(event, text[place:end], number)
            if wrong is not None:
                return wrong
            start = text.index('"event":', place) + len('"event":')
            _, stop = decoder.raw_decode(text, start)
            self.stored.append({**event, "raw": text[start:stop]})
            place = end
            number += 1
        if not self.ack:
            return _said(200, "Success", 0)
        assert isinstance(channel, str)
        id = self._next.get(channel, 0)
        self._next[channel] = id + 1
        self._asked_for[channel, id] = 0
        return Told(200, json.dumps({"text": "Success", "code": 0, "ackId": id}).encode())

    def _wrong(self, event: Any, text: str, number: int) -> Told | None:
        if not isinstance(event, dict) or not set(event) <= KEYS or (self.poison and self.poison in text):
            return _said(400, "Invalid data format", 6, number)
        if "event" not in event:
            return _said(400, "Event field is required", 12, number)
        if event["event"] in ("", None, {}):
            return _said(400, "Event field cannot be blank", 13, number)
        if "index" in event and event["index"] not in self.indexes:
            return _said(400, "Incorrect index", 7, number)
        return None

    # -- acknowledgements ---------------------------------------------------------------------------------------------
    def _acknowledge(self, asked: Asked) -> Told:
        if not self.ack:
            return _said(400, "ACK is disabled", 14)
        channel = self._channel(asked)
        if isinstance(channel, Told):
            return channel
        try:
            ids = json.loads(asked.body)["acks"]
            answer = {str(int(id)): self._is_indexed(channel, int(id)) for id in ids}
        except (ValueError, TypeError, KeyError):
            return _said(400, "Invalid data format", 6)
        return Told(200, json.dumps({"acks": answer}).encode())

    def _is_indexed(self, channel: str, id: int) -> bool:
        if (channel, id) not in self._asked_for:
            return False
        self._asked_for[channel, id] += 1
        if self.acks_after < 0 or self._asked_for[channel, id] < self.acks_after:
            return False
        # an acknowledgement is given once
        del self._asked_for[channel, id]
        return True


def _said(status: int, text: str, code: int, number: int | None = None) -> Told:
    body: dict[str, object] = {"text": text, "code": code}
    if number is not None:
        body["invalid-event-number"] = number
    return Told(status, json.dumps(body).encode())


def _not_allowed() -> Told:
    return _said(405, "Method Not Allowed", 405)
