"""A command of the administrator's own that stores passwords; what it stored cannot be read back."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from identree.app.escrow import EscrowFailed, Stored
from identree.clients.escrow.base import needed, shown
from identree.core.escrow import (
    COMMAND,
    OPERATION_SECONDS,
    checked_hostname,
    checked_password,
    command_environment,
    item_id_in,
)

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


class CommandBackend:
    """
    Implements :class:`identree.app.escrow.EscrowBackend`.

    :param reactor: an ``IReactorProcess`` and ``IReactorTime``.
    :param environment: the server's; of it the command gets ``PATH``, ``HOME`` and what begins with a prefix.
    """

    name = COMMAND
    revealable = False

    def __init__(
        self, *, reactor: Any, command: str, prefixes: tuple[str, ...], environment: Mapping[str, str]
    ) -> None:
        """:raise ValueError: there is no command, or it cannot be one."""
        needed(command.strip(), "IDENTREE_ESCROW_COMMAND", self.name)
        if "\0" in command:
            raise ValueError("IDENTREE_ESCROW_COMMAND: a NUL character cannot be part of a command")
        self._reactor, self._command = reactor, command
        self._prefixes, self._environment = prefixes, environment

    async def store(self, hostname: str, password: str) -> Stored:
        try:
            name, raw = checked_hostname(hostname), checked_password(password).encode()
        except ValueError as problem:
            raise EscrowFailed(f"escrow command: {problem}") from None
        environment = command_environment(self._environment, name, self._prefixes)
        script = (_OWN_GROUP, self._command, environment.get("LC_CTYPE", ""))
        run = _Run(self._reactor, raw)
        try:
            self._reactor.spawnProcess(
                run,
                sys.executable,
                [sys.executable, "-I", "-S", "-c", *script],
                env=environment,
            )
        except OSError as problem:
            run.close()
            raise EscrowFailed(f"escrow command: it cannot be started: {problem.strerror}") from None
        reason, late = await run.ended
        output = shown(run.errors + b"\n" + run.output, (password,))
        if late:
            raise EscrowFailed(f"escrow command: not done within {OPERATION_SECONDS:g} s; it was killed", output)
        if not reason.check(ProcessDone):
            raise EscrowFailed(f"escrow command: {_described(reason)}", output)
        return Stored(item_id=item_id_in(run.output.decode("utf-8", "replace")))

    async def retrieve(self, hostname: str, item_id: str, vault_id: str) -> str:
        raise EscrowFailed("what an escrow command has stored cannot be read back; look where it puts the passwords")

    async def check(self) -> None:
        """Only running it would tell, and that stores something."""

    async def keep(self) -> None:
        """Nothing is lent."""


class _Run(ProcessProtocol):
    """
    One run of the command.

    :ivar ended: the reason, and whether it was killed for taking too long. Cancelled, it kills the command.
    """

    def __init__(self, reactor: Any, password: bytes) -> None:
        self._reactor, self._password = reactor, password
        self._output, self._errors = bytearray(), bytearray()
        self._late = False
        self._timer = reactor.callLater(OPERATION_SECONDS, self._too_late)
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
        self.transport.write(self._password)
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


def _described(reason: Failure) -> str:
    value = reason.value
    if isinstance(value, ProcessTerminated) and value.signal is not None:
        return f"it was ended by signal {value.signal}"
    return f"it ended with status {getattr(value, 'exitCode', None)}; only 0 means stored"
