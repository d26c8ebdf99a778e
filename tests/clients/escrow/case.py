"""What the tests of all escrow back ends have in common."""

from __future__ import annotations

from typing import Any

from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from identree.app.escrow import EscrowFailed, Stored
from tests.clients.escrow.standins import StandIn

URL = "https://escrow.example"
PASSWORD = 'pa"ss/wörd+1'


class EscrowTestCase(SynchronousTestCase):
    """
    :ivar server: the stand-in.
    :ivar backend: of it.
    :ivar secrets: that no message may have.
    """

    server: Any
    backend: Any
    secrets: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.clock = MemoryReactorClock()

    def http(self, server: StandIn) -> Any:
        return StubTreq(server)

    def result(self, work: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def store(self, hostname: str = "web1", password: str = PASSWORD) -> Stored:
        stored: Stored = self.result(self.backend.store(hostname, password))
        return stored

    def retrieve(self, hostname: str = "web1", item_id: str = "", vault_id: str = "") -> str:
        password: str = self.result(self.backend.retrieve(hostname, item_id, vault_id))
        return password

    def failed(self, work: Any) -> str:
        """What the failure says; never a secret."""
        reason: str = self.failureResultOf(Deferred.fromCoroutine(work), EscrowFailed).value.reason
        for secret in (PASSWORD, *self.secrets):
            self.assertNotIn(secret, reason)
        return reason


class BehaviourContract:
    """
    What every back end behind HTTP does. Mixed into an :class:`EscrowTestCase` whose ``setUp`` builds ``server`` and
    ``backend``.

    :cvar write: method and path of the request that stores.
    """

    write: str
    server: Any
    backend: Any
    clock: Any
    store: Any
    retrieve: Any
    failed: Any
    assertIn: Any
    assertEqual: Any
    assertNotIn: Any
    assertNoResult: Any
    failureResultOf: Any
    successResultOf: Any

    def answer(self, *replies: tuple[int, object] | None) -> None:
        self.server.replies[self.write] = list(replies)

    def refused(self, *replies: tuple[int, object] | None) -> str:
        self.answer(*replies)
        said: str = self.failed(self.backend.store("web1", PASSWORD))
        return said

    def test_round_trip(self) -> None:
        """What was stored comes back; the last one counts, and the same again is harmless."""
        first = self.store("web1", "one")
        second = self.store("web1", PASSWORD)
        self.assertEqual(self.store("web1", PASSWORD), second)
        self.assertEqual(first, second)
        self.assertEqual(self.retrieve("web1", second.item_id, second.vault_id), PASSWORD)

    def test_hosts_apart(self) -> None:
        """Each host has its own."""
        one, two = self.store("web1", "one"), self.store("web11", "two")
        self.assertEqual(self.retrieve("web1", one.item_id, one.vault_id), "one")
        self.assertEqual(self.retrieve("web11", two.item_id, two.vault_id), "two")

    def test_redirect(self) -> None:
        """A redirection is no success, and is not followed."""
        self.server.location = "https://elsewhere.example/x"
        before = len(self.server.asked)
        for status in (301, 302, 303, 307, 308):
            said = self.refused(*[(status, {})] * 2)
            self.assertIn(f"HTTP {status}", said)
            self.assertIn("redirects are not followed", said)
        self.assertNotIn("/x", " ".join(self.server.asked[before:]))

    def test_refusals(self) -> None:
        """Every status but 2xx fails, with the server's words and without the password that it says back."""
        for status in (400, 401, 403, 404, 409, 422, 429, 500, 502, 503):
            said = self.refused(*[(status, {"message": f"no {PASSWORD}"})] * 4)
            self.assertIn(f"HTTP {status}", said)
            self.assertIn("no ***", said)

    def test_long_words(self) -> None:
        """Of a long complaint only the beginning is told, in one line."""
        said = self.refused(*[(500, b"x\n\x1b[31m" * 20_000)] * 4)
        self.assertIn("HTTP 500", said)
        self.assertEqual(len(said.splitlines()), 1)
        self.assertEqual(len(said) < 5000 and said.isprintable(), True)

    def test_endless_answer(self) -> None:
        """An answer beyond the limit is not read to its end."""
        self.assertIn("longer than", self.refused(*[(200, b" " * (1 << 20) + b" ")] * 4))

    def test_slow(self) -> None:
        """Half a minute, and not for each request anew."""
        self.answer(None, None, None)
        waiting = Deferred.fromCoroutine(self.backend.store("web1", PASSWORD))
        self.clock.advance(29.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.2)
        self.assertIn("within 30 s", self.failureResultOf(waiting, EscrowFailed).value.reason)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_again(self) -> None:
        """After a failure the next attempt works."""
        self.refused(*[(500, {})] * 4)
        self.server.replies.clear()
        stored = self.store()
        self.assertEqual(self.retrieve("web1", stored.item_id, stored.vault_id), PASSWORD)

    def test_dots(self) -> None:
        """A host called like the directory above is asked for nowhere."""
        before = len(self.server.sent)
        for name in (".", "..", "a/b", ""):
            self.failed(self.backend.store(name, PASSWORD))
        self.assertNotIn(PASSWORD, str(self.server.sent[before:]))

    def test_passwords(self) -> None:
        """What could not come back as it is, is not sent: a lone surrogate, which JSON can bring, nothing, too much."""
        before = len(self.server.asked)
        for password in ("\ud800", "", "ü" * 513):
            self.failed(self.backend.store("web1", password))
        self.assertEqual(len(self.server.asked), before)
        longest = self.store("web1", "ü" * 512)
        self.assertEqual(self.retrieve("web1", longest.item_id, longest.vault_id), "ü" * 512)

    def test_check(self) -> None:
        """A check of working credentials changes nothing."""
        self.successResultOf(Deferred.fromCoroutine(self.backend.check()))
        self.successResultOf(Deferred.fromCoroutine(self.backend.keep()))
        self.assertNotIn(PASSWORD, str(self.server.sent))
