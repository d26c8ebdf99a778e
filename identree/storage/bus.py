"""Who wants to be woken by commits (design section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.logger import Logger

from identree.core.challenge import Live

Listener = Callable[[Live], None]

RESYNC = Live(event="resync", username="")


class Bus:
    """Delivers wake-ups on the reactor, each to every listener, in order."""

    _log = Logger()

    def __init__(self) -> None:
        # a dict keeps the order, and a listener may end itself or another while being woken
        self._listeners: dict[object, Listener] = {}

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        key = object()
        self._listeners[key] = listener

        def end() -> None:
            self._listeners.pop(key, None)

        return end

    def deliver(self, lives: Iterable[Live]) -> None:
        for live in lives:
            for key, listener in list(self._listeners.items()):
                if key not in self._listeners:
                    continue
                try:
                    listener(live)
                except Exception:
                    # one deaf listener must not keep the others asleep, nor fail a transaction that is committed
                    self._log.failure("a listener failed on {event}", event=live.event)
