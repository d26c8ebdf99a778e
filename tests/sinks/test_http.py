"""What the HTTP sinks share: addresses, one bounded POST, and what answers mean."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseFailed
from twisted.web.http import PotentialDataLoss

from identree.sinks import http
from identree.sinks.follower import Rejected, Unavailable
from identree.sinks.http import ANSWER_BYTES, Names, Receiver, parse_address
from tests.sinks.httpagent import Agent, Reply
from tests.sinks.records import sealed

NAMES = Names(url="THE_URL", gzip="THE_GZIP", access="check THE_TOKEN")
TOKEN = "secret-token-0123"


class Turns(Clock):
    """:ivar turns: how often somebody let other work go first."""

    turns = 0

    def callLater(self, when: float, what: Any, *args: Any, **kwargs: Any) -> Any:
        self.turns += when == 0
        return super().callLater(when, what, *args, **kwargs)


class Trust:
    """Certificates that do, or do not."""

    def __init__(self, problem: Exception | None = None, explained: str = "") -> None:
        self.problem, self.explained, self.refreshed = problem, explained, 0

    async def refresh(self) -> None:
        self.refreshed += 1
        if self.problem is not None:
            raise self.problem

    def explain(self, problem: BaseException) -> str:
        return self.explained


class AddressTests(SynchronousTestCase):
    """URLs taken apart."""

    def test_parts(self) -> None:
        """Secrets of a URL are kept apart from what is sent as its address."""
        address = parse_address("https://me:p%40ss@splunk.example.com:8088/services/collector/event?a=b")
        self.assertEqual(
            (address.origin, address.path, address.query, address.login),
            ("https://splunk.example.com:8088", "/services/collector/event", "?a=b", "me:p@ss"),
        )
        self.assertEqual(address.basic, "Basic bWU6cEBzcw==")
        self.assertEqual(address.secrets, ("a=b", "me:p@ss", "p@ss", "bWU6cEBzcw=="))

    def test_secret_values(self) -> None:
        """Each value of the query is a secret, as it is written and as it is read, but for those that cannot be."""
        address = parse_address("https://h/p?index=main&token=ab%2Fcdef12&flag")
        self.assertEqual(address.secrets, ("index=main&token=ab%2Fcdef12&flag", "ab%2Fcdef12", "ab/cdef12"))

    def test_hosts(self) -> None:
        """Addresses keep their brackets, names become ASCII, and an empty path is the root."""
        self.assertEqual(parse_address("http://[::1]:3100").origin, "http://[::1]:3100")
        self.assertEqual(parse_address("http://bücher.example").origin, "http://xn--bcher-kva.example")
        self.assertEqual(parse_address("http://h").path, "/")

    def test_refused(self) -> None:
        """What is no URL is refused without being repeated."""
        bad = ["", "ftp://h/", "https://", "https://h:x/", "http://h/ü", "http://h/a b", "http://[::1", "h:80"]
        for url in [*bad, "https://me:passw0rd@h:x/", "http://me:passw0rd@h/ x"]:
            with self.assertRaises(ValueError) as caught:
                parse_address(url)
            self.assertNotIn("passw0rd", str(caught.exception))


class _Posting(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Turns()
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def receiver(self, *replies: Any, compress: bool = False, trust: Any = None) -> Receiver:
        self.agent = Agent(*replies)
        return Receiver(
            "test",
            NAMES,
            {"Authorization": f"Test {TOKEN}"},
            secrets=(TOKEN,),
            agent=self.agent,
            trust=trust,
            compress=compress,
            clock=self.clock,
            request_seconds=15.0,
            log=Logger(observer=lambda event: self.lines.append((event["message"], event["attributes"]))),  # type: ignore[misc]
        )

    def posted(self, receiver: Receiver) -> Deferred[Any]:
        return Deferred.fromCoroutine(receiver.post("http://h/p", b"body"))

    def why(self, receiver: Receiver) -> str:
        return str(self.failureResultOf(self.posted(receiver), Unavailable).value)

    def complaints(self) -> list[dict[str, Any]]:
        return [attributes for message, attributes in self.lines if message == "AUDIT test: permanent HTTP error"]


class PostTests(_Posting):
    """One request and its answer."""

    def test_answer(self) -> None:
        """What was asked, and what came back."""
        answer = self.successResultOf(self.posted(self.receiver(Reply(200, b"x" * 2500))))
        self.assertEqual((answer.status, answer.body), (200, b"x" * 2500))
        [posted] = self.agent.posted
        self.assertEqual((posted.method, posted.url, posted.body), (b"POST", "http://h/p", b"body"))
        self.assertEqual(posted.header("content-type"), "application/json")
        self.assertEqual(posted.header("authorization"), f"Test {TOKEN}")
        self.assertEqual(posted.header("user-agent"), "identree")
        self.assertIsNone(posted.header("content-encoding"))

    def test_late(self) -> None:
        """A receiver that does not answer is given up after the whole time, and nothing is left running."""
        work = self.posted(self.receiver(None))
        self.clock.advance(14.9)
        self.assertNoResult(work)
        self.clock.advance(0.2)
        self.assertEqual(str(self.failureResultOf(work, Unavailable).value), "it gave no whole answer within 15 s")
        self.assertEqual((self.agent.cancelled, self.clock.getDelayedCalls()), (1, []))

    def test_trickle(self) -> None:
        """An answer that never ends is cut off by the same limit."""
        reply = Reply(200, b"x", ends=None)
        work = self.posted(self.receiver(reply))
        self.clock.advance(15)
        self.failureResultOf(work, Unavailable)
        self.assertTrue(reply.aborted)

    def test_cancelled(self) -> None:
        """Who stops waiting gets a cancellation, not a failure of the receiver, and the request is given up."""
        work = self.posted(self.receiver(None))
        work.cancel()
        self.failureResultOf(work, CancelledError)
        self.assertEqual((self.agent.cancelled, self.clock.getDelayedCalls()), (1, []))

    def test_cancelled_after_success(self) -> None:
        """A request over a kept connection that is given up is not made again."""
        receiver = self.receiver(Reply(204), None)
        self.successResultOf(self.posted(receiver))
        work = self.posted(receiver)
        work.cancel()
        self.failureResultOf(work, CancelledError)
        self.assertEqual(len(self.agent.posted), 2)

    def test_long_answer(self) -> None:
        """Of a long answer only the beginning is read, and its status counts."""
        reply = Reply(200, b"x" * (ANSWER_BYTES + 5000), ends=None)
        answer = self.successResultOf(self.posted(self.receiver(reply)))
        self.assertEqual((answer.status, len(answer.body), reply.aborted), (200, ANSWER_BYTES, True))

    def test_no_length(self) -> None:
        """An answer without a length ends with its connection."""
        answer = self.successResultOf(self.posted(self.receiver(Reply(200, b"ok", ends=PotentialDataLoss()))))
        self.assertEqual(answer.body, b"ok")

    def test_cut(self) -> None:
        """An answer that ends in the middle is no answer, whatever its status."""
        problem = ResponseFailed([Failure(ConnectionDone()), Failure(ValueError("the parser"))])
        self.assertEqual(
            self.why(self.receiver(Reply(200, b"ok", ends=problem))),
            "it closed the connection before its answer was whole",
        )

    def test_no_connection(self) -> None:
        """Why there was no connection is said."""
        self.assertIn("refused", self.why(self.receiver(ConnectionRefusedError())))

    def test_explained(self) -> None:
        """What TLS has against it is said in the words of whoever knows the settings."""
        problem = http.ResponseNeverReceived([Failure(ConnectionLost()), Failure(SSL.Error())])
        self.assertEqual(self.why(self.receiver(problem, trust=Trust(explained="the CA"))), "the CA")

    def test_certificates(self) -> None:
        """Files of certificates are looked at before each request; one that cannot be used stops it."""
        trust = Trust()
        receiver = self.receiver(Reply(204), trust=trust)
        self.successResultOf(self.posted(receiver))
        self.successResultOf(self.posted(receiver))
        self.assertEqual(trust.refreshed, 2)
        trust.problem = ValueError("THE_CA_FILE: cannot be read")
        self.assertEqual(self.why(receiver), "THE_CA_FILE: cannot be read")
        self.assertEqual(len(self.agent.posted), 2)

    def test_kept_connection_ended(self) -> None:
        """A kept connection that ends without an answer is no failure: the request is made once more, and only once."""
        ended = http.ResponseNeverReceived([Failure(ConnectionLost())])
        receiver = self.receiver(Reply(204), ended, Reply(204), ended, ended)
        for _ in range(2):
            self.successResultOf(self.posted(receiver))
        self.assertEqual(len(self.agent.posted), 3)
        self.failureResultOf(self.posted(receiver), Unavailable)
        self.assertEqual(len(self.agent.posted), 5)

    def test_new_connection_ended(self) -> None:
        """A new connection that ends without an answer is a failure."""
        self.why(self.receiver(http.ResponseNeverReceived([Failure(ConnectionLost())])))
        self.assertEqual(len(self.agent.posted), 1)

    def test_close(self) -> None:
        """Closing lets go of the connections."""
        self.successResultOf(Deferred.fromCoroutine(self.receiver(None).close()))
        self.assertTrue(self.agent.closed)


class PatienceTests(_Posting):
    """Retry-After."""

    def asked(self, **headers: str) -> float | None:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.successResultOf(self.posted(self.receiver(Reply(429, b"", names))))
        error = self.failureResultOf(Deferred.fromCoroutine(self._checked(answer)), Unavailable).value
        found: float | None = error.retry_after
        return found

    async def _checked(self, answer: Any) -> None:
        self.receiver(None).check(answer, sealed(1))

    def test_seconds(self) -> None:
        """A number of seconds is taken, however large; what is none is not."""
        self.assertEqual(self.asked(retry_after="17"), 17.0)
        self.assertEqual(self.asked(retry_after="9" * 400), 999999999.0)
        for bad in ("", "-1", "1.5", "soon", "²"):
            self.assertIsNone(self.asked(retry_after=bad), bad)

    def test_date(self) -> None:
        """A date is counted from the date of the answer; without one, or when it cannot be read, it says nothing."""
        date = "Fri, 02 Jan 2026 03:04:05 GMT"
        self.assertEqual(self.asked(retry_after="Fri, 02 Jan 2026 03:05:05 GMT", date=date), 60.0)
        self.assertEqual(self.asked(retry_after="Fri, 02 Jan 2026 03:00:05 GMT", date=date), 0.0)
        self.assertIsNone(self.asked(retry_after="Fri, 02 Jan 2026 03:05:05 GMT"))
        self.assertIsNone(self.asked(retry_after="Fri, 99 Jan 2026 03:05:05 GMT", date=date))


class MeaningTests(_Posting):
    """What an answer means for the records."""

    def outcome(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Exception | None:
        receiver = self.receiver(Reply(status, body, headers))
        try:
            receiver.check(self.successResultOf(self.posted(receiver)), sealed(3))
        except (Unavailable, Rejected) as e:
            return e
        return None

    def test_delivered(self) -> None:
        """Two hundred and something is delivered."""
        for status in (200, 201, 202, 204):
            self.assertIsNone(self.outcome(status, b"ok"))

    def test_later(self) -> None:
        """What may be well later, or what an operator can put right, keeps the records waiting."""
        for status in (301, 302, 307, 308, 401, 403, 404, 405, 407, 408, 409, 418, 425, 429, 500, 502, 503, 504, 599):
            self.assertIsInstance(self.outcome(status), Unavailable, status)

    def test_never(self) -> None:
        """What is said about the records themselves refuses them."""
        for status in (400, 413, 415, 422):
            self.assertIsInstance(self.outcome(status, b"bad"), Rejected, status)

    def test_pages(self) -> None:
        """A web page is never an answer about records, good or bad, but for one that is about their size."""
        for status in (200, 400, 422):
            self.assertIsInstance(self.outcome(status, b"\n<html>Sign in</html>"), Unavailable, status)
        self.assertIsInstance(self.outcome(413, b"<html>Too Large</html>"), Rejected)

    def test_advice(self) -> None:
        """The text says which setting to look at."""
        self.assertEqual(str(self.outcome(403, b"no")), "it answered 403: no; check THE_TOKEN")
        self.assertEqual(str(self.outcome(404)), "it answered 404; check THE_URL")
        self.assertEqual(str(self.outcome(200, b"<a>")), "it answered 200: <a>; a web page, not a receiver of records; "
                         "check THE_URL")  # fmt: skip
        said = str(self.outcome(302, b"", {"location": "https://me:pw@new.example/x?token=1#f"}))
        self.assertEqual(
            said, "it answered 302; the URL redirects to https://new.example/x; write the final one into THE_URL"
        )

    def test_tls_port(self) -> None:
        """HTTP to a port for HTTPS is a mistake in the URL, though servers answer as if the request were bad."""
        for body in (
            b"Client sent an HTTP request to an HTTPS server.\n",
            b"The plain HTTP request was sent to HTTPS port",
        ):
            error = self.outcome(400, body)
            self.assertIsInstance(error, Unavailable)
            self.assertIn("begin THE_URL with https://", str(error))

    def test_quoted(self) -> None:
        """An answer is quoted in one short line of what can be printed, without our token even where it is cut."""
        body = b"a\x00\n\x1b[31m " + TOKEN.encode() + b" \xff" + b"y" * 500
        said = str(self.outcome(500, body))
        self.assertTrue(said.startswith("it answered 500: a [31m *** \ufffdyyy"), said)
        self.assertEqual(len(said), len("it answered 500: ") + 200)
        self.assertNotIn("secret", str(self.outcome(500, b"z" * 192 + TOKEN.encode())))

    def test_said_once(self) -> None:
        """An error that lasts is logged once per status until the receiver takes records again."""
        receiver = self.receiver(Reply(403, b"no"))
        denied = self.successResultOf(self.posted(receiver))
        for _ in range(3):
            with self.assertRaises(Unavailable):
                receiver.check(denied, sealed(2))
        self.assertEqual(self.complaints(), [{"status": 403, "body": "no", "events": 2}])
        receiver.taken(sealed(2))
        with self.assertRaises(Unavailable):
            receiver.check(denied, sealed(2))
        self.assertEqual(len(self.complaints()), 2)

    def test_said_once_for_halves(self) -> None:
        """The good parts of a refused batch do not make every further refusal of its parts a new one."""
        receiver = self.receiver(Reply(400, b"x" * 5000))
        refused = self.successResultOf(self.posted(receiver))
        records = sealed(5)
        for part, good in ((records[:4], False), (records[:2], True), (records[2:4], False), (records[2:3], False)):
            if good:
                receiver.taken(part)
                continue
            with self.assertRaises(Rejected):
                receiver.check(refused, part)
        self.assertEqual(self.complaints(), [{"status": 400, "body": "x" * 1024, "events": 4}])
        receiver.taken(records[4:])
        with self.assertRaises(Rejected):
            receiver.check(refused, records[:1])
        self.assertEqual(len(self.complaints()), 2)

    def test_not_permanent(self) -> None:
        """What passes is no permanent error."""
        for status in (302, 408, 429, 500, 503):
            self.outcome(status)
        self.assertEqual(self.complaints(), [])


class BodyTests(_Posting):
    """Bodies, compressed or not, and made without holding the reactor."""

    def sent(self, receiver: Receiver, pieces: list[bytes]) -> Deferred[Any]:
        return Deferred.fromCoroutine(receiver.send("http://h/p", lambda: iter(pieces)))

    def test_compressed(self) -> None:
        """A compressed body says so, and is smaller."""
        self.successResultOf(self.sent(self.receiver(Reply(204), compress=True), [b"a" * 1000, b"b" * 1000]))
        [posted] = self.agent.posted
        self.assertEqual((posted.header("content-encoding"), posted.body), ("gzip", b"a" * 1000 + b"b" * 1000))
        self.assertLess(len(posted.wire), 200)

    def test_plain(self) -> None:
        """Without compression the body goes as it is."""
        self.successResultOf(self.sent(self.receiver(Reply(204)), [b"a", b"b"]))
        self.assertEqual(self.agent.posted[0].wire, b"ab")

    def test_sliced(self) -> None:
        """A large body is made in turns with the reactor's other work."""
        work = self.sent(self.receiver(Reply(204), compress=True), [b"x" * 40_000] * 10)
        self.assertEqual(self.agent.posted, [])
        self.clock.advance(0)
        self.assertEqual(self.clock.turns, 5)
        self.successResultOf(work)
        self.assertEqual(len(self.agent.posted[0].body), 400_000)

    def test_unsupported(self) -> None:
        """A receiver that takes no compressed bodies gets plain ones from then on, and it is said once."""
        receiver = self.receiver(Reply(415, b"no gzip"), Reply(204), compress=True)
        for _ in range(2):
            self.assertEqual(self.successResultOf(self.sent(receiver, [b"a"])).status, 204)
        codings = [posted.header("content-encoding") for posted in self.agent.posted]
        self.assertEqual(codings, ["gzip", None, None])
        [(message, attributes)] = self.lines
        self.assertIn("takes no compressed bodies", message)
        self.assertEqual(attributes, {"setting": "THE_GZIP"})

    def test_unsupported_anyway(self) -> None:
        """One that does not take plain bodies either has refused the records."""
        receiver = self.receiver(Reply(415, b"no"), compress=True)
        answer = self.successResultOf(self.sent(receiver, [b"a"]))
        with self.assertRaises(Rejected):
            receiver.check(answer, sealed(1))
        self.assertEqual(len(self.agent.posted), 2)
