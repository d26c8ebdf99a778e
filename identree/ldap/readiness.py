"""
Waiting for requests on plain sockets, beside the reactor and not through it.

Twisted's way from "this socket can be read" to the bytes costs 3 µs for each read, as much as the answer to a repeated
search: a context for log messages, a look at every state that a descriptor of any kind can be in. Here sockets wait in
an epoll object of their own, which the reactor waits for as for one descriptor. Everything but reading stays Twisted's:
writing what does not leave at once, errors and the end of connections.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from identree.app.ports import Monotonic

# In one go, before the reactor looks at everything else; no further socket is read after it.
GO_SECONDS = 0.001
# Who waits for an answer to ask the next question asks it so soon: to be awake then is a third faster for him, and
# costs less than to fall asleep and be woken. Nothing else is delayed by more than this, and an idle server sleeps.
AWAITED_SECONDS = 0.00005
# Looks in that time, should the clock stand still; each takes half a microsecond.
AWAITED_LOOKS = 1000
# After so many times in vain, only one time in so many is tried: clients have other things to do.
VAIN = 4
VAIN_STEP = 16
# Sockets asked for at a time.
EVENTS = 256
# Bytes of one read. A search of sssd's has 600, and so many are read at once only from who sends without waiting.
READ_BYTES = 64 << 10

Received = Callable[[bytes], bool]
Gone = Callable[[bool], None]


def possible(reactor: object) -> bool:
    """Whether sockets can wait here."""
    return hasattr(select, "epoll") and IReactorFDSet.providedBy(reactor)


@implementer(IReadDescriptor)
class Readiness:
    """
    Reads from sockets and gives away what comes.

    Who has more to say than fits into one go does not keep others waiting: sockets that were found ready are read in
    turns, the rest of them first thing in the next go.
    """

    _log = Logger()

    def __init__(self, reactor: Any, monotonic: Monotonic) -> None:
        self._reactor, self._monotonic = reactor, monotonic
        self._poller: select.epoll | None = None
        self._sockets: dict[int, tuple[Callable[[int], bytes], Received, Gone]] = {}
        # ready, and not read yet
        self._ready: list[int] = []
        # how often nobody had a next question since somebody last had one
        self._vain = 0

    def __len__(self) -> int:
        return len(self._sockets)

    def add(self, source: socket.socket, received: Received, gone: Gone) -> None:
        """
        Read from a socket until it is removed.

        :param received: given what was read; returns whether that was answered, so that more may come soon.
        :param gone: called once the socket was removed, with False when there is nothing to read any more, which the
            next read from it tells again; with True when ``received`` has failed.
        :raise OSError: the system has no room for one more.
        """
        number = source.fileno()
        if self._poller is None:
            self._poller = select.epoll()
            self._reactor.addReader(self)
        self._poller.register(number, select.EPOLLIN)
        self._sockets[number] = (source.recv, received, gone)

    def remove(self, number: int) -> None:
        """
        Read no further from the socket with this number, nor at all should it be closed; nothing happens when it is not
        read from.
        """
        if self._sockets.pop(number, None) is None or self._poller is None:
            return
        # one that is closed already was removed by that
        with suppress(OSError):
            self._poller.unregister(number)
        if number in self._ready:
            # the number may be another socket's by the next go
            self._ready.remove(number)
        if not self._sockets:
            self._close()

    def _close(self) -> None:
        if self._poller is not None:
            self._reactor.removeReader(self)
            self._poller.close()
            self._poller = None

    # --- the reactor's side -------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self._poller is None else self._poller.fileno()

    def logPrefix(self) -> str:
        return "LDAP"

    def doRead(self) -> None:
        """One go."""
        monotonic, sockets = self._monotonic, self._sockets
        until = monotonic() + GO_SECONDS
        while self._poller is not None:
            ready = self._ready
            if not ready:
                self._poll(self._poller)
                ready = self._ready
            alone, answered = len(ready) < 2, False
            while ready:
                number = ready.pop()
                found = sockets.get(number)
                if found is None:
                    continue
                read, received, gone = found
                try:
                    data = read(READ_BYTES)
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError:
                    data = b""
                try:
                    if data:
                        answered = received(data) or answered
                    else:
                        self.remove(number)
                        gone(False)
                except Exception:
                    self._log.failure("what an LDAP client sent was not dealt with")
                    self.remove(number)
                    gone(True)
                if monotonic() >= until:
                    return
            # several have had time for something new; one alone has not yet
            if alone and not (answered and self._awaited()):
                return

    def _awaited(self) -> bool:
        """Whether something became ready within the time that an answer to an answer takes."""
        self._vain += 1
        if self._vain > VAIN and self._vain % VAIN_STEP:
            return False
        monotonic = self._monotonic
        until = monotonic() + AWAITED_SECONDS
        for _ in range(AWAITED_LOOKS):
            if self._poller is None or monotonic() >= until:
                break
            self._poll(self._poller)
            if self._ready:
                self._vain = 0
                return True
        return False

    def _poll(self, poller: select.epoll) -> None:
        self._ready = [number for number, _ in poller.poll(0, EVENTS)]
        # in the order in which they became ready, taken from the end
        self._ready.reverse()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives up everything."""
        self._sockets.clear()
        self._ready.clear()
        self._close()
