"""Commands of administrators: bounded in time and output, and ended with all that they have started."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

# Of each of the two outputs; what comes beyond is read and thrown away.
OUTPUT_BYTES = 1 << 20
# A command that has ended may have left something running that holds its outputs open; they are left after this time.
LEAVE_SECONDS = 1.0

# Makes a process group, so that a command that takes too long ends with all that it has started; then becomes the
# shell. The interpreter may have set LC_CTYPE on its way (PEP 538): the command gets what it was to get, or none.
_OWN_GROUP = """\
import os, sys
os.setsid()
os.environ.pop("LC_CTYPE", None)
if sys.argv[2]:
    os.environ["LC_CTYPE"] = sys.argv[2]
os.execv("/bin/sh", ["sh", "-c", sys.argv[1]])
"""


class Run(ProcessProtocol):
    """
    One run of a command.

    :param given: for its standard input.
    :param seconds: after these it is killed.
    :ivar ended: the reason, and whether it was killed for taking too long. Cancelled, it kills the command.
    """

    def __init__(self, reactor: Any, given: bytes, seconds: float) -> None:
        self._reactor, self._given = reactor, given
        self._output, self._errors = bytearray(), bytearray()
        self._late = False
        self._timer = reactor.callLater(seconds, self._too_late)
        self._leave: Any = None
        self._pid: int | None = None
        self.ended: Deferred[tuple[Failure, bool]] = Deferred(lambda _: self._kill())

    @property
    def output(self) -> bytes:
        return bytes(self._output)

    @property
    def errors(self) -> bytes:
        return bytes(self._errors)

    def close(self) -> None:
        """It was never started."""
        self._timer.cancel()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self._pid = self.transport.pid
        self.transport.write(self._given)
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self._output += data[: OUTPUT_BYTES - len(self._output)]

    def errReceived(self, data: bytes) -> None:
        self._errors += data[: OUTPUT_BYTES - len(self._errors)]

    def processExited(self, reason: Failure) -> None:
        # no signal after this: the number may be another process's
        self._pid = None
        if self._timer.active():
            self._timer.cancel()
        self._leave = self._reactor.callLater(LEAVE_SECONDS, self._close_outputs)

    def processEnded(self, reason: Failure) -> None:
        for timer in (self._timer, self._leave):
            if timer is not None and timer.active():
                timer.cancel()
        if not self.ended.called:
            self.ended.callback((reason, self._late))

    def _close_outputs(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def _too_late(self) -> None:
        self._late = True
        self._kill()

    def _kill(self) -> None:
        """With everything that it has started, unless that has made itself independent."""
        if self._pid is None:
            return
        kills: tuple[Callable[[int, int], None], ...] = (os.killpg, os.kill)
        for kill in kills:
            try:
                kill(self._pid, signal.SIGKILL)
            except ProcessLookupError:
                # it has no group yet, or is gone
                continue
            return


def start(run: Run, reactor: Any, command: str, environment: Mapping[str, str]) -> None:
    """
    ``sh -c`` in a group of its own.

    :raise OSError: it cannot be started.
    """
    script = (_OWN_GROUP, command, environment.get("LC_CTYPE", ""))
    try:
        reactor.spawnProcess(run, sys.executable, [sys.executable, "-I", "-S", "-c", *script], env=dict(environment))
    except OSError:
        run.close()
        raise
