"""What both drivers share: an operation on its way, and what happens on the reactor once it is committed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from identree.core.challenge import Live
from identree.core.errors import StorageUnavailable
from identree.core.requests import current
from identree.storage.script import Effects, MakeScript

# Operations accepted and not yet answered, the waiting ones included; more are refused at once.
MOST_OUTSTANDING = 10_000

# How long an operation may wait and work, in seconds (spec/storage section 1).
BUDGET_SECONDS = 5.0

# Told of every operation that was answered: ``read`` or ``write``, the seconds since it was submitted, and the reason
# of StorageUnavailable, or empty.
Observe = Callable[[str, float, str], None]
READ, WRITE = "read", "write"


def unobserved(operation: str, seconds: float, reason: str) -> None:
    """Nobody wants to know."""


class Job:
    """
    One script on its way through a driver.

    :ivar deadline: on the driver's monotonic clock; not begun by then, it is refused.
    :ivar request_id: of the request that asked for it, or empty; its events carry it.
    """

    __slots__ = ("answer", "cancelled", "deadline", "effects", "failure", "make", "request_id", "result")

    def __init__(self, make: MakeScript[Any], deadline: float) -> None:
        self.make = make
        self.deadline = deadline
        self.request_id = current.get()
        self.answer: Deferred[Any] = Deferred(self._cancel)
        self.cancelled = False
        self.result: Any = None
        self.failure: BaseException | None = None
        self.effects: list[Effects] = []

    def _cancel(self, _: Deferred[Any]) -> None:
        # a script under way cannot be stopped safely: it finishes and nobody hears of it
        self.cancelled = True

    def reset(self) -> None:
        """Before the script runs again."""
        self.result = self.failure = None
        self.effects = []

    def fail(self, e: BaseException) -> None:
        """Nothing was done, so nothing follows."""
        self.failure, self.result, self.effects = e, None, []

    def fire(self) -> None:
        if self.answer.called:
            return
        if self.failure is None:
            self.answer.callback(self.result)
        else:
            self.answer.errback(Failure(self.failure))


def has_events(job: Job) -> bool:
    return any(effects.events for effects in job.effects)


def wake_ups(jobs: Sequence[Job]) -> list[Live]:
    return [live for job in jobs for effects in job.effects for live in effects.live]


def watched(job: Job, operation: str, monotonic: Callable[[], float], observe: Observe) -> Deferred[Any]:
    """The job's answer, timed from now on. One that nobody waits for any more is not counted."""
    if observe is unobserved:
        return job.answer
    submitted = monotonic()

    def over(result: Any) -> Any:
        reason = ""
        if isinstance(result, Failure):
            if result.check(CancelledError):
                return result
            if isinstance(result.value, StorageUnavailable):
                reason = result.value.reason
        observe(operation, monotonic() - submitted, reason)
        return result

    return job.answer.addBoth(over)


def on_behalf_of_nobody(work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
    """
    Start work that serves many requests. The log lines of what follows are not those of the one request that happened
    to start it.
    """
    before = current.set("")
    try:
        return Deferred.fromCoroutine(work)
    finally:
        current.reset(before)
