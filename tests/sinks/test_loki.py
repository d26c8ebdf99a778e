"""The sink for Loki."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from identree.sinks import loki
from identree.sinks.follower import Rejected, Unavailable
from identree.sinks.formats import NATIVE
from identree.sinks.loki import TIMES_NS, Loki
from tests.sinks.httpagent import Agent, Posted, Reply
from tests.sinks.records import sealed

NOW = 1_767_323_045_000_000_000
TAKEN = Reply(204)


class _Shipping(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = NOW

    def sink(
        self,
        *replies: Any,
        url: str = "https://loki.example.com",
        token: str = "",
        tenant: str = "",
        gzip: bool = False,
    ) -> Loki:
        self.agent = Agent(*replies)
        return Loki(
            url,
            token,
            tenant=tenant,
            agent=self.agent,
            trust=None,
            form=NATIVE,
            gzip=gzip,
            clock=Clock(),
            now_ns=lambda: self.now,
        )

    def ship(self, sink: Loki, records: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(sink.ship(records))

    def times(self) -> list[list[int]]:
        """Of each request, less the beginning."""
        return [
            [int(time) - NOW for time, _ in json.loads(posted.body)["streams"][0]["values"]]
            for posted in self.agent.posted
        ]


class RequestTests(_Shipping):
    """What is sent."""

    def test_body(self) -> None:
        """One stream with its two labels; the lines are the hashed bytes, each with its time."""
        first, second = sealed(2)
        self.successResultOf(self.ship(self.sink(TAKEN), [first, second]))
        [posted] = self.agent.posted

        def line(record: Any) -> bytes:
            return json.dumps(record.canonical.decode(), ensure_ascii=False).encode()

        self.assertEqual(
            posted.body,
            b'{"streams":[{"stream":{"app":"identree","job":"identree-audit"},"values":[["1767323045000000000",'
            + line(first)
            + b'],["1767323045000000001",'
            + line(second)
            + b"]]}]}",
        )
        [stream] = json.loads(posted.body)["streams"]
        self.assertEqual([text.encode() for _, text in stream["values"]], [first.canonical, second.canonical])

    def posted(self, **options: Any) -> Posted:
        self.successResultOf(self.ship(self.sink(TAKEN, **options), sealed(1)))
        return self.agent.posted[0]

    def test_url(self) -> None:
        """The path of pushes is put behind the base URL, however many slashes that ends with."""
        for url in ("https://l.example/base", "https://l.example/base///"):
            self.assertEqual(self.posted(url=url).url, "https://l.example/base/loki/api/v1/push")
        self.assertEqual(self.posted(url="http://l.example:3100").url, "http://l.example:3100/loki/api/v1/push")

    def test_bare(self) -> None:
        """Without token and tenant nothing is said about them."""
        posted = self.posted()
        self.assertEqual((posted.method, posted.header("content-type")), (b"POST", "application/json"))
        self.assertEqual(
            [posted.header(name) for name in ("authorization", "x-scope-orgid", "content-encoding")], [None] * 3
        )

    def test_headers(self) -> None:
        """Token, tenant and compression."""
        posted = self.posted(token="t0ken", tenant="operations", gzip=True)
        self.assertEqual(posted.header("authorization"), "Bearer t0ken")
        self.assertEqual(posted.header("x-scope-orgid"), "operations")
        self.assertEqual(posted.header("content-encoding"), "gzip")

    def test_login(self) -> None:
        """A login in the URL is used when there is no token, and is not part of the address."""
        posted = self.posted(url="https://me:pw@l.example")
        self.assertEqual((posted.url, posted.header("authorization")),
                         ("https://l.example/loki/api/v1/push", "Basic bWU6cHc="))  # fmt: skip
        self.assertEqual(self.posted(url="https://me:pw@l.example", token="t").header("authorization"), "Bearer t")

    def test_limits(self) -> None:
        """Batches of 100, or every 5 seconds; what was answered is settled."""
        sink = self.sink(TAKEN)
        self.assertEqual((sink.name, sink.batch, sink.linger_seconds, sink.settle_seconds), ("loki", 100, 5, 0))


class TimeTests(_Shipping):
    """The times of lines."""

    def test_increasing(self) -> None:
        """Times go up strictly, also while the clock stands still or goes back a little."""
        sink, records = self.sink(TAKEN), sealed(6)
        for start, step in ((0, 0), (2, 1000), (4, -2000)):
            self.now += step
            self.successResultOf(self.ship(sink, records[start : start + 2]))
        self.assertEqual(self.times(), [[0, 1], [1000, 1001], [1002, 1003]])

    def test_repeated(self) -> None:
        """A batch that is sent again has the times of its first sending; what came behind it has later ones."""
        sink, records = self.sink(Reply(500), Reply(500), TAKEN), sealed(3)
        self.failureResultOf(self.ship(sink, records[:2]), Unavailable)
        self.now += 5000
        self.failureResultOf(self.ship(sink, records[:2]), Unavailable)
        self.now += 5000
        self.successResultOf(self.ship(sink, records))
        self.assertEqual(self.times(), [[0, 1], [0, 1], [0, 1, 10000]])

    def test_halves(self) -> None:
        """Loki takes what is good of a refused batch, so its parts have the times of the whole."""
        sink, records = self.sink(Reply(400, b"max entry size"), TAKEN), sealed(6)
        self.failureResultOf(self.ship(sink, records[:4]), Rejected)
        self.now += 5000
        for part in (records[:2], records[2:4], records[4:]):
            self.successResultOf(self.ship(sink, part))
        self.assertEqual(self.times(), [[0, 1, 2, 3], [0, 1], [2, 3], [5000, 5001]])

    def test_renewed(self) -> None:
        """Times that Loki would soon refuse as too old are renewed."""
        sink, records = self.sink(Reply(500), TAKEN), sealed(2)
        self.failureResultOf(self.ship(sink, records), Unavailable)
        self.now += TIMES_NS + 1
        self.successResultOf(self.ship(sink, records))
        self.assertEqual(self.times()[1], [TIMES_NS + 1, TIMES_NS + 2])

    def test_clock_stepped_back(self) -> None:
        """After a large step of the clock to the past, times begin there again."""
        sink, records = self.sink(TAKEN), sealed(2)
        self.successResultOf(self.ship(sink, records[:1]))
        self.now -= 2 * TIMES_NS
        self.successResultOf(self.ship(sink, records[1:]))
        self.assertEqual(self.times(), [[0], [-2 * TIMES_NS]])

    def test_refused(self) -> None:
        """A time that Loki does not take says nothing about the record: it gets a new one."""
        for words in (
            b"entry too far behind, oldest",
            b"has timestamp too old: 1",
            b"timestamp too new",
            b"out of order",
        ):
            self.now = NOW
            sink, records = self.sink(Reply(400, words), TAKEN), sealed(1)
            error = self.failureResultOf(self.ship(sink, records), Unavailable).value
            self.assertIn("compare the clocks", str(error))
            self.now += 1000
            self.successResultOf(self.ship(sink, records))
            self.assertEqual(self.times(), [[0], [1000]])

    def test_forgotten(self) -> None:
        """Times are kept for the batch under way only."""
        sink, records = self.sink(Reply(400, b"bad"), Reply(400, b"bad"), TAKEN), sealed(5)
        self.failureResultOf(self.ship(sink, records[:2]), Rejected)
        self.failureResultOf(self.ship(sink, records[:1]), Rejected)
        self.successResultOf(self.ship(sink, records[1:2]))
        self.successResultOf(self.ship(sink, records[2:]))
        self.assertEqual(sink._times, {})


class OutcomeTests(_Shipping):
    """What Loki's answers mean."""

    def test_tenant(self) -> None:
        """A Loki of several tenants that is told none names the setting."""
        work = self.ship(self.sink(Reply(401, b"no org id\n")), sealed(1))
        text = str(self.failureResultOf(work, Unavailable).value)
        self.assertEqual(text, f"it answered 401: no org id; check {loki.TOKEN_SETTING} and {loki.TENANT_SETTING}")

    def test_rate(self) -> None:
        """A rate limit is obeyed."""
        work = self.ship(self.sink(Reply(429, b"Ingestion rate limit exceeded", {"retry-after": "3"})), sealed(1))
        self.assertEqual(self.failureResultOf(work, Unavailable).value.retry_after, 3.0)

    def test_refused(self) -> None:
        """A line that is too long is refused."""
        self.failureResultOf(
            self.ship(self.sink(Reply(400, b"max entry size '1' bytes exceeded")), sealed(1)), Rejected
        )

    def test_no_secrets(self) -> None:
        """Neither token nor login is in a text, even when the other side repeats them."""
        echo = Reply(500, b"me:passw0rd bWU6cGFzc3cwcmQ= t0ken-1")
        for token in ("", "t0ken-1"):
            work = self.ship(self.sink(echo, url="https://me:passw0rd@l.example", token=token), sealed(1))
            text = str(self.failureResultOf(work, Unavailable).value)
            for secret in ("passw0rd", "bWU6cGFzc3cwcmQ=", *filter(None, [token])):
                self.assertNotIn(secret, text)
