"""Sockets that wait beside the reactor: real ones, a reactor that only remembers, a clock that the tests move."""

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorFDSet
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from identree.ldap import readiness
from identree.ldap.readiness import Readiness, possible


@implementer(IReactorFDSet)
class FDSet:
    """Remembers what it should read."""

    def __init__(self) -> None:
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        # as the reactor looks it up
        assert reader.fileno() >= 0
        self.readers.remove(reader)


class Clock:
    """
    :ivar tick: seconds that pass with each look.
    :ivar looked: called at each look.
    """

    def __init__(self) -> None:
        self.now, self.tick, self.looks = 0.0, 0.0000001, 0
        self.looked: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        self.looks += 1
        self.now += self.tick
        self.looked()
        return self.now


class Peer:
    """
    Two ends of a connection, the nearer one waiting to be read.

    :ivar answers: whether what is received counts as answered.
    :ivar received: what came, in order. :ivar gone: how its end was told.
    """

    def __init__(self, waiting: Readiness) -> None:
        self.waiting, self.answers = waiting, False
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.received: list[bytes] = []
        self.gone: list[bool] = []
        self.then: Callable[[], None] = lambda: None
        waiting.add(self.near, self.read, self.gone.append)

    def read(self, data: bytes) -> bool:
        self.received.append(data)
        self.then()
        return self.answers

    def close(self) -> None:
        self.waiting.remove(self.near.fileno())
        self.near.close()
        self.far.close()


class ReadinessCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor, self.clock = FDSet(), Clock()
        self.waiting = Readiness(self.reactor, self.clock)

    def peer(self) -> Peer:
        peer = Peer(self.waiting)
        self.addCleanup(peer.close)
        return peer


class ReadTests(ReadinessCase):
    def test_received(self) -> None:
        """What each of the others sends is given to its own connection."""
        one, two = self.peer(), self.peer()
        one.far.send(b"a")
        two.far.send(b"b")
        self.waiting.doRead()
        self.assertEqual((one.received, two.received), ([b"a"], [b"b"]))

    def test_nothing(self) -> None:
        """Who has sent nothing is not read."""
        peer = self.peer()
        self.waiting.doRead()
        self.assertEqual((peer.received, peer.gone), ([], []))

    def test_end(self) -> None:
        """The end of a connection is told once, after everything that came before it, and nothing is read any more."""
        peer = self.peer()
        peer.far.send(b"last")
        peer.far.close()
        self.waiting.doRead()
        self.waiting.doRead()
        self.assertEqual((peer.received, peer.gone, len(self.waiting)), ([b"last"], [False], 0))

    def test_reset(self) -> None:
        """So is its loss."""
        peer, other = self.peer(), self.peer()
        # what was not read makes it a reset
        peer.near.send(b"unread")
        peer.far.close()
        other.far.send(b"x")
        self.waiting.doRead()
        self.assertEqual((peer.gone, other.received), ([False], [b"x"]))

    def test_failed(self) -> None:
        """A failure is logged and told, and the others are read all the same."""
        one, two = self.peer(), self.peer()
        one.then = two.then = lambda: 1 / 0  # type: ignore[assignment, return-value]
        one.far.send(b"a")
        two.far.send(b"b")
        self.waiting.doRead()
        self.assertEqual((one.gone, two.gone), ([True], [True]))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_closed_meanwhile(self) -> None:
        """Whose connection ends while another one is dealt with is not read, though he was found ready."""
        one, two = self.peer(), self.peer()
        for peer, other in ((one, two), (two, one)):
            peer.then = other.close
            peer.far.send(b"x")
        self.waiting.doRead()
        self.assertEqual(sorted([one.received, two.received]), [[], [b"x"]])


class TurnTests(ReadinessCase):
    def test_bounded(self) -> None:
        """One go ends when its time is over, and the rest is read first in the next, whoever has more to say."""
        peers = [self.peer() for _ in range(3)]
        self.clock.tick = readiness.GO_SECONDS
        order: list[Peer] = []
        for peer in peers:
            peer.then = lambda peer=peer: (order.append(peer), peer.far.send(b"more"))  # type: ignore[misc]
            peer.far.send(b"x")
        for _ in range(6):
            self.waiting.doRead()
        self.assertEqual(order, [*peers, *peers])

    def test_several(self) -> None:
        """While several have something to say they are read again and again, until the time is over."""
        peers = [self.peer(), self.peer()]
        self.clock.tick = readiness.GO_SECONDS / 10.5
        for peer in peers:
            peer.then = lambda peer=peer: peer.far.send(b"more")  # type: ignore[misc]
            peer.far.send(b"x")
        self.waiting.doRead()
        self.assertEqual(sum(len(peer.received) for peer in peers), 11)


class AwaitedTests(ReadinessCase):
    """Who was answered is waited for, a moment."""

    def setUp(self) -> None:
        super().setUp()
        self.alone = self.peer()
        self.clock.tick = readiness.AWAITED_SECONDS / 10

    def looks(self) -> int:
        """At the clock, in one go with one question."""
        self.clock.looks = 0
        self.alone.far.send(b"x")
        self.waiting.doRead()
        return self.clock.looks

    def ask_at(self, look: int) -> None:
        """Another question, in the middle of the go."""
        self.clock.looked = lambda: self.alone.far.send(b"next") if self.clock.looks == look else None  # type: ignore[assignment, return-value]

    def test_next(self) -> None:
        """The next question is answered in the same go."""
        self.alone.answers = True
        self.ask_at(6)
        self.looks()
        self.assertEqual(self.alone.received, [b"x", b"next"])

    def test_not_answered(self) -> None:
        """Who sends anything else, such as single bytes, is not waited for."""
        self.ask_at(6)
        self.assertLess(self.looks(), 6)

    def test_in_vain(self) -> None:
        """Who mostly does something else is waited for seldom, and as before once he asks again."""
        self.alone.answers = True
        waited = [self.looks() > 5 for _ in range(readiness.VAIN + 2 * readiness.VAIN_STEP)]
        self.assertEqual((waited[: readiness.VAIN], sum(waited)), ([True] * readiness.VAIN, readiness.VAIN + 2))
        self.ask_at(6)
        while len(self.alone.received) < 100 and b"next" not in self.alone.received:
            self.looks()
        self.clock.looked = lambda: None
        self.assertGreater(self.looks(), 5)


class ReactorTests(ReadinessCase):
    def test_only_when_needed(self) -> None:
        """The reactor waits for it while there are sockets."""
        one, two = Peer(self.waiting), Peer(self.waiting)
        self.assertEqual(self.reactor.readers, [self.waiting])
        one.close()
        self.assertEqual(self.reactor.readers, [self.waiting])
        two.close()
        self.assertEqual((self.reactor.readers, self.waiting.fileno()), ([], -1))

    def test_again(self) -> None:
        """And again with the next one."""
        self.peer().close()
        peer = self.peer()
        peer.far.send(b"x")
        self.waiting.doRead()
        self.assertEqual((self.reactor.readers, peer.received), ([self.waiting], [b"x"]))

    def test_given_up(self) -> None:
        """A reactor that stops takes all of it."""
        peer = self.peer()
        self.waiting.connectionLost(Failure(Exception()))
        self.assertEqual((self.reactor.readers, len(self.waiting)), ([], 0))
        peer.far.send(b"x")
        self.waiting.doRead()
        self.assertEqual(peer.received, [])

    def test_possible(self) -> None:
        """Only a reactor that waits for descriptors will do."""
        self.assertEqual((possible(self.reactor), possible(object())), (True, False))
