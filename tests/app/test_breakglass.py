"""Escrow, reports and reveals in the application (identree.app.breakglass); their answers are in tests.web."""

from __future__ import annotations

from datetime import timedelta

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree.app.breakglass import BadEscrowToken, EscrowBusy, NotItsOwn, NotStored, Signed, TokenUsed
from identree.app.escrow import EscrowFailed
from identree.app.hosts import Credential
from identree.core import tokens
from identree.core.errors import Forbidden, StorageUnavailable
from identree.core.escrow import MOST_AT_ONCE
from tests.web.house import SECRET, START, result
from tests.web.yard import MemoryEscrow, Yard

GLOBAL = Credential(secret=SECRET.encode())
ADDRESS = "192.0.2.7"


class BreakGlassCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.yard = Yard()
        self.break_glass = self.yard.break_glass

    @property
    def escrow(self) -> MemoryEscrow:
        assert isinstance(self.yard.escrow, MemoryEscrow)
        return self.yard.escrow

    def signed(self, hostname: str = "web1", age: int = 0) -> Signed:
        ts = int(self.yard.house.now().timestamp()) - age
        return Signed(ts=str(ts), token=tokens.escrow_token(SECRET.encode(), hostname, ts))

    def storing(self, hostname: str = "web1", age: int = 0) -> Deferred[None]:
        signed = self.signed(hostname, age)
        return Deferred.fromCoroutine(self.break_glass.escrow(hostname, "secret", signed, GLOBAL, ADDRESS))


class EscrowTests(BreakGlassCase):
    def test_time_of_the_record(self) -> None:
        """It is from before the back end was asked: whoever reveals it meanwhile asks for a newer one than this."""
        wait: Deferred[None] = Deferred()
        self.escrow.waiting = lambda: wait
        storing = self.storing()
        self.yard.house.reactor.advance(20)
        wait.callback(None)
        self.successResultOf(storing)
        record = result(self.yard.store.escrow_record("web1"))
        self.assertEqual(record and record.escrowed_at, START)
        self.assertEqual(self.yard.events()[0]["timestamp"], "2026-03-04T09:30:20Z")

    def test_waiting_is_cancelled(self) -> None:
        """The host hears nothing, the work goes on."""
        wait: Deferred[None] = Deferred()
        self.escrow.waiting = lambda: wait
        storing = self.storing()
        storing.cancel()
        self.failureResultOf(storing, CancelledError)
        wait.callback(None)
        self.assertEqual(self.escrow.passwords, {"web1": "secret"})
        self.assertIsNot(result(self.yard.store.escrow_record("web1")), None)

    def test_failure_after_the_host_has_left(self) -> None:
        """It is logged, and its token is good once more; nobody's error is left over."""
        wait: Deferred[None] = Deferred()
        self.escrow.waiting = lambda: wait
        storing = self.storing()
        storing.cancel()
        self.failureResultOf(storing, CancelledError)
        self.escrow.failure = EscrowFailed("vault said no")
        wait.callback(None)
        self.assertEqual([message for message, _ in self.yard.log], ["BREAKGLASS escrow failed"])
        self.escrow.waiting = self.escrow.failure = None
        self.successResultOf(self.storing())

    def test_places(self) -> None:
        """A place is free again whatever became of its work."""
        self.escrow.failure = EscrowFailed("no")
        for age in range(MOST_AT_ONCE + 1):
            self.failureResultOf(self.storing(age=age), NotStored)
        self.escrow.failure = None
        self.escrow.waiting = Deferred
        waiting = [self.storing(f"db{number}") for number in range(MOST_AT_ONCE)]
        self.failureResultOf(self.storing("web2"), EscrowBusy)
        self.assertEqual(self.break_glass.running, MOST_AT_ONCE)
        result(self.break_glass.stop())
        for one in waiting:
            self.failureResultOf(one, EscrowBusy)

    def test_same_token_at_once(self) -> None:
        """Of two requests with one token only one is served, also while the first is under way."""
        wait: Deferred[None] = Deferred()
        self.escrow.waiting = lambda: wait
        first = self.storing()
        self.failureResultOf(self.storing(), EscrowBusy)
        wait.callback(None)
        self.successResultOf(first)
        self.failureResultOf(self.storing(), TokenUsed)

    def test_same_host_at_once(self) -> None:
        """
        Never two of one host, however it spells itself: the slower one would be what the vault has, and the record is
        of the other. And one host does not take the places of all.
        """
        wait: Deferred[None] = Deferred()
        self.escrow.waiting = lambda: wait
        first = self.storing()
        self.failureResultOf(self.storing("WEB1.", age=1), EscrowBusy)
        self.assertEqual(self.break_glass.running, 1)
        wait.callback(None)
        self.successResultOf(first)
        self.successResultOf(self.storing("WEB1.", age=1))

    def test_token_is_not_given_back_to_a_repetition(self) -> None:
        """A refused repetition does not free the token of the first."""
        self.successResultOf(self.storing())
        for _ in range(2):
            self.failureResultOf(self.storing(), TokenUsed)

    def test_token_of_another_time(self) -> None:
        """What was signed for one second is nothing in another."""
        signed = Signed(ts=str(int(START.timestamp()) - 1), token=self.signed().token)
        escrow = Deferred.fromCoroutine(self.break_glass.escrow("web1", "secret", signed, GLOBAL, ADDRESS))
        self.failureResultOf(escrow, BadEscrowToken)

    def test_database_is_away(self) -> None:
        """Nothing is sent to the back end when the token cannot be remembered."""

        async def unavailable(*_: object) -> object:
            raise StorageUnavailable("locked")

        self.yard.store.use_escrow_token = unavailable  # type: ignore[method-assign,assignment]
        self.failureResultOf(self.storing(), StorageUnavailable)
        self.assertEqual(self.escrow.passwords, {})

    def test_representation(self) -> None:
        """No token in a traceback."""
        signed = self.signed()
        self.assertNotIn(signed.token, repr(signed))


class ReportTests(BreakGlassCase):
    def report(self, presented: Credential = GLOBAL, hostname: str = "web1") -> bool:
        used_at = int(START.timestamp()) - 60
        return result(self.break_glass.report(hostname, "alice", used_at, presented, ADDRESS))

    def test_told(self) -> None:
        """Whether it was news."""
        self.assertEqual([self.report(), self.report()], [True, False])

    def test_certificate_comes_first(self) -> None:
        """Who shows a certificate speaks for its name alone, whatever secret comes with it."""
        both = Credential(secret=SECRET.encode(), certificate="web2")
        with self.assertRaises(NotItsOwn):
            self.report(both)
        self.assertEqual(self.report(both, "web2"), True)


class RevealTests(BreakGlassCase):
    def test_not_an_admin(self) -> None:
        """Decided here, whatever the adapter checks."""
        self.yard.keep("web1")
        with self.assertRaises(Forbidden):
            result(self.break_glass.reveal(self.yard.house.caller("alice"), "web1"))

    def test_revealable(self) -> None:
        """What the page asks before it offers a button."""
        self.assertEqual(self.break_glass.revealable, True)
        self.yard.escrow = MemoryEscrow(revealable=False)
        self.assertEqual(self.break_glass.revealable, False)
        self.yard.escrow = None
        self.assertEqual(self.break_glass.revealable, False)

    def test_representation(self) -> None:
        """No password in a traceback."""
        self.yard.keep("web1", "hunter2", ago=timedelta(hours=1))
        shown = result(self.break_glass.reveal(self.yard.house.caller("carol", "admin"), "web1"))
        self.assertEqual((shown.password, "hunter2" in repr(shown)), ("hunter2", False))
