"""The sink for Splunk's HTTP event collector."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from identree.sinks import splunk
from identree.sinks.follower import Rejected, Unavailable
from identree.sinks.formats import NATIVE, Format
from identree.sinks.splunk import ACK_PATIENCE_SECONDS, SplunkHEC
from tests.sinks.httpagent import Agent, Posted, Reply
from tests.sinks.records import sealed

URL = "https://splunk.example.com:8088/services/collector/event"
CHANNEL = "0d3c2b1a-1111-4222-8333-444455556666"
TOKEN = "token-0123456789"
SUCCESS = Reply(200, b'{"text":"Success","code":0}')

CEF = Format(
    name="cef",
    text=lambda record: f'CEF:0|"é\\|{record.seq}'.encode(),
    wire=lambda record: b"",
    is_json=False,
    begins=b"CEF:",
    place=lambda line: None,
)


def said(code: int, status: int = 400, **more: object) -> Reply:
    return Reply(status, json.dumps({"text": "words", "code": code, **more}).encode())


class _Shipping(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def sink(self, *replies: Any, url: str = URL, gzip: bool = False, form: Format = NATIVE) -> SplunkHEC:
        self.agent = Agent(*replies)
        return SplunkHEC(
            url,
            TOKEN,
            agent=self.agent,
            trust=None,
            channel=CHANNEL,
            form=form,
            gzip=gzip,
            clock=self.clock,
            monotonic=self.clock.seconds,
        )

    def ship(self, sink: SplunkHEC, count: int = 2) -> Deferred[None]:
        return Deferred.fromCoroutine(sink.ship(sealed(count)))

    def unavailable(self, *replies: Any) -> str:
        return str(self.failureResultOf(self.ship(self.sink(*replies)), Unavailable).value)


class RequestTests(_Shipping):
    """What is sent."""

    def test_body(self) -> None:
        """One object per event, each with its newline; the event is the record as it stands in the JSON log."""
        first, second = sealed(2)
        self.successResultOf(self.ship(self.sink(SUCCESS)))
        [posted] = self.agent.posted
        rest = b',"sourcetype":"identree:audit","source":"identree"}\n'
        self.assertEqual(posted.body, b'{"event":' + first.plain + rest + b'{"event":' + second.plain + rest)
        self.assertIn(b"fix <a> & ", posted.body)

    def test_request(self) -> None:
        """The URL as it is, the token, and the data channel."""
        self.successResultOf(self.ship(self.sink(SUCCESS, url=URL + "?a=b", gzip=True)))
        [posted] = self.agent.posted
        self.assertEqual((posted.method, posted.url), (b"POST", URL + "?a=b"))
        self.assertEqual(posted.header("authorization"), f"Splunk {TOKEN}")
        self.assertEqual(posted.header("content-type"), "application/json")
        self.assertEqual(posted.header("x-splunk-request-channel"), CHANNEL)
        self.assertEqual(posted.header("content-encoding"), "gzip")
        self.assertEqual(len(posted.body.splitlines()), 2)

    def test_not_json(self) -> None:
        """A format that is not JSON goes as a JSON string."""
        self.successResultOf(self.ship(self.sink(SUCCESS, form=CEF), 1))
        event = json.loads(self.agent.posted[0].body)
        self.assertEqual(event["event"], 'CEF:0|"é\\|0')

    def test_limits(self) -> None:
        """Batches of 100, or every 5 seconds; what was answered is settled."""
        sink = self.sink(SUCCESS)
        self.assertEqual((sink.name, sink.batch, sink.linger_seconds, sink.settle_seconds), ("splunk_hec", 100, 5, 0))

    def test_bad_url(self) -> None:
        """A URL that is none stops the start."""
        with self.assertRaises(ValueError):
            self.sink(SUCCESS, url="udp://h")

    def test_close(self) -> None:
        """Closing lets go of the connections."""
        self.successResultOf(Deferred.fromCoroutine(self.sink(SUCCESS).close()))
        self.assertTrue(self.agent.closed)


class OutcomeTests(_Shipping):
    """What the collector's answers mean."""

    def test_success(self) -> None:
        """Code 0, or an answer without a code, is success."""
        for body in (b'{"text":"Success","code":0}', b"", b"OK", b"[]", b"[" * 10_000, b'{"ackId":null}'):
            self.successResultOf(self.ship(self.sink(Reply(200, body))))

    def test_other_code(self) -> None:
        """Another code under a good status has not taken the records."""
        self.assertIn("its code is not 0", self.unavailable(said(9, 200)))
        self.unavailable(Reply(200, b'{"code":[7]}'))

    def test_operators(self) -> None:
        """What an administrator puts right in Splunk sets no record aside, and the text says what it is."""
        for code, words in ((7, "indexes"), (10, "channel"), (11, "channel"), (14, "acknowledgement")):
            self.assertIn(words, self.unavailable(said(code)))
        self.assertIn(splunk.TOKEN_SETTING, self.unavailable(said(4, 403)))
        self.assertIn(splunk.TOKEN_SETTING, self.unavailable(said(2, 401)))
        self.assertIn(splunk.URL_SETTING, self.unavailable(Reply(404, b"<!doctype html>")))

    def test_refused(self) -> None:
        """What is wrong with the events themselves refuses them."""
        for code in (5, 6, 12, 13, 15):
            error = self.failureResultOf(self.ship(self.sink(said(code, **{"invalid-event-number": 1}))), Rejected)
            self.assertIn(f'"code": {code}', str(error.value))

    def test_busy(self) -> None:
        """A busy collector is asked again, at its own time."""
        reply = Reply(503, b'{"text":"Server is busy","code":9}', {"retry-after": "7"})
        error = self.failureResultOf(self.ship(self.sink(reply)), Unavailable).value
        self.assertEqual(error.retry_after, 7.0)

    def test_no_secrets(self) -> None:
        """The token and what the URL holds are in no text, even when the collector repeats them."""
        url = "https://user:passw0rd@h/services/collector?key=sesame"
        echo = f"{TOKEN} user:passw0rd key=sesame".encode()
        for status in (302, 400, 401, 404, 500):
            work = self.ship(self.sink(Reply(status, echo), url=url))
            text = str(self.failureResultOf(work, Unavailable, Rejected).value)
            for secret in (TOKEN, "passw0rd", "sesame"):
                self.assertNotIn(secret, text)
        self.flushLoggedErrors()


