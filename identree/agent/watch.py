"""
Waiting, with an eye on the person: every wait of the agent goes through :class:`Watch`.

Ctrl-C at the terminal never reaches a PAM helper: sudo has blocked it, and it stays pending in sudo, where
``/proc/PID/status`` shows it (spec/host-agent section 2).
"""

from __future__ import annotations

import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

# How often the parent is looked at, in seconds: a Ctrl-C is noticed well within a second.
TICK_SECONDS = 0.2

# SIGHUP, SIGINT, SIGQUIT and SIGTERM as bits of the kernel's signal masks.
_LEAVING = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14


class Left(BaseException):
    """Nobody waits any more. Not an Exception, so that nothing but the flow's end catches it."""


class Cancelled(Left):
    """The person pressed Ctrl-C, or somebody terminated us."""


class ParentGone(Left):
    """The program that wanted to know has ended."""


class Watch:
    """
    Waits for descriptors and for time, and raises :class:`Left` when the caller goes away.

    :param signals: look for signals pending in the parent (only sudo holds them back).
    """

    def __init__(self, *, signals: bool = False, parent: bool = True) -> None:
        self._parent = os.getppid() if parent else None
        self._status = f"/proc/{self._parent}/status" if signals and parent else ""
        self.on_tick: Callable[[], None] | None = None
        self._pidfd = -1
        if parent and hasattr(os, "pidfd_open"):
            try:
                self._pidfd = os.pidfd_open(os.getppid())
            except OSError:
                pass  # an old kernel, or a sandbox: getppid tells as well, a little later

    def check(self) -> None:
        """:raise Left: when the caller went away or wants to."""
        if self._parent is not None and os.getppid() != self._parent:
            raise ParentGone
        if self._status and pending_signals(self._status) & _LEAVING:
            raise Cancelled
        if self.on_tick is not None:
            self.on_tick()

    def wait(self, fd: int, *, writing: bool, until: float) -> bool:
        """
        Whether ``fd`` became ready before the monotonic instant ``until``.

        :param fd: -1 to wait for time only.
        """
        poll = select.poll()
        if fd >= 0:
            poll.register(fd, select.POLLOUT if writing else select.POLLIN)
        if self._pidfd >= 0:
            poll.register(self._pidfd, select.POLLIN)
        while True:
            self.check()
            left = until - time.monotonic()
            ready = poll.poll(max(0, min(left, TICK_SECONDS)) * 1000)
            if any(each == fd for each, _ in ready):
                return True
            if ready:
                raise ParentGone
            if left <= 0:
                return False

    def sleep(self, seconds: float) -> None:
        self.wait(-1, writing=False, until=time.monotonic() + seconds)


def pending_signals(path: str) -> int:
    """The signals pending for a process, as a mask; 0 when they cannot be read."""
    try:
        with open(path, "rb") as file:
            lines = file.read(8192).splitlines()
    except OSError:
        return 0
    mask = 0
    for line in lines:
        if line.startswith((b"ShdPnd:", b"SigPnd:")):
            try:
                mask |= int(line[7:], 16)
            except ValueError:
                return 0
    return mask


def listen_to_signals() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP into :class:`Cancelled`; sudo's mask, which we inherited, is lifted."""

    def cancel(number: int, frame: FrameType | None) -> None:
        raise Cancelled

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for each in wanted:
        signal.signal(each, cancel)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)


def leave_on_signals() -> None:
    """From here on a signal ends the process at once: for the little that is done after the end."""

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(1)

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, leave)
