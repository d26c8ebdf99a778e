"""
``twistd -n identree`` on a reactor that times itself: for how long each turn keeps it from looking at its sockets.

``python -m benchmarks.daemon FILE [PROFILE]`` starts the server; each SIGUSR1 appends one line of JSON to FILE with
what happened since the one before, and PROFILE, if named, gets a profile of the reactor's thread at the end.
"""

from __future__ import annotations

import cProfile
import json
import signal
import sys
import time
from typing import Any

from twisted.internet import epollreactor
from twisted.scripts import twistd

# Upper bounds of the histogram, in seconds.
BOUNDS = (0.001, 0.002, 0.005, 0.010, 0.020, 0.050, 0.100, 0.250, 1.0)


class Watch:
    """A histogram of the reactor's turns, from the end of one wait for readiness to the beginning of the next."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._left = 0.0
        self.clear()

    def clear(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.longest = self.busy = 0.0
        self.since = time.perf_counter()

    def turn(self, seconds: float) -> None:
        self.busy += seconds
        if seconds > self.longest:
            self.longest = seconds
        place = 0
        for bound in BOUNDS:
            if seconds <= bound:
                break
            place += 1
        self.counts[place] += 1

    def report(self, *_: object) -> None:
        seconds = time.perf_counter() - self.since
        told = {"counts": self.counts, "longest": self.longest, "busy": self.busy, "seconds": seconds}
        with open(self._path, "a") as file:
            file.write(json.dumps(told) + "\n")
        self.clear()


def _time_turns(watch: Watch) -> type[epollreactor.EPollReactor]:
    clock = time.perf_counter

    class Poll:
        """The epoll object, with the time between its waits taken."""

        def __init__(self, poller: Any) -> None:
            self._poller = poller
            self._poll = poller.poll
            self._left = clock()
            for name in ("register", "unregister", "modify", "fileno", "close"):
                setattr(self, name, getattr(poller, name))

        def poll(self, *arguments: Any) -> Any:
            watch.turn(clock() - self._left)
            try:
                return self._poll(*arguments)
            finally:
                self._left = clock()

    class WatchedReactor(epollreactor.EPollReactor):
        def __init__(self) -> None:
            super().__init__()
            reactor: Any = self
            reactor._poller = Poll(reactor._poller)

    return WatchedReactor


def main(arguments: list[str]) -> None:
    watch = Watch(arguments[0])
    reactor: Any = _time_turns(watch)()
    from twisted.internet.main import installReactor

    installReactor(reactor)
    signal.signal(signal.SIGUSR1, watch.report)
    sys.argv = ["twistd", "--nodaemon", "--pidfile=", "identree"]
    if len(arguments) > 1:
        profile = cProfile.Profile()
        reactor.addSystemEventTrigger("after", "shutdown", lambda: profile.dump_stats(arguments[1]))
        profile.runcall(twistd.run)
    else:
        twistd.run()


if __name__ == "__main__":
    main(sys.argv[1:])