class AcknowledgementTests(_Shipping):
    """Tokens with indexer acknowledgement."""

    def answers(self, *acks: Any) -> list[Any]:
        return [Reply(200, b'{"text":"Success","code":0,"ackId":0}'), *acks]

    def asked(self) -> list[Posted]:
        return self.agent.posted[1:]

    def advance(self, seconds: float) -> None:
        self.clock.pump([0.25] * int(seconds * 4))

    def test_acknowledged(self) -> None:
        """The batch counts when the indexer has it, asked for with growing pauses."""
        no, yes = Reply(200, b'{"acks":{"0":false}}'), Reply(200, b'{"acks":{"0":true}}')
        work = self.ship(self.sink(*self.answers(no, no, yes)))
        self.assertNoResult(work)
        self.advance(0.75)
        self.assertEqual(len(self.asked()), 2)
        self.assertNoResult(work)
        self.advance(1)
        self.successResultOf(work)
        question = self.asked()[0]
        self.assertEqual(question.url, f"https://splunk.example.com:8088/services/collector/ack?channel={CHANNEL}")
        self.assertEqual((question.body, question.header("authorization")), (b'{"acks":[0]}', f"Splunk {TOKEN}"))

    def test_patience_ends(self) -> None:
        """Without an acknowledgement the batch is sent again; the questions before that are few."""
        work = self.ship(self.sink(*self.answers(Reply(200, b'{"acks":{"0":false}}'))))
        self.advance(ACK_PATIENCE_SECONDS - 1)
        self.assertNoResult(work)
        self.advance(6)
        self.assertIn("within 60 s; they are sent again", str(self.failureResultOf(work, Unavailable).value))
        self.assertLess(len(self.asked()), 25)

    def test_trouble(self) -> None:
        """A question that gets no answer is asked again."""
        for trouble in (Reply(503, b"busy"), ConnectionRefusedError(), Reply(200, b"<p>"), Reply(200, b'{"acks":1}')):
            work = self.ship(self.sink(*self.answers(trouble, Reply(200, b'{"acks":{"0":true}}'))))
            self.advance(1)
            self.successResultOf(work)

    def test_trouble_is_said(self) -> None:
        """What was wrong with the last question is in the text."""
        work = self.ship(self.sink(*self.answers(Reply(503, b"busy"))))
        self.advance(65)
        self.assertIn("within 60 s: it answered 503: busy;", str(self.failureResultOf(work, Unavailable).value))

    def test_no_endpoint(self) -> None:
        """A collector that hands out numbers and answers no questions about them has to be put right."""
        work = self.ship(self.sink(*self.answers(Reply(404, b"not here"))))
        self.advance(1)
        self.assertIn("endpoint must be reachable", str(self.failureResultOf(work, Unavailable).value))
        work = self.ship(self.sink(*self.answers(said(14))))
        self.advance(1)
        self.assertIn("acknowledgement is off", str(self.failureResultOf(work, Unavailable).value))

    def test_no_number(self) -> None:
        """An id that is no number cannot be asked for."""
        for ack in (b'"x"', b"-1", b"true", b"1.5"):
            self.assertIn("no number", self.unavailable(Reply(200, b'{"code":0,"ackId":%b}' % ack)))

    def test_cancelled(self) -> None:
        """Waiting for an acknowledgement ends when nobody wants it any more."""
        work = self.ship(self.sink(*self.answers(Reply(200, b'{"acks":{"0":false}}'))))
        self.advance(2)
        work.cancel()
        self.failureResultOf(work, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_paths(self) -> None:
        """Where acknowledgements are asked for is known from the URL."""
        for path, expected in (
            ("/services/collector/event", "/services/collector/ack"),
            ("/services/collector", "/services/collector/ack"),
            ("/services/collector/", "/services/collector/ack"),
            ("/services/collector/event/1.0", "/services/collector/ack"),
            ("/a/collector/b/collector/event", "/a/collector/b/collector/ack"),
            ("/hec/events", "/hec/ack"),
            ("/", "/ack"),
        ):
            self.assertEqual(splunk._ack_path(path), expected)
